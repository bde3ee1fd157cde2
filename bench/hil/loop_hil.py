"""The whole loop: a load steps; how long until its limit is verified, and until a server cap is, and holds.

By default a rack of four simulated servers: an alarm-only PDU, a sensor board, a BMC each; two of them step together over
what the breaker may carry. With --config it watches the daemon that runs with that configuration, for --seconds, while you
(or your scheduler) step the loads. It only looks; whatever is written, the daemon writes by its own rules.
Everything is seen in the daemon's status, every 25 ms: times are that coarse, and limits and caps count once read back.
"""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from page import Line, Measured, Plot, arguments, publish

from rpi_daemon.config.load import read_config
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.demo import demo_folder, free_ports, running_daemon, simulated_rack
from rpi_daemon.errors import RpiError

LOOK_S = 0.025
SECONDS, QUICK_SECONDS = 150.0, 65.0
STEP_SHARE = 0.1  # of the outlet's rating, within STEP_S: a rise
STEP_S = 1.0
HORIZON_S = 5.0
LOW_W, HIGH_W, STEADY_W = 120.0, 450.0, 250.0
PERIOD_S, BEGIN_S, HIGH_S = 70.0, 12.0, 6.0  # of the two servers that step
BREAKER_W = 1200.0  # carries 2 x HIGH + 2 x STEADY = 1400 W not: 0.8 x 1200 = 960
RATING_W, STATIC_SAFE_W = 600.0, 240.0
# holds are short, so that a minute shows what takes longer in a real rack
CONFIG = """
[rack]
id = "loop-hil"

[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_level = "warning"

[sampling]
raw_ring_s = 30.0

[guard]
recover_s = 1.0

[corrector]
hold_s = 1.0
alarm_learn_s = 0.0
alarm_hold_s = 4.0

[actuator]
lower_hold_s = 1.0

[[board]]
id = "board-1"
board_id = 1
port = "board-1.tty"
channels = ["current:pdu-a/1", "current:pdu-a/2", "current:pdu-a/3", "current:pdu-a/4", "voltage:L1"]

[[pdu]]
id = "pdu-a"
profile = "raritan_px"
host = "127.0.0.1"
port = {pdu_port}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
writes_per_day = 20000

[[outlet]]
pdu = "pdu-a"
numbers = "1-4"
load = "server-{{n}}"
rating_w = {rating}
static_safe_w = {static}
closed_loop = true

[[constraint]]
id = "breaker"
kind = "breaker"
rating_w = {breaker}
outlets = ["pdu-a/*"]
"""
CAP = """
[[cap]]
load = "server-{n}"
host = "127.0.0.1"
port = {port}
user = "operator"
password_file = "bmc.key"
tls_ca_file = "bmc-ca.pem"
closed_loop = true
"""


@dataclass(frozen=True)
class Look:
    """One status, as far as it matters here."""

    t_s: float
    power_w: dict[str, float]
    limit_w: dict[str, float]
    draw_w: dict[str, float]  # per constraint
    caps: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Rise:
    """A step of one outlet: when it began, from what to what, and when its limit was verified above it."""

    outlet: str
    t_s: float
    from_w: float
    to_w: float
    limit_after_s: float | None  # negative: in advance; None: it never was


@dataclass(frozen=True)
class Capping:
    """One time that a server was capped: from the daemon's asking."""

    load: str
    t_s: float
    cap_w: float
    verified_after_s: float | None
    under_after_s: float | None  # the constraint's draw back within its derated rating
    released_after_s: float | None


def look(client: ControlClient) -> tuple[Look, dict[str, Any]]:
    status = client.ask("status")

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    return Look(
        status["t_mono_ns"] / 1e9,
        {o["id"]: known(o["power_w"]) for o in status["outlets"]},
        {o["id"]: known(o["limit_w"]) for o in status["outlets"]},
        {c["id"]: known(c["draw_w"]) for c in status["constraints"]},
        {c["load"]: c for c in status["caps"]},
    ), status


def watch(client: ControlClient, seconds: float) -> tuple[list[Look], dict[str, Any]]:
    """Looks for so long, and the last whole status."""
    looks: list[Look] = []
    end = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        seen, status = look(client)
        looks.append(seen)
        if started >= end:
            return looks, status
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - started)))


def rises(looks: Sequence[Look], outlet: str, rating_w: float) -> list[Rise]:
    """Steps of an outlet, and when its verified limit first stood above the new draw."""
    t_s = np.array([x.t_s for x in looks])
    power_w = np.array([x.power_w[outlet] for x in looks])
    limit_w = np.array([x.limit_w[outlet] for x in looks])
    found: list[Rise] = []
    i = 0
    while i < len(t_s):
        ahead = (t_s > t_s[i]) & (t_s <= t_s[i] + STEP_S)
        if not ahead.any() or not np.nanmax(power_w[ahead], initial=-np.inf) - power_w[i] > STEP_SHARE * rating_w:
            i += 1
            continue
        begin = i + int(np.argmax(power_w[i:] > power_w[i] + 0.25 * STEP_SHARE * rating_w))
        settled = (t_s >= t_s[begin]) & (t_s <= t_s[begin] + STEP_S)
        to_w = float(np.nanmax(power_w[settled]))
        found.append(Rise(outlet, float(t_s[begin]), float(power_w[i]), to_w, _limit_after(t_s, limit_w, begin, to_w)))
        i = int(np.searchsorted(t_s, t_s[begin] + STEP_S))
    return found


def _limit_after(t_s: Any, limit_w: Any, begin: int, to_w: float) -> float | None:
    """From the rise to the limit above it; where it stood there already, since when (at most the horizon)."""
    if limit_w[begin] >= to_w:
        below = np.flatnonzero(~(limit_w[:begin] >= to_w))
        since = t_s[below[-1] + 1] if len(below) else -math.inf
        return max(float(since - t_s[begin]), -HORIZON_S)
    later = np.flatnonzero(limit_w[begin:] >= to_w)
    return float(t_s[begin + later[0]] - t_s[begin]) if len(later) else None


def cappings(looks: Sequence[Look], load: str, ceilings_w: dict[str, float]) -> list[Capping]:
    """Each time the daemon wanted a cap on a server that had none; verified: it is active, and ours, as read back."""
    found: list[Capping] = []
    caps = [x.caps[load] for x in looks]
    i = 1
    while i < len(looks):
        if caps[i]["wanted_w"] is None or caps[i - 1]["wanted_w"] is not None or caps[i - 1]["active"]:
            i += 1
            continue
        start_s = looks[i].t_s
        held = [k for k in range(i, len(looks)) if caps[k]["active"] and caps[k]["ours"]]
        gone = next((k for k in range(held[0], len(looks)) if caps[k]["active"] is False), None) if held else None
        under = next((k for k in held if all(looks[k].draw_w[n] <= ceiling for n, ceiling in ceilings_w.items())), None)
        verified, back_under, released = (
            None if k is None else looks[k].t_s - start_s for k in (held[0] if held else None, under, gone)
        )
        found.append(Capping(load, start_s, caps[i]["wanted_w"], verified, back_under, released))
        i = gone if gone is not None else len(looks)
    return found


# -- the simulated rack


def _trace(path: Path, seconds: float) -> None:
    """Servers 1 and 2 step together, 3 and 4 draw steadily."""
    lines = ["t_s,server-1,server-2,server-3,server-4"]
    for k in range(round((seconds + 60.0) * 10)):
        high = BEGIN_S <= (k / 10.0) % PERIOD_S < BEGIN_S + HIGH_S
        step_w = HIGH_W if high else LOW_W
        lines.append(f"{k / 10.0:.1f},{step_w},{step_w},{STEADY_W},{STEADY_W}")
    path.write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def simulated(seconds: float) -> Iterator[ControlClient]:
    with demo_folder(None) as folder:
        first = free_ports(5)
        text = CONFIG.format(pdu_port=first, rating=RATING_W, static=STATIC_SAFE_W, breaker=BREAKER_W)
        text += "".join(CAP.format(n=n, port=first + n) for n in range(1, 5))
        config = folder / "rack.toml"
        config.write_text(text)
        _trace(folder / "steps.csv", seconds)
        with simulated_rack(config, folder / "steps.csv"), running_daemon(config) as (_, client):
            yield client


@contextlib.contextmanager
def running(config: Path) -> Iterator[ControlClient]:
    options = read_config(config)
    with contextlib.closing(ControlClient(options.path(options.daemon.runtime_dir) / SOCKET_NAME)) as client:
        yield client


# -- the report


def judge(measured: Measured, looks: Sequence[Look], status: dict[str, Any]) -> None:
    ratings = {o["id"]: o["rating_w"] for o in status["outlets"]}
    found = [rise for outlet, rating in ratings.items() for rise in rises(looks, outlet, rating)]
    measured.add("looks", len(looks))
    measured.add("rises", len(found), least=1)
    lags = [rise.limit_after_s for rise in found if rise.limit_after_s is not None]
    measured.add("rises whose limit was verified before them", sum(lag <= 0.0 for lag in lags))
    if len(lags) > 1:
        measured.add("rise to verified limit, median", float(np.median(lags)), "s")
        measured.add("rise to verified limit, worst", max(lags), "s")
        measured.plots.append(
            Plot("Rise to verified limit", "s (negative: before the rise)", "share", (Line("rises", lags),), "cdf")
        )
    measured.add("rises whose limit never came above them", len(found) - len(lags))
    ceilings = {c["id"]: c["ceiling_w"] for c in status["constraints"]}
    _judge_caps(measured, looks, status, ceilings)
    _plot_draw(measured, looks, status, ceilings)


def _judge_caps(measured: Measured, looks: Sequence[Look], status: dict[str, Any], ceilings: dict[str, float]) -> None:
    if not status["caps"]:
        measured.notes.append("no [[cap]]: nothing here can hold power back")
        return
    capped = [item for cap in status["caps"] for item in cappings(looks, cap["load"], ceilings)]
    measured.add("servers capped, times", len(capped), least=1 if measured.simulated else None)
    for what, values, most in (
        ("decision to verified cap", [c.verified_after_s for c in capped], 1.0),
        ("decision to draw within the ceiling", [c.under_after_s for c in capped], None),
        ("decision to cap taken off", [c.released_after_s for c in capped], None),
    ):
        known = [value for value in values if value is not None]
        if known:
            measured.add(f"{what}, median", float(np.median(known)), "s")
            measured.add(f"{what}, worst", max(known), "s", most=most)
    never = sum(c.verified_after_s is None for c in capped if c.t_s < looks[-1].t_s - 1.0)
    measured.add("caps that were never verified", never, most=0)
    for cap in status["caps"]:
        measured.add(f"settle time of {cap['load']}", cap["settle_s"], "s")
        if cap["too_slow"]:
            measured.notes.append(f"{cap['load']}: {cap['too_slow']}")


def _plot_draw(measured: Measured, looks: Sequence[Look], status: dict[str, Any], ceilings: dict[str, float]) -> None:
    t_s = [x.t_s - looks[0].t_s for x in looks]
    for name, ceiling_w in ceilings.items():
        draw_w = [x.draw_w[name] for x in looks]
        lines = (Line("draw", t_s, draw_w), Line("ceiling", [t_s[0], t_s[-1]], [ceiling_w, ceiling_w]))
        measured.plots.append(Plot(f"Draw on {name}", "s", "W", lines))
    first = status["outlets"][0]["id"]
    lines = [
        Line("draw", t_s, [x.power_w[first] for x in looks]),
        Line("limit read back", t_s, [x.limit_w[first] for x in looks]),
    ]
    load = status["outlets"][0]["load"]
    if load in looks[0].caps:
        capped = [x.caps[load]["cap_w"] if x.caps[load]["active"] else math.nan for x in looks]
        lines.append(Line("server cap", t_s, capped))
    measured.plots.append(Plot(f"Outlet {first}", "s", "W", tuple(lines)))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--config", type=Path, help="configuration of the daemon that runs; a simulated rack if not given"
    )
    parser.add_argument("--seconds", type=float, help=f"how long it looks; {SECONDS:g}, with --quick {QUICK_SECONDS:g}")
    options = parser.parse_args()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    try:
        with simulated(seconds) if options.config is None else running(options.config) as client:
            looks, status = watch(client, seconds)
    except RpiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    where = "simulator: four servers on one breaker" if options.config is None else f"rack {status['rack']}"
    measured = Measured(
        "loop_hil", f"{where}, {len(status['outlets'])} outlets, mode {status['mode']}", options.config is None
    )
    judge(measured, looks, status)
    return publish(measured, options)


if __name__ == "__main__":
    sys.exit(main())
