"""The IIO scan codec: any layout against the pure-Python twin, bytes in any pieces, any timestamps."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath import reference_scans as twin
from rpi_daemon._fastpath.core import (
    COUNT_FAULT,
    TIMELINE_CONTINUES,
    TIMELINE_GAP,
    TIMELINE_REBOOT,
    TIMELINE_REPEAT,
    ScanDecoder,
    ScanElement,
    ScanLayout,
    StampLine,
)

PERIOD_NS = 1_000_000


@st.composite
def elements(draw: st.DrawFn, channel: int, offset: int) -> ScanElement:
    size = draw(st.sampled_from([1, 2, 4, 8]))
    bits = draw(st.integers(2, min(32, 8 * size)))
    signed = draw(st.booleans())
    add = draw(st.sampled_from([0, -(1 << bits - 1), 100]))
    shift = draw(st.integers(0, 8 * size - bits))
    if bits > 30:  # what does not fit 32 bits is refused
        add = 0 if signed else -(1 << bits - 1)
    return ScanElement(channel, offset, size, bits, shift, signed, draw(st.booleans()), add)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[ScanElement], ScanLayout]:
    n_channels = draw(st.integers(1, 12))
    wired = draw(st.lists(st.integers(0, n_channels - 1), min_size=1, unique=True))
    found, at = [], 0
    for channel in wired:
        element = draw(elements(channel, 0))
        at = -(-at // element.bytes) * element.bytes
        found.append(ScanElement(**{**vars(element), "offset": at}))
        at += element.bytes
    stamp = -(-at // 8) * 8 if draw(st.booleans()) else None
    size = at if stamp is None else stamp + 8
    layout = ScanLayout(found, n_channels=n_channels, scan_bytes=size, timestamp=stamp, timestamp_big_endian=True)
    return found, layout


@given(layouts(), st.data())
@settings(max_examples=300)
def test_counts_and_stamps_are_those_of_the_twin_whatever_the_pieces(
    made: tuple[list[ScanElement], ScanLayout], data: st.DataObject
) -> None:
    found, layout = made
    size = layout.scan_bytes
    stream = data.draw(st.binary(min_size=0, max_size=5 * size + 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = ScanDecoder(layout)
    parts = [decoder.feed(stream[a:b]) for a, b in pairwise([0, *cuts, len(stream)])]
    counts = np.concatenate([part[0] for part in parts])
    records = [stream[k : k + size] for k in range(0, len(stream) - size + 1, size)]
    assert counts.tolist() == [twin.decode(found, layout.n_channels, record) for record in records]
    assert decoder.held == len(stream) % size
    assert COUNT_FAULT not in counts  # IIO has no word for "no reading"


@pytest.mark.parametrize(
    ("element", "raw", "count"),
    [
        (ScanElement(0, 0, 2, 12, 4, True, True), "fff0", -1),  # be:s12/16>>4
        (ScanElement(0, 0, 2, 12, 4, True, True), "7ff0", twin.COUNT_HIGH),
        (ScanElement(0, 0, 2, 12, 4, True, True), "8000", twin.COUNT_LOW),
        (ScanElement(0, 0, 4, 24, 8, True, False), "00123456", 0x563412),  # le:s24/32>>8
        (ScanElement(0, 0, 2, 16, 0, False), "0000", 0),  # le:u16/16: zero is a reading ...
        (ScanElement(0, 0, 2, 16, 0, False, add=-32768), "0000", twin.COUNT_LOW),  # ... unless it stands for the least
        (ScanElement(0, 0, 2, 16, 0, False, add=-32768), "0080", 0),
        (ScanElement(0, 0, 8, 32, 16, False, True, -(2**31)), "ffff800000050000", 5),  # be:u32/64>>16
    ],
)
def test_known_words(element: ScanElement, raw: str, count: int) -> None:
    layout = ScanLayout([element], n_channels=1, scan_bytes=element.bytes)
    assert ScanDecoder(layout).feed(bytes.fromhex(raw))[0].tolist() == [[count]]


@pytest.mark.parametrize(
    "wrong",
    [
        ScanElement(2, 0, 2, 16),  # not a channel
        ScanElement(0, 7, 2, 16),  # beyond the record
        ScanElement(0, -1, 2, 16),
        ScanElement(0, 0, 3, 16),
        ScanElement(0, 0, 2, 16, 1),  # bits and shift beyond the storage
        ScanElement(0, 0, 8, 33, 0, True),  # does not fit 32 bits
        ScanElement(0, 0, 4, 32, 0, False),
        ScanElement(0, 0, 2, 16, 0, True, False, 2**31),
    ],
)
def test_a_layout_that_cannot_be_is_refused(wrong: ScanElement) -> None:
    with pytest.raises(ValueError, match=r"channel|byte|bits"):
        ScanLayout([wrong], n_channels=2, scan_bytes=8)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=80))
@example([0] * 80)
def test_any_timestamps_give_indices_that_rise(stamps: list[int]) -> None:
    line, last = StampLine(PERIOD_NS), -1
    for stamp in stamps:
        kind, index, lost = line.extend(stamp)
        if kind == TIMELINE_REPEAT:
            continue
        assert index > last
        assert 0 <= lost <= 3_600_000
        assert (lost > 0) == (kind == TIMELINE_GAP)
        if kind == TIMELINE_REBOOT:
            assert index % 100 == 0
        last = index


@given(
    st.integers(0, 2**32),
    st.floats(-300e-6, 300e-6),
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 250)), max_size=6)
    | st.lists(st.tuples(st.integers(400, 600), st.integers(1, 1000)), max_size=6),
)
@settings(max_examples=60)
def test_lost_scans_are_found_exactly_under_drift_and_jitter(
    seed: int, drift: float, losses: list[tuple[int, int]]
) -> None:
    """A clock that is 300 ppm off, stamps that jitter by 0.1 ms either way: up to 250 scans lost at once, again and again, or
    up to 1000 where 400 came since the last loss. With fewer between losses of a second the clock's rate is no longer known
    well enough: one scan too many or too few was counted in 38 % of such sequences (runs of 1 to 400, six losses of 750 to 1000)."""
    rng = np.random.default_rng(seed)
    sent = list(range(2000))
    for run, gap in losses:
        sent += range(sent[-1] + 1 + gap, sent[-1] + 1 + gap + run)
    line, lost_in_all = StampLine(PERIOD_NS), 0
    for k in sent:
        stamp = 7_000_000_000 + round(k * PERIOD_NS * (1 + drift) + rng.uniform(-100e3, 100e3))
        kind, index, lost = line.extend(stamp)
        assert kind in (TIMELINE_CONTINUES, TIMELINE_GAP)
        assert index == k
        lost_in_all += lost
    assert lost_in_all == sum(gap for _, gap in losses)


def test_a_clock_that_was_set_back_begins_anew() -> None:
    line = StampLine(PERIOD_NS)
    for k in range(130):
        line.extend(10**12 + k * PERIOD_NS)
    kinds = [line.extend(k * PERIOD_NS)[0] for k in range(40)]
    assert kinds == [TIMELINE_REPEAT] * 32 + [TIMELINE_REBOOT] + [TIMELINE_CONTINUES] * 7
    assert line.extend(41 * PERIOD_NS) == (TIMELINE_GAP, 209, 1)  # on at 200, and one is missing
