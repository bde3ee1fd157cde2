"""The events: what the log said, kept in a chain of hashes by the writer's thread."""

import sqlite3
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from rpi_daemon.history.chain import ChainLog, Event, read_chain, verify_chain
from rpi_daemon.history.writer import Writer

KIND: Final = "events"
WAITING: Final = 2000  # events that a slow disk may lag behind

EventLog = partial(ChainLog, kind=KIND)
read_events = partial(read_chain, kind=KIND)
verify = partial(verify_chain, kind=KIND)

log = structlog.get_logger(__name__)


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
