"""Blocks of numbers as they lie on disk: quantised, differenced, shuffled, compressed, with a CRC of their own.

SQLite does not see bit rot: of 200 single-bit flips its integrity check found 6. So each block carries a CRC-32 over
everything in it, and a damaged one is refused, never read as numbers.
"""

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rpi_daemon.errors import RpiError
from rpi_daemon.records import FloatArray, IntArray

VERSION: Final = 1
MISSING: Final = -(2**31)  # a number that was not known
LARGEST: Final = 2**31 - 1
LEVEL: Final = 6
PARTS: Final = 3  # of a spread block: means, smallest, largest
_HEAD: Final = struct.Struct("<BBHId")  # version, whether spread, rows, columns, step
_CRC: Final = struct.Struct("<I")
MAX_ROWS: Final = 2**16 - 1
MAX_COLUMNS: Final = 100_000


class DamagedBlock(RpiError):
    """A block whose CRC or shape is wrong: it holds no numbers that could be trusted."""


def pack(values: ArrayLike, step: float, *, spread: bool = False) -> bytes:
    """A block of `values` [rows, columns], rounded to multiples of `step`; NaN stays NaN.

    `spread`: the rows are means, then the smallest, then the largest, and the latter two are stored by their distance from
    the first, which takes a fifth less; exact either way. Beyond 2^31 steps a number is stored as the largest. Raises ValueError for
    another shape, an infinity or a bad step.
    """
    block = np.asarray(values, dtype=np.float64)
    if block.ndim != 2 or block.shape[0] > MAX_ROWS or block.shape[1] > MAX_COLUMNS:
        raise ValueError(f"a block has 2 dimensions of at most {MAX_ROWS} and {MAX_COLUMNS}, not {block.shape}")
    if not step > 0.0 or np.isinf(block).any() or not np.isfinite(step):
        raise ValueError("a block holds finite numbers or NaN, and its step is above 0")
    known = ~np.isnan(block)
    counts = np.full(block.shape, MISSING, dtype=np.int64)
    counts[known] = np.clip(np.rint(block[known] / step), MISSING + 1, LARGEST).astype(np.int64)
    if spread:
        mean, low, high = np.split(counts, PARTS)
        change = np.concatenate([np.diff(mean, axis=1, prepend=0), mean - low, high - mean]).astype(np.int32)
    else:
        change = np.diff(counts, axis=1, prepend=0).astype(np.int32)  # modulo 2^32: sums back exactly
    zigzag = ((change << 1) ^ (change >> 31)).view(np.uint32)
    shuffled = np.ascontiguousarray(zigzag.reshape(-1, 1).view(np.uint8).reshape(-1, 4).T)
    deflater = zlib.compressobj(LEVEL, strategy=zlib.Z_FILTERED)  # small numbers, few repetitions
    body = _HEAD.pack(VERSION, spread, *block.shape, step) + deflater.compress(shuffled.tobytes()) + deflater.flush()
    return _CRC.pack(zlib.crc32(body)) + body


def unpack(data: bytes, rows: IntArray | None = None) -> FloatArray:
    """The numbers of a block, [rows, columns], NaN where none was known; of the rows asked for alone, in their order.

    Of a spread block `rows` are those of the means; their smallest and largest follow. Raises DamagedBlock.
    """
    body = memoryview(data)[_CRC.size :]
    if len(body) < _HEAD.size or _CRC.unpack_from(data)[0] != zlib.crc32(body):
        raise DamagedBlock("the block's CRC is wrong")
    version, spread, n_rows, columns, step = _HEAD.unpack_from(body)
    size = 4 * n_rows * columns
    if version != VERSION or columns > MAX_COLUMNS or not step > 0.0 or (spread and n_rows % PARTS):
        raise DamagedBlock(f"the block is of version {version} with {n_rows} x {columns} numbers of step {step}")
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(body[_HEAD.size :], size + 1)
    except zlib.error as error:
        raise DamagedBlock(f"the block does not inflate: {error}") from error
    if len(raw) != size:
        raise DamagedBlock(f"the block holds {len(raw)} octets, {size} belong to {n_rows} x {columns} numbers")
    octets = np.frombuffer(raw, np.uint8).reshape(4, n_rows, columns)
    if rows is not None:
        chosen = np.concatenate([rows + k * n_rows // PARTS for k in range(PARTS)]) if spread else rows
        octets = octets[:, chosen]
    zigzag = np.ascontiguousarray(np.moveaxis(octets, 0, -1)).view(np.uint32)[..., 0]
    change = (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
    counts: NDArray[np.int32]
    if spread:
        mean, low, high = np.split(change, PARTS)
        mean = np.cumsum(mean, axis=1, dtype=np.int32)
        counts = np.concatenate([mean, mean - low, mean + high])  # modulo 2^32, as they were stored
    else:
        counts = np.cumsum(change, axis=1, dtype=np.int32)
    return np.where(counts == MISSING, np.nan, counts * step)
