"""The network as a forecaster: one LSTM for all outlets, run as a stream."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rpi_daemon._fastpath.core import network_quantiles
from rpi_daemon.errors import PoisonedError
from rpi_daemon.models.inputs import Inputs, InputStream
from rpi_daemon.models.lstm import N_OUTPUTS
from rpi_daemon.models.manifest import LoadedModel, load_model
from rpi_daemon.records import HORIZONS_S, QUANTILES, BoolArray, Forecast, ForecastInput

Float32 = NDArray[np.float32]

PRIME_LENGTH: Final = 200  # steps that a new model is run over before it takes over: 20 s, or 200 readings
PRIME_STEPS_PER_TICK: Final = 5
SLIGHTLY_NEGATIVE: Final = 0.05  # of the rating: an answer down to this far below 0 W is 0 W: of a server that is off
_SHAPE: Final = (len(HORIZONS_S), len(QUANTILES))


class _State:
    """A model with its hidden state for n outlets."""

    def __init__(self, model: LoadedModel, n: int) -> None:
        self.model = model
        self._h = np.zeros((1, n, model.hidden), np.float32)
        self._c = np.zeros_like(self._h)

    def step(self, columns: Float32, restarted: BoolArray, live: BoolArray) -> Float32:
        """One step; outlets without a reading keep their state. Returns outputs [n, 30] in scales."""
        if restarted.any():
            self._h[:, restarted] = 0.0
            self._c[:, restarted] = 0.0
        y, h, c = self.model.run(columns, self._h, self._c)
        if live.all():
            self._h, self._c = h, c
        else:
            self._h[:, live] = h[:, live]
            self._c[:, live] = c[:, live]
        return y


class LstmForecaster:
    """One LSTM for all outlets (batch = outlets), run as a stream: one step per tick, for an outlet of a slow meter one per
    fresh reading; between two readings its answer stands.

    An outlet begins afresh after a gap of more than 0.5 s (of a slow meter three readings) and answers NaN until it was
    primed with 5 readings (one). The 0.9 and 0.99 quantiles of the running maximum never lie below the present draw plus the announced work, and the upper quantiles
    not above the rating, unless the draw, its announced change or the median do; of an outlet that is off no quantile is
    above its draw and what was announced.
    """

    name = "lstm"

    def __init__(self, model: LoadedModel | str | Path, n: int) -> None:
        self._n = n
        self._inputs = InputStream(n)
        self._state = _State(model if isinstance(model, LoadedModel) else load_model(model), n)
        self._change_w = np.zeros((n, N_OUTPUTS))  # the newest answer, from the reading that it was made at
        self._source = (self.name,) * n
        self._seen: Inputs | None = None
        self._past: list[Inputs] = []  # of ticks with an answer; newest last, at most PRIME_LENGTH
        self._candidate: _State | None = None
        self._primed = 0  # of _past, by the candidate

    @property
    def model(self) -> LoadedModel:
        """The model that answers now."""
        return self._state.model

    @property
    def seen(self) -> Inputs | None:
        """What the network saw in the newest tick, the strongest period of each outlet included; None before the first."""
        return self._seen

    @property
    def priming(self) -> bool:
        """A new model is being run over the past beside the present one."""
        return self._candidate is not None

    def swap(self, model: LoadedModel) -> None:
        """Let `model` take over once it has been run over the last 200 steps, at most 5 of them per tick."""
        self._candidate = _State(model, self._n)
        self._primed = 0

    def replace(self, model: LoadedModel) -> None:
        """Let `model` take over at once, every outlet afresh: what stood has gone wrong, and cannot bridge the time."""
        self._state, self._candidate = _State(model, self._n), None
        self._past.clear()
        self.reset()

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Begin these outlets (all by default) afresh."""
        self._inputs.reset(outlets)
        self._change_w[slice(None) if outlets is None else outlets] = 0.0

    def step(self, x: ForecastInput) -> Forecast:
        """One step of the network. Raises ModelError when onnxruntime fails, PoisonedError for an answer that is no number."""
        seen = self._seen = self._inputs.step(x)
        self._prime()
        if seen.due.all():
            y = self._ask(seen)
            np.multiply(y, seen.scale_w[:, None], out=self._change_w)
        elif seen.due.any():
            y = self._ask(seen)[seen.due]
            self._change_w[seen.due] = y * seen.scale_w[seen.due, None]
        self._remember(seen)
        out = np.empty((2, self._n, *_SHAPE))
        network_quantiles(
            self._change_w, seen.base_w, seen.ready, seen.off, x.rating_w, x.planned_w, SLIGHTLY_NEGATIVE, out
        )
        return Forecast(x.t_mono_ns, out[0], out[1], self._source)

    def _ask(self, seen: Inputs) -> Float32:
        y = self._state.step(seen.columns, seen.restarted, seen.live)
        asked = seen.live & np.isfinite(seen.columns).all(axis=1)
        if not np.isfinite(y[asked]).all():
            raise PoisonedError(f"model {self._state.model.name}: it answered with what is no number")
        return y

    def _remember(self, seen: Inputs) -> None:
        if not seen.due.any():
            return
        self._past.append(seen)
        if len(self._past) > PRIME_LENGTH:
            del self._past[0]
            self._primed = max(0, self._primed - 1)

    def _prime(self) -> None:
        if self._candidate is None:
            return
        waiting = self._past[self._primed :][:PRIME_STEPS_PER_TICK]
        for past in waiting:
            self._candidate.step(past.columns, past.restarted, past.live)
        self._primed += len(waiting)
        if self._primed == len(self._past):
            self._state, self._candidate = self._candidate, None
