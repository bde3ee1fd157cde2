"""The simulated rack's physics: what servers draw, and the counts a sensor board would make of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.drivers.sensors.throttle import Throttle
from rpi_daemon.drivers.sensors.traces import Trace
from rpi_daemon.records import TICK_S, FloatArray

LOOKAHEAD_S = 30.0  # how far ahead of the present a stream knows its own plan
MIN_RAMP_S = 0.001
FLICKER_TAPS = 16  # memory of the load's own fluctuation, ticks
FLICKER_TAU_S = 0.4
PLAN_TIME_SD_S = 0.15  # a scheduler's announcement is a little wrong in time
PLAN_SIZE_SD = 0.06  # and in size

INRUSH_TIMES_RATING = 4.0  # charging the bulk capacitor at turn-on (about 30 J for 600 W): power above the load ...
INRUSH_TAU_S = 0.012  # ... decaying this fast

# What a 200 ms window, 100 ms late, makes of points 100 ms apart with straight lines between: the integral of
# (1 + 9/8 cos(pi u) - 1/8 cos(3 pi u)) (1 - u) over 0..1 is 1/2 + 20/(9 pi^2).
WINDOW_CENTRE = 0.5 + 20.0 / (9.0 * np.pi**2)
WINDOW_KERNEL = np.array([(1.0 - WINDOW_CENTRE) / 2.0, WINDOW_CENTRE, (1.0 - WINDOW_CENTRE) / 2.0])

# Efficiency over load fraction, typical of an 80 PLUS Platinum supply (0.90 / 0.94 / 0.91 at 20 / 50 / 100 %).
PSU_LOAD = np.array([0.0, 0.02, 0.05, 0.10, 0.20, 0.50, 1.0, 1.5])
PSU_EFFICIENCY = np.array([0.60, 0.65, 0.78, 0.86, 0.90, 0.94, 0.91, 0.87])


class Step(NamedTuple):
    """From `t_s` on the load goes to `to_w` (component side) within `ramp_s`."""

    t_s: float
    ramp_s: float
    to_w: float
    announced: bool = False


class Planned(NamedTuple):
    """A change announced ahead: at `t_s` the draw begins to change by `delta_w` (at the outlet)."""

    t_s: float
    delta_w: float


@dataclass(frozen=True, slots=True)
class PowerSeries:
    """Power at the outlet every 100 ms; `power_w` [m] in W, sample k is known at k * 0.1 s."""

    power_w: FloatArray
    plan: tuple[Planned, ...]  # rising in time; known 30 s ahead
    step_s: float = TICK_S


@dataclass(frozen=True, slots=True)
class Workload:
    """One server and what runs on it. Watts are on the component side of its supply unless said otherwise."""

    name: str
    shape: str  # a key of SHAPES
    rating_w: float  # of the supply and of the outlet
    idle_w: float
    busy_w: float
    period_s: float = 12.0  # of bursts, dips or jobs
    start_s: float = 0.0  # first activity; the turn-on for `boot_storm`
    flicker: float = 0.012  # relative standard deviation of the load's own fluctuation
    surprises_per_hour: float = 4.0  # steps that nobody could foresee
    trace: Trace | None = None  # a recording takes the place of the shape (already power at the outlet)

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"workload shape {self.shape!r} is unknown; allowed: {', '.join(SHAPES)}")
        if not 0.0 <= self.idle_w <= self.busy_w <= 1.2 * self.rating_w:
            raise ValueError(f"workload {self.name!r}: 0 <= idle_w <= busy_w <= 1.2 * rating_w does not hold")
        if self.period_s < 2.0:
            raise ValueError(f"workload {self.name!r}: period_s is {self.period_s:g}; allowed: 2 s and more")

    @property
    def span_w(self) -> float:
        return self.busy_w - self.idle_w


def outlet_power(load_w: FloatArray, rating_w: float) -> FloatArray:
    """Power at the outlet for a component-side load, W: load / efficiency(load / rating)."""
    efficiency = np.interp(load_w / rating_w, PSU_LOAD, PSU_EFFICIENCY)
    return np.asarray(load_w / efficiency, dtype=np.float64)


# --- shapes: endless iterators of steps, times rising; the first is the level at time 0 ---


def idle(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """House-keeping: short small bumps of the operating system, now and then a fan step."""
    t = w.start_s
    base = w.idle_w
    yield Step(t, MIN_RAMP_S, base)
    while True:
        t += rng.exponential(12.0) + 1.0
        if rng.random() < 0.3:
            base = w.idle_w * rng.uniform(0.97, 1.06)
            yield Step(t, rng.uniform(1.5, 4.0), base)
            t += 4.0
        else:
            held = rng.uniform(1.0, 4.0)
            yield Step(t, 0.8, base + rng.uniform(0.03, 0.10) * w.span_w)
            yield Step(t + 0.8 + held, 0.6, base)
            t += held + 1.5


def inference(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """Bursts at a rough rhythm: a queue builds up for 2.5-4 s (the precursor), then a plateau of some seconds."""
    yield Step(0.0, 0.0, w.idle_w)
    t = w.start_s + rng.uniform(0.0, w.period_s)
    size = rng.uniform(0.75, 1.0)
    for _ in count():
        size = float(np.clip(size + rng.normal(0.0, 0.05), 0.6, 1.0))
        if rng.random() > 0.04:  # the odd burst comes without warning
            queue_s = rng.uniform(2.5, 4.0)
            yield Step(t, 0.4, w.idle_w + rng.uniform(0.12, 0.18) * w.span_w)
            t += queue_s
        rise_s = rng.uniform(1.0, 2.2)
        plateau_s = w.period_s * rng.uniform(0.25, 0.4)
        yield Step(t, rise_s, w.idle_w + size * w.span_w)
        t += rise_s + plateau_s
        yield Step(t, rng.uniform(0.6, 1.5), w.idle_w)
        t += max(2.0, 0.4 * w.period_s * (1.0 + rng.normal(0.0, 0.15)))


def training(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """An announced job at full power, with a dip every `period_s` (all-reduce), each 8th a long one (checkpoint)."""
    t = w.start_s
    yield Step(0.0, 0.0, w.idle_w)
    while True:
        level = w.idle_w + rng.uniform(0.88, 1.0) * w.span_w
        dip = w.idle_w + rng.uniform(0.3, 0.5) * w.span_w
        checkpoint = w.idle_w + rng.uniform(0.15, 0.25) * w.span_w
        dip_s = min(rng.uniform(0.5, 1.2), 0.2 * w.period_s)
        yield Step(t, 3.0, level, announced=True)
        t += 3.0
        for k in range(1, int(rng.integers(40, 120))):
            start = t + k * w.period_s
            if k % 8:
                yield Step(start - dip_s, 0.2, dip)
                yield Step(start - 0.3, 0.3, level)
            else:
                yield Step(start - 0.45 * w.period_s, 0.4, checkpoint)
                yield Step(start - 0.8, 0.8, level)
        t = start + w.period_s
        yield Step(t, 1.0, w.idle_w, announced=True)
        t += rng.uniform(20.0, 60.0)


def batch(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """Jobs of a scheduler that announces start and end."""
    yield Step(0.0, 0.0, w.idle_w)
    t = w.start_s + rng.uniform(0.0, 0.6 * w.period_s)
    while True:
        rise_s = rng.uniform(1.5, 3.5)
        yield Step(t, rise_s, w.idle_w + rng.uniform(0.55, 1.0) * w.span_w, announced=True)
        t += rise_s + w.period_s * rng.uniform(0.4, 1.0)
        yield Step(t, 1.0, w.idle_w, announced=True)
        t += 1.0 + w.period_s * rng.uniform(0.3, 0.8)


def ramped(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """A service that is scaled up and down slowly, over 8-20 s."""
    yield Step(0.0, 0.0, w.idle_w + 0.3 * w.span_w)
    t = w.start_s + rng.uniform(0.0, 5.0)
    while True:
        ramp_s = rng.uniform(8.0, 20.0)
        yield Step(t, ramp_s, w.idle_w + rng.uniform(0.1, 1.0) * w.span_w)
        t += ramp_s + rng.uniform(0.3, 1.0) * w.period_s


def boot_storm(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """Off until `start_s`; then the known profile, announced: standby, POST, operating system, services, idle."""
    yield Step(0.0, 0.0, 0.0)
    t = w.start_s
    stages = (
        (0.05, 0.10 * w.idle_w, 1.5),
        (0.8, w.idle_w + 0.25 * w.span_w, rng.uniform(4.0, 6.0)),
        (1.5, w.idle_w + 0.45 * w.span_w, rng.uniform(5.0, 8.0)),
        (2.0, w.idle_w + 0.85 * w.span_w, rng.uniform(5.0, 9.0)),
        (3.0, w.idle_w, 4.0),
    )
    for ramp_s, level_w, held_s in stages:
        yield Step(t, ramp_s, level_w, announced=True)
        t += ramp_s + held_s
    yield from idle(replace(w, start_s=t), rng)


SHAPES: dict[str, Callable[[Workload, np.random.Generator], Iterator[Step]]] = {
    "idle": idle,
    "inference": inference,
    "training": training,
    "batch": batch,
    "ramped": ramped,
    "boot_storm": boot_storm,
}


def _surprises(w: Workload, rng: np.random.Generator) -> Iterator[Step]:
    """Steps without precursor or plan, on top of the shape."""
    yield Step(0.0, 0.0, 0.0)
    if w.surprises_per_hour <= 0.0:
        return
    t = 0.0
    while True:
        t += rng.exponential(3600.0 / w.surprises_per_hour)
        held_s = rng.uniform(1.0, 10.0)
        yield Step(t, rng.uniform(0.1, 1.0), rng.uniform(0.1, 0.5) * w.span_w)
        yield Step(t + 1.0 + held_s, 0.5, 0.0)
        t += held_s + 2.0


class _Track:
    """Turns steps into a signal, linear within ramps and level between."""

    def __init__(self, steps: Iterator[Step]) -> None:
        self._steps = steps
        self._t_s = [0.0]
        self._w = [next(steps).to_w]  # the first step is the level at the start
        self._endless_from_s: float | None = None

    def extend(self, until_s: float) -> list[tuple[Step, float]]:
        """Draw steps until the signal is known to `until_s`; the new ones, each with the level before it."""
        new = []
        while self._endless_from_s is None and self._t_s[-1] <= until_s:
            step = next(self._steps, None)
            if step is None:
                self._endless_from_s = self._t_s[-1]
                break
            start_s = max(step.t_s, self._t_s[-1])
            new.append((step, self._w[-1]))
            self._t_s += [start_s, start_s + max(step.ramp_s, MIN_RAMP_S)]
            self._w += [self._w[-1], step.to_w]
        return new

    def at(self, t_s: FloatArray) -> FloatArray:
        """The signal at rising times; what lies well before them is forgotten."""
        values: FloatArray = np.interp(t_s, self._t_s, self._w)
        keep = max(0, int(np.searchsorted(self._t_s, t_s[0])) - 1)
        del self._t_s[:keep], self._w[:keep]
        return values


class PowerStream:
    """The endless power of one workload, in pieces of any size: the same series whatever the pieces."""

    def __init__(self, workload: Workload, rng: np.random.Generator, *, start_tick: int = 0) -> None:
        shape_rng, surprise_rng, noise_rng, plan_rng = rng.spawn(4)
        self.workload = workload
        self.plan: list[Planned] = []
        self._shape = _Track(SHAPES[workload.shape](workload, shape_rng))
        self._surprises = _Track(_surprises(workload, surprise_rng))
        self._noise_rng = noise_rng
        self._plan_rng = plan_rng
        self._start_s = start_tick * TICK_S
        self._k = 0
        kernel = np.exp(-np.arange(FLICKER_TAPS) * TICK_S / FLICKER_TAU_S)
        self._kernel = kernel / np.sqrt(np.sum(kernel**2))
        self._white = noise_rng.standard_normal(FLICKER_TAPS - 1)

    def take(self, n: int) -> FloatArray:
        """The next n samples of outlet power, W, 100 ms apart; `plan` grows to 30 s past them."""
        if n == 0:
            return np.empty(0)
        w = self.workload
        t_s: FloatArray = np.arange(self._k, self._k + n, dtype=np.float64) * TICK_S
        self._k += n
        if w.trace is not None:
            return np.maximum(_fitted(w.trace, w.rating_w) * w.trace.at(t_s + w.start_s), 0.0)
        for step, before_w in self._shape.extend(float(t_s[-1]) + LOOKAHEAD_S):
            if step.announced:
                self._announce(step, before_w)
        self._surprises.extend(float(t_s[-1]))
        load_w = self._shape.at(t_s)
        running = load_w > 0.0
        load_w = load_w + self._surprises.at(t_s)
        white = np.concatenate([self._white, self._noise_rng.standard_normal(n)])
        self._white = white[n:]
        load_w *= 1.0 + w.flicker * np.convolve(white, self._kernel, "valid")
        return np.where(running, outlet_power(np.clip(load_w, 0.0, 1.2 * w.rating_w), w.rating_w), 0.0)

    def _announce(self, step: Step, before_w: float) -> None:
        before, after = outlet_power(np.array([before_w, step.to_w]), self.workload.rating_w)
        t_s = max(0.0, step.t_s + self._plan_rng.normal(0.0, PLAN_TIME_SD_S))
        self.plan.append(
            Planned(self._start_s + t_s, float((after - before) * (1.0 + self._plan_rng.normal(0.0, PLAN_SIZE_SD))))
        )


def _fitted(trace: Trace, rating_w: float) -> float:
    """A recording of a larger machine is scaled down to 95 % of the outlet's rating at its highest; never up."""
    return min(1.0, 0.95 * rating_w / max(1.0, float(np.max(trace.power_w))))


def simulate_power(workload: Workload, seconds: float, rng: np.random.Generator) -> PowerSeries:
    """Power every 100 ms as the daemon's windows would show it (200 ms, 100 ms late, noise-free), no waveforms.

    Plan entries beyond the end are left out.
    """
    stream = PowerStream(workload, rng)
    points_w = stream.take(round(seconds / TICK_S))
    turned_on = (points_w > 0.0) & (np.concatenate([points_w[:1], points_w[:-1]]) <= 0.0)
    points_w += turned_on * (workload.rating_w * INRUSH_TIMES_RATING * INRUSH_TAU_S / TICK_S)
    power_w = np.convolve(np.concatenate([points_w[:1], points_w[:1], points_w]), WINDOW_KERNEL, "valid")
    return PowerSeries(power_w, tuple(sorted(p for p in stream.plan if p.t_s < seconds)))


def random_workload(rng: np.random.Generator, shape: str | None = None, name: str = "server") -> Workload:
    """A server of any size and habit, for training and tests."""
    rating_w = float(rng.choice([350.0, 500.0, 600.0, 700.0, 1100.0, 1600.0, 2400.0]))
    idle_w = rating_w * rng.uniform(0.15, 0.35)
    return Workload(
        name=name,
        shape=shape or str(rng.choice(list(SHAPES))),
        rating_w=rating_w,
        idle_w=idle_w,
        busy_w=max(1.3 * idle_w, rating_w * rng.uniform(0.5, 0.85)),
        period_s=rng.uniform(6.0, 30.0),
        start_s=rng.uniform(0.0, 20.0),
        flicker=rng.uniform(0.004, 0.025),
        surprises_per_hour=rng.uniform(0.0, 12.0),
    )


DEMO_MIX = (
    "inference", "training", "batch", "inference", "ramped", "training", "inference", "batch",
    "boot_storm", "inference", "training", "idle",
)  # fmt: skip


def demo_rack(n_outlets: int, seed: int) -> list[Workload]:
    """The demo's servers, 500-700 W outlets, with something going on in any 30 s."""
    rng = np.random.default_rng(seed)
    rack = []
    for i in range(n_outlets):
        shape = DEMO_MIX[i % len(DEMO_MIX)]
        rating_w = float(rng.choice([500.0, 600.0, 700.0]))
        idle_w = rating_w * rng.uniform(0.2, 0.3)
        start_s = {"training": rng.uniform(3.0, 12.0), "boot_storm": 6.0 + 2.0 * (i // len(DEMO_MIX))}.get(shape, 0.0)
        rack.append(
            Workload(
                name=f"{shape}-{i + 1}",
                shape=shape,
                rating_w=rating_w,
                idle_w=idle_w,
                busy_w=rating_w * rng.uniform(0.6, 0.8),
                period_s=rng.uniform(8.0, 14.0) if shape in ("training", "inference") else rng.uniform(10.0, 18.0),
                start_s=start_s,
                flicker=rng.uniform(0.006, 0.015),
                surprises_per_hour=3.0,
            )
        )
    return rack


# --- waveforms and counts -----------------------------------------------------------------------------------------

# Codes that take the place of a sample, as the host side keeps them (docs/sensor-board-protocol.md).
SATURATED_HIGH = 2**31 - 1
SATURATED_LOW = -(2**31) + 1
CHANNEL_FAULT = -(2**31)

HARMONICS = (1, 3, 5, 7)  # all below 450 Hz at 50 and 60 Hz, as behind a real board's filter
SQRT2 = float(np.sqrt(2.0))
CHUNK_TICKS = 50  # power is drawn from the streams 5 s at a time


@dataclass(frozen=True, slots=True)
class PlantChannel:
    """One channel of the board. `scale`, `skew_ns` and `full_scale_counts` are what the board describes; the errors
    are what only a calibration can find."""

    kind: str  # "current" or "voltage"
    number: int  # outlet or phase, from 1
    name: str  # at most 8 bytes
    scale: float  # A or V per count
    full_scale_counts: int
    skew_ns: int  # sampled so much later than the scan's time
    gain_error: float = 0.0  # counts are (1 + gain_error) times too large
    phase_error_deg: float = 0.0  # the sensor lags by this at the nominal frequency
    offset_counts: float = 0.0


class LoadBank(NamedTuple):
    """A load bank in place of a server: its current is the voltage's own waveform, later by acos(power_factor)."""

    rms_a: float  # at the nominal voltage
    power_factor: float = 1.0


class Truth(NamedTuple):
    """What an ideal meter would read at an outlet now."""

    rms_a: float
    voltage_v: float
    power_w: float


@dataclass(frozen=True, slots=True)
class PlantOptions:
    """The supply and the sensors. Errors are drawn per channel from the seed; 0 is a perfect board."""

    supply: str = "ac"  # or "dc"
    frequency_hz: float = 50.0
    voltage_v: float = 230.0  # phase to neutral, RMS; DC: bus voltage
    n_phases: int = 3
    phase_of: tuple[int, ...] | None = None  # phase of each outlet, from 0; by default outlet i is on i mod n_phases
    width: int = 24
    full_scale_a: float = 50.0  # peak
    full_scale_v: float = 500.0
    noise_a: float = 0.002  # RMS, white
    noise_v: float = 0.03
    skew_step_ns: int = 1000  # one converter after another
    gain_error_sd: float = 0.0
    phase_error_sd_deg: float = 0.0
    offset_sd_counts: float = 0.0
    dropouts_per_hour: float = 0.0  # per channel: a sensor says nothing for 2-50 ms

    def __post_init__(self) -> None:
        if self.supply not in ("ac", "dc"):
            raise ValueError(f"supply is {self.supply!r}; allowed: ac, dc")
        if self.width not in (16, 24, 32):
            raise ValueError(f"width is {self.width}; allowed: 16, 24, 32")
        if self.supply == "ac" and not 45.0 <= self.frequency_hz <= 64.0:
            raise ValueError(f"frequency_hz is {self.frequency_hz:g}; allowed: 45 to 64, so that 7 x f is below 450 Hz")


def _rows(size: FloatArray, angle: FloatArray) -> FloatArray:
    """size x sin(h x + angle) as coefficients: sin and cos parts side by side."""
    return np.concatenate([size * np.cos(angle), size * np.sin(angle)], axis=-1)


def _bench_rows(load: LoadBank, shape: FloatArray, angle: FloatArray) -> FloatArray:
    """Current of a load bank as coefficients; the whole waveform is late, so that its power factor is about the wanted one."""
    return _rows(load.rms_a * shape, angle - np.arccos(load.power_factor) * np.array(HARMONICS))


class Plant:
    """The rack and its sensors: `advance` moves time on and gives the counts. One thread calls it; others may read
    `true_power_w`, `energy_j`, `throttles`, switch outlets and cap their servers.

    Channels: the current of each outlet, then the voltage of each phase. Outlet i (from 0) is on phase i mod n_phases.
    The voltage wanders by 1 % and the frequency by 0.02 Hz. The current's in-phase part and harmonics follow the power,
    the supply filter's capacitor adds a constant leading current: so the power factor falls at low load.
    """

    def __init__(
        self, workloads: Sequence[Workload], options: PlantOptions | None = None, *, rate_hz: int = 1000, seed: int = 0
    ) -> None:
        if rate_hz < 1000 or rate_hz % 10:
            raise ValueError(f"rate_hz is {rate_hz}; allowed: 1000 and more, a multiple of 10")
        self.workloads = tuple(workloads)
        self.options = options or PlantOptions()
        self.rate_hz = rate_hz
        n = len(self.workloads)
        self.n_outlets = n
        self.n_phases = self.options.n_phases if self.options.supply == "ac" else 1
        self.phase_of = np.arange(n) % self.n_phases
        if self.options.phase_of is not None:
            self.phase_of = np.array(self.options.phase_of, dtype=np.int64)
        shape_seed, sensor_seed, noise_seed = np.random.SeedSequence(seed).spawn(3)
        self._stream_rngs = [np.random.default_rng(s) for s in shape_seed.spawn(n)]
        self._streams = [PowerStream(w, r) for w, r in zip(self.workloads, self._stream_rngs, strict=True)]
        self._noise_rng = np.random.default_rng(noise_seed)
        rng = np.random.default_rng(sensor_seed)
        self.channels = self._make_channels(rng)
        self._banks: dict[int, LoadBank] = {}
        self._wave_init(rng)
        self._order: NDArray[np.int64] | None = None
        self._scan = 0  # scans made so far
        self._tick0 = 0  # tick of the first row of _points
        self._points = np.array([s.take(CHUNK_TICKS + 1) for s in self._streams]).reshape(n, -1).T
        self._on = np.ones(n, dtype=np.bool_)
        self.throttles: list[Throttle | None] = [None] * n  # of the servers that were ever capped
        self._was_live = self._points[0] > 0.0  # no inrush for what runs at the start
        self._inrush_w = np.zeros(n)
        self._last_tick_w = np.zeros((rate_hz // 10, n))
        self._fault_until = np.zeros(len(self.channels), dtype=np.int64)
        self.true_power_w: FloatArray = self._points[0].copy()  # mean over the last 100 ms, W
        self.energy_j: FloatArray = np.zeros(n)

    @property
    def time_s(self) -> float:
        return self._scan / self.rate_hz

    def wire(self, order: Sequence[int], turned: Sequence[int] = ()) -> None:
        """From now on channel k is the plant's own channel order[k]; -1 is an unused input, which reads 0.

        Channels `turned` have their transformer the wrong way round.
        """
        unused = PlantChannel("current", 0, "unused", 1.0, 2**23 - 4, 0)
        self.channels = tuple(unused if i < 0 else self.channels[i] for i in order)
        self._order = np.array(order, dtype=np.int64)
        self._turned = np.array(turned, dtype=np.int64)

    def outlet_on(self, outlet: int) -> bool:
        return bool(self._on[outlet])

    def set_outlet(self, outlet: int, on: bool) -> None:
        """Switch an outlet (from 0). Switched on, its server boots; takes effect with the next `advance`."""
        if on and not self._on[outlet]:
            self._reboot(outlet)
        self._on[outlet] = on

    def set_cap(self, outlet: int, cap_w: float | None) -> None:
        """From now on the server at `outlet` (from 0) draws at most `cap_w`, W at the outlet; None: no cap. See Throttle."""
        throttle = self.throttles[outlet]
        if throttle is None:
            server = self.workloads[outlet]
            idle_w, full_w = outlet_power(np.array([server.idle_w, server.busy_w]), server.rating_w)
            throttle = Throttle(float(idle_w), float(full_w), self.rate_hz)
            throttle.keep(np.array([self.true_power_w[outlet]]))  # it starts from what it draws
            self.throttles[outlet] = throttle
        throttle.set_cap(cap_w)

    def set_load_bank(self, outlet: int, load: LoadBank | None) -> None:
        """Plug a load bank into an outlet (from 0), or its server again (None). Raises ValueError for an odd load."""
        if load is not None and not (load.rms_a >= 0.0 and 0.0 < load.power_factor <= 1.0):
            raise ValueError(f"test load {load}; allowed: rms_a from 0, power_factor above 0 and up to 1")
        loads = {k: item for k, item in self._banks.items() if k != outlet}
        if load is not None:
            loads[outlet] = load
        self._banks = loads
        self._rewire()

    def rephase(self, outlet: int, phase: int) -> None:
        """Feed an outlet (from 0) from another phase (from 0), whatever the configuration says."""
        if not 0 <= phase < self.n_phases:
            raise ValueError(f"phase {phase}; allowed: 0 to {self.n_phases - 1}")
        self.phase_of[outlet] = phase
        self._rewire()

    def truth(self, outlet: int) -> Truth:
        """What an ideal meter would read at an outlet (from 0) now."""
        level = float(self._supply(1)[1][0])
        load, drawn_w = self._banks.get(outlet), float(self.true_power_w[outlet])
        if self.options.supply == "dc":
            volts = self.options.voltage_v * level
            amps = drawn_w / volts if load is None else load.rms_a * level
            return Truth(amps, volts, amps * volts)
        if load is None:
            wave = self._true_follow[outlet] * (drawn_w / level) + self._true_leading[outlet] * (
                level * self._on[outlet]
            )
        else:
            wave = self._true_bench[outlet] * level
        amps, volts = float(np.sqrt(wave @ wave / 2.0)), float(np.sqrt(self._true_volts @ self._true_volts / 2.0))
        return Truth(amps, volts * level, float(wave @ self._true_volts) * level / 2.0)

    def _nominal_w(self, load: LoadBank) -> float:
        if self.options.supply == "dc":
            return load.rms_a * self.options.voltage_v
        wave = _bench_rows(load, self._v_size / self.options.voltage_v, self._v_angle)
        return float(wave @ self._true_volts) / 2.0

    def plan(self, until_s: float) -> list[tuple[int, Planned]]:
        """What has been announced from now to `until_s`, at most 30 s ahead: (outlet, change), rising in time."""
        now_s = self.time_s
        found = [(i, p) for i, s in enumerate(self._streams) for p in s.plan if now_s <= p.t_s < until_s]
        return sorted(found, key=lambda entry: entry[1].t_s)

    def advance(self, n_scans: int) -> NDArray[np.int32]:
        """The next scans: counts [n_scans, n_channels], with the host's codes where a sample is saturated or missing."""
        power_w = self._power(n_scans)
        wave = self._wave_dc(power_w) if self.options.supply == "dc" else self._wave_ac(power_w)
        wave += self._noise_rng.standard_normal(wave.shape, dtype=np.float32) * self._noise_counts
        wave += self._offset_counts
        np.rint(wave, out=wave)
        counts = wave.astype(np.int64) if self.options.width == 32 else wave.astype(np.int32)
        over = np.abs(counts) > self._full_scale
        if over.any():
            counts = np.where(over, np.where(counts > 0, SATURATED_HIGH, SATURATED_LOW), counts)
        if self.options.dropouts_per_hour > 0.0:
            self._drop_out(counts)
        self._scan += n_scans
        counts = counts.astype(np.int32, copy=False)
        if self._order is None:
            return counts
        wired = np.where(self._order >= 0, counts[:, self._order], np.int32(0))
        wired[:, self._turned] *= -1  # the fault code is its own negative
        return np.ascontiguousarray(wired, dtype=np.int32)  # a scan in one piece, as a ring takes it

    def _power(self, n: int) -> FloatArray:
        """Power of each outlet at the next n scans, [n, outlets]; keeps the mean and the energy."""
        per_tick = self.rate_hz // 10
        place = (self._scan + np.arange(n)) / per_tick
        self._draw(int(place[-1]) + 1)
        whole = place.astype(np.int64)
        part = (place - whole)[:, None]
        rows = whole - self._tick0
        power_w = np.where(self._on, self._points[rows] * (1.0 - part) + self._points[rows + 1] * part, 0.0)
        for k, throttle in enumerate(self.throttles):
            if throttle is not None:
                power_w[:, k] = throttle.keep(power_w[:, k])
        self._add_inrush(power_w)
        if self._banks:
            level = self._supply(n)[1]
            for k, load in self._banks.items():
                power_w[:, k] = self._nominal_w(load) * level**2
        self._last_tick_w = np.concatenate([self._last_tick_w, power_w])[-per_tick:]
        seen = self._last_tick_w[-min(per_tick, self._scan + n) :]
        self.true_power_w = seen.mean(axis=0)
        self.energy_j = self.energy_j + power_w.sum(axis=0) / self.rate_hz
        return power_w

    def _draw(self, last_tick: int) -> None:
        """Make the points up to `last_tick` known, and forget those before the present."""
        have = self._tick0 + len(self._points) - 1
        if last_tick <= have:
            return
        more = max(CHUNK_TICKS, last_tick - have)
        self._points = np.concatenate([self._points, np.array([s.take(more) for s in self._streams]).T])
        past = self._scan // (self.rate_hz // 10) - self._tick0
        self._points = self._points[past:]
        self._tick0 += past

    def _add_inrush(self, power_w: FloatArray) -> None:
        live = power_w > 0.0
        starts = live & ~np.concatenate([self._was_live[None], live[:-1]])
        self._was_live = live[-1]
        if not (starts.any() or self._inrush_w.any()):
            return
        fade = float(np.exp(-1.0 / (self.rate_hz * INRUSH_TAU_S)))
        peak_w = INRUSH_TIMES_RATING * np.array([w.rating_w for w in self.workloads])
        for k in range(len(power_w)):
            self._inrush_w = np.where(starts[k], peak_w, self._inrush_w * fade)
            power_w[k] += np.where(live[k], self._inrush_w, 0.0)
        self._inrush_w[self._inrush_w < 0.01] = 0.0

    def _reboot(self, outlet: int) -> None:
        """From the next whole tick on, the outlet's server boots instead of what it did."""
        tick = self._scan // (self.rate_hz // 10) + 1
        workload = replace(self.workloads[outlet], shape="boot_storm", start_s=0.0, trace=None)
        stream = PowerStream(workload, self._stream_rngs[outlet], start_tick=tick)
        known = max(0, tick - self._tick0)
        self._points[:known, outlet] = 0.0
        self._points[known:, outlet] = stream.take(len(self._points) - known)
        self._streams[outlet] = stream

    def _make_channels(self, rng: np.random.Generator) -> tuple[PlantChannel, ...]:
        o = self.options
        top = 2 ** (o.width - 1) - 2
        kinds = [("current", i + 1, f"I{i + 1}") for i in range(self.n_outlets)]
        bus = "BUS" if o.supply == "dc" else "L"
        kinds += [("voltage", p + 1, f"{bus}{p + 1}") for p in range(self.n_phases)]
        return tuple(
            PlantChannel(
                kind=kind,
                number=number,
                name=name,
                scale=(o.full_scale_a if kind == "current" else o.full_scale_v) / top,
                full_scale_counts=top,
                skew_ns=c * o.skew_step_ns,
                gain_error=rng.normal(0.0, o.gain_error_sd),
                phase_error_deg=rng.normal(0.0, o.phase_error_sd_deg),
                offset_counts=rng.normal(0.0, o.offset_sd_counts),
            )
            for c, (kind, number, name) in enumerate(kinds)
        )

    def _wave_init(self, rng: np.random.Generator) -> None:
        """Coefficients of sin(h x), cos(h x) for every channel, and how supply voltage and frequency wander."""
        o = self.options
        self._wander = rng.uniform(0.0, 2.0 * np.pi, (2, 3))
        n = self.n_outlets
        self._counts_per = np.array([(1.0 + c.gain_error) / c.scale for c in self.channels])
        noise = np.array([o.noise_a if c.kind == "current" else o.noise_v for c in self.channels])
        self._noise_counts = (noise / np.array([c.scale for c in self.channels])).astype(np.float32)
        self._offset_counts = np.array([c.offset_counts for c in self.channels])
        self._full_scale = np.array([c.full_scale_counts for c in self.channels])
        h = np.array(HARMONICS, dtype=np.float64)
        v_size = np.concatenate([[1.0], rng.uniform(0.003, 0.02, 3)]) * SQRT2 * o.voltage_v
        v_angle = np.concatenate([[0.0], rng.uniform(0.0, 2.0 * np.pi, 3)])
        i_size = np.column_stack([np.ones(n), rng.uniform([0.04, 0.02, 0.01], [0.12, 0.06, 0.04], (n, 3))])
        i_angle = np.column_stack([np.zeros(n), rng.uniform(0.0, 2.0 * np.pi, (n, 3))])
        i_size /= 0.5 * np.sum(i_size * v_size * np.cos(i_angle - v_angle), axis=1)[:, None]  # mean(v i) = 1 W
        cap_a = rng.uniform(0.10, 0.25, n) * np.array([w.rating_w for w in self.workloads]) / 600.0
        late_s = np.array([c.skew_ns for c in self.channels]) * 1e-9
        turn = 2.0 * np.pi * o.frequency_hz * late_s - np.radians([c.phase_error_deg for c in self.channels])

        self._shift_i, self._shift_v = turn[:n, None] * h, turn[n:, None] * h
        self._v_size, self._v_angle = v_size, v_angle
        self._i_size, self._i_angle = i_size, i_angle
        self._cap_size = np.concatenate([[SQRT2], np.zeros(3)]) * cap_a[:, None]
        self._rewire()

    def _rewire(self) -> None:
        """The matrices that make counts, for the phases and test loads of the moment; and the same without sensors."""
        cap_angle = np.array([np.pi / 2.0, 0.0, 0.0, 0.0])
        volts = np.tile(self._v_size, (self.n_phases, 1))
        self._true_follow = _rows(self._i_size, self._i_angle)
        self._true_leading = _rows(self._cap_size, np.broadcast_to(cap_angle, self._cap_size.shape))
        self._true_volts = _rows(self._v_size, self._v_angle)
        self._follow = self._per_phase(_rows(self._i_size, self._i_angle + self._shift_i), self.phase_of)
        self._leading = self._per_phase(_rows(self._cap_size, cap_angle + self._shift_i), self.phase_of)
        self._volts = self._per_phase(_rows(volts, self._v_angle + self._shift_v), np.arange(self.n_phases))
        shape = self._v_size / self.options.voltage_v
        self._true_bench = {k: _bench_rows(load, shape, self._v_angle) for k, load in self._banks.items()}
        bench = np.zeros((self.n_outlets, 2 * len(HARMONICS)))
        for k, load in self._banks.items():
            bench[k] = _bench_rows(load, shape, self._v_angle + self._shift_i[k])
        self._bench = self._per_phase(bench, self.phase_of)

    def _per_phase(self, rows: FloatArray, phase_of: NDArray[np.int64]) -> FloatArray:
        """[channels, 8] -> matrix [n_phases * 8, channels] that picks each channel's own phase."""
        matrix: FloatArray = np.zeros((self.n_phases, rows.shape[1], len(rows)))
        matrix[phase_of, :, np.arange(len(rows))] = rows
        return matrix.reshape(-1, len(rows))

    def _supply(self, n: int) -> tuple[FloatArray, FloatArray]:
        """Angle of phase 1 and relative voltage [n] at the next scans, both closed forms of time."""
        t_s = (self._scan + np.arange(n)) / self.rate_hz
        speed = 2.0 * np.pi / np.array([7.3, 31.0, 113.0])
        swing = np.sin(speed * t_s[:, None] + self._wander[0])
        level = 1.0 + swing @ np.array([0.002, 0.003, 0.005])
        drift_hz = np.array([0.004, 0.006, 0.010])
        drift = 2.0 * np.pi * (np.cos(speed * t_s[:, None] + self._wander[1]) @ (drift_hz / speed))
        return 2.0 * np.pi * self.options.frequency_hz * t_s + drift, level

    def _wave_ac(self, power_w: FloatArray) -> FloatArray:
        """Counts before noise, [n, channels]."""
        n = len(power_w)
        angle, level = self._supply(n)
        phase = angle[:, None] - 2.0 * np.pi / 3.0 * np.arange(self.n_phases)
        turned = phase[:, :, None] * np.array(HARMONICS)
        basis = np.concatenate([np.sin(turned), np.cos(turned)], axis=2).reshape(n, -1)
        wave = np.empty((n, len(self._counts_per)))
        outlets = self.n_outlets
        wave[:, :outlets] = (basis @ self._follow) * (power_w / level[:, None])
        wave[:, :outlets] += (basis @ self._leading) * (self._on * level[:, None])
        wave[:, outlets:] = (basis @ self._volts) * level[:, None]
        banks = list(self._banks)
        wave[:, banks] = (basis @ self._bench[:, banks]) * level[:, None]
        wave *= self._counts_per
        return wave

    def _wave_dc(self, power_w: FloatArray) -> FloatArray:
        level = self._supply(len(power_w))[1][:, None]
        volts = self.options.voltage_v * level
        wave: FloatArray = np.concatenate([power_w / volts, volts], axis=1)
        for k, load in self._banks.items():
            wave[:, k] = load.rms_a * level[:, 0]
        wave *= self._counts_per
        return wave

    def _drop_out(self, counts: NDArray[np.int32] | NDArray[np.int64]) -> None:
        n, channels = counts.shape
        chance = self.options.dropouts_per_hour / 3600.0 * n / self.rate_hz
        starts = self._noise_rng.random(channels) < chance
        for c in np.flatnonzero(starts):
            self._fault_until[c] = self._scan + int(self._noise_rng.uniform(0.002, 0.05) * self.rate_hz)
        scans = self._scan + np.arange(n)
        counts[scans[:, None] < self._fault_until] = CHANNEL_FAULT
