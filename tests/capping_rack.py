"""A rack model in virtual time: servers that throttle themselves, PDUs, and the real pipeline in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
from rack_examples import constraint, load, make_forecast, make_rack, make_readings

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.allocator import AllocatorConfig
from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.features import Features
from rpi_daemon.guard import GuardConfig, HealthFlags, at_start
from rpi_daemon.models.mixture import Mixture
from rpi_daemon.pipeline import DecisionDigest, Pipeline, Snapshot, TickInputs
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import (
    TICK_NS,
    ApplyResult,
    CapDesired,
    CapIdentity,
    CapOutcome,
    CapReading,
    CapReport,
    FloatArray,
    Forecast,
    ForecastInput,
    LimitKind,
    LimitState,
    LimitWrite,
    Load,
    Mode,
    PduReading,
    PduReport,
    RackModel,
    Readings,
    ServerCap,
    WriteOutcome,
)
from rpi_daemon.telemetry import HostTelemetry

QUICK = ActuatorConfig(lower_hold_s=1.0, deadband=0.01, writes_per_day=100_000, lease_s=3.0)
NO_CAP_W = float("inf")
POLL_TICKS = 10


@dataclass
class ModelServer:
    """A server and its management controller: takes the newest cap after `latency` ticks, follows it within `lag` ticks."""

    name: str
    wants_w: float
    latency: int = 2
    lag: int = 3
    lowest_w: float = 50.0
    cap_w: float = NO_CAP_W
    silent: bool = False
    ignores: bool = False  # says yes and keeps its cap
    disobeys: bool = False  # takes the cap and draws on
    waiting: CapDesired | None = None
    flying: CapDesired | None = None
    left: int = 0
    drawn_w: float = 0.0
    written: list[float] = field(default_factory=list)
    met: bool = False

    def submit(self, desired: CapDesired) -> None:
        self.waiting = desired

    def tick(self, now_ns: int) -> list[CapReport]:
        """What its task reports in this tick."""
        if self.silent:
            had = self.waiting is not None or self.flying is not None
            self.waiting = self.flying = None
            return [CapReport(self.name, lost=True)] if had else []
        reports: list[CapReport] = []
        if not self.met:
            self.met = True
            identity = CapIdentity("sim", "sim", "1", "1", "environment_metrics", self.lowest_w, None, None)
            reports += [CapReport(self.name, identity=identity), CapReport(self.name, found=self.reading(now_ns))]
            reports += [CapReport(self.name, reading=self.reading(now_ns))]
        if self.flying is None and self.waiting is not None:
            self.flying, self.waiting, self.left = self.waiting, None, self.latency
        if self.flying is not None:
            self.left -= 1
            if self.left < 0:
                reports.append(CapReport(self.name, outcome=self._take(self.flying, now_ns)))
                self.flying = None
        elif now_ns // TICK_NS % POLL_TICKS == 0:
            reports.append(CapReport(self.name, reading=self.reading(now_ns)))
        return reports

    def _take(self, desired: CapDesired, now_ns: int) -> CapOutcome:
        asked_w = NO_CAP_W if desired.cap_w is None else desired.cap_w
        if not self.ignores:
            self.cap_w = asked_w
            self.written.append(asked_w)
        stands_w = None if self.cap_w == NO_CAP_W else self.cap_w
        return CapOutcome(desired.cap_w, stands_w, self.cap_w == asked_w, None, now_ns, now_ns)

    def reading(self, now_ns: int) -> CapReading:
        none = self.cap_w == NO_CAP_W
        return CapReading(now_ns, None, None if none else self.cap_w, not none)

    def draw(self) -> float:
        """Follows its cap, and what it wants, within `lag` ticks."""
        to_w = self.wants_w if self.disobeys else min(self.wants_w, self.cap_w)
        if to_w < self.drawn_w and self.lag > 0:
            self.drawn_w = max(to_w, self.drawn_w - max(50.0, (self.drawn_w - to_w) / self.lag))
        else:
            self.drawn_w = to_w
        return self.drawn_w


@dataclass
class ModelPdu:
    """Takes the newest batch after `latency` ticks."""

    pdu: str
    kind: LimitKind
    limit_w: dict[int, float]
    latency: int = 1
    waiting: tuple[LimitWrite, ...] = ()
    flying: tuple[LimitWrite, ...] = ()
    left: int = 0

    def tick(self, now_ns: int) -> list[PduReport]:
        if not self.flying and self.waiting:
            self.flying, self.waiting, self.left = self.waiting, (), self.latency
        if self.flying:
            self.left -= 1
            if self.left >= 0:
                return []
            self.limit_w |= {write.outlet: write.limit_w for write in self.flying}
            outcomes = tuple(
                WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, now_ns, now_ns) for w in self.flying
            )
            self.flying = ()
            return [PduReport(self.pdu, result=ApplyResult(outcomes, 1))]
        if now_ns // TICK_NS % 5:
            return []
        states = {n: LimitState(w, True, self.kind) for n, w in self.limit_w.items()}
        return [PduReport(self.pdu, reading=PduReading(now_ns, None, {}, {}, {}, states))]


class Prophet:
    """A forecaster that knows the running maximum of the next 5 s."""

    reason = ""
    poisoned = ""
    weights: Mapping[str, FloatArray] = {}
    request_weights: Mapping[str, FloatArray] = {}

    def __init__(self, n: int) -> None:
        self.coming_w = np.zeros(n)

    def step(self, given: ForecastInput) -> Forecast:
        return make_forecast(given.t_mono_ns, np.fmax(self.coming_w, given.power_w))


class Shown:
    """Readings as they are put there."""

    def __init__(self, n: int) -> None:
        self.readings: Readings = make_readings(0, np.zeros(n))

    def observe(self, pdu: str, reading: PduReading) -> None:
        """No outlet goes by a PDU's own meter here."""

    def step(self, now_ns: int, utc_ns: int) -> Readings:
        return self.readings


class Rack:
    """Servers, PDUs and the pipeline; `tick` is 100 ms. Server k is load k; one with two outlets draws half from each."""

    def __init__(
        self,
        rack: RackModel,
        servers: Sequence[ModelServer],
        *,
        kind: LimitKind = LimitKind.ALARM,
        found_w: float = 400.0,
        corrector: CorrectorConfig | None = None,
        pdu_latency: int = 1,
    ) -> None:
        self.rack = rack
        self.servers = {server.name: server for server in servers}
        self.prophet = Prophet(rack.n)
        self.shown = Shown(rack.n)
        self.pdus = {
            pdu: ModelPdu(
                pdu,
                kind,
                {n: found_w for n, p in zip(rack.number_of, rack.pdu_of, strict=True) if p == pdu},
                pdu_latency,
            )
            for pdu in dict.fromkeys(rack.pdu_of)
        }
        quick = CorrectorConfig(hold_s=1.0, alarm_learn_s=0.0, alarm_hold_s=2.0)
        self.pipeline = Pipeline(
            rack,
            cast(Features, self.shown),
            cast(Mixture, self.prophet),
            Corrector(corrector or quick, rack),
            Actuator(QUICK, rack),
            PlannedWork(rack, ()),
            HostTelemetry(rack, {}),
            at_start(0),
            allocator=AllocatorConfig(),
            guard=GuardConfig(recover_s=0.5),
        )
        self.digest = DecisionDigest()
        self.now_ns = 0
        self.desired: list[CapDesired] = []
        self.inputs: list[TickInputs] = []

    def tick(
        self,
        *,
        mode: Mode = Mode.CLOSED_LOOP,
        blind: bool = False,
        unreachable: Sequence[str] = (),
        released: frozenset[str] = frozenset(),
    ) -> Snapshot:
        self.now_ns += TICK_NS
        power_w = self.draw()
        if not blind:
            self.shown.readings = make_readings(self.now_ns, power_w)
        else:
            self.shown.readings = make_readings(self.now_ns, np.full(self.rack.n, np.nan))
        inputs = TickInputs(
            self.now_ns,
            self.now_ns,
            mode,
            HealthFlags(cap_unreachable=frozenset(unreachable)),
            tuple(r for pdu in self.pdus.values() for r in pdu.tick(self.now_ns)),
            released=released,
            cap_reports=tuple(r for server in self.servers.values() for r in server.tick(self.now_ns)),
        )
        self.inputs.append(inputs)
        snapshot = self.pipeline.step(inputs)
        for desired in snapshot.desired:
            self.pdus[desired.pdu].waiting = desired.limits
        for cap in snapshot.cap_plan.desired:
            self.servers[cap.load].submit(cap)
            self.desired.append(cap)
        self.digest.add(snapshot)
        return snapshot

    def draw(self) -> FloatArray:
        """What every outlet draws now, [n]."""
        power_w = np.zeros(self.rack.n)
        for item in self.rack.loads:
            drawn_w = self.servers[item.name].draw()
            power_w[list(item.outlets)] = drawn_w / len(item.outlets)
        return power_w

    def limit_w(self, outlet: int) -> float:
        """What stands on the PDU."""
        return self.pdus[self.rack.pdu_of[outlet]].limit_w[self.rack.number_of[outlet]]

    def total_w(self) -> float:
        return sum(server.drawn_w for server in self.servers.values())


def capped_rack(
    loads: Sequence[Load], rating_w: float, *, per_pdu: int = 24, lowest_w: float | None = None, static_w: float = 100.0
) -> RackModel:
    """One constraint over every outlet, a cap on every load."""
    n = 1 + max(i for item in loads for i in item.outlets)
    rack = make_rack(
        n, [constraint("rack", range(n), n, w=rating_w)], loads=loads, static_safe_w=static_w, per_pdu=per_pdu
    )
    return replace(rack, caps=tuple(ServerCap(k, lowest_w, True) for k in range(len(loads))))


def simple(n: int, rating_w: float, *, wants_w: float = 200.0, demand_w: float = 600.0, **options: float) -> Rack:
    """n servers on one outlet each, alarms only."""
    loads = [load(i, demand_w=demand_w) for i in range(n)]
    servers = [ModelServer(item.name, wants_w) for item in loads]
    return Rack(capped_rack(loads, rating_w), servers, **options)  # type: ignore[arg-type]


def random_rack(
    seed: int, kind: LimitKind = LimitKind.ALARM, found_w: float = 400.0
) -> tuple[Rack, np.random.Generator]:
    """Five loads, one with two outlets, tiers and floors; slow and fast controllers."""
    rng = np.random.default_rng(seed)
    loads = [load(0, 5, demand_w=700.0), load(1, tier=0, demand_w=700.0), load(2, tier=2, demand_w=700.0)]
    loads += [load(3, demand_w=700.0), load(4, floor_w=80.0, demand_w=700.0)]
    servers = [
        ModelServer(item.name, 150.0, int(rng.integers(0, 8)), int(rng.integers(1, 10)), float(rng.uniform(40, 120)))
        for item in loads
    ]
    rack = capped_rack(loads, 2000.0, per_pdu=3)  # 1600 W after derating
    return Rack(rack, servers, kind=kind, found_w=found_w, pdu_latency=int(rng.integers(0, 4))), rng


def wander(rack: Rack, rng: np.random.Generator) -> None:
    for server in rack.servers.values():
        if rng.random() < 0.03:
            server.wants_w = float(rng.uniform(60.0, 650.0))
    for k, item in enumerate(rack.rack.loads):
        rack.prophet.coming_w[list(item.outlets)] = rack.servers[item.name].wants_w / len(item.outlets)
        assert rack.rack.caps[k].load == k
