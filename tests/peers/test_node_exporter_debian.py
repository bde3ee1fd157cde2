"""The scraper against Debian's prometheus-node-exporter, plain and over TLS with basic authentication."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_rack import free_ports
from systemd_box import PATIENCE_S, until

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
    (port,) = free_ports(1)
    command = [str(PROGRAM), f"--web.listen-address=127.0.0.1:{port}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), "node_exporter listens")
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def scrape(url: str, times: int = 1, look: Callable[[], object] = lambda: None, **options: Any) -> list[HostReading]:
    """`look` is called before and after each reading."""

    async def run() -> list[HostReading]:
        driver = NodeExporter(NodeExporterOptions("web-1", url, poll_s=1.0, timeout_s=20.0, **options), SystemClock())
        await driver.open()
        try:
            readings = []
            for k in range(times):
                if k:
                    await asyncio.sleep(0.3)
                look()
                readings.append(await driver.read())
                look()
            return readings
        finally:
            await driver.close()

    return asyncio.run(run())


def cpu_time() -> tuple[int, int]:
    """Of this host since its start, all and idle."""
    spent = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(spent), spent[3] + spent[4]


def test_shares_are_those_of_this_host() -> None:
    looks: list[tuple[int, int]] = []
    with exporter() as port:
        url = f"http://127.0.0.1:{port}/metrics"
        first, second = scrape(
            url, 2, lambda: looks.append(cpu_time()), allow_insecure=True, interface_bytes_per_s=125e6
        )
    assert first.cpu is None
    # each reading was taken between two looks
    (all_0, idle_0), (all_1, idle_1), (all_2, idle_2), (all_3, idle_3) = looks
    assert second.cpu is not None
    assert (idle_2 - idle_1) / (all_3 - all_0) - 0.05 <= 1.0 - second.cpu <= (idle_3 - idle_0) / (all_2 - all_1) + 0.05
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
