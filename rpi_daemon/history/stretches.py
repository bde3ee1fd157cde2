"""The history as what learns from it and reports on it needs it: whole stretches of time, all outlets, nothing filled in."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.historian import CLOCK_STEP_NS, GAP_NS, SECOND
from rpi_daemon.history.weeks import FRESH_SHIFT, MARKS, Block, History, Layout, StoredLimit
from rpi_daemon.records import TICK_NS, BoolArray, FloatArray, IntArray, LimitKind

POWER: Final = "power_w"
STANDS_NS: Final = (
    2 * 3600 * NS_PER_S
)  # every limit that stands is told at start, each hour, and when the clock was set
LONGEST_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time of one rack without a break: same layout (outlets, loads, calibration), same clocks, no gap above 10 s.

    k ticks of 100 ms, m seconds, n outlets in the order of `layout.outlets`. A shorter gap is NaN, and not fresh.
    """

    layout: Layout
    t_ns: IntArray  # [k] UTC
    t_mono_ns: IntArray  # [k]
    power_w: FloatArray  # [n, k]; NaN is not known. A slow meter's reading is repeated until its next one
    fresh: BoolArray  # [n, k] measured for this tick: learn from these alone
    second_ns: IntArray  # [m] UTC at which each second begins
    marks: (
        IntArray  # [n, m] bits of `weeks.Mark` and `records.Quality`: safe state, censored, escaped, closed loop, ...
    )
    seconds: Mapping[str, FloatArray]  # [n, m] of each quantity that was asked for
    limits: Mapping[str, Sequence[StoredLimit]] = field(repr=False)  # by outlet, in order; the first may be older

    @property
    def interval_ticks(self) -> IntArray:
        """Ticks between two readings, [n]; 1: a board."""
        return np.array(self.layout.interval_ticks or (1,) * len(self.layout.outlets), dtype=np.int64)

    def by_tick(self, by_second: FloatArray | IntArray) -> FloatArray:
        """[n, m] spread over ticks, [n, k]; NaN where no second is stored."""
        place = np.searchsorted(self.second_ns, self.t_ns, side="right") - 1
        there = (place >= 0) & (self.t_ns - self.second_ns[place] < NS_PER_S)
        return np.where(there, by_second[:, place], np.nan)

    def marked(self, marks: int) -> BoolArray:
        """[n, k] where any of these bits is set, or nothing is stored."""
        spread = self.by_tick((self.marks & marks) != 0)
        return np.asarray(spread != 0.0)  # NaN too

    def limit_w(self) -> FloatArray:
        """The limit in force on the PDU at each tick, [n, k]; NaN where none was known. An alarm threshold is one, too."""
        return np.array([self._limit(outlet, "limit") for outlet in self.layout.outlets])

    def enforced(self) -> BoolArray:
        """[n, k] where the device itself acts on what passes its limit; elsewhere a limit holds nothing back."""
        return np.array([self._limit(outlet, "enforced") == 1.0 for outlet in self.layout.outlets])

    def _limit(self, outlet: str, what: str) -> FloatArray:
        changes = self.limits.get(outlet, ())
        values = [np.nan]
        for change in changes:
            known = change.limit_w is not None
            number = change.limit_w if what == "limit" else float(known and LimitKind(change.kind).enforced)
            values.append(np.nan if number is None else number)
        starts = np.array([change.t_mono_ns for change in changes], dtype=np.int64)
        found: FloatArray = np.array(values)[np.searchsorted(starts, self.t_mono_ns, side="right")]
        return found


def stretches(
    history: History,
    rack: str,
    from_ns: int,
    to_ns: int,
    quantities: Collection[str] = (),
    *,
    outlets: Collection[str] | None = None,
    longest_s: float = LONGEST_S,
) -> Iterator[Stretch]:
    """What is stored of a rack in [from_ns, to_ns), in order of its end: power and marks, and `quantities` by the second.

    With `outlets` the layout and all arrays have these alone. A quantity is `forecast_w/mean`, `forecast_max_w/max`, `residual_w/mean`, `request_w/max` or the like. A stretch ends
    where outlets were renamed, loads moved, a calibration changed, the daemon was away, the wall clock was set (in two
    stretches the same wall time may come twice: `t_mono_ns` tells them apart), or after `longest_s`: one is in memory
    at a time. Another rack's blocks, damaged blocks and files that cannot be read are left out and named in
    `history.damage`. A minute whose power or marks are damaged is a gap.
    """
    unfinished: list[_Growing] = []
    for minute in history.minutes({POWER, MARKS, *quantities}, from_ns, to_ns, rack, outlets):
        blocks = {block.quantity: block for block in minute}
        if POWER not in blocks or MARKS not in blocks:
            continue
        power = blocks[POWER]
        if power.end_ns - TICK_NS < from_ns:
            continue
        for growing in [g for g in unfinished if power.t_ns - g.end_ns > GAP_NS or g.ticks >= longest_s * SECOND]:
            unfinished.remove(growing)
            yield growing.whole(history, rack)
        # where the clock was set back, minutes of before and after come in turns
        mine = next((growing for growing in unfinished if growing.goes_on_with(power)), None)
        if mine is None:
            unfinished.append(mine := _Growing(power, tuple(quantities)))
        mine.add(blocks, from_ns, to_ns)
    for growing in unfinished:
        yield growing.whole(history, rack)


class _Growing:
    """A stretch that is being put together, minute by minute."""

    def __init__(self, first: Block, quantities: Sequence[str]) -> None:
        self.ticks = 0
        self.end_ns = first.t_ns
        self._end_mono_ns = first.t_mono_ns
        self._layout = first.layout
        self._quantities = quantities
        self._clock_ns = first.t_ns - first.t_mono_ns
        self._t_ns: list[IntArray] = []
        self._power_w: list[FloatArray] = []
        self._fresh: list[BoolArray] = []
        self._second_ns: list[IntArray] = []
        self._marks: list[IntArray] = []
        self._seconds: list[list[FloatArray]] = []

    def goes_on_with(self, power: Block) -> bool:
        """Whether a block of power is the next of this stretch."""
        return (
            power.layout == self._layout
            and -TICK_NS < power.t_mono_ns - self._end_mono_ns <= GAP_NS
            and abs(power.t_ns - power.t_mono_ns - self._clock_ns) <= CLOCK_STEP_NS
        )

    def add(self, blocks: Mapping[str, Block], from_ns: int, to_ns: int) -> None:
        power, marks = blocks[POWER], blocks[MARKS]
        n, k = power.values.shape
        known = np.nan_to_num(marks.values).astype(np.int64)
        if missing := max(0, round((power.t_mono_ns - self._end_mono_ns) / TICK_NS)) if self._t_ns else 0:
            self._take(
                self.end_ns + TICK_NS * np.arange(missing),
                np.full((n, missing), np.nan),
                np.zeros((n, missing), np.bool_),
            )
        t_ns = power.t_ns + TICK_NS * np.arange(k)
        inside = (t_ns >= from_ns) & (t_ns < to_ns)
        place = np.arange(k)
        fresh = known[:, place // SECOND] >> (FRESH_SHIFT + place % SECOND) & 1 == 1
        self._take(t_ns[inside], power.values[:, inside], fresh[:, inside])
        second_ns = marks.t_ns + NS_PER_S * np.arange(known.shape[1])
        inside = (second_ns > from_ns - NS_PER_S) & (second_ns < to_ns)
        self._second_ns.append(second_ns[inside])
        self._marks.append(known[:, inside] & ((1 << FRESH_SHIFT) - 1))
        nothing = np.full(known.shape, np.nan)
        told = [blocks[name].values if name in blocks else nothing for name in self._quantities]
        self._seconds.append([values[:, inside] for values in told])
        self.end_ns = power.end_ns
        self._end_mono_ns = power.t_mono_ns + k * TICK_NS

    def _take(self, t_ns: IntArray, power_w: FloatArray, fresh: BoolArray) -> None:
        self._t_ns.append(t_ns)
        self._power_w.append(power_w)
        self._fresh.append(fresh)
        self.ticks += len(t_ns)

    def whole(self, history: History, rack: str) -> Stretch:
        t_ns = np.concatenate(self._t_ns)
        seconds = [np.concatenate(parts, axis=1) for parts in zip(*self._seconds, strict=True)]
        limits: dict[str, list[StoredLimit]] = {outlet: [] for outlet in self._layout.outlets}
        for change in history.limits(rack, int(t_ns[0]) - STANDS_NS, int(t_ns[-1]) + TICK_NS):
            if change.outlet in limits and abs(change.t_ns - change.t_mono_ns - self._clock_ns) <= CLOCK_STEP_NS:
                limits[change.outlet].append(change)
        return Stretch(
            self._layout,
            t_ns,
            t_ns - self._clock_ns,
            np.concatenate(self._power_w, axis=1),
            np.concatenate(self._fresh, axis=1),
            np.concatenate(self._second_ns),
            np.concatenate(self._marks, axis=1),
            dict(zip(self._quantities, seconds, strict=True)),
            {outlet: tuple(sorted(mine, key=lambda change: change.t_mono_ns)) for outlet, mine in limits.items()},
        )
