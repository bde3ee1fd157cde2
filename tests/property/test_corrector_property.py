"""Margins against adversaries with 5 s delay, and a request's way up and down."""

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_examples import make_forecast, make_limits, make_rack, make_readings

from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.records import TICK_NS, FloatArray, Residual

DELAY = 50
BASE_W = 300.0
RATING_W = 2000.0
RANGE_W = 100.0
# a big step makes R / eta small, so that the bound is tight within a short run; holds are off, so that requests follow
BARE = CorrectorConfig(step_per_escape=0.005, hold_s=0.1, fall_per_s=1000.0)

Adversary = Callable[[int, FloatArray, np.random.Generator], FloatArray]


def _just_above(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Knows the request and passes it by a hair whenever the range allows."""
    return np.minimum(RANGE_W, room_w + 1e-3)


def _patient(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Strikes only when the margin has come down."""
    return np.where(room_w < 0.3 * RANGE_W, RANGE_W, 0.0)


def _noise(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.uniform(0.0, RANGE_W, len(room_w))


def _bursts(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    return np.full(len(room_w), RANGE_W if k % 700 < 60 else 0.0)


def _rare(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    return np.where(rng.random(len(room_w)) < 0.02, RANGE_W, 0.0)


def _drift(k: int, room_w: FloatArray, rng: np.random.Generator) -> FloatArray:
    return np.full(len(room_w), RANGE_W * min(1.0, k / 1500.0))


ADVERSARIES: tuple[Adversary, ...] = (_just_above, _patient, _noise, _bursts, _rare, _drift)


def _play(config: CorrectorConfig, adversary: Adversary, ticks: int, seed: int, n: int = 3) -> FloatArray:
    """Escapes so far, [ticks, n]."""
    rng = np.random.default_rng(seed)
    corrector = Corrector(config, make_rack(n, rating_w=RATING_W, static_safe_w=1.0))
    limits = make_limits(np.full(n, RATING_W))
    made: list[tuple[FloatArray, FloatArray]] = []
    escapes = np.zeros((ticks, n))
    total = np.zeros(n)
    for k in range(ticks):
        now_ns = k * TICK_NS
        residual = None
        if k >= DELAY:
            request_w, measured_w = made[k - DELAY]
            residual = _residual(now_ns, request_w, measured_w)
        forecast = make_forecast(now_ns, np.full(n, BASE_W))
        request = corrector.step(forecast, residual, make_readings(now_ns, np.full(n, BASE_W)), limits)
        measured_w = BASE_W + adversary(k, request.request_w - BASE_W, rng)
        made.append((request.request_w, measured_w))
        total = total + (measured_w > request.request_w)
        escapes[k] = total
    return escapes


def _residual(now_ns: int, request_w: FloatArray, measured_w: FloatArray) -> Residual:
    n = len(request_w)
    return Residual(
        t_mono_ns=now_ns,
        t_made_ns=np.full(n, now_ns - DELAY * TICK_NS),
        value_w=measured_w - BASE_W,
        running_max_w=measured_w - BASE_W,
        measured_max_w=measured_w,
        request_w=request_w,
        escaped=measured_w > request_w,
        valid=np.ones(n, dtype=np.bool_),
        persistence_w=np.zeros(n),
    )


@settings(max_examples=8)
@given(st.sampled_from(ADVERSARIES), st.sampled_from([0.01, 0.05]), st.integers(0, 1000))
def test_escapes_stay_under_the_bound_at_every_moment(adversary: Adversary, target: float, seed: int) -> None:
    config = CorrectorConfig(
        target=target, step_per_escape=BARE.step_per_escape, hold_s=BARE.hold_s, fall_per_s=BARE.fall_per_s
    )
    ticks = 2000
    escapes = _play(config, adversary, ticks, seed)
    t = np.arange(1, ticks + 1)[:, None]
    eta_w = config.step_per_escape * RATING_W
    assert np.all(escapes <= target * t + RANGE_W / eta_w + 2 * DELAY + 1)


def test_the_adversary_would_break_the_bound_without_learning() -> None:
    blunt = CorrectorConfig(step_per_escape=1e-9, cover=1e-9, hold_s=0.1, fall_per_s=1000.0)
    escapes = _play(blunt, _just_above, 2000, 0)
    assert np.all(escapes[-1] > 0.01 * 2000 + RANGE_W / (BARE.step_per_escape * RATING_W) + 2 * DELAY + 1)


def test_long_run_of_defaults_is_near_the_target() -> None:
    """One unforeseen 5 s burst each 70 s (6 % of the ticks are within reach of one): the margin covers them."""
    escapes = _play(CorrectorConfig(), _bursts, 6000, 0)
    late = escapes[-1] - escapes[1000]
    assert np.all(late / 5000 <= 0.02)


@settings(max_examples=20)
@given(st.lists(st.floats(10.0, 1500.0), min_size=2, max_size=12), st.floats(0.5, 5.0), st.floats(0.01, 0.5))
def test_request_rises_at_once_and_falls_by_hold_and_slope(levels: list[float], hold_s: float, fall: float) -> None:
    corrector = Corrector(CorrectorConfig(hold_s=hold_s, fall_per_s=fall), make_rack(1, static_safe_w=1.0))
    limits = make_limits(np.array([RATING_W]))
    asked: list[float] = []
    previous = 0.0
    for k in range(20 * len(levels)):
        now_ns = k * TICK_NS
        level = np.array([levels[k // 20]])
        request = corrector.step(make_forecast(now_ns, level), None, make_readings(now_ns, level), limits)
        asked.append(float((level + request.margin_w)[0]))
        got = float(request.request_w[0])
        assert got >= max(asked[-int(hold_s * 10) :]) - 1e-9
        assert got >= previous - fall * RATING_W * 0.1 - 1e-9
        assert request.alarm_w[0] > got
        previous = got
