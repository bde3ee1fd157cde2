"""Event loops of tests that a machine which stands still does not hurry: their time advances only while they look.

A server and its client of one test share one process. Where that is stopped for half a second (by a hypervisor, another
process, a disk), both are, but a time-out of 0.3 s has passed: what the test asks for is then another thing than it says.
"""

import asyncio
import selectors
import time

from rpi_daemon.clock import NS_PER_S, SystemClock

SLICE_S = 0.005  # of one wait
STEP_S = 0.01  # at most, from one look to the next: what a callback may take, and a wait be late


class Slices(selectors.DefaultSelector):
    """Waits in slices, with a clock on which no slice, and nothing between two of them, takes longer than `STEP_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = self._seen_s = time.monotonic()

    def now_s(self) -> float:
        seen_s = time.monotonic()
        self._now_s += min(seen_s - self._seen_s, STEP_S)
        self._seen_s = seen_s
        return self._now_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0.0:
            return super().select(timeout)
        end_s = self.now_s() + timeout
        while True:
            events = super().select(min(SLICE_S, max(0.0, end_s - self._now_s)))
            if self.now_s() >= end_s or events:
                return events


def unhurry() -> None:
    """Every loop that this process makes from now on."""
    selectors.DefaultSelector = Slices
    asyncio.SelectorEventLoop.time = lambda loop: loop._selector.now_s()


class LoopClock(SystemClock):
    """The running loop's time, for what is timed by it and by a clock."""

    def mono_ns(self) -> int:
        return round(asyncio.get_running_loop().time() * NS_PER_S)
