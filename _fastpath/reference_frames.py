"""Pure-Python twin of the frame codec, written from docs/sensor-board-protocol.md; the oracle. Needs `cobs`."""

import struct
from dataclasses import dataclass

from cobs import cobs

VERSION = 1
DATA, DESCRIPTION = 1, 2
WIDTHS = (16, 24, 32)
MAX_FRAME_BYTES = 4096  # header, payload and CRC, before COBS
MAX_WIRE_BYTES = 4113  # the same after COBS, without the delimiter
MAX_CHANNELS = 128
COUNT_FAULT = -(2**31)  # what the three in-band codes become once the width is gone
COUNT_LOW = -(2**31) + 1
COUNT_HIGH = 2**31 - 1

_HEADER = struct.Struct("<BBBBIIIIIHH")
_DESCRIPTION = struct.Struct("<II16s16sII")
_CHANNEL = struct.Struct("<BBHfii8s")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class ReferenceFrame:
    """One frame whose CRC, lengths and header are right; `counts` are rows, one a scan, codes widened."""

    type: int
    board_id: int
    width: int
    boot_id: int
    index: int
    ticks: int
    status: int
    overflow: int
    n_channels: int
    n_scans: int
    payload: bytes
    counts: list[list[int]]


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4): reflected polynomial 0x82F63B78, start and final XOR all ones."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_crc_entry(value) for value in range(256)]


def to_wire(body: bytes) -> bytes:
    """Header and payload -> bytes on the wire: CRC, COBS, delimiter."""
    return bytes(cobs.encode(body + _CRC.pack(crc32c(body)))) + b"\0"


def data_body(
    rows: list[list[int]], width: int, board_id: int, boot_id: int, index: int, ticks: int, status: int, overflow: int
) -> bytes:
    """Header and payload of a data frame; `rows` are raw values of `width` bits, one row a scan."""
    header = _HEADER.pack(
        VERSION, DATA, board_id, width, boot_id, index, ticks, status, overflow, len(rows[0]), len(rows)
    )
    return header + b"".join(value.to_bytes(width // 8, "little", signed=True) for row in rows for value in row)


class ReferenceDecoder:
    """Bytes in any pieces -> frames; same counters as the compiled decoder."""

    def __init__(self) -> None:
        self.frames = self.crc_errors = self.format_errors = self.resync_bytes = 0
        self._pending = b""
        self._synced = False

    def feed(self, data: bytes) -> list[ReferenceFrame]:
        *pieces, self._pending = (self._pending + data).split(b"\0")
        found = []
        for piece in pieces:
            if piece and (frame := self._decode(piece)) is not None:
                found.append(frame)
            self._synced = True
        return found

    def _decode(self, piece: bytes) -> ReferenceFrame | None:
        try:
            raw = cobs.decode(piece) if len(piece) <= MAX_WIRE_BYTES else b""
        except cobs.DecodeError:
            raw = b""
        if not _HEADER.size + _CRC.size <= len(raw) <= MAX_FRAME_BYTES:
            self._refuse(piece, crc=False)
            return None
        if _CRC.unpack(raw[-4:])[0] != crc32c(raw[:-4]):
            self._refuse(piece, crc=True)
            return None
        frame = parse_body(raw[:-4])
        if frame is None:
            self._refuse(piece, crc=False)
            return None
        self.frames += 1
        return frame

    def _refuse(self, piece: bytes, *, crc: bool) -> None:
        self.resync_bytes += len(piece)
        if not self._synced:  # the rest of a frame that began before we listened is no error
            return
        if crc:
            self.crc_errors += 1
        else:
            self.format_errors += 1


def parse_body(body: bytes) -> ReferenceFrame | None:
    """Header and payload -> frame, or None where a field contradicts the protocol."""
    version, kind, board_id, width, boot_id, index, ticks, status, overflow, n_channels, n_scans = _HEADER.unpack_from(
        body
    )
    payload = body[_HEADER.size :]
    if version != VERSION or width not in WIDTHS or not 1 <= n_channels <= MAX_CHANNELS:
        return None
    rows: list[list[int]] = []
    if kind == DATA:
        if n_scans < 1 or len(payload) != n_scans * n_channels * width // 8:
            return None
        step = width // 8
        values = [
            _widen(int.from_bytes(payload[i : i + step], "little", signed=True), width)
            for i in range(0, len(payload), step)
        ]
        rows = [values[i : i + n_channels] for i in range(0, len(values), n_channels)]
    elif kind != DESCRIPTION or n_scans or len(payload) != _DESCRIPTION.size + n_channels * _CHANNEL.size:
        return None
    return ReferenceFrame(
        kind, board_id, width, boot_id, index, ticks, status, overflow, n_channels, n_scans, payload, rows
    )


def _widen(value: int, width: int) -> int:
    top = 1 << (width - 1)
    return {-top: COUNT_FAULT, 1 - top: COUNT_LOW, top - 1: COUNT_HIGH}.get(value, value)
