"""What the daemon keeps: of each tick measurements, forecasts and limits, of the log its events."""

import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog

from rpi_daemon.captures import CaptureCounters, CaptureOptions, Captures
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.schema import History
from rpi_daemon.history.chain import Event
from rpi_daemon.history.events import EventKeeper
from rpi_daemon.history.historian import CLOCK_STEP_NS, MINUTE_NS, REQUEST_WEIGHT, WEIGHT, Historian, HistorianCounters
from rpi_daemon.history.weeks import Layout, Mark, StoredLimit
from rpi_daemon.history.writer import Writer
from rpi_daemon.log import listening
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import (
    REQUEST_QUANTILE,
    TELEMETRY,
    Decision,
    FloatArray,
    IntArray,
    LimitState,
    Mode,
    Quality,
    RackModel,
    Residual,
    SafeState,
)
from rpi_daemon.triggers import Triggers

if TYPE_CHECKING:
    from rpi_daemon.sensing import BoardLink

RESTATE_NS: Final = 3600 * NS_PER_S  # a limit that stands is told again, so that a question need not look back for ever
LEFT_OUT: Final = frozenset({"limit"})  # decisions: many, and their outcome is in the history of limits
DECISIONS: Final = 20  # of an outlet that may be on their way when one is read back
_STATES: Final = {
    SafeState.NORMAL: 0,
    SafeState.HOLD: int(Mark.HOLD),
    SafeState.STATIC_SAFE: int(Mark.STATIC_SAFE),
    SafeState.DEVICE_DEFAULT: int(Mark.DEVICE_DEFAULT),
}
EPISODE_NS: Final = 5 * NS_PER_S  # without an escape for so long the next one is another episode: one rise fills 5 s
SAME_W: Final = 1.0  # a read-back that is so near the decision is its result: devices round down to a step
Scored = tuple[int, int, dict[str, FloatArray]]  # a minute: when it began (UTC, monotonic, ns), figures [n] by name

log = structlog.get_logger(__name__)


class Keeping:
    """One per daemon. `open`, `begin` once the boards are known, `tick`, `close`; none of them waits for the disk."""

    def __init__(self, folder: Path, runtime_dir: Path, clock: Clock, options: History) -> None:
        self.writer = Writer()
        self._folder = folder
        self._runtime_dir = runtime_dir
        self._clock = clock
        self._options = options
        self._events = EventKeeper(self.writer, folder, keep_days=options.keep_events_days)
        self._historian: Historian | None = None
        self._limits: StandingLimits | None = None
        self._scores: MinuteScores | None = None
        self._triggers: Triggers | None = None
        self._captures: Captures | None = None
        self._stack = contextlib.ExitStack()

    def open(self) -> None:
        """From here on what is logged is kept."""
        self.writer.start()
        self._stack.enter_context(listening(self._event))

    def begin(self, rack: RackModel, calibration: str, interval_ticks: IntArray, board_of: Mapping[str, str]) -> None:
        """Whose measurements the ticks bring. `board_of`: the board that measures each outlet, where one does."""
        loads = tuple(rack.loads[k].name for k in rack.load_of)
        layout = Layout(rack.rack, rack.outlet_ids, calibration, loads, tuple(interval_ticks.tolist()))
        self._historian = Historian(self.writer, self._folder, layout, keep_days=self._options.keep_days)
        self._historian.begin()
        self._limits = StandingLimits(rack)
        self._scores = MinuteScores(rack.n)
        log.info("history.begins", rack=rack.rack, outlets=rack.n, calibration=calibration)
        if self._options.capture and board_of:
            self._triggers = Triggers(rack, board_of, self._options.capture_step_share)
            self._captures = Captures(
                self.writer, self._folder, self._runtime_dir, rack.rack, _capture_options(self._options)
            )

    def configure(self, rack: RackModel) -> None:
        """Other constraints over the same outlets."""
        if self._triggers is not None:
            self._triggers.configure(rack)

    def tick(self, snapshot: Snapshot) -> None:
        """One tick, once its limits are on their way."""
        if self._historian is None or self._limits is None or self._scores is None:
            return
        readings = snapshot.readings
        self._historian.tick(
            snapshot.t_utc_ns,
            snapshot.t_mono_ns,
            np.where(readings.valid, readings.power_w, np.nan),
            _others(snapshot),
            readings.fresh,
            _marks(snapshot),
        )
        for limit in self._limits.changes(snapshot):
            self._historian.limit(limit)
        if (minute := self._scores.tick(snapshot)) is not None:
            self._historian.scores(*minute)
        if self._triggers is not None and self._captures is not None:
            self._captures.tick(snapshot.t_mono_ns, self._triggers.find(snapshot))

    def left(self, pdu: str, limits: Mapping[int, LimitState]) -> None:
        """What was read on a PDU after the last tick, by outlet number: it stands on while no daemon runs."""
        if self._historian is None or self._limits is None:
            return
        for limit in self._limits.left(self._clock.utc_ns(), self._clock.mono_ns(), pdu, limits):
            self._historian.limit(limit)

    @property
    def failing(self) -> str | None:
        """The disk's last word on measurements and events; None while it works."""
        kept = None if self._historian is None else self._historian.counters.failing
        return kept or self._events.counters.failing

    @property
    def set_aside(self) -> int:
        """Damaged files that were renamed."""
        kept = 0 if self._historian is None else self._historian.counters.files_set_aside
        return kept + self._events.counters.files_set_aside

    def status(self) -> dict[str, Any]:
        kept = HistorianCounters() if self._historian is None else self._historian.counters
        events = self._events.counters
        captures = CaptureCounters() if self._captures is None else self._captures.counters
        return {
            "folder": str(self._folder),
            "size_mb": kept.size_bytes / 1e6,
            "blocks_written": kept.blocks_written,
            "blocks_dropped": kept.blocks_dropped,
            "limits_written": kept.limits_written,
            "limits_dropped": kept.limits_dropped,
            "events_written": events.written,
            "events_dropped": events.dropped,
            "captures_written": captures.written,
            "captures_dropped": captures.dropped,
            "captures_left_out": captures.left_out,
            "captures_deleted": captures.deleted,
            "files_deleted": kept.files_deleted + events.files_deleted,
            "files_set_aside": self.set_aside,
            "failing": self.failing or captures.failing,
        }

    def close(self) -> None:
        """Write what is left, for a few seconds at most: a disk that hangs does not keep the daemon from ending."""
        if self._captures is not None:
            self._captures.close()
        if self._historian is not None and self._scores is not None:
            if (minute := self._scores.rest()) is not None:
                self._historian.scores(*minute)
            self._historian.close()
        self._events.close()
        finished = self.writer.close()
        self._stack.close()
        if not finished:
            log.error("history.not_finished", **self.status())

    def _event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name in LEFT_OUT:
            return
        try:
            data = json.loads(json.dumps(fields, default=str))  # as it is now: a field may be a live object
        except (TypeError, ValueError):
            data = {key: str(value) for key, value in fields.items()}
        self._events.take(Event(self._clock.utc_ns(), self._clock.mono_ns(), name, data))


def _capture_options(options: History) -> CaptureOptions:
    return CaptureOptions(
        options.capture_before_s,
        options.capture_after_s,
        options.capture_per_hour,
        options.capture_keep,
        round(options.capture_keep_mb * 1e6),
    )


def _others(snapshot: Snapshot) -> Mapping[str, FloatArray]:
    """The quantities beside power; a forecast stands at the time when it was made."""
    readings, valid = snapshot.readings, snapshot.readings.valid
    measured = {
        name: np.where(valid, getattr(readings, name), np.nan)
        for name in ("rms_a", "apparent_va", "power_factor", "peak_a", "voltage_v")
    }
    residual = {} if snapshot.residual is None else {"residual_w": snapshot.residual.value_w}
    told = zip(TELEMETRY, snapshot.telemetry.T, strict=True)
    hosts = {name: shares for name, shares in told if np.isfinite(shares).any()}
    return {
        **measured,
        **residual,
        **hosts,
        "forecast_w": snapshot.forecast.value_w[:, -1, 0],
        "forecast_max_w": snapshot.forecast.running_max_w[:, -1, REQUEST_QUANTILE],
        "request_w": snapshot.request.request_w,
    }


def _marks(snapshot: Snapshot) -> IntArray:
    """`Mark`s of one tick, [n]. That a slow meter's reading is held shows in the ticks that brought a fresh one."""
    marks: IntArray = snapshot.readings.quality & ~int(Quality.HELD) | _STATES[snapshot.safe.state]
    marks |= np.where(snapshot.request.censored, Mark.CENSORED, 0)
    if snapshot.mode is Mode.CLOSED_LOOP:
        marks |= Mark.CLOSED_LOOP
    if snapshot.residual is not None:
        marks |= np.where(snapshot.residual.valid & snapshot.residual.escaped, Mark.ESCAPED, 0)
    return marks


class _Sums:
    """Running sums of one minute."""

    def __init__(self, n: int, t_ns: int, t_mono_ns: int) -> None:
        self.t_ns = t_ns
        self.t_mono_ns = t_mono_ns
        self.read = np.zeros(n)  # ticks with a reading
        self.judged, self.escaped, self.episodes = np.zeros((3, n))
        self.compared, self.error_w, self.persistence_error_w = np.zeros((3, n))
        self.weights: dict[str, FloatArray] = {}

    def scored(self) -> Scored:
        """The minute's figures; an error is not known where nothing was compared, a weight where nothing was read."""
        compared = np.where(self.compared > 0, self.compared, np.nan)
        figures = {
            "judged": self.judged,
            "escaped": self.escaped,
            "episodes": self.episodes,
            "error_w": self.error_w / compared,
            "persistence_error_w": self.persistence_error_w / compared,
        }
        read = np.where(self.read > 0, self.read, np.nan)
        weights = {name: total / read for name, total in self.weights.items()}
        return self.t_ns, self.t_mono_ns, figures | weights


class MinuteScores:
    """How good requests and forecasts of each minute were, and who made them; judged as the control loop judges them."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._escaped_ns = np.full(n, -(1 << 62), dtype=np.int64)
        self._sums: _Sums | None = None

    def tick(self, snapshot: Snapshot) -> Scored | None:
        """Take one tick in; a minute's figures when it is over."""
        over = None
        if self._sums is not None and snapshot.t_mono_ns - self._sums.t_mono_ns >= MINUTE_NS:
            over = self.rest()
        if self._sums is None:
            self._sums = _Sums(self._n, snapshot.t_utc_ns, snapshot.t_mono_ns)
        sums = self._sums
        valid = snapshot.readings.valid
        sums.read += valid
        for prefix, weights in ((WEIGHT, snapshot.weights), (REQUEST_WEIGHT, snapshot.request_weights)):
            for expert, weight in weights.items():
                sums.weights[prefix + expert] = sums.weights.get(prefix + expert, 0.0) + np.where(valid, weight, 0.0)
        if snapshot.residual is not None:
            self._judge(sums, snapshot.residual, snapshot.t_mono_ns)
        return over

    def rest(self) -> Scored | None:
        """The figures of the minute that has begun; None where nothing was seen of it."""
        sums, self._sums = self._sums, None
        return None if sums is None else sums.scored()

    def _judge(self, sums: _Sums, residual: Residual, now_ns: int) -> None:
        escaped = residual.valid & residual.escaped
        sums.judged += residual.valid
        sums.escaped += escaped
        sums.episodes += escaped & (now_ns - self._escaped_ns > EPISODE_NS)
        self._escaped_ns[escaped] = now_ns
        compared = residual.valid & np.isfinite(residual.value_w) & np.isfinite(residual.persistence_w)
        sums.compared += compared
        sums.error_w += np.where(compared, np.abs(residual.value_w), 0.0)
        sums.persistence_error_w += np.where(compared, np.abs(residual.persistence_w), 0.0)


class StandingLimits:
    """Finds the limits that changed on the PDUs, whoever changed them, and why they did."""

    def __init__(self, rack: RackModel) -> None:
        self._rack = rack
        self._limit_w = np.full(rack.n, np.nan)
        self._kind: tuple[str, ...] = ()
        self._told_ns = 0
        self._since_utc_ns: int | None = None  # wall time at which CLOCK_MONOTONIC was 0
        self._decided: dict[int, deque[Decision]] = {}

    def changes(self, snapshot: Snapshot) -> list[StoredLimit]:
        """Limits that were read back as something else since the tick before; now and then all that stand."""
        limit_w, kind = snapshot.in_force.limit_w, snapshot.in_force.kind
        for decision in (d for desired in snapshot.desired for d in desired.decisions):
            self._decided.setdefault(decision.outlet, deque(maxlen=DECISIONS)).append(decision)
        restate = self._clock_set(snapshot) or snapshot.t_mono_ns - self._told_ns >= RESTATE_NS
        changed = ~((limit_w == self._limit_w) | (np.isnan(limit_w) & np.isnan(self._limit_w)))
        if kind != self._kind:
            changed |= np.array([a != b for a, b in zip(kind, self._kind or kind, strict=True)])
        if not (restate or changed.any()):
            return []
        told = changed | (~np.isnan(limit_w) if restate else False)
        self._limit_w, self._kind = limit_w.copy(), kind
        self._told_ns = snapshot.t_mono_ns if restate else self._told_ns
        return [self._stored(snapshot, int(i), bool(changed[i])) for i in np.flatnonzero(told)]

    def left(self, t_ns: int, t_mono_ns: int, pdu: str, limits: Mapping[int, LimitState]) -> list[StoredLimit]:
        """Limits of one PDU that stand elsewhere since the last tick: what the stop wrote."""
        found = []
        for number, state in limits.items():
            name = f"{pdu}/{number}"
            if name not in self._rack.outlet_ids:
                continue  # it meters for other outlets
            limit_w = state.limit_w if state.enabled is not False else None
            before_w = float(self._limit_w[self._rack.outlet_ids.index(name)])
            if limit_w != (None if np.isnan(before_w) else before_w):
                found.append(StoredLimit(t_ns, t_mono_ns, name, state.kind.value, limit_w, "stop", ""))
        return found

    def _clock_set(self, snapshot: Snapshot) -> bool:
        """Whether somebody set the wall clock: what stands is told again in the new time, for nothing ties it to the old."""
        since_ns = snapshot.t_utc_ns - snapshot.t_mono_ns
        before_ns, self._since_utc_ns = self._since_utc_ns, since_ns
        return before_ns is not None and abs(since_ns - before_ns) > CLOCK_STEP_NS

    def _stored(self, snapshot: Snapshot, i: int, changed: bool) -> StoredLimit:
        limit_w, name = float(snapshot.in_force.limit_w[i]), self._rack.outlet_ids[i]
        near_w = max(SAME_W, float(snapshot.in_force.step_w[i]))
        ours = [d for d in self._decided.get(i, ()) if abs(d.to_w - limit_w) <= near_w]
        reason, rule = "read", ""
        if not changed:
            reason = "stands"
        elif name in snapshot.foreign:
            reason = "foreign_change"
        elif ours:
            reason, rule = ours[-1].reason, ours[-1].rule
        known = None if np.isnan(limit_w) else limit_w
        kind = snapshot.in_force.kind[i].value
        return StoredLimit(snapshot.t_utc_ns, snapshot.t_mono_ns, name, kind, known, reason, rule)


def calibration_digest(boards: "Sequence[BoardLink]") -> str:
    """What the readings' scale comes from, as 16 hexadecimal digits: each board's own word, and its calibration file."""
    words = [
        (link.board.id, link.description, None if link.calibration is None else link.calibration.to_json())
        for link in boards
    ]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]
