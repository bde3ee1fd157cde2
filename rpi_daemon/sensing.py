"""A sensor board from its configuration to its windows: ring memory, sampler, source, window kernel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from rpi_daemon._fastpath.core import BoardDescription, Ring, Sampler, WindowKernel
from rpi_daemon._fastpath.memory import shared_file
from rpi_daemon.board_source import RATE_HZ, BoardSource, IioBoard, PacedBoard, SerialBoard
from rpi_daemon.calibration import Correction, correction, load_calibration, own_word
from rpi_daemon.calibration_fit import Sensor
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.schema import Board, Config, OutletRow, Sampling
from rpi_daemon.drivers.sensors.iio import IioOptions
from rpi_daemon.drivers.sensors.replay import ReplaySource
from rpi_daemon.drivers.sensors.serial import SerialOptions
from rpi_daemon.drivers.sensors.simulated import SimulatedSource
from rpi_daemon.errors import DeviceError
from rpi_daemon.features import BoardSetup
from rpi_daemon.raw import write_scale

NOTIFY_EVERY = 100  # scans a window hop

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
    """One board of any kind. `open`, then `describe`, then `maintain` once a tick, then `close`."""

    def __init__(
        self,
        board: Board,
        source: BoardSource,
        sampling: Sampling,
        rows: Sequence[OutletRow],
        runtime_dir: Path,
        base_dir: Path,
        event_fd: int,
        dc: bool,
    ) -> None:
        self.board = board
        self.source = source
        self.wiring = wiring(board, rows)
        self.description: BoardDescription | None = None
        self._known: BoardDescription | None = None  # from an earlier run
        self.calibration_path = base_dir / board.calibration if board.calibration is not None else None
        self.calibration = load_calibration(self.calibration_path) if self.calibration_path is not None else None
        self._expires_ns = round(self.calibration.expires.timestamp() * NS_PER_S) if self.calibration is not None else 0
        self.correction: Correction | None = None  # from `describe` on
        self._dc = dc
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

    def open(self, known: BoardDescription | None = None) -> None:
        """Open the device and start sampling; raises DeviceError or LockedError.

        `known`: what it said of itself in an earlier run. A board on a serial port that is away now is then waited for
        while the daemon runs.
        """
        self._known = known
        self.source.start(self.sampler, may_wait=known is not None)

    async def describe(self) -> BoardSetup:
        """Learn what the board is and build its window kernel; raises DeviceError if it does not say, or differs."""
        self._check(description := await self._described())
        self.description = description
        self.correction = own_word(description)
        if self.calibration is not None:
            self.correction = correction(self.calibration, description, str(self.calibration_path))
        write_scale(self._ring_path, self.board.id, description.serial_number, self.board.channels, self.correction)
        return board_setup(self.ring, description, self.wiring, self.correction, self._dc, self._first)

    async def _described(self) -> BoardDescription:
        try:
            return await self.source.describe(self.sampler)
        except DeviceError as error:
            if self._known is None:
                raise
            log.warning("board.away_at_start", board=self.board.id, error=str(error))
            return self._known

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
        """Keep the board going, and open it again after it was unplugged; never blocks the caller.

        Raises DeviceError when the board now is another one than was described at start: its scale is not ours any more.
        """
        if (now := self.source.maintain(self.sampler)) is not None:
            self._same_board(now)

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

    def unplug(self, seconds: float) -> None:
        """Take it for unplugged: a drill. Raises RpiError where there is no plug."""
        self.source.unplug(seconds)

    def close(self) -> None:
        """Stop without losing a received sample; the ring stays in runtime_dir for others to read."""
        self.sampler.stop()
        self.source.close()


def board_link(config: Config, board: Board, runtime_dir: Path, clock: Clock, event_fd: int) -> BoardLink:
    """The link for one configured board, not open yet; its ring is made in `runtime_dir`. Raises RpiError."""
    source, base_dir = board_source(config, board, clock), Path(config.base_dir)
    return BoardLink(
        board, source, config.sampling, config.outlets(), runtime_dir, base_dir, event_fd, dc=config.rack.supply == "dc"
    )


def board_source(config: Config, board: Board, clock: Clock) -> BoardSource:
    """Where the scans of a configured board come from."""
    if board.driver == "serial":
        return SerialBoard(
            board.id, SerialOptions(str(config.path(board.port or "")), board.baud), board.board_id, clock
        )
    if board.driver == "iio":
        gains = tuple(board.iio_gains) if board.iio_gains is not None else None
        return IioBoard(board.id, IioOptions(board.iio_device or "", tuple(board.channels), gains), clock)
    if board.driver == "replay":
        return PacedBoard(ReplaySource(board, config.outlets(), config.rack, config.path(board.trace or "")))
    return PacedBoard(SimulatedSource(board, config.outlets(), config.rack))
