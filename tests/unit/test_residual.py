"""The back edge: which forecast meets which measurement, and when it does not count."""

from typing import Any

import numpy as np
import pytest

from rpi_daemon.records import REQUEST_QUANTILE, TICK_NS, Forecast, Quality, Readings
from rpi_daemon.residual import ResidualMatcher

START_NS = 1_000_000_000_000


def readings(
    t_ns: int, power_w: list[float], *, quality: int | list[int] = 0, interval: int | list[int] = 1
) -> Readings:
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
        quality=np.broadcast_to(quality, len(power_w)),
        valid=np.isfinite(power),
        interval_ticks=np.array(interval),
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
            assert residual.t_made_ns[0] == t - 50 * TICK_NS
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
    assert [k for k, good in valid if not good] == list(
        range(80, 131)
    )  # and the forecast made without a reading is judged by none


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


def _polls(at: set[int], k: int) -> int:
    return int(Quality.SLOW_METER | (Quality.OK if k in at else Quality.HELD))


def _judged(at: set[int], interval: int, ticks: int, *, burst: set[int] = frozenset()) -> list[tuple[int, int, float]]:
    """(tick judged in, tick judged, highest reading since) of a meter that is read at these ticks; it reads the tick."""
    matcher = ResidualMatcher(1)
    found, power_w = [], 0.0
    for k in range(ticks):
        t = START_NS + k * TICK_NS
        if k in at:
            power_w = 1000.0 if k in burst else float(k)
        residual = matcher.match(readings(t, [power_w], quality=_polls(at, k), interval=interval))
        if residual is not None and residual.valid[0]:
            made = (int(residual.t_made_ns[0]) - START_NS) // TICK_NS
            found.append((k, made, float(residual.measured_max_w[0])))
            assert residual.value_w[0] == power_w - made  # the forecast was the tick that it was made in
            assert residual.persistence_w[0] == power_w - (1000.0 if made in burst else made)
        matcher.record(forecast(t, [float(k)], [0.0]), np.array([0.0]))
    return found


def test_a_meter_read_every_two_seconds_is_judged_at_six() -> None:
    assert _judged(set(range(0, 140, 20)), 20, 140) == [
        (60, 0, 60.0),
        (80, 20, 80.0),
        (100, 40, 100.0),
        (120, 60, 120.0),
    ]


def test_its_running_maximum_is_over_the_readings_after_the_forecast() -> None:
    judged = _judged(set(range(0, 180, 20)), 20, 180, burst={40})
    assert [highest for _, _, highest in judged] == [1000.0, 1000.0, 100.0, 120.0, 140.0, 160.0]


@pytest.mark.parametrize(("polls", "judged"), [({0, 65}, True), ({0, 55}, True), ({0, 66}, False), ({0, 54}, False)])
def test_a_late_or_early_poll_counts_within_a_quarter_of_the_interval(polls: set[int], judged: bool) -> None:
    assert bool(_judged(polls, 20, 80)) == judged


def test_of_two_readings_the_nearer_to_the_reach_is_judged() -> None:
    assert [pair[:2] for pair in _judged({0, 4, 61}, 20, 70)] == [(61, 0)]
    assert [pair[:2] for pair in _judged({0, 4, 63}, 20, 70)] == [(63, 4)]


def test_a_poll_that_was_missed_leaves_its_forecasts_without_a_judge() -> None:
    at = set(range(0, 200, 20)) - {60}
    assert [pair[:2] for pair in _judged(at, 20, 200)] == [(80, 20), (100, 40), (140, 80), (160, 100), (180, 120)]


def test_boards_and_meters_of_one_rack_each_have_their_own_reach() -> None:
    matcher = ResidualMatcher(3)
    judged: dict[int, list[bool]] = {}
    for k in range(101):
        quality = [0, _polls(set(range(0, 200, 20)), k), _polls(set(range(0, 200, 10)), k)]
        now = readings(START_NS + k * TICK_NS, [k, k // 20 * 20, k // 10 * 10], quality=quality, interval=[1, 20, 10])
        residual = matcher.match(now)
        if residual is not None:
            judged[k] = residual.valid.tolist()
            assert np.all(~residual.valid | (residual.value_w == [50.0, 60.0, 50.0]))
        matcher.record(forecast(now.t_mono_ns, [float(k)] * 3, [0.0] * 3), np.zeros(3))
    assert min(judged) == 50
    assert judged[50] == [True, False, True]
    assert judged[60] == [True, True, True]
    assert judged[61] == [True, False, False]


def test_an_invalid_window_spoils_the_span_of_a_meter_too() -> None:
    matcher = ResidualMatcher(1)
    valid = []
    for k in range(160):
        power_w = np.nan if 45 <= k < 60 else 1.0
        now = readings(START_NS + k * TICK_NS, [power_w], quality=_polls(set(range(0, 200, 20)), k), interval=20)
        residual = matcher.match(now)
        matcher.record(forecast(now.t_mono_ns, [1.0], [2.0]), np.array([3.0]))
        if residual is not None and residual.valid[0]:
            valid.append(k)
    assert valid == [120, 140]
