"""Raw scans of a board by time, with their scale: out of its ring file, while the daemon writes it or after it is gone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from rpi_daemon._fastpath.core import COUNT_FAULT, COUNT_HIGH, COUNT_LOW, Ring
from rpi_daemon._fastpath.memory import readable_file
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import RpiError
from rpi_daemon.records import FloatArray, IntArray

if TYPE_CHECKING:
    from rpi_daemon.calibration import Correction

SUFFIX: Final = ".ring.json"
REVERSED: Final = ":reversed"  # the transformer is mounted the wrong way round
LOOK_BACK: Final = 30_000  # scans that are searched first: what was just captured is among them
CODES: Final = (COUNT_HIGH, COUNT_LOW, COUNT_FAULT)


@dataclass(frozen=True, slots=True)
class Channel:
    """One input: value = gain x (count - offset), sampled `delay_ns` late."""

    name: str
    unit: str  # A, V, or nothing: not used
    gain: float
    offset_counts: float
    delay_ns: float


@dataclass(frozen=True, slots=True)
class Waveform:
    """Scans of one board, evenly spaced; NaN where a scan was lost, and where an input was off its scale or failed."""

    board: str
    serial_number: str
    rate_hz: int
    channels: tuple[Channel, ...]
    t_mono_ns: IntArray  # [k] of what was sampled; evenly between its neighbours where a scan was lost
    values: FloatArray  # [k, channels]

    @property
    def lost(self) -> int:
        """Scans that are not there."""
        return int(np.isnan(self.values).all(axis=1).sum())


def write_scale(ring_path: Path, board: str, serial_number: str, names: Sequence[str], scale: "Correction") -> None:
    """Beside the ring: what turns its counts into amps and volts. Raises OSError."""
    units = {"current": "A", "voltage": "V"}
    channels = [
        asdict(
            Channel(
                name.removesuffix(REVERSED),
                units.get(name.partition(":")[0], ""),
                -gain if name.endswith(REVERSED) else gain,
                offset,
                delay,
            )
        )
        for name, gain, offset, delay in zip(names, scale.gain, scale.offset_counts, scale.delay_ns, strict=True)
    ]
    document = {"schema": 1, "board": board, "serial_number": serial_number, "channels": channels}
    write_durably(ring_path.with_name(board + SUFFIX), json.dumps(document))


def read_waveform(ring_path: Path, board: str, length_ns: int, end_ns: int | None) -> Waveform:
    """What the ring holds of the time until `end_ns` of CLOCK_MONOTONIC, or until its newest scan. Raises RpiError for nothing."""
    scale_path = ring_path.with_name(board + SUFFIX)
    try:
        said = json.loads(scale_path.read_text(encoding="utf-8"))
        channels = tuple(Channel(**channel) for channel in said["channels"])
        memory = readable_file(ring_path)
    except OSError as error:
        raise RpiError(f"{error.filename}: {error.strerror}; it is there from the daemon's first start on") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RpiError(f"{scale_path}: {error}; start the daemon again") from None
    try:
        ring = Ring(memory)
    except ValueError as error:
        raise RpiError(f"{ring_path}: {error}; start the daemon again") from None
    if ring.n_channels != len(channels):
        raise RpiError(f"{ring_path}: {ring.n_channels} channels, {scale_path.name} has {len(channels)}")
    scans, present = _span(ring, length_ns, end_ns)
    if not present.any():
        raise RpiError(f"{ring_path}: no scan of that time; the ring holds {ring.capacity / ring.rate_hz:g} s")
    place = np.arange(len(scans))
    t_ns = np.interp(place, place[present], scans["t_mono_ns"][present].astype(np.float64)).astype(np.int64)
    t_ns[present] = scans["t_mono_ns"][present]
    counts = scans["counts"].astype(np.float64)
    counts[~present] = np.nan
    counts[np.isin(scans["counts"], CODES)] = np.nan
    gain = np.array([channel.gain for channel in channels])
    offset = np.array([channel.offset_counts for channel in channels])
    return Waveform(board, said["serial_number"], ring.rate_hz, channels, t_ns, gain * (counts - offset))


def _span(ring: Ring, length_ns: int, end_ns: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the scans of a span and which of them are present."""
    index, t_ns = _newest(ring, min(ring.capacity, LOOK_BACK))
    if end_ns is None:
        end_ns = int(t_ns.max(initial=0)) + 1
    if not len(t_ns) or t_ns.min() >= end_ns - length_ns:
        index, t_ns = _newest(ring, ring.capacity)
    inside = np.sort(index[(t_ns >= end_ns - length_ns) & (t_ns < end_ns)])
    if not len(inside):
        return np.zeros(0, ring.scans.dtype), np.zeros(0, np.bool_)
    most = 2 * round(length_ns / NS_PER_S * ring.rate_hz) + 1  # where a board counted on while it was away
    first = max(int(inside[0]), int(inside[-1]) + 1 - most)
    return ring.read(first, int(inside[-1]) + 1 - first)


def _newest(ring: Ring, places: int) -> tuple[IntArray, IntArray]:
    """Index and time of what the newest places of the ring hold; the others are not touched: they may be 100 MB."""
    head = ring.head
    slots = np.arange(max(head - places, 0), head) % ring.capacity
    index, t_ns = ring.scans["index"][slots].astype(np.int64), ring.scans["t_mono_ns"][slots].astype(np.int64)
    valid = (t_ns > 0) & (index < head) & (index >= head - ring.capacity)
    return index[valid], t_ns[valid]
