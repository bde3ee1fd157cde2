"""The Modbus driver against libmodbus, an independent server in C: over TCP, and over a pair of pseudo-terminals."""

import asyncio
import os
import shutil
import subprocess
import tty
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from modbus_examples import example_map

from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.modbus_link import SerialLine
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import LimitWrite

HEADER = Path("/usr/include/modbus/modbus.h")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        not HEADER.exists() or shutil.which("cc") is None, reason="needs the Debian package libmodbus-dev"
    ),
]
DEVICE = 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("libmodbus") / "modbus_server"
    source = Path(__file__).with_name("modbus_server.c")
    command = ["cc", "-O1", "-Wall", "-Werror", "-I/usr/include/modbus", source, "-o", program, "-lmodbus"]
    subprocess.run(command, check=True)
    return program


@contextmanager
def running(server: Path, wire: str) -> Iterator[TcpAddress | SerialLine]:
    """The server on a free TCP port, or on one end of a serial cable."""
    with serial_cable() if wire == "rtu" else no_cable() as (host_end, device_end):
        arguments = ["rtu", device_end, str(DEVICE)] if wire == "rtu" else ["tcp", "0"]
        with subprocess.Popen([server, *arguments], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            try:
                yield SerialLine(host_end, 115_200) if wire == "rtu" else TcpAddress("127.0.0.1", int(said))
            finally:
                process.kill()


@contextmanager
def no_cable() -> Iterator[tuple[str, str]]:
    yield "", ""


@contextmanager
def serial_cable() -> Iterator[tuple[str, str]]:
    """Two pseudo-terminals with a process that passes octets between their masters."""
    pairs = [os.openpty() for _ in range(2)]
    for _, slave in pairs:
        tty.setraw(slave)
    (host, host_slave), (device, device_slave) = pairs
    copier = "import os,sys,select\na,b=map(int,sys.argv[1:])\nwhile True:\n for s in select.select([a,b],[],[])[0]:\n  os.write(b if s==a else a, os.read(s,4096))"
    with subprocess.Popen(["python3", "-c", copier, str(host), str(device)], pass_fds=(host, device)) as process:
        try:
            yield os.ttyname(host_slave), os.ttyname(device_slave)
        finally:
            process.kill()
    for descriptor in (host, host_slave, device, device_slave):
        os.close(descriptor)


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 60.0))


@pytest.mark.parametrize("wire", ["tcp", "rtu"])
def test_meter_write_and_read_back(server: Path, wire: str) -> None:
    with running(server, wire) as address:

        async def scene() -> None:
            options = ModbusOptions(address, example_map(), tuple(range(1, 49)), DEVICE, timeout_s=20.0)
            pdu = ModbusPdu(options)
            await pdu.open()
            assert (await pdu.identify()).n_outlets == 48
            reading = await pdu.read()
            assert reading.power_w == {o: 100.0 * o for o in range(1, 49)}
            assert {state.limit_w for state in reading.limits.values()} == {5000.0}
            writes = [LimitWrite(o, 200.0 + o) for o in range(48, 0, -1)]
            result = await pdu.apply(writes)
            assert all(outcome.verified and outcome.refused is None for outcome in result.outcomes)
            assert result.round_trips == 2
            restored = await pdu.apply([LimitWrite(o, 0.0, restore=reading.limits[o]) for o in range(1, 49)])
            assert all(outcome.verified for outcome in restored.outcomes)
            assert (await pdu.read()).limits == reading.limits
            await pdu.close()

        run(scene)


def test_its_exceptions_are_told_in_words(server: Path) -> None:
    with running(server, "tcp") as address:

        async def scene() -> None:
            wider = example_map().model_copy(update={"outlets": 60})
            pdu = ModbusPdu(ModbusOptions(address, wider, tuple(range(40, 61)), DEVICE, timeout_s=20.0))
            await pdu.open()
            reading = await pdu.read()
            assert reading.power_w == {o: 100.0 * o if o <= 48 else None for o in range(40, 61)}
            outcomes = (await pdu.apply([LimitWrite(48, 100.0), LimitWrite(50, 100.0)])).outcomes
            assert [outcome.verified for outcome in outcomes] == [True, False]
            assert "has no such register (exception 2)" in (outcomes[1].refused or "")
            await pdu.close()

        run(scene)


def test_nobody_at_this_address_of_the_bus(server: Path) -> None:
    with running(server, "rtu") as address:

        async def scene() -> None:
            pdu = ModbusPdu(ModbusOptions(address, example_map(), (1,), DEVICE + 1, timeout_s=0.1))
            await pdu.open()
            with pytest.raises(DeviceError, match=f"device {DEVICE + 1} does not answer"):
                await pdu.read()
            await pdu.close()

        run(scene)
