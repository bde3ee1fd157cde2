"""The live view: a table and bars on a terminal, plain lines anywhere else. It reads status documents and nothing else."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import TELEMETRY

SPARKS = "▁▂▃▄▅▆▇█"
HISTORY = 24  # sparkline points
STATE_STYLE = {"NORMAL": "bold green", "HOLD": "bold yellow", "STATIC_SAFE": "bold red", "DEVICE_DEFAULT": "bold red"}
ALARM_STYLE = {"critical": "bold red", "warning": "yellow", "info": "dim"}
ALARM_STYLES = tuple(ALARM_STYLE)  # the gravest first
ALARMS = 5  # shown
HEAVIEST = 3  # experts in the counters
TOLD = 0.01  # a smaller weight is not told

Status = Mapping[str, Any]


def sparkline(values: list[float | None], top: float) -> str:
    """Values as block characters on a scale of 0..top; a gap where there is no data."""
    steps = len(SPARKS) - 1
    return "".join(" " if value is None else SPARKS[min(steps, max(0, round(value / top * steps)))] for value in values)


def watts(value: float | None) -> str:
    """A number of watts, or a dash where there is no data."""
    return "—" if value is None else f"{value:.0f}"


class View:
    """Keeps the short history that the sparklines show."""

    def __init__(self) -> None:
        self._history: dict[str, deque[float | None]] = {}

    def table(self, status: Status) -> RenderableType:
        """The whole screen for one status document."""
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        for name, align in (
            ("outlet", "left"), ("load", "left"), ("draw W", "right"), ("5 s max W", "right"), ("margin", "right"),
            ("limit W", "right"), ("kind", "left"), ("by", "left"), ("", "left"),
        ):  # fmt: skip
            table.add_column(name, justify="right" if align == "right" else "left", no_wrap=True)
        for outlet in status["outlets"]:
            table.add_row(*self._row(outlet))
        parts: list[RenderableType] = [self._head(status), table, self._bars(status)]
        if status["caps"]:
            parts.append(self._caps(status))
        return Group(*parts, *_told(status), self._foot(status))

    def _row(self, outlet: Mapping[str, Any]) -> list[RenderableType]:
        power = outlet["power_w"]
        limit = outlet["limit_w"]
        history = self._history.setdefault(outlet["id"], deque(maxlen=HISTORY))
        history.append(power)
        style = "red" if power is not None and limit is not None and power > limit else ""
        top = max([limit or 0.0, *(value or 0.0 for value in history), 1.0])
        flags = ",".join(outlet["quality"])
        return [
            outlet["id"], outlet["load"], Text(watts(power), style=style), watts(outlet["forecast_max_w"]),
            watts(outlet["margin_w"]), Text(watts(limit), style="bold"), _kinds(outlet), _by(outlet),
            Text(sparkline(list(history), top), style="cyan").append(f" {flags}" if flags else "", style="yellow"),
        ]  # fmt: skip

    def _head(self, status: Status) -> Text:
        state = status["state"]
        head = Text.assemble(
            (f"{status['rack']}  ", "bold"), (f" {state} ", f"reverse {STATE_STYLE.get(state, 'bold')}"),
            f"  {status['mode']}  up {status['uptime_s']:.0f} s",
        )  # fmt: skip
        if status["kill_switch"]:
            head.append("  KILL SWITCH: nothing is written", style="bold red")
        if status["why"]:
            head.append("  " + "; ".join(status["why"]), style="yellow")
        return head

    def _bars(self, status: Status) -> Table:
        bars = Table.grid(padding=(0, 1))
        for item in status["constraints"]:
            share = item["draw_w"] / item["ceiling_w"] if item["draw_w"] is not None else 0.0
            colour = "green" if share < 0.8 else "yellow" if share < 1.0 else "red"
            bars.add_row(
                f"{item['kind']} {item['id']}",
                ProgressBar(
                    total=1.0, completed=min(1.0, share), width=40, complete_style=colour, finished_style=colour
                ),
                f"draw {watts(item['draw_w'])}  limits {watts(item['limits_w'])}  of {watts(item['ceiling_w'])} W{_over(item)}",
            )
        return bars

    def _caps(self, status: Status) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("server", "cap W", "asked W", "settles", "why"):
            table.add_column(name, justify="left" if name in ("server", "why") else "right", no_wrap=name != "why")
        for cap in status["caps"]:
            settles = "—" if cap["settle_s"] is None else f"{cap['settle_s']:.1f} s"
            why = cap["error"] or cap["too_slow"] or cap["why"]
            style = "red" if cap["error"] or cap["held"] is False else ""
            table.add_row(
                cap["load"], Text(watts(cap["cap_w"]), style="bold"), watts(cap["asked_w"]), settles, Text(why, style=style)
            )  # fmt: skip
        return table

    def _foot(self, status: Status) -> Text:
        return Text("  ".join(counters(status)), style="dim")


def _kinds(outlet: Mapping[str, Any]) -> str:
    capped_w = outlet["server_cap_w"]
    return str(outlet["limit_kind"]) if capped_w is None else f"{outlet['limit_kind']} + server_cap {capped_w:.0f} W"


def _told(status: Status) -> list[Text]:
    """The alarms that stand, the gravest first, and devices and receivers that need a look."""
    ranked = sorted(status["alarms"], key=lambda alarm: ALARM_STYLES.index(alarm["severity"]))
    lines = []
    for alarm in ranked[:ALARMS]:
        ago = _ago((status["t_utc_ns"] - alarm["since_utc_ns"]) / NS_PER_S)
        lines.append(Text(f"{alarm['severity']}: {alarm['text']} ({ago})", style=ALARM_STYLE[alarm["severity"]]))
    if len(ranked) > ALARMS:
        lines.append(Text(f"and {len(ranked) - ALARMS} more alarms, see `rpi-daemon status --json`", style="dim"))
    for pdu in status["pdus"]:
        if pdu["meters_only"]:
            lines.append(Text(f"{pdu['id']}: {pdu['meters_only']}", style="yellow"))
        if pdu["insecure"]:
            lines.append(Text(f"{pdu['id']} is spoken to in plain text (allow_insecure)", style="yellow"))
    for cap in status["caps"]:
        if cap["insecure"]:
            lines.append(Text(f"the BMC of {cap['load']} is not verified (allow_insecure)", style="yellow"))
    lines += _hosts(status)
    for sink in status["trap_sinks"]:
        if sink["reachable"] is False:
            lines.append(Text(f"traps to {sink['id']}: {sink['queued']} wait: {sink['error']}", style="yellow"))
        if sink["insecure"]:
            lines.append(Text(f"traps to {sink['id']} go in plain text (version 2c)", style="yellow"))
    return lines


def _hosts(status: Status) -> list[Text]:
    """How many hosts tell what they do, how old the oldest of their words is, and who does not."""
    hosts = status["telemetry"]
    telling = [host for host in hosts if any(host[name] is not None for name in TELEMETRY)]
    lines = []
    if hosts:
        oldest = f", the oldest word {max(host['age_s'] for host in telling):.1f} s old" if telling else ""
        lines.append(Text(f"hosts: {len(telling)} of {len(hosts)} tell what they do{oldest}", style="dim"))
    for host in hosts:
        if host not in telling:
            since = "never heard of" if host["age_s"] is None else f"last heard of {host['age_s']:.0f} s ago"
            why = f": {host['error']}" if host["error"] else ""
            lines.append(Text(f"host of {host['load']}: {since}{why}", style="yellow"))
        if host["insecure"]:
            lines.append(Text(f"the host of {host['load']} is asked insecurely (allow_insecure)", style="yellow"))
    feed = status["telemetry_feed"]
    if feed is not None and (feed["refused"] or feed["dropped"] or feed["unknown_loads"]):
        unknown = f"; unknown loads: {', '.join(filter(None, feed['unknown_loads']))}" if feed["unknown_loads"] else ""
        error = f" ({feed['last_error']})" if feed["last_error"] else ""
        lines.append(
            Text(
                f"telemetry feed: {feed['refused']} refused{error}, {feed['dropped']} dropped{unknown}", style="yellow"
            )
        )
    return lines


def _over(constraint: Mapping[str, Any]) -> str:
    whole = {"rating": "ITS RATING", "derating": f"{100.0 * constraint['derate']:g} % OF ITS RATING"}
    return "".join(
        f"  OVER {whole[r['over']]}: {r['draw']:.4g} of {r['rating']:g} {r['unit']}"
        for r in constraint["ratings"]
        if r["over"]
    )


def _ago(seconds: float) -> str:
    """How long an alarm stands: its sentence has the figures of its beginning."""
    if seconds < 120.0:
        return f"{max(0.0, seconds):.0f} s ago"
    return f"{seconds / 60.0:.0f} min ago" if seconds < 7200.0 else f"{seconds / 3600.0:.0f} h ago"


def _milliseconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f} ms"


def counters(status: Status) -> list[str]:
    """The running counters, in words."""
    run = status["summary"]
    words = [
        f"samples {run['samples_total']} lost {run['samples_lost']} late {run['samples_late']}",
        f"ticks {run['ticks']} p99 {_milliseconds(run['tick_ms_p99'])}",
        f"writes {run['writes']} verified {run['writes_verified']} refused {run['writes_refused']}",
    ]
    if run["prealloc_share"] is not None:
        words.append(f"pre-allocated {run['prealloc_share']:.0%} of {run['rises']} rises")
    if run["request_escape_rate"] is not None:
        words.append(f"requests passed {run['request_escape_rate']:.2%}")
    if run["expert_weights"]:
        words.append(f"forecast by {by_weight(run['expert_weights'], HEAVIEST)}")
    return words


def by_weight(weights: Mapping[str, float], most: int | None = None) -> str:
    """Experts with a share worth telling, the heaviest first: "lstm 62 %, ridge 30 %"."""
    ranked = sorted(weights.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {100.0 * weight:.0f} %" for name, weight in ranked if weight >= TOLD)


def _by(outlet: Mapping[str, Any]) -> str:
    """Who forecasts an outlet: the heaviest expert and its weight, or the one who alone does."""
    weights: Mapping[str, float] = outlet["weights"]
    source = str(outlet["source"])
    if not weights or source in weights:
        return source
    name = max(weights, key=lambda expert: weights[expert])
    return f"{name} {100.0 * weights[name]:.0f} %"


def plain_line(status: Status) -> str:
    """One line for where there is no terminal."""
    draw_w = sum(outlet["power_w"] or 0.0 for outlet in status["outlets"])
    limit_w = sum(outlet["limit_w"] or 0.0 for outlet in status["outlets"])
    unread = sum(outlet["power_w"] is None for outlet in status["outlets"])
    dark = f" ({unread} outlets unread)" if unread else ""
    killed = " KILL SWITCH" if status["kill_switch"] else ""
    return (
        f"{status['uptime_s']:6.1f} s  {status['state']} {status['mode']}{killed}  draw {draw_w:.0f} W{dark}  limits {limit_w:.0f} W  "
        + "  ".join(counters(status))
    )


def print_once(status: Status, console: Console) -> None:
    """One screen, as `status` shows it, and what to do about what is wrong."""
    console.print(View().table(status))
    for reason in status["reasons"]:
        mark = "; stays until `rpi-daemon resume`" if _latched(reason, status) else ""
        console.print(Text.assemble((f"{reason['text']}{mark}: ", "yellow"), reason["do"]))


def _latched(reason: Mapping[str, Any], status: Status) -> bool:
    return any(cause.partition(":")[0] == reason["cause"] for cause in status["latched"])
