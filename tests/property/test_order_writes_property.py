"""A server cap never stands above its outlet's limit, in whatever order writes end."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.actuator import Change, order_writes

MARGIN_W = 20.0


@settings(max_examples=200, deadline=None)
@given(
    st.integers(50, 500),
    st.integers(0, 500),
    st.lists(st.tuples(st.integers(50, 1000), st.integers(50, 1000)), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_outlet_first_when_raising_cap_first_when_lowering(
    cap_w: int, above_w: int, wishes: list[tuple[int, int]], seed: int
) -> None:
    """A device model: the load draws up to its cap, and follows a lowered cap one step later. Writes end at random."""
    rng = np.random.default_rng(seed)
    cap, outlet, draw = {"a": float(cap_w)}, {"a": float(cap_w + above_w)}, {"a": float(cap_w)}
    for wish_outlet, wish_cap in wishes:
        for _ in range(int(rng.integers(1, 8))):
            changes = [Change("a", False, float(wish_outlet)), Change("a", True, float(wish_cap))]
            go, wait = order_writes(changes, outlet, cap, draw, MARGIN_W)
            assert sorted((*go, *wait), key=repr) == sorted(changes, key=repr)
            for index in rng.permutation(len(go)):
                change = go[index]
                lowered = not change.is_cap and change.to_w < outlet["a"]
                if rng.random() < 0.6:
                    (cap if change.is_cap else outlet)["a"] = change.to_w
                    assert not lowered or draw["a"] + MARGIN_W <= outlet["a"]
                assert cap["a"] <= outlet["a"]
            if rng.random() < 0.5:
                draw["a"] = min(cap["a"], float(rng.uniform(0.0, 1000.0)))


@settings(max_examples=100, deadline=None)
@given(st.integers(50, 500), st.integers(0, 500), st.integers(100, 1000), st.integers(0, 900))
def test_a_sound_wish_is_reached(cap_w: int, above_w: int, wish_outlet: int, below_w: int) -> None:
    """Within four rounds when each write succeeds and the draw follows its cap."""
    wish_cap = float(max(0, wish_outlet - below_w - MARGIN_W))
    cap, outlet = {"a": float(cap_w)}, {"a": float(cap_w + above_w)}
    changes = [Change("a", False, float(wish_outlet)), Change("a", True, wish_cap)]
    for _ in range(4):
        for change in order_writes(changes, outlet, cap, {"a": cap["a"]}, MARGIN_W)[0]:
            (cap if change.is_cap else outlet)["a"] = change.to_w
    assert (outlet["a"], cap["a"]) == (float(wish_outlet), wish_cap)


def test_a_load_without_a_cap_is_free_and_an_unknown_draw_is_not() -> None:
    lower = Change("a", False, 100.0)
    assert order_writes([lower], {"a": 300.0}, {}, {}, MARGIN_W) == ((lower,), ())
    assert order_writes([lower], {"a": 300.0}, {"a": 50.0}, {}, MARGIN_W) == ((), (lower,))
