"""Loads that no recording shows: random levels, periods, noise, spikes and drifts, for a training set that is not all habit.

After Dooley et al., "ForecastPFN: synthetically-trained zero-shot forecasting" (NeurIPS 2023): what a forecaster learns
from signals of every kind is to tell the kind.
"""

import numpy as np

from rpi_daemon.records import FloatArray


def random_load(n: int, pace: float, rng: np.random.Generator) -> FloatArray:
    """n readings between 0 and 1; `pace` readings are what a second or two of a server is: times are in these."""
    signal = levels(n, pace, rng)
    if rng.random() < 0.5:
        wave = waves(n, pace, rng)
        signal = signal * wave if rng.random() < 0.3 else signal + rng.uniform(0.2, 2.0) * wave
    if rng.random() < 0.25:
        signal = signal + spikes(n, pace, rng)
    if rng.random() < 0.2:
        signal = signal + drift(n, pace, rng)
    width = round(pace * rng.choice([1.0, 1.0, 2.0, 5.0]))
    signal = np.convolve(np.concatenate([np.full(width - 1, signal[0]), signal]), np.ones(width) / width, "valid")
    low, span = float(signal.min()), max(float(np.ptp(signal)), 1e-6)
    idle = rng.uniform(0.0, 0.8) if rng.random() < 0.8 else 0.0
    signal = idle + (1.0 - idle) * (signal - low) / span
    size = float(np.exp(rng.uniform(np.log(3e-4), np.log(0.08))))
    gate = np.where(rng.random() < 0.5, 1.0, signal)  # some flicker only as far as they work
    return np.maximum(signal + size * gate * wander(n, rng.uniform(0.0, 0.98), rng), 0.0)


def levels(n: int, pace: float, rng: np.random.Generator) -> FloatArray:
    """Held for random times: of a few levels again and again, or of any."""
    held = pace * float(np.exp(rng.uniform(np.log(3.0), np.log(500.0))))
    count = int(4 * n / held) + 8
    spans = held * (rng.gamma(4.0, 0.25, count) if rng.random() < 0.3 else rng.exponential(1.0, count))
    if rng.random() < 0.6:
        states = rng.random(int(rng.integers(2, 5)))
        height = states[rng.integers(0, len(states), count)]
    else:
        height = rng.random(count)
    at = np.searchsorted(np.cumsum(np.maximum(spans, 1.0)), np.arange(n), "right")
    return np.asarray(height[np.minimum(at, count - 1)], np.float64)


def waves(n: int, pace: float, rng: np.random.Generator) -> FloatArray:
    """A shape that repeats, with a period that wanders a little: square, saw, sine, or any."""
    period = pace * float(np.exp(rng.uniform(np.log(2.5), np.log(100.0))))
    jitter = rng.choice([0.0, 0.0, 0.01, 0.05])
    phase = (np.cumsum(1.0 + jitter * wander(n, 0.9, rng)) / period + rng.random()) % 1.0
    kind = rng.integers(0, 4)
    if kind == 0:
        return np.asarray(phase < rng.uniform(0.1, 0.9), np.float64)
    if kind == 1:
        return np.asarray(phase if rng.random() < 0.5 else 1.0 - phase, np.float64)
    if kind == 2:
        return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * phase), np.float64)
    points = rng.random(int(rng.integers(3, 12)))
    return np.asarray(np.interp(phase * len(points), np.arange(len(points) + 1), np.append(points, points[0])))


def spikes(n: int, pace: float, rng: np.random.Generator) -> FloatArray:
    """Short rises (or dips) that fade."""
    often = rng.random(n) < 1.0 / (pace * np.exp(rng.uniform(np.log(10.0), np.log(300.0))))
    fade = np.exp(-np.arange(max(2, int(8 * pace))) / (pace * rng.uniform(0.3, 3.0)))
    sign = 1.0 if rng.random() < 0.7 else -1.0
    return np.asarray(sign * np.convolve(often * rng.uniform(0.2, 1.5, n), fade)[:n], np.float64)


def drift(n: int, pace: float, rng: np.random.Generator) -> FloatArray:
    """A random walk, held within the size of the levels."""
    return np.asarray(0.5 * np.sin(np.cumsum(rng.normal(0.0, rng.uniform(0.005, 0.1) / np.sqrt(pace), n))), np.float64)


def wander(n: int, memory: float, rng: np.random.Generator) -> FloatArray:
    """First-order noise of unit size."""
    taps = memory ** np.arange(int(min(400, np.ceil(6.0 / (1.0 - memory) + 1))))
    noise = rng.standard_normal(n + len(taps) - 1)
    return np.asarray(np.convolve(noise, taps / np.sqrt((taps**2).sum()), "valid"), np.float64)
