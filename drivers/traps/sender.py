"""Sends notifications to one receiver with pysnmp: traps and informs, v2c and v3 authPriv."""

import asyncio
import hashlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.drivers.traps.engine import EngineIdentity
from rpi_daemon.drivers.traps.mib import Value
from rpi_daemon.errors import AuthError, ConfigError, DeviceError

SYS_UP_TIME = "1.3.6.1.2.1.1.3.0"
SNMP_TRAP_OID = "1.3.6.1.6.3.1.1.4.1.0"
AUTH_HASH = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512"}
MASTER_KEY_BYTES = 1_048_576  # of the repeated pass phrase, RFC 3414 A.2
NAME = "rpi-daemon"  # of our one target in pysnmp's tables
GRACE_S = 1.0  # beyond the time-out and discovery: then pysnmp will not answer any more
RESOLVE_S = 5.0


@dataclass(frozen=True, slots=True)
class SinkOptions:
    """One receiver. Raises ConfigError for what no receiver can be."""

    host: str
    port: int = 162
    inform: bool = True
    version: str = "3"
    user: str = ""
    auth: str = "SHA-256"
    auth_key: str = field(default="", repr=False)
    priv_key: str = field(default="", repr=False)
    community: str = field(default="", repr=False)
    timeout_s: float = 2.0

    def __post_init__(self) -> None:
        if self.version == "3" and (self.auth not in AUTH_HASH or not (self.user and self.auth_key and self.priv_key)):
            raise ConfigError("version 3 needs user, auth_key and priv_key, and auth of " + ", ".join(AUTH_HASH))
        if self.version == "2c" and not self.community:
            raise ConfigError("version 2c needs a community")
        if self.version not in ("2c", "3"):
            raise ConfigError(f"version {self.version!r} is not '2c' or '3'")


class TrapSender:
    """One receiver's SNMP engine and socket. One caller: `send` one notification after the other.

    The socket is connected: only that address can acknowledge. Every receiver has an engine of its own, since pysnmp keeps
    one user of a name per engine; all show the same engine id and boots.
    """

    def __init__(self, options: SinkOptions, identity: EngineIdentity) -> None:
        self._options = options
        self._identity = identity
        self._started_ns = time.monotonic_ns()
        self._engine: Any = None
        self._originator: Any = None
        self._address: tuple[Any, ...] | None = None

    async def open(self) -> None:
        """Set pysnmp up (70 ms of the loop), then `connect`."""
        if self._engine is None:
            self._set_up()
        await self.connect()

    async def connect(self) -> None:
        """Resolve the receiver's name, off the loop, and meet it anew, at another address too. Raises DeviceError."""
        family, address = await self._resolve()
        if address == self._address:
            self._forget_receiver()
            return
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(address)
        except OSError as error:
            sock.close()
            raise DeviceError(f"{self._options.host}: {error.strerror}") from None
        self._use(sock, address)
        await asyncio.sleep(0.0)  # asyncio takes the socket over

    async def close(self) -> None:
        if self._engine is None:
            return
        self._engine.close_dispatcher()
        self._engine, self._address = None, None
        await asyncio.sleep(0.0)  # transports close in the loop's next round

    async def send(self, oid: str, varbinds: Sequence[tuple[str, Value]]) -> None:
        """One notification; returns once it is acknowledged (inform) or sent (trap). Raises DeviceError."""
        from pysnmp.error import PySnmpError
        from pysnmp.proto.error import ProtocolError, StatusInformation

        if self._address is None:
            await self.connect()
        future: asyncio.Future[tuple[Any, int]] = asyncio.get_running_loop().create_future()
        try:
            self._originator.send_pdu(self._engine, NAME, None, b"", self._pdu(oid, varbinds), _answered, future)
            if self._options.inform:
                # pysnmp measures its time-out on the wall clock, which may be set; ours is the last word
                self._check(*await asyncio.wait_for(future, self._options.timeout_s + GRACE_S))
        except TimeoutError:
            raise DeviceError(self._silent()) from None
        except (PySnmpError, ProtocolError, StatusInformation, OSError) as error:
            raise DeviceError(f"{self._options.host}: {error}") from None

    def _check(self, failed: Any, status: int) -> None:
        """pysnmp's word on an inform, in ours: raises DeviceError, AuthError for what the receiver does not take."""
        from pysnmp.proto import errind

        host, options = self._options.host, self._options
        if failed == errind.requestTimedOut:
            raise DeviceError(self._silent())
        if failed == errind.unknownUserName:
            raise AuthError(f"{host}: the receiver knows no user {options.user!r}")
        if failed == errind.wrongDigest:
            raise AuthError(
                f"{host}: the receiver has another auth_key for {options.user!r}, or other than {options.auth}"
            )
        if failed or status:
            raise DeviceError(f"{host}: {failed or f'refused with error status {status}'}")

    def _silent(self) -> str:
        secret = "priv_key" if self._options.version == "3" else "community"
        return (
            f"{self._options.host}: no acknowledgement in {self._options.timeout_s:g} s; it is down or does not listen on"
            f" port {self._options.port}, or has another {secret}"
        )

    async def _resolve(self) -> tuple[int, tuple[Any, ...]]:
        loop = asyncio.get_running_loop()
        host, port = self._options.host, self._options.port
        try:
            found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM), RESOLVE_S)
        except (OSError, TimeoutError) as error:
            raise DeviceError(f"{host}: {getattr(error, 'strerror', None) or 'the name is not resolved'}") from None
        family, _, _, _, address = found[0]
        return family, address

    def _set_up(self) -> None:
        from pysnmp.entity import config
        from pysnmp.entity.rfc3413.ntforg import NotificationOriginator
        from pysnmp.proto.rfc1902 import OctetString

        engine = _engine(self._identity, self._started_ns)
        options = self._options
        if options.version == "3":
            auth = {
                "SHA-1": config.USM_AUTH_HMAC96_SHA,
                "SHA-256": config.USM_AUTH_HMAC192_SHA256,
                "SHA-512": config.USM_AUTH_HMAC384_SHA512,
            }[options.auth]
            config.add_v3_user(
                engine,
                options.user,
                auth,
                OctetString(master_key(options.auth_key, options.auth)),
                config.USM_PRIV_CFB128_AES,
                OctetString(master_key(options.priv_key, options.auth)),
                authKeyType=config.USM_KEY_TYPE_MASTER,
                privKeyType=config.USM_KEY_TYPE_MASTER,
            )
            config.add_target_parameters(engine, NAME, options.user, "authPriv", 3)
        else:
            config.add_v1_system(engine, NAME, options.community)
            config.add_target_parameters(engine, NAME, NAME, "noAuthNoPriv", 1)
        self._engine, self._originator = engine, NotificationOriginator()

    def _forget_receiver(self) -> None:
        """Discover its engine anew: one that was killed starts with the boots it had, and pysnmp would wait for its old time."""
        from pysnmp.proto.mpmod.rfc3412 import SnmpV3MessageProcessingModel
        from pysnmp.proto.secmod.rfc3414 import SnmpUSMSecurityModel

        processing, security = SnmpV3MessageProcessingModel(), SnmpUSMSecurityModel()
        self._engine.message_processing_subsystems[processing.MESSAGE_PROCESSING_MODEL_ID] = processing
        self._engine.security_models[security.SECURITY_MODEL_ID] = security

    def _use(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Send through this socket from now on."""
        from pysnmp.carrier.asyncio.dgram import udp, udp6
        from pysnmp.entity import config

        if self._address is not None:
            self._engine.close_dispatcher()
            self._set_up()
        carrier = udp6 if sock.family == socket.AF_INET6 else udp
        transport = (carrier.Udp6Transport if carrier is udp6 else carrier.UdpTransport)().open_server_mode(sock=sock)
        config.add_transport(self._engine, carrier.DOMAIN_NAME, transport)
        # time-out in hundredths of a second; no repetitions: the queue repeats
        timeout = self._options.timeout_s * 100.0
        config.add_target_address(self._engine, NAME, carrier.DOMAIN_NAME, address, NAME, timeout=timeout, retryCount=0)
        self._address = address

    def _pdu(self, oid: str, varbinds: Sequence[tuple[str, Value]]) -> Any:
        from pysnmp.proto import rfc1902
        from pysnmp.proto.api import v2c

        pdu = v2c.InformRequestPDU() if self._options.inform else v2c.SNMPv2TrapPDU()
        v2c.apiPDU.set_defaults(pdu)
        up = rfc1902.TimeTicks((time.monotonic_ns() - self._started_ns) // 10_000_000 % 2**32)
        v2c.apiPDU.set_varbinds(
            pdu,
            [
                (rfc1902.ObjectName(SYS_UP_TIME), up),
                (rfc1902.ObjectName(SNMP_TRAP_OID), rfc1902.ObjectIdentifier(oid)),
                *((rfc1902.ObjectName(name), getattr(rfc1902, kind)(value)) for name, (kind, value) in varbinds),
            ],
        )
        return pdu


def master_key(pass_phrase: str, auth: str) -> bytes:
    """Ku of RFC 3414 A.2: slow on purpose, so once per start and not once per receiver engine."""
    text = pass_phrase.encode()
    repeated = (text * (MASTER_KEY_BYTES // len(text) + 1))[:MASTER_KEY_BYTES]
    return hashlib.new(AUTH_HASH[auth], repeated).digest()


def _engine(identity: EngineIdentity, started_ns: int) -> Any:
    """A pysnmp engine with our id and boots, and a time that the wall clock does not move.

    Left to itself pysnmp keeps boots in the temporary folder, where a reboot or PrivateTmp loses them, and receivers then
    refuse our traps.
    """
    from pysnmp.entity.engine import SnmpEngine
    from pysnmp.proto.rfc1902 import Integer32, OctetString

    class EngineTime(Integer32):  # type: ignore[misc]
        """snmpEngineTime: seconds since boots last changed, which is this start unless no disk could keep it."""

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            return Integer32(identity.age_s + (time.monotonic_ns() - started_ns) // NS_PER_S)

    engine = SnmpEngine()
    builder = engine.get_mib_builder()
    names = ("snmpEngineID", "snmpEngineBoots", "snmpEngineTime")
    stored_id, stored_boots, stored_time = builder.import_symbols("__SNMP-FRAMEWORK-MIB", *names)
    stored_id.syntax = engine.snmpEngineID = stored_id.syntax.clone(OctetString(identity.engine_id))
    stored_boots.syntax = stored_boots.syntax.clone(identity.boots)
    stored_time.syntax = EngineTime(0)
    return engine


def _answered(engine: Any, handle: Any, failed: Any, pdu: Any, future: "asyncio.Future[tuple[Any, int]]") -> None:
    """pysnmp's word on an inform: what failed, or None and the error status of the Response."""
    if not future.done():
        future.set_result((failed, 0 if pdu is None else int(pdu.getComponentByPosition(1))))
