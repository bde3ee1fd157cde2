"""What counts as a rise, as given in advance, as an escape: on hand-made series."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from rack_examples import make_rack

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import TICK_NS, Forecast, Quality, Readings, Residual
from rpi_daemon.score import WINDOW_CENTRE_NS, MeanWeights, MemberScores, RunScore


def _readings(tick: int, *power_w: float) -> Readings:
    n = len(power_w)
    power = np.array(power_w, dtype=np.float64)
    whole, zero = np.zeros(n, dtype=np.int64), np.zeros(n)
    return Readings(
        tick * TICK_NS + WINDOW_CENTRE_NS, 0, power, zero, zero, zero, zero, zero, zero, zero, zero, zero, whole, whole,
        whole, np.isfinite(power),
    )  # fmt: skip


class Run:
    """One outlet that stands at 500 W; `draw` at 10 Hz, `limit` verified now."""

    def __init__(self, limit_w: float = 500.0) -> None:
        self.score = RunScore(make_rack(1))
        self.score.limit_seen(0, limit_w)
        self.tick = 0

    def draw(self, *power_w: float) -> "Run":
        for w in power_w:
            self.score.update(_readings(self.tick, w), None)
            self.tick += 1
        return self

    def limit(self, limit_w: float) -> "Run":
        self.score.limit_verified(0, limit_w, self.tick * TICK_NS)
        return self

    @property
    def rises(self) -> tuple[int, int]:
        return self.score.rises, self.score.rises_preallocated


def test_a_rise_with_its_limit_in_place_a_second_before_is_preallocated() -> None:
    run = Run().draw(300.0).limit(700.0).draw(*[300.0] * 10, 600.0, 600.0)
    assert run.rises == (1, 1)
    assert run.score.summary()["prealloc_share"] == 1.0


def test_a_limit_that_came_later_than_that_is_not() -> None:
    assert Run().draw(300.0).limit(700.0).draw(*[300.0] * 9, 600.0).rises == (1, 0)


def test_a_raise_that_was_not_needed_is_no_rise() -> None:
    run = Run().draw(300.0).limit(700.0).draw(*[300.0] * 50, 499.0)
    assert run.rises == (0, 0)
    assert run.score.summary()["prealloc_share"] is None


def test_passing_the_limit_is_an_escape_and_a_rise_not_given_in_advance() -> None:
    run = Run().draw(300.0, 600.0, 600.0, 600.0)
    assert run.rises == (1, 0)
    assert (run.score.limit_escapes, run.score.escape_episodes) == (3, 1)
    run.limit(700.0).draw(*[600.0] * 20)  # the limit that came too late does not make it two
    assert run.rises == (1, 0)
    run.draw(300.0).limit(500.0).draw(300.0, 600.0)
    assert (run.rises, run.score.escape_episodes) == ((2, 0), 2)


def test_one_rise_over_several_raised_limits_counts_once() -> None:
    run = Run().draw(300.0).limit(550.0).draw(*[300.0] * 5).limit(700.0).draw(*[300.0] * 10, 650.0)
    assert run.rises == (1, 1)
    late = Run().draw(300.0).limit(550.0).draw(*[300.0] * 20).limit(700.0).draw(*[300.0] * 5, 650.0)
    assert late.rises == (1, 0)  # the limit that covers it was half a second old


def test_a_rise_past_the_raised_limit_too_was_not_given_in_advance() -> None:
    assert Run().draw(300.0).limit(550.0).draw(*[300.0] * 20, 650.0).rises == (1, 0)


def test_a_draw_that_trembles_around_the_old_limit_is_one_rise() -> None:
    assert Run().draw(300.0).limit(700.0).draw(*[300.0] * 20, *[510.0, 490.0] * 10).rises == (1, 1)


def test_a_raise_that_was_taken_back_waits_no_longer() -> None:
    run = Run().draw(300.0).limit(700.0).draw(*[300.0] * 20).limit(450.0).draw(480.0)
    assert run.rises == (1, 0)
    assert run.score.limit_escapes == 1


def test_an_unread_window_is_judged_by_nobody() -> None:
    run = Run().draw(300.0).limit(700.0).draw(*[float("nan")] * 20)
    assert (run.score.windows, run.score.ticks, run.rises) == (1, 21, (0, 0))
    assert run.draw(600.0).rises == (1, 1)


def test_without_a_limit_nothing_is_an_escape() -> None:
    run = Run()
    run.score.limit_seen(0, None)
    run.draw(900.0)
    assert (run.score.limit_escapes, run.score.summary()["mean_limit_w"]) == (0, None)


def test_mean_limits_are_over_outlet_ticks_whose_limit_is_known() -> None:
    run = Run().draw(100.0, 100.0).limit(600.0).draw(100.0, 100.0)
    assert run.score.summary()["mean_limit_w"] == pytest.approx(550.0)


def test_requests_and_forecast_errors_are_those_that_could_be_judged() -> None:
    def residual(valid: Sequence[bool], value_w: Sequence[float], escaped: Sequence[bool]) -> Residual:
        zero = np.zeros(2)
        return Residual(
            0,
            np.zeros(2, np.int64),
            np.array(value_w),
            zero,
            zero,
            zero,
            np.array(escaped),
            np.array(valid),
            np.array([20.0, 20.0]),
        )

    score = RunScore(make_rack(2))
    score.update(_readings(0, 1.0, 1.0), residual([True, True], [-10.0, 30.0], [True, False]))
    score.update(_readings(1, 1.0, 1.0), residual([True, False], [np.nan, 5.0], [False, True]))
    summary = score.summary()
    assert summary["request_escape_rate"] == pytest.approx(1 / 3)
    assert (summary["forecast_mae_w"], summary["persistence_mae_w"]) == (20.0, 20.0)


def test_members_are_judged_five_seconds_later_over_the_same_moments() -> None:
    def forecast(value_w: float) -> Forecast:
        return Forecast(0, np.full((1, 5, 3), value_w), np.full((1, 5, 3), value_w), ("x",))

    scores = MemberScores()
    assert scores.mae_w() == {}
    for tick in range(60):
        latest = {"a": forecast(100.0), "b": forecast(np.nan if tick == 3 else 130.0)}
        scores.update(_readings(tick, 110.0), latest)
    assert 5 * NS_PER_S == 50 * TICK_NS
    assert scores.mae_w() == pytest.approx({"a": 10.0, "b": 20.0})


def test_a_member_that_is_silent_spoils_the_moment_for_all() -> None:
    def forecast(value_w: float) -> Forecast:
        return Forecast(0, np.full((1, 5, 3), value_w), np.full((1, 5, 3), value_w), ("x",))

    scores = MemberScores()
    for tick in range(55):
        silent = tick == 2
        latest = {"b": forecast(0.0 if silent else 130.0)} | ({} if silent else {"a": forecast(100.0)})
        scores.update(_readings(tick, 110.0), latest)
    assert scores.mae_w() == pytest.approx({"a": 10.0, "b": 20.0})


def test_members_at_a_slow_meter_are_judged_at_the_reading_that_they_were_about() -> None:
    scores = MemberScores()
    for tick in range(81):
        now = replace(
            _readings(tick, float(tick // 20)),
            quality=np.array([0 if tick % 20 == 0 else int(Quality.HELD)]),
            interval_ticks=np.array([20]),
        )
        said = np.full((1, 5, 3), float(tick // 20))
        scores.update(now, {"a": Forecast(0, said, said, ("x",))})
    assert scores.mae_w() == {"a": 3.0}


def test_mean_weights_are_of_outlets_with_a_reading() -> None:
    weights = MeanWeights()
    assert weights.mean() == {}
    weights.update({"lstm": np.array([1.0, 0.5, 9.0])}, np.array([True, True, False]))
    weights.update(
        {"lstm": np.array([0.0, 9.0, 9.0]), "ewma": np.array([1.0, 9.0, 9.0])}, np.array([True, False, False])
    )
    assert weights.mean() == {"lstm": pytest.approx(0.5), "ewma": pytest.approx(1 / 3)}
