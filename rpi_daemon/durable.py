"""Small files that a crash leaves whole: the old one or the new."""

import os
from pathlib import Path


def create(path: Path, flags: int) -> int:
    """A descriptor of a new file, in no case of what a link leads to.

    What root makes in the daemon's folder belongs to whom the folder belongs: else the daemon could not write on.
    """
    descriptor = os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash leaves the old one or the new: tmp, fsync, rename, fsync folder."""
    temporary = path.with_name(path.name + ".tmp")
    with open(create(temporary, os.O_TRUNC), "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
