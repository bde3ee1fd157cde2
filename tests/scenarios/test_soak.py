"""The soak's short form, and that its invariants can fail; `make soak` runs the long one."""

import os

import pytest
from benches import load_bench

soak = load_bench("soak")
SEEDS = [int(seed) for seed in os.environ.get("RPI_SOAK_SEEDS", "11").split()]
SECONDS = float(os.environ.get("RPI_SOAK_SECONDS", "40"))


@pytest.mark.parametrize("seed", SEEDS)
def test_no_invariant_is_violated_under_faults_at_random(seed: int) -> None:
    run, violations = soak.soak(seed, SECONDS)
    assert violations == [], f"seed {seed}: {list(run.events)[-60:]}"
    assert run.checks.counts["ticks"] > 8 * SECONDS
    assert run.checks.counts["calms"] >= 2
    assert sum(run.injected.values()) >= SECONDS / 8
    applied = run.checks.applied
    assert min(applied[name] for name in ("a sums", "c audited", "c read back", "d draw", "h ticks", "j notices")) > 5


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = (soak.soak(3, 5.0)[0] for _ in range(2))
    assert first.checks.counts["writes"] > 10
    assert (first.checks.counts, first.injected, first.limits_w) == (
        second.checks.counts,
        second.injected,
        second.limits_w,
    )


@pytest.mark.parametrize("name", ["kill", "draw"])
def test_a_defect_is_seen(name: str) -> None:
    assert soak.self_test(name) is None
