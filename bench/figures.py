"""Writes the tables of figures of the README and of docs/faults.md, between their markers, from bench/results: none is typed by hand."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common import ROOT

README = ROOT / "README.md"
FAULTS_PAGE = ROOT / "docs" / "faults.md"
FAULTS = ROOT / "bench" / "faults.toml"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
FAULTS_BEGIN, FAULTS_END = "<!-- faults -->", "<!-- /faults -->"
SKILL_BEGIN, SKILL_END = "<!-- skill -->", "<!-- /skill -->"
NOTHING = "not measured yet"

MISSED = ", **missed**"

Result = Mapping[str, Any]
Value = Callable[[Result], float | None]


def _bound(reach: float, at_least: bool) -> str:
    return f"{'>= ' if at_least else '<= ' if reach else ''}{reach:g}"


def _marked(text: str, met: bool) -> str:
    return text if met else text + MISSED


@dataclass(frozen=True, slots=True)
class Number:
    """A measured number: how it is told (`{0}` it, `{r}` the ratios of its bench), and the number that it has to reach."""

    value: Value
    words: str
    reach: float | Value | None = None  # None: nothing
    unit: str = ""  # of what it has to reach, in words
    at_least: bool = False
    to: str | None = None  # what is said in place of sign, number and unit

    def to_reach(self) -> str:
        """The cell of what it has to reach; empty where it is nothing."""
        if self.to is not None or not isinstance(self.reach, float):
            return self.to or ""
        return f"{_bound(self.reach, self.at_least)} {self.unit}".strip()

    def measured(self, result: Result) -> str:
        """The cell of what was measured, marked where it missed; a number that could not be made is none."""
        value = self.value(result)
        if value is None:
            return "none"
        reach = self.reach(result) if callable(self.reach) else self.reach
        met = reach is None or (value >= reach if self.at_least else value <= reach)
        return _marked(self.words.format(value, r=result["ratios"]), met)


def _ratio(name: str) -> Value:
    return lambda result: result["ratios"][name]


def _of_row(name: str, **wanted: object) -> Value:
    return lambda result: _row(result["rows"], **wanted)[name]


def _row(rows: list[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any]:
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


def _with_spread(name: str, how: str, shown: str, reach: float | None, at_least: bool) -> tuple[Number, ...]:
    """Of the demo's runs with hints, or (`how`) without: the median, judged, and from which run to which it spreads."""

    def runs(result: Result) -> int:
        return sum(row["hints"] is not bool(how) for row in result["rows"])

    to = None if reach is None else f"{'>=' if at_least else '<='} {format(reach, shown)}"
    ends = f"{{r[{name}{how}_lowest]:{shown}}} to {{r[{name}{how}_highest]:{shown}}}"
    return (
        Number(_ratio(name + how), f"{{:{shown}}}", reach, at_least=at_least, to=to),
        Number(runs, f"{ends} in {{}} runs"),
    )


def _lateness(result: Result) -> float:
    return max(1.2, result["ratios"]["cyclictest_vs_itself_p90"])


# what, the bench that measures it, its numbers
FIGURES: tuple[tuple[str, str, tuple[Number, ...]], ...] = (
    (
        "samples lost, 10 min, 48 outlets, serial path, closed loop",
        "samples",
        (
            Number(_ratio("samples_lost"), "{:.0f} lost", 0.0),
            Number(
                lambda result: abs(result["ratios"]["injected"] - result["ratios"]["injected_counted"]),
                "{r[injected_counted]:.0f} of {r[injected]:.0f} injected counted",
                0.0,
                to="injected losses counted exactly",
            ),
        ),
    ),
    (
        "sampler lateness p99, against cyclictest (median ratio)",
        "jitter",
        (
            Number(
                _ratio("p99_vs_cyclictest_idle"),
                "{:.2f} idle",
                _lateness,
                to="<= max(1.2, cyclictest's own p90 against itself), idle and with writes",
            ),
            Number(_ratio("p99_vs_cyclictest_writes"), "{:.2f} with writes", _lateness),
            Number(_ratio("p99_vs_cyclictest_busy"), "{:.2f} beside busy Python"),
            Number(_ratio("cyclictest_vs_itself_p90"), "cyclictest's own {:.2f}"),
        ),
    ),
    (
        "ring push + in-place pop",
        "ring",
        (
            Number(_ratio("vs_memcpy"), "{:.2f} x", 0.5, "x memcpy", at_least=True),
            Number(_ratio("vs_deque"), "{:.1f} x", 4.0, "x deque of bytes", at_least=True),
        ),
    ),
    (
        "window kernel, 48 channels",
        "window",
        (
            Number(_ratio("vs_numpy"), "{:.1f} x", 5.0, "x NumPy", at_least=True),
            Number(_of_row("ours_us", current_channels=48, delays=False, one_scan_lost=False), "{:.1f} µs", 20.0, "µs"),
            Number(
                _of_row("ours_us", current_channels=48, delays=True, one_scan_lost=False),
                "{:.1f} µs with delay correction",
            ),
        ),
    ),
    (
        "calibrated error, 5 to 100 % of range, PF 1 and 0.5, simulated board",
        "calibration",
        (
            Number(_ratio("calibrated_percent"), "{:.2f} %", 0.5, "% of reading"),
            Number(_ratio("uncalibrated_percent"), "{:.0f} % uncalibrated"),
        ),
    ),
    ("frame decode", "frames", (Number(_ratio("vs_python"), "{:.0f} x", 10.0, "x the Python loop", at_least=True),)),
    (
        "forecast tick, 48 outlets",
        "forecast",
        (
            Number(_of_row("tick_ms_p50", outlets=48), "{:.2f} ms", 0.3, "ms p50"),
            Number(_ratio("vs_window"), "{:.0f} x", 100.0, "x faster than the 200-step window", at_least=True),
        ),
    ),
    ("whole control tick, 48 outlets", "loop", (Number(_ratio("tick_ms_p99_48"), "{:.1f} ms", 5.0, "ms p99"),)),
    (
        "48-outlet SET + read-back, v3 authPriv, snmpd",
        "snmp",
        (
            Number(_ratio("v3_vs_pysnmp"), "{:.0f} x", 10.0, "x pysnmp", at_least=True),
            Number(_ratio("v3_vs_netsnmp"), "{:.2f} x", 0.8, "x libnetsnmp", at_least=True),
        ),
    ),
    (
        "daemon gone: exec of failsafe to STATIC_SAFE verified, 48 outlets",
        "failsafe",
        (Number(_ratio("verified_s_max"), "{:.2f} s", 6.0, "s"),),
    ),
    (
        "a durable audit record before a write of 48 limits: added",
        "audit",
        (
            Number(_of_row("p50_ms", outlets=48), "{:.1f} ms p50"),
            Number(_of_row("p99_ms", outlets=48), "{:.0f} ms p99"),
            Number(
                lambda result: max(row["max_ms"] for row in result["rows"] if row["outlets"]),
                "{:.0f} ms the longest, any batch",
                250.0,
                "ms the longest",
            ),
        ),
    ),
    (
        "silent PDU: p99 of the verified writes to the PDU beside it",
        "silent",
        (
            Number(
                _ratio("p99_silent_vs_answering"),
                "{:.2f} x (95 % interval {r[p99_silent_vs_answering_low]:.2f} to {r[p99_silent_vs_answering_high]:.2f})",
                1.1,
                "x while that one answers",
            ),
        ),
    ),
    (
        "48 limits to a pymodbus TCP server, verified",
        "modbus",
        (Number(_ratio("p50_vs_raw"), "{:.2f} x", 1.5, "x p50 of one raw pymodbus FC16 + FC03"),),
    ),
    (
        "whole daemon (its process, raw ring apart), 48 outlets",
        "loop",
        (
            Number(_ratio("cpu_percent_48"), "{:.1f} %", 10.0, "% of one core"),
            Number(_ratio("rss_mb_48"), "{:.0f} MB", 150.0, "MB resident"),
        ),
    ),
    (
        "newest sample to verified write, simulated PDU",
        "loop",
        (Number(_ratio("write_ms_p50"), "{:.0f} ms p50"), Number(_ratio("write_ms_p99"), "{:.0f} ms p99")),
    ),
    (
        "informs lost, receiver down for 10 000 events",
        "informs",
        (
            Number(_ratio("lost"), "{:.0f} lost", 0.0),
            Number(_ratio("out_of_order"), "{:.0f} out of order", 0.0, to="in order"),
            Number(_ratio("informs_per_s"), "drained at {:.0f}/s where the rate allows"),
        ),
    ),
    (
        "control tick beside a burst of 1000 informs",
        "informs",
        (Number(_ratio("tick_ms_p99_busy"), "p99 {:.1f} ms"), Number(_ratio("tick_ms_p99_idle"), "idle {:.1f} ms")),
    ),
    ("cold start to verified STATIC_SAFE", "loop", (Number(_ratio("cold_start_s"), "{:.2f} s", 3.0, "s"),)),
    *(
        (f"demo of 60 s, {announced}: {what}", "demo", _with_spread(name, how, shown, reach, at_least))
        for how, announced in (("", "its loads' work announced by `hint`"), ("_no_hints", "nothing announced"))
        for what, name, shown, reach, at_least in (
            ("rises whose limit was verified 1 s before", "prealloc_share", ".0%", 0.8, True),
            ("mean limit / STATIC_SAFE", "limit_vs_static", ".2f", 0.9, False),
            ("forecast error / persistence", "mae_vs_persistence", ".2f", 0.85, False),
            ("requests that the draw passed within their 5 s", "request_escape_rate", ".1%", None, False),
        )
    ),
)


def _within(name: str) -> Value:
    return lambda result: result["escapes"][name]["share_within"]


def _episodes(group: str) -> Value:
    return lambda result: next((row["limit_episodes_per_day"] for row in result["rows"] if row["group"] == group), None)


# what, its numbers from a result of forecast_skill.py; those of the shipped model where they have to reach something else
SKILL: tuple[tuple[str, tuple[Number, ...], tuple[Number, ...] | None], ...] = (
    (
        "MAE 5 s ahead / persistence: all groups; worst group",
        (
            Number(_ratio("mae_vs_persistence"), "{:.2f}", 0.8, to="<= 0.80 (in-sample <= 0.70)"),
            Number(_ratio("mae_vs_persistence_worst"), "{:.2f}", 1.02),
        ),
        (
            Number(_ratio("mae_vs_persistence"), "{:.2f}", 0.7),
            Number(_ratio("mae_vs_persistence_worst"), "{:.2f}", 1.02),
        ),
    ),
    (
        "the same / best expert in hindsight, worst group",
        (Number(_ratio("mae_vs_best_expert_worst"), "{:.2f}", 1.05),),
        None,
    ),
    ("pinball / LightGBM, same last 40 %", (Number(_ratio("pinball_vs_lightgbm"), "{:.2f}", 1.05),), None),
    (
        "request's pinball (0.99) / best fixed margin in hindsight: all groups; worst group",
        (
            Number(_ratio("request_vs_margin"), "{:.2f}", 0.95),
            Number(_ratio("request_vs_margin_worst"), "{:.2f}", 1.2),
        ),
        None,
    ),
    (
        "series of 30 min or more with at most 2 % request escapes; of 10 to 30 min with at most 3 %",
        (
            Number(_within("30 min or more"), "{:.1%}", 0.95, to=">= 95 %", at_least=True),
            Number(_within("10 to 30 min"), "{:.1%}", 0.95, to=">= 95 %", at_least=True),
        ),
        None,
    ),
    (
        "request escapes pooled, worst group",
        (Number(lambda result: result["escapes"]["pooled"]["worst_group"], "{:.2%}", 0.013, to="<= 1.3 %"),),
        None,
    ),
    (
        "times that the draw passed a written `alarm` limit, per outlet and day, g5k and plugs",
        (
            Number(_episodes("g5k_server_ac_50hz"), "{:.1f}", 1.0),
            Number(_episodes("tracebase_plugs_1hz"), "{:.1f}", 1.0),
        ),
        None,
    ),
)
SKILL_COLUMNS = (
    ("group", "group", ""),
    ("series", "series", ""),
    ("hours", "hours", ".0f"),
    ("MAE, part of the draw", "mae", ".1%"),
    ("/ persistence", "mae_vs_persistence", ".2f"),
    ("/ best expert", "mae_vs_best_expert", ".2f"),
    ("pinball / LightGBM", "pinball_vs_lightgbm", ".2f"),
    ("request / draw", "request_vs_draw", ".2f"),
    ("oracle / draw", "oracle_vs_draw", ".2f"),
    ("request escapes", "escape_rate", ".2%"),
    ("request / best margin", "request_vs_margin", ".2f"),
)


def _cell(numbers: Sequence[Number], result: Result | None) -> str:
    return NOTHING if result is None else "; ".join(number.measured(result) for number in numbers)


def _reached(numbers: Sequence[Number]) -> str:
    return "; ".join(filter(None, (number.to_reach() for number in numbers)))


def skill_table(results: Mapping[str, Result]) -> str:
    """Figures of the forecast on recordings, with models that never saw the group and with the shipped one; by group."""
    unseen, shipped = results.get("forecast_skill_logo"), results.get("forecast_skill")
    lines = ["| what | to reach | group not in the training | shipped model, in-sample |", "|---|---|---|---|"]
    for what, numbers, in_sample in SKILL:
        cells = [_cell(numbers, unseen), _cell(in_sample or numbers, shipped)]
        lines.append(f"| {what} | {_reached(numbers)} | {' | '.join(cells)} |")
    if unseen is not None:
        lines += ["", "By group, with models that never saw it:", ""]
        lines += [f"| {' | '.join(head for head, _, _ in SKILL_COLUMNS)} |", "|---" * len(SKILL_COLUMNS) + "|"]
        for row in unseen["rows"]:
            cells = ["none" if row[key] is None else format(row[key], how) for _, key, how in SKILL_COLUMNS]
            lines.append(f"| {' | '.join(cells)} |")
    for name, result in (("unseen", unseen), ("in-sample", shipped)):
        if result is not None:
            lines += ["", f"{name.capitalize()}: measured at commit {result['commit']}, {result['part']}."]
    return "\n".join(lines)


def _results() -> dict[str, Result]:
    """Of the benches; faults and fuzzing have pages of their own."""
    paths = [path for path in sorted(RESULTS.glob("*.json")) if path.stem not in ("faults", "fuzz", "kills")]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def table(results: Mapping[str, Result]) -> str:
    """The Markdown between the markers."""
    lines = ["| what | to reach | measured | with |", "|---|---|---|---|"]
    for what, bench, numbers in FIGURES:
        lines.append(f"| {what} | {_reached(numbers)} | {_cell(numbers, results.get(bench))} | `bench/{bench}.py` |")
    for machine in sorted({_machine(result) for result in results.values()}):
        commits = sorted({result["commit"] for result in results.values() if _machine(result) == machine})
        lines += ["", f"Measured on {machine}; at {', '.join(commits)} (a bench is repeated when its part changes)."]
    told = dict.fromkeys(bench for _, bench, _ in FIGURES)
    if busy := [f"`{bench}.py`" for bench in told if bench in results and _busy(results[bench])]:
        lines += ["", f"While others used the machine, too (more was to be run than it has cores): {', '.join(busy)}."]
    return "\n".join(lines)


def _busy(result: Result) -> bool:
    return float(result["machine"]["load_1min"]) > result["machine"]["cores"]


def _machine(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"


def faults_table(faults: list[Mapping[str, Any]], figures: list[Mapping[str, Any]]) -> str:
    """A row for each figure of each fault; then how many were met, and where they were measured."""
    lines = ["| # | fault | what the daemon does | figure | to reach | measured | test |", "|" + "---|" * 7]
    for fault in faults:
        head = f"{fault['number']} | {fault['what']} | {fault['does']}"
        for figure in (own := [row for row in figures if row["number"] == fault["number"]]):
            lines.append(f"| {head} | {figure['what']} | {_reach(figure)} | {_measured(figure)} | `{figure['test']}` |")
            head = " | | "
        if not own:
            lines.append(f"| {head} | | | {NOTHING} | |")
    met = sum(all(row["met"] for row in figures if row["number"] == number) for number in _numbers(figures))
    lines += [
        "",
        f"{met} of {len(faults)} faults are within all of their figures, {len(_numbers(figures))} are measured.",
    ]
    for where in sorted({(row["machine"], row["date"]) for row in figures}):
        rows = [row for row in figures if (row["machine"], row["date"]) == where]
        commits = ", ".join(sorted({row["commit"] for row in rows}))
        load = max(float(row["load_1min"]) for row in rows)
        lines += ["", f"Measured on {where[0]}, load average up to {load:.1f}, at {commits}, {where[1]}."]
    return "\n".join(lines)


def _numbers(figures: list[Mapping[str, Any]]) -> set[int]:
    return {row["number"] for row in figures}


def _reach(figure: Mapping[str, Any]) -> str:
    return f"{_bound(figure['reach'], figure['at_least'])} {figure['unit']}".strip()


def _measured(figure: Mapping[str, Any]) -> str:
    return _marked(f"{figure['value']:.3g} {figure['unit']}".strip(), figure["met"])


def _there(test: str) -> bool:
    """Whether a test that gave a figure is still there."""
    path, _, name = test.partition("::")
    return (ROOT / path).exists() and f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def with_faults(page: str) -> str:
    """The text of docs/faults.md with its table put in. Raises ValueError without markers."""
    kept = RESULTS / "faults.json"
    figures = json.loads(kept.read_text())["rows"] if kept.exists() else []
    faults = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["fault"]
    return _between(
        page, FAULTS_BEGIN, FAULTS_END, faults_table(faults, [row for row in figures if _there(row["test"])])
    )


def with_table(readme: str) -> str:
    """The README's text with the tables put in. Raises ValueError without markers."""
    results = _results()
    of_daemon = {name: result for name, result in results.items() if not name.startswith("forecast_skill")}
    readme = _between(readme, BEGIN, END, table(of_daemon))
    return _between(readme, SKILL_BEGIN, SKILL_END, skill_table(results))


def _between(page: str, begin: str, end: str, made: str) -> str:
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{made}\n{end}{tail}"


def main() -> None:
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    FAULTS_PAGE.write_text(with_faults(FAULTS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
