"""The ladder on virtual time, and what `permit` never lets through."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_examples import make_limits, make_readings, make_request, racks, watts

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.guard import (
    CAUSES,
    GuardConfig,
    HealthFlags,
    at_start,
    held,
    ladder,
    permit,
    static_safe_writes,
    writable,
)
from rpi_daemon.records import (
    Allocation,
    FloatArray,
    LimitKind,
    LimitsInForce,
    LimitState,
    Mode,
    PduReading,
    Permitted,
    RackModel,
    Readings,
    Request,
    SafeState,
    SafeStatus,
)

EPSILON_W = 1e-6
CONFIG = GuardConfig()
SECOND_NS = 1_000_000_000
NORMAL = SafeStatus(SafeState.NORMAL, (), (), 0)
CUTS = (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT)


@dataclass(frozen=True)
class Case:
    rack: RackModel
    status: SafeStatus
    mode: Mode
    request: Request
    allocation: Allocation
    readings: Readings
    limits: LimitsInForce

    def permit(self) -> Permitted:
        return permit(
            5, self.mode, self.status, self.rack, self.request, self.allocation, self.readings, self.limits, CONFIG
        )


def _some_nan(draw: st.DrawFn, values: FloatArray) -> FloatArray:
    unknown = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    return np.where(unknown, np.nan, values)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rack = draw(racks())
    n = rack.n
    flags = HealthFlags(
        tick_overrun=draw(st.booleans()),
        lease_expired=draw(st.booleans()),
        pdu_unreachable=frozenset(draw(st.sets(st.sampled_from(rack.pdu_of)))),
        sensor_stale=frozenset(draw(st.sets(st.sampled_from(rack.outlet_ids)))),
        foreign_writer=frozenset(draw(st.sets(st.sampled_from(rack.pdu_of), max_size=1))),
    )
    flags = draw(st.sampled_from([flags, HealthFlags(), HealthFlags()]))
    request_w = draw(watts(n))
    nothing = np.full(n, np.nan)
    limit_w = _some_nan(draw, draw(watts(n, 2000.0)))
    disabled = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    limits = make_limits(
        np.where(disabled, np.nan, limit_w),
        kind=draw(st.lists(st.sampled_from(list(LimitKind)), min_size=n, max_size=n)),
        open_w=_some_nan(draw, draw(watts(n, 2000.0))),
        uncontrolled=draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        disabled=disabled,
        last_w=_some_nan(draw, draw(watts(n, 2000.0))),
    )
    return Case(
        rack=rack,
        status=ladder(NORMAL, 5, flags),
        mode=draw(st.sampled_from([Mode.CLOSED_LOOP, Mode.CLOSED_LOOP, Mode.ADVISORY])),
        request=make_request(5, request_w, request_w * 1.1),
        allocation=allocate(5, request_w, rack, (), nothing, nothing, AllocatorConfig()),
        readings=make_readings(5, _some_nan(draw, draw(watts(n)))),
        limits=limits,
    )


@settings(max_examples=60)
@given(cases())
def test_nothing_in_advisory_nothing_without_opt_in_nothing_where_writes_fail(case: Case) -> None:
    got = case.permit()
    written = np.isfinite(got.limit_w)
    if case.mode is Mode.ADVISORY:
        assert not written.any()
    assert not (written & ~case.rack.opted_in).any()
    assert not (written & case.limits.uncontrolled).any()
    if any(cause.startswith("foreign_writer") for cause in case.status.causes):
        assert not written.any()


@settings(max_examples=60)
@given(cases())
def test_a_limit_that_cuts_off_is_never_set_below_the_draw_plus_margin(case: Case) -> None:
    got = case.permit()
    for i in np.flatnonzero(np.isfinite(got.limit_w)):
        if case.limits.kind[i] in CUTS:
            draw_w = case.readings.power_w[i]
            assert got.limit_w[i] >= draw_w + CONFIG.trip_margin_share * case.rack.rating_w[i] - EPSILON_W


@settings(max_examples=60)
@given(cases(), st.floats(40.0, 400.0), st.floats(-100.0, 500.0))
def test_a_limit_in_amperes_is_never_set_below_the_amperes_drawn(case: Case, volts: float, more_w: float) -> None:
    """Whatever the power factor, and however far the voltage is from the one that turned the limit into amperes."""
    would_be_w = np.nan_to_num(case.permit().limit_w)
    current_a = np.maximum(case.readings.power_w, would_be_w + more_w) / volts
    limits = replace(case.limits, volts=np.full(case.rack.n, volts))
    case = replace(case, readings=replace(case.readings, rms_a=current_a), limits=limits)
    got = case.permit()
    for i in np.flatnonzero(np.isfinite(got.limit_w)):
        if case.limits.kind[i] in CUTS:
            assert got.limit_w[i] / volts > current_a[i] - EPSILON_W


@settings(max_examples=60)
@given(cases())
def test_limits_stay_within_the_rating_and_above_zero(case: Case) -> None:
    written = case.permit().limit_w
    written = written[np.isfinite(written)]
    assert np.all(written <= 2000.0 + EPSILON_W)
    assert np.all(written > 0.0)


@settings(max_examples=60)
@given(cases())
def test_hold_only_falls_and_never_from_the_unknown(case: Case) -> None:
    case = replace(case, status=ladder(NORMAL, 5, HealthFlags(tick_overrun=True)), mode=Mode.CLOSED_LOOP)
    got, limits = case.permit(), case.limits
    frozen = held(case.rack, case.status) & np.isfinite(got.limit_w)
    known = frozen & ~limits.disabled
    assert np.all(got.limit_w[known] <= limits.limit_w[known] + EPSILON_W)
    bare = frozen & limits.disabled  # no limit stands there: any is a fall
    last_w = np.where(np.isfinite(limits.last_w), limits.last_w, case.rack.static_safe_w)
    assert np.all(got.limit_w[bare] <= last_w[bare] + EPSILON_W)
    grants = bare & ~np.isin(limits.kind, CUTS)  # one that cuts off may stand higher, at draw + margin
    grant_w = np.fmax(case.allocation.grant_w, CONFIG.lowest_limit_w)
    assert np.all(got.limit_w[grants] <= grant_w[grants] + EPSILON_W)


@settings(max_examples=60)
@given(cases())
def test_hold_sets_a_limit_where_the_device_says_that_none_stands(case: Case) -> None:
    """But one that would cut the load off, and of zero watts."""
    case = replace(case, status=ladder(NORMAL, 5, HealthFlags(tick_overrun=True)), mode=Mode.CLOSED_LOOP)
    got, limits = case.permit(), case.limits
    for i in np.flatnonzero(writable(case.rack, case.status, limits) & limits.disabled):
        if limits.kind[i] not in CUTS and not limits.last_w[i] < CONFIG.lowest_limit_w:
            assert np.isfinite(got.limit_w[i])
            assert got.protective[i] == limits.kind[i].enforced


@settings(max_examples=60)
@given(cases())
def test_static_safe_is_static_safe_unless_it_would_trip_or_lacks_room(case: Case) -> None:
    case = replace(case, status=ladder(NORMAL, 5, HealthFlags(stopping=True)), mode=Mode.CLOSED_LOOP)
    got = case.permit()
    for i in np.flatnonzero(np.isfinite(got.limit_w)):
        if got.limit_w[i] > case.rack.static_safe_w[i] + EPSILON_W:
            assert case.limits.kind[i] in CUTS
        assert got.protective[i]


@settings(max_examples=100)
@given(cases(), st.integers(0, 2**32 - 1))
def test_whatever_part_of_the_writes_has_happened_no_rating_is_newly_exceeded(case: Case, seed: int) -> None:
    """Each outlet stands at its old limit, at what was asked before, or at what is asked now."""
    got = case.permit()
    ours = np.isfinite(got.limit_w)
    env = case.allocation.envelope
    old_w = np.where(np.isfinite(case.limits.limit_w), case.limits.limit_w, case.rack.rating_w)
    asked_w = np.where(np.isfinite(case.limits.open_w), case.limits.open_w, old_w)
    new_w = np.where(ours, got.limit_w, old_w)
    taken = writable(case.rack, case.status, case.limits)
    enforced = np.array([kind.enforced for kind in case.limits.kind])
    stuck_w = np.where(case.rack.opted_in & enforced, np.maximum(old_w, asked_w), 0.0)
    others_w = np.maximum(case.allocation.grant_w, stuck_w)
    before = env.used(np.where(taken, np.maximum(old_w, asked_w), others_w))
    cap = env.cap
    if case.status.state >= SafeState.STATIC_SAFE:
        cap = np.maximum(cap, env.used(case.rack.static_safe_w))
    choose = np.random.default_rng(seed)
    for _ in range(10):
        which = choose.integers(0, 3, case.rack.n)
        standing_w = np.where(which == 0, old_w, np.where(which == 1, asked_w, new_w))
        used = env.used(np.where(taken, standing_w, others_w))
        assert np.all(used <= np.maximum(cap, before) + EPSILON_W)


@settings(max_examples=60)
@given(cases())
def test_lowering_is_urgent_where_somebody_waits_for_the_room(case: Case) -> None:
    got = case.permit()
    waiting = np.array([rule == "room" for rule in got.rule])
    env = case.allocation.envelope
    assert not (waiting.any() and len(env.rows) == 0)
    standing_w = np.fmax(np.where(np.isfinite(case.limits.limit_w), case.limits.limit_w, 2000.0), case.limits.open_w)
    assert np.all(got.limit_w[got.urgent] < standing_w[got.urgent])


flag_sets = st.builds(
    HealthFlags,
    tick_overrun=st.booleans(),
    audit_not_durable=st.booleans(),
    model_fallback=st.booleans(),
    no_readings=st.booleans(),
    all_pdus_unreachable=st.booleans(),
    pdu_unreachable=st.frozensets(st.sampled_from(["pdu-0", "pdu-1"])),
    foreign_writer=st.frozensets(st.sampled_from(["pdu-0", "pdu-1"])),
    overload=st.frozensets(st.sampled_from(["c0"])),
    over_derating=st.frozensets(st.sampled_from(["c0"])),
)
healthy_often = st.one_of(st.just(HealthFlags()), flag_sets)


def _wanted(flags: HealthFlags) -> SafeState:
    return max((CAUSES[c.partition(":")[0]][0] for c in flags.causes()), default=SafeState.NORMAL)


@settings(max_examples=60)
@given(st.lists(st.tuples(healthy_often, st.integers(1, 30), st.booleans()), max_size=25))
def test_down_at_once_up_only_after_health_and_acknowledgement(story: list[tuple[HealthFlags, int, bool]]) -> None:
    status = at_start(0)
    assert status.state is SafeState.STATIC_SAFE
    now_ns = seen_ns = 0  # seen: without what of each pause was longer than a second, of which nobody knows
    history: list[tuple[int, SafeState]] = [(0, SafeState.STATIC_SAFE)]
    for flags, ticks, acknowledge in story:
        now_ns += ticks * SECOND_NS // 4
        seen_ns += min(ticks * SECOND_NS // 4, SECOND_NS)
        before = status
        status = ladder(before, now_ns, flags, before.latched if acknowledge else ())
        latched = max((CAUSES[c.partition(":")[0]][0] for c in status.latched), default=SafeState.NORMAL)
        history.append((seen_ns, max(_wanted(flags), latched)))
        assert status.state == max(s for t, s in history if seen_ns - t < CONFIG.recover_s * SECOND_NS)
        assert set(status.latched) >= {c for c in flags.causes() if CAUSES[c.partition(":")[0]][1]}
        if not acknowledge:
            assert set(status.latched) >= set(before.latched)
        assert status.since_mono_ns == (before.since_mono_ns if status.state == before.state else now_ns)


@settings(max_examples=50)
@given(flag_sets, st.integers(0, 100))
def test_the_ladder_is_a_pure_function(flags: HealthFlags, t: int) -> None:
    status = at_start(0)
    assert ladder(status, t, flags) == ladder(status, t, flags)
    assert status == at_start(0)


@settings(max_examples=50)
@given(flag_sets)
def test_more_causes_never_relax(flags: HealthFlags) -> None:
    more = replace(flags, lease_expired=True)
    assert ladder(NORMAL, 1, more).state >= max(ladder(NORMAL, 1, flags).state, SafeState.STATIC_SAFE)


@settings(max_examples=100)
@given(cases(), st.data())
def test_static_safe_from_a_poll_never_cuts_off_what_anybody_knows_to_flow(case: Case, data: st.DataObject) -> None:
    """Neither watts nor amperes, told by the PDU or by others; only outlets that are ours; nothing that stands there already."""
    rack, n = case.rack, case.rack.n
    pdu = data.draw(st.sampled_from(rack.pdu_of))
    mine = {rack.number_of[i]: i for i in range(n) if rack.pdu_of[i] == pdu}
    some_w = st.none() | st.integers(0, 1500).map(float)
    told_w = {number: data.draw(some_w) for number in mine}
    told_a = {number: data.draw(st.none() | st.floats(0.0, 10.0)) for number in mine}
    volts = data.draw(st.none() | st.sampled_from([48.0, 230.0]))
    step_w = data.draw(st.none() | st.sampled_from([1.0, 5.4, 230.0]))
    limits = {
        number: LimitState(
            data.draw(some_w), data.draw(st.none() | st.booleans()), case.limits.kind[i], (), step_w, volts
        )
        for number, i in mine.items()
    }
    reading = PduReading(5, None, told_w, told_a, {}, limits)
    for write in static_safe_writes(rack, pdu, reading, CONFIG, case.readings):
        i = mine[write.outlet]
        assert rack.opted_in[i]
        stands = limits[write.outlet]
        stands_w = np.nan if stands.limit_w is None or stands.enabled is False else stands.limit_w
        part_of_a_raise = stands_w < write.limit_w < rack.static_safe_w[i]  # beside one that must stay higher
        assert part_of_a_raise or write.limit_w == rack.static_safe_w[i]
        if case.limits.kind[i] not in CUTS:
            continue
        taken_w = write.limit_w - (write.limit_w % step_w if step_w else 0.0)
        flows_w = [told_w[write.outlet], case.readings.power_w[i]]
        if volts is not None:
            flows_w += [amps * volts for amps in (told_a[write.outlet], case.readings.rms_a[i]) if amps is not None]
        known = [w for w in flows_w if w is not None and np.isfinite(w)]
        assert known
        assert taken_w > max(known)
