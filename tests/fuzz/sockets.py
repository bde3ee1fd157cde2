"""What local programs send us: the control socket, the telemetry feed; and node_exporter's pages."""

import asyncio
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

from config_examples import BASE, parse
from fuzz.target import Choices, Target, must, scratch

from rpi_daemon.clock import ManualClock
from rpi_daemon.control import ControlServer, _line
from rpi_daemon.drivers.hosts.exposition import BadPage
from rpi_daemon.drivers.hosts.exposition import parse as parse_page
from rpi_daemon.drivers.hosts.feed import BadLine, TelemetryFeed, parse_line
from rpi_daemon.drivers.hosts.shares import WANTED
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import TELEMETRY
from rpi_daemon.roles import Caller, Role
from rpi_daemon.service import Service

# who may ask for what, written down a second time: docs/operations.md
READERS = {"status"}
OPERATORS = READERS | {
    "mode",
    "kill",
    "resume",
    "acknowledge",
    "limit_set",
    "limit_restore",
    "hint",
    "traps_test",
    "model_roll_back",
}
MAY = {
    Role.READ: READERS,
    Role.OPERATE: OPERATORS,
    Role.ADMIN: OPERATORS | {"model_promote", "retrain_decided", "reload"},
}
COMMANDS = (*sorted(OPERATORS | MAY[Role.ADMIN]), "", "open", "__class__")
FIELDS = ("outlet", "outlets", "limit_w", "ttl_s", "reason", "mode", "load", "delta_w", "in_s", "for_s", "sink", "name", "decision",
          "command")  # fmt: skip
JSON_TEXTS = (
    "null", "true", "0", "-1", "1", "250.5", "1e6", "1e7", "1e400", "NaN", "-Infinity", '"a/1"', '"n1"', '"advisory"', '"closed_loop"',
    '""', '"\\ud800"', '"\\u0000"', "[]", '["a/1"]', '["a/1", 5]', "[[[]]]", "{}", '{"promoted": true}', '"../../etc"', "9" * 400, '"x"',
)  # fmt: skip


@functools.cache
def service() -> Service:
    """A daemon that has not begun: no PDU, no board, all of its operator."""
    folder = scratch()
    (folder / "state").mkdir()
    text = f'[daemon]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n{BASE}'
    made = Service(parse(text, base_dir=folder), clock=ManualClock())
    made.pipeline = SimpleNamespace(plans=PlannedWork(made.limits.rack, ()))  # type: ignore[assignment]
    made.traps.test = _no_sinks  # type: ignore[method-assign,assignment]
    return made


async def _no_sinks(sink: str | None) -> list[str]:
    return []


def request_of(choices: Choices) -> bytes:
    if choices.below(4) == 0:
        return choices.rest()
    fields = [f'"command": "{choices.one(COMMANDS)}"'] if choices.byte() < 250 else []
    for _ in range(choices.below(6)):
        text = choices.one(JSON_TEXTS) if choices.byte() < 230 else choices.take(choices.below(10)).decode("latin-1")
        fields.append(f'"{choices.one(FIELDS)}": {text}')
    return f"{{{', '.join(fields)}}}".encode()


def check_control(data: bytes) -> bool:
    choices = Choices(data)
    daemon = service()
    operator = daemon.operator
    server = ControlServer(Path("unused"), 0o600, operator.answer)
    role = choices.one((Role.READ, Role.OPERATE, Role.ADMIN))
    started = choices.byte() < 200
    told = SimpleNamespace(safe=SimpleNamespace(latched=("foreign_writer",)), readings=None)
    daemon.snapshot = told if started else None  # type: ignore[assignment]
    line = request_of(choices)
    if started and b"status" in line:
        daemon.snapshot = None  # a view of a whole snapshot; other tests have one
    before = state(daemon)
    answer = asyncio.run(server._answer(line, Caller(1000, 1, "someone", role)))
    sent = json.loads(_line(answer), parse_constant=lambda word: must(False, word))
    must(isinstance(sent["ok"], bool) and (sent["ok"] or isinstance(sent["error"], str)), sent)
    must(sent["ok"] or len(sent["error"]) < 100_000, "an endless error")
    asked = json.loads(line) if sent["ok"] or state(daemon) != before else None
    if asked is not None:
        command = asked["command"]
        must(command in MAY[role], command, role)
        must(state(daemon) == before or command in OPERATORS - READERS or role is Role.ADMIN, command)
    for ceiling in operator.ceilings():
        must(
            ceiling["outlet"] in ("a/1", "a/2") and 0.0 < ceiling["limit_w"] <= 1e6 and 0.0 < ceiling["left_s"] <= 1e6,
            ceiling,
        )
    for hint in operator.hints:
        must(
            hint.load in ("n1", "n2")
            and math.isfinite(hint.delta_w)
            and abs(hint.delta_w) <= 1e6
            and 0.0 < hint.for_s <= 1e6,
            hint,
        )
    if sent["ok"] and asked["command"] == "kill":
        must(daemon.limits.killed(), "the kill switch is not engaged")
    if choices.byte() >= 128 or len(operator.hints) > 50:
        operator.hints.clear()
        operator._ceilings.clear()
        daemon.limits.release_kill_switch()
    return bool(sent["ok"])


def state(daemon: Service) -> object:
    """All that a request may change."""
    operator = daemon.operator
    return (
        list(operator.hints), set(operator.acknowledged), dict(operator._ceilings), daemon.limits.mode, daemon.limits.released,
        daemon.limits.killed(),
    )  # fmt: skip


def control_seeds() -> list[bytes]:
    def asked(role: int, **fields: object) -> bytes:
        return bytes([role, 0, 0]) + json.dumps(fields).encode()

    return [
        asked(1, command="limit_set", outlet="a/1", limit_w=60, ttl_s=5, reason="x"),
        asked(1, command="hint", load="n1", delta_w=-5.5, in_s=0, for_s=60),
        asked(1, command="kill", reason="smoke"), asked(1, command="resume"), asked(1, command="mode", mode="closed_loop"),
        asked(1, command="mode", mode="advisory"), asked(1, command="limit_restore", outlets=["a/1"]), asked(1, command="acknowledge"),
        asked(0, command="status"), asked(0, command="kill"), asked(2, command="model_promote", name="x"), asked(2, command="reload"),
        asked(1, command="limit_set", outlet="a/9", limit_w=60, ttl_s=5), asked(1, command="limit_set", outlet="a/1", limit_w=True, ttl_s=5),
        asked(1, command="limit_restore", outlets="a/1"), asked(1, command="hint", load="x"), asked(1, command="mode", mode="x"),
        asked(1, command="traps_test", sink=5), asked(2, command="model_promote"), asked(2, command="retrain_decided", decision=1),
        asked(1, command="traps_test", sink=None), asked(2, command="retrain_decided", decision={}), asked(1, command="model_roll_back"),
        *(bytes([i % 3, 0, 1, 0, i % 17, i % 6]) + bytes([0, i % 27, i % 14]) * 5 for i in range(0, 60, 3)),
    ]  # fmt: skip


# --- telemetry feed


def check_feed(data: bytes) -> bool:
    choices = Choices(data)
    if choices.below(3) == 0:
        line = choices.rest()
    else:
        keys = [choices.one((*TELEMETRY, "load", "cpu", "x")) for _ in range(choices.below(6))]
        values = [
            '"n1"' if key == "load" and choices.byte() < 200 else choices.one((*JSON_TEXTS, "0.5", "1.0"))
            for key in keys
        ]
        line = b"{" + ", ".join(f'"{key}": {value}' for key, value in zip(keys, values, strict=True)).encode() + b"}"
    feed = TelemetryFeed(Path("unused"), 0o600, ["n1"], ManualClock())
    feed.take(line)
    readings = feed.take_readings()
    must(feed.received + feed.refused <= len(line.splitlines()) * 2 + 1 and len(feed.unknown) <= 33, feed.status())
    json.dumps(feed.status(), allow_nan=False).encode()
    for reading in readings:
        must(reading.load == "n1", reading)
        for key in TELEMETRY:
            share = getattr(reading, key)
            must(share is None or (type(share) is float and 0.0 <= share <= 1.0), key, share)
    try:
        load, shares = parse_line(line)
    except BadLine:
        return bool(readings)
    must(parse_line(json.dumps({"load": load, **shares}).encode()) == (load, shares), line)
    return True


def feed_seeds() -> list[bytes]:
    return [
        b'\0{"load": "n1", "cpu": 0.5, "memory": null}', b'\0{"load": "other", "cpu": 1}\n{"load": "n1", "net": 0}\n\n', b"\0[1]",
        *(bytes([1, 2, 0, i % 9, 0, i]) + bytes([i]) * 4 for i in range(30)),
    ]  # fmt: skip


# --- node_exporter's page


METRICS = tuple(sorted(WANTED))
PARTS = ("{", "}", '{cpu="0",mode="idle"}', '{device="eth0"}', '{a="\\n\\"\\\\"}', '{a="', " 1", " 1.5e9", " NaN", " +Inf", " 1 2", " x",
         "\n", " ", "\t", "# HELP ", '{cpu="0",cpu="1"}', "{,}", " 0x1", " 1_0", "\r", " ١")  # fmt: skip


def check_page(data: bytes) -> bool:
    choices = Choices(data)
    if choices.below(3) == 0:
        page = choices.rest()
    else:
        page = b""
        while choices and len(page) < 5000:
            how = choices.byte()
            page += (
                (choices.one(METRICS) if how < 80 else choices.one(PARTS)).encode()
                if how < 240
                else choices.take(how - 238)
            )
        page += b"\n"
    try:
        samples = parse_page(page, WANTED)
    except BadPage:
        return False
    text = page.decode()
    must(set(samples) <= WANTED, samples)
    for series in samples.values():
        for labels, value in series.items():
            must(type(value) is float and list(labels) == sorted(set(labels)), labels)
    again = "".join(
        f"{name}{{{','.join(f'{key}={quoted(word)}' for key, word in labels)}}} {written(value)}\n"
        for name, series in samples.items()
        for labels, value in series.items()
    )
    must(repr(parse_page(again.encode() or b"\n", WANTED)) == repr(samples), again)
    lines = [line.lstrip(" \t").rstrip(" \t\r") for line in text.split("\n")]  # no name begins behind another character
    named = [
        line
        for line in lines
        if any(line == name or (line[len(name) :][:1] in " \t{" and line.startswith(name)) for name in METRICS)
    ]
    must(sum(map(len, samples.values())) == len([line for line in named if line]), "a line is lost", page)
    return bool(samples)


def quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written(value: float) -> str:
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if math.isnan(value) else repr(value))


def page_seeds() -> list[bytes]:
    return [
        b'\0node_cpu_seconds_total{cpu="0",mode="idle"} 1.5\nnode_memory_MemTotal_bytes 8e9\n# x\n', b"\0\n",
        b'\0node_network_receive_bytes_total{device="a\\"b"} NaN 1395066363000\n',
        *(bytes([1]) + bytes([0, i, 100, i, 100, 6, 100, 12]) * 2 for i in range(22)),
    ]  # fmt: skip


CONTROL = Target(
    "control",
    "a caller gets what a role may not ask for (a second table, written by hand); a request that is refused changes something; a limit or "
    "hint outside its bounds or for an unknown outlet or load is kept; an answer is not one JSON line",
    ("rpi_daemon/control.py:ControlServer._answer", "rpi_daemon/operator.py"),
    control_seeds,
    check_control,
)
FEED = Target(
    "feed",
    "a share outside 0..1 or of an unknown load is kept; a line does not read the same when it is written again",
    (
        "drivers/hosts/feed.py:parse_line",
        "drivers/hosts/feed.py:TelemetryFeed.take",
        "drivers/hosts/feed.py:TelemetryFeed._refuse",
    ),
    feed_seeds,
    check_feed,
)
PAGE = Target(
    "exposition",
    "a page does not read the same when its samples are written again; a line of a wanted metric is passed over",
    ("drivers/hosts/exposition.py",),
    page_seeds,
    check_page,
)
