"""The kill switch does not wait for a configuration, not even for one to be there."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from rpi_daemon import cli
from rpi_daemon.config import schema
from rpi_daemon.control import SOCKET_NAME, ControlServer
from rpi_daemon.guard import KILL_FILE
from rpi_daemon.roles import Caller


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's folders, below `tmp_path`; its configuration is gone."""
    folders = SimpleNamespace(state_dir=str(tmp_path / "state"), runtime_dir=str(tmp_path / "run"))
    for folder in (folders.state_dir, folders.runtime_dir):
        Path(folder).mkdir()
    monkeypatch.setattr(schema, "Daemon", lambda: folders)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", str(tmp_path / "rpi-daemon.toml"))
    return tmp_path


def test_the_service_is_stopped_though_its_configuration_is_gone(service: Path) -> None:
    done = CliRunner().invoke(cli.main, ["kill", "-c", str(service / "rpi-daemon.toml")])
    assert done.exit_code == 0, done.stderr
    assert (service / "state" / KILL_FILE).exists()
    assert CliRunner().invoke(cli.main, ["resume", "-c", str(service / "rpi-daemon.toml")]).exit_code == 0
    assert not (service / "state" / KILL_FILE).exists()


def test_another_file_that_is_not_there_is_a_mistake(service: Path) -> None:
    done = CliRunner().invoke(cli.main, ["kill", "-c", str(service / "other.toml")])
    assert done.exit_code == 3
    assert "other.toml: no such file" in done.stderr
    assert not (service / "state" / KILL_FILE).exists()


def test_resume_reaches_a_daemon_that_holds_the_kill_switch_in_memory(service: Path) -> None:
    """Its disk took no file, so that there is none to remove."""
    asked: list[str] = []

    async def answer(request: dict[str, Any], _: Caller) -> dict[str, Any]:
        asked.append(request["command"])
        return {}

    async def scenario() -> int:
        server = ControlServer(service / "run" / SOCKET_NAME, 0o600, answer)
        await server.open()
        arguments = ["resume", "-c", str(service / "rpi-daemon.toml")]
        done = await asyncio.to_thread(CliRunner().invoke, cli.main, arguments)
        await server.close()
        return done.exit_code

    assert asyncio.run(scenario()) == 0
    assert asked == ["resume"]
