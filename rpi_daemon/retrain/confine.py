"""A process puts itself last: idle scheduling, bounded memory and time, no network, an end with who ordered it. Linux."""

import ctypes
import math
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Final

NICE: Final = 19
OOM_SCORE: Final = 500  # when memory is short this one goes first, never the control loop
LATE_S: Final = 1  # after the one who ordered it, who has words for it, should have ended it
SPARE_CPU_S: Final = 30
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # unshare(2)
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13  # ioprio_set(2): class idle
_SYS_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}


def confine(parent: int | None, network: int, memory_mb: float, cpu_s: float) -> list[str]:
    """Call before anything else and with one thread; returns what this machine did not permit, a sentence each.

    `network`: of who ordered it, by `network_of`. Ends the process if it is a child of `parent` no more.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if parent is not None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    refused = []
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError as error:
        refused.append(f"idle scheduling: {error.strerror}; nice {NICE} alone")
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    except OSError as error:
        refused.append(f"oom_score_adj: {error.strerror}")
    if number := _SYS_IOPRIO_SET.get(os.uname().machine):
        libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
    data = round(memory_mb) * 2**20  # code of libraries is not counted, room that was asked for and not used is
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu_s) + LATE_S, math.ceil(cpu_s) + SPARE_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if network_of() == network and libc.unshare(_CLONE_NEWNET) != 0 and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        refused.append(
            f"a network namespace of its own: {os.strerror(ctypes.get_errno())}; it opens no socket, but could"
        )
    return refused


def network_of() -> int:
    """Which network this process is on, by its namespace."""
    return os.stat("/proc/self/ns/net").st_ino


def end_with(connection: int) -> None:
    """From now on this process ends as soon as the other end of a connection is closed, by whatever. After `confine`."""

    def wait() -> None:
        try:
            while os.read(connection, 4096):
                pass
        finally:
            os._exit(1)

    threading.Thread(target=wait, name="who ordered it", daemon=True).start()
