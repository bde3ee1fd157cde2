"""Writes the README's table of figures, between its markers, from bench/results: no figure is typed by hand."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from common import ROOT

README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
NOTHING = "not measured yet"

Result = Mapping[str, Any]
Words = Callable[[Mapping[str, float], list[Mapping[str, Any]]], str]


def _row(rows: list[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any]:
    return next(row for row in rows if all(row.get(key) == value for key, value in wanted.items()))


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
        "silent PDU: p99 of the verified writes to the PDU beside it",
        "changes < 10 %",
        "silent",
        lambda r, _: f"{100.0 * (r['p99_silent_vs_answering'] - 1.0):+.0f} %",
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


def table() -> str:
    """The Markdown between the markers."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    lines = ["| what | to reach | measured | with |", "|---|---|---|---|"]
    for what, reach, bench, words in FIGURES:
        result = results.get(bench)
        measured = NOTHING if result is None else words(result["ratios"], result["rows"])
        lines.append(f"| {what} | {reach} | {measured} | `bench/{bench}.py` |")
    for machine in sorted({_machine(result) for result in results.values()}):
        lines += ["", f"Measured on {machine}."]
    return "\n".join(lines)


def _machine(result: Result) -> str:
    machine = result["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']},"
        f" at commit {result['commit']}"
    )


def with_table(readme: str) -> str:
    """The README's text with the table put in. Raises ValueError without markers."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


def main() -> None:
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
