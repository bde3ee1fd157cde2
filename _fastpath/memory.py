"""Memory for rings: a memfd for one process, a tmpfs file that others may read and that outlives a crash."""

import mmap
import os
from pathlib import Path


def anonymous(n_bytes: int, name: str = "rpi-ring") -> mmap.mmap:
    """Zeroed memory of this process; it shows as `name` in /proc/PID/maps."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, n_bytes)
        return mmap.mmap(fd, n_bytes)
    finally:
        os.close(fd)


def shared_file(path: Path, n_bytes: int) -> mmap.mmap:
    """The file's memory, read-write, brought to `n_bytes` with what it holds kept. Put it in tmpfs: a disk would stall.

    The pages are reserved here (OSError, ENOSPC): a sparse file on a full tmpfs kills its writer with SIGBUS later.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        if os.fstat(fd).st_size > n_bytes:
            os.ftruncate(fd, n_bytes)
        os.posix_fallocate(fd, 0, n_bytes)
        return mmap.mmap(fd, n_bytes)
    finally:
        os.close(fd)


def readable_file(path: Path) -> mmap.mmap:
    """The file's memory, read-only, for a reader in any process. Raises OSError; ValueError if the file is empty."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
