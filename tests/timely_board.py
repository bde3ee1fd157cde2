"""A board that is not starved with the daemon: `python timely_board.py FD SCANS` writes a frame a millisecond, at its deadline.

It says `ready`, waits for a line, and ends in how many of its frames it wrote more than 1 ms late itself. SCHED_FIFO, above
the sampler, where permitted; all frames are made before, so that only sleeping and one write are left to do.
"""

import contextlib
import os
import sys
import time

import numpy as np

from rpi_daemon.drivers.sensors.board_sim import pack_data

PRIORITY = 90
PERIOD_NS = LATE_NS = 1_000_000
N_CHANNELS, WIDTH, TICKS_PER_SCAN = 7, 16, 1000
HEAD_START_NS = 20_000_000


def frames(n: int) -> list[bytes]:
    """A scan each."""
    counts = np.arange(N_CHANNELS, dtype=np.int32)[None]
    return [
        pack_data(counts, width=WIDTH, board_id=1, boot_id=1, index=k, ticks=k * TICKS_PER_SCAN, status=0, overflow=0)
        for k in range(n)
    ]


def write_on_time(fd: int, ready: list[bytes]) -> int:
    """How many were late already when they were written."""
    late = 0
    deadline_ns = time.monotonic_ns() + HEAD_START_NS
    for frame in ready:
        time.sleep(max(0, deadline_ns - time.monotonic_ns()) / 1e9)
        late += time.monotonic_ns() - deadline_ns > LATE_NS
        os.write(fd, frame)
        deadline_ns += PERIOD_NS
    return late


def main() -> None:
    fd, scans = map(int, sys.argv[1:])
    ready = frames(scans)
    with contextlib.suppress(PermissionError):  # what it writes late it says
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    print("ready", flush=True)
    sys.stdin.readline()
    print(write_on_time(fd, ready), flush=True)


if __name__ == "__main__":
    main()
