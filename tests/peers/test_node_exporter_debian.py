"""The scraper against Debian's prometheus-node-exporter, plain and over TLS with basic authentication."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_rack import free_tcp_ports

from rpi_daemon.clock import SystemClock
from rpi_daemon.drivers.caps.bmc_sim import make_certificate
from rpi_daemon.drivers.hosts.node_exporter import NodeExporter, NodeExporterOptions
from rpi_daemon.errors import AuthError
from rpi_daemon.records import HostReading

PROGRAM = shutil.which("prometheus-node-exporter")
USER, PASSWORD = "rpi", "a password"
HASH = "$2b$04$abcdefghijklmnopqrstuuQCzP7jzWZS/E3GL4oF3LWbHm3pfKHH."  # of PASSWORD

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(PROGRAM is None, reason="prometheus-node-exporter is not installed"),
]


@contextlib.contextmanager
def exporter(*arguments: str) -> Iterator[int]:
    """A running one; its port."""
    (port,) = free_tcp_ports(1)
    command = [str(PROGRAM), f"--web.listen-address=127.0.0.1:{port}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10.0)


def scrape(url: str, times: int = 1, **options: Any) -> list[HostReading]:
    async def run() -> list[HostReading]:
        driver = NodeExporter(NodeExporterOptions("web-1", url, poll_s=1.0, timeout_s=5.0, **options), SystemClock())
        await driver.open()
        try:
            readings = []
            for k in range(times):
                if k:
                    await asyncio.sleep(0.3)
                readings.append(await driver.read())
            return readings
        finally:
            await driver.close()

    return asyncio.run(run())


def busy_share(before: list[str], after: list[str]) -> float:
    passed = [int(b) - int(a) for a, b in zip(before[1:9], after[1:9], strict=True)]
    return 1.0 - (passed[3] + passed[4]) / sum(passed)


def cpu_line() -> list[str]:
    return Path("/proc/stat").read_text().splitlines()[0].split()


def test_shares_are_those_of_this_host() -> None:
    with exporter() as port:
        before = cpu_line()
        first, second = scrape(f"http://127.0.0.1:{port}/metrics", 2, allow_insecure=True, interface_bytes_per_s=125e6)
        after = cpu_line()
    assert first.cpu is None
    assert second.cpu == pytest.approx(busy_share(before, after), abs=0.35)  # not quite the same 0.3 s
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    assert second.memory == pytest.approx(1.0 - sizes["MemAvailable"] / sizes["MemTotal"], abs=0.1)
    assert second.disk is None or 0.0 <= second.disk <= 1.0  # a container may see no disk ...
    assert second.network is None or 0.0 <= second.network <= 1.0  # ... and no interface


def test_one_without_some_of_the_collectors_is_asked_for_what_it_has() -> None:
    with exporter("--no-collector.diskstats", "--no-collector.netclass") as port:
        first, second = scrape(f"http://127.0.0.1:{port}/metrics", 2, allow_insecure=True)
    assert second.cpu is not None
    assert first.memory is not None
    assert (second.network, second.disk) == (None, None)


def test_tls_and_a_password(tmp_path: Path) -> None:
    certificate = make_certificate("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(certificate.pem)
    (tmp_path / "key.pem").write_bytes(certificate.key)
    (tmp_path / "web.yml").write_text(
        f"tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\nbasic_auth_users:\n  {USER}: {HASH}\n"
    )
    with exporter(f"--web.config.file={tmp_path / 'web.yml'}") as port:
        url = f"https://127.0.0.1:{port}/metrics"
        ca_file = str(tmp_path / "cert.pem")
        assert scrape(url, user=USER, password=PASSWORD, tls_ca_file=ca_file)[0].memory is not None
        assert scrape(url, user=USER, password=PASSWORD, tls_fingerprint=certificate.fingerprint)[0].memory is not None
        with pytest.raises(AuthError, match="HTTP 401"):
            scrape(url, user=USER, password="another", tls_ca_file=ca_file)
        with pytest.raises(AuthError, match="does not pass the system's authorities"):
            scrape(url, user=USER, password=PASSWORD)
