"""The events: append-only, one after the other in a chain of hashes, written by the writer's thread."""

import contextlib
import hashlib
import json
import sqlite3
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.weeks import BUSY_S, open_read_only, set_aside
from rpi_daemon.history.writer import Writer

PATTERN: Final = "events-*.sqlite"
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, t_ns INTEGER, t_mono_ns INTEGER, name TEXT, data TEXT, hash BLOB
);
CREATE INDEX IF NOT EXISTS event_time ON event (t_ns);
"""
_START: Final = b"\0" * 32
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


class EventLog:
    """The writing end. One per daemon, one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connection: sqlite3.Connection | None = None
        self._year = 0
        self._seq = 0
        self._hash = _START

    def append(self, events: Sequence[Event]) -> None:
        """Store events in their order; they are durable when this returns. Raises sqlite3.Error or OSError: none is."""
        if not events:
            return
        connection = self._open(_year(events[0].t_ns))
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

    def _open(self, year: int) -> sqlite3.Connection:
        """The file of a year; the chain goes on where the newest file ends. A wall clock that went back opens no older one."""
        if self._connection is not None and year <= self._year:
            return self._connection
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        files = sorted(self._folder.glob(PATTERN))
        if files:
            year = max(year, int(files[-1].stem.rpartition("-")[2]))
            try:
                self._go_on_after(files[-1])
            except sqlite3.OperationalError:
                raise  # locked, read-only: the file itself may be good
            except sqlite3.DatabaseError as error:
                set_aside(files[-1], str(error))
        connection = sqlite3.connect(
            self._folder / f"events-{year:04d}.sqlite", timeout=BUSY_S, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_TABLE)
        except BaseException:
            connection.close()
            raise
        self._connection, self._year = connection, year
        return connection

    def _go_on_after(self, path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S)) as newest:
            if newest.execute("SELECT 1 FROM sqlite_master WHERE name = 'event'").fetchone() is None:
                return  # the power went before its table was made
            last = newest.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone()
        if last is not None:
            self._seq, self._hash = last


@dataclass(slots=True)
class EventCounters:
    """Since the start."""

    written: int = 0
    dropped: int = 0  # the disk did not take them, or lagged behind
    failing: str | None = None  # the disk's last word, None while it works


class EventKeeper:
    """Takes events from any thread, never waiting, and has them stored. What is too much is dropped and counted."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self.counters = EventCounters()
        self._writer = writer
        self._log = EventLog(folder)
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

    A file or event that cannot be read ends that file's; one sentence of each goes into `damaged`.
    """
    chosen = f" AND name IN ({', '.join('?' * len(names))})" if names else ""
    query = f"SELECT seq, t_ns, t_mono_ns, name, data FROM event WHERE t_ns >= ? AND t_ns < ?{chosen} ORDER BY seq"
    for path in sorted(folder.glob(PATTERN)):
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                for seq, t_ns, t_mono_ns, name, data in connection.execute(query, (from_ns, to_ns, *names)):
                    yield Event(t_ns, t_mono_ns, name, json.loads(data), seq)
        except (sqlite3.Error, ValueError) as error:
            if damaged is not None:
                damaged.append(f"{path.name}: {error}")


def verify(folder: Path) -> Chain:
    """Go through the whole chain: an event that was altered, removed, moved or added shows."""
    expected, digest, count = 1, _START, 0
    broken: list[str] = []
    for path in sorted(folder.glob(PATTERN)):
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                for seq, t_ns, t_mono_ns, name, data, stored in connection.execute("SELECT * FROM event ORDER BY seq"):
                    count += 1
                    if seq != expected and not (count == 1 and seq > 1):
                        broken.append(f"{path.name}: {seq - expected} events are missing before number {seq}")
                    elif count == 1 and seq > 1:
                        broken.append(f"{path.name}: the chain begins with number {seq}: older files are gone")
                    elif _link(digest, seq, t_ns, t_mono_ns, name, data) != stored:
                        broken.append(f"{path.name}: number {seq} ({name}) is not what was stored")
                    expected, digest = seq + 1, stored
        except sqlite3.Error as error:
            broken.append(f"{path.name}: {error}")
    return Chain(count, tuple(broken))


def _link(before: bytes, seq: int, t_ns: int, t_mono_ns: int, name: str, text: str) -> bytes:
    """The hash of an event: over the hash before it and everything that it holds."""
    return hashlib.sha256(before + repr((seq, t_ns, t_mono_ns, name, text)).encode()).digest()


def _year(t_ns: int) -> int:
    return datetime.fromtimestamp(t_ns / NS_PER_S, UTC).year
