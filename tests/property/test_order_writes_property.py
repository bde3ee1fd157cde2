"""Outlet and server cap, in whatever order writes end: raising, the outlet first; lowering, the cap first, then the draw."""

import numpy as np
from capping_rack import NO_CAP_W, random_rack, wander
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.records import LimitKind

EPSILON_W = 1e-6
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=6)
@given(SEEDS, st.sampled_from([LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT]))
def test_no_outlet_cuts_off_below_what_its_servers_cap_lets_through(seed: int, kind: LimitKind) -> None:
    """From the moment a cap stands: the limit on the PDU is above it by the margin, whatever has been written by then."""
    rack, rng = random_rack(seed, kind, found_w=700.0)
    margin_w = 0.05 * 2000.0
    for _ in range(400):
        wander(rack, rng)
        rack.tick()
        for item in rack.rack.loads:
            server = rack.servers[item.name]
            lowest_w = np.ceil(max(server.lowest_w, item.floor_w))
            if server.cap_w == NO_CAP_W or server.cap_w <= lowest_w:  # it cannot go below what it found
                continue
            for i in item.outlets:
                assert rack.limit_w(i) >= server.cap_w + margin_w - EPSILON_W, (item.name, rack.limit_w(i), server)


@settings(max_examples=8)
@given(SEEDS)
def test_an_alarm_is_lowered_for_scarcity_only_after_its_servers_cap(seed: int) -> None:
    """While a cap is on its way down the outlet's limit does not fall below what the server may still draw.

    It falls from what was read back: a write whose answer is lost may stand higher, and no one knows before the next poll.
    """
    rack, rng = random_rack(seed)
    for _ in range(300):
        wander(rack, rng)
        snapshot = rack.tick()
        bound_w = rack.pipeline.capping.outlet_bound_w(snapshot.in_force)
        assert bound_w is not None
        for desired in snapshot.desired:
            for decision in desired.decisions:
                bound, from_w = bound_w[decision.outlet], decision.from_w
                if not np.isnan(bound) and from_w is not None and decision.to_w < from_w:
                    assert decision.to_w >= min(bound, from_w) - EPSILON_W


def test_a_cap_rises_only_under_limits_that_stand() -> None:
    """Step by step: what the PDUs hold when a higher cap is asked for lets it through already."""
    raised: list[str] = []

    @settings(max_examples=8)
    @given(SEEDS, st.sampled_from([LimitKind.ALARM, LimitKind.TRIP_OFF]))
    def holds(seed: int, kind: LimitKind) -> None:
        rack, rng = random_rack(seed, kind, found_w=700.0)
        margin_w = 0.05 * 2000.0 if kind is LimitKind.TRIP_OFF else 0.0
        for _ in range(400):
            wander(rack, rng)
            snapshot = rack.tick()
            for cap in snapshot.cap_plan.desired:
                if cap.reason != "raise":
                    continue
                raised.append(cap.load)
                assert cap.cap_w is not None
                item = next(item for item in rack.rack.loads if item.name == cap.load)
                assert all(rack.limit_w(i) >= cap.cap_w + margin_w - EPSILON_W for i in item.outlets)

    holds()
    assert raised, "one rack in ten has none"
