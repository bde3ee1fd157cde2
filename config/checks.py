"""What no single key can tell: names that must exist, sums that must fit, files that must be there."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from rpi_daemon.config.schema import (
    CREDENTIAL,
    Cap,
    Config,
    Constraint,
    Pdu,
    Telemetry,
    TrapSink,
    expand_numbers,
    secret_path,
)
from rpi_daemon.roles import group_id
from rpi_daemon.small_file import is_file, read_small

Loc = tuple[str | int, ...]
Found = tuple[Loc, str]
LOOSE_FILE_BITS = 0o077
MOST_SECRET_BYTES = 10_000
LONGEST_CAPTURE = 3  # times its usual length, see rpi_daemon/captures.py
CAPTURE_LATE_S = 3.0  # a disk may be so late before the raw ring has overwritten what is to be kept
LONGEST_SOCKET_PATH = 107  # octets, unix(7): 108 with the zero at its end
LONGEST_SOCKET_NAME = len("telemetry.sock")
PORTS = {"snmp": 161, "modbus_tcp": 502}  # where a PDU says none


def cross_check(config: Config, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    """Every mistake that spans keys, as (location, sentence)."""
    yield from _unique(config)
    yield from _folders(config, base_dir)
    yield from _groups(config)
    yield from _outlets(config)
    yield from _channels(config)
    yield from _constraints(config)
    yield from _loads(config)
    yield from _pdus(config, base_dir, env)
    yield from _boards(config, base_dir)
    yield from _caps(config, base_dir, env)
    yield from _telemetry(config, base_dir, env)
    yield from _trap_sinks(config, base_dir, env)
    yield from _captures(config)
    yield from _retrain(config)


def _folders(config: Config, base_dir: Path) -> Iterator[Found]:
    for key in ("state_dir", "runtime_dir"):
        path = base_dir / getattr(config.daemon, key)
        if is_file(path):
            yield ("daemon", key), f"{path} is a file; a folder is needed"
    runtime_dir = base_dir / config.daemon.runtime_dir
    octets, most = len(os.fsencode(runtime_dir)), LONGEST_SOCKET_PATH - 1 - LONGEST_SOCKET_NAME
    if octets > most:
        yield ("daemon", "runtime_dir"), f"{runtime_dir} has {octets} octets; for the sockets in it {most} are allowed"


def _groups(config: Config) -> Iterator[Found]:
    for key in ("read_group", "operate_group", "admin_group"):
        name = getattr(config.daemon, key)
        if name is not None and group_id(name) is None:
            yield ("daemon", key), f"no group is called {name!r} on this host; make it (groupadd --system {name})"


def _retrain(config: Config) -> Iterator[Found]:
    first, _, last = config.retrain.hours.partition("-")
    if first == last:
        yield ("retrain", "hours"), f"{config.retrain.hours!r} is no time at all; such as '01:00-05:00'"
    if config.retrain.history_days < config.retrain.min_history_days:
        yield (
            ("retrain", "history_days"),
            f"{config.retrain.history_days:g} days are fewer than min_history_days = {config.retrain.min_history_days:g}",
        )


def _close(name: str, known: Sequence[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known) or 'none'}"


def _unique(config: Config) -> Iterator[Found]:
    for section in ("board", "pdu", "constraint", "load", "trap_sink"):
        seen: dict[str, int] = {}
        for i, item in enumerate(getattr(config, section)):
            if item.id in seen:
                yield (section, i, "id"), f"{item.id!r} is also the id of {section} {seen[item.id] + 1}"
            seen[item.id] = i
    seen_outlet: dict[str, int] = {}
    for i, group in enumerate(config.outlet):
        for number in expand_numbers(group.numbers):
            key = f"{group.pdu}/{number}"
            if key in seen_outlet:
                yield ("outlet", i, "numbers"), f"outlet {key} is also in outlet table {seen_outlet[key] + 1}"
            seen_outlet[key] = i


def _outlets(config: Config) -> Iterator[Found]:
    pdus = [pdu.id for pdu in config.pdu]
    for i, group in enumerate(config.outlet):
        if group.pdu not in pdus:
            yield ("outlet", i, "pdu"), f"no PDU is called {group.pdu!r}{_close(group.pdu, pdus)}"
        if group.static_safe_w > group.rating_w:
            yield ("outlet", i, "static_safe_w"), f"{group.static_safe_w:g} W is above rating_w = {group.rating_w:g} W"
        if group.closed_loop and group.static_safe_w < (lowest_w := min(config.guard.lowest_limit_w, group.rating_w)):
            yield (
                ("outlet", i, "static_safe_w"),
                f"{group.static_safe_w:g} W is below guard.lowest_limit_w = {lowest_w:g} W",
            )
        if (config.rack.supply == "dc") != (group.phases == ["DC"]):
            yield ("outlet", i, "phases"), f"{group.phases} does not fit rack.supply = {config.rack.supply!r}"


def _channels(config: Config) -> Iterator[Found]:
    outlets = {outlet.id for outlet in config.outlets()}
    seen: dict[str, str] = {}
    for i, board in enumerate(config.board):
        for channel in board.channels:
            kind, name, *_ = (*channel.split(":"), "")
            if kind != "current":
                continue
            if name not in outlets:
                yield (
                    ("board", i, "channels"),
                    f"{channel!r}: no outlet is called {name!r}{_close(name, sorted(outlets))}",
                )
            elif name in seen:
                yield (
                    ("board", i, "channels"),
                    f"{channel!r}: outlet {name} is measured by board {seen[name]!r} already",
                )
            seen[name] = board.id
    pdus = [pdu.id for pdu in config.pdu]
    stands_for: dict[str, str] = {}
    for outlet in config.outlets():
        pdu = outlet.meter.partition("/")[0]
        if pdu not in pdus:
            yield ("outlet", outlet.group, "meter"), f"no PDU is called {pdu!r}{_close(pdu, pdus)}"
        if outlet.id in seen:
            continue
        other = stands_for.setdefault(outlet.meter, outlet.id)
        if other != outlet.id:
            yield (
                ("outlet", outlet.group, "meter"),
                f"outlet {outlet.id} would go by meter {outlet.meter}, as {other} does already: one of them draws something else",
            )


def _constraints(config: Config) -> Iterator[Found]:
    ids = [outlet.id for outlet in config.outlets()]
    for i, constraint in enumerate(config.constraint):
        if constraint.rating_w is None and constraint.rating_va is None and constraint.rating_a is None:
            yield ("constraint", i), "needs rating_w, rating_va or rating_a"
            continue
        members: set[str] = set()
        for pattern in constraint.outlets:
            try:
                chosen = config.match_outlets(pattern)
            except ValueError as error:
                yield ("constraint", i, "outlets"), str(error)
                continue
            if not chosen:
                yield ("constraint", i, "outlets"), f"{pattern!r} matches no outlet{_close(pattern.split('/')[0], ids)}"
            members.update(chosen)
        yield from _static_safe_fits(config, i, constraint, members)
    covered = {name for c in config.constraint for name in _members(config, c)}
    for outlet in config.outlets():
        if outlet.closed_loop and outlet.id not in covered:
            yield (
                ("outlet", outlet.group, "closed_loop"),
                f"outlet {outlet.id} is in closed loop but on no breaker or other constraint",
            )


def _members(config: Config, constraint: Constraint) -> set[str]:
    try:
        return {name for pattern in constraint.outlets for name in config.match_outlets(pattern)}
    except ValueError:
        return set()


def _static_safe_fits(config: Config, i: int, constraint: Constraint, members: set[str]) -> Iterator[Found]:
    """STATIC_SAFE must hold every breaker without any help: its sum is within each derated rating, at the assumed PF."""
    total_w = sum(outlet.static_safe_w for outlet in config.outlets() if outlet.id in members)
    power_factor = config.allocator.assumed_power_factor if config.rack.supply == "ac" else 1.0
    total_va = total_w / power_factor
    for key, rating, total, unit in (
        ("rating_w", constraint.rating_w, total_w, "W"),
        ("rating_va", constraint.rating_va, total_va, "VA"),
        ("rating_a", constraint.rating_a, total_va / config.rack.nominal_v, "A"),
    ):
        if rating is not None and total > rating * constraint.derate * (1 + 1e-9):
            yield (
                ("constraint", i, key),
                f"static_safe_w of its {len(members)} outlets adds up to {total:.6g} {unit}, above {rating:g} {unit} x derate"
                f" {constraint.derate:g} = {rating * constraint.derate:.6g} {unit}"
                + ("" if unit == "W" else f" (power factor {power_factor:g}, allocator.assumed_power_factor)")
                + "; lower static_safe_w or move outlets",
            )


def _loads(config: Config) -> Iterator[Found]:
    fed: dict[str, list[str]] = {}
    for outlet in config.outlets():
        fed.setdefault(outlet.load, []).append(outlet.id)
    group_of = {outlet.load: outlet.group for outlet in config.outlets()}
    for name, outlets in fed.items():
        if len(outlets) > 2:
            yield (
                ("outlet", group_of[name], "load"),
                f"load {name!r} has {len(outlets)} outlets ({', '.join(outlets)}); a load has one or two",
            )
    rating = {outlet.id: outlet.rating_w for outlet in config.outlets()}
    static = {outlet.id: outlet.static_safe_w for outlet in config.outlets()}
    for i, load in enumerate(config.load):
        if load.id not in fed:
            yield ("load", i, "id"), f"no outlet feeds a load called {load.id!r}{_close(load.id, sorted(fed))}"
            continue
        if load.critical and load.sheddable:
            yield ("load", i, "sheddable"), f"load {load.id!r} is critical; it cannot be sheddable"
        # each outlet must carry all of it: losing a feed moves the whole draw to the other
        static_o = min(fed[load.id], key=static.__getitem__)
        rating_o = min(fed[load.id], key=rating.__getitem__)
        if load.floor_w > static[static_o]:
            yield (
                ("load", i, "floor_w"),
                f"{load.floor_w:g} W is above static_safe_w = {static[static_o]:g} W of outlet {static_o}, which must carry it alone",
            )
        if load.demand_w is not None and load.demand_w > rating[rating_o]:
            yield (
                ("load", i, "demand_w"),
                f"{load.demand_w:g} W is above rating_w = {rating[rating_o]:g} W of outlet {rating_o}, which must carry it alone",
            )
    for i, entry in enumerate(config.schedule):
        if entry.load not in fed:
            yield (
                ("schedule", i, "load"),
                f"no outlet feeds a load called {entry.load!r}{_close(entry.load, sorted(fed))}",
            )


def _pdus(config: Config, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    addresses: dict[tuple[str | None, int | None, int | None], str] = {}
    lines: dict[str | None, tuple[str, tuple[int, str, int]]] = {}
    for i, pdu in enumerate(config.pdu):
        wire = pdu.serial_port if pdu.driver == "modbus_rtu" else pdu.host
        if wire is None:
            yield (
                ("pdu", i),
                f"needs {'serial_port' if pdu.driver == 'modbus_rtu' else 'host'} for driver {pdu.driver!r}",
            )
        place = (
            wire,
            pdu.port or PORTS.get(pdu.driver),
            pdu.unit if pdu.driver == "snmp" else pdu.device_id,
        )  # units of a chain share an address
        if place in addresses:
            yield ("pdu", i), f"stands at the same address as PDU {addresses[place]!r}"
        addresses[place] = pdu.id
        if pdu.driver == "modbus_rtu":
            line = (pdu.baud, pdu.parity, pdu.stop_bits)
            first, on_line = lines.setdefault(pdu.serial_port, (pdu.id, line))
            if line != on_line:
                yield ("pdu", i), f"drives {pdu.serial_port} with another baud, parity or stop_bits than PDU {first!r}"
        if pdu.driver == "modbus_tcp" and not pdu.allow_insecure:
            yield (
                ("pdu", i, "driver"),
                "Modbus TCP has no authentication; set allow_insecure = true to accept that on this network",
            )
        if pdu.driver == "snmp":
            yield from _snmp_secrets(("pdu", i), pdu, base_dir, env)


def _trap_sinks(config: Config, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    for i, sink in enumerate(config.trap_sink):
        yield from _snmp_secrets(("trap_sink", i), sink, base_dir, env)


def _caps(config: Config, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    loads = sorted({outlet.load for outlet in config.outlets()})
    seen: dict[str, int] = {}
    places: dict[tuple[str, int, str | None], int] = {}
    for i, cap in enumerate(config.cap):
        if cap.load not in loads:
            yield ("cap", i, "load"), f"no outlet feeds a load called {cap.load!r}{_close(cap.load, loads)}"
        if cap.load in seen:
            yield ("cap", i, "load"), f"load {cap.load!r} has cap {seen[cap.load] + 1} already"
        seen[cap.load] = i
        static = min(((o.static_safe_w, o.id) for o in config.outlets() if o.load == cap.load), default=None)
        if static is not None and cap.lowest_w is not None and cap.lowest_w > static[0]:
            yield (
                ("cap", i, "lowest_w"),
                f"{cap.lowest_w:g} W is above static_safe_w = {static[0]:g} W of outlet {static[1]}, at which the cap is left at stop",
            )
        place = (cap.host, cap.port, cap.resource)
        if place in places:
            yield (
                ("cap", i, "host"),
                f"cap {places[place] + 1} is at {cap.host}:{cap.port} too; set resource where a BMC has several",
            )
        places[place] = i
        if cap.tls_ca_file is not None and not is_file(base_dir / cap.tls_ca_file):
            yield ("cap", i, "tls_ca_file"), f"{base_dir / cap.tls_ca_file}: no such file"
        yield from _one_way(cap, ("cap", i), "the BMC's")
        yield from _secret(cap, ("cap", i), "password", base_dir, env, least=1)


def _one_way(section: Cap | Telemetry, place: Loc, whose: str) -> Iterator[Found]:
    ways = [key for key in ("tls_ca_file", "tls_fingerprint", "allow_insecure") if getattr(section, key)]
    if len(ways) > 1:
        yield (*place, ways[1]), f"one of {' and '.join(ways)}: each is another way to know {whose} certificate"


FOR_SCRAPING = (
    *("url", "user", "password_file", "password_env", "token_file", "token_env"),
    *("tls_ca_file", "tls_fingerprint", "allow_insecure", "network_mbit_s"),
)


def _telemetry(config: Config, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    loads = sorted({outlet.load for outlet in config.outlets()})
    seen: dict[str, int] = {}
    urls: dict[str, int] = {}
    for i, item in enumerate(config.telemetry):
        place = ("telemetry", i)
        if item.load not in loads:
            yield (*place, "load"), f"no outlet feeds a load called {item.load!r}{_close(item.load, loads)}"
        if item.load in seen:
            yield (*place, "load"), f"load {item.load!r} has telemetry {seen[item.load] + 1} already"
        seen[item.load] = i
        if item.driver == "feed":
            for key in FOR_SCRAPING:
                if getattr(item, key):
                    yield (*place, key), "is for driver 'node_exporter'; nobody is asked for a feed"
            continue
        if item.url is None:
            yield place, "needs url for driver 'node_exporter'"
            continue
        if item.url in urls:
            yield (
                (*place, "url"),
                f"telemetry {urls[item.url] + 1} is at {'this address' if '@' in item.url else item.url} too: one host is one load",
            )
        urls[item.url] = i
        yield from _host_url(item, place)
        if item.tls_ca_file is not None and not is_file(base_dir / item.tls_ca_file):
            yield (*place, "tls_ca_file"), f"{base_dir / item.tls_ca_file}: no such file"
        yield from _host_secrets(item, place, base_dir, env)


def _host_url(item: Telemetry, place: Loc) -> Iterator[Found]:
    """Whether it is an address that may be asked as the options say."""
    parts = _split(item.url or "")
    if "@" in (item.url or "").partition("?")[0]:
        yield (*place, "url"), "holds a user name or password; give user and password_file instead"
    elif parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        yield (*place, "url"), f"{item.url!r} is not an address such as 'https://192.0.2.40:9100/metrics'"
    elif parts.scheme == "https":
        yield from _one_way(item, place, "the host's")
    elif not item.allow_insecure:
        yield (
            (*place, "url"),
            "plain HTTP: others on the network can read it, and answer in the host's place; set allow_insecure = true to accept that, or use https",
        )
    elif item.tls_ca_file or item.tls_fingerprint:
        yield (*place, "url"), "plain HTTP has no certificate; use https, or drop tls_ca_file and tls_fingerprint"


def _split(url: str) -> SplitResult | None:
    """The parts of an address; None for what is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.port != 0 and url.isprintable() and " " not in url else None
    except ValueError:
        return None


def _host_secrets(item: Telemetry, place: Loc, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    password = item.password_file is not None or item.password_env is not None
    token = item.token_file is not None or item.token_env is not None
    if token and (password or item.user is not None):
        yield (*place, "token_file" if item.token_file else "token_env"), "give a token, or user and password, not both"
    elif token:
        yield from _secret(item, place, "token", base_dir, env, least=1)
    elif item.user is not None:
        yield from _secret(item, place, "password", base_dir, env, least=1)
    elif password:
        yield (*place, "user"), "is needed with a password"


def _snmp_secrets(place: Loc, section: Pdu | TrapSink, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    if section.version == "2c":
        if not section.allow_insecure:
            yield (
                (*place, "version"),
                "2c sends the community and everything else in plain text; set allow_insecure = true to accept that, or use '3'",
            )
        yield from _secret(section, place, "community", base_dir, env, least=1)
    else:
        if not section.user:
            yield (*place, "user"), "is needed for version 3"
        yield from _secret(section, place, "auth_key", base_dir, env, least=8)
        yield from _secret(section, place, "priv_key", base_dir, env, least=8)


def snmp_mistakes(section: Pdu, base_dir: Path, env: Mapping[str, str]) -> Iterator[Found]:
    """What is wrong with one PDU's way in, without a configuration around it; locations are its keys."""
    yield from _snmp_secrets((), section, base_dir, env)


def _secret(
    section: Pdu | TrapSink | Cap | Telemetry, place: Loc, name: str, base_dir: Path, env: Mapping[str, str], least: int
) -> Iterator[Found]:
    file_name = getattr(section, f"{name}_file")
    variable = getattr(section, f"{name}_env")
    if (file_name is None) == (variable is None):
        yield (*place, f"{name}_file"), f"give one of {name}_file and {name}_env"
    elif variable is not None:
        if len(env.get(variable, "")) < least:
            yield (
                (*place, f"{name}_env"),
                f"environment variable {variable} is not set, or shorter than {least} characters",
            )
    else:
        credential = file_name.removeprefix(CREDENTIAL)
        if credential != file_name and Path(credential).name != credential:
            yield (*place, f"{name}_file"), f"{file_name!r} is not written like 'credential:auth.key'"
        else:
            yield from _secret_file(secret_path(file_name, base_dir, env), (*place, f"{name}_file"), least)


def _secret_file(path: Path, loc: Loc, least: int) -> Iterator[Found]:
    try:
        text = read_small(path, MOST_SECRET_BYTES).decode("utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        yield loc, f"{path}: {reason}"
        return
    if mode & LOOSE_FILE_BITS:
        yield loc, f"{path}: mode {mode & 0o777:04o} lets others read it; chmod 0600 it"
    if len(text) < least:
        yield loc, f"{path}: holds fewer than {least} characters"


def _boards(config: Config, base_dir: Path) -> Iterator[Found]:
    ports: dict[str, str] = {}
    for i, board in enumerate(config.board):
        if board.driver == "serial" and board.port is not None:
            other = ports.setdefault(str(base_dir / board.port), board.id)
            if other != board.id:
                yield ("board", i, "port"), f"{board.port!r} is also the port of board {other!r}"
        if board.driver == "serial" and board.port is None:
            yield ("board", i, "port"), "is needed for driver 'serial'"
        if board.driver == "iio" and board.iio_device is None:
            yield ("board", i, "iio_device"), "is needed for driver 'iio'"
        if board.iio_gains is not None and len(board.iio_gains) != len(board.channels):
            yield (
                ("board", i, "iio_gains"),
                f"{len(board.iio_gains)} gains for {len(board.channels)} channels; give one for each",
            )
        if board.calibration is not None and not is_file(base_dir / board.calibration):
            yield ("board", i, "calibration"), f"{base_dir / board.calibration}: no such file"
        if board.driver == "replay" and board.trace is None:
            yield ("board", i, "trace"), "is needed for driver 'replay'"
        if board.driver == "replay" and board.trace is not None and not is_file(base_dir / board.trace):
            yield ("board", i, "trace"), f"{base_dir / board.trace}: no such file"
        if board.driver in ("simulated", "replay") and not board.currents():
            yield ("board", i, "channels"), f"driver {board.driver!r} needs an outlet to measure: 'current:PDU/OUTLET'"
        if config.rack.supply == "dc" and any(c.startswith("voltage:L") for c in board.channels):
            yield ("board", i, "channels"), "a DC rack has voltage:DC, not phases"
        if config.rack.supply == "ac" and "voltage:DC" in board.channels:
            yield ("board", i, "channels"), "an AC rack has phases, not voltage:DC"


def _captures(config: Config) -> Iterator[Found]:
    options = config.history
    needed_s = LONGEST_CAPTURE * (options.capture_before_s + options.capture_after_s) + CAPTURE_LATE_S
    if options.enabled and options.capture and needed_s > config.sampling.raw_ring_s:
        yield (
            ("sampling", "raw_ring_s"),
            f"{config.sampling.raw_ring_s:g} s are less than a capture may need: 3 x (history.capture_before_s +"
            f" capture_after_s) + {CAPTURE_LATE_S:g} s = {needed_s:g} s",
        )
