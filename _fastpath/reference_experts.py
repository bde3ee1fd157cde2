"""NumPy twin of the experts: what experts.h means, one outlet, as plainly as possible; tests compare the two."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERSISTENCE, EWMA, MEDIAN_5S, MEDIAN_20S, MEDIAN_60S, RIDGE, PERIODIC, LSTM = range(8)
EXPERTS: Final = 8
CANDIDATES: Final = 2 * EXPERTS + 1  # each expert with either band; the network with its own quantiles
EXPERT_OF: Final = np.array([*np.repeat(np.arange(EXPERTS), 2), LSTM])
LEVELS: Final = np.array([0.5, 0.9, 0.99])
HISTORY: Final = 1024
MEANS: Final = 16
INPUTS: Final = MEANS + 9
BINS: Final = 128
LAGS: Final = 300
EDGES: Final = 0.03 * np.sinh((np.arange(BINS + 1) - BINS // 2) / 9.0)


def _band_prior() -> Array:
    """Counts of 10 errors with a tail like (1 + |z| / 2)^-3."""
    tail = 0.5 * (1.0 + np.abs(EDGES) / 2.0) ** -3.0
    below = np.where(EDGES < 0.0, tail, 1.0 - tail)
    below[0], below[-1] = 0.0, 1.0
    counts: Array = 10.0 * np.diff(below)
    return counts


def band(count: Array) -> Array:
    """The quantiles of counted errors, in scales."""
    found = np.empty(3)
    upto = np.cumsum(count)
    for q, level in enumerate(LEVELS):
        want = level * upto[-1]
        b = min(int(np.searchsorted(upto, want)), BINS - 1)
        before = upto[b] - count[b]
        part = min((want - before) / count[b], 1.0) if count[b] > 0.0 else 0.5
        found[q] = EDGES[b] + part * (EDGES[b + 1] - EDGES[b])
    return found


def prior(displaced: int, kind: int, quantile: int) -> Array:
    """Weights [CANDIDATES] before anything was learned."""
    w = np.ones(CANDIDATES)
    if quantile == 0:
        w[2 * PERSISTENCE + 1] = 64.0 if displaced else 16.0  # what says "no error to expect"
    elif kind == 0:
        w[EXPERT_OF == PERSISTENCE] = 64.0 if displaced else 8.0
    if kind == 1:
        w[EXPERT_OF == EWMA] = 0.1
        w[(EXPERT_OF == MEDIAN_20S) | (EXPERT_OF == MEDIAN_60S)] = 16.0
        if quantile == 2:
            w[EXPERT_OF == MEDIAN_60S] = 64.0
        w[-1] = 32.0  # the network itself: it has seen many loads start
    return w


def keep(memory: float, steps: int) -> float:
    """Decay of a memory that grows with what was seen."""
    return min(memory, 1.0 - 2.0 / (steps + 6.0))


@dataclass
class _Made:
    made: int
    due: int
    reading: int
    last_w: float
    scale: Array
    plan: Array
    own: Array
    situation: int
    input: Array = field(default_factory=lambda: np.zeros(INPUTS))
    ridge: Array = field(default_factory=lambda: np.zeros((2, 5)))
    point: Array = field(default_factory=lambda: np.zeros((2, EXPERTS, 5)))
    candidate: Array = field(default_factory=lambda: np.zeros((2, 3, CANDIDATES)))
    mixed: Array = field(default_factory=lambda: np.zeros((2, 5, 3)))
    awake: NDArray[np.bool_] = field(default_factory=lambda: np.ones(EXPERTS, np.bool_))


class ReferenceExperts:
    """The experts of one outlet and their mixture; `core.Experts` for n = 1. `turn` is the outlet's place."""

    def __init__(self, turn: int = 0) -> None:
        self._turn = turn
        self._interval = 0
        self._valid_tick = 0
        self._solve_due = False
        self._forget(1.0)

    def _forget(self, rating_w: float) -> None:
        self._begin()
        self._seen = False
        self._low = self._high = 0.0
        self._learned, self._situations = 0, [0, 0]
        self._usual = self._recent = 0.01 * rating_w
        self._gram: Array = np.zeros((INPUTS, INPUTS))
        self._moment: Array = np.zeros((2, 5, INPUTS))
        self._weight: Array = np.zeros((2, 5, INPUTS))
        self._ridge_error, self._solve_due = 1.0, False
        self._count: Array = np.tile(_band_prior(), (2, EXPERTS, 2, 1))
        self._increment = 1.0
        self._band: Array = np.tile(band(_band_prior()), (2, EXPERTS, 2, 1))
        self._error: Array = np.zeros((2, 5))
        self._share = np.array(
            [[[prior(x, k, q) / prior(x, k, q).sum() for q in range(3)] for k in range(2)] for x in range(2)]
        )
        self._spread, self._reach = np.zeros((2, 2, 3, CANDIDATES)), np.zeros((2, 2, 3, CANDIDATES))

    def _begin(self) -> None:
        self._power: list[float] = []
        self._tick: list[int] = []
        self._ewma = self._mean = 0.0
        self._mismatch, self._compared, self._lag = np.zeros(LAGS), 0, 0
        self._pending: list[_Made] = []

    def step(
        self,
        tick: int,
        power_w: float,
        interval: int,
        rating_w: float,
        planned_w: Array,
        value_w: Array,
        running_max_w: Array,
        *,
        valid: bool = True,
        fresh: bool = True,
    ) -> Array | None:
        """One tick; quantiles [2, 5, 3] W, None without a reading."""
        floor_w = 1e-5 * rating_w + 1e-3
        plan = np.array([planned_w, np.maximum.accumulate(planned_w)])
        if self._power and tick - self._valid_tick > 5:
            self._begin()
        if valid:
            self._valid_tick = tick
        if self._solve_due and (tick + self._turn) % 10 == 0:
            self._solve()
        if valid and fresh:
            if self._interval != interval:
                self._forget(rating_w)
                self._interval = interval
            self._take_in(tick, power_w)
            while self._pending and tick >= self._pending[0].due - interval // 4:
                made = self._pending.pop(0)
                if tick <= made.due + interval // 4:
                    self._resolve(made, floor_w)
            learn = (len(self._power) + self._turn) % (-(-5 // interval)) == 0
            if learn:
                self._find_period(8.0 * self._usual)
            self._now = self._forecast(tick, power_w, rating_w, plan, np.array([value_w, running_max_w]), floor_w)
            if learn and len(self._pending) < 16:
                self._pending.append(self._now)
        if not self._power or tick - self._valid_tick > 5:
            return None
        return self._finish(self._now.mixed, rating_w, plan)

    # --- readings

    def _newest(self, seconds: int) -> list[float]:
        return self._power[10 * seconds // -self._interval :]  # so many, rounded up

    def _back(self, k: int) -> float:
        return self._power[-1 - k]

    def _known(self) -> int:
        return min(len(self._power), HISTORY)

    def _take_in(self, tick: int, power_w: float) -> None:
        dt_s = 0.1 * self._interval
        if not self._power:
            self._ewma = self._mean = power_w
            if not self._seen:
                self._low = self._high = power_w
        self._seen = True
        self._power.append(power_w)
        self._tick.append(tick)
        self._ewma += min(dt_s / 3.0, 1.0) * (power_w - self._ewma)
        self._mean += min(max(dt_s / 60.0, 1.0 / len(self._power)), 1.0) * (power_w - self._mean)
        self._low = min(self._low + dt_s / 300.0 * (self._mean - self._low), power_w)
        self._high = max(self._high + dt_s / 300.0 * (self._mean - self._high), power_w)

    def _reach_ticks(self, horizon: int) -> int:
        return -(-10 * (horizon + 1) // self._interval) * self._interval

    def _find_period(self, clip: float) -> None:
        self._compared += 1
        unit = 2 if self._interval == 1 else 1
        first = self._reach_ticks(4) // self._interval + (10 if self._interval == 1 else 1)
        lags = min(max(int((self._known() - 1 - first) / unit), 0), LAGS)
        off = np.full(LAGS, clip)
        for i in range(lags):
            off[i] = min(abs(self._power[-1] - self._back(first + i * unit)), clip)
        self._mismatch += max(1.0 / 120.0, 1.0 / self._compared) * (off - self._mismatch)
        if lags:
            best = int(self._mismatch[:lags].argmin())
            if self._lag == 0 or self._mismatch[best] < 0.95 * self._mismatch[(self._lag - first) // unit]:
                self._lag = first + best * unit

    # --- forecasting

    def _forecast(self, tick: int, power_w: float, rating_w: float, plan: Array, own: Array, floor_w: float) -> _Made:
        bound_w = 1.5 * max(rating_w, power_w) + max(plan[1, 4], 0.0)
        heard = bool(((own >= 0.0) & (own <= bound_w)).all())
        scale = self._scales(floor_w)
        displaced = abs(power_w - float(np.median(self._newest(20)))) > 6.0 * self._usual
        m = _Made(
            tick, tick + self._reach_ticks(4), len(self._power) - 1, power_w, scale, plan,
            own - plan[:, :, None] if heard else np.zeros((2, 5, 3)), int(displaced),
        )  # fmt: skip
        m.awake[LSTM] = heard
        self._ask(m)
        for k in range(2):
            for q in range(3):
                said = m.point[k, :, 4][EXPERT_OF]
                said[:-1] += self._offset(m, k, q)
                said[-1] = m.own[k, 4, q]
                m.candidate[k, q] = said
                m.mixed[k, :, q] = self._average(m, k, q, self._share[m.situation, k, q])
        return m

    def _ask(self, m: _Made) -> None:
        m.point[:, PERSISTENCE] = m.last_w
        m.point[:, EWMA] = self._ewma
        for expert, seconds in ((MEDIAN_5S, 5), (MEDIAN_20S, 20), (MEDIAN_60S, 60)):
            m.point[0, expert], m.point[1, expert] = self._whole_median(seconds), max(self._newest(seconds))
        m.point[:, LSTM] = m.own[:, :, 0]
        m.awake[PERIODIC] = 0 < self._lag < self._known()
        if m.awake[PERIODIC]:
            for h in range(5):
                steps = self._reach_ticks(h) // self._interval
                m.point[0, PERIODIC, h] = self._back(self._lag - steps)
                m.point[1, PERIODIC, h] = max(self._back(self._lag - s) for s in range(1, steps + 1))
        self._see_inputs(m)
        m.ridge = self._weight @ m.input
        m.point[:, RIDGE] = np.clip(m.last_w + m.scale[0] * m.ridge, self._low, self._high)

    def _whole_median(self, seconds: int) -> float:
        """Of the longest span up to this one that was seen whole."""
        for span in (60, 20, 5):
            if span <= seconds and len(self._power) >= -(-10 * span // self._interval):
                return float(np.median(self._newest(span)))
        return self._power[-1]

    def _see_inputs(self, m: _Made) -> None:
        per = 1 if self._interval >= 10 else 10 // self._interval
        mean, seen = m.last_w, []
        for b in range(MEANS):
            if (b + 1) * per <= self._known():
                mean = sum(self._back(k) for k in range(b * per, (b + 1) * per)) / per
            seen.append(mean)
        seen += [self._mean, max(self._newest(5)), max(self._newest(20)), min(self._newest(20))]
        point = m.point[:, PERIODIC]
        seen += [self._back(self._lag), point[0, 4], point[0, 1], point[1, 4]] if m.awake[PERIODIC] else [m.last_w] * 4
        m.input = np.append(np.clip((np.array(seen) - m.last_w) / m.scale[0], -8.0, 8.0), 1.0)

    def _offset(self, m: _Made, k: int, q: int) -> Array:
        """What each candidate but the last adds to its expert's point; for a median the second one adds nothing."""
        offset: Array = self._band[k, :, :, q] * m.scale
        if q == 0:
            offset[:, 1] = 0.0
        return offset.ravel()

    def _average(self, m: _Made, k: int, q: int, share: Array) -> Array:
        awake = m.awake[EXPERT_OF]
        said = np.zeros(5)
        for h in range(5):
            near = 1.0 if h == 4 else float(np.clip(self._error[k, h] / max(self._error[k, 4], 1e-9), 0.05, 1.0))
            each = m.point[k, :, h][EXPERT_OF]
            each[:-1] += near * self._offset(m, k, q)
            each[-1] = m.own[k, h, q]
            said[h] = (share * each)[awake].sum() / share[awake].sum()
        return said

    def _finish(self, mixed: Array, rating_w: float, plan: Array) -> Array:
        now_w, said = self._now.last_w, mixed.copy()
        announced_w = now_w + plan[1, 4]
        bound_w = 1.5 * max(rating_w, now_w) + max(plan[1, 4], 0.0)
        off = max(self._newest(20)) <= 0.004 * rating_w
        most_w = min(max(now_w if off else rating_w, announced_w), bound_w)
        for h in range(5):
            value, highest = said[0, h], said[1, h]
            value += plan[0, h]
            highest += plan[1, h]
            highest[0] = max(highest[0], 0.0)
            highest[1:] = np.maximum(highest[1:], now_w + plan[1, h])
            value[0] = np.clip(value[0], 0.0, bound_w)
            highest[0] = np.clip(max(highest[0], value[0]), 0.0, bound_w)
            for q in (1, 2):
                highest[q] = min(max(highest[q], highest[q - 1]), max(most_w, highest[q - 1]))
                value[q] = max(min(value[q], highest[q]), value[q - 1])
            if h:
                np.maximum(highest, said[1, h - 1], out=highest)
        return said

    # --- learning

    def _resolve(self, m: _Made, floor_w: float) -> None:
        came, h, highest = np.zeros((2, 5)), 0, -math.inf
        for r in range(m.reading + 1, len(self._power)):
            highest = max(highest, self._power[r])
            while h < 5 and self._tick[r] >= m.made + self._reach_ticks(h) - self._interval // 4:
                came[:, h] = self._power[r] - m.plan[0, h], highest - m.plan[1, h]
                h += 1
        if h < 5:
            return
        self._learn_scales(abs(came[0, 4] - m.last_w), floor_w)
        if self._learned < 30:
            told, m.scale = m.scale[0], np.maximum(m.scale, self._scales(floor_w))
            m.input[:-1] *= told / m.scale[0]
            m.ridge *= told / m.scale[0]
        self._learn_ridge(m, came)
        self._learn_bands(m, came)
        for k in range(2):
            for q in range(3):
                self._learn_weights(m, k, q, came[k, 4])
        self._learned += 1
        self._situations[m.situation] += 1

    def _scales(self, floor_w: float) -> Array:
        return np.maximum([self._usual, 0.8 * self._recent + (1.0 - 0.8) * self._usual], floor_w)

    def _learn_scales(self, moved_w: float, floor_w: float) -> None:
        rate = max(0.005, 1.0 / (0.2 * (self._learned + 1) + 1.0))
        first = rate > 0.3
        rate *= 2.0 if first else 1.0
        usual = self._usual * math.exp(rate * (0.7 if max(moved_w, floor_w) > self._usual else -0.3))
        if first and moved_w > self._usual:
            usual = moved_w
        self._usual = float(np.clip(usual, floor_w, 1e9))
        if first:
            self._recent = self._usual
        self._recent += (min(moved_w, 8.0 * self._recent) - self._recent) / 30.0
        self._recent = max(self._recent, 0.05 * self._usual)

    def _learn_ridge(self, m: _Made, came: Array) -> None:
        target = np.clip((came - m.last_w) / m.scale[0], -20.0, 20.0)
        error, usual = abs(target[0, 4] - m.ridge[0, 4]), self._ridge_error
        weight = 3.0 * usual / error if error > 3.0 * usual else 1.0
        self._ridge_error = max(usual + 0.02 * (min(error, 5.0 * usual) - usual), 1e-6)
        self._gram = 0.998 * self._gram + weight * np.outer(m.input, m.input)
        self._moment *= 0.998
        self._moment += weight * target[:, :, None] * m.input
        self._solve_due = True

    def _solve(self) -> None:
        self._solve_due = False
        solved = np.linalg.solve(self._gram + 5.0 * np.eye(INPUTS), self._moment.reshape(10, INPUTS).T)
        self._weight = np.asarray(solved.T.reshape(2, 5, INPUTS), np.float64)

    def _learn_bands(self, m: _Made, came: Array) -> None:
        self._increment /= keep(0.999, self._learned)
        self._count[:, ~m.awake] /= 0.999
        for k in range(2):
            for j in np.flatnonzero(m.awake):
                for s in range(2):
                    z = (came[k, 4] - m.point[k, j, 4]) / m.scale[s]
                    self._count[k, j, s, int(np.clip(64 + 9.0 * math.asinh(z / 0.03), 0.0, BINS - 1.0))] += (
                        self._increment
                    )
                    self._band[k, j, s] = band(self._count[k, j, s])
        self._error += max(0.01, 1.0 / (self._learned + 1.0)) * (np.abs(came - m.mixed[:, :, 0]) - self._error)

    def _learn_weights(self, m: _Made, k: int, q: int, came_w: float) -> None:
        x, first = m.situation, prior(m.situation, k, q)
        share, spread, reach = self._share[x, k, q], self._spread[x, k, q], self._reach[x, k, q]
        awake = m.awake[EXPERT_OF]
        on = awake & (first > 0.0)
        decay = keep(0.9995, self._situations[x])
        slope = (1.0 if came_w < m.mixed[k, 4, q] else 0.0) - LEVELS[q]
        regret = np.clip(slope * (m.mixed[k, 4, q] - m.candidate[k, q]) / m.scale[0], -20.0, 20.0)[on]
        reach[on] = np.maximum(reach[on] * decay, np.abs(regret))
        spread[on] = spread[on] * decay + regret**2
        rate = np.minimum(0.5 / (reach[on] + 1e-6), np.sqrt(np.log(first.sum() / first[on]) / (spread[on] + 1e-6)))
        before = share[on].sum()
        share[on] *= np.exp(rate * regret * (1.0 - rate * regret))
        share[on] *= before / share[on].sum()
        share[:] = (1.0 - 0.001) * share / share.sum() + 0.001 * first / first.sum()


def network_quantiles(
    change_w: Array,
    base_w: Array,
    ready: NDArray[np.bool_],
    off: NDArray[np.bool_],
    rating_w: Array,
    planned_w: Array,
    slightly_negative: float,
    out: Array,
) -> None:
    """See core.pyi."""
    made = change_w.reshape(-1, 2, 5, 3).transpose(1, 0, 2, 3) + np.where(ready, base_w, np.nan)[:, None, None]
    announced_w = base_w[:, None] + np.maximum.accumulate(np.where(np.isfinite(planned_w), planned_w, 0.0), axis=1)
    made[1, :, :, 1:] = np.maximum(made[1, :, :, 1:], announced_w[:, :, None])
    most_w = np.maximum(np.where(off, 0.0, rating_w), announced_w[:, -1])[:, None, None]
    made = np.minimum(made, np.where(off[:, None, None], most_w, np.maximum(most_w, made[..., :1])))
    lowest_w = -slightly_negative * rating_w[:, None, None]
    made = np.maximum.accumulate(np.where(made > lowest_w, np.maximum(made, 0.0), made), axis=3)
    out[0] = made[0]
    out[1] = np.maximum.accumulate(np.maximum(made[0], made[1]), axis=1)
