"""Modbus replies over RTU and TCP: what is taken answers what was asked, octet by octet."""

from fuzz.target import Choices, Target, WrongAccept, must

from rpi_daemon.drivers.pdu.modbus_link import Asked, BadReply, crc16, rtu_reply, tcp_reply

DEVICE, TRANSACTION = 7, 0x1234
ECHO_ONE, ECHO_MANY = bytes.fromhex("00110137"), bytes.fromhex("01000030")
ASKED = (
    Asked(DEVICE, 3, 1),
    Asked(DEVICE, 4, 6),
    Asked(DEVICE, 4, 125),
    Asked(DEVICE, 6, echo=ECHO_ONE),
    Asked(DEVICE, 16, echo=ECHO_MANY),
    Asked(DEVICE, 43),
)
IDENTIFICATION = bytes.fromhex("2b0e0183000003") + b"\x00\x03ABB\x01\x03CMS\x02\x031.0"


def crc_by_bit(octets: bytes) -> int:
    """Modbus over serial line V1.02, 6.2.2."""
    crc = 0xFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def pdu_of(choices: Choices, asked: Asked) -> bytes:
    """From the function code on: as the choices say, or with the parts that must be repeated in place."""
    how = choices.below(4)
    if how == 0:
        return choices.take(choices.byte())
    if how == 1:
        return bytes([asked.function | 0x80, choices.byte()]) + choices.take(choices.byte() // 250)
    if asked.function == 43:
        parts = [bytes([choices.byte(), len(text)]) + text for text in _texts(choices)]
        head = bytes([43, 14, 1, 0x83, choices.byte(), choices.byte(), len(parts) + choices.byte() // 250])
        return head + b"".join(parts)
    if asked.count:
        n = asked.count + choices.byte() // 250
        return bytes([asked.function, 2 * n & 0xFF]) + choices.exactly(2 * n)
    return bytes([asked.function]) + (asked.echo if choices.byte() < 200 else choices.take(4 + choices.byte() // 200))


def _texts(choices: Choices) -> list[bytes]:
    return [choices.take(choices.below(40)) for _ in range(choices.below(6))]


def check_rtu(data: bytes) -> bool:
    choices = Choices(data)
    asked = choices.one(ASKED)
    if choices.below(4) == 0:
        frame = choices.rest()
    else:
        device = DEVICE if choices.byte() < 230 else choices.byte()
        body = bytes([device]) + pdu_of(choices, asked)
        frame = body + crc16(body).to_bytes(2, "little") + choices.take(choices.byte() // 240)
    found = None
    pieces = (1, choices.below(12), choices.byte(), len(frame) - 1, len(frame))
    for n in sorted({n for n in pieces if 0 <= n <= len(frame)}):  # as it comes in
        try:
            found = rtu_reply(frame[:n], asked)
        except BadReply:
            return False
        must(found is None or n == len(frame) or frame[: n - 2][1:] == found, frame.hex())
        if found is not None:
            break
    if found is None:
        return False
    must(frame[1 : n - 2] == found and frame[0] == DEVICE, frame.hex())
    must(crc_by_bit(frame[: n - 2]) == int.from_bytes(frame[n - 2 : n], "little"), frame.hex())
    answers(found, asked)
    return True


def check_tcp(data: bytes) -> bool:
    choices = Choices(data)
    asked = choices.one(ASKED)
    stream, sent = b"", []
    while choices and len(sent) < 4:
        if choices.below(4) == 0:
            stream += choices.take(choices.byte())
            continue
        pdu = pdu_of(choices, asked)
        number = TRANSACTION if choices.byte() < 180 else choices.byte() << 4
        protocol = choices.byte() // 250
        device = DEVICE if choices.byte() < 240 else choices.byte()
        length = len(pdu) + 1 if choices.byte() < 240 else choices.byte()
        sent.append(pdu)
        stream += b"".join(n.to_bytes(2, "big") for n in (number, protocol, length)) + bytes([device]) + pdu
    try:
        found = tcp_reply(stream, asked, TRANSACTION)
    except BadReply:
        return False
    if found is None:
        return False
    head = b"".join(n.to_bytes(2, "big") for n in (TRANSACTION, 0, len(found) + 1)) + bytes([DEVICE])
    must(head + found in stream, stream.hex())
    answers(found, asked)
    return True


def answers(pdu: bytes, asked: Asked) -> None:
    """Everything but values is as asked; or it is an exception of that function."""
    if pdu[0] == asked.function | 0x80:
        must(len(pdu) == 2, pdu.hex())
    elif asked.count:
        must(pdu[0] == asked.function and pdu[1] == 2 * asked.count and len(pdu) == 2 + 2 * asked.count, pdu.hex())
    elif asked.function == 43:
        must(objects_fill(pdu), pdu.hex())
    else:
        must(pdu == bytes([asked.function]) + asked.echo, pdu.hex())


def objects_fill(pdu: bytes) -> bool:
    """The objects' own lengths add up to the reply."""
    at = 7
    try:
        for _ in range(pdu[6]):
            at += 2 + pdu[at + 1]
    except IndexError:
        return False
    return pdu[:2] == b"\x2b\x0e" and at == len(pdu)


def check(data: bytes) -> bool:
    if crc16(data[:32]) != crc_by_bit(data[:32]):
        raise WrongAccept("crc16", data[:32].hex())
    return check_rtu(data[1:]) if data[:1] < b"\x80" else check_tcp(data[1:])


def seeds() -> list[bytes]:
    found = []
    for wire in (b"\0", b"\xff"):
        for number in range(len(ASKED)):
            found += [wire + bytes([number, how_wire, how]) + bytes(16) for how_wire in (1, 2) for how in (1, 2, 3)]
    body = bytes([DEVICE]) + IDENTIFICATION
    found.append(b"\0\5\0" + body + crc16(body).to_bytes(2, "little"))
    body = bytes([DEVICE, 6]) + ECHO_ONE
    found.append(b"\0\3\0" + body + crc16(body).to_bytes(2, "little"))
    found.append(b"\xff\5\0\x60" + bytes.fromhex("1234 0000 0017 07") + IDENTIFICATION)
    return found


TARGET = Target(
    "modbus",
    "a reply is taken from another device, transaction or function, of another length than asked, with an echo of another write, with a "
    "wrong checksum (computed bit by bit here), or before it is there whole",
    (
        "drivers/pdu/modbus_link.py:rtu_reply", "drivers/pdu/modbus_link.py:tcp_reply", "drivers/pdu/modbus_link.py:crc16",
        "drivers/pdu/modbus_link.py:Asked", "drivers/pdu/modbus_link.py:_identification_length",
        "drivers/pdu/modbus_link.py:_objects",
    ),
    seeds,
    check,
)  # fmt: skip
