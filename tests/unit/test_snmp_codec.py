"""The SNMP codec on known octets: golden messages, limits of the parser, values that must not be taken for others."""

import pytest

from rpi_daemon._fastpath.core import (
    BerError,
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

GET, RESPONSE, SET = 0xA0, 0xA2, 0xA3
INTEGER, OCTETS, NULL, OID, GAUGE32, COUNTER64 = 0x02, 0x04, 0x05, 0x06, 0x42, 0x46
SYS_NAME = "1.3.6.1.2.1.1.5.0"


def reply_with(value_octets: str) -> bytes:
    """A v2c Response about sysName.0 whose value is these octets (tag and length included)."""
    value = bytes.fromhex(value_octets)
    name = bytes.fromhex("06082b06010201010500")

    def wrap(tag: int, body: bytes) -> bytes:
        assert len(body) < 128
        return bytes((tag, len(body))) + body

    pdu = wrap(0xA2, bytes.fromhex("020101020100020100") + wrap(0x30, wrap(0x30, name + value)))
    return wrap(0x30, bytes.fromhex("020101" + "0406") + b"public" + pdu)


def value_of(value_octets: str) -> object:
    (varbind,) = decode_v2c(reply_with(value_octets))[1].varbinds
    return varbind.value


def test_golden_get() -> None:
    """The octets that net-snmp's snmpget sends for the same question."""
    golden = "302602010104067075626c6963a01902012a020100020100300e300c06082b060102010105000500"
    assert encode_v2c(b"public", GET, 42, [SYS_NAME]).hex() == golden
    community, pdu = decode_v2c(bytes.fromhex(golden), [SYS_NAME])
    assert (community, pdu.tag, pdu.request_id, pdu.names_match) == (b"public", GET, 42, True)
    assert pdu.varbinds == [Varbind(SYS_NAME, NULL)]


@pytest.mark.parametrize(
    ("oid", "octets"),
    [
        ("1.3.6.1", "2b0601"),
        ("0.0", "00"),
        ("0.39.4294967295", "278fffffff7f"),
        ("2.999.3", "883703"),
        ("2.4294967295", "908080804f"),
        ("1.3.6.1.4.1.13742.127.128.16383.16384", "2b06010401eb2e7f8100ff7f818000"),
    ],
)
def test_oid_octets(oid: str, octets: str) -> None:
    assert encode_oid(oid).hex() == octets
    assert decode_oid(bytes.fromhex(octets)) == oid


@pytest.mark.parametrize(
    "oid", ["", "1", ".1.3", "1..3", "3.1", "1.40", "1.3.4294967296", "1.3.-1", "1.3.01", "1.3.x", "1.3. 6"]
)
def test_bad_oid_text_is_refused(oid: str) -> None:
    with pytest.raises(BerError, match="OID"):
        encode_oid(oid)


def test_oid_of_more_than_128_arcs_is_refused_both_ways() -> None:
    longest = ".".join(["1"] * 128)
    assert decode_oid(encode_oid(longest)) == longest
    with pytest.raises(BerError, match="128"):
        encode_oid(longest + ".1")
    with pytest.raises(BerError, match="128"):
        decode_oid(bytes([1] * 128))


@pytest.mark.parametrize("octets", ["", "80", "2b8001", "2b81", "2b9080808000", "2bffffffffffffffffffff7f"])
def test_bad_oid_octets_are_refused(octets: str) -> None:
    with pytest.raises(BerError, match="OID"):
        decode_oid(bytes.fromhex(octets))


@pytest.mark.parametrize("tag", ["02", "41", "42", "43", "46", "06"])
def test_a_number_of_length_zero_is_missing_and_not_zero(tag: str) -> None:
    assert value_of(tag + "00") is None


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        ("020100", 0),
        ("0201ff", -1),
        ("02020080", 128),
        ("020480000000", -(2**31)),
        ("02080000000000000005", 5),  # longer than needed, as some agents send
        ("420500ffffffff", 2**32 - 1),
        ("4204ffffffff", 2**32 - 1),  # without the leading zero octet: still not a sign
        ("4608ffffffffffffffff", 2**64 - 1),
        ("460900ffffffffffffffff", 2**64 - 1),
        ("0403303132", b"012"),
        ("4004c0a80001", b"\xc0\xa8\x00\x01"),
        ("06032b0601", "1.3.6.1"),
        ("8000", None),
        ("8100", None),
        ("8200", None),
        ("0500", None),
        ("04820003616263", b"abc"),  # a length in more octets than needed
    ],
)
def test_values(octets: str, value: object) -> None:
    assert value_of(octets) == value


@pytest.mark.parametrize(
    "octets",
    [
        "02050100000000",  # 33 bits
        "0209000000000000000005",
        "42050100000000",
        "4609010000000000000000",
        "4003c0a800",
        "050100",
        "810100",
        "1f0100",  # long tag
        "0480",  # indefinite
        "0485000000000161",  # length of 5 octets
        "04847fffffff",
        "0405616263",  # longer than the varbind
        "450100",  # NsapAddress is gone from SMIv2
        "3000",
        "",
    ],
)
def test_bad_values_are_refused(octets: str) -> None:
    with pytest.raises(BerError):
        value_of(octets)


def test_every_truncation_and_every_surplus_octet_is_refused() -> None:
    whole = encode_v2c(
        b"public", RESPONSE, 7, [Varbind(SYS_NAME, OCTETS, b"pdu"), Varbind("1.3.6.1.4.1.1", INTEGER, 5)]
    )
    for n in range(len(whole)):
        with pytest.raises(BerError):
            decode_v2c(whole[:n])
    with pytest.raises(BerError, match="too many"):
        decode_v2c(whole + b"\0")


def test_nesting_cannot_exhaust_the_parser() -> None:
    bomb = b""
    for _ in range(9000):
        n = len(bomb)
        bomb = b"\x30" + (bytes([n]) if n < 128 else b"\x83" + n.to_bytes(3, "big")) + bomb
    with pytest.raises(BerError):
        decode_v2c(bomb[:65536])
    with pytest.raises(BerError):
        decode_scoped(bomb[-60000:])
    with pytest.raises(BerError, match="65536"):
        decode_v3(bytes(65537))


def test_a_message_that_udp_cannot_carry_is_refused() -> None:
    with pytest.raises(BerError, match="65507"):
        encode_v2c(b"public", SET, 1, [Varbind(SYS_NAME, OCTETS, bytes(40000))] * 2)


@pytest.mark.parametrize(
    "varbind",
    [
        Varbind("1.3.6.1", INTEGER, 2**31),
        Varbind("1.3.6.1", INTEGER, -(2**31) - 1),
        Varbind("1.3.6.1", INTEGER, 2**80),
        Varbind("1.3.6.1", INTEGER, None),
        Varbind("1.3.6.1", INTEGER, b"5"),
        Varbind("1.3.6.1", GAUGE32, -1),
        Varbind("1.3.6.1", COUNTER64, 2**64),
        Varbind("1.3.6.1", OCTETS, "text"),
        Varbind("1.3.6.1", 0x40, b"abc"),
        Varbind("1.3.6.1", OID, b"1.3"),
        Varbind("1.3.6.1", NULL, 0),
        Varbind("1.3.6.1", 0x30, b""),
    ],
)
def test_values_that_have_no_encoding_are_refused(varbind: Varbind) -> None:
    with pytest.raises(BerError, match=r"1\.3\.6\.1"):
        encode_v2c(b"public", SET, 1, [varbind])


def test_names_are_compared_in_order_and_number() -> None:
    reply = encode_v2c(b"c", RESPONSE, 1, [Varbind("1.3.6.1.1", INTEGER, 1), Varbind("1.3.6.1.2", INTEGER, 2)])

    def match(*names: str) -> bool:
        return decode_v2c(reply, names)[1].names_match

    assert match("1.3.6.1.1", "1.3.6.1.2")
    assert not match("1.3.6.1.2", "1.3.6.1.1")
    assert not match("1.3.6.1.1")
    assert not match("1.3.6.1.1", "1.3.6.1.2", "1.3.6.1.3")
    assert not match("1.3.6.1.1", "1.3.6.1.3")
    assert not decode_v2c(reply)[1].names_match


def test_v3_message_keeps_its_parts_and_says_where_the_digest_is() -> None:
    scoped = encode_scoped(b"engine", b"ctx", GET, 9, [SYS_NAME])
    message, at = encode_v3(77, 5, b"engine", 3, 1234, b"user", 24, b"", scoped)
    assert message[at : at + 24] == bytes(24)
    message[at : at + 24] = bytes(range(24))
    back = decode_v3(bytes(message))
    assert (back.msg_id, back.flags, back.engine_id, back.boots, back.time_s) == (77, 5, b"engine", 3, 1234)
    assert (back.user, back.auth_params, back.auth_offset) == (b"user", bytes(range(24)), at)
    assert back.scoped == scoped
    pdu = decode_scoped(back.scoped + b"\0\0", [SYS_NAME])
    assert (pdu.context_engine_id, pdu.context_name, pdu.request_id, pdu.names_match) == (b"engine", b"ctx", 9, True)


def test_v3_privacy_without_authentication_is_refused() -> None:
    message, _ = encode_v3(1, 2, b"engine", 0, 0, b"user", 0, bytes(8), b"cipher")
    with pytest.raises(BerError, match="privacy"):
        decode_v3(bytes(message))


def test_varbinds_are_values() -> None:
    assert Varbind("1.3", INTEGER, 1) == Varbind("1.3", INTEGER, 1) != Varbind("1.3", GAUGE32, 1)
    assert Varbind("1.3", INTEGER, 1) != "1.3"
    assert len({Varbind("1.3", INTEGER, 1), Varbind("1.3", INTEGER, 1)}) == 1
    assert repr(Varbind("1.3", INTEGER, 1)) == "Varbind('1.3', 0x02, 1)"
