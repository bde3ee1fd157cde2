"""Questions to the history: spans, outlets, racks, calibrations, and times as people say them."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from history_rig import Alone

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import RpiError
from rpi_daemon.history.query import limit_series, listed, parse_time, read_series
from rpi_daemon.history.weeks import History, Layout, StoredLimit
from rpi_daemon.records import TICK_NS

NOW = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
NOW_NS = 1_795_267_800 * NS_PER_S
T0 = NOW_NS - 600 * NS_PER_S


@pytest.mark.parametrize(
    ("text", "seconds_ago"),
    [
        ("now", 0.0),
        ("90s", 90.0),
        ("-2h", 7200.0),
        ("1.5 d ago", 129_600.0),
        ("15m", 900.0),
        ("03:12", 10 * 3600.0 + 18 * 60.0),
        ("13:29:30.5", 29.5),
        ("13:31", 86_340.0),  # not yet today: yesterday's
        ("2026-11-20 13:30", 86_400.0),
        ("2026-11-21T13:29:00Z", 60.0),
        ("2026-11-21T15:29:00+02:00", 60.0),
    ],
)
def test_times_as_people_say_them(text: str, seconds_ago: float) -> None:
    assert parse_time(text, NOW) == NOW_NS - round(seconds_ago * NS_PER_S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "25:00",
        "3 weeks",
        "2026-13-01",
        "99999999999d",
        "9" * 400 + "d",
        "21000d",
        "0001-01-01T00:00+05:00",
        "9999-12-31",
    ],
)
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(RpiError, match="is not a time from 1971 to 2199: use 03:12, "):
        parse_time(text, NOW)


def keep(folder: Path, layout: Layout, first: int, ticks: int, level_w: float) -> None:
    historian = Alone(folder, layout, keep_days=36_500.0)
    historian.start()
    for k in range(first, first + ticks):
        power_w = level_w + np.arange(len(layout.outlets), dtype=np.float64)
        historian.tick(T0 + k * TICK_NS, k * TICK_NS, power_w, {})
    historian.close()


def test_one_outlet_is_followed_through_layouts_and_others_are_left_out(tmp_path: Path) -> None:
    keep(tmp_path, Layout("rack", ("a/1", "a/2"), "cal-1"), 0, 100, 100.0)
    keep(tmp_path, Layout("rack", ("b/9", "a/1"), "cal-2"), 100, 50, 200.0)
    keep(tmp_path, Layout("other", ("a/1",)), 150, 20, 900.0)
    answer = read_series(History(tmp_path), "rack", ["a/1", "c/3"], "power_w", T0 + 50 * TICK_NS, T0 + 10**12)
    first, second = answer.series
    np.testing.assert_array_equal(first.t_ns, T0 + TICK_NS * np.arange(50, 150))
    np.testing.assert_allclose(first.values, [100.0] * 50 + [201.0] * 50)
    assert len(second.t_ns) == 0
    assert answer.notes == [
        "1 blocks of another rack, 'other', were left out",
        "the calibration changed within the span",
        "nothing is stored of c/3",
    ]


def test_a_limit_that_stood_before_the_span_is_told(tmp_path: Path) -> None:
    layout = Layout("rack", ("a/1",))
    historian = Alone(tmp_path, layout, keep_days=36_500.0)
    historian.start()
    changes = [
        StoredLimit(T0 + k * NS_PER_S, k, f"a/{k % 2}", "alarm", 100.0 * k, "raise", "granted") for k in range(8)
    ]
    for change in changes:
        historian.limit(change)
    historian.close()
    found = limit_series(History(tmp_path), "rack", "a/1", T0 + 4 * NS_PER_S, T0 + 6 * NS_PER_S)
    assert [change.limit_w for change in found] == [300.0, 500.0]


def test_many_outlets_fit_a_sentence() -> None:
    assert listed(["a/1", "a/4", "a/2", "b/7", "a/3", "b/9"]) == "a/1-4, b/7,9"
