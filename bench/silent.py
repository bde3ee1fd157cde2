"""A PDU that falls silent: what it does to the verified writes of the PDU beside it, in the same process.

Two simulated PDUs in processes of their own, a `PduTask` each. The first is handed limits of 24 outlets ten times a second;
the second, once a second, answers and is silent in turns. The ratio is p99 of the first one's writes, silent / answering,
over all turns, the moments in which the second falls silent and comes back included.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
PERIOD_S = 0.1
TURNS, QUICK_TURNS = 24, 4
TURN_S = 5.0
OTHER_EVERY = 10  # periods from one write to the second PDU to the next: its own work must not be what is measured
LIMITS_W = (400.0, 500.0)


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


async def measure(turns: int, turn_s: float = TURN_S) -> dict[bool, list[float]]:
    """How long the first PDU's writes took, ms, while the other one answered (False) and was silent (True)."""
    with simulator() as (port_a, _), simulator() as (port_b, process_b), tempfile.TemporaryDirectory() as folder:
        audit = Audit(Path(folder), SystemClock(), keep_days=1.0)
        audit.open()
        both = [Beside("a", port_a, audit), Beside("b", port_b, audit)]
        for one in both:
            await one.driver.open()
        running = [asyncio.create_task(one.task.run()) for one in both]
        found: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(turns):
            silent = turn % 2 == 1
            await asyncio.to_thread(tell, process_b, {"faults": {"drop": -1} if silent else {}})
            for tick in range(round(turn_s / PERIOD_S)):
                both[0].submit()
                if tick % OTHER_EVERY == 0:
                    both[1].submit()
                await asyncio.sleep(PERIOD_S)
                found[silent] += both[0].took_ms()
        for one in both:
            one.task.stop()
        await asyncio.gather(*running)
        for one in both:
            await one.driver.close()
        audit.close()
    return found


def main() -> None:
    arguments = parse_arguments(__doc__)
    found = asyncio.run(measure(QUICK_TURNS if arguments.quick else TURNS))
    rows = [
        {
            "the other PDU": "silent" if silent else "answers",
            "writes": len(values),
            "p50_ms": float(np.percentile(values, 50)),
            "p99_ms": float(np.percentile(values, 99)),
        }
        for silent, values in found.items()
    ]
    ratios = {
        f"p{q}_silent_vs_answering": float(np.percentile(found[True], q) / np.percentile(found[False], q))
        for q in (50, 99)
    }
    report("silent", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
