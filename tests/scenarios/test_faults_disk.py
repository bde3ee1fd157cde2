"""13 and 14: a disk that is full, and databases that are damaged, under the real daemon."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from audited import changes, records, unaudited
from disks import fill, mounted
from fault_figures import Figures
from history_rig import Alone
from scenario_rack import Daemon, Place, RackProcess, running

from rpi_daemon.audit import FOLDER, read_audit, verify_audit
from rpi_daemon.history.weeks import Layout, open_for_writing, path_of
from rpi_daemon.records import TICK_NS, TICK_S

OURS = [f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 7)]
STATIC_SAFE_W = 550.0
WEEK_NS = 7 * 86_400 * 10**9
MINUTE = 600  # ticks
SINK = """
[[trap_sink]]
id = "facilities"
host = "127.0.0.1"
port = 9
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
"""
LAYOUT = Layout("rack", tuple(f"pdu-a/{n}" for n in range(1, 25)))
DAYS = 36_500.0
T0 = 1_799_020_790 * 10**9
POWER_W = np.random.default_rng(1).uniform(0.0, 500.0, (24, 3 * MINUTE + 1))


@pytest.fixture(scope="module")
def state(place: Place) -> Iterator[Path]:
    """The state folder on a file system of 2 MB."""
    with mounted(place.folder / "state", "-o", "size=2m,mode=0750") as disk:
        yield disk


@pytest.fixture(scope="module")
def usual_s(place: Place, rack: RackProcess, state: Path) -> float:
    """From the start of the process to STATIC_SAFE verified, without any file."""
    with running(lambda: Daemon(place.write())) as daemon:
        status = daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
        assert daemon.stop() == 0
    return float(status["static_safe_verified_s"])


@pytest.mark.fault(14)
def test_fault_14_damaged_databases_are_set_aside_and_the_start_is_hardly_later(
    place: Place, rack: RackProcess, state: Path, usual_s: float, figure: Figures
) -> None:
    databases = [*(state / "history").glob("events-*.sqlite"), *(state / FOLDER).glob("audit-*.sqlite")]
    databases.append(path_of(state / "history", time.time_ns()))
    open_for_writing(databases[-1]).close()
    assert len(databases) == 3
    for path in databases:
        octets = bytearray(path.read_bytes())
        at = 0 if path.name.startswith("history") else 4096
        octets[at:] = b"\xa5" * (len(octets) - at)
        path.write_bytes(octets)
    with running(lambda: Daemon(place.write())) as daemon:
        status = daemon.until(
            lambda s: (
                "files_set_aside" in {alarm["id"] for alarm in s["alarms"]} and s["history"]["files_set_aside"] == 2
            ),
            "files set aside, and told",
        )
        late_s = status["static_safe_verified_s"] - usual_s
        daemon.until(lambda s: s["history"]["events_written"] > 0 and s["audit"]["written"] > 0, "new files")
        assert status["audit"]["failing"] is None
        daemon.logged("alarm", alarm="files_set_aside")
        assert daemon.stop() == 0
    for path in databases:
        assert list(path.parent.glob(f"{path.name}.corrupt-*")), path
    told = verify_audit(state, state / "history").broken
    assert any("set aside as damaged" in sentence for sentence in told), "an auditor sees that something is missing"
    for path in [*state.glob("*/*.corrupt-*")]:
        path.unlink()
    figure(14, "start later than usual", max(0.0, late_s), 1.0, "s", busy=10.0)


@pytest.mark.fault(13)
def test_fault_13_on_a_full_disk_control_goes_on_nothing_is_raised_and_static_safe_is_written(
    place: Place, rack: RackProcess, state: Path, figure: Figures
) -> None:
    ballast = state / "ballast"
    with running(lambda: Daemon(place.write())) as daemon:
        daemon.normal()
        fill(ballast)
        full = daemon.until(
            lambda s: s["audit"]["failing"] is not None and "audit_not_durable" in s["causes"], "a full disk, told"
        )
        told = full["summary"]["ticks"]
        full = daemon.until(lambda s: s["summary"]["ticks"] > told + 5, "what was on the wire")
        before, began_s = full["summary"]["ticks"], full["t_mono_ns"] / 1e9
        before_that = changes(rack)
        full = daemon.until(
            lambda s: s["summary"]["ticks"] >= before + 30 and s["history"]["events_dropped"] > 0, "30 ticks of it"
        )
        missed = (full["t_mono_ns"] / 1e9 - began_s) / TICK_S - (full["summary"]["ticks"] - before)
        assert full["state"] == "HOLD"
        daemon.until(
            lambda s: {"audit_not_durable", "history_failing"} <= {alarm["id"] for alarm in s["alarms"]}, "both alarms"
        )
        raised = [
            one for one in changes(rack) if one not in before_that
        ]  # on the last pages, which come and go with the files that are closed
        assert len(raised) < 5, "limits are not moved"
        ballast.unlink()
        daemon.until(lambda s: s["state"] == "NORMAL" and s["audit"]["failing"] is None, "room again")
        written = daemon.status()["summary"]["writes"]
        daemon.until(lambda s: s["summary"]["writes"] > written, "limits move again")
        assert verify_audit(state, state / "history").head.seq > 0
        assert unaudited(raised, records(state, "asked")) == [], "limits here are alarm thresholds: none is protective"
        refused = [r for r in read_audit(state / FOLDER, 0, 1 << 62, ["refused"]) if "durable" in r.data["why"]]
        fill(ballast)
        assert daemon.stop() == 0
    limits = rack.limits_w()
    assert [limits[name] for name in OURS] == pytest.approx([STATIC_SAFE_W] * len(OURS), abs=1.0)
    ballast.unlink()
    assert all(item["to_w"] is not None for r in refused for item in r.data["writes"])
    figure(13, "ticks missed while the disk is full", max(0.0, missed), 1.0, "of 30", busy=15.0)


@pytest.mark.fault(13)
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_fault_13_a_known_rack_is_taken_up_on_a_full_disk(
    place: Place, rack: RackProcess, state: Path, end: str
) -> None:
    """With a receiver over SNMPv3, who counts our starts: no room for the count, nor for the index of the queue's log."""
    config = place.write()
    config.write_text(config.read_text() + SINK)
    ballast = state / "ballast"
    with running(lambda: Daemon(config)) as daemon:
        daemon.normal()
        if end == "stopped":
            assert daemon.stop() == 0
        fill(ballast)
        if end == "killed":
            daemon.process.kill()
            daemon.process.wait()
    with running(lambda: Daemon(config)) as daemon:
        status = daemon.until(lambda s: s["causes"] == ["audit_not_durable"], "it ticks, and knows of the disk alone")
        assert status["state"] == "HOLD"
        assert status["static_safe_verified_s"] is not None
        assert [sink["queued"] > 0 for sink in status["trap_sinks"]] == [True]
        ballast.unlink()
        daemon.normal()
        assert daemon.stop() == 0


def test_fault_13_room_is_made_by_deleting_the_oldest_week_not_rows(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-o", "size=2m") as disk:
        folder = disk / "history"
        folder.mkdir()
        for weeks in (2, 1):
            with contextlib.closing(open_for_writing(path_of(folder, T0 - weeks * WEEK_NS))) as connection:
                connection.execute("CREATE TABLE filler (octets BLOB)")
                connection.execute("INSERT INTO filler VALUES (zeroblob(500000))")
        oldest, older = (path_of(folder, T0 - weeks * WEEK_NS) for weeks in (2, 1))
        historian = Alone(folder, LAYOUT, keep_days=DAYS)
        historian.start()
        minutes(historian, 0, 1)
        fill(disk / "ballast")
        minutes(historian, 1, 3)
        until(lambda: historian.counters.blocks_written + historian.counters.blocks_dropped >= 2)
        assert not oldest.exists()
        assert older.exists()
        assert historian.counters.files_deleted == 1
        assert historian.counters.blocks_dropped == 0
        historian.close()
        connection = sqlite3.connect(older)
        assert connection.execute("SELECT length(octets) FROM filler").fetchone() == (500000,)
        connection.close()


def minutes(historian: Alone, first: int, end: int) -> None:
    for k in range(first * MINUTE, end * MINUTE + 1):
        historian.tick(T0 + k * TICK_NS, k * TICK_NS, POWER_W[:, k], {"forecast_w": POWER_W[:, k] + 5.0})


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
