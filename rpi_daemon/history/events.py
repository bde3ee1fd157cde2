"""The events: append-only, one after the other in a chain of hashes, one file a week, written by the writer's thread."""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.weeks import ASIDE, BUSY_S, delete_old, is_damaged, open_read_only, set_aside, week_of
from rpi_daemon.history.writer import Writer

PATTERN: Final = "events-*.sqlite"
# No index: a rotten one leaves events out and says nothing, where a gap in their numbers is seen.
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, t_ns INTEGER, t_mono_ns INTEGER, name TEXT, data TEXT, hash BLOB
);
CREATE TABLE IF NOT EXISTS start (seq INTEGER, hash BLOB);
"""
_ALL: Final = "SELECT seq, t_ns, t_mono_ns, name, data, hash FROM event ORDER BY seq"
_START: Final = b"\0" * 32
WEEK_NS: Final = 7 * 86_400 * NS_PER_S
WAITING: Final = 2000  # events that a slow disk may lag behind

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `data` is what the log line of the same name said beside it."""

    t_ns: int
    t_mono_ns: int
    name: str
    data: Mapping[str, Any]
    seq: int = 0  # given when it is stored


@dataclass(frozen=True, slots=True)
class Chain:
    """What a check of the whole chain found."""

    events: int
    broken: tuple[str, ...]  # one sentence for each place where it does not hold
    first: Event | None = None  # where it begins: what was before is deleted as too old, or was never there


class EventLog:
    """The writing end. One per daemon, one thread. Each file begins with the number and hash of the event before it."""

    def __init__(self, folder: Path, *, keep_days: float) -> None:
        self.deleted = 0  # files, as too old
        self.set_aside = 0  # files, as damaged
        self._folder = folder
        self._keep_ns = round(keep_days * 86_400 * NS_PER_S)
        self._connection: sqlite3.Connection | None = None
        self._path = folder
        self._seq = 0
        self._hash = _START

    def append(self, events: Sequence[Event]) -> None:
        """Store events in their order; they are durable when this returns. Raises sqlite3.Error or OSError: none is.

        A file that turns out to be damaged is set aside, and the chain goes on in a new one.
        """
        if not events:
            return
        week = week_of(events[0].t_ns)
        try:
            self._insert(self._open(week), events)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            self.close()
            set_aside(self._path, str(error))
            self.set_aside += 1
            self._insert(self._open(week), events)

    def _insert(self, connection: sqlite3.Connection, events: Sequence[Event]) -> None:
        seq, digest = self._seq, self._hash
        rows = []
        for event in events:
            seq += 1
            text = json.dumps(event.data, sort_keys=True, default=str)
            digest = _link(digest, seq, event.t_ns, event.t_mono_ns, event.name, text)
            rows.append((seq, event.t_ns, event.t_mono_ns, event.name, text, digest))
        with connection:
            connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", rows)
        self._seq, self._hash = seq, digest

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self, week: str) -> sqlite3.Connection:
        """The file of a week; the chain goes on where the newest file ends. A wall clock that went back opens no older one."""
        name = f"events-{week}.sqlite"
        if self._connection is not None and name <= self._path.name and self._path.exists():
            return self._connection
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._folder.glob(PATTERN))
        self._path = self._folder / max(name, files[-1].name if files else "")
        if files:
            before, self._path = self._path, files[-1]  # if it is damaged, it is this one
            self._go_on_after(files[-1])
            self._path = before
        self.deleted += delete_old(
            self._folder, PATTERN, f"events-{week_of(time.time_ns() - self._keep_ns)}", self._path
        )
        connection = sqlite3.connect(self._path, timeout=BUSY_S, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_TABLE)
            if connection.execute("SELECT 1 FROM start").fetchone() is None:
                with connection:
                    connection.execute("INSERT INTO start VALUES (?, ?)", (self._seq, self._hash))
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _go_on_after(self, path: Path) -> None:
        """Take number and hash from a file's end, unless it is behind what we know: then it has lost something."""
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S)) as newest:
            if newest.execute("SELECT 1 FROM sqlite_master WHERE name = 'start'").fetchone() is None:
                return  # the power went before its tables were made
            last = newest.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone()
            last = last or newest.execute("SELECT seq, hash FROM start").fetchone()
        if last is not None and last[0] > self._seq:
            self._seq, self._hash = last


@dataclass(slots=True)
class EventCounters:
    """Since the start."""

    written: int = 0
    dropped: int = 0  # the disk did not take them, or lagged behind
    files_deleted: int = 0
    files_set_aside: int = 0  # damaged ones, renamed
    failing: str | None = None  # the disk's last word, None while it works


class EventKeeper:
    """Takes events from any thread, never waiting, and has them stored. What is too much is dropped and counted."""

    def __init__(self, writer: Writer, folder: Path, *, keep_days: float) -> None:
        self.counters = EventCounters()
        self._writer = writer
        self._log = EventLog(folder, keep_days=keep_days)
        self._waiting: deque[Event] = deque()
        self._asked = False  # the writer has been asked to come, and has not looked yet
        self._closing = False

    def take(self, event: Event) -> None:
        if len(self._waiting) >= WAITING:
            self.counters.dropped += 1
            return
        self._waiting.append(event)
        if not self._asked:
            self._asked = True
            self._writer.put(self._store)

    def close(self) -> None:
        """What was taken, and what the writer's last jobs still tell, is on disk when the writer has closed."""
        self._closing = True
        self._writer.put(self._log.close)

    def _store(self) -> None:
        """In the writer's thread."""
        self._asked = False  # before the look: whoever comes after it asks again
        events = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            self._log.append(events)
        except (sqlite3.Error, OSError) as error:
            self.counters.dropped += len(events)
            self._log.close()
            self._say(str(error))
            return
        self.counters.files_deleted, self.counters.files_set_aside = self._log.deleted, self._log.set_aside
        self.counters.written += len(events)
        self._say(None)
        if self._closing:
            self._log.close()

    def _say(self, error: str | None) -> None:
        before, self.counters.failing = self.counters.failing, error
        if error is not None and before is None:
            log.error("events.failing", error=error, doing="events are dropped and counted; control goes on")
        elif error is None and before is not None:
            log.info("events.work_again", dropped=self.counters.dropped)


def read_events(
    folder: Path, from_ns: int, to_ns: int, names: Collection[str] = (), damaged: list[str] | None = None
) -> Iterator[Event]:
    """Events of [from_ns, to_ns) in the order in which they were stored; of all names if none is given.

    An event that is not what its hash says is left out, and what cannot be read ends its file; one sentence of each goes
    into `damaged`.
    """
    earliest = (
        f"events-{week_of(max(from_ns - WEEK_NS // 7, 0))}"  # no event is later than the week that its file is named by
    )
    for path in sorted(folder.glob(PATTERN)):
        if path.name < earliest:
            continue
        told: list[str] = []
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                expected, before = connection.execute("SELECT seq + 1, hash FROM start").fetchone()
                for seq, t_ns, t_mono_ns, name, data, stored in connection.execute(_ALL):
                    if seq != expected:
                        told.append(f"{path.name}: {seq - expected} events are missing before number {seq}")
                    elif from_ns <= t_ns < to_ns and (not names or name in names):
                        if _link(before, seq, t_ns, t_mono_ns, name, data) == stored:
                            yield Event(t_ns, t_mono_ns, name, json.loads(data), seq)
                        else:
                            told.append(f"{path.name}: number {seq} is damaged and was left out")
                    expected, before = seq + 1, stored
        except (sqlite3.Error, ValueError, TypeError) as error:
            told.append(f"{path.name}: {error}")
        if damaged is not None:
            damaged += told


def verify(folder: Path) -> Chain:
    """Go through the whole chain: an event that was altered, removed, moved or added shows, and a file that is missing."""
    expected, digest = 0, _START
    count, first = 0, None
    broken: list[str] = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                start = connection.execute("SELECT seq, hash FROM start").fetchone() or (expected - 1, digest)
                if expected and start != (expected - 1, digest):
                    gone = start[0] + 1 - expected
                    broken.append(
                        f"{path.name}: {gone} events are missing before it: a file was deleted or set aside"
                        if gone > 0
                        else f"{path.name}: it does not go on where the file before it ends"
                    )
                expected, digest = start[0] + 1, start[1]
                for seq, t_ns, t_mono_ns, name, data, stored in connection.execute(_ALL):
                    count += 1
                    first = first or Event(t_ns, t_mono_ns, name, {}, seq)
                    if seq != expected:
                        broken.append(f"{path.name}: {seq - expected} events are missing before number {seq}")
                    elif _link(digest, seq, t_ns, t_mono_ns, name, data) != stored:
                        broken.append(f"{path.name}: number {seq} ({name}) is not what was stored")
                    expected, digest = seq + 1, stored
        except (sqlite3.Error, ValueError, TypeError) as error:
            broken.append(f"{path.name}: {error}")
    aside = sorted(path.name for path in folder.glob(f"{PATTERN}{ASIDE}*[0-9]"))
    broken += [f"{name}: set aside as damaged; what it held is not in the chain" for name in aside]
    return Chain(count, tuple(broken), first)


def _link(before: bytes, seq: int, t_ns: int, t_mono_ns: int, name: str, text: str) -> bytes:
    """The hash of an event: over the hash before it and everything that it holds."""
    return hashlib.sha256(before + repr((seq, t_ns, t_mono_ns, name, text)).encode()).digest()
