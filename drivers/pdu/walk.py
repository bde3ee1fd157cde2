"""Walks of an SNMP agent that a slow management card stands: GETBULK in small steps, at a bounded rate."""

import asyncio
from collections.abc import AsyncIterator

from rpi_daemon._fastpath.core import Varbind
from rpi_daemon.drivers.pdu.snmp_session import END_OF_MIB, SnmpProtocolError, SnmpSession


class Walker:
    """Walks one agent. `requests_per_s` bounds what it is asked, over all walks; `requests` counts them.

    Raises what `SnmpSession.get_bulk` raises, and SnmpProtocolError for an agent whose objects do not ascend: it would
    lead round in circles.
    """

    def __init__(self, session: SnmpSession, *, requests_per_s: float = 10.0) -> None:
        if not requests_per_s > 0.0:
            raise ValueError(f"requests_per_s must be above 0, not {requests_per_s}")
        self.requests = 0
        self._session = session
        self._period_s = 1.0 / requests_per_s
        self._due_s = 0.0

    async def get(self, *oids: str) -> list[Varbind]:
        """As the session's, at the walk's rate."""
        await self._turn()
        return await self._session.get(oids)

    async def walk(self, root: str, repetitions: int) -> AsyncIterator[Varbind]:
        """Every object below `root`, in the agent's order, `repetitions` an answer."""
        below = f"{root}."
        last = root
        while True:
            await self._turn()
            for varbind in await self._session.get_bulk(last, repetitions):
                if varbind.tag == END_OF_MIB or not varbind.oid.startswith(below):
                    return
                if _arcs(varbind.oid) <= _arcs(last):
                    raise SnmpProtocolError(
                        f"SNMP agent {self._session.endpoint.host} goes in circles: after {last} it gives {varbind.oid}"
                    )
                last = varbind.oid
                yield varbind

    async def _turn(self) -> None:
        """Wait until the next request is due."""
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self._due_s - now_s))
        self._due_s = max(self._due_s, now_s) + self._period_s
        self.requests += 1


def _arcs(oid: str) -> tuple[int, ...]:
    return tuple(map(int, oid.split(".")))
