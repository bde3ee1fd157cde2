"""The control socket: JSON lines over a Unix socket. Its file mode says who may connect, a caller's role what they may ask."""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from rpi_daemon.errors import NotRunningError, RefusedError, RpiError
from rpi_daemon.local_socket import bound
from rpi_daemon.roles import NO_GROUPS, Caller, Role, RoleGroups, caller_of

SCHEMA = 1
MAX_LINE_BYTES = 65_536
MAX_LEVELS = 8  # of a request
MAX_CLIENTS = 32
MAX_READERS = 24  # of them: who may only look keeps nobody from acting
READ_PAUSE_S = (
    0.02  # between two answers to callers who may only look, all together: a status takes the loop milliseconds
)
CLIENT_TIMEOUT_S = 10.0
SOCKET_NAME = "control.sock"

Answer = dict[str, Any]
Handler = Callable[[dict[str, Any], Caller], Awaitable[Answer]]


class ControlServer:
    """Answers one JSON object per line with one JSON object per line; a mistake of the caller is an answer, not an end."""

    def __init__(
        self, path: Path, mode: int, handler: Handler, groups: RoleGroups = NO_GROUPS, *, group: int | None = None
    ) -> None:
        """`group`: whom the socket shall belong to; the daemon's own group if not given."""
        self._path = path
        self._mode = mode
        self._handler = handler
        self._groups = groups
        self._group = group
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._readers = 0
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        """Listen; the caller holds the daemon's lock. Raises RpiError."""
        listener = bound(self._path, socket.SOCK_STREAM, self._mode, self._group)
        self._server = await asyncio.start_unix_server(self._client, sock=listener, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Stop listening, drop the clients, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= MAX_CLIENTS:
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError, TimeoutError):
            pass  # the client went away, or we are stopping
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        await self._talk(reader, writer, await asyncio.to_thread(caller_of, connection, self._groups))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: Caller) -> None:
        if caller.role > Role.READ:
            await self._answer_lines(reader, writer, partial(self._answer, caller=caller))
        elif self._readers < MAX_READERS:
            self._readers += 1
            try:
                await self._answer_lines(reader, writer, partial(self._answer_reader, caller=caller))
            finally:
                self._readers -= 1

    async def _answer_lines(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Callable[[bytes], Awaitable[Answer]]
    ) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # asyncio's word for a line above the limit
                writer.write(_line({"ok": False, "error": f"a request is at most {MAX_LINE_BYTES} bytes"}))
                return
            if not line:
                return
            writer.write(_line(await answer(line)))
            await asyncio.wait_for(writer.drain(), CLIENT_TIMEOUT_S)

    async def _answer_reader(self, line: bytes, caller: Caller) -> Answer:
        """In turn: however many ask, and however often, the ticks go on."""
        async with self._reading:
            await asyncio.sleep(READ_PAUSE_S)
            return await self._answer(line, caller)

    async def _answer(self, line: bytes, caller: Caller) -> Answer:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": "a request is one JSON object on one line"}
        if not _plain(request):
            return {"ok": False, "error": f"a request has finite numbers, and at most {MAX_LEVELS} levels"}
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return {"ok": False, "error": 'a request needs a "command"'}
        try:
            return {"ok": True, "schema": SCHEMA, **await self._handler(request, caller)}
        except RpiError as error:
            return {"ok": False, "schema": SCHEMA, "error": str(error), "exit_code": error.exit_code}


def _plain(value: object, levels: int = MAX_LEVELS) -> bool:
    """Whether the audit can write it down and others can read it there: not nested deeply, and no NaN or infinity, which JSON has not."""
    if isinstance(value, float):
        return math.isfinite(value)
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return not inner or (levels > 0 and all(_plain(part, levels - 1) for part in inner))


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _way_in(path: Path) -> str:
    """Who may connect, as far as this user may see it."""
    try:
        return f"be a member of group {path.group()}"
    except (OSError, KeyError):
        return "be a member of the group of its folder"


class ControlClient:
    """The command line's side: blocking, one request at a time."""

    def __init__(self, path: Path, timeout_s: float = CLIENT_TIMEOUT_S) -> None:
        """Connect; raises NotRunningError or RefusedError with what to do."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            self._socket.close()
            raise NotRunningError(
                f"{path}: no daemon answers here; is it running, and with this configuration?"
            ) from None
        except PermissionError:
            self._socket.close()
            raise RefusedError(f"{path}: this user may not talk to the daemon: {_way_in(path)}") from None
        except OSError as error:  # a path that is too long, too many callers
            self._socket.close()
            raise NotRunningError(f"{path}: no daemon answers here: {error.strerror or error}") from None
        self._file = self._socket.makefile("rb")

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """One request, one answer; raises RpiError with the daemon's own sentence when it refuses."""
        try:
            self._socket.sendall(_line({"command": command, **fields}))
            line = self._file.readline()
        except TimeoutError:
            raise NotRunningError("the daemon did not answer in time") from None
        except ConnectionError:
            line = b""
        if not line:
            raise NotRunningError("the daemon closed the connection")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise NotRunningError("the daemon's answer was cut off") from None
        if not answer.get("ok"):
            error = RpiError(str(answer.get("error")))
            error.exit_code = int(answer.get("exit_code", RpiError.exit_code))
            raise error
        return answer

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
