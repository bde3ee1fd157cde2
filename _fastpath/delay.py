"""Design of the fractional-delay filters that bring a voltage channel into step with each current channel."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

HALF_TAPS = 28  # 57 taps; fewer do not reach 450 Hz, 0.9 of what can be represented, within 0.01 %
BAND = 0.45  # of the sampling rate: readings mean the band below 450 Hz at 1 kHz
RANK_TOLERANCE = 1e-5  # of the gain; what the shared basis may add to the error of a filter

Array = NDArray[np.float64]


def delay_taps(delays: Array, lag: int) -> Array:
    """Taps h [m, 2*lag+1] such that sum_j h[i, j] x[k - lag + j] = x(k - delays[i]); delays in samples.

    Weighted least squares over 0..BAND on a grid, the weight rising towards the edge, where the fit is hardest; the
    result is scaled to a DC gain of exactly one. A whole delay is a plain shift. Raises ValueError if `lag` has no room.
    """
    whole = np.round(delays).astype(np.int64)
    if np.any(np.abs(whole) + HALF_TAPS > lag):
        raise ValueError(f"a delay of {np.max(np.abs(delays)):.1f} samples needs a lag of more than {lag}")
    grid, weight, solver = _fit()
    target = np.exp(-2j * np.pi * np.multiply.outer(grid, delays - whole)) * weight[:, None]
    taps = (solver @ np.concatenate([target.real, target.imag])).T
    taps /= taps.sum(axis=1, keepdims=True)
    out = np.zeros((len(delays), 2 * lag + 1))
    for row, shift in enumerate(whole):
        start = lag - HALF_TAPS - shift
        out[row, start : start + 2 * HALF_TAPS + 1] = taps[row]
    return out


@cache
def _fit() -> tuple[Array, Array, Array]:
    """Grid of frequencies (of the sampling rate), its weights, and the solver of the weighted least squares on it."""
    grid = np.linspace(0.0, BAND, 600)
    weight = 1.0 + 3.0 * (grid / BAND) ** 20
    positions = np.arange(-HALF_TAPS, HALF_TAPS + 1)
    design = np.exp(2j * np.pi * np.multiply.outer(grid, positions)) * weight[:, None]
    return grid, weight, np.linalg.pinv(np.concatenate([design.real, design.imag]))


def lag_for(delays: Array) -> int:
    """Group delay in samples that filters for these delays need: 0 when none is needed, else even (scans go in fours)."""
    if len(delays) == 0 or not np.any(delays):
        return 0
    whole = int(np.max(np.abs(np.round(delays))))
    return HALF_TAPS + whole + whole % 2


def shared_basis(taps: Array) -> tuple[Array, Array]:
    """Factor taps [m, n] = mix [m, r] @ basis [r, n] with the smallest r that keeps every filter within RANK_TOLERANCE.

    Filters that differ by a fraction of a sample are nearly dependent: 48 of them need about 5 rows, so 48 outlets
    cost 5 filters and 48 short sums instead of 48 filters.
    """
    left, strength, right = np.linalg.svd(taps, full_matrices=False)
    rest = np.sqrt(np.cumsum((strength**2)[::-1]))[::-1]  # of what is left out, an upper bound of any row's error
    rank = max(1, int(np.sum(rest > RANK_TOLERANCE)))
    return left[:, :rank] * strength[:rank], right[:rank]
