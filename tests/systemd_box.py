"""A box of its own with systemd as PID 1: Debian in a container, on a network that a simulated rack shares and outlives."""

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

SUITE: Final = "bookworm"
# what the package depends on, and apt's own; the rest of a system is not needed to see systemd at work
INCLUDE: Final = "systemd,systemd-sysv,dbus,python3,libstdc++6,zlib1g"
PATIENCE_S: Final = 60.0  # a busy machine; what is to be quick is measured
LOOK_S: Final = 0.05
PROGRAMS: Final = ("debootstrap", "systemd-nspawn", "nsenter", "unshare", "setsid", "dpkg-deb", "dpkg-shlibdeps")
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "SYSTEMD_COLORS": "0",
}
# the loopback interface comes up (SIOCSIFFLAGS, IFF_UP: netdevice(7)), and stays for as long as this lives
HOLD_NETWORK: Final = (
    "import fcntl, signal, socket, struct\n"
    "fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sh', b'lo', 1))\n"
    "signal.pause()"
)
# cgroup v2, and no filter of nspawn's own on system calls: what filters devices and addresses is BPF on cgroup v2
FILTERS: Final = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_SECCOMP": "0"}
T = TypeVar("T")


def why_not() -> str | None:
    """Why there can be no box here; None where there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.getuid() != 0:
        return "needs root, to boot a container"
    # in a container itself, without its keeper's leave; or the temporary folder's file system takes no devices
    mount = "unshare --mount --pid --uts --ipc --net --fork mount -t tmpfs none /mnt"
    if subprocess.run(mount.split(), capture_output=True, check=False).returncode != 0:
        return "not allowed to mount here"
    with tempfile.TemporaryDirectory() as folder:
        device = Path(folder) / "null"
        try:
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # mem(4)
            device.read_bytes()
        except OSError as error:
            return f"not allowed to make a device in {tempfile.gettempdir()}: {error.strerror}"
    return None


def until(look: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """What `look` returns, as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(LOOK_S)
    return seen


def debian(folder: Path) -> Path:
    """A fresh root; RPI_BOX_ROOT names one that is there already, and is copied."""
    root = folder / "root"
    if ready := os.environ.get("RPI_BOX_ROOT"):
        subprocess.run(["cp", "-a", ready, str(root)], check=True)
    else:
        _do("debootstrap", "--foreign", "--variant=minbase", f"--include={INCLUDE}", SUITE, str(root))
        # thousands of files that need not outlive a power cut: each would be waited for on a slow disk
        (root / "etc" / "dpkg" / "dpkg.cfg.d" / "unsafe-io").write_text("force-unsafe-io\n")
        _do("chroot", str(root), "/debootstrap/debootstrap", "--second-stage")
    return root


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


class Box:
    """One container. `boot`, `cut_power`, `run` in it; `close` leaves nothing. Its network outlives a boot."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._network = subprocess.Popen(["unshare", "--net", sys.executable, "-c", HOLD_NETWORK])
        self._nspawn = 0  # process ids
        self._init = 0
        mine = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self._network.pid}/ns/net") != mine, "a network of its own")

    @property
    def on_its_network(self) -> list[str]:
        """Put before a command of this host: it then runs on the box's network."""
        return ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"]

    @property
    def inside(self) -> list[str]:
        """Put before a command: it then runs as root in the box."""
        return ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "--"]

    def boot(self) -> None:
        """Until every unit has been started."""
        pid_file = self._log.with_suffix(".pid")
        pid_file.unlink(missing_ok=True)
        nspawn = [
            *(
                "systemd-nspawn",
                "--boot",
                "--quiet",
                "--register=no",
                "--keep-unit",
                "--console=pipe",
                "--machine=rack-box",
                "--capability=all",  # systemd then filters devices and addresses as it does on a machine of its own
            ),
            *(f"--network-namespace-path=/proc/{self._network.pid}/ns/net", "-D", str(self.root)),
        ]
        # apart from this process: it may end it, but need not wait for it
        shell = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec {' '.join(nspawn)}"
        with self._log.open("a") as log:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", shell],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, env={**os.environ, **FILTERS},
            )  # fmt: skip
        until(pid_file.exists, "systemd-nspawn begins")
        self._nspawn = int(pid_file.read_text())
        self._init = until(self._find_init, "a process 1 in the container")
        until(self._started, "the box is up")

    def _find_init(self) -> int:
        assert _lives(self._nspawn), self._log.read_text()[-2000:]
        found = Path(f"/proc/{self._nspawn}/task/{self._nspawn}/children").read_text().split()
        for pid in map(int, found):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    return pid
        return 0

    def _started(self) -> bool:
        done = self.run("systemctl", "is-system-running", check=False)
        return done.stdout.strip() in ("running", "degraded")

    def cut_power(self) -> None:
        """Every process ends at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init or self._nspawn, signal.SIGKILL)
        until(lambda: not _lives(self._nspawn), "the container ends")
        self._nspawn = self._init = 0

    def close(self) -> None:
        try:
            if self._nspawn:
                self.cut_power()
        finally:
            self._network.kill()
            self._network.wait()

    def run(
        self, *command: str, check: bool = True, timeout_s: float = PATIENCE_S, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command as root in the box, to its end."""
        done = subprocess.run(
            [*self.inside, *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
            env={**ENVIRONMENT, **(env or {})},
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{command}: {done.returncode}\n{done.stdout}{done.stderr}{self.words()}"
        )
        return done

    def slowness(self) -> float:
        """How many times longer than its processor time a start of the program takes now: above 1 on a machine with others."""
        before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        self.run("rpi-daemon", "check-config", check=False)
        took_s, after = time.monotonic() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return max(1.0, took_s / used_s)

    def words(self, unit: str = "rpi-daemon*") -> str:
        """The newest of what a unit, and systemd of it, wrote to the journal."""
        done = subprocess.run(
            [*("nsenter", "-t", str(self._init), "-m", "-p", "--"), "journalctl", "--no-pager", "-n25", "-u", unit],
            capture_output=True, text=True, check=False, env=ENVIRONMENT,
        )  # fmt: skip
        return done.stdout

    def show(self, unit: str) -> dict[str, str]:
        """Properties of a unit as systemd has them now."""
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str = "rpi-daemon.service") -> list[dict[str, Any]]:
        """This boot's structured log lines of a unit, each with `mono_us`, when the journal took it."""
        text = self.run("journalctl", "-b", "-o", "json", "-u", unit, "--no-pager").stdout
        events = []
        for entry in map(json.loads, text.splitlines()):
            message = entry.get("MESSAGE", "")
            if isinstance(message, str) and message.startswith("{"):
                events.append(
                    {**json.loads(message), "mono_us": int(entry["__MONOTONIC_TIMESTAMP"]), "pid": entry["_PID"]}
                )
        return events

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        """A file in the box."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    @contextlib.contextmanager
    def changed(self, unit: str, *lines: str) -> Iterator[None]:
        """A unit with these lines of [Service], for the length of a block."""
        file = self.write(f"/etc/systemd/system/{unit}.d/test.conf", "\n".join(("[Service]", *lines)) + "\n")
        self.run("systemctl", "daemon-reload")
        try:
            yield
        finally:
            file.unlink()
            self.run("systemctl", "daemon-reload")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
