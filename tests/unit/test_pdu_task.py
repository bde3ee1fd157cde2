"""One PDU's task on virtual time: newest desired state only, silence, back-off, refusal at the driver's door."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from audit_rig import ListAudit

from rpi_daemon.audit import NOT_DURABLE, By
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.drivers.base import MayWrite, always
from rpi_daemon.errors import DeviceError
from rpi_daemon.pdu_task import Lease, Meet, PduTask
from rpi_daemon.records import (
    ApplyResult,
    Decision,
    Desired,
    LimitKind,
    LimitState,
    LimitWrite,
    PduIdentity,
    PduReading,
    PduReport,
    WriteOutcome,
)
from rpi_daemon.service import _write_ms

PATIENCE_S = 20.0


class VirtualPdu:
    """A PDU that keeps limits, counts its requests, and can be slow, silent or broken. Never more than one request at a time."""

    def __init__(self, clock: ManualClock) -> None:
        self.limits_w = {1: 500.0, 2: 500.0}
        self.batches: list[dict[int, float]] = []
        self.silent = False
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.reads = self.opened = 0
        self.rebooted = False
        self._clock = clock
        self._busy = False

    async def _on_wire(self) -> None:
        assert not self._busy, "two requests at once"
        self._busy = True
        try:
            await self.gate.wait()
            if self.broken:
                raise ZeroDivisionError("a mistake in the driver")
            if self.silent:
                raise DeviceError("did not answer")
        finally:
            self._busy = False

    def busy(self) -> bool:
        return self._busy

    async def open(self) -> None:
        self.opened += 1

    async def identify(self) -> PduIdentity:
        return PduIdentity("v", "m", "f", "s", 2, True)

    async def read(self) -> PduReading:
        self.reads += 1
        await self._on_wire()
        now_ns = self._clock.mono_ns()
        states = {n: LimitState(w, True, LimitKind.ALARM) for n, w in self.limits_w.items()}
        rebooted, self.rebooted = self.rebooted, False
        return PduReading(now_ns, now_ns / 1e9, {}, {}, {}, states, rebooted=rebooted)

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite = always) -> ApplyResult:
        await self._on_wire()
        if not all(map(may_write, writes)):
            outcomes = tuple(WriteOutcome(w.outlet, w.limit_w, None, False, "not allowed", 0, None) for w in writes)
            return ApplyResult(outcomes, 0)
        now_ns = self._clock.mono_ns()
        self.batches.append({write.outlet: write.limit_w for write in writes})
        self.limits_w |= self.batches[-1]
        return ApplyResult(
            tuple(WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, now_ns, now_ns) for w in writes), 2
        )

    async def close(self) -> None:
        return


class Bench:
    """A task that runs, with its virtual PDU and clock."""

    def __init__(self, allowed: Callable[[LimitWrite], bool] = lambda write: True, meet: Meet | None = None) -> None:
        self.clock = ManualClock(10**12)
        self.device = VirtualPdu(self.clock)
        self.audit = ListAudit()
        self.task = PduTask(
            "pdu",
            self.device,
            self.clock,
            poll_s=0.01,
            forbidden=lambda write: None if allowed(write) else "the kill switch is engaged",
            audit=self.audit,
            meet=meet,
        )

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the loop turn until it is so; virtual time goes on with it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_S
        while not true():
            assert loop.time() < end, "it did not come about"
            self.clock.advance(0.02)
            await asyncio.sleep(0)

    def ask(self, **limits_w: float) -> None:
        limits = tuple(LimitWrite(int(name[1:]), w) for name, w in limits_w.items())
        now_ns = self.clock.mono_ns()
        self.task.submit(Desired("pdu", now_ns, limits), measured_ns=now_ns - 7)


def scenario(play: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run `play` beside the task's own loop; stop it in order."""

    async def act() -> None:
        bench = Bench(**options)
        running = asyncio.create_task(bench.task.run())
        try:
            await play(bench)
        finally:
            bench.device.gate.set()
            bench.task.stop()
            await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), PATIENCE_S)

    asyncio.run(act())


def test_only_the_newest_desired_state_is_written() -> None:
    async def play(bench: Bench) -> None:
        bench.device.gate.clear()
        bench.ask(o1=100.0)
        await bench.until(lambda: bench.device.reads > 0 or bool(bench.device.batches) or bench.device._busy)
        for w in (200.0, 300.0, 400.0):
            bench.ask(o1=w, o2=w)
        bench.device.gate.set()
        await bench.until(lambda: bench.device.limits_w == {1: 400.0, 2: 400.0})
        assert bench.device.batches[-1] == {1: 400.0, 2: 400.0}
        assert {1: 200.0, 2: 200.0} not in bench.device.batches
        assert {1: 300.0, 2: 300.0} not in bench.device.batches

    scenario(play)


def test_a_write_is_reported_with_the_scan_behind_it_and_the_tick_that_asked() -> None:
    async def play(bench: Bench) -> None:
        asked_ns = bench.clock.mono_ns()
        bench.ask(o1=100.0)
        await bench.until(lambda: bool(bench.device.batches))
        await bench.until(lambda: any(r.result for r in bench.task._inbox))
        (report,) = [r for r in bench.task.take_reports() if r.result is not None]
        assert report.result is not None
        assert (report.measured_ns, report.asked_ns) == (asked_ns - 7, asked_ns)
        assert report.result.outcomes[0].read_back_w == 100.0
        assert not any(r.result for r in bench.task.take_reports())

    scenario(play)


def test_what_no_tick_asked_for_or_was_not_verified_has_no_duration() -> None:
    outcome = WriteOutcome(1, 100.0, 90.0, False, None, 5, None)
    assert _write_ms(PduReport("pdu-a", result=ApplyResult((outcome,), 2), measured_ns=0)) == set()
    verified = WriteOutcome(1, 100.0, 100.0, True, None, 5, 23_000_000)
    assert _write_ms(PduReport("pdu-a", result=ApplyResult((verified,), 2))) == set()
    assert _write_ms(PduReport("pdu-a", result=ApplyResult((verified,), 2), measured_ns=0)) == {23.0}
    assert _write_ms(PduReport("pdu-a", lost=True)) == set()


def test_silence_opens_the_breaker_and_old_wishes_are_not_written_when_it_is_back() -> None:
    async def play(bench: Bench) -> None:
        await bench.until(lambda: bench.task.polls > 0)
        bench.task.take_reports()
        bench.device.silent = True
        bench.ask(o1=690.0)
        await bench.until(lambda: not bench.task.reachable)
        bench.ask(o1=695.0)  # the loop may still ask while it is away
        failures = bench.task.failures
        await bench.until(lambda: bench.task.failures > failures)
        lost = bench.task.take_reports()
        assert lost
        assert all(r.lost for r in lost)
        bench.device.silent = False
        await bench.until(lambda: bench.task.reachable)
        polls = bench.task.polls
        await bench.until(lambda: bench.task.polls > polls + 3)
        assert bench.device.batches == []
        assert bench.device.opened >= 1  # the probe begins a new session
        bench.ask(o1=600.0)
        await bench.until(lambda: bench.device.batches == [{1: 600.0}])

    scenario(play)


def test_probes_of_a_silent_pdu_are_a_second_apart() -> None:
    async def play(bench: Bench) -> None:
        bench.device.silent = True
        await bench.until(lambda: not bench.task.reachable)
        reads, began_ns = bench.device.reads, bench.clock.mono_ns()
        await bench.until(lambda: bench.device.reads == reads + 1)
        assert bench.clock.mono_ns() - began_ns >= 0.8e9

    scenario(play)


def test_how_long_it_is_away_counts_from_the_first_silence_to_the_next_answer() -> None:
    async def play(bench: Bench) -> None:
        await bench.until(lambda: bench.task.polls > 0)
        bench.clock.advance(100.0)
        assert bench.task.away_s() == 0.0
        bench.device.silent = True
        await bench.until(lambda: not bench.task.reachable)
        began_ns = bench.clock.mono_ns()
        assert bench.task.away_s() < 0.1
        await bench.until(lambda: bench.task.away_s() > 5.0)
        assert bench.clock.mono_ns() - began_ns == pytest.approx(5e9, abs=0.1e9)
        bench.device.silent = False
        await bench.until(lambda: bench.task.reachable)
        assert bench.task.away_s() == 0.0

    scenario(play)


def test_what_may_not_be_written_is_reported_as_lost_and_never_sent() -> None:
    async def play(bench: Bench) -> None:
        bench.ask(o1=100.0)
        await bench.until(lambda: any(r.lost for r in bench.task._inbox))
        assert bench.device.batches == []
        assert bench.device.limits_w[1] == 500.0

    scenario(play, allowed=lambda write: False)


def test_each_write_is_asked_for_at_the_door() -> None:
    async def play(bench: Bench) -> None:
        bench.ask(o1=100.0, o2=200.0)
        await bench.until(lambda: bool(bench.device.batches))
        assert bench.device.batches == [{2: 200.0}]

    scenario(play, allowed=lambda write: write.outlet == 2)


def test_the_kill_switch_counts_for_a_batch_that_waits_for_the_wire_or_is_under_way() -> None:
    killed: list[bool] = []

    async def play(bench: Bench) -> None:
        bench.device.gate.clear()  # a poll holds the wire
        await bench.until(lambda: bench.device.reads > 0)
        waits = asyncio.create_task(bench.task.write_exclusive([LimitWrite(1, 100.0)], By("operator test")))
        await asyncio.sleep(0)
        killed.append(True)
        bench.device.gate.set()
        assert await waits is None
        killed.clear()
        bench.device.gate.clear()
        bench.ask(o2=200.0)
        await bench.until(bench.device.busy)
        killed.append(True)
        bench.device.gate.set()
        await bench.until(lambda: any(report.result is not None for report in bench.task.take_reports()))
        assert bench.device.batches == []
        assert bench.device.limits_w == {1: 500.0, 2: 500.0}

    scenario(play, allowed=lambda write: not killed)


def test_restore_waits_for_the_wire_and_drops_what_waits() -> None:
    async def play(bench: Bench) -> None:
        bench.device.gate.clear()
        bench.ask(o1=100.0)
        await bench.until(lambda: bench.device._busy)
        bench.ask(o1=200.0)
        restoring = asyncio.create_task(bench.task.write_exclusive([LimitWrite(1, 613.0)], By("operator test")))
        await asyncio.sleep(0)
        bench.device.gate.set()
        result = await restoring
        assert result is not None
        assert result.outcomes[0].verified
        polls = bench.task.polls
        await bench.until(lambda: bench.task.polls > polls + 2)
        assert bench.device.limits_w[1] == 613.0
        assert {1: 200.0} not in bench.device.batches

    scenario(play)


def test_a_reboot_is_told() -> None:
    async def play(bench: Bench) -> None:
        bench.clock.advance(100.0)
        await bench.until(lambda: bench.task.polls > 1)
        assert not any(r.reading and r.reading.rebooted for r in bench.task.take_reports())
        bench.device.rebooted = True
        polls = bench.task.polls
        await bench.until(lambda: bench.task.polls > polls + 2)
        assert [r.reading is not None and r.reading.rebooted for r in bench.task.take_reports()].count(True) == 1

    scenario(play)


def test_a_mistake_in_a_driver_ends_the_task_for_all_to_see() -> None:
    async def act() -> None:
        bench = Bench()
        bench.device.broken = True
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(bench.task.run(), PATIENCE_S)

    asyncio.run(act())


def test_stop_ends_it_after_what_it_is_doing() -> None:
    async def act() -> None:
        bench = Bench()
        bench.device.gate.clear()
        running = asyncio.create_task(bench.task.run())
        bench.ask(o1=100.0)
        await bench.until(lambda: bench.device._busy)
        bench.task.stop()
        await asyncio.sleep(0)
        assert not running.done()
        bench.device.gate.set()
        await asyncio.wait_for(running, PATIENCE_S)

    asyncio.run(act())


def test_a_lease_ends_without_renewal() -> None:
    lease = Lease(10.0, 0)
    assert not lease.expired(10 * NS_PER_S)
    assert lease.expired(10 * NS_PER_S + 1)
    lease.renew(10 * NS_PER_S)
    assert not lease.expired(20 * NS_PER_S)


def why(protective: bool) -> Decision:
    return Decision(0, 0, 500.0, 0.0, "lower", "granted", 100.0, 5.0, 95.0, protective, 120.0)


def test_nothing_is_written_before_its_record_and_its_end_is_told() -> None:
    async def play(bench: Bench) -> None:
        bench.ask(o1=100.0)
        await bench.until(lambda: bench.device._busy or bool(bench.device.batches))
        await bench.until(lambda: len(bench.audit.records) == 2)
        (asked, intents), (ended, outcomes) = bench.audit.records
        assert (asked, ended) == ("asked", "ended")
        assert [(i.what, i.to_w, i.reason) for i in intents] == [("pdu/1", 100.0, "static_safe")]
        assert [o.read_back_w for o in outcomes] == [100.0]

    scenario(play)


def test_without_a_durable_record_only_what_is_protective_is_written_and_the_rest_asked_for_again() -> None:
    async def play(bench: Bench) -> None:
        bench.audit.durable = False
        limits = (LimitWrite(1, 100.0, why=why(True)), LimitWrite(2, 600.0, why=why(False)))
        bench.task.submit(Desired("pdu", bench.clock.mono_ns(), limits), bench.clock.mono_ns())
        await bench.until(lambda: bool(bench.device.batches))
        await bench.until(lambda: any(r.lost for r in bench.task._inbox))
        assert bench.device.batches == [{1: 100.0}]
        assert [name for name, _ in bench.audit.records] == ["asked", "refused", "ended"]
        assert bench.task.refused == NOT_DURABLE
        reports = [r for r in bench.task.take_reports() if r.reading is None]
        assert [(r.result is not None, r.lost) for r in reports] == [(True, False), (False, True)]
        assert await bench.task.write_exclusive([LimitWrite(2, 613.0, _found(613.0))], By("operator eve")) is None
        assert bench.device.limits_w[2] == 500.0

    scenario(play)


def test_what_is_forbidden_or_fails_is_on_record_with_the_reason() -> None:
    async def play(bench: Bench) -> None:
        assert await bench.task.write_exclusive([LimitWrite(1, 100.0)], By("operator eve")) is None
        assert bench.audit.records == [("refused", "the kill switch is engaged")]
        bench.device.silent = True
        with pytest.raises(DeviceError):
            await bench.task.write_now([LimitWrite(2, 100.0)])
        assert bench.audit.records[-1] == ("failed", "did not answer")

    scenario(play, allowed=lambda write: write.outlet == 2)


def _found(limit_w: float) -> LimitState:
    return LimitState(limit_w, True, LimitKind.ALARM, (("1.3.6", 2, round(limit_w)),))


def test_nothing_is_written_to_a_device_that_was_not_met() -> None:
    """Whatever answers there now may be another PDU: no found limit goes to it, and it does not count as reachable."""

    async def act() -> None:
        async def another() -> None:
            raise DeviceError("it is another device")

        bench = Bench(meet=Meet(another, another))
        bench.task.away("silent at start")
        with pytest.raises(DeviceError, match="has not answered since the start"):
            await bench.task.write_exclusive([LimitWrite(1, 100.0)], By("operator x"))
        assert (bench.device.batches, bench.device.limits_w[1], bench.task.reachable) == ([], 500.0, False)

    asyncio.run(act())


def test_a_device_that_is_back_and_takes_no_static_safe_stays_away_and_is_asked_seldom() -> None:
    async def act() -> None:
        looks: list[int] = []

        async def same() -> None:
            looks.append(bench.clock.mono_ns())

        async def denied() -> None:
            await bench.task.write_now([LimitWrite(1, 100.0)])
            assert not bench.task.reachable
            raise DeviceError("it does not take STATIC_SAFE")

        bench = Bench(meet=Meet(same, denied))
        bench.task.away("silent at start")
        with pytest.raises(DeviceError, match="does not take STATIC_SAFE"):
            await bench.task._poll()
        assert (bench.task.met, bench.task.reachable, len(looks)) == (False, False, 1)
        assert 24.0 <= bench.task._pause_s() <= 36.0

    asyncio.run(act())


def test_what_was_decided_before_the_loop_stood_still_is_not_written() -> None:
    lease = Lease(10.0, 0)
    assert not lease.stood_still(NS_PER_S)
    assert lease.stood_still(NS_PER_S + 1)
    lease.renew(2 * NS_PER_S)
    assert (lease.stood_still(3 * NS_PER_S), lease.expired(12 * NS_PER_S)) == (False, False)
    assert (lease.stood_still(12 * NS_PER_S), lease.expired(12 * NS_PER_S + 1)) == (True, True)
    lease.renew(12 * NS_PER_S)  # the next tick is no leave for what was on its way: a message is repeated after 0.25 s
    assert lease.stood_still(12 * NS_PER_S, decided_ns=12 * NS_PER_S - 1)
    assert not lease.stood_still(12 * NS_PER_S, decided_ns=12 * NS_PER_S)
    lease.renew(12 * NS_PER_S + 1)
    assert not lease.stood_still(12 * NS_PER_S + 1, decided_ns=12 * NS_PER_S)
