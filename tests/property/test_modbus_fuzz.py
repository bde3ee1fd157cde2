"""Damaged and foreign Modbus replies: whatever the octets, the right answer is taken or none. RPI_FUZZ=100000 for the long run."""

import asyncio
import contextlib
import os
import random

import pytest
from damage import mutated
from modbus_examples import example_map

from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.modbus_link import Asked, BadReply, TcpLink, crc16, rtu_reply, tcp_reply
from rpi_daemon.errors import DeviceError

REPLIES = int(os.environ.get("RPI_FUZZ", "10000"))
DEVICE, TRANSACTION = 7, 0x1234
READ = Asked(DEVICE, 4, 6)
WRITE = Asked(DEVICE, 16, echo=bytes.fromhex("01000030"))
VALUES = bytes.fromhex("044c 0000 7f00 8001 ffff 0102")
IDENTIFICATION = bytes.fromhex("2b0e0183000003") + b"\x00\x03ABB\x01\x03CMS\x02\x031.0"
GOOD = [
    (READ, bytes([4, 12]) + VALUES),
    (WRITE, bytes([16]) + WRITE.echo),
    (Asked(DEVICE, 6, echo=bytes.fromhex("00110137")), bytes.fromhex("0600110137")),
    (Asked(DEVICE, 43), IDENTIFICATION),
    (READ, bytes([0x84, 2])),
]


def rtu(pdu: bytes) -> bytes:
    frame = bytes([DEVICE]) + pdu
    return frame + crc16(frame).to_bytes(2, "little")


def tcp(pdu: bytes, transaction: int = TRANSACTION) -> bytes:
    return transaction.to_bytes(2, "big") + b"\0\0" + (len(pdu) + 1).to_bytes(2, "big") + bytes([DEVICE]) + pdu


@pytest.mark.parametrize(("asked", "pdu"), GOOD)
def test_the_good_reply_is_taken_whole_and_not_before_it_is_there(asked: Asked, pdu: bytes) -> None:
    assert rtu_reply(rtu(pdu), asked) == pdu
    assert tcp_reply(tcp(pdu), asked, TRANSACTION) == pdu
    for n in range(len(rtu(pdu))):
        assert rtu_reply(rtu(pdu)[:n], asked) is None
    for n in range(len(tcp(pdu))):
        assert tcp_reply(tcp(pdu)[:n], asked, TRANSACTION) is None
    late = tcp(bytes([4, 12]) + bytes(12), TRANSACTION - 1)
    assert tcp_reply(late, asked, TRANSACTION) is None
    assert tcp_reply(late + tcp(pdu), asked, TRANSACTION) == pdu


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """What a serial line does to a frame: up to three flipped bits, a burst of up to 16, lost or extra octets, a cut."""
    kind = rng.randrange(5)
    at = rng.randrange(len(whole))
    if kind == 0:
        mask = sum(1 << bit for bit in rng.sample(range(8 * len(whole)), rng.randrange(1, 4)))
        return (int.from_bytes(whole, "big") ^ mask).to_bytes(len(whole), "big")
    if kind == 1:
        mask = rng.randrange(1, 1 << 16) << rng.randrange(8 * len(whole) - 16)
        return (int.from_bytes(whole, "big") ^ mask).to_bytes(len(whole), "big")
    if kind == 2:
        return whole[:at] + whole[at + rng.randrange(1, 4) :]
    if kind == 3:
        return whole[:at] + rng.randbytes(rng.randrange(1, 4)) + whole[at:]
    return whole[:at]


def test_damaged_rtu_replies() -> None:
    """Of all these replies none that differs from the good one is taken."""
    rng = random.Random(20)
    wrong = [
        (octets.hex(), asked)
        for asked, pdu in GOOD
        for octets in (damaged(rtu(pdu), rng) for _ in range(REPLIES // len(GOOD)))
        if octets != rtu(pdu) and _taken(rtu_reply, octets, asked)
    ]
    assert not wrong


def test_what_sixteen_bits_of_checksum_cannot_tell() -> None:
    """Several changes at once that keep the length: one in 65,536 has the right checksum by chance, and no more pass."""
    rng = random.Random(20)
    passed = sum(
        octets != rtu(pdu) and _taken(rtu_reply, octets, asked) is not None
        for asked, pdu in GOOD
        for octets in (mutated(rtu(pdu), rng) for _ in range(REPLIES // len(GOOD)))
    )
    assert passed <= 2 + REPLIES / 2**14


def test_mutated_replies_with_a_good_checksum() -> None:
    """Another device's, another function's, another length's reply, whole on the line: never an answer."""
    rng = random.Random(21)
    taken = 0
    for _ in range(REPLIES):
        asked, pdu = rng.choice(GOOD[:3])
        octets = mutated(bytes([DEVICE]) + pdu, rng)
        frame = octets + crc16(octets).to_bytes(2, "little")
        if _taken(rtu_reply, frame, asked):
            taken += 1
            assert _is_answer(octets, asked), frame.hex()
    assert taken > 10  # the mutations reach the values


def test_mutated_tcp_replies() -> None:
    """No other transaction, device, function, length or echo is taken; values have no check of their own over TCP."""
    rng = random.Random(22)
    taken = 0
    for _ in range(REPLIES):
        asked, pdu = rng.choice(GOOD[:3])
        octets = mutated(tcp(pdu), rng)
        found = _taken(tcp_reply, octets, asked, TRANSACTION)
        if found:
            taken += 1
            assert tcp(found) in octets
            assert _is_answer(bytes([DEVICE]) + found, asked), octets.hex()
    assert taken > 10


def _is_answer(octets: bytes, asked: Asked) -> bool:
    """From the device on: everything but values is as it must be; or it is an exception of this device and function."""
    if octets[0] != DEVICE:
        return False
    if octets[1] == asked.function | 0x80:
        return len(octets) == 3
    if asked.count:
        return octets[1:3] == bytes([asked.function, 2 * asked.count]) and len(octets) == 3 + 2 * asked.count
    return octets[1:] == bytes([asked.function]) + asked.echo


def _taken(check, octets: bytes, *more: object) -> bytes | None:  # type: ignore[no-untyped-def]
    try:
        return check(octets, *more)  # type: ignore[no-any-return]
    except BadReply:
        return None


def test_the_driver_never_tells_a_value_of_a_damaged_reply() -> None:
    """The whole driver against a server whose replies are damaged in the head, two in three."""
    rng = random.Random(23)
    good = bad = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal bad
        with contextlib.closing(writer):
            while len(head := await reader.read(7)) == 7:
                request = head + await reader.readexactly(int.from_bytes(head[4:6], "big") - 1)
                function, count = request[7], int.from_bytes(request[10:12], "big")
                body = bytes([2 * count]) + b"\0\0\x03\xe8" * (count // 2) if function in (3, 4) else request[8:12]
                reply = request[:4] + (len(body) + 2).to_bytes(2, "big") + request[6:8] + body
                if rng.random() < 0.66:
                    n = 9 if function in (3, 4) else len(reply)
                    reply, bad = mutated(reply[:n], rng) + reply[n:], bad + 1
                writer.write(reply)

    async def scene() -> None:
        nonlocal good
        server = await asyncio.start_server(serve, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        pdu = ModbusPdu(ModbusOptions(TcpAddress("127.0.0.1", port), example_map(), (1, 2), timeout_s=0.02))
        for i in range(300):
            try:
                if i % 3:
                    reading = await pdu.read()
                    if reading.power_w[1] is not None:
                        assert reading.power_w == {1: 100.0, 2: 100.0}
                        good += 1
                else:
                    assert isinstance(pdu.link, TcpLink)
                    await pdu.link.write(1, 16, 0x100, [5, 6])
            except DeviceError:
                continue
        await pdu.close()
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(scene(), 60.0))
    assert bad > 100
    assert good > 5


def test_a_write_whose_echo_names_another_register_is_an_error() -> None:
    with pytest.raises(BadReply, match="the echo of another write: 01010030"):
        WRITE.check(bytes.fromhex("1001010030"))
