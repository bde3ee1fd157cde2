"""The compiled ring against its pure-Python twin, for any sequence of pushes, gaps and reads."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, RingReader
from rpi_daemon._fastpath.reference import ReferenceReader, ReferenceRing, Scan

I32 = st.integers(-(2**31), 2**31 - 1)
U32 = st.integers(0, 2**32 - 1)
GAPS = st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 2**40))


def as_scan(row: np.void) -> Scan:
    fields: tuple[Any, ...] = row.item()
    index, t_mono_ns, ticks, status, flags, counts = fields
    return Scan(index, t_mono_ns, ticks, status, flags, tuple(counts.tolist()))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[tuple[Scan, int]]]:
    """Channels, capacity, and scans in order, each with how many scans the readers then take."""
    n_channels, capacity = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    steps, index = [], draw(st.integers(0, 2**50))
    for _ in range(draw(st.integers(0, 40))):
        index += draw(GAPS)
        counts = tuple(draw(st.lists(I32, min_size=n_channels, max_size=n_channels)))
        scan = Scan(
            index, draw(st.integers(-(2**63), 2**63 - 1)), draw(st.integers(0, 2**64 - 1)), draw(U32), draw(U32), counts
        )
        steps.append((scan, draw(st.integers(0, 5))))
        index += 1
    return n_channels, capacity, steps


def check_same(ring: Ring, twin: ReferenceRing) -> None:
    assert ring.head == twin.head
    first = max(0, twin.head - twin.capacity - 3)
    rows, present = ring.read(first, twin.capacity + 5)
    expected = [twin.scan(index) for index in range(first, first + len(rows))]
    assert present.tolist() == [scan is not None for scan in expected]
    assert [as_scan(row) for row in rows[present]] == [scan for scan in expected if scan is not None]
    assert all(as_scan(row) == Scan(0, 0, 0, 0, 0, (0,) * ring.n_channels) for row in rows[~present])
    assert ring.missing(first, len(rows)) == twin.missing(first, len(rows))
    assert [ring.intact(first + k) for k in range(5)] == [twin.intact(first + k) for k in range(5)]


@settings(max_examples=60)
@given(histories())
def test_ring_is_its_twin(history: tuple[int, int, list[tuple[Scan, int]]]) -> None:
    n_channels, capacity, steps = history
    ring = Ring(memory.anonymous(Ring.bytes_needed(n_channels, capacity)), n_channels=n_channels, capacity=capacity)
    twin = ReferenceRing(n_channels, capacity)
    start = steps[0][0].index if steps else 0
    reader, twin_reader = RingReader(ring, start), ReferenceReader(twin, start)
    taken = 0
    for scan, n in steps:
        counts = np.array(scan.counts, np.int32)
        ring.push(scan.index, scan.t_mono_ns, scan.ticks, scan.status, counts, flags=scan.flags)
        twin.push(scan)
        check_same(ring, twin)
        got = [as_scan(row) for row in reader.take(n)]
        assert got == [kept for kept in (twin_reader.pop() for _ in range(n)) if kept is not None]
        taken += len(got)
        assert reader.next - start == taken + reader.lost  # nothing is forgotten, nothing counted twice


@settings(max_examples=60)
@given(histories(), st.data())
def test_continued_ring_keeps_its_scans(history: tuple[int, int, list[tuple[Scan, int]]], data: st.DataObject) -> None:
    n_channels, capacity, steps = history
    held = memory.anonymous(Ring.bytes_needed(n_channels, capacity))
    twin = ReferenceRing(n_channels, capacity)
    restart_at = data.draw(st.integers(0, len(steps)))
    ring = Ring(held, n_channels=n_channels, capacity=capacity)
    for k, (scan, _) in enumerate(steps):
        if k == restart_at:
            ring = Ring(held, n_channels=n_channels, capacity=capacity, keep=True)
        ring.push(
            scan.index, scan.t_mono_ns, scan.ticks, scan.status, np.array(scan.counts, np.int32), flags=scan.flags
        )
        twin.push(scan)
    check_same(ring, twin)
