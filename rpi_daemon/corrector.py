"""Forecast quantile + learned margin = request: what each outlet should be allowed for the next 5 s."""

from dataclasses import dataclass

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    REQUEST_QUANTILE,
    BoolArray,
    FloatArray,
    Forecast,
    LimitsInForce,
    Quality,
    RackModel,
    Readings,
    Request,
    Residual,
)

DELAY_NS = 5 * NS_PER_S  # the running maximum of a request is known 5 s (50 ticks) after it was made
DAY_S = 86_400.0
NEVER_NS = -(1 << 62)
BLOCKS = 10  # a rolling maximum is kept in this many blocks of its span


@dataclass(frozen=True, slots=True)
class CorrectorConfig:
    """How margins are learned and how a request comes down again."""

    target: float = 0.01  # long-run share of ticks whose running maximum may pass the request
    step_per_escape: float = 0.0005  # eta, part of the outlet's rating
    full_cover_escapes: float = 50.0  # excess escapes (one rise makes 50) until the worst recent miss is covered
    cover: float = 1.1  # of the worst recent under-forecast
    worst_half_life_s: float = 60.0
    meter_noise_w: float = 2.0
    hold_s: float = 5.0  # a request stays this long before it falls
    fall_per_s: float = 0.05  # then it falls by at most this part of the rating per second
    censor_band: float = 0.05  # an enforced limit this close to the draw hides the demand
    growth_per_s: float = 1.5  # factor by which the request of a capped load grows per second
    blind_hold_s: float = 5.0  # without readings the last request holds this long, then STATIC_SAFE
    alarm_hold_s: float = 60.0  # an alarm threshold clears the largest request of this span ...
    alarm_headroom: float = 0.1  # ... by this part of it ...
    alarm_step: float = 0.05  # ... and by this part of the rating for each escape episode beyond ...
    alarm_episodes_per_day: float = 1.0  # ... this many

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ConfigError(
                f"corrector target is {self.target}; it is a share of ticks: choose more than 0, less than 1"
            )
        for name in (
            "step_per_escape",
            "full_cover_escapes",
            "worst_half_life_s",
            "hold_s",
            "fall_per_s",
            "alarm_hold_s",
            "alarm_step",
            "alarm_episodes_per_day",
        ):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"corrector {name} is {getattr(self, name)}; choose more than 0")
        if not self.growth_per_s > 1.0:
            raise ConfigError(f"corrector growth_per_s is {self.growth_per_s}; a capped load recovers only above 1")


class Corrector:
    """Steers one margin per outlet by online conformal control, and holds requests up.

    With S the sum of (escape - target) over the feedback so far, never below 0, the margin is

        max(floor, eta * S, worst * min(S / full_cover_escapes, cover))

    The feedback rule is that of adaptive conformal inference (Gibbs & Candes 2021). `eta * S` is the quantile tracker,
    and a margin that is a saturating function of the error sum is the error integration, of Angelopoulos, Candes &
    Tibshirani, "Conformal PID Control for Time Series Prediction" (2023), section 2. The last term adapts fast: `worst`
    is the largest recent under-forecast and fades, so that a flat load has a small margin long before S is worked off.

    The alarm threshold is steered the same way on a slower clock, an episode being its tick: with E the sum of episodes
    beyond the daily target, never below 0, it stands E steps above the largest request of the last minute + head-room.

    A slow meter looks once a second or less: what it may have missed between two readings, by their largest recent change,
    is in the floor of the margin. One reading is one feedback, so `target` is then a share of readings.

    Bound: once S >= R / eta no signal of range R escapes, and S overshoots by at most the D + 1 feedbacks under way, so
    in T ticks there are at most target T + R / eta + 2 D + 1 escapes. Floors, holds and the fast term only raise the
    request.
    """

    def __init__(self, config: CorrectorConfig, rack: RackModel) -> None:
        n = rack.n
        self._config = config
        self._static_safe_w = rack.static_safe_w
        self._rating_w = rack.rating_w
        self._load_of = rack.load_of
        self._demand_w = np.minimum(rack.rating_w, np.array([rack.loads[i].demand_w for i in rack.load_of]))
        self._eta_w = config.step_per_escape * rack.rating_w
        self._excess = np.zeros(n)
        self._worst_w = np.zeros(n)
        self._missed_w = np.zeros(n)
        self._read_before_w = np.full(n, np.nan)
        self._censored_until_ns = np.zeros(n, dtype=np.int64)
        self._seen_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._request_w = rack.static_safe_w.astype(np.float64, copy=True)
        self._recent = _RollingMax(n, config.hold_s)
        self._alarm = _RollingMax(n, config.alarm_hold_s)
        self._alarm_w = np.full(n, np.inf)
        self._episodes = np.zeros(n)  # beyond the daily target
        self._over_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._t_ns: int | None = None

    def step(
        self,
        forecast: Forecast,
        residual: Residual | None,
        readings: Readings,
        in_force: LimitsInForce,
        cap_w: FloatArray | None = None,
    ) -> Request:
        """The request at the time of the forecast; `residual` is about the request made 5 s before.

        `cap_w` [n]: the server cap of ours that holds each outlet's load back, for all its outlets together; NaN: none.
        """
        config = self._config
        now_ns = forecast.t_mono_ns
        dt_s = 0.0 if self._t_ns is None else max(0.0, (now_ns - self._t_ns) / NS_PER_S)
        self._t_ns = now_ns
        capped = self._at_cap(readings, cap_w)
        censored = self._censored(readings, in_force) | capped
        self._censored_until_ns[censored] = now_ns + DELAY_NS
        self._learn(residual, dt_s, now_ns)
        self._learn_missed(readings, dt_s)
        margin_w = self._margin_w(in_force)

        raw_w = np.minimum(forecast.running_max_w[:, -1, REQUEST_QUANTILE], self._rating_w) + margin_w
        known = readings.valid & np.isfinite(raw_w)
        held_at_w = np.where(capped, self._request_w, np.fmax(self._request_w, in_force.limit_w))
        grown_w = np.minimum(held_at_w * config.growth_per_s**dt_s, self._demand_w)
        raw_w = np.where(censored, np.maximum(raw_w, grown_w), raw_w)
        held_w = self._recent.push(now_ns, np.where(known, raw_w, 0.0))
        request_w = np.maximum(held_w, self._request_w - config.fall_per_s * self._rating_w * dt_s)

        self._seen_ns[known] = now_ns
        lost = ~known & (now_ns - self._seen_ns > round(config.blind_hold_s * NS_PER_S))
        request_w = np.where(known, request_w, np.where(lost, self._static_safe_w, self._request_w))
        self._request_w = request_w
        self._count_episodes(readings, dt_s, now_ns)
        highest_w = self._alarm.push(now_ns, np.where(known, request_w, 0.0))
        alarm_w = np.maximum(highest_w, request_w) * (1.0 + config.alarm_headroom)
        alarm_w += config.alarm_step * self._rating_w * self._episodes
        self._alarm_w = np.where(lost, self._static_safe_w, alarm_w)
        return Request(
            t_mono_ns=now_ns, request_w=request_w, margin_w=margin_w, censored=censored & known, alarm_w=self._alarm_w
        )

    def _censored(self, readings: Readings, in_force: LimitsInForce) -> BoolArray:
        """Outlets whose demand is hidden: by an enforced limit, or because the sensor is at full scale."""
        enforced = np.array([kind.enforced for kind in in_force.kind])
        with np.errstate(invalid="ignore"):
            seen_w = in_force.seen_w(readings.power_w, readings.rms_a)  # held at its amperes, the voltage may sag
            capped = enforced & (seen_w >= (1.0 - self._config.censor_band) * in_force.limit_w)
        censored: BoolArray = (capped | ((readings.quality & Quality.SATURATED) != 0)) & readings.valid
        return censored

    def _at_cap(self, readings: Readings, cap_w: FloatArray | None) -> BoolArray:
        """Outlets of loads that draw what their server's cap lets through, or nearly."""
        if cap_w is None:
            return np.zeros(len(self._request_w), dtype=np.bool_)
        drawn_w = np.bincount(self._load_of, weights=readings.power_w)[self._load_of]
        with np.errstate(invalid="ignore"):
            at_cap: BoolArray = drawn_w >= (1.0 - self._config.censor_band) * cap_w
        return at_cap

    def _learn(self, residual: Residual | None, dt_s: float, now_ns: int) -> None:
        self._worst_w *= 0.5 ** (dt_s / self._config.worst_half_life_s)
        if residual is None:
            return
        learn = residual.valid & (self._censored_until_ns <= now_ns)
        change = np.where(learn, residual.escaped - self._config.target, 0.0)
        self._excess = np.maximum(0.0, self._excess + change)
        score_w = np.where(learn & np.isfinite(residual.running_max_w), residual.running_max_w, 0.0)
        self._worst_w = np.maximum(self._worst_w, score_w)

    def _learn_missed(self, readings: Readings, dt_s: float) -> None:
        """The largest recent change between two readings of a slow meter; it fades as the worst under-forecast does."""
        fresh = readings.fresh & (readings.quality & Quality.SLOW_METER != 0)
        change_w = np.where(fresh, np.abs(readings.power_w - self._read_before_w), 0.0)
        self._missed_w = np.fmax(self._missed_w * 0.5 ** (dt_s / self._config.worst_half_life_s), change_w)
        self._read_before_w = np.where(fresh, readings.power_w, np.where(readings.valid, self._read_before_w, np.nan))

    def _count_episodes(self, readings: Readings, dt_s: float, now_ns: int) -> None:
        """Draw above the threshold of the tick before; one episode until it was below for `alarm_hold_s`."""
        over = readings.fresh & (readings.power_w > self._alarm_w)
        fresh = over & (now_ns - self._over_ns > round(self._config.alarm_hold_s * NS_PER_S))
        self._over_ns[over] = now_ns
        worked_off = self._config.alarm_episodes_per_day * dt_s / DAY_S
        self._episodes = np.maximum(0.0, self._episodes + fresh - worked_off)

    def _margin_w(self, in_force: LimitsInForce) -> FloatArray:
        floor_w = self._config.meter_noise_w + in_force.step_w + self._missed_w
        fast_w = self._worst_w * np.minimum(self._excess / self._config.full_cover_escapes, self._config.cover)
        margin_w: FloatArray = np.maximum(floor_w, np.maximum(self._eta_w * self._excess, fast_w))
        return margin_w


class _RollingMax:
    """Largest value of each outlet over at least the last `span_s`, in blocks of a tenth of it."""

    def __init__(self, n: int, span_s: float) -> None:
        self._blocks_w = np.zeros((BLOCKS + 1, n))
        self._block_ns = max(1, round(span_s * NS_PER_S / BLOCKS))
        self._block: int | None = None

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
