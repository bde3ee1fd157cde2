"""Who may ask what: real users on a real socket, the least role of each command."""

import asyncio
import grp
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.config.load import parse_config
from rpi_daemon.control import ControlServer
from rpi_daemon.errors import ConfigError
from rpi_daemon.operator import ROLES
from rpi_daemon.roles import Role, RoleGroups, caller_of, group_id
from rpi_daemon.service import Service

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
ASK = """
import json, os, socket, sys
uid, gid, *more = map(int, sys.argv[3:])
os.setgroups(more)
os.setgid(gid)
os.setuid(uid)
talk = socket.socket(socket.AF_UNIX)
try:
    talk.connect(sys.argv[1])
except PermissionError:
    sys.exit("not allowed to connect")
talk.sendall((json.dumps({"command": sys.argv[2]}) + "\\n").encode())
print(talk.makefile().readline())
"""
CONFIG = """
[daemon]
state_dir = "state"
runtime_dir = "run"
read_group = "{read}"
operate_group = "{operate}"
admin_group = "{admin}"

[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "127.0.0.1"
user = "u"
auth_key_file = "key"
priv_key_file = "key"

[[outlet]]
pdu = "pdu"
numbers = "1"
load = "load"
rating_w = 700.0
static_safe_w = 550.0

[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 10.0
outlets = ["pdu/*"]
"""


@dataclass
class Groups:
    """Three groups of this host that neither root nor nobody is in."""

    read: grp.struct_group
    operate: grp.struct_group
    admin: grp.struct_group


@pytest.fixture
def groups() -> Groups:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    return Groups(*[g for g in grp.getgrall() if g.gr_gid not in (0, NOBODY)][:3])


@pytest.fixture
def service(groups: Groups) -> Iterator[Service]:
    """Not started: what is asked for is judged by role before anything else."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "key").write_text("a secret of 16 characters")
        (Path(folder) / "key").chmod(0o600)
        names = {key: getattr(groups, key).gr_name for key in ("read", "operate", "admin")}
        yield Service(parse_config(CONFIG.format(**names), "test", base_dir=Path(folder)))


def ask(service: Service, command: str, uid: int, group: int, *more: int) -> dict[str, Any]:
    """What the user `uid` in these groups is told."""
    path = service.state_dir.parent / "s"

    async def served() -> dict[str, Any]:
        options = service.config.daemon
        operator = service.operator
        server = ControlServer(path, 0o660, operator.answer, operator.groups, group=group_id(str(options.read_group)))
        await server.open()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", ASK, str(path), command, *map(str, (uid, group, *more))),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, errors = await process.communicate()
        await server.close()
        await asyncio.get_running_loop().shutdown_default_executor()
        return json.loads(out) if out else {"ok": False, "error": errors.decode().strip()}

    return asyncio.run(served())


def test_what_each_user_may(service: Service, groups: Groups) -> None:
    read, operate, admin = groups.read.gr_gid, groups.operate.gr_gid, groups.admin.gr_gid
    assert ask(service, "status", NOBODY, NOBODY)["error"] == "not allowed to connect"
    assert ask(service, "status", NOBODY, read)["ok"]

    refused = ask(service, "kill", NOBODY, read)
    assert (refused["ok"], refused["exit_code"]) == (False, 9)
    needed = f"be a member of group {groups.operate.gr_name} or {groups.admin.gr_name}"
    assert refused["error"] == f"user nobody may not ask for 'kill': {needed}"
    assert not service.limits.killed()

    assert ask(service, "kill", NOBODY, NOBODY, read, operate)["kill_switch"] is True
    assert service.limits.killed()
    assert ask(service, "resume", NOBODY, read)["exit_code"] == 9
    assert service.limits.killed()
    assert ask(service, "resume", NOBODY, NOBODY, read, operate)["kill_switch"] is False
    assert not service.limits.killed()

    refused = ask(service, "model_promote", NOBODY, operate, read)
    assert refused["error"].endswith(f"be a member of group {groups.admin.gr_name}")
    for uid, more in ((NOBODY, (read, admin)), (0, ())):  # past the role; nothing is promoted before the loop runs
        assert "still starting" in ask(service, "model_promote", uid, uid, *more)["error"]


def test_a_caller_is_who_the_kernel_says() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        caller = caller_of(ours, RoleGroups())
    assert (caller.uid, caller.pid, caller.role) == (os.geteuid(), os.getpid(), Role.ADMIN)


def test_without_groups_only_root_and_the_daemon_operate() -> None:
    assert RoleGroups().needed(Role.OPERATE).startswith("only root and the daemon's user may")
    assert RoleGroups(admin="a").needed(Role.ADMIN) == "be a member of group a"


def test_every_command_has_its_least_role() -> None:
    source = (ROOT / "rpi_daemon/operator.py").read_text(encoding="utf-8")
    table = source[source.index("commands: ") : source.index("command = commands.get")]
    assert set(re.findall(r'"(\w+)":', table)) == set(ROLES)


def test_an_unknown_group_is_a_mistake_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a secret of 16 characters")
    (tmp_path / "key").chmod(0o600)
    text = CONFIG.format(read="root", operate="no-such-group", admin="root")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "test", base_dir=tmp_path)
    assert str(caught.value).startswith("test:6: daemon.operate_group: no group is called 'no-such-group' on this host")
