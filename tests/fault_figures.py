"""Tests of faults end in figures: asserted here, and with RPI_FIGURES=1 kept in bench/results/faults.json."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from benches import load_bench

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "faults.json"
NUMBERS = range(1, 28)


@dataclass(frozen=True, slots=True)
class Figure:
    """What a test of a fault measured, and what is to be reached."""

    number: int  # of the fault
    what: str
    value: float
    reach: float
    unit: str
    at_least: bool  # reach is the lowest good value; else the highest

    @property
    def met(self) -> bool:
        return self.value >= self.reach if self.at_least else self.value <= self.reach


class Figures:
    """Takes the figures of one test: `figure(1, "found unreachable", 0.52, 0.75, "s")`."""

    def __init__(self, number: int, keep: Callable[[Figure], None]) -> None:
        self._number = number
        self._keep = keep

    def __call__(
        self,
        number: int,
        what: str,
        value: float,
        reach: float,
        unit: str,
        *,
        at_least: bool = False,
        busy: float | None = None,
    ) -> None:
        """Keep the figure, then assert it: `value` is to be at most (`at_least`: at least) `reach`.

        `busy` is for what takes time: the bound asserted instead, with room for a machine that others use as well. It is
        never the figure: the table of docs/faults.md shows `reach` as met or missed.
        """
        assert number == self._number, f"a test of fault {self._number} gives a figure of fault {number}"
        figure = Figure(number, what, float(value), float(reach), unit, at_least)
        self._keep(figure)
        bound = reach if busy is None else busy
        within = value >= bound if at_least else value <= bound
        assert within, f"fault {number}, {what}: {value:g} {unit}; {'>=' if at_least else '<='} {bound:g} is asserted"


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """For tests marked `fault(n)`."""
    marker = request.node.get_closest_marker("fault")
    assert marker is not None, "mark the test with @pytest.mark.fault(n)"
    kept: list[Figure] = []
    test = f"{Path(request.node.path).relative_to(ROOT)}::{request.node.originalname}"
    yield Figures(marker.args[0], kept.append)
    if kept and os.environ.get("RPI_FIGURES") == "1":
        keep(kept, test)


def keep(figures: list[Figure], test: str, results: Path = RESULTS) -> None:
    """Put the figures of a test in the place of those that it gave before; several processes may do so at once."""
    bench = _common()
    machine = bench.machine()
    told = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
    rows = [
        {
            **asdict(figure),
            "met": figure.met,
            "test": test,
            "commit": _commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": told,
            "load_1min": machine["load_1min"],
        }
        for figure in figures
    ]
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        before = json.loads(text)["rows"] if text else []
        mine = {(row["test"], row["what"]) for row in rows}
        # cases of one test, or its short and its long form, give figures of their own: what was not given again stays
        left = [row for row in before if (row["test"], row["what"]) not in mine]
        ordered = sorted([*left, *rows], key=lambda row: (row["number"], row["test"]))
        file.truncate(0)
        file.write(bench.as_kept({"bench": "faults", "rows": ordered}) + "\n")


@cache
def _common() -> ModuleType:
    return load_bench("common")


@cache
def _commit() -> str:
    """Asked before the first figure is kept: the results are in the checkout as well."""
    return str(_common().commit())
