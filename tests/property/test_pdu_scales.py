"""Watts to wire counts and back, for any step a device may have."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.pdu.profile import EnableMask, from_wire, to_wire

steps = st.one_of(
    st.integers(-2, 6).map(lambda digits: Fraction(10) ** -digits),
    st.sampled_from([Fraction(s) for s in ("0.1", "0.01", "0.001", "1", "100", "0.25")]),
    st.tuples(st.integers(0, 3), st.sampled_from([Fraction(120), Fraction(208), Fraction("230.5")])).map(
        lambda pair: Fraction(10) ** -pair[0] * pair[1]
    ),
)


@given(st.integers(-(2**31), 2**32 - 1), steps)
def test_every_count_survives_the_way_to_watts_and_back(count: int, step: Fraction) -> None:
    assert to_wire(from_wire(count, step), step) == count


@given(st.floats(0.0, 1e6), steps, st.sampled_from([1, 5, 10, 100]))
def test_a_written_limit_is_the_largest_on_the_grid_that_is_not_above(value: float, step: Fraction, grid: int) -> None:
    count = to_wire(value, step, grid)
    assert count % grid == 0
    assert count * step <= Fraction(value) + step / 1000  # float noise of the caller is not a whole step down
    assert (count + grid) * step > Fraction(value)


@given(st.integers(0, 255), st.integers(0, 7), st.booleans(), st.booleans())
def test_switching_one_bit_leaves_the_others(mask: int, bit: int, on: bool, inverted: bool) -> None:
    column = EnableMask(oid="1.3.{outlet}", type="bits", bit=bit, inverted=inverted)
    switched = column.switched(mask, on)
    assert column.is_on(switched) is on
    assert (switched ^ mask) & ~column.flag(bit) == 0
    encoded = column.encode(switched)
    assert isinstance(encoded, bytes)
    assert column.decode(encoded) == switched
    assert column.flag(bit) == 0x80 >> bit
