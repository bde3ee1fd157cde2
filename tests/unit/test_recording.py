"""What a recording keeps of the scans: the same windows, with the same gaps, whatever was lost."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rpi_daemon._fastpath.core import Ring
from rpi_daemon.clock import ManualClock
from rpi_daemon.errors import RpiError, TraceError
from rpi_daemon.guard import HealthFlags
from rpi_daemon.pipeline import TickInputs
from rpi_daemon.recording import _INPUTS, TICKS_FILE, Recorder, Recording, TapeClock, TapedClock, _refill
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
