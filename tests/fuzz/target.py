"""What a fuzz target is, and how bytes become choices."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class WrongAccept(AssertionError):
    """A decoder took what it must refuse, or read it otherwise than its reference."""


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder under attack.

    `check(data)` makes an input of the decoder from `data` (checksums, digests and lengths computed where data's choices ask for
    it, so that inputs get past the front door), decodes it, and returns whether it was taken. It raises WrongAccept; any other
    exception is a crash. `oracle` says in words what a wrong accept is. `sources`: files (or file:prefix of functions) whose
    branches are reported.
    """

    name: str
    oracle: str
    sources: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], bool]
    longest: int = 2048  # bytes of an input
    exact_memory: bool = True  # else Python's arenas hide from the sanitizer what is read beyond a small object; a Python oracle is faster then

    @property
    def compiled(self) -> bool:
        """Whether C code is under attack too: it is then run under sanitizers."""
        return any(source.startswith("_fastpath/") for source in self.sources)

    @property
    def modules(self) -> list[str]:
        """The Python modules under attack."""
        files = {source.partition(":")[0].removeprefix("rpi_daemon/") for source in self.sources}
        return sorted(f"rpi_daemon.{file[:-3].replace('/', '.')}" for file in files if file.endswith(".py"))


class Choices:
    """Bytes taken as decisions, from the front; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether any are left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        return self.byte() % n

    def one(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def take(self, n: int) -> bytes:
        """At most n bytes."""
        part = self._data[self._at : self._at + n]
        self._at += n
        return part

    def exactly(self, n: int) -> bytes:
        """n bytes, filled up with zeros."""
        return self.take(n).ljust(n, b"\0")

    def rest(self) -> bytes:
        part = self._data[self._at :]
        self._at = len(self._data)
        return part


def must(holds: bool, *what: object) -> None:
    """Raise WrongAccept unless it holds."""
    if not holds:
        raise WrongAccept(*what)


@functools.cache
def scratch() -> Path:
    """A folder for decoders of files, in memory if there is such a place; gone at exit."""
    folder = tempfile.mkdtemp(prefix="rpi-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
