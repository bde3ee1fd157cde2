"""27: names whose server is silent, that come back, and that move."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from fault_figures import Figures
from modbus_examples import example_map

from rpi_daemon import event_loop
from rpi_daemon.clock import SystemClock
from rpi_daemon.drivers.caps.session import RedfishEndpoint, RedfishSession
from rpi_daemon.drivers.hosts.node_exporter import NodeExporter, NodeExporterOptions
from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession
from rpi_daemon.drivers.traps.engine import EngineIdentity
from rpi_daemon.drivers.traps.sender import SinkOptions, TrapSender
from rpi_daemon.errors import DeviceError

AWAY = ".away.invalid"
THERE = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 161))]


class NameServer:
    """What stands behind the C library's look-up, which blocks its caller: silent for names that end in `AWAY`."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: dict[str, object] = {}
        self._silence = threading.Event()
        self._ask = socket.getaddrinfo

    def __call__(self, host: Any, *more: Any, **options: Any) -> Any:
        numeric = options.get("flags", 0) & socket.AI_NUMERICHOST  # asks nobody
        if numeric or not str(host).endswith(AWAY):
            return self._ask(host, *more, **options)
        self.asked += 1
        if host in self.answers:
            if isinstance(answer := self.answers[host], OSError):
                raise answer
            return answer
        self._silence.wait(60.0)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def wake(self) -> None:
        self._silence.set()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    monkeypatch.setattr(event_loop, "LOOKUP_S", 0.3)
    yield server
    server.wake()


async def longest_stall_ms(until: Callable[[], bool]) -> float:
    """How late the loop's next turn was, at worst."""
    worst_s = 0.0
    while not until():
        before_s = time.perf_counter()
        await asyncio.sleep(0.002)
        worst_s = max(worst_s, time.perf_counter() - before_s - 0.002)
    return worst_s * 1e3


def openings() -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
    """Every driver that knows its device by a name, and what asks for that name."""
    community = {"version": "2c", "community": "public"}
    snmp = SnmpSession(SnmpEndpoint("pdu" + AWAY, **community))
    modbus = ModbusPdu(ModbusOptions(TcpAddress("meter" + AWAY), example_map(), (1,)))
    redfish = RedfishSession(RedfishEndpoint("bmc" + AWAY, user="u", password="p", allow_insecure=True, timeout_s=0.5))
    url = f"https://host{AWAY}/metrics"
    host = NodeExporter(NodeExporterOptions("web", url, 1.0, 0.5, allow_insecure=True), SystemClock())
    sink = TrapSender(
        SinkOptions("sink" + AWAY, version="2c", community="public"), EngineIdentity(b"\x80\0\0\0\4rpi", 1)
    )

    async def snmp_opens() -> None:
        try:
            await snmp.open()
        finally:
            snmp.close()

    async def modbus_opens() -> None:
        try:
            await modbus.open()
        finally:
            await modbus.close()

    async def redfish_asks() -> None:
        try:
            await redfish.open()
        finally:
            await redfish.close()

    async def host_asks() -> None:
        try:
            await host.open()
            await host.read()
        finally:
            await host.close()

    async def sink_connects() -> None:
        try:
            await sink.connect()
        finally:
            await sink.close()

    return {
        "snmp": snmp_opens,
        "modbus": modbus_opens,
        "redfish": redfish_asks,
        "host": host_asks,
        "sink": sink_connects,
    }


@pytest.mark.fault(27)
def test_fault_27_a_silent_name_server_holds_up_nobody(names: NameServer, figure: Figures) -> None:
    async def scene() -> tuple[float, float, dict[str, object]]:
        drivers = openings()
        for name in range(8):  # as many as asyncio's common threads, and more
            asyncio.get_running_loop().create_task(ask(f"other-{name}{AWAY}"))
        opening = [asyncio.create_task(one(), name=name) for name, one in drivers.items()]
        stall_ms = await longest_stall_ms(lambda: all(task.done() for task in opening))
        before_s = time.perf_counter()
        await asyncio.to_thread(lambda: None)  # what opens ports and saves files
        busy_ms = (time.perf_counter() - before_s) * 1e3
        return stall_ms, busy_ms, {task.get_name(): task.exception() for task in opening}

    async def ask(name: str) -> None:
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().getaddrinfo(name, 161)

    began_s = time.perf_counter()
    stall_ms, threads_ms, ends = event_loop.run(scene())
    ended_s = time.perf_counter() - began_s
    assert names.asked >= 8 + len(ends)
    assert all(isinstance(error, DeviceError) for error in ends.values()), ends
    figure(27, "longest stall of the loop, 13 names asked of a silent server", stall_ms, 10.0, "ms", busy=1000.0)
    figure(27, "a file or port waits for them", threads_ms, 10.0, "ms", busy=1000.0)
    figure(27, "the daemon's end, look-ups under way (each would take 60 s)", ended_s, 5.0, "s", busy=30.0)


def test_one_question_at_a_time_for_all_who_wait(names: NameServer) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            waiting = [loop.getaddrinfo("pdu" + AWAY, 161) for _ in range(4)]
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN for error in found)
        assert names.asked == 1

    event_loop.run(scene())


def test_a_name_goes_on_standing_for_its_last_address_while_its_server_is_silent(names: NameServer) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        name = "pdu" + AWAY
        names.answers[name] = THERE
        assert await loop.getaddrinfo(name, 161) == THERE
        names.answers[name] = socket.gaierror(socket.EAI_AGAIN, "try again")
        assert await loop.getaddrinfo(name, 161) == THERE
        moved = [(*THERE[0][:4], ("127.0.0.2", 161))]
        names.answers[name] = moved
        assert await loop.getaddrinfo(name, 161) == moved, "an answer counts at once"
        del names.answers[name]
        assert await loop.getaddrinfo(name, 161) == moved, "silence"
        names.wake()

    event_loop.run(scene())


def test_a_name_that_is_gone_is_gone(names: NameServer) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        name = "pdu" + AWAY
        names.answers[name] = THERE
        await loop.getaddrinfo(name, 161)
        names.answers[name] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with pytest.raises(socket.gaierror, match="not known"):
            await loop.getaddrinfo(name, 161)
        session = SnmpSession(SnmpEndpoint(name, version="2c", community="public"))
        with pytest.raises(DeviceError, match=r"pdu\.away\.invalid cannot be found: Name or service not known"):
            await session.open()

    event_loop.run(scene())
