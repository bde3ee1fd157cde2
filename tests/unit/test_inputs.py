"""The network's columns against what they say, computed the slow way from the whole signal."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.models.inputs import COLUMNS, LIMIT, N_COLUMNS, Inputs, InputStream
from rpi_daemon.models.past import LAG_MAX, LAG_MIN, LAG_STEP, SLOW_LAG_MAX
from rpi_daemon.records import TICK_NS, FloatArray, ForecastInput, Quality

RATING_W = 500.0


def tick(k: int, power_w: FloatArray, planned_w: FloatArray | None = None) -> ForecastInput:
    n = len(power_w)
    telemetry = np.tile([0.5, 0.25, 0.75, 1.0], (n, 1))
    return ForecastInput(
        t_mono_ns=k * TICK_NS,
        t_utc_s=21_600.0,
        power_w=power_w,
        peak_w=np.full(n, np.nan),
        step_w=np.zeros(n),
        valid=np.isfinite(power_w),
        rating_w=np.full(n, RATING_W),
        planned_w=np.zeros((n, 5)) if planned_w is None else planned_w,
        telemetry=telemetry,
        telemetry_mask=np.tile([1.0, 0.0, 0.0, 1.0], (n, 1)),
    )


def column(seen: Inputs, name: str) -> FloatArray:
    return seen.columns[:, COLUMNS.index(name)].astype(np.float64)


def test_columns_say_what_their_names_say() -> None:
    rng = np.random.default_rng(1)
    signal = 200.0 + 60.0 * rng.random((1200, 3)) + 50.0 * (np.arange(1200)[:, None] % 97 < 30)
    stream = InputStream(3)
    planned_w = np.outer([1.0, -2.0, 0.5], [0.0, 10.0, 10.0, 20.0, 20.0])
    for k, power_w in enumerate(signal):
        seen = stream.step(tick(k, power_w, planned_w))
    now, scale = signal[-1], seen.scale_w
    np.testing.assert_array_equal(seen.base_w, now)
    assert seen.columns.shape == (3, N_COLUMNS)
    assert seen.ready.all()
    expected = {
        "change": (now - signal[-2]) / scale,
        "change_1s": (now - signal[-11]) / scale,
        "max_5s": (signal[-50:].max(0) - now) / scale,  # 1200 ticks: the present second is whole
        "max_20s": (signal[-200:].max(0) - now) / scale,
        "min_20s": (signal[-200:].min(0) - now) / scale,
        "log_scale": np.log10(scale / RATING_W),
        "level": now / RATING_W,
        "age": np.ones(3),
        "planned_2s": planned_w[:, 1] / scale,
        "planned_5s": planned_w[:, 4] / scale,
        "periods_seen": np.full(3, 3.0 / 3.0),
        "day_sin": np.ones(3),
        "cpu": np.full(3, 0.5),
        "memory": np.zeros(3),
        "disk": np.ones(3),
        "cpu_known": np.ones(3),
        "memory_known": np.zeros(3),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(column(seen, name), np.clip(value, -LIMIT, LIMIT), atol=2e-5, err_msg=name)
    mean = signal[0].copy()
    for power_w in signal:
        mean += (power_w - mean) / 30.0
    np.testing.assert_allclose(column(seen, "below_mean_3s"), (now - mean) / scale, atol=1e-5)


def test_the_previous_period_is_found_and_read_ahead() -> None:
    period = np.array([110, 150, 230])
    k = np.arange(1501)[:, None]
    signal = 200.0 + 150.0 * (k % period < 40) + 3.0 * (k % period)
    stream = InputStream(3)
    for t in range(1501):
        seen = stream.step(tick(t, signal[t]))
    np.testing.assert_allclose(column(seen, "period_length") * LAG_MAX % period, 0.0, atol=1e-3)
    np.testing.assert_allclose(column(seen, "period_mismatch"), 0.0, atol=0.05)  # what is left of the start
    np.testing.assert_allclose(column(seen, "period_offset"), 0.0, atol=1e-5)
    t = 1500 - np.round(column(seen, "period_length") * LAG_MAX).astype(int)
    for outlet in range(3):
        origin = signal[t[outlet], outlet]
        for h in (1, 3, 5):
            after = signal[t[outlet] + 10 * h, outlet] - origin
            highest = signal[t[outlet] + 1 : t[outlet] + 10 * h + 1, outlet].max() - origin
            scale = seen.scale_w[outlet]
            assert column(seen, f"period_value_{h}s")[outlet] == pytest.approx(after / scale, abs=1e-4)
            assert column(seen, f"period_max_{h}s")[outlet] == pytest.approx(highest / scale, abs=1e-4)


def test_mismatch_of_every_lag_is_its_mean_absolute_difference() -> None:
    rng = np.random.default_rng(2)
    signal = 200.0 + rng.normal(0.0, 10.0, (4000, 1))
    stream = InputStream(1)
    for k, power_w in enumerate(signal):
        stream.step(tick(k, power_w))
    lags = np.arange(LAG_MAX, LAG_MIN - 1, -LAG_STEP)
    weight = np.exp(-np.arange(3000) / 300.0)[::-1]
    for place in (0, 100, 285):
        difference = np.abs(signal[1000:, 0] - signal[1000 - lags[place] : 4000 - lags[place], 0])
        assert stream._past._mismatch[place, 0] == pytest.approx(np.average(difference, weights=weight), rel=0.25)


def test_nothing_is_known_of_a_period_before_it_was_seen() -> None:
    stream = InputStream(1)
    for k in range(LAG_MIN - 1):
        seen = stream.step(tick(k, np.array([100.0 + k])))
        assert column(seen, "period_mismatch")[0] == 1.0
        assert column(seen, "period_value_5s")[0] == 0.0
        assert np.isfinite(seen.columns).all()
        assert np.abs(seen.columns).max() <= LIMIT


def test_an_outlet_that_comes_back_starts_without_its_past() -> None:
    rng = np.random.default_rng(3)
    stream, fresh = InputStream(1), InputStream(1)
    for k in range(700):
        stream.step(tick(k, 300.0 + rng.normal(0.0, 50.0, 1)))
    for k in range(700, 710):
        assert not stream.step(tick(k, np.array([np.nan]))).live.any()
    for k in range(710, 1500):
        power_w = 100.0 + rng.normal(0.0, 5.0, 1)
        a, b = stream.step(tick(k, power_w)), fresh.step(tick(k, power_w))
        assert a.restarted[0] == b.restarted[0] == (k == 710)
        assert a.ready[0] == b.ready[0] == (k >= 714)
        for name in ("below_mean_20s", "change_1s", "max_20s", "level", "age"):
            np.testing.assert_allclose(column(a, name), column(b, name), atol=1e-5, err_msg=name)


INTERVALS = np.array([1, 10, 20, 50, 5])
PHASE = np.array([0, 3, 7, 11, 4])


def mixed_tick(k: int, signal: FloatArray) -> ForecastInput:
    """Outlets with a board, and of four meters out of step with each other that hold their readings."""
    read_at = (k - PHASE) // INTERVALS * INTERVALS + PHASE
    power_w = np.where(read_at >= 0, signal[read_at, np.arange(5)], np.nan)
    held = np.where((INTERVALS > 1) & (read_at != k), Quality.HELD | Quality.SLOW_METER, 0)
    return replace(tick(k, power_w), quality=held, interval_ticks=INTERVALS)


def test_an_outlet_of_a_slow_meter_moves_at_fresh_readings_alone() -> None:
    rng = np.random.default_rng(5)
    signal = 200.0 + 50.0 * rng.random((2400, 5)) + 80.0 * (np.arange(2400)[:, None] % 170 < 60)
    stream = InputStream(5)
    alone = [InputStream(1) for _ in INTERVALS]
    before: Inputs | None = None
    for k in range(2400):
        seen = stream.step(mixed_tick(k, signal))
        due = (k - PHASE) % INTERVALS == 0
        np.testing.assert_array_equal(seen.live, due & (k >= PHASE))
        np.testing.assert_array_equal(seen.due, seen.live | (INTERVALS == 1))
        for i in np.flatnonzero(seen.live):
            x = replace(tick(k, signal[k, [i]]), interval_ticks=INTERVALS[[i]])
            own = alone[i].step(x)
            np.testing.assert_array_equal(seen.columns[i], own.columns[0])
            assert seen.scale_w[i] == own.scale_w[0]
            assert seen.ready[i] == own.ready[0] == (INTERVALS[i] > 1 or k >= 4)
        if before is not None:
            np.testing.assert_array_equal(seen.columns[~seen.live], before.columns[~seen.live])
            np.testing.assert_array_equal(seen.base_w[~seen.live], before.base_w[~seen.live])
        before = seen


def records_of_rules(signal: FloatArray, reach: int, decay: float) -> dict[str, float]:
    """How far persistence was off at the reach, and the rises within it, plainly."""
    missed, rise, top = 0.0, 0.0, 0.0
    for k in range(len(signal)):
        top *= 1.0 - decay
        if k >= reach:
            share = max(decay, 1.0 / (k - reach + 1))
            missed += share * (abs(signal[k] - signal[k - reach]) - missed)
            rose = max(0.0, signal[k - reach + 1 : k + 1].max() - signal[k - reach])
            rise += share * (rose - rise)
            top = max(top, rose)
    return {"missed_still": missed, "rise_mean": rise, "rise_top": top}


@given(st.sampled_from([2, 5, 10, 20, 30, 40, 50, 80]), st.integers(2, 300), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_columns_of_a_slow_meter_against_a_plain_reference(interval: int, readings: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    period = int(rng.integers(3, 60))
    signal = 200.0 + 100.0 * (np.arange(readings) % period < period / 3) + rng.normal(0.0, 1.0, readings)
    signal = signal.astype(np.float32).astype(np.float64)
    stream = InputStream(1)
    for k, watts in enumerate(signal):
        seen = stream.step(replace(tick(k * interval, np.array([watts])), interval_ticks=np.array([interval])))
    interval_s = interval / 10
    reach = [math.ceil(s / interval_s - 1e-9) for s in (1, 2, 3, 4, 5, 7)]
    means, spread = [signal[0]] * 3, 0.0
    for k, watts in enumerate(signal):
        for j, (span_s, least) in enumerate(((0.5, 2), (3.0, 4), (20.0, 12))):
            means[j] += (watts - means[j]) / max(span_s / interval_s, least)
        spread += (abs(watts - means[2]) - spread) * max(1.0 / max(40.0 / interval_s, 16), 1 / (k + 1))
    now, scale = signal[-1], seen.scale_w[0]
    long = min(max(round(20.0 / interval_s), 8), 128)
    lag = int(seen.period.lag_ticks[0]) // interval
    expected = {f"below_mean_{name}": (now - means[j]) / scale for j, name in enumerate(("0s5", "3s", "20s"))}
    expected |= {
        "change": (now - signal[-2]) / scale,
        "change_1s": (now - signal[-3]) / scale if readings > 2 else 0.0,
        "max_5s": (signal[-reach[4] :].max() - now) / scale,
        "max_20s": (signal[-long:].max() - now) / scale,
        "min_20s": (signal[-long:].min() - now) / scale,
        "log_scale": math.log10(scale / RATING_W),
        "log_interval": math.log10(interval),
        "level": now / RATING_W,
        "age": min(readings, 30) / 30,
        "period_length": lag / SLOW_LAG_MAX,
    }
    wide = (signal[-long:].max() - signal[-long:].min()) / 6.0
    assert scale == pytest.approx(max(0.0005 * RATING_W, spread, abs(now - means[2]) / 4.0, wide), rel=1e-6)
    assert reach[-1] <= lag <= SLOW_LAG_MAX
    assert seen.period.known[0] == (readings > lag)
    if readings > lag:
        then = readings - 1 - lag
        for h in range(5):
            expected[f"period_value_{h + 1}s"] = (signal[then + reach[h]] - signal[then]) / scale
            highest = signal[then + 1 : then + reach[h] + 1].max()
            expected[f"period_max_{h + 1}s"] = (highest - signal[then]) / scale
            assert seen.period.change_w[h, 0] == pytest.approx(signal[then + reach[h]] - signal[then], abs=1e-3)
            assert seen.period.highest_w[h, 0] == pytest.approx(highest - signal[then], abs=1e-3)
        assert seen.period.origin_w[0] == pytest.approx(signal[then], abs=1e-3)
    rules = records_of_rules(signal, reach[4], 1.0 / max(60.0 / interval_s, 20))
    expected |= {name: value / scale for name, value in rules.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(column(seen, name), np.clip(value, -LIMIT, LIMIT), atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("interval", "period_s"), [(10, 24.0), (20, 60.0), (30, 45.0), (50, 200.0)])
def test_the_period_of_a_slow_meters_load_is_found(interval: int, period_s: float) -> None:
    rng = np.random.default_rng(6)
    t_s = np.arange(400) * interval / 10
    signal = 200.0 + 150.0 * (t_s % period_s < 0.4 * period_s) + rng.normal(0.0, 2.0, 400)
    stream = InputStream(1)
    for k, watts in enumerate(signal):
        seen = stream.step(replace(tick(k * interval, np.array([watts])), interval_ticks=np.array([interval])))
    assert seen.period.lag_ticks[0] / 10 % period_s == 0.0
    assert seen.period.mismatch[0] < 0.1


def test_a_reading_that_did_not_come_keeps_its_place() -> None:
    """One poll is lost: the columns are as if the last reading had been read again, and the state does not move."""
    signal = 200.0 + 100.0 * (np.arange(200) % 20 < 7)
    lossy, whole = InputStream(1), InputStream(1)
    interval_ticks = np.array([20])
    for k, watts in enumerate(signal):
        x = replace(tick(20 * k, np.array([watts])), interval_ticks=interval_ticks)
        stands = replace(x, power_w=signal[[k - 1]]) if k == 150 else x
        repeated = whole.step(stands)
        if k == 150:
            seen = lossy.step(replace(x, quality=np.array([Quality.HELD]), power_w=signal[[k - 1]]))
            assert not seen.live[0]
            assert not seen.due[0]
        else:
            seen = lossy.step(x)
    assert not seen.restarted[0]
    for name in ("below_mean_20s", "change", "max_20s", "period_offset", "period_value_5s", "period_length"):
        np.testing.assert_allclose(column(seen, name), column(repeated, name), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("silent_ticks", "restarted"), [(65, False), (67, True)])
def test_a_slow_meter_that_is_silent_for_three_readings_begins_afresh(silent_ticks: int, restarted: bool) -> None:
    stream = InputStream(1)
    interval_ticks = np.array([20])
    for k in range(5):
        stream.step(replace(tick(20 * k, np.array([300.0])), interval_ticks=interval_ticks))
    for k in range(81, 80 + silent_ticks):
        seen = stream.step(replace(tick(k, np.array([np.nan])), interval_ticks=interval_ticks))
    assert seen.ready[0] == (silent_ticks <= 66)
    seen = stream.step(replace(tick(80 + silent_ticks, np.array([100.0])), interval_ticks=interval_ticks))
    assert seen.restarted[0] == restarted
    assert seen.ready[0]
