"""Registers and values: what is written is what is read, and a limit is never above the asked one; for every type."""

import math
import struct
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pymodbus.client.mixin import ModbusClientMixin
from pymodbus.framer import FramerRTU

from rpi_daemon.drivers.pdu.modbus_link import crc16
from rpi_daemon.drivers.pdu.register_map import FORMATS, WORDS, Limit, Number, Span, blocks
from rpi_daemon.records import LimitKind

every_type = pytest.mark.parametrize("kind", sorted(FORMATS))
orders = st.sampled_from(["big", "little"])
steps = st.sampled_from(["1", "0.1", "0.01", "0.001", "0.5", "2", "10", "0.25"])


@every_type
@given(data=st.data(), word_order=orders, byte_order=orders)
def test_registers_round_trip(kind: str, data: st.DataObject, word_order: Any, byte_order: Any) -> None:
    number = Number(address=0, type=kind, word_order=word_order, byte_order=byte_order)  # type: ignore[arg-type]
    octets = data.draw(st.binary(min_size=2 * WORDS[kind], max_size=2 * WORDS[kind]))
    registers = struct.unpack(f">{WORDS[kind]}H", octets)
    raw = number.raw(registers)
    if math.isnan(raw):
        assert number.value(registers) is None
    else:
        assert number.registers(raw) == registers


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("u16", "UINT16"), ("i16", "INT16"), ("u32", "UINT32"), ("i32", "INT32"), ("u64", "UINT64"), ("i64", "INT64"), ("f32", "FLOAT32"), ("f64", "FLOAT64")],
)  # fmt: skip
@given(data=st.data())
def test_registers_read_as_pymodbus_reads_them(kind: str, theirs: str, data: st.DataObject) -> None:
    registers = data.draw(st.lists(st.integers(0, 0xFFFF), min_size=WORDS[kind], max_size=WORDS[kind]))
    for order in ("big", "little"):
        ours = Number(address=0, type=kind, word_order=order).raw(registers)  # type: ignore[arg-type]
        other = ModbusClientMixin.convert_from_registers(
            registers, getattr(ModbusClientMixin.DATATYPE, theirs), word_order=order
        )
        assert ours == other or (math.isnan(ours) and math.isnan(other))


@pytest.mark.parametrize("kind", ["u16", "i16", "u32", "i32", "f32", "f64"])
@given(data=st.data(), step=steps, shift=st.sampled_from([0.0, -4.0, 0.5]))
def test_a_limit_is_rounded_down_by_less_than_a_step_and_stands_still(
    kind: str, data: st.DataObject, step: str, shift: float
) -> None:
    whole = kind[0] != "f"
    limit = Limit(
        address=0,
        type=kind,  # type: ignore[arg-type]
        kind=LimitKind.CURRENT_LIMIT,
        unit="A",
        scale=float(step) if whole else 1.0,
        step=None if whole else float(step),
        shift=shift,
        minimum=max(0.0, shift),
        maximum=min(300.0, 30_000 * float(step) + shift) if whole else 300.0,
    )
    assume(limit.minimum <= limit.maximum)
    asked = data.draw(st.floats(limit.minimum, limit.maximum))
    registers, told = limit.settle(asked)
    value = limit.value(registers)
    assert value is not None
    # what is on the wire is the value less the shift: 24 bits of that
    assert told == pytest.approx(value, rel=1e-6, abs=1e-6 * abs(value - shift))
    slack = float(limit.quantum) / 500 + abs(asked) * 1e-6  # a float64, or a float32 on the wire
    assert value <= asked + slack
    assert asked - value < float(limit.quantum) + slack
    assert limit.same(registers, limit.settle(value)[0])


@given(st.binary(max_size=260))
def test_the_checksum_is_that_of_pymodbus(octets: bytes) -> None:
    assert crc16(octets).to_bytes(2, "little") == FramerRTU.compute_CRC(octets).to_bytes(2, "big")


@given(
    st.lists(st.tuples(st.sampled_from([3, 4]), st.integers(0, 400), st.integers(1, 4)), max_size=40),
    st.integers(4, 125),
    st.integers(0, 20),
)
def test_blocks_cover_every_span_within_their_bounds(
    spans: list[tuple[int, int, int]], most: int, max_gap: int
) -> None:
    wanted = [Span(*span) for span in spans]
    found = blocks(wanted, most, max_gap)
    registers = {(s.function, r) for s in wanted for r in range(s.address, s.end)}
    for span in wanted:
        assert any(b.function == span.function and b.address <= span.address and span.end <= b.end for b in found)
    for block in found:
        assert block.words <= most
        gap = 0
        for register in range(block.address, block.end):
            gap = 0 if (block.function, register) in registers else gap + 1
            assert gap <= max_gap


@given(st.floats(0, 1e5, allow_nan=False), st.sampled_from([48.0, 54.3, 230.0]))
def test_watts_to_amperes_and_back_never_exceed_what_was_asked(limit_w: float, volts: float) -> None:
    limit = Limit(address=0, type="u16", scale=0.1, kind=LimitKind.CURRENT_LIMIT, unit="A", maximum=6553.5)
    per_amp = Fraction(str(volts))
    _, value = limit.settle(limit_w / volts)
    assert float(Fraction(str(value)) * per_amp) <= limit_w + 0.1 * volts / 500
