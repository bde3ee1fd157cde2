"""Another configuration for a running daemon: read and tried beside the loop, taken over whole between two ticks, or not at all."""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from rpi_daemon.allocator import allocate
from rpi_daemon.assembly import tuning
from rpi_daemon.audit import By
from rpi_daemon.config.changes import Change, changes
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Config
from rpi_daemon.devices import load_checked, write_budgets
from rpi_daemon.errors import ConfigError, RpiError
from rpi_daemon.log import set_level
from rpi_daemon.pipeline import Pipeline, Tuning
from rpi_daemon.records import FloatArray, Mode, RackModel

if TYPE_CHECKING:
    from rpi_daemon.service import Service

HUNG_UP = By("daemon", "SIGHUP")

log = structlog.get_logger("rpi_daemon")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that was checked and tried, and what of it the running parts take over."""

    config: Config
    changed: tuple[Change, ...]
    rack: RackModel
    tuning: Tuning
    never_learns: str

    def document(self) -> dict[str, Any]:
        """For whoever asked."""
        told = [{"key": c.key, "before": c.before, "after": c.after} for c in self.changed]
        return {"config": self.config.file, "sha256": self.config.sha256, "changed": told, "text": self.text()}

    def text(self) -> list[str]:
        return [change.words() for change in self.changed]


def prepare(running: Config) -> Prepared:
    """Read the file of the running configuration anew, check and try it; touches nothing that runs. Not for the loop.

    Raises ConfigError with a line per mistake, or per change that needs a restart.
    """
    file = Path(running.file)
    if not file.is_file():
        raise ConfigError(f"{file}: is not there, or no file that can be read again")
    try:
        config = load_checked(file)
        found = changes(running, config)
        if fixed := [change for change in found if not change.live]:
            raise ConfigError("\n".join(f"{file}: {c.words()}: needs a restart" for c in fixed))
        return _tried(config, found)
    except RpiError:
        raise
    except Exception as error:  # a defect of ours in reading a file must not end control of the rack
        raise ConfigError(f"{file}: cannot be used, by a defect worth a report: {error!r}") from error


def _tried(config: Config, found: tuple[Change, ...]) -> Prepared:
    """Every part is made, and the rack shared out once: what fails, fails here."""
    from rpi_daemon.retrain.decision import why_never  # here, for it imports the models

    rack = rack_model(config)
    prepared = Prepared(config, found, rack, tuning(config, write_budgets(config)), why_never(config))
    unknown: FloatArray = np.full(rack.n, np.nan)
    allocate(0, rack.static_safe_w, rack, (), unknown, unknown, prepared.tuning.allocator)
    return prepared


class Reload:
    """One per daemon; called from its loop. `take_over` is the only part that touches what runs, and it waits for nothing."""

    def __init__(self, service: "Service") -> None:
        self.refused: tuple[str, ...] = ()  # why the newest one was; empty: the newest was taken over
        self.loaded_utc_ns = service.clock.utc_ns()
        self._service = service
        self._one = asyncio.Lock()
        self._ready: tuple[Prepared, asyncio.Future[None]] | None = None
        self._hung_up: asyncio.Task[None] | None = None
        self._again = False
        self._began = asyncio.Event()  # the loop ticks

    # -- asked for

    def hang_up(self) -> None:
        """SIGHUP. Many of them while one is under way are one more."""
        if self._hung_up is not None and not self._hung_up.done():
            self._again = True
            return
        self._hung_up = asyncio.create_task(self._after_hang_up(), name="reload")

    async def _after_hang_up(self) -> None:
        await self._began.wait()
        self._again = True
        while self._again:
            self._again = False
            try:
                await self.run()
            except RpiError:
                continue  # `run` has said so

    async def run(self, *, dry_run: bool = False, by: By = HUNG_UP) -> Prepared:
        """Read the configuration again and take it over, all or nothing. Raises RpiError; then everything is as it was."""
        async with self._one:
            try:
                if self._service.recorded:
                    raise RpiError("this run is recorded, and repeats only with the configuration that it began with")
                prepared = await asyncio.to_thread(prepare, self._service.config)
                if dry_run:
                    return prepared
                async with self._service.operator.writing():
                    await self._make_way(prepared, by)
                    await self._swapped(prepared)
            except RpiError as error:
                if not dry_run:
                    self.refused = tuple(str(error).splitlines())
                    log.error("reload.refused", errors=self.refused, sha256=self._service.config.sha256)
                raise
            self.refused = ()
            changed = {"changed": prepared.text(), "sha256": prepared.config.sha256}
            self._service.audit.note("configuration", by, changed)
            log.warning("reload.done", changed=prepared.text(), sha256=prepared.config.sha256)
            return prepared

    async def _make_way(self, prepared: Prepared, by: By) -> None:
        """All that may fail: found limits for outlets that are opted out, and the word on disk that `failsafe` acts on."""
        limits = self._service.limits
        before, mode = limits.released, limits.mode
        leaving = limits.rack.opted_in & ~prepared.rack.opted_in
        try:
            if mode is Mode.CLOSED_LOOP and leaving.any():
                names = [n for n, leaves in zip(limits.rack.outlet_ids, leaving, strict=True) if leaves]
                await limits.restore(names, by, self._service.readings)
                limits.mode = mode  # whatever is left of it
            standing = limits.standing_with(prepared.config, prepared.rack)
            await limits.keep_standing(standing)
        except RpiError:
            limits.mode = mode
            limits.release(before)  # all ours again: the next tick writes what was put back already
            with contextlib.suppress(RpiError):  # it may be this that failed
                await limits.keep_standing()
            raise

    async def _swapped(self, prepared: Prepared) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready = prepared, done
        try:
            await done
        finally:
            self._ready = None

    # -- between two ticks

    def take_over(self, pipeline: Pipeline) -> None:
        """Immediately before a tick: what is ready is in force from this tick on."""
        self._began.set()
        if self._ready is None:
            return
        (prepared, done), self._ready = self._ready, None
        service, config, limits = self._service, prepared.config, self._service.limits
        if config.daemon.log_level != service.config.daemon.log_level:
            set_level(config.daemon.log_level)
        service.config = config
        limits.configure(config, prepared.rack, prepared.tuning.guard)
        if limits.lease is not None:
            limits.lease.configure(config.actuator.lease_s)
        pipeline.configure(prepared.tuning, limits.rack, limits.opted_in, limits.released)
        service.score.configure(limits.rack)
        service.traps.configure(config)
        if service.keeping is not None:
            service.keeping.configure(limits.rack)
        if service.learning is not None:
            service.learning.configure(config, prepared.never_learns)
        self.loaded_utc_ns = service.clock.utc_ns()
        if not done.done():
            done.set_result(None)

    # -- views and the end

    def status(self) -> dict[str, Any]:
        """Which configuration is in force."""
        config = self._service.config
        refused = list(self.refused) or None
        return {"path": config.file, "sha256": config.sha256, "loaded_utc_ns": self.loaded_utc_ns, "refused": refused}

    async def close(self) -> None:
        """End what is under way."""
        if self._hung_up is not None:
            self._hung_up.cancel()
            await asyncio.gather(self._hung_up, return_exceptions=True)
