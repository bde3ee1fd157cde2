"""Which share of a decoder's branches its inputs took: coverage.py for Python, gcov for C and for what Cython makes of it.

Of the C that Cython makes a branch counts where the source decides: `if`, `while`, `for`, comparisons chained by `and`/`or`. What Cython
adds (reference counts, unpacking, parsing of arguments, tests for an exception that a call may have raised) is not the decoder's, and is left out.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.target import Target

ROOT = Path(__file__).parents[2]
MARK = re.compile(r'^\s*/\* "_fastpath/(\w+\.pxi)":(\d+)')
DECISION = re.compile(r"\b(if|while|for|switch|case)\b")
ADDED = re.compile(
    r"__PYX_ERR|__Pyx_RefNanny|Py_(X?DECREF|INCREF)|__Pyx_X?(DECREF|GOTREF|GIVEREF)|unlikely\(!__pyx_t|PyErr_Occurred|CYTHON_|PyMethod_Check"
    r"|__pyx_kwds_len|__pyx_nargs|__pyx_temp|values\[|== Py_None"
    r"|CheckExact|__pyx_cur_scope|\bsize (!=|>|>=) |__Pyx_Iter|index=0|\bitem = |exc_type|likely\(!__pyx_t"
)
DEFINITION = re.compile(r"^(?:cdef|cpdef|def)\b.*?(\w+)\(")


def build(folder: Path) -> Path:
    """The compiled part, with counters of branches."""
    c_file, library = folder / "core.c", folder / "core.so"
    subprocess.run([sys.executable, "-m", "cython", "-3", ROOT / "_fastpath" / "core.pyx", "-X", "boundscheck=False",
                    "-X", "wraparound=False", "-o", c_file], check=True)  # fmt: skip
    subprocess.run(["gcc", "-O0", "--coverage", "-std=gnu11", "-fPIC", "-shared", "-w", f"-I{sysconfig.get_path('include')}",
                    f"-I{ROOT / '_fastpath'}", c_file, "-o", library, "-lm", "-lpthread"], check=True, cwd=folder)  # fmt: skip
    return library


def parts(target: Target) -> dict[str, list[str]]:
    """Source file -> the beginnings of the functions that count; empty: all of them."""
    found: dict[str, list[str]] = {}
    for source in target.sources:
        file, _, prefix = source.partition(":")
        found.setdefault(file, []).extend([prefix] if prefix else [])
    return found


def measured(target: Target, inputs: Path) -> dict[str, dict[str, Any]]:
    """Per source file: branches, those taken, and the lines where one was not."""
    found: dict[str, dict[str, Any]] = {}
    wanted = parts(target)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        python = [file for file in wanted if file.endswith(".py")]
        if python:
            document = run_python(target, inputs, folder)
            found |= {file: of_python(document, file, wanted[file]) for file in python}
        if target.compiled:
            counted = run_compiled(target, inputs, folder)
            found |= {file: of_compiled(counted, folder, file, wanted[file]) for file in wanted if file not in python}
    return found


def run_python(target: Target, inputs: Path, folder: Path) -> Any:
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data")}
    command = [sys.executable, "-P", "-m", "coverage"]
    subprocess.run([*command, "run", "--branch", f"--source={','.join(target.modules)}", "-m", "fuzz.replay", target.name, inputs],
                   env=environment, check=True, capture_output=True)  # fmt: skip
    subprocess.run([*command, "json", "-q", "-o", folder / "coverage.json"], env=environment, check=True)
    return json.loads((folder / "coverage.json").read_text())["files"]


def of_python(files: Any, file: str, prefixes: list[str]) -> dict[str, Any]:
    document = next(value for path, value in files.items() if path.endswith(file))
    functions = [
        part for name, part in document["functions"].items()
        if not prefixes or any(name.startswith(prefix) or name.split(".")[-1].startswith(prefix) for prefix in prefixes)
    ]  # fmt: skip
    return {
        "branches": sum(part["summary"]["num_branches"] for part in functions),
        "taken": sum(part["summary"]["covered_branches"] for part in functions),
        "not_taken": sorted({line for part in functions for line, _ in part["missing_branches"]}),
    }


def run_compiled(target: Target, inputs: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """gcov's lines by file."""
    core = build(folder)
    subprocess.run(
        [sys.executable, "-P", "-m", "fuzz.replay", target.name, inputs, core], check=True, capture_output=True
    )
    data = next(folder.glob("*.gcda"))
    subprocess.run(
        ["gcov", "--json-format", "--branch-probabilities", data.name], check=True, cwd=folder, capture_output=True
    )
    with gzip.open(next(folder.glob("*.gcov.json.gz")), "rt") as report:
        return {Path(entry["file"]).name: entry["lines"] for entry in json.load(report)["files"]}


def of_compiled(
    counted: dict[str, list[dict[str, Any]]], folder: Path, file: str, prefixes: list[str]
) -> dict[str, Any]:
    name = Path(file).name
    lines = dict(
        of_header(counted[name], prefixes)
        if name.endswith(".h")
        else of_cython(counted["core.c"], folder, name, prefixes)
    )
    return {
        "branches": sum(len(branches) for branches in lines.values()),
        "taken": sum(count > 0 for branches in lines.values() for count in branches),
        "not_taken": sorted(line for line, branches in lines.items() if 0 in branches),
    }


def of_header(lines: list[dict[str, Any]], prefixes: list[str]) -> Iterator[tuple[int, list[int]]]:
    for line in lines:
        if line["branches"] and (not prefixes or any(line.get("function_name", "").startswith(p) for p in prefixes)):
            yield line["line_number"], [branch["count"] for branch in line["branches"]]


def of_cython(
    lines: list[dict[str, Any]], folder: Path, name: str, prefixes: list[str]
) -> Iterator[tuple[int, list[int]]]:
    """Branches of the C lines, by the line of the source that they stand for."""
    text = (folder / "core.c").read_text().splitlines()
    function_of = functions(ROOT / "_fastpath" / name)
    stands_for: dict[int, int] = {}
    now = 0
    for number, line in enumerate(text, 1):
        if (mark := MARK.match(line)) is not None:
            now = int(mark[2]) if mark[1] == name else 0
        elif line.startswith("  /* function exit code */") or re.match(r'^/\* "', line):
            now = 0
        stands_for[number] = now
    sums: dict[int, list[int]] = {}
    for line in lines:
        place, code = stands_for.get(line["line_number"], 0), text[line["line_number"] - 1]
        counts = [branch["count"] for branch in line["branches"]]
        decides = bool(counts) and DECISION.search(code) is not None and ADDED.search(code) is None
        if place and decides and any(function_of.get(place, "").startswith(prefix) for prefix in prefixes or ("",)):
            sums.setdefault(place, []).extend(counts)
    yield from sums.items()


def functions(source: Path) -> dict[int, str]:
    """Line -> the function around it."""
    found, name = {}, ""
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if (definition := DEFINITION.match(line)) is not None:
            name = definition[1]
        elif line and not line[0].isspace() and not line.startswith(("#", ")")):
            name = ""
        found[number] = name
    return found
