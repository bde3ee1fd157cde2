"""The pipeline as a whole: a tick without news learns nothing twice; what nobody would write is not decided."""

from typing import cast

import numpy as np
from rack_examples import constraint, make_rack, make_readings

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.allocator import AllocatorConfig
from rpi_daemon.clock import ManualClock
from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.features import Features
from rpi_daemon.guard import GuardConfig, HealthFlags, at_start
from rpi_daemon.models.mixture import Mixture
from rpi_daemon.pipeline import Pipeline, Snapshot, TickInputs
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import TICK_NS, LimitKind, LimitState, Mode, PduReading, PduReport, Readings
from rpi_daemon.telemetry import HostTelemetry

RACK = make_rack(2, [constraint("rack", [0, 1], 2, w=3000.0)], per_pdu=1)


class Shown:
    """Readings as they are put there."""

    def __init__(self) -> None:
        self.readings: Readings = make_readings(0, np.array([300.0, 300.0]))

    def observe(self, pdu: str, reading: PduReading) -> None:
        """The PDUs' own metering is not what this is about."""

    def step(self, now_ns: int, utc_ns: int) -> Readings:
        return self.readings


class Line:
    """A pipeline of two outlets, each on a PDU of its own whose limit stands at 200 W; one window a tick."""

    def __init__(self) -> None:
        self.shown = Shown()
        self.now_ns = 0
        self.pipeline = Pipeline(
            RACK,
            cast(Features, self.shown),
            Mixture(2, None, ManualClock()),
            Corrector(CorrectorConfig(), RACK),
            Actuator(ActuatorConfig(), RACK),
            PlannedWork(RACK, ()),
            HostTelemetry(RACK, {}),
            at_start(0),
            allocator=AllocatorConfig(),
            guard=GuardConfig(recover_s=0.5),
        )

    def tick(self, flags: HealthFlags = HealthFlags(), *, new: bool = True) -> Snapshot:  # noqa: B008  frozen
        self.now_ns += TICK_NS
        if new:
            self.shown.readings = make_readings(self.now_ns, np.array([300.0, 300.0]))
        return self.pipeline.step(
            TickInputs(
                self.now_ns, self.now_ns, Mode.CLOSED_LOOP, flags, tuple(self.polled(p) for p in ("pdu-0", "pdu-1"))
            )
        )

    def polled(self, pdu: str) -> PduReport:
        state = LimitState(200.0, True, LimitKind.ALARM)
        return PduReport(pdu, reading=PduReading(self.now_ns, None, {}, {}, {}, {1: state}))


def test_a_tick_without_a_new_window_learns_nothing_again() -> None:
    line = Line()
    for _ in range(60):
        before = line.tick()
    assert before.residual is not None
    steps = line.pipeline.forecaster.counts
    again = line.tick(new=False)
    assert again.residual is None
    assert again.forecast is before.forecast
    assert again.request is before.request
    assert again.t_mono_ns == before.t_mono_ns + TICK_NS
    assert line.pipeline.forecaster.counts == steps
    after = line.tick()
    assert after.residual is not None
    assert after.request.t_mono_ns == line.now_ns


def test_nothing_is_decided_for_a_pdu_that_does_not_answer() -> None:
    line = Line()
    away = HealthFlags(pdu_unreachable=frozenset({"pdu-0"}))
    for _ in range(20):
        snapshot = line.tick(away)
        assert {desired.pdu for desired in snapshot.desired} <= {"pdu-1"}
        assert snapshot.permitted.rule[0] == "pdu_unreachable"
    decided = [line.tick().desired for _ in range(20)]
    back = [desired for tick in decided for desired in tick if desired.pdu == "pdu-0"]
    assert back
    assert back[-1].limits[0].limit_w > 300.0
