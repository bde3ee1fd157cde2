"""Margins against adversaries with 5 s delay, and a request's way up and down."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rack_examples import make_forecast, make_limits, make_rack, make_readings

from rpi_daemon.corrector import BEND, GAIN, LEAST_ERROR, Corrector, CorrectorConfig
from rpi_daemon.records import TICK_NS, FloatArray, Residual

DELAY = 50
BASE_W = 300.0
RATING_W = 2000.0
RANGE_W = 100.0
BOUND = DELAY * BEND * np.arcsinh(RANGE_W / (GAIN * BEND * LEAST_ERROR * RATING_W)) + 2 * DELAY + 1
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


def _play(
    config: CorrectorConfig, adversary: Adversary, ticks: int, seed: int, n: int = 3, *, learns: bool = True
) -> FloatArray:
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
        if learns and k >= DELAY:
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
    ticks = 6000
    escapes = _play(CorrectorConfig(target=target), adversary, ticks, seed)
    t = np.arange(1, ticks + 1)[:, None]
    assert np.all(escapes <= target * t + BOUND)


def test_the_adversary_would_break_the_bound_without_learning() -> None:
    """The same signal against the request of an outlet whose residuals never count."""
    escapes = _play(CorrectorConfig(), _just_above, 2000, 0, learns=False)
    assert np.all(escapes[-1] > 0.01 * 2000 + BOUND)


@pytest.mark.parametrize(("adversary", "share"), [(_bursts, 0.02), (_noise, 0.012)])
def test_after_some_minutes_escapes_are_near_the_target(adversary: Adversary, share: float) -> None:
    """One unforeseen 5 s burst each 70 s (16 % of the ticks are within reach of one), and noise."""
    escapes = _play(CorrectorConfig(), adversary, 12000, 0)
    assert np.all((escapes[-1] - escapes[6000]) / 6000 <= share)


@given(st.lists(st.floats(10.0, 1500.0), min_size=2, max_size=12), st.floats(0.5, 5.0))
@settings(max_examples=20)
def test_what_is_held_is_the_largest_request_of_the_last_seconds(levels: list[float], hold_s: float) -> None:
    config = CorrectorConfig(hold_s=hold_s, alarm_learn_s=0.0)
    corrector = Corrector(config, make_rack(1, static_safe_w=1.0))
    limits = make_limits(np.array([RATING_W]))
    asked: list[float] = []
    for k in range(20 * len(levels)):
        now_ns = k * TICK_NS
        level = np.array([levels[k // 20]])
        request = corrector.step(make_forecast(now_ns, level), None, make_readings(now_ns, level), limits)
        asked.append(float((level + request.margin_w)[0]))
        assert request.request_w[0] == asked[-1]
        got = float(request.held_w[0])
        assert got >= max(asked[-int(hold_s * 10) :]) - 1e-9
        assert got <= max(asked[-int(hold_s * 11 + 2) :]) + 1e-9
        assert request.alarm_w[0] > got
