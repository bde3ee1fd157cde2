"""Questions to the history: one quantity of some outlets over a span, whatever blocks and layouts it lies in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import shorten_numbers
from rpi_daemon.errors import RpiError
from rpi_daemon.history.weeks import History, StoredLimit
from rpi_daemon.records import TICK_NS, FloatArray, IntArray

UNITS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
FIRST: Final = datetime(
    1971, 1, 1, tzinfo=UTC
)  # whatever is stored is later, and 64 bits of ns hold what is earlier ...
LAST: Final = datetime(2200, 1, 1, tzinfo=UTC)  # ... than this
_AGO: Final = re.compile(r"^-?(\d+(?:\.\d+)?)\s*(s|min|m|h|d)(?:\s+ago)?$")
_CLOCK: Final = re.compile(r"^(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?$")


@dataclass(slots=True)
class Series:
    """One quantity of one outlet; t_ns [k] UTC, values [k] of `period_ns` from then on, NaN where it was not known."""

    outlet: str
    quantity: str
    t_ns: IntArray
    values: FloatArray
    period_ns: int = TICK_NS


@dataclass(slots=True)
class Answer:
    """What the history holds of a question, and what it cannot say."""

    series: list[Series]
    notes: list[str] = field(default_factory=list)


def parse_time(text: str, now: datetime) -> int:
    """UTC nanoseconds of `now`, `2h` (ago), `03:12` (the latest one), or an ISO date and time in now's zone. Raises RpiError."""
    said = text.strip().lower()
    if said == "now":
        return _ns(now)
    try:
        if match := _AGO.match(said):
            ago_ns = round(float(match.group(1)) * UNITS[match.group(2)] * NS_PER_S)
            return _within(_ns(now) - ago_ns)
        if match := _CLOCK.match(said):
            hour, minute, second = int(match.group(1)), int(match.group(2)), float(match.group(3) or 0.0)
            today = now.replace(hour=hour, minute=minute, second=0, microsecond=0) + timedelta(seconds=second)
            return _ns(today if today <= now else today - timedelta(days=1))
        moment = datetime.fromisoformat(text.strip())
        return _within(_ns(moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)))
    except (ValueError, OverflowError):
        raise RpiError(
            f"{text!r} is not a time from {FIRST:%Y} to {LAST.year - 1}: use 03:12, '2026-11-20 03:12', 2026-11-20T03:12:00Z, 2h (ago) or now"
        ) from None


def _within(t_ns: int) -> int:
    """A moment that a history can hold. Raises ValueError."""
    if not _ns(FIRST) <= t_ns < _ns(LAST):
        raise ValueError
    return t_ns


def _ns(moment: datetime) -> int:
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1000


def read_series(history: History, rack: str, outlets: Sequence[str], quantity: str, from_ns: int, to_ns: int) -> Answer:
    """`quantity` (`power_w`, or `forecast_w/mean` and the like) of outlets in [from_ns, to_ns), in order of time.

    Of an outlet that was not there, or had no reading, there are no points: nothing is interpolated. Another rack's data
    is left out and named; a change of calibration within the span is named.
    """
    times: dict[str, list[IntArray]] = {outlet: [] for outlet in outlets}
    values: dict[str, list[FloatArray]] = {outlet: [] for outlet in outlets}
    calibrations = dict[str, None]()
    back = False
    last_ns, period_ns = 0, TICK_NS
    for (block,) in history.minutes((quantity,), from_ns, to_ns, rack, outlets):
        calibrations[block.layout.calibration] = None
        period_ns = block.period_ns
        back |= block.t_ns < last_ns - 2 * block.period_ns
        t_ns = block.t_ns + block.period_ns * np.arange(block.values.shape[1], dtype=np.int64)
        last_ns = int(t_ns[-1]) if len(t_ns) else last_ns
        inside = (t_ns >= from_ns) & (t_ns < to_ns)
        for row, outlet in enumerate(block.layout.outlets):
            if outlet in times:
                times[outlet].append(t_ns[inside])
                values[outlet].append(block.values[row][inside])
    series = [
        Series(
            outlet,
            quantity,
            np.concatenate(times[outlet]) if times[outlet] else np.zeros(0, np.int64),
            np.concatenate(values[outlet]) if values[outlet] else np.zeros(0),
            period_ns,
        )
        for outlet in outlets
    ]
    return Answer(series, _notes(history, len(calibrations), back, [s.outlet for s in series if not len(s.t_ns)]))


def _notes(history: History, calibrations: int, back: bool, absent: Sequence[str]) -> list[str]:
    found = (
        (calibrations > 1, "the calibration changed within the span"),
        (back, "the wall clock was set back within the span: times overlap"),
        (absent, f"nothing is stored of {listed(absent)}"),
    )
    return damage_notes(history) + [sentence for there, sentence in found if there]


def listed(outlets: Sequence[str]) -> str:
    """Outlet names for a sentence, those of a PDU together: `a/1-12, b/3`."""
    numbers: dict[str, list[int]] = {}
    for outlet in outlets:
        pdu, _, number = outlet.rpartition("/")
        numbers.setdefault(pdu, []).append(int(number))
    return ", ".join(f"{pdu}/{shorten_numbers(of_pdu)}" for pdu, of_pdu in numbers.items())


def damage_notes(history: History) -> list[str]:
    """One sentence for each kind of damage that was met."""
    damage = history.damage
    found = (
        (damage.blocks, f"{damage.blocks} damaged blocks were left out"),
        (damage.missing, f"{damage.missing} blocks are missing: the disk did not take them, or lost them"),
        (damage.limits, f"{damage.limits} damaged limit changes were left out"),
        (damage.files, f"not readable: {', '.join(damage.files)}"),
    )
    others = [f"{n} blocks of another rack, {rack!r}, were left out" for rack, n in damage.other_racks.items()]
    return [sentence for there, sentence in found if there] + others


def limit_series(history: History, rack: str, outlet: str, from_ns: int, to_ns: int) -> list[StoredLimit]:
    """The limit in force at the beginning of the span, where a change of the day before tells it, and every change in it."""
    changes = [x for x in history.limits(rack, from_ns - 86_400 * NS_PER_S, to_ns) if x.outlet == outlet]
    before = [x for x in changes if x.t_ns < from_ns]
    return [*before[-1:], *(x for x in changes if x.t_ns >= from_ns)]


def local_zone() -> tzinfo:
    """The zone of this box: people mean their own 03:12."""
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None
    return zone
