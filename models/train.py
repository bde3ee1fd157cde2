"""Train the network on a set of power series and write a model directory with its scores against every baseline."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from rpi_daemon.models import lstm
from rpi_daemon.models.baseline import Ewma, Persistence, Ridge
from rpi_daemon.models.dataset import Examples, SeriesSet, examples, read_series, targets
from rpi_daemon.models.forecaster import Forecaster
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS, PLANNED, PRIME_TICKS
from rpi_daemon.models.manifest import MODEL, LoadedModel, load_model, write_model
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import HORIZONS_S, QUANTILES, TICK_S, FloatArray

Report = Callable[[str], None]

QUANTILE_WEIGHT: Final = np.array([1.0, 1.5, 4.0], np.float32)  # upper quantiles are rarer and set the limits
SIMULATED_SHARE: Final = 0.5  # of the lanes; the rest are recordings
FIRST_RATE: Final = 4e-3
LAST_RATE: Final = 5e-5
SCORE_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One training run; the same settings, data and seed give the same model unless `minutes` cut it short."""

    hidden: int = 48
    updates: int = 3000
    lanes: int = 96  # series side by side
    steps: int = 100  # ticks per update; the state is carried on
    seed: int = 1
    minutes: float = 60.0  # of wall time at most: a slow machine gets fewer updates (and then another model)
    first_rate: float = FIRST_RATE


class Lanes:
    """Feeds `lanes` series side by side, each on to its end from a random place, with the state carried."""

    def __init__(self, data: Examples, share: FloatArray, settings: Settings, rng: np.random.Generator) -> None:
        self._data = data
        self._share = share / share.sum()
        self._settings = settings
        self._rng = rng
        lanes = settings.lanes
        self._length = data.columns.shape[1]
        self._series = np.zeros(lanes, np.int64)
        self._at = np.full(lanes, self._length)
        self.h = np.zeros((lanes, settings.hidden), np.float32)
        self.c = np.zeros_like(self.h)

    def next(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Columns [steps, lanes, F] and targets [steps, lanes, 2, 5] of the next span."""
        steps = self._settings.steps
        ended = self._at + steps > self._length
        count = int(ended.sum())
        if count:
            self._series[ended] = self._rng.choice(len(self._share), count, p=self._share)
            # A third begins as the daemon does after a start, without any history.
            at = self._rng.integers(0, max(1, self._length - steps), count)
            self._at[ended] = np.where(self._rng.random(count) < 1 / 3, 0, at)
            self.h[ended] = self.c[ended] = 0.0
        spans = [(s, slice(a, a + steps)) for s, a in zip(self._series, self._at, strict=True)]
        self._at += steps
        columns = np.stack([self._data.columns[s, span] for s, span in spans], axis=1)
        wanted = np.stack([self._data.targets[s, span] for s, span in spans], axis=1)
        return columns, wanted


def train(
    data: Examples,
    share: FloatArray,
    settings: Settings,
    report: Report,
    start: lstm.Params | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[lstm.Params, dict[str, Any]]:
    """Fit the network; `share` [S] weighs the series. Returns the parameters and a record of the run.

    `progress` hears the part that is done, 0 to 1.

    `start` goes on from these parameters instead of random ones; its hidden size must be that of the settings.
    """
    rng = np.random.default_rng(settings.seed)
    params = start or lstm.initial(N_COLUMNS, settings.hidden, rng, planned=slice(PLANNED, PLANNED + len(HORIZONS_S)))
    unused: NDArray[np.bool_] = np.logical_not(data.columns.any((0, 1)))
    params["W"][:, unused] = 0.0  # stays zero: a column that was never seen has no say
    optimiser = lstm.Adam(params)
    lanes = Lanes(data, share, settings, rng)
    began = time.monotonic()
    losses: list[float] = []
    shape = (settings.steps, settings.lanes, 2, len(HORIZONS_S), len(QUANTILES))
    for update in range(settings.updates):
        columns, wanted = lanes.next()
        out, lanes.h, lanes.c, tape = lstm.forward(params, columns, lanes.h, lanes.c)
        loss, slope = lstm.pinball(out.reshape(shape), wanted, QUANTILE_WEIGHT)
        grads = lstm.backward(params, tape, slope.reshape(out.shape).astype(np.float32))
        # The rate falls along a half cosine over the run, measured by updates or by time, whichever ends first.
        done = min(1.0, max((update + 1) / settings.updates, (time.monotonic() - began) / (60.0 * settings.minutes)))
        optimiser.step(grads, LAST_RATE + 0.5 * (settings.first_rate - LAST_RATE) * (1.0 + np.cos(np.pi * done)))
        losses.append(loss)
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
        "outlet_hours": round(len(losses) * settings.lanes * settings.steps * TICK_S / 3600, 1),
        "last_loss": round(float(np.mean(losses[-100:])), 5),
        "unused_columns": [c for c, u in zip(COLUMNS, unused, strict=True) if u],
    }
    return params, record


def score(model: LoadedModel, series: SeriesSet) -> list[dict[str, Any]]:
    """MAE at 5 s and pinball of the running maximum (0.99, 5 s) of the model and the baselines, per source, in W.

    Each forecaster runs as the daemon runs it; the first 60 s of a series are not scored.
    """
    count = len(series.power_w)
    if not count:
        return []
    members: list[Forecaster] = [LstmForecaster(model, count), Ridge(count), Ewma(count), Persistence(count)]
    wanted = targets(series.power_w)[:, :, :, -1].astype(np.float64) + series.power_w[:, : -int(5 / TICK_S), None]
    first = round(SCORE_AFTER_S / TICK_S)
    errors = {m.name: np.zeros((2, count)) for m in members}
    for tick in range(wanted.shape[1]):
        x = series.inputs_at(tick)
        for member in members:
            made = member.step(x)
            if tick >= first:
                errors[member.name][0] += np.abs(wanted[:, tick, 0] - made.value_w[:, -1, 0])
                error = wanted[:, tick, 1] - made.running_max_w[:, -1, -1]
                errors[member.name][1] += np.maximum(QUANTILES[-1] * error, (QUANTILES[-1] - 1.0) * error)
    rows = []
    for index, source in enumerate(series.sources):
        chosen = series.source == index
        if chosen.any():
            row: dict[str, Any] = {"set": f"held back: {source['name']}", "series": int(chosen.sum())}
            for name, error in errors.items():
                mean = error[:, chosen].mean(1) / (wanted.shape[1] - first)
                row[f"mae_5s_w_{name}"] = round(float(mean[0]), 3)
                row[f"running_max_pinball_99_w_{name}"] = round(float(mean[1]), 4)
            rows.append(row)
    return rows


def make_model(
    series: SeriesSet, out: Path, name: str, settings: Settings, report: Report, start: LoadedModel | None = None
) -> list[dict[str, Any]]:
    """Train, write, load again with every check, score, and write the scores into the manifest."""
    learn = series.pick(~series.held_back)
    report(f"{len(learn.power_w)} series to learn from, {int(series.held_back.sum())} held back")
    data = examples(learn)
    share = np.where(
        learn.source == 0,
        SIMULATED_SHARE / np.sum(learn.source == 0),
        (1 - SIMULATED_SHARE) / max(1, np.sum(learn.source != 0)),
    )
    before = lstm.from_onnx((start.path / MODEL).read_bytes()) if start else None
    params, record = train(data, share, settings, report, before)
    record["started_from"] = f"{start.name} {start.sha256}" if start else "random"
    canary = np.ascontiguousarray(data.columns[:: max(1, len(data.columns) // 3), PRIME_TICKS * 40 :][:3, :3])
    record |= {"method": "NumPy back-propagation through time, Adam, pinball loss", "data": list(series.sources)}
    model = lstm.to_onnx(params)
    scores: list[dict[str, Any]] = []
    for _ in range(2):  # the model is scored as loaded, then written with its scores
        write_model(
            out,
            name=name,
            model=model,
            hidden=settings.hidden,
            canary_input=canary.transpose(1, 0, 2),
            training=record,
            scores=scores,
        )
        scores = scores or score(load_model(out), series.pick(series.held_back))
    return scores


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
        mae = row["mae_5s_w_lstm"] / max(row["mae_5s_w_persistence"], 1e-9)
        click.echo(f"{row['set']}: MAE at 5 s {row['mae_5s_w_lstm']:.2f} W, {mae:.2f} x persistence")


if __name__ == "__main__":
    main()
