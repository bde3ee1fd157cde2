"""The demo's own figures: rises served in advance, limits against static ones, forecast error against persistence."""

import json
import subprocess
import sys

from common import parse_arguments, report

SECONDS, QUICK_SECONDS = 60.0, 20.0
SHOWN = (
    "outlets", "samples_total", "samples_lost", "samples_late", "ticks", "writes", "writes_verified", "writes_refused",
    "rises", "limit_escapes", "tick_ms_p50", "tick_ms_p99", "cpu_percent", "rss_mb", "static_safe_left",
    "expert_weights",
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments(__doc__, seconds=SECONDS)
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    command = [sys.executable, "-P", "-m", "rpi_daemon", "demo", "--seconds", str(seconds), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    ratios = {
        "prealloc_share": summary["prealloc_share"],
        "limit_vs_static": summary["mean_limit_w"] / summary["mean_static_safe_w"],
        "mae_vs_persistence": summary["forecast_mae_w"] / summary["persistence_mae_w"],
        "request_escape_rate": summary["request_escape_rate"],
    }
    report("demo", [{key: summary[key] for key in SHOWN}], ratios, arguments.json)


if __name__ == "__main__":
    main()
