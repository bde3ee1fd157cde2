"""`rpi-daemon demo`, ended from outside: no daemon goes on without its rack."""

import json
import signal
import subprocess
from pathlib import Path

from scenario_rack import PATIENCE_S, RPI

from rpi_daemon.control import SOCKET_NAME


def test_a_signal_ends_the_demo_and_its_daemon_in_order(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [*RPI, "demo", "--keep", str(tmp_path), "--seconds", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert demo.stdout is not None
    try:
        assert b"closed_loop" in demo.stdout.readline()  # its first look at a daemon that ticks
        demo.terminate()
        _, errors = demo.communicate(timeout=PATIENCE_S)
    finally:
        demo.kill()
        demo.wait()
    assert (demo.returncode, errors) == (128 + signal.SIGTERM, b"")
    assert not (tmp_path / "run" / SOCKET_NAME).exists()
    shown = subprocess.run(
        [*RPI, "audit", "show", "--json", "-c", str(tmp_path / "demo.toml")], capture_output=True, check=True
    )
    assert json.loads(shown.stdout.splitlines()[-1])["records"][-1]["name"] == "end"
