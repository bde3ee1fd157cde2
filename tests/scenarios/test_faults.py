"""6: boards and PDUs that go, come back, lose scans or reboot while the daemon runs."""

from collections.abc import Iterator
from typing import Any

import pytest
from scenario_rack import Daemon, Place, RackProcess, Status, limit_of, outlet_of, running, unaccounted

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


def test_it_still_stops_in_static_safe(rack: RackProcess, daemon: Daemon) -> None:
    assert daemon.stop() == 0
    limits = rack.limits_w()
    assert [limits[name] for name in [*A, *B]] == pytest.approx([550.0] * 11, abs=1.0)
