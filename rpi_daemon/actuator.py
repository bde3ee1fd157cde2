"""From permitted limits to writes: when each is worth one, in what order, and what became of it."""

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    REQUEST_QUANTILE,
    ApplyResult,
    BoolArray,
    Decision,
    Desired,
    FloatArray,
    Forecast,
    IntArray,
    LimitKind,
    LimitsInForce,
    LimitWrite,
    PduReading,
    Permitted,
    RackModel,
    Request,
)

DAY_NS = 86_400 * NS_PER_S
NEVER_NS = -(1 << 62)
PARTIAL_RAISE_S = 1.0  # between two raises that still do not reach what is needed, or that somebody else undoes


@dataclass(frozen=True, slots=True)
class ActuatorConfig:
    """Write economy (DESIGN section 8). The defaults suit devices that keep thresholds in flash."""

    deadband: float = 0.03  # of the outlet's rating; a smaller change is not worth a write
    lower_hold_s: float = 60.0  # a limit stays this long above what is wanted before it is lowered
    writes_per_day: int = 200  # per outlet, rolling; protective writes are exempt and counted
    raise_reserve: float = 0.25  # part of those writes that lowering may not use
    lease_s: float = 10.0  # a write without an answer is forgotten after this: the next poll tells what became of it
    retry_s: float = 0.4  # between two attempts on one outlet
    attempts: int = 3  # then the outlet counts as uncontrolled ...
    uncontrolled_s: float = 600.0  # ... for this long
    foreign_changes: int = 3  # on one PDU ...
    foreign_window_s: float = 60.0  # ... within this time: somebody else writes, and we stop
    step_w: float = 1.0  # device step where the profile does not tell

    def __post_init__(self) -> None:
        for name in ("deadband", "lower_hold_s", "retry_s", "raise_reserve"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"actuator {name} is {getattr(self, name)}; choose 0 or more")
        for name in ("writes_per_day", "lease_s", "attempts", "uncontrolled_s", "foreign_changes", "foreign_window_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"actuator {name} is {getattr(self, name)}; choose more than 0")
        if self.raise_reserve > 1.0:
            raise ConfigError(
                f"actuator raise_reserve is {self.raise_reserve}; it is a part of the writes: choose 0 to 1"
            )


class Actuator:
    """Remembers what each PDU holds, and says what to write next. One per daemon; called from the loop only.

    The loop: `observe` and `confirm` (or `lost`) as PDU tasks report, `limits` for the stages before, `step` once a
    tick. A PDU task reports in the order in which it spoke to the device.
    """

    def __init__(
        self,
        config: ActuatorConfig,
        rack: RackModel,
        writes_per_day: IntArray | None = None,
    ) -> None:
        """`writes_per_day` [n]: the budgets, where the PDUs' profiles know better."""
        n = rack.n
        self._config = config
        self._rack = rack
        self._step_w = np.full(n, config.step_w)  # until the device tells
        self._volts = np.full(n, np.nan)
        self._index = {key: i for i, key in enumerate(zip(rack.pdu_of, rack.number_of, strict=True))}
        self._outlets = {p: np.flatnonzero(np.array(rack.pdu_of) == p) for p in dict.fromkeys(rack.pdu_of)}
        self._foreign: dict[str, deque[int]] = {pdu: deque() for pdu in self._outlets}
        self._disputed_ns = np.full(n, NEVER_NS, dtype=np.int64)  # when somebody else last changed it

        self._limit_w = np.full(n, np.nan)
        self._disabled = np.zeros(n, dtype=np.bool_)  # it says that no limit stands
        self._taken_w = np.full((2, n), np.nan)  # newest verified write: what was asked, and how the device rounded it
        self._verified_ns = np.zeros(n, dtype=np.int64)
        self._kind = [LimitKind.ALARM] * n
        self._asked_w = np.full(n, np.nan)  # newest
        self._open_w = np.full(n, np.nan)  # largest that a device may still take
        self._open_low_w = np.full(n, np.nan)  # smallest
        self._asked_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._desired_ns: dict[str, int] = {}  # of each PDU's newest Desired
        self._pending = np.zeros(n, dtype=np.bool_)
        self._doubtful = np.zeros(n, dtype=np.bool_)  # only a poll tells what the last write did
        self._exempt = np.zeros(n, dtype=np.bool_)  # the newest asked is protective
        self._high_ns: IntArray | None = None  # when each limit was last not worth lowering
        self._failures = np.zeros(n, dtype=np.int64)
        self._retry_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._uncontrolled_until_ns = np.full(n, NEVER_NS, dtype=np.int64)
        self._budget = np.full(n, config.writes_per_day) if writes_per_day is None else writes_per_day
        self._counted: deque[tuple[int, int]] = deque()  # (time, outlet) of the writes that count
        self._used = np.zeros(n, dtype=np.int64)
        self._why: dict[int, Decision] = {}  # the newest of each outlet: it goes to the device with what it asks for

    def observe(self, pdu: str, reading: PduReading) -> tuple[str, ...]:
        """Take a poll of a PDU; returns the ids of our outlets whose limit somebody else changed.

        Nobody is blamed for what a PDU has after a reboot, nor after a write of ours that was not verified.
        """
        changed: list[str] = []
        for number, state in reading.limits.items():
            i = self._index.get((pdu, number))
            if i is None:
                continue
            before_w = self._limit_w[i]
            now_w = math.nan if state.limit_w is None or state.enabled is False else state.limit_w
            self._kind[i] = state.kind
            if state.step_w is not None:
                self._step_w[i] = state.step_w
            self._volts[i] = math.nan if state.volts is None else state.volts
            self._limit_w[i] = now_w
            self._disabled[i] = state.enabled is False
            if self._pending[i]:
                continue
            moved = not math.isnan(before_w) and not abs(now_w - before_w) <= 0.5 * self._step_w[i]
            ours = self._doubtful[i] or not math.isnan(self._open_w[i]) or reading.rebooted
            if moved and not ours and self._rack.opted_in[i]:
                changed.append(self._rack.outlet_ids[i])
                self._disputed_ns[i] = reading.t_mono_ns
            self._open_w[i] = self._open_low_w[i] = math.nan
            self._doubtful[i] = False
            self._verified_ns[i] = reading.t_mono_ns
        if changed:
            self._foreign[pdu].append(reading.t_mono_ns)
        return tuple(changed)

    def confirm(self, pdu: str, now_ns: int, result: ApplyResult, asked_ns: int | None = None) -> None:
        """Take the outcome of one batch, that of the Desired made at `asked_ns`. The read-back decides."""
        config = self._config
        newest = asked_ns is None or asked_ns == self._desired_ns.get(pdu)
        for outcome in result.outcomes:
            i = self._index[pdu, outcome.outlet]
            if outcome.t_sent_ns:
                self._count(i, outcome.t_sent_ns)
            # what failed and waits in a newer batch once more may be taken yet: it counts until that one ends
            if outcome.asked_w == self._asked_w[i] and (outcome.verified or newest):
                self._pending[i] = False
            if outcome.read_back_w is not None:
                self._limit_w[i] = math.nan if outcome.disabled else outcome.read_back_w
                self._disabled[i] = outcome.disabled
                if not self._pending[i]:
                    self._open_w[i] = self._open_low_w[i] = math.nan
            # of what was not asked for here, a found limit put back, only a poll tells what it left either
            self._doubtful[i] = not outcome.verified or outcome.asked_w != self._asked_w[i]
            if outcome.verified:
                self._taken_w[:, i] = outcome.asked_w, self._limit_w[i]
                self._verified_ns[i] = now_ns if outcome.t_verified_ns is None else outcome.t_verified_ns
                self._failures[i] = 0
                continue
            self._failures[i] += 1
            self._retry_ns[i] = now_ns + round(config.retry_s * NS_PER_S)
            if self._failures[i] >= config.attempts:
                self._failures[i] = 0
                self._uncontrolled_until_ns[i] = now_ns + round(config.uncontrolled_s * NS_PER_S)

    def lost(self, pdu: str, now_ns: int) -> None:
        """A batch ended without an answer: what was asked counts until the next poll tells."""
        outlets = self._outlets[pdu]
        late = outlets[self._pending[outlets]]
        self._pending[late] = False
        self._retry_ns[late] = now_ns + round(self._config.retry_s * NS_PER_S)

    def configure(self, config: ActuatorConfig, rack: RackModel, writes_per_day: IntArray) -> None:
        """Other settings from the next `step` on, of the same outlets; what each PDU holds, and the writes of the day, stay known."""
        self._config = config
        self._rack = rack
        self._budget = writes_per_day

    def opt_in(self, opted_in: BoolArray) -> None:
        """Which outlets are ours to write from now on, [n]; a change on another one is its owner's business."""
        self._rack = replace(self._rack, opted_in=opted_in)

    def forgive(self, pdu: str) -> None:
        """The PDU was repaired or swapped, or the operator acknowledged: forget its failures and foreign changes."""
        outlets = self._outlets[pdu]
        self._failures[outlets] = 0
        self._uncontrolled_until_ns[outlets] = NEVER_NS
        self._foreign[pdu].clear()

    def limits(self, now_ns: int) -> LimitsInForce:
        """What we know of the limits now."""
        return LimitsInForce(
            limit_w=self._limit_w.copy(),
            verified_ns=self._verified_ns.copy(),
            kind=tuple(self._kind),
            open_w=self._open_w.copy(),
            open_low_w=self._open_low_w.copy(),
            pending=self._pending.copy(),
            uncontrolled=self._uncontrolled_until_ns > now_ns,
            step_w=self._step_w.copy(),
            volts=self._volts.copy(),
            disabled=self._disabled.copy(),
            last_w=self._taken_w[1].copy(),
        )

    def foreign_writers(self, now_ns: int) -> frozenset[str]:
        """PDUs on which somebody else changed our limits too often to go on."""
        window_ns = round(self._config.foreign_window_s * NS_PER_S)
        for changes in self._foreign.values():
            while changes and now_ns - changes[0] > window_ns:
                changes.popleft()
        return frozenset(pdu for pdu, changes in self._foreign.items() if len(changes) >= self._config.foreign_changes)

    def writes_used(self, now_ns: int) -> IntArray:
        """Writes of the last 24 h that count against the budget, [n]."""
        while self._counted and now_ns - self._counted[0][0] >= DAY_NS:
            self._used[self._counted.popleft()[1]] -= 1
        return self._used.copy()

    def step(
        self,
        now_ns: int,
        permitted: Permitted,
        request: Request,
        forecast: Forecast | None,
        grant_w: FloatArray | None = None,
    ) -> tuple[Desired, ...]:
        """The PDUs whose desired limits changed. A Desired replaces the one before whole; an empty one withdraws it.

        `request`, `forecast` and `grant_w` [n] are kept beside the decision as its reasons.
        """
        self._pending &= now_ns - self._asked_ns <= round(self._config.lease_s * NS_PER_S)
        why = self._reasons(now_ns, permitted)
        keep = self._still_good(permitted)
        write = why.any & ~keep
        touched = write | (self._pending & ~keep)
        desired = []
        for pdu, outlets in self._outlets.items():
            if touched[outlets].any():
                decisions = tuple(
                    self._decision(int(i), now_ns, permitted, request, forecast, grant_w, why)
                    for i in outlets[write[outlets]]
                )
                self._why |= {decision.outlet: decision for decision in decisions}
                self._ask(outlets[write[outlets]], permitted)
                desired.append(self._desired(pdu, now_ns, outlets[(keep | write)[outlets]], decisions))
        return tuple(desired)

    def _reasons(self, now_ns: int, permitted: Permitted) -> "_Reasons":
        """Why each outlet is worth a write now; `retry_s` after a failure, and within the budget unless protective.

        | the new limit is               | written when it differs by more than the step and                          |
        |--------------------------------|----------------------------------------------------------------------------|
        | the first known                | always, budget or not: an outlet would be without any limit                |
        | higher                         | it differs by the dead band, or the old one is below `need_w`; where the   |
        |                                | new one is too, and after somebody else's change: once in                  |
        |                                | `PARTIAL_RAISE_S`                                                          |
        | lower, `exceeded`              | always                                                                     |
        | lower, `urgent`                | it differs by the dead band                                                |
        | lower                          | it has differed by the dead band for `lower_hold_s`; keeps `raise_reserve` |
        """
        config = self._config
        old_w, new_w = self._as_asked_w(), permitted.limit_w
        unknown = np.isfinite(new_w) & ~np.isfinite(old_w)
        with np.errstate(invalid="ignore"):
            differs = np.abs(new_w - old_w) > self._step_w
            raises = (new_w > old_w) & differs
            lowers = (new_w < old_w) & differs
            worth = np.abs(new_w - old_w) >= self._deadband_w()
            short = old_w < permitted.need_w - self._step_w
            enough = new_w >= permitted.need_w - self._step_w
        if self._high_ns is None:
            self._high_ns = np.full(len(old_w), now_ns, dtype=np.int64)
        self._high_ns[~(lowers & worth)] = now_ns
        held = now_ns - self._high_ns >= round(config.lower_hold_s * NS_PER_S)
        used = self.writes_used(now_ns)
        budget = permitted.protective | (used < self._budget)
        spare = permitted.protective | (used < self._budget * (1.0 - config.raise_reserve))
        rested = now_ns - self._asked_ns >= round(PARTIAL_RAISE_S * NS_PER_S)
        disputed = now_ns - self._disputed_ns <= round(config.foreign_window_s * NS_PER_S)
        may = self._retry_ns <= now_ns
        hurry = permitted.exceeded | (permitted.urgent & worth)
        return _Reasons(
            first=may & unknown,
            raises=may & raises & (worth | (short & (enough | rested))) & (rested | ~disputed) & budget,
            lowers=may & lowers & ((hurry & budget) | (worth & held & spare)),
        )

    def _deadband_w(self) -> FloatArray:
        return np.maximum(self._config.deadband * self._rack.rating_w, self._step_w)  # type: ignore[no-any-return]

    def _as_asked_w(self) -> FloatArray:
        """The limits in force, as they were asked for where the device only rounded them: its step is no reason to write."""
        asked_w, rounded_w = self._taken_w
        return np.where(self._limit_w == rounded_w, asked_w, self._limit_w)

    def _still_good(self, permitted: Permitted) -> BoolArray:
        """Pending limits that need not be replaced: near what is wanted, enough, and no raise that was withdrawn."""
        cuts = np.array([kind in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT) for kind in self._kind])
        exact = permitted.protective | permitted.exceeded | cuts
        near_w = np.where(exact, self._step_w, self._deadband_w())
        with np.errstate(invalid="ignore"):
            near = np.abs(self._asked_w - permitted.limit_w) <= near_w
            enough = self._asked_w >= permitted.need_w - self._step_w
            withdrawn = (self._asked_w > self._limit_w) & (permitted.limit_w <= self._limit_w)
        good: BoolArray = self._pending & near & enough & ~withdrawn
        return good

    def _decision(
        self,
        i: int,
        now_ns: int,
        permitted: Permitted,
        request: Request,
        forecast: Forecast | None,
        grant_w: FloatArray | None,
        why: "_Reasons",
    ) -> Decision:
        return Decision(
            t_mono_ns=now_ns,
            outlet=i,
            from_w=None if math.isnan(self._limit_w[i]) else float(self._limit_w[i]),
            to_w=float(permitted.limit_w[i]),
            reason=why.name(i),
            rule=permitted.rule[i],
            request_w=float(request.request_w[i]),
            margin_w=float(request.margin_w[i]),
            forecast_w=math.nan if forecast is None else float(forecast.running_max_w[i, -1, REQUEST_QUANTILE]),
            protective=bool(permitted.protective[i]),
            grant_w=math.nan if grant_w is None else float(grant_w[i]),
        )

    def _ask(self, outlets: IntArray, permitted: Permitted) -> None:
        self._asked_w[outlets] = permitted.limit_w[outlets]
        self._asked_ns[outlets] = permitted.t_mono_ns
        self._open_w[outlets] = np.fmax(self._open_w[outlets], permitted.limit_w[outlets])
        self._open_low_w[outlets] = np.fmin(self._open_low_w[outlets], permitted.limit_w[outlets])
        self._exempt[outlets] = permitted.protective[outlets]

    def _desired(self, pdu: str, now_ns: int, outlets: IntArray, decisions: tuple[Decision, ...]) -> Desired:
        """Lowerings first: the device may take the batch one by one."""
        self._desired_ns[pdu] = now_ns
        self._pending[self._outlets[pdu]] = False
        self._pending[outlets] = True
        rises = self._asked_w[outlets] > self._limit_w[outlets]
        ordered = outlets[np.argsort(rises, kind="stable")]
        return Desired(
            pdu=pdu,
            t_mono_ns=now_ns,
            limits=tuple(
                LimitWrite(self._rack.number_of[i], float(self._asked_w[i]), why=self._why.get(int(i))) for i in ordered
            ),
            decisions=decisions,
        )

    def _count(self, i: int, t_ns: int) -> None:
        if not self._exempt[i]:
            self._counted.append((t_ns, i))
            self._used[i] += 1


@dataclass(frozen=True, slots=True)
class _Reasons:
    """Why outlets are written, [n] each; at most one is set per outlet."""

    first: BoolArray
    raises: BoolArray
    lowers: BoolArray

    @property
    def any(self) -> BoolArray:
        return self.first | self.raises | self.lowers

    def name(self, i: int) -> str:
        named = (("first", self.first), ("raise", self.raises), ("lower", self.lowers))
        return next(name for name, where in named if where[i])
