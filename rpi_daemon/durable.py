"""Small files that a crash leaves whole: the old one or the new; and, of what must not be lost, a second copy."""

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from rpi_daemon.small_file import read_small

MOST_BYTES: Final = 64_000_000  # of a file that is read again: a thousand times what a rack of 48 outlets needs
COPY: Final = ".copy"
DAMAGED: Final = ".damaged"
# what says nothing of a file's content: it is missing, somebody's mistake with owners or folders, a shortage of the box
NOT_OF_THE_FILE: Final = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM),
        *(errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    }
)

T = TypeVar("T")

log = structlog.get_logger(__name__)


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
    return path.with_name(path.name + COPY)


def write_twice(path: Path, content: str, parse: Callable[[str], object]) -> None:
    """Durably, one after the other: a disk that damages one file leaves the other. What stands there already is not written.

    One whose place takes no file goes without, as long as `read_twice`, with this `parse`, passes over what stands there
    and the other one holds the content: that is said. Raises OSError.
    """
    unwritten = ""
    for one in (path, copy_of(path)):
        try:
            if read_small(one, MOST_BYTES) == content.encode():
                continue
        except OSError:
            pass  # written anew, or the error comes from there
        try:
            _make_way(one)
            write_durably(one, content)
        except OSError as error:
            if unwritten or not _passed_over(one, parse):
                raise
            unwritten = f"{one}: {error.strerror}"
    if unwritten:
        log.error("state.one_copy", error=unwritten)


def _make_way(copy: Path) -> None:
    """A folder in the place of a second copy is set aside. Not one in the place of the file: gone, that is taken away."""
    if copy.suffix == COPY and copy.is_dir():
        with contextlib.suppress(OSError):
            copy.rename(copy.with_name(copy.name + DAMAGED))


def _passed_over(path: Path, parse: Callable[[str], object]) -> bool:
    try:
        return bool(_look(path, parse)[1])
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """What `read_twice` found."""

    value: T | None  # none: there is no such file, or no whole one
    damaged: str = ""  # what is wrong with the file; its copy was used if there is a value


def read_twice(path: Path, parse: Callable[[str], T]) -> Kept[T]:
    """A file, or its second copy where it is damaged. One that was taken away is gone, copy or not.

    `parse` raises ValueError for a damaged text. What the disk cannot read, or what is no file, is damaged as well.
    Raises OSError where a file is there and may not be read, or where there is no such folder.
    """
    damaged = ""
    for one in (path, copy_of(path)):
        try:
            value, wrong = _look(one, parse)
        except FileNotFoundError:
            if one == path:
                break
            continue
        if not wrong:
            return Kept(value, damaged)
        damaged = damaged or wrong
    return Kept(None, damaged)


def _look(path: Path, parse: Callable[[str], T]) -> tuple[T | None, str]:
    """A file's value, or what is damaged. Raises OSError where that says nothing of the file: it is not there, not ours..."""
    try:
        return parse(read_small(path, MOST_BYTES).decode("utf-8")), ""
    except OSError as error:
        if error.errno in NOT_OF_THE_FILE:
            raise OSError(error.errno, error.strerror, str(path)) from None
        return None, f"{path}: damaged ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return None, f"{path}: damaged ({str(error).partition(chr(10))[0]})"


def keep_damaged(path: Path) -> None:
    """A copy of a damaged file and of its second copy, for whoever wants to look; a disk that takes none changes nothing.

    The file itself stays until it is written anew: one that is gone would count as taken away.
    """
    for one in (path, copy_of(path)):
        try:
            write_durably(one.with_name(one.name + DAMAGED), read_small(one, MOST_BYTES))
        except OSError:
            continue
