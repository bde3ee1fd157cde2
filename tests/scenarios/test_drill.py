"""Drills: their report tells whether the daemon keeps its promises, and they refuse where they would do harm."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scenario_rack import RPI, Daemon, Place, RackProcess, cli, running

from rpi_daemon.cli import main
from rpi_daemon.config.load import load_config
from rpi_daemon.control import SOCKET_NAME, ControlServer
from rpi_daemon.drill import SystemdBox, run_drills
from rpi_daemon.errors import RpiError
from rpi_daemon.roles import Caller

# late, on a machine that is busy with other tests
LATE = ("it had verified STATIC_SAFE, from its start", "STATIC_SAFE stands on every PDU")


def test_every_drill_passes_on_the_demo_rack(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    done = CliRunner().invoke(main, ["drill", "all", "--demo", "--json", "--out", str(report)])
    document = json.loads(done.stdout.splitlines()[-1])
    assert {name: len(checks) for name, checks in document["drills"].items()} == {
        "kill-switch": 6,
        "sensor-loss": 6,
        "pdu-loss": 6,
        "restart": 5,
        "failsafe": 5,
    }
    checks = [check for checks in document["drills"].values() for check in checks]
    assert [check for check in checks if not check["passed"] and (check["what"] not in LATE or check["seen"])] == []
    assert (document["mode"], document["checks"]) == ("closed_loop", 28)
    assert done.exit_code == (0 if document["ok"] else 1)
    told = report.read_text().splitlines()
    assert told[-1].startswith(f"{document['passed']} of 28 passed: rack demo, closed_loop, 20")
    assert sum("  pass  " in line for line in told) == document["passed"]


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess) -> Iterator[Daemon]:
    with running(lambda: Daemon(place.write())) as process:
        process.normal()
        yield process


def test_in_closed_loop_it_takes_a_word(place: Place, daemon: Daemon) -> None:
    done = cli(place.write(), "drill", "pdu-loss")
    assert done.returncode == 1
    assert "the daemon is in closed loop, and a drill changes limits on the PDUs: say --closed-loop" in done.stderr


def test_a_daemon_that_nobody_would_start_again_is_not_killed(place: Place, daemon: Daemon) -> None:
    done = cli(place.write(), "drill", "failsafe", "--closed-loop")
    assert done.returncode == 1
    assert f"(pid {daemon.process.pid}) does not run as a service of systemd" in done.stderr
    assert daemon.alive()


def test_no_drill_begins_with_the_kill_switch_engaged(place: Place, daemon: Daemon) -> None:
    daemon.ask("kill", reason="works on the rack")
    done = cli(place.write(), "drill", "kill-switch", "--closed-loop")
    assert done.returncode == 1
    assert "the kill switch is engaged: no drill begins" in done.stderr
    assert daemon.status()["kill_switch"]
    daemon.ask("resume")


def test_a_drill_whose_terminal_is_closed_leaves_no_kill_switch_and_says_so(
    place: Place, daemon: Daemon, tmp_path: Path
) -> None:
    command = [*RPI, "drill", "kill-switch", "--closed-loop", "--config", str(place.write()), "--out"]
    with subprocess.Popen([*command, str(tmp_path / "report")], stdout=subprocess.PIPE, text=True) as drill:
        assert drill.stdout is not None
        assert next(line for line in drill.stdout if "an alarm tells it" in line)
        assert daemon.status()["kill_switch"]
        drill.send_signal(signal.SIGHUP)
        assert drill.stdout.read() == "  ended early     what does not stand above was not tried\n"
    assert drill.returncode == 128 + signal.SIGHUP
    assert (tmp_path / "report").read_text().endswith("  ended early     what does not stand above was not tried\n")
    assert not daemon.status()["kill_switch"]


def test_a_report_that_cannot_be_kept_is_told_before_anything_is_broken(place: Place, daemon: Daemon) -> None:
    done = cli(place.write(), "drill", "kill-switch", "--closed-loop", "--out", "/nowhere/report")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "/nowhere/report: No such file or directory; the report cannot be written: no drill began\n"


def test_an_unknown_device_and_a_long_drill_are_refused(daemon: Daemon) -> None:
    with pytest.raises(RpiError, match="no board or PDU is called 'pdu-z'; known: board-a, board-b, pdu-a, pdu-b"):
        daemon.ask("drill", device="pdu-z", for_s=1, closed_loop=True)
    with pytest.raises(RpiError, match="for_s is 61; a drill lasts 60 s at most"):
        daemon.ask("drill", device="pdu-a", for_s=61, closed_loop=True)
    with pytest.raises(RpiError, match="it needs to be asked for by name"):
        daemon.ask("drill", device="pdu-a", for_s=1)


class Careless:
    """Answers like a daemon that goes on writing whatever it is told."""

    def __init__(self) -> None:
        self.writes = 0

    async def answer(self, request: dict[str, Any], caller: Caller) -> dict[str, Any]:
        self.writes += 1
        return {
            "pid": 1, "mode": "closed_loop", "state": "NORMAL", "why": [], "alarms": [], "outlets": [],
            "kill_switch": False, "summary": {"writes": self.writes, "ticks": 100 * self.writes},
        }  # fmt: skip


def test_a_daemon_that_breaks_its_promises_fails(place: Place, tmp_path: Path) -> None:
    config = load_config(place.write()).model_copy(update={"base_dir": str(tmp_path)})
    (tmp_path / "run").mkdir()

    async def judge() -> dict[str, Any]:
        server = ControlServer(tmp_path / "run" / SOCKET_NAME, 0o600, Careless().answer)
        await server.open()
        try:
            box = SystemdBox(config)
            return await asyncio.to_thread(run_drills, ["kill-switch"], box, closed_loop=True, say=lambda _: None)
        finally:
            await server.close()

    report = asyncio.run(judge())
    failed = [check["what"] for check in report["drills"]["kill-switch"] if not check["passed"]]
    assert failed == [
        "the kill switch is engaged, and the status says so",
        "an alarm tells it",
        "nothing was written for 3 s",
    ]
    assert (report["ok"], report["passed"], report["checks"]) == (False, 3, 6)


def test_a_rack_without_boards_is_told_that_nothing_was_tried(place: Place, daemon: Daemon) -> None:
    box = SystemdBox(load_config(place.write()).model_copy(update={"board": ()}))
    told: list[str] = []
    report = run_drills(["sensor-loss"], box, closed_loop=True, say=told.append)
    assert report["checks"] == 0
    assert told[-1] == "  none            this rack has nothing of that kind: nothing was tried"
