"""A simulated server BMC: a Redfish service shaped after the DMTF schemas, over real TLS, that caps its simulated server."""

import asyncio
import ipaddress
import json
import os
import secrets
import ssl
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rpi_daemon.drivers.caps.documents import ENVIRONMENT_METRICS, POWER_CONTROL
from rpi_daemon.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from aiohttp import web

ROOT = "/redfish/v1"
UINT32_MAX = 2**32 - 1
MAX_SESSIONS = 4  # BMCs have few
DMTF, OPENBMC = "dmtf", "openbmc"
CERTIFICATE_DAYS = 3650

GARBLED = {
    "html": b"<html>Service unavailable</html>",
    "truncated": b'{"@odata.id": "/redfish/v1/Chass',
    "array": b"[1, 2, 3]",
    "nan": b'{"PowerWatts": {"Reading": NaN}}',
    "deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "huge": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    "latin": b'{"a": "\xff\xfe"}',
}


@dataclass(frozen=True, slots=True)
class BmcFaults:
    """What goes wrong. Counts say how many requests it hits."""

    settle_s: float = 0.0  # a cap is accepted at once and shown, and kept, this much later
    task_s: float | None = None  # a change is answered with 202 and a task that takes this long
    task_fails: bool = False  # ... and then ends as Exception
    expire_after: int | None = None  # the session ends (401) after so many requests, each time
    cap_disabled: bool = False  # capping is switched off on the BMC: actionNotSupported
    ignores: bool = False  # says yes to a cap and keeps the old one
    half_says: bool = False  # ... with 200, and a message at the property that it was not changed
    clamp_w: float | None = None  # caps below this become this, without a word
    drop: int = 0  # connections cut instead of an answer
    busy: int = 0  # 503 with Retry-After
    unlicensed: bool = False  # a change needs a licence that is not there
    read_only: bool = False  # GET alone is allowed
    forbidden: bool = False  # the user's role may look and not change
    wrong_etag: int = 0  # 412, whatever If-Match says
    needs_etag: bool = False  # 428 without If-Match
    garbled: str = ""  # a key of GARBLED: what chassis documents are made of
    no_power: bool = False  # readings are null
    delay_s: float = 0.0  # before every answer
    redirect: str = ""  # the chassis answer with 307 to this address

    def __post_init__(self) -> None:
        for known in fields(self):
            value, usual = getattr(self, known.name), known.default
            kind = type(usual) if isinstance(usual, bool | str) else int | float
            wrong = isinstance(value, bool) != isinstance(usual, bool) or not isinstance(value, kind)
            if wrong and not (value is None and usual is None):
                raise ValueError(f"fault {known.name} is {value!r}; allowed: as in {known.name} = {usual!r}")
        if self.garbled and self.garbled not in GARBLED:
            raise ValueError(f"garbled is {self.garbled!r}; allowed: {', '.join(GARBLED)}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate with its key, both PEM."""

    pem: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256, as `openssl x509 -fingerprint -sha256` prints it."""
        return x509.load_pem_x509_certificate(self.pem).fingerprint(hashes.SHA256()).hex(":").upper()


def make_certificate(*hosts: str) -> Certificate:
    """A certificate that a BMC would make itself, valid for these hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0])])
    start = datetime.now(UTC) - timedelta(days=1)
    no = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False, **no)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def kept_certificate(path: Path, *hosts: str) -> Certificate:
    """The certificate at `path`, its key beside it (`.key`, mode 0600); made and written the first time.

    Raises ConfigError, also for a certificate without a key: that one is not ours to show or to replace.
    """
    key_path = path.with_name(path.name + ".key")
    try:
        if path.exists():
            return Certificate(path.read_bytes(), key_path.read_bytes())
        made = make_certificate(*hosts)
        with os.fdopen(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(made.key)
        path.write_bytes(made.pem)
    except OSError as error:
        raise ConfigError(
            f"the simulated BMC keeps its certificate in {path} and its key in {key_path}: {error.strerror}"
        ) from error
    return made


class _Refused(Exception):
    """An error answer: status, message registry key, words."""

    def __init__(self, status: int, key: str, words: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(words)
        self.status, self.key, self.words, self.headers = status, key, words, dict(headers or {})


class _Cut(Exception):
    """The connection is cut without an answer."""


@dataclass(slots=True)
class _Task:
    """A change under way: who asks after it is told, once it is due."""

    due_s: float
    outcome: Callable[[], tuple[int, dict[str, Any]]]
    done: tuple[int, dict[str, Any]] | None = None


@dataclass(slots=True)
class _Held:
    """The cap as the BMC holds it."""

    set_point: float | None = None
    enabled: bool = False

    @property
    def cap_w(self) -> float | None:
        return self.set_point if self.enabled else None


@dataclass(slots=True)
class _Session:
    token: str
    user: str
    requests: int = 0


@dataclass(frozen=True, slots=True)
class BmcShape:
    """What kind of BMC it is."""

    dialect: str = DMTF  # or "openbmc": integers only, ControlMode Automatic or Disabled, UINT32_MAX for none
    mechanisms: tuple[str, ...] = (ENVIRONMENT_METRICS, POWER_CONTROL)
    lowest_w: float | None = 200.0
    highest_w: float | None = 800.0
    on_exceed: str = "LogEventOnly"
    capped_chassis: tuple[str, ...] = ("1U",)  # each has the cap; the first holds the system
    other_chassis: tuple[str, ...] = ("Riser",)  # without a cap
    power_controls: int = 1  # members of PowerControl; the middle one has the cap
    etag_of_readings: bool = False  # the tag changes with every reading
    vendor: str = "Contoso"
    model: str = "3500RX"
    serial: str = "437XR1138R2"
    firmware: str = "1.45.455b66-rev4"

    def __post_init__(self) -> None:
        unknown = set(self.mechanisms) - {ENVIRONMENT_METRICS, POWER_CONTROL}
        if unknown or self.dialect not in (DMTF, OPENBMC):
            raise ValueError(f"unknown mechanism {sorted(unknown)} or dialect {self.dialect!r}")


@dataclass(slots=True)
class BmcSimulator:
    """Serves one BMC. `power_w` is asked for the draw; `set_cap` is told the cap that the server keeps from now on.

    `start` binds; `port` then holds the number. `held` is the cap, `sessions` and `counters` what clients did. It lives in
    one event loop; `set_cap` is called there.
    """

    power_w: Callable[[], float | None] = lambda: 400.0
    set_cap: Callable[[float | None], None] = lambda _: None
    shape: BmcShape = field(default_factory=BmcShape)
    host: str = "127.0.0.1"
    port: int = 0
    user: str = "root"
    password: str = "calvin"
    certificate: Certificate | None = None
    clock: Callable[[], float] = time.monotonic
    faults: BmcFaults = field(default_factory=BmcFaults)
    held: _Held = field(default_factory=_Held)
    sessions: dict[str, _Session] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    _pending: list[tuple[float, _Held]] = field(default_factory=list)
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _down_until_s: float = 0.0
    _version: int = 1
    _names: int = 0
    _runner: "web.AppRunner | None" = None
    _timers: set[asyncio.TimerHandle] = field(default_factory=set)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, for `tls_fingerprint`; there is one from `start` on."""
        return "" if self.certificate is None else self.certificate.fingerprint

    # -- the service

    async def start(self) -> None:
        """Bind the port. Raises ConfigError when it is in use, DeviceError without aiohttp."""
        try:
            from aiohttp import web
        except ImportError as error:
            raise DeviceError("a simulated BMC needs aiohttp: install rpi-daemon[redfish]") from error
        if self.certificate is None:
            self.certificate = make_certificate(self.host)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=_server_context(self.certificate))
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            raise ConfigError(f"cannot listen on {self.host} port {self.port}: {error.strerror}") from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port; safe to call twice."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
            await asyncio.sleep(0)  # lets the loop close the transports

    async def __aenter__(self) -> "BmcSimulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def reboot(self, down_s: float = 0.0) -> None:
        """The BMC restarts: for a while nobody answers, then sessions and tasks are gone. The cap stays, as in flash."""
        self._advance()
        self.sessions.clear()
        self._tasks.clear()
        self._down_until_s = self.clock() + down_s

    async def _handle(self, request: "web.Request") -> "web.StreamResponse":
        from aiohttp import web

        self._advance()
        self.counters[request.method] += 1
        if self.faults.delay_s > 0.0:
            await asyncio.sleep(self.faults.delay_s)
        try:
            status, document, headers = self._answer(
                request.method, request.path, request.headers, await request.read()
            )
        except _Cut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        except _Refused as refused:
            status, document, headers = refused.status, _error(refused), refused.headers
        raw = document if isinstance(document, bytes) else b"" if document is None else json.dumps(document).encode()
        headers = {"OData-Version": "4.0", "Cache-Control": "no-cache", **headers}
        return web.Response(status=status, body=raw, headers=headers, content_type="application/json" if raw else None)

    def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, Any] | bytes | None, dict[str, str]]:
        self._troubles()
        path = path.rstrip("/")
        if path == "/redfish":
            return 200, {"v1": f"{ROOT}/"}, {}
        if path == ROOT and method == "GET":
            return 200, self._root(), _allow("GET")
        if path == f"{ROOT}/SessionService/Sessions" and method == "POST":
            return self._log_in(body)
        self._authenticate(headers)
        if method == "DELETE" and path.startswith(f"{ROOT}/SessionService/Sessions/"):
            if self.sessions.pop(path.rpartition("/")[2], None) is None:
                raise _Refused(404, "ResourceMissingAtURI", f"The resource at {path} was not found")
            return 204, None, {}
        if path.startswith(f"{ROOT}/TaskService/TaskMonitors/"):
            return self._monitor(path)
        document = self._documents().get(path)
        if document is None:
            raise _Refused(404, "ResourceMissingAtURI", f"The resource at {path} was not found")
        if method == "GET":
            return self._show(path, document)
        if method == "PATCH" and self._has_cap(path):
            return self._patch(path, document, headers, body)
        raise _Refused(405, "OperationNotAllowed", "The HTTP method is not allowed on this resource", _allow("GET"))

    def _troubles(self) -> None:
        faults = self.faults
        if self.clock() < self._down_until_s:
            raise _Cut
        if faults.drop > 0:
            self.faults = replace(faults, drop=faults.drop - 1)
            raise _Cut
        if faults.busy > 0:
            self.faults = replace(faults, busy=faults.busy - 1)
            raise _Refused(
                503, "ServiceTemporarilyUnavailable", "The service is temporarily unavailable", {"Retry-After": "5"}
            )

    def _show(self, path: str, document: dict[str, Any]) -> tuple[int, dict[str, Any] | bytes, dict[str, str]]:
        in_chassis = path.startswith(f"{ROOT}/Chassis/")
        if in_chassis and self.faults.redirect:
            return 307, b"", {"Location": self.faults.redirect}
        if in_chassis and self.faults.garbled:
            return 200, GARBLED[self.faults.garbled], {}
        allowed = "GET, HEAD, PATCH" if self._has_cap(path) and not self.faults.read_only else "GET, HEAD"
        etag = self._etag(path, document)
        return 200, {**document, "@odata.etag": etag}, {"ETag": etag, **_allow(allowed)}

    # -- sessions

    def _log_in(self, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        self.counters["logins"] += 1
        asked = _json(body)
        if asked.get("UserName") != self.user or asked.get("Password") != self.password:
            raise _Refused(401, "ResourceAtUriUnauthorized", "Invalid username or password")
        if len(self.sessions) >= MAX_SESSIONS:
            raise _Refused(503, "SessionLimitExceeded", "The session establishment failed: the limit was reached")
        name = self._name()
        self.sessions[name] = session = _Session(secrets.token_hex(16), self.user)
        path = f"{ROOT}/SessionService/Sessions/{name}"
        return 201, self._session(name), {"X-Auth-Token": session.token, "Location": path}

    def _authenticate(self, headers: Mapping[str, str]) -> None:
        token = headers.get("X-Auth-Token", "")
        for name, session in self.sessions.items():
            if secrets.compare_digest(session.token, token):
                session.requests += 1
                if self.faults.expire_after is not None and session.requests > self.faults.expire_after:
                    del self.sessions[name]
                    break
                return
        raise _Refused(401, "NoValidSession", "There is no valid session established with the implementation")

    # -- the cap

    def _has_cap(self, path: str) -> bool:
        ends = {ENVIRONMENT_METRICS: "EnvironmentMetrics", POWER_CONTROL: "Power"}
        return any(
            path == f"{ROOT}/Chassis/{chassis}/{ends[mechanism]}"
            for chassis in self.shape.capped_chassis
            for mechanism in self.shape.mechanisms
        )

    def _patch(
        self, path: str, document: dict[str, Any], headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, Any] | None, dict[str, str]]:
        faults = self.faults
        if faults.read_only:
            raise _Refused(405, "OperationNotAllowed", "The HTTP method is not allowed on this resource", _allow("GET"))
        if faults.forbidden:
            raise _Refused(403, "InsufficientPrivilege", "There are insufficient privileges for the account")
        if faults.unlicensed:
            raise _Refused(403, "OemLicenseNotPassed", "License is not present or not valid for PowerLimit")
        self._match_etag(self._etag(path, document), headers.get("If-Match"))
        wanted = self._wanted(path, _json(body))
        self.counters["changes"] += 1

        def change() -> tuple[int, dict[str, Any]]:
            if faults.task_fails:
                return 500, _error(_Refused(500, "InternalError", "The power manager did not answer"))
            self._take(wanted)
            return 200, self._documents()[path]

        if faults.task_s is not None:
            name = self._name()
            self._tasks[name] = _Task(self.clock() + faults.task_s, change)
            self._later(faults.task_s)
            where = f"{ROOT}/TaskService/TaskMonitors/{name}"
            return 202, self._task(name), {"Location": where}
        if faults.half_says:
            return (
                200,
                {**document, "PowerLimitWatts@Message.ExtendedInfo": [_message("PropertyNotUpdated", "Not now")]},
                {},
            )
        change()
        if self.shape.dialect == OPENBMC:
            return 204, None, {}
        return 200, self._documents()[path], {}

    def _match_etag(self, etag: str, if_match: str | None) -> None:
        faults = self.faults
        if faults.needs_etag and if_match is None:
            raise _Refused(428, "PreconditionRequired", "A precondition header or annotation is required")
        if faults.wrong_etag > 0:
            self.faults = replace(faults, wrong_etag=faults.wrong_etag - 1)
            raise _Refused(412, "PreconditionFailed", "The ETag supplied did not match")
        if if_match not in (None, "*", etag):
            raise _Refused(412, "PreconditionFailed", "The ETag supplied did not match")

    def _wanted(self, path: str, body: dict[str, Any]) -> _Held:
        """The cap that a PATCH asks for; raises _Refused as the dialect does."""
        wanted = replace(self.held)
        if path.endswith("/EnvironmentMetrics"):
            properties = body.get("PowerLimitWatts")
            if not isinstance(properties, dict) or not properties or set(body) != {"PowerLimitWatts"}:
                raise _Refused(400, "PropertyUnknown", "The property in the request body is not valid for the resource")
            for name, value in properties.items():
                if name == "SetPoint":
                    wanted.set_point = self._watts(name, value)
                elif name == "ControlMode" and value in ("Automatic", "Disabled"):
                    wanted.enabled = value == "Automatic"
                else:
                    raise _Refused(
                        400, "PropertyValueNotInList", f"The value {value!r} for the property {name} is not allowed"
                    )
            return wanted
        members, middle = body.get("PowerControl"), self.shape.power_controls // 2
        if not isinstance(members, list) or len(members) != self.shape.power_controls:
            raise _Refused(400, "PropertyUnknown", "The property PowerControl is not in the list of valid properties")
        limit = members[middle].get("PowerLimit") if isinstance(members[middle], dict) else None
        if any(member != {} for i, member in enumerate(members) if i != middle):
            raise _Refused(400, "PropertyNotWritable", "The member of PowerControl is read only")
        if not isinstance(limit, dict) or set(limit) != {"LimitInWatts"}:
            raise _Refused(400, "PropertyNotWritable", "Of PowerLimit, LimitInWatts alone is writable")
        if self.faults.cap_disabled or (self.shape.dialect == OPENBMC and not self.held.enabled):
            raise _Refused(400, "ActionNotSupported", "The action PowerCap is not supported by the resource")
        wanted.set_point = self._watts("LimitInWatts", limit["LimitInWatts"])
        wanted.enabled = wanted.set_point is not None
        return wanted

    def _watts(self, name: str, value: object) -> float | None:
        if self.faults.cap_disabled:
            raise _Refused(400, "ActionNotSupported", "The action PowerCap is not supported by the resource")
        if value is None and self.shape.dialect == DMTF:
            return None
        numeric = isinstance(value, int if self.shape.dialect == OPENBMC else int | float)
        if isinstance(value, bool) or not numeric:
            raise _Refused(
                400, "PropertyValueTypeError", f"The value {value!r} for the property {name} is of another type"
            )
        watts = float(value)  # type: ignore[arg-type]
        low, high = self.shape.lowest_w or 0.0, self.shape.highest_w or UINT32_MAX
        if self.faults.clamp_w is not None:
            return max(watts, self.faults.clamp_w)
        if not low <= watts <= high:
            raise _Refused(
                400, "PropertyValueOutOfRange", f"The value {watts:g} for the property {name} is not in range"
            )
        return watts

    def _take(self, wanted: _Held) -> None:
        if not self.faults.ignores:
            self._pending.append((self.clock() + self.faults.settle_s, wanted))
            self._later(self.faults.settle_s)
            self._settle()

    def _later(self, seconds: float) -> None:
        """What is due is done then, whether or not anybody asks."""
        if seconds > 0.0:
            loop = asyncio.get_running_loop()
            self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
            self._timers.add(loop.call_later(seconds, self._advance))

    def _advance(self) -> None:
        """Do what is due: tasks, then caps that settle."""
        for task in self._tasks.values():
            if task.done is None and self.clock() >= task.due_s:
                task.done = task.outcome()
        self._settle()

    def _settle(self) -> None:
        now_s = self.clock()
        while self._pending and now_s >= self._pending[0][0]:
            _, wanted = self._pending.pop(0)
            if wanted != self.held:
                self._version += 1
            self.held = wanted
            self.set_cap(wanted.cap_w)

    def _monitor(self, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        name = path.rpartition("/")[2]
        task = self._tasks.get(name)
        if task is None:
            raise _Refused(404, "ResourceMissingAtURI", f"The resource at {path} was not found")
        if task.done is None:
            return 202, self._task(name), {"Location": path}
        del self._tasks[name]
        return *task.done, {}

    # -- documents

    def _etag(self, path: str, document: dict[str, Any]) -> str:
        if self.shape.etag_of_readings:
            return f'"{zlib.crc32(json.dumps(document).encode()) + self.counters.total():08X}"'
        return f'W/"{self._version:08X}"'

    def _name(self) -> str:
        self._names += 1
        return str(self._names)

    def _root(self) -> dict[str, Any]:
        return {
            "@odata.type": "#ServiceRoot.v1_16_0.ServiceRoot",
            "@odata.id": f"{ROOT}/",
            "Id": "RootService",
            "Name": "Root Service",
            "RedfishVersion": "1.20.0",
            "Vendor": self.shape.vendor,
            "Systems": {"@odata.id": f"{ROOT}/Systems"},
            "Chassis": {"@odata.id": f"{ROOT}/Chassis"},
            "Managers": {"@odata.id": f"{ROOT}/Managers"},
            "Tasks": {"@odata.id": f"{ROOT}/TaskService"},
            "SessionService": {"@odata.id": f"{ROOT}/SessionService"},
            "Links": {"Sessions": {"@odata.id": f"{ROOT}/SessionService/Sessions"}},
        }

    def _documents(self) -> dict[str, dict[str, Any]]:
        """Every document behind the login, by its path."""
        shape = self.shape
        names = [*shape.capped_chassis, *shape.other_chassis]
        made = [
            self._root(),
            _collection("Chassis", "ChassisCollection.ChassisCollection", names),
            _collection("Systems", "ComputerSystemCollection.ComputerSystemCollection", ["1"]),
            _collection("Managers", "ManagerCollection.ManagerCollection", ["BMC"]),
            _collection("SessionService/Sessions", "SessionCollection.SessionCollection", list(self.sessions)),
            _collection("TaskService/Tasks", "TaskCollection.TaskCollection", list(self._tasks)),
            _resource("SessionService", "SessionService.v1_1_9.SessionService", SessionTimeout=1800)
            | {"Sessions": {"@odata.id": f"{ROOT}/SessionService/Sessions"}},
            _resource("TaskService", "TaskService.v1_2_1.TaskService", Tasks=_link("TaskService/Tasks")),
            _resource("Managers/BMC", "Manager.v1_19_0.Manager", FirmwareVersion=shape.firmware, ManagerType="BMC"),
            _resource(
                "Systems/1",
                "ComputerSystem.v1_22_0.ComputerSystem",
                Manufacturer=shape.vendor,
                Model=shape.model,
                SerialNumber=shape.serial,
                PowerState="On",
                Links={"Chassis": [_link(f"Chassis/{shape.capped_chassis[0]}")] if shape.capped_chassis else []},
            ),
            *(self._session(name) for name in self.sessions),
            *(self._task(name) for name in self._tasks),
        ]
        for name in names:
            made += self._chassis(name)
        return {document["@odata.id"].rstrip("/"): document for document in made}

    def _chassis(self, name: str) -> list[dict[str, Any]]:
        shape, has_cap = self.shape, name in self.shape.capped_chassis
        links: dict[str, Any] = {"ManagedBy": [_link("Managers/BMC")]}
        if has_cap and name == shape.capped_chassis[0] and len(shape.capped_chassis) == 1:
            links["ComputerSystems"] = [_link("Systems/1")]
        parts = []
        if has_cap and ENVIRONMENT_METRICS in shape.mechanisms:
            parts.append(self._environment_metrics(name))
        if has_cap and POWER_CONTROL in shape.mechanisms:
            parts.append(self._power(name))
        chassis = _resource(
            f"Chassis/{name}",
            "Chassis.v1_25_0.Chassis",
            ChassisType="RackMount" if has_cap else "Module",
            Manufacturer=shape.vendor,
            Model=shape.model,
            SerialNumber=shape.serial,
            Links=links,
        )
        for part in parts:
            chassis[part["Id"]] = {"@odata.id": part["@odata.id"]}
        return [chassis, *parts]

    def _reading(self) -> float | None:
        power_w = None if self.faults.no_power else self.power_w()
        return None if power_w is None else round(power_w, 1)

    def _environment_metrics(self, name: str) -> dict[str, Any]:
        held, shape = self.held, self.shape
        limit = {
            "SetPoint": _whole(held.set_point) if shape.dialect == OPENBMC else held.set_point,
            "ControlMode": "Automatic" if held.enabled else "Disabled",
        }
        bounds = {"AllowableMin": shape.lowest_w, "AllowableMax": shape.highest_w}
        limit |= {key: value for key, value in bounds.items() if value is not None}
        metrics = _resource(
            f"Chassis/{name}/EnvironmentMetrics", "EnvironmentMetrics.v1_4_0.EnvironmentMetrics", PowerLimitWatts=limit
        )
        if shape.dialect == DMTF or POWER_CONTROL not in shape.mechanisms:
            metrics["PowerWatts"] = {"Reading": self._reading()}
        return metrics

    def _power(self, name: str) -> dict[str, Any]:
        members: list[dict[str, Any]] = [
            {
                "@odata.id": f"{ROOT}/Chassis/{name}/Power#/PowerControl/{i}",
                "MemberId": str(i),
                "Name": "Server Power Control",
                "PowerConsumedWatts": self._reading(),
            }
            for i in range(self.shape.power_controls)
        ]
        cap_w = self.held.cap_w
        members[len(members) // 2]["PowerLimit"] = {
            "LimitInWatts": _whole(cap_w) if self.shape.dialect == OPENBMC else cap_w,
            "LimitException": self.shape.on_exceed,
            "CorrectionInMs": 1000,
        }
        return _resource(f"Chassis/{name}/Power", "Power.v1_7_3.Power", PowerControl=members)

    def _session(self, name: str) -> dict[str, Any]:
        path = f"SessionService/Sessions/{name}"
        return _resource(path, "Session.v1_7_0.Session", UserName=self.sessions[name].user, Password=None)

    def _task(self, name: str) -> dict[str, Any]:
        state = "Running" if self._tasks[name].done is None else "Completed"
        return _resource(
            f"TaskService/Tasks/{name}",
            "Task.v1_7_4.Task",
            TaskState=state,
            TaskMonitor=f"{ROOT}/TaskService/TaskMonitors/{name}",
        )


def _server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads keys from files alone; the folder is ours, mode 0700
        pem, key = Path(folder, "pem"), Path(folder, "key")
        pem.write_bytes(certificate.pem)
        key.write_bytes(certificate.key)
        context.load_cert_chain(pem, key)
    return context


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _Refused(400, "MalformedJSON", "The request body was malformed JSON")
    return document


def _whole(watts: float | None) -> int | None:
    """OpenBMC's uint32, whose largest value is shown as null."""
    return None if watts is None or watts >= UINT32_MAX else int(watts)


def _allow(methods: str) -> dict[str, str]:
    return {"Allow": methods}


def _link(path: str) -> dict[str, str]:
    return {"@odata.id": f"{ROOT}/{path}"}


def _resource(path: str, kind: str, **properties: object) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {"@odata.type": f"#{kind}", **_link(path), "Id": name, "Name": name, **properties}


def _collection(path: str, kind: str, names: list[str]) -> dict[str, Any]:
    members = [_link(f"{path}/{name}") for name in names]
    return _resource(path, kind, Members=members) | {"Members@odata.count": len(members)}


def _message(key: str, words: str) -> dict[str, str]:
    return {
        "@odata.type": "#Message.v1_1_2.Message",
        "MessageId": f"Base.1.18.{key}",
        "Message": words,
        "MessageSeverity": "Critical",
    }


def _error(refused: _Refused) -> dict[str, Any]:
    return {
        "error": {
            "code": "Base.1.18.GeneralError",
            "message": "A general error has occurred. See ExtendedInfo for more information.",
            "@Message.ExtendedInfo": [_message(refused.key, refused.words)],
        }
    }


def command(simulator: BmcSimulator, request: Mapping[str, Any]) -> dict[str, Any]:
    """One command: {"faults": {...}} names the members of `BmcFaults`, those not named are switched off;
    {"reboot": SECONDS}; anything else is told what is allowed. Returns the answer."""
    try:
        unknown = set(request) - {"faults", "reboot", "state"}
        if unknown:
            raise ValueError(f"unknown command {sorted(unknown)}: use faults, reboot, state")
        if "faults" in request:
            if not isinstance(request["faults"], dict):
                raise ValueError('faults is no object, as in {"settle_s": 8}')
            wrong = set(request["faults"]) - {known.name for known in fields(BmcFaults)}
            if wrong:
                raise ValueError(f"unknown fault {sorted(wrong)}: use {[known.name for known in fields(BmcFaults)]}")
            simulator.faults = BmcFaults(**request["faults"])
        if "reboot" in request:
            simulator.reboot(float(request["reboot"]))
    except (ValueError, TypeError) as error:
        return {"ok": False, "error": str(error)}
    held = simulator.held
    return {
        "ok": True,
        "cap_w": held.cap_w,
        "sessions": len(simulator.sessions),
        "counters": dict(simulator.counters),
    }
