"""Announced work as changes of draw: hints, schedules over midnight, two outlets of one load."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from rack_examples import make_rack

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import Schedule
from rpi_daemon.errors import RpiError
from rpi_daemon.plans import MAX_HINTS, PlannedWork
from rpi_daemon.records import Hint, RackModel

S = NS_PER_S
NOON_NS = round(datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC).timestamp()) * S  # a Monday


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schedules are in local time: here it is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def rack() -> RackModel:
    return make_rack(3)


def _load(rack: RackModel, outlet: int) -> str:
    return rack.loads[rack.load_of[outlet]].name


def test_a_hint_shows_in_the_horizons_that_reach_it_and_its_end_too(rack: RackModel) -> None:
    plans = PlannedWork(rack, [])
    plans.hint(Hint(_load(rack, 1), 150.0, 10 * S, 4.0))
    assert not plans.planned_w(4 * S, NOON_NS).any()
    np.testing.assert_array_equal(plans.planned_w(7 * S, NOON_NS)[1], [0.0, 0.0, 150.0, 150.0, 150.0])
    np.testing.assert_array_equal(plans.planned_w(7 * S, NOON_NS)[[0, 2]], np.zeros((2, 5)))
    np.testing.assert_array_equal(plans.planned_w(9 * S + S // 2, NOON_NS)[1], [150.0, 150.0, 150.0, 150.0, 0.0])
    np.testing.assert_array_equal(plans.planned_w(10 * S, NOON_NS)[1], [0.0, 0.0, 0.0, -150.0, -150.0])
    assert not plans.planned_w(14 * S, NOON_NS).any()


def test_hints_that_overlap_add_up_in_any_order(rack: RackModel) -> None:
    plans = PlannedWork(rack, [])
    for t_s, delta_w in ((3, 30.0), (1, 10.0), (2, -5.0)):
        plans.hint(Hint(_load(rack, 0), delta_w, t_s * S, 100.0))
    np.testing.assert_array_equal(plans.planned_w(0, NOON_NS)[0], [10.0, 5.0, 35.0, 35.0, 35.0])


def test_two_outlets_of_a_load_share_it(rack: RackModel) -> None:
    both = replace(rack.loads[0], outlets=(0, 2))
    shared = replace(rack, loads=(both, *rack.loads[1:]))
    plans = PlannedWork(shared, [])
    plans.hint(Hint(both.name, 100.0, S, 100.0))
    np.testing.assert_array_equal(plans.planned_w(0, NOON_NS)[:, 4], [50.0, 0.0, 50.0])


def test_too_many_hints_are_refused_before_they_reach_a_tick_and_room_comes_back(rack: RackModel) -> None:
    plans = PlannedWork(rack, [])
    plans.check_room(MAX_HINTS - 1)
    with pytest.raises(RpiError, match="hints are open"):
        plans.check_room(MAX_HINTS)
    for k in range(MAX_HINTS):
        plans.hint(Hint(_load(rack, 0), 1.0, k + 1, 1e-6))
    with pytest.raises(RpiError, match="hints are open"):
        plans.check_room(0)
    plans.planned_w(40 * S, NOON_NS)
    plans.check_room(0)


def _schedule(rack: RackModel, at: str, **options: object) -> Schedule:
    return Schedule.model_validate({"load": _load(rack, 0), "at": at, "delta_w": 80.0, **options})


def test_a_schedule_starts_and_ends_by_local_time(rack: RackModel) -> None:
    plans = PlannedWork(rack, [_schedule(rack, "12:00:04", for_s=3.0)])
    np.testing.assert_array_equal(plans.planned_w(0, NOON_NS)[0], [0.0, 0.0, 0.0, 80.0, 80.0])
    np.testing.assert_array_equal(plans.planned_w(3 * S, NOON_NS + 3 * S)[0], [80.0, 80.0, 80.0, 0.0, 0.0])


def test_a_schedule_goes_over_midnight(rack: RackModel) -> None:
    """Ahead of midnight tomorrow's entry shows; after it the end of yesterday's does, on the day it began."""
    before_ns = NOON_NS + (12 * 3600 - 2) * S
    plans = PlannedWork(rack, [_schedule(rack, "00:00:01", days=["tue"])])
    np.testing.assert_array_equal(plans.planned_w(0, before_ns)[0], [0.0, 0.0, 80.0, 80.0, 80.0])
    after_ns = NOON_NS + (12 * 3600 + 7) * S
    late = PlannedWork(rack, [_schedule(rack, "23:59:50", days=["mon"], for_s=20.0)])
    np.testing.assert_array_equal(late.planned_w(0, after_ns)[0], [0.0, 0.0, -80.0, -80.0, -80.0])


def test_a_schedule_keeps_to_its_days(rack: RackModel) -> None:
    assert not PlannedWork(rack, [_schedule(rack, "12:00:02", days=["tue"])]).planned_w(0, NOON_NS).any()


def test_the_schedule_is_read_again_when_wall_time_steps(rack: RackModel) -> None:
    plans = PlannedWork(rack, [_schedule(rack, "13:00:03")])
    assert not plans.planned_w(0, NOON_NS).any()
    assert not plans.planned_w(S, NOON_NS + S + S // 10).any()  # it was slewed a little
    assert plans.planned_w(2 * S, NOON_NS + 3600 * S)[0, 4] == 80.0
