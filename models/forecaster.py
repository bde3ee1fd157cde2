"""The stack of forecasters: the primary, and who answers per outlet when its answer cannot be used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from rpi_daemon.clock import Clock, SystemClock
from rpi_daemon.errors import ModelError
from rpi_daemon.models.baseline import Ewma, Persistence, Ridge, known_plan
from rpi_daemon.models.manifest import LoadedModel
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import HORIZONS_S, QUANTILES, BoolArray, FloatArray, Forecast, ForecastInput

SHIPPED: Final = Path(__file__).parent / "shipped"
NO_FORECAST: Final = "none"
UPPER_BOUND: Final = 1.5  # of the rating, or of the present draw where that is larger
LATE_NS: Final = 50_000_000  # an answer that took longer than half a tick
LATE_IN_A_ROW: Final = 3
REST_TICKS: Final = 100  # after that many late answers the primary is left alone for this long
_SHAPE: Final = (2, len(HORIZONS_S), len(QUANTILES))


class Forecaster(Protocol):
    """Called once per tick with every outlet; a row it has no answer for is NaN."""

    name: str

    def step(self, x: ForecastInput) -> Forecast:
        """Take one tick in and forecast. Raises ModelError when it cannot go on."""

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Forget what was seen of these outlets (all by default)."""


class ForecasterStack:
    """The primary's answer where it can be used, per outlet, else the first fall-back that has one.

    Not usable: the primary raised ModelError, gave an old answer or took more than half a tick, a number is not finite
    or lies out of physical bounds (0 to 1.5 x the rating or the present draw). Every member steps at every tick, so that
    a fall-back is warm; where the primary answered every row, that waits for `catch_up`, when the limits are on their
    way. A row that nobody can answer is NaN with the source "none".
    """

    name = "stack"

    def __init__(self, primary: Forecaster | None, fallbacks: Sequence[Forecaster], clock: Clock | None = None) -> None:
        self._primary = primary
        self._fallbacks = tuple(fallbacks)
        self._clock = clock or SystemClock()
        self._late_in_a_row = 0
        self._rest = 0
        self._reason = ""
        self._counts = {f.name: 0 for f in (*((primary,) if primary else ()), *fallbacks)} | {NO_FORECAST: 0}
        self._latest: dict[str, Forecast] = {}
        self._owed: ForecastInput | None = None  # a tick that the fall-backs have not stepped yet
        self._source: tuple[str, ...] = ()

    @property
    def model(self) -> LoadedModel | None:
        """The network that forecasts; None where none does."""
        return self._primary.model if isinstance(self._primary, LstmForecaster) else None

    def swap(self, model: LoadedModel) -> None:
        """Let `model` take over from the network of now, once it is primed; without one nothing happens."""
        if isinstance(self._primary, LstmForecaster):
            self._primary.swap(model)

    @property
    def counts(self) -> Mapping[str, int]:
        """Outlet ticks answered, by forecaster."""
        return self._counts

    @property
    def weights(self) -> Mapping[str, FloatArray]:
        """Forecaster -> [n]: 1 where it made the outlet's row of the newest tick, else 0."""
        return {
            name: np.array([source == name for source in self._source], np.float64)
            for name in self._counts
            if name != NO_FORECAST
        }

    @property
    def request_weights(self) -> Mapping[str, FloatArray]:
        """The same: a row is of one forecaster, whole."""
        return self.weights

    @property
    def latest(self) -> Mapping[str, Forecast]:
        """What each member said in the newest tick, for scores."""
        self.catch_up()
        return self._latest

    def catch_up(self) -> None:
        """Let the fall-backs see the newest tick, if they have not; nothing is lost when nobody calls before the next."""
        if self._owed is not None:
            x, self._owed = self._owed, None
            self._latest |= {f.name: f.step(x) for f in self._fallbacks}

    @property
    def reason(self) -> str:
        """Why the primary was not used in the newest tick; empty when it was."""
        return self._reason

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Every member forgets these outlets (all by default)."""
        self.catch_up()
        for member in (*((self._primary,) if self._primary else ()), *self._fallbacks):
            member.reset(outlets)

    def step(self, x: ForecastInput) -> Forecast:
        """One tick of every member, and the choice."""
        self.catch_up()
        n = len(x.power_w)
        primary = self._ask_primary(x)
        self._latest = {} if primary is None else {primary.source[0]: primary}
        self._owed = x
        if primary is not None and usable(primary, x).all():
            self._counts[primary.source[0]] += n
            self._source = primary.source
            return primary
        self.catch_up()
        answers = list(self._latest.values())
        value_w = np.full((n, *_SHAPE[1:]), np.nan)
        running_max_w = np.full_like(value_w, np.nan)
        source = np.full(n, NO_FORECAST, dtype=object)
        waiting = np.ones(n, np.bool_)
        for answer in answers:
            take = waiting & usable(answer, x)
            value_w[take] = answer.value_w[take]
            running_max_w[take] = answer.running_max_w[take]
            source[take] = answer.source[0]
            self._counts[answer.source[0]] += int(take.sum())
            waiting &= ~take
            if not waiting.any():
                break
        self._counts[NO_FORECAST] += int(waiting.sum())
        self._source = tuple(source)
        return Forecast(x.t_mono_ns, value_w, running_max_w, self._source)

    def _ask_primary(self, x: ForecastInput) -> Forecast | None:
        if self._primary is None:
            self._reason = "no model"
            return None
        if self._rest > 0:
            self._rest -= 1
            if self._rest == 0:
                self._primary.reset()
            return None
        begin_ns = self._clock.mono_ns()
        try:
            answer = self._primary.step(x)
        except ModelError as error:
            self._reason = str(error)
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


def usable(answer: Forecast, x: ForecastInput) -> BoolArray:
    """Which rows are finite and within physical bounds; [n]."""
    n = len(x.power_w)
    present_w = np.where(x.valid & np.isfinite(x.power_w), x.power_w, 0.0)
    high_w = UPPER_BOUND * np.maximum(x.rating_w, present_w) + np.maximum(known_plan(x.planned_w).max(0), 0.0)
    inside = np.ones(n, np.bool_)
    for quantile_w in (answer.value_w, answer.running_max_w):
        by_outlet = quantile_w.transpose(1, 2, 0).reshape(-1, n)
        inside &= (by_outlet.min(0) >= 0.0) & (by_outlet.max(0) <= high_w)  # NaN compares false
    return inside


def default_stack(
    n: int, model: LoadedModel | str | Path | None = SHIPPED, clock: Clock | None = None
) -> ForecasterStack:
    """LSTM first, then ridge, ewma, persistence; `model=None` goes without. Raises ModelError for a refused model."""
    primary = None if model is None else LstmForecaster(model, n)
    return ForecasterStack(primary, baselines(n), clock)


def baselines(n: int) -> tuple[Forecaster, ...]:
    """The fall-backs that are always there, best first."""
    return (Ridge(n), Ewma(n), Persistence(n))
