"""Debian's snmpd on a loopback port with a configuration of its own, for the SNMP bench and the peer tests."""

import select
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rpi_daemon._fastpath.core import encode_v2c
from rpi_daemon.demo import free_ports

BASE_OID = "1.3.6.1.4.1.99999.1"
COMMUNITY = "private"
USER, AUTH_KEY, PRIV_KEY = "rpi", "authpass12", "privpass12"
USERS = {USER: "SHA-256", "rpi-sha1": "SHA", "rpi-sha512": "SHA-512"}  # all with the same keys
_PATIENCE_S = 60.0  # a busy machine


def available() -> bool:
    return shutil.which("snmpd") is not None


class Snmpd:
    """An agent with `n` writable integers BASE_OID.1..n; its engine id and boots live in `folder` and survive a restart."""

    def __init__(self, folder: Path, n: int, *, ipv6: bool = False, extra: Sequence[str] = ()) -> None:
        self.host = "::1" if ipv6 else "127.0.0.1"
        self.port = free_ports(1)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"agentAddress {'udp6' if ipv6 else 'udp'}:{f'[{self.host}]' if ipv6 else self.host}:{self.port}",
            f"rwcommunity{'6' if ipv6 else ''} {COMMUNITY}",
            *(f"override -rw {BASE_OID}.{i} integer {i}" for i in range(1, n + 1)),
            *(f"createUser {user} {auth} {AUTH_KEY} AES {PRIV_KEY}" for user, auth in USERS.items()),
            *(f"rwuser {user} authpriv" for user in USERS),
            *extra,
        ]
        (folder / "snmpd.conf").write_text("\n".join(lines) + "\n")
        (folder / "var").mkdir(mode=0o700)

    def start(self) -> None:
        """Run it until it answers; raises TimeoutError with its log."""
        self._process = subprocess.Popen(
            ["snmpd", "-f", "-Lf", str(self._folder / "log"), "-I", "-smux"],
            env={
                "SNMPCONFPATH": f"{self._folder}:{self._folder / 'var'}",  # without var the boots are not read back
                "SNMP_PERSISTENT_DIR": str(self._folder / "var"),
                "MIBS": "",
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            },
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _PATIENCE_S
        question = encode_v2c(COMMUNITY.encode(), 0xA0, 1, ["1.3.6.1.2.1.1.3.0"])  # GET sysUpTime.0
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.host, self.port))
            while time.monotonic() < deadline:
                try:
                    probe.send(question)
                    if select.select([probe], [], [], 0.1)[0] and probe.recv(2048):
                        return
                except ConnectionRefusedError:
                    select.select([], [], [], 0.05)
        self.stop()
        raise TimeoutError(f"snmpd did not answer: {(self._folder / 'log').read_text()[-500:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE_S)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
