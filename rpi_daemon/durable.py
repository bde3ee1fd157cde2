"""Small files that a crash leaves whole: the old one or the new."""

import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Replace a small file so that a crash leaves the old one or the new: tmp, fsync, rename, fsync folder."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
