"""Frame decoder against the complete Python loop over the same stream: 48 channels, 24 bit, 10 scans a frame."""

import binascii
import ctypes
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cobs import cobs
from common import median_ratio, parse_arguments, report
from numpy.typing import NDArray

from rpi_daemon._fastpath import core

CHANNELS, SCANS, FRAMES = 48, 10, 100
ROUNDS = 41
HEADER = struct.Struct("<BBBBIIIIIHH")
Counts = NDArray[np.int32]
Decode = Callable[[bytes, Counts], None]  # wire bytes -> all scans, into an array that is there already, as a ring is


def waveforms() -> Counts:
    """Realistic counts: 50 Hz currents of very different size, with noise."""
    rng = np.random.default_rng(1)
    t_s = np.arange(SCANS * FRAMES) / 1000.0
    wave = np.sin(2 * np.pi * 50.0 * t_s)[:, None] * rng.uniform(1e4, 4e6, CHANNELS)
    return (wave + rng.normal(0.0, 200.0, wave.shape)).astype(np.int32)


def stream(counts: Counts) -> bytes:
    starts = range(0, len(counts), SCANS)
    return b"".join(core.encode_data_frame(counts[i : i + SCANS], index=i, ticks=1000 * i) for i in starts)


def with_crc16(wire: bytes) -> bytes:
    """The same frames with the CRC that the standard library has in C: what a Python program would choose."""
    bodies = [cobs.decode(piece)[:-4] for piece in wire.split(b"\0")[:-1]]
    return b"".join(cobs.encode(body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))) + b"\0" for body in bodies)


def python_loop(crc_bytes: int, crc: Callable[[memoryview], int]) -> Decode:
    """Split, COBS (C extension), CRC, unpack (NumPy for the 24-bit samples: faster than struct), index check."""

    def decode(data: bytes, out: Counts) -> None:
        expected = lost = at = 0
        for piece in data.split(b"\0"):
            if not piece:
                continue
            try:
                raw = cobs.decode(piece)
            except cobs.DecodeError:
                continue
            view = memoryview(raw)
            if len(raw) < HEADER.size + crc_bytes:
                continue
            if crc(view[:-crc_bytes]) != int.from_bytes(view[-crc_bytes:], "little"):
                continue
            version, kind, _, width, _, index, _, _, _, channels, scans = HEADER.unpack_from(raw)
            if (version, kind, width) != (1, 1, 24) or len(raw) != HEADER.size + scans * channels * 3 + crc_bytes:
                continue
            lost += index - expected
            expected = index + scans
            wide = np.empty((scans * channels, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(raw, np.uint8, scans * channels * 3, HEADER.size).reshape(-1, 3)
            np.right_shift(wide.view("<i4").reshape(scans, channels), 8, out=out[at : at + scans])
            at += scans
        assert (at, lost) == (len(out), 0)

    return decode


def python_face(data: bytes, out: Counts) -> None:
    """Our decoder through its Python objects."""
    timeline = core.Timeline()
    for frame in core.FrameDecoder().feed(data):
        _, index, _, lost = timeline.extend(frame)
        assert lost == 0
        out[index : index + frame.n_scans] = frame.counts()


def sampler_path(folder: Path) -> Decode:
    """Our decoder as the sampler thread calls it, with the flags of setup.py."""
    library = folder / "frames_decode.so"
    source = Path(__file__).with_suffix("").with_name("frames_decode.c")
    subprocess.run(["cc", "-O3", "-std=gnu11", "-shared", "-fPIC", "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).decode
    function.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p]
    function.restype = ctypes.c_int64

    def decode(data: bytes, out: Counts) -> None:
        assert function(data, len(data), out.ctypes.data) == len(out)

    return decode


def main() -> None:
    as_json = parse_arguments(__doc__).json
    counts = waveforms()
    wire = stream(counts)
    wire16 = with_crc16(wire)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, tuple[Decode, bytes]] = {
            "ours, as the sampler calls it (CRC-32C)": (sampler_path(Path(folder)), wire),
            "ours, Python objects (CRC-32C)": (python_face, wire),
            "Python loop, crc_hqx (CRC-16)": (python_loop(2, lambda view: binascii.crc_hqx(view, 0xFFFF)), wire16),
            "Python loop, our crc32c (CRC-32C)": (python_loop(4, core.crc32c), wire),
        }
        times_us: dict[str, list[float]] = {name: [] for name in ways}
        decoded = np.empty_like(counts)
        for _ in range(ROUNDS):
            for name, (decode, data) in ways.items():
                decoded.fill(0)
                start = time.perf_counter()
                decode(data, decoded)
                times_us[name].append((time.perf_counter() - start) / FRAMES * 1e6)
                assert np.array_equal(decoded, counts), name
    rows = []
    for name, times in times_us.items():
        median_us = statistics.median(times)
        rows.append({"decoder": name, "us/frame": median_us, "MB/s": len(wire) / FRAMES / median_us})
    sampler, face, python16, python32 = times_us.values()
    ratios = {
        "vs_python": median_ratio(python16, sampler),
        "vs_python_same_crc": median_ratio(python32, sampler),
        "python_face_vs_python": median_ratio(python16, face),
        "python_face_vs_python_same_crc": median_ratio(python32, face),
    }
    report("frames", rows, ratios, as_json)


if __name__ == "__main__":
    main()
