"""Walks by GETBULK over real loopback UDP: the simulated PDU as a whole, and agents that lead astray."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon._fastpath.core import Pdu, Varbind, decode_v2c, encode_v2c
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator, SimUser
from rpi_daemon.drivers.pdu.snmp_session import END_OF_MIB, INTEGER, SnmpEndpoint, SnmpProtocolError, SnmpSession
from rpi_daemon.drivers.pdu.snmprec import read_snmprec
from rpi_daemon.drivers.pdu.walk import walk
from rpi_daemon.errors import ConfigError

USER = SimUser("rack", auth_key="authentication", priv_key="privacy-of-it")
GET_BULK, RESPONSE = 0xA5, 0xA2
ROOT = "1.3.6.1.4.1.99999.1"


@contextlib.asynccontextmanager
async def session_with(port: int, version: str = "2c", **options: Any) -> AsyncIterator[SnmpSession]:
    keys = {"community": "public"}
    if version == "3":
        keys = {"user": USER.name, "auth_key": USER.auth_key, "priv_key": USER.priv_key}
    session = SnmpSession(SnmpEndpoint("127.0.0.1", port, version, **{"timeout_s": 0.3, **keys, **options}))  # type: ignore[arg-type]
    await session.open()
    try:
        yield session
    finally:
        session.close()


class Bulk(asyncio.DatagramProtocol):
    """An agent that answers each GETBULK with what `answer` makes of it."""

    def __init__(self, answer: Callable[[Pdu], list[Varbind]]) -> None:
        self._answer = answer
        self.asked: list[Pdu] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        pdu = decode_v2c(data)[1]
        self.asked.append(pdu)
        self._transport.sendto(encode_v2c(b"public", RESPONSE, pdu.request_id, self._answer(pdu)), address)


def walk_of(answer: Callable[[Pdu], list[Varbind]], repetitions: int = 4) -> tuple[list[Varbind], list[Pdu]]:
    async def scene() -> tuple[list[Varbind], list[Pdu]]:
        loop = asyncio.get_running_loop()
        transport, agent = await loop.create_datagram_endpoint(lambda: Bulk(answer), ("127.0.0.1", 0))
        try:
            port = transport.get_extra_info("sockname")[1]
            async with session_with(port, timeout_s=0.05, retries=0) as session:
                return [varbind async for varbind in walk(session, ROOT, repetitions)], agent.asked
        finally:
            transport.close()
            await asyncio.sleep(0)

    return asyncio.run(scene())


def following(pdu: Pdu, last: int, step: int = 1) -> list[Varbind]:
    """The next objects of a column with the numbers 1..last, then one of another table."""
    start = int(pdu.varbinds[0].oid.rpartition(".")[2]) if pdu.varbinds[0].oid != ROOT else 0
    numbers = range(start + step, start + step * (pdu.index + 1), step)
    return [
        Varbind(f"{ROOT}.{n}", INTEGER, n) if n <= last else Varbind("1.3.6.1.4.1.99999.2.1", INTEGER, 0)
        for n in numbers
    ]


@pytest.mark.parametrize("version", ["2c", "3"])
@pytest.mark.parametrize("repetitions", [1, 4, 25])
def test_a_walk_of_a_recording_gives_every_object_once_and_in_order(
    snmprec_folder: Path, version: str, repetitions: int
) -> None:
    path = snmprec_folder / "cyberpower_pdu81005.snmprec"
    root = (1, 3, 6, 1, 4, 1, 3808, 1, 1, 6)
    there = {".".join(map(str, oid)): value for oid, (_, value) in read_snmprec(path).items() if oid[:10] == root}

    async def scene() -> None:
        simulator = PduSimulator(load_profile("raritan_px"), recording=path, user=USER)
        async with simulator, session_with(simulator.port, version) as session:
            before = session.counters.requests
            found = [v async for v in walk(session, ".".join(map(str, root)), repetitions)]
            assert {v.oid: v.value for v in found} == there
            assert [v.oid for v in found] == list(there)  # a recording is read in order
            assert session.counters.requests - before == -(-(len(there) + 1) // repetitions)

    asyncio.run(scene())


def test_the_walk_ends_where_the_column_ends_and_asks_for_no_more_rows_than_told() -> None:
    found, asked = walk_of(lambda pdu: following(pdu, last=10))
    assert [v.value for v in found] == list(range(1, 11))
    assert [(pdu.tag, pdu.status, pdu.index) for pdu in asked] == [(GET_BULK, 0, 4)] * 3
    assert [pdu.varbinds[0].oid for pdu in asked] == [ROOT, f"{ROOT}.4", f"{ROOT}.8"]


def test_the_end_of_all_objects_ends_the_walk() -> None:
    found, asked = walk_of(lambda pdu: [*following(pdu, last=2)[:2], Varbind(f"{ROOT}.2", END_OF_MIB)])
    assert [v.value for v in found] == [1, 2]
    assert len(asked) == 1


@pytest.mark.parametrize("step", [0, -1])
def test_an_agent_that_goes_in_circles_is_named(step: int) -> None:
    with pytest.raises(SnmpProtocolError, match=r"goes in circles: after 1\.3\.6\.1\.4\.1\.99999\.1\.7 it gives"):
        walk_of(lambda pdu: [Varbind(f"{ROOT}.{7 + step * i}", INTEGER, 0) for i in range(2)])


def test_more_objects_than_asked_for_are_not_believed() -> None:
    with pytest.raises(SnmpProtocolError, match="5 objects where up to 4 were asked for"):
        walk_of(lambda pdu: [*following(pdu, last=99), Varbind(f"{ROOT}.99", INTEGER, 0)])


def test_requests_keep_their_distance() -> None:
    async def scene() -> float:
        simulator = PduSimulator(load_profile("raritan_px"), 2)
        async with simulator, session_with(simulator.port, requests_per_s=50.0) as session:
            started_s = time.monotonic()
            await session.get(["1.3.6.1.2.1.1.1.0"])
            assert [v async for v in walk(session, "1.3.6.1.2.1.1", 1)]
            assert session.counters.requests == 6  # the GET, then four objects and what follows them
            return time.monotonic() - started_s

    assert asyncio.run(scene()) >= 5 / 50.0


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"requests_per_s 0\.0 is not above 0"):
        SnmpEndpoint("127.0.0.1", version="2c", community="public", requests_per_s=0.0)
