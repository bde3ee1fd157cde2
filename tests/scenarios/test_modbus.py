"""A DC rack on Modbus: a power shelf's constant-current set-point is the limit, a meter on a serial bus the only sensor."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_rack import QUICK, Daemon, RackProcess, cli, free_ports, limit_of, outlet_of, running

CONFIG = """\
[rack]
id = "dc"
supply = "dc"
nominal_v = 54.0

[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_format = "json"
{quick}
[[pdu]]
id = "shelf"
driver = "modbus_tcp"
profile = "meanwell_cmu2c"
host = "127.0.0.1"
port = {port}
allow_insecure = true
accept_unproven = true
poll_s = 0.5
writes_per_day = 20000

[[pdu]]
id = "meter"
driver = "modbus_rtu"
profile = "orv3_psu"
serial_port = "bus.tty"
baud = 115200
device_id = 192
poll_s = 0.5

[[pdu]]
id = "spare"
driver = "modbus_rtu"
profile = "orv3_psu"
serial_port = "bus.tty"
baud = 115200
device_id = 193
poll_s = 0.5

[[outlet]]
pdu = "shelf"
numbers = "1"
meter = "meter/1"
load = "rack"
phases = ["DC"]
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

[[outlet]]
pdu = "spare"
numbers = "1"
load = "other"
phases = ["DC"]
rating_w = 700.0
static_safe_w = 550.0

[[constraint]]
id = "bus"
kind = "rack"
rating_w = 2000.0
outlets = ["shelf/*", "spare/*"]
"""
FULL_SCALE_W = 6553.5 * 54.0  # as the simulated shelf comes from the factory
DRAW_W = 300.0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("modbus") / "rack.toml"
    path.write_text(CONFIG.format(quick=QUICK, port=free_ports(1)[0]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rack(config: Path) -> Iterator[RackProcess]:
    trace = config.parent / "trace.csv"
    trace.write_text("t_s,power_w\n" + "\n".join(f"{t / 10:.1f},{DRAW_W}" for t in range(600)) + "\n")
    with running(lambda: RackProcess(config, "--trace", str(trace))) as process:
        yield process


@pytest.fixture(scope="module")
def daemon(config: Path, rack: RackProcess) -> Iterator[Daemon]:
    with running(lambda: Daemon(config)) as process:
        process.normal()
        yield process


def test_the_configuration_is_good(config: Path) -> None:
    done = cli(config, "check-config")
    assert done.returncode == 0, done.stderr


def test_the_shelf_is_limited_above_what_the_meter_reads(rack: RackProcess, daemon: Daemon) -> None:
    daemon.ask("mode", mode="closed_loop")
    status = daemon.until(lambda s: 600.0 < (limit_of(s, "shelf/1") or 0.0) <= 700.0, "STATIC_SAFE, then more", 30.0)
    assert outlet_of(status, "shelf/1")["power_w"] == pytest.approx(DRAW_W, abs=10.0)
    assert outlet_of(status, "shelf/1")["quality"] == ["slow_meter"]
    assert limit_of(status, "shelf/1") == pytest.approx(129 * 5.4)  # 700 W / 54 V, down to 0.1 A
    assert rack.state()["limits_w"]["shelf"]["1"] == pytest.approx(129 * 5.4)
    assert status["summary"]["writes_verified"] == status["summary"]["writes"] >= 1


def test_found_limits_are_on_disk_and_are_put_back(config: Path, rack: RackProcess, daemon: Daemon) -> None:
    found = json.loads((config.parent / "state" / "found-limits.json").read_text())
    assert found["pdus"]["shelf"]["1"]["raw"] == [["0x0011", 16, 0xFFFF]]
    assert found["pdus"]["meter"] == {}
    restored = cli(config, "limit", "restore", "--reason", "test")
    assert restored.returncode == 0, restored.stderr
    assert rack.state()["limits_w"]["shelf"]["1"] == pytest.approx(FULL_SCALE_W)


def test_a_silent_meter_is_named_and_the_other_on_its_bus_goes_on(rack: RackProcess, daemon: Daemon) -> None:
    rack.ask(pdu="meter", faults={"drop": -1})
    status = daemon.until(lambda s: "pdu_unreachable:meter" in s["causes"], "the silence")
    assert "pdu_unreachable:spare" not in status["causes"]
    daemon.until(lambda s: outlet_of(s, "spare/1")["power_w"] == pytest.approx(DRAW_W, abs=10.0), "the other's reading")
    rack.ask(pdu="meter", faults={})
    daemon.normal()
    assert daemon.stop() == 0


def test_static_safe_is_left_on_a_shelf_that_another_meter_measures(config: Path, rack: RackProcess) -> None:
    """The shelf tells no power. At start nobody knows the draw, which is shown; from the first readings on, and at stop, the meter does."""
    with running(lambda: Daemon(config)) as again:
        status = again.until(lambda s: s["static_safe_verified_s"] is not None, "STATIC_SAFE on the shelf", 30.0)
        assert status["static_safe_differs"] == {}
        again.until(lambda s: 600.0 < (limit_of(s, "shelf/1") or 0.0) <= 700.0, "more than STATIC_SAFE", 30.0)
        assert again.stop() == 0
    assert rack.state()["limits_w"]["shelf"]["1"] == pytest.approx(101 * 5.4)  # 550 W / 54 V, down to 0.1 A


def test_a_register_map_is_tried_without_its_device() -> None:
    program = [sys.executable, "-P", "-m", "rpi_daemon.drivers.pdu.modbus_sim", "--map", "eastron_sdm630"]
    done = subprocess.run(
        program, input='{"faults": {"drop": 1}}\nnonsense\n', capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    ready, taken, refused = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["port"] > 0
    assert taken == {"faults": {"drop": 1}}
    assert "late_s" in refused["error"]
    wrong = subprocess.run([*program[:-1], "nothing"], capture_output=True, text=True, timeout=20)
    assert wrong.returncode == 3
    assert "register map 'nothing' is not known" in wrong.stderr
