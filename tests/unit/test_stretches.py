"""The history as stretches: gaps, clocks that are set, renamed outlets, other racks, slow meters, limits of their time."""

from pathlib import Path

import numpy as np
import pytest
from history_rig import END, T0, Alone

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.stretches import Stretch, stretches
from rpi_daemon.history.weeks import History, Layout, Mark, StoredLimit, path_of
from rpi_daemon.records import TICK_NS, Quality

LAYOUT = Layout("rack", ("a/1", "a/2"), "cal-1", ("web", "db"), (1, 10))
HOUR_NS = 3600 * NS_PER_S


def keep(folder: Path, ticks: range, *, layout: Layout = LAYOUT, utc_ns: int = T0, mono_ns: int = 0) -> None:
    """Ticks of outlets that draw 100 W and more; the second is read each second. `utc_ns` is wall time at tick 0."""
    historian = Alone(folder, layout, keep_days=36_500.0)
    historian.start()
    for k in ticks:
        power_w = np.array([100.0 + k % 600, 200.0 + k // 10 % 60])
        fresh = np.array([True, k % 10 == 3])
        marks = np.array([Mark.HOLD if k < 100 else 0, Quality.SLOW_METER])
        others = {"forecast_w": power_w + 7.0}
        historian.tick(utc_ns + k * TICK_NS, mono_ns + k * TICK_NS, power_w, others, fresh, marks)
    historian.close()


def keep_limits(folder: Path, limits: list[StoredLimit], layout: Layout = LAYOUT) -> None:
    historian = Alone(folder, layout, keep_days=36_500.0)
    historian.start()
    for limit in limits:
        historian.limit(limit)
    historian.close()


def limit(t_s: float, limit_w: float | None, kind: str = "alarm", utc_ns: int = T0, outlet: str = "a/1") -> StoredLimit:
    return StoredLimit(utc_ns + round(t_s * NS_PER_S), round(t_s * NS_PER_S), outlet, kind, limit_w, "raise", "")


def read(folder: Path, **options: float) -> list[Stretch]:
    return list(stretches(History(folder), "rack", 0, END, ("forecast_w/mean",), **options))


def test_minutes_come_as_one_stretch_with_all_that_belongs_to_them(tmp_path: Path) -> None:
    keep(tmp_path, range(1500))
    (whole,) = read(tmp_path)
    assert whole.layout == LAYOUT
    np.testing.assert_array_equal(whole.t_ns, T0 + TICK_NS * np.arange(1500))
    np.testing.assert_array_equal(whole.t_mono_ns, TICK_NS * np.arange(1500))
    np.testing.assert_allclose(whole.power_w[0], 100.0 + np.arange(1500) % 600, atol=0.1)
    assert whole.fresh[0].all()
    np.testing.assert_array_equal(np.flatnonzero(whole.fresh[1]), np.arange(3, 1500, 10))
    assert whole.interval_ticks.tolist() == [1, 10]
    np.testing.assert_array_equal(whole.marked(Mark.HOLD)[0], np.arange(1500) < 100)
    assert (whole.marks[1] == Quality.SLOW_METER).all()
    means = whole.seconds["forecast_w/mean"]
    np.testing.assert_allclose(means[0, :3], [111.5, 121.5, 131.5], atol=0.5)
    np.testing.assert_array_equal(whole.by_tick(means)[:, 1234], means[:, 123])


def test_only_the_span_is_told(tmp_path: Path) -> None:
    keep(tmp_path, range(1500))
    (part,) = stretches(History(tmp_path), "rack", T0 + 65 * NS_PER_S, T0 + 70 * NS_PER_S)
    np.testing.assert_array_equal(part.t_ns, T0 + TICK_NS * np.arange(650, 700))
    np.testing.assert_allclose(part.power_w[0], 100.0 + np.arange(50, 100), atol=0.1)
    assert list(stretches(History(tmp_path), "rack", T0 - NS_PER_S, T0)) == []
    assert list(stretches(History(tmp_path), "rack", T0 + 150 * NS_PER_S, END)) == []


def test_some_outlets_alone_come_as_they_would_among_all(tmp_path: Path) -> None:
    keep(tmp_path, range(700))
    (whole,) = read(tmp_path)
    (part,) = stretches(History(tmp_path), "rack", 0, END, ("forecast_w/mean",), outlets=["a/2", "z/9"])
    assert part.layout == Layout("rack", ("a/2",), "cal-1", ("db",), (10,))
    np.testing.assert_array_equal(part.power_w, whole.power_w[1:])
    np.testing.assert_array_equal(part.fresh, whole.fresh[1:])
    np.testing.assert_array_equal(part.seconds["forecast_w/mean"], whole.seconds["forecast_w/mean"][1:])


def test_a_long_time_comes_in_parts(tmp_path: Path) -> None:
    keep(tmp_path, range(6000))
    parts = read(tmp_path, longest_s=120.0)
    assert [len(part.t_ns) for part in parts] == [1200] * 5
    np.testing.assert_array_equal(np.concatenate([part.t_ns for part in parts]), T0 + TICK_NS * np.arange(6000))


def test_a_short_gap_is_unknown_and_a_long_one_ends_the_stretch(tmp_path: Path) -> None:
    keep(tmp_path, range(600))
    keep(tmp_path, range(630, 700))
    keep(tmp_path, range(2000, 2100))
    first, second = read(tmp_path)
    assert len(first.t_ns) == 700
    assert np.isnan(first.power_w[:, 600:630]).all()
    assert not first.fresh[:, 600:630].any()
    assert first.marked(Mark.HOLD)[:, 600:630].all(), "what is not known is not taken for normal"
    assert np.isfinite(first.power_w[:, 630:]).all()
    assert second.t_ns[0] == T0 + 2000 * TICK_NS


def test_a_clock_set_back_gives_two_stretches_each_with_its_own_limits(tmp_path: Path) -> None:
    keep(tmp_path, range(1800))
    keep(tmp_path, range(1800, 3600), utc_ns=T0 - 150 * NS_PER_S)  # the same minutes of wall time again
    keep_limits(tmp_path, [limit(1.0, 300.0), limit(181.0, 500.0, utc_ns=T0 - 150 * NS_PER_S)])
    first, second = sorted(read(tmp_path), key=lambda part: part.t_mono_ns[0])
    assert (len(first.t_ns), len(second.t_ns)) == (1800, 1800)
    assert second.t_ns[0] == T0 + 30 * NS_PER_S
    for part, start in ((first, 0), (second, 1800)):
        np.testing.assert_array_equal(part.t_mono_ns, TICK_NS * np.arange(start, start + 1800))
        np.testing.assert_allclose(part.power_w[0], 100.0 + np.arange(start, start + 1800) % 600, atol=0.1)
    np.testing.assert_array_equal(first.limit_w()[0], [np.nan] * 10 + [300.0] * 1790)
    np.testing.assert_array_equal(second.limit_w()[0], [np.nan] * 10 + [500.0] * 1790)


def test_a_clock_set_forward_and_a_restart_of_the_box_are_breaks(tmp_path: Path) -> None:
    keep(tmp_path, range(600))
    keep(tmp_path, range(600, 1200), utc_ns=T0 + HOUR_NS)
    keep(tmp_path, range(600), utc_ns=T0 + 2 * HOUR_NS, mono_ns=7)
    assert [(int(p.t_ns[0] - T0) // NS_PER_S, len(p.t_ns)) for p in read(tmp_path)] == [
        (0, 600),
        (3660, 600),
        (7200, 600),
    ]


def test_renamed_outlets_and_a_new_calibration_are_breaks_told_by_the_layout(tmp_path: Path) -> None:
    keep(tmp_path, range(600))
    keep(tmp_path, range(600, 1200), layout=Layout("rack", ("b/1", "a/1"), "cal-1", ("web", "db"), (1, 10)))
    keep(tmp_path, range(1200, 1800), layout=Layout("rack", ("b/1", "a/1"), "cal-2", ("web", "db"), (1, 10)))
    found = [(part.layout.outlets, part.layout.calibration) for part in read(tmp_path)]
    assert found == [(("a/1", "a/2"), "cal-1"), (("b/1", "a/1"), "cal-1"), (("b/1", "a/1"), "cal-2")]


def test_another_racks_data_is_left_out_and_named(tmp_path: Path) -> None:
    other = Layout("cellar", ("a/1", "a/2"), "cal-1", ("web", "db"), (1, 10))
    keep(tmp_path, range(600))
    keep(tmp_path, range(600, 1200), layout=other)
    keep_limits(tmp_path, [limit(1.0, 300.0)])
    keep_limits(tmp_path, [limit(2.0, 999.0)], layout=other)
    history = History(tmp_path)
    (mine,) = stretches(history, "rack", 0, END)
    assert len(mine.t_ns) == 600
    assert np.nanmax(mine.limit_w()) == 300.0
    assert history.damage.other_racks == {"cellar": 2}  # its power and its marks


def test_limits_are_of_their_time_and_say_whether_the_device_acts_on_them(tmp_path: Path) -> None:
    keep(tmp_path, range(600))
    keep_limits(
        tmp_path,
        [
            limit(-60.0, 900.0, utc_ns=T0),
            limit(10.0, 250.0, "trip_off"),
            limit(20.0, None, "trip_off"),
            limit(5.0, 111.0, outlet="a/2"),
            limit(5.0, 999.0, utc_ns=T0 + 5 * NS_PER_S),  # of another boot
        ],
    )
    (part,) = read(tmp_path)
    np.testing.assert_array_equal(part.limit_w()[0], [900.0] * 100 + [250.0] * 100 + [np.nan] * 400)
    np.testing.assert_array_equal(part.enforced()[0], [False] * 100 + [True] * 100 + [False] * 400)
    assert part.limit_w()[1, 50] == 111.0


@pytest.mark.parametrize("damaged", ["power_w", "marks", "forecast_w"])
def test_a_damaged_block_is_a_gap_never_a_number(tmp_path: Path, damaged: str) -> None:
    import sqlite3

    keep(tmp_path, range(1800))
    connection = sqlite3.connect(path_of(tmp_path, T0))
    connection.execute("UPDATE block SET crc = crc + 1 WHERE quantity = ? AND t_mono_ns = ?", (damaged, 600 * TICK_NS))
    connection.commit()
    connection.close()
    history = History(tmp_path)
    parts = list(stretches(history, "rack", 0, END, ("forecast_w/mean",)))
    assert history.damage.blocks == 1
    if damaged == "forecast_w":
        (whole,) = parts
        assert np.isnan(whole.seconds["forecast_w/mean"][:, 60:120]).all()
        assert np.isfinite(whole.power_w).all()
    else:
        assert [(int(p.t_mono_ns[0]) // TICK_NS, len(p.t_ns)) for p in parts] == [(0, 600), (1200, 600)]
