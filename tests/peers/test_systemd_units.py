"""The units as systemd itself judges them, without running any: no word on standard error, little exposure."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = ("rpi-daemon.service", "rpi-daemon-failsafe.service", "rpi-daemon-retrain@.service")
OTHERS = ("rpi-daemon-retrain.socket", "rpi_daemon_retrain.slice")
EXPOSURE = 2.0  # at most

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with the units and the programs that they name."""
    units = tmp_path / "usr" / "lib" / "systemd" / "system"
    shutil.copytree(Path("/lib/systemd/system"), units, symlinks=True)
    for name in SERVICES + OTHERS:
        shutil.copy(UNITS / name, units)
    for program in (
        "usr/bin/rpi-daemon",
        "usr/bin/env",
        "usr/lib/rpi-daemon/bin/python3",
        "bin/sleep",
        "bin/systemctl",
    ):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).touch(mode=0o755)
    return tmp_path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("drop_in", ["", "iio.conf", "network.conf", "paths.conf"])
def test_systemd_has_nothing_to_say_of_the_units(root: Path, drop_in: str) -> None:
    if drop_in:
        folder = root / "etc" / "systemd" / "system" / "rpi-daemon.service.d"
        folder.mkdir(parents=True)
        shutil.copy(UNITS / "examples" / drop_in, folder)
    done = analyze("verify", f"--root={root}", *SERVICES, *OTHERS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_drop_in_for_other_paths_leaves_no_command_out() -> None:
    def commands(file: Path) -> list[str]:
        lines = [line for line in file.read_text().splitlines() if re.match(r"Exec\w+=.", line)]
        return [line.removesuffix(" --config /srv/rpi-daemon/rack.toml") for line in lines]

    assert commands(UNITS / "examples" / "paths.conf") == commands(UNITS / SERVICES[0])


@pytest.mark.parametrize("line", ["MemoryMaximum=1G", "SystemCallFilter=@no-such-set", "WatchdogSec=soon"])
def test_a_mistake_in_a_unit_would_be_seen(root: Path, line: str) -> None:
    unit = root / "usr" / "lib" / "systemd" / "system" / SERVICES[0]
    unit.write_text(unit.read_text().replace("[Service]\n", f"[Service]\n{line}\n"))
    assert analyze("verify", f"--root={root}", SERVICES[0]).stderr != ""


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_little_exposed(name: str) -> None:
    done = analyze("security", "--offline=yes", f"--threshold={EXPOSURE * 10:.0f}", UNITS / name)
    level = re.search(rf"Overall exposure level for {re.escape(name).replace('@', '@.')}: ([0-9.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= EXPOSURE
    assert done.returncode == 0


def test_the_start_limit_is_cleared_before_the_daemon_is_tried_anew() -> None:
    """Else the start is refused, a unit that has failed already fails no second time, and it stays down for good."""
    text = (UNITS / SERVICES[1]).read_text()
    commands = [line.partition("=")[2].lstrip("-+") for line in text.splitlines() if line.startswith("ExecStartPost=")]
    assert commands[-2:] == [
        f"/bin/systemctl reset-failed {SERVICES[0]}",
        f"/bin/systemctl --no-block start {SERVICES[0]}",
    ]
    assert "ExecStart=-" in text, "a PDU that is away for good must not keep the daemon from being tried"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a /run of its own")
@pytest.mark.parametrize(
    ("daemon", "failsafe", "starts_again"),
    [
        ("active", "inactive", True),
        ("failed", "activating", True),
        ("activating", "inactive", True),
        ("inactive", "inactive", False),
    ],
)
def test_an_upgrade_starts_what_ran_or_was_given_up_for_a_while(
    daemon: str, failsafe: str, starts_again: bool, tmp_path: Path
) -> None:
    """The very case in which one upgrades: it ended at each start. `systemctl` is a word of systemd's here."""
    says = {"systemctl": f"printf '{daemon}\\n\\n{failsafe}\\n'; [ {daemon} = active ]", "deb-systemd-invoke": "exit 0"}
    for name, what in says.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{what}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    prerm = UNITS.parent / "packaging" / "debian" / "prerm"
    script = f"mount -t tmpfs none /run && mkdir -p /run/systemd/system && sh {prerm} upgrade 1 2> /dev/null; ls /run"
    path = f"{tmp_path}:{os.environ['PATH']}"
    seen = subprocess.run(["unshare", "-m", "sh", "-c", script], env={"PATH": path}, capture_output=True, text=True)
    assert seen.stdout.split() == [*(["rpi-daemon.upgrade"] if starts_again else []), "systemd"]
