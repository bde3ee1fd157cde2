"""The host that the daemon runs on: one daemon per folder and PDU, words for systemd, precedence and age of this process."""

import contextlib
import fcntl
import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from rpi_daemon.errors import LockedError, RpiError

CONTROL_NICE = -10


def take_precedence() -> None:
    """Go ahead of other people's work, with all threads that follow, where we may say so (`LimitNICE=`).

    The first thing of a start: after a crash the box may be busy, and the rack waits. Later no tick should wait either.
    """
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, CONTROL_NICE)
    weigh_session(CONTROL_NICE)


def weigh_session(nice: int) -> None:
    """As setpriority(2), for a session: Linux weighs sessions against each other first, then the processes within each.

    See sched(7), autogroup. A service is a session of its own, as is a training, which keeps its lower weight; a session
    that others share, at a terminal, is left as it is.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # not permitted, or a kernel without it
            Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")


@contextlib.contextmanager
def coming_up() -> Iterator[None]:
    """Around the imports that a start needs, most of its processor time until limits are safe.

    With precedence, and without looking for garbage: importing leaves little, and the search is a sixth of the time.
    """
    take_precedence()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def folder_lock(folder: Path, option: str) -> Iterator[None]:
    """One daemon per folder, which is the configuration's `option`; the lock goes with the process."""
    path = folder / "daemon.lock"
    try:
        # not through a link: who may write in the folder must not choose what root, who runs commands there, writes over
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640), "r+")  # noqa: SIM115
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}; the daemon's user must be able to write there") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise LockedError(
                f"{folder}: another daemon (pid {file.read().strip() or 'not known yet'}) uses this folder; stop it, or give"
                f" this one its own daemon.{option}"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its owner has no name
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


@contextlib.contextmanager
def pdu_lock(pdu: str, address: str) -> Iterator[None]:
    """One daemon of this host per PDU: an abstract socket name, gone with the process, whoever the user is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(f"\0rpi-daemon/pdu/{address}")
        except OSError:
            raise LockedError(f"PDU {pdu!r} ({address}): another daemon of this host controls it") from None
        yield


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing happens without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def process_age_s() -> float:
    """Seconds since this process was started (proc(5): field 22 of stat, in clock ticks since boot)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
