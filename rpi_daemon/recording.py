"""A recorded run: configuration, boards, each tick's inputs and scans; it replays to the same decisions."""

import contextlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription, Ring
from rpi_daemon.calibration import Correction
from rpi_daemon.clock import Clock
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import RpiError, TraceError
from rpi_daemon.pipeline import Pipeline, Snapshot, TickInputs

if TYPE_CHECKING:
    from rpi_daemon.sensing import BoardLink

SCHEMA = 2
HEADER_FILE = "header.json"
TICKS_FILE = "ticks.jsonl"
MODEL_FOLDER = "model"  # a copy: the daemon may delete the one that it was made with
REACH_SCANS = 1000  # how far back a window may look

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Header:
    """What a pipeline is built from, apart from the code."""

    schema: int
    config: Config
    base_dir: str
    opted_in: tuple[bool, ...]  # after what the PDUs at hand ruled out
    without_model: bool  # it was refused, and the other experts forecast without it
    boards: tuple[BoardDescription, ...]
    corrections: tuple[Correction, ...]


@dataclass(frozen=True)
class RecordedTick:
    """One line of the ticks' file."""

    scans: tuple[NonNegativeInt, ...]  # that are new, of each board
    clock: tuple[int, ...]  # what the pipeline was told when it asked for the time, ns
    inputs: TickInputs
    digest: str  # of all decisions so far


_HEADER = TypeAdapter(Header)
_TICK = TypeAdapter(RecordedTick)
_CHANNEL = TypeAdapter(ChannelDescription)  # the compiled class does not tell pydantic what its tuple holds
_INPUTS = TypeAdapter(TickInputs)


@dataclass
class TapedClock:
    """The host's clock, with every answer written down: a forecast that came too late in the run does so in its replay."""

    clock: Clock
    tape: list[int] = field(default_factory=list)

    def mono_ns(self) -> int:
        self.tape.append(self.clock.mono_ns())
        return self.tape[-1]

    def utc_ns(self) -> int:
        return self.clock.utc_ns()

    def taken(self) -> list[int]:
        """Answers since the last call."""
        tape, self.tape = self.tape, []
        return tape


class TapeClock:
    """Gives the answers of a tape, in order."""

    def __init__(self) -> None:
        self._tape: deque[int] = deque()

    def feed(self, tape: Sequence[int]) -> None:
        self._tape.extend(tape)

    def mono_ns(self) -> int:
        """Raises TraceError when the run did not ask here."""
        if not self._tape:
            raise TraceError("the recording is of another version: this one asks for the time more often")
        return self._tape.popleft()

    def utc_ns(self) -> int:
        raise TraceError("the recording holds no wall time but that of the ticks")


class Recorder:
    """Appends each tick's inputs as a JSON line and each board's new scans; a full disk ends it, not the daemon.

    `clock` is to be used by the pipeline that is recorded. Raises RpiError for a folder that holds a recording.
    """

    def __init__(self, folder: Path, boards: Sequence["BoardLink"], clock: Clock) -> None:
        self.clock = TapedClock(clock)
        self._folder = folder
        self._boards = boards
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._ticks: BinaryIO = (folder / TICKS_FILE).open("xb")
        except FileExistsError:
            raise RpiError(f"{folder}: holds a recording already; name another folder") from None
        except OSError as error:
            raise RpiError(f"{folder}: cannot record there: {error.strerror}") from None
        self._scans = [(folder / f"{link.board.id}.scans").open("wb") for link in boards]
        self._next = [max(0, link.ring.head - REACH_SCANS) for link in boards]
        self._full = False

    def begin(
        self, config: Config, opted_in: Sequence[bool], *, without_model: bool, trained: Path | None = None
    ) -> None:
        """Write down what the pipeline was built from; `trained`: the directory of a model that did not come with us."""
        boards = tuple(link.description for link in self._boards if link.description is not None)
        corrections = tuple(link.correction for link in self._boards if link.correction is not None)
        header = Header(SCHEMA, config, config.base_dir, tuple(opted_in), without_model, boards, corrections)
        (self._folder / HEADER_FILE).write_bytes(_HEADER.dump_json(header))
        if trained is not None:
            shutil.copytree(trained, self._folder / MODEL_FOLDER)

    def add(self, inputs: TickInputs, ends: Sequence[int], digest: str) -> None:
        """One tick: its inputs, the scans up to the window that it used of each board, the digest of all decisions so far."""
        if self._full:
            return
        try:
            counts = [self._copy(k, end) for k, end in enumerate(ends)]
            record = {
                "scans": counts,
                "clock": self.clock.taken(),
                "inputs": _INPUTS.dump_python(inputs),
                "digest": digest,
            }
            self._ticks.write(json.dumps(record, default=_plain, separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            self._full = True
            log.error("recording.ended", folder=str(self._folder), error=str(error))

    def _copy(self, k: int, end: int) -> int:
        """Scans that are there, up to `end`; where the last one was lost, with the next one, which ended the window."""
        ring = self._boards[k].ring
        first = self._next[k]
        if end <= first:
            return 0
        scans, present = ring.read(first, end - first)
        kept = [scans[present]]
        self._next[k] = end
        if not present[-1]:
            after, there = ring.read(end, ring.head - end)
            kept.append(after[there][:1])
            self._next[k] = int(kept[1]["index"][0]) + 1 if len(kept[1]) else end
        for part in kept:
            self._scans[k].write(part.tobytes())
        return sum(len(part) for part in kept)

    def close(self) -> None:
        """End the recording."""
        for file in (self._ticks, *self._scans):
            try:
                file.close()
            except OSError as error:
                log.error("recording.cut_off", folder=str(self._folder), error=str(error))


class Recording:
    """A recorded run, opened for replay: `config`, `header`, `boards` and `clock` make its pipeline; `replay` it once."""

    def __init__(self, folder: Path) -> None:
        """Raises TraceError for what is not a recording."""
        self._folder = folder
        path = folder / HEADER_FILE
        try:
            self.header = _HEADER.validate_json(path.read_bytes(), strict=True)
            channels = [
                [_CHANNEL.validate_python(channel) for channel in board.channels] for board in self.header.boards
            ]
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}; name a folder that `run --record` wrote") from None
        except ValidationError as error:
            raise TraceError(
                f"{path}: not the header of a recording of this version: {error.errors()[0]['msg']}"
            ) from None
        if self.header.schema != SCHEMA:
            raise TraceError(f"{path}: a recording of schema {self.header.schema}; this version replays {SCHEMA}")
        if not _fits(self.header, [len(of_board) for of_board in channels]):
            raise TraceError(
                f"{path}: its boards, their channels and outlets are not those of its configuration; it is damaged"
            )
        self.config = self.header.config.model_copy(update={"base_dir": self.header.base_dir})
        if (model := folder / MODEL_FOLDER).is_dir():
            forecast = self.config.forecast.model_copy(update={"model": str(model.resolve())})
            self.config = self.config.model_copy(update={"forecast": forecast})
        self.boards = tuple(
            replace(board, channels=tuple(of_board))
            for board, of_board in zip(self.header.boards, channels, strict=True)
        )
        self.corrections = self.header.corrections
        self.clock = TapeClock()

    def replay(self, rings: Sequence[Ring], build: Callable[[], Pipeline]) -> Iterator[tuple[Snapshot, str]]:
        """Each tick's snapshot, and the run's own digest after it. `build()` gives the fresh pipeline.

        Raises TraceError where the recording is cut off.
        """
        pipeline: Pipeline | None = None
        with contextlib.ExitStack() as stack:
            names = [f"{board.id}.scans" for board in self.config.board]
            ticks, *files = [stack.enter_context(_open(self._folder / name)) for name in (TICKS_FILE, *names)]
            for number, line in enumerate(ticks, start=1):
                tick = self._parsed(line, number)
                self.clock.feed(tick.clock)
                if pipeline is None:
                    pipeline = build()
                for file, ring, n in zip(files, rings, tick.scans, strict=True):
                    _refill(ring, file, n)
                yield pipeline.step(tick.inputs), tick.digest

    def _parsed(self, line: bytes, number: int) -> RecordedTick:
        try:
            tick = _TICK.validate_json(line, strict=True)
        except ValueError:
            raise self._damaged(number) from None
        if len(tick.scans) != len(self.boards):
            raise self._damaged(number)
        return tick

    def _damaged(self, number: int) -> TraceError:
        return TraceError(
            f"{self._folder / TICKS_FILE}:{number}: not a whole recorded tick; the recording is cut off or damaged here"
        )


def _fits(header: Header, n_channels: Sequence[int]) -> bool:
    """Whether there is one description and one correction for each board, of as many channels, and a choice for each outlet."""
    corrections = [(c.gain, c.offset_counts, c.delay_ns, c.calibrated) for c in header.corrections]
    return (
        [len(board.channels) for board in header.config.board] == list(n_channels)
        and [[len(part) for part in parts] for parts in corrections] == [[n] * 4 for n in n_channels]
        and all(math.isfinite(value) for parts in corrections for part in parts for value in part)
        and len(header.opted_in) == len(header.config.outlets())
    )


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else sorted(value) if isinstance(value, frozenset) else str(value)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


def _refill(ring: Ring, file: BinaryIO, n: int) -> None:
    """Put the next n recorded scans into the ring; what was lost stays lost. Raises TraceError when they are not there."""
    size = ring.scans.dtype.itemsize
    left = (os.fstat(file.fileno()).st_size - file.tell()) // size
    if n > left:
        raise TraceError(f"{file.name}: cut off: {n} scans were recorded here, {left} are left")
    data = file.read(n * size)
    scans: NDArray[np.void] = np.frombuffer(data, dtype=ring.scans.dtype)
    try:
        for scan in scans:
            ring.push(
                int(scan["index"]), int(scan["t_mono_ns"]), int(scan["ticks"]), int(scan["status"]), scan["counts"],
                flags=int(scan["flags"]),
            )  # fmt: skip
    except ValueError as error:
        raise TraceError(f"{file.name}: damaged: {error}") from None
