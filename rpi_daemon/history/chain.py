"""A chain of records on disk: append-only, each with a hash over the one before it, one file a week, durable on return."""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.database import BUSY_S, SMALL_CACHE, is_damaged, make_database
from rpi_daemon.errors import RpiError
from rpi_daemon.history.weeks import (
    ASIDE,
    WEEK_NS,
    delete_files,
    old_files,
    open_read_only,
    set_aside,
    week_of,
)

# No index: a rotten one leaves records out and says nothing, where a gap in their numbers is seen.
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS event (
    seq INTEGER PRIMARY KEY, t_ns INTEGER, t_mono_ns INTEGER, name TEXT, data TEXT, hash BLOB
);
CREATE TABLE IF NOT EXISTS start (seq INTEGER, hash BLOB);
"""
_ALL: Final = "SELECT seq, t_ns, t_mono_ns, name, data, hash FROM event ORDER BY seq"
_LAST: Final = "SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1"
_BEGUN: Final = "SELECT 1 FROM sqlite_master WHERE name = 'start'"
_STARTS: Final = "SELECT seq, hash FROM start"
_START: Final = b"\0" * 32
SHORTENED: Final = "chain.shortened"  # the record that says which files were deleted as too old


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `data` is what was said of it."""

    t_ns: int
    t_mono_ns: int
    name: str
    data: Mapping[str, Any]
    seq: int = 0  # given when it is stored


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: number and hash of its newest record. Who keeps it elsewhere can tell that the end was cut off."""

    seq: int = 0
    hash: bytes = _START

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """From SEQ:HASH as `str` gives it. Raises RpiError."""
        seq, _, digest = text.strip().partition(":")
        try:
            head = cls(int(seq), bytes.fromhex(digest))
        except ValueError:
            head = cls(-1, b"")
        if head.seq < 0 or len(head.hash) != len(_START):
            raise RpiError(f"head {text.strip()!r} is not NUMBER:HASH with 64 hexadecimal digits")
        return head


@dataclass(frozen=True, slots=True)
class Chain:
    """What a check of the whole chain found."""

    events: int
    broken: tuple[str, ...]  # one sentence for each place where it does not hold
    first: Event | None = None  # where it begins: what was before is deleted as too old, or was never there
    head: Head = Head()


class ChainLog:
    """The writing end, one thread. Each file begins with the number and hash of the record before it.

    Several processes may write one after the other, and the daemon's last words may meet the next process's first: the
    end of the chain is looked at again within each transaction.
    """

    def __init__(self, folder: Path, *, kind: str, keep_days: float, head: Head = Head()) -> None:
        """`kind` begins the files' names. `head`: what is known of the chain's end; where it is lost, a gap remains."""
        self.deleted = 0  # files, as too old
        self.set_aside = 0  # files, as damaged
        self.lost = ""  # what the files lack of what is known of them, in a sentence
        self._folder = folder
        self._kind = kind
        self._keep_ns = round(keep_days * 86_400 * NS_PER_S)
        self._connection: sqlite3.Connection | None = None
        self._path = folder
        self._inodes: list[tuple[int, int] | None] = []  # of what the connection writes to
        self._head = head

    @property
    def head(self) -> Head:
        """The newest record that was written here, or found."""
        return self._head

    def append(self, events: Sequence[Event]) -> None:
        """Store records in their order; they are durable when this returns. Raises sqlite3.Error or OSError: none is.

        A file that turns out to be damaged is set aside, and the chain goes on in a new one.
        """
        if not events:
            return
        try:
            self._insert(self._open(events[0]), events)
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            self.close()
            set_aside(self._path, str(error))
            self.set_aside += 1
            self._insert(self._open(events[0]), events)

    def _insert(self, connection: sqlite3.Connection, events: Sequence[Event]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            last = connection.execute(_LAST).fetchone()
            before = Head(*last) if last is not None and last[0] > self._head.seq else self._head
            seq, digest = before.seq, before.hash
            rows = []
            for event in events:
                seq += 1
                text = json.dumps(event.data, sort_keys=True, default=str)
                digest = _link(digest, seq, event.t_ns, event.t_mono_ns, event.name, text)
                rows.append((seq, event.t_ns, event.t_mono_ns, event.name, text, digest))
            connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise
        self._head = Head(seq, digest)
        self._inodes = self._inodes or self._inodes_now()

    def _inodes_now(self) -> list[tuple[int, int] | None]:
        """Of the database and its log, by name; None: it is not there."""
        return [_inode(path) for path in (self._path, self._path.with_name(self._path.name + "-wal"))]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._inodes = []

    def _open(self, event: Event) -> sqlite3.Connection:
        """The file of its week; the chain goes on where the newest file ends. A wall clock that went back opens no older one.

        One that was replaced by another of its name (a backup put back) is opened anew: else nothing would be kept of what
        is written to the one that nobody finds any more.
        """
        name = f"{self._kind}-{week_of(event.t_ns)}.sqlite"
        if self._connection is not None and name <= self._path.name and self._inodes == self._inodes_now():
            return self._connection
        self.close()
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            _like_parent(self._folder)
        files = sorted(self._folder.glob(pattern(self._kind)))
        self._path = self._folder / max(name, files[-1].name if files else "")
        if files:
            before, self._path = self._path, files[-1]  # if it is damaged, it is this one
            self._go_on_after(files[-1])
            self._path = before
        make_database(self._path, _TABLE)
        connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(SMALL_CACHE)
            connection.executescript(_TABLE)
            if connection.execute(_STARTS).fetchone() is None:
                connection.execute("INSERT INTO start VALUES (?, ?)", (self._head.seq, self._head.hash))
            self._delete_old(connection, event)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _delete_old(self, connection: sqlite3.Connection, event: Event) -> None:
        """Files that are too old, once a record says that the chain begins later: nobody else can take its begin away."""
        old = old_files(self._folder, pattern(self._kind), self._keep_ns, self._path)
        if not old:
            return
        kept = [path for path in sorted(self._folder.glob(pattern(self._kind))) if path not in old]
        with contextlib.closing(open_read_only(kept[0])) as first:
            start = first.execute(_STARTS).fetchone()
        told = {"deleted": sorted(path.name for path in old), "begins": start[0] + 1}
        self._insert(connection, [Event(event.t_ns, event.t_mono_ns, SHORTENED, told)])
        self.deleted += delete_files(old)

    def _go_on_after(self, path: Path) -> None:
        """Take number and hash from a file's end, unless it is behind what we know, or another one: then a break stays."""
        known = self._head
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S)) as newest:
            if (sound := newest.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(sound)
            if newest.execute(_BEGUN).fetchone() is None:
                return  # the power went before its tables were made
            start = newest.execute(_STARTS).fetchone()
            last = newest.execute(_LAST).fetchone() or start
            there = newest.execute("SELECT seq, hash FROM event WHERE seq = ?", (known.seq,)).fetchone()
        there = there or (start if start is not None and start[0] == known.seq else None)
        if last is None or last[0] < known.seq:
            self.lost = f"{path.name} ends with number {last[0] if last else 0}, but {known.seq} had been written"
        elif known.seq and there is not None and there[1] != known.hash:
            self.lost = f"{path.name}: number {known.seq} is not the one that had been written"
            self._head = Head(last[0], known.hash)
        else:
            self._head = Head(*last)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _like_parent(folder: Path) -> None:
    """As `durable.create`, for a folder."""
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        with contextlib.suppress(PermissionError):
            os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)


def pattern(kind: str) -> str:
    """Of the files of a chain."""
    return f"{kind}-*.sqlite"


def read_chain(
    folder: Path, from_ns: int, to_ns: int, names: Collection[str] = (), damaged: list[str] | None = None, *, kind: str
) -> Iterator[Event]:
    """Records of [from_ns, to_ns) in the order in which they were stored; of all names if none is given.

    A record that is not what its hash says is left out, and what cannot be read ends its file; one sentence of each goes
    into `damaged`.
    """
    # no record is later than the week that its file is named by
    earliest = f"{kind}-{week_of(max(from_ns - WEEK_NS // 7, 0))}"
    for path in sorted(folder.glob(pattern(kind))):
        if path.name < earliest:
            continue
        told: list[str] = []
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                expected, before = connection.execute("SELECT seq + 1, hash FROM start").fetchone()
                for seq, t_ns, t_mono_ns, name, data, stored in connection.execute(_ALL):
                    if seq != expected:
                        told.append(f"{path.name}: {seq - expected} records are missing before number {seq}")
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


class _Check:
    """One walk along the chain; what does not hold is told once, where it is."""

    def __init__(self, heads: Collection[Head]) -> None:
        self.count = 0
        self.first: Event | None = None
        self.broken: list[str] = []
        self.at = Head()  # where the walk stands
        self._heads = set(heads)
        self._begun: tuple[str, int] | None = None  # the oldest file, and the number that it begins with
        self._may_begin = {1}  # with 1, or where a record says that what was before is deleted

    def file(self, path: Path, connection: sqlite3.Connection) -> None:
        if connection.execute(_BEGUN).fetchone() is None:
            return  # the power went before its tables were made; what it should hold is missed by the next file, or a head
        starts = connection.execute(_STARTS).fetchall()
        if len(starts) > 1:
            self.broken.append(f"{path.name}: it has {len(starts)} starts")
        start = Head(*starts[0]) if starts else self.at
        if self._begun is None:
            self._begun = path.name, start.seq + 1
        elif start != self.at:
            gone = start.seq - self.at.seq
            self.broken.append(
                f"{path.name}: {gone} records are missing before it: a file was deleted or set aside"
                if gone > 0
                else f"{path.name}: it does not go on where the file before it ends"
            )
        self._arrive(start)
        for row in connection.execute(_ALL):
            self._record(path, *row)

    def _record(self, path: Path, seq: int, t_ns: int, t_mono_ns: int, name: str, data: str, stored: bytes) -> None:
        self.count += 1
        self.first = self.first or Event(t_ns, t_mono_ns, name, {}, seq)
        if seq != self.at.seq + 1:
            self.broken.append(f"{path.name}: {seq - self.at.seq - 1} records are missing before number {seq}")
        elif _link(self.at.hash, seq, t_ns, t_mono_ns, name, data) != stored:
            self.broken.append(f"{path.name}: number {seq} ({name}) is not what was stored")
        elif name == SHORTENED:
            self._may_begin.add(json.loads(data)["begins"])
        self._arrive(Head(seq, stored))

    def _arrive(self, head: Head) -> None:
        self.at = head
        same = {known for known in self._heads if known.seq == head.seq}
        self._heads -= same
        if same - {head}:
            self.broken.append(
                f"number {head.seq} is not the one whose hash was kept elsewhere: the chain was rewritten"
            )

    def end(self) -> None:
        name, begins = self._begun or ("", 1)
        if begins not in self._may_begin:
            self.broken.append(
                f"{name}: it begins with number {begins}, and no record says that older files were deleted"
            )
        for seq in sorted({head.seq for head in self._heads}):
            if seq > self.at.seq:
                self.broken.append(
                    f"the end is missing: number {seq} had been written, the last one here is {self.at.seq}"
                )


def verify_chain(folder: Path, *, kind: str, heads: Collection[Head] = ()) -> Chain:
    """Go through the whole chain: a record that was altered, removed, moved or added shows, and a file that is missing.

    `heads`, kept elsewhere, show an end that was cut off and a chain that was rewritten; older ones than its begin tell
    nothing.
    """
    check = _Check(heads)
    for path in sorted(folder.glob(pattern(kind))):
        try:
            with contextlib.closing(open_read_only(path)) as connection:
                check.file(path, connection)
        except sqlite3.Error as error:
            check.broken.append(f"{path.name}: {error}")
        except (ValueError, TypeError, KeyError):
            check.broken.append(
                f"{path.name}: after number {check.at.seq} nothing can be checked: no record is like that"
            )
    check.end()
    aside = sorted(path.name for path in folder.glob(f"{pattern(kind)}{ASIDE}*[0-9]"))
    check.broken += [f"{name}: set aside as damaged; what it held is not in the chain" for name in aside]
    return Chain(check.count, tuple(check.broken), check.first, check.at)


def _link(before: bytes, seq: int, t_ns: int, t_mono_ns: int, name: str, text: str) -> bytes:
    """The hash of a record: over the hash before it and everything that it holds."""
    return hashlib.sha256(before + repr((seq, t_ns, t_mono_ns, name, text)).encode()).digest()
