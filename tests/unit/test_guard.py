"""The ladder by example, writes from one poll alone, the kill switch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rack_examples import constraint, make_limits, make_rack, make_readings, make_request

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.errors import ConfigError
from rpi_daemon.guard import (
    GuardConfig,
    HealthFlags,
    KillSwitch,
    at_start,
    away_from_static_safe,
    blind_constraints,
    held,
    ladder,
    loadings,
    permit,
    static_safe_writes,
    writable,
)
from rpi_daemon.records import (
    FloatArray,
    LimitKind,
    LimitsInForce,
    LimitState,
    LimitWrite,
    Mode,
    PduReading,
    Permitted,
    RackModel,
    SafeState,
    SafeStatus,
)

S = 1_000_000_000
NORMAL = SafeStatus(SafeState.NORMAL, (), (), 0)


def look_until(status: SafeStatus, to_ns: int, flags: HealthFlags, acknowledged: Sequence[str] = ()) -> SafeStatus:
    """A look each second, as long as a loop may be silent and still count as one that looks."""
    for now_ns in range(status.looked_ns + S, to_ns, S):
        status = ladder(status, now_ns, flags)
    return ladder(status, to_ns, flags, acknowledged)


def test_start_leaves_static_safe_after_five_seconds_of_health() -> None:
    status = look_until(at_start(0), 4 * S, HealthFlags())
    assert (status.state, status.causes) == (SafeState.STATIC_SAFE, ("starting",))
    assert ladder(status, 5 * S, HealthFlags()) == SafeStatus(SafeState.NORMAL, (), (), 5 * S, {}, 5 * S)


def test_the_strictest_cause_wins_and_is_named_first() -> None:
    flags = HealthFlags(tick_overrun=True, lease_expired=True, pdu_unreachable=frozenset({"pdu-1"}))
    status = ladder(NORMAL, S, flags)
    assert status.state is SafeState.STATIC_SAFE
    assert status.causes == ("lease_expired", "pdu_unreachable:pdu-1", "tick_overrun")
    assert look_until(status, 6 * S, HealthFlags(tick_overrun=True)).state is SafeState.HOLD


def test_health_must_be_continuous() -> None:
    status = look_until(NORMAL, 4 * S, HealthFlags(tick_overrun=True))
    status = look_until(status, 8 * S, HealthFlags())
    assert status.state is SafeState.HOLD
    assert ladder(status, 9 * S, HealthFlags()).state is SafeState.NORMAL


def test_time_in_which_nobody_looked_is_no_health() -> None:
    """A loop that stands still for 6 s, short of its lease, knows nothing of them: nor does one that a restart would be wrong for."""
    status = ladder(NORMAL, S, HealthFlags(no_readings=True))
    status = ladder(status, 7 * S, HealthFlags())
    assert (status.state, status.causes) == (SafeState.STATIC_SAFE, ("no_readings",))
    assert look_until(status, 10 * S, HealthFlags()).state is SafeState.STATIC_SAFE
    assert look_until(status, 11 * S, HealthFlags()).state is SafeState.NORMAL


def test_a_latched_cause_waits_for_its_own_acknowledgement_and_for_its_end() -> None:
    flags = HealthFlags(foreign_writer=frozenset({"pdu-0"}))
    status = ladder(NORMAL, 0, flags)
    assert ladder(status, S, flags, ["foreign_writer:pdu-0"]).latched == ("foreign_writer:pdu-0",)
    status = look_until(status, 60 * S, HealthFlags(), ["foreign_writer:pdu-9"])
    assert (status.state, status.latched) == (SafeState.HOLD, ("foreign_writer:pdu-0",))
    status = ladder(status, 61 * S, HealthFlags(), ["foreign_writer:pdu-0"])
    assert (status.state, status.latched) == (SafeState.HOLD, ())
    assert look_until(status, 65 * S, HealthFlags()).state is SafeState.NORMAL


def test_a_fallback_model_is_shown_and_holds_nothing() -> None:
    status = ladder(NORMAL, S, HealthFlags(model_fallback=True))
    assert (status.state, status.causes) == (SafeState.NORMAL, ("model_fallback",))


def _breakers() -> RackModel:
    return make_rack(6, [constraint("b0", [0, 1, 2], 6, w=900.0), constraint("b1", [3, 4, 5], 6, w=900.0)], per_pdu=2)


@pytest.mark.parametrize(
    ("flags", "outlets"),
    [
        (HealthFlags(), []),
        (HealthFlags(pdu_unreachable=frozenset({"pdu-0"})), [0, 1, 2]),
        (HealthFlags(pdu_unreachable=frozenset({"pdu-1"})), [0, 1, 2, 3, 4, 5]),
        (HealthFlags(breaker_blind=frozenset({"b1"})), [3, 4, 5]),
        (HealthFlags(sensor_stale=frozenset({"pdu-2/1"})), [4]),
        (HealthFlags(overload=frozenset({"b1"})), [3, 4, 5]),
        (HealthFlags(over_derating=frozenset({"b1"})), []),
        (HealthFlags(transformer_reversed=frozenset({"pdu-2/1"})), [4]),
        (HealthFlags(voltage_lost=frozenset({"pdu-2/1"})), [4]),
        (HealthFlags(audit_not_durable=True), [0, 1, 2, 3, 4, 5]),
        (HealthFlags(model_fallback=True), []),
    ],
)
def test_a_hold_concerns_the_breakers_of_its_cause(flags: HealthFlags, outlets: list[int]) -> None:
    assert np.flatnonzero(held(_breakers(), ladder(NORMAL, S, flags))).tolist() == outlets


def test_a_breaker_is_blind_when_more_than_a_fifth_of_its_readings_are_invalid() -> None:
    rack = make_rack(10, [constraint("b0", range(5), 10, w=900.0), constraint("b1", range(5, 10), 10, w=900.0)])
    valid = np.ones(10, dtype=np.bool_)
    valid[[0, 5, 6]] = False
    assert blind_constraints(rack, valid) == frozenset({"b1"})


@pytest.mark.parametrize(
    ("draw_w", "over"),
    [
        ([300.0, 419.0, np.nan], {}),
        ([300.0, 421.0, np.nan], {"derating": {"W"}}),  # 720 W of 900; VA and A have more room
        ([300.0, 601.0, np.nan], {"derating": {"W", "VA", "A"}, "rating": {"W"}}),
        ([300.0, 601.0, 150.0], {"derating": {"W", "VA", "A"}, "rating": {"W", "VA", "A"}}),
    ],
)
def test_what_a_breaker_carries_is_compared_with_each_rating(draw_w: list[float], over: dict[str, set[str]]) -> None:
    rack = make_rack(4, [constraint("b", [0, 1, 2], 4, w=900.0, va=1050.0, a=4.5)])
    carried = loadings(rack, make_readings(0, np.array([*draw_w, 9000.0])))
    assert [item.unit for item in carried] == ["W", "VA", "A"]
    assert {item.unit for item in carried if item.over_derating} == over.get("derating", set())
    assert {item.unit for item in carried if item.overload} == over.get("rating", set())
    assert carried[2].draw == pytest.approx(np.nansum(draw_w) / 230.0)


def _permit(
    rack: RackModel, request_w: FloatArray, limits: LimitsInForce, flags: HealthFlags, draw_w: FloatArray
) -> Permitted:
    nothing = np.full(rack.n, np.nan)
    request = make_request(0, request_w, request_w * 1.1)
    allocation = allocate(0, request_w, rack, (), nothing, nothing, AllocatorConfig())
    status = ladder(NORMAL, 0, flags)
    readings = make_readings(0, draw_w)
    return permit(0, Mode.CLOSED_LOOP, status, rack, request, allocation, readings, limits, GuardConfig())


def test_alarm_thresholds_stand_at_their_own_number_enforced_limits_at_the_grant() -> None:
    rack = make_rack(2)
    limits = make_limits(np.full(2, 300.0), kind=[LimitKind.ALARM, LimitKind.SERVER_CAP])
    got = _permit(rack, np.full(2, 400.0), limits, HealthFlags(), np.full(2, 100.0))
    assert got.limit_w.tolist() == pytest.approx([440.0, 1000.0])
    assert got.need_w.tolist() == [400.0, 400.0]
    assert got.rule == ("granted", "granted")


def test_a_raise_waits_until_the_lowering_that_frees_its_room_is_verified() -> None:
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)])
    request_w, draw_w = np.array([600.0, 100.0]), np.full(2, 50.0)
    before = _permit(rack, request_w, make_limits(np.array([300.0, 400.0])), HealthFlags(), draw_w)
    assert before.limit_w.tolist() == pytest.approx([400.0, 110.0])
    assert before.rule[0] == "room"
    assert before.urgent.tolist() == [False, True]
    assert before.exceeded.tolist() == [False, False]
    over = _permit(rack, request_w, make_limits(np.array([600.0, 400.0])), HealthFlags(), draw_w)
    assert over.exceeded.tolist() == [False, True]
    after = _permit(rack, request_w, make_limits(np.array([300.0, 110.0])), HealthFlags(), draw_w)
    assert after.limit_w[0] == pytest.approx(allocate_grant(rack, request_w))


def allocate_grant(rack: RackModel, request_w: FloatArray) -> float:
    nothing = np.full(rack.n, np.nan)
    grant_w = allocate(0, request_w, rack, (), nothing, nothing, AllocatorConfig()).grant_w
    return float(min(grant_w[0], 1.1 * request_w[0]))


def test_an_outlet_takes_our_limits_when_nothing_speaks_against_it() -> None:
    rack = make_rack(6, per_pdu=1, opted_in=[True, False, True, True, True, True])
    limits = make_limits(np.full(6, 300.0), uncontrolled=[False, False, True, False, False, False])
    limits.verified_ns[3] = 0
    status = ladder(NORMAL, 0, HealthFlags(foreign_writer=frozenset({"pdu-4"})))
    assert writable(rack, status, limits).tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    ("kind", "opted_in", "at_most_w"),
    [(LimitKind.TRIP_OFF, True, 100.0), (LimitKind.ALARM, True, 700.0), (LimitKind.TRIP_OFF, False, 700.0)],
)
def test_a_limit_that_holds_and_cannot_be_lowered_keeps_its_room(
    kind: LimitKind, opted_in: bool, at_most_w: float
) -> None:
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], opted_in=[True, opted_in])
    limits = make_limits(np.array([50.0, 700.0]), kind=[LimitKind.ALARM, kind], uncontrolled=[False, True])
    got = _permit(rack, np.array([600.0, 100.0]), limits, HealthFlags(), np.full(2, 50.0))
    assert at_most_w - 100.0 < got.limit_w[0] <= at_most_w + 1e-6  # of 800 W, beside 700 W or the 100 W that it needs


def test_what_is_not_ours_counts_with_its_draw_where_its_grant_is_lower() -> None:
    """A ceiling on it, or a shortfall, keeps nobody from drawing."""
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], opted_in=[True, False])
    limits = make_limits(np.full(2, 50.0))
    got = _permit(rack, np.array([600.0, 100.0]), limits, HealthFlags(), np.array([50.0, 400.0]))
    assert got.limit_w[0] == pytest.approx(400.0)  # of 800 W, beside the 400 W that it draws


def test_a_trip_limit_eases_down_to_draw_plus_margin_and_stays_when_blind() -> None:
    rack = make_rack(2)
    limits = make_limits(np.full(2, 900.0), kind=LimitKind.TRIP_OFF)
    got = _permit(rack, np.full(2, 10.0), limits, HealthFlags(lease_expired=True), np.array([500.0, np.nan]))
    assert got.limit_w[0] == pytest.approx(500.0 + 0.05 * 2000.0)
    assert np.isnan(got.limit_w[1])
    assert got.rule == ("draw + margin", "draw + margin")


def test_a_trip_limit_of_coarse_step_is_not_rounded_down_onto_the_draw() -> None:
    rack = make_rack(2)
    limits = make_limits(np.full(2, 1150.0), kind=LimitKind.TRIP_OFF, step_w=np.array([230.0, 1.0]))
    got = _permit(rack, np.full(2, 10.0), limits, HealthFlags(no_readings=True), np.full(2, 500.0))
    assert got.limit_w.tolist() == pytest.approx([690.0, 600.0])  # 600 W would be 2 A x 230 V = 460 W


def test_a_pending_raise_is_not_permitted_any_more_in_hold() -> None:
    limits = make_limits(np.array([300.0]), open_w=np.array([500.0]))
    got = _permit(make_rack(1), np.array([600.0]), limits, HealthFlags(tick_overrun=True), np.array([100.0]))
    assert got.limit_w[0] == 300.0
    assert got.rule == ("hold",)


def test_in_hold_an_outlet_whose_pdu_forgot_its_limit_gets_it_again() -> None:
    """At most what stood there; STATIC_SAFE where we never had one; none where the limit is only not known, or would cut off."""
    rack, kinds = make_rack(6, static_safe_w=300.0), [LimitKind.ALARM] * 4 + [LimitKind.TRIP_OFF] * 2
    last_w = np.array([400.0, 900.0, np.nan, 400.0, 700.0, 500.0])
    limits = make_limits(np.full(6, np.nan), kind=kinds, disabled=[True, True, True, False, True, True], last_w=last_w)
    draw_w = np.array([100.0] * 4 + [500.0, 500.0])
    got = _permit(rack, np.full(6, 600.0), limits, HealthFlags(pdu_unreachable=frozenset(rack.pdu_of)), draw_w)
    assert got.limit_w.tolist() == pytest.approx([400.0, 660.0, 300.0, np.nan, 700.0, np.nan], nan_ok=True)
    assert got.rule == ("hold", "granted", "hold", "granted", "hold", "draw + margin")


@pytest.mark.parametrize(("cap_w", "limit_w"), [(np.nan, 400.0), (350.0, 400.0), (450.0, np.nan), (np.inf, np.nan)])
def test_in_hold_it_gets_none_below_what_its_server_may_draw_by_its_cap(cap_w: float, limit_w: float) -> None:
    rack, draw_w = make_rack(1), np.array([300.0])
    limits = make_limits(np.array([np.nan]), disabled=[True], last_w=np.array([400.0]))
    allocation = allocate(0, draw_w, rack, (), draw_w * np.nan, draw_w * np.nan, AllocatorConfig())
    status = ladder(NORMAL, 0, HealthFlags(tick_overrun=True))
    got = permit(
        0, Mode.CLOSED_LOOP, status, rack, make_request(0, draw_w + 300.0), allocation, make_readings(0, draw_w), limits,
        GuardConfig(), np.array([cap_w]),
    )  # fmt: skip
    assert got.limit_w.tolist() == pytest.approx([limit_w], nan_ok=True)


def test_without_a_durable_audit_only_enforced_limits_fall_and_static_safe_goes() -> None:
    kinds = [LimitKind.ALARM, LimitKind.CURRENT_LIMIT, LimitKind.CURRENT_LIMIT]
    limits, flags = make_limits(np.array([500.0, 1000.0, 300.0]), kind=kinds), HealthFlags(audit_not_durable=True)
    rack = make_rack(3, [constraint("b", [0, 1, 2], 3, w=1200.0)], static_safe_w=200.0)
    got = _permit(rack, np.full(3, 400.0), limits, flags, np.full(3, 100.0))
    assert np.isnan(got.limit_w[[0, 2]]).all()
    assert got.limit_w[1] < 1000.0
    assert got.protective[1]
    assert (got.rule[0], got.rule[2]) == ("no audit record", "no audit record")
    safe = _permit(rack, np.full(3, 400.0), limits, replace(flags, stopping=True), np.full(3, 100.0))
    assert safe.limit_w.tolist() == pytest.approx([200.0] * 3)
    assert safe.protective.all()


def test_static_safe_is_reached_even_if_a_poor_power_factor_makes_it_more_amps_than_rated() -> None:
    rack = make_rack(2, [constraint("b", [0, 1], 2, a=2.2)], static_safe_w=200.0)
    got = _permit(rack, np.full(2, 50.0), make_limits(np.full(2, 60.0)), HealthFlags(stopping=True), np.full(2, 50.0))
    assert got.limit_w.tolist() == pytest.approx([200.0, 200.0])


def _poll(limits: dict[int, LimitState], power_w: dict[int, float | None] | None = None) -> PduReading:
    return PduReading(0, 1.0, power_w or {}, {}, {}, limits)


def test_static_safe_from_one_poll_lowers_first_and_leaves_what_stands_right() -> None:
    rack = make_rack(5, opted_in=[True, True, True, False, True], static_safe_w=200.0)
    limits = {
        1: LimitState(100.0, True, LimitKind.ALARM),
        2: LimitState(900.0, True, LimitKind.ALARM),
        3: LimitState(200.0, True, LimitKind.ALARM),
        4: LimitState(900.0, True, LimitKind.ALARM),
        5: LimitState(200.0, False, LimitKind.ALARM),
    }
    writes = static_safe_writes(rack, "pdu-0", _poll(limits), GuardConfig())
    assert writes == (LimitWrite(2, 200.0), LimitWrite(5, 200.0), LimitWrite(1, 200.0))
    assert static_safe_writes(rack, "pdu-1", _poll(limits), GuardConfig()) == ()


def test_static_safe_from_one_poll_never_cuts_a_load_off() -> None:
    rack = make_rack(3, static_safe_w=200.0)
    trip = LimitState(900.0, True, LimitKind.TRIP_OFF)
    writes = static_safe_writes(rack, "pdu-0", _poll({1: trip, 2: trip, 3: trip}, {1: 150.0, 2: 50.0}), GuardConfig())
    assert writes == (LimitWrite(2, 200.0),)
    assert away_from_static_safe(
        rack, "pdu-0", _poll({1: trip, 2: trip, 3: LimitState(200.0, True, LimitKind.ALARM)})
    ) == [1, 2]
    assert away_from_static_safe(rack, "pdu-1", _poll({1: trip})) == []


def test_static_safe_raises_no_limit_into_the_room_of_one_that_must_stay_higher() -> None:
    rack = make_rack(4, [constraint("b", [0, 1, 2], 4, w=1000.0)], static_safe_w=200.0)
    high, low = LimitState(500.0, True, LimitKind.TRIP_OFF), LimitState(100.0, True, LimitKind.TRIP_OFF)
    drawn = {1: 450.0, 2: 50.0, 3: 50.0, 4: 50.0}
    poll = _poll({1: high, 2: low, 3: low, 4: low}, drawn)
    # 800 W less 500 W and twice 100 W: half of the way up; outlet 4 is on no breaker with outlet 1
    assert static_safe_writes(rack, "pdu-0", poll, GuardConfig()) == (
        LimitWrite(2, 150.0), LimitWrite(3, 150.0), LimitWrite(4, 200.0),
    )  # fmt: skip
    there = _poll({1: high, 2: replace(low, limit_w=150.0), 3: replace(low, limit_w=150.0)}, drawn)
    assert static_safe_writes(rack, "pdu-0", there, GuardConfig()) == ()
    beyond = _poll({1: replace(high, limit_w=700.0), 2: low, 3: low}, {**drawn, 1: 650.0})
    assert static_safe_writes(rack, "pdu-0", beyond, GuardConfig()) == ()


@pytest.mark.parametrize(("lowest_limit_w", "written"), [(10.0, False), (5.0, True)])
def test_a_part_of_the_way_to_static_safe_is_no_limit_below_the_lowest(lowest_limit_w: float, written: bool) -> None:
    rack = make_rack(3, [constraint("b", [0, 1, 2], 3, w=1000.0)], static_safe_w=200.0)
    high, low = LimitState(786.0, True, LimitKind.TRIP_OFF), LimitState(3.0, True, LimitKind.ALARM)
    writes = static_safe_writes(
        rack, "pdu-0", _poll({1: high, 2: low, 3: low}, {1: 700.0}), GuardConfig(lowest_limit_w=lowest_limit_w)
    )
    assert writes == ((LimitWrite(2, 7.0), LimitWrite(3, 7.0)) if written else ())


def test_no_limit_is_lowered_below_one_step_of_the_device() -> None:
    """A threshold in whole amperes holds 230 W and multiples: less would be rounded to none at all."""
    limits = make_limits(np.array([690.0, 690.0]), step_w=np.array([230.0, 1.0]))
    got = _permit(make_rack(2), np.full(2, 120.0), limits, HealthFlags(), np.full(2, 50.0))
    assert got.limit_w.tolist() == pytest.approx([230.0, 132.0])


def test_static_safe_from_one_poll_knows_the_step_of_the_device() -> None:
    """A threshold in whole amperes: 550 W is 2 A x 230 V on the device, and that is right."""
    rack = make_rack(3, static_safe_w=550.0)
    limits = {n: LimitState(w, True, LimitKind.ALARM, step_w=230.0) for n, w in {1: 460.0, 2: 690.0, 3: 230.0}.items()}
    assert static_safe_writes(rack, "pdu-0", _poll(limits), GuardConfig()) == (
        LimitWrite(2, 550.0),
        LimitWrite(3, 550.0),
    )
    trip = LimitState(900.0, True, LimitKind.TRIP_OFF, step_w=230.0)
    writes = static_safe_writes(rack, "pdu-0", _poll({1: trip, 2: trip}, {1: 450.0, 2: 200.0}), GuardConfig())
    assert writes == (LimitWrite(2, 550.0),), "550 W would be 460 W there, too near 450 W"


def test_static_safe_takes_a_draw_that_somebody_else_measures() -> None:
    """A shelf that meters nothing itself: with the board's word its limit is lowered, without it stays."""
    rack = make_rack(4, static_safe_w=200.0)
    shelf = LimitState(900.0, True, LimitKind.CURRENT_LIMIT)
    poll = _poll(dict.fromkeys((1, 2, 3, 4), shelf), {3: 50.0})
    assert static_safe_writes(rack, "pdu-0", poll, GuardConfig()) == (LimitWrite(3, 200.0),)
    readings = make_readings(1, np.array([50.0, 150.0, 150.0, np.nan]))
    assert static_safe_writes(rack, "pdu-0", poll, GuardConfig(), readings) == (LimitWrite(1, 200.0),), (
        "3: the higher word counts"
    )


def test_static_safe_in_amperes_is_not_below_the_amperes_drawn() -> None:
    rack = make_rack(2, static_safe_w=550.0)
    shelf = LimitState(900.0, True, LimitKind.CURRENT_LIMIT, volts=54.0)
    readings = make_readings(1, np.array([440.0, 440.0]))
    sagged = replace(readings, rms_a=np.array([440.0 / 54.0, 440.0 / 42.0]))
    poll = _poll({1: shelf, 2: shelf})
    writes = static_safe_writes(rack, "pdu-0", poll, GuardConfig(), sagged)
    assert writes == (LimitWrite(1, 550.0),), "550 W are 10.2 A there, and 10.5 A flow at outlet 2"


def test_kill_switch_is_the_presence_of_a_file(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "kill")
    assert not switch.engaged()
    (tmp_path / "kill").touch()
    assert switch.engaged()
    (tmp_path / "kill").unlink()
    assert not switch.engaged()
    (tmp_path / "kill").symlink_to(tmp_path / "nowhere")
    assert switch.engaged()


def test_the_kill_switch_takes_a_reason_of_any_length(tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "kill")
    switch.engage("x" * 70_000)
    assert switch.engaged()
    assert switch.reason() == "x" * 500


def test_kill_switch_is_engaged_when_nobody_can_tell(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert KillSwitch(tmp_path / "file" / "kill").engaged()


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="recover_s"):
        GuardConfig(recover_s=-1.0)
