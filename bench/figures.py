"""Writes the tables of figures of the README and of docs/faults.md, between their markers, from bench/results: none is typed by hand."""

import json
import tomllib
from collections.abc import Callable, Mapping
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

Result = Mapping[str, Any]
Words = Callable[[Mapping[str, float], list[Mapping[str, Any]]], str]


def _row(rows: list[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any]:
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


def _change(ratio: float) -> str:
    """Percent, with its sign."""
    return f"{100.0 * (ratio - 1.0):+.0f}"


def _lateness(ratios: Mapping[str, float], rows: list[Mapping[str, Any]]) -> str:
    return (
        f"{ratios['p99_vs_cyclictest_idle']:.2f} idle, {ratios['p99_vs_cyclictest_writes']:.2f} with writes,"
        f" {ratios['p99_vs_cyclictest_busy']:.2f} beside busy Python; cyclictest's own {ratios['cyclictest_vs_itself_p90']:.2f}"
    )


# what, what to reach, the bench that measures it, its words
FIGURES: tuple[tuple[str, str, str, Words], ...] = (
    (
        "samples lost, 10 min, 48 outlets, serial path, closed loop",
        "0; injected losses counted exactly",
        "samples",
        lambda r, _: (
            f"{r['samples_lost']:.0f} lost; {r['injected_counted']:.0f} of {r['injected']:.0f} injected counted"
        ),
    ),
    (
        "sampler lateness p99, against cyclictest (median ratio)",
        "<= max(1.2, cyclictest's own p90 against itself), idle and with writes",
        "jitter",
        _lateness,
    ),
    (
        "ring push + in-place pop",
        ">= 0.5 x memcpy; >= 4 x deque of bytes",
        "ring",
        lambda r, _: f"{r['vs_memcpy']:.2f} x; {r['vs_deque']:.1f} x",
    ),
    (
        "window kernel, 48 channels",
        ">= 5 x NumPy; <= 20 µs",
        "window",
        lambda r, rows: (
            f"{r['vs_numpy']:.1f} x; {_row(rows, current_channels=48, delays=False, one_scan_lost=False)['ours_us']:.1f} µs,"
            f" {_row(rows, current_channels=48, delays=True, one_scan_lost=False)['ours_us']:.1f} µs with delay correction"
        ),
    ),
    (
        "calibrated error, 5 to 100 % of range, PF 1 and 0.5, simulated board",
        "<= 0.5 % of reading",
        "calibration",
        lambda r, _: f"{r['calibrated_percent']:.2f} %; {r['uncalibrated_percent']:.0f} % uncalibrated",
    ),
    ("frame decode", ">= 10 x the Python loop", "frames", lambda r, _: f"{r['vs_python']:.0f} x"),
    (
        "forecast tick, 48 outlets",
        "<= 0.3 ms p50; >= 100 x faster than the 200-step window",
        "forecast",
        lambda r, rows: f"{_row(rows, outlets=48)['tick_ms_p50']:.2f} ms; {r['vs_window']:.0f} x",
    ),
    ("whole control tick, 48 outlets", "p99 <= 5 ms", "loop", lambda r, _: f"{r['tick_ms_p99_48']:.1f} ms"),
    (
        "48-outlet SET + read-back, v3 authPriv, snmpd",
        ">= 10 x pysnmp; >= 0.8 x libnetsnmp",
        "snmp",
        lambda r, _: f"{r['v3_vs_pysnmp']:.0f} x; {r['v3_vs_netsnmp']:.2f} x",
    ),
    (
        "daemon gone: exec of failsafe to STATIC_SAFE verified, 48 outlets",
        "<= 6 s",
        "failsafe",
        lambda r, _: f"{r['verified_s_max']:.2f} s",
    ),
    (
        "a durable audit record before a write of 48 limits: added, p50; p99",
        "one fsync; never waited for beyond 250 ms",
        "audit",
        lambda r, rows: f"{_row(rows, outlets=48)['p50_ms']:.1f} ms; {_row(rows, outlets=48)['p99_ms']:.0f} ms",
    ),
    (
        "silent PDU: p99 of the verified writes to the PDU beside it",
        "changes < 10 %",
        "silent",
        lambda r, _: (
            f"{_change(r['p99_silent_vs_answering'])} % (95 % interval {_change(r['p99_silent_vs_answering_low'])}"
            f" to {_change(r['p99_silent_vs_answering_high'])} %)"
        ),
    ),
    (
        "48 limits to a pymodbus TCP server, verified",
        "p50 <= 1.5 x one raw pymodbus FC16 + FC03",
        "modbus",
        lambda r, _: f"{r['p50_vs_raw']:.2f} x",
    ),
    (
        "whole daemon, 48 outlets",
        "<= 10 % of one core; <= 150 MB RSS (raw ring apart)",
        "loop",
        lambda r, _: f"{r['cpu_percent_48']:.1f} %; {r['rss_mb_48']:.0f} MB",
    ),
    (
        "newest sample to verified write, simulated PDU",
        "",
        "loop",
        lambda r, _: f"{r['write_ms_p50']:.0f} ms p50, {r['write_ms_p99']:.0f} ms p99",
    ),
    (
        "informs lost, receiver down for 10 000 events",
        "0, in order",
        "informs",
        lambda r, _: (
            f"{r['lost']:.0f} lost, {r['out_of_order']:.0f} out of order; drained at {r['informs_per_s']:.0f}/s where the rate allows"
        ),
    ),
    (
        "control tick beside a burst of 1000 informs",
        "",
        "informs",
        lambda r, _: f"p99 {r['tick_ms_p99_busy']:.1f} ms; idle {r['tick_ms_p99_idle']:.1f} ms",
    ),
    ("cold start to verified STATIC_SAFE", "<= 3 s", "loop", lambda r, _: f"{r['cold_start_s']:.2f} s"),
    (
        "demo: rises whose limit was verified 1 s before",
        ">= 80 %",
        "demo",
        lambda r, rows: f"{r['prealloc_share']:.0%} of {rows[0]['rises']}",
    ),
    ("demo: mean limit / STATIC_SAFE", "<= 0.9", "demo", lambda r, _: f"{r['limit_vs_static']:.2f}"),
    ("demo: forecast error / persistence", "<= 0.85", "demo", lambda r, _: f"{r['mae_vs_persistence']:.2f}"),
    (
        "demo: requests that the draw passed within their 5 s",
        "",
        "demo",
        lambda r, _: f"{r['request_escape_rate']:.1%}",
    ),
)


# what, what to reach, its words from a result of forecast_skill.py
SKILL: tuple[tuple[str, str, Callable[[Result], str]], ...] = (
    (
        "MAE 5 s ahead / persistence: all groups; worst group",
        "<= 0.80; <= 1.02 (in-sample <= 0.70)",
        lambda r: _two(r["ratios"], "mae_vs_persistence", "mae_vs_persistence_worst"),
    ),
    (
        "the same / best expert in hindsight, worst group",
        "<= 1.05",
        lambda r: _plain(r["ratios"]["mae_vs_best_expert_worst"]),
    ),
    (
        "pinball / LightGBM, same last 40 %",
        "<= 1.05",
        lambda r: _plain(r["ratios"]["pinball_vs_lightgbm"]),
    ),
    (
        "request's pinball (0.99) / best fixed margin in hindsight: all groups; worst group",
        "<= 0.95; <= 1.2",
        lambda r: _two(r["ratios"], "request_vs_margin", "request_vs_margin_worst"),
    ),
    (
        "series of 30 min or more with at most 2 % request escapes; of 10 to 30 min with at most 3 %",
        ">= 95 %; >= 95 %",
        lambda r: "; ".join(_share_within(r, name) for name in ("30 min or more", "10 to 30 min")),
    ),
    (
        "request escapes pooled, worst group",
        "<= 1.3 %",
        lambda r: f"{r['escapes']['pooled']['worst_group']:.2%}",
    ),
    (
        "times that the draw passed a written `alarm` limit, per outlet and day, g5k and plugs",
        "<= 1",
        lambda r: _episodes(r["rows"], ("g5k_server_ac_50hz", "tracebase_plugs_1hz")),
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


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _two(ratios: Mapping[str, float], name: str, other: str) -> str:
    return f"{_plain(ratios[name])}; {_plain(ratios[other])}"


def _share_within(result: Result, name: str) -> str:
    share = result["escapes"][name]["share_within"]
    return "none" if share is None else f"{share:.1%}"


def _episodes(rows: list[Mapping[str, Any]], groups: tuple[str, ...]) -> str:
    there = [row for row in rows if row["group"] in groups]
    return "; ".join(f"{row['limit_episodes_per_day']:.1f}" for row in there) or "none"


def skill_table(results: Mapping[str, Result]) -> str:
    """Figures of the forecast on recordings, with models that never saw the group and with the shipped one; by group."""
    unseen, shipped = results.get("forecast_skill_logo"), results.get("forecast_skill")
    lines = ["| what | to reach | group not in the training | shipped model, in-sample |", "|---|---|---|---|"]
    for what, reach, words in SKILL:
        cells = [NOTHING if result is None else words(result) for result in (unseen, shipped)]
        lines.append(f"| {what} | {reach} | {' | '.join(cells)} |")
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
    for what, reach, bench, words in FIGURES:
        result = results.get(bench)
        measured = NOTHING if result is None else words(result["ratios"], result["rows"])
        lines.append(f"| {what} | {reach} | {measured} | `bench/{bench}.py` |")
    for machine in sorted({_machine(result) for result in results.values()}):
        commits = sorted({result["commit"] for result in results.values() if _machine(result) == machine})
        lines += ["", f"Measured on {machine}; at {', '.join(commits)} (a bench is repeated when its part changes)."]
    return "\n".join(lines)


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
    sign = ">= " if figure["at_least"] else "<= " if figure["reach"] else ""
    return f"{sign}{figure['reach']:g} {figure['unit']}".strip()


def _measured(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3g} {figure['unit']}".strip() + ("" if figure["met"] else ", **missed**")


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
