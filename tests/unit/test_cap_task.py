"""One server's task on virtual time: newest cap only, silence, back-off, refused log-ins, the kill switch at its door."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from audit_rig import ListAudit

from rpi_daemon.audit import NOT_DURABLE, By
from rpi_daemon.cap_task import LOCKED_OUT_S, PROBE_MOST_S, CapTask
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import CapDesired, CapIdentity, CapOutcome, CapReading

IDENTITY = CapIdentity("sim", "server", "1", "42", "environment_metrics", 100.0, 700.0, "LogEventOnly")


class VirtualServer:
    """A server that keeps a cap, and can be slow, silent or shut. Never more than one request at a time."""

    def __init__(self, clock: ManualClock) -> None:
        self.cap_w: float | None = None
        self.asked: list[float | None] = []
        self.error: DeviceError | None = None
        self.opened = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._clock = clock
        self._busy = False

    async def _on_wire(self) -> None:
        assert not self._busy, "two requests at once"
        self._busy = True
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
        finally:
            self._busy = False

    async def open(self) -> None:
        self.opened += 1
        await self._on_wire()

    async def identify(self) -> CapIdentity:
        return IDENTITY

    async def read(self) -> CapReading:
        await self._on_wire()
        return CapReading(self._clock.mono_ns(), 300.0, self.cap_w, self.cap_w is not None)

    async def apply(self, cap_w: float | None, may_write: Callable[[], bool] = lambda: True) -> CapOutcome:
        await self._on_wire()
        if may_write():
            self.asked.append(cap_w)
            self.cap_w = cap_w
        now_ns = self._clock.mono_ns()
        return CapOutcome(cap_w, self.cap_w, self.cap_w == cap_w, None, now_ns, now_ns)

    async def restore(self, found: CapReading, may_write: Callable[[], bool] = lambda: True) -> CapOutcome:
        return await self.apply(found.cap_w, may_write)

    async def close(self) -> None:
        """Nothing to let go of."""


class Bench:
    """A task, its server and a clock; `turns` lets the loop go round without time passing."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = VirtualServer(self.clock)
        self.allowed = True
        self.asked: list[tuple[bool, int | None]] = []
        self.audit = ListAudit()
        self.task = CapTask(
            "server-1",
            "192.0.2.30",
            self.server,
            self.clock,
            poll_s=1000.0,
            forbidden=self._forbidden,
            audit=self.audit,
        )

    def _forbidden(self, restoring: bool, decided_ns: int | None) -> str | None:
        self.asked.append((restoring, decided_ns))
        return None if self.allowed else "the kill switch is engaged"

    def desire(self, cap_w: float | None, from_w: float | None = None) -> None:
        now_ns = self.clock.mono_ns()
        self.task.submit(CapDesired("server-1", now_ns, cap_w, from_w, "lower", "rack (W)", 500.0, 400.0))


async def turns(n: int = 40) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def scenario(story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.task.run())
        try:
            bench.clock.advance(1.0)
            await turns()
            await story(bench)
        finally:
            bench.server.gate.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def test_it_connects_says_what_the_server_is_and_polls() -> None:
    async def story(bench: Bench) -> None:
        reports = bench.task.take_reports()
        assert [r.identity for r in reports if r.identity] == [IDENTITY]
        assert [r.reading.cap_w for r in reports if r.reading] == [None]
        assert bench.task.last_ok_ns == bench.clock.mono_ns()

    scenario(story)


def test_only_the_newest_of_what_waits_is_written() -> None:
    async def story(bench: Bench) -> None:
        bench.server.gate.clear()
        bench.desire(400.0)
        await turns()
        for cap_w in (390.0, 380.0, 370.0):
            bench.desire(cap_w)
        bench.server.gate.set()
        await turns()
        assert bench.server.asked == [400.0, 370.0]
        outcomes = [r.outcome.read_back_w for r in bench.task.take_reports() if r.outcome]
        assert outcomes == [400.0, 370.0]
        assert (bench.task.writes, bench.task.verified) == (2, 2)

    scenario(story)


def test_nothing_is_written_where_writing_is_forbidden_and_the_stage_hears_of_it() -> None:
    async def story(bench: Bench) -> None:
        bench.task.take_reports()
        bench.allowed = False
        bench.desire(300.0)
        await turns()
        assert bench.asked == [(False, bench.clock.mono_ns())]  # with the time of the decision
        assert not bench.server.asked
        assert [r.lost for r in bench.task.take_reports()] == [True]
        assert await bench.task.restore(CapReading(0, None, None, False), By("operator test")) is None

    scenario(story)


def test_silence_is_named_drops_what_waits_and_a_later_probe_connects_anew() -> None:
    async def story(bench: Bench) -> None:
        bench.task.take_reports()
        bench.server.error = DeviceError("192.0.2.30: no answer")
        bench.desire(300.0)
        await turns()
        assert not bench.task.reachable
        assert bench.task.error == "192.0.2.30: no answer"
        assert any(r.lost for r in bench.task.take_reports())
        bench.server.error = None
        bench.task.submit(CapDesired("server-1", 0, None, None, "release", "fits", 0.0, 0.0))
        await turns()
        assert not bench.server.asked  # not connected: the old wish is not written in between
        await bench.task.read()
        assert bench.task.reachable
        assert bench.server.opened == 2

    scenario(story)


@pytest.mark.parametrize(
    ("error", "failures", "least_s", "most_s"),
    [
        (DeviceError("silent"), 1, 0.8, 1.2),
        (DeviceError("silent"), 4, 6.4, 9.6),
        (DeviceError("silent"), 40, 0.8 * PROBE_MOST_S, 1.2 * PROBE_MOST_S),
        (AuthError("wrong password"), 1, 0.8 * LOCKED_OUT_S, 1.2 * LOCKED_OUT_S),
    ],
)
def test_probes_come_less_and_less_often(error: DeviceError, failures: int, least_s: float, most_s: float) -> None:
    bench = Bench()
    bench.task.failures = failures
    assert all(least_s <= bench.task._pause_s(error) <= most_s for _ in range(100))


def test_withdrawing_tells_the_stage_that_nothing_will_come() -> None:
    bench = Bench()
    bench.task.withdraw()
    assert not bench.task.take_reports()
    bench.desire(300.0)
    bench.task.withdraw()
    assert [r.lost for r in bench.task.take_reports()] == [True]
    assert bench.clock.mono_ns() < NS_PER_S * 10**9


def test_every_cap_is_on_record_before_and_after_and_without_a_durable_record_only_lower_ones_are_written() -> None:
    async def story(bench: Bench) -> None:
        bench.desire(400.0)
        await turns()
        (asked, (intent,)), (ended, (outcome,)) = bench.audit.records
        assert (asked, ended) == ("asked", "ended")
        assert (intent.what, intent.kind, intent.before_w, intent.to_w) == ("server-1", "server_cap", None, 400.0)
        assert (intent.rule, intent.request_w, intent.grant_w) == ("rack (W)", 500.0, 400.0)
        assert outcome.read_back_w == 400.0
        bench.audit.durable = False
        bench.desire(450.0, from_w=400.0)
        await turns()
        assert bench.audit.records[-1] == ("refused", NOT_DURABLE)
        assert await bench.task.restore(CapReading(0, None, None, False), By("operator eve")) is None
        bench.desire(380.0, from_w=400.0)
        await turns()
        assert await bench.task.write_now(350.0) is not None, "STATIC_SAFE"
        assert bench.server.asked == [400.0, 380.0, 350.0]
        bench.allowed = False
        assert await bench.task.write_now(350.0) is None
        assert bench.audit.records[-1] == ("refused", "the kill switch is engaged")

    scenario(story)
