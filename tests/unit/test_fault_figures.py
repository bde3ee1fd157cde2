"""The mechanism of figures, and that every fault has its test."""

import json
import re
from multiprocessing import get_context
from pathlib import Path

import pytest
from benches import load_bench
from fault_figures import NUMBERS, Figure, Figures, keep

TESTS = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"@pytest\.mark\.fault\((\d+)\)\n(?:@.*\n|    .*\n|\)\n)*(?:async )?def (\w+)\(")


def _marked() -> list[tuple[int, str]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("test_*.py"))]
    return [(int(number), name) for text in texts for number, name in MARKED.findall(text)]


def test_every_fault_has_a_test_that_bears_its_number() -> None:
    assert {number for number, _ in _marked()} == set(NUMBERS)
    assert [name for number, name in _marked() if not name.startswith(f"test_fault_{number:02d}_")] == []


def test_the_table_tells_of_every_fault() -> None:
    figures = load_bench("figures")
    faults = figures.tomllib.loads(figures.FAULTS.read_text(encoding="utf-8"))["fault"]
    assert [fault["number"] for fault in faults] == list(NUMBERS)


def test_a_figure_is_met_at_most_or_at_least() -> None:
    kept: list[Figure] = []
    figure = Figures(3, kept.append)
    figure(3, "seen", 0.2, 0.3, "s")
    figure(3, "refused", 100, 100, "%", at_least=True)
    assert [row.met for row in kept] == [True, True]
    with pytest.raises(AssertionError, match=r"fault 3, seen: 0\.4 s; <= 0.3 is asserted"):
        figure(3, "seen", 0.4, 0.3, "s")
    with pytest.raises(AssertionError, match="fault 3, refused: 99 %; >= 100 is asserted"):
        figure(3, "refused", 99, 100, "%", at_least=True)
    with pytest.raises(AssertionError, match="of fault 3 gives a figure of fault 4"):
        figure(4, "seen", 0.0, 0.3, "s")


def test_on_a_busy_machine_the_figure_is_kept_as_missed() -> None:
    kept: list[Figure] = []
    Figures(1, kept.append)(1, "found unreachable", 0.9, 0.75, "s", busy=3.0)
    assert [row.met for row in kept] == [False]
    with pytest.raises(AssertionError, match="<= 3 is asserted"):
        Figures(1, kept.append)(1, "found unreachable", 3.1, 0.75, "s", busy=3.0)


def _keep_one(path: Path, i: int) -> None:
    keep([Figure(i, "what", float(i), 1.0, "s", False)], f"tests/test_{i}.py::test", path)


def test_figures_of_several_processes_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    processes = [get_context("fork").Process(target=_keep_one, args=(path, i)) for i in (1, 2, 3, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()
    rows = json.loads(path.read_text())["rows"]
    assert [(row["number"], row["value"], row["met"]) for row in rows] == [
        (1, 1.0, True),
        (2, 2.0, False),
        (3, 3.0, False),
    ]
    assert all(row["commit"] and row["machine"] and row["date"] for row in rows)


def test_the_table_says_missed_and_not_measured() -> None:
    row = {
        "number": 1, "what": "found", "value": 0.9, "reach": 0.75, "unit": "s", "at_least": False, "met": False,
        "test": "tests/x.py::test", "commit": "c", "date": "2026-01-01", "machine": "m", "load_1min": "0.5",
    }  # fmt: skip
    faults = [{"number": n, "what": f"fault {n}", "does": "this"} for n in (1, 2)]
    lines = load_bench("figures").faults_table(faults, [row]).splitlines()
    assert lines[2] == "| 1 | fault 1 | this | found | <= 0.75 s | 0.9 s, **missed** | `tests/x.py::test` |"
    assert lines[3] == "| 2 | fault 2 | this | | | not measured yet | |"
    assert lines[5] == "0 of 2 faults are within all of their figures, 1 are measured."
    assert lines[7] == "Measured on m, load average up to 0.5, at c, 2026-01-01."


def test_a_number_of_the_readme_is_marked_where_it_missed() -> None:
    number, result = load_bench("figures").Number, {"ratios": {"x": 0.63, "own": 0.7}}

    def cells(reach: object, **options: object) -> tuple[str, str]:
        made = number(lambda result: result["ratios"]["x"], "{:.2f} x", reach, **options)
        return made.to_reach(), made.measured(result)

    assert cells(0.8, unit="x peer", at_least=True) == (">= 0.8 x peer", "0.63 x, **missed**")
    assert cells(0.6, unit="x peer", at_least=True) == (">= 0.6 x peer", "0.63 x")
    assert cells(0.62) == ("<= 0.62", "0.63 x, **missed**")
    assert cells(0.63) == ("<= 0.63", "0.63 x")
    assert cells(0.0) == ("0", "0.63 x, **missed**")
    assert cells(lambda result: result["ratios"]["own"], to="its own") == ("its own", "0.63 x")
    assert cells(lambda result: result["ratios"]["own"], to="its own", at_least=True)[1] == "0.63 x, **missed**"
    assert cells(None) == ("", "0.63 x")
    assert number(lambda _: None, "{:.2f}", 0.5).measured(result) == "none"


def test_what_missed_on_recordings_is_marked_for_each_model() -> None:
    def kept(mae: float, pinball: float) -> dict[str, object]:
        ratios = {
            "mae_vs_persistence": mae, "mae_vs_persistence_worst": 0.97, "mae_vs_best_expert_worst": 1.02,
            "pinball_vs_lightgbm": pinball, "request_vs_margin": 0.9, "request_vs_margin_worst": 1.1,
        }  # fmt: skip
        escapes = {
            "30 min or more": {"share_within": 1.0}, "10 to 30 min": {"share_within": None}, "pooled": {"worst_group": 0.018},
        }  # fmt: skip
        return {"ratios": ratios, "escapes": escapes, "rows": [], "commit": "c", "part": "all"}

    results = {"forecast_skill_logo": kept(0.74, 1.05), "forecast_skill": kept(0.74, 1.06)}
    lines = load_bench("figures").skill_table(results).splitlines()
    assert lines[2].endswith("| <= 0.80 (in-sample <= 0.70); <= 1.02 | 0.74; 0.97 | 0.74, **missed**; 0.97 |")
    assert lines[4].endswith("| <= 1.05 | 1.05 | 1.06, **missed** |")
    assert lines[6].endswith("| >= 95 %; >= 95 % | 100.0%; none | 100.0%; none |")
    assert lines[7].endswith("| <= 1.3 % | 1.80%, **missed** | 1.80%, **missed** |")
