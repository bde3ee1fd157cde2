"""The live view: what a terminal and a plain line show of a status document, with and without data."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.reasons import explained
from rpi_daemon.top import View, plain_line, print_once, sparkline


def _status(**changes: Any) -> dict[str, Any]:
    outlet = {
        "id": "pdu-a/1", "load": "server-1", "power_w": 312.4, "forecast_max_w": 401.6, "margin_w": 12.0, "limit_w": 450.0,
        "limit_kind": "alarm", "server_cap_w": None, "source": "lstm", "weights": {"lstm": 1.0}, "quality": [],
    }  # fmt: skip
    dark = {**outlet, "id": "pdu-a/2", "power_w": None, "forecast_max_w": None, "limit_w": None, "quality": ["stale"]}
    summary = {
        "samples_total": 1000, "samples_lost": 3, "samples_late": 0, "ticks": 10, "tick_ms_p99": 4.2,
        "expert_weights": {"ridge": 0.3, "lstm": 0.696, "ewma": 0.004}, "request_escape_rate": 0.0123,
        "writes": 5, "writes_verified": 5, "writes_refused": 0, "prealloc_share": 0.5, "rises": 4,
    }  # fmt: skip
    ratings = [
        {"unit": "A", "draw": 17.25, "rating": 16.0, "over": "rating"},
        {"unit": "VA", "draw": 3968.0, "rating": 4000.0, "over": "derating"},
        {"unit": "W", "draw": 312.0, "rating": 9000.0, "over": None},
    ]
    constraint = {
        "id": "L1",
        "kind": "phase",
        "draw_w": None,
        "limits_w": None,
        "ceiling_w": 3680.0,
        "derate": 0.8,
        "ratings": ratings,
    }
    return {
        "rack": "lab", "t_utc_ns": 110 * NS_PER_S, "state": "HOLD", "mode": "closed_loop", "uptime_s": 12.3, "why": ["sensor_stale: pdu-a/2"],
        "latched": ["foreign_writer:pdu-b"], "reasons": explained(["sensor_stale:pdu-a/2", "foreign_writer:pdu-b"]),
        "kill_switch": False, "outlets": [outlet, dark], "constraints": [constraint], "summary": summary, "caps": [],
        "alarms": [], "pdus": [], "trap_sinks": [], "telemetry": [], "telemetry_feed": None, **changes,
    }  # fmt: skip


def _shown(status: dict[str, Any]) -> str:
    out = StringIO()
    print_once(status, Console(file=out, width=160, force_terminal=False))
    return out.getvalue()


def test_a_screen_has_every_outlet_with_a_dash_where_nothing_is_known() -> None:
    text = _shown(_status())
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("pdu-a/")}
    assert {"312", "402", "12", "450", "alarm", "lstm"} <= set(rows["pdu-a/1"].split())
    assert rows["pdu-a/2"].count("—") >= 3
    assert "stale" in rows["pdu-a/2"]
    assert "OVER ITS RATING: 17.25 of 16 A  OVER 80 % OF ITS RATING: 3968 of 4000 VA" in text
    assert text.count("OVER ") == 2
    assert "HOLD" in text
    assert "sensor_stale: pdu-a/2" in text
    assert "no reading of pdu-a/2: check the sensor board, its cable and its port" in text
    assert "stays until `rpi-daemon resume`: find and stop the other writer" in " ".join(text.split())
    assert "phase L1" in text
    assert "lost 3" in text


def test_experts_are_shown_with_their_weights_and_requests_with_their_escapes() -> None:
    mixed = {**_status()["outlets"][0], "source": "mixture", "weights": {"ridge": 0.25, "lstm": 0.7, "ewma": 0.05}}
    text = _shown(_status(outlets=[mixed]))
    assert "lstm 70 %" in text
    assert "requests passed 1.23%" in text
    assert "forecast by lstm 70 %, ridge 30 %" in " ".join(text.split())
    early = {**_status()["summary"], "request_escape_rate": None, "expert_weights": {}}
    assert "requests passed" not in plain_line(_status(summary=early))


def test_the_kill_switch_is_not_to_be_overlooked() -> None:
    assert "KILL SWITCH" in _shown(_status(kill_switch=True))
    assert "KILL SWITCH" in plain_line(_status(kill_switch=True))
    assert "KILL SWITCH" not in _shown(_status())


def test_what_is_in_plain_text_and_what_only_meters_stays_visible() -> None:
    good = {"id": "pdu-a", "meters_only": None, "insecure": False}
    status = _status(
        pdus=[good, {**good, "id": "pdu-b", "insecure": True}, {**good, "id": "pdu-c", "meters_only": "denied"}]
    )
    told = [line for line in _shown(status).splitlines() if line.startswith("pdu-") and "/" not in line]
    assert told == ["pdu-b is spoken to in plain text (allow_insecure)", "pdu-c: denied"]


def test_the_gravest_alarms_stand_first_and_a_silent_receiver_is_shown() -> None:
    alarms = [
        {"severity": level, "text": f"{level} {n}", "since_utc_ns": (100 - n) * NS_PER_S}
        for level in ("info", "warning", "critical")
        for n in range(3)
    ]
    sink = {"id": "facility", "reachable": False, "queued": 12, "error": "no acknowledgement in 2 s", "insecure": True}
    text = _shown(_status(alarms=alarms, trap_sinks=[sink, {**sink, "id": "b", "reachable": None, "insecure": False}]))
    assert [line for line in text.splitlines() if line.startswith(("critical", "warning", "info"))] == [
        *(f"critical: critical {n} ({10 + n} s ago)" for n in range(3)), "warning: warning 0 (10 s ago)", "warning: warning 1 (11 s ago)",
    ]  # fmt: skip
    assert "and 4 more alarms" in text
    assert "traps to facility: 12 wait: no acknowledgement in 2 s" in text
    assert "traps to facility go in plain text" in text
    assert "traps to b" not in text


def test_a_plain_line_is_one_line_with_the_sums() -> None:
    line = plain_line(_status())
    assert "\n" not in line
    assert "HOLD closed_loop" in line
    assert "draw 312 W (1 outlets unread)" in line
    assert "writes 5 verified 5 refused 0" in line


@pytest.mark.parametrize("ticks", [0, 1])
def test_a_daemon_without_a_tick_yet_can_be_shown(ticks: int) -> None:
    status = _status(outlets=[], constraints=[])
    status["summary"] |= {"ticks": ticks, "tick_ms_p99": None, "prealloc_share": None}
    assert "HOLD" in _shown(status)
    assert "p99 —" in plain_line(status)


def test_the_view_keeps_a_short_history() -> None:
    view, out = View(), StringIO()
    for k in range(40):
        status = _status()
        status["outlets"][0]["power_w"] = float(10 * k)
        table = view.table(status)
    Console(file=out, width=200).print(table)
    (row,) = [line for line in out.getvalue().splitlines() if line.startswith("pdu-a/1")]
    assert sum(mark in "▁▂▃▄▅▆▇█" for mark in row) == 24


@pytest.mark.parametrize(
    ("values", "top", "marks"), [([0.0, 50.0, 100.0], 100.0, "▁▅█"), ([None, 200.0, -5.0], 100.0, " █▁"), ([], 1.0, "")]
)
def test_a_sparkline(values: list[float | None], top: float, marks: str) -> None:
    assert sparkline(values, top) == marks


def test_a_servers_cap_stands_beside_its_outlets_own_alarm() -> None:
    cap = {
        "load": "server-1", "cap_w": 350.0, "asked_w": 350.0, "settle_s": 0.42, "error": None, "too_slow": None,
        "held": True, "insecure": False, "why": "L1 (A)",
    }  # fmt: skip
    mute = {**cap, "load": "server-2", "cap_w": None, "asked_w": None, "settle_s": None, "error": "no answer"}
    status = _status(caps=[cap, mute])
    status["outlets"][0]["server_cap_w"] = 350.0
    shown = _shown(status)
    assert "alarm + server_cap 350 W" in shown
    line = next(line for line in shown.splitlines() if line.startswith("server-1"))
    assert line.split() == ["server-1", "350", "350", "0.4", "s", "L1", "(A)"]
    assert "no answer" in next(line for line in shown.splitlines() if line.startswith("server-2"))
