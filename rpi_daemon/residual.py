"""The back edge: what was measured against what had been forecast for that moment, matched by timestamp."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rpi_daemon.records import (
    HORIZONS_S,
    QUANTILES,
    REQUEST_QUANTILE,
    TICK_NS,
    BoolArray,
    FloatArray,
    Forecast,
    Readings,
    Residual,
)

HORIZON_S = 5.0
HORIZON_NS = int(HORIZON_S * 1e9)
TOLERANCE_NS = TICK_NS // 2
GAP_NS = TICK_NS + TOLERANCE_NS  # windows further apart than this have one missing between them
_HORIZON = HORIZONS_S.index(HORIZON_S)
_MEDIAN = QUANTILES.index(0.5)


@dataclass(frozen=True, slots=True)
class _Made:
    """What is kept of one forecast until its moment comes."""

    t_ns: int
    value_w: FloatArray
    running_max_w: FloatArray
    request_w: FloatArray


@dataclass(frozen=True, slots=True)
class _Window:
    t_ns: int
    power_w: FloatArray  # NaN where not valid
    fresh: BoolArray


class ResidualMatcher:
    """Pairs the forecast made at t - 5 s with the windows of (t - 5 s, t]. Keeps 5 s of history, never more.

    Compared are the median of the value and the quantile of the running maximum that requests build on, both at the 5 s horizon. Times
    may jitter by half a tick. Per outlet a residual is valid only if every window of the span was; a span in which a
    window is absent for all outlets (the tick stood still, the boards were stale) is valid for none. A slow meter's
    reading is compared once, in the tick that it came for, and the maximum is of the readings taken within the span: the
    draw's own maximum is at least that.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._made: deque[_Made] = deque()
        self._windows: deque[_Window] = deque()

    def record(self, forecast: Forecast, request_w: FloatArray) -> None:
        """Remember the forecast made at its `t_mono_ns` and the request [n] made from it; a second one for the same time replaces it."""
        while self._made and self._made[-1].t_ns >= forecast.t_mono_ns:
            self._made.pop()
        self._made.append(
            _Made(
                forecast.t_mono_ns,
                forecast.value_w[:, _HORIZON, _MEDIAN].copy(),
                forecast.running_max_w[:, _HORIZON, REQUEST_QUANTILE].copy(),
                np.array(request_w, np.float64),
            )
        )
        while self._made[0].t_ns < forecast.t_mono_ns - HORIZON_NS - TICK_NS:
            self._made.popleft()

    def match(self, readings: Readings) -> Residual | None:
        """Residual of the forecast made 5 s before these readings; None if there was none, or the readings are not new."""
        t_ns = readings.t_mono_ns
        if self._windows and t_ns <= self._windows[-1].t_ns:
            return None
        power_w = np.where(readings.valid, readings.power_w, np.nan)
        self._windows.append(_Window(t_ns, power_w, readings.fresh))
        while self._windows[0].t_ns < t_ns - HORIZON_NS - TOLERANCE_NS:
            self._windows.popleft()
        made = self._made_at(t_ns - HORIZON_NS)
        return None if made is None else self._residual(t_ns, made)

    def _made_at(self, t_ns: int) -> _Made | None:
        """The forecast made nearest to `t_ns`, within the tolerance; older ones are dropped."""
        while len(self._made) > 1 and abs(self._made[1].t_ns - t_ns) <= abs(self._made[0].t_ns - t_ns):
            self._made.popleft()
        if not self._made or abs(self._made[0].t_ns - t_ns) > TOLERANCE_NS:
            return None
        return self._made[0]

    def _residual(self, t_ns: int, made: _Made) -> Residual:
        span = [w for w in self._windows if w.t_ns > t_ns - HORIZON_NS + TOLERANCE_NS]
        fresh = span[-1].fresh
        now_w = np.where(fresh, span[-1].power_w, np.nan)
        highest_w = np.array([np.where(w.fresh | np.isnan(w.power_w), w.power_w, -np.inf) for w in span]).max(axis=0)
        measured_max_w = np.where(fresh & self._gapless(span, t_ns), highest_w, np.nan)
        running_max_w = measured_max_w - made.running_max_w
        before = self._windows[0]
        persisted = abs(before.t_ns - (t_ns - HORIZON_NS)) <= TOLERANCE_NS
        return Residual(
            t_mono_ns=t_ns,
            t_made_ns=made.t_ns,
            value_w=now_w - made.value_w,
            running_max_w=running_max_w,
            measured_max_w=measured_max_w,
            request_w=made.request_w,
            escaped=measured_max_w > made.request_w,  # NaN never escapes
            valid=np.isfinite(running_max_w),
            persistence_w=now_w - before.power_w if persisted else np.full(self._n, np.nan),
        )

    @staticmethod
    def _gapless(span: list[_Window], t_ns: int) -> bool:
        """Whether no window is absent from (t - 5 s, t]."""
        times = [t_ns - HORIZON_NS, *(w.t_ns for w in span)]
        return all(later - earlier <= GAP_NS for earlier, later in pairwise(times))
