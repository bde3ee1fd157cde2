"""19: the real daemon beside stress-ng: it keeps ticking or holds, counts what is lost, is not restarted, and comes back."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fault_figures import Figures
from scenario_rack import Daemon, Place, RackProcess, running, unaccounted

pytestmark = pytest.mark.peers
STRESS_S = 8


@pytest.mark.fault(19)
def test_fault_19_beside_stress_ng(tmp_path: Path, figure: Figures) -> None:
    stress_ng = shutil.which("stress-ng")
    assert stress_ng, "apt-get install stress-ng"
    place = Place(tmp_path)
    with running(lambda: RackProcess(place.write())) as rack, running(lambda: Daemon(place.write())) as daemon:
        daemon.normal()
        lost = unaccounted(daemon, rack)
        before = daemon.status()["summary"]
        began = time.monotonic()
        done = subprocess.run(
            [stress_ng, "--cpu", "0", "--cpu-method", "matrixprod", "--switch", "1", "--timeout", f"{STRESS_S}s"],
            capture_output=True, text=True, timeout=10 * STRESS_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        after = daemon.status()["summary"]
        ticks, seconds = after["ticks"] - before["ticks"], time.monotonic() - began
        received = after["samples_total"] - before["samples_total"]
        late = 100.0 * (after["samples_late"] - before["samples_late"]) / received
        daemon.normal()
        assert daemon.status()["watchdog"]["hangs"] == {}
        assert daemon.log("watchdog.withheld") == []
        figure(19, "stress-ng: lost scans that are not counted", abs(unaccounted(daemon, rack) - lost), 0, "scans")
        figure(
            19, "stress-ng: ticks of those due", 100.0 * ticks / (10.0 * seconds), 90.0, "%", at_least=True, busy=30.0
        )
        figure(19, "stress-ng: late > 1 ms, simulated boards on the same processors", late, 0.1, "%", busy=100.0)
        assert daemon.stop() == 0
