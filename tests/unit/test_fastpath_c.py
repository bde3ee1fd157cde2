"""The plain C tests of ring, sampler, window and frames, with whatever compiler there is."""

import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "c" / "run.sh"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_plain() -> None:
    done = subprocess.run([RUN, "plain"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost as injected" in done.stdout
