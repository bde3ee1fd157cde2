"""Which alarms stand: from each tick's snapshot and what the service knows; what begins and ends becomes a notice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.guard import Loading, loadings
from rpi_daemon.reasons import REASONS, brief, by_name
from rpi_daemon.records import (
    HORIZONS_S,
    QUANTILES,
    FloatArray,
    Forecast,
    Mode,
    Notice,
    RackModel,
    Readings,
    Severity,
)

if TYPE_CHECKING:
    from rpi_daemon.pipeline import Snapshot

PREDICTED_QUANTILE = QUANTILES.index(0.9)
ASSUMED_POWER_FACTOR = 0.9  # of a rise, where none is measured
LOWEST_POWER_FACTOR = 0.5  # a lower one is an idle supply's, not that of the load that comes
LOST_VOLTAGE = 0.5  # part of nominal: below it a voltage is a blown tap, and no divisor
PREDICTED_OVER = 0.97  # of the rating: a predicted overload ends below this part
ESCAPED_OVER = 0.98  # of the limit: an escape ends below this part
SHORTFALL_W = 1.0  # smaller ones are rounding
RESTORED_S = 15.0  # an alarm of the last run is not cleared before the first readings had time to come


@dataclass(frozen=True, slots=True)
class Kind:
    """How an alarm behaves: it begins after `raise_s` of its condition, and ends after `clear_s` without it."""

    severity: Severity
    raise_s: float
    clear_s: float


KINDS: Mapping[str, Kind] = {
    "overload_predicted": Kind(Severity.WARNING, 0.25, 10.0),  # three ticks
    "overload": Kind(Severity.CRITICAL, 0.0, 5.0),
    "over_derating": Kind(Severity.WARNING, 5.0, 10.0),
    "limit_escaped": Kind(Severity.WARNING, 0.0, 10.0),
    "budget_shortfall": Kind(Severity.WARNING, 5.0, 10.0),
    "pdu_unreachable": Kind(Severity.CRITICAL, 0.0, 1.0),
    "foreign_writer": Kind(Severity.WARNING, 0.0, 0.0),
    "sensor_fault": Kind(Severity.WARNING, 1.0, 5.0),
    "calibration_expired": Kind(Severity.INFO, 0.0, 0.0),
    "outlet_uncontrolled": Kind(Severity.WARNING, 0.0, 1.0),
    "model_fallback": Kind(Severity.INFO, 5.0, 10.0),
    "model_refused": Kind(Severity.WARNING, 0.0, 0.0),
    "kill_switch": Kind(Severity.WARNING, 0.0, 0.0),
    "cap_not_held": Kind(Severity.WARNING, 0.0, 5.0),
    "bmc_unreachable": Kind(Severity.WARNING, 1.0, 1.0),
    "daemon_fault": Kind(Severity.WARNING, 0.0, 5.0),
}
# cause of the ladder -> kind of alarm
CAUSES: Mapping[str, str] = {
    "pdu_unreachable": "pdu_unreachable",
    "foreign_writer": "foreign_writer",
    "sensor_stale": "sensor_fault",
    "sensor_stuck": "sensor_fault",
    "voltage_lost": "sensor_fault",
    "transformer_reversed": "sensor_fault",
    "breaker_blind": "sensor_fault",
    "no_readings": "sensor_fault",
    "calibration_expired": "calibration_expired",
    "cap_unreachable": "bmc_unreachable",
    "cap_uncontrolled": "cap_not_held",
    "cap_not_held": "cap_not_held",
    "model_fallback": "model_fallback",
    "model_poisoned": "model_refused",
    "tick_overrun": "daemon_fault",
    "audit_not_durable": "daemon_fault",
    "lease_expired": "daemon_fault",
}
# causes that the readings tell better, that other alarms tell already, or that only the change of state tells
CAUSES_TOLD_OTHERWISE = frozenset({"overload", "over_derating", "all_pdus_unreachable", "starting", "stopping"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What the service knows beyond a snapshot."""

    mode: Mode = Mode.ADVISORY  # as operators set it; the kill switch does not change it
    killed: bool = False
    model: str | None = None  # the one that forecasts: name and hash
    model_refused: str | None = None  # the reason
    history_failing: str | None = None  # the disk's last word
    set_aside: int = 0  # damaged files that this run renamed
    audit_head: str | None = None  # number and hash of the newest audit record on disk
    boards_absent: frozenset[str] = frozenset()
    board_of: Mapping[str, str] = field(default_factory=dict)  # outlet id -> the board that measures it
    config_refused: tuple[str, ...] = ()  # why the newest reload was; empty: none was, or a later one was taken over


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong now."""

    alarm: str  # id of its alarm
    kind: str
    subject: str
    text: str
    value: float | None = None
    threshold: float | None = None
    unit: str | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """An alarm that was raised and is not cleared."""

    kind: str
    subject: str
    text: str
    since_utc_ns: int


class AlarmTable:
    """Turns conditions into one raise and one clear per episode. Time is passed in; one caller."""

    def __init__(self, standing: Mapping[str, Standing], now_ns: int) -> None:
        """`standing`: alarms of the last run; those that are gone are cleared once readings had time to come."""
        self.standing: dict[str, Standing] = dict(standing)
        self._last_ns = dict.fromkeys(
            standing, now_ns + round(RESTORED_S * NS_PER_S)
        )  # when the condition was last there
        self._first_ns: dict[str, int] = {}  # of conditions that are not alarms yet

    def step(self, now_ns: int, utc_ns: int, conditions: Iterable[Condition]) -> tuple[Notice, ...]:
        """Raises first, then clears, each in the order of the conditions."""
        present = {condition.alarm: condition for condition in conditions}
        raised = [self._raise(c, utc_ns) for c in present.values() if self._due(c, now_ns)]
        self._first_ns = {alarm: t for alarm, t in self._first_ns.items() if alarm in present}
        over = [
            alarm
            for alarm, s in self.standing.items()
            if alarm not in present and now_ns - self._last_ns[alarm] >= KINDS[s.kind].clear_s * NS_PER_S
        ]
        return (*raised, *(self._clear(alarm, utc_ns) for alarm in over))

    def _due(self, condition: Condition, now_ns: int) -> bool:
        """Whether the condition becomes an alarm now."""
        if condition.alarm in self.standing:
            self._last_ns[condition.alarm] = max(now_ns, self._last_ns[condition.alarm])
            return False
        first_ns = self._first_ns.setdefault(condition.alarm, now_ns)
        if now_ns - first_ns < KINDS[condition.kind].raise_s * NS_PER_S:
            return False
        self._last_ns[condition.alarm] = now_ns
        return True

    def _raise(self, c: Condition, utc_ns: int) -> Notice:
        self._first_ns.pop(c.alarm, None)
        self.standing[c.alarm] = Standing(c.kind, c.subject, c.text, utc_ns)
        return Notice(
            c.kind, "raised", KINDS[c.kind].severity, c.alarm, c.subject, c.text, utc_ns,
            value=c.value, threshold=c.threshold, unit=c.unit, seconds=c.seconds,
        )  # fmt: skip

    def _clear(self, alarm: str, utc_ns: int) -> Notice:
        gone = self.standing.pop(alarm)
        del self._last_ns[alarm]
        text = f"over: {gone.text}"
        return Notice(gone.kind, "cleared", KINDS[gone.kind].severity, alarm, gone.subject, text, utc_ns)

    def severities(self) -> tuple[Severity, ...]:
        """Of the alarms that stand."""
        return tuple(KINDS[s.kind].severity for s in self.standing.values())


def changes(before: "Snapshot | None", snapshot: "Snapshot", mode_before: Mode, mode: Mode) -> Iterator[Notice]:
    """Events between two ticks: state, mode, limits and caps changed by somebody else."""
    utc_ns, state = snapshot.t_utc_ns, snapshot.safe.state
    if before is not None and before.safe.state is not state:
        severity = Severity.WARNING if state > before.safe.state else Severity.INFO
        why = f" ({', '.join(brief(snapshot.safe.causes))})" if snapshot.safe.causes else ""
        text = f"state {state.name}, was {before.safe.state.name}{why}"
        yield Notice("state_change", "event", severity, "", "", text, utc_ns)
    if mode is not mode_before:
        text = f"mode {mode.value}, was {mode_before.value}"
        yield Notice("mode_change", "event", Severity.INFO, "", "", text, utc_ns)
    for words, names in (("limit", snapshot.foreign), ("power cap", snapshot.foreign_caps)):
        for name in names:
            text = f"somebody else changed the {words} of {name}"
            yield Notice("foreign_change", "event", Severity.WARNING, "", name, text, utc_ns)


def standing_to_json(standing: Mapping[str, Standing]) -> dict[str, Any]:
    return {alarm: asdict(s) for alarm, s in standing.items()}


def standing_from_json(data: Mapping[str, Any]) -> dict[str, Standing]:
    """Alarms of kinds that this version does not know are dropped."""
    return {alarm: Standing(**s) for alarm, s in data.items() if s["kind"] in KINDS}


def conditions(rack: RackModel, snapshot: "Snapshot", facts: Facts, standing: Iterable[str]) -> Iterator[Condition]:
    """Everything that is wrong at this tick. `standing`: ids of the alarms that stand, for the hysteresis of levels."""
    stands = frozenset(standing)
    yield from _overloads(rack, snapshot)
    yield from _predicted(rack, snapshot, stands)
    if facts.mode is Mode.CLOSED_LOOP:
        yield from _escapes(rack, snapshot, stands)
    yield from _shortfalls(rack, snapshot)
    yield from _uncontrolled(rack, snapshot)
    yield from _causes(snapshot.safe.causes, facts)
    for board in sorted(facts.boards_absent):
        yield Condition(f"board_absent:{board}", "sensor_fault", board, f"sensor board {board} is not there")
    if facts.killed:
        yield Condition("kill_switch", "kill_switch", "", "the kill switch is engaged: nothing is written")
    if facts.history_failing is not None:
        text = f"the history cannot be written to disk: {facts.history_failing}"
        yield Condition("history_failing", "daemon_fault", "", text)
    if facts.set_aside:
        text = f"{facts.set_aside} damaged files of history, events or audit were set aside: *.corrupt-*"
        yield Condition("files_set_aside", "daemon_fault", "", text)
    if facts.model_refused is not None:
        yield Condition("model_refused", "model_refused", "", facts.model_refused)
    yield from config_conditions(facts)


def config_conditions(facts: Facts) -> Iterator[Condition]:
    """A configuration that a running daemon was to take over, and did not."""
    if facts.config_refused:
        first, more = facts.config_refused[0], len(facts.config_refused) - 1
        text = f"the configuration was refused, the one before it is in force: {first}"
        yield Condition("config_refused", "daemon_fault", "", text + (f" (and {more} more)" if more else ""))


def _overloads(rack: RackModel, snapshot: "Snapshot") -> Iterator[Condition]:
    worst: dict[tuple[str, str], tuple[Loading, float]] = {}
    for item in loadings(rack, snapshot.readings):
        for kind, there, level in (
            ("overload", item.overload, item.rating),
            ("over_derating", item.over_derating, item.rating * item.derate),
        ):
            key = kind, item.constraint
            if there and (key not in worst or item.draw / level > worst[key][0].draw / worst[key][1]):
                worst[key] = item, level
    for (kind, name), (item, level) in worst.items():
        words = "its full rating" if kind == "overload" else "what it may carry continuously"
        text = f"{name} carries {item.draw:.4g} {item.unit}; {words} is {level:.4g} {item.unit}"
        yield Condition(f"{kind}:{name}", kind, name, text, item.draw, level, item.unit)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A constraint whose forecast passes a rating, and when it first does."""

    constraint: str
    unit: str  # W, VA or A
    seconds: int
    draw: float  # forecast for then
    rating: float


def predict_overloads(
    rack: RackModel, readings: Readings, forecast: Forecast, lower: frozenset[str] = frozenset()
) -> tuple[Prediction, ...]:
    """Constraints whose full rating the forecast passes within the horizon, each with its earliest passing.

    The draw at t+h is the sum over outlets of the 0.9 quantile of the running maximum up to then. Outlets do not all peak
    together, nor all at their 0.9 quantile, so the sum is conservative: an early warning, with false ones. VA and amps are
    what is drawn now plus the forecast rise at the outlet's own power factor. Outlets without a reading are left out, as in
    `guard.loadings`. Constraints in `lower` are measured against `PREDICTED_OVER` of their rating: the level at which a
    prediction that stands ends.
    """
    highest_w = forecast.running_max_w[:, :, PREDICTED_QUANTILE]
    rise_w = np.where(np.isfinite(highest_w), highest_w - readings.power_w[:, None], 0.0)
    power_factor = np.where(np.isfinite(readings.power_factor), readings.power_factor, ASSUMED_POWER_FACTOR)
    power_factor = np.clip(power_factor, LOWEST_POWER_FACTOR, 1.0)[:, None]
    known_v = readings.voltage_v >= LOST_VOLTAGE * rack.nominal_v  # false where it is not known
    voltage_v = np.where(known_v, readings.voltage_v, rack.nominal_v)[:, None]
    rise_va = rise_w / power_factor
    draws: dict[str, FloatArray] = {
        "W": np.nan_to_num(readings.power_w[:, None] + rise_w),
        "VA": np.nan_to_num(readings.apparent_va[:, None] + rise_va),
        "A": np.nan_to_num(readings.rms_a[:, None] + rise_va / voltage_v),
    }
    found = []
    for c in rack.constraints:
        part = PREDICTED_OVER if c.name in lower else 1.0
        passing = [
            Prediction(c.name, unit, round(HORIZONS_S[first]), float(draw[first]), rating)
            for unit, rating in (("W", c.rating_w), ("VA", c.rating_va), ("A", c.rating_a))
            if rating is not None
            for draw in (c.share @ draws[unit],)
            for first in np.flatnonzero(draw > rating * part)[:1]
        ]
        if passing:
            found.append(min(passing, key=lambda p: (p.seconds, -p.draw / p.rating)))
    return tuple(found)


def _predicted(rack: RackModel, snapshot: "Snapshot", stands: frozenset[str]) -> Iterator[Condition]:
    lower = frozenset(c.name for c in rack.constraints if f"overload_predicted:{c.name}" in stands)
    for p in predict_overloads(rack, snapshot.readings, snapshot.forecast, lower):
        yield Condition(
            f"overload_predicted:{p.constraint}",
            "overload_predicted",
            p.constraint,
            f"{p.constraint} will carry {p.draw:.4g} {p.unit} in {p.seconds} s; its full rating is {p.rating:.4g} {p.unit}",
            p.draw,
            p.rating,
            p.unit,
            p.seconds,
        )


def _escapes(rack: RackModel, snapshot: "Snapshot", stands: frozenset[str]) -> Iterator[Condition]:
    """Outlets above the limit that we wrote; on outlets that did not opt in it is not ours."""
    in_force, power_w = snapshot.in_force, snapshot.readings.power_w
    watched = rack.opted_in & (in_force.verified_ns > 0) & ~in_force.uncontrolled
    for i in np.flatnonzero(watched & (power_w > in_force.limit_w * ESCAPED_OVER)):
        name, draw_w, limit_w = rack.outlet_ids[i], float(power_w[i]), float(in_force.limit_w[i])
        alarm = f"limit_escaped:{name}"
        if draw_w > limit_w or alarm in stands:
            text = f"{name} draws {draw_w:.4g} W; its limit ({in_force.kind[i].value}) is {limit_w:.4g} W"
            yield Condition(alarm, "limit_escaped", name, text, draw_w, limit_w, "W")


def _shortfalls(rack: RackModel, snapshot: "Snapshot") -> Iterator[Condition]:
    """Constraints that bind, for all their outlets; a request above the load's own rating or demand is no matter of the budget."""
    allocation = snapshot.allocation
    short: dict[str, list[int]] = {}  # outlets by the constraint, in whichever unit, that bound them
    for i in np.flatnonzero(allocation.shortfall_w > SHORTFALL_W):
        if allocation.rule[i] in allocation.envelope.rows:
            short.setdefault(allocation.rule[i].partition(" (")[0], []).append(int(i))
    for name, outlets in short.items():
        short_w = float(allocation.shortfall_w[outlets].sum())
        request_w = float(snapshot.request.request_w[outlets].sum())
        who = rack.outlet_ids[outlets[0]] if len(outlets) == 1 else f"{len(outlets)} outlets"
        text = f"{who} may need {request_w:.4g} W, {short_w:.4g} W more than {name} allows"
        yield Condition(f"budget_shortfall:{name}", "budget_shortfall", name, text, short_w, request_w, "W")


def _uncontrolled(rack: RackModel, snapshot: "Snapshot") -> Iterator[Condition]:
    for i in np.flatnonzero(rack.opted_in & snapshot.in_force.uncontrolled):
        name = rack.outlet_ids[i]
        text = f"{rack.pdu_of[i]} does not take the limits of {name}"
        yield Condition(f"outlet_uncontrolled:{name}", "outlet_uncontrolled", name, text)


def _causes(causes: Sequence[str], facts: Facts) -> Iterator[Condition]:
    """Causes of the ladder. What all outlets of a board share is told of the board; an absent board tells of itself."""
    found = by_name(causes)
    if facts.model_refused is not None or "model_poisoned" in found:
        found.pop("model_fallback", None)  # that says why, too
    for name, about in found.items():
        if name not in CAUSES:
            continue
        kind = CAUSES[name]
        for subject in _by_board(about, facts) if kind == "sensor_fault" and about else about or [""]:
            alarm = f"{name}:{subject}" if subject else name
            yield Condition(alarm, kind, subject, REASONS[name].words.format(subject))


def _by_board(found: Sequence[str], facts: Facts) -> Iterator[str]:
    measured: dict[str, set[str]] = {}
    for outlet, board in facts.board_of.items():
        measured.setdefault(board, set()).add(outlet)
    whole = {board for board, outlets in measured.items() if len(outlets) > 1 and outlets <= set(found)}
    yield from sorted(whole - facts.boards_absent)
    yield from (s for s in found if facts.board_of.get(s) not in whole | facts.boards_absent)
