"""What is learned from: nominal spans alone; what is stuck, replayed, scaled, censored, off or another's is left out by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retrain_rig import MINUTE_NS, T0, Spoil, keep_loads, layout_of, ratings_of

from rpi_daemon.history.weeks import History, Mark
from rpi_daemon.records import FloatArray, IntArray, Quality
from rpi_daemon.retrain.material import Material, gather
from rpi_daemon.retrain.training import too_little

MINUTES = 200
END = T0 + 10**6 * MINUTE_NS


def read(folder: Path, n: int = 2, rack: str = "rack") -> Material:
    return gather(History(folder), rack, ratings_of(n), 0, END)


def test_a_clean_history_is_used_whole_and_the_newest_fifth_is_held_back(tmp_path: Path) -> None:
    keep_loads(tmp_path, 2, MINUTES)
    found = read(tmp_path)
    assert found.left_out_h == {}
    assert found.suspicious == 0.0
    assert found.used_outlet_h == pytest.approx(2 * MINUTES / 60.0)
    split_ns = T0 + round(0.8 * MINUTES) * MINUTE_NS
    assert all(span.t_ns + len(span.power_w) * 10**8 <= split_ns for span in found.learn)
    assert all(span.t_ns >= split_ns for span in found.judge)
    assert {span.outlet for span in found.judge} == {"a/1", "a/2"}
    assert (len(found.learn), len(found.judge), too_little(found)) == (64, 16, "")


def test_memory_does_not_grow_with_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpi_daemon.retrain.material.KEPT_SPANS", 40)
    keep_loads(tmp_path, 2, MINUTES)
    found = read(tmp_path)
    assert (len(found.learn), len(found.judge)) == (20, 16)
    assert found.used_outlet_h == pytest.approx(2 * MINUTES / 60.0)


def stuck(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 60:
        power_w[0] = 231.4


def replayed(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    """Twenty minutes again, an hour later and 3.7 s off: what an attacker plays who has listened."""
    if 40 <= minute < 60:
        MEMORY[minute] = power_w[0].copy()
    if 100 <= minute < 119:
        power_w[0] = np.concatenate([MEMORY[minute - 60], MEMORY[minute - 59]])[37:637]


def scaled(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 45:
        power_w[0] *= 2.4


def oscillating(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    """A load made to swing: the level is ordinary, the movement is not."""
    if 40 <= minute < 45:
        power_w[0] += 100.0 * (-1.0) ** np.arange(600)


def saturated(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 50:
        marks[0] |= int(Quality.SATURATED)


def outage(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 60:
        power_w[:] = 0.0


def censored(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 60:
        marks[0] |= int(Mark.CENSORED)


def in_hold(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 60:
        marks[:] |= int(Mark.HOLD)


def absent(minute: int, power_w: FloatArray, marks: IntArray) -> None:
    if 40 <= minute < 60:
        power_w[0] = np.nan


MEMORY: dict[int, FloatArray] = {}


@pytest.mark.parametrize(
    ("spoil", "reason", "hours", "suspicious"),
    [
        (stuck, "stuck", 20 / 60, True),
        (replayed, "repeated", 15 / 60, True),  # whole spans of it; the rest shares one with what is new
        (scaled, "far_outside", 5 / 60, True),
        (oscillating, "far_outside", 5 / 60, True),
        (saturated, "saturated", 10 / 60, True),
        (outage, "off", 40 / 60, False),
        (censored, "censored", 20 / 60, False),
        (in_hold, "not_normal", 40 / 60, False),
        (absent, "not_read", 20 / 60, False),
    ],
)
def test_what_is_not_nominal_is_left_out_and_counted(
    tmp_path: Path, spoil: Spoil, reason: str, hours: float, suspicious: bool
) -> None:
    keep_loads(tmp_path, 2, MINUTES, spoil=spoil)
    found = read(tmp_path)
    assert found.left_out_h[reason] >= hours - 1e-9
    assert found.left_out_h[reason] <= hours + 6 / 60
    assert set(found.left_out_h) <= {reason, "short"}
    assert (found.suspicious > 0.0) is suspicious
    bad = range(100, 119) if spoil is replayed else range(40, 60)
    for span in found.learn:
        first = (span.t_ns - T0) / MINUTE_NS
        if span.outlet == "a/1" and spoil is stuck:
            assert not any(first <= minute < first + 5 for minute in bad)


def test_an_outlet_that_is_mostly_spoiled_is_distrusted_as_a_whole(tmp_path: Path) -> None:
    def spoil(minute: int, power_w: FloatArray, marks: IntArray) -> None:
        keep = MEMORY.setdefault(-1, power_w[0].copy()) if minute == 0 else MEMORY[-1]
        if minute >= 120:
            power_w[0] = keep  # the same minute again and again

    MEMORY.pop(-1, None)
    keep_loads(tmp_path, 2, MINUTES, spoil=spoil)
    found = read(tmp_path)
    assert {span.outlet for span in found.learn} == {"a/2"}
    assert any("distrusted as a whole, too much of it is not nominal: a/1" in note for note in found.notes)
    assert found.suspicious == pytest.approx(0.5)
    assert "is suspicious" in too_little(found)


def test_a_flat_load_on_a_coarse_meter_is_not_stuck(tmp_path: Path) -> None:
    def spoil(minute: int, power_w: FloatArray, marks: IntArray) -> None:
        power_w[1] = 100.0

    keep_loads(tmp_path, 2, MINUTES, slow=1, spoil=spoil)
    found = read(tmp_path)
    assert found.left_out_h == {}
    assert {(span.outlet, span.interval_ticks) for span in found.learn} == {("a/1", 1), ("a/2", 10)}
    assert all(span.fresh.sum() == len(span.power_w) // 10 for span in found.learn if span.interval_ticks == 10)


def test_escapes_are_learned_from_more_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpi_daemon.retrain.material.KEPT_SPANS", 48)

    def spoil(minute: int, power_w: FloatArray, marks: IntArray) -> None:
        if minute % 20 >= 15:  # a quarter of the spans
            marks[:, ::4] |= int(Mark.ESCAPED)

    keep_loads(tmp_path, 2, 400, spoil=spoil)
    share = np.mean([span.escaped > 0.0 for span in read(tmp_path).learn])
    assert share > 0.35


def test_another_rack_renamed_outlets_calibration_gaps_and_a_clock_set_back_are_handled_by_name(tmp_path: Path) -> None:
    keep_loads(tmp_path, 2, 60)
    keep_loads(tmp_path, 2, 60, layout=layout_of(2, calibration="new"), t_ns=T0 + 60 * MINUTE_NS)
    renamed = replace(layout_of(2), outlets=("a/1", "gone/7"), loads=("other", "load-2"))
    keep_loads(tmp_path, 2, 60, layout=renamed, t_ns=T0 + 150 * MINUTE_NS)  # after half an hour without a daemon
    keep_loads(tmp_path, 3, 30, layout=layout_of(3, rack="neighbour"), t_ns=T0 + 220 * MINUTE_NS)
    found = read(tmp_path)
    words = " / ".join(found.notes)
    assert "2 calibrations in the history" in words
    assert "not in the configuration, left out: gone/7" in words
    assert "fed another load within the history: a/1" in words
    assert "blocks of another rack, 'neighbour', were left out" in words
    changes = [T0 + minute * MINUTE_NS for minute in (60, 120, 150)]
    for span in (*found.learn, *found.judge):
        end_ns = span.t_ns + len(span.power_w) * 10**8
        assert not any(span.t_ns < change < end_ns for change in changes)


def test_nothing_stored_is_nothing_learned(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.learn, found.stored_h) == ([], 0.0)
    assert "0 nominal spans" in too_little(found)


def test_a_minute_of_history_still_tells_something(tmp_path: Path) -> None:
    keep_loads(tmp_path, 12, 2)
    found = read(tmp_path, 12)
    assert found.span_ticks == 200
    assert len(found.learn) >= 12
    assert len(found.judge) >= 12


def test_of_a_short_history_whose_newest_fifth_is_not_nominal_more_is_held_back(tmp_path: Path) -> None:
    def ends_in_hold(minute: int, power_w: FloatArray, marks: IntArray) -> None:
        if minute == 3:
            marks[:] |= int(Mark.HOLD)

    keep_loads(tmp_path, 4, 4, spoil=ends_in_hold)
    found = read(tmp_path, 4)
    assert (found.span_ticks, len(found.learn), len(found.judge)) == (200, 4 * 6, 4 * 3)
    assert found.used_outlet_h == pytest.approx(4 * 3 / 60.0)  # what was read twice is counted once
    assert max(span.t_ns for span in found.learn) < min(span.t_ns for span in found.judge)
    assert too_little(found) == ""
