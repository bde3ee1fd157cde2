"""What may be asked of the PDUs now: the safe-state ladder, the rules for writes, the kill switch."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.durable import create
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    Allocation,
    BoolArray,
    Envelope,
    FloatArray,
    LimitKind,
    LimitsInForce,
    LimitState,
    LimitWrite,
    Mode,
    PduReading,
    Permitted,
    RackModel,
    Readings,
    Request,
    SafeState,
    SafeStatus,
)

KILL_FILE = "kill"  # in the state folder
LONGEST_REASON = 500  # characters: a reason is in files, log lines, audit records and views
LOOKS_NS = NS_PER_S  # between two looks at the flags: of a longer time nobody knows whether it was healthy
ROUNDING = 1e-6  # relative; a sum this little above a rating is rounding
INVALID_SHARE = 0.2  # of a breaker's readings: beyond it the sum means nothing (Dynamo, reference/faults.md 1.1)

# cause -> the state it asks for, and whether it stays until somebody acknowledges it
CAUSES: dict[str, tuple[SafeState, bool]] = {
    "model_fallback": (SafeState.NORMAL, False),
    # the other experts forecast, within what the breakers allow without any forecast: no reason to hold
    "model_poisoned": (SafeState.NORMAL, True),
    "over_derating": (SafeState.NORMAL, False),
    "calibration_expired": (SafeState.NORMAL, False),
    # the cap stays what it was, nothing that depends on lowering it is granted to others, and the rest goes on
    "cap_unreachable": (SafeState.NORMAL, False),
    "cap_uncontrolled": (SafeState.NORMAL, False),
    "cap_not_held": (SafeState.NORMAL, False),
    "sensor_stale": (SafeState.HOLD, False),
    "sensor_stuck": (SafeState.HOLD, False),
    "breaker_blind": (SafeState.HOLD, False),
    # limits at most alarm, so lowering them saves nothing; where they hold, grants are below the rating already;
    # not latched: see docs/decisions/what-latches.md
    "overload": (SafeState.HOLD, False),
    "voltage_lost": (SafeState.HOLD, False),
    "transformer_reversed": (SafeState.HOLD, False),
    "pdu_unreachable": (SafeState.HOLD, False),
    "tick_overrun": (SafeState.HOLD, False),
    "audit_not_durable": (SafeState.HOLD, False),
    "foreign_writer": (SafeState.HOLD, True),
    "no_readings": (SafeState.STATIC_SAFE, False),
    "lease_expired": (SafeState.STATIC_SAFE, False),
    "starting": (SafeState.STATIC_SAFE, False),
    "stopping": (SafeState.STATIC_SAFE, False),
    "all_pdus_unreachable": (SafeState.DEVICE_DEFAULT, False),
}
# causes about a part of the rack: True holds whatever shares a breaker with it, False holds only the part
SCOPED = {
    "sensor_stale": False,
    "sensor_stuck": False,
    "overload": False,
    "voltage_lost": False,
    "transformer_reversed": False,
    "breaker_blind": True,
    "pdu_unreachable": True,
    "foreign_writer": True,
}


@dataclass(frozen=True, slots=True)
class HealthFlags:
    """What is wrong now. A set names the PDUs, or constraints, or outlet ids, that it is about; empty is healthy."""

    sensor_stale: frozenset[str] = frozenset()  # outlet ids without a reading
    sensor_stuck: frozenset[str] = frozenset()  # outlet ids whose sensor stands still
    breaker_blind: frozenset[str] = frozenset()  # constraints, see `blind_constraints`
    transformer_reversed: frozenset[str] = frozenset()  # outlet ids whose power is negative: no reading
    voltage_lost: frozenset[str] = frozenset()  # outlet ids whose power is nominal V x A, for want of a voltage
    pdu_unreachable: frozenset[str] = frozenset()
    foreign_writer: frozenset[str] = frozenset()  # PDUs on which somebody else writes
    cap_unreachable: frozenset[str] = frozenset()  # loads whose management controller does not answer
    cap_uncontrolled: frozenset[str] = frozenset()  # loads whose server does not take our caps
    cap_not_held: frozenset[str] = frozenset()  # loads that draw more than the cap that stands
    model_fallback: bool = False  # the other experts forecast without the network: shown, no reason to hold
    model_poisoned: bool = False  # the network gave what is no number; it is not heard until that is acknowledged
    tick_overrun: bool = False  # more than 3 ticks in a row late
    audit_not_durable: bool = False
    over_derating: frozenset[str] = frozenset()  # constraints that carry more than their continuous rating: shown
    overload: frozenset[str] = frozenset()  # constraints that carry more than their full rating
    calibration_expired: frozenset[str] = frozenset()  # boards whose calibration is older than 12 months: shown
    no_readings: bool = False
    lease_expired: bool = False  # no tick for as long as a lease lasts: the limits stood without a loop
    starting: bool = False
    stopping: bool = False
    all_pdus_unreachable: bool = False

    def causes(self) -> tuple[str, ...]:
        """Names of what is wrong: `cause` or `cause:subject`."""
        found: list[str] = []
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool):
                found += [f.name] * value
            else:
                found += [f"{f.name}:{subject}" for subject in sorted(value)]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class GuardConfig:
    recover_s: float = 5.0  # continuous health before a state is left upwards
    trip_margin_share: float = 0.05  # a trip_off or current_limit limit stays this part of the rating above the draw
    lowest_limit_w: float = 10.0  # zero is "no threshold" on some devices

    def __post_init__(self) -> None:
        for f in fields(self):
            if not getattr(self, f.name) >= 0.0:
                raise ConfigError(f"guard {f.name} is {getattr(self, f.name)}; choose 0 or more")


def at_start(now_ns: int) -> SafeStatus:
    """The ladder before anything is known: STATIC_SAFE."""
    return SafeStatus(SafeState.STATIC_SAFE, ("starting",), (), now_ns, {"starting": now_ns}, now_ns)


def ladder(
    previous: SafeStatus,
    now_ns: int,
    flags: HealthFlags,
    acknowledged: Collection[str] = (),
    config: GuardConfig = GuardConfig(),
) -> SafeStatus:
    """The strictest state that any cause of the last `recover_s` asks for: down at once, up after continuous health.

    Latched causes stay until they are gone *and* named in `acknowledged` (as they stand in `SafeStatus.latched`). Time in
    which nobody looked, because the loop stood still, is no health.
    """
    active = flags.causes()
    latched = {c for c in previous.latched if c in active or c not in acknowledged}
    latched |= {c for c in active if _rank(c)[1]}
    recover_ns = round(config.recover_s * NS_PER_S)
    unseen_ns = max(0, now_ns - previous.looked_ns - LOOKS_NS)
    seen_ns = {c: t + unseen_ns for c, t in previous.seen_ns.items() if now_ns - t - unseen_ns < recover_ns}
    seen_ns |= dict.fromkeys((*active, *latched), now_ns)
    causes = tuple(sorted(seen_ns, key=lambda c: (-_rank(c)[0], c)))
    state = max((_rank(c)[0] for c in causes), default=SafeState.NORMAL)
    since_ns = previous.since_mono_ns if state == previous.state else now_ns
    return SafeStatus(state, causes, tuple(sorted(latched)), since_ns, seen_ns, now_ns)


def blind_constraints(rack: RackModel, valid: BoolArray) -> frozenset[str]:
    """Constraints on which more than a fifth of the outlets' readings are invalid."""
    return frozenset(
        c.name for c in rack.constraints if np.any(c.share > 0.0) and np.mean(~valid[c.share > 0.0]) > INVALID_SHARE
    )


@dataclass(frozen=True, slots=True)
class Loading:
    """What a constraint carries of one of its ratings now."""

    constraint: str
    unit: str  # W, VA or A
    draw: float  # sum of the outlets that have a reading: at least this much
    rating: float  # before derating
    derate: float

    @property
    def overload(self) -> bool:
        return self.draw > self.rating

    @property
    def over_derating(self) -> bool:
        return self.draw > self.rating * self.derate


def loadings(rack: RackModel, readings: Readings) -> tuple[Loading, ...]:
    """Every rating and what is drawn of it. VA and amps are added arithmetically: never less than the phasor sum."""
    drawn = {"W": readings.power_w, "VA": readings.apparent_va, "A": readings.rms_a}
    return tuple(
        Loading(c.name, unit, float(np.nansum(c.share * drawn[unit])), rating, c.derate)
        for c in rack.constraints
        for unit, rating in (("W", c.rating_w), ("VA", c.rating_va), ("A", c.rating_a))
        if rating is not None
    )


def held(rack: RackModel, status: SafeStatus) -> BoolArray:
    """Outlets [n] whose limits may not rise: all, or those on a breaker with what the cause is about."""
    out = np.zeros(rack.n, dtype=np.bool_)
    for cause in status.causes:
        if _rank(cause)[0] >= SafeState.HOLD:
            name, _, subject = cause.partition(":")
            if name not in SCOPED:
                return np.ones(rack.n, dtype=np.bool_)
            out |= _neighbours(rack, subject) if SCOPED[name] else _members(rack, subject)
    return out


def writable(rack: RackModel, status: SafeStatus, in_force: LimitsInForce) -> BoolArray:
    """Outlets [n] that take our limits: opted in, read at least once, the device obeys, nobody else writes there."""
    taken: BoolArray = rack.opted_in & ~in_force.uncontrolled & (in_force.verified_ns > 0) & ~_silenced(rack, status)
    return taken


def permit(
    now_ns: int,
    mode: Mode,
    status: SafeStatus,
    rack: RackModel,
    request: Request,
    allocation: Allocation,
    readings: Readings,
    in_force: LimitsInForce,
    config: GuardConfig,
    may_draw_w: FloatArray | None = None,
) -> Permitted:
    """Turn grants into limits that may be written at this moment.

    Whatever subset of the returned limits reaches the devices, and in whatever order, no row of the envelope is
    exceeded that was not exceeded before: until a lowering is verified, the old limit counts, and a raise only gets
    room that is free now. So it is with raises to STATIC_SAFE; but the configured values all together are always
    allowed, whatever today's power factor makes of them in amps. Outlets that we do not write count with their grant, or their draw where that is higher; but
    of those opted in, a limit that the device enforces counts while it is the higher one: the load may draw up to it.

    In HOLD an outlet that has no limit any more, by its device's word, gets one: at most what we last had there, or
    STATIC_SAFE where we never had one. Where the limit is not known nothing is written in HOLD.

    `may_draw_w` [n]: what the server behind an outlet may still draw by its own cap, infinite while a cap is asked for and
    does not hold yet; NaN where no cap is in play. An outlet's limit is lowered after the cap, never below this.
    """
    ours = writable(rack, status, in_force)
    if mode is not Mode.CLOSED_LOOP:
        ours = np.zeros_like(ours)
    static = status.state >= SafeState.STATIC_SAFE
    enforced = np.array([kind.enforced for kind in in_force.kind])
    cuts = np.array([kind in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT) for kind in in_force.kind])

    target_w = np.where(enforced, allocation.grant_w, np.minimum(allocation.grant_w, _of_load(rack, request.alarm_w)))
    if static:
        target_w = rack.static_safe_w
    # less than one step would be rounded to zero
    lowest_w = np.minimum(np.maximum(config.lowest_limit_w, in_force.step_w), rack.rating_w)
    target_w = np.clip(target_w, lowest_w, rack.rating_w)

    known = np.isfinite(in_force.limit_w)
    old_w = np.where(known, in_force.limit_w, rack.rating_w)
    standing_w = np.fmax(old_w, in_force.open_w)
    if may_draw_w is not None and not static:
        target_w = np.fmax(target_w, np.minimum(may_draw_w, np.minimum(standing_w, rack.rating_w)))
    stuck = rack.opted_in & ~ours & enforced
    # a ceiling on an outlet that we do not write keeps nobody from drawing
    counted_w = np.where(ours, standing_w, np.fmax(allocation.grant_w, readings.power_w))
    counted_w = np.where(stuck, np.maximum(counted_w, standing_w), counted_w)
    if may_draw_w is not None:
        beyond_w = np.where(np.isinf(may_draw_w), _of_load(rack, readings.power_w), may_draw_w)
        counted_w = np.where(ours, counted_w, np.fmax(counted_w, beyond_w))
    frozen = np.zeros_like(ours) if static else held(rack, status)
    raise_w = np.where(ours & ~frozen, np.maximum(0.0, target_w - standing_w), 0.0)
    env = allocation.envelope
    cap = np.maximum(env.cap, env.used(rack.static_safe_w)) if static else env.cap
    free, tight, over = _room(env, cap, counted_w, raise_w)
    bare = frozen & in_force.disabled & ~known
    last_w = np.where(np.isnan(in_force.last_w), rack.static_safe_w, in_force.last_w)
    most_w = np.where(bare, last_w, np.where(frozen, old_w, standing_w))
    limit_w = np.minimum(target_w, most_w + free * raise_w)

    least_w = in_force.seen_w(readings.power_w, readings.rms_a) + config.trip_margin_share * rack.rating_w
    if may_draw_w is not None:
        may_w = may_draw_w + config.trip_margin_share * rack.rating_w
        least_w = np.where(np.isnan(may_w), least_w, np.maximum(least_w, may_w))
    coarse = in_force.step_w > 1.0  # the device rounds down: the next step up, or it would stand below
    least_w = np.where(coarse, np.ceil(least_w / in_force.step_w) * in_force.step_w, least_w)
    with np.errstate(invalid="ignore"):
        cut_off = cuts & ~(limit_w >= least_w)
        eased_w = np.where(cut_off & (least_w < most_w), least_w, np.nan)
    limit_w = np.where(cut_off, eased_w, limit_w)
    settable = known | ~frozen | bare
    if may_draw_w is not None:
        settable &= ~(bare & (may_draw_w > most_w))
    limit_w = np.where(ours & (limit_w >= lowest_w) & settable, limit_w, np.nan)

    # without a record on disk only what is protective goes
    unrecorded = np.isfinite(limit_w) & ("audit_not_durable" in status.causes and not static)
    unrecorded &= ~(enforced & (limit_w < standing_w))
    limit_w = np.where(unrecorded, np.nan, limit_w)

    lower = limit_w < standing_w
    rule = np.where(limit_w < target_w, "room", "granted").astype(object)
    rule[frozen & (target_w > most_w)] = "hold"
    if static:
        rule[:] = "static safe"
    rule[cut_off] = "draw + margin"
    rule[unrecorded] = "no audit record"
    rule[~rack.opted_in] = "not opted in"
    rule[in_force.uncontrolled] = "uncontrolled"
    rule[in_force.verified_ns == 0] = "never read"
    rule[_silenced(rack, status)] = "foreign writer"
    if mode is not Mode.CLOSED_LOOP:
        rule[:] = "advisory"
    return Permitted(
        t_mono_ns=now_ns,
        limit_w=limit_w,
        need_w=limit_w if static else np.fmin(limit_w, _of_load(rack, request.request_w)),
        urgent=lower & tight,
        exceeded=lower & (over | static),
        protective=(lower & enforced) | static,
        rule=tuple(rule),
    )


def static_safe_writes(
    rack: RackModel, pdu: str, reading: PduReading, config: GuardConfig, readings: Readings | None = None
) -> tuple[LimitWrite, ...]:
    """STATIC_SAFE for one PDU from its own reading: at start, at stop and when the control loop is gone.

    Only opted-in outlets; lowerings first; a limit that cuts off is not set below draw + margin, nor when neither the
    PDU itself nor `readings` tells the draw. Where one is left standing higher for that, raises on its breakers get the
    room that it leaves, where that is a limit at all. Outlets that already stand there are left out.
    """
    wanted_w: dict[int, float] = {}  # rack index -> limit
    left_w: dict[int, float] = {}
    for i in _away_from_static_safe(rack, pdu, reading):
        to_w = float(rack.static_safe_w[i])
        if _may_stand_at(to_w, rack, reading, config, readings, i):
            wanted_w[i] = to_w
        else:
            stands_w = _stands_w(reading, rack.number_of[i])
            left_w[i] = float(rack.rating_w[i]) if stands_w is None else stands_w
    stand_w = {i: _stands_w(reading, rack.number_of[i]) for i in wanted_w}  # none: any limit is a lowering
    rises = {i: stands_w for i, stands_w in stand_w.items() if stands_w is not None and stands_w < wanted_w[i]}
    for i, part in _part_beside(rack, left_w, rises).items():
        to_w = math.floor(rises[i] + part * (wanted_w[i] - rises[i]))
        worth = to_w - rises[i] > max(1.0, reading.limits[rack.number_of[i]].step_w or 0.0)
        worth = worth and to_w >= config.lowest_limit_w
        if worth and _may_stand_at(to_w, rack, reading, config, readings, i):
            wanted_w[i] = to_w
        else:
            del wanted_w[i]
    order = sorted(wanted_w, key=lambda i: (i in rises, rack.number_of[i]))
    return tuple(LimitWrite(outlet=rack.number_of[i], limit_w=wanted_w[i]) for i in order)


def _stands_w(reading: PduReading, number: int) -> float | None:
    """The limit that stands; None where there is none, or it is not known."""
    state = reading.limits[number]
    return None if state.enabled is False else state.limit_w


def _may_stand_at(
    to_w: float, rack: RackModel, reading: PduReading, config: GuardConfig, readings: Readings | None, i: int
) -> bool:
    """Whether this limit, as the device rounds it, would not cut the outlet off."""
    number = rack.number_of[i]
    state = reading.limits[number]
    if state.kind not in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT):
        return True
    taken_w = to_w - to_w % state.step_w if state.step_w else to_w
    return taken_w >= _drawn_w(rack, reading, readings, i) + _margin_w(rack, config, i)


def cuts_off(state: LimitState) -> bool:
    """Whether a limit, while it stands, cuts its outlet off."""
    return _kind_cuts(state) and state.enabled is not False


def would_cut_off(
    found: LimitState, rack: RackModel, reading: PduReading, config: GuardConfig, readings: Readings | None, i: int
) -> str | None:
    """Why the found limit of outlet `i` is not put back now; None where it may be. The draw is told as in `static_safe_writes`."""
    if not cuts_off(found):
        return None
    number = rack.number_of[i]
    stands_w = _stands_w(reading, number) if number in reading.limits else None
    if found.limit_w is not None and stands_w is not None and found.limit_w >= stands_w:
        return None  # a raise cuts nothing off
    margin_w = _margin_w(rack, config, i)
    drawn_w = _drawn_w(rack, reading, readings, i)
    if found.limit_w is not None and found.limit_w >= drawn_w + margin_w:
        return None
    limit = "not known in watts" if found.limit_w is None else f"{found.limit_w:.0f} W"
    draw = "not known" if math.isnan(drawn_w) else f"{drawn_w:.0f} W (and {margin_w:.0f} W of margin)"
    return (
        f"a {found.kind} limit, found at {limit}, could cut its load off, whose draw is {draw};"
        " lower the load and restore again, or set the limit on the PDU yourself"
    )


def cuts_off_by_now(
    to_w: float, state: LimitState, rack: RackModel, config: GuardConfig, readings: Readings, i: int
) -> bool:
    """Whether lowering the limit of outlet `i`, decided a while ago, would cut off what it draws by now.

    Half the margin has to be left: what noise moved since is no reason to decide anew. No reading, no answer.
    """
    stands_w = None if state.enabled is False else state.limit_w
    if not _kind_cuts(state) or (stands_w is not None and to_w >= stands_w):
        return False
    amps_w = math.nan if state.volts is None else float(readings.rms_a[i]) * state.volts
    drawn_w = np.fmax(float(readings.power_w[i]), amps_w)
    return bool(to_w < drawn_w + 0.5 * _margin_w(rack, config, i))


def _kind_cuts(state: LimitState) -> bool:
    return state.kind in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT)


def _margin_w(rack: RackModel, config: GuardConfig, i: int) -> float:
    return config.trip_margin_share * float(rack.rating_w[i])


def _part_beside(rack: RackModel, left_w: dict[int, float], rises: dict[int, float]) -> dict[int, float]:
    """The part of its way up to STATIC_SAFE that each raise may go beside limits that are left higher; whole ones left out.

    The other outlets count with STATIC_SAFE. A row allows its continuous rating in watts, and all of STATIC_SAFE in any
    case; where it has none in watts, no more than that.
    """
    stands_w = rack.static_safe_w.copy()
    for i, watts in (*left_w.items(), *rises.items()):
        stands_w[i] = watts
    raise_w = np.maximum(0.0, rack.static_safe_w - stands_w)
    part = np.ones(rack.n)
    for c in rack.constraints:
        if not any(c.share[i] > 0.0 and left_w[i] > rack.static_safe_w[i] for i in left_w):
            continue
        cap_w = max(float(c.share @ rack.static_safe_w), (c.rating_w or 0.0) * c.derate)
        wanted_w = float(c.share @ raise_w)
        free_w = cap_w - float(c.share @ stands_w)
        if wanted_w > max(free_w, 0.0):
            part[c.share > 0.0] = np.minimum(part[c.share > 0.0], max(0.0, free_w / wanted_w))
    return {i: float(part[i]) for i in rises if part[i] < 1.0}


def _drawn_w(rack: RackModel, reading: PduReading, readings: Readings | None, i: int) -> float:
    """The draw as the outlet's limit sees it: the highest that the PDU and the readings tell, NaN if neither does."""
    number = rack.number_of[i]
    volts = reading.limits[number].volts if number in reading.limits else None
    told = [(reading.power_w.get(number), reading.current_a.get(number))]
    if readings is not None:
        told.append((float(readings.power_w[i]), float(readings.rms_a[i])))
    found = [watts for watts, _ in told] + [amps * volts for _, amps in told if amps is not None and volts is not None]
    return max((w for w in found if w is not None and not math.isnan(w)), default=math.nan)


def away_from_static_safe(rack: RackModel, pdu: str, reading: PduReading) -> list[int]:
    """Numbers of the opted-in outlets of a PDU whose limit is not STATIC_SAFE, whether it may be written or not."""
    return sorted(rack.number_of[i] for i in _away_from_static_safe(rack, pdu, reading))


def _away_from_static_safe(rack: RackModel, pdu: str, reading: PduReading) -> list[int]:
    away = []
    for i in np.flatnonzero(rack.opted_in):
        state = reading.limits.get(rack.number_of[i]) if rack.pdu_of[i] == pdu else None
        if state is None:
            continue
        step_w = max(1.0, state.step_w or 0.0)
        above_w = math.nan if state.limit_w is None else state.limit_w - float(rack.static_safe_w[i])
        if state.enabled is False or not -step_w <= above_w <= 1.0:  # the device rounds down
            away.append(int(i))
    return away


class KillSwitch:
    """A file whose presence stops every write. Asked at the driver boundary, immediately before each write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def engage(self, reason: str) -> None:
        """Stop every write until `release`; the file holds the reason. Raises OSError when it cannot be made.

        A link in its place engages it as well, and is not followed.
        """
        if self.path.is_symlink():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # whatever the reason is written with: a letter that cannot be encoded must not keep the switch open
        with open(create(self.path, os.O_TRUNC), "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{reason[:LONGEST_REASON]}\n")

    def release(self) -> None:
        """Allow writes again."""
        self.path.unlink(missing_ok=True)

    def reason(self) -> str:
        """What it was engaged for last; empty where the file does not tell."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def engaged(self) -> bool:
        """True when the file is there, dangling link included, or when we cannot know."""
        try:
            os.lstat(self.path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True


def _rank(cause: str) -> tuple[SafeState, bool]:
    return CAUSES[cause.partition(":")[0]]


def _members(rack: RackModel, subject: str) -> BoolArray:
    """Outlets of a PDU, a constraint or an outlet id."""
    names = zip(rack.pdu_of, rack.outlet_ids, strict=True)
    out: BoolArray = np.array([subject in (pdu, outlet) for pdu, outlet in names], dtype=np.bool_)
    for c in rack.constraints:
        if c.name == subject:
            out |= c.share > 0.0
    return out


def _neighbours(rack: RackModel, subject: str) -> BoolArray:
    members = _members(rack, subject)
    out = members.copy()
    for c in rack.constraints:
        if c.kind == "breaker" and np.any(members & (c.share > 0.0)):
            out |= c.share > 0.0
    return out


def _silenced(rack: RackModel, status: SafeStatus) -> BoolArray:
    """Outlets on PDUs where somebody else writes: we stop there until it is acknowledged."""
    out = np.zeros(rack.n, dtype=np.bool_)
    for cause in status.causes:
        name, _, subject = cause.partition(":")
        if name == "foreign_writer":
            out |= _members(rack, subject)
    return out


def _of_load(rack: RackModel, watts: FloatArray) -> FloatArray:
    """The sum over the outlets of each outlet's load: either outlet must be able to carry it."""
    totals: FloatArray = np.bincount(rack.load_of, weights=watts, minlength=len(rack.loads)).astype(np.float64)
    return totals[rack.load_of]


def _room(
    env: Envelope, cap: FloatArray, counted_w: FloatArray, raise_w: FloatArray
) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Part of each raise that fits now [n]; outlets on rows where a raise must wait; outlets on rows that are exceeded."""
    part = env.part_free(cap, counted_w, raise_w)
    over = cap - env.used(counted_w) < -ROUNDING * np.maximum(cap, 1.0)
    on = env.coefficient > 0.0
    return env.part_of_outlets(part), np.any(on[part < 1.0], axis=0), np.any(on[over], axis=0)
