"""Make the training set of the shipped model: simulated workloads and the public traces marked `use=train`."""

import csv
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from random_loads import random_load

from rpi_daemon.drivers.sensors.plant import PowerSeries, Workload, demo_rack, random_workload, simulate_power
from rpi_daemon.drivers.sensors.traces import Trace, read_trace
from rpi_daemon.errors import TraceError
from rpi_daemon.models.dataset import Row, SeriesSet, write_series
from rpi_daemon.records import TICK_S, FloatArray

TICKS = 3050  # of a series at 100 ms: 300 s to learn from, 5 s to look ahead
READINGS = 1024  # of a series of a slow meter, at most
LEAST_READINGS = 60
HELD_BACK = 0.12  # share of a group's recordings kept for scores
SHAPES = {"inference": 0.28, "training": 0.2, "batch": 0.2, "ramped": 0.14, "boot_storm": 0.08, "idle": 0.1}
METER_TICKS = (10, 10, 20, 20, 30, 50)  # how often simulated servers are read by slow meters
GAP_STEPS = 3.0  # a recording with a longer gap is two recordings
# How much of the training each part gets; the recordings' parts are divided by the groups, the groups' by their series.
SHARE = {
    "simulated": 0.16,
    "simulated, read slowly": 0.06,
    "random": 0.05,
    "random, read slowly": 0.12,
    "recorded": 0.42,
    "recorded, at 100 ms": 0.15,
    "small": 0.04,
}
SCORED = 16  # series of each kind and group for scores


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording without gaps, on its own grid of `step_s`."""

    name: str
    power_w: FloatArray
    step_s: float
    licence: str


# --- simulated ---


def simulated(count: int, rng: np.random.Generator) -> Iterator[Row]:
    """Random servers with a reading per tick; a third of them as in the demo's mix."""
    demo = demo_rack(count // 3, int(rng.integers(1 << 31)))
    for k in range(count):
        workload = demo[k] if k < len(demo) else random_server(rng)
        series = simulate_power(workload, (TICKS + 1) * TICK_S, rng)
        # A window's weights reach over two ticks.
        power_w = 0.5 * (series.power_w[1:] + series.power_w[:-1])
        yield Row(measured(power_w, workload.rating_w, rng), announced(series)[1:], workload.rating_w)


def simulated_slow(count: int, rng: np.random.Generator) -> Iterator[Row]:
    """The same as a PDU's own metering shows them: the mean of the last second, every few seconds."""
    for _ in range(count):
        workload, interval = random_server(rng), int(rng.choice(METER_TICKS))
        series = simulate_power(workload, (READINGS + 1) * interval * TICK_S, rng)
        seconds = np.convolve(series.power_w, np.ones(10) / 10.0, "valid")[interval - 10 :: interval][:READINGS]
        sums_w = announced(series)[interval - 1 :: interval][: len(seconds)]
        yield Row(measured(seconds, workload.rating_w, rng), sums_w, workload.rating_w, interval)


def random_server(rng: np.random.Generator) -> Workload:
    """A server with any of the shapes."""
    return random_workload(rng, str(rng.choice(list(SHAPES), p=list(SHAPES.values()))))


def announced(series: PowerSeries) -> FloatArray:
    """Running sum of announced changes at each tick."""
    total_w = np.concatenate([[0.0], np.cumsum([p.delta_w for p in series.plan])])
    ticks = np.arange(len(series.power_w)) * TICK_S
    return np.asarray(total_w[np.searchsorted([p.t_s for p in series.plan], ticks, "right")], np.float64)


def measured(power_w: FloatArray, rating_w: float, rng: np.random.Generator) -> FloatArray:
    """With the meter's own noise, up to 0.2 % of the rating; a third of the meters tells whole watts."""
    power_w = np.maximum(power_w + rng.normal(0.0, rng.uniform(0.0, 0.002) * rating_w, len(power_w)), 0.0)
    return np.round(power_w) if rng.random() < 1 / 3 else power_w


def small(count: int, interval_ticks: Sequence[int], rng: np.random.Generator) -> Iterator[Row]:
    """Outlets that draw nothing, or little and flat, for what they are rated at; some are switched on or off once."""
    for _ in range(count):
        rating_w = float(np.exp(rng.uniform(np.log(200.0), np.log(8000.0))))
        interval = int(rng.choice(interval_ticks))
        n = TICKS if interval == 1 else READINGS // 4
        level_w = rating_w * (0.0 if rng.random() < 0.4 else rng.uniform(0.0, 0.25))
        power_w = np.full(n, level_w) * (1.0 + rng.uniform(0.0, 0.004) * correlated(n, rng))
        if rng.random() < 0.3:
            power_w[int(rng.integers(n // 4, n)) :] += rating_w * rng.uniform(-0.2, 0.5)
        sums_w = np.zeros(n)
        yield Row(measured(np.maximum(power_w, 0.0), 0.2 * rating_w, rng), sums_w, rating_w, interval)


def correlated(n: int, rng: np.random.Generator) -> FloatArray:
    """Noise of unit size with a memory of 1 to 10 readings."""
    kernel = np.exp(-np.arange(30) / rng.uniform(1.0, 10.0))
    return np.asarray(
        np.convolve(rng.standard_normal(n + 29), kernel / np.sqrt(np.sum(kernel**2)), "valid"), np.float64
    )


def random(count: int, rng: np.random.Generator) -> Iterator[Row]:
    """Signals of any kind, a reading per tick."""
    for _ in range(count):
        power_w = float(np.exp(rng.uniform(np.log(50.0), np.log(8000.0)))) * random_load(TICKS, 10.0, rng)
        yield varied(power_w, 1, rng)


def random_slow(count: int, rng: np.random.Generator) -> Iterator[Row]:
    """The same as a slow meter reads them."""
    for _ in range(count):
        power_w = float(np.exp(rng.uniform(np.log(50.0), np.log(8000.0)))) * random_load(READINGS, 1.0, rng)
        yield varied(power_w, int(rng.choice(METER_TICKS)), rng)


# --- recorded ---


def native(recording: Recording, other: Recording, rng: np.random.Generator) -> Row:
    """A piece as a slow meter reads it: every sample, or each second or third; or the load twice as fast or slow."""
    speed, every = rng.choice([0.5, 1.0, 1.0, 1.0, 2.0]), int(rng.choice([1, 1, 1, 2, 3]))
    if len(recording.power_w) < 4 * LEAST_READINGS * every:
        every = 1
    power_w = piece(recording, READINGS * every, rng)[::every]
    if rng.random() < 0.2:
        cut = int(rng.integers(len(power_w) // 4, 3 * len(power_w) // 4))
        power_w = spliced(power_w[:cut], piece(other, READINGS * every, rng)[::every])[:READINGS]
    interval = max(2, round(recording.step_s * every / speed / TICK_S))
    return varied(power_w, interval, rng)


def at_100_ms(recording: Recording, other: Recording, rng: np.random.Generator) -> Row:
    """A piece with a reading per tick, as a board would have measured it."""
    power_w = upsampled(recording, rng)
    if rng.random() < 0.2:
        power_w = spliced(power_w[: int(rng.integers(TICKS // 4, 3 * TICKS // 4))], upsampled(other, rng))[:TICKS]
    return varied(power_w, 1, rng)


def unchanged(recording: Recording, _: Recording, rng: np.random.Generator) -> Row:
    """A piece as it was recorded, for scores."""
    power_w = piece(recording, READINGS, rng)
    rating_w = 1.25 * float(power_w.max()) + 1.0
    return Row(power_w, np.zeros(len(power_w)), rating_w, round(recording.step_s / TICK_S), held_back=True)


def piece(recording: Recording, count: int, rng: np.random.Generator) -> FloatArray:
    """So many readings from a random place, or all there are."""
    start = int(rng.integers(0, max(1, len(recording.power_w) - count + 1)))
    return recording.power_w[start : start + count]


def spliced(first_w: FloatArray, then_w: FloatArray) -> FloatArray:
    """One load after another, brought to the same mean."""
    return np.concatenate([first_w, then_w * first_w.mean() / max(float(then_w.mean()), 1.0)])


def varied(power_w: FloatArray, interval_ticks: int, rng: np.random.Generator) -> Row:
    """Another idle draw, noise, another rating; some of the steps announced."""
    highest_w = max(float(power_w.max()), 1.0)
    if rng.random() < 0.3:
        power_w = np.maximum(power_w + rng.uniform(-float(power_w.min()), highest_w), 0.0)
        highest_w = max(float(power_w.max()), 1.0)
    rating_w = highest_w * float(np.exp(rng.uniform(np.log(1.05), np.log(4.0)))) + 1.0
    if rng.random() < 0.1:
        rating_w *= rng.uniform(1.0, 5.0)
    sums_w = np.zeros(len(power_w))
    if rng.random() < 0.25:
        sums_w = announced_steps(power_w, 0.05 * highest_w, max(1, 20 // interval_ticks), rng)
    if rng.random() < 0.6:
        power_w = power_w * (1.0 + rng.uniform(0.0, 0.01) * correlated(len(power_w), rng))
    return Row(measured(power_w, min(rating_w, 2.0 * highest_w), rng), sums_w, rating_w, interval_ticks)


def upsampled(recording: Recording, rng: np.random.Generator) -> FloatArray:
    """Between two samples the change comes at a random moment and takes a random part of the step.

    A plain hold would teach stairs at fixed times, a plain line that every slope goes on to the next sample.
    """
    step_s = recording.step_s / rng.choice([1.0, 1.0, 2.0, 4.0])  # also as the dynamics of a faster load
    needed = int(np.ceil(TICKS * TICK_S / step_s)) + 2
    watts = piece(recording, needed, rng)
    watts = np.tile(watts, -(-needed // len(watts)))[:needed]
    t_s = step_s * np.arange(needed)
    begin = rng.uniform(0.0, 0.6, needed - 1)
    end = begin + rng.uniform(0.2, 1.0, needed - 1) * (1.0 - begin)
    knots = np.column_stack([t_s[:-1] + begin * step_s, t_s[:-1] + end * step_s]).ravel()
    return np.asarray(np.interp(np.arange(TICKS) * TICK_S, knots, np.repeat(watts, 2)[1:-1]), np.float64)


def announced_steps(power_w: FloatArray, least_w: float, ahead: int, rng: np.random.Generator) -> FloatArray:
    """Announce the larger changes of a recording, a little wrong in time and size; running sum at each reading."""
    sums_w = np.zeros(len(power_w))
    k = 0
    while k + ahead < len(power_w):
        change = power_w[k + ahead] - power_w[k]
        if abs(change) < least_w:
            k += max(1, ahead // 4)
            continue
        at = k + int(np.argmax(np.abs(power_w[k : k + ahead + 1] - power_w[k]) > 0.1 * abs(change)))
        at = int(np.clip(at + round(rng.normal(0.0, 0.07 * ahead)), 0, len(power_w) - 1))
        sums_w[at:] += change * (1.0 + rng.normal(0.0, 0.06))
        k += ahead
    return sums_w


# --- the set ---


def held_back(names: Iterable[str], count: int | None = None) -> set[str]:
    """Recordings kept for scores: chosen by name, so that every set, also of another seed, keeps the same."""
    by_hash = sorted(set(names), key=lambda name: zlib.crc32(name.encode()))
    return set(by_hash[: count or max(1, round(HELD_BACK * len(by_hash)))])


def recordings(directory: Path) -> dict[str, list[Recording]]:
    """What may be trained on, by group."""
    groups: dict[str, list[Recording]] = {}
    with (directory / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["use"] != "train":
                continue
            try:
                trace = read_trace(directory / row["file"])
            except TraceError as error:
                click.echo(f"left out: {error}", err=True)
                continue
            groups.setdefault(row["group"], []).extend(without_gaps(trace, row["licence"]))
    return groups


def without_gaps(trace: Trace, licence: str) -> Iterator[Recording]:
    """The stretches of a recording between its gaps, each on a grid of its step; short ones are left out."""
    step_s = max(TICK_S, round(trace.step_s, 1))
    breaks = np.flatnonzero(np.diff(trace.t_s) > GAP_STEPS * trace.step_s) + 1
    for t_s, watts in zip(np.split(trace.t_s, breaks), np.split(trace.power_w, breaks), strict=True):
        grid = np.arange(t_s[0], t_s[-1] + 0.5 * trace.step_s, trace.step_s)
        if len(grid) >= LEAST_READINGS:
            newest = np.searchsorted(t_s, grid + 1e-6, "right") - 1
            yield Recording(trace.name, watts[newest], step_s, licence)


Maker = Callable[[Recording, Recording, np.random.Generator], Row]


def made(make: Maker, members: Sequence[Recording], count: int, rng: np.random.Generator) -> list[Row]:
    """So many rows, from any members."""
    first, second = rng.integers(0, len(members), (2, count))
    return [make(members[a], members[b], rng) for a, b in zip(first, second, strict=True)]


def weighed(rows: Sequence[Row], share: float, source: int, *, hold: bool = False) -> list[Row]:
    """These rows together get `share` of the training."""
    return [replace(row, weight=share / max(1, len(rows)), source=source, held_back=hold) for row in rows]


def training_set(
    groups: Mapping[str, Sequence[Recording]], simulations: int, pieces: int, rng: np.random.Generator
) -> SeriesSet:
    """Simulated servers, random loads, and `pieces` of each group of recordings at their own rate (a third as many at 100 ms)."""
    origin = {"licence": "MIT", "origin": "rpi_daemon.drivers.sensors.plant"}
    simulated_rows = [*simulated(simulations, rng)]
    slow_rows = [*simulated_slow(simulations // 3, rng)]
    small_rows = [*small(simulations // 6, (1, 10, 20, 20, 50), rng)]
    random_rows, random_slow_rows = [*random(simulations // 3, rng)], [*random_slow(simulations, rng)]
    rows = weighed(simulated_rows, SHARE["simulated"], 0)
    rows += weighed(slow_rows, SHARE["simulated, read slowly"], 0)
    rows += weighed([*simulated(2 * SCORED, rng), *simulated_slow(SCORED, rng)], 0.0, 0, hold=True)
    rows += weighed(small_rows, SHARE["small"], 1)
    rows += weighed(random_rows, SHARE["random"], 2) + weighed(random_slow_rows, SHARE["random, read slowly"], 2)
    rows += weighed([*random(SCORED, rng), *random_slow(SCORED, rng)], 0.0, 2, hold=True)
    rows += weighed([*small(SCORED, (1, 10, 20), rng)], 0.0, 1, hold=True)
    sources: list[dict[str, Any]] = [
        {"name": "simulated workloads", **origin, "series": len(simulated_rows) + len(slow_rows),
         "hours": hours(simulated_rows) + hours(slow_rows)},
        {"name": "small loads", **origin, "series": len(small_rows), "hours": hours(small_rows)},
        {"name": "random loads", "licence": "MIT", "origin": "bench/random_loads.py",
         "series": len(random_rows) + len(random_slow_rows), "hours": hours(random_rows) + hours(random_slow_rows)},
    ]  # fmt: skip
    for group, members in groups.items():
        kept = held_back(r.name for r in members)
        learn, score = [r for r in members if r.name not in kept], [r for r in members if r.name in kept]
        source = len(sources)
        for make, share, count in (
            (native, SHARE["recorded"], pieces),
            (at_100_ms, SHARE["recorded, at 100 ms"], pieces // 3),
        ):
            rows += weighed(made(make, learn, count, rng), share / len(groups), source)
        rows += weighed(made(unchanged, score, SCORED, rng), 0.0, source, hold=True)
        sources.append(
            {"name": group, "licence": ", ".join(sorted({r.licence for r in members})),
             "origin": "public power traces, see the traces' index.csv", "series": len({r.name for r in members}),
             "hours": round(sum(len(r.power_w) * r.step_s for r in members) / 3600, 1)}
        )  # fmt: skip
    return SeriesSet.of(rows, sources)


def hours(rows: Sequence[Row]) -> float:
    """How long these series are together."""
    return round(sum(len(r.power_w) * r.interval_ticks for r in rows) * TICK_S / 3600, 1)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NPZ file to write.")
@click.option("--traces", type=click.Path(path_type=Path, exists=True), help="Directory with index.csv.")
@click.option("--without", multiple=True, help="Group of recordings to leave out; may be given again.")
@click.option("--simulated", "n_simulated", default=600, show_default=True, help="Simulated series at 100 ms.")
@click.option("--recorded", "n_recorded", default=240, show_default=True, help="Pieces of each group of recordings.")
@click.option("--seed", default=1, show_default=True)
def main(
    out: Path, traces: Path | None, without: tuple[str, ...], n_simulated: int, n_recorded: int, seed: int
) -> None:
    """Write a training set."""
    groups = recordings(traces) if traces else {}
    for name in without:
        if name not in groups:
            raise click.UsageError(f"--without {name}: no such group; there are {', '.join(sorted(groups)) or 'none'}")
        del groups[name]
    series = training_set(groups, n_simulated, n_recorded, np.random.default_rng(seed))
    write_series(out, series)
    click.echo(
        f"{len(series)} series, {len(series.power_w)} readings, {int(series.held_back.sum())} series held back -> {out}"
    )


if __name__ == "__main__":
    main()
