"""The compiled experts against their NumPy twin, and against what is known of their loads."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from rpi_daemon._fastpath.core import Experts, network_quantiles
from rpi_daemon._fastpath.reference_experts import ReferenceExperts
from rpi_daemon._fastpath.reference_experts import network_quantiles as reference_quantiles

RATING_W = 600.0
NOTHING = np.full((1, 5, 3), np.nan)
NO_PLAN = np.zeros((1, 5))
Array = NDArray[np.float64]


def ask(
    experts: Experts,
    tick: int,
    power_w: float,
    *,
    interval: int = 1,
    planned_w: Array = NO_PLAN,
    own: tuple[Array, Array] = (NOTHING, NOTHING),
    valid: bool = True,
    fresh: bool = True,
) -> Array:
    """One tick of one outlet, [2, 5, 3] W."""
    out = np.empty((2, 1, 5, 3))
    experts.step(
        tick, np.array([power_w]), np.array([valid]), np.array([fresh]), np.array([interval]), np.array([RATING_W]),
        planned_w, *own, out,
    )  # fmt: skip
    return out[:, 0]


def story(kind: str, rng: np.random.Generator) -> Iterator[float]:
    """Draws of a load, W."""
    level = 300.0
    for k in range(100_000):
        if kind == "bursts":
            yield 150.0 + 250.0 * (k % 90 < 30) + rng.normal(0.0, 2.0)
        elif kind == "flat":
            yield 200.0
        else:
            level = rng.uniform(50.0, 550.0) if rng.random() < 0.02 else level
            yield level + rng.normal(0.0, 5.0) * (rng.random() < 0.7)


@pytest.mark.parametrize("interval", [1, 4, 10, 20, 50])
@pytest.mark.parametrize("kind", ["bursts", "flat", "steps"])
def test_the_twin_says_the_same(kind: str, interval: int) -> None:
    rng = np.random.default_rng(interval)
    experts, twin = Experts(1), ReferenceExperts()
    draws, tick = story(kind, rng), 0
    count = {1: 600, 4: 200}.get(interval, 100)
    for k in range(count):
        lost = k in (count // 2, count // 2 + 1, count - 20)
        tick += 7 if k == count // 3 else 1  # longer than is bridged: the readings are forgotten
        for held in range(interval):
            tick += held > 0
            if held == 0:
                power_w = next(draws)
            planned_w = np.full((1, 5), 50.0) * np.arange(5) if 20 < k < 30 else NO_PLAN
            own = (NOTHING, NOTHING)
            if k % 50 > 10:
                value_w = np.sort(np.abs(power_w + rng.normal(0.0, 20.0, (1, 5, 3))), axis=2)
                own = value_w, np.maximum.accumulate(value_w + 5.0, axis=1)
            said = ask(
                experts, tick, power_w, interval=interval, planned_w=planned_w, own=own, valid=not lost, fresh=held == 0
            )
            expected = twin.step(
                tick, power_w, interval, RATING_W, planned_w[0], own[0][0], own[1][0], valid=not lost, fresh=held == 0
            )
            assert (expected is None) == bool(np.isnan(said).all())
            if expected is not None:
                np.testing.assert_allclose(said, expected, rtol=1e-6, atol=1e-6, err_msg=f"reading {k}, tick {tick}")


def test_an_expert_that_slept_for_hours_knows_its_errors_when_it_wakes() -> None:
    """A network that comes back must not take the first error after it for all that can happen."""
    rng = np.random.default_rng(5)
    experts, said = Experts(1), np.empty((2, 1, 5, 3))
    widths_w: list[float] = []
    for tick in range(80_000):
        heard = tick < 6000 or tick >= 79_900
        network = np.full((1, 5, 3), [300.0, 364.0, 416.0]) if heard else NOTHING
        ask(experts, tick, 300.0 + 50.0 * rng.standard_normal(), own=(network, network))
        if tick in (5999, 79_965):
            experts.member(7, said)
            widths_w.append(said[0, 0, 4, 2] - said[0, 0, 4, 0])
    before_w, after_w = widths_w
    assert after_w == pytest.approx(before_w, rel=0.15)


def test_the_networks_quantiles_equal_their_twin() -> None:
    """Bit by bit: outlets off and not ready, announced work, unknown plans, answers below 0 W, and no numbers at all."""
    rng = np.random.default_rng(12)
    n = 400
    change_w = rng.normal(0.0, 150.0, (n, 30))
    change_w[rng.random((n, 30)) < 0.002] = np.nan
    base_w = np.where(rng.random(n) < 0.3, 0.0, rng.uniform(0.0, 900.0, n))
    planned_w = rng.normal(0.0, 200.0, (n, 5)) * (rng.random(n) < 0.5)[:, None]
    planned_w[rng.random((n, 5)) < 0.1] = np.nan
    ready, off = rng.random(n) < 0.8, rng.random(n) < 0.3
    given = (change_w, base_w, ready, off, rng.uniform(100.0, 2000.0, n), planned_w, 0.05)
    ours, twin = np.empty((2, n, 5, 3)), np.empty((2, n, 5, 3))
    network_quantiles(*given, ours)
    reference_quantiles(*given, twin)
    np.testing.assert_array_equal(ours, twin)
    assert np.isnan(ours[:, ~ready]).all()
    clean = ready & np.isfinite(change_w).all(1)
    assert (np.diff(ours[:, clean], axis=3) >= 0.0).all()
    assert (np.diff(ours[1, clean], axis=1) >= 0.0).all()
    assert (ours[1, clean] >= ours[0, clean]).all()
    with pytest.raises(ValueError, match="29 outputs"):
        network_quantiles(change_w[:, :29].copy(), *given[1:], ours)
