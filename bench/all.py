"""Runs every bench, or those named, and keeps each result in bench/results, where the README's figures come from; `--quick` keeps nothing."""

import json
import subprocess
import sys

from common import ROOT, as_kept, new_parser

BENCHES = (
    "ring",
    "window",
    "calibration",
    "frames",
    "forecast",
    "forecast_skill",
    "snmp",
    "silent",
    "failsafe",
    "audit",
    "modbus",
    "jitter",
    "loop",
    "informs",
    "history",
    "retrain",
    "demo",
    "samples",
)
RESULTS = ROOT / "bench" / "results"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="BENCH", help=f"of {', '.join(BENCHES)}; all if none is named")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(BENCHES)):
        parser.error(f"no bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    failed = []
    for bench in arguments.names or BENCHES:
        command = [
            sys.executable,
            str(ROOT / "bench" / f"{bench}.py"),
            "--json",
            *(["--quick"] if arguments.quick else []),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        table, _, last = done.stdout.rstrip().rpartition("\n")
        print(table, end="\n\n", flush=True)
        if done.returncode != 0:
            failed.append(bench)
        elif not arguments.quick:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{bench}.json").write_text(as_kept(json.loads(last)) + "\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
