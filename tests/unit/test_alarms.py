"""Which alarms stand: every raise has one clear, nothing twice, nothing flaps; and what each tick's snapshot says."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rack_examples import constraint, make_forecast, make_limits, make_rack, make_readings, make_snapshot

from rpi_daemon import guard
from rpi_daemon.alarms import (
    CAUSES,
    CAUSES_TOLD_OTHERWISE,
    KINDS,
    PREDICTED_OVER,
    RESTORED_S,
    AlarmTable,
    Condition,
    Facts,
    changes,
    conditions,
    predict_overloads,
    standing_from_json,
    standing_to_json,
)
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.drivers.traps.mib import ALARMS
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import HORIZONS_S, TICK_NS, Forecast, Mode, SafeState, SafeStatus, Severity

RACK = make_rack(
    4,
    [constraint("breaker-1", [0, 1], 4, w=1000.0), constraint("feed", [0, 1, 2, 3], 4, a=10.0)],
    rating_w=800.0,
    per_pdu=2,
)
UTC_NS = 1_800_000_000 * NS_PER_S
BOARDS = {"pdu-0/1": "board-a", "pdu-0/2": "board-a", "pdu-1/1": "board-b", "pdu-1/2": "board-b"}


def snapshot(power_w: Sequence[float], forecast: Forecast | None = None, **changes: Any) -> Snapshot:
    return make_snapshot(RACK, power_w, forecast, t_utc_ns=UTC_NS, **changes)


CLOSED = Facts(mode=Mode.CLOSED_LOOP)


def found(shot: Snapshot, facts: Facts = CLOSED, standing: Sequence[str] = ()) -> dict[str, Condition]:
    return {c.alarm: c for c in conditions(RACK, shot, facts, standing)}


def test_a_quiet_rack_has_none() -> None:
    assert found(snapshot([200.0, 200.0, 200.0, 200.0])) == {}


def test_overload_and_derating_carry_their_numbers() -> None:
    conditions = found(snapshot([550.0, 500.0, 100.0, 100.0]))
    assert set(conditions) == {
        "overload:breaker-1", "over_derating:breaker-1", "overload_predicted:breaker-1",
        "budget_shortfall:breaker-1",
    }  # fmt: skip
    overload = conditions["overload:breaker-1"]
    assert (overload.value, overload.threshold, overload.unit) == (1050.0, 1000.0, "W")
    assert conditions["over_derating:breaker-1"].threshold == 800.0


def test_the_earliest_passing_is_the_time_to_overload() -> None:
    power_w = np.array([400.0, 400.0, 0.0, 0.0])
    highest = np.full((4, len(HORIZONS_S), 3), 0.0)
    highest[0, :, 1] = [400.0, 450.0, 590.0, 640.0, 700.0]
    highest[1, :, 1] = [400.0, 400.0, 420.0, 420.0, 420.0]
    highest[0, :, 2] = 790.0  # the 0.99 quantile is not asked
    forecast = Forecast(0, highest, highest, ("test",) * 4)
    (prediction,) = predict_overloads(RACK, make_readings(0, power_w), forecast)
    assert (prediction.constraint, prediction.unit, prediction.seconds) == ("breaker-1", "W", 3)
    assert (prediction.draw, prediction.rating) == (1010.0, 1000.0)


def test_amps_follow_the_power_factor_and_the_voltage() -> None:
    readings = make_readings(0, np.array([500.0, 500.0, 500.0, 500.0]))
    readings = replace(readings, power_factor=np.full(4, 0.5), rms_a=np.full(4, 500.0 / 0.5 / 230.0))
    rising = np.broadcast_to(np.array([500.0, 500.0, 500.0, 650.0])[:, None, None], (4, 5, 3))
    (prediction,) = predict_overloads(
        make_rack(4, [constraint("feed", [0, 1, 2, 3], 4, a=18.0)]), readings, Forecast(0, rising, rising, ("x",) * 4)
    )
    assert prediction.unit == "A"
    assert prediction.draw == pytest.approx((4 * 500.0 + 150.0) / 0.5 / 230.0)


def test_a_standing_prediction_ends_lower_than_it_begins() -> None:
    power_w = np.array([495.0, 495.0, 0.0, 0.0])
    readings, forecast = make_readings(0, power_w), make_forecast(0, power_w)
    assert predict_overloads(RACK, readings, forecast) == ()
    assert len(predict_overloads(RACK, readings, forecast, frozenset({"breaker-1"}))) == 1
    lower = power_w * PREDICTED_OVER
    assert predict_overloads(RACK, make_readings(0, lower), make_forecast(0, lower), frozenset({"breaker-1"})) == ()


def test_an_outlet_without_a_reading_is_left_out() -> None:
    power_w = np.array([np.nan, 990.0, 0.0, 0.0])
    assert predict_overloads(RACK, make_readings(0, power_w), make_forecast(0, np.full(4, 700.0))) == ()


def test_an_outlet_without_a_forecast_counts_with_what_it_draws() -> None:
    power_w = np.array([500.0, 400.0, 0.0, 0.0])
    highest_w = np.array([np.nan, 510.0, 0.0, 0.0])
    (prediction,) = predict_overloads(RACK, make_readings(0, power_w), make_forecast(0, highest_w))
    assert prediction.draw == 1010.0


def test_an_escape_is_of_a_limit_that_we_wrote() -> None:
    in_force = make_limits(np.array([300.0, np.nan, 300.0, 300.0]), uncontrolled=[False, False, False, True])
    shot = snapshot([310.0, 310.0, 290.0, 310.0], in_force=in_force)
    escaped = {name for name in found(shot) if name.startswith("limit_escaped")}
    assert escaped == {"limit_escaped:pdu-0/1"}
    assert not {name for name in found(shot, Facts(mode=Mode.ADVISORY)) if name.startswith("limit_escaped")}
    near = snapshot([299.0, 0.0, 0.0, 0.0], in_force=in_force)
    assert "limit_escaped:pdu-0/1" not in found(near)
    assert "limit_escaped:pdu-0/1" in found(near, standing=["limit_escaped:pdu-0/1"])


def test_a_shortfall_is_of_the_budget_and_not_of_the_load() -> None:
    assert found(snapshot([0.0, 0.0, 900.0, 0.0]), Facts()) == {}  # its rating is 800 W
    alarms = found(snapshot([500.0, 400.0, 0.0, 0.0]))
    assert [name for name in alarms if name.startswith("budget_shortfall")] == ["budget_shortfall:breaker-1"]
    short = alarms["budget_shortfall:breaker-1"]
    assert (short.subject, short.threshold, short.unit) == ("breaker-1", 900.0, "W")
    assert short.value == pytest.approx(100.0)
    assert short.text == "2 outlets may need 900 W, 100 W more than breaker-1 allows"


def test_each_constraint_that_binds_tells_its_own_shortfall() -> None:
    shot = snapshot([500.0, 400.0, 600.0, 0.0])
    rule = ("breaker-1 (W)", "breaker-1 (A)", "feed (A)", "demand or rating of the load")
    allocation = replace(
        shot.allocation,
        rule=rule,
        shortfall_w=np.array([50.0, 30.0, 20.0, 70.0]),
        envelope=replace(shot.allocation.envelope, rows=rule[:3]),
    )
    alarms = found(replace(shot, allocation=allocation))
    short = {name: c for name, c in alarms.items() if c.kind == "budget_shortfall"}
    assert {name: (c.value, c.threshold) for name, c in short.items()} == {
        "budget_shortfall:breaker-1": (80.0, 900.0),
        "budget_shortfall:feed": (20.0, 600.0),
    }
    assert short["budget_shortfall:feed"].text == "pdu-1/1 may need 600 W, 20 W more than feed allows"


def test_a_fault_of_a_whole_board_is_one_alarm() -> None:
    def faults(causes: tuple[str, ...], facts: Facts) -> set[str]:
        safe = SafeStatus(SafeState.HOLD, causes, (), 0)
        return {c.alarm for c in found(snapshot([0.0] * 4, safe=safe), facts).values()}

    stale = tuple(f"sensor_stale:{outlet}" for outlet in BOARDS)
    facts = Facts(board_of=BOARDS)
    assert faults(stale, facts) == {"sensor_stale:board-a", "sensor_stale:board-b"}
    assert faults(stale[:3], facts) == {"sensor_stale:board-a", "sensor_stale:pdu-1/1"}
    away = replace(facts, boards_absent=frozenset({"board-a"}))
    assert faults(stale[:3], away) == {"board_absent:board-a", "sensor_stale:pdu-1/1"}
    assert faults(("voltage_lost:pdu-0/1",), Facts()) == {"voltage_lost:pdu-0/1"}


def test_facts_of_the_service_are_alarms() -> None:
    shot = snapshot([0.0] * 4, safe=SafeStatus(SafeState.NORMAL, ("model_fallback", "pdu_unreachable:pdu-1"), (), 0))
    alarms = found(shot, Facts(killed=True, model_refused="damaged"))
    assert set(alarms) == {"kill_switch", "model_refused", "pdu_unreachable:pdu-1"}
    assert alarms["model_refused"].text == "damaged"
    assert "model_fallback" in found(shot)


def test_every_cause_of_the_ladder_is_told() -> None:
    assert set(guard.CAUSES) <= set(CAUSES) | CAUSES_TOLD_OTHERWISE
    assert set(CAUSES.values()) <= set(KINDS)
    assert set(KINDS) == set(ALARMS)


def test_changes_are_events() -> None:
    before = snapshot([0.0] * 4)
    safe = SafeStatus(SafeState.HOLD, ("tick_overrun",), (), 0)
    after = replace(before, safe=safe, foreign=("pdu-0/1",), foreign_caps=("server-1",))
    events = list(changes(before, after, Mode.CLOSED_LOOP, Mode.ADVISORY))
    assert [(e.kind, e.severity, e.subject) for e in events] == [
        ("state_change", Severity.WARNING, ""), ("mode_change", Severity.INFO, ""),
        ("foreign_change", Severity.WARNING, "pdu-0/1"), ("foreign_change", Severity.WARNING, "server-1"),
    ]  # fmt: skip
    assert events[0].text == "state HOLD, was NORMAL (tick_overrun)"
    assert events[1].text == "mode advisory, was closed_loop"
    assert list(changes(None, before, Mode.ADVISORY, Mode.ADVISORY)) == []


numbers = st.floats(0.0, 3000.0) | st.just(np.nan)


@given(st.lists(numbers, min_size=20, max_size=20), st.frozensets(st.sampled_from(sorted(guard.CAUSES))))
def test_whatever_is_unknown_is_no_alarm_and_no_number(values: list[float], causes: frozenset[str]) -> None:
    power_w, highest_w, limit_w, voltage_v, power_factor = np.array(values).reshape(5, 4)
    shot = snapshot(power_w, make_forecast(0, highest_w), in_force=make_limits(limit_w))
    readings = replace(shot.readings, voltage_v=voltage_v, power_factor=power_factor / 3000.0)
    named = tuple(f"{cause}:pdu-0/1" for cause in sorted(causes))
    shot = replace(shot, readings=readings, safe=SafeStatus(SafeState.HOLD, named, (), 0))
    for alarm, c in found(shot, replace(CLOSED, board_of=BOARDS)).items():
        assert c.kind in KINDS
        assert alarm.startswith(c.kind) or c.kind in set(CAUSES.values())
        for number in (c.value, c.threshold):
            assert number is None or np.isfinite(number)
        assert c.seconds is None or 1 <= c.seconds <= 5
        assert "nan" not in c.text


ids = st.sampled_from(
    [f"{kind}:{n}" for kind in ("overload", "sensor_fault", "over_derating", "kill_switch") for n in "ab"]
)
histories = st.lists(st.tuples(st.frozensets(ids, max_size=5), st.integers(1, 80)), max_size=60)


def condition(alarm: str) -> Condition:
    kind, _, subject = alarm.partition(":")
    return Condition(alarm, kind, subject, f"{alarm} is there")


@given(histories)
def test_every_raise_has_one_clear_and_nothing_is_told_twice(history: list[tuple[frozenset[str], int]]) -> None:
    table, now_ns, told = AlarmTable({}, 0), 0, []
    for present, ticks in [*history, (frozenset(), 200)]:
        for _ in range(ticks):
            now_ns += TICK_NS
            told += table.step(now_ns, UTC_NS + now_ns, [condition(alarm) for alarm in sorted(present)])
            assert set(table.standing) == {n.alarm for n in told if n.state == "raised"} - gone(told)
    assert not table.standing
    for alarm in {notice.alarm for notice in told}:
        states = [notice.state for notice in told if notice.alarm == alarm]
        assert states == ["raised", "cleared"] * (len(states) // 2)
        times = [notice.t_utc_ns for notice in told if notice.alarm == alarm]
        clear_ns = KINDS[alarm.partition(":")[0]].clear_s * NS_PER_S
        assert all(b - a >= clear_ns for a, b in zip(times[::2], times[1::2], strict=True))


def gone(told: list[Any]) -> set[str]:
    """Alarms whose last word is a clear."""
    last = {notice.alarm: notice.state for notice in told}
    return {alarm for alarm, state in last.items() if state == "cleared"}


def test_a_condition_shorter_than_its_time_is_no_alarm() -> None:
    table = AlarmTable({}, 0)
    for t in range(9):
        assert table.step(t * TICK_NS, UTC_NS, [condition("sensor_fault:a")]) == ()
    table.step(9 * TICK_NS, UTC_NS, [])
    told = [table.step(t * TICK_NS, UTC_NS, [condition("sensor_fault:a")]) for t in range(10, 21)]
    assert [len(notices) for notices in told] == [0] * 10 + [1]


@given(st.frozensets(ids), st.frozensets(ids))
def test_after_a_restart_what_goes_on_is_silent_and_what_is_gone_is_cleared(
    before: frozenset[str], after: frozenset[str]
) -> None:
    table = AlarmTable({}, 0)
    for t in range(100):
        table.step(t * TICK_NS, UTC_NS, [condition(alarm) for alarm in sorted(before)])
    restored = AlarmTable(standing_from_json(standing_to_json(table.standing)), 0)
    assert restored.standing == table.standing
    told = [n for t in range(600) for n in restored.step(t * TICK_NS, UTC_NS, [condition(a) for a in sorted(after)])]
    assert {n.alarm for n in told if n.state == "cleared"} == before - after
    assert {n.alarm for n in told if n.state == "raised"} == after - before
    assert len(told) == len(before ^ after)


def test_an_old_alarm_waits_for_the_first_readings() -> None:
    table = AlarmTable({}, 0)
    table.step(0, UTC_NS, [condition("overload:a")])
    restored = AlarmTable(table.standing, 0)
    assert restored.step(round(RESTORED_S * NS_PER_S), UTC_NS, []) == ()
    later_ns = round((RESTORED_S + KINDS["overload"].clear_s) * NS_PER_S)
    assert [n.state for n in restored.step(later_ns, UTC_NS, [])] == ["cleared"]


def test_alarms_of_another_version_are_dropped() -> None:
    assert standing_from_json({"x": {"kind": "unheard_of", "subject": "", "text": "", "since_utc_ns": 0}}) == {}
