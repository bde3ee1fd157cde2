"""The demo's own figures: rises served in advance, limits against static ones, forecast error against persistence; with and without hints."""

import json
import statistics
import subprocess
import sys
from typing import Any

from common import new_parser, report

SECONDS, QUICK_SECONDS = 60.0, 20.0
RUNS = 3  # of each, in turns
SHOWN = (
    "outlets", "samples_total", "samples_lost", "samples_late", "ticks", "writes", "writes_verified", "writes_refused",
    "announced", "rises", "prealloc_share", "request_escape_rate", "limit_escapes", "tick_ms_p50", "tick_ms_p99",
    "cpu_percent", "rss_mb", "static_safe_left", "expert_weights",
)  # fmt: skip


def run(seconds: float, hints: bool) -> dict[str, Any]:
    """A row: one demo, with the work of its loads announced to the daemon or not."""
    command = [sys.executable, "-P", "-m", "rpi_daemon", "demo", "--seconds", str(seconds), "--json"]
    command += [] if hints else ["--no-hints"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    return {
        "hints": hints,
        "limit_vs_static": summary["mean_limit_w"] / summary["mean_static_safe_w"],
        "mae_vs_persistence": summary["forecast_mae_w"] / summary["persistence_mae_w"],
        **{key: summary[key] for key in SHOWN},
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median, lowest and highest of the runs with hints, and of those without."""
    found: dict[str, float | None] = {}
    for key in ("prealloc_share", "limit_vs_static", "mae_vs_persistence", "request_escape_rate"):
        for how, hints in (("", True), ("_no_hints", False)):
            values = [row[key] for row in rows if row["hints"] is hints and row[key] is not None]
            for end, of in (("", statistics.median), ("_lowest", min), ("_highest", max)):
                found[key + how + end] = of(values) if values else None
    return found


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each run; {SECONDS:g} if not given")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"with hints, and as many without; {RUNS} if not given")
    arguments = parser.parse_args()
    seconds, runs = (QUICK_SECONDS, 1) if arguments.quick else (arguments.seconds, arguments.runs)
    rows = [run(seconds, hints) for _ in range(runs) for hints in (True, False)]
    report("demo", rows, ratios(rows), arguments.json, {"seconds": seconds})


if __name__ == "__main__":
    main()
