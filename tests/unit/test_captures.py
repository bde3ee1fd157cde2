"""Captures that are taken by themselves: what begins one, how long it is, how many are kept, disks that take none."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import comtrade as reader
import numpy as np
import pytest
import structlog
from click.testing import CliRunner
from history_rig import CONFIG, END, T0

from rpi_daemon._fastpath.core import Ring
from rpi_daemon._fastpath.memory import shared_file
from rpi_daemon.calibration import Correction
from rpi_daemon.captures import FOLDER, WAITING, CaptureOptions, Captures, kept, prune
from rpi_daemon.cli import main
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import History
from rpi_daemon.errors import ConfigError
from rpi_daemon.history.events import read_events, verify
from rpi_daemon.history.writer import Writer
from rpi_daemon.keeping import Keeping
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.raw import write_scale
from rpi_daemon.records import TICK_NS, SafeState
from rpi_daemon.triggers import Trigger, Triggers

MS = 1_000_000
S = NS_PER_S
NAMES = ["current:a/1", "voltage:L1"]
OPTIONS = CaptureOptions(before_s=1.0, after_s=2.0, per_hour=3, keep=100, keep_bytes=10**9)


class Board:
    """A ring of 30 s in which scan k was taken at k ms; the current is k / 1000 A."""

    def __init__(self, folder: Path, name: str = "b") -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.ring"
        self.ring = Ring(shared_file(path, Ring.bytes_needed(2, 30_000)), n_channels=2, capacity=30_000, rate_hz=1000)
        write_scale(path, name, "SN", NAMES, Correction((1e-3, 1.0), (0.0, 0.0), (0.0, 0.0), (True, True)))
        self.k = 1

    def run_to(self, ms: int) -> None:
        for k in range(self.k, ms):
            self.ring.push(k, k * MS, k, 0, np.array([k, 325], dtype=np.int32))
        self.k = ms


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    writer.start()
    yield writer
    assert writer.close()


def captures(writer: Writer, folder: Path, **changes: Any) -> Captures:
    options = CaptureOptions(**{**{k: getattr(OPTIONS, k) for k in OPTIONS.__slots__}, **changes})
    return Captures(writer, folder / "history", folder / "run", "rack", options)


def trigger(ms: int, kind: str = "escape", subject: str = "a/1", boards: tuple[str, ...] = ("b",)) -> Trigger:
    return Trigger(kind, subject, ms * MS, T0 + ms * MS, frozenset(boards), {"power_w": 400.0})


def drained(writer: Writer) -> None:
    done = threading.Event()
    writer.put(done.set)
    assert done.wait(20.0)


def test_the_waveform_around_an_escape_is_in_the_file(tmp_path: Path, writer: Writer) -> None:
    board, taken = Board(tmp_path / "run"), captures(writer, tmp_path)
    board.run_to(7300)
    taken.tick(5000 * MS, [trigger(5000)])
    taken.tick(7100 * MS, [])
    drained(writer)
    assert taken.counters.written == 0, "its last scans may not be there yet"
    taken.tick(7200 * MS, [])
    drained(writer)
    assert (taken.counters.written, taken.counters.failing) == (1, None)
    ((item,), damaged) = kept(tmp_path / "history")
    assert damaged == []
    assert (item["scans"], item["missing"], item["kinds"]) == (3000, 0, ["escape"])
    assert item["triggers"] == [
        {"kind": "escape", "subject": "a/1", "t_utc_ns": T0 + 5000 * MS, "values": {"power_w": 400.0}}
    ]
    record = reader.load(item["file"], item["file"].replace(".cfg", ".dat"))
    np.testing.assert_allclose(record.analog[0], np.arange(4000, 7000) / 1000.0, atol=7.0 / 32_767)
    assert round((record.trigger_timestamp - record.start_timestamp).total_seconds(), 6) == 1.0


def test_what_follows_within_a_capture_lengthens_it_three_times_at_most(tmp_path: Path, writer: Writer) -> None:
    board, taken = Board(tmp_path / "run"), captures(writer, tmp_path)
    board.run_to(20_000)
    for ms in range(5000, 15_000, 100):
        taken.tick(ms * MS, [trigger(ms)] if ms % 500 == 0 else [])
    taken.close()
    drained(writer)
    found, _ = kept(tmp_path / "history")
    assert [item["scans"] for item in found] == [9000, 3500]
    first, second = found
    assert second["from_utc_ns"] - first["to_utc_ns"] == MS, "the second begins where the first ended"
    assert [len(item["triggers"]) for item in found] == [13, 7]


def test_boards_have_captures_of_their_own_and_a_trigger_counts_once(tmp_path: Path, writer: Writer) -> None:
    for name in ("b", "c"):
        Board(tmp_path / "run", name).run_to(9000)
    taken = captures(writer, tmp_path, per_hour=1)
    taken.tick(5000 * MS, [trigger(5000, "fault", "no_readings", ("b", "c"))])
    taken.tick(8000 * MS, [])
    drained(writer)
    assert sorted(item["board"] for item in kept(tmp_path / "history")[0]) == ["b", "c"]
    assert taken.counters.left_out == 0


def test_each_kind_has_its_number_an_hour_on_average(tmp_path: Path, writer: Writer) -> None:
    board, taken = Board(tmp_path / "run"), captures(writer, tmp_path, per_hour=1)
    for s in (3, 8, 13, 18, 22):
        board.run_to(s * 1000 + 2500)
        taken.tick(s * S, [trigger(s * 1000, "step")])
        taken.tick(s * S + 2 * S + 300 * MS, [])
    board.run_to(29_000)
    taken.tick(26 * S, [trigger(26_000, "overload", "breaker")])
    taken.tick(29 * S, [])
    drained(writer)
    assert [item["kinds"] for item in kept(tmp_path / "history")[0]] == [["step"], ["step"], ["step"], ["overload"]]
    assert taken.counters.left_out == 2
    taken.tick(10_804 * S, [trigger(10_804_000, "step")])
    assert taken.counters.left_out == 2, "the first is three hours ago"


def test_the_oldest_go_first_by_number_and_by_size(tmp_path: Path) -> None:
    def fill() -> list[str]:
        names = [f"2026-11-2{day}T000000.000Z-b" for day in range(1, 6)]
        for name in names:
            for suffix in (".dat", ".cfg", ".json"):
                (tmp_path / (name + suffix)).write_bytes(b"x" * 100)
        return names

    names = fill()
    assert prune(tmp_path, 2, 10**6) == 3
    assert sorted({path.stem for path in tmp_path.iterdir()}) == names[3:]
    names = fill()
    (tmp_path / "2026-11-20T000000.000Z-b.dat").write_bytes(b"what a crash left")
    (tmp_path / "2026-11-20T000000.000Z-b.cfg.tmp").write_bytes(b"and this")
    assert prune(tmp_path, 100, 900) == 3
    assert sorted({path.stem for path in tmp_path.iterdir()}) == names[2:]


def test_a_disk_that_takes_none_and_a_ring_that_is_gone_are_counted(tmp_path: Path, writer: Writer) -> None:
    board, taken = Board(tmp_path / "run"), captures(writer, tmp_path)
    board.run_to(9000)
    (tmp_path / "history").write_text("a file where the folder should be")
    taken.tick(5 * S, [trigger(5000)])
    taken.tick(8 * S, [trigger(8000, boards=("gone",))])
    drained(writer)
    assert taken.counters.dropped == 1
    assert "Not a directory" in str(taken.counters.failing)
    taken.close()
    drained(writer)
    assert taken.counters.dropped == 2
    assert taken.counters.written == 0


def test_a_ring_that_is_no_ring_is_counted_too(tmp_path: Path, writer: Writer) -> None:
    Board(tmp_path / "run").run_to(9000)
    (tmp_path / "run" / "b.ring").write_bytes(bytes(100_000))
    taken = captures(writer, tmp_path)
    taken.tick(5 * S, [trigger(5000)])
    taken.close()
    drained(writer)
    assert (taken.counters.dropped, taken.counters.written) == (1, 0)
    assert "not a ring" in str(taken.counters.failing)


def test_a_defect_costs_one_job_and_is_told_once() -> None:
    writer, done = Writer(), threading.Event()

    def defect() -> None:
        raise ValueError("unforeseen")

    with structlog.testing.capture_logs() as logged:
        for job in (defect, defect, done.set):
            writer.put(job)
        writer.start()
        assert done.wait(20.0)
        assert writer.close()
    assert [(line["event"], line["error"]) for line in logged] == [("history.defect", "ValueError('unforeseen')")]


def test_a_full_disk_leaves_no_part_of_a_capture(tmp_path: Path) -> None:
    """RLIMIT_FSIZE in a child: the .dat does not fit, as on a disk that fills up in the middle of it."""
    Board(tmp_path / "run").run_to(9000)
    pid = os.fork()
    if pid == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        writer = Writer()
        writer.start()
        taken = captures(writer, tmp_path)
        taken.tick(5 * S, [trigger(5000)])
        taken.close()
        writer.close()
        os._exit(0 if taken.counters.dropped == 1 and "too large" in str(taken.counters.failing) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list((tmp_path / "history" / FOLDER).iterdir()) == []


def test_a_writer_that_hangs_keeps_a_few_waiting_and_counts_the_rest(tmp_path: Path) -> None:
    writer = Writer()
    taken = captures(writer, tmp_path, per_hour=1000)
    began = time.perf_counter()
    for s in range(0, 100, 5):
        taken.tick(s * S, [trigger(s * 1000)])
        taken.tick(s * S + 3 * S, [])
    assert time.perf_counter() - began < 10.0, "no tick waits for the writer"
    assert taken.counters.dropped == 20 - WAITING


# -- triggers


def rack() -> Any:
    return rack_model(parse_config(CONFIG, "test", base_dir=Path(), env={"KEY": "a secret of 16 characters"}))


def snapshot(k: int, power_w: list[float], **changes: Any) -> Snapshot:
    """As much of one as triggers look at; limits of 300 W."""
    readings = SimpleNamespace(
        t_mono_ns=k * TICK_NS - 20 * MS,
        power_w=np.array(power_w),
        fresh=np.isfinite(power_w),
        step_w=np.array(changes.get("step_w", [0.0, 0.0])),
    )
    found: Any = SimpleNamespace(
        t_mono_ns=k * TICK_NS,
        t_utc_ns=T0 + k * TICK_NS,
        readings=readings,
        in_force=SimpleNamespace(limit_w=np.array(changes.get("limit_w", [300.0, np.nan]))),
        safe=SimpleNamespace(state=SafeState.NORMAL, causes=changes.get("causes", ())),
    )
    return cast(Snapshot, found)


def told(triggers: Triggers, *args: Any, **changes: Any) -> list[tuple[str, str, list[str]]]:
    return [(t.kind, t.subject, sorted(t.boards)) for t in triggers.find(snapshot(*args, **changes))]


def test_an_escape_begins_once_an_episode_and_not_where_no_limit_is_known() -> None:
    triggers = Triggers(rack(), {"a/1": "b", "a/2": "c"}, 0.5)
    assert told(triggers, 1, [310.0, 900.0]) == [], "it stood when we came"
    assert told(triggers, 2, [310.0, 900.0]) == []
    assert told(triggers, 3, [290.0, 900.0]) == []
    (began,) = triggers.find(snapshot(4, [301.0, 900.0]))
    assert (began.kind, began.subject, began.boards) == ("escape", "a/1", frozenset({"b"}))
    assert began.values == {"power_w": 301.0, "limit_w": 300.0}
    assert began.t_mono_ns == 4 * TICK_NS - 20 * MS
    assert began.t_utc_ns == T0 + 4 * TICK_NS - 20 * MS
    assert told(triggers, 5, [np.nan, 900.0]) == []
    assert told(triggers, 6, [301.0, 900.0]) == [], "what was not measured in between is no new episode"


def test_a_step_is_a_share_of_the_rating() -> None:
    triggers = Triggers(rack(), {"a/1": "b", "a/2": "b"}, 0.5)
    triggers.find(snapshot(0, [0.0, 0.0]))
    assert told(triggers, 1, [0.0, 0.0], step_w=[349.0, np.nan]) == []
    assert told(triggers, 2, [0.0, 0.0], step_w=[349.0, 351.0]) == [("step", "a/2", ["b"])]
    assert told(triggers, 3, [0.0, 0.0], step_w=[349.0, 351.0]) == []


def test_faults_come_once_a_kind_with_the_boards_that_they_concern() -> None:
    triggers = Triggers(rack(), {"a/1": "b", "a/2": "c"}, 0.5)
    assert told(triggers, 1, [0.0, 0.0], causes=("starting",)) == []
    assert told(triggers, 2, [0.0, 0.0], causes=("over_derating:breaker", "model_fallback")) == []
    assert told(triggers, 3, [0.0, 0.0], causes=("sensor_stale:a/2",)) == [("fault", "sensor_stale", ["c"])]
    assert told(triggers, 4, [0.0, 0.0], causes=("sensor_stale:a/1", "sensor_stale:a/2")) == []
    assert told(triggers, 5, [0.0, 0.0], causes=("no_readings", "overload:breaker")) == [
        ("overload", "breaker", ["b", "c"]),
        ("fault", "no_readings", ["b", "c"]),
    ]
    assert told(triggers, 6, [0.0, 0.0], causes=("pdu_unreachable:a",)) == [("fault", "pdu_unreachable", ["b", "c"])]


def test_an_outlet_that_no_board_measures_has_no_waveform() -> None:
    triggers = Triggers(rack(), {"a/2": "c"}, 0.5)
    triggers.find(snapshot(0, [0.0, 0.0]))
    assert told(triggers, 1, [400.0, 0.0]) == []


# -- as a whole


def test_the_event_names_the_file_also_when_the_daemon_stops_at_once(tmp_path: Path) -> None:
    Board(tmp_path / "run").run_to(9000)
    folder = tmp_path / "state/history"
    keeping = Keeping(folder, tmp_path / "run", ManualClock(5, T0), History())
    with logging_to_stderr("error", "json"):
        keeping.open()
        keeping.begin(rack(), "cal", np.ones(2, np.int64), {"a/1": "b"})
        assert keeping._captures is not None
        structlog.get_logger("test").info("mode")
        keeping._captures.tick(5 * S, [trigger(5000)])
        keeping.close()
    (event,) = read_events(folder, 0, END, ["capture"])
    assert (folder / event.data["file"]).exists()
    assert event.data["of"] == ["escape:a/1"]
    assert verify(folder).broken == ()
    assert keeping.status()["captures_written"] == 1


def test_the_list_is_what_is_kept_and_names_what_is_damaged(tmp_path: Path, writer: Writer) -> None:
    Board(tmp_path / "run").run_to(9000)
    config = tmp_path / "rack.toml"
    config.write_text('[daemon]\nstate_dir = "."\n' + CONFIG)
    words = ["capture", "--list", "-c", str(config)]
    assert "no capture was taken yet" in CliRunner().invoke(main, words).stdout
    taken = captures(writer, tmp_path)
    taken.tick(5 * S, [trigger(5000)])
    taken.close()
    drained(writer)
    table = CliRunner().invoke(main, words).stdout
    assert "b  3.0 s  escape a/1" in table
    (tmp_path / "history" / FOLDER / "x.json").write_text("{}")
    result = CliRunner().invoke(main, [*words, "--json"])
    document = json.loads(result.stdout.splitlines()[-1])
    assert [item["board"] for item in document["captures"]] == ["b"]
    assert "x.json" in document["notes"][0]


def test_a_ring_that_is_too_short_for_a_capture_is_a_mistake(tmp_path: Path) -> None:
    text = CONFIG + "\n[history]\ncapture_after_s = 60\n\n[sampling]\nraw_ring_s = 100\n"
    with pytest.raises(ConfigError, match=r"raw_ring_s.*less than a capture may need.*= 186 s"):
        parse_config(text, "test", base_dir=tmp_path, env={"KEY": "a secret of 16 characters"})
