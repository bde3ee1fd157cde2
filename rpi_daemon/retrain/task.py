"""Learning in a running daemon: begins a training when it may, ends it when it must, decides, promotes, watches."""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.schema import Config
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import ModelError, RpiError
from rpi_daemon.history.stretches import POWER
from rpi_daemon.history.weeks import History
from rpi_daemon.models.library import Choice
from rpi_daemon.models.manifest import LoadedModel, load_model
from rpi_daemon.records import Forecast, ForecastInput
from rpi_daemon.retrain.decision import DAY_NS, Decision, decide, new_name, prepare, tidy, training_lock, why_never
from rpi_daemon.retrain.process import Training
from rpi_daemon.retrain.schedule import Conditions, MeanLoad, Rules, Window, why_not, why_stop
from rpi_daemon.retrain.standing import StandingModel
from rpi_daemon.retrain.watch import Watch

LOOK_S: Final = 10.0  # between two looks at the conditions
LAST_FILE: Final = "last-training.json"  # below the models: one training a night, over restarts too
MINUTES_PER_DAY: Final = 1440.0
OUTCOMES: Final = ("promoted", "kept", "rejected", "not_trained")
DECIDED: Final = frozenset(field.name for field in fields(Decision))

log = structlog.get_logger("rpi_daemon")


class Watched(Protocol):
    """What the watch needs of a forecaster."""

    @property
    def latest(self) -> Mapping[str, Forecast]:
        """What each member said in the newest tick."""

    @property
    def reason(self) -> str:
        """Why the network's answer was not used; empty when it was."""


class Learning:
    """One per daemon. `look` each `LOOK_S`, `tick` after each tick's limits are on their way; neither waits. `close`."""

    def __init__(self, config: Config, standing: StandingModel, clock: Clock, n: int) -> None:
        self._standing = standing
        self._clock = clock
        self._n = n
        self._load = MeanLoad(LOOK_S)
        self._normal_since_ns: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._training: Training | None = None
        self._progress: tuple[str, float] | None = None
        self._stopped = False
        self.configure(config, why_never(config))
        self._last: dict[str, Any] | None = None
        self._last_began_ns = _read_last(standing.library.folder / LAST_FILE)
        self._watch: Watch | None = None
        self._watch_until_ns = 0
        self._changing: asyncio.Task[None] | None = None
        self._seen_ns: int | None = None
        if config.retrain.enabled and self._never:
            log.info("retrain.never", reason=self._never)

    def configure(self, config: Config, never: str) -> None:
        """Other options from the next look on; a training that runs goes on with those that it began with.

        `never`: what `why_never` says of them.
        """
        options = config.retrain
        self._config = config
        self._rules = Rules(Window.of(options.hours), options.max_load, options.min_history_days)
        if not self._stopped:
            self._never = never if options.enabled else "retrain.enabled is false"
        self._why_not = self._never
        if self._never and self._training is not None:
            self._training.cancel(self._never)

    def begin(self) -> None:
        """Once the loop runs: a promotion that was being watched when the daemon stopped is watched on."""
        self._change(self._begin_watch())

    # -- the schedule

    def look(self, load: float | None, normal: bool) -> None:
        """The highest part of a constraint's derated rating that is drawn now, and whether the state is NORMAL."""
        now_ns = self._clock.mono_ns()
        mean = self._load.take(load)
        if not normal:
            self._normal_since_ns = None
        elif self._normal_since_ns is None:
            self._normal_since_ns = now_ns
        if self._never:
            return
        seen = self._conditions(mean, now_ns)
        if self._training is not None:
            if reason := why_stop(seen, self._rules):
                self._training.cancel(reason)
            return
        if self._task is not None and not self._task.done():
            return
        self._why_not = why_not(seen, self._rules)
        if not self._why_not:
            self._task = asyncio.create_task(self._night(seen), name="retraining")

    def _conditions(self, load: float | None, now_ns: int, history_days: float = float("inf")) -> Conditions:
        normal_s = 0.0 if self._normal_since_ns is None else max((now_ns - self._normal_since_ns) / NS_PER_S, 1e-9)
        last = None if self._last_began_ns is None else _local(self._last_began_ns)
        return Conditions(_local(self._clock.utc_ns()), load, normal_s, history_days, last)

    async def _night(self, seen: Conditions) -> None:
        """One training from its last condition, which takes a look at the disk, to its decision."""
        try:
            days = await asyncio.to_thread(self._stored_days)
            self._why_not = why_not(Conditions(seen.now, seen.load, seen.normal_s, days, seen.last_began), self._rules)
            if not self._why_not:
                with training_lock(self._standing.library):
                    await self._train()
        except RpiError as error:
            log.warning("retrain.failed", error=str(error))
            self._last = {"outcome": "failed", "reasons": [str(error)]}
        finally:
            self._training = self._progress = None

    def _stored_days(self) -> float:
        now_ns = self._clock.utc_ns()
        history = History(self._folder())
        return len(history.times(POWER, now_ns - 366 * DAY_NS, now_ns)) / MINUTES_PER_DAY

    def _folder(self) -> Path:
        return self._config.path(self._config.daemon.state_dir) / self._config.history.folder

    async def _train(self) -> None:
        library, utc_ns = self._standing.library, self._clock.utc_ns()
        self._note_began(utc_ns)
        choice = await asyncio.to_thread(library.choose)
        name = new_name(library, utc_ns)
        out = library.folder / name
        training = prepare(self._config, choice.model.path, library, utc_ns, name)
        if self._never:  # the daemon stops
            return
        self._training = training
        log.info("retrain.began", model=name, incumbent=choice.name)
        decision: Decision | None = None
        try:
            result = await asyncio.to_thread(training.run, self._heard)
            decision = decide(self._config, choice, result)
            await self.decided(decision.to_json())
        finally:
            given_up = decision or _given_up(name, choice)
            await asyncio.to_thread(tidy, library, given_up, out, self._config.retrain.keep_models)

    def _heard(self, stage: str, done: float) -> None:
        self._progress = (stage, done)

    def _note_began(self, utc_ns: int) -> None:
        self._last_began_ns = utc_ns
        path = self._standing.library.folder / LAST_FILE
        try:
            write_durably(path, json.dumps({"began_utc_ns": utc_ns}) + "\n")
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror}; nothing is trained where nothing can be kept") from None

    # -- decisions

    async def decided(self, decision: Mapping[str, Any]) -> None:
        """Log a decision, its own or that of `rpi-daemon retrain`, and follow it. Raises RpiError."""
        outcome, model, reasons = decision.get("outcome"), decision.get("model"), decision.get("reasons", ())
        if outcome not in OUTCOMES or not isinstance(model, str):
            raise RpiError("a decision needs an outcome and the name of a model")
        if not isinstance(reasons, list | tuple) or not all(isinstance(reason, str) for reason in reasons):
            raise RpiError("the reasons of a decision are a list of sentences")
        if unknown := sorted(decision.keys() - DECIDED):
            raise RpiError(f"a decision has no {', '.join(map(repr, unknown))}; known: {', '.join(sorted(DECIDED))}")
        log.info("retrain.decided", **decision)
        self._last = {"outcome": outcome, "model": model, "reasons": reasons}
        if outcome == "promoted":
            watch_ns = round(self._config.retrain.watch_hours * 3600 * NS_PER_S)
            judged = str(decision.get("sha256", ""))
            await self._standing.promote(model, "it won at the gate", watch_ns=watch_ns, sha256=judged)
            await self._begin_watch()

    # -- the watch

    async def _begin_watch(self) -> None:
        """Run the model before this one beside it, as long as the promotion is on trial."""
        self._watch = None
        try:
            found = self._standing.library.standing()
            if found.watch_until_utc_ns <= self._clock.utc_ns() or found.current != self._standing.name:
                return
            previous: LoadedModel = await asyncio.to_thread(
                lambda: load_model(self._standing.library.path(found.previous))
            )
        except ModelError as error:
            log.warning("model.not_watched", error=str(error))
            return
        self._watch = Watch(previous, self._n)
        self._watch_until_ns = found.watch_until_utc_ns

    def tick(self, x: ForecastInput | None, forecaster: Watched) -> None:
        """One tick of the watch: `x` is what the forecaster was given."""
        watch = self._watch
        if watch is None or x is None or x.t_mono_ns == self._seen_ns:
            return
        self._seen_ns = x.t_mono_ns
        try:
            watch.step(x, forecaster.latest.get("lstm"), usable=forecaster.reason == "")
        except ModelError as error:  # of the model before it: the loop goes on
            self._watch = None
            log.warning("model.not_watched", error=str(error))
            return
        if reason := watch.why_roll_back():
            self._watch = None
            self._change(self._roll_back(reason))
        elif self._clock.utc_ns() >= self._watch_until_ns:
            self._watch = None
            self._change(self._end_watch(watch))

    def forget_watch(self) -> None:
        """An operator changed the model: what was watched does not forecast any more."""
        self._watch = None

    async def _roll_back(self, reason: str) -> None:
        try:
            await self._standing.roll_back(reason)
        except ModelError as error:
            log.error("model.not_rolled_back", error=str(error))

    async def _end_watch(self, watch: Watch) -> None:
        log.info(
            "model.stays", model=self._standing.name, loss_vs_previous=watch.loss_vs_previous, minutes=watch.minutes
        )
        try:
            await asyncio.to_thread(self._standing.library.end_watch)
        except ModelError as error:
            log.warning("model.not_watched", error=str(error))

    def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Beside the loop, and one at a time: what is under way is awaited first."""
        before = self._changing

        async def after() -> None:
            if before is not None:
                await asyncio.wait([before])
            await work

        self._changing = asyncio.create_task(after(), name="model change")

    # -- views and the end

    def status(self) -> dict[str, Any]:
        """For views."""
        watch = self._watch
        return {
            "enabled": self._config.retrain.enabled,
            "hours": self._config.retrain.hours,
            "training": None if self._progress is None else {"stage": self._progress[0], "done": self._progress[1]},
            "waits_because": None if self._training is not None else self._why_not or None,
            "last": self._last,
            "watch": None
            if watch is None
            else {
                "minutes": watch.minutes,
                "loss_vs_previous": watch.loss_vs_previous,
                "until_utc_ns": self._watch_until_ns,
            },
        }

    def stop(self) -> None:
        """End a training; the daemon does."""
        self._stopped, self._never = True, "the daemon stops"
        if self._training is not None:
            self._training.cancel("the daemon stops")

    async def close(self) -> None:
        """Wait for the end of what runs."""
        self.stop()
        for task in (self._task, self._changing):
            if task is not None:
                await asyncio.wait([task])


def _given_up(name: str, choice: Choice) -> Decision:
    """A training without a result, as far as its files go."""
    return Decision("not_trained", name, "", choice.name, (), None, {}, 0.0, 0.0, ())


def _local(utc_ns: int) -> datetime:
    return datetime.fromtimestamp(utc_ns / NS_PER_S).astimezone()


def _read_last(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["began_utc_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a training too many is no harm
