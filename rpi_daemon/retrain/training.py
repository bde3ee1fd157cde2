"""From the history to a candidate and its scores: what the training process does between its order and its result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rpi_daemon.history.weeks import History
from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import Row, SeriesSet, examples
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS
from rpi_daemon.models.manifest import MODEL, LoadedModel, load_model, write_model
from rpi_daemon.models.train import Settings, canary, emphasis, train
from rpi_daemon.retrain import gate
from rpi_daemon.retrain.material import DISTRUSTED, Material, Span, gather

if TYPE_CHECKING:
    from rpi_daemon.retrain.child import Progress

LEAST_LEARN: Final = 8  # spans
BYTES_PER_TICK: Final = 2 * (N_COLUMNS + 2 * 5) + 3 * 4 + 5  # examples, their weights, and series of one outlet tick
WORKING_MB: Final = 300.0  # interpreter, libraries, choice of spans, gradients
MOST_ROUNDS: Final = 6
FIRST_RATE: Final = 1e-3  # a quarter of a training from nothing: what the incumbent knows is to stay
NOTHING_TO_JUDGE_BY: Final = "no nominal span in the newest fifth of the history, which a candidate would be judged by"
JUDGED_AT_ONCE: Final = 192  # spans
JUDGING_SHARE: Final = 0.2  # of the time limit; training has what reading left of the rest


def carry_out(order: Mapping[str, Any], progress: "Progress") -> dict[str, Any]:
    """The result of an order: material, and either why nothing was trained, or candidate and scores."""
    began_s = time.monotonic()
    limit_s = 60.0 * order["minutes"]
    material = gather(
        History(Path(order["history"])), order["rack"], order["ratings_w"], order["from_ns"], order["to_ns"],
        order["seed"], progress.of("reading"),
    )  # fmt: skip
    told = {"material": material.to_json()}
    incumbent = load_model(order["incumbent"])
    rng = np.random.default_rng(order["seed"])
    judge = _some(material.judge, JUDGED_AT_ONCE, rng)
    if candidate_dir := order.get("candidate"):
        return told | _compared(load_model(candidate_dir), incumbent, judge, progress.of("judging"))
    if why_not := too_little(material):
        return {**told, "why_not": why_not}
    left_s = limit_s * (1.0 - JUDGING_SHARE) - (time.monotonic() - began_s)
    candidate, record = fine_tune(
        incumbent, material.learn, rng, order["memory_mb"], order["updates"], max(1.0, left_s), progress.of("training")
    )
    record |= {
        "started_from": f"{incumbent.name} {incumbent.sha256}",
        "data": [{"name": f"history of rack {order['rack']}", "licence": "private", **_flat(material)}],
    }
    out = Path(order["out"])
    write_model(out, name=order["name"], training=record, scores=[], **candidate)
    scores = gate.score(load_model(out), incumbent, judge, progress.of("judging"))
    write_model(out, name=order["name"], training=record, scores=[_row(c) for c in scores.classes], **candidate)
    made = load_model(out)
    return {
        **told,
        "name": order["name"],
        "sha256": made.sha256,
        "scores": scores.to_json(),
        "took_s": round(time.monotonic() - began_s, 1),
    }


def _compared(
    candidate: LoadedModel, incumbent: LoadedModel, judge: Sequence[Span], progress: Callable[[float], None]
) -> dict[str, Any]:
    """Scores of a model that is there already."""
    if not judge:
        return {"why_not": NOTHING_TO_JUDGE_BY}
    scores = gate.score(candidate, incumbent, judge, progress)
    return {"name": candidate.name, "sha256": candidate.sha256, "scores": scores.to_json()}


def too_little(material: Material) -> str:
    """Why nothing is learned from this material; empty when something is."""
    if material.suspicious > DISTRUSTED:
        return (
            f"{material.suspicious:.0%} of the history is suspicious (stuck, saturated, repeated or far outside what the"
            " outlets ever did): it is not learned from"
        )
    if len(material.learn) < LEAST_LEARN:
        return f"{len(material.learn)} nominal spans of {material.span_ticks / 10:g} s to learn from; {LEAST_LEARN} are needed"
    if not material.judge:
        return NOTHING_TO_JUDGE_BY
    return ""


def fine_tune(
    incumbent: LoadedModel,
    spans: Sequence[Span],
    rng: np.random.Generator,
    memory_mb: float,
    updates: int,
    limit_s: float,
    progress: Callable[[float], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Go on from the incumbent, in rounds of `updates` over parts that fit in memory. Returns what `write_model` needs, and a record."""
    params = lstm.from_onnx((incumbent.path / MODEL).read_bytes())
    weights = params["W"].copy()
    at_once = max(LEAST_LEARN, int((memory_mb - WORKING_MB) * 2**20 / (BYTES_PER_TICK * len(spans[0].power_w))))
    rounds = min(MOST_ROUNDS, -(-len(spans) // at_once))
    parts = np.array_split(rng.permutation(len(spans)), -(-len(spans) // at_once))[:rounds]
    settings = Settings(
        hidden=incumbent.hidden, updates=updates, minutes=limit_s / rounds / 60.0, first_rate=FIRST_RATE
    )
    record: dict[str, Any] = {}
    hours = 0.0
    steps = np.zeros(0, np.float32)
    for k, part in enumerate(parts):
        chosen = [spans[i] for i in part]
        series = series_of(chosen)
        data = examples(series)
        params, record = train(
            data,
            series.weight[data.kept],
            replace(settings, seed=k + 1, first_rate=FIRST_RATE / (k + 1)),
            lambda _: None,
            params,
            emphasis(data, series.source, settings.emphasis),
            progress=lambda done, k=k: progress((k + done) / rounds),  # type: ignore[misc]
        )
        hours += record["outlet_hours"]
        silent = [
            COLUMNS.index(name) for name in record["unused_columns"]
        ]  # plans, telemetry: nothing unlearned of them
        params["W"][:, silent] = weights[:, silent]
        steps = canary(data)
        del data
    record |= {
        "method": "fine-tuned: NumPy back-propagation through time, Adam, pinball loss",
        "rounds": rounds,
        "outlet_hours": round(hours, 1),
        "unused_columns": [name for name, column in zip(COLUMNS, params["W"].T, strict=True) if not column.any()],
    }
    return {"model": lstm.to_onnx(params), "hidden": incumbent.hidden, "canary_input": steps}, record


def series_of(spans: Sequence[Span]) -> SeriesSet:
    """Spans as a training set, a slow meter's as its fresh readings. What was announced is not stored: the network learns
    no plan from it, and forgets none."""
    rows = []
    for span in spans:
        readings_w = span.power_w if span.interval_ticks == 1 else span.power_w[span.fresh]
        rows.append(Row(readings_w, np.zeros_like(readings_w), span.rating_w, span.interval_ticks))
    return SeriesSet.of(rows, [{"name": "history"}])


def _some(spans: Sequence[Span], most: int, rng: np.random.Generator) -> list[Span]:
    chosen = np.sort(rng.permutation(len(spans))[:most])
    return [spans[i] for i in chosen]


def _flat(material: Material) -> dict[str, Any]:
    return {"series": len(material.learn), "hours": round(material.used_outlet_h, 2)}


def _row(found: gate.ClassScore) -> dict[str, Any]:
    row: dict[str, Any] = {"set": found.name, "spans": found.spans, "outlet_hours": found.hours}
    row |= {f"loss_vs_{name}": round(value, 4) for name, value in found.loss_vs.items()}
    row |= {f"mae_5s_w_{name}": round(value, 3) for name, value in found.mae_w.items()}
    return row | {f"escape_rate_{name}": round(value, 5) for name, value in found.escape_rate.items()}
