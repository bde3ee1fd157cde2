"""The log: a reader that stalls costs lines, which are counted, and never stops who logs."""

import fcntl
import json
import os
import threading
from collections.abc import Iterator

import pytest
import structlog

from rpi_daemon.log import LineWriter

F_SETPIPE_SZ = 1031  # Linux; not named by the module of this Python


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read end and write end of a pipe that holds one page."""
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, F_SETPIPE_SZ, 4096)
    yield read_fd, write_fd
    os.close(write_fd)
    os.close(read_fd)


def _read_lines(fd: int, until: str) -> list[str]:
    """Lines up to one that holds `until`."""
    data = b""
    while until not in (text := data.decode()) or not text.endswith("\n"):
        data += os.read(fd, 65536)
    return text.splitlines()


def test_lines_come_out_in_order_and_whole(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    for i in range(20):
        writer.info(f"line {i}")
    writer.close()
    assert _read_lines(pipe[0], "line 19") == [f"line {i}" for i in range(20)]


def test_a_stalled_reader_costs_lines_that_are_counted(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"full" * 1023 + b"pipe")
    writer = LineWriter(pipe[1], lines=10)
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=lambda *_: writer)
    try:
        for i in range(300):
            writer.info(f"{i:03}")
        lines = _read_lines(pipe[0], "log.dropped")
    finally:
        writer.close()
        structlog.reset_defaults()
    said = [line.removeprefix("full" * 1023 + "pipe") for line in lines]
    assert said[:10] == [f"{i:03}" for i in range(10)]
    assert len(said) <= 12  # the queue, what was in the thread's hands, and the last word
    assert json.loads(said[-1]) == {"event": "log.dropped", "lines": 300 - (len(said) - 1)}


def test_closing_does_not_wait_for_a_stalled_reader_for_ever(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], lines=10)
    for i in range(100):
        writer.info(f"{i:099}")
    closed = threading.Event()
    closer = threading.Thread(target=lambda: (writer.close(0.1), closed.set()))
    closer.start()
    assert closed.wait(5.0)
    closer.join()
    while writer._thread.is_alive():  # the reader is back: it ends by itself
        os.read(pipe[0], 65536)
        writer.close(0.05)


def test_no_reader_at_all_harms_nobody() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    writer = LineWriter(write_fd)
    writer.info("into the void")
    writer.close()
    assert not writer._thread.is_alive()
    os.close(write_fd)
