"""Recorded series as the daemon would read them: one reading per 100 ms of a board, or those of a slow meter as they came."""

import csv
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from rpi_daemon.drivers.sensors.traces import Trace, read_traces
from rpi_daemon.errors import TraceError
from rpi_daemon.features import STALE_POLLS
from rpi_daemon.records import TICK_S, FloatArray, IntArray, reach_ticks

SHORTEST_S = 120.0
UNSCORED_S = 60.0  # the first minute of a series is not scored
LAST_PART = 0.6  # the yardstick learns from the series up to here; what follows is scored for both
RATING_HEADROOM = 1.25  # as `rpi-daemon dry-run` rates an outlet without a configuration
RATING_STEP_W = 10.0
LEAST_MEAN_W = 1.0  # losses count in parts of the mean draw; a smaller draw counts as this
LOWEST_W = -2.0  # below is no reading, as in features.py: a load does not feed back
_EPSILON = 1e-6  # of a tick: 0.3 s is tick 3, whatever 0.3 / 0.1 is in binary


@dataclass(frozen=True)
class Moments:
    """Forecasts that can be judged: made at reading `made`, judged at reading `due`; [k] indexes into the readings."""

    made: IntArray
    due: IntArray


@dataclass(frozen=True)
class Series:
    """One recording as an outlet. Readings [m] with the tick that each came for; between them nothing is known."""

    name: str
    group: str
    use: str
    step_s: float
    duration_s: float
    slow: bool  # a meter read every `interval_ticks`; else a board with a reading per tick
    interval_ticks: int
    tick: IntArray
    power_w: FloatArray
    rating_w: float

    @property
    def ticks(self) -> int:
        """How many ticks the recording lasts."""
        return int(self.tick[-1]) + 1

    @property
    def stale_ticks(self) -> int:
        """A reading older than this is none: as in features.py, three polls and a tick, or 150 ms of a board."""
        return STALE_POLLS * self.interval_ticks + 1 if self.slow else 1

    @property
    def mean_w(self) -> float:
        return float(self.power_w.mean())

    @cached_property
    def moments(self) -> Moments:
        """Every reading after the first minute whose own 5 s ahead was read, and between which nothing went stale.

        `due` is the reading nearest to the first at or after 5 s, within a quarter of the interval, at least half a tick.
        """
        due_tick = self.tick + int(reach_ticks(np.array(self.interval_ticks)))
        after = np.clip(np.searchsorted(self.tick, due_tick), 1, len(self.tick) - 1)
        before = after - 1
        nearer = np.abs(self.tick[before] - due_tick) < np.abs(self.tick[after] - due_tick)
        due = np.where(nearer, before, after)
        gaps = np.concatenate([[0], np.cumsum(np.diff(self.tick) > self.stale_ticks + 1)])
        made = np.arange(len(self.tick))
        judged = np.abs(self.tick[due] - due_tick) <= max(0.25 * self.interval_ticks, 0.5)
        judged &= (due > made) & (gaps[due] == gaps[made]) & (self.tick * TICK_S >= UNSCORED_S - _EPSILON)
        return Moments(made[judged], due[judged])

    @property
    def movement(self) -> float:
        """How much the draw changes in 5 s, in parts of its mean: persistence's own error."""
        changed_w = self.power_w[self.moments.due] - self.power_w[self.moments.made]
        return float(np.abs(changed_w).mean()) / max(self.mean_w, LEAST_MEAN_W)

    def running_max_w(self, moments: Moments) -> FloatArray:
        """Largest reading after each `made` until its `due`, [k] W."""
        return _highest(self.power_w, moments.made + 1, moments.due + 1)

    def recent_max_w(self, moments: Moments, seconds: float) -> FloatArray:
        """Largest reading of the last `seconds` until each `made`, [k] W."""
        since = self.tick[moments.made] - round(seconds / TICK_S)
        return _highest(self.power_w, np.searchsorted(self.tick, since, "right"), moments.made + 1)

    def in_last_part(self, moments: Moments) -> np.ndarray:
        """Which moments lie in the part that the yardstick did not learn from, [k]."""
        return self.tick[moments.made] >= LAST_PART * self.ticks


def _highest(power_w: FloatArray, begin: IntArray, end: IntArray) -> FloatArray:
    """Maximum of power_w[begin:end] for each pair, none of them empty."""
    padded = np.append(power_w, -np.inf)
    return np.maximum.reduceat(padded, np.column_stack([begin, end]).ravel())[::2] if len(begin) else np.zeros(0)


def as_outlet(trace: Trace, group: str, use: str, *, hours: float | None = None) -> Series:
    """The recording as a board's means of 100 ms where it is faster, else as the readings of a slow meter.

    Raises TraceError when it has no reading.
    """
    slow = trace.step_s > TICK_S * (1.0 + 1e-3)
    kept = trace.power_w >= LOWEST_W
    if hours is not None:
        kept &= trace.t_s <= hours * 3600.0
    t_s, power_w = trace.t_s[kept], trace.power_w[kept]
    if not len(t_s):
        raise TraceError(f"no reading above {LOWEST_W:g} W")
    place = t_s / TICK_S
    if slow:
        tick = np.ceil(place - _EPSILON).astype(np.int64)
        last = np.append(np.diff(tick) > 0, True)  # of two readings for one tick the newer counts
        tick, power_w = tick[last], power_w[last]
    else:
        every = np.floor(place + _EPSILON).astype(np.int64)
        tick, first = np.unique(every, return_index=True)
        power_w = np.add.reduceat(power_w, first) / np.diff(np.append(first, len(every)))
    return Series(
        name=trace.name,
        group=group,
        use=use,
        step_s=trace.step_s,
        duration_s=(int(tick[-1]) + 1) * TICK_S,
        slow=slow,
        interval_ticks=max(1, round(trace.step_s / TICK_S)) if slow else 1,
        tick=tick,
        power_w=power_w,
        rating_w=max(RATING_STEP_W, float(np.ceil(RATING_HEADROOM * power_w.max() / RATING_STEP_W) * RATING_STEP_W)),
    )


def read_series(
    directory: Path, groups: tuple[str, ...] = (), limit: int | None = None, hours: float | None = None
) -> tuple[list[Series], list[str]]:
    """The series of `directory/index.csv` that can be scored, and a sentence for each that cannot.

    The index needs the columns `file` and `group`; `use` is taken where it is there. `limit`: evenly spaced series of each
    group, at most so many. Raises TraceError for an index that cannot be read, and where nothing can be scored.
    """
    rows = _index(directory)
    known = list(dict.fromkeys(row["group"] for row in rows))
    for group in groups:
        if group not in known:
            raise TraceError(f"{directory / 'index.csv'}: no group {group!r}; there are: {', '.join(known)}")
    found, left_out = [], []
    for group in groups or known:
        members = [row for row in rows if row["group"] == group]
        if limit is not None and len(members) > limit:
            members = [members[i] for i in np.linspace(0, len(members) - 1, limit).round().astype(int)]
        for row in members:
            outlets, why = _outlets_of(directory / row["file"], row, hours)
            found += outlets
            left_out += why
    if not found:
        raise TraceError(f"{directory}: no series to score" + "".join(f"\n  {why}" for why in left_out))
    return found, left_out


def _outlets_of(path: Path, row: dict[str, str], hours: float | None) -> tuple[list[Series], list[str]]:
    """Each column of a file as a series, named as in the index, and why others are none."""
    try:
        traces = read_traces(path)
    except TraceError as error:
        return [], [str(error)]
    found, left_out = [], []
    for k, trace in enumerate(traces):
        name = row["file"] if len(traces) == 1 else f"{row['file']}[{k}]"
        try:
            series = as_outlet(trace, row["group"], row.get("use") or "", hours=hours)
        except TraceError as error:
            left_out.append(f"{name}: {error}")
            continue
        if series.duration_s < SHORTEST_S:
            left_out.append(f"{name}: {series.duration_s:.0f} s; allowed: {SHORTEST_S:.0f} s or more")
        elif not len(series.moments.made):
            left_out.append(f"{name}: too many gaps: no forecast of 5 s ahead could be judged")
        else:
            found.append(replace(series, name=name))
    return found, left_out


def _index(directory: Path) -> list[dict[str, str]]:
    path = directory / "index.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.DictReader(file) if row.get("file")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: {why}; it lists the series: columns file, group and, if known, use") from None
    if not rows:
        raise TraceError(f"{path}: lists no file; it needs the columns file and group, and a row for each series")
    if "group" not in rows[0]:
        raise TraceError(f"{path}: column 'group' is missing; there are: {', '.join(filter(None, rows[0]))}")
    for row in rows:
        row["group"] = row["group"] or "(no group)"
    return rows
