"""The deployed pipeline over recordings: forecaster, residual and corrector as the daemon runs them, in order, tick by tick."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpi_daemon.actuator import Actuator, ActuatorConfig
from rpi_daemon.assembly import build_forecaster, settings
from rpi_daemon.clock import ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.corrector import Corrector, CorrectorConfig
from rpi_daemon.dry_run import SETTLE_NS
from rpi_daemon.records import (
    QUANTILES,
    TICK_NS,
    ApplyResult,
    BoolArray,
    FloatArray,
    Forecast,
    ForecastInput,
    IntArray,
    LimitKind,
    LimitsInForce,
    LimitState,
    LimitWrite,
    Load,
    PduReading,
    Permitted,
    Quality,
    RackModel,
    Readings,
    Request,
    WriteOutcome,
)
from rpi_daemon.residual import ResidualMatcher
from skill.series import Series

DEPLOYED = "deployed"  # what the daemon acts on; the others are its members
BEGIN_UTC_NS = 1_704_067_200_000_000_000  # Monday 2024-01-01: recordings tell no date
LONGEST_BATCH = 600
TICK_WORK = 150  # a tick costs as much before its first outlet as this many outlets in it
NEVER = -(1 << 40)

_CONFIG = """
[rack]
id = "bench"
[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "192.0.2.1"
user = "none"
auth_key_env = "NONE"
priv_key_env = "NONE"
[[board]]
id = "board"
port = "none"
channels = ["current:pdu/1"]
[[outlet]]
pdu = "pdu"
numbers = "1"
load = "load"
rating_w = 1000.0
static_safe_w = 1000.0
[[constraint]]
id = "feed"
kind = "feed"
rating_w = 2000.0
outlets = ["*"]
"""

BuildForecaster = Callable[[int], Any]  # outlets -> what steps like the daemon's forecaster


@dataclass
class Answers:
    """What was said at each reading [m] of one series, 5 s ahead, W. NaN: nothing."""

    sources: tuple[str, ...]  # "deployed", then its members
    value_w: FloatArray  # [m, sources, 3] quantiles of the value
    running_max_w: FloatArray  # [m, sources, 3] quantiles of the running maximum
    request_w: FloatArray  # [m]
    limit_w: FloatArray  # [m] what the outlet's alarm threshold stood at when the reading came; NaN: not known yet
    writes: int  # of the threshold, over the whole series


class Progress:
    """Work done, told to `say(share)` whenever it has grown by a two-hundredth."""

    def __init__(self, total: int, say: Callable[[float], None]) -> None:
        self._total, self._say = total, say
        self._done = self._due = 0

    def add(self, work: int) -> None:
        self._done += work
        if self._done >= self._due:
            self._due = self._done + self._total // 200
            self._say(self._done / self._total)


def default_config(model: Path | None = None) -> Config:
    """The shipped defaults; `model` is a directory, None the shipped one."""
    forecast = "" if model is None else f"[forecast]\nmodel = {json.dumps(str(model.resolve()))}\n"
    return parse_config(forecast + _CONFIG, "bench", base_dir=Path(), env={"NONE": "not a secret"})


def deployed_forecaster(config: Config) -> BuildForecaster:
    """The forecaster of the configuration, in virtual time: an answer never comes late. Raises ModelError."""
    return lambda n: build_forecaster(config, n, ManualClock())


def rack_of(series: Sequence[Series]) -> RackModel:
    """Each series an outlet and a load of its own, on nothing that could bind."""
    n = len(series)
    rating_w = np.array([s.rating_w for s in series])
    loads = tuple(Load(s.name, (i,), 1, 0.0, s.rating_w, False, False) for i, s in enumerate(series))
    return RackModel(
        "bench", tuple(f"pdu/{i + 1}" for i in range(n)), ("pdu",) * n, tuple(range(1, n + 1)), np.arange(n),
        rating_w, rating_w, np.full(n, 230.0), np.ones(n, np.bool_), loads, (),
    )  # fmt: skip


def batches(series: Sequence[Series]) -> list[list[Series]]:
    """Series that run side by side, the longest first: cut where the work is least.

    An outlet whose recording has ended still costs its part of every tick, a batch of its own costs ticks.
    """
    ordered = sorted(series, key=lambda s: -s.ticks)
    ticks = np.array([s.ticks for s in ordered])
    least, cut = np.zeros(len(ordered) + 1), [0] * (len(ordered) + 1)
    for end in range(1, len(ordered) + 1):
        begin = np.arange(max(0, end - LONGEST_BATCH), end)
        work = least[begin] + ticks[begin] * (TICK_WORK + end - begin)
        least[end], cut[end] = work.min(), int(begin[work.argmin()])
    made = []
    end = len(ordered)
    while end:
        made.append(ordered[cut[end] : end])
        end = cut[end]
    return made[::-1]


def run(
    series: Sequence[Series], build: BuildForecaster, config: Config, progress: Progress | None = None
) -> Iterator[tuple[Series, Answers]]:
    """What the daemon would have said of every series, batch after batch."""
    for batch in batches(series):
        yield from zip(batch, _run_batch(batch, build, config, progress), strict=True)


def _run_batch(
    batch: Sequence[Series], build: BuildForecaster, config: Config, progress: Progress | None
) -> list[Answers]:
    rack, feed = rack_of(batch), _Feed(batch)
    forecaster = build(rack.n)
    matcher = ResidualMatcher(rack.n)
    corrector = Corrector(settings(CorrectorConfig, config.corrector), rack)
    limits = _AlarmLimits(config, rack)
    book = _Book(batch)
    for tick in range(feed.ticks):
        readings = feed.readings(tick)
        in_force = limits.in_force(readings.t_mono_ns)
        residual = matcher.match(readings)
        forecast = forecaster.step(feed.forecast_input(readings, rack.rating_w))
        request = corrector.step(forecast, residual, readings, in_force)
        matcher.record(forecast, request.request_w)
        outlets, rows = feed.came(tick)
        if len(outlets):
            said = {DEPLOYED: forecast, **forecaster.latest}
            book.keep(outlets, rows, said, request.request_w, in_force.limit_w)
        limits.follow(request, forecast, feed.last_tick >= tick)
        if progress is not None:
            progress.add(TICK_WORK + rack.n)
    return book.answers(limits.writes)


class _Feed:
    """Readings of a batch of series, tick by tick, as Features gives them for boards and slow meters."""

    def __init__(self, batch: Sequence[Series]) -> None:
        n = len(batch)
        tick = np.concatenate([s.tick for s in batch])
        order = np.argsort(tick, kind="stable")
        self._outlet = np.repeat(np.arange(n), [len(s.tick) for s in batch])[order]
        self._row = np.arange(len(tick))[order]  # of the batch's readings, series after series
        self._power_w = np.concatenate([s.power_w for s in batch])[order]
        self.last_tick = np.array([s.ticks for s in batch]) - 1
        self.ticks = int(self.last_tick.max()) + 1
        self._begin = np.searchsorted(tick[order], np.arange(self.ticks + 1))
        self._slow = np.array([s.slow for s in batch])
        self._stale_ticks = np.array([s.stale_ticks for s in batch])
        self._interval_ticks = np.array([s.interval_ticks for s in batch])
        self._newest_w = np.full(n, np.nan)
        self._newest_tick = np.full(n, NEVER)
        self._unknown = np.full(n, np.nan)
        self._nothing = np.zeros((n, 4))
        self._no_plan = np.zeros((n, 5))

    def came(self, tick: int) -> tuple[IntArray, IntArray]:
        """Outlets with a reading for this tick, and which of the batch's readings it is."""
        span = slice(self._begin[tick], self._begin[tick + 1])
        return self._outlet[span], self._row[span]

    def readings(self, tick: int) -> Readings:
        """All outlets at this tick; call once for each, in order."""
        span = slice(self._begin[tick], self._begin[tick + 1])
        self._newest_w[self._outlet[span]] = self._power_w[span]
        self._newest_tick[self._outlet[span]] = tick
        valid = tick - self._newest_tick <= self._stale_ticks
        held = self._newest_tick < tick
        quality = np.where(valid, self._slow * (Quality.SLOW_METER + held * Quality.HELD), Quality.STALE)
        unknown = self._unknown
        return Readings(
            t_mono_ns=(tick + 1) * TICK_NS,
            t_utc_ns=BEGIN_UTC_NS + (tick + 1) * TICK_NS,
            power_w=np.where(valid, self._newest_w, np.nan),
            rms_a=unknown, apparent_va=unknown, power_factor=unknown, peak_a=unknown, crest=unknown, min_a=unknown,
            max_a=unknown, step_w=unknown, voltage_v=unknown,
            count=np.where(held, 0, 1), missing=np.zeros_like(self._newest_tick),
            quality=quality, valid=valid, interval_ticks=self._interval_ticks,
        )  # fmt: skip

    def forecast_input(self, readings: Readings, rating_w: FloatArray) -> ForecastInput:
        """As the pipeline makes it: nothing announced, no telemetry."""
        return ForecastInput(
            t_mono_ns=readings.t_mono_ns,
            t_utc_s=readings.t_utc_ns / 1e9,
            power_w=readings.power_w,
            peak_w=self._unknown,
            step_w=readings.step_w,
            valid=readings.valid,
            rating_w=rating_w,
            planned_w=self._no_plan,
            telemetry=self._nothing,
            telemetry_mask=self._nothing,
            quality=readings.quality,
            interval_ticks=readings.interval_ticks,
        )


class _AlarmLimits:
    """The written limit of an `alarm` device whose rack is never short: the actuator's write economy on a PDU in virtual time.

    It begins at STATIC_SAFE; a batch of writes is verified `SETTLE_NS` after it was sent, one batch at a time.
    """

    def __init__(self, config: Config, rack: RackModel) -> None:
        self._rack = rack
        self._lowest_w = np.minimum(config.guard.lowest_limit_w, rack.rating_w)
        self._actuator = Actuator(settings(ActuatorConfig, config.actuator), rack)
        found = {n: LimitState(float(w), True, LimitKind.ALARM) for n, w in enumerate(rack.static_safe_w, start=1)}
        self._actuator.observe("pdu", PduReading(0, 0.0, {}, {}, {}, found))
        self._waiting: tuple[LimitWrite, ...] = ()
        self._on_wire: tuple[LimitWrite, ...] = ()
        self._sent_ns = 0
        self._rule = ("granted",) * rack.n
        self._no = np.zeros(rack.n, np.bool_)
        self.writes = np.zeros(rack.n, np.int64)  # verified

    def in_force(self, now_ns: int) -> LimitsInForce:
        """What stands on the device now."""
        if self._on_wire and now_ns - self._sent_ns >= SETTLE_NS:
            outcomes = [
                WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, self._sent_ns, now_ns) for w in self._on_wire
            ]
            self._actuator.confirm("pdu", now_ns, ApplyResult(tuple(outcomes), 1))
            for write in self._on_wire:
                self.writes[write.outlet - 1] += 1
            self._on_wire = ()
        if self._waiting and not self._on_wire:
            self._on_wire, self._waiting, self._sent_ns = self._waiting, (), now_ns
        return self._actuator.limits(now_ns)

    def follow(self, request: Request, forecast: Forecast, running: BoolArray) -> None:
        """Ask for what the guard would permit; nothing for outlets whose recording has ended."""
        limit_w = np.where(running, np.clip(request.alarm_w, self._lowest_w, self._rack.rating_w), np.nan)
        need_w = np.fmin(limit_w, request.request_w)
        no = self._no
        permitted = Permitted(request.t_mono_ns, limit_w, need_w, no, no, no, self._rule)
        for desired in self._actuator.step(request.t_mono_ns, permitted, request, forecast):
            self._waiting = desired.limits


class _Book:
    """What was said at each reading of a batch."""

    def __init__(self, batch: Sequence[Series]) -> None:
        self._ends = np.cumsum([len(s.tick) for s in batch])
        m = int(self._ends[-1])
        self._sources: tuple[str, ...] = ()
        self._said = np.zeros((0,), np.float32)
        self._request_w, self._limit_w = np.full(m, np.nan), np.full(m, np.nan)

    def keep(
        self, outlets: IntArray, rows: IntArray, said: dict[str, Forecast], request_w: FloatArray, limit_w: FloatArray
    ) -> None:
        """Take what each source says of these outlets now."""
        new = tuple(name for name in said if name not in self._sources)
        if new:  # a member may be silent at first
            more = np.full((len(self._request_w), len(new), 2, len(QUANTILES)), np.nan, np.float32)
            self._said = np.concatenate([self._said, more], axis=1) if self._sources else more
            self._sources += new
        for name, forecast in said.items():
            place = self._sources.index(name)
            self._said[rows, place, 0] = forecast.value_w[outlets, -1]
            self._said[rows, place, 1] = forecast.running_max_w[outlets, -1]
        self._request_w[rows] = request_w[outlets]
        self._limit_w[rows] = limit_w[outlets]

    def answers(self, writes: IntArray) -> list[Answers]:
        """By series, in the order of the batch."""
        return [
            Answers(self._sources, said[:, :, 0], said[:, :, 1], request_w, limit_w, int(written))
            for said, request_w, limit_w, written in zip(
                np.split(self._said, self._ends[:-1]),
                np.split(self._request_w, self._ends[:-1]),
                np.split(self._limit_w, self._ends[:-1]),
                writes,
                strict=True,
            )
        ]


def work(series: Sequence[Series]) -> int:
    """What running them costs, for `Progress`."""
    return sum(batch[0].ticks * (TICK_WORK + len(batch)) for batch in batches(series))
