"""The user's side of SNMPv3's User-based Security Model (RFC 3414, 3826, 7860): keys, the engine's clock, protection."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB

from rpi_daemon._fastpath.core import V3Message, Varbind, encode_scoped, encode_v3, xor_octets

AUTH = 1
PRIV = 2
_REPORTABLE = 4

DIGESTS = {"SHA-1": ("sha1", 12), "SHA-256": ("sha256", 24), "SHA-512": ("sha512", 48)}  # octets sent: RFC 3414, 7860

_BLOCK = 16
_GET = 0xA0
_TIME_WINDOW_S = 150  # RFC 3414 section 2.2.3
_BOOTS_LATCHED = 0x7FFFFFFF


class Rejected(Exception):
    """A well-formed message that must not be believed; the text says why."""


def password_key(digest: str, password: bytes) -> bytes:
    """RFC 3414 A.2: the digest of 2**20 octets of the repeated password; takes milliseconds, on purpose."""
    repeats, rest = divmod(1 << 20, len(password))
    return hashlib.new(digest, password * repeats + password[:rest]).digest()


def localised_key(digest: str, key: bytes, engine_id: bytes) -> bytes:
    """RFC 3414 A.2: a key that is good at one engine only."""
    return hashlib.new(digest, key + engine_id + key).digest()


class Hmac:
    """RFC 2104 with the key's two blocks hashed once: half the time of hmac.digest on a message of 1 kB."""

    def __init__(self, digest: str, key: bytes, octets: int) -> None:
        block = key.ljust(hashlib.new(digest).block_size, b"\0")  # USM's keys are never longer than a block
        self._inner = hashlib.new(digest, bytes(octet ^ 0x36 for octet in block))
        self._outer = hashlib.new(digest, bytes(octet ^ 0x5C for octet in block))
        self._octets = octets

    def __call__(self, message: bytes | bytearray) -> bytes:
        """The first `octets` of the message's HMAC."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()[: self._octets]


class Aes128Cfb:
    """RFC 3826's cipher, CFB with whole-block feedback, on two contexts that are made once: one per message costs 4 us.

    With E the block cipher and P, C the blocks of a message, CFB is C[i] = P[i] ^ E(C[i-1]), C[-1] = IV. Its masks are
    - to decrypt, the ECB encryption of IV, C[0], C[1] ...;
    - to encrypt, the CBC encryption X of IV, P[0], P[1] ...: from X[0] = E(IV) on, X[i+1] = E(P[i] ^ X[i]) = E(C[i]).
    A CBC context goes on from its last block; that is cancelled by xor before IV goes in."""

    def __init__(self, key: bytes) -> None:
        self._ecb = Cipher(AES(key), ECB()).encryptor()
        self._cbc = Cipher(AES(key), CBC(bytes(_BLOCK))).encryptor()
        self._cbc_last = bytes(_BLOCK)

    def encrypt(self, iv: bytes, octets: bytes) -> bytes:
        whole = octets + bytes(-len(octets) % _BLOCK)
        mask = self._cbc.update(xor_octets(iv, self._cbc_last) + whole)
        self._cbc_last = mask[-_BLOCK:]
        return xor_octets(octets, mask)

    def decrypt(self, iv: bytes, octets: bytes) -> bytes:
        return xor_octets(octets, self._ecb.update(iv + octets + bytes(-len(octets) % _BLOCK)))


class Usm:
    """One user at one authoritative engine. `auth` is a key of DIGESTS or None, `priv_password` None for no privacy.

    Passwords become keys here, which takes some milliseconds of CPU; localised keys are kept for the engine in use.
    Time is the caller's monotonic clock, in seconds."""

    def __init__(self, user: bytes, auth: str | None, auth_password: bytes, priv_password: bytes | None) -> None:
        self.user = user
        self.flags = 0
        self._digest, self._digest_octets = "", 0
        self._auth_master = self._priv_master = b""
        if auth is not None:
            self.flags = AUTH
            self._digest, self._digest_octets = DIGESTS[auth]
            self._auth_master = password_key(self._digest, auth_password)
            if priv_password is not None:
                self.flags |= PRIV
                self._priv_master = password_key(self._digest, priv_password)
        self._localised_for: bytes | None = None
        self._hmac: Hmac | None = None
        self._cipher: Aes128Cfb | None = None
        self._salt = secrets.randbits(64)
        self.adopt(b"")

    def adopt(self, engine_id: bytes) -> None:
        """Speak with this engine from now on; its clock is unknown."""
        self.engine_id = engine_id
        self.boots = 0  # what a question carries, with _engine_minus_caller_s: the proven clock, or a guess
        self._engine_minus_caller_s = 0.0
        self._proven: tuple[int, float] | None = None  # both as an authentic message had them
        self._newest_time_s = 0
        if self.flags and engine_id and engine_id != self._localised_for:
            auth_key = localised_key(self._digest, self._auth_master, engine_id)
            self._hmac = Hmac(self._digest, auth_key, self._digest_octets)
            if self.flags & PRIV:
                self._cipher = Aes128Cfb(localised_key(self._digest, self._priv_master, engine_id)[:_BLOCK])
            self._localised_for = engine_id

    def guess_clock(self, boots: int, time_s: int, now_s: float) -> None:
        """Take the engine's unauthenticated word for its clock: good for asking, while answers are held to the proven one."""
        self.boots = boots
        self._engine_minus_caller_s = time_s - now_s

    def engine_time_s(self, now_s: float) -> int:
        return max(0, int(now_s + self._engine_minus_caller_s)) & 0x7FFFFFFF

    def discover(self, message_id: int, request_id: int) -> bytearray:
        """The message that makes an engine name itself (RFC 3414 section 4)."""
        scoped = encode_scoped(b"", b"", _GET, request_id, ())
        return encode_v3(message_id, _REPORTABLE, b"", 0, 0, b"", 0, b"", scoped)[0]

    def protect(
        self,
        message_id: int,
        pdu_tag: int,
        request_id: int,
        varbinds: Sequence[str | Varbind],
        now_s: float,
        *,
        repetitions: int = 0,
    ) -> bytearray:
        """A request at the user's level, RFC 3414 section 3.1; `repetitions` is for a GETBULK."""
        scoped = encode_scoped(self.engine_id, b"", pdu_tag, request_id, varbinds, index=repetitions)
        flags = self.flags | _REPORTABLE
        if self._hmac is None:
            return encode_v3(message_id, flags, self.engine_id, 0, 0, self.user, 0, b"", scoped)[0]
        time_s = self.engine_time_s(now_s)
        salt = b""
        if self._cipher is not None:
            self._salt = (self._salt + 1) & 0xFFFFFFFFFFFFFFFF
            salt = self._salt.to_bytes(8, "big")
            scoped = self._cipher.encrypt(_iv(self.boots, time_s, salt), scoped)
        n = self._digest_octets
        message, at = encode_v3(message_id, flags, self.engine_id, self.boots, time_s, self.user, n, salt, scoped)
        message[at : at + n] = self._hmac(message)
        return message

    def unwrap(self, data: bytes, message: V3Message, now_s: float) -> bytes:
        """The plain scoped PDU of an authentic, timely message to us, RFC 3414 section 3.2; raises Rejected.

        `message` is decode_v3(data), with its authentication flag set. Moves our notion of the engine's clock forward."""
        if message.engine_id != self.engine_id or message.user != self.user or message.flags & PRIV & ~self.flags:
            raise Rejected("the reply is from another engine or user than asked")
        n = self._digest_octets
        unsigned = bytearray(data)
        unsigned[message.auth_offset : message.auth_offset + n] = bytes(n)
        if self._hmac is None or not hmac.compare_digest(self._hmac(unsigned), message.auth_params):
            raise Rejected("the reply's digest is wrong: forged, damaged, or the agent has another key")
        if not self._in_window(message.boots, message.time_s, now_s):
            raise Rejected("the reply is outside the time window: replayed, or the agent's clock went back")
        if self._cipher is None or not message.flags & PRIV:
            return message.scoped
        if len(message.priv_params) != 8:
            raise Rejected("the reply has no salt of 8 octets")
        return self._cipher.decrypt(_iv(message.boots, message.time_s, message.priv_params), message.scoped)

    def _in_window(self, boots: int, time_s: int, now_s: float) -> bool:
        """RFC 3414 section 3.2 step 7b, for an authentic message; a timely one ends what was guessed."""
        known = self._proven
        if known is None or boots > known[0] or (boots == known[0] and time_s > self._newest_time_s):
            self._proven = known = (boots, time_s - now_s)
            self._newest_time_s = time_s
        proven_boots, engine_minus_caller_s = known
        if boots == _BOOTS_LATCHED or boots != proven_boots or time_s < now_s + engine_minus_caller_s - _TIME_WINDOW_S:
            return False
        self.boots, self._engine_minus_caller_s = known
        return True


def _iv(boots: int, time_s: int, salt: bytes) -> bytes:
    """RFC 3826 section 3.1.2.1."""
    return boots.to_bytes(4, "big") + time_s.to_bytes(4, "big") + salt
