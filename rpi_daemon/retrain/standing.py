"""The model that forecasts in a running daemon: chosen at start, swapped while it runs, never without a word in the log."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from rpi_daemon.clock import Clock
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ModelError
from rpi_daemon.models.library import SHIPPED_NAME, Choice, Library, Standing
from rpi_daemon.models.manifest import LoadedModel, load_model

log = structlog.get_logger("rpi_daemon")


class Swapping(Protocol):
    """A forecaster whose network can be replaced while it runs."""

    @property
    def model(self) -> LoadedModel | None:
        """The network that forecasts; None where none does."""

    def swap(self, model: LoadedModel) -> None:
        """Let `model` take over once it is primed."""


def library_of(config: Config) -> Library:
    """The models of the daemon with this configuration."""
    named = config.forecast.model
    return Library(config.path(config.daemon.state_dir), named, config.path(named))


def with_model(config: Config, choice: Choice) -> Config:
    """The configuration as if it named this model."""
    directory = SHIPPED_NAME if choice.name == SHIPPED_NAME else str(choice.model.path.resolve())
    return config.model_copy(update={"forecast": config.forecast.model_copy(update={"model": directory})})


class StandingModel:
    """One per daemon. `choose` at start, `attach` once the pipeline is there; `promote` and `roll_back` from the loop."""

    def __init__(self, library: Library, clock: Clock, *, recorded: bool) -> None:
        """`recorded`: the run is recorded for a replay, which knows one model only."""
        self.library = library
        self.name: str | None = None  # None: no model forecasts
        self._clock = clock
        self._recorded = recorded
        self._forecaster: Swapping | None = None
        self._changing = asyncio.Lock()

    def choose(self) -> Choice:
        """The model to begin with; what was refused before it is logged. Raises ModelError where none is good."""
        choice = self.library.choose()
        for sentence in choice.refused:
            log.error("model.refused", error=sentence, doing=f"{choice.name} forecasts")
        self.name = choice.name
        return choice

    def attach(self, forecaster: Swapping) -> None:
        """The forecaster of the pipeline, which has the chosen model."""
        self._forecaster = forecaster

    async def promote(self, name: str, reason: str, *, watch_ns: int = 0, sha256: str = "") -> Standing:
        """Let `name` forecast from here on. Raises ModelError: everything is as before then."""
        before, now_ns = self.name, self._clock.utc_ns()
        found, stands = await self._change(lambda: self.library.promote(name, now_ns, watch_ns=watch_ns, sha256=sha256))
        log.info("model.promoted", model=found.current, sha256=stands, before=before, reason=reason)
        return found

    async def roll_back(self, reason: str) -> Standing:
        """Let the previous model forecast again. Raises ModelError: everything is as before then."""
        before, now_ns = self.name, self._clock.utc_ns()
        found, sha256 = await self._change(lambda: self.library.roll_back(now_ns))
        log.warning("model.rolled_back", model=found.current, sha256=sha256, before=before, reason=reason)
        return found

    async def _change(self, change: Callable[[], Standing]) -> tuple[Standing, str]:
        """Write down which model stands, in a thread, then swap; returns the word and the model's hash."""
        forecaster = self._forecaster
        if forecaster is None or forecaster.model is None:
            raise ModelError("no network forecasts in this run (see forecast.primary, and model.refused in the log)")
        if self._recorded:
            raise ModelError("this run is recorded: its model stays, else the recording would not replay")
        async with self._changing:
            found = await asyncio.to_thread(change)
            try:
                model = await asyncio.to_thread(lambda: load_model(self.library.path(found.current)))
            except ModelError as error:  # damaged between two looks at it; at the next start it is refused by name
                log.error("model.refused", error=str(error), doing=f"{self.name} goes on")
                raise
            forecaster.swap(model)
            self.name = found.current
        return found, model.sha256
