"""One host's task on virtual time: polls, silence, back-off; a defect ends telemetry, not the daemon."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from config_examples import BASE, parse

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.drivers.base import HostDriver
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import HostReading
from rpi_daemon.telemetry_task import PROBE_MOST_S, HostTask, TelemetryTasks


class VirtualHost:
    """Says what it is told to; notes when it was asked."""

    def __init__(self, clock: ManualClock) -> None:
        self.error: Exception | None = None
        self.asked_s: list[float] = []
        self.takes_s = 0.0
        self.closed = False
        self._clock = clock

    async def open(self) -> None:
        """Nothing to make ready."""

    async def read(self) -> HostReading:
        now_ns = self._clock.mono_ns()
        self.asked_s.append(now_ns / NS_PER_S)
        self._clock.advance(self.takes_s)
        if self.error is not None:
            raise self.error
        return HostReading("n1", now_ns, cpu=0.5)

    async def close(self) -> None:
        self.closed = True


class Turns(HostTask):
    """Its waits pass on the virtual clock."""

    def __init__(self, clock: ManualClock, host: VirtualHost, **options: Any) -> None:
        super().__init__("n1", host, clock, **({"poll_s": 1.0} | options))
        self.virtual = clock
        self.until_s = 0.0

    async def _wait(self, seconds: float) -> None:
        left_s = self.until_s - self.virtual.mono_ns() / NS_PER_S
        self.virtual.advance(min(seconds, left_s))
        self._stop = seconds >= left_s

    async def go(self, until_s: float) -> None:
        self._stop, self.until_s = False, until_s
        await self.run()


def turns(**options: Any) -> tuple[Turns, VirtualHost]:
    clock = ManualClock()
    host = VirtualHost(clock)
    return Turns(clock, host, **options), host


def test_a_host_is_asked_every_poll_however_long_it_takes() -> None:
    task, host = turns(poll_s=2.0, first_after_s=0.5)
    host.takes_s = 0.25
    asyncio.run(task.go(9.0))
    assert host.asked_s == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert [reading.t_mono_ns / NS_PER_S for reading in task.take_reports()] == host.asked_s
    assert (task.reachable, task.polls, task.error) == (True, 5, "")


def test_a_poll_that_came_late_is_not_followed_by_a_rush() -> None:
    task, host = turns()
    host.takes_s = 3.2
    asyncio.run(task.go(10.0))
    assert pauses(host.asked_s) == [pytest.approx(3.7)] * (len(host.asked_s) - 1)


def pauses(values: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(values)]


def test_a_silent_host_is_asked_less_and_less_often_and_comes_back() -> None:
    task, host = turns()
    host.error = DeviceError("it did not answer")
    asyncio.run(task.go(400.0))
    assert (task.reachable, task.error) == (False, "it did not answer")
    waits_s = pauses(host.asked_s)
    for pause_s, expected_s in zip(waits_s, (1.0, 2.0, 4.0, 8.0, 16.0), strict=False):
        assert 0.8 * expected_s <= pause_s <= 1.2 * expected_s
    assert all(0.8 * PROBE_MOST_S <= pause_s <= 1.2 * PROBE_MOST_S for pause_s in waits_s[5:])
    assert task.take_reports() == []
    host.error = None
    asyncio.run(task.go(440.0))
    assert (task.reachable, task.error, task.failures) == (True, "", 0)
    assert len(task.take_reports()) >= 2


HOST = '[[telemetry]]\nload = "n1"\nurl = "http://192.0.2.1/metrics"\nallow_insecure = true\n'


def tasks(text: str, host: VirtualHost, folder: Path, clock: ManualClock) -> TelemetryTasks:
    def make(*_: object) -> HostDriver:
        return host

    return TelemetryTasks(parse(BASE + text + f'[daemon]\nruntime_dir = "{folder}"\n'), clock, make)


async def turn(until: Callable[[], bool]) -> None:
    for _ in range(1000):
        if until():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(body)


def test_readings_come_to_the_tick_and_status_shows_their_age(tmp_path: Path) -> None:
    async def body() -> None:
        clock = ManualClock()
        host = VirtualHost(clock)
        both = tasks(HOST + '[[telemetry]]\nload = "n2"\ndriver = "feed"\n', host, tmp_path, clock)
        assert [entry["age_s"] for entry in both.status()] == [None, None]
        await both.open()
        assert (tmp_path / "telemetry.sock").exists()
        await turn(lambda: bool(host.asked_s))
        assert both.take_readings() == (HostReading("n1", 0, cpu=0.5),)
        clock.advance(0.75)
        first, second = both.status()
        assert (first["load"], first["age_s"], first["reachable"], first["error"]) == ("n1", 0.75, True, None)
        assert (second["load"], second["age_s"], second["reachable"]) == ("n2", None, None)
        feed = both.feed_status()
        assert feed is not None
        assert feed["received"] == 0
        await both.close()
        await both.close()
        assert host.closed
        assert not (tmp_path / "telemetry.sock").exists()

    run(body())


def test_a_defect_ends_one_hosts_telemetry_and_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        clock = ManualClock()
        host = VirtualHost(clock)
        host.error = ZeroDivisionError("oops")
        one = tasks(HOST, host, tmp_path, clock)
        await one.open()
        await turn(lambda: one.status()[0]["reachable"] is False)
        assert "a defect of the daemon" in one.status()[0]["error"]
        assert one.feed_status() is None
        await one.close()

    run(body())
