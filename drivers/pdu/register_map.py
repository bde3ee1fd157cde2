"""Register maps: what a Modbus device measures and which limit it takes, as checked data."""

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from rpi_daemon.config.load import Loc, key_of
from rpi_daemon.drivers.pdu.device_file import Mistake, Table, parse_file, read_file, shipped_names
from rpi_daemon.records import LimitKind

REGISTERS = "rpi_daemon.drivers.pdu.registers"
MAX_READ, MAX_WRITE = 125, 123  # registers in one message (Modbus Application Protocol V1.1b3, 6.3 and 6.12)
FORMATS = {"u16": "H", "i16": "h", "u32": "I", "i32": "i", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}
WORDS = {kind: struct.calcsize(">" + letter) // 2 for kind, letter in FORMATS.items()}
UNITS = {
    "power": "W",
    "current": "A",
    "voltage": "V",
    "apparent": "VA",
    "power_factor": "1",
    "frequency": "Hz",
    "energy": "Wh",
}
# Part of a step that a float64 may lack to the value that was meant.
_FLOAT_SLACK = 0.001

Kind = Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"]


class Span(NamedTuple):
    """Registers that belong together: `function` 3 reads holding registers, 4 input registers."""

    function: int
    address: int
    words: int

    @property
    def end(self) -> int:
        return self.address + self.words


class Sentinel(Table):
    """Raw numbers that are no reading but say why there is none."""

    first: int
    last: int | None = None  # `first` alone if not given
    meaning: str

    def holds(self, raw: float) -> bool:
        return self.first <= raw <= (self.first if self.last is None else self.last)


class Placed(Table):
    """Where something stands: one register, one for each outlet at a fixed distance, or a list."""

    address: int = Field(ge=0, le=0xFFFF)
    function: Literal[3, 4] = 3
    stride: int | None = Field(default=None, ge=1, le=0x4000)  # registers from one outlet to the next
    addresses: tuple[int, ...] | None = Field(default=None, strict=False)  # of outlets 1, 2, ...; instead of a stride

    @property
    def words(self) -> int:
        return 1

    @property
    def per_outlet(self) -> bool:
        return self.stride is not None or self.addresses is not None

    @model_validator(mode="after")
    def _one_way_to_place(self) -> Self:
        if self.stride is not None and self.addresses is not None:
            raise ValueError("give stride or addresses, not both")
        if self.addresses is not None and (not self.addresses or self.addresses[0] != self.address):
            raise ValueError("addresses must begin with address, the register of outlet 1")
        if self.stride is not None and self.stride < self.words:
            raise ValueError(f"stride {self.stride} is shorter than the {self.words} registers of one outlet")
        return self

    def place(self, outlet: int) -> int:
        """The first register of an outlet."""
        if self.addresses is not None:
            return self.addresses[outlet - 1]
        return self.address + (outlet - 1) * (self.stride or 0)

    def span(self, outlet: int = 1) -> Span:
        return Span(self.function, self.place(outlet), self.words)


class Number(Placed):
    """A number. Value = shift + scale x raw / 2^precision (OpenBMC rackmon, Register.cpp); NaN and infinity are missing."""

    type: Kind
    word_order: Literal["big", "little"] = "big"  # big: the first register has the most significant word
    byte_order: Literal["big", "little"] = "big"  # within a register; the standard has big
    scale: float = Field(default=1.0, gt=0.0)
    precision: int = Field(default=0, ge=0, le=31)
    shift: float = 0.0
    missing: tuple[Sentinel, ...] = Field(default=(), strict=False)

    @property
    def words(self) -> int:
        return WORDS[self.type]

    @cached_property
    def factor(self) -> Fraction:
        """One raw count in the map's unit, exactly as written in decimal."""
        return Fraction(str(self.scale)) / (1 << self.precision)

    @cached_property
    def _line(self) -> tuple[int, int, int]:
        """(a, b, c) of value = (a x raw + b) / c: whole numbers, so that a float64 is the nearest to what is meant."""
        factor, shift = self.factor, Fraction(str(self.shift))
        c = factor.denominator * shift.denominator
        return int(factor * c), int(shift * c), c

    @cached_property
    def _plain(self) -> bool:
        """One register as it is."""
        return self.type == "u16" and self.byte_order == "big"

    def raw(self, registers: Sequence[int]) -> int | float:
        """The number on the wire."""
        if self._plain:
            return registers[0]
        return struct.unpack(">" + FORMATS[self.type], self._octets(registers))[0]  # type: ignore[no-any-return]

    def registers(self, raw: int | float) -> tuple[int, ...]:
        """As `raw`, the other way; raises ValueError where the type cannot hold it."""
        try:
            octets = struct.pack(">" + FORMATS[self.type], raw)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"{raw} does not fit {self.type}") from error
        words = struct.unpack(f">{self.words}H", octets)
        return struct.unpack(f">{self.words}H", self._octets(words))

    def _octets(self, registers: Sequence[int]) -> bytes:
        """Registers as octets in network order; its own inverse."""
        words = registers if self.word_order == "big" else registers[::-1]
        return struct.pack(f"{'>' if self.byte_order == 'big' else '<'}{len(words)}H", *words)

    def value(self, registers: Sequence[int]) -> float | None:
        """In the map's unit; None for a sentinel or what is no number."""
        a, b, c = self._line
        if self._plain and not self.missing:
            return (a * registers[0] + b) / c
        if self.why_missing(registers) is not None:
            return None
        return (a * self.raw(registers) + b) / c

    def why_missing(self, registers: Sequence[int]) -> str | None:
        """What the sentinel says; None where there is a reading."""
        raw = self.raw(registers)
        if not math.isfinite(raw):
            return "not a number"
        if not self.missing:
            return None
        return next((sentinel.meaning for sentinel in self.missing if sentinel.holds(raw)), None)


class Column(Number):
    """One measured quantity."""

    unit: Literal["W", "A", "V", "VA", "1", "Hz", "Wh"]


class SwitchState(Number):
    """The register that says whether an outlet is on. A reading in neither list is "not known"."""

    on: tuple[int, ...] = Field(min_length=1, strict=False)
    off: tuple[int, ...] = Field(min_length=1, strict=False)


class Metering(Table):
    power: Column | None = None
    current: Column | None = None
    voltage: Column | None = None
    apparent: Column | None = None
    power_factor: Column | None = None
    frequency: Column | None = None
    energy: Column | None = None
    state: SwitchState | None = None

    @model_validator(mode="after")
    def _units(self) -> Self:
        for name, column in self.columns():
            if column.unit != UNITS[name]:
                raise ValueError(f"{name}.unit must be {UNITS[name]!r}, it is {column.unit!r}")
        return self

    def columns(self) -> Iterator[tuple[str, Column]]:
        """The quantities that the device measures, by name."""
        for name in UNITS:
            column = getattr(self, name)
            if column is not None:
                yield name, column


class Flag(Table):
    bit: int = Field(ge=0, le=15)
    name: str


class Alarms(Placed):
    """A register of alarm bits; bit 0 is the lowest."""

    flags: tuple[Flag, ...] = Field(min_length=1, strict=False)

    def raised(self, registers: Sequence[int]) -> list[str]:
        return [flag.name for flag in self.flags if registers[0] >> flag.bit & 1]


class Switch(Placed):
    """One bit of a holding register that must stand as `set` says."""

    bit: int = Field(ge=0, le=15)
    set: bool = True

    @model_validator(mode="after")
    def _is_holding(self) -> Self:
        if self.function != 3:
            raise ValueError("function must be 3: input registers cannot be written")
        return self

    def stands(self, register: int) -> bool:
        return bool(register >> self.bit & 1) is self.set

    def switched(self, register: int) -> int:
        """`register` with our bit as it must be; every other bit kept."""
        return register | 1 << self.bit if self.set else register & ~(1 << self.bit)


class Limit(Number):
    """The set-point that we write, in holding registers. `minimum` and `maximum` are in its unit."""

    kind: LimitKind = Field(strict=False)
    unit: Literal["W", "A"]
    write: Literal[6, 16] = 16  # function: write single register, write multiple registers
    step: float | None = Field(default=None, gt=0.0)  # the device's own; one raw count if not given
    minimum: float = 0.0
    maximum: float
    voltage: Column | None = None  # turns amperes into watts: the device's voltage set-point; else the rack's nominal
    enable: Switch | None = None  # without it the device ignores the set-point
    gate: Switch | None = None  # must stand so while we write, and is put back afterwards

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.function != 3:
            raise ValueError("function must be 3: input registers cannot be written")
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")
        if self.write == 6 and self.words != 1:
            raise ValueError(f"write = 6 writes one register, type {self.type!r} has {self.words}; use 16")
        if self.type[0] == "f" and self.step is None:
            raise ValueError(f"type {self.type!r} needs step, the device's own")
        if self.type[0] != "f" and (self.quantum / self.factor).denominator != 1:
            raise ValueError(
                f"step {self.step:g} is not a whole number of counts of {float(self.factor):g} {self.unit}"
            )
        if self.voltage is not None and self.unit == "W":
            raise ValueError("voltage has no use for a limit in watts")
        if self.voltage is not None and self.voltage.unit != "V":
            raise ValueError(f"voltage.unit must be 'V', it is {self.voltage.unit!r}")
        for bound in (self.minimum, self.maximum):
            try:
                self.settle(bound)
            except ValueError as error:
                raise ValueError(f"{bound:g} {self.unit} cannot be written: {error}") from error
        return self

    @cached_property
    def quantum(self) -> Fraction:
        """The device's step in the limit's unit."""
        return self.factor if self.step is None else Fraction(str(self.step))

    @cached_property
    def _ladder(self) -> tuple[int, int, Any]:
        """(n, d, c): steps are n / d of the unit and c counts each."""
        counts = self.quantum / self.factor
        whole = counts.denominator == 1
        return self.quantum.numerator, self.quantum.denominator, int(counts) if whole else float(counts)

    def settle(self, value: float) -> tuple[tuple[int, ...], float]:
        """The largest step that is not above `value`, as registers and in the limit's unit: a written limit never exceeds the
        asked one. Raises ValueError."""
        offset = value - self.shift
        if self.type == "f32":
            offset += abs(offset) / (1 << 23)  # what a float32 may lack
        n, d, counts = self._ladder
        raw = math.floor(offset * d / n + _FLOAT_SLACK) * counts
        a, b, c = self._line
        registers = (raw,) if self._plain and 0 <= raw <= 0xFFFF else self.registers(raw)
        return registers, (a * raw + b) / c

    def same(self, asked: Sequence[int], found: Sequence[int]) -> bool:
        """Whether both stand on the same step of the device."""
        if self.type[0] != "f":
            return tuple(asked) == tuple(found)
        a, b = self.raw(asked), self.raw(found)
        return math.isfinite(b) and round(Fraction(a) * self.factor / self.quantum) == round(
            Fraction(b) * self.factor / self.quantum
        )


class Text(Table):
    """Characters in holding or input registers, two in each."""

    address: int = Field(ge=0, le=0xFFFF)
    function: Literal[3, 4] = 3
    length: int = Field(ge=1, le=64)  # registers

    @property
    def span(self) -> Span:
        return Span(self.function, self.address, self.length)


class Check(Number):
    """A register whose value tells the family: another device would have another one there."""

    name: str
    least: float
    most: float


class Identification(Table):
    """What function 43 / 14 must tell, as regular expressions searched in the vendor's name and the product."""

    vendor: str = ""
    product: str = ""

    @model_validator(mode="after")
    def _are_patterns(self) -> Self:
        for name in ("vendor", "product"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from error
        return self


class Identity(Table):
    """How the family is recognised, and where it says who it is."""

    model: Text | None = None
    serial: Text | Number | None = None
    firmware: Text | None = None
    outlet_count: Number | None = None
    check: tuple[Check, ...] = Field(default=(), strict=False)
    identification: Identification | None = None


class Pace(Table):
    """What the device stands."""

    max_registers: int = Field(default=MAX_READ, ge=1, le=MAX_READ)  # in one read
    max_gap: int = Field(default=0, ge=0, le=MAX_READ)  # unmapped registers that one read may pass over
    turnaround_s: float = Field(default=0.5, gt=0.0, le=10.0)  # the longest time until it begins to answer
    writes_per_outlet_day: int = Field(ge=1, le=100_000)


class RegisterMap(Table):
    """One family of devices. Immutable; made by `load_map`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
    vendor: str
    description: str
    source: str
    proven: Literal["hardware", "recording", "none"]
    outlets: int = Field(ge=1, le=1024)  # at most; of a meter: channels or phases
    device_ids: tuple[int, int] | None = Field(default=None, strict=False)  # first and last that the family takes
    row: Literal["pdu", "inlet", "cord", "line", "phase", "bank", "branch", "breaker", "outlet"] | None = None
    identity: Identity = Identity()
    metering: Metering
    alarm: tuple[Alarms, ...] = Field(default=(), strict=False)
    limit: Limit | None = None
    pace: Pace

    def placed(self) -> Iterator[tuple[Loc, Placed]]:
        """Everything that stands in registers at each outlet or once, with its key."""
        yield from ((("metering", name), column) for name, column in self.metering.columns())
        if self.metering.state is not None:
            yield ("metering", "state"), self.metering.state
        yield from ((("alarm", i), alarm) for i, alarm in enumerate(self.alarm))
        if self.limit is not None:
            yield ("limit",), self.limit
            for name in ("voltage", "enable", "gate"):
                helper = getattr(self.limit, name)
                if helper is not None:
                    yield ("limit", name), helper


def blocks(spans: Iterable[Span], most: int = MAX_READ, max_gap: int = 0) -> list[Span]:
    """The fewest reads, in order of address, that cover all spans: at most `most` registers each, passing over at most
    `max_gap` registers that nobody asked for at a time. A span is never torn."""
    merged: list[Span] = []
    function = first = end = -1
    for span in sorted(set(spans)):
        if span.function == function and span.address - end <= max_gap and max(end, span.end) - first <= most:
            end = max(end, span.end)
            continue
        if function >= 0:
            merged.append(Span(function, first, end - first))
        function, first, end = span.function, span.address, span.end
    if function >= 0:
        merged.append(Span(function, first, end - first))
    return merged


def load_map(name_or_path: str | Path) -> RegisterMap:
    """A shipped register map by its name, or any TOML file by its path (with a slash or ending in .toml).

    Raises ConfigError: one line per mistake, with file, line, key and reason.
    """
    return parse_map(*read_file(name_or_path, REGISTERS, "register map"))


def map_names() -> list[str]:
    """The names of the shipped register maps."""
    return shipped_names(REGISTERS)


def parse_map(data: bytes, shown: str) -> RegisterMap:
    """A register map from TOML; `shown` is its name in messages. Raises ConfigError."""
    return parse_file(RegisterMap, data, shown, _misfits, unions=("Text", "Number"))


def _misfits(map_: RegisterMap) -> Iterator[Mistake]:
    """What no table can tell alone."""
    if not any(True for _ in map_.metering.columns()):
        yield ("metering",), "is empty: name at least one quantity"
    told_in_rows = [n for n in ("apparent", "power_factor", "frequency") if getattr(map_.metering, n) is not None]
    if map_.row is None and (map_.alarm or told_in_rows):
        yield ("row",), f"is needed: it says what a number of the device is, for {told_in_rows or 'alarm'}"
    if map_.limit is not None and map_.outlets > 1 and not map_.limit.per_outlet:
        yield ("limit",), f"needs stride or addresses: {map_.outlets} outlets cannot share one set-point"
    reached = True
    for loc, placed in map_.placed():
        if placed.addresses is not None and len(placed.addresses) != map_.outlets:
            yield (*loc, "addresses"), f"has {len(placed.addresses)} entries for {map_.outlets} outlets"
            reached = False
        elif (end := placed.span(map_.outlets).end) > 0x10000:
            yield loc, f"outlet {map_.outlets} ends at {end - 1:#x}, beyond 0xffff"
            reached = False
    if reached:
        yield from _overlaps(map_)


def _overlaps(map_: RegisterMap) -> Iterator[Mistake]:
    """Two entries that share registers: one of them is a slip. Each pair once, at its first register."""
    taken: dict[tuple[int, int], tuple[Loc, Span]] = {}
    told: set[tuple[Loc, Loc]] = set()
    for loc, placed in map_.placed():
        for outlet in range(1, (map_.outlets if placed.per_outlet else 1) + 1):
            span = placed.span(outlet)
            for register in range(span.address, span.end):
                other, other_span = taken.setdefault((span.function, register), (loc, span))
                # a limit's voltage may be the metered one, and its bits may share a register
                helper = loc[0] == "limit" and loc != ("limit",) and other != ("limit",)
                if (other, other_span) == (loc, span) or (other_span == span and helper) or (loc, other) in told:
                    continue
                told.add((loc, other))
                yield (
                    loc,
                    f"overlaps {key_of(other)} at register {register:#06x} (outlet {outlet}, function {span.function})",
                )
