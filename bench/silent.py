"""A PDU that falls silent: what it does to the verified writes of the PDU beside it, in the same process.

Two simulated PDUs in processes of their own, a `PduTask` each. The first is handed limits of 24 outlets 25 times a second;
the second, once a second, answers and is silent in turns. A turn in which it is silent begins when it falls silent and ends
when it is found to be back. The ratio is p99 of the first one's writes, silent / answering, over all turns; its 95 % interval
is the bootstrap's over pairs of neighbouring turns. Chance alone shows in the control: every other answering turn against
those between them. The audit is on tmpfs: a disk's own tail (`audit.py`) would hide what is looked for.

`held_ms` is the cause apart from all chance: the most processor time that the second PDU's task took at one time, which is
how long the first one's could have to wait for it.
"""

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import parse_arguments, report

from rpi_daemon.audit import Audit
from rpi_daemon.clock import SystemClock
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint
from rpi_daemon.pdu_task import PduTask
from rpi_daemon.records import Desired, LimitWrite

OUTLETS = 24
PERIOD_S = 0.04
TURNS, QUICK_TURNS = 60, 8  # answering and silent in turns
TURN_S = 2.5
OTHER_EVERY_S = 1.0  # from one write to the second PDU to the next: its own work must not be what is measured
LIMITS_W = (400.0, 500.0)
RESAMPLES = 2000
TMPFS = "/dev/shm"

Turns = list[list[float]]  # what the writes of each turn took, ms


@contextlib.contextmanager
def simulator() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A simulated Raritan PDU; its port and its process."""
    command = [sys.executable, "-P", "-m", "rpi_daemon.drivers.pdu.sim", "--outlets", str(OUTLETS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["port"], process
        finally:
            process.terminate()


def tell(process: subprocess.Popen[str], line: dict[str, object]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    process.stdout.readline()


class Beside:
    """One PDU with its task; what its writes took."""

    def __init__(self, name: str, port: int, audit: Audit) -> None:
        clock = SystemClock()
        endpoint = SnmpEndpoint("127.0.0.1", port, version="2c", community="public", timeout_s=0.25, retries=1)
        self.driver = SnmpPdu(SnmpPduOptions(endpoint, load_profile("raritan_px"), tuple(range(1, OUTLETS + 1))), clock)
        self.task = PduTask(name, self.driver, clock, poll_s=1.0, forbidden=lambda write: None, audit=audit)
        self._clock = clock
        self._turn = 0

    def submit(self) -> None:
        self._turn += 1
        limit_w = LIMITS_W[self._turn % 2]
        now_ns = self._clock.mono_ns()
        writes = tuple(LimitWrite(outlet, limit_w) for outlet in range(1, OUTLETS + 1))
        self.task.submit(Desired(self.task.pdu, now_ns, writes), now_ns)

    def took_ms(self) -> list[float]:
        """From hand-over to the verified end, of every batch since the last call."""
        found = []
        for item in self.task.take_reports():
            verified = [o.t_verified_ns for o in item.result.outcomes if o.t_verified_ns] if item.result else []
            if item.measured_ns is not None and verified:
                found.append((max(verified) - item.measured_ns) / 1e6)
        return found


class Held(Coroutine[Any, Any, None]):
    """A task's coroutine; the processor time of the longest of its steps, in which the loop does nothing else."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self.longest_s = 0.0
        self._work = work

    def send(self, value: Any) -> Any:
        began_s = time.thread_time()
        try:
            return self._work.send(value)
        finally:
            self.longest_s = max(self.longest_s, time.thread_time() - began_s)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        return self._work.__await__()


class Turned:
    """What the first PDU's writes took while the other one answered (False) and was silent (True), turn by turn."""

    def __init__(self) -> None:
        self.took_ms: dict[bool, Turns] = {False: [], True: []}
        self.held_ms = {False: 0.0, True: 0.0}  # the longest step of the other one's task

    def change(self, q: float) -> tuple[float, float, float]:
        """Quantile `q` (0 to 100), silent / answering, and the ends of its 95 % interval."""
        pairs = list(zip(self.took_ms[True], self.took_ms[False], strict=True))
        rng = np.random.default_rng(1)
        drawn = [_ratio([pairs[i] for i in rng.integers(0, len(pairs), len(pairs))], q) for _ in range(RESAMPLES)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return _ratio(pairs, q), float(low), float(high)

    def chance(self, q: float) -> float:
        """The same of answering turns among themselves, every other one."""
        answering = self.took_ms[False]
        return _ratio(list(zip(answering[1::2], answering[::2], strict=False)), q)


def _ratio(pairs: Sequence[tuple[list[float], list[float]]], q: float) -> float:
    above, below = (np.percentile(np.concatenate(turns), q) for turns in zip(*pairs, strict=True))
    return float(above / below)


async def measure(turns: int, turn_s: float = TURN_S) -> Turned:
    """`turns`: in all, an even number."""
    with contextlib.ExitStack() as stack:
        (port_a, _), (port_b, process_b) = (stack.enter_context(simulator()) for _ in range(2))
        audit = Audit(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=TMPFS))), SystemClock(), keep_days=1.0)
        audit.open()
        both = [Beside("a", port_a, audit), Beside("b", port_b, audit)]
        for one in both:
            await one.driver.open()
        held = Held(both[1].task.run())
        running = [asyncio.create_task(both[0].task.run()), asyncio.create_task(held)]
        gc.freeze()
        gc.disable()  # as the daemon's loop
        stack.callback(gc.enable)
        found = Turned()
        for turn in range(turns):
            silent = turn % 2 == 1
            await asyncio.to_thread(tell, process_b, {"faults": {"drop": -1} if silent else {}})
            await _take_turn(both, held, found, silent, turn_s)
        for one in both:
            one.task.stop()
        await asyncio.gather(*running)
        for one in both:
            await one.driver.close()
        audit.close()
    return found


async def _take_turn(both: Sequence[Beside], held: Held, found: Turned, silent: bool, turn_s: float) -> None:
    """One turn; until the second PDU is found to be back, it still counts to the silent turn before."""
    first, second = both
    found.took_ms[silent].append([])
    loop = asyncio.get_running_loop()
    due_s = other_s = loop.time()
    ends_s = due_s + turn_s
    while due_s < ends_s or not found.took_ms[silent][-1]:  # on a starved machine one write may take as long
        first.submit()
        if due_s >= other_s:
            second.submit()
            other_s += OTHER_EVERY_S
        due_s = max(due_s + PERIOD_S, loop.time())
        await asyncio.sleep(due_s - loop.time())
        away = silent or not second.task.reachable
        if away and not silent:
            ends_s = due_s + turn_s
        found.took_ms[away][-1] += first.took_ms()
        found.held_ms[away] = max(found.held_ms[away], 1e3 * held.longest_s)
        held.longest_s = 0.0


def main() -> None:
    arguments = parse_arguments(__doc__)
    found = asyncio.run(measure(QUICK_TURNS if arguments.quick else TURNS))
    rows = []
    for silent, turns in found.took_ms.items():
        took_ms = np.concatenate(turns)
        rows.append(
            {
                "the other PDU": "silent" if silent else "answers",
                "writes": len(took_ms),
                "p50_ms": float(np.percentile(took_ms, 50)),
                "p99_ms": float(np.percentile(took_ms, 99)),
                "held_ms": found.held_ms[silent],
            }
        )
    ratios = {}
    for q in (50, 99):
        name = f"p{q}_silent_vs_answering"
        ratios[name], ratios[f"{name}_low"], ratios[f"{name}_high"] = found.change(q)
        ratios[f"p{q}_answering_vs_itself"] = found.chance(q)
    report("silent", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
