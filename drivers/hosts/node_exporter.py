"""A scraper of Prometheus' node_exporter: one host's CPU, memory, network and disk, over HTTP or HTTPS."""

import asyncio
import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from rpi_daemon.clock import Clock
from rpi_daemon.drivers.hosts.exposition import BadPage, parse
from rpi_daemon.drivers.hosts.shares import WANTED, CounterShares, Shares
from rpi_daemon.drivers.https import TooLong, bounded, client, printable, request
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import HostReading

if TYPE_CHECKING:
    import aiohttp

MAX_PAGE_BYTES: Final = 1 << 20
INLINE_BYTES: Final = 64 << 10  # a longer page is read beside the loop: the tick has 100 ms
# a sixth of the page, and of the host's work for it
COLLECT: Final = "&".join(f"collect%5B%5D={name}" for name in ("cpu", "meminfo", "netdev", "netclass", "diskstats"))


@dataclass(frozen=True, slots=True)
class NodeExporterOptions:
    """Where it is, who we are to it, and how its certificate is known."""

    load: str
    url: str
    poll_s: float
    timeout_s: float
    user: str = ""  # basic authentication, with `password`
    password: str = ""
    token: str = ""  # bearer, in their place
    tls_ca_file: str | None = None  # PEM; None: the system's authorities
    tls_fingerprint: str | None = None  # SHA-256 of the certificate, hex
    allow_insecure: bool = False  # plain HTTP, or any certificate
    interface_bytes_per_s: float | None = None

    def __repr__(self) -> str:
        return f"NodeExporterOptions({self.load}, {self.url})"


class NodeExporter:
    """Reads one host. Raises DeviceError, AuthError. Redirects are not followed: what we send is for this host alone."""

    def __init__(self, options: NodeExporterOptions, clock: Clock) -> None:
        self.options = options
        self._clock = clock
        self._label = f"host of {options.load!r} ({options.url})"
        self._filtered = not urlsplit(options.url).query
        self._shares = CounterShares(options.poll_s, options.interface_bytes_per_s)
        self._http: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Raises DeviceError where aiohttp is missing or the authority cannot be read."""
        if self._http is not None:
            return
        options = self.options
        headers = {"Accept": "text/plain;version=0.0.4"}
        if options.token:
            headers["Authorization"] = f"Bearer {options.token}"
        elif options.user:
            both = f"{options.user}:{options.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        self._http = client(
            self._label,
            "hosts",
            headers,
            tls_ca_file=options.tls_ca_file,
            tls_fingerprint=options.tls_fingerprint,
            allow_insecure=options.allow_insecure,
        )

    async def read(self) -> HostReading:
        """One scrape; rates are those since the one before."""
        t_mono_ns = self._clock.mono_ns()
        try:
            page = await self._page()
            if len(page) <= INLINE_BYTES:
                shares = self._take(t_mono_ns, page)
            else:
                shares = await asyncio.to_thread(self._take, t_mono_ns, page)
        except DeviceError:
            self._shares.forget()
            raise
        return HostReading(self.options.load, t_mono_ns, *shares)

    async def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def _take(self, t_mono_ns: int, page: bytes) -> Shares:
        """What a page says. Raises DeviceError."""
        try:
            samples = parse(page, WANTED)
        except BadPage as error:
            raise DeviceError(f"{self._label}: the answer is {error}") from None
        if not samples:
            raise DeviceError(
                f"{self._label}: the answer has no metric of node_exporter's; is it /metrics of another program?"
            )
        return self._shares.step(t_mono_ns, samples)

    async def _page(self) -> bytes:
        status, location, data = await self._get()
        if status == 400 and self._filtered:  # it was built or started without one of the collectors
            self._filtered = False
            status, location, data = await self._get()
        if status in (401, 403):
            raise AuthError(f"{self._label} refuses user and password, or token: HTTP {status}")
        if 300 <= status < 400:
            raise DeviceError(
                f"{self._label} redirects to {printable(location)!r}; not followed: name that address as url"
            )
        if status != 200:
            raise DeviceError(
                f"{self._label} answers HTTP {status}: {printable(data[:200].decode('utf-8', 'replace'))}"
            )
        return data

    async def _get(self) -> tuple[int, str, bytes]:
        """Status, where a redirect leads, body."""
        import aiohttp
        from yarl import URL

        if self._http is None:
            raise DeviceError(f"{self._label} is not open")
        options = self.options
        url = URL(f"{options.url}?{COLLECT}" if self._filtered else options.url, encoded=True)
        timeout = aiohttp.ClientTimeout(total=options.timeout_s)
        with request(self._label, options.tls_ca_file, options.timeout_s):
            async with self._http.get(url, allow_redirects=False, timeout=timeout) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise DeviceError(f"{self._label} answers compressed, which was not asked for")
                try:
                    data = await bounded(response.content, MAX_PAGE_BYTES)
                except TooLong as error:
                    raise DeviceError(f"{self._label}: the answer is {error}") from None
                return response.status, response.headers.get("Location", ""), data
