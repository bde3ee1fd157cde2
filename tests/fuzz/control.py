"""The control socket: lines of a caller, their framing, roles, every command, against a daemon in many states."""

import asyncio
import functools
import grp
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from config_examples import BASE, ENV
from fuzz.model import directory
from fuzz.sockets import JSON_TEXTS
from fuzz.target import Choices, Target, must, scratch

from rpi_daemon import control
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import load_config
from rpi_daemon.control import MAX_LINE_BYTES, MAX_READERS, ControlServer
from rpi_daemon.models.library import SHIPPED_NAME
from rpi_daemon.plans import PlannedWork
from rpi_daemon.records import Mode
from rpi_daemon.reload import prepare
from rpi_daemon.retrain.standing import StandingModel, library_of
from rpi_daemon.retrain.task import Learning
from rpi_daemon.roles import Caller, Role, RoleGroups, _role
from rpi_daemon.service import Service

# who may ask for what, and what of the daemon it may change, written down a second time: docs/operations.md
READ: dict[str, set[str]] = {"status": set()}
OPERATE = READ | {
    "mode": {"mode", "released"},
    "kill": {"killed"},
    "resume": {"killed", "acknowledged"},
    "acknowledge": {"acknowledged"},
    "limit_set": {"ceilings"},
    "limit_restore": {"mode", "released"},
    "hint": {"hints"},
    "traps_test": set(),
    "model_roll_back": {"model"},
}
ADMIN = OPERATE | {
    "model_promote": {"model"},
    "retrain_decided": {"model"},
    "reload": {"config", "released"},
    "drill": {"drilled"},
}
MAY = {Role.READ: READ, Role.OPERATE: OPERATE, Role.ADMIN: ADMIN}
COMMANDS = ("", "open", "__class__", *ADMIN)
# what each command reads, and values of its kind
FIELDS: dict[str, tuple[str, ...]] = {
    "mode": ("mode", "reason"), "kill": ("reason",), "resume": (), "acknowledge": (), "status": (),
    "limit_set": ("outlet", "limit_w", "ttl_s", "reason"), "limit_restore": ("outlets", "reason"),
    "hint": ("load", "delta_w", "in_s", "for_s"), "traps_test": ("sink",), "model_promote": ("name", "reason"),
    "model_roll_back": ("reason",), "retrain_decided": ("decision",), "reload": ("dry_run", "reason"), "drill": ("device", "for_s", "closed_loop"),
}  # fmt: skip
GOOD = {
    "outlet": ('"a/1"', '"a/2"'), "outlets": ('["a/1"]', '["a/1", "a/2"]', "[]"), "limit_w": ("60", "250.5", "1e6", "1e-9"),
    "ttl_s": ("5", "0.5", "1e6"), "reason": ('"x"', '"\\ud800"', '"\\n\\u0000"'), "mode": ('"advisory"', '"closed_loop"'),
    "load": ('"n1"', '"n2"'), "delta_w": ("-5.5", "300", "1e6", "-1e6", "1e-9"), "in_s": ("0", "0.1", "3", "1e6"),
    "for_s": ("60", "0.5", "61", "1e6", "1e-9"), "sink": ("null", '"s"', '"t"'), "dry_run": ("true", "false"),
    "name": ('"m1"', '"shipped"', '"configured"', '"bad"', '"../m1"', '"m1/."', '"."', '"m1\\n"'),
    "device": ('"a"', '"b"', '"c"'), "closed_loop": ("true", "false", "1"),
    "decision": (
        '{"outcome": "kept", "model": "m1", "reasons": ["x"]}', '{"outcome": "promoted", "model": "m1"}',
        '{"outcome": "promoted", "model": "m1", "sha256": "00"}', '{"outcome": "promoted", "model": "shipped", "sha256": 5}',
        '{"outcome": "kept", "model": "m1", "event": 1}', '{"outcome": "kept", "model": "m1", "reasons": [1]}',
        '{"outcome": "kept", "model": "m1", "reasons": 1e400}', '{"outcome": "rejected", "model": 5}', '{"outcome": ["kept"]}',
        '{"outcome": "not_trained", "model": "", "scores": null, "took_s": 1.5}',
    ),
}  # fmt: skip
ODD = (
    '{"promoted": true}',
    '["a/1", 5]',
    '"../../etc"',
    "9" * 400,
    "[" * 7 + "]" * 7,
    "[" * 9 + "]" * 9,
    "[" * 990 + "]" * 990,
)
# the daemon's own file at a reload
FILES = {
    "as it was": BASE,
    "live": BASE.replace("static_safe_w = 300.0", "static_safe_w = 250.0"),
    "opted in": BASE + "[guard]\nrecover_s = 6.0\n",
    "needs a restart": BASE.replace("192.0.2.1", "192.0.2.2"),
    "refused": BASE.replace("static_safe_w = 300.0", "static_safe_w = 3000.0"),
    "no TOML": "[",
}
TAKEN = ("as it was", "live", "opted in")  # of these
GROUPS = (None, *(group.gr_name for group in grp.getgrall()[1:4]), "nobody-s-group", "x\0")
GIDS = {group.gr_name: group.gr_gid for group in grp.getgrall()}


@functools.cache
def service() -> Service:
    """A daemon that has not begun: no PDU has answered, and nobody writes its audit down."""
    folder = scratch() / "control"
    (folder / "state" / "models").mkdir(parents=True)
    (folder / "state" / "models" / "bad").mkdir()
    shutil.copytree(directory(), folder / "state" / "models" / "m1")
    (folder / "rack.toml").write_text(_file("as it was"))
    os.environ.update(ENV)  # a reload looks for secrets there
    made = Service(load_config(folder / "rack.toml", ENV), clock=ManualClock())
    made.audit.failing = "not begun"
    made.pipeline = SimpleNamespace(  # type: ignore[assignment]
        plans=PlannedWork(made.limits.rack, ()), configure=lambda *_: None
    )
    return made


@functools.cache
def first() -> Any:
    """The configuration that it begins with, ready to be taken over."""
    return prepare(service().config)


def _file(name: str) -> str:
    folder = scratch() / "control"
    return f'[daemon]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n{FILES[name]}'


class Drilled:
    """A board or PDU that notes that it was taken for away."""

    def __init__(self, name: str, seen: list[tuple[str, float]]) -> None:
        self.board = SimpleNamespace(id=name)
        self.unplug = self.fall_silent = lambda seconds: seen.append((name, seconds))


def begun(choices: Choices) -> tuple[Service, list[tuple[str, float]]]:
    """The daemon in one of its states, and what will be drilled."""
    daemon, drilled = service(), list[tuple[str, float]]()
    limits, operator, state = daemon.limits, daemon.operator, choices.byte()
    if daemon.config is not first().config:
        asyncio.run(_take_over(daemon))
    operator.hints[:] = [None] * (10_000 if state == 255 else 0)  # type: ignore[list-item]
    operator.acknowledged.clear()
    operator._ceilings.clear()
    limits.release_kill_switch()
    limits.killed_in_memory = state & 1 > 0
    limits.mode = Mode.CLOSED_LOOP if state & 2 else Mode.ADVISORY
    limits.release(frozenset(("a/1",) if state & 4 else ()))
    told = SimpleNamespace(safe=SimpleNamespace(latched=("foreign_writer",) if state & 8 else ()), readings=None)
    daemon.snapshot = told if state & 48 else None  # type: ignore[assignment]
    daemon.boards = [Drilled("b", drilled)] if state & 64 else []  # type: ignore[list-item]
    limits.tasks = {"a": Drilled("a", drilled)} if state & 64 else {}  # type: ignore[dict-item]
    daemon.audit._waiting.clear()
    attach(daemon, choices.below(4))
    daemon._record_dir = Path("x") if choices.byte() >= 240 else None
    name = choices.one(tuple(FILES)) if choices.byte() >= 64 else "as it was"
    (scratch() / "control" / "rack.toml").write_text(_file(name))
    daemon.reload_file = name  # type: ignore[attr-defined]
    return daemon, drilled


def attach(daemon: Service, kind: int) -> None:
    """Which model forecasts: no network is wanted, none was good, one that may be swapped, one that is recorded."""
    (scratch() / "control" / "state" / "models" / "standing.json").unlink(missing_ok=True)
    daemon.standing = daemon.learning = None
    if kind == 0:
        return
    daemon.standing = StandingModel(library_of(daemon.config), daemon.clock, recorded=kind == 3)
    daemon.standing.name = SHIPPED_NAME
    daemon.standing.attach(SimpleNamespace(model=None if kind == 1 else object(), swap=lambda _: None))
    daemon.learning = None if kind == 3 else Learning(daemon.config, daemon.standing, daemon.clock, 2)


async def _take_over(daemon: Service) -> None:
    daemon.reload._ready = first(), asyncio.get_running_loop().create_future()
    daemon.reload.take_over(daemon.pipeline)


def state(daemon: Service, drilled: list[tuple[str, float]]) -> dict[str, object]:
    """All that a request may change."""
    operator, limits = daemon.operator, daemon.limits
    return {
        "hints": list(operator.hints), "acknowledged": set(operator.acknowledged), "ceilings": dict(operator._ceilings),
        "mode": limits.mode, "released": limits.released, "killed": limits.killed(), "config": daemon.config,
        "model": None if daemon.standing is None else daemon.standing.name, "drilled": list(drilled),
    }  # fmt: skip


def request_of(choices: Choices) -> bytes:
    """One line: a command with its fields, some of another kind, missing or added; or anything."""
    kind = choices.byte()
    if kind >= 240:
        return choices.take(choices.byte())
    command = choices.one(COMMANDS)
    if command == "reload" and choices.byte() >= 32:  # the slowest
        command = "drill"
    fields = [] if kind >= 236 else [f'"command": "{command}"']
    for key in FIELDS.get(command, ()):
        how = choices.byte()
        if how < 246:
            fields.append(f'"{key}": {value_of(choices, key, how)}')
    if kind >= 200:
        key = choices.one((*GOOD, "command"))
        fields.append(f'"{key}": {value_of(choices, key, choices.byte())}')
    line = f"{{{', '.join(fields)}}}".encode().replace(b"\n", b" ")
    return line + b" " * (MAX_LINE_BYTES - len(line) + choices.below(3)) if kind >= 198 and kind < 200 else line


def value_of(choices: Choices, key: str, how: int) -> str:
    if how < 190 and key in GOOD:
        return choices.one(GOOD[key])
    return choices.one((*JSON_TEXTS, *ODD)) if how < 240 else choices.take(choices.below(10)).decode("latin-1")


def role_of(choices: Choices) -> tuple[Role, RoleGroups]:
    """A caller's role by the code, held against who the documents say has it."""
    groups = RoleGroups(choices.one(GROUPS), choices.one(GROUPS))
    uid, member_of = choices.one((1000, 0, 65534, os.geteuid())), {choices.one(tuple(GIDS.values()))}
    role = _role(uid, member_of, groups)
    in_operate, in_admin = (name is not None and GIDS.get(name) in member_of for name in (groups.operate, groups.admin))
    may = "admin" if uid == 0 or uid == os.geteuid() or in_admin else "operate" if in_operate else "read"
    must(role.name.lower() == may, role, may, uid, member_of, groups)
    return role, groups


class Client:
    """The other end of a connection: looks at the daemon after each answer."""

    def __init__(self, daemon: Service, drilled: list[tuple[str, float]], role: Role, lines: list[bytes]) -> None:
        self.daemon, self.drilled, self.role, self.lines = daemon, drilled, role, lines
        self.answers = self.taken = 0
        self.before = state(daemon, drilled)

    def write(self, data: bytes) -> None:
        must(data.endswith(b"\n") and data.count(b"\n") == 1, data)
        sent = json.loads(data, parse_constant=lambda word: must(False, word))
        line, now = self.lines[self.answers], state(self.daemon, self.drilled)
        self.answers += 1
        must(isinstance(sent["ok"], bool) and (sent["ok"] or isinstance(sent["error"], str)), sent)
        must(sent["ok"] or len(sent["error"]) < 100_000, "an endless error")
        changed = {key for key in now if now[key] != self.before[key]}
        noted = [waiting.event for waiting in self.daemon.audit._waiting if waiting.event.name == "command"]
        self.daemon.audit._waiting.clear()
        if sent["ok"]:
            self.taken += 1
            must(len(line) <= MAX_LINE_BYTES, "a line above the limit")
            asked = json.loads(line)
            command = asked["command"]
            must(command in MAY[self.role] and changed <= MAY[self.role][command], command, self.role, changed)
            must(len(noted) == (command != "status"), "not in the audit", command)
            must(all(record.data["fields"] == asked for record in noted), noted)
            check_done(self.daemon, asked, self.before, now, self.drilled)
        else:
            must(not changed, "refused, and changed", changed, line)
        self.before = now

    async def drain(self) -> None:
        """Nothing is buffered."""


def check_done(daemon: Service, asked: dict[str, Any], before: Any, now: Any, drilled: list[tuple[str, float]]) -> None:
    """What was asked for is what was done, and within its bounds."""
    command, clock_ns = asked["command"], daemon.clock.mono_ns()
    must(before["config"] is daemon.config or daemon.reload_file in TAKEN, "taken", daemon.reload_file)  # type: ignore[attr-defined]
    if command == "limit_set":
        ceiling, end_ns = now["ceilings"].pop(asked["outlet"])
        before["ceilings"].pop(asked["outlet"], None)
        must(now["ceilings"] == before["ceilings"], "another outlet's")
        must(asked["outlet"] in ("a/1", "a/2") and ceiling.constraint == asked["outlet"], ceiling)
        must(ceiling.limit_w == asked["limit_w"] and 0.0 < ceiling.limit_w <= 1e6, ceiling)
        must(0 < end_ns - clock_ns + 1 <= 1e6 * NS_PER_S + 1, end_ns)
        must(abs(end_ns - clock_ns - asked["ttl_s"] * NS_PER_S) <= 1.0, end_ns)
        now["ceilings"] = dict(daemon.operator._ceilings)
    elif command == "hint":
        hint = now["hints"][-1]
        must(hint.load == asked["load"] and hint.load in ("n1", "n2") and hint.delta_w == asked["delta_w"], hint)
        must(
            math.isfinite(hint.delta_w) and abs(hint.delta_w) <= 1e6 and 0.0 < hint.for_s == asked["for_s"] <= 1e6, hint
        )
        must(hint.t_mono_ns > clock_ns and len(now["hints"]) <= 10_000, hint)
    elif command == "mode":
        must(now["mode"].value == asked["mode"], asked)
    elif command in ("kill", "resume"):
        must(now["killed"] is (command == "kill"), "the kill switch")
    elif command == "limit_restore":
        wanted = asked.get("outlets", [])
        must(type(wanted) is list and not now["killed"], asked)
        must(now["released"] == before["released"] | set(wanted or ("a/1", "a/2")), now["released"])
    elif command == "drill":
        must(drilled[-1] == (asked["device"], asked["for_s"]) and 0.0 < asked["for_s"] <= 60.0, asked)
        must(now["mode"] is Mode.ADVISORY or asked.get("closed_loop") is True, "a drill in closed loop, not by name")
    elif command == "reload":
        must(type(asked.get("dry_run", False)) is bool, asked)
        must(not asked.get("dry_run") or now["config"] is before["config"], "a dry run changed something")
        must(daemon.reload_file in TAKEN and not daemon.recorded, daemon.reload_file)  # type: ignore[attr-defined]
    elif command == "model_promote":
        must(now["model"] == asked["name"] and asked["name"] in ("m1", "shipped"), asked)
    elif command == "retrain_decided":
        decision = asked["decision"]
        must(decision["outcome"] in ("promoted", "kept", "rejected", "not_trained"), decision)
        must(now["model"] == (decision["model"] if decision["outcome"] == "promoted" else before["model"]), decision)
        json.dumps(daemon.learning.status(), allow_nan=False)  # type: ignore[union-attr]


async def served(server: ControlServer, client: Client, caller: Caller, stream: bytes) -> None:
    """One connection to its end; the daemon ticks beside it."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    reader.feed_data(stream)
    reader.feed_eof()
    talk = asyncio.ensure_future(server._talk(reader, client, caller))  # type: ignore[arg-type]
    while not (await asyncio.wait([talk], timeout=0.0005))[0]:
        client.daemon.reload.take_over(client.daemon.pipeline)
    await talk


def check(data: bytes) -> bool:
    choices = Choices(data)
    role, groups = role_of(choices)
    daemon, drilled = begun(choices)
    daemon.operator.groups = groups
    lines = [request_of(choices) for _ in range(1 + choices.below(3))]
    stream = b"\n".join(lines) + (b"\n" if choices.byte() < 200 else b"")
    lines = stream.removesuffix(b"\n").split(b"\n") if stream else []
    if daemon.snapshot is not None and b"status" in stream:
        daemon.snapshot = None  # a view of a whole snapshot; other tests have one
    if b"status" in stream:
        daemon.boards, daemon.limits.tasks = [], {}
    client = Client(daemon, drilled, role, lines)
    server = ControlServer(Path("unused"), 0o600, daemon.operator.answer)
    full = choices.byte() >= 252
    server._readers = MAX_READERS if full else 0
    with patch.object(control, "READ_PAUSE_S", 0.0):  # time is not what is tried here
        asyncio.run(served(server, client, Caller(1000, 1, "someone", role), stream))
    fits = [len(line) <= MAX_LINE_BYTES for line in lines]
    if full and role is Role.READ:
        fits = []
    must(client.answers == (fits.index(False) + 1 if False in fits else len(fits)), "a line without its answer")
    daemon.clock.advance(choices.byte() / 4.0)  # type: ignore[attr-defined]
    for ceiling in daemon.operator.ceilings():
        must(0.0 < ceiling["left_s"] <= 1e6, ceiling)
    now_ns = daemon.clock.mono_ns()
    must(len(daemon.operator.ceilings_at(now_ns)) == len(daemon.operator.ceilings()), "a ceiling after its end")
    return client.taken > 0


def seeds() -> list[bytes]:
    raw = [b'{"command": "status"}', b"[1]", b'{"command": 5}', b"\xff", b'{"x": 1e400}', b""]
    plain = [bytes([0, 0, 1, 1, 32, 2, 0, 0, 0, 0, 240, len(line)]) + line for line in raw]
    # every command with good fields, by each role, in some states
    asked = [
        bytes([0, 0, uid, 1, state, standing, 0, file, name, 0, 0, COMMANDS.index(command), *(3 * [0, good])])
        for command in COMMANDS for uid, state in ((1, 32), (0, 34), (1, 98), (1, 96)) for good in range(3)
        for standing, file, name in (((good + 1) % 4, 255, good),)
    ]  # fmt: skip
    files = [bytes([0, 0, 1, 1, 32, 2, 0, 255, i, 0, 0, COMMANDS.index("reload"), 0, 0, 1]) for i in range(len(FILES))]
    decisions = [
        bytes([0, 0, 1, 1, 32, 2, 0, 0, 0, 0, 0, COMMANDS.index("retrain_decided"), 0, i])
        for i in range(len(GOOD["decision"]))
    ]
    names = [bytes([0, 0, 1, 1, 32, 2, 0, 0, 0, 0, 0, COMMANDS.index("model_promote"), 0, i]) for i in range(8)]
    groups = [
        bytes([a, b, 0, g, 32, 2, 0, 0, 0, 0, 0, 2]) for a in range(len(GROUPS)) for b in (0, 1, 4) for g in range(4)
    ]
    odd = [
        bytes([0, 0, 1, 1, 112, 2, 0, 0, 0, 0, 0, COMMANDS.index(command), 200, 27 + i])
        for command in FIELDS for i in range(0, 34, 3)
    ]  # fmt: skip
    return [*plain, *asked, *files, *decisions, *names, *groups, *odd]


TARGET = Target(
    "control",
    "a caller has another role than by a second table, written by hand, or gets what that role may not ask for; a command changes what is not "
    "its to change, or otherwise than it was asked; a request that is refused changes something; one that is taken is not in the audit as it "
    "was sent; a limit, hint or drill outside its bounds or for what nobody knows is kept; a configuration that `check` refuses is reloaded; "
    "a line has not one answer, or an answer is not one JSON line",
    (
        "rpi_daemon/control.py:ControlServer._talk",
        "rpi_daemon/control.py:ControlServer._answer",  # and _answer_lines, _answer_reader
        "rpi_daemon/control.py:_line",
        "rpi_daemon/control.py:_plain",
        "rpi_daemon/operator.py",
        "rpi_daemon/roles.py:_role",
        "rpi_daemon/roles.py:_among",
        "rpi_daemon/roles.py:group_id",
        "rpi_daemon/roles.py:RoleGroups",
        "rpi_daemon/retrain/task.py:Learning.decided",
        "models/library.py:Library.path",
        "models/library.py:Library.promote",
        "models/library.py:Library.roll_back",
    ),
    seeds,
    check,
)
