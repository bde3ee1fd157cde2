"""From the history to a candidate and its scores: what the training process does between its order and its result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rpi_daemon.history.weeks import History
from rpi_daemon.models import lstm
from rpi_daemon.models.dataset import Examples, Row, SeriesSet, examples
from rpi_daemon.models.inputs import COLUMNS, N_COLUMNS
from rpi_daemon.models.manifest import MODEL, LoadedModel, load_model, open_session, write_model
from rpi_daemon.models.train import Settings, answers, canary, emphasis, train
from rpi_daemon.records import QUANTILES
from rpi_daemon.retrain import gate
from rpi_daemon.retrain.material import DISTRUSTED, Material, Span, gather

if TYPE_CHECKING:
    from rpi_daemon.retrain.child import Progress

LEAST_LEARN: Final = 8  # spans
BYTES_PER_TICK: Final = 2 * (N_COLUMNS + 2 * 5) + 3 * 4 + 5  # examples, their weights, and series of one outlet tick
WORKING_MB: Final = 300.0  # interpreter, libraries, choice of spans, gradients
STAGES: Final = 60
PASSES: Final = 2  # of a stage over its part
PATIENCE: Final = 4  # stages without a gain
LANES: Final = (16, 96)
VALIDATION: Final = 0.15  # of the spans to learn from, the newest: they say when to stop
VALIDATED_AT_ONCE: Final = 96  # spans
FIRST_RATE: Final = 1e-3  # a sixth of a training from nothing: what the incumbent knows is to stay
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
    """Go on from the incumbent, stage by stage, as long as the newest of `spans`, which no stage sees, are forecast better.

    A stage sees a part that fits in memory, twice, and makes `updates` at most: few loads must not be learned by heart.
    Returns what `write_model` needs, and a record.
    """
    ordered = sorted(spans, key=lambda span: span.t_ns)
    kept_back = max(1, round(VALIDATION * len(ordered)))
    learn, newest = ordered[:-kept_back], _some(ordered[-kept_back:], VALIDATED_AT_ONCE, rng)
    check = examples(series_of(newest))
    params = lstm.from_onnx((incumbent.path / MODEL).read_bytes())
    weights = params["W"].copy()
    best, losses = _copied(params), [_loss(params, incumbent.hidden, check)]
    at_once = max(LEAST_LEARN, int((memory_mb - WORKING_MB) * 2**20 / (BYTES_PER_TICK * len(spans[0].power_w))))
    parts = np.array_split(rng.permutation(len(learn)), -(-len(learn) // at_once))
    hours, seen, end_s = 0.0, 0, time.monotonic() + limit_s
    for stage in range(STAGES):
        left_s = end_s - time.monotonic()
        if left_s <= 0.0:
            break
        series = series_of([learn[i] for i in parts[stage % len(parts)]])
        data = examples(series)
        lanes = int(np.clip(len(data.length), *LANES))
        settings = Settings(hidden=incumbent.hidden, lanes=lanes, seed=stage + 1, minutes=left_s / 60.0)
        needed = -(-PASSES * len(data.columns) // (lanes * settings.steps))
        params, record = train(
            data,
            series.weight[data.kept],
            replace(settings, updates=min(updates, needed), first_rate=FIRST_RATE),
            lambda _: None,
            params,
            emphasis(data, series.source, settings.emphasis),
            progress=lambda done, stage=stage: progress((stage + done) / STAGES),  # type: ignore[misc]
        )
        silent = [
            COLUMNS.index(name) for name in record["unused_columns"]
        ]  # plans, telemetry: nothing unlearned of them
        params["W"][:, silent] = weights[:, silent]
        hours, seen = hours + record["outlet_hours"], seen + record["updates"]
        losses.append(_loss(params, incumbent.hidden, check))
        if losses[-1] <= min(losses):
            best = _copied(params)
        elif len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    progress(1.0)
    told = {
        "method": "fine-tuned: NumPy back-propagation through time, Adam, pinball loss; stopped by the newest spans",
        "stages": len(losses) - 1,
        "best_stage": int(np.argmin(losses)),
        "losses": [round(loss, 5) for loss in losses],
        "updates": seen,
        "outlet_hours": round(hours, 1),
        "unused_columns": [name for name, column in zip(COLUMNS, best["W"].T, strict=True) if not column.any()],
    }
    return {"model": lstm.to_onnx(best), "hidden": incumbent.hidden, "canary_input": canary(check)}, told


def _copied(params: lstm.Params) -> lstm.Params:
    return {name: value.copy() for name, value in params.items()}


def _loss(params: lstm.Params, hidden: int, data: Examples) -> float:
    """Mean pinball of all outputs, each reading in parts of its series' own scale."""
    model = lstm.to_onnx(params)
    said = answers(LoadedModel(Path(), "", "", hidden, open_session(model)), data)
    error = data.targets.astype(np.float32)[..., None] - said
    quantiles = np.array(QUANTILES, np.float32)
    return float(np.maximum(quantiles * error, (quantiles - 1.0) * error).mean())


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
