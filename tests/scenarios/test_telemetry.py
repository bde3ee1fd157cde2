"""Hosts that tell what they do, one that is silent: forecasts go on, status says who, and the run replays."""

import json
import socket
from pathlib import Path

from scenario_rack import Daemon, Place, RackProcess, cli, free_ports, running

from rpi_daemon.telemetry_task import FEED_SOCKET

SECTIONS = """
[[telemetry]]
load = "a-1"
driver = "feed"

[[telemetry]]
load = "a-2"
url = "http://127.0.0.1:{port}/metrics"
allow_insecure = true
"""


def send(folder: Path, *lines: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.connect(str(folder / "run" / FEED_SOCKET))
        agent.send("\n".join(lines).encode())


def test_hosts_are_heard_masked_and_replayed(place: Place, rack: RackProcess) -> None:
    config = place.write()
    config.write_text(config.read_text() + SECTIONS.format(port=free_ports(1)[0]))
    recording = place.folder / "recording"
    with running(lambda: Daemon(config, "--record", str(recording))) as daemon:
        daemon.normal()
        daemon.until(lambda s: s["telemetry"][1]["error"], "a first question to the silent one")
        send(place.folder, '{"load": "a-1", "cpu": 0.75}', '{"load": "a-9", "cpu": 1}', "what")
        status = daemon.until(lambda s: s["telemetry"][0]["cpu"] == 0.75, "the feed's word")
        assert [status["telemetry"][0][name] for name in ("memory", "network", "disk")] == [None] * 3
        feed = status["telemetry_feed"]
        assert (feed["received"], feed["refused"], feed["unknown_loads"]) == (3, 1, {"a-9": 1})
        silent = status["telemetry"][1]
        assert (silent["reachable"], silent["cpu"], silent["age_s"]) == (False, None, None)
        assert f"host of 'a-2' ({silent['url']})" in silent["error"]
        assert "host of a-2: never heard of" in cli(config, "status").stdout
        status = daemon.until(lambda s: s["telemetry"][0]["cpu"] is None, "masked when old")
        assert status["telemetry"][0]["age_s"] > 3.0
        daemon.normal()
        assert daemon.stop() == 0
    done = cli(config, "dry-run", "--recording", str(recording), "--json", timeout_s=60.0)
    assert done.returncode == 0, done.stderr + done.stdout
    said = [
        json.loads(line)["inputs"]["host_readings"] for line in (recording / "ticks.jsonl").read_text().splitlines()
    ]
    assert [reading["cpu"] for readings in said for reading in readings] == [0.75]
