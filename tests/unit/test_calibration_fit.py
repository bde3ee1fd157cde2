"""The fit finds gain, offset and delay of a board with errors, and refuses, by name, what no fit can mend."""

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest
from calibration_rig import Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon._fastpath import core
from rpi_daemon.calibration import ChannelRecord, Instrument
from rpi_daemon.calibration_fit import Fit, Reference, Sensor, Step, measure
from rpi_daemon.drivers.sensors.plant import LoadBank

NOW = datetime(2026, 1, 2, tzinfo=UTC)
METER = Instrument(name="meter")
LOADS = ({0: (1.0, 1.0), 1: (1.0, 1.0), 2: (1.0, 0.5)}, {0: (5.0, 1.0), 1: (5.0, 1.0), 2: (5.0, 0.5)})


def calibrated(rig: Rig) -> dict[str, ChannelRecord]:
    rig.fit.steps.append(rig.step({}))
    for loads in LOADS:
        rig.fit.steps.append(rig.step(loads))
    return {record.name: record for record in rig.fit.records(NOW, METER)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gain_offset_and_delay_of_a_board_with_errors_are_found(seed: int) -> None:
    rig = Rig(seed)
    found = calibrated(rig)
    assert all(record.good for record in found.values()), [record.verdict for record in found.values()]
    for i, sensor in enumerate(rig.sensors):
        channel, record = rig.plant.channels[i], found[sensor.name]
        assert record.gain == pytest.approx(channel.scale / (1.0 + channel.gain_error), rel=2e-4)
        assert record.offset_counts == pytest.approx(channel.offset_counts, abs=100.0)  # of 8 million
        assert max(abs(item.error_percent) for item in record.residuals) < 0.1
        if sensor.kind == "current":
            voltage = rig.plant.channels[sensor.voltage[0]]
            lag_deg = channel.phase_error_deg - voltage.phase_error_deg
            extra_ns = record.delay_ns - sensor.delay_ns
            assert extra_ns * 1e-9 * 50.0 * 360.0 == pytest.approx(lag_deg, abs=0.02)


def test_a_dc_bus_has_an_offset_and_no_phase() -> None:
    rig = Rig(4, supply="dc", voltage_v=54.0, offset_sd_counts=20_000.0)
    found = calibrated(rig)
    for i in range(rig.n):
        channel, record = rig.plant.channels[i], found[f"pdu-a/{i + 1}"]
        assert record.good, record.verdict
        assert record.gain == pytest.approx(channel.scale / (1.0 + channel.gain_error), rel=5e-4)
        assert record.offset_counts == pytest.approx(channel.offset_counts, abs=300.0)
        assert {item.quantity for item in record.residuals} == {"A", "W"}


def test_line_to_line_outlets_are_in_step_with_both_voltages() -> None:
    """A load between two phases, by hand: the current lags by 2 degrees, the voltages differ in gain."""
    t_s = np.arange(3000)[:, None] / 1000.0
    angle = 2.0 * np.pi * 50.0 * t_s
    late = np.radians(2.0)
    a, b = (325.0 * np.sin(angle - shift) for shift in (0.0, 2.0 * np.pi / 3.0))
    amps = 0.01 * (a - b)
    lagging = 0.01 * 325.0 * np.sqrt(3.0) * np.sin(angle + np.pi / 6.0 - late)
    assert np.std(amps) == pytest.approx(np.std(lagging), rel=1e-3)
    counts = np.rint(np.concatenate([lagging, a, b], axis=1) * [1e5, 1e4, 1e4]).astype(np.int32)
    sensors = (
        Sensor(1, "current", "pdu-a/1", 1e-5, 0.0, 2**23, voltage=(1, 2)),
        Sensor(2, "voltage", "L1", 1e-4, 0.0, 2**23),
        Sensor(3, "voltage", "L2", 1e-4, 0.0, 2**23),
    )
    fit = Fit(sensors, dc=False)
    there = np.ones(3000, np.bool_)
    reference = Reference(amps=float(np.std(amps)), volts=float(np.std(a - b)), resistive=True)
    fit.steps = [
        Step((0,), measure(np.where([True, False, False], 0, counts), there, sensors), {}),
        Step((0,), measure(counts, there, sensors), {0: reference}),
    ]
    (record,) = fit.records(NOW, METER)
    assert record.good, record.verdict
    assert record.delay_ns == pytest.approx(2.0 / 360.0 / 50.0 * 1e9, rel=1e-3)


@settings(max_examples=30)
@given(
    gain_error=st.floats(-0.1, 0.1),
    offset=st.floats(-5000.0, 5000.0),
    lag_deg=st.floats(-5.0, 5.0),
    angle_deg=st.floats(25.0, 65.0),
    resistive=st.booleans(),
    frequency_hz=st.floats(47.0, 63.0),
)
def test_any_sensor_is_recovered(
    gain_error: float, offset: float, lag_deg: float, angle_deg: float, resistive: bool, frequency_hz: float
) -> None:
    turn = 2.0 * np.pi * frequency_hz * np.arange(2400) / 1000.0
    power_angle = 0.0 if resistive else np.radians(angle_deg)
    sensors = (
        Sensor(1, "current", "pdu-a/1", 1e-5, 3000.0, 2**21, voltage=(1,)),
        Sensor(2, "voltage", "L1", 1e-4, -7000.0, 2**23),
    )
    skew = 2.0 * np.pi * frequency_hz * 1e-9 * np.array([3000.0, -7000.0])

    def seen(amps: float) -> Step:
        current = amps * np.sqrt(2.0) * np.sin(turn - power_angle - np.radians(lag_deg) - skew[0])
        voltage = 230.0 * np.sqrt(2.0) * np.sin(turn - skew[1])
        counts = np.stack([current * (1.0 + gain_error) / 1e-5 + offset, voltage / 1e-4], axis=1)
        there = np.ones(len(turn), np.bool_)
        reference = Reference(amps, 230.0, amps * 230.0 * np.cos(power_angle), resistive)
        measured = measure(np.rint(counts).astype(np.int32), there, sensors)
        assert measured.frequency_hz == pytest.approx(frequency_hz, abs=0.05)
        return Step((0,), measured, {0: reference} if amps else {})

    fit = Fit(sensors, dc=False)
    fit.steps = [seen(0.0), seen(1.5), seen(10.0)]
    current = fit.records(NOW, METER)[0]
    assert current.good, current.verdict
    assert current.gain == pytest.approx(1e-5 / (1.0 + gain_error), rel=2e-4)
    assert current.offset_counts == pytest.approx(offset, abs=30.0)
    lag_ns = lag_deg / 360.0 / frequency_hz * 1e9
    assert current.delay_ns - 3000.0 == pytest.approx(lag_ns, abs=3000.0)  # 0.05 degrees


def complaint(rig: Rig, channel: int = 0, loads: dict[int, tuple[float, float]] | None = None) -> str:
    """What the fit says of a load step on a channel, the others drawing nothing."""
    rig.fit.steps.append(rig.step({}))
    step = rig.step({channel: (4.0, 1.0)} if loads is None else loads)
    rig.fit.steps.append(step)
    said = rig.fit.complaint(step, channel)
    assert said is not None
    record = rig.fit.records(NOW, METER)[channel if loads is not None else 0]
    assert not record.good
    assert record.verdict in (said, rig.fit.complaint(rig.fit.steps[0], channel))
    return said


def swapped(rig: Rig) -> None:
    rig.board.swap(0, 2)


def reversed_(rig: Rig) -> None:
    rig.board.turn(0)


def other_phase(rig: Rig) -> None:
    rig.plant.rephase(0, 2)


def other_phase_reversed(rig: Rig) -> None:
    rig.plant.rephase(0, 1)
    rig.board.turn(0)


def dead(rig: Rig) -> None:
    rig.board.disconnect(0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (swapped, "channel 1 (pdu-a/1): it shows 0.00 A of 3.98 A, and channel 3 (pdu-a/3) shows"),
        (reversed_, "write ':reversed' behind its channel"),
        (other_phase, "it is on L3; correct `phases`"),
        (other_phase_reversed, "it is on L2, and the wrong way round"),
        (dead, "dead: it shows"),
    ],
)
def test_wiring_is_named(fault: Callable[[Rig], None], words: str) -> None:
    rig = Rig(offset_sd_counts=0.0, noise_a=1e-5)
    fault(rig)
    assert words in complaint(rig)


def test_wiring_is_named_at_a_reactive_load_too() -> None:
    rig = Rig()
    rig.board.turn(0)
    assert "write ':reversed' behind" in complaint(rig, 0, {0: (4.0, 0.5)})
    rig = Rig()
    rig.plant.rephase(0, 2)
    assert "it is on L3" in complaint(rig, 0, {0: (4.0, 0.8)})


def test_a_delay_that_no_sensor_has_is_refused() -> None:
    rig = Rig(phase_error_sd_deg=0.0)
    rig.fit.steps = [rig.step({}), rig.step({0: (4.0, 0.97)}, resistive=True)]
    assert "+14 degrees late: no sensor is" in rig.fit.records(NOW, METER)[0].verdict


def test_transformers_swapped_under_different_loads_are_told_in_one_step() -> None:
    rig = Rig()
    rig.board.swap(0, 1)
    assert "swapped" in complaint(rig, 0, {0: (2.0, 1.0), 1: (5.0, 1.0)})


def test_transformers_swapped_under_similar_loads_are_told_by_two_steps() -> None:
    rig = Rig(n_outlets=6)  # 1 and 4 on one phase
    rig.board.swap(0, 3)
    rig.fit.steps = [rig.step({}), *(rig.step({0: (a, 1.0), 3: (b, 1.0)}) for a, b in ((2.0, 2.2), (5.0, 4.8)))]
    first, fourth = (record for record in rig.fit.records(NOW, METER) if record.kind == "current")
    assert "it follows the load of channel 4 (pdu-a/4): these two transformers are swapped" in first.verdict
    assert "it follows the load of channel 1" in fourth.verdict


def test_what_is_turned_by_the_configuration_is_turned_back_by_it() -> None:
    rig = Rig()
    rig.sensors = tuple(
        Sensor(*(getattr(s, name) for name in Sensor.__slots__[:-1]), -1.0) if s.number == 1 else s for s in rig.sensors
    )
    rig.fit = Fit(rig.sensors, dc=False)
    assert "take ':reversed' from its channel" in complaint(rig)
    rig.fit = Fit(rig.sensors, dc=False)
    rig.board.turn(0)
    assert calibrated(rig)["pdu-a/1"].good


@pytest.mark.parametrize(
    ("options", "amps", "words"),
    [
        ({}, 0.2, "is below 5% of range"),
        ({}, 7.5, "samples are at full scale"),
        ({"noise_a": 0.06}, 4.0, "it is noisy, or something is drawn"),
    ],
)
def test_what_no_gain_can_be_taken_from_is_refused(options: dict[str, float], amps: float, words: str) -> None:
    rig = Rig(**options)
    rig.fit.steps = [rig.step({}), rig.step({0: (amps, 1.0)})]
    verdict = rig.fit.records(NOW, METER)[0].verdict
    assert words in verdict, verdict
    assert verdict.startswith("channel 1 (pdu-a/1)")


def test_a_dead_voltage_tap_is_blamed_and_not_the_current() -> None:
    rig = Rig()
    rig.board.disconnect(rig.n)
    rig.fit.steps = [rig.step({}), rig.step({0: (4.0, 1.0)})]
    current, voltage = rig.fit.records(NOW, METER)
    assert "nothing on its voltage, channel 4 (L1): look at that tap" in current.verdict
    assert "channel 4 (L1): it shows 0.0 V while the reference says 2" in voltage.verdict
    assert not current.good
    assert not voltage.good


def test_neighbours_that_draw_all_the_time_are_not_taken_for_a_swap() -> None:
    """Only outlet 1 is emptied at zero; outlet 2 runs a server of about the same current, before and after."""
    rig = Rig()
    rig.board.disconnect(0)
    busy = {1: (4.0, 1.0)}
    rig.fit.steps = [rig.step(busy, channels=[0]), rig.step({0: (4.0, 1.0), **busy}, channels=[0])]
    rig.fit.steps[0] = Step((0,), rig.fit.steps[0].measured, {})
    step = rig.fit.steps[1]
    step = Step((0,), step.measured, {0: step.references[0]})
    assert "dead: it shows 0.00 A while" in str(rig.fit.complaint(step, 0))


def test_a_load_that_moves_is_refused() -> None:
    rig = Rig()
    rig.fit.steps = [rig.step({})]
    steady = rig.step({0: (3.0, 1.0)}, scans=1000)
    assert rig.fit.complaint(steady, 0) is None
    parts = []
    for amps in (3.0, 3.3):
        rig.plant.set_load_bank(0, LoadBank(amps))
        parts.append(rig.counts(1000))
    moved = measure(np.concatenate(parts), np.ones(2000, np.bool_), rig.sensors)
    assert "let the load settle" in str(rig.fit.complaint(Step((0,), moved, steady.references), 0))


def test_a_sensor_that_is_not_linear_is_refused_with_what_is_left() -> None:
    rig = Rig()
    rig.fit.steps = [rig.step({}), rig.step({0: (1.0, 1.0)}), rig.step({0: (5.0, 1.0)})]
    bent = rig.fit.steps[1]
    rig.fit.steps[1] = Step(bent.channels, bent.measured, {0: Reference(0.98, 229.0, None, True)})
    verdict = rig.fit.records(NOW, METER)[0].verdict
    assert "the sensor is not linear, or a reference is wrong" in verdict


def test_missing_scans_are_left_out_and_too_many_refused() -> None:
    rig = Rig()
    rig.fit.steps = [rig.step({})]
    rig.plant.set_load_bank(0, LoadBank(4.0))
    counts = rig.counts(3000)
    there = np.ones(3000, np.bool_)
    whole = measure(counts, there, rig.sensors)
    there[700:705] = False
    holed = measure(counts, there, rig.sensors)
    assert holed.rms[0] == pytest.approx(whole.rms[0], rel=1e-3)
    assert holed.missing[0] == pytest.approx(2 / 29)
    there[::150] = False
    step = Step((0,), measure(counts, there, rig.sensors), {0: Reference(4.0, 230.0, None, True)})
    assert "of its windows have missing samples" in str(rig.fit.complaint(step, 0))


def test_without_a_load_that_tells_it_the_phase_stays_the_boards_word() -> None:
    rig = Rig()
    rig.fit.steps = [rig.step({}), rig.step({0: (4.0, 1.0)}, resistive=False)]
    record = rig.fit.records(NOW, METER)[0]
    assert record.good
    assert not record.phase_known
    assert record.delay_ns == rig.sensors[0].delay_ns
    assert "phase" in record.verdict


def test_without_a_zero_step_there_is_no_gain() -> None:
    rig = Rig()
    rig.fit.steps = [rig.step({0: (4.0, 1.0)})]
    assert "no zero step" in rig.fit.records(NOW, METER)[0].verdict


def test_windows_are_the_kernels_own() -> None:
    """RMS and power of a step are the mean of what the daemon's own kernel makes of the same scans."""
    rig = Rig(gain_error_sd=0.0, phase_error_sd_deg=0.0, offset_sd_counts=0.0, skew_step_ns=0)
    step = rig.step({0: (3.0, 0.7)}, scans=2000)
    plant = rig.plant
    assert step.measured.rms[0] * plant.channels[0].scale == pytest.approx(step.references[0].amps, rel=1e-3)
    ring = core.Ring(bytearray(core.Ring.bytes_needed(6, 4000)), n_channels=6, capacity=4000)
    counts = rig.counts(2000)
    for k, row in enumerate(counts):
        ring.push(k, k * 1_000_000, k, 0, np.ascontiguousarray(row))
    gain = [channel.scale for channel in plant.channels]
    kernel = core.WindowKernel(6, outlets=[(0, 3, 1.0)], gain=gain)
    watts, amps = [], []
    for end in range(200, 2001, 100):
        assert kernel.compute(ring, end) == core.WINDOW_OK
        watts.append(kernel.out[0, core.F_POWER_W])
        amps.append(kernel.out[0, core.F_RMS_A])
    seen = measure(counts, np.ones(2000, np.bool_), rig.sensors)
    assert seen.rms[0] * gain[0] == pytest.approx(np.sqrt(np.mean(np.square(amps))), rel=1e-5)
    assert seen.product[0, 0] * gain[0] * gain[3] == pytest.approx(np.mean(watts), rel=1e-5)
