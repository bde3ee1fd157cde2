"""What the run was worth: escapes, pre-allocated rises, forecast error against persistence, limits against static ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.reach import Reach
from rpi_daemon.records import BoolArray, FloatArray, Forecast, RackModel, Readings, Residual

PREALLOCATED_S = (
    1.0  # a new limit counts as given in advance when it was verified this long before the draw passed the old one
)
WINDOW_CENTRE_NS = 100_000_000  # a window's power belongs to its centre, 100 ms before its last scan


@dataclass(slots=True)
class _Raise:
    """A verified raise whose old limit the draw has not passed yet."""

    old_w: float
    verified_ns: int


class RunScore:
    """Running totals; `update` once a tick, `limit_verified` for each verified write."""

    def __init__(self, rack: RackModel) -> None:
        self.configure(rack)
        self._raises: list[list[_Raise]] = [[] for _ in range(rack.n)]
        self._in_escape: BoolArray = np.zeros(rack.n, dtype=np.bool_)
        self._limit_w: FloatArray = np.full(rack.n, np.nan)
        self._limit_sum_w = 0.0
        self._static_sum_w = 0.0
        self._limit_n = 0
        self._judged_ns: int | None = None
        self.ticks = 0
        self.windows = 0
        self.requests_judged = 0
        self.request_escapes = 0
        self.limit_escapes = 0  # windows
        self.escape_episodes = 0
        self.rises = 0
        self.rises_preallocated = 0
        self._abs_error_w = 0.0
        self._persistence_error_w = 0.0
        self._errors = 0

    def configure(self, rack: RackModel) -> None:
        """Other STATIC_SAFE limits to compare with, from here on."""
        self._static_safe_w = rack.static_safe_w

    def limit_seen(self, outlet: int, limit_w: float | None) -> None:
        """A poll found this limit on the device, None: no limit; not a write of ours."""
        if limit_w is None:
            self._limit_w[outlet] = np.nan
            self._raises[outlet].clear()
            return
        self._limit_w[outlet] = limit_w
        self._raises[outlet] = [item for item in self._raises[outlet] if item.old_w < limit_w]

    def limit_verified(self, outlet: int, limit_w: float, verified_ns: int) -> None:
        """A limit was read back as written."""
        old_w = self._limit_w[outlet]
        self._limit_w[outlet] = limit_w
        waiting = self._raises[outlet]
        if limit_w > old_w:
            if not self._in_escape[outlet]:  # that rise is counted already, as one that was not given in advance
                waiting.append(_Raise(old_w, verified_ns))
        else:
            self._raises[outlet] = [item for item in waiting if item.old_w < limit_w]

    def update(self, readings: Readings, residual: Residual | None) -> None:
        """Judge one tick. `readings` has the draw; the limits are those verified so far. A window is judged once."""
        self.ticks += 1
        if self._judged_ns is not None and readings.t_mono_ns <= self._judged_ns:
            return
        self._judged_ns = readings.t_mono_ns
        measured = readings.fresh
        self.windows += int(np.count_nonzero(measured))
        centre_ns = readings.t_mono_ns - WINDOW_CENTRE_NS
        known = np.isfinite(self._limit_w)
        self._limit_sum_w += float(self._limit_w[known].sum())
        self._static_sum_w += float(self._static_safe_w[known].sum())
        self._limit_n += int(np.count_nonzero(known))
        over = measured & known & (readings.power_w > self._limit_w)
        self.limit_escapes += int(np.count_nonzero(over))
        fresh = over & ~self._in_escape
        self.escape_episodes += int(np.count_nonzero(fresh))
        self._in_escape = np.where(measured, over, self._in_escape)
        for i in np.flatnonzero(measured):
            passed = self._passed(int(i), float(readings.power_w[i]))
            if fresh[i]:  # passed the limit with no new one: not given in advance, whatever raises it passed before
                self.rises += 1
            elif passed and not over[i]:
                self.rises += 1
                in_place_ns = max(item.verified_ns for item in passed)
                self.rises_preallocated += centre_ns - in_place_ns >= PREALLOCATED_S * NS_PER_S
        if residual is not None:
            self._judge_forecast(residual)

    def _passed(self, i: int, power_w: float) -> list[_Raise]:
        """Raises whose old limit the draw has just passed; one rise may pass several, and counts once."""
        passed = [item for item in self._raises[i] if power_w > item.old_w]
        if passed:
            self._raises[i] = [item for item in self._raises[i] if power_w <= item.old_w]
        return passed

    def _judge_forecast(self, residual: Residual) -> None:
        valid = residual.valid
        self.requests_judged += int(np.count_nonzero(valid))
        self.request_escapes += int(np.count_nonzero(valid & residual.escaped))
        judged = valid & np.isfinite(residual.value_w) & np.isfinite(residual.persistence_w)
        self._abs_error_w += float(np.abs(residual.value_w[judged]).sum())
        self._persistence_error_w += float(np.abs(residual.persistence_w[judged]).sum())
        self._errors += int(np.count_nonzero(judged))

    def summary(self) -> dict[str, float | int | None]:
        """The figures of the summary; None where nothing was there to judge."""
        return {
            "windows": self.windows,
            "ticks": self.ticks,
            "request_escape_rate": _share(self.request_escapes, self.requests_judged),
            "limit_escapes": self.limit_escapes,
            "limit_escape_episodes": self.escape_episodes,
            "rises": self.rises,
            "prealloc_share": _share(self.rises_preallocated, self.rises),
            "mean_limit_w": _share(self._limit_sum_w, self._limit_n),
            "mean_static_safe_w": _share(self._static_sum_w, self._limit_n),
            "forecast_mae_w": _share(self._abs_error_w, self._errors),
            "persistence_mae_w": _share(self._persistence_error_w, self._errors),
        }


class MemberScores:
    """Mean absolute error 5 s ahead of every forecaster by itself, over the same moments, by the one rule of reach."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._reach: Reach | None = None
        self._sums: FloatArray = np.zeros(0)
        self._n = 0

    def update(self, readings: Readings, latest: Mapping[str, Forecast]) -> None:
        """Judge what was forecast for now, and keep what each says now. With a new name all begin anew."""
        if self._reach is None or not latest.keys() <= set(self._names):
            self._names = tuple(latest)
            self._reach = Reach(len(readings.power_w), len(latest))
            self._sums, self._n = np.zeros(len(latest)), 0
        due = self._reach.take(readings)
        if due is not None:
            errors_w = np.abs(due.said - due.now_w)
            judged = np.isfinite(errors_w).all(axis=0)
            self._n += int(np.count_nonzero(judged))
            self._sums += errors_w[:, judged].sum(axis=1)
        silent_w = np.full(len(readings.power_w), np.nan)
        said = [latest[name].value_w[:, -1, 0] if name in latest else silent_w for name in self._names]
        self._reach.keep(np.array(said))

    def mae_w(self) -> dict[str, float]:
        """By forecaster, W; empty when nothing could be judged."""
        return dict(zip(self._names, (self._sums / self._n).tolist(), strict=True)) if self._n else {}


class MeanWeights:
    """Each expert's mean weight over outlets and ticks, in the median of the draw in 5 s; rows without a reading apart."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._n = 0

    def update(self, weights: Mapping[str, FloatArray], valid: BoolArray) -> None:
        """Take the weights of one tick, expert -> [n]."""
        self._n += int(np.count_nonzero(valid))
        for name, weight in weights.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(weight[valid].sum())

    def mean(self) -> dict[str, float]:
        """By expert; empty when nothing was forecast."""
        return {name: total / self._n for name, total in self._sums.items()} if self._n else {}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
