"""The driver contracts: a handful of verbs. The core owns time-outs, retries, rate limits and logs."""

from collections.abc import Callable, Sequence
from typing import Protocol

from rpi_daemon.records import (
    ApplyResult,
    CapIdentity,
    CapOutcome,
    CapReading,
    HostReading,
    LimitWrite,
    PduIdentity,
    PduReading,
)

MayWrite = Callable[[LimitWrite], bool]  # whether this write may go out now


def always(_: LimitWrite) -> bool:
    """Nobody forbids a write."""
    return True


class PduDriver(Protocol):
    """A power distribution unit. Says what the wire said, or raises DeviceError / AuthError; never invents a number."""

    async def open(self) -> None:
        """Connect. Third-party libraries are imported here."""

    async def identify(self) -> PduIdentity:
        """Ask the device what it is; raises DeviceError if it is another family than the profile says."""

    async def read(self) -> PduReading:
        """Metering, state and limits of every configured outlet."""

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite = always) -> ApplyResult:
        """Write one batch, read it back on the same connection, report both. Order of `writes` is kept.

        `may_write` is asked about every write immediately before each message that carries it, repetitions included: the
        kill switch may be engaged while a batch is under way. What it forbids is not sent, and its outcome says so.
        """

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class CapDriver(Protocol):
    """One server's own power cap. Says what the wire said, or raises DeviceError / AuthError; never invents a number."""

    async def open(self) -> None:
        """Connect and log in; on an open driver, after trouble: connect again, without a second log-in where it can."""

    async def identify(self) -> CapIdentity:
        """Ask which kind of cap the server has, and between which bounds; raises DeviceError if it has none."""

    async def read(self) -> CapReading:
        """Power now, and the cap as it stands."""

    async def apply(self, cap_w: float | None, may_write: Callable[[], bool] = lambda: True) -> CapOutcome:
        """Set the cap (None: take it off), wait until the server has taken it, read it back. The read-back decides.

        `may_write` is asked immediately before each message that writes, repetitions included.
        """

    async def restore(self, found: CapReading, may_write: Callable[[], bool] = lambda: True) -> CapOutcome:
        """Put a found cap back exactly as it was read."""

    async def close(self) -> None:
        """Log out and let go of the connection; safe to call twice."""


class HostDriver(Protocol):
    """What one load's host says of itself. Says what the wire said, or raises DeviceError / AuthError."""

    async def open(self) -> None:
        """Make ready; nothing is asked yet."""

    async def read(self) -> HostReading:
        """Ask once. What cannot be known, such as a rate at first, is None."""

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class SensorSource(Protocol):
    """A sensor board. Streamed sources give a descriptor (`fileno`), paced ones a feed (see sensors/)."""

    def open(self) -> None:
        """Open the port or file; raises DeviceError."""

    def close(self) -> None:
        """Close it; safe to call twice."""
