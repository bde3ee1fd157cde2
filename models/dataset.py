"""Training sets: power at 100 ms with its announced changes, and what the network sees and should say for it."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.errors import TraceError
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS, InputStream
from rpi_daemon.models.past import TICKS_PER_S
from rpi_daemon.records import HORIZONS_S, TICK_NS, FloatArray, ForecastInput

Float32 = NDArray[np.float32]
HORIZON_TICKS = tuple(round(h * TICKS_PER_S) for h in HORIZONS_S)
LOOKAHEAD = HORIZON_TICKS[-1]
TIME_COLUMNS = tuple(COLUMNS.index(c) for c in ("day_sin", "day_cos", "week_sin", "week_cos"))


@dataclass(frozen=True, slots=True)
class SeriesSet:
    """S series of T ticks. `announced_w` is the running sum of the changes announced to have begun by each tick."""

    power_w: Float32  # [S, T]
    announced_w: Float32  # [S, T]
    rating_w: FloatArray  # [S]
    source: NDArray[np.int64]  # [S] index into `sources`
    held_back: NDArray[np.bool_]  # [S] for scores, never trained on
    sources: tuple[dict[str, Any], ...]  # name, licence, origin, series, hours

    def inputs_at(self, tick: int, t_mono_ns: int = 0) -> ForecastInput:
        """What a forecaster is given at one tick, every series as an outlet (no telemetry, no time of day)."""
        n = len(self.power_w)
        power_w = self.power_w[:, tick].astype(np.float64)
        ahead = self.announced_w[:, tick + np.array(HORIZON_TICKS)].astype(np.float64)
        return ForecastInput(
            t_mono_ns=t_mono_ns + tick * TICK_NS,
            t_utc_s=0.0,
            power_w=power_w,
            peak_w=np.full(n, np.nan),
            step_w=np.zeros(n),
            valid=np.ones(n, np.bool_),
            rating_w=self.rating_w,
            planned_w=ahead - self.announced_w[:, tick, None],
            telemetry=np.zeros((n, 4)),
            telemetry_mask=np.zeros((n, 4)),
        )

    def pick(self, rows: NDArray[np.bool_]) -> "SeriesSet":
        """The series that `rows` [S] marks."""
        return SeriesSet(
            self.power_w[rows],
            self.announced_w[rows],
            self.rating_w[rows],
            self.source[rows],
            self.held_back[rows],
            self.sources,
        )


@dataclass(frozen=True, slots=True)
class Examples:
    """Columns and targets of every tick but the last 5 s: [S, T, F] and [S, T, 2, 5], targets as change in scales."""

    columns: Float32
    targets: Float32
    base_w: Float32  # [S, T]
    scale_w: Float32  # [S, T]


def read_series(path: Path) -> SeriesSet:
    """Read an NPZ written by `write_series`. Raises TraceError."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            sources = tuple(
                {"name": str(n), "licence": str(c), "origin": str(o), "series": int(s), "hours": float(h)}
                for n, c, o, s, h in zip(*(file[f"source_{k}"] for k in _SOURCE_KEYS), strict=True)
            )
            return SeriesSet(
                file["power_w"], file["announced_w"], file["rating_w"], file["source"], file["held_back"], sources
            )
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(f"{path}: not a training set ({error}); make one with bench/make_training_set.py") from error


_SOURCE_KEYS = ("name", "licence", "origin", "series", "hours")


def write_series(path: Path, series: SeriesSet) -> None:
    """Write a set as NPZ."""
    columns: dict[str, Any] = {f"source_{k}": np.array([s[k] for s in series.sources]) for k in _SOURCE_KEYS}
    np.savez_compressed(
        path,
        power_w=series.power_w,
        announced_w=series.announced_w,
        rating_w=series.rating_w,
        source=series.source,
        held_back=series.held_back,
        **columns,
    )


def targets(power_w: Float32) -> Float32:
    """Change from the present to the value, and to the running maximum, at each horizon: [S, T - 50, 2, 5] W."""
    count, ticks = power_w.shape
    length = ticks - LOOKAHEAD
    out = np.empty((count, length, 2, len(HORIZON_TICKS)), np.float32)
    highest = np.full((count, length), -np.inf, np.float32)
    for ahead in range(1, LOOKAHEAD + 1):
        np.maximum(highest, power_w[:, ahead : ahead + length], out=highest)
        if ahead in HORIZON_TICKS:
            k = HORIZON_TICKS.index(ahead)
            out[:, :, 0, k] = power_w[:, ahead : ahead + length]
            out[:, :, 1, k] = highest
    return out - power_w[:, :length, None, None]


def examples(series: SeriesSet) -> Examples:
    """Stream every series through the daemon's own input stage."""
    count, ticks = series.power_w.shape
    length = ticks - LOOKAHEAD
    columns = np.empty((count, length, N_COLUMNS), np.float32)
    scale_w = np.empty((count, length), np.float32)
    stream = InputStream(count)
    for tick in range(length):
        seen = stream.step(series.inputs_at(tick))
        columns[:, tick] = seen.columns
        scale_w[:, tick] = seen.scale_w
    columns[:, :, TIME_COLUMNS] = 0.0
    change = targets(series.power_w)
    change /= scale_w[:, :, None, None]
    return Examples(columns, change, series.power_w[:, :length], scale_w)
