"""The fit of a calibration: from counts and a reference to gain, offset and delay per channel, or why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.calibration import ChannelRecord, Instrument, Residual
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import BoolArray, FloatArray, IntArray

WINDOW, HOP = 200, 100  # scans: those of the window kernel
HARMONICS = np.arange(1, 10)  # up to 450 Hz at 50 Hz, the band of a reading
NO_COUNT = -(2**31)

LARGEST_ERROR = 0.005  # of reading: what a good channel shows at every point
LEAST_LOAD = 0.05  # of range: a smaller load tells too little of a gain
MOST_NOISE = 0.005  # of range, RMS at zero: at the least load it alone adds 0.5 % to the reading
MOST_OFFSET = 0.05  # of range
MOST_WANDER = 0.01  # relative standard deviation of the windows' readings within one step
LEAST_WINDOWS = 0.5  # part of the windows of a step that must be whole
COARSE = 0.25  # an uncalibrated sensor is nearer than this to the reference, or it is another sensor
MOST_TURN_DEG = 30.0  # further off than any sensor's phase error: it is wired otherwise
MOST_LAG_DEG = 10.0  # of a sensor
REACTIVE = 0.3  # sine of the phase angle from which watts tell something of a delay (power factor 0.95)

Complex = NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class Sensor:
    """One channel: what the board says of it, and what the configuration says it measures."""

    number: int  # on the board, from 1
    kind: Literal["current", "voltage"]
    name: str  # "pdu-a/3", "L1"
    scale: float  # A or V per count
    delay_ns: float  # by the board's own skew
    full_scale_counts: int
    voltage: tuple[int, ...] = ()  # indices of a current's voltage channels: none, one, or (plus, minus)
    sign: float = 1.0  # -1: turned round by ':reversed'

    def __str__(self) -> str:
        return f"channel {self.number} ({self.name})"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one step showed of every channel, over whole windows; [n] in counts, `voltages` [v] are channel indices."""

    frequency_hz: float
    voltages: tuple[int, ...]
    mean: FloatArray
    rms: FloatArray  # of what varies, the mean taken out
    wander: FloatArray  # relative standard deviation of the windows' RMS (DC: mean)
    saturated: IntArray  # samples
    missing: FloatArray  # part of the windows that had a hole
    product: FloatArray  # [n, v] mean of current x voltage, means taken out
    cross: Complex  # [n, v, harmonics] voltage phasor x conjugate current phasor, RMS


@dataclass(frozen=True, slots=True)
class Reference:
    """What the instrument showed meanwhile; None is not known."""

    amps: float | None = None
    volts: float | None = None
    watts: float | None = None
    resistive: bool = False  # the load is: power factor one

    def complete(self) -> "Reference":
        """With the third of volts, amps and watts where the load is resistive and two are known."""
        a, v, w = self.amps, self.volts, self.watts
        if not self.resistive or [a, v, w].count(None) != 1:
            return self
        if a is None:
            return replace(self, amps=w / v if w is not None and v else None)
        if v is None:
            return replace(self, volts=w / a if w is not None and a else None)
        return replace(self, watts=a * v)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: nothing drawn on these channels (no references), or a known load on each of them, by channel index."""

    channels: tuple[int, ...]
    measured: Measured
    references: Mapping[int, Reference]

    @property
    def zero(self) -> bool:
        return not self.references


# --- from counts to what a step showed ----------------------------------------------------------------------------


def measure(
    counts: NDArray[np.int32], present: BoolArray, sensors: Sequence[Sensor], *, dc: bool = False, rate_hz: int = 1000
) -> Measured:
    """Half-overlapping windows with the kernel's weights over counts [scans, n], those of `present` [scans] there.

    A window with a hole in a channel is left out of that channel alone. Raises DeviceError for less than one window.
    """
    n_windows = (len(counts) - WINDOW) // HOP + 1
    if n_windows < 1:
        raise DeviceError(f"{len(counts)} scans came in, a step needs {WINDOW} or more: is the board sending?")
    there = present[:, None] & (counts != NO_COUNT)
    full = np.array([sensor.full_scale_counts for sensor in sensors])
    saturated = (there & (np.abs(counts.astype(np.int64)) >= full)).sum(axis=0)
    values = np.where(there, np.clip(counts, -full, full), 0).astype(np.float64)
    rows = np.arange(n_windows)[:, None] * HOP + np.arange(WINDOW)
    whole = there[rows].all(axis=1)  # [windows, n]
    voltages = [i for i, sensor in enumerate(sensors) if sensor.kind == "voltage"]
    x = 2.0 * np.pi * np.arange(WINDOW) / WINDOW
    weight = (1 / 2 - 9 / 16 * np.cos(x) + 1 / 16 * np.cos(3 * x)) / HOP
    means = np.einsum("k,wkn->wn", weight, values[rows])
    mean = _over(whole, means)
    windows = np.where(whole[:, None, :], values[rows] - mean, 0.0)
    squares = np.einsum("k,wkn->wn", weight, windows**2)
    products = np.stack([np.einsum("k,wkn,wk->wn", weight, windows, windows[:, :, v]) for v in voltages] or [squares])
    frequency_hz = _frequency(
        (values - mean)[:, voltages[0] if voltages else int(np.argmax(squares.sum(axis=0)))], rate_hz
    )
    turn = np.exp(-2j * np.pi * frequency_hz / rate_hz * np.multiply.outer(HARMONICS, np.arange(WINDOW)))
    phasors = np.sqrt(2.0) * np.einsum("hk,wkn->wnh", turn * weight, windows, optimize=True)
    cross = phasors[:, None, voltages, :] * phasors.conj()[:, :, None, :]
    both = whole[:, :, None] & whole[:, None, voltages]
    level = means if dc else np.sqrt(squares)
    spread = np.sqrt(_over(whole, (level - _over(whole, level)) ** 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        wander = spread / np.abs(_over(whole, level))
    return Measured(
        frequency_hz=frequency_hz,
        voltages=tuple(voltages),
        mean=mean,
        rms=np.sqrt(_over(whole, squares)),
        wander=wander,
        saturated=saturated,
        missing=1.0 - whole.mean(axis=0),
        product=_over(both, np.moveaxis(products, 0, -1)[:, :, : len(voltages)]),
        cross=_over(both[..., None], cross),
    )


def _over(whole: BoolArray, values: NDArray[Any]) -> NDArray[Any]:
    """Mean over the windows that are whole; NaN without any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole, values, 0.0).sum(axis=0) / whole.sum(axis=0))


def _frequency(signal: FloatArray, rate_hz: int) -> float:
    """Of the largest line from 40 to 70 Hz, Hz: the peak of a parabola through the logarithms of a Hann spectrum."""
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)))) + 1e-12
    first, last = (round(f * len(signal) / rate_hz) for f in (40.0, 70.0))
    top = first + int(np.argmax(spectrum[first : last + 1]))
    low, mid, high = np.log(spectrum[top - 1 : top + 2])
    bend = low - 2.0 * mid + high
    return (top + (0.5 * (low - high) / bend if bend else 0.0)) * rate_hz / len(signal)


# --- what a channel showed, in its own unit -----------------------------------------------------------------------


class Fit:
    """All steps of one board together: `records` is the outcome, `complaint` tells of one step as soon as it is there."""

    def __init__(self, sensors: Sequence[Sensor], *, dc: bool) -> None:
        self.sensors = tuple(sensors)
        self.steps: list[Step] = []
        self._dc = dc

    def range_of(self, i: int) -> float:
        """Full scale of channel index i: A or V, RMS on AC."""
        sensor = self.sensors[i]
        return sensor.full_scale_counts * sensor.scale / (1.0 if self._dc else float(np.sqrt(2.0)))

    # -- is the step any good?

    def complaint(self, step: Step, i: int) -> str | None:
        """Why a step says nothing of channel index i; None when it does."""
        checks = [self._unfit, self._far_off, self._unsteady]
        if self.sensors[i].kind == "current":
            load = [self._too_small, self._miswired, self._unsteady, self._misphased]
            checks = [self._unfit, *(load if i in step.references else ())]
        found = next((text for check in checks if (text := check(step, i)) is not None), None)
        return None if found is None else f"{self.sensors[i]}: {found}"

    def _unfit(self, step: Step, i: int) -> str | None:
        seen = step.measured
        if 1.0 - seen.missing[i] < LEAST_WINDOWS:
            return f"{seen.missing[i]:.0%} of its windows have missing samples: look at the board's line and its status"
        if seen.saturated[i]:
            return (
                f"{seen.saturated[i]} samples are at full scale: the load, or its peaks, are too large for this sensor"
            )
        if step.zero and self.sensors[i].kind == "current":
            noise, offset = (
                float(value) * self.sensors[i].scale / self.range_of(i) for value in (seen.rms[i], seen.mean[i])
            )
            if noise > MOST_NOISE:
                return f"{noise:.2%} of range RMS at zero, {MOST_NOISE:.2%} allowed: it is noisy, or something is drawn"
            if abs(offset) > MOST_OFFSET:
                return f"{offset:.1%} of range at zero, {MOST_OFFSET:.1%} allowed: something is drawn, or its amplifier is broken"
        return None

    @staticmethod
    def _unsteady(step: Step, i: int) -> str | None:
        if step.zero or not step.measured.wander[i] > MOST_WANDER:
            return None
        return (
            f"unstable: it wandered by {step.measured.wander[i]:.2%} within the step ({MOST_WANDER:.2%} allowed):"
            " let the load settle"
        )

    def _far_off(self, step: Step, v: int) -> str | None:
        """A voltage channel whose tap, divider or reference is another one."""
        volts, scale = self._volts(step, v) or 0.0, self.sensors[v].scale
        shown = scale * float(abs(step.measured.mean[v]) if self._dc else step.measured.rms[v])
        if _near(shown, volts):
            return None
        return f"it shows {shown:.1f} V while the reference says {volts:.1f} V: look at its tap and at the reference"

    def _too_small(self, step: Step, i: int) -> str | None:
        amps = step.references[i].amps
        if amps is None:
            return "no reference current for this load"
        least = LEAST_LOAD * self.range_of(i)
        if amps < least:
            return f"a load of {amps:.3g} A is below {LEAST_LOAD:.0%} of range ({least:.3g} A): too small for a gain"
        return None

    def _miswired(self, step: Step, i: int) -> str | None:
        """A dead or swapped transformer, by what rose against the zero step."""
        amps = step.references[i].amps or 0.0
        rise = self._rise(step, self._zero(i))
        if _near(rise[i], amps):
            return None
        for k, sensor in enumerate(self.sensors):
            other = step.references.get(k)
            if k == i or sensor.kind != "current" or not _near(rise[k], amps):
                continue
            if other is None or (other.amps and not _near(rise[k], other.amps)):
                return (
                    f"it shows {rise[i]:.2f} A of {amps:.2f} A, and {sensor} shows {rise[k]:.2f} A:"
                    " these two transformers are swapped"
                )
        if rise[i] < COARSE * amps:
            return f"dead: it shows {rise[i]:.2f} A while {amps:.2f} A flow; look at its transformer and its plug"
        return f"it shows {rise[i]:.2f} A while {amps:.2f} A flow: another transformer ratio, or a wrong reference"

    def _rise(self, step: Step, zero: Measured | None) -> FloatArray:
        """By how much each channel is above what it was at zero, in A by the board's own scale."""
        scale = np.array([sensor.scale for sensor in self.sensors])
        seen = step.measured
        if self._dc:
            rise = np.abs(seen.mean - (0.0 if zero is None else zero.mean))
        else:
            rise = np.sqrt(np.maximum(seen.rms**2 - (0.0 if zero is None else zero.rms**2), 0.0))
        return np.asarray(np.nan_to_num(scale * rise))

    def _zero(self, i: int) -> Measured | None:
        return next((step.measured for step in reversed(self.steps) if step.zero and i in step.channels), None)

    def _misphased(self, step: Step, i: int) -> str | None:
        """A reversed transformer, or one on another phase than its outlet."""
        sensor, reference = self.sensors[i], step.references[i]
        if not sensor.voltage:
            return None
        if self._dc:
            reversed_ = sensor.sign * (step.measured.mean[i] - (zero.mean[i] if (zero := self._zero(i)) else 0.0)) < 0.0
            return self._turned_round(sensor) if reversed_ else None
        wanted = self._power_factor_angle(reference)
        if wanted is None:
            return None
        for v in sensor.voltage:
            if not step.measured.rms[v] * self.sensors[v].scale > LEAST_LOAD * self.range_of(v):
                return f"nothing on its voltage, {self.sensors[v]}: look at that tap"
        shown = self._angle_deg(step, i, sensor.voltage)
        if self._off_by(shown, wanted) <= MOST_TURN_DEG:
            return None
        off, turned, voltage = min(
            (self._off_by(self._angle_deg(step, i, voltage) + turned, wanted), turned, voltage)
            for voltage in self._choices(sensor)
            for turned in (0.0, 180.0)
        )
        if off <= MOST_TURN_DEG and voltage == sensor.voltage:
            return self._turned_round(sensor)
        what = f"{shown:+.0f} degrees to {self._phase(sensor.voltage)}"
        if off <= MOST_TURN_DEG:
            return (
                f"{what}: it is on {self._phase(voltage)}{', and the wrong way round' if turned else ''};"
                " correct `phases` of its outlet, or see which wire its transformer sits on"
            )
        return f"{what}, {wanted:.0f} expected: the load is not what the reference says, or the reference is wrong"

    @staticmethod
    def _power_factor_angle(reference: Reference) -> float | None:
        """Expected angle, degrees without sign: ahead or late is not known. None where the reference does not tell it."""
        if reference.resistive:
            return 0.0
        if reference.amps and reference.volts and reference.watts is not None:
            return float(np.degrees(np.arccos(np.clip(reference.watts / reference.volts / reference.amps, -1.0, 1.0))))
        return None

    @staticmethod
    def _off_by(angle: float, wanted: float) -> float:
        turned = (angle + 180.0) % 360.0 - 180.0
        return min(abs(turned - wanted), abs(turned + wanted))

    def _turned_round(self, sensor: Sensor) -> str:
        word = "take ':reversed' from" if sensor.sign < 0.0 else "write ':reversed' behind"
        return f"its power is negative: turn the transformer, or {word} its channel in board.channels"

    def _choices(self, sensor: Sensor) -> list[tuple[int, ...]]:
        """Every voltage that a current of this kind could be on."""
        voltages = [i for i, other in enumerate(self.sensors) if other.kind == "voltage"]
        if len(sensor.voltage) == 1:
            return [(v,) for v in voltages]
        others = [(a, b) for a in voltages for b in voltages if a < b and {a, b} != set(sensor.voltage)]
        return [sensor.voltage, *others]

    def _phase(self, voltage: tuple[int, ...]) -> str:
        return "-".join(self.sensors[v].name for v in voltage)

    def _cross(self, step: Step, i: int, voltage: tuple[int, ...], gains: Mapping[int, float]) -> Complex:
        """Voltage phasor x conjugate current phasor per harmonic, V x A, the board's own delays taken out; [harmonics]."""
        sensor, seen = self.sensors[i], step.measured
        turn = 2e-9j * np.pi * seen.frequency_hz * HARMONICS
        total: Complex = np.zeros(len(HARMONICS), dtype=np.complex128)
        for side, v in zip((1.0, -1.0), voltage, strict=False):
            in_step = np.exp(turn * (self.sensors[v].delay_ns - sensor.delay_ns))
            total += side * gains.get(v, self.sensors[v].scale) * seen.cross[i, seen.voltages.index(v)] * in_step
        return total * (sensor.sign * gains.get(i, sensor.scale))

    def _angle_deg(self, step: Step, i: int, voltage: tuple[int, ...]) -> float:
        return float(np.degrees(np.angle(self._cross(step, i, voltage, {})[0])))

    def _watts(
        self, step: Step, i: int, gains: Mapping[int, float], offsets: Mapping[int, float], extra_ns: float
    ) -> float:
        """True power with these gains and the current `extra_ns` later than the board says."""
        sensor, seen = self.sensors[i], step.measured
        current_gain = sensor.sign * gains.get(i, sensor.scale)
        if self._dc:
            v = sensor.voltage[0]
            volts = gains.get(v, self.sensors[v].scale) * (seen.mean[v] - offsets.get(v, 0.0))
            amps = current_gain * (seen.mean[i] - offsets.get(i, 0.0))
            both = gains.get(v, self.sensors[v].scale) * current_gain * seen.product[i, seen.voltages.index(v)]
            return float(volts * amps + both)
        power = 0.0
        for side, v in zip((1.0, -1.0), sensor.voltage, strict=False):
            place = seen.voltages.index(v)
            rest = seen.product[i, place] - seen.cross[i, place].real.sum()  # what is no harmonic is not turned
            power += side * gains.get(v, self.sensors[v].scale) * current_gain * rest
        turn = np.exp(-2e-9j * np.pi * seen.frequency_hz * HARMONICS * extra_ns)
        return float(power + (self._cross(step, i, sensor.voltage, gains) * turn).real.sum())

    # -- the fit

    def records(self, date: datetime, instrument: Instrument) -> list[ChannelRecord]:
        """One record per channel that had a known load, voltages included. Voltages first: watts need them."""
        found: dict[int, ChannelRecord] = {}
        gains: dict[int, float] = {}
        offsets: dict[int, float] = {}
        for kind in ("voltage", "current"):
            for i, sensor in enumerate(self.sensors):
                if sensor.kind == kind and any(not step.zero for step in self._steps_of(i)):
                    found[i] = record = self._record(i, gains, offsets, date, instrument)
                    if record.good:
                        gains[i], offsets[i] = record.gain, record.offset_counts
        return [found[i] for i in sorted(found)]

    def _steps_of(self, i: int) -> list[Step]:
        """Steps that say something of channel index i."""
        if self.sensors[i].kind == "current":
            return [step for step in self.steps if i in step.channels]
        return [step for step in self.steps if self._volts(step, i) is not None]

    def _volts(self, step: Step, v: int) -> float | None:
        """Reference voltage of a voltage channel: of any load on it in this step."""
        for i, reference in step.references.items():
            if self.sensors[i].voltage == (v,) and (volts := reference.complete().volts):
                return volts
        return None

    def _record(
        self, i: int, gains: dict[int, float], offsets: dict[int, float], date: datetime, instrument: Instrument
    ) -> ChannelRecord:
        sensor, steps = self.sensors[i], self._steps_of(i)
        loads = [step for step in steps if not step.zero]
        reason = next((text for step in steps if (text := self.complaint(step, i)) is not None), None)
        gain, offset, extra_ns = sensor.scale, 0.0, None
        residuals: tuple[Residual, ...] = ()
        zero = self._zero(i)
        if reason is None and sensor.kind == "current" and zero is None:
            reason = f"{sensor}: no zero step"
        if reason is None:
            references = [self._level(step, i) for step in loads]
            gain, offset = self._gain_offset(i, loads, references)
            extra_ns = self._extra_delay(i, loads, {**gains, i: gain}) if sensor.voltage and not self._dc else 0.0
            residuals = self._residuals(i, loads, {**gains, i: gain}, {**offsets, i: offset}, extra_ns)
            lag_deg = (extra_ns or 0.0) * 360e-9 * loads[0].measured.frequency_hz
            if abs(lag_deg) > MOST_LAG_DEG:
                reason = f"{sensor}: {lag_deg:+.0f} degrees late: no sensor is; look at its wiring and at the reference"
            worst = max(residuals, key=lambda item: abs(item.error_percent))
            if reason is None and abs(worst.error_percent) > 100.0 * LARGEST_ERROR:
                other = self._follows(i, loads) if sensor.kind == "current" else None
                reason = f"{sensor}: {worst.error_percent:+.2f} % left at {worst.reference:.4g} {worst.quantity}" + (
                    f" ({100 * LARGEST_ERROR:g} % allowed): the sensor is not linear, or a reference is wrong"
                    if other is None
                    else f", and it follows the load of {other}: these two transformers are swapped"
                )
        noise = np.nan if zero is None else 100.0 * float(zero.rms[i]) * sensor.scale / self.range_of(i)
        return ChannelRecord(
            channel=sensor.number,
            kind=sensor.kind,
            name=sensor.name,
            gain=gain,
            offset_counts=offset,
            delay_ns=sensor.delay_ns + (extra_ns or 0.0),
            phase_known=extra_ns is not None,
            range=self.range_of(i),
            noise_percent=_finite(noise),
            repeatability_percent=_finite(
                max((100.0 * float(step.measured.wander[i]) for step in loads), default=np.nan)
            ),
            residuals=residuals,
            good=reason is None,
            verdict=reason or ("good" if extra_ns is not None else "good; its phase is the board's own word"),
            date=date,
            instrument=instrument,
        )

    def _level(self, step: Step, i: int) -> float:
        """What the reference says of this channel, A or V."""
        value = self._volts(step, i) if self.sensors[i].kind == "voltage" else step.references[i].amps
        assert value is not None
        return value

    def _gain_offset(self, i: int, loads: Sequence[Step], references: Sequence[float]) -> tuple[float, float]:
        """Least squares of the error in parts of the reading.

        AC: what is measured is the RMS less the noise at zero; the offset is the mean of all steps. DC: a straight line
        through all points and the zero step, through the origin where they are all at one level.
        """
        sign = self.sensors[i].sign
        zero = self._zero(i) if self.sensors[i].kind == "current" else None
        wanted = np.array(references)
        if not self._dc:
            noise = 0.0 if zero is None else float(zero.rms[i])
            seen = np.sqrt(np.maximum([step.measured.rms[i] ** 2 - noise**2 for step in loads], 0.0))
            share = seen / wanted
            means = [step.measured.mean[i] for step in loads] + ([] if zero is None else [zero.mean[i]])
            return float(share.sum() / (share @ share)), float(np.mean(means))
        seen = np.array([step.measured.mean[i] for step in loads] + ([] if zero is None else [zero.mean[i]]))
        wanted = sign * np.append(wanted, [] if zero is None else [0.0])
        weight = 1.0 / np.maximum(np.abs(wanted), LEAST_LOAD * self.range_of(i))
        if np.ptp(wanted) < LEAST_LOAD * self.range_of(i):
            share = seen * weight
            return float((wanted * weight) @ share / (share @ share)), 0.0
        design = np.column_stack([seen, np.ones(len(seen))]) * weight[:, None]
        slope, rest = np.linalg.lstsq(design, wanted * weight, rcond=None)[0]
        return float(slope), float(-rest / slope)

    def _follows(self, i: int, loads: Sequence[Step]) -> Sensor | None:
        """Another channel whose references channel index i fits within what is allowed."""
        for k, other in enumerate(self.sensors):
            wanted = [step.references[k].amps for step in loads if k in step.references]
            known = [amps for amps in wanted if amps]
            if k == i or other.kind != "current" or len(known) < len(loads):
                continue
            gain, offset = self._gain_offset(i, loads, known)
            shown = np.array([self.level(step, i, gain, offset) for step in loads])
            if np.all(np.abs(shown / known - 1.0) <= LARGEST_ERROR):
                return other
        return None

    def _extra_delay(self, i: int, loads: Sequence[Step], gains: Mapping[int, float]) -> float | None:
        """By how much the current is later than the board says, ns; None where no load tells it.

        Newton's method on the sum of squares, in radians at the mains frequency: the angle of a resistive load, the
        error in watts over VA of a reactive one.
        """
        extra_ns, sensor = 0.0, self.sensors[i]
        known = all(v in gains for v in sensor.voltage)
        for _ in range(8):
            top = bottom = 0.0
            for step in loads:
                reference = step.references[i].complete()
                turn = 2e-9 * np.pi * step.measured.frequency_hz
                one = self._cross(step, i, sensor.voltage, gains)[0] * np.exp(-1j * turn * extra_ns)
                if reference.resistive:
                    top, bottom = top + turn * float(np.angle(one)), bottom + turn**2
                elif reference.watts is not None and known and abs(one.imag) > REACTIVE * abs(one):
                    slope = turn * one.imag / abs(one)
                    error = (reference.watts - self._watts(step, i, gains, {}, extra_ns)) / abs(one)
                    top, bottom = top + slope * error, bottom + slope**2
            if bottom == 0.0:
                return None
            extra_ns += top / bottom
        return extra_ns

    def _residuals(
        self,
        i: int,
        loads: Sequence[Step],
        gains: Mapping[int, float],
        offsets: Mapping[int, float],
        extra_ns: float | None,
    ) -> tuple[Residual, ...]:
        """What is left at every point: of A or V, and of W where voltage and phase are known."""
        sensor, rows = self.sensors[i], []
        unit: Literal["A", "V"] = "A" if sensor.kind == "current" else "V"
        for step in loads:
            rows.append(residual(unit, self._level(step, i), self.level(step, i, gains[i], offsets[i])))
            watts = step.references[i].complete().watts if sensor.kind == "current" else None
            if watts and sensor.voltage and extra_ns is not None and all(v in gains for v in sensor.voltage):
                rows.append(residual("W", watts, self._watts(step, i, gains, offsets, extra_ns)))
        return tuple(rows)

    def level(self, step: Step, i: int, gain: float, offset: float) -> float:
        """A or V of one channel in a step, as a window would show it."""
        seen = step.measured
        if self._dc:
            return abs(gain * (float(seen.mean[i]) - offset))
        return abs(gain) * float(np.hypot(seen.rms[i], seen.mean[i] - offset))


def residual(quantity: Literal["A", "V", "W"], reference: float, measured: float) -> Residual:
    """One point beside its reference."""
    error = 100.0 * (measured - reference) / reference
    return Residual(quantity=quantity, reference=reference, measured=measured, error_percent=error)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _near(shown: float, wanted: float) -> bool:
    return abs(shown - wanted) <= COARSE * wanted
