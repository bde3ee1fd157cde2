"""The SNMP codec and user-based security against pysnmp, which shares no line with them, in both directions."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyasn1.codec.ber import decoder, encoder
from pysnmp.proto import rfc1902, rfc1905
from pysnmp.proto.api import v2c
from pysnmp.proto.mpmod.rfc3412 import ScopedPDU, SNMPv3Message
from pysnmp.proto.secmod.rfc3414.auth.hmacsha import HmacSha
from pysnmp.proto.secmod.rfc3414.service import UsmSecurityParameters
from pysnmp.proto.secmod.rfc3826.priv.aes import Aes
from pysnmp.proto.secmod.rfc7860.auth.hmacsha2 import HmacSha2

from rpi_daemon._fastpath.core import (
    Varbind,
    decode_oid,
    decode_scoped,
    decode_v2c,
    decode_v3,
    encode_oid,
    encode_v2c,
)
from rpi_daemon.drivers.pdu.usm import DIGESTS, Usm, localised_key, password_key

PDU_TAGS = {
    0xA0: rfc1905.GetRequestPDU,
    0xA2: rfc1905.ResponsePDU,
    0xA3: rfc1905.SetRequestPDU,
    0xA8: rfc1905.ReportPDU,
}
NUMBERS = {
    0x02: (rfc1902.Integer32, -(2**31), 2**31 - 1),
    0x41: (rfc1902.Counter32, 0, 2**32 - 1),
    0x42: (rfc1902.Gauge32, 0, 2**32 - 1),
    0x43: (rfc1902.TimeTicks, 0, 2**32 - 1),
    0x46: (rfc1902.Counter64, 0, 2**64 - 1),
}
EXCEPTIONS = {0x80: "noSuchObject", 0x81: "noSuchInstance", 0x82: "endOfMibView"}
AUTH_SERVICES = {
    "SHA-1": (HmacSha(), "sha1"),
    "SHA-256": (HmacSha2(HmacSha2.SHA256_SERVICE_ID), "sha256"),
    "SHA-512": (HmacSha2(HmacSha2.SHA512_SERVICE_ID), "sha512"),
}
ENGINE_ID = bytes.fromhex("80001f88805203cd6a3195006b")

arcs = st.integers(0, 2**32 - 1) | st.integers(0, 300)
oids = st.builds(
    lambda head, tail: ".".join(map(str, (*head, *tail))),
    st.tuples(st.integers(0, 1), st.integers(0, 39)) | st.tuples(st.just(2), st.integers(0, 2**32 - 81)),
    st.lists(arcs, max_size=14),
)
numbers = st.sampled_from(sorted(NUMBERS)).flatmap(
    lambda tag: st.tuples(st.just(tag), st.integers(*NUMBERS[tag][1:]) | st.sampled_from(NUMBERS[tag][1:]))
)
values = (
    numbers
    | st.tuples(st.sampled_from((0x04, 0x44)), st.binary(max_size=200))
    | st.tuples(st.just(0x06), oids)
    | st.tuples(st.just(0x40), st.binary(min_size=4, max_size=4))
    | st.tuples(st.sampled_from((0x05, *EXCEPTIONS)), st.none())
)
varbind_lists = st.lists(st.builds(lambda oid, typed: Varbind(oid, *typed), oids, values), max_size=6)
request_ids = st.integers(-(2**31), 2**31 - 1)
statuses = st.integers(0, 18)
octet_strings = st.binary(max_size=40)


def oid_of(value: Any) -> str:
    return ".".join(map(str, tuple(value)))


def theirs_from(varbind: Varbind) -> Any:
    """A pysnmp VarBind that says the same."""
    made = rfc1905.VarBind()
    made.setComponentByName("name", rfc1902.ObjectName(varbind.oid))
    tag, value = varbind.tag, varbind.value
    if tag in EXCEPTIONS:
        exception = getattr(rfc1905, {0x80: "NoSuchObject", 0x81: "NoSuchInstance", 0x82: "EndOfMibView"}[tag])("")
        made[1].setComponentByName(EXCEPTIONS[tag], exception)
        return made
    if tag == 0x05:
        made[1].setComponentByName("unSpecified", rfc1905.UnSpecified(""))
        return made
    kind: Any
    if tag in NUMBERS:
        kind = NUMBERS[tag][0]
    else:
        kind = {
            0x04: rfc1902.OctetString,
            0x44: rfc1902.Opaque,
            0x06: rfc1902.ObjectIdentifier,
            0x40: rfc1902.IpAddress,
        }[tag]
    v2c.apiVarBind.set_oid_value(made, (rfc1902.ObjectName(varbind.oid), kind(value)))
    return made


def ours_from(varbind: Any) -> Varbind:
    """The Varbind that says what a decoded pysnmp VarBind says; its tag from the octets that pyasn1 would send."""
    name, value = v2c.apiVarBind.get_oid_value(varbind)
    tag = encoder.encode(value)[0]
    if tag in NUMBERS:
        return Varbind(oid_of(name), tag, int(value))
    if tag == 0x06:
        return Varbind(oid_of(name), tag, oid_of(value))
    if tag in (0x04, 0x44, 0x40):
        return Varbind(oid_of(name), tag, bytes(value))
    return Varbind(oid_of(name), tag, None)


def their_pdu(tag: int, request_id: int, status: int, index: int, varbinds: list[Varbind]) -> Any:
    pdu = PDU_TAGS[tag]()
    pdu.setComponentByPosition(0, request_id)
    pdu.setComponentByPosition(1, status)
    pdu.setComponentByPosition(2, index)
    listing = pdu.setComponentByPosition(3).getComponentByPosition(3)
    listing.clear()  # an empty list, rather than none
    for i, varbind in enumerate(varbinds):
        listing.setComponentByPosition(i, theirs_from(varbind))
    return pdu


def facts_of(pdu: Any) -> tuple[int, int, int, list[Varbind]]:
    return int(pdu[0]), int(pdu[1]), int(pdu[2]), [ours_from(varbind) for varbind in pdu[3]]


@given(st.integers(2, 40).flatmap(lambda n: st.lists(arcs, min_size=n, max_size=n)), oids)
def test_oids(tail: list[int], head: str) -> None:
    oid = f"{head}.{'.'.join(map(str, tail))}"
    octets = encoder.encode(rfc1902.ObjectIdentifier(oid))
    content = octets[2:] if octets[1] < 128 else octets[3:]
    assert encode_oid(oid) == content
    assert decode_oid(content) == oid


@settings(max_examples=60)
@given(octet_strings, st.sampled_from(sorted(PDU_TAGS)), request_ids, statuses, st.integers(0, 100), varbind_lists)
def test_v2c_ours_is_understood(
    community: bytes, tag: int, request_id: int, status: int, index: int, varbinds: list[Varbind]
) -> None:
    message, rest = decoder.decode(
        encode_v2c(community, tag, request_id, varbinds, status, index), asn1Spec=v2c.Message()
    )
    assert not rest
    assert int(message[0]) == 1
    assert bytes(message[1]) == community
    pdu = message[2].getComponent()
    assert type(pdu) is PDU_TAGS[tag]
    assert facts_of(pdu) == (request_id, status, index, varbinds)


@settings(max_examples=60)
@given(octet_strings, st.sampled_from(sorted(PDU_TAGS)), request_ids, statuses, st.integers(0, 100), varbind_lists)
def test_v2c_theirs_is_understood(
    community: bytes, tag: int, request_id: int, status: int, index: int, varbinds: list[Varbind]
) -> None:
    message = v2c.Message()
    message.setComponentByPosition(0, 1)
    message.setComponentByPosition(1, community)
    pdu = their_pdu(tag, request_id, status, index, varbinds)
    message.setComponentByPosition(2).getComponentByPosition(2).setComponentByType(pdu.tagSet, pdu, innerFlag=False)
    octets = encoder.encode(message)
    names = [varbind.oid for varbind in varbinds]
    got_community, got = decode_v2c(octets, names)
    assert got_community == community
    assert (got.tag, got.request_id, got.status, got.index, got.varbinds) == (tag, request_id, status, index, varbinds)
    assert got.names_match


def their_keys(auth: str) -> tuple[Any, Any]:
    service, _ = AUTH_SERVICES[auth]
    engine_id = rfc1902.OctetString(ENGINE_ID)
    auth_key = service.localize_key(service.hash_passphrase(b"authpass12"), engine_id)
    oid = {"SHA-1": HmacSha.SERVICE_ID, "SHA-256": HmacSha2.SHA256_SERVICE_ID, "SHA-512": HmacSha2.SHA512_SERVICE_ID}[
        auth
    ]
    return auth_key, Aes().localize_key(oid, Aes().hash_passphrase(oid, b"privpass12"), engine_id)


THEIR_KEYS = {auth: their_keys(auth) for auth in AUTH_SERVICES}
OUR_USERS = {
    (auth, private): Usm(b"rpi", auth, b"authpass12", b"privpass12" if private else None)
    for auth in AUTH_SERVICES
    for private in (True, False)
}


@pytest.mark.parametrize("auth", AUTH_SERVICES)
@pytest.mark.parametrize("password", [b"maplesyrup", b"authpass12", bytes(range(1, 255)), b"12345678"])
def test_localised_keys(auth: str, password: bytes) -> None:
    service, digest = AUTH_SERVICES[auth]
    theirs = service.localize_key(service.hash_passphrase(password), rfc1902.OctetString(ENGINE_ID))
    assert DIGESTS[auth] == (digest, service.digest_length)
    assert localised_key(digest, password_key(digest, password), ENGINE_ID) == bytes(theirs)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("auth", AUTH_SERVICES)
@settings(max_examples=20)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from((0xA0, 0xA3)),
    request_ids,
    varbind_lists,
    st.integers(0, 2**31 - 2),
    st.integers(0, 2**31 - 1000),
)
def test_v3_ours_is_understood(
    auth: str,
    private: bool,
    message_id: int,
    tag: int,
    request_id: int,
    varbinds: list[Varbind],
    boots: int,
    time_s: int,
) -> None:
    usm = OUR_USERS[auth, private]
    usm.adopt(ENGINE_ID)
    usm.guess_clock(boots, time_s, 100.0)
    octets = bytes(usm.protect(message_id, tag, request_id, varbinds, 100.0))
    message, rest = decoder.decode(octets, asn1Spec=SNMPv3Message())
    assert not rest
    header = message[1]
    assert (int(header[0]), bytes(header[2]), int(header[3])) == (message_id, bytes([7 if private else 5]), 3)
    security, rest = decoder.decode(message[2], asn1Spec=UsmSecurityParameters())
    assert not rest
    assert (bytes(security[0]), int(security[1]), int(security[2])) == (ENGINE_ID, boots, time_s)
    assert bytes(security[3]) == b"rpi"
    auth_key, priv_key = THEIR_KEYS[auth]
    AUTH_SERVICES[auth][0].authenticate_incoming_message(auth_key, security[4], octets)
    if private:
        salt = security[5].asOctets()
        plain = Aes().decrypt_data(priv_key, (boots, time_s, list(salt)), message[3][1])
        scoped, rest = decoder.decode(plain, asn1Spec=ScopedPDU())
    else:
        scoped = message[3][0]
    assert bytes(scoped[0]) == ENGINE_ID
    pdu = scoped[2].getComponent()
    assert type(pdu) is PDU_TAGS[tag]
    assert facts_of(pdu) == (request_id, 0, 0, varbinds)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("auth", AUTH_SERVICES)
@settings(max_examples=20)
@given(
    st.integers(0, 2**31 - 1),
    request_ids,
    varbind_lists,
    st.integers(0, 2**31 - 2),
    st.integers(0, 2**31 - 1000),
    octet_strings,
)
def test_v3_theirs_is_understood(
    auth: str,
    private: bool,
    message_id: int,
    request_id: int,
    varbinds: list[Varbind],
    boots: int,
    time_s: int,
    context: bytes,
) -> None:
    scoped = ScopedPDU()
    scoped.setComponentByPosition(0, ENGINE_ID)
    scoped.setComponentByPosition(1, context)
    pdu = their_pdu(0xA2, request_id, 0, 0, varbinds)
    scoped.setComponentByPosition(2).getComponentByPosition(2).setComponentByType(pdu.tagSet, pdu, innerFlag=False)
    plain = encoder.encode(scoped)
    auth_key, priv_key = THEIR_KEYS[auth]
    service = AUTH_SERVICES[auth][0]
    message = SNMPv3Message()
    message.setComponentByPosition(0, 3)
    header = message.setComponentByPosition(1).getComponentByPosition(1)
    for i, part in enumerate((message_id, 65507, bytes([3 if private else 1]), 3)):
        header.setComponentByPosition(i, part)
    security = UsmSecurityParameters()
    salt: Any = b""
    if private:
        cipher, salt = Aes().encrypt_data(priv_key, (boots, time_s, None), plain)
        message.setComponentByPosition(3).getComponentByPosition(3).setComponentByName("encryptedPDU", cipher)
    else:
        message.setComponentByPosition(3).getComponentByPosition(3).setComponentByName("plaintext", scoped)
    for i, part in enumerate((ENGINE_ID, boots, time_s, b"rpi", bytes(service.digest_length), salt)):
        security.setComponentByPosition(i, part)
    message.setComponentByPosition(2, encoder.encode(security))
    octets = service.authenticate_outgoing_message(auth_key, encoder.encode(message))
    usm = OUR_USERS[auth, private]
    usm.adopt(ENGINE_ID)
    got = decode_v3(octets)
    assert (got.msg_id, got.boots, got.time_s, got.user) == (message_id, boots, time_s, b"rpi")
    back = decode_scoped(usm.unwrap(octets, got, 50.0), [varbind.oid for varbind in varbinds])
    assert (back.tag, back.request_id, back.varbinds, back.context_name) == (0xA2, request_id, varbinds, context)
    assert back.names_match
