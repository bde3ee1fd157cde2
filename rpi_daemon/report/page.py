"""The report as one HTML page: nothing is fetched, it prints, and it is dark where the reader's screen is."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, tzinfo
from html import escape
from typing import Any, Final

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.report.charts import bars, shares, spark, timeline, watts
from rpi_daemon.report.words import Document, headline, length, mode, percent, same_risk, would

DAY_S: Final = 86_400.0
LISTED: Final = 40  # events and gaps on the page, the newest or longest; the document has more
LONGEST: Final = 300  # characters of an event
STYLE: Final = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #d8dde4; --paper: #ffffff; --panel: #f4f6f9; --draw: #1769aa; --band: #1769aa33;
  --reserve: #1f7a3d; --static: #b3261e; --stranded: #f0c9a0; --gap: #8a93a022; --good: #1f7a3d; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #343d4a; --paper: #12161c;
  --panel: #1b212a; --draw: #6db3ee; --band: #6db3ee33; --reserve: #6fce8d; --static: #ff8a80; --stranded: #6b4c2a; --gap: #ffffff14;
  --good: #6fce8d; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 28px 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 24px; border-bottom: 2px solid var(--ink);
  padding-bottom: 8px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 17px; margin: 34px 0 8px; } header p, .soft { color: var(--soft); margin: 0; }
.lead { font-size: 20px; line-height: 1.4; margin: 22px 0 8px; max-width: 46em; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 18px 0; }
.tile { background: var(--panel); border-radius: 8px; padding: 10px 14px; } .tile b { display: block; font-size: 23px; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; line-height: 1.3; display: block; }
svg { display: block; width: 100%; height: auto; } svg.spark { display: inline-block; width: auto; vertical-align: middle; }
svg text { fill: var(--ink); font-size: 14px; } svg text.small { font-size: 12px; } svg text.soft { fill: var(--soft); }
svg text.strong { font-weight: 600; }
.drawn { fill: var(--draw); } .stranded { fill: var(--stranded); } .mark { stroke: var(--ink); stroke-width: 2; fill: none; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; } .gap { fill: var(--gap); } .band { fill: var(--band); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .line.draw { stroke: var(--draw); } .line.reserve { stroke: var(--reserve); }
.static { stroke: var(--static); stroke-width: 1.6; stroke-dasharray: 7 4; fill: none; }
.legend { color: var(--soft); font-size: 13px; margin: 4px 0 0; } .legend i { display: inline-block; width: 14px; height: 10px;
  margin: 0 5px 0 14px; border-radius: 2px; } .legend i:first-child { margin-left: 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.25; }
td { text-align: right; white-space: nowrap; } th, td { padding: 3px 6px; border-bottom: 1px solid var(--line); }
td.l, th.l { text-align: left; } td.wrap { white-space: normal; width: 100%; overflow-wrap: anywhere; } tr.sum td { font-weight: 600; border-top: 2px solid var(--ink); }
.none { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.notes { background: var(--panel); border-radius: 8px; padding: 8px 14px 8px 32px; margin: 12px 0; } .defs dt { font-weight: 600; margin-top: 8px; }
.defs dd { margin: 0; color: var(--soft); max-width: 60em; } .scroll { overflow-x: auto; }
.e0 { fill: #4e79a7; background: #4e79a7; } .e1 { fill: #f28e2b; background: #f28e2b; } .e2 { fill: #59a14f; background: #59a14f; }
.e3 { fill: #b07aa1; background: #b07aa1; } .e4 { fill: #edc948; background: #edc948; } .e5 { fill: #76b7b2; background: #76b7b2; }
.e6 { fill: #e15759; background: #e15759; } .e7 { fill: #9c755f; background: #9c755f; }
@media print { @page { size: A4 landscape; margin: 12mm; } body { max-width: none; padding: 0; font-size: 10.5pt; } tr, .tile, svg { break-inside: avoid; }
  h2 { break-after: avoid; } thead { display: table-header-group; } .page { break-before: page; } .scroll { overflow: visible; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } table { font-size: 8.5pt; } }
"""
Row = Mapping[str, Any]


def page_of(document: Document, zone: tzinfo | None) -> str:
    """The whole page; times in `zone`."""
    rack = escape(document["rack"])
    parts = [
        _head(document, zone),
        _first(document),
        _over_time(document, zone),
        _notes(document),
        _outlets(document, zone),
        _risks(document),
        _forecasts(document),
        _events(document),
        _models(document),
        _gaps(document, zone),
        _definitions(),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>rpi-daemon report: {rack}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _head(document: Document, zone: tzinfo | None) -> str:
    span = f"{_when(document['from_utc_ns'], zone)} to {_when(document['to_utc_ns'], zone, zone_too=True)}"
    outlets = len(document["outlets"])
    return (
        f"<header><div><h1>{escape(document['rack'])}: what rpi-daemon {'would have bought' if would(document) else 'bought'}</h1>"
        f"<p>{span} ({length(document['span_s'])}) · {outlets} outlet{'s' * (outlets != 1)} · {mode(document)}</p></div>"
        f"<p>written {_when(document['written_utc_ns'], zone)}<br>rpi-daemon {escape(document['version'])}</p></header>"
    )


def _first(document: Document) -> str:
    rack = document["together"]
    closed = not would(document)
    tiles = (
        (
            watts(rack["stranded_static_w"]),
            "stranded with the configured static limits: reserved, not drawn, on average",
        ),
        (watts(rack["stranded_in_force_w"]), "stranded with the limits in force")
        if closed
        else (watts(rack["stranded_daemon_w"]), "stranded with the daemon's requests"),
        (
            percent(rack["request_escape_share"]),
            f"of requests were passed by the draw{_episodes(rack['request_episodes'])}",
        ),
        (_kwh(rack["energy_kwh"]), f"drawn; peak {watts(rack['peak_w'])}"),
    )
    reserved = (
        ("configured static limits", rack["static_w"], rack["draw_w"], None),
        ("best static limits in hindsight", rack["static_same_risk_w"], rack["draw_w"], None),
        ("rpi-daemon's requests", rack["reserve_w"], rack["draw_w"], rack["reserve_highest_w"]),
        *([("limits in force", rack["in_force_w"], rack["draw_w"], rack["in_force_highest_w"])] if closed else []),
    )
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{words}</span></div>' for value, words in tiles)
    return (
        f'<p class="lead">{escape(headline(document))}</p><p class="soft">{escape(same_risk(document))}</p>'
        f'<div class="tiles">{cells}</div>{bars(reserved)}'
        f'<p class="legend"><i class="e0" style="background:var(--draw)"></i>drawn, on average<i style="background:var(--stranded)"></i>reserved'
        f' but not drawn: stranded<i style="background:var(--ink);width:3px"></i>the fullest moment</p>'
    )


def _over_time(document: Document, zone: tzinfo | None) -> str:
    curves = document["curves"]
    chart = timeline(
        document["from_utc_ns"], document["to_utc_ns"], zone, curves["draw_w"], curves["reserve_w"]["mean"],
        document["together"]["static_w"],
    )  # fmt: skip
    return (
        f'<h2>Power over time</h2>{chart}<p class="legend"><i style="background:var(--draw)"></i>drawn: mean, lowest to highest'
        f'<i style="background:var(--reserve)"></i>requested<i style="background:var(--static)"></i>static limits'
        f'<i style="background:var(--gap);border:1px solid var(--line)"></i>nothing stored · times in {_zone(document, zone)}</p>'
    )


def _notes(document: Document) -> str:
    if not document["notes"]:
        return ""
    rows = "".join(f"<li>{escape(note)}</li>" for note in document["notes"])
    return f"<h2>What these figures do not cover</h2><ul class='notes'>{rows}</ul>"


def _outlets(document: Document, zone: tzinfo | None) -> str:
    rows, rack = document["outlets"], document["together"]
    top = max([row["static_w"] for row in rows] + [row["peak_w"] or 0.0 for row in rows])
    long = document["span_s"] > DAY_S
    head = (
        "outlet|l",
        "draw over time|l",
        "known",
        "energy kWh",
        "mean W",
        "peak W",
        "at|l",
        "static W",
        "hindsight W",
        "requests W",
        "requests free W",
    )

    def cells(name: str, curve: str, row: Row) -> list[str]:
        return [
            f"{name}|l", f"{curve}|l", percent(row["known_share"], 0), _fixed(row["energy_kwh"], 2), _whole(row["mean_w"]),
            _whole(row["peak_w"]), f"{_moment(row['peak_utc_ns'], zone, long)}|l", _whole(row["static_w"]),
            _whole(row["static_same_risk_w"]), _whole(row["reserve_w"]), _gain(row["freed_w"]),
        ]  # fmt: skip

    body = [cells(_name(row), spark(document["curves"]["outlets"][row["outlet"]], top), row) for row in rows]
    total = cells("all", "", {**rack, "known_share": document["known_share"]})
    return "<h2 class='page'>Power and room, by outlet</h2>" + _table(head, body, total)


def _risks(document: Document) -> str:
    head = (
        "outlet|l", "requests judged", "requests passed", "in episodes", "static limit passed", "mean limit in force W", "kind|l",
        "limit passed, times", "for s", "by at most W", "writes", "others' writes",
    )  # fmt: skip

    def cells(name: str, row: Row, kind: str) -> list[str]:
        return [
            f"{name}|l", _whole(row["requests_judged"]), percent(row["request_escape_share"]), _whole(row["request_episodes"]),
            percent(row["static_escape_share"]), _whole(row["limit_w"]), f"{kind}|l", _whole(row["limit_escape_episodes"]),
            _fixed(row["limit_escape_s"], 1), "–" if row["limit_escape_episodes"] == 0 else _whole(row["limit_passed_by_w"]),
            _whole(row["writes"]), _whole(row["foreign_changes"]),
        ]  # fmt: skip

    body = [cells(_name(row), row, escape(row["limit_kind"] or "")) for row in document["outlets"]]
    states = " · ".join(f"{escape(name)} {percent(share, 1)}" for name, share in document["states"].items() if share)
    said = f"<p class='soft'>{states} of the time</p>" if states else ""
    return f"<h2 class='page'>Risk and writes, by outlet</h2>{said}" + _table(
        head, body, cells("all", document["together"], "")
    )


def _name(row: Row) -> str:
    return f"{escape(row['outlet'])} <span class='none'>{escape(row['load'])}</span>"


def _moment(t_ns: int | None, zone: tzinfo | None, long: bool) -> str:
    if t_ns is None:
        return ""
    return f"{datetime.fromtimestamp(t_ns // NS_PER_S, zone):{'%d %b %H:%M' if long else '%H:%M:%S'}}"


def _forecasts(document: Document) -> str:
    rack = document["together"]
    names = list(dict.fromkeys([*rack["weights"], *rack["request_weights"]]))
    places = {name: k for k, name in enumerate(names)}
    head = (
        "outlet|l",
        "mean error W",
        "persistence W",
        "ratio",
        "weights in the forecast|l",
        "weights in the request|l",
    )

    def cells(name: str, row: Row) -> list[str]:
        return [
            f"{name}|l", _fixed(row["mae_w"], 1), _fixed(row["persistence_mae_w"], 1), _ratio(row["mae_vs_persistence"]),
            _weights(row["weights"], places), _weights(row["request_weights"], places),
        ]  # fmt: skip

    rows = [cells(_name(row), row) for row in document["outlets"]]
    legend = "".join(f'<i class="e{k % 8}"></i>{escape(name)}' for name, k in places.items())
    return (
        "<h2 class='page'>Forecasts 5 s ahead</h2><p class='soft'>Mean absolute error of the forecast and of \"as it is now\""
        " (persistence), judged by the daemon at every reading; below 1 the forecast is better.</p>"
        f'<p class="legend">{legend}</p>' + _table(head, rows, cells("all", rack))
    )


def _weights(weights: Mapping[str, float], places: Mapping[str, int]) -> str:
    if not weights:
        return "<span class='none'>not known</span>|l"
    name, weight = next(iter(weights.items()))
    return f"{shares(weights, places)} {escape(name)} {percent(weight, 0)}|l"


def _events(document: Document) -> str:
    events = document["events"]
    if not events["by_kind"]:
        return "<h2>Events</h2><p class='soft'>None was kept in this time.</p>"
    kinds = " · ".join(f"{escape(name)}\u00a0{count}" for name, count in events["by_kind"].items())
    notable = events["notable"][-LISTED:]
    older = len(events["notable"]) - len(notable)
    more = f"<p class='soft'>{older} older ones: rpi-daemon events</p>" if older else ""
    return f"<h2>Events</h2><p class='soft'>{kinds}</p>{more}" + (_event_table(notable) if notable else "")


def _models(document: Document) -> str:
    if not document["models"]:
        return "<h2>Models</h2><p class='soft'>The forecast model did not change.</p>"
    return "<h2>Models</h2>" + _event_table(document["models"][-LISTED:])


def _event_table(events: Iterable[Row]) -> str:
    rows = [
        [f"{event['local_time']}|l", f"{escape(event['name'])}|l", f"{escape(_said(event['data']))}|l wrap"]
        for event in events
    ]
    return _table(("time|l", "event|l", "|l"), rows)


def _said(data: Mapping[str, Any]) -> str:
    """The plain fields of an event; tables of scores are in the document alone."""
    plain = {key: value for key, value in data.items() if value not in (None, "", []) and not _nested(value)}
    text = ", ".join(f"{key} {_word(value)}" for key, value in plain.items())
    return text if len(text) <= LONGEST else text[: LONGEST - 2] + " …"


def _nested(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(x, dict | list) for x in value))


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _gaps(document: Document, zone: tzinfo | None) -> str:
    if not document["gaps"]:
        return ""
    longest = sorted(document["gaps"], key=lambda gap: gap["from_utc_ns"] - gap["to_utc_ns"])[:LISTED]
    rows = [
        [f"{_when(gap['from_utc_ns'], zone, seconds=True)}|l", f"{_when(gap['to_utc_ns'], zone, seconds=True)}|l",
         length((gap["to_utc_ns"] - gap["from_utc_ns"]) / NS_PER_S)]
        for gap in sorted(longest, key=lambda gap: gap["from_utc_ns"])
    ]  # fmt: skip
    left = len(document["gaps"]) - len(longest)
    more = f"<p class='soft'>and {left} shorter ones</p>" if left else ""
    return "<h2>Gaps in the measurements</h2>" + _table(("from|l", "to|l", "length"), rows) + more


def _definitions() -> str:
    words = (
        ("stranded", "Watts that are reserved for an outlet and not drawn, on average."),
        ("static W", "The configured static limit (static_safe_w): what is reserved without the daemon."),
        (
            "requests W",
            "What the daemon asked for on behalf of the outlet, each 100 ms for the next 5 s, on average. In closed loop its limits follow them, with"
            " holds and headroom against needless writes, so that less is freed; in advisory mode they are computed all the same. While the daemon stood in STATIC_SAFE the static limit counts. An outlet whose load has"
            " a second feed reserves the whole load, so that either feed may be lost.",
        ),
        (
            "passed",
            "A request is passed when the highest draw of the 5 s after it is above it: the share of all requests that were judged, and behind it the"
            " episodes (escapes less than 5 s apart are one). The static limit is judged in the same way, once a second.",
        ),
        (
            "hindsight W",
            "The lowest whole watt that, as a constant limit, would have been passed no more often than the outlet's requests were. Nobody can know"
            " it before: it is the best that static limits could have done.",
        ),
        (
            "limits in force",
            "In closed loop: what the PDU held of outlets that are opted in, and the static limit of others, together. What they free is what the"
            " first sentence counts; in advisory mode it counts requests.",
        ),
        ("requests free W", "Static limit minus requests. All: the same moment by moment; an outlet without a reading counts with its static limit."),
        ("at every moment", "Static limits together minus all requests (in closed loop: limits in force) together at the fullest second."),
        ("limit in force, passed", "The mean limit on the PDU, and how often the draw rose above it. An alarm threshold holds nothing back."),
        ("writes", "Limits that the daemon wrote and read back."),
        ("energy", "Of the time with readings. Nothing is added for the rest."),
    )  # fmt: skip
    rows = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in words)
    return f"<h2>How it is counted</h2><dl class='defs'>{rows}</dl>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] = ()) -> str:
    """Cells are HTML; `text|class` gives a cell's class."""
    body = "".join(f"<tr>{''.join(_cell('td', cell) for cell in row)}</tr>" for row in rows)
    foot = f"<tr class='sum'>{''.join(_cell('td', cell) for cell in total)}</tr>" if total else ""
    heads = "".join(_cell("th", cell) for cell in head)
    return f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{body}{foot}</tbody></table></div>"


def _cell(tag: str, cell: str) -> str:
    text, _, kind = cell.rpartition("|") if "|" in cell else (cell, "", "")
    return f"<{tag} class='{kind}'>{text}</{tag}>" if kind else f"<{tag}>{text}</{tag}>"


def _when(t_ns: int, zone: tzinfo | None, *, seconds: bool = False, zone_too: bool = False) -> str:
    moment = datetime.fromtimestamp(t_ns // NS_PER_S, zone)
    return f"{moment:%Y-%m-%d %H:%M}" + (f"{moment::%S}" if seconds else "") + (f" {moment:%Z}" if zone_too else "")


def _zone(document: Document, zone: tzinfo | None) -> str:
    return escape(f"{datetime.fromtimestamp(document['to_utc_ns'] // NS_PER_S, zone):%Z}")


def _kwh(value: float | None) -> str:
    return (
        "not known"
        if value is None
        else f"{value:,.1f}\u00a0kWh".replace(",", "\u202f")
        if value >= 10.0
        else f"{value:.3f}\u00a0kWh"
    )


def _episodes(count: int | None) -> str:
    return "" if count is None else f", in {count} episode{'s' * (count != 1)}"


def _whole(value: float | None) -> str:
    return _fixed(value, 0)


def _fixed(value: float | None, digits: int) -> str:
    return "<span class='none'>not known</span>" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")


def _gain(value: float | None) -> str:
    if value is None:
        return _whole(None)
    return f"<span class='{'good' if value >= 0.0 else 'bad'}'>{_whole(value)}</span>"


def _ratio(value: float | None) -> str:
    if value is None:
        return _whole(None)
    return f"<span class='{'good' if value <= 1.0 else 'bad'}'>{value:.2f}</span>"
