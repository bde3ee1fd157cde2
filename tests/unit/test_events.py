"""Events on disk: order, durability, and a chain that shows every change."""

import sqlite3
import time
from pathlib import Path

import pytest

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.chain import ChainLog, read_chain, verify_chain
from rpi_daemon.history.events import Event, EventLog, read_events, verify

T0 = 1_799_020_790 * NS_PER_S  # Sunday 2027-01-03 23:59:50 UTC
DAYS = 36_500.0
END = 4 * 10**18


def stored(folder: Path, count: int = 30) -> list[Event]:
    events = [
        Event(T0 + k * NS_PER_S, k, "state" if k % 3 else "overload", {"number": k, "causes": ["a", "b"]}, k + 1)
        for k in range(count)
    ]
    log = EventLog(folder, keep_days=DAYS)
    for k in range(0, count, 5):
        log.append(events[k : k + 5])
    log.close()
    return events


def test_events_come_back_in_order_over_the_end_of_a_week_and_a_restart(tmp_path: Path) -> None:
    events = stored(tmp_path)
    again = EventLog(tmp_path, keep_days=DAYS)
    late = Event(T0 + 40 * NS_PER_S, 40, "mode", {"mode": "advisory"}, 31)
    again.append([late])
    again.close()
    assert [path.name for path in sorted(tmp_path.glob("*.sqlite"))] == [
        "events-2026W53.sqlite",
        "events-2027W01.sqlite",
    ]
    assert list(read_events(tmp_path, 0, END)) == [*events, late]
    assert list(read_events(tmp_path, T0 + 8 * NS_PER_S, T0 + 12 * NS_PER_S)) == events[8:12]
    assert [e.data["number"] for e in read_events(tmp_path, 0, END, ["overload"])] == list(range(0, 30, 3))
    chain = verify(tmp_path)
    assert (chain.events, chain.broken) == (31, ())
    assert chain.first is not None
    assert (chain.first.seq, chain.first.t_ns) == (1, T0)


def test_a_clock_that_went_back_opens_no_older_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep_days=DAYS)
    log.append([Event(T0 + 20 * NS_PER_S, 1, "state", {})])
    log.append([Event(T0, 2, "state", {})])
    log.close()
    log = EventLog(tmp_path, keep_days=DAYS)
    log.append([Event(T0, 3, "state", {})])
    log.close()
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["events-2027W01.sqlite"]
    assert [event.seq for event in read_events(tmp_path, 0, END)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE event SET data = '{}' WHERE seq = 7", "number 7"),
        ("UPDATE event SET t_ns = t_ns + 1 WHERE seq = 7", "number 7"),
        ("UPDATE event SET name = 'x' WHERE seq = 7", "number 7"),
        ("DELETE FROM event WHERE seq = 7", "1 records are missing before number 8"),
        ("DELETE FROM event WHERE seq < 4", "3 records are missing before number 4"),
        ("UPDATE event SET seq = -seq WHERE seq IN (7, 8)", "number"),
        ("INSERT INTO event SELECT 31, t_ns, t_mono_ns, name, data, hash FROM event WHERE seq = 9", "number 31"),
    ],
)
def test_every_change_shows(tmp_path: Path, change: str, told: str) -> None:
    events = [Event(T0 - NS_PER_S, k, "state", {"number": k}) for k in range(30)]
    log = EventLog(tmp_path, keep_days=DAYS)
    log.append(events)
    log.close()
    assert verify(tmp_path).broken == ()
    with sqlite3.connect(tmp_path / "events-2026W53.sqlite") as connection:
        connection.execute(change)
    connection.close()
    broken = verify(tmp_path).broken
    assert told in " ".join(broken)


def test_nothing_of_a_failed_append_is_kept(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file where the folder should be")
    log = EventLog(tmp_path / "events", keep_days=DAYS)
    with pytest.raises(OSError):
        log.append([Event(T0, 1, "state", {})])
    (tmp_path / "events").unlink()
    log.append([Event(T0, 1, "state", {})])
    log.close()
    assert [event.seq for event in read_events(tmp_path / "events", 0, END)] == [1]


def weekly(folder: Path, weeks: int = 4) -> None:
    """Three events a week."""
    log = EventLog(folder, keep_days=DAYS)
    for week in range(weeks):
        at_ns = T0 + week * 7 * 86_400 * NS_PER_S
        log.append([Event(at_ns + k, k, "state", {"week": week}) for k in range(3)])
    log.close()


def test_old_weeks_are_deleted_and_the_rest_of_the_chain_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weekly(tmp_path, 3)
    late_ns = T0 + 100 * 86_400 * NS_PER_S
    monkeypatch.setattr(time, "time_ns", lambda: late_ns)
    old = EventLog(tmp_path, keep_days=7.0)
    old.append([Event(late_ns, 9, "state", {})])
    old.close()
    assert (old.deleted, len(list(tmp_path.glob("*.sqlite")))) == (3, 1)
    chain = verify(tmp_path)
    assert (chain.events, chain.broken) == (2, ())
    assert chain.first is not None
    assert chain.first.seq == 10, "it says where it begins"
    told, late = read_events(tmp_path, 0, END)
    assert (told.name, told.data["begins"], len(told.data["deleted"])) == ("chain.shortened", 10, 3)
    assert (late.name, late.seq) == ("state", 11)


def test_a_file_that_somebody_took_away_shows(tmp_path: Path) -> None:
    weekly(tmp_path)
    gone = sorted(tmp_path.glob("*.sqlite"))[1]
    gone.unlink()
    assert verify(tmp_path).broken == (
        "events-2027W02.sqlite: 3 records are missing before it: a file was deleted or set aside",
    )


def test_the_first_events_of_a_file_cannot_be_taken_away_with_its_start(tmp_path: Path) -> None:
    weekly(tmp_path)
    with sqlite3.connect(sorted(tmp_path.glob("*.sqlite"))[1]) as connection:
        connection.execute("UPDATE start SET seq = 4, hash = (SELECT hash FROM event WHERE seq = 4)")
        connection.execute("DELETE FROM event WHERE seq = 4")
    connection.close()
    assert verify(tmp_path).broken == (
        "events-2027W01.sqlite: 1 records are missing before it: a file was deleted or set aside",
    )


def test_a_file_that_is_damaged_while_it_is_written_is_set_aside_and_said(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep_days=DAYS)
    log.append([Event(T0, k, "state", {"text": "x" * 400}) for k in range(200)])
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    path.write_bytes(whole)
    log.append([Event(T0 + 1, 1, "mode", {})])
    log.append([Event(T0 + 2, 2, "mode", {})])
    log.close()
    assert log.set_aside == 1
    assert [(event.seq, event.name) for event in read_events(tmp_path, 0, END)] == [(201, "mode"), (202, "mode")]
    begins, aside = verify(tmp_path).broken
    assert (
        begins == "events-2026W53.sqlite: it begins with number 201, and no record says that older files were deleted"
    )
    assert "set aside as damaged; what it held is not in the chain" in aside


def test_a_file_that_was_deleted_under_the_daemon_is_begun_anew(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep_days=DAYS)
    log.append([Event(T0, 1, "state", {})])
    for path in tmp_path.iterdir():
        path.unlink()
    log.append([Event(T0, 2, "state", {})])
    log.close()
    assert [event.seq for event in read_events(tmp_path, 0, END)] == [2]


@pytest.mark.parametrize("kind", ["events", "audit"])
def test_a_clock_that_jumps_ahead_deletes_no_newer_week_than_time_going_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An RTC without a battery says 2077: what is left is what 30 days need, and the chain says what went."""
    log = ChainLog(tmp_path, kind=kind, keep_days=30.0)
    for week in (*range(8), 50 * 52):
        at_ns = T0 + week * 7 * 86_400 * NS_PER_S
        monkeypatch.setattr(time, "time_ns", lambda at_ns=at_ns: at_ns)
        log.append([Event(at_ns, week, "state", {"week": week})])
    log.close()
    kept = [event.data["week"] for event in read_chain(tmp_path, 0, END, ["state"], kind=kind)]
    assert kept == [4, 5, 6, 7, 50 * 52]
    chain = verify_chain(tmp_path, kind=kind)
    assert chain.broken == ()
    assert chain.first is not None
    assert chain.first.seq > 1
