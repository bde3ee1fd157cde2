"""The mixture is never much worse than any of its experts, whatever the load does and however it changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath.core import EXPERTS, Experts
from rpi_daemon.records import QUANTILES

RATING_W = 1000.0
READINGS = 400
REACH = 5  # readings of a meter read every second
SURPRISE = np.log(100.0)  # of the expert with the least prior weight, and a little more
PARTS = ("flat", "noise", "steps", "wave", "square", "ramp", "against the last", "against the mean")
ALWAYS_AWAKE = [EXPERTS.index(name) for name in EXPERTS if name not in ("lstm", "periodic")]


def load(parts: list[str], seed: int) -> np.ndarray:
    """A load that changes its kind; two of them are made against persistence and against the means."""
    rng = np.random.default_rng(seed)
    power_w, level = [300.0], 300.0
    for k in range(READINGS + REACH):
        part, t = parts[k * len(parts) // (READINGS + REACH)], float(k)
        if part == "steps" and rng.random() < 0.05:
            level = rng.uniform(50.0, 900.0)
        recent = power_w[-2 * REACH :]
        power_w.append(
            {
                "flat": level,
                "noise": level + rng.normal(0.0, 30.0),
                "steps": level,
                "wave": 500.0 + 300.0 * np.sin(t / 5.0),
                "square": 200.0 + 500.0 * (k % 14 < 7),
                "ramp": 100.0 + 20.0 * (k % 40),
                "against the last": 800.0 if power_w[-REACH:][0] < 500.0 else 200.0,
                "against the mean": 800.0 if np.mean(recent) < 500.0 else 200.0,
            }[part]
        )
    return np.maximum(power_w[1:], 0.0)


def pinball(q: float, came: np.ndarray, said: np.ndarray) -> np.ndarray:
    return np.maximum(q * (came - said), (q - 1.0) * (came - said))


@pytest.mark.parametrize("kind", [0, 1], ids=["value", "running maximum"])
@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_its_loss_stays_within_the_bound_of_every_expert(kind: int, parts: list[str], seed: int) -> None:
    """Second-order bound of Bernstein online aggregation, with S = log(1 / prior): regret to expert j is at most
    3 sqrt(S V_j) + (3 S + 2 D) max|d_j|, d_j how far the two are apart times the loss's steepest slope, V_j the sum of
    its squares, D the delay of the feedback; each of the two situations pays by itself."""
    power_w = load(parts, seed)
    experts, out = Experts(1), np.empty((2, 1, 5, 3))
    nothing, planned = np.full((1, 5, 3), np.nan), np.zeros((1, 5))
    mixed, members = np.empty((READINGS, 3)), np.empty((READINGS, len(EXPERTS), 3))
    yes, interval = np.ones(1, np.bool_), np.array([10])
    for k in range(READINGS):
        experts.step(
            10 * k, power_w[k : k + 1], yes, yes, interval, np.array([RATING_W]), planned, nothing, nothing, out
        )
        for tick in range(1, 10):
            experts.step(
                10 * k + tick,
                power_w[k : k + 1],
                yes,
                ~yes,
                interval,
                np.array([RATING_W]),
                planned,
                nothing,
                nothing,
                out,
            )
        mixed[k] = out[kind, 0, -1]
        for j in ALWAYS_AWAKE:
            experts.member(j, out)
            members[k, j] = out[kind, 0, -1]
    ahead = np.array([power_w[k + 1 : k + 1 + REACH] for k in range(READINGS)])
    came = ahead[:, -1] if kind == 0 else ahead.max(1)
    for q, level in enumerate(QUANTILES):
        for j in ALWAYS_AWAKE:
            regret = (pinball(level, came, mixed[:, q]) - pinball(level, came, members[:, j, q])).sum()
            apart = max(level, 1.0 - level) * np.abs(mixed[:, q] - members[:, j, q])
            bound = 3.0 * np.sqrt(SURPRISE * (apart**2).sum()) + (3.0 * SURPRISE + 2.0 * REACH) * apart.max()
            assert regret <= 2.0 * bound + 1e-6, (EXPERTS[j], level, regret / bound)
