"""A feed of JSON lines on a Unix datagram socket: agents of any kind say what a load's host does."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.local_socket import bound
from rpi_daemon.records import TELEMETRY, HostReading

MAX_BYTES: Final = 4096  # of a datagram: one line, or a few
PER_LOAD_AND_SECOND: Final = 20  # lines; more are dropped unread
AT_ONCE: Final = 32  # datagrams taken per turn of the loop
MAX_UNKNOWN: Final = 32  # names of unknown loads that are kept apart


class BadLine(Exception):
    """Not a line of the feed; says why."""


def parse_line(line: bytes) -> tuple[str, dict[str, float | None]]:
    """The load and the shares that a line gives. Raises BadLine."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine("a line is one JSON object") from None
    if not isinstance(document, dict):
        raise BadLine("a line is one JSON object")
    load = document.pop("load", None)
    if not isinstance(load, str) or not load:
        raise BadLine('"load" is missing, or no text')
    for key, value in document.items():
        if key not in TELEMETRY:
            raise BadLine(f"unknown key {key[:40]!r}; allowed: load, {', '.join(TELEMETRY)}")
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise BadLine(f"{key} is {str(value)[:40]}; a share from 0 to 1, or null, is needed")
    return load, {key: None if value is None else float(value) for key, value in document.items()}


class TelemetryFeed:
    """Listens at `path`. The newest line of each load counts; nobody is answered, what is wrong is counted."""

    def __init__(self, path: Path, mode: int, loads: Iterable[str], clock: Clock) -> None:
        self.received = self.refused = self.dropped = 0
        self.unknown: Counter[str] = Counter()  # lines by the load that nobody configured; others under ""
        self.last_error = ""
        self._path = path
        self._mode = mode
        self._loads = frozenset(loads)
        self._clock = clock
        self._newest: dict[str, HostReading] = {}
        self._rate = PER_LOAD_AND_SECOND * len(self._loads)
        self._allowance = float(self._rate)
        self._allowed_ns = clock.mono_ns()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Listen; the caller holds the daemon's lock. Raises RpiError."""
        self._socket = bound(self._path, socket.SOCK_DGRAM, self._mode)
        asyncio.get_running_loop().add_reader(self._socket, self._take_datagrams, self._socket)

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._path.unlink(missing_ok=True)

    def take_readings(self) -> list[HostReading]:
        """The newest of each load that said something since the last call."""
        readings, self._newest = list(self._newest.values()), {}
        return readings

    def status(self) -> dict[str, Any]:
        """Counters, for views."""
        return {
            "socket": str(self._path),
            "received": self.received,
            "refused": self.refused,
            "dropped": self.dropped,
            "unknown_loads": dict(self.unknown),
            "last_error": self.last_error or None,
        }

    def _take_datagrams(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                datagram = listener.recv(MAX_BYTES + 1)
            except BlockingIOError:
                return
            self.take(datagram)

    def take(self, datagram: bytes) -> None:
        """One datagram: a line, or several."""
        if len(datagram) > MAX_BYTES:
            self._refuse(f"a datagram is at most {MAX_BYTES} bytes")
            return
        for line in datagram.splitlines():
            if not line.strip():
                continue
            self.received += 1
            if not self._within_rate():
                self.dropped += 1
                continue
            try:
                load, shares = parse_line(line)
            except BadLine as error:
                self._refuse(str(error))
                continue
            if load in self._loads:
                self._newest[load] = HostReading(load, self._clock.mono_ns(), **shares)
            else:
                name = "".join(c for c in load[:64] if c.isprintable())
                known = name in self.unknown or len(self.unknown) < MAX_UNKNOWN
                self.unknown[name if known else ""] += 1

    def _refuse(self, why: str) -> None:
        self.refused += 1
        self.last_error = why

    def _within_rate(self) -> bool:
        now_ns = self._clock.mono_ns()
        earned = self._rate * (now_ns - self._allowed_ns) / NS_PER_S
        self._allowance = min(self._rate, self._allowance + earned)
        self._allowed_ns = now_ns
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True
