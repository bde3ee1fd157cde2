"""Frame decoder against its pure-Python twin: any bytes, any cuts. (100 000 damaged frames: tests/c/frames_test.c.)"""

from dataclasses import astuple

from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath import core, reference_frames

U32 = st.integers(0, 2**32 - 1)
FIELDS = (
    "type",
    "board_id",
    "width",
    "boot_id",
    "index",
    "ticks",
    "status",
    "overflow",
    "n_channels",
    "n_scans",
    "payload",
)
COUNTERS = ("frames", "crc_errors", "format_errors", "resync_bytes")


@st.composite
def data_bodies(draw: st.DrawFn) -> bytes:
    width = draw(st.sampled_from([16, 24, 32]))
    n_channels, n_scans = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    top = 1 << (width - 1)
    value = st.one_of(st.integers(-top, top - 1), st.sampled_from([-top, 1 - top, 0, top - 1]))
    row = st.lists(value, min_size=n_channels, max_size=n_channels)
    rows = draw(st.lists(row, min_size=n_scans, max_size=n_scans))
    return reference_frames.data_body(rows, width, draw(st.integers(0, 255)), *(draw(U32) for _ in range(5)))


VALID = st.one_of(data_bodies(), st.binary(min_size=100, max_size=700).map(lambda raw: long_body(raw))).map(
    reference_frames.to_wire
)


def long_body(raw: bytes) -> bytes:
    """One 16-bit channel with `raw` as its samples: COBS blocks of every length."""
    raw = raw[: len(raw) // 2 * 2]
    values = [[int.from_bytes(raw[i : i + 2], "little", signed=True)] for i in range(0, len(raw), 2)]
    return reference_frames.data_body(values, 16, 1, 1, 1, 1, 0, 0)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    wire = bytearray(draw(VALID))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(wire) - 1))
        match draw(st.sampled_from(["flip", "cut", "insert", "zero"])):
            case "flip":
                wire[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del wire[at : at + draw(st.integers(1, 20))]
            case "insert":
                wire[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "zero":
                wire[at] = 0
        if not wire:
            break
    return bytes(wire)


def as_reference(frame: core.Frame) -> tuple[object, ...]:
    counts = frame.counts().tolist() if frame.type == core.FRAME_DATA else []
    return (*(getattr(frame, name) for name in FIELDS), counts)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(VALID, damaged(), st.binary(max_size=40)), max_size=6), st.lists(st.integers(1, 60), max_size=40)
)
def test_same_frames_and_counters_as_the_twin(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    decoder, twin = core.FrameDecoder(), reference_frames.ReferenceDecoder()
    found = []
    position = 0
    for cut in [*cuts, len(stream)]:
        found += decoder.feed(stream[position : position + cut])
        position += cut
    assert [as_reference(frame) for frame in found] == [astuple(frame) for frame in twin.feed(stream)]
    assert [getattr(decoder, name) for name in COUNTERS] == [getattr(twin, name) for name in COUNTERS]


@settings(max_examples=200)
@given(data_bodies())
def test_encoder_gives_the_twin_s_bytes(body: bytes) -> None:
    wire = reference_frames.to_wire(body)
    (frame,) = core.FrameDecoder().feed(wire)
    header = {n: getattr(frame, n) for n in ("width", "board_id", "boot_id", "index", "ticks", "status", "overflow")}
    assert core.encode_data_frame(frame.counts(), **header) == wire
