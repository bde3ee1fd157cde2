"""What is worth a capture: a draw that passes its limit, an overload, a step, a fault."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from rpi_daemon.guard import CAUSES
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import BoolArray, RackModel, SafeState

OVERLOAD: Final = "overload"
FAULTS: Final = frozenset(
    name for name, (state, _) in CAUSES.items() if state >= SafeState.HOLD and name not in (OVERLOAD, "starting")
)


@dataclass(frozen=True, slots=True)
class Trigger:
    """Something that began in one tick."""

    kind: str  # escape, overload, step, fault
    subject: str  # outlet, constraint or cause
    t_mono_ns: int  # of the newest scan behind it
    t_utc_ns: int
    boards: frozenset[str]  # that saw it
    values: Mapping[str, float] = field(default_factory=dict)


class Triggers:
    """Finds what begins; `find` once a tick. What stood at the first tick is no news."""

    def __init__(self, rack: RackModel, board_of: Mapping[str, str], step_share: float) -> None:
        self._rack = rack
        self._board_of = board_of  # by outlet; one that no board measures is in no waveform
        self._boards = frozenset(board_of.values())
        self._step_w = step_share * rack.rating_w
        self._over: BoolArray = np.zeros(rack.n, dtype=np.bool_)
        self._stepped: BoolArray = np.zeros(rack.n, dtype=np.bool_)
        self._causes: frozenset[str] | None = None

    def configure(self, rack: RackModel) -> None:
        """Other constraints over the same outlets."""
        self._rack = rack

    def find(self, snapshot: Snapshot) -> list[Trigger]:
        """What began in this tick and was seen by a board."""
        first = self._causes is None
        found = [*self._escapes(snapshot), *self._steps(snapshot), *self._faults(snapshot)]
        return [] if first else [trigger for trigger in found if trigger.boards]

    def _escapes(self, snapshot: Snapshot) -> Iterator[Trigger]:
        power_w, limit_w, fresh = snapshot.readings.power_w, snapshot.in_force.limit_w, snapshot.readings.fresh
        over = fresh & (power_w > limit_w)  # a limit that is not known is not passed
        began, self._over = over & ~self._over, np.where(fresh, over, self._over)
        for i in np.flatnonzero(began):
            yield self._of_outlet(snapshot, int(i), "escape", power_w=float(power_w[i]), limit_w=float(limit_w[i]))

    def _steps(self, snapshot: Snapshot) -> Iterator[Trigger]:
        step_w = snapshot.readings.step_w
        stepped = snapshot.readings.fresh & (step_w > self._step_w)
        began, self._stepped = stepped & ~self._stepped, stepped
        for i in np.flatnonzero(began):
            yield self._of_outlet(snapshot, int(i), "step", step_w=float(step_w[i]))

    def _faults(self, snapshot: Snapshot) -> Iterator[Trigger]:
        """New overloads by constraint; other causes once for each kind: all outlets of a board are one fault."""
        before, now = self._causes or frozenset(), frozenset(snapshot.safe.causes)
        self._causes = now
        stood = {cause.partition(":")[0] for cause in before}
        fresh: dict[str, set[str]] = {}
        for cause in sorted(now - before):
            name, _, subject = cause.partition(":")
            if name == OVERLOAD:
                yield self._trigger(snapshot, OVERLOAD, subject, self._boards_of({subject}))
            elif name in FAULTS and name not in stood:
                fresh.setdefault(name, set()).add(subject)
        for name, subjects in fresh.items():
            yield self._trigger(snapshot, "fault", name, self._boards_of(subjects))

    def _of_outlet(self, snapshot: Snapshot, i: int, kind: str, **values: float) -> Trigger:
        outlet = self._rack.outlet_ids[i]
        boards = frozenset({self._board_of[outlet]} if outlet in self._board_of else ())
        return self._trigger(snapshot, kind, outlet, boards, values)

    def _trigger(
        self,
        snapshot: Snapshot,
        kind: str,
        subject: str,
        boards: frozenset[str],
        values: Mapping[str, Any] | None = None,
    ) -> Trigger:
        t_ns = snapshot.readings.t_mono_ns
        return Trigger(kind, subject, t_ns, snapshot.t_utc_ns - (snapshot.t_mono_ns - t_ns), boards, values or {})

    def _boards_of(self, subjects: Collection[str]) -> frozenset[str]:
        """Boards of the outlets that outlets, constraints or PDUs stand for; all where nothing in particular is meant."""
        outlets = {
            outlet
            for i, outlet in enumerate(self._rack.outlet_ids)
            if outlet in subjects
            or self._rack.pdu_of[i] in subjects
            or any(item.name in subjects and item.share[i] > 0.0 for item in self._rack.constraints)
        }
        return (
            frozenset(self._board_of[outlet] for outlet in outlets & self._board_of.keys()) if outlets else self._boards
        )
