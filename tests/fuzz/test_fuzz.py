"""Short form of `make fuzz`: the kept inputs of each target and some thousand fresh ones."""

import json

import pytest
from fuzz.page import KINDS, PAGE, with_table
from fuzz.short import run
from fuzz.targets import PLACES, target

FRESH = {
    "frames": 1000,
    "config": 150,
    "control": 300,
    "traces": 1000,
    "recording": 500,
    "model": 1000,
}  # the slow ones


@pytest.mark.parametrize("name", PLACES)
def test_no_crash_and_no_wrong_accept(name: str) -> None:
    counts = run(target(name), FRESH.get(name, 3000), seed=1)
    assert counts["taken"] > 20  # inputs get past the front door
    assert counts["refused"] > 50


def test_the_page_shows_the_kept_figures() -> None:
    path = PAGE.parent / "bench" / "results" / "fuzz.json"
    figures = json.loads(path.read_text())["targets"] if path.exists() else {}
    assert with_table(PAGE.read_text(), figures) == PAGE.read_text(), "run: make fuzz"
    for name, seen in figures.items():
        assert [seen[kind] for kind in KINDS] == [0, 0, 0], name
