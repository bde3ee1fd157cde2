"""How good the forecasts and requests are on recorded power: the deployed pipeline, causally, over every series of a folder.

    python bench/forecast_skill.py --data DIR --json

DIR holds index.csv (columns `file`, `group`; `use` if known) and the series, .npz or .csv as `rpi-daemon dry-run` reads
them. Definitions: docs/forecasting.md, "How good it is".
"""

import argparse
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, as_kept, new_parser, report
from skill.deployed import DEPLOYED, Answers, Progress, default_config, deployed_forecaster, run, work
from skill.scores import (
    PERSISTENCE,
    Scored,
    Sums,
    details,
    figures,
    geometric_mean,
    nothing_of,
    ratio,
    score,
    total,
    within_bounds,
    worst,
    written_by_group,
)
from skill.series import LAST_PART, UNSCORED_S, Series, read_series
from skill.yardstick import NAME as LIGHTGBM
from skill.yardstick import yardstick

from rpi_daemon.errors import ModelError, RpiError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import describe

RECORDINGS = Path(os.environ.get("RPI_SHARED", ROOT.parent / "shared")) / "data" / "traces"
QUICK_SERIES, QUICK_HOURS = 4, 1.0
DIGITS = 4
TABLE = ("group", "series", "hours", "model", "mae", "mae_vs_persistence", "mae_vs_best_expert", "best_expert",
         "pinball_vs_lightgbm", "escape_rate", "request_vs_draw", "oracle_vs_draw", "request_vs_margin", "best_rule")  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=RECORDINGS, metavar="DIR", help=f"folder with index.csv; {RECORDINGS} if not given"
    )
    parser.add_argument("--model", default="shipped", metavar="DIR", help="model directory, or shipped (default)")
    parser.add_argument(
        "--leave-one-group-out", nargs="?", const="train", metavar="MODELS",
        help="for each group that the model learned from, one that did not: MODELS/GROUP, or trained now (slow)",
    )  # fmt: skip
    parser.add_argument("--group", action="append", default=[], help="this group alone; may be repeated")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N series of each group")
    parser.add_argument("--hours", type=float, metavar="H", help="at most the first H hours of each series")
    parser.add_argument("--no-lightgbm", action="store_true", help="without the outside yardstick")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw one series of each group: .png or .svg")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the result as JSON")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.limit, chosen.hours = chosen.limit or QUICK_SERIES, chosen.hours or QUICK_HOURS
    for name in ("limit", "hours"):
        if getattr(chosen, name) is not None and getattr(chosen, name) <= 0:
            parser.error(f"--{name} is {getattr(chosen, name)}; choose more than 0")
    return chosen


def main() -> None:
    chosen = arguments()
    try:
        measure(chosen)
    except RpiError as error:
        print(f"forecast_skill: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run, score, report. Raises RpiError for what the user can put right."""
    _need([] if chosen.no_lightgbm else ["lightgbm"], [] if chosen.picture is None else ["matplotlib"])
    series, left_out = read_series(chosen.data, tuple(chosen.group), chosen.limit, chosen.hours)
    for why in left_out:
        print(f"left out: {why}", file=sys.stderr)
    model = SHIPPED if chosen.model == "shipped" else Path(chosen.model)
    learned_from = _learned_from(model)
    groups = list(dict.fromkeys(one.group for one in series))
    by_model = _models(chosen, groups, model, learned_from)
    parts = {path: [one for one in series if one.group in members] for path, members in by_model.items()}
    progress = Progress(sum(work(part) for part in parts.values()), _teller())
    scored: dict[str, list[Scored]] = {group: [] for group in groups}
    drawn = _to_draw(series) if chosen.picture is not None else set()
    pictured: dict[str, tuple[Series, Answers]] = {}
    for path, part in parts.items():
        config = default_config(path)
        for one, answers in run(part, deployed_forecaster(config), config, progress):
            scored[one.group].append(score(one, answers))
            if one.name in drawn:
                pictured[one.group] = one, answers
    held_out = {group for path, members in by_model.items() if path != model for group in members}
    rows, lines = [], []
    for group in groups:
        label = "not in its training" if group in held_out or group not in learned_from else "in-sample"
        row, of_series = group_row(group, scored[group], label, with_yardstick=not chosen.no_lightgbm)
        rows.append(row)
        lines += of_series
    bounds = within_bounds(lines, rows)
    more = {
        "data": str(chosen.data),
        "model": "leave one group out" if chosen.leave_one_group_out else str(chosen.model),
        "part": _part(chosen),
        "definitions": _definitions(),
        "worst_series": _worst_series(lines),
        "escapes": bounds,
        "left_out": left_out,
        "groups": {row["group"]: row.pop("details") for row in rows},
        "series": lines,
    }
    ratios = {
        "mae_vs_persistence": geometric_mean(row["mae_vs_persistence"] for row in rows),
        "mae_vs_persistence_worst": worst(row["mae_vs_persistence"] for row in rows),
        "mae_vs_best_expert_worst": worst(row["mae_vs_best_expert"] for row in rows),
        "pinball_vs_lightgbm": geometric_mean(row["pinball_vs_lightgbm"] for row in rows),
        "request_vs_margin": geometric_mean(row["request_vs_margin"] for row in rows),
        "request_vs_margin_worst": worst(row["request_vs_margin"] for row in rows),
        "escape_within_bound": bounds["share_within"],
    }
    if chosen.picture is not None:
        from skill.picture import draw

        draw([pictured[group] for group in groups], chosen.picture)
    table = [{name: row[name] for name in TABLE} for row in rows]
    for words in _sentences(rows, bounds, more["worst_series"]):
        print(words)
    result = report("forecast_skill", table, ratios, chosen.json, _rounded({**more, "rows": rows}))
    if chosen.out is not None:
        chosen.out.write_text(as_kept(result) + "\n", encoding="utf-8")
    return result


def group_row(
    group: str, scored: Sequence[Scored], label: str, *, with_yardstick: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One group's figures, and a line for each of its series; losses are in parts of each series' mean draw."""
    members = [one.series for one in scored]
    whole = total(one.whole for one in scored)
    theirs = yardstick(members) if with_yardstick else {}
    last = total(one.last for one in scored if theirs.get(one.series.name, Sums()).moments)
    judged = total(theirs.values())
    nothing = nothing_of(members)
    row = {
        "group": group,
        "series": len(scored),
        "hours": sum(s.duration_s for s in members) / 3600.0,
        "model": label,
        **figures(whole, nothing),
        **written_by_group([one.written for one in scored]).figures(),
        "pinball_vs_lightgbm": _against(last, judged, nothing),
        "details": details(whole) | {"last_part": _last_part(last, judged)},
    }
    return row, [_series_line(one, theirs.get(one.series.name, Sums())) for one in scored]


def _series_line(one: Scored, theirs: Sums) -> dict[str, Any]:
    series, nothing = one.series, nothing_of([one.series])
    return {
        "name": series.name,
        "group": series.group,
        "step_s": series.step_s,
        "duration_s": series.duration_s,
        "mean_w": series.mean_w,
        "rating_w": series.rating_w,
        **figures(one.whole, nothing),
        **one.written.figures(),
        "pinball_vs_lightgbm": _against(one.last, theirs, nothing),
        "by_source": details(one.whole),
    }


def _against(ours: Sums, theirs: Sums, nothing: float) -> float | None:
    if not theirs.moments or not ours.moments:
        return None
    return ratio(ours.mean(f"pinball/{DEPLOYED}"), theirs.mean(f"pinball/{LIGHTGBM}"), nothing)


def _last_part(ours: Sums, theirs: Sums) -> dict[str, dict[str, float]]:
    """MAE and pinball of every source and the yardstick over the same moments."""
    if not theirs.moments:
        return {}
    return {measure: ours.of(measure) | theirs.of(measure) for measure in ("mae", "pinball")}


def _learned_from(model: Path) -> set[str]:
    """Names of the data that a model was trained on, as its manifest says; of the groups here, those are in-sample."""
    training = describe(model).get("training", {})
    return {str(data["name"]) for data in training.get("data", ())}


def _need(*libraries: Sequence[str]) -> None:
    """Refuse now what would fail after the work. Raises RpiError."""
    for name in (name for part in libraries for name in part):
        if importlib.util.find_spec(name) is None:
            raise RpiError(f"needs {name}: pip install 'rpi-daemon[bench]' (--no-lightgbm goes without the yardstick)")


def _models(
    chosen: argparse.Namespace, groups: Sequence[str], model: Path, learned_from: set[str]
) -> dict[Path, list[str]]:
    """Which model forecasts which groups."""
    if not chosen.leave_one_group_out:
        return {model: list(groups)}
    made: dict[Path, list[str]] = {}
    for group in groups:
        path = model
        if group in learned_from:
            path = Path(chosen.leave_one_group_out) / group
            if chosen.leave_one_group_out == "train":
                path = train_without(group, chosen.data)
            elif not path.is_dir():
                raise ModelError(f"{path}: no such model directory; it should hold a model trained without {group}")
            if group in _learned_from(path):
                raise ModelError(f"{path}: its manifest says that it was trained on {group}")
        made.setdefault(path, []).append(group)
    return made


def train_without(group: str, data: Path) -> Path:
    """A model that never saw this group, trained now. Raises ModelError when that fails."""
    folder = Path(tempfile.gettempdir()) / "rpi-daemon-logo" / group
    if (folder / "manifest.toml").exists():
        print(f"without {group}: {folder}, from an earlier run", file=sys.stderr)
        return folder
    folder.parent.mkdir(exist_ok=True)
    examples = folder.parent / f"{group}.npz"
    made = [sys.executable, str(ROOT / "bench/make_training_set.py"), "--traces", str(data), "--without", group]
    trained = [sys.executable, "-P", "-m", "rpi_daemon.models.train", "--name", f"without {group}"]
    print(f"training without {group}; some minutes", file=sys.stderr)
    for command in ([*made, "--out", str(examples)], [*trained, "--data", str(examples), "--out", str(folder)]):
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise ModelError(f"could not train without {group}: {' '.join(command)}")
    examples.unlink()
    return folder


def _to_draw(series: Sequence[Series]) -> set[str]:
    """Of each group the series whose draw moves as much as that of the middle one; of 10 min or more where there is one."""
    drawn = set()
    for group in dict.fromkeys(one.group for one in series):
        members = [one for one in series if one.group == group]
        members = [one for one in members if one.duration_s >= 600.0] or members
        drawn.add(sorted(members, key=lambda one: one.movement)[len(members) // 2].name)
    return drawn


def _worst_series(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By ratio: which series, and how bad."""
    found = {}
    for name in ("mae_vs_persistence", "mae_vs_best_expert", "pinball_vs_lightgbm", "request_vs_margin"):
        there = [line for line in lines if line[name] is not None]
        if there:
            line = max(there, key=lambda line: line[name])
            found[name] = {"series": line["name"], "group": line["group"], "ratio": line[name]}
    return found


def _sentences(rows: Sequence[dict[str, Any]], bounds: dict[str, Any], worst_series: dict[str, Any]) -> list[str]:
    """What the table does not show."""
    said = []
    for row in rows:
        if row["mae_vs_persistence"] is None:
            said.append(
                f"{row['group']}: never moves, so there is no ratio; our MAE is {row['mae']:.2g} of the mean draw"
            )
    for name in ("30 min or more", "10 to 30 min"):
        part = bounds[name]
        if part["series"]:
            said.append(
                f"series of {name}: {part['share_within']:.1%} of {part['series']} escape in at most {part['bound']:.1%}"
            )
    pooled = bounds["pooled"]
    said.append(f"escape rate pooled by group: {pooled['worst_group']:.2%} at worst; bound {pooled['bound']:.1%}")
    said += [f"worst series, {name}: {w['ratio']:.3g}, {w['series']}" for name, w in worst_series.items()]
    return said


def _part(chosen: argparse.Namespace) -> str:
    """How much of the data was run, in words."""
    words = [f"groups {', '.join(chosen.group)}"] if chosen.group else []
    words += [f"at most {chosen.limit} series of each group"] if chosen.limit else []
    words += [f"the first {chosen.hours:g} h of each series"] if chosen.hours else []
    return "; ".join(words) or "all series, whole"


def _definitions() -> dict[str, str]:
    return {
        "losses": "parts of the series' mean draw (at least 1 W); a group's is the mean over all its moments",
        "scored": f"forecasts made {UNSCORED_S:.0f} s after the begin or later, at the recording's own samples",
        "horizon": "the first reading at or after 5 s, the step counted in whole ticks of 100 ms",
        "rating": "1.25 x the highest draw, up to the next 10 W",
        "last part": f"after the first {LAST_PART:.0%} of each series, from which LightGBM learned",
        "persistence": PERSISTENCE,
    }


def _teller() -> Callable[[float], None]:
    """Tells progress on stderr: in place on a terminal, else a line for each twentieth."""
    begun, told = time.monotonic(), [-1]

    def say(share: float) -> None:
        took_s = time.monotonic() - begun
        left = f"{took_s * (1.0 - share) / share / 60.0:.1f} min left" if took_s > 5.0 else ""
        if sys.stderr.isatty():
            print(f"\r{share:4.0%} run {left:16}", end="\n" if share >= 1.0 else "", file=sys.stderr, flush=True)
        elif int(20 * share) > told[0]:
            told[0] = int(20 * share)
            print(f"{share:4.0%} run {left}".rstrip(), file=sys.stderr, flush=True)

    return say


def _rounded(value: Any) -> Any:
    """Figures to four digits; what is no number is nothing."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


if __name__ == "__main__":
    main()
