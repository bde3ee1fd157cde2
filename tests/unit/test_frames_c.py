"""The frame decoder as plain C, under sanitizers, and on ARM: damaged frames in pieces of their exact size."""

import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "c" / "frames_test.c"
FLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize(
    ("compiler", "runner", "frames"),
    [
        pytest.param(["cc"], [], 200_000, id="plain"),
        pytest.param(["gcc", *SANITIZERS], [], 100_000, id="gcc-sanitizers", marks=pytest.mark.peers),
        pytest.param(["clang", *SANITIZERS], [], 100_000, id="clang-sanitizers", marks=pytest.mark.peers),
        pytest.param(
            ["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64"], 20_000, id="aarch64", marks=pytest.mark.peers
        ),
    ],
)
def test_no_damaged_frame_passes(tmp_path: Path, compiler: list[str], runner: list[str], frames: int) -> None:
    program = tmp_path / "frames_test"
    subprocess.run([*compiler, *FLAGS, "-o", program, SOURCE], check=True, timeout=60)
    done = subprocess.run([*runner, program, str(frames)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sent, right = map(int, re.search(r"frames: (\d+) sent, (\d+) right", done.stdout).groups())
    assert sent == frames
    assert right > frames / 4  # of 8 one is left alone, and 2 are not hit
