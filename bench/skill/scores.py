"""Losses of what was said against what came, per series and group, and the ratios that the bench reports."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rpi_daemon.records import QUANTILES, TICK_S, FloatArray
from skill.deployed import DEPLOYED, Answers
from skill.series import LEAST_MEAN_W, UNSCORED_S, Moments, Series

PERSISTENCE = "stays as it is"  # the reading itself: what every MAE is compared with
MEDIAN = QUANTILES.index(0.5)
LIMIT_QUANTILE = 0.99  # a request is to be passed by 1 % of the running maxima
RULES = {"persistence": 0.0, "max of 5 s": 5.0, "max of 20 s": 20.0}
NOTHING_W = 1e-3  # a mean loss below this is none: a load that never moves has nothing to beat

# request escape rate: of series this long, s, at most this share may pass
BOUNDS = {"30 min or more": (1800.0, np.inf, 0.02), "10 to 30 min": (600.0, 1800.0, 0.03)}
POOLED_BOUND = 0.013
DAY_S = 86_400.0


def pinball(quantile: float, came_w: FloatArray, said_w: FloatArray) -> FloatArray:
    """Pinball loss (Koenker & Bassett 1978), elementwise, W."""
    short_w = came_w - said_w
    return np.maximum(quantile * short_w, (quantile - 1.0) * short_w)


def hindsight_margin_w(came_w: FloatArray, base_w: FloatArray) -> float:
    """The fixed margin over `base_w` that would have lost least at the limit quantile: their quantile of what was missing."""
    return float(np.quantile(came_w - base_w, LIMIT_QUANTILE, method="inverted_cdf"))


@dataclass
class Sums:
    """Sums of losses over moments, in units of the mean draw, and how many moments; sums of several series add up."""

    moments: int = 0
    loss: dict[str, float] = field(default_factory=dict)  # by "measure/source"

    def add(self, other: "Sums") -> None:
        self.moments += other.moments
        for name, value in other.loss.items():
            self.loss[name] = self.loss.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        return self.loss[name] / self.moments if self.moments else float("nan")

    def of(self, measure: str) -> dict[str, float]:
        """Mean loss by source."""
        return {name.split("/", 1)[1]: self.mean(name) for name in self.loss if name.startswith(f"{measure}/")}


@dataclass
class Written:
    """What came of the written limit of an `alarm` kind, after the first minute."""

    episodes: int  # times that the draw passed the limit, each over with the first reading at or below it
    writes: int
    days: float
    vs_draw: float | None  # mean limit / mean draw

    def figures(self) -> dict[str, Any]:
        """As reported."""
        per_day = {"limit_episodes_per_day": self.episodes / self.days, "writes_per_day": self.writes / self.days}
        return {"limit_episodes": self.episodes, **per_day, "limit_vs_draw": self.vs_draw}


def written(series: Series, answers: Answers) -> Written:
    """Judge the written limit of one series at all of its readings after the first minute."""
    scored = series.tick * TICK_S >= UNSCORED_S
    draw_w, limit_w = series.power_w[scored], answers.limit_w[scored]
    over = draw_w > limit_w  # NaN is never passed
    episodes = int(np.count_nonzero(over & ~np.append(False, over[:-1])))
    days = max(series.duration_s - UNSCORED_S, TICK_S) / DAY_S
    return Written(
        episodes, answers.writes, days, _over(float(np.nansum(limit_w)), float(draw_w[np.isfinite(limit_w)].sum()))
    )


def written_by_group(parts: Sequence[Written]) -> Written:
    """All series of a group as one; the median of their limits / draws."""
    known = [part.vs_draw for part in parts if part.vs_draw is not None]
    return Written(
        sum(part.episodes for part in parts),
        sum(part.writes for part in parts),
        sum(part.days for part in parts),
        float(np.median(known)) if known else None,
    )


@dataclass
class Scored:
    """One series' losses: after the first minute, and in the last part only."""

    series: Series
    whole: Sums
    last: Sums
    written: "Written"


def score(series: Series, answers: Answers) -> Scored:
    """Judge one series."""
    moments, scale_w = series.moments, max(series.mean_w, LEAST_MEAN_W)
    last = series.in_last_part(moments)
    late = Moments(moments.made[last], moments.due[last])
    whole, part = (_sums(series, answers, of, scale_w) for of in (moments, late))
    return Scored(series, whole, part, written(series, answers))


def _sums(series: Series, answers: Answers, moments: Moments, scale_w: float) -> Sums:
    now_w, came_w = series.power_w[moments.made], series.power_w[moments.due]
    highest_w = series.running_max_w(moments)
    losses = {f"mae/{PERSISTENCE}": np.abs(came_w - now_w), f"square/{PERSISTENCE}": (came_w - now_w) ** 2 / scale_w}
    for k, source in enumerate(answers.sources):
        losses |= value_losses(source, answers.value_w[moments.made, k], now_w, came_w, scale_w)
        said_w = _answered(answers.running_max_w[moments.made, k], now_w)
        for q, quantile in enumerate(QUANTILES):
            losses[f"max_pinball_{quantile}/{source}"] = pinball(quantile, highest_w, said_w[:, q])
    losses |= _limit_losses(series, answers, moments, highest_w)
    unanswered = np.isnan(answers.value_w[moments.made, 0, MEDIAN])
    sums = {name: float(loss.sum() / scale_w) for name, loss in losses.items()}
    return Sums(len(now_w), sums | {f"unanswered/{DEPLOYED}": float(unanswered.sum())})


def value_losses(
    source: str, said_w: FloatArray, now_w: FloatArray, came_w: FloatArray, scale_w: float
) -> dict[str, FloatArray]:
    """Losses [k] of quantiles [k, 3] of the value."""
    said_w = _answered(said_w, now_w)
    error_w = said_w[:, MEDIAN] - came_w
    losses = {f"mae/{source}": np.abs(error_w), f"square/{source}": error_w**2 / scale_w}
    for q, quantile in enumerate(QUANTILES):
        losses[f"pinball_{quantile}/{source}"] = pinball(quantile, came_w, said_w[:, q])
    losses[f"pinball/{source}"] = np.mean([losses[f"pinball_{quantile}/{source}"] for quantile in QUANTILES], axis=0)
    return losses


def _answered(said_w: FloatArray, now_w: FloatArray) -> FloatArray:
    """A source without an answer says that it stays as it is."""
    return np.where(np.isfinite(said_w), said_w, now_w[:, None]).astype(np.float64)


def _limit_losses(series: Series, answers: Answers, moments: Moments, highest_w: FloatArray) -> dict[str, FloatArray]:
    request_w = answers.request_w[moments.made]
    losses = {
        f"limit/{DEPLOYED}": pinball(LIMIT_QUANTILE, highest_w, request_w),
        "escape/request": (highest_w > request_w) * max(series.mean_w, LEAST_MEAN_W),
        "draw/request": series.power_w[moments.made],
        "size/request": request_w,
        "size/oracle": highest_w,
        "excess/request": np.maximum(request_w - highest_w, 0.0),
        "exceedance/request": np.maximum(highest_w - request_w, 0.0),
    }
    for rule, seconds in RULES.items():
        base_w = series.power_w[moments.made] if seconds == 0.0 else series.recent_max_w(moments, seconds)
        margin_w = hindsight_margin_w(highest_w, base_w) if len(base_w) else 0.0
        losses[f"limit/{rule}"] = pinball(LIMIT_QUANTILE, highest_w, base_w + margin_w)
        losses[f"size/{rule}"] = base_w + margin_w
    return losses


def figures(sums: Sums, nothing: float) -> dict[str, Any]:
    """The figures of a series or group; `nothing`: a mean loss below this part of the draw is none.

    A ratio is None where the other side lost nothing: a load that never moves has nothing to beat.
    """
    mae, limit = sums.of("mae"), sums.of("limit")
    ours = mae.pop(DEPLOYED)
    best = min(mae, key=mae.__getitem__)
    rules = {rule: limit[rule] for rule in RULES}
    rule = min(rules, key=rules.__getitem__)
    escapes = sums.mean("escape/request")
    missed = sums.mean("exceedance/request")
    row: dict[str, Any] = {
        "moments": sums.moments,
        "mae": ours,
        "persistence_mae": mae[PERSISTENCE],
        "best_expert": best,
        "mae_vs_persistence": ratio(ours, mae[PERSISTENCE], nothing),
        "mae_vs_best_expert": ratio(ours, mae[best], nothing),
        "escape_rate": escapes,
        "request_vs_draw": _over(sums.mean("size/request"), sums.mean("draw/request")),
        "oracle_vs_draw": _over(sums.mean("size/oracle"), sums.mean("draw/request")),
        "request_pinball": limit[DEPLOYED],
        "best_rule": rule,
        "best_rule_pinball": rules[rule],
        "request_vs_margin": ratio(limit[DEPLOYED], rules[rule], (1.0 - LIMIT_QUANTILE) * nothing),
        "excess": sums.mean("excess/request"),
        "mean_exceedance": missed / escapes if escapes else 0.0,
        "unanswered": sums.mean(f"unanswered/{DEPLOYED}"),
    }
    return row


def details(sums: Sums) -> dict[str, dict[str, float]]:
    """Every source's MAE, RMSE and pinball losses, and each rule's, in parts of the mean draw."""
    measures = ("mae", "pinball", *(f"pinball_{q}" for q in QUANTILES), *(f"max_pinball_{q}" for q in QUANTILES))
    table = {measure: sums.of(measure) for measure in measures}
    table["rmse"] = {source: float(np.sqrt(value)) for source, value in sums.of("square").items()}
    return table | {"limit_pinball": sums.of("limit"), "limit_size": sums.of("size")}


def ratio(ours: float, theirs: float, nothing: float) -> float | None:
    """Ours / theirs; None where theirs is as good as nothing."""
    return ours / theirs if theirs > nothing else None


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0.0 else None


def nothing_of(series: Iterable[Series]) -> float:
    """A mean loss of NOTHING_W as part of the mean draws, for `figures`."""
    return float(np.mean([NOTHING_W / max(one.mean_w, LEAST_MEAN_W) for one in series]))


def total(parts: Iterable[Sums]) -> Sums:
    """Their sum."""
    made = Sums()
    for part in parts:
        made.add(part)
    return made


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that there are; None without any."""
    there = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(np.maximum(there, 1e-12))))) if there else None


def worst(values: Iterable[float | None]) -> float | None:
    """The largest of those that there are."""
    return max((value for value in values if value is not None), default=None)


def within_bounds(rows: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which share of series keeps its bound of the request escape rate, by length, and the worst group pooled."""
    found: dict[str, Any] = {}
    kept_all: list[bool] = []
    for name, (shortest_s, longest_s, bound) in BOUNDS.items():
        kept = [row["escape_rate"] <= bound for row in rows if shortest_s <= row["duration_s"] < longest_s]
        found[name] = {"bound": bound, "series": len(kept), "share_within": sum(kept) / len(kept) if kept else None}
        kept_all += kept
    found["pooled"] = {"bound": POOLED_BOUND, "worst_group": max(group["escape_rate"] for group in groups)}
    found["share_within"] = sum(kept_all) / len(kept_all) if kept_all else None
    return found
