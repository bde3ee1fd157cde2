"""The sampling thread over real pipes and pseudo-terminals: exact counts, hang-ups, stops, deadlines, words on scheduling."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import (
    BoardDescription,
    ChannelDescription,
    Ring,
    Sampler,
    encode_data_frame,
    encode_description,
    parse_description,
)

N_CHANNELS, N_SCANS, TICKS_A_SCAN = 4, 10, 1000
PATIENCE_S = 20.0
DESCRIPTION = BoardDescription(
    1000, 1_000_000, "SN1", "1.0", 0, tuple(ChannelDescription("current", n + 1, 0.5, 0, 8000, "") for n in range(4))
)


def new_ring(capacity: int = 5000, n_channels: int = N_CHANNELS) -> Ring:
    held = memory.anonymous(Ring.bytes_needed(n_channels, capacity))
    return Ring(held, n_channels=n_channels, capacity=capacity)


def counts_of(first: int, n: int = N_SCANS) -> NDArray[np.int32]:
    """What scans first .. first + n - 1 measured: every count follows from index and channel."""
    return (np.arange(first, first + n)[:, None] * 7 + np.arange(N_CHANNELS)).astype(np.int32) % 8000


def frame(first: int, *, boot_id: int = 5, overflow: int = 0, board_id: int = 0, tick_offset: int = 0) -> bytes:
    return encode_data_frame(
        counts_of(first), width=16, board_id=board_id, boot_id=boot_id, index=first % 2**32,
        ticks=(tick_offset + first * TICKS_A_SCAN) % 2**32, overflow=overflow,
    )  # fmt: skip


class Event:
    """The eventfd that a sampler rings; waits are bounded."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.total = 0

    def poll(self, timeout_s: float) -> bool:
        return bool(select.select([self.fd], [], [], timeout_s)[0])

    def wait(self) -> int:
        assert self.poll(PATIENCE_S), "the sampler did not ring"
        value = os.eventfd_read(self.fd)
        self.total += value
        return value


@pytest.fixture
def event() -> Iterator[Event]:
    event = Event()
    yield event
    os.close(event.fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end)."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def raw_pty() -> tuple[int, int]:
    """(board side, host side) of a pseudo-terminal that passes every byte, read as pyserial does (VMIN 0)."""
    board, host = pty.openpty()
    tty.setraw(host)
    mode = termios.tcgetattr(host)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 0, 0
    termios.tcsetattr(host, termios.TCSANOW, mode)
    os.set_blocking(board, False)
    os.set_blocking(host, False)
    return board, host


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that rings no bell."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.0005)


def only(counters: dict[str, int], *names: str) -> dict[str, int]:
    return {name: counters[name] for name in names}


def assert_nothing_wrong(counters: dict[str, int], *but: str) -> None:
    wrong = {name for name, value in counters.items() if value and name not in ("received", "bytes_in", "late", *but)}
    assert not wrong, counters


def assert_holds(ring: Ring, first: int, n: int, shift: int = 0) -> None:
    """Scans first .. first + n - 1 are in the ring, as sent; `shift`: ring index minus the board's."""
    scans, present = ring.read(first + shift, n)
    assert present.all()
    np.testing.assert_array_equal(scans["counts"], counts_of(first, n))
    assert (np.diff(scans["t_mono_ns"]) > 0).all()


def test_pty_delivers_every_scan(event: Event) -> None:
    board, host = raw_pty()
    ring = new_ring()
    sampler = Sampler(ring, event_fd=event.fd)
    before_ns = time.monotonic_ns()
    sampler.start_streamed(host)
    assert sampler.connected()
    for first in range(0, 3000, N_SCANS):
        os.write(board, frame(first))
        if first % 100 == 90:
            assert event.wait() == 1  # once, and only when the hundred is complete
            assert ring.head == first + N_SCANS
            assert not event.poll(0)
    sampler.stop()
    assert not sampler.connected()
    counters = sampler.counters()
    assert_nothing_wrong(counters)
    assert counters["received"] == 3000
    assert event.total == 30
    assert sampler.boot_id() == 5
    assert_holds(ring, 0, 3000)
    scans, _ = ring.read(0, 3000)
    ticks = np.arange(3000) * TICKS_A_SCAN
    ticks[:N_SCANS] = 0  # within the very first frame nobody knows yet how many there are to a scan
    np.testing.assert_array_equal(scans["ticks"], ticks)
    assert before_ns - 10_000_000 < scans["t_mono_ns"][0] < scans["t_mono_ns"][-1] <= time.monotonic_ns()
    os.close(host)
    os.close(board)


def test_stop_decodes_what_was_received(pipe: tuple[int, int]) -> None:
    """Everything that is in the descriptor when stop is called ends up in the ring, however much that is."""
    host, board = pipe
    fcntl.fcntl(board, fcntl.F_SETPIPE_SZ, 1 << 20)
    ring = new_ring(capacity=40_000)
    data = b"".join(frame(first) for first in range(0, 40_000, N_SCANS))
    assert 5 * 65536 < len(data) < 1 << 20
    assert os.write(board, data) == len(data)
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    sampler.stop()  # at once: most is still in the pipe
    assert sampler.counters()["received"] == 40_000
    assert_holds(ring, 0, 40_000)
    os.write(board, frame(40_000))
    sampler.stop()
    assert ring.head == 40_000


def test_stop_drains_a_pty() -> None:
    board, host = raw_pty()
    ring = new_ring()
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    sent = 0
    for first in range(0, 2000, N_SCANS):
        data = frame(first)
        try:
            if os.write(board, data) < len(data):
                break  # full
        except BlockingIOError:
            break
        sent += N_SCANS
    sampler.stop()
    assert sampler.counters()["received"] == sent > 0
    assert_holds(ring, 0, sent)
    os.close(board)
    os.close(host)


KINDS = ("good", "good", "good", "good", "drop", "overflow", "flip", "cut", "repeat", "garbage", "foreign", "saturated")


@settings(max_examples=60)
@given(st.lists(st.sampled_from(KINDS), max_size=32), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_counters_are_exact(kinds: list[str], first: int, random: Random) -> None:
    """Known damage in a random order, index and ticks wrapping at random: every counter is what was injected."""
    expected = dict.fromkeys(
        ("received", "lost", "corrupt", "overflow", "repeated", "foreign", "saturated", "faults"), 0
    )
    wire, index, last, dropped = [b"\0"], first, first, 0
    present: list[int] = []
    for kind in ("good", *kinds, "good"):
        data = frame(index, overflow=dropped, tick_offset=2**31)
        if kind == "garbage":
            wire.append(bytes(random.choices(range(1, 256), k=random.randint(1, 300))) + b"\0")
            expected["corrupt"] += 1
            continue
        if kind == "foreign":
            wire.append(frame(index, board_id=3))
            expected["foreign"] += 1
            continue
        if kind == "repeat":
            wire.append(frame(last, overflow=dropped))
            expected["repeated"] += N_SCANS
            continue
        if kind == "saturated":
            counts = counts_of(index)
            counts[2, 1], counts[3, :2], counts[9, 3] = 2**31 - 1, -(2**31) + 1, -(2**31)
            data = encode_data_frame(
                counts, boot_id=5, index=index % 2**32, ticks=(2**31 + index * 1000) % 2**32, overflow=dropped
            )
            expected["saturated"] += 3
            expected["faults"] += 1
        if kind in ("good", "saturated"):
            last = index
            present += range(index, index + N_SCANS)
            expected["received"] += N_SCANS
        else:
            expected["lost"] += N_SCANS
        if kind == "overflow":
            dropped += N_SCANS
            expected["overflow"] += N_SCANS
        if kind in ("flip", "cut"):
            at = random.randrange(len(data) - 1)
            other = random.choice([byte for byte in range(1, 256) if byte != data[at]])
            data = data[:at] + bytes([other]) + data[at + 1 :] if kind == "flip" else data[:at] + data[-1:]
            expected["corrupt"] += data != b"\0"  # cut to nothing, it is only lost
        if kind not in ("drop", "overflow"):
            wire.append(data)
        index += N_SCANS
    host, board = os.pipe()
    ring = new_ring(capacity=1000)
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    os.write(board, b"".join(wire))
    sampler.stop()
    os.close(host)
    os.close(board)
    counters = sampler.counters()
    assert only(counters, *expected) == expected
    assert counters["bytes_in"] == sum(map(len, wire))
    assert (counters["disconnects"], counters["reboots"], counters["starved"]) == (0, 0, 0)
    assert ring.head == index
    _, there = ring.read(first, index - first)
    assert (np.flatnonzero(there) + first).tolist() == present
    assert ring.missing(first, index - first) == counters["lost"]


def test_flags_tell_which_scan(pipe: tuple[int, int]) -> None:
    host, board = pipe
    ring = new_ring()
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    counts = counts_of(0)
    counts[2, 1], counts[3, 0], counts[3, 1] = 2**31 - 1, -(2**31) + 1, -(2**31)
    os.write(board, encode_data_frame(counts, boot_id=5, status=6))
    sampler.stop()
    scans, _ = ring.read(0, N_SCANS)
    assert scans["flags"].tolist() == [4, 0, 1, 3, 0, 0, 0, 0, 0, 0]  # 4: the first after a start
    assert set(scans["status"].tolist()) == {6}
    np.testing.assert_array_equal(scans["counts"], counts)


def test_reboot_is_not_a_loss(pipe: tuple[int, int]) -> None:
    host, board = pipe
    ring = new_ring()
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    for first in range(0, 250, N_SCANS):
        os.write(board, frame(first))
    for first in range(20, 120, N_SCANS):  # the first 20 scans after the reboot did not reach us
        os.write(board, frame(first, boot_id=6, tick_offset=999_999))
    sampler.stop()
    assert only(sampler.counters(), "received", "lost", "reboots") == {"received": 350, "lost": 20, "reboots": 1}
    assert sampler.boot_id() == 6
    assert_holds(ring, 0, 250)
    assert_holds(ring, 20, 100, shift=300)
    scans, _ = ring.read(0, 420)
    assert np.flatnonzero(scans["flags"]).tolist() == [0, 320]  # the first after the start, and after the reboot
    assert ring.head == 420


def test_hang_up_wakes_and_attach_goes_on(event: Event) -> None:
    board, host = raw_pty()
    ring = new_ring()
    sampler = Sampler(ring, event_fd=event.fd)
    sampler.start_streamed(host)
    data = b"".join(frame(first) for first in range(0, 50, N_SCANS)) + frame(50)[:20]
    sent_bytes = os.write(board, data)  # the plug is pulled within a frame
    assert sent_bytes == len(data)
    until(lambda: sampler.counters()["bytes_in"] == sent_bytes, "the cut frame did not arrive")
    os.close(board)
    event.wait()
    assert not sampler.connected()
    assert sampler.counters()["disconnects"] == 1
    os.close(host)
    board, host = raw_pty()
    sampler.attach(host)
    assert sampler.connected()
    os.write(board, b"\0")
    for first in range(70, 200, N_SCANS):  # the board went on meanwhile
        os.write(board, frame(first))
    while ring.head < 200:
        event.wait()
    sampler.stop()
    counters = sampler.counters()
    assert only(counters, "received", "lost", "reboots", "disconnects") == {
        "received": 180, "lost": 20, "reboots": 0, "disconnects": 1,
    }  # fmt: skip
    assert_holds(ring, 0, 50)
    assert_holds(ring, 70, 130)
    os.close(board)
    os.close(host)


def test_end_of_a_pipe_and_stop_while_unplugged(event: Event) -> None:
    host, board = os.pipe()
    sampler = Sampler(new_ring(), event_fd=event.fd)
    sampler.start_streamed(host)
    os.write(board, frame(0))
    os.close(board)
    assert event.wait() == 1
    assert not sampler.connected()
    assert only(sampler.counters(), "received", "disconnects") == {"received": 10, "disconnects": 1}
    sampler.stop()
    os.close(host)


def test_attach_replaces_a_live_descriptor(event: Event) -> None:
    host, board = os.pipe()
    ring = new_ring()
    sampler = Sampler(ring, event_fd=event.fd)
    sampler.start_streamed(host)
    other_host, other_board = os.pipe()
    sampler.attach(other_host)
    os.close(host)  # not touched any more
    for first in range(0, 100, N_SCANS):
        os.write(other_board, frame(first))
    event.wait()
    assert ring.head == 100
    assert sampler.counters()["disconnects"] == 0
    sampler.stop()
    for fd in (board, other_host, other_board):
        os.close(fd)


def test_description_is_kept(pipe: tuple[int, int]) -> None:
    host, board = pipe
    sampler = Sampler(new_ring())
    assert sampler.description() is None
    sampler.start_streamed(host)
    os.write(board, encode_description(DESCRIPTION, width=16, boot_id=5) + frame(0))
    sampler.stop()
    payload = sampler.description()
    assert payload is not None
    assert parse_description(payload) == DESCRIPTION
    assert sampler.counters()["received"] == N_SCANS


def test_other_channel_count_is_foreign(pipe: tuple[int, int]) -> None:
    host, board = pipe
    ring = new_ring(n_channels=3)
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    os.write(board, encode_description(DESCRIPTION, width=16, boot_id=5) + frame(0))
    os.write(board, encode_description(DESCRIPTION, width=16, boot_id=5, board_id=9))
    sampler.stop()
    assert only(sampler.counters(), "received", "foreign") == {"received": 0, "foreign": 2}
    assert ring.head == 0
    payload = sampler.description()
    assert payload is not None  # it says how many channels there are
    assert len(parse_description(payload).channels) == N_CHANNELS


def test_lateness_beyond_a_period_is_counted(event: Event, pipe: tuple[int, int]) -> None:
    host, board = pipe
    sampler = Sampler(new_ring(), event_fd=event.fd)
    assert np.isnan(sampler.lateness_us(0.5))
    sampler.start_streamed(host)
    for first in range(0, 40, N_SCANS):  # all at once: each comes up to 10 ms earlier than the one before let expect
        os.write(board, frame(first))
    until(lambda: sampler.counters()["received"] == 40, "frames did not arrive")
    assert not event.poll(0.05)
    os.write(board, frame(40))  # 10 ms of board time later, at least 50 ms of ours
    sampler.stop()
    assert sampler.counters()["late"] == N_SCANS
    assert 0.98 * 40_000 < sampler.lateness_us(1.0) < PATIENCE_S * 1e6
    assert sampler.lateness_us(0.5) < 1000


def test_sampler_goes_on_behind_what_is_in_the_ring(pipe: tuple[int, int]) -> None:
    """A restarted daemon continues the ring that it finds, by whole hundreds, with the board's index far lower."""
    host, board = pipe
    ring = new_ring()
    ring.push(1234, 0, 0, 0, counts_of(0)[0])
    sampler = Sampler(ring)
    sampler.start_streamed(host)
    os.write(board, frame(30) + frame(40))
    sampler.stop()
    assert ring.head == 1250 + 100
    assert_holds(ring, 30, 20, shift=1300)
    assert ring.missing(1234, 1) == 0
    assert sampler.counters()["lost"] == 0


def test_notifications_are_aligned_with_the_index(event: Event, pipe: tuple[int, int]) -> None:
    host, board = pipe
    sampler = Sampler(new_ring(), event_fd=event.fd, notify_every=50)
    sampler.start_streamed(host)
    os.write(board, b"".join(frame(first) for first in range(1030, 1100, N_SCANS)))
    sampler.stop()
    assert event.wait() == 2  # complete: up to 1050, up to 1100
    assert not event.poll(0)


def paced_feed(n: int, capacity: int = 5000) -> Ring:
    feed = new_ring(capacity)
    for index, counts in enumerate(counts_of(0, n)):
        feed.push(index, 0, 0, index % 5, counts, flags=index % 3)
    return feed


def test_paced_scans_carry_their_deadlines(event: Event) -> None:
    ring, feed = new_ring(), paced_feed(400)
    sampler = Sampler(ring, event_fd=event.fd)
    before_ns = time.monotonic_ns()
    sampler.start_paced(feed, 500_000)
    while ring.head < 300:
        event.wait()
    sampler.stop()
    n = ring.head
    scans, present = ring.read(0, n)
    assert present.all()
    assert set(np.diff(scans["t_mono_ns"]).tolist()) == {500_000}
    assert before_ns + 500_000 <= scans["t_mono_ns"][0]
    assert scans["t_mono_ns"][-1] <= time.monotonic_ns()
    np.testing.assert_array_equal(scans["counts"], counts_of(0, n))
    np.testing.assert_array_equal(scans["status"], np.arange(n) % 5)
    assert scans["flags"][0] == 4  # the first after a start
    np.testing.assert_array_equal(scans["flags"][1:], np.arange(1, n) % 3)
    np.testing.assert_array_equal(scans["ticks"], scans["t_mono_ns"].astype(np.uint64))
    counters = sampler.counters()
    assert_nothing_wrong(counters, "starved")
    assert counters["received"] == n
    assert sampler.forwarded() == n + counters["starved"]
    assert 0 < sampler.lateness_us(0.5) <= sampler.lateness_us(0.99) <= sampler.lateness_us(1.0)


def test_starved_scans_are_counted_and_missing(event: Event) -> None:
    ring, feed = new_ring(), new_ring()
    there = [index for index in range(200) if index not in (50, 51, 120)]
    for index in there:
        feed.push(index, 0, 0, 0, counts_of(index, 1)[0])
    sampler = Sampler(ring, event_fd=event.fd)
    sampler.start_paced(feed, 100_000)
    while sampler.forwarded() < 300:
        event.wait()
    sampler.stop()
    counters = sampler.counters()
    assert counters["received"] == len(there)
    assert counters["starved"] == sampler.forwarded() - len(there)
    assert counters["lost"] == 0
    assert np.flatnonzero(ring.read(0, 200)[1]).tolist() == there


def test_paced_begins_with_the_oldest_scan_of_the_feed(event: Event) -> None:
    ring, feed = new_ring(), paced_feed(250, capacity=200)
    ring.push(7, 0, 0, 0, counts_of(0)[0])
    sampler = Sampler(ring, event_fd=event.fd)
    sampler.start_paced(feed, 100_000)
    assert sampler.forwarded() >= 50
    while ring.head < 200:
        event.wait()
    sampler.stop()
    np.testing.assert_array_equal(ring.read(100, 100)[0]["counts"], counts_of(50, 100))


def test_misuse_is_refused(pipe: tuple[int, int]) -> None:
    ring = new_ring()
    with pytest.raises(ValueError, match="fifo_priority = 100"):
        Sampler(ring, fifo_priority=100)
    with pytest.raises(ValueError, match="notify_every = 0"):
        Sampler(ring, notify_every=0)
    with pytest.raises(ValueError, match="129 channels: a board has at most 128"):
        Sampler(new_ring(2, n_channels=129))
    sampler = Sampler(ring)
    with pytest.raises(ValueError, match="fd = -1"):
        sampler.start_streamed(-1)
    with pytest.raises(ValueError, match="3 channels, the ring 4"):
        sampler.start_paced(new_ring(n_channels=3), 1_000_000)
    with pytest.raises(ValueError, match="period_ns = 9999"):
        sampler.start_paced(new_ring(), 9_999)
    with pytest.raises(ValueError, match="only a running"):
        sampler.attach(pipe[0])
    sampler.start_streamed(pipe[0])
    with pytest.raises(ValueError, match="started once"):
        sampler.start_streamed(pipe[0])
    with pytest.raises(ValueError, match=r"q = 1.5"):
        sampler.lateness_us(1.5)
    sampler.stop()
    sampler.stop()
    with pytest.raises(ValueError, match="only a running"):
        sampler.attach(pipe[0])


def test_forgotten_sampler_stops_its_thread(pipe: tuple[int, int]) -> None:
    before = len(os.listdir("/proc/self/task"))
    sampler = Sampler(new_ring())
    sampler.start_streamed(pipe[0])
    assert len(os.listdir("/proc/self/task")) == before + 1
    del sampler
    assert len(os.listdir("/proc/self/task")) == before


def test_scheduling_in_words_as_asked(pipe: tuple[int, int]) -> None:
    sampler = Sampler(new_ring())
    assert sampler.scheduling() == "not started"
    sampler.start_streamed(pipe[0])
    assert sampler.scheduling() == "SCHED_OTHER as asked, memory not locked as asked"
    sampler.stop()


REFUSED = """
import os, resource
from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, Sampler
resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.getuid() == 0:
    os.setuid(65534)
ring = Ring(memory.anonymous(Ring.bytes_needed(2, 10)), n_channels=2, capacity=10)
sampler = Sampler(ring, fifo_priority=80, lock_memory=True)
host, board = os.pipe()
sampler.start_streamed(host)
print(sampler.scheduling(), sampler.connected(), sep="|")
sampler.stop()
"""


def test_scheduling_in_words_when_refused() -> None:
    """Without the right, the thread runs all the same and says what it did not get, and what it would need."""
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=30, check=True)
    words, connected = done.stdout.strip().split("|")
    assert connected == "True"
    assert (
        "SCHED_FIFO 80 was refused (Operation not permitted; needs CAP_SYS_NICE or RLIMIT_RTPRIO of that, now 0)"
        in words
    )
    assert (
        "mlockall was refused (Cannot allocate memory; needs CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK, now 64 kB)"
        in words
    )
