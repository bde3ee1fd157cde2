"""What the network sees: streamed, normalised columns per outlet, the same code in training and in the daemon."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.models.past import AGE, FACTS, KNOWN, LAG, N_FACTS, N_ROWS, PERIOD, SHARES, SPREAD, Past, SlowPast
from rpi_daemon.records import HORIZONS_S, TICK_NS, BoolArray, FloatArray, ForecastInput, IntArray

Float32 = NDArray[np.float32]

SCALING_VERSION: Final = 3  # raised when a column or its scaling changes; a model of another version is refused
HOLD_TICKS: Final = 5  # a gap up to this long is bridged with the last reading, a longer one starts the outlet afresh
HOLD_READINGS: Final = 3  # the same for a slow meter: for so many intervals its newest reading counts as one
PRIME_TICKS: Final = 5  # readings after a start before the network's answer is used; of a slow meter it is one
LIMIT: Final = 8.0  # columns are clipped to +- this many scales
SCALE_FLOOR: Final = 0.0005  # of the rating
OFF_SHARE: Final = 0.004  # of the rating: less cannot be told from nothing

COLUMNS: Final = (
    *FACTS,
    *(f"planned_{int(h)}s" for h in HORIZONS_S),
    *("log_scale", "level", "log_interval"),
    *("day_sin", "day_cos", "week_sin", "week_cos"),
    *(f"{name}{kind}" for kind in ("", "_known") for name in ("cpu", "memory", "network", "disk")),
)
N_COLUMNS: Final = len(COLUMNS)
PLANNED: Final = COLUMNS.index("planned_1s")
_LOG_SCALE: Final = COLUMNS.index("log_scale")
_TIME: Final = COLUMNS.index("day_sin")
_TELEMETRY: Final = COLUMNS.index("cpu")
_DAY_S: Final = 86_400.0
_H = len(HORIZONS_S)


@dataclass(frozen=True, slots=True)
class Period:
    """The period at which each outlet's draw repeats best, and what came after the same moment one period ago; [n].

    `change_w` and `highest_w` [5, n] are measured from `origin_w`, the reading of that moment: the draw at each
    horizon's reach (records.reach_ticks) after it, and the highest reading until then. Where not `known` they are 0 and
    the origin is the present draw. The periodic forecast is base_w + change_w, or origin_w + change_w.
    """

    lag_ticks: IntArray
    mismatch: FloatArray  # mean absolute difference at this lag / that of all lags: 0 repeats exactly, 1 is no period
    known: BoolArray  # there is a reading one period back
    origin_w: FloatArray
    change_w: FloatArray
    highest_w: FloatArray


@dataclass(frozen=True, slots=True)
class Inputs:
    """One tick for the network; [n] each but `columns` [n, N_COLUMNS]. Forecast = base_w + output * scale_w.

    An outlet of a slow meter moves only in the tick of a fresh reading; in between its numbers stand.
    """

    columns: Float32
    base_w: FloatArray
    scale_w: FloatArray
    restarted: BoolArray  # the outlet begins afresh: forget its state before this step
    live: BoolArray  # a reading in this tick: state moves
    due: BoolArray  # a new answer: at every tick with a board, else at fresh readings alone
    ready: BoolArray  # enough readings, and none of them old, for an answer
    off: BoolArray  # since 20 s, or since it began, nothing that can be told from 0 W
    period: Period


class InputStream:
    """Carries the past of n outlets from tick to tick, and makes the columns.

    Outlets with a reading per tick move at every tick, those of slow meters (`interval_ticks` > 1) at fresh readings.
    A gap is bridged with the last reading; after a long one, or when the intervals change, an outlet begins afresh.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._t_mono_ns: int | None = None
        self._given: IntArray | None = None  # `interval_ticks` as they came last
        self._interval: IntArray = np.ones(n, np.int64)
        self._last_w: FloatArray = np.zeros(n)
        self._begin()

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Begin these outlets (all by default) afresh at their next valid reading."""
        self._begun[slice(None) if outlets is None else outlets] = False

    def step(self, x: ForecastInput) -> Inputs:
        """Take one tick in; call once for each."""
        self._look_at_intervals(x.interval_ticks)
        elapsed = 1 if self._t_mono_ns is None else max(1, round((x.t_mono_ns - self._t_mono_ns) / TICK_NS))
        self._t_mono_ns = x.t_mono_ns
        self._since += elapsed
        self._begun &= self._since <= self._hold
        live = x.valid & np.isfinite(x.power_w)
        if len(self._slow_rows):
            live &= self._fast | x.fresh
        restarted = live & ~self._begun
        self._begun |= live
        before_w = self._last_w
        self._last_w = np.where(live, x.power_w, before_w)
        if not len(self._slow_rows):
            self._facts = self._past.step(self._last_w, live, restarted)
        else:
            self._step_parts(before_w, live, restarted)
        self._since[live] = 0
        return self._seen(x, live, restarted)

    def _begin(self) -> None:
        n = self._n
        self._fast = self._interval == 1
        self._fast_rows, self._slow_rows = np.flatnonzero(self._fast), np.flatnonzero(~self._fast)
        self._past = Past(len(self._fast_rows))
        self._slow_past = SlowPast(self._interval[self._slow_rows])
        self._hold = np.where(self._fast, 0, HOLD_READINGS * self._interval) + HOLD_TICKS + 1
        self._prime = np.where(self._fast, PRIME_TICKS, 1)
        self._log_interval = np.log10(self._interval)
        self._since = np.zeros(n, np.int64)  # ticks since the newest reading
        self._begun = np.zeros(n, np.bool_)
        self._facts = np.zeros((N_ROWS, n))

    def _look_at_intervals(self, interval_ticks: IntArray) -> None:
        if interval_ticks is self._given:
            return
        self._given = interval_ticks
        if not (interval_ticks == self._interval).all():
            self._interval = np.array(np.broadcast_to(interval_ticks, self._n))
            self._begin()

    def _step_parts(self, before_w: FloatArray, live: BoolArray, restarted: BoolArray) -> None:
        """Bring every outlet with a board forward, and those of slow meters that were read."""
        self._facts = self._facts.copy()
        if len(self._fast_rows):
            rows = self._fast_rows
            self._facts[:, rows] = self._past.step(self._last_w[rows], live[rows], restarted[rows])
        due = np.flatnonzero(live[self._slow_rows])  # places within the slow past
        if not len(due):
            return
        rows = self._slow_rows[due]
        missed = np.where(restarted[rows], 0, np.round(self._since[rows] / self._interval[rows]).astype(np.int64) - 1)
        for k in range(1, int(missed.max()) + 1):  # readings that did not come: the last one stands for them
            late = due[missed >= k]
            part = self._slow_past.at(late)
            nothing = np.zeros(len(late), np.bool_)
            part.step(before_w[self._slow_rows[late]], nothing, nothing)
            self._slow_past.put(late, part)
        whole = len(due) == len(self._slow_rows)
        part = self._slow_past if whole else self._slow_past.at(due)
        self._facts[:, rows] = part.step(self._last_w[rows], live[rows], restarted[rows])
        if not whole:
            self._slow_past.put(due, part)

    def _seen(self, x: ForecastInput, live: BoolArray, restarted: BoolArray) -> Inputs:
        facts, power_w = self._facts, self._last_w
        rating_w = np.maximum(x.rating_w, 1.0)
        planned_w = np.where(np.isfinite(x.planned_w), x.planned_w, 0.0).T
        high_20s, low_20s = facts[6], facts[7]
        scale_w = np.maximum.reduce(
            [
                SCALE_FLOOR * rating_w,
                facts[SPREAD],
                np.abs(facts[2]) / 4.0,
                (high_20s - low_20s) / 6.0,
                np.abs(planned_w).max(0) / 4.0,
            ]
        )
        out = np.empty((N_COLUMNS, self._n))
        np.divide(facts[:SHARES], scale_w, out=out[:SHARES])
        out[SHARES:N_FACTS] = facts[SHARES:N_FACTS]
        np.divide(planned_w, scale_w, out=out[PLANNED : PLANNED + _H])
        out[_LOG_SCALE] = np.log10(scale_w / rating_w)
        out[_LOG_SCALE + 1] = power_w / rating_w
        out[_LOG_SCALE + 2] = self._log_interval
        day, week = (2 * math.pi * x.t_utc_s / span_s for span_s in (_DAY_S, 7 * _DAY_S))
        out[_TIME], out[_TIME + 1] = math.sin(day), math.cos(day)
        out[_TIME + 2], out[_TIME + 3] = math.sin(week), math.cos(week)
        out[_TELEMETRY : _TELEMETRY + 4] = (x.telemetry * x.telemetry_mask).T
        out[_TELEMETRY + 4 :] = x.telemetry_mask.T
        np.clip(out, -LIMIT, LIMIT, out=out)
        ready = self._begun & (facts[AGE] >= self._prime) & (self._since < self._hold)
        off = high_20s + power_w <= OFF_SHARE * rating_w
        period = Period(
            lag_ticks=facts[LAG].astype(np.int64),
            mismatch=facts[SHARES],
            known=facts[KNOWN] != 0.0,
            origin_w=power_w + facts[PERIOD],
            change_w=facts[PERIOD + 1 : PERIOD + 1 + _H],
            highest_w=facts[PERIOD + 1 + _H : PERIOD + 1 + 2 * _H],
        )
        columns = np.ascontiguousarray(out.T, np.float32)
        return Inputs(columns, power_w, scale_w, restarted, live, live | self._fast, ready, off, period)
