"""The regression of board ticks on host time: jitter does not move it, drift is followed, slow arrivals are passed over."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath.core import BoardClock

FRAME_S = 0.01
SEEDS = st.integers(0, 2**32 - 1)


class Path:
    """A board clock that is off by `ppm`, seen through delays; errors of prediction in microseconds, frame by frame."""

    def __init__(self, ppm: float, tick_hz: int = 1_000_000, ticks: int = 123_456, mono_ns: int = 10**15) -> None:
        self.tick_hz, self.start_ticks, self.start_ns = tick_hz, ticks, mono_ns
        self.s_per_s = 1 + ppm * 1e-6  # host seconds in one of the board's
        self.frame = 0
        self.clock = BoardClock(ticks, mono_ns, 1e9 / tick_hz)

    def run(self, delays_us: np.ndarray) -> np.ndarray:
        errors = np.empty(len(delays_us))
        for k, delay_us in enumerate(delays_us):
            board_s = self.frame * FRAME_S
            true_ns = self.start_ns + round(board_s * self.s_per_s * 1e9)
            ticks = self.start_ticks + round(board_s * self.tick_hz)
            self.clock.add(ticks, true_ns + round(delay_us * 1e3))
            errors[k] = (self.clock.predict(ticks) - true_ns) / 1e3
            self.frame += 1
        return errors


@settings(max_examples=25)
@given(SEEDS, st.floats(-100, 100), st.floats(0, 300), st.sampled_from([1_000_000, 12_500_000, 168_000_000]))
def test_jitter_does_not_move_it(seed: int, ppm: float, mean_us: float, tick_hz: int) -> None:
    rng = np.random.default_rng(seed)
    path = Path(ppm, tick_hz)
    delays = rng.exponential(mean_us, 6000)
    delays[rng.random(6000) < 0.01] += 20_000
    errors = path.run(delays)[3000:]
    # the least of 20 exponential delays has a mean and a deviation of a twentieth of theirs; 30 such are averaged
    assert np.abs(errors).max() < 10 + mean_us * 0.2
    assert np.std(np.diff(errors)) < 1 + mean_us * 0.01
    assert abs(path.clock.drift_ppm - ppm) < 2 + mean_us * 0.05


@settings(max_examples=15)
@given(SEEDS, st.floats(-100, 100), st.floats(500, 100_000), st.floats(0.3, 4.0))
def test_slow_stretch_is_passed_over(seed: int, ppm: float, extra_us: float, seconds: float) -> None:
    """A starved host hears everything late for a while: prediction goes on as before."""
    rng = np.random.default_rng(seed)
    path = Path(ppm)
    path.run(rng.exponential(50, 3000))
    errors = path.run(rng.exponential(50, round(seconds / FRAME_S)) + extra_us)
    assert np.abs(errors).max() < 80
    assert np.abs(path.run(rng.exponential(50, 500))).max() < 80


@settings(max_examples=15)
@given(SEEDS, st.floats(-100, 100), st.floats(500, 100_000))
def test_delay_that_stays_is_accepted(seed: int, ppm: float, extra_us: float) -> None:
    rng = np.random.default_rng(seed)
    path = Path(ppm)
    path.run(rng.exponential(50, 2000))
    path.run(rng.exponential(50, 700) + extra_us)
    errors = path.run(rng.exponential(50, 500) + extra_us)
    assert np.abs(errors - extra_us).max() < 80


@settings(max_examples=15)
@given(SEEDS, st.floats(500, 100_000))
def test_early_arrival_is_proof(seed: int, extra_us: float) -> None:
    """It began while the host was slow: as soon as frames come faster, a line that lies later than they do is wrong."""
    rng = np.random.default_rng(seed)
    path = Path(20.0)
    path.run(rng.exponential(50, 300) + extra_us)
    path.run(rng.exponential(50, 25))
    assert np.abs(path.run(rng.exponential(50, 500))).max() < 80


def test_years_of_ticks_stay_exact() -> None:
    path = Path(30.0, tick_hz=168_000_000, ticks=2**62, mono_ns=2**60)
    errors = path.run(np.full(3000, 5.0))
    assert np.abs(errors[1000:] - 5).max() < 1.0


def test_gap_of_hours_is_bridged() -> None:
    path = Path(-40.0)
    path.run(np.full(6000, 5.0))
    path.frame += 360_000  # an hour unplugged
    errors = path.run(np.full(1000, 5.0))
    assert np.abs(errors - 5).max() < 2000
    assert np.abs(errors[500:] - 5).max() < 30
