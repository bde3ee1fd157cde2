"""Serial source over a pty: raw bytes, lock, unplug and re-plug, one clear line for each mistake."""

import fcntl
import os
import select
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath import core
from rpi_daemon.drivers.sensors import serial as serial_driver
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource
from rpi_daemon.errors import ConfigError, DeviceError, LockedError

NOBODY = 65534
TCGETS2 = 0x802C542A  # termios(3) hides rates that have no name
TERMIOS2 = struct.Struct("IIII20sII")  # iflag oflag cflag lflag, line and cc, ispeed ospeed


class Board:
    """The other end of a pty; `plug` makes `link` lead to a new one, as /dev/serial/by-id does."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master = -1
        self.plug()

    def plug(self) -> None:
        self.master, slave = os.openpty()
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(os.ttyname(slave))
        os.close(slave)

    def unplug(self) -> None:
        os.close(self.master)
        self.link.unlink()
        self.master = -1

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path / "board")
    yield board
    board.close()


@contextmanager
def opened(board: Board, baud: int = 3_000_000) -> Iterator[SerialSource]:
    source = SerialSource(SerialOptions(str(board.link), baud))
    source.open()
    try:
        yield source
    finally:
        source.close()


def receive(fd: int, n_bytes: int) -> bytes:
    got = b""
    while len(got) < n_bytes and select.select([fd], [], [], 2.0)[0]:
        got += os.read(fd, 65536)
    return got


def test_every_byte_passes_unchanged_and_no_data_is_not_a_hang_up(board: Board) -> None:
    with opened(board) as source:
        sent = bytes(range(256)) * 4 + b"\x03\x04\x11\x13\x1a\r\n\xff\x00"
        os.write(board.master, sent)
        assert receive(source.fileno(), len(sent)) == sent
        with pytest.raises(BlockingIOError):
            os.read(source.fileno(), 100)
        assert not os.get_blocking(source.fileno())
        assert source.codec == "rpi-frames"


def test_nothing_is_echoed_to_the_board(board: Board) -> None:
    with opened(board) as source:
        os.write(board.master, b"\x01\x02\0")
        receive(source.fileno(), 3)
        assert select.select([board.master], [], [], 0.05)[0] == []


@pytest.mark.parametrize("baud", [115_200, 3_000_000, 1_234_567])
def test_line_rate_is_set(board: Board, baud: int) -> None:
    with opened(board, baud) as source:
        settings = fcntl.ioctl(source.fileno(), TCGETS2, bytes(TERMIOS2.size))
        iflag, _oflag, cflag, lflag, cc, ispeed, ospeed = TERMIOS2.unpack(settings)
        assert (ispeed, ospeed) == (baud, baud)
        assert lflag & (termios.ICANON | termios.ECHO | termios.ISIG) == 0
        assert iflag & (termios.BRKINT | termios.IXON | termios.ICRNL) == 0
        assert cflag & termios.CLOCAL
        assert (cc[1 + termios.VMIN], cc[1 + termios.VTIME]) == (1, 0)


def test_unplug_is_a_hang_up_and_replug_delivers_frames_again(board: Board) -> None:
    decoder, timeline, scans = core.FrameDecoder(), core.Timeline(), []

    def pass_frames(source: SerialSource, indices: range, boot_id: int) -> None:
        wire = b"".join(core.encode_data_frame(np.full((10, 4), i), index=i, boot_id=boot_id) for i in indices)
        os.write(board.master, wire)
        for frame in decoder.feed(receive(source.fileno(), len(wire))):
            scans.append((*timeline.extend(frame)[:2], int(frame.counts()[0, 0])))

    source = SerialSource(SerialOptions(str(board.link)))
    source.open()
    pass_frames(source, range(0, 30, 10), boot_id=1)
    board.unplug()
    poll = select.poll()
    poll.register(source, select.POLLIN)
    assert poll.poll(2000)[0][1] & select.POLLHUP
    assert os.read(source.fileno(), 100) == b""
    source.close()
    with pytest.raises(DeviceError, match=r"no serial port at .*board: plug the board in"):
        source.open()
    board.plug()
    source.open()
    pass_frames(source, range(0, 20, 10), boot_id=2)
    source.close()
    assert scans == [
        (core.TIMELINE_CONTINUES, 0, 0),
        (core.TIMELINE_CONTINUES, 10, 10),
        (core.TIMELINE_CONTINUES, 20, 20),
        (core.TIMELINE_REBOOT, 100, 0),
        (core.TIMELINE_CONTINUES, 110, 10),
    ]


def test_sampler_survives_unplug_and_replug_and_counts_the_loss(board: Board) -> None:
    """Pulled within a frame and put back within another: the scans between are lost, exactly, and nothing else."""
    ring = core.Ring(bytearray(core.Ring.bytes_needed(4, 1000)), n_channels=4, capacity=1000)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    sampler = core.Sampler(ring, event_fd=event, notify_every=10)
    source = SerialSource(SerialOptions(str(board.link)))

    def wire(indices: range) -> bytes:
        return b"".join(
            core.encode_data_frame(np.full((10, 4), i), index=i, ticks=1000 * i, boot_id=9) for i in indices
        )

    def wait(until: Callable[[], bool]) -> None:
        for _ in range(100):
            if until():
                return
            if select.select([event], [], [], 0.05)[0]:
                os.eventfd_read(event)
        raise AssertionError(f"not in 5 s: {sampler.counters()}")

    source.open()
    sampler.start_streamed(source.fileno())
    first = wire(range(0, 100, 10)) + wire(range(100, 110, 10))[:30]
    os.write(board.master, first)
    wait(lambda: sampler.counters()["bytes_in"] == len(first))
    board.unplug()
    wait(lambda: not sampler.connected())
    source.close()
    board.plug()
    source.open()
    sampler.attach(source.fileno())
    os.write(board.master, wire(range(130, 140, 10))[20:] + wire(range(140, 200, 10)))
    wait(lambda: ring.head == 200)
    sampler.stop()
    source.close()
    os.close(event)

    counters = sampler.counters()
    assert (counters["received"], counters["lost"], counters["disconnects"], counters["reboots"]) == (160, 40, 1, 0)
    assert counters["corrupt"] == 1  # the frame that was cut; not the one in whose midst the plug went in
    scans, there = ring.read(0, 200)
    assert np.flatnonzero(~there).tolist() == list(range(100, 140))
    assert scans["counts"][there, 0].tolist() == [i // 10 * 10 for i in [*range(100), *range(140, 200)]]


def test_second_daemon_is_told_that_the_port_is_held(board: Board) -> None:
    with opened(board):
        other = SerialSource(SerialOptions(str(board.link)))
        with pytest.raises(LockedError, match="held by another process: stop that"):
            other.open()
        with pytest.raises(DeviceError, match="is not open"):
            other.fileno()
    other.open()
    other.close()


def test_open_again_replaces_the_old_descriptor_and_close_twice_is_safe(board: Board) -> None:
    with opened(board) as source:
        before = len(os.listdir("/proc/self/fd"))
        source.open()
        assert len(os.listdir("/proc/self/fd")) == before
        os.write(board.master, b"abc")
        assert receive(source.fileno(), 3) == b"abc"
        source.close()
        source.close()


def test_failed_open_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("file", "missing"):
        with pytest.raises(DeviceError):
            SerialSource(SerialOptions(str(tmp_path / name))).open()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("name", "kind"), [("file", "file"), ("folder", "folder")])
def test_what_is_not_a_serial_port_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "file":
        path.write_text("")
    else:
        path.mkdir()
    with pytest.raises(DeviceError, match=f"{path} is not a working serial port"):
        SerialSource(SerialOptions(str(path))).open()


def test_no_permission_names_the_group(board: Board) -> None:
    device = board.link.resolve()
    device.chmod(0)
    source = SerialSource(SerialOptions(str(device)))
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(DeviceError, match=f"not permitted to open {device}: add the user to the group"):
            source.open()
    finally:
        os.seteuid(user)


def test_missing_port_lists_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serial_driver._ports_present(tmp_path / "none") == f"its path below {tmp_path}/none (none is there now)"
    for name in ("usb-b", "usb-a"):
        (tmp_path / name).touch()
    assert serial_driver._ports_present(tmp_path) == f"one of {tmp_path}/usb-a, {tmp_path}/usb-b"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"port": "ttyUSB0"}, "not a path"), ({"port": "/dev/ttyUSB0", "baud": 300}, "300 bit/s is not within 9600")],
)
def test_bad_option_is_refused_before_the_wire(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SerialOptions(**options)
