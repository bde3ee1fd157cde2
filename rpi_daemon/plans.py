"""Work that is known beforehand: the configured schedule and `hint`s, as the change of draw they announce."""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from rpi_daemon.clock import NS_PER_S, StepWatch
from rpi_daemon.config.schema import Schedule
from rpi_daemon.errors import RpiError
from rpi_daemon.records import HORIZONS_S, FloatArray, Hint, RackModel

MAX_HINTS = 10_000
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LOOK_AHEAD_S = 60.0  # the schedule is turned into changes this far ahead
REFRESH_S = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """At `t_mono_ns` the draw of a load begins to change by `delta_w`."""

    t_mono_ns: int
    load: int
    delta_w: float


def _time(change: Change) -> int:
    return change.t_mono_ns


class PlannedWork:
    """What is announced. Hints are kept until they are over; the schedule is re-read from wall time every 30 s, and when that was set."""

    def __init__(self, rack: RackModel, schedule: Sequence[Schedule]) -> None:
        self._names = {load.name: i for i, load in enumerate(rack.loads)}
        self.configure(rack, schedule)
        self._hints: list[Change] = []  # by time
        self._scheduled: list[Change] = []
        self._wall = StepWatch()

    def configure(self, rack: RackModel, schedule: Sequence[Schedule]) -> None:
        """Another schedule for the same loads from the next tick on; hints stay."""
        self._rack = rack
        self._schedule = schedule
        self._refresh_ns: int | None = None

    def check_room(self, waiting: int) -> None:
        """Raises RpiError when `waiting` hints and one more are too many: to be asked before a hint reaches a tick."""
        if len(self._hints) // 2 + waiting >= MAX_HINTS:
            raise RpiError(f"{MAX_HINTS} hints are open; wait until some are over")

    def hint(self, hint: Hint) -> None:
        """Take an announcement for a load of the rack."""
        load = self._names[hint.load]
        end_ns = hint.t_mono_ns + round(hint.for_s * NS_PER_S)
        for change in (Change(hint.t_mono_ns, load, hint.delta_w), Change(end_ns, load, -hint.delta_w)):
            insort(self._hints, change, key=_time)

    def planned_w(self, now_ns: int, utc_ns: int) -> FloatArray:
        """[n, 5]: announced change of each outlet's draw from now to now + 1..5 s; a load's two outlets share it."""
        if self._wall.look(now_ns, utc_ns) or self._refresh_ns is None or now_ns >= self._refresh_ns:
            self._refresh_ns = now_ns + round(REFRESH_S * NS_PER_S)
            self._scheduled = self._changes_ahead(now_ns, utc_ns)
            del self._hints[: bisect_right(self._hints, now_ns, key=_time)]
        planned = np.zeros((self._rack.n, len(HORIZONS_S)))
        horizon_ns = round(HORIZONS_S[-1] * NS_PER_S)
        soon = self._hints[
            bisect_right(self._hints, now_ns, key=_time) : bisect_right(self._hints, now_ns + horizon_ns, key=_time)
        ]
        for change in (*soon, *self._scheduled):
            if now_ns < change.t_mono_ns <= now_ns + horizon_ns:
                reached = np.array([change.t_mono_ns <= now_ns + h * NS_PER_S for h in HORIZONS_S])
                outlets = self._rack.loads[change.load].outlets
                planned[list(outlets)] += reached * (change.delta_w / len(outlets))
        return planned

    def _changes_ahead(self, now_ns: int, utc_ns: int) -> list[Change]:
        """Starts and ends of scheduled work within the next minute, by local wall time."""
        now = datetime.fromtimestamp(utc_ns / NS_PER_S)
        changes = []
        for entry in self._schedule:
            for day in (-1, 0, 1):
                date = now.date() + timedelta(days=day)
                if DAYS[date.weekday()] not in entry.days:
                    continue
                hour, minute, second = (*(int(part) for part in entry.at.split(":")), 0)[:3]
                start = datetime(date.year, date.month, date.day, hour, minute, second)
                for when, delta_w in ((start, entry.delta_w), (start + timedelta(seconds=entry.for_s), -entry.delta_w)):
                    ahead_s = (when - now).total_seconds()
                    if 0.0 < ahead_s <= LOOK_AHEAD_S + REFRESH_S:
                        changes.append(Change(now_ns + round(ahead_s * NS_PER_S), self._names[entry.load], delta_w))
        return changes
