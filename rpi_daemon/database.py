"""SQLite files that outlive what cuts them short: made whole, and known when they are damaged or their disk is full."""

import contextlib
import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from rpi_daemon.durable import create

BESIDE_SUFFIX: Final = ".new"
LOGS: Final = ("-wal", "-shm", "-journal")  # SQLite's, beside a database
SMALL_CACHE: Final = "PRAGMA cache_size = -256"  # KiB: what is only added to needs no pages of long ago in memory
BUSY_S: Final = 2.0  # a reader may hold the file for a moment
UNREADABLE: Final = (  # what a disk answers for a sector that is lost
    *(sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ),
    *(sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA),
)


def make_database(path: Path, tables: str) -> None:
    """An empty database, if there is none: one that was half made when it was cut short is never read.

    It is made beside and renamed, by one process at a time. Raises sqlite3.Error or OSError.
    """
    if path.exists():
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():  # by now
            return
        beside = path.with_name(path.name + BESIDE_SUFFIX)
        logs = [one.with_name(one.name + suffix) for one in (path, beside) for suffix in LOGS]
        for left in (
            beside,
            *logs,
        ):  # by who was cut short, or took the database away: SQLite would take them for its own
            left.unlink(missing_ok=True)
        with contextlib.closing(
            os.fdopen(create(beside, os.O_EXCL))
        ) as file:  # SQLite's helper files get the same owner
            with contextlib.closing(sqlite3.connect(beside, timeout=BUSY_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                connection.executescript(tables)
                connection.execute("PRAGMA journal_mode = WAL")
            os.fsync(file)
        beside.replace(path)
    finally:
        os.close(folder)


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is no sound database, or the disk cannot read it; one that is full, slow or
    read-only is another thing."""
    code = getattr(error, "sqlite_errorcode", None)  # None: Python's own, and ours
    known = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    return (
        known if code is None else code in UNREADABLE or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    )


def is_full(error: sqlite3.Error | OSError) -> bool:
    """Whether a disk has no room, or a user no more of it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_FULL
