"""Samples lost: 48 channels over the serial path in closed loop for ten minutes, then losses made on purpose and counted.

Absolute figures: the aim is 0 lost, and every lost scan of the injected faults counted. What the board itself says that it
dropped (its FIFO was full, because this machine kept the simulator waiting) stands apart.
"""

import time
from collections.abc import Mapping
from typing import Any

from common import parse_arguments, report
from loop import wait_and_hint

from rpi_daemon.control import ControlClient
from rpi_daemon.demo import Rack, demo_config, demo_folder, running_daemon, simulated_rack

OUTLETS = 48
SECONDS, QUICK_SECONDS = 600.0, 20.0
BOARD = "board-1"
FAULTS = (
    {"fault": "drop_frames", "frames": 7},
    {"fault": "corrupt", "frames": 5},
    {"fault": "garbage", "n_bytes": 200},
)
COUNTED_S = 2.0  # a fault is on the line, and counted, by then


def look(rack: Rack, client: ControlClient) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The board's own account and the daemon's."""
    return rack.ask({"state": True})["boards"][BOARD], client.ask("status")["boards"][0]


def gone(board: Mapping[str, Any]) -> int:
    """Scans that the board sampled and the host cannot have."""
    return int(board["scans_overflowed"] + board["scans_lost"] + board["scans_damaged"])


def main() -> None:
    arguments = parse_arguments(__doc__, seconds=SECONDS)
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    rows: list[dict[str, object]] = []
    with demo_folder(None) as folder:
        config = demo_config(folder, OUTLETS)
        with simulated_rack(config) as rack, running_daemon(config) as (_, client):
            wait_and_hint(rack, client, seconds)
            board, daemon = look(rack, client)
            rows.append(
                {
                    "what": f"{seconds:g} s undisturbed",
                    "samples": daemon["received"],
                    "expected": board["scans_overflowed"],
                    "lost": daemon["lost"],
                }
            )
            verified = client.ask("status")["summary"]
            for fault in FAULTS:
                lost, expected = daemon["lost"], gone(board)
                rack.ask({"board": BOARD, **fault})
                time.sleep(COUNTED_S)
                board, daemon = look(rack, client)
                what = " ".join(str(value) for value in fault.values())
                rows.append({"what": what, "expected": gone(board) - expected, "lost": daemon["lost"] - lost})
    injected = rows[1:]
    ratios = {
        "samples_lost": float(str(rows[0]["lost"])),
        "board_dropped": float(str(rows[0]["expected"])),
        "injected": float(sum(int(str(row["expected"])) for row in injected)),
        "injected_counted": float(sum(int(str(row["lost"])) for row in injected)),
        "writes": float(verified["writes"]),
        "writes_verified": float(verified["writes_verified"]),
    }
    report("samples", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
