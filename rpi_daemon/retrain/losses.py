"""How well forecasters did on the same moments: pinball loss and escapes, by the one rule of reach."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from rpi_daemon.reach import Reach
from rpi_daemon.records import QUANTILES, FloatArray, Forecast, ForecastInput

_Q: Final = np.array(QUANTILES)[:, None]
_FIELDS: Final = 2 * len(QUANTILES)  # of the value 5 s ahead, then of the running maximum until then


class Losses:
    """Feed it every tick; `loss_w`, `absolute_w` and `escapes` [members, n] are sums over `judged` [n] moments.

    Loss: mean pinball (Koenker and Bassett 1978) over the quantiles of the value and of the running maximum. Escape: a
    running maximum above its 0.99 quantile. A moment counts for all members or for none.
    """

    def __init__(self, names: Sequence[str], n: int) -> None:
        self.names = tuple(names)
        self.loss_w: FloatArray = np.zeros((len(names), n))
        self.absolute_w: FloatArray = np.zeros((len(names), n))
        self.escapes: FloatArray = np.zeros((len(names), n))
        self.judged: FloatArray = np.zeros(n)
        self._n = n
        self._reach = Reach(n, _FIELDS * len(names))

    def step(self, x: ForecastInput, said: Mapping[str, Forecast], *, count: bool = True) -> None:
        """Judge what was said for now, and keep what each says now; `count` is false while they warm up."""
        due = self._reach.take(x)
        if due is not None and count:
            forecasts = due.said.reshape(len(self.names), 2, len(QUANTILES), self._n)
            error_w = np.stack([due.now_w, due.highest_w])[None, :, None] - forecasts
            loss_w = np.maximum(_Q * error_w, (_Q - 1.0) * error_w).mean(axis=(1, 2))
            good = np.isfinite(loss_w).all(axis=0)
            self.judged += good
            self.loss_w += np.where(good, loss_w, 0.0)
            self.absolute_w += np.where(good, np.abs(error_w[:, 0, QUANTILES.index(0.5)]), 0.0)
            self.escapes += good & (error_w[:, 1, -1] > 0.0)
        self._reach.keep(
            np.concatenate(
                [np.concatenate([_last(said[name].value_w), _last(said[name].running_max_w)]) for name in self.names]
            )
        )


def _last(quantiles_w: FloatArray) -> FloatArray:
    return quantiles_w[:, -1].T
