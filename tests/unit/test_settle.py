"""Settle times on disk: what is kept, what is refused, what is worth a write, and the sentence for a slow device."""

from pathlib import Path

from rpi_daemon.found import FoundCaps
from rpi_daemon.records import CapReading
from rpi_daemon.settle import SettleTimes, too_slow


def test_they_come_back_in_the_next_run(tmp_path: Path) -> None:
    times = SettleTimes(tmp_path / "settle.json")
    assert not times.worth_saving()
    times.caps["server-1"] = 0.8
    times.note_pdu("pdu-a", 0.1)
    assert times.worth_saving()
    times.save()
    assert not times.worth_saving()
    again = SettleTimes(tmp_path / "settle.json")
    assert (again.caps, again.pdus) == ({"server-1": 0.8}, {"pdu-a": 0.1})


def test_a_longer_time_counts_at_once_a_shorter_one_little_by_little(tmp_path: Path) -> None:
    times = SettleTimes(tmp_path / "settle.json")
    for seconds in (0.1, 0.5, 0.0):
        times.note_pdu("pdu-a", seconds)
    assert times.pdus["pdu-a"] == 0.4


def test_a_damaged_file_costs_the_figures_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "settle.json"
    for text in ("", "{", "[]", '{"schema": 2}', '{"schema": 1, "caps": 3, "pdus": {}}', "\x00"):
        path.write_text(text)
        assert SettleTimes(path).caps == {}
    path.write_text('{"schema": 1, "caps": {"a": -1.0, "b": "x", "c": 2.0, "d": NaN}, "pdus": {}}')
    assert SettleTimes(path).caps == {"c": 2.0}


def test_a_disk_that_takes_nothing_is_no_fault(tmp_path: Path) -> None:
    times = SettleTimes(tmp_path / "away" / "settle.json")
    times.caps["server-1"] = 0.8
    times.save()
    assert not times.worth_saving()


def test_a_device_slower_than_we_look_ahead_is_said() -> None:
    assert too_slow(None) is None
    assert too_slow(5.0) is None
    assert too_slow(7.34) == "5 s is not enough: it takes 7.3 s, so a predicted overload may come before its limit"


def test_found_caps_are_kept_as_they_were_first_found() -> None:
    off = CapReading(5, 120.0, None, False, (("SetPoint", 450), ("ControlMode", "Disabled")))
    found = FoundCaps({}).with_cap("server-1", CapReading(1, None, None, None))
    assert not found.caps  # not known is not found
    found = found.with_cap("server-1", off)
    assert found.with_cap("server-1", CapReading(9, None, 300.0, True)) is found
    again = FoundCaps.from_json(found.to_json()).caps["server-1"]
    assert (again.cap_w, again.active, again.raw) == (None, False, off.raw)
