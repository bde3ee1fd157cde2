"""One authenticated conversation with a Redfish service: TLS verified first, a session token, bounded answers."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from rpi_daemon.drivers.caps.documents import BadDocument, complaint, is_path, link, obj, parse, text
from rpi_daemon.drivers.https import TooLong, bounded, client, request
from rpi_daemon.errors import AuthError, DeviceError

if TYPE_CHECKING:
    import aiohttp

ROOT = "/redfish/v1/"
SESSIONS = "/redfish/v1/SessionService/Sessions"
MAX_ANSWER_BYTES = 1 << 20
MAX_REDIRECTS = 3

MayWrite = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class RedfishEndpoint:
    """Where the BMC is, who we are to it, and how its certificate is known."""

    host: str
    port: int = 443
    user: str = ""
    password: str = ""
    tls_ca_file: str | None = None  # PEM; None: the system's authorities
    tls_fingerprint: str | None = None  # SHA-256 of the certificate, hex, with or without colons
    allow_insecure: bool = False  # any certificate will do
    timeout_s: float = 2.0  # for one answer ...
    login_timeout_s: float = 10.0  # ... but BMCs hash passwords slowly, and a login given up leaves a session behind

    def __repr__(self) -> str:
        return f"RedfishEndpoint({self.label})"

    @property
    def label(self) -> str:
        return f"BMC {self.host}:{self.port}"

    @property
    def base(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said. `document` is empty where there was no body."""

    status: int
    headers: Mapping[str, str]
    document: dict[str, Any]

    @property
    def etag(self) -> str | None:
        """The version of the document, for If-Match."""
        tag = self.document.get("@odata.etag") or self.headers.get("ETag")
        return tag if isinstance(tag, str) and tag.isascii() and tag.isprintable() and len(tag) < 256 else None

    @property
    def location(self) -> str | None:
        """The path of what was made; a host named with it is not followed."""
        path = _split(self.headers.get("Location", "")).path
        return path if is_path(path) else None

    @property
    def retry_after_s(self) -> float | None:
        value = self.headers.get("Retry-After", "")
        return float(value) if value.isdecimal() and len(value) < 6 else None


class WriteForbidden(Exception):
    """A message that writes was about to go out, and may not."""


class RedfishSession:
    """Requests to one BMC, one at a time. Raises DeviceError and AuthError.

    Nothing is sent, the password least of all, before the certificate has been verified. A session of ours is deleted at
    `close`; BMCs have few.
    """

    def __init__(self, endpoint: RedfishEndpoint) -> None:
        self.endpoint = endpoint
        self._http: aiohttp.ClientSession | None = None
        self._sessions_path = SESSIONS
        self._token: str | None = None
        self._session_path: str | None = None
        self._login: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._http is not None

    async def open(self) -> None:
        """Verify the certificate, see that this is a Redfish service, log in unless there is a session from before."""
        if self._http is None:
            self._http = self._client()
        root = await self._send("GET", ROOT)
        if root.status != 200 or not isinstance(root.document.get("RedfishVersion"), str):
            raise DeviceError(f"{self.endpoint.label} is not a Redfish service: {ROOT} answers {told(root)}")
        self._sessions_path = link(obj(root.document, "Links", "Sessions")) or SESSIONS
        if self._token is None:
            await self._log_in()

    def _client(self) -> "aiohttp.ClientSession":
        """Raises DeviceError."""
        endpoint = self.endpoint
        return client(
            endpoint.label,
            "redfish",
            {"Accept": "application/json", "OData-Version": "4.0"},
            tls_ca_file=endpoint.tls_ca_file,
            tls_fingerprint=endpoint.tls_fingerprint,
            allow_insecure=endpoint.allow_insecure,
        )

    async def close(self) -> None:
        """Log out, let go of the connection; safe to call twice."""
        http = self._http
        if http is None:
            return
        try:
            if self._login is not None:  # a login that was given up may have made a session
                await asyncio.gather(self._login, return_exceptions=True)
            with contextlib.suppress(DeviceError):  # a BMC that is gone keeps no session of ours for ever
                await self._log_out(self._session_path)
        finally:
            self._http = self._token = self._session_path = None
            await http.close()

    async def _log_in(self) -> None:
        """Make a session. It goes on when the caller is cancelled, so that `close` can end what it made."""
        if self._login is None or self._login.done():
            self._login = asyncio.create_task(self._make_session())
        await asyncio.shield(self._login)

    async def _make_session(self) -> None:
        endpoint, old = self.endpoint, self._session_path
        self._token = self._session_path = None
        body = {"UserName": endpoint.user, "Password": endpoint.password}
        answer = await self._send(
            "POST", self._sessions_path, body, timeout_s=max(endpoint.login_timeout_s, endpoint.timeout_s)
        )
        if answer.status in (400, 401, 403):
            raise AuthError(f"{endpoint.label} refuses user {endpoint.user!r} or the password: {told(answer)}")
        token = answer.headers.get("X-Auth-Token")
        self._session_path = answer.location or link(answer.document)
        if answer.status not in (200, 201, 204) or not token:
            raise DeviceError(f"{endpoint.label} makes no session: {told(answer)}")
        self._token = token
        if old is not None and old != self._session_path:
            with contextlib.suppress(DeviceError):
                await self._log_out(old)

    async def _log_out(self, path: str | None) -> None:
        if path is not None and self._token is not None:
            await self._send("DELETE", path, timeout_s=max(self.endpoint.login_timeout_s, self.endpoint.timeout_s))

    async def get_any(self, path: str) -> Answer:
        """The answer to a GET, whatever its status but 401: an ended session is made anew, once."""
        return await self._authenticated("GET", path)

    async def patch(self, path: str, body: Mapping[str, object], etag: str | None, may_write: MayWrite) -> Answer:
        """The answer to a PATCH; raises WriteForbidden. `may_write` is asked when nothing but the write is left to do."""
        return await self._authenticated("PATCH", path, body, etag, may_write)

    async def _authenticated(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        etag: str | None = None,
        may_send: MayWrite = lambda: True,
    ) -> Answer:
        for attempt in (1, 2):
            if self._token is None or attempt == 2:
                await self._log_in()
            if not may_send():
                raise WriteForbidden
            answer = await self._send(method, path, body, etag)
            if answer.status != 401:
                return answer
        raise AuthError(f"{self.endpoint.label} does not accept the session it has just made: {told(answer)}")

    async def get(self, path: str) -> Answer:
        """A document; raises DeviceError if there is none, AuthError if the user may not see it."""
        answer = await self.get_any(path)
        for _ in range(MAX_REDIRECTS):
            if answer.status not in (301, 302, 307, 308):
                break
            answer = await self.get_any(self._same_host(path, answer))
        if answer.status == 403:
            raise AuthError(f"{self.endpoint.label}: user {self.endpoint.user!r} may not read {path}: {told(answer)}")
        if answer.status != 200:
            raise DeviceError(f"{self.endpoint.label}: {path} answers {told(answer)}")
        return answer

    def _same_host(self, path: str, answer: Answer) -> str:
        """Where a redirect leads, if it stays on the BMC: the token is for nobody else."""
        location = answer.headers.get("Location", "")
        parts = _split(location)
        stays = not parts.netloc or f"{parts.scheme}://{parts.netloc}" == self.endpoint.base
        if not stays or answer.location is None:
            raise DeviceError(f"{self.endpoint.label}: {path} redirects to {text(location)!r}; not followed")
        return answer.location

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        etag: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        """One request and its answer. Raises AuthError for a wrong certificate, DeviceError for everything else."""
        import aiohttp

        if self._http is None:
            raise DeviceError(f"{self.endpoint.label} is not open")
        endpoint = self.endpoint
        seconds = timeout_s or endpoint.timeout_s
        headers = {"X-Auth-Token": self._token} if self._token is not None else {}
        if etag is not None:
            headers["If-Match"] = etag
        timeout = aiohttp.ClientTimeout(total=seconds)
        with request(endpoint.label, endpoint.tls_ca_file, seconds):
            async with self._http.request(
                method, endpoint.base + path, json=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                try:
                    data = await bounded(response.content, MAX_ANSWER_BYTES)
                    return Answer(response.status, dict_of(response.headers), _body(response.status, data))
                except (BadDocument, TooLong) as error:
                    raise DeviceError(f"{endpoint.label}: the answer to {method} {path} is {error}") from error


def _split(address: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _body(status: int, data: bytes) -> dict[str, Any]:
    """The document of an answer; that of an error may well be a page for people, which says nothing."""
    if not data.strip():
        return {}
    try:
        return parse(data)
    except BadDocument:
        if status >= 300:
            return {}
        raise


def dict_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that are looked at, however they are written."""
    known = ("ETag", "Location", "X-Auth-Token", "Retry-After", "Allow", "Date")
    return {name: headers[name] for name in known if name in headers}


def told(answer: Answer) -> str:
    """A status, and the service's own words where it has some."""
    words = complaint(answer.document)
    busy = f", try again after {answer.retry_after_s:g} s" if answer.retry_after_s is not None else ""
    return f"HTTP {answer.status}{busy}" + (f": {words}" if words else "")
