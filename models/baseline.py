"""The yardsticks that are always there: persistence, moving average, ridge; bands from their own recent errors."""

from typing import Final

import numpy as np

from rpi_daemon.records import HORIZONS_S, QUANTILES, TICK_NS, BoolArray, FloatArray, Forecast, ForecastInput, Quality

HOLD_TICKS: Final = 5  # a last reading older than this is no reading
TICKS_PER_S: Final = 10
_H: Final = len(HORIZONS_S)
_SPAN: Final = _H * TICKS_PER_S
_QUANTILES: Final = np.array(QUANTILES)
_QUANTILE_STEP: Final = 0.03  # of the typical error, per tick
_TYPICAL_DECAY: Final = 0.01
_START_BAND: Final = 0.01  # of the rating: the typical error before any was seen


def ordered(t_mono_ns: int, value_w: FloatArray, running_max_w: FloatArray, source: str) -> Forecast:
    """A forecast of quantiles that do not fall, of running maxima that never fall nor lie below the value.

    Takes [5, 3, n] W and changes it in place: with the outlets last each step is one pass over contiguous memory.
    """
    for quantile_w in (value_w, running_max_w):
        for q in range(1, len(QUANTILES)):
            np.maximum(quantile_w[:, q], quantile_w[:, q - 1], out=quantile_w[:, q])
    np.maximum(running_max_w, value_w, out=running_max_w)
    for h in range(1, _H):
        np.maximum(running_max_w[h], running_max_w[h - 1], out=running_max_w[h])
    n = value_w.shape[2]
    return Forecast(t_mono_ns, value_w.transpose(2, 0, 1), running_max_w.transpose(2, 0, 1), (source,) * n)


def known_plan(planned_w: FloatArray) -> FloatArray:
    """Announced changes [5, n] W; what is not known is no change."""
    return np.where(np.isfinite(planned_w), planned_w, 0.0).T


def running_max(by_horizon_w: FloatArray) -> FloatArray:
    """Running maximum along the first axis, horizons."""
    highest_w = by_horizon_w.copy()
    for h in range(1, len(highest_w)):
        np.maximum(highest_w[h], highest_w[h - 1], out=highest_w[h])
    return highest_w


class _Baseline:
    """A point forecast per outlet and horizon, and quantiles of its errors tracked live.

    Announced work is added to the point. Each quantile moves up when it was passed and down when it was not, in steps
    of the typical error (Koenker and Bassett 1978, by stochastic sub-gradient), once for each measurement: a slow
    meter's reading is held for many ticks and counts in the first. A row is NaN without a recent reading.
    """

    name = ""

    def __init__(self, n: int) -> None:
        self._n = n
        self._points = np.full((_SPAN, _H, n), np.nan)  # by the tick they were made in
        self._recent_w = np.full((_SPAN, n), np.nan)
        self._last_w = np.full(n, np.nan)
        self._gap = np.zeros(n, np.int64)
        self._tick = 0
        self._t_mono_ns: int | None = None
        self._rating_w = np.ones(n)
        self._points_max = np.full((_SPAN, _H, n), np.nan)
        self._errors = np.zeros((2, _H, 1, n))  # value, running maximum
        self._bands = np.zeros((2, _H, len(QUANTILES), n))
        self._typical = np.full((2, _H, 1, n), np.nan)
        self._made_at = np.arange(1, _H + 1) * TICKS_PER_S
        self._horizon = np.arange(_H)

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Forget these outlets (all by default)."""
        rows = slice(None) if outlets is None else outlets
        self._points[..., rows] = self._points_max[..., rows] = np.nan
        self._recent_w[:, rows] = np.nan
        self._last_w[rows] = np.nan
        self._bands[..., rows] = 0.0
        self._typical[..., rows] = np.nan
        self._begin(rows)

    def step(self, x: ForecastInput) -> Forecast:
        """Take one tick in and forecast; call once for each."""
        if self._t_mono_ns is not None and x.t_mono_ns - self._t_mono_ns > (HOLD_TICKS + 1) * TICK_NS:
            self.reset()
        self._t_mono_ns = x.t_mono_ns
        live = x.valid & np.isfinite(x.power_w)
        self._gap = np.where(live, 0, self._gap + 1)
        lost = (self._gap > HOLD_TICKS) & np.isfinite(self._last_w)
        if lost.any():
            self.reset(lost)
        self._last_w = np.where(live, x.power_w, self._last_w)
        planned_w = known_plan(x.planned_w)
        self._rating_w = np.maximum(x.rating_w, 1.0)
        self._learn_bands(np.where(live, x.power_w, np.nan), x.quality & Quality.HELD == 0)
        point_w = self._point(self._last_w, live, planned_w) + planned_w
        highest_w = running_max(point_w)
        self._points[self._tick % _SPAN] = point_w
        self._points_max[self._tick % _SPAN] = highest_w
        self._tick += 1
        value_w = np.maximum(point_w[:, None] + self._bands[0], 0.0)
        return ordered(x.t_mono_ns, value_w, highest_w[:, None] + self._bands[1], self.name)

    def _begin(self, rows: BoolArray | slice) -> None:
        """Forget what the point forecast carries for these rows."""

    def _point(self, last_w: FloatArray, live: BoolArray, planned_w: FloatArray) -> FloatArray:
        """Forecast of the value without the announced work, [5, n] W or [n] for all horizons; planned_w is [5, n]."""
        raise NotImplementedError

    def _learn_bands(self, power_w: FloatArray, fresh: BoolArray) -> None:
        recent = self._recent_w
        recent[self._tick % _SPAN] = power_w
        order = (self._tick - np.arange(_SPAN)) % _SPAN  # newest first
        made = (self._tick - self._made_at) % _SPAN  # the tick whose forecast for each horizon is due now
        highest = running_max(recent[order].reshape(_H, TICKS_PER_S, self._n).max(1))
        self._errors[0, :, 0] = power_w - self._points[made, self._horizon]
        self._errors[1, :, 0] = highest - self._points_max[made, self._horizon]
        known = np.isfinite(self._errors) & fresh
        size = np.abs(self._errors)
        begun = np.where(np.isnan(self._typical), _START_BAND * self._rating_w, self._typical)
        self._typical = np.where(known, begun + _TYPICAL_DECAY * (size - begun), begun)
        move = _QUANTILES[:, None] - (self._errors < self._bands)
        self._bands += np.where(known, _QUANTILE_STEP * self._typical * move, 0.0)


class Persistence(_Baseline):
    """It stays as it is."""

    name = "persistence"

    def _point(self, last_w: FloatArray, live: BoolArray, planned_w: FloatArray) -> FloatArray:
        return last_w


class Ewma(_Baseline):
    """It returns to its exponentially weighted mean of the last seconds."""

    name = "ewma"

    def __init__(self, n: int, tau_s: float = 3.0) -> None:
        super().__init__(n)
        self._decay = 1.0 / (tau_s * TICKS_PER_S)
        self._mean_w = np.full(n, np.nan)

    def _begin(self, rows: BoolArray | slice) -> None:
        self._mean_w[rows] = np.nan

    def _point(self, last_w: FloatArray, live: BoolArray, planned_w: FloatArray) -> FloatArray:
        mean_w = np.where(np.isnan(self._mean_w), last_w, self._mean_w)
        self._mean_w = np.where(live, mean_w + self._decay * (last_w - mean_w), mean_w)
        return self._mean_w


class Ridge(_Baseline):
    """Ridge regression of the change to each horizon on four lags and means, closed form, per outlet, learning live.

    Normal equations are kept with an exponential memory and each horizon is solved once every 2.5 s. The forecast stays
    within the draws of the last minutes: what was never seen is not extrapolated to.
    """

    name = "ridge"
    _LAGS = 4
    _MEMORY = 0.998  # per update; each horizon is updated twice a second
    _SHRINK = 0.05  # of the inputs' own size
    _PRIOR = 20.0 * 0.02**2  # weighs as much as 20 examples of 2 % of the rating
    _RANGE_DECAY = 1.0 / 3000.0  # per tick: the range seen shrinks to the mean within minutes

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._means_w = np.full((3, n), np.nan)
        self._decay = np.array([[1 / 10.0], [1 / 50.0], [1 / 300.0]])
        self._inputs = np.full((_SPAN + 1, n, self._LAGS), np.nan)
        self._base_w = np.full((_SPAN + 1, n), np.nan)
        self._planned_w = np.zeros((_SPAN + 1, _H, n))
        self._gram = np.zeros((_H, n, self._LAGS, self._LAGS))
        self._moment = np.zeros((_H, n, self._LAGS))
        self._weights = np.zeros((_H, n, self._LAGS))
        self._low_w = np.full(n, np.nan)
        self._high_w = np.full(n, np.nan)

    def _begin(self, rows: BoolArray | slice) -> None:
        self._means_w[:, rows] = np.nan
        self._inputs[:, rows] = np.nan
        self._base_w[:, rows] = np.nan
        self._low_w[rows] = self._high_w[rows] = np.nan
        self._gram[:, rows] = 0.0
        self._moment[:, rows] = 0.0
        self._weights[:, rows] = 0.0

    def _point(self, last_w: FloatArray, live: BoolArray, planned_w: FloatArray) -> FloatArray:
        means = np.where(np.isnan(self._means_w), last_w, self._means_w)
        self._means_w = means + self._decay * np.where(live, last_w - means, 0.0)
        place = self._tick % (_SPAN + 1)
        before = self._base_w[(self._tick - TICKS_PER_S) % (_SPAN + 1)]
        inputs = self._inputs[place]
        inputs[:, :3] = (last_w - self._means_w).T
        inputs[:, 3] = np.where(np.isnan(before), 0.0, last_w - before)
        self._base_w[place] = last_w
        self._planned_w[place] = planned_w
        self._learn(self._tick % _H, np.where(live, last_w, np.nan))
        mean_w = self._means_w[2]
        self._low_w = np.fmin(self._low_w + self._RANGE_DECAY * (mean_w - self._low_w), last_w)
        self._high_w = np.fmax(self._high_w + self._RANGE_DECAY * (mean_w - self._high_w), last_w)
        point_w: FloatArray = last_w + (self._weights * inputs).sum(2)
        np.clip(point_w, self._low_w, self._high_w, out=point_w)
        return point_w

    def _learn(self, horizon: int, power_w: FloatArray) -> None:
        made = (self._tick - (horizon + 1) * TICKS_PER_S) % (_SPAN + 1)
        inputs = self._inputs[made]
        change = power_w - self._base_w[made] - self._planned_w[made, horizon]
        known = np.isfinite(change) & np.isfinite(inputs).all(1)
        inputs, change = np.where(known[:, None], inputs, 0.0), np.where(known, change, 0.0)
        gram, moment = self._gram[horizon], self._moment[horizon]
        memory = np.where(known, self._MEMORY, 1.0)
        gram *= memory[:, None, None]
        gram += inputs[:, :, None] * inputs[:, None, :]
        moment *= memory[:, None]
        moment += inputs * change[:, None]
        if self._tick % (_H * _H) // _H == horizon:
            size = np.trace(gram, axis1=1, axis2=2)[:, None, None]
            prior = (self._PRIOR * self._rating_w**2)[:, None, None]
            system = gram + (self._SHRINK * size + prior) * np.eye(self._LAGS)
            self._weights[horizon] = np.linalg.solve(system, moment[:, :, None])[:, :, 0]
