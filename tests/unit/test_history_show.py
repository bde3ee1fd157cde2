"""The history as tables, files and pictures."""

from datetime import UTC
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.query import Answer, Series
from rpi_daemon.history.show import Escape, as_csv, bins, escapes, limit_at, with_gaps, write_npz, write_png
from rpi_daemon.history.weeks import StoredLimit
from rpi_daemon.records import TICK_NS

T0 = 1_795_267_800 * NS_PER_S  # 2026-11-21 13:30:00 UTC


def series(values: list[float]) -> Series:
    return Series("a/1", "power_w", T0 + TICK_NS * np.arange(len(values), dtype=np.int64), np.array(values))


def change(tick: int, limit_w: float | None) -> StoredLimit:
    return StoredLimit(T0 + tick * TICK_NS, tick, "a/1", "alarm", limit_w, "raise", "granted")


def test_the_limit_at_each_moment() -> None:
    changes = [change(2, 300.0), change(4, None), change(5, 200.0)]
    found = limit_at(changes, T0 + TICK_NS * np.arange(7))
    np.testing.assert_array_equal(found, [np.nan, np.nan, 300.0, 300.0, np.nan, 200.0, 200.0])


def test_escapes_are_episodes_above_the_limit_of_their_time() -> None:
    power = series([310.0, 310.0, 310.0, 250.0, np.nan, 260.0, 280.0, 150.0])
    changes = [change(1, 300.0), change(5, 200.0)]
    assert escapes(power, changes) == [
        Escape("a/1", T0 + TICK_NS, pytest.approx(0.2), 300.0, 310.0),
        Escape("a/1", T0 + 5 * TICK_NS, pytest.approx(0.2), 200.0, 280.0),
    ]
    assert escapes(power, []) == []


def test_a_table_has_whole_steps_and_says_what_is_known() -> None:
    values = [float(k) for k in range(1200)]
    values[600:700] = [np.nan] * 100
    rows = bins(series(values), T0, T0 + 120 * NS_PER_S, rows=12)
    assert [start for start, _ in rows] == [T0 + 10 * k * NS_PER_S for k in range(12)]
    np.testing.assert_allclose(rows[0][1], [49.5, 0.0, 99.0, 1.0])
    assert rows[6][1][3] == 0.0
    assert np.isnan(rows[6][1][:3]).all()


def test_a_gap_is_not_known_and_only_what_was_asked_counts() -> None:
    """7 s of readings, a stop of 35 s, 7 s again: 14 of 120 s; asked until 56 s after the begin, 14 of 56."""
    ticks = np.concatenate([np.arange(70), np.arange(420, 490)])
    power = Series("a/1", "power_w", T0 + TICK_NS * ticks, np.full(140, 100.0))
    ((start, values),) = bins(power, T0 - 3480 * NS_PER_S, T0 + 120 * NS_PER_S)
    assert (start, values[3]) == (T0, pytest.approx(14.0 / 120.0))
    ((_, values),) = bins(power, T0, T0 + 56 * NS_PER_S, rows=1)
    assert values[3] == pytest.approx(14.0 / 56.0)
    by_second = Series("a/1", "request_w/mean", T0 + NS_PER_S * np.arange(7), np.full(7, 100.0), NS_PER_S)
    ((_, values),) = bins(by_second, T0 - 3480 * NS_PER_S, T0 + 120 * NS_PER_S)
    assert values[3] == pytest.approx(7.0 / 120.0)


def test_csv_leaves_what_is_not_known_empty() -> None:
    lines = as_csv(Answer([series([1.25, np.nan])]), UTC).splitlines()
    assert lines == [
        "t_utc_ns,local_time,outlet,quantity,value",
        f"{T0},2026-11-21 13:30:00.0,a/1,power_w,1.25",
        f"{T0 + TICK_NS},2026-11-21 13:30:00.1,a/1,power_w,",
    ]


def test_npz_comes_back(tmp_path: Path) -> None:
    write_npz(Answer([series([1.0, np.nan])]), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert sorted(file) == ["a/1/power_w", "a/1/t_utc_ns"]
        np.testing.assert_array_equal(file["a/1/power_w"], [1.0, np.nan])


def test_the_picture_is_one(tmp_path: Path) -> None:
    power = series([100.0 + k % 30 for k in range(600)])
    write_png(
        Answer([power]),
        {"a/1": [change(0, 150.0), change(300, 120.0)]},
        T0,
        T0 + 60 * NS_PER_S,
        UTC,
        tmp_path / "x.png",
    )
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_no_line_is_drawn_across_a_gap() -> None:
    whole = series([1.0, 2.0, 3.0, 4.0])
    there = np.array([True, True, False, True])
    t_ns, values = with_gaps(Series("a/1", "power_w", whole.t_ns[there], whole.values[there]))
    np.testing.assert_array_equal(values, [1.0, 2.0, np.nan, 4.0])
    np.testing.assert_array_equal(t_ns, [T0, T0 + TICK_NS, T0 + TICK_NS, T0 + 3 * TICK_NS])
    np.testing.assert_array_equal(with_gaps(whole)[1], whole.values)
    assert len(with_gaps(series([]))[0]) == 0
