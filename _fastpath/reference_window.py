"""Twin of the window kernel in NumPy: the same features and masks, vectorised over outlets, without its short cuts."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.delay import delay_taps, lag_for

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

NO_COUNT = -(2**31)
HOP = 100
BLOCK = 20  # half of a 40 ms Hann
FIRST_BLOCK = 2
MISSING, SATURATED, NO_VOLTAGE, UNCALIBRATED = 1, 2, 8, 16
UNCERTAIN, NO_DATA = 1 << 3 | 1 << 4, 1 << 5 | 1 << 6  # board status bits


class ReferenceKernel:
    """Same arguments and `out` as core.WindowKernel, which says what they mean."""

    def __init__(
        self,
        n_channels: int,
        *,
        outlets: Sequence[tuple[int, int | tuple[int, int], float]],
        gain: ArrayLike,
        offset_counts: ArrayLike | None = None,
        delay_ns: ArrayLike | None = None,
        full_scale_counts: ArrayLike | None = None,
        rate_hz: int = 1000,
        dc: bool = False,
    ) -> None:
        pairs = [v if isinstance(v, tuple) else (v, -1) for _, v, _ in outlets]
        self._current = np.array([c for c, _, _ in outlets])
        self._plus = np.array([plus for plus, _ in pairs])
        self._minus = np.array([minus for _, minus in pairs])
        self._sign = np.array([sign for _, _, sign in outlets])
        self._gain = np.array(gain, np.float64)
        self._offset = np.zeros(n_channels) if offset_counts is None else np.array(offset_counts, np.float64)
        self._full = np.full(n_channels, 2**31 - 1) if full_scale_counts is None else np.array(full_scale_counts)
        delay = np.zeros(n_channels) if delay_ns is None or dc else np.array(delay_ns) * rate_hz * 1e-9
        sides = [(self._plus, 1.0), (self._minus, -1.0)]
        wanted = [np.where(channel >= 0, delay[self._current] - delay[channel], 0.0) for channel, _ in sides]
        apart = np.where(self._minus >= 0, delay[self._plus] - delay[self._minus], 0.0)
        self._lag = lag_for(np.concatenate([*wanted, apart]))
        self._apart = delay_taps(apart, self._lag) if np.any(apart) else None
        # (voltage channel, its outlets, sign, taps of each outlet)
        self._filters = [
            (c, np.flatnonzero(channel == c), sign, delay_taps(d[channel == c], self._lag))
            for (channel, sign), d in zip(sides, wanted, strict=True)
            for c in np.unique(channel)
            if c >= 0 and self._lag
        ]
        x = np.pi * np.arange(2 * HOP) / HOP
        self._weight = 1 / 2 - 9 / 16 * np.cos(x) + 1 / 16 * np.cos(3 * x)
        self._rise = np.sin(np.pi * np.arange(BLOCK) / (2 * BLOCK)) ** 2
        self.out: Array = np.full((len(outlets), core.N_FEATURES), np.nan)

    def compute(self, ring: core.Ring, end_index: int) -> int:
        """As WindowKernel.compute."""
        n = 2 * HOP + 2 * self._lag
        if end_index > ring.head or end_index < n:
            return core.WINDOW_NOT_READY
        scans, present = ring.read(end_index - n, n)
        if not ring.intact(end_index - n):
            return core.WINDOW_LAPPED
        if (present & (scans["flags"] & core.SCAN_FIRST != 0))[1:].any():
            return core.WINDOW_NOT_READY
        measured = present & (scans["status"] & NO_DATA == 0)
        self.out = self.features(scans["counts"], measured)
        if np.any(scans["status"] & UNCERTAIN):
            self.out[:, core.F_QUALITY] += UNCALIBRATED
        return core.WINDOW_OK

    def features(self, counts: NDArray[np.int32], present: Mask) -> Array:
        """Features [n_outlets, N_FEATURES] of counts [scans, n_channels], of which those of `present` [scans] are there."""
        there = present[:, None] & (counts != NO_COUNT)
        clipped = there & ((counts >= self._full) | (counts <= -self._full))
        values = self._gain * (np.clip(counts, -self._full, self._full) - self._offset)
        amps, amps_there = values[:, self._current] * self._sign, there[:, self._current]
        weighted, newest = slice(self._lag, self._lag + 2 * HOP), slice(len(counts) - HOP, len(counts))
        metered = self._plus >= 0
        second = np.where(self._minus >= 0, self._minus, self._plus)
        other = values[weighted][:, second]
        if self._apart is not None:
            other = np.stack(
                [self._windows(values, there, c) @ taps for c, taps in zip(second, self._apart, strict=True)], axis=1
            )
        raw = values[weighted][:, self._plus] - np.where(self._minus >= 0, other, 0.0)
        volts_there = (there[:, self._plus] & there[:, second])[weighted]
        aligned = self._aligned(values, there) if self._filters else raw

        i, here = amps[weighted], amps_there[weighted]
        both = here & (volts_there | ~metered)
        product = np.where(both, i * np.where(metered, aligned, i), 0.0)
        rms_a = np.sqrt(self._mean(i * i, here))
        voltage_v = np.where(metered, np.sqrt(self._mean(raw * raw, volts_there)), np.nan)
        power_w = np.where(metered, self._mean(product, both), np.nan)
        apparent_va = voltage_v * rms_a

        fresh, fresh_there = amps[newest], amps_there[newest]
        count = fresh_there.sum(axis=0)
        low = np.where(count > 0, np.where(fresh_there, fresh, np.inf).min(axis=0), np.nan)
        high = np.where(count > 0, np.where(fresh_there, fresh, -np.inf).max(axis=0), np.nan)
        peak = np.maximum(np.abs(low), np.abs(high))
        lost = ~there.all(axis=0)
        over = clipped.any(axis=0)
        quality = (
            MISSING * (lost[self._current] | metered & (lost[self._plus] | lost[second]))
            + SATURATED * (over[self._current] | metered & (over[self._plus] | over[second]))
            + NO_VOLTAGE * ~metered
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = {
                core.F_POWER_W: power_w,
                core.F_RMS_A: rms_a,
                core.F_APPARENT_VA: apparent_va,
                core.F_POWER_FACTOR: np.clip(power_w / apparent_va, -1.0, 1.0),
                core.F_PEAK_A: peak,
                core.F_CREST: peak / rms_a,
                core.F_MIN_A: low,
                core.F_MAX_A: high,
                core.F_STEP: self._step(product, both, ~metered),
                core.F_VOLTAGE_V: voltage_v,
                core.F_COUNT: count,
                core.F_MISSING: HOP - count,
                core.F_SATURATED: clipped[newest][:, self._current].sum(axis=0),
                core.F_QUALITY: quality,
            }
        return np.stack([columns[k] for k in range(core.N_FEATURES)], axis=1)

    def _aligned(self, values: Array, there: Mask) -> Array:
        """Voltage of each outlet [200, n_outlets] in step with its current."""
        aligned = np.zeros((2 * HOP, len(self._current)))
        for channel, outlets, sign, taps in self._filters:
            aligned[:, outlets] += sign * (self._windows(values, there, channel) @ taps.T)
        return aligned

    def _windows(self, values: Array, there: Mask, channel: int) -> Array:
        """What a filter sees of a channel, [200, taps]; holes are bridged by a straight line."""
        volts, good = values[:, channel], there[:, channel]
        if not good.all():
            places = np.arange(len(volts))
            volts = np.interp(places, places[good], volts[good]) if good.any() else np.zeros(len(volts))
        return sliding_window_view(volts, 2 * self._lag + 1)

    def _mean(self, values: Array, there: Mask) -> Array:
        """Weighted mean over what is there; NaN where that is less than half of the weight."""
        weight = self._weight @ there
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (self._weight @ np.where(there, values, 0.0)) / weight
        return np.where(weight * 2 >= HOP, mean, np.nan)

    def _step(self, product: Array, there: Mask, root: Mask) -> Array:
        """Largest change between 40 ms Hann means 40 ms apart, of the means' square roots where `root`."""
        hann = np.concatenate([self._rise, 1.0 - self._rise])
        starts = range(FIRST_BLOCK * BLOCK, 2 * HOP - 2 * BLOCK + 1, BLOCK)
        weight = np.stack([hann @ there[k : k + 2 * BLOCK] for k in starts])
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.stack([hann @ product[k : k + 2 * BLOCK] for k in starts]) / weight
            mean = np.where(weight * 2 >= BLOCK, mean, np.nan)
            mean = np.where(root, np.sqrt(np.abs(mean)), mean)
        change = np.abs(mean[2:] - mean[:-2])
        known = np.isfinite(change)
        return np.where(known.any(axis=0), np.where(known, change, -np.inf).max(axis=0), np.nan)
