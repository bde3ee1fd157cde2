"""The ladder as a machine on virtual time: any flags, any acknowledgement, any time between, against a plain account of it."""

from dataclasses import fields

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rack_examples import constraint, make_limits, make_rack, make_readings, make_request

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.guard import CAUSES, SCOPED, GuardConfig, HealthFlags, at_start, held, ladder, permit
from rpi_daemon.records import LimitKind, Mode, SafeState, SafeStatus

TICK_NS = 100_000_000
SEEN_TICKS = 10  # from one look to the next; of what is longer nobody knows
CONFIG = GuardConfig(recover_s=5.0)
RECOVER_NS = 5_000_000_000
RACK = make_rack(6, [constraint("b0", [0, 1, 2], 6, w=900.0), constraint("b1", [3, 4, 5], 6, w=900.0)], per_pdu=2)
EPSILON_W = 1e-6
SUBJECTS = {  # what a cause about a part of the rack may be about
    "sensor_stale": RACK.outlet_ids,
    "sensor_stuck": RACK.outlet_ids,
    "voltage_lost": RACK.outlet_ids,
    "transformer_reversed": RACK.outlet_ids,
    "breaker_blind": ("b0", "b1"),
    "overload": ("b0", "b1"),
    "over_derating": ("b0", "b1"),
    "pdu_unreachable": ("pdu-0", "pdu-1", "pdu-2"),
    "foreign_writer": ("pdu-0", "pdu-1", "pdu-2"),
    "calibration_expired": ("board-a",),
    "cap_unreachable": ("load-0",),
    "cap_uncontrolled": ("load-0",),
    "cap_not_held": ("load-0",),
}
BROKEN_W = 1000.0  # what all draw and want: more than fits
every_flag = st.builds(
    HealthFlags,
    **{
        f.name: st.frozensets(st.sampled_from(SUBJECTS[f.name])) if f.name in SUBJECTS else st.booleans()
        for f in fields(HealthFlags)
    },  # type: ignore[arg-type]
)
one_flag = st.sampled_from(sorted(CAUSES)).flatmap(
    lambda name: st.builds(
        lambda subject: HealthFlags(**{name: frozenset([subject]) if name in SUBJECTS else True}),  # type: ignore[arg-type]
        st.sampled_from(SUBJECTS.get(name, ("",))),
    )
)
kinds = st.lists(st.sampled_from(list(LimitKind)), min_size=RACK.n, max_size=RACK.n)
some_w = st.lists(st.floats(10.0, 600.0), min_size=RACK.n, max_size=RACK.n)


def _state_of(cause: str) -> SafeState:
    return CAUSES[cause.partition(":")[0]][0]


def _latches(cause: str) -> bool:
    return CAUSES[cause.partition(":")[0]][1]


class Ladder(RuleBasedStateMachine):
    """Keeps its own account: when each cause was last there, and which have not been acknowledged since."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.status: SafeStatus = at_start(0)
        self.flags = HealthFlags(starting=True)
        self.last_ns: dict[str, int] = {"starting": 0}
        self.latched: set[str] = set()
        self.states: list[tuple[int, SafeState]] = [(0, self.status.state)]

    def _tick(self, flags: HealthFlags, ticks: int, acknowledged: tuple[str, ...] = ()) -> None:
        self.now_ns += ticks * TICK_NS
        unseen_ns = max(0, (ticks - SEEN_TICKS) * TICK_NS)
        lately = {c for c, t in self.last_ns.items() if self.now_ns - t - unseen_ns < RECOVER_NS}
        self.last_ns = {c: t + unseen_ns * (c in lately) for c, t in self.last_ns.items()}
        before, active = self.status, flags.causes()
        again = ladder(before, self.now_ns, flags, acknowledged, CONFIG)
        self.status = ladder(before, self.now_ns, flags, acknowledged, CONFIG)
        assert self.status == again
        self.latched = {c for c in self.latched if c in active or c not in acknowledged}
        self.latched |= {c for c in active if _latches(c)}
        self.last_ns |= dict.fromkeys((*active, *self.latched), self.now_ns)
        self.flags = flags
        self.states.append((self.now_ns, self.status.state))
        if self.status.state > before.state:
            assert self.status.state == max(_state_of(c) for c in active), "down at once, and as far as the strictest"
        if self.status.state < before.state:
            worse = [c for c in self.last_ns if _state_of(c) > self.status.state]
            assert all(self.now_ns - self.last_ns[c] >= RECOVER_NS for c in worse), "up before it was healthy"
        assert self.status.since_mono_ns >= before.since_mono_ns
        assert (self.status.since_mono_ns == self.now_ns) == (
            self.status.state != before.state or before.since_mono_ns == self.now_ns
        )

    def _health_for(self, ticks: int) -> None:
        """A loop that does not stand still."""
        for _ in range(ticks // SEEN_TICKS):
            self._tick(HealthFlags(), SEEN_TICKS)

    @initialize(flags=every_flag)
    def begin(self, flags: HealthFlags) -> None:
        self._tick(flags, 1)

    @rule(flags=every_flag, ticks=st.integers(1, 60))
    def anything(self, flags: HealthFlags, ticks: int) -> None:
        self._tick(flags, ticks)

    @rule(flags=one_flag, ticks=st.integers(1, 60))
    def one(self, flags: HealthFlags, ticks: int) -> None:
        self._tick(flags, ticks)

    @rule(ticks=st.integers(1, 60))
    def health(self, ticks: int) -> None:
        self._tick(HealthFlags(), ticks)

    @rule(flags=st.just(HealthFlags()) | one_flag, everything=st.booleans())
    def acknowledge(self, flags: HealthFlags, everything: bool) -> None:
        named = self.status.latched if everything else self.status.latched[:1]
        self._tick(flags, 1, (*named, "nobody:knows"))

    @precondition(lambda self: not self.latched)
    @rule()
    def enough_health_is_normal(self) -> None:
        self._tick(HealthFlags(), 1)
        self._health_for(RECOVER_NS // TICK_NS)
        assert self.status.state is SafeState.NORMAL
        assert self.status.causes == ()
        assert self.status.seen_ns == {}

    @precondition(lambda self: bool(self.latched))
    @rule()
    def health_alone_clears_no_latch(self) -> None:
        kept = set(self.latched)
        self._health_for(2 * RECOVER_NS // TICK_NS)
        assert set(self.status.latched) == kept
        assert self.status.state == max(_state_of(c) for c in kept)

    @rule(flags=one_flag, period=st.integers(1, 49))
    def what_comes_and_goes_does_not_flap(self, flags: HealthFlags, period: int) -> None:
        """Gone for less than recover_s each time: the state moves at most once, down."""
        self._tick(flags, 1)
        state, since_ns = self.status.state, self.status.since_mono_ns
        for _ in range(4):
            self._tick(HealthFlags(), period)
            assert self.status.state <= state
            self._tick(flags, 1)
            if self.status.state != state:  # something older than this has recovered meanwhile
                state, since_ns = self.status.state, self.status.since_mono_ns
            assert self.status.state >= max(_state_of(c) for c in flags.causes())
            assert self.status.since_mono_ns >= since_ns

    @rule(limit_w=some_w, open_w=some_w, draw_w=some_w, kind=kinds)
    def limits_obey_the_state(
        self, limit_w: list[float], open_w: list[float], draw_w: list[float], kind: list[LimitKind]
    ) -> None:
        asked_w = np.minimum(np.array(open_w), np.array(limit_w))  # a lowering that waits for its read-back
        limits = make_limits(limit_w, kind=kind, open_w=asked_w)
        nothing = np.full(RACK.n, np.nan)
        wanted_w = np.full(RACK.n, BROKEN_W)
        got = permit(
            self.now_ns, Mode.CLOSED_LOOP, self.status, RACK, make_request(5, wanted_w, wanted_w),
            allocate(5, wanted_w, RACK, (), nothing, nothing, AllocatorConfig()),
            make_readings(5, np.array(draw_w)), limits, CONFIG,
        )  # fmt: skip
        written = np.isfinite(got.limit_w)
        old_w = np.array(limit_w)
        if self.status.state is SafeState.HOLD:
            frozen = held(RACK, self.status)
            assert np.all(got.limit_w[written & frozen] <= old_w[written & frozen] + EPSILON_W)
        if self.status.state >= SafeState.STATIC_SAFE:
            cuts = np.array([k in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT) for k in kind])
            most_w = np.where(cuts, np.maximum(RACK.static_safe_w, old_w), RACK.static_safe_w)
            assert np.all(got.limit_w[written] <= most_w[written] + EPSILON_W)

    @invariant()
    def the_state_is_the_strictest_of_what_was_there_lately(self) -> None:
        lately = {c for c, t in self.last_ns.items() if self.now_ns - t < RECOVER_NS}
        assert set(self.status.causes) == lately
        assert self.status.state == max((_state_of(c) for c in lately), default=SafeState.NORMAL)
        assert set(self.status.latched) == self.latched

    @invariant()
    def causes_are_known_and_the_strictest_comes_first(self) -> None:
        ranks = [_state_of(c) for c in self.status.causes]
        assert ranks == sorted(ranks, reverse=True)

    @invariant()
    def a_hold_covers_what_its_causes_are_about(self) -> None:
        held_now = held(RACK, self.status)
        holding = [c for c in self.status.causes if _state_of(c) >= SafeState.HOLD]
        if any(c.partition(":")[0] not in SCOPED for c in holding):
            assert held_now.all()
            return
        members = set()
        for cause in holding:
            name, _, subject = cause.partition(":")
            mine = {i for i in range(RACK.n) if subject in (RACK.pdu_of[i], RACK.outlet_ids[i])}
            mine |= {"b0": {0, 1, 2}, "b1": {3, 4, 5}}.get(subject, set())
            if SCOPED[name]:
                mine |= {j for i in mine for j in (range(3) if i < 3 else range(3, 6))}
            members |= mine
        assert set(np.flatnonzero(held_now).tolist()) == members


Ladder.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestLadder = Ladder.TestCase


def test_every_cause_is_a_flag_and_every_flag_a_cause() -> None:
    assert {f.name for f in fields(HealthFlags)} == set(CAUSES)
    assert set(SCOPED) <= set(SUBJECTS) <= set(CAUSES)
