"""Readings from rings: merging boards, age, quality."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rpi_daemon._fastpath import core
from rpi_daemon.errors import ConfigError
from rpi_daemon.features import BoardSetup, Features, MeterSetup
from rpi_daemon.records import PduReading, Quality, RackModel

MS = 1_000_000


def rack(n: int, nominal_v: float = 50.0) -> RackModel:
    return RackModel(
        rack="r",
        outlet_ids=tuple(f"o{i}" for i in range(n)),
        pdu_of=("p",) * n,
        number_of=tuple(range(1, n + 1)),
        load_of=np.arange(n),
        rating_w=np.full(n, 2000.0),
        static_safe_w=np.full(n, 500.0),
        nominal_v=np.full(n, nominal_v),
        opted_in=np.ones(n, np.bool_),
        loads=(),
        constraints=(),
    )


class Board:
    """A ring with one voltage channel behind its current channels, filled by the test; scan k is at k ms."""

    def __init__(self, outlets: list[int], *, voltage: bool = True, capacity: int = 1000) -> None:
        n = len(outlets)
        self.n_channels = n + 1
        self.ring = core.Ring(
            np.zeros(core.Ring.bytes_needed(n + 1, capacity), np.uint8), n_channels=n + 1, capacity=capacity
        )
        kernel = core.WindowKernel(
            n + 1,
            outlets=[(c, n if voltage else -1, 1.0) for c in range(n)],
            gain=np.full(n + 1, 0.01),
            full_scale_counts=np.full(n + 1, 30_000),
        )
        self.setup = BoardSetup(self.ring, kernel, np.array(outlets))

    def fill(self, first: int, last: int, counts: list[int], *, lost: range = range(0), status: int = 0) -> None:
        values: NDArray[np.int32] = np.array(counts, np.int32)
        for k in range(first, last):
            if k not in lost:
                self.ring.push(k, k * MS, k, status, values)


def test_outlets_of_two_boards_land_in_their_places() -> None:
    a, b = Board([2, 0]), Board([1])
    a.fill(0, 200, [100, 200, 5000])
    b.fill(0, 200, [300, 10_000])
    r = Features(rack(3), [a.setup, b.setup]).step(210 * MS, 5_000 * MS)
    np.testing.assert_allclose(r.power_w, [2.0 * 50.0, 3.0 * 100.0, 1.0 * 50.0], rtol=1e-12)
    np.testing.assert_allclose(r.voltage_v, [50.0, 100.0, 50.0], rtol=1e-12)
    assert r.valid.all()
    assert r.quality.tolist() == [0, 0, 0]
    assert r.count.tolist() == [100, 100, 100]
    assert r.t_mono_ns == 199 * MS
    assert r.t_utc_ns == (5_000 - 11) * MS


def test_a_window_is_taken_at_multiples_of_100_scans_only() -> None:
    a = Board([0])
    a.fill(0, 200, [100, 5000])
    features = Features(rack(1), [a.setup])
    assert features.step(200 * MS, 0).power_w[0] == pytest.approx(50.0)
    a.fill(200, 299, [900, 5000])
    assert features.step(300 * MS, 0).power_w[0] == pytest.approx(50.0)
    a.fill(299, 300, [900, 5000])
    r = features.step(301 * MS, 0)
    assert r.power_w[0] == pytest.approx(252.0)  # the newer half of a window weighs 50.5 of 100
    assert r.max_a[0] == pytest.approx(9.0)
    assert r.min_a[0] == pytest.approx(9.0)


def test_a_silent_board_is_stale_after_150_ms_and_comes_back() -> None:
    a, b = Board([0]), Board([1])
    a.fill(0, 200, [100, 5000])
    b.fill(0, 200, [100, 5000])
    features = Features(rack(2), [a.setup, b.setup])
    assert features.step(200 * MS, 0).valid.tolist() == [True, True]
    a.fill(200, 400, [100, 5000])
    r = features.step((199 + 150) * MS, 0)
    assert r.valid.tolist() == [True, True]
    r = features.step((199 + 150) * MS + 1, 0)
    assert r.valid.tolist() == [True, False]
    assert r.quality[1] == Quality.STALE
    assert np.isnan(r.power_w[1])
    assert r.count[1] == 0
    b.fill(400, 600, [100, 5000])
    r = features.step(600 * MS, 0)
    assert r.valid.tolist() == [False, True]
    assert r.t_mono_ns == 599 * MS


def test_nothing_is_read_before_the_first_window() -> None:
    a = Board([0])
    a.fill(0, 199, [100, 5000])
    r = Features(rack(1), [a.setup]).step(200 * MS, 77)
    assert not r.valid[0]
    assert r.quality[0] == Quality.STALE
    assert (r.t_mono_ns, r.t_utc_ns) == (200 * MS, 77)


def test_without_a_voltage_channel_quantities_are_apparent_and_say_so() -> None:
    a = Board([0], voltage=False)
    a.fill(0, 240, [100, 0])
    a.fill(240, 300, [300, 0])
    r = Features(rack(1, 230.0), [a.setup]).step(300 * MS, 0)
    assert r.quality[0] == Quality.NO_VOLTAGE
    assert r.valid[0]
    assert r.power_w[0] == r.apparent_va[0] == pytest.approx(r.rms_a[0] * 230.0)
    assert np.isnan(r.power_factor[0])
    assert np.isnan(r.voltage_v[0])
    assert r.step_w[0] == pytest.approx(2.0 * 230.0)


@pytest.mark.parametrize(
    ("counts", "lost"),
    [(0, True), (3999, True), (4000, False), (core.COUNT_FAULT, True)],
    ids=["blown tap", "below 0.8 of nominal", "at 0.8 of nominal", "fault code"],
)
def test_a_lost_voltage_channel_is_not_a_load_without_power(counts: int, lost: bool) -> None:
    a = Board([0])
    a.fill(0, 200, [200, counts])
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert bool(r.quality[0] & Quality.VOLTAGE_LOST) is lost
    assert bool(r.quality[0] & Quality.NO_VOLTAGE) is lost
    assert r.valid[0]
    assert r.power_w[0] == pytest.approx(2.0 * 50.0 if lost else 2.0 * 40.0)  # lost: nominal volts
    assert r.apparent_va[0] == pytest.approx(r.power_w[0])
    assert np.isnan([r.voltage_v[0], r.power_factor[0], r.step_w[0]]).tolist() == [lost] * 3


@pytest.mark.parametrize(("sign", "amps", "valid"), [(1.0, 2.0, True), (-1.0, 2.0, False), (-1.0, 0.03, True)])
def test_negative_power_beyond_the_noise_is_no_reading(sign: float, amps: float, valid: bool) -> None:
    a = Board([0])
    a.fill(0, 200, [round(sign * amps * 100), 5000])
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert bool(r.valid[0]) is valid
    assert r.quality[0] == (0 if valid else Quality.REVERSED)
    assert r.power_w[0] == pytest.approx(sign * amps * 50.0 if valid else np.nan, nan_ok=True)
    assert r.rms_a[0] == pytest.approx(amps)


def test_a_lost_scan_is_no_lost_voltage() -> None:
    a = Board([0])
    a.fill(0, 200, [100, 5000], lost=range(40, 199))
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert r.quality[0] == Quality.MISSING


def test_lost_scans_are_counted_and_named() -> None:
    a = Board([0])
    a.fill(0, 200, [100, 5000], lost=range(150, 153))
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert r.power_w[0] == pytest.approx(50.0)
    assert (r.count[0], r.missing[0], r.quality[0]) == (97, 3, Quality.MISSING)


def test_a_window_with_most_of_its_weight_lost_is_no_reading() -> None:
    a = Board([0])
    a.fill(0, 200, [100, 5000], lost=range(40, 199))
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert not r.valid[0]
    assert np.isnan(r.power_w[0])
    assert (r.count[0], r.missing[0]) == (1, 99)


def test_a_ring_too_short_for_its_window_gives_nothing_rather_than_garbage() -> None:
    a = Board([0], capacity=150)
    a.fill(0, 400, [100, 5000])
    r = Features(rack(1), [a.setup]).step(400 * MS, 0)
    assert not r.valid[0]
    assert np.isnan(r.power_w[0])


@pytest.mark.parametrize("bit", [3, 4], ids=["REFERENCE", "TEMPERATURE"])
def test_a_board_that_doubts_itself_is_marked_and_used(bit: int) -> None:
    a = Board([0])
    a.fill(0, 150, [40_000, 5000])
    a.fill(150, 160, [40_000, 5000], status=1 << bit)
    a.fill(160, 200, [40_000, 5000])
    r = Features(rack(1), [a.setup]).step(200 * MS, 0)
    assert r.quality[0] == Quality.UNCALIBRATED | Quality.SATURATED
    assert r.max_a[0] == pytest.approx(300.0)  # at least full scale
    assert r.valid[0]


@pytest.mark.parametrize("bit", [5, 6], ids=["TEST", "SETTLING"])
def test_what_the_board_calls_no_measurement_is_no_data(bit: int) -> None:
    a = Board([0])
    a.fill(0, 150, [100, 5000])
    a.fill(150, 160, [900, 5000], status=1 << bit)
    a.fill(160, 200, [100, 5000])
    features = Features(rack(1), [a.setup])
    r = features.step(200 * MS, 0)
    assert (r.count[0], r.missing[0], r.quality[0]) == (90, 10, Quality.MISSING)
    assert r.power_w[0] == pytest.approx(50.0)
    a.fill(200, 400, [900, 5000], status=1 << bit | 1)
    r = features.step(400 * MS, 0)
    assert not r.valid[0]
    assert (r.count[0], r.t_mono_ns) == (0, 399 * MS)


def test_an_outlet_has_one_channel() -> None:
    with pytest.raises(ConfigError, match=r"two current channels: o1"):
        Features(rack(2), [Board([0, 1]).setup, Board([1]).setup])
    with pytest.raises(ConfigError, match="outlet 2"):
        Features(rack(2), [Board([2]).setup])


def test_the_time_of_readings_never_goes_back() -> None:
    board = Board([0])
    features = Features(rack(1), [board.setup])
    board.fill(0, 200, [100, 5000])
    assert features.step(210 * MS, 0).t_mono_ns == 199 * MS
    assert features.step(360 * MS, 1_000 * MS).t_mono_ns == 360 * MS  # stale
    board.fill(200, 300, [100, 5000])
    late = features.step(370 * MS, 1_010 * MS)
    assert late.valid.all()
    assert (late.t_mono_ns, late.t_utc_ns) == (360 * MS, 1_000 * MS)
    board.fill(300, 400, [100, 5000])
    assert features.step(410 * MS, 0).t_mono_ns == 399 * MS


# --- slow meters


def metered(n: int, boards: tuple[BoardSetup, ...] = (), *, of: tuple[int, ...] | None = None) -> Features:
    """`n` outlets; those of `of` (all by default) on meter "p", by number from 1, polled once a second."""
    outlets = range(n) if of is None else of
    return Features(rack(n, 230.0), boards, [MeterSetup(i, "p", i + 1, 1.0) for i in outlets])


def polled(
    t_ms: int,
    power_w: dict[int, float | None],
    current_a: dict[int, float | None] | None = None,
    voltage_v: dict[int, float | None] | None = None,
    apparent: frozenset[int] = frozenset(),
) -> PduReading:
    return PduReading(
        t_ms * MS, 1.0, power_w, current_a or {}, {}, {}, voltage_v=voltage_v or {}, apparent=apparent
    )  # fmt: skip


def test_a_slow_meter_stands_for_an_outlet_that_no_board_measures() -> None:
    features = metered(2)
    features.observe("p", polled(900, {1: 120.0, 2: 300.0}, {1: 0.6, 2: None}, {1: 225.0}))
    r = features.step(1000 * MS, 5_000 * MS)
    assert r.t_mono_ns == 1000 * MS
    assert r.power_w.tolist() == [120.0, 300.0]
    assert r.valid.all()
    assert r.fresh.all()
    assert r.interval_ticks.tolist() == [10, 10]
    assert r.quality.tolist() == [Quality.SLOW_METER] * 2
    assert r.apparent_va[0] == pytest.approx(135.0)
    assert r.power_factor[0] == pytest.approx(120.0 / 135.0)
    for unknown in (r.rms_a[1], r.voltage_v[1], r.apparent_va[1], r.power_factor[1]):
        assert np.isnan(unknown)
    for never in (r.peak_a, r.crest, r.min_a, r.max_a, r.step_w):
        assert np.isnan(never).all()
    assert r.count.tolist() == [1, 1]


def test_a_held_reading_is_not_a_new_measurement() -> None:
    features = metered(1)
    features.observe("p", polled(0, {1: 120.0}))
    seen = []
    for k in range(12):
        if k == 10:
            features.observe("p", polled(1000, {1: 120.0}))
        r = features.step((k + 1) * 100 * MS, 0)
        assert r.valid[0]
        seen.append(bool(r.fresh[0]))
        assert (r.quality[0] & Quality.HELD != 0) == (not r.fresh[0])
    assert seen == [True, *[False] * 9, True, False]


def test_a_meter_is_stale_after_three_polls_and_a_tick() -> None:
    features = metered(2)
    features.observe("p", polled(0, {1: 120.0, 2: 300.0}))
    features.observe("p", polled(1000, {1: 130.0, 2: None}))  # number 2 could not be read
    assert features.step(3100 * MS, 0).power_w.tolist() == [130.0, 300.0]
    r = features.step(3101 * MS, 0)
    assert r.valid.tolist() == [True, False]
    assert r.quality[1] == Quality.STALE
    assert np.isnan(r.power_w[1])
    assert features.step(4101 * MS, 0).valid.tolist() == [False, False]


def test_a_meter_of_amps_alone_makes_apparent_power_and_says_so() -> None:
    features = metered(2)
    features.observe("p", polled(0, {1: None, 2: 460.0}, {1: 1.5, 2: 2.0}, apparent=frozenset({2})))
    r = features.step(100 * MS, 0)
    assert r.power_w.tolist() == [345.0, 460.0]
    assert r.apparent_va.tolist() == [345.0, 460.0]
    assert np.isnan(r.power_factor).all()
    assert r.quality.tolist() == [Quality.SLOW_METER | Quality.NO_VOLTAGE] * 2


def test_a_meter_that_shows_negative_power_has_no_reading() -> None:
    features = metered(2)
    features.observe("p", polled(0, {1: -50.0, 2: -1.0}))
    r = features.step(100 * MS, 0)
    assert r.valid.tolist() == [False, True]
    assert r.quality[0] & Quality.REVERSED


def test_board_and_meter_side_by_side_and_news_wait_for_a_tick_that_learns() -> None:
    a = Board([0])
    a.fill(0, 200, [100, 23_000])
    features = metered(2, (a.setup,), of=(1,))
    features.observe("p", polled(100, {1: 999.0, 2: 300.0}))
    r = features.step(200 * MS, 0)
    assert r.power_w.tolist() == pytest.approx([230.0, 300.0])
    assert r.quality.tolist() == [0, Quality.SLOW_METER]
    assert r.t_mono_ns == 199 * MS
    features.observe("p", polled(210, {2: 310.0}))
    for now_ms in (220, 240):  # no new window: nothing is learned in these ticks, and the reading stays news
        r = features.step(now_ms * MS, 0)
        assert r.t_mono_ns == 199 * MS
        assert r.power_w[1] == 310.0
        assert r.fresh[1]
    a.fill(200, 400, [100, 23_000])
    assert features.step(400 * MS, 0).fresh[1]
    a.fill(400, 500, [100, 23_000])
    assert not features.step(500 * MS, 0).fresh[1]
