"""Small files that a crash leaves whole: the old one or the new."""

import os
from pathlib import Path


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file so that a crash leaves the old one or the new: tmp, fsync, rename, fsync folder."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
