"""What every hardware-in-the-loop bench shares: one way to print, to keep as JSON, to show as a page, to compare with before."""

import argparse
import html
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import commit, machine

SCHEMA = 1
FOLDER = Path("hil-results")


@dataclass(frozen=True)
class Row:
    """One figure. `ok` is None where nothing is promised."""

    what: str
    value: float | int | str | None  # None: could not be measured
    unit: str = ""
    bound: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class Line:
    """One curve; of a "cdf" the x are the values themselves, and y stays empty."""

    name: str
    x: Sequence[float]
    y: Sequence[float] = ()


@dataclass(frozen=True)
class Plot:
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    kind: Literal["line", "cdf", "bars"] = "line"


@dataclass
class Measured:
    """What a bench found out."""

    bench: str
    target: str  # the device, in its own words, or "simulator: ..."
    simulated: bool
    rows: list[Row] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: str = ""  # what this run did not look at, in a few words

    def add(
        self,
        what: str,
        value: float | int | str | None,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
    ) -> None:
        """One more row, judged by its bound where it has one; a figure that is missing does not pass."""
        bound = " and ".join(f"{sign} {limit:g}" for sign, limit in (("<=", most), (">=", least)) if limit is not None)
        ok = None
        if bound:
            number = value if isinstance(value, int | float) else None
            ok = number is not None and (most is None or number <= most) and (least is None or number >= least)
        self.rows.append(Row(what, value, unit, bound, ok))

    @property
    def passed(self) -> bool:
        return all(row.ok is not False for row in self.rows)

    @property
    def verdict(self) -> str:
        """In words; a run that left out what the bench is for says so."""
        return ("passed" if self.passed else "not passed") + (f", {self.left_out}" if self.left_out else "")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all benches have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short form, for a first look and for CI")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on the last line")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the JSON file and the page")
    parser.add_argument(
        "--compare", type=_earlier, metavar="OLD.json", help="an earlier result to stand beside this one"
    )
    return parser


class Named(Protocol):
    @property
    def id(self) -> str: ...


N = TypeVar("N", bound=Named)


def named(sections: Sequence[N], name: str | None, option: str) -> N:
    """The section of a configuration that the option names; the only one if it names none. Ends the program otherwise."""
    if name is None and len(sections) == 1:
        return sections[0]
    for section in sections:
        if section.id == name:
            return section
    known = ", ".join(section.id for section in sections)
    raise SystemExit(f"{option} {name}: choose one of {known}" if known else f"{option}: the configuration has none")


def publish(measured: Measured, options: argparse.Namespace) -> int:
    """Print the table, write JSON and page; the exit code: 0 when every bound is kept and nothing was left out."""
    before = options.compare
    now = datetime.now(UTC)
    result = {
        "schema": SCHEMA,
        "time_utc": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "passed": measured.passed,
        **asdict(measured),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"{measured.bench}-{now:%Y%m%d-%H%M%S}"
    data, page = stem.with_suffix(".json"), stem.with_suffix(".html")
    result = _known(result)
    data.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page.write_text(_page(measured, result, before), encoding="utf-8")
    print(f"{measured.bench}: {measured.target}")
    _print_table(_cells(measured.rows, before))
    for note in measured.notes:
        print(f"- {note}")
    print(f"{measured.verdict}; {data} and {page}")
    if options.json:
        print(json.dumps({key: value for key, value in result.items() if key != "plots"}, allow_nan=False))
    return 0 if measured.passed and not measured.left_out else 1


def _known(value: Any) -> Any:
    """Without NaN, which JSON has no word for: what is not known is null."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _earlier(name: str) -> dict[str, Any]:
    return read_result(Path(name), Path(sys.argv[0]).stem)


def read_result(path: Path, bench: str) -> dict[str, Any]:
    """An earlier result of the same bench; ends the program with a sentence where it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise SystemExit(f"{path}: not a result of a bench: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA or result.get("bench") != bench:
        raise SystemExit(f"{path}: not a result of {bench} (schema {SCHEMA})")
    return result


def shown(value: object) -> str:
    """A figure for people; what is not known is a dash."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _cells(rows: Sequence[Row], before: dict[str, Any] | None) -> list[list[str]]:
    head = ["what", "value", "unit", "bound", ""]
    old = {row["what"]: row["value"] for row in before["rows"]} if before else {}
    if before:
        head += ["before", "change"]
    lines = [head]
    for row in rows:
        line = [row.what, shown(row.value), row.unit, row.bound, {True: "ok", False: "FAIL", None: ""}[row.ok]]
        if before:
            line += [shown(old.get(row.what)), _change(old.get(row.what), row.value)]
        lines.append(line)
    return lines


def _change(old: object, new: object) -> str:
    if not isinstance(old, int | float) or not isinstance(new, int | float) or not old:
        return ""
    return f"{100.0 * (new - old) / abs(old):+.1f} %"


def _print_table(cells: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1d2430; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin-top: 2rem }
p.about { color: #5a6472; margin-top: 0 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e7ec }
th { color: #5a6472; font-weight: 600 } th:nth-child(2), td.number { text-align: right; font-variant-numeric: tabular-nums }
.ok { color: #17723b; font-weight: 600 } .fail { color: #b3261e; font-weight: 600 }
svg { width: 100%; height: auto }
"""


def _page(measured: Measured, result: dict[str, Any], before: dict[str, Any] | None) -> str:
    """One self-contained HTML page: nothing is loaded from anywhere."""
    cells = _cells(measured.rows, before)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in cells[0])
    body = "\n".join(f"<tr>{''.join(_cell(i, cell) for i, cell in enumerate(line))}</tr>" for line in cells[1:])
    verdict = f'<span class="{"ok" if measured.passed else "fail"}">{html.escape(measured.verdict)}</span>'
    about = f"{result['time_utc']}, commit {result['commit']}, {result['machine']['cpu']}, {result['machine']['cores']} cores"
    if before:
        about += f"; before: {before['time_utc']}, commit {before['commit']}, {before['target']}"
    old = {plot["title"]: plot for plot in before["plots"]} if before else {}
    plots = "\n".join(
        f"<h2>{html.escape(plot.title)}</h2>\n{_svg(plot, old.get(plot.title))}" for plot in measured.plots
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in measured.notes)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(measured.bench)}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{html.escape(measured.bench)}: {verdict}</h1>\n"
        f'<p class="about">{html.escape(measured.target)}<br>{html.escape(about)}</p>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
        f"{f'<ul>{notes}</ul>' if notes else ''}\n{plots}\n</body>\n</html>\n"
    )


def _cell(column: int, text: str) -> str:
    kind = {"ok": ' class="ok"', "FAIL": ' class="fail"'}.get(text, ' class="number"' if column in (1, 5, 6) else "")
    return f"<td{kind}>{html.escape(text)}</td>"


def _svg(plot: Plot, before: dict[str, Any] | None) -> str:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        return "<p>No picture: matplotlib is not installed (pip install 'rpi-daemon[plots]').</p>"
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        axes = figure.subplots()
        earlier = [Line(f"{line['name']} (before)", line["x"], line["y"]) for line in before["lines"]] if before else []
        for line in earlier:
            _draw(axes, plot.kind, line, {"linestyle": ":", "alpha": 0.7})
        for line in plot.lines:
            _draw(axes, plot.kind, line, {})
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.grid(alpha=0.3)
        if len(plot.lines) + len(earlier) > 1:
            axes.legend(frameon=False, fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _draw(axes: Any, kind: str, line: Line, style: dict[str, Any]) -> None:
    if kind == "cdf":
        values = np.sort(np.asarray(line.x, dtype=np.float64))
        axes.step(values, np.arange(1, len(values) + 1) / max(1, len(values)), where="post", label=line.name, **style)
    elif kind == "bars":
        axes.bar(line.x, line.y, label=line.name, **{**style, "linestyle": "-"})
    else:
        x, y = (np.array(values, dtype=np.float64) for values in (line.x, line.y))  # null of an earlier result is NaN
        axes.plot(x, y, label=line.name, linewidth=1.0, **style)
