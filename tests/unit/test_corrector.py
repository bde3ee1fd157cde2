"""Margins, censoring, blindness and alarm thresholds of the corrector."""

from dataclasses import replace

import numpy as np
import pytest
from rack_examples import make_forecast, make_limits, make_rack, make_readings

from rpi_daemon.corrector import (
    BEND,
    FIRST_ERROR,
    FIRST_RISES,
    GAIN,
    Corrector,
    CorrectorConfig,
)
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import TICK_NS, LimitKind, LimitsInForce, Quality, Request, Residual

RATING_W = 2000.0
DEMAND_W = 1000.0


class Run:
    """One outlet, tick by tick."""

    def __init__(self, config: CorrectorConfig = CorrectorConfig(), static_safe_w: float = 200.0) -> None:  # noqa: B008
        self.corrector = Corrector(config, make_rack(1, rating_w=RATING_W, static_safe_w=static_safe_w))
        self.k = 0

    def tick(
        self,
        forecast_w: float,
        draw_w: float,
        *,
        limits: LimitsInForce | None = None,
        score_w: float | None = None,
        quality: int = 0,
        interval: int = 1,
    ) -> Request:
        now_ns = self.k * TICK_NS
        self.k += 1
        residual = None
        if score_w is not None:
            one = np.array([score_w])
            residual = Residual(
                now_ns,
                np.array([now_ns - 50 * TICK_NS]),
                one,
                one,
                one,
                one,
                np.array([score_w > 0]),
                np.array([True]),
                one,
            )
        return self.corrector.step(
            make_forecast(now_ns, np.array([forecast_w])),
            residual,
            replace(make_readings(now_ns, np.array([draw_w]), quality=quality), interval_ticks=np.array([interval])),
            make_limits(np.array([RATING_W])) if limits is None else limits,
        )


def test_the_first_margin_is_half_a_rise_of_the_error_that_is_assumed() -> None:
    first = GAIN * BEND * np.sinh(FIRST_RISES / BEND) * FIRST_ERROR * RATING_W
    assert Run().tick(100.0, 100.0).margin_w[0] == pytest.approx(first)


def test_a_quiet_load_keeps_the_noise_of_its_meter_alone() -> None:
    run = Run(CorrectorConfig(meter_noise_w=3.0))
    for _ in range(6000):
        request = run.tick(100.0, 100.0, score_w=-0.1)
    assert request.margin_w[0] == 3.0
    assert request.request_w[0] == 103.0


def test_a_device_step_is_in_the_margin_of_an_enforced_limit_and_in_the_threshold_of_an_alarm() -> None:
    config = CorrectorConfig(meter_noise_w=2.0, alarm_learn_s=0.0)
    corrector = Corrector(config, make_rack(2, rating_w=100.0, static_safe_w=1.0))
    kinds = (LimitKind.ALARM, LimitKind.TRIP_OFF)
    limits = make_limits(np.full(2, 100.0), kind=kinds, step_w=np.array([23.0, 23.0]))
    request = corrector.step(make_forecast(0, np.full(2, 20.0)), None, make_readings(0, np.full(2, 20.0)), limits)
    assert request.margin_w.tolist() == pytest.approx([2.0, 25.0])
    assert request.alarm_w[0] == pytest.approx(1.1 * 22.0 + 23.0)


def test_a_rise_that_passed_the_request_raises_the_margin_and_500_s_work_it_off() -> None:
    run = Run()
    margin_w = run.tick(100.0, 100.0).margin_w[0]
    for _ in range(50):
        risen = run.tick(100.0, 100.0, score_w=80.0)
    assert risen.margin_w[0] > 2.0 * margin_w
    for _ in range(5000):
        request = run.tick(100.0, 100.0, score_w=-1.0)
    assert request.margin_w[0] < margin_w


def test_rises_that_go_on_are_covered_soon() -> None:
    """Each rise comes unforeseen: what is missing to 80 W is covered after the eleventh."""
    run, margins = Run(), []
    for _ in range(12):
        margins.append(run.tick(100.0, 100.0).margin_w[0])
        for _ in range(50):
            run.tick(100.0, 100.0, score_w=80.0)
        for _ in range(450):
            run.tick(100.0, 100.0, score_w=-5.0)
    assert margins == sorted(margins)
    assert margins[2] < 80.0 < margins[11]


def test_five_escapes_of_a_meter_read_every_second_weigh_as_fifty_of_a_board() -> None:
    board, meter = Run(), Run()
    for k in range(50):
        a = board.tick(100.0, 100.0, score_w=80.0).margin_w[0]
        held = k % 10 != 0
        b = meter.tick(100.0, 100.0, score_w=None if held else 80.0, interval=10).margin_w[0]
    assert a == pytest.approx(b, rel=0.05)


def test_a_margin_is_never_more_than_the_rating() -> None:
    run = Run()
    for _ in range(10_000):
        request = run.tick(100.0, 100.0, score_w=3 * RATING_W)
    assert request.margin_w[0] == RATING_W


def test_an_absurd_forecast_is_bounded_by_the_rating() -> None:
    request = Run().tick(1e9, 100.0)
    assert request.request_w[0] == pytest.approx(RATING_W + request.margin_w[0])


def test_an_invalid_residual_teaches_nothing() -> None:
    run = Run()
    before = run.tick(100.0, 100.0).margin_w[0]
    now_ns = run.k * TICK_NS
    one = np.array([500.0])
    residual = Residual(now_ns, np.array([0]), one, one, one, one, np.array([True]), np.array([False]), one)
    request = run.corrector.step(
        make_forecast(now_ns, one), residual, make_readings(now_ns, one), make_limits(np.array([RATING_W]))
    )
    assert request.margin_w[0] == before


@pytest.mark.parametrize("kind", [LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT, LimitKind.SERVER_CAP])
def test_a_capped_load_is_not_learned_from_and_its_request_grows_to_the_demand(kind: LimitKind) -> None:
    run = Run(static_safe_w=300.0)
    capped = make_limits(np.array([300.0]), kind=kind)
    first = run.tick(290.0, 290.0, limits=capped)
    assert first.censored[0]
    margin_w = first.margin_w[0]
    for _ in range(10):
        request = run.tick(290.0, 290.0, limits=capped, score_w=50.0)
    assert request.margin_w[0] == margin_w
    assert request.request_w[0] == pytest.approx(first.request_w[0] * 1.5, rel=0.01)
    for _ in range(40):
        request = run.tick(290.0, 290.0, limits=capped)
    assert request.request_w[0] == pytest.approx(DEMAND_W)


def test_after_a_cap_the_span_of_its_residuals_teaches_nothing_either() -> None:
    run = Run()
    capped, free = make_limits(np.array([300.0]), kind=LimitKind.SERVER_CAP), make_limits(np.array([RATING_W]))
    margin_w = run.tick(290.0, 290.0, limits=capped).margin_w[0]
    margin_w = run.tick(290.0, 290.0, limits=free, score_w=50.0).margin_w[0]
    for _ in range(48):
        assert run.tick(290.0, 290.0, score_w=50.0).margin_w[0] == margin_w
    run.tick(290.0, 290.0, score_w=50.0)
    assert run.tick(290.0, 290.0, score_w=50.0).margin_w[0] > margin_w


def test_an_alarm_threshold_hides_nothing() -> None:
    assert not Run().tick(290.0, 290.0, limits=make_limits(np.array([300.0]))).censored[0]


def test_a_saturated_sensor_means_at_least_full_scale() -> None:
    run = Run(static_safe_w=300.0)
    for _ in range(40):
        request = run.tick(290.0, 290.0, quality=int(Quality.SATURATED))
    assert request.request_w[0] == pytest.approx(DEMAND_W)


def test_blind_outlets_hold_then_fall_back_to_static_safe() -> None:
    run = Run(CorrectorConfig(blind_hold_s=5.0), static_safe_w=150.0)
    assert run.tick(np.nan, np.nan).request_w[0] == 150.0
    seen = run.tick(400.0, 400.0).request_w[0]
    assert seen > 400.0
    for _ in range(50):
        assert run.tick(400.0, np.nan).request_w[0] == seen
    blind = run.tick(400.0, np.nan)
    assert (blind.request_w[0], blind.alarm_w[0], blind.held_w[0]) == (150.0, 150.0, 150.0)
    assert run.tick(np.nan, 400.0).request_w[0] == 150.0
    assert run.tick(400.0, 400.0).request_w[0] > 400.0


def test_each_alarm_episode_beyond_the_daily_one_lifts_the_threshold() -> None:
    run = Run(CorrectorConfig(alarm_learn_s=0.0, alarm_hold_s=1.0, alarm_step=0.05), static_safe_w=1.0)
    quiet = run.tick(100.0, 100.0).alarm_w[0]
    for _ in range(3):
        run.tick(100.0, 1000.0)
        run.tick(100.0, 1000.0)
        for _ in range(601):
            request = run.tick(100.0, 100.0)
    assert request.alarm_w[0] == pytest.approx(quiet + 3 * 0.05 * RATING_W, rel=0.01)


def test_draws_that_pass_the_threshold_within_a_minute_are_one_episode() -> None:
    run = Run(CorrectorConfig(alarm_learn_s=0.0, alarm_hold_s=1.0, alarm_step=0.05), static_safe_w=1.0)
    quiet = run.tick(100.0, 100.0).alarm_w[0]
    for _ in range(3):
        run.tick(100.0, 1000.0)
        for _ in range(20):
            request = run.tick(100.0, 100.0)
    assert request.alarm_w[0] == pytest.approx(quiet + 0.05 * RATING_W, rel=0.01)


def test_a_threshold_holds_the_largest_request_of_its_span() -> None:
    run = Run(CorrectorConfig(alarm_learn_s=0.0, alarm_hold_s=6.0, alarm_headroom=0.1), static_safe_w=1.0)
    peak = run.tick(700.0, 100.0).request_w[0]
    alarms = [run.tick(100.0, 100.0).alarm_w[0] for _ in range(80)]
    assert alarms[58] == pytest.approx(1.1 * peak + 1.0)
    assert alarms[-1] < 200.0


def test_a_threshold_begins_at_static_safe_or_above_and_stays_there_while_the_load_is_new() -> None:
    run = Run(CorrectorConfig(alarm_learn_s=10.0, alarm_hold_s=1.0), static_safe_w=500.0)
    alarms = [run.tick(100.0, 100.0).alarm_w[0] for _ in range(102)]
    assert alarms[:100] == [500.0] * 100
    assert alarms[-1] < 200.0
    assert Run(static_safe_w=500.0).tick(700.0, 100.0).alarm_w[0] > 770.0


def test_the_allocation_keeps_room_for_a_request_for_some_seconds() -> None:
    run = Run(CorrectorConfig(hold_s=5.0))
    peak = run.tick(700.0, 100.0)
    assert peak.held_w[0] == peak.request_w[0]
    after = [run.tick(100.0, 100.0) for _ in range(60)]
    assert after[0].request_w[0] < 200.0
    assert after[48].held_w[0] == peak.request_w[0]
    assert after[59].held_w[0] < 200.0


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"hold_s": 0.0}, {"growth_per_s": 1.0}, {"alarm_step": -1.0}])
def test_a_wrong_option_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CorrectorConfig(**wrong)


def _slow(run: Run, kind: LimitKind, draws: list[tuple[float, int]]) -> list[float]:
    limits = make_limits(np.array([RATING_W]), kind=kind, step_w=np.array([1.0]))
    return [float(run.tick(w, w, quality=q, limits=limits, interval=2).margin_w[0]) for w, q in draws]


def test_an_enforced_limit_by_a_slow_meter_covers_what_that_may_have_missed_between_two_readings() -> None:
    run = Run(CorrectorConfig(meter_noise_w=2.0))
    new, held = int(Quality.SLOW_METER), int(Quality.SLOW_METER | Quality.HELD)
    margins = _slow(run, LimitKind.TRIP_OFF, [(100.0, new), (100.0, held), (340.0, new), (340.0, held)])
    assert margins[1] < 10.0
    assert margins[2] == pytest.approx(243.0)
    assert margins[3] == pytest.approx(3.0 + 240.0 * 0.5 ** (0.1 / 60.0))
    after = _slow(run, LimitKind.TRIP_OFF, [(np.nan, int(Quality.STALE)), (900.0, new)])
    assert after[-1] < 243.0  # a change over a gap is not one between two readings


def test_a_threshold_or_a_board_has_no_such_floor() -> None:
    new = int(Quality.SLOW_METER)
    assert _slow(Run(), LimitKind.ALARM, [(100.0, new), (340.0, new)])[-1] < 10.0
    run = Run()
    run.tick(100.0, 100.0)
    assert run.tick(340.0, 340.0, limits=make_limits(np.array([RATING_W]), kind=LimitKind.TRIP_OFF)).margin_w[0] < 10.0


def test_the_first_request_is_static_safe_and_comes_down_over_the_start() -> None:
    run = Run(CorrectorConfig(start_s=10.0), static_safe_w=500.0)
    requests = [run.tick(100.0, 100.0).request_w[0] for _ in range(102)]
    assert requests[0] == 500.0
    assert requests[50] == pytest.approx(250.0)
    assert requests[101] < 110.0
