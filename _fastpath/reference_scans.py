"""Pure-Python twin of the IIO scan codec, written from the kernel's sysfs-bus-iio ABI; the oracle."""

from collections.abc import Sequence
from typing import Any

COUNT_LOW = -(2**31) + 1
COUNT_HIGH = 2**31 - 1


def value(element: Any, record: bytes) -> int:
    """Counts of one element (see `core.ScanElement`), with the codes for saturation."""
    stored: bytes = record[element.offset : element.offset + element.bytes]
    raw: int = int.from_bytes(stored, "big" if element.big_endian else "little") >> element.shift
    raw &= (1 << element.bits) - 1
    if element.signed and raw >> element.bits - 1:
        raw -= 1 << element.bits
    if raw == element.highest:
        return COUNT_HIGH
    if raw == element.lowest and (element.signed or element.add < 0):
        return COUNT_LOW
    return max(COUNT_LOW, min(COUNT_HIGH, raw + int(element.add)))


def decode(elements: Sequence[Any], n_channels: int, record: bytes) -> list[int]:
    """Counts of all channels of one record; a channel without an element reads 0."""
    counts = [0] * n_channels
    for element in elements:
        counts[element.channel] = value(element, record)
    return counts
