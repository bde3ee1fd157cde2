"""9: servers on a PDU whose limits only alarm step over their breaker's budget together; their BMCs hold them under it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scenario_rack import QUICK, Daemon, RackProcess, Status, cli, free_ports, running

from rpi_daemon.config.load import read_config
from rpi_daemon.simulate import bmc_certificate, make_keys

BEGIN_S, HIGH_S, PERIOD_S = (
    12.0,
    12.0,
    57.0,
)  # the servers' work: all at once for a while, then quiet until caps are off
LOW_W, HIGH_W = 180.0, 420.0
LOADS = [f"server-{n}" for n in range(1, 5)]
BUDGET_W = 1280.0  # rating x derate
RATING_W = 1600.0
BUSY_S = 10.0  # from the decision to the verified cap; bench/hil/loop_hil.py measures it, 1 s is promised

HEAD = """\
[rack]
id = "caps"
nominal_v = 230.0

[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_format = "json"
log_level = "debug"

[sampling]
raw_ring_s = 20.0
{quick}
[forecast]
primary = "ewma"

[[board]]
id = "board-a"
board_id = 1
port = "board-a.tty"
channels = ["current:pdu-a/1", "current:pdu-a/2", "current:pdu-a/3", "current:pdu-a/4", "voltage:L1"]

[[pdu]]
id = "pdu-a"
profile = "raritan_px"
host = "127.0.0.1"
port = {pdu}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
poll_s = 0.3
writes_per_day = 20000

[[outlet]]
pdu = "pdu-a"
numbers = "1-4"
load = "server-{{n}}"
rating_w = 700.0
static_safe_w = 300.0
closed_loop = true

[[constraint]]
id = "breaker"
kind = "breaker"
rating_w = {rating}
outlets = ["pdu-a/*"]
"""
CAP = """
[[cap]]
load = "{load}"
host = "127.0.0.1"
port = {port}
user = "rpi-daemon"
password_file = "bmc.key"
tls_ca_file = "bmc-ca.pem"
closed_loop = true
lowest_w = 150.0
poll_s = 1.0
timeout_s = 1.0
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = HEAD.format(pdu=free_ports(1)[0], rating=RATING_W, quick=QUICK)
    text += "".join(CAP.format(load=load, port=port) for load, port in zip(LOADS, free_ports(4), strict=True))
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    t_s = np.arange(0.0, PERIOD_S, 0.1)
    power_w = np.where((t_s >= BEGIN_S) & (t_s < BEGIN_S + HIGH_S), HIGH_W, LOW_W)
    rows = [f"{t:.1f},{','.join([f'{w:.1f}'] * len(LOADS))}" for t, w in zip(t_s, power_w, strict=True)]
    (tmp_path / "work.csv").write_text("\n".join([f"t_s,{','.join(LOADS)}", *rows]), encoding="utf-8")
    return path


@pytest.fixture
def rack(config: Path) -> Iterator[RackProcess]:
    with running(lambda: RackProcess(config, "--trace", str(config.parent / "work.csv"))) as process:
        yield process


@pytest.fixture
def daemon(rack: RackProcess, config: Path) -> Iterator[Daemon]:
    with running(lambda: Daemon(config, "--record", str(config.parent / "recorded"))) as process:
        process.normal()
        yield process


def _caps(status: Status) -> dict[str, dict[str, object]]:
    return {cap["load"]: cap for cap in status["caps"]}


def _drawn_w(status: Status) -> float:
    return sum(outlet["power_w"] or 0.0 for outlet in status["outlets"])


def _capped(status: Status) -> bool:
    return all(cap["ours"] and cap["held"] for cap in status["caps"])


def test_together_over_the_budget_and_held_under_it_within_a_second(rack: RackProcess, daemon: Daemon) -> None:
    status = daemon.until(lambda s: all(cap["reachable"] for cap in s["caps"]), "every BMC")
    assert all(cap["mechanism"] == "environment_metrics" for cap in status["caps"])
    status = daemon.until(_capped, "every server capped", 60.0)
    assert all(outlet["limit_kind"] == "alarm" and outlet["server_cap_w"] for outlet in status["outlets"])
    daemon.until(lambda s: _drawn_w(s) <= BUDGET_W * 1.03, "the draw under the budget", 10.0)
    status = daemon.until(
        lambda s: sum(cap["cap_w"] or 0.0 for cap in s["caps"]) <= BUDGET_W, "all caps within it", 10.0
    )
    assert "overload:breaker" not in status["causes"] or _drawn_w(status) <= RATING_W
    caps_w = rack.state()["caps_w"]
    assert all(caps_w[load] is not None for load in LOADS)

    daemon.until(lambda _: len(daemon.log("cap.verified")) >= len(LOADS), "what was verified is logged")
    first = daemon.log("cap.verified")[: len(LOADS)]
    assert all(line["cap_w"] is not None and line["after_s"] <= BUSY_S for line in first)
    assert {line["reason"] for line in daemon.log("cap")[: len(LOADS)]} == {"lower"}

    daemon.until(lambda s: not any(cap["ours"] for cap in s["caps"]), "every cap released", 90.0)
    assert {line["reason"] for line in daemon.log("cap")} >= {"lower", "release"}
    assert all(w is None for w in rack.state()["caps_w"].values())
    settle_s = [cap["settle_s"] for cap in daemon.status()["caps"] if cap["settle_s"] is not None]
    assert settle_s
    assert all(0.0 < seconds < 10.0 for seconds in settle_s)

    daemon.until(_capped, "every server capped again", 90.0)
    answer = daemon.ask("mode", mode="advisory")
    assert answer["mode"] == "advisory"
    assert all(w is None for w in rack.state()["caps_w"].values())  # the found caps: none
    assert daemon.stop() == 0
    replayed = cli(daemon.config, "dry-run", "--recording", str(daemon.config.parent / "recorded"), timeout_s=90.0)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr  # the same decisions, caps among them
    assert '"server-1"' in (daemon.config.parent / "state/settle-times.json").read_text()


def test_a_silent_bmc_one_that_ignores_and_the_kill_switch(rack: RackProcess, daemon: Daemon) -> None:
    daemon.until(lambda s: all(cap["reachable"] for cap in s["caps"]), "every BMC")
    rack.ask(bmc="server-1", faults={"delay_s": 30.0})
    rack.ask(bmc="server-2", faults={"ignores": True})
    daemon.until(lambda s: "cap_unreachable:server-1" in s["causes"], "the silent BMC named", 30.0)
    status = daemon.until(
        lambda s: bool({"cap_not_held:server-2", "cap_uncontrolled:server-2"} & set(s["causes"])),
        "the one that ignores named",
        90.0,
    )
    assert not _caps(status)["server-1"]["reachable"]
    assert all(_caps(status)[load]["ours"] for load in LOADS[2:])
    daemon.until(lambda s: _drawn_w(s) <= BUDGET_W * 1.03, "the others make room", 20.0)
    assert rack.state()["caps_w"]["server-2"] is None
    assert all(outlet["limit_w"] is not None for outlet in status["outlets"])

    assert cli(daemon.config, "kill", "--reason", "test").returncode == 0
    ticks = daemon.until(lambda s: s["kill_switch"], "the kill switch")["summary"]["ticks"]
    daemon.until(lambda s: s["summary"]["ticks"] > ticks + 15, "what was on the wire")
    held = rack.state()["caps_w"]
    daemon.pause(3.0)
    assert rack.state()["caps_w"] == held
    assert daemon.stop() == 0
    assert rack.state()["caps_w"] == held


def test_at_stop_static_safe_stands_on_every_server(rack: RackProcess, daemon: Daemon) -> None:
    daemon.until(lambda s: all(cap["reachable"] for cap in s["caps"]), "every BMC")
    assert daemon.stop() == 0
    caps_w = rack.state()["caps_w"]
    assert all(caps_w[load] == 300.0 for load in LOADS), caps_w
    with running(lambda: Daemon(daemon.config, name="again")) as again:
        again.until(lambda s: s["state"] == "NORMAL" and all(cap["ours"] for cap in s["caps"]), "what was left behind")
        restored = cli(daemon.config, "limit", "restore")
        assert restored.returncode == 0, restored.stderr
        assert all(w is None for w in rack.state()["caps_w"].values())
        assert again.ask("mode", mode="closed_loop")["mode"] == "closed_loop"
        again.stop(signal.SIGKILL)
    left = cli(daemon.config, "failsafe", "--for", "20", "--json")
    assert left.returncode == 0, left.stdout
    assert [cap["ok"] for cap in json.loads(left.stdout.splitlines()[-1])["caps"]] == [True] * len(LOADS)
    caps_w = rack.state()["caps_w"]
    assert all(caps_w[load] == 300.0 for load in LOADS), caps_w
    restored = cli(daemon.config, "limit", "restore", "--offline", "--for", "20")
    assert restored.returncode == 0, restored.stdout
    assert all(w is None for w in rack.state()["caps_w"].values())


def test_a_dry_run_shows_the_caps_that_it_would_set(config: Path) -> None:
    """In virtual time, on the recording: the caps act, so that what follows them is shown too."""
    loaded = read_config(config)
    make_keys(loaded)
    bmc_certificate(loaded, loaded.cap[0])
    reports = []
    for _ in range(2):
        done = cli(config, "dry-run", "--replay", str(config.parent / "work.csv"), "--json", timeout_s=60.0)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout.splitlines()[-1]))
    report = reports[0]
    assert report["caps_proposed"] >= len(LOADS)
    assert set(report["lowest_caps_w"]) == set(LOADS)
    assert all(250.0 < cap_w <= BUDGET_W / 4 + 30.0 for cap_w in report["lowest_caps_w"].values())
    assert report["decision_digest"] == reports[1]["decision_digest"]
