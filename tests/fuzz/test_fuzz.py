"""Short form of `make fuzz`: the kept inputs of each target and some thousand fresh ones."""

import pytest
from fuzz.short import run
from fuzz.targets import PLACES, target

FRESH = {"frames": 1000, "config": 1000, "traces": 1000, "recording": 1000, "model": 1000}  # the slow ones


@pytest.mark.parametrize("name", PLACES)
def test_no_crash_and_no_wrong_accept(name: str) -> None:
    counts = run(target(name), FRESH.get(name, 3000), seed=1)
    assert counts["taken"] > 20  # inputs get past the front door
    assert counts["refused"] > 50
