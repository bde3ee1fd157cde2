"""Waveforms as COMTRADE (IEEE C37.111-1999): a .cfg of text, and a binary .dat of 16-bit numbers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import FloatArray, IntArray

LARGEST: Final = 32_767
MISSING: Final = -32_768  # 8000 hexadecimal: no value
TEXT: Final = 64  # characters of a name, at most


def comtrade(
    station: str,
    device: str,
    channels: Sequence[tuple[str, str, float]],
    values: FloatArray,
    t_utc_ns: IntArray,
    trigger_utc_ns: int,
    *,
    rate_hz: int,
    line_hz: float,
) -> tuple[str, bytes]:
    """The .cfg and the .dat of `values` [k, channels], NaN where there is none; channels are (name, unit, skew in s).

    Each channel is scaled to its own largest value, so that a number is exact to 1/32767 of that. Times are UTC.
    """
    size = np.nan_to_num(np.abs(values), nan=0.0).max(axis=0)
    factor = np.where(size > LARGEST * np.finfo(np.float64).tiny, size / LARGEST, 1.0)
    known = ~np.isnan(values)
    counts = np.where(known, np.rint(np.where(known, values, 0.0) / factor), MISSING).astype("<i2")
    rows = [
        f"{k},{_name(name)},,,{unit},{factor[k - 1]:.9e},0,{skew_s * 1e6:.3f},{-LARGEST},{LARGEST},1,1,P"
        for k, (name, unit, skew_s) in enumerate(channels, start=1)
    ]
    config = [
        f"{_name(station)},{_name(device)},1999",
        f"{len(rows)},{len(rows)}A,0D",
        *rows,
        f"{line_hz:g}",
        "1",
        f"{rate_hz},{len(values)}",
        _moment(int(t_utc_ns[0])),
        _moment(trigger_utc_ns),
        "BINARY",
        "1",
    ]
    record = np.zeros(len(values), np.dtype([("number", "<u4"), ("t_us", "<u4"), ("values", "<i2", (len(rows),))]))
    record["number"] = np.arange(1, len(values) + 1)
    record["t_us"] = (t_utc_ns - t_utc_ns[0]) // 1000
    record["values"] = counts
    return "\r\n".join(config) + "\r\n", record.tobytes()


def _name(text: str) -> str:
    return text.replace(",", " ")[:TEXT]


def _moment(t_ns: int) -> str:
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, UTC)
    return f"{moment:%d/%m/%Y,%H:%M:%S}.{t_ns % NS_PER_S // 1000:06d}"
