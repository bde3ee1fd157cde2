"""The hardware-in-the-loop benches, in their short form, against the simulators."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "MPLBACKEND": "Agg",
}  # as from a user's shell: a script finds what lies beside it

RACK = """
[[pdu]]
id = "a"
profile = "raritan_px"
host = "127.0.0.1"
port = {port}
version = "2c"
community_file = "community"
allow_insecure = true

[[outlet]]
pdu = "a"
numbers = "1-2"
load = "x-{{n}}"
rating_w = 500.0
static_safe_w = 100.0

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 1000.0
outlets = ["*"]
"""


def hil(bench: str, output: Path, *options: str, busy: bool = False) -> dict[str, Any]:
    """One bench to its end; its result, by the names of its rows. `busy`: others may use the machine too, so that its
    bounds of time may be missed."""
    command = [sys.executable, str(ROOT / "bench/hil" / f"{bench}.py"), "--quick", "--json", "--output", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0 or (busy and done.returncode == 1), done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    page = next(output.glob(f"{bench}-*.html")).read_text(encoding="utf-8")
    assert page.count("<svg") == page.count("<h2>")
    assert not any(word in page for word in ("src=", "@import", "<script", "No picture"))
    return {row["what"]: row["value"] for row in result["rows"]} | {"passed": result["passed"]}


def test_sensor_bench(tmp_path: Path) -> None:
    seen = hil("sensor_hil", tmp_path, busy=True)
    assert seen["scans received"] + seen["scans lost"] >= 5000
    if seen["passed"]:
        assert seen["scans lost"] == 0
        assert seen["step response to 90 %"] <= 250.0
        assert seen["worst noise / range, voltage"] < 0.1


@pytest.mark.parametrize("profile", ["raritan_px", "apc_rpdu2"])
def test_pdu_bench(tmp_path: Path, profile: str) -> None:
    seen = hil("pdu_hil", tmp_path, "--profile", profile)
    assert seen["limits written"] == 4 * 24
    assert seen["verified"] == 100.0
    assert seen["step of a limit, seen"] == 1.0
    assert seen["found limits put back and verified"] == 24
    assert seen["writes past the kill switch"] == 0


def test_trap_bench(tmp_path: Path) -> None:
    seen = hil("trap_hil", tmp_path)
    assert seen["acknowledged"] == 100.0
    assert seen["taken after our restart"] == 1
    assert seen["taken with a wrong key"] == 0
    assert seen["waiting on disk while it is down"] == 60
    assert (seen["lost"], seen["out of order"], seen["dropped"]) == (0, 0, 0)


def test_loop_bench(tmp_path: Path) -> None:
    seen = hil("loop_hil", tmp_path, busy=True)
    assert seen["rises"] >= 2
    assert seen["servers capped, times"] >= 2
    assert seen["caps that were never verified"] == 0
    assert seen["decision to verified cap, worst"] <= (1.0 if seen["passed"] else 10.0)
    assert seen["decision to draw within the ceiling, worst"] <= (5.0 if seen["passed"] else 15.0)
    # on a busy machine a short run may end with every cap still on
    assert seen.get("decision to cap taken off, median", math.inf) > 5.0


def test_an_old_result_stands_beside_the_new_one(tmp_path: Path) -> None:
    hil("pdu_hil", tmp_path)
    old = next(tmp_path.glob("pdu_hil-*.json"))
    hil("pdu_hil", tmp_path / "new", "--compare", str(old))
    page = next((tmp_path / "new").glob("*.html")).read_text(encoding="utf-8")
    assert "<th>before</th>" in page
    assert "(before)" in page


def test_a_result_of_another_bench_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "old.json"
    other.write_text('{"schema": 1, "bench": "sensor_hil"}')
    command = [sys.executable, str(ROOT / "bench/hil/pdu_hil.py"), "--quick", "--output", str(tmp_path / "new")]
    done = subprocess.run(
        [*command, "--compare", str(other)], capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode == 1
    assert "not a result of pdu_hil" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_declined_write_is_no_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "rpi_daemon.drivers.pdu.sim", "--outlets", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as simulator:
        assert simulator.stdout is not None
        port = json.loads(simulator.stdout.readline())["port"]
        (tmp_path / "community").touch(mode=0o600)
        (tmp_path / "community").write_text("public")
        config = tmp_path / "rack.toml"
        config.write_text(RACK.format(port=port))
        bench = [sys.executable, str(ROOT / "bench/hil/pdu_hil.py"), "--quick", "--config", str(config)]
        done = subprocess.run(
            [*bench, "--output", str(tmp_path)],
            input="no\n",
            capture_output=True,
            text=True,
            timeout=120,
            env=ENVIRONMENT,
        )
        simulator.terminate()
    assert done.returncode == 1
    assert "passed, but nothing was written: not confirmed" in done.stdout
