"""Arrays out of .npz files: nothing pickled, no more than memory may hold, and one kind of error for whatever is wrong."""

import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_BYTES: Final = 2**30  # of an archive and of what it unpacks to

# What zipfile, zlib and the array reader raise on damaged bytes: found by flipping bits and by fuzzing.
_UNREADABLE = (
    ValueError, OSError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError, TypeError, OverflowError, RecursionError,
    struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


def read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that the archive holds. Raises ValueError with the reason when it cannot be read."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no archive")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what numpy says of headers by Python 2 is no news to a user
            # an archive says how much it unpacks to, and is not read beyond that: a small file may claim terabytes
            size = sum(member.file_size for member in archive.zip.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"{size} bytes unpacked; {MAX_BYTES} at most")
            return {name: archive[name] for name in names if name in archive.files}
    except _UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
