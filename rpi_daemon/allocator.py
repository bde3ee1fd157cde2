"""Share the rack's power: requests in, grants out, every rating kept. Pure functions of their arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    Allocation,
    BoolArray,
    Ceiling,
    Envelope,
    FloatArray,
    IntArray,
    Quality,
    RackModel,
    Readings,
)

LOWEST_OVER_S = 600.0  # V and power factor are the lowest of this span
LEAST_LOAD = 0.05  # of the rating; below it the power factor says nothing about the load
SCARCE_W = 0.5  # a grant this little below what was wanted is rounding
ROUNDING = 1e-9  # relative; a row this close to its rating is full


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """What is handed out beyond the requests, and what is assumed where nothing is measured."""

    slack_share: float = 0.5  # of each constraint's unused room; the rest stays free, so that a raise need not wait
    assumed_power_factor: float = 0.9
    lowest_power_factor: float = 0.5  # a lower reading is that of an idle supply, not of the load that the limit is for
    lowest_voltage: float = 0.8  # part of nominal; below it a phase is lost, not low

    def __post_init__(self) -> None:
        for name in ("slack_share", "assumed_power_factor", "lowest_power_factor", "lowest_voltage"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0 or (value == 0.0 and name != "slack_share"):
                raise ConfigError(f"allocator {name} is {value}; it is a part of the whole: choose 0 to 1")


class LowestRecent:
    """The lowest power factor and voltage of each outlet over one to two spans."""

    def __init__(self, rack: RackModel, span_s: float = LOWEST_OVER_S) -> None:
        self._span_ns = round(span_s * NS_PER_S)
        self._least_va = LEAST_LOAD * rack.rating_w
        self._lowest = np.full((2, 2, rack.n), np.nan)  # newest and last span; power factor and voltage
        self._span: int | None = None

    def step(self, readings: Readings) -> tuple[FloatArray, FloatArray]:
        """Power factor and V, [n] each; NaN is not known. Where power is apparent already, the factor is 1."""
        span = readings.t_mono_ns // self._span_ns
        if self._span is not None and span != self._span:
            self._lowest[1] = self._lowest[0] if span == self._span + 1 else np.nan
            self._lowest[0] = np.nan
        self._span = span
        apparent = (readings.quality & Quality.NO_VOLTAGE) != 0
        telling = readings.valid & (apparent | (readings.apparent_va >= self._least_va))
        factor = np.where(telling, np.where(apparent, 1.0, readings.power_factor), np.nan)
        voltage_v = np.where(readings.valid & ~apparent, readings.voltage_v, np.nan)
        self._lowest[0] = np.fmin(self._lowest[0], [factor, voltage_v])
        lowest = np.fmin(self._lowest[0], self._lowest[1])
        return lowest[0], lowest[1]


def envelope(
    rack: RackModel,
    ceilings: Sequence[Ceiling],
    power_factor: FloatArray,
    voltage_v: FloatArray,
    config: AllocatorConfig,
) -> Envelope:
    """Every rating x derate and every ceiling as one row over the outlets' watts.

    `power_factor` and `voltage_v` [n] are the lowest recent ones; NaN is not known. Watts become VA by the power factor
    and amps by V x PF; amps of outlets on one conductor are added arithmetically: never less than the phasor sum.
    Raises ConfigError for a ceiling on an unknown constraint and for a load with no outlet or more than two.
    """
    factor = np.clip(
        np.where(np.isfinite(power_factor), power_factor, config.assumed_power_factor), config.lowest_power_factor, 1.0
    )
    volts = np.maximum(
        np.where(np.isfinite(voltage_v), voltage_v, rack.nominal_v), config.lowest_voltage * rack.nominal_v
    )
    rows: list[str] = []
    coefficient: list[FloatArray] = []
    cap: list[float] = []
    for c in rack.constraints:
        rated = (("W", c.rating_w, 1.0), ("VA", c.rating_va, 1.0 / factor), ("A", c.rating_a, 1.0 / (factor * volts)))
        for unit, rating, per_watt in rated:
            if rating is not None:
                rows.append(f"{c.name} ({unit})")
                coefficient.append(c.share * per_watt)
                cap.append(rating * c.derate)
    share = {c.name: c.share for c in rack.constraints}
    one = np.eye(rack.n)
    share |= {name: one[i] for i, name in enumerate(rack.outlet_ids)}
    for ceiling in ceilings:
        if ceiling.constraint not in share:
            raise ConfigError(f"ceiling from {ceiling.source} is on {ceiling.constraint!r}; known are {sorted(share)}")
        rows.append(f"{ceiling.constraint} (ceiling: {ceiling.source})")
        coefficient.append(share[ceiling.constraint])
        cap.append(ceiling.limit_w)
    first, second = _outlets_of_loads(rack)
    return Envelope(
        rows=tuple(rows),
        coefficient=np.array(coefficient).reshape(len(rows), rack.n),
        cap=np.array(cap),
        first=first,
        second=second,
    )


def allocate(
    t_mono_ns: int,
    request_w: FloatArray,
    rack: RackModel,
    ceilings: Sequence[Ceiling],
    power_factor: FloatArray,
    voltage_v: FloatArray,
    config: AllocatorConfig,
    controlled: BoolArray | None = None,
    drawn_w: FloatArray | None = None,
    capped: BoolArray | None = None,
    least_w: FloatArray | None = None,
) -> Allocation:
    """Grant every request if all fit, then hand out slack; else by priority.

    Order: loads we do not control (their draw comes whatever we say); floors, tier by tier; head-room between floor and
    request, tier by tier. Within one tier every load gets the same fraction of its own head-room, until a constraint is
    full; the loads on it stay there and the others go on (progressive filling). Slack goes the same way between grant
    and the load's demand, from `slack_share` of what is left. A load's request is the sum over its outlets; each outlet
    is granted the whole load, and each constraint counts the load once (see Envelope).

    `controlled` [n]: outlets whose limits we write (all, if not given). `drawn_w` [n]: what is drawn now where a limit
    does not hold it back (alarm kinds; 0 or NaN elsewhere): within its tier that is the load's floor, for a threshold
    below the draw is an alarm and saves nothing.

    `capped` [loads]: loads whose server throttles itself when we say so. Where there are any, what the others draw comes
    first, whatever their tier: it flows in any case, and these can give way. What a capped load would draw is not known, so
    the head-room that counts is that up to its demand: each is granted its request, or that fraction if it is less. Who
    asks for less than its fraction is not capped at all, and growing requests of capped loads change nobody's grant.
    `least_w` [loads]: no cap goes below this.
    """
    env = envelope(rack, ceilings, power_factor, voltage_v, config)
    request_w = np.where(np.isfinite(request_w), request_w, rack.static_safe_w)
    floor_w = np.array([load.floor_w for load in rack.loads])
    tier = np.array([load.tier for load in rack.loads])
    top_w = np.minimum(
        np.array([load.demand_w for load in rack.loads]),
        np.minimum(rack.rating_w[env.first], rack.rating_w[env.second]),
    )
    asked_w = _per_load(env, request_w)
    if least_w is not None:
        floor_w = np.maximum(floor_w, np.minimum(least_w, asked_w))
    floor_w = np.minimum(floor_w, top_w)
    want_w = np.clip(asked_w, floor_w, top_w)
    flowing_w = np.zeros_like(want_w) if drawn_w is None else _per_load(env, np.nan_to_num(drawn_w))
    ours = np.ones(len(rack.loads), dtype=np.bool_)
    if controlled is not None:
        ours = controlled[env.first] & controlled[env.second]

    fill = _Fill(np.maximum(env.coefficient[:, env.first], env.coefficient[:, env.second]), env.cap)
    fill.towards(want_w, ~ours)
    if capped is not None and capped.any():
        fill.towards(np.minimum(flowing_w, want_w), ours & ~capped)
    tiers = np.unique(tier)
    for level in tiers:
        fill.towards(floor_w, ours & (tier == level))
    for level in tiers:
        fill.towards(np.minimum(flowing_w, want_w), ours & (tier == level))
        if capped is None or not capped.any():
            fill.towards(want_w, ours & (tier == level))
        else:
            fill.share(floor_w, want_w, ours & (tier == level), np.maximum(top_w - floor_w, 1.0))
    short_w = np.maximum(0.0, asked_w - fill.grant_w)
    scarce = want_w - fill.grant_w > SCARCE_W
    bound = fill.bound.copy()
    fill.keep_back(1.0 - config.slack_share)
    fill.towards(top_w, ours)

    load_of = rack.load_of
    grant_w = fill.grant_w[load_of]
    part = np.divide(request_w, asked_w[load_of], out=np.ones(rack.n), where=asked_w[load_of] > 0.0)
    usage_w, ceiling_w = _bars(rack, env, ceilings, grant_w)
    return Allocation(
        t_mono_ns=t_mono_ns,
        grant_w=grant_w,
        shortfall_w=short_w[load_of] * part,
        scarce=scarce[load_of],
        rule=tuple(_rule(env, bound[i], asked_w[i] > top_w[i]) for i in load_of),
        usage_w=usage_w,
        ceiling_w=ceiling_w,
        envelope=env,
    )


class _Fill:
    """Progressive filling: raise all members by the same fraction of their way, freeze those that meet a full row."""

    def __init__(self, coefficient: FloatArray, cap: FloatArray) -> None:
        self._coefficient = coefficient  # [m, loads]
        self._on = coefficient > 0.0
        self._room = cap.astype(np.float64, copy=True)
        self._full = ROUNDING * np.maximum(np.abs(cap), 1.0)
        self.grant_w = np.zeros(coefficient.shape[1])
        self.bound = np.full(coefficient.shape[1], -1, dtype=np.int64)  # row that stopped the load first

    def keep_back(self, part: float) -> None:
        """Take this part of what is left out of play."""
        self._room = np.maximum(0.0, self._room) * (1.0 - part)

    def share(self, from_w: FloatArray, goal_w: FloatArray, members: BoolArray, pace_w: FloatArray) -> None:
        """As `towards`, but each member rises at its own pace from its floor, and stops at its goal, until a row is full.

        One that has more already waits until the others have come so far.
        """
        way_w = np.where(members, np.maximum(0.0, goal_w - self.grant_w), 0.0)
        if np.all(self._coefficient @ way_w <= self._room):
            self.towards(goal_w, members)
            return
        while np.any(way_w > 0.0):
            going = way_w > 0.0
            come = np.where(going, (self.grant_w - from_w) / pace_w, np.inf)
            least = come.min()
            level = come <= least + ROUNDING
            speed_w = np.where(going & level, pace_w, 0.0)
            slope = self._coefficient @ speed_w
            reach = self._reach(slope)
            arrive = float((way_w[level] / pace_w[level]).min())
            part = min(arrive, float(np.min(come[~level], initial=np.inf) - least), float(reach.min(initial=np.inf)))
            self.grant_w += part * speed_w
            self._room -= part * slope
            way_w = np.where(way_w - part * speed_w > ROUNDING * pace_w, way_w - part * speed_w, 0.0)
            self._stop(way_w, slope, reach <= part)

    def _reach(self, slope: FloatArray) -> FloatArray:
        """How far each row lets its members go at this slope."""
        reach = np.full(len(slope), np.inf)
        with np.errstate(over="ignore"):  # next to nothing is wanted of the row: it is no bound
            np.divide(np.maximum(0.0, self._room), slope, out=reach, where=slope > 0.0)
        return reach

    def _stop(self, way_w: FloatArray, slope: FloatArray, reached: BoolArray) -> None:
        """Members on rows that are full now go no further."""
        full = (slope > 0.0) & (reached | (self._room <= self._full))
        stopped = (way_w > 0.0) & self._on[full].any(axis=0)
        for row in np.flatnonzero(full):
            self.bound[stopped & self._on[row] & (self.bound < 0)] = row
        way_w[stopped] = 0.0

    def towards(self, goal_w: FloatArray, members: BoolArray) -> None:
        way_w = np.where(members, np.maximum(0.0, goal_w - self.grant_w), 0.0)
        left = 1.0
        while np.any(way_w > 0.0):
            slope = self._coefficient @ way_w
            reach = self._reach(slope)
            part = min(left, float(reach.min(initial=np.inf)))
            self.grant_w += part * way_w
            self._room -= part * slope
            left -= part
            if left <= 0.0:
                return
            self._stop(way_w, slope, reach <= part)


def _per_load(env: Envelope, watts: FloatArray) -> FloatArray:
    """Sum over each load's outlets, [loads]."""
    total: FloatArray = watts[env.first] + np.where(env.first != env.second, watts[env.second], 0.0)
    return total


def _outlets_of_loads(rack: RackModel) -> tuple[IntArray, IntArray]:
    for load in rack.loads:
        if not 1 <= len(load.outlets) <= 2:
            raise ConfigError(f"load {load.name} has {len(load.outlets)} outlets; give it one or two")
    first = np.array([load.outlets[0] for load in rack.loads], dtype=np.int64)
    second = np.array([load.outlets[-1] for load in rack.loads], dtype=np.int64)
    return first, second


def _rule(env: Envelope, bound: int, beyond: bool) -> str:
    if bound >= 0:
        return env.rows[bound]
    return "demand or rating of the load" if beyond else "fits"


def _bars(
    rack: RackModel, env: Envelope, ceilings: Sequence[Ceiling], grant_w: FloatArray
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Per constraint: watts granted and watts allowed (its tightest row, at the mean watts per unit of its outlets)."""
    usage_w: dict[str, float] = {}
    ceiling_w: dict[str, float] = {}
    row = 0
    for c in rack.constraints:
        amount = c.share * grant_w
        usage_w[c.name] = float(np.maximum(amount[env.first], amount[env.second]).sum())
        allowed = [x.limit_w for x in ceilings if x.constraint == c.name]
        for _ in range(sum(rating is not None for rating in (c.rating_w, c.rating_va, c.rating_a))):
            per_watt = float(env.coefficient[row].sum())
            if per_watt > 0.0:
                allowed.append(float(env.cap[row] * c.share.sum() / per_watt))
            row += 1
        ceiling_w[c.name] = min(allowed, default=float("inf"))
    return usage_w, ceiling_w
