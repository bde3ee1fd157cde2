"""19: beside stress-ng the daemon keeps ticking or holds, counts what is lost, is not restarted and comes back; its sampler goes first.

Late is measured where the sampler alone answers for it: at its own clock's deadlines in the daemon, and on frames that a
board of real-time priority writes on time. The simulated rack's boards are starved with everybody else, so how late their
scans come is not the daemon's; that none of them is lost uncounted is.

A serial port is measured without other load only. Its bytes pass through a worker thread of the kernel, of normal priority:
beside stress-ng it kept frames that were written on time for up to 0.37 s, while a pipe kept none for 1 ms.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_figures import Figures
from scenario_rack import Daemon, Place, RackProcess, Status, running, unaccounted
from systemd_box import until

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, Sampler
from rpi_daemon.config.schema import Sampling

pytestmark = pytest.mark.peers
LONG = os.environ.get("RPI_FIGURES") == "1"  # the figure's own run; CI's is shorter
STRESS_S = 20 if LONG else 6
TIMELY_SCANS = 20_000 if LONG else 3_000
TIMELY_BOARD = Path(__file__).resolve().parents[1] / "timely_board.py"
N_CHANNELS = 7  # of the timely board
PRIORITY = Sampling().fifo_priority

# a board inside the daemon: its sampler thread serves a deadline of the host's clock each millisecond
OWN_CLOCK = """
[[board]]
id = "own-clock"
driver = "simulated"
channels = ["current:pdu-b/7", "voltage:L1"]

[[outlet]]
pdu = "pdu-b"
numbers = "7"
load = "c-{n}"
rating_w = 700.0
static_safe_w = 550.0
"""


def stress(seconds: float) -> "subprocess.Popen[str]":
    """A busy process for each processor, and two that wake each other; ends by itself."""
    stress_ng = shutil.which("stress-ng")
    assert stress_ng, "apt-get install stress-ng"
    command = [stress_ng, "--cpu", "0", "--cpu-method", "matrixprod", "--switch", "1", "--timeout", f"{seconds:.0f}s"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.fault(19)
def test_fault_19_beside_stress_ng(tmp_path: Path, figure: Figures) -> None:
    place = Place(tmp_path)
    path = place.write(forecast=OWN_CLOCK)
    with running(lambda: RackProcess(path)) as rack, running(lambda: Daemon(path)) as daemon:
        daemon.normal()
        lost = unaccounted(daemon, rack)
        before = daemon.status()
        with stress(STRESS_S) as load:
            _, errors = load.communicate(timeout=10 * STRESS_S)
        assert load.returncode == 0, errors
        after = daemon.status()
        daemon.normal()
        assert daemon.status()["watchdog"]["hangs"] == {}
        assert daemon.log("watchdog.withheld") == []
        figure(19, "stress-ng: lost scans that are not counted", abs(unaccounted(daemon, rack) - lost), 0, "scans")
        ticks, seconds = _more(before, after, "ticks"), (after["t_mono_ns"] - before["t_mono_ns"]) / 1e9
        figure(
            19, "stress-ng: ticks of those due", 100.0 * ticks / (10.0 * seconds), 90.0, "%", at_least=True, busy=30.0
        )
        late = 100.0 * _more(before, after, "late") / _more(before, after, "received")
        figure(19, "stress-ng: late > 1 ms, deadlines of the sampler's own clock", late, 0.1, "%", busy=100.0)
        assert daemon.stop() == 0


def _more(before: Status, after: Status, name: str) -> int:
    """Of ticks, or of a counter of the board on the sampler's own clock."""
    then, now = (s["summary"] if name == "ticks" else _own_clock(s) for s in (before, after))
    return int(now[name] - then[name])


def _own_clock(status: Status) -> Status:
    row: Status = next(board for board in status["boards"] if board["id"] == "own-clock")
    return row


@contextlib.contextmanager
def link(kind: str) -> Iterator[tuple[int, int]]:
    """Where a board writes, and where it is read: a pipe hands bytes on at once."""
    if kind == "pipe":
        read, write = os.pipe()
    else:
        write, read = os.openpty()
        tty.setraw(read)
    os.set_blocking(read, False)
    try:
        yield write, read
    finally:
        os.close(write)
        os.close(read)


@pytest.mark.fault(19)
@pytest.mark.parametrize(("kind", "starved"), [("pty", False), ("pipe", True)])
def test_fault_19_what_is_written_on_time_is_read_on_time(kind: str, starved: bool, figure: Figures) -> None:
    """Late against the line through the earliest frames; what the board itself wrote late is taken off."""
    ring = Ring(
        memory.anonymous(Ring.bytes_needed(N_CHANNELS, TIMELY_SCANS)), n_channels=N_CHANNELS, capacity=TIMELY_SCANS
    )
    sampler = Sampler(ring, board_id=1, fifo_priority=PRIORITY, lock_memory=False)
    with contextlib.ExitStack() as stack:
        write, read = stack.enter_context(link(kind))
        board = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-P", str(TIMELY_BOARD), str(write), str(TIMELY_SCANS)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[write],
            )
        )  # fmt: skip
        assert board.stdin is not None
        assert board.stdout is not None
        assert board.stdout.readline() == "ready\n"
        sampler.start_streamed(read)
        stack.callback(sampler.stop)
        if starved:
            load = stack.enter_context(stress(TIMELY_SCANS / 1000.0 + 2.0))
            stack.callback(load.terminate)
            time.sleep(0.5)  # its workers are forked
        board.stdin.write("go\n")
        board.stdin.flush()
        written_late = int(board.stdout.readline())
        # what the last frames wait for is the processor
        until(
            lambda: sum(sampler.counters()[name] for name in ("received", "lost", "corrupt")) >= TIMELY_SCANS,
            "all read",
        )
    counters = sampler.counters()
    assert (counters["received"], counters["lost"], counters["corrupt"]) == (TIMELY_SCANS, 0, 0)
    late = 100.0 * max(0, counters["late"] - written_late) / TIMELY_SCANS
    name = "stress-ng" if starved else "no other load"
    figure(19, f"{name}: late > 1 ms, frames written on time into a {kind}", late, 0.1, "%", busy=100.0)
