"""What every allocation keeps: ratings, priorities, fairness, and honesty about what was not granted."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_examples import constraint, load, make_rack, racks, watts

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.records import Allocation, Ceiling, FloatArray, RackModel

EPSILON_W = 1e-6
CONFIG = AllocatorConfig()


def _allocate(rack: RackModel, request_w: FloatArray, **changes: float) -> Allocation:
    unknown = np.full(rack.n, np.nan)
    return allocate(0, request_w, rack, (), unknown, unknown, replace(CONFIG, **changes))


@st.composite
def cases(draw: st.DrawFn) -> tuple[RackModel, FloatArray]:
    rack = draw(racks())
    return rack, draw(watts(rack.n))


@settings(max_examples=100)
@given(cases(), st.data())
def test_no_rating_and_no_ceiling_is_exceeded(case: tuple[RackModel, FloatArray], data: st.DataObject) -> None:
    """Checked from the definitions, not with the code's own rows: any feed may be lost, and amps add up arithmetically."""
    rack, request_w = case
    factor = np.array(data.draw(st.lists(st.floats(0.5, 1.0), min_size=rack.n, max_size=rack.n)))
    voltage_v = np.array(data.draw(st.lists(st.floats(190.0, 250.0), min_size=rack.n, max_size=rack.n)))
    names = [c.name for c in rack.constraints]
    ceilings = [
        Ceiling(name, float(data.draw(st.integers(0, 2000))), "test", "drawn")
        for name in (data.draw(st.lists(st.sampled_from(names), max_size=3)) if names else [])
    ]
    controlled = np.array(data.draw(st.lists(st.booleans(), min_size=rack.n, max_size=rack.n)))
    drawn_w = data.draw(watts(rack.n))
    got = allocate(0, request_w, rack, ceilings, factor, voltage_v, CONFIG, controlled, drawn_w)
    assert np.all(got.grant_w >= 0.0)
    assert np.all(got.grant_w <= rack.rating_w + EPSILON_W)
    for c in rack.constraints:
        for lost in (None, 0, 1):
            draws_w = np.zeros(rack.n)
            for item in rack.loads:
                alive = [o for k, o in enumerate(item.outlets) if len(item.outlets) == 1 or k != lost]
                whole_w = got.grant_w[item.outlets[0]]
                draws_w[alive] = whole_w / len(alive)
            carried_w = c.share * draws_w
            if c.rating_w is not None:
                assert carried_w.sum() <= c.rating_w * c.derate + EPSILON_W
            if c.rating_va is not None:
                assert (carried_w / factor).sum() <= c.rating_va * c.derate + EPSILON_W
            if c.rating_a is not None:
                assert (carried_w / factor / voltage_v).sum() <= c.rating_a * c.derate + EPSILON_W
            for ceiling in ceilings:
                assert ceiling.constraint != c.name or carried_w.sum() <= ceiling.limit_w + EPSILON_W


@settings(max_examples=100)
@given(cases())
def test_what_is_not_granted_is_returned(case: tuple[RackModel, FloatArray]) -> None:
    rack, request_w = case
    got = _allocate(rack, request_w)
    for item in rack.loads:
        outlets = list(item.outlets)
        asked_w = request_w[outlets].sum()
        granted_w = got.grant_w[outlets[0]]
        assert np.all(got.grant_w[outlets] == granted_w)
        short_w = got.shortfall_w[outlets].sum()
        assert np.all(got.shortfall_w >= 0.0)
        assert abs(short_w - max(0.0, asked_w - granted_w)) <= EPSILON_W
        if short_w > EPSILON_W:
            assert all(got.rule[o] != "fits" for o in outlets)


@settings(max_examples=100)
@given(cases(), st.randoms(use_true_random=False))
def test_permuting_loads_permutes_grants(case: tuple[RackModel, FloatArray], random: object) -> None:
    rack, request_w = case
    order = list(range(len(rack.loads)))
    random.shuffle(order)  # type: ignore[attr-defined]
    outlets = [o for index in order for o in rack.loads[index].outlets]
    new_place = {old: new for new, old in enumerate(outlets)}
    permuted = replace(
        rack,
        rating_w=rack.rating_w[outlets],
        loads=tuple(
            replace(rack.loads[index], outlets=tuple(new_place[o] for o in rack.loads[index].outlets))
            for index in order
        ),
        load_of=np.array([order.index(rack.load_of[o]) for o in outlets]),
        constraints=tuple(replace(c, share=c.share[outlets]) for c in rack.constraints),
    )
    before = _allocate(rack, request_w)
    after = _allocate(permuted, request_w[outlets])
    np.testing.assert_allclose(after.grant_w, before.grant_w[outlets], atol=EPSILON_W)
    np.testing.assert_allclose(after.shortfall_w, before.shortfall_w[outlets], atol=EPSILON_W)


@settings(max_examples=100)
@given(st.data())
def test_raising_the_root_budget_alone_never_lowers_a_grant(data: st.DataObject) -> None:
    """Single-corded, one unit, one tier; breakers within a feed within the rack."""
    n = data.draw(st.integers(2, 10))
    rating = st.integers(1, 3000)
    loads = [
        load(i, floor_w=float(data.draw(st.integers(0, 200))), demand_w=float(data.draw(st.integers(1, 1500))))
        for i in range(n)
    ]
    cut = data.draw(st.integers(1, n - 1))
    inner = [
        constraint("b0", range(cut), n, w=data.draw(rating)),
        constraint("b1", range(cut, n), n, w=data.draw(rating)),
        constraint("f0", range(max(1, cut // 2)), n, kind="feed", w=data.draw(rating)),
    ]
    request_w = data.draw(watts(n))
    root_w, more_w = data.draw(rating), data.draw(rating)
    share = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    small = make_rack(n, [*inner, constraint("rack", range(n), n, kind="rack", w=root_w)], loads=loads)
    large = make_rack(n, [*inner, constraint("rack", range(n), n, kind="rack", w=root_w + more_w)], loads=loads)
    before = _allocate(small, request_w, slack_share=share)
    after = _allocate(large, request_w, slack_share=share)
    assert np.all(after.grant_w >= before.grant_w - EPSILON_W)


@settings(max_examples=100)
@given(cases())
def test_who_is_short_sits_on_a_full_constraint_where_nobody_alike_got_a_larger_part(
    case: tuple[RackModel, FloatArray],
) -> None:
    """The definition of tiers and of equal fractions of head-room, with floors that fit."""
    rack, request_w = case
    rack = replace(rack, loads=tuple(replace(x, floor_w=0.0) for x in rack.loads))
    got = _allocate(rack, request_w, slack_share=0.0)
    env = got.envelope
    used = env.used(got.grant_w)
    asked_w = np.array([request_w[list(x.outlets)].sum() for x in rack.loads])
    top_w = np.array([min(x.demand_w, *rack.rating_w[list(x.outlets)]) for x in rack.loads])
    want_w = np.minimum(asked_w, top_w)
    grant_w = got.grant_w[env.first]
    part = np.divide(grant_w, want_w, out=np.zeros(len(want_w)), where=want_w > 0.0)
    for k, item in enumerate(rack.loads):
        if grant_w[k] >= want_w[k] - EPSILON_W:
            continue
        rows = [r for r in range(len(env.rows)) if env.coefficient[r, list(item.outlets)].max() > 0.0]
        full = [r for r in rows if used[r] >= env.cap[r] * (1.0 - 1e-6) - 1e-9]
        assert full
        assert any(_nobody_better(rack, got, r, item.tier, part, part[k]) for r in full)


def _nobody_better(rack: RackModel, got: Allocation, row: int, tier: int, part: FloatArray, mine: float) -> bool:
    for j, other in enumerate(rack.loads):
        on_row = got.envelope.coefficient[row, list(other.outlets)].max() > 0.0
        if on_row and other.tier == tier and part[j] > mine + 1e-6:
            return False
        if on_row and other.tier > tier and got.grant_w[other.outlets[0]] > EPSILON_W:
            return False
    return True


@settings(max_examples=50)
@given(cases())
def test_same_input_same_output(case: tuple[RackModel, FloatArray]) -> None:
    rack, request_w = case
    kept = request_w.copy()
    one, two = _allocate(rack, request_w), _allocate(rack, request_w)
    assert one.grant_w.tobytes() == two.grant_w.tobytes()
    assert one.rule == two.rule
    assert one.usage_w == two.usage_w
    assert request_w.tobytes() == kept.tobytes()
