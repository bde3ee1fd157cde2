"""One agent's SNMP session: GET, GETBULK and SET over connected UDP, v2c and v3 USM; believes only what it asked for."""

import asyncio
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rpi_daemon._fastpath.core import (
    BerError,
    Pdu,
    V3Message,
    Varbind,
    decode_scoped,
    decode_v2c,
    decode_v3,
    encode_v2c,
)
from rpi_daemon.drivers.pdu.usm import AUTH, DIGESTS, PRIV, Rejected, Usm
from rpi_daemon.errors import AuthError, ConfigError, DeviceError

INTEGER = 0x02
OCTETS = 0x04
NULL = 0x05
OID = 0x06
IPADDRESS = 0x40
GAUGE32 = 0x42
TIMETICKS = 0x43
OPAQUE = 0x44
COUNTER64 = 0x46
NO_SUCH_OBJECT = 0x80
NO_SUCH_INSTANCE = 0x81
END_OF_MIB = 0x82

_GET = 0xA0
_RESPONSE = 0xA2
_SET = 0xA3
_GET_BULK = 0xA5
_REPORT = 0xA8

_DATAGRAM_BYTES = 65536
_TOO_BIG = 1
_LONGEST_PAUSE = 64  # looks between two tries of more values: ten minutes of slow polls (path MTU: RFC 8899, 5.1.1)

_STATUS = (
    "noError", "tooBig", "noSuchName", "badValue", "readOnly", "genErr", "noAccess", "wrongType", "wrongLength",
    "wrongEncoding", "wrongValue", "noCreation", "inconsistentValue", "resourceUnavailable", "commitFailed",
    "undoFailed", "authorizationError", "notWritable", "inconsistentName",
)  # fmt: skip

_USM_STATS = "1.3.6.1.6.3.15.1.1."  # RFC 3414 section 5
_UNSUPPORTED_LEVEL = _USM_STATS + "1.0"
_NOT_IN_TIME_WINDOW = _USM_STATS + "2.0"
_UNKNOWN_USER = _USM_STATS + "3.0"
_UNKNOWN_ENGINE = _USM_STATS + "4.0"
_WRONG_DIGEST = _USM_STATS + "5.0"
_DECRYPTION_ERROR = _USM_STATS + "6.0"


class SnmpTimeout(DeviceError):
    """No answer in time, all retries included."""


class SnmpAuthError(AuthError):
    """The agent refuses the user, the key or the security level."""


class SnmpProtocolError(DeviceError):
    """The agent answered, but nothing that may be taken as the answer."""


class SnmpWithheld(DeviceError):
    """A SET that was not sent, or not sent again, because it is not allowed any more."""


class SnmpRefused(DeviceError):
    """The agent's error status. `index` counts from 1 in the caller's list and `oid` is that name; 0 and None where the
    agent names none."""

    def __init__(self, text: str, status: int, index: int, oid: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.index = index
        self.oid = oid


@dataclass(frozen=True, slots=True)
class SnmpEndpoint:
    """Where an agent is and how to speak with it. Raises ConfigError on a value that cannot work."""

    host: str
    port: int = 161
    version: str = "3"
    community: str = field(default="", repr=False)
    user: str = ""
    auth: str | None = "SHA-256"
    auth_key: str = field(default="", repr=False)
    priv: str | None = "AES-128"
    priv_key: str = field(default="", repr=False)
    timeout_s: float = 0.25
    retries: int = 1
    max_varbinds: int = 48
    requests_per_s: float | None = None  # at most; None: as fast as they are answered

    def __post_init__(self) -> None:
        mistakes = list(self._mistakes())
        if mistakes:
            raise ConfigError("\n".join(f"SNMP endpoint {self.host}: {mistake}" for mistake in mistakes))

    def _mistakes(self) -> Sequence[str]:
        found = []
        if not self.host:
            found.append("host is empty; give a name or an address")
        if not 1 <= self.port <= 65535:
            found.append(f"port {self.port} is not in 1..65535")
        if not 0.0 < self.timeout_s <= 60.0:
            found.append(f"timeout_s {self.timeout_s} is not in 0..60")
        if not 0 <= self.retries <= 10:
            found.append(f"retries {self.retries} is not in 0..10")
        if not 1 <= self.max_varbinds <= 1000:
            found.append(f"max_varbinds {self.max_varbinds} is not in 1..1000")
        if self.requests_per_s is not None and not self.requests_per_s > 0.0:
            found.append(f"requests_per_s {self.requests_per_s} is not above 0")
        if self.version == "2c":
            if not self.community:
                found.append("version 2c needs a community")
        elif self.version == "3":
            found.extend(self._v3_mistakes())
        else:
            found.append(f"version {self.version!r} is not '3' or '2c'")
        return found

    def _v3_mistakes(self) -> Sequence[str]:
        found = []
        if not 1 <= len(self.user.encode()) <= 32:
            found.append("version 3 needs a user of 1 to 32 octets")
        if self.auth is not None and self.auth not in DIGESTS:
            found.append(f"auth {self.auth!r} is not one of {', '.join(DIGESTS)} or none")
        if self.auth is not None and len(self.auth_key.encode()) < 8:
            found.append("auth_key needs at least 8 characters (RFC 3414)")
        if self.priv not in (None, "AES-128"):
            found.append(f"priv {self.priv!r} is not AES-128 or none")
        if self.priv is not None and self.auth is None:
            found.append("priv needs auth: SNMP has no privacy without authentication")
        if self.priv is not None and len(self.priv_key.encode()) < 8:
            found.append("priv_key needs at least 8 characters (RFC 3414)")
        return found


@dataclass(slots=True)
class SnmpCounters:
    """What happened on one session since it was made."""

    requests: int = 0
    timeouts: int = 0  # waits that ended without an answer, each retry counted
    retries: int = 0
    stale_replies: int = 0  # late, duplicate or unasked: an id that is not waited for
    malformed: int = 0  # not SNMP, not authentic, or not the varbinds that were asked
    reports: int = 0
    resyncs: int = 0  # engine id or engine time learned anew after the first time


def _always() -> bool:
    return True


@dataclass(slots=True)
class _Request:
    """One PDU under way: what it asks, and which of its messages may still be answered."""

    tag: int
    request_id: int
    varbinds: Sequence[str | Varbind]
    allowed: Callable[[], bool] = _always
    repetitions: int = 0  # GETBULK: rows asked for
    retries: int | None = None  # None: as the endpoint has them
    discovery: bool = False
    message_ids: set[int] = field(default_factory=set)
    complaint: str = ""
    synchronised: bool = False
    other_engine: bool = False  # a Report came from another engine than the one asked
    rediscovered: bool = False


class SnmpSession:
    """GET, GETBULK and SET with one agent, one request in flight. Not for use from two event loops.

    Every method that talks raises SnmpTimeout, SnmpAuthError, SnmpProtocolError, SnmpRefused, or DeviceError where the
    host cannot be found or nothing listens there. A v3 session never falls back to a weaker level. After a
    SnmpProtocolError about the time window, `open` again: an agent that lost its clock is then met anew."""

    def __init__(self, endpoint: SnmpEndpoint) -> None:
        self.endpoint = endpoint
        self.counters = SnmpCounters()
        self._usm = _usm_of(endpoint) if endpoint.version == "3" else None
        self._community = endpoint.community.encode()
        self._batch = endpoint.max_varbinds  # values in one message, fewer after tooBig
        self._pause = self._looks_left = 0  # until more are tried, in calls of `may_grow`
        self._tries_more = False
        self._where = f"{endpoint.host} port {endpoint.port}"
        self._lock = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[Pdu | None] | None = None
        self._request: _Request | None = None
        self._due_s = 0.0  # when the next request may go out

    def __repr__(self) -> str:
        return f"<SnmpSession v{self.endpoint.version} {self._where}>"

    @property
    def engine_id(self) -> bytes:
        """The agent's engine id; empty in v2c and before `open`."""
        return self._usm.engine_id if self._usm else b""

    @property
    def engine_boots(self) -> int:
        """How often the agent restarted, as it last proved; 0 where unknown."""
        return self._usm.boots if self._usm else 0

    async def open(self) -> None:
        """Find the host and connect; v3 asks for the engine id, so a silent agent is found here. Safe to call again."""
        self.close()
        self._batch, self._pause, self._tries_more = self.endpoint.max_varbinds, 0, False
        loop = asyncio.get_running_loop()
        family, address = await _find(loop, self.endpoint.host, self.endpoint.port)
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.connect(address)  # from now on the kernel drops what others send
        except OSError as error:
            sock.close()
            raise DeviceError(f"no route to SNMP agent {self._where}: {error.strerror}; check the address") from None
        self._socket = sock
        self._loop = loop
        loop.add_reader(sock.fileno(), self._on_readable)
        if self._usm is not None:
            try:
                async with self._lock:
                    await self._discover(self._usm)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the socket; a request under way fails. Safe to call twice."""
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(DeviceError(f"the session with SNMP agent {self._where} was closed"))

    async def get(self, oids: Sequence[str], *, retries: int | None = None) -> list[Varbind]:
        """The values of dotted `oids`, in their order, in as few requests as the agent takes. `retries` in place of the
        endpoint's, for a caller that knows of silence already."""
        return await self._in_batches(_GET, oids, retries=retries)

    async def get_bulk(self, oid: str, repetitions: int) -> list[Varbind]:
        """Up to `repetitions` objects that follow `oid`, as the agent has them; END_OF_MIB ends the list early. What they
        are called is the caller's to judge."""
        async with self._lock:
            request = _Request(_GET_BULK, secrets.randbits(31), (oid,), repetitions=repetitions)
            pdu = await self._exchange(request)
        if pdu.status:
            raise self._refusal(_GET_BULK, pdu, (oid,), 0)
        return pdu.varbinds

    async def set(self, varbinds: Sequence[Varbind], allowed: Callable[[], bool] = _always) -> list[Varbind]:
        """Write `varbinds` in order and return the agent's echo, which proves nothing: read back. More than one batch
        is not one transaction: the batches before the one that was refused were taken. `allowed` is asked immediately
        before each message, repetitions included; raises SnmpWithheld when it says no."""
        return await self._in_batches(_SET, varbinds, allowed)

    def may_grow(self) -> None:
        """Called now and then: where tooBig has made batches smaller, a GET that needs it tries twice as many values.

        At the next call after the first tooBig, and ever more rarely while the agent still says so.
        """
        if self._batch < self.endpoint.max_varbinds:
            self._looks_left -= 1
            self._tries_more |= self._looks_left <= 0

    async def _in_batches(
        self,
        tag: int,
        varbinds: Sequence[str | Varbind],
        allowed: Callable[[], bool] = _always,
        retries: int | None = None,
    ) -> list[Varbind]:
        answers: list[Varbind] = []
        async with self._lock:
            while len(answers) < len(varbinds):
                start = len(answers)
                more = self._tries_more and tag == _GET and len(varbinds) - start > self._batch
                part = varbinds[
                    start : start + (min(2 * self._batch, self.endpoint.max_varbinds) if more else self._batch)
                ]
                request = _Request(tag, secrets.randbits(31), part, allowed=allowed, retries=0 if more else retries)
                try:
                    pdu = await self._exchange(request)
                except SnmpTimeout:
                    if not more:
                        raise
                    self._no_more()  # something on the way drops what is longer
                    continue
                if pdu.status == _TOO_BIG and more:
                    self._no_more()
                elif pdu.status == _TOO_BIG and len(part) > 1:
                    self._batch = (len(part) + 1) // 2
                    self._looks_left = self._pause = max(1, self._pause)
                elif pdu.status:
                    raise self._refusal(tag, pdu, part, start)
                else:
                    answers.extend(pdu.varbinds)
                    if more:
                        self._batch, self._pause, self._looks_left, self._tries_more = len(part), 1, 1, False
        return answers

    def _no_more(self) -> None:
        """More values were tried in vain."""
        self._tries_more = False
        self._looks_left = self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _refusal(self, tag: int, pdu: Pdu, part: Sequence[str | Varbind], start: int) -> SnmpRefused:
        status = _STATUS[pdu.status] if pdu.status < len(_STATUS) else f"error {pdu.status}"
        verb = {_SET: "SET", _GET_BULK: "GETBULK"}.get(tag, "GET")
        if not 1 <= pdu.index <= len(part):
            text = f"SNMP agent {self._where} refused a {verb} of {len(part)} values: {status}"
            return SnmpRefused(text, pdu.status, 0, None)
        named = part[pdu.index - 1]
        oid = named if isinstance(named, str) else named.oid
        return SnmpRefused(
            f"SNMP agent {self._where} refused {verb} of {oid}: {status}", pdu.status, start + pdu.index, oid
        )

    async def _exchange(self, request: _Request) -> Pdu:
        """Send `request` until it is answered; a Report that can be acted on costs no retry. The lock is held."""
        tries_left = self._retries(request)
        self.counters.requests += 1
        while True:
            await self._turn()
            pdu = await self._send_and_wait(request)
            if pdu is None:
                self.counters.timeouts += 1
                if tries_left == 0:
                    raise self._silence(request)
                tries_left -= 1
                self.counters.retries += 1
            elif pdu.tag == _RESPONSE or request.discovery:
                return pdu
            else:
                self._act_on_report(request, pdu)

    def _retries(self, request: _Request) -> int:
        return self.endpoint.retries if request.retries is None else request.retries

    async def _turn(self) -> None:
        """Wait until the next request is due, where their rate is bounded."""
        if self.endpoint.requests_per_s is None:
            return
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self._due_s - now_s))
        self._due_s = max(self._due_s, now_s) + 1.0 / self.endpoint.requests_per_s

    async def _send_and_wait(self, request: _Request) -> Pdu | None:
        """One datagram and its answer; None when `timeout_s` passed."""
        if self._socket is None or self._loop is None:
            raise DeviceError(f"the session with SNMP agent {self._where} is not open")
        loop = self._loop
        try:
            message = self._message(request, loop.time())
        except BerError as error:
            raise SnmpProtocolError(f"this cannot be asked of SNMP agent {self._where}: {error}") from None
        if not request.allowed():
            raise SnmpWithheld(f"writing to SNMP agent {self._where} is not allowed any more")
        waiter: asyncio.Future[Pdu | None] = loop.create_future()
        self._waiter, self._request = waiter, request
        alarm = loop.call_later(self.endpoint.timeout_s, _expire, waiter)
        try:
            self._send(message)
            return await waiter
        finally:
            alarm.cancel()
            self._waiter = self._request = None

    def _message(self, request: _Request, now_s: float) -> bytearray | bytes:
        if self._usm is None:
            request.message_ids.add(request.request_id)
            return encode_v2c(
                self._community, request.tag, request.request_id, request.varbinds, index=request.repetitions
            )
        message_id = secrets.randbits(31)
        request.message_ids.add(message_id)
        if request.discovery:
            return self._usm.discover(message_id, request.request_id)
        return self._usm.protect(
            message_id, request.tag, request.request_id, request.varbinds, now_s, repetitions=request.repetitions
        )

    def _send(self, message: bytearray | bytes) -> None:
        assert self._socket is not None
        try:
            self._socket.send(message)
        except ConnectionRefusedError:  # may be the echo of an earlier datagram: the agent may be back
            try:
                self._socket.send(message)
            except OSError as error:
                raise self._unreachable(error) from None
        except BlockingIOError:
            pass  # full send buffer: the datagram is lost, as on any other hop
        except OSError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: OSError) -> DeviceError:
        if isinstance(error, ConnectionRefusedError):
            return DeviceError(
                f"nothing listens at SNMP agent {self._where}; check host, port and that SNMP is enabled on it"
            )
        return DeviceError(f"SNMP agent {self._where} cannot be reached: {error.strerror}; check the network")

    def _silence(self, request: _Request) -> DeviceError:
        sent = self._retries(request) + 1
        head = f"SNMP agent {self._where}"
        if request.complaint:
            return SnmpProtocolError(f"{head} answered, but nothing usable in {sent} tries: {request.complaint}")
        text = f"{head} did not answer {sent} tries of {self.endpoint.timeout_s:g} s"
        if self._usm is None:
            return SnmpTimeout(
                f"{text}; check host and port; the community may be wrong (a wrong one is met with silence)"
            )
        if request.discovery:
            return SnmpTimeout(f"{text}; check host, port and that SNMPv3 is enabled on it")
        return SnmpTimeout(
            f"{text} after it had named its engine; the privacy key or the security level may be wrong, or the device is busy"
        )

    # --- receiving

    def _on_readable(self) -> None:
        """One datagram; the loop calls again while there are more."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return  # the kernel dropped it after all: a wrong checksum
        except OSError as error:
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(self._unreachable(error))
            return
        self._on_datagram(data)

    def _on_datagram(self, data: bytes) -> None:
        request, waiter = self._request, self._waiter
        if request is None or waiter is None or waiter.done():
            self.counters.stale_replies += 1
            return
        try:
            pdu = self._open_v2c(data, request) if self._usm is None else self._open_v3(self._usm, data, request)
        except (BerError, Rejected) as error:
            self.counters.malformed += 1
            request.complaint = str(error)
            return
        if pdu is None:
            self.counters.stale_replies += 1
        else:
            waiter.set_result(pdu)

    def _open_v2c(self, data: bytes, request: _Request) -> Pdu | None:
        """The answer to `request`, None if it answers something else; Rejected if it must not be believed."""
        community, pdu = decode_v2c(data, request.varbinds)
        if pdu.request_id not in request.message_ids:
            return None
        if community != self._community:
            raise Rejected("the reply carries another community")
        return self._checked(pdu, request)

    def _open_v3(self, usm: Usm, data: bytes, request: _Request) -> Pdu | None:
        """As _open_v2c, by RFC 3414 section 3.2: digest, then time, then content."""
        message = decode_v3(data)
        if message.msg_id not in request.message_ids:
            return None
        level = message.flags & (AUTH | PRIV)
        if level and request.discovery:
            raise Rejected("a protected reply to a question without user")
        scoped = usm.unwrap(data, message, self._now_s()) if level else message.scoped
        pdu = decode_scoped(scoped, request.varbinds)
        if pdu.tag == _REPORT:
            return self._noted_report(usm, message, pdu, request)
        if level != usm.flags or message.engine_id != usm.engine_id or request.discovery:
            raise Rejected("the reply is less protected than the request, or from another engine")
        if pdu.request_id != request.request_id:
            return None
        return self._checked(pdu, request)

    def _now_s(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _noted_report(self, usm: Usm, message: V3Message, pdu: Pdu, request: _Request) -> Pdu:
        """Learn engine id or clock from a Report; an authentic one has set the clock already."""
        self.counters.reports += 1
        if len(pdu.varbinds) != 1:
            raise Rejected("a Report that names nothing")
        if message.flags & AUTH:
            return pdu
        if message.engine_id != usm.engine_id:
            # whatever it says: pysnmp's agent, asked for another engine, complains of the user
            if not 5 <= len(message.engine_id) <= 32:
                raise Rejected(f"an engine id of {len(message.engine_id)} octets; 5 to 32 are allowed")
            usm.adopt(message.engine_id)
            usm.guess_clock(message.boots, message.time_s, self._now_s())
            request.other_engine = True
        elif pdu.varbinds[0].oid == _NOT_IN_TIME_WINDOW:
            usm.guess_clock(message.boots, message.time_s, self._now_s())
        return pdu

    def _checked(self, pdu: Pdu, request: _Request) -> Pdu:
        if pdu.tag != _RESPONSE:
            raise Rejected(f"PDU tag {pdu.tag:#04x} is not a Response")
        if request.tag == _GET_BULK:
            if not pdu.status and not 1 <= len(pdu.varbinds) <= request.repetitions:
                raise Rejected(f"{len(pdu.varbinds)} objects where up to {request.repetitions} were asked for")
            return pdu
        # with an error status agents may return no varbinds (RFC 3416 section 4.2.1, tooBig)
        if not pdu.names_match and not (pdu.status and not pdu.varbinds):
            raise Rejected("the reply is about other OIDs than asked")
        return pdu

    async def _discover(self, usm: Usm) -> None:
        """RFC 3414 section 4: learn the engine id."""
        usm.adopt(b"")
        request = _Request(_GET, secrets.randbits(31), (), discovery=True)
        await self._exchange(request)
        if not usm.engine_id:
            raise SnmpProtocolError(f"SNMP agent {self._where} did not name its engine id; is SNMPv3 enabled on it?")

    def _act_on_report(self, request: _Request, pdu: Pdu) -> None:
        """Synchronise once for each reason; else say what the agent refuses."""
        oid = pdu.varbinds[0].oid
        who = f"SNMP agent {self._where}: user {self.endpoint.user!r}"
        if oid == _NOT_IN_TIME_WINDOW and not request.synchronised:
            request.synchronised = True
            self.counters.resyncs += 1
            return
        if (oid == _UNKNOWN_ENGINE or request.other_engine) and not request.rediscovered:
            request.rediscovered = True
            self.counters.resyncs += 1
            return
        if oid == _UNKNOWN_USER:
            raise SnmpAuthError(f"{who} is unknown to it; check the user, or create it on the device")
        if oid == _WRONG_DIGEST:
            raise SnmpAuthError(f"{who}: the authentication key or algorithm ({self.endpoint.auth}) is wrong")
        if oid == _DECRYPTION_ERROR:
            raise SnmpAuthError(f"{who}: the privacy key or algorithm ({self.endpoint.priv}) is wrong")
        if oid == _UNSUPPORTED_LEVEL:
            raise SnmpAuthError(
                f"{who} may not be used at this security level; set auth and priv as the device has them"
            )
        raise SnmpProtocolError(f"SNMP agent {self._where} keeps answering with a Report of {oid}")


def _expire(waiter: "asyncio.Future[Pdu | None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _find(loop: asyncio.AbstractEventLoop, host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """Family and address of `host`; names go through the resolver's thread, and to IPv4 first, which PDUs speak."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise DeviceError(f"SNMP host {host} cannot be found: {error.strerror}; check the name") from None
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def _usm_of(endpoint: SnmpEndpoint) -> Usm:
    priv_password = endpoint.priv_key.encode() if endpoint.priv else None
    return Usm(endpoint.user.encode(), endpoint.auth, endpoint.auth_key.encode(), priv_password)
