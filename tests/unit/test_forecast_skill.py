"""The skill bench on made series whose figures are known."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benches import load_bench
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.sensors.traces import Trace
from rpi_daemon.errors import ModelError, TraceError
from rpi_daemon.features import Features, MeterSetup
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.records import TICK_NS, FloatArray, Forecast, ForecastInput, PduReading

bench = load_bench("forecast_skill")
deployed, scores, series_of = (sys.modules[f"skill.{name}"] for name in ("deployed", "scores", "series"))
RATIOS = [
    "mae_vs_persistence", "mae_vs_persistence_worst", "mae_vs_best_expert_worst", "pinball_vs_lightgbm",
    "request_vs_margin", "request_vs_margin_worst", "escape_within_bound",
]  # fmt: skip


class StaysAsItIs:
    """Every quantile is the present draw."""

    latest: dict[str, Forecast] = {}

    def __init__(self, n: int) -> None:
        self._n = n

    def step(self, x: ForecastInput) -> Forecast:
        said_w = np.broadcast_to(x.power_w[:, None, None], (self._n, 5, 3))
        return Forecast(x.t_mono_ns, said_w, said_w, ("stays",) * self._n)


def recorded(power_w: FloatArray, step_s: float, **more: Any) -> Any:
    power_w = np.asarray(power_w, np.float64)
    trace = Trace("made", np.arange(len(power_w)) * step_s, power_w, step_s)
    return series_of.as_outlet(trace, "made", "", **more)


def judged(series: Any) -> dict[str, Any]:
    (scored,) = [scores.score(*pair) for pair in deployed.run([series], StaysAsItIs, deployed.default_config())]
    return scores.figures(scored.whole, scores.nothing_of([series]))


@pytest.mark.parametrize(
    ("step_s", "reach"), [(1.0, 5), (2.005, 3), (4.0, 2), (0.25, 20), (0.1, 50), (0.02, 50), (6.0, 1)]
)
def test_a_forecast_is_judged_at_the_first_reading_at_or_after_5_s(step_s: float, reach: int) -> None:
    series = recorded(np.arange(round(130 / step_s)), step_s)
    moments = series.moments
    assert set(moments.due - moments.made) == {reach}
    assert series.tick[moments.made[0]] >= 600
    assert series.tick[moments.made[0] - 1] < 600
    assert moments.due[-1] == len(series.tick) - 1


def test_a_fast_recording_is_averaged_and_a_slow_one_is_not() -> None:
    fast = recorded(np.arange(50 * 130), 0.02)
    assert not fast.slow
    assert list(fast.power_w[:3]) == [2.0, 7.0, 12.0]
    slow = recorded(np.arange(130), 1.0)
    assert slow.slow
    assert (slow.interval_ticks, list(slow.tick[:3]), list(slow.power_w[:3])) == (10, [0, 10, 20], [0.0, 1.0, 2.0])


def test_nothing_is_judged_across_a_gap() -> None:
    t_s = np.concatenate([np.arange(100), np.arange(140, 240)]).astype(float)
    series = series_of.as_outlet(Trace("made", t_s, np.ones(200), 1.0), "made", "")
    made_s, due_s = series.tick[series.moments.made] / 10, series.tick[series.moments.due] / 10
    assert set(due_s - made_s) == {5.0}
    assert made_s[(made_s > 90) & (made_s < 145)].tolist() == [91, 92, 93, 94, 140, 141, 142, 143, 144]


def test_maxima_are_those_of_the_readings_between() -> None:
    rng = np.random.default_rng(1)
    series = recorded(rng.uniform(10, 100, 200), 1.0)
    moments = series.moments
    ahead = [series.power_w[i + 1 : j + 1].max() for i, j in zip(moments.made, moments.due, strict=True)]
    behind = [series.power_w[max(0, i - 19) : i + 1].max() for i in moments.made]
    assert series.running_max_w(moments).tolist() == ahead
    assert series.recent_max_w(moments, 20.0).tolist() == behind


def test_readings_are_those_that_features_makes_of_a_slow_meter() -> None:
    t_s = np.array([0, 1, 2, 3, 8, 9, 10, *range(11, 131)], np.float64)
    series = series_of.as_outlet(Trace("made", t_s, 100.0 + np.arange(len(t_s)), 1.0), "made", "")
    feed = deployed._Feed([series])
    rack = deployed.rack_of([series])
    features = Features(rack, [], [MeterSetup(0, "pdu", 1, 1.0)])
    polls = dict(zip(series.tick.tolist(), series.power_w.tolist(), strict=True))
    for tick in range(150):
        now_ns = (tick + 1) * TICK_NS
        if tick in polls:
            features.observe("pdu", PduReading(now_ns, None, {1: polls[tick]}, {}, {}, {}))
        theirs, ours = features.step(now_ns, 0), feed.readings(tick)
        assert ours.t_mono_ns == theirs.t_mono_ns
        for name in ("power_w", "valid", "quality", "interval_ticks", "count", "fresh"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), f"{name} at tick {tick}")


def test_a_load_that_never_moves_has_nothing_to_beat() -> None:
    for level_w in (0.0, 300.0):
        found = judged(recorded(np.full(200, level_w), 1.0))
        assert found["mae"] == found["persistence_mae"] == found["escape_rate"] == 0.0
        assert found["mae_vs_persistence"] is None
        assert found["mae_vs_best_expert"] is None
        assert found["request_vs_margin"] is None
        json.dumps(found, allow_nan=False)
    assert scores.geometric_mean([None, 0.5, 2.0]) == pytest.approx(1.0)
    assert scores.geometric_mean([None]) is None
    assert scores.worst([None, 0.5]) == 0.5


def test_persistence_against_itself_is_one_and_its_error_on_a_sine_is_known() -> None:
    t_s = np.arange(4000) * 0.1
    found = judged(recorded(np.round(500.0 + 100.0 * np.sin(2 * np.pi * t_s / 40.0)), 0.1))
    assert found["mae_vs_persistence"] == 1.0
    # |sin(a + b) - sin(a)| is on average 4 / pi x |sin(b / 2)|
    assert found["mae"] == pytest.approx(100.0 / 500.0 * 4 / np.pi * np.sin(np.pi * 5.0 / 40.0), rel=0.02)


def test_escapes_counted_by_hand() -> None:
    power_w = np.full(200, 100.0)
    power_w[150:] = 400.0
    series = recorded(power_w, 1.0)
    answers = deployed.Answers(
        (deployed.DEPLOYED,),
        np.full((200, 1, 3), 100.0),
        np.full((200, 1, 3), 100.0),
        np.full(200, 300.0),
        np.where(np.arange(200) < 180, 350.0, 450.0),
        7,
    )
    scored = scores.score(series, answers)
    whole = scored.whole
    found = scores.figures(whole, scores.nothing_of([series]))
    # made at 60 to 194 s; 145 to 194 s see a draw of 400 W above their request of 300 W
    assert whole.moments == 135
    assert found["escape_rate"] == pytest.approx(50 / 135)
    assert scored.written.episodes == 1
    assert scored.written.writes == 7
    assert found["mean_exceedance"] == pytest.approx(100.0 / series.mean_w)
    assert found["excess"] == pytest.approx(85 * 200.0 / 135 / series.mean_w)
    assert found["request_pinball"] == pytest.approx((50 * 0.99 * 100.0 + 85 * 0.01 * 200.0) / 135 / series.mean_w)


def test_written_limits_follow_the_request_and_escapes_of_them_are_counted() -> None:
    power_w = np.full(1500, 100.0)
    power_w[1000:1005] = power_w[1008:] = 380.0
    series = recorded(power_w, 1.0)
    ((_, answers),) = deployed.run([series], StaysAsItIs, deployed.default_config())
    assert answers.limit_w[0] == series.rating_w == 480.0
    assert 100.0 < answers.limit_w[999] < 130.0  # lowered while nothing moved
    assert answers.limit_w[1004] > 380.0  # raised in reply, and there to stay
    assert answers.writes == 2
    found = scores.written(series, answers)
    assert found.episodes == 1
    assert found.figures()["limit_episodes_per_day"] == pytest.approx(86400 / (series.duration_s - 60))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.lists(st.integers(0, 400), min_size=60, max_size=60))
def test_the_margin_in_hindsight_is_the_best_of_all(came: list[int], base: list[int]) -> None:
    came_w, base_w = np.array(came, float), np.array(base[: len(came)], float)

    def lost(margin_w: float) -> float:
        return float(scores.pinball(0.99, came_w, base_w + margin_w).sum())

    assert lost(scores.hindsight_margin_w(came_w, base_w)) <= min(lost(float(w)) for w in range(-400, 401)) + 1e-9


def test_bounds_are_by_length_and_the_groups_are_pooled() -> None:
    lines = [{"duration_s": s, "escape_rate": e} for s, e in [(1800, 0.02), (3600, 0.03), (700, 0.03), (599, 0.9)]]
    found = scores.within_bounds(lines, [{"escape_rate": 0.012}, {"escape_rate": 0.014}])
    assert found["30 min or more"]["share_within"] == 0.5
    assert found["10 to 30 min"]["share_within"] == 1.0
    assert found["share_within"] == pytest.approx(2 / 3)
    assert found["pooled"]["worst_group"] == 0.014


def write(folder: Path, name: str, power_w: FloatArray, step_s: float = 1.0) -> None:
    np.savez(folder / name, t_s=np.arange(len(power_w)) * step_s, power_w=power_w)


def test_files_that_cannot_be_scored_are_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, "good.npz", np.ones(200))
    write(tmp_path, "short.npz", np.ones(100))
    (tmp_path / "odd.csv").write_text("what,is,this\n1,2,3\n")
    (tmp_path / "index.csv").write_text("file,group\ngood.npz,a\nshort.npz,a\nodd.csv,b\ngone.npz,b\n")
    found, left_out = series_of.read_series(tmp_path)
    assert [(one.name, one.group, one.use) for one in found] == [("good.npz", "a", "")]
    assert [why.split(":")[0].rsplit("/")[-1] for why in left_out] == ["short.npz", "odd.csv", "gone.npz"]
    with pytest.raises(TraceError, match="no group 'c'; there are: a, b"):
        series_of.read_series(tmp_path, ("c",))
    with pytest.raises(TraceError, match=r"no series to score\n.*odd\.csv"):
        series_of.read_series(tmp_path, ("b",))


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "No such file"), ("file,group\n", "lists no file"), ("file,kind\na.npz,b\n", "column 'group' is missing")],
)
def test_an_index_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "index.csv").write_text(text)
    with pytest.raises(TraceError, match=words):
        series_of.read_series(tmp_path)


def chosen(data: Path, **more: Any) -> SimpleNamespace:
    plain = {
        "data": data, "model": "shipped", "leave_one_group_out": None, "group": [], "limit": None, "hours": None,
        "no_lightgbm": False, "picture": None, "out": None, "json": True,
    }  # fmt: skip
    return SimpleNamespace(**plain | more)


def test_a_folder_is_measured_from_index_to_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    write(tmp_path, "burst.npz", 200.0 + 150.0 * (np.arange(400) % 20 < 8) + rng.normal(0, 2, 400))
    write(tmp_path, "board.npz", 100.0 + rng.normal(0, 1, 1500), 0.1)
    write(tmp_path, "off.npz", np.zeros(300))
    (tmp_path / "index.csv").write_text("file,group,use\nburst.npz,a,train\nboard.npz,b,evaluate\noff.npz,off,\n")
    result = bench.measure(chosen(tmp_path, out=tmp_path / "kept.json", picture=tmp_path / "shown.svg"))
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == result
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["ratios"] == result["ratios"]
    assert set(result["series"][0]) - set(kept["series"][0]) == {"by_source"}
    assert set(result["series"][0]["by_source"]) >= {"mae", "rmse", "pinball_0.5", "pinball_0.9", "pinball_0.99"}
    assert list(result["ratios"]) == RATIOS
    assert 0.0 < result["ratios"]["pinball_vs_lightgbm"] < 100.0
    assert 0.0 < result["ratios"]["mae_vs_persistence"] < 2.0
    assert [row["group"] for row in result["rows"]] == ["a", "b", "off"]
    assert {row["model"] for row in result["rows"]} == {"not in its training"}
    off = result["rows"][2]
    assert off["mae_vs_persistence"] is None
    assert off["escape_rate"] == 0.0
    assert {"lstm", "ridge", "persistence", "deployed", "stays as it is"} <= set(result["groups"]["a"]["mae"])
    assert "LightGBM" in result["groups"]["a"]["last_part"]["pinball"]
    figures = load_bench("figures").skill_table({"forecast_skill": result, "forecast_skill_logo": result})
    assert "| off | 1 | 0 | 0.0% | none | none | none |" in figures
    assert (tmp_path / "shown.svg").read_text().startswith("<?xml")


def test_several_outlets_of_one_file_are_several_series(tmp_path: Path) -> None:
    write(tmp_path, "two.npz", np.column_stack([np.ones(200), np.full(200, 5.0)]))
    (tmp_path / "index.csv").write_text("file,group\ntwo.npz,a\n")
    found, _ = series_of.read_series(tmp_path)
    assert [(one.name, one.mean_w) for one in found] == [("two.npz[0]", 1.0), ("two.npz[1]", 5.0)]


def test_a_load_does_not_feed_back() -> None:
    power_w = np.full(200, 50.0)
    power_w[100:110] = -30.0
    power_w[120] = -1.0
    series = recorded(power_w, 1.0)
    assert len(series.tick) == 190
    assert series.power_w.min() == -1.0


def shipped_as_if_trained_on(names: list[str], folder: Path) -> None:
    """A copy of the shipped model with another account of its training data."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes((SHIPPED / "model.onnx").read_bytes())
    body = (SHIPPED / "manifest.toml").read_text().split("\n", 1)[1]
    found = iter(names)
    body = re.sub(r'(\[\[training\.data\]\]\nname = )"[^"]*"', lambda m: f'{m[1]}"{next(found, "other")}"', body)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (folder / "manifest.toml").write_text(f"# sha256 of the lines below: {digest}\n{body}")


def test_a_group_that_the_model_learned_from_is_forecast_by_one_that_did_not(tmp_path: Path) -> None:
    for name in ("seen", "unseen"):
        write(tmp_path, f"{name}.npz", np.arange(200.0))
    (tmp_path / "index.csv").write_text("file,group\nseen.npz,seen\nunseen.npz,unseen\n")
    shipped_as_if_trained_on(["seen"], tmp_path / "model")
    plain = chosen(tmp_path, model=str(tmp_path / "model"), no_lightgbm=True)

    def labels(**more: Any) -> dict[str, str]:
        rows = bench.measure(SimpleNamespace(**vars(plain) | more))["rows"]
        return {row["group"]: row["model"] for row in rows}

    assert labels() == {"seen": "in-sample", "unseen": "not in its training"}
    models = tmp_path / "models"
    with pytest.raises(ModelError, match="trained without seen"):
        labels(leave_one_group_out=str(models))
    shipped_as_if_trained_on([], models / "seen")
    assert labels(leave_one_group_out=str(models)) == dict.fromkeys(("seen", "unseen"), "not in its training")
    shutil.rmtree(models)
    shipped_as_if_trained_on(["seen"], models / "seen")
    with pytest.raises(ModelError, match="says that it was trained on seen"):
        labels(leave_one_group_out=str(models))
