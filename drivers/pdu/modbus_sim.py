"""Simulated Modbus devices shaped by register maps, on pymodbus servers: TCP, and RTU over a pair of pseudo-terminals."""

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tty
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice

from rpi_daemon.drivers.control_line import obey_lines, say
from rpi_daemon.drivers.pdu.modbus_link import SerialLine, crc16
from rpi_daemon.drivers.pdu.register_map import Number, RegisterMap, Span, blocks, load_map
from rpi_daemon.errors import ConfigError, RpiError

HOLDING, INPUT = 3, 4
WRITES = (6, 16)


@dataclass
class ModbusFaults:
    """What goes wrong. Counts are of replies to come; -1 is for ever."""

    late: int = 0  # these replies come `late_s` later
    late_s: float = 0.3
    drop: int = 0
    damage: int = 0  # one bit of the reply is another
    cut: int = 0  # only the first half of the reply comes
    wrong_echo: int = 0  # the reply to a write names another register
    other_device: int = 0
    exception: int = 0  # this code answers every request
    exception_on_write: int = 0
    ignore_write: bool = False  # answers well and does nothing
    clamp: float | None = None  # a set-point above is taken as this, in the limit's unit
    absent: tuple[int, ...] = ()  # registers that the device does not have

    def take(self, name: str) -> bool:
        """Whether this reply is one of those."""
        left = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return bool(left)


class SimulatedDevice:
    """One device: its registers, what it meters, what goes wrong. `power_w` is asked at each read; a limit does not hold it."""

    def __init__(
        self,
        map_: RegisterMap,
        *,
        device_id: int = 1,
        outlets: int | None = None,
        power_w: Callable[[int], float] = lambda outlet: 10.0 * outlet,
        volts: float = 230.0,
        power_factor: float = 1.0,
    ) -> None:
        self.map = map_
        self.device_id = device_id
        self.n_outlets = outlets or map_.outlets
        self.power_w, self.volts, self.power_factor = power_w, volts, power_factor
        self.faults = ModbusFaults()
        self.counters: Counter[str] = Counter()
        self.registers: dict[tuple[int, int], int] = {}
        self._energy_wh = 1000.0
        self._fill()

    def _fill(self) -> None:
        identity, limit = self.map.identity, self.map.limit
        for text, what in ((identity.model, "SIM"), (identity.serial, "0000001"), (identity.firmware, "1.0")):
            if text is not None and not isinstance(text, Number):
                octets = f"{what}".encode().ljust(2 * text.length, b"\0")
                self._put(text.span, [int.from_bytes(octets[i : i + 2], "big") for i in range(0, len(octets), 2)])
        for check in identity.check:
            self.poke(check, 1, (check.least + check.most) / 2)
        if identity.outlet_count is not None:
            self.poke(identity.outlet_count, 1, self.n_outlets)
        for alarm in self.map.alarm:
            for outlet in self._numbers():
                self._put(alarm.span(outlet), [0])
        if limit is not None:
            for outlet in self._numbers():
                if limit.voltage is not None:
                    self.poke(limit.voltage, outlet, self.volts)
                self.poke(limit, outlet, limit.maximum)
                for switch in (limit.enable, limit.gate):
                    if switch is not None:
                        self._put(switch.span(outlet), [0 if switch.set else 1 << switch.bit])
        self._measure()

    def _numbers(self) -> range:
        return range(1, self.n_outlets + 1)

    def _put(self, span: Span, words: Sequence[int]) -> None:
        for i, word in enumerate(words):
            self.registers[span.function, span.address + i] = word

    def poke(self, number: Number, outlet: int, value: float) -> None:
        """A value as somebody else would set it."""
        self._put(number.span(outlet), wire(number, value))

    def peek(self, number: Number, outlet: int = 1) -> float | None:
        span = number.span(outlet)
        return number.value([self.registers[span.function, span.address + i] for i in range(span.words)])

    def limit_w(self, outlet: int) -> float | None:
        """The set-point in watts; None if the family has none."""
        limit = self.map.limit
        if limit is None:
            return None
        value = self.peek(limit, outlet)
        return None if value is None else value * (1.0 if limit.unit == "W" else self.volts)

    def _measure(self) -> None:
        """What is metered, as it is now."""
        metering = self.map.metering
        for outlet in self._numbers():
            power_w = self.power_w(outlet)
            now = {
                "power": power_w,
                "voltage": self.volts,
                "apparent": power_w / self.power_factor,
                "current": power_w / self.power_factor / self.volts,
                "power_factor": self.power_factor,
                "frequency": 50.0,
                "energy": self._energy_wh,
            }
            for name, column in metering.columns():
                self.poke(column, outlet, now[name])
            if metering.state is not None:
                self.poke(metering.state, outlet, metering.state.on[0])

    def sim_device(self) -> SimDevice:
        """For a pymodbus server: the registers that the map names, and those between that it lets a read pass over."""
        spaces = {HOLDING: [], INPUT: []}  # type: dict[int, list[SimData]]
        for span in blocks((Span(*place, 1) for place in self.registers), max_gap=self.map.pace.max_gap):
            for address in range(span.address, span.end):  # what may be passed over is there, and holds 0
                self.registers.setdefault((span.function, address), 0)
            spaces[span.function].append(SimData(span.address, count=span.words, datatype=DataType.REGISTERS))
        nothing = [SimData(0xFFFF, datatype=DataType.INVALID)]
        bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
        return SimDevice(
            self.device_id,
            simdata=(list(bits), list(bits), spaces[HOLDING] or nothing, spaces[INPUT] or nothing),
            action=self._action,
        )

    async def _action(
        self, function: int, start: int, address: int, count: int, current: list[int], new: list[Any] | None
    ) -> ExcCodes | None:
        """pymodbus asks before it reads or writes; `current` is its memory from `start` on."""
        faults = self.faults
        self.counters["writes" if new is not None else "reads"] += 1
        code = faults.exception or (faults.exception_on_write if new is not None else 0)
        if code:
            return ExcCodes(code)
        if any(register in faults.absent for register in range(address, address + count)):
            return ExcCodes.ILLEGAL_ADDRESS
        if new is not None:
            self.counters["registers_written"] += count
            self._written(address, new)
        else:
            self._measure()
        space = INPUT if function == INPUT else HOLDING
        for register in range(address, address + count):
            current[register - start] = self.registers[space, register]
            if new is not None:
                new[register - address] = self.registers[space, register]
        return None

    def _written(self, address: int, words: Sequence[int]) -> None:
        if self.faults.ignore_write:
            return
        for i, word in enumerate(words):
            self.registers[HOLDING, address + i] = word
        limit, clamp = self.map.limit, self.faults.clamp
        if limit is None or clamp is None:
            return
        for outlet in self._numbers():
            value = self.peek(limit, outlet)
            if value is not None and value > clamp:
                self.poke(limit, outlet, clamp)

    def replies(self, packet: bytes, rtu: bool) -> Iterator[tuple[float, bytes]]:
        """What becomes of a reply on its way: (seconds later, octets)."""
        faults = self.faults
        head = 0 if rtu else 6
        octets = bytearray(packet)
        if faults.take("drop"):
            return
        if faults.wrong_echo and octets[head + 1] in WRITES and faults.take("wrong_echo"):
            octets[head + 3] ^= 1
            if rtu:
                octets[-2:] = crc16(bytes(octets[:-2])).to_bytes(2, "little")
        if faults.take("other_device"):
            octets[head] = octets[head] % 247 + 1
            if rtu:
                octets[-2:] = crc16(bytes(octets[:-2])).to_bytes(2, "little")
        if faults.take("damage"):
            place = random.randrange(
                0 if rtu else 2, len(octets) if rtu else head + 3
            )  # TCP values have no check of their own
            octets[place] ^= 1 << random.randrange(8)
        if faults.take("cut"):
            del octets[len(octets) // 2 :]
        yield faults.late_s if faults.take("late") else 0.0, bytes(octets)


def wire(number: Number, value: float) -> tuple[int, ...]:
    """The nearest registers to a value; beyond its range the last one that it can say."""
    raw = (Fraction(str(value)) - Fraction(str(number.shift))) / number.factor
    if number.type[0] == "f":
        return number.registers(float(raw))
    bits = 16 * number.words
    low, high = (0, 2**bits - 1) if number.type[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return number.registers(min(max(round(raw), low), high))


def _handler(devices: Mapping[int, SimulatedDevice], server: Any, rtu: bool) -> ServerRequestHandler:
    """A connection whose replies go through the faults of the device that they are of."""

    class Handler(ServerRequestHandler):
        def send(self, data: bytes, addr: tuple[Any, ...] | None = None) -> None:
            device = devices.get(data[0 if rtu else 6])
            for later_s, octets in device.replies(data, rtu) if device is not None else [(0.0, data)]:
                if later_s:
                    self.loop.call_later(later_s, super().send, octets)
                else:
                    super().send(octets)

    return Handler(server, None, None, None)  # type: ignore[no-untyped-call]


class ModbusTcpSimulator:
    """One device, or several behind a gateway, on a TCP port. `start`, `stop`; `port` 0 takes a free one."""

    def __init__(self, devices: Sequence[SimulatedDevice], host: str = "127.0.0.1", port: int = 0) -> None:
        self.devices = {device.device_id: device for device in devices}
        self.host, self.port = host, port
        self._server: ModbusTcpServer | None = None

    async def start(self) -> None:
        """Raises ConfigError when the port is in use."""
        simulator = self

        class Server(ModbusTcpServer):
            def callback_new_connection(self) -> ServerRequestHandler:
                return _handler(simulator.devices, self, rtu=False)

        self._server = Server([d.sim_device() for d in self.devices.values()], address=(self.host, self.port))
        if not await self._server.listen():
            self._server = None
            raise ConfigError(f"{self.host} port {self.port}: in use, or not an address of this machine")
        self.port = self._server.transport.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """Safe to call twice."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None

    async def __aenter__(self) -> "ModbusTcpSimulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


class ModbusRtuSimulator:
    """Devices on one serial bus: a pymodbus serial server on one pseudo-terminal, the host on another, octets passed between.
    `link` is a path that leads to the host's end."""

    def __init__(self, devices: Sequence[SimulatedDevice], link: Path | None = None) -> None:
        self.devices = {device.device_id: device for device in devices}
        self.link = link
        self._server: ModbusSerialServer | None = None
        self._masters: list[int] = []
        self._slaves: list[int] = []
        self.path = ""

    def line(self, baud: int = 115_200) -> SerialLine:
        """How a host drives it."""
        return SerialLine(str(self.link or self.path), baud)

    async def start(self) -> None:
        simulator = self

        class Server(ModbusSerialServer):
            def callback_new_connection(self) -> ServerRequestHandler:
                return _handler(simulator.devices, self, rtu=True)

        for _ in range(2):
            master, slave = os.openpty()
            tty.setraw(slave)
            os.set_blocking(master, False)
            self._masters.append(master)
            self._slaves.append(slave)  # kept open, so that a host which closes its end does not hang up the line
        host, device = self._masters
        self.path = os.ttyname(self._slaves[0])
        loop = asyncio.get_running_loop()
        loop.add_reader(host, _pass_on, host, device)
        loop.add_reader(device, _pass_on, device, host)
        self._server = Server(
            [d.sim_device() for d in self.devices.values()],
            port=os.ttyname(self._slaves[1]),
            baudrate=115_200,
            ignore_missing_devices=True,
        )
        await self._server.listen()
        if self.link is not None:
            beside = self.link.with_name(self.link.name + ".new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(self.path)
            beside.replace(self.link)

    async def stop(self) -> None:
        """Safe to call twice."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None
        for master in self._masters:
            asyncio.get_running_loop().remove_reader(master)
        for descriptor in self._masters + self._slaves:
            os.close(descriptor)
        self._masters, self._slaves = [], []
        if self.link is not None:
            self.link.unlink(missing_ok=True)

    def inject(self, octets: bytes) -> None:
        """Octets on the line that no device of ours sent."""
        os.write(self._masters[0], octets)

    async def __aenter__(self) -> "ModbusRtuSimulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


ModbusSimulator = ModbusTcpSimulator | ModbusRtuSimulator


def _pass_on(source: int, sink: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(sink, os.read(source, 4096))


def command(device: SimulatedDevice, request: object) -> dict[str, object]:
    """One control request: `{"faults": {...}}`; the answer says what holds now."""
    faults = request.get("faults") if isinstance(request, dict) else None
    known = [f.name for f in fields(ModbusFaults)]
    if not isinstance(faults, dict) or not set(faults) <= set(known):
        return {"error": f'use {{"faults": {{...}}}} with {", ".join(known)}'}
    device.faults = ModbusFaults(**faults)
    return {"faults": faults}


async def serve(simulator: ModbusSimulator) -> None:
    """Say where it is, then obey standard input until that ends; see `command`."""
    async with simulator:
        where = simulator.port if isinstance(simulator, ModbusTcpSimulator) else simulator.line().port
        say({"ready": True, "port": where})
        (device,) = simulator.devices.values()
        await obey_lines(lambda request: command(device, request))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rpi_daemon.drivers.pdu.modbus_sim", description=__doc__)
    parser.add_argument("--map", required=True, help="name of a shipped register map, or path of one")
    parser.add_argument("--device-id", type=int, default=1)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 takes a free one")
    parser.add_argument("--rtu", metavar="PATH", help="serve RTU instead: PATH leads to the host's end of the line")
    parser.add_argument("--power-w", type=float, default=100.0, help="draw at each number")
    parser.add_argument("--volts", type=float, default=230.0)
    options = parser.parse_args(arguments)
    try:
        device = SimulatedDevice(
            load_map(options.map),
            device_id=options.device_id,
            power_w=lambda outlet: options.power_w,
            volts=options.volts,
        )
        wire: ModbusSimulator = ModbusTcpSimulator([device], options.host, options.port)
        if options.rtu:
            wire = ModbusRtuSimulator([device], Path(options.rtu))
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how an operator ends it
            asyncio.run(serve(wire))
    except RpiError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
