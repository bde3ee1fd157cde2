"""A simulated server under a power cap: it slows down to keep it, and does later what it could not do now."""

import numpy as np

from rpi_daemon.records import FloatArray

CAP_TAU_S = 0.2  # the draw closes on a new cap with this time constant, as a BMC's control loop over its CPUs' own does
MAX_BACKLOG_S = 60.0  # work at full power that waits at most; more is turned away


class Throttle:
    """One server's own power control. Watts at the outlet.

    It keeps the lower of demand and cap. Demand not met waits (`backlog_j`) and is done at full power when the cap allows.
    A server cannot slow down below its idle power. Its owner calls `keep`; another thread may call `set_cap`.
    """

    def __init__(self, idle_w: float, full_w: float, rate_hz: int) -> None:
        self.backlog_j = 0.0
        self.throttled = False  # it wanted more than it was allowed, in the last piece
        self._idle_w = idle_w
        self._full_w = full_w
        self._rate_hz = rate_hz
        self._cap_w: float | None = None
        self._limit_w = 0.0  # what the control allows at present; on its way to the cap
        self._last_w = 0.0

    @property
    def cap_w(self) -> float | None:
        return self._cap_w

    def set_cap(self, cap_w: float | None) -> None:
        """Keep `cap_w` from now on, None: as much as it likes. The draw needs some `CAP_TAU_S` to follow."""
        if cap_w is not None:
            allowed_w = self._last_w if self._cap_w is None else min(self._last_w, self._limit_w)
            self._limit_w = max(allowed_w, cap_w)
        self._cap_w = cap_w

    def keep(self, demand_w: FloatArray) -> FloatArray:
        """What it draws at the next samples, [n], where `demand_w` is what its work would draw."""
        runs = demand_w > 0.0
        wanted_w = demand_w
        if self.backlog_j > 0.0:
            wanted_w = np.where(runs, np.maximum(demand_w, self._full_w), 0.0)
        drawn_w = np.minimum(wanted_w, self._allowed(len(demand_w)))
        self.throttled = bool((drawn_w < wanted_w).any())
        missed_j = float((demand_w - drawn_w).sum()) / self._rate_hz
        most_j = MAX_BACKLOG_S * self._full_w if runs[-1] else 0.0  # switched off, its work is lost
        self.backlog_j = min(max(0.0, self.backlog_j + missed_j), most_j)
        self._last_w = float(drawn_w[-1])
        return drawn_w

    def _allowed(self, n: int) -> FloatArray:
        cap_w = self._cap_w
        if cap_w is None:
            return np.full(n, np.inf)
        fade = np.exp(-np.arange(1, n + 1) / (self._rate_hz * CAP_TAU_S))
        limit_w = cap_w + (self._limit_w - cap_w) * fade
        self._limit_w = float(limit_w[-1])
        return np.maximum(limit_w, self._idle_w)
