"""What operators ask for over the control socket: commands, and what they leave for the next tick."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from rpi_daemon.audit import By
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import NotRunningError, RefusedError, RpiError
from rpi_daemon.guard import LONGEST_REASON
from rpi_daemon.records import Ceiling, Hint, Mode
from rpi_daemon.roles import Caller, Role, RoleGroups
from rpi_daemon.status import status_document

if TYPE_CHECKING:
    from rpi_daemon.retrain.standing import StandingModel
    from rpi_daemon.service import Service

REFUSALS_S = 1.0  # between two lines about refused callers: somebody who may only read must not fill the log
LONGEST_DRILL_S = 60.0
SOONEST_HINT_S = 0.2  # work that starts now is announced this far ahead, so that a tick sees it coming

log = structlog.get_logger("rpi_daemon")

# command -> the least role that may ask for it
ROLES = {
    "status": Role.READ,
    "mode": Role.OPERATE,
    "kill": Role.OPERATE,  # engaging it is the least dangerous act; the file and SIGUSR1 do the same
    "resume": Role.OPERATE,
    "acknowledge": Role.OPERATE,
    "limit_set": Role.OPERATE,
    "limit_restore": Role.OPERATE,
    "hint": Role.OPERATE,
    "traps_test": Role.OPERATE,
    "model_roll_back": Role.OPERATE,
    "model_promote": Role.ADMIN,
    "retrain_decided": Role.ADMIN,
    "drill": Role.ADMIN,
    "reload": Role.ADMIN,
}


class Operator:
    """Answers requests, in the daemon's loop. A tick takes `hints` and `acknowledged` away; the rest stays."""

    def __init__(self, service: "Service") -> None:
        self.hints: list[Hint] = []
        self.acknowledged: set[str] = set()
        self._ceilings: dict[str, tuple[Ceiling, int]] = {}
        self._service = service
        self._wire = asyncio.Lock()
        self._writer: asyncio.Task[Any] | None = None
        self._closed = False
        options = service.config.daemon
        self.groups = RoleGroups(options.operate_group, options.admin_group)
        self._refused_ns: int | None = None  # when a refusal was logged last

    def ceilings(self) -> list[dict[str, Any]]:
        """What operators set, for views."""
        now_ns = self._service.clock.mono_ns()
        return [
            {"outlet": name, "limit_w": c.limit_w, "reason": c.reason, "left_s": round((end_ns - now_ns) / NS_PER_S, 1)}
            for name, (c, end_ns) in self._ceilings.items()
            if end_ns > now_ns
        ]

    def ceilings_at(self, now_ns: int) -> tuple[Ceiling, ...]:
        """Those that still hold."""
        self._ceilings = {name: entry for name, entry in self._ceilings.items() if entry[1] > now_ns}
        return tuple(ceiling for ceiling, _ in self._ceilings.values())

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """One command that writes at a time, and none once the daemon stops."""
        async with self._wire:
            if self._closed:
                raise NotRunningError("the daemon stops")
            self._writer = asyncio.current_task()
            try:
                yield
            finally:
                self._writer = None

    async def close(self) -> None:
        """The daemon stops: a command that writes is cut short, none begins. What it has not brought to its end is undone."""
        self._closed = True
        if self._writer is not None:
            self._writer.cancel()
        async with self._wire:
            pass

    async def answer(self, request: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """One request to its end. Raises RpiError, with a sentence for who asked."""
        reason = str(request.get("reason", ""))
        if len(reason) > LONGEST_REASON and request["command"] != "kill":  # which engages whatever is said with it
            raise RpiError(f"reason has {len(reason)} characters; {LONGEST_REASON} at most")
        by = By(f"operator {caller.name}", reason)
        commands: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "mode": partial(self._set_mode, by=by),
            "kill": self._kill,
            "resume": self._resume,
            "acknowledge": self._acknowledge,
            "limit_set": self._limit_set,
            "limit_restore": partial(self._limit_restore, by=by),
            "hint": self._hint,
            "traps_test": self._traps_test,
            "model_promote": self._model_promote,
            "model_roll_back": self._model_roll_back,
            "retrain_decided": self._retrain_decided,
            "drill": self._drill,
            "reload": partial(self._reload, by=by),
        }
        command = commands.get(request["command"])
        if command is None:
            raise RpiError(f"unknown command {request['command']!r}; known: {', '.join(commands)}")
        self._check_role(request["command"], caller, by)
        if self._service.snapshot is None and request["command"] not in ("status", "kill", "resume"):
            raise NotRunningError("the daemon is still starting; try again in a moment")
        if ROLES[request["command"]] > Role.READ:
            log.info("asked", command=request["command"], by=caller.name, uid=caller.uid, pid=caller.pid)
            self._service.audit.note(
                "command", by, {"command": request["command"], "uid": caller.uid, "fields": request}
            )
        return await command(request)

    def _check_role(self, command: str, caller: Caller, by: By) -> None:
        needed = ROLES[command]
        if caller.role >= needed:
            return
        now_ns = self._service.clock.mono_ns()
        if self._refused_ns is None or now_ns - self._refused_ns >= REFUSALS_S * NS_PER_S:
            self._refused_ns = now_ns
            log.warning("refused", command=command, by=caller.name, uid=caller.uid, pid=caller.pid)
            self._service.audit.note("command_refused", by, {"command": command, "uid": caller.uid})
        raise RefusedError(f"user {caller.name} may not ask for {command!r}: {self.groups.needed(needed)}")

    async def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        return status_document(self._service)

    async def _set_mode(self, request: dict[str, Any], by: By) -> dict[str, Any]:
        name = request.get("mode")
        if name not in (Mode.ADVISORY.value, Mode.CLOSED_LOOP.value):
            raise RpiError(f"mode {name!r} is not advisory or closed_loop")
        async with self.writing():
            if name == Mode.ADVISORY.value and self._service.limits.mode is Mode.CLOSED_LOOP:
                await self._service.limits.restore(self._service.limits.rack.outlet_ids, by, self._service.readings)
            elif name == Mode.CLOSED_LOOP.value:
                await self._service.limits.close_loop()
        log.warning("mode", mode=self._service.limits.mode.value)
        return {"mode": self._service.limits.mode.value}

    async def _kill(self, request: dict[str, Any]) -> dict[str, Any]:
        self._service.limits.engage_kill_switch(str(request.get("reason", "control socket")))
        return {"kill_switch": True}

    async def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        only, limits = request.get("only"), self._service.limits
        if only is not None and limits.killed() and limits.killed_for() != only:
            raise RpiError(f"somebody else has engaged the kill switch meanwhile ({limits.killed_for()!r}): it stays")
        limits.release_kill_switch()
        if only is not None:  # a drill's: what latched is for people to look at
            return {"kill_switch": False, "acknowledged": []}
        return {"kill_switch": False, **await self._acknowledge(request)}

    async def _acknowledge(self, request: dict[str, Any]) -> dict[str, Any]:
        latched = self._service.snapshot.safe.latched if self._service.snapshot is not None else ()
        self.acknowledged.update(latched)
        return {"acknowledged": list(latched)}

    async def _limit_set(self, request: dict[str, Any]) -> dict[str, Any]:
        outlet = self._known_outlet(request.get("outlet"))
        limit_w, ttl_s = _number(request, "limit_w"), _number(request, "ttl_s")
        ceiling = Ceiling(outlet, limit_w, "operator", str(request.get("reason", "")))
        self._ceilings[outlet] = (ceiling, self._service.clock.mono_ns() + round(ttl_s * NS_PER_S))
        log.warning("ceiling", outlet=outlet, limit_w=limit_w, ttl_s=ttl_s, reason=ceiling.reason)
        rating_w = self._service.limits.rack.rating_w[self._service.limits.rack.outlet_ids.index(outlet)]
        notes = [f"it changes nothing: {outlet} is rated {rating_w:g} W"] if limit_w >= rating_w else []
        return {"outlet": outlet, "limit_w": limit_w, "ttl_s": ttl_s, "notes": notes}

    async def _limit_restore(self, request: dict[str, Any], by: By) -> dict[str, Any]:
        names = request.get("outlets", [])
        if not isinstance(names, list):
            raise RpiError(f"outlets is {names!r}; a list of outlet names is needed")
        named = [self._known_outlet(name) for name in names]
        async with self.writing():
            outlets = named or self._service.limits.rack.outlet_ids
            restored, lost = await self._service.limits.restore(outlets, by, self._service.readings)
        log.warning("restored", outlets=named or "all", verified=restored, reason=request.get("reason"))
        return {"restored": restored, "verified": restored, "lost": lost, "mode": self._service.limits.mode.value}

    async def _hint(self, request: dict[str, Any]) -> dict[str, Any]:
        load = request.get("load")
        names = [item.name for item in self._service.limits.rack.loads]
        if load not in names:
            raise RpiError(f"no load is called {load!r}; known: {', '.join(names)}")
        self._service.pipeline.plans.check_room(len(self.hints))
        in_s = max(_number(request, "in_s", least=0.0), SOONEST_HINT_S)
        start_ns = self._service.clock.mono_ns() + round(in_s * NS_PER_S)
        self.hints.append(Hint(load, _number(request, "delta_w", least=-1e6), start_ns, _number(request, "for_s")))
        return {"load": load}

    async def _traps_test(self, request: dict[str, Any]) -> dict[str, Any]:
        sink = request.get("sink")
        if not isinstance(sink, str | None):
            raise RpiError(f"sink is {sink!r}; the name of a trap sink is needed")
        return {"sinks": await self._service.traps.test(sink)}

    async def _model_promote(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("name")
        if not isinstance(name, str):
            raise RpiError(f"name is {name!r}; the name of a model is needed")
        found = await self._standing().promote(name, str(request.get("reason", "operator")))
        self._forget_watch()
        return {"current": found.current, "previous": found.previous}

    async def _model_roll_back(self, request: dict[str, Any]) -> dict[str, Any]:
        found = await self._standing().roll_back(str(request.get("reason", "operator")))
        self._forget_watch()
        return {"current": found.current, "previous": found.previous}

    async def _retrain_decided(self, request: dict[str, Any]) -> dict[str, Any]:
        decision, learning = request.get("decision"), self._service.learning
        if learning is None:
            raise RpiError("no network forecasts in this run, or it is recorded: it takes no model")
        if not isinstance(decision, dict):
            raise RpiError(f"decision is {decision!r}; an object is needed")
        await learning.decided(decision)
        return {"current": self._standing().name}

    async def _drill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have one device taken for away, so that people see what happens then."""
        device, seconds = request.get("device"), _number(request, "for_s")
        if seconds > LONGEST_DRILL_S:
            raise RpiError(f"for_s is {seconds:g}; a drill lasts {LONGEST_DRILL_S:g} s at most")
        if self._service.limits.mode is Mode.CLOSED_LOOP and request.get("closed_loop") is not True:
            raise RpiError("the daemon is in closed loop, and a drill changes limits: it needs to be asked for by name")
        boards = {link.board.id: link for link in self._service.boards}
        tasks = self._service.limits.tasks
        if not isinstance(device, str):
            raise RpiError(f"device is {device!r}; the name of a board or PDU is needed")
        if device in boards:
            boards[device].unplug(seconds)
        elif device in tasks:
            tasks[device].fall_silent(seconds)
        else:
            raise RpiError(f"no board or PDU is called {device!r}; known: {', '.join([*boards, *tasks])}")
        log.warning("drill", device=device, for_s=seconds)
        return {"device": device, "for_s": seconds}

    async def _reload(self, request: dict[str, Any], by: By) -> dict[str, Any]:
        dry_run = request.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise RpiError(f"dry_run is {dry_run!r}; true or false is needed")
        prepared = await self._service.reload.run(dry_run=dry_run, by=by)
        return {"dry_run": dry_run, **prepared.document()}

    def _forget_watch(self) -> None:
        if self._service.learning is not None:
            self._service.learning.forget_watch()

    def _standing(self) -> "StandingModel":
        if self._service.standing is None:
            raise RpiError(f"forecast.primary = {self._service.config.forecast.primary!r} has no network")
        return self._service.standing

    def _known_outlet(self, name: object) -> str:
        if name not in self._service.limits.rack.outlet_ids:
            raise RpiError(f"no outlet is called {name!r}; known: {', '.join(self._service.limits.rack.outlet_ids)}")
        return str(name)


def _number(request: dict[str, Any], key: str, least: float = 1e-9) -> float:
    value = request.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1e6:
        raise RpiError(f"{key} is {value!r}; a number from {least:g} to 1e6 is needed")
    return float(value)
