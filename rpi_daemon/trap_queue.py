"""Notices on their way to receivers, on disk: in order, bounded, not lost to a crash or a receiver that is down."""

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from rpi_daemon.database import is_damaged
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import Mode, Notice, SafeState, Severity

QUEUE_FILE = "traps.sqlite"  # in the state folder
SCHEMA = """
CREATE TABLE IF NOT EXISTS notice (sink TEXT, sequence INTEGER, body TEXT, PRIMARY KEY (sink, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sink (id TEXT PRIMARY KEY, sequence INTEGER, dropped INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
"""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """A notice with its place in one receiver's queue."""

    sequence: int
    notice: Notice


@dataclass(slots=True)
class SinkQueue:
    """One receiver's numbers."""

    sequence: int = 0  # of the newest notice
    done: int = 0  # up to here nothing is sent again
    dropped: int = 0
    waiting: int = 0


class TrapQueue:
    """The queues of all receivers, and facts that go with them (which alarms stand). Called from one event loop.

    `put` never waits: a thread of its own writes, in WAL mode with every transaction on disk before it counts as done.
    While the disk takes nothing the notices wait in memory, are delivered from there, and `durable` is False.
    """

    def __init__(self, path: Path, sinks: Sequence[str], bound: int) -> None:
        self.sinks = {sink: SinkQueue() for sink in sinks}
        self.durable = True
        self._path = path
        self._bound = bound
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="traps")
        # these belong to the thread
        self._db: sqlite3.Connection | None = None
        self._unsaved: deque[tuple[str, int, Notice]] = deque()
        self._facts: dict[str, Any] = {}  # not yet on disk

    async def open(self) -> Mapping[str, Any]:
        """Open or make the file; returns the facts of the last run. Raises ConfigError when there can be no file.

        A damaged file is set aside, and what it held is lost.
        """
        try:
            return await self._in_thread(self._open)
        except ConfigError:
            await self.close()
            raise

    async def close(self) -> None:
        """Save what waits, and end."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    def put(self, notices: Mapping[str, Sequence[Notice]], facts: Mapping[str, Any]) -> "asyncio.Future[None]":
        """Queue each receiver's notices in order, and replace facts, in one transaction; the future ends after it."""
        numbered: list[tuple[str, int, Notice]] = []
        for sink, items in notices.items():
            for notice in items:
                self.sinks[sink].sequence += 1
                numbered.append((sink, self.sinks[sink].sequence, notice))
        return asyncio.wrap_future(self._thread.submit(self._take, numbered, dict(facts)))

    async def head(self, sink: str) -> Message | None:
        """The oldest notice of this receiver, which stays until `done`."""
        return await self._in_thread(self._head, sink)

    async def done(self, sink: str, sequence: int, *, dropped: bool = False) -> None:
        """Forget a notice: it was acknowledged, sent, or dropped and counted."""
        await self._in_thread(self._done, sink, sequence, dropped)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # -- in the thread

    def _open(self) -> Mapping[str, Any]:
        try:
            try:
                return self._load()
            except sqlite3.OperationalError as error:
                if not is_damaged(error) and not self._path.is_dir():
                    return self._load(alone=True)
                self._set_aside(error)
                return self._load()
            except (sqlite3.DatabaseError, ValueError) as error:
                self._set_aside(error)
                return self._load()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{self._path}: {error}; the daemon's user must be able to write there") from None

    def _load(self, *, alone: bool = False) -> Mapping[str, Any]:
        """`alone`: no other process may look, and the log's index is in memory: a full disk has no room for it."""
        if self._db is not None:
            self._db.close()
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        if alone:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)
        for sink, queue in self.sinks.items():
            row = self._db.execute("SELECT sequence, dropped FROM sink WHERE id = ?", (sink,)).fetchone()
            queue.sequence, queue.dropped = row or (0, 0)
            row = self._db.execute("SELECT count(*), min(sequence) FROM notice WHERE sink = ?", (sink,)).fetchone()
            queue.waiting, queue.done = row[0], queue.sequence if row[1] is None else row[1] - 1
        for (sink,) in self._db.execute("SELECT DISTINCT sink FROM notice").fetchall():
            if sink not in self.sinks:  # it is no longer configured
                with contextlib.suppress(sqlite3.OperationalError):  # a full disk; then at the next start
                    self._db.execute("DELETE FROM notice WHERE sink = ?", (sink,))
        return {name: json.loads(body) for name, body in self._db.execute("SELECT name, body FROM fact")}

    def _set_aside(self, error: Exception) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        aside = self._path.with_name(f"{self._path.name}.corrupt-{int(time.time())}")
        os.replace(self._path, aside)
        log.error("traps.queue_damaged", error=str(error), kept_as=str(aside))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _close(self) -> None:
        if self._db is not None:
            self._save()
            self._db.close()
            self._db = None

    def _take(self, items: Sequence[tuple[str, int, Notice]], facts: Mapping[str, Any]) -> None:
        self._unsaved.extend(items)
        self._facts.update(facts)
        for sink, _, _ in items:
            self.sinks[sink].waiting += 1
        self._save()

    def _save(self) -> None:
        """Everything that waits, in one transaction; on a disk that takes nothing it goes on waiting."""
        if not self._unsaved and not self._facts:
            return
        surplus: dict[str, tuple[int, int]] = {}
        try:
            with self._transaction() as db:
                db.executemany(
                    "INSERT INTO notice VALUES (?, ?, ?)", [(s, n, _to_json(notice)) for s, n, notice in self._unsaved]
                )
                for sink in {item[0] for item in self._unsaved}:
                    surplus[sink] = self._drop_oldest(db, sink)
                    self._save_numbers(db, sink, surplus[sink][0])
                db.executemany(
                    "INSERT OR REPLACE INTO fact VALUES (?, ?)", [(k, json.dumps(v)) for k, v in self._facts.items()]
                )
        except sqlite3.Error as error:
            self._not_durable(error)
            return
        for sink, (count, newest) in surplus.items():
            self._forget(sink, newest, count, dropped=count)
        self._unsaved.clear()
        self._facts.clear()
        self._say_durable()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        assert self._db is not None
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _drop_oldest(self, db: sqlite3.Connection, sink: str) -> tuple[int, int]:
        """Keep to the bound; (how many went, the newest of them)."""
        queue = self.sinks[sink]
        surplus = queue.waiting - self._bound
        if surplus <= 0:
            return 0, 0
        query = "SELECT sequence FROM notice WHERE sink = ? AND sequence > ? ORDER BY sequence LIMIT 1 OFFSET ?"
        newest: int = db.execute(query, (sink, queue.done, surplus - 1)).fetchone()[0]
        db.execute("DELETE FROM notice WHERE sink = ? AND sequence <= ?", (sink, newest))
        return surplus, newest

    def _save_numbers(self, db: sqlite3.Connection, sink: str, dropped_now: int = 0) -> None:
        queue = self.sinks[sink]
        newest = max((n for s, n, _ in self._unsaved if s == sink), default=queue.sequence)
        db.execute("INSERT OR REPLACE INTO sink VALUES (?, ?, ?)", (sink, newest, queue.dropped + dropped_now))

    def _forget(self, sink: str, newest: int, count: int, *, dropped: int) -> None:
        queue = self.sinks[sink]
        queue.done = max(queue.done, newest)
        queue.dropped += dropped
        queue.waiting -= count

    def _head(self, sink: str) -> Message | None:
        assert self._db is not None
        self._save()
        done = self.sinks[sink].done
        try:
            row = self._db.execute(
                "SELECT sequence, body FROM notice WHERE sink = ? AND sequence > ? ORDER BY sequence LIMIT 1",
                (sink, done),
            ).fetchone()
        except sqlite3.Error as error:
            self._not_durable(error)
            row = None
        if row is not None:
            return Message(row[0], _from_json(row[1]))
        return next((Message(n, notice) for s, n, notice in self._unsaved if s == sink and n > done), None)

    def _done(self, sink: str, sequence: int, dropped: bool) -> None:
        if sequence <= self.sinks[sink].done:
            return  # it was dropped meanwhile: the queue is full
        self._forget(sink, sequence, 1, dropped=int(dropped))
        self._unsaved = deque(item for item in self._unsaved if item[0] != sink or item[1] > sequence)
        try:
            with self._transaction() as db:
                db.execute("DELETE FROM notice WHERE sink = ? AND sequence <= ?", (sink, sequence))
                if dropped:
                    self._save_numbers(db, sink)
        except sqlite3.Error as error:
            self._not_durable(error)

    def _not_durable(self, error: sqlite3.Error) -> None:
        while len(self._unsaved) > self._bound:
            sink, sequence, _ = self._unsaved.popleft()
            self._forget(sink, sequence, 1, dropped=1)
        if self.durable:
            self.durable = False
            log.error("traps.not_on_disk", error=str(error))

    def _say_durable(self) -> None:
        if not self.durable:
            self.durable = True
            log.info("traps.on_disk")


def _to_json(notice: Notice) -> str:
    return json.dumps({name: value for name, value in asdict(notice).items() if value is not None})


def _from_json(text: str) -> Notice:
    data = json.loads(text)
    data["severity"] = Severity(data["severity"])
    if "mode" in data:
        data["mode"] = Mode(data["mode"])
    if "safe_state" in data:
        data["safe_state"] = SafeState(data["safe_state"])
    if "standing" in data:
        data["standing"] = tuple(Severity(severity) for severity in data["standing"])
    return Notice(**data)
