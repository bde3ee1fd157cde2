"""A simulated host: as much of node_exporter's page as is read of it, over plain HTTP."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rpi_daemon.drivers.hosts.shares import (
    CPU,
    DISK_BUSY,
    MEMORY_AVAILABLE,
    MEMORY_TOTAL,
    RECEIVED,
    SENT,
    SPEED,
)
from rpi_daemon.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from aiohttp import web

MEMORY_BYTES = 64e9
SPEED_BYTES_S = 1.25e9
BYTES_S_BUSY = 2e8  # received by a host that is busy, sent half as much
DISK_SHARE_BUSY = 0.3


class HostSimulator:
    """One host with one CPU. `busy` says how busy it is now, 0 to 1; all it does goes with that."""

    def __init__(
        self, busy: Callable[[], float], *, host: str, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.port = port
        self.scrapes = 0
        self._busy = busy
        self._host = host
        self._clock = clock
        self._started_s = self._seen_s = clock()
        self._busy_s = 0.0  # of CPU time since the start
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Bind the port. Raises ConfigError when it is in use, DeviceError without aiohttp."""
        try:
            from aiohttp import web
        except ImportError as error:
            raise DeviceError("a simulated host needs aiohttp: install rpi-daemon[hosts]") from error

        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=self.page(), content_type="text/plain")

        app = web.Application()
        app.router.add_get("/metrics", answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as error:
            await self.stop()
            raise ConfigError(f"cannot listen on {self._host} port {self.port}: {error.strerror}") from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port; safe to call twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def page(self) -> str:
        """The counters now. Since the page before it was as busy as it is now."""
        now_s, busy = self._clock(), min(1.0, max(0.0, self._busy()))
        self.scrapes += 1
        self._busy_s += busy * (now_s - self._seen_s)
        self._seen_s = now_s
        idle_s = now_s - self._started_s - self._busy_s
        samples = {
            f'{CPU}{{cpu="0",mode="idle"}}': idle_s,
            f'{CPU}{{cpu="0",mode="user"}}': self._busy_s,
            MEMORY_TOTAL: MEMORY_BYTES,
            MEMORY_AVAILABLE: MEMORY_BYTES * (0.8 - 0.4 * busy),
            f'{SPEED}{{device="eth0"}}': SPEED_BYTES_S,
            f'{RECEIVED}{{device="eth0"}}': BYTES_S_BUSY * self._busy_s,
            f'{SENT}{{device="eth0"}}': 0.5 * BYTES_S_BUSY * self._busy_s,
            f'{DISK_BUSY}{{device="sda"}}': DISK_SHARE_BUSY * self._busy_s,
        }
        return "".join(f"{name} {value!r}\n" for name, value in samples.items())
