"""What stands at an address: its family, its outlets, what is metered and writable. Asks politely, writes nothing to it."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rpi_daemon._fastpath.core import Varbind
from rpi_daemon.config.schema import shorten_numbers
from rpi_daemon.drivers.pdu.profile import Feeds, Measured, Profile, SwitchState, load_profile, profile_names
from rpi_daemon.drivers.pdu.snmp import QUANTITIES, SYS_DESCR, SYS_OBJECT_ID, SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession, SnmpTimeout
from rpi_daemon.drivers.pdu.walk import walk
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import LimitKind, PduIdentity, PduReading

VENDOR_ARCS = 7  # of an OID: 1.3.6.1.4.1 and the vendor's own number
NOBODY = "discover"  # user of the question that asks an SNMPv3 engine for its name alone
PROVEN = ("none", "recording", "hardware")
LIMIT_MEANS = {
    LimitKind.ALARM: "tells when it is passed, holds nothing back",
    LimitKind.BLOCK_TURN_ON: "refuses to switch further outlets on",
    LimitKind.TRIP_OFF: "switches the outlet off",
    LimitKind.CURRENT_LIMIT: "holds the current there",
    LimitKind.SERVER_CAP: "the server throttles itself",
}
PROOF = {
    "none": "shaped after the vendor's MIB, not seen on hardware: it meters only, until bench/hil/pdu_hil.py passed on this"
    " device or the configuration says accept_unproven = true",
    "recording": "proven on a recording of a real device",
    "hardware": "proven on a real device",
}
DISAGREE_SHARE, DISAGREE_W = 0.1, 20.0  # sums that differ by more than both are worth a word
# Supplies in use, V: IEC 60038 and ANSI C84.1, line to neutral and line to line
NOMINAL_V = (100.0, 110.0, 115.0, 120.0, 127.0, 200.0, 208.0, 220.0, 230.0, 240.0, 277.0, 380.0, 400.0, 415.0, 480.0)
ASSUMED_V = 230.0

Told = Callable[[str, float], None]  # what is asked for now, and the part of the work that is done


@dataclass(frozen=True, slots=True)
class Outlets:
    """What one profile finds on a device: outlet numbers, those of each feed, those that are metered."""

    profile: Profile
    feeds: tuple[tuple[int, ...], ...]
    metered: tuple[int, ...]
    number_at: Mapping[tuple[int, ...], int]  # by what stands in the place of `{outlet}`

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(number for feed in self.feeds for number in feed)


@dataclass(frozen=True, slots=True)
class Finding:
    """A device as found. What it does not tell is absent or None, never zero."""

    endpoint: SnmpEndpoint
    descr: str
    object_id: str
    unit: int | None
    outlets: Outlets
    others: tuple[Outlets, ...]  # what other profiles of the family find beside it
    identity: PduIdentity
    reading: PduReading
    rating_a: Mapping[int, float]  # outlets that tell what they may carry
    nominal_v: float
    measured_v: float | None  # None: nothing shows a voltage, the nominal one is assumed
    requests: int

    @property
    def profile(self) -> Profile:
        return self.outlets.profile


async def look(endpoint: SnmpEndpoint, *, unit: int | None = None, told: Told = lambda _what, _done: None) -> Finding:
    """Find out what answers at `endpoint`. Raises DeviceError or AuthError with a sentence that says what to do."""
    session = SnmpSession(endpoint)
    try:
        told("who is there", 0.0)
        await _meet(session)
        descr, object_id = [_text(varbind) for varbind in await session.get([SYS_DESCR, SYS_OBJECT_ID])]
        seen = f"{descr or 'a device without sysDescr'!r} (sysObjectID {object_id or 'missing'})"
        try:
            return await _look_closer(session, descr, object_id, unit, told)
        except SnmpTimeout as error:
            raise SnmpTimeout(
                f"{error}; it had said before that it is {seen}: it may be too slow for this rate, or not let us see the rest"
            ) from None
    finally:
        session.close()


async def _meet(session: SnmpSession) -> None:
    """Open the session, and tell a wrong community from a host that is not there, as far as the device lets us."""
    await session.open()
    try:
        await session.get([SYS_OBJECT_ID])
    except SnmpTimeout as error:
        if session.endpoint.version == "2c" and await _has_an_engine(session.endpoint):
            raise AuthError(
                f"SNMP agent {session.endpoint.host} port {session.endpoint.port} is there, but does not answer to this"
                " community: it is wrong, not allowed from this address, or version 2c is switched off"
            ) from None
        raise error


async def _has_an_engine(endpoint: SnmpEndpoint) -> bool:
    """Whether an SNMPv3 engine names itself there: that is asked without any credentials."""
    session = SnmpSession(
        SnmpEndpoint(
            endpoint.host,
            endpoint.port,
            user=NOBODY,
            auth=None,
            priv=None,
            timeout_s=endpoint.timeout_s,
            retries=endpoint.retries,
        )
    )
    try:
        await session.open()
    except DeviceError:
        return False
    finally:
        session.close()
    return True


async def _look_closer(session: SnmpSession, descr: str, object_id: str, unit: int | None, told: Told) -> Finding:
    """Which profile fits, then what the driver itself reads with it."""
    endpoint = session.endpoint
    profiles = [load_profile(name) for name in profile_names()]
    family = [profile for profile in profiles if _is_below(object_id, profile.identity.sys_object_id)]
    if not family:
        raise DeviceError(_stranger(endpoint, descr, object_id, profiles))
    found = []
    for step, profile in enumerate(family):

        def seen(n: int, profile: Profile = profile, step: int = step) -> None:
            share = min(1.0, n / profile.index.max_outlets)
            told(f"{profile.name}: {n} {profile.index.counts}", (step + share) / (len(family) + 1))

        found.append(await _outlets(session, profile, unit, seen))
    best = max(found, key=_merit)
    if not best.metered:
        raise DeviceError(_unmetered(endpoint, descr, found))
    told(f"readings of {len(best.metered)} {best.profile.index.counts}", len(family) / (len(family) + 1))
    ratings = await _ratings(session, best, unit)
    identity, reading, asked = await _read(endpoint, best, unit, ASSUMED_V)
    measured_v = _voltage(reading)
    nominal_v = ASSUMED_V if measured_v is None else min(NOMINAL_V, key=lambda nominal: abs(nominal - measured_v))
    if nominal_v != ASSUMED_V:  # thresholds in amperes, and watts that are volts x amperes
        identity, reading, again = await _read(endpoint, best, unit, nominal_v)
        asked += again
    others = tuple(one for one in found if one is not best and one.numbers)
    return Finding(
        endpoint=endpoint,
        descr=descr,
        object_id=object_id,
        unit=unit,
        outlets=best,
        others=others,
        identity=identity,
        reading=reading,
        rating_a=ratings,
        nominal_v=nominal_v,
        measured_v=measured_v,
        requests=session.counters.requests + asked,
    )


async def _read(
    endpoint: SnmpEndpoint, outlets: Outlets, unit: int | None, nominal_v: float
) -> tuple[PduIdentity, PduReading, int]:
    """What the daemon's own driver says with this profile, and how many requests that took."""
    pdu = SnmpPdu(
        SnmpPduOptions(
            endpoint, outlets.profile, outlets.metered, unit=unit, quantities=QUANTITIES, nominal_v=nominal_v
        )
    )
    try:
        await pdu.open()
        return await pdu.identify(), await pdu.read(), pdu.session.counters.requests
    finally:
        await pdu.close()


def _voltage(reading: PduReading) -> float | None:
    """The middle one of all voltages that are shown, V; what is far below any supply is a dead phase."""
    rows = [row.voltage_v for row in reading.rows.values()]
    shown = [volts for volts in [*reading.voltage_v.values(), *rows] if volts is not None and volts > NOMINAL_V[0] / 2]
    return median(shown) if shown else None


def _merit(found: Outlets) -> tuple[int, ...]:
    """Better is what meters outlets rather than phases, meters more, has a limit, switches more, is better proven."""
    profile = found.profile
    return (
        bool(found.metered) and profile.index.counts == "outlets",
        len(found.metered),
        profile.limit is not None,
        len(found.numbers),
        PROVEN.index(profile.proven),
    )


def _is_below(oid: str, root: str) -> bool:
    return oid == root or oid.startswith(root + ".")


def _stranger(endpoint: SnmpEndpoint, descr: str, object_id: str, profiles: Sequence[Profile]) -> str:
    """The sentence about a device that no profile knows."""
    near = max(profiles, key=lambda profile: _shared_arcs(object_id, profile.identity.sys_object_id))
    text = (
        f"{endpoint.host} port {endpoint.port} is {descr or 'a device without sysDescr'!r} with sysObjectID"
        f" {object_id or 'missing'}: no profile knows it"
    )
    if _shared_arcs(object_id, near.identity.sys_object_id) >= VENDOR_ARCS:
        root = near.identity.sys_object_id
        text += f"; the nearest is {near.name!r} ({root}), of the same vendor"
    return f"{text}. docs/pdu-profiles.md tells how to describe it"


def _shared_arcs(one: str, other: str) -> int:
    shared = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _unmetered(endpoint: SnmpEndpoint, descr: str, found: Sequence[Outlets]) -> str:
    """The sentence about a device of a known family without a single reading."""
    switched = [f"{len(one.numbers)} outlets as {one.profile.name!r} has them" for one in found if one.numbers]
    names = ", ".join(one.profile.name for one in found)
    seen = (
        f"only {' and '.join(switched)}, without a reading" if switched else "no outlet, phase or inlet with a reading"
    )
    return (
        f"{endpoint.host} port {endpoint.port} is {descr!r}: of a known family ({names}), but it shows {seen};"
        " it meters none, or does not let us see them. A sensor board can measure what it does not"
    )


# -- which outlets there are


async def _outlets(session: SnmpSession, profile: Profile, unit: int | None, told: Callable[[int], None]) -> Outlets:
    """Walk the columns that outlets of this family must have, until one of them has readings."""
    meter, by_feed = profile.metering, profile.index.feeds
    columns: list[Measured | SwitchState | Feeds | None] = [by_feed, meter.power, meter.current, meter.state]
    seen: dict[tuple[int, ...], bool] = {}  # index of an outlet -> whether it is metered
    for column in columns:
        if column is None:
            continue
        async for index, varbind in _column(session, profile, column.oid, unit):
            has = isinstance(column, Measured) and column.count(varbind.value) is not None
            seen[index] = seen.get(index, False) or has
            told(len(seen))
        if any(seen.values()):
            break
    # where outlets are numbered anew on each feed, an outlet's number is its place among all of them, as in the driver
    number_at = {index: place if by_feed is not None else index[-1] for place, index in enumerate(sorted(seen), 1)}
    limit = await _metered_count(session, profile, unit)
    feeds: dict[tuple[int, ...], list[int]] = {}
    for index, number in number_at.items():
        feeds.setdefault(index[:-1], []).append(number)
    metered = [n for index, n in number_at.items() if seen[index] and (limit is None or n <= limit)]
    return Outlets(profile, tuple(map(tuple, feeds.values())), tuple(metered), number_at)


async def _column(
    session: SnmpSession, profile: Profile, template: str, unit: int | None
) -> AsyncIterator[tuple[tuple[int, ...], Varbind]]:
    """The outlets of one column, by what stands in the place of `{outlet}`."""
    head, _, tail = _filled(profile, template, unit).partition(".{outlet}")
    arcs = 1 if profile.index.feeds is None else 2
    async for varbind in walk(session, head, profile.pace.bulk_repetitions):
        rest = varbind.oid.removeprefix(f"{head}.").split(".")
        if ".".join(["", *rest[arcs:]]) == tail:
            yield tuple(map(int, rest[:arcs])), varbind


def _filled(profile: Profile, template: str, unit: int | None) -> str:
    return template.replace("{unit}", str(profile.index.unit if unit is None else unit))


async def _metered_count(session: SnmpSession, profile: Profile, unit: int | None) -> int | None:
    """How many outlets the device says it meters; None where the family does not tell."""
    oid = profile.metering.metered_oid
    if oid is None:
        return None
    (varbind,) = await session.get([_filled(profile, oid, unit)])
    return varbind.value if isinstance(varbind.value, int) else None


async def _ratings(session: SnmpSession, outlets: Outlets, unit: int | None) -> dict[int, float]:
    """What each outlet may carry, A, as far as the device tells."""
    column = outlets.profile.metering.rating
    if column is None or column.scale is None:
        return {}
    step = column.step()
    found = {}
    async for index, varbind in _column(session, outlets.profile, column.oid, unit):
        count = column.count(varbind.value)
        if count and index in outlets.number_at:
            found[outlets.number_at[index]] = float(count * step)
    return found


def _text(varbind: Varbind) -> str:
    value = varbind.value
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value or "")


# -- telling


def warnings_of(finding: Finding) -> list[str]:
    """What the owner should know before believing the readings."""
    reading, metered = finding.reading, finding.outlets.metered
    found = []
    powers = [watts for number in metered if (watts := reading.power_w.get(number)) is not None]
    amps = [current for number in metered if (current := reading.current_a.get(number)) is not None]
    if not any(powers) and not any(amps):
        found.append(
            f"all {len(metered)} outlets read zero: nothing draws power, or this model does not meter outlets and says so"
            " with zeros"
        )
    if reading.apparent:
        found.append("it meters no true power per outlet: volts x amperes stand in its place")
    inlet_w = _inlet_w(reading)
    if powers and inlet_w is not None and abs(sum(powers) - inlet_w) > max(DISAGREE_W, DISAGREE_SHARE * inlet_w):
        found.append(f"its outlets add up to {sum(powers):.0f} W, its inlet shows {inlet_w:.0f} W")
    unmetered = sorted(set(finding.outlets.numbers) - set(metered))
    if unmetered:
        found.append(f"{finding.profile.index.counts} {shorten_numbers(unmetered)} are not metered, and left out")
    for other in finding.others:
        if len(other.numbers) > len(metered):
            found.append(
                f"{len(other.numbers)} {other.profile.index.counts} can be seen with profile {other.profile.name!r}, but the"
                " device does not meter them: to limit those, measure them with a sensor board"
            )
    return found


def _inlet_w(reading: PduReading) -> float | None:
    """What flows in, by the outermost rows that show it."""
    for kind in ("pdu", "inlet", "cord", "phase"):
        found = [row.power_w for row in reading.rows.values() if row.kind == kind and row.power_w is not None]
        if found:
            return sum(found)
    return None


def document(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    who, reading, profile = finding.identity, finding.reading, finding.profile
    limit = profile.limit
    limited = [number for number, state in reading.limits.items() if state.limit_w is not None]
    return {
        "schema": 1,
        "ok": True,
        "host": finding.endpoint.host,
        "port": finding.endpoint.port,
        "sys_descr": finding.descr,
        "sys_object_id": finding.object_id,
        "profile": profile.name,
        "proven": profile.proven,
        "vendor": who.vendor,
        "model": who.model,
        "firmware": who.firmware,
        "serial": who.serial,
        "counts": profile.index.counts,
        "limit": None
        if limit is None
        else {
            "kind": limit.kind.value,
            "level": limit.level,
            "unit": limit.unit,
            "outlets": shorten_numbers(limited),
        },
        "switching": profile.switching is not None,
        "nominal_v": finding.nominal_v,
        "measured_v": finding.measured_v,
        "total_w": _total(reading.power_w),
        "inlet_w": _inlet_w(reading),
        "outlets": [
            {
                "number": number,
                "power_w": reading.power_w.get(number),
                "current_a": reading.current_a.get(number),
                "voltage_v": reading.voltage_v.get(number),
                "energy_wh": reading.energy_wh.get(number),
                "on": reading.on.get(number),
                "limit_w": reading.limits[number].limit_w if number in reading.limits else None,
                "limit_enabled": reading.limits[number].enabled if number in reading.limits else None,
                "rating_a": finding.rating_a.get(number),
            }
            for number in finding.outlets.metered
        ],
        "rows": {name: asdict(row) for name, row in reading.rows.items()},
        "warnings": warnings_of(finding),
        "requests": finding.requests,
    }


def _total(power_w: Mapping[int, float | None]) -> float | None:
    known = [watts for watts in power_w.values() if watts is not None]
    return sum(known) if known else None


def report(finding: Finding) -> str:
    """A finding for people."""
    told = document(finding)
    counts, n = told["counts"], len(told["outlets"])
    lines = [
        f"{told['host']} port {told['port']}: {told['vendor']} {told['model']}, firmware {told['firmware'] or 'unknown'},"
        f" serial {told['serial'] or 'unknown'}",
        f"  profile   {told['profile']}: {PROOF[told['proven']]}",
        f"  meters    {n} {counts}: {', '.join(_metered(told['outlets'])) or 'nothing'}"
        + ("" if told["total_w"] is None else f"; {told['total_w']:.0f} W in all")
        + ("" if told["inlet_w"] is None else f", its inlet shows {told['inlet_w']:.0f} W"),
        f"  limit     {_limit_text(finding, told)}",
        f"  switches  {'on, off, reboot; rpi-daemon itself switches nothing' if told['switching'] else 'nothing'}",
        *(f"  note      {warning}" for warning in told["warnings"]),
        f"  asked     {told['requests']} requests, wrote nothing",
        "",
        f"  {counts.removesuffix('s'):>6} {'W':>9} {'A':>8} {'V':>7}  {'state':5} {'limit W':>8}",
    ]
    for row in told["outlets"]:
        state = {True: "on", False: "off", None: "-"}[row["on"]]
        limit = "off" if row["limit_enabled"] is False else _figure(row["limit_w"], 0)
        lines.append(
            f"  {row['number']:>6} {_figure(row['power_w'], 1):>9} {_figure(row['current_a'], 2):>8}"
            f" {_figure(row['voltage_v'], 1):>7}  {state:5} {limit:>8}"
        )
    return "\n".join(lines)


def _metered(outlets: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {"power_w": "power", "current_a": "current", "voltage_v": "voltage", "energy_wh": "energy", "on": "state"}
    return [name for key, name in names.items() if any(row[key] is not None for row in outlets)]


def _limit_text(finding: Finding, told: Mapping[str, Any]) -> str:
    limit = finding.profile.limit
    if limit is None:
        return "none that can be written"
    if not told["limit"]["outlets"]:
        return f"none seen, although the family has one ({limit.level}, {limit.unit})"
    return (
        f"{limit.level.replace('_', ' ')} in {limit.unit} of outlets {told['limit']['outlets']}:"
        f" {limit.kind.value}, it {LIMIT_MEANS[limit.kind]}"
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
