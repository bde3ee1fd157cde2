"""6: boards and PDUs that go, come back, lose scans or reboot while the daemon runs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from scenario_rack import Daemon, Place, RackProcess, Status, cli, limit_of, on_pdu, outlet_of, running, unaccounted

from rpi_daemon.drivers.pdu.snmp import SnmpPdu
from rpi_daemon.records import LimitWrite

A = [f"pdu-a/{n}" for n in range(1, 6)]
B = [f"pdu-b/{n}" for n in range(1, 7)]


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess) -> Iterator[Daemon]:
    with running(lambda: Daemon(place.write())) as process:
        process.normal()
        yield process


def _board(status: Status, board: str = "board-a") -> dict[str, Any]:
    row: dict[str, Any] = next(item for item in status["boards"] if item["id"] == board)
    return row


def _pdu(status: Status, pdu: str) -> dict[str, Any]:
    row: dict[str, Any] = next(item for item in status["pdus"] if item["id"] == pdu)
    return row


def test_injected_loss_is_counted_exactly(rack: RackProcess, daemon: Daemon) -> None:
    before, offset = daemon.normal(), unaccounted(daemon, rack)
    rack.ask(board="board-a", fault="drop_frames", frames=7)
    rack.until(lambda s: s["boards"]["board-a"]["scans_lost"] == 70, "7 frames of 10 scans dropped by the board")
    status = daemon.until(lambda s: _board(s)["lost"] >= _board(before)["lost"] + 70, "the loss")
    assert unaccounted(daemon, rack) == offset
    rack.ask(board="board-a", fault="corrupt", frames=3)
    status = daemon.until(lambda s: _board(s)["corrupt"] >= 3, "3 corrupt frames")
    assert rack.state()["boards"]["board-a"]["scans_damaged"] == 30
    assert unaccounted(daemon, rack) == offset
    assert _board(status)["lost"] >= _board(before)["lost"] + 100


def test_a_board_reboot_is_no_loss(rack: RackProcess, daemon: Daemon) -> None:
    before, offset = daemon.normal(), unaccounted(daemon, rack, "scans_overflowed")
    rack.ask(board="board-a", fault="reboot", ms=300)
    status = daemon.until(lambda s: _board(s)["reboots"] == _board(before)["reboots"] + 1, "the reboot")
    received = _board(status)["received"]
    daemon.until(lambda s: _board(s)["received"] > received + 500, "scans after it")
    assert unaccounted(daemon, rack, "scans_overflowed") == offset
    daemon.normal()


def test_an_unplugged_board_holds_its_outlets_and_comes_back(rack: RackProcess, daemon: Daemon) -> None:
    before = daemon.normal()
    rack.ask(board="board-a", fault="unplug")
    status = daemon.until(lambda s: s["state"] == "HOLD" and not _board(s)["connected"], "HOLD", 3.0)
    assert {o["id"] for o in status["outlets"] if o["power_w"] is None} == {*A, "pdu-a/6"}
    assert "stale" in outlet_of(status, A[0])["quality"]
    assert "sensor_stale:pdu-a/1" in status["causes"]
    held = {name: limit_of(status, name) for name in A}
    tick = status["summary"]["ticks"]
    writes = status["summary"]["writes"]
    status = daemon.until(
        lambda s: s["summary"]["ticks"] > tick + 30 and s["summary"]["writes"] > writes, "30 ticks, and writes to pdu-b"
    )
    assert all((limit_of(status, name) or 0.0) <= (held[name] or 0.0) + 1.0 for name in A)
    assert all(o["power_w"] is not None for o in status["outlets"] if o["id"] in B)
    rack.ask(board="board-a", fault="plug")
    status = daemon.normal()
    assert _board(status)["disconnects"] == _board(before)["disconnects"] + 1
    received = _board(status)["received"]
    daemon.until(lambda s: _board(s)["received"] > received + 500, "scans again")


def test_a_silent_pdu_is_unreachable_and_comes_back(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    rack.ask(pdu="pdu-a", faults={"drop": -1})
    status = daemon.until(lambda s: not _pdu(s, "pdu-a")["reachable"], "unreachable", 5.0)
    status = daemon.until(lambda s: s["state"] == "HOLD", "HOLD", 2.0)
    assert "pdu_unreachable:pdu-a" in status["causes"]
    writes = status["summary"]["writes"]
    status = daemon.until(lambda s: s["summary"]["writes"] > writes + 3, "writes to pdu-b")
    assert not _pdu(status, "pdu-a")["reachable"]
    assert _pdu(status, "pdu-b")["reachable"]
    rack.ask(pdu="pdu-a", faults={})
    daemon.until(lambda s: _pdu(s, "pdu-a")["reachable"], "reachable", 4.0)
    daemon.normal()
    assert [line["pdu"] for line in daemon.log("pdu.unreachable")] == ["pdu-a"]


def test_a_pdu_that_reboots_gets_its_limits_again(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    rack.ask(pdu="pdu-a", reboot=True)
    daemon.until(lambda s: bool(daemon.log("pdu.rebooted")), "the reboot")
    rack.until(lambda s: all(s["limits_w"]["pdu-a"][str(n)] is not None for n in range(1, 6)), "limits on pdu-a", 6.0)
    status = daemon.until(
        lambda s: s["state"] == "NORMAL" and all(limit_of(s, name) is not None for name in A), "NORMAL with limits"
    )
    assert not any(cause.startswith("foreign_writer") for cause in status["causes"])
    assert not any(o["uncontrolled"] for o in status["outlets"])


def test_all_pdus_silent_then_back_goes_over_static_safe(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    for pdu in ("pdu-a", "pdu-b"):
        rack.ask(pdu=pdu, faults={"drop": -1})
    daemon.until(lambda s: s["state"] == "HOLD", "HOLD at once", 4.0)
    daemon.until(lambda s: s["state"] == "DEVICE_DEFAULT", "DEVICE_DEFAULT after five seconds of it")
    for pdu in ("pdu-a", "pdu-b"):
        rack.ask(pdu=pdu, faults={})
    daemon.normal()


def test_without_any_reading_the_limits_go_to_static_safe(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    for board in ("board-a", "board-b"):
        rack.ask(board=board, fault="unplug")
    daemon.until(lambda s: s["state"] == "HOLD", "HOLD", 3.0)
    status = daemon.until(lambda s: s["state"] == "STATIC_SAFE", "STATIC_SAFE after 5 s", 12.0)
    assert "no_readings" in status["causes"]
    rack.until(
        lambda s: all(
            abs((s["limits_w"][pdu][str(n)] or 0.0) - 550.0) <= 1.0 for pdu in ("pdu-a", "pdu-b") for n in range(1, 6)
        ),
        "STATIC_SAFE on both PDUs",
    )
    for board in ("board-a", "board-b"):
        rack.ask(board=board, fault="plug")
    daemon.normal()


def test_somebody_else_who_writes_is_named_and_left_alone(place: Place, rack: RackProcess, daemon: Daemon) -> None:
    async def change(driver: SnmpPdu, limit_w: float) -> None:
        await driver.read()
        await driver.apply([LimitWrite(2, limit_w)])

    daemon.normal()
    for limit_w in range(600, 640):  # one that falls into a write of ours is not seen
        on_pdu(place.write(), "pdu-b", [2], partial(change, limit_w=float(limit_w)))
        polls = _pdu(daemon.status(), "pdu-b")["polls"]
        status = daemon.until(lambda s, n=polls: _pdu(s, "pdu-b")["polls"] > n + 1, "a poll")  # type: ignore[misc]
        if "foreign_writer:pdu-b" in status["causes"]:
            break
    status = daemon.until(lambda s: "foreign_writer:pdu-b" in s["latched"], "we stop there")
    assert {line["outlet"] for line in daemon.log("limit.foreign_change")} == {"pdu-b/2"}
    tick = status["summary"]["ticks"]
    daemon.until(lambda s: s["summary"]["ticks"] > tick + 5, "what was on the wire")
    before = rack.sets()
    daemon.until(lambda s: s["summary"]["ticks"] > tick + 25, "20 ticks")
    assert rack.sets()["pdu-b"] == before["pdu-b"]
    assert cli(daemon.config, "resume").returncode == 0
    daemon.normal()
    rack.until(lambda s: s["pdus"]["pdu-b"]["sets"] > before["pdu-b"], "writes to pdu-b again")


def test_a_restore_that_fails_keeps_its_outlets(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    rack.ask(pdu="pdu-b", faults={"refuse": [3]})
    done = cli(daemon.config, "limit", "restore", "pdu-b/3", "pdu-a/1")
    rack.ask(pdu="pdu-b", faults={})
    assert done.returncode == 4
    assert "1 of 2 found limits are back; these are not and stay ours: pdu-b/3: " in done.stderr
    status = daemon.normal()
    assert status["mode"] == "closed_loop"
    assert outlet_of(status, "pdu-b/3")["opted_in"]
    assert not outlet_of(status, "pdu-a/1")["opted_in"]
    assert cli(daemon.config, "mode", "closed_loop").returncode == 0


def test_it_still_stops_in_static_safe(rack: RackProcess, daemon: Daemon) -> None:
    assert daemon.stop() == 0
    limits = rack.limits_w()
    assert [limits[name] for name in [*A, *B]] == pytest.approx([550.0] * 11, abs=1.0)
