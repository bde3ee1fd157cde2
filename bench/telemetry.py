"""Whether telemetry of hosts and the time of day help a forecast 5 s ahead: one small experiment for each."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from rpi_daemon.drivers.sensors.plant import outlet_power, random_workload, simulate_power
from rpi_daemon.drivers.sensors.traces import read_trace
from rpi_daemon.models import lstm
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS, PLANNED, InputStream
from rpi_daemon.records import HORIZONS_S, QUANTILES, TELEMETRY, TICK_NS, TICK_S, FloatArray, ForecastInput

Float32 = NDArray[np.float32]

TICKS = 2000  # of each simulated series
FIRST = 600  # ticks that are not scored
SCRAPE_TICKS = 10  # a host is asked once a second ...
SHARE_NOISE = 0.03  # ... and its CPU share is this far from what its power says
LEADS_S = (0.0, 1.0, 2.0)  # how long a CPU leads the power of its host
HELD_BACK = 0.3
LOOKAHEAD = 50  # ticks
HIDDEN, LANES, SPAN = 32, 64, 100  # of the network and its training: units, series side by side, ticks of an update
RATES = (4e-3, 5e-5)  # Adam, at the start and at the end
QUANTILE_WEIGHT = np.array([1.0, 1.5, 4.0], np.float32)
DAY_S = 86_400.0


def simulated(count: int, seed: int, leads_s: Sequence[float]) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Power [S, T], rating [S], what the daemon knows of the CPU at each tick [S, T], lead [S] s; unannounced work."""
    rng = np.random.default_rng(seed)
    power_w, rating_w, cpu, lead_s = (
        np.empty((count, TICKS)),
        np.empty(count),
        np.empty((count, TICKS)),
        np.empty(count),
    )
    for k in range(count):
        workload = random_workload(rng, str(rng.choice(["inference", "training", "batch", "ramped", "idle"])))
        lead_s[k] = leads_s[k % len(leads_s)]
        whole_w = simulate_power(workload, (TICKS + 40) * TICK_S, rng).power_w
        idle_w, busy_w = outlet_power(np.array([workload.idle_w, workload.busy_w]), workload.rating_w)
        busy = np.clip((whole_w - idle_w) / (busy_w - idle_w), 0.0, 1.0)
        power_w[k], rating_w[k] = whole_w[:TICKS], workload.rating_w
        cpu[k] = scraped(busy, round(lead_s[k] / TICK_S), int(rng.integers(SCRAPE_TICKS)), rng)
    return power_w, rating_w, cpu, lead_s


def scraped(busy: FloatArray, lead: int, phase: int, rng: np.random.Generator) -> FloatArray:
    """Means over the second before each scrape, held until the one after, as a scraper knows them."""
    known = np.empty(TICKS)
    share = 0.0
    for tick in range(TICKS):
        if tick % SCRAPE_TICKS == phase or tick == 0:
            end = tick + lead + 1
            mean = float(busy[max(0, end - SCRAPE_TICKS) : end].mean())
            share = float(np.clip(mean + rng.normal(0.0, SHARE_NOISE), 0.0, 1.0))
        known[tick] = share
    return known


class Examples(NamedTuple):
    """What the network sees at each tick, and the change to come, in scales, that it should say."""

    columns: Float32  # [S, T, F]
    targets: Float32  # [S, T, 2, 5], of the value and of the running maximum
    scale_w: Float32  # [S, T]

    def pick(self, rows: NDArray[np.bool_]) -> "Examples":
        return Examples(*(part[rows] for part in self))


def examples(power_w: FloatArray, rating_w: FloatArray, cpu: FloatArray, *, known: bool) -> Examples:
    """Every series through the daemon's own input stage, with the CPU known or masked."""
    count, length = len(power_w), TICKS - LOOKAHEAD
    columns = np.empty((count, length, N_COLUMNS), np.float32)
    scale_w = np.empty((count, length), np.float32)
    stream = InputStream(count)
    mask = np.zeros((count, len(TELEMETRY)))
    mask[:, 0] = known
    for tick in range(length):
        inputs = stream.step(
            ForecastInput(
                t_mono_ns=tick * TICK_NS,
                t_utc_s=0.0,
                power_w=power_w[:, tick],
                peak_w=np.full(count, np.nan),
                step_w=np.zeros(count),
                valid=np.ones(count, np.bool_),
                rating_w=rating_w,
                planned_w=np.zeros((count, len(HORIZONS_S))),
                telemetry=mask * cpu[:, tick, None],
                telemetry_mask=mask,
                interval_ticks=np.ones(count, np.int64),
            )
        )
        columns[:, tick], scale_w[:, tick] = inputs.columns, inputs.scale_w
    columns[:, :, COLUMNS.index("day_sin") : COLUMNS.index("week_cos") + 1] = 0.0
    ahead = np.stack([power_w[:, k : k + length] for k in range(1, LOOKAHEAD + 1)], axis=2)
    at = [round(h / TICK_S) - 1 for h in HORIZONS_S]
    coming = np.stack([ahead[:, :, at], np.maximum.accumulate(ahead, axis=2)[:, :, at]], axis=2)
    change = (coming - power_w[:, :length, None, None]) / scale_w[:, :, None, None]
    return Examples(columns, change.astype(np.float32), scale_w)


def train(data: Examples, updates: int, seed: int) -> tuple[lstm.Params, float]:
    """A network, and its mean loss over the last 100 updates. Each lane runs a series from a random place to its end."""
    rng = np.random.default_rng(seed)
    planned = slice(PLANNED, PLANNED + len(HORIZONS_S))
    params = lstm.initial(N_COLUMNS, HIDDEN, rng, planned=planned)
    params["W"][:, ~data.columns.any((0, 1))] = 0.0
    optimiser, losses = lstm.Adam(params), []
    count, length = data.scale_w.shape
    series, at = np.zeros(LANES, np.int64), np.full(LANES, length)
    h, c = np.zeros((2, LANES, HIDDEN), np.float32)
    for update in range(updates):
        ended = at + SPAN > length
        series[ended] = rng.integers(count, size=ended.sum())
        at[ended] = rng.integers(length - SPAN, size=ended.sum())
        h[ended] = c[ended] = 0.0
        ticks = at + np.arange(SPAN)[:, None]
        at += SPAN
        out, h, c, tape = lstm.forward(params, data.columns[series, ticks], h, c)
        shape = (SPAN, LANES, 2, len(HORIZONS_S), len(QUANTILES))
        loss, slope = lstm.pinball(out.reshape(shape), data.targets[series, ticks], QUANTILE_WEIGHT)
        rate = RATES[1] + 0.5 * (RATES[0] - RATES[1]) * (1.0 + np.cos(np.pi * update / updates))
        optimiser.step(lstm.backward(params, tape, slope.reshape(out.shape).astype(np.float32)), rate)
        losses.append(loss)
    return params, round(float(np.mean(losses[-100:])), 4)


def network_scores(updates: int, seed: int, count: int, leads_s: Sequence[float]) -> list[dict[str, Any]]:
    """The same network on the same series, with the CPU known and masked; MAE and pinball on series held back."""
    power_w, rating_w, cpu, lead_s = simulated(count, seed, leads_s)
    held = np.arange(count) >= round((1.0 - HELD_BACK) * count)
    errors: dict[bool, NDArray[np.float64]] = {}
    for known in (False, True):
        data = examples(power_w, rating_w, cpu, known=known)
        params, loss = train(data.pick(~held), updates, seed)
        click.echo(f"  CPU {'known' if known else 'masked'}: loss {loss} after {updates} updates")
        errors[known] = network_errors(params, data.pick(held))
    wanted = data.targets[held][:, FIRST:, 0, -1] * data.scale_w[held][:, FIRST:]
    persistence = np.abs(wanted).mean(1)
    rows = []
    for lead in leads_s:
        of = lead_s[held] == lead
        masked, with_cpu = (errors[known][:, of] / persistence[of] for known in (False, True))
        rows.append({"lead_s": lead, "series": int(of.sum()), "mae_without": geometric(masked[0]),
                     "mae_with": geometric(with_cpu[0]), "mae_ratio": geometric(with_cpu[0] / masked[0]),
                     "pinball_99_max_ratio": geometric(with_cpu[1] / masked[1])})  # fmt: skip
    return rows


def network_errors(params: lstm.Params, data: Examples) -> NDArray[np.float64]:
    """MAE of the median at 5 s and pinball (0.99) of the running maximum, W, [2, series]."""
    seen = np.ascontiguousarray(data.columns.transpose(1, 0, 2))
    state = np.zeros((seen.shape[1], HIDDEN), np.float32)
    out, _, _, _ = lstm.forward(params, seen, state, state.copy())
    made = out.reshape(len(seen), -1, 2, len(HORIZONS_S), len(QUANTILES)).transpose(1, 0, 2, 3, 4)[:, FIRST:]
    scale_w, wanted = data.scale_w[:, FIRST:], data.targets[:, FIRST:]
    value = np.abs(wanted[:, :, 0, -1] - made[:, :, 0, -1, 0]) * scale_w
    miss = (wanted[:, :, 1, -1] - made[:, :, 1, -1, -1]) * scale_w
    pinball = np.maximum(QUANTILES[-1] * miss, (QUANTILES[-1] - 1.0) * miss)
    return np.array([value.mean(1), pinball.mean(1)], np.float64)


def geometric(ratios: NDArray[Any]) -> float:
    return round(float(np.exp(np.mean(np.log(np.maximum(ratios, 1e-9))))), 3)


def ridge_scores(count: int, seed: int, leads_s: Sequence[float]) -> list[dict[str, Any]]:
    """The ridge expert's four inputs, with the CPU's distance from its mean and its last change beside them.

    Fitted on the first half of each series, scored on the second, by its mean absolute error at 5 s.
    """
    power_w, _, cpu, lead_s = simulated(count, seed, leads_s)
    ratios: dict[float, list[float]] = defaultdict(list)
    for k in range(count):
        plain = power_inputs(power_w[k])
        earlier = np.concatenate([np.full(20, cpu[k, 0]), cpu[k, :-20]])
        both = np.column_stack([plain, cpu[k] - decayed(cpu[k], 300.0), cpu[k] - earlier])
        without, with_cpu = (half_error(inputs, power_w[k], 50) for inputs in (plain, both))
        ratios[float(lead_s[k])].append(with_cpu / without)
    return [{"lead_s": lead, "series": len(r), "mae_ratio": geometric(np.array(r))} for lead, r in ratios.items()]


def power_inputs(power_w: FloatArray, per_s: float = 10.0) -> FloatArray:
    """What a ridge regression on recent readings looks at."""
    means = [power_w - decayed(power_w, tau_s * per_s) for tau_s in (1.0, 5.0, 30.0)]
    back = max(1, round(per_s))
    return np.column_stack([*means, power_w - np.concatenate([np.full(back, power_w[0]), power_w[:-back]])])


def decayed(values: FloatArray, tau: float) -> FloatArray:
    """Exponential mean, samples."""
    out, mean = np.empty_like(values), float(values[0])
    for i, value in enumerate(values.tolist()):
        mean += (value - mean) / max(tau, 1.0)
        out[i] = mean
    return out


def half_error(inputs: FloatArray, power_w: FloatArray, ahead: int) -> float:
    middle = len(power_w) // 2
    weights = fit(inputs[: middle - ahead], power_w[ahead:middle] - power_w[: middle - ahead])
    return error(weights, inputs[middle:-ahead], power_w[middle + ahead :] - power_w[middle:-ahead])


def fit(inputs: FloatArray, change_w: FloatArray) -> FloatArray:
    """Ridge regression on inputs of unit size."""
    size = np.maximum(inputs.std(0), 1e-9)
    scaled = inputs / size
    gram = scaled.T @ scaled + 0.01 * len(scaled) * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(gram, scaled.T @ change_w) / size)


def error(weights: FloatArray, inputs: FloatArray, change_w: FloatArray) -> float:
    return float(np.abs(change_w - inputs @ weights).mean())


def day_scores(traces: Path) -> list[dict[str, Any]]:
    """Plugs that were recorded on two days: fitted on the first, scored on the second, with and without the time of day."""
    days: dict[str, list[Path]] = defaultdict(list)
    with (traces / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["group"] == "tracebase_plugs_1hz":
                days[row["file"].split("__")[1].split("_20")[0]].append(traces / row["file"])
    rows = []
    for device, files in sorted(days.items()):
        if len(files) < 2:
            continue
        first, second = (day(path) for path in sorted(files)[:2])
        plain, timed = ([part(*d) for d in (first, second)] for part in (without_time, with_time))
        found = [
            error(fit(fitted[:-5], change(first)), scored[:-5], change(second)) for fitted, scored in (plain, timed)
        ]
        persistence = float(np.abs(change(second)).mean())
        rows.append({"device": device, "mae_w_persistence": round(persistence, 3), "mae_w_without": round(found[0], 3),
                     "mae_w_with": round(found[1], 3), "mae_ratio": round(found[1] / found[0], 3)})  # fmt: skip
    return rows


def day(path: Path) -> tuple[FloatArray, FloatArray]:
    """Seconds of the day, and power, once a second."""
    trace = read_trace(path)
    t_s = np.arange(0.0, trace.duration_s)
    return t_s, np.asarray(trace.power_w[np.searchsorted(trace.t_s - trace.t_s[0], t_s, "right") - 1], np.float64)


def change(of: tuple[FloatArray, FloatArray]) -> FloatArray:
    return np.asarray(of[1][5:] - of[1][:-5])


def without_time(t_s: FloatArray, power_w: FloatArray) -> FloatArray:
    return np.column_stack([power_inputs(power_w, 1.0), np.ones(len(power_w))])


def with_time(t_s: FloatArray, power_w: FloatArray) -> FloatArray:
    """The day's and the half day's sine and cosine beside it, alone and times the distance from the 30 s mean."""
    turns = [np.sin(2 * np.pi * k * t_s / DAY_S + shift) for k in (1, 2) for shift in (0.0, np.pi / 2)]
    plain = without_time(t_s, power_w)
    return np.column_stack([plain, *turns, *(plain[:, 2] * turn for turn in turns)])


@click.command()
@click.option(
    "--traces", type=click.Path(path_type=Path, exists=True), help="Directory with index.csv, for the time of day."
)
@click.option(
    "--lead", "leads_s", multiple=True, type=float, default=LEADS_S, show_default=True, help="s; may be repeated."
)
@click.option("--series", default=240, show_default=True, help="Simulated series.")
@click.option("--updates", default=900, show_default=True, help="Of each of the two networks.")
@click.option("--seed", default=1, show_default=True)
def main(traces: Path | None, leads_s: tuple[float, ...], series: int, updates: int, seed: int) -> None:
    """Print three tables: ratios below 1 are in favour of the inputs in question."""
    click.echo("Ridge regression, CPU known / not:")
    for row in ridge_scores(series, seed, leads_s):
        click.echo(f"  {row}")
    if traces is not None:
        click.echo("Ridge regression on plugs, time of day known / not:")
        for row in day_scores(traces):
            click.echo(f"  {row}")
    click.echo("Network, CPU known / masked (MAE as a part of persistence's):")
    for row in network_scores(updates, seed, series, leads_s):
        click.echo(f"  {row}")


if __name__ == "__main__":
    main()
