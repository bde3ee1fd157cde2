"""7: a recorded run replays to the same decisions."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from scenario_rack import Daemon, Place, RackProcess, cli, running


@dataclass
class Recorded:
    folder: Path
    config: Path
    digest: str
    ticks: int


@pytest.fixture(scope="module")
def recorded(place: Place, rack: RackProcess) -> Recorded:
    """A run with everything in it that reaches a decision: losses, a board away, hints, caps, restores, a silent PDU."""
    folder = place.folder / "recording"
    with running(lambda: Daemon(place.write(), "--record", str(folder))) as daemon:
        daemon.normal()
        rack.ask(board="board-a", fault="drop_frames", frames=12)
        daemon.ask("hint", load="b-2", delta_w=120, in_s=3.0, for_s=2.0)
        daemon.ask("limit_set", outlet="pdu-b/5", limit_w=150.0, ttl_s=2.0, reason="test")
        rack.ask(board="board-b", fault="reboot", ms=200)
        tick = daemon.status()["summary"]["ticks"]
        daemon.until(lambda s: s["summary"]["ticks"] > tick + 20, "20 ticks")
        daemon.ask("limit_restore", outlets=["pdu-a/2"], reason="test")
        rack.ask(board="board-a", fault="unplug")
        daemon.until(lambda s: s["state"] == "HOLD", "HOLD")
        rack.ask(board="board-a", fault="plug")
        rack.ask(pdu="pdu-b", faults={"drop": -1})
        daemon.until(lambda s: not s["pdus"][1]["reachable"], "unreachable")
        rack.ask(pdu="pdu-b", faults={})
        daemon.normal()
        daemon.ask("kill", reason="test")
        tick = daemon.status()["summary"]["ticks"]
        daemon.until(lambda s: s["summary"]["ticks"] > tick + 5, "5 ticks")
        (place.folder / "state" / "kill").unlink()
        status = daemon.until(lambda s: s["summary"]["ticks"] > tick + 20, "20 ticks")
        assert daemon.stop() == 0
    last = json.loads((folder / "ticks.jsonl").read_text().splitlines()[-1])
    return Recorded(folder, place.write(), last["digest"], status["summary"]["ticks"])


def test_the_same_is_decided_again(recorded: Recorded) -> None:
    done = cli(recorded.config, "dry-run", "--recording", str(recorded.folder), "--json", timeout_s=60.0)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["first_different_tick"] is None
    assert report["decision_digest"] == report["recorded_digest"] == recorded.digest
    assert report["ticks"] >= recorded.ticks > 60


def test_a_recording_is_not_overwritten(recorded: Recorded, rack: RackProcess) -> None:
    with running(lambda: Daemon(recorded.config, "--record", str(recorded.folder), name="second")) as daemon:
        assert daemon.wait() == 1
        assert "holds a recording already" in daemon.words()


def test_another_input_gives_other_decisions(recorded: Recorded, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded.folder, tmp_path / "changed")
    ticks = folder / "ticks.jsonl"
    lines = ticks.read_text().splitlines()
    record = json.loads(lines[40])
    record["inputs"]["ceilings"] = [{"constraint": "pdu-a/1", "limit_w": 20.0, "source": "nobody", "reason": "test"}]
    ticks.write_text("\n".join([*lines[:40], json.dumps(record), *lines[41:60]]) + "\n")
    done = cli(recorded.config, "dry-run", "--recording", str(folder), "--json", timeout_s=60.0)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["first_different_tick"] == 41


@pytest.mark.parametrize("file", ["ticks.jsonl", "board-a.scans", "header.json"])
def test_a_cut_recording_is_refused(file: str, recorded: Recorded, tmp_path: Path) -> None:
    folder = shutil.copytree(recorded.folder, tmp_path / "cut")
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 3])
    done = cli(recorded.config, "dry-run", "--recording", str(folder), timeout_s=60.0)
    assert done.returncode == 7
    assert len(done.stderr.splitlines()) == 1
    assert str(folder / file) in done.stderr
    nothing = cli(recorded.config, "dry-run", "--recording", str(tmp_path))
    assert nothing.returncode == 7
    assert "run --record" in nothing.stderr
