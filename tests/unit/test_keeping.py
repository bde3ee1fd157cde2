"""What the daemon keeps: which limits changed and why, events from every thread, and a disk that takes nothing."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import structlog
from history_rig import CONFIG, END, T0
from rack_examples import make_snapshot

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import History as Options
from rpi_daemon.history.events import WAITING, Event, EventKeeper, read_events, verify
from rpi_daemon.history.weeks import History, StoredLimit
from rpi_daemon.history.writer import Writer
from rpi_daemon.keeping import RESTATE_NS, Keeping, MinuteScores, StandingLimits
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import TELEMETRY, TICK_NS, Decision, Desired, LimitKind, LimitState, RackModel, Residual


def rack(folder: Path) -> RackModel:
    return rack_model(parse_config(CONFIG, "test", base_dir=folder, env={"KEY": "a secret of 16 characters"}))


def tick(k: int, limit_w: list[float], *decided: tuple[int, float], foreign: tuple[str, ...] = ()) -> Snapshot:
    """As much of a snapshot as limits are found from."""
    decisions = tuple(
        Decision(0, outlet, None, to_w, "raise", "granted", 0.0, 0.0, 0.0, protective=False) for outlet, to_w in decided
    )
    in_force = SimpleNamespace(limit_w=np.array(limit_w), kind=(LimitKind.ALARM,) * 2, step_w=np.ones(2))
    found: Any = SimpleNamespace(
        t_mono_ns=k * NS_PER_S,
        t_utc_ns=T0 + k * NS_PER_S,
        in_force=in_force,
        desired=(Desired("a", 0, (), decisions),) if decisions else (),
        foreign=foreign,
    )
    return cast(Snapshot, found)


def test_a_limit_that_changed_is_told_once_with_its_reason(tmp_path: Path) -> None:
    limits = StandingLimits(rack(tmp_path))
    nan = float("nan")

    def told(*args: Any, **others: Any) -> list[tuple[str, float | None, str]]:
        return [(change.outlet, change.limit_w, change.reason) for change in limits.changes(tick(*args, **others))]

    assert told(1, [nan, nan]) == []
    assert told(2, [300.0, nan]) == [("a/1", 300.0, "read")]
    assert told(3, [300.0, nan], (0, 410.4), (0, 430.0)) == []
    assert told(4, [410.0, nan]) == [("a/1", 410.0, "raise")]  # the device's step; a newer decision is on its way
    assert told(5, [430.0, 300.0], foreign=("a/2",)) == [("a/1", 430.0, "raise"), ("a/2", 300.0, "foreign_change")]
    assert told(6, [nan, 300.0]) == [("a/1", None, "read")]
    assert told(6 + RESTATE_NS // NS_PER_S, [nan, 300.0]) == [("a/2", 300.0, "stands")]


def test_what_the_stop_wrote_stands_after_the_last_tick(tmp_path: Path) -> None:
    limits = StandingLimits(rack(tmp_path))
    limits.changes(tick(1, [430.0, 300.0]))
    read = {1: LimitState(500.0, True, LimitKind.ALARM), 2: LimitState(300.0, True, LimitKind.ALARM)}
    found = limits.left(2 * NS_PER_S, NS_PER_S, "a", {**read, 7: read[1]})  # 7 meters for another outlet
    assert found == [StoredLimit(2 * NS_PER_S, NS_PER_S, "a/1", "alarm", 500.0, "stop", "")]
    off = limits.left(2 * NS_PER_S, NS_PER_S, "a", {1: LimitState(430.0, False, LimitKind.ALARM)})
    assert [(limit.outlet, limit.limit_w) for limit in off] == [("a/1", None)]


def test_what_stands_is_told_again_when_the_wall_clock_was_set(tmp_path: Path) -> None:
    limits = StandingLimits(rack(tmp_path))
    assert len(limits.changes(tick(1, [300.0, 310.0]))) == 2
    assert limits.changes(tick(2, [300.0, 310.0])) == []
    set_back = tick(3, [300.0, 310.0])
    set_back.t_utc_ns -= 3600 * NS_PER_S  # type: ignore[misc]
    assert [(c.outlet, c.reason, c.t_ns) for c in limits.changes(set_back)] == [
        ("a/1", "stands", T0 - 3597 * NS_PER_S),
        ("a/2", "stands", T0 - 3597 * NS_PER_S),
    ]


def test_what_is_logged_is_kept_whatever_level_is_shown(tmp_path: Path, capfd: Any) -> None:
    keeping = Keeping(tmp_path, tmp_path, ManualClock(5, T0), Options())
    log = structlog.get_logger("test")
    with logging_to_stderr("error", "json"):
        keeping.open()
        log.info("mode", mode="advisory", who={1, 2})
        log.debug("board.absent")
        log.info("limit", outlet="a/1")
        log.error("overload", constraint="rack")
        keeping.close()
        log.info("mode", mode="closed_loop")
    kept = list(read_events(tmp_path, 0, END))
    assert [event.name for event in kept] == ["mode", "overload"]
    assert kept[0] == Event(T0, 5, "mode", {"level": "info", "mode": "advisory", "who": "{1, 2}"}, 1)
    assert verify(tmp_path).broken == ()
    assert keeping.status()["events_written"] == 2
    shown = capfd.readouterr().err
    assert "overload" in shown
    assert "advisory" not in shown


def test_events_of_many_threads_are_all_there(tmp_path: Path) -> None:
    writer = Writer()
    keeper = EventKeeper(writer, tmp_path, keep_days=36_500.0)
    writer.start()

    def many(thread: int) -> None:
        for k in range(100):
            keeper.take(Event(T0, k, "state", {"thread": thread}))

    threads = [threading.Thread(target=many, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keeper.close()
    assert writer.close()
    kept = list(read_events(tmp_path, 0, END))
    assert keeper.counters.written == len(kept) == 400
    for number in range(4):
        assert [event.t_mono_ns for event in kept if event.data["thread"] == number] == list(range(100))


def test_events_that_no_disk_takes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("a file where the folder should be")
    keeping = Keeping(tmp_path / "history", tmp_path, ManualClock(), Options())
    with logging_to_stderr("error", "json"):
        keeping.open()
        structlog.get_logger("test").info("mode")
        keeping.close()
    status = keeping.status()
    assert status["events_dropped"] >= 1
    assert status["events_written"] == 0
    assert "File exists" in status["failing"]


def test_a_disk_that_hangs_holds_nobody(tmp_path: Path) -> None:
    writer = Writer()
    hang = threading.Event()
    writer.start()
    writer.put(hang.wait)  # type: ignore[arg-type]
    keeper = EventKeeper(writer, tmp_path, keep_days=36_500.0)
    for k in range(WAITING + 7):
        keeper.take(Event(T0, k, "state", {}))
    keeper.close()
    assert keeper.counters.dropped == 7
    assert not writer.close(timeout_s=0.01)
    hang.set()
    assert writer.close()
    assert keeper.counters.written == WAITING


def test_a_damaged_file_of_events_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "events-2025W40.sqlite").write_bytes(b"no database" * 100)
    writer = Writer()
    writer.start()
    keeper = EventKeeper(writer, tmp_path, keep_days=36_500.0)
    keeper.take(Event(T0, 1, "state", {}))
    keeper.close()
    assert writer.close()
    assert [event.seq for event in read_events(tmp_path, 0, END)] == [1]
    assert len(list(tmp_path.glob("events-2025W40.sqlite.corrupt-*"))) == 1


def judged(t_ns: int, error_w: float, escaped: list[bool], valid: list[bool]) -> Residual:
    nothing = np.full(2, np.nan)
    return Residual(
        t_ns, t_ns - 5 * NS_PER_S, np.full(2, error_w), nothing, nothing, nothing, np.array(escaped), np.array(valid),
        np.full(2, 2.0 * error_w),
    )  # fmt: skip


def test_a_minute_of_scores_by_hand(tmp_path: Path) -> None:
    """600 ticks; a/1 escapes in ticks 100 to 149 and 400 to 409, a/2 is not judged in the second half."""
    model, scores = rack(tmp_path), MinuteScores(2)
    minutes = []
    for k in range(601):
        t_ns = k * NS_PER_S // 10
        escaped = [100 <= k < 150 or 400 <= k < 410, False]
        snapshot = make_snapshot(
            model, [100.0, 100.0], t_mono_ns=t_ns, t_utc_ns=T0 + t_ns,
            residual=judged(t_ns, 3.0 if k % 2 else -1.0, escaped, [True, k < 300]),
            weights={"lstm": np.array([0.75, 1.0]), "ewma": np.array([0.25, 0.0])},
            request_weights={"lstm": np.array([float(k < 300), 1.0])},
        )  # fmt: skip
        minutes += [minute] if (minute := scores.tick(snapshot)) is not None else []
    ((t_ns, t_mono_ns, figures),) = minutes
    assert (t_ns, t_mono_ns) == (T0, 0)
    assert figures["judged"].tolist() == [600.0, 300.0]
    assert figures["escaped"].tolist() == [60.0, 0.0]
    assert figures["episodes"].tolist() == [2.0, 0.0]
    assert figures["error_w"].tolist() == [2.0, 2.0]
    assert figures["persistence_error_w"].tolist() == [4.0, 4.0]
    assert figures["weight:lstm"].tolist() == [0.75, 1.0]
    assert figures["request_weight:lstm"].tolist() == [0.5, 1.0]
    rest = scores.rest()
    assert rest is not None
    assert rest[2]["judged"].tolist() == [1.0, 0.0]
    assert scores.rest() is None


def test_scores_reach_the_disk(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, tmp_path, ManualClock(), Options())
    keeping.open()
    model = rack(tmp_path)
    keeping.begin(model, "", np.ones(2, np.int64), {})
    for k in range(3):
        keeping.tick(
            make_snapshot(
                model, [1.0, 2.0], t_mono_ns=k * TICK_NS, t_utc_ns=T0 + k * TICK_NS, weights={"ewma": np.ones(2)}
            )
        )
    keeping.close()
    (weight,) = History(tmp_path).blocks("weight:ewma", T0, T0 + NS_PER_S)
    assert weight.values.tolist() == [[1.0], [1.0]]
    (count,) = History(tmp_path).blocks("judged", T0, T0 + NS_PER_S)
    assert count.values.tolist() == [[0.0], [0.0]]
    (error,) = History(tmp_path).blocks("error_w", T0, T0 + NS_PER_S)
    assert np.isnan(error.values).all()


def test_what_hosts_said_is_kept_by_the_second_and_only_then(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, tmp_path, ManualClock(), Options())
    keeping.open()
    model = rack(tmp_path)
    keeping.begin(model, "", np.ones(2, np.int64), {})
    for k in range(30):
        telemetry = np.full((2, 4), np.nan)
        telemetry[0, TELEMETRY.index("cpu")] = 0.5 + 0.01 * k if 10 <= k < 20 else np.nan
        keeping.tick(
            make_snapshot(model, [1.0, 2.0], t_mono_ns=k * TICK_NS, t_utc_ns=T0 + k * TICK_NS, telemetry=telemetry)
        )
    keeping.close()
    history = History(tmp_path)
    for part, share in (("mean", 0.645), ("min", 0.6), ("max", 0.69)):
        (block,) = history.blocks(f"cpu/{part}", T0, T0 + 3 * NS_PER_S)
        np.testing.assert_allclose(block.values, [[np.nan, share, np.nan], [np.nan] * 3], atol=0.006)
    (memory,) = history.blocks("memory/mean", T0, T0 + 3 * NS_PER_S)
    assert np.isnan(memory.values).all()


def test_hosts_that_say_nothing_take_no_room(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, tmp_path, ManualClock(), Options())
    keeping.open()
    model = rack(tmp_path)
    keeping.begin(model, "", np.ones(2, np.int64), {})
    keeping.tick(make_snapshot(model, [1.0, 2.0], t_mono_ns=0, t_utc_ns=T0))
    keeping.close()
    assert list(History(tmp_path).blocks("cpu/mean", T0, T0 + NS_PER_S)) == []
