"""`rpi-daemon history` and `events` as their users run them: on files, without a daemon."""

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from history_rig import CONFIG, END, T0, Alone

from rpi_daemon.cli import main
from rpi_daemon.history.events import Event, EventLog
from rpi_daemon.history.weeks import Layout, StoredLimit, path_of
from rpi_daemon.records import TICK_NS

SPAN = ("--from", "2025-11-21T04:39:00Z", "--to", "2025-11-21T04:45:00Z")  # T0 is 04:40:00


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A rack with two minutes of history: a/1 draws 100 W, for 3 s 250 W, under a limit of 200 W."""
    path = tmp_path / "rack.toml"
    path.write_text('[daemon]\nstate_dir = "state"\n' + CONFIG)
    historian = Alone(tmp_path / "state/history", Layout("rack", ("a/1", "a/2")), keep_days=36_500.0)
    historian.start()
    historian.limit(StoredLimit(T0 - 10**9, 0, "a/1", "alarm", 200.0, "raise", "granted"))
    for k in range(1200):
        power_w = np.array([250.0 if 300 <= k < 330 else 100.0, np.nan])
        historian.tick(
            T0 + k * TICK_NS, k * TICK_NS, power_w, {"forecast_w": power_w + 5.0, "cpu": np.array([0.71, np.nan])}
        )
    historian.close()
    return path


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "-c", str(config)])


def asked(config: Path, *words: str) -> dict[str, Any]:
    result = run(config, *words, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return document


def test_power_by_the_span(config: Path) -> None:
    rows = asked(config, "history", "a/1", *SPAN)["rows"]
    assert {row["outlet"] for row in rows} == {"a/1"}
    assert max(row["max"] for row in rows) == 250.0
    assert min(row["min"] for row in rows) == 100.0
    assert rows[0]["t_utc_ns"] == T0
    unknown = asked(config, "history", "a/2", *SPAN)["rows"]
    assert {(row["mean"], row["known_percent"]) for row in unknown} == {(None, 0.0)}
    table = run(config, "history", "a/2", *SPAN).stdout
    assert "-     -    -    0.0" in table
    assert "  105.0  105.0  105.0  " in run(config, "history", "a/1", "--what", "forecast", *SPAN).stdout
    assert "  0.710  0.710  0.710  100.0" in run(config, "history", "a/1", "--what", "cpu", *SPAN).stdout


def test_a_span_of_which_little_is_stored_says_so(config: Path) -> None:
    """Readings of 120 s in rows of 120 s, asked for an hour that ends 60 s after the last of them."""
    rows = asked(config, "history", "a/1", "--from", "2025-11-21T03:43:00Z", "--to", "2025-11-21T04:43:00Z")["rows"]
    assert [(row["t_utc_ns"], row["known_percent"]) for row in rows] == [(T0, 100.0)]
    rows = asked(config, "history", "a/1", "--from", "2025-11-21T04:00:00Z", "--to", "2025-11-21T07:00:00Z")["rows"]
    assert [(row["t_utc_ns"], row["known_percent"]) for row in rows] == [(T0, 40.0)]


def test_escapes_have_their_limit_and_length(config: Path) -> None:
    document = asked(config, "history", "--what", "escapes", *SPAN)
    (escape,) = document["rows"]
    assert (escape["outlet"], escape["limit_w"], escape["worst_w"]) == ("a/1", 200.0, 250.0)
    assert escape["t_ns"] == T0 + 300 * TICK_NS
    assert escape["seconds"] == pytest.approx(3.0)
    assert "no limit is stored of a/2" in document["notes"]


def test_limits_with_their_reasons(config: Path) -> None:
    (row,) = asked(config, "history", "--what", "limit", *SPAN)["rows"]
    assert (row["limit_w"], row["kind"], row["reason"], row["rule"]) == (200.0, "alarm", "raise", "granted")


def test_csv_and_npz_hold_every_point(config: Path, tmp_path: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(run(config, "history", "a/1", "--format", "csv", *SPAN).stdout)))
    assert len(lines) == 1200
    assert float(lines[310]["value"]) == 250.0
    target = tmp_path / "x.npz"
    run(config, "history", "--what", "forecast", "--format", "npz", "-o", str(target), *SPAN)
    with np.load(target) as arrays:
        assert arrays["a/1/t_utc_ns"][0] == T0
        assert arrays["a/1/forecast_w/mean"].shape == (120,)
        assert arrays["a/1/forecast_w/mean"][31] == 255.0
        assert np.isnan(arrays["a/2/forecast_w/mean"]).all()


def test_a_picture(config: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.png"
    assert run(config, "history", "a/1", "--format", "png", "-o", str(target), *SPAN).exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("history", "a/7"), "no outlet a/7"),
        (("history", "--from", "yesterday"), "'yesterday' is not a time"),
        (("history", "--from", "1h", "--to", "2h"), "--from 1h is not before --to 2h"),
        (("history", "--format", "npz"), "needs --output FILE"),
        (("history", "--what", "limit", "--format", "png", "-o", "x"), "comes as table or csv"),
        (("history", "--format", "csv", "-o", "/no/such/folder/x"), "/no/such/folder/x: No such file or directory"),
        (("history", "--format", "png", "-o", "x.png", "--from", "1s"), "nothing is stored of these outlets"),
    ],
)
def test_mistakes_are_one_sentence(config: Path, words: tuple[str, ...], told: str) -> None:
    result = run(config, *words)
    assert result.exit_code != 0
    assert told in result.stderr
    assert result.stderr.count("\n") <= 2


def test_no_history_is_said(config: Path, tmp_path: Path) -> None:
    config.write_text('[daemon]\nstate_dir = "elsewhere"\n' + CONFIG)
    assert "no history is there" in run(config, "history").stderr


def test_a_damaged_block_is_told_and_not_filled(config: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path_of(tmp_path / "state/history", T0)) as connection:
        connection.execute(
            "UPDATE block SET data = zeroblob(length(data)) WHERE quantity = 'power_w' AND t_ns = ?", (T0,)
        )
    connection.close()
    result = run(config, "history", "a/1", "--format", "csv", *SPAN)
    assert "1 damaged blocks were left out" in result.stderr
    assert len(result.stdout.splitlines()) == 1 + 600


def test_events_by_name_and_their_chain(config: Path, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "state/history", keep_days=36_500.0)
    log.append([Event(T0 + k, k, "overload" if k == 3 else "state", {"k": k}) for k in range(10)])
    log.close()
    document = asked(config, "events", *SPAN, "--name", "overload", "--verify")
    assert [(event["name"], event["data"]) for event in document["events"]] == [("overload", {"k": 3})]
    assert document["checked"] == 10
    assert "overload  k=3" in run(config, "events", *SPAN).stdout
    with sqlite3.connect(tmp_path / "state/history/events-2025W47.sqlite") as connection:
        connection.execute("UPDATE event SET data = '{}' WHERE seq = 5")
    connection.close()
    broken = run(config, "events", *SPAN, "--verify")
    assert broken.exit_code == 1
    assert "number 5 (state) is not what was stored" in broken.stderr


def test_the_end_of_time_is_a_time(config: Path) -> None:
    assert END > T0
    assert asked(config, "history", "a/1", "--from", "2000-01-01", "--to", "2090-01-01")["rows"]


def test_an_outlet_that_had_another_name_is_found_by_its_load(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state/history"
    historian = Alone(folder, Layout("rack", ("old/7", "old/8"), "", ("load-1", "elsewhere")), keep_days=36_500.0)
    historian.start()
    for k in range(10):
        historian.tick(T0 + 7200 * 10**9 + k * TICK_NS, k * TICK_NS, np.array([1.0, 2.0]), {})
    historian.close()
    span = ("--from", "2025-11-21T06:39:00Z", "--to", "2025-11-21T06:45:00Z")
    notes = asked(config, "history", *span)["notes"]
    assert notes == ["nothing is stored of a/1-2", "a/1 feeds 'load-1', which is stored as old/7 in this span"]


def test_a_clock_that_was_set_back_is_said(config: Path, tmp_path: Path) -> None:
    historian = Alone(tmp_path / "state/history", Layout("rack", ("a/1", "a/2")), keep_days=36_500.0)
    historian.start()
    for k in range(600):
        historian.tick(T0 + 30 * 10**9 + k * TICK_NS, 10**15 + k * TICK_NS, np.array([500.0, np.nan]), {})
    historian.limit(StoredLimit(T0 + 30 * 10**9, 10**15, "a/1", "alarm", 600.0, "read", ""))
    historian.close()
    document = asked(config, "history", "a/1", *SPAN)
    assert "the wall clock was set back within the span: times overlap" in document["notes"]
    escapes = asked(config, "history", "a/1", "--what", "escapes", *SPAN)["rows"]
    assert [row["worst_w"] for row in escapes] == [250.0], "500 W were below the limit of their own time"
