"""Fault 15: a model that is damaged, poisoned or too big is refused; the change to another one takes no time that ticks need."""

import hashlib
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fault_figures import Figures

from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.library import Library
from rpi_daemon.models.manifest import MANIFEST, MAX_BYTES, MODEL, load_model
from rpi_daemon.models.mixture import default_mixture
from rpi_daemon.records import TICK_NS, ForecastInput

OUTLETS = 48
FLIPS, CUTS = 300, 100


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "model"))


def refused(directory: Path) -> bool:
    try:
        load_model(directory)
    except ModelError:
        return True
    return False


def signed_again(directory: Path, content: bytes) -> None:
    """Somebody else's graph, with the hash and the digest that go with it."""
    old = hashlib.sha256((SHIPPED / MODEL).read_bytes()).hexdigest()
    body = (
        (SHIPPED / MANIFEST)
        .read_bytes()
        .split(b"\n", 1)[1]
        .replace(old.encode(), hashlib.sha256(content).hexdigest().encode())
    )
    (directory / MODEL).write_bytes(content)
    (directory / MANIFEST).write_bytes(
        b"# sha256 of the lines below: " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    )


@pytest.mark.fault(15)
def test_fault_15_damaged_models_are_refused(model: Path, figure: Figures) -> None:
    rng = np.random.default_rng(15)
    taken = 0
    for name in (MODEL, MANIFEST):
        file = model / name
        good = file.read_bytes()
        for bit in rng.choice(8 * len(good), FLIPS, replace=False):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(bad)
            taken += not refused(model)
        for size in rng.choice(len(good), CUTS, replace=False):
            file.write_bytes(good[:size])
            taken += not refused(model)
        file.write_bytes(good)
    assert not refused(model)
    figure(15, f"taken of {2 * FLIPS} flips and {2 * CUTS} truncations", taken, 0.0, "")


@pytest.mark.fault(15)
def test_fault_15_poisoned_models_are_refused_though_their_hash_is_right(model: Path, figure: Figures) -> None:
    """With hash and digest made anew: other weights by the known answer, whatever else by what a graph may hold."""
    from onnx import TensorProto, helper, load_from_string

    def poisoned(kind: str) -> bytes:
        graph = load_from_string((SHIPPED / MODEL).read_bytes())
        if kind == "weights":
            tensor = next(
                t for t in graph.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.raw_data) > 64
            )
            values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.5)
            tensor.raw_data = values.tobytes()
        elif kind == "external":
            tensor = graph.graph.initializer[0]
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="/etc/passwd")
        elif kind == "operator":
            graph.graph.node.append(helper.make_node("Exp", [graph.graph.output[0].name], ["z"]))
        elif kind == "sub-graph":
            graph.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "g", [], [])))
        elif kind == "training":
            graph.training_info.add()
        elif kind == "hidden field":  # the graph again, in a field number whose upper bits other readers drop
            inner = graph.graph.SerializeToString()
            key, size = (1 << 35 | 7 << 3 | 2), len(inner)
            return bytes(graph.SerializeToString()) + varint(key) + varint(size) + inner
        return bytes(graph.SerializeToString())

    kinds = ("weights", "external", "operator", "sub-graph", "training", "hidden field")
    taken = []
    for kind in kinds:
        signed_again(model, poisoned(kind))
        if not refused(model):
            taken.append(kind)
    assert taken == []
    with (model / MODEL).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ModelError, match="more than a model may have"):
        load_model(model)
    signed_again(model, (SHIPPED / MODEL).read_bytes())
    assert not refused(model)
    figure(15, f"taken of {len(kinds)} poisoned models with a right hash", len(taken), 0.0, "")


def varint(n: int) -> bytes:
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


@pytest.mark.fault(15)
def test_fault_15_a_refused_model_leaves_the_one_before(tmp_path: Path, figure: Figures) -> None:
    library = Library(tmp_path)
    for name in ("good", "bad"):
        shutil.copytree(SHIPPED, library.folder / name)
    library.promote("good", 10**18)
    content = bytearray((library.folder / "bad" / MODEL).read_bytes())
    content[len(content) // 2] ^= 1
    (library.folder / "bad" / MODEL).write_bytes(bytes(content))
    with pytest.raises(ModelError, match="sha256 differs"):
        library.promote("bad", 10**18 + 1)
    assert library.choose().name == "good"
    (library.folder / "good" / MANIFEST).write_text("")
    choice = library.choose()
    assert choice.name == "shipped"
    figure(15, "models that are passed over, named", len(choice.refused), 1.0, "", at_least=True)


@pytest.mark.fault(15)
def test_fault_15_the_change_to_another_model_takes_no_time_that_ticks_need(figure: Figures) -> None:
    first = load_model(SHIPPED)
    mixture = default_mixture(OUTLETS, first)
    rng = np.random.default_rng(1)
    took_ms = []
    for k in range(600):
        power_w = 200.0 + rng.normal(0.0, 20.0, OUTLETS)
        asked = ForecastInput(
            t_mono_ns=k * TICK_NS, t_utc_s=1.7e9 + 0.1 * k, power_w=power_w, peak_w=np.full(OUTLETS, np.nan), step_w=np.zeros(OUTLETS),
            valid=np.isfinite(power_w), rating_w=np.full(OUTLETS, 600.0), planned_w=np.zeros((OUTLETS, 5)),
            telemetry=np.zeros((OUTLETS, 4)), telemetry_mask=np.zeros((OUTLETS, 4)), quality=np.zeros(OUTLETS, int),
        )  # fmt: skip
        began_ns = time.thread_time_ns()
        if k == 400:
            mixture.swap(replace(first, name="other"))
        mixture.step(asked)
        took_ms.append((time.thread_time_ns() - began_ns) / 1e6)
    usual_ms = float(np.median(took_ms[250:400]))
    figure(
        15,
        "longest pause of a tick by a change of models, 48 outlets",
        max(took_ms[400:480]) - usual_ms,
        10.0,
        "ms",
        busy=50.0,
    )
