"""`rpi-daemon history` and `events`: what happened, from the files alone, whether or not a daemon runs."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ConfigError, RpiError
from rpi_daemon.history import events as event_files
from rpi_daemon.history.choices import LIMIT, QUANTITIES
from rpi_daemon.history.query import (
    Answer,
    Series,
    damage_notes,
    limit_series,
    listed,
    local_zone,
    parse_time,
    read_series,
)
from rpi_daemon.history.show import Escape, as_csv, bins, escapes, joined, one_line, stamp, write_npz, write_png
from rpi_daemon.history.stretches import POWER, stretches
from rpi_daemon.history.weeks import History, check_readable


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asked: `outlets` of the configuration, [from_ns, to_ns) UTC."""

    config: Config
    outlets: tuple[str, ...]
    what: str
    from_ns: int
    to_ns: int
    now: datetime

    @property
    def folder(self) -> Path:
        return self.config.path(self.config.daemon.state_dir) / self.config.history.folder


def question(config_path: Path, patterns: Sequence[str], what: str, from_text: str, to_text: str) -> Question:
    """Raises RpiError for an unknown outlet, a time that is none, and a span that is empty; ConfigError."""
    config = read_config(config_path)
    now = datetime.now(local_zone())
    from_ns, to_ns = parse_time(from_text, now), parse_time(to_text, now)
    if from_ns >= to_ns:
        raise RpiError(f"--from {from_text} is not before --to {to_text}")
    try:
        chosen = [name for pattern in patterns or ("*",) for name in config.match_outlets(pattern)]
    except ValueError as error:
        raise ConfigError(f"{config_path}: {error}") from None
    asked = Question(config, tuple(dict.fromkeys(chosen)), what, from_ns, to_ns, now)
    if not asked.folder.is_dir():
        raise RpiError(
            f"{asked.folder}: no history is there; it begins when the daemon runs with history.enabled = true"
        )
    check_readable(asked.folder, "*.sqlite")
    return asked


def history(asked: Question, form: str, output: Path | None) -> tuple[dict[str, Any], str]:
    """The answer as a document and as text. Raises RpiError where a file cannot be written or the form does not suit."""
    if form in ("npz", "png") and output is None:
        raise RpiError(f"--format {form} needs --output FILE")
    if asked.what in QUANTITIES:
        rows, notes, text = _quantity(asked, form, output)
    elif form in ("npz", "png"):
        raise RpiError(f"--what {asked.what} comes as table or csv; a png of power shows the limits, too")
    else:
        found = _limits(asked) if asked.what == LIMIT else _escapes(asked)
        rows, notes = found
        text = _csv(rows) if form == "csv" else _lines(rows, {})
    if output is not None and form in ("table", "csv"):
        _write(output, text)
        text = ""
    document = {
        "schema": 1,
        "ok": True,
        "what": asked.what,
        "from_utc_ns": asked.from_ns,
        "to_utc_ns": asked.to_ns,
        "rows": rows,
        "notes": notes,
        "output": None if output is None else str(output),
    }
    told = [text.rstrip("\n")] if text else []
    told += [f"written: {output}"] if output is not None else []
    return document, "\n".join(told)


def _quantity(asked: Question, form: str, output: Path | None) -> tuple[list[dict[str, Any]], list[str], str]:
    files = History(asked.folder)
    quantity = QUANTITIES[asked.what]
    answer = read_series(files, asked.config.rack.id, asked.outlets, quantity, asked.from_ns, asked.to_ns)
    answer.notes += _renamed(asked, files, [series.outlet for series in answer.series if not len(series.t_ns)])
    zone = asked.now.tzinfo
    if form == "npz" and output is not None:
        write_npz(answer, output)
    elif form == "png" and output is not None:
        there = Answer([series for series in answer.series if len(series.t_ns)], answer.notes)
        if not there.series:
            raise RpiError("nothing is stored of these outlets in this span: there is nothing to draw")
        limits = {
            s.outlet: limit_series(files, asked.config.rack.id, s.outlet, asked.from_ns, asked.to_ns)
            for s in there.series
        }
        write_png(
            there,
            limits if quantity.endswith(("_w", "_w/max", "_w/mean")) else {},
            asked.from_ns,
            asked.to_ns,
            zone,
            output,
        )
    rows = [
        {
            "outlet": series.outlet,
            "t_utc_ns": start,
            "local_time": stamp(start, zone),
            "mean": _number(values[0]),
            "min": _number(values[1]),
            "max": _number(values[2]),
            "known_percent": round(100.0 * float(values[3]), 1),
        }
        for series in answer.series
        for start, values in bins(series, asked.from_ns, asked.to_ns)
    ]
    text = as_csv(answer, zone) if form == "csv" else _lines(rows, _fine(quantity)) if form == "table" else ""
    return rows, answer.notes, text


def _renamed(asked: Question, files: History, absent: Sequence[str]) -> list[str]:
    """Where the load of an outlet without data was fed by an outlet that the configuration no longer has."""
    if not absent:
        return []
    load_of = {row.id: row.load for row in asked.config.outlets()}
    former: dict[str, list[str]] = {}
    for layout in files.layouts(asked.config.rack.id, asked.from_ns, asked.to_ns):
        for outlet, load in zip(layout.outlets, layout.loads, strict=False):
            if outlet not in load_of and outlet not in former.setdefault(load, []):
                former[load].append(outlet)
    return [
        f"{outlet} feeds {load_of[outlet]!r}, which is stored as {', '.join(former[load_of[outlet]])} in this span"
        for outlet in absent
        if former.get(load_of[outlet])
    ]


def _limits(asked: Question) -> tuple[list[dict[str, Any]], list[str]]:
    files = History(asked.folder)
    rows = [
        {"outlet": change.outlet, "t_utc_ns": change.t_ns, "local_time": stamp(change.t_ns, asked.now.tzinfo, 1),
         "limit_w": change.limit_w, "kind": change.kind, "reason": change.reason, "rule": change.rule}
        for outlet in asked.outlets
        for change in limit_series(files, asked.config.rack.id, outlet, asked.from_ns, asked.to_ns)
    ]  # fmt: skip
    return rows, damage_notes(files)


def _escapes(asked: Question) -> tuple[list[dict[str, Any]], list[str]]:
    """By stretches: where the wall clock was set, each draw meets the limits of its own time."""
    files = History(asked.folder)
    found: list[Escape] = []
    stored, limited = set[str](), set[str]()
    for stretch in stretches(files, asked.config.rack.id, asked.from_ns, asked.to_ns):
        for outlet, power_w in zip(stretch.layout.outlets, stretch.power_w, strict=True):
            if outlet in asked.outlets:
                stored.add(outlet)
                limited |= {outlet} if stretch.limits[outlet] else set()
                found += escapes(Series(outlet, POWER, stretch.t_ns, power_w), stretch.limits[outlet])
    rows = [
        {"local_time": stamp(escape.t_ns, asked.now.tzinfo, 1), **asdict(escape)}
        for escape in joined(sorted(found, key=lambda escape: (escape.outlet, escape.t_ns)))
    ]
    absent = [outlet for outlet in asked.outlets if outlet not in stored]
    unknown = [outlet for outlet in asked.outlets if outlet not in limited]
    notes = damage_notes(files) + ([f"nothing is stored of {listed(absent)}"] if absent else [])
    notes += [f"no limit is stored of {listed(unknown)}"] if unknown else []
    return sorted(rows, key=lambda row: row["t_ns"]), notes


def events(
    asked: Question, names: Sequence[str], check: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Events of the span as a document, and what cannot be said; each goes to `say` as one line. `check`: the whole chain."""
    notes: list[str] = []
    rows = []
    for event in event_files.read_events(asked.folder, asked.from_ns, asked.to_ns, names, notes):
        fields = " ".join(f"{key}={_short(value)}" for key, value in event.data.items())
        say(one_line(f"{stamp(event.t_ns, asked.now.tzinfo, 3)}  {event.name}  {fields}"))
        rows.append({**asdict(event), "local_time": stamp(event.t_ns, asked.now.tzinfo, 3)})
    if not rows:
        notes.append(" ".join(["no event", *([" or ".join(names)] if names else []), "in this span"]))
    chain = event_files.verify(asked.folder) if check else None
    notes += chain.broken if chain is not None else []
    document = {"schema": 1, "ok": chain is None or not chain.broken, "events": rows, "notes": notes}
    if chain is None:
        return document, notes
    begins = chain.first and {"number": chain.first.seq, "t_utc_ns": chain.first.t_ns}
    return document | {"checked": chain.events, "begins": begins}, notes


def local_time(t_utc_ns: int) -> str:
    """As people of this box say it."""
    return stamp(t_utc_ns, local_zone())


def _short(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _fine(quantity: str) -> dict[str, int]:
    """Digits after the point by column: shares and amperes need more than watts."""
    return {} if quantity.partition("/")[0].endswith(("_w", "_va", "_v")) else dict.fromkeys(("mean", "min", "max"), 3)


def _lines(rows: Sequence[dict[str, Any]], digits: Mapping[str, int]) -> str:
    """A table, with one digit after the point where `digits` of a column says no other; what is not known is a dash."""
    if not rows:
        return "nothing in this span"
    columns = [name for name in rows[0] if name not in ("t_utc_ns", "t_ns")]
    cells = [columns, *([_cell(row[name], digits.get(name, 1)) for name in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: object, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}") from None
