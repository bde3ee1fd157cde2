"""The simulated rack: reproducible, physically right, and forecastable only as far as it says."""

import numpy as np
import pytest
from rpi_daemon.drivers.sensors.plant import (
    SHAPES,
    PowerStream,
    Workload,
    demo_rack,
    outlet_power,
    random_workload,
    simulate_power,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_same_power_whatever_the_pieces(shape: str) -> None:
    workload = random_workload(np.random.default_rng(5), shape)
    whole = simulate_power(workload, 120.0, np.random.default_rng(9))
    stream = PowerStream(workload, np.random.default_rng(9))
    pieces = np.concatenate([stream.take(n) for n in (1, 0, 7, 300, 892)])
    np.testing.assert_array_equal(pieces, whole.power_w)
    other = simulate_power(workload, 120.0, np.random.default_rng(10))
    assert not np.array_equal(other.power_w, whole.power_w)


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
    assert np.all(power_w[51:] > 0.0)
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
