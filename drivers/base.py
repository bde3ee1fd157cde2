"""The driver contracts: a handful of verbs. The core owns time-outs, retries, rate limits and logs."""

from collections.abc import Sequence
from typing import Protocol

from rpi_daemon.records import ApplyResult, LimitWrite, PduIdentity, PduReading


class PduDriver(Protocol):
    """A power distribution unit. Says what the wire said, or raises DeviceError / AuthError; never invents a number."""

    async def open(self) -> None:
        """Connect. Third-party libraries are imported here."""

    async def identify(self) -> PduIdentity:
        """Ask the device what it is; raises DeviceError if it is another family than the profile says."""

    async def read(self) -> PduReading:
        """Metering, state and limits of every configured outlet."""

    async def apply(self, writes: Sequence[LimitWrite]) -> ApplyResult:
        """Write one batch, read it back on the same connection, report both. Order of `writes` is kept."""

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""


class SensorSource(Protocol):
    """A sensor board. Streamed sources give a descriptor (`fileno`), paced ones a feed (see sensors/)."""

    def open(self) -> None:
        """Open the port or file; raises DeviceError."""

    def close(self) -> None:
        """Close it; safe to call twice."""
