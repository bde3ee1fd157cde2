"""The report as a document: what a span of the history says about power, risk, forecasts and what was done."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from rpi_daemon import __version__
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.rack import rack_model
from rpi_daemon.errors import RpiError
from rpi_daemon.history.chain import Event
from rpi_daemon.history.events import read_events
from rpi_daemon.history.historian import BY_MINUTE, MINUTE_NS, REQUEST_WEIGHT, WEIGHT
from rpi_daemon.history.query import damage_notes
from rpi_daemon.history.show import stamp
from rpi_daemon.history.weeks import History
from rpi_daemon.look_back import Question
from rpi_daemon.records import FloatArray, SafeState
from rpi_daemon.report.tally import GAP_NS, POWER, QUANTITIES, Curve, LimitsInTime, Outlets, Tally, sum_of_loads

SCHEMA: Final = 1
SHORTEST_S: Final = 10.0  # of measurements: less is no report
DAY_NS: Final = 86_400 * NS_PER_S
MODEL_EVENTS: Final = ("model.", "retrain")
NOTABLE: Final = 500  # events that are listed, the newest
# What happens at every start, or often and by design; the rest is worth a line.
ROUTINE: Final = frozenset(
    {
        "pdu.found", "static_safe.verified", "static_safe.left", "board.sampling", "cap.found", "cap", "cap.verified",
        "cap.left", "found_limits.none", "trap_sink.reachable", "traps.on_disk", "history.deleted", "alarm",
    }
)  # fmt: skip
Progress = Callable[[float], None]


class Scores:
    """What the daemon noted each minute about its requests and forecasts; [n] each, NaN where nothing was noted."""

    def __init__(self, outlets: Sequence[str]) -> None:
        n = len(outlets)
        self._outlets = outlets
        self._sums = {quantity.name: np.zeros(n) for quantity in BY_MINUTE}
        self._weights: dict[str, FloatArray] = {}
        self._compared = np.zeros(n)
        self._weighed = {WEIGHT: np.zeros(n), REQUEST_WEIGHT: np.zeros(n)}  # minutes with weights

    def read(self, history: History, rack: str, from_ns: int, to_ns: int) -> None:
        """Take all minutes that begin in the span."""
        weights = [x for x in history.quantities(from_ns - DAY_NS, to_ns) if x.startswith((WEIGHT, REQUEST_WEIGHT))]
        for blocks in history.minutes((*self._sums, *weights), from_ns, to_ns, rack):
            minutes = blocks[0].values.shape[1]
            t_ns = blocks[0].t_ns + MINUTE_NS * np.arange(minutes, dtype=np.int64)
            inside = (t_ns >= from_ns) & (t_ns < to_ns)
            stored = blocks[0].layout.outlets
            rows = [(i, stored.index(x)) for i, x in enumerate(self._outlets) if x in stored]
            if rows and inside.any():
                ours, theirs = (np.array(place) for place in zip(*rows, strict=True))
                self._take(
                    {b.quantity: b.values[theirs][:, inside] for b in blocks if b.values.shape[1] == minutes}, ours
                )

    def _take(self, values: Mapping[str, FloatArray], ours: FloatArray) -> None:
        judged = values.get("judged")
        if judged is None:
            return  # damaged: counts without it mean nothing
        judged = np.nan_to_num(judged)
        for name in ("judged", "escaped", "episodes"):
            self._sums[name][ours] += np.nan_to_num(values.get(name, np.zeros(1))).sum(axis=-1)
        error_w, persistence_w = values.get("error_w"), values.get("persistence_error_w")
        if error_w is not None and persistence_w is not None:
            both = ~(np.isnan(error_w) | np.isnan(persistence_w))
            self._compared[ours] += np.where(both, judged, 0.0).sum(axis=1)
            self._sums["error_w"][ours] += np.where(both, judged * error_w, 0.0).sum(axis=1)
            self._sums["persistence_error_w"][ours] += np.where(both, judged * persistence_w, 0.0).sum(axis=1)
        for prefix, weighed in self._weighed.items():
            weights = {name: weight for name, weight in values.items() if name.startswith(prefix)}
            for name, weight in weights.items():
                self._weights.setdefault(name, np.zeros(len(weighed)))[ours] += np.nan_to_num(weight).sum(axis=1)
            if weights:  # an expert that is not there in a minute had no weight then
                weighed[ours] += (~np.isnan(list(weights.values()))).any(axis=0).sum(axis=1)

    @property
    def judged(self) -> FloatArray:
        return self._sums["judged"]

    @property
    def escaped(self) -> FloatArray:
        return self._sums["escaped"]

    @property
    def episodes(self) -> FloatArray:
        return self._sums["episodes"]

    @property
    def escape_share(self) -> FloatArray:
        return self.escaped / np.where(self.judged > 0.0, self.judged, np.nan)

    def error_w(self, name: str) -> FloatArray:
        """Mean absolute error 5 s ahead: `error_w`, or `persistence_error_w` over the same moments."""
        return self._sums[name] / np.where(self._compared > 0.0, self._compared, np.nan)

    def all_error_w(self, name: str) -> float | None:
        """The same over all outlets."""
        return _share(self._sums[name].sum(), self._compared.sum())

    def weights(self, prefix: str, i: int | slice) -> dict[str, float]:
        """Mean weight of each expert for an outlet or several, the heaviest first; empty where none was noted."""
        minutes = float(self._weighed[prefix][i].sum())
        mean = {
            x.removeprefix(prefix): float(w[i].sum()) / minutes
            for x, w in self._weights.items()
            if minutes and x.startswith(prefix)
        }
        return dict(sorted(mean.items(), key=lambda item: -item[1]))


def report(asked: Question, progress: Progress = lambda _: None) -> dict[str, Any]:
    """The whole document. Raises RpiError where the span holds no measurements, or hardly any.

    `progress` is told now and then which part is done, 0 to 1.
    """
    history, rack_id = History(asked.folder), asked.config.rack.id
    from_ns, to_ns = _stored_span(asked)
    outlets, loads = _outlets(asked)
    limits = LimitsInTime(outlets.ids, history.limits(rack_id, from_ns - DAY_NS, to_ns), from_ns)
    tally = Tally(outlets, limits, from_ns, to_ns)
    for k, blocks in enumerate(history.minutes(QUANTITIES, asked.from_ns, asked.to_ns, rack_id)):
        tally.take(blocks)
        if k % 100 == 0:
            progress((blocks[0].t_ns - from_ns) / (to_ns - from_ns))
    limits.rest()
    if tally.any_known_s < SHORTEST_S:
        raise RpiError(
            f"{asked.folder}: only {tally.any_known_s:.1f} s of measurements lie between"
            f" {_told(from_ns, asked)} and {_told(to_ns, asked)}; a report needs at least {SHORTEST_S:.0f} s"
        )
    scores = Scores(outlets.ids)
    scores.read(history, rack_id, from_ns, to_ns)
    needed_w = tally.needs.static_for(scores.escape_share)
    span_s = (to_ns - from_ns) / NS_PER_S
    events, models, damaged = _events(asked, from_ns, to_ns)
    return {
        "schema": SCHEMA,
        "ok": True,
        "version": __version__,
        "written_utc_ns": round(asked.now.timestamp()) * NS_PER_S,
        "rack": rack_id,
        "zone": str(asked.now.tzinfo),
        "asked_from_utc_ns": asked.from_ns,
        "asked_to_utc_ns": asked.to_ns,
        "from_utc_ns": from_ns,
        "to_utc_ns": to_ns,
        "span_s": span_s,
        "known_share": _number(tally.any_known_s / span_s),
        "closed_loop_share": _share(tally.mode_seconds["closed_loop"], tally.seconds),
        "states": {name: _share(s, tally.seconds) for name, s in tally.state_seconds.items()},
        "together": _together(tally, outlets, scores, needed_w, span_s),
        "outlets": [_row(tally, outlets, loads, scores, needed_w, span_s, i) for i in range(len(outlets.ids))],
        "events": events,
        "models": models,
        "gaps": [{"from_utc_ns": gap.from_ns, "to_utc_ns": gap.to_ns} for gap in tally.gaps],
        "curves": {
            "from_utc_ns": from_ns,
            "to_utc_ns": to_ns,
            "draw_w": _curve(tally.curve, 0),
            "reserve_w": _curve(tally.needs.curve, 0),
            "outlets": {x: _numbers(tally.curves.mean[i]) for i, x in enumerate(outlets.ids)},
        },
        "notes": _notes(asked, tally, history, outlets, scores) + damaged,
    }  # fmt: skip


def _stored_span(asked: Question) -> tuple[int, int]:
    """From the first to the last measurement of the rack within what was asked. Raises RpiError where there is none."""
    history, rack = History(asked.folder), asked.config.rack.id
    first = next(history.minutes((POWER,), asked.from_ns, asked.to_ns, rack), None)
    if first is None:
        met = "".join(f"; {note}" for note in damage_notes(history))
        raise RpiError(
            f"{asked.folder}: nothing is stored of rack {rack!r} between"
            f" {_told(asked.from_ns, asked)} and {_told(asked.to_ns, asked)}{met}"
        )
    begin_ns, stride_ns = first[0].t_ns, 3600 * NS_PER_S
    while True:  # from the end backwards, in longer and longer strides: the last block without reading them all
        ends = [
            x[0].end_ns for x in history.minutes((POWER,), max(begin_ns, asked.to_ns - stride_ns), asked.to_ns, rack)
        ]
        if ends:
            return max(asked.from_ns, begin_ns), min(asked.to_ns, max(ends))
        stride_ns *= 8


def _outlets(asked: Question) -> tuple[Outlets, list[str]]:
    rack = rack_model(asked.config)
    pdus = [pdu.id for pdu in asked.config.pdu]
    place = [rack.outlet_ids.index(x) for x in asked.outlets]
    place.sort(key=lambda i: (pdus.index(rack.pdu_of[i]), rack.number_of[i]))
    load_of = rack.load_of[place]
    outlets = Outlets(
        tuple(rack.outlet_ids[i] for i in place), rack.static_safe_w[place], load_of[:, None] == load_of[None, :],
        rack.opted_in[place],
    )  # fmt: skip
    return outlets, [rack.loads[k].name for k in load_of]


def _together(tally: Tally, outlets: Outlets, scores: Scores, needed_w: FloatArray, span_s: float) -> dict[str, Any]:
    """All outlets as one: what stands reserved for them, and what of it they do not draw."""
    needs = tally.needs
    static_w = float(outlets.static_w.sum())
    of_loads_w = sum_of_loads(outlets.together, needed_w)
    same_risk_w = _number(np.where(np.isnan(of_loads_w), outlets.static_w, of_loads_w).sum())
    if np.isnan(of_loads_w).all():
        same_risk_w = None
    draw_w, reserve_w, highest_w = map(_number, (needs.all_draw_w, needs.all_reserve_w, needs.highest.value[0]))
    in_force_w, in_force_highest_w = map(_number, (needs.all_in_force_w, needs.highest_in_force.value[0]))
    if not tally.mode_seconds["closed_loop"]:
        in_force_w = in_force_highest_w = None  # nothing of ours was in force
    error_w, persistence_w = (scores.all_error_w(name) for name in ("error_w", "persistence_error_w"))
    days = tally.any_known_s / 86_400.0
    writes = int(tally.limits.writes.sum())
    limited = not np.isnan(tally.limit_w).all()
    return {
        "energy_kwh": _number(np.nansum(tally.energy_kwh)),
        "mean_w": _number(np.nansum(tally.energy_kwh) * 3.6e6 / tally.any_known_s),
        "peak_w": _number(tally.peak_together.value[0]),
        "peak_utc_ns": int(tally.peak_together.t_ns[0]),
        "outlets_read_at_peak": tally.read_at_peak,
        "judged_share": _number(needs.all_moments / span_s),
        "draw_w": draw_w,
        "static_w": static_w,
        "static_same_risk_w": same_risk_w,
        "reserve_w": reserve_w,
        "reserve_highest_w": highest_w,
        "reserve_highest_utc_ns": int(needs.highest.t_ns[0]) if highest_w is not None else None,
        "in_force_w": in_force_w,
        "in_force_highest_w": in_force_highest_w,
        "stranded_static_w": _minus(static_w, draw_w),
        "stranded_same_risk_w": _minus(same_risk_w, draw_w),
        "stranded_daemon_w": _minus(reserve_w, draw_w),
        "stranded_in_force_w": _minus(in_force_w, draw_w),
        "freed_in_force_w": _minus(static_w, in_force_w),
        "freed_in_force_always_w": _minus(static_w, in_force_highest_w),
        "freed_w": _minus(static_w, reserve_w),
        "freed_always_w": _minus(static_w, highest_w),
        "freed_same_risk_w": _minus(same_risk_w, reserve_w),
        "requests_judged": int(scores.judged.sum()),
        "requests_escaped": int(scores.escaped.sum()),
        "request_escape_share": _share(scores.escaped.sum(), scores.judged.sum()),
        "request_episodes": int(scores.episodes.sum()) if scores.judged.any() else None,
        "static_escape_share": _share(float(needs.over_static.sum()), float(needs.moments.sum())),
        "limit_escape_episodes": int(tally.limit_episodes.sum()) if limited else None,
        "limit_escape_s": _number(tally.limit_escape_s.sum()) if limited else None,
        "limit_w": _number(np.nansum(tally.limit_w)) if limited else None,
        "limit_passed_by_w": _number(np.nanmax(tally.limit_passed_by.value, initial=-np.inf)),
        "writes": writes,
        "foreign_changes": int(tally.limits.foreign.sum()),
        "writes_per_outlet_day": _share(writes / len(outlets.ids), days),
        "mae_w": error_w,
        "persistence_mae_w": persistence_w,
        "mae_vs_persistence": _share(error_w, persistence_w),
        "weights": scores.weights(WEIGHT, slice(None)),
        "request_weights": scores.weights(REQUEST_WEIGHT, slice(None)),
    }


def _row(
    tally: Tally, outlets: Outlets, loads: Sequence[str], scores: Scores, needed_w: FloatArray, span_s: float, i: int
) -> dict[str, Any]:
    """One outlet; null is not known."""
    needs = tally.needs
    draw_w, reserve_w, same_risk_w = (
        _number(x[i]) for x in (needs.draw_w, needs.reserve_w, sum_of_loads(outlets.together, needed_w))
    )
    static_w = float(outlets.static_w[i])
    limited = not np.isnan(tally.limit_w[i])
    error_w, persistence_w = (_number(scores.error_w(x)[i]) for x in ("error_w", "persistence_error_w"))
    return {
        "outlet": outlets.ids[i],
        "load": loads[i],
        "known_share": _number(tally.known_s[i] / span_s),
        "energy_kwh": _number(tally.energy_kwh[i]),
        "mean_w": _number(tally.mean_w[i]),
        "peak_w": _number(tally.peak.value[i]),
        "peak_utc_ns": int(tally.peak.t_ns[i]) if tally.known_s[i] else None,
        "draw_w": draw_w,
        "static_w": static_w,
        "static_same_risk_w": same_risk_w,
        "reserve_w": reserve_w,
        "stranded_static_w": _minus(static_w, draw_w),
        "stranded_same_risk_w": _minus(same_risk_w, draw_w),
        "stranded_daemon_w": _minus(reserve_w, draw_w),
        "freed_w": _minus(static_w, reserve_w),
        "freed_same_risk_w": _minus(same_risk_w, reserve_w),
        "requests_judged": int(scores.judged[i]),
        "requests_escaped": int(scores.escaped[i]),
        "request_escape_share": _number(scores.escape_share[i]),
        "request_episodes": int(scores.episodes[i]) if scores.judged[i] else None,
        "static_escape_share": _share(float(needs.over_static[i]), float(needs.moments[i])),
        "limit_w": _number(tally.limit_w[i]),
        "limit_kind": tally.limits.kind[i] or None,
        "limit_escape_episodes": int(tally.limit_episodes[i]) if limited else None,
        "limit_escape_s": _number(tally.limit_escape_s[i]) if limited else None,
        "limit_passed_by_w": _number(tally.limit_passed_by.value[i]),
        "writes": int(tally.limits.writes[i]),
        "foreign_changes": int(tally.limits.foreign[i]),
        "mae_w": error_w,
        "persistence_mae_w": persistence_w,
        "mae_vs_persistence": _share(error_w, persistence_w),
        "weights": scores.weights(WEIGHT, i),
        "request_weights": scores.weights(REQUEST_WEIGHT, i),
    }


def _events(asked: Question, from_ns: int, to_ns: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Events by kind with the notable ones, what became of models, and what could not be read."""
    damaged: list[str] = []
    kinds: Counter[str] = Counter()
    notable: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    for event in read_events(asked.folder, from_ns, to_ns, (), damaged):
        kinds[event.name] += 1
        if event.name.startswith(MODEL_EVENTS):
            models.append(_told_event(event, asked))
        elif event.name not in ROUTINE and event.data.get("state") != SafeState.NORMAL.name:
            notable.append(_told_event(event, asked))
            del notable[:-NOTABLE]
    return {"by_kind": dict(kinds.most_common()), "notable": notable}, models, [f"not readable: {x}" for x in damaged]


def _told_event(event: Event, asked: Question) -> dict[str, Any]:
    data = {key: value for key, value in event.data.items() if key != "level"}
    local = stamp(event.t_ns, asked.now.tzinfo)
    return {
        "t_utc_ns": event.t_ns,
        "local_time": local,
        "name": event.name,
        "level": event.data.get("level"),
        "data": data,
    }


def _notes(asked: Question, tally: Tally, history: History, outlets: Outlets, scores: Scores) -> list[str]:
    """What the figures do not cover, a sentence each."""
    known = {row.id for row in asked.config.outlets()}
    strangers = [x for x in tally.strangers if x not in known]
    absent = [x for x, known_s in zip(outlets.ids, tally.known_s, strict=True) if not known_s]
    gaps_s = sum(gap.to_ns - gap.from_ns for gap in tally.gaps) / NS_PER_S
    first_ns, last_ns = tally.from_ns, tally.to_ns
    found = (
        (first_ns - asked.from_ns >= GAP_NS, f"nothing is stored before {_told(first_ns, asked)}: the report begins there"),
        (asked.to_ns - last_ns >= 60 * GAP_NS, f"nothing is stored after {_told(last_ns, asked)}: the report ends there"),
        (tally.gaps, f"{_count(len(tally.gaps), 'gap')} in the measurements, {_length(gaps_s)} together: nothing is filled in"),
        (absent, f"no reading of {', '.join(absent)}: not known, not 0"),
        (strangers, f"outlets that the configuration does not have (renamed, or taken out) are left out: {', '.join(strangers)}"),
        (len(tally.calibrations) > 1, "the calibration changed within the span"),
        (tally.set_back, "the wall clock was set back within the span: times overlap, energy counts both"),
        (not scores.judged.any(), "how often requests were passed is not known: the span has none of the minutes' scores"),
        (tally.needs.all_moments == 0, "requests are not known, so nothing can be said of what they would have reserved"),
    )  # fmt: skip
    return [sentence for there, sentence in found if there] + damage_notes(history)


def _length(seconds: float) -> str:
    """A duration for people."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def _told(t_ns: int, asked: Question) -> str:
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, asked.now.tzinfo)
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _curve(curve: Curve, i: int) -> dict[str, list[float | None]]:
    return {"mean": _numbers(curve.mean[i]), "min": _numbers(curve.low[i]), "max": _numbers(curve.high[i])}


def _numbers(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 1) for value in values]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _share(part: float | None, whole: float | None) -> float | None:
    return float(part / whole) if part is not None and whole else None
