"""Training sets: readings of many series with their announced changes, and what the network sees and should say for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.arrays import read_arrays
from rpi_daemon.errors import TraceError
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS, InputStream
from rpi_daemon.records import HORIZONS_S, TICK_NS, TICK_S, BoolArray, FloatArray, ForecastInput, IntArray, reach_ticks

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
HORIZON_TICKS = tuple(round(h / TICK_S) for h in HORIZONS_S)
TIME_COLUMNS = tuple(COLUMNS.index(c) for c in ("day_sin", "day_cos", "week_sin", "week_cos"))
BATCH_READINGS = 200_000  # that pass through the input stage side by side: bounds its memory


@dataclass(frozen=True, slots=True)
class Row:
    """One series: a reading every `interval_ticks`, and the running sum of the changes announced to have begun by then."""

    power_w: FloatArray | Float32
    announced_w: FloatArray | Float32
    rating_w: float
    interval_ticks: int = 1
    source: int = 0  # index into `sources`
    held_back: bool = False  # for scores, never trained on
    weight: float = 1.0  # how often it is trained on, against the others


@dataclass(frozen=True, slots=True)
class SeriesSet:
    """S series of any lengths, their readings one after another."""

    power_w: Float32  # [sum of lengths]
    announced_w: Float32  # the same
    length: IntArray  # [S]
    interval_ticks: IntArray  # [S]
    rating_w: FloatArray  # [S]
    source: IntArray  # [S]
    held_back: BoolArray  # [S]
    weight: FloatArray  # [S]
    sources: tuple[dict[str, Any], ...]  # name, licence, origin, series, hours

    @classmethod
    def of(cls, rows: Sequence[Row], sources: Sequence[dict[str, Any]]) -> "SeriesSet":
        """Put rows together."""
        return cls(
            np.concatenate([np.asarray(r.power_w, np.float32) for r in rows] or [np.zeros(0, np.float32)]),
            np.concatenate([np.asarray(r.announced_w, np.float32) for r in rows] or [np.zeros(0, np.float32)]),
            np.array([len(r.power_w) for r in rows], np.int64),
            np.array([r.interval_ticks for r in rows], np.int64),
            np.array([r.rating_w for r in rows], np.float64),
            np.array([r.source for r in rows], np.int64),
            np.array([r.held_back for r in rows], np.bool_),
            np.array([r.weight for r in rows], np.float64),
            tuple(sources),
        )

    def __len__(self) -> int:
        return len(self.length)

    @property
    def start(self) -> IntArray:
        """Where each series begins in the flat arrays, [S]."""
        return np.cumsum(self.length) - self.length

    def row(self, index: int) -> Row:
        """One series."""
        span = slice(int(self.start[index]), int(self.start[index] + self.length[index]))
        return Row(
            self.power_w[span],
            self.announced_w[span],
            float(self.rating_w[index]),
            int(self.interval_ticks[index]),
            int(self.source[index]),
            bool(self.held_back[index]),
            float(self.weight[index]),
        )

    def pick(self, rows: BoolArray) -> "SeriesSet":
        """The series that `rows` [S] marks."""
        return SeriesSet.of([self.row(int(k)) for k in np.flatnonzero(rows)], self.sources)


@dataclass(frozen=True, slots=True)
class Examples:
    """Columns and targets of every reading whose future is known, series after series.

    Targets are changes from the present reading in scales: of the value at the reach of each horizon, and of the highest
    reading until then.
    """

    columns: Float16  # [N, F]
    targets: Float16  # [N, 2, 5]
    base_w: Float32  # [N]
    scale_w: Float32  # [N]
    length: IntArray  # [S] readings of each series with a known future
    interval_ticks: IntArray  # [S]
    kept: IntArray  # [S] index of each series in the set it came from

    @property
    def start(self) -> IntArray:
        """Where each series begins, [S]."""
        return np.cumsum(self.length) - self.length


_SOURCE_KEYS = ("name", "licence", "origin", "series", "hours")
_ARRAYS = ("power_w", "announced_w", "length", "interval_ticks", "rating_w", "source", "held_back", "weight")


def read_series(path: Path) -> SeriesSet:
    """Read an NPZ written by `write_series`. Raises TraceError."""
    try:
        file = read_arrays(path, [*(f"source_{k}" for k in _SOURCE_KEYS), *_ARRAYS])
        sources = tuple(
            {"name": str(n), "licence": str(c), "origin": str(o), "series": int(s), "hours": float(h)}
            for n, c, o, s, h in zip(*(file[f"source_{k}"] for k in _SOURCE_KEYS), strict=True)
        )
        return SeriesSet(**{name: file[name] for name in _ARRAYS}, sources=sources)
    except (KeyError, ValueError, TypeError) as error:
        raise TraceError(f"{path}: not a training set ({error}); make one with bench/make_training_set.py") from error


def write_series(path: Path, series: SeriesSet) -> None:
    """Write a set as NPZ."""
    columns: dict[str, Any] = {f"source_{k}": np.array([s[k] for s in series.sources]) for k in _SOURCE_KEYS}
    np.savez(path, **{name: getattr(series, name) for name in _ARRAYS}, **columns)


def reach_readings(interval_ticks: int) -> IntArray:
    """How many readings ahead each horizon reaches, [5]."""
    interval = np.array([interval_ticks])
    return np.array([int(reach_ticks(interval, h)[0]) // interval_ticks for h in HORIZONS_S])


def targets(power_w: Float32, interval_ticks: int) -> Float32:
    """Change from the present to the value, and to the highest, at the reach of each horizon: [T - reach, 2, 5, S] W.

    power_w is [T, S], a reading every `interval_ticks`.
    """
    reach = reach_readings(interval_ticks)
    length = max(0, len(power_w) - int(reach[-1]))
    out = np.empty((length, 2, len(reach), power_w.shape[1]), np.float32)
    highest = np.full((length, power_w.shape[1]), -np.inf, np.float32)
    for ahead in range(1, int(reach[-1]) + 1):
        later = power_w[ahead : ahead + length]
        np.maximum(highest, later, out=highest)
        for k in np.flatnonzero(reach == ahead):
            out[:, 0, k] = later
            out[:, 1, k] = highest
    out -= power_w[:length, None, None]
    return out


def inputs_of(
    power_w: Float32, announced_w: Float32, rating_w: FloatArray, interval_ticks: int
) -> Iterator[ForecastInput]:
    """What a forecaster is given at each reading, every series as an outlet (no telemetry, no time of day).

    power_w and announced_w are [T, S]; NaN where a series has ended. Announced is what begins within the horizon.
    """
    steps, n = power_w.shape
    ahead = np.array([ticks // interval_ticks for ticks in HORIZON_TICKS])
    interval = np.full(n, interval_ticks)
    nothing, unknown = np.zeros((n, 4)), np.full(n, np.nan)
    for k in range(steps):
        now_w = power_w[k].astype(np.float64)
        plan_w = announced_w[np.minimum(k + ahead, steps - 1)].T.astype(np.float64) - announced_w[k][:, None]
        yield ForecastInput(
            t_mono_ns=k * interval_ticks * TICK_NS,
            t_utc_s=0.0,
            power_w=now_w,
            peak_w=unknown,
            step_w=np.zeros(n),
            valid=np.isfinite(now_w),
            rating_w=rating_w,
            planned_w=np.where(np.isfinite(plan_w), plan_w, 0.0),
            telemetry=nothing,
            telemetry_mask=nothing,
            interval_ticks=interval,
        )


def side_by_side(series: SeriesSet, rows: IntArray) -> tuple[Float32, Float32]:
    """Power and announced sums of these series as [T, n], NaN behind their ends."""
    longest = int(series.length[rows].max())
    power_w, announced_w = np.full((2, longest, len(rows)), np.nan, np.float32)
    for k, index in enumerate(rows):
        row = series.row(int(index))
        power_w[: len(row.power_w), k], announced_w[: len(row.power_w), k] = row.power_w, row.announced_w
    return power_w, announced_w


def batches(series: SeriesSet) -> Iterator[tuple[int, IntArray]]:
    """Interval and indices of series that can run side by side: of one interval, of similar lengths, not too many."""
    for interval in np.unique(series.interval_ticks):
        rows = np.flatnonzero(series.interval_ticks == interval)
        rows = rows[np.argsort(-series.length[rows], kind="stable")]
        while len(rows):
            longest = max(1, int(series.length[rows[0]]))
            similar = int(np.searchsorted(-series.length[rows], -longest // 2, "right"))
            count = max(1, min(similar, BATCH_READINGS // longest))
            yield int(interval), rows[:count]
            rows = rows[count:]


def examples(series: SeriesSet) -> Examples:
    """Stream every series through the daemon's own input stage; a series too short for its reach has none."""
    known = np.array(
        [max(0, n - reach_readings(m)[-1]) for n, m in zip(series.length, series.interval_ticks, strict=True)], np.int64
    )
    order = np.concatenate([rows for _, rows in batches(series)])
    kept = order[known[order] > 0]
    total = int(known.sum())
    made = Examples(
        np.empty((total, N_COLUMNS), np.float16),
        np.empty((total, 2, len(HORIZONS_S)), np.float16),
        np.empty(total, np.float32),
        np.empty(total, np.float32),
        known[kept],
        series.interval_ticks[kept],
        kept,
    )
    at = 0
    for interval, rows in batches(series):
        count = int(known[rows].sum())
        span = slice(at, at + count)
        parts = _run(series, interval, rows)
        made.columns[span], made.targets[span], made.base_w[span], made.scale_w[span] = parts
        at += count
    return made


def _run(series: SeriesSet, interval: int, rows: IntArray) -> tuple[Float16, Float16, Float32, Float32]:
    power_w, announced_w = side_by_side(series, rows)
    change = targets(power_w, interval)
    length = len(change)
    columns = np.empty((length, len(rows), N_COLUMNS), np.float16)
    scale_w = np.empty((length, len(rows)), np.float32)
    stream = InputStream(len(rows))
    inputs = inputs_of(power_w, announced_w, series.rating_w[rows], interval)
    for k, x in zip(range(length), inputs, strict=False):  # the last readings have no known future
        seen = stream.step(x)
        columns[k], scale_w[k] = seen.columns, seen.scale_w
    columns[:, :, TIME_COLUMNS] = 0.0
    change /= scale_w[:, None, None]
    known = np.arange(length)[None] < (series.length[rows] - reach_readings(interval)[-1])[:, None]
    return (
        columns.transpose(1, 0, 2)[known],
        change.transpose(3, 0, 1, 2)[known].astype(np.float16),
        power_w[:length].T[known],
        scale_w.T[known],
    )
