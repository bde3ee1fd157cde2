"""The history of a real daemon, and a disk that takes none: control goes on."""

import json
from pathlib import Path
from typing import Any

import comtrade
import numpy as np
import pytest
from scenario_rack import Daemon, Place, RackProcess, cli, running


def told(config: Path, *words: str) -> dict[str, Any]:
    done = cli(config, *words, "--from", "1h", "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_what_happened_is_there_after_kill_9(place: Place, rack: RackProcess) -> None:
    config = place.write()
    with running(lambda: Daemon(config, name="kept")) as daemon:
        daemon.normal()
        daemon.until(lambda s: s["history"]["limits_written"] >= 11, "every outlet's limit on disk")
        daemon.until(lambda s: s["history"]["events_written"] >= 5, "events on disk")
        daemon.process.kill()
        daemon.wait()
    limits = told(config, "history", "--what", "limit")["rows"]
    owned = {f"pdu-{pdu}/{n}" for pdu in "ab" for n in range(1, 7)} - {"pdu-a/6"}  # its threshold is off: no limit
    assert {row["outlet"] for row in limits} == owned
    events = told(config, "events", "--verify")
    names = [event["name"] for event in events["events"]]
    assert names.count("pdu.found") == 2
    assert "static_safe.verified" in names
    assert "limit" not in names
    assert events["ok"]
    words = (
        "capture",
        "--last",
        "--seconds",
        "1",
        "--board",
        "board-a",
        "--output",
        str(place.folder / "wave"),
        "--json",
    )
    assert cli(config, *words).returncode == 0
    wave = comtrade.load(str(place.folder / "wave.cfg"), str(place.folder / "wave.dat"))
    assert wave.frequency == pytest.approx(50.0, abs=0.5)
    volts = np.array(wave.analog[wave.analog_channel_ids.index("voltage:L1")])
    assert np.sqrt(np.nanmean(volts**2)) == pytest.approx(230.0, rel=0.03)


def test_control_goes_on_where_nothing_can_be_kept(place: Place, rack: RackProcess) -> None:
    (place.folder / "no-folder").write_text("a file where the history's folder should be")
    config = place.write()
    config.write_text(config.read_text() + '\n[history]\nfolder = "../no-folder"\n')
    with running(lambda: Daemon(config, name="nothing-kept")) as daemon:
        status = daemon.normal()
        writes = status["summary"]["writes"]
        status = daemon.until(
            lambda s: s["history"]["limits_dropped"] > 0 and s["summary"]["writes"] > writes, "control beside it"
        )
        assert "File exists" in status["history"]["failing"]
        assert status["history"]["limits_written"] == status["history"]["events_written"] == 0
        assert status["state"] == "NORMAL"
        assert daemon.logged("history.failing")["doing"] == "history is dropped and counted; control goes on"
        assert daemon.stop() == 0


def test_a_fault_leaves_a_waveform_within_2_s_of_its_end(place: Place, rack: RackProcess) -> None:
    config = place.write()
    with running(lambda: Daemon(config, name="captured")) as daemon:
        daemon.normal()
        rack.ask(board="board-a", fault="unplug")
        daemon.until(lambda s: "sensor_stale:pdu-a/1" in s["causes"], "a lost board")
        rack.ask(board="board-a", fault="plug")
        daemon.until(
            lambda s: "fault:sensor_stale" in {of for line in daemon.log("capture") for of in line["of"]}, "its capture"
        )
        assert daemon.stop() == 0
    captures = json.loads(cli(config, "capture", "--list", "--json").stdout.splitlines()[-1])["captures"]
    item = next(
        c for c in captures if c["board"] == "board-a" and "sensor_stale" in {t["subject"] for t in c["triggers"]}
    )
    wave = comtrade.load(item["file"], item["file"].replace(".cfg", ".dat"))
    assert wave.total_samples == item["scans"]
    assert item["scans"] - item["missing"] >= 800, "what came before the board went is there"
    name = "captures/" + Path(item["file"]).name
    (event,) = (e for e in told(config, "events", "--name", "capture")["events"] if e["data"]["file"] == name)
    assert event["t_ns"] - item["to_utc_ns"] < 2e9
