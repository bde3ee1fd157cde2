"""Frame codec: golden vectors, page = file = codec, timeline over gaps, wrap-around and reboot."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath import core, reference_frames

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sensor-board-protocol.md").read_text()
GOLDEN = json.loads((ROOT / "tests" / "data" / "frames.json").read_text())
CODES = {
    width: {1 - top: core.COUNT_LOW, -top: core.COUNT_FAULT, top - 1: core.COUNT_HIGH}
    for width, top in ((16, 1 << 15), (24, 1 << 23), (32, 1 << 31))
}
HEADER = ("width", "board_id", "boot_id", "index", "ticks", "status", "overflow")


def decode_one(wire: bytes) -> core.Frame:
    decoder = core.FrameDecoder()
    frames = decoder.feed(wire)
    assert (decoder.frames, decoder.crc_errors, decoder.format_errors, decoder.resync_bytes) == (1, 0, 0, 0)
    return frames[0]


def fields_of(frame: core.Frame) -> dict[str, object]:
    return {name: getattr(frame, name) for name in HEADER}


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v["name"])
def test_golden_vector_on_the_page_and_in_the_codec(vector: dict) -> None:
    section = PAGE.split(f"### `{vector['name']}`", 1)[1].split("###", 1)[0]
    assert "".join(re.findall(r"^ {4}([0-9a-f]+)$", section, re.M)) == vector["wire"]
    assert f"CRC `0x{vector['crc']}`" in section

    body = bytes.fromhex(vector["body"])
    fields = vector["fields"]
    header = {name: fields[name] for name in HEADER}
    frame = decode_one(bytes.fromhex(vector["wire"]))
    assert fields_of(frame) == header
    assert frame.payload == body[28:]
    assert core.crc32c(body) == int(vector["crc"], 16)
    if fields["type"] == "data":
        widened = [[CODES[frame.width].get(count, count) for count in row] for row in fields["rows"]]
        assert frame.type == core.FRAME_DATA
        assert frame.counts().tolist() == widened
        assert core.encode_data_frame(frame.counts(), **header).hex() == vector["wire"]
    else:
        description = core.parse_description(frame.payload)
        assert frame.type == core.FRAME_DESCRIPTION
        for name in ("rate_hz", "tick_hz", "serial_number", "firmware", "group_delay_ns"):
            assert getattr(description, name) == fields[name]
        assert description.channels == tuple(core.ChannelDescription(**channel) for channel in fields["channels"])
        assert core.encode_description(description, **header).hex() == vector["wire"]
        with pytest.raises(ValueError, match="no counts"):
            frame.counts()


def test_crc_is_castagnoli() -> None:
    """RFC 3720 appendix B.4, and the usual check value."""
    assert core.crc32c(b"123456789") == 0xE3069283
    assert core.crc32c(bytes(32)) == 0x8A9136AA
    assert core.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert core.crc32c(bytes(range(32))) == 0x46DD794E
    assert core.crc32c(b"") == 0


def test_line_rates_of_the_page() -> None:
    def on_the_wire(n_bytes: int) -> int:
        return n_bytes + -(-n_bytes // 254) + 1

    uarts = (115200, 230400, 460800, 921600, 1000000, 1500000, 2000000, 3000000, 4000000, 6000000)
    for channels in (8, 16, 24, 48, 96):
        row = []
        for width in (16, 24, 32):
            data = core.encode_data_frame(np.full((10, channels), 0x5A5A if width > 16 else 0x5A5A - 1), width=width)
            assert len(data) <= on_the_wire(28 + 10 * channels * width // 8 + 4)
            rate = 100 * on_the_wire(28 + 10 * channels * width // 8 + 4) + on_the_wire(28 + 48 + 24 * channels + 4)
            row.append(f"{rate} B/s, {min(baud for baud in uarts if 10 * rate <= 0.9 * baud)}")
        assert f"| {channels} | {' | '.join(row)} |" in PAGE


def data_frame(index: int, ticks: int = 0, *, scans: int = 10, boot: int = 1, overflow: int = 0) -> core.Frame:
    counts = np.zeros((scans, 1), np.int32)
    return decode_one(core.encode_data_frame(counts, boot_id=boot, index=index, ticks=ticks, overflow=overflow))


def test_timeline_over_wrap_around() -> None:
    timeline = core.Timeline()
    start = 2**32 - 15
    for k in range(0, 1000, 10):
        frame = data_frame((start + k) % 2**32, (2**32 - 5000 + 1000 * k) % 2**32)
        assert timeline.extend(frame) == (core.TIMELINE_CONTINUES, start + k, 2**32 - 5000 + 1000 * k, 0)


def test_timeline_counts_a_gap_exactly_and_drops_repeats() -> None:
    timeline = core.Timeline()
    timeline.extend(data_frame(100, 100_000))
    assert timeline.extend(data_frame(110, 110_000)) == (core.TIMELINE_CONTINUES, 110, 110_000, 0)
    assert timeline.extend(data_frame(110, 110_000))[0] == core.TIMELINE_REPEAT
    assert timeline.extend(data_frame(100, 100_000))[0] == core.TIMELINE_REPEAT
    assert timeline.extend(data_frame(157, 157_000, overflow=30)) == (core.TIMELINE_GAP, 157, 157_000, 37)
    assert timeline.dropped == 30
    assert timeline.extend(data_frame(167, 167_000, overflow=30)) == (core.TIMELINE_CONTINUES, 167, 167_000, 0)
    assert (timeline.next_index, timeline.dropped) == (177, 30)


def test_timeline_knows_how_often_ticks_wrapped_in_a_long_gap() -> None:
    """5 days at 168 MHz: the ticks wrap 16 896 times, each unseen."""
    timeline, tick_hz, gap = core.Timeline(), 168_000_000, 5 * 86_400_000
    for index in (0, 10):
        timeline.extend(data_frame(index, index * tick_hz // 1000))
    index = 20 + gap
    ticks = index * tick_hz // 1000
    assert timeline.extend(data_frame(index, ticks % 2**32)) == (core.TIMELINE_GAP, index, ticks, gap)


def test_timeline_after_a_reboot() -> None:
    """The index goes on at the next multiple of 100; what was lost since the reboot counts, the reboot does not."""
    timeline = core.Timeline()
    timeline.extend(data_frame(1230, 2**32 - 7, boot=1, overflow=5))
    assert timeline.extend(data_frame(0, 500, boot=2)) == (core.TIMELINE_REBOOT, 1300, 2**32 + 500, 0)
    assert timeline.extend(data_frame(10, 10_500, boot=2)) == (core.TIMELINE_CONTINUES, 1310, 2**32 + 10_500, 0)
    kind, index, _, lost = timeline.extend(data_frame(30, 0, boot=3, overflow=20))
    assert (kind, index, lost) == (core.TIMELINE_REBOOT, 1430, 30)
    assert timeline.dropped == 20


def test_timeline_after_a_reboot_at_a_multiple_of_100() -> None:
    timeline = core.Timeline()
    timeline.extend(data_frame(190, boot=1))
    assert timeline.extend(data_frame(0, boot=2))[1] == 200


def test_timeline_finds_a_reboot_that_kept_its_boot_id() -> None:
    timeline = core.Timeline()
    timeline.extend(data_frame(5000))
    for k in range(32):
        assert timeline.extend(data_frame(10 * k))[0] == core.TIMELINE_REPEAT
    assert timeline.extend(data_frame(320))[:2] == (core.TIMELINE_REBOOT, 5100 + 320)
    assert timeline.extend(data_frame(330))[:2] == (core.TIMELINE_CONTINUES, 5100 + 330)


def golden_body(name: str) -> bytes:
    return bytes.fromhex(next(vector["body"] for vector in GOLDEN if vector["name"] == name))


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 0), (0, 2), (1, 0), (1, 2), (1, 3), (3, 8), (3, 24), (24, 0), (24, 3), (25, 1), (26, 0), (26, 4), (27, 1)],
)
def test_header_that_contradicts_itself_is_refused(offset: int, value: int) -> None:
    """CRC right, one header byte wrong: version, type, width, channel count, scan count."""
    body = bytearray(golden_body("data-16"))
    body[offset] = value
    decoder = core.FrameDecoder()
    assert decoder.feed(b"\0" + reference_frames.to_wire(bytes(body))) == []
    assert (decoder.frames, decoder.crc_errors, decoder.format_errors) == (0, 0, 1)


def test_damage_is_counted_by_cause_and_costs_no_other_frame() -> None:
    good = core.encode_data_frame([[1, 2]], index=1)
    flipped = bytearray(core.encode_data_frame([[3, 4]], index=2))
    flipped[-2] ^= 0x01
    decoder = core.FrameDecoder()
    tail = good[7:]  # begun before we listened: no error
    assert [f.index for f in decoder.feed(tail + good + bytes(flipped) + good + b"\x09abc\0" + b"\0\0" + good)] == [
        1,
        1,
        1,
    ]
    assert (decoder.frames, decoder.crc_errors, decoder.format_errors) == (3, 1, 1)
    assert decoder.resync_bytes == len(tail) + len(flipped) + 4 - 2  # delimiters apart


def test_endless_garbage_without_a_delimiter_is_bounded() -> None:
    good = core.encode_data_frame([[1, 2]], index=1)
    decoder = core.FrameDecoder()
    for _ in range(300):
        assert decoder.feed(b"\x05" * 1000) == []
    assert [f.index for f in decoder.feed(b"\0" + good)] == [1]
    assert decoder.resync_bytes == 300_000


def test_largest_frame_passes_and_one_byte_more_is_refused() -> None:
    counts = np.arange(127 * 8).reshape(8, 127)  # 28 + 8 * 127 * 4 + 4 = 4096
    wire = core.encode_data_frame(counts, width=32)
    assert np.array_equal(decode_one(wire).counts(), counts)
    with pytest.raises(ValueError, match="over 4096: send fewer scans"):
        core.encode_data_frame(np.zeros((8, 128)), width=32)
    too_long = reference_frames.data_body([[1] * 127] * 8 + [[1] * 127], 32, 0, 0, 0, 0, 0, 0)
    decoder = core.FrameDecoder()
    assert decoder.feed(b"\0" + reference_frames.to_wire(too_long)) == []
    assert decoder.format_errors == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "16, 24 or 32 bits"),
        ({"index": -1}, "out of its range"),
        ({"board_id": 256}, "out of its range"),
        ({"counts": [[1 << 23]]}, "does not fit into 24 bits"),
        ({"counts": [[-(1 << 23)]]}, "does not fit into 24 bits"),
        ({"counts": [1, 2]}, r"shape \(scans, channels\)"),
        ({"counts": np.zeros((1, 129))}, "1 to 128 channels, not 129"),
    ],
)
def test_encoder_refuses_what_the_protocol_cannot_say(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.encode_data_frame(**{"counts": [[0]], **options})


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, struct.pack("<I", 999), "999 scans a second; 1000 at least"),
        (4, struct.pack("<I", 999_999), "999999 Hz; 1 MHz at least"),
        (8, b"\xff", "serial number is not UTF-8"),
        (48, b"\x03", r"channel 0 of the board is of kind 3"),
        (52, struct.pack("<f", float("nan")), "scale nan; it must be above 0"),
        (52, struct.pack("<f", float("inf")), "scale inf"),
        (76, struct.pack("<f", -1.0), r"channel 1 of the board has the scale -1.0"),
        (60, struct.pack("<i", 0), "full scale of 0 counts"),
        (64, b"\xfe", "name of channel 0 is not UTF-8"),
    ],
)
def test_description_that_makes_no_sense_is_refused(offset: int, raw: bytes, message: str) -> None:
    payload = bytearray(golden_body("description")[28:])
    payload[offset : offset + len(raw)] = raw
    with pytest.raises(ValueError, match=message):
        core.parse_description(payload)


def test_description_of_a_wrong_length_is_refused() -> None:
    payload = golden_body("description")[28:]
    for length in (0, 47, 49, 95):
        with pytest.raises(ValueError, match=f"a description of {length} bytes"):
            core.parse_description(payload[:length])
