"""Structured logs: JSON for the journal, text for a terminal. Secrets never reach it: no record holds one."""

import contextlib
import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

STDERR = 2
LINES = 2000  # waiting for a reader that stalls; more are dropped and counted
CLOSE_TIMEOUT_S = 1.0  # for what still waits at the end

Listener = Callable[[str, Mapping[str, Any]], None]

log = structlog.get_logger(__name__)
LEVELS = logging.getLevelNamesMapping()
_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Meanwhile `listener` gets every line at info and above, whatever level is logged: its event and its fields.

    It is called in the thread that logs, and must not wait.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Tee:
    """A processor that tells the listeners, then drops what is below the level that is logged."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, _: Any, __: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
        severity = LEVELS[fields["level"].upper()]  # as `add_log_level` has put it
        if severity >= logging.INFO:
            told = {key: value for key, value in fields.items() if key != "event"}
            for listener in _listeners:
                listener(str(fields["event"]), told)
        if severity < self._least:
            raise structlog.DropEvent
        return fields


class LineWriter:
    """Writes lines to a descriptor from a thread of its own, so that a reader that stalls never stops the caller.

    What finds the queue full is dropped; once the reader has caught up, the event `log.dropped` says how many. Any
    thread may call `line`.
    """

    def __init__(self, fd: int, lines: int = LINES) -> None:
        self._fd = fd
        self._queue: queue.Queue[str | None] = queue.Queue(lines)
        self._lock = threading.Lock()
        self._dropped = 0
        # A daemon thread: one that is stuck in `write` must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Take one line; never waits."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            with self._lock:
                self._dropped += 1

    # the methods that structlog calls on a logger
    msg = debug = info = warning = error = critical = exception = fatal = log = line

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Write what waits, as far as the reader takes it within `timeout_s`."""
        self._say_dropped()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            if self._write(f"{text}\n".encode(errors="backslashreplace")) and self._queue.empty():
                self._say_dropped()

    def _say_dropped(self) -> None:
        with self._lock:
            lines, self._dropped = self._dropped, 0
        if lines:
            log.warning("log.dropped", lines=lines)

    def _write(self, data: bytes) -> bool:
        """The whole line; False when nobody reads any more."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever shares the terminal with us has made it so
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


def set_level(level: str) -> None:
    """Another least severity, while `logging_to_stderr` holds."""
    least = LEVELS[level.upper()]
    processors = structlog.get_config()["processors"]
    tees = [Tee(least) if isinstance(step, Tee) else step for step in processors]
    structlog.configure(processors=tees, wrapper_class=_logger_of(least))


def _logger_of(least: int) -> type[structlog.typing.FilteringBoundLogger]:
    return structlog.make_filtering_bound_logger(min(least, logging.INFO))


@contextlib.contextmanager
def logging_to_stderr(level: str, form: str) -> Iterator[None]:
    """Set up structlog for this process; every line has time (UTC), level, event and its fields."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    writer = LineWriter(STDERR)
    least = LEVELS[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            Tee(least),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=_logger_of(least),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        writer.close()
        structlog.reset_defaults()
