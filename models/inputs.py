"""What the network sees: streamed, normalised columns per outlet, the same code in training and in the daemon."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.records import HORIZONS_S, TICK_NS, BoolArray, FloatArray, ForecastInput

Float32 = NDArray[np.float32]

SCALING_VERSION: Final = 1  # raised when a column or its scaling changes; a model of another version is refused
TICKS_PER_S: Final = 10
HOLD_TICKS: Final = 5  # a gap up to this long is bridged with the last reading, a longer one starts the outlet afresh
PRIME_TICKS: Final = 5  # valid ticks after a start before the network's answer is used
LAG_MIN: Final = 70  # ticks; longer than the farthest look-ahead into the previous period
LAG_MAX: Final = 640  # ticks; the longest period that is recognised. Shorter ones match at a multiple
LAG_STEP: Final = 2  # ticks
ANALOG_S: Final = (1, 2, 3, 4, 5, 7)  # running maximum of the previous period; 7 s shows what comes just behind 5 s
MATCH_TAU: Final = 300.0  # ticks that the period match remembers
LIMIT: Final = 8.0  # columns are clipped to +- this many scales
SCALE_FLOOR: Final = 0.004  # of the rating
UNKNOWN_W: Final = -1.0e9  # a reading that history does not hold

COLUMNS: Final = (
    *("below_mean_0s5", "below_mean_3s", "below_mean_20s", "change_0s1", "change_1s"),
    *("max_5s", "max_20s", "min_20s", "log_scale", "level", "age"),
    *(f"planned_{int(h)}s" for h in HORIZONS_S),
    "period_offset",
    *(f"period_value_{int(h)}s" for h in HORIZONS_S),
    *(f"period_max_{h}s" for h in ANALOG_S),
    "period_mismatch",
    *("day_sin", "day_cos", "week_sin", "week_cos"),
    *(f"{name}{kind}" for kind in ("", "_known") for name in ("cpu", "memory", "network", "disk")),
)
N_COLUMNS: Final = len(COLUMNS)
PLANNED: Final = COLUMNS.index("planned_1s")
_MEAN_DECAY: Final = np.array([[1 / 5.0], [1 / 30.0], [1 / 200.0]])
_DAY_S: Final = 86_400.0
_H = len(HORIZONS_S)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One tick for the network; [n] each but `columns` [n, N_COLUMNS]. Forecast = base_w + output * scale_w."""

    columns: Float32
    base_w: FloatArray
    scale_w: FloatArray
    restarted: BoolArray  # the outlet begins afresh: forget its state before this step
    live: BoolArray  # a reading in this tick: state moves
    ready: BoolArray  # enough readings, and none of them old, for an answer


class InputStream:
    """Carries means, extremes and the strongest period of n outlets from tick to tick.

    The period is the lag with the smallest mean absolute difference (AMDF: Ross et al., "Average magnitude difference
    function pitch extractor", IEEE Trans. ASSP 22, 1974), kept recursively for every lag with an exponential memory.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._lags = np.arange(LAG_MAX, LAG_MIN - 1, -LAG_STEP)
        self._history = np.full((2 * (LAG_MAX + 1), n), UNKNOWN_W, np.float32)  # each reading twice: any span is whole
        self._mismatch = np.zeros((len(self._lags), n), np.float32)
        self._work = np.empty_like(self._mismatch)
        self._recent_5s = np.zeros((50, n), np.float32)
        self._recent_20s = np.zeros((200, n), np.float32)
        self._means = np.zeros((3, n))
        self._spread = np.zeros(n)
        self._last_w = np.zeros(n)
        self._age = np.zeros(n, np.int64)  # valid readings since the outlet began; 0 = not begun
        self._gap = np.zeros(n, np.int64)
        self._tick = 0
        self._t_mono_ns: int | None = None
        self._columns_index = np.arange(n)
        self._ahead = np.arange(1, 10 * ANALOG_S[-1] + 1)[:, None]

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Begin these outlets (all by default) afresh at their next valid reading."""
        self._age[slice(None) if outlets is None else outlets] = 0

    def step(self, x: ForecastInput) -> Inputs:
        """Take one tick in; call once for each."""
        if self._t_mono_ns is not None and x.t_mono_ns - self._t_mono_ns > (HOLD_TICKS + 1) * TICK_NS:
            self.reset()
        self._t_mono_ns = x.t_mono_ns
        live = x.valid & np.isfinite(x.power_w)
        self._gap = np.where(live, 0, self._gap + 1)
        self._age[self._gap > HOLD_TICKS] = 0
        power_w = np.where(live, x.power_w, self._last_w)
        restarted = live & (self._age == 0)
        if restarted.any():
            self._begin(restarted, power_w)
        self._age += live
        self._last_w = power_w
        planned_w = np.nan_to_num(x.planned_w)

        means = self._means
        means += _MEAN_DECAY * (power_w - means)
        below = power_w - means
        spread_decay = np.maximum(1 / 400.0, 1.0 / np.maximum(self._age, 1))
        self._spread += spread_decay * (np.abs(below[2]) - self._spread)

        history = self._remember(power_w.astype(np.float32))
        high_5s, high_20s, low_20s = self._recent_5s.max(0), self._recent_20s.max(0), self._recent_20s.min(0)
        rating_w = np.maximum(x.rating_w, 1.0)
        scale_w = np.maximum.reduce(
            [
                SCALE_FLOOR * rating_w,
                self._spread,
                np.abs(below[2]) / 4.0,
                (high_20s - low_20s) / 6.0,
                np.abs(planned_w).max(1) / 4.0,
            ]
        )
        out = np.empty((N_COLUMNS, self._n))
        out[0:3] = below
        before = history[[-2, -11]]
        out[3:5] = np.where(before > UNKNOWN_W / 2, power_w - before, 0.0)
        out[5:8] = high_5s, high_20s, low_20s
        out[5:8] -= power_w
        out[PLANNED : PLANNED + _H] = planned_w.T
        self._previous_period(history, power_w, spread_decay, out[PLANNED + _H :])
        last = PLANNED + 2 * _H + len(ANALOG_S) + 1
        out[0:8] /= scale_w
        out[PLANNED:last] /= scale_w
        out[8] = np.log10(scale_w / rating_w)
        out[9] = power_w / rating_w
        out[10] = np.minimum(self._age, 300) / 300.0
        out[last + 1 : last + 5] = _time_of(x.t_utc_s)
        out[last + 5 : last + 9] = (x.telemetry * x.telemetry_mask).T
        out[last + 9 : last + 13] = x.telemetry_mask.T
        np.clip(out, -LIMIT, LIMIT, out=out)
        ready = (self._age >= PRIME_TICKS) & (self._gap <= HOLD_TICKS)
        return Inputs(np.ascontiguousarray(out.T, np.float32), power_w, scale_w, restarted, live, ready)

    def _begin(self, rows: BoolArray, power_w: FloatArray) -> None:
        self._history[:, rows] = UNKNOWN_W
        self._mismatch[:, rows] = 0.0
        self._recent_5s[:, rows] = self._recent_20s[:, rows] = power_w[rows]
        self._means[:, rows] = power_w[rows]
        self._spread[rows] = 0.0

    def _remember(self, power_w: Float32) -> Float32:
        """Store a reading; returns the newest LAG_MAX + 1, oldest first."""
        span = LAG_MAX + 1
        place = self._tick % span
        self._history[place] = self._history[place + span] = power_w
        self._recent_5s[self._tick % 50] = power_w
        self._recent_20s[self._tick % 200] = power_w
        self._tick += 1
        return self._history[place + 1 : place + 1 + span]

    def _previous_period(self, history: Float32, power_w: FloatArray, decay: FloatArray, out: FloatArray) -> None:
        """What came after the same moment one period ago, as change in W: offset, values, running maxima; mismatch."""
        work, mismatch = self._work, self._mismatch
        np.subtract(history[: LAG_MAX - LAG_MIN + 1 : LAG_STEP], power_w.astype(np.float32), out=work)
        np.abs(work, out=work)
        # A lag without history, or an outlier, counts as four spreads.
        np.minimum(work, (4.0 * self._spread).astype(np.float32), out=work)
        work -= mismatch
        work *= np.maximum(1.0 / MATCH_TAU, decay).astype(np.float32)
        mismatch += work
        best = mismatch.argmin(0)
        start = LAG_MAX - self._lags[best]  # row of history that lies one period back
        origin = history[start, self._columns_index]
        known = origin > UNKNOWN_W / 2
        after = history[start + self._ahead, self._columns_index]
        peaks = np.maximum.accumulate(after.reshape(ANALOG_S[-1], TICKS_PER_S, self._n).max(1), axis=0)
        out[0] = origin - power_w
        out[1 : 1 + _H] = after[TICKS_PER_S - 1 : _H * TICKS_PER_S : TICKS_PER_S] - origin
        out[1 + _H : 1 + _H + len(ANALOG_S)] = peaks[[s - 1 for s in ANALOG_S]] - origin
        out[: 1 + _H + len(ANALOG_S), ~known] = 0.0
        typical = mismatch.mean(0)
        least = mismatch[best, self._columns_index]
        out[1 + _H + len(ANALOG_S)] = np.where(known, least / np.maximum(typical, 1e-3), 1.0)


def _time_of(t_utc_s: float) -> FloatArray:
    day, week = 2 * math.pi * t_utc_s / _DAY_S, 2 * math.pi * t_utc_s / (7 * _DAY_S)
    return np.array([[math.sin(day)], [math.cos(day)], [math.sin(week)], [math.cos(week)]])
