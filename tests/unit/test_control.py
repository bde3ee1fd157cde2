"""The control socket: file mode, bad requests, refusals, hang-ups."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.control import MAX_LINE_BYTES, ControlClient, ControlServer
from rpi_daemon.errors import NotRunningError, RpiError
from rpi_daemon.roles import Caller


async def _handler(request: dict[str, Any], caller: Caller) -> dict[str, Any]:
    if request["command"] == "refuse":
        error = RpiError("no such outlet")
        error.exit_code = 4
        raise error
    return {"echo": request.get("value")}


async def _ask(path: Path, lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=10 * MAX_LINE_BYTES)
    writer.write(lines)
    writer.write_eof()
    answers = (await reader.read()).splitlines()
    writer.close()
    await writer.wait_closed()
    return [json.loads(line) for line in answers]


def test_answers_refusals_and_bad_requests(tmp_path: Path) -> None:
    async def scenario() -> list[dict[str, Any]]:
        server = ControlServer(tmp_path / "s", 0o660, _handler)
        await server.open()
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
        requests = (
            b'{"command":"a","value":7}\n{"command":"refuse"}\nnot json\n[1]\n{"value":1}\n' + b"[" * 5000 + b"\n"
        )
        answers = await _ask(tmp_path / "s", requests)
        await server.close()
        return answers

    good, refused, *bad = asyncio.run(scenario())
    assert good == {"ok": True, "schema": 1, "echo": 7}
    assert (refused["ok"], refused["error"], refused["exit_code"]) == (False, "no such outlet", 4)
    assert [answer["ok"] for answer in bad] == [False] * 4
    assert not (tmp_path / "s").exists()


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    async def scenario() -> list[dict[str, Any]]:
        server = ControlServer(tmp_path / "s", 0o600, _handler)
        await server.open()
        answers = await _ask(tmp_path / "s", b"x" * (MAX_LINE_BYTES + 10) + b"\n")
        await server.close()
        return answers

    assert "at most" in asyncio.run(scenario())[0]["error"]


def test_client_says_what_to_do_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="is it running"):
        ControlClient(tmp_path / "nothing")


def test_client_carries_the_daemons_refusal(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = ControlServer(tmp_path / "s", 0o600, _handler)
        await server.open()

        def use() -> None:
            with ControlClient(tmp_path / "s") as client:
                assert client.ask("a", value=3)["echo"] == 3
                with pytest.raises(RpiError, match="no such outlet") as caught:
                    client.ask("refuse")
                assert caught.value.exit_code == 4

        await asyncio.to_thread(use)
        await asyncio.get_running_loop().shutdown_default_executor()
        await server.close()

    asyncio.run(scenario())
