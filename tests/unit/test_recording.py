"""What a recording keeps of the scans: the same windows, with the same gaps, whatever was lost."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from config_examples import BASE, parse

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription, Ring
from rpi_daemon.calibration import own_word
from rpi_daemon.clock import ManualClock
from rpi_daemon.dry_run import dry_run_recording
from rpi_daemon.errors import RpiError, TraceError
from rpi_daemon.guard import HealthFlags
from rpi_daemon.pipeline import TickInputs
from rpi_daemon.recording import _INPUTS, HEADER_FILE, TICKS_FILE, Recorder, Recording, TapeClock, TapedClock, _refill
from rpi_daemon.records import HostReading, Mode

CAPACITY = 2000


def _ring() -> Ring:
    return Ring(bytearray(Ring.bytes_needed(2, CAPACITY)), n_channels=2, capacity=CAPACITY)


@dataclass
class Link:
    """As much of a board as a recorder looks at."""

    ring: Ring
    board: SimpleNamespace
    description: None = None


def _inputs(tick: int) -> TickInputs:
    return TickInputs(tick, tick, Mode.ADVISORY, HealthFlags())


@pytest.mark.parametrize(
    "lost",
    [(), range(3), range(298, 301), range(299, 300), range(250, 420), range(200, 400), range(250)],
    ids=["none", "first", "over a window's end", "last of a window", "over two", "two whole ones", "the beginning"],
)
def test_windows_and_gaps_come_back_as_they_were(lost: tuple[int, ...], tmp_path: Path) -> None:
    ring = _ring()
    recorder = Recorder(tmp_path / "r", [Link(ring, SimpleNamespace(id="b"))], ManualClock())  # type: ignore[list-item]
    heads: list[int] = []
    for index in range(1000):
        if index not in lost:
            ring.push(index, index * 1_000_000, index, index % 3, np.array([index, -index], np.int32), flags=index % 2)
        if index % 37 == 36:  # a tick comes when it comes
            end = ring.head - ring.head % 100
            recorder.add(_inputs(index), [end], "")
            heads.append(end)
    recorder.close()

    again = _ring()
    lines = (tmp_path / "r" / TICKS_FILE).read_text().splitlines()
    with (tmp_path / "r" / "b.scans").open("rb") as scans:
        for line, end in zip(lines, heads, strict=True):
            _refill(again, scans, json.loads(line)["scans"][0])
            assert again.head - again.head % 100 == end
            old, new = ring.read(0, end), again.read(0, end)
            np.testing.assert_array_equal(old[1], new[1])
            for name in ("index", "t_mono_ns", "ticks", "status", "flags", "counts"):
                np.testing.assert_array_equal(old[0][old[1]][name], new[0][new[1]][name])
        assert scans.read() == b""


def test_a_long_history_in_the_ring_is_not_copied(tmp_path: Path) -> None:
    ring = _ring()
    for index in range(1900):
        ring.push(index, index, index, 0, np.zeros(2, np.int32))
    recorder = Recorder(tmp_path / "r", [Link(ring, SimpleNamespace(id="b"))], ManualClock())  # type: ignore[list-item]
    recorder.add(_inputs(0), [1900], "")
    recorder.close()
    assert json.loads((tmp_path / "r" / TICKS_FILE).read_text())["scans"] == [1000]


def test_a_taped_clock_gives_the_same_answers_again() -> None:
    clock = ManualClock(7)
    taped, tape = TapedClock(clock), TapeClock()
    first = taped.mono_ns()
    clock.advance(1.0)
    second = taped.mono_ns()
    tape.feed(taped.taken())
    assert taped.taken() == []
    assert (tape.mono_ns(), tape.mono_ns()) == (first, second) == (7, 7 + 10**9)
    with pytest.raises(TraceError, match="another version"):
        tape.mono_ns()


def test_a_folder_is_recorded_into_once(tmp_path: Path) -> None:
    Recorder(tmp_path / "r", [], ManualClock()).close()
    with pytest.raises(RpiError, match="name another folder"):
        Recorder(tmp_path / "r", [], ManualClock())
    with pytest.raises(TraceError, match="run --record"):
        Recording(tmp_path / "r")


def test_a_full_disk_ends_the_recording_and_not_the_daemon(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r", [], ManualClock())
    recorder._ticks.close()
    with open("/dev/full", "wb", buffering=0) as full:
        recorder._ticks = full
        recorder.add(_inputs(0), [], "")
        recorder.add(_inputs(1), [], "")
    recorder.close()


def test_what_hosts_said_is_recorded_and_comes_back(tmp_path: Path) -> None:
    said = (HostReading("web-1", 7, cpu=0.1 + 0.2, disk=None), HostReading("web-2", 8, memory=1.0))
    recorder = Recorder(tmp_path / "r", [], ManualClock())
    recorder.add(replace(_inputs(0), host_readings=said), [], "")
    recorder.close()
    (line,) = (tmp_path / "r" / TICKS_FILE).read_text().splitlines()
    assert _INPUTS.validate_python(json.loads(line)["inputs"]).host_readings == said


def _header(folder: Path) -> dict[str, Any]:
    """The header of a run with one board of three channels and two outlets."""
    channels = tuple(ChannelDescription("current", n, 0.001, 0, 8_000_000, f"I{n}") for n in (1, 2, 3))
    board = BoardDescription(1000, 1_000_000, "A-17", "1.0", 750_000, channels)
    link = SimpleNamespace(ring=_ring(), board=SimpleNamespace(id="b"), description=board, correction=own_word(board))
    recorder = Recorder(folder, [link], ManualClock())  # type: ignore[list-item]
    recorder.begin(parse(BASE), [False, False], without_model=True)
    recorder.close()
    Recording(folder)
    return dict(json.loads((folder / HEADER_FILE).read_text()))


@pytest.mark.parametrize(
    "changed",
    [{"opted_in": [True]}, {"corrections": []}, {"boards": []}, {"schema": 2.0}, {"schema": "2"}, {"opted_in": [0, 1]}],
    ids=str,
)
def test_a_header_that_does_not_fit_together_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    header = _header(tmp_path / "r")
    (tmp_path / "r" / HEADER_FILE).write_text(json.dumps(header | changed))
    with pytest.raises(TraceError, match=r"r/header\.json: "):
        Recording(tmp_path / "r")


def test_a_tick_of_another_rack_is_refused(tmp_path: Path) -> None:
    _header(tmp_path / "first")
    recorder = Recorder(tmp_path / "r", [], ManualClock())
    recorder.add(replace(_inputs(0), acknowledged=("foreign_writer:nobody-s",)), [], "")
    recorder.close()
    tick = json.loads((tmp_path / "r" / TICKS_FILE).read_text()) | {"scans": [0], "clock": [5] * 20}
    (tmp_path / "first" / TICKS_FILE).write_text(json.dumps(tick) + "\n")
    with pytest.raises(TraceError, match="does not fit together"):
        dry_run_recording(tmp_path / "first")
