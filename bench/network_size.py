"""One row of docs/decisions/network-size.md: train without some groups of recordings, and judge on exactly those."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from make_training_set import TICKS, Recording, held_back, recordings, training_set, unchanged

from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import Row, SeriesSet, examples
from rpi_daemon.models.inputs import COLUMNS
from rpi_daemon.models.manifest import load_model, write_model
from rpi_daemon.models.train import Settings, canary, emphasis, score, train

JUDGED = 24  # recordings of each group, chosen by name
SEED = 1


def unseen(groups: dict[str, list[Recording]]) -> SeriesSet:
    """Up to 1024 readings of some recordings of each group, as they were recorded."""
    rng = np.random.default_rng(SEED)
    rows: list[Row] = []
    sources = []
    for source, (name, members) in enumerate(groups.items()):
        by_hash = held_back([r.name for r in members], JUDGED)
        chosen = {r.name: r for r in members if r.name in by_hash}
        rows += [dataclasses.replace(unchanged(r, r, rng), source=source) for r in chosen.values()]
        sources.append({"name": name})
    return SeriesSet.of(rows, sources)


def as_stairs(series: SeriesSet, most: int) -> SeriesSet:
    """What slow meters read, held from tick to tick as if a board had measured it; up to so many ticks of each series."""
    rows = [series.row(k) for k in range(len(series))]
    return SeriesSet.of(
        [
            dataclasses.replace(
                row,
                power_w=np.repeat(row.power_w, row.interval_ticks)[:most],
                announced_w=np.repeat(row.announced_w, row.interval_ticks)[:most],
                interval_ticks=1,
            )
            for row in rows
        ],
        series.sources,
    )


@click.command()
@click.option("--traces", type=click.Path(path_type=Path, exists=True), required=True, help="Directory with index.csv.")
@click.option("--without", multiple=True, required=True, help="Group to leave out and judge on; may be given again.")
@click.option("--set", "options", multiple=True, help="Setting of training, as in hidden=64.")
@click.option("--hide", multiple=True, help="Beginning of the names of columns that are left empty.")
@click.option("--stairs", is_flag=True, help="Slow meters are held and stepped at every tick, and judged so.")
@click.option("--keep", type=click.Path(path_type=Path), help="Model directory to write.")
def main(
    traces: Path,
    without: tuple[str, ...],
    options: tuple[str, ...],
    hide: tuple[str, ...],
    stairs: bool,
    keep: Path | None,
) -> None:
    """Print one JSON line: settings, and for each group ours / theirs."""
    groups = recordings(traces)
    judged = unseen({name: groups.pop(name) for name in without})
    settings = Settings(updates=2000)
    kinds = {field.name: type(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    chosen = dict(option.split("=") for option in options)
    settings = dataclasses.replace(settings, **{key: kinds[key](value) for key, value in chosen.items()})
    series = training_set(groups, 600, 240, np.random.default_rng(SEED))
    learn = series.pick(~series.held_back)
    if stairs:
        learn, judged = as_stairs(learn, TICKS), as_stairs(judged, 10 * TICKS)
    data = examples(learn)
    data.columns[:, [name.startswith(hide) for name in COLUMNS] if hide else []] = 0.0
    began = time.monotonic()
    counts = emphasis(data, learn.source, settings.emphasis)
    params, record = train(data, learn.weight[data.kept], settings, lambda _: None, counts=counts)
    row: dict[str, object] = {
        **chosen,
        "hide": hide,
        "stairs": stairs,
        "without": without,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        model_dir = keep or Path(folder)
        write_model(
            model_dir, name="trial", model=lstm.to_onnx(params), hidden=settings.hidden,
            canary_input=canary(data), training=record, scores=[],
        )  # fmt: skip
        model = load_model(model_dir)
        for made in score(model, judged):
            row[made["set"].removeprefix("held back: ")] = {
                "mae_vs_persistence": round(made["mae_network"] / made["mae_persistence"], 3),
                "pinball_99_vs_margin": round(made["pinball_99_network"] / made["pinball_99_margin"], 3),
                "passed_99": round(made["passed_99"], 2),
            }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
