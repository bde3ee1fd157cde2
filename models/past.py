"""The recent past of outlets: means, extremes, and the period at which the draw repeats best."""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.records import HORIZONS_S, TICK_S, BoolArray, FloatArray, IntArray, reach_ticks

Float32 = NDArray[np.float32]

TICKS_PER_S: Final = 10
ANALOG_S: Final = (1, 2, 3, 4, 5, 7)  # running maximum of the previous period; 7 s shows what comes just behind 5 s
LAG_MIN: Final = 70  # ticks; no shorter than the farthest look-ahead into the previous period
LAG_MAX: Final = 640  # ticks; the longest period that is recognised. Shorter ones match at a multiple
LAG_STEP: Final = 2  # ticks
SLOW_LAG_MAX: Final = 128  # readings of a slow meter; every lag from its own look-ahead up is tried
MATCH_TAU: Final = 300.0  # ticks that the period match remembers
SLOW_MATCH_TAU: Final = 60.0  # readings
MATCH_TURNS: Final = 5  # each lag is brought up to date at every fifth tick
UNKNOWN_W: Final = -1.0e9  # a reading that history does not hold

# What `step` tells, in W unless a share, in this order: the first columns of the network.
FACTS: Final = (
    *("below_mean_0s5", "below_mean_3s", "below_mean_20s", "change", "change_1s", "max_5s", "max_20s", "min_20s"),
    "period_offset",
    *(f"period_value_{int(h)}s" for h in HORIZONS_S),
    *(f"period_max_{h}s" for h in ANALOG_S),
    *(f"missed_{rule}" for rule in ("still", "mean_0s5", "mean_3s", "mean_20s", "period")),
    *("rise_mean", "rise_top", "period_miss_3s", "period_mismatch", "period_length", "periods_seen", "age"),
)
PERIOD: Final = FACTS.index("period_offset")
SHARES: Final = FACTS.index("period_mismatch")  # from here on no watts
N_FACTS: Final = len(FACTS)
# Behind them: mean distance from the 20 s mean (W), readings since the outlet began, the best lag (ticks), and whether
# there is a reading one lag back.
SPREAD, AGE, LAG, KNOWN = range(N_FACTS, N_FACTS + 4)
N_ROWS: Final = N_FACTS + 4
_H: Final = len(HORIZONS_S)
_REACH: Final = round(HORIZONS_S[-1] / TICK_S)  # ticks
_ANALOG_ROWS: Final = np.array(ANALOG_S) - 1
_AHEAD: Final = slice(PERIOD + 1, PERIOD + 1 + _H)
_PEAKS: Final = slice(PERIOD + 1 + _H, PERIOD + 1 + _H + len(ANALOG_S))
_MISS: Final = SHARES - 1
_N_RULES: Final = 5
_MISSED: Final = slice(_PEAKS.stop, _PEAKS.stop + _N_RULES)
_RISE: Final = slice(_MISSED.stop, _MISSED.stop + 2)

_MEAN_S: Final = np.array([[0.5], [3.0], [20.0]])
_MEAN_READINGS: Final = np.array([[2.0], [4.0], [12.0]])  # a slow meter's means are over at least so many
_SPREAD_S: Final = 40.0
_SPREAD_READINGS: Final = 16.0
_RECORD_S: Final = 60.0  # memory of how simple rules did
_RECORD_READINGS: Final = 20.0
_LONG_READINGS: Final = 8  # the "20 s" of a slow meter are at least so many


class Past:
    """n outlets that are read together, every tick; `step` takes their readings.

    The period is the lag with the smallest mean absolute difference (AMDF: Ross et al., "Average magnitude difference
    function pitch extractor", IEEE Trans. ASSP 22, 1974), kept recursively for every lag with an exponential memory.
    Carried arrays have the outlets last.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._outlets = np.arange(n)
        self._interval: int | IntArray = 1  # ticks from reading to reading
        self._seconds = TICKS_PER_S * np.arange(1, ANALOG_S[-1] + 1)[:, None]
        self._tick = 0
        self._history = np.full((2 * (LAG_MAX + 1), n), UNKNOWN_W, np.float32)  # each reading twice: any span is whole
        self._peaks = np.full_like(self._history, UNKNOWN_W)  # highest of the second that ends at each reading
        self._high = np.zeros((20, n))  # of each of the last 20 s, the present one included
        self._low = np.zeros((20, n))
        self._before_second = np.zeros((3, n))  # highest of the last 5 s, highest and lowest of 20 s when it began
        self._lags = np.arange(LAG_MAX, LAG_MIN - 1, -LAG_STEP)
        self._mean_decay: FloatArray = TICK_S / _MEAN_S
        self._spread_decay: float | FloatArray = TICK_S / _SPREAD_S
        self._record_decay: float | FloatArray = TICK_S / _RECORD_S
        self._miss_decay = 1 / 30.0
        self._age_full = 300.0
        self._made = np.zeros((_REACH + 1, _N_RULES, n))  # what simple rules said for the reach of 5 s
        self._far: IntArray = np.full(n, _REACH)
        self._lag_max = LAG_MAX
        self._begin_common(n)

    def _begin_common(self, n: int) -> None:
        self._mismatch = np.zeros((len(self._lags), n), np.float32)
        self._lag = np.full(n, self._lags[-1])
        self._quality = np.ones(n)
        self._means = np.zeros((3, n))
        self._spread = np.zeros(n)
        self._miss = np.zeros(n)
        self._record = np.zeros((_N_RULES + 2, n))
        self._age = np.zeros(n, np.int64)  # readings since the outlet began

    def step(self, power_w: FloatArray, live: BoolArray, restarted: BoolArray) -> FloatArray:
        """Readings [n] -> facts [N_ROWS, n]. Not `live`: the last reading, to bridge a gap; it does not age."""
        if restarted.any():
            self._begin(restarted, power_w)
        self._age += live
        means = self._means
        means += self._mean_decay * (power_w - means)
        facts = np.empty((N_ROWS, self._n))
        np.subtract(power_w, means, out=facts[0:3])
        decay = np.maximum(self._spread_decay, 1.0 / np.maximum(self._age, 1))
        self._spread += decay * (np.abs(facts[2]) - self._spread)
        history = self._remember(power_w.astype(np.float32))
        before = self._before(history)
        facts[3:5] = np.where(before > UNKNOWN_W / 2, power_w - before, 0.0)
        facts[5:8] = self._extremes(power_w, history)
        facts[5:8] -= power_w
        self._match(history, power_w, decay)
        self._previous_period(history, power_w, facts)
        self._judge(power_w, facts)
        facts[N_FACTS - 1] = np.minimum(self._age, self._age_full) / self._age_full
        facts[SPREAD], facts[AGE], facts[LAG] = self._spread, self._age, self._lag * self._interval
        return facts

    def _begin(self, rows: BoolArray, power_w: FloatArray) -> None:
        self._history[:, rows] = UNKNOWN_W
        self._mismatch[:, rows] = 0.0
        self._peaks[:, rows] = UNKNOWN_W
        self._high[:, rows] = self._low[:, rows] = self._before_second[:, rows] = power_w[rows]
        self._begin_means(rows, power_w)

    def _begin_means(self, rows: BoolArray, power_w: FloatArray) -> None:
        self._means[:, rows] = power_w[rows]
        self._spread[rows] = 0.0
        self._miss[rows] = 0.0
        self._record[:, rows] = 0.0
        self._age[rows] = 0

    def _remember(self, power_w: Float32) -> Float32:
        """Store a reading; returns the newest LAG_MAX + 1, oldest first."""
        span = LAG_MAX + 1
        place = self._tick % span
        self._history[place] = self._history[place + span] = power_w
        self._tick += 1
        history = self._history[place + 1 : place + 1 + span]
        self._peaks[place] = self._peaks[place + span] = history[-TICKS_PER_S:].max(0)
        return history

    def _before(self, history: Float32) -> Float32:
        """The last reading, and that of 1 s ago."""
        return history[-2:-12:-9]

    def _extremes(self, power_w: FloatArray, history: Float32) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Highest of 5 s, highest and lowest of 20 s, in whole seconds."""
        second = self._tick // TICKS_PER_S % 20
        high, low = self._high[second], self._low[second]
        highest_5s, highest, lowest = self._before_second
        if self._tick % TICKS_PER_S == 0:
            high[:] = low[:] = power_w
            np.max(self._high[(second - np.arange(5)) % 20], axis=0, out=highest_5s)
            np.max(self._high, axis=0, out=highest)
            np.min(self._low, axis=0, out=lowest)
        np.maximum(high, power_w, out=high)
        np.minimum(low, power_w, out=low)
        return np.maximum(highest_5s, high), np.maximum(highest, high), np.minimum(lowest, low)

    def _previous_period(self, history: Float32, power_w: FloatArray, facts: FloatArray) -> None:
        """What came after the same moment one period ago, as change in W: offset, values, running maxima.

        Then how far to trust it: mean offset, mismatch as part of the typical one, length, periods seen.
        """
        start = self._lag_max - self._lag  # row of history that lies one period back
        origin = history[start, self._outlets]
        known = origin > UNKNOWN_W / 2
        facts[PERIOD] = origin - power_w
        facts[_AHEAD], facts[_PEAKS] = self._after(history, start)
        facts[_AHEAD.start : _PEAKS.stop] -= origin
        if not known.all():
            facts[PERIOD : _PEAKS.stop, ~known] = 0.0
        self._miss += self._miss_decay * (np.abs(facts[PERIOD]) - self._miss)
        facts[_MISS] = self._miss
        facts[SHARES] = np.where(known, self._quality, 1.0)
        facts[SHARES + 1] = self._lag / self._lag_max
        facts[SHARES + 2] = np.minimum(self._age / self._lag, 3.0) / 3.0
        facts[KNOWN] = known

    def _after(self, history: Float32, start: IntArray) -> tuple[Float32, Float32]:
        """The reading at each horizon after the rows `start` [n], and the running maxima."""
        oldest = (self._tick - 1) % (LAG_MAX + 1) + 1
        peaks = self._peaks[oldest + start + self._seconds, self._outlets]
        np.maximum.accumulate(peaks, axis=0, out=peaks)
        return history[start + self._seconds[:_H], self._outlets], peaks[_ANALOG_ROWS]

    def _judge(self, power_w: FloatArray, facts: FloatArray) -> None:
        """How far simple rules were off at the reach of 5 s lately, and how high the draw rose within it: mean, and top."""
        now = np.empty((_N_RULES, self._n))
        now[0], now[4] = power_w, power_w + facts[_AHEAD.stop - 1]
        now[1:4] = self._means
        made = self._exchange(now)
        record = self._record
        missed = np.abs(made - power_w)
        rise = np.maximum(facts[5] + power_w - made[0], 0.0)
        judged = self._age - self._far
        decay = np.where(judged > 0, np.maximum(self._record_decay, 1.0 / np.maximum(judged, 1)), 0.0)
        record[:_N_RULES] += decay * (missed - record[:_N_RULES])
        record[_N_RULES] += decay * (rise - record[_N_RULES])
        top = record[_N_RULES + 1]
        top *= 1.0 - self._record_decay
        np.maximum(top, rise, out=top, where=decay > 0.0)
        facts[_MISSED.start : _RISE.stop] = record

    def _exchange(self, now: FloatArray) -> FloatArray:
        """Keep what the rules say now; returns what they said for now, [rules, n]."""
        self._made[self._tick % (_REACH + 1)] = now
        said: FloatArray = self._made[(self._tick - _REACH) % (_REACH + 1)]
        return said

    def _match(self, history: Float32, power_w: FloatArray, decay: FloatArray) -> None:
        """Bring a fifth of the lags up to date; after each round of five ticks choose the best lag of each outlet."""
        turn = self._tick % MATCH_TURNS
        lagged = history[turn * LAG_STEP : LAG_MAX - LAG_MIN + 1 : LAG_STEP * MATCH_TURNS]
        rate = np.minimum(MATCH_TURNS * np.maximum(1.0 / MATCH_TAU, decay), 1.0)
        self._compare(self._mismatch[turn::MATCH_TURNS], lagged, power_w, rate)
        if turn == MATCH_TURNS - 1:
            self._choose(self._mismatch)

    def _compare(self, mismatch: Float32, lagged: Float32, power_w: FloatArray, rate: FloatArray) -> None:
        work = np.abs(lagged - power_w.astype(np.float32))
        # A lag without history, or an outlier, counts as four spreads.
        np.minimum(work, (4.0 * self._spread).astype(np.float32), out=work)
        work -= mismatch
        work *= rate.astype(np.float32)
        mismatch += work

    def _choose(self, allowed: Float32) -> None:
        best = allowed.argmin(0)
        self._lag = self._lags[best]
        self._quality = self._mismatch[best, self._outlets] / np.maximum(self._mismatch.mean(0), 1e-3)


class SlowPast(Past):
    """The same of outlets of slow meters, `interval_ticks` [n] apart: each step is a fresh reading of theirs.

    Spans of time are those of `Past`, but at least a few readings; lags are whole readings.
    """

    def __init__(self, interval_ticks: IntArray) -> None:
        n = len(interval_ticks)
        interval_s = TICK_S * interval_ticks
        self._n = n
        self._outlets = np.arange(n)
        self._interval = interval_ticks
        self._history = np.full((SLOW_LAG_MAX + 1, n), UNKNOWN_W, np.float32)  # oldest first
        self._lags = np.arange(SLOW_LAG_MAX, 0, -1)
        self._mean_decay = 1.0 / np.maximum(_MEAN_S / interval_s, _MEAN_READINGS)
        self._spread_decay = 1.0 / np.maximum(_SPREAD_S / interval_s, _SPREAD_READINGS)
        self._record_decay = 1.0 / np.maximum(_RECORD_S / interval_s, _RECORD_READINGS)
        self._miss_decay = 1 / 4.0
        self._age_full = 30.0
        self._lag_max = SLOW_LAG_MAX
        self._reach = np.array([reach_ticks(interval_ticks, float(s)) // interval_ticks for s in ANALOG_S])  # readings
        self._far = self._reach[_H - 1]
        self._made = np.zeros((int(self._far.max(initial=1)) + 1, _N_RULES, n))
        self._long = np.clip(np.round(20.0 / interval_s), _LONG_READINGS, SLOW_LAG_MAX).astype(np.int64)
        self._begin_common(n)

    def at(self, rows: IntArray) -> Self:
        """A copy for these outlets alone, to step and to `put` back."""
        part = object.__new__(type(self))
        for name, value in vars(self).items():
            carried = isinstance(value, np.ndarray) and name != "_lags"
            setattr(part, name, value[..., rows] if carried else value)
        part._n = len(rows)
        part._outlets = np.arange(len(rows))
        return part

    def put(self, rows: IntArray, part: Self) -> None:
        """Take the carried numbers of `part` back."""
        for name in (
            "_history",
            "_mismatch",
            "_lag",
            "_quality",
            "_means",
            "_spread",
            "_miss",
            "_record",
            "_made",
            "_age",
        ):
            getattr(self, name)[..., rows] = getattr(part, name)

    def _begin(self, rows: BoolArray, power_w: FloatArray) -> None:
        self._history[:, rows] = UNKNOWN_W
        self._mismatch[:, rows] = 0.0
        self._begin_means(rows, power_w)

    def _remember(self, power_w: Float32) -> Float32:
        self._history[:-1] = self._history[1:]
        self._history[-1] = power_w
        return self._history

    def _before(self, history: Float32) -> Float32:
        """The last reading, and the one before it."""
        return history[-2:-4:-1]

    def _extremes(self, power_w: FloatArray, history: Float32) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Highest within the reach of 5 s, highest and lowest of 20 s, or a few readings at least."""
        newest = history[: -1 - int(self._long.max()) : -1]
        back = np.arange(len(newest))[:, None]
        known = np.where((newest > UNKNOWN_W / 2) & (back < self._long), newest, power_w)
        return np.where(back < self._far, known, power_w).max(0), known.max(0), known.min(0)

    def _after(self, history: Float32, start: IntArray) -> tuple[Float32, Float32]:
        ahead = np.arange(1, int(self._reach.max()) + 1)[:, None]
        rows = np.minimum(start + ahead, SLOW_LAG_MAX)
        values = history[rows, self._outlets]
        peaks = np.maximum.accumulate(values, axis=0)
        return values[self._reach[:_H] - 1, self._outlets], peaks[self._reach - 1, self._outlets]

    def _exchange(self, now: FloatArray) -> FloatArray:
        self._made[1:] = self._made[:-1]
        self._made[0] = now
        said: FloatArray = self._made[self._far, :, self._outlets].T
        return said

    def _match(self, history: Float32, power_w: FloatArray, decay: FloatArray) -> None:
        """Bring every lag up to date and choose each outlet's best, none shorter than its look-ahead."""
        rate = np.minimum(np.maximum(1.0 / SLOW_MATCH_TAU, decay), 1.0)
        self._compare(self._mismatch, history[:-1], power_w, rate)
        self._choose(np.where(self._lags[:, None] >= self._reach[-1], self._mismatch, np.inf))
