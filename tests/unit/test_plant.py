"""The simulated rack: reproducible, physically right, and forecastable only as far as it says."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rpi_daemon.drivers.sensors.plant import (
    CHANNEL_FAULT,
    SATURATED_HIGH,
    SATURATED_LOW,
    SHAPES,
    Plant,
    PlantOptions,
    PowerStream,
    Workload,
    demo_rack,
    outlet_power,
    random_workload,
    simulate_power,
)
from rpi_daemon.records import FloatArray


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_power_whatever_the_pieces(shape: str) -> None:
    workload = random_workload(np.random.default_rng(5), shape)
    whole = PowerStream(workload, np.random.default_rng(9)).take(1200)
    stream = PowerStream(workload, np.random.default_rng(9))
    pieces = np.concatenate([stream.take(n) for n in (1, 0, 7, 300, 892)])
    np.testing.assert_array_equal(pieces, whole)
    first, again, other = (simulate_power(workload, 120.0, np.random.default_rng(seed)) for seed in (9, 9, 10))
    np.testing.assert_array_equal(first.power_w, again.power_w)
    assert first.plan == again.plan
    assert not np.array_equal(other.power_w, first.power_w)


@pytest.mark.parametrize("shape", SHAPES)
def test_power_stays_within_physics(shape: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        workload = random_workload(rng, shape)
        power_w = simulate_power(workload, 600.0, rng).power_w
        assert power_w.min() >= 0.0
        assert power_w.max() <= 1.5 * workload.rating_w
        if shape != "boot_storm":
            assert power_w.min() > 0.8 * workload.idle_w


def test_announced_work_comes_as_announced() -> None:
    workload = Workload("job", "batch", 600.0, 150.0, 450.0, period_s=20.0, flicker=0.0, surprises_per_hour=0.0)
    series = simulate_power(workload, 300.0, np.random.default_rng(1))
    assert len(series.plan) >= 10
    for planned in series.plan:
        if planned.t_s > 294.0:
            continue
        k = round(planned.t_s * 10)
        change_w = series.power_w[k + 45] - series.power_w[max(0, k - 5)]
        assert change_w == pytest.approx(planned.delta_w, rel=0.25)


def test_boot_is_off_before_its_time_and_then_climbs() -> None:
    workload = Workload("boot", "boot_storm", 600.0, 150.0, 450.0, start_s=5.0, surprises_per_hour=0.0)
    power_w = simulate_power(workload, 60.0, np.random.default_rng(2)).power_w
    assert np.all(power_w[:50] == 0.0)
    assert np.all(power_w[53:] > 0.0)
    inrush_w = power_w[50:54].max() - power_w[60]
    assert inrush_w == pytest.approx(0.7 * 4.0 * 600.0 * 0.012 / 0.1, rel=0.2)  # 29 J, seen through the window
    assert power_w[150:350].max() > 0.8 * outlet_power(np.array([450.0]), 600.0)[0]
    assert power_w[550] == pytest.approx(outlet_power(np.array([150.0]), 600.0)[0], rel=0.4)


def test_supply_efficiency_at_its_rated_points() -> None:
    np.testing.assert_allclose(
        outlet_power(np.array([0.0, 120.0, 300.0, 600.0]), 600.0), [0.0, 133.3333, 319.1489, 659.3407], rtol=1e-5
    )


def test_demo_rack_is_busy_within_half_a_minute() -> None:
    rack = demo_rack(24, seed=0)
    assert len(rack) == 24
    assert {w.shape for w in rack} == set(SHAPES)
    rises = 0
    for k, workload in enumerate(rack):
        power_w = simulate_power(workload, 30.0, np.random.default_rng(k)).power_w
        assert power_w.max() <= workload.rating_w
        rises += int(power_w[50:].max() > 1.5 * max(power_w[:50].min(), 1.0))
    assert rises >= 16


def test_a_wrong_workload_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="allowed: idle, inference"):
        Workload("x", "mining", 500.0, 100.0, 200.0)
    with pytest.raises(ValueError, match="idle_w <= busy_w"):
        Workload("x", "idle", 500.0, 300.0, 200.0)
    with pytest.raises(ValueError, match="2 s and more"):
        Workload("x", "training", 500.0, 100.0, 200.0, period_s=1.0)


# --- waveforms ---

QUIET = PlantOptions(noise_a=0.0, noise_v=0.0, skew_step_ns=0)


def physical(plant: Plant, counts: NDArray[np.int32]) -> FloatArray:
    return counts * np.array([c.scale for c in plant.channels])


@pytest.mark.parametrize("frequency_hz", [50.0, 60.0])
def test_v_times_i_over_whole_cycles_is_the_true_power(frequency_hz: float) -> None:
    rack = demo_rack(6, seed=4)
    plant = Plant(rack, replace(QUIET, frequency_hz=frequency_hz), seed=1)
    for _ in range(150):
        wave = physical(plant, plant.advance(100))
        power_w = np.mean(wave[:, :6] * wave[:, 6 + plant.phase_of], axis=0)
        np.testing.assert_allclose(power_w, plant.true_power_w, rtol=0.005, atol=0.1)
    assert plant.energy_j.sum() == pytest.approx(15.0 * 6 * 250.0, rel=0.5)
    assert plant.time_s == 15.0


def test_energy_is_the_integral_of_power() -> None:
    plant = Plant(demo_rack(12, seed=4), QUIET, seed=1)
    total_j = sum(plant.true_power_w * 0.1 for _ in range(100) if plant.advance(100) is not None)
    np.testing.assert_allclose(plant.energy_j, total_j, rtol=1e-9)


def test_block_size_changes_nothing() -> None:
    options = PlantOptions(gain_error_sd=0.003, phase_error_sd_deg=0.3, offset_sd_counts=50.0)
    one, other = (Plant(demo_rack(12, seed=4), options, seed=3) for _ in range(2))
    whole = one.advance(8000)
    pieces = np.concatenate([other.advance(n) for n in (1, 19, 480, 7400, 100)])
    assert np.abs(whole.astype(np.int64) - pieces).max() <= 1  # rounding of a sum in another order
    np.testing.assert_allclose(one.true_power_w, other.true_power_w)
    assert one.plan(20.0) == other.plan(20.0)
    third = Plant(demo_rack(12, seed=4), options, seed=4)
    assert not np.array_equal(third.advance(100), whole[:100])


def test_nothing_above_450_hz() -> None:
    plant = Plant(demo_rack(6, seed=4), replace(QUIET, frequency_hz=60.0), seed=1)
    wave = physical(plant, plant.advance(4000))
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(4000)[:, None], axis=0))
    assert np.argmax(spectrum[:, 0]) == 240  # 60 Hz at 0.25 Hz a bin
    assert spectrum[1820:].max(axis=0) == pytest.approx(0.0, abs=2e-4 * spectrum.max())
    for harmonic in (3, 5, 7):
        assert np.all(spectrum[240 * harmonic - 4 : 240 * harmonic + 5, :6].max(axis=0) > 0.005 * spectrum[240, :6])


def test_power_factor_falls_at_low_load() -> None:
    low = Workload("low", "idle", 600.0, 40.0, 45.0, flicker=0.0, surprises_per_hour=0.0)
    high = Workload("high", "idle", 600.0, 500.0, 505.0, flicker=0.0, surprises_per_hour=0.0)
    plant = Plant([low, high], replace(QUIET, n_phases=1), seed=1)
    wave = physical(plant, plant.advance(1000))
    power_w = np.mean(wave[:, :2] * wave[:, 2:], axis=0)
    apparent_va = np.sqrt(np.mean(wave[:, :2] ** 2, axis=0) * np.mean(wave[:, 2] ** 2))
    assert power_w[0] / apparent_va[0] < 0.9
    assert power_w[1] / apparent_va[1] > 0.97


def test_skew_and_sensor_errors_are_where_the_channel_says() -> None:
    rack = demo_rack(3, seed=4)
    options = replace(QUIET, skew_step_ns=20_000, gain_error_sd=0.01, phase_error_sd_deg=1.0, offset_sd_counts=1000.0)
    plant, perfect = Plant(rack, options, seed=1), Plant(rack, QUIET, seed=1)
    got, want = plant.advance(1000), perfect.advance(1000)
    tone = np.exp(-2j * np.pi * 50.0 * np.arange(1000) / 1000.0)
    for c, channel in enumerate(plant.channels):
        ratio = np.mean(got[:, c] * tone) / np.mean(want[:, c] * tone)
        assert abs(ratio) == pytest.approx(1.0 + channel.gain_error, abs=2e-4)
        lead_deg = 360.0 * 50.0 * channel.skew_ns * 1e-9 - channel.phase_error_deg
        assert np.degrees(np.angle(ratio)) == pytest.approx(lead_deg, abs=0.02)
        assert np.mean(got[:, c]) - np.mean(want[:, c]) == pytest.approx(channel.offset_counts, abs=300.0)


def test_dc_rack() -> None:
    rack = demo_rack(4, seed=2)
    plant = Plant(rack, replace(QUIET, supply="dc", voltage_v=54.0), seed=1)
    wave = physical(plant, plant.advance(100))
    assert wave.shape == (100, 5)
    assert wave[:, 4].mean() == pytest.approx(54.0, rel=0.011)
    np.testing.assert_allclose(np.mean(wave[:, :4] * wave[:, 4:], axis=0), plant.true_power_w, rtol=1e-5)


def test_noise_is_as_large_as_said() -> None:
    still = Workload("still", "idle", 600.0, 100.0, 110.0, flicker=0.0, surprises_per_hour=0.0)
    clean, noisy = (Plant([still], o, seed=1) for o in (replace(QUIET, noise_a=0.0), replace(QUIET, noise_a=0.01)))
    difference = physical(noisy, noisy.advance(4000))[:, 0] - physical(clean, clean.advance(4000))[:, 0]
    assert np.std(difference) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("width", [16, 24, 32])
def test_full_scale_ends_in_codes(width: int) -> None:
    plant = Plant(demo_rack(2, seed=2), PlantOptions(width=width, full_scale_v=300.0), seed=1)
    volts = plant.advance(100)[:, 2]
    assert {SATURATED_HIGH, SATURATED_LOW} <= set(volts.tolist())
    measured = volts[np.abs(volts.astype(np.int64)) < SATURATED_HIGH]
    assert np.abs(measured).max() <= plant.channels[2].full_scale_counts == 2 ** (width - 1) - 2
    assert abs(measured.max() * plant.channels[2].scale) <= 300.0


def test_a_silent_sensor_says_so() -> None:
    plant = Plant(demo_rack(4, seed=2), PlantOptions(dropouts_per_hour=3600.0), seed=1)
    counts = np.concatenate([plant.advance(10) for _ in range(1000)])
    faults = counts == CHANNEL_FAULT
    assert 0.005 < faults.mean() < 0.06  # one a second, 2 to 50 ms
    runs = np.diff(np.flatnonzero(np.diff(faults[:, 0].astype(int))))[::2]
    assert runs.max() <= 60


def test_switching_an_outlet() -> None:
    plant = Plant(demo_rack(3, seed=2), QUIET, seed=1)
    plant.advance(1000)
    before_w = plant.true_power_w.copy()
    assert before_w[1] > 50.0
    plant.set_outlet(1, False)
    counts = plant.advance(200)
    assert np.all(counts[:, 1] == 0)
    assert plant.true_power_w[1] == 0.0
    assert not plant.outlet_on(1)
    plant.set_outlet(1, True)
    counts = plant.advance(1500)
    peak_a = np.abs(counts[:, 1]).max() * plant.channels[1].scale
    assert peak_a > 2.0 * plant.workloads[1].rating_w / 230.0  # inrush
    plant.advance(60_000)
    assert plant.true_power_w[1] == pytest.approx(
        outlet_power(np.array([plant.workloads[1].idle_w]), plant.workloads[1].rating_w)[0], rel=0.5
    )


def test_plan_is_known_30_s_ahead_at_any_time() -> None:
    plant = Plant(demo_rack(24, seed=0), QUIET, seed=1)
    for _ in range(12):
        plan = plant.plan(plant.time_s + 30.0)
        assert [p.t_s for _, p in plan] == sorted(p.t_s for _, p in plan)
        assert any(p.t_s > plant.time_s + 22.0 for _, p in plan)
        assert {plant.workloads[i].shape for i, _ in plan} <= {"training", "batch", "boot_storm"}
        plant.advance(5000)


def test_wrong_options_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="allowed: ac, dc"):
        PlantOptions(supply="three-phase")
    with pytest.raises(ValueError, match="45 to 64"):
        PlantOptions(frequency_hz=400.0)
    with pytest.raises(ValueError, match="16, 24, 32"):
        PlantOptions(width=12)
    with pytest.raises(ValueError, match="multiple of 10"):
        Plant([], rate_hz=999)
