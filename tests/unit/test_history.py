"""History on disk: minutes, weeks, gaps, clock steps, disks that fail."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from history_rig import Alone

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.historian import GAP_NS, MINUTE_NS, WAITING
from rpi_daemon.history.weeks import Block, History, Layout, StoredLimit, path_of, set_aside, week_of
from rpi_daemon.records import TICK_NS

LAYOUT = Layout("rack", ("a/1", "a/2", "a/3"), "cal-1")
T0 = 1_763_700_000 * NS_PER_S  # a Friday, in 2025W47
MONO0 = 5_000 * NS_PER_S
DAYS = 36_500.0
END = 4 * 10**18  # in 2096


def power(k: int) -> np.ndarray:
    return np.array([100.0 + k % 50, 200.0, np.nan])


def fill(historian: Alone, ticks: range, *, shift_ns: int = 0) -> None:
    for k in ticks:
        forecast = {"forecast_w": power(k) + 10.0}
        historian.tick(T0 + k * TICK_NS + shift_ns, MONO0 + k * TICK_NS, power(k), forecast)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def historian(folder: Path) -> Iterator[Alone]:
    historian = Alone(folder, LAYOUT, keep_days=DAYS)
    historian.start()
    yield historian
    historian.close()


def blocks(folder: Path, quantity: str) -> list[Block]:
    history = History(folder)
    found = list(history.blocks(quantity, T0 - NS_PER_S, T0 + 10**15))
    assert history.damage.blocks == 0
    assert history.damage.files == ()
    return found


def test_every_tick_comes_back_where_it_was(historian: Alone, folder: Path) -> None:
    fill(historian, range(1500))
    historian.close()
    found = blocks(folder, "power_w")
    assert [block.t_ns for block in found] == [T0, T0 + 600 * TICK_NS, T0 + 1200 * TICK_NS]
    assert [block.values.shape for block in found] == [(3, 600), (3, 600), (3, 300)]
    whole = np.concatenate([block.values for block in found], axis=1)
    expected = np.array([power(k) for k in range(1500)]).T
    np.testing.assert_allclose(whole, expected, atol=0.1, equal_nan=True)
    assert found[0].layout == LAYOUT


def test_the_others_are_kept_by_the_second(historian: Alone, folder: Path) -> None:
    fill(historian, range(25))
    historian.close()
    rows = {name: blocks(folder, f"forecast_w/{name}")[0].values for name in ("mean", "min", "max")}
    np.testing.assert_allclose(rows["min"][0], [110.0, 120.0, 130.0])
    np.testing.assert_allclose(rows["max"][0], [119.0, 129.0, 134.0])
    np.testing.assert_allclose(rows["mean"][0], [114.5, 124.5, 132.0], atol=0.5)  # stored to 1 W
    assert np.isnan(rows["mean"][2]).all()
    assert np.isnan(blocks(folder, "voltage_v/mean")[0].values).all()  # it was never told


def test_a_gap_stays_a_gap(historian: Alone, folder: Path) -> None:
    fill(historian, range(20))
    fill(historian, range(30, 40))
    later = 40 + GAP_NS // TICK_NS + 20
    fill(historian, range(later, later + 10))
    historian.close()
    first, second = blocks(folder, "power_w")
    assert np.isnan(first.values[0, 20:30]).all()
    assert not np.isnan(first.values[0, :20]).any()
    assert first.values.shape[1] == 40
    assert second.t_ns == T0 + later * TICK_NS


def test_a_clock_step_begins_a_new_block(historian: Alone, folder: Path) -> None:
    fill(historian, range(20))
    fill(historian, range(20, 40), shift_ns=-3600 * NS_PER_S)
    historian.close()
    found = list(History(folder).blocks("power_w", T0 - 7200 * NS_PER_S, T0 + 10**12))
    assert [(block.t_ns - T0) // NS_PER_S for block in found] == [-3598, 0]
    assert [block.t_mono_ns for block in found] == [MONO0 + 20 * TICK_NS, MONO0]


def test_limits_are_kept_in_order(historian: Alone, folder: Path) -> None:
    limits = [StoredLimit(T0 + k, MONO0 + k, "a/1", "alarm", 300.0 + k, "raise", "granted") for k in range(5)]
    limits.append(StoredLimit(T0 + 9, MONO0 + 9, "a/2", "alarm", None, "lower", "room"))
    for limit in limits:
        historian.limit(limit)
    historian.close()
    assert list(History(folder).limits("rack", T0 + 1, T0 + 100)) == limits[1:]


def test_a_span_reaches_over_the_end_of_a_week(folder: Path) -> None:
    historian = Alone(folder, LAYOUT, keep_days=DAYS)
    historian.start()
    sunday_ns = 1_763_942_340 * NS_PER_S  # 23:59 UTC
    for k in range(1300):
        historian.tick(sunday_ns + k * TICK_NS, k * TICK_NS, power(k), {})
    historian.close()
    assert [path.name for path in History(folder).files()] == ["history-2025W47.sqlite", "history-2025W48.sqlite"]
    found = list(History(folder).blocks("power_w", sunday_ns, sunday_ns + 130 * NS_PER_S))
    assert sum(block.values.shape[1] for block in found) == 1300


def test_old_weeks_are_deleted_as_files(tmp_path: Path) -> None:
    now_ns = time.time_ns()
    weeks = [path_of(tmp_path, now_ns - 7 * k * 86_400 * NS_PER_S) for k in range(1, 9)]
    for path in weeks:
        path.touch()
    assert one_tick(tmp_path, now_ns) == 8 - len([path for path in weeks if path.exists()])
    assert [path.exists() for path in weeks[:4]] == [True] * 4, "30 days reach back into the fourth or fifth week"
    assert [path.exists() for path in weeks[5:]] == [False] * 3


def one_tick(folder: Path, now_ns: int) -> int:
    """The files that a historian of 30 days deletes when it writes."""
    historian = Alone(folder, LAYOUT, keep_days=30.0)
    historian.start()
    historian.tick(now_ns, MONO0, power(0), {})
    historian.close()
    return historian.counters.files_deleted


@pytest.mark.parametrize("years", [1, 50])
def test_a_clock_that_jumps_ahead_deletes_no_newer_week_than_time_going_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    now_ns = time.time_ns()
    weeks = [path_of(tmp_path, now_ns - 7 * k * 86_400 * NS_PER_S) for k in range(8)]
    for path in weeks:
        path.touch()
    jumped_ns = now_ns + years * 365 * 86_400 * NS_PER_S
    monkeypatch.setattr(time, "time_ns", lambda: jumped_ns)
    assert one_tick(tmp_path, jumped_ns) == 4
    assert [path.exists() for path in weeks] == [True] * 4 + [False] * 4, (
        "with the new one they are the five of 30 days"
    )
    assert one_tick(tmp_path, jumped_ns) == 0


@pytest.mark.parametrize("damage", ["other bytes", "the disk cannot read it"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(historian: Alone, folder: Path, damage: str) -> None:
    folder.mkdir()
    path = path_of(folder, T0)
    if damage == "other bytes":
        path.write_bytes(b"this is no database, but it is long enough to be taken for one" * 100)
    else:
        path.symlink_to("/proc/self/mem")  # reading its beginning is EIO
    fill(historian, range(10))
    historian.close()
    assert historian.counters.files_set_aside == 1
    assert len(list(folder.glob("*.corrupt-*"))) == 1
    assert blocks(folder, "power_w")[0].values.shape == (3, 10)


def test_a_disk_that_takes_nothing_is_counted(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file where the folder should be")
    historian = Alone(tmp_path / "history", LAYOUT, keep_days=DAYS)
    historian.start()
    fill(historian, range(1300))
    historian.limit(StoredLimit(T0, MONO0, "a/1", "alarm", 300.0, "raise", "granted"))
    historian.close()
    assert historian.counters.blocks_written == 0
    assert historian.counters.blocks_dropped == 3
    assert historian.counters.limits_dropped == 1
    assert historian.counters.failing is not None


def test_a_writer_that_hangs_drops_and_never_blocks(folder: Path) -> None:
    historian = Alone(folder, LAYOUT, keep_days=DAYS)  # its thread is not started: nobody takes from the queue
    fill(historian, range(600 * 25))
    assert historian.counters.blocks_dropped == 24 - WAITING
    historian.start()
    while historian.counters.blocks_written < WAITING:
        pass
    historian.close()
    assert historian.counters.blocks_written == WAITING + 1


def test_a_file_that_is_damaged_while_it_is_written_is_set_aside_and_the_minute_kept(folder: Path) -> None:
    historian = Alone(folder, LAYOUT, keep_days=DAYS)
    historian.start()
    fill(historian, range(600 * 8 + 1))
    while historian.counters.blocks_written < 8:
        pass
    path = path_of(folder, T0)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    path.write_bytes(whole)
    fill(historian, range(600 * 8 + 1, 600 * 10))
    historian.close()
    assert historian.counters.files_set_aside == 1
    assert historian.counters.blocks_dropped == 0
    assert historian.counters.failing is None
    assert [(block.t_ns - T0) // (600 * TICK_NS) for block in blocks(folder, "power_w")] == [8, 9]


def test_a_minute_that_is_not_there_is_counted_and_a_pause_or_a_restart_is_none(folder: Path) -> None:
    for first in (0, 20_000):  # the second daemon begins to count anew
        historian = Alone(folder, LAYOUT, keep_days=DAYS)
        historian.start()
        fill(historian, range(first, first + 600 * 5))
        fill(historian, range(first + 6000, first + 6600))
        historian.close()
    history = History(folder)
    assert len(list(history.blocks("power_w", 0, END))) == 12
    assert history.damage.missing == 0
    with contextlib.closing(sqlite3.connect(path_of(folder, T0))) as other:
        gone = [(20_000 + minute * 600) * TICK_NS + T0 for minute in (2, 3)]
        other.executemany("DELETE FROM block WHERE quantity = 'power_w' AND t_ns = ?", [(t_ns,) for t_ns in gone])
        other.execute("UPDATE block SET crc = 1 WHERE quantity = 'power_w' AND t_ns = ?", (T0 + 600 * TICK_NS,))
        other.commit()
    history = History(folder)
    assert len(list(history.blocks("power_w", 0, END))) == 9
    assert (history.damage.blocks, history.damage.missing) == (1, 2)
    list(history.blocks("forecast_w/mean", 0, END))
    assert history.damage.missing == 2, "of that quantity none is missing"


def test_a_set_aside_file_goes_with_its_week(tmp_path: Path) -> None:
    old = path_of(tmp_path, time.time_ns() - 60 * 86_400 * NS_PER_S)
    for suffix in ("", "-wal", "-shm"):
        old.with_name(old.name + suffix).write_text("no database")
    set_aside(old, "damaged")
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 2, "the file and its log"
    assert one_tick(tmp_path, time.time_ns()) == 0, "nothing newer is there"
    for k in range(1, 5):
        path_of(tmp_path, time.time_ns() - 7 * k * 86_400 * NS_PER_S).touch()
    assert one_tick(tmp_path, time.time_ns()) == 1
    assert list(tmp_path.glob("*.corrupt-*")) == []


def test_weeks_are_those_of_the_calendar() -> None:
    assert week_of(1_767_225_599 * NS_PER_S) == "2026W01"  # 2025-12-31 23:59:59 UTC


def test_figures_of_minutes_come_back_ten_to_a_block(historian: Alone, folder: Path) -> None:
    fill(historian, range(10))
    for k in range(13):
        figures = {"judged": np.full(3, 600.0), "escaped": np.array([k, 0.0, np.nan]), "weight:lstm": np.full(3, 0.25)}
        historian.scores(T0 + k * MINUTE_NS, MONO0 + k * MINUTE_NS, figures)
    historian.close()
    assert [block.values.shape for block in blocks(folder, "escaped")] == [(3, 10), (3, 3)]
    escaped = np.concatenate([block.values for block in blocks(folder, "escaped")], axis=1)
    np.testing.assert_array_equal(escaped[0], np.arange(13))
    assert np.isnan(escaped[2]).all()
    assert [block.t_ns for block in blocks(folder, "judged")] == [T0, T0 + 10 * MINUTE_NS]
    np.testing.assert_allclose(blocks(folder, "weight:lstm")[1].values, 0.25)
    assert len(list(History(folder).blocks("escaped", T0 + 9 * MINUTE_NS, T0 + 10 * MINUTE_NS))) == 1


def test_a_gap_or_another_expert_does_not_shift_a_minutes_figures(historian: Alone, folder: Path) -> None:
    fill(historian, range(10))
    historian.scores(T0, MONO0, {"judged": np.full(3, 1.0)})
    historian.scores(T0 + MINUTE_NS, MONO0 + MINUTE_NS, {"judged": np.full(3, 2.0), "weight:ewma": np.ones(3)})
    historian.scores(T0 + 7 * MINUTE_NS, MONO0 + 7 * MINUTE_NS, {"judged": np.full(3, 3.0)})
    historian.close()
    found = blocks(folder, "judged")
    assert [(block.t_ns - T0) // MINUTE_NS for block in found] == [0, 7]
    np.testing.assert_array_equal(found[0].values[0], [1.0, 2.0])
    (weight,) = blocks(folder, "weight:ewma")
    np.testing.assert_array_equal(weight.values[0], [np.nan, 1.0])
