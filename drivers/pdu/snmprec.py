"""Reads `.snmprec` recordings of SNMP agents: one `oid|tag|value` a line."""

import re
from collections.abc import Mapping
from pathlib import Path

from rpi_daemon.errors import TraceError

Oid = tuple[int, ...]
Value = int | bytes | Oid | None

# INTEGER, Counter32, Gauge32, TimeTicks, Counter64 and what they hold
_NUMBERS = {2: (-(2**31), 2**31), 65: (0, 2**32), 66: (0, 2**32), 67: (0, 2**32), 70: (0, 2**64)}
_NUMBER = re.compile(r"-?[0-9]{1,20}")  # int() takes more: 1_0, blanks, other scripts
MAX_ARCS = 128  # RFC 2578, 3.5
_OCTETS, _NULL, _OID, _IP = 4, 5, 6, 64


def read_snmprec(path: str | Path, bits: Mapping[Oid, int] | None = None) -> dict[Oid, tuple[int, Value]]:
    """Everything the recorded agent said: OID to (ASN.1 tag, value); octets as bytes, OIDs as tuples, sorted by OID.

    `bits` names columns (OID prefixes) of type BITS with their length in octets. Public recordings hold these as the
    walking tool printed them (`30 2 3`: the octet 0x30, then the numbers of its set bits), not as on the wire.

    Raises TraceError with file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise TraceError(f"{path}: cannot read the recording: {error.strerror}") from error
    found: dict[Oid, tuple[int, Value]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, tag_text, text = line.split("|", 2)
            oid = parse_oid(name)
            tag, value = _value(tag_text, text)
            octets = _bits_octets(oid, bits)
            if octets and tag == _OCTETS and isinstance(value, bytes):
                value = _printed_bits(value, octets)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: not an 'oid|tag|value' line: {error}") from error
        found[oid] = (tag, value)
    if not found:
        raise TraceError(f"{path}: the recording is empty")
    return dict(sorted(found.items()))


def parse_oid(text: str) -> Oid:
    """`1.3.6.1` or `.1.3.6.1` as a tuple; raises ValueError."""
    arcs = text.strip().lstrip(".").split(".")
    if not all(arc.isascii() and arc.isdigit() and len(arc) <= 10 for arc in arcs) or len(arcs) > MAX_ARCS:
        raise ValueError(f"{text[:60]!r} is not an OID")
    oid = tuple(map(int, arcs))
    if max(oid) > 0xFFFFFFFF:
        raise ValueError(f"{text[:60]!r} has an arc above 4294967295")
    return oid


def _value(tag_text: str, text: str) -> tuple[int, Value]:
    """One value; an `x` behind the tag says that the octets are in hexadecimal."""
    if tag_text.endswith("x"):
        return _checked_octets(int(tag_text[:-1]), bytes.fromhex(text))
    tag = int(tag_text)
    if tag in _NUMBERS:
        low, end = _NUMBERS[tag]
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"{text[:40]!r} is not a number")
        if not low <= int(text) < end:
            raise ValueError(f"{text} is outside {low}..{end - 1} of tag {tag}")
        return tag, int(text)
    if tag == _NULL:
        return tag, None
    if tag == _OID:
        return tag, parse_oid(text)
    if tag == _IP:
        return _checked_octets(tag, bytes(int(part) for part in text.split(".")))
    return _checked_octets(tag, text.encode("utf-8", errors="surrogateescape"))


def _checked_octets(tag: int, value: bytes) -> tuple[int, Value]:
    if tag not in (_OCTETS, _IP):
        raise ValueError(f"tag {tag} is not known")
    if tag == _IP and len(value) != 4:
        raise ValueError(f"an address of {len(value)} octets")
    return tag, value


def _bits_octets(oid: Oid, bits: Mapping[Oid, int] | None) -> int:
    if not bits:
        return 0
    return next((octets for prefix, octets in bits.items() if oid[: len(prefix)] == prefix), 0)


def _printed_bits(value: bytes, octets: int) -> bytes:
    """The octets of a printed BITS value; anything else as it is."""
    if len(value) <= octets:
        return value
    words = value.split()[:octets]
    if len(words) == octets and all(len(word) == 2 for word in words):
        return bytes.fromhex(b"".join(words).decode())
    return value
