"""Raw scans and slow meters to readings: the newest window of every board, the newest poll of every meter, merged by outlet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rpi_daemon._fastpath import core
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import (
    TICK_NS,
    TICK_S,
    BoolArray,
    FloatArray,
    IntArray,
    PduReading,
    Quality,
    RackModel,
    Readings,
)
from rpi_daemon.stuck import StuckSensors

# of apparent power: what 2 degrees of phase that nobody took out make of a purely capacitive load, an idle supply
NOISE_SHARE = 0.035
STALE_NS = 150_000_000  # a board whose newest window ended longer ago than this has no reading
NEVER_NS = -(1 << 62)
STALE_POLLS = 3  # a slow meter whose newest reading is older than this many polls, and a tick, has none


@dataclass(frozen=True, slots=True)
class BoardSetup:
    """One board: where its scans are, what turns them into features, and whom it measures."""

    ring: core.Ring
    kernel: core.WindowKernel
    outlets: IntArray  # index in the rack of each outlet of the kernel, in the kernel's order
    first: int = 0  # scans below this index are of a former run of the daemon, and in no window
    uncalibrated: tuple[
        bool, ...
    ] = ()  # by outlet of the kernel: its file has no good word of it; empty: nothing to say


@dataclass(frozen=True, slots=True)
class MeterSetup:
    """A PDU's or meter's own reading of an outlet: what stands for it where no board measures it, or its sensor is stuck."""

    outlet: int  # index in the rack
    pdu: str
    number: int  # outlet or channel on that PDU
    poll_s: float


class Features:
    """Merges boards and slow meters into one Readings per tick: `observe` what PDUs say, then `step`. Not thread-safe.

    `meters` are of any outlets: where a board measures one too, its meter counts only while the sensor is stuck.
    `alternating`: whether currents are, see `StuckSensors`. Below `lowest_voltage` of nominal a voltage channel counts as lost: a blown tap, not a load without power.
    Power below -`noise_w` is no reading: a load does not feed back, so a transformer is on the wrong way round.
    Raises ConfigError if an outlet is measured twice, is not in the rack, or a board's list does not fit its kernel.
    """

    def __init__(
        self,
        rack: RackModel,
        boards: Sequence[BoardSetup],
        meters: Sequence[MeterSetup] = (),
        *,
        lowest_voltage: float = 0.8,
        noise_w: float = 2.0,
        alternating: bool = False,
    ) -> None:
        measured = np.concatenate([board.outlets for board in boards]) if boards else np.zeros(0, np.int64)
        if len(np.unique(measured)) != len(measured):
            twice = sorted({rack.outlet_ids[i] for i in measured if np.sum(measured == i) > 1})
            raise ConfigError(f"measured by two current channels: {', '.join(twice)}; give each outlet one channel")
        if len(measured) and not 0 <= measured.min() <= measured.max() < rack.n:
            raise ConfigError(f"a board measures outlet {measured.max()}, the rack has 0 to {rack.n - 1}")
        self._n = rack.n
        self._nominal_v = rack.nominal_v
        self._t_mono_ns = 0
        self.configure(lowest_voltage=lowest_voltage, noise_w=noise_w)
        self._boards = [_Board(setup) for setup in boards]
        self._boarded = np.isin(np.arange(rack.n), measured)
        self._stuck = StuckSensors(rack.rating_w, rack.nominal_v, alternating=alternating)
        self._meters = _Meters(meters, self._nominal_v)
        slow = [setup for setup in meters if not self._boarded[setup.outlet]]
        self._interval_ticks = np.ones(rack.n, np.int64)
        self._interval_ticks[[s.outlet for s in slow]] = [max(1, round(s.poll_s / TICK_S)) for s in slow]

    def configure(self, *, lowest_voltage: float, noise_w: float) -> None:
        """Other settings from the next `step` on."""
        self._lowest_v = lowest_voltage * self._nominal_v
        self._noise_w = noise_w

    @property
    def ends(self) -> tuple[int, ...]:
        """One past the last scan of the window in use, per board."""
        return tuple(board.end for board in self._boards)

    @property
    def interval_ticks(self) -> IntArray:
        """Ticks between two readings of each outlet, [n]; 1: a board."""
        return self._interval_ticks

    def observe(self, pdu: str, reading: PduReading) -> None:
        """Take in one poll of a PDU or meter."""
        for outlet, power_w in self._meters.observe(pdu, reading):
            if self._boarded[outlet]:
                self._stuck.meter(outlet, reading.t_mono_ns, power_w)

    def step(self, now_ns: int, utc_ns: int) -> Readings:
        """Readings at the tick `now_ns` (CLOCK_MONOTONIC); their time is that of the newest scan used.

        An outlet of a slow meter keeps its newest reading, marked SLOW_METER, until that is older than three polls and a
        tick; HELD from the second tick on. What a meter cannot tell (peak, crest, step) is NaN. An outlet whose board has no window that ended in the last 150 ms is STALE: NaN, not valid. Without any such
        window the time is the tick's own. It never goes back, and never lies ahead: the first window after a gap may be
        older than the tick before it, which then had none.
        """
        rows = np.full((core.N_FEATURES, self._n), np.nan)
        rows[core.F_COUNT : core.F_SATURATED + 1] = 0.0
        rows[core.F_QUALITY] = Quality.STALE
        t_mono_ns = 0
        for board in self._boards:
            if board.advance() and board.window is not None:
                self._watch(board, board.window)
            if board.window is not None and now_ns - board.t_ns <= STALE_NS:
                rows[:, board.outlets] = board.window
                t_mono_ns = max(t_mono_ns, board.t_ns)
        stuck = self._stuck.stuck & (rows[core.F_QUALITY] != Quality.STALE)
        if stuck.any():
            rows[:, stuck] = np.nan
            rows[core.F_COUNT : core.F_SATURATED + 1, stuck] = 0.0
            rows[core.F_QUALITY, stuck] = Quality.STALE
        before_ns, self._t_mono_ns = self._t_mono_ns, max(self._t_mono_ns, min(t_mono_ns or now_ns, now_ns))
        quality = self._apparent_where_no_voltage(rows)
        self._meters.fill(rows, quality, now_ns, ~self._boarded | stuck, newer=self._t_mono_ns > before_ns)
        quality[stuck] |= int(Quality.STUCK)
        return self._readings(rows, quality, self._t_mono_ns, utc_ns - (now_ns - self._t_mono_ns))

    def _watch(self, board: "_Board", window: FloatArray) -> None:
        clipped = window[core.F_QUALITY].astype(np.int64) & int(Quality.SATURATED) != 0
        power_w = np.where(np.isnan(window[core.F_POWER_W]), window[core.F_RMS_A], window[core.F_POWER_W])
        low_a, high_a = window[core.F_MIN_A], window[core.F_MAX_A]
        self._stuck.window(board.outlets, board.t_ns, power_w, low_a, high_a, clipped)

    def _apparent_where_no_voltage(self, rows: FloatArray) -> IntArray:
        """What the boards' channels amount to without a voltage; returns the quality bits [n]."""
        quality: IntArray = rows[core.F_QUALITY].astype(np.int64)
        unmetered = quality & Quality.NO_VOLTAGE != 0
        # written so that a voltage that is not known, beside a current that is, is lost as well
        lost = ~unmetered & np.isfinite(rows[core.F_RMS_A]) & ~(rows[core.F_VOLTAGE_V] >= self._lowest_v)
        rows[core.F_STEP, unmetered] *= self._nominal_v[unmetered]
        rows[core.F_STEP, lost] = np.nan  # steps of v x i: of nothing
        rows[core.F_VOLTAGE_V, lost] = np.nan
        rows[core.F_POWER_FACTOR, lost] = np.nan
        quality[lost] |= Quality.NO_VOLTAGE | Quality.VOLTAGE_LOST
        # configured volts times measured amps: apparent power, and the quality says so
        without = unmetered | lost
        apparent_va = rows[core.F_RMS_A, without] * self._nominal_v[without]
        rows[core.F_POWER_W, without] = rows[core.F_APPARENT_VA, without] = apparent_va
        # clipped samples tell no phase: at least full scale, whatever its product with the voltage amounts to
        clipped = quality & int(Quality.SATURATED) != 0
        if clipped.any():
            rows[core.F_POWER_W, clipped] = np.fmax(rows[core.F_POWER_W, clipped], rows[core.F_APPARENT_VA, clipped])
            rows[core.F_POWER_FACTOR, clipped] = np.nan
        return quality

    def _readings(self, rows: FloatArray, quality: IntArray, t_mono_ns: int, t_utc_ns: int) -> Readings:
        backward = rows[core.F_POWER_W] < -np.fmax(self._noise_w, NOISE_SHARE * rows[core.F_APPARENT_VA])
        quality[backward] |= Quality.REVERSED
        rows[core.F_POWER_W, backward] = np.nan
        return Readings(
            t_mono_ns=t_mono_ns,
            t_utc_ns=t_utc_ns,
            power_w=rows[core.F_POWER_W],
            rms_a=rows[core.F_RMS_A],
            apparent_va=rows[core.F_APPARENT_VA],
            power_factor=rows[core.F_POWER_FACTOR],
            peak_a=rows[core.F_PEAK_A],
            crest=rows[core.F_CREST],
            min_a=rows[core.F_MIN_A],
            max_a=rows[core.F_MAX_A],
            step_w=rows[core.F_STEP],
            voltage_v=rows[core.F_VOLTAGE_V],
            count=rows[core.F_COUNT].astype(np.int64),
            missing=rows[core.F_MISSING].astype(np.int64),
            quality=quality,
            valid=np.isfinite(rows[core.F_POWER_W]),
            interval_ticks=self._interval_ticks,
        )


class _Board:
    """The newest window of one board: features [N_FEATURES, its outlets] and when it ended; None before the first."""

    def __init__(self, setup: BoardSetup) -> None:
        if len(setup.outlets) != setup.kernel.n_outlets:
            raise ConfigError(f"a board lists {len(setup.outlets)} outlets, its kernel has {setup.kernel.n_outlets}")
        self.outlets: NDArray[np.int64] = setup.outlets
        self.window: FloatArray | None = None
        self.t_ns = 0
        self._ring = setup.ring
        self._kernel = setup.kernel
        self._from = setup.first + setup.kernel.span
        self.end = 0
        self._period_ns = 1_000_000_000 // setup.ring.rate_hz
        self._quality = np.array(setup.uncalibrated or (False,) * setup.kernel.n_outlets) * int(Quality.UNCALIBRATED)

    def advance(self) -> bool:
        """Take the newest complete window; whether there is a new one."""
        head = self._ring.head
        end = head - head % core.WINDOW_HOP
        if end == self.end or end < self._from:
            return False
        result = self._kernel.compute(self._ring, end)
        if result == core.WINDOW_NOT_READY:
            return False
        if result == core.WINDOW_LAPPED:
            # overwritten while it was read: no data, and the board will show as stale if that goes on
            self.window = None
            return False
        if not self._kernel.t_end_ns and not self.end:
            return False  # nothing of this board has ever been seen, so there is no time to go on from
        window = self._kernel.out.T.copy()
        window[core.F_QUALITY] = window[core.F_QUALITY].astype(np.int64) | self._quality
        # a window that is missing as a whole carries no time of its own
        self.t_ns = self._kernel.t_end_ns or self.t_ns + (end - self.end) * self._period_ns
        self.window = window
        self.end = end
        return True


class _Meters:
    """The newest reading of every slow meter: power, amps, volts [3, meters], NaN where it does not tell."""

    def __init__(self, setups: Sequence[MeterSetup], nominal_v: FloatArray) -> None:
        self.outlets = np.array([setup.outlet for setup in setups], dtype=np.int64)
        self._nominal_v = nominal_v[self.outlets]
        self._stale_ns = np.array([round(STALE_POLLS * setup.poll_s * NS_PER_S) + TICK_NS for setup in setups])
        self._by_pdu: dict[str, list[tuple[int, int]]] = {}
        for k, setup in enumerate(setups):
            self._by_pdu.setdefault(setup.pdu, []).append((k, setup.number))
        n = len(setups)
        self._read = np.full((3, n), np.nan)
        self._apparent = np.zeros(n, np.bool_)
        self._t_ns = np.full(n, NEVER_NS, np.int64)
        self._held = np.zeros(n, np.bool_)

    def observe(self, pdu: str, reading: PduReading) -> list[tuple[int, float]]:
        """Keep what it tells of our outlets, and return it: outlet, W. A poll without power and amps tells nothing, and the
        one before ages."""
        told = []
        for k, number in self._by_pdu.get(pdu, ()):
            power_w, current_a = reading.power_w.get(number), reading.current_a.get(number)
            if power_w is None and current_a is None:
                continue
            # volts come with some polls only
            voltage_v = reading.voltage_v.get(number) if reading.voltage_v else self._read[2, k]
            self._read[:, k] = [np.nan if value is None else value for value in (power_w, current_a, voltage_v)]
            self._apparent[k] = power_w is None or number in reading.apparent
            self._t_ns[k] = reading.t_mono_ns
            self._held[k] = False
            told.append((int(self.outlets[k]), float(self._watts[k])))
        return told

    @property
    def _watts(self) -> FloatArray:
        """Power of every meter; where nobody measured it, nominal volts times amps."""
        watts: FloatArray = np.where(np.isnan(self._read[0]), self._nominal_v * self._read[1], self._read[0])
        return watts

    def fill(self, rows: FloatArray, quality: IntArray, now_ns: int, wanted: BoolArray, *, newer: bool) -> None:
        """Write what is not stale, of `wanted` outlets [n], into `rows` [N_FEATURES, n] and `quality` [n]. `newer`: this tick
        will be learned from."""
        live = (now_ns - self._t_ns <= self._stale_ns) & wanted[self.outlets]
        outlets = self.outlets[live]
        _, current_a, voltage_v = self._read[:, live]
        power_w = self._watts[live]  # nominal volts times amps where nobody measured watts, and the quality says so
        apparent, held = self._apparent[live], self._held[live]
        apparent_va = np.where(apparent, power_w, voltage_v * current_a)
        rows[core.F_POWER_W, outlets] = power_w
        rows[core.F_RMS_A, outlets] = current_a
        rows[core.F_VOLTAGE_V, outlets] = voltage_v
        rows[core.F_APPARENT_VA, outlets] = apparent_va
        with np.errstate(invalid="ignore", divide="ignore"):
            rows[core.F_POWER_FACTOR, outlets] = np.where(
                ~apparent & (apparent_va > 0.0), power_w / apparent_va, np.nan
            )
        rows[core.F_COUNT, outlets] = ~held
        quality[outlets] = (
            Quality.SLOW_METER | np.where(apparent, Quality.NO_VOLTAGE, 0) | np.where(held, Quality.HELD, 0)
        )
        if newer:
            self._held[live] = True
