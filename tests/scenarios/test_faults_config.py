"""21 and 12: mistakes in a configuration that a running daemon reads again; good ones take effect; wall clocks that jump."""

import copy
import hashlib
import json
import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_figures import Figures
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scenario_rack import Daemon, Place, RackProcess, Status, cli, limit_of, outlet_of, running

from rpi_daemon.errors import RpiError

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
    assert [line.partition(": ")[2].partition(":")[0] for line in refused.stderr.splitlines()] == [
        "rack.nominal_v",
        "constraint[3]",
        "constraint[3].rating_w",
    ]
    status = daemon.until(lambda s: any(a["id"] == "config_refused" for a in s["alarms"]), "the alarm")
    assert status["config"]["refused"] == refused.stderr.splitlines()
    assert daemon.log("reload.refused")[-1]["errors"] == refused.stderr.splitlines()

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
