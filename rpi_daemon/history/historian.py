"""Keeps what the control loop saw: ticks into minutes in memory, minutes to disk in the writer's thread.

The loop only copies numbers into arrays. Whatever the disk does, full, slow, read-only or corrupt, control never waits: what
waits for the writer is bounded, and what is too much is dropped and counted.
"""

import os
import sqlite3
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.database import is_damaged, is_full
from rpi_daemon.history.blobs import pack
from rpi_daemon.history.weeks import (
    FRESH_SHIFT,
    MARKS,
    PATTERN,
    Layout,
    StoredLimit,
    delete_files,
    insert,
    old_files,
    open_for_writing,
    path_of,
    set_aside,
)
from rpi_daemon.history.writer import Writer
from rpi_daemon.records import TELEMETRY, TICK_NS, BoolArray, FloatArray, IntArray

log = structlog.get_logger(__name__)

TICKS: Final = 600  # of a block: a minute
SECOND: Final = 10  # ticks
GAP_NS: Final = 10 * NS_PER_S  # without a tick for so long a block ends
CLOCK_STEP_NS: Final = NS_PER_S  # wall time that moves so much against the monotonic clock ends a block, too
WAITING: Final = 20  # minutes (1.3 MB each for 48 outlets) or bundles of limits that a slow disk may lag behind
LIMITS_WAIT_S: Final = 60.0  # between two writes of limits: the first is on disk at once, those after it together


class Quantity(NamedTuple):
    """One stored quantity: its step on disk, in its unit."""

    name: str
    step: float


POWER: Final = Quantity("power_w", 0.2)  # every tick
BY_SECOND: Final = (  # `STATISTICS` of each second
    Quantity("rms_a", 0.005),
    Quantity("apparent_va", 1.0),
    Quantity("power_factor", 0.005),
    Quantity("peak_a", 0.02),
    Quantity("voltage_v", 0.1),
    Quantity("forecast_w", 1.0),
    Quantity("forecast_max_w", 1.0),
    Quantity("residual_w", 1.0),
    Quantity("request_w", 1.0),
)
OF_HOSTS: Final = tuple(
    Quantity(name, 0.01) for name in TELEMETRY
)  # the same, in minutes in which a host said something


BY_MINUTE: Final = (  # how good the forecasts of a minute were
    Quantity("judged", 1.0),  # requests whose 5 s have passed
    Quantity("escaped", 1.0),  # of them, those that the running maximum passed
    Quantity("episodes", 1.0),  # runs of such requests that began in this minute
    Quantity("error_w", 0.1),  # mean absolute error 5 s ahead
    Quantity("persistence_error_w", 0.1),  # of "as it is now", over the same moments
)
WEIGHT: Final = "weight:"  # and the name of an expert: its mean weight in the median of the draw in 5 s
REQUEST_WEIGHT: Final = "request_weight:"  # the same for the quantile that requests build on
WEIGHT_STEP: Final = 0.01
ALWAYS: Final = frozenset({POWER.name, MARKS, *(quantity.name for quantity in BY_SECOND)})  # in every minute
SCORES: Final = 10  # minutes of a block
MINUTE_NS: Final = 60 * NS_PER_S


class Minute:
    """The arrays of one minute. Filled by the loop, then handed over whole."""

    def __init__(self, n: int, t_ns: int, t_mono_ns: int) -> None:
        self.t_ns = t_ns
        self.t_mono_ns = t_mono_ns
        self.power_w = np.full((n, TICKS), np.nan)
        self.others = np.full((len(BY_SECOND), n, TICKS), np.nan, dtype=np.float32)
        self.hosts: NDArray[np.float32] | None = None
        self.marks = np.zeros((n, TICKS // SECOND), dtype=np.int64)
        self.ticks = 0

    def put(self, place: int, others: Mapping[str, FloatArray]) -> None:
        """The numbers of one tick, [n] each, of `BY_SECOND` and `OF_HOSTS` what there is."""
        for k, quantity in enumerate(BY_SECOND):
            if (values := others.get(quantity.name)) is not None:
                self.others[k, :, place] = values
        for k, quantity in enumerate(OF_HOSTS):
            if (values := others.get(quantity.name)) is not None:
                if self.hosts is None:
                    self.hosts = np.full((len(OF_HOSTS), *self.power_w.shape), np.nan, dtype=np.float32)
                self.hosts[k, :, place] = values

    def packed(self) -> list[tuple[str, int, int, int, bytes]]:
        """What goes to disk."""
        at = (self.t_ns, self.t_mono_ns)
        for values in (self.power_w, self.others):
            values[np.isinf(values)] = np.nan  # no number that was measured
        blocks = [(POWER.name, *at, TICK_NS, pack(self.power_w[:, : self.ticks], POWER.step))]
        seconds = -(-self.ticks // SECOND)
        kept = [*zip(BY_SECOND, self.others, strict=True)]
        kept += [] if self.hosts is None else zip(OF_HOSTS, self.hosts, strict=True)
        for quantity, rows in kept:
            by_second = rows[:, : seconds * SECOND].reshape(len(rows), seconds, SECOND)
            values = np.concatenate(_statistics(by_second.astype(np.float64)))
            blocks.append((quantity.name, *at, NS_PER_S, pack(values, quantity.step, spread=True)))
        blocks.append((MARKS, *at, NS_PER_S, pack(self.marks[:, :seconds], 1.0)))
        return blocks


def _statistics(rows: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, min and max over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(rows)
    count = known.sum(axis=-1)
    nothing = count == 0
    total = np.where(known, rows, 0.0).sum(axis=-1)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=~nothing)
    low = np.where(nothing, np.nan, np.where(known, rows, np.inf).min(axis=-1))
    high = np.where(nothing, np.nan, np.where(known, rows, -np.inf).max(axis=-1))
    return mean, low, high


class Scores:
    """Figures of up to ten minutes, a column each."""

    def __init__(self, t_ns: int, t_mono_ns: int) -> None:
        self.t_ns = t_ns
        self.t_mono_ns = t_mono_ns
        self.minutes: list[Mapping[str, FloatArray]] = []

    def goes_on(self, t_ns: int, t_mono_ns: int) -> bool:
        """Whether a minute that begins then is the next column."""
        begin_ns = len(self.minutes) * MINUTE_NS
        away = abs(t_ns - self.t_ns - begin_ns), abs(t_mono_ns - self.t_mono_ns - begin_ns)
        return len(self.minutes) < SCORES and max(away) < CLOCK_STEP_NS

    def packed(self) -> list[tuple[str, int, int, int, bytes]]:
        """What goes to disk; a figure that a minute lacks is not known there."""
        steps = {quantity.name: quantity.step for quantity in BY_MINUTE}
        n = len(next(iter(self.minutes[0].values())))
        nothing = np.full(n, np.nan)
        return [
            (
                name, self.t_ns, self.t_mono_ns, MINUTE_NS,
                pack(np.stack([minute.get(name, nothing) for minute in self.minutes], axis=1), steps.get(name, WEIGHT_STEP)),
            )
            for name in dict.fromkeys(name for minute in self.minutes for name in minute)
        ]  # fmt: skip


@dataclass(slots=True)
class HistorianCounters:
    """Since the start."""

    blocks_written: int = 0
    blocks_dropped: int = 0  # the disk did not take them, or lagged behind
    limits_written: int = 0
    limits_dropped: int = 0
    files_deleted: int = 0
    files_set_aside: int = 0  # damaged ones, renamed
    size_bytes: int = 0  # of the folder, after the last block
    failing: str | None = None  # the disk's last word, None while it works


@dataclass(slots=True)
class _Work:
    minute: Minute | None
    limits: list[StoredLimit] = field(default_factory=list)
    scores: Scores | None = None
    number: int = 0  # of the minute


class Historian:
    """One per daemon. `tick`, `limit` and `scores` from the loop, never blocking; `close` hands over what is left."""

    def __init__(self, writer: Writer, folder: Path, layout: Layout, *, keep_days: float) -> None:
        self.counters = HistorianCounters()
        self._writer = writer
        self._folder = folder
        self._layout = layout
        self._keep_ns = round(keep_days * 86_400 * NS_PER_S)
        self._minute: Minute | None = None
        self._minutes = 0  # that were handed over, dropped ones included
        self._scores: Scores | None = None
        self._limits: list[StoredLimit] = []
        self._limits_handed_ns: int | None = None
        self._waiting: deque[_Work] = deque()
        self._path: Path | None = None
        self._connection: sqlite3.Connection | None = None

    def begin(self) -> None:
        """Look whether this week's file is sound enough to be written on, before there is anything to write."""
        self._writer.put(self._look)

    def tick(
        self,
        t_ns: int,
        t_mono_ns: int,
        power_w: FloatArray,
        others: Mapping[str, FloatArray],
        fresh: BoolArray,
        marks: IntArray,
    ) -> None:
        """Take one tick's numbers, [n] each: `power_w`, the others that there are, who was measured for it, `Mark`s."""
        minute = self._minute
        if minute is None or not 0 <= self._place(minute, t_mono_ns) < TICKS or self._stepped(minute, t_ns, t_mono_ns):
            self._hand_over(minute)
            minute = self._minute = Minute(len(power_w), t_ns, t_mono_ns)
        place = self._place(minute, t_mono_ns)
        minute.ticks = place + 1
        minute.power_w[:, place] = power_w
        minute.put(place, others)
        minute.marks[:, place // SECOND] |= marks | fresh.astype(np.int64) << FRESH_SHIFT + place % SECOND
        handed_ns = self._limits_handed_ns
        if self._limits and (handed_ns is None or t_mono_ns - handed_ns > LIMITS_WAIT_S * NS_PER_S):
            self._limits_handed_ns = t_mono_ns
            self._hand_over(None)

    def limit(self, limit: StoredLimit) -> None:
        """A limit was read back."""
        self._limits.append(limit)

    def scores(self, t_ns: int, t_mono_ns: int, figures: Mapping[str, FloatArray]) -> None:
        """The figures of the minute that began then: of `BY_MINUTE` and weights what there is, [n] each."""
        if self._scores is None or not self._scores.goes_on(t_ns, t_mono_ns):
            self._hand_over(None, self._scores)
            self._scores = Scores(t_ns, t_mono_ns)
        self._scores.minutes.append(figures)

    def close(self) -> None:
        """Hand over what is left; it is on disk when the writer has closed."""
        self._hand_over(self._minute, self._scores)
        self._minute = self._scores = None
        self._writer.put(self._close_file)

    @staticmethod
    def _place(minute: Minute, t_mono_ns: int) -> int:
        """Column of a moment; a tick is late or early by less than half a period."""
        return round((t_mono_ns - minute.t_mono_ns) / TICK_NS)

    @staticmethod
    def _stepped(minute: Minute, t_ns: int, t_mono_ns: int) -> bool:
        """Whether the wall clock was set, or no tick came for long, since the block began."""
        silent_ns = t_mono_ns - (minute.t_mono_ns + minute.ticks * TICK_NS)
        return abs((t_ns - minute.t_ns) - (t_mono_ns - minute.t_mono_ns)) > CLOCK_STEP_NS or silent_ns > GAP_NS

    def _hand_over(self, minute: Minute | None, scores: Scores | None = None) -> None:
        if minute is None and scores is None and not self._limits:
            return
        work = _Work(minute, self._limits, scores, self._minutes)
        self._minutes += minute is not None
        self._limits = []
        if len(self._waiting) >= WAITING:
            self._dropped(work)
            return
        self._waiting.append(work)
        self._writer.put(self._write_next)

    def _dropped(self, work: _Work) -> None:
        self.counters.blocks_dropped += work.minute is not None
        self.counters.limits_dropped += len(work.limits)

    # -- the writer's thread

    def _look(self) -> None:
        path = path_of(self._folder, time.time_ns())
        try:
            if path.exists():
                self._open(path)
        except sqlite3.Error as error:
            if is_damaged(error):
                self._set_aside(path, error)
        except OSError as error:
            self._say(str(error))

    def _set_aside(self, path: Path, error: sqlite3.Error) -> None:
        self._close_file()
        set_aside(path, str(error))
        self.counters.files_set_aside += 1

    def _write_next(self) -> None:
        work = self._waiting.popleft()
        try:
            self._write(work)
        except (sqlite3.Error, OSError) as error:
            self._close_file()
            if is_full(error) and self._make_room():
                self._waiting.appendleft(work)
                self._write_next()
                return
            self._dropped(work)
            self._say(str(error))

    def _make_room(self) -> bool:
        """Delete the oldest week of the history, the file as a whole: the newest hours are worth more. False: there is none."""
        files = sorted(self._folder.glob(PATTERN))
        if len(files) < 2:
            return False
        self.counters.files_deleted += delete_files(files[:1])
        return True

    def _write(self, work: _Work) -> None:
        t_ns = (work.minute or work.scores or work.limits[0]).t_ns
        path = path_of(self._folder, t_ns)
        packed = [block for part in (work.minute, work.scores) if part is not None for block in part.packed()]
        blocks = [(*block, work.number if block[0] in ALWAYS else None) for block in packed]
        try:
            insert(self._open(path), self._layout, blocks, work.limits)
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise
            self._set_aside(path, error)
            insert(self._open(path), self._layout, blocks, work.limits)
        self.counters.blocks_written += work.minute is not None
        self.counters.limits_written += len(work.limits)
        self.counters.size_bytes = sum(entry.stat().st_size for entry in os.scandir(self._folder) if entry.is_file())
        self._say(None)

    def _open(self, path: Path) -> sqlite3.Connection:
        """The file of the week; of those that are too old it is time to delete some."""
        if self._connection is not None and path == self._path and path.exists():
            return self._connection
        self._close_file()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.counters.files_deleted += delete_files(old_files(self._folder, PATTERN, self._keep_ns, path))
        self._connection, self._path = open_for_writing(path), path
        return self._connection

    def _close_file(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _say(self, error: str | None) -> None:
        """One line when the disk begins to fail, and one when it works again."""
        before, self.counters.failing = self.counters.failing, error
        if error is not None and before is None:
            log.error("history.failing", error=error, doing="history is dropped and counted; control goes on")
        elif error is None and before is not None:
            log.info("history.works_again")
