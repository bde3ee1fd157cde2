"""21 and 12: mistakes in a configuration that a running daemon reads again; good ones take effect; wall clocks that jump."""

import copy
import hashlib
import json
import math
import os
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_figures import Figures
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scenario_rack import Daemon, Place, RackProcess, Status, cli, limit_of, outlet_of, running

from rpi_daemon.assembly import build_pipeline
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import load_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Config
from rpi_daemon.devices import write_budgets
from rpi_daemon.errors import RpiError
from rpi_daemon.guard import HealthFlags
from rpi_daemon.pipeline import DecisionDigest, TickInputs
from rpi_daemon.records import LimitKind, LimitState, Mode, PduReading, PduReport

MUTATIONS = int(os.environ.get("RPI_MUTATIONS", "30"))
BUSY_SHARE = 0.05  # of the ticks may come late on a machine that others use as well; the figure counts them all
TICK_S = 0.1


@pytest.fixture(scope="module")
def found_w(rack: RackProcess) -> dict[str, float | None]:
    """What stood on the PDUs before the daemon came."""
    return rack.limits_w()


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess, found_w: dict[str, float | None]) -> Iterator[Daemon]:
    with running(lambda: Daemon(place.write())) as process:
        process.normal()
        yield process


@pytest.fixture
def config(daemon: Daemon) -> Iterator[Path]:
    """The daemon's own file, good again afterwards."""
    text = daemon.config.read_text(encoding="utf-8")
    yield daemon.config
    daemon.config.write_text(text, encoding="utf-8")
    if daemon.alive():
        daemon.ask("reload")


def in_force(status: Status) -> dict[str, Any]:
    """What a configuration decides, as the daemon shows it."""
    return {
        "config": status["config"]["sha256"],
        "mode": status["mode"],
        "outlets": [(o["id"], o["static_safe_w"], o["rating_w"], o["opted_in"]) for o in status["outlets"]],
        "constraints": [(c["id"], c["derate"], [r["rating"] for r in c["ratings"]]) for c in status["constraints"]],
    }


def missed(before: Status, after: Status) -> int:
    """Ticks that did not come in this time."""
    due = (after["t_mono_ns"] - before["t_mono_ns"]) / 1e9 / TICK_S
    return max(0, int(due) - 1 - (after["summary"]["ticks"] - before["summary"]["ticks"]))


def asked(daemon: Daemon) -> dict[str, Any] | RpiError:
    """The daemon's answer to a reload, a refusal included."""
    try:
        return daemon.ask("reload")
    except RpiError as refusal:
        return refusal


# -- 21: mutations


def toml(data: dict[str, Any]) -> str:
    """Tables, and lists of tables, of plain values; JSON's words are TOML's for these."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not tables(value)]
    for name, value in data.items():
        for head, table in [(f"[[{name}]]", t) for t in value] if isinstance(value, list) else [(f"[{name}]", value)]:
            if tables(value):
                lines += [head, *(f"{key} = {json.dumps(item)}" for key, item in table.items())]
    return "\n".join(lines) + "\n"


def tables(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


VALUES = st.one_of(
    st.sampled_from([0, -1, 1e308, "", "\0", "pdu-a/*", "99", [], {}, True, None, 10**30, "../../etc", "\u202e"]),
    st.integers(-10, 10_000),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=8),
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> bytes:
    """The configuration with one to three things wrong, or other: its tables, keys and values, or its bytes."""
    data = tomllib.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from(sorted(data)))
        item = data[section]
        place = draw(st.sampled_from(item)) if tables(item) and isinstance(item, list) else item
        if not isinstance(place, dict) or not place:
            continue
        key = draw(st.sampled_from(sorted(place)))
        match draw(st.sampled_from(["drop", "value", "scale", "rename", "section", "double", "retype"])):
            case "drop":
                del place[key]
            case "value":
                value = draw(VALUES)
                place[key] = "none" if value is None else value
            case "scale" if isinstance(place[key], int | float):
                place[key] = place[key] * draw(st.sampled_from([0.5, 0.9, 1.1, 2.0, -1.0]))
            case "rename":
                place[f"{key}{draw(st.sampled_from(['s', '_w', 'x']))}"] = place.pop(key)
            case "section":
                data[draw(st.sampled_from(["colour", "base_dir", "sha256"]))] = copy.deepcopy(item)
            case "double" if isinstance(item, list):
                item.append(copy.deepcopy(place))
            case _:
                place[key] = draw(st.sampled_from([str(place[key]), [place[key]], not place[key]]))
    raw = bytearray(toml(data).encode())
    match draw(st.sampled_from(["whole", "whole", "whole", "flip", "cut", "insert"])):
        case "flip":
            raw[draw(st.integers(0, len(raw) - 1))] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del raw[draw(st.integers(0, len(raw) - 1)) :]
        case "insert":
            at = draw(st.integers(0, len(raw)))
            raw[at:at] = draw(st.sampled_from([b"[" * 5000, b"\xff\xfe", b"\0", b"x = 1\n", b'"""', b"9" * 5000]))
    return bytes(raw)


@pytest.mark.fault(21)
def test_fault_21_mutated_configurations_change_nothing_or_are_good(
    daemon: Daemon, config: Path, figure: Figures
) -> None:
    text = config.read_text(encoding="utf-8")
    began = daemon.status()
    counts = {"refused": 0, "taken over": 0}
    changed_by_refusal = 0

    @settings(
        max_examples=MUTATIONS,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(mutated(text))
    def reload(raw: bytes) -> None:
        nonlocal changed_by_refusal
        before = daemon.status()
        config.write_bytes(raw)
        told = asked(daemon)
        after = daemon.status()
        counts["refused" if isinstance(told, RpiError) else "taken over"] += 1
        if isinstance(told, RpiError):
            assert told.exit_code in (3, 4), told
            assert after["config"]["refused"] == str(told).splitlines() != []
            changed_by_refusal += in_force(after) != in_force(before)
        else:
            assert told["sha256"] == after["config"]["sha256"] == hashlib.sha256(raw).hexdigest()

    reload()
    ended = daemon.status()
    assert counts["refused"] > MUTATIONS / 4
    assert "Traceback" not in daemon.words()
    assert not [line for line in daemon.log() if "defect" in json.dumps(line)]
    figure(21, f"refused configurations that changed anything, of {counts['refused']}", changed_by_refusal, 0, "")
    ticks = ended["summary"]["ticks"] - began["summary"]["ticks"]
    late = missed(began, ended)
    figure(21, f"ticks missed in {MUTATIONS} reloads", late, 0, "", busy=BUSY_SHARE * ticks)


# -- good ones


def test_a_reload_from_the_command_line(daemon: Daemon, config: Path, rack: RackProcess) -> None:
    text = config.read_text(encoding="utf-8")
    first = daemon.normal()
    assert first["config"]["path"] == str(config)
    assert first["config"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()

    config.write_text(text.replace("rating_w = 9000.0", "rating_w = 8500.0\nderate = 0.9"), encoding="utf-8")
    tried = cli(config, "reload", "--dry-run", "--json")
    assert tried.returncode == 0, tried.stderr
    assert {change["key"] for change in json.loads(tried.stdout)["changed"]} == {
        "constraint rack.rating_w",
        "constraint rack.derate",
    }
    assert in_force(daemon.status()) == in_force(first)

    done = cli(config, "reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "constraint rack.rating_w: 9000.0 -> 8500.0",
        "constraint rack.derate: 0.8 -> 0.9",
    ]
    row = next(c for c in daemon.status()["constraints"] if c["id"] == "rack")
    assert (row["derate"], row["ratings"][0]["rating"]) == (0.9, 8500.0)
    assert cli(config, "reload").stdout.rstrip().endswith("nothing has changed")


def test_a_mistake_is_told_everywhere(daemon: Daemon, config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    wrong = text.replace("nominal_v = 230.0", "nominal_v = 5.0").replace("rating_w = 9000.0", "rating_w = -1.0")
    config.write_text(wrong, encoding="utf-8")
    refused = cli(config, "reload")
    assert refused.returncode == 3
    assert "the configuration before it stays in force" in refused.stdout
    assert [line.partition(": ")[2].partition(":")[0] for line in refused.stderr.splitlines()] == [
        "rack.nominal_v",
        "constraint[3].rating_w",
    ]
    status = daemon.until(lambda s: any(a["id"] == "config_refused" for a in s["alarms"]), "the alarm")
    assert status["config"]["refused"] == refused.stderr.splitlines()
    daemon.logged("reload.refused", errors=refused.stderr.splitlines())

    config.write_text(
        "[daemon\n" + text, encoding="utf-8"
    )  # the daemon is found all the same, and so is its kill switch
    assert cli(config, "reload").returncode == 3
    assert cli(config, "kill").returncode == 0
    assert daemon.status()["kill_switch"] is True
    assert cli(config, "resume").returncode == 0

    config.write_text(text, encoding="utf-8")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda s: s["config"]["refused"] is None, "the good one is in force")


def test_outlets_opt_in_and_out(
    daemon: Daemon, config: Path, rack: RackProcess, found_w: dict[str, float | None]
) -> None:
    daemon.normal()
    text = config.read_text(encoding="utf-8")
    b = text[text.index('[[outlet]]\npdu = "pdu-b"') : text.index("[[constraint]]")]
    b1 = b.replace('"1-6"', '"1"').replace("closed_loop = true\n", "")
    b2 = b.replace('"1-6"', '"2-6"')
    text = text.replace(b, b1 + b2)
    a6 = text.index('numbers = "6"')
    text = text[:a6] + text[a6:].replace("static_safe_w = 550.0", "static_safe_w = 540.0\nclosed_loop = true", 1)
    config.write_text(text, encoding="utf-8")
    assert found_w["pdu-b/1"] != limit_of(daemon.status(), "pdu-b/1")
    daemon.ask("reload")
    status = daemon.status()
    assert outlet_of(status, "pdu-a/6")["opted_in"] is True
    assert outlet_of(status, "pdu-b/1")["opted_in"] is False
    assert rack.limits_w()["pdu-b/1"] == found_w["pdu-b/1"], "its owner has it back"
    before = found_w["pdu-a/6"]
    daemon.until(lambda s: limit_of(s, "pdu-a/6") != before, "the new one is written")
    assert not [line for line in daemon.log("limit.foreign_change") if line["outlet"] == "pdu-b/1"]


def test_new_static_safe_limits_are_those_that_are_left(
    place: Place, rack: RackProcess, daemon: Daemon, config: Path
) -> None:
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("static_safe_w = 550.0", "static_safe_w = 530.0"), encoding="utf-8")
    daemon.ask("reload")
    config.write_text("[nonsense", encoding="utf-8")  # what is in force counts, not what stands in the file by now
    assert daemon.stop() == 0
    limits = rack.limits_w()
    assert [limits[f"pdu-a/{n}"] for n in range(1, 6)] == pytest.approx([530.0] * 5, abs=1.0)


# -- 12: the wall clock is set

SITE = """
import os, time

_now_ns, _file = time.time_ns, os.open(os.environ["RPI_TEST_WALL"], os.O_RDONLY)


def _set_ns():
    return _now_ns() + int(os.pread(_file, 30, 0))


time.time_ns = _set_ns
time.time = lambda: _set_ns() / 1e9
"""
HOUR_S = 3600.0
STEPS_S = {"an hour on": HOUR_S, "an hour back": -HOUR_S, "a leap second": -1.0, "1970": -time.time() + 60.0}


@dataclass
class Wall:
    """The wall clock of one process, as everything in it reads it, and how far it was set."""

    file: Path

    def set(self, by_s: float) -> None:
        with self.file.open("r+b", buffering=0) as file:  # in place, and at once: it is read all the time
            file.write(b"%+030d" % round(by_s * 1e9))


@pytest.fixture
def wall(tmp_path: Path) -> Wall:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "wall").touch()
    found = Wall(tmp_path / "wall")
    found.set(0.0)
    return found


def troubles(daemon: Daemon) -> list[str]:
    """What a clock must not cause."""
    bad = (
        "pdu.unreachable",
        "pdu.rebooted",
        "trap_sink.unreachable",
        "history.defect",
        "limit.foreign_change",
    )
    return [line["event"] for line in daemon.log() if line["event"] in bad]


@pytest.mark.fault(12)
def test_fault_12_a_wall_clock_that_is_set(place: Place, rack: RackProcess, wall: Wall, figure: Figures) -> None:
    """A real daemon on SNMPv3 whose own wall clock is set; a time namespace cannot shift CLOCK_REALTIME."""
    env = {"PYTHONPATH": str(wall.file.parent), "RPI_TEST_WALL": str(wall.file)}
    with running(lambda: Daemon(place.write(), env=env, name="stepped")) as daemon:
        began = daemon.normal()
        quiet, expected = troubles(daemon), list[float]()
        for name, by_s in STEPS_S.items():
            wall.set(by_s)
            polls = {pdu["id"]: pdu["polls"] for pdu in daemon.status()["pdus"]}
            after = daemon.until(
                lambda s, before=polls: (
                    s["state"] == "NORMAL" and all(p["polls"] >= before[p["id"]] + 3 for p in s["pdus"])
                ),
                f"NORMAL and polls after {name}",
            )
            assert abs(after["t_utc_ns"] / 1e9 - time.time() - by_s) < 5.0, "it is seen"
            wall.set(0.0)
            expected.extend((by_s, -by_s))
            daemon.until(lambda s: len(daemon.log("clock.stepped")) == len(expected), f"both steps of {name} logged")
        ended = daemon.status()
        seen = [line["by_s"] for line in daemon.log("clock.stepped")]
        assert seen == pytest.approx(expected, abs=0.1)
        told = troubles(daemon)[len(quiet) :]
        assert set(told) <= {"pdu.unreachable"}
        assert len(told) < len(STEPS_S), "a busy machine may be late for a PDU once; a clock would be each time"
        assert ended["history"]["failing"] is None
        ticks = ended["summary"]["ticks"] - began["summary"]["ticks"]
        late = missed(began, ended)
        figure(12, f"ticks missed in {len(expected)} steps", late, 0, "", busy=max(2.0, BUSY_SHARE * ticks))
        assert daemon.stop() == 0


@pytest.mark.fault(12)
def test_fault_12_control_does_not_go_by_the_wall_clock(place: Place, figure: Figures) -> None:
    """The same readings with another wall clock: every decision is the same."""
    config = load_config(place.write(forecast='[forecast]\nprimary = "persistence"'))
    decided = [_decided(config, wall) for wall in (lambda t_s: 1.8e9 + t_s, _jumping)]
    assert decided[0][1] > 10, "limits were decided"
    figure(12, "decisions that another wall clock changes", 0 if decided[0] == decided[1] else 1, 0, "")


def _jumping(t_s: float) -> float:
    return 1.8e9 + t_s + (0.0, HOUR_S, -HOUR_S, -1.8e9, 1.0)[int(t_s / 10.0) % 5]


def _decided(config: Config, wall_s: Callable[[float], float]) -> tuple[str, int]:
    """Digest and number of the decisions of 50 s, over slow meters: PDUs that say what they draw and hold."""
    clock, rack = ManualClock(NS_PER_S), rack_model(config)
    rack = replace(rack, opted_in=np.ones(rack.n, np.bool_))
    pipeline = build_pipeline(config, rack, (), clock, writes_per_day=write_budgets(config))
    digest, decisions = DecisionDigest(), 0
    held = {pdu: dict.fromkeys(range(1, 7), 550.0) for pdu in ("pdu-a", "pdu-b")}
    for k in range(500):
        clock.advance(TICK_S)
        now_ns, t_s = clock.mono_ns(), k * TICK_S
        readings = () if k % 3 else tuple(_reading(pdu, now_ns, t_s, limits) for pdu, limits in held.items())
        snapshot = pipeline.step(
            TickInputs(now_ns, round(wall_s(t_s) * NS_PER_S), Mode.CLOSED_LOOP, HealthFlags(), readings)
        )
        digest.add(snapshot)
        for desired in snapshot.desired:
            decisions += len(desired.decisions)
            held[desired.pdu] |= {write.outlet: write.limit_w for write in desired.limits if write.limit_w is not None}
    return digest.hexdigest(), decisions


def _reading(pdu: str, now_ns: int, t_s: float, limits_w: dict[int, float]) -> PduReport:
    draw_w = {n: 200.0 + 20.0 * n + (150.0 if math.sin(t_s / (3.0 + n)) > 0.6 else 0.0) for n in limits_w}
    limits = {n: LimitState(limit_w, True, LimitKind.ALARM, step_w=1.0) for n, limit_w in limits_w.items()}
    return PduReport(pdu, reading=PduReading(now_ns, t_s, draw_w, {}, {}, limits))
