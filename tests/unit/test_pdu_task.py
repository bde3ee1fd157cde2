"""One PDU's I/O task: newest desired limits first, one wire, reports that tell what they answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from rpi_daemon.clock import ManualClock
from rpi_daemon.errors import DeviceError
from rpi_daemon.pdu_task import PduTask
from rpi_daemon.records import (
    ApplyResult,
    Desired,
    LimitWrite,
    PduIdentity,
    PduReading,
    PduReport,
    WriteOutcome,
)
from rpi_daemon.service import _write_ms


@dataclass
class ShelfPdu:
    """A PDU without a wire: takes what is written 20 ms later, or is silent."""

    clock: ManualClock
    silent: bool = False
    batches: list[list[LimitWrite]] = field(default_factory=list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def identify(self) -> PduIdentity:
        return PduIdentity("shelf", "one", "1", "1", 2, True)

    async def read(self) -> PduReading:
        if self.silent:
            raise DeviceError("no answer")
        return PduReading(self.clock.mono_ns(), 1.0, {}, {}, {}, {})

    async def apply(self, writes: Sequence[LimitWrite]) -> ApplyResult:
        if self.silent:
            raise DeviceError("no answer")
        self.batches.append(list(writes))
        sent_ns = self.clock.mono_ns()
        self.clock.advance(0.02)
        done_ns = self.clock.mono_ns()
        return ApplyResult(
            tuple(WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, sent_ns, done_ns) for w in writes), 2
        )


def desired(serial: int, *limits_w: float) -> Desired:
    writes = tuple(LimitWrite(number, limit_w) for number, limit_w in enumerate(limits_w, start=1))
    return Desired("pdu-a", serial, 0, writes, False)


def run(task: PduTask, until: int) -> list[PduReport]:
    """Let the task run until so many reports are there."""

    async def life() -> list[PduReport]:
        running = asyncio.create_task(task.run())
        reports: list[PduReport] = []
        while len(reports) < until:
            await asyncio.sleep(0)
            reports += task.take_reports()
        task.stop()
        await running
        return reports

    return asyncio.run(asyncio.wait_for(life(), 5.0))


def task_on(driver: ShelfPdu, *, allowed: bool = True) -> PduTask:
    return PduTask("pdu-a", driver, driver.clock, poll_s=1.0, write_allowed=lambda _: allowed)


def test_only_the_newest_desired_state_is_written_and_its_report_tells_the_scan_behind_it() -> None:
    driver = ShelfPdu(ManualClock())
    task = task_on(driver)
    task.submit(desired(1, 100.0, 200.0), measured_ns=driver.clock.mono_ns() - 50_000_000)
    measured_ns = driver.clock.mono_ns() - 3_000_000
    task.submit(desired(2, 110.0), measured_ns=measured_ns)
    report = run(task, until=1)[0]
    assert driver.batches == [[LimitWrite(1, 110.0)]]
    assert report.measured_ns == measured_ns
    assert _write_ms(report) == {23.0}


def test_what_no_tick_asked_for_or_was_not_verified_has_no_duration() -> None:
    outcome = WriteOutcome(1, 100.0, 90.0, False, None, 5, None)
    assert _write_ms(PduReport("pdu-a", result=ApplyResult((outcome,), 2), measured_ns=0)) == set()
    verified = WriteOutcome(1, 100.0, 100.0, True, None, 5, 7)
    assert _write_ms(PduReport("pdu-a", result=ApplyResult((verified,), 2))) == set()
    assert _write_ms(PduReport("pdu-a", lost=True)) == set()


def test_the_kill_switch_at_the_door_loses_the_batch_and_says_so() -> None:
    driver = ShelfPdu(ManualClock())
    task = task_on(driver, allowed=False)
    task.submit(desired(1, 100.0), measured_ns=0)
    report = run(task, until=1)[0]
    assert report.lost
    assert driver.batches == []


def test_a_silent_pdu_is_unreachable_and_what_waits_for_it_is_not_sent() -> None:
    driver = ShelfPdu(ManualClock(), silent=True)
    task = task_on(driver)
    task.submit(desired(1, 100.0), measured_ns=0)
    report = run(task, until=1)[0]
    assert report.lost
    assert report.error == "no answer"
    assert not task.reachable
