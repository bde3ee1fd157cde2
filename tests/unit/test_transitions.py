"""Every cause of the ladder through a real tick: status, log and trap name it when it comes, and tell when it is over."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_examples import TWO_OUTLETS
from structlog.testing import capture_logs

import rpi_daemon.models.forecaster  # noqa: F401  (onnxruntime keeps descriptors: open before a test begins)
from rpi_daemon._fastpath import core
from rpi_daemon.assembly import build_pipeline
from rpi_daemon.clock import ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.drivers.traps.mib import notification_oid, varbinds
from rpi_daemon.features import BoardSetup
from rpi_daemon.guard import CAUSES, HealthFlags
from rpi_daemon.pdu_task import Lease
from rpi_daemon.records import Notice, SafeState
from rpi_daemon.sensing import wiring
from rpi_daemon.service import Service
from rpi_daemon.status import status_document

CONFIG = """\
[rack]
id = "transitions"
[daemon]
mode = "closed_loop"
[guard]
recover_s = 1.0
[forecast]
primary = "persistence"
[history]
enabled = false
""" + TWO_OUTLETS.replace("/dev/ttyACM0", "/dev/null")
MS = 1_000_000
ABOUT = {  # what a cause about a part of the rack is about here
    "sensor_stale": "a/1", "sensor_stuck": "a/1", "voltage_lost": "a/1", "transformer_reversed": "a/1", "breaker_blind": "breaker",
    "overload": "breaker", "over_derating": "breaker", "pdu_unreachable": "a", "foreign_writer": "a",
    "calibration_expired": "b", "cap_unreachable": "n1", "cap_uncontrolled": "n1", "cap_not_held": "n1",
}  # fmt: skip
# causes that change no state are told by their alarm; a rating that is passed has its alarm from the readings themselves
BY_THE_READINGS = {"over_derating"}


class Rig(Service):
    """The daemon's own tick over a ring that is fed by hand; what is wrong is said by `flags`."""

    def __init__(self, folder: Path) -> None:
        config = parse_config(CONFIG, "t", base_dir=folder, env={"KEY": "a long pass phrase"})
        self.manual = ManualClock(0)
        super().__init__(config, clock=self.manual)
        rack = self.limits.rack
        self.ring = core.Ring(np.zeros(core.Ring.bytes_needed(3, 1000), np.uint8), n_channels=3, capacity=1000)
        wired = wiring(config.board[0], config.outlets())
        kernel = core.WindowKernel(3, outlets=wired.channels, gain=np.full(3, 0.01))
        board = BoardSetup(self.ring, kernel, np.array(wired.outlets))
        self.pipeline = build_pipeline(config, rack, [board], self.manual)
        self.flags = HealthFlags()
        self.pipeline._flags = lambda *_: self.flags  # type: ignore[method-assign]
        self.told: list[Notice] = []
        self.traps._tell = self._note  # type: ignore[assignment, method-assign]

    def _flags(self) -> HealthFlags:
        """No PDU is there that could be silent."""
        return HealthFlags()

    def _note(self, notices: Sequence[Notice], *, changed: bool = False) -> None:
        self.told += notices

    def run_ticks(self, ticks: int) -> None:
        for _ in range(ticks):
            head = self.ring.head
            for k in range(head, head + 100):
                self.ring.push(k, k * MS, k, 0, np.array([100 + k % 2, 101 - k % 2, 23_000 + k % 3], np.int32))
            self.manual.advance(0.1)
            self._tick(self.pipeline, self.manual.mono_ns())
            assert self.snapshot is not None
            self.traps.watch(self.limits.rack, self.snapshot, self._facts())

    def status(self) -> dict[str, Any]:
        return status_document(self)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.run_ticks(12)
    assert rig.status()["state"] == "NORMAL"
    rig.told.clear()
    return rig


def _flags(name: str) -> HealthFlags:
    return HealthFlags(**{name: frozenset([ABOUT[name]]) if name in ABOUT else True})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_a_transition_has_a_cause_a_trap_a_log_line_and_words(rig: Rig, name: str) -> None:
    state, latches = CAUSES[name]
    cause = f"{name}:{ABOUT[name]}" if name in ABOUT else name
    rig.flags = _flags(name)
    with capture_logs() as lines:
        rig.run_ticks(1)
        status = rig.status()
        rig.run_ticks(70)  # alarms about what may pass wait up to 5 s

    assert (status["state"], status["causes"]) == (state.name, [cause])
    assert status["latched"] == ([cause] if latches else [])
    (reason,) = status["reasons"]
    assert reason["cause"] == name
    assert ABOUT.get(name, "") in reason["text"]
    assert len(reason["do"]) > 10
    assert status["why"] == [cause.replace(":", " ")]

    (line,) = [line for line in lines if line["event"] == "state"]
    assert (line["state"], line["causes"]) == (state.name, status["why"])
    _known_to_the_mib(rig.told)
    of_state = [n for n in rig.told if n.kind == "state_change"]
    assert [n.text for n in of_state] == (
        [f"state {state.name}, was NORMAL ({status['why'][0]})"] if state is not SafeState.NORMAL else []
    )
    alarms = [n for n in rig.told if n.state == "raised"]
    if state is SafeState.NORMAL and name not in BY_THE_READINGS:
        assert alarms
    for alarm in alarms:
        assert reason["text"].startswith(alarm.text) or alarm.text.startswith(reason["text"])

    _over(rig, cause, latches)


def _over(rig: Rig, cause: str, latches: bool) -> None:
    """Back to NORMAL after health, and where it latches only after an acknowledgement."""
    raised = {n.alarm for n in rig.told if n.state == "raised"}
    rig.told.clear()
    rig.flags = HealthFlags()
    with capture_logs() as lines:
        if latches:
            rig.run_ticks(50)
            assert rig.status()["latched"] == [cause]
            rig.operator.acknowledged.add(cause)
        rig.run_ticks(120)
    assert rig.status()["causes"] == []
    assert rig.status()["reasons"] == []
    assert [line["state"] for line in lines if line["event"] == "state"] == ["NORMAL"]
    assert {n.alarm for n in rig.told if n.state == "cleared"} == raised
    _known_to_the_mib(rig.told)


def _known_to_the_mib(notices: Sequence[Notice]) -> None:
    for number, notice in enumerate(notices):
        assert notification_oid(notice, 32473).startswith("1.3.6.1.4.1.32473.")
        assert varbinds(notice, "rack", 32473, sequence=number, dropped=0)


def test_before_the_first_tick_it_says_that_it_starts(tmp_path: Path) -> None:
    status = Rig(tmp_path).status()
    assert (status["state"], status["causes"]) == ("STATIC_SAFE", ["starting"])
    assert status["reasons"][0]["text"] == "the daemon starts"


def test_a_stop_is_a_transition_like_any_other(rig: Rig) -> None:
    with capture_logs() as lines:
        rig._say_stopping()
    status = rig.status()
    assert (status["state"], status["causes"]) == ("STATIC_SAFE", ["stopping"])
    assert [(line["state"], line["causes"]) for line in lines if line["event"] == "state"] == [
        ("STATIC_SAFE", ["stopping"])
    ]
    assert [n.text for n in rig.told] == ["state STATIC_SAFE, was NORMAL (stopping)"]


def test_limits_that_stood_without_a_loop_for_a_lease_go_to_static_safe(rig: Rig) -> None:
    lease_s = rig.config.actuator.lease_s
    rig.limits.lease = Lease(lease_s, rig.manual.mono_ns())
    rig.manual.advance(lease_s)
    assert not Service._flags(rig).lease_expired
    rig.manual.advance(0.1)
    assert Service._flags(rig).lease_expired
    rig.limits.lease.renew(rig.manual.mono_ns())
    assert not Service._flags(rig).lease_expired


def test_there_is_a_case_for_every_flag() -> None:
    assert {f.name for f in fields(HealthFlags)} == set(CAUSES)
