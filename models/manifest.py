"""A model directory: `model.onnx` and `manifest.toml`; writes it, reads it, and refuses it when a single bit is wrong."""

import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from rpi_daemon.errors import ModelError
from rpi_daemon.models.inputs import COLUMNS, SCALING_VERSION
from rpi_daemon.records import HORIZONS_S, QUANTILES

Float32 = NDArray[np.float32]
MANIFEST: Final = "manifest.toml"
MODEL: Final = "model.onnx"
SCHEMA: Final = 1
MAX_BYTES: Final = 16 * 2**20
MAX_HIDDEN: Final = 4096
ALLOWED_OPS: Final = frozenset({"LSTM", "Gemm", "Concat", "Squeeze", "Unsqueeze", "MatMul", "Add", "Mul"})
CANARY_TOLERANCE: Final = 1e-4  # of outputs in scales; CPUs differ in the last digits only
_FIRST_LINE: Final = re.compile(rb"# sha256 of the lines below: ([0-9a-f]{64})\n")
RUN_ERRORS: Final = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

# Field numbers of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3) that the walk below needs.
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR = 5
_TENSOR_LOCATION = 14
# What each message may hold, and why not the rest: all that is not listed is refused.
_ALLOWED_FIELDS: Final = {
    "model": {1, 2, 3, 4, 5, 6, _MODEL_GRAPH, _MODEL_OPSET, 14},
    "graph": {_GRAPH_NODE, 2, _GRAPH_INITIALIZER, 10, 11, 12, 13},
    "node": {1, 2, 3, _NODE_OP, _NODE_ATTRIBUTE, 6, _NODE_DOMAIN},
    "attribute": {1, 2, 3, 4, _ATTRIBUTE_TENSOR, 7, 8, 9, 13, 20},
    "tensor": {1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, _TENSOR_LOCATION},
}
_REASONS: Final = {
    ("model", 20): "holds training graphs",
    ("model", 25): "defines functions",
    ("graph", 15): "holds sparse tensors",
    ("attribute", 6): "holds sub-graphs",
    ("attribute", 11): "holds sub-graphs",
    ("tensor", 13): "keeps weights in another file",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that passed every check. `session` maps x, h, c to y, h_out, c_out (see lstm.to_onnx)."""

    path: Path
    name: str
    sha256: str
    hidden: int
    session: Any  # onnxruntime.InferenceSession, which has no types

    def run(self, x: Float32, h: Float32, c: Float32) -> tuple[Float32, Float32, Float32]:
        """One step: x [N, F], h and c [1, N, H] -> outputs [N, 30] and the state after. Raises ModelError."""
        try:
            y, h_out, c_out = self.session.run(None, {"x": x, "h": h, "c": c})
        except (*RUN_ERRORS, ValueError) as error:  # a ValueError: its inputs or outputs have other names or numbers
            raise ModelError(f"model {self.name}: onnxruntime failed: {error}") from error
        return y, h_out, c_out


def open_session(model: bytes) -> Any:
    """An onnxruntime session on one thread without spinning (spinning burns 35 ms of CPU after each call)."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except RUN_ERRORS as error:
        raise ModelError(f"onnxruntime does not take the model: {error}") from error


def load_model(path: str | Path) -> LoadedModel:
    """Open a model directory. Raises ModelError unless digest, hash, columns, operators and canary are all right."""
    directory = Path(path)
    manifest = _read_manifest(directory)
    content = _read(directory / MODEL)
    if hashlib.sha256(content).hexdigest() != manifest["model"]["sha256"]:
        raise ModelError(f"{directory / MODEL}: not the file its manifest was written for (sha256 differs); copy the "
                         "directory again, or choose another model")  # fmt: skip
    _check_contract(directory, manifest)
    try:
        check_operators(content)
    except ModelError as error:
        raise ModelError(f"{directory / MODEL}: {error}") from error
    loaded = LoadedModel(
        directory, manifest["name"], manifest["model"]["sha256"], manifest["model"]["hidden"], open_session(content)
    )
    _check_canary(loaded, manifest["canary"])
    return loaded


def describe(path: str | Path) -> dict[str, Any]:
    """What the manifest says, without the canary's numbers, and whether the model passes its checks."""
    directory = Path(path)
    manifest = _read_manifest(directory)
    manifest["canary"] = {"rows": len(manifest["canary"]["input"][0]), "steps": len(manifest["canary"]["input"])}
    try:
        load_model(directory)
        manifest["accepted"], manifest["refused_because"] = True, ""
    except ModelError as error:
        manifest["accepted"], manifest["refused_because"] = False, str(error)
    return manifest


def write_model(
    directory: Path,
    *,
    name: str,
    model: bytes,
    hidden: int,
    canary_input: Float32,
    training: Mapping[str, Any],
    scores: list[dict[str, Any]],
) -> None:
    """Write a model directory; canary_input is [steps, rows, columns], run from a zero state. Raises ModelError."""
    check_operators(model)
    loaded = LoadedModel(directory, name, hashlib.sha256(model).hexdigest(), hidden, open_session(model))
    canary: NDArray[np.float64] = np.round(canary_input, 3).astype(np.float64)
    output = _run_canary(loaded, canary)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "model": {"file": MODEL, "sha256": loaded.sha256, "bytes": len(model), "hidden": hidden},
        "inputs": {"scaling_version": SCALING_VERSION, "columns": list(COLUMNS)},
        "outputs": {
            "quantiles": list(QUANTILES),
            "horizons_s": list(HORIZONS_S),
            "layout": "[2 = value, running maximum][horizon][quantile], change from the present draw in scales",
        },
        "training": dict(training),
        "scores": scores,
        "canary": {"input": canary.tolist(), "output": np.round(output.astype(np.float64), 6).tolist()},
    }
    body = "".join(_toml(manifest)).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL).write_bytes(model)
    digest = hashlib.sha256(body).hexdigest()
    (directory / MANIFEST).write_bytes(f"# sha256 of the lines below: {digest}\n".encode() + body)


def check_operators(model: bytes) -> None:
    """Refuse a graph with operators outside ALLOWED_OPS, sub-graphs, functions, custom domains or external data.

    Walks the protobuf itself: the daemon does not depend on the `onnx` package.
    """
    operators: set[str] = set()
    for number, value in _fields(model, "model"):
        if number == _MODEL_OPSET and any(n == 1 and v for n, v in _fields(_bytes(value))):
            raise ModelError("the model imports a custom operator set, which is not allowed")
        if number == _MODEL_GRAPH:
            operators |= set(_graph_operators(_bytes(value)))
    if not operators:
        raise ModelError("the model holds no graph")
    if operators - ALLOWED_OPS:
        raise ModelError(f"operators not allowed: {', '.join(sorted(operators - ALLOWED_OPS))}")


def _graph_operators(graph: bytes) -> Iterator[str]:
    for number, value in _fields(graph, "graph"):
        if number == _GRAPH_INITIALIZER:
            _check_tensor(_bytes(value))
        elif number == _GRAPH_NODE:
            names = []
            for node_field, node_value in _fields(_bytes(value), "node"):
                if node_field == _NODE_OP:
                    names.append(_bytes(node_value).decode("utf-8", "replace"))
                elif node_field == _NODE_DOMAIN and node_value not in (b"", b"ai.onnx"):
                    raise ModelError("the model uses a custom operator domain, which is not allowed")
                elif node_field == _NODE_ATTRIBUTE:
                    _check_attribute(_bytes(node_value))
            yield from names or ["one without a name"]


def _check_attribute(attribute: bytes) -> None:
    for number, value in _fields(attribute, "attribute"):
        if number == _ATTRIBUTE_TENSOR:
            _check_tensor(_bytes(value))


def _check_tensor(tensor: bytes) -> None:
    for number, value in _fields(tensor, "tensor"):
        if number == _TENSOR_LOCATION and value != 0:
            raise ModelError("the model keeps weights in another file, which is not allowed")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ModelError("not an ONNX file (a number where a message belongs)")
    return value


def _fields(message: bytes, what: str = "") -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protobuf message (https://protobuf.dev/programming-guides/encoding/).

    Raises ModelError, also for a field that `what` may not hold.
    """
    allowed = _ALLOWED_FIELDS.get(what)
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if not 8 <= key <= 0xFFFFFFFF:  # other readers drop the bits above, and see another field
            raise ModelError("not an ONNX file (a field number that there is not)")
        kind = key & 7
        if allowed is not None and key >> 3 not in allowed:
            reason = _REASONS.get((what, key >> 3), f"holds field {key >> 3} of a {what}")
            raise ModelError(f"the model {reason}, which is not allowed")
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ModelError("not an ONNX file (unknown wire type)")
        if at + size > len(message):
            raise ModelError("not an ONNX file (a field runs past the end)")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError("not an ONNX file (a number is cut off)")


def _read(file: Path) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
            raise ModelError(f"{file}: no regular file; copy the directory again")
        if status.st_size > MAX_BYTES:
            raise ModelError(f"{file}: {status.st_size} bytes is more than a model may have ({MAX_BYTES})")
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); a model is a directory with {MODEL} and {MANIFEST}")\
            from error  # fmt: skip


def _read_manifest(directory: Path) -> dict[str, Any]:
    file = directory / MANIFEST
    content = _read(file)
    first = _FIRST_LINE.match(content)
    if not first or hashlib.sha256(content[first.end() :]).hexdigest().encode() != first.group(1):
        raise ModelError(f"{file}: damaged or edited by hand (its digest differs); copy the directory again")
    try:
        manifest = tomllib.loads(content[first.end() :].decode())
    except (
        ValueError
    ) as error:  # TOML's own kind is one; so is text that is not UTF-8, and a number of thousands of digits
        raise ModelError(f"{file}: not TOML: {error}") from error
    except RecursionError:
        raise ModelError(f"{file}: not TOML: nested too deeply") from None
    if manifest.get("schema") != SCHEMA:
        raise ModelError(f"{file}: schema {manifest.get('schema')} is not {SCHEMA}; use a model made for this version")
    if not _is_whole(manifest):
        raise ModelError(f"{file}: not what a manifest holds; train or copy the model again")
    return manifest


def _is_whole(manifest: Mapping[str, Any]) -> bool:
    """Whether everything that is read later is there, and of its kind: a digest says who wrote it was careful, not right."""
    try:
        model, canary = manifest["model"], manifest["canary"]
        steps, output = np.asarray(canary["input"], np.float64), np.asarray(canary["output"], np.float64)
        return (
            all(isinstance(text, str) for text in (manifest["name"], model["sha256"]))
            and type(model["hidden"]) is int  # a bool is an int to isinstance
            and 1 <= model["hidden"] <= MAX_HIDDEN
            and steps.ndim == 3
            and len(steps) > 0
            and output.ndim == 2
            and _numbers(canary["input"], 3)
            and _numbers(canary["output"], 2)
            and {"scaling_version", "columns"} <= manifest["inputs"].keys()
            and {"quantiles", "horizons_s"} <= manifest["outputs"].keys()
            and isinstance(manifest["training"], dict)
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return False


def _numbers(value: object, levels: int) -> bool:
    """Whether lists in lists hold numbers alone: NumPy makes them of texts and truth values too."""
    if levels == 0:
        return type(value) in (int, float)
    return isinstance(value, list) and all(_numbers(part, levels - 1) for part in value)


def _check_contract(directory: Path, manifest: Mapping[str, Any]) -> None:
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    same = (
        inputs["scaling_version"] == SCALING_VERSION
        and inputs["columns"] == list(COLUMNS)
        and outputs["quantiles"] == list(QUANTILES)
        and outputs["horizons_s"] == list(HORIZONS_S)
    )
    if not same:
        raise ModelError(f"{directory}: made for other inputs or outputs than this version has; train it again")


def _run_canary(model: LoadedModel, canary: NDArray[np.float64]) -> Float32:
    steps = canary.astype(np.float32)
    h = c = np.zeros((1, steps.shape[1], model.hidden), np.float32)
    y = np.empty(0, np.float32)
    for x in steps:
        y, h, c = model.run(x, h, c)
    return y


def _check_canary(model: LoadedModel, canary: Mapping[str, Any]) -> None:
    expected = np.asarray(canary["output"], np.float64)
    output = _run_canary(model, np.asarray(canary["input"], np.float64))
    if output.shape != expected.shape or not np.allclose(output, expected, rtol=0.0, atol=CANARY_TOLERANCE):
        raise ModelError(f"{model.path}: the canary input does not give its expected output on this machine")


def _toml(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The few shapes a manifest has: scalars and lists, then tables, then lists of tables."""
    nested = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    lists = {k: v for k, v in table.items() if isinstance(v, list) and v and isinstance(v[0], Mapping)}
    for key, value in table.items():
        if key not in nested and key not in lists:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
    for key, value in nested.items():
        yield f"\n[{prefix}{key}]\n"
        yield from _toml(value, f"{prefix}{key}.")
    for key, rows in lists.items():
        for row in rows:
            yield f"\n[[{prefix}{key}]]\n"
            yield from _toml(row, f"{prefix}{key}.")
