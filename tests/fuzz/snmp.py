"""SNMP messages, v2c and v3 with privacy: the session and its codec against a second decoder."""

import functools
from collections.abc import Callable
from typing import Any

from fuzz import reference_ber
from fuzz.target import Choices, Target, must

from rpi_daemon._fastpath.core import (
    BerError,
    Pdu,
    Varbind,
    decode_oid,
    decode_scoped,
    decode_v2c,
    decode_v3,
    encode_oid,
    encode_scoped,
    encode_v2c,
    encode_v3,
)
from rpi_daemon.drivers.pdu.snmp_session import _GET_BULK, SnmpEndpoint, SnmpSession, _Request
from rpi_daemon.drivers.pdu.usm import Rejected, Usm, _iv

GET, RESPONSE, REPORT = 0xA0, 0xA2, 0xA8
ENGINE_ID = bytes.fromhex("80001f88805203cd6a3195006b")
REQUEST_ID, MESSAGE_ID, BOOTS, TIME_S = 0x12345678, 0x1BCDEF01, 7, 5000
ROWS = 3
OIDS = ["1.3.6.1.4.1.13742.6.5.4.3.1.4.1.1.5", "1.3.6.1.2.1.1.3.0", "2.999.4294967295"]
REPLY = [Varbind(OIDS[0], 0x42, 1671), Varbind(OIDS[1], 0x43, 5), Varbind(OIDS[2], 0x04, b"\x30")]
PDU_TAGS = (RESPONSE, REPORT, GET, 0xA3, 0xA5, 0xA1)
VALUE_TAGS = (0x02, 0x04, 0x05, 0x06, 0x40, 0x41, 0x42, 0x43, 0x44, 0x46, 0x80, 0x81, 0x82, 0x30)


def element(choices: Choices, tag: int, content: bytes) -> bytes:
    """With its right length: short, or long for its own sake now and then; one in 128 with a wrong tag or length."""
    how = choices.byte()
    n = len(content)
    if how == 255:
        return bytes([choices.byte()]) + choices.take(1 + choices.below(5)) + content
    if n >= 128 or how >= 248:
        octets = max(1, (n.bit_length() + 7) // 8, how - 250)
        return bytes([tag, 0x80 | octets]) + n.to_bytes(octets, "big") + content
    return bytes([tag, n]) + content


def number(choices: Choices, right: int) -> bytes:
    """Mostly the right one, else any contents."""
    how = choices.byte()
    return right.to_bytes(4, "big") if how < 200 else choices.take(how % 10)


def name(choices: Choices) -> bytes:
    how = choices.byte()
    if how < 180:
        return encode_oid(OIDS[how % 3])
    return choices.take(how % 60) * (1 + (how == 255) * 12)


def pdu(choices: Choices) -> bytes:
    """One with right lengths everywhere, and contents as the choices say."""
    tag = choices.one(PDU_TAGS)
    head = b"".join(element(choices, 0x02, number(choices, right)) for right in (REQUEST_ID, 0, 0))
    varbinds = b""
    for i in range(choices.below(6)):
        oid = encode_oid(OIDS[i]) if i < 3 and choices.byte() < 200 else name(choices)
        value = element(choices, choices.one(VALUE_TAGS), choices.take(choices.below(14)))
        varbinds += element(choices, 0x30, element(choices, 0x06, oid) + value)
    return element(choices, tag, head + element(choices, 0x30, varbinds))


# choices that make `pdu` the answer to the question: tag, three numbers, three varbinds with one octet each
ANSWER = bytes([0, 0, 0, 0, 0, 0, 0, 3]) + bytes([0, 1, 1, 65, 0, 0, 0]) * 3


def same(found: Pdu, expected: object) -> bool:
    """Type by type: True is not 1, and 0 is not missing."""
    varbinds = [(v.oid, v.tag, v.value) for v in found.varbinds]
    return repr((found.tag, found.request_id, found.status, found.index, varbinds)) == repr(expected)


def read(decode: Callable[..., Any], *arguments: object) -> Any:
    try:
        return decode(*arguments)
    except (BerError, Rejected):
        return None


def check_taken(found: Pdu, private: bool) -> None:
    """What a session takes for the answer to its question is one."""
    must(found.request_id == REQUEST_ID or found.tag == REPORT, found.request_id)
    must(found.tag == RESPONSE or (found.tag == REPORT and private), found.tag)
    must([v.oid for v in found.varbinds] == OIDS or found.status != 0 or found.tag == REPORT, found.varbinds)


def check_rows(found: Pdu | None, private: bool) -> None:
    """The same of GETBULK, which asks for at most ROWS objects, whatever their names."""
    if found is not None:
        must(found.request_id == REQUEST_ID or found.tag == REPORT, found.request_id)
        must(found.tag == RESPONSE or (found.tag == REPORT and private), found.tag)
        must(1 <= len(found.varbinds) <= ROWS or found.status != 0 or found.tag == REPORT, found.varbinds)


# --- v2c


@functools.cache
def v2c_session() -> SnmpSession:
    return SnmpSession(SnmpEndpoint("127.0.0.1", version="2c", community="public"))


def check_v2c(data: bytes) -> bool:
    choices = Choices(data)
    kind = choices.below(4)
    if kind == 0:
        return check_oid(choices.rest())
    if kind == 1:
        octets = choices.rest()
        if octets[:1] == b"\xee":  # more than a message may have
            octets *= 65536 // len(octets) + 1
    else:
        community = b"public" if choices.byte() < 230 else choices.take(choices.below(9))
        version = b"\1" if choices.byte() < 250 else choices.take(2)
        parts = element(choices, 0x02, version) + element(choices, 0x04, community) + pdu(choices)
        octets = element(choices, 0x30, parts) + choices.take(choices.byte() // 254)
    request = _Request(GET, REQUEST_ID, OIDS, message_ids={REQUEST_ID})
    answer = read(v2c_session()._open_v2c, octets, request)
    if answer is not None:
        check_taken(answer, private=False)
    rows = _Request(_GET_BULK, REQUEST_ID, OIDS[:1], repetitions=ROWS, message_ids={REQUEST_ID})
    check_rows(read(v2c_session()._open_v2c, octets, rows), private=False)
    decoded = read(decode_v2c, octets)
    must(answer is None or decoded is not None)
    if decoded is None:
        return False
    try:
        expected = reference_ber.v2c(octets)
    except reference_ber.Refused:
        expected = (b"", None)
    must(decoded[0] == expected[0] and same(decoded[1], expected[1]), octets.hex(), expected)
    if all(v.value is not None or v.tag in reference_ber.EMPTY for v in decoded[1].varbinds):
        p = decoded[1]
        again = encode_v2c(decoded[0], p.tag, p.request_id, p.varbinds, p.status, p.index)
        must(same(decode_v2c(again)[1], expected[1]), again.hex())
    return True


def check_oid(octets: bytes) -> bool:
    """An OID has one spelling in octets."""
    text = read(decode_oid, octets)
    if text is None:
        return False
    must(reference_ber.oid(octets) == text and encode_oid(text) == octets, octets.hex(), text)
    return True


def v2c_seeds() -> list[bytes]:
    oids = [bytes([0]) + encode_oid(oid) for oid in OIDS] + [b"\0" + bytes([1]) * 140, b"\1\xee"]
    whole = encode_v2c(b"public", RESPONSE, REQUEST_ID, REPLY)
    failed = encode_v2c(b"public", RESPONSE, REQUEST_ID, OIDS, 2, 1)
    built = bytes([2, 0, 0, 0, 0]) + ANSWER
    return [*oids, b"\1" + whole, b"\1" + failed, built, bytes([2]) + bytes(range(7)) * 12]


# --- v3, authPriv


class Noon:
    """A loop, as far as a session without socket asks it: for the time."""

    def time(self) -> float:
        return 100.0


@functools.cache
def keys() -> tuple[SnmpSession, Usm]:
    """A session that has met the agent, and the agent's own half."""
    session = SnmpSession(SnmpEndpoint("127.0.0.1", user="rpi", auth_key="authpass12", priv_key="privpass12"))
    agent = Usm(b"rpi", "SHA-256", b"authpass12", b"privpass12")
    agent.adopt(ENGINE_ID)
    return session, agent


def fresh_session() -> tuple[SnmpSession, Usm]:
    """As it is before any answer: what an input taught it must not judge the next one."""
    session, agent = keys()
    session._loop = Noon()  # type: ignore[assignment]
    assert session._usm is not None
    session._usm.adopt(ENGINE_ID)
    return session, agent


def v3_message(choices: Choices, agent: Usm) -> bytes:
    """An authentic message of the agent around contents that the choices make: digest right, ciphertext right."""
    kind = choices.below(4)
    if kind == 0:
        return choices.rest()
    flags = 3 if choices.byte() < 200 else choices.byte()
    engine = ENGINE_ID if choices.byte() < 230 else choices.take(choices.below(20))
    salt = choices.exactly(8) if choices.byte() < 240 else choices.take(choices.below(12))
    boots, time_s = (BOOTS, TIME_S) if choices.byte() < 200 else (choices.byte() << 8, choices.byte())
    if kind == 1:
        scoped = choices.take(choices.byte())
    else:
        context = element(choices, 0x04, ENGINE_ID) + element(choices, 0x04, choices.take(choices.byte() // 250))
        scoped = element(choices, 0x30, context + pdu(choices)) + choices.take(choices.byte() // 240)
    if flags & 2 and len(salt) == 8:
        assert agent._cipher is not None
        scoped = agent._cipher.encrypt(_iv(boots, time_s, salt), scoped)
    message_id = MESSAGE_ID if choices.byte() < 230 else choices.byte()
    message, at = encode_v3(message_id, flags & 7, engine, boots, time_s, b"rpi", 24, salt, scoped)
    if kind == 3:  # damage under a right digest
        place = choices.byte() % len(message)
        if not at <= place < at + 24:
            message[place] ^= 1 << choices.below(8)
    assert agent._hmac is not None
    message[at : at + 24] = bytes(24)
    message[at : at + 24] = agent._hmac(message)
    return bytes(message)


def check_v3(data: bytes) -> bool:
    session, agent = fresh_session()
    usm = session._usm
    assert usm is not None
    octets = v3_message(Choices(data), agent)
    outside = read(decode_v3, octets)
    if outside is not None:
        try:
            expected: tuple[object, ...] = reference_ber.v3(octets)
        except (reference_ber.Refused, ValueError):
            expected = ()
        m = outside
        ours = (
            m.msg_id,
            m.max_size,
            m.flags,
            m.engine_id,
            m.boots,
            m.time_s,
            m.user,
            m.auth_params,
            m.priv_params,
            m.scoped,
        )
        must(ours == expected, octets.hex(), expected)
        must(octets[m.auth_offset : m.auth_offset + len(m.auth_params)] == m.auth_params, m.auth_offset)
        check_scoped(m.scoped)
    rows = _Request(_GET_BULK, REQUEST_ID, OIDS[:1], repetitions=ROWS, message_ids={MESSAGE_ID})
    check_rows(read(session._open_v3, usm, octets, rows), private=True)
    fresh_session()
    request = _Request(GET, REQUEST_ID, OIDS, message_ids={MESSAGE_ID})
    answer = read(session._open_v3, usm, octets, request)
    if answer is None:
        return False
    must(outside is not None, octets.hex())
    assert outside is not None
    must(outside.msg_id == MESSAGE_ID, outside.msg_id)
    if answer.tag != REPORT:
        must(outside.flags & 3 == 3 and outside.engine_id == ENGINE_ID and outside.user == b"rpi", outside.flags)
        unsigned = octets[: outside.auth_offset] + bytes(24) + octets[outside.auth_offset + 24 :]
        assert agent._hmac is not None
        must(agent._hmac(unsigned) == outside.auth_params, "the digest is wrong")
    check_taken(answer, private=True)
    return True


def check_scoped(octets: bytes) -> None:
    found = read(decode_scoped, octets)
    if found is None:
        return
    engine, context, expected = reference_ber.scoped(octets)
    must((found.context_engine_id, found.context_name) == (engine, context) and same(found, expected), octets.hex())


def v3_seeds() -> list[bytes]:
    _, agent = keys()
    agent.guess_clock(BOOTS, TIME_S, 0.0)
    whole = bytes(agent.protect(MESSAGE_ID, RESPONSE, REQUEST_ID, REPLY, 0.0))
    scoped = encode_scoped(ENGINE_ID, b"", RESPONSE, REQUEST_ID, REPLY)
    report = encode_scoped(ENGINE_ID, b"", REPORT, REQUEST_ID, [Varbind("1.3.6.1.6.3.15.1.1.4.0", 0x41, 1)])
    bare = bytes(encode_v3(MESSAGE_ID, 0, ENGINE_ID, BOOTS, TIME_S, b"", 0, b"", report)[0])
    head = bytes([0, 0, 0]) + bytes(8) + bytes([0])
    return [
        b"\0" + whole,
        b"\0" + bare,
        b"\1" + head + bytes([len(scoped)]) + scoped,
        b"\1" + head + bytes([len(report)]) + report,
        b"\2" + head + bytes(3) + ANSWER,
        b"\3" + head + bytes(3) + ANSWER + bytes(5) + b"\x20\3",
    ]


SHARED = tuple(
    f"_fastpath/snmp.pxi:_snmp_{name}"
    for name in ("enter", "done", "signed", "take_", "unsigned", "arc_text", "oid_text", "value", "open")
)
V2C = Target(
    "snmp_v2c",
    "a message is taken that a second decoder, written from the RFCs, refuses or reads otherwise; it does not read the same when it "
    "is encoded again; the session takes an answer to another question; an OID has two spellings",
    (
        *SHARED,
        "_fastpath/snmp.pxi:decode_v2c",
        "_fastpath/snmp.pxi:decode_oid",
        "drivers/pdu/snmp_session.py:_open_v2c",
        "drivers/pdu/snmp_session.py:_checked",
    ),
    v2c_seeds,
    check_v2c,
)
V3 = Target(
    "snmp_v3",
    "as v2c, and: the session takes an answer that is unsigned, unencrypted, of another engine, user or message id (but for Reports, "
    "which carry no value), or whose digest does not hold",
    (
        *SHARED,
        "_fastpath/snmp.pxi:decode_v3",
        "_fastpath/snmp.pxi:decode_scoped",
        "drivers/pdu/usm.py:unwrap",
        "drivers/pdu/usm.py:_in_window",
        "drivers/pdu/snmp_session.py:_open_v3",
        "drivers/pdu/snmp_session.py:_checked",
        "drivers/pdu/snmp_session.py:_noted_report",
    ),
    v3_seeds,
    check_v3,
)
