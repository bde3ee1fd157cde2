"""Small files that a crash leaves whole: the old one or the new; and, of what must not be lost, a second copy."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


def create(path: Path, flags: int) -> int:
    """A descriptor of a new file, in no case of what a link leads to.

    What root makes in the daemon's folder belongs to whom the folder belongs: else the daemon could not write on.
    """
    descriptor = os.open(path, flags | os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    _hand_over(descriptor, path.parent)
    return descriptor


def create_folder(path: Path) -> None:
    """A folder in the daemon's, if it is not there yet; it belongs as `create` says. Raises OSError."""
    try:
        path.mkdir(mode=0o750, parents=True)
    except FileExistsError:
        return
    _hand_over(path, path.parent)


def _hand_over(made: int | Path, folder: Path) -> None:
    """What root made in a folder, to whom the folder belongs."""
    if os.geteuid() == 0:
        owner = folder.stat()
        with contextlib.suppress(PermissionError):  # a root that may not: it has the folder to itself
            os.chown(made, owner.st_uid, owner.st_gid)


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


def copy_of(path: Path) -> Path:
    """Where the second copy of a file is."""
    return path.with_name(path.name + ".copy")


def write_twice(path: Path, content: str) -> None:
    """Durably, one after the other: a disk that damages one file leaves the other. What stands there already is not written."""
    for one in (path, copy_of(path)):
        try:
            if one.read_bytes() == content.encode():
                continue
        except OSError:
            pass  # written anew, or the error comes from there
        write_durably(one, content)


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """What `read_twice` found."""

    value: T | None  # none: there is no such file, or no whole one
    damaged: str = ""  # what is wrong with the file; its copy was used if there is a value


def read_twice(path: Path, parse: Callable[[str], T]) -> Kept[T]:
    """A file, or its second copy where it is damaged. One that was taken away is gone, copy or not.

    `parse` raises ValueError for a damaged text. Raises OSError where a file is there and cannot be read.
    """
    damaged = ""
    for one in (path, copy_of(path)):
        try:
            return Kept(parse(one.read_text(encoding="utf-8")), damaged)
        except FileNotFoundError:
            if one == path:
                break
        except (ValueError, RecursionError) as error:
            damaged = damaged or f"{one}: damaged ({str(error).partition(chr(10))[0]})"
    return Kept(None, damaged)


def keep_damaged(path: Path) -> None:
    """A copy of a damaged file and of its second copy, for whoever wants to look; a disk that takes none changes nothing.

    The file itself stays until it is written anew: one that is gone would count as taken away.
    """
    for one in (path, copy_of(path)):
        try:
            write_durably(one.with_name(one.name + ".damaged"), one.read_bytes())
        except OSError:
            continue
