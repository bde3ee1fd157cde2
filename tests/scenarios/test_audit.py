"""The real daemon's audit: every change of a limit that a PDU saw has its record from before; who, why, and what came of it."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from audited import changes, records, unaudited
from click.testing import CliRunner, Result
from scenario_rack import Daemon, Place, RackProcess, cli, on_pdu, running

from rpi_daemon.audit import FOLDER
from rpi_daemon.cli import main
from rpi_daemon.records import LimitWrite


def ask(config: Path, *arguments: str) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(main, [*arguments, "--config", str(config)])


def verified(config: Path) -> dict[str, Any]:
    done = ask(config, "audit", "verify", "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def ran(place: Place, rack: RackProcess) -> Path:
    """A daemon that ran, was asked to give an outlet back and was stopped; then the failsafe."""
    config = place.write()
    changes(rack)
    with running(lambda: Daemon(config)) as daemon:
        daemon.normal()
        rack.until(lambda _: len(changes(rack)) > 20, "limits that change")
        assert daemon.ask("limit_restore", outlets=["pdu-a/1"], reason="sold")["verified"] == 1
        daemon.ask("kill", reason="an exercise")
        ticks = daemon.status()["summary"]["ticks"]
        daemon.until(lambda s: s["kill_switch"] and s["summary"]["ticks"] > ticks + 1, "the kill switch")
        daemon.ask("resume")
        daemon.until(lambda s: not s["kill_switch"] and s["summary"]["ticks"] > ticks + 5, "its end")
        assert daemon.stop() == 0
        assert daemon.log("audit.head")
    on_pdu(config, "pdu-a", [2], lambda driver: driver.apply([LimitWrite(2, 610.0)]))
    assert cli(config, "failsafe").returncode == 0
    return config


def test_every_limit_that_a_pdu_saw_was_recorded_before_it_whoever_wrote(
    place: Place, rack: RackProcess, ran: Path
) -> None:
    """With kills: test_faults_power.py."""
    seen, asked = changes(rack), records(place.folder / "state", "asked")
    assert len(seen) > 20
    assert [(outlet, now_w) for _, outlet, now_w in unaudited(seen, asked)] == [("pdu-a/2", 610.0)], "somebody else's"
    assert len(unaudited(seen, asked[:2])) > 10, "the comparison can fail"
    assert {record.data["who"].split()[0] for record in asked} == {"daemon", "operator", "failsafe"}


def test_who_why_before_and_after_are_told(place: Place, ran: Path) -> None:
    raised = [
        item
        for record in records(place.folder / "state", "asked")
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
    restored = [
        record for record in records(place.folder / "state", "asked") if record.data["who"].startswith("operator ")
    ]
    assert [(r.data["words"], r.data["writes"][0]["what"]) for r in restored] == [("sold", "pdu-a/1")]
    commands = [record.data["command"] for record in records(place.folder / "state", "command")]
    assert "limit_restore" in commands
    assert [record.data["engaged"] for record in records(place.folder / "state", "kill_switch")] == [True, False]
    ends = {record.data["n"] for record in records(place.folder / "state", "ended")}
    assert ends
    for record in records(place.folder / "state", "ended"):
        for outcome in record.data["outcomes"]:
            if outcome["sent_after_ms"] is None:
                assert outcome["refused"].startswith("not written: the kill switch"), "it came while the disk was slow"
                continue
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
