"""A simulated PDU: a pysnmp agent (v2c and v3) that answers from a vendor profile or from a real device's recording."""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from pysnmp.carrier.asyncio.dgram import udp
from pysnmp.entity import config, engine
from pysnmp.entity.rfc3413 import cmdrsp, context
from pysnmp.proto import rfc1902, rfc1905
from pysnmp.proto.api import v2c

from rpi_daemon.drivers.control_line import obey_lines, say
from rpi_daemon.drivers.pdu.profile import (
    Action,
    Bounded,
    EnableMask,
    Limit,
    Meters,
    Profile,
    Restriction,
    Rows,
    Scaled,
    Threshold,
    ThresholdColumn,
    load_profile,
    oid_of,
)
from rpi_daemon.drivers.pdu.snmprec import Oid, Value, parse_oid, read_snmprec
from rpi_daemon.errors import ConfigError, RpiError

SYS_DESCR, SYS_OBJECT_ID, SYS_UPTIME, SYS_NAME = (
    (1, 3, 6, 1, 2, 1, 1, 1, 0),
    (1, 3, 6, 1, 2, 1, 1, 2, 0),
    (1, 3, 6, 1, 2, 1, 1, 3, 0),
    (1, 3, 6, 1, 2, 1, 1, 5, 0),
)
INTEGER, OCTETS, GAUGE32, TIMETICKS = 2, 4, 66, 67
# SNMP error-status numbers (RFC 3416 section 3)
TOO_BIG, GEN_ERR, WRONG_TYPE, WRONG_LENGTH, WRONG_VALUE = 1, 5, 7, 8, 10
NO_ACCESS, INCONSISTENT_VALUE, NOT_WRITABLE = 6, 12, 17
REBOOT_S = 5.0  # an outlet is off for so long when it is rebooted
POWER_FACTOR = 0.95  # of every load

_ASN1 = {
    2: rfc1902.Integer32,
    4: rfc1902.OctetString,
    5: rfc1902.Null,
    6: rfc1902.ObjectIdentifier,
    64: rfc1902.IpAddress,
    65: rfc1902.Counter32,
    66: rfc1902.Gauge32,
    67: rfc1902.TimeTicks,
    70: rfc1902.Counter64,
}
_PROFILE_TAGS = {"integer": 2, "bits": 4, "text": 4, "counter32": 65, "gauge32": 66, "counter64": 70}
_AUTH = {
    "SHA-1": config.USM_AUTH_HMAC96_SHA,
    "SHA-256": config.USM_AUTH_HMAC192_SHA256,
    "SHA-512": config.USM_AUTH_HMAC384_SHA512,
    None: config.USM_AUTH_NONE,
}
_PRIV = {"AES-128": config.USM_PRIV_CFB128_AES, None: config.USM_PRIV_NONE}


@dataclass(frozen=True)
class Faults:
    """What is wrong with the device right now; the default is nothing."""

    delay_s: float = 0.0
    drop: int = 0  # this many of the next answers are not sent; -1 = none is sent any more
    duplicate: bool = False
    wrong_address: bool = False  # answers come from where nobody asked
    ignore_set: bool = False  # says yes, changes nothing
    clamp_w: float | None = None  # no limit above this is taken; a higher one becomes this
    refuse: tuple[int, ...] = ()  # outlets whose SET is refused; 0 = every outlet
    read_only: bool = False  # the user may read and not write: noAccess for every SET
    refuse_but_apply: bool = False  # says genErr, and applies
    too_big_above: int = 0  # more varbinds than this are answered tooBig; 0 = no bound


@dataclass(frozen=True)
class SimUser:
    """One SNMPv3 user; requests below its level of security are refused. Keys are passphrases."""

    name: str
    auth: str | None = "SHA-256"
    auth_key: str = ""
    priv: str | None = "AES-128"
    priv_key: str = ""


class _Refused(Exception):
    def __init__(self, status: int, index: int) -> None:
        super().__init__(status, index)
        self.status = status
        self.index = index


Cell = tuple[int, Value | Callable[[], int | bytes]]


@dataclass(frozen=True)
class _Setting:
    """One object that a SET may change. `outlet` 0: of no outlet."""

    outlet: int
    what: Bounded | EnableMask | Restriction | Action


class PduSimulator:
    """A PDU on a UDP port, as the network sees it.

    profile:   which objects exist, and which of them a SET may change.
    power_w:   draw of an outlet by its number, W, asked at each reading; constant 100 W if not given.
    current_a: its RMS current, A; power over voltage if not given. supply_v: its voltage, V; `voltage_v` if not given.
    recording: `.snmprec` file to answer from instead; the profile then says what is writable and fixes printed BITS.
    digits:    decimal digits per quantity ("power", "current", ...) where the family reads them from the device.
    state_dir: where the count of SNMP engine boots is kept; without it the count starts at 1 each time.
    """

    def __init__(
        self,
        profile: Profile,
        n_outlets: int = 24,
        *,
        power_w: Callable[[int], float] | None = None,
        current_a: Callable[[int], float] | None = None,
        supply_v: Callable[[int], float] | None = None,
        on: Callable[[int], bool] | None = None,
        voltage_v: float = 230.0,
        recording: str | Path | None = None,
        digits: Mapping[str, int] | None = None,
        community: str | None = "public",
        user: SimUser | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        state_dir: str | Path | None = None,
        serial: str = "SIM0000001",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.profile = profile
        self.n_outlets = n_outlets
        self.faults = Faults()
        self.host = host
        self.port = port
        self.counters = {"gets": 0, "sets": 0, "varbinds_set": 0, "answers": 0, "dropped": 0}
        self.limit_log: list[tuple[int, int, float | None]] | None = None  # UTC ns, outlet, W; None: not kept
        self._power_w = power_w or (lambda outlet: 100.0)
        self._current_a = current_a
        self._supply_v = supply_v or (lambda outlet: voltage_v)
        self._on = on or (lambda outlet: True)
        self._voltage_v = voltage_v
        self._digits = {"current": 3, "power_factor": 2, "rating": 1, **(digits or {})}
        self._community = community
        self._user = user
        self._state_dir = None if state_dir is None else Path(state_dir)
        self._serial = serial
        self._clock = clock
        self._booted_at = clock()
        self._ticks_at_boot = 0
        self._boots = 0
        self._energy_wh = dict.fromkeys(range(1, n_outlets + 1), 0.0)
        self._energy_at = self._booted_at
        self._engine: engine.SnmpEngine | None = None
        self._transport: _Transport | None = None
        self._oids: dict[tuple[str, int], Oid] = {}
        self._cells: dict[Oid, Cell] = {}
        self._settings: dict[Oid, list[_Setting]] = {}  # what a SET may change
        self._switched: dict[int, tuple[bool, float]] = {}  # by a command: on, and until when it is off all the same
        self._places: dict[int, str] = self._simulated_places() if recording is None else {}
        if recording is None:
            self._build()
        else:
            self._replay(recording)
        self._order = sorted(self._cells)
        self._add_writable()
        self._factory = {oid: value for oid in self._settings if not callable(value := self._cells[oid][1])}

    # -- what the device holds

    def _oid(self, template: str, outlet: int = 0) -> Oid:
        oid = self._oids.get((template, outlet))
        if oid is None:
            oid = self._oids[template, outlet] = parse_oid(
                oid_of(template, unit=self.profile.index.unit, outlet=self._places.get(outlet, outlet))
            )
        return oid

    def _simulated_places(self) -> dict[int, str]:
        """Two feeds, the first with the larger half of the outlets."""
        if self.profile.index.feeds is None:
            return {}
        first = min((self.n_outlets + 1) // 2, self.profile.index.feeds.outlets)
        return {o: f"1.{o}" if o <= first else f"2.{o - first}" for o in range(1, self.n_outlets + 1)}

    def _recorded_places(self) -> dict[int, str]:
        feeds = self.profile.index.feeds
        if feeds is None:
            return {}
        head, _, tail = feeds.oid.replace("{unit}", str(self.profile.index.unit)).partition("{outlet}")
        column, rest = parse_oid(head.rstrip(".")), len(parse_oid(tail)) if tail else 0
        found = sorted(
            oid[len(column) : len(column) + 2]
            for oid in self._cells
            if oid[: len(column)] == column and len(oid) == len(column) + 2 + rest
        )
        return {number: f"{feed}.{outlet}" for number, (feed, outlet) in enumerate(found, 1)}

    def _build(self) -> None:
        """Every object of the profile, for every outlet."""
        identity = self.profile.identity
        model = f"PX-SIM{self.n_outlets}"
        descr = f"{self.profile.vendor} PDU MD:{model} MN:{model} HW:sim FW:1.0 AF1:1.0 SN: {self._serial}"
        self._cells[SYS_DESCR] = (OCTETS, descr.encode())
        self._cells[SYS_OBJECT_ID] = (6, parse_oid(identity.sys_object_id))
        self._cells[SYS_UPTIME] = (TIMETICKS, self._uptime_ticks)
        self._cells[SYS_NAME] = (OCTETS, b"simulated")
        for template, text in (
            (identity.model_oid, model),
            (identity.serial_oid, self._serial),
            (identity.firmware_oid, "1.0"),
        ):
            if template is not None:
                self._cells[self._oid(template)] = (OCTETS, text.encode())
        if identity.outlet_count_oid is not None:
            self._cells[self._oid(identity.outlet_count_oid)] = (INTEGER, self.n_outlets)
        if self.profile.metering.metered_oid is not None:
            self._cells[self._oid(self.profile.metering.metered_oid)] = (INTEGER, self.n_outlets)
        for outlet in range(1, self.n_outlets + 1):
            self._add_metering(outlet)
            self._add_limit(outlet)
            self._add_switching(outlet)
        for rows in self.profile.rows:
            for row in rows.suffixes():
                self._add_row(rows, row)

    def _add_metering(self, outlet: int) -> None:
        meter = self.profile.metering
        oid = partial(self._oid, outlet=outlet)
        self._add_measured(meter, oid, partial(self._quantity, (outlet,), 1))
        if meter.state is not None:
            self._cells[oid(meter.state.oid)] = (INTEGER, partial(self._switch_state, outlet))
        if meter.load is not None:
            self._cells[oid(meter.load.oid)] = (INTEGER, _normal(meter.load.codes))
        if (feeds := self.profile.index.feeds) is not None:
            self._cells.setdefault(oid(feeds.oid), (OCTETS, f"Outlet {outlet}".encode()))

    def _add_measured(self, meters: Meters, oid: Callable[[str], Oid], ask: Callable[[str], float]) -> None:
        for quantity, column in meters.columns().items():
            self._add_digits(column, quantity, oid)
            step = float(column.step(self._digits.get(quantity, 0)))
            tag = _PROFILE_TAGS[column.type]
            told = partial(_counted, ask, quantity, step)
            self._cells[oid(column.oid)] = (tag, partial(_worded, told, column.unit) if column.type == "text" else told)
            if column.valid is not None:
                self._cells[oid(column.valid.oid)] = (
                    INTEGER,
                    next(n for n in range(4, 99) if n not in column.valid.invalid),
                )

    def _add_digits(self, column: Scaled, quantity: str, oid: Callable[[str], Oid]) -> None:
        if column.digits_oid is not None:
            self._cells[oid(column.digits_oid)] = (GAUGE32, self._digits.get(quantity, 0))

    def _quantity(self, outlets: Sequence[int], share: int, quantity: str) -> float:
        """What these outlets amount to; rows of one kind share the whole load equally."""
        watts = sum(map(self._draw_w, outlets)) / share
        amps = sum(map(self._draw_a, outlets)) / share
        if quantity == "energy":
            return sum(map(self._used_wh, outlets)) / share
        volts = self._supply_v(outlets[0]) if outlets else self._voltage_v
        values = {"power": watts, "current": amps, "voltage": volts, "rating": 16.0}
        return values.get(quantity, POWER_FACTOR if quantity == "power_factor" else watts / POWER_FACTOR)

    def _add_limit(self, outlet: int) -> None:
        oid = partial(self._oid, outlet=outlet)
        for threshold in self.profile.thresholds:
            self._add_threshold(threshold, oid)
        limit = self.profile.limit
        if limit is None:
            return
        self._add_digits(limit, "current" if limit.unit == "A" else "power", oid)
        column = limit.columns[0]
        self._cells[oid(column.oid)] = (_PROFILE_TAGS[column.type], limit.factory)
        if limit.enable is not None:
            self._add_mask(limit.enable, oid)
        if limit.lower is not None:
            column = limit.lower.columns[0]
            self._cells[oid(column.oid)] = (_PROFILE_TAGS[column.type], limit.lower.factory)

    def _add_threshold(self, threshold: Threshold, oid: Callable[[str], Oid]) -> None:
        self._add_digits(threshold, "current" if threshold.unit == "A" else "power", oid)
        self._cells[oid(threshold.oid)] = (_PROFILE_TAGS[threshold.type], threshold.factory)
        if threshold.enable is not None:
            self._add_mask(threshold.enable, oid)

    def _add_mask(self, mask: EnableMask, oid: Callable[[str], Oid]) -> None:
        self._cells[oid(mask.oid)] = (_PROFILE_TAGS[mask.type], mask.encode(mask.factory))

    def _add_switching(self, outlet: int) -> None:
        switching = self.profile.switching
        if switching is None:
            return
        for action in _actions(self.profile):
            self._cells.setdefault(self._oid(action.oid, outlet), (_PROFILE_TAGS[action.type], 0))
        if switching.switchable is not None:
            self._cells[self._oid(switching.switchable.oid, outlet)] = (INTEGER, switching.switchable.yes[0])

    def _add_row(self, rows: Rows, row: str) -> None:
        oid = partial(self._row_oid, row)
        outlets = range(1, self.n_outlets + 1)
        self._add_measured(rows, oid, partial(self._quantity, outlets, len(rows.suffixes())))
        if rows.state is not None:
            self._cells[oid(rows.state.oid)] = (INTEGER, _normal(rows.state.codes))
        if rows.restriction is not None:
            self._cells[oid(rows.restriction.oid)] = (INTEGER, rows.restriction.always_allow)
        for threshold in rows.thresholds:
            self._add_threshold(threshold, oid)

    def _row_oid(self, row: str, template: str) -> Oid:
        return parse_oid(oid_of(template, unit=self.profile.index.unit, row=row))

    def _replay(self, recording: str | Path) -> None:
        """Every object of the recording; only the uptime moves on."""
        enables = [t.enable for t in self.profile.thresholds] + [
            self.profile.limit.enable if self.profile.limit else None
        ]
        masks = [mask for mask in enables if mask is not None and mask.type == "bits"]
        bits = {parse_oid(mask.oid.split(".{")[0]): mask.octets for mask in masks}
        self._cells.update(read_snmprec(recording, bits))
        self._places = self._recorded_places()
        found = self._cells.get(SYS_UPTIME)
        if found is not None and isinstance(found[1], int):
            self._ticks_at_boot = found[1]
            self._cells[SYS_UPTIME] = (TIMETICKS, self._uptime_ticks)

    def _add_writable(self) -> None:
        """What of the profile's settings this device has."""
        limit = self.profile.limit
        own: list[tuple[str, Bounded | EnableMask | Action]] = [
            (threshold.oid, threshold) for threshold in self.profile.thresholds if threshold.writable
        ]
        own += [(t.enable.oid, t.enable) for t in self.profile.thresholds if t.enable is not None]
        if limit is not None:
            columns = [*limit.columns, *(limit.lower.columns if limit.lower else ())]
            own += [(column.oid, limit) for column in columns]
            own += [(limit.enable.oid, limit.enable)] if limit.enable else []
        own += [(action.oid, action) for action in _actions(self.profile)]
        for outlet in range(1, self.profile.index.max_outlets + 1):
            for template, what in own:
                self._may_set(self._oid(template, outlet), _Setting(outlet, what))
        for rows in self.profile.rows:
            for row in rows.suffixes():
                for threshold in rows.thresholds:
                    if threshold.writable:
                        self._may_set(self._row_oid(row, threshold.oid), _Setting(0, threshold))
                if rows.restriction is not None:
                    self._may_set(self._row_oid(row, rows.restriction.oid), _Setting(0, rows.restriction))

    def _may_set(self, oid: Oid, setting: _Setting) -> None:
        if oid in self._cells:
            self._settings.setdefault(oid, []).append(setting)

    def _uptime_ticks(self) -> int:
        return (self._ticks_at_boot + int((self._clock() - self._booted_at) * 100.0)) % 2**32

    def _switch_state(self, outlet: int) -> int:
        state = self.profile.metering.state
        assert state is not None
        return state.on[0] if self.is_on(outlet) else state.off[0]

    def is_on(self, outlet: int) -> bool:
        """As the last command left it; without one, as the constructor was told."""
        on, off_until = self._switched.get(outlet, (self._on(outlet), 0.0))
        return on and self._clock() >= off_until

    def _draw_w(self, outlet: int) -> float:
        return max(self._power_w(outlet), 0.0) if self.is_on(outlet) else 0.0

    def _draw_a(self, outlet: int) -> float:
        if self._current_a is not None:
            return self._current_a(outlet) if self.is_on(outlet) else 0.0
        return self._draw_w(outlet) / self._voltage_v

    def _used_wh(self, outlet: int) -> float:
        now = self._clock()
        hours, self._energy_at = (now - self._energy_at) / 3600.0, now
        for number in self._energy_wh:
            self._energy_wh[number] += self._draw_w(number) * hours
        return self._energy_wh[outlet]

    def limit_w(self, outlet: int) -> float | None:
        """The limit now in force on the device, W (A x voltage for families in amperes); None while it is disabled."""
        limit = self.profile.limit
        if limit is None:
            return None
        if limit.enable is not None:
            raw = self._stored(limit.enable.oid, outlet)
            mask = limit.enable.decode(raw) if isinstance(raw, int | bytes) else None
            if mask is None or not limit.enable.is_on(mask):
                return None
        value = self._first(limit.columns, outlet)
        if value is None or value in limit.none:
            return None
        return value * float(self._limit_step(outlet)) * (self._voltage_v if limit.unit == "A" else 1.0)

    def limits_w(self) -> dict[int, float | None]:
        """As `limit_w`, of every outlet."""
        return {outlet: self.limit_w(outlet) for outlet in range(1, self.n_outlets + 1)}

    def _limit_step(self, outlet: int) -> Fraction:
        limit = self.profile.limit
        assert limit is not None
        digits = None if limit.digits_oid is None else self._stored(limit.digits_oid, outlet)
        return limit.step(digits if isinstance(digits, int) else None)

    def _stored(self, template: str, outlet: int) -> Value:
        cell = self._cells.get(self._oid(template, outlet))
        return None if cell is None or callable(cell[1]) else cell[1]

    def _first(self, columns: Sequence[ThresholdColumn], outlet: int) -> int | None:
        values = (self._stored(column.oid, outlet) for column in columns)
        return next((value for value in values if isinstance(value, int)), None)

    # -- what it answers

    def get(self, oid: Oid) -> Any:
        """The object as an ASN.1 value, or noSuchInstance."""
        cell = self._cells.get(oid)
        if cell is None:
            return rfc1905.noSuchInstance
        tag, value = cell
        return _ASN1[tag](value() if callable(value) else "" if value is None else value)

    def next_after(self, oid: Oid) -> Oid | None:
        place = bisect_right(self._order, oid)
        return self._order[place] if place < len(self._order) else None

    def set(self, varbinds: Sequence[tuple[Oid, Any]]) -> None:
        """All or nothing, as the standard asks; raises _Refused with the place of the bad one."""
        faults = self.faults
        new: dict[Oid, Value] = {}
        for index, (oid, value) in enumerate(varbinds, 1):
            if faults.read_only:
                raise _Refused(NO_ACCESS, index)
            settings = self._settings.get(oid)
            if settings is None or oid not in self._cells:
                raise _Refused(NOT_WRITABLE, index)
            if 0 in faults.refuse or settings[0].outlet in faults.refuse:
                raise _Refused(WRONG_VALUE, index)
            new[oid] = self._accepted(oid, settings, value, index)
        if not faults.ignore_set:
            self._check_order(new, [oid for oid, _ in varbinds])
            for oid, content in new.items():
                self._take(oid, content)
        if faults.refuse_but_apply:
            raise _Refused(GEN_ERR, 1)

    def _take(self, oid: Oid, content: Value) -> None:
        """Store a setting; carry out a command."""
        actions = [s for s in self._settings[oid] if isinstance(s.what, Action) and s.what.value == content]
        switching = self.profile.switching
        if actions and switching is not None:
            outlet, what = actions[0].outlet, actions[0].what
            off_until = self._clock() + REBOOT_S if what == switching.reboot else 0.0
            self._switched[outlet] = (what != switching.off, off_until)
            self._show_switched(outlet)
        if not callable(self._cells[oid][1]):
            self._cells[oid] = (self._cells[oid][0], content)

    def _show_switched(self, outlet: int) -> None:
        """A recorded state moves from now on."""
        state = self.profile.metering.state
        oid = None if state is None else self._oid(state.oid, outlet)
        if oid in self._cells:
            self._cells[oid] = (self._cells[oid][0], partial(self._switch_state, outlet))

    def _accepted(self, oid: Oid, settings: Sequence[_Setting], value: Any, index: int) -> Value:
        """The value as it will be stored: type and range checked, clamped if that fault is on."""
        tag, old = self._cells[oid]
        what = settings[0].what
        if value.tagSet != _ASN1[tag].tagSet:
            raise _Refused(WRONG_TYPE, index)
        if isinstance(old, bytes):
            octets = bytes(value)
            if not isinstance(what, EnableMask) or len(octets) != what.octets:
                raise _Refused(WRONG_LENGTH, index)
            return octets
        number = int(value)
        if isinstance(what, EnableMask):
            return number
        if isinstance(what, Bounded):
            return self._accepted_count(what, settings[0].outlet, number, index)
        allowed = [s.what.value for s in settings if isinstance(s.what, Action)]
        if isinstance(what, Restriction):
            allowed = [what.always_allow, what.on_near_overload, what.on_overload]
        if number not in allowed:
            raise _Refused(WRONG_VALUE, index)
        return number

    def _accepted_count(self, what: Bounded, outlet: int, number: int, index: int) -> int:
        if isinstance(what, Limit) and number in what.none:
            return number
        if not what.minimum <= number <= what.maximum:
            raise _Refused(WRONG_VALUE, index)
        if self.faults.clamp_w is not None and what is self.profile.limit:
            in_unit = self.faults.clamp_w / (self._voltage_v if what.unit == "A" else 1.0)
            number = min(number, int(in_unit / float(self._limit_step(outlet))))
        return number // what.granularity * what.granularity

    def _check_order(self, new: Mapping[Oid, Value], oids: Sequence[Oid]) -> None:
        """The lower threshold may not end up above ours while both are enabled."""
        limit = self.profile.limit
        if limit is None or limit.lower is None:
            return
        for index, oid in enumerate(oids, 1):
            outlet = self._settings[oid][0].outlet

            def after(template: str, outlet: int = outlet) -> Value:
                return new.get(self._oid(template, outlet), self._stored(template, outlet))

            ours = [v for c in limit.columns if isinstance(v := after(c.oid), int)]
            lower = [v for c in limit.lower.columns if isinstance(v := after(c.oid), int)]
            enabled = True
            if limit.enable is not None and limit.lower.bit is not None:
                raw = after(limit.enable.oid)
                mask = limit.enable.decode(raw) if isinstance(raw, int | bytes) else None
                enabled = mask is not None and limit.enable.is_on(mask) and limit.enable.is_on(mask, limit.lower.bit)
            if enabled and ours and lower and lower[0] > ours[0]:
                raise _Refused(INCONSISTENT_VALUE, index)

    def peek(self, oid: str) -> Value:
        """What the device holds at `oid` now, as an operator at its own page would see it; None if nothing."""
        cell = self._cells.get(parse_oid(oid))
        value = None if cell is None else cell[1]
        return value() if callable(value) else value

    def poke(self, oid: str, value: Value) -> None:
        """Change a value past SNMP, as somebody at the device's own page does. Raises KeyError if it has none."""
        key = parse_oid(oid)
        self._cells[key] = (self._cells[key][0], value)

    def remove(self, oid: str) -> Cell:
        """Make the device forget that it ever had `oid`; returns what `add` needs. Raises KeyError if it has none."""
        key = parse_oid(oid)
        self._order.remove(key)
        return self._cells.pop(key)

    def add(self, oid: str, tag: int, value: Value | Callable[[], int | bytes]) -> None:
        """Give the device an object, or a removed one back. `tag` as in recordings."""
        key = parse_oid(oid)
        self._cells[key] = (tag, value)
        self._order = sorted(self._cells)

    def reboot(self, digits: Mapping[str, int] | None = None) -> None:
        """Power cycle of the controller: uptime restarts, engine boots goes up, thresholds are as from the factory.

        `digits`: with other decimal digits than before, as after an update of the firmware.
        """
        self._booted_at = self._clock()
        self._ticks_at_boot = 0
        if digits is not None:
            self._digits.update(digits)
            for outlet in range(1, self.n_outlets + 1):
                self._add_metering(outlet)
        self._switched.clear()
        for oid, value in self._factory.items():
            if oid in self._cells:
                self._cells[oid] = (self._cells[oid][0], value)
        if self._engine is not None:
            self._set_boots(self._engine)

    # -- the agent

    async def start(self) -> None:
        """Bind the port; `port` then holds its number. Raises ConfigError when it is in use."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        try:
            sock.bind((self.host, self.port))
        except OSError as error:
            sock.close()
            raise ConfigError(f"cannot listen on {self.host} port {self.port}: {error.strerror}") from error
        self.port = sock.getsockname()[1]
        self._engine = snmp_engine = engine.SnmpEngine()
        self._set_engine_id(snmp_engine)
        self._set_boots(snmp_engine)
        self._transport = _Transport(self)
        await self._transport.open(sock)
        config.add_transport(snmp_engine, udp.DOMAIN_NAME, self._transport)
        if self._community is not None:
            config.add_v1_system(snmp_engine, "sim", self._community)
        if self._user is not None:
            user = self._user
            config.add_v3_user(
                snmp_engine, user.name, _AUTH[user.auth], user.auth_key or None, _PRIV[user.priv], user.priv_key or None
            )
        snmp_context = context.SnmpContext(snmp_engine)
        for responder in (_Get, _Next, _Bulk, _Set):
            responder(snmp_engine, snmp_context, self)

    async def stop(self) -> None:
        """Close the port; safe to call twice."""
        if self._engine is not None:
            self._engine.close_dispatcher()
            self._engine = None
        if self._transport is not None:
            self._transport.close_all()
            self._transport = None
        await asyncio.sleep(0)  # lets the loop close the transport

    async def __aenter__(self) -> "PduSimulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _set_engine_id(self, snmp_engine: engine.SnmpEngine) -> None:
        """Set by hand: given to its constructor, pysnmp would keep files of its own in the temporary folder."""
        (symbol,) = snmp_engine.get_mib_builder().import_symbols("__SNMP-FRAMEWORK-MIB", "snmpEngineID")
        text = f"{self._serial}:{self.port}".encode()
        symbol.syntax = symbol.syntax.clone(b"\x80\x00\x4f\xb8\x04" + text[:27])
        snmp_engine.snmpEngineID = symbol.syntax

    def _set_boots(self, snmp_engine: engine.SnmpEngine) -> None:
        boots, started = snmp_engine.get_mib_builder().import_symbols(
            "__SNMP-FRAMEWORK-MIB", "snmpEngineBoots", "snmpEngineTime"
        )
        boots.syntax = boots.syntax.clone(self._next_boots())
        started.syntax = started.syntax.clone(int(time.time()))

    def _next_boots(self) -> int:
        path = None if self._state_dir is None else self._state_dir / f"{self._serial}.boots"
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._boots = int(path.read_text())
        self._boots += 1
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")
            fresh.write_text(str(self._boots))
            os.replace(fresh, path)
        return self._boots


class _Transport(udp.UdpAsyncioTransport):  # type: ignore[misc]
    """pysnmp's UDP transport, with the faults of the wire in the sending direction."""

    def __init__(self, simulator: PduSimulator) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._simulator = simulator
        self._stray: socket.socket | None = None
        self._later: set[asyncio.TimerHandle] = set()

    async def open(self, sock: socket.socket) -> None:
        await self.loop.create_datagram_endpoint(lambda: self, sock=sock)

    def send_message(self, message: bytes, address: tuple[str, int]) -> None:
        faults, counters = self._simulator.faults, self._simulator.counters
        if faults.drop:
            self._simulator.faults = replace(faults, drop=faults.drop - 1 if faults.drop > 0 else -1)
            counters["dropped"] += 1
            return
        counters["answers"] += 1
        for _ in range(2 if faults.duplicate else 1):
            if faults.delay_s > 0.0:
                self._later.add(self.loop.call_later(faults.delay_s, self._send, message, address))
            else:
                self._send(message, address)

    def _send(self, message: bytes, address: tuple[str, int]) -> None:
        if self._simulator.faults.wrong_address:
            if self._stray is None:
                self._stray = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                self._stray.bind(_other_address(self._simulator.host, self._simulator.port))
            self._stray.sendto(message, address)
        elif self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(message, tuple(address))

    def close_all(self) -> None:
        for handle in self._later:
            handle.cancel()
        if self._stray is not None:
            self._stray.close()
        self.close_transport()


def _worded(told: Callable[[], int], unit: str) -> bytes:
    return f"{told()}{unit}".encode()


def _counted(ask: Callable[[str], float], quantity: str, step: float) -> int:
    return round(ask(quantity) / step)


def _normal(codes: Mapping[Any, tuple[int, ...]]) -> int:
    """The number that means that all is well; the first of all where none does."""
    return codes.get("normal", next(iter(codes.values())))[0]


def _actions(profile: Profile) -> list[Action]:
    switching = profile.switching
    actions = [] if switching is None else [switching.on, switching.off, switching.reboot]
    return [action for action in actions if action is not None]


def _other_address(host: str, port: int) -> tuple[str, int]:
    """Where nobody asked: another loopback host with the same port, else another port."""
    return ("127.0.0.3", port) if host.startswith("127.") and host != "127.0.0.3" else (host, 0)


class _Responder:
    """What the four request kinds share; sends the error index itself, for pysnmp's own code loses it."""

    cbCtx: PduSimulator

    def handle_management_operation(self, snmp_engine: Any, state: Any, _context: Any, pdu: Any) -> None:
        simulator = self.cbCtx
        varbinds = v2c.apiPDU.get_varbinds(pdu)
        status = index = 0
        answer = varbinds
        try:
            if simulator.faults.too_big_above and len(varbinds) > simulator.faults.too_big_above:
                answer = []
                raise _Refused(TOO_BIG, 0)
            answer = self.answer(simulator, varbinds, pdu)
        except _Refused as refused:
            status, index = refused.status, refused.index
        self.send_varbinds(snmp_engine, state, status, index, answer)  # type: ignore[attr-defined]
        self.release_state_information(state)  # type: ignore[attr-defined]

    def answer(self, simulator: PduSimulator, varbinds: Any, pdu: Any) -> Any:
        raise NotImplementedError


def _successor(simulator: PduSimulator, oid: Any) -> tuple[Any, Any]:
    following = simulator.next_after(tuple(oid))
    if following is None:
        return oid, rfc1905.endOfMibView
    return rfc1902.ObjectName(following), simulator.get(following)


class _Get(_Responder, cmdrsp.GetCommandResponder):  # type: ignore[misc]
    def answer(self, simulator: PduSimulator, varbinds: Any, pdu: Any) -> Any:
        simulator.counters["gets"] += 1
        return [(oid, simulator.get(tuple(oid))) for oid, _ in varbinds]


class _Next(_Responder, cmdrsp.NextCommandResponder):  # type: ignore[misc]
    def answer(self, simulator: PduSimulator, varbinds: Any, pdu: Any) -> Any:
        return [_successor(simulator, oid) for oid, _ in varbinds]


class _Bulk(_Responder, cmdrsp.BulkCommandResponder):  # type: ignore[misc]
    def answer(self, simulator: PduSimulator, varbinds: Any, pdu: Any) -> Any:
        single = int(v2c.apiBulkPDU.get_non_repeaters(pdu))
        rows = [_successor(simulator, oid) for oid, _ in varbinds[:single]]
        last = [oid for oid, _ in varbinds[single:]]
        for _ in range(min(int(v2c.apiBulkPDU.get_max_repetitions(pdu)), 64 // max(len(last), 1))):
            row = [_successor(simulator, oid) for oid in last]
            rows += row
            last = [oid for oid, _ in row]
        return rows


class _Set(_Responder, cmdrsp.SetCommandResponder):  # type: ignore[misc]
    def answer(self, simulator: PduSimulator, varbinds: Any, pdu: Any) -> Any:
        simulator.counters["sets"] += 1
        simulator.counters["varbinds_set"] += len(varbinds)
        before = simulator.limits_w() if simulator.limit_log is not None else {}
        simulator.set([(tuple(oid), value) for oid, value in varbinds])
        if simulator.limit_log is not None:
            after = simulator.limits_w()
            simulator.limit_log += [(time.time_ns(), n, w) for n, w in after.items() if w != before.get(n)]
        return varbinds


# -- as a process of its own


class _Feed:
    """Outlet powers that come in over standard input."""

    def __init__(self, start_w: float) -> None:
        self._start_w = start_w
        self._power_w: dict[int, float] = {}

    def __call__(self, outlet: int) -> float:
        return self._power_w.get(outlet, self._start_w)

    def update(self, power_w: Mapping[str, float]) -> None:
        self._power_w.update({int(outlet): float(watts) for outlet, watts in power_w.items()})


def command(simulator: PduSimulator, feed: _Feed | None, request: object) -> dict[str, Any]:
    """One request: {"faults": {...}}, {"reboot": true}, {"power_w": {"1": 80.0}}, {"state": true}, {"log": true}.

    `faults` names the members of `Faults`; those not named are switched off. `log` tells every change of a limit by a
    SET since it was first asked for: (UTC ns, outlet, W; null is disabled). Without a `feed` there is no power_w. Returns
    the answer line.
    """
    try:
        if not isinstance(request, dict):
            raise ValueError("a command is a JSON object")
        known = ["faults", "reboot", "state", "log", *(["power_w"] if feed is not None else [])]
        unknown = set(request) - set(known)
        if unknown:
            raise ValueError(f"unknown command {sorted(unknown)}: use {', '.join(known)}")
        if "faults" in request:
            wrong = set(request["faults"]) - {field.name for field in fields(Faults)}
            if wrong:
                raise ValueError(f"unknown fault {sorted(wrong)}: use {[field.name for field in fields(Faults)]}")
            simulator.faults = Faults(**{**request["faults"], "refuse": tuple(request["faults"].get("refuse", ()))})
        if request.get("reboot"):
            simulator.reboot()
        if feed is not None:
            feed.update(request.get("power_w", {}))
    except (ValueError, TypeError, AttributeError) as error:
        return {"ok": False, "error": str(error)}
    answer: dict[str, Any] = {"ok": True, "counters": dict(simulator.counters)}
    if request.get("state"):
        answer["limit_w"] = simulator.limits_w()
    if request.get("log"):
        answer["log"] = simulator.limit_log or []
        simulator.limit_log = simulator.limit_log or []
    return answer


async def serve(simulator: PduSimulator, feed: _Feed) -> None:
    """Say where it is, then obey standard input until that ends; see `command`."""
    async with simulator:
        say({"schema": 1, "host": simulator.host, "port": simulator.port, "profile": simulator.profile.name})
        await obey_lines(lambda request: command(simulator, feed, request))


def _key(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rpi_daemon.drivers.pdu.sim", description=__doc__)
    parser.add_argument("--profile", default="raritan_px", help="name of a shipped profile, or path of one")
    parser.add_argument("--outlets", type=int, default=24)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="UDP port; 0 takes a free one")
    parser.add_argument("--snmprec", metavar="FILE", help="answer from this recording of a real device")
    parser.add_argument("--power-w", type=float, default=100.0, help="draw of each outlet until told otherwise")
    parser.add_argument("--community", default="public", help="SNMPv2c community; empty to serve v3 only")
    parser.add_argument("--user", help="SNMPv3 user")
    parser.add_argument("--auth", default="SHA-256", choices=[name for name in _AUTH if name])
    parser.add_argument("--auth-key-file", metavar="FILE")
    parser.add_argument("--priv-key-file", metavar="FILE")
    parser.add_argument("--state-dir", metavar="DIR", help="where the count of SNMP engine boots is kept")
    options = parser.parse_args(arguments)
    try:
        feed = _Feed(options.power_w)
        user = None
        if options.user:
            auth_key, priv_key = _key(options.auth_key_file), _key(options.priv_key_file)
            user = SimUser(
                options.user,
                auth=options.auth if auth_key else None,
                auth_key=auth_key,
                priv="AES-128" if priv_key else None,
                priv_key=priv_key,
            )
        simulator = PduSimulator(
            load_profile(options.profile),
            options.outlets,
            power_w=feed,
            recording=options.snmprec,
            community=options.community or None,
            user=user,
            host=options.host,
            port=options.port,
            state_dir=options.state_dir,
        )
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how an operator ends it
            asyncio.run(serve(simulator, feed))
    except RpiError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
