"""The daemon's event loop: asyncio's own, but a name server that does not answer holds up nobody."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
LOOKUP_S: Final = 5.0  # then the name counts as not found, or stands for the address that it had
Addresses = list[tuple[Any, ...]]  # as socket.getaddrinfo gives them


class DaemonLoop(asyncio.SelectorEventLoop):
    """Looks names up in threads of their own, for every library that asks the loop.

    asyncio's six common threads also open ports and save files: a few names whose server is silent, 30 s each, would keep
    all of that waiting, and the end of the daemon too. Here a name is asked for once at a time, whoever waits for it waits
    5 s at most, and a name whose server is silent goes on standing for its last address.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lookups: dict[tuple[Any, ...], asyncio.Future[Addresses]] = {}
        self._last: dict[tuple[Any, ...], Addresses] = {}

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Addresses:
        """As socket.getaddrinfo. Raises OSError: socket.gaierror for a name that is not found."""
        asked = host, port, family, type, proto, flags
        if (lookup := self._lookups.get(asked)) is None:
            lookup = self._lookups[asked] = self.create_future()
            threading.Thread(target=self._look_up, args=(asked,), name=f"look up {host}", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.shield(lookup), LOOKUP_S)
        except (TimeoutError, socket.gaierror) as error:
            silent = isinstance(error, TimeoutError) or error.errno == socket.EAI_AGAIN
            if silent and asked in self._last:
                return self._last[asked]
            if isinstance(error, TimeoutError):
                raise socket.gaierror(socket.EAI_AGAIN, f"no answer from the name server in {LOOKUP_S:g} s") from None
            raise

    def _look_up(self, asked: tuple[Any, ...]) -> None:
        found: Addresses | OSError
        try:
            found = socket.getaddrinfo(*asked)
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.call_soon_threadsafe(self._looked_up, asked, found)

    def _looked_up(self, asked: tuple[Any, ...], found: Addresses | OSError) -> None:
        lookup = self._lookups.pop(asked)
        if isinstance(found, OSError):
            lookup.set_exception(found)
            lookup.exception()  # whoever asked may have given up
        else:
            self._last[asked] = found
            lookup.set_result(found)


def run(work: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, on a `DaemonLoop`."""
    with asyncio.Runner(loop_factory=DaemonLoop) as runner:
        return runner.run(work)
