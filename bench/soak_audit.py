"""What the audit on disk says, as an auditor beside the daemon would read it."""

import contextlib
import json
import sqlite3
from pathlib import Path

from rpi_daemon.audit import FOLDER, HEAD_FILE, KIND
from rpi_daemon.history.chain import pattern, verify_chain
from rpi_daemon.history.weeks import open_read_only

NEWEST = "SELECT seq, data FROM event WHERE name = 'asked' ORDER BY seq DESC LIMIT 12"


def asked_w(state: Path, outlet: str) -> tuple[bool, float | None]:
    """Whether the newest records on disk say that this outlet is about to be written, and the limit of the newest that does."""
    records: list[tuple[int, str]] = []
    for path in (state / FOLDER).glob(pattern(KIND)):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(open_read_only(path)) as connection:
            records += connection.execute(NEWEST).fetchall()
    for _, data in sorted(records, reverse=True):
        for write in json.loads(data)["writes"]:
            if write["what"] == outlet:
                return True, write["to_w"]
    return False, None


def broken(state: Path) -> tuple[str, ...]:
    """What does not fit in the whole chain."""
    if not (state / FOLDER).is_dir() and not (state / HEAD_FILE).exists():
        return ()
    return verify_chain(state / FOLDER, kind=KIND).broken
