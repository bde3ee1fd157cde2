"""The Modbus driver of PDUs, power shelves and meters: reads and writes what a register map says, by TCP or RTU."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

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
from rpi_daemon.records import ApplyResult, LimitState, LimitWrite, PduIdentity, PduReading, RowReading, WriteOutcome

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS = 1, 2
MAX_EXTRA_WRITES = 12  # per `apply`, after the device refused a block
NOT_ALLOWED = "not written: the kill switch, the mode or the safe state does not allow it any more"
VENDOR, PRODUCT, REVISION = 0, 1, 2  # objects of the basic device identification

Registers = dict[tuple[int, int], int]  # (function, address) -> what stands there
Row = tuple[int, tuple[int, ...]]  # address of the first holding register, and what they are to hold


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


@dataclass(slots=True, eq=False)
class _Part:
    """What one outlet's write puts on the wire, and what became of it."""

    write: LimitWrite
    set_point: tuple[int, ...] = ()  # registers; empty: nothing is written
    limit_w: float | None = None  # what the set-point says
    row: Row = (0, ())  # what is written now: the set-point, then the switch
    switch: Row | None = None  # the register with the enable bit, where it must change
    refused: str | None = None
    denied: bool = False
    t_sent_ns: int = 0  # 0: it was not sent


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
        limit = self.map.limit
        self._outlets = frozenset(options.outlets)
        self._places = {o: limit.span(o) for o in options.outlets} if limit is not None else {}
        slack = 0.0 if limit is None else float(limit.quantum) / 1000.0  # what a float64 may lack
        self._fixed_volts: float | None = None
        if limit is not None and limit.voltage is None:
            self._fixed_volts = 1.0 if limit.unit == "W" else options.nominal_v
        self._lowest = 0.0 if limit is None else limit.minimum - slack
        self._highest = 0.0 if limit is None else limit.maximum + slack
        self._absent: set[Span] = set()  # registers that this device does not have
        self._max_gap = self.map.pace.max_gap
        self._requests = 0
        self._rows_sent: list[Span] = []  # of the batch under way

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
        alarms = [alarm.span(outlet) for alarm in self.map.alarm for outlet in self.options.outlets]
        found = await self._read([*self._metered(), *alarms, *self._limit_spans(self.options.outlets)])
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
            rows=self._rows(measured, found),
        )

    def _rows(self, measured: Mapping[str, Mapping[int, float | None]], found: Registers) -> dict[str, RowReading]:
        """The device's own view of each number, with its alarms."""
        if self.map.row is None:
            return {}
        return {
            f"{self.map.row} {o}": RowReading(
                self.map.row,
                power_w=measured["power"].get(o),
                current_a=measured["current"].get(o),
                voltage_v=measured["voltage"].get(o),
                apparent_va=measured["apparent"].get(o),
                energy_wh=measured["energy"].get(o),
                power_factor=_size(measured["power_factor"].get(o)),
                frequency_hz=measured["frequency"].get(o),
                state=self._state(o, found),
            )
            for o in self.options.outlets
        }

    def _state(self, outlet: int, found: Registers) -> str | None:
        """The alarms that stand, or "normal"; None where the device tells none."""
        known = [(alarm, words) for alarm in self.map.alarm if (words := _words(alarm.span(outlet), found)) is not None]
        raised = [name for alarm, words in known for name in alarm.raised(words)]
        return (", ".join(raised) or "normal") if known else None

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
            limit_w=None if value is None or volts is None else value * volts,
            enabled=enabled,
            kind=limit.kind,
            raw=raw if complete else (),
            step_w=None if volts is None else float(limit.quantum) * volts,
            volts=volts if limit.unit == "A" else None,
        )

    def _volts(self, limit: Limit, outlet: int, found: Registers) -> float | None:
        """Watts of one unit of the limit: 1, or the volts that the device is set to; None where it does not say."""
        if limit.voltage is None:
            return self._fixed_volts
        volts = _value(limit.voltage, outlet, found)
        return volts if volts is not None and volts > 0.0 else None

    # -- writing

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite = always) -> ApplyResult:
        """Write one batch, read it back, report both: one turn on the bus, nothing comes between.

        Neighbours go in one message, in the order of `writes`. Whether a limit is in force is decided by the read-back alone.
        Raises DeviceError when neither write nor read-back got an answer.
        """
        if len({write.outlet for write in writes}) != len(writes):
            raise ValueError("one batch names an outlet twice")
        before = self._requests
        self._rows_sent.clear()
        async with self.link.turns.turn(urgent=True):
            found = await self._read(self._needed(writes), in_turn=True)
            parts = list(self._parts(writes, found))
            answered = await self._send_all(parts, found, may_write)
            found, t_verified_ns = await self._read_back(parts, found, answered)
        return ApplyResult(tuple(self._outcomes(parts, found, t_verified_ns)), self._requests - before)

    def _needed(self, writes: Sequence[LimitWrite]) -> list[Span]:
        """What must be known freshly before a write: the voltage behind amperes, and bits beside ours."""
        limit = self.map.limit
        placed = [p for p in (limit.voltage, limit.enable, limit.gate) if p is not None] if limit is not None else []
        if not placed:
            return []
        outlets = [write.outlet for write in writes if write.outlet in self._outlets]
        return [p.span(outlet) for p in placed for outlet in outlets]

    def _parts(self, writes: Sequence[LimitWrite], found: Registers) -> Iterator[_Part]:
        """What puts each write on the wire, or why there is nothing to put."""
        limit, places = self.map.limit, self._places
        for write in writes:
            part = _Part(write)
            place = places.get(write.outlet)
            if limit is None:
                part.refused = f"register map {self.map.name!r} has no limit to write"
            elif place is None:
                part.refused = f"outlet {write.outlet} is not one of this device's configured outlets"
            elif write.restore is not None:
                self._restore(part, limit, write.restore)
            else:
                self._fill(part, limit, place.address, found)
            yield part

    def _fill(self, part: _Part, limit: Limit, address: int, found: Registers) -> None:
        """The set-point of a new limit."""
        limit_w = part.write.limit_w
        volts = self._fixed_volts or self._volts(limit, part.write.outlet, found)
        if volts is None:
            part.refused = "the device does not tell its output voltage, which turns the limit's watts into amperes"
        elif not self._lowest <= limit_w / volts <= self._highest:
            low_w, high_w = limit.minimum * volts, limit.maximum * volts
            part.refused = f"{limit_w:g} W is outside what the device takes: {low_w:g}..{high_w:g} W"
        else:
            part.set_point, value = limit.settle(limit_w / volts)
            part.row = (address, part.set_point)
            part.limit_w = value * volts
            if limit.enable is not None:
                self._enable(part, limit.enable, found)

    def _enable(self, part: _Part, enable: Switch, found: Registers) -> None:
        """The register with the enable bit, where it does not stand: an unchanged one is not written, its flash wears as well."""
        address = enable.place(part.write.outlet)
        register = found.get((3, address))
        if register is None:
            part.refused = "the device does not tell whether it obeys its set-point"
            part.set_point = ()
        elif not enable.stands(register):
            part.switch = (address, (enable.switched(register),))

    def _restore(self, part: _Part, limit: Limit, found: LimitState) -> None:
        """Exactly what was found: the set-point, then the register with the enable bit."""
        if not found.raw:
            part.refused = "nothing to restore: the value found at first contact is not known"
            return
        words = []
        for register, _, word in found.raw:
            if not isinstance(word, int) or not 0 <= word <= 0xFFFF:
                raise ValueError(f"a found register must hold 0..65535, {register} has {word!r}")
            words.append(word)
        place = limit.span(part.write.outlet)
        part.set_point = tuple(words[: place.words])
        part.row = (place.address, part.set_point)
        if limit.enable is not None:
            part.switch = (limit.enable.place(part.write.outlet), tuple(words[place.words :]))

    async def _send_all(self, parts: Sequence[_Part], found: Registers, may_write: MayWrite) -> bool:
        """Gate, set-points, enable bits, gate. Returns whether the device answered anything."""
        limit = self.map.limit
        ready = [part for part in parts if part.set_point]
        if limit is None or not ready:
            return True
        opened: Registers = {}
        if limit.gate is not None:
            opened = await self._open_gates(limit, limit.gate, ready, found, may_write)
            ready = [part for part in ready if part.refused is None]
        answered = await self._send(ready, limit, may_write)
        if limit.enable is not None:
            switched = [part for part in ready if part.switch is not None and part.refused is None]
            for part in switched:
                part.row = part.switch or part.row
            answered = await self._send(switched, limit, may_write) or answered
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

    async def _send(self, parts: Sequence[_Part], limit: Limit, may_write: MayWrite) -> bool:
        """Messages of neighbouring rows, in order. Returns whether the device answered any of them."""
        waiting = parts
        most = 1 if limit.write == 6 else MAX_WRITE
        sizes: list[int] = []  # of the blocks to try next, after a refusal
        extra, answered = 0, False
        while waiting:
            n = min(sizes.pop(0), len(waiting)) if sizes else len(waiting)
            address, words, taken = _neighbours(waiting[:n], most)
            block, rest = waiting[:taken], waiting[taken:]
            if n > taken and sizes:
                sizes.insert(0, n - taken)
            forbidden = [part for part in block if not may_write(part.write)]
            if forbidden:
                _note(forbidden, NOT_ALLOWED)
                waiting = [part for part in waiting if part not in forbidden]
                continue
            now_ns = self._clock.mono_ns()
            for part in block:
                part.t_sent_ns, part.refused = now_ns, None
            try:
                await self._write(limit, address, words)
                answered = True
            except ModbusRefused as refusal:
                answered = True
                _note(block, str(refusal))
                for part in block:
                    part.denied = refusal.code == ILLEGAL_FUNCTION
                if len(block) > 1 and extra + 2 <= MAX_EXTRA_WRITES:  # the code does not say which register it means
                    extra += 2
                    rest = waiting
                    sizes = [len(block) // 2, len(block) - len(block) // 2, *sizes]
            except DeviceError as error:
                _note(waiting, str(error))
                return answered
            waiting = rest
        return answered

    async def _write(self, limit: Limit, address: int, words: Sequence[int]) -> None:
        self._requests += 1
        self._rows_sent.append(Span(3, address, len(words)))
        await self.link.write(self.options.device_id, limit.write, address, words)

    async def _read_back(self, parts: Sequence[_Part], before: Registers, answered: bool) -> tuple[Registers, int]:
        """The whole limit of each outlet that was written, and when the answer came; the voltage is that of before."""
        limit, spans = self.map.limit, list(self._rows_sent)
        also = [p for p in (limit.enable, limit.voltage) if p is not None] if limit is not None else []
        sent = [part.write.outlet for part in parts if part.t_sent_ns] if also else []
        if limit is not None and limit.enable is not None:
            spans += [limit.enable.span(outlet) for outlet in sent]
        try:
            found = await self._read(spans, in_turn=True)
        except DeviceError as error:
            if not answered:
                raise
            _note((part for part in parts if part.t_sent_ns), f"written, but the read-back failed: {error}")
            found = {}
        if limit is not None and limit.voltage is not None:
            voltage = {limit.voltage.span(outlet) for outlet in sent}
            found |= {(s.function, r): before[s.function, r] for s in voltage for r in range(s.address, s.end)}
        return found, self._clock.mono_ns()

    def _outcomes(self, parts: Sequence[_Part], found: Registers, t_verified_ns: int) -> Iterator[WriteOutcome]:
        """What became of each write: what was read back decides. One loop: a batch is verified in as little as a poll takes."""
        limit, places = self.map.limit, self._places
        enable = None if limit is None else limit.enable
        for part in parts:
            write, set_point, refused = part.write, part.set_point, part.refused
            verified, read_back_w = False, None
            words = _words(places[write.outlet], found) if part.t_sent_ns else None
            if words is not None and limit is not None:
                if words == set_point and part.limit_w is not None:
                    verified, read_back_w = True, part.limit_w
                else:
                    value, volts = limit.value(words), self._volts(limit, write.outlet, found)
                    read_back_w = None if value is None or volts is None else value * volts
                    verified = limit.same(set_point, words)
                if verified and enable is not None:
                    enabled, as_written = self._switched(enable, part, found)
                    verified = enabled if write.restore is None else as_written
                    if not verified and refused is None:
                        refused = "the set-point was written, but the device is set not to obey it"
            yield WriteOutcome(
                write.outlet,
                write.limit_w,
                read_back_w,
                verified,
                refused,
                part.t_sent_ns,
                t_verified_ns if verified else None,
                part.denied and not verified,
            )

    def _switched(self, enable: Switch, part: _Part, found: Registers) -> tuple[bool, bool]:
        """Whether the device obeys its set-point, and whether the register with the enable bit is as we wrote it."""
        register = found.get((3, enable.place(part.write.outlet)))
        as_written = part.switch is None or register == part.switch[1][0]
        return register is not None and enable.stands(register), as_written

    # -- the wire

    async def _read(self, spans: Iterable[Span], *, in_turn: bool = False) -> Registers:
        """What stands in all these registers, in few requests. What the device does not have is left out.

        Unless the turn is ours already (`in_turn`), each request is a turn of its own: a command may come between.
        """
        wanted = [span for span in spans if span not in self._absent] if self._absent else list(spans)
        found: Registers = {}
        for block in blocks(wanted, self.map.pace.max_registers, self._max_gap):
            try:
                found |= await self._read_block(block, in_turn)
            except ModbusRefused as refusal:
                if refusal.code != ILLEGAL_ADDRESS:
                    raise
                inside = {s for s in wanted if s.function == block.function and block.address <= s.address < block.end}
                found |= await self._read_apart(sorted(inside), in_turn)
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
                return dict(zip(zip(repeat(block.function), range(block.address, block.end)), words, strict=False))
            except ModbusRefused:
                raise
            except DeviceError:
                if left == 0:
                    raise
        raise AssertionError("unreachable")


def _words(span: Span, found: Registers) -> tuple[int, ...] | None:
    """The registers of a span; None if one of them is not known."""
    function, address, count = span
    if count == 1:
        word = found.get((function, address))
        return None if word is None else (word,)
    words = tuple(found.get((function, register), -1) for register in range(address, address + count))
    return None if -1 in words else words


def _value(number: Number, outlet: int, found: Registers) -> float | None:
    words = _words(number.span(outlet), found)
    return None if words is None else number.value(words)


def _size(value: float | None) -> float | None:
    return None if value is None else abs(value)


def _why(number: Number, outlet: int, found: Registers) -> str | None:
    words = _words(number.span(outlet), found)
    return None if words is None else number.why_missing(words)


def _neighbours(parts: Sequence[_Part], most: int) -> tuple[int, list[int], int]:
    """The first parts whose rows make one without a gap, in either direction: address, contents, how many parts."""
    first, words = parts[0].row
    row = list(words)
    end = first + len(row)
    for taken, part in enumerate(parts[1:], 1):
        at, words = part.row
        n = len(words)
        if at == end and end - first + n <= most:
            row += words
            end += n
        elif at == first - n and end - first + n <= most:
            row[:0] = words
            first = at
        elif not first <= at <= end - n:  # else the same register again: a shared switch
            return first, row, taken
    return first, row, len(parts)


def _note(parts: Iterable[_Part], text: str) -> None:
    for part in parts:
        part.refused = text
