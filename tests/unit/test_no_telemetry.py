"""Nothing that the daemon loads tells anybody outside of the rack about its use."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import load_model
load_model(SHIPPED)
"""


def test_the_inference_library_keeps_no_events_to_send(tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    home.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-P", "-c", CODE], env=home, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []
