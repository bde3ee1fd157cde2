"""The history for people and programs: a table, CSV, NPZ, a picture."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import RpiError
from rpi_daemon.history.query import Answer, Series
from rpi_daemon.history.weeks import StoredLimit
from rpi_daemon.records import TICK_NS, FloatArray, IntArray

ROWS: Final = 40  # of a table, at most
STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400)


@dataclass(frozen=True, slots=True)
class Escape:
    """A time in which an outlet drew more than the limit in force."""

    outlet: str
    t_ns: int
    seconds: float
    limit_w: float
    worst_w: float


def limit_at(changes: Sequence[StoredLimit], t_ns: IntArray) -> FloatArray:
    """The limit in force at each moment, W; NaN before the first change and where none was known."""
    starts = np.array([change.t_ns for change in changes], dtype=np.int64)
    limits = np.array([np.nan, *(np.nan if c.limit_w is None else c.limit_w for c in changes)])
    return np.asarray(limits[np.searchsorted(starts, t_ns, side="right")])


def escapes(power: Series, changes: Sequence[StoredLimit]) -> list[Escape]:
    """Episodes of an outlet's draw above the limit that was in force; a gap in the readings ends one."""
    limit_w = limit_at(changes, power.t_ns)
    with np.errstate(invalid="ignore"):
        over = power.values > limit_w
    edges = np.flatnonzero(np.diff(np.concatenate(([False], over, [False])).astype(np.int8)))
    found = []
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        seconds = (power.t_ns[end - 1] - power.t_ns[first]) / NS_PER_S + 0.1
        found.append(
            Escape(
                power.outlet,
                int(power.t_ns[first]),
                float(seconds),
                float(limit_w[first]),
                float(power.values[first:end].max()),
            )
        )
    return found


def joined(found: Sequence[Escape]) -> list[Escape]:
    """Episodes, by outlet and time, of which one that goes on where another was cut is a part of it."""
    whole: list[Escape] = []
    for escape in found:
        before = whole[-1] if whole else None
        if before is not None and before.outlet == escape.outlet and abs(_end_ns(before) - escape.t_ns) < TICK_NS:
            seconds = (_end_ns(escape) - before.t_ns) / NS_PER_S
            whole[-1] = replace(before, seconds=seconds, worst_w=max(before.worst_w, escape.worst_w))
        else:
            whole.append(escape)
    return whole


def _end_ns(escape: Escape) -> int:
    return escape.t_ns + round(escape.seconds * NS_PER_S)


def bins(series: Series, from_ns: int, to_ns: int, rows: int = ROWS) -> list[tuple[int, FloatArray]]:
    """(start, [mean, min, max, known share]) of equal spans that begin on the hour, minute or second.

    The share is that of the span's time within [from_ns, to_ns): a gap is time that is not known, too.
    """
    step_s = next((s for s in STEPS_S if (to_ns - from_ns) / NS_PER_S / s <= rows), STEPS_S[-1])
    step_ns = step_s * NS_PER_S
    place = series.t_ns // step_ns
    found = []
    for start in np.unique(place):
        values = series.values[place == start]
        known = values[~np.isnan(values)]
        numbers = (known.mean(), known.min(), known.max()) if len(known) else (np.nan,) * 3
        begin_ns = int(start * step_ns)
        asked_ns = min(begin_ns + step_ns, to_ns) - max(begin_ns, from_ns)
        points = max(asked_ns // series.period_ns, len(values))  # more than fit: the clock was set back, or an edge
        found.append((begin_ns, np.array([*numbers, len(known) / points])))
    return found


def stamp(t_ns: int, zone: tzinfo | None, digits: int = 0) -> str:
    """Local time, as the operator's clock shows it."""
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, zone)
    fraction = f".{t_ns % NS_PER_S:09d}"[: digits + 1] if digits else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction}"


def one_line(text: str) -> str:
    """For a terminal: whoever chose the words, an operator or a device, begins no line of their own and moves no cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_csv(answer: Answer, zone: tzinfo | None) -> str:
    """One line per moment and outlet: UTC nanoseconds, local time, outlet, quantity, value; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("t_utc_ns", "local_time", "outlet", "quantity", "value"))
    for series in answer.series:
        for t_ns, value in zip(series.t_ns.tolist(), series.values.tolist(), strict=True):
            shown = "" if np.isnan(value) else f"{value:.10g}"
            writer.writerow((t_ns, stamp(t_ns, zone, 1), series.outlet, series.quantity, shown))
    return text.getvalue()


def write_npz(answer: Answer, path: Path) -> None:
    """`OUTLET/t_utc_ns` and `OUTLET/QUANTITY` arrays, NaN where not known. Raises RpiError where it cannot be written."""
    arrays: dict[str, Any] = {}
    for series in answer.series:
        arrays[f"{series.outlet}/t_utc_ns"] = series.t_ns
        arrays[f"{series.outlet}/{series.quantity}"] = series.values
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}") from None


def write_png(
    answer: Answer, limits: dict[str, list[StoredLimit]], from_ns: int, to_ns: int, zone: tzinfo | None, path: Path
) -> None:
    """Power of each outlet with its limit. Raises RpiError: without matplotlib, or where it cannot be written."""
    try:
        from matplotlib import dates
        from matplotlib.figure import Figure
    except ImportError:
        raise RpiError("a picture needs matplotlib: pip install 'rpi-daemon[plots]'") from None
    date_text: Any = dates.DateFormatter  # matplotlib's is not typed
    figure = Figure(figsize=(11.0, 1.2 + 2.2 * len(answer.series)), layout="constrained")
    axes = figure.subplots(len(answer.series), 1, sharex=True, squeeze=False)[:, 0]
    for axis, series in zip(axes, answer.series, strict=True):
        _draw(axis, series, limits.get(series.outlet, []), from_ns, to_ns, zone)
    axes[-1].xaxis_date(tz=zone)
    axes[-1].xaxis.set_major_formatter(date_text("%H:%M:%S\n%Y-%m-%d", tz=zone))
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}") from None


def with_gaps(series: Series) -> tuple[IntArray, FloatArray]:
    """Times and values with a NaN in each gap, so that no line is drawn across what is not there."""
    steps = np.diff(series.t_ns)
    if not len(steps):
        return series.t_ns, series.values
    behind = np.flatnonzero((steps > 1.5 * np.quantile(steps, 0.5, method="lower")) | (steps < 0)) + 1
    return np.insert(series.t_ns, behind, series.t_ns[behind - 1]), np.insert(series.values, behind, np.nan)


def _draw(
    axis: Any, series: Series, changes: Sequence[StoredLimit], from_ns: int, to_ns: int, zone: tzinfo | None
) -> None:
    def moments(t_ns: Sequence[int]) -> list[datetime]:
        return [datetime.fromtimestamp(t / NS_PER_S, zone) for t in t_ns]

    t_ns, values = with_gaps(series)
    axis.plot(moments(t_ns.tolist()), values, linewidth=0.8, label=series.quantity)
    if changes:
        known = [max(change.t_ns, from_ns) for change in changes]
        levels = [np.nan if change.limit_w is None else change.limit_w for change in changes]
        label = f"limit ({changes[-1].kind})"
        axis.step(
            moments([*known, to_ns]), [*levels, levels[-1]], where="post", color="#b3261e", linewidth=1.0, label=label
        )
    axis.set_xlim(*moments([from_ns, to_ns]))
    axis.set_title(series.outlet, loc="left", fontsize=9)
    axis.set_ylabel("W" if series.quantity.partition("/")[0].endswith("_w") else "")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
