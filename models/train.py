"""Train the network on a set of power series and write a model directory with its scores beside rules that need no model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import Examples, SeriesSet, examples, read_series
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS, PLANNED
from rpi_daemon.models.manifest import MODEL, LoadedModel, load_model, write_model
from rpi_daemon.records import HORIZONS_S, QUANTILES, TICK_S, FloatArray, IntArray

Float32 = NDArray[np.float32]
Report = Callable[[str], None]

# [2 = value, running maximum, 5 horizons, 3 quantiles]. Upper quantiles are rarer and set the limits; the median of the
# value is what forecasts are compared by, and has no other output to learn with; requests look 5 s ahead.
QUANTILE_WEIGHT: Final = np.ones((2, len(HORIZONS_S), 1), np.float32) * np.array([1.0, 1.5, 4.0], np.float32)
QUANTILE_WEIGHT[0, :, 0] = 6.0
QUANTILE_WEIGHT[:, -1] *= 2.0
FIRST_RATE: Final = 6e-3
LAST_RATE: Final = 5e-5
RUN_STEPS: Final = 800  # a lane moves on to another series after so many, that long ones do not fill all lanes
SCORE_AFTER_S: Final = 60.0
MEDIAN_S: Final = 20.0  # of the moving median that scores are compared with
CANARY: Final = (3, 3)  # steps, rows


@dataclass(frozen=True, slots=True)
class Settings:
    """One training run; the same settings, data and seed give the same model unless `minutes` cut it short."""

    hidden: int = 64
    updates: int = 7000
    lanes: int = 128  # series side by side
    steps: int = 64  # readings per update; the state is carried on
    seed: int = 1
    minutes: float = 60.0  # of wall time at most: a slow machine gets fewer updates (and then another model)
    first_rate: float = FIRST_RATE
    emphasis: float = 1.0  # a reading counts as its scale / draw to this power: 0 all alike, 1 by watts


class Lanes:
    """Feeds `lanes` series side by side, each from a random place, with the state carried along."""

    def __init__(self, data: Examples, share: FloatArray, settings: Settings, rng: np.random.Generator) -> None:
        self._data = data
        self._share = share / share.sum()
        self._settings = settings
        self._rng = rng
        self._start = data.start
        lanes = settings.lanes
        self.series = np.zeros(lanes, np.int64)
        self._at = np.zeros(lanes, np.int64)
        self._end = np.zeros(lanes, np.int64)
        self.h = np.zeros((lanes, settings.hidden), np.float32)
        self.c = np.zeros_like(self.h)

    def next(self) -> tuple[Float32, Float32, IntArray, NDArray[np.bool_]]:
        """Columns [steps, lanes, F] and targets [steps, lanes, 2, 5] of the next span, which readings [steps, lanes] they
        are, and whether there is one: a series may end within the span."""
        steps = self._settings.steps
        ended = self._at >= self._end
        count = int(ended.sum())
        if count:
            series = self._rng.choice(len(self._share), count, p=self._share)
            length = self._data.length[series]
            # A third begins as the daemon does after a start, without any history.
            at = self._rng.integers(0, np.maximum(1, length - steps))
            at = np.where(self._rng.random(count) < 1 / 3, 0, at)
            self._at[ended], self._end[ended] = at, np.minimum(length, at + RUN_STEPS)
            self.series[ended] = series
            self.h[ended] = self.c[ended] = 0.0
        place = self._at + np.arange(steps)[:, None]
        known = place < self._end
        place = self._start[self.series] + np.minimum(place, self._end - 1)
        self._at += steps
        return (
            self._data.columns[place].astype(np.float32),
            self._data.targets[place].astype(np.float32),
            place,
            known,
        )


def emphasis(data: Examples, source: IntArray, power: float) -> Float32:
    """How much each reading counts: its scale in parts of the series' mean draw, to this power; a source's mean is 1."""
    series = np.repeat(np.arange(len(data.length)), data.length)
    draw_w = np.bincount(series, data.base_w) / data.length
    size = (data.scale_w / np.maximum(draw_w, 1.0)[series]) ** power
    of_source = source[data.kept][series]
    mean = np.bincount(of_source, size) / np.maximum(np.bincount(of_source), 1)
    return np.asarray(np.minimum(size / mean[of_source], 20.0), np.float32)


def train(
    data: Examples,
    share: FloatArray,
    settings: Settings,
    report: Report,
    start: lstm.Params | None = None,
    counts: Float32 | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[lstm.Params, dict[str, Any]]:
    """Fit the network; `share` [S] weighs the series, `counts` [N] their readings. Returns the parameters and a record.

    `progress` is told the part that is done, 0 to 1, after each update.

    `start` goes on from these parameters instead of random ones; its hidden size must be that of the settings. What it
    knows of columns that this data leaves empty stays.
    """
    rng = np.random.default_rng(settings.seed)
    planned = slice(PLANNED, PLANNED + len(HORIZONS_S))
    params = start or lstm.initial(N_COLUMNS, settings.hidden, rng, planned=planned)
    unused: NDArray[np.bool_] = np.logical_not(data.columns.any(0))
    if start is None:
        params["W"][:, unused] = 0.0  # stays zero: a column that was never seen has no say
    optimiser = lstm.Adam(params)
    lanes = Lanes(data, share, settings, rng)
    began = time.monotonic()
    losses: list[float] = []
    hours = 0.0
    shape = (settings.steps, settings.lanes, 2, len(HORIZONS_S), len(QUANTILES))
    for update in range(settings.updates):
        columns, wanted, place, known = lanes.next()
        out, lanes.h, lanes.c, tape = lstm.forward(params, columns, lanes.h, lanes.c)
        count = known.astype(np.float32) if counts is None else known * counts[place]
        loss, slope = lstm.pinball(out.reshape(shape), wanted, count[:, :, None, None, None] * QUANTILE_WEIGHT)
        grads = lstm.backward(params, tape, slope.reshape(out.shape).astype(np.float32))
        # The rate falls along a half cosine over the run, measured by updates or by time, whichever ends first.
        done = min(1.0, max((update + 1) / settings.updates, (time.monotonic() - began) / (60.0 * settings.minutes)))
        optimiser.step(grads, LAST_RATE + 0.5 * (settings.first_rate - LAST_RATE) * (1.0 + np.cos(np.pi * done)))
        losses.append(loss)
        hours += float((known.sum(0) * data.interval_ticks[lanes.series]).sum()) * TICK_S / 3600.0
        progress(done)
        if done == 1.0:
            break
        if (update + 1) % 100 == 0:
            took = time.monotonic() - began
            report(f"update {update + 1}/{settings.updates}, loss {np.mean(losses[-100:]):.4f}, {took:.0f} s")
    record = {
        "seed": settings.seed,
        "updates": len(losses),
        "lanes": settings.lanes,
        "steps_per_update": settings.steps,
        "outlet_hours": round(hours, 1),
        "emphasis": settings.emphasis,
        "last_loss": round(float(np.mean(losses[-100:])), 5),
        "unused_columns": [c for c, u in zip(COLUMNS, unused, strict=True) if u],
    }
    return params, record


def answers(model: LoadedModel, data: Examples) -> Float32:
    """What the network says at every reading, [N, 2, 5, 3] in scales; each series from a zero state."""
    out = np.zeros((len(data.columns), 2, len(HORIZONS_S), len(QUANTILES)), np.float32)
    order = np.argsort(-data.length, kind="stable")
    start = data.start[order]
    length = data.length[order]
    h, c = np.zeros((2, 1, len(order), model.hidden), np.float32)
    for k in range(int(length.max(initial=0))):
        running = int(np.searchsorted(-length, -k, "left"))
        place = start[:running] + k
        y, h, c = model.run(data.columns[place].astype(np.float32), h[:, :running], c[:, :running])
        out[place] = y.reshape(running, *out.shape[1:])
    return out


def score(model: LoadedModel, series: SeriesSet) -> list[dict[str, Any]]:
    """How the bare network does at 5 s (or the first reading after), by source and rate, beside rules that need no model.

    In percent of the rating: MAE of the value, against persistence and the moving median of 20 s; pinball of the 0.99
    quantile of the running maximum, against the draw + the margin that would have been best for each series in
    hindsight. Then the percentage of readings whose maximum passed that quantile: 1 would be exact. The first 60 s of a
    series are not scored.
    """
    data = examples(series)
    said = answers(model, data)[:, :, -1].astype(np.float64)
    figures = np.array([_figures(data, said, k, series.rating_w[data.kept[k]]) for k in range(len(data.length))])
    rows = []
    for index, source in enumerate(series.sources):
        for kind, slow in (("at 100 ms", False), ("at its own rate", True)):
            chosen = (series.source[data.kept] == index) & ((data.interval_ticks > 1) == slow)
            chosen &= np.isfinite(figures[:, 0]) if len(figures) else False
            if chosen.any():
                row: dict[str, Any] = {"set": f"held back: {source['name']}, {kind}", "series": int(chosen.sum())}
                rows.append(row | dict(zip(_FIGURES, np.round(figures[chosen].mean(0), 4).tolist(), strict=True)))
    return rows


_FIGURES: Final = (
    *("mae_network", "mae_persistence", "mae_median_20s"),
    *("pinball_99_network", "pinball_99_margin", "passed_99"),
)


def _figures(data: Examples, said: FloatArray, k: int, rating_w: float) -> tuple[float, ...]:
    """Of series k, in the order of _FIGURES; NaN where it is too short. `said` [N, 2, 3] at 5 s, in scales."""
    interval = int(data.interval_ticks[k])
    series = slice(data.start[k], data.start[k] + data.length[k])
    skipped = round(SCORE_AFTER_S / TICK_S) // interval
    span = slice(series.start + skipped, series.stop)
    if span.start >= span.stop:
        return (np.nan,) * len(_FIGURES)
    part = 100.0 * data.scale_w[span] / rating_w
    value, highest = part * data.targets[span, :, -1].T
    median, upper = part * said[span, 0, 0], part * said[span, 1, -1]
    still_w = _moving_median(data.base_w[series], max(3, round(MEDIAN_S / TICK_S / interval)))
    still = 100.0 * (still_w - data.base_w[series])[skipped:] / rating_w
    return (
        float(np.abs(value - median).mean()),
        float(np.abs(value).mean()),
        float(np.abs(value - still).mean()),
        float(pinball_loss(highest, upper).mean()),
        float(pinball_loss(highest, np.quantile(highest, QUANTILES[-1])).mean()),
        float(100.0 * (highest > upper).mean()),
    )


def pinball_loss(measured: FloatArray, said: FloatArray | float, quantile: float = QUANTILES[-1]) -> FloatArray:
    """Pinball loss of each moment."""
    error = measured - said
    return np.asarray(np.maximum(quantile * error, (quantile - 1.0) * error), np.float64)


def _moving_median(power_w: Float32, count: int) -> Float32:
    """Of the last `count` readings, the present one included."""
    padded = np.concatenate([np.full(count - 1, power_w[0]), power_w])
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, count), axis=1), np.float32)


def make_model(
    series: SeriesSet, out: Path, name: str, settings: Settings, report: Report, start: LoadedModel | None = None
) -> list[dict[str, Any]]:
    """Train, write, load again with every check, score, and write the scores into the manifest."""
    learn = series.pick(~series.held_back)
    report(f"{len(learn)} series to learn from, {int(series.held_back.sum())} held back")
    data = examples(learn)
    before = lstm.from_onnx((start.path / MODEL).read_bytes()) if start else None
    counts = emphasis(data, learn.source, settings.emphasis)
    params, record = train(data, learn.weight[data.kept], settings, report, before, counts)
    record["started_from"] = f"{start.name} {start.sha256}" if start else "random"
    record |= {"method": "NumPy back-propagation through time, Adam, pinball loss", "data": list(series.sources)}
    model = lstm.to_onnx(params)
    scores: list[dict[str, Any]] = []
    for _ in range(2):  # the model is scored as loaded, then written with its scores
        write_model(
            out,
            name=name,
            model=model,
            hidden=settings.hidden,
            canary_input=canary(data),
            training=record,
            scores=scores,
        )
        scores = scores or score(load_model(out), series.pick(series.held_back))
    return scores


def canary(data: Examples) -> Float32:
    """A few readings from the middle of series that lie apart, [steps, rows, F]."""
    steps, rows = CANARY
    series = np.linspace(0, len(data.length) - 1, rows).astype(np.int64)
    place = data.start[series] + np.maximum(0, data.length[series] // 2 - steps)
    last = data.start[series] + data.length[series] - 1
    columns: Float32 = data.columns[np.minimum(place + np.arange(steps)[:, None], last)].astype(np.float32)
    return columns


_DEFAULT: Final = Settings()


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="NPZ of make_training_set.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model directory to write.")
@click.option("--name", default="first", show_default=True, help="Name in the manifest.")
@click.option("--hidden", default=_DEFAULT.hidden, show_default=True)
@click.option("--updates", default=_DEFAULT.updates, show_default=True)
@click.option("--minutes", default=_DEFAULT.minutes, show_default=True, help="End early after this wall time.")
@click.option("--rate", default=_DEFAULT.first_rate, show_default=True, help="Adam step at the start.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Model directory to go on from.")
@click.option("--seed", default=_DEFAULT.seed, show_default=True)
def main(
    data: Path,
    out: Path,
    name: str,
    hidden: int,
    updates: int,
    minutes: float,
    rate: float,
    seed: int,
    start: Path | None,
) -> None:
    """Train a model and write its directory."""
    before = load_model(start) if start else None
    settings = Settings(
        hidden=before.hidden if before else hidden, updates=updates, minutes=minutes, seed=seed, first_rate=rate
    )
    for row in make_model(read_series(data), out, name, settings, click.echo, before):
        mae = row["mae_network"] / max(row["mae_persistence"], 1e-9)
        upper = row["pinball_99_network"] / max(row["pinball_99_margin"], 1e-9)
        click.echo(
            f"{row['set']}: MAE {mae:.2f} x persistence; 0.99 of the highest {upper:.2f} x the best fixed margin, "
            f"passed in {row['passed_99']:.1f} %"
        )


if __name__ == "__main__":
    main()
