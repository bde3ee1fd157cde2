"""Sensor board frames: the compiled decoder against its pure-Python twin."""

import contextlib
import struct

from cobs import cobs
from fuzz.target import Choices, Target, must

from rpi_daemon._fastpath import core, reference_frames

FIELDS = (
    "type", "board_id", "width", "boot_id", "index", "ticks", "status", "overflow", "n_channels", "n_scans", "payload",
)  # fmt: skip
COUNTERS = ("frames", "crc_errors", "format_errors", "resync_bytes")
HEADER = struct.Struct("<BBBBIIIIIHH")
RAW, SEALED, LONG, DATA, DESCRIPTION = range(5)
WIDTHS = (16, 24, 32)


def sealed(body: bytes) -> bytes:
    """On the wire, with the right checksum."""
    return bytes(cobs.encode(body + core.crc32c(body).to_bytes(4, "little"))) + b"\0"


def piece(choices: Choices) -> bytes:
    """Bytes as they come, a body under a right CRC, the same grown beyond a frame, or a frame whose lengths fit too."""
    kind = choices.below(5)
    if kind == RAW:
        return choices.take(choices.byte())
    if kind == SEALED:
        return sealed(choices.take(choices.byte()))
    if kind == LONG:
        often = choices.byte()
        times, body = (1 + often % 4 if often < 240 else 24), choices.take(choices.byte())
        return sealed(body * times)
    width, shape = choices.one(WIDTHS), choices.byte()
    n_channels = 1 + (shape % 8 if shape < 240 else shape // 2)  # seldom a wide board
    if kind == DATA:
        n_scans = 1 + choices.below(4)
        size = n_scans * n_channels * width // 8
    else:
        n_channels = 1 + n_channels % 4
        n_scans, size = 0, 48 + 24 * n_channels
    board_id, *words = struct.unpack("<B5I", choices.exactly(21))
    header = HEADER.pack(1, 1 if kind == DATA else 2, board_id, width, *words, n_channels, n_scans)
    return sealed(header + choices.exactly(size))


def check(data: bytes) -> bool:
    choices = Choices(data)
    cut = choices.byte() or 1 << 16
    stream = b"".join(iter(lambda: piece(choices) if choices else None, None))  # type: ignore[arg-type]
    decoder, twin, timeline = core.FrameDecoder(), reference_frames.ReferenceDecoder(), core.Timeline()
    frames = [frame for at in range(0, len(stream), cut) for frame in decoder.feed(stream[at : at + cut])]
    theirs = twin.feed(stream)
    must(len(frames) == len(theirs), len(frames), len(theirs))
    for frame, expected in zip(frames, theirs, strict=True):
        counts = frame.counts().tolist() if frame.type == core.FRAME_DATA else []
        must(
            all(getattr(frame, name) == getattr(expected, name) for name in FIELDS) and counts == expected.counts,
            expected,
        )
        if frame.type == core.FRAME_DATA:
            check_timeline(timeline, frame)
        else:
            check_description(frame)
    must([getattr(decoder, name) for name in COUNTERS] == [getattr(twin, name) for name in COUNTERS])
    return bool(frames)


def check_timeline(timeline: core.Timeline, frame: core.Frame) -> None:
    before = timeline.next_index
    kind, index, ticks, lost = timeline.extend(frame)
    if kind == core.TIMELINE_REPEAT:
        must(timeline.next_index == before)
        return
    must(timeline.next_index == index + frame.n_scans, index)
    must(index >= before and ticks & 0xFFFFFFFF == frame.ticks, index, ticks)
    must(kind == core.TIMELINE_REBOOT or before == 0 or index - before == lost, index, lost)


def check_description(frame: core.Frame) -> None:
    """What is taken can be sent again, and reads the same."""
    with contextlib.suppress(ValueError):
        told = core.parse_description(frame.payload)
        sent = core.encode_description(told, width=frame.width)
        must(core.parse_description(core.FrameDecoder().feed(sent)[0].payload) == told, told)


def seeds() -> list[bytes]:
    channels = struct.pack("<BBHfii8s", 1, 0, 1, 0.001, -50, 1000, b"I1") + struct.pack(
        "<BBHfii8s", 2, 0, 1, 0.1, 0, 8_000_000, b"U1"
    )
    description = struct.pack("<II16s16sII", 1000, 1_000_000, b"A-17", b"1.2.0", 750_000, 0) + channels
    header = struct.pack("<B5I", 3, 7, 1000, 5, 0, 0)
    again = struct.pack("<B5I", 3, 7, 1001, 6, 0, 0)
    bad = [  # what a description may not say
        description[:at] + bytes([octet]) * n + description[at + n :]
        for at, n, octet in (
            (0, 4, 0),
            (4, 4, 0),
            (8, 2, 255),
            (24, 1, 255),
            (48, 1, 9),
            (52, 4, 0),
            (52, 4, 255),
            (60, 4, 0),
            (64, 1, 255),
        )
    ]
    codes = b"\xff\x7f\x01\x80\x00\x80\x05\x00"
    return [
        *(bytes([0, DESCRIPTION, 1, 0]) + header + one for one in [description, *bad]),
        bytes([0, DATA, 0, 3, 0]) + header + codes + bytes([DATA, 0, 3, 0]) + again + codes,
        bytes([7, DATA, 1, 5, 1]) + header + bytes(range(36)),
        bytes([3, DATA, 2, 1, 2]) + header + bytes(range(100, 124)),
        bytes([0, SEALED, 40]) + HEADER.pack(1, 1, 1, 16, 1, 2, 3, 4, 5, 2, 3) + bytes(12),
        bytes([9, RAW, 8]) + b"\0\1\0\3ab\0\5" + bytes([LONG, 255, 255]) + bytes(range(255)),
        bytes([0, RAW, 3]) + b"ab\0" + bytes([RAW, 30]) + b"\x20" * 29 + b"\0",
    ]


TARGET = Target(
    "frames",
    "frames, values or counters differ from those of the pure-Python decoder; the 64-bit index goes back or loses scans that it "
    "does not count; a description that is taken does not read the same when it is sent again",
    (
        "_fastpath/frames.h:rpi_cobs_decode",
        "_fastpath/frames.h:rpi_frame_parse",
        "_fastpath/frames.h:rpi_frame_scan",
        "_fastpath/frames.h:rpi_decoder_",
        "_fastpath/frames.h:rpi_timeline_",
        "_fastpath/frames.h:rpi_widen",
        "_fastpath/frames.pxi:parse_",
        "_fastpath/frames.pxi:_frame_parse",
        "_fastpath/frames.pxi:feed",
        "_fastpath/frames.pxi:counts",
    ),
    seeds,
    check,
    longest=400,
    exact_memory=False,  # tests/c/frames_test.c feeds pieces of exact size
)
