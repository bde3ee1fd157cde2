"""The real daemon's audit: every change of a limit that a PDU saw has its record from before, whenever the daemon is killed."""

import json
import os
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scenario_rack import Daemon, Place, RackProcess, cli, running

from rpi_daemon.audit import FOLDER, read_audit
from rpi_daemon.cli import main
from rpi_daemon.history.chain import Event

KILLS = int(os.environ.get("RPI_AUDIT_KILLS", "3"))
STATIC_SAFE_W = 550.0
END_NS = 1 << 62
PDUS = ("pdu-a", "pdu-b")
STEP_W = 24.0  # amperes are rounded to tenths by one of the PDUs: 23 W


def records(place: Place, *names: str) -> list[Event]:
    told: list[str] = []
    found = list(read_audit(place.folder / "state" / FOLDER, 0, END_NS, names, told))
    assert told == []
    return found


def changes(rack: RackProcess) -> list[tuple[int, str, float | None]]:
    """Every change of a limit by a SET so far: UTC ns, outlet, W."""
    return [(t_ns, f"{pdu}/{n}", w) for pdu in PDUS for t_ns, n, w in rack.ask(pdu=pdu, log=True)["log"]]


def unaudited(seen: list[tuple[int, str, float | None]], asked: list[Event]) -> list[tuple[int, str, float | None]]:
    """Changes that are not what the newest record of their outlet from before asks for; a device rounds down to its step."""
    found = []
    for t_ns, outlet, now_w in seen:
        before = [item["to_w"] for r in asked if r.t_ns <= t_ns for item in r.data["writes"] if item["what"] == outlet]
        if now_w is not None and not (before and before[-1] is not None and -1.0 <= before[-1] - now_w <= STEP_W):
            found.append((t_ns, outlet, now_w))
    return found


def ask(config: Path, *arguments: str) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(main, [*arguments, "--config", str(config)])


def verified(config: Path) -> dict[str, Any]:
    done = ask(config, "audit", "verify", "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_limit_that_a_pdu_saw_was_recorded_before_it_whenever_the_daemon_was_killed(
    place: Place, rack: RackProcess
) -> None:
    """The short form; RPI_AUDIT_KILLS=200 is the long one."""
    rng = random.Random(7)
    config = place.write()
    changes(rack)
    heads = []
    for _ in range(KILLS):
        with running(lambda: Daemon(config)) as daemon:
            writes = len(changes(rack))
            rack.until(lambda _, n=writes: len(changes(rack)) > n + rng.randrange(1, 12), "limits that change")  # type: ignore[misc]
            daemon.pause(rng.uniform(0.0, 0.05))
            daemon.stop(signal.SIGKILL)
        heads.append(verified(config)["head"])
    done = cli(config, "failsafe", "--json")
    assert done.returncode == 0, done.stderr
    seen = changes(rack)
    assert len(seen) > 10 * KILLS
    assert unaudited(seen, records(place, "asked")) == []
    assert len(unaudited(seen, records(place, "asked")[:1])) > len(seen) / 2, "the comparison can fail"
    done = ask(config, "audit", "verify", *(word for head in heads for word in ("--head", head)))
    assert done.exit_code == 0, done.stderr
    assert [event.data["who"] for event in records(place, "begin")] == ["daemon"] * KILLS + ["failsafe"]


@pytest.fixture(scope="module")
def ran(place: Place, rack: RackProcess) -> Path:
    """A daemon that ran, was asked to give an outlet back and was stopped."""
    config = place.write()
    with running(lambda: Daemon(config)) as daemon:
        daemon.normal()
        daemon.until(lambda s: s["audit"]["written"] > 5, "writes")
        assert daemon.ask("limit_restore", outlets=["pdu-a/1"], reason="sold")["verified"] == 1
        daemon.ask("kill", reason="an exercise")
        ticks = daemon.status()["summary"]["ticks"]
        daemon.until(lambda s: s["kill_switch"] and s["summary"]["ticks"] > ticks + 1, "the kill switch")
        daemon.ask("resume")
        daemon.until(lambda s: not s["kill_switch"] and s["summary"]["ticks"] > ticks + 5, "its end")
        assert daemon.stop() == 0
        assert daemon.log("audit.head")
    return config


def test_who_why_before_and_after_are_told(place: Place, ran: Path) -> None:
    raised = [
        item
        for record in records(place, "asked")
        for item in record.data["writes"]
        if record.data["who"] == "daemon" and item["reason"] == "raise"
    ]
    assert raised
    for item in raised:
        assert item["kind"] == "alarm"
        assert item["quantile"] == 0.99
        assert item["request_w"] == pytest.approx(item["forecast_w"] + item["margin_w"], abs=600.0)
        assert item["grant_w"] is not None
        assert item["before_w"] is not None
    restored = [record for record in records(place, "asked") if record.data["who"].startswith("operator ")]
    assert [(r.data["words"], r.data["writes"][0]["what"]) for r in restored] == [("sold", "pdu-a/1")]
    commands = [record.data["command"] for record in records(place, "command")]
    assert "limit_restore" in commands
    assert [record.data["engaged"] for record in records(place, "kill_switch")] == [True, False]
    ends = {record.data["n"] for record in records(place, "ended")}
    assert ends
    for record in records(place, "ended"):
        for outcome in record.data["outcomes"]:
            assert outcome["verified"]
            assert 0.0 <= outcome["sent_after_ms"] <= outcome["verified_after_ms"]


def test_show_filters_by_outlet_and_by_who(ran: Path) -> None:
    done = ask(ran, "audit", "show", "--outlet", "pdu-a/1", "--who", "operator")
    assert done.exit_code == 0, done.stderr
    (asked, ended) = [line for line in done.stdout.splitlines() if "pdu-a/1" in line and "command" not in line]
    assert "restore (as found); sold" in asked
    assert "read back" in ended
    document = json.loads(ask(ran, "audit", "show", "--who", "daemon", "--json").stdout.splitlines()[-1])
    assert {row["data"]["who"] for row in document["records"]} == {"daemon"}
    assert {"begin", "asked", "ended", "end"} <= {row["name"] for row in document["records"]}
    none = ask(ran, "audit", "show", "--outlet", "pdu-z/1")
    assert (none.exit_code, "pdu-z/1" in none.stderr) == (3, True)


def test_verify_names_what_is_broken_with_exit_code_1(place: Place, ran: Path) -> None:
    head = verified(ran)["head"]
    path = sorted((place.folder / "state" / FOLDER).glob("*.sqlite"))[-1]
    kept = path.read_bytes()
    connection = sqlite3.connect(path)
    with connection:
        forge = "UPDATE event SET data = replace(data, 'sold', 'lost') WHERE data LIKE '%sold%' AND name = 'asked'"
        assert connection.execute(forge).rowcount == 1
    connection.close()
    done = ask(ran, "audit", "verify")
    assert done.exit_code == 1
    assert "(asked) is not what was stored" in done.stderr
    assert "BROKEN" in done.stdout
    path.write_bytes(kept)
    assert ask(ran, "audit", "verify", "--head", head).exit_code == 0
    number, _, digest = head.partition(":")
    done = ask(ran, "audit", "verify", "--head", f"{number}:{'0' * 64}")
    assert done.exit_code == 1
    assert f"number {number} is not the one" in done.stderr
    assert ask(ran, "audit", "verify", "--head", digest).exit_code == 1
