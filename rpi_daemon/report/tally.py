"""A span of the history in one pass, block by block: energy, peaks, what was reserved and what would have sufficed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.weeks import MARKS, Block, Mark, StoredLimit
from rpi_daemon.records import BoolArray, FloatArray, IntArray

POWER: Final = "power_w"
REQUEST_MEAN, REQUEST_MAX = "request_w/mean", "request_w/max"
QUANTITIES: Final = (POWER, REQUEST_MEAN, REQUEST_MAX, MARKS)
AHEAD: Final = 5  # seconds that a request is for
TICKS: Final = 10  # of a second
GAP_NS: Final = NS_PER_S  # more than this between two blocks is a gap
BUCKETS: Final = 240  # points of a curve, fewer where they would be shorter than `SHORTEST_NS`
SHORTEST_NS: Final = 2 * NS_PER_S
NOT_OURS: Final = frozenset({"read", "stands", "foreign_change"})  # reasons of limits that nobody here wrote
SAFE: Final = Mark.STATIC_SAFE | Mark.DEVICE_DEFAULT  # then the static limits stand, whatever was requested


@dataclass(frozen=True, slots=True)
class Outlets:
    """Whom it is about: [n] each. `together[i, j]`: outlet j feeds the same load as outlet i."""

    ids: tuple[str, ...]
    static_w: FloatArray  # the configured static limits
    together: BoolArray
    opted_in: BoolArray  # whose limit the daemon may write in closed loop


@dataclass(frozen=True, slots=True)
class Gap:
    """A time of which nothing is stored, UTC."""

    from_ns: int
    to_ns: int


class Highest:
    """The largest of some numbers, and when it was."""

    def __init__(self, n: int) -> None:
        self.value = np.full(n, np.nan)
        self.t_ns = np.zeros(n, np.int64)

    def take(self, values: FloatArray, t_ns: IntArray) -> None:
        """`values` [n, k] at `t_ns` [k]; NaN is not known."""
        if not values.size:
            return
        known = np.where(np.isnan(values), -np.inf, values)
        place = known.argmax(axis=1)
        best = known[np.arange(len(known)), place]
        higher = (best > -np.inf) & ~(best <= self.value)
        self.value[higher] = best[higher]
        self.t_ns[higher] = t_ns[place[higher]]


class Curve:
    """Means, and the lowest and highest value, of equal spans."""

    def __init__(self, n: int, from_ns: int, to_ns: int) -> None:
        self._from_ns, self._to_ns = from_ns, to_ns
        self._points = int(np.clip((to_ns - from_ns) // SHORTEST_NS, 1, BUCKETS))
        self._sum, self._count = np.zeros((2, n, self._points))
        self.low = np.full((n, self._points), np.nan)
        self.high = np.full((n, self._points), np.nan)

    @property
    def mean(self) -> FloatArray:
        """[n, points]; NaN where nothing was known."""
        return self._sum / np.where(self._count > 0.0, self._count, np.nan)

    def take(self, values: FloatArray, t_ns: IntArray) -> None:
        """`values` [n, k] at ascending `t_ns` [k]."""
        if not len(t_ns):
            return
        place = np.clip((t_ns - self._from_ns) * self._points // (self._to_ns - self._from_ns), 0, self._points - 1)
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        at = place[starts]
        known = ~np.isnan(values)
        self._sum[:, at] += np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
        self._count[:, at] += np.add.reduceat(known.astype(np.float64), starts, axis=1)
        self.low[:, at] = np.fmin(self.low[:, at], np.fmin.reduceat(values, starts, axis=1))
        self.high[:, at] = np.fmax(self.high[:, at], np.fmax.reduceat(values, starts, axis=1))


class LimitsInTime:
    """The limits that stood, played back beside the measurements; counts what changed them within the span."""

    def __init__(self, outlets: Sequence[str], changes: Iterable[StoredLimit], from_ns: int) -> None:
        n = len(outlets)
        self._place = {outlet: i for i, outlet in enumerate(outlets)}
        self._changes: Iterator[StoredLimit] = iter(changes)
        self._next = next(self._changes, None)
        self._from_ns = from_ns
        self._limit_w = np.full(n, np.nan)
        self.kind = [""] * n
        self.writes = np.zeros(n, np.int64)  # ours, read back
        self.foreign = np.zeros(n, np.int64)

    def at(self, t_ns: IntArray) -> FloatArray:
        """The limits [n, k] at ascending moments [k], or [n, 1] where none changed meanwhile; NaN is not known."""
        while self._next is not None and self._next.t_ns <= t_ns[0]:
            self._apply(self._limit_w[:, None], 0)
        if self._next is None or self._next.t_ns > t_ns[-1]:
            return self._limit_w[:, None].copy()
        limits = np.repeat(self._limit_w[:, None], len(t_ns), axis=1)
        while self._next is not None and self._next.t_ns <= t_ns[-1]:
            self._apply(limits, int(np.searchsorted(t_ns, self._next.t_ns)))
        self._limit_w = limits[:, -1].copy()
        return limits

    def rest(self) -> None:
        """Count what changed after the last measurement."""
        while self._next is not None:
            self._apply(self._limit_w[:, None], 0)

    def _apply(self, limits: FloatArray, column: int) -> None:
        assert self._next is not None
        change, self._next = self._next, next(self._changes, None)
        i = self._place.get(change.outlet)
        if i is None:
            return
        limits[i, column:] = np.nan if change.limit_w is None else change.limit_w
        self.kind[i] = change.kind
        if change.t_ns >= self._from_ns:
            self.writes[i] += change.reason not in NOT_OURS
            self.foreign[i] += change.reason == "foreign_change"


class Needs:
    """Requests beside the draw of the 5 s after them, a moment each second; and what static limits would have met.

    A moment is judged where the request is known and each of the next five seconds has a reading. Where the daemon was in
    STATIC_SAFE the static limit counts as reserved, not the request. In force is, in closed loop, what the PDU held of an
    outlet that is opted in; else, and where that is not known, the static limit.
    """

    def __init__(self, outlets: Outlets, from_ns: int, to_ns: int) -> None:
        n = len(outlets.ids)
        self._outlets = outlets
        self._t_ns = np.zeros(0, np.int64)
        self._waiting = np.zeros((6, n, 0))  # of each second highest and mean draw; mean and highest reserve, in force
        self._histogram = np.zeros(
            (n, 1024), np.int64
        )  # of the highest draw of the next 5 s, rounded up to whole watts
        self.moments = np.zeros(n, np.int64)
        self.over_static = np.zeros(n, np.int64)
        self._draw_w, self._reserve_w = np.zeros((2, n))
        self.all_moments = 0
        self._all_draw_w = self._all_reserve_w = self._all_in_force_w = 0.0
        self.highest = Highest(1)  # of all reserves together
        self.highest_in_force = Highest(1)  # of all limits together
        self.curve = Curve(1, from_ns, to_ns)

    @property
    def draw_w(self) -> FloatArray:
        """Mean over the judged moments, [n]."""
        return self._draw_w / np.where(self.moments > 0, self.moments, np.nan)

    @property
    def reserve_w(self) -> FloatArray:
        """Mean of what the daemon's requests reserve, [n]; of an outlet with a twin for both: one feed may be lost."""
        return self._reserve_w / np.where(self.moments > 0, self.moments, np.nan)

    @property
    def all_draw_w(self) -> float:
        return self._all_draw_w / self.all_moments if self.all_moments else np.nan

    @property
    def all_reserve_w(self) -> float:
        """Mean of all reserves together; an outlet that could not be judged at a moment counts with its static limit."""
        return self._all_reserve_w / self.all_moments if self.all_moments else np.nan

    @property
    def all_in_force_w(self) -> float:
        """Mean of all limits in force together, over the same moments."""
        return self._all_in_force_w / self.all_moments if self.all_moments else np.nan

    def static_for(self, escape_share: FloatArray) -> FloatArray:
        """The lowest constant limit [n], W, that at most this share of the moments' highest draws passed. In hindsight."""
        above = self._histogram[:, ::-1].cumsum(axis=1)[:, ::-1]  # [i, w]: moments with a highest draw of w or more
        over = np.concatenate([above[:, 1:], np.zeros((len(above), 1), np.int64)], axis=1)  # more than w
        with np.errstate(invalid="ignore"):
            enough = over <= escape_share[:, None] * self.moments[:, None]
        return np.where(np.isnan(escape_share) | (self.moments == 0), np.nan, enough.argmax(axis=1).astype(np.float64))

    def take(
        self, t_ns: IntArray, power_w: FloatArray, mean_w: FloatArray, high_w: FloatArray, limit_w: FloatArray,
        marks: IntArray,
    ) -> None:  # fmt: skip
        """Seconds that begin at `t_ns` [m]: power and limits [n, m, 10], requests and marks [n, m]."""
        if len(self._t_ns) and abs(int(t_ns[0]) - int(self._t_ns[-1]) - NS_PER_S) >= GAP_NS:
            self._t_ns, self._waiting = self._t_ns[:0], self._waiting[:, :, :0]
        known = ~np.isnan(power_w)
        count = known.sum(axis=2)
        safe = (marks & SAFE) != 0
        written = ((marks & Mark.CLOSED_LOOP) != 0) & self._outlets.opted_in[:, None]
        draw_w = np.where(known, power_w, 0.0).sum(axis=2) / np.where(count > 0, count, np.nan)
        highest_w = np.where(count > 0, np.where(known, power_w, -np.inf).max(axis=2), np.nan)
        static_w = self._outlets.static_w[:, None]
        reserve = [np.where(safe, static_w, self._of_loads(request_w)) for request_w in (mean_w, high_w)]
        stood_w = np.where(written[:, :, None] & ~np.isnan(limit_w), limit_w, static_w[:, :, None])
        in_force = (stood_w.mean(axis=2), stood_w.max(axis=2))
        self._t_ns = np.concatenate([self._t_ns, t_ns])
        self._waiting = np.concatenate([self._waiting, np.array([highest_w, draw_w, *reserve, *in_force])], axis=2)
        if len(self._t_ns) > AHEAD:
            self._judge(len(self._t_ns) - AHEAD)

    def _of_loads(self, request_w: FloatArray) -> FloatArray:
        """Each outlet reserves its whole load: what its twin requests, too. Not known where one of them is not."""
        return sum_of_loads(self._outlets.together, request_w)

    def _judge(self, k: int) -> None:
        """The first `k` seconds that wait: the five after each of them are there."""
        highest_w, draw_w, mean_w, high_w, in_force_w, high_in_force_w = self._waiting
        ahead_w = np.lib.stride_tricks.sliding_window_view(highest_w[:, 1:], AHEAD, axis=1).max(axis=2)
        draw_w, mean_w, high_w, t_ns = draw_w[:, :k], mean_w[:, :k], high_w[:, :k], self._t_ns[:k]
        judged = ~(np.isnan(ahead_w) | np.isnan(mean_w) | np.isnan(draw_w))
        static_w = self._outlets.static_w[:, None]
        self.moments += judged.sum(axis=1)
        self._draw_w += np.where(judged, draw_w, 0.0).sum(axis=1)
        self._reserve_w += np.where(judged, mean_w, 0.0).sum(axis=1)
        self.over_static += (judged & (ahead_w > static_w)).sum(axis=1)
        self._count(judged, ahead_w)
        some = judged.any(axis=0)
        drawn_w = np.where(np.isnan(draw_w), 0.0, draw_w).sum(axis=0)
        together_w = np.where(judged, mean_w, static_w).sum(axis=0)
        self.all_moments += int(some.sum())
        self._all_draw_w += float(drawn_w[some].sum())
        self._all_reserve_w += float(together_w[some].sum())
        self.curve.take(together_w[None, some], t_ns[some])
        self._all_in_force_w += float(in_force_w[:, :k][:, some].sum())
        self.highest_in_force.take(high_in_force_w[:, :k].sum(axis=0)[None, some], t_ns[some])
        self.highest.take(np.where(judged, high_w, static_w).sum(axis=0)[None, some], t_ns[some])
        self._t_ns, self._waiting = self._t_ns[k:], self._waiting[:, :, k:]

    def _count(self, judged: BoolArray, ahead_w: FloatArray) -> None:
        whole_w = np.maximum(np.ceil(np.where(judged, ahead_w, 0.0)), 0.0).astype(np.int64)
        missing = int(whole_w.max(initial=0)) + 1 - self._histogram.shape[1]
        if missing > 0:
            self._histogram = np.pad(self._histogram, ((0, 0), (0, missing)))
        np.add.at(self._histogram, (np.nonzero(judged)[0], whole_w[judged]), 1)


class Tally:
    """One pass: `take` each moment's blocks in order of time, then read. [n] each, NaN where nothing was known."""

    def __init__(self, outlets: Outlets, limits: LimitsInTime, from_ns: int, to_ns: int) -> None:
        n = len(outlets.ids)
        self._outlets = outlets
        self.from_ns, self.to_ns = from_ns, to_ns
        self.limits = limits
        self._rows: dict[tuple[str, ...], IntArray] = {}
        self._end_ns: int | None = None
        self._was_over = np.zeros(n, np.bool_)
        self._energy_j = np.zeros(n)
        self.known_s = np.zeros(n)
        self.any_known_s = 0.0
        self.peak = Highest(n)
        self.peak_together = Highest(1)
        self.read_at_peak = 0  # outlets with a reading then
        self._limit_w, self._limit_n = np.zeros((2, n))
        self.limit_escape_s = np.zeros(n)
        self.limit_episodes = np.zeros(n, np.int64)
        self.limit_passed_by = Highest(n)
        self.seconds = 0  # of the span that are stored
        self.mode_seconds = {"closed_loop": 0, "advisory": 0}
        self.state_seconds = {"NORMAL": 0, "HOLD": 0, "STATIC_SAFE": 0, "DEVICE_DEFAULT": 0}
        self.gaps: list[Gap] = []
        self.strangers: dict[str, None] = {}  # outlets of our rack that the configuration does not have
        self.calibrations: dict[str, None] = {}
        self.set_back = False
        self.needs = Needs(outlets, from_ns, to_ns)
        self.curve = Curve(1, from_ns, to_ns)  # of all outlets together
        self.curves = Curve(n, from_ns, to_ns)

    @property
    def energy_kwh(self) -> FloatArray:
        """Of the time that is known, nothing added for the rest."""
        return np.where(self.known_s > 0.0, self._energy_j / 3.6e6, np.nan)

    @property
    def mean_w(self) -> FloatArray:
        return self._energy_j / np.where(self.known_s > 0.0, self.known_s, np.nan)

    @property
    def limit_w(self) -> FloatArray:
        """Mean of the limit in force while the draw was known, too."""
        return self._limit_w / np.where(self._limit_n > 0.0, self._limit_n, np.nan)

    def take(self, blocks: Sequence[Block]) -> None:
        """The blocks of `QUANTITIES` that begin at the same moment. Without power nothing counts: that block is damaged."""
        found = {block.quantity: block for block in blocks}
        power = found.get(POWER)
        if power is None:
            return
        rows = self._rows_of(power.layout.outlets)
        self.calibrations[power.layout.calibration] = None
        t_ns = power.t_ns + power.period_ns * np.arange(power.values.shape[1], dtype=np.int64)
        inside = (t_ns >= self.from_ns) & (t_ns < self.to_ns)
        if not inside.any():
            return
        self._note_gap(int(t_ns[inside][0]), power.end_ns)
        power_w = np.where(inside, _spread(power.values, rows), np.nan)
        limit_w = np.full_like(power_w, np.nan)
        limit_w[:, inside] = self.limits.at(t_ns[inside])
        self._measure(t_ns[inside], power_w[:, inside], limit_w[:, inside], power.period_ns / NS_PER_S)
        self._second_by_second(power, power_w, limit_w, found, rows)

    def _rows_of(self, stored: tuple[str, ...]) -> IntArray:
        """Where each outlet's row is in blocks of that layout, -1: it has none."""
        if stored not in self._rows:
            self._rows[stored] = np.array([stored.index(x) if x in stored else -1 for x in self._outlets.ids])
            self.strangers |= dict.fromkeys(stored)
        return self._rows[stored]

    def _note_gap(self, begin_ns: int, end_ns: int) -> None:
        if self._end_ns is not None:
            away_ns = begin_ns - self._end_ns
            self.set_back |= away_ns <= -GAP_NS
            if abs(away_ns) >= GAP_NS:
                self._was_over[:] = False
            if away_ns >= GAP_NS:
                self.gaps.append(Gap(self._end_ns, begin_ns))
        self._end_ns = end_ns if self._end_ns is None else max(self._end_ns, end_ns)

    def _measure(self, t_ns: IntArray, power_w: FloatArray, limit_w: FloatArray, period_s: float) -> None:
        known = ~np.isnan(power_w)
        read = known.sum(axis=0)
        self._energy_j += np.where(known, power_w, 0.0).sum(axis=1) * period_s
        self.known_s += known.sum(axis=1) * period_s
        self.any_known_s += float((read > 0).sum()) * period_s
        self.peak.take(power_w, t_ns)
        together_w = np.where(read > 0, np.where(known, power_w, 0.0).sum(axis=0), np.nan)[None]
        before_ns = int(self.peak_together.t_ns[0])
        self.peak_together.take(together_w, t_ns)
        if (peak_ns := int(self.peak_together.t_ns[0])) != before_ns:
            self.read_at_peak = int(read[np.searchsorted(t_ns, peak_ns)])
        self.curve.take(together_w, t_ns)
        self.curves.take(power_w, t_ns)
        self._pass_limits(t_ns, power_w, limit_w, period_s)

    def _pass_limits(self, t_ns: IntArray, power_w: FloatArray, limit_w: FloatArray, period_s: float) -> None:
        both = ~np.isnan(power_w) & ~np.isnan(limit_w)
        self._limit_w += np.where(both, limit_w, 0.0).sum(axis=1)
        self._limit_n += both.sum(axis=1)
        with np.errstate(invalid="ignore"):
            over = power_w > limit_w
        before = np.concatenate([self._was_over[:, None], over[:, :-1]], axis=1)
        self.limit_escape_s += over.sum(axis=1) * period_s
        self.limit_episodes += (over & ~before).sum(axis=1)
        self.limit_passed_by.take(np.where(over, power_w - limit_w, np.nan), t_ns)
        self._was_over = over[:, -1]

    def _second_by_second(
        self, power: Block, power_w: FloatArray, limit_w: FloatArray, found: Mapping[str, Block], rows: IntArray
    ) -> None:
        seconds = -(-power_w.shape[1] // TICKS)
        n = len(power_w)
        stored = {
            name: _spread(found[name].values, rows)[:, :seconds] if name in found else np.full((n, seconds), np.nan)
            for name in (REQUEST_MEAN, REQUEST_MAX, MARKS)
        }
        t_ns = power.t_ns + NS_PER_S * np.arange(seconds, dtype=np.int64)
        inside = (t_ns >= self.from_ns) & (t_ns < self.to_ns)
        marks = np.where(np.isnan(stored[MARKS]), 0.0, stored[MARKS]).astype(np.int64)
        marked = (~np.isnan(stored[MARKS])).sum(axis=0) > 0
        self._count_modes(marks[:, inside], marked[inside])
        if inside.any():
            self.needs.take(
                t_ns[inside],
                _by_second(power_w, seconds)[:, inside],
                stored[REQUEST_MEAN][:, inside],
                stored[REQUEST_MAX][:, inside],
                _by_second(limit_w, seconds)[:, inside],
                marks[:, inside],
            )

    def _count_modes(self, marks: IntArray, known: BoolArray) -> None:
        """Mode and safe state are the rack's: what any outlet says of a second holds for all."""
        rack = np.bitwise_or.reduce(marks, axis=0)[known]
        self.seconds += len(rack)
        closed = int(((rack & Mark.CLOSED_LOOP) != 0).sum())
        self.mode_seconds["closed_loop"] += closed
        self.mode_seconds["advisory"] += len(rack) - closed
        rest = np.ones(len(rack), np.bool_)
        for mark in (Mark.DEVICE_DEFAULT, Mark.STATIC_SAFE, Mark.HOLD):
            there = rest & ((rack & mark) != 0)
            self.state_seconds[str(mark.name)] += int(there.sum())
            rest &= ~there
        self.state_seconds["NORMAL"] += int(rest.sum())


def sum_of_loads(together: BoolArray, values: FloatArray) -> FloatArray:
    """For each outlet the sum over all outlets of its load, [n] or [n, k]; NaN where one of them is not known."""
    of = together.astype(np.float64)
    unknown = of @ np.isnan(values)
    return np.asarray(np.where(unknown > 0.0, np.nan, of @ np.nan_to_num(values)))


def _by_second(values: FloatArray, seconds: int) -> FloatArray:
    """Ticks [n, k] as [n, seconds, 10], NaN where the last second was cut short."""
    padded = np.full((len(values), seconds * TICKS), np.nan)
    padded[:, : values.shape[1]] = values
    return padded.reshape(len(values), seconds, TICKS)


def _spread(values: FloatArray, rows: IntArray) -> FloatArray:
    """Rows of a block as rows of our outlets, NaN where it has none."""
    found: FloatArray = np.where(rows[:, None] >= 0, values[rows], np.nan)
    return found
