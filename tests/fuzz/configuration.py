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
LINES = BASE.splitlines()
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
    lines = list(LINES)
    for _ in range(1 + choices.below(6)):
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
    found = [b"\0" + BASE.encode(), b"\1"]
    found += [bytes([1, 0, kind, 9 * kind, 30, 3, 0, 5]) for kind in range(7)]
    found += [bytes([1, 0, 5, 255, i, 7 * i % 33, 0, i % 16]) for i in range(0, 120, 6)]
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
