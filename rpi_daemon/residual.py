"""The back edge: what was measured against what had been forecast for that moment, matched by timestamp."""

import numpy as np

from rpi_daemon.reach import Reach
from rpi_daemon.records import QUANTILES, REQUEST_QUANTILE, FloatArray, Forecast, Readings, Residual

_MEDIAN = QUANTILES.index(0.5)


class ResidualMatcher:
    """Pairs each forecast with the readings that it was about, by the one rule of reach.

    Compared are the median of the value and the quantile of the running maximum that requests build on, both at the
    farthest horizon. A residual is valid only if every window of its span was; a span in which a window is absent for all
    outlets (the tick stood still, the boards were stale) is valid for none. A slow meter's reading is compared once, in
    the tick that it came for, and the maximum is of the readings taken within the span: the draw's own is at least that.
    """

    def __init__(self, n: int) -> None:
        self._reach = Reach(n, fields=3)

    def record(self, forecast: Forecast, request_w: FloatArray) -> None:
        """Remember the forecast made from the readings matched last, and the request [n] made from it."""
        self._reach.keep(
            np.stack(
                [forecast.value_w[:, -1, _MEDIAN], forecast.running_max_w[:, -1, REQUEST_QUANTILE], request_w],
            )
        )

    def match(self, readings: Readings) -> Residual | None:
        """Residual of the forecasts that these readings were forecast by; None if there are none, or the readings are not new."""
        due = self._reach.take(readings)
        if due is None:
            return None
        value_w, running_max_w, request_w = due.said
        error_w = due.highest_w - running_max_w
        return Residual(
            t_mono_ns=readings.t_mono_ns,
            t_made_ns=due.t_made_ns,
            value_w=due.now_w - value_w,
            running_max_w=error_w,
            measured_max_w=due.highest_w,
            request_w=request_w,
            escaped=due.highest_w > request_w,  # NaN never escapes
            valid=np.isfinite(error_w),
            persistence_w=due.now_w - due.then_w,
        )
