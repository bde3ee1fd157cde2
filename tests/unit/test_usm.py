"""The user-based security model: published vectors, the time window, and what an unproven word may change."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon._fastpath.core import Varbind, decode_scoped, decode_v3
from rpi_daemon.drivers.pdu.usm import Aes128Cfb, Hmac, Rejected, Usm

ENGINE_ID = bytes.fromhex("80001f8804727069")
REPLY = [Varbind("1.3.6.1.2.1.1.3.0", 0x43, 42)]


def user(auth: str = "SHA-256", password: bytes = b"authpass12", priv: bytes | None = b"privpass12") -> Usm:
    made = Usm(b"rpi", auth, password, priv)
    made.adopt(ENGINE_ID)
    return made


def reply(boots: int, time_s: int, agent: Usm | None = None) -> bytes:
    """An agent's authentic answer at its clock (boots, time_s)."""
    agent = agent or user()
    agent.guess_clock(boots, time_s, 0.0)
    return bytes(agent.protect(1, 0xA2, 2, REPLY, 0.0))


def read(usm: Usm, octets: bytes, now_s: float) -> list[Varbind]:
    return decode_scoped(usm.unwrap(octets, decode_v3(octets), now_s)).varbinds


def test_cfb_vector_of_nist() -> None:
    """SP 800-38A F.3.13 and F.3.14, twice on the same contexts, with a shorter message between."""
    key, iv = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"), bytes(range(16))
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b"
        "26751f67a3cbb140b1808cf187a4f4dfc04b05357c5d1c0eeac4c66f9ff7f2e6"
    )
    aes = Aes128Cfb(key)
    for n in (64, 21, 16, 1, 0, 64):
        assert aes.encrypt(iv, plain[:n]) == cipher[:n]
        assert aes.decrypt(iv, cipher[:n]) == plain[:n]


@given(
    st.sampled_from((("sha1", 20), ("sha256", 32), ("sha512", 64))), st.binary(min_size=64, max_size=64), st.binary()
)
def test_hmac_is_the_standard_librarys(digest: tuple[str, int], key: bytes, message: bytes) -> None:
    name, octets = digest
    ours = Hmac(name, key[:octets], 12)
    assert ours(message) == ours(message) == hmac.digest(key[:octets], message, name)[:12]


def test_a_reply_older_than_150_s_is_not_believed() -> None:
    usm = user()
    assert read(usm, reply(3, 1000), 0.0) == REPLY
    assert read(usm, reply(3, 1000), 149.0) == REPLY
    with pytest.raises(Rejected, match="time window"):
        read(usm, reply(3, 1000), 152.0)
    assert read(usm, reply(3, 1152), 152.0) == REPLY


def test_a_reply_from_before_a_restart_is_not_believed() -> None:
    usm = user()
    assert read(usm, reply(3, 1000), 0.0) == REPLY
    assert read(usm, reply(4, 2), 3.0) == REPLY
    assert (usm.boots, usm.engine_time_s(13.0)) == (4, 12)
    with pytest.raises(Rejected, match="time window"):
        read(usm, reply(3, 1003), 3.0)


def test_latched_boots_are_refused() -> None:
    with pytest.raises(Rejected, match="time window"):
        read(user(), reply(2**31 - 1, 5), 0.0)


def test_an_unproven_clock_is_for_asking_only() -> None:
    """A forged Report may spoil a question, never what is believed, and the next authentic message ends it."""
    usm = user()
    read(usm, reply(3, 1000), 0.0)
    for boots in (1, 9):
        usm.guess_clock(boots, 50, 1.0)
        asked = decode_v3(bytes(usm.protect(5, 0xA0, 6, ["1.3"], 1.0)))
        assert (asked.boots, asked.time_s) == (boots, 50)
        with pytest.raises(Rejected, match="time window"):
            read(usm, reply(2, 2000), 1.0)
        assert read(usm, reply(3, 1001), 1.0) == REPLY
        assert (usm.boots, usm.engine_time_s(1.0)) == (3, 1001)
    fresh = user()
    fresh.guess_clock(9, 5000, 0.0)  # the forger was first
    assert read(fresh, reply(3, 1000), 0.0) == REPLY
    assert fresh.boots == 3


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (user(password=b"otherpass"), "digest is wrong"),
        (user(auth="SHA-1"), "digest is wrong"),
        (Usm(b"other", "SHA-256", b"authpass12", None), "another engine or user"),
    ],
)
def test_what_others_sign_is_not_believed(agent: Usm, words: str) -> None:
    agent.adopt(ENGINE_ID)
    with pytest.raises(Rejected, match=words):
        read(user(), reply(1, 1, agent), 0.0)


def test_another_engines_reply_is_not_believed() -> None:
    agent = user()
    agent.adopt(ENGINE_ID + b"x")
    with pytest.raises(Rejected, match="another engine or user"):
        read(user(), reply(1, 1, agent), 0.0)


def test_salts_never_repeat() -> None:
    usm = user()
    salts = [decode_v3(bytes(usm.protect(1, 0xA0, 1, ["1.3"], 0.0))).priv_params for _ in range(1000)]
    assert len(set(salts)) == 1000
