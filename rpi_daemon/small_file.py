"""Files that a configuration names: whatever stands there, reading it ends, with octets or an OSError that says why not."""

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 4_000_000


def read_small(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """A regular file's octets. Raises OSError, also for a device, a pipe, a file that is too long, and what is no name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "a file name holds no zero byte") from None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "no regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(most_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"longer than {most_bytes} bytes")
    return data


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False for what cannot be looked at, or is no name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
