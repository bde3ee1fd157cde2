"""The scraper against a small real HTTP server: what a good host says, and what a bad one may do."""

import asyncio
import base64
import gzip
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.drivers.caps.bmc_sim import make_certificate
from rpi_daemon.drivers.hosts.node_exporter import (
    COLLECT,
    INLINE_BYTES,
    MAX_PAGE_BYTES,
    NodeExporter,
    NodeExporterOptions,
)
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import HostReading

Send = Callable[[bytes], Coroutine[Any, Any, None]]


def page(busy_s: float, idle_s: float) -> bytes:
    return (
        "# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.\n# TYPE node_cpu_seconds_total counter\n"
        f'node_cpu_seconds_total{{cpu="0",mode="idle"}} {idle_s}\nnode_cpu_seconds_total{{cpu="0",mode="user"}} {busy_s:e}\n'
        "node_memory_MemTotal_bytes 1e+09\nnode_memory_MemAvailable_bytes 2.5e+08\n"
    ).encode()


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: text/plain; version=0.0.4", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Host:
    """Answers each request with the next of `replies`, the last again and again; keeps the requests."""

    def __init__(self, *replies: bytes | Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        self.replies = list(replies)
        self.requests: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        try:
            while True:
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                answer = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                await (send(answer) if isinstance(answer, bytes) else answer(send))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def scrape(
    host: Host, times: int = 1, *, server_tls: ssl.SSLContext | None = None, path: str = "/metrics", **options: Any
) -> list[HostReading]:
    """So many readings, a second apart on the driver's clock."""

    async def run() -> list[HostReading]:
        server = await asyncio.start_server(host.serve, "127.0.0.1", 0, ssl=server_tls)
        host.port = server.sockets[0].getsockname()[1]
        scheme = "https" if server_tls else "http"
        fields: dict[str, Any] = {
            "load": "web-1", "url": f"{scheme}://127.0.0.1:{host.port}{path}", "poll_s": 1.0, "timeout_s": 30.0,
            "allow_insecure": server_tls is None,
        }  # fmt: skip
        clock = ManualClock()
        driver = NodeExporter(NodeExporterOptions(**(fields | options)), clock)
        readings = []
        try:
            await driver.open()
            await driver.open()  # as its task does before every read
            for _ in range(times):
                readings.append(await driver.read())
                clock.advance(1.0)
        finally:
            await driver.close()
            await driver.close()
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0)
        return readings

    return asyncio.run(run())


def test_a_host_is_asked_for_five_collectors_on_one_connection() -> None:
    host = Host(reply(page(5.0, 10.0)), reply(page(5.25, 10.75)))
    first, second = scrape(host, 2)
    assert (first.cpu, first.memory, first.network, first.disk) == (None, 0.75, None, None)
    assert (second.load, second.cpu, second.memory) == ("web-1", pytest.approx(0.25), 0.75)
    assert second.t_mono_ns - first.t_mono_ns == NS_PER_S
    head, *headers = host.requests[0].split("\r\n")
    assert head == f"GET /metrics?{COLLECT} HTTP/1.1"
    assert "Accept-Encoding: identity" in headers
    assert not any(line.lower().startswith("authorization") for line in headers)


def test_a_query_of_the_users_own_is_left_alone() -> None:
    host = Host(reply(page(1.0, 1.0)))
    scrape(host, path="/metrics?collect%5B%5D=cpu")
    assert host.requests[0].startswith("GET /metrics?collect%5B%5D=cpu HTTP/1.1")


def test_a_host_without_one_of_the_collectors_is_asked_for_everything() -> None:
    host = Host(reply(b"missing collector: netclass", "400 Bad Request"), reply(page(1.0, 1.0)))
    assert scrape(host, 2)[0].memory == 0.75
    assert [request.split()[1] for request in host.requests] == [f"/metrics?{COLLECT}", "/metrics", "/metrics"]


def test_user_and_password_or_a_token_are_sent() -> None:
    for options, word in (
        ({"user": "rpi", "password": "pässword"}, "Basic " + base64.b64encode("rpi:pässword".encode()).decode()),
        ({"token": "abc"}, "Bearer abc"),
    ):
        host = Host(reply(page(1.0, 1.0)))
        scrape(host, **options)
        assert f"Authorization: {word}" in host.requests[0].split("\r\n")
        assert "abc" not in repr(NodeExporterOptions("l", "http://h/", 1.0, 1.0, token="abc", password="abc"))


def test_a_host_with_many_cpus_is_read_beside_the_loop() -> None:
    def many(idle_s: float) -> bytes:
        lines = [
            f'node_cpu_seconds_total{{cpu="{k}",mode="{mode}"}} {idle_s if mode == "idle" else 0.25 * idle_s}\n'
            for k in range(400)
            for mode in ("idle", "iowait", "system", "user")
        ]
        return "".join(lines).encode()

    assert len(many(0.0)) > INLINE_BYTES
    _, second = scrape(Host(reply(many(0.0)), reply(many(1.0))), 2)
    assert second.cpu == pytest.approx(0.5 / 1.75)
    with pytest.raises(DeviceError, match="a series twice"):
        scrape(Host(reply(many(0.0) * 2)))


async def dripping(send: Send) -> None:
    await send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        await send(b"#")
        await asyncio.sleep(0.02)


async def endless(send: Send) -> None:
    await send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await send(b"1000\r\n" + b"#" * 4096 + b"\r\n")


async def endless_head(send: Send) -> None:
    await send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await send(b"X-A: " + b"a" * 4000 + b"\r\n")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (reply(b"", "302 Found", "Location: http://192.0.2.1/other"), DeviceError, "redirects to 'http://192.0.2.1/other'; not followed"),
        (reply(b"who are you\n", "401 Unauthorized"), AuthError, "refuses user and password, or token: HTTP 401"),
        (reply(b"", "403 Forbidden"), AuthError, "HTTP 403"),
        (reply(b"no\x1b[31m luck\n", "500 Internal Server Error"), DeviceError, r"answers HTTP 500: no \[31m luck"),
        (reply(gzip.compress(page(1.0, 1.0)), "200 OK", "Content-Encoding: gzip"), DeviceError, "answers compressed"),
        (reply(page(1.0, 1.0)[:-1]), DeviceError, "the answer is cut off"),
        (reply(page(1.0, 1.0))[:-40], DeviceError, "did not answer within"),
        (reply(b"up 1\n"), DeviceError, "has no metric of node_exporter's"),
        (reply(b"<html>\n"), DeviceError, "has no metric of node_exporter's"),
        (reply(b"node_cpu_seconds_total{ 1\n"), DeviceError, "the answer is damaged at"),
        (reply(b"#" * MAX_PAGE_BYTES + b"\n"), DeviceError, f"longer than {MAX_PAGE_BYTES} bytes"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", DeviceError, "host of 'web-1'"),
        (dripping, DeviceError, "did not answer within 0.3 s"),
        (endless, DeviceError, "longer than|did not answer within"),
        (endless_head, DeviceError, "host of 'web-1'"),
    ],
    ids=lambda value: value.__name__ if callable(value) and not isinstance(value, type) else None,
)  # fmt: skip
def test_what_is_no_answer_is_an_error_with_a_sentence(answer: Any, error: type[DeviceError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        scrape(Host(answer), timeout_s=0.3 if "did not answer" in words else 30.0)
    assert type(caught.value) is error
    assert "\x1b" not in str(caught.value)


def test_after_trouble_rates_begin_anew() -> None:
    async def run() -> list[float | None]:
        host = Host(reply(page(0.0, 0.0)), reply(b"", "500 Oops"), reply(page(9.0, 9.0)), reply(page(10.0, 9.0)))
        server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        clock = ManualClock()
        driver = NodeExporter(NodeExporterOptions("a", f"http://127.0.0.1:{port}/", 1.0, 2.0), clock)
        await driver.open()
        await driver.read()
        with pytest.raises(DeviceError):
            await driver.read()
        found = []
        for _ in range(2):
            clock.advance(1.0)
            found.append((await driver.read()).cpu)
        await driver.close()
        server.close()
        await server.wait_closed()
        return found

    assert asyncio.run(run()) == [None, 1.0]


def test_nobody_listens() -> None:
    async def run() -> None:
        driver = NodeExporter(NodeExporterOptions("a", "http://127.0.0.1:9/metrics", 1.0, 2.0), ManualClock())
        with pytest.raises(DeviceError, match="is not open"):
            await driver.read()
        await driver.open()
        try:
            with pytest.raises(DeviceError, match="host of 'a'"):
                await driver.read()
        finally:
            await driver.close()

    asyncio.run(run())


def test_a_certificate_is_verified_before_anything_is_sent(tmp_path: Path) -> None:
    certificate = make_certificate("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(certificate.pem)
    (tmp_path / "cert.key").write_bytes(certificate.key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "cert.key")
    ca_file = str(tmp_path / "cert.pem")
    for good in ({"tls_ca_file": ca_file}, {"tls_fingerprint": certificate.fingerprint}, {"allow_insecure": True}):
        assert scrape(Host(reply(page(1.0, 1.0))), server_tls=tls, **good)[0].memory == 0.75
    for bad, words in (
        ({}, "does not pass the system's authorities"),
        (
            {"tls_fingerprint": "00" * 32},
            f"another certificate than tls_fingerprint: SHA-256 {certificate.fingerprint.lower()}",
        ),
    ):
        host = Host(reply(page(1.0, 1.0)))
        with pytest.raises(AuthError, match=words):
            scrape(host, server_tls=tls, token="secret", **bad)
        assert host.requests == []
    with pytest.raises(DeviceError, match="cannot use tls_ca_file /nowhere"):
        scrape(Host(), server_tls=tls, tls_ca_file="/nowhere")
