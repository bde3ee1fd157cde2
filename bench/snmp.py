"""48-outlet SET + read-back against Debian's snmpd: our session, pysnmp in its fastest set-up, libnetsnmp in C.

`python bench/snmp.py --json`. All three set the same 48 integers at the same agent and compare what they read back; rounds
are interleaved, a round's figure is its median, a ratio is the median of the rounds' ratios. Needs snmpd, libsnmp-dev, a C
compiler. v3 is authPriv, SHA-256 and AES-128."""

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import common
import snmpd
from pysnmp.hlapi.v1arch import asyncio as pysnmp_v1arch
from pysnmp.hlapi.v3arch import asyncio as pysnmp_v3arch
from pysnmp.proto import rfc1902

from rpi_daemon.drivers.pdu.snmp_session import INTEGER, SnmpEndpoint, SnmpSession, Varbind

OUTLETS = 48
OIDS = [f"{snmpd.BASE_OID}.{i}" for i in range(1, OUTLETS + 1)]
ROUND_TRIPS = {"ours": 60, "netsnmp": 60, "pysnmp": 3}  # in one round
ROUNDS = 21
ROUNDS_QUICK = 5

SetAndRead = Callable[[int], Awaitable[None]]


def expect(values: list[object], first: int) -> None:
    if values != list(range(first, first + OUTLETS)):
        raise SystemExit(f"read back something else: {values[:4]}...")


async def ours(agent: snmpd.Snmpd, version: str) -> tuple[SetAndRead, Callable[[], None]]:
    """Our session; a new set of values each time."""
    session = SnmpSession(
        SnmpEndpoint(
            agent.host,
            agent.port,
            version,
            community=snmpd.COMMUNITY,
            user=snmpd.USER,
            auth_key=snmpd.AUTH_KEY,
            priv_key=snmpd.PRIV_KEY,
            timeout_s=5.0,
        )
    )
    await session.open()

    async def set_and_read(first: int) -> None:
        await session.set([Varbind(oid, INTEGER, first + i) for i, oid in enumerate(OIDS)])
        expect([varbind.value for varbind in await session.get(OIDS)], first)

    return set_and_read, session.close


async def pysnmp_v2c(agent: snmpd.Snmpd) -> tuple[SetAndRead, Callable[[], None]]:
    """pysnmp's v1arch, twice as fast as its v3arch in v2c; names parsed once."""
    dispatcher = pysnmp_v1arch.SnmpDispatcher()
    community = pysnmp_v1arch.CommunityData(snmpd.COMMUNITY, mpModel=1)
    target = await pysnmp_v1arch.UdpTransportTarget.create((agent.host, agent.port))
    names = [rfc1902.ObjectName(oid) for oid in OIDS]
    question = [(name, rfc1902.Null("")) for name in names]

    async def set_and_read(first: int) -> None:
        values = [(name, rfc1902.Integer32(first + i)) for i, name in enumerate(names)]
        answer = await pysnmp_v1arch.set_cmd(dispatcher, community, target, *values, lookupMib=False)
        check_pysnmp(answer)
        answer = await pysnmp_v1arch.get_cmd(dispatcher, community, target, *question, lookupMib=False)
        check_pysnmp(answer)
        expect([int(value) for _, value in answer[3]], first)

    return set_and_read, dispatcher.close


async def pysnmp_v3(agent: snmpd.Snmpd) -> tuple[SetAndRead, Callable[[], None]]:
    """pysnmp's v3arch with one engine, lookupMib=False, names parsed once."""
    engine = pysnmp_v3arch.SnmpEngine()
    user = pysnmp_v3arch.UsmUserData(
        snmpd.USER,
        snmpd.AUTH_KEY,
        snmpd.PRIV_KEY,
        pysnmp_v3arch.usmHMAC192SHA256AuthProtocol,
        pysnmp_v3arch.usmAesCfb128Protocol,
    )
    target = await pysnmp_v3arch.UdpTransportTarget.create((agent.host, agent.port))
    context = pysnmp_v3arch.ContextData()
    names = [rfc1902.ObjectName(oid) for oid in OIDS]

    def typed(value: Any, name: Any) -> Any:
        return pysnmp_v3arch.ObjectType(pysnmp_v3arch.ObjectIdentity(name), value)

    async def set_and_read(first: int) -> None:
        values = [typed(rfc1902.Integer32(first + i), name) for i, name in enumerate(names)]
        answer = await pysnmp_v3arch.set_cmd(engine, user, target, context, *values, lookupMib=False)
        check_pysnmp(answer)
        question = [typed(rfc1902.Null(""), name) for name in names]
        answer = await pysnmp_v3arch.get_cmd(engine, user, target, context, *question, lookupMib=False)
        check_pysnmp(answer)
        expect([int(value) for _, value in answer[3]], first)

    return set_and_read, engine.close_dispatcher


def check_pysnmp(answer: Any) -> None:
    if answer[0] or answer[1]:
        raise SystemExit(f"pysnmp: {answer[0] or answer[1]}")


class NetSnmp:
    """The C client in a process of its own; it times itself."""

    def __init__(self, program: Path, agent: snmpd.Snmpd, version: str) -> None:
        self._process = subprocess.Popen(
            [program, version, f"udp:{agent.host}:{agent.port}", str(OUTLETS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def round_us(self, n: int) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{n}\n")
        times = [float(word) for word in self._process.stdout.readline().split()]
        if len(times) != n:
            raise SystemExit("netsnmp_client ended early")
        return times

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate(timeout=10)


async def timed_us(set_and_read: SetAndRead, n: int, first: int) -> list[float]:
    times = []
    for i in range(n):
        start_ns = time.perf_counter_ns()
        await set_and_read(first + i)
        times.append((time.perf_counter_ns() - start_ns) / 1000.0)
    return times


def compile_client(folder: Path) -> Path:
    program = folder / "netsnmp_client"
    source = Path(__file__).with_name("netsnmp_client.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", source, "-o", program, "-lnetsnmp"], check=True)
    return program


async def compare(folder: Path, rounds: int) -> dict[tuple[str, str], list[list[float]]]:
    """(client, version) -> per round the microseconds of each SET + read-back."""
    program = compile_client(folder)
    taken: dict[tuple[str, str], list[list[float]]] = {}
    with snmpd.Snmpd(folder, OUTLETS) as agent:
        for version, pysnmp in (("2c", pysnmp_v2c), ("3", pysnmp_v3)):
            our_way, close_ours = await ours(agent, version)
            their_way, close_theirs = await pysnmp(agent)
            with NetSnmp(program, agent, version) as netsnmp:
                await timed_us(our_way, 20, 1)
                await timed_us(their_way, 1, 1)
                netsnmp.round_us(20)
                for i in range(rounds):
                    first = 1000 * (i + 1)
                    for client in ("ours", "netsnmp", "pysnmp") if i % 2 else ("netsnmp", "ours", "pysnmp"):
                        n = ROUND_TRIPS[client]
                        if client == "netsnmp":
                            times = netsnmp.round_us(n)
                        else:
                            times = await timed_us(our_way if client == "ours" else their_way, n, first)
                        taken.setdefault((client, version), []).append(times)
            close_ours()
            close_theirs()
    return taken


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    if not snmpd.available():
        raise SystemExit("snmpd is missing: apt-get install snmpd libsnmp-dev")
    with tempfile.TemporaryDirectory() as folder:
        taken = asyncio.run(compare(Path(folder), ROUNDS_QUICK if arguments.quick else ROUNDS))
    rows = []
    for (client, version), rounds_us in taken.items():
        every = sorted(t for round_us in rounds_us for t in round_us)
        rows.append(
            {
                "client": client,
                "version": version,
                "outlets": OUTLETS,
                "set_and_read_p50_us": statistics.median(every),
                "set_and_read_p90_us": every[len(every) * 9 // 10],
                "n": len(every),
            }
        )
    medians = {key: [statistics.median(round_us) for round_us in rounds_us] for key, rounds_us in taken.items()}
    ratios = {
        f"v{version}_vs_{client}": common.median_ratio(medians[client, version], medians["ours", version])
        for version, client in (("3", "pysnmp"), ("2c", "pysnmp"), ("3", "netsnmp"), ("2c", "netsnmp"))
    }
    common.report("snmp", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
