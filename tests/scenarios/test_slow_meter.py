"""8: a rack without a sensor board: its PDUs' own metering is the only sensor."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_rack import QUICK, Daemon, RackProcess, Status, cli, free_ports, limit_of, outlet_of, running

CONFIG = """\
[rack]
id = "unboarded"
nominal_v = 230.0

[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_format = "json"
{quick}
[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "127.0.0.1"
port = {pdu}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
poll_s = 0.5
writes_per_day = 20000

[[pdu]]
id = "meter"
profile = "raritan_px"
host = "127.0.0.1"
port = {meter}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
poll_s = 0.5

[[outlet]]
pdu = "pdu"
numbers = "1-2"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

# its own PDU does not meter it; another device does
[[outlet]]
pdu = "pdu"
numbers = "3"
meter = "meter/7"
load = "b"
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

[[constraint]]
id = "breaker"
kind = "breaker"
rating_w = 3000.0
outlets = ["pdu/*"]
"""
OUTLETS = ("pdu/1", "pdu/2", "pdu/3")
LOW_W, HIGH_W = 150.0, 450.0
HALF_PERIOD_S = 40.0  # the outlets are 7 s apart: the third jumps 26 s after the start
PATIENCE_S = 120.0  # who was not looking in one period sees it in the next


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unboarded")
    pdu, meter = free_ports(2)
    path = folder / "rack.toml"
    path.write_text(CONFIG.format(quick=QUICK, pdu=pdu, meter=meter), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rack(config: Path) -> Iterator[RackProcess]:
    trace = config.parent / "trace.csv"
    rows = [f"{t / 10:.1f},{LOW_W if t < 10 * HALF_PERIOD_S else HIGH_W}" for t in range(int(20 * HALF_PERIOD_S))]
    trace.write_text("t_s,power_w\n" + "\n".join(rows) + "\n", encoding="utf-8")
    with running(lambda: RackProcess(config, "--trace", str(trace))) as process:
        yield process


@pytest.fixture(scope="module")
def daemon(config: Path, rack: RackProcess) -> Iterator[Daemon]:
    before = len(list(config.parent.glob("recording-*")))
    with running(lambda: Daemon(config, "--record", str(config.parent / f"recording-{before}"))) as process:
        process.normal()
        yield process


def test_a_live_dry_run_needs_no_board(config: Path, rack: RackProcess) -> None:
    dry = cli(config, "dry-run", "--seconds", "2", "--json")
    assert dry.returncode == 0, dry.stderr
    report = json.loads(dry.stdout)
    assert report["outlets"] == len(OUTLETS)
    assert report["samples_total"] == 0
    assert len(OUTLETS) <= report["windows"] <= 6 * len(OUTLETS)  # a poll each 0.5 s


def _stands(status: Status, outlet: str, least_w: float, most_w: float, above_w: float, below_w: float) -> bool:
    """Whether it draws and is limited within these bounds."""
    power_w, limit_w = outlet_of(status, outlet)["power_w"], limit_of(status, outlet)
    return power_w is not None and limit_w is not None and least_w < power_w < most_w and above_w < limit_w <= below_w


def test_limits_follow_what_the_pdu_itself_meters(rack: RackProcess, daemon: Daemon) -> None:
    status = daemon.normal()
    assert status["boards"] == []
    for name in OUTLETS:
        outlet = outlet_of(status, name)
        assert outlet["quality"] == ["slow_meter"]
        assert outlet["power_w"] == pytest.approx(LOW_W, abs=2) or outlet["power_w"] == pytest.approx(HIGH_W, abs=2)
    daemon.until(
        lambda s: all(_stands(s, name, 0.0, 200.0, LOW_W, 400.0) for name in OUTLETS),
        "150 W, and limits that are near",
        PATIENCE_S,
    )
    high = daemon.until(
        lambda s: _stands(s, "pdu/3", 400.0, 500.0, HIGH_W, 700.0) and _stands(s, "pdu/1", 0.0, 200.0, LOW_W, 400.0),
        "450 W, and a limit above that; another outlet's is as it was",
        PATIENCE_S,
    )
    assert high["state"] == "NORMAL"
    assert high["summary"]["writes_verified"] == high["summary"]["writes"] > 4
    assert high["summary"]["samples_total"] == 0


def test_a_meter_that_falls_silent_is_stale_after_three_polls(rack: RackProcess, daemon: Daemon) -> None:
    daemon.normal()
    rack.ask(pdu="meter", faults={"drop": -1})
    gone = daemon.until(lambda s: "pdu_unreachable:meter" in s["causes"], "the silence")
    assert outlet_of(gone, "pdu/3")["quality"] in (["slow_meter"], ["stale"])
    stale = daemon.until(lambda s: outlet_of(s, "pdu/3")["quality"] == ["stale"], "three polls")
    assert outlet_of(stale, "pdu/3")["power_w"] is None
    assert outlet_of(stale, "pdu/1")["quality"] == ["slow_meter"]
    assert "sensor_stale:pdu/3" in stale["causes"]
    assert stale["state"] == "HOLD"
    rack.ask(pdu="meter", faults={"drop": 0})
    back = daemon.normal()
    assert outlet_of(back, "pdu/3")["quality"] == ["slow_meter"]


def test_the_run_replays_to_the_same_decisions(config: Path, daemon: Daemon) -> None:
    daemon.normal()
    assert daemon.stop() == 0
    recording = max(config.parent.glob("recording-*"))
    replayed = cli(config, "dry-run", "--recording", str(recording))
    assert replayed.returncode == 0, replayed.stderr
    assert "the same decisions" in replayed.stdout
