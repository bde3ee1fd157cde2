# Python face of the frame codec; see frames.h and docs/sensor-board-protocol.md.
import struct as _struct
from dataclasses import dataclass as _dataclass

import numpy as _np
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "frames.h" nogil:
    ctypedef struct rpi_frame:
        uint8_t version
        uint8_t type
        uint8_t board_id
        uint8_t width
        uint32_t boot_id
        uint32_t index
        uint32_t ticks
        uint32_t status
        uint16_t n_channels
        uint16_t n_scans
        uint32_t overflow
        const uint8_t *payload
        uint32_t payload_bytes
    ctypedef struct rpi_decoder:
        uint64_t frames
        uint64_t crc_errors
        uint64_t format_errors
        uint64_t resync_bytes
    ctypedef struct rpi_timeline:
        uint64_t next
        uint64_t dropped
    int RPI_CONTINUES
    int RPI_GAP
    int RPI_REBOOT
    int RPI_REPEAT
    uint32_t RPI_FRAME_VERSION
    uint32_t RPI_FRAME_DATA
    uint32_t RPI_FRAME_DESCRIPTION
    uint32_t RPI_FRAME_HEADER_BYTES
    uint32_t RPI_FRAME_CRC_BYTES
    uint32_t RPI_FRAME_MAX_BYTES
    uint32_t RPI_WIRE_MAX_BYTES
    uint32_t RPI_FRAME_MAX_CHANNELS
    uint32_t RPI_DESCRIPTION_BYTES
    uint32_t RPI_DESCRIPTION_CHANNEL_BYTES
    int32_t RPI_COUNT_HIGH
    int32_t RPI_COUNT_LOW
    int32_t RPI_COUNT_FAULT
    uint32_t rpi_crc32c(const uint8_t *bytes, size_t n)
    uint32_t rpi_cobs_encode(const uint8_t *source, uint32_t n, uint8_t *out)
    void rpi_decoder_init(rpi_decoder *decoder)
    uint32_t rpi_frame_scan(const rpi_frame *frame, uint32_t scan, int32_t *out)
    void rpi_timeline_init(rpi_timeline *timeline)
    int rpi_timeline_extend(
        rpi_timeline *timeline, const rpi_frame *frame, uint64_t *index, uint64_t *ticks, uint64_t *lost
    )

cdef extern from "frames.h":  # holding the GIL: what it calls makes Python objects
    void rpi_decoder_feed(
        rpi_decoder *decoder, const uint8_t *bytes, size_t n, void (*fn)(void *, const rpi_frame *) noexcept, void *ctx
    ) noexcept

FRAME_DATA = RPI_FRAME_DATA
FRAME_DESCRIPTION = RPI_FRAME_DESCRIPTION
COUNT_HIGH = RPI_COUNT_HIGH
COUNT_LOW = RPI_COUNT_LOW
COUNT_FAULT = RPI_COUNT_FAULT
TIMELINE_CONTINUES = RPI_CONTINUES
TIMELINE_GAP = RPI_GAP
TIMELINE_REBOOT = RPI_REBOOT
TIMELINE_REPEAT = RPI_REPEAT

_FRAME_HEADER = _struct.Struct("<BBBBIIIIIHH")
_FRAME_DESCRIPTION = _struct.Struct("<II16s16sII")
_FRAME_CHANNEL = _struct.Struct("<BBHfii8s")
_FRAME_KINDS = {1: "current", 2: "voltage"}
_FRAME_KIND_CODES = {"current": 1, "voltage": 2}


def crc32c(const uint8_t[::1] data):
    return rpi_crc32c(&data[0], data.shape[0]) if data.shape[0] else 0


cdef class Frame:
    """One frame whose CRC, version, width and lengths are right."""
    cdef rpi_frame frame
    cdef readonly bytes payload

    @property
    def type(self):
        return self.frame.type

    @property
    def board_id(self):
        return self.frame.board_id

    @property
    def width(self):
        return self.frame.width

    @property
    def boot_id(self):
        return self.frame.boot_id

    @property
    def index(self):
        return self.frame.index

    @property
    def ticks(self):
        return self.frame.ticks

    @property
    def status(self):
        return self.frame.status

    @property
    def overflow(self):
        return self.frame.overflow

    @property
    def n_channels(self):
        return self.frame.n_channels

    @property
    def n_scans(self):
        return self.frame.n_scans

    def counts(self):
        cdef uint32_t scan, n_channels = self.frame.n_channels, n_scans = self.frame.n_scans
        cdef Py_buffer buffer
        if self.frame.type != RPI_FRAME_DATA:
            raise ValueError("a description frame has no counts")
        out = _np.empty((n_scans, n_channels), _np.int32)
        PyObject_GetBuffer(out, &buffer, PyBUF_WRITABLE)  # a memoryview would cost as much as the rest
        for scan in range(n_scans):
            rpi_frame_scan(&self.frame, scan, <int32_t *>buffer.buf + scan * n_channels)
        PyBuffer_Release(&buffer)
        return out


cdef void _frame_keep(void *ctx, const rpi_frame *frame) noexcept:
    kept = <Frame>Frame.__new__(Frame)
    kept.payload = PyBytes_FromStringAndSize(<const char *>frame.payload, frame.payload_bytes)
    kept.frame = frame[0]
    kept.frame.payload = <const uint8_t *><const char *>kept.payload
    (<list>ctx).append(kept)


cdef class FrameDecoder:
    """Bytes in any pieces -> frames; damage is thrown away and counted. One thread."""
    cdef rpi_decoder decoder

    def __cinit__(self):
        rpi_decoder_init(&self.decoder)

    def feed(self, const uint8_t[::1] data):
        found = []
        if data.shape[0]:
            rpi_decoder_feed(&self.decoder, &data[0], data.shape[0], _frame_keep, <void *>found)
        return found

    @property
    def frames(self):
        return self.decoder.frames

    @property
    def crc_errors(self):
        return self.decoder.crc_errors

    @property
    def format_errors(self):
        return self.decoder.format_errors

    @property
    def resync_bytes(self):
        return self.decoder.resync_bytes


cdef class Timeline:
    """A board's u32 index and ticks, extended to 64 bits over wrap-around and reboot."""
    cdef rpi_timeline timeline

    def __cinit__(self):
        rpi_timeline_init(&self.timeline)

    def extend(self, Frame frame not None):
        cdef uint64_t index = 0, ticks = 0, lost = 0
        cdef int kind = rpi_timeline_extend(&self.timeline, &frame.frame, &index, &ticks, &lost)
        return kind, index, ticks, lost

    @property
    def next_index(self):
        return self.timeline.next

    @property
    def dropped(self):
        return self.timeline.dropped


@_dataclass(frozen=True, slots=True)
class ChannelDescription:
    kind: str
    number: int
    scale: float
    skew_ns: int
    full_scale_counts: int
    name: str


@_dataclass(frozen=True, slots=True)
class BoardDescription:
    rate_hz: int
    tick_hz: int
    serial_number: str
    firmware: str
    group_delay_ns: int
    channels: tuple


cdef bytes _frame_to_wire(bytes body):
    cdef uint8_t raw[4096]
    cdef uint8_t wire[4114]
    cdef uint32_t n = <uint32_t>len(body), crc
    if n + RPI_FRAME_CRC_BYTES > RPI_FRAME_MAX_BYTES:
        raise ValueError(f"a frame of {n + RPI_FRAME_CRC_BYTES} bytes is over {RPI_FRAME_MAX_BYTES}: send fewer scans in each")
    memcpy(raw, <const char *>body, n)
    crc = rpi_crc32c(raw, n)
    memcpy(raw + n, &crc, 4)
    n = rpi_cobs_encode(raw, n + 4, wire)
    wire[n] = 0
    return PyBytes_FromStringAndSize(<const char *>wire, n + 1)


def _frame_header(kind, n_channels, n_scans, width, board_id, boot_id, index, ticks, status, overflow):
    if width not in (16, 24, 32):
        raise ValueError(f"samples are 16, 24 or 32 bits wide, not {width}")
    if not 1 <= n_channels <= RPI_FRAME_MAX_CHANNELS:
        raise ValueError(f"a board has 1 to {RPI_FRAME_MAX_CHANNELS} channels, not {n_channels}")
    try:
        return _FRAME_HEADER.pack(
            RPI_FRAME_VERSION, kind, board_id, width, boot_id, index, ticks, status, overflow, n_channels, n_scans
        )
    except _struct.error as exc:
        raise ValueError(f"a header field is out of its range: {exc}") from None


def encode_data_frame(
    counts, *, width=24, board_id=0, boot_id=0, index=0, ticks=0, status=0, overflow=0
):
    table = _np.asarray(counts, dtype=_np.int64)
    if table.ndim != 2 or table.shape[0] < 1:
        raise ValueError("counts have the shape (scans, channels), with one scan at least")
    header = _frame_header(
        RPI_FRAME_DATA, table.shape[1], table.shape[0], width, board_id, boot_id, index, ticks, status, overflow
    )
    top = (1 << (width - 1)) - 1
    codes = {RPI_COUNT_HIGH: top, RPI_COUNT_LOW: -top, RPI_COUNT_FAULT: -top - 1}
    coded = _np.isin(table, list(codes))
    if _np.any(_np.abs(table[~coded]) >= top):
        raise ValueError(f"a count does not fit into {width} bits beside the codes: send COUNT_HIGH or COUNT_LOW for it")
    narrow = _np.select([table == code for code in codes], list(codes.values()), table)
    samples = narrow.astype("<i4").view(_np.uint8).reshape(-1, 4)[:, : width // 8]
    return _frame_to_wire(header + samples.tobytes())


def encode_description(
    description, *, width=24, board_id=0, boot_id=0, index=0, ticks=0, status=0, overflow=0
):
    header = _frame_header(
        RPI_FRAME_DESCRIPTION, len(description.channels), 0, width, board_id, boot_id, index, ticks, status, overflow
    )
    fixed = _FRAME_DESCRIPTION.pack(
        description.rate_hz,
        description.tick_hz,
        _frame_text(description.serial_number, 16),
        _frame_text(description.firmware, 16),
        description.group_delay_ns,
        0,
    )
    channels = [
        _FRAME_CHANNEL.pack(_FRAME_KIND_CODES[c.kind], 0, c.number, c.scale, c.skew_ns, c.full_scale_counts, _frame_text(c.name, 8))
        for c in description.channels
    ]
    payload = fixed + b"".join(channels)
    parse_description(payload)
    return _frame_to_wire(header + payload)


def _frame_text(text, room):
    raw = text.encode()
    if len(raw) > room or b"\0" in raw:
        raise ValueError(f"{text!r} is longer than {room} bytes, or holds a zero byte")
    return raw


def _frame_parse_text(raw, what):
    try:
        return raw.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise ValueError(f"the board's {what} is not UTF-8: {raw!r}") from None


def parse_description(payload):
    body = bytes(payload)
    if len(body) < RPI_DESCRIPTION_BYTES or (len(body) - RPI_DESCRIPTION_BYTES) % RPI_DESCRIPTION_CHANNEL_BYTES:
        raise ValueError(f"a description of {len(body)} bytes is not 48 bytes and 24 for each channel")
    rate_hz, tick_hz, serial_number, firmware, group_delay_ns, _ = _FRAME_DESCRIPTION.unpack_from(body)
    if rate_hz < 1000:
        raise ValueError(f"the board says {rate_hz} scans a second; 1000 at least are needed")
    if tick_hz < 1_000_000:
        raise ValueError(f"the board says its clock runs at {tick_hz} Hz; 1 MHz at least is needed")
    return BoardDescription(
        rate_hz,
        tick_hz,
        _frame_parse_text(serial_number, "serial number"),
        _frame_parse_text(firmware, "firmware"),
        group_delay_ns,
        tuple(
            _frame_parse_channel(channel, fields)
            for channel, fields in enumerate(_FRAME_CHANNEL.iter_unpack(body[RPI_DESCRIPTION_BYTES:]))
        ),
    )


def _frame_parse_channel(channel, fields):
    kind, _, number, scale, skew_ns, full_scale_counts, name = fields
    if kind not in _FRAME_KINDS:
        raise ValueError(f"channel {channel} of the board is of kind {kind}; 1 (current) and 2 (voltage) are known")
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"channel {channel} of the board has the scale {scale}; it must be above 0")
    if full_scale_counts < 1:
        raise ValueError(f"channel {channel} of the board has a full scale of {full_scale_counts} counts; 1 at least")
    return ChannelDescription(_FRAME_KINDS[kind], number, scale, skew_ns, full_scale_counts, _frame_parse_text(name, f"name of channel {channel}"))
