"""Server caps: which servers must throttle themselves, to how much, and what became of it."""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, fields

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    Allocation,
    BoolArray,
    CapDesired,
    CapIdentity,
    CapOutcome,
    CapPlan,
    CapReading,
    CapReport,
    CapsInForce,
    FloatArray,
    IntArray,
    LimitKind,
    LimitsInForce,
    Mode,
    RackModel,
    Readings,
    Request,
)

DAY_NS = 86_400 * NS_PER_S
NEVER_NS = -(1 << 62)
CUTS = (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT)
SAME_W = 1.0  # caps are whole watts: a read-back this near is the same cap
NO_CAP_W = math.inf
NO_PLAN = CapPlan(np.zeros(0), ())


@dataclass(frozen=True, slots=True)
class CappingConfig:
    """When caps fall, rise and go. Shares are of the load's demand."""

    deadband: float = 0.02  # a smaller change is not worth a write; lowering: at most one a second
    hold_s: float = 5.0  # a cap stays this long below what is granted before it rises
    release_per_s: float = 0.1  # it rises by at most this share per second
    off_hold_s: float = 20.0  # nothing was scarce for so long, and the cap is above the request: it is taken off
    every_s: float = 1.0  # between two raises, and between two small lowerings
    writes_per_day: int = 2000  # per server; beyond it no cap is raised in steps. Lowering and taking off are exempt
    lease_s: float = 30.0  # a cap without an answer is forgotten after this: the next poll tells what became of it
    retry_s: float = 1.0
    attempts: int = 3  # then the server counts as uncontrolled ...
    uncontrolled_s: float = 60.0  # ... for this long
    foreign_changes: int = 3  # so many by somebody else ...
    foreign_window_s: float = 60.0  # ... within this time make it uncontrolled too
    margin_w: float = 5.0  # the draw has followed a cap when it is not above it by more than this ...
    margin_share: float = 0.03  # ... and this part of it
    assumed_settle_s: float = 3.0  # from a verified cap to a draw that has followed, until it is measured
    obeyed_s: float = 10.0  # a server that did not keep its cap is trusted again after this time below it

    def __post_init__(self) -> None:
        for f in fields(self):
            if not getattr(self, f.name) >= 0.0:
                raise ConfigError(f"capping {f.name} is {getattr(self, f.name)}; choose 0 or more")


class Capping:
    """Remembers what each server's cap is, and says what to ask next. Called from the loop only.

    The loop: `take` as cap tasks report, `standing` for the stages before, `step` once a tick.
    """

    def __init__(
        self, rack: RackModel, config: CappingConfig = CappingConfig(), *, trip_margin_share: float = 0.05
    ) -> None:
        caps, loads = rack.caps, rack.loads
        m = len(caps)
        self.loads: IntArray = np.array([cap.load for cap in caps], dtype=np.int64)
        self.names = tuple(loads[cap.load].name for cap in caps)
        self._config = config
        self._place = {name: k for k, name in enumerate(self.names)}
        self._outlets = tuple(loads[cap.load].outlets for cap in caps)
        self._first = np.array([outlets[0] for outlets in self._outlets], dtype=np.int64)
        self._of_outlet = np.full(rack.n, -1, dtype=np.int64)  # which cap is behind each outlet
        for k, outlets in enumerate(self._outlets):
            self._of_outlet[list(outlets)] = k
        self._opted_in = np.array([cap.opted_in for cap in caps], dtype=np.bool_)
        self._told_least_w, self._told_highest_w = np.zeros(m), np.full(m, math.inf)  # by the servers themselves
        self._released = np.zeros(m, dtype=np.bool_)  # given back to its owner
        self.configure(rack, trip_margin_share=trip_margin_share)
        self._found_w = np.full(m, NO_CAP_W)

        self._cap_w = np.full(m, np.nan)
        self._old_w = np.full(m, NO_CAP_W)  # what counted before the newest lowering
        self._asked_w = np.full(m, np.nan)
        self._open_w = np.full(m, np.nan)  # largest that the server may still take
        self._asked_ns = np.full(m, NEVER_NS, dtype=np.int64)
        self._verified_ns = np.full(m, NEVER_NS, dtype=np.int64)
        self._pending = np.zeros(m, dtype=np.bool_)
        self._doubtful = np.zeros(m, dtype=np.bool_)
        self._retry_ns = np.full(m, NEVER_NS, dtype=np.int64)
        self._failures = np.zeros(m, dtype=np.int64)
        self._uncontrolled_until_ns = np.full(m, NEVER_NS, dtype=np.int64)
        self._foreign: list[deque[int]] = [deque() for _ in range(m)]
        self.owners: dict[
            str, CapReading
        ] = {}  # caps that owners set while none of ours stood: to be kept as found ones
        self._wanted = np.zeros(m, dtype=np.bool_)  # a cap is needed and none holds yet
        self._followed = np.ones(m, dtype=np.bool_)  # the draw has followed the cap that stands
        self._measuring = np.zeros(m, dtype=np.bool_)  # it was above that cap when it was asked for
        self._over_ns = np.full(m, NEVER_NS, dtype=np.int64)  # since when it draws more than the cap
        self._below_ns = np.full(m, NEVER_NS, dtype=np.int64)
        self._not_held = np.zeros(m, dtype=np.bool_)
        self._settle_s = np.full(m, np.nan)  # decision to followed
        self._follow_s = np.full(m, np.nan)  # verified to followed
        self._enough_ns = np.full(m, NEVER_NS, dtype=np.int64)  # since when more is granted than the cap lets through
        self._ample_ns = np.full(m, NEVER_NS, dtype=np.int64)  # since when nothing is scarce, the cap above the request
        self._counted: deque[tuple[int, int]] = deque()
        self._used = np.zeros(m, dtype=np.int64)
        self._nothing = _nothing() if not caps else None

    def configure(self, rack: RackModel, *, trip_margin_share: float) -> None:
        """Another word on the same loads, outlets and servers; what is known of the caps stays."""
        caps, loads, m = rack.caps, rack.loads, len(rack.caps)
        self._rack = rack
        rated_w = [min(rack.rating_w[i] for i in outlets) for outlets in self._outlets]
        self._top_w = np.minimum([loads[cap.load].demand_w for cap in caps], rated_w).reshape(m)
        self._static_w = np.array([min(rack.static_safe_w[i] for i in outlets) for outlets in self._outlets])
        self._trip_margin_w = trip_margin_share * rack.rating_w
        least_w = [max(SAME_W, cap.lowest_w or 0.0, loads[cap.load].floor_w) for cap in caps]
        self._asked_least_w = np.ceil(least_w).reshape(m)
        self._bound()

    def _bound(self) -> None:
        self._least_w = np.fmax(self._asked_least_w, self._told_least_w)
        self._highest_w = np.fmax(self._least_w, self._told_highest_w)

    # -- what the servers say

    def take(self, now_ns: int, report: CapReport) -> bool:
        """One report of a server's task; True if somebody else changed its cap."""
        k = self._place[report.load]
        if report.identity is not None:
            self._meet(k, report.identity)
        if report.found is not None:
            self._found_w[k] = _cap_of(report.found)
        if report.settle_s is not None:
            self._settle_s[k] = self._follow_s[k] = report.settle_s
        changed = report.reading is not None and self._observe(k, report.reading)
        if report.outcome is not None:
            self._confirm(k, now_ns, report.outcome)
        if report.lost:
            self._pending[k] = False
            self._retry_ns[k] = now_ns + round(self._config.retry_s * NS_PER_S)
        return changed

    def _meet(self, k: int, identity: CapIdentity) -> None:
        if identity.lowest_w is not None:
            self._told_least_w[k] = math.ceil(identity.lowest_w)
        if identity.highest_w is not None:
            self._told_highest_w[k] = math.floor(identity.highest_w)
        self._bound()

    def _observe(self, k: int, reading: CapReading) -> bool:
        """A poll. Nobody is blamed for what stands after a write of ours that was not verified."""
        now_w, before_w = _cap_of(reading), float(self._cap_w[k])
        if self._pending[k]:
            return False
        ours = self._doubtful[k] or not math.isnan(self._open_w[k]) or math.isnan(before_w)
        moved = not _same(now_w, before_w)
        self._open_w[k] = math.nan
        self._doubtful[k] = False
        if math.isnan(before_w) or moved:
            self._stands(k, now_w, reading.t_mono_ns)
        if ours or not moved or not self._controlled()[k]:
            return False
        asked_s = (reading.t_mono_ns - self._asked_ns[k]) / NS_PER_S
        late = asked_s < self._config.uncontrolled_s and _same(now_w, float(self._asked_w[k]))  # a success of ours
        if before_w >= self._found_w[k] - SAME_W and not late and not math.isnan(now_w):
            self._found_w[k] = now_w  # none of ours stood: its owner thought anew
            self.owners[self.names[k]] = reading
        changes = self._foreign[k]
        changes.append(reading.t_mono_ns)
        while reading.t_mono_ns - changes[0] > round(self._config.foreign_window_s * NS_PER_S):
            changes.popleft()
        if len(changes) >= self._config.foreign_changes:
            changes.clear()
            self._uncontrolled_until_ns[k] = reading.t_mono_ns + round(self._config.uncontrolled_s * NS_PER_S)
        return True

    def _confirm(self, k: int, now_ns: int, outcome: CapOutcome) -> None:
        """The end of one write. The read-back decides."""
        config = self._config
        if outcome.t_sent_ns:
            self._counted.append((outcome.t_sent_ns, k))
            self._used[k] += 1
        newest = _watts(outcome.asked_w) == self._asked_w[k]
        self._pending[k] &= not newest
        self._doubtful[k] = not outcome.verified
        if outcome.verified or outcome.read_back_w is not None:
            self._open_w[k] = self._asked_w[k] if self._pending[k] else math.nan
            self._stands(k, _watts(outcome.read_back_w), outcome.t_verified_ns or now_ns)
        if outcome.verified:
            self._failures[k] = 0
            return
        self._failures[k] += 1
        self._retry_ns[k] = now_ns + round(config.retry_s * NS_PER_S)
        if self._failures[k] >= config.attempts:
            self._failures[k] = 0
            self._uncontrolled_until_ns[k] = now_ns + round(config.uncontrolled_s * NS_PER_S)

    def _stands(self, k: int, cap_w: float, t_ns: int) -> None:
        """From now on this cap stands; a lower one counts once the draw has followed."""
        before_w = float(self._cap_w[k])
        if not math.isnan(before_w) and cap_w < before_w:
            self._old_w[k] = before_w if self._followed[k] else max(before_w, self._old_w[k])
            self._followed[k] = False
        self._cap_w[k] = cap_w
        self._verified_ns[k] = t_ns

    # -- what stands

    def standing(self, now_ns: int, readings: Readings, unreachable: Collection[str] = ()) -> CapsInForce:
        """What we know of the caps now, with how the draws answer to them."""
        if self._nothing is not None:
            return self._nothing
        self._pending &= now_ns - self._asked_ns <= round(self._config.lease_s * NS_PER_S)
        self._follow(now_ns, readings)
        uncontrolled = self._uncontrolled_until_ns > now_ns
        away = np.array([name in unreachable for name in self.names], dtype=np.bool_)
        known = ~np.isnan(self._cap_w)
        return CapsInForce(
            cap_w=self._cap_w.copy(),
            asked_w=self._asked_w.copy(),
            pending=self._pending.copy(),
            may_draw_w=self.may_draw_w(),
            able=self._controlled() & known & ~uncontrolled & ~away & ~self._not_held,
            ours=self._ours() & ~self._not_held,
            followed=self._followed.copy(),
            reachable=~away,
            uncontrolled=uncontrolled,
            not_held=self._not_held.copy(),
            lowest_w=self._least_w.copy(),
            settle_s=self._settle_s.copy(),
        )

    def static_safe(self) -> dict[str, float]:
        """What is left behind at stop, per load whose cap is ours and known: STATIC_SAFE, where what stands is higher.

        A raise that is under way, or whose end nobody took in any more, counts as one that stands.
        """
        to_w = np.clip(self._static_w, self._least_w, self._highest_w)
        higher = self._controlled() & (np.fmax(self._cap_w, self._open_w) > to_w + SAME_W)
        return {self.names[k]: float(np.floor(to_w[k])) for k in np.flatnonzero(higher)}

    def release(self, rack: RackModel, outlets: Collection[str]) -> None:
        """Outlets given back to their owner; with all outlets of a load its cap is its owner's too."""
        self._rack, ids = rack, rack.outlet_ids
        self._released = np.array([all(ids[i] in outlets for i in mine) for mine in self._outlets], dtype=np.bool_)

    def may_draw_w(self) -> FloatArray:
        """What each server may still draw, [m]; infinite without a cap."""
        return np.where(self._not_held, NO_CAP_W, self._let_through_w())

    def _let_through_w(self) -> FloatArray:
        """As `may_draw_w`, of a server that keeps its cap."""
        stands_w = np.where(self._followed, self._cap_w, np.fmax(self._cap_w, self._old_w))
        through_w: FloatArray = np.fmax(np.where(np.isnan(stands_w), NO_CAP_W, stands_w), self._open_w)
        return through_w

    def writes_used(self, now_ns: int) -> IntArray:
        """Caps written in the last 24 h, [m]."""
        while self._counted and now_ns - self._counted[0][0] >= DAY_NS:
            self._used[self._counted.popleft()[1]] -= 1
        return self._used.copy()

    def of_outlets(self, per_cap: FloatArray) -> FloatArray:
        """A value per cap as one per outlet of its load, [n]; NaN without a cap."""
        found: FloatArray = np.append(per_cap, np.nan)[self._of_outlet]  # without a cap the place is -1: the last
        return found

    def outlet_bound_w(self, in_force: LimitsInForce) -> FloatArray | None:
        """Below this an outlet's limit may not go, [n]: what the cap still lets through, infinite until a wanted cap holds.

        NaN where no cap is in play. An alarm waits only for a cap that is on its way down.
        """
        if not self.names:
            return None
        may_w = self._let_through_w()
        falling = self._wanted | ~self._followed | (self._pending & (self._asked_w < self._cap_w))
        falls = self.of_outlets(np.where(self._controlled() & falling & ~self._not_held, may_w, np.nan))
        stands = self.of_outlets(np.where(self._controlled() & np.isfinite(may_w), may_w, np.nan))
        cuts = np.array([kind in CUTS for kind in in_force.kind])
        return np.where(cuts, np.fmax(falls, stands), falls)

    def _controlled(self) -> BoolArray:
        return self._opted_in & ~self._released

    def _ours(self) -> BoolArray:
        """A cap of ours stands: lower than the found one."""
        return self._controlled() & (self._cap_w < self._found_w - SAME_W)

    def _drawn_w(self, readings: Readings) -> FloatArray:
        """What each load draws, [m]; NaN where one of its outlets has no reading."""
        return self._per_load(readings.power_w)

    def _per_load(self, watts: FloatArray) -> FloatArray:
        total: FloatArray = np.bincount(self._rack.load_of, weights=watts).astype(np.float64)
        return total[self.loads]

    def _follow(self, now_ns: int, readings: Readings) -> None:
        """Has the draw followed, how long did it take, and does it stay there?"""
        config = self._config
        drawn_w = self._drawn_w(readings)
        known = np.isfinite(drawn_w)
        falling = self._pending & (self._asked_w < self._cap_w)
        within = self._within(drawn_w, self._cap_w)
        # a controller that takes for ever to say no is as bad as one that does not act
        over = known & ~self._within(drawn_w, np.where(falling, self._asked_w, self._cap_w)) & ~np.isnan(self._cap_w)
        follow_s = np.where(np.isnan(self._follow_s), config.assumed_settle_s, self._follow_s)
        waiting = ~self._followed & within & (readings.t_mono_ns > self._verified_ns)
        # a draw that was above has shown that it follows; one that was below may rise until the server acts on its cap
        settled = waiting & (self._measuring | (now_ns - self._verified_ns >= follow_s * NS_PER_S))
        for k in np.flatnonzero(settled & self._measuring):
            self._measure(int(k), readings.t_mono_ns)
        self._followed |= settled
        self._over_ns[known & ~over] = NEVER_NS
        self._over_ns[over & (self._over_ns == NEVER_NS)] = now_ns
        keeps = known & ~over
        self._below_ns[~keeps] = NEVER_NS
        self._below_ns[keeps & (self._below_ns == NEVER_NS)] = now_ns
        patience_s = 1.0 + 2.0 * np.where(np.isnan(self._settle_s), config.assumed_settle_s, self._settle_s)
        late = (self._ours() | falling) & over & (now_ns - self._over_ns > patience_s * NS_PER_S)
        obeys = keeps & (now_ns - self._below_ns >= round(config.obeyed_s * NS_PER_S))
        self._not_held = (self._not_held | late) & ~obeys

    def _within(self, drawn_w: FloatArray, cap_w: FloatArray) -> BoolArray:
        """Whether these loads keep these caps; not where either is unknown."""
        with np.errstate(invalid="ignore"):
            keeps: BoolArray = drawn_w <= cap_w * (1.0 + self._config.margin_share) + self._config.margin_w
        return keeps

    def _measure(self, k: int, t_ns: int) -> None:
        """One settle time. A longer one counts at once, shorter ones little by little."""
        self._measuring[k] = False
        settle_s = (t_ns - self._asked_ns[k]) / NS_PER_S
        follow_s = max(0.0, (t_ns - self._verified_ns[k]) / NS_PER_S)
        for kept_s, seconds in ((self._settle_s, settle_s), (self._follow_s, follow_s)):
            kept_s[k] = seconds if math.isnan(kept_s[k]) else max(seconds, 0.8 * kept_s[k] + 0.2 * seconds)

    # -- what to ask for

    def step(
        self,
        now_ns: int,
        mode: Mode,
        request: Request,
        allocation: Allocation,
        readings: Readings,
        in_force: LimitsInForce,
        caps: CapsInForce,
        *,
        frozen: BoolArray,
        blind: bool,
    ) -> CapPlan:
        """What the caps should be, and the servers whose cap changes now.

        A load that is granted less than it asks for is capped at its grant, at once.
        `frozen` [n]: outlets on which nothing may rise. `blind`: no readings; then caps fall to STATIC_SAFE, and stay.
        """
        if self._nothing is not None:
            return NO_PLAN
        grant_w = allocation.grant_w[self._first]
        request_w = self._per_load(request.request_w)
        needed = allocation.scarce[self._first] | blind
        room = self._outlets_let_through(in_force)
        target_w = self._static_w if blind else np.minimum(grant_w - room.margin_w, room.cut_w)
        target_w = np.clip(target_w, self._least_w, self._highest_w)
        now_w = np.where(self._pending, self._asked_w, self._cap_w)
        below = needed & (target_w < now_w)
        self._wanted = below & caps.able

        ready = self._controlled() & caps.reachable & ~caps.uncontrolled & (self._retry_ns <= now_ns)
        ready &= mode is Mode.CLOSED_LOOP
        lower_w = self._lowered(now_ns, target_w, now_w, below)
        raise_w = self._raised(now_ns, target_w, request_w, needed, allocation, readings, room, frozen)
        drawn_w = self._drawn_w(readings)
        asked = []
        for k in np.flatnonzero(ready & ~(np.isnan(lower_w) & np.isnan(raise_w))):
            falls = not math.isnan(lower_w[k])
            to_w = float(lower_w[k] if falls else raise_w[k])
            from_w = float(self._cap_w[k])
            self._ask(int(k), now_ns, to_w, drawn_w[k])
            asked.append(
                CapDesired(
                    load=self.names[k],
                    t_mono_ns=now_ns,
                    cap_w=None if math.isinf(to_w) else to_w,
                    from_w=None if math.isinf(from_w) else from_w,
                    reason=("static_safe" if blind else "lower")
                    if falls
                    else ("release" if to_w == self._found_w[k] else "raise"),
                    rule=allocation.rule[self._first[k]],
                    request_w=float(request_w[k]),
                    grant_w=float(grant_w[k]),
                )
            )
        rules = self._rules(caps, allocation, needed, target_w > grant_w, blind)
        return CapPlan(np.where(below, target_w, np.nan), rules, tuple(asked))

    def _lowered(self, now_ns: int, target_w: FloatArray, now_w: FloatArray, below: BoolArray) -> FloatArray:
        """New caps below what stands or is on its way; NaN: none."""
        config = self._config
        by_w = now_w - target_w
        often = now_ns - self._asked_ns < round(config.every_s * NS_PER_S)
        with np.errstate(invalid="ignore"):
            worth = (by_w >= self._deadband_w()) | ((by_w >= SAME_W) & ~often)
        return np.where(below & worth, np.floor(target_w), np.nan)

    def _raised(
        self,
        now_ns: int,
        target_w: FloatArray,
        request_w: FloatArray,
        needed: BoolArray,
        allocation: Allocation,
        readings: Readings,
        room: "_Room",
        frozen: BoolArray,
    ) -> FloatArray:
        """New caps above those that stand: a step of the ramp, or the found cap again; NaN: none."""
        config = self._config
        stands = self._ours()
        enough = stands & (target_w - self._cap_w >= self._deadband_w())
        ample = stands & ~needed & (request_w <= self._cap_w)
        for since_ns, so in ((self._enough_ns, enough), (self._ample_ns, ample)):
            since_ns[~so] = NEVER_NS
            since_ns[so & (since_ns == NEVER_NS)] = now_ns
        hold_ns = np.fmax(config.hold_s, self._settle_s) * NS_PER_S
        still = np.array([any(frozen[i] for i in mine) for mine in self._outlets], dtype=np.bool_)
        may = stands & ~still & ~self._pending & ~room.underway
        may &= now_ns - self._asked_ns >= round(config.every_s * NS_PER_S)
        step_w = config.release_per_s * config.every_s * self._top_w
        wish_w = np.minimum(np.minimum(target_w, room.alarm_w), np.minimum(self._cap_w + step_w, self._found_w))
        spare = self.writes_used(now_ns) < config.writes_per_day
        ramps = may & enough & spare & (now_ns - self._enough_ns >= hold_ns)
        ramps &= wish_w - self._cap_w >= np.minimum(self._deadband_w(), step_w)
        if ramps.any():
            wish_w = np.where(ramps, self._that_fits_w(wish_w, ramps, allocation, readings), wish_w)
            ramps &= wish_w - self._cap_w >= SAME_W
        goes = may & ample & (now_ns - self._ample_ns >= config.off_hold_s * NS_PER_S) & (room.cut_w >= self._top_w)
        return np.where(goes, self._found_w, np.where(ramps, np.floor(wish_w), np.nan))

    def _outlets_let_through(self, in_force: LimitsInForce) -> "_Room":
        """What the outlets' verified limits leave for the caps. An alarm that is not ours is no reason to wait."""
        m = len(self.names)
        cut_w, alarm_w, margin_w = np.full(m, math.inf), np.full(m, math.inf), np.zeros(m)
        underway = np.zeros(m, dtype=np.bool_)
        for k, outlets in enumerate(self._outlets):
            for i in outlets:
                underway[k] |= in_force.pending[i] or math.isfinite(in_force.open_w[i])
                limit_w = float(np.fmin(in_force.limit_w[i], in_force.open_low_w[i]))
                if in_force.kind[i] in CUTS:
                    margin_w[k] = max(margin_w[k], self._trip_margin_w[i])
                    cut_w[k] = np.fmin(cut_w[k], limit_w - self._trip_margin_w[i])
                elif self._rack.opted_in[i]:
                    alarm_w[k] = np.fmin(alarm_w[k], limit_w)
        return _Room(cut_w, alarm_w, margin_w, underway)

    def _that_fits_w(
        self, wish_w: FloatArray, rises: BoolArray, allocation: Allocation, readings: Readings
    ) -> FloatArray:
        """Raises as far as there is room beside what every other load draws, is granted, or may still draw."""
        load_of, env = self._rack.load_of, allocation.envelope
        drawn_w = np.nan_to_num(np.bincount(load_of, weights=readings.power_w))
        counted_w = np.maximum(allocation.grant_w, drawn_w[load_of])
        may_w = self.of_outlets(np.where(np.isfinite(self.may_draw_w()), self.may_draw_w(), np.nan))
        counted_w = np.where(np.isnan(may_w), counted_w, may_w)
        from_w = np.where(rises, self._cap_w, 0.0)
        by_w = np.where(rises, wish_w, 0.0) - from_w
        more_w = np.nan_to_num(self.of_outlets(by_w))
        free = env.part_of_outlets(env.part_free(env.cap, counted_w, more_w))
        part = np.array([min(free[i] for i in mine) for mine in self._outlets])
        fits_w: FloatArray = from_w + part * by_w
        return fits_w

    def _ask(self, k: int, now_ns: int, to_w: float, drawn_w: float) -> None:
        self._measuring[k] = drawn_w > to_w + self._config.margin_w  # else there is nothing to follow
        self._asked_w[k] = to_w
        self._asked_ns[k] = now_ns
        self._open_w[k] = np.fmax(self._open_w[k], to_w)
        self._pending[k] = True

    def _rules(
        self, caps: CapsInForce, allocation: Allocation, needed: BoolArray, at_lowest: BoolArray, blind: bool
    ) -> tuple[str, ...]:
        """Why each cap is what it is, for views."""
        bound = [allocation.rule[i] for i in self._first]
        said = np.select(
            [~self._opted_in, self._released, np.isnan(self._cap_w), ~caps.reachable, caps.not_held, caps.uncontrolled],
            ["not opted in", "given back", "never read", "unreachable", "not held", "uncontrolled"],
            "static safe" if blind else "",
        )
        scarce = [f"lowest, not enough for {why}" if low else why for low, why in zip(at_lowest, bound, strict=True)]
        ours = self._ours()
        return tuple(
            str(word) or (why if short else "held until there is room" if stands else "fits")
            for word, short, why, stands in zip(said, needed, scarce, ours, strict=True)
        )

    def _deadband_w(self) -> FloatArray:
        return np.maximum(SAME_W, self._config.deadband * self._top_w)


@dataclass(frozen=True, slots=True)
class _Room:
    """What the limits of a server's outlets leave for its cap, [m]: the lower of two outlets counts, for either must carry all."""

    cut_w: FloatArray  # the limit that cuts off or holds, less the margin
    alarm_w: FloatArray  # the alarm's threshold
    margin_w: FloatArray  # kept below a limit that cuts off
    underway: BoolArray  # a limit is being written: where it will stand is not known


def _cap_of(reading: CapReading) -> float:
    """The cap that a reading shows: infinite where none is active, NaN where that is not known."""
    if reading.active is False:
        return NO_CAP_W
    return math.nan if reading.cap_w is None or reading.active is None else reading.cap_w


def _same(a_w: float, b_w: float) -> bool:
    return a_w == b_w or abs(a_w - b_w) <= SAME_W


def _watts(cap_w: float | None) -> float:
    return NO_CAP_W if cap_w is None else cap_w


def _nothing() -> CapsInForce:
    """Of a rack without caps."""
    none, no = np.zeros(0), np.zeros(0, dtype=np.bool_)
    return CapsInForce(none, none, no, none, no, no, no, no, no, no, none, none)
