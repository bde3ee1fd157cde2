"""The frozen records that stages exchange; arrays are indexed by outlet, in the rack's outlet order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

TICK_S = 0.1
TICK_NS = 100_000_000
HORIZONS_S = (1.0, 2.0, 3.0, 4.0, 5.0)
QUANTILES = (0.5, 0.9, 0.99)
# A request builds on this quantile of the running maximum; the learned margin brings it to the target: see
# docs/decisions/request-quantile.md.
REQUEST_QUANTILE = QUANTILES.index(0.99)


def reach_ticks(interval_ticks: IntArray, horizon_s: float = HORIZONS_S[-1]) -> IntArray:
    """How far ahead a forecast reaches, ticks: to the outlet's first reading at or after t + `horizon_s`.

    With a reading per tick that is the horizon itself; a meter read every 2 s is known again at 6 s, not at 5.
    """
    ticks = round(horizon_s / TICK_S)
    reach: IntArray = -(-ticks // interval_ticks) * interval_ticks
    return reach


class LimitKind(StrEnum):
    """What happens when a limit is exceeded (DESIGN section 7)."""

    ALARM = "alarm"
    BLOCK_TURN_ON = "block_turn_on"
    TRIP_OFF = "trip_off"
    CURRENT_LIMIT = "current_limit"
    SERVER_CAP = "server_cap"

    @property
    def enforced(self) -> bool:
        """Whether the device itself acts on the draw; an alarm threshold never does."""
        return self in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT, LimitKind.SERVER_CAP)


class Mode(StrEnum):
    ADVISORY = "advisory"
    CLOSED_LOOP = "closed_loop"


class SafeState(IntEnum):
    """The ladder of DESIGN section 9; larger is stricter."""

    NORMAL = 0
    HOLD = 1
    STATIC_SAFE = 2
    DEVICE_DEFAULT = 3


class Quality(IntFlag):
    """Why a reading is less than perfect; 0 is a good reading."""

    OK = 0
    MISSING = 1  # some samples of the window were lost
    SATURATED = 2  # at least full scale: the true value is the reading or more
    STALE = 4  # no window of this board for 150 ms: no reading
    NO_VOLTAGE = 8  # apparent quantities only
    UNCALIBRATED = 16  # the board says that its reference is off or its temperature odd; or its file lacks the channel
    SLOW_METER = 32  # a PDU's own metering, 1 Hz or slower
    VOLTAGE_LOST = 64  # the voltage channel shows none, or far too little; always with NO_VOLTAGE
    REVERSED = 128  # negative power: a transformer the wrong way round, or on another phase; no reading
    STUCK = 1 << 15  # the board's sensor stands still: the PDU's own meter in its place (SLOW_METER), or no reading
    HELD = 256  # with SLOW_METER: read for an earlier tick already, so nothing is to be learned from it again


_HELD: Final = int(Quality.HELD)  # NumPy takes many times as long with a member of an enumeration


@dataclass(frozen=True, slots=True)
class Readings:
    """What every outlet drew in the newest window; [n] each. Not valid means no data, and the number is NaN."""

    t_mono_ns: int
    t_utc_ns: int
    power_w: FloatArray  # true power; apparent power where there is no voltage channel (NO_VOLTAGE)
    rms_a: FloatArray
    apparent_va: FloatArray
    power_factor: FloatArray
    peak_a: FloatArray
    crest: FloatArray
    min_a: FloatArray
    max_a: FloatArray
    step_w: FloatArray  # largest change between 40 ms Hann means 40 ms apart
    voltage_v: FloatArray
    count: IntArray
    missing: IntArray
    quality: IntArray  # Quality bits
    valid: BoolArray
    interval_ticks: IntArray = field(default_factory=lambda: np.ones((), np.int64))  # between two readings; 1: a board

    @property
    def fresh(self) -> BoolArray:
        """Outlets [n] that were measured for this tick; the others have no reading, or one that a slow meter gave before."""
        fresh: BoolArray = self.valid & (self.quality & _HELD == 0)
        return fresh


TELEMETRY = ("cpu", "memory", "network", "disk")


@dataclass(frozen=True, slots=True)
class HostReading:
    """What a load's host says of itself, as shares from 0 to 1. None is "not known", never zero."""

    load: str
    t_mono_ns: int  # when it was asked, or when its word came in
    cpu: float | None = None  # of the time of all CPUs, not idle
    memory: float | None = None  # not available
    network: float | None = None  # of its speed, the busier direction of the busiest interface
    disk: float | None = None  # of the time, the busiest disk was busy


@dataclass(frozen=True, slots=True)
class ForecastInput:
    """What a forecaster sees at one tick; [n] unless said otherwise."""

    t_mono_ns: int
    t_utc_s: float
    power_w: FloatArray  # NaN where not valid
    peak_w: FloatArray  # largest power within the window, as apparent from peak current; NaN where unknown
    step_w: FloatArray
    valid: BoolArray
    rating_w: FloatArray
    planned_w: FloatArray  # [n, 5] known schedule: change of draw by t+1..5 s, W
    telemetry: FloatArray  # [n, 4] TELEMETRY in 0..1; 0 where masked
    telemetry_mask: FloatArray  # [n, 4] 1 where known
    quality: IntArray = field(default_factory=lambda: np.zeros((), np.int64))  # Quality bits; without outlets: of all
    interval_ticks: IntArray = field(default_factory=lambda: np.ones((), np.int64))  # between two readings; 1: a board

    @property
    def fresh(self) -> BoolArray:
        """Outlets [n] with a reading that was taken for this tick."""
        fresh: BoolArray = self.valid & np.isfinite(self.power_w) & (self.quality & _HELD == 0)
        return fresh


@dataclass(frozen=True, slots=True)
class Forecast:
    """Quantiles made at t for t+1..5 s: of the value, and of the running maximum over (t, t+h]."""

    t_mono_ns: int
    value_w: FloatArray  # [n, 5, 3], HORIZONS_S x QUANTILES, non-decreasing along quantiles
    running_max_w: FloatArray  # [n, 5, 3], non-decreasing along quantiles and horizons
    source: tuple[str, ...]  # [n] the forecaster that made each row


@dataclass(frozen=True, slots=True)
class Residual:
    """The back edge: what was measured up to t minus what was forecast for it at t - reach (`reach_ticks`)."""

    t_mono_ns: int
    t_made_ns: IntArray  # [n] when it was forecast; meaningless where not valid
    value_w: FloatArray  # measured at t - median forecast for t; NaN where not valid
    running_max_w: FloatArray  # measured maximum over (t - reach, t] - forecast of it (the quantile in use)
    measured_max_w: FloatArray
    request_w: FloatArray  # the request that was made at t - reach
    escaped: BoolArray  # measured_max_w > request_w
    valid: BoolArray  # every window of the span was valid, and a forecast had been made
    persistence_w: FloatArray  # measured at t - measured at t - reach


@dataclass(frozen=True, slots=True)
class Request:
    """What each outlet should be allowed for the next 5 s: forecast quantile + margin."""

    t_mono_ns: int
    request_w: FloatArray
    margin_w: FloatArray
    censored: BoolArray  # an enforced limit of ours was within 5 % of the draw
    alarm_w: FloatArray  # what an alarm threshold should stand at: the slower, higher number of DESIGN section 5
    held_w: FloatArray  # the largest request of the last seconds: what the allocation goes by


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rating that the limits of some outlets must keep together. Ratings are before derating; None is not rated."""

    name: str
    kind: str  # breaker, phase, feed, rack
    rating_w: float | None
    rating_va: float | None
    rating_a: float | None
    derate: float
    share: FloatArray  # [n] part of each outlet's amps (and watts) that it carries; 0 = not on it


@dataclass(frozen=True, slots=True)
class Load:
    """A server or the like: one or two outlets that feed it, and its owner's word on it."""

    name: str
    outlets: tuple[int, ...]
    tier: int  # 0 is served first
    floor_w: float
    demand_w: float  # what it may be granted at most
    sheddable: bool
    critical: bool


@dataclass(frozen=True, slots=True)
class ServerCap:
    """A server that can throttle itself: one cap for the whole load, whichever outlet feeds it."""

    load: int  # index into loads
    lowest_w: float | None  # the owner's word: never capped below this
    opted_in: bool


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One more cap on a constraint, with where it comes from and why."""

    constraint: str
    limit_w: float
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class RackModel:
    """The rack as configured: outlets in order, who feeds whom, what may be written."""

    rack: str
    outlet_ids: tuple[str, ...]
    pdu_of: tuple[str, ...]
    number_of: tuple[int, ...]  # outlet number on its PDU
    load_of: IntArray  # index into loads
    rating_w: FloatArray
    static_safe_w: FloatArray
    nominal_v: FloatArray
    opted_in: BoolArray  # closed loop allowed for the outlet
    loads: tuple[Load, ...]
    constraints: tuple[Constraint, ...]
    caps: tuple[ServerCap, ...] = ()

    @property
    def n(self) -> int:
        return len(self.outlet_ids)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Every rating and ceiling as one row: `used(limit_w) <= cap`. From configuration and meters, never from the model.

    A load counts once in each row, with the larger of its outlets' amounts: losing a feed moves its whole draw to the
    other outlet, so each of them is allowed the whole load, and each feed reserves it.
    """

    rows: tuple[str, ...]  # [m] constraint and unit, or the ceiling's source
    coefficient: FloatArray  # [m, n] units of the row's rating per watt of the outlet's limit
    cap: FloatArray  # [m] rating x derate, in the row's unit
    first: IntArray  # [loads] the outlet of each load
    second: IntArray  # [loads] its other outlet, or the same one again

    def used(self, limit_w: FloatArray) -> FloatArray:
        """What these limits [n] use of each row, [m]."""
        amount = self.coefficient * limit_w
        return np.maximum(amount[:, self.first], amount[:, self.second]).sum(axis=1)  # type: ignore[no-any-return]

    def part_free(self, cap: FloatArray, counted_w: FloatArray, raise_w: FloatArray) -> FloatArray:
        """Which part of these raises [n] fits each row beside what is counted [n] already, [m] of 0..1."""
        need = self.used(raise_w)
        room = np.maximum(cap - self.used(counted_w), 0.0)
        part = np.ones(len(need))
        np.divide(room, need, out=part, where=need > room)
        return part

    def part_of_outlets(self, part: FloatArray) -> FloatArray:
        """The smallest part of the rows that each outlet is on, [n]."""
        return np.where(self.coefficient > 0.0, part[:, None], 1.0).min(axis=0, initial=1.0)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Allocation:
    """What each outlet is granted, and what could not be. Both outlets of a load are granted the whole load."""

    t_mono_ns: int
    grant_w: FloatArray
    shortfall_w: FloatArray  # request - grant where positive; a dual-corded load's is split over its outlets
    scarce: BoolArray  # [n] a rating gave the load less than it asked for, up to its demand
    rule: tuple[str, ...]  # [n] "fits", or the constraint that bound it
    usage_w: Mapping[str, float]  # sum of grants per constraint
    ceiling_w: Mapping[str, float]  # what each constraint allows, W
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class SafeStatus:
    """Where the ladder stands, and why."""

    state: SafeState
    causes: tuple[str, ...]
    latched: tuple[str, ...]
    since_mono_ns: int
    seen_ns: Mapping[str, int] = field(default_factory=dict)  # when each of the causes was last there
    looked_ns: int = 0  # when it was worked out


@dataclass(frozen=True, slots=True)
class Permitted:
    """What may be asked of the PDUs now; [n]. NaN: nothing may be written to the outlet."""

    t_mono_ns: int
    limit_w: FloatArray
    need_w: FloatArray  # below this the limit is too low for the request: raise at once
    urgent: BoolArray  # lower without waiting, where it is worth a write: others need the room
    exceeded: BoolArray  # lower now and to the watt: a rating is exceeded, or this is STATIC_SAFE
    protective: BoolArray  # STATIC_SAFE, or lowering an enforced limit: exempt from the write budget
    rule: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LimitState:
    """What a PDU says of one outlet's limit. None is "not known", never zero."""

    limit_w: float | None
    enabled: bool | None
    kind: LimitKind
    raw: tuple[tuple[str, int, object], ...] = ()  # (OID or register, type, value): enough to put it back exactly
    step_w: float | None = None  # the device's step: it rounds down to a multiple of it
    volts: float | None = None  # of a limit in amperes: the watts that one of them stands for; None: it is in watts


@dataclass(frozen=True, slots=True)
class RowReading:
    """What a PDU says of one inlet, phase, bank or breaker. None is "not known", never zero."""

    kind: str  # pdu, inlet, cord, line, phase, bank, branch, breaker, outlet
    power_w: float | None = None
    current_a: float | None = None
    voltage_v: float | None = None
    apparent_va: float | None = None
    energy_wh: float | None = None
    power_factor: float | None = None  # size alone
    rating_a: float | None = None
    state: str | None = None  # the device's own verdict: normal, high_warning, tripped, ...
    restriction: str | None = None  # when it refuses to switch further outlets on
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by level and unit: "upper_critical_a"
    frequency_hz: float | None = None


@dataclass(frozen=True, slots=True)
class PduReading:
    """One poll of a PDU; outlet numbers as keys. A value that could not be read is absent or None.

    Rows and what changes slowly (voltage, energy) come with some polls only: a mapping is empty where nothing was asked.
    """

    t_mono_ns: int
    uptime_s: float | None
    power_w: Mapping[int, float | None]
    current_a: Mapping[int, float | None]
    on: Mapping[int, bool | None]
    limits: Mapping[int, LimitState]
    energy_wh: Mapping[int, float | None] = field(default_factory=dict)
    voltage_v: Mapping[int, float | None] = field(default_factory=dict)
    apparent: frozenset[int] = frozenset()  # outlets whose `power_w` is volt-amperes: the device meters no true power
    rebooted: bool = False  # since the reading before: its limits are what they are, and nobody is to blame
    rows: Mapping[str, RowReading] = field(default_factory=dict)  # by kind and place: "inlet 1", "phase 2"


@dataclass(frozen=True, slots=True)
class PduIdentity:
    vendor: str
    model: str
    firmware: str
    serial: str
    n_outlets: int
    proven: bool


@dataclass(frozen=True, slots=True)
class LimitWrite:
    """One outlet's new limit, or the found value to put back exactly."""

    outlet: int  # number on the PDU
    limit_w: float
    restore: LimitState | None = None
    why: "Decision | None" = field(default=None, compare=False)  # None: a found value, or STATIC_SAFE without a loop


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of one write. `read_back_w` decides; `verified`: it equals the asked value on the device's step."""

    outlet: int
    asked_w: float
    read_back_w: float | None
    verified: bool
    refused: str | None  # the device's word, when it gave one
    t_sent_ns: int
    t_verified_ns: int | None
    denied: bool = False  # the device said that we may not write here at all, whatever the value
    disabled: bool = False  # what was read back stands there and limits nothing


class SwitchAction(StrEnum):
    ON = "on"
    OFF = "off"
    REBOOT = "reboot"


@dataclass(frozen=True, slots=True)
class SwitchOutcome:
    """What became of one switching command. `on` is the state read back; `verified`: it followed the command (a reboot:
    the outlet was seen off)."""

    outlet: int
    action: SwitchAction
    on: bool | None
    verified: bool
    refused: str | None  # the device's word, when it gave one
    t_sent_ns: int
    t_verified_ns: int | None


@dataclass(frozen=True, slots=True)
class ApplyResult:
    outcomes: tuple[WriteOutcome, ...]
    round_trips: int


@dataclass(frozen=True, slots=True)
class PduReport:
    """What happened on one PDU's wire since the last tick."""

    pdu: str
    reading: PduReading | None = None
    result: ApplyResult | None = None
    lost: bool = False  # what was submitted has ended without an answer
    measured_ns: int | None = None  # of a result: the newest scan behind the tick that asked; None where no tick did
    asked_ns: int | None = None  # of a result: `t_mono_ns` of the Desired that it ends; None where no tick asked


@dataclass(frozen=True, slots=True)
class CapIdentity:
    """What a server can do to itself."""

    vendor: str
    model: str
    firmware: str
    serial: str
    mechanism: str  # which property sets the cap: "environment_metrics" or "power_control"
    lowest_w: float | None  # bounds that the server states; None: it states none
    highest_w: float | None
    on_exceed: str | None  # its LimitException: what it does when the cap cannot be kept; None: it does not say


@dataclass(frozen=True, slots=True)
class CapReading:
    """One poll of a server's cap. None is "not known"; `cap_w` None with `active` False: no cap is set."""

    t_mono_ns: int
    power_w: float | None
    cap_w: float | None
    active: bool | None
    raw: tuple[tuple[str, object], ...] = ()  # (property, value): enough to put it back exactly


@dataclass(frozen=True, slots=True)
class CapOutcome:
    """What became of one cap. The read-back decides; `verified`: it is active at the asked value."""

    asked_w: float | None
    read_back_w: float | None
    verified: bool
    refused: str | None  # the server's word, when it gave one
    t_sent_ns: int  # 0: nothing was sent, it stood so already or was not allowed
    t_verified_ns: int | None


@dataclass(frozen=True, slots=True)
class CapReport:
    """What happened on one server's management controller since the last tick."""

    load: str
    identity: CapIdentity | None = None  # it answered for the first time, or again
    found: CapReading | None = None  # its cap before we ever wrote one
    settle_s: float | None = None  # as measured in earlier runs
    reading: CapReading | None = None
    outcome: CapOutcome | None = None
    lost: bool = False  # what was submitted has ended without an answer


@dataclass(frozen=True, slots=True)
class CapsInForce:
    """What we know of the servers' caps now; [m], one per `RackModel.caps`. An infinite cap is none; NaN is not known."""

    cap_w: FloatArray  # last read back
    asked_w: FloatArray  # the newest that was asked for; NaN: nothing yet
    pending: BoolArray  # a write is under way or waiting
    may_draw_w: FloatArray  # what the server may still draw: an old cap counts until the draw has followed the new one
    able: BoolArray  # it takes our caps and keeps them: opted in, known, reachable
    ours: BoolArray  # a cap of ours stands, lower than the found one, and is kept
    followed: BoolArray  # the draw has followed the cap that stands
    reachable: BoolArray
    uncontrolled: BoolArray  # the server does not take our caps, or somebody else changes them
    not_held: BoolArray  # it draws more than its cap, long after it took it
    lowest_w: FloatArray  # it is never capped below this
    settle_s: FloatArray  # from the decision to a draw that has followed; NaN: not measured


@dataclass(frozen=True, slots=True)
class CapDesired:
    """The newest desired cap of one server, and why; a later one replaces it."""

    load: str
    t_mono_ns: int
    cap_w: float | None  # None: none
    from_w: float | None
    reason: str  # lower, raise, release, static_safe
    rule: str
    request_w: float
    grant_w: float


@dataclass(frozen=True, slots=True)
class CapPlan:
    """What servers' caps should be; [m]."""

    wanted_w: FloatArray  # NaN: no cap is needed, or what stands will do
    rule: tuple[str, ...]  # why
    desired: tuple[CapDesired, ...] = ()  # what is written now


@dataclass(frozen=True, slots=True)
class Hint:
    """Work announced by somebody: at `t_mono_ns` the load's draw begins to change by `delta_w`, for `for_s`."""

    load: str
    delta_w: float
    t_mono_ns: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Why one outlet's limit changes (or not): one structured log line."""

    t_mono_ns: int
    outlet: int  # index in the rack
    from_w: float | None
    to_w: float
    reason: str  # raise, lower, static_safe, restore, ...
    rule: str
    request_w: float
    margin_w: float
    forecast_w: float
    protective: bool
    grant_w: float = float("nan")


@dataclass(frozen=True, slots=True)
class Desired:
    """The newest desired limits of one PDU; a later one replaces it whole."""

    pdu: str
    t_mono_ns: int
    limits: tuple[LimitWrite, ...]
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitsInForce:
    """What we know of the limits now on the PDUs; [n]. NaN is not known."""

    limit_w: FloatArray  # last read back
    verified_ns: IntArray  # when it was last read or verified, 0 = never: kind and limit are not known
    kind: tuple[LimitKind, ...]
    open_w: FloatArray  # largest asked for and not yet known to have happened or not; NaN when nothing is open
    open_low_w: FloatArray  # smallest of the same
    pending: BoolArray  # a write is under way or waiting
    uncontrolled: BoolArray  # the device does not take our writes
    step_w: FloatArray  # of the device
    volts: FloatArray  # watts of one ampere where the limit is in amperes, else NaN
    disabled: BoolArray  # the device says that no limit stands: known, other than a limit that could not be read
    last_w: FloatArray  # the newest write that was verified, as the device rounded it

    def seen_w(self, power_w: FloatArray, current_a: FloatArray) -> FloatArray:
        """The draw as the limits see it, [n]: where one is in amperes, at the volts that it was turned into amperes with.

        At a lower voltage or power factor the same power is more amperes, and these are what is cut off or held.
        """
        return np.fmax(power_w, np.where(np.isnan(power_w), np.nan, current_a * self.volts))


class Severity(IntEnum):
    """How much a notification to facilities matters: good to know, look at it today, act now."""

    INFO = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Notice:
    """One notification to facilities: an alarm that begins or ends, or an event. None is "not known", never zero."""

    kind: str  # of the alarm or event, as in drivers/traps/mib.py
    state: str  # "raised", "cleared" or "event"
    severity: Severity
    alarm: str  # the alarm's id, the same when it begins and ends; "" for an event
    subject: str  # what it is about; "" is the daemon as a whole
    text: str
    t_utc_ns: int
    value: float | None = None
    threshold: float | None = None
    unit: str | None = None
    seconds: int | None = None  # until the forecast passes the rating
    mode: Mode | None = None
    safe_state: SafeState | None = None
    standing: tuple[Severity, ...] | None = None  # severities of the alarms that stand
