"""What every PDU driver must do, by Modbus: each shipped register map on a simulated device, over TCP and over a pty pair."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from modbus_examples import GATED, example_map, on_wire

from rpi_daemon.drivers.pdu.modbus import ModbusOptions, ModbusPdu, TcpAddress
from rpi_daemon.drivers.pdu.modbus_link import RtuLink, SerialLine
from rpi_daemon.drivers.pdu.modbus_sim import ModbusRtuSimulator, ModbusTcpSimulator, SimulatedDevice
from rpi_daemon.drivers.pdu.register_map import load_map, map_names
from rpi_daemon.errors import ConfigError, DeviceError
from rpi_daemon.records import LimitKind, LimitState, LimitWrite

wires = pytest.mark.parametrize("wire", ["tcp", "rtu"])
every = pytest.mark.parametrize(("name", "wire"), [(n, w) for n in map_names() for w in ("tcp", "rtu")])


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20.0))


@every
def test_identity_metering_and_limits(name: str, wire: str) -> None:
    async def scene() -> None:
        map_ = load_map(name)
        async with on_wire(map_, wire, volts=48.0, timeout_s=2.0) as b:
            identity = await b.pdu.identify()
            assert identity.vendor == map_.vendor
            assert identity.n_outlets == map_.outlets
            assert identity.model == ("SIM" if map_.identity.model is not None else "")
            assert identity.proven is False
            reading = await b.pdu.read()
            numbers = range(1, map_.outlets + 1)
            meter = map_.metering
            if meter.power is not None:
                assert reading.power_w == {o: pytest.approx(10.0 * o, abs=0.13) for o in numbers}
            else:
                assert reading.power_w == {}
            if meter.current is not None:
                assert reading.current_a == {o: pytest.approx(10.0 * o / 48.0, abs=0.02) for o in numbers}
            if meter.energy is not None:
                assert reading.energy_wh == {o: pytest.approx(1000.0) for o in numbers}
            if map_.limit is None:
                assert reading.limits == {}  # a meter has no limit; it is never said to be unlimited
            else:
                assert [state.kind for state in reading.limits.values()] == [map_.limit.kind] * map_.outlets

    run(scene)


@wires
def test_a_batch_is_written_in_one_message_read_back_and_in_force(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(), wire, timeout_s=2.0) as b:
            writes = [(outlet, 150.0 + outlet) for outlet in range(48, 0, -1)]
            result = await b.write(*writes)
            assert [(o.outlet, o.asked_w) for o in result.outcomes] == writes  # order kept
            for outcome in result.outcomes:
                assert outcome.verified
                assert outcome.refused is None
                assert outcome.read_back_w == outcome.asked_w == b.device.limit_w(outcome.outlet)
                assert outcome.t_verified_ns is not None
                assert outcome.t_verified_ns >= outcome.t_sent_ns > 0
            assert result.round_trips == 2
            assert b.device.counters["writes"] == 1
            assert {o: s.limit_w for o, s in (await b.pdu.read()).limits.items()} == dict(writes)
            await b.write((1, 10.0), (3, 30.0), (4, 40.0))
            assert b.device.counters["writes"] == 3  # a gap is not written over
            assert b.device.limit_w(2) == 152.0

    run(scene)


@wires
def test_a_limit_is_rounded_down_to_the_devices_step(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(), wire, outlets=(1,)) as b:
            (outcome,) = (await b.write((1, 100.9))).outcomes
            assert (outcome.verified, outcome.read_back_w) == (True, 100.0)
            (outcome,) = (await b.write((1, 5001.0))).outcomes
            assert outcome.refused == "5001 W is outside what the device takes: 0..5000 W"
            assert not outcome.verified
            assert b.device.limit_w(1) == 100.0

    run(scene)


@wires
def test_the_constant_current_of_a_power_shelf_is_set_in_watts(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(load_map("meanwell_cmu2c"), wire, volts=54.0) as b:
            found = (await b.pdu.read()).limits[1]
            assert found.kind is LimitKind.CURRENT_LIMIT
            assert found.step_w == pytest.approx(5.4)
            (outcome,) = (await b.write((1, 1000.0))).outcomes
            assert outcome.verified
            assert outcome.read_back_w == pytest.approx(18.5 * 54.0)  # 1000 W / 54 V = 18.518 A, down to 18.5 A
            assert b.device.registers[3, 0x0011] == 185
            assert outcome.read_back_w <= 1000.0
            (outcome,) = (await b.pdu.apply([LimitWrite(1, 0.0, restore=found)])).outcomes
            assert outcome.verified
            assert (await b.pdu.read()).limits[1] == found
            (outcome,) = (await b.pdu.apply([LimitWrite(1, 0.0, LimitState(None, None, found.kind))])).outcomes
            assert outcome.refused == "nothing to restore: the value found at first contact is not known"
            b.device.poke(load_map("meanwell_cmu2c").limit.voltage, 1, 0.0)  # type: ignore[union-attr, arg-type]
            (outcome,) = (await b.write((1, 1000.0))).outcomes
            assert "does not tell its output voltage" in (outcome.refused or "")
            assert (await b.pdu.read()).limits[1].limit_w is None

    run(scene)


@wires
def test_enable_bit_and_write_gate(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(GATED), wire) as b:
            b.device.registers[3, 0x00C4] = 0x0A00  # bits of others
            b.device.registers[3, 0x005E] = 0x0100
            found = (await b.pdu.read()).limits
            assert not any(state.enabled for state in found.values())
            assert all(o.verified for o in (await b.write((1, 100.0), (2, 200.0))).outcomes)
            assert b.device.registers[3, 0x00C4] == 0x0A01
            assert b.device.registers[3, 0x005E] == 0x0100  # shut again
            written = b.device.counters["registers_written"]
            assert all(o.verified for o in (await b.write((1, 110.0))).outcomes)
            assert b.device.counters["registers_written"] == written + 3  # gate, set-point, gate; not the enable bit
            result = await b.pdu.apply([LimitWrite(o, 0.0, restore=found[o]) for o in (1, 2)])
            assert all(o.verified for o in result.outcomes)
            assert (await b.pdu.read()).limits == found

    run(scene)


@wires
def test_no_write_goes_out_once_it_is_not_allowed_any_more(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(), wire, timeout_s=2.0) as b:

            def may_write(write: LimitWrite) -> bool:  # the kill switch is engaged while the first message is answered
                return b.device.counters["writes"] == 0

            result = await b.pdu.apply([LimitWrite(o, 300.0 + o) for o in (1, 2, 11, 12)], may_write)
            assert b.device.counters["writes"] == 1
            assert [o.verified for o in result.outcomes] == [True, True, False, False]
            assert all("allow" in (o.refused or "") for o in result.outcomes[2:])
            assert [b.device.limit_w(o) for o in (2, 11)] == [302.0, 5000.0]
            none = await b.pdu.apply([LimitWrite(5, 1.0)], lambda _: False)
            assert (none.outcomes[0].verified, none.outcomes[0].t_sent_ns) == (False, 0)

    run(scene)


@wires
def test_the_read_back_decides(wire: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(), wire, outlets=(1, 2, 3, 4)) as b:
            b.fault(ignore_write=True)
            outcomes = (await b.write((1, 100.0))).outcomes
            assert (outcomes[0].verified, outcomes[0].read_back_w, outcomes[0].refused) == (False, 5000.0, None)
            b.fault(clamp=200.0)
            outcomes = (await b.write((1, 100.0), (2, 300.0))).outcomes
            assert [(o.verified, o.read_back_w) for o in outcomes] == [(True, 100.0), (False, 200.0)]
            b.fault(exception_on_write=2)
            outcomes = (await b.write((1, 90.0), (2, 90.0))).outcomes
            assert not any(o.verified for o in outcomes)
            assert all("has no such register" in (o.refused or "") for o in outcomes)
            b.fault(absent=(0x0101,))  # the second outlet's set-point is not there: the others are written all the same
            outcomes = (await b.write((1, 80.0), (2, 80.0), (3, 80.0), (4, 80.0))).outcomes
            assert [o.verified for o in outcomes] == [True, False, True, True]

    run(scene)


@wires
@pytest.mark.parametrize("fault", ["drop", "damage", "cut", "wrong_echo", "other_device", "late"])
def test_a_bad_reply_is_never_an_answer(wire: str, fault: str) -> None:
    async def scene() -> None:
        async with on_wire(example_map(), wire, outlets=(1, 2)) as b:
            await b.pdu.read()
            b.device.power_w = lambda outlet: 1000.0 * outlet
            if fault != "wrong_echo":
                b.fault(**{fault: 1, "late_s": 0.3})
                with pytest.raises(DeviceError):
                    await b.pdu.read()
                b.device.power_w = lambda outlet: 7.0 * outlet
                assert (await b.pdu.read()).power_w == {1: 7.0, 2: 14.0}
            b.fault(**{fault: 1, "late_s": 0.3})
            (outcome,) = (await b.write((1, 123.0))).outcomes  # the write's reply is lost, its read-back is not
            assert outcome.verified
            assert outcome.refused is not None
            assert outcome.read_back_w == 123.0

    run(scene)


def test_a_late_rtu_reply_is_not_taken_for_the_next_answer() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "rtu", outlets=(1,)) as b:
            for i in range(5):
                old, new = 100.0 + i, 500.0 + i
                b.device.power_w = lambda outlet, w=old: w  # type: ignore[misc]
                b.fault(late=1, late_s=0.25)  # after the time-out of 0.15 s, within the turn-around of 0.4 s
                with pytest.raises(DeviceError, match="does not answer"):
                    await b.pdu.read()
                b.device.power_w = lambda outlet, w=new: w  # type: ignore[misc]
                assert (await b.pdu.read()).power_w == {1: new}

    run(scene)


def test_noise_before_a_request_is_thrown_away() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "rtu", outlets=(1,)) as b:
            assert isinstance(b.simulator, ModbusRtuSimulator)
            await b.pdu.read()
            b.simulator.inject(b"\x07\x04\x04\x00\x00\x27\x10\x00")
            await asyncio.sleep(0.02)
            assert (await b.pdu.read()).power_w == {1: 10.0}

    run(scene)


def test_a_late_tcp_reply_is_told_by_its_transaction() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "tcp", outlets=(1,)) as b:
            await b.pdu.read()
            b.fault(late=1, late_s=0.2)
            with pytest.raises(DeviceError):
                await b.pdu.read()
            b.device.power_w = lambda outlet: 99.0
            assert (await b.pdu.read()).power_w == {1: 99.0}
            assert b.pdu.link.counters.closed == 0

    run(scene)


def test_two_errors_close_the_tcp_connection_and_the_next_request_has_a_new_one() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "tcp", outlets=(1,)) as b:
            await b.pdu.read()
            b.fault(drop=2)
            for _ in range(2):
                with pytest.raises(DeviceError, match="does not answer"):
                    await b.pdu.read()
            assert b.pdu.link.counters.closed == 1
            began = asyncio.get_running_loop().time()
            assert (await b.pdu.read()).power_w == {1: 10.0}
            assert asyncio.get_running_loop().time() - began < 1.0

    run(scene)


def test_a_device_that_comes_back_is_met_again_at_once() -> None:
    async def scene() -> None:
        map_ = example_map()
        device = SimulatedDevice(map_)
        simulator = ModbusTcpSimulator([device])
        await simulator.start()
        pdu = ModbusPdu(ModbusOptions(TcpAddress("127.0.0.1", simulator.port), map_, (1,), timeout_s=0.2))
        await pdu.open()
        await simulator.stop()
        with pytest.raises(DeviceError):
            await pdu.read()
        with pytest.raises(DeviceError, match="no connection; check the address"):
            await pdu.open()
        again = ModbusTcpSimulator([device], port=simulator.port)
        await again.start()
        began = asyncio.get_running_loop().time()
        await pdu.open()
        assert (await pdu.read()).power_w == {1: 10.0}
        assert asyncio.get_running_loop().time() - began < 1.0
        await pdu.close()
        await again.stop()

    run(scene)


def test_two_devices_share_a_bus_and_commands_go_before_polls() -> None:
    async def scene() -> None:
        map_ = example_map(max_registers=2)  # a poll of many requests
        devices = [SimulatedDevice(map_, device_id=k, power_w=lambda outlet, k=k: 100.0 * k) for k in (1, 2)]  # type: ignore[misc]
        async with ModbusRtuSimulator(devices) as simulator:
            options = ModbusOptions(simulator.line(), map_, tuple(range(1, 13)), 1, timeout_s=0.3)
            first, second = ModbusPdu(options), ModbusPdu(replace(options, device_id=2))
            assert first.link is second.link
            await asyncio.gather(first.open(), second.open())
            poll = asyncio.create_task(first.read())
            await asyncio.sleep(0.0)  # its first request is under way
            result = await second.apply([LimitWrite(o, 50.0) for o in (1, 2)])
            assert all(outcome.verified for outcome in result.outcomes)
            assert not poll.done()  # the command did not wait for the whole poll
            assert set((await poll).power_w.values()) == {100.0}
            assert devices[1].limit_w(1) == 50.0
            assert devices[0].limit_w(1) == 5000.0
            await first.close()
            assert set((await second.read()).power_w.values()) == {200.0}  # the bus stays open for the other
            await second.close()

    run(scene)


def test_a_write_and_its_read_back_are_one_turn() -> None:
    async def scene() -> None:
        map_ = example_map()
        device = SimulatedDevice(map_)
        async with ModbusRtuSimulator([device]) as simulator:
            options = ModbusOptions(simulator.line(), map_, (1, 30), 1, timeout_s=0.3)
            pdu, other = ModbusPdu(options), ModbusPdu(options)
            await pdu.open()
            await other.open()
            order: list[str] = []
            read, write = pdu.link.read, pdu.link.write

            async def told_read(*words: int) -> tuple[int, ...]:
                order.append("read back" if words[1] == 3 and words[2] >= 0x100 and order.count("write") else "poll")
                return await read(*words)

            async def told_write(*words: Any) -> None:
                order.append("write")
                await write(*words)

            pdu.link.read, pdu.link.write = told_read, told_write  # type: ignore[method-assign]
            await asyncio.gather(
                pdu.apply([LimitWrite(1, 10.0), LimitWrite(30, 30.0)]), *(other.read() for _ in range(3))
            )
            assert order[:4] == ["write", "write", "read back", "read back"]
            await pdu.close()
            await other.close()

    run(scene)


def test_another_family_is_named() -> None:
    async def scene() -> None:
        meter = load_map("eastron_sdm630")
        async with on_wire(meter, "tcp") as b:
            b.device.registers[4, 0x0046] = b.device.registers[4, 0x0047] = 0
            b.device.map = example_map()  # so that it does not measure a frequency again
            with pytest.raises(
                DeviceError, match=r"not the Eastron family of register map 'eastron_sdm630': its frequency reads 0"
            ):
                await b.pdu.identify()
        async with on_wire(load_map("orv3_psu"), "rtu") as b:
            for register in range(8, 16):
                b.device.registers[3, register] = 0xFFFF
            with pytest.raises(DeviceError, match="does not tell a model"):
                await b.pdu.identify()

    run(scene)


@wires
def test_rows_tell_alarms_and_what_no_outlet_has(wire: str) -> None:
    async def scene() -> None:
        map_ = load_map("orv3_psu")
        async with on_wire(map_, wire, volts=50.0) as b:
            row = (await b.pdu.read()).rows["pdu 1"]
            assert (row.kind, row.state, row.power_w, row.voltage_v) == ("pdu", "normal", 10.0, 50.0)
            b.device.registers[3, 0x3C] = 1 << 11
            b.device.registers[3, 0x3E] = 1 << 2 | 1 << 15  # bit 15 has no name
            assert (await b.pdu.read()).rows["pdu 1"].state == "fan alarm, output overcurrent"
        async with on_wire(load_map("eastron_sdm630"), wire) as b:
            b.device.power_factor = -0.8
            row = (await b.pdu.read()).rows["phase 2"]
            assert row.power_factor == pytest.approx(0.8)
            assert row.frequency_hz == pytest.approx(50.0)
            assert row.apparent_va == pytest.approx(-25.0)
            assert row.state is None

    run(scene)


def test_a_device_that_knows_no_write_is_told_apart() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "tcp", outlets=(1, 2)) as b:
            b.fault(exception_on_write=1)
            outcomes = (await b.write((1, 90.0), (2, 90.0))).outcomes
            assert all(o.denied and "does not know this function" in (o.refused or "") for o in outcomes)

    run(scene)


def test_sentinels_are_no_reading_and_tell_why() -> None:
    async def scene() -> None:
        map_ = load_map("abb_cms700")
        async with on_wire(map_, "rtu", outlets=(1, 2, 3)) as b:
            column = map_.metering.current
            assert column is not None
            codes = {1: 0x7FF0, 2: 0x7FFF}

            def measure() -> None:
                for outlet in (1, 2, 3):
                    b.device.registers[3, column.place(outlet)] = codes.get(outlet, 123)

            b.device._measure = measure  # type: ignore[method-assign]
            reading = await b.pdu.read()
            assert reading.current_a == {1: None, 2: None, 3: 1.23}
            with pytest.raises(DeviceError, match=r"1: data pending.*2: no sensor with this number"):
                await b.pdu.identify()

    run(scene)


def test_registers_that_the_device_lacks_are_asked_once() -> None:
    async def scene() -> None:
        map_ = load_map("eastron_sdm630")
        async with on_wire(map_, "tcp") as b:
            b.fault(absent=tuple(range(0x015A, 0x0160)))
            reading = await b.pdu.read()
            assert reading.energy_wh == {1: None, 2: None, 3: None}
            assert reading.power_w[3] == pytest.approx(30.0)
            before = b.device.counters["reads"]
            await b.pdu.read()
            assert b.device.counters["reads"] == before + 2

    run(scene)


def test_a_device_that_refuses_what_lies_between_is_read_apart_from_then_on() -> None:
    async def scene() -> None:
        async with on_wire(load_map("eastron_sdm630"), "tcp") as b:
            b.fault(absent=(0x0018,))  # reactive power, which nobody asked for
            assert (await b.pdu.read()).power_w[3] == pytest.approx(30.0)
            before = b.device.counters["reads"]
            assert (await b.pdu.read()).power_w[3] == pytest.approx(30.0)
            assert b.device.counters["reads"] == before + 4

    run(scene)


def test_a_busy_device_is_an_error_in_words() -> None:
    async def scene() -> None:
        async with on_wire(example_map(), "tcp", outlets=(1,)) as b:
            b.fault(exception=6)
            with pytest.raises(DeviceError, match=r"device 7 is busy \(exception 6\)"):
                await b.pdu.read()

    run(scene)


def test_bad_options_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        ModbusOptions(SerialLine("/dev/ttyX"), load_map("orv3_psu"), (0, 2, 2), device_id=0)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("Modbus device /dev/ttyX, device 0: ") for line in lines)
    assert "outside 192..247" in lines[3]


def test_a_port_that_is_not_there_is_a_sentence() -> None:
    async def scene() -> None:
        pdu = ModbusPdu(ModbusOptions(SerialLine("/nowhere/ttyX"), load_map("eastron_sdm630"), (1,)))
        with pytest.raises(DeviceError, match="/nowhere/ttyX: cannot be opened; check"):
            await pdu.open()
        await pdu.close()

    run(scene)
    assert RtuLink._buses == {}
