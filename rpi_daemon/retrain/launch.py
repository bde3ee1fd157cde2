"""Begins a training process: as a unit of systemd where one is to be had, else as a child. Both hold the other end of a socket."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

CONNECT_S: Final = 5.0
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
UNIT: Final = "rpi-daemon-retrain"
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid: unix(7)


class TrainingProcess(Protocol):
    """`kill` may be called from any thread and at any time, the rest from one."""

    connection: socket.socket  # its standard input and output
    parent: int | None  # whom it is a child of
    pid: int | None  # once it is known

    def meet(self) -> None:
        """Block until its first word: from then on `pid` is known. Raises OSError."""

    def kill(self) -> None:
        """Ask nothing; the connection ends, too."""

    def wait(self) -> str:
        """Until it has ended: how, for a sentence. Nothing of it is left open."""


def listener_of(runtime_dir: Path) -> Path:
    """Where systemd listens for the trainings of the daemon with this runtime folder (rpi-daemon-retrain.socket).

    Beside the folder: that comes and goes with the daemon.
    """
    return runtime_dir.with_name(f"{runtime_dir.name}-retrain.sock")


def begin(listener: Path | None) -> tuple[TrainingProcess, str]:
    """A process that waits for its order, and why it is no unit where there should be one."""
    if listener is None:
        return Child(), ""
    try:
        return Unit(listener), ""
    except FileNotFoundError:  # no systemd, or another folder than its units know of
        return Child(), ""
    except OSError as error:
        return (
            Child(),
            f"a unit of its own: {listener}: {error.strerror or error}; it is in the control group of its parent",
        )


class Child:
    """A child, in the control group of this process."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rpi_daemon.retrain.child"],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT}, start_new_session=True, cwd="/",
            )  # fmt: skip
        self.parent: int | None = os.getpid()
        self.pid: int | None = self._process.pid
        self._last_words = _Tail(self._process)

    def meet(self) -> None:
        pass

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # it has a session of its own, and nothing to clean up

    def wait(self) -> str:
        code = self._process.wait()
        self.connection.close()
        return f"exit code {code}{self._last_words.close()}"


class Unit:
    """A process of systemd's, begun by the connection, in a control group and a sandbox of its own. Raises OSError."""

    def __init__(self, listener: Path) -> None:
        self.parent: int | None = None
        self.pid: int | None = None
        self._pid_fd: int | None = None
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.connection.settimeout(CONNECT_S)
            self.connection.connect(str(listener))
            self.connection.settimeout(None)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError:
            self.connection.close()
            raise

    def meet(self) -> None:
        """The kernel says who speaks: nobody can give another process's number to be killed."""
        _, notes, *_ = self.connection.recvmsg(1, socket.CMSG_SPACE(_UCRED.size), socket.MSG_PEEK)
        for level, kind, data in notes:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and (pid := _UCRED.unpack(data)[0]):
                with suppress(ProcessLookupError):  # it has ended already
                    self._pid_fd = os.pidfd_open(pid)
                    self.pid = pid

    def kill(self) -> None:
        if self._pid_fd is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # one that has said nothing yet ends by this

    def wait(self) -> str:
        if self._pid_fd is None:
            self.connection.close()
            return f"no word came from its unit: `journalctl -u {UNIT}.socket -u '{UNIT}@*'` tells why"
        select.select([self._pid_fd], [], [])
        pid_fd, self._pid_fd = self._pid_fd, None
        os.close(pid_fd)
        self.connection.close()
        return f"`journalctl -u '{UNIT}@*'` may tell why"


class _Tail:
    """Reads standard error to its end, and keeps the last line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._last = b""
        self._thread = threading.Thread(target=self._run, name="training errors")
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last = line.strip() or self._last

    def close(self) -> str:
        """After the process has ended."""
        self._thread.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        return f": {self._last.decode(errors='replace')}" if self._last else ""
