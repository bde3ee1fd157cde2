"""The JSON feed: which lines count, what is refused and why, bounds on size and rate, on a real socket."""

import asyncio
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.clock import ManualClock
from rpi_daemon.drivers.hosts.feed import (
    MAX_BYTES,
    MAX_UNKNOWN,
    PER_LOAD_AND_SECOND,
    BadLine,
    TelemetryFeed,
    parse_line,
)
from rpi_daemon.errors import RpiError
from rpi_daemon.records import TELEMETRY, HostReading


def feed(*loads: str) -> tuple[TelemetryFeed, ManualClock]:
    clock = ManualClock()
    return TelemetryFeed(Path("/nowhere/telemetry.sock"), 0o660, loads or ("web-1",), clock), clock


@given(st.text(min_size=1), st.dictionaries(st.sampled_from(TELEMETRY), st.none() | st.floats(0.0, 1.0)))
def test_a_line_is_what_it_says(load: str, shares: dict[str, float | None]) -> None:
    assert parse_line(json.dumps({"load": load, **shares}).encode()) == (load, shares)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_line_or_a_bad_one(line: bytes) -> None:
    try:
        _, shares = parse_line(line)
    except BadLine:
        return
    assert set(shares) <= set(TELEMETRY)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"cpu=0.7", "a line is one JSON object"),
        (b"[1]", "a line is one JSON object"),
        (b"[" * 4000, "a line is one JSON object"),
        (b"\xff", "a line is one JSON object"),
        (b'{"cpu": 0.5}', '"load" is missing, or no text'),
        (b'{"load": 7, "cpu": 0.5}', '"load" is missing, or no text'),
        (b'{"load": "web-1", "cup": 0.5}', "unknown key 'cup'; allowed: load, cpu, memory, network, disk"),
        (b'{"load": "web-1", "cpu": 70}', "cpu is 70; a share from 0 to 1, or null, is needed"),
        (b'{"load": "web-1", "cpu": -0.1}', "cpu is -0.1"),
        (b'{"load": "web-1", "cpu": NaN}', "cpu is nan"),
        (b'{"load": "web-1", "cpu": true}', "cpu is True"),
        (b'{"load": "web-1", "cpu": "0.7"}', "cpu is 0.7; a share"),
        (b'{"load": "web-1", "cpu": 1e999}', "cpu is inf"),
    ],
)
def test_a_bad_line_is_counted_and_told(line: bytes, why: str) -> None:
    listening, _ = feed()
    listening.take(line)
    status = listening.status()
    assert (status["received"], status["refused"]) == (1, 1)
    assert status["last_error"].startswith(why)
    assert listening.take_readings() == []


def test_the_newest_line_of_each_load_counts_whole() -> None:
    listening, clock = feed("web-1", "web-2")
    listening.take(b'{"load": "web-1", "cpu": 0.2, "disk": 0.1}\n\n{"load": "web-2", "memory": 1}\n')
    clock.advance(0.5)
    listening.take(b'{"load": "web-1", "cpu": 0.7, "network": null}')
    assert listening.take_readings() == [
        HostReading("web-1", 500_000_000, cpu=0.7),  # its disk is not known any more
        HostReading("web-2", 0, memory=1.0),
    ]
    assert listening.take_readings() == []


def test_unknown_loads_are_counted_by_name_and_bounded() -> None:
    listening, clock = feed()
    for k in range(MAX_UNKNOWN + 5):
        clock.advance(1.0)
        listening.take(json.dumps({"load": f"web\x1b-{k}", "cpu": 0.5}).encode())
    listening.take(b'{"load": "web-0", "cpu": 0.5}')
    unknown = listening.status()["unknown_loads"]
    assert len(unknown) == MAX_UNKNOWN + 1
    assert unknown["web-0"] == 2  # without what a terminal would obey
    assert unknown[""] == 5


def test_size_and_rate_are_bounded() -> None:
    listening, clock = feed()
    listening.take(b" " * (MAX_BYTES + 1))
    assert listening.status()["last_error"] == f"a datagram is at most {MAX_BYTES} bytes"
    line = b'{"load": "web-1", "cpu": 0.5}'
    for _ in range(100):
        listening.take(line)
    assert listening.status()["dropped"] == 100 - PER_LOAD_AND_SECOND
    clock.advance(0.5)
    for _ in range(100):
        listening.take(line)
    assert listening.status()["dropped"] == 200 - 1.5 * PER_LOAD_AND_SECOND


def test_it_listens_on_a_socket_that_others_may_not_use(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sock"
    path.touch()  # left over from a crash

    async def run() -> list[HostReading]:
        listening = TelemetryFeed(path, 0o660, ("web-1",), ManualClock())
        listening.open()
        try:
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o660
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
                agent.connect(str(path))
                agent.send(b'{"load": "web-1", "cpu": 0.25}\n')
                agent.send(b"x" * (MAX_BYTES + 100))
            for _ in range(10):
                await asyncio.sleep(0)  # the datagrams are in the socket already
            return listening.take_readings()
        finally:
            listening.close()
            listening.close()

    old = os.umask(0)
    try:
        assert asyncio.run(run()) == [HostReading("web-1", 0, cpu=0.25)]
    finally:
        os.umask(old)
    assert not path.exists()


def test_a_socket_that_cannot_be_made_is_one_sentence() -> None:
    listening, _ = feed()
    with pytest.raises(RpiError, match=r"/nowhere/telemetry.sock: cannot listen: .*; check daemon.runtime_dir"):
        listening.open()
