"""Configurations: whatever the text, a checked one comes out, or a ConfigError whose every line names file, line and key."""

import copy
import functools
import json
import math
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from config_examples import BASE, ENV
from fuzz.target import Choices, Target, must, scratch
from pydantic import BaseModel

from rpi_daemon.assembly import meters
from rpi_daemon.config.changes import SET_BY_LOADER, changes
from rpi_daemon.config.load import MAX_BYTES, load_config, read_config, read_folders, section_of
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Config
from rpi_daemon.devices import device_mistakes, load_checked
from rpi_daemon.errors import ConfigError
from rpi_daemon.reload import prepare

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
# a good configuration with every kind of section, so that one change reaches each check
FULL = """
[rack]
id = "r"
[daemon]
read_group = "daemon"
[[board]]
id = "b"
port = "/dev/ttyACM0"
channels = ["current:a/1", "current:a/2:reversed", "voltage:L1", "unused"]
[[board]]
id = "i"
driver = "iio"
iio_device = "adc"
channels = ["current:c/1", "voltage:L2"]
iio_gains = [1.0, 100.0]
[[board]]
id = "y"
driver = "replay"
channels = ["current:c/2"]
trace = "t.csv"
[[pdu]]
id = "a"
profile = "own.toml"
host = "192.0.2.1"
user = "u"
auth_key_file = "good.key"
priv_key_file = "credential:auth.key"
[[pdu]]
id = "c"
profile = "own.toml"
host = "192.0.2.2"
unit = 1
version = "2c"
community_file = "good.key"
allow_insecure = true
[[pdu]]
id = "m"
profile = "map.toml"
driver = "modbus_tcp"
host = "192.0.2.3"
allow_insecure = true
[[pdu]]
id = "r1"
profile = "map.toml"
driver = "modbus_rtu"
serial_port = "/dev/ttyS0"
[[pdu]]
id = "r2"
profile = "map.toml"
driver = "modbus_rtu"
serial_port = "/dev/ttyS0"
device_id = 2
[[outlet]]
pdu = "a"
numbers = "1-2"
load = "n{n}"
rating_w = 500.0
static_safe_w = 300.0
closed_loop = true
[[outlet]]
pdu = "c"
numbers = "1,2"
load = "n{n}"
rating_w = 500.0
static_safe_w = 300.0
[[outlet]]
pdu = "c"
numbers = "3"
load = "n3"
meter = "m/{n}"
phases = ["L1", "L2"]
rating_w = 400.0
static_safe_w = 200.0
[[load]]
id = "n1"
floor_w = 100.0
demand_w = 400.0
critical = true
[[load]]
id = "n2"
sheddable = true
[[cap]]
load = "n1"
host = "192.0.2.4"
user = "u"
password_file = "good.key"
tls_ca_file = "ca.pem"
lowest_w = 100.0
[[cap]]
load = "n2"
host = "192.0.2.4"
resource = "/redfish/v1/Chassis/2"
user = "u"
password_env = "RPI_PDU_AUTH"
[[telemetry]]
load = "n1"
url = "https://h:9100/metrics"
user = "u"
password_file = "good.key"
[[telemetry]]
load = "n2"
url = "http://g/metrics"
token_env = "RPI_PDU_AUTH"
allow_insecure = true
[[telemetry]]
load = "n3"
driver = "feed"
[[trap_sink]]
id = "s"
host = "h"
version = "2c"
community_env = "RPI_PDU_AUTH"
allow_insecure = true
[[trap_sink]]
id = "t"
host = "h"
user = "u"
auth_key_env = "RPI_PDU_AUTH"
priv_key_file = "good.key"
[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 16.0
rating_va = 4000.0
outlets = ["a/*", "c/1-2"]
[[constraint]]
id = "rack"
kind = "rack"
rating_w = 4000.0
outlets = ["*"]
[[schedule]]
load = "n1"
at = "02:00"
delta_w = 50.0
"""
PROFILE = (Path(__file__).parents[2] / "drivers/pdu/profiles/apc_spdu.toml").read_bytes()
BASES = [tomllib.loads(text) for text in (BASE, FULL, *(p.read_text() for p in sorted(EXAMPLES.glob("*.toml"))))]
LINES = [text.splitlines() for text in (BASE, FULL, *(p.read_text() for p in sorted(EXAMPLES.glob("*.toml"))))]
VALUES = (
    "0", "-1", "1", "2.5", "1e400", "nan", "inf", "true", '""', '"a"', '"a/*"', '"1-2"', '"1-999999999"', '"../x"', '"\\u0000"', "[]",
    '["a/1"]', '["a/*"]', "[[]]", "{}", "{a=1}", "1979-05-27T07:32:00Z", "99999999999999999999", '"advisory"', '"closed_loop"',
    "0x7fffffff", "'''x'''", '"https://h"', '"127.0.0.1"', '"\\uffff"', '"300"', "16.0", "300.0",
)  # fmt: skip
# what an option may hold beyond its default and examples: names that are there and that are not, near misses
WORDS: dict[str, tuple[object, ...]] = {
    "load": ("n1", "n2", "n3", "n9", "n{n}", ""), "pdu": ("a", "c", "m", "q"), "id": ("a", "b", "n1", "breaker", "s", "x\n", "x"),
    "numbers": ("1", "2", "1-3", "2-1", "1,1", "4", "1-2\n", "1-2000", "0-999,1000-1999", "\u0661", "9" * 30, "3", "x"),
    "outlets": (["a/*"], ["*"], ["a/1", "c/1"], ["a"], ["a/9"], ["zz/*"], ["a/x"], [], ["a/1\n"]),
    "channels": (["current:a/1"], ["current:a/1", "current:a/1"], ["voltage:L1\n"], ["voltage:DC"], ["unused"], ["current:zz/1"], ["x"],
                 ["current:c/3", "voltage:L1", "voltage:L2"], ["current:a/\u0661"]),
    "meter": ("m/1", "m/{n}", "a/1", "q/1", "m/x", "m", "m/", "m/-1", "m/1/2", "m/999", "m/ 1", ""), "phases": (["DC"], ["L1"], ["L1", "L2"], []),
    "supply": ("dc", "ac"), "url": ("https://h/metrics", "http://h/m", "https://u:p@h/", "ftp://h", "https://h:0/", "https://[", "https://h/#x", "https:///", "https://h/ x", ""),
    "version": ("2c", "3", "1"), "driver": ("snmp", "modbus_tcp", "modbus_rtu", "feed", "node_exporter", "serial", "iio", "replay", "simulated"),
    "tls_fingerprint": ("00" * 32, "00"), "hours": ("01:00-01:00", "22:00-04:00", "1-2"), "profile": ("own.toml", "map.toml", "none.toml", "nobody", "raritan_px"),
    "calibration": ("cal.json", "none.json", "folder", "x\0"), "trace": ("t.csv", "none.csv"), "tls_ca_file": ("ca.pem", "none.pem"),
    "read_group": ("daemon", "nobody-s-group"), "admin_group": ("bin",), "operate_group": ("bin", "x y"), "user": ("", "u"),
    "host": ("192.0.2.1", "192.0.2.4", ""), "resource": ("/redfish/v1", "x"), "iio_gains": ([1.0], [1.0, 2.0], [0.0]),
    "outlet": ([], [1], 5), "socket_mode": ("0660", "0660\n", "660"), "at": ("25:00", "02:00\n"), "serial_port": ("/dev/ttyS0", ""),
}  # fmt: skip
FILES = (
    "good.key",
    "loose.key",
    "short.key",
    "binary.key",
    "folder",
    "none",
    "x\0",
    "credential:auth.key",
    "credential:../good.key",
    "credential:none",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    0.5,
    0.0,
    -0.0,
    1.0,
    100.0,
    250.0,
    600.0,
    1e4,
    1e6,
    1e7,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    2**31,
    2**63,
    2**70,
    True,
)
# what a running daemon may take over, written down a second time: docs/operations.md
LIVE = {
    "daemon.log_level", "pdu.writes_per_day", "outlet.static_safe_w", "outlet.closed_loop", "load.*", "constraint.*", "retrain.*", "corrector.*",
    "allocator.*", "guard.*", "actuator.*", "schedule.*", "traps.heartbeat_s", "traps.per_minute", "trap_sink.min_severity",
}  # fmt: skip
NEVER = {"actuator.step_w"}


@functools.cache
def place() -> Path:
    """A folder with the files that a configuration may name."""
    folder = scratch() / "configuration"
    (folder / "folder").mkdir(parents=True)
    (folder / "credentials").mkdir()
    for name, content in (
        ("good.key", b"a long pass phrase\n"), ("loose.key", b"a long pass phrase"), ("short.key", b"short"), ("binary.key", b"\xff" * 20),
        ("credentials/auth.key", b"a long pass phrase"), ("t.csv", b"t_s,power_w\n0,1\n1,1\n"), ("ca.pem", b"x"), ("cal.json", b"{}"),
        ("own.toml", PROFILE), ("map.toml", b"[["),
    ):  # fmt: skip
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644 if name == "loose.key" else 0o600)
    os.environ.update(ENV)
    os.environ.pop("CREDENTIALS_DIRECTORY", None)
    (folder / "running.toml").write_text(BASE)
    return folder


@functools.cache
def running() -> Config:
    """What a daemon runs with when it reads the file again."""
    (place() / "fuzz.toml").write_text(BASE)
    return load_checked(place() / "fuzz.toml")


@functools.cache
def options() -> dict[str, dict[str, tuple[object, ...]]]:
    """Section -> option -> values worth a try, from the schema itself."""
    found = {}
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            found[name] = {key: tuple(values_of(section, key)) for key in section.model_fields}
    return found


def values_of(section: type[BaseModel], key: str) -> Iterator[object]:
    field = section.model_fields[key]
    default = field.get_default()
    yield from WORDS.get(key, ())
    yield from field.examples or ()
    if default is not None and not isinstance(default, BaseModel) and repr(default) != "PydanticUndefined":
        yield default
    if key.endswith("_file"):
        yield from FILES
    if key.endswith("_env"):
        yield from ("RPI_PDU_AUTH", "NONE", "")
    words = re.findall(r"\w+", str(field.annotation))
    if "float" in words or "int" in words:
        yield from NUMBERS
        bounds = (getattr(part, name, None) for part in field.metadata for name in ("gt", "ge", "le"))
        yield from (float(bound) for bound in bounds if isinstance(bound, int | float))
    for inner in (field.annotation, *get_args(field.annotation)):
        yield from (word for word in get_args(inner) if isinstance(word, str))
    yield from (True, False) if "bool" in words else ()


def toml(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")


def written(tables: dict[str, Any]) -> str:
    lines: list[str] = []
    for name, content in tables.items():
        inner = (
            content
            if isinstance(content, list) and content and all(isinstance(part, dict) for part in content)
            else [content]
        )
        if not all(isinstance(part, dict) for part in inner):
            lines.insert(0, f"{name} = {toml(content)}")
            continue
        for part in inner:
            lines.append(f"[[{name}]]" if isinstance(content, list) else f"[{name}]")
            lines += [f"{key} = {toml(value)}" for key, value in part.items()]
    return "\n".join(lines) + "\n"


def changed(choices: Choices) -> str:
    """A good configuration with a few options set to other values, tables twice, gone or new."""
    which = choices.byte()
    tables = copy.deepcopy(BASES[0] if which < 130 else BASES[1] if which < 240 else BASES[which % len(BASES)])
    for _ in range(1 + choices.below(4)):
        how, name = choices.byte(), choices.one(tuple(tables) if tables and choices.byte() < 160 else tuple(options()))
        content = tables.setdefault(name, [{}] if name in TABLES else {})
        parts = content if isinstance(content, list) else [content]
        if not parts or not isinstance(parts[0], dict):
            continue
        part = parts[choices.byte() % len(parts)]
        known = options().get(name) or {"x": (1,)}
        keys = tuple(part) if part and choices.byte() < 100 else tuple(known)
        key = choices.one(keys)
        if how < 170:
            part[key] = choices.one(known.get(key) or (1,))
        elif how < 200:
            part.pop(key, None)
        elif how < 215 and isinstance(content, list):
            content.append(copy.deepcopy(part))
        elif how < 230 and isinstance(content, list):
            content.remove(part)
        elif how < 240:
            part[choices.one(("x", key + "s", key[:-1] or "y", "base_dir"))] = 1
        elif how < 248:
            part[key] = choices.one(([], {}, [[]], {"a": 1}, [1], "x", 5, [{}], "9" * 30))
        else:
            tables[choices.one(("base_dir", "file", "rak", "x"))] = choices.one((1, "x", [], {}))
    return written(tables)


TABLES = {name for name, field in Config.model_fields.items() if str(field.annotation).startswith("list")}


def edited(choices: Choices) -> str:
    """A good configuration with lines changed, moved and added."""
    lines = list(choices.one(LINES) if choices.byte() >= 128 else LINES[0])
    for _ in range(choices.below(6)):
        kind, at = choices.below(7), choices.byte() % (len(lines) + 1)
        key = choices.one(KEYS)
        value = (
            choices.one(VALUES) if choices.byte() < 220 else choices.take(choices.below(16)).decode("utf-8", "replace")
        )
        if kind == 0:
            lines.insert(at, f"{key} = {value}")
        elif kind == 1:
            lines.insert(at, choices.one(SECTIONS))
        elif kind == 2 and lines:
            head = lines[at % len(lines)].split("=")[0]
            lines[at % len(lines)] = f"{head} = {value}"
        elif kind == 3 and lines:
            del lines[at % len(lines)]
        elif kind == 4 and lines:
            lines.insert(at, lines[choices.byte() % len(lines)])
        elif kind == 5:
            lines.insert(at, f"{choices.one(SECTIONS)}\n{key} = {value}")
        else:
            lines.insert(at, choices.take(choices.below(12)).decode("utf-8", "replace"))
    return "\n".join(lines)


KEYS = tuple(sorted({key for known in options().values() for key in known}))
SECTIONS = (*(f"[[{name}]]" if name in TABLES else f"[{name}]" for name in options()), "[a.b]", "[[outlet.x]]")
PRESENT = "# comment\n[x]\ny = '''\n'''\nz = [\n1,\n]\n"


# one step from the good configuration to each check that spans options
STEPS = (
    ('[rack]', '[retrain]\nhours = "01:00-01:00"\n[rack]'), ("[rack]", "[retrain]\nhistory_days = 1.0\nmin_history_days = 2.0\n[rack]"),
    ("[rack]", "[sampling]\nraw_ring_s = 10.0\n[rack]"), ('id = "r"', 'id = "r"\nsupply = "dc"'), ('meter = "m/{n}"', 'meter = "m/3"\nrating_w = 9.0\nstatic_safe_w = 9.0\n[[outlet]]\npdu = "c"\nnumbers = "4"\nload = "n4"\nmeter = "m/3"'),
    ('meter = "m/{n}"', 'meter = "m/x"'), ('meter = "m/{n}"', 'meter = "q/1"'), ('["a/*", "c/1-2"]', '["c/1-2"]'), ('["a/*", "c/1-2"]', '["a/1-2", "c/9"]'),
    ('["*"]', '["c/*"]'), ('["*"]', '["a"]'), ('["*"]', '["a/3-1"]'), ('["*"]', '["a/1-2000"]'), ('["*"]', '["a/1,1"]'), ("rating_w = 4000.0\n", ""), ("rating_va = 4000.0", "rating_va = 400.0"),
    ("critical = true", "critical = true\nsheddable = true"), ("floor_w = 100.0", "floor_w = 301.0"), ("demand_w = 400.0", "demand_w = 501.0"),
    ('device_id = 2', 'device_id = 2\nbaud = 9600'), ("device_id = 2", ""), ('"ca.pem"', '"none.pem"'), ("lowest_w = 100.0", "lowest_w = 301.0"),
    ('resource = "/redfish/v1/Chassis/2"\n', ""), ('load = "n2"\nhost', 'load = "n1"\nhost'), ('load = "n2"\nhost', 'load = "n9"\nhost'),
    ('tls_ca_file = "ca.pem"', 'tls_ca_file = "ca.pem"\nallow_insecure = true'), ("http://g/metrics", "https://h:9100/metrics"), ("http://g/metrics", "https://g/metrics"),
    ("https://h:9100", "ftp://h"), ("https://h:9100", "https://u:p@h"), ("https://h:9100", "http://h"), ("https://h:9100", "https://[h"), ("https://h:9100", "https://h:0"),
    ('url = "https://h:9100/metrics"\n', ""), ('token_env = "RPI_PDU_AUTH"\n', 'token_env = "RPI_PDU_AUTH"\nuser = "u"\n'),
    ('token_env = "RPI_PDU_AUTH"\n', 'token_file = "good.key"\npassword_env = "RPI_PDU_AUTH"\n'), ('token_env = "RPI_PDU_AUTH"\n', ""),
    ('token_env = "RPI_PDU_AUTH"\n', 'tls_ca_file = "ca.pem"\n'), ('token_env = "RPI_PDU_AUTH"\n', 'tls_ca_file = "none.pem"\n'),
    ('user = "u"\npassword_file = "good.key"\n[[telemetry]]', 'password_file = "good.key"\n[[telemetry]]'), ('driver = "feed"', 'driver = "feed"\nuser = "u"'),
    ('load = "n2"\nurl', 'load = "n1"\nurl'), ('load = "n2"\nurl', 'load = "n9"\nurl'),
    ('auth_key_file = "good.key"', 'auth_key_file = "loose.key"'), ('auth_key_file = "good.key"', 'auth_key_file = "short.key"'),
    ('auth_key_file = "good.key"', 'auth_key_file = "binary.key"'), ('auth_key_file = "good.key"', 'auth_key_file = "folder"'),
    ('auth_key_file = "good.key"', 'auth_key_file = "credential:../good.key"'), ('auth_key_file = "good.key"', 'auth_key_env = "NONE"'),
    ('auth_key_file = "good.key"', 'auth_key_env = "RPI_PDU_AUTH"\nauth_key_file = "good.key"'), ('user = "u"\nauth_key_file', 'auth_key_file'),
    ("allow_insecure = true\n[[pdu]]", "[[pdu]]"), ("allow_insecure = true\n[[trap_sink]]", "[[trap_sink]]"), ('host = "192.0.2.2"\n', ""),
    ('host = "192.0.2.2"\nunit = 1', 'host = "192.0.2.1"'), ('port = "/dev/ttyACM0"\n', ""), ('iio_device = "adc"\n', ""), ("iio_gains = [1.0, 100.0]", "iio_gains = [1.0]"),
    ('trace = "t.csv"\n', ""), ('"t.csv"', '"none.csv"'), ('trace = "t.csv"', 'trace = "t.csv"\ncalibration = "none.json"'), ('trace = "t.csv"', 'trace = "t.csv"\ncalibration = "cal.json"'),
    ('"voltage:L2"', '"voltage:DC"'), ('["current:c/2"]', '["current:c/1"]'), ('["current:c/2"]', '["current:c/9"]'), ('id = "c"', 'id = "a"'), ('numbers = "3"', 'numbers = "2-3"'),
    ('numbers = "3"', 'numbers = "3-1"'), ('load = "n3"', 'load = "n1"'), ('id = "n2"\n', 'id = "n8"\n'), ('load = "n1"\nat', 'load = "n8"\nat'), ('"daemon"', '"nobody-s-group"'),
    ('pdu = "c"\nnumbers = "3"', 'pdu = "q"\nnumbers = "3"'), ("static_safe_w = 200.0", "static_safe_w = 401.0"), ("[[schedule]]", "[[schedul]]"), ('[rack]', '[rack]\nnam = 1\nfile = "x"'),
    ('"2c"', '"2"'), ('"02:00"', '"2:00"'), ("derate", "x"), ('id = "r"', 'id = 5'), ("delta_w = 50.0", "delta_w = [[1]]"), ("[[schedule]]", "[schedule]"), ('"rack"', '"rac"'),
    ("host = \"192.0.2.3\"", "host = 5"), ("floor_w = 100.0", 'floor_w = "x"'), ('"L1", "L2"', '"L1", "L9"'), ("[rack]", "base_dir = 1\n[rack]"), ("[rack]", "guard = 5\n[rack]"),
)  # fmt: skip


def stepped(choices: Choices) -> str:
    """The full configuration, a few steps away from good."""
    text = FULL
    for _ in range(1 + choices.byte() // 160 * choices.below(3)):
        old, new = choices.one(STEPS)
        text = text.replace(old, new, 1)
    return text


def content_of(choices: Choices) -> bytes:
    kind = choices.byte()
    if kind < 110:
        return changed(choices).encode()
    if kind < 160:
        return edited(choices).encode()
    if kind < 205:
        return stepped(choices).encode()
    if kind < 207:  # around the largest file that is read
        text = (choices.one((BASE, FULL, "")) + "#").encode()
        return text + b" " * (MAX_BYTES - len(text) + choices.below(3) - 1)
    return choices.rest()


def check(data: bytes) -> bool:
    choices = Choices(data)
    way, name = choices.byte(), str(place() / "fuzz.toml")
    running()
    content = content_of(choices)
    Path(name).write_bytes(content)
    handed = {"CREDENTIALS_DIRECTORY": str(place() / "credentials")}
    if way >= 250:
        name = str(place() / choices.one(("none", "folder", "fuzz.toml/x", "x" * 300, "fuzz.toml")))
    try:
        config = load_config(name, ENV | handed if way % 16 == 4 else ENV, more=device_mistakes if way == 1 else None)
    except ConfigError as error:
        check_refused(name, str(error))
        check_others(name, way)
        if way == 1:
            must(reloaded() is None, "refused by check, and reloaded")
        return False
    must(len(content) <= MAX_BYTES, "longer than a configuration may be")
    again = Config.model_validate(config.model_dump(exclude=set(SET_BY_LOADER), exclude_unset=True))
    same = {key: getattr(again, key) for key in SET_BY_LOADER}
    must(again == config.model_copy(update=same), "reads otherwise when written down")
    check_safe(config)
    must(len(meters(config)) == rack_model(config).n, "what a daemon begins with")
    check_others(name, way)
    told = changes(running(), config)
    must(all(change.words() and change.key for change in told), told)
    check_changes(running(), config, {change.key: change.live for change in told})
    if way == 1 and name.endswith("fuzz.toml"):
        taken = reloaded()
        must((taken is not None) == all(change.live for change in told), "reloaded", told)
        must(taken is None or taken.model_dump() == config.model_dump(), "another one was reloaded")
    return True


def reloaded() -> Config | None:
    """The file, read again by a daemon that runs with another one."""
    try:
        return prepare(running()).config
    except ConfigError as error:
        must("defect" not in str(error), error)
        return None


def check_refused(name: str, said: str) -> None:
    mistake = re.compile(rf"{re.escape(name)}:\d+: .+|{re.escape(name)}: .+", re.S)
    told = re.split(rf"\n(?={re.escape(name)}:)", said)
    must(all(mistake.fullmatch(line) for line in told), said[:300])


def check_others(name: str, way: int) -> None:
    """What must work, or end in a sentence, where the configuration has mistakes."""
    if way % 16 == 2:
        try:
            state, run = read_folders(name)
            must(state.name and run.name, state, run)
        except ConfigError as error:
            check_refused(name, str(error))
    if way % 16 == 3:
        try:
            read_config(name)
        except ConfigError as error:
            check_refused(name, str(error))


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, float):
        yield value


def check_safe(config: Config) -> None:
    """What every later promise rests on, worked out from the tables themselves."""
    must(all(math.isfinite(number) for number in numbers_in(config.model_dump())), "a number that is none")
    outlets: dict[str, tuple[float, float, str, bool]] = {}
    for group in config.outlet:
        must(0.0 < group.static_safe_w <= group.rating_w <= 1e6, group.static_safe_w, group.rating_w)
        for number in spread(group.numbers):
            must(f"{group.pdu}/{number}" not in outlets, "an outlet twice", number)
            load = group.load.replace("{n}", str(number))
            outlets[f"{group.pdu}/{number}"] = (group.static_safe_w, group.rating_w, load, group.closed_loop)
    for items in (config.pdu, config.board, config.constraint, config.load, config.trap_sink):
        must(len({item.id for item in items}) == len(items), "an id twice")  # type: ignore[attr-defined]
    known = {pdu.id for pdu in config.pdu}
    must({group.pdu for group in config.outlet} <= known, "an outlet of no PDU")
    loads = [load for _, _, load, _ in outlets.values()]
    must(all(loads.count(load) <= 2 and load for load in loads), "a load of many outlets, or without a name")
    must(
        {cap.load for cap in config.cap} | {host.load for host in config.telemetry} <= set(loads),
        "a load that nothing feeds",
    )
    covered: set[str] = set()
    for item in config.constraint:
        members = {name for name in outlets for pattern in item.outlets if holds(pattern, name)}
        covered |= members
        total_w = sum(outlets[name][0] for name in members)
        factor = config.allocator.assumed_power_factor if config.rack.supply == "ac" else 1.0
        for rating, volts in ((item.rating_w, 0.0), (item.rating_va, 1.0), (item.rating_a, config.rack.nominal_v)):
            total = total_w / factor / volts if volts else total_w
            must(rating is None or total <= rating * item.derate * 1.0001, "STATIC_SAFE above", item.id)
        must(members and (item.rating_w or item.rating_va or item.rating_a), item.id)
    must(all(name in covered for name, (*_, ours) in outlets.items() if ours), "in closed loop on no breaker")
    seen: list[str] = []
    for board in config.board:
        for channel in board.channels:
            must(channel.isascii() and channel.isprintable(), channel)
            seen += channel.split(":")[1:2] if channel.startswith("current:") else []
    must(set(seen) <= set(outlets) and len(set(seen)) == len(seen), "channels", seen)
    for group in config.outlet:
        for number in spread(group.numbers):
            meter = (group.meter or f"{group.pdu}/{{n}}").replace("{n}", str(number))
            must(re.fullmatch(r"[^/]+/[0-9]+", meter), "a meter without a number", meter)
            must(meter.split("/")[0] in known, "a meter of no PDU", meter)
    for section in (*config.pdu, *config.trap_sink):
        v3 = section.version == "3" and getattr(section, "driver", "snmp") == "snmp"
        must(not v3 or (section.user and keyed(section, "auth_key") and keyed(section, "priv_key")), "no key", section)
        must(not v3 or len(config.secret(section, "auth_key")) >= 8, "another key than was checked", section)
        plain = (
            section.version == "2c" if getattr(section, "driver", "snmp") == "snmp" else section.driver == "modbus_tcp"
        )
        must(not plain or section.allow_insecure, "plain text, not asked for", section)
    for host in config.telemetry:
        must(host.driver == "feed" or host.url.startswith("https://") or host.allow_insecure, "plain HTTP", host.url)


def spread(numbers: str) -> Iterator[int]:
    must(re.fullmatch(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*", numbers), "numbers", numbers)
    for part in numbers.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def holds(pattern: str, name: str) -> bool:
    pdu, _, number = name.rpartition("/")
    if pattern in ("*", f"{pdu}/*"):
        return True
    of, _, numbers = pattern.partition("/")
    return of == pdu and numbers != "*" and int(number) in spread(numbers)


def keyed(section: Any, key: str) -> bool:
    """Whether the file or variable holds a secret that may be used."""
    variable, file = getattr(section, f"{key}_env"), getattr(section, f"{key}_file")
    if (variable is None) == (file is None):
        return False
    if variable is not None:
        return len(ENV.get(variable, "")) >= 8
    path = place() / (file if not file.startswith("credential:") else f"credentials/{file.removeprefix('credential:')}")
    return path.name in ("good.key", "auth.key")


def check_changes(old: Config, new: Config, told: dict[str, bool]) -> None:
    """Whatever differs is told, and is live only if the documents say so."""
    different = set(differences(old, new))
    must(bool(different) == bool(told), different, told)
    fixed = {key for key in different if key in NEVER or not ({key, f"{key.split('.')[0]}.*"} & LIVE)}
    must(bool(fixed) == (not all(told.values())), fixed, told)


def differences(old: Config, new: Config) -> Iterator[str]:
    """`section.option` of each difference; tables by what they are called, outlets one by one."""
    for name in Config.model_fields:
        if name in SET_BY_LOADER:
            continue
        if name == "outlet":
            was, now = (
                {row.id: row.model_dump(exclude={"group"}) for row in config.outlets()} for config in (old, new)
            )
            if list(was) != list(now):
                yield "outlet.numbers"
                continue
            yield from (f"outlet.{key}" for row in was for key in was[row] if was[row][key] != now[row][key])
            continue
        before, after = getattr(old, name), getattr(new, name)
        if name == "schedule":
            yield from ("schedule.load",) if before != after else ()
        elif isinstance(before, list):
            called = "load" if name in ("cap", "telemetry") else "id"
            tables = [{getattr(item, called): item.model_dump() for item in items} for items in (before, after)]
            if name == "load":
                free = Config.model_fields["load"].annotation.__args__[0]  # type: ignore[union-attr]
                for key in {**tables[0], **tables[1]}:
                    for of in tables:
                        of.setdefault(key, free(id=key).model_dump())
            if tables[0].keys() != tables[1].keys():
                yield f"{name}.id"
            for key in tables[0].keys() & tables[1].keys():
                yield from (f"{name}.{o}" for o in tables[0][key] if tables[0][key][o] != tables[1][key][o])
            if name == "cap" and list(tables[0]) != list(tables[1]):
                yield "cap.order"
        else:
            yield from (
                f"{name}.{key}" for key in type(before).model_fields if getattr(before, key) != getattr(after, key)
            )


def seeds() -> list[bytes]:
    found = [
        b"\0\xff" + BASE.encode(),
        b"\1\xff" + BASE.encode(),
        b"\0\xff" + FULL.encode(),
        b"\2\xff" + PRESENT.encode(),
    ]
    found += [bytes([way, 0xFF]) for way in range(250, 256)]
    found += [bytes([252, 0xFF, i]) for i in range(6)]
    found += [bytes([0, 205, i, i]) for i in range(3)]
    found += [bytes([(0, 2, 3, 4)[i % 4], 200, 0, 0, i]) for i in range(len(STEPS))] + [
        bytes([1, 200, 0, 0, i]) for i in (0, 4, 40)
    ]
    uncovered = [STEPS.index(step) for step in STEPS if step[1] in ('["c/1-2"]', '["c/*"]')]
    found += [bytes([0, 200, 255, 1, *uncovered])]
    found += [
        b"\1\xff" + BASE.replace(old, new).encode() for old, new in (("192.0.2.1", "192.0.2.2"), ("300.0", "250.0"))
    ]
    # options of each section, on the full configuration and on the small one
    for s, name in enumerate(options()):
        for k in range(0, len(options()[name]), 6):
            found.append(bytes([0, 0, (100, 0)[k % 2], 0, (7 * k + s) % 170, 200, s, k % 3, 200, k, k]))
    found += [
        bytes([0, 0, 100, 0, how, i % 160, i, 0, 0, i % 7, i])
        for how in (20, 180, 205, 220, 235, 245, 250)
        for i in range(0, 18, 2)
    ]
    found += [bytes([0, 150, 255 * (i % 2), i % 5, i % 6, i % 7, 9 * i % 256, 30, 3, 0, 5]) for i in range(14)]
    found += [
        b"\0\xff[a]\n[a]",
        b"\0\xffa = {b = [1, 2",
        b"\0\xffx = '''\n",
        b"\0\xffa.b.c = 1\n[[a.b]]",
        b"\0\xff\xff",
        b"\0\xffx = " + b"[" * 900,
    ]
    return found


TARGET = Target(
    "config",
    "a configuration is taken that does not read the same when it is written down, or that breaks what later promises rest on, worked out a second "
    "time (STATIC_SAFE within the rating of its outlet and of every breaker; ids once; loads, meters and channels that are there; a breaker for what "
    "is in closed loop; a key of the right length; nothing in plain text that was not asked for; no number that is none); a refusal does not name "
    "file, line and key; a reload takes what `check` refuses, or what a second list says needs a restart",
    (
        "config/load.py",
        "config/checks.py",
        "config/schema.py",
        "config/changes.py",
        "rpi_daemon/reload.py:prepare",
        "rpi_daemon/reload.py:_tried",
    ),
    seeds,
    check,
)
