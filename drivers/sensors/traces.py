"""Recorded power traces: reads CSV and NPZ files, and refuses damaged ones by name."""

import csv
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rpi_daemon.arrays import read_arrays
from rpi_daemon.errors import TraceError
from rpi_daemon.records import BoolArray, FloatArray

POWER_W_RANGE = (-1.0e3, 1.0e6)  # small negatives are meter offset; above is no outlet
MOST_S = 1e12  # either side of 0: a wall clock in ms fits, and differences of ms are not lost
LEAST_STEP_S = 1e-9  # no meter is as fast
MAX_SAMPLES = 50_000_000
MAX_VALUES = 100_000_000  # of a CSV file, times included

Where = Callable[[int], str]  # names the place of sample i in its file


@dataclass(frozen=True, slots=True)
class Trace:
    """One recorded power signal. `t_s` [m] starts at 0 and rises strictly; `power_w` [m] is finite, W."""

    name: str
    t_s: FloatArray
    power_w: FloatArray
    step_s: float  # median distance of samples

    @property
    def rate_hz(self) -> float:
        return 1.0 / self.step_s

    @property
    def bandwidth_hz(self) -> float:
        """The most that the recording can contain: half its sample rate."""
        return 0.5 / self.step_s

    @property
    def duration_s(self) -> float:
        """Length including the last sample's own step, so that a looped trace keeps its rhythm."""
        return float(self.t_s[-1]) + self.step_s

    @property
    def description(self) -> str:
        return (
            f"{self.name}: {len(self.t_s)} samples, {self.duration_s:.1f} s, recorded at {self.rate_hz:g} Hz, "
            f"nothing above {self.bandwidth_hz:g} Hz"
        )

    def at(self, t_s: FloatArray) -> FloatArray:
        """Power at the given times, W, linear between samples; the trace repeats for ever."""
        t = np.append(self.t_s, self.duration_s)
        wrapped = np.append(self.power_w, self.power_w[0])
        return np.asarray(np.interp(np.mod(t_s, self.duration_s), t, wrapped), dtype=np.float64)


def read_traces(path: str | Path) -> tuple[Trace, ...]:
    """All traces of a file.

    NPZ: arrays `t_s` [m] and `power_w` [m] or [m, outlets]; nothing pickled.
    CSV: a header line, first column `t_s`, then one column per outlet, in W (`power_w`, or any names).
    Times in s, strictly rising. Raises TraceError, naming the file and the line or key.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such trace file; give a .csv or .npz file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".csv":
        return _read_csv(path)
    raise TraceError(f"{path}: unknown kind of trace {suffix or 'without a suffix'!r}; allowed: .csv, .npz")


def read_trace(path: str | Path) -> Trace:
    """The only, or first, trace of a file; errors as `read_traces`."""
    return read_traces(path)[0]


def _read_npz(path: Path) -> tuple[Trace, ...]:
    try:
        arrays = read_arrays(path, ("t_s", "power_w"))
    except ValueError as error:
        raise TraceError(f"{path}: not a readable .npz file (truncated or damaged?): {error}") from error
    for key in ("t_s", "power_w"):
        if key not in arrays:
            raise TraceError(f"{path}: key '{key}' is missing; a trace needs t_s [s] and power_w [W]")
    for key, values in arrays.items():
        if values.dtype.kind not in "fiu":
            raise TraceError(f"{path}: key '{key}' holds {values.dtype}; allowed: numbers")
    t_s, power_w = arrays["t_s"], arrays["power_w"]
    if t_s.ndim != 1:
        raise TraceError(f"{path}: key 't_s' has shape {t_s.shape}; allowed: one dimension")
    if power_w.ndim not in (1, 2) or len(power_w) != len(t_s):
        raise TraceError(
            f"{path}: key 'power_w' has shape {power_w.shape}; allowed: ({len(t_s)},) or ({len(t_s)}, outlets)"
        )
    columns = power_w.reshape(len(t_s), -1) if len(t_s) else power_w.reshape(0, 1)
    names = [path.stem] if power_w.ndim == 1 else [f"{path.stem}[{i}]" for i in range(columns.shape[1])]
    return _checked(path, names, t_s.astype(float), columns.astype(float), lambda i: f"element {i} of t_s and power_w")


def _read_csv(path: Path) -> tuple[Trace, ...]:
    cells, lines = array("d"), array("L")  # compact: a list of lists would take ten times the memory
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)  # else "2"1 is read as 21
            header = [cell.strip() for cell in next(reader, [])]
            if len(header) < 2 or header[0] != "t_s":
                raise TraceError(f"{path}:1: header is {','.join(header)!r}; allowed: t_s,power_w[,more outlets]")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise TraceError(
                        f"{path}:{reader.line_num}: {len(row)} values where the header has {len(header)} (truncated?)"
                    )
                if len(cells) >= MAX_VALUES:
                    raise TraceError(f"{path}:{reader.line_num}: more than {MAX_VALUES} values; give a shorter trace")
                cells.extend(_numbers(path, reader.line_num, row))
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise TraceError(f"{path}: not a readable CSV file: {error}") from error
    table = np.array(cells, dtype=float).reshape(len(lines), len(header))
    names = [path.stem] if len(header) == 2 else [f"{path.stem}:{name}" for name in header[1:]]
    return _checked(path, names, table[:, 0], table[:, 1:], lambda i: f"line {lines[i]}")


def _numbers(path: Path, line: int, row: list[str]) -> list[float]:
    try:
        text = "".join(row)
        if not (text.isascii() and text.isprintable()) or "_" in text:  # float() takes 1_0, other scripts, line breaks
            raise ValueError(f"not numbers: {','.join(row)[:60]!r}")
        return [float(cell) for cell in row]
    except ValueError as error:
        raise TraceError(f"{path}:{line}: {error}; allowed: plain numbers") from error


def _checked(path: Path, names: list[str], t_s: FloatArray, columns: FloatArray, where: Where) -> tuple[Trace, ...]:
    if not 2 <= len(t_s) <= MAX_SAMPLES:
        raise TraceError(f"{path}: {len(t_s)} samples; allowed: 2 to {MAX_SAMPLES}")
    if columns.shape[1] == 0:
        raise TraceError(f"{path}: no power column; allowed: one or more")
    _refuse(path, ~(np.abs(t_s) <= MOST_S), where, f"time is missing or absurd; allowed: seconds, {MOST_S:g} at most")
    t_s = t_s - t_s[0]  # first, for differences may vanish in it
    _refuse(path, np.append(False, np.diff(t_s) < 0.0), where, "time goes back; allowed: rising seconds")
    low_w, high_w = POWER_W_RANGE
    good = np.isfinite(columns) & (columns >= low_w) & (columns <= high_w)
    _refuse(path, ~np.all(good, axis=1), where, f"power is missing or absurd; allowed: {low_w:g} to {high_w:g} W")
    last = np.append(np.diff(t_s) > 0.0, True)  # loggers repeat a stamp now and then: the last sample of it counts
    t_s, columns = t_s[last], columns[last]
    if len(t_s) < 2:
        raise TraceError(f"{path}: all samples have the same time; allowed: rising seconds")
    step_s = float(np.median(np.diff(t_s)))
    if step_s < LEAST_STEP_S:
        raise TraceError(
            f"{path}: {step_s:g} s from sample to sample; allowed: {LEAST_STEP_S:g} s or more (are these seconds?)"
        )
    return tuple(
        Trace(name=name, t_s=t_s - t_s[0], power_w=columns[:, i].copy(), step_s=step_s) for i, name in enumerate(names)
    )


def _refuse(path: Path, bad: BoolArray, where: Where, what: str) -> None:
    if bad.any():
        raise TraceError(f"{path}: {where(int(np.argmax(bad)))}: {what}")
