"""Allocation by example: watts to amps, tiers, floors, slack, two feeds, ceilings."""

from dataclasses import replace

import numpy as np
import pytest
from rack_examples import constraint, load, make_rack, make_readings

from rpi_daemon.allocator import AllocatorConfig, LowestRecent, allocate
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import Allocation, Ceiling, Quality, RackModel

NO_SLACK = AllocatorConfig(slack_share=0.0)


def _grants(rack: RackModel, request_w: list[float], config: AllocatorConfig = NO_SLACK) -> Allocation:
    n = rack.n
    return allocate(7, np.array(request_w), rack, (), np.ones(n), np.full(n, 230.0), config)


def test_requests_that_fit_are_granted() -> None:
    got = _grants(make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)]), [300.0, 400.0])
    assert got.grant_w.tolist() == [300.0, 400.0]
    assert got.rule == ("fits", "fits")
    assert (got.t_mono_ns, got.usage_w, got.ceiling_w) == (7, {"b": 700.0}, {"b": 800.0})


def test_scarcity_gives_each_the_same_part_of_its_head_room_above_its_floor() -> None:
    loads = [load(0, floor_w=100.0), load(1, floor_w=200.0)]
    got = _grants(make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=loads), [500.0, 800.0])
    assert got.grant_w.tolist() == pytest.approx([300.0, 500.0])
    assert got.shortfall_w.tolist() == pytest.approx([200.0, 300.0])
    assert got.rule == ("b (W)", "b (W)")


def test_the_first_tier_is_served_first_but_floors_come_before() -> None:
    loads = [load(0, tier=0), load(1, tier=1, floor_w=100.0)]
    got = _grants(make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=loads), [900.0, 500.0])
    assert got.grant_w.tolist() == pytest.approx([700.0, 100.0])


def test_floors_that_do_not_fit_are_served_by_tier_and_named() -> None:
    loads = [load(0, tier=0, floor_w=600.0), load(1, tier=1, floor_w=600.0)]
    got = _grants(make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=loads), [600.0, 600.0])
    assert got.grant_w.tolist() == pytest.approx([600.0, 200.0])
    assert got.shortfall_w.tolist() == pytest.approx([0.0, 400.0])
    assert got.rule[1] == "b (W)"


def test_who_meets_a_full_breaker_stops_and_the_others_go_on() -> None:
    rack = make_rack(3, [constraint("b", [0, 1], 3, w=500.0), constraint("r", [0, 1, 2], 3, kind="rack", w=1250.0)])
    got = _grants(rack, [400.0, 400.0, 800.0])
    assert got.grant_w.tolist() == pytest.approx([200.0, 200.0, 600.0])
    assert got.rule == ("b (W)", "b (W)", "r (W)")


def test_amps_are_watts_by_the_lowest_power_factor_and_voltage() -> None:
    rack = make_rack(1, [constraint("b", [0], 1, a=5.0)])
    got = allocate(0, np.array([1000.0]), rack, (), np.array([0.8]), np.array([200.0]), NO_SLACK)
    assert got.grant_w[0] == pytest.approx(0.8 * 5.0 * 200.0 * 0.8)
    assert got.ceiling_w["b"] == pytest.approx(640.0)


def test_apparent_power_is_rated_too() -> None:
    rack = make_rack(1, [constraint("b", [0], 1, va=1000.0)])
    got = allocate(0, np.array([1000.0]), rack, (), np.array([0.75]), np.array([230.0]), NO_SLACK)
    assert got.grant_w[0] == pytest.approx(600.0)


def test_a_line_to_line_outlet_loads_both_phases() -> None:
    """Outlet 0 is on L1 and L2, outlet 1 on L1 alone: L1 is the tight one."""
    rack = make_rack(
        2, [constraint("L1", [0, 1], 2, kind="phase", a=5.0), constraint("L2", [0], 2, kind="phase", a=5.0)]
    )
    got = _grants(rack, [600.0, 600.0])
    assert got.grant_w.sum() == pytest.approx(0.8 * 5.0 * 230.0)
    assert got.rule == ("L1 (A)", "L1 (A)")


def test_either_feed_can_carry_a_dual_corded_load_alone() -> None:
    feeds = [constraint("A", [0, 2], 3, kind="feed", w=1000.0), constraint("B", [1], 3, kind="feed", w=500.0)]
    rack = make_rack(3, feeds, loads=[load(0, 1), load(2)])
    got = _grants(rack, [300.0, 300.0, 500.0])
    assert got.grant_w.tolist() == pytest.approx([400.0, 400.0, 400.0])
    assert got.shortfall_w.tolist() == pytest.approx([100.0, 100.0, 100.0])
    assert got.rule == ("B (W)", "B (W)", "A (W)")


def test_a_rack_budget_counts_a_dual_corded_load_once() -> None:
    rack = make_rack(2, [constraint("r", [0, 1], 2, kind="rack", w=1000.0)], loads=[load(0, 1)])
    got = _grants(rack, [350.0, 350.0])
    assert got.grant_w.tolist() == [700.0, 700.0]
    assert got.usage_w == {"r": 700.0}


def test_slack_goes_towards_demand_in_proportion_to_head_room() -> None:
    loads = [load(0, demand_w=400.0), load(1, demand_w=1000.0)]
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=loads)
    got = _grants(rack, [200.0, 200.0], AllocatorConfig(slack_share=0.5))
    assert got.grant_w.tolist() == pytest.approx([240.0, 360.0])
    assert got.shortfall_w.tolist() == [0.0, 0.0]


def test_a_request_beyond_the_demand_is_cut_and_shown() -> None:
    got = _grants(make_rack(1, loads=[load(0, demand_w=400.0)]), [450.0])
    assert (got.grant_w[0], got.shortfall_w[0], got.rule[0]) == (400.0, 50.0, "demand or rating of the load")


def test_what_we_do_not_control_is_reserved_first() -> None:
    loads = [load(0, tier=0), load(1, tier=5)]
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=loads)
    got = allocate(
        0,
        np.array([600.0, 500.0]),
        rack,
        (),
        np.ones(2),
        np.full(2, 230.0),
        AllocatorConfig(),
        controlled=np.array([True, False]),
    )
    assert got.grant_w.tolist() == pytest.approx([300.0, 500.0])


def test_a_threshold_is_not_set_below_the_draw_while_others_have_head_room() -> None:
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)])
    drawn_w = np.array([300.0, 100.0])
    got = allocate(0, np.array([310.0, 890.0]), rack, (), np.ones(2), np.full(2, 230.0), NO_SLACK, drawn_w=drawn_w)
    assert got.grant_w.tolist() == pytest.approx([305.0, 495.0])


def test_draws_that_do_not_fit_together_are_cut_alike() -> None:
    rack = make_rack(2, [constraint("b", [0, 1], 2, w=1000.0)], loads=[load(0), load(1)])
    drawn_w = np.array([900.0, 700.0])
    got = allocate(0, drawn_w, rack, (), np.ones(2), np.full(2, 230.0), NO_SLACK, drawn_w=drawn_w)
    assert got.grant_w.tolist() == pytest.approx([450.0, 350.0])


def test_a_ceiling_is_one_more_row_with_its_source() -> None:
    rack = make_rack(1, [constraint("rack", [0], 1, kind="rack", w=1000.0)])
    event = Ceiling("rack", 250.0, "grid event", "demand response until 18:00")
    got = allocate(0, np.array([600.0]), rack, [event], np.ones(1), np.full(1, 230.0), NO_SLACK)
    assert (got.grant_w[0], got.rule[0], got.ceiling_w["rack"]) == (250.0, "rack (ceiling: grid event)", 250.0)


def test_a_ceiling_on_nothing_known_is_a_mistake() -> None:
    rack = make_rack(1, [constraint("rack", [0], 1, w=1000.0)])
    with pytest.raises(ConfigError, match="rakc"):
        allocate(0, np.ones(1), rack, [Ceiling("rakc", 1.0, "me", "typo")], np.ones(1), np.ones(1), NO_SLACK)


def test_a_load_with_three_outlets_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="load-0 has 3 outlets"):
        _grants(make_rack(3, loads=[load(0, 1, 2)]), [1.0, 1.0, 1.0])


def test_lowest_recent_forgets_after_two_spans_and_ignores_idle_supplies() -> None:
    lowest = LowestRecent(make_rack(2), span_s=10.0)
    second = 1_000_000_000
    low = replace(make_readings(0, np.array([500.0, 50.0])), power_factor=np.array([0.7, 0.2]))
    factor, voltage_v = lowest.step(low)
    np.testing.assert_array_equal(factor, [0.7, np.nan])
    np.testing.assert_array_equal(voltage_v, [230.0, 230.0])
    assert lowest.step(make_readings(12 * second, np.array([500.0, 500.0])))[0].tolist() == [0.7, 1.0]
    assert lowest.step(make_readings(22 * second, np.array([500.0, 500.0])))[0].tolist() == [1.0, 1.0]


def test_apparent_readings_have_no_power_factor_to_divide_by() -> None:
    lowest = LowestRecent(make_rack(1))
    factor, voltage_v = lowest.step(make_readings(0, np.array([10.0]), quality=int(Quality.NO_VOLTAGE)))
    assert factor[0] == 1.0
    assert np.isnan(voltage_v[0])


@pytest.mark.parametrize("wrong", [{"slack_share": 1.5}, {"lowest_power_factor": 0.0}])
def test_a_wrong_option_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AllocatorConfig(**wrong)
