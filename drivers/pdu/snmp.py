"""The SNMP PDU driver: meters, reads limits, writes them in one batch and reads them back, as a vendor profile says."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, compress
from operator import not_

from rpi_daemon._fastpath.core import Varbind
from rpi_daemon.clock import NS_PER_S, Clock, SystemClock
from rpi_daemon.drivers.base import MayWrite, always
from rpi_daemon.drivers.pdu.profile import (
    TAGS,
    Coded,
    EnableMask,
    Limit,
    Measured,
    Meters,
    Profile,
    Restriction,
    Rows,
    Scaled,
    Threshold,
    ThresholdColumn,
    from_wire,
    oid_of,
    to_wire,
)
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpRefused, SnmpSession, SnmpTimeout
from rpi_daemon.errors import AuthError, ConfigError, DeviceError
from rpi_daemon.records import (
    ApplyResult,
    LimitState,
    LimitWrite,
    PduIdentity,
    PduReading,
    RowReading,
    SwitchAction,
    SwitchOutcome,
    WriteOutcome,
)

SYS_DESCR = "1.3.6.1.2.1.1.1.0"
SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"
QUANTITIES = ("power", "current", "voltage", "energy", "state")
SLOW_QUANTITIES = ("voltage", "energy")
SLOW_EVERY = 10  # polls: rows and what changes slowly are read with one in so many
INCONSISTENT_VALUE = 12  # error-status of RFC 3416: the value does not go with others
# readOnly, noAccess, authorizationError, notWritable: no value would be taken
DENIED = frozenset((4, 6, 16, 17))
SWITCH_LOOK_S = 0.2  # between two looks at a switched outlet's state
MAX_EXTRA_TRIPS = 2  # resends per `apply` after a refused varbind
UPTIME_STEP_S = 0.01  # TimeTicks (RFC 2578)
REBOOT_SLACK_S = 10.0  # the device's clock may lag ours by this much between two polls without a reboot
NOT_ALLOWED = "not written: the kill switch, the mode or the safe state does not allow it any more"
FACTS_RETRY_S = 30.0  # a device that just started may lack columns that it has a little later

Answers = Mapping[str, Varbind]


@dataclass(frozen=True)
class SnmpPduOptions:
    """One PDU. Raises ConfigError, one line per mistake."""

    endpoint: SnmpEndpoint
    profile: Profile
    outlets: tuple[int, ...]  # numbers on the PDU
    unit: int | None = None  # of a chain; the profile's own if None
    quantities: tuple[str, ...] = ("power", "current", "state")  # read at each poll, of QUANTITIES
    nominal_v: float | None = None  # for families whose threshold is in amperes, or that meter no power
    slow_every: int = SLOW_EVERY

    def __post_init__(self) -> None:
        most = self.profile.index.max_outlets
        mistakes = []
        if not self.outlets:
            mistakes.append("outlets is empty: name at least one")
        if len(set(self.outlets)) != len(self.outlets):
            mistakes.append(f"outlets names one twice: {list(self.outlets)}")
        if outside := [outlet for outlet in self.outlets if not 1 <= outlet <= most]:
            mistakes.append(f"outlets {outside} are outside 1..{most} of profile {self.profile.name!r}")
        if unknown := set(self.quantities) - set(QUANTITIES):
            mistakes.append(f"quantities {sorted(unknown)} are not known: choose from {', '.join(QUANTITIES)}")
        if self.slow_every < 1:
            mistakes.append(f"slow_every {self.slow_every} is below 1")
        meter, limit = self.profile.metering, self.profile.limit
        in_amperes = (limit is not None and limit.unit == "A") or (meter.power is None and meter.current is not None)
        if in_amperes and not (self.nominal_v or 0.0) > 0.0:
            mistakes.append(
                f"profile {self.profile.name!r} has thresholds or readings in amperes: nominal_v must be given, above 0"
            )
        if mistakes:
            raise ConfigError("\n".join(f"PDU {self.endpoint.host}: {mistake}" for mistake in mistakes))


@dataclass(frozen=True)
class _Facts:
    """What holds of one outlet until the device reboots."""

    digits: Mapping[str, int]  # by OID
    threshold: ThresholdColumn | None  # the column of this device, None if it has none
    lower: ThresholdColumn | None
    lower_count: int | None
    power_from: str  # the quantity that stands for power: "power", "apparent" or "current"
    complete: bool


@dataclass(frozen=True)
class _Device:
    """What holds of the whole device until it reboots."""

    places: Mapping[int, str]  # outlet number -> arcs of its row, for families with several feeds
    metered: int | None  # outlets that it meters; None: all
    rows: tuple[tuple[Rows, str], ...]  # those that it has, with the arcs of each
    digits: Mapping[str, int]  # of rows, by OID


@dataclass
class _Group:
    """The varbinds that belong to one outlet's write, and what became of them."""

    write: LimitWrite
    varbinds: list[Varbind] = field(default_factory=list)  # each right by itself, should the device take one at a time
    threshold: Varbind | None = None  # of a new limit; None for a restore
    refused: str | None = None
    t_sent_ns: int = 0
    sent: bool = False
    denied: bool = False


class SnmpPdu:
    """A PduDriver. One request in flight; not for use from two tasks at once.

    Raises DeviceError or AuthError when the device is silent, refuses us or is of another family.
    """

    def __init__(self, options: SnmpPduOptions, clock: Clock | None = None) -> None:
        self.options = options
        self.profile = options.profile
        most = min(options.endpoint.max_varbinds, self.profile.pace.get_varbinds)
        self.session = SnmpSession(replace(options.endpoint, max_varbinds=most))
        self._clock = clock or SystemClock()
        self._unit = self.profile.index.unit if options.unit is None else options.unit
        self._where = f"{options.endpoint.host} port {options.endpoint.port}"
        self._device: _Device | None = None
        self._met: Mapping[int, str] = {}  # the rows of the outlets when it was identified; outlives `open`
        self._serial = ""  # as identified; outlives `open`
        self._polls = 0
        self._facts: dict[int, _Facts] | None = None
        self._facts_due_ns = 0
        self._masks: dict[int, int] = {}
        self._followers: dict[int, int] = {}  # wire counts of the thresholds that must stay below ours, as last read
        self._uptime: tuple[int, float] | None = None  # (our clock in ns, the device's uptime in s); outlives `open`
        self._reboot_untold = False  # seen by a read that failed, for the next one to tell

    async def open(self) -> None:
        """Connect; safe to call again after an error."""
        self._forget()
        await self.session.open()

    async def close(self) -> None:
        self.session.close()

    def _forget(self) -> None:
        """What it was may not be so any more."""
        self._device = self._facts = None
        self._masks.clear()
        self._followers.clear()
        self._polls = 0

    # -- who it is

    async def identify(self) -> PduIdentity:
        """Vendor, model, firmware, serial number and outlets; refuses a device of another family than the profile's."""
        identity = self.profile.identity
        templates = (identity.model_oid, identity.serial_oid, identity.firmware_oid, identity.outlet_count_oid)
        own = [self._oid(template) for template in templates if template is not None]
        answers = await self._get([SYS_DESCR, SYS_OBJECT_ID, *own])
        descr = _text(answers.get(SYS_DESCR)) or "a device that does not say what it is"
        self._check_family(_text(answers.get(SYS_OBJECT_ID)), descr)
        await self._check_outlets(descr)
        self._met = (await self._known_device()).places

        def told(template: str | None, pattern: str | None = None) -> str:
            return self._told(answers, template, pattern)

        self._serial = told(identity.serial_oid, identity.serial_pattern)
        count_oid = identity.outlet_count_oid
        count = None if count_oid is None else _integer(answers.get(self._oid(count_oid)))
        return PduIdentity(
            vendor=self.profile.vendor,
            model=told(identity.model_oid, identity.model_pattern),
            firmware=told(identity.firmware_oid, identity.firmware_pattern),
            serial=self._serial,
            n_outlets=len(self.options.outlets) if count is None else count,
            proven=self.profile.proven != "none",
        )

    def _told(self, answers: Mapping[str, Varbind], template: str | None, pattern: str | None) -> str:
        text = "" if template is None else _text(answers.get(self._oid(template)))
        found = re.search(pattern, _text(answers.get(SYS_DESCR))) if pattern is not None and not text else None
        return found.group(1) if found is not None else text

    def _serial_oids(self) -> list[str]:
        """What tells the serial number, where the device told one when it was identified."""
        identity = self.profile.identity
        if not self._serial:
            return []
        return [SYS_DESCR if identity.serial_oid is None else self._oid(identity.serial_oid)]

    def _check_serial(self, answers: Mapping[str, Varbind]) -> None:
        """Two cables may change places between two polls, and both devices go on answering."""
        identity = self.profile.identity
        now = self._told(answers, identity.serial_oid, identity.serial_pattern)
        if now and self._serial and now != self._serial:
            raise DeviceError(
                f"PDU {self._where} has the serial number {now}, and had {self._serial} before: another device, or two"
                " addresses that changed places"
            )

    def _check_family(self, object_id: str, descr: str) -> None:
        wanted = self.profile.identity.sys_object_id
        if object_id != wanted and not object_id.startswith(wanted + "."):
            raise DeviceError(
                f"PDU {self._where} is {descr!r} (sysObjectID {object_id or 'missing'}), not the {self.profile.vendor} "
                f"family of profile {self.profile.name!r} ({wanted}): correct the profile or the address"
            )

    async def _check_outlets(self, descr: str) -> None:
        """Every configured outlet must be there and metered; says which is not."""
        device = await self._known_device()
        meter = self.profile.metering
        metered = [column.oid for column in (meter.power, meter.apparent, meter.current) if column is not None]
        templates = metered or ([] if meter.state is None else [meter.state.oid])
        answers = await self._get([self._oid(oid, outlet) for oid in templates for outlet in self.options.outlets])
        absent = [
            outlet
            for outlet in self.options.outlets
            if not _is_metered(device, outlet)
            or all(_integer(answers.get(self._oid(oid, outlet))) is None for oid in templates)
        ]
        if absent:
            what = "power" if meter.power else "current" if meter.current else "state"
            raise DeviceError(
                f"PDU {self._where} ({descr}) gives no {what} for outlets {_ranges(absent)}: "
                "correct `outlets`, or the model does not meter them"
            )

    # -- reading

    async def read(self) -> PduReading:
        """Metering, state and limits of every configured outlet, with the device's uptime. The first poll and then every
        `slow_every`th has rows, voltage and energy as well."""
        t_mono_ns = self._clock.mono_ns()
        device, facts = await self._known_device(), await self._known_facts()
        slow = self._polls % self.options.slow_every == 0
        if slow:
            self.session.may_grow()
        uptime_oid = self._oid(self.profile.uptime_oid)
        asked_ns = self._clock.mono_ns()
        answers = await self._get([uptime_oid, *self._serial_oids(), *self._read_oids(device, facts, slow)])
        self._check_serial(answers)
        uptime_s = self._uptime_s(answers.get(uptime_oid))
        if self._rebooted(asked_ns, uptime_s):
            self._reboot_untold = True
            self._forget()
            device, facts, slow = await self._known_device(), await self._known_facts(), True
            answers = await self._get(self._read_oids(device, facts, slow))
        self._polls += 1
        limits = {}
        if self.profile.limit is not None:
            limits = {o: self._limit_state(self.profile.limit, o, facts[o], answers) for o in self.options.outlets}
        rebooted, self._reboot_untold = self._reboot_untold, False
        power_w, apparent = self._power(device, facts, answers)
        quantities = self._quantities(slow)
        return PduReading(
            t_mono_ns=t_mono_ns,
            uptime_s=uptime_s,
            power_w=power_w,
            current_a=self._measured("current", quantities, device, facts, answers),
            on=self._states(answers),
            limits=limits,
            energy_wh=self._measured("energy", quantities, device, facts, answers),
            rebooted=rebooted,
            voltage_v=self._measured("voltage", quantities, device, facts, answers),
            apparent=apparent,
            rows=self._rows(device, answers) if slow else {},
        )

    async def read_details(self) -> dict[int, RowReading]:
        """Everything that each outlet tells, thresholds and hysteresis included; polls ask for
        less. Thresholds are in A or W as the device has them, the limit among them."""
        device, facts = await self._known_device(), await self._known_facts()
        meter, thresholds = self.profile.metering, self.profile.thresholds
        templates = [*_oids(meter, meter.load), *(t.oid for t in thresholds)]
        digits = [t.digits_oid for t in thresholds if t.digits_oid is not None]
        outlets = self.options.outlets
        oids = [self._oid(template, outlet) for template in [*templates, *digits] for outlet in outlets]
        own = {o: [c.oid for c in (facts[o].threshold, facts[o].lower) if c is not None] for o in outlets}
        oids += [self._oid(template, outlet) for outlet in outlets for template in own[outlet]]
        answers = await self._get(list(dict.fromkeys(oids)))
        details = {}
        for outlet in outlets:
            oid = partial(self._oid, outlet=outlet)
            known = {**facts[outlet].digits, **_digits(answers, map(oid, digits))}
            limit = self._own_threshold(outlet, facts[outlet], answers)
            found = {**_thresholds(thresholds, oid, known, answers), **limit}
            details[outlet] = _row("outlet", meter if _is_metered(device, outlet) else None, oid, known, answers)
            details[outlet] = replace(details[outlet], state=_word(meter.load, oid, answers), thresholds=found)
        return details

    def _own_threshold(self, outlet: int, facts: _Facts, answers: Answers) -> dict[str, float]:
        """The limit, and what must stay below it, in the device's own unit."""
        limit = self.profile.limit
        step = None if limit is None else _step(limit, partial(self._oid, outlet=outlet), facts.digits)
        if limit is None or step is None:
            return {}
        below = f"upper_warning_{limit.unit.lower()}"
        columns = {limit.name: facts.threshold, below: facts.lower}
        asked = {name: column.oid for name, column in columns.items() if column is not None}
        counts = {n: limit.counted(_integer(answers.get(self._oid(oid, outlet)))) for n, oid in asked.items()}
        return {name: from_wire(count, step) for name, count in counts.items() if count is not None}

    def _quantities(self, slow: bool) -> tuple[str, ...]:
        extra = [q for q in SLOW_QUANTITIES if slow and q not in self.options.quantities]
        return (*self.options.quantities, *extra)

    def _read_oids(self, device: _Device, facts: Mapping[int, _Facts], slow: bool) -> list[str]:
        """In groups of one column: some devices answer neighbours of a column faster than a mix."""
        meter = self.profile.metering
        outlets = self.options.outlets
        oids = []
        for quantity in self._quantities(slow):
            column = getattr(meter, quantity, None)
            if quantity == "power":
                column = getattr(meter, _power_source(facts))
            if column is not None:
                oids += [self._oid(column.oid, outlet) for outlet in outlets]
            if isinstance(column, Measured) and column.valid is not None:
                oids += [self._oid(column.valid.oid, outlet) for outlet in outlets]
        oids += [oid for outlet in outlets for oid in self._limit_oids(outlet, facts[outlet])]
        if slow:
            oids += [self._oid(template, row=place) for rows, place in device.rows for template in _row_oids(rows)]
        return list(dict.fromkeys(oids))

    def _limit_oids(self, outlet: int, facts: _Facts) -> list[str]:
        """Threshold, mask and follower of one outlet, as far as the device has them."""
        limit = self.profile.limit
        if limit is None or facts.threshold is None:
            return []
        oids = [self._oid(facts.threshold.oid, outlet)]
        if limit.enable is not None:
            oids.append(self._oid(limit.enable.oid, outlet))
        if facts.lower is not None and _follows(limit, facts):
            oids.append(self._oid(facts.lower.oid, outlet))
        return oids

    def _measured(
        self,
        quantity: str,
        quantities: Sequence[str],
        device: _Device,
        facts: Mapping[int, _Facts],
        answers: Answers,
    ) -> dict[int, float | None]:
        column = getattr(self.profile.metering, quantity)
        if column is None or quantity not in quantities:
            return {}
        return {o: self._of_outlet(column, o, device, facts[o], answers) for o in self.options.outlets}

    def _power(
        self, device: _Device, facts: Mapping[int, _Facts], answers: Answers
    ) -> tuple[dict[int, float | None], frozenset[int]]:
        """Power per outlet, and the outlets for which it is volt-amperes: metered as such, or amperes x nominal voltage."""
        meter = self.profile.metering
        if "power" not in self.options.quantities:
            return {}, frozenset()
        source = _power_source(facts)
        column: Measured | None = getattr(meter, source)
        if column is None:
            return dict.fromkeys(self.options.outlets), frozenset()
        power = {o: self._of_outlet(column, o, device, facts[o], answers) for o in self.options.outlets}
        if source == "current":
            nominal_v = self.options.nominal_v
            power = {o: None if a is None or nominal_v is None else a * nominal_v for o, a in power.items()}
        apparent = () if source == "power" else (outlet for outlet, value in power.items() if value is not None)
        return power, frozenset(apparent)

    def _of_outlet(
        self, column: Measured, outlet: int, device: _Device, facts: _Facts, answers: Answers
    ) -> float | None:
        if not _is_metered(device, outlet):
            return None
        return _value(column, partial(self._oid, outlet=outlet), facts.digits, answers)

    def _rows(self, device: _Device, answers: Answers) -> dict[str, RowReading]:
        found = {}
        for rows, place in device.rows:
            oid = partial(self._oid, row=place)
            found[f"{rows.kind} {place}"] = replace(
                _row(rows.kind, rows, oid, device.digits, answers),
                state=_word(rows.state, oid, answers),
                restriction=_word(rows.restriction, oid, answers),
                thresholds=_thresholds(rows.thresholds, oid, device.digits, answers),
            )
        return found

    def _states(self, answers: Answers) -> dict[int, bool | None]:
        state = self.profile.metering.state
        if state is None or "state" not in self.options.quantities:
            return {}
        on: dict[int, bool | None] = {}
        for outlet in self.options.outlets:
            code = _integer(answers.get(self._oid(state.oid, outlet)))
            on[outlet] = True if code in state.on else False if code in state.off else None
        return on

    def _limit_state(self, limit: Limit, outlet: int, facts: _Facts, answers: Answers) -> LimitState:
        oids = self._limit_oids(outlet, facts)
        if not oids:
            return LimitState(None, None, limit.kind)
        found = [answers.get(oid) for oid in oids]
        raw = tuple((v.oid, v.tag, v.value) for v in found if v is not None and v.value is not None)
        enabled: bool | None = True
        if limit.enable is not None:
            mask = self._mask(limit.enable, outlet, answers)
            enabled = None if mask is None else limit.enable.is_on(mask)
        count = _integer(found[0])
        if count in limit.none:
            count, enabled = None, False
        if _follows(limit, facts) and (follower := _integer(found[-1])) is not None:
            self._followers[outlet] = follower
        limit_w = self._watts(limit, count, outlet, facts)
        step = self._limit_step(limit, outlet, facts)
        step_w = None if step is None else float(step * limit.granularity)
        volts = self.options.nominal_v if limit.unit == "A" else None
        return LimitState(limit_w, enabled, limit.kind, raw if len(raw) == len(oids) else (), step_w, volts)

    def _mask(self, enable: EnableMask, outlet: int, answers: Answers) -> int | None:
        """The outlet's mask in `answers`, remembered for the next write."""
        varbind = answers.get(self._oid(enable.oid, outlet))
        value = None if varbind is None else varbind.value
        mask = enable.decode(value) if isinstance(value, int | bytes) else None
        if mask is None:
            self._masks.pop(outlet, None)
        else:
            self._masks[outlet] = mask
        return mask

    def _watts(self, limit: Limit, count: int | None, outlet: int, facts: _Facts) -> float | None:
        step = self._limit_step(limit, outlet, facts)
        count = limit.counted(count)
        return None if count is None or step is None else from_wire(count, step)

    def _limit_step(self, limit: Limit, outlet: int, facts: _Facts) -> Fraction | None:
        """Watts of one wire count. For thresholds in amperes: at the nominal voltage and power factor 1, so that what the
        amperes carry is at most the watts asked."""
        step = _step(limit, partial(self._oid, outlet=outlet), facts.digits)
        if step is None or limit.unit == "W":
            return step
        return step * Fraction(str(self.options.nominal_v))

    # -- facts that hold until a reboot

    async def _known_device(self) -> _Device:
        """Asked once after each start of the device: where its outlets are, how many it meters, which rows it has."""
        if self._device is None:
            # a feed that is away after a restart must not give its outlets' numbers to those of the next one
            places = self._met or await self._places()
            meter = self.profile.metering
            candidates = [(rows, place) for rows in self.profile.rows for place in rows.suffixes()]
            columns = [[self._oid(oid, row=place) for oid in _oids(rows, rows.state)] for rows, place in candidates]
            metered_oid = None if meter.metered_oid is None else self._oid(meter.metered_oid)
            asked = [*chain.from_iterable(columns), *([metered_oid] if metered_oid else [])]
            answers = await self._get(list(dict.fromkeys(asked)))
            there = tuple(
                row
                for row, oids in zip(candidates, columns, strict=True)
                if any(_integer(answers.get(oid)) is not None for oid in oids)
            )
            digits = [self._oid(oid, row=place) for rows, place in there for oid in _digits_templates(rows)]
            known = _digits(await self._get(list(dict.fromkeys(digits))), digits)
            metered = None if metered_oid is None else _integer(answers.get(metered_oid))
            self._device = _Device(places, metered, there, known)
        return self._device

    async def _places(self) -> dict[int, str]:
        """For families with several feeds: the outlets that there are, in order of feed and outlet."""
        feeds = self.profile.index.feeds
        if feeds is None:
            return {}

        async def present(arcs: Sequence[str]) -> list[str]:
            oids = {oid_of(feeds.oid, unit=self._unit, outlet=arc): arc for arc in arcs}
            answers = await self._get(list(oids))
            return [arc for oid, arc in oids.items() if (found := answers.get(oid)) and found.value is not None]

        firsts = await present([f"{feed}.1" for feed in range(1, feeds.feeds + 1)])
        numbers = range(1, feeds.outlets + 1)
        arcs = await present([f"{first.split('.')[0]}.{number}" for first in firsts for number in numbers])
        return dict(enumerate(arcs, 1))

    async def _known_facts(self) -> dict[int, _Facts]:
        """Asked once after each start of the device; what was lacking is asked again now and then."""
        await self._known_device()
        now_ns = self._clock.mono_ns()
        known = self._facts or {}
        lacking = [o for o in self.options.outlets if o not in known or not known[o].complete]
        if known and now_ns < self._facts_due_ns:
            lacking = []
        if lacking:
            answers = await self._get([oid for outlet in lacking for oid in self._fact_oids(outlet)])
            self._facts = {**known, **{outlet: self._fact(outlet, answers) for outlet in lacking}}
            self._facts_due_ns = now_ns + round(FACTS_RETRY_S * NS_PER_S)
        assert self._facts is not None
        return self._facts

    def _digits_oids(self, outlet: int) -> list[str]:
        columns: list[Scaled | None] = [*self.profile.metering.columns().values(), self.profile.limit]
        oids = [self._oid(c.digits_oid, outlet) for c in columns if c is not None and c.digits_oid is not None]
        return list(dict.fromkeys(oids))

    def _fact_oids(self, outlet: int) -> list[str]:
        oids = self._digits_oids(outlet)
        limit, meter = self.profile.limit, self.profile.metering
        if limit is not None:
            columns = [*limit.columns, *(limit.lower.columns if limit.lower is not None else ())]
            oids += [self._oid(column.oid, outlet) for column in columns]
        sources = (meter.power, meter.apparent)
        return oids + [self._oid(column.oid, outlet) for column in sources if column is not None]

    def _fact(self, outlet: int, answers: Answers) -> _Facts:
        digits = _digits(answers, self._digits_oids(outlet))
        limit, meter = self.profile.limit, self.profile.metering

        def present(columns: Iterable[ThresholdColumn]) -> ThresholdColumn | None:
            return next((c for c in columns if _integer(answers.get(self._oid(c.oid, outlet))) is not None), None)

        def metered(column: Measured | None) -> bool:
            return column is not None and _integer(answers.get(self._oid(column.oid, outlet))) is not None

        threshold = None if limit is None else present(limit.columns)
        lower = None if limit is None or limit.lower is None else present(limit.lower.columns)
        lower_count = None if lower is None else _integer(answers.get(self._oid(lower.oid, outlet)))
        power_from = "power" if metered(meter.power) else "apparent" if metered(meter.apparent) else "current"
        complete = len(digits) == len(self._digits_oids(outlet)) and (limit is None or threshold is not None)
        complete = complete and (meter.power is None or power_from == "power")
        return _Facts(digits, threshold, lower, lower_count, power_from, complete)

    def _rebooted(self, asked_ns: int, uptime_s: float | None) -> bool:
        """Whether the device's clock fell behind ours since the last poll, or began after it; a wrap after 497 days counts as well.

        `asked_ns`: just before it was asked for.
        """
        last, self._uptime = self._uptime, None if uptime_s is None else (asked_ns, uptime_s)
        if last is None or uptime_s is None:
            return False
        since_s = (asked_ns - last[0]) / NS_PER_S
        return uptime_s < max(last[1], last[1] + since_s - REBOOT_SLACK_S, since_s - UPTIME_STEP_S)

    def _uptime_s(self, varbind: Varbind | None) -> float | None:
        ticks = _integer(varbind)
        return None if ticks is None else ticks / 100.0

    # -- writing

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite = always) -> ApplyResult:
        """Write one batch, read it back, report both. What the device said of the SET is kept in `refused`; whether the
        limit is in force is decided by the read-back alone. `may_write` is asked about each write immediately before
        every message that carries it. Raises when neither write nor read-back got an answer."""
        if len({write.outlet for write in writes}) != len(writes):
            raise ValueError("one batch names an outlet twice")
        requests_before = self.session.counters.requests
        facts = await self._with_fresh_masks(writes)
        groups = [self._group(write, facts) for write in writes]
        answered = await self._send(groups, may_write)
        answers, t_verified_ns = await self._read_back(groups, facts, answered)
        outcomes = tuple(self._outcome(group, facts, answers, t_verified_ns) for group in groups)
        return ApplyResult(outcomes, self.session.counters.requests - requests_before)

    async def _with_fresh_masks(self, writes: Sequence[LimitWrite]) -> dict[int, _Facts]:
        """The facts, after asking again where a mask will be written: its other bits and the lower threshold are somebody
        else's, and what they were at the last poll must not be put back over a later change."""
        facts = await self._known_facts()
        limit = self.profile.limit
        if limit is None or limit.enable is None:
            return facts
        stale = []
        for write in writes:
            count = None if write.restore is not None else self._count(limit, write, facts)
            if count is None or not limit.minimum <= count <= limit.maximum:
                continue
            mask = self._masks.get(write.outlet)
            if mask is None or _wanted_mask(limit, facts[write.outlet], mask, count) != mask:
                stale.append(write.outlet)
        lower = {o: self._oid(column.oid, o) for o in stale if (column := facts[o].lower) is not None}
        answers = await self._get([*(self._oid(limit.enable.oid, outlet) for outlet in stale), *lower.values()])
        for outlet in stale:
            self._mask(limit.enable, outlet, answers)
            if outlet in lower:
                facts[outlet] = replace(facts[outlet], lower_count=_integer(answers.get(lower[outlet])))
        return facts

    def _count(self, limit: Limit, write: LimitWrite, facts: Mapping[int, _Facts]) -> int | None:
        """The asked limit on the wire; None where the device has no such threshold."""
        known = facts.get(write.outlet)
        if known is None or known.threshold is None:
            return None
        step = self._limit_step(limit, write.outlet, known)
        return None if step is None else to_wire(write.limit_w, step, limit.granularity)

    def _group(self, write: LimitWrite, facts: Mapping[int, _Facts]) -> _Group:
        group = _Group(write)
        limit = self.profile.limit
        if write.outlet not in facts:
            group.refused = f"outlet {write.outlet} is not one of this PDU's configured outlets"
        elif limit is None:
            group.refused = f"profile {self.profile.name!r} has no limit to write"
        elif write.restore is not None:
            found = {entry[0]: _varbind(*entry) for entry in write.restore.raw}
            group.varbinds = self._one_by_one(limit, write.outlet, facts[write.outlet], found)
            if not group.varbinds:
                group.refused = "nothing to restore: the value found at first contact is not known"
        else:
            self._fill(group, limit, facts)
        return group

    def _fill(self, group: _Group, limit: Limit, facts: Mapping[int, _Facts]) -> None:
        """The varbinds of a new limit, or why there are none."""
        outlet, limit_w = group.write.outlet, group.write.limit_w
        known = facts[outlet]
        count = self._count(limit, group.write, facts)
        mask = self._masks.get(outlet)
        if count is None or known.threshold is None:
            group.refused = "the device has no such threshold for this outlet"
        elif not limit.minimum <= count <= limit.maximum:
            low, high = (self._watts(limit, bound, outlet, known) for bound in (limit.minimum, limit.maximum))
            group.refused = f"{limit_w:g} W is outside what the device takes: {low:g}..{high:g} W"
        elif limit.enable is not None and mask is None:
            group.refused = "the device does not tell which thresholds are enabled"
        else:
            group.threshold = Varbind(self._oid(known.threshold.oid, outlet), TAGS[known.threshold.type], count)
            new = [group.threshold]
            if known.lower is not None and _follows(limit, known):
                below = max(count - limit.granularity, limit.lowest_follower)
                new.append(Varbind(self._oid(known.lower.oid, outlet), TAGS[known.lower.type], below))
            if limit.enable is not None and mask is not None:
                wanted = _wanted_mask(limit, known, mask, count)
                if wanted != mask:  # an unchanged mask is not written: its flash wears as well
                    oid = self._oid(limit.enable.oid, outlet)
                    new.append(Varbind(oid, TAGS[limit.enable.type], limit.enable.encode(wanted)))
            group.varbinds = self._one_by_one(limit, outlet, known, {varbind.oid: varbind for varbind in new})

    def _one_by_one(self, limit: Limit, outlet: int, facts: _Facts, new: Mapping[str, Varbind]) -> list[Varbind]:
        """`new` in an order in which a device may take them one at a time: a session parts what is too big for it.

        What must stay below goes first where the new threshold is below it. A mask goes last, lest it enables a threshold
        that nobody chose, but first where it switches off.
        """
        if facts.threshold is None:
            return list(new.values())
        order = [self._oid(facts.threshold.oid, outlet)]
        count = _integer(new.get(order[0]))
        if facts.lower is not None and _follows(limit, facts):
            stands = self._followers.get(outlet, facts.lower_count)
            below = count is not None and stands is not None and count < stands
            order.insert(0 if below else 1, self._oid(facts.lower.oid, outlet))
        if limit.enable is not None:
            oid = self._oid(limit.enable.oid, outlet)
            order.insert(0 if self._switches_off(limit, limit.enable, outlet, new.get(oid)) else len(order), oid)
        order += [oid for oid in new if oid not in order]
        return [new[oid] for oid in order if oid in new]

    def _switches_off(self, limit: Limit, enable: EnableMask, outlet: int, varbind: Varbind | None) -> bool:
        """Whether a mask switches off our threshold that is on, or the lower one beside it."""
        before = self._masks.get(outlet)
        value = None if varbind is None else varbind.value
        after = enable.decode(value) if isinstance(value, int | bytes) else None
        if before is None or after is None or not enable.is_on(before):
            return False
        if not enable.is_on(after):
            return True
        bit = None if limit.lower is None else limit.lower.bit
        return bit is not None and enable.is_on(before, bit) and not enable.is_on(after, bit)

    async def _send(self, groups: Sequence[_Group], may_write: MayWrite) -> bool:
        """Send every group, in as few messages as the device takes. Returns whether any of them was answered."""
        most = min(self.profile.pace.batch_varbinds, self.options.endpoint.max_varbinds)
        waiting = _batches([group for group in groups if group.varbinds], most)
        extra = 0
        answered = False
        while waiting:
            batch = waiting.pop(0)
            allowed = [may_write(group.write) for group in batch]
            _note(compress(batch, map(not_, allowed)), NOT_ALLOWED)
            batch = list(compress(batch, allowed))
            if not batch:
                continue
            now_ns = self._clock.mono_ns()
            for group in batch:
                group.t_sent_ns, group.sent = now_ns, True
            try:
                await self.session.set(
                    [varbind for group in batch for varbind in group.varbinds],
                    partial(_all_allowed, batch, may_write),
                )
                answered = True
                _note(batch, None)
            except AuthError:
                raise
            except SnmpRefused as refusal:
                answered = True
                _deny(batch, refusal)
                if refusal.status == INCONSISTENT_VALUE:
                    self._facts = None  # another threshold is not what we took it for
                for part in _after_refusal(batch, refusal):
                    extra += 1
                    if extra <= MAX_EXTRA_TRIPS:
                        waiting.insert(0, part)
                    else:
                        _note(part, f"not written, another outlet of the batch was refused: {refusal}")
            except SnmpTimeout as error:  # one batch's repetitions are silence enough
                _note([*batch, *chain.from_iterable(waiting)], str(error))
                break
            except DeviceError as error:
                _note(batch, str(error))
        return answered

    async def _read_back(
        self, groups: Sequence[_Group], facts: Mapping[int, _Facts], answered: bool
    ) -> tuple[Answers, int]:
        """Everything that was written, and the whole limit of each outlet, with the time of the answer."""
        sent = [group for group in groups if group.sent]
        oids = [varbind.oid for group in sent for varbind in group.varbinds]
        oids += [oid for group in sent for oid in self._limit_oids(group.write.outlet, facts[group.write.outlet])]
        try:
            # a device that was silent to every SET is asked once: it is away, or slow with SETs only
            answers = await self._get(list(dict.fromkeys(oids)), retries=None if answered else 0)
        except AuthError:
            raise
        except DeviceError as error:
            if not answered:
                raise
            _note(sent, f"written, but the read-back failed: {error}")
            answers = {}
        return answers, self._clock.mono_ns()

    def _outcome(
        self, group: _Group, facts: Mapping[int, _Facts], answers: Answers, t_verified_ns: int
    ) -> WriteOutcome:
        outlet = group.write.outlet
        verified, read_back_w, disabled, refused = False, None, False, group.refused
        limit = self.profile.limit
        if group.sent and limit is not None:
            state = self._limit_state(limit, outlet, facts[outlet], answers)
            read_back_w, disabled = state.limit_w, state.enabled is False
            if group.threshold is None:
                verified = all(_same(varbind, answers.get(varbind.oid)) for varbind in group.varbinds)
            else:
                taken = _same(group.threshold, answers.get(group.threshold.oid))
                verified = taken and state.enabled is True
                if taken and state.enabled is False and refused is None:
                    refused = "the threshold was written, but the device keeps it disabled"
        return WriteOutcome(
            outlet=outlet,
            asked_w=group.write.limit_w,
            read_back_w=read_back_w,
            verified=verified,
            refused=refused,
            t_sent_ns=group.t_sent_ns,
            t_verified_ns=t_verified_ns if verified else None,
            denied=group.denied and not verified,
            disabled=disabled,
        )

    # -- switching

    async def switch(
        self, outlet: int, action: SwitchAction, may_write: Callable[[], bool] = lambda: True
    ) -> SwitchOutcome:
        """Switch one outlet, and look at its state until it followed or `switching.settle_s` is over. `may_write` is asked
        immediately before each message that carries the command. Raises when the device gives no answer at all."""
        device = await self._known_device()
        command, why_not = await self._command(device, outlet, action)
        refused = why_not
        sent_ns = self._clock.mono_ns()
        if command is None:
            return SwitchOutcome(outlet, action, None, False, refused, sent_ns, None)
        if not may_write():
            return SwitchOutcome(outlet, action, None, False, NOT_ALLOWED, sent_ns, None)
        try:
            await self.session.set([command], may_write)
        except AuthError:
            raise
        except DeviceError as error:  # refused, or the answer was lost: what the outlet does now decides
            refused = str(error)
        on, verified = await self._watch(outlet, action, patient=refused is None)
        return SwitchOutcome(
            outlet, action, on, verified, refused, sent_ns, self._clock.mono_ns() if verified else None
        )

    async def _command(self, device: _Device, outlet: int, action: SwitchAction) -> tuple[Varbind | None, str | None]:
        """What to send, or why nothing is sent."""
        switching = self.profile.switching
        command = None if switching is None else getattr(switching, action.value)
        if switching is None or command is None:
            return None, f"profile {self.profile.name!r} cannot switch outlets: no {action.value} command is known"
        if outlet not in self.options.outlets:
            return None, f"outlet {outlet} is not one of this PDU's configured outlets"
        if switching.switchable is not None:
            oid = self._oid(switching.switchable.oid, outlet)
            if _integer((await self._get([oid])).get(oid)) not in switching.switchable.yes:
                return None, f"the device says that outlet {outlet} cannot be switched"
        return Varbind(self._oid(command.oid, outlet), TAGS[command.type], command.value), None

    async def _watch(self, outlet: int, action: SwitchAction, patient: bool) -> tuple[bool | None, bool]:
        """The outlet's state, and whether it followed the command. A reboot has been followed once the outlet was off."""
        wanted = action is SwitchAction.ON
        switching, state = self.profile.switching, self.profile.metering.state
        assert switching is not None
        assert state is not None
        looks = max(1, round(switching.settle_s / SWITCH_LOOK_S)) if patient else 1
        oid = self._oid(state.oid, outlet)
        on: bool | None = None
        for look in range(looks):
            code = _integer((await self._get([oid])).get(oid))
            on = True if code in state.on else False if code in state.off else None
            if on is wanted:
                return on, True
            if look + 1 < looks:
                await asyncio.sleep(SWITCH_LOOK_S)
        return on, False

    # -- the wire

    async def _get(self, oids: Sequence[str], retries: int | None = None) -> dict[str, Varbind]:
        """What the device has of `oids`, by OID; what it does not have carries no value."""
        return {varbind.oid: varbind for varbind in await self.session.get(oids, retries=retries)} if oids else {}

    def _oid(self, template: str, outlet: int = 0, row: str = "") -> str:
        places = {} if self._device is None else self._device.places
        return oid_of(template, unit=self._unit, outlet=places.get(outlet, outlet), row=row)


def _power_source(facts: Mapping[int, _Facts]) -> str:
    """The quantity that stands for power on this device: what no outlet has is taken from the next best one."""
    found = {known.power_from for known in facts.values()}
    return next((source for source in ("power", "apparent") if source in found), "current")


def _is_metered(device: _Device, outlet: int) -> bool:
    return device.metered is None or outlet <= device.metered


def _step(column: Scaled, oid: Callable[[str], str], digits: Mapping[str, int]) -> Fraction | None:
    """One wire count in the column's unit; None while the device's decimal digits are not known."""
    if column.digits_oid is None:
        return column.step()
    known = digits.get(oid(column.digits_oid))
    return None if known is None else column.step(known)


def _value(column: Measured, oid: Callable[[str], str], digits: Mapping[str, int], answers: Answers) -> float | None:
    """A measured number; None for whatever is not one."""
    varbind = answers.get(oid(column.oid))
    count = None if varbind is None else column.count(varbind.value)
    step = _step(column, oid, digits)
    if count is None or step is None:
        return None
    if column.valid is not None and _integer(answers.get(oid(column.valid.oid))) in column.valid.invalid:
        return None
    return from_wire(count, step)


def _digits(answers: Answers, oids: Iterable[str]) -> dict[str, int]:
    """Decimal digits by OID, where they are such."""
    found = {oid: _integer(answers.get(oid)) for oid in oids}
    return {oid: value for oid, value in found.items() if value is not None and -9 <= value <= 9}


def _row(
    kind: str, meters: Meters | None, oid: Callable[[str], str], digits: Mapping[str, int], answers: Answers
) -> RowReading:
    """What the measured columns say; nothing at all where there are none."""

    def value(column: Measured | None) -> float | None:
        return None if column is None else _value(column, oid, digits, answers)

    if meters is None:
        return RowReading(kind)
    return RowReading(
        kind,
        power_w=value(meters.power),
        current_a=value(meters.current),
        voltage_v=value(meters.voltage),
        apparent_va=value(meters.apparent),
        energy_wh=value(meters.energy),
        power_factor=value(meters.power_factor),
        rating_a=value(meters.rating),
    )


def _thresholds(
    thresholds: Iterable[Threshold], oid: Callable[[str], str], digits: Mapping[str, int], answers: Answers
) -> dict[str, float]:
    """Those that the device has, by level and unit."""
    found = {}
    for threshold in thresholds:
        count = threshold.counted(_integer(answers.get(oid(threshold.oid))))
        step = _step(threshold, oid, digits)
        if count is not None and step is not None:
            found[threshold.name] = from_wire(count, step)
    return found


def _word(column: Coded | Restriction | None, oid: Callable[[str], str], answers: Answers) -> str | None:
    return None if column is None else column.word(_integer(answers.get(oid(column.oid))))


def _oids(meters: Meters, *others: Coded | Restriction | None) -> list[str]:
    """The templates of measured columns, with what says whether they are valid."""
    columns = meters.columns().values()
    oids = [column.oid for column in columns]
    oids += [column.valid.oid for column in columns if column.valid is not None]
    return oids + [column.oid for column in others if column is not None]


def _row_oids(rows: Rows) -> list[str]:
    return [*_oids(rows, rows.state, rows.restriction), *(threshold.oid for threshold in rows.thresholds)]


def _digits_templates(rows: Rows) -> list[str]:
    columns: list[Scaled] = [*rows.columns().values(), *rows.thresholds]
    return [column.digits_oid for column in columns if column.digits_oid is not None]


def _follows(limit: Limit, facts: _Facts) -> bool:
    """Whether another threshold of the outlet is kept below ours."""
    return limit.lower is not None and limit.lower.rule == "follow" and facts.lower is not None


def _wanted_mask(limit: Limit, facts: _Facts, mask: int, count: int) -> int:
    """`mask` with our threshold on, and the lower one off where the device would not have it above ours."""
    if limit.enable is None:
        return mask
    wanted = limit.enable.switched(mask, True)
    if limit.lower is not None and limit.lower.bit is not None and (facts.lower_count or 0) > count:
        wanted = limit.enable.switched(wanted, False, limit.lower.bit)
    return wanted


def _batches(groups: Sequence[_Group], most: int) -> list[list[_Group]]:
    """Groups in order, at most `most` varbinds together; a group is never torn."""
    batches: list[list[_Group]] = []
    size = most
    for group in groups:
        if size + len(group.varbinds) > most:
            batches.append([])
            size = 0
        batches[-1].append(group)
        size += len(group.varbinds)
    return batches


def _deny(batch: Sequence[_Group], refusal: SnmpRefused) -> None:
    """Mark the outlets that may not be written at all: the named one, or all where none is named."""
    if refusal.status not in DENIED:
        return
    place = 0
    for group in batch:
        place += len(group.varbinds)
        if not refusal.index or place - len(group.varbinds) < refusal.index <= place:
            group.denied = True


def _after_refusal(batch: Sequence[_Group], refusal: SnmpRefused) -> list[list[_Group]]:
    """Mark the outlet that the error index names; what to send again. Without an index: both halves apart."""
    place = 0
    for number, group in enumerate(batch):
        place += len(group.varbinds)
        if 0 < refusal.index <= place:
            group.refused = str(refusal)
            rest = [*batch[:number], *batch[number + 1 :]]
            return [rest] if rest else []
    _note(batch, str(refusal))
    half = len(batch) // 2
    return [list(batch[half:]), list(batch[:half])] if half else []


def _all_allowed(groups: Iterable[_Group], may_write: MayWrite) -> bool:
    return all(may_write(group.write) for group in groups)


def _note(groups: Iterable[_Group], text: str | None) -> None:
    for group in groups:
        group.refused = text


def _same(asked: Varbind, found: Varbind | None) -> bool:
    return found is not None and found.value is not None and found.value == asked.value


def _varbind(oid: str, tag: int, value: object) -> Varbind:
    """A found value as it goes back on the wire."""
    if not isinstance(value, int | bytes | str):
        raise ValueError(f"a found value must be a number or octets, {oid} has {value!r}")
    return Varbind(oid, tag, value)


def _integer(varbind: Varbind | None) -> int | None:
    """The number, or None for whatever is not one: no such object, a zero-length INTEGER, another type."""
    return varbind.value if varbind is not None and isinstance(varbind.value, int) else None


def _text(varbind: Varbind | None) -> str:
    value = None if varbind is None else varbind.value
    return value.decode("utf-8", errors="replace").strip() if isinstance(value, bytes) else str(value or "")


def _ranges(numbers: Sequence[int]) -> str:
    """`1-3, 7` for 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
