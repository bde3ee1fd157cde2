"""Register maps for tests that no shipped one covers, and the driver on a simulated device."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from unhurried import LoopClock

from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.modbus_sim import ModbusFaults, ModbusRtuSimulator, ModbusTcpSimulator, SimulatedDevice
from rpi_daemon.drivers.pdu.register_map import RegisterMap, parse_map
from rpi_daemon.records import ApplyResult, LimitWrite

WATTS = """
name = "test_watts"
vendor = "Test"
description = "48 set-points in watts, one register each"
source = "made up for tests"
proven = "hardware"
outlets = 48

[metering.power]
address = 0x1000
function = 4
stride = 2
type = "u32"
scale = 0.1
unit = "W"

[limit]
kind = "current_limit"
unit = "W"
address = 0x0100
stride = 1
type = "u16"
maximum = 5000

[pace]
turnaround_s = 0.4
writes_per_outlet_day = 1000
"""

# as the SHP-10K family: an enable bit in a common register, and a gate that must be open while we write
GATED = (
    WATTS.replace("test_watts", "test_gated")
    .replace("outlets = 48", "outlets = 3")
    .replace(
        "maximum = 5000",
        "maximum = 5000\nenable = { address = 0x00C4, bit = 0 }\ngate = { address = 0x005E, bit = 0 }",
    )
)


def example_map(text: str = WATTS, **pace: object) -> RegisterMap:
    return parse_map((text + "".join(f"{key} = {value}\n" for key, value in pace.items())).encode(), "example.toml")


@dataclass
class Bench:
    """The driver on a simulated device."""

    device: SimulatedDevice
    pdu: ModbusPdu
    simulator: ModbusTcpSimulator | ModbusRtuSimulator

    def fault(self, **faults: Any) -> None:
        self.device.faults = ModbusFaults(**faults)

    async def write(self, *limits: tuple[int, float]) -> ApplyResult:
        return await self.pdu.apply([LimitWrite(outlet, limit_w) for outlet, limit_w in limits])


@asynccontextmanager
async def on_wire(
    map_: RegisterMap, wire: str = "tcp", *, outlets: tuple[int, ...] | None = None, volts: float = 230.0, **other: Any
) -> AsyncIterator[Bench]:
    """`wire`: tcp, or rtu over a pair of pseudo-terminals."""
    device = SimulatedDevice(map_, device_id=map_.device_ids[0] if map_.device_ids else 7, volts=volts)
    simulator = ModbusTcpSimulator([device]) if wire == "tcp" else ModbusRtuSimulator([device])
    async with simulator:
        address = (
            TcpAddress("127.0.0.1", simulator.port) if isinstance(simulator, ModbusTcpSimulator) else simulator.line()
        )
        options = ModbusOptions(
            address,
            map_,
            outlets or tuple(range(1, map_.outlets + 1)),
            device.device_id,
            **{"timeout_s": 0.15, "nominal_v": 230.0, **other},
        )
        pdu = ModbusPdu(options, LoopClock())
        try:
            await pdu.open()
            yield Bench(device, pdu, simulator)
        finally:
            await pdu.close()
            await pdu.close()  # twice is allowed
