"""The back edge: which forecast meets which measurement, and when it does not count."""

from typing import Any

import numpy as np
import pytest

from rpi_daemon.records import REQUEST_QUANTILE, TICK_NS, Forecast, Quality, Readings
from rpi_daemon.residual import ResidualMatcher

START_NS = 1_000_000_000_000


def readings(t_ns: int, power_w: list[float], *, quality: int = 0) -> Readings:
    power = np.array(power_w)
    unused: Any = np.full(len(power_w), np.nan)
    zeros = np.zeros(len(power_w), np.int64)
    return Readings(
        t_mono_ns=t_ns,
        t_utc_ns=t_ns,
        power_w=power,
        **dict.fromkeys(
            ("rms_a", "apparent_va", "power_factor", "peak_a", "crest", "min_a", "max_a", "step_w", "voltage_v"), unused
        ),
        count=zeros,
        missing=zeros,
        quality=np.full(len(power_w), quality),
        valid=np.isfinite(power),
    )


def forecast(t_ns: int, median_5s: list[float], upper_5s: list[float]) -> Forecast:
    """Every number but the two that are compared is absurd, so that taking a wrong one shows."""
    value = np.full((len(median_5s), 5, 3), 1e9)
    running = np.full((len(median_5s), 5, 3), -1e9)
    value[:, 4, 0] = median_5s
    running[:, 4, REQUEST_QUANTILE] = upper_5s
    return Forecast(t_ns, value, running, ("test",) * len(median_5s))


def test_forecast_meets_the_measurement_made_for_its_time() -> None:
    matcher = ResidualMatcher(1)
    for k in range(101):
        t = START_NS + k * TICK_NS
        residual = matcher.match(readings(t, [float(k)]))
        if k < 50:
            assert residual is None
        else:
            assert residual is not None
            assert residual.t_made_ns == t - 50 * TICK_NS
            assert residual.value_w[0] == k - (k - 50 + 7.0)
            assert residual.measured_max_w[0] == k
            assert residual.running_max_w[0] == k - (k - 50 + 49.5)
            assert residual.request_w[0] == k - 50 + 50.0
            assert not residual.escaped[0]
            assert residual.persistence_w[0] == 50.0
            assert residual.valid[0]
        matcher.record(forecast(t, [k + 7.0], [k + 49.5]), np.array([k + 50.0]))


@pytest.mark.parametrize(("burst_at", "escapes"), [(0, False), (1, True), (25, True), (50, True)])
def test_running_maximum_is_over_what_follows_the_forecast(burst_at: int, escapes: bool) -> None:
    matcher = ResidualMatcher(2)
    for k in range(51):
        t = START_NS + k * TICK_NS
        residual = matcher.match(readings(t, [300.0 if k == burst_at else 100.0, 100.0]))
        matcher.record(forecast(t, [100.0, 100.0], [200.0, 200.0]), np.array([250.0, 250.0]))
    assert residual is not None
    assert residual.measured_max_w.tolist() == [300.0 if escapes else 100.0, 100.0]
    assert residual.escaped.tolist() == [escapes, False]


def test_jitter_below_half_a_tick_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    matcher = ResidualMatcher(1)
    matched = 0
    for k in range(300):
        t = START_NS + k * TICK_NS + int(rng.integers(-20_000_000, 20_000_000))
        residual = matcher.match(readings(t, [float(k)]))
        if k >= 50:
            assert residual is not None
            assert residual.valid[0]
            assert residual.value_w[0] == 50.0  # the forecast of 50 ticks ago, not a neighbour's
            matched += 1
        matcher.record(forecast(t, [float(k)], [0.0]), np.array([0.0]))
    assert matched == 250


def test_one_invalid_window_spoils_its_outlet_for_five_seconds() -> None:
    matcher = ResidualMatcher(2)
    valid = []
    for k in range(160):
        t = START_NS + k * TICK_NS
        residual = matcher.match(readings(t, [np.nan if k == 80 else 1.0, 1.0]))
        matcher.record(forecast(t, [1.0, 1.0], [2.0, 2.0]), np.array([3.0, 3.0]))
        if residual is not None:
            assert residual.valid[1]
            assert np.isnan(residual.running_max_w[0]) == (not residual.valid[0])
            assert not residual.escaped[0]
            valid.append((k, bool(residual.valid[0])))
    assert [k for k, good in valid if not good] == list(range(80, 130))


def test_an_absent_window_spoils_all_outlets_until_it_has_left_the_span() -> None:
    matcher = ResidualMatcher(1)
    bad = []
    for k in range(200):
        t = START_NS + k * TICK_NS
        if k == 100:
            continue
        residual = matcher.match(readings(t, [1.0]))
        matcher.record(forecast(t, [1.0], [2.0]), np.array([3.0]))
        if k >= 50 and (residual is None or not residual.valid[0]):
            bad.append(k)
    # until 149 the span holds the gap; at 150 there is no forecast made at 100
    assert bad == list(range(101, 151))


def test_readings_that_are_not_new_teach_nothing_twice() -> None:
    matcher = ResidualMatcher(1)
    for k in range(51):
        t = START_NS + k * TICK_NS
        first = matcher.match(readings(t, [1.0]))
        assert matcher.match(readings(t, [99.0])) is None
        matcher.record(forecast(t, [1.0], [2.0]), np.array([3.0]))
    assert first is not None
    assert first.measured_max_w[0] == 1.0


def test_history_is_bounded() -> None:
    matcher = ResidualMatcher(1)
    for k in range(10_000):
        t = START_NS + k * TICK_NS
        matcher.match(readings(t, [1.0]))
        matcher.record(forecast(t, [1.0], [2.0]), np.array([3.0]))
    assert len(matcher._windows) <= 52
    assert len(matcher._made) <= 52


def test_a_slow_meter_is_compared_once_for_each_of_its_readings() -> None:
    """Read at every tenth tick; the maximum is of readings taken within the span, not of the one held into it."""
    matcher = ResidualMatcher(1)
    judged = []
    for k in range(80):
        power_w = 900.0 if k < 15 else 100.0 + k // 10  # the reading of tick 10 is held up to tick 19
        held = 0 if k % 10 == 0 else Quality.HELD
        residual = matcher.match(readings(START_NS + k * TICK_NS, [power_w], quality=Quality.SLOW_METER | held))
        if residual is not None and residual.valid[0]:
            judged.append((k, float(residual.measured_max_w[0]), float(residual.value_w[0])))
        if residual is not None and held:
            assert not residual.escaped[0]
            assert np.isnan(residual.persistence_w[0])
        matcher.record(forecast(START_NS + k * TICK_NS, [50.0], [200.0]), np.array([150.0]))
    assert judged == [(50, 900.0, 55.0), (60, 106.0, 56.0), (70, 107.0, 57.0)]
