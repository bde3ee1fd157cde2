"""The gate: candidate, incumbent and baselines on the newest days, which nothing was learned from; who may stand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from rpi_daemon.models.manifest import LoadedModel
from rpi_daemon.models.mixture import Mixture
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import TICK_NS, TICK_S, BoolArray, FloatArray, ForecastInput, Quality
from rpi_daemon.retrain.losses import Losses
from rpi_daemon.retrain.material import Span

# The first two are the whole mixture, with either network in it, as the daemon would forecast; then each network alone.
CANDIDATE, INCUMBENT, CANDIDATE_ALONE, INCUMBENT_ALONE = "candidate", "incumbent", "candidate_alone", "incumbent_alone"
PERSISTENCE, RIDGE = "persistence", "ridge"
MEMBERS: Final = (CANDIDATE, INCUMBENT, CANDIDATE_ALONE, INCUMBENT_ALONE, PERSISTENCE, RIDGE)
WARM_UP_S: Final = 60.0
WARM_UP_SHARE: Final = 0.25  # of a short span
BUSY: Final = 0.01  # of the rating: persistence's mean error 5 s ahead from which on an outlet counts as busy
FLOOR: Final = 1e-4  # of the rating: a loss below the step of a meter is no difference
LEAST_GAIN: Final = 0.005  # a smaller one is not worth a change of model
SURE: Final = 1.0  # standard errors by which the mean gain must clear nothing
FEWEST: Final = 8  # spans that a judgement needs
WORSE: Final = 0.02  # the most that a class may lose
ESCAPES_TARGET: Final = 0.01  # a 0.99 quantile is passed so often
ESCAPES_WORSE: Final = 1.1  # times the incumbent's rate, where that is above the target


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of outlets: how it is metered, and how it moves. Losses as geometric means of ratios over spans."""

    name: str
    spans: int
    hours: float  # outlet hours that were judged
    loss_vs: Mapping[str, float]  # candidate / each other
    mae_w: Mapping[str, float]
    escape_rate: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the gate saw; `classes` sorted by name."""

    spans: int
    hours: float
    loss_vs: Mapping[str, float]
    gain_error: float  # standard error of the mean logarithm of candidate / incumbent
    escape_rate: Mapping[str, float]
    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        """For the event and the command line."""
        return asdict(self)


def scores_of(document: Mapping[str, Any]) -> Scores:
    """The inverse of `Scores.to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    classes = tuple(
        ClassScore(
            str(row["name"]), int(row["spans"]), float(row["hours"]), _numbers(row["loss_vs"], MEMBERS[1:]),
            _numbers(row["mae_w"], MEMBERS), _numbers(row["escape_rate"], MEMBERS),
        )
        for row in document["classes"]
    )  # fmt: skip
    return Scores(
        int(document["spans"]), float(document["hours"]), _numbers(document["loss_vs"], MEMBERS[1:]),
        float(document["gain_error"]), _numbers(document["escape_rate"], MEMBERS), classes,
    )  # fmt: skip


def _numbers(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    return {name: float(found[name]) for name in names}


def verdict(scores: Scores) -> tuple[str, ...]:
    """Why the candidate may not stand, a sentence each; empty when it may.

    It wins on pinball loss over all spans, beyond chance, against the incumbent and each baseline; in no class is it
    worse than the incumbent by more than 2 %; and no class passes its 0.99 quantile of the running maximum more often
    than it promises, or than the incumbent did.
    """
    found: list[str] = []
    if scores.spans < FEWEST:
        found.append(f"only {scores.spans} spans to judge by; {FEWEST} are needed")
    ratio = scores.loss_vs[INCUMBENT]
    if not ratio <= 1.0 - LEAST_GAIN:
        found.append(
            f"loss {_beside(ratio, 1.0 - LEAST_GAIN)} x the incumbent's; {1.0 - LEAST_GAIN:.3f} at most is a gain"
        )
    elif not np.log(ratio) + SURE * scores.gain_error < 0.0:
        found.append(f"loss {ratio:.3f} x the incumbent's, but spans differ so much that this may be chance")
    for name in (PERSISTENCE, RIDGE):
        if not scores.loss_vs[name] < 1.0:
            found.append(f"loss {scores.loss_vs[name]:.3f} x that of {name}")
    for row in scores.classes:
        if not row.loss_vs[INCUMBENT] <= 1.0 + WORSE:
            found.append(f"{row.name}: loss {row.loss_vs[INCUMBENT]:.3f} x the incumbent's")
        allowed = max(ESCAPES_TARGET, ESCAPES_WORSE * row.escape_rate[INCUMBENT])
        if not row.escape_rate[CANDIDATE] <= allowed:
            found.append(
                f"{row.name}: {_beside(row.escape_rate[CANDIDATE], allowed, 2, '%')} of running maxima pass the 0.99 quantile, {allowed:.2%} may"
            )
    return tuple(found)


def _beside(value: float, bound: float, digits: int = 3, form: str = "f") -> str:
    """The value with as many digits as tell it from the bound beside it."""
    while digits < 17 and f"{value:.{digits}{form}}" == f"{bound:.{digits}{form}}":
        digits += 1
    return f"{value:.{digits}{form}}"


def score(
    candidate: LoadedModel, incumbent: LoadedModel, spans: Sequence[Span], progress: Callable[[float], None]
) -> Scores:
    """Run everybody over the spans, each as the daemon runs it; the first minute of a span warms up."""
    n, ticks = len(spans), len(spans[0].power_w)
    mixtures = [Mixture(n, LstmForecaster(model, n)) for model in (candidate, incumbent)]
    losses = Losses(MEMBERS, n)
    warm = min(round(WARM_UP_S / TICK_S), round(WARM_UP_SHARE * ticks))
    inputs = Inputs(spans)
    for tick in range(ticks):
        x = inputs.at(tick)
        said = dict(zip(MEMBERS, (mixture.step(x) for mixture in mixtures), strict=False))
        alone, other = (mixture.latest for mixture in mixtures)
        said |= {CANDIDATE_ALONE: alone["lstm"], INCUMBENT_ALONE: other["lstm"]}
        said |= {PERSISTENCE: alone[PERSISTENCE], RIDGE: alone[RIDGE]}
        losses.step(x, said, count=tick >= warm)
        if tick % 50 == 0:
            progress(tick / ticks)
    return summed(losses, [span.rating_w for span in spans], [span.interval_ticks for span in spans])


class Inputs:
    """Spans side by side as what forecasters are given, tick by tick."""

    def __init__(self, spans: Sequence[Span]) -> None:
        n = len(spans)
        self._power_w = np.stack([span.power_w for span in spans]).astype(np.float64)
        self._fresh = np.stack([span.fresh for span in spans])
        self._rating_w = np.array([span.rating_w for span in spans])
        self._interval = np.array([span.interval_ticks for span in spans])
        self._none: FloatArray = np.zeros((n, 5))
        self._telemetry: FloatArray = np.zeros((n, 4))
        self._true: BoolArray = np.ones(n, np.bool_)

    def at(self, tick: int) -> ForecastInput:
        """Telemetry and announcements are not stored, and not known here."""
        return ForecastInput(
            t_mono_ns=tick * TICK_NS,
            t_utc_s=0.0,
            power_w=self._power_w[:, tick],
            peak_w=np.full(len(self._true), np.nan),
            step_w=np.zeros(len(self._true)),
            valid=self._true,
            rating_w=self._rating_w,
            planned_w=self._none,
            telemetry=self._telemetry,
            telemetry_mask=self._telemetry,
            quality=np.where(self._fresh[:, tick], 0, int(Quality.HELD)),
            interval_ticks=self._interval,
        )


def summed(losses: Losses, rating_w: Sequence[float], interval_ticks: Sequence[int]) -> Scores:
    """Scores from sums over spans: each span has one vote, whatever its watts."""
    there = losses.judged > 0
    judged = np.maximum(losses.judged, 1.0)
    rating = np.asarray(rating_w)
    loss = np.log(np.maximum(losses.loss_w / judged, FLOOR * rating))
    mae_w = losses.absolute_w / judged
    busy = mae_w[losses.names.index(PERSISTENCE)] > BUSY * rating
    slow = np.asarray(interval_ticks) > 1
    hours = losses.judged * np.asarray(interval_ticks) * TICK_S / 3600.0
    classes = []
    for name, which in (
        ("board, busy", ~slow & busy), ("board, flat", ~slow & ~busy), ("meter, busy", slow & busy), ("meter, flat", slow & ~busy),
    ):  # fmt: skip
        rows = which & there
        if rows.any():
            classes.append(_class(name, losses, loss, mae_w, hours, rows))
    ratio = loss[0, there] - loss[1, there]
    spans = int(there.sum())
    error = float(ratio.std(ddof=1) / np.sqrt(spans)) if spans > 1 else float("inf")
    whole = _class("all", losses, loss, mae_w, hours, there)
    return Scores(spans, whole.hours, whole.loss_vs, error, whole.escape_rate, tuple(classes))


def _class(
    name: str, losses: Losses, loss: FloatArray, mae_w: FloatArray, hours: FloatArray, rows: BoolArray
) -> ClassScore:
    moments = float(losses.judged[rows].sum())
    vs = np.exp((loss[0] - loss)[:, rows].mean(axis=1)) if rows.any() else np.full(len(loss), np.nan)
    escapes = losses.escapes[:, rows].sum(axis=1) / max(1.0, moments)
    mean_w = mae_w[:, rows].mean(axis=1) if rows.any() else np.full(len(loss), np.nan)
    return ClassScore(
        name,
        int(rows.sum()),
        round(float(hours[rows].sum()), 4),
        {m: float(vs[i]) for i, m in enumerate(losses.names) if i},
        {m: float(mean_w[i]) for i, m in enumerate(losses.names)},
        {m: float(escapes[i]) for i, m in enumerate(losses.names)},
    )
