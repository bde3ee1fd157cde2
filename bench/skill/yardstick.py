"""The outside yardstick: LightGBM quantile regression, fitted per group on the first part of its series."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rpi_daemon.records import QUANTILES, TICK_S, FloatArray, IntArray
from skill.scores import Sums, value_losses
from skill.series import LAST_PART, LEAST_MEAN_W, Moments, Series

NAME = "LightGBM"
LOOK_BACK_S = 60.0
MOST_ROWS = 60_000  # to learn from, evenly spaced
HELD_BACK = 0.1  # of them, the newest of each series: they say how many trees are enough
FEWEST_ROWS = 100  # nothing is learned from less
MOST_TREES = 1000
PATIENCE = 40
SETTINGS = {
    "objective": "quantile", "learning_rate": 0.05, "num_leaves": 31, "min_data_in_leaf": 60, "feature_fraction": 0.8,
    "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1, "num_threads": 1, "seed": 1, "deterministic": True,
    "force_row_wise": True,
}  # fmt: skip


def lags_of(interval_ticks: int) -> IntArray:
    """Readings back: every one of the last two seconds, or twelve readings, then ever sparser to a minute."""
    longest = max(1, round(LOOK_BACK_S / (interval_ticks * TICK_S)))
    if longest <= 60:
        return np.arange(1, longest + 1)
    return np.unique(np.concatenate([np.arange(1, 21), np.geomspace(20, longest, 50).round()])).astype(np.int64)


def columns(series: Series, made: IntArray) -> FloatArray:
    """What was known at each reading, [k, features], in parts of the rating.

    Lags are relative to the present reading; one from before the beginning is missing.
    """
    power_w = series.power_w
    back = made[:, None] - lags_of(series.interval_ticks)
    parts = [np.where(back >= 0, power_w[np.maximum(back, 0)] - power_w[made, None], np.nan)]
    sums, squares = np.append(0.0, np.cumsum(power_w)), np.append(0.0, np.cumsum(power_w**2))
    for seconds in (5.0, 20.0, 60.0):
        begin = np.maximum(made + 1 - max(1, round(seconds / (series.interval_ticks * TICK_S))), 0)
        count = made + 1 - begin
        mean_w = (sums[made + 1] - sums[begin]) / count
        spread_w = np.sqrt(np.maximum((squares[made + 1] - squares[begin]) / count - mean_w**2, 0.0))
        highest_w = series.recent_max_w(Moments(made, made), seconds)
        parts += [np.column_stack([mean_w - power_w[made], spread_w, highest_w - power_w[made]])]
    in_rating = np.column_stack([*parts, power_w[made]]) / series.rating_w
    of_load = np.broadcast_to([np.log(series.rating_w), series.interval_ticks], (len(made), 2))
    return np.column_stack([in_rating, of_load])


def yardstick(group: Sequence[Series]) -> dict[str, Sums]:
    """Its losses in the last part of each series, by series name; nothing where the first parts are too short to learn."""
    import lightgbm

    width = max(len(lags_of(s.interval_ticks)) for s in group)
    first = [_rows(s, width, last=False) for s in group]
    count = sum(len(part.target) for part in first)
    if count < FEWEST_ROWS:
        return {}
    stride = -(-count // MOST_ROWS)
    cuts = [int(len(part.target) * (1.0 - HELD_BACK)) for part in first]
    learn = [part.some(slice(0, cut, stride)) for part, cut in zip(first, cuts, strict=True)]
    stop = [part.some(slice(cut, None, stride)) for part, cut in zip(first, cuts, strict=True)]
    data, held = _dataset(learn), _dataset(stop)
    held.set_reference(data)
    enough = lightgbm.early_stopping(PATIENCE, verbose=False)
    trained = [
        lightgbm.train({**SETTINGS, "alpha": quantile}, data, MOST_TREES, valid_sets=[held], callbacks=[enough])
        for quantile in QUANTILES
    ]
    return {s.name: _judged(s, width, trained) for s in group}


def _judged(series: Series, width: int, trained: Sequence[Any]) -> Sums:
    rows = _rows(series, width, last=True)
    if not len(rows.came_w):
        return Sums()
    change = np.sort(np.column_stack([model.predict(rows.known) for model in trained]), axis=1)
    mean_w = max(series.mean_w, LEAST_MEAN_W)
    losses = value_losses(NAME, rows.now_w[:, None] + change * series.rating_w, rows.now_w, rows.came_w, mean_w)
    return Sums(len(rows.came_w), {name: float(loss.sum() / mean_w) for name, loss in losses.items()})


@dataclass(frozen=True)
class _Rows:
    """Examples [k] of one series: what was known, the change until 5 s ahead in parts of the rating, how much it counts."""

    known: FloatArray
    target: FloatArray
    weight: FloatArray
    now_w: FloatArray
    came_w: FloatArray

    def some(self, which: slice) -> "_Rows":
        return _Rows(*(getattr(self, part.name)[which] for part in fields(self)))


def _rows(series: Series, width: int, *, last: bool) -> _Rows:
    """Of the moments wholly in the first or in the last part. A watt counts as in the scores: against the mean draw."""
    moments = series.moments
    chosen = series.in_last_part(moments) if last else series.tick[moments.due] < LAST_PART * series.ticks
    made, due = moments.made[chosen], moments.due[chosen]
    known, lags = columns(series, made), len(lags_of(series.interval_ticks))
    known = np.column_stack([known[:, :lags], np.full((len(made), width - lags), np.nan), known[:, lags:]])
    now_w, came_w = series.power_w[made], series.power_w[due]
    first_w = max(float(series.power_w[series.tick < LAST_PART * series.ticks].mean()), LEAST_MEAN_W)
    weight = np.full(len(made), series.rating_w / first_w)
    return _Rows(known.astype(np.float32), (came_w - now_w) / series.rating_w, weight, now_w, came_w)


def _dataset(parts: Sequence[_Rows]) -> Any:
    import lightgbm

    known, target, weight = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("known", "target", "weight")
    )
    return lightgbm.Dataset(known, target, weight=weight)
