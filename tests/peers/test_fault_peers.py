"""23, 26: the receiver of traps is down; keys, engine and boots of an agent change. Against Debian's snmptrapd and snmpd."""

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from benches import load_bench
from fault_figures import Figures

from rpi_daemon._fastpath.core import BerError, decode_scoped, decode_v3
from rpi_daemon.drivers.pdu.snmp_session import SnmpAuthError, SnmpEndpoint, SnmpProtocolError, SnmpSession
from rpi_daemon.drivers.pdu.usm import AUTH, PRIV

snmpd, snmptrapd, informs = load_bench("snmpd"), load_bench("snmptrapd"), load_bench("informs")
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not snmpd.available(), reason="snmpd is not installed")]
LONG = os.environ.get("RPI_FIGURES") == "1"  # the figure's own run; CI's is shorter
OIDS = [f"{snmpd.BASE_OID}.{i}" for i in range(1, 5)]


@pytest.mark.fault(23)
def test_fault_23_a_receiver_that_is_down_misses_nothing(tmp_path: Path, figure: Figures) -> None:
    events = 10_000 if LONG else 300
    receiver = snmptrapd.Snmptrapd(tmp_path)
    try:
        row = asyncio.run(informs.outage(tmp_path, receiver, events))
    finally:
        receiver.stop()
    assert row["queued"] == events
    figure(23, f"informs lost, receiver down for {events} events", row["lost"] + row["left"], 0, "")
    figure(23, "out of the order of events", row["out_of_order"], 0, "")
    figure(23, "the loop is held up by 10 events of one tick", row["put_us"] / 1e3, 10.0, "ms", busy=100.0)


class Relay(asyncio.DatagramProtocol):
    """Between a session and an agent that may go and come back; keeps what the session sends."""

    def __init__(self, port: int) -> None:
        self.sent: list[bytes] = []
        self._agent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._agent.setblocking(False)
        self._to = ("127.0.0.1", port)
        self._back: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        asyncio.get_running_loop().add_reader(self._agent, self._answered)

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.sent.append(data)
        self._back = address
        self._agent.sendto(data, self._to)

    def _answered(self) -> None:
        with contextlib.suppress(OSError):
            self.transport.sendto(self._agent.recv(65536), self._back)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._agent)
        self._agent.close()
        self.transport.close()

    def weaker(self) -> int:
        """Messages that are not SNMPv3, or that ask or tell anything without both digest and encryption."""
        return sum(not _protected(data) for data in self.sent)


def _protected(data: bytes) -> bool:
    try:
        message = decode_v3(data)
        if message.flags & (AUTH | PRIV) == AUTH | PRIV:
            return True
        return not decode_scoped(message.scoped).varbinds  # discovery names nothing
    except BerError:
        return False


@contextlib.asynccontextmanager
async def through_relay(agent: Any, **changes: Any) -> AsyncIterator[tuple[SnmpSession, Relay]]:
    loop = asyncio.get_running_loop()
    transport, relay = await loop.create_datagram_endpoint(lambda: Relay(agent.port), ("127.0.0.1", 0))
    keys = {"user": snmpd.USER, "auth_key": snmpd.AUTH_KEY, "priv_key": snmpd.PRIV_KEY, "timeout_s": 20.0, **changes}
    session = SnmpSession(SnmpEndpoint("127.0.0.1", transport.get_extra_info("sockname")[1], **keys))
    try:
        await session.open()
        yield session, relay
    finally:
        session.close()
        relay.close()
        await asyncio.sleep(0)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Any]:
    with snmpd.Snmpd(tmp_path, len(OIDS)) as running:
        yield running


def boots_become(folder: Path, boots: int) -> None:
    """What the stopped agent has kept of its boots; its next start counts one more."""
    kept = folder / "var" / "snmpd.conf"
    text, changed = re.subn(r"^engineBoots \d+", f"engineBoots {boots}", kept.read_text(), flags=re.MULTILINE)
    assert changed == 1
    kept.write_text(text)


async def extra(session: SnmpSession, relay: Relay) -> int:
    """Round trips of one GET beyond the one that it takes."""
    before = len(relay.sent)
    assert [varbind.value for varbind in await session.get(OIDS)] == [1, 2, 3, 4]
    return len(relay.sent) - before - 1


@pytest.mark.fault(26)
def test_fault_26_restarts_other_engines_and_boots_that_jump(agent: Any, tmp_path: Path, figure: Figures) -> None:
    async def scene() -> tuple[dict[str, int], int, int]:
        found = {}
        async with through_relay(agent) as (session, relay):
            assert await extra(session, relay) == 0
            agent.stop()
            agent.start()
            found["restarted"] = await extra(session, relay)
            agent.stop()
            boots_become(tmp_path, 500)
            agent.start()
            found["boots jumped ahead"] = await extra(session, relay)
            assert session.engine_boots > 500
            engine = session.engine_id
            agent.stop()
            shutil.rmtree(tmp_path / "var")
            (tmp_path / "var").mkdir(mode=0o700)
            agent.start()
            found["another engine"] = await extra(session, relay)
            assert session.engine_id != engine
            # the same engine with boots of the past: a replay, for all that can be told, and never taken within a session
            agent.stop()
            boots_become(tmp_path, 300)
            agent.start()
            await session.get(OIDS)
            agent.stop()
            boots_become(tmp_path, 100)
            agent.start()
            before = len(relay.sent)
            with pytest.raises(SnmpProtocolError, match="outside the time window"):
                await session.get(OIDS)
            refused = len(relay.sent) - before
            await session.open()  # what a PDU's task does after any failure
            assert await extra(session, relay) <= 1
            return found, refused, relay.weaker()

    found, refused, weaker = asyncio.run(scene())
    for what, trips in found.items():
        figure(26, f"{what}: extra round trips", trips, 1, "")
    assert refused <= 4
    figure(26, "messages below authPriv that ask or tell anything", weaker, 0, "")


@pytest.mark.fault(26)
def test_fault_26_a_wrong_key_is_told_and_nothing_weaker_is_tried(agent: Any, figure: Figures) -> None:
    async def scene() -> tuple[int, int]:
        async with through_relay(agent, auth_key="wrongpass12") as (session, relay):
            before = len(relay.sent)
            for _ in range(3):
                with pytest.raises(SnmpAuthError, match="authentication key"):
                    await session.get(OIDS)
            return len(relay.sent) - before - 3, relay.weaker()

    more, weaker = asyncio.run(scene())
    figure(26, "wrong key, 3 requests: extra round trips each, most", more / 3, 1, "")
    figure(26, "wrong key: messages below authPriv that ask or tell anything", weaker, 0, "")
