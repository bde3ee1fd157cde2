"""What every bench script shares: the machine it ran on, medians of interleaved rounds, one way to report."""

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def machine() -> dict[str, str | int | None]:
    """The machine in words: a figure means nothing without it."""
    models = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith(("model name", "Model"))]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": f"{os.getloadavg()[0]:.2f}",
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def commit() -> str:
    """Short hash of the checked-out commit, with `+` where files differ from it; `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median of theirs / ours, round by round: rounds are interleaved, so that a slow moment of the machine hits both."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """With `--json` and `--quick`, which all benches take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="short form of a long bench, for a first look")
    return parser


def parse_arguments(description: str | None, *, seconds: float | None = None) -> argparse.Namespace:
    """`--json` and `--quick` for all, `--seconds` where a bench runs as long as asked."""
    parser = new_parser(description)
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help=f"how long it runs; {seconds:g} if not given"
        )
    return parser.parse_args()


def report(
    bench: str,
    rows: Sequence[Mapping[str, object]],
    ratios: Mapping[str, float | None],
    as_json: bool,
    more: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Print rows as a table, then the ratios; with `as_json` the whole as one JSON object on the last line.

    A ratio that could not be made is None. `more` goes into the object; it may replace the rows by longer ones.
    """
    result: dict[str, object] = {
        "bench": bench,
        "commit": commit(),
        "machine": machine(),
        "rows": [dict(row) for row in rows],
        "ratios": {name: None if value is None else round(value, 4) for name, value in ratios.items()},
        **(more or {}),
    }
    print(f"{bench} at {result['commit']} on {result['machine']}")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for name, value in ratios.items():
        print(f"{name} = {'none' if value is None else format(value, '.3g')}")
    if as_json:
        print(json.dumps(result))
    return result


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def as_kept(result: Mapping[str, object]) -> str:
    """JSON as results are kept: a line for each member, and for each row; without what a row says of every source."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list) and value:
            body = "[\n    " + ",\n    ".join(json.dumps(_short(item)) for item in value) + "\n  ]"
        else:
            body = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}"


def _short(item: object) -> object:
    return {key: value for key, value in item.items() if key != "by_source"} if isinstance(item, dict) else item
