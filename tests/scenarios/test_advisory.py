"""3: advisory mode writes nothing at all, and READY comes after the comparison with STATIC_SAFE."""

import select
import socket
from datetime import UTC, datetime
from pathlib import Path

from scenario_rack import PATIENCE_S, Daemon, Place, RackProcess, limit_of, running


def test_advisory_writes_nothing_and_ready_follows_the_comparison(place: Place, rack: RackProcess) -> None:
    before = rack.limits_w()
    address = place.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        with running(lambda: Daemon(place.write(mode="advisory"), env={"NOTIFY_SOCKET": str(address)})) as daemon:
            assert _but_pings(notify, address) == b"READY=1"
            ready = datetime.now(UTC)
            compared = daemon.logged("static_safe.compared")
            assert datetime.fromisoformat(compared["timestamp"]) < ready
            assert compared["differs"] == {"pdu-a": [1, 2, 3, 4, 5], "pdu-b": [1, 2, 3, 4, 5, 6]}

            status = daemon.normal()
            assert status["mode"] == "advisory"
            assert status["static_safe_verified_s"] is None
            assert status["static_safe_differs"] == compared["differs"]
            ticks = status["summary"]["ticks"]
            status = daemon.until(lambda s: s["summary"]["ticks"] > ticks + 20, "20 more ticks")
            assert all(o["request_w"] > 0.0 for o in status["outlets"])
            assert limit_of(status, "pdu-b/1") == before["pdu-b/1"]
            assert {o["rule"] for o in status["outlets"]} == {"advisory"}
            assert _heard(notify, address) == b"WATCHDOG=1"
            assert daemon.stop() == 0
            assert _but_pings(notify, address) == b"STOPPING=1"
    assert rack.sets() == {"pdu-a": 0, "pdu-b": 0}
    assert rack.limits_w() == before


def _but_pings(notify: socket.socket, address: Path) -> bytes:
    """The next word that is none: a start on a busy machine takes longer than a ping."""
    while (word := _heard(notify, address)) == b"WATCHDOG=1":
        pass
    return word


def _heard(notify: socket.socket, address: Path) -> bytes:
    assert select.select([notify], [], [], PATIENCE_S)[0], f"nothing came to {address}"
    return notify.recv(100)
