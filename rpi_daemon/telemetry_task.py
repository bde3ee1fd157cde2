"""What listens to hosts: a task per scraped host, and the feed. Optional input: no failure of it reaches control."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.schema import Config, Telemetry
from rpi_daemon.device_task import PROBE_S, DeviceTask, jittered
from rpi_daemon.drivers.base import HostDriver
from rpi_daemon.drivers.hosts.feed import TelemetryFeed
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import HostReading

FEED_SOCKET = "telemetry.sock"
PROBE_MOST_S = 30.0  # between two probes of a silent host: twice as long after each, up to this

log = structlog.get_logger(__name__)


class HostTask(DeviceTask[HostReading]):
    """Owns one host's driver: polls, back-off. A slow or silent host delays nobody else."""

    def __init__(
        self, load: str, driver: HostDriver, clock: Clock, *, poll_s: float, first_after_s: float = 0.0
    ) -> None:
        """`first_after_s`: so that not all hosts are asked at one moment."""
        super().__init__(clock)
        self.load = load
        self.reachable: bool | None = None  # until it was asked
        self.error = ""
        self.failures = self.polls = 0
        self._driver = driver
        self._poll_s = poll_s
        self._first_after_s = first_after_s

    async def run(self) -> None:
        """Until `stop`. An error other than DeviceError ends it."""
        poll_ns = round(self._poll_s * NS_PER_S)
        due_ns = self._clock.mono_ns() + round(self._first_after_s * NS_PER_S)
        while not self._stop:
            now_ns = self._clock.mono_ns()
            if now_ns < due_ns:
                await self._wait((due_ns - now_ns) / NS_PER_S)
                continue
            try:
                await self._driver.open()
                self.inbox(await self._driver.read())
                self._succeeded()
                # one that took long is not followed by a rush
                due_ns = max(due_ns + poll_ns, self._clock.mono_ns() + poll_ns // 2)
            except DeviceError as error:
                self._failed(error)
                pause_s = jittered(min(PROBE_MOST_S, PROBE_S * 2.0 ** min(self.failures - 1, 10)))
                due_ns = self._clock.mono_ns() + round(max(pause_s, self._poll_s) * NS_PER_S)

    def _succeeded(self) -> None:
        self.polls += 1
        self.failures = 0
        self.error = ""
        if not self.reachable:
            self.reachable = True
            log.info("telemetry.reachable", load=self.load)

    def _failed(self, error: DeviceError) -> None:
        self.failures += 1
        self.error = str(error)
        if self.reachable is not False:
            self.reachable = False
            log.warning("telemetry.unreachable", load=self.load, error=self.error)


class TelemetryTasks:
    """All of a rack's telemetry: `open`, `take_readings` each tick, `close`."""

    def __init__(
        self, config: Config, clock: Clock, make_driver: Callable[[Config, Telemetry, Clock], HostDriver]
    ) -> None:
        """`make_driver`: the driver of one scraped host."""
        self._config = config
        self._clock = clock
        self._make_driver = make_driver
        self._drivers: list[HostDriver] = []
        self._tasks: dict[str, HostTask] = {}
        self._running: list[asyncio.Task[None]] = []
        self._last: dict[str, HostReading] = {}
        fed = [item.load for item in config.telemetry if item.driver == "feed"]
        path, mode = config.path(config.daemon.runtime_dir) / FEED_SOCKET, int(config.daemon.socket_mode, 8)
        self._feed = TelemetryFeed(path, mode, fed, clock) if fed else None

    async def open(self) -> None:
        """Listen, and begin to ask. Raises RpiError where the socket cannot be made."""
        if self._feed is not None:
            self._feed.open()
        scraped = [item for item in self._config.telemetry if item.driver != "feed"]
        for k, item in enumerate(scraped):
            driver = self._make_driver(self._config, item, self._clock)
            first_after_s = item.poll_s * k / len(scraped)
            task = HostTask(item.load, driver, self._clock, poll_s=item.poll_s, first_after_s=first_after_s)
            self._drivers.append(driver)
            self._tasks[item.load] = task
            self._running.append(asyncio.create_task(self._run(task), name=f"host {item.load}"))

    async def close(self) -> None:
        """Stop asking and listening; safe to call twice."""
        running, self._running = self._running, []
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for driver in self._drivers:
            await driver.close()
        self._drivers.clear()
        if self._feed is not None:
            self._feed.close()

    def take_readings(self) -> tuple[HostReading, ...]:
        """What came in since the last call."""
        readings = [reading for task in self._tasks.values() for reading in task.take_reports()]
        readings += self._feed.take_readings() if self._feed is not None else ()
        self._last.update((reading.load, reading) for reading in readings)
        return tuple(readings)

    def status(self) -> list[dict[str, Any]]:
        """One entry for each configured load, in the file's order."""
        return [self._entry(item) for item in self._config.telemetry]

    def feed_status(self) -> dict[str, Any] | None:
        """The feed's counters; None where no load uses it."""
        return self._feed.status() if self._feed is not None else None

    async def _run(self, task: HostTask) -> None:
        """A defect of ours ends this host's telemetry, and nothing else."""
        try:
            await task.run()
        except Exception as error:  # noqa: BLE001  whatever it is, control goes on
            task.reachable, task.error = False, f"a defect of the daemon ended its task: {error!r}"
            log.error("telemetry.ended", load=task.load, error=repr(error))

    def _entry(self, item: Telemetry) -> dict[str, Any]:
        task, last = self._tasks.get(item.load), self._last.get(item.load)
        return {
            "load": item.load,
            "driver": item.driver,
            "url": item.url,
            "age_s": (self._clock.mono_ns() - last.t_mono_ns) / NS_PER_S if last is not None else None,
            "reachable": task.reachable if task is not None else None,
            "error": (task.error or None) if task is not None else None,
            "polls": task.polls if task is not None else None,
            "insecure": item.allow_insecure,
        }
