"""The plain C tests of ring, sampler, window, frames and experts under sanitizers, and as aarch64 under qemu-user."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parent.parent / "c" / "run.sh"

pytestmark = pytest.mark.peers


def run(mode: str, compiler: str, *needed: str) -> None:
    for program in (compiler, *needed):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    done = subprocess.run([RUN, mode, compiler], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost as injected" in done.stdout


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_sanitized(sanitizer: str, compiler: str) -> None:
    run(sanitizer, compiler)


def test_aarch64() -> None:
    run("aarch64", "aarch64-linux-gnu-gcc", "qemu-aarch64")


def test_extension_compiles_for_aarch64(tmp_path: Path) -> None:
    """The whole extension, against the headers of this Python: both machines are LP64 and little-endian."""
    compiler = "aarch64-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    source = RUN.parents[2] / "_fastpath"
    c_file, o_file = tmp_path / "core.c", tmp_path / "core.o"
    subprocess.run([sys.executable, "-m", "cython", "-3", source / "core.pyx", "-o", c_file], check=True, timeout=240)
    options = ["-c", "-O1", "-std=gnu11", "-fPIC", f"-I{sysconfig.get_path('include')}", f"-I{source}"]
    done = subprocess.run(
        [compiler, *options, "-o", o_file, c_file], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert o_file.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
