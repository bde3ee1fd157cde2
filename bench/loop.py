"""The whole loop on real processes: newest sample to verified write, CPU and memory by channels, cold start to STATIC_SAFE.

Absolute figures, there is no alternative to compare with: `rpi-daemon run` against `rpi-daemon sim` over a pty and loopback
UDP. Half of the time to a verified write is the simulated PDU's own (pysnmp, one message after the other).
"""

import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import parse_arguments, report

from rpi_daemon.control import ControlClient
from rpi_daemon.demo import Rack, demo_config, demo_folder, pass_on_hints, running_daemon, simulated_rack

SIZES = (24, 48, 96)  # outlets, a current channel each; three voltages more on each board
REPORTED = 48
STARTS = 5
ASK_S = 1.0
SETTLE_S = 5.0  # caches fill, the forecast begins


def wait_and_hint(rack: Rack, client: ControlClient, seconds: float) -> None:
    """Hand the announced work over, as a job scheduler would, for so long."""
    end = time.monotonic() + seconds
    while (left_s := end - time.monotonic()) > 0.0:
        pass_on_hints(rack, client)
        time.sleep(min(ASK_S, left_s))


def cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads, s (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(outlets: int, seconds: float) -> Mapping[str, Any]:
    """A row: one run in closed loop."""
    with demo_folder(None) as folder:
        config = demo_config(folder, outlets)
        with simulated_rack(config) as rack, running_daemon(config) as (daemon, client):
            wait_and_hint(rack, client, SETTLE_S)
            begin_s, used_s = time.monotonic(), cpu_s(daemon.pid)
            wait_and_hint(rack, client, seconds)
            cpu_percent = 100.0 * (cpu_s(daemon.pid) - used_s) / (time.monotonic() - begin_s)
            status = client.ask("status")
            summary = status["summary"]
    keys = ("samples_total", "samples_lost", "samples_late", "ticks", "tick_ms_p50", "tick_ms_p99", "lateness_us_p99")
    writes = ("write_batches", "write_ms_p50", "write_ms_p99", "writes", "writes_verified", "rss_mb", "raw_ring_mb")
    return {
        "outlets": outlets,
        "channels": outlets + 3 * len(status["boards"]),
        "cpu_percent": cpu_percent,
        **{key: summary[key] for key in (*keys, *writes)},
    }


def cold_start_s() -> float:
    """Exec of the daemon to STATIC_SAFE verified on a PDU that held other limits; program files are in the page cache."""
    with demo_folder(None) as folder:
        config = demo_config(folder, REPORTED)
        with simulated_rack(config), running_daemon(config) as (_, client):
            return float(client.ask("status")["static_safe_verified_s"])


def main() -> None:
    arguments = parse_arguments(__doc__)
    seconds, n_starts = (10.0, 2) if arguments.quick else (60.0, STARTS)
    starts = [cold_start_s() for _ in range(n_starts)]
    rows = [loaded(outlets, seconds) for outlets in SIZES]
    chosen = rows[SIZES.index(REPORTED)]
    ratios = {
        "cpu_percent_48": chosen["cpu_percent"],
        "rss_mb_48": chosen["rss_mb"],
        "tick_ms_p99_48": chosen["tick_ms_p99"],
        "write_ms_p50": chosen["write_ms_p50"],
        "write_ms_p99": chosen["write_ms_p99"],
        "cold_start_s": statistics.median(starts),
    }
    rows.append({"outlets": REPORTED, "cold_starts_s": [round(s, 3) for s in starts]})
    report("loop", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
