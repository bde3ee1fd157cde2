"""Training from a set of series to a model directory that loads, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rpi_daemon.errors import TraceError
from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import LOOKAHEAD, SeriesSet, examples, read_series, targets, write_series
from rpi_daemon.models.inputs import COLUMNS
from rpi_daemon.models.manifest import describe, load_model
from rpi_daemon.models.train import Settings, main, make_model

TICKS = 800


@pytest.fixture(scope="module")
def series() -> SeriesSet:
    """Bursts with announced ends, three of them held back."""
    rng = np.random.default_rng(1)
    period = rng.integers(80, 160, 10)
    k = np.arange(TICKS)
    busy = (k % period[:, None]) < 40
    power_w = 150.0 + 200.0 * busy + rng.normal(0.0, 1.0, (10, TICKS))
    announced_w = np.cumsum(np.minimum(np.diff(busy * 200.0, axis=1, prepend=0.0), 0.0), axis=1)
    source = {"name": "bursts", "licence": "MIT", "origin": "this test", "series": 10, "hours": 0.2}
    return SeriesSet(
        power_w.astype(np.float32),
        announced_w.astype(np.float32),
        np.full(10, 500.0),
        np.zeros(10, np.int64),
        np.arange(10) >= 7,
        (source,),
    )


def test_targets_and_plans_look_ahead_by_the_horizons(series: SeriesSet) -> None:
    wanted = targets(series.power_w)
    assert wanted.shape == (10, TICKS - LOOKAHEAD, 2, 5)
    power_w, t = series.power_w[3], 321
    for k, ahead in enumerate((10, 20, 30, 40, 50)):
        assert wanted[3, t, 0, k] == pytest.approx(power_w[t + ahead] - power_w[t], abs=1e-3)
        assert wanted[3, t, 1, k] == pytest.approx(power_w[t + 1 : t + ahead + 1].max() - power_w[t], abs=1e-3)
    x = series.inputs_at(t)
    np.testing.assert_allclose(
        x.planned_w[3], series.announced_w[3, t + np.arange(10, 60, 10)] - series.announced_w[3, t]
    )


def test_examples_hold_targets_in_scales_and_no_time_of_day(series: SeriesSet) -> None:
    data = examples(series)
    np.testing.assert_allclose(
        data.targets * data.scale_w[:, :, None, None], targets(series.power_w), rtol=1e-4, atol=1e-2
    )
    assert not data.columns[:, :, COLUMNS.index("day_cos")].any()
    assert data.columns[:, :, COLUMNS.index("planned_3s")].min() < -1.0


def test_a_short_training_gives_a_model_with_scores_and_is_reproducible(series: SeriesSet, tmp_path: Path) -> None:
    settings = Settings(hidden=6, updates=12, lanes=6, steps=40, seed=4)
    told: list[str] = []
    rows = make_model(series, tmp_path / "a", "short", settings, told.append)
    make_model(series, tmp_path / "b", "short", settings, told.append)
    first = (tmp_path / "a" / "model.onnx").read_bytes()
    assert first == (tmp_path / "b" / "model.onnx").read_bytes()
    assert (tmp_path / "a" / "manifest.toml").read_bytes() == (tmp_path / "b" / "manifest.toml").read_bytes()
    assert load_model(tmp_path / "a").hidden == 6
    assert rows == describe(tmp_path / "a")["scores"]
    assert {f"mae_5s_w_{name}" for name in ("lstm", "ridge", "ewma", "persistence")} <= set(rows[0])
    assert rows[0]["series"] == 3
    manifest = describe(tmp_path / "a")
    assert manifest["training"]["data"][0]["licence"] == "MIT"
    assert {"cpu", "day_sin"} <= set(manifest["training"]["unused_columns"])
    make_model(series, tmp_path / "c", "short", Settings(hidden=6, updates=12, lanes=6, steps=40, seed=5), told.append)
    assert first != (tmp_path / "c" / "model.onnx").read_bytes()


def test_training_goes_on_from_a_model(series: SeriesSet, tmp_path: Path) -> None:
    settings = Settings(hidden=6, updates=2, lanes=4, steps=20, first_rate=0.0)
    make_model(series, tmp_path / "a", "first", Settings(hidden=6, updates=5, lanes=4, steps=20), lambda _: None)
    first = load_model(tmp_path / "a")
    make_model(series, tmp_path / "b", "second", settings, lambda _: None, first)
    before = lstm.from_onnx((tmp_path / "a" / "model.onnx").read_bytes())
    after = lstm.from_onnx((tmp_path / "b" / "model.onnx").read_bytes())
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=5e-4, err_msg=name)
    assert describe(tmp_path / "b")["training"]["started_from"] == f"first {first.sha256}"


def test_training_learns_what_repeats(series: SeriesSet, tmp_path: Path) -> None:
    settings = Settings(hidden=8, updates=80, lanes=8, steps=50, seed=6)
    rows = make_model(series, tmp_path, "short", settings, lambda _: None)
    assert rows[0]["mae_5s_w_lstm"] < 0.8 * rows[0]["mae_5s_w_persistence"]


def test_command_writes_a_model(series: SeriesSet, tmp_path: Path) -> None:
    write_series(tmp_path / "set.npz", series)
    options = ["--data", str(tmp_path / "set.npz"), "--out", str(tmp_path / "m"), "--hidden", "4", "--updates", "3"]
    done = CliRunner().invoke(main, options)
    assert done.exit_code == 0, done.output
    assert "x persistence" in done.output
    assert describe(tmp_path / "m")["accepted"] is True


def test_a_set_survives_the_file_and_damage_is_named(series: SeriesSet, tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    write_series(file, series)
    again = read_series(file)
    np.testing.assert_array_equal(again.power_w, series.power_w)
    np.testing.assert_array_equal(again.announced_w, series.announced_w)
    np.testing.assert_array_equal(again.held_back, series.held_back)
    assert again.sources == series.sources
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(TraceError, match=r"set\.npz: not a training set"):
        read_series(file)
    np.savez(file, power_w=np.zeros((1, 2)))
    with pytest.raises(TraceError, match="not a training set"):
        read_series(file)
