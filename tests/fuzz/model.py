"""Model directories: manifests with a right digest, graphs against the reader of the `onnx` package."""

import functools
import hashlib
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz.target import Choices, Target, must, scratch
from google.protobuf.message import DecodeError, Message

from rpi_daemon.errors import ModelError
from rpi_daemon.models import lstm
from rpi_daemon.models.inputs import N_COLUMNS
from rpi_daemon.models.manifest import (
    ALLOWED_OPS,
    MANIFEST,
    MODEL,
    _check_contract,
    _read_manifest,
    check_operators,
    load_model,
    write_model,
)

HIDDEN = 2
NAMES = (b"", b"Add", b"LSTM", b"Exp", b"Loop", b"ai.onnx", b"evil", b"location", b"weights.bin")
FIELDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 20, 22, 23, 25, 26, 100)


@functools.cache
def directory() -> Path:
    folder = scratch() / "small"
    rng = np.random.default_rng(3)
    params = lstm.initial(N_COLUMNS, HIDDEN, rng)
    write_model(
        folder,
        name="small",
        model=lstm.to_onnx(params),
        hidden=HIDDEN,
        canary_input=rng.normal(size=(2, 1, N_COLUMNS)).astype(np.float32),
        training={"seed": 3, "data": [{"name": "none", "licence": "MIT"}]},
        scores=[{"set": "held back", "mae_5s_w_lstm": 1.5}],
    )
    return Path(shutil.copytree(folder, folder.with_name("changed"))).with_name("small")


def varint(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def message(choices: Choices, depth: int = 0) -> bytes:
    """Fields of right lengths, one in another."""
    out = b""
    for _ in range(choices.below(4)):
        number, how = choices.one(FIELDS), choices.byte()
        number += (choices.byte() << 29) if how >= 250 else 0  # beyond what a field number may be
        if how < 60:
            out += varint(number << 3) + varint(choices.byte() << (choices.byte() % 60))
        elif how < 160 and depth < 6:
            inner = message(choices, depth + 1)
            out += varint(number << 3 | 2) + varint(len(inner)) + inner
        elif how < 230:
            text = choices.one(NAMES)
            out += varint(number << 3 | 2) + varint(len(text)) + text
        else:
            kind = choices.below(8)
            out += varint(number << 3 | kind) + choices.take(choices.below(9))
    return out


def graph_of(choices: Choices) -> bytes:
    kind = choices.below(4)
    if kind == 0:
        return choices.rest()
    if kind == 1:  # our own, with a few octets changed
        content = bytearray((directory() / MODEL).read_bytes())
        for _ in range(1 + choices.below(4)):
            content[(choices.byte() << 8 | choices.byte()) % len(content)] = choices.byte()
        return bytes(content)
    extra = message(choices)
    if kind == 2:
        return (directory() / MODEL).read_bytes() + extra
    return varint(7 << 3 | 2) + varint(len(extra)) + extra + message(choices)


def walk(part: Message, found: dict[str, int], path: str = "") -> None:
    """Every message in a message, by its own description: no field numbers."""
    name = part.DESCRIPTOR.name
    found[name] = found.get(name, 0) + 1
    for field, value in part.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                walk(item, found, f"{path}.{field.name}")
    if isinstance(part, onnx.NodeProto):
        must(part.op_type in ALLOWED_OPS and part.domain in ("", "ai.onnx"), path, part.op_type, part.domain)
    if isinstance(part, onnx.TensorProto):
        must(part.data_location == onnx.TensorProto.DEFAULT and not part.external_data, path, "external data")


def check_graph(content: bytes) -> bool:
    try:
        check_operators(content)
    except ModelError:
        return False
    read = onnx.ModelProto()
    try:
        read.ParseFromString(content)
    except DecodeError:
        return True  # what onnx does not read onnxruntime does not either
    found: dict[str, int] = {}
    walk(read, found)
    must(found.get("GraphProto", 0) <= 1 and "FunctionProto" not in found and "SparseTensorProto" not in found, found)
    must("TrainingInfoProto" not in found and not any(opset.domain for opset in read.opset_import), found)
    return True


MANIFEST_VALUES = (
    "0",
    "-1",
    "2",
    "nan",
    "[]",
    "[[]]",
    "[[[1.0]]]",
    '""',
    '"x"',
    "{}",
    "1e400",
    "true",
    "1979-05-27",
    "[1, 'a']",
    "9" * 400,
    "9" * 5000,
    "[" * 900 + "]" * 900,
    "[[" + "9" * 400 + "]]",
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def manifest_of(choices: Choices) -> bytes:
    """The lines below the digest: some changed, or any text."""
    if choices.below(4) == 0:
        return choices.rest()
    lines = (directory() / MANIFEST).read_text().splitlines()[1:]
    for _ in range(choices.below(4)):
        at, how = choices.byte() % len(lines), choices.below(6)
        if how == 0:
            del lines[at]
        elif how == 1:
            lines.insert(at, lines[choices.byte() % len(lines)])
        elif how == 2:
            lines[at] = lines[at][: choices.byte()]
        elif how == 5:  # numbers of another kind
            lines[at] = NUMBER.sub(choices.one(('"1.0"', "true", "1", r'"\g<0>"', "inf", "1979-05-27")), lines[at])
        else:
            lines[at] = f"{lines[at].split('=')[0]}= {choices.one(MANIFEST_VALUES)}"
        lines = lines or ["x = 1"]
    return "\n".join(lines).encode()


def check_manifest(body: bytes, *, whole: bool) -> bool:
    changed = directory().with_name("changed")
    digest = hashlib.sha256(body).hexdigest()
    (changed / MANIFEST).write_bytes(f"# sha256 of the lines below: {digest}\n".encode() + body)
    try:
        manifest: dict[str, Any] = _read_manifest(changed)
        _check_contract(changed, manifest)
        if whole:
            must(load_model(changed).hidden == HIDDEN, "another size of state than the canary's")
    except ModelError as error:
        must(str(changed) in str(error) or "onnxruntime" in str(error), error)
        return False
    canary = manifest["canary"]
    numbers = [*itertools.chain(*itertools.chain(*canary["input"])), *itertools.chain(*canary["output"])]
    must(all(type(number) in (int, float) for number in numbers), "a canary of other things than numbers")
    must(type(manifest["model"]["hidden"]) is int and isinstance(manifest["name"], str), manifest["model"])
    return True


def check(data: bytes) -> bool:
    choices = Choices(data)
    kind = choices.byte()
    if kind < 160:
        return check_graph(graph_of(choices))
    return check_manifest(manifest_of(choices), whole=kind >= 252)


def seeds() -> list[bytes]:
    nodes = [bytes([0, i % 4, 1 + i % 3, i % 20, 100, 2, i % 20, 200, i % 9, i % 20, 30, 1]) for i in range(0, 80, 4)]
    node = lambda op: varint(4 << 3 | 2) + varint(len(op)) + op  # noqa: E731
    graph = lambda inner: varint(1 << 3 | 2) + varint(len(inner)) + inner  # noqa: E731
    model = lambda inner: b"\0\0" + varint(7 << 3 | 2) + varint(len(inner)) + inner  # noqa: E731
    return [
        *nodes,
        model(graph(node(b"Add"))),
        model(graph(node(b"Exp"))),
        b"\xa1\1\0",
        b"\xa1\1\1\7\4\3",
        b"\xff\1\0",
        b"\xff\1\1\2\3\6",
        b"\0\1\0\1\1\1",
    ]


TARGET = Target(
    "model",
    "a graph is taken in which the onnx package reads an operator outside the list, another domain, a function, a sub-graph, a sparse tensor, "
    "training, or weights in another file; a manifest is taken whose size of state or name is not of its kind, or whose canary holds anything but numbers",
    ("models/manifest.py",),
    seeds,
    check,
)
