"""The outside yardstick: LightGBM quantile regression, fitted per group on the first part of its series."""

from collections.abc import Sequence

import numpy as np

from rpi_daemon.records import QUANTILES, TICK_S, FloatArray, IntArray
from skill.scores import LEAST_MEAN_W, Sums, value_losses
from skill.series import LAST_PART, Moments, Series

NAME = "LightGBM"
LOOK_BACK_S = 60.0
MOST_ROWS = 150_000  # to learn from, evenly spaced: more changed no figure by 1 %, and took longer
HELD_BACK = 0.1  # of them, the newest of each series: they say how many trees are enough
FEWEST_ROWS = 100  # nothing is learned from less
MOST_TREES = 600
PATIENCE = 40
SETTINGS = {
    "objective": "quantile", "learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 20, "feature_fraction": 0.8,
    "bagging_fraction": 0.8, "bagging_freq": 1, "verbosity": -1, "num_threads": 1, "seed": 1, "deterministic": True,
    "force_row_wise": True,
}  # fmt: skip


def lags_of(interval_ticks: int) -> IntArray:
    """Readings back: every one of the last two seconds, or twelve readings, then ever sparser to a minute."""
    longest = max(1, round(LOOK_BACK_S / (interval_ticks * TICK_S)))
    if longest <= 60:
        return np.arange(1, longest + 1)
    return np.unique(np.concatenate([np.arange(1, 21), np.geomspace(20, longest, 50).round()])).astype(np.int64)


def columns(series: Series, made: IntArray) -> tuple[FloatArray, FloatArray]:
    """What was known at each reading, [k, features], and the scale [k] W that makes loads alike: the mean draw so far.

    Lags are relative to the present reading; a lag from before the beginning is missing.
    """
    power_w = series.power_w
    m = len(power_w)
    scale_w = np.maximum(np.cumsum(power_w) / np.arange(1, m + 1), LEAST_MEAN_W)[made]
    back = made[:, None] - lags_of(series.interval_ticks)
    lagged = np.where(back >= 0, power_w[np.maximum(back, 0)] - power_w[made, None], np.nan)
    parts = [lagged]
    sums, squares = np.append(0.0, np.cumsum(power_w)), np.append(0.0, np.cumsum(power_w**2))
    for seconds in (5.0, 20.0, 60.0):
        begin = np.maximum(made + 1 - max(1, round(seconds / (series.interval_ticks * TICK_S))), 0)
        count = made + 1 - begin
        mean_w = (sums[made + 1] - sums[begin]) / count
        spread_w = np.sqrt(np.maximum((squares[made + 1] - squares[begin]) / count - mean_w**2, 0.0))
        span = Moments(made, made)
        parts += [(mean_w - power_w[made])[:, None], spread_w[:, None]]
        parts += [(series.recent_max_w(span, seconds) - power_w[made])[:, None]]
    relative = np.column_stack([*parts, power_w[made]]) / scale_w[:, None]
    of_load = np.broadcast_to([np.log(series.rating_w), series.interval_ticks], (len(made), 2))
    return np.column_stack([relative, of_load]), scale_w


def yardstick(group: Sequence[Series]) -> dict[str, Sums]:
    """Its losses in the last part of each series, by series name; nothing where the first parts are too short to learn."""
    import lightgbm

    width = max(len(lags_of(s.interval_ticks)) for s in group)
    first = [_rows(s, width, last=False) for s in group]
    count = sum(len(target) for _, target, *_ in first)
    if count < FEWEST_ROWS:
        return {}
    stride = max(1, -(-count // MOST_ROWS))
    learn, stop = [], []
    for x, target, *_ in first:
        cut = int(len(target) * (1.0 - HELD_BACK))
        learn.append((x[:cut:stride], target[:cut:stride]))
        stop.append((x[cut::stride], target[cut::stride]))
    said = []
    for quantile in QUANTILES:
        settings = {**SETTINGS, "alpha": quantile}
        data = lightgbm.Dataset(*_joined(learn), free_raw_data=True)
        held = lightgbm.Dataset(*_joined(stop), reference=data)
        trained = lightgbm.train(
            settings, data, MOST_TREES, valid_sets=[held], callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)]
        )
        said.append(trained)
    return {s.name: _judged(s, width, said) for s in group}


def _judged(series: Series, width: int, said: Sequence[object]) -> Sums:
    x, _, scale_w, now_w, came_w = _rows(series, width, last=True)
    if not len(came_w):
        return Sums()
    change = np.sort(np.column_stack([model.predict(x) for model in said]), axis=1)  # type: ignore[attr-defined]
    mean_w = max(series.mean_w, LEAST_MEAN_W)
    losses = value_losses(NAME, now_w[:, None] + change * scale_w[:, None], now_w, came_w, mean_w)
    return Sums(len(came_w), {name: float(loss.sum() / mean_w) for name, loss in losses.items()})


def _rows(
    series: Series, width: int, *, last: bool
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Features, target (change in scales), scale, present and coming draw; of moments wholly in the first or the last part."""
    moments = series.moments
    late = series.in_last_part(moments)
    chosen = late if last else series.tick[moments.due] < LAST_PART * series.ticks
    made, due = moments.made[chosen], moments.due[chosen]
    x, scale_w = columns(series, made)
    lags = len(lags_of(series.interval_ticks))
    x = np.column_stack([x[:, :lags], np.full((len(x), width - lags), np.nan), x[:, lags:]])
    now_w, came_w = series.power_w[made], series.power_w[due]
    return x.astype(np.float32), (came_w - now_w) / scale_w, scale_w, now_w, came_w


def _joined(parts: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    xs, targets = zip(*parts, strict=True)
    return np.concatenate(xs), np.concatenate(targets)
