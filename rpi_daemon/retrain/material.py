"""What is learned from: spans of the history that are nominal, and what was left out, counted by reason."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.query import damage_notes, listed
from rpi_daemon.history.stretches import POWER, Stretch, stretches
from rpi_daemon.history.weeks import History, Mark
from rpi_daemon.models.inputs import HOLD_TICKS, OFF_SHARE
from rpi_daemon.records import HORIZONS_S, TICK_S, BoolArray, FloatArray, IntArray, Quality

Float32 = NDArray[np.float32]

# 5 min: long enough to warm up in, short enough that many places of a week fit in memory. Of a short history less; all
# divide a stretch, so that nothing is left over.
SPAN_TICKS: Final = (3000, 2000, 1500, 1000, 600, 300, 200)
SPANS_PER_HISTORY: Final = 20  # a span is at most this part of the history
HELD_BACK: Final = 0.2  # of what is stored, the newest
HELD_BACK_MOST: Final = 0.5  # of a short history whose newest fifth has no nominal span
STRETCH_S: Final = 600.0
FEW_MINUTES: Final = 30  # whose last ones, which are not whole, count
KEPT_SPANS: Final = 1200  # of all outlets together, to choose from: 18 MB
CONSTANT_S: Final = 60.0  # to the last bit: a sensor that is stuck, where the outlet is not mostly like that
USUAL_SHARE: Final = 0.2  # of an outlet's spans that are constant: then it is how this outlet reads
ABOVE_RATING: Final = 1.5  # of the rating: what the forecaster's own bounds allow
ORDINARY: Final = (
    5.0,
    95.0,
)  # percentiles of an outlet's own spans; further out than their distance again is far outside
SLACK: Final = 0.1  # of the rating, on top
ENOUGH_TO_TELL: Final = 40  # spans of an outlet, for its own distribution
REPEATED_ANCHORS: Final = 3  # of a span that came before at one and the same distance
DISTRUSTED: Final = 0.3  # share of suspicious spans from which on the rest is not believed either

# Reasons, by tick and by span; the suspicious ones are those that an attacker or a broken sensor would cause.
NOT_READ, NOT_NORMAL, CENSORED, SATURATED, OFF = "not_read", "not_normal", "censored", "saturated", "off"
SHORT, STUCK, REPEATED, FAR_OUTSIDE, OUTLET = "short", "stuck", "repeated", "far_outside", "outlet_distrusted"
SUSPICIOUS: Final = (SATURATED, STUCK, REPEATED, FAR_OUTSIDE)
MARKED: Final = {
    NOT_NORMAL: int(Mark.HOLD | Mark.STATIC_SAFE | Mark.DEVICE_DEFAULT),
    CENSORED: int(Mark.CENSORED),
    SATURATED: int(Quality.SATURATED),
    NOT_READ: int(Quality.STALE | Quality.VOLTAGE_LOST | Quality.REVERSED),
}

_WINDOW: Final = 16  # readings of a fingerprint
_ANCHOR_BITS: Final = 7  # every 128th fingerprint is kept: 23 of a span
_FACTORS: Final = np.random.default_rng(1).integers(1, 2**63, _WINDOW, dtype=np.uint64) | np.uint64(1)
_STEP_W: Final = 0.2  # of power as it is stored
_BUSY: Final = 8  # changes within a fingerprint: what hardly moves repeats by chance


@dataclass(slots=True)
class Span:
    """One outlet's readings of `len(power_w)` ticks without a gap above 0.5 s."""

    outlet: str
    rating_w: float
    interval_ticks: int
    t_ns: int
    power_w: Float32  # [T]; a slow meter's reading is repeated
    fresh: BoolArray  # [T]
    escaped: float  # share of its seconds in which the draw passed the request


@dataclass(slots=True)
class Material:
    """What there is to learn from and to judge by."""

    learn: list[Span]
    judge: list[Span]  # newer than every span of `learn`
    span_ticks: int
    stored_h: float  # of the rack
    used_outlet_h: float
    left_out_h: Mapping[str, float]  # outlet hours by reason
    suspicious: float  # share of them in all that could have been used
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the report of a training."""
        return {
            "stored_h": round(self.stored_h, 3),
            "span_s": self.span_ticks * TICK_S,
            "learn_spans": len(self.learn),
            "judge_spans": len(self.judge),
            "used_outlet_h": round(self.used_outlet_h, 2),
            "left_out_outlet_h": {name: round(h, 3) for name, h in self.left_out_h.items()},
            "suspicious_share": round(self.suspicious, 4),
            "notes": self.notes,
        }


@dataclass(slots=True)
class _Seen:
    """Facts of one span that are kept although its readings may not be."""

    start_ns: int
    ticks: int
    mean_w: float
    movement_w: float  # mean change from reading to reading
    highest_w: float
    constant: bool
    learn: bool
    span: Span | None  # kept to choose from
    why_not: str = ""


def gather(
    history: History,
    rack: str,
    ratings_w: Mapping[str, float],
    from_ns: int,
    to_ns: int,
    seed: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> Material:
    """Read [from_ns, to_ns) once, and choose. `ratings_w` by outlet names the outlets of the configuration.

    Memory does not grow with the history: per outlet a random choice of spans is kept, more likely those with escapes.
    """
    minutes_ns = history.times(POWER, from_ns, to_ns)
    material = _gather(history, rack, ratings_w, minutes_ns, to_ns, HELD_BACK, seed, progress)
    if not material.judge and 0 < len(minutes_ns) < FEW_MINUTES:
        return _gather(history, rack, ratings_w, minutes_ns, to_ns, HELD_BACK_MOST, seed, progress)
    return material


def _gather(
    history: History,
    rack: str,
    ratings_w: Mapping[str, float],
    minutes_ns: IntArray,
    to_ns: int,
    held_back: float,
    seed: int,
    progress: Callable[[float], None],
) -> Material:
    """`gather` of the stored minutes that begin at `minutes_ns`, of which the newest `held_back` are to judge by."""
    stored_ticks, held_ns = _held_back(history, rack, minutes_ns, to_ns, held_back)
    if not stored_ticks:
        return Material([], [], SPAN_TICKS[-1], 0.0, 0.0, {}, 0.0, damage_notes(history))
    span_ticks = next((t for t in SPAN_TICKS if t <= stored_ticks / SPANS_PER_HISTORY), SPAN_TICKS[-1])
    sorter = _Sorter(ratings_w, span_ticks, held_ns, np.random.default_rng(seed))
    for stretch in stretches(history, rack, int(minutes_ns[0]), to_ns, longest_s=STRETCH_S):
        sorter.take(stretch)
        progress(np.searchsorted(minutes_ns, stretch.t_ns[-1]) / len(minutes_ns))
    return sorter.material(stored_ticks * TICK_S / 3600.0, history)


def _held_back(history: History, rack: str, minutes_ns: IntArray, to_ns: int, held_back: float) -> tuple[int, int]:
    """How many ticks are stored, and from when on they are held back: the newest part of what is stored, not of the time."""
    if len(minutes_ns) >= FEW_MINUTES:
        return 600 * len(minutes_ns), int(minutes_ns[int(len(minutes_ns) * (1.0 - held_back))])
    if not len(minutes_ns):
        return 0, to_ns
    t_ns = np.sort(
        np.concatenate([s.t_ns for s in stretches(history, rack, int(minutes_ns[0]), to_ns)] or [minutes_ns[:0]])
    )
    newest = max(held_back * len(t_ns), SPAN_TICKS[-1] + HORIZONS_S[-1] / TICK_S)
    return len(t_ns), int(t_ns[max(0, len(t_ns) - round(newest))]) if len(t_ns) else to_ns


class _Sorter:
    """Takes stretches, keeps a bounded choice, and tells at the end which of it may be used."""

    def __init__(self, ratings_w: Mapping[str, float], span_ticks: int, held_ns: int, rng: np.random.Generator) -> None:
        self._ratings_w = ratings_w
        self._span_ticks = span_ticks
        self._held_ns = held_ns
        self._rng = rng
        self._room = max(8, KEPT_SPANS // (2 * max(1, len(ratings_w))))  # per outlet, to learn and to judge
        self._seen: dict[str, list[_Seen]] = {outlet: [] for outlet in ratings_w}
        self._chosen: dict[tuple[str, bool], list[tuple[float, _Seen]]] = {}
        self._anchors: dict[str, list[tuple[NDArray[np.uint64], IntArray]]] = {outlet: [] for outlet in ratings_w}
        self._left_out: dict[str, float] = {}
        self._unknown: set[str] = set()
        self._calibrations: dict[str, None] = {}
        self._loads: dict[str, dict[str, None]] = {}

    def take(self, stretch: Stretch) -> None:
        """Sort one stretch's ticks and spans."""
        self._calibrations[stretch.layout.calibration] = None
        new = stretch.t_ns >= self._held_ns
        cuts = [0, int(new.argmax()) if new.any() and not new[0] else 0, len(new)]
        intervals = stretch.interval_ticks
        for row, outlet in enumerate(stretch.layout.outlets):
            if outlet not in self._ratings_w:
                self._unknown.add(outlet)
                continue
            if stretch.layout.loads:
                self._loads.setdefault(outlet, {})[stretch.layout.loads[row]] = None
            reasons = self._by_tick(stretch, row, int(intervals[row]))
            for first, last in itertools.pairwise(cuts):
                self._cut(stretch, row, reasons, first, last, int(intervals[row]))

    def _by_tick(self, stretch: Stretch, row: int, interval: int) -> dict[str, BoolArray]:
        """Ticks that are not used, by reason; what holds first is counted."""
        power_w = stretch.power_w[row]
        second = np.clip(np.searchsorted(stretch.second_ns, stretch.t_ns, side="right") - 1, 0, None)
        marks = stretch.marks[row][second] if len(stretch.second_ns) else np.full(len(power_w), -1)
        rating_w = self._ratings_w[stretch.layout.outlets[row]]
        found = {NOT_READ: _unbridged(power_w) | (marks & MARKED[NOT_READ] != 0)}
        found |= {name: marks & MARKED[name] != 0 for name in (NOT_NORMAL, CENSORED, SATURATED)}
        found[OFF] = power_w <= OFF_SHARE * rating_w
        return found

    def _cut(
        self, stretch: Stretch, row: int, reasons: Mapping[str, BoolArray], first: int, last: int, interval: int
    ) -> None:
        """Spans of the ticks [first, last) that nothing speaks against."""
        bad = np.zeros(last - first, np.bool_)
        for name, which in reasons.items():
            self._count(name, int((which[first:last] & ~bad).sum()))
            bad |= which[first:last]
        edges = np.flatnonzero(np.diff(np.concatenate([[True], bad, [True]]).astype(np.int8)))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            count = (end - begin) // self._span_ticks
            self._count(SHORT, end - begin - count * self._span_ticks)
            for k in range(count):
                start = first + begin + k * self._span_ticks
                self._add(stretch, row, slice(start, start + self._span_ticks), interval)

    def _add(self, stretch: Stretch, row: int, ticks: slice, interval: int) -> None:
        outlet = stretch.layout.outlets[row]
        power_w = _bridged(stretch.power_w[row, ticks])
        fresh = stretch.fresh[row, ticks].copy()  # a view would keep the whole stretch
        readings_w = power_w[fresh]
        if len(readings_w) < 2:
            self._count(SHORT, self._span_ticks)
            return
        start_ns = int(stretch.t_ns[ticks.start])
        change_w = np.abs(np.diff(readings_w))
        still = _longest_run(change_w < _STEP_W / 2) * interval * TICK_S
        seen = _Seen(
            start_ns,
            self._span_ticks,
            float(readings_w.mean()),
            float(change_w.mean()),
            float(readings_w.max()),
            still >= min(CONSTANT_S, 0.5 * self._span_ticks * TICK_S),
            start_ns < self._held_ns,
            None,
        )
        self._seen[outlet].append(seen)
        if interval == 1:
            hashes, places = _anchors(power_w)
            self._anchors[outlet].append((hashes, round(start_ns / NS_PER_S / TICK_S) + places))
        seconds = (stretch.second_ns >= start_ns) & (stretch.second_ns < stretch.t_ns[ticks.stop - 1])
        escaped = stretch.marks[row][seconds] & int(Mark.ESCAPED) != 0
        share = float(escaped.mean()) if len(escaped) else 0.0
        self._choose(
            seen, Span(outlet, self._ratings_w[outlet], interval, start_ns, power_w.astype(np.float32), fresh, share)
        )

    def _choose(self, seen: _Seen, span: Span) -> None:
        """A weighted reservoir: Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006)."""
        key = float(self._rng.random() ** (1.0 / weight_of(span)))
        kept = self._chosen.setdefault((span.outlet, seen.learn), [])
        seen.span = span
        kept.append((key, seen))
        if len(kept) > self._room:
            weakest = min(range(len(kept)), key=lambda i: kept[i][0])
            kept.pop(weakest)[1].span = None

    def material(self, stored_h: float, history: History) -> Material:
        """What may be used of the choice, now that each outlet's own distribution is known."""
        for outlet, seen in self._seen.items():
            self._judge_outlet(outlet, seen)
        everything = [one for found in self._seen.values() for one in found]
        for one in everything:
            if one.why_not:
                self._count(one.why_not, one.ticks)
        good = [one for one in everything if not one.why_not]
        used_ticks = sum(one.ticks for one in good)
        suspicious = sum(self._left_out.get(name, 0.0) for name in (*SUSPICIOUS, OUTLET))
        spans = [(one.learn, one.span) for one in good if one.span is not None]
        return Material(
            learn=[span for learn, span in spans if learn],
            judge=[span for learn, span in spans if not learn],
            span_ticks=self._span_ticks,
            stored_h=stored_h,
            used_outlet_h=used_ticks * TICK_S / 3600.0,
            left_out_h={name: ticks * TICK_S / 3600.0 for name, ticks in self._left_out.items() if ticks},
            suspicious=suspicious / max(1.0, suspicious + used_ticks),
            notes=self._notes(history),
        )

    def _judge_outlet(self, outlet: str, seen: list[_Seen]) -> None:
        if not seen:
            return
        usual = np.mean([one.constant for one in seen]) > USUAL_SHARE
        repeated = self._repeated(outlet, seen)
        outside = self._far_outside(outlet, seen)
        for k, one in enumerate(seen):
            if one.constant and not usual:
                one.why_not = STUCK
            elif repeated[k]:
                one.why_not = REPEATED
            elif outside[k]:
                one.why_not = FAR_OUTSIDE
        if np.mean([one.why_not != "" for one in seen]) > DISTRUSTED:
            for one in seen:
                one.why_not = one.why_not or OUTLET

    def _far_outside(self, outlet: str, seen: list[_Seen]) -> BoolArray:
        """Spans whose level or movement is far from the outlet's own long run, or above what it can carry."""
        rating_w = self._ratings_w[outlet]
        outside = np.array([one.highest_w > ABOVE_RATING * rating_w for one in seen])
        if len(seen) < ENOUGH_TO_TELL:
            return outside
        for values in (np.array([one.mean_w for one in seen]), np.array([one.movement_w for one in seen])):
            low, high = np.percentile(values, ORDINARY)
            far = (high - low) + SLACK * rating_w
            outside |= (values < low - far) | (values > high + far)
        return outside

    def _repeated(self, outlet: str, seen: list[_Seen]) -> BoolArray:
        """Spans that play earlier readings again, to the last bit, at one distance: no measured draw does that."""
        found = np.zeros(len(seen), np.bool_)
        if not self._anchors[outlet]:
            return found
        hashes = np.concatenate([h for h, _ in self._anchors[outlet]])
        places = np.concatenate([p for _, p in self._anchors[outlet]])
        order = np.lexsort((places, hashes))
        hashes, places = hashes[order], places[order]
        same = np.flatnonzero(hashes[1:] == hashes[:-1])
        starts = np.array([round(one.start_ns / NS_PER_S / TICK_S) for one in seen])
        by_start = np.argsort(starts)
        later = places[same + 1]
        span = by_start[np.clip(np.searchsorted(starts[by_start], later, side="right") - 1, 0, None)]
        pairs, counts = np.unique(np.stack([span, later - places[same]]), axis=1, return_counts=True)
        found[pairs[0, counts >= REPEATED_ANCHORS]] = True
        return found

    def _count(self, reason: str, ticks: int) -> None:
        self._left_out[reason] = self._left_out.get(reason, 0.0) + ticks

    def _notes(self, history: History) -> list[str]:
        notes = damage_notes(history)
        if self._unknown:
            notes.append(f"not in the configuration, left out: {listed(sorted(self._unknown))}")
        if absent := sorted(outlet for outlet, seen in self._seen.items() if not seen):
            notes.append(f"nothing to learn of: {listed(absent)}")
        if len(self._calibrations) > 1:
            notes.append(
                f"{len(self._calibrations)} calibrations in the history: no span reaches from one into another"
            )
        if moved := sorted(outlet for outlet, loads in self._loads.items() if len(loads) > 1):
            notes.append(f"fed another load within the history: {listed(moved)}; no span reaches over the change")
        if distrusted := sorted(o for o, seen in self._seen.items() if any(one.why_not == OUTLET for one in seen)):
            notes.append(f"distrusted as a whole, too much of it is not nominal: {listed(distrusted)}")
        return notes


def weight_of(span: Span) -> float:
    """How much more often a span is learned from: up to four times with requests that were passed."""
    return 1.0 + min(3.0, 30.0 * span.escaped)


def _unbridged(power_w: FloatArray) -> BoolArray:
    """Unknown readings that no forecaster bridges either: gaps longer than 0.5 s."""
    unknown = np.isnan(power_w)
    if not unknown.any():
        return unknown
    edges = np.flatnonzero(np.diff(np.concatenate([[False], unknown, [False]]).astype(np.int8)))
    out = np.zeros_like(unknown)
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if end - begin > HOLD_TICKS or begin == 0:
            out[begin:end] = True
    return out


def _bridged(power_w: FloatArray) -> FloatArray:
    """Short gaps hold the reading before them, as the network's input stage does."""
    known = np.isfinite(power_w)
    if known.all():
        return power_w
    known[0] = True
    held: FloatArray = power_w[np.maximum.accumulate(np.where(known, np.arange(len(power_w)), 0))]
    return np.nan_to_num(held, nan=float(np.nanmean(power_w)))


def _longest_run(same: BoolArray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) + 1 if len(edges) else 0


def _anchors(power_w: FloatArray) -> tuple[NDArray[np.uint64], IntArray]:
    """Fingerprints of 16 readings wherever their own value says so, so that a copy has the same ones at any offset.

    Content-defined, as in Manber, "Finding similar files in a large file system" (1994).
    """
    counts = np.rint(power_w / _STEP_W).astype(np.int64).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(counts, _WINDOW)
    hashes = (windows * _FACTORS).sum(axis=1, dtype=np.uint64)
    hashes ^= hashes >> np.uint64(29)
    hashes *= _FACTORS[0]
    places = np.flatnonzero(hashes >> np.uint64(64 - _ANCHOR_BITS) == 0)
    busy = (np.diff(windows[places], axis=1) != 0).sum(axis=1) >= _BUSY
    return hashes[places[busy]], places[busy]
