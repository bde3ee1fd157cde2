"""Training from a set of series to a model directory that loads, the same for the same seed."""

import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.errors import TraceError
from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import Row, SeriesSet, examples, inputs_of, read_series, targets, write_series
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS
from rpi_daemon.models.manifest import describe, load_model, write_model
from rpi_daemon.models.train import Lanes, Settings, canary, emphasis, main, make_model, pinball_loss, score, train

TICKS = 800
NAMES = ("network", "persistence", "median_20s")


def bursts(interval_ticks: int, seed: int, *, held_back: bool = False) -> Row:
    """A load that repeats, its ends announced, read every `interval_ticks`."""
    rng = np.random.default_rng(seed)
    k = np.arange(TICKS) * max(1, interval_ticks // 10)
    busy = k % int(rng.integers(80, 160)) < 40
    announced_w = np.cumsum(np.minimum(np.diff(busy * 200.0, prepend=0.0), 0.0))
    return Row(150.0 + 200.0 * busy + rng.normal(0.0, 1.0, TICKS), announced_w, 500.0, interval_ticks, 0, held_back)


@pytest.fixture(scope="module")
def series() -> SeriesSet:
    """Bursts, some read by a slow meter, three held back."""
    rows = [
        bursts(interval, seed, held_back=seed >= 7) for seed, interval in enumerate((1,) * 6 + (20,) * 2 + (1,) * 2)
    ]
    source = {"name": "bursts", "licence": "MIT", "origin": "this test", "series": 10, "hours": 0.2}
    return SeriesSet.of(rows, [source])


@given(st.sampled_from([1, 2, 5, 10, 20, 30, 40, 50, 100]), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_targets_are_the_readings_at_the_reach_and_the_highest_until_then(interval: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    power_w = rng.uniform(0.0, 500.0, (130, 2)).astype(np.float32)
    reach = [math.ceil(10 * h / interval) for h in range(1, 6)]
    wanted = targets(power_w, interval)
    assert wanted.shape == (130 - reach[-1], 2, 5, 2)
    for t in (0, 7, len(wanted) - 1):
        for k, ahead in enumerate(reach):
            np.testing.assert_array_equal(wanted[t, 0, k], power_w[t + ahead] - power_w[t])
            highest = power_w[t + 1 : t + ahead + 1].max(0)
            np.testing.assert_array_equal(wanted[t, 1, k], highest - power_w[t])


@pytest.mark.parametrize(
    ("interval", "ahead"), [(1, (10, 20, 30, 40, 50)), (20, (0, 1, 1, 2, 2)), (50, (0, 0, 0, 0, 1))]
)
def test_a_plan_tells_what_begins_within_each_horizon(interval: int, ahead: tuple[int, ...]) -> None:
    row = bursts(interval, 3)
    given_w = np.asarray([[row.power_w], [row.announced_w]], np.float32).transpose(0, 2, 1)
    seen = [x.planned_w[0] for x in inputs_of(given_w[0], given_w[1], np.array([500.0]), interval)]
    for t in (0, 321, 700):
        expected = row.announced_w[np.array(ahead) + t] - row.announced_w[t]
        np.testing.assert_allclose(seen[t], expected, atol=1e-3)


def test_examples_hold_every_series_in_scales_and_no_time_of_day(series: SeriesSet) -> None:
    data = examples(series)
    assert sorted(data.kept) == list(range(10))
    assert data.length.sum() == len(data.columns) == 8 * (TICKS - 50) + 2 * (TICKS - 3)
    for k, begin in enumerate(data.start):
        row = series.row(int(data.kept[k]))
        span = slice(begin, begin + data.length[k])
        np.testing.assert_allclose(data.base_w[span], row.power_w[: data.length[k]])
        wanted = targets(np.asarray(row.power_w, np.float32)[:, None], row.interval_ticks)[..., 0]
        np.testing.assert_allclose(
            data.targets[span] * data.scale_w[span, None, None], wanted, rtol=2e-3, atol=1e-3 * data.scale_w.max()
        )
        np.testing.assert_allclose(
            data.columns[span, COLUMNS.index("log_interval")], math.log10(row.interval_ticks), atol=1e-3
        )
    assert not data.columns[:, COLUMNS.index("day_cos")].any()
    assert data.columns[:, COLUMNS.index("planned_3s")].min() < -1.0


def test_a_series_too_short_for_its_reach_gives_no_examples(series: SeriesSet) -> None:
    rows = [Row(np.full(3, 100.0), np.zeros(3), 500.0, 20), series.row(6), Row(np.full(50, 1.0), np.zeros(50), 500.0)]
    data = examples(SeriesSet.of(rows, series.sources))
    assert data.kept.tolist() == [1]
    assert data.length.tolist() == [TICKS - 3]


def test_lanes_walk_series_of_any_length_once_and_mark_what_is_past_their_end() -> None:
    rows = [Row(np.arange(100.0 * k, 100.0 * k + 60 + k), np.zeros(60 + k), 9000.0, 20) for k in range(1, 5)]
    data = examples(SeriesSet.of(rows, []))
    lanes = Lanes(data, np.ones(4), Settings(hidden=2, lanes=3, steps=25), np.random.default_rng(1))
    before = np.full(3, -1)
    for _ in range(40):
        lanes.h[:] = 1.0
        columns, wanted, place, known = lanes.next()
        np.testing.assert_array_equal(columns, data.columns[place].astype(np.float32))
        np.testing.assert_array_equal(wanted, data.targets[place].astype(np.float32))
        for lane in range(3):
            walked = data.base_w[place[known[:, lane], lane]]
            np.testing.assert_array_equal(np.diff(walked), 1.0)  # W, from reading to reading of one series
            carried = before[lane] >= 0 and place[0, lane] == before[lane] + 1
            assert (lanes.h[lane] == (1.0 if carried else 0.0)).all()
            before[lane] = place[-1, lane] if known[-1, lane] else -1


def test_emphasis_counts_readings_by_their_scale(series: SeriesSet) -> None:
    data = examples(series)
    alike, by_watts = (emphasis(data, series.source, power) for power in (0.0, 1.0))
    np.testing.assert_array_equal(alike, 1.0)
    assert by_watts.mean() == pytest.approx(1.0, rel=1e-3)
    first = slice(0, int(data.length[0]))
    np.testing.assert_allclose(
        by_watts[first] / data.scale_w[first], by_watts[0] / data.scale_w[0], rtol=1e-4
    )  # within a series in proportion


def test_a_score_is_the_mean_loss_in_percent_of_the_rating(series: SeriesSet, tmp_path: Path) -> None:
    """A network whose read-out is zero says that the draw stays; then every figure is known."""
    params = lstm.initial(N_COLUMNS, 4, np.random.default_rng(1))
    one = SeriesSet.of([bursts(20, 7, held_back=True)], series.sources)
    data = examples(one)
    write_model(tmp_path, name="still", model=lstm.to_onnx(params), hidden=4, canary_input=canary(data), training={},
                scores=[])  # fmt: skip
    (row,) = score(load_model(tmp_path), one)
    power_w = np.asarray(one.row(0).power_w, np.float64)
    now_w = power_w[30:-3]  # the first 60 s are not scored
    highest_w = np.max([power_w[30 + k : len(power_w) - 3 + k] for k in (1, 2, 3)], axis=0)
    mae = 100.0 * np.abs(power_w[33:] - now_w).mean() / 500.0
    still_w = np.array([np.median(power_w[k - 9 : k + 1]) for k in range(30, len(power_w) - 3)])
    margin_w = np.quantile(highest_w - now_w, 0.99)
    assert row["set"] == "held back: bursts, at its own rate"
    assert row["mae_network"] == row["mae_persistence"] == pytest.approx(mae, rel=2e-3)
    assert row["mae_median_20s"] == pytest.approx(100.0 * np.abs(power_w[33:] - still_w).mean() / 500.0, rel=2e-3)
    assert row["passed_99"] == pytest.approx(100.0 * (highest_w > now_w).mean(), abs=0.2)
    assert row["pinball_99_network"] == pytest.approx(100.0 * pinball_loss(highest_w, now_w).mean() / 500.0, rel=2e-3)
    assert row["pinball_99_margin"] == pytest.approx(
        100.0 * pinball_loss(highest_w - now_w, margin_w).mean() / 500.0, rel=5e-3
    )


def test_a_short_training_gives_a_model_with_scores_and_is_reproducible(series: SeriesSet, tmp_path: Path) -> None:
    chosen = Settings(hidden=6, updates=12, lanes=6, steps=40, seed=4)
    told: list[str] = []
    rows = make_model(series, tmp_path / "a", "short", chosen, told.append)
    make_model(series, tmp_path / "b", "short", chosen, told.append)
    first = (tmp_path / "a" / "model.onnx").read_bytes()
    assert first == (tmp_path / "b" / "model.onnx").read_bytes()
    assert (tmp_path / "a" / "manifest.toml").read_bytes() == (tmp_path / "b" / "manifest.toml").read_bytes()
    assert load_model(tmp_path / "a").hidden == 6
    assert rows == describe(tmp_path / "a")["scores"]
    assert {f"mae_{name}" for name in NAMES} <= set(rows[0])
    assert [row["series"] for row in rows] == [2, 1]
    manifest = describe(tmp_path / "a")
    assert manifest["training"]["data"][0]["licence"] == "MIT"
    assert {"cpu", "day_sin"} <= set(manifest["training"]["unused_columns"])
    make_model(series, tmp_path / "c", "short", Settings(hidden=6, updates=12, lanes=6, steps=40, seed=5), told.append)
    assert first != (tmp_path / "c" / "model.onnx").read_bytes()


def test_training_goes_on_from_a_model(series: SeriesSet, tmp_path: Path) -> None:
    chosen = Settings(hidden=6, updates=2, lanes=4, steps=20, first_rate=0.0)
    make_model(series, tmp_path / "a", "first", Settings(hidden=6, updates=5, lanes=4, steps=20), lambda _: None)
    first = load_model(tmp_path / "a")
    make_model(series, tmp_path / "b", "second", chosen, lambda _: None, first)
    before = lstm.from_onnx((tmp_path / "a" / "model.onnx").read_bytes())
    after = lstm.from_onnx((tmp_path / "b" / "model.onnx").read_bytes())
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=5e-4, err_msg=name)
    assert describe(tmp_path / "b")["training"]["started_from"] == f"first {first.sha256}"


def test_training_learns_what_repeats(series: SeriesSet, tmp_path: Path) -> None:
    chosen = Settings(hidden=8, updates=80, lanes=8, steps=50, seed=6)
    rows = make_model(series, tmp_path, "short", chosen, lambda _: None)
    assert rows[0]["mae_network"] < 0.8 * rows[0]["mae_persistence"]


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


def test_going_on_keeps_what_was_learned_of_columns_that_stay_empty(series: SeriesSet) -> None:
    """A rack's history holds no announcements: learning from it must not forget what they mean."""
    rng = np.random.default_rng(2)
    quiet = SeriesSet.of([Row(rng.uniform(100.0, 200.0, 300), np.zeros(300), 500.0)], series.sources)
    before = lstm.initial(N_COLUMNS, 4, rng)
    planned = COLUMNS.index("planned_5s")
    kept = before["W"][:, planned].copy()
    chosen = Settings(hidden=4, updates=3, lanes=2, steps=20)
    data = examples(quiet)
    after, record = train(data, np.ones(1), chosen, lambda _: None, before)
    np.testing.assert_array_equal(after["W"][:, planned], kept)
    assert "planned_5s" in record["unused_columns"]
    after, _ = train(data, np.ones(1), chosen, lambda _: None)
    assert not after["W"][:, planned].any()
