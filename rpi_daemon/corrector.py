"""Forecast quantile + learned margin = request: what each outlet should be allowed for the next 5 s."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    REQUEST_QUANTILE,
    TICK_NS,
    BoolArray,
    FloatArray,
    Forecast,
    IntArray,
    LimitKind,
    LimitsInForce,
    Quality,
    RackModel,
    Readings,
    Request,
    Residual,
    reach_ticks,
)

DAY_S: Final = 86_400.0
NEVER_NS: Final = -(1 << 62)
EPISODE_S: Final = 60.0  # a draw that passes its threshold again within this time is the same episode
BLOCKS: Final = 10  # a rolling maximum is kept in this many blocks of its span

# How a margin grows with the rises that passed the request, in units of the outlet's usual error: in proportion at first,
# by the factor e in every `BEND` rises later. docs/decisions/request-quantile.md has the measurements behind all of these.
GAIN: Final = 0.1  # usual errors for each rise
BEND: Final = 2.0  # rises
FIRST_RISES: Final = 0.5  # an outlet begins as if half a rise too many had passed its request
FIRST_ERROR: Final = 0.01  # part of the rating: the usual error before any was seen
LEAST_ERROR: Final = 0.0006  # part of the rating: the least that counts as usual; it makes the bound finite
ERROR_MEMORY_S: Final = 300.0
MOST_RISES: Final = 22.0  # from 20 on the margin is the rating at least, whatever the usual error
MISSED_HALF_LIFE_S: Final = 60.0
# NumPy takes many times as long with a member of an enumeration.
_SATURATED: Final = int(Quality.SATURATED)
_SLOW_METER: Final = int(Quality.SLOW_METER)


@dataclass(frozen=True, slots=True)
class CorrectorConfig:
    """What margins aim at, and how thresholds of `alarm` kinds are held up."""

    target: float = 0.01  # long-run share of readings whose running maximum may pass the request
    meter_noise_w: float = 0.2
    start_s: float = 60.0  # the first request is STATIC_SAFE, and comes down from there over this long
    hold_s: float = 5.0  # the allocation keeps room for a request this long, before others get it
    censor_band: float = 0.05  # an enforced limit this close to the draw hides the demand
    growth_per_s: float = 1.5  # factor by which the request of a capped load grows per second
    blind_hold_s: float = 5.0  # without readings the last request holds this long, then STATIC_SAFE
    alarm_learn_s: float = (
        600.0  # an alarm threshold stays at STATIC_SAFE or above for this long after the first reading
    )
    alarm_hold_s: float = 86_400.0  # then it clears the largest request of this span ...
    alarm_headroom: float = 0.1  # ... by this part of it ...
    alarm_step: float = 0.05  # ... and by this part of the rating for each escape episode beyond ...
    alarm_episodes_per_day: float = 1.0  # ... this many

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ConfigError(
                f"corrector target is {self.target}; it is a share of readings: choose more than 0, less than 1"
            )
        for name in ("hold_s", "alarm_hold_s", "alarm_step", "alarm_episodes_per_day"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"corrector {name} is {getattr(self, name)}; choose more than 0")
        if not self.growth_per_s > 1.0:
            raise ConfigError(f"corrector growth_per_s is {self.growth_per_s}; a capped load recovers only above 1")


class Corrector:
    """Steers one margin per outlet by online conformal control.

    With r the readings within a forecast's reach, the escapes that one unforeseen rise makes (50 of a board, 5 of a meter
    read every second), and S the sum of (escape - target) over the feedback so far, never below 0, the margin is

        max(floor, GAIN x BEND x sinh(S / r / BEND) x usual error)

    The feedback rule is that of adaptive conformal inference (Gibbs & Candes 2021), the margin a saturating function of
    the error sum: the error integration of Angelopoulos, Candes & Tibshirani, "Conformal PID Control for Time Series
    Prediction" (2023), section 2.2. The usual error is the mean of the outlet's recent under- and over-forecasts.

    An outlet begins at STATIC_SAFE, and its request comes down from there over the first minute: what it will do next is not
    known, whatever it does at first. After that nothing holds a request up: it says what is needed in the next 5 s. The allocation goes by the largest of the last
    seconds (`held_w`), so that room does not change hands with every wave; writing has its own economy.

    Bound: the usual error is at least e = LEAST_ERROR x rating, so no signal that passes the forecast quantile by at most
    R escapes once S >= s(R) = r x BEND x asinh(R / (GAIN x BEND x e)), and S overshoots by at most the D + 1 feedbacks
    under way, D = r. So in T readings at most target T + s(R) + 2 D + 1 escape. Floors only raise the request.

    Alarm thresholds go by their own, slower rule: the largest request of a day and a head-room. If the days of a load are
    alike, the largest draw of one is passed in the next with even chance: one episode in two days. With E the sum of
    episodes beyond the daily target, never below 0, the threshold stands E steps higher. For the first minutes it is not
    below STATIC_SAFE: nothing is known of the load.

    What a device does to a number is added where the number is written: an enforced limit is the grant, so the margin of
    such an outlet is not below the device's step and the largest recent change between two readings of a slow meter, that
    is what it may have missed; a threshold has the step added.
    """

    def __init__(self, config: CorrectorConfig, rack: RackModel) -> None:
        n = rack.n
        self._rating_w = rack.rating_w
        self._load_of = rack.load_of
        self._recent = _RollingMax(n, config.hold_s)
        self._alarm = _RollingMax(n, config.alarm_hold_s)
        self.configure(config, rack)
        self._excess = np.full(n, np.nan)  # escapes beyond the target; NaN: the outlet's reach is not known yet
        self._error_w = FIRST_ERROR * rack.rating_w
        self._least_error_w = LEAST_ERROR * rack.rating_w
        self._missed_w = np.zeros(n)
        self._read_before_w = np.full(n, np.nan)
        self._kind: tuple[LimitKind, ...] = ()
        self._enforced = np.zeros(n, np.bool_)
        self._censored_until_ns = np.zeros(n, dtype=np.int64)
        self._first_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._seen_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._request_w = rack.static_safe_w.astype(np.float64, copy=True)
        self._needed_w = self._request_w  # without what the start adds
        self._held_w = self._request_w
        self._alarm_w = np.full(n, np.inf)
        self._episodes = np.zeros(n)  # beyond the daily target
        self._over_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._t_ns: int | None = None

    def configure(self, config: CorrectorConfig, rack: RackModel) -> None:
        """Other settings from the next `step` on, of the same outlets; what was learned stays."""
        self._config = config
        self._static_safe_w = rack.static_safe_w
        self._demand_w = np.minimum(rack.rating_w, np.array([rack.loads[i].demand_w for i in rack.load_of]))
        self._recent = self._recent.over(config.hold_s)
        self._alarm = self._alarm.over(config.alarm_hold_s)

    def step(
        self,
        forecast: Forecast,
        residual: Residual | None,
        readings: Readings,
        in_force: LimitsInForce,
        cap_w: FloatArray | None = None,
    ) -> Request:
        """The request at the time of the forecast; `residual` is about the requests that these readings judge.

        `cap_w` [n]: the server cap of ours that holds each outlet's load back, for all its outlets together; NaN: none.
        """
        config = self._config
        now_ns = forecast.t_mono_ns
        dt_s = 0.0 if self._t_ns is None else max(0.0, (now_ns - self._t_ns) / NS_PER_S)
        self._t_ns = now_ns
        if in_force.kind != self._kind:
            self._kind = in_force.kind
            self._enforced = np.array([kind.enforced for kind in in_force.kind])
        reach = reach_ticks(readings.interval_ticks)
        capped = self._at_cap(readings, cap_w)
        censored = self._censored(readings, in_force) | capped
        self._censored_until_ns = np.where(censored, now_ns + reach * TICK_NS, self._censored_until_ns)
        in_reach = reach // readings.interval_ticks
        self._learn(residual, in_reach, readings.interval_ticks, now_ns)
        self._learn_missed(readings, dt_s)
        margin_w = self._margin_w(in_reach, in_force)

        raw_w = np.minimum(forecast.running_max_w[:, -1, REQUEST_QUANTILE], self._rating_w) + margin_w
        known = readings.valid & np.isfinite(raw_w)
        if censored.any():
            held_at_w = np.where(capped, self._request_w, np.fmax(self._request_w, in_force.limit_w))
            grown_w = np.minimum(held_at_w * config.growth_per_s**dt_s, self._demand_w)
            raw_w = np.where(censored, np.maximum(raw_w, grown_w), raw_w)

        self._seen_ns[known] = now_ns
        lost = ~known & (now_ns - self._seen_ns > round(config.blind_hold_s * NS_PER_S))
        self._needed_w = np.where(known, raw_w, np.where(lost, self._static_safe_w, self._needed_w))
        self._request_w = np.maximum(self._needed_w, self._at_start_w(known, now_ns))
        recent_w = self._recent.push(now_ns, np.where(known, self._request_w, 0.0))
        self._held_w = np.where(known, recent_w, np.where(lost, self._static_safe_w, self._held_w))
        self._count_episodes(readings, dt_s, now_ns)
        self._alarm_w = self._threshold_w(known, lost, in_force.step_w, now_ns)
        return Request(
            t_mono_ns=now_ns,
            request_w=self._request_w,
            margin_w=margin_w,
            censored=censored & known,
            alarm_w=self._alarm_w,
            held_w=self._held_w,
        )

    def _censored(self, readings: Readings, in_force: LimitsInForce) -> BoolArray:
        """Outlets whose demand is hidden: by an enforced limit, or because the sensor is at full scale."""
        capped = self._enforced
        if capped.any():
            with np.errstate(invalid="ignore"):
                seen_w = in_force.seen_w(readings.power_w, readings.rms_a)  # held at its amperes, the voltage may sag
                capped = capped & (seen_w >= (1.0 - self._config.censor_band) * in_force.limit_w)
        censored: BoolArray = (capped | ((readings.quality & _SATURATED) != 0)) & readings.valid
        return censored

    def _at_cap(self, readings: Readings, cap_w: FloatArray | None) -> BoolArray:
        """Outlets of loads that draw what their server's cap lets through, or nearly."""
        if cap_w is None:
            return np.zeros(len(self._request_w), dtype=np.bool_)
        drawn_w = np.bincount(self._load_of, weights=readings.power_w)[self._load_of]
        with np.errstate(invalid="ignore"):
            at_cap: BoolArray = drawn_w >= (1.0 - self._config.censor_band) * cap_w
        return at_cap

    def _learn(self, residual: Residual | None, in_reach: IntArray, interval_ticks: IntArray, now_ns: int) -> None:
        begins = np.isnan(self._excess)
        if begins.any():
            self._excess = np.where(begins, FIRST_RISES * in_reach, self._excess)
        if residual is None:
            return
        learn = residual.valid & (self._censored_until_ns <= now_ns)
        change = np.where(learn, residual.escaped - self._config.target, 0.0)
        self._excess = np.clip(self._excess + change, 0.0, MOST_RISES * in_reach)
        rate = np.minimum(1.0, interval_ticks * TICK_NS / (ERROR_MEMORY_S * NS_PER_S))
        self._error_w += np.where(learn, rate * (np.abs(residual.running_max_w) - self._error_w), 0.0)

    def _learn_missed(self, readings: Readings, dt_s: float) -> None:
        """The largest recent change between two readings of a slow meter that an enforced limit goes by."""
        if not self._enforced.any():
            return
        fresh = readings.fresh & self._enforced & (readings.quality & _SLOW_METER != 0)
        change_w = np.where(fresh, np.abs(readings.power_w - self._read_before_w), 0.0)
        self._missed_w = np.fmax(self._missed_w * 0.5 ** (dt_s / MISSED_HALF_LIFE_S), change_w)
        self._read_before_w = np.where(fresh, readings.power_w, np.where(readings.valid, self._read_before_w, np.nan))

    def _margin_w(self, in_reach: IntArray, in_force: LimitsInForce) -> FloatArray:
        usual_w = np.fmax(self._least_error_w, self._error_w)
        rises = self._excess / in_reach
        floor_w = self._config.meter_noise_w + np.where(self._enforced, in_force.step_w + self._missed_w, 0.0)
        margin_w: FloatArray = np.maximum(floor_w, GAIN * BEND * np.sinh(rises / BEND) * usual_w)
        return np.minimum(margin_w, self._rating_w)

    def _at_start_w(self, known: BoolArray, now_ns: int) -> FloatArray:
        """The least request while nothing is known of a load: STATIC_SAFE at its first reading, less as time goes on."""
        self._first_ns = np.where(known & (self._first_ns == NEVER_NS), now_ns, self._first_ns)
        if self._config.start_s == 0.0:
            return np.zeros(len(self._first_ns))
        age_s = (now_ns - self._first_ns) / NS_PER_S
        left: FloatArray = np.clip(1.0 - age_s / self._config.start_s, 0.0, 1.0) * self._static_safe_w
        return left

    def _threshold_w(self, known: BoolArray, lost: BoolArray, step_w: FloatArray, now_ns: int) -> FloatArray:
        config = self._config
        highest_w = self._alarm.push(now_ns, np.where(known, self._needed_w, 0.0))
        alarm_w = np.maximum(highest_w, self._needed_w) * (1.0 + config.alarm_headroom) + step_w
        alarm_w += config.alarm_step * self._rating_w * self._episodes
        new = now_ns - self._first_ns < round(config.alarm_learn_s * NS_PER_S)
        alarm_w = np.where(new, np.maximum(alarm_w, self._static_safe_w), alarm_w)
        return np.where(lost, self._static_safe_w, alarm_w)

    def _count_episodes(self, readings: Readings, dt_s: float, now_ns: int) -> None:
        """Draw above the threshold of the tick before; one episode until it was below for `EPISODE_S`."""
        over = readings.fresh & (readings.power_w > self._alarm_w)
        begins = over & (now_ns - self._over_ns > round(EPISODE_S * NS_PER_S))
        self._over_ns[over] = now_ns
        worked_off = self._config.alarm_episodes_per_day * dt_s / DAY_S
        self._episodes = np.maximum(0.0, self._episodes + begins - worked_off)


class _RollingMax:
    """Largest value of each outlet over at least the last `span_s`, in blocks of a tenth of it."""

    def __init__(self, n: int, span_s: float) -> None:
        self._blocks_w = np.zeros((BLOCKS + 1, n))
        self._span_s = span_s
        self._block_ns = max(1, round(span_s * NS_PER_S / BLOCKS))
        self._block: int | None = None

    def over(self, span_s: float) -> "_RollingMax":
        """The same over another span; the largest so far counts as new, for nobody knows any more when it was."""
        if span_s == self._span_s:
            return self
        other = _RollingMax(self._blocks_w.shape[1], span_s)
        if self._block is not None:
            other.push(self._block * self._block_ns, self._blocks_w.max(axis=0))
        return other

    def push(self, t_ns: int, value_w: FloatArray) -> FloatArray:
        """Take the values [n] at `t_ns` and return the maxima [n]; time must not go back."""
        block = t_ns // self._block_ns
        if self._block is not None:
            for stale in range(max(self._block, block - len(self._blocks_w)) + 1, block + 1):
                self._blocks_w[stale % len(self._blocks_w)] = 0.0
        self._block = block
        row = self._blocks_w[block % len(self._blocks_w)]
        np.maximum(row, value_w, out=row)
        return self._blocks_w.max(axis=0)  # type: ignore[no-any-return]
