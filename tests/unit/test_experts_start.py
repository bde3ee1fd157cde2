"""The first minute after a start: what was seen at rest must not be read as the error of the work that follows."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rpi_daemon._fastpath.core import Experts
from rpi_daemon.drivers.sensors.plant import demo_rack, simulate_power

MINUTE = 600
REACH = 50
OUTLETS = 16
Array = NDArray[np.float64]


def demo() -> tuple[Array, Array]:
    """The simulator's loads from idle, W [n, ticks]; ratings."""
    rng = np.random.default_rng(11)
    loads = demo_rack(OUTLETS, 11)
    return (
        np.array([simulate_power(load, 0.1 * (MINUTE + REACH), rng).power_w[: MINUTE + REACH] for load in loads]),
        np.array([load.rating_w for load in loads]),
    )


def quiet(then: str) -> tuple[Array, Array]:
    """60 W without movement for 2 to 30 s, then one step for good, or bursts."""
    rng = np.random.default_rng(1)
    k = np.arange(MINUTE + REACH)
    power_w = np.empty((OUTLETS, len(k)))
    for row in power_w:
        begins, height_w, period = rng.integers(20, 300), rng.uniform(150.0, 450.0), rng.integers(60, 300)
        work = 1.0 if then == "step" else (k + rng.integers(300)) % period < period // 3
        row[:] = 60.0 + height_w * (k >= begins) * work + rng.normal(0.0, rng.choice([0.0, 0.05, 1.0]), len(k))
    return power_w, np.full(OUTLETS, 600.0)


def forecasts(power_w: Array, rating_w: Array) -> tuple[Array, Array]:
    """Median of the draw and 0.99 quantile of the running maximum 5 s ahead, W [n, MINUTE]; without a network."""
    n = len(power_w)
    experts, out = Experts(n), np.empty((2, n, 5, 3))
    yes, tick, nothing, planned = (
        np.ones(n, np.bool_),
        np.ones(n, np.int64),
        np.full((n, 5, 3), np.nan),
        np.zeros((n, 5)),
    )
    median, request = np.empty((2, n, MINUTE))
    for k in range(MINUTE):
        experts.step(k, power_w[:, k].copy(), yes, yes, tick, rating_w, planned, nothing, nothing, out)
        median[:, k], request[:, k] = out[0, :, -1, 0], out[1, :, -1, 2]
    return median, request


@pytest.mark.parametrize(
    ("loads", "at_most"),
    [(demo(), 1.0), (quiet("bursts"), 1.0), (quiet("step"), 1.15)],
    ids=["demo", "quiet, then bursts", "quiet, then a step for good"],
)
def test_the_first_minute_is_no_worse_than_persistence(loads: tuple[Array, Array], at_most: float) -> None:
    """One step and nothing else is the case that persistence can't lose; elsewhere there is something to gain."""
    power_w, _ = loads
    median, _ = forecasts(*loads)
    error = np.abs(median - power_w[:, REACH:]).mean(0)
    persistence = np.abs(power_w[:, :MINUTE] - power_w[:, REACH:]).mean(0)
    assert error.mean() <= at_most * persistence.mean()
    for begin in (0, 100):
        assert error[begin : begin + 100].mean() <= 1.2 * persistence[begin : begin + 100].mean(), (
            f"from {begin / 10} s"
        )


@pytest.mark.parametrize("loads", [demo(), quiet("step")], ids=["demo", "quiet, then a step for good"])
def test_the_first_minutes_maximum_is_that_of_the_load(loads: tuple[Array, Array]) -> None:
    power_w, _ = loads
    _, request = forecasts(*loads)
    came = np.array([power_w[:, k + 1 : k + 1 + REACH].max(1) for k in range(MINUTE)]).T
    assert request[:, 100:].sum() <= 1.5 * came[:, 100:].sum()
