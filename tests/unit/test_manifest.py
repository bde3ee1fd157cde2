"""A model directory is taken when every bit is right and refused when one is not."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from rpi_daemon.errors import ModelError
from rpi_daemon.models import lstm
from rpi_daemon.models.inputs import N_COLUMNS
from rpi_daemon.models.manifest import check_operators, describe, load_model, write_model

HIDDEN = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    params = lstm.initial(N_COLUMNS, HIDDEN, rng)
    params["V"] += rng.normal(0.0, 0.2, params["V"].shape).astype(np.float32)
    directory = tmp_path_factory.mktemp("models") / "small"
    write_model(
        directory,
        name="small",
        model=lstm.to_onnx(params),
        hidden=HIDDEN,
        canary_input=rng.normal(size=(3, 2, N_COLUMNS)).astype(np.float32),
        training={"seed": 3, "data": [{"name": "none", "licence": "MIT"}]},
        scores=[{"set": "held back", "mae_5s_w_lstm": 1.5}],
    )
    return directory


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def _resign(directory: Path, old: str, new: str) -> None:
    """Change the manifest as somebody would who knows how it is signed."""
    text = (directory / "manifest.toml").read_text().split("\n", 1)[1]
    assert old in text
    body = text.replace(old, new, 1).encode()
    digest = hashlib.sha256(body).hexdigest()
    (directory / "manifest.toml").write_bytes(f"# sha256 of the lines below: {digest}\n".encode() + body)


def test_loads_and_describes(made: Path) -> None:
    model = load_model(made)
    assert (model.name, model.hidden) == ("small", HIDDEN)
    told = describe(made)
    assert told["accepted"] is True
    assert told["training"]["data"] == [{"name": "none", "licence": "MIT"}]
    assert told["scores"][0]["mae_5s_w_lstm"] == 1.5
    assert told["canary"] == {"rows": 2, "steps": 3}


def test_a_failing_run_is_a_model_error(made: Path) -> None:
    model = load_model(made)
    state = np.zeros((1, 2, HIDDEN), np.float32)
    with pytest.raises(ModelError, match="model small: onnxruntime failed"):
        model.run(np.zeros((2, 3), np.float32), state, state)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.toml"])
def test_every_bit_flip_and_truncation_is_refused(copy: Path, name: str) -> None:
    file = copy / name
    good = file.read_bytes()
    rng = np.random.default_rng(11)
    for bit in rng.choice(8 * len(good), 300, replace=False):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(bad)
        with pytest.raises(ModelError):
            load_model(copy)
    for size in rng.choice(len(good), 100, replace=False):
        file.write_bytes(good[:size])
        with pytest.raises(ModelError):
            load_model(copy)
    file.write_bytes(good)
    load_model(copy)


def test_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    (copy / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read"):
        load_model(copy)
    with pytest.raises(ModelError, match=r"manifest\.toml: cannot be read"):
        load_model(tmp_path / "nowhere")
    assert "cannot be read" in describe(copy)["refused_because"]


@pytest.mark.parametrize("name", ["model.onnx", "manifest.toml"])
def test_what_is_no_file_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(ModelError, match="no regular file"):
        load_model(copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="no regular file"):
        load_model(copy)


def test_canary_and_contract_are_checked_behind_the_hashes(copy: Path) -> None:
    _resign(copy, '"below_mean_0s5"', '"other"')
    with pytest.raises(ModelError, match="made for other inputs"):
        load_model(copy)
    _resign(copy, '"other"', '"below_mean_0s5"')
    load_model(copy)
    text = (copy / "manifest.toml").read_text()
    output = text.split("output = [[", 1)[1].split(",", 1)[0]
    _resign(copy, f"output = [[{output}", f"output = [[{float(output) + 0.01}")
    with pytest.raises(ModelError, match="canary"):
        load_model(copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "small"', 'title = "small"'), (f"hidden = {HIDDEN}", 'hidden = "6"'), (f"hidden = {HIDDEN}", "hidden = 999999999999"),
        ("[inputs]", "[puts]"), ("quantiles =", "parts ="), ("[canary]", "[finch]"), ("input = [[[", 'input = ["x", [['),
        ("input = [[[", "input = [[[true, "), ("input = [[[", 'input = [[["1.0", '), ("output = [[", "output = [[" + "9" * 400 + ", "),
    ],
)  # fmt: skip
def test_a_manifest_that_holds_something_else_is_refused_whatever_its_digest(copy: Path, old: str, new: str) -> None:
    _resign(copy, old, new)
    for read in (load_model, describe):
        with pytest.raises(ModelError, match=r"manifest\.toml: not what a manifest holds"):
            read(copy)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 900 + "]" * 900], ids=["a long number", "a deep list"])
def test_a_manifest_that_toml_cannot_say_is_refused(value: str, copy: Path) -> None:
    _resign(copy, 'name = "small"', f'name = "small"\nx = {value}')
    with pytest.raises(ModelError, match=r"manifest\.toml: not TOML"):
        load_model(copy)


def _model(op: str, domain: str = "", external: bool = False) -> bytes:
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    if external:
        tensor.data_location = TensorProto.EXTERNAL
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, [1])], [tensor]
    )
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (_model("Exp"), "operators not allowed: Exp"),
        (_model("Add", domain="evil"), "custom operator domain"),
        (_model("Add", external=True), "another file"),
        (b"", "no graph"),
        (b"\x3a\xff\xff", "cut off|past the end"),
        (b"\x3b", "unknown wire type"),
    ],
)
def test_operators_outside_the_list_are_refused(model: bytes, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        check_operators(model)


def test_a_graph_with_other_inputs_is_refused(copy: Path) -> None:
    other = _model("Add")
    digest = hashlib.sha256((copy / "model.onnx").read_bytes()).hexdigest()
    _resign(copy, digest, hashlib.sha256(other).hexdigest())
    (copy / "model.onnx").write_bytes(other)
    with pytest.raises(ModelError):
        load_model(copy)


def test_an_allowed_operator_passes() -> None:
    check_operators(_model("Add"))
