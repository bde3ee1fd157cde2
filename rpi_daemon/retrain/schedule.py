"""When a training may begin and run: a pure function of the time, the load, the history and the state."""

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Final

CALM_S: Final = 900.0  # in NORMAL for so long: no event is near


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of the local day; past midnight where `last` is not after `first`."""

    first: time
    last: time

    @classmethod
    def of(cls, text: str) -> "Window":
        """`"01:00-05:00"`; raises ValueError for anything else."""
        first, _, last = text.partition("-")
        return cls(time.fromisoformat(first), time.fromisoformat(last))

    def began(self, now: datetime) -> datetime | None:
        """When the present window began; None outside it."""
        today = datetime.combine(now.date(), self.first, now.tzinfo)
        for start in (today, today - timedelta(days=1)):
            end = datetime.combine(start.date(), self.last, now.tzinfo)
            if self.last <= self.first:
                end += timedelta(days=1)
            if start <= now < end:
                return start
        return None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is looked at; `load` as the highest part of a constraint's derated rating that is drawn, mean of 15 min."""

    now: datetime  # local
    load: float | None  # None: not known
    normal_s: float  # how long the state has been NORMAL; 0 where it is not
    history_days: float
    last_began: datetime | None  # of a training, however it ended


@dataclass(frozen=True, slots=True)
class Rules:
    """The configuration's words."""

    window: Window
    max_load: float
    min_history_days: float


def why_not(seen: Conditions, rules: Rules) -> str:
    """Why no training may begin now; empty when one may."""
    began = rules.window.began(seen.now)
    if began is None:
        return f"it is not between {rules.window.first:%H:%M} and {rules.window.last:%H:%M}"
    if seen.last_began is not None and seen.last_began >= began:
        return "one training a night, and there was one"
    if seen.history_days < rules.min_history_days:
        return (
            f"{seen.history_days:.2g} days of history; {rules.min_history_days:g} are needed (retrain.min_history_days)"
        )
    return why_stop(seen, rules) or ("" if seen.normal_s >= CALM_S else "NORMAL for less than 15 min")


def why_stop(seen: Conditions, rules: Rules) -> str:
    """Why a training that runs must end; empty when it may go on."""
    if rules.window.began(seen.now) is None:
        return f"it is past {rules.window.last:%H:%M}"
    if seen.normal_s <= 0.0:
        return "the state is not NORMAL"
    if seen.load is None:
        return "the load is not known"
    if seen.load > rules.max_load:
        return f"a constraint carries {seen.load:.0%} of its derated rating; {rules.max_load:.0%} at most (retrain.max_load)"
    return ""


class MeanLoad:
    """The mean of about the last 15 min, fed once a period."""

    def __init__(self, period_s: float) -> None:
        self._part = period_s / CALM_S
        self._mean: float | None = None

    def take(self, load: float | None) -> float | None:
        """The mean with this load; None until one is known, and while none is."""
        if load is None:
            self._mean = None
        elif self._mean is None:
            self._mean = load
        else:
            self._mean += self._part * (load - self._mean)
        return self._mean
