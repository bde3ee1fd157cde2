"""One control tick, from windows to desired limits: the picture of DESIGN section 2 as text."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.allocator import AllocatorConfig, LowestRecent, allocate
from rpi_daemon.capping import NO_PLAN, Capping
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import Schedule
from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.features import Features
from rpi_daemon.guard import GuardConfig, HealthFlags, blind_constraints, held, ladder, loadings, permit, writable
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import (
    Allocation,
    BoolArray,
    CapPlan,
    CapReport,
    CapsInForce,
    Ceiling,
    Desired,
    FloatArray,
    Forecast,
    ForecastInput,
    Hint,
    HostReading,
    IntArray,
    LimitsInForce,
    Mode,
    PduReport,
    Permitted,
    Quality,
    RackModel,
    Readings,
    Request,
    Residual,
    SafeStatus,
)
from rpi_daemon.residual import ResidualMatcher
from rpi_daemon.telemetry import HostTelemetry

if TYPE_CHECKING:
    from rpi_daemon.models.mixture import Mixture  # imports onnxruntime: not before STATIC_SAFE is verified

BLIND_S = 5.0  # without any reading for this long the limits go to STATIC_SAFE; until then they only hold


@dataclass(frozen=True, slots=True)
class TickInputs:
    """Everything that reaches a tick besides the scans in the rings: recorded, it makes a run repeatable."""

    now_ns: int
    utc_ns: int
    mode: Mode
    flags: HealthFlags
    reports: tuple[PduReport, ...] = ()
    hints: tuple[Hint, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    acknowledged: tuple[str, ...] = ()
    released: frozenset[str] = frozenset()  # outlets given back to their owner: not ours to write
    cap_reports: tuple[CapReport, ...] = ()
    host_readings: tuple[HostReading, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything about one tick. Views read this and nothing else."""

    t_mono_ns: int
    t_utc_ns: int
    mode: Mode
    readings: Readings
    residual: Residual | None
    forecast: Forecast
    request: Request
    allocation: Allocation
    safe: SafeStatus
    permitted: Permitted
    in_force: LimitsInForce
    desired: tuple[Desired, ...]
    foreign: tuple[str, ...]  # outlets whose limit somebody else changed since the last tick
    foreign_caps: tuple[str, ...]  # loads whose server's cap somebody else changed
    caps: CapsInForce
    cap_plan: CapPlan
    weights: Mapping[str, FloatArray]  # expert -> [n], in the median of the draw in 5 s
    request_weights: Mapping[str, FloatArray]  # the same in the quantile that requests build on
    telemetry: FloatArray  # [n, 4] what the hosts say, in the order of TELEMETRY; NaN where not known


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of the stages that may change while they run."""

    corrector: CorrectorConfig
    allocator: AllocatorConfig
    guard: GuardConfig
    actuator: ActuatorConfig
    writes_per_day: IntArray  # [n]
    schedule: Sequence[Schedule]


class Pipeline:
    """Holds the stages and their memory. One caller: the control loop, or a replay."""

    def __init__(
        self,
        rack: RackModel,
        features: Features,
        forecaster: "Mixture",
        corrector: Corrector,
        actuator: Actuator,
        plans: PlannedWork,
        telemetry: HostTelemetry,
        safe: SafeStatus,
        *,
        allocator: AllocatorConfig,
        guard: GuardConfig,
        model_expected: bool = False,
    ) -> None:
        """`model_expected`: the configuration names a model, so that going without it is a fall-back and shown."""
        self.rack = rack
        self.features = features
        self.forecaster = forecaster
        self.actuator = actuator
        self.plans = plans
        self.telemetry = telemetry
        self.safe = safe
        self.forecast_input: ForecastInput | None = None  # what the forecaster was given last
        self.capping = Capping(rack, trip_margin_share=guard.trip_margin_share)
        self._corrector = corrector
        self._matcher = ResidualMatcher(rack.n)
        self._model_expected = model_expected
        self._allocator = allocator
        self._guard = guard
        self._lowest = LowestRecent(rack)
        self._seen_ns: int | None = None
        self._foreseen: tuple[Forecast, Request] | None = None
        self._opted_in = rack.opted_in
        self._released: frozenset[str] = frozenset()

    def configure(self, tuning: Tuning, rack: RackModel, opted_in: BoolArray, released: frozenset[str]) -> None:
        """Other settings, over the same outlets and loads, from the next tick on. What the stages learned stays.

        `rack` without, `opted_in` with the outlets that were given back: `released`.
        """
        self.rack, self._opted_in, self._released = rack, opted_in, released
        self._allocator, self._guard = tuning.allocator, tuning.guard
        self.features.configure(lowest_voltage=tuning.allocator.lowest_voltage, noise_w=tuning.corrector.meter_noise_w)
        self._corrector.configure(tuning.corrector, rack)
        self.actuator.configure(tuning.actuator, rack, tuning.writes_per_day)
        self.capping.configure(rack, trip_margin_share=tuning.guard.trip_margin_share)
        self.capping.release(rack, released)
        self.plans.configure(rack, tuning.schedule)

    def step(self, inputs: TickInputs) -> Snapshot:
        """scans and replies -> readings -> residual -> forecast -> request -> allocation -> caps -> guard -> limits."""
        now_ns = inputs.now_ns
        foreign = self._take_in(inputs)
        foreign_caps = tuple(r.load for r in inputs.cap_reports if self.capping.take(now_ns, r))
        in_force = self.actuator.limits(now_ns)
        readings = self.features.step(now_ns, inputs.utc_ns)
        caps = self.capping.standing(now_ns, readings, inputs.flags.cap_unreachable)
        telemetry = self.telemetry.columns(now_ns)
        residual, forecast, request = self._foresee(readings, telemetry, in_force, caps)
        self.safe = ladder(self.safe, now_ns, self._flags(readings, inputs, caps), inputs.acknowledged, self._guard)
        allocation = self._allocate(readings, request, in_force, caps, inputs.ceilings)
        cap_plan = self._cap(inputs, request, allocation, readings, in_force, caps)
        permitted = _where_it_arrives(
            permit(
                now_ns, inputs.mode, self.safe, self.rack, request, allocation, readings, in_force, self._guard,
                self.capping.outlet_bound_w(in_force),
            ),
            self.rack,
            inputs.flags.pdu_unreachable,
        )  # fmt: skip
        desired = self.actuator.step(now_ns, permitted, request, forecast, allocation.grant_w)
        return Snapshot(
            now_ns, inputs.utc_ns, inputs.mode, readings, residual, forecast, request, allocation, self.safe,
            permitted, in_force, desired, foreign, foreign_caps, caps, cap_plan,
            self.forecaster.weights, self.forecaster.request_weights, telemetry,
        )  # fmt: skip

    def _foresee(
        self, readings: Readings, telemetry: FloatArray, in_force: LimitsInForce, caps: CapsInForce
    ) -> tuple[Residual | None, Forecast, Request]:
        """One step of everything that learns from a window; a tick without a new one goes on with what it has."""
        if self._foreseen is not None and readings.t_mono_ns <= self._foreseen[0].t_mono_ns:
            return None, *self._foreseen
        residual = self._matcher.match(readings)
        self.forecast_input = self._forecast_input(readings, telemetry)
        forecast = self.forecaster.step(self.forecast_input)
        capped_w = self.capping.of_outlets(np.where(caps.ours, caps.cap_w, np.nan)) if caps.ours.any() else None
        request = self._corrector.step(forecast, residual, readings, in_force, capped_w)
        self._matcher.record(forecast, request.request_w)
        self._foreseen = forecast, request
        return residual, forecast, request

    def _cap(
        self,
        inputs: TickInputs,
        request: Request,
        allocation: Allocation,
        readings: Readings,
        in_force: LimitsInForce,
        caps: CapsInForce,
    ) -> CapPlan:
        if not self.rack.caps:
            return NO_PLAN
        return self.capping.step(
            inputs.now_ns, inputs.mode, request, allocation, readings, in_force, caps,
            frozen=held(self.rack, self.safe), blind="no_readings" in self.safe.causes,
        )  # fmt: skip

    def _take_in(self, inputs: TickInputs) -> tuple[str, ...]:
        """Hints to the plans, hosts' words, replies to the actuator's memory; returns outlets whose limit somebody else changed."""
        foreign: list[str] = []
        if inputs.released != self._released:
            self._released = inputs.released
            ours = np.array([name not in inputs.released for name in self.rack.outlet_ids])
            self.rack = replace(self.rack, opted_in=self._opted_in & ours)
            self.actuator.opt_in(self.rack.opted_in)
            self.capping.release(self.rack, inputs.released)
        for hint in inputs.hints:
            self.plans.hint(hint)
        self.telemetry.take(inputs.host_readings)
        for cause in inputs.acknowledged:
            name, _, pdu = cause.partition(":")
            if name == "model_poisoned":
                self.forecaster.trust()
            if name == "foreign_writer":
                self.actuator.forgive(pdu)  # else its last minute's changes would stop us again at once
        for report in inputs.reports:
            if report.reading is not None:
                self.features.observe(report.pdu, report.reading)
            if report.pdu not in self.rack.pdu_of:
                continue  # a meter: it takes no limits
            if report.reading is not None:
                if report.reading.rebooted:
                    self.actuator.forgive(report.pdu)
                foreign.extend(self.actuator.observe(report.pdu, report.reading))
            if report.result is not None:
                self.actuator.confirm(report.pdu, inputs.now_ns, report.result, report.asked_ns)
            if report.lost:
                self.actuator.lost(report.pdu, inputs.now_ns)
        return tuple(foreign)

    def _forecast_input(self, readings: Readings, telemetry: FloatArray) -> ForecastInput:
        known = np.isfinite(telemetry)
        return ForecastInput(
            t_mono_ns=readings.t_mono_ns,
            t_utc_s=readings.t_utc_ns / NS_PER_S,
            power_w=readings.power_w,
            peak_w=readings.peak_a * readings.voltage_v,
            step_w=readings.step_w,
            valid=readings.valid,
            rating_w=self.rack.rating_w,
            planned_w=self.plans.planned_w(readings.t_mono_ns, readings.t_utc_ns),
            telemetry=np.where(known, telemetry, 0.0),
            telemetry_mask=known.astype(np.float64),
            quality=readings.quality,
            interval_ticks=readings.interval_ticks,
        )

    def _allocate(
        self,
        readings: Readings,
        request: Request,
        in_force: LimitsInForce,
        caps: CapsInForce,
        ceilings: Sequence[Ceiling],
    ) -> Allocation:
        controlled = writable(self.rack, self.safe, in_force)
        enforced = np.array([kind.enforced for kind in in_force.kind])
        capped = least_w = None
        request_w = request.held_w
        if self.rack.caps:
            capped, least_w = self._able_to_give_way(caps)
            controlled |= capped[self.rack.load_of]
            enforced |= capped[self.rack.load_of]
            request_w = np.fmax(request_w, readings.power_w)  # what is drawn already counts, whatever was forecast
        power_factor, voltage_v = self._lowest.step(readings)
        return allocate(
            readings.t_mono_ns,
            request_w,
            self.rack,
            ceilings,
            power_factor,
            voltage_v,
            self._allocator,
            controlled=controlled,
            drawn_w=np.where(enforced, 0.0, readings.power_w),
            capped=capped,
            least_w=least_w,
        )

    def _able_to_give_way(self, caps: CapsInForce) -> tuple[BoolArray, FloatArray]:
        """Loads whose server throttles itself when we say so, and the lowest caps, [loads] each."""
        able, least_w = np.zeros(len(self.rack.loads), dtype=np.bool_), np.zeros(len(self.rack.loads))
        able[self.capping.loads] = caps.able
        least_w[self.capping.loads] = np.where(caps.able, caps.lowest_w, 0.0)
        return able, least_w

    def _loads_named(self, which: BoolArray) -> frozenset[str]:
        return frozenset(self.capping.names[k] for k in np.flatnonzero(which))

    def _flags(self, readings: Readings, inputs: TickInputs, caps: CapsInForce) -> HealthFlags:
        """The service's flags, and what the readings themselves say."""
        flags = inputs.flags
        carried = loadings(self.rack, readings)
        overload = frozenset(item.constraint for item in carried if item.overload)
        turned = readings.quality & Quality.REVERSED != 0
        return replace(
            flags,
            sensor_stale=flags.sensor_stale | self._named(~readings.valid & ~turned),
            sensor_stuck=self._named(readings.quality & int(Quality.STUCK) != 0),
            transformer_reversed=self._named(turned),
            voltage_lost=self._named(readings.quality & Quality.VOLTAGE_LOST != 0),
            breaker_blind=blind_constraints(self.rack, readings.valid),
            overload=overload,
            over_derating=frozenset(item.constraint for item in carried if item.over_derating) - overload,
            model_fallback=self._model_expected and self.forecaster.reason != "",
            model_poisoned=self.forecaster.poisoned != "",
            cap_uncontrolled=self._loads_named(caps.uncontrolled),
            cap_not_held=self._loads_named(caps.not_held),
            foreign_writer=self.actuator.foreign_writers(readings.t_mono_ns),
            no_readings=self._blind_s(inputs.now_ns, readings) > BLIND_S,
        )

    def _named(self, which: BoolArray) -> frozenset[str]:
        return frozenset(self.rack.outlet_ids[i] for i in np.flatnonzero(which))

    def _blind_s(self, now_ns: int, readings: Readings) -> float:
        if self._seen_ns is None or readings.valid.any():
            self._seen_ns = now_ns
        return (now_ns - self._seen_ns) / NS_PER_S


def _where_it_arrives(permitted: Permitted, rack: RackModel, unreachable: Collection[str]) -> Permitted:
    """Nothing for a PDU that does not answer: nobody would write it, and its limits are asked for anew once it is back."""
    if not unreachable:
        return permitted
    away = np.array([pdu in unreachable for pdu in rack.pdu_of])
    rule = tuple("pdu_unreachable" if gone else rule for gone, rule in zip(away, permitted.rule, strict=True))
    return replace(permitted, limit_w=np.where(away, np.nan, permitted.limit_w), rule=rule)


class DecisionDigest:
    """A hash over every decision: two runs decided the same if and only if it is equal."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, snapshot: Snapshot) -> None:
        """Take one tick: what was asked of whom, why, in which state."""
        for desired in snapshot.desired:
            for write in desired.limits:
                self._hash.update(
                    f"{snapshot.t_mono_ns} {snapshot.safe.state.name} {desired.pdu} {write.outlet} {write.limit_w:.3f}\n".encode()
                )
            for decision in desired.decisions:
                self._hash.update(
                    f"{decision.outlet} {decision.reason} {decision.rule} {decision.request_w:.3f}\n".encode()
                )

        for cap in snapshot.cap_plan.desired:
            self._hash.update(f"{snapshot.t_mono_ns} cap {cap.load} {cap.cap_w} {cap.reason} {cap.rule}\n".encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
