"""From configuration to drivers: which driver speaks to which device, and what is known of it without asking.

A driver is imported where a configuration names it: a start after a crash does not wait for the others.
"""

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rpi_daemon.clock import Clock
from rpi_daemon.config.load import Loc, load_config
from rpi_daemon.config.schema import Board, Cap, Config, Pdu, Telemetry, expand_numbers, secret_of
from rpi_daemon.drivers.base import CapDriver, HostDriver, PduDriver
from rpi_daemon.drivers.pdu.profile import Profile, from_wire, load_profile, to_wire
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import IntArray
from rpi_daemon.small_file import is_file

if TYPE_CHECKING:
    from rpi_daemon.calibration import Calibration
    from rpi_daemon.drivers.pdu.modbus import ModbusOptions
    from rpi_daemon.drivers.pdu.register_map import RegisterMap
    from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint

SNMP_PORT, MODBUS_PORT = 161, 502
SNMP_TIMEOUT_S, SNMP_RETRIES = 0.25, 1
MODBUS_TIMEOUT_S = 0.5


def pdu_driver(config: Config, pdu: Pdu, clock: Clock) -> PduDriver:
    """The driver of one configured PDU or meter, not open yet. Raises ConfigError."""
    if pdu.driver != "snmp":
        from rpi_daemon.drivers.pdu.modbus import ModbusPdu

        return ModbusPdu(modbus_options(config, pdu), clock)
    from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions

    options = SnmpPduOptions(
        endpoint=snmp_endpoint(config, pdu),
        profile=snmp_profile(config, pdu),
        outlets=numbers_of(config, pdu.id),
        unit=pdu.unit,
        nominal_v=config.rack.nominal_v,
    )
    return SnmpPdu(options, clock)


def cap_driver(config: Config, cap: Cap, clock: Clock) -> CapDriver:
    """The driver of one server's cap, not open yet; the password is read here."""
    from rpi_daemon.drivers.caps.redfish import RedfishCap, RedfishOptions
    from rpi_daemon.drivers.caps.session import RedfishEndpoint

    endpoint = RedfishEndpoint(
        host=cap.host,
        port=cap.port,
        user=cap.user,
        password=config.secret(cap, "password"),
        tls_ca_file=None if cap.tls_ca_file is None else str(config.path(cap.tls_ca_file)),
        tls_fingerprint=cap.tls_fingerprint,
        allow_insecure=cap.allow_insecure,
        timeout_s=cap.timeout_s,
    )
    return RedfishCap(RedfishOptions(endpoint, resource=cap.resource), clock)


def host_driver(config: Config, item: Telemetry, clock: Clock) -> HostDriver:
    """The driver of one scraped host, not open yet; password and token are read here."""
    from rpi_daemon.drivers.hosts.node_exporter import NodeExporter, NodeExporterOptions

    token = item.token_file is not None or item.token_env is not None
    options = NodeExporterOptions(
        load=item.load,
        url=item.url or "",
        poll_s=item.poll_s,
        timeout_s=item.timeout_s,
        user=item.user or "",
        password=config.secret(item, "password") if item.user is not None else "",
        token=config.secret(item, "token") if token else "",
        tls_ca_file=None if item.tls_ca_file is None else str(config.path(item.tls_ca_file)),
        tls_fingerprint=item.tls_fingerprint,
        allow_insecure=item.allow_insecure,
        interface_bytes_per_s=None if item.network_mbit_s is None else item.network_mbit_s * 1e6 / 8.0,
    )
    return NodeExporter(options, clock)


def snmp_endpoint(config: Config, pdu: Pdu) -> "SnmpEndpoint":
    """Where and how to speak SNMP; the secrets are read here."""
    return endpoint_of(pdu, Path(config.base_dir))


def endpoint_of(pdu: Pdu, base_dir: Path) -> "SnmpEndpoint":
    """As `snmp_endpoint`, of a PDU without a configuration around it."""
    from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint

    v3 = pdu.version == "3"
    return SnmpEndpoint(
        host=pdu.host or "",
        port=pdu.port or SNMP_PORT,
        version=pdu.version,
        community="" if v3 else secret_of(pdu, "community", base_dir),
        user=pdu.user or "",
        auth=pdu.auth,
        auth_key=secret_of(pdu, "auth_key", base_dir) if v3 else "",
        priv=pdu.priv,
        priv_key=secret_of(pdu, "priv_key", base_dir) if v3 else "",
        timeout_s=pdu.timeout_s or SNMP_TIMEOUT_S,
        retries=SNMP_RETRIES if pdu.retries is None else pdu.retries,
    )


def modbus_options(config: Config, pdu: Pdu) -> "ModbusOptions":
    """Where and how to speak Modbus. Raises ConfigError."""
    from rpi_daemon.drivers.pdu.modbus import ModbusOptions, TcpAddress
    from rpi_daemon.drivers.pdu.modbus_link import SerialLine

    address: TcpAddress | SerialLine
    if pdu.driver == "modbus_tcp":
        address = TcpAddress(pdu.host or "", pdu.port or MODBUS_PORT)
    else:
        port = str(config.path(pdu.serial_port or ""))
        address = SerialLine(port, pdu.baud, pdu.parity, pdu.stop_bits)
    return ModbusOptions(
        address=address,
        map=register_map(config, pdu),
        outlets=numbers_of(config, pdu.id),
        device_id=pdu.device_id,
        timeout_s=pdu.timeout_s or MODBUS_TIMEOUT_S,
        retries=pdu.retries or 0,
        nominal_v=config.rack.nominal_v,
    )


def register_map(config: Config, pdu: Pdu) -> "RegisterMap":
    """The register map that a Modbus device names: a shipped one, or a file beside the configuration. Raises ConfigError."""
    from rpi_daemon.drivers.pdu.register_map import load_map

    return load_map(_named(config, pdu))


def _named(config: Config, pdu: Pdu) -> str | Path:
    """A name, or a path taken from the configuration's own folder."""
    own = "/" in pdu.profile or pdu.profile.endswith(".toml")
    return Path(config.base_dir) / pdu.profile if own else pdu.profile


def snmp_profile(config: Config, pdu: Pdu) -> Profile:
    """The vendor profile that a PDU names: a shipped one, or a file beside the configuration. Raises ConfigError."""
    return load_profile(_named(config, pdu))


def profile_digest(config: Config, pdu: Pdu) -> str:
    """SHA-256 of what a PDU's profile or register map says, comments apart."""
    return hashlib.sha256(profile_of(config, pdu).model_dump_json().encode()).hexdigest()


def profile_of(config: Config, pdu: Pdu) -> "Profile | RegisterMap":
    """The profile or, for Modbus, the register map that a PDU names. Raises ConfigError."""
    return snmp_profile(config, pdu) if pdu.driver == "snmp" else register_map(config, pdu)


def numbers_of(config: Config, pdu: str) -> tuple[int, ...]:
    """The outlet numbers that are read on a PDU: its own outlets, and those that stand for others as a slow meter."""
    rows = config.outlets()
    measured = {name for board in config.board for name in board.currents()}
    own = {row.number for row in rows if row.pdu == pdu}
    meters = (row.meter.partition("/") for row in rows if row.id not in measured)
    return tuple(sorted(own | {int(number) for name, _, number in meters if name == pdu}))


def used_pdus(config: Config) -> list[Pdu]:
    """The PDUs that the daemon talks to. The others are there for `calibrate`, as reference meters."""
    return [pdu for pdu in config.pdu if numbers_of(config, pdu.id)]


def address_of(pdu: Pdu) -> str:
    """What no two daemons may drive at once: a network address, or a device on a serial bus."""
    if pdu.driver == "modbus_rtu":
        return f"{pdu.serial_port}/{pdu.device_id}"
    if pdu.driver == "modbus_tcp":
        return f"{pdu.host}/{pdu.port or MODBUS_PORT}/{pdu.device_id}"
    return f"{pdu.host}/{pdu.port or SNMP_PORT}"


def write_budgets(config: Config) -> IntArray:
    """Writes per outlet and day, [n]: the configured number of its PDU, or what its family stands."""
    per_pdu = {pdu.id: pdu.writes_per_day or profile_of(config, pdu).pace.writes_per_outlet_day for pdu in config.pdu}
    return np.array([per_pdu[row.pdu] for row in config.outlets()], dtype=np.int64)


def load_checked(path: Path | str) -> Config:
    """A configuration with what its devices' own files say of it. Raises ConfigError: every mistake at once, a line each."""
    return load_config(path, more=device_mistakes)


def device_mistakes(config: Config) -> Iterator[tuple[Loc, str]]:
    """What profiles, register maps and calibration files find wrong, as (location, sentence)."""
    for i, board in enumerate(config.board):
        if board.calibration is not None and is_file(config.path(board.calibration)):
            from rpi_daemon.calibration import load_calibration

            try:
                file = load_calibration(config.path(board.calibration))
            except ConfigError as error:
                yield ("board", i, "calibration"), str(error)
            else:
                if why := _not_its_own(config, board, file):
                    yield ("board", i, "calibration"), f"{config.path(board.calibration)}: {why}"
    units: dict[tuple[str | None, int, int], Pdu] = {}
    for i, pdu in enumerate(config.pdu):
        try:
            profile = profile_of(config, pdu)
        except ConfigError as error:
            yield from ((("pdu", i, "profile"), line) for line in str(error).splitlines())
        else:
            most = profile.index.max_outlets if isinstance(profile, Profile) else profile.outlets
            yield from _numbers_beyond(config, pdu.id, profile.name, most)
            if not any(getattr(profile.metering, name) for name in ("power", "apparent", "current")):
                yield from _unmeasured(config, pdu.id, profile.name)
            if isinstance(profile, Profile):
                yield from _not_to_be_held(config, pdu.id, profile)
                unit = profile.index.unit if pdu.unit is None else pdu.unit
                unit = unit if "{unit}" in profile.model_dump_json() else -1
                other = units.setdefault((pdu.host, pdu.port or SNMP_PORT, unit), pdu)
                if other.id != pdu.id and other.unit != pdu.unit:  # else it stands at one address for all to see
                    yield (
                        ("pdu", i, "unit"),
                        f"is the same device as PDU {other.id!r}: profile {profile.name!r} reads unit {profile.index.unit} where none is said"
                        + (", and knows no units" if unit < 0 else ""),
                    )
            ids = None if isinstance(profile, Profile) else profile.device_ids
            if ids is not None and not ids[0] <= pdu.device_id <= ids[1]:
                yield (
                    ("pdu", i, "device_id"),
                    f"{pdu.device_id} is outside {ids[0]}..{ids[1]} of register map {profile.name!r}",
                )


def _not_its_own(config: Config, board: Board, file: "Calibration") -> str | None:
    """Why a calibration is not of this board, as far as that can be told before it is asked."""
    if file.supply != config.rack.supply:
        return f"made on {file.supply.upper()}, rack.supply is {config.rack.supply!r}: calibrate again"
    if board.driver == "iio" and file.board != board.id:  # two of one kind have one name, and no serial number
        return f"of board {file.board!r}, this is {board.id!r}; a Linux IIO device has no serial number, so its file goes by the board's id"
    return None


def _numbers_beyond(config: Config, pdu: str, profile: str, most: int) -> Iterator[tuple[Loc, str]]:
    """Outlet numbers that no device of the family has."""
    for i, group in enumerate(config.outlet):
        beyond = [number for number in expand_numbers(group.numbers) if not 1 <= number <= most]
        if group.pdu == pdu and beyond:
            yield (
                ("outlet", i, "numbers"),
                f"outlet {beyond[0]} is outside 1..{most} of profile {profile!r} of PDU {pdu!r}",
            )
    measured = _measured_by_boards(config)
    for row in config.outlets():
        meter, _, number = row.meter.partition("/")
        if meter == pdu != row.pdu and row.id not in measured and not 1 <= int(number) <= most:
            yield (
                ("outlet", row.group, "meter"),
                f"{row.meter}: number {number} is outside 1..{most} of profile {profile!r}",
            )


def _not_to_be_held(config: Config, pdu: str, profile: Profile) -> Iterator[tuple[Loc, str]]:
    """STATIC_SAFE of outlets of ours that the family's thresholds cannot hold: too low for one step, or too high."""
    limit = profile.limit
    volts = 1.0 if limit is None or limit.unit == "W" else config.rack.nominal_v
    if limit is None or limit.scale is None or not volts:
        return
    step = limit.step() * Fraction(str(volts))
    low_w, high_w = from_wire(limit.minimum, step), from_wire(limit.maximum, step)
    for i, group in enumerate(config.outlet):
        if group.pdu != pdu or not group.closed_loop:
            continue
        if not limit.minimum <= to_wire(group.static_safe_w, step, limit.granularity) <= limit.maximum:
            yield (
                ("outlet", i, "static_safe_w"),
                f"{group.static_safe_w:g} W is no limit that profile {profile.name!r} of PDU {pdu!r} can hold:"
                f" {low_w:g}..{high_w:g} W" + (f" at rack.nominal_v = {volts:g} V" if limit.unit == "A" else ""),
            )


def _unmeasured(config: Config, pdu: str, profile: str) -> Iterator[tuple[Loc, str]]:
    """Groups with outlets that would never have a reading: the device that stands for them measures no draw."""
    measured = _measured_by_boards(config)
    blind = {
        row.group: row for row in config.outlets() if row.meter.partition("/")[0] == pdu and row.id not in measured
    }
    for group, row in blind.items():
        yield (
            ("outlet", group, "meter"),
            f"nothing measures outlet {row.id}: profile {profile!r} of PDU {pdu!r} has no power and no current; "
            "name a meter, or give it a channel of a board",
        )


def _measured_by_boards(config: Config) -> set[str]:
    return {name for board in config.board for name in board.currents()}
