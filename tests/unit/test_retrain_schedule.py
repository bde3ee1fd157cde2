"""When a training may begin: hours, load, calm, history, once a night. Pure, on made times."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from rpi_daemon.retrain.schedule import CALM_S, Conditions, MeanLoad, Rules, Window, why_not, why_stop

RULES = Rules(Window.of("01:00-05:00"), 0.7, 2.0)
GOOD = Conditions(datetime(2026, 11, 21, 2, 30, tzinfo=UTC), 0.4, CALM_S, 2.0, None)


def test_all_is_well() -> None:
    assert why_not(GOOD, RULES) == ""
    assert why_stop(GOOD, RULES) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"now": GOOD.now.replace(hour=5, minute=0)}, "not between 01:00 and 05:00"),
        ({"now": GOOD.now.replace(hour=0, minute=59)}, "not between"),
        ({"load": 0.71}, "carries 71% of its derated rating; 70% at most"),
        ({"load": None}, "the load is not known"),
        ({"normal_s": 0.0}, "the state is not NORMAL"),
        ({"normal_s": CALM_S - 1.0}, "NORMAL for less than 15 min"),
        ({"history_days": 1.99}, "2 days of history; 2 are needed"),
        ({"last_began": GOOD.now - timedelta(minutes=80)}, "one training a night"),
    ],
)
def test_each_condition_alone_keeps_it_from_beginning(changes: dict[str, object], says: str) -> None:
    assert says in why_not(replace(GOOD, **changes), RULES)  # type: ignore[arg-type]


def test_one_a_night_and_the_next_night_another() -> None:
    before_the_window = GOOD.now - timedelta(minutes=91)
    assert why_not(replace(GOOD, last_began=before_the_window), RULES) == ""


@pytest.mark.parametrize(("hour", "began_day"), [(22, 21), (23, 21), (0, 20), (3, 20), (4, None), (12, None)])
def test_a_window_past_midnight(hour: int, began_day: int | None) -> None:
    began = Window.of("22:00-04:00").began(datetime(2026, 11, 21, hour, 0, tzinfo=timezone(timedelta(hours=5))))
    assert (None if began is None else began.day) == began_day


def test_a_training_goes_on_without_what_only_its_beginning_needs() -> None:
    running = replace(GOOD, last_began=GOOD.now - timedelta(minutes=5), normal_s=1.0, history_days=0.0)
    assert why_stop(running, RULES) == ""
    assert why_stop(replace(running, now=GOOD.now.replace(hour=5)), RULES) == "it is past 05:00"


def test_the_load_is_a_mean_of_minutes_and_begins_anew_after_a_gap() -> None:
    mean = MeanLoad(10.0)
    assert mean.take(0.5) == 0.5
    assert mean.take(1.0) == pytest.approx(0.5 + 0.5 * 10.0 / 900.0)
    assert mean.take(None) is None
    assert mean.take(0.9) == 0.9
