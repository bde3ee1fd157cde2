"""Walks of an SNMP agent by GETBULK, in steps that a slow management card stands."""

from collections.abc import AsyncIterator

from rpi_daemon._fastpath.core import Varbind
from rpi_daemon.drivers.pdu.snmp_session import END_OF_MIB, SnmpProtocolError, SnmpSession


async def walk(session: SnmpSession, root: str, repetitions: int) -> AsyncIterator[Varbind]:
    """Every object below `root`, in the agent's order, `repetitions` an answer; the session bounds the rate.

    Raises what `SnmpSession.get_bulk` raises, and SnmpProtocolError for an agent whose objects do not ascend: it would
    lead round in circles.
    """
    below = f"{root}."
    last = root
    while True:
        for varbind in await session.get_bulk(last, repetitions):
            if varbind.tag == END_OF_MIB or not varbind.oid.startswith(below):
                return
            if _arcs(varbind.oid) <= _arcs(last):
                raise SnmpProtocolError(
                    f"SNMP agent {session.endpoint.host} goes in circles: after {last} it gives {varbind.oid}"
                )
            last = varbind.oid
            yield varbind


def _arcs(oid: str) -> tuple[int, ...]:
    return tuple(map(int, oid.split(".")))
