"""Vendor profiles: what an SNMP PDU family measures, which thresholds it has and how it is switched, as checked data."""

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from rpi_daemon.config.load import Loc, key_of
from rpi_daemon.drivers.pdu.device_file import Mistake, Table, parse_file, read_file, shipped_names
from rpi_daemon.records import LimitKind

PROFILES = "rpi_daemon.drivers.pdu.profiles"
# ASN.1 tags as on the wire (RFC 2578 section 7.1); BITS travel as OCTET STRING.
TAGS = {
    "integer": 0x02,
    "octets": 0x04,
    "bits": 0x04,
    "counter32": 0x41,
    "gauge32": 0x42,
    "timeticks": 0x43,
    "counter64": 0x46,
}
RANGES = {
    "integer": (-(2**31), 2**31 - 1),
    "counter32": (0, 2**32 - 1),
    "gauge32": (0, 2**32 - 1),
    "timeticks": (0, 2**32 - 1),
    "counter64": (0, 2**64 - 1),
}
# What outlets and rows may measure, with the unit that each must have; a power factor has none.
UNITS = {
    "power": "W",
    "current": "A",
    "voltage": "V",
    "apparent": "VA",
    "energy": "Wh",
    "power_factor": "1",
    "rating": "A",
}
# Part of a count that a float64 may lack to the count that was meant (its own error is under 1e-6 of one).
_FLOAT_SLACK = Fraction(1, 1000)
_NUMBER_IN_TEXT = re.compile(rb"\s*(\d{1,9})\s*[A-Za-z]{0,3}\s*")

MeasuredType = Literal["integer", "gauge32", "counter32", "counter64", "text"]
StateName = Literal[
    "normal", "low_warning", "low_critical", "high_warning", "high_critical", "off", "tripped", "fault", "unavailable"
]
Level = Literal["lower_critical", "lower_warning", "upper_warning", "upper_critical", "hysteresis"]


def _template(places: str) -> AfterValidator:
    """An OID of which some arcs are places to fill in."""
    pattern = re.compile(r"[0-2](\.(\d+" + "".join(rf"|\{{{place}\}}" for place in places.split()) + "))+")
    allowed = ", ".join(f"{{{place}}}" for place in places.split())

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"is not an OID: numbers with dots between them, and in some places {allowed}")
        if any(int(arc) >= 2**32 for arc in text.split(".") if arc.isdigit()):
            raise ValueError("is not an OID: no number in it may be above 4294967295")
        return text

    return AfterValidator(check)


OidTemplate = Annotated[str, _template("unit outlet row")]
DeviceOid = Annotated[str, _template("unit")]
OidPrefix = Annotated[str, StringConstraints(pattern=r"^[0-2](\.\d+)+$")]
Codes = Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
RowIndex = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)*(-\d+)?$")]


class Identity(Table):
    """How the family is recognised, and where it says who it is. Patterns are tried on sysDescr, first group counts."""

    sys_object_id: OidPrefix
    model_oid: DeviceOid | None = None
    serial_oid: DeviceOid | None = None
    firmware_oid: DeviceOid | None = None
    outlet_count_oid: DeviceOid | None = None
    model_pattern: str | None = None
    serial_pattern: str | None = None
    firmware_pattern: str | None = None

    @model_validator(mode="after")
    def _patterns_have_a_group(self) -> Self:
        for name in ("model_pattern", "serial_pattern", "firmware_pattern"):
            pattern = getattr(self, name)
            if pattern is None:
                continue
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"{name} must have exactly one group in brackets, it has {groups}")
        return self


class Feeds(Table):
    """For families that number their outlets anew on each cord or infeed: `{outlet}` stands for two arcs, feed and
    outlet. Which there are is asked once after each start of the device; the outlets of feed 1 come first, then those of
    feed 2, and that place is the outlet's number."""

    oid: OidTemplate  # a column that every outlet has
    feeds: int = Field(ge=1, le=64)  # that a device has at most
    outlets: int = Field(ge=1, le=1024)  # that a feed has at most


class Index(Table):
    """What `{unit}` is when the options do not say, and how many outlets the family has at most."""

    unit: int = Field(default=1, ge=0)
    max_outlets: int = Field(ge=1, le=1024)
    counts: Literal["outlets", "phases", "cords"] = "outlets"  # what the numbers count; only outlets can be limited
    feeds: Feeds | None = None


class Validity(Table):
    """A column that says whether the number beside it is one; the listed readings mean that it is not."""

    oid: OidTemplate
    invalid: Codes


class Scaled(Table):
    """A number's step on the wire: a constant, or 10^-d with d read from the device. Which counts are no number."""

    scale: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    digits_oid: OidTemplate | None = None
    missing: tuple[int, ...] = Field(default=(), strict=False, description="counts that mean 'not supported'")
    negative: Literal["missing", "signed", "magnitude"] = "missing"

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if (self.scale is None) == (self.digits_oid is None):
            raise ValueError("give either scale (a number > 0) or digits_oid (a column of decimal digits)")
        return self

    def step(self, digits: int | None = None) -> Fraction:
        """One wire count in the profile's unit, exactly as written in decimal."""
        if self.scale is not None:
            return Fraction(str(self.scale))
        if digits is None:
            raise ValueError("the device's decimal digits are not known yet")
        return Fraction(1, 10**digits) if digits >= 0 else Fraction(10**-digits)

    def counted(self, count: int | None) -> int | None:
        """The count, or None where it is none: absent, listed as missing, or negative where that means nothing."""
        if count is None or count in self.missing or (count < 0 and self.negative == "missing"):
            return None
        return abs(count) if self.negative == "magnitude" else count


class Measured(Scaled):
    """One metered column."""

    oid: OidTemplate
    type: MeasuredType  # text: a whole number before its unit, as in "16A"
    unit: Literal["W", "A", "V", "VA", "Wh", "1"]
    valid: Validity | None = None

    def count(self, value: object) -> int | None:
        """What stands on the wire, as a count; None for whatever is not one."""
        if self.type == "text" and isinstance(value, bytes):
            found = _NUMBER_IN_TEXT.fullmatch(value)
            return self.counted(int(found[1])) if found is not None else None
        return self.counted(value) if self.type != "text" and isinstance(value, int) else None


class Coded(Table):
    """A column whose numbers are words; a number that is not listed is "not known"."""

    oid: OidTemplate
    codes: Mapping[StateName, Codes] = Field(min_length=1)

    def word(self, code: int | None) -> str | None:
        return next((word for word, codes in self.codes.items() if code in codes), None)

    @model_validator(mode="after")
    def _codes_are_apart(self) -> Self:
        codes = [code for listed in self.codes.values() for code in listed]
        if len(set(codes)) != len(codes):
            raise ValueError("codes gives two words to one number")
        return self


class Restriction(Table):
    """OverloadRestriction of a phase or bank: which number lets further outlets be switched on, and which refuses it."""

    oid: OidTemplate
    type: Literal["integer"] = "integer"
    always_allow: int
    on_near_overload: int
    on_overload: int

    def word(self, code: int | None) -> str | None:
        words = ("always_allow", "on_near_overload", "on_overload")
        return next((word for word in words if code == getattr(self, word)), None)


class SwitchState(Table):
    """The column that says whether an outlet is on. A reading in neither list is "not known"."""

    oid: OidTemplate
    on: Codes
    off: Codes


class Meters(Table):
    """The quantities of an outlet or of a row; each column must have the unit of its quantity."""

    power: Measured | None = None
    current: Measured | None = None
    voltage: Measured | None = None
    apparent: Measured | None = None
    energy: Measured | None = None
    power_factor: Measured | None = None
    rating: Measured | None = None

    @model_validator(mode="after")
    def _units(self) -> Self:
        for name, unit in UNITS.items():
            column = getattr(self, name)
            if column is not None and column.unit != unit:
                raise ValueError(f"{name}.unit must be {unit!r}, it is {column.unit!r}")
        return self

    def columns(self) -> dict[str, Measured]:
        """The quantities that there are, by name."""
        return {name: column for name in UNITS if (column := getattr(self, name)) is not None}


class Metering(Meters):
    """What each outlet tells. `metered_oid`: how many outlets are metered; those above it have no reading, whatever the
    columns say."""

    state: SwitchState | None = None
    load: Coded | None = None
    metered_oid: DeviceOid | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.power is None and self.current is None and self.state is None:
            raise ValueError("needs at least one of power, current and state")
        return self


class ThresholdColumn(Table):
    oid: OidTemplate
    type: Literal["integer", "gauge32"]


class EnableMask(Table):
    """The column of which one bit switches the threshold on. BITS count from the most significant bit of the first
    octet; an integer mask counts from its lowest bit."""

    oid: OidTemplate
    type: Literal["bits", "integer"]
    bit: int = Field(ge=0, le=31)
    octets: int = Field(default=1, ge=1, le=4)
    inverted: bool = False  # True: a set bit switches the threshold off
    factory: int = Field(default=0, ge=0)  # as one big-endian number

    @model_validator(mode="after")
    def _bit_fits(self) -> Self:
        if self.type == "bits" and self.bit >= 8 * self.octets:
            raise ValueError(f"bit {self.bit} is outside {self.octets} octet(s): allowed 0..{8 * self.octets - 1}")
        return self

    def flag(self, bit: int) -> int:
        """The bit as a number within the mask."""
        return 1 << (8 * self.octets - 1 - bit if self.type == "bits" else bit)

    def is_on(self, mask: int, bit: int | None = None) -> bool:
        return bool(mask & self.flag(self.bit if bit is None else bit)) != self.inverted

    def switched(self, mask: int, on: bool, bit: int | None = None) -> int:
        """`mask` with one threshold switched; every other bit kept."""
        flag = self.flag(self.bit if bit is None else bit)
        return mask | flag if on != self.inverted else mask & ~flag

    def decode(self, value: int | bytes) -> int | None:
        """Mask from the wire; None if it is not one. A shorter string has zeros for what it leaves out (RFC 2578)."""
        if isinstance(value, bytes):
            if self.type != "bits" or not value or len(value) > self.octets:
                return None
            return int.from_bytes(value.ljust(self.octets, b"\0"), "big")
        return value if self.type == "integer" and value >= 0 else None

    def encode(self, mask: int) -> int | bytes:
        return mask.to_bytes(self.octets, "big") if self.type == "bits" else mask


class LowerThreshold(Table):
    """A threshold that the device keeps below ours (a warning below a critical one).

    `disable`: its bit in the mask is taken off while its value is above our limit; restoring puts the mask back.
    `follow`: for families without a mask: it is written one step below ours, so that it neither blocks a lower limit
    nor cries far below a raised one.
    """

    columns: tuple[ThresholdColumn, ...] = Field(min_length=1, strict=False)
    rule: Literal["disable", "follow"]
    bit: int | None = Field(default=None, ge=0, le=31)
    factory: int = 0

    @model_validator(mode="after")
    def _bit_if_disable(self) -> Self:
        if (self.rule == "disable") != (self.bit is not None):
            raise ValueError("rule 'disable' needs bit, rule 'follow' has none")
        return self


class Bounded(Scaled):
    """A number that may be written. `minimum`, `maximum`, `granularity` and `factory` are wire counts."""

    unit: Literal["W", "A", "V", "VA"]
    granularity: int = Field(default=1, ge=1)
    minimum: int = 0
    maximum: int = 2**31 - 1
    factory: int = 0
    level: Level

    @property
    def name(self) -> str:
        """As readings call it: level and unit."""
        return f"{self.level}_{self.unit.lower()}"

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        return self

    def _check_range(self, type_: str) -> None:
        low, high = RANGES[type_]
        if self.minimum < low or self.maximum > high:
            raise ValueError(f"minimum..maximum must lie within {low}..{high} for type {type_!r}")


class Threshold(Bounded):
    """One more threshold, or the hysteresis of all, of an outlet or of a row: read on request, never written by the
    daemon. A hysteresis whose OID names no outlet holds for the whole unit."""

    oid: OidTemplate
    type: Literal["integer", "gauge32"] = "integer"
    writable: bool = True
    enable: EnableMask | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_range(self.type)
        return self


class Limit(Bounded):
    """The per-outlet threshold that we write. `none`: counts that say that no limit stands; they are never written."""

    kind: LimitKind = Field(strict=False)
    unit: Literal["W", "A"]
    level: Level = "upper_critical"
    none: tuple[int, ...] = Field(default=(), strict=False)
    columns: tuple[ThresholdColumn, ...] = Field(min_length=1, strict=False)  # the first that the device has is used
    enable: EnableMask | None = None
    lower: LowerThreshold | None = None

    @property
    def lowest_follower(self) -> int:
        """The lowest count of a threshold that follows below ours: there none is as good as any."""
        return min((self.minimum, *self.none))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if within := [count for count in self.none if self.minimum <= count <= self.maximum]:
            raise ValueError(
                f"none: {within[0]} lies within minimum..maximum ({self.minimum}..{self.maximum}): not both"
            )
        for column in self.columns:
            self._check_range(column.type)
        if self.lower is not None and self.lower.rule == "disable" and self.enable is None:
            raise ValueError("lower.rule 'disable' needs an enable mask")
        return self


class Rows(Meters):
    """Inlets, phases, banks, breakers. `index` lists the values of `{row}` that a device may have: `"1"`, `"1.2"`, or a
    range of the last arc, `"1.1-6"`. Which it has is asked once after each start of the device."""

    kind: Literal["pdu", "inlet", "cord", "line", "phase", "bank", "branch", "breaker"]
    index: tuple[RowIndex, ...] = Field(min_length=1, strict=False)
    state: Coded | None = None
    restriction: Restriction | None = None
    thresholds: tuple[Threshold, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.columns() and self.state is None:
            raise ValueError("needs at least one measured column or a state")
        if len(self.suffixes()) > 256:
            raise ValueError(f"index names {len(self.suffixes())} rows, at most 256 are allowed")
        return self

    def suffixes(self) -> list[str]:
        """Every value that `{row}` may have."""
        found = []
        for entry in self.index:
            head, _, last = entry.partition("-")
            stem, _, first = head.rpartition(".")
            numbers = range(int(first), int(last or first) + 1)
            found += [f"{stem}.{number}" if stem else str(number) for number in numbers]
        return found


class Action(Table):
    """One switching command: `value` into `oid`."""

    oid: OidTemplate
    value: int
    type: Literal["integer", "gauge32"] = "integer"


class Switchable(Table):
    """The column that says whether an outlet has a relay."""

    oid: OidTemplate
    yes: Codes


class Switching(Table):
    """How outlets are switched. `settle_s`: how long the state may take to follow."""

    on: Action
    off: Action
    reboot: Action | None = None
    switchable: Switchable | None = None
    settle_s: float = Field(default=5.0, gt=0.0, le=60.0)


class Pace(Table):
    """What the device stands."""

    batch_varbinds: int = Field(ge=1, le=256)
    get_varbinds: int = Field(default=48, ge=1, le=256)
    bulk_repetitions: int = Field(default=10, ge=1, le=100)
    settle_s: float = Field(ge=0.0, le=60.0)
    writes_per_outlet_day: int = Field(ge=1, le=100_000)


class Profile(Table):
    """One PDU family. Immutable; made by `load_profile`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    vendor: str
    description: str
    proven: Literal["hardware", "recording", "none"]
    identity: Identity
    index: Index
    uptime_oid: DeviceOid = "1.3.6.1.2.1.1.3.0"  # TimeTicks
    metering: Metering
    limit: Limit | None = None
    thresholds: tuple[Threshold, ...] = Field(default=(), strict=False)
    rows: tuple[Rows, ...] = Field(default=(), strict=False)
    switching: Switching | None = None
    pace: Pace

    @model_validator(mode="after")
    def _switching_is_seen(self) -> Self:
        if self.switching is not None and self.metering.state is None:
            raise ValueError("switching needs metering.state: a command that nothing confirms is not given")
        return self


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or any TOML file by its path (with a slash or ending in .toml).

    Raises ConfigError: one line per mistake, with file, line, key, what was given and what is allowed.
    """
    data, shown = read_file(name_or_path, PROFILES, "PDU profile")
    return parse_file(Profile, data, shown, _collisions)


def profile_names() -> list[str]:
    """The names of the shipped profiles."""
    return shipped_names(PROFILES)


def _columns(table: BaseModel, loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Every OID template below a table, with its place."""
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            yield from _columns(value, (*loc, name))
        elif isinstance(value, tuple):
            for place, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _columns(entry, (*loc, name, place))
        elif (name == "oid" or name.endswith("_oid")) and isinstance(value, str):
            yield (*loc, name), value


def _may_be_shared(loc: Loc) -> bool:
    """Columns that several others look at: digits, validity, masks, and a control column that also tells the state."""
    words = {part for part in loc if isinstance(part, str)}
    return bool(words & {"digits_oid", "valid", "enable", "switching", "feeds", "state", "identity", "metered_oid"})


def _collisions(profile: Profile) -> Iterator[Mistake]:
    """Columns that cannot all be right: one OID for two things, one below another, or a place that is not theirs."""
    columns = list(_columns(profile))
    for loc, template in columns:
        if ("{row}" in template) != (loc[0] == "rows") and ("{row}" in template or loc[-1] != "digits_oid"):
            yield loc, f"{template} must name {{row}} in [[rows]], and only there"
        elif "{outlet}" in template and (loc[0] == "rows" or loc[0] == "identity"):
            yield loc, f"{template} must not name {{outlet}} here"
        elif "{outlet}" not in template and loc[0] in ("metering", "limit", "switching") and loc[-1] == "oid":
            yield loc, f"{template} must name {{outlet}}"
    for place, (loc, template) in enumerate(columns):
        for other_loc, other in columns[:place]:
            where = key_of(other_loc)
            if template == other and not (_may_be_shared(loc) or _may_be_shared(other_loc)):
                yield loc, f"{template} is the column of {where} already"
            elif template.startswith(other + ".") or other.startswith(template + "."):
                yield loc, f"{template} overlaps {other} of {where}"
    masks: dict[tuple[str, int], str] = {}
    limits: dict[Loc, Limit | Threshold] = {} if profile.limit is None else {("limit",): profile.limit}
    limits |= {("thresholds", i): threshold for i, threshold in enumerate(profile.thresholds)}
    for loc, threshold in limits.items():
        if threshold.enable is not None:
            flag = (threshold.enable.oid, threshold.enable.bit)
            if flag in masks:
                yield (*loc, "enable"), f"bit {flag[1]} of {flag[0]} is that of {masks[flag]} already"
            masks[flag] = key_of(loc)


def from_wire(count: int, step: Fraction) -> float:
    """A wire count in the column's unit: the float64 nearest to count x step."""
    return float(count * step)


def to_wire(value: float, step: Fraction, granularity: int = 1) -> int:
    """The largest count on the device's grid that is not above `value`: a written limit never exceeds the asked one.

    `to_wire(from_wire(n, step), step) == n` for every n on the grid. Raises ValueError when not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"a limit must be a finite number, not {value!r}")
    counts = Fraction(value) / step
    return math.floor(counts + _FLOAT_SLACK) // granularity * granularity


def oid_of(template: str, *, unit: int, outlet: int | str = 0, row: str = "") -> str:
    """The OID of one outlet or row. For families with several feeds `outlet` is the pair, `"2.7"`."""
    return template.replace("{unit}", str(unit)).replace("{outlet}", str(outlet)).replace("{row}", row)
