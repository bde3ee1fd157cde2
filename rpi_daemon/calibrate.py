"""`rpi-daemon calibrate`: steps on the real board with known loads, a verdict per channel, and the file."""

import asyncio
import contextlib
import math
import os
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rpi_daemon._fastpath import core
from rpi_daemon.calibration import Calibration, ChannelRecord, Instrument, load_calibration
from rpi_daemon.calibration_fit import LEAST_LOAD, Fit, Measured, Reference, Sensor, Step, measure, residual
from rpi_daemon.clock import NS_PER_S, Clock, SystemClock
from rpi_daemon.config.load import line_numbers
from rpi_daemon.config.schema import Board, Config, Outlet, Section
from rpi_daemon.devices import pdu_driver
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import ConfigError, DeviceError, RpiError
from rpi_daemon.features import BoardSetup
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.records import BoolArray, PduReading
from rpi_daemon.sensing import BoardLink, board_link, sensors

SECONDS = 5.0  # of averaging
LEAST_S, MOST_S = 2.0, 600.0
METER_PERIOD_S = 0.5  # between two readings of a reference meter
LEAST_READINGS = 2  # of a reference meter within one step
STALE_NS = 2 * NS_PER_S
SILENT_S = 2.0  # a board that sends nothing for so long has stopped
LOOK_S = 0.05
NO_DATA = 1 << 5 | 1 << 6  # board status TEST, SETTLING: not a measurement

Seconds = Annotated[float, Field(ge=LEAST_S, le=MOST_S)]


def _place(text: str) -> str:
    pdu, slash, number = text.partition("/")
    if not (pdu and slash and (number == "{n}" or number.isdigit())):
        raise ValueError(f"{text!r} is not 'PDU/NUMBER' or 'PDU/{{n}}'")
    return text


class PlannedStep(Section):
    """One step: nothing drawn, or a known load on each of its outlets."""

    outlets: list[str] = Field(min_length=1)
    zero: bool = False
    amps: float | None = Field(None, gt=0)
    volts: float | None = Field(None, gt=0)
    watts: float | None = Field(None, gt=0)
    reference: Annotated[str, AfterValidator(_place)] | None = None
    resistive: bool = False
    seconds: Seconds = SECONDS
    wait: bool = False  # for Enter, before it begins

    @model_validator(mode="after")
    def _one_reference(self) -> "PlannedStep":
        typed = any(value is not None for value in (self.amps, self.volts, self.watts))
        if self.zero and (typed or self.reference or self.resistive):
            raise ValueError("a zero step has no load: take amps, volts, watts, reference and resistive out")
        if not self.zero and typed == (self.reference is not None):
            raise ValueError("say zero = true, or what the load is: amps, volts, watts, or a reference meter")
        return self


class Plan(Section):
    """What `--from` reads; the guided dialogue asks for the same."""

    operator: str = Field(min_length=1)
    ambient_c: float | None = Field(None, ge=-40, le=85)
    instrument: Instrument
    step: list[PlannedStep] = Field(min_length=1)


def read_plan(path: Path) -> Plan:
    """A plan file; raises ConfigError with a line per mistake."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a plan with --from") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOML's own kind is a ValueError; so is a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        lines = line_numbers(text)
        raise ConfigError("\n".join(f"{path}:{_sentence(item, lines)}" for item in error.errors())) from None


def _sentence(item: Any, lines: Mapping[tuple[str | int, ...], int]) -> str:
    loc = item["loc"]
    line = next(lines[loc[:k]] for k in range(len(loc), -1, -1) if loc[:k] in lines)
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in loc) or "plan"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        inner: dict[str, type[BaseModel]] = {"step": PlannedStep, "instrument": Instrument}
        known = inner.get(str(loc[0]), Plan) if len(loc) > 1 else Plan
        message = f"unknown key; allowed here: {', '.join(known.model_fields)}"
    return f"{line}: {key}: {message[0].lower()}{message[1:]}"


# --- the board and the meters beside it ---------------------------------------------------------------------------


@dataclass
class Station:
    """An open board and, once asked for, open reference meters."""

    config: Config
    board: Board
    link: BoardLink
    setup: BoardSetup
    sensors: tuple[Sensor, ...]
    console: Console
    clock: Clock
    stack: contextlib.AsyncExitStack
    _meters: dict[tuple[str, int], PduDriver] = field(default_factory=dict)

    @property
    def dc(self) -> bool:
        return self.config.rack.supply == "dc"

    def channels(self, patterns: Sequence[str]) -> tuple[int, ...]:
        """Channel indices of the outlets that patterns name. Raises ConfigError for one that the board does not measure."""
        currents, found = self.board.currents(), []
        for pattern in patterns:
            try:
                names = self.config.match_outlets(pattern)
            except ValueError as error:
                raise ConfigError(f"outlets: {error}") from None
            mine = [currents[name][0] for name in names if name in currents]
            if not mine or (not pattern.endswith("*") and len(mine) < len(names)):
                missing = ", ".join(name for name in names if name not in currents) or pattern
                raise ConfigError(f"outlets: {missing}: not measured by board {self.board.id!r}")
            found += mine
        return tuple(dict.fromkeys(found))

    async def capture(
        self, what: str, seconds: float, meters: Mapping[int, tuple[str, int]]
    ) -> tuple[int, int, dict[int, Reference]]:
        """Average for some time: first and last scan + 1, and what the meter of each channel showed meanwhile."""
        for place in set(meters.values()):
            await self._open_meter(*place)
        seen: dict[tuple[str, int], list[PduReading]] = {place: [] for place in meters.values()}
        watching = asyncio.create_task(self._watch(seen))
        try:
            first, end = await self._scans(what, seconds)
        finally:
            watching.cancel()
            outcome = (await asyncio.gather(watching, return_exceptions=True))[0]
        if isinstance(outcome, Exception):  # not its cancellation
            raise outcome
        return first, end, {i: _averaged(place, seen[place]) for i, place in meters.items()}

    async def _scans(self, what: str, seconds: float) -> tuple[int, int]:
        ring, first = self.link.ring, self.link.ring.head
        wanted = round(seconds * ring.rate_hz)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=self.console, transient=True
        ) as bar:
            task = bar.add_task(escape(what), total=wanted)
            last, heard_ns = first, self.clock.mono_ns()
            while ring.head - first < wanted:
                await asyncio.sleep(LOOK_S)
                self.link.maintain()
                bar.update(task, completed=ring.head - first)
                if ring.head != last:
                    last, heard_ns = ring.head, self.clock.mono_ns()
                elif self.clock.mono_ns() - heard_ns > SILENT_S * NS_PER_S:
                    raise DeviceError(f"board {self.board.id!r} stopped sending: look at its cable and its power")
        return first, first + wanted

    def scans(self, first: int, end: int) -> tuple[NDArray[np.int32], BoolArray]:
        """Counts [scans, channels] and which of them are there: not lost, and a measurement by their status."""
        scans, present = self.link.ring.read(first, end - first)
        return scans["counts"], present & (scans["status"] & NO_DATA == 0)

    async def _open_meter(self, pdu: str, number: int) -> None:
        if (pdu, number) in self._meters:
            return
        options = next((item for item in self.config.pdu if item.id == pdu), None)
        if options is None:
            known = ", ".join(item.id for item in self.config.pdu)
            raise ConfigError(f"reference {pdu}/{number}: no PDU is called {pdu!r}; known: {known}")
        # read like an outlet of its own, whether or not the rack has that one
        as_outlet = Outlet(pdu=pdu, numbers=str(number), load="reference", rating_w=1.0, static_safe_w=1.0)
        one = self.config.model_copy(update={"outlet": [as_outlet]})
        driver = pdu_driver(one, options, self.clock)
        self.stack.push_async_callback(driver.close)
        await driver.open()
        await driver.identify()
        self._meters[pdu, number] = driver

    async def _watch(self, seen: Mapping[tuple[str, int], list[PduReading]]) -> None:
        """Read every meter twice a second until cancelled."""
        while True:
            for (pdu, number), readings in seen.items():
                reading = await self._meters[pdu, number].read()
                if self.clock.mono_ns() - reading.t_mono_ns > STALE_NS:
                    raise DeviceError(f"reference {pdu}/{number}: its reading is older than {STALE_NS / NS_PER_S:g} s")
                readings.append(reading)
            await asyncio.sleep(METER_PERIOD_S)


def _averaged(place: tuple[str, int], readings: Sequence[PduReading]) -> Reference:
    """The mean of a meter's readings. Raises DeviceError where there are too few, or one has a hole."""
    pdu, number = place
    if len({reading.t_mono_ns for reading in readings}) < LEAST_READINGS:
        raise DeviceError(
            f"reference {pdu}/{number}: {len(readings)} readings within the step, {LEAST_READINGS} needed: average longer"
        )

    def mean(quantity: str, polls: Sequence[Mapping[int, float | None]]) -> float | None:
        values = [poll.get(number) for poll in polls if poll]  # a poll that did not ask for it is empty
        known = [value for value in values if value is not None]
        if known and len(known) < len(values):
            raise DeviceError(
                f"reference {pdu}/{number}: {len(values) - len(known)} of {len(values)} readings of {quantity} failed"
            )
        return float(np.mean(known)) if len(known) >= LEAST_READINGS else None

    true_power = not any(number in reading.apparent for reading in readings)
    found = Reference(
        amps=mean("current", [reading.current_a for reading in readings]),
        volts=mean("voltage", [reading.voltage_v for reading in readings]),
        watts=mean("power", [reading.power_w for reading in readings]) if true_power else None,
    )
    if found == Reference():
        raise DeviceError(f"reference {pdu}/{number}: it tells no current, voltage or power")
    return found


@contextlib.asynccontextmanager
async def station(config: Config, board: Board, seconds: float, console: Console) -> AsyncIterator[Station]:
    """Open a board for so long a step. Raises LockedError while a daemon has its port."""
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpi-calibrate-")))
        event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, event_fd)
        sampling = config.sampling.model_copy(update={"raw_ring_s": max(10.0, seconds + 5.0)})
        link = board_link(config.model_copy(update={"sampling": sampling}), board, folder, clock, event_fd)
        link.open()
        stack.callback(link.close)
        setup = await link.describe()
        assert link.description is not None
        seen = sensors(board, config.outlets(), link.description)
        yield Station(config, board, link, setup, seen, console, clock, stack)


def chosen_board(config: Config, name: str | None) -> Board:
    """The board by name, or the only one. Raises ConfigError."""
    known = ", ".join(board.id for board in config.board) or "none"
    if name is None and len(config.board) == 1:
        return config.board[0]
    for board in config.board:
        if board.id == name:
            return board
    raise ConfigError(
        f"no board is called {name!r}; known: {known}" if name else f"name a board with --board; known: {known}"
    )


# --- calibrate ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What the command line says."""

    config: Config
    board: Board
    out: Path
    plan: Plan | None = None  # None: ask
    outlets: tuple[str, ...] = ()  # asked: these alone
    reference: str | None = None  # asked: a meter in place of typed values
    seconds: float = SECONDS


def calibrate(order: Order, console: Console) -> tuple[Calibration, Path | None]:
    """Run all steps and write the file; the file that it replaces is kept, second. Raises RpiError; then nothing is written."""
    with logging_to_stderr("warning", "text"):
        return asyncio.run(_calibrate(order, console))


async def _calibrate(order: Order, console: Console) -> tuple[Calibration, Path | None]:
    longest_s = max((step.seconds for step in order.plan.step), default=0.0) if order.plan else order.seconds
    board = order.board.model_copy(update={"calibration": None})
    async with station(order.config, board, longest_s, console) as at:
        session = Session(at, Fit(at.sensors, dc=at.dc))
        plan = order.plan
        if plan is not None:
            for k, planned in enumerate(plan.step, start=1):
                await session.run(planned, f"step {k} of {len(plan.step)}")
            operator, ambient_c, instrument = plan.operator, plan.ambient_c, plan.instrument
        else:
            operator, ambient_c, instrument = _ask_session(order)
            await _guide(session, order)
        now = datetime.now(UTC).replace(microsecond=0)
        records = session.fit.records(now, instrument)
        description = at.link.description
        assert description is not None
        fresh = Calibration(
            board=board.id,
            serial_number=description.serial_number,
            n_channels=len(description.channels),
            supply=order.config.rack.supply,
            date=now,
            operator=operator,
            ambient_c=ambient_c,
            channels=tuple(records),
        )
    console.print(table_of(fresh))
    if not any(record.good for record in records):
        raise DeviceError("no channel could be calibrated; nothing is written")
    return save(fresh, order.out)


def save(fresh: Calibration, path: Path) -> tuple[Calibration, Path | None]:
    """Write the file durably, with the good channels of its forerunner that are not in it; the forerunner is kept."""
    kept = None
    if path.exists():
        try:
            before = load_calibration(path)
            dated = before.date.strftime("%Y%m%dT%H%M%SZ")
        except ConfigError:
            before, dated = None, "unreadable"
        if before is not None and (before.serial_number, before.n_channels) == (fresh.serial_number, fresh.n_channels):
            ours = {record.channel for record in fresh.channels}
            carried = [record for record in before.channels if record.good and record.channel not in ours]
            channels = sorted((*fresh.channels, *carried), key=lambda record: record.channel)
            fresh = fresh.model_copy(update={"channels": tuple(channels)})
        kept = _free_name(path, dated)
    try:
        if kept is not None:
            os.link(path, kept)
        write_durably(path, fresh.to_json())
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}; choose another place with --out") from None
    return fresh, kept


def _free_name(path: Path, dated: str) -> Path:
    names = (
        path.with_name(f"{path.stem}.{dated}{tail}{path.suffix}") for tail in ("", *(f".{k}" for k in range(2, 1000)))
    )
    return next(name for name in names if not name.exists())


class Session:
    """The steps of one calibration."""

    def __init__(self, at: Station, fit: Fit) -> None:
        self.at = at
        self.fit = fit

    async def run(self, planned: PlannedStep, title: str) -> None:
        """One planned step, its complaints said at once."""
        channels = self.at.channels(planned.outlets)
        what = f"{title}: {_short(planned.outlets)}: " + ("nothing drawn" if planned.zero else "known load")
        if planned.wait:
            _wait(what)
        measured, read = await self.observe(what, channels, planned.seconds, planned.reference)
        typed = Reference(planned.amps, planned.volts, planned.watts)
        references = {i: replace(read.get(i, typed), resistive=planned.resistive).complete() for i in channels}
        self.add(Step(channels, measured, {} if planned.zero else references), what)

    async def observe(
        self, what: str, channels: Sequence[int], seconds: float, place: str | None
    ) -> tuple[Measured, dict[int, Reference]]:
        """Average, and what the reference meter of each channel showed meanwhile."""
        meters = {i: meter_of(place, self.at.sensors[i]) for i in channels} if place is not None else {}
        first, end, read = await self.at.capture(what, seconds, meters)
        return measure(*self.at.scans(first, end), self.at.sensors, dc=self.at.dc), read

    def add(self, step: Step, what: str) -> bool:
        """Keep a step; True if it says something of every channel that it is about."""
        self.fit.steps.append(step)
        complaints = [text for i in step.channels if (text := self.fit.complaint(step, i)) is not None]
        for text in complaints:
            self.at.console.print(f"[red]{escape(text)}[/red]", soft_wrap=True)
        if not complaints:
            self.at.console.print(f"{escape(what)}: good", soft_wrap=True)
        return not complaints


def meter_of(place: str, sensor: Sensor) -> tuple[str, int]:
    """The PDU and number of a channel's reference meter; '{n}' is its outlet's own number."""
    pdu, _, number = place.partition("/")
    return pdu, int(number.replace("{n}", sensor.name.partition("/")[2]))


def _short(outlets: Sequence[str]) -> str:
    return ", ".join(outlets)


def _wait(what: str) -> None:
    click.prompt(f"{what}: ready? Press Enter", default="", show_default=False, err=True)


# --- the dialogue -------------------------------------------------------------------------------------------------


def _ask_session(order: Order) -> tuple[str, float | None, Instrument]:
    operator = click.prompt("Your name", err=True)
    ambient_c = _ask_number("Ambient temperature, °C (Enter: not known)")
    if order.reference is not None:
        name = click.prompt("Reference meter, name and model", default=order.reference, err=True)
    else:
        name = click.prompt("Reference instrument, name and model", err=True)
    serial_number = click.prompt("Its serial number (Enter: none)", default="", show_default=False, err=True)
    uncertainty = _ask_number("Its uncertainty, % of reading (Enter: not known)")
    return operator, ambient_c, Instrument(name=name, serial_number=serial_number, uncertainty_percent=uncertainty)


def _ask_number(question: str) -> float | None:
    while True:
        text = click.prompt(question, default="", show_default=False, err=True).strip().replace(",", ".")
        if not text:
            return None
        with contextlib.suppress(ValueError):
            value = float(text)
            if math.isfinite(value):
                return value
        click.echo(f"{text!r} is not a number", err=True)


async def _guide(session: Session, order: Order) -> None:
    """Zero on all outlets at once, then loads, one outlet after the other."""
    at = session.at
    patterns = list(order.outlets) or list(at.board.currents())
    channels = at.channels(patterns)
    while True:
        _wait(f"Zero: take every load off {len(channels)} outlets ({_short(patterns)})")
        measured, _ = await session.observe("zero", channels, order.seconds, None)
        good = session.add(Step(channels, measured, {}), "zero")
        if good or not click.confirm("Measure zero again?", default=True, err=True):
            break
        session.fit.steps.pop()
    for i in channels:
        name, n = at.sensors[i].name, 0
        while click.confirm(f"{name}: {'a' if n == 0 else 'another'} known load?", default=n < 2, err=True):
            n += await _guided_load(session, order, name, i)


async def _guided_load(session: Session, order: Order, name: str, i: int) -> bool:
    """One load on one outlet; False where it was thrown away."""
    least_a = LEAST_LOAD * session.fit.range_of(i)
    _wait(f"{name}: connect a load of {least_a:.2f} A or more, and let it settle")
    resistive = click.confirm("Is it resistive (heater, lamp)?", default=True, err=True)
    measured, read = await session.observe(f"{name}: read the instrument", (i,), order.seconds, order.reference)
    if order.reference is None:
        amps, volts, watts = (_ask_number(f"The instrument showed, {unit} (Enter: not known)") for unit in "AVW")
        read = {i: Reference(amps, volts, watts)}
    step = Step((i,), measured, {i: replace(read[i], resistive=resistive).complete()})
    if session.add(step, name):
        return True
    if click.confirm("Throw this step away?", default=True, err=True):
        session.fit.steps.pop()
        return False
    return True


# --- verify -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verified:
    """One quantity of one outlet beside its reference, as the daemon would have read it."""

    outlet: str
    quantity: Literal["A", "V", "W"]
    reference: float
    measured: float | None  # None: no reading
    error_percent: float | None
    passed: bool


def verify(
    config: Config, board: Board, planned: PlannedStep, bound_percent: float, console: Console
) -> list[Verified]:
    """Known loads read through the daemon's own window kernel with the board's calibration. Raises RpiError."""
    if board.calibration is None:
        raise ConfigError(f"board {board.id!r} has no calibration in the configuration; name one with --file")
    with logging_to_stderr("warning", "text"):
        return asyncio.run(_verify(config, board, planned, bound_percent, console))


async def _verify(
    config: Config, board: Board, planned: PlannedStep, bound_percent: float, console: Console
) -> list[Verified]:
    async with station(config, board, planned.seconds, console) as at:
        channels = at.channels(planned.outlets)
        place = planned.reference
        meters = {i: meter_of(place, at.sensors[i]) for i in channels} if place is not None else {}
        first, end, read = await at.capture("verify", planned.seconds, meters)
        typed = Reference(planned.amps, planned.volts, planned.watts)
        seen = _windows(at, first, end)
        rows: list[Verified] = []
        outlet_of = {current: k for k, (current, _, _) in enumerate(at.link.wiring.channels)}
        for i in channels:
            reference = replace(read.get(i, typed), resistive=planned.resistive).complete()
            rows += _compared(at.sensors[i].name, reference, seen[outlet_of[i]], bound_percent)
        return rows


def _windows(at: Station, first: int, end: int) -> NDArray[np.float64]:
    """A, V and W of every outlet of the board over some scans: [outlets, 3], NaN where a window had no reading."""
    kernel = at.setup.kernel
    found = []
    for stop in range(first + kernel.span, end + 1, core.WINDOW_HOP):
        if kernel.compute(at.link.ring, stop) == core.WINDOW_OK:
            found.append(kernel.out[:, [core.F_RMS_A, core.F_VOLTAGE_V, core.F_POWER_W]].copy())
    if not found:
        raise DeviceError("no window could be read: average longer")
    rms, volts, watts = np.moveaxis(np.array(found), 2, 0)
    return np.stack([np.sqrt(np.mean(rms**2, axis=0)), np.sqrt(np.mean(volts**2, axis=0)), watts.mean(axis=0)], axis=1)


def _compared(name: str, reference: Reference, seen: NDArray[np.float64], bound_percent: float) -> Iterator[Verified]:
    units: tuple[Literal["A", "V", "W"], ...] = ("A", "V", "W")
    for unit, wanted, value in zip(units, (reference.amps, reference.volts, reference.watts), seen, strict=True):
        if wanted is None:
            continue
        if not np.isfinite(value):
            yield Verified(name, unit, wanted, None, None, False)
            continue
        error = residual(unit, wanted, float(value)).error_percent
        yield Verified(name, unit, wanted, float(value), error, abs(error) <= bound_percent)


# --- for people ---------------------------------------------------------------------------------------------------


def table_of(file: Calibration) -> Group:
    """One row per channel, and why each refused one is refused."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("nr", "name", "gain", "offset", "delay", "noise", "repeats", "worst", "verdict"):
        table.add_column(
            name, justify="left" if name in ("name", "verdict") else "right", overflow="fold", no_wrap=name == "gain"
        )
    for record in file.channels:
        worst = worst_percent(record)
        table.add_row(
            str(record.channel),
            escape(record.name),
            f"{record.gain:.4e}",
            f"{record.offset_counts:.0f}",
            f"{record.delay_ns / 1000.0:.1f} µs" if record.phase_known else "board's",
            _percent(record.noise_percent),
            _percent(record.repeatability_percent),
            _percent(worst),
            "[green]good[/green]" if record.good else "[red]refused[/red]",
        )
    return Group(table, *(Text(record.verdict, style="red") for record in file.channels if not record.good))


def worst_percent(record: ChannelRecord) -> float | None:
    """The largest error that is left at any point, of reading, without sign."""
    return max((abs(item.error_percent) for item in record.residuals), default=None)


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.3f} %"


def summary_text(file: Calibration, path: Path, now: datetime) -> str:
    """Whose calibration it is, by what, and until when."""
    good = sum(record.good for record in file.channels)
    instruments = ", ".join(sorted({str(record.instrument) for record in file.channels}))
    over = "EXPIRED" if now > file.expires else "expires"
    return (
        f"{path}: board {file.serial_number}, {good} of {len(file.channels)} channels good, {file.date:%Y-%m-%d}"
        f" by {file.operator} with {instruments}; {over} {file.expires:%Y-%m-%d}"
    )
