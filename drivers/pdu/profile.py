"""Vendor profiles: what an SNMP PDU family measures and which limit it takes, as checked data."""

import math
import re
import tomllib
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rpi_daemon.errors import ConfigError
from rpi_daemon.records import LimitKind

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
# Part of a count that a float64 may lack to the count that was meant (its own error is under 1e-6 of one).
_FLOAT_SLACK = Fraction(1, 1000)

OidTemplate = Annotated[str, StringConstraints(pattern=r"^[0-2](\.(\d+|\{unit\}|\{outlet\}))+$")]
NumberType = Literal["integer", "counter32", "gauge32", "counter64"]


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Identity(_Table):
    """How the family is recognised, and where it says who it is. Patterns are tried on sysDescr, first group counts."""

    sys_object_id: Annotated[str, StringConstraints(pattern=r"^[0-2](\.\d+)+$")]
    model_oid: OidTemplate | None = None
    serial_oid: OidTemplate | None = None
    firmware_oid: OidTemplate | None = None
    outlet_count_oid: OidTemplate | None = None
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


class Index(_Table):
    """What `{unit}` is when the options do not say, and how many outlets the family has at most."""

    unit: int = Field(default=1, ge=0)
    max_outlets: int = Field(ge=1, le=1024)


class Validity(_Table):
    """A column that says whether the number beside it is one; the listed readings mean that it is not."""

    oid: OidTemplate
    invalid: tuple[int, ...] = Field(min_length=1, strict=False)


class Scaled(_Table):
    """A number's step on the wire: a constant, or 10^-d with d read from the device."""

    scale: float | None = Field(default=None, gt=0.0)
    digits_oid: OidTemplate | None = None

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


class Measured(Scaled):
    """One metered column."""

    oid: OidTemplate
    type: NumberType
    unit: Literal["W", "A", "Wh"]
    missing: tuple[int, ...] = Field(default=(), strict=False, description="readings that mean 'not supported'")
    valid: Validity | None = None


class SwitchState(_Table):
    """The column that says whether an outlet is on. A reading in neither list is "not known"."""

    oid: OidTemplate
    on: tuple[int, ...] = Field(min_length=1, strict=False)
    off: tuple[int, ...] = Field(min_length=1, strict=False)


class Metering(_Table):
    power: Measured
    current: Measured | None = None
    energy: Measured | None = None
    state: SwitchState | None = None

    @model_validator(mode="after")
    def _units(self) -> Self:
        for name, unit in (("power", "W"), ("current", "A"), ("energy", "Wh")):
            column = getattr(self, name)
            if column is not None and column.unit != unit:
                raise ValueError(f"{name}.unit must be {unit!r}, it is {column.unit!r}")
        return self


class ThresholdColumn(_Table):
    oid: OidTemplate
    type: Literal["integer", "gauge32"]


class EnableMask(_Table):
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


class LowerThreshold(_Table):
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


class Limit(Scaled):
    """The per-outlet threshold that we write. `minimum`, `maximum`, `granularity` and `factory` are wire counts."""

    kind: LimitKind = Field(strict=False)
    unit: Literal["W", "A"]
    columns: tuple[ThresholdColumn, ...] = Field(min_length=1, strict=False)  # the first that the device has is used
    granularity: int = Field(default=1, ge=1)
    minimum: int = 0
    maximum: int = 2**31 - 1
    factory: int = 0
    missing: tuple[int, ...] = Field(default=(), strict=False)
    enable: EnableMask | None = None
    lower: LowerThreshold | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        for column in self.columns:
            low, high = RANGES[column.type]
            if self.minimum < low or self.maximum > high:
                raise ValueError(f"minimum..maximum must lie within {low}..{high} for type {column.type!r}")
        if self.lower is not None and self.lower.rule == "disable" and self.enable is None:
            raise ValueError("lower.rule 'disable' needs an enable mask")
        return self


class Pace(_Table):
    """What the device stands."""

    batch_varbinds: int = Field(ge=1, le=256)
    settle_s: float = Field(ge=0.0, le=60.0)
    writes_per_outlet_day: int = Field(ge=1, le=100_000)


class Profile(_Table):
    """One PDU family. Immutable; made by `load_profile`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    vendor: str
    description: str
    proven: Literal["hardware", "recording", "none"]
    identity: Identity
    index: Index
    uptime_oid: OidTemplate = "1.3.6.1.2.1.1.3.0"  # TimeTicks
    metering: Metering
    limit: Limit | None = None
    pace: Pace


def load_profile(name_or_path: str | Path) -> Profile:
    """A shipped profile by its name, or any TOML file by its path (with a slash or ending in .toml).

    Raises ConfigError: one line per mistake, with file, key, what was given and what is allowed.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".toml"):
        path = Path(text)
        shown = text
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{shown}: cannot read the PDU profile: {error.strerror}") from error
    else:
        shown = f"{text}.toml"
        resource = files("rpi_daemon.drivers.pdu.profiles").joinpath(shown)
        if not resource.is_file():
            known = ", ".join(profile_names())
            raise ConfigError(
                f"PDU profile {text!r} is not known: choose one of {known}, or give a path to a TOML file"
            )
        data = resource.read_bytes()
    return _parse(data, shown)


def profile_names() -> list[str]:
    """The names of the shipped profiles."""
    folder = files("rpi_daemon.drivers.pdu.profiles")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _parse(data: bytes, shown: str) -> Profile:
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: not a TOML file: {error}") from error
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        lines = []
        for mistake in error.errors():
            key = ".".join(str(part) for part in mistake["loc"]) or "(top)"
            given = mistake["input"]
            got = "" if isinstance(given, dict) or mistake["type"] == "missing" else f", got {given!r}"
            lines.append(f"{shown}: {key}: {mistake['msg']}{got}")
        raise ConfigError("\n".join(lines)) from error


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


def oid_of(template: str, *, unit: int, outlet: int = 0) -> str:
    """The OID of one outlet."""
    return template.replace("{unit}", str(unit)).replace("{outlet}", str(outlet))
