"""Damaged and forged SNMP replies: whatever the octets, the session takes the right answer or none."""

import asyncio
import contextlib
import random

import pytest
from damage import mutated
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.ber import decoder
from pyasn1.error import PyAsn1Error
from pysnmp.proto.api import v2c

from rpi_daemon._fastpath.core import (
    BerError,
    Pdu,
    Varbind,
    decode_oid,
    decode_scoped,
    decode_v2c,
    decode_v3,
    encode_scoped,
    encode_v2c,
    encode_v3,
)
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession, _Request
from rpi_daemon.drivers.pdu.usm import Rejected, Usm

GET, RESPONSE = 0xA0, 0xA2
ENGINE_ID = bytes.fromhex("80001f88805203cd6a3195006b")
OIDS = [f"1.3.6.1.4.1.13742.6.5.4.3.1.4.1.{i}.5" for i in range(1, 7)]
REPLY = [
    Varbind(OIDS[0], 0x42, 1671),
    Varbind(OIDS[1], 0x02, -5),
    Varbind(OIDS[2], 0x04, b"\x30"),
    Varbind(OIDS[3], 0x46, 2**40),
    Varbind(OIDS[4], 0x81, None),
    Varbind(OIDS[5], 0x06, "1.3.6.1.4.1.13742"),
]
REQUEST_ID, MESSAGE_ID = 0x12345678, 0x1BCDEF01


def their_view(octets: bytes) -> list[tuple[str, object]] | None:
    """(name, number or octets) of every varbind as pyasn1 reads the message; None where it refuses it."""
    try:
        message, _ = decoder.decode(octets, asn1Spec=v2c.Message())
    except PyAsn1Error:
        return None
    pairs = [v2c.apiVarBind.get_oid_value(varbind) for varbind in message[2].getComponent()[3]]
    return [
        (str(name), tuple(value) if value.__class__.__name__.startswith("Object") else value) for name, value in pairs
    ]


def same(ours: Varbind, theirs: tuple[str, object]) -> bool:
    name, value = theirs
    if ours.oid != name:
        return False
    if isinstance(ours.value, int):
        return ours.value == int(value)  # type: ignore[call-overload]
    if isinstance(ours.value, bytes):
        return ours.value == bytes(value)  # type: ignore[call-overload]
    if isinstance(ours.value, str):
        return tuple(map(int, ours.value.split("."))) == value
    return True


def test_mutated_v2c_replies() -> None:
    """100,000 damaged replies: nothing crashes, no other question's answer is taken, and what is taken reads as pyasn1 reads it."""
    session = SnmpSession(SnmpEndpoint("127.0.0.1", version="2c", community="public"))
    request = _Request(GET, REQUEST_ID, OIDS, message_ids={REQUEST_ID})
    whole = encode_v2c(b"public", RESPONSE, REQUEST_ID, REPLY)
    rng = random.Random(20)
    taken: dict[bytes, Pdu] = {}
    for _ in range(100_000):
        octets = mutated(whole, rng)
        try:
            pdu = session._open_v2c(octets, request)
        except (BerError, Rejected):
            continue
        if pdu is None:
            continue
        assert pdu.request_id == REQUEST_ID
        assert [v.oid for v in pdu.varbinds] == OIDS or (pdu.status and not pdu.varbinds)
        if octets != whole:
            taken[octets] = pdu
    assert len(taken) > 300  # the mutations reach the values
    read_by_both = 0
    for octets, pdu in rng.sample(sorted(taken.items()), 150):
        theirs = their_view(octets)
        if theirs is not None:
            assert all(same(*pair) for pair in zip(pdu.varbinds, theirs, strict=True)), octets.hex()
            read_by_both += 1
    assert read_by_both > 50


@pytest.mark.parametrize("private", [True, False])
def test_mutated_v3_replies(private: bool) -> None:
    """The digest covers every octet: of 50,000 damaged replies none is taken, and none moves the session."""

    async def run() -> None:
        endpoint = SnmpEndpoint(
            "127.0.0.1", user="rpi", auth_key="authpass12", priv="AES-128" if private else None, priv_key="privpass12"
        )
        session = SnmpSession(endpoint)
        session._loop = asyncio.get_running_loop()
        usm = session._usm
        assert usm is not None
        usm.adopt(ENGINE_ID)
        agent = Usm(b"rpi", "SHA-256", b"authpass12", b"privpass12" if private else None)
        agent.adopt(ENGINE_ID)
        agent.guess_clock(7, 5000, 0.0)
        whole = bytes(agent.protect(MESSAGE_ID, RESPONSE, REQUEST_ID, REPLY, 0.0))
        request = _Request(GET, REQUEST_ID, OIDS, message_ids={MESSAGE_ID})
        right = session._open_v3(usm, whole, request)
        assert right is not None
        assert right.varbinds == REPLY
        rng = random.Random(21)
        for _ in range(50_000):
            octets = mutated(whole, rng)
            if octets == whole:
                continue
            try:
                pdu = session._open_v3(usm, octets, request)
            except (BerError, Rejected):
                continue
            assert pdu is None, octets.hex()
        assert (usm.engine_id, usm.boots) == (ENGINE_ID, 7)

    asyncio.run(run())


def test_a_weaker_reply_is_not_taken() -> None:
    """An answer without privacy, or without any protection, to a private question."""

    async def run() -> None:
        session = SnmpSession(SnmpEndpoint("127.0.0.1", user="rpi", auth_key="authpass12", priv_key="privpass12"))
        session._loop = asyncio.get_running_loop()
        usm = session._usm
        assert usm is not None
        usm.adopt(ENGINE_ID)
        request = _Request(GET, REQUEST_ID, OIDS, message_ids={MESSAGE_ID})
        open_agent = Usm(b"rpi", "SHA-256", b"authpass12", None)
        open_agent.adopt(ENGINE_ID)
        signed = bytes(open_agent.protect(MESSAGE_ID, RESPONSE, REQUEST_ID, REPLY, 0.0))
        scoped = encode_scoped(ENGINE_ID, b"", RESPONSE, REQUEST_ID, REPLY)
        bare = bytes(encode_v3(MESSAGE_ID, 0, ENGINE_ID, 0, 0, b"rpi", 0, b"", scoped)[0])
        for octets in (signed, bare):
            with pytest.raises(Rejected, match="less protected"):
                session._open_v3(usm, octets, request)

    asyncio.run(run())


@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda tail: b"\x30\x2a\x02\x01\x01" + tail))
def test_any_octets(octets: bytes) -> None:
    for decode in (decode_v2c, decode_v3, decode_scoped, decode_oid):
        with contextlib.suppress(BerError):
            decode(octets)
