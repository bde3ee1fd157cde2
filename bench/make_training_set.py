"""Make the training set of the shipped model: simulated workloads and the public traces marked `use=train`."""

import csv
import zlib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from rpi_daemon.drivers.sensors.plant import PowerSeries, demo_rack, random_workload, simulate_power
from rpi_daemon.drivers.sensors.traces import Trace, read_trace
from rpi_daemon.errors import TraceError
from rpi_daemon.models.dataset import SeriesSet, write_series
from rpi_daemon.records import TICK_S, FloatArray

TICKS = 4050  # 400 s to learn from, 5 s to look ahead
HELD_BACK = 0.12  # share of a group's recordings kept for scores
SHAPES = {"inference": 0.28, "training": 0.2, "batch": 0.2, "ramped": 0.14, "boot_storm": 0.08, "idle": 0.1}
GROUP_SHARE = {
    "mlperf_inference_servers_1hz": 0.4,
    "mlperf_train_h100_nodes": 0.18,
    "mlperf_train_gpt3_h100_nodes": 0.12,
    "mlperf_train_b200_nodes": 0.14,
    "tracebase_plugs_1hz": 0.16,
}


def simulated(count: int, rng: np.random.Generator) -> Iterator[tuple[FloatArray, FloatArray, float]]:
    """Power, announced sum, rating of random servers; a third of them as in the demo's mix."""
    demo = demo_rack(count // 3, int(rng.integers(1 << 31)))
    shapes, shares = list(SHAPES), np.array(list(SHAPES.values()))
    for k in range(count):
        workload = demo[k] if k < len(demo) else random_workload(rng, str(rng.choice(shapes, p=shares)))
        series = simulate_power(workload, (TICKS + 1) * TICK_S, rng)
        # A window's weights reach over two ticks.
        power_w = 0.5 * (series.power_w[1:] + series.power_w[:-1])
        yield measured(power_w, workload.rating_w, rng), announced(series), workload.rating_w


def announced(series: PowerSeries) -> FloatArray:
    """Running sum of announced changes at each tick."""
    total_w = np.concatenate([[0.0], np.cumsum([p.delta_w for p in series.plan])])
    at = np.searchsorted(np.array([p.t_s for p in series.plan]), np.arange(1, TICKS + 1) * TICK_S, "right")
    return np.asarray(total_w[at], np.float64)


def measured(power_w: FloatArray, rating_w: float, rng: np.random.Generator) -> FloatArray:
    """With the meter's own noise, up to 0.2 % of the rating."""
    return np.maximum(power_w + rng.normal(0.0, rng.uniform(0.0, 0.002) * rating_w, len(power_w)), 0.0)


def recorded(trace: Trace, other: Trace, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, float]:
    """A piece of a recording at 100 ms, augmented: spliced, sped up, noisy; some of its steps announced."""
    seconds = TICKS * TICK_S
    if rng.random() < 0.25:
        cut = int(rng.integers(TICKS // 4, 3 * TICKS // 4))
        level = other.power_w.mean() / max(float(trace.power_w.mean()), 1.0)
        parts = [upsampled(trace, seconds, rng)[:cut], upsampled(other, seconds, rng)[cut:] / max(level, 1e-3)]
        power_w = np.concatenate(parts)
    else:
        power_w = upsampled(trace, seconds, rng)
    rating_w = float(power_w.max()) * rng.uniform(1.1, 2.5) + 1.0
    sums_w = np.zeros(TICKS)
    if rng.random() < 0.25:
        sums_w = announced_steps(power_w, 0.05 * rating_w, rng)
    if rng.random() < 0.8:
        power_w = power_w * (1.0 + rng.uniform(0.0, 0.01) * correlated(TICKS, rng))
    return measured(power_w, rating_w, rng), sums_w, rating_w


def upsampled(trace: Trace, seconds: float, rng: np.random.Generator) -> FloatArray:
    """Between two samples the change comes at a random moment and takes a random part of the step.

    A plain hold would teach stairs at fixed times, a plain line would teach that every slope goes on to the next
    sample. One piece in seven is held all the same, as slow meters do, so that it is not met for the first time live.
    """
    speed = rng.choice([1.0, 1.0, 2.0, 4.0])  # a slow meter's dynamics also as those of a faster load
    span = min(seconds * speed, trace.duration_s)
    start = rng.uniform(0.0, max(trace.duration_s - span, 1e-9))
    first = int(np.searchsorted(trace.t_s, start))
    t_s = (trace.t_s[first:] - trace.t_s[first]) / speed
    watts = trace.power_w[first:]
    if t_s[-1] < seconds + TICK_S:  # go round
        turns = int(np.ceil(seconds / max(trace.duration_s / speed, 1.0))) + 1
        period = trace.duration_s / speed
        t_s = np.concatenate(
            [t_s, *(t_s[-1] + trace.step_s / speed + k * period + trace.t_s / speed for k in range(turns))]
        )
        watts = np.concatenate([watts, *([trace.power_w] * turns)])
    keep = t_s < seconds + 10.0
    t_s, watts = t_s[keep], watts[keep]
    ticks = np.arange(TICKS) * TICK_S
    if rng.random() < 1 / 7:
        return np.asarray(watts[np.searchsorted(t_s, ticks, "right") - 1], np.float64)
    step = np.diff(t_s)
    begin = rng.uniform(0.0, 0.6, len(step))
    end = begin + rng.uniform(0.2, 1.0, len(step)) * (1.0 - begin)
    knots = np.column_stack([t_s[:-1] + begin * step, t_s[:-1] + end * step]).ravel()
    return np.asarray(np.interp(ticks, knots, np.repeat(watts, 2)[1:-1]), np.float64)


def announced_steps(power_w: FloatArray, least_w: float, rng: np.random.Generator) -> FloatArray:
    """Announce the larger changes of a recording, a little wrong in time and size; running sum at each tick."""
    sums_w = np.zeros(len(power_w))
    ahead = 20
    tick = 0
    while tick + ahead < len(power_w):
        change = power_w[tick + ahead] - power_w[tick]
        if abs(change) < least_w:
            tick += 5
            continue
        at = tick + int(np.argmax(np.abs(power_w[tick : tick + ahead] - power_w[tick]) > 0.1 * abs(change)))
        at = int(np.clip(at + round(rng.normal(0.0, 1.5)), 0, len(power_w) - 1))
        sums_w[at:] += change * (1.0 + rng.normal(0.0, 0.06))
        tick += ahead
    return sums_w


def correlated(n: int, rng: np.random.Generator) -> FloatArray:
    """Noise of unit size with a memory of 0.1 to 1 s."""
    kernel = np.exp(-np.arange(30) / rng.uniform(1.0, 10.0))
    return np.asarray(
        np.convolve(rng.standard_normal(n + 29), kernel / np.sqrt(np.sum(kernel**2)), "valid"), np.float64
    )


def held_back(names: list[str]) -> NDArray[np.bool_]:
    """Which recordings are kept for scores: chosen by name, so that every set, also of another seed, keeps the same."""
    by_hash = np.argsort([zlib.crc32(name.encode()) for name in names])
    kept = np.zeros(len(names), np.bool_)
    kept[by_hash[: max(1, round(HELD_BACK * len(names)))]] = True
    return kept


def traces_of(directory: Path) -> dict[str, list[tuple[Trace, str]]]:
    """Recordings that may be trained on, by group, with their licence."""
    groups: dict[str, list[tuple[Trace, str]]] = {}
    with (directory / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["use"] != "train":
                continue
            try:
                trace = read_trace(directory / row["file"])
            except TraceError as error:
                click.echo(f"left out: {error}", err=True)
                continue
            groups.setdefault(row["group"], []).append((trace, row["licence"]))
    return groups


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NPZ file to write.")
@click.option("--traces", type=click.Path(path_type=Path, exists=True), help="Directory with index.csv.")
@click.option("--simulated", "n_simulated", default=420, show_default=True, help="Simulated series.")
@click.option("--recorded", "n_recorded", default=360, show_default=True, help="Pieces of recordings.")
@click.option("--seed", default=1, show_default=True)
def main(out: Path, traces: Path | None, n_simulated: int, n_recorded: int, seed: int) -> None:
    """Write a training set."""
    rng = np.random.default_rng(seed)
    rows = list(simulated(n_simulated, rng))
    source = [0] * len(rows)
    held: list[bool] = list(rng.random(len(rows)) < HELD_BACK)
    sources = [{"name": "simulated workloads", "licence": "MIT", "origin": "rpi_daemon.drivers.sensors.plant",
                "series": len(rows), "hours": round(len(rows) * TICKS * TICK_S / 3600, 1)}]  # fmt: skip
    for group, members in (traces_of(traces) if traces else {}).items():
        for_scores = held_back([trace.name for trace, _ in members])
        count = round(GROUP_SHARE.get(group, 0.1) * n_recorded)
        for _ in range(count):
            hold = bool(rng.random() < HELD_BACK)
            choice = np.flatnonzero(for_scores == hold)
            first, second = members[rng.choice(choice)][0], members[rng.choice(choice)][0]
            rows.append(recorded(first, second, rng))
            source.append(len(sources))
            held.append(hold)
        licence = ", ".join(sorted({licence for _, licence in members}))
        hours = round(sum(t.duration_s for t, _ in members) / 3600, 1)
        sources.append({"name": group, "licence": licence, "origin": "public power traces, see the traces' index.csv",
                        "series": len(members), "hours": hours})  # fmt: skip
    power_w, sums_w, rating_w = zip(*rows, strict=True)
    series = SeriesSet(
        np.array(power_w, np.float32),
        np.array(sums_w, np.float32),
        np.array(rating_w),
        np.array(source),
        np.array(held),
        tuple(sources),
    )
    write_series(out, series)
    click.echo(f"{len(rows)} series of {TICKS * TICK_S:.0f} s, {sum(held)} held back -> {out}")


if __name__ == "__main__":
    main()
