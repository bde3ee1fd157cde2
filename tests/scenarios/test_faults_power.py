"""17 and 25: killed in the middle of a write, and the power gone: what is on disk afterwards, and how soon limits are safe again.

Short by default. `make kills` does them in full: 200 kills, 150 power cuts; their figures are in bench/results/kills.json.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import changes, records, unaudited
from benches import load_bench
from fault_figures import Figures
from scenario_rack import PATIENCE_S, Daemon, Place, RackProcess, on_pdu, running

from rpi_daemon.audit import FOLDER, read_audit, verify_audit
from rpi_daemon.config.load import load_config
from rpi_daemon.durable import copy_of, read_twice
from rpi_daemon.found import FoundLimits
from rpi_daemon.history.events import read_events, verify
from rpi_daemon.history.weeks import History
from rpi_daemon.proof import PROOF_FILE, Proofs
from rpi_daemon.records import LimitWrite, PduIdentity
from rpi_daemon.retrain.standing import library_of
from rpi_daemon.safe_limits import FOUND_FILE
from rpi_daemon.service import SETTLE_FILE
from rpi_daemon.standing import STANDING_FILE, Standing
from rpi_daemon.trap_queue import QUEUE_FILE

KILLS, CUTS = int(os.environ.get("RPI_KILLS", "3")), int(os.environ.get("RPI_CUTS", "3"))
FULL = "RPI_KILLS" in os.environ or "RPI_CUTS" in os.environ
machine = load_bench("common").machine
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "kills.json"
OURS = [f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 7)]
STATIC_SAFE_W = 550.0
END_NS = 1 << 62
MINUTE_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("power"))


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Any]]:
    """The figures of a full run, for the result file."""
    figures: dict[str, Any] = {}
    yield figures
    if FULL and figures:
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**before, **figures}, indent=1) + "\n", encoding="utf-8")


def at_static_safe(rack: RackProcess) -> bool:
    limits_w = rack.limits_w()
    return all(limits_w[name] == pytest.approx(STATIC_SAFE_W, abs=1.0) for name in OURS)


def restarted_s(daemon: Daemon) -> float:
    """From the start of the process to STATIC_SAFE verified on every PDU; NaN where a starved simulator did not answer."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if verified := daemon.log("static_safe.verified"):
            return float(verified[0]["after_s"])
        if daemon.log("static_safe.compared"):
            return math.nan
        daemon.pause()
    raise AssertionError(daemon.words())


def writing(daemon: Daemon, rack: RackProcess) -> None:
    """Until it writes limits of its own."""
    sets = rack.sets()
    rack.until(lambda s: any(s["pdus"][pdu]["sets"] > n for pdu, n in sets.items()) or not daemon.alive(), "a write")


def corrupt(state: Path) -> list[str]:
    """Stores that are not what was written, one sentence each."""
    found = [str(path) for path in state.rglob("*") if ".corrupt-" in path.name or ".damaged" in path.name]
    for path in (state / FOUND_FILE, copy_of(state / FOUND_FILE)):
        kept = read_twice(path, FoundLimits.from_json)
        found += [kept.damaged] if kept.damaged else []
    for path in (state / STANDING_FILE, copy_of(state / STANDING_FILE)):
        kept_standing = read_twice(path, Standing.from_json)
        found += [kept_standing.damaged] if kept_standing.damaged else []
    found += [f"{path}: not JSON" for path in state.glob("*.json") if not _is_json(path)]
    found += [f"{path}: {word}" for path in state.rglob("*.sqlite") if (word := _checked(path)) != "ok"]
    found += verify(state / "history").broken
    found += verify_audit(state, state / "history").broken
    return found


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _checked(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA quick_check").fetchone()[0])


@pytest.mark.fault(17)
def test_fault_17_killed_at_random(place: Place, rack: RackProcess, figure: Figures, kept: dict[str, Any]) -> None:
    """Most kills hit a loop that writes, one in five a start."""
    rng = np.random.default_rng(17)
    config, state = place.write(), place.folder / "state"
    restarts_s, damage, whiles = [], [], 0
    before = set(changes(rack))
    for turn in range(KILLS):
        with running(lambda: Daemon(config)) as daemon:
            if turn % 5 == 4:
                daemon.pause(float(rng.uniform(0.0, 2.0)))
            else:
                restarts_s.append(restarted_s(daemon))
                writing(daemon, rack)
                whiles += 1
                daemon.pause(float(rng.uniform(0.0, 0.3)))
            assert daemon.alive(), daemon.words()
            daemon.process.send_signal(signal.SIGKILL)
            daemon.wait()
        damage += corrupt(state)
    with running(lambda: Daemon(config)) as daemon:
        restarts_s.append(restarted_s(daemon))
        assert daemon.stop() == 0
    assert at_static_safe(rack)
    seen = [change for change in changes(rack) if change not in before]
    assert len(seen) > KILLS
    missing = unaudited(seen, records(state, "asked"))
    verified_s = [seconds for seconds in restarts_s if not math.isnan(seconds)]
    p50, p99, highest = (float(np.quantile(verified_s, q)) for q in (0.5, 0.99, 1.0))
    kept["kills"] = {
        "kills": KILLS, "while_writing": whiles, "corrupt": damage, "changes": len(seen), "unaudited": len(missing),
        "restart_s": {"p50": p50, "p99": p99, "max": highest}, "restarts": len(verified_s),
        "starts_without_an_answer_of_the_simulator": len(restarts_s) - len(verified_s),
        "outlets": len(OURS), "machine": machine(),
    }  # fmt: skip
    assert damage == []
    assert missing == []
    figure(17, f"corrupt stores after {KILLS} kills", len(damage), 0, "")
    figure(17, f"writes without their audit record after {KILLS} kills", len(missing), 0, "")
    figure(17, f"start to verified safe limits, highest of {KILLS} kills", highest, 3.0, "s", busy=15.0)


# -- power


@dataclass(frozen=True, slots=True)
class Cut:
    """A state folder as a kill left it, and what had been acknowledged as durable before."""

    folder: Path
    sizes: dict[str, int]  # of each file at that time
    events: int
    audited: int
    minutes: int


KINDS = {
    FOUND_FILE, f"{FOUND_FILE}.copy", STANDING_FILE, f"{STANDING_FILE}.copy", PROOF_FILE, f"{PROOF_FILE}.copy",
    SETTLE_FILE, QUEUE_FILE, "models/standing.json", "audit-head",
}  # fmt: skip
SINK = """
[[trap_sink]]
id = "away"
host = "127.0.0.1"
port = 9
version = "2c"
community_file = "community"
allow_insecure = true
"""


@pytest.fixture(scope="module")
def everything(place: Place, rack: RackProcess) -> Path:
    """A configuration with which every kind of file comes to stand in the state folder."""
    config, state = place.write(actuator=SINK), place.folder / "state"
    state.mkdir(exist_ok=True)
    identity = PduIdentity("APC", "AP8681", "6.8.2", "5A1234E00001", 24, False)
    Proofs.read(state).add(state, identity, "192.0.2.1/161", "of a profile")
    library = library_of(load_config(config))
    library._write(library.standing())  # as after a promotion and its roll-back
    return config


@pytest.fixture(scope="module")
def cut(everything: Path, place: Place, rack: RackProcess, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    config, state = everything, place.folder / "state"
    with running(lambda: Daemon(config)) as daemon:
        daemon.normal()
        writing(daemon, rack)
        daemon.pause(1.0)
        events, audited, minutes = _stored(state)
        sizes = {str(path.relative_to(state)): path.stat().st_size for path in state.rglob("*") if path.is_file()}
        daemon.pause(MINUTE_S + 5.0 if FULL else 1.0)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.wait()
    folder = tmp_path_factory.mktemp("cut") / "state"
    shutil.copytree(state, folder, ignore=shutil.ignore_patterns("*-shm", "daemon.lock"))
    return Cut(folder, sizes, events, audited, minutes)


def _stored(state: Path) -> tuple[int, int, int]:
    """Events, audit records, minutes of power that are served."""
    events = sum(1 for _ in read_events(state / "history", 0, END_NS))
    audited = sum(1 for _ in read_audit(state / FOLDER, 0, END_NS))
    minutes = sum(1 for _ in History(state / "history").blocks("power_w", 0, END_NS))
    return events, audited, minutes


def _torn(octets: bytes, at: int, turn: int, rng: np.random.Generator) -> bytes:
    """Cut off there, garbage from there on, or grown without its data."""
    if turn % 3 == 0:
        return octets[:at]
    if turn % 3 == 1:
        return octets[:at] + rng.bytes(len(octets) - at)
    return octets[:at] + bytes(len(octets) - at)


@pytest.mark.fault(25)
def test_fault_25_power_loss(
    place: Place, everything: Path, rack: RackProcess, cut: Cut, figure: Figures, kept: dict[str, Any]
) -> None:
    """Two kinds by turns: logs torn anywhere after what was acknowledged (nothing of that may be lost), and one file after
    the other torn anywhere, which no power cut does to files that were synced: then it must start all the same."""
    rng = np.random.default_rng(25)
    config, state = everything, place.folder / "state"
    files = sorted(str(p.relative_to(cut.folder)) for p in cut.folder.rglob("*") if p.is_file() and p.stat().st_size)
    assert set(files) >= KINDS
    logs = [name for name in files if name.endswith("-wal")]
    lost_events = lost_records = lost_blocks = 0
    starts_s: list[float] = []
    for turn in range(CUTS):
        shutil.rmtree(state)
        shutil.copytree(cut.folder, state)
        if turn % 3 == 0:
            for name in logs:
                octets = (state / name).read_bytes()
                at = min(cut.sizes.get(name, 0), len(octets))
                (state / name).write_bytes(_torn(octets, int(rng.integers(at, len(octets) + 1)), turn // 3, rng))
            events, audited, minutes = _stored(state)
            lost_events += max(0, cut.events - events)
            lost_records += max(0, cut.audited - audited)
            lost_blocks = max(lost_blocks, cut.minutes - minutes)
        else:
            torn = files if turn % 3 == 1 and not FULL else [files[turn % len(files)]]
            for name in torn:
                octets = (state / name).read_bytes()
                (state / name).write_bytes(_torn(octets, int(rng.integers(len(octets))), turn, rng))
        on_pdu(config, "pdu-b", [1], lambda driver: driver.apply([LimitWrite(1, 320.0)]))  # as if a loop had left it
        with running(lambda: Daemon(config)) as daemon:
            starts_s.append(restarted_s(daemon))
            assert at_static_safe(rack) or math.isnan(starts_s[-1])
            if turn % 3 != 0:
                daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
            assert daemon.alive(), daemon.words()
            daemon.process.send_signal(signal.SIGKILL)
            daemon.wait()
    kept["power_cuts"] = {
        "cuts": CUTS, "files": files, "started": len(starts_s), "events_lost": lost_events,
        "audit_records_lost": lost_records, "minutes_of_history_lost": lost_blocks,
        "highest_start_s": float(np.nanmax(starts_s)),
        "starts_without_an_answer_of_the_simulator": sum(map(math.isnan, starts_s)), "machine": machine(),
    }  # fmt: skip
    figure(25, f"power cuts after which it started, of {CUTS}", len(starts_s), CUTS, "", at_least=True)
    figure(25, "acknowledged events lost", lost_events + lost_records, 0, "")
    figure(25, "history lost, the minute that is being collected included", (lost_blocks + 1) * MINUTE_S, 60.0, "s")
