"""`rpi-daemon audit show`: what a line says, for people."""

import importlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rpi_daemon.audit_show import _lines, show
from rpi_daemon.cli import main
from rpi_daemon.history.chain import ChainLog, Event

EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / "demo.toml"


def line(name: str, data: dict[str, Any]) -> str:
    (only,) = _lines(Event(t_ns=0, t_mono_ns=0, name=name, data=data, seq=7), frozenset())
    return only


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "command",
            {
                "who": "operator alice", "command": "limit_set", "uid": 1000, "words": "fan broken",
                "fields": {"command": "limit_set", "outlet": "pdu-a/7", "limit_w": 300.0, "ttl_s": 60.0, "reason": "fan broken"},
            },
            '7  operator alice  command  limit_set outlet=pdu-a/7 limit_w=300 ttl_s=60 reason="fan broken" uid=1000',
        ),
        (
            "command",
            {"who": "operator bob", "command": "hint", "uid": 1, "fields": {"command": "hint", "delta_w": 171.9605917368965}},
            "7  operator bob  command  hint delta_w=172 uid=1",
        ),
        (
            "configuration",
            {"who": "operator root", "changed": ["rack.nominal_v: 230.0 -> 231.0", "b: 1 -> 2"], "sha256": "ab"},
            "7  operator root  configuration  changed=[\"rack.nominal_v: 230.0 -> 231.0\"; \"b: 1 -> 2\"] sha256=ab",
        ),
        (
            "ended",
            {
                "who": "daemon", "n": 3, "device": "pdu-a",
                "outcomes": [{"outlet": 1, "refused": None, "verified": True, "read_back_w": 12345.678, "verified_after_ms": 10.7071}],
            },
            "7  daemon  ended 3  pdu-a/1  12345.7 W read back, 10.7 ms after it was asked for",
        ),
    ],
)  # fmt: skip
def test_a_record_is_one_line_without_digits_that_nobody_reads(name: str, data: dict[str, Any], told: str) -> None:
    assert line(name, data) == told


def test_words_of_an_operator_forge_no_line(tmp_path: Path) -> None:
    """Nor do they rub one out."""
    config = tmp_path / "rack.toml"
    config.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    log = ChainLog(tmp_path / "state" / "audit", kind="audit", keep_days=400.0)
    words = "x\n2026-11-21 22:00:00.000  7  operator root  asked 3  pdu-a/1\x1b[2J\u202e"
    log.append([Event(time.time_ns(), 1, "command", {"who": "operator eve", "command": "kill", "words": words})])
    log.close()
    said: list[str] = []
    document = show(config, "1h", "now", (), None, said.append)
    (only,) = said
    assert only.isprintable()
    assert only.endswith(r'words="x\n2026-11-21 22:00:00.000  7  operator root  asked 3  pdu-a/1\x1b[2J\u202e"')
    assert document["records"][0]["data"]["words"] == words


NOBODY = 65534
READERS = ("audit verify", "audit show", "history", "events", "events --verify", "report")


@pytest.fixture
def others_rack() -> Iterator[Path]:
    """A configuration with an audit of one record and a history, in a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / "rack.toml").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
        for kind, where in (("audit", "audit"), ("events", "history")):
            log = ChainLog(place / "state" / where, kind=kind, keep_days=400.0)
            log.append([Event(time.time_ns(), 1, "begin", {"who": "daemon"})])
            log.close()
        (place / "state" / "audit-head").write_text(f"{log.head}\n")
        yield place


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize(
    ("closed", "commands"),
    [
        ("state", (*READERS, "model list")),
        ("state/audit", ("audit verify",)),
        ("state/audit-head", ("audit verify",)),
        ("state/history", READERS[2:]),
    ],
)
def test_what_a_user_may_not_read_is_not_missing_and_no_traceback(
    others_rack: Path, closed: str, commands: tuple[str, ...]
) -> None:
    for module in ("look_back", "report.command", "retrain.command"):  # that user may not read our libraries either
        importlib.import_module(f"rpi_daemon.{module}")
    (others_rack / closed).chmod(0)
    os.seteuid(NOBODY)
    try:
        done = [
            CliRunner().invoke(main, [*command.split(), "-c", str(others_rack / "rack.toml")]) for command in commands
        ]
    finally:
        os.seteuid(0)
    for result in done:
        assert result.exit_code == 1
        assert result.output.startswith(f"{others_rack / closed}")
        assert result.output.endswith("do this as root, as the daemon's user or as a member of its group\n")


def test_an_audit_without_a_record_and_a_head_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / "rack.toml").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "state" / "audit").mkdir(parents=True)
    done = CliRunner().invoke(main, ["audit", "verify", "-c", str(tmp_path / "rack.toml")])
    assert done.exit_code == 1
    assert done.output == f"{tmp_path}/state/audit: no record is there, and no head that says whether one was\n"
