"""Margins, censoring, blindness and alarm thresholds of the corrector."""

import numpy as np
import pytest
from rack_examples import make_forecast, make_limits, make_rack, make_readings

from rpi_daemon.corrector import Corrector, CorrectorConfig
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
            make_readings(now_ns, np.array([draw_w]), quality=quality),
            make_limits(np.array([RATING_W])) if limits is None else limits,
        )


def test_margin_has_a_floor_of_meter_noise_and_device_step() -> None:
    run = Run(CorrectorConfig(meter_noise_w=3.0, step_per_escape=1e-6))
    limits = make_limits(np.array([RATING_W]), step_w=np.array([23.0]))
    assert run.tick(100.0, 100.0, limits=limits).margin_w[0] == pytest.approx(26.0)


def test_device_step_may_differ_by_outlet() -> None:
    rack = make_rack(2)
    corrector = Corrector(CorrectorConfig(step_per_escape=1e-6, meter_noise_w=2.0), rack)
    request = corrector.step(
        make_forecast(0, np.full(2, 100.0)),
        None,
        make_readings(0, np.full(2, 100.0)),
        make_limits(np.full(2, 500.0), step_w=np.array([1.0, 230.0])),
    )
    assert request.margin_w.tolist() == pytest.approx([3.0, 232.0])


def test_margin_covers_a_burst_within_seconds_and_is_small_two_minutes_later() -> None:
    run = Run()
    for _ in range(52):
        request = run.tick(100.0, 100.0, score_w=80.0)
    assert request.margin_w[0] >= 80.0
    for _ in range(1800):
        request = run.tick(100.0, 100.0, score_w=-10.0)
    assert request.margin_w[0] <= 0.02 * RATING_W


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
    assert request.margin_w[0] == pytest.approx(margin_w)
    assert request.request_w[0] == pytest.approx(first.request_w[0] * 1.5, rel=0.01)
    for _ in range(40):
        request = run.tick(290.0, 290.0, limits=capped)
    assert request.request_w[0] == pytest.approx(DEMAND_W)


def test_after_a_cap_the_span_of_its_residuals_teaches_nothing_either() -> None:
    run = Run(CorrectorConfig(step_per_escape=0.01))
    margin_w = run.tick(290.0, 290.0, limits=make_limits(np.array([300.0]), kind=LimitKind.SERVER_CAP)).margin_w[0]
    for _ in range(49):
        assert run.tick(290.0, 290.0, score_w=50.0).margin_w[0] == pytest.approx(margin_w)
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
    run = Run(CorrectorConfig(blind_hold_s=5.0, hold_s=0.1, fall_per_s=100.0), static_safe_w=150.0)
    assert run.tick(np.nan, np.nan).request_w[0] == 150.0
    seen = run.tick(400.0, 400.0).request_w[0]
    assert seen > 400.0
    for _ in range(50):
        assert run.tick(400.0, np.nan).request_w[0] == seen
    blind = run.tick(400.0, np.nan)
    assert (blind.request_w[0], blind.alarm_w[0]) == (150.0, 150.0)
    assert run.tick(np.nan, 400.0).request_w[0] == 150.0
    assert run.tick(400.0, 400.0).request_w[0] > 400.0


def test_each_alarm_episode_beyond_the_daily_one_lifts_the_threshold() -> None:
    config = CorrectorConfig(alarm_hold_s=1.0, hold_s=0.1, fall_per_s=100.0, alarm_step=0.05)
    run = Run(config, static_safe_w=1.0)
    quiet = run.tick(100.0, 100.0).alarm_w[0]
    for _ in range(3):
        run.tick(100.0, 1000.0)
        run.tick(100.0, 1000.0)
        for _ in range(20):
            request = run.tick(100.0, 100.0)
    assert request.alarm_w[0] == pytest.approx(quiet + 3 * 0.05 * RATING_W, rel=0.01)


def test_a_threshold_holds_the_largest_request_of_its_span() -> None:
    run = Run(CorrectorConfig(alarm_hold_s=6.0, hold_s=0.1, fall_per_s=100.0, alarm_headroom=0.1), static_safe_w=1.0)
    peak = run.tick(700.0, 100.0).request_w[0]
    alarms = [run.tick(100.0, 100.0).alarm_w[0] for _ in range(80)]
    assert alarms[58] == pytest.approx(1.1 * peak)
    assert alarms[-1] < 200.0


@pytest.mark.parametrize("wrong", [{"target": 0.0}, {"hold_s": 0.0}, {"growth_per_s": 1.0}, {"alarm_step": -1.0}])
def test_a_wrong_option_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CorrectorConfig(**wrong)


def test_the_margin_of_a_slow_meter_covers_what_it_may_have_missed_between_two_readings() -> None:
    run = Run(CorrectorConfig(step_per_escape=1e-6, meter_noise_w=2.0, worst_half_life_s=60.0))
    limits = make_limits(np.array([RATING_W]), step_w=np.array([1.0]))
    new, held = int(Quality.SLOW_METER), int(Quality.SLOW_METER | Quality.HELD)
    draws = [(100.0, new), (100.0, held), (340.0, new), (340.0, held)]
    margins = [run.tick(w, w, quality=q, limits=limits).margin_w[0] for w, q in draws]
    assert margins[:2] == [pytest.approx(3.0)] * 2
    assert margins[2] == pytest.approx(243.0)
    assert margins[3] == pytest.approx(3.0 + 240.0 * 0.5 ** (0.1 / 60.0))
    run.tick(np.nan, np.nan, quality=Quality.STALE, limits=limits)
    after = run.tick(900.0, 900.0, quality=new, limits=limits).margin_w[0]
    assert after < 243.0  # a change over a gap is not one between two readings


def test_a_board_has_no_such_floor() -> None:
    run = Run(CorrectorConfig(step_per_escape=1e-6, meter_noise_w=2.0))
    run.tick(100.0, 100.0)
    assert run.tick(340.0, 340.0).margin_w[0] < 10.0
