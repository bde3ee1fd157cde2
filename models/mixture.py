"""The deployed forecaster: experts per outlet, the network among them, mixed online by how well each has done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from rpi_daemon._fastpath.core import EXPERTS, Experts
from rpi_daemon.clock import Clock, SystemClock
from rpi_daemon.errors import ModelError, PoisonedError
from rpi_daemon.models.forecaster import NO_FORECAST, SHIPPED, Forecaster
from rpi_daemon.models.manifest import LoadedModel
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import (
    HORIZONS_S,
    QUANTILES,
    REQUEST_QUANTILE,
    TICK_NS,
    BoolArray,
    FloatArray,
    Forecast,
    ForecastInput,
)

LATE_NS: Final = 50_000_000  # an answer of the network that took longer than half a tick
LATE_IN_A_ROW: Final = 3
REST_TICKS: Final = 100  # after that many late answers the network is left alone for this long
MIXTURE: Final = "mixture"
_VALUE, _RUNNING_MAX = 0, 1
_MEDIAN: Final = QUANTILES.index(0.5)


class Mixture:
    """Experts and their weights per outlet, learning live; or one expert alone, with persistence where it has no answer.

    The network sleeps where it raised ModelError, gave an old answer or took more than half a tick, or where a number is
    not finite or out of physical bounds (0 to 1.5 x the rating or the present draw); the others' weights then count as a
    whole. One that gave what is no number is not asked again until `trust`, or another model. A row that cannot be answered is NaN with the source "none": there was no reading, or it is too old.
    """

    name = MIXTURE

    def __init__(
        self, n: int, network: Forecaster | None = None, clock: Clock | None = None, *, alone: str | None = None
    ) -> None:
        """`alone`: one of EXPERTS, the only one that may answer."""
        self._n = n
        self._network = network
        self._clock = clock or SystemClock()
        self._alone = alone
        self._experts = Experts(n, alone)
        self._reason = ""
        self.poisoned = ""  # why the network is not heard until `trust`, or another model
        self._late_in_a_row = 0
        self._rest = 0
        self._t_mono_ns = 0
        self._source = (alone or MIXTURE,) * n
        self._counts = {alone or MIXTURE: 0, "persistence": 0, NO_FORECAST: 0}
        self._interval_ticks = np.ones(n, np.int64)
        self._silent = np.full((n, len(HORIZONS_S), len(QUANTILES)), np.nan)

    @property
    def model(self) -> LoadedModel | None:
        """The network's model; None where there is none."""
        return self._network.model if isinstance(self._network, LstmForecaster) else None

    def swap(self, model: LoadedModel) -> None:
        """Let `model` take over from the network of now, once it is primed; without one nothing happens."""
        if isinstance(self._network, LstmForecaster):
            if self.poisoned:
                self._network.replace(model)
            else:
                self._network.swap(model)
        self.poisoned = ""

    def trust(self) -> None:
        """Hear a network again that gave what is no number; it begins every outlet afresh."""
        if self.poisoned and self._network is not None:
            self._network.reset()
        self.poisoned = ""

    @property
    def reason(self) -> str:
        """Why the network was not heard in the newest tick; empty when it was."""
        return self._reason

    @property
    def counts(self) -> Mapping[str, int]:
        """Outlet ticks answered, by source."""
        return {name: count for name, count in self._counts.items() if count or name != "persistence"}

    @property
    def latest(self) -> Mapping[str, Forecast]:
        """What each expert says by itself in the newest tick, for scores; NaN where it sleeps."""
        found = {}
        for place, name in enumerate(EXPERTS):
            if name == "lstm" and self._network is None:
                continue
            out = np.empty((2, *self._silent.shape))
            self._experts.member(place, out)
            found[name] = Forecast(self._t_mono_ns, out[0], out[1], (name,) * self._n)
        return found

    @property
    def weights(self) -> Mapping[str, FloatArray]:
        """Expert -> [n] its part of the median of the draw 5 s ahead."""
        return self._weights(_VALUE, _MEDIAN)

    @property
    def request_weights(self) -> Mapping[str, FloatArray]:
        """Expert -> [n] its part of the quantile of the running maximum that requests build on."""
        return self._weights(_RUNNING_MAX, REQUEST_QUANTILE)

    @property
    def period_ticks(self) -> np.ndarray:
        """The strongest period of each outlet, [n] ticks; 0 where none was found yet."""
        return self._experts.period_ticks

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Forget what was seen and learned of these outlets (all by default)."""
        self._experts.reset(outlets)
        if self._network is not None:
            self._network.reset(outlets)

    def step(self, x: ForecastInput) -> Forecast:
        """One tick of every expert; call once for each."""
        self._t_mono_ns = x.t_mono_ns
        network = self._ask_network(x)
        if not (x.interval_ticks == self._interval_ticks).all():
            self._interval_ticks = np.array(np.broadcast_to(x.interval_ticks, self._n))
        out = np.empty((2, *self._silent.shape))
        self._experts.step(
            round(x.t_mono_ns / TICK_NS),
            x.power_w,
            x.valid,
            x.fresh,
            self._interval_ticks,
            x.rating_w,
            x.planned_w,
            self._silent if network is None else network.value_w,
            self._silent if network is None else network.running_max_w,
            out,
        )
        return Forecast(x.t_mono_ns, out[_VALUE], out[_RUNNING_MAX], self._sources(out))

    def _sources(self, out: FloatArray) -> tuple[str, ...]:
        answered = np.isfinite(out[_VALUE, :, 0, 0])
        name = self._alone or MIXTURE
        if self._alone is None and answered.all():
            self._counts[name] += self._n
            return self._source
        stood_in = np.zeros(self._n, np.bool_)
        if self._alone is not None:
            stood_in = answered & ~self._experts.awake[EXPERTS.index(self._alone)]
        self._counts[NO_FORECAST] += self._n - int(answered.sum())
        self._counts["persistence"] += int(stood_in.sum())
        self._counts[name] += int((answered & ~stood_in).sum())
        if not stood_in.any() and answered.all():
            return self._source
        return tuple(np.where(answered, np.where(stood_in, "persistence", name), NO_FORECAST).tolist())

    def _weights(self, kind: int, quantile: int) -> Mapping[str, FloatArray]:
        out = np.empty((len(EXPERTS), self._n))
        self._experts.weights(kind, quantile, out)
        return dict(zip(EXPERTS, out, strict=True))

    def _ask_network(self, x: ForecastInput) -> Forecast | None:
        if self._network is None:
            self._reason = "no model"
            return None
        if self.poisoned:
            self._reason = self.poisoned
            return None
        if self._rest > 0:
            self._rest -= 1
            if self._rest == 0:
                self._network.reset()
            return None
        begin_ns = self._clock.mono_ns()
        try:
            answer = self._network.step(x)
        except ModelError as error:
            self._reason = str(error)
            if isinstance(error, PoisonedError):
                self.poisoned = self._reason
            return None
        took_ns = self._clock.mono_ns() - begin_ns
        if answer.t_mono_ns == x.t_mono_ns and took_ns <= LATE_NS:
            self._late_in_a_row = 0
            self._reason = ""
            return answer
        self._reason = f"late: {took_ns / 1e6:.0f} ms"
        self._late_in_a_row += 1
        if self._late_in_a_row == LATE_IN_A_ROW:
            self._late_in_a_row = 0
            self._rest = REST_TICKS
        return None


def default_mixture(n: int, model: LoadedModel | str | Path | None = SHIPPED, clock: Clock | None = None) -> Mixture:
    """As shipped; `model=None` goes without the network. Raises ModelError for a refused model."""
    return Mixture(n, None if model is None else LstmForecaster(model, n), clock)
