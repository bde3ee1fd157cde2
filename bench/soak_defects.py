"""Defects put into the daemon on purpose: each invariant of the soak must see its own, or it proves nothing."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from soak_rack import VirtualSampler

from rpi_daemon import guard, pipeline
from rpi_daemon.actuator import Actuator
from rpi_daemon.audit import DAEMON, Asked, Audit
from rpi_daemon.drivers.pdu.snmp import SnmpPdu
from rpi_daemon.guard import GuardConfig
from rpi_daemon.pdu_task import PduTask
from rpi_daemon.records import LimitsInForce, Notice
from rpi_daemon.safe_limits import SafeLimits
from rpi_daemon.service import Service
from rpi_daemon.trap_task import SinkTask


@dataclass(frozen=True, slots=True)
class Defect:
    """What is broken, which invariant must see it, and the faults under which it shows."""

    letter: str
    words: str
    broken: Callable[[], contextlib.AbstractContextManager[Any]]
    faults: tuple[str, ...]
    writes_per_day: int = 20_000


def _no_budget() -> Any:
    def room(env: Any, cap: Any, counted_w: Any, raise_w: Any) -> Any:
        none = np.zeros(len(counted_w), np.bool_)
        return np.ones(len(counted_w)), none, none

    return patch.multiple(guard, _room=room)


def _no_read_back() -> Any:
    async def nothing(self: SnmpPdu, groups: Any, facts: Any, answered: bool) -> Any:
        return {}, self._clock.mono_ns()

    return patch.object(SnmpPdu, "_read_back", nothing)


def _no_audit() -> Any:
    async def asked(self: Audit, device: str, intents: Any, by: Any = DAEMON) -> Asked:
        return Asked(0, True, 0, by.who)

    return patch.object(Audit, "asked", asked)


@contextlib.contextmanager
def _left_open() -> Iterator[None]:
    left: list[int] = []
    prepare = Service._prepare

    def leak(self: Service) -> None:
        left.append(os.open("/dev/null", os.O_RDONLY))
        prepare(self)

    with patch.object(Service, "_prepare", leak):
        yield
    for descriptor in left:
        os.close(descriptor)


def _miscounted() -> Any:
    counters = VirtualSampler.counters

    def one_too_few(self: VirtualSampler) -> dict[str, int]:
        found = counters(self)
        return {**found, "lost": max(0, found["lost"] - 1)}

    return patch.object(VirtualSampler, "counters", one_too_few)


def _never_up() -> Any:
    ladder = guard.ladder

    def stays(previous: Any, now_ns: int, flags: Any, acknowledged: Any, config: GuardConfig) -> Any:
        return ladder(previous, now_ns, flags, acknowledged, replace(config, recover_s=3600.0))

    return patch.object(pipeline, "ladder", stays)


def _task_ends() -> Any:
    poll = PduTask._poll

    async def once_too_often(self: PduTask) -> None:
        if self.polls > 20:
            raise KeyError("a defect")
        await poll(self)

    return patch.object(PduTask, "_poll", once_too_often)


def _notices_lost() -> Any:
    deliver = SinkTask._deliver

    async def every_other(self: SinkTask, notice: Notice, sequence: int) -> bool:
        return sequence % 2 == 0 or await deliver(self, notice, sequence)

    return patch.object(SinkTask, "_deliver", every_other)


def _not_held() -> Any:
    return patch.object(guard, "held", lambda rack, status: np.zeros(rack.n, np.bool_))


DEFECTS = {
    "budget": Defect("a", "raises whatever room a breaker has", _no_budget, ("load_step",)),
    "kill": Defect(
        "b", "does not ask for the kill switch", lambda: patch.object(SafeLimits, "killed", lambda _: False),
        ("kill_switch", "load_step"),
    ),
    "hold": Defect("b", "raises limits that are held", _not_held, ("board_unplugged", "sensor_silent", "load_step")),
    "read_back": Defect("c", "believes what a device says", _no_read_back, ("load_step",)),
    "audit": Defect("c", "writes without a record", _no_audit, ("load_step",)),
    "draw": Defect(
        "d", "does not look at the draw", lambda: patch.object(LimitsInForce, "seen_w", lambda *_: 0.0), ("load_step",)
    ),
    "descriptor": Defect("e", "leaves a file open", _left_open, ("restart",)),
    "losses": Defect("f", "counts one lost scan too few", _miscounted, ("board_frames_lost",)),
    "ladder": Defect("g", "never leaves a safe state", _never_up, ("load_step",)),
    "task": Defect("h", "a task ends by an error", _task_ends, ("load_step",)),
    "economy": Defect(
        "i", "counts no writes", lambda: patch.object(Actuator, "writes_used", lambda self, _: np.zeros_like(self._used)),
        ("load_step",), 40,
    ),
    "notices": Defect("j", "leaves out every other notice", _notices_lost, ("load_step", "trap_sink")),
}  # fmt: skip
