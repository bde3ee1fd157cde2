"""What retraining buys on loads that the model has not seen, what it costs, and whether the control loop notices.

    python bench/retrain.py --data DIR --models MODELS --json

Skill: of each group of DIR/index.csv, the first 60 % of every series become a history, as the daemon writes one; the model
that never saw the group (MODELS/GROUP) is retrained on it, by the same process, filter and gate; the deployed pipeline then
forecasts the last 40 % of every series, before and after. A candidate that the gate rejects leaves things as they were: 1.0.
Cost: 48 outlets x 7 days of made loads. Tick: the daemon on the simulated rack of the demo, a training beside it or not.
"""

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import as_kept, new_parser, report
from forecast_skill import RECORDINGS
from skill.deployed import Progress, default_config, deployed_forecaster, run, work
from skill.scores import Sums, score, total
from skill.series import LAST_PART, Series, read_series

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.demo import demo_config, running_daemon, simulated_rack
from rpi_daemon.errors import ModelError
from rpi_daemon.history.blobs import pack
from rpi_daemon.history.weeks import FRESH_SHIFT, MARKS, Layout, insert, open_for_writing, path_of
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import describe
from rpi_daemon.records import TICK_NS, FloatArray
from rpi_daemon.retrain.decision import UPDATES
from rpi_daemon.retrain.gate import verdict
from rpi_daemon.retrain.process import Result, Training

T0 = 1_790_000_040 * NS_PER_S
MINUTE_NS = 60 * NS_PER_S
MEMORY_MB, MINUTES = 500.0, 30.0  # as configured by default
WEEK_OUTLETS, WEEK_MINUTES = 48, 7 * 1440
TICK_SECONDS, TURNS = 20.0, 5
RATING_W = 600.0


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, default=RECORDINGS, metavar="DIR", help="folder with index.csv")
    parser.add_argument(
        "--models", type=Path, metavar="MODELS", help="MODELS/GROUP never saw GROUP; shipped if not given"
    )
    parser.add_argument("--group", action="append", default=[], help="skill: this group alone; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N series of each group")
    parser.add_argument("--hours", type=float, metavar="H", help="at most the first H hours of each series")
    parser.add_argument(
        "--part", choices=("skill", "cost", "tick"), action="append", help="this part alone; may be repeated"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the result as JSON")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.limit, chosen.hours = chosen.limit or 4, chosen.hours or 1.0
    parts = chosen.part or ["skill", "cost", "tick"]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | None] = {}
    more: dict[str, Any] = {"models": "shipped" if chosen.models is None else "leave one group out"}
    if "skill" in parts:
        rows = skill(chosen.data, chosen.models, tuple(chosen.group), chosen.limit, chosen.hours)
        moved = [row["mae_after_vs_before"] for row in rows]
        ratios |= {
            "mae_after_vs_before": float(np.exp(np.mean(np.log(moved)))),
            "mae_after_vs_before_worst": max(moved),
        }
    if "cost" in parts:
        more["cost"] = cost(WEEK_MINUTES // (20 if chosen.quick else 1))
        ratios |= {"minutes_of_30": more["cost"]["minutes"] / 30.0, "mb_of_500": more["cost"]["peak_mb"] / 500.0}
    if "tick" in parts:
        more["tick"] = tick(2 if chosen.quick else TURNS)
        ratios["tick_p99_training_vs_idle"] = more["tick"]["training_p99_ms"] / more["tick"]["idle_p99_ms"]
    result = report("retrain", rows, ratios, chosen.json, more)
    if chosen.out is not None:
        chosen.out.write_text(as_kept(result) + "\n", encoding="utf-8")


# -- skill


def skill(
    data: Path, models: Path | None, groups: tuple[str, ...], limit: int | None, hours: float | None
) -> list[dict[str, Any]]:
    """One row a group."""
    series, left_out = read_series(data, groups, limit, hours)
    for why in left_out:
        print(f"left out: {why}")
    rows = []
    for group in dict.fromkeys(one.group for one in series):
        without = SHIPPED if models is None else models / group
        incumbent = without if without.is_dir() else SHIPPED
        if models is not None and group in {str(source["name"]) for source in describe(incumbent)["training"]["data"]}:
            raise ModelError(f"{incumbent}: was trained on {group}; {without} should hold a model that was not")
        rows.append(group_row(group, [one for one in series if one.group == group], incumbent))
        told = {name: value for name, value in rows[-1].items() if name != "group"}
        print(f"{group}: {told}", file=sys.stderr, flush=True)
    return rows


def group_row(group: str, series: Sequence[Series], incumbent: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rpi-retrain-") as folder:
        history, out = Path(folder) / "history", Path(folder) / "candidate"
        result = learned(history_of(series, history), series, incumbent, out)
        reasons = verdict(result.scores) if result.scores is not None else (result.why_not,)
        before = judged(series, incumbent)
        tried = judged(series, out) if result.scores is not None else before
    after = before if reasons else tried
    return {
        "group": group,
        "series": len(series),
        "mae_before": before.mean("mae/deployed"),
        "mae_after_vs_before": after.mean("mae/deployed") / before.mean("mae/deployed"),
        "candidate_vs_before": tried.mean("mae/deployed") / before.mean("mae/deployed"),
        "network_vs_before": tried.mean("mae/lstm") / before.mean("mae/lstm"),
        "outcome": "; ".join(reasons) or "promoted",
        "learn_spans": result.material["learn_spans"],
        "minutes": round(result.took_s / 60.0, 2),
        "peak_mb": result.peak_mb,
    }


def judged(series: Sequence[Series], model: Path) -> Sums:
    """The deployed pipeline over every series from its begin; the losses of the last 40 %."""
    config = default_config(model)
    progress = Progress(max(1, work(series)), lambda _: None)
    return total(
        score(one, answers).last for one, answers in run(series, deployed_forecaster(config), config, progress)
    )


def learned(history: Path, series: Sequence[Series], incumbent: Path, out: Path) -> Result:
    order = {
        "history": str(history), "rack": "bench", "ratings_w": {f"pdu/{k + 1}": s.rating_w for k, s in enumerate(series)},
        "from_ns": T0 - NS_PER_S, "to_ns": T0 + 400 * 86_400 * NS_PER_S, "seed": 1, "updates": UPDATES,
        "incumbent": str(incumbent.resolve()), "out": str(out), "name": "candidate",
    }  # fmt: skip
    return Training(order, memory_mb=MEMORY_MB, minutes=MINUTES).run()


def history_of(series: Sequence[Series], folder: Path) -> Path:
    """The first 60 % of each series, an outlet each; the newest fifth of each group's time is what the gate judges by.

    Series of different lengths end together, as if they had been switched on one after the other.
    """
    kept = [ticks_of(one) for one in series]
    longest = max(len(power_w) for power_w, _ in kept)
    minutes = -(-longest // 600)
    power_w = np.full((len(series), minutes * 600), np.nan)
    fresh = np.zeros(power_w.shape, np.bool_)
    for k, (readings_w, came) in enumerate(kept):
        power_w[k, -len(readings_w) :], fresh[k, -len(readings_w) :] = readings_w, came
    layout = Layout(
        "bench",
        tuple(f"pdu/{k + 1}" for k in range(len(series))),
        "recording",
        (),
        tuple(s.interval_ticks for s in series),
    )
    write(folder, layout, power_w, fresh)
    return folder


def ticks_of(series: Series) -> tuple[FloatArray, np.ndarray]:
    """Power at each tick of the first 60 %, held until it would be stale, and which ticks brought a reading."""
    end = int(LAST_PART * series.ticks)
    there = series.tick < end
    place = np.searchsorted(series.tick[there], np.arange(end), side="right") - 1
    age = np.arange(end) - series.tick[np.maximum(place, 0)]
    known = (place >= 0) & (age <= series.stale_ticks)
    power_w = np.where(known, series.power_w[np.maximum(place, 0)], np.nan)
    fresh = np.zeros(end, np.bool_)
    fresh[series.tick[there]] = True
    return power_w, fresh


def write(folder: Path, layout: Layout, power_w: FloatArray, fresh: np.ndarray, first_minute: int = 0) -> None:
    """Minutes as the daemon writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    shifts = np.int64(1) << (FRESH_SHIFT + np.arange(10))
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}
        for minute in range(power_w.shape[1] // 600):
            at_ns = T0 + (first_minute + minute) * MINUTE_NS
            ticks = slice(600 * minute, 600 * (minute + 1))
            marks = (fresh[:, ticks].reshape(len(fresh), 60, 10) * shifts).sum(axis=2)
            path = path_of(folder, at_ns)
            if path not in files:
                files[path] = stack.enter_context(contextlib.closing(open_for_writing(path)))
            blocks = [
                ("power_w", at_ns, at_ns, TICK_NS, pack(power_w[:, ticks], 0.2), minute),
                (MARKS, at_ns, at_ns, NS_PER_S, pack(marks, 1.0), minute),
            ]
            insert(files[path], layout, blocks, [])


# -- cost


def cost(minutes: int) -> dict[str, Any]:
    """Time and memory of one training on 48 outlets x 7 days."""
    with tempfile.TemporaryDirectory(prefix="rpi-retrain-") as folder:
        history = Path(folder) / "history"
        layout = Layout("bench", tuple(f"pdu/{k + 1}" for k in range(WEEK_OUTLETS)), "made", (), (1,) * WEEK_OUTLETS)
        for hour, power_w in enumerate(loads(minutes)):
            write(history, layout, power_w, np.ones(power_w.shape, np.bool_), first_minute=60 * hour)
        order = {
            "history": str(history), "rack": "bench",
            "ratings_w": dict.fromkeys(layout.outlets, RATING_W), "from_ns": T0 - NS_PER_S,
            "to_ns": T0 + 400 * 86_400 * NS_PER_S, "seed": 1, "updates": UPDATES, "incumbent": str(SHIPPED),
            "out": str(Path(folder) / "candidate"), "name": "candidate",
        }  # fmt: skip
        began_s = time.monotonic()
        result = Training(order, memory_mb=MEMORY_MB, minutes=MINUTES).run()
    return {
        "outlets": WEEK_OUTLETS,
        "days": minutes / 1440.0,
        "minutes": round((time.monotonic() - began_s) / 60.0, 2),
        "peak_mb": result.peak_mb,
        "spans_learned_from": result.material["learn_spans"],
        "not_confined": list(result.not_confined),
    }


def loads(minutes: int) -> Iterator[FloatArray]:
    """Square waves with noise, an hour at a time, [outlets, 36000] W."""
    rng = np.random.default_rng(1)
    period = rng.uniform(150.0, 400.0, (WEEK_OUTLETS, 1))
    for hour in range(-(-minutes // 60)):
        ticks = np.arange(36_000) + 36_000 * hour
        yield (
            200.0
            + 60.0 * np.sign(np.sin(2.0 * np.pi * ticks / period))
            + 4.0 * rng.standard_normal((WEEK_OUTLETS, 36_000))
        )


# -- the control tick beside a training


def tick(turns: int) -> dict[str, Any]:
    """p99 of the control tick of a real daemon, a fresh one each turn, with a training beside it and without."""
    idle: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory(prefix="rpi-retrain-") as text:
        history = Path(text) / "made"
        layout = Layout("bench", tuple(f"pdu/{k + 1}" for k in range(12)), "made", (), (1,) * 12)
        write(history, layout, next(loads(60))[:12], np.ones((12, 36_000), np.bool_))
        for turn in range(2 * turns):
            folder = Path(text) / str(turn)
            folder.mkdir()
            training = trained_beside(history, folder / "candidate") if turn % 2 else contextlib.nullcontext()
            with training:
                (beside if turn % 2 else idle).append(tick_p99_ms(folder))
    return {
        "outlets": WEEK_OUTLETS,
        "seconds": TICK_SECONDS,
        "idle_p99_ms": float(np.median(idle)),
        "training_p99_ms": float(np.median(beside)),
        "idle": idle,
        "training": beside,
    }


def tick_p99_ms(folder: Path) -> float:
    """The daemon's own word, after its first seconds on the simulated rack."""
    config = demo_config(folder, WEEK_OUTLETS)
    with simulated_rack(config), running_daemon(config) as (_, client):
        time.sleep(TICK_SECONDS)
        return float(client.ask("status")["summary"]["tick_ms_p99"])


@contextlib.contextmanager
def trained_beside(history: Path, out: Path) -> Iterator[None]:
    """A training that lasts longer than the block, ended with it."""
    order = {
        "history": str(history), "rack": "bench", "ratings_w": {f"pdu/{k + 1}": RATING_W for k in range(12)},
        "from_ns": T0 - NS_PER_S, "to_ns": T0 + 86_400 * NS_PER_S, "seed": 1, "updates": 10**7,
        "incumbent": str(SHIPPED), "out": str(out), "name": "candidate",
    }  # fmt: skip
    training = Training(order, memory_mb=MEMORY_MB, minutes=MINUTES)
    trains = threading.Event()

    def run_it() -> None:
        with contextlib.suppress(Exception):
            training.run(lambda stage, _: trains.set() if stage == "training" else None)

    thread = threading.Thread(target=run_it)
    thread.start()
    trains.wait(120.0)
    try:
        yield
    finally:
        training.cancel("enough was seen")
        thread.join()


if __name__ == "__main__":
    main()
