"""Time, passed in: all control runs on CLOCK_MONOTONIC, wall time is a label."""

import time
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """What the code may ask about time."""

    def mono_ns(self) -> int: ...

    def utc_ns(self) -> int: ...


class SystemClock:
    """The host's clocks."""

    def mono_ns(self) -> int:
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        return time.time_ns()


class ManualClock:
    """Virtual time, for tests and replay: it moves when it is told to."""

    def __init__(self, mono_ns: int = 0, utc_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._mono_ns = mono_ns
        self._utc_ns = utc_ns

    def mono_ns(self) -> int:
        return self._mono_ns

    def utc_ns(self) -> int:
        return self._utc_ns

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        step_ns = round(seconds * NS_PER_S)
        self._mono_ns += step_ns
        self._utc_ns += step_ns
