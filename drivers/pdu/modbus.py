"""The Modbus driver of PDUs, power shelves and meters: reads and writes what a register map says, by TCP or RTU."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from rpi_daemon.clock import Clock, SystemClock
from rpi_daemon.drivers.base import MayWrite, always
from rpi_daemon.drivers.pdu.modbus_link import ModbusLink, ModbusRefused, RtuLink, SerialLine, TcpLink
from rpi_daemon.drivers.pdu.register_map import (
    MAX_WRITE,
    UNITS,
    Column,
    Limit,
    Number,
    RegisterMap,
    Span,
    Switch,
    Text,
    blocks,
)
from rpi_daemon.errors import ConfigError, DeviceError
from rpi_daemon.records import ApplyResult, LimitState, LimitWrite, PduIdentity, PduReading, WriteOutcome

ILLEGAL_ADDRESS = 2
MAX_EXTRA_WRITES = 12  # per `apply`, after the device refused a block
NOT_ALLOWED = "not written: the kill switch, the mode or the safe state does not allow it any more"
VENDOR, PRODUCT, REVISION = 0, 1, 2  # objects of the basic device identification

Registers = dict[tuple[int, int], int]  # (function, address) -> what stands there


@dataclass(frozen=True)
class TcpAddress:
    host: str
    port: int = 502


@dataclass(frozen=True)
class ModbusOptions:
    """One device. Raises ConfigError, one line per mistake."""

    address: TcpAddress | SerialLine
    map: RegisterMap
    outlets: tuple[int, ...]  # numbers on the device; of a meter: channels or phases
    device_id: int = 1
    timeout_s: float = 0.5
    retries: int = 0  # of reads; a write is not repeated
    nominal_v: float | None = None  # for limits in amperes of a device that does not tell its voltage

    def __post_init__(self) -> None:
        most, limit = self.map.outlets, self.map.limit
        mistakes = []
        if not self.outlets:
            mistakes.append("outlets is empty: name at least one")
        if len(set(self.outlets)) != len(self.outlets):
            mistakes.append(f"outlets names one twice: {list(self.outlets)}")
        if outside := [outlet for outlet in self.outlets if not 1 <= outlet <= most]:
            mistakes.append(f"outlets {outside} are outside 1..{most} of register map {self.map.name!r}")
        if isinstance(self.address, SerialLine) and self.device_id == 0:
            mistakes.append("device_id 0 is everybody on a serial bus, and nobody answers it: choose 1..247")
        ids = self.map.device_ids
        if ids is not None and not ids[0] <= self.device_id <= ids[1]:
            mistakes.append(
                f"device_id {self.device_id} is outside {ids[0]}..{ids[1]} of register map {self.map.name!r}"
            )
        if limit is not None and limit.unit == "A" and limit.voltage is None and not (self.nominal_v or 0.0) > 0.0:
            mistakes.append(f"register map {self.map.name!r} has limits in amperes: nominal_v must be given, above 0")
        if mistakes:
            raise ConfigError("\n".join(f"Modbus device {self.where}: {mistake}" for mistake in mistakes))

    @property
    def where(self) -> str:
        """The device in words."""
        a = self.address
        wire = f"{a.host} port {a.port}" if isinstance(a, TcpAddress) else a.port
        return f"{wire}, device {self.device_id}"


@dataclass
class _Part:
    """What one outlet's write puts on the wire, and what became of it."""

    write: LimitWrite
    words: dict[int, int] = field(default_factory=dict)  # holding registers of the set-point, by address
    switches: dict[int, int] = field(default_factory=dict)  # registers with the enable bit, after the set-point
    asked: tuple[int, ...] | None = None  # the set-point's registers; None for a restore
    refused: str | None = None
    sent: bool = False
    t_sent_ns: int = 0


class ModbusPdu:
    """A PduDriver. Several on one serial port take turns on it: a write and its read-back are one turn, a poll is one a request.

    Raises DeviceError when the device is silent, refuses us or is of another family.
    """

    def __init__(self, options: ModbusOptions, clock: Clock | None = None) -> None:
        self.options = options
        self.map = options.map
        self._clock = clock or SystemClock()
        self.link: ModbusLink
        if isinstance(options.address, TcpAddress):
            self.link = TcpLink(options.address.host, options.address.port, options.timeout_s, self._clock)
        else:
            pace = self.map.pace
            self.link = RtuLink.shared(options.address, options.timeout_s, pace.turnaround_s, self._clock)
        self._absent: set[Span] = set()  # registers that this device does not have
        self._max_gap = self.map.pace.max_gap
        self._requests = 0

    async def open(self) -> None:
        """Connect; safe to call again after an error. What the device is may have changed: nothing is remembered."""
        self._absent.clear()
        self._max_gap = self.map.pace.max_gap
        await self.link.open(self)

    async def close(self) -> None:
        await self.link.close(self)

    # -- who it is

    async def identify(self) -> PduIdentity:
        """What the device says of itself; refuses one of another family, and outlets that it does not measure."""
        identity = self.map.identity
        told = await self._identification()
        texts = [text for text in (identity.model, identity.serial, identity.firmware) if text is not None]
        numbers = [n for n in (*identity.check, identity.outlet_count) if n is not None]
        spans = [text.span if isinstance(text, Text) else text.span() for text in (*texts, *numbers)]
        found = await self._read([*spans, *self._metered()])
        for check in identity.check:
            value = _value(check, 1, found)
            if value is None or not check.least <= value <= check.most:
                raise self._another(f"its {check.name} reads {'nothing' if value is None else f'{value:g}'}")
        model = self._told(identity.model, found)
        if identity.model is not None and not model:
            raise self._another("it does not tell a model")
        self._check_outlets(found)
        count = None if identity.outlet_count is None else _value(identity.outlet_count, 1, found)
        return PduIdentity(
            vendor=told.get(VENDOR) or self.map.vendor,
            model=model or told.get(PRODUCT, ""),
            firmware=self._told(identity.firmware, found) or told.get(REVISION, ""),
            serial=self._told(identity.serial, found),
            n_outlets=len(self.options.outlets) if count is None else int(count),
            proven=self.map.proven != "none",
        )

    async def _identification(self) -> Mapping[int, str]:
        """Function 43 / 14, where the map asks for it."""
        wanted = self.map.identity.identification
        if wanted is None:
            return {}
        async with self.link.turns.turn(urgent=False):
            told = await self.link.identification(self.options.device_id)
        self._requests += 1
        for pattern, number in ((wanted.vendor, VENDOR), (wanted.product, PRODUCT)):
            if not re.search(pattern, told.get(number, "")):
                raise self._another(f"it is {told.get(VENDOR, '')} {told.get(PRODUCT, '')}".strip())
        return told

    def _another(self, why: str) -> DeviceError:
        return DeviceError(
            f"{self.options.where} is not the {self.map.vendor} family of register map {self.map.name!r}: {why}; "
            "correct the profile or the address"
        )

    def _told(self, place: Text | Number | None, found: Registers) -> str:
        """Text or number of the identity; empty where the device has none."""
        if place is None:
            return ""
        if isinstance(place, Number):
            value = _value(place, 1, found)
            return "" if value is None else f"{value:.0f}"
        words = _words(place.span, found) or ()
        octets = b"".join(word.to_bytes(2, "big") for word in words)
        text = octets.split(b"\0")[0].decode("ascii", errors="replace").strip()
        return text if text.isprintable() and "\ufffd" not in text else ""

    def _check_outlets(self, found: Registers) -> None:
        """Every configured outlet must have a reading; what the device says instead is told."""
        silent = {}
        for outlet in self.options.outlets:
            columns = [column for _, column in self.map.metering.columns() if column.per_outlet or outlet == 1]
            if all(_value(column, outlet, found) is None for column in columns):
                silent[outlet] = next((why for c in columns if (why := _why(c, outlet, found))), "no such register")
        if silent:
            words = "; ".join(f"{outlet}: {why}" for outlet, why in silent.items())
            raise DeviceError(f"{self.options.where} measures nothing on some outlets ({words}): correct `outlets`")

    # -- reading

    async def read(self) -> PduReading:
        """Metering, state and limits of every configured outlet."""
        t_mono_ns = self._clock.mono_ns()
        found = await self._read([*self._metered(), *self._limit_spans(self.options.outlets)])
        measured = {name: self._column(name, found) for name in UNITS}
        limits = {}
        if self.map.limit is not None:
            limits = {o: self._limit_state(self.map.limit, o, found) for o in self.options.outlets}
        return PduReading(
            t_mono_ns=t_mono_ns,
            uptime_s=None,
            power_w=measured["power"],
            current_a=measured["current"],
            on=self._states(found),
            limits=limits,
            energy_wh=measured["energy"],
            voltage_v=measured["voltage"],
        )

    def _metered(self) -> list[Span]:
        columns: list[Number] = [column for _, column in self.map.metering.columns()]
        if self.map.metering.state is not None:
            columns.append(self.map.metering.state)
        return [column.span(outlet) for column in columns for outlet in self.options.outlets]

    def _limit_spans(self, outlets: Iterable[int]) -> list[Span]:
        """Set-point, voltage and enable bit."""
        limit = self.map.limit
        if limit is None:
            return []
        placed = [p for p in (limit, limit.voltage, limit.enable) if p is not None]
        return [p.span(outlet) for p in placed for outlet in outlets]

    def _column(self, name: str, found: Registers) -> dict[int, float | None]:
        column: Column | None = getattr(self.map.metering, name)
        return {} if column is None else {outlet: _value(column, outlet, found) for outlet in self.options.outlets}

    def _states(self, found: Registers) -> dict[int, bool | None]:
        state = self.map.metering.state
        if state is None:
            return {}
        on: dict[int, bool | None] = {}
        for outlet in self.options.outlets:
            words = _words(state.span(outlet), found)
            code = None if words is None else state.raw(words)
            on[outlet] = True if code in state.on else False if code in state.off else None
        return on

    def _limit_state(self, limit: Limit, outlet: int, found: Registers) -> LimitState:
        words = _words(limit.span(outlet), found)
        volts = self._volts(limit, outlet, found)
        value = None if words is None else limit.value(words)
        spans = [limit.span(outlet)] + ([limit.enable.span(outlet)] if limit.enable is not None else [])
        raw = tuple(
            (f"{register:#06x}", limit.write, found[span.function, register])
            for span in spans
            for register in range(span.address, span.end)
            if (span.function, register) in found
        )
        enabled: bool | None = True
        if limit.enable is not None:
            register = _words(limit.enable.span(outlet), found)
            enabled = None if register is None else limit.enable.stands(register[0])
        complete = len(raw) == sum(span.words for span in spans)
        return LimitState(
            limit_w=None if value is None or volts is None else float(Fraction(str(value)) * volts),
            enabled=enabled,
            kind=limit.kind,
            raw=raw if complete else (),
            step_w=None if volts is None else float(limit.quantum * volts),
        )

    def _volts(self, limit: Limit, outlet: int, found: Registers) -> Fraction | None:
        """Watts of one unit of the limit: 1, or the volts that the device is set to; None where it does not say."""
        if limit.unit == "W":
            return Fraction(1)
        if limit.voltage is None:
            return Fraction(str(self.options.nominal_v))
        volts = _value(limit.voltage, outlet, found)
        return Fraction(str(volts)) if volts is not None and volts > 0.0 else None

    # -- writing

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite = always) -> ApplyResult:
        """Write one batch, read it back, report both: one turn on the bus, nothing comes between.

        Neighbours go in one message, in the order of `writes`. Whether a limit is in force is decided by the read-back alone.
        Raises DeviceError when neither write nor read-back got an answer.
        """
        if len({write.outlet for write in writes}) != len(writes):
            raise ValueError("one batch names an outlet twice")
        before = self._requests
        async with self.link.turns.turn(urgent=True):
            found = await self._read(self._needed(writes), in_turn=True)
            parts = [self._part(write, found) for write in writes]
            answered = await self._send_all(parts, found, may_write)
            found, t_verified_ns = await self._read_back(parts, found, answered)
        outcomes = tuple(self._outcome(part, found, t_verified_ns) for part in parts)
        return ApplyResult(outcomes, self._requests - before)

    def _needed(self, writes: Sequence[LimitWrite]) -> list[Span]:
        """What must be known freshly before a write: the voltage behind amperes, and bits beside ours."""
        limit = self.map.limit
        outlets = [write.outlet for write in writes if write.outlet in self.options.outlets]
        if limit is None:
            return []
        placed = [p for p in (limit.voltage, limit.enable, limit.gate) if p is not None]
        return [p.span(outlet) for p in placed for outlet in outlets]

    def _part(self, write: LimitWrite, found: Registers) -> _Part:
        part, limit = _Part(write), self.map.limit
        if write.outlet not in self.options.outlets:
            part.refused = f"outlet {write.outlet} is not one of this device's configured outlets"
        elif limit is None:
            part.refused = f"register map {self.map.name!r} has no limit to write"
        elif write.restore is not None:
            self._restore(part, limit, write.restore)
        else:
            self._fill(part, limit, found)
        return part

    def _restore(self, part: _Part, limit: Limit, found: LimitState) -> None:
        """Exactly what was found: the set-point, then the register with the enable bit."""
        if not found.raw:
            part.refused = "nothing to restore: the value found at first contact is not known"
            return
        enable = limit.enable.span(part.write.outlet).address if limit.enable is not None else None
        for address, _, word in found.raw:
            if not isinstance(word, int) or not 0 <= word <= 0xFFFF:
                raise ValueError(f"a found register must hold 0..65535, {address} has {word!r}")
            register = int(address, 16)
            (part.switches if register == enable else part.words)[register] = word

    def _fill(self, part: _Part, limit: Limit, found: Registers) -> None:
        """The registers of a new limit, or why there are none."""
        outlet, limit_w = part.write.outlet, part.write.limit_w
        volts = self._volts(limit, outlet, found)
        if volts is None:
            part.refused = "the device does not tell its output voltage, which turns the limit's watts into amperes"
            return
        value = Fraction(limit_w) / volts
        low, high = (Fraction(str(bound)) for bound in (limit.minimum, limit.maximum))
        slack = limit.quantum / 1000
        if not low - slack <= value <= high + slack:
            part.refused = (
                f"{limit_w:g} W is outside what the device takes: {float(low * volts):g}..{float(high * volts):g} W"
            )
            return
        part.asked = limit.to_registers(value)
        start = limit.place(outlet)
        part.words = {start + i: word for i, word in enumerate(part.asked)}
        if limit.enable is not None:
            span = limit.enable.span(outlet)
            register = found.get((span.function, span.address))
            if register is None:
                part.refused = "the device does not tell whether it obeys its set-point"
                part.words.clear()
            elif not limit.enable.stands(register):  # an unchanged register is not written: its flash wears as well
                part.switches = {span.address: limit.enable.switched(register)}

    async def _send_all(self, parts: Sequence[_Part], found: Registers, may_write: MayWrite) -> bool:
        """Gate, set-points, enable bits, gate. Returns whether the device answered anything."""
        limit = self.map.limit
        if limit is None or not any(part.words or part.switches for part in parts):
            return True
        ready = [part for part in parts if part.words or part.switches]
        opened: Registers = {}
        if limit.gate is not None:
            opened = await self._open_gates(limit, limit.gate, ready, found, may_write)
        answered = await self._send(ready, limit, may_write, "words")
        switched = [part for part in ready if part.switches and part.refused is None]
        if switched:
            answered = await self._send(switched, limit, may_write, "switches") or answered
        for (_, address), before in opened.items():
            wrong = await self._send_switch(address, before, limit, ready, may_write)
            if wrong is not None:
                _note(ready, f"written, but its write gate was not shut again: {wrong}")
        return answered

    async def _open_gates(
        self, limit: Limit, gate: Switch, parts: Sequence[_Part], found: Registers, may_write: MayWrite
    ) -> Registers:
        """Gates that were shut and are open now, with what stood there. A part behind a gate that stays shut is refused."""
        opened: Registers = {}
        for part in parts:
            key = (3, gate.place(part.write.outlet))
            before = found.get(key)
            if before is None:
                part.refused = "the device does not tell whether it may be written"
            elif not gate.stands(before) and key not in opened:
                part.refused = await self._send_switch(key[1], gate.switched(before), limit, [part], may_write)
                if part.refused is None:
                    opened[key] = before
        for part in parts:
            if part.refused is not None:
                part.words.clear()
                part.switches.clear()
        return opened

    async def _send_switch(
        self, address: int, word: int, limit: Limit, parts: Sequence[_Part], may_write: MayWrite
    ) -> str | None:
        """One register for the sake of some parts; what went wrong, None if nothing."""
        if not any(may_write(part.write) for part in parts):
            return NOT_ALLOWED
        try:
            await self._write(limit, address, [word])
        except DeviceError as error:
            return str(error)
        return None

    async def _send(self, parts: Sequence[_Part], limit: Limit, may_write: MayWrite, which: str) -> bool:
        """Messages of neighbouring registers, in order. Returns whether the device answered any of them."""
        waiting = [part for part in parts if getattr(part, which)]
        most = 1 if limit.write == 6 else MAX_WRITE
        halves: list[int] = []  # sizes of blocks to try after a refusal
        extra, answered = 0, False
        while waiting:
            n = min(halves.pop(0), len(waiting)) if halves else len(waiting)
            block = _neighbours(waiting[:n], which, most)
            if n > len(block) and halves:
                halves.insert(0, n - len(block))
            allowed = [may_write(part.write) for part in block]
            if not all(allowed):
                _note([part for part, yes in zip(block, allowed, strict=True) if not yes], NOT_ALLOWED)
                waiting = [part for part, yes in zip(block, allowed, strict=True) if yes] + waiting[len(block) :]
                continue
            waiting = waiting[len(block) :]
            words = {address: word for part in block for address, word in getattr(part, which).items()}
            now_ns = self._clock.mono_ns()
            for part in block:
                part.t_sent_ns, part.sent = now_ns, True
            try:
                await self._write(limit, min(words), [words[address] for address in sorted(words)])
                answered = True
                _note(block, None)
            except ModbusRefused as refusal:
                answered = True
                _note(block, str(refusal))
                if len(block) > 1 and extra + 2 <= MAX_EXTRA_WRITES:  # the code does not say which register it means
                    extra += 2
                    waiting = [*block, *waiting]
                    halves = [len(block) // 2, len(block) - len(block) // 2, *halves]
            except DeviceError as error:
                _note([*block, *waiting], str(error))
                return answered
        return answered

    async def _write(self, limit: Limit, address: int, words: Sequence[int]) -> None:
        self._requests += 1
        await self.link.write(self.options.device_id, limit.write, address, words)

    async def _read_back(self, parts: Sequence[_Part], before: Registers, answered: bool) -> tuple[Registers, int]:
        """The whole limit of each outlet that was written, and when the answer came; the voltage is that of before."""
        sent = [part for part in parts if part.sent]
        limit = self.map.limit
        spans = [Span(3, address, 1) for part in sent for address in (*part.words, *part.switches)]
        if limit is not None:
            placed = [p for p in (limit, limit.enable) if p is not None]
            spans += [p.span(part.write.outlet) for p in placed for part in sent]
        try:
            found = await self._read(spans, in_turn=True)
        except DeviceError as error:
            if not answered:
                raise
            _note(sent, f"written, but the read-back failed: {error}")
            found = {}
        written = {(3, address) for part in sent for address in (*part.words, *part.switches)}
        kept = {key: word for key, word in before.items() if key not in written}
        return {**kept, **found}, self._clock.mono_ns()

    def _outcome(self, part: _Part, found: Registers, t_verified_ns: int) -> WriteOutcome:
        verified, read_back_w, refused, limit = False, None, part.refused, self.map.limit
        if part.sent and limit is not None:
            state = self._limit_state(limit, part.write.outlet, found)
            read_back_w = state.limit_w
            words = _words(limit.span(part.write.outlet), found)
            if part.asked is None:
                asked = {**part.words, **part.switches}
                verified = all(found.get((3, address)) == word for address, word in asked.items())
            elif words is not None:
                taken = limit.same(part.asked, words)
                verified = taken and state.enabled is True
                if taken and state.enabled is False and refused is None:
                    refused = "the set-point was written, but the device is set not to obey it"
        return WriteOutcome(
            outlet=part.write.outlet,
            asked_w=part.write.limit_w,
            read_back_w=read_back_w,
            verified=verified,
            refused=refused,
            t_sent_ns=part.t_sent_ns,
            t_verified_ns=t_verified_ns if verified else None,
        )

    # -- the wire

    async def _read(self, spans: Iterable[Span], *, in_turn: bool = False) -> Registers:
        """What stands in all these registers, in few requests. What the device does not have is left out.

        Unless the turn is ours already (`in_turn`), each request is a turn of its own: a command may come between.
        """
        wanted = [span for span in dict.fromkeys(spans) if span not in self._absent]
        found: Registers = {}
        for block in blocks(wanted, self.map.pace.max_registers, self._max_gap):
            inside = [s for s in wanted if s.function == block.function and block.address <= s.address < block.end]
            try:
                found |= await self._read_block(block, in_turn)
            except ModbusRefused as refusal:
                if refusal.code != ILLEGAL_ADDRESS:
                    raise
                found |= await self._read_apart(inside, in_turn)
        return found

    async def _read_apart(self, spans: Sequence[Span], in_turn: bool) -> Registers:
        """After the device refused them together: what it does not have is not asked again, nor what lies between."""
        found: Registers = {}
        for span in spans:
            try:
                found |= await self._read_block(span, in_turn)
            except ModbusRefused as refusal:
                if refusal.code != ILLEGAL_ADDRESS:
                    raise
                self._absent.add(span)
        if not self._absent.intersection(spans):
            self._max_gap = 0
        return found

    async def _read_block(self, block: Span, in_turn: bool) -> Registers:
        """One read, repeated as configured; a refusal is an answer and is not."""
        for left in reversed(range(self.options.retries + 1)):
            try:
                self._requests += 1
                if in_turn:
                    words = await self.link.read(self.options.device_id, *block)
                else:
                    async with self.link.turns.turn(urgent=False):
                        words = await self.link.read(self.options.device_id, *block)
                return {(block.function, block.address + i): word for i, word in enumerate(words)}
            except ModbusRefused:
                raise
            except DeviceError:
                if left == 0:
                    raise
        raise AssertionError("unreachable")


def _words(span: Span, found: Registers) -> tuple[int, ...] | None:
    """The registers of a span; None if one of them is not known."""
    words = tuple(found.get((span.function, register), -1) for register in range(span.address, span.end))
    return None if -1 in words else words


def _value(number: Number, outlet: int, found: Registers) -> float | None:
    words = _words(number.span(outlet), found)
    return None if words is None else number.value(words)


def _why(number: Number, outlet: int, found: Registers) -> str | None:
    words = _words(number.span(outlet), found)
    return None if words is None else number.why_missing(words)


def _neighbours(parts: Sequence[_Part], which: str, most: int) -> list[_Part]:
    """The first parts whose registers make one row without a gap, in either direction; a part is never torn."""
    block: list[_Part] = []
    taken: set[int] = set()
    for part in parts:
        addresses = set(getattr(part, which))
        if block:
            new = addresses - taken
            row = sorted(taken | new)
            if row[-1] - row[0] + 1 != len(row) or len(row) > most:
                break
        block.append(part)
        taken |= addresses
    return block


def _note(parts: Iterable[_Part], text: str | None) -> None:
    for part in parts:
        part.refused = text
