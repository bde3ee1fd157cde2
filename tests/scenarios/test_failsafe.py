"""`rpi-daemon failsafe` and `limit restore --offline`: what stands on the PDUs when no daemon runs any more."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from disks import mounted
from scenario_rack import Daemon, Place, RackProcess, cli, on_pdu, running

from rpi_daemon.audit import HEAD_FILE
from rpi_daemon.drivers.traps.engine import ENGINE_FILE
from rpi_daemon.durable import copy_of, write_twice
from rpi_daemon.found import FoundLimits
from rpi_daemon.known_boards import BOARDS_FILE
from rpi_daemon.proof import PROOF_FILE
from rpi_daemon.records import LimitWrite
from rpi_daemon.safe_limits import FOUND_CAPS_FILE, FOUND_FILE
from rpi_daemon.service import SETTLE_FILE
from rpi_daemon.standing import STANDING_FILE

OURS = [f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 7)]
STATIC_SAFE_W = 550.0


@dataclass
class Gone:
    """A daemon that was killed in closed loop, with limits of its own on both PDUs."""

    config: Path
    found_w: dict[str, float | None]  # what stood before it
    refused: list[subprocess.CompletedProcess[str]]  # what was asked of it while it ran

    @property
    def state(self) -> Path:
        return self.config.parent / "state"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("failsafe"))


@pytest.fixture(scope="module")
def gone(place: Place, rack: RackProcess) -> Gone:
    path, found_w = place.write(), rack.limits_w()
    with running(lambda: Daemon(path)) as daemon:
        daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
        rack.until(lambda s: _moved(s["limits_w"]), "limits of its own on both PDUs")
        refused = [cli(path, *command) for command in (["failsafe"], ["limit", "restore", "--offline"])]
        daemon.stop(signal.SIGKILL)
    return Gone(path, found_w, refused)


@pytest.fixture
def killed(gone: Gone, rack: RackProcess) -> Iterator[Gone]:
    """As when it was killed: its files, and a limit away from STATIC_SAFE on each PDU."""
    kept = [gone.config, gone.state / STANDING_FILE, copy_of(gone.state / STANDING_FILE)]
    octets = [path.read_bytes() for path in kept]
    disturb(gone)
    yield gone
    rack.ask(pdu="pdu-a", faults={})
    for path, before in zip(kept, octets, strict=True):
        path.write_bytes(before)
    (gone.state / "kill").unlink(missing_ok=True)


def disturb(gone: Gone) -> None:
    for pdu in ("pdu-a", "pdu-b"):
        on_pdu(gone.config, pdu, [1, 2], lambda driver: driver.apply([LimitWrite(1, 320.0), LimitWrite(2, 610.0)]))


def _moved(limits_w: dict[str, dict[str, float]]) -> bool:
    return all(any(abs(w - STATIC_SAFE_W) > 5.0 for n, w in limits_w[pdu].items() if f"{pdu}/{n}" in OURS)
               for pdu in ("pdu-a", "pdu-b"))  # fmt: skip


def failsafe(gone: Gone, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = cli(gone.config, "failsafe", "--json", *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def at_static_safe(rack: RackProcess) -> list[str]:
    limits_w = rack.limits_w()
    return [name for name in OURS if limits_w[name] == pytest.approx(STATIC_SAFE_W, abs=1.0)]


def test_while_a_daemon_runs_it_refuses(gone: Gone) -> None:
    for done in gone.refused:
        assert done.returncode == 8
        assert "another daemon of this host controls it" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_after_kill_9_failsafe_leaves_static_safe(killed: Gone, rack: RackProcess) -> None:
    assert at_static_safe(rack) != OURS
    code, document = failsafe(killed)
    assert (code, document["ok"], document["mode"], document["notes"]) == (0, True, "closed_loop", [])
    assert document["after_s"] < 20.0  # bench/failsafe.py has the figure
    assert [(p["id"], p["outlets"], p["away"], p["error"]) for p in document["pdus"]] == [
        ("pdu-a", 5, [], None), ("pdu-b", 6, [], None),
    ]  # fmt: skip
    assert all(p["written"] >= 2 for p in document["pdus"])
    assert at_static_safe(rack) == OURS
    assert rack.limits_w()["pdu-a/6"] == killed.found_w["pdu-a/6"]
    sets = rack.sets()
    assert failsafe(killed)[0] == 0
    assert rack.sets() == sets, "what stands is not written again"


def test_it_acts_on_what_was_in_force_when_the_configuration_is_broken(killed: Gone, rack: RackProcess) -> None:
    killed.config.write_text(killed.config.read_text().replace("[rack]", "[rock"), encoding="utf-8")
    code, document = failsafe(killed)
    assert code == 0
    assert "not valid TOML" in document["notes"][0]
    assert at_static_safe(rack) == OURS


def test_it_acts_on_what_was_in_force_when_outlets_were_taken_out_since(killed: Gone, rack: RackProcess) -> None:
    text = killed.config.read_text().replace("closed_loop = true", "closed_loop = false")
    killed.config.write_text(text, encoding="utf-8")
    code, document = failsafe(killed)
    assert code == 0
    assert "has changed since" in document["notes"][0]
    assert at_static_safe(rack) == OURS


def test_a_damaged_standing_leaves_the_configuration(killed: Gone, rack: RackProcess) -> None:
    for path in (killed.state / STANDING_FILE, copy_of(killed.state / STANDING_FILE)):
        path.write_text("{", encoding="utf-8")
    code, document = failsafe(killed)
    assert code == 0
    assert "damaged" in document["notes"][0]
    assert at_static_safe(rack) == OURS


def test_files_that_the_disk_cannot_read_or_that_are_folders_keep_nothing_from_static_safe(
    killed: Gone, rack: RackProcess
) -> None:
    """The second copies stand in for found limits and standing; the rest is made anew."""
    kept = killed.state.rename(killed.state.with_name("kept"))
    shutil.copytree(kept, killed.state)
    (killed.state / "models").mkdir(exist_ok=True)
    try:
        for name in (FOUND_FILE, FOUND_CAPS_FILE, PROOF_FILE, SETTLE_FILE):
            (killed.state / name).unlink(missing_ok=True)
            (killed.state / name).symlink_to("/proc/self/mem")  # EIO
        for name in (STANDING_FILE, BOARDS_FILE, HEAD_FILE, ENGINE_FILE, "models/standing.json"):
            (killed.state / name).unlink(missing_ok=True)
            (killed.state / name).mkdir()
        code, document = failsafe(killed)
        assert (code, document["mode"], document["notes"]) == (0, "closed_loop", [])
        assert at_static_safe(rack) == OURS
        with running(lambda: Daemon(killed.config, name="unread")) as daemon:
            daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
            assert [(line["path"], line["lost"]) for line in daemon.log("found_limits.damaged")] == [
                (FOUND_FILE, False), (FOUND_CAPS_FILE, True),
            ]  # fmt: skip
            assert "standing.json: Is a directory" in daemon.log("state.one_copy")[0]["error"]
            assert daemon.stop() == 0
        assert FoundLimits.from_json((killed.state / FOUND_FILE).read_text()).pdus.keys() == {"pdu-a", "pdu-b"}
    finally:
        shutil.rmtree(killed.state)
        kept.rename(killed.state)


def test_a_silent_pdu_costs_the_time_and_nothing_else(killed: Gone, rack: RackProcess) -> None:
    rack.ask(pdu="pdu-a", faults={"drop": -1})
    code, document = failsafe(killed, "--for", "2")
    assert code == 4
    assert document["after_s"] < 10.0  # 2 s, and the start of a process on a busy machine
    silent, other = document["pdus"]
    assert silent["away"] is None
    assert "127.0.0.1" in silent["error"]
    assert other["away"] == []
    assert set(at_static_safe(rack)) >= {f"pdu-b/{n}" for n in range(1, 7)}


def test_a_secret_that_is_gone_is_named_and_keeps_it_from_no_other_pdu(killed: Gone, rack: RackProcess) -> None:
    key = killed.config.parent / "auth.key"
    key.rename(key.with_suffix(".away"))
    try:
        code, document = failsafe(killed, "--for", "3")
    finally:
        key.with_suffix(".away").rename(key)
    assert code == 4
    assert document["pdus"][0]["error"] == f"{key}: No such file or directory"
    assert document["pdus"][1]["away"] == []


def test_on_a_full_and_on_a_read_only_disk(killed: Gone, rack: RackProcess, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-o", "size=4m") as disk:
        state = disk / "state"
        shutil.copytree(killed.state, state)
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        code, document = failsafe(killed, "--state-dir", str(state))
        assert (code, document["notes"]) == (0, [])
        assert at_static_safe(rack) == OURS
        disturb(killed)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, document = failsafe(killed, "--state-dir", str(state))
        assert (code, document["notes"]) == (0, [])
        assert at_static_safe(rack) == OURS


def test_with_the_kill_switch_nothing_is_written(killed: Gone, rack: RackProcess) -> None:
    (killed.state / "kill").touch()
    sets = rack.sets()
    code, document = failsafe(killed)
    assert (code, document["mode"], document["pdus"]) == (0, "kill_switch", [])
    assert rack.sets() == sets


def test_advisory_compares(killed: Gone, place: Place, rack: RackProcess) -> None:
    (killed.state / STANDING_FILE).unlink()
    sets = rack.sets()
    code, document = failsafe(Gone(place.write(mode="advisory"), {}, []))
    assert (code, document["mode"]) == (0, "advisory")
    assert [pdu["away"] for pdu in document["pdus"]] == [[1, 2], [1, 2]]
    assert rack.sets() == sets


def test_found_limits_of_the_others_come_back_while_a_pdu_is_silent(killed: Gone, rack: RackProcess) -> None:
    rack.ask(pdu="pdu-a", faults={"drop": -1})
    done = cli(killed.config, "limit", "restore", "--offline", "--for", "2")
    rack.ask(pdu="pdu-a", faults={})
    assert done.returncode == 4
    assert "did not answer" in done.stdout
    assert "longer --for" not in done.stdout
    stands_w = rack.limits_w()
    assert {k: w for k, w in stands_w.items() if k.startswith("pdu-b")} == {
        k: w for k, w in killed.found_w.items() if k.startswith("pdu-b")
    }


def test_found_limits_come_back_without_a_daemon(killed: Gone, rack: RackProcess) -> None:
    """As at uninstall: they come back, and failsafe leaves them alone from then on."""
    done = cli(killed.config, "limit", "restore", "--offline", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["restored"], document["mode"]) == (0, 11, "advisory"), done.stderr
    assert rack.limits_w() == killed.found_w
    sets = rack.sets()
    assert failsafe(killed)[0] == 0
    assert rack.sets() == sets


def test_it_starts_without_what_takes_long_to_import() -> None:
    heavy = {"onnxruntime", "onnx", "pysnmp", "pymodbus", "aiohttp", "matplotlib", "scipy"}
    script = "import sys; import rpi_daemon.failsafe; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_another_device_at_the_address_is_not_written_and_is_no_success(killed: Gone, rack: RackProcess) -> None:
    """As after two PDUs have changed places: what is safe for one may cut off the other's loads."""
    path = killed.state / FOUND_FILE
    found = FoundLimits.from_json(path.read_text())
    assert set(found.serials) == {"pdu-a", "pdu-b"}
    write_twice(path, replace(found, serials={**found.serials, "pdu-a": "SN-1"}).to_json(), FoundLimits.from_json)
    sets = rack.sets()
    code, told = failsafe(killed)
    (a, b) = told["pdus"]
    assert (code, told["ok"], a["ok"], b["ok"]) == (4, False, False, True)
    assert "that of the PDU first met there is SN-1: another device, or two addresses that changed places" in a["error"]
    assert rack.sets()["pdu-a"] == sets["pdu-a"]
    assert rack.sets()["pdu-b"] > sets["pdu-b"]
    with running(lambda: Daemon(killed.config, name="another")) as daemon:
        assert daemon.logged("pdu.meters_only")["pdu"] == "pdu-a"
        daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
        assert daemon.stop() == 0
    assert rack.sets()["pdu-a"] == sets["pdu-a"]
    write_twice(path, found.to_json(), FoundLimits.from_json)
