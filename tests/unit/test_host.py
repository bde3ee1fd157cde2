"""How a start begins: ahead of others where that is permitted, and with what it needs alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# with what `run` imports before STATIC_SAFE, of a rack with SNMP PDUs
START = """
import gc, json, os, sys
from rpi_daemon.host import CONTROL_NICE, coming_up
with coming_up():
    from rpi_daemon.devices import load_checked
    from rpi_daemon.drivers.pdu import snmp
    from rpi_daemon.service import run_service
nice, collects = os.getpriority(os.PRIO_PROCESS, 0), gc.isenabled()
try:
    os.setpriority(os.PRIO_PROCESS, 0, CONTROL_NICE)
except PermissionError:
    pass
print(json.dumps({"nice": nice, "permitted": os.getpriority(os.PRIO_PROCESS, 0), "collects": collects,
                  "modules": sorted(sys.modules)}))
"""
SESSION = """
from pathlib import Path
from rpi_daemon.host import weigh_session
weigh_session(7)
print(Path("/proc/self/autogroup").read_text().split()[-1])
"""
LATER = {
    "onnxruntime", "pysnmp", "pymodbus", "serial", "aiohttp", "onnx", "matplotlib",
    "rpi_daemon.sensing", "rpi_daemon.recording", "rpi_daemon.models.mixture", "rpi_daemon.drivers.sensors.plant",
    "rpi_daemon.drivers.pdu.modbus", "rpi_daemon.drivers.pdu.register_map", "rpi_daemon.drivers.caps.redfish",
    "rpi_daemon.drivers.hosts.node_exporter", "rpi_daemon.calibration",
}  # fmt: skip


def _started() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-P", "-c", START], capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_start_has_precedence_and_imports_nothing_that_static_safe_can_do_without() -> None:
    started = _started()
    assert started["nice"] == started["permitted"]
    assert started["collects"]
    assert not LATER & set(started["modules"])


def _weight() -> str | None:
    """Of this session; None where sessions are not weighed, or a control group weighs instead (sched(7), autogroup)."""
    try:
        return Path("/proc/self/autogroup").read_text(encoding="ascii").split()[-1]
    except (OSError, IndexError):
        return None


@pytest.mark.skipif(_weight() is None, reason="a kernel without autogroup")
@pytest.mark.parametrize("own", [True, False])
def test_a_session_is_weighed_only_where_it_is_our_own(own: bool) -> None:
    before = _weight()
    done = subprocess.run(
        [sys.executable, "-P", "-c", SESSION],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=own,
        check=True,
    )
    assert done.stdout.strip() == ("7" if own else before)
    assert _weight() == before
