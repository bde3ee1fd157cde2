"""The control socket: file mode, bad requests, refusals, hang-ups."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.control import MAX_CLIENTS, MAX_LINE_BYTES, MAX_READERS, READ_PAUSE_S, ControlClient, ControlServer
from rpi_daemon.errors import NotRunningError, RpiError
from rpi_daemon.roles import Caller, Role


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


def test_what_the_audit_could_not_say_is_refused(tmp_path: Path) -> None:
    async def scenario() -> list[dict[str, Any]]:
        server = ControlServer(tmp_path / "s", 0o600, _handler)
        await server.open()
        values = (b"NaN", b"1e400", b"[-Infinity]", b"[" * 8 + b"5" + b"]" * 8, b"[" * 7 + b"5" + b"]" * 7)
        answers = await _ask(tmp_path / "s", b"".join(b'{"command":"a","value":%s}\n' % value for value in values))
        await server.close()
        return answers

    *refused, deep = asyncio.run(scenario())
    assert [answer["error"] for answer in refused] == ["a request has finite numbers, and at most 8 levels"] * 4
    assert deep["echo"] == [[[[[[[5]]]]]]]


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


def _as(monkeypatch: pytest.MonkeyPatch, *roles: Role) -> None:
    """Who connects, one after the other; the last one of them for ever."""
    waiting = list(roles)

    def caller(*_: object) -> Caller:
        return Caller(1, 1, "somebody", waiting.pop(0) if len(waiting) > 1 else waiting[0])

    monkeypatch.setattr("rpi_daemon.control.caller_of", caller)


def test_who_may_only_look_keeps_nobody_from_acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many connections as there may be, and not a word on them."""
    _as(monkeypatch, *[Role.READ] * MAX_CLIENTS, Role.OPERATE)

    async def scenario() -> tuple[int, list[dict[str, Any]]]:
        server = ControlServer(tmp_path / "s", 0o600, _handler)
        await server.open()
        idle = [await asyncio.open_unix_connection(str(tmp_path / "s")) for _ in range(MAX_CLIENTS)]
        for reader, _ in idle[MAX_READERS:]:
            assert await reader.read() == b""
        held = sum(not reader.at_eof() for reader, _ in idle)
        answers = await _ask(tmp_path / "s", b'{"command":"kill","value":1}\n')
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        await server.close()
        return held, answers

    assert asyncio.run(scenario()) == (MAX_READERS, [{"ok": True, "schema": 1, "echo": 1}])


def test_however_many_look_they_are_answered_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status takes milliseconds of the loop that ticks."""
    _as(monkeypatch, Role.READ)

    async def scenario() -> float:
        server = ControlServer(tmp_path / "s", 0o600, _handler)
        await server.open()
        begun_s = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(_ask(tmp_path / "s", b'{"command":"status"}\n' * 2) for _ in range(4)))
        took_s = asyncio.get_running_loop().time() - begun_s
        await server.close()
        assert [len(told) for told in answers] == [2] * 4
        return took_s

    assert asyncio.run(scenario()) >= 8 * READ_PAUSE_S


def test_what_is_no_socket_is_a_sentence_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, why in ((tmp_path / "folder", "Is a directory"), (tmp_path / ("x" * 108), "AF_UNIX path too long")):
        with pytest.raises(RpiError, match=f"cannot listen: {why}; check daemon.runtime_dir"):
            asyncio.run(ControlServer(path, 0o600, _handler).open())
    with pytest.raises(NotRunningError, match="no daemon answers here: AF_UNIX path too long"):
        ControlClient(tmp_path / ("x" * 108))
