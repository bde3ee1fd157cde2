"""Every threshold of every shipped profile: what is written is what is read back, exact to the device's own step."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.pdu.profile import Bounded, Scaled, from_wire, load_profile, profile_names, to_wire

NOMINAL_V = st.sampled_from(
    [Fraction(100), Fraction(120), Fraction(208), Fraction(230), Fraction("230.5"), Fraction(400)]
)


def columns() -> Iterator[tuple[str, Bounded]]:
    for name in profile_names():
        profile = load_profile(name)
        if profile.limit is not None:
            yield f"{name} limit", profile.limit
        for threshold in profile.thresholds:
            yield f"{name} {threshold.name}", threshold
        for rows in profile.rows:
            for threshold in rows.thresholds:
                yield f"{name} {rows.kind} {threshold.name}", threshold


COLUMNS = dict(columns())
every_column = pytest.mark.parametrize("column", COLUMNS.values(), ids=list(COLUMNS))


def steps(column: Scaled) -> st.SearchStrategy[Fraction]:
    """The column's own step, or any that its device may say."""
    return st.integers(-2, 6).map(column.step) if column.digits_oid is not None else st.just(column.step())


def counts(column: Bounded) -> st.SearchStrategy[int]:
    low, high = -(-column.minimum // column.granularity), column.maximum // column.granularity
    return st.integers(low, high).map(lambda n: n * column.granularity)


def test_there_are_thresholds_of_every_family() -> None:
    assert len(COLUMNS) > 60
    assert all(load_profile(name.split()[0]) for name in COLUMNS)


@every_column
@given(st.data())
def test_every_count_survives_the_way_to_its_unit_and_back(column: Bounded, data: st.DataObject) -> None:
    count, step = data.draw(counts(column)), data.draw(steps(column))
    taken = column.counted(count)
    if taken is None:
        assert count in column.missing or count < 0
        return
    assert to_wire(from_wire(taken, step), step, column.granularity) == count


@every_column
@given(st.data())
def test_what_is_asked_in_watts_is_never_exceeded_and_missed_by_less_than_a_step(
    column: Bounded, data: st.DataObject
) -> None:
    step = data.draw(steps(column)) * column.granularity
    watts_per_unit = Fraction(1) if column.unit == "W" else data.draw(NOMINAL_V)
    step_w = step * watts_per_unit
    asked_w = data.draw(st.floats(0.0, 20_000.0))
    count = to_wire(asked_w, step_w / column.granularity, column.granularity)
    assert count % column.granularity == 0
    written_w = count * step_w / column.granularity
    assert written_w <= Fraction(asked_w) + step_w / 1000  # what a float lacks to the count that was meant
    assert written_w > Fraction(asked_w) - step_w
    read_w = from_wire(count, step_w / column.granularity)
    assert to_wire(read_w, step_w / column.granularity, column.granularity) == count  # written again, it stays
