"""1, 4, 5, 6, 7: a PDU beside a silent one; replies that lie, are late, repeated, forged or malformed, on real sockets and on a serial line."""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from benches import load_bench
from damage import mutated
from fault_figures import Figures
from modbus_examples import WATTS, example_map
from unhurried import LoopClock

from rpi_daemon._fastpath.core import BerError, Pdu, decode_v2c, encode_v2c
from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu
from rpi_daemon.drivers.pdu.modbus_link import SerialLine
from rpi_daemon.drivers.pdu.modbus_sim import ModbusFaults, ModbusRtuSimulator, SimulatedDevice
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import Faults, PduSimulator
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import INTEGER, SnmpEndpoint, SnmpSession, Varbind, _Request
from rpi_daemon.drivers.pdu.usm import Rejected, Usm
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import TICK_S, ApplyResult, LimitWrite

OUTLETS = tuple(range(1, 13))
RESPONSE, GET = 0xA2, 0xA0
OIDS = [f"1.3.6.1.4.1.99999.1.{i}" for i in range(1, 7)]
LONG = os.environ.get("RPI_FIGURES") == "1"  # the figure's own run; CI's is shorter


@pytest.mark.fault(1)
def test_fault_01_the_pdu_beside_a_silent_one_keeps_its_pace(figure: Figures) -> None:
    """`bench/silent.py`, which also tells what chance alone changes: others' work on this machine shows in p99 first."""
    bench = load_bench("silent")
    found = asyncio.run(bench.measure(bench.TURNS, bench.TURN_S) if LONG else bench.measure(4, 0.6))
    changed = 100.0 * (found.change(99)[0] - 1.0)
    figure(1, "p99 of the writes to the PDU beside it, silent against answering, change", changed, 10.0, "%", busy=2e3)
    held_ms = found.held_ms[True]
    figure(1, "the silent PDU holds up the loop, longest, processor time", held_ms, 10.0, "ms", busy=100.0)


@contextlib.asynccontextmanager
async def pdu_with(faults: Faults, **options: Any) -> AsyncIterator[tuple[SnmpPdu, PduSimulator]]:
    """The driver, which has met the device, and the simulated device, from now on with `faults`."""
    async with PduSimulator(load_profile("raritan_px"), len(OUTLETS), community="public") as simulator:
        endpoint = SnmpEndpoint("127.0.0.1", simulator.port, "2c", community="public", timeout_s=1.0, **options)
        driver = SnmpPdu(SnmpPduOptions(endpoint, simulator.profile, OUTLETS, nominal_v=230.0))
        await driver.open()
        try:
            await driver.read()
            simulator.faults = faults
            yield driver, simulator
        finally:
            await driver.close()


async def write(driver: SnmpPdu, limit_w: float) -> tuple[ApplyResult, int]:
    """All outlets at once; also how many requests that took."""
    before = driver.session.counters.requests
    result = await driver.apply([LimitWrite(outlet, limit_w) for outlet in OUTLETS])
    return result, driver.session.counters.requests - before


@pytest.mark.fault(4)
def test_fault_04_what_was_refused_and_applied_counts_as_written(figure: Figures) -> None:
    async def scene() -> tuple[float, int]:
        async with pdu_with(Faults(refuse_but_apply=True)) as (driver, simulator):
            began_s = time.monotonic()
            result, _ = await write(driver, 300.0)
            took_s = time.monotonic() - began_s
            assert [simulator.limit_w(outlet) for outlet in OUTLETS] == [300.0] * len(OUTLETS)
            assert all("genErr" in (outcome.refused or "") for outcome in result.outcomes)
            return took_s, sum(not outcome.verified for outcome in result.outcomes)

    took_s, wrong = asyncio.run(scene())
    figure(4, "limits that stand and are not believed", wrong, 0, "")
    figure(4, "12 limits, genErr to the read-back that decides", took_s / TICK_S, 1.0, "ticks", busy=20.0)


@pytest.mark.fault(5)
def test_fault_05_one_bad_value_and_a_batch_too_big(figure: Figures) -> None:
    async def scene() -> tuple[int, int, int]:
        async with pdu_with(Faults()) as (driver, simulator):
            await write(driver, 299.0)  # the first one switches thresholds on
            _, plain = await write(driver, 300.0)
            simulator.faults = Faults(refuse=(7,))
            result, requests = await write(driver, 310.0)
            assert [o.outlet for o in result.outcomes if not o.verified] == [7]
            assert [simulator.limit_w(o) for o in OUTLETS] == [300.0 if o == 7 else 310.0 for o in OUTLETS]
            one_bad = requests - plain
        async with pdu_with(Faults(), max_varbinds=6) as (driver, _):
            least = [(await write(driver, limit_w))[1] for limit_w in (320.0, 330.0)]
        async with pdu_with(Faults(too_big_above=6)) as (driver, _):
            found = [await write(driver, limit_w) for limit_w in (320.0, 330.0)]
            assert all(outcome.verified for result, _ in found for outcome in result.outcomes)
            assert driver.session._batch == 6
        return one_bad, found[0][1] - least[0], found[1][1] - least[1]

    one_bad, halving, remembered = asyncio.run(scene())
    figure(5, "extra round trips, one bad value of 12", one_bad, 2, "")
    figure(5, "extra round trips, 24 values for a device that takes 6, the first time", halving, 2, "")
    figure(5, "the same, from then on", remembered, 0, "")


class Liar(asyncio.DatagramProtocol):
    """An agent that answers rightly in the end. Before, beside and after it comes what others make of the answer: forged ones
    from another port, the answers to earlier requests once more, answers with other ids, names or communities, damaged ones."""

    def __init__(self, rng: random.Random) -> None:
        self.value = 0  # of every object, now
        self._rng = rng
        self._earlier: list[bytes] = []
        self._stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stranger.bind(("127.0.0.1", 0))
        self.lies = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def close(self) -> None:
        self._transport.close()
        self._stranger.close()

    def datagram_received(self, data: bytes, address: Any) -> None:
        asked = decode_v2c(data)[1]
        right = self._answer(asked, self.value)
        self._stranger.sendto(self._answer(asked, 999), address)
        for lie in self._lies(asked, right):
            self._transport.sendto(lie, address)
            self.lies += 1
        if self._rng.random() < 0.3:  # late: after the time-out, when the same is asked again or the next already
            asyncio.get_running_loop().call_later(0.03, self._transport.sendto, right, address)
        else:
            self._transport.sendto(right, address)
            self._transport.sendto(right, address)
        self._earlier = [*self._earlier[-5:], right]

    def _lies(self, asked: Pdu, right: bytes) -> list[bytes]:
        other_names = [Varbind(v.oid + ".1", INTEGER, 998) for v in asked.varbinds]
        return [
            *self._earlier,
            self._answer(asked, 997, request_id=asked.request_id ^ 1),
            encode_v2c(b"public", RESPONSE, asked.request_id, other_names),
            encode_v2c(b"private", RESPONSE, asked.request_id, [Varbind(v.oid, INTEGER, 996) for v in asked.varbinds]),
            right[: self._rng.randrange(len(right))],
        ]

    @staticmethod
    def _answer(asked: Pdu, value: int, request_id: int | None = None) -> bytes:
        varbinds = [Varbind(v.oid, INTEGER, value) for v in asked.varbinds]
        return bytes(encode_v2c(b"public", RESPONSE, request_id or asked.request_id, varbinds))


@pytest.mark.fault(6)
def test_fault_06_late_repeated_and_forged_replies_over_udp(figure: Figures) -> None:
    requests = 5000 if LONG else 300

    async def scene() -> tuple[int, int, int]:
        liar = Liar(random.Random(6))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: liar, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        session = SnmpSession(SnmpEndpoint("127.0.0.1", port, "2c", community="public", timeout_s=0.02, retries=1))
        await session.open()
        wrong = answered = 0
        try:
            for liar.value in range(1, requests + 1):
                with contextlib.suppress(DeviceError):
                    found = await session.get(OIDS)
                    answered += 1
                    wrong += any(varbind.value != liar.value for varbind in found)
        finally:
            session.close()
            liar.close()
            await asyncio.sleep(0)
        return wrong, answered, liar.lies

    wrong, answered, lies = asyncio.run(scene())
    assert answered > requests // 2
    assert lies > 4 * requests
    figure(6, f"wrong values of {requests} requests, each among 5 or more false replies", wrong, 0, "")


@pytest.mark.fault(6)
def test_fault_06_late_replies_on_a_serial_line(figure: Figures) -> None:
    """Modbus RTU on a pty: no number tells a late reply from the next one. Every value read is the present one, or none."""
    reads = 200 if LONG else 24
    now_w = [0.0]

    async def scene() -> tuple[int, int]:
        wrong = failed = 0
        map_ = example_map(WATTS.replace("turnaround_s = 0.4", "turnaround_s = 0.12"))
        device = SimulatedDevice(map_, device_id=7, power_w=lambda outlet: now_w[0])
        async with ModbusRtuSimulator([device]) as simulator:
            line = SerialLine(str(simulator.path), 115_200)
            pdu = ModbusPdu(ModbusOptions(line, device.map, (1, 2), device_id=7, timeout_s=0.04), LoopClock())
            try:
                for k in range(reads):
                    now_w[0] = 100.0 + k
                    if k % 3 == 1:  # later than the time-out, within the turn-around that the register map states
                        device.faults = ModbusFaults(late=1, late_s=0.06 + 0.01 * (k % 4))
                    try:
                        reading = await pdu.read()
                    except DeviceError:
                        failed += 1
                        continue
                    wrong += any(watts not in (None, now_w[0]) for watts in reading.power_w.values())
            finally:
                await pdu.close()
        return wrong, failed

    wrong, failed = asyncio.run(asyncio.wait_for(scene(), 120.0))
    assert failed > 0, "late replies are met"
    figure(6, f"wrong values of {reads} reads of a bus, a third of them answered late", wrong, 0, "")


def bombs() -> list[bytes]:
    """What is made to keep a decoder busy: depth, lengths, names without end."""
    deep = b""
    for _ in range(3000):
        deep = b"\x30\x84" + len(deep).to_bytes(4, "big") + deep
    arcs = bytes([0x2B]) + b"\x81" * 60_000 + b"\x01"
    name = b"\x06\x84" + len(arcs).to_bytes(4, "big") + arcs
    return [
        deep,
        b"\x30\x80" * 30_000,
        b"\x30" * 65_000,
        b"\x30\x84\xff\xff\xff\xff" + b"\x02\x01\x01" * 20_000,
        b"\x30\x84" + (len(name) + 3).to_bytes(4, "big") + b"\x02\x01\x01" + name,
        b"\x30\x89" + b"\xff" * 9 + b"\x00" * 65_000,
        b"\x00" * 65_507,
        b"",
    ]


@pytest.mark.fault(7)
def test_fault_07_malformed_packets_cost_little_and_crash_nothing(figure: Figures) -> None:
    """As they come in at the session, v2c and v3 in turns: the decoders, the digest, the checks. 1e6 of them: `make fuzz`."""
    packets = 100_000 if LONG else 6_000
    rng = random.Random(7)
    varbinds = [Varbind(oid, INTEGER, i) for i, oid in enumerate(OIDS)]
    v2c = SnmpSession(SnmpEndpoint("127.0.0.1", version="2c", community="public"))
    plain = bytes(encode_v2c(b"public", RESPONSE, 0x1234567, varbinds))
    v3 = SnmpSession(SnmpEndpoint("127.0.0.1", user="rpi", auth_key="authpass12", priv_key="privpass12"))
    agent = Usm(b"rpi", "SHA-256", b"authpass12", b"privpass12")
    engine = bytes.fromhex("80001f88805203cd6a3195006b")
    agent.adopt(engine)
    agent.guess_clock(7, 5000, 0.0)
    protected = bytes(agent.protect(0x1BCDEF01, RESPONSE, 0x1234567, varbinds, 0.0))

    async def scene() -> tuple[list[float], int]:
        v3._loop = asyncio.get_running_loop()
        usm = v3._usm
        assert usm is not None
        usm.adopt(engine)
        question = _Request(GET, 0x1234567, OIDS, message_ids={0x1234567, 0x1BCDEF01})
        took_s, crashed = [], 0
        octets = [mutated(protected if k % 2 else plain, rng) for k in range(packets)] + 20 * bombs()
        for k, packet in enumerate(octets):
            began_s = time.perf_counter()
            try:
                _ = v3._open_v3(usm, packet, question) if k % 2 else v2c._open_v2c(packet, question)
            except (BerError, Rejected):
                pass
            except Exception:  # noqa: BLE001 - the crash that is counted
                crashed += 1
            took_s.append(time.perf_counter() - began_s)
        return took_s, crashed

    took_s, crashed = asyncio.run(scene())
    figure(7, f"of {packets} malformed packets, crashes", crashed, 0, "")
    figure(7, "a malformed packet, p99.9", float(np.percentile(took_s, 99.9)) * 1e3, 1.0, "ms", busy=50.0)
