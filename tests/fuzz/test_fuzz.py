"""Short form of `make fuzz`: the kept inputs of each target and some thousand fresh ones."""

import pytest
from fuzz.short import run
from fuzz.targets import TARGETS

FRESH = {"frames": 1500}


@pytest.mark.parametrize("name", TARGETS)
def test_no_crash_and_no_wrong_accept(name: str) -> None:
    counts = run(TARGETS[name], FRESH.get(name, 3000), seed=1)
    assert counts["taken"] > 50  # inputs get past the front door
    assert counts["refused"] > 50
