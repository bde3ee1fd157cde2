"""Which earlier tick a reading judges: the one rule of reach, kept for whatever was said then."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from rpi_daemon.records import TICK_NS, BoolArray, FloatArray, ForecastInput, IntArray, Readings, reach_ticks

GAP_NS: Final = TICK_NS + TICK_NS // 2  # windows further apart than this have one missing between them
NEVER_NS: Final = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Due:
    """What the present readings judge; [n]. NaN where an outlet has nothing to be judged now."""

    judged: BoolArray  # has a reading of this tick, and had one at the tick that it judges
    t_made_ns: IntArray  # that tick; meaningless where not judged
    now_w: FloatArray
    then_w: FloatArray
    highest_w: FloatArray  # of the readings since; NaN too if a window between them was missing
    said: FloatArray  # [fields, n] what was kept then; NaN where nothing was


class Reach:
    """Keeps what was said at each tick until the readings come that it was about.

    What is said at a fresh reading at t is judged at the fresh reading nearest to t + reach (`records.reach_ticks`; within
    a quarter of the outlet's interval, and at least half a tick), and its running maximum is over the fresh readings of
    (t, t + reach]. Memory is bounded by the reach. One caller; for each tick first `take`, then `keep`.
    """

    def __init__(self, n: int, fields: int) -> None:
        self._n = n
        self._fields = fields
        self._interval_ticks: IntArray = np.zeros(n, np.int64)
        self._groups: list[_Group] = []
        self._t_ns = NEVER_NS
        self._whole_since_ns = NEVER_NS

    def take(self, readings: Readings | ForecastInput) -> Due | None:
        """Take these readings in; what they judge, or None: they judge nothing, or are not new."""
        t_ns = readings.t_mono_ns
        if t_ns <= self._t_ns:
            return None
        self._group_by(readings.interval_ticks)
        if t_ns - self._t_ns > GAP_NS:
            self._whole_since_ns = t_ns
        self._t_ns = t_ns
        seen_w = np.where(readings.fresh, readings.power_w, np.where(readings.valid, -np.inf, np.nan))
        found = [(group, due) for group in self._groups if (due := group.take(t_ns, seen_w, self._whole_since_ns))]
        if len(found) == 1 and len(found[0][0].outlets) == self._n:
            return found[0][1]
        return self._merged(found) if found else None

    def keep(self, said: FloatArray) -> None:
        """What is said [fields, n] from the readings that were taken last; said again, it replaces that."""
        for group in self._groups:
            group.keep(said)

    def _group_by(self, interval_ticks: IntArray) -> None:
        if (self._interval_ticks == interval_ticks).all():
            return
        self._interval_ticks = np.array(np.broadcast_to(interval_ticks, self._n))
        self._groups = [
            _Group(np.flatnonzero(self._interval_ticks == interval), int(interval), self._fields)
            for interval in np.unique(self._interval_ticks)
        ]

    def _merged(self, found: "list[tuple[_Group, Due]]") -> Due:
        n = self._n
        judged, t_made_ns = np.zeros(n, np.bool_), np.zeros(n, np.int64)
        now_w, then_w, highest_w = np.full((3, n), np.nan)
        said = np.full((self._fields, n), np.nan)
        for group, due in found:
            at = group.outlets
            judged[at], t_made_ns[at], said[:, at] = due.judged, due.t_made_ns, due.said
            now_w[at], then_w[at], highest_w[at] = due.now_w, due.then_w, due.highest_w
        return Due(judged, t_made_ns, now_w, then_w, highest_w, said)


class _Group:
    """The outlets that are read at one interval: their last ticks, a row each, the newest in place of the oldest."""

    def __init__(self, outlets: IntArray, interval_ticks: int, fields: int) -> None:
        self.outlets = outlets
        self._reach_ns = int(reach_ticks(np.array(interval_ticks))) * TICK_NS
        self._tolerance_ns = max(TICK_NS // 2, interval_ticks * TICK_NS // 4)
        rows = (self._reach_ns + self._tolerance_ns) // TICK_NS + 3
        self._t_ns = np.full(rows, NEVER_NS)
        self._seen_w = np.full((rows, len(outlets)), np.nan)  # -inf: held from an earlier tick; NaN: no reading
        self._said = np.full((rows, fields, len(outlets)), np.nan)
        self._row = 0

    def take(self, t_ns: int, seen_w: FloatArray, whole_since_ns: int) -> Due | None:
        seen_w = seen_w[self.outlets]
        self._row = (self._row + 1) % len(self._t_ns)
        self._t_ns[self._row], self._seen_w[self._row], self._said[self._row] = t_ns, seen_w, np.nan
        fresh = np.isfinite(seen_w)
        off_ns = np.abs(self._t_ns - (t_ns - self._reach_ns))
        near = np.flatnonzero(off_ns <= self._tolerance_ns)
        if not len(near) or not fresh.any():
            return None
        read = np.isfinite(self._seen_w[near])
        made = near[np.where(read, off_ns[near, None], t_ns).argmin(axis=0)]
        judged = fresh & read.any(axis=0)
        if not judged.any():
            return None
        t_made_ns = self._t_ns[made]
        since_w = self._highest_since(t_made_ns)
        column = np.arange(len(made))
        return Due(
            judged,
            t_made_ns,
            now_w=np.where(judged, seen_w, np.nan),
            then_w=np.where(judged, self._seen_w[made, column], np.nan),
            highest_w=np.where(judged & (t_made_ns >= whole_since_ns), since_w, np.nan),
            said=np.where(judged, self._said[made, :, column].T, np.nan),
        )

    def _highest_since(self, t_made_ns: IntArray) -> FloatArray:
        first_ns = t_made_ns[0]
        if (t_made_ns == first_ns).all():
            highest_w: FloatArray = self._seen_w[self._t_ns > first_ns].max(axis=0)
        else:
            highest_w = np.where(self._t_ns[:, None] > t_made_ns, self._seen_w, -np.inf).max(axis=0)
        return highest_w

    def keep(self, said: FloatArray) -> None:
        self._said[self._row] = said[:, self.outlets]
