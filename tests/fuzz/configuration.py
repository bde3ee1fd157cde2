"""Configurations: whatever the text, a checked one comes out, or a ConfigError whose every line names file, line and key."""

import re
from pathlib import Path

from config_examples import BASE, ENV
from fuzz.target import Choices, Target, must

from rpi_daemon.config.changes import SET_BY_LOADER
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ConfigError

NAME = "fuzz.toml"
EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
MORE = """
[[cap]]
load = "n1"
host = "bmc.example"
user = "u"
password_env = "RPI_PDU_AUTH"
tls_ca_file = "nobody.pem"
allow_insecure = true
[[telemetry]]
load = "n1"
url = "http://h:9100/metrics"
[[telemetry]]
load = "n2"
driver = "feed"
[[trap_sink]]
id = "s"
host = "h"
version = "2c"
community_env = "RPI_PDU_AUTH"
[[trap_sink]]
id = "s"
host = "h"
user = "u"
auth_key_file = "credential:../x"
priv_key_env = "NONE"
[[pdu]]
id = "m"
profile = "x"
driver = "modbus_tcp"
host = "h"
[[pdu]]
id = "r"
profile = "x"
driver = "modbus_rtu"
serial_port = "/dev/ttyS0"
[[board]]
id = "i"
driver = "iio"
channels = ["current:a/2", "voltage:DC", "current:b/9"]
iio_gains = [1.0]
[[board]]
id = "y"
driver = "replay"
channels = ["current:a/1"]
calibration = "nobody.json"
[[board]]
id = "z"
channels = ["current:a/1"]
[daemon]
read_group = "nobody-s-group"
[retrain]
hours = "01:00-01:00"
history_days = 1.0
min_history_days = 2.0
[[outlet]]
pdu = "a"
numbers = "2-3"
rating_w = 100.0
static_safe_w = 200.0
meter = "q/1"
load = "n2"
[[outlet]]
pdu = "q"
numbers = "1"
load = "n8"
rating_w = 10000.0
static_safe_w = 9000.0
[[load]]
id = "n7"
[[constraint]]
id = "breaker"
kind = "phase"
rating_w = 1.0
outlets = ["a/*", "q/*", "zz/1"]
[[telemetry]]
load = "n9"
url = "https://h/metrics"
user = "u"
"""
BASES = [
    text.splitlines() for text in (BASE, BASE + MORE, *(path.read_text() for path in sorted(EXAMPLES.glob("*.toml"))))
]
SECTIONS = ("[daemon]", "[sampling]", "[guard]", "[history]", "[forecast]", "[retrain]", "[[schedule]]", "[[load]]", "[[cap]]",
            "[[telemetry]]", "[[trap_sink]]", "[[constraint]]", "[[pdu]]", "[[board]]", "[[outlet]]", "[rack]")  # fmt: skip
KEYS = tuple(
    sorted({key for field in Config.model_fields.values() for part in getattr(field.annotation, "__args__", ()) or (field.annotation,)
            for key in getattr(part, "model_fields", ())})
)  # fmt: skip
VALUES = (
    "0", "-1", "1", "2.5", "1e400", "nan", "inf", "true", '""', '"a"', '"a/*"', '"1-2"', '"1-999999999"', '"../x"', '"\\u0000"', "[]",
    '["a/1"]', '["a/*"]', "[[]]", "{}", "{a=1}", "1979-05-27T07:32:00Z", "99999999999999999999", '"advisory"', '"closed_loop"',
    "0x7fffffff", "'''x'''", '"https://h"', '"127.0.0.1"', '"\\uffff"', '"300"', "16.0", "300.0",
)  # fmt: skip
MISTAKE = re.compile(rf"{re.escape(NAME)}:\d+: .+|{re.escape(NAME)}: not valid TOML: .+", re.S)


def text_of(choices: Choices) -> str:
    """The small good configuration with lines changed, moved and added; or any text."""
    if choices.below(4) == 0:
        return choices.rest().decode("utf-8", "replace")
    lines = list(choices.one(BASES) if choices.byte() >= 128 else BASES[0])
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


def check(data: bytes) -> bool:
    text = text_of(Choices(data))
    try:
        config = parse_config(text, NAME, base_dir=Path("/nowhere"), env=ENV)
    except ConfigError as error:
        told = re.split(rf"\n(?={re.escape(NAME)}:)", str(error))
        must(all(MISTAKE.fullmatch(line) for line in told), str(error)[:300])
        return False
    again = Config.model_validate(config.model_dump(exclude=set(SET_BY_LOADER), exclude_unset=True))
    same = {key: getattr(again, key) for key in SET_BY_LOADER}
    must(again == config.model_copy(update=same), "reads otherwise when written down")
    check_safe(config)
    return True


def check_safe(config: Config) -> None:
    """What every later promise rests on: STATIC_SAFE of one PDU's outlets within each breaker in amps at 100 V."""
    for group in config.outlet:
        must(0.0 < group.static_safe_w <= group.rating_w, group.static_safe_w, group.rating_w)
    must(len({item.id for item in config.pdu}) == len(config.pdu), "a PDU twice")
    must(len({item.id for item in config.board}) == len(config.board), "a board twice")
    known = {pdu.id for pdu in config.pdu}
    must({group.pdu for group in config.outlet} <= known, "an outlet of no PDU")


def seeds() -> list[bytes]:
    found = [b"\0" + BASE.encode(), b"\1", *(bytes([1, 255, i]) for i in range(len(BASES)))]
    found += [bytes([1, 0, 1, kind, 9 * kind, 30, 3, 0, 5]) for kind in range(7)]
    found += [bytes([1, 0, 1, 5, 255, i, 7 * i % 33, 0, i % 16]) for i in range(0, 120, 6)]
    found += [b"\0[a]\n[a]", b"\0a = {b = [1, 2", b"\0x = '''\n", b"\0a.b.c = 1\n[[a.b]]"]
    return found


TARGET = Target(
    "config",
    "a configuration is taken that does not read the same when it is written down, or that breaks what later promises rest on "
    "(STATIC_SAFE within the rating of its outlet, ids once, outlets of known PDUs); a refusal does not name file, line and key",
    ("config/load.py", "config/checks.py"),
    seeds,
    check,
)
