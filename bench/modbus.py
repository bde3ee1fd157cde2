"""48 limits to a pymodbus TCP server, written and read back: our driver against one raw pymodbus FC16 + FC03.

`python bench/modbus.py --json`. The server is a process of its own. Both write the same 48 registers and compare what they read;
rounds are interleaved, a round's figure is its median, the ratio (ours / raw) is the median of the rounds' ratios. The garbage
collector rests while they run, as in the daemon's loop."""

import asyncio
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import common
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.register_map import parse_map
from rpi_daemon.records import LimitWrite

OUTLETS = 48
FIRST = 0x0100  # register of outlet 1
MAP = f"""
name = "bench"
vendor = "bench"
description = "48 set-points in watts"
source = "bench/modbus.py"
proven = "hardware"
outlets = {OUTLETS}
metering = {{ power = {{ address = 0x1000, stride = 1, type = "u16", unit = "W" }} }}
limit = {{ kind = "current_limit", unit = "W", address = {FIRST}, stride = 1, type = "u16", maximum = 60000 }}
pace = {{ writes_per_outlet_day = 1000 }}
"""
WRITES = 200  # in one round
ROUNDS = 21
ROUNDS_QUICK = 5

SetAndRead = Callable[[list[int], list[LimitWrite]], Awaitable[None]]


async def serve() -> None:
    """A plain pymodbus server; its port is the first line of output."""
    server = ModbusTcpServer(
        SimDevice(1, simdata=[SimData(FIRST, count=OUTLETS, datatype=DataType.REGISTERS)]), address=("127.0.0.1", 0)
    )
    await server.listen()
    print(server.transport.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def driver(port: int) -> tuple[ModbusPdu, SetAndRead]:
    options = ModbusOptions(
        TcpAddress("127.0.0.1", port), parse_map(MAP.encode(), "bench"), tuple(range(1, OUTLETS + 1)), timeout_s=1.0
    )
    pdu = ModbusPdu(options)

    async def set_and_read(values: list[int], writes: list[LimitWrite]) -> None:
        result = await pdu.apply(writes)
        if not all(outcome.verified for outcome in result.outcomes) or result.round_trips != 2:
            raise SystemExit(f"not verified: {result}")

    return pdu, set_and_read


def raw(client: AsyncModbusTcpClient) -> SetAndRead:
    async def set_and_read(values: list[int], writes: list[LimitWrite]) -> None:
        await client.write_registers(FIRST, values)
        if (await client.read_holding_registers(FIRST, count=OUTLETS)).registers != values:
            raise SystemExit("raw: read back something else")

    return set_and_read


async def timed_us(set_and_read: SetAndRead, first: int) -> list[float]:
    times = []
    for i in range(WRITES):
        values = list(range(first + i, first + i + OUTLETS))
        writes = [LimitWrite(outlet, float(value)) for outlet, value in enumerate(values, 1)]
        start_ns = time.perf_counter_ns()
        await set_and_read(values, writes)
        times.append((time.perf_counter_ns() - start_ns) / 1000.0)
    return times


async def compare(port: int, rounds: int) -> dict[str, list[list[float]]]:
    """Client -> per round the microseconds of each write + read-back."""
    pdu, ours = driver(port)
    client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=1.0, retries=0)
    await pdu.open()
    await client.connect()
    clients = {"ours": ours, "raw pymodbus": raw(client)}
    taken: dict[str, list[list[float]]] = {name: [] for name in clients}
    gc.disable()
    for warm_up in (True, *([False] * rounds)):
        order = list(clients) if len(taken["ours"]) % 2 else list(reversed(clients))
        for name in order:
            gc.collect()
            times = await timed_us(clients[name], 100 + len(taken["ours"]))
            if not warm_up:
                taken[name].append(times)
    client.close()
    await pdu.close()
    return taken


def main() -> None:
    if sys.argv[1:] == ["--serve"]:
        asyncio.run(serve())
        return
    arguments = common.parse_arguments(__doc__)
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        taken = asyncio.run(compare(int(server.stdout.readline()), ROUNDS_QUICK if arguments.quick else ROUNDS))
    finally:
        server.communicate(timeout=10)
    rows = []
    for name, rounds_us in taken.items():
        every = sorted(t for round_us in rounds_us for t in round_us)
        rows.append(
            {
                "client": name,
                "limits": OUTLETS,
                "write_and_read_p50_us": statistics.median(every),
                "write_and_read_p90_us": every[len(every) * 9 // 10],
                "n": len(every),
            }
        )
    medians = {name: [statistics.median(round_us) for round_us in rounds_us] for name, rounds_us in taken.items()}
    ratios = {"p50_vs_raw": common.median_ratio(medians["ours"], medians["raw pymodbus"])}
    common.report("modbus", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
