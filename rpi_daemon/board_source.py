"""The kinds of sensor boards: serial, Linux IIO, or inside the daemon; what each does in its own way."""

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

import structlog

from rpi_daemon._fastpath.core import BoardDescription, Ring, Sampler, parse_description
from rpi_daemon._fastpath.memory import anonymous
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.drivers.sensors.iio import IioOptions, IioSource
from rpi_daemon.drivers.sensors.paced import PlantSource
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource
from rpi_daemon.errors import DeviceError, RpiError

RATE_HZ = 1000
DESCRIPTION_S = 3.0  # a serial board describes itself once a second
REOPEN_S = 0.3
FEED_S = 4  # capacity of a paced board's feed

log = structlog.get_logger(__name__)


class BoardSource(Protocol):
    """`start`, then `describe`, then `maintain` once a tick, then `close` once the sampler has stopped."""

    @property
    def sees_losses(self) -> bool:
        """Whether scans that are lost on the way leave a gap that is counted."""

    def start(self, sampler: Sampler, *, may_wait: bool = False) -> None:
        """Open it and start sampling; raises DeviceError or LockedError.

        `may_wait`: a board that is plugged into a port may come later; `maintain` takes it then.
        """

    async def describe(self, sampler: Sampler) -> BoardDescription:
        """What the board is; raises DeviceError if it does not say."""

    def maintain(self, sampler: Sampler) -> BoardDescription | None:
        """Keep it going, never blocking; returns what the board says of itself, when it said so anew."""

    def unplug(self, seconds: float) -> None:
        """Take it for unplugged: a drill. `maintain` opens it again after that. Raises RpiError where there is no plug."""

    def close(self) -> None:
        """Let go of the device."""


class Reopening:
    """Opens a device again after it went away, beside the control loop."""

    def __init__(self, board: str, source: SerialSource | IioSource, clock: Clock) -> None:
        self._board = board
        self._source = source
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._retry_ns = 0
        self._absent_until_ns = 0  # a drill
        self._defect = ""  # the newest that was told
        self._silence = -1  # a pipe at its end, in place of a device that will never say that it is gone

    def maintain(self, sampler: Sampler, present: Callable[[], bool] = lambda: True) -> None:
        """Look every 0.3 s; `present`: whether a device that shows no hang-up is still there."""
        now_ns = self._clock.mono_ns()
        if now_ns < self._absent_until_ns:
            if sampler.connected():
                self._hang_up(sampler)
            return
        if now_ns < self._retry_ns or (self._task and not self._task.done()):
            return
        if sampler.connected():
            if not present():
                self._hang_up(sampler)
            return
        self._retry_ns = now_ns + round(REOPEN_S * NS_PER_S)
        self._task = asyncio.create_task(self._reopen(sampler))

    def unplug(self, seconds: float) -> None:
        self._absent_until_ns = self._clock.mono_ns() + round(seconds * NS_PER_S)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._end_silence()

    def silence(self) -> int:
        """A descriptor that is at its end: what an unplugged device looks like."""
        self._end_silence()
        self._silence, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(writer)
        return self._silence

    def _hang_up(self, sampler: Sampler) -> None:
        sampler.attach(self.silence())  # from here on the device's descriptor is free

    def _end_silence(self) -> None:
        if self._silence >= 0:
            os.close(self._silence)
        self._silence = -1

    async def _reopen(self, sampler: Sampler) -> None:
        try:
            self._end_silence()
            self._source.close()
            await asyncio.to_thread(self._source.open)
            sampler.attach(self._source.fileno())
        except RpiError as error:
            log.debug("board.absent", board=self._board, error=str(error))
        except Exception as error:  # noqa: BLE001  a defect of ours costs this board, which is asked again, and no other
            if repr(error) != self._defect:
                log.error("board.defect", board=self._board, error=repr(error))
            self._defect = repr(error)
        else:
            self._defect = ""
            log.info("board.back", board=self._board)


class SerialBoard:
    """A board that speaks docs/sensor-board-protocol.md on a serial port."""

    sees_losses = True

    def __init__(self, board: str, options: SerialOptions, board_id: int, clock: Clock) -> None:
        self._board = board
        self._options = options
        self._board_id = board_id
        self._clock = clock
        self._source = SerialSource(options)
        self._reopening = Reopening(board, self._source, clock)
        self._payload: bytes | None = None

    def start(self, sampler: Sampler, *, may_wait: bool = False) -> None:
        try:
            self._source.open()
            descriptor = self._source.fileno()
        except DeviceError:
            if not may_wait:
                raise
            descriptor = self._reopening.silence()
        sampler.start_streamed(descriptor)

    async def describe(self, sampler: Sampler) -> BoardDescription:
        """Wait for the board's description frame."""
        deadline_ns = self._clock.mono_ns() + round(DESCRIPTION_S * NS_PER_S)
        while (payload := sampler.description()) is None:
            if self._clock.mono_ns() > deadline_ns:
                raise DeviceError(
                    f"board {self._board!r} on {self._options.port}: no description frame in {DESCRIPTION_S:g} s"
                    f" ({sampler.counters()['bytes_in']} bytes came in); is it a sensor board with"
                    f" board_id = {self._board_id}, and is baud = {self._options.baud} its line rate?"
                )
            await asyncio.sleep(0.02)
        self._payload = payload
        return parse_description(payload)

    def maintain(self, sampler: Sampler) -> BoardDescription | None:
        self._reopening.maintain(sampler)
        payload = sampler.description()
        if payload is None or payload == self._payload:
            return None
        self._payload = payload
        return parse_description(payload)

    def unplug(self, seconds: float) -> None:
        self._reopening.unplug(seconds)

    def close(self) -> None:
        self._reopening.close()
        self._source.close()


class IioBoard:
    """A device of Linux Industrial I/O whose driver has a buffer."""

    def __init__(self, board: str, options: IioOptions, clock: Clock) -> None:
        self._board = board
        self._source = IioSource(options)
        self._reopening = Reopening(board, self._source, clock)
        self._described: BoardDescription | None = None
        self._records: object = None

    @property
    def sees_losses(self) -> bool:
        return self._source.stamped

    def start(self, sampler: Sampler, *, may_wait: bool = False) -> None:
        self._source.open()
        self._records = self._source.records
        sampler.start_streamed(self._source.fileno(), self._source.layout)

    async def describe(self, sampler: Sampler) -> BoardDescription:
        self._described = self._source.description
        return self._described

    def maintain(self, sampler: Sampler) -> BoardDescription | None:
        self._reopening.maintain(sampler, self._source.present)
        if self._source.records != self._records:
            raise DeviceError(f"board {self._board!r}: its records have another layout now; start the daemon again")
        if self._source.description == self._described:
            return None
        self._described = self._source.description
        return self._described

    def unplug(self, seconds: float) -> None:
        self._reopening.unplug(seconds)

    def close(self) -> None:
        self._reopening.close()
        self._source.close()


class PacedBoard:
    """A board inside the daemon: simulated, or a recording; its scans go out at the host's clock."""

    sees_losses = True

    def __init__(self, source: PlantSource) -> None:
        self._source = source
        n_channels, capacity = len(source.plant.channels), FEED_S * RATE_HZ
        memory = anonymous(Ring.bytes_needed(n_channels, capacity))
        self._feed = Ring(memory, n_channels=n_channels, capacity=capacity, rate_hz=RATE_HZ)

    def start(self, sampler: Sampler, *, may_wait: bool = False) -> None:
        self._source.fill(self._feed, 0)
        sampler.start_paced(self._feed, NS_PER_S // RATE_HZ)

    async def describe(self, sampler: Sampler) -> BoardDescription:
        return self._source.description

    def maintain(self, sampler: Sampler) -> BoardDescription | None:
        self._source.fill(self._feed, sampler.forwarded())
        return None

    def unplug(self, seconds: float) -> None:
        raise RpiError("this board is inside the daemon, a simulation or a recording: it has no plug to pull")

    def close(self) -> None:
        """Nothing to let go of."""
