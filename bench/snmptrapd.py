"""Debian's snmptrapd on a loopback port, decoding with our MIB, for the bench of informs and the peer tests."""

import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from rpi_daemon.demo import free_ports

ROOT = Path(__file__).resolve().parents[1]
STAND_IN_MIBS = ROOT / "tests" / "peers" / "mibs"  # Debian ships no IETF modules
COMMUNITY = "public"
USER, AUTH_KEY, PRIV_KEY = "rpi", "authpass12", "privpass12"
USERS = {USER: "SHA-256", "rpi-sha1": "SHA", "rpi-sha512": "SHA-512"}  # all with the same keys
PATIENCE_S = 60.0  # a busy machine
LOOK_S = 0.02


def available() -> bool:
    return shutil.which("snmptrapd") is not None


class Snmptrapd:
    """A receiver whose engine id and boots live in `folder` and survive a restart. Its log has one line a notification."""

    def __init__(self, folder: Path, *, engines: Sequence[bytes] = (), mib: Path | None = None) -> None:
        """`engines`: ids of senders of v3 traps; `mib`: folder of RPI-DAEMON-MIB.txt, the shipped one if not given."""
        self.host, self.port = "127.0.0.1", free_ports(1)
        self._folder = folder
        self._mibs = f"{STAND_IN_MIBS}:{mib or ROOT / 'config'}"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"authCommunity log {COMMUNITY}",
            *(f"createUser {user} {auth} {AUTH_KEY} AES {PRIV_KEY}" for user, auth in USERS.items()),
            *(
                f"createUser -e 0x{engine.hex()} {user} {auth} {AUTH_KEY} AES {PRIV_KEY}"
                for engine in engines
                for user, auth in USERS.items()
            ),
            *(f"authUser log {user} priv" for user in USERS),
        ]
        (folder / "snmptrapd.conf").write_text("\n".join(lines) + "\n")
        (folder / "var").mkdir(mode=0o700)
        self.log_path = folder / "snmptrapd.log"
        self.log_path.touch()

    def start(self) -> None:
        """Run it until its socket is there; raises TimeoutError with its log."""
        before = self.log_path.stat().st_size
        self._process = subprocess.Popen(
            # -A: append over restarts; -t -n: no syslog, no names of hosts
            ["snmptrapd", "-f", "-A", "-Lf", str(self.log_path), "-C", "-c", str(self._folder / "snmptrapd.conf"),
             "-m", "ALL", "-M", self._mibs, "-n", f"udp:{self.host}:{self.port}"],
            env={
                "SNMPCONFPATH": str(self._folder / "var"),
                "SNMP_PERSISTENT_DIR": str(self._folder / "var"),
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            },
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while "NET-SNMP version" not in self._log_from(before):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise TimeoutError(f"snmptrapd did not start: {self._log_from(before)[-500:]}")
            select.select([], [], [], LOOK_S)

    def _log_from(self, offset: int) -> str:
        return self.log_path.read_bytes()[offset:].decode(errors="replace")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    def notifications(self) -> list[Mapping[str, str]]:
        """What it decoded: object name without module and instance -> value as printed; the notification is "trap"."""
        found = []
        for line in self._log_from(0).splitlines():
            if "RPI-DAEMON-MIB::" not in line:
                continue
            fields = dict(part.split(" = ", 1) for part in line.split("\t") if " = " in part)
            values = {name.partition("::")[2].removesuffix(".0"): v.partition(": ")[2] for name, v in fields.items()}
            values["trap"] = values.pop("snmpTrapOID").partition("::")[2]
            found.append(values)
        return found

    def sequences(self) -> list[int]:
        return [int(item["rpidSequence"]) for item in self.notifications()]

    def until(self, count: int, timeout_s: float = PATIENCE_S) -> list[Mapping[str, str]]:
        """Wait until it has logged so many; raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.notifications()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} notifications: {self._log_from(0)[-1000:]}")
            select.select([], [], [], LOOK_S)
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
