"""Captures that are taken by themselves: raw 1 kHz of a board around what happened, as COMTRADE, written by the writer's thread."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import RpiError
from rpi_daemon.history.comtrade import comtrade
from rpi_daemon.history.writer import Writer
from rpi_daemon.raw import Waveform, read_waveform
from rpi_daemon.records import IntArray
from rpi_daemon.triggers import Trigger

FOLDER: Final = "captures"  # below the history's
PARTS: Final = (".dat", ".cfg", ".json")  # in the order of writing: whoever finds the last finds all
LONGEST: Final = 3  # times the usual length, where one thing follows the other
SETTLE_NS: Final = 200_000_000  # until the scans of a capture's end are in the ring
WAITING: Final = 8  # captures that a slow disk may lag behind; no scans are in memory yet
TOLD: Final = 50  # triggers of one capture that are told one by one
HOURS: Final = 3  # over which the number an hour is the mean: three in a row are kept, not three every hour
HOUR_NS: Final = 3600 * NS_PER_S
LEAST_HZ: Final = 16.0  # railway power; slower is no mains

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """Which captures are kept, and how many; names and meaning as in `[history]`."""

    before_s: float
    after_s: float
    per_hour: int  # of each kind, on average
    keep: int
    keep_bytes: int


@dataclass(slots=True)
class CaptureCounters:
    """Since the start."""

    written: int = 0
    dropped: int = 0  # the disk did not take them, or lagged behind; or the ring held no scan of that time
    left_out: int = 0  # beyond their number an hour
    deleted: int = 0  # the oldest, for newer ones
    failing: str | None = None  # the last word of the disk or the ring, None while it works


@dataclass(slots=True)
class _Span:
    board: str
    start_ns: int  # CLOCK_MONOTONIC
    end_ns: int
    utc_ns: int  # wall time at which that clock was 0
    triggers: list[Trigger] = field(default_factory=list)
    more: int = 0  # triggers that are not in the list


class Captures:
    """One per daemon. `tick` from the loop, never waiting; the rings are read by the writer's thread, `close` takes what is open."""

    def __init__(self, writer: Writer, folder: Path, runtime_dir: Path, rack: str, options: CaptureOptions) -> None:
        self.counters = CaptureCounters()
        self._writer = writer
        self._folder = folder / FOLDER
        self._runtime_dir = runtime_dir
        self._rack = rack
        self._options = options
        self._open: dict[str, _Span] = {}
        self._full: list[_Span] = []  # not over yet, and as long as they may be
        self._end_ns: dict[str, int] = {}  # by board: of the newest
        self._taken: dict[str, deque[int]] = {}  # by kind: when each of the last hours began
        self._waiting: deque[_Span] = deque()

    def tick(self, now_ns: int, triggers: Sequence[Trigger]) -> None:
        """Begin or lengthen captures, and hand over those that have ended."""
        for trigger in triggers:
            for board in sorted(trigger.boards):
                self._take(trigger, board)
        for span in self._unfinished():
            if now_ns >= span.end_ns + SETTLE_NS:
                self._hand_over(span)

    def close(self) -> None:
        """What is open is taken as far as it goes; it is on disk when the writer has closed."""
        for span in self._unfinished():
            self._hand_over(span)

    def _unfinished(self) -> list[_Span]:
        return [*self._full, *self._open.values()]

    def _take(self, trigger: Trigger, board: str) -> None:
        before_ns, after_ns = (round(s * NS_PER_S) for s in (self._options.before_s, self._options.after_s))
        at_ns = trigger.t_mono_ns
        span = self._open.get(board)
        if span is not None and at_ns + after_ns > span.start_ns + LONGEST * (before_ns + after_ns):
            self._full.append(self._open.pop(board))
            span = None
        if span is None:
            if not self._may_begin(trigger):
                self.counters.left_out += 1
                return
            start_ns = max(at_ns - before_ns, self._end_ns.get(board, 0))  # no scan is in two files
            span = self._open[board] = _Span(board, start_ns, at_ns + after_ns, trigger.t_utc_ns - at_ns)
        span.end_ns = self._end_ns[board] = max(span.end_ns, at_ns + after_ns)
        if len(span.triggers) < TOLD:
            span.triggers.append(trigger)
        else:
            span.more += 1

    def _may_begin(self, trigger: Trigger) -> bool:
        """Each kind has its own number an hour: restless loads do not use up what a fault needs."""
        taken = self._taken.setdefault(trigger.kind, deque())
        while taken and trigger.t_mono_ns - taken[0] >= HOURS * HOUR_NS:
            taken.popleft()
        # boards of one trigger are one capture
        if taken and taken[-1] == trigger.t_mono_ns:
            return True
        if len(taken) >= HOURS * self._options.per_hour:
            return False
        taken.append(trigger.t_mono_ns)
        return True

    def _hand_over(self, span: _Span) -> None:
        if span in self._full:
            self._full.remove(span)
        else:
            del self._open[span.board]
        if len(self._waiting) >= WAITING:
            self.counters.dropped += 1
            return
        self._waiting.append(span)
        self._writer.put(self._write_next)

    # -- the writer's thread

    def _write_next(self) -> None:
        span = self._waiting.popleft()
        try:
            self._write(span)
        except (RpiError, OSError) as error:
            self.counters.dropped += 1
            before, self.counters.failing = self.counters.failing, str(error)
            if before is None:
                log.error("capture.failing", board=span.board, error=str(error))
            return
        self.counters.written += 1
        self.counters.failing = None

    def _write(self, span: _Span) -> None:
        ring = self._runtime_dir / f"{span.board}.ring"
        wave = read_waveform(ring, span.board, span.end_ns - span.start_ns, span.end_ns)
        t_utc_ns = wave.t_mono_ns + span.utc_ns
        text, data = as_comtrade(self._rack, wave, t_utc_ns, max(span.triggers[0].t_utc_ns, int(t_utc_ns[0])))
        document = {
            "schema": 1,
            "rack": self._rack,
            "board": span.board,
            "from_utc_ns": int(t_utc_ns[0]),
            "to_utc_ns": int(t_utc_ns[-1]),
            "scans": len(t_utc_ns),
            "missing": wave.lost,
            "kinds": sorted({trigger.kind for trigger in span.triggers}),
            "triggers": [
                {k: v for k, v in asdict(t).items() if k not in ("boards", "t_mono_ns")} for t in span.triggers
            ],
            "more_triggers": span.more,
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.fromtimestamp(t_utc_ns[0] / NS_PER_S, UTC):%Y-%m-%dT%H%M%S.%f}"[:-3] + f"Z-{span.board}"
        whole = (data, text.encode("ascii", "replace"), json.dumps(document).encode())
        try:
            for suffix, content in zip(PARTS, whole, strict=True):
                write_durably(self._folder / (name + suffix), content)
        except OSError:
            remove(self._folder, name)
            raise
        self.counters.deleted += prune(self._folder, self._options.keep, self._options.keep_bytes)
        subjects = list(dict.fromkeys(f"{trigger.kind}:{trigger.subject}" for trigger in span.triggers))
        log.info("capture", file=f"{FOLDER}/{name}.cfg", board=span.board, scans=len(t_utc_ns), of=subjects)


def as_comtrade(rack: str, wave: Waveform, t_utc_ns: IntArray, trigger_utc_ns: int) -> tuple[str, bytes]:
    """The .cfg and the .dat of a waveform's used channels."""
    used = [k for k, channel in enumerate(wave.channels) if channel.unit]
    return comtrade(
        rack,
        f"{wave.board} {wave.serial_number}",
        [(wave.channels[k].name, wave.channels[k].unit, wave.channels[k].delay_ns / NS_PER_S) for k in used],
        wave.values[:, used],
        t_utc_ns,
        trigger_utc_ns,
        rate_hz=wave.rate_hz,
        line_hz=line_hz(wave),
    )


def line_hz(wave: Waveform) -> float:
    """The mains frequency, by the rising zero crossings of the first channel that has some, voltages first; 0 on DC."""
    for k in sorted(range(len(wave.channels)), key=lambda k: wave.channels[k].unit != "V"):
        values = wave.values[:, k]
        at = np.flatnonzero((values[:-1] < 0.0) & (values[1:] >= 0.0))
        periods = np.diff(at + values[at] / (values[at] - values[at + 1]))
        if len(periods) and (hz := wave.rate_hz / float(np.median(periods))) >= LEAST_HZ:
            return round(hz, 1)
    return 0.0


def prune(folder: Path, keep: int, keep_bytes: int) -> int:
    """Delete the oldest captures, and what a crash left of one, until so many, of so many bytes, remain; how many went."""
    sizes: dict[str, int] = {}
    for path in folder.iterdir():
        if path.suffix in PARTS:
            sizes[path.stem] = sizes.get(path.stem, 0) + path.stat().st_size
        elif path.suffix == ".tmp":
            path.unlink(missing_ok=True)
    deleted = 0
    for name in sorted(sizes):
        if len(sizes) - deleted <= keep and sum(sizes.values()) <= keep_bytes:
            break
        remove(folder, name)
        sizes[name] = 0
        deleted += 1
    return deleted


def remove(folder: Path, name: str) -> None:
    """All parts of a capture, the one that names it first. Raises OSError."""
    for suffix in reversed(PARTS):
        for path in (folder / (name + suffix), folder / f"{name}{suffix}.tmp"):
            path.unlink(missing_ok=True)


def kept(folder: Path) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The captures below a history's folder, oldest first, each with its `file`; and one sentence of each that is damaged."""
    found: list[Mapping[str, Any]] = []
    damaged: list[str] = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            found.append({"file": str(path.with_suffix(".cfg")), **{key: said[key] for key in _KEYS}})
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"{path}: {error}")
    return found, damaged


_KEYS: Final = ("board", "from_utc_ns", "to_utc_ns", "scans", "missing", "kinds", "triggers", "more_triggers")
