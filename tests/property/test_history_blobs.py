"""Blocks on disk: what goes in comes out, and damage never comes out as numbers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rpi_daemon.history.blobs import LARGEST, MISSING, DamagedBlock, pack, unpack

STEP = 0.1
VALUES = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40),
    elements=st.one_of(st.just(float("nan")), st.floats(-2e8, 2e8)),
)


@given(VALUES)
def test_numbers_come_back_to_half_a_step_and_gaps_as_gaps(values: np.ndarray) -> None:
    back = unpack(pack(values, STEP))
    assert back.shape == values.shape
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    known = ~np.isnan(values)
    assert np.all(np.abs(back[known] - values[known]) <= 0.5 * STEP * (1 + 1e-9) + 1e-9 * np.abs(values[known]))


@given(arrays(np.int64, (3, 17), elements=st.integers(MISSING + 1, LARGEST)))
@example(np.array([[MISSING + 1, LARGEST] * 8 + [0]] * 3))
def test_counts_come_back_exactly(counts: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(counts * 0.5, 0.5)), counts * 0.5)


@given(arrays(np.int64, (6, 17), elements=st.integers(MISSING, LARGEST)), st.permutations([0, 1]))
@example(np.array([[MISSING + 1, LARGEST] * 8 + [0], [MISSING] * 17] * 3), [1])
def test_smallest_and_largest_come_back_exactly_beside_their_means(counts: np.ndarray, rows: list[int]) -> None:
    values = np.where(counts == MISSING, np.nan, counts * 0.5)
    block = pack(values, 0.5, spread=True)
    np.testing.assert_array_equal(unpack(block), values)
    chosen = [part + row for part in (0, 2, 4) for row in rows]
    np.testing.assert_array_equal(unpack(block, np.array(rows)), values[chosen])
    np.testing.assert_array_equal(unpack(pack(values, 0.5), np.array(rows)), values[rows])


@given(VALUES, st.data())
def test_every_single_bit_flip_is_seen(values: np.ndarray, data: st.DataObject) -> None:
    block = bytearray(pack(values, STEP))
    bit = data.draw(st.integers(0, 8 * len(block) - 1))
    block[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedBlock):
        unpack(bytes(block))


@given(VALUES, st.data())
def test_every_truncation_is_seen(values: np.ndarray, data: st.DataObject) -> None:
    block = pack(values, STEP)
    with pytest.raises(DamagedBlock):
        unpack(block[: data.draw(st.integers(0, len(block) - 1))])


@given(st.binary(max_size=200))
def test_any_octets_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(DamagedBlock):
        unpack(data)


def test_what_no_block_can_hold_is_refused() -> None:
    for values, step in ((np.zeros(3), 1.0), (np.array([[np.inf]]), 1.0), (np.zeros((1, 1)), 0.0)):
        with pytest.raises(ValueError):
            pack(values, step)
