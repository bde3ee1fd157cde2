"""The SNMP session against Debian's snmpd: v2c and v3, refusals, a restarted agent, IPv6; and the SNMP bench's short form."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benches import load_bench

from rpi_daemon.discover import look
from rpi_daemon.drivers.pdu.snmp_session import (
    INTEGER,
    NO_SUCH_OBJECT,
    OCTETS,
    SnmpAuthError,
    SnmpEndpoint,
    SnmpRefused,
    SnmpSession,
    SnmpTimeout,
    Varbind,
)
from rpi_daemon.drivers.pdu.walk import walk
from rpi_daemon.errors import AuthError, DeviceError

BENCH = Path(__file__).resolve().parents[2] / "bench"


snmpd = load_bench("snmpd")
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not snmpd.available(), reason="snmpd is not installed")]

N = 48
PATIENCE_S = 20.0  # for an answer that is to come
OIDS = [f"{snmpd.BASE_OID}.{i}" for i in range(1, N + 1)]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Any]:
    with snmpd.Snmpd(tmp_path, N) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(agent: Any, **changes: Any) -> AsyncIterator[SnmpSession]:
    options: dict[str, Any] = {
        "community": snmpd.COMMUNITY,
        "user": snmpd.USER,
        "auth_key": snmpd.AUTH_KEY,
        "priv_key": snmpd.PRIV_KEY,
        "timeout_s": PATIENCE_S,
    }
    session = SnmpSession(SnmpEndpoint(agent.host, agent.port, **(options | changes)))
    await session.open()
    try:
        yield session
    finally:
        session.close()


async def set_and_read(session: SnmpSession, first: int) -> None:
    written = [Varbind(oid, INTEGER, first + i) for i, oid in enumerate(OIDS)]
    assert await session.set(written) == written
    assert await session.get(OIDS) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "2c"},
        {},
        {"user": "rpi-sha1", "auth": "SHA-1"},
        {"user": "rpi-sha512", "auth": "SHA-512"},
    ],
    ids=["v2c", "SHA-256", "SHA-1", "SHA-512"],
)
def test_set_and_read_back(agent: Any, changes: dict[str, Any]) -> None:
    async def body() -> None:
        async with opened(agent, **changes) as session:
            await set_and_read(session, 100)
            await set_and_read(session, -2000000000)
            missing = await session.get([f"{snmpd.BASE_OID}.99999", "1.3.6.1.2.1.1.5.0"])
            assert missing[0] == Varbind(f"{snmpd.BASE_OID}.99999", NO_SUCH_OBJECT, None)
            assert missing[1].tag == OCTETS
            counters = session.counters
            assert (counters.timeouts, counters.malformed, counters.stale_replies, counters.resyncs) == (0, 0, 0, 0)
            assert counters.reports == (0 if changes.get("version") == "2c" else 1)

    asyncio.run(body())


@pytest.mark.parametrize("version", ["2c", "3"])
def test_a_walk_by_getbulk_gives_every_object_in_order(agent: Any, version: str) -> None:
    async def body() -> None:
        async with opened(agent, version=version) as session:
            await session.set([Varbind(oid, INTEGER, 7 * i) for i, oid in enumerate(OIDS)])
            for repetitions in (1, 4, 40):
                found = [(v.oid, v.value) async for v in walk(session, snmpd.BASE_OID, repetitions) if v.oid in OIDS]
                assert found == [(oid, 7 * i) for i, oid in enumerate(OIDS)]

    asyncio.run(body())


def test_discover_names_an_agent_that_is_no_pdu(agent: Any) -> None:
    endpoint = SnmpEndpoint(agent.host, agent.port, "2c", community=snmpd.COMMUNITY, timeout_s=PATIENCE_S)
    with pytest.raises(DeviceError, match=r"with sysObjectID 1\.3\.6\.1\.4\.1\.8072\.3\.2\.10: no profile knows it"):
        asyncio.run(look(endpoint))


def test_discover_tells_a_wrong_community_from_a_silent_host(agent: Any) -> None:
    def ask() -> None:
        for timeout_s in (0.3, 3.0, PATIENCE_S):  # each is waited out once: longer only where the machine is busy
            with contextlib.suppress(SnmpTimeout):
                asyncio.run(look(SnmpEndpoint(agent.host, agent.port, "2c", "another", timeout_s=timeout_s, retries=0)))

    with pytest.raises(AuthError, match="is there, but does not answer to this community"):
        ask()


def test_restart_of_the_agent_costs_one_resynchronisation(agent: Any) -> None:
    async def body() -> None:
        async with opened(agent) as session:
            await set_and_read(session, 1)
            boots = session.engine_boots
            agent.stop()
            agent.start()
            await set_and_read(session, 200)
            assert session.engine_boots > boots
            assert (session.counters.resyncs, session.counters.timeouts) == (1, 0)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "kind", "words", "wait_s"),
    [
        ({"user": "nobody"}, SnmpAuthError, "user 'nobody' is unknown", PATIENCE_S),
        ({"auth_key": "wrongpass12"}, SnmpAuthError, "authentication key", PATIENCE_S),
        ({"auth": "SHA-1"}, SnmpAuthError, "authentication key", PATIENCE_S),
        ({"user": "rpi-auth-only"}, SnmpAuthError, "security level", PATIENCE_S),
        ({"priv_key": "wrongpass12"}, (SnmpAuthError, SnmpTimeout), "privacy key", 0.4),
        ({"version": "2c", "community": "wrong"}, SnmpTimeout, "community may be wrong", 0.1),
    ],
)
def test_wrong_credentials(tmp_path: Path, changes: dict[str, Any], kind: Any, words: str, wait_s: float) -> None:
    extra = [f"createUser rpi-auth-only SHA-256 {snmpd.AUTH_KEY}", "rwuser rpi-auth-only auth"]

    async def body() -> None:
        with snmpd.Snmpd(tmp_path, 1, extra=extra) as agent:
            async with opened(agent, **changes) as session:
                session.endpoint = replace(
                    session.endpoint, timeout_s=wait_s
                )  # met in peace: now silence may be the answer
                with pytest.raises(kind, match=words):
                    await session.get(OIDS[:1])

    asyncio.run(body())


def test_a_refused_value_is_named(agent: Any) -> None:
    async def body() -> None:
        async with opened(agent) as session:
            with pytest.raises(SnmpRefused) as caught:
                await session.set([Varbind(OIDS[0], INTEGER, 5), Varbind(OIDS[1], OCTETS, b"text")])
            assert (caught.value.status, caught.value.index, caught.value.oid) == (7, 2, OIDS[1])  # wrongType
            assert (await session.get(OIDS[:1]))[0].value == 1  # all or nothing
            with pytest.raises(SnmpRefused, match=r"1\.3\.6\.1\.2\.1\.1\.3\.0: notWritable"):
                await session.set([Varbind("1.3.6.1.2.1.1.3.0", 0x43, 5)])

    asyncio.run(body())


def test_ipv6(tmp_path: Path) -> None:
    async def body() -> None:
        with snmpd.Snmpd(tmp_path, N, ipv6=True) as agent:
            async with opened(agent) as session:
                await set_and_read(session, 7)
            async with opened(agent, version="2c") as session:
                await set_and_read(session, 8)

    asyncio.run(body())


def test_bench_short_form() -> None:
    """Runs to the end with every ratio; the figures belong to the bench, not to a busy test machine."""
    done = subprocess.run(
        [sys.executable, BENCH / "snmp.py", "--quick", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},  # it imports its neighbour
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["bench"] == "snmp"
    assert {"v3_vs_pysnmp", "v2c_vs_pysnmp", "v3_vs_netsnmp"} <= set(result["ratios"])
    assert result["ratios"]["v3_vs_pysnmp"] > 10.0
    assert len(result["rows"]) == 6
