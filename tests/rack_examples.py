"""Racks, readings, forecasts and limits for the tests of the stages."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import OutletRow
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import (
    Constraint,
    FloatArray,
    Forecast,
    LimitKind,
    LimitsInForce,
    Load,
    Mode,
    RackModel,
    Readings,
    Request,
    SafeState,
    SafeStatus,
)

VOLTAGE_V = 230.0
# a rack of one outlet, for tests of what measures it
ONE_ROW = OutletRow(
    id="pdu/1", pdu="pdu", number=1, load="x", phases=("L1",), rating_w=2000.0, static_safe_w=500.0,
    closed_loop=False, meter="pdu/1", group=0,
)  # fmt: skip
ONE_RACK = RackModel(
    rack="r", outlet_ids=("pdu/1",), pdu_of=("pdu",), number_of=(1,), load_of=np.zeros(1, np.int64),
    rating_w=np.array([2000.0]), static_safe_w=np.array([500.0]), nominal_v=np.array([230.0]),
    opted_in=np.zeros(1, np.bool_), loads=(), constraints=(),
)  # fmt: skip


def constraint(
    name: str,
    outlets: Iterable[int],
    n: int,
    *,
    kind: str = "breaker",
    derate: float = 0.8,
    w: float | None = None,
    va: float | None = None,
    a: float | None = None,
) -> Constraint:
    share = np.zeros(n)
    share[list(outlets)] = 1.0
    return Constraint(name, kind, w, va, a, derate, share)


def make_rack(
    n: int,
    constraints: Sequence[Constraint] = (),
    *,
    loads: Sequence[Load] | None = None,
    rating_w: float = 2000.0,
    static_safe_w: float = 200.0,
    opted_in: Sequence[bool] | None = None,
    per_pdu: int = 24,
) -> RackModel:
    loads = [load(i) for i in range(n)] if loads is None else loads
    load_of = np.zeros(n, dtype=np.int64)
    for index, item in enumerate(loads):
        load_of[list(item.outlets)] = index
    return RackModel(
        rack="rack-1",
        outlet_ids=tuple(f"pdu-{i // per_pdu}/{i % per_pdu + 1}" for i in range(n)),
        pdu_of=tuple(f"pdu-{i // per_pdu}" for i in range(n)),
        number_of=tuple(i % per_pdu + 1 for i in range(n)),
        load_of=load_of,
        rating_w=np.full(n, rating_w),
        static_safe_w=np.full(n, static_safe_w),
        nominal_v=np.full(n, VOLTAGE_V),
        opted_in=np.ones(n, dtype=np.bool_) if opted_in is None else np.array(opted_in, dtype=np.bool_),
        loads=tuple(loads),
        constraints=tuple(constraints),
    )


def load(*outlets: int, tier: int = 1, floor_w: float = 0.0, demand_w: float = 1000.0) -> Load:
    return Load(f"load-{outlets[0]}", outlets, tier, floor_w, demand_w, sheddable=False, critical=False)


def make_readings(t_ns: int, power_w: FloatArray, *, quality: int = 0) -> Readings:
    """Unity power factor at 230 V; a NaN power is an invalid reading."""
    n = len(power_w)
    valid = np.isfinite(power_w)
    nothing = np.full(n, np.nan)
    return Readings(
        t_mono_ns=t_ns,
        t_utc_ns=t_ns,
        power_w=power_w,
        rms_a=power_w / VOLTAGE_V,
        apparent_va=power_w,
        power_factor=np.ones(n),
        peak_a=nothing,
        crest=nothing,
        min_a=nothing,
        max_a=nothing,
        step_w=nothing,
        voltage_v=np.full(n, VOLTAGE_V),
        count=np.full(n, 100),
        missing=np.zeros(n, dtype=np.int64),
        quality=np.full(n, quality),
        valid=valid,
    )


def make_forecast(t_ns: int, highest_w: FloatArray) -> Forecast:
    """The same number for every quantile and horizon."""
    w = np.broadcast_to(highest_w[:, None, None], (len(highest_w), 5, 3))
    return Forecast(t_ns, w, w, ("test",) * len(highest_w))


def make_limits(
    limit_w: FloatArray,
    *,
    kind: LimitKind | Sequence[LimitKind] = LimitKind.ALARM,
    open_w: FloatArray | None = None,
    uncontrolled: Sequence[bool] | None = None,
    step_w: FloatArray | None = None,
    volts: FloatArray | None = None,
    disabled: Sequence[bool] | None = None,
    last_w: FloatArray | None = None,
) -> LimitsInForce:
    n = len(limit_w)
    return LimitsInForce(
        limit_w=limit_w,
        verified_ns=np.ones(n, dtype=np.int64),
        kind=(kind,) * n if isinstance(kind, LimitKind) else tuple(kind),
        open_w=np.full(n, np.nan) if open_w is None else open_w,
        open_low_w=np.full(n, np.nan) if open_w is None else np.fmin(open_w, limit_w),
        pending=np.zeros(n, dtype=np.bool_),
        uncontrolled=np.zeros(n, dtype=np.bool_) if uncontrolled is None else np.array(uncontrolled, dtype=np.bool_),
        step_w=np.ones(n) if step_w is None else step_w,
        volts=np.full(n, np.nan) if volts is None else volts,
        disabled=np.zeros(n, dtype=np.bool_) if disabled is None else np.array(disabled, dtype=np.bool_),
        last_w=np.full(n, np.nan) if last_w is None else last_w,
    )


def make_request(t_ns: int, request_w: FloatArray, alarm_w: FloatArray | None = None) -> Request:
    n = len(request_w)
    threshold_w = request_w if alarm_w is None else alarm_w
    return Request(t_ns, request_w, np.zeros(n), np.zeros(n, dtype=np.bool_), threshold_w, request_w)


def watts(n: int, most: float = 1500.0) -> st.SearchStrategy[FloatArray]:
    """[n] whole watts."""
    return st.lists(st.integers(0, int(most)), min_size=n, max_size=n).map(lambda x: np.array(x, dtype=np.float64))


@st.composite
def racks(draw: st.DrawFn, *, dual: bool = True, most: int = 8) -> RackModel:
    """Overlapping constraints in W, VA and A; loads with one or two outlets in up to three tiers."""
    n = draw(st.integers(1, most))
    loads: list[Load] = []
    i = 0
    while i < n:
        two = dual and i + 1 < n and draw(st.booleans())
        outlets = (i, i + 1) if two else (i,)
        demand_w = float(draw(st.integers(1, 2500)))
        loads.append(
            load(*outlets, tier=draw(st.integers(0, 2)), floor_w=float(draw(st.integers(0, 300))), demand_w=demand_w)
        )
        i += len(outlets)
    constraints = []
    for k in range(draw(st.integers(0, 4))):
        members = sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))
        rating = float(draw(st.integers(1, 600 * n)))
        unit = draw(st.sampled_from(["w", "va", "a"]))
        w, va, a = (rating if unit == x else None for x in ("w", "va", "a"))
        constraints.append(constraint(f"c{k}", members, n, w=w, va=va, a=None if a is None else a / VOLTAGE_V))
    opted_in = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return make_rack(n, constraints, loads=loads, opted_in=opted_in, static_safe_w=float(draw(st.integers(20, 600))))


def make_snapshot(
    rack: RackModel, power_w: Sequence[float], forecast: Forecast | None = None, **changes: Any
) -> Snapshot:
    """A tick in which each outlet draws, requests and is forecast to draw this; limits of 700 W."""
    power, n = np.array(power_w, dtype=np.float64), rack.n
    readings = make_readings(NS_PER_S, power)
    request = make_request(NS_PER_S, np.nan_to_num(power))
    allocation = allocate(NS_PER_S, request.request_w, rack, (), np.ones(n), np.full(n, VOLTAGE_V), AllocatorConfig())
    fields: dict[str, Any] = {
        "t_mono_ns": NS_PER_S,
        "t_utc_ns": NS_PER_S,
        "mode": Mode.CLOSED_LOOP,
        "readings": readings,
        "residual": None,
        "forecast": forecast or make_forecast(NS_PER_S, power),
        "request": request,
        "allocation": allocation,
        "safe": SafeStatus(SafeState.NORMAL, (), (), 0),
        "permitted": None,
        "in_force": make_limits(np.full(n, 700.0)),
        "desired": (),
        "foreign": (),
        "foreign_caps": (),
        "caps": None,
        "cap_plan": None,
        "weights": {},
        "request_weights": {},
        "telemetry": np.full((n, 4), np.nan),
    }
    return Snapshot(**(fields | changes))
