"""The live watch: a promoted model beside the one before it, on the same readings, until it has proved itself."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.models.manifest import LoadedModel
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import Forecast, ForecastInput
from rpi_daemon.retrain.losses import Losses

WARM_UP_TICKS: Final = 600  # the previous model begins afresh, while the promoted one was primed
BLOCK_TICKS: Final = 600  # a minute: one vote
FEWEST_BLOCKS: Final = 60
WORSE: Final = 0.05  # loss above the previous model's, beyond which the promotion was a mistake
SURE: Final = 2.0  # standard errors
SILENT_TICKS: Final = 100  # ticks in a row in which the network's answer could not be used at all


class Watch:
    """Step it once a tick, after the limits are on their way. `why_roll_back` is empty as long as the promotion holds."""

    def __init__(self, previous: LoadedModel, n: int) -> None:
        self._shadow = LstmForecaster(previous, n)
        self._losses = Losses(("live", "previous"), n)
        self._ticks = 0
        self._silent = 0
        self._votes: list[float] = []
        self._before: tuple[NDArray[np.float64], NDArray[np.float64]] = self._sums()

    @property
    def loss_vs_previous(self) -> float | None:
        """Geometric mean over minutes of the promoted model's loss / the previous one's; None before the first."""
        return float(np.exp(np.mean(self._votes))) if self._votes else None

    @property
    def minutes(self) -> int:
        """Minutes judged."""
        return len(self._votes)

    def step(self, x: ForecastInput, live: Forecast | None, usable: bool) -> None:
        """`live`: what the promoted network itself said this tick, None where it said nothing; `usable`: and was it taken."""
        self._silent = 0 if usable else self._silent + 1
        shadow = self._shadow.step(x)
        said = Forecast(
            x.t_mono_ns, np.full_like(shadow.value_w, np.nan), np.full_like(shadow.running_max_w, np.nan), ()
        )
        self._losses.step(x, {"live": live or said, "previous": shadow}, count=self._ticks >= WARM_UP_TICKS)
        self._ticks += 1
        if self._ticks % BLOCK_TICKS == 0:
            self._vote()

    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._losses.loss_w.copy(), self._losses.judged.copy()

    def _vote(self) -> None:
        """One number for this minute: the mean over outlets of the logarithm of the losses' ratio."""
        (before_w, judged_before), (now_w, judged) = self._before, self._sums()
        self._before = (now_w, judged)
        loss_w, count = now_w - before_w, judged - judged_before
        there = (count > 0) & (loss_w > 0.0).all(axis=0)
        if there.any():
            self._votes.append(float(np.log(loss_w[0, there] / loss_w[1, there]).mean()))

    def why_roll_back(self) -> str:
        """The reason, or nothing."""
        if self._silent >= SILENT_TICKS:
            return f"no usable answer for {SILENT_TICKS // 10} s"
        if len(self._votes) < FEWEST_BLOCKS:
            return ""
        mean, error = float(np.mean(self._votes)), float(np.std(self._votes, ddof=1) / np.sqrt(len(self._votes)))
        if mean - SURE * error > np.log1p(WORSE):
            return f"live loss {np.exp(mean):.3f} x that of the model before it, over {len(self._votes)} minutes"
        return ""
