"""From scans to the causes of the ladder, through the whole pipeline: what a rack's wiring and breakers can do wrong."""

from pathlib import Path

import numpy as np
import pytest
from config_examples import TWO_OUTLETS
from structlog.testing import capture_logs

import rpi_daemon.models.forecaster  # noqa: F401  (onnxruntime keeps descriptors: open before a test begins)
from rpi_daemon._fastpath import core
from rpi_daemon.assembly import build_pipeline
from rpi_daemon.clock import ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.features import BoardSetup
from rpi_daemon.guard import HealthFlags
from rpi_daemon.pipeline import Pipeline, Snapshot, TickInputs
from rpi_daemon.records import Mode, SafeState
from rpi_daemon.sensing import wiring
from rpi_daemon.service import log_overloads

CONFIG = (
    """\
[guard]
recover_s = 1.0
[forecast]
primary = "persistence"
"""
    + TWO_OUTLETS
)
MS = 1_000_000
GAIN = 0.01


class Rig:
    """A rack of two outlets on one breaker of 10 A and 2000 W, fed by hand: amps, amps, volts."""

    def __init__(self) -> None:
        self.config = parse_config(CONFIG, "t", base_dir=Path(), env={"KEY": "a long pass phrase"})
        self.rack = rack_model(self.config)
        self.ring = core.Ring(np.zeros(core.Ring.bytes_needed(3, 1000), np.uint8), n_channels=3, capacity=1000)
        wired = wiring(self.config.board[0], self.config.outlets())
        kernel = core.WindowKernel(3, outlets=wired.channels, gain=np.full(3, GAIN))
        board = BoardSetup(self.ring, kernel, np.array(wired.outlets))
        self.pipeline: Pipeline = build_pipeline(self.config, self.rack, [board], ManualClock())
        self.snapshot: Snapshot | None = None

    def run(self, amps: tuple[float, float], volts: float = 230.0, ticks: int = 2) -> Snapshot:
        counts = np.rint(np.array([*amps, volts]) / GAIN).astype(np.int32)
        for _ in range(ticks):
            head = self.ring.head
            for k in range(head, head + 100):
                self.ring.push(k, k * MS, k, 0, counts if k // 10 % 2 else -counts)  # it alternates, or it is stuck
            now_ns = (head + 100) * MS
            before = self.snapshot
            self.snapshot = self.pipeline.step(TickInputs(now_ns, now_ns, Mode.CLOSED_LOOP, HealthFlags()))
            log_overloads(self.rack, before, self.snapshot)
        assert self.snapshot is not None
        return self.snapshot


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    assert rig.run((1.0, 1.0), ticks=12).safe.state is SafeState.NORMAL
    return rig


@pytest.mark.parametrize(
    ("amps", "volts", "state", "causes"),
    [
        ((3.4, 3.4), 230.0, SafeState.NORMAL, ()),  # 1564 W of 1600
        ((3.6, 3.6), 230.0, SafeState.NORMAL, ("over_derating:breaker",)),  # 1656 W
        ((4.5, 4.5), 230.0, SafeState.HOLD, ("overload:breaker",)),  # 2070 W of 2000, though 9 A of 10
        ((6.0, 5.0), 185.0, SafeState.HOLD, ("overload:breaker",)),  # 11 A
        ((1.0, -1.0), 230.0, SafeState.HOLD, ("breaker_blind:breaker", "transformer_reversed:a/2")),
        ((1.0, 1.0), 0.0, SafeState.HOLD, ("voltage_lost:a/1", "voltage_lost:a/2")),
        ((6.0, -6.0), 230.0, SafeState.HOLD, ("breaker_blind:breaker", "overload:breaker", "transformer_reversed:a/2")),
    ],
)
def test_what_is_wrong_has_a_name(
    rig: Rig, amps: tuple[float, float], volts: float, state: SafeState, causes: tuple[str, ...]
) -> None:
    safe = rig.run(amps, volts).safe
    lasting = tuple(c for c in safe.causes if safe.seen_ns[c] == rig.ring.head * MS)  # not of the window on the way
    assert (safe.state, lasting) == (state, causes)


def test_an_overload_is_logged_once_an_episode(rig: Rig) -> None:
    with capture_logs() as lines:
        for _ in range(3):  # dips below its rating for less than the ladder waits
            rig.run((6.0, 6.0), ticks=4)
            rig.run((4.0, 4.0), ticks=4)
        assert [(item["event"], item["unit"]) for item in lines] == [("overload", "W"), ("overload", "A")]
        assert [item["draw"] for item in lines] == [pytest.approx(12.0 * 230.0, rel=0.3), pytest.approx(12.0, rel=0.3)]
        rig.run((1.0, 1.0), ticks=12)
        assert [item["event"] for item in lines[2:]] == ["overload.over"]
        rig.run((6.0, 6.0), ticks=3)
        assert [item["event"] for item in lines[3:]] == ["overload", "overload"]


def test_an_overload_lowers_no_alarm_threshold_by_itself(rig: Rig) -> None:
    rig.run((6.0, 6.0), ticks=5)
    assert rig.snapshot is not None
    assert rig.snapshot.safe.state is SafeState.HOLD
    assert not rig.snapshot.permitted.exceeded.any()
    assert np.all(
        rig.snapshot.allocation.envelope.used(rig.snapshot.allocation.grant_w)
        <= rig.snapshot.allocation.envelope.cap + 1e-6
    )


def test_outlets_whose_pdu_was_never_read_are_planned_with_what_they_need_and_get_no_slack(rig: Rig) -> None:
    snapshot = rig.run((1.0, 1.0))
    assert snapshot.permitted.rule == ("never read", "never read")
    np.testing.assert_allclose(snapshot.allocation.grant_w, snapshot.request.held_w)
