"""The history files: one SQLite database per ISO week (UTC), so that keeping 30 days means deleting a file."""

import contextlib
import errno
import functools
import itertools
import json
import math
import os
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from datetime import UTC, datetime
from enum import IntFlag
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.database import BUSY_S, SMALL_CACHE, make_database
from rpi_daemon.history.blobs import DamagedBlock, unpack
from rpi_daemon.records import FloatArray, IntArray

log = structlog.get_logger(__name__)

SCHEMA: Final = 1
PATTERN: Final = "history-*.sqlite"
ASIDE: Final = ".corrupt-"
WEEK_NS: Final = 7 * 86_400 * NS_PER_S
PAGE: Final = 1024  # octets: blocks are some KB, and each commit writes the pages that it touched twice
LOG_PAGES: Final = 8192  # of the write-ahead log before they go to the file: some 80 minutes of 48 outlets
RUN_NS: Final = (
    2 * NS_PER_S
)  # wall time that is so far from the monotonic clock's is of another boot, or the clock was set
NO_PLACE: Final = 2**62
BESIDE: Final = 64  # blocks: more than a minute has
_TABLES: Final = f"""
PRAGMA page_size = {PAGE};
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('schema', '{SCHEMA}');
CREATE TABLE IF NOT EXISTS layout (id INTEGER PRIMARY KEY, text TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS block (
    t_ns INTEGER, t_mono_ns INTEGER, quantity TEXT, layout INTEGER, period_ns INTEGER, data BLOB, number INTEGER, crc INTEGER
);
CREATE UNIQUE INDEX IF NOT EXISTS block_time ON block (t_ns, quantity, t_mono_ns);
CREATE TABLE IF NOT EXISTS limit_change (
    t_ns INTEGER, t_mono_ns INTEGER, outlet TEXT, kind TEXT, limit_w REAL, reason TEXT, rule TEXT, layout INTEGER,
    crc INTEGER
);
"""  # all in the order of time: new rows go to the end of a file, so that few pages are written twice
LONGEST_NS: Final = 610 * NS_PER_S  # of a block: figures of ten minutes
_LIMITS_GONE: Final = "SELECT max(rowid) - min(rowid) + 1 - count(*) FROM limit_change"  # none is ever deleted
STATISTICS: Final = ("mean", "min", "max")  # of each second, in the order of their rows in a block


MARKS: Final = "marks"  # the quantity that holds `Mark`s
FRESH_SHIFT: Final = 16  # a mark's bits from here on: tick k of the second brought a reading that was taken for it


class Mark(IntFlag):
    """What holds of an outlet within a second, beside its numbers; bits 0 to 7 and 15 are those of `records.Quality`."""

    CENSORED = 1 << 9  # an enforced limit of ours was within 5 % of the draw: it might have drawn more
    ESCAPED = 1 << 10  # the draw passed what had been requested for it
    CLOSED_LOOP = 1 << 11  # limits may be written; else advisory
    HOLD = 1 << 12  # the ladder of safe states; none of the three is NORMAL
    STATIC_SAFE = 1 << 13
    DEVICE_DEFAULT = 1 << 14


@dataclass(frozen=True, slots=True)
class Layout:
    """Whose rows a block has: outlets in order, what they feed, how often and by which calibration they were measured."""

    rack: str
    outlets: tuple[str, ...]
    calibration: str = ""
    loads: tuple[str, ...] = ()  # [n]
    interval_ticks: tuple[int, ...] = ()  # [n] between two readings; 1: a board, 10: a meter that is read each second

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    @functools.lru_cache(maxsize=64)  # few are in use, each in thousands of rows
    def from_text(cls, text: str) -> "Layout":
        said = json.loads(text)
        loads, interval_ticks = tuple(said["loads"]), tuple(said["interval_ticks"])
        return cls(said["rack"], tuple(said["outlets"]), said["calibration"], loads, interval_ticks)


@functools.lru_cache(maxsize=64)
def _chosen(layout: Layout, wanted: frozenset[str] | None) -> tuple[Layout, IntArray | None]:
    """The layout of some of its outlets, and their rows; of all, where none are named."""
    if wanted is None:
        return layout, None
    rows = [i for i, outlet in enumerate(layout.outlets) if outlet in wanted]
    outlets, loads, intervals = (
        tuple(column[i] for i in rows) if column else ()
        for column in (layout.outlets, layout.loads, layout.interval_ticks)
    )
    chosen = Layout(layout.rack, outlets, layout.calibration, loads, intervals)  # type: ignore[arg-type]
    return chosen, np.array(rows, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Block:
    """One quantity of all outlets over up to a minute; column k begins at t_ns + k x period_ns."""

    quantity: str
    t_ns: int  # UTC
    t_mono_ns: int
    period_ns: int
    layout: Layout
    values: FloatArray  # [outlets, columns]; NaN is not known

    @property
    def end_ns(self) -> int:
        return self.t_ns + len(self.values.T) * self.period_ns


@dataclass(frozen=True, slots=True)
class StoredLimit:
    """A limit as it was read back."""

    t_ns: int
    t_mono_ns: int
    outlet: str
    kind: str
    limit_w: float | None
    reason: str
    rule: str


@dataclass(slots=True)
class Damage:
    """What a query met and left out."""

    blocks: int = 0
    missing: int = 0  # blocks that were handed to the disk and are not there: it did not take them, or lost them
    limits: int = 0
    files: tuple[str, ...] = ()
    other_racks: dict[str, int] = field(default_factory=dict)  # blocks of each that lie in the same folder


def week_of(t_ns: int) -> str:
    """`2026W47`."""
    year, week, _ = datetime.fromtimestamp(t_ns / NS_PER_S, UTC).isocalendar()
    return f"{year}W{week:02d}"


def path_of(folder: Path, t_ns: int) -> Path:
    return folder / f"history-{week_of(t_ns)}.sqlite"


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The file of a week, made if need be. Raises sqlite3.Error; sqlite3.DatabaseError where it is no database."""
    make_database(path, _TABLES)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # what was written outlives a power cut, not only the process
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        connection.execute(SMALL_CACHE)
        connection.executescript(_TABLES)
        found = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0]
        if found != str(SCHEMA):
            raise sqlite3.DatabaseError(f"schema {found}, not {SCHEMA}")
    except BaseException:
        connection.close()
        raise
    return connection


def insert(
    connection: sqlite3.Connection,
    layout: Layout,
    blocks: Sequence[tuple[str, int, int, int, bytes, int | None]],
    limits: Sequence[StoredLimit],
) -> None:
    """Packed blocks and limit changes, all or nothing. Raises sqlite3.Error.

    A block is (quantity, t_ns, t_mono_ns, period_ns, data, number): minutes of a run are numbered, so that one that is
    not there shows; None where not every minute has one.
    """
    text = layout.to_text()
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("INSERT OR IGNORE INTO layout (text) VALUES (?)", (text,))
        whose = connection.execute("SELECT id FROM layout WHERE text = ?", (text,)).fetchone()[0]
        connection.executemany(
            "INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (t_ns, t_mono_ns, name, whose, *rest, _crc(t_ns, t_mono_ns, name, text, *rest))
                for name, t_ns, t_mono_ns, *rest in blocks
            ],
        )
        connection.executemany(
            "INSERT INTO limit_change VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row, whose, _crc(*row, text)) for row in map(astuple, limits)],
        )
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise


def _crc(*values: object) -> int:
    """Over a whole row, its keys included: a right value at a wrong time is a wrong value."""
    return zlib.crc32(repr(values).encode())


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged database with what belongs to it, for whoever may save something of it. Raises OSError."""
    aside = path.with_name(f"{path.name}{ASIDE}{time.time_ns()}")
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    log.error("history.set_aside", path=str(aside), error=why)


def old_files(folder: Path, pattern: str, keep_ns: int, in_use: Path) -> list[Path]:
    """The files of weeks that ended more than `keep_ns` ago, set-aside ones among them.

    By the clock alone, one that jumps ahead would take everything: a week goes only where as many newer ones are there as
    `keep_ns` spans.
    """
    kind = pattern.partition("*")[0]
    oldest = f"{kind}{week_of(max(0, time.time_ns() - keep_ns))}"
    weeks = {path.name for path in folder.glob(pattern)} | {in_use.name}
    found = [*folder.glob(pattern), *folder.glob(f"{pattern}{ASIDE}*[0-9]")]

    def outlived(path: Path) -> bool:
        week = path.name.partition(ASIDE)[0]
        return sum(other > week for other in weeks) >= math.ceil(keep_ns / WEEK_NS)

    return [path for path in found if path.name < oldest and path != in_use and outlived(path)]


def delete_files(paths: Sequence[Path]) -> int:
    """Delete whole files, never rows. Returns how many. Raises OSError."""
    for path in paths:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        log.info("history.deleted", path=str(path))
    return len(paths)


def check_readable(folder: Path, names: str) -> None:
    """Raises PermissionError where this user may not read a folder, or a file in it: what it holds would count as missing."""
    within = [(path, os.R_OK) for path in sorted(folder.glob(names))]
    for path, mode in [(folder, os.R_OK | os.X_OK), *within] if folder.is_dir() else []:
        if not os.access(path, mode, effective_ids=True):
            raise PermissionError(errno.EACCES, "this user may not read it", str(path))


def open_read_only(path: Path) -> sqlite3.Connection:
    """A database for a reader who may not be allowed to write beside it. Raises sqlite3.Error."""
    alone = not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    # Without its helper files, and nowhere to make them, it opens only as one that nobody writes: the daemon does not run.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro{'&immutable=1' * alone}", uri=True, timeout=BUSY_S)


class History:
    """The history files of one folder, read-only; another process may be writing them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damage = Damage()

    def files(self) -> list[Path]:
        return sorted(self.folder.glob(PATTERN))

    def blocks(self, quantity: str, from_ns: int, to_ns: int) -> Iterator[Block]:
        """Blocks that reach into [from_ns, to_ns), by their time: of `power_w`, or of `rms_a/max` and the like.

        Damaged ones are left out and counted in `damage`.
        """
        for minute in self.minutes((quantity,), from_ns, to_ns):
            yield from minute

    def minutes(
        self,
        quantities: Collection[str],
        from_ns: int,
        to_ns: int,
        rack: str = "",
        outlets: Collection[str] | None = None,
    ) -> Iterator[list[Block]]:
        """As `blocks`, of several quantities; those that begin at the same moment come together.

        With `rack` the blocks of any other are left out, and counted in `damage.other_racks`. With `outlets` blocks and
        their layouts have these alone, in the layout's order: few are read much faster than all.
        """
        wanted = None if outlets is None else frozenset(outlets)
        stored = {quantity.partition("/")[0] for quantity in quantities}
        rows = self._rows(
            "SELECT t_ns, t_mono_ns, quantity, text, period_ns, data, number, crc, block.rowid"
            " FROM block LEFT JOIN layout ON layout.id = block.layout"
            f" WHERE quantity IN ({', '.join('?' * len(stored))}) AND t_ns < ? AND t_ns > ? ORDER BY t_ns, t_mono_ns",
            (*stored, to_ns, from_ns - LONGEST_NS),
            from_ns,
            to_ns,
            stored,
        )
        for _, together in itertools.groupby(self._sound(rows), key=lambda row: row[:2]):
            found = [block for row in together for block in self._of_row(row, quantities, wanted)]
            found = [block for block in found if block.end_ns > from_ns]
            if found and rack not in ("", whose := found[0].layout.rack):
                self.damage.other_racks[whose] = self.damage.other_racks.get(whose, 0) + len(found)
            elif found:
                yield found

    def _sound(self, rows: Iterator[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Rows whose CRC is right, without it and their number; others, and those missing between, are counted."""
        last: dict[tuple[str, str, int], int] = {}
        hidden: dict[str, int] = {}
        for *row, number, crc, _ in rows:
            t_ns, t_mono_ns, stored, text = row[:4]
            if crc != _crc(*row, number):
                self.damage.blocks += 1
                hidden[stored] = hidden.get(stored, 0) + 1
                continue
            if number is not None:
                run = (stored, text, round((t_ns - t_mono_ns) / RUN_NS))
                before, last[run] = last.get(run, number), number
                if number > before + 1:  # a smaller one is of the daemon's next run
                    self.damage.missing += max(0, number - before - 1 - hidden.pop(stored, 0))
            yield row

    def _of_row(self, row: Sequence[Any], quantities: Collection[str], wanted: frozenset[str] | None) -> list[Block]:
        """The blocks of a stored row that were asked for: one, or a row's statistics."""
        t_ns, t_mono_ns, stored, text, period_ns, data = row
        try:
            layout, rows = _chosen(Layout.from_text(text), wanted)
            values = unpack(data, rows)
            n = len(layout.outlets)
            names = [f"{stored}/{name}" for name in STATISTICS]
            parts = {stored: values} if len(values) == n else dict(zip(names, np.split(values, 3), strict=True))
            if any(len(part) != n for part in parts.values()):
                raise DamagedBlock("another number of outlets than its layout")
        except (DamagedBlock, ValueError, TypeError, KeyError, IndexError):
            self.damage.blocks += 1
            return []
        return [
            Block(name, t_ns, t_mono_ns, period_ns, layout, part) for name, part in parts.items() if name in quantities
        ]

    def quantities(self, from_ns: int, to_ns: int) -> list[str]:
        """What is stored of blocks that begin in the span."""
        rows = self._rows(
            "SELECT DISTINCT quantity FROM block WHERE t_ns >= ? AND t_ns < ?", (from_ns, to_ns), from_ns, to_ns
        )
        return sorted({str(row[0]) for row in rows})

    def times(self, quantity: str, from_ns: int, to_ns: int) -> IntArray:
        """When each stored minute of [from_ns, to_ns) begins, UTC, in order; of every rack, damaged or not."""
        rows = self._rows(
            "SELECT t_ns FROM block WHERE quantity = ? AND t_ns >= ? AND t_ns < ? ORDER BY t_ns",
            (quantity, from_ns, to_ns),
            from_ns,
            to_ns,
        )
        return np.array([row[0] for row in rows], dtype=np.int64)

    def layouts(self, rack: str, from_ns: int, to_ns: int) -> list[Layout]:
        """What a rack looked like in the blocks of a span: outlets have new names, loads move, boards are calibrated."""
        rows = self._rows(
            "SELECT DISTINCT text FROM block JOIN layout ON layout.id = block.layout WHERE t_ns >= ? AND t_ns < ?",
            (from_ns, to_ns),
            from_ns,
            to_ns,
        )
        found: dict[Layout, None] = {}
        for (text,) in rows:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: so are its blocks, which are counted
                found[Layout.from_text(text)] = None
        return [layout for layout in found if layout.rack == rack]

    def limits(self, rack: str, from_ns: int, to_ns: int) -> Iterator[StoredLimit]:
        """Limit changes of a rack in [from_ns, to_ns), in order."""
        for row in self._rows(
            "SELECT t_ns, t_mono_ns, outlet, kind, limit_w, reason, rule, text, crc FROM limit_change"
            " LEFT JOIN layout ON layout.id = limit_change.layout WHERE t_ns >= ? AND t_ns < ? ORDER BY t_ns, t_mono_ns",
            (from_ns, to_ns),
            from_ns,
            to_ns,
            limits=True,
        ):
            try:
                if row[-1] != _crc(*row[:-1]):
                    raise DamagedBlock("the row's CRC is wrong")
                whose = Layout.from_text(row[-2]).rack
            except (DamagedBlock, ValueError, TypeError, KeyError):
                self.damage.limits += 1
                continue
            if whose == rack:
                yield StoredLimit(*row[:-2])

    def _rows(
        self,
        query: str,
        values: tuple[object, ...],
        from_ns: int,
        to_ns: int,
        stored: Collection[str] = (),
        limits: bool = False,
    ) -> Iterator[Any]:
        """Rows of every file that may hold the span; a file that cannot be read is named in `damage`.

        `stored`: they are blocks of these quantities, with their place last; `limits`: they are limit changes. What rotten
        inner pages hide of either is counted.
        """
        first, last = path_of(self.folder, from_ns - LONGEST_NS).name, path_of(self.folder, to_ns).name
        for path in self.files():
            if not first <= path.name <= last:
                continue
            try:
                with contextlib.closing(open_read_only(path)) as connection:
                    low, high = NO_PLACE, -NO_PLACE
                    for row in connection.execute(query, values):
                        if stored:
                            low, high = min(low, row[-1]), max(high, row[-1])
                        yield row
                    if limits:
                        self.damage.limits += connection.execute(_LIMITS_GONE).fetchone()[0] or 0
                    if stored:
                        self.damage.missing += _hidden(connection, stored, from_ns, to_ns, low, high)
            except sqlite3.Error:
                self.damage.files = tuple(dict.fromkeys((*self.damage.files, path.name)))


def _hidden(
    connection: sqlite3.Connection, stored: Collection[str], from_ns: int, to_ns: int, low: int, high: int
) -> int:
    """Blocks of the span that stand beside the places low to high, which are all that the index gave of them."""
    query = "SELECT quantity, t_ns FROM block NOT INDEXED WHERE rowid"
    beside = [
        *connection.execute(f"{query} > ? ORDER BY rowid LIMIT {BESIDE}", (high,)),
        *connection.execute(f"{query} < ? ORDER BY rowid DESC LIMIT {BESIDE}", (low,)),
    ]
    return sum(quantity in stored and from_ns <= t_ns < to_ns for quantity, t_ns in beside)
