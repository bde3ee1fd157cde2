"""The control loop itself: slow ticks starve nobody, and show."""

import asyncio
import contextlib
import gc
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from structlog.testing import capture_logs

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.drill import REASON
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.errors import DeviceError, NotRunningError, RpiError
from rpi_daemon.found import FoundCaps, FoundLimits
from rpi_daemon.heartbeats import Heartbeats
from rpi_daemon.pdu_task import Lease, PduTask
from rpi_daemon.pipeline import Pipeline
from rpi_daemon.records import CapReading, Decision, LimitKind, LimitState, LimitWrite, Mode, PduReading
from rpi_daemon.service import OVERRUN_TICKS, WIRE_S, Service, late_ticks
from rpi_daemon.standing import Standing

CONFIG = """
[rack]
id = "loop"

[daemon]
state_dir = "state"
runtime_dir = "run"

[[board]]
id = "board"
board_id = 1
port = "/dev/null"
channels = ["current:pdu/1"]

[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "127.0.0.1"
user = "u"
auth_key_file = "auth.key"
priv_key_file = "priv.key"

[[outlet]]
pdu = "pdu"
numbers = "1"
load = "load"
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 10.0
outlets = ["pdu/*"]
"""


class Ticking(Service):
    """A daemon without boards or PDUs whose ticks take as long as they are told to."""

    def __init__(self, folder: Path, tick_s: float, ticks: int) -> None:
        self.manual = ManualClock(NS_PER_S)
        for name in ("auth.key", "priv.key"):
            (folder / name).write_text("a secret of 16 characters\n")
            (folder / name).chmod(0o600)
        super().__init__(parse_config(CONFIG, "test", base_dir=folder), clock=self.manual)
        self.tick_s = tick_s
        self.left = ticks
        self.overruns: list[bool] = []

    def _tick(self, pipeline: Pipeline, now_ns: int) -> None:
        self.manual.advance(self.tick_s)
        self.overruns.append(self._flags().tick_overrun)
        self.left -= 1
        if self.left == 0:
            self._stopping.set()

    def _after_tick(self) -> None:
        """Nothing was measured."""


async def _run(daemon: Ticking) -> int:
    """Tick to the end; how many turns another task got meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.0)
            turns += 1

    task = asyncio.create_task(other())
    daemon._event_fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        await daemon._loop(cast(Pipeline, None), [task])
    finally:
        gc.enable()
        gc.unfreeze()
        os.close(daemon._event_fd)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return turns


def test_ticks_that_are_too_slow_let_others_run_and_hold_the_limits(tmp_path: Path) -> None:
    daemon = Ticking(tmp_path, tick_s=0.2, ticks=10)
    turns = asyncio.run(_run(daemon))
    assert turns >= 10 * 5  # an exchange with a PDU takes a few
    assert daemon.overruns == [False] * (OVERRUN_TICKS + 1) + [True] * (10 - OVERRUN_TICKS - 1)


@pytest.mark.parametrize("tick_s", [0.1, 0.149])
def test_ticks_that_miss_no_window_are_not_late(tmp_path: Path, tick_s: float) -> None:
    daemon = Ticking(tmp_path, tick_s, ticks=10)
    asyncio.run(_run(daemon))
    assert not any(daemon.overruns)


def test_what_is_made_up_for_in_a_burst_was_late_all_the_same() -> None:
    count, counts = 0, []
    for gap_ms in (100, 280, 5, 5, 280, 3, 280, 8, 280, 6, 100, 280):
        count = late_ticks(count, gap_ms * 1_000_000)
        counts.append(count)
    assert counts == [0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 0, 1]


class Device:
    """A PDU that answers until it hangs, without a word and without a timeout."""

    def __init__(self) -> None:
        self.hangs = False

    async def open(self) -> None: ...

    async def read(self) -> PduReading:
        if self.hangs:
            await asyncio.Event().wait()
        return PduReading(0, None, {}, {}, {}, {})


def test_systemd_hears_of_a_pdu_task_that_hangs(tmp_path: Path) -> None:
    async def look() -> None:
        daemon, device = Ticking(tmp_path, 0.1, 1), Device()
        task = PduTask(
            "pdu",
            cast(PduDriver, device),
            daemon.manual,
            poll_s=daemon.config.pdu[0].poll_s,
            forbidden=str,
            audit=daemon.audit,
        )
        daemon.limits.tasks["pdu"] = task
        running = asyncio.create_task(task.run())
        daemon.heartbeats = Heartbeats(lambda _: None)
        daemon._watch_loops({"pdu pdu": running})

        async def later(seconds: float) -> set[str]:
            daemon.manual.advance(seconds)
            task._wake.set()
            await asyncio.sleep(0.05)
            daemon._ticked_ns = daemon.manual.mono_ns()
            return set(daemon.heartbeats.look(daemon.manual.mono_ns(), round(seconds * NS_PER_S)).hangs)

        try:
            assert await later(0.0) == set()
            assert await later(1000.0) == set()
            device.hangs = True
            assert await later(2.0) == set()  # now it hangs, and might still be talking
            assert await later(WIRE_S) == set()
            assert await later(daemon.config.pdu[0].poll_s + 1.0) == {"pdu pdu"}
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(look())


def test_a_cap_decided_before_the_loop_stood_still_is_not_written(tmp_path: Path) -> None:
    """Its message falls due once the loop goes on: a controller may be asked twice."""
    daemon = Ticking(tmp_path, 0.0, 0)
    daemon.limits.mode = Mode.CLOSED_LOOP
    daemon.limits.found_caps = FoundCaps({"load": CapReading(0, None, None, False, ())})
    began_ns = daemon.manual.mono_ns()
    daemon.limits.lease = Lease(10.0, began_ns)
    assert daemon.limits._cap_forbidden("load", False, began_ns) is None
    daemon.manual.advance(3.0)
    daemon.limits.lease.renew(daemon.manual.mono_ns())
    why = "the control loop stood still: its next tick decides anew"
    assert daemon.limits._cap_forbidden("load", False, began_ns) == why
    assert daemon.limits._cap_forbidden("load", False, daemon.manual.mono_ns()) is None
    assert daemon.limits._cap_forbidden("load", True) is None


def test_a_cap_that_was_given_back_is_not_written_by_what_still_waits(tmp_path: Path) -> None:
    """A wish of the tick before, behind the reading that found the cap as it was."""
    daemon = Ticking(tmp_path, 0.0, 0)
    daemon.limits.mode = Mode.CLOSED_LOOP
    daemon.limits.found_caps = FoundCaps({"load": CapReading(0, None, None, False, ())})
    assert daemon.limits._cap_forbidden("load", False) is None
    daemon.limits.release(frozenset({"pdu/1"}))
    assert daemon.limits._cap_forbidden("load", False) == "it was given back"
    assert daemon.limits._cap_forbidden("load", True) is None


def test_a_message_that_falls_due_again_behind_a_hang_is_not_repeated(tmp_path: Path) -> None:
    """The tick that ends a hang decides anew, and comes before the repetition of what was decided before it."""
    daemon = Ticking(tmp_path, 0.0, 0)
    limits, clock = daemon.limits, daemon.manual
    limits.mode = Mode.CLOSED_LOOP
    limits.found = FoundLimits({"pdu": {1: LimitState(500.0, True, LimitKind.TRIP_OFF, (("1", 2, 500),))}})
    limits.lease = Lease(10.0, clock.mono_ns())

    def decided() -> LimitWrite:
        why = Decision(clock.mono_ns(), 0, 532.0, 324.0, "lower", "granted", 447.3, 1.2, 446.1, True)
        return LimitWrite(1, 324.0, why=why)

    before = decided()
    assert limits._forbidden("pdu", before) is None
    clock.advance(3.1)
    limits.lease.renew(clock.mono_ns())
    assert limits._forbidden("pdu", before) == "the control loop stood still: its next tick decides anew"
    assert limits._forbidden("pdu", decided()) is None


def test_systemd_hears_of_it_until_the_last_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may keep the end waiting for longer than the watchdog waits."""
    daemon = Ticking(tmp_path, 0.0, 0)
    pinging: list[bool] = []
    close = daemon.audit.close

    def closed() -> bool:
        pinging.append(daemon.pinger._thread.is_alive())
        return close()

    async def none(_: object) -> bool:
        raise DeviceError("no PDU answers")

    monkeypatch.setattr(daemon.audit, "close", closed)
    monkeypatch.setattr(daemon.limits, "open_pdus", none)
    with pytest.raises(DeviceError, match="no PDU answers"):
        asyncio.run(daemon.run())
    assert pinging == [True]
    assert not daemon.pinger._thread.is_alive()


def test_the_defect_that_ends_the_daemon_does_not_keep_static_safe_from_the_rack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever broke the tick may break again where the draws of now are worked out."""
    daemon, left = Ticking(tmp_path, 0.0, 0), []

    class Broken:
        def step(self, *_: object) -> None:
            raise ZeroDivisionError("the defect")

    async def static_safe(when: str) -> None:
        left.append((when, daemon.limits.known))

    daemon.pipeline = cast(Pipeline, SimpleNamespace(features=Broken()))
    monkeypatch.setattr(daemon.limits, "static_safe", static_safe)
    with capture_logs() as said:
        assert asyncio.run(daemon._leave())
    assert left == [("stop", None)]
    assert [line["error"] for line in said if line["event"] == "stop.defect"] == ["ZeroDivisionError('the defect')"]


@pytest.mark.parametrize("defect", [False, True])
def test_only_a_stop_that_was_asked_for_ends_in_good_order(
    defect: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What operators gave back is theirs over a crash, and a defect that ends the loop is one, STATIC_SAFE left or not."""
    daemon = Ticking(tmp_path, 0.0, 1)

    async def one_pdu(_: object) -> bool:
        daemon.limits.drivers["pdu"] = cast(PduDriver, Device())
        daemon.limits.tasks["pdu"] = daemon.limits._task(daemon.config.pdu[0])
        return False

    async def no_boards() -> list[object]:
        return []

    async def built(_: object) -> Pipeline:
        daemon.pipeline = cast(Pipeline, SimpleNamespace(capping=SimpleNamespace(static_safe=dict)))
        return daemon.pipeline

    def broken(*_: object) -> None:
        raise ZeroDivisionError("the defect")

    monkeypatch.setattr(daemon.limits, "open_pdus", one_pdu)
    monkeypatch.setattr(daemon, "_open_boards", no_boards)
    monkeypatch.setattr(daemon, "_built", built)
    if defect:
        monkeypatch.setattr(daemon, "_tick", broken)
    with pytest.raises(ZeroDivisionError) if defect else contextlib.nullcontext():
        asyncio.run(daemon.run())
    standing = Standing.read(daemon.state_dir)
    assert standing is not None
    assert standing.ended is not defect


def test_an_acknowledgement_releases_no_kill_switch(tmp_path: Path) -> None:
    """One that a full disk did not take holds in memory, until `resume`."""
    daemon = Ticking(tmp_path, 0.0, 1)
    daemon.limits.killed_in_memory = True
    asyncio.run(daemon.operator._acknowledge({}))
    assert daemon.limits.killed()
    asyncio.run(daemon.operator._resume({}))
    assert not daemon.limits.killed()


def test_a_drill_acknowledges_nothing(tmp_path: Path) -> None:
    """What latched while it had the kill switch engaged is for people to look at."""
    daemon = Ticking(tmp_path, 0.0, 1)
    daemon.state_dir.mkdir()
    daemon.limits.engage_kill_switch(REASON)

    async def latched(request: object) -> dict[str, object]:
        raise AssertionError(request)

    daemon.operator._acknowledge = latched  # type: ignore[method-assign, assignment]
    asyncio.run(daemon.operator._resume({"only": REASON}))
    assert not daemon.limits.killed()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_drill_releases_no_kill_switch_that_somebody_engages_meanwhile(on_disk: bool, tmp_path: Path) -> None:
    daemon = Ticking(tmp_path, 0.0, 1)
    if on_disk:
        daemon.state_dir.mkdir()
    else:
        daemon.state_dir.write_text("a disk that takes nothing")
    limits, resume = daemon.limits, daemon.operator._resume
    limits.engage_kill_switch(REASON)
    limits.engage_kill_switch("smoke in aisle 3")
    with pytest.raises(RpiError, match="smoke in aisle 3"):
        asyncio.run(resume({"only": REASON}))
    assert limits.killed()
    if on_disk:
        limits.engage_kill_switch(REASON)
        asyncio.run(resume({"only": REASON}))
        assert not limits.killed()


def test_a_kill_switch_that_the_disk_did_not_take_is_kept_once_it_takes_files_again(tmp_path: Path) -> None:
    daemon = Ticking(tmp_path, 0.0, 1)
    daemon.state_dir.write_text("a disk that takes nothing")
    daemon.limits.engage_kill_switch("smoke in aisle 3")
    daemon.limits.keep_kill_switch()
    assert daemon.limits.killed_in_memory
    daemon.state_dir.unlink()
    daemon.state_dir.mkdir()
    daemon.limits.keep_kill_switch()
    assert not daemon.limits.killed_in_memory
    assert (daemon.state_dir / "kill").read_text() == "smoke in aisle 3\n"
    assert daemon.limits.killed()


def test_a_stop_cuts_a_command_that_writes_short_and_lets_none_begin(tmp_path: Path) -> None:
    """A reload waits for the next tick, of which there is none any more."""
    operator = Ticking(tmp_path, 0.0, 1).operator

    async def write() -> None:
        async with operator.writing():
            await asyncio.Event().wait()

    async def scenario() -> list[object]:
        commands = [asyncio.create_task(write()) for _ in range(2)]
        await asyncio.sleep(0.0)
        await operator.close()
        return list(await asyncio.gather(*commands, return_exceptions=True))

    under_way, waiting = asyncio.run(scenario())
    assert isinstance(under_way, asyncio.CancelledError)
    assert isinstance(waiting, NotRunningError)
