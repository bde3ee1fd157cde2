"""The SNMP session against agents on a real loopback socket: a scripted one for the wire's faults, pysnmp's for SNMPv3."""

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon._fastpath.core import Pdu, decode_v2c, encode_v2c
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator, SimUser
from rpi_daemon.drivers.pdu.snmp_session import (
    INTEGER,
    NO_SUCH_INSTANCE,
    OCTETS,
    SnmpAuthError,
    SnmpEndpoint,
    SnmpProtocolError,
    SnmpRefused,
    SnmpSession,
    SnmpTimeout,
    Varbind,
)
from rpi_daemon.errors import DeviceError

RESPONSE, SET = 0xA2, 0xA3
OIDS = [f"1.3.6.1.4.1.99999.1.{i}" for i in range(1, 49)]
COMMUNITY = b"public"

Reply = tuple[float, bytes]  # seconds to wait, octets
Script = Callable[[Pdu, int], Sequence[Reply]]


class ScriptedAgent(asyncio.DatagramProtocol):
    """Answers request n with what `script` says, after its delays."""

    def __init__(self, script: Script) -> None:
        self.asked: list[Pdu] = []
        self._script = script

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        pdu = decode_v2c(data)[1]
        self.asked.append(pdu)
        loop = asyncio.get_running_loop()
        for delay_s, reply in self._script(pdu, len(self.asked)):
            loop.call_later(delay_s, self._transport.sendto, reply, address)


def values(pdu: Pdu) -> list[Varbind]:
    """What a good agent answers: the value is the last arc; a SET's own values."""
    return [v if pdu.tag == SET else Varbind(v.oid, INTEGER, int(v.oid.rpartition(".")[2])) for v in pdu.varbinds]


def good(pdu: Pdu) -> bytes:
    return encode_v2c(COMMUNITY, RESPONSE, pdu.request_id, values(pdu))


def refused(pdu: Pdu, status: int, index: int, *, bare: bool = False) -> bytes:
    return encode_v2c(COMMUNITY, RESPONSE, pdu.request_id, () if bare else pdu.varbinds, status, index)


@contextlib.asynccontextmanager
async def scripted(script: Script, **options: Any) -> AsyncIterator[tuple[SnmpSession, ScriptedAgent]]:
    loop = asyncio.get_running_loop()
    transport, agent = await loop.create_datagram_endpoint(lambda: ScriptedAgent(script), ("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    options = {"timeout_s": 0.05, "retries": 1, **options}
    session = SnmpSession(SnmpEndpoint("127.0.0.1", port, "2c", community=COMMUNITY.decode(), **options))
    await session.open()
    try:
        yield session, agent
    finally:
        session.close()
        transport.close()
        await asyncio.sleep(0)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_get_and_set_in_the_order_asked() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, good(pdu))]) as (session, agent):
            asked = [OIDS[5], OIDS[0], OIDS[47]]
            assert await session.get(asked) == [
                Varbind(oid, INTEGER, i) for oid, i in zip(asked, (6, 1, 48), strict=True)
            ]
            written = [Varbind(OIDS[1], INTEGER, 77), Varbind(OIDS[0], OCTETS, b"\x30")]
            assert await session.set(written) == written
            assert agent.asked[1].varbinds == written
            assert await session.get([]) == []
            assert session.counters.requests == 2

    run(body)


def test_request_ids_are_not_guessable() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, good(pdu))]) as (session, agent):
            for _ in range(64):
                await session.get(OIDS[:1])
            ids = [pdu.request_id for pdu in agent.asked]
            assert len(set(ids)) == 64
            assert all(0 <= i < 2**31 for i in ids)
            steps = [b - a for a, b in itertools.pairwise(ids)]
            assert len(set(steps)) == 63
            assert 0.25 < sum(i > 2**30 for i in ids) / 64 < 0.75

    run(body)


def test_more_than_max_varbinds_is_split() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, good(pdu))], max_varbinds=20) as (session, agent):
            assert [v.value for v in await session.get(OIDS)] == list(range(1, 49))
            assert [len(pdu.varbinds) for pdu in agent.asked] == [20, 20, 8]
            written = [Varbind(oid, INTEGER, i) for i, oid in enumerate(OIDS)]
            assert await session.set(written) == written
            assert [v for pdu in agent.asked[3:] for v in pdu.varbinds] == written

    run(body)


@pytest.mark.parametrize("bare", [True, False])
def test_too_big_halves_the_batch_and_is_remembered(bare: bool) -> None:
    def script(pdu: Pdu, n: int) -> Sequence[Reply]:
        return [(0, good(pdu) if len(pdu.varbinds) <= 12 else refused(pdu, 1, 0, bare=bare))]

    async def body() -> None:
        async with scripted(script) as (session, agent):
            assert [v.value for v in await session.get(OIDS)] == list(range(1, 49))
            assert [len(pdu.varbinds) for pdu in agent.asked] == [48, 24, 12, 12, 12, 12]
            await session.get(OIDS[:24])
            assert [len(pdu.varbinds) for pdu in agent.asked[6:]] == [12, 12]

    run(body)


def test_a_batch_that_was_halved_grows_again() -> None:
    """By a GET of twice as many, at once after one tooBig, and ever more rarely while the agent still says so."""
    most = [6]

    def script(pdu: Pdu, n: int) -> Sequence[Reply]:
        return [(0, good(pdu) if len(pdu.varbinds) <= most[0] else refused(pdu, 1, 0))]

    async def body() -> None:
        async with scripted(script) as (session, agent):

            async def sizes(look: bool = True) -> list[int]:
                agent.asked.clear()
                if look:
                    session.may_grow()
                assert [v.value for v in await session.get(OIDS[:12])] == list(range(1, 13))
                return [len(pdu.varbinds) for pdu in agent.asked]

            assert await sizes(look=False) == [12, 6, 6]
            assert await sizes() == [12, 6, 6]
            tries = [len(await sizes()) > 2 for _ in range(200)]
            assert [i + 1 for i, tried in enumerate(tries) if tried] == [2, 6, 14, 30, 62, 126, 190]
            written = [Varbind(oid, INTEGER, i) for i, oid in enumerate(OIDS[:12])]
            for _ in range(64):
                session.may_grow()
            agent.asked.clear()
            assert await session.set(written) == written
            assert [len(pdu.varbinds) for pdu in agent.asked] == [6, 6], "never by a SET"
            most[0] = 48
            assert await sizes(look=False) == [12]
            assert [v.value for v in await session.get(OIDS)] == list(range(1, 49))
            assert len(agent.asked) == 5
            session.may_grow()
            agent.asked.clear()
            await session.get(OIDS)
            assert [len(pdu.varbinds) for pdu in agent.asked] == [24, 24]
            await session.open()
            agent.asked.clear()
            await session.get(OIDS)
            assert [len(pdu.varbinds) for pdu in agent.asked] == [48], "another device, perhaps"

    run(body)


def test_silence_to_more_values_is_no_silence_of_the_agent() -> None:
    def script(pdu: Pdu, n: int) -> Sequence[Reply]:
        if n == 1:
            return [(0, refused(pdu, 1, 0))]
        return [(0, good(pdu))] if len(pdu.varbinds) <= 24 else []

    async def body() -> None:
        async with scripted(script) as (session, agent):
            await session.get(OIDS)
            session.may_grow()
            assert [v.value for v in await session.get(OIDS)] == list(range(1, 49))
            assert [len(pdu.varbinds) for pdu in agent.asked] == [48, 24, 24, 48, 24, 24]

    run(body)


def test_too_big_for_a_single_value_is_told() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, refused(pdu, 1, 0))]) as (session, _):
            with pytest.raises(SnmpRefused, match="tooBig") as caught:
                await session.get(OIDS[:1])
            assert (caught.value.status, caught.value.index) == (1, 0)

    run(body)


def test_a_refusal_names_the_value_in_the_callers_order() -> None:
    async def body() -> None:
        def script(pdu: Pdu, n: int) -> Sequence[Reply]:
            return [(0, good(pdu) if n == 1 else refused(pdu, 10, 3))]

        async with scripted(script, max_varbinds=10) as (session, _):
            with pytest.raises(
                SnmpRefused, match=r"refused SET of 1\.3\.6\.1\.4\.1\.99999\.1\.13: wrongValue"
            ) as caught:
                await session.set([Varbind(oid, INTEGER, 1) for oid in OIDS])
            assert (caught.value.status, caught.value.index, caught.value.oid) == (10, 13, OIDS[12])

    run(body)


def test_silence_ends_exactly_and_names_the_community() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [], timeout_s=0.06, retries=2) as (session, agent):
            start_s = time.monotonic()
            with pytest.raises(SnmpTimeout, match=r"127\.0\.0\.1 port .* 3 tries of 0\.06 s.*community may be wrong"):
                await session.get(OIDS[:1])
            assert 0.179 < time.monotonic() - start_s < 3.0
            assert len(agent.asked) == 3
            assert (session.counters.timeouts, session.counters.retries) == (3, 2)

    run(body)


def test_a_lost_reply_costs_one_retry() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [] if n == 1 else [(0, good(pdu))]) as (session, _):
            assert (await session.get(OIDS[:1]))[0].value == 1
            assert (session.counters.timeouts, session.counters.retries) == (1, 1)

    run(body)


def test_late_and_duplicate_replies_are_not_taken_for_the_next_answer() -> None:
    first: list[Pdu] = []

    def script(pdu: Pdu, n: int) -> Sequence[Reply]:
        if n == 1:
            first.append(pdu)
            return [(0, good(pdu)), (0, good(pdu)), (0.02, good(pdu))]
        late = encode_v2c(
            COMMUNITY, RESPONSE, first[0].request_id, [Varbind(v.oid, INTEGER, 999) for v in pdu.varbinds]
        )
        return [(0, late), (0.03, good(pdu))]

    async def body() -> None:
        async with scripted(script) as (session, _):
            assert (await session.get(OIDS[:1]))[0].value == 1
            assert (await session.get(OIDS[:1]))[0].value == 1
            assert session.counters.stale_replies == 3
            assert session.counters.retries == 0

    run(body)


@pytest.mark.parametrize("fault", ["oid", "fewer", "more", "order", "community", "garbage", "request echoed"])
def test_a_wrong_reply_is_dropped_and_the_right_one_still_taken(fault: str) -> None:
    def wrong(pdu: Pdu) -> bytes:
        answers = values(pdu)
        community, tag = COMMUNITY, RESPONSE
        if fault == "oid":
            answers[0] = Varbind(OIDS[9], INTEGER, 1)
        elif fault == "fewer":
            answers.pop()
        elif fault == "more":
            answers.append(answers[0])
        elif fault == "order":
            answers.reverse()
        elif fault == "community":
            community = b"other"
        elif fault == "garbage":
            return b"\x30\x82\xff"
        else:
            tag = pdu.tag
        return encode_v2c(community, tag, pdu.request_id, answers)

    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, wrong(pdu)), (0.01, good(pdu))]) as (session, _):
            assert [v.value for v in await session.get(OIDS[:3])] == [1, 2, 3]
            assert session.counters.malformed == 1
        async with scripted(lambda pdu, n: [(0, wrong(pdu))], retries=0) as (session, _):
            with pytest.raises(SnmpProtocolError, match="nothing usable in 1 tries"):
                await session.get(OIDS[:3])

    run(body)


def test_a_reply_from_another_address_is_not_seen() -> None:
    """Right in every octet, but not from the agent: the kernel keeps it from a connected socket."""

    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.3", 0))

            def script(pdu: Pdu, n: int) -> Sequence[Reply]:
                assert session._socket is not None
                forged = encode_v2c(COMMUNITY, RESPONSE, pdu.request_id, [Varbind(OIDS[0], INTEGER, 666)])
                stranger.sendto(forged, session._socket.getsockname())
                return [(0.01, good(pdu))]

            async with scripted(script) as (session, _):
                assert (await session.get(OIDS[:1]))[0].value == 1
                assert session.counters.stale_replies == session.counters.malformed == 0

    run(body)


def test_a_missing_number_is_none() -> None:
    async def body() -> None:
        def script(pdu: Pdu, n: int) -> Sequence[Reply]:
            whole = encode_v2c(COMMUNITY, RESPONSE, pdu.request_id, [Varbind(OIDS[0], OCTETS, b"")])
            return [(0, whole[:-2] + b"\x02\x00")]  # the value's tag becomes INTEGER, of length zero

        async with scripted(script) as (session, _):
            assert await session.get(OIDS[:1]) == [Varbind(OIDS[0], INTEGER, None)]

    run(body)


def test_nothing_listens() -> None:
    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        session = SnmpSession(SnmpEndpoint("127.0.0.1", port, "2c", community="public", timeout_s=5.0))
        await session.open()
        start_s = time.monotonic()
        with pytest.raises(DeviceError, match=r"nothing listens at SNMP agent 127\.0\.0\.1 port"):
            await session.get(OIDS[:1])
        assert time.monotonic() - start_s < 5.0, "it does not wait for an answer"
        session.close()

    run(body)


def test_an_agent_that_came_back_is_not_refused_for_the_old_error() -> None:
    """The ICMP error of a datagram sent while it was down must not fail the next request."""

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with scripted(lambda pdu, n: [(0, good(pdu))]) as (session, agent):
            port = session.endpoint.port
            agent._transport.close()
            await asyncio.sleep(0)
            with pytest.raises(DeviceError, match="nothing listens"):
                await session.get(OIDS[:1])
            transport, _ = await loop.create_datagram_endpoint(
                lambda: ScriptedAgent(lambda pdu, n: [(0, good(pdu))]), ("127.0.0.1", port)
            )
            assert (await session.get(OIDS[:1]))[0].value == 1
            transport.close()

    run(body)


def test_requests_wait_for_each_other() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0.005, good(pdu))]) as (session, _):
            answers = await asyncio.gather(*(session.get([oid]) for oid in OIDS[:8]))
            assert [v.value for (v,) in answers] == list(range(1, 9))
            assert session.counters.stale_replies == session.counters.retries == 0

    run(body)


def test_a_cancelled_request_leaves_the_session_usable() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0.02 if n == 1 else 0.0, good(pdu))], timeout_s=0.2) as (session, _):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.get(OIDS[:1]), 0.005)
            assert (await session.get(OIDS[1:2]))[0].value == 2
            await asyncio.sleep(0.03)
            assert session.counters.stale_replies == 1

    run(body)


def test_closing_fails_what_is_under_way_and_twice_is_safe() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [], timeout_s=5.0) as (session, _):
            waiting = asyncio.ensure_future(session.get(OIDS[:1]))
            await asyncio.sleep(0.01)
            session.close()
            session.close()
            with pytest.raises(DeviceError, match="was closed"):
                await waiting
            with pytest.raises(DeviceError, match="is not open"):
                await session.get(OIDS[:1])

    run(body)


def test_an_unknown_host_is_named() -> None:
    async def body() -> None:
        with pytest.raises(DeviceError, match=r"no-such-host\.invalid cannot be found"):
            await SnmpSession(SnmpEndpoint("no-such-host.invalid", version="2c", community="public")).open()

    run(body)


def test_a_request_that_udp_cannot_carry_is_told() -> None:
    async def body() -> None:
        async with scripted(lambda pdu, n: [(0, good(pdu))]) as (session, _):
            with pytest.raises(SnmpProtocolError, match="65507"):
                await session.set([Varbind(oid, OCTETS, bytes(40000)) for oid in OIDS[:2]])

    run(body)


# --- SNMPv3: the simulated PDU, whose agent is pysnmp

SYS_NAME, LIMITS = "1.3.6.1.2.1.1.5.0", "1.3.6.1.4.1.318.1.1.26.9.4.1.1.7."  # APC rPDU2 outlet thresholds


def simulator(auth: str | None = "SHA-256", priv: str | None = "AES-128", **options: Any) -> PduSimulator:
    user = SimUser("rpi", auth, "authpass12" if auth else "", priv, "privpass12" if priv else "")
    return PduSimulator(load_profile("apc_rpdu2"), 12, user=user, **options)


def endpoint(simulated: PduSimulator, **changes: Any) -> SnmpEndpoint:
    options: dict[str, Any] = {"user": "rpi", "auth_key": "authpass12", "priv_key": "privpass12", "timeout_s": 1.0}
    return SnmpEndpoint("127.0.0.1", simulated.port, **(options | changes))


@contextlib.asynccontextmanager
async def opened(where: SnmpEndpoint) -> AsyncIterator[SnmpSession]:
    session = SnmpSession(where)
    await session.open()
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize(
    ("auth", "priv"), [(a, p) for a in ("SHA-1", "SHA-256", "SHA-512") for p in ("AES-128", None)] + [(None, None)]
)
def test_v3_with_pysnmp(auth: str | None, priv: str | None) -> None:
    async def body() -> None:
        async with simulator(auth, priv) as simulated, contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(opened(endpoint(simulated, auth=auth, priv=priv)))
            written = [Varbind(f"{LIMITS}{i}", INTEGER, 2000 + i) for i in range(1, 13)]
            assert await session.set(written) == written
            assert await session.get([v.oid for v in written]) == written
            assert await session.get(["1.3.6.1.4.1.5.5"]) == [Varbind("1.3.6.1.4.1.5.5", NO_SUCH_INSTANCE, None)]
            assert session.counters.malformed == session.counters.timeouts == 0
            assert session.engine_id.startswith(bytes.fromhex("80004fb804"))

    run(body)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": "nobody"}, "user 'nobody' is unknown"),
        ({"auth_key": "wrongpass12"}, r"authentication key or algorithm \(SHA-256\) is wrong"),
        ({"auth": "SHA-512"}, r"authentication key or algorithm \(SHA-512\) is wrong"),
    ],
)
def test_v3_refusals_with_pysnmp(changes: dict[str, str], words: str) -> None:
    async def body() -> None:
        async with simulator() as simulated, contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(opened(endpoint(simulated, **changes)))
            with pytest.raises(SnmpAuthError, match=words) as caught:
                await session.get([SYS_NAME])
            assert caught.value.exit_code == 5
            assert "pass12" not in str(caught.value)
            assert session.counters.retries == 0

    run(body)


def test_v3_wrong_privacy_key_is_not_mistaken_for_anything_else() -> None:
    """Agents meet it with silence or with a Report."""

    async def body() -> None:
        async with simulator() as simulated, contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                opened(endpoint(simulated, priv_key="wrongpass12", timeout_s=0.1))
            )
            with pytest.raises((SnmpAuthError, SnmpTimeout), match="privacy key"):
                await session.get([SYS_NAME])

    run(body)


def test_v3_silence_at_open_is_told() -> None:
    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
            mute.bind(("127.0.0.1", 0))
            port = mute.getsockname()[1]
            options = {"user": "rpi", "auth_key": "authpass12", "priv_key": "privpass12", "timeout_s": 0.03}
            with pytest.raises(SnmpTimeout, match="SNMPv3 is enabled"):
                await SnmpSession(SnmpEndpoint("127.0.0.1", port, **options)).open()  # type: ignore[arg-type]

    run(body)


def test_v3_agent_restarts(tmp_path: Path) -> None:
    """Engine boots go up: one Report, one resynchronisation, and the request is answered."""

    async def body() -> None:
        simulated = simulator(state_dir=tmp_path)
        async with contextlib.AsyncExitStack() as stack:
            await simulated.start()
            session = await stack.enter_async_context(opened(endpoint(simulated)))
            (before,) = await session.get([SYS_NAME])
            assert session.engine_boots == 1
            await simulated.stop()
            await stack.enter_async_context(simulated)
            assert await session.get([SYS_NAME]) == [before]
            assert session.engine_boots == 2
            assert session.counters.resyncs == 1
            assert await session.get([SYS_NAME]) == [before]
            assert session.counters.resyncs == 1

    run(body)


def test_v3_device_replaced_by_another() -> None:
    """The same address, another engine id: keys are localised again, and the request is answered."""

    async def body() -> None:
        simulated = simulator(serial="OLD")
        async with contextlib.AsyncExitStack() as stack:
            await simulated.start()
            session = await stack.enter_async_context(opened(endpoint(simulated)))
            await session.get([SYS_NAME])
            old_id = session.engine_id
            await simulated.stop()
            await stack.enter_async_context(simulator(serial="NEW", port=simulated.port))
            assert (await session.get([SYS_NAME]))[0].tag == OCTETS
            assert session.engine_id != old_id
            assert session.counters.resyncs == 1

    run(body)
