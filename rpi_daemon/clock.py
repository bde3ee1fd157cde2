"""Time, passed in: all control runs on CLOCK_MONOTONIC, wall time is a label."""

import time
from typing import Protocol

NS_PER_S = 1_000_000_000
STEP_NS = 500_000_000  # slewing moves the wall clock by 0.5 ms in a second (adjtimex(2)): more than this was a step


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

    def set_utc(self, utc_ns: int) -> None:
        """Somebody sets the wall clock."""
        self._utc_ns = utc_ns


class StepWatch:
    """Sees the wall clock being set: it moves against the monotonic one. A leap second is a step, too."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def look(self, mono_ns: int, utc_ns: int) -> float:
        """By how many seconds it was set since the last look; 0.0 if it was not. Both times are of the same moment."""
        offset_ns = utc_ns - mono_ns
        by_ns = 0 if self._offset_ns is None else offset_ns - self._offset_ns
        self._offset_ns = offset_ns
        return by_ns / NS_PER_S if abs(by_ns) > STEP_NS else 0.0
