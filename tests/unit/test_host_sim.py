"""The simulated host, read by the driver that reads real ones."""

import asyncio

import pytest

from rpi_daemon.clock import ManualClock
from rpi_daemon.drivers.hosts.node_exporter import NodeExporter, NodeExporterOptions
from rpi_daemon.drivers.hosts.sim import HostSimulator
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import HostReading


def test_the_driver_reads_what_the_host_does() -> None:
    async def run() -> list[HostReading]:
        busy, clock = [0.25, 0.75, 2.0], ManualClock()
        host = HostSimulator(lambda: busy[host.scrapes], host="127.0.0.1", port=0, clock=lambda: clock.mono_ns() / 1e9)
        await host.start()
        url = f"http://127.0.0.1:{host.port}/metrics"
        driver = NodeExporter(NodeExporterOptions("a", url, 1.0, 2.0, allow_insecure=True), clock)
        other = HostSimulator(lambda: 0.0, host="127.0.0.1", port=host.port)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {host.port}"):
            await other.start()
        readings = []
        try:
            await driver.open()
            for _ in range(3):
                readings.append(await driver.read())
                clock.advance(1.0)
        finally:
            await driver.close()
            await host.stop()
            await host.stop()
            await asyncio.sleep(0)
        return readings

    first, second, third = asyncio.run(run())
    assert (first.cpu, first.memory) == (None, pytest.approx(0.3))
    assert (second.cpu, second.memory) == (pytest.approx(0.75), pytest.approx(0.5))
    assert (second.network, second.disk) == (pytest.approx(0.75 * 2e8 / 1.25e9), pytest.approx(0.225))
    assert third.cpu == pytest.approx(1.0)
