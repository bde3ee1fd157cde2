"""What the I/O tasks of PDUs and of servers have in common: an inbox of reports, the wire, waits that can be ended."""

import asyncio
import random
from typing import Generic, TypeVar

from rpi_daemon.clock import Clock

PROBE_S = 1.0  # until a device that does not answer is asked again
PROBE_JITTER = 0.2

Report = TypeVar("Report")


class DeviceTask(Generic[Report]):
    """One device's own task: no other device waits for it, and whoever wants to know of it looks into its inbox."""

    def __init__(self, clock: Clock) -> None:
        self.beat_ns = clock.mono_ns()  # when `run` last went round: at least every `poll_s` and the time on the wire
        self._clock = clock
        self._inbox: list[Report] = []
        self._wake = asyncio.Event()
        self._wire = asyncio.Lock()
        self._stop = False

    def take_reports(self) -> list[Report]:
        """What came in since the last call."""
        reports, self._inbox = self._inbox, []
        return reports

    def inbox(self, report: Report) -> None:
        """Put a report there that came about otherwise: a read at start, what earlier runs knew."""
        self._inbox.append(report)

    def stop(self) -> None:
        """Let `run` end after what it is doing."""
        self._stop = True
        self._wake.set()

    async def _wait(self, seconds: float) -> None:
        """For so long, or until there is something to do."""
        self._wake.clear()
        if self._stop:
            return
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, seconds))
        except TimeoutError:
            return


def jittered(pause_s: float) -> float:
    """Give or take a fifth, so that devices that fell silent together are not asked together."""
    return pause_s * random.uniform(1.0 - PROBE_JITTER, 1.0 + PROBE_JITTER)
