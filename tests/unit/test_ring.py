"""Ring memory: clear refusals, reading in place, other processes, a producer that is killed."""

import mmap
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, RingReader

N_CHANNELS, CAPACITY = 5, 40


def new_ring(n_channels: int = N_CHANNELS, capacity: int = CAPACITY) -> Ring:
    held = memory.anonymous(Ring.bytes_needed(n_channels, capacity))
    return Ring(held, n_channels=n_channels, capacity=capacity)


def push(ring: Ring, index: int) -> None:
    counts = np.arange(ring.n_channels, dtype=np.int32) + index
    ring.push(index, 1000 * index, 7 * index, index & 3, counts)


def test_spans_are_the_memory_itself() -> None:
    ring = new_ring()
    for index in range(100):
        push(ring, index)
    first, second = ring.spans(70, 30)  # 70 % 40 = 30: wraps around
    assert (len(first), len(second)) == (10, 20)
    assert first["index"].tolist() + second["index"].tolist() == list(range(70, 100))
    np.testing.assert_array_equal(second["counts"][:, 0], np.arange(80, 100))
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert ring.intact(70)
    push(ring, 109)  # scan 69 is gone, and 100 to 108 never were
    assert ring.intact(70)
    push(ring, 110)
    assert not ring.intact(70)
    assert first["index"][0] == 110  # in place: what lies there now
    assert ring.missing(71, 40) == 9


def test_lost_scans_are_an_index_mismatch() -> None:
    ring = new_ring()
    for index in (0, 1, 2, 5, 6, 14):
        push(ring, index)
    scans, present = ring.read(0, 16)
    assert np.flatnonzero(present).tolist() == [0, 1, 2, 5, 6, 14]
    assert scans["t_mono_ns"][14] == 14_000
    assert scans["counts"][3].tolist() == [0] * N_CHANNELS
    assert (ring.head, ring.missing(0, 15)) == (15, 9)
    reader = RingReader(ring)
    assert reader.take(4)["index"].tolist() == [0, 1, 2, 5]
    assert (reader.lost, reader.next) == (2, 6)
    assert reader.take(100)["index"].tolist() == [6, 14]
    assert (reader.lost, reader.next) == (9, 15)


def test_push_refuses() -> None:
    ring = new_ring()
    push(ring, 10)
    counts = np.zeros(N_CHANNELS, np.int32)
    with pytest.raises(ValueError, match="index 10 goes back: scans up to 10 are written"):
        ring.push(10, 0, 0, 0, counts)
    with pytest.raises(ValueError, match="4 counts for 5 channels"):
        ring.push(11, 0, 0, 0, counts[:4])
    with pytest.raises(ValueError, match="beyond"):
        ring.push(2**63, 0, 0, 0, counts)
    assert ring.head == 11


def test_shape_refusals() -> None:
    with pytest.raises(ValueError, match="n_channels = 0"):
        Ring.bytes_needed(0, 10)
    with pytest.raises(ValueError, match="capacity = 0"):
        Ring.bytes_needed(1, 0)
    needed = Ring.bytes_needed(2, 10)
    with pytest.raises(ValueError, match=f"needs {needed} bytes, not {needed - 1}"):
        Ring(bytearray(needed - 1), n_channels=2, capacity=10)
    with pytest.raises(ValueError, match="rate_hz = 0"):
        Ring(bytearray(needed), n_channels=2, capacity=10, rate_hz=0)
    with pytest.raises(BufferError):
        Ring(bytes(needed), n_channels=2, capacity=10)
    with pytest.raises(ValueError, match="41 scans are more than the ring's 40"):
        new_ring().spans(0, 41)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\0" * 8, "not a ring"),
        (8, b"\x63\0\0\0", "ring version 99 is not 1"),
        (12, b"\0\0\0\0", "damaged: 0 channels"),
        (16, b"\0" * 8, "damaged: 5 channels, 0 scans"),
        (16, b"\xff" * 7 + b"\x0f", "cut short"),
        (24, b"\x08", "damaged"),
    ],
)
def test_attach_refuses_damage(offset: int, value: bytes, message: str) -> None:
    held = bytearray(Ring.bytes_needed(N_CHANNELS, CAPACITY))
    Ring(held, n_channels=N_CHANNELS, capacity=CAPACITY)
    assert Ring(bytes(held)).capacity == CAPACITY
    held[offset : offset + len(value)] = value
    with pytest.raises(ValueError, match=message):
        Ring(bytes(held))


def test_attach_refuses_short_memory() -> None:
    held = bytearray(Ring.bytes_needed(N_CHANNELS, CAPACITY))
    Ring(held, n_channels=N_CHANNELS, capacity=CAPACITY)
    for n_bytes in (0, 100, 4096, len(held) - 1):
        with pytest.raises(ValueError, match="cut short"):
            Ring(bytes(held[:n_bytes]))


def test_read_only_attachment_does_not_push(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = Ring(memory.shared_file(path, Ring.bytes_needed(2, 10)), n_channels=2, capacity=10, rate_hz=2000)
    other = Ring(memory.readable_file(path))
    push(ring, 3)
    assert (other.head, other.n_channels, other.capacity, other.rate_hz) == (4, 2, 10, 2000)
    assert other.scans["counts"][3].tolist() == [3, 4]
    with pytest.raises(ValueError, match="read-only"):
        push(other, 4)


def test_keep_continues_only_the_same_shape(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    n_bytes = Ring.bytes_needed(3, 10)
    push(Ring(memory.shared_file(path, n_bytes), n_channels=3, capacity=10), 7)
    kept = Ring(memory.shared_file(path, n_bytes), n_channels=3, capacity=10, keep=True)
    assert (kept.head, kept.missing(7, 1)) == (8, 0)
    other_rate = Ring(memory.shared_file(path, n_bytes), n_channels=3, capacity=10, rate_hz=2000, keep=True)
    assert (other_rate.head, other_rate.missing(7, 1)) == (0, 1)
    push(other_rate, 7)
    larger = Ring(
        memory.shared_file(path, Ring.bytes_needed(3, 11)), n_channels=3, capacity=11, rate_hz=2000, keep=True
    )
    assert (larger.head, larger.capacity) == (0, 11)


def test_full_tmpfs_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """Pages are reserved up front: a file size that cannot be had is refused when the ring is made."""
    with pytest.raises(OSError, match=r"No space left|File too large|Cannot allocate"):
        memory.shared_file(Path("/dev/shm") / f"rpi-ring-{os.getpid()}", 2**50)
    (Path("/dev/shm") / f"rpi-ring-{os.getpid()}").unlink(missing_ok=True)


def test_anonymous_memory_is_named() -> None:
    with memory.anonymous(mmap.PAGESIZE, "rpi-ring-test"):
        assert "rpi-ring-test" in Path("/proc/self/maps").read_text()


PRODUCER = """
import sys, numpy as np
from pathlib import Path
from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring
ring = Ring(memory.shared_file(Path(sys.argv[1]), Ring.bytes_needed(48, 5000)), n_channels=48, capacity=5000)
index = 0
print("ready", flush=True)
while True:
    if index % 10 != 3:
        ring.push(index, index, index, 0, np.full(48, index, np.int32))
    index += 1
"""


def test_reader_in_another_process_while_written_and_after_kill(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    with subprocess.Popen([sys.executable, "-c", PRODUCER, str(path)], stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        assert select.select([producer.stdout], [], [], 30)[0], "the producer did not start"
        ring = Ring(memory.readable_file(path))
        reader = RingReader(ring)
        taken = 0
        while reader.next < 50_000:  # ten times around, while it is written
            scans = reader.take(1000)
            taken += len(scans)
            assert (np.diff(scans["index"].astype(np.int64)) > 0).all()
            assert (scans["counts"] == scans["index"][:, None].astype(np.int32)).all()  # none torn
            assert not (scans["index"] % 10 == 3).any()
        assert taken + reader.lost == reader.next
        producer.kill()
    head = ring.head
    scans, present = ring.read(head - 4000, 4000)
    np.testing.assert_array_equal(present, np.arange(head - 4000, head) % 10 != 3)
    assert (scans["counts"][present] == np.arange(head - 4000, head)[present, None]).all()
    again = Ring(memory.shared_file(path, Ring.bytes_needed(48, 5000)), n_channels=48, capacity=5000, keep=True)
    assert again.head == head
    again.push(head + 100, 0, 0, 0, np.zeros(48, np.int32))
    assert again.missing(head, 101) == 100  # nothing half-written turns up
