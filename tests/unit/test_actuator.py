"""Write economy, read-back, foreign writers, found limits."""

import math

import numpy as np
import pytest
from rack_examples import make_forecast, make_rack, make_request

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    TICK_NS,
    ApplyResult,
    Desired,
    FloatArray,
    LimitKind,
    LimitState,
    LimitWrite,
    PduReading,
    Permitted,
    WriteOutcome,
)

S = 1_000_000_000
RATING_W = 2000.0


def _poll(
    t_ns: int, limits_w: dict[int, float | None], kind: LimitKind = LimitKind.ALARM, rebooted: bool = False
) -> PduReading:
    states = {number: LimitState(w, True, kind) for number, w in limits_w.items()}
    return PduReading(t_ns, None, {}, {}, {}, states, rebooted=rebooted)


def _granted(t_ns: int, limit_w: FloatArray) -> Permitted:
    no = np.zeros(len(limit_w), dtype=np.bool_)
    return Permitted(t_ns, limit_w, limit_w, no, no, no, ("granted",) * len(limit_w))


class Bench:
    """An actuator whose outlets all stand at 500 W, and its wire."""

    def __init__(self, n: int = 1, per_pdu: int = 24, **options: float) -> None:
        self.rack = make_rack(n, rating_w=RATING_W, per_pdu=per_pdu)
        self.actuator = Actuator(ActuatorConfig(**options), self.rack)  # type: ignore[arg-type]
        for pdu in dict.fromkeys(self.rack.pdu_of):
            numbers = [x for x, p in zip(self.rack.number_of, self.rack.pdu_of, strict=True) if p == pdu]
            self.actuator.observe(pdu, _poll(0, dict.fromkeys(numbers, 500.0)))

    def want(
        self,
        t_s: float,
        *limit_w: float,
        need_w: float = 0.0,
        urgent: bool = False,
        exceeded: bool = False,
        protective: bool = False,
    ) -> tuple[Desired, ...]:
        now_ns, n = round(t_s * S), self.rack.n
        wanted = np.array(limit_w)
        permitted = Permitted(
            now_ns,
            wanted,
            need_w=np.full(n, need_w),
            urgent=np.full(n, urgent),
            exceeded=np.full(n, exceeded),
            protective=np.full(n, protective),
            rule=("granted",) * n,
        )
        self.poll_if_due(now_ns)
        return self.actuator.step(now_ns, permitted, make_request(now_ns, wanted), make_forecast(now_ns, wanted - 10.0))

    def poll_if_due(self, now_ns: int) -> None:
        """A live PDU is polled, so that leases are renewed without writes."""
        limits = self.actuator.limits(now_ns)
        for i, (pdu, number) in enumerate(zip(self.rack.pdu_of, self.rack.number_of, strict=True)):
            self.actuator.observe(pdu, _poll(now_ns, {number: float(limits.limit_w[i])}))

    def answer(self, t_s: float, desired: Desired, read_back_w: float | None = None) -> None:
        now_ns = round(t_s * S)
        outcomes = tuple(
            WriteOutcome(
                outlet=w.outlet,
                asked_w=w.limit_w,
                read_back_w=w.limit_w if read_back_w is None else read_back_w,
                verified=read_back_w is None,
                refused=None,
                t_sent_ns=now_ns,
                t_verified_ns=now_ns if read_back_w is None else None,
            )
            for w in desired.limits
        )
        self.actuator.confirm(desired.pdu, now_ns, ApplyResult(outcomes, 2), desired.t_mono_ns)


def test_a_raise_that_the_request_needs_goes_at_once_with_its_reason() -> None:
    bench = Bench()
    (desired,) = bench.want(1.0, 520.0, need_w=510.0)
    assert desired.limits == (LimitWrite(1, 520.0),)
    assert desired.pdu == "pdu-0"
    assert not desired.decisions[0].protective
    (decision,) = desired.decisions
    assert (decision.from_w, decision.to_w, decision.reason, decision.rule) == (500.0, 520.0, "raise", "granted")
    assert (decision.request_w, decision.margin_w, decision.forecast_w) == (520.0, 0.0, 510.0)


def test_a_raise_within_the_deadband_that_nobody_needs_is_not_worth_a_write() -> None:
    bench = Bench(deadband=0.03)
    assert bench.want(1.0, 555.0, need_w=499.0) == ()
    assert len(bench.want(1.1, 560.0, need_w=499.0)) == 1


def test_room_that_comes_bit_by_bit_does_not_use_up_the_writes() -> None:
    """Another outlet's reservation that shrinks by 1 W a tick: 60 raises in 6 s would be a third of a day's."""
    bench = Bench(deadband=0.03)
    written = []
    for k in range(60):
        t_s = 1.0 + k * 0.1
        for desired in bench.want(t_s, 502.0 + k, need_w=700.0):
            bench.answer(t_s + 0.05, desired)
            written.append(desired.limits[0].limit_w)
    assert written == [502.0, 512.0, 522.0, 532.0, 542.0, 552.0]
    (enough,) = bench.want(6.5, 720.0, need_w=700.0)
    assert enough.limits == (LimitWrite(1, 720.0),), "what suffices waits for nothing"


def test_lowering_waits_for_its_hold_and_starts_again_after_an_interruption() -> None:
    bench = Bench(lower_hold_s=10.0, deadband=0.03)
    for k in range(80):
        assert bench.want(k * 0.1, 300.0) == ()
    assert bench.want(8.0, 480.0) == ()
    for k in range(81, 180):
        assert bench.want(k * 0.1, 300.0) == ()
    (desired,) = bench.want(18.0, 300.0)
    assert desired.limits == (LimitWrite(1, 300.0),)
    assert desired.decisions[0].reason == "lower"


def test_lowering_for_room_is_immediate_where_it_is_worth_a_write() -> None:
    bench = Bench(lower_hold_s=60.0, deadband=0.03)
    assert bench.want(1.0, 450.0, urgent=True) == ()
    (desired,) = bench.want(1.1, 430.0, urgent=True)
    assert desired.limits == (LimitWrite(1, 430.0),)


def test_a_rating_that_is_exceeded_is_left_at_once_by_any_amount() -> None:
    bench = Bench(lower_hold_s=60.0, deadband=0.03)
    assert bench.want(1.0, 499.5, exceeded=True) == ()
    (desired,) = bench.want(1.1, 498.0, exceeded=True)
    assert desired.limits == (LimitWrite(1, 498.0),)


def test_the_same_wish_is_asked_once_and_a_new_one_replaces_it() -> None:
    bench = Bench()
    assert len(bench.want(1.0, 700.0, need_w=700.0)) == 1
    assert bench.want(1.1, 700.0, need_w=700.0) == ()
    assert bench.want(1.2, 710.0, need_w=700.0) == ()
    (newer,) = bench.want(1.3, 900.0, need_w=900.0)
    assert newer.limits == (LimitWrite(1, 900.0),)
    assert bench.actuator.limits(0).open_w[0] == 900.0
    (lower,) = bench.want(1.4, 600.0, need_w=600.0)
    assert lower.limits == (LimitWrite(1, 600.0),)
    assert bench.actuator.limits(0).open_w[0] == 900.0, "the larger one may be on its way still"


def test_a_desired_names_every_open_limit_of_its_pdu_lowering_first() -> None:
    bench = Bench(n=3)
    (first,) = bench.want(1.0, 700.0, 500.0, 500.0, need_w=500.0)
    assert [w.outlet for w in first.limits] == [1]
    (second,) = bench.want(1.1, 700.0, 500.0, 400.0, need_w=100.0, urgent=True)
    assert second.limits == (LimitWrite(3, 400.0), LimitWrite(1, 700.0))
    assert [d.outlet for d in second.decisions] == [2]


def test_a_raise_that_is_not_permitted_any_more_is_withdrawn() -> None:
    bench = Bench()
    assert len(bench.want(1.0, 900.0, need_w=900.0)) == 1
    (empty,) = bench.want(1.1, math.nan)
    assert (empty.limits, empty.decisions) == ((), ())
    assert not bench.actuator.limits(0).pending.any()


def test_one_slow_pdu_leaves_the_other_alone() -> None:
    bench = Bench(n=2, per_pdu=1)
    one, two = bench.want(1.0, 700.0, 700.0, need_w=700.0)
    assert (one.pdu, two.pdu) == ("pdu-0", "pdu-1")
    bench.answer(1.2, two)
    (again,) = bench.want(1.3, 700.0, 900.0, need_w=700.0)
    assert (again.pdu, again.limits) == ("pdu-1", (LimitWrite(1, 900.0),))


def test_the_read_back_decides() -> None:
    bench = Bench()
    (desired,) = bench.want(1.0, 700.0, need_w=700.0)
    bench.answer(1.2, desired, read_back_w=650.0)
    limits = bench.actuator.limits(0)
    assert (limits.limit_w[0], limits.pending[0], math.isnan(limits.open_w[0])) == (650.0, False, True)


def test_a_raise_that_failed_and_waits_once_more_counts_until_the_newest_batch_ends() -> None:
    bench = Bench(n=2)
    (first,) = bench.want(1.0, 700.0, 500.0, need_w=500.0)
    (second,) = bench.want(1.1, 700.0, 800.0, need_w=500.0)
    assert second.limits == (LimitWrite(1, 700.0), LimitWrite(2, 800.0)), (
        "what is under way stands in the newer one, too"
    )
    bench.answer(1.2, first, read_back_w=500.0)
    limits = bench.actuator.limits(0)
    assert limits.pending.tolist() == [True, True]
    assert (limits.limit_w.tolist(), limits.open_w.tolist()) == ([500.0, 500.0], [700.0, 800.0])
    bench.answer(1.4, second, read_back_w=500.0)
    limits = bench.actuator.limits(0)
    assert limits.pending.tolist() == [False, False]
    assert np.isnan(limits.open_w).all()


def test_a_limit_that_the_device_rounded_is_not_written_again() -> None:
    bench = Bench(lower_hold_s=0.0)
    assert len(bench.want(1.0, 700.0, need_w=700.0)) == 1
    outcome = WriteOutcome(1, 700.0, 690.0, True, None, S, S)
    bench.actuator.confirm("pdu-0", S, ApplyResult((outcome,), 2))
    assert bench.actuator.limits(0).limit_w[0] == 690.0
    assert bench.want(2.0, 700.0, need_w=700.0, protective=True) == ()
    assert len(bench.want(3.0, 710.0, need_w=710.0)) == 1
    bench.actuator.observe("pdu-0", _poll(4 * S, {1: 600.0}))
    bench.actuator.lost("pdu-0", 4 * S)
    (again,) = bench.want(5.0, 700.0, need_w=700.0)
    assert again.decisions[0].from_w == 600.0


def test_writes_that_fail_three_times_leave_the_outlet_uncontrolled_for_a_while() -> None:
    bench = Bench(retry_s=0.4, attempts=3, uncontrolled_s=600.0)
    t_s, writes = 1.0, 0
    while not bench.actuator.limits(round(t_s * S)).uncontrolled[0]:
        for desired in bench.want(t_s, 700.0, need_w=700.0):
            writes += 1
            bench.answer(t_s, desired, read_back_w=500.0)
        t_s += 0.1
    assert writes == 3
    assert t_s == pytest.approx(1.0 + 2 * 0.4 + 0.1, abs=0.01)
    assert bench.actuator.limits(round((t_s + 599.0) * S)).uncontrolled[0]
    assert not bench.actuator.limits(round((t_s + 601.0) * S)).uncontrolled[0]
    bench.actuator.forgive("pdu-0")
    assert not bench.actuator.limits(round(t_s * S)).uncontrolled[0]


def test_a_lost_batch_counts_until_the_next_poll_and_is_tried_again() -> None:
    bench = Bench(retry_s=0.4)
    bench.want(1.0, 700.0, need_w=700.0)
    bench.actuator.lost("pdu-0", round(1.5 * S))
    limits = bench.actuator.limits(0)
    assert (limits.pending[0], limits.open_w[0]) == (False, 700.0)
    bench.actuator.observe("pdu-0", _poll(round(1.6 * S), {1: 700.0}))
    limits = bench.actuator.limits(0)
    assert (limits.limit_w[0], math.isnan(limits.open_w[0])) == (700.0, True)
    assert bench.actuator.foreign_writers(round(1.6 * S)) == frozenset()
    (desired,) = bench.want(2.0, 800.0, need_w=800.0)
    assert desired.limits == (LimitWrite(1, 800.0),)


def test_the_step_is_the_one_that_the_device_tells() -> None:
    bench = Bench(deadband=0.001)
    state = LimitState(460.0, True, LimitKind.ALARM, step_w=230.0)
    bench.actuator.observe("pdu-0", PduReading(0, None, {}, {}, {}, {1: state}))
    assert bench.actuator.limits(0).step_w.tolist() == [230.0]
    assert bench.want(1.0, 689.0, need_w=689.0) == (), "it would stay 460 W"
    assert len(bench.want(1.1, 691.0, need_w=691.0)) == 1


def test_an_unanswered_write_is_forgotten_after_the_lease() -> None:
    bench = Bench(lease_s=10.0)
    bench.want(1.0, 700.0, need_w=700.0)
    assert bench.want(10.9, 700.0, need_w=700.0) == ()
    assert len(bench.want(11.2, 700.0, need_w=700.0)) == 1


def test_a_limit_that_stands_as_wanted_is_never_written_however_seldom_the_pdu_is_polled() -> None:
    bench = Bench(lease_s=10.0)
    wanted = np.array([500.0])
    for t_s in (1, 60, 3600, 86_400):
        assert bench.actuator.step(t_s * S, _granted(t_s * S, wanted), make_request(t_s * S, wanted), None) == ()
    bench.actuator.observe("pdu-0", PduReading(0, None, {}, {}, {}, {1: LimitState(None, None, LimitKind.ALARM)}))
    (desired,) = bench.actuator.step(86_401 * S, _granted(0, wanted), make_request(0, wanted), None)
    assert (desired.limits, desired.decisions[0].reason) == ((LimitWrite(1, 500.0),), "first")
    assert math.isnan(desired.decisions[0].forecast_w)


def test_an_unknown_limit_is_written() -> None:
    bench = Bench()
    bench.actuator.observe("pdu-0", PduReading(0, None, {}, {}, {}, {1: LimitState(500.0, False, LimitKind.ALARM)}))
    wanted = np.array([500.0])
    permitted = _granted(0, wanted)
    (desired,) = bench.actuator.step(S, permitted, make_request(0, wanted), None)
    assert (desired.decisions[0].reason, desired.decisions[0].from_w) == ("first", None)


def test_an_outlet_without_any_limit_gets_one_whatever_was_written_today() -> None:
    bench = Bench(writes_per_day=1, deadband=0.01)
    (desired,) = bench.want(1.0, 900.0, need_w=900.0)
    bench.answer(1.0, desired)
    assert bench.want(2.0, 1200.0, need_w=1200.0) == (), "all is used"
    forgot = PduReading(3 * S, 1.0, {}, {}, {}, {1: LimitState(500.0, False, LimitKind.ALARM)}, rebooted=True)
    bench.actuator.observe("pdu-0", forgot)
    (desired,) = bench.want(3.1, 1200.0, need_w=1200.0)
    assert (desired.decisions[0].reason, desired.limits) == ("first", (LimitWrite(1, 1200.0),))


def test_a_found_limit_that_was_put_back_is_nobody_elses_change() -> None:
    bench = Bench(foreign_changes=1)
    (desired,) = bench.want(1.0, 900.0, need_w=900.0)
    bench.answer(1.0, desired)
    # the found threshold is disabled, and stands as it stood
    restored = WriteOutcome(1, 0.0, 0.0, True, None, 2 * S, 2 * S, disabled=True)
    bench.actuator.confirm("pdu-0", 2 * S, ApplyResult((restored,), 1))
    assert math.isnan(bench.actuator.limits(2 * S).limit_w[0])
    off = {1: LimitState(0.0, False, LimitKind.ALARM)}
    assert bench.actuator.observe("pdu-0", PduReading(3 * S, None, {}, {}, {}, off)) == ()
    assert (
        bench.actuator.observe(
            "pdu-0", PduReading(4 * S, None, {}, {}, {}, {1: LimitState(80.0, True, LimitKind.ALARM)})
        )
        == ()
    )
    assert bench.actuator.observe("pdu-0", _poll(5 * S, {1: 90.0})) == ("pdu-0/1",)


def test_the_budget_stops_lowering_first_then_raising_never_protection() -> None:
    bench = Bench(writes_per_day=8, raise_reserve=0.25, lower_hold_s=0.0, deadband=0.01)
    t_s = 1.0
    for k in range(6):
        (desired,) = bench.want(t_s, 900.0 if k % 2 == 0 else 300.0, need_w=0.0)
        bench.answer(t_s, desired)
        t_s += 1.0
    assert bench.actuator.writes_used(round(t_s * S)).tolist() == [6]
    assert bench.want(t_s, 200.0) == (), "lowering has used its part"
    for limit_w in (900.0, 1000.0):
        (desired,) = bench.want(t_s, limit_w, need_w=limit_w)
        bench.answer(t_s, desired)
    assert bench.want(t_s, 1200.0, need_w=1200.0) == (), "all is used"
    assert bench.want(t_s, 100.0, urgent=True) == ()
    (safe,) = bench.want(t_s, 200.0, need_w=200.0, urgent=True, protective=True)
    bench.answer(t_s, safe)
    assert safe.decisions[0].protective
    assert bench.actuator.writes_used(round(t_s * S)).tolist() == [8]
    assert bench.actuator.writes_used(round((86_400 + 1.5) * S)).tolist() == [7]
    assert len(bench.want(86_402.0, 700.0, need_w=700.0)) == 1


def test_the_budget_may_differ_by_outlet() -> None:
    rack = make_rack(2, rating_w=RATING_W)
    actuator = Actuator(ActuatorConfig(), rack, writes_per_day=np.array([1, 5]))
    actuator.observe("pdu-0", _poll(0, {1: 500.0, 2: 500.0}))
    counts = []
    for k in range(1, 8):
        wanted = np.full(2, 500.0 + 100.0 * k)
        permitted = _granted(k * S, wanted)
        for desired in actuator.step(k * S, permitted, make_request(k * S, wanted), None):
            outcomes = [WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, k * S, k * S) for w in desired.limits]
            actuator.confirm("pdu-0", k * S, ApplyResult(tuple(outcomes), 2))
        counts.append(actuator.writes_used(k * S).tolist())
    assert counts[-1] == [1, 5]


def test_somebody_else_is_named_and_counted_by_occasion() -> None:
    bench = Bench(n=3)
    actuator = bench.actuator
    for k, limit_w in enumerate((610.0, 620.0), start=1):
        changed = actuator.observe("pdu-0", _poll(k * 10 * S, dict.fromkeys((1, 2, 3), limit_w)))
        assert changed == ("pdu-0/1", "pdu-0/2", "pdu-0/3")
    assert actuator.foreign_writers(20 * S) == frozenset()
    assert actuator.observe("pdu-0", _poll(30 * S, {1: 630.0})) == ("pdu-0/1",)
    assert actuator.foreign_writers(30 * S) == frozenset({"pdu-0"})
    assert actuator.limits(0).limit_w[0] == 630.0
    assert actuator.foreign_writers(71 * S) == frozenset()


def test_a_fight_ends_within_ten_writes() -> None:
    """The other one undoes each of ours; the guard is told after the third time."""
    bench = Bench(lower_hold_s=0.0)
    writes, k = 0, 0
    while not bench.actuator.foreign_writers(k * S):
        k += 1
        for desired in bench.want(float(k), 800.0, need_w=800.0):
            writes += len(desired.limits)
            bench.answer(float(k), desired)
        bench.actuator.observe("pdu-0", _poll(k * S + 1, {1: 500.0}))
    assert writes <= 3


def test_what_somebody_else_undoes_is_raised_once_a_second() -> None:
    """Room for a raise comes bit by bit: without rest it would be a write a tick until the third change is seen."""
    bench = Bench()
    bench.actuator.observe("pdu-0", _poll(1 * S, {1: 100.0}))
    written = []
    for k in range(21):
        t_s = 1.1 + k * 0.1
        for desired in bench.want(t_s, 300.0 + 20.0 * k, need_w=300.0 + 20.0 * k):
            bench.answer(t_s, desired)
            written.append(desired.limits[0].limit_w)
    assert written == [300.0, 500.0, 700.0]


def test_after_a_reboot_nobody_is_blamed() -> None:
    bench = Bench()
    assert bench.actuator.observe("pdu-0", _poll(2 * S, {1: 2000.0}, rebooted=True)) == ()
    assert bench.actuator.limits(0).limit_w[0] == 2000.0
    assert bench.actuator.observe("pdu-0", _poll(3 * S, {1: 1000.0})) == ("pdu-0/1",)


def test_a_limit_that_is_disabled_is_told_from_one_that_could_not_be_read() -> None:
    bench = Bench()
    (desired,) = bench.want(1, 600.0, need_w=600.0)
    bench.answer(1, desired)
    for limit_w, enabled, disabled in (
        (600.0, False, True),
        (None, None, False),
        (None, False, True),
        (600.0, None, False),
    ):
        state = LimitState(limit_w, enabled, LimitKind.ALARM)
        bench.actuator.observe("pdu-0", PduReading(2 * S, None, {}, {}, {}, {1: state}, rebooted=True))
        limits = bench.actuator.limits(2 * S)
        assert (limits.disabled[0], np.isnan(limits.limit_w[0])) == (disabled, disabled or limit_w is None)
        assert limits.last_w[0] == 600.0


def test_a_device_that_keeps_the_threshold_disabled_is_no_foreign_writer() -> None:
    bench = Bench()
    disabled = LimitState(700.0, False, LimitKind.ALARM)
    for k in range(1, 6):
        now_ns = 10 * k * S
        bench.actuator.observe("pdu-0", PduReading(now_ns, None, {}, {}, {}, {1: disabled}))
        wanted = np.array([700.0])
        for desired in bench.actuator.step(now_ns, _granted(now_ns, wanted), make_request(now_ns, wanted), None):
            bench.answer(10.0 * k, desired, read_back_w=700.0)
        changed = bench.actuator.observe("pdu-0", PduReading(now_ns + S, None, {}, {}, {}, {1: disabled}))
        assert changed == ()
    assert bench.actuator.limits(60 * S).uncontrolled[0]
    assert bench.actuator.foreign_writers(60 * S) == frozenset()


def test_a_write_that_was_refused_before_the_wire_does_not_count() -> None:
    bench = Bench()
    outcome = WriteOutcome(1, 700.0, None, False, "out of range", 0, None)
    bench.actuator.confirm("pdu-0", S, ApplyResult((outcome,), 0))
    assert bench.actuator.writes_used(S).tolist() == [0]


def test_a_change_on_an_outlet_that_was_given_back_is_no_foreign_change() -> None:
    bench = Bench(n=2)
    bench.actuator.observe("pdu-0", _poll(0, {1: 500.0, 2: 500.0}))
    bench.actuator.opt_in(np.array([False, True]))
    assert bench.actuator.observe("pdu-0", _poll(S, {1: 300.0, 2: 300.0})) == (bench.rack.outlet_ids[1],)


@pytest.mark.parametrize("wrong", [{"deadband": -0.1}, {"writes_per_day": 0}, {"raise_reserve": 1.5}, {"lease_s": 0.0}])
def test_a_wrong_option_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ActuatorConfig(**wrong)  # type: ignore[arg-type]


def test_the_same_inputs_give_the_same_decisions() -> None:
    def run() -> list[Desired]:
        bench = Bench(n=4)
        rng = np.random.default_rng(3)
        out: list[Desired] = []
        for k in range(100):
            wanted = rng.uniform(100.0, 1500.0, 4)
            got = bench.want(k * TICK_NS / S, *wanted, need_w=300.0)
            for desired in got:
                bench.answer(k * TICK_NS / S, desired)
            out += got
        return out

    assert run() == run()
