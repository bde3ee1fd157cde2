"""The simulated rack's physics: what servers draw, and the counts a sensor board would make of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np
from rpi_daemon.drivers.sensors.traces import Trace

from rpi_daemon.records import TICK_S, FloatArray

LOOKAHEAD_S = 30.0  # how far ahead of the present a stream knows its own plan
MIN_RAMP_S = 0.001
FLICKER_TAPS = 16  # memory of the load's own fluctuation, ticks
FLICKER_TAU_S = 0.4
PLAN_TIME_SD_S = 0.15  # a scheduler's announcement is a little wrong in time
PLAN_SIZE_SD = 0.06  # and in size

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
    """Power at the outlet every 100 ms; `power_w` [m] in W, sample k at k * 0.1 s."""

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

    def __init__(self, workload: Workload, rng: np.random.Generator) -> None:
        shape_rng, surprise_rng, noise_rng, plan_rng = rng.spawn(4)
        self.workload = workload
        self.plan: list[Planned] = []
        self._shape = _Track(SHAPES[workload.shape](workload, shape_rng))
        self._surprises = _Track(_surprises(workload, surprise_rng))
        self._noise_rng = noise_rng
        self._plan_rng = plan_rng
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
        self.plan.append(Planned(t_s, float((after - before) * (1.0 + self._plan_rng.normal(0.0, PLAN_SIZE_SD)))))


def _fitted(trace: Trace, rating_w: float) -> float:
    """A recording of a larger machine is scaled down to 95 % of the outlet's rating at its highest; never up."""
    return min(1.0, 0.95 * rating_w / max(1.0, float(np.max(trace.power_w))))


def simulate_power(workload: Workload, seconds: float, rng: np.random.Generator) -> PowerSeries:
    """Power at the outlet every 100 ms for `seconds`, without waveforms; plan entries beyond the end are left out."""
    stream = PowerStream(workload, rng)
    power_w = stream.take(round(seconds / TICK_S))
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
