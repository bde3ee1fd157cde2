"""Modbus wires, TCP and RTU, on pymodbus: one request at a time, every reply checked octet by octet before it counts.

What pymodbus leaves open is closed here: it takes a late RTU reply for the answer to the next request, does not compare the
echo of a write, and takes replies to other functions or of other lengths.
"""

import asyncio
import heapq
import logging
import os
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from rpi_daemon.clock import NS_PER_S, Clock, SystemClock
from rpi_daemon.errors import DeviceError

if TYPE_CHECKING:
    from pymodbus.client.base import ModbusBaseClient
    from pymodbus.pdu import ModbusPDU

READ_HOLDING, READ_INPUT, WRITE_ONE, WRITE_MANY, IDENTIFY = 3, 4, 6, 16, 43
DEVICE_IDENTIFICATION = 14  # MEI type of function 43
ERROR_BIT = 0x80
MBAP = 7  # octets before the function code over TCP
MAX_PDU = 253
ERRORS_TO_CLOSE = 2  # TCP: after these in a row the stream may be out of step
SILENT_CHARACTERS = 3.5  # between two RTU frames
FASTEST_SILENCE_S = 1.75e-3  # above 19,200 bit/s, Modbus over serial line V1.02, 2.5.1.1
MOST_QUIET_S = 10.0  # a line that is never silent is somebody else's
EXCEPTIONS = {
    1: "does not know this function (exception 1)",
    2: "has no such register (exception 2)",
    3: "does not take this value (exception 3)",
    4: "failed while doing it (exception 4)",
    5: "has accepted it, but is not done yet (exception 5)",
    6: "is busy (exception 6)",
    8: "found an error in its memory (exception 8)",
    10: "is behind a gateway that has no path to it (exception 10)",
    11: "does not answer its gateway (exception 11)",
}


class ModbusRefused(DeviceError):
    """The device answered with an exception code; the line is good."""

    def __init__(self, where: str, code: int) -> None:
        super().__init__(f"{where} {EXCEPTIONS.get(code, f'refuses with exception {code}')}")
        self.code = code


class BadReply(Exception):
    """Octets that are no answer to what was asked; says what is wrong with them."""


@dataclass(slots=True)
class Asked:
    """One request, as far as its reply must repeat it."""

    device: int
    function: int
    count: int = 0  # registers to read
    echo: bytes = b""  # what follows the function code in the reply to a write

    def check(self, pdu: bytes) -> None:
        """Raises BadReply unless this is an answer: every octet but the values themselves."""
        if not pdu:
            raise BadReply("an empty reply")
        if pdu[0] == self.function | ERROR_BIT:
            if len(pdu) != 2:
                raise BadReply(f"an exception of {len(pdu)} octets")
        elif pdu[0] != self.function:
            raise BadReply(f"a reply to function {pdu[0]}, asked was {self.function}")
        elif self.function in (READ_HOLDING, READ_INPUT):
            if len(pdu) != 2 + 2 * self.count or pdu[1] != 2 * self.count:
                raise BadReply(f"{pdu[1:2].hex() or 'no'} octets of values in {len(pdu)}, asked were {2 * self.count}")
        elif self.function == IDENTIFY:
            _objects(pdu)
        elif pdu[1:] != self.echo:
            raise BadReply(f"the echo of another write: {pdu[1:].hex()}, sent was {self.echo.hex()}")

    def rtu_length(self, frame: bytes) -> int | None:
        """Octets of the reply on a serial line, CRC included; None while its head is not there yet."""
        if len(frame) < 2:
            return None
        if frame[1] == self.function | ERROR_BIT:
            return 5
        if self.function == IDENTIFY:
            return _identification_length(frame)
        return 4 + (1 + 2 * self.count if self.count else len(self.echo))


def crc16(octets: bytes) -> int:
    """CRC-16 of Modbus RTU; sent low octet first."""
    crc = 0xFFFF
    for octet in octets:
        crc = crc >> 8 ^ _CRC_OF[(crc ^ octet) & 0xFF]
    return crc


def _crc_of(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ 0xA001 if octet & 1 else octet >> 1
    return octet


_CRC_OF = [_crc_of(octet) for octet in range(256)]


def rtu_reply(received: bytes, asked: Asked) -> bytes | None:
    """The reply from its function code on, once it is there whole and answers `asked`; None until then. Raises BadReply."""
    if not received:
        return None
    if received[0] != asked.device:
        raise BadReply(f"a reply of device {received[0]}, asked was {asked.device}")
    if len(received) > 1 and received[1] & ~ERROR_BIT != asked.function:
        raise BadReply(f"a reply to function {received[1]}, asked was {asked.function}")
    length = asked.rtu_length(received)
    if length is None or len(received) < length:
        return None
    if len(received) > length:
        raise BadReply(f"{len(received)} octets for a reply of {length}")
    if crc16(received[:-2]) != int.from_bytes(received[-2:], "little"):
        raise BadReply("a wrong checksum")
    pdu = received[1:-2]
    asked.check(pdu)
    return pdu


def tcp_reply(received: bytes, asked: Asked, transaction: int) -> bytes | None:
    """As `rtu_reply` over TCP; replies to earlier transactions are passed over."""
    while len(received) >= MBAP:
        number, protocol, length = (int.from_bytes(received[i : i + 2], "big") for i in (0, 2, 4))
        if protocol != 0:
            raise BadReply(f"protocol {protocol}, not Modbus")
        if not 3 <= length <= MAX_PDU + 1:
            raise BadReply(f"a message of {length} octets")
        if len(received) < length + 6:
            return None
        frame, received = received[: length + 6], received[length + 6 :]
        if number == transaction:
            if frame[6] != asked.device:
                raise BadReply(f"a reply of device {frame[6]}, asked was {asked.device}")
            pdu = frame[MBAP:]
            asked.check(pdu)
            return pdu
    return None


def _identification_length(frame: bytes) -> int | None:
    """Octets of a reply to function 43 / 14 on a serial line: its objects carry their own lengths."""
    end = 8
    for _ in range(frame[7] if len(frame) > 7 else 0):
        if len(frame) < end + 2:
            return None
        end += 2 + frame[end + 1]
    return end + 2 if len(frame) > 7 else None


def _objects(pdu: bytes) -> dict[int, bytes]:
    """The objects of a reply to function 43 / 14; raises BadReply."""
    if len(pdu) < 7 or pdu[1] != DEVICE_IDENTIFICATION:
        raise BadReply("a device identification that is cut off")
    found: dict[int, bytes] = {}
    end = 7
    for _ in range(pdu[6]):
        if len(pdu) < end + 2 or len(pdu) < end + 2 + pdu[end + 1]:
            raise BadReply("a device identification that is cut off")
        found[pdu[end]] = pdu[end + 2 : end + 2 + pdu[end + 1]]
        end += 2 + pdu[end + 1]
    if end != len(pdu):
        raise BadReply("octets behind a device identification")
    return found


@cache
def _request_of(function: int) -> "type[ModbusPDU]":
    """pymodbus' request of a function."""
    from pymodbus.pdu import register_message

    class WriteMany(register_message.WriteMultipleRegistersRequest):
        def encode(self) -> bytes:  # theirs appends register by register
            n = len(self.registers)
            return struct.pack(f">HHB{n}H", self.address, n, 2 * n, *self.registers)

    return {
        READ_HOLDING: register_message.ReadHoldingRegistersRequest,
        READ_INPUT: register_message.ReadInputRegistersRequest,
        WRITE_ONE: register_message.WriteSingleRegisterRequest,
        WRITE_MANY: WriteMany,
    }[function]


class Turns:
    """Who uses the wire next: whoever is urgent, else in order of asking."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._asked = 0

    @asynccontextmanager
    async def turn(self, urgent: bool) -> AsyncIterator[None]:
        """The wire alone, until the block ends."""
        if self._busy:
            self._asked += 1
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (not urgent, self._asked, ready))
            try:
                await ready
            except asyncio.CancelledError:
                if ready.done() and not ready.cancelled():
                    self._pass_on()  # our turn had come already
                raise
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, ready = heapq.heappop(self._waiting)
            if not ready.done():
                ready.set_result(None)
                return
        self._busy = False


@dataclass
class LinkCounters:
    requests: int = 0
    refused: int = 0
    timeouts: int = 0
    damaged: int = 0
    closed: int = 0  # connections that we gave up


@dataclass
class ModbusLink:
    """What TCP and RTU have in common. Values are registers; raises ModbusRefused or DeviceError."""

    where: str
    timeout_s: float
    clock: Clock
    counters: LinkCounters = field(default_factory=LinkCounters)

    def __post_init__(self) -> None:
        self.turns = Turns()
        self._client: ModbusBaseClient | None = None
        self._asked: Asked | None = None  # while a request is under way
        self._answer: asyncio.Future[bytes] | None = None

    async def open(self, user: object) -> None:
        """Connect for this user; again after an error."""
        async with self.turns.turn(urgent=False):
            if self._client is None or not self._client.connected:
                await self._connect()

    async def close(self, user: object) -> None:
        """Let go of the connection as far as this user needs it; safe to call twice."""
        raise NotImplementedError

    async def read(self, device: int, function: int, address: int, count: int) -> tuple[int, ...]:
        """`count` registers, by function 3 (holding) or 4 (input)."""
        request = _request_of(function)(dev_id=device, address=address, count=count)
        pdu = await self._ask(request, Asked(device, function, count))
        return struct.unpack(f">{count}H", pdu[2:])

    async def write(self, device: int, function: int, address: int, values: Sequence[int]) -> None:
        """Holding registers, by function 6 (one) or 16."""
        request = _request_of(function)(dev_id=device, address=address, registers=values)
        second = values[0] if function == WRITE_ONE else len(values)
        echo = address.to_bytes(2, "big") + second.to_bytes(2, "big")
        await self._ask(request, Asked(device, function, echo=echo))

    async def identification(self, device: int) -> dict[int, str]:
        """Basic device identification, function 43 / 14: 0 vendor, 1 product, 2 revision."""
        from pymodbus.pdu.mei_message import ReadDeviceInformationRequest

        pdu = await self._ask(ReadDeviceInformationRequest(dev_id=device), Asked(device, IDENTIFY))
        return {number: text.decode("utf-8", errors="replace").strip() for number, text in _objects(pdu).items()}

    async def _ask(self, request: "ModbusPDU", asked: Asked) -> bytes:
        """One request to its reply, from the function code on. Our own turn must have come."""
        client = self._client
        if client is None or not client.connected:
            client = await self._connect()
        await self._before(request)
        self.counters.requests += 1
        try:
            pdu = await self._exchange(client, request, asked)
        except BadReply as error:
            self.counters.damaged += 1
            await self._failed()
            raise DeviceError(f"{self.where}, device {asked.device}: damaged or foreign reply: {error}") from None
        except TimeoutError:
            self.counters.timeouts += 1
            await self._failed()
            raise DeviceError(f"{self.where}, device {asked.device} does not answer") from None
        except ConnectionError:
            await self._failed()
            raise DeviceError(f"{self.where}: the connection is lost") from None
        except BaseException:
            await self._failed()  # cancelled: the reply may still come
            raise
        self._good()
        if pdu[0] & ERROR_BIT:
            self.counters.refused += 1
            raise ModbusRefused(f"{self.where}, device {asked.device}", pdu[1])
        return pdu

    async def _exchange(self, client: "ModbusBaseClient", request: "ModbusPDU", asked: Asked) -> bytes:
        """Send, and wait for `_trace` to see the reply. Raises BadReply, TimeoutError or ConnectionError."""
        loop = asyncio.get_running_loop()
        self._asked, self._answer = asked, loop.create_future()
        timer = loop.call_later(self._patience_s(request), self._give_up, TimeoutError())
        try:
            request.transaction_id = client.ctx.getNextTID()
            client.ctx.pdu_send(request)
            return await self._answer
        finally:
            timer.cancel()
            self._asked = None

    def _give_up(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _connection(self, there: bool) -> None:
        """pymodbus tells that the connection came or went."""
        if not there and self._asked is not None:
            self._give_up(ConnectionError())

    def _patience_s(self, request: "ModbusPDU") -> float:
        return self.timeout_s

    def _trace(self, sending: bool, octets: bytes) -> bytes:
        """pymodbus shows us what it sends, and all it has received since. The reply is taken here; to pymodbus none is left."""
        if sending:
            self._sent(octets)
            return octets
        self._heard()
        if self._asked is None or self._answer is None or self._answer.done():
            return b""
        try:
            pdu = self._reply(octets, self._asked)
        except BadReply as error:
            self._answer.set_exception(error)
        else:
            if pdu is not None:
                self._answer.set_result(pdu)
        return b""

    async def _connect(self) -> "ModbusBaseClient":
        """The connection, made anew."""
        self.disconnect()
        logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # every error has a sentence of ours
        self._client = self._make()
        if not await self._client.connect():
            self.disconnect()
            raise DeviceError(self._unreachable())
        return self._client

    def disconnect(self) -> None:
        """Let go of the connection; safe to call twice."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _make(self) -> "ModbusBaseClient":
        raise NotImplementedError

    def _unreachable(self) -> str:
        raise NotImplementedError

    def _reply(self, received: bytes, asked: Asked) -> bytes | None:
        raise NotImplementedError

    def _sent(self, octets: bytes) -> None: ...

    def _heard(self) -> None: ...

    async def _before(self, request: "ModbusPDU") -> None: ...

    async def _failed(self) -> None: ...

    def _good(self) -> None: ...


class TcpLink(ModbusLink):
    """Modbus/TCP to one device or gateway. Nothing is repeated; two errors in a row close the connection."""

    def __init__(self, host: str, port: int, timeout_s: float, clock: Clock | None = None) -> None:
        super().__init__(f"{host} port {port}", timeout_s, clock or SystemClock())
        self.host, self.port = host, port
        self._transaction = 0
        self._errors = 0

    async def close(self, user: object) -> None:
        self.disconnect()

    def _make(self) -> "ModbusBaseClient":
        from pymodbus.client import AsyncModbusTcpClient

        self._errors = 0
        return AsyncModbusTcpClient(
            self.host,
            port=self.port,
            timeout=self.timeout_s,
            retries=0,
            reconnect_delay=0,  # the next request connects: nothing runs in the background
            trace_packet=self._trace,
            trace_connect=self._connection,
        )

    def _unreachable(self) -> str:
        return f"{self.where}: no connection; check the address, and that Modbus/TCP is switched on in the device"

    def _sent(self, octets: bytes) -> None:
        self._transaction = int.from_bytes(octets[:2], "big")

    def _reply(self, received: bytes, asked: Asked) -> bytes | None:
        return tcp_reply(received, asked, self._transaction)

    async def _failed(self) -> None:
        self._errors += 1
        if self._errors >= ERRORS_TO_CLOSE:
            self.counters.closed += 1
            self.disconnect()

    def _good(self) -> None:
        self._errors = 0


@dataclass(frozen=True)
class SerialLine:
    """How the bus is driven."""

    port: str
    baud: int = 19_200
    parity: str = "none"  # none, even, odd
    stop_bits: int = 1

    @property
    def character_s(self) -> float:
        """Time of one octet on the wire."""
        return (9 + (self.parity != "none") + self.stop_bits) / self.baud


class RtuLink(ModbusLink):
    """One RS-485 bus, shared by everybody who drives a device on it: see `shared`.

    After anything but a good reply the line must be silent for the longest turn-around of its devices before the next request,
    and what has arrived is thrown away: a late reply carries no number by which it could be told from the next one.
    """

    _buses: ClassVar[dict[str, "RtuLink"]] = {}  # by `place`; from the first user to the last one's `close`

    def __init__(
        self, line: SerialLine, timeout_s: float, turnaround_s: float = 0.5, clock: Clock | None = None
    ) -> None:
        super().__init__(line.port, timeout_s, clock or SystemClock())
        self.line = line
        self.place = line.port  # the port itself, whatever links lead to it
        self.turnaround_s = turnaround_s  # the longest time until a device begins to answer
        self._users: set[int] = set()
        self._clean = False
        self._last_ns = 0  # when the line was last busy

    @classmethod
    def shared(
        cls, line: SerialLine, timeout_s: float, turnaround_s: float = 0.5, clock: Clock | None = None
    ) -> "RtuLink":
        """The bus on this port in this process: all its devices take turns on one object."""
        place = os.path.realpath(line.port)
        bus = cls._buses.get(place)
        if bus is None:
            bus = cls._buses[place] = cls(line, timeout_s, turnaround_s, clock)
            bus.place = place
        bus.timeout_s = max(bus.timeout_s, timeout_s)
        bus.turnaround_s = max(bus.turnaround_s, turnaround_s)
        return bus

    async def open(self, user: object) -> None:
        self._buses.setdefault(self.place, self)
        self._users.add(id(user))
        await super().open(user)

    async def close(self, user: object) -> None:
        """The last user lets go of the port."""
        self._users.discard(id(user))
        if not self._users:
            self.disconnect()
            if self._buses.get(self.place) is self:
                del self._buses[self.place]

    def _make(self) -> "ModbusBaseClient":
        from pymodbus.client import AsyncModbusSerialClient

        self._clean = False
        self._last_ns = self.clock.mono_ns()
        return AsyncModbusSerialClient(
            self.line.port,
            baudrate=self.line.baud,
            parity=self.line.parity[0].upper(),
            stopbits=self.line.stop_bits,
            timeout=self.timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_packet=self._trace,
            trace_connect=self._connection,
        )

    def _unreachable(self) -> str:
        return f"{self.where}: cannot be opened; check that it is plugged in, that nobody else uses it, and the user's right to it"

    def _sent(self, octets: bytes) -> None:
        self._last_ns = self.clock.mono_ns() + round(len(octets) * self.line.character_s * NS_PER_S)

    def _heard(self) -> None:
        self._last_ns = self.clock.mono_ns()

    def _reply(self, received: bytes, asked: Asked) -> bytes | None:
        return rtu_reply(received, asked)

    async def _before(self, request: "ModbusPDU") -> None:
        silence_s = max(SILENT_CHARACTERS * self.line.character_s, FASTEST_SILENCE_S)
        await self._silence(silence_s if self._clean else max(self.turnaround_s, silence_s))
        self._clean = False

    async def _silence(self, silence_s: float) -> None:
        """Until the line has been silent for so long; what came meanwhile is thrown away."""
        began_ns = self.clock.mono_ns()
        while (left_s := silence_s - (self.clock.mono_ns() - self._last_ns) / NS_PER_S) > 0.0:
            if (self.clock.mono_ns() - began_ns) / NS_PER_S > MOST_QUIET_S:
                raise DeviceError(f"{self.where}: the line is never silent; somebody else speaks on it")
            await asyncio.sleep(left_s)
        assert self._client is not None
        transport = self._client.ctx.transport
        if transport is None:
            raise DeviceError(f"{self.where}: the port is gone")
        transport.sync_serial.reset_input_buffer()  # type: ignore[attr-defined]

    def _patience_s(self, request: "ModbusPDU") -> float:
        """The octets of request and reply take their own time."""
        octets = len(request.encode()) + 2 * (request.count or 0) + 12
        return self.timeout_s + octets * self.line.character_s

    def _good(self) -> None:
        self._clean = True
