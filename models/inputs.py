"""What the network sees: streamed, normalised columns per outlet, the same code in training and in the daemon."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.records import HORIZONS_S, TICK_NS, BoolArray, FloatArray, ForecastInput

Float32 = NDArray[np.float32]

SCALING_VERSION: Final = 2  # raised when a column or its scaling changes; a model of another version is refused
TICKS_PER_S: Final = 10
HOLD_TICKS: Final = 5  # a gap up to this long is bridged with the last reading, a longer one starts the outlet afresh
PRIME_TICKS: Final = 5  # valid ticks after a start before the network's answer is used
LAG_MIN: Final = 70  # ticks; longer than the farthest look-ahead into the previous period
LAG_MAX: Final = 640  # ticks; the longest period that is recognised. Shorter ones match at a multiple
LAG_STEP: Final = 2  # ticks
ANALOG_S: Final = (1, 2, 3, 4, 5, 7)  # running maximum of the previous period; 7 s shows what comes just behind 5 s
MATCH_TAU: Final = 300.0  # ticks that the period match remembers
MATCH_TURNS: Final = 5  # each lag is brought up to date at every fifth tick
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
    *("period_mismatch", "period_miss_3s", "period_length", "periods_seen"),
    *("day_sin", "day_cos", "week_sin", "week_cos"),
    *(f"{name}{kind}" for kind in ("", "_known") for name in ("cpu", "memory", "network", "disk")),
)
N_COLUMNS: Final = len(COLUMNS)
PLANNED: Final = COLUMNS.index("planned_1s")
_PERIOD: Final = COLUMNS.index("period_offset")
_MISMATCH: Final = COLUMNS.index("period_mismatch")
_TIME: Final = COLUMNS.index("day_sin")
_TELEMETRY: Final = COLUMNS.index("cpu")
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
    off: BoolArray  # since 20 s, or since it began, nothing that can be told from 0 W


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
        self._lag = np.full(n, LAG_MIN)
        self._quality = np.ones(n)
        self._peaks = np.full_like(self._history, UNKNOWN_W)  # highest of the second that ends at each reading
        self._high = np.zeros((20, n))  # of each of the last 20 s, the present one included
        self._low = np.zeros((20, n))
        self._means = np.zeros((3, n))
        self._spread = np.zeros(n)
        self._miss = np.zeros(n)
        self._last_w = np.zeros(n)
        self._age = np.zeros(n, np.int64)  # valid readings since the outlet began; 0 = not begun
        self._gap = np.zeros(n, np.int64)
        self._tick = 0
        self._t_mono_ns: int | None = None
        self._columns_index = np.arange(n)
        self._seconds = TICKS_PER_S * np.arange(1, ANALOG_S[-1] + 1)[:, None]

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
        planned_w = np.where(np.isfinite(x.planned_w), x.planned_w, 0.0).T

        means = self._means
        means += _MEAN_DECAY * (power_w - means)
        below = power_w - means
        spread_decay = np.maximum(1 / 400.0, 1.0 / np.maximum(self._age, 1))
        self._spread += spread_decay * (np.abs(below[2]) - self._spread)

        history = self._remember(power_w.astype(np.float32))
        high_5s, high_20s, low_20s = self._extremes(power_w)
        rating_w = np.maximum(x.rating_w, 1.0)
        scale_w = np.maximum.reduce(
            [
                SCALE_FLOOR * rating_w,
                self._spread,
                np.abs(below[2]) / 4.0,
                (high_20s - low_20s) / 6.0,
                np.abs(planned_w).max(0) / 4.0,
            ]
        )
        out = np.empty((N_COLUMNS, self._n))
        out[0:3] = below
        before = history[-2:-12:-9]  # 0.1 s and 1 s ago
        out[3:5] = np.where(before > UNKNOWN_W / 2, power_w - before, 0.0)
        out[5:8] = high_5s, high_20s, low_20s
        out[5:8] -= power_w
        out[PLANNED : PLANNED + _H] = planned_w
        self._previous_period(history, power_w, spread_decay, out[_PERIOD:_TIME])
        out[0:8] /= scale_w
        out[PLANNED:_MISMATCH] /= scale_w
        out[_MISMATCH + 1] /= scale_w
        out[8] = np.log10(scale_w / rating_w)
        out[9] = power_w / rating_w
        out[10] = np.minimum(self._age, 300) / 300.0
        day, week = (2 * math.pi * x.t_utc_s / span_s for span_s in (_DAY_S, 7 * _DAY_S))
        out[_TIME], out[_TIME + 1] = math.sin(day), math.cos(day)
        out[_TIME + 2], out[_TIME + 3] = math.sin(week), math.cos(week)
        out[_TELEMETRY : _TELEMETRY + 4] = (x.telemetry * x.telemetry_mask).T
        out[_TELEMETRY + 4 :] = x.telemetry_mask.T
        np.clip(out, -LIMIT, LIMIT, out=out)
        ready = (self._age >= PRIME_TICKS) & (self._gap <= HOLD_TICKS)
        off = high_20s <= SCALE_FLOOR * rating_w
        return Inputs(np.ascontiguousarray(out.T, np.float32), power_w, scale_w, restarted, live, ready, off)

    def _begin(self, rows: BoolArray, power_w: FloatArray) -> None:
        self._history[:, rows] = UNKNOWN_W
        self._mismatch[:, rows] = 0.0
        self._peaks[:, rows] = UNKNOWN_W
        self._high[:, rows] = self._low[:, rows] = power_w[rows]
        self._means[:, rows] = power_w[rows]
        self._spread[rows] = 0.0
        self._miss[rows] = 0.0

    def _remember(self, power_w: Float32) -> Float32:
        """Store a reading; returns the newest LAG_MAX + 1, oldest first."""
        span = LAG_MAX + 1
        place = self._tick % span
        self._history[place] = self._history[place + span] = power_w
        self._tick += 1
        history = self._history[place + 1 : place + 1 + span]
        self._peaks[place] = self._peaks[place + span] = history[-TICKS_PER_S:].max(0)
        return history

    def _extremes(self, power_w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Highest of 5 s, highest and lowest of 20 s, in whole seconds."""
        second = self._tick // TICKS_PER_S % 20
        high, low = self._high[second], self._low[second]
        if self._tick % TICKS_PER_S == 0:
            high[:] = low[:] = power_w
        np.maximum(high, power_w, out=high)
        np.minimum(low, power_w, out=low)
        return self._high[(second - np.arange(5)) % 20].max(0), self._high.max(0), self._low.min(0)

    def _previous_period(self, history: Float32, power_w: FloatArray, decay: FloatArray, out: FloatArray) -> None:
        """What came after the same moment one period ago, as change in W: offset, values, running maxima.

        Then how far to trust it: mismatch as part of the typical one, mean offset of 3 s, length, periods seen.
        """
        self._match(history, power_w, decay)
        start = LAG_MAX - self._lag  # row of history that lies one period back
        origin = history[start, self._columns_index]
        known = origin > UNKNOWN_W / 2
        oldest = (self._tick - 1) % (LAG_MAX + 1) + 1
        peaks = self._peaks[oldest + start + self._seconds, self._columns_index]
        np.maximum.accumulate(peaks, axis=0, out=peaks)
        out[0] = origin - power_w
        out[1 : 1 + _H] = history[start + self._seconds[:_H], self._columns_index] - origin
        out[1 + _H : 1 + _H + len(ANALOG_S)] = peaks[[s - 1 for s in ANALOG_S]] - origin
        out[: 1 + _H + len(ANALOG_S), ~known] = 0.0
        self._miss += (np.abs(out[0]) - self._miss) / 30.0
        trust = out[_MISMATCH - _PERIOD :]
        trust[0] = np.where(known, self._quality, 1.0)
        trust[1] = self._miss
        trust[2] = self._lag / LAG_MAX
        trust[3] = np.minimum(self._age / self._lag, 3.0) / 3.0

    def _match(self, history: Float32, power_w: FloatArray, decay: FloatArray) -> None:
        """Bring a fifth of the lags up to date; after each round of five ticks choose the best lag of each outlet."""
        turn = self._tick % MATCH_TURNS
        lagged = history[turn * LAG_STEP : LAG_MAX - LAG_MIN + 1 : LAG_STEP * MATCH_TURNS]
        mismatch = self._mismatch[turn::MATCH_TURNS]
        work = np.abs(lagged - power_w.astype(np.float32))
        # A lag without history, or an outlier, counts as four spreads.
        np.minimum(work, (4.0 * self._spread).astype(np.float32), out=work)
        work -= mismatch
        work *= np.minimum(MATCH_TURNS * np.maximum(1.0 / MATCH_TAU, decay), 1.0).astype(np.float32)
        mismatch += work
        if turn == MATCH_TURNS - 1:
            best = self._mismatch.argmin(0)
            self._lag = self._lags[best]
            self._quality = self._mismatch[best, self._columns_index] / np.maximum(self._mismatch.mean(0), 1e-3)
