"""8, 9, 10: sensors that say nonsense, stand at their end stop, stand still or fall silent, from scans to readings on virtual time."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benches import load_bench
from fault_figures import Figures
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon._fastpath import core
from rpi_daemon.features import STALE_NS, BoardSetup, Features, MeterSetup
from rpi_daemon.records import TICK_NS, PduReading, Quality, RackModel, Readings
from rpi_daemon.stuck import StuckSensors

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
S = 1000 * MS
VOLTS, RATING_W = 230.0, 1000.0
FULL_A = 40.0
GAIN_A = 0.001
FULL_COUNTS = round(FULL_A / GAIN_A)
SATURATED_HIGH, NO_COUNT = 2**31 - 1, -(2**31)  # docs/sensor-board-protocol.md
MONTH_S = 30 * 86_400.0


class Rig:
    """One board with two AC outlets and their voltage at 50 Hz; the PDU's meter of each says what is drawn in truth."""

    def __init__(self, poll_s: float = 1.0) -> None:
        n = 2
        rack = RackModel(
            rack="r",
            outlet_ids=("pdu/1", "pdu/2"),
            pdu_of=("pdu",) * n,
            number_of=(1, 2),
            load_of=np.arange(n),
            rating_w=np.full(n, RATING_W),
            static_safe_w=np.full(n, 500.0),
            nominal_v=np.full(n, VOLTS),
            opted_in=np.ones(n, np.bool_),
            loads=(),
            constraints=(),
        )
        self.ring = core.Ring(np.zeros(core.Ring.bytes_needed(3, 1000), np.uint8), n_channels=3, capacity=1000)
        kernel = core.WindowKernel(
            3,
            outlets=[(0, 2, 1.0), (1, 2, 1.0)],
            gain=np.array([GAIN_A, GAIN_A, 0.01]),
            full_scale_counts=np.array([FULL_COUNTS, FULL_COUNTS, 40_000]),
        )
        meters = [MeterSetup(i, "pdu", i + 1, poll_s) for i in range(n)]
        self.features = Features(rack, [BoardSetup(self.ring, kernel, np.arange(n))], meters, alternating=True)
        self.power_w = [300.0, 400.0]
        self.forced: int | None = None  # what the first current channel says, whatever flows
        self.metered = True
        self._poll_ns = round(poll_s * S)
        self.now_ns = 0

    def tick(self, scans: int = 100) -> Readings:
        """100 ms: scans, the poll when it is due, then the step of the features."""
        for _ in range(scans):
            k = self.ring.head
            wave = np.sqrt(2.0) * np.sin(2.0 * np.pi * k / 20.0)
            counts = [round(w / VOLTS * wave / GAIN_A) for w in self.power_w] + [round(VOLTS * wave / 0.01)]
            if self.forced is not None:
                counts[0] = self.forced
            self.ring.push(k, k * MS, k, 0, np.array(counts, np.int32))
        self.now_ns += TICK_NS
        if self.now_ns % self._poll_ns == 0 and self.metered:
            said = {i + 1: w for i, w in enumerate(self.power_w)}
            self.features.observe("pdu", PduReading(self.now_ns, self.now_ns / S, said, {}, {}, {}))
        return self.features.step(self.now_ns, self.now_ns)

    def ticks(self, n: int) -> list[Readings]:
        return [self.tick() for _ in range(n)]


def quality(readings: Readings, i: int = 0) -> Quality:
    return Quality(int(readings.quality[i]))


@pytest.mark.fault(8)
def test_fault_08_nonsense_is_no_reading_and_the_end_stop_is_full_scale(figure: Figures) -> None:
    late = 0
    for forced in (NO_COUNT, SATURATED_HIGH, -SATURATED_HIGH, FULL_COUNTS, FULL_COUNTS + 1):
        rig = Rig()
        rig.ticks(10)
        rig.forced = forced
        first = rig.tick()  # half of a window's weight is old, and all of the newest 100 scans are what they are
        told = quality(first) & (Quality.MISSING | Quality.SATURATED)
        late += not told
        readings = rig.ticks(2)[-1]
        if forced == NO_COUNT:
            assert not readings.valid[0]
            assert np.isnan(readings.power_w[0])
        else:
            assert readings.power_w[0] >= FULL_A * VOLTS * 0.999, "the mean of a rail times a sine would be nothing"
            assert first.power_w[0] >= 300.0
        assert readings.power_w[1] == pytest.approx(400.0, rel=0.01), "the other channel is not touched"
    figure(8, "ticks until nonsense or the end stop is told", late, 0, "")


@given(st.lists(st.sampled_from([None, NO_COUNT, SATURATED_HIGH, -SATURATED_HIGH, 0]), min_size=1, max_size=12))
def test_a_reading_is_a_number_within_full_scale_or_none(forced: Sequence[int | None]) -> None:
    rig = Rig()
    rig.ticks(3)
    for value in forced:
        rig.forced = value
        readings = rig.tick()
        watts = readings.power_w[0]
        assert readings.valid[0] == np.isfinite(watts)
        assert not readings.valid[0] or -1.0 <= watts <= FULL_A * VOLTS * 1.001
        if value in (SATURATED_HIGH, -SATURATED_HIGH):
            assert Quality.SATURATED in quality(readings)


def first_stuck_s(rig: Rig, seconds: float) -> float:
    """How long until the first outlet is not believed."""
    for k in range(round(10 * seconds)):
        if Quality.STUCK in quality(rig.tick()):
            return (k + 1) / 10.0
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.fault(9)
def test_fault_09_a_sensor_that_repeats_its_count_is_replaced_by_the_pdus_meter(figure: Figures) -> None:
    found_s = []
    for count in (900, -1500, 100):
        rig = Rig()
        rig.ticks(100)
        rig.forced = count
        found_s.append(first_stuck_s(rig, 10.0))
        readings = rig.tick()
        assert readings.power_w[0] == 300.0, "the PDU's own meter"
        assert Quality.SLOW_METER in quality(readings)
        assert quality(readings, 1) == Quality.OK
        rig.metered = False
        readings = rig.ticks(40)[-1]
        assert not readings.valid[0], "the meter is away as well"
        assert Quality.STALE | Quality.STUCK in quality(readings)
        rig.metered, rig.forced = True, None
        readings = rig.ticks(3)[-1]
        assert quality(readings) == Quality.OK
        assert readings.power_w[0] == pytest.approx(300.0, rel=0.01)
    figure(9, "a repeated count of an alternating current: found", max(found_s), 5.0, "s")


@pytest.mark.fault(9)
def test_fault_09_a_sensor_that_stays_while_the_meter_moves_is_not_believed(figure: Figures) -> None:
    """Still at zero: an open transformer, or a count repeated at the zero crossing."""
    rig = Rig()
    rig.ticks(50)
    rig.forced = 0
    zero_s = first_stuck_s(rig, 20.0)
    assert rig.tick().power_w[0] == 300.0
    rig.power_w[0] = 0.0
    assert Quality.STUCK not in quality(rig.ticks(31)[-1]), "both say nothing is drawn"
    steady = Rig()
    steady.ticks(100)
    held, steady.forced = steady.power_w[0], None
    sensors = StuckSensors(np.array([RATING_W]), np.array([VOLTS]), alternating=True)
    one = np.arange(1)

    def window(t_ns: int, watts: float) -> None:
        sensors.window(one, t_ns, np.array([watts]), np.array([-2.0]), np.array([2.0]), np.array([False]))

    moved_s = 0.0
    for tick in range(400):
        t_ns = tick * TICK_NS
        window(t_ns, held + tick % 3)  # noise
        if tick % 10 == 0:
            sensors.meter(0, t_ns, held if tick < 200 else held + 100.0)
        if sensors.stuck[0]:
            moved_s = (tick - 200) / 10.0
            break
    assert moved_s > 0.0
    for tick in range(400, 430):
        window(tick * TICK_NS, held + 100.0 + tick % 3)
    assert not sensors.stuck[0], "it moves again"
    figure(9, "a still sensor, polls 1 s apart: found after its meter moved", moved_s, 5.0, "s")
    figure(9, "all scans zero beside a load: found", zero_s, 5.0, "s")


def test_a_board_that_is_away_is_stale_and_believed_when_it_is_back() -> None:
    rig = Rig()
    rig.ticks(60)
    rig.power_w[0] = 800.0  # while nobody sees it but the meter
    for _ in range(80):
        readings = rig.tick(scans=0)
    assert quality(readings) == Quality.STALE
    for _ in range(8000):  # the scans of that time never came: the board's own index goes on
        rig.ring.push(rig.ring.head, rig.ring.head * MS, 0, 1 << 6, np.zeros(3, np.int32))
    readings = rig.ticks(3)[-1]
    assert quality(readings) & ~Quality.MISSING == Quality.OK
    assert readings.power_w[0] == pytest.approx(800.0, rel=0.01)
    assert not any(Quality.STUCK in quality(one) for one in rig.ticks(80))


def test_a_late_meter_accuses_nobody() -> None:
    """The draw steps and stays; the PDU's meter follows as late as 5 s after, or never moves at all."""
    for delay in (0, 1, 3, 5, 10_000):
        rig = Rig()
        rig.ticks(60)
        truth, rig.metered = list(rig.power_w), False
        told = truth[0]
        for second in range(1, 30):
            if second == 10:
                rig.power_w[0] = 700.0
            if second == 10 + delay:
                told = 700.0
            readings = rig.ticks(10)[-1]
            said = {1: told, 2: truth[1]}
            rig.features.observe("pdu", PduReading(rig.now_ns, rig.now_ns / S, said, {}, {}, {}))
            assert Quality.STUCK not in quality(readings), (delay, second)


def test_one_step_of_a_meter_that_tells_tenths_of_an_ampere_accuses_nobody() -> None:
    """A small outlet whose draw lies at the edge of such a step: 23 W are much of its rating, and nothing of its draw."""
    sensors = StuckSensors(np.array([300.0]), np.array([VOLTS]), alternating=True)
    one, good = np.arange(1), np.array([False])
    for tick in range(6000):
        watts = 148.6 if tick // 200 % 2 else 150.2
        sensors.window(one, tick * TICK_NS, np.array([watts]), np.array([-1.0]), np.array([1.0]), good)
        if tick % 10 == 0:
            sensors.meter(0, tick * TICK_NS, round(watts / VOLTS, 1) * VOLTS)
        assert not sensors.stuck[0], tick


@pytest.mark.fault(9)
def test_fault_09_recorded_loads_are_hardly_ever_accused(figure: Figures) -> None:
    """Every recorded series as the board's reading; as the PDU's: the mean of its last 2 s, 3 s late, in whole watts.

    All of them for the figure; otherwise half an hour of two of each group."""
    folder = Path(os.environ.get("RPI_SHARED", ROOT.parent / "shared")) / "data" / "traces"
    if not folder.is_dir():
        pytest.skip("needs the recordings in ../shared/data/traces, or RPI_SHARED")
    whole = os.environ.get("RPI_FIGURES") == "1"
    series, _ = load_bench("forecast_skill").read_series(folder, (), *((None, None) if whole else (2, 0.5)))
    accused, seconds = 0, 0.0
    for one in series:
        accused += accusations(one.tick, one.power_w, one.rating_w)
        seconds += one.duration_s
    figure(9, f"accused in {seconds / 3600.0:.0f} h of recordings, per 30 days", accused * MONTH_S / seconds, 1.0, "")


def accusations(tick: np.ndarray, power_w: np.ndarray, rating_w: float) -> int:
    """How often a recorded outlet's good sensor would be accused. [m] ticks of the readings, W."""
    at = np.unique(np.maximum.accumulate(tick // 10 * 10 + 10))  # polls, at whole seconds that have a reading before
    sums = np.concatenate([[0.0], np.cumsum(power_w)])
    begin, end = np.searchsorted(tick, at - 50), np.searchsorted(tick, at - 30)
    meter_w = np.where(end > begin, np.round((sums[end] - sums[begin]) / np.maximum(end - begin, 1)), np.nan)
    sensors = StuckSensors(np.array([rating_w]), np.array([VOLTS]), alternating=True)
    one, good = np.arange(1), np.array([False])
    found, before, k = 0, False, 0
    for poll, told_w in zip(at.tolist(), meter_w.tolist(), strict=True):
        while k < len(tick) and tick[k] <= poll:
            amps = power_w[k : k + 1] / VOLTS
            sensors.window(one, int(tick[k]) * TICK_NS, power_w[k : k + 1], -amps - 1.0, amps + 1.0, good)
            k += 1
        if told_w == told_w:
            sensors.meter(0, poll * TICK_NS, told_w)
        now = bool(sensors.stuck[0])
        found += now and not before
        before = now
    return found


@pytest.mark.fault(10)
def test_fault_10_a_reading_is_served_for_150_ms_and_not_longer(figure: Figures) -> None:
    rig = Rig()
    rig.ticks(10)
    newest_ns = rig.features.step(rig.now_ns, 0).t_mono_ns
    oldest_ms = 0.0
    for late_ns in range(0, 400 * MS, MS):
        if rig.features.step(newest_ns + late_ns, 0).valid[0]:
            oldest_ms = late_ns / MS
    assert oldest_ms == STALE_NS / MS
    figure(10, "oldest window that still counts as a reading", oldest_ms, 150.0, "ms")
