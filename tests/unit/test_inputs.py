"""The network's columns against what they say, computed the slow way from the whole signal."""

import numpy as np
import pytest

from rpi_daemon.models.inputs import COLUMNS, LAG_MAX, LAG_MIN, LAG_STEP, LIMIT, N_COLUMNS, Inputs, InputStream
from rpi_daemon.records import TICK_NS, FloatArray, ForecastInput

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
        "change_0s1": (now - signal[-2]) / scale,
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
        assert stream._mismatch[place, 0] == pytest.approx(np.average(difference, weights=weight), rel=0.25)


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
