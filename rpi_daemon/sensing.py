"""A sensor board from its configuration to its windows: ring memory, sampler, port, re-plug, window kernel."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from rpi_daemon._fastpath.core import BoardDescription, Ring, Sampler, WindowKernel, parse_description
from rpi_daemon._fastpath.memory import anonymous, shared_file
from rpi_daemon.calibration import Correction, correction, load_calibration, own_word
from rpi_daemon.calibration_fit import Sensor
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.schema import Board, Config, OutletRow, Rack, Sampling
from rpi_daemon.drivers.sensors.paced import PlantSource
from rpi_daemon.drivers.sensors.replay import ReplaySource
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource
from rpi_daemon.drivers.sensors.simulated import SimulatedSource
from rpi_daemon.errors import DeviceError, RpiError
from rpi_daemon.features import BoardSetup

RATE_HZ = 1000
NOTIFY_EVERY = 100  # scans a window hop
DESCRIPTION_S = 3.0  # a board describes itself once a second
REOPEN_S = 0.3
FEED_S = 4  # capacity of a paced board's feed

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which channels of a board measure which outlets of the rack."""

    outlets: tuple[int, ...]  # rack indices
    channels: tuple[tuple[int, int | tuple[int, int], float], ...]  # (current, voltage or (plus, minus) or -1, sign)


def wiring(board: Board, rows: Sequence[OutletRow]) -> Wiring:
    """Current channel and voltage of every outlet that the board measures; -1 where it has no such voltage."""
    place = {channel: i for i, channel in enumerate(board.channels)}
    currents = board.currents()
    outlets: list[int] = []
    channels: list[tuple[int, int | tuple[int, int], float]] = []
    for i, row in enumerate(rows):
        if row.id not in currents:
            continue
        current, turned = currents[row.id]
        volts = [place.get(f"voltage:{phase}", -1) for phase in row.phases]
        voltage: int | tuple[int, int] = -1 if -1 in volts else volts[0] if len(volts) == 1 else (volts[0], volts[1])
        outlets.append(i)
        channels.append((current, voltage, -1.0 if turned else 1.0))
    return Wiring(tuple(outlets), tuple(channels))


def sensors(board: Board, rows: Sequence[OutletRow], description: BoardDescription) -> tuple[Sensor, ...]:
    """Every channel of a board as a calibration sees it: the board's own word, and what the configuration makes of it."""
    wired = wiring(board, rows)
    of_channel = {current: (voltage, sign) for current, voltage, sign in wired.channels}
    found = []
    for i, (channel, text) in enumerate(zip(description.channels, board.channels, strict=True)):
        voltage, sign = of_channel.get(i, (-1, 1.0))
        found.append(
            Sensor(
                number=i + 1,
                kind=channel.kind,
                name=text if text == "unused" else text.split(":")[1],
                scale=channel.scale,
                delay_ns=-float(channel.skew_ns),
                full_scale_counts=channel.full_scale_counts,
                voltage=voltage if isinstance(voltage, tuple) else (voltage,) if voltage >= 0 else (),
                sign=sign,
            )
        )
    return tuple(found)


def board_setup(
    ring: Ring, description: BoardDescription, wired: Wiring, correction: Correction, dc: bool, first: int = 0
) -> BoardSetup:
    """The window kernel for a board that described itself; no window before scan `first`.

    An outlet is calibrated when its current is, and every voltage that it has; nothing is said of it where no channel is.
    """
    kernel = WindowKernel(
        len(description.channels),
        outlets=wired.channels,
        gain=correction.gain,
        offset_counts=correction.offset_counts,
        delay_ns=correction.delay_ns,
        full_scale_counts=[channel.full_scale_counts for channel in description.channels],
        rate_hz=description.rate_hz,
        dc=dc,
    )
    used = [(c, *(v if isinstance(v, tuple) else (v,))) for c, v, _ in wired.channels]
    uncalibrated = tuple(not all(correction.calibrated[c] for c in channels if c >= 0) for channels in used)
    return BoardSetup(
        ring=ring,
        kernel=kernel,
        outlets=np.array(wired.outlets, dtype=np.int64),
        first=first,
        uncalibrated=uncalibrated if any(correction.calibrated) else (),
    )


class BoardLink:
    """One board over a serial port. `open`, then `describe`, then `maintain` once a tick, then `close`."""

    def __init__(
        self,
        board: Board,
        sampling: Sampling,
        rows: Sequence[OutletRow],
        runtime_dir: Path,
        base_dir: Path,
        clock: Clock,
        event_fd: int,
        dc: bool,
    ) -> None:
        self.board = board
        self.wiring = wiring(board, rows)
        self.description: BoardDescription | None = None
        self.calibration_path = base_dir / board.calibration if board.calibration is not None else None
        self.calibration = load_calibration(self.calibration_path) if self.calibration_path is not None else None
        self._expires_ns = round(self.calibration.expires.timestamp() * NS_PER_S) if self.calibration is not None else 0
        self.correction: Correction | None = None  # from `describe` on
        self._clock = clock
        self._dc = dc
        self._source = SerialSource(SerialOptions(port=str(base_dir / (board.port or "")), baud=board.baud))
        n_channels = len(board.channels)
        capacity = round(sampling.raw_ring_s * RATE_HZ)
        self.ring_bytes = Ring.bytes_needed(n_channels, capacity)
        self._ring_path = runtime_dir / f"{board.id}.ring"
        try:
            self.ring = Ring(
                shared_file(self._ring_path, self.ring_bytes),
                n_channels=n_channels,
                capacity=capacity,
                rate_hz=RATE_HZ,
                keep=True,  # the raw history outlives a restart
            )
        except OSError as error:
            raise DeviceError(
                f"{self._ring_path}: {self.ring_bytes / 1e6:.0f} MB for the raw ring: {error.strerror};"
                " make room in daemon.runtime_dir or lower sampling.raw_ring_s"
            ) from None
        self._first = self.ring.head
        self.sampler = Sampler(
            self.ring,
            board_id=board.board_id,
            event_fd=event_fd,
            notify_every=NOTIFY_EVERY,
            fifo_priority=sampling.fifo_priority,
            lock_memory=sampling.lock_memory,
        )
        self._payload: bytes | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._retry_ns = 0

    def open(self) -> None:
        """Open the port and start sampling; raises DeviceError or LockedError."""
        self._source.open()
        self.sampler.start_streamed(self._source.fileno())

    async def describe(self) -> BoardSetup:
        """Wait for the board's description and build its window kernel; raises DeviceError if none comes or it differs."""
        deadline_ns = self._clock.mono_ns() + round(DESCRIPTION_S * NS_PER_S)
        while (payload := self.sampler.description()) is None:
            if self._clock.mono_ns() > deadline_ns:
                raise DeviceError(
                    f"board {self.board.id!r} on {self.board.port}: no description frame in {DESCRIPTION_S:g} s"
                    f" ({self.sampler.counters()['bytes_in']} bytes came in); is it a sensor board with"
                    f" board_id = {self.board.board_id}, and is baud = {self.board.baud} its line rate?"
                )
            await asyncio.sleep(0.02)
        self._payload = payload
        return self._described(parse_description(payload))

    def _described(self, description: BoardDescription) -> BoardSetup:
        self._check(description)
        self.description = description
        self.correction = own_word(description)
        if self.calibration is not None:
            self.correction = correction(self.calibration, description, str(self.calibration_path))
        return board_setup(self.ring, description, self.wiring, self.correction, self._dc, self._first)

    def _check(self, description: BoardDescription) -> None:
        said = self.board.channels
        if description.rate_hz != RATE_HZ:
            raise DeviceError(
                f"board {self.board.id!r} scans at {description.rate_hz} Hz; the daemon needs {RATE_HZ} Hz"
            )
        if len(description.channels) != len(said):
            raise DeviceError(
                f"board {self.board.id!r} has {len(description.channels)} channels, its configuration lists {len(said)}"
            )
        for i, (channel, text) in enumerate(zip(description.channels, said, strict=True), start=1):
            if text != "unused" and text.partition(":")[0] != channel.kind:
                raise DeviceError(
                    f"board {self.board.id!r}: channel {i} is a {channel.kind} on the board ({channel.name!r}) and {text!r}"
                    " in the configuration; put board.channels in the board's order"
                )

    def calibration_expired(self, utc_ns: int) -> bool:
        """Whether its calibration is older than 12 months."""
        return self.calibration is not None and utc_ns > self._expires_ns

    def maintain(self) -> None:
        """Open the port again after it was unplugged; never blocks the caller.

        Raises DeviceError when the board now is another one than was described at start: its scale is not ours any more.
        """
        if (payload := self.sampler.description()) not in (None, self._payload):
            assert payload is not None
            self._same_board(parse_description(payload))
            self._payload = payload
        now_ns = self._clock.mono_ns()
        if self.sampler.connected() or now_ns < self._retry_ns or (self._reopening and not self._reopening.done()):
            return
        self._retry_ns = now_ns + round(REOPEN_S * NS_PER_S)
        self._reopening = asyncio.create_task(self._reopen())

    def _same_board(self, now: BoardDescription) -> None:
        before = self.description
        if before is None or now == before:
            return
        log.warning("board.changed", board=self.board.id, serial_number=now.serial_number, firmware=now.firmware)
        if self.calibration is not None and now.serial_number != before.serial_number:
            raise DeviceError(
                f"board {self.board.id!r}: {now.serial_number} is plugged in, its calibration is of {before.serial_number};"
                " calibrate it, or name its own file, and start the daemon again"
            )
        if (now.rate_hz, now.group_delay_ns, now.channels) != (before.rate_hz, before.group_delay_ns, before.channels):
            raise DeviceError(
                f"board {self.board.id!r}: a board with other channels or another scale is plugged in"
                f" ({now.serial_number}, before {before.serial_number}); start the daemon again to take it"
            )
        self.description = now

    async def _reopen(self) -> None:
        self._source.close()
        try:
            await asyncio.to_thread(self._source.open)
        except RpiError as error:
            log.debug("board.absent", board=self.board.id, error=str(error))
            return
        self.sampler.attach(self._source.fileno())
        log.info("board.back", board=self.board.id)

    def close(self) -> None:
        """Stop without losing a received sample; the ring stays in runtime_dir for others to read."""
        if self._reopening is not None:
            self._reopening.cancel()
        self.sampler.stop()
        self._source.close()


class PacedBoardLink(BoardLink):
    """A board inside the daemon: simulated, or a recording; its scans go out at the host's clock."""

    def __init__(
        self,
        board: Board,
        sampling: Sampling,
        rows: Sequence[OutletRow],
        runtime_dir: Path,
        base_dir: Path,
        clock: Clock,
        event_fd: int,
        rack: Rack,
    ) -> None:
        super().__init__(board, sampling, rows, runtime_dir, base_dir, clock, event_fd, dc=rack.supply == "dc")
        self._paced: PlantSource = (
            ReplaySource(board, rows, rack, base_dir / (board.trace or ""))
            if board.driver == "replay"
            else SimulatedSource(board, rows, rack)
        )
        n_channels, capacity = len(board.channels), FEED_S * RATE_HZ
        self._feed = Ring(
            anonymous(Ring.bytes_needed(n_channels, capacity)),
            n_channels=n_channels,
            capacity=capacity,
            rate_hz=RATE_HZ,
        )

    def open(self) -> None:
        self._paced.fill(self._feed, 0)
        self.sampler.start_paced(self._feed, NS_PER_S // RATE_HZ)

    async def describe(self) -> BoardSetup:
        return self._described(self._paced.description)

    def maintain(self) -> None:
        self._paced.fill(self._feed, self.sampler.forwarded())

    def close(self) -> None:
        self.sampler.stop()


def board_link(config: Config, board: Board, runtime_dir: Path, clock: Clock, event_fd: int) -> BoardLink:
    """The link for one configured board, not open yet; its ring is made in `runtime_dir`. Raises RpiError."""
    base_dir = Path(config.base_dir)
    common = (board, config.sampling, config.outlets(), runtime_dir, base_dir, clock, event_fd)
    if board.driver == "serial":
        return BoardLink(*common, dc=config.rack.supply == "dc")
    return PacedBoardLink(*common, rack=config.rack)
