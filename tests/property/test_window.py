"""The window kernel against its twin, and against waveforms whose power and RMS are known in closed form."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.delay import delay_taps, lag_for, shared_basis
from rpi_daemon._fastpath.reference_window import ReferenceKernel
from rpi_daemon.records import Quality

Array = NDArray[np.float64]
NO_COUNT = core.COUNT_FAULT
COUNTS_PER_UNIT = 1e8  # fine enough that quantisation is far below what is asserted
RMS_LIMIT = 2e-4  # of reading
POWER_LIMIT = 2e-4  # of apparent power
KNOWN_RMS, KNOWN_POWER = 4.1e-5, 8.2e-5  # worst case over all mixes of harmonics; see worst_case()
KNOWN_DELAYED_POWER = 1e-4  # with 2 degrees and 100 us taken out
TURN = np.pi * np.arange(core.WINDOW_SCANS) / core.WINDOW_HOP
WEIGHTS = 1 / 2 - 9 / 16 * np.cos(TURN) + 1 / 16 * np.cos(3 * TURN)
FEW = settings(max_examples=60)


def ring_of(
    counts: NDArray[Any],
    *,
    first: int = 0,
    lost: frozenset[int] = frozenset(),
    capacity: int = 0,
    status: Mapping[int, int] = MappingProxyType({}),
) -> core.Ring:
    """Scans `first` .. of `counts` [n, n_channels]; those whose row is in `lost` are never written. 1 ms apart.

    `status`: the board's status bits of a row, 0 if not given.
    """
    n, channels = counts.shape
    capacity = capacity or n
    memory = np.zeros(core.Ring.bytes_needed(channels, capacity), np.uint8)
    ring = core.Ring(memory, n_channels=channels, capacity=capacity)
    rows = np.ascontiguousarray(counts, np.int32)
    for k in range(n):
        if k not in lost:
            ring.push(first + k, (first + k) * 1_000_000, first + k, status.get(k, 0), rows[k])
    return ring


def newest(kernel: Any, ring: core.Ring) -> Array:
    assert kernel.compute(ring, ring.head) == core.WINDOW_OK
    return np.array(kernel.out)


def column(out: Array, feature: int) -> float:
    return float(out[0, feature])


class Wave:
    """A sum of harmonics of `f_hz`: amplitudes and phases in order, the first is the fundamental."""

    def __init__(self, f_hz: float, amplitude: list[float], phase: list[float]) -> None:
        order = np.arange(1, len(amplitude) + 1)
        keep = order * f_hz < 450.0
        self.f_hz = f_hz
        self.order, self.amplitude, self.phase = order[keep], np.array(amplitude)[keep], np.array(phase)[keep]

    def at(self, t_s: Array) -> Array:
        angle = 2 * np.pi * self.f_hz * np.multiply.outer(t_s, self.order) + self.phase
        return np.asarray(np.cos(angle) @ self.amplitude)

    @property
    def rms(self) -> float:
        return float(np.sqrt(np.sum(self.amplitude**2) / 2))

    def power_with(self, other: "Wave") -> float:
        n = min(len(self.amplitude), len(other.amplitude))
        turn = np.cos(self.phase[:n] - other.phase[:n])
        return float(np.sum(self.amplitude[:n] * other.amplitude[:n] * turn) / 2)


ORDERS = 9
IN_BAND = 6  # orders below 450 Hz at every line frequency
PHASES = st.lists(st.floats(0, 2 * np.pi), min_size=ORDERS, max_size=ORDERS)
AMPLITUDES = st.lists(st.floats(0, 1), min_size=ORDERS, max_size=ORDERS)


@st.composite
def waves(draw: st.DrawFn, f_hz: float) -> Wave:
    """Any odd and even harmonics; the largest is the fundamental or another that is in the band."""
    amplitude = draw(AMPLITUDES)
    amplitude[draw(st.integers(0, IN_BAND - 1))] = 1.0
    return Wave(f_hz, amplitude, draw(PHASES))


@st.composite
def racks(draw: st.DrawFn) -> tuple[Wave, Wave]:
    f_hz = draw(st.floats(45, 65))
    return draw(waves(f_hz)), draw(waves(f_hz))


def counts_of(*signals: Array) -> NDArray[np.int32]:
    return np.rint(np.stack(signals, axis=1) * COUNTS_PER_UNIT).astype(np.int32)


def kernel_of(n_channels: int = 2, voltage: int | tuple[int, int] = 1, **options: Any) -> core.WindowKernel:
    gain = np.full(n_channels, 1 / COUNTS_PER_UNIT)
    return core.WindowKernel(n_channels, outlets=[(0, voltage, 1.0)], gain=gain, **options)


T_S = np.arange(400) / 1000.0


# --- accuracy


@FEW
@given(racks())
def test_rms_and_power_of_harmonics_are_within_their_limits(rack: tuple[Wave, Wave]) -> None:
    current, voltage = rack
    out = newest(kernel_of(), ring_of(counts_of(current.at(T_S), voltage.at(T_S))))
    assert KNOWN_RMS <= RMS_LIMIT
    assert KNOWN_POWER <= POWER_LIMIT
    assert column(out, core.F_RMS_A) == pytest.approx(current.rms, rel=KNOWN_RMS)
    assert column(out, core.F_VOLTAGE_V) == pytest.approx(voltage.rms, rel=KNOWN_RMS)
    apparent = current.rms * voltage.rms
    assert abs(column(out, core.F_POWER_W) - current.power_with(voltage)) <= KNOWN_POWER * apparent
    assert column(out, core.F_APPARENT_VA) == pytest.approx(apparent, rel=2 * KNOWN_RMS)


def weights_of(kernel: Any) -> Array:
    """The weights that a kernel applies, oldest scan first: what one scan counts for at every place in the window."""
    counts = np.zeros((399, 2), np.int32)
    counts[199] = 1000
    ring = ring_of(counts)
    weights = np.empty(core.WINDOW_SCANS)
    for end in range(200, 400):
        assert kernel.compute(ring, end) == core.WINDOW_OK
        weights[399 - end] = kernel.out[0, core.F_POWER_W] * core.WINDOW_HOP / 1000**2
    return weights


@pytest.mark.parametrize("make", [core.WindowKernel, ReferenceKernel])
def test_weights_are_never_negative_and_add_up_to_one_with_the_next_window(make: Any) -> None:
    weights = weights_of(make(2, outlets=[(0, 1, 1.0)], gain=[1.0, 1.0]))
    np.testing.assert_allclose(weights, WEIGHTS, atol=1e-15)
    assert weights.min() >= -1e-16
    np.testing.assert_allclose(weights[:100] + weights[100:], 1.0, atol=2e-15)
    assert weights.sum() == pytest.approx(core.WINDOW_HOP, rel=1e-14)
    hann = np.sin(TURN / 2) ** 2
    noise = np.linalg.norm(weights) / np.linalg.norm(hann)
    assert noise == pytest.approx(1.046, abs=5e-4)


def worst_case(f_hz: float, delay: float = 0.0, taps: Array | None = None) -> float:
    """Largest error of power, over apparent power, that any mix of harmonics of f_hz in V and I at all can cause.

    Power is a bilinear form of the harmonics' amplitudes: its largest deviation from the truth is a singular value. The
    same form with V = I is RMS^2. taps: the filter that delays the voltage by `delay` samples, nearly.
    """
    k = np.arange(core.WINDOW_SCANS)
    turns = np.arange(1, int(449.999999 // f_hz) + 1) * f_hz / 1000
    wave = np.exp(2j * np.pi * np.multiply.outer(turns, k))
    volts = wave
    if taps is not None:
        lag = len(taps) // 2
        delayed = np.exp(2j * np.pi * np.multiply.outer(turns, np.arange(-lag, lag + 1))) @ taps
        volts = wave * (delayed * np.exp(2j * np.pi * turns * delay))[:, None]
    form = np.concatenate([wave.real, wave.imag]) * WEIGHTS @ np.concatenate([volts.real, volts.imag]).T
    return float(np.linalg.norm(form / core.WINDOW_HOP - np.eye(len(form)) / 2, 2)) / 0.5


LINES_HZ = np.append(np.arange(45, 65, 0.1), 65.0)


def test_no_mix_of_odd_and_even_harmonics_passes_the_known_limit() -> None:
    """Over all amplitudes and phases at once: an even and an odd harmonic beat at the line frequency, bins 9 to 13."""
    power = max(worst_case(f_hz) for f_hz in LINES_HZ)
    assert power == pytest.approx(8.09e-5, rel=0.01)
    assert power <= KNOWN_POWER <= POWER_LIMIT
    assert 1 - np.sqrt(1 - power) <= KNOWN_RMS <= RMS_LIMIT  # RMS is low by that at worst, high by less


def test_no_mix_of_harmonics_passes_the_limit_with_delays_corrected() -> None:
    """2 degrees of 45 Hz and 100 us of skew: 0.22 samples, early or late, as the kernel mixes its 48 filters."""
    delays = np.linspace(-0.2235, 0.2235, 48)
    mix, basis = shared_basis(delay_taps(delays, lag_for(delays)))
    errors = [worst_case(f_hz, d, taps) for d, taps in zip(delays, mix @ basis, strict=True) for f_hz in LINES_HZ[::5]]
    assert KNOWN_POWER < max(errors) <= KNOWN_DELAYED_POWER <= POWER_LIMIT


@FEW
@given(racks(), st.floats(-2.0, 2.0), st.floats(-100_000, 100_000))
def test_phase_delay_and_scan_skew_are_taken_out(rack: tuple[Wave, Wave], degrees: float, skew_ns: float) -> None:
    current, voltage = rack
    delay_s = degrees / 360.0 / current.f_hz  # the transformer shows the current so much later
    counts = counts_of(current.at(T_S - delay_s + skew_ns * 1e-9), voltage.at(T_S))
    kernel = kernel_of(delay_ns=[delay_s * 1e9 - skew_ns, 0.0])
    out = newest(kernel, ring_of(counts))
    apparent = current.rms * voltage.rms
    assert abs(column(out, core.F_POWER_W) - current.power_with(voltage)) <= KNOWN_DELAYED_POWER * apparent
    assert column(out, core.F_RMS_A) == pytest.approx(current.rms, rel=KNOWN_RMS)


def test_two_degrees_left_uncorrected_show() -> None:
    """The same check can fail: PF 0.5 and 2 degrees are 3 % of apparent power."""
    current, voltage = Wave(50.0, [1.0], [np.pi / 3]), Wave(50.0, [1.0], [0.0])
    counts = counts_of(current.at(T_S - 2 / 360 / 50), voltage.at(T_S))
    error = column(newest(kernel_of(), ring_of(counts)), core.F_POWER_W) - current.power_with(voltage)
    assert abs(error) / 0.5 == pytest.approx(0.0308, abs=1e-3)
    corrected = newest(kernel_of(delay_ns=[2 / 360 / 50 * 1e9, 0.0]), ring_of(counts))
    assert column(corrected, core.F_POWER_W) == pytest.approx(current.power_with(voltage), abs=1e-5)


@pytest.mark.parametrize(("delay_ms", "group_delay"), [(1.0, 30), (-3.0, 32), (7.35, 36), (8.0, 36)])
def test_delays_of_whole_samples_are_shifts(delay_ms: float, group_delay: int) -> None:
    current, voltage = Wave(50.0, [1.0, 0.1, 0.3], [1.0, 2.0, 3.0]), Wave(50.0, [1.0, 0.0, 0.1], [0.0, 0.0, 1.0])
    kernel = kernel_of(delay_ns=[delay_ms * 1e6, 0.0])
    out = newest(kernel, ring_of(counts_of(current.at(T_S - delay_ms * 1e-3), voltage.at(T_S))))
    assert column(out, core.F_POWER_W) == pytest.approx(current.power_with(voltage), abs=POWER_LIMIT / 2)
    assert kernel.group_delay == group_delay


def test_line_to_line_is_the_difference_of_two_corrected_voltages() -> None:
    one, two = Wave(60.0, [1.0], [0.0]), Wave(60.0, [1.0], [-2 * np.pi / 3])
    current = Wave(60.0, [1.0], [np.pi / 6])  # in phase with one - two
    delay_s = np.array([50e-6, -30e-6, 80e-6])
    counts = counts_of(current.at(T_S - delay_s[0]), one.at(T_S - delay_s[1]), two.at(T_S - delay_s[2]))
    out = newest(kernel_of(3, (1, 2), delay_ns=delay_s * 1e9), ring_of(counts))
    assert column(out, core.F_POWER_W) == pytest.approx(np.sqrt(3) / 2, rel=POWER_LIMIT)
    assert column(out, core.F_VOLTAGE_V) == pytest.approx(np.sqrt(3 / 2), rel=RMS_LIMIT)
    straight = newest(kernel_of(3, (1, 2)), ring_of(counts_of(current.at(T_S), one.at(T_S), two.at(T_S))))
    assert column(straight, core.F_POWER_W) == pytest.approx(np.sqrt(3) / 2, rel=POWER_LIMIT)
    assert column(straight, core.F_POWER_FACTOR) == pytest.approx(1.0, rel=RMS_LIMIT)


def test_white_noise_adds_no_more_than_its_standard_error() -> None:
    rng = np.random.default_rng(20)
    k, sigma_a, sigma_v, rounds = np.arange(core.WINDOW_SCANS), 0.02, 0.01, 400
    current, voltage = Wave(52.3, [1.0, 0.0, 0.3], [0.7, 0.0, 1.0]), Wave(52.3, [2.0, 0.0, 0.1], [0.0, 0.0, 0.5])
    t_s = k / 1000.0
    i, v, w = current.at(t_s), voltage.at(t_s), WEIGHTS / core.WINDOW_HOP
    clean = newest(kernel_of(), ring_of(counts_of(i, v)))
    se_power = np.sqrt(np.sum(w**2 * (v**2 * sigma_a**2 + i**2 * sigma_v**2 + sigma_a**2 * sigma_v**2)))
    se_square = np.sqrt(np.sum(w**2 * (4 * i**2 * sigma_a**2 + 2 * sigma_a**4)))
    power, square = np.empty(rounds), np.empty(rounds)
    for n in range(rounds):
        counts = counts_of(i + sigma_a * rng.standard_normal(200), v + sigma_v * rng.standard_normal(200))
        out = newest(kernel_of(), ring_of(counts))
        power[n] = (column(out, core.F_POWER_W) - column(clean, core.F_POWER_W)) / se_power
        # the noise's own power belongs to the reading
        square[n] = (column(out, core.F_RMS_A) ** 2 - column(clean, core.F_RMS_A) ** 2 - sigma_a**2) / se_square
    for score in (power, square):
        assert np.abs(score).max() < 4.0
        assert score.std() == pytest.approx(1.0, abs=0.12)


BURSTS = st.lists(
    st.tuples(st.integers(200, 799), st.integers(-30_000, 30_000), st.integers(-30_000, 30_000)),
    min_size=1,
    max_size=30,
)


@FEW
@given(BURSTS, st.booleans())
def test_energy_of_a_burst_anywhere_adds_up(burst: list[tuple[int, int, int]], filtered: bool) -> None:
    counts = np.zeros((1100, 2), np.int32)
    for k, amps, volts in burst:
        counts[k] = amps, volts
    energy = float(np.sum(counts[:, 0].astype(np.int64) * counts[:, 1]))
    ring = ring_of(counts)
    kernel = core.WindowKernel(
        2, outlets=[(0, 1, 1.0)], gain=[1.0, 1.0], delay_ns=[1_000_000.0, 0.0] if filtered else None
    )
    if filtered:  # one sample late
        energy = float(np.sum(counts[1:, 0].astype(np.int64) * counts[:-1, 1]))
    total = 0.0
    for end in range(300, 1101, 100):
        assert kernel.compute(ring, end) == core.WINDOW_OK
        total += kernel.out[0, core.F_POWER_W] * core.WINDOW_HOP
    scale = float(np.sum(np.abs(counts[:, 0].astype(np.float64)) * np.abs(counts[:, 1]).max())) or 1.0
    assert total == pytest.approx(energy, abs=(1e-5 if filtered else 1e-12) * scale)


@FEW
@given(
    st.integers(-(2**23), 2**23),
    st.integers(-(2**23), 2**23),
    st.floats(1e-6, 1.0),
    st.floats(1e-6, 1.0),
    st.floats(-100, 100),
)
def test_direct_current_is_exact_to_rounding(
    amps: int, volts: int, gain_a: float, gain_v: float, offset: float
) -> None:
    ring = ring_of(np.tile(np.array([[amps, volts]]), (200, 1)))
    kernel = core.WindowKernel(
        2, outlets=[(0, 1, 1.0)], gain=[gain_a, gain_v], offset_counts=[offset, 0.0], delay_ns=[1e5, 0.0], dc=True
    )
    out = newest(kernel, ring)
    a, v = gain_a * (amps - offset), gain_v * volts
    assert kernel.group_delay == 0
    assert column(out, core.F_POWER_W) == pytest.approx(a * v, rel=1e-13)
    assert column(out, core.F_RMS_A) == pytest.approx(abs(a), rel=1e-13)
    assert column(out, core.F_VOLTAGE_V) == pytest.approx(abs(v), rel=1e-13)
    assert column(out, core.F_MIN_A) == column(out, core.F_MAX_A) == pytest.approx(a, rel=1e-15)
    assert column(out, core.F_STEP) == pytest.approx(0.0, abs=1e-12 * abs(a * v))


@pytest.mark.parametrize(
    ("order", "share", "power_error", "rms_error"),
    [
        (15, 0.03, 0.030, 0.030),  # 937.5 Hz folds onto the fundamental: all of it counts as power
        (16, 0.05, 0.0, 0.00125),  # 1000 Hz folds onto DC
        (14, 0.03, 0.0, 0.0),  # 875 Hz folds onto the second harmonic, which has no voltage
    ],
)
def test_without_the_boards_filter_62_5_hz_is_wrong(
    order: int, share: float, power_error: float, rms_error: float
) -> None:
    """At 1000 / 16 Hz harmonics above 500 Hz fold exactly onto lower ones, for ever. The board must filter them."""
    t_s = np.arange(200) / 1000.0
    angle = 2 * np.pi * 62.5 * t_s
    clean, dirty = np.cos(angle), np.cos(angle) + share * np.cos(order * angle)
    voltage = np.cos(angle)
    true_rms = np.sqrt((1 + share**2) / 2)
    out = newest(kernel_of(), ring_of(counts_of(dirty, voltage)))
    assert (column(out, core.F_POWER_W) - 0.5) / 0.5 == pytest.approx(power_error, abs=2e-4)
    assert column(out, core.F_RMS_A) / true_rms - 1 == pytest.approx(rms_error, abs=7e-4)
    filtered = newest(kernel_of(), ring_of(counts_of(clean, voltage)))
    assert column(filtered, core.F_POWER_W) == pytest.approx(0.5, rel=POWER_LIMIT)
    assert column(filtered, core.F_RMS_A) == pytest.approx(np.sqrt(0.5), rel=RMS_LIMIT)


@pytest.mark.parametrize(("delay", "limit"), [(0.111, 2.5e-5), (-0.25, 5e-5), (0.5, 7e-5), (2.4, 7e-5)])
def test_delay_filters_are_flat_up_to_450_hz(delay: float, limit: float) -> None:
    f = np.linspace(0, 0.45, 2001)
    lag = lag_for(np.array([delay]))
    taps = delay_taps(np.array([delay]), lag)[0]
    response = np.exp(2j * np.pi * np.multiply.outer(f, np.arange(-lag, lag + 1))) @ taps
    error = np.abs(response - np.exp(-2j * np.pi * f * delay))
    assert error.max() < limit
    assert error[0] < 1e-14
    assert taps.sum() == pytest.approx(1.0, abs=1e-14)


def test_a_few_filters_serve_all_delays() -> None:
    delays = np.linspace(-0.25, 0.25, 48)
    taps = delay_taps(delays, lag_for(delays))
    mix, basis = shared_basis(taps)
    assert len(basis) <= 6
    f = np.linspace(0, 0.5, 501)
    n = np.arange(taps.shape[1])
    response = np.exp(2j * np.pi * np.multiply.outer(f, n)) @ (mix @ basis - taps).T
    assert np.abs(response).max() < 1e-4 / 2  # sum over taps of what the rank leaves out


# --- the unweighted features and the step


def test_peak_min_max_and_crest_are_of_the_newest_hundred_scans() -> None:
    counts = np.full((300, 2), 100)
    counts[199, 0] = 10_000  # just outside
    counts[210, 0], counts[220, 0] = -700, 500
    out = newest(core.WindowKernel(2, outlets=[(0, 1, 1.0)], gain=[0.01, 1.0]), ring_of(counts))
    assert column(out, core.F_MIN_A) == -7.0
    assert column(out, core.F_MAX_A) == 5.0
    assert column(out, core.F_PEAK_A) == 7.0
    assert column(out, core.F_CREST) == pytest.approx(7.0 / column(out, core.F_RMS_A))
    turned = newest(core.WindowKernel(2, outlets=[(0, 1, -1.0)], gain=[0.01, 1.0]), ring_of(counts))
    assert (column(turned, core.F_MIN_A), column(turned, core.F_MAX_A)) == (-5.0, 7.0)
    assert column(turned, core.F_POWER_W) == pytest.approx(-column(out, core.F_POWER_W), rel=1e-14)


@pytest.mark.parametrize("at", range(220, 300, 20))
def test_a_step_of_power_shows_in_the_window_it_happens_in(at: int) -> None:
    counts = np.full((300, 2), 100)
    counts[at:, 0] = 300
    out = newest(core.WindowKernel(2, outlets=[(0, 1, 1.0)], gain=[0.01, 1.0]), ring_of(counts))
    # full height once a 40 ms mean lies wholly after the step; half a Hann (9.5 or 10.5 of 20) before
    assert column(out, core.F_STEP) == pytest.approx(200.0 if at <= 260 else 105.0, abs=1e-9)


# --- missing and saturated samples, twin


def test_saturated_samples_count_as_full_scale_and_are_named() -> None:
    counts = np.full((200, 2), 100)
    counts[150, 0], counts[160, 0], counts[170, 0] = core.COUNT_HIGH, core.COUNT_LOW, 1000
    out = newest(
        core.WindowKernel(2, outlets=[(0, 1, 1.0)], gain=[0.01, 1.0], full_scale_counts=[1000, 1000]), ring_of(counts)
    )
    assert column(out, core.F_SATURATED) == 3
    assert column(out, core.F_MAX_A) == 10.0
    assert column(out, core.F_MIN_A) == -10.0
    assert int(column(out, core.F_QUALITY)) == Quality.SATURATED
    assert column(out, core.F_MISSING) == 0


@pytest.mark.parametrize("make", [core.WindowKernel, ReferenceKernel])
def test_a_window_that_a_start_lies_in_is_not_ready(make: Any) -> None:
    counts = np.full((500, 2), 100, np.int32)
    memory = np.zeros(core.Ring.bytes_needed(2, 500), np.uint8)
    ring = core.Ring(memory, n_channels=2, capacity=500)
    for k in range(500):
        ring.push(k, k, k, 0, counts[k], flags=core.SCAN_FIRST if k == 237 else 0)
    kernel = make(2, outlets=[(0, 1, 1.0)], gain=[0.01, 1.0])
    ready = [end for end in range(200, 501) if kernel.compute(ring, end) == core.WINDOW_OK]
    assert ready == [*range(200, 238), *range(437, 501)]


def test_a_faulty_voltage_channel_leaves_current_alone() -> None:
    counts = np.full((200, 2), 100)
    counts[:, 1] = NO_COUNT
    out = newest(core.WindowKernel(2, outlets=[(0, 1, 1.0)], gain=[0.01, 1.0]), ring_of(counts))
    assert column(out, core.F_RMS_A) == pytest.approx(1.0)
    assert np.isnan(out[0, [core.F_POWER_W, core.F_VOLTAGE_V, core.F_APPARENT_VA, core.F_POWER_FACTOR]]).all()
    assert int(column(out, core.F_QUALITY)) == Quality.MISSING


@FEW
@given(racks(), st.integers(200, 398), st.booleans())
def test_a_lost_scan_costs_its_own_weight_and_no_more(rack: tuple[Wave, Wave], lost: int, filtered: bool) -> None:
    current, voltage = rack
    delay_s = 2 / 360 / current.f_hz if filtered else 0.0
    i, v = current.at(T_S), voltage.at(T_S)
    ring = ring_of(counts_of(current.at(T_S - delay_s), v), lost=frozenset({lost}))
    out = newest(kernel_of(delay_ns=[delay_s * 1e9, 0.0]), ring)
    apparent, power = current.rms * voltage.rms, current.power_with(voltage)
    weight = 1.0 / core.WINDOW_HOP  # at most, in the middle of the window
    # filtered: the straight line over the hole is off by at most a sample's change, through taps of 0.11 or less
    beside = 0.25 * weight * np.abs(np.diff(v)).max() * np.abs(i).max() if filtered else 0.0
    bound = POWER_LIMIT * apparent + 1.02 * weight * np.abs(i * v - power).max() + beside
    assert abs(column(out, core.F_POWER_W) - power) <= bound
    square = current.rms**2
    assert abs(column(out, core.F_RMS_A) ** 2 - square) <= 2 * RMS_LIMIT * square + 1.02 * weight * np.abs(
        i**2 - square
    ).max() + (0.01 * weight * square)
    assert column(out, core.F_MISSING) == (1 if lost >= 300 else 0)


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """A board in any state: channels, outlets of every kind, lost scans, in-band codes, delays, ring places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_current, n_voltage = draw(st.integers(1, 9)), draw(st.integers(0, 3))
    channels = n_current + n_voltage
    n = draw(st.integers(280, 330))
    t = np.arange(n)[:, None]
    counts = 20_000 * np.sin(0.31 * t + rng.uniform(0, 6, channels)) + rng.normal(0, 300, (n, channels))
    for code in (NO_COUNT, core.COUNT_HIGH, core.COUNT_LOW):
        for _ in range(draw(st.integers(0, 4))):
            counts[rng.integers(n), rng.integers(channels)] = code
    if draw(st.booleans()):  # one channel goes silent for a while
        counts[rng.integers(n) :, rng.integers(channels)] = NO_COUNT
    voltages: list[Any] = [-1, *range(n_current, channels)]
    if n_voltage >= 2:
        voltages += [(n_current, n_current + 1), (channels - 1, n_current)]
    outlets = [(c, voltages[rng.integers(len(voltages))], float(rng.choice([-1, 1]))) for c in range(n_current)]
    delay = rng.integers(-3, 4, channels) * draw(st.sampled_from([0.0, 20_000.0, 400_000.0]))
    return {
        "counts": counts.astype(np.int32),
        "first": draw(st.integers(0, 2000)),
        "lost": frozenset(rng.integers(0, n - 1, draw(st.sampled_from([0, 0, 1, 5, 250]))).tolist()),
        "status": {
            int(k): 1 << draw(st.integers(0, 31)) for k in rng.integers(0, n, draw(st.sampled_from([0, 0, 1, 9])))
        },
        "kernel": {
            "outlets": outlets,
            "gain": rng.uniform(0.001, 1.0, channels),
            "offset_counts": rng.uniform(-50, 50, channels),
            "delay_ns": delay,
            "full_scale_counts": rng.integers(19_000, 40_000, channels),
            "dc": draw(st.booleans()),
        },
    }


@settings(max_examples=150)
@given(scenes())
def test_kernel_equals_its_twin(scene: dict[str, Any]) -> None:
    counts, options = scene["counts"], scene["kernel"]
    channels = counts.shape[1]
    ring = ring_of(counts, first=scene["first"], lost=scene["lost"], capacity=len(counts) + 7, status=scene["status"])
    twin = ReferenceKernel(channels, **options)
    assert twin.compute(ring, ring.head) == core.WINDOW_OK
    filtered = not options["dc"] and bool(np.any(options["delay_ns"]))
    scale = np.abs(options["gain"]) * 60_000
    for portable in (False, True):
        kernel = core.WindowKernel(channels, **options, portable=portable)
        out = newest(kernel, ring)
        exact = [
            core.F_COUNT,
            core.F_MISSING,
            core.F_SATURATED,
            core.F_QUALITY,
            core.F_MIN_A,
            core.F_MAX_A,
            core.F_PEAK_A,
        ]
        np.testing.assert_allclose(out[:, exact], twin.out[:, exact], rtol=1e-14)
        # rounding; with filters, single precision and what is left out of their shared basis
        part = 3e-5 if filtered else 1e-9
        size = {
            core.F_POWER_W: scale.max() ** 2,
            core.F_STEP: scale.max() ** 2,
            core.F_APPARENT_VA: scale.max() ** 2,
            core.F_VOLTAGE_V: scale.max(),
            core.F_POWER_FACTOR: 1.0,
        }
        for feature in sorted(set(range(core.N_FEATURES)) - set(exact)):
            tolerance = part * size.get(feature, 0.0)
            np.testing.assert_allclose(out[:, feature], twin.out[:, feature], rtol=1e-11, atol=tolerance)
    assert kernel.t_end_ns == (ring.head - 1) * 1_000_000


# --- not ready, overwritten, refused


def test_before_enough_scans_and_after_being_lapped_out_stays_as_it_was() -> None:
    counts = np.full((250, 2), 100)
    ring = ring_of(counts, capacity=220)
    kernel = core.WindowKernel(2, outlets=[(0, 1, 1.0)], gain=[1.0, 1.0])
    assert kernel.compute(ring, 199) == core.WINDOW_NOT_READY
    assert kernel.compute(ring, 251) == core.WINDOW_NOT_READY
    assert kernel.compute(ring, 200) == core.WINDOW_LAPPED
    assert np.isnan(kernel.out).all()
    assert kernel.compute(ring, 250) == core.WINDOW_OK
    assert kernel.out[0, core.F_POWER_W] == pytest.approx(10_000.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"outlets": [(2, 1, 1.0)]}, "the board has 2"),
        ({"outlets": [(0, 5, 1.0)]}, "the board has 2"),
        ({"outlets": [(0, (-1, 1), 1.0)]}, "needs both"),
        ({"outlets": [(0, 1, 0.5)]}, "sign = 0.5"),
        ({"outlets": []}, "at least one outlet"),
        ({"gain": [1.0]}, "gain has"),
        ({"gain": [1.0, np.nan]}, "not finite"),
        ({"full_scale_counts": [0, 1]}, "must be positive"),
        ({"delay_ns": [60e6, 0.0]}, "check delay_ns"),
        ({"rate_hz": 2000}, "1000 Hz"),
    ],
)
def test_wrong_set_ups_are_refused_in_words(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        core.WindowKernel(2, **{"outlets": [(0, 1, 1.0)], "gain": [1.0, 1.0], **options})


def test_a_ring_of_another_board_is_refused() -> None:
    with pytest.raises(ValueError, match="3 channels, the kernel 2"):
        kernel_of().compute(ring_of(np.zeros((200, 3))), 200)


def test_quality_bits_are_those_of_the_records() -> None:
    assert (Quality.MISSING, Quality.SATURATED, Quality.NO_VOLTAGE, Quality.UNCALIBRATED) == (1, 2, 8, 16)
