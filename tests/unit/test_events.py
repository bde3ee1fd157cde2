"""Events on disk: order, durability, and a chain that shows every change."""

import sqlite3
from pathlib import Path

import pytest

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.events import Event, EventLog, read_events, verify

T0 = 1_798_761_590 * NS_PER_S  # 2026-12-31 23:59:50 UTC
END = 4 * 10**18


def stored(folder: Path, count: int = 30) -> list[Event]:
    events = [
        Event(T0 + k * NS_PER_S, k, "state" if k % 3 else "overload", {"number": k, "causes": ["a", "b"]}, k + 1)
        for k in range(count)
    ]
    log = EventLog(folder)
    for k in range(0, count, 5):
        log.append(events[k : k + 5])
    log.close()
    return events


def test_events_come_back_in_order_over_the_end_of_the_year_and_a_restart(tmp_path: Path) -> None:
    events = stored(tmp_path)
    again = EventLog(tmp_path)
    late = Event(T0 + 40 * NS_PER_S, 40, "mode", {"mode": "advisory"}, 31)
    again.append([late])
    again.close()
    assert [path.name for path in sorted(tmp_path.glob("*.sqlite"))] == ["events-2026.sqlite", "events-2027.sqlite"]
    assert list(read_events(tmp_path, 0, END)) == [*events, late]
    assert list(read_events(tmp_path, T0 + 8 * NS_PER_S, T0 + 12 * NS_PER_S)) == events[8:12]
    assert [e.data["number"] for e in read_events(tmp_path, 0, END, ["overload"])] == list(range(0, 30, 3))
    assert verify(tmp_path) == (type(verify(tmp_path)))(31, ())


def test_a_clock_that_went_back_opens_no_older_file(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append([Event(T0 + 20 * NS_PER_S, 1, "state", {})])
    log.append([Event(T0, 2, "state", {})])
    log.close()
    log = EventLog(tmp_path)
    log.append([Event(T0, 3, "state", {})])
    log.close()
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["events-2027.sqlite"]
    assert [event.seq for event in read_events(tmp_path, 0, END)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE event SET data = '{}' WHERE seq = 7", "number 7"),
        ("UPDATE event SET t_ns = t_ns + 1 WHERE seq = 7", "number 7"),
        ("UPDATE event SET name = 'x' WHERE seq = 7", "number 7"),
        ("DELETE FROM event WHERE seq = 7", "1 events are missing before number 8"),
        ("DELETE FROM event WHERE seq < 4", "begins with number 4"),
        ("UPDATE event SET seq = -seq WHERE seq IN (7, 8)", "number"),
        ("INSERT INTO event SELECT 31, t_ns, t_mono_ns, name, data, hash FROM event WHERE seq = 9", "number 31"),
    ],
)
def test_every_change_shows(tmp_path: Path, change: str, told: str) -> None:
    events = [Event(T0 - NS_PER_S, k, "state", {"number": k}) for k in range(30)]
    log = EventLog(tmp_path)
    log.append(events)
    log.close()
    assert verify(tmp_path).broken == ()
    with sqlite3.connect(tmp_path / "events-2026.sqlite") as connection:
        connection.execute(change)
    connection.close()
    broken = verify(tmp_path).broken
    assert told in " ".join(broken)


def test_nothing_of_a_failed_append_is_kept(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file where the folder should be")
    log = EventLog(tmp_path / "events")
    with pytest.raises(OSError):
        log.append([Event(T0, 1, "state", {})])
    (tmp_path / "events").unlink()
    log.append([Event(T0, 1, "state", {})])
    log.close()
    assert [event.seq for event in read_events(tmp_path / "events", 0, END)] == [1]
