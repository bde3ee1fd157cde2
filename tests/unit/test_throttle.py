"""A simulated server under a cap: never above it once settled, and what it could not do it does later."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.sensors.plant import Plant, Workload, outlet_power
from rpi_daemon.drivers.sensors.throttle import CAP_TAU_S, MAX_BACKLOG_S, Throttle

RATE = 1000


def capped(cap_w: float | None, from_w: float = 500.0) -> Throttle:
    throttle = Throttle(100.0, 600.0, RATE)
    throttle.keep(np.array([from_w]))
    throttle.set_cap(cap_w)
    return throttle


def test_the_draw_closes_on_the_cap_with_its_time_constant() -> None:
    throttle = capped(300.0)
    drawn = throttle.keep(np.full(2000, 500.0))
    k = round(CAP_TAU_S * RATE)
    assert drawn[k - 1] == pytest.approx(300.0 + 200.0 * np.exp(-1.0), abs=1e-6)
    assert drawn[5 * k - 1] == pytest.approx(300.0, abs=1.5)
    assert throttle.throttled
    assert np.all(np.diff(drawn) <= 0.0)


def test_below_the_cap_nothing_changes() -> None:
    throttle = capped(300.0, from_w=250.0)
    demand = 250.0 + 40.0 * np.sin(np.arange(1000) / 50.0)
    np.testing.assert_array_equal(throttle.keep(demand), demand)
    assert (throttle.throttled, throttle.backlog_j) == (False, 0.0)


def test_a_server_does_not_slow_down_below_idle() -> None:
    drawn = capped(20.0).keep(np.full(3000, 500.0))
    assert drawn[-1] == 100.0


def test_released_it_does_what_waited() -> None:
    throttle = capped(300.0)
    early = throttle.keep(np.full(3000, 500.0)).sum() / RATE
    waiting_j = throttle.backlog_j
    assert waiting_j == pytest.approx(3.0 * 500.0 - early)
    throttle.set_cap(None)
    late = 0.0
    for _ in range(100):
        late += throttle.keep(np.full(100, 200.0)).sum() / RATE
    assert throttle.backlog_j == 0.0
    assert not throttle.throttled
    assert late - 10.0 * 200.0 == pytest.approx(waiting_j, abs=0.1 * 400.0)  # to a piece of 100 ms


def test_what_waits_is_bounded_and_lost_when_switched_off() -> None:
    throttle = capped(150.0)
    for _ in range(200):
        throttle.keep(np.full(1000, 600.0))
    assert throttle.backlog_j == MAX_BACKLOG_S * 600.0
    throttle.keep(np.zeros(100))
    assert throttle.backlog_j == 0.0


@given(
    st.lists(st.tuples(st.floats(0.0, 700.0), st.integers(1, 200)), min_size=1, max_size=20),
    st.floats(100.0, 700.0),
)
def test_never_above_demand_and_backlog_and_never_above_a_settled_cap(
    pieces: list[tuple[float, int]], cap_w: float
) -> None:
    throttle = capped(cap_w)
    throttle.keep(np.full(4000, 500.0))  # 20 time constants
    for demand_w, n in pieces:
        drawn = throttle.keep(np.full(n, demand_w))
        assert drawn.max() <= cap_w + 1e-5
        assert drawn.min() >= min(demand_w, cap_w) - 1e-9
        assert throttle.backlog_j >= 0.0


def test_a_plant_keeps_its_servers_cap_and_is_the_same_plant_without() -> None:
    work = [Workload(f"s{i}", "ramped", 600.0, 120.0, 450.0, start_s=0.0) for i in range(2)]
    free, plant = Plant(work, seed=3), Plant(work, seed=3)
    plant.set_cap(0, 200.0)
    kept = []
    for _ in range(300):
        free.advance(100)
        plant.advance(100)
        kept.append(plant.true_power_w[0])
        assert plant.true_power_w[1] == free.true_power_w[1]
    assert max(kept[20:]) <= 200.01
    assert free.true_power_w[0] > 200.0
    throttle = plant.throttles[0]
    assert throttle is not None
    assert throttle.throttled
    assert throttle.backlog_j > 0.0
    plant.set_cap(0, None)
    for _ in range(10):
        plant.advance(100)
    full_w = float(outlet_power(np.array(450.0), 600.0))
    assert plant.true_power_w[0] >= full_w - 1e-6
