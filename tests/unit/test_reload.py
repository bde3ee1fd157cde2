"""Reloading: what may change while the daemon runs, that all of it takes effect, and that what is wrong changes nothing."""

import asyncio
import enum
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from rpi_daemon.alarms import AlarmTable, Facts, config_conditions
from rpi_daemon.assembly import build_pipeline
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.changes import LIVE, changes
from rpi_daemon.config.load import load_config, section_of
from rpi_daemon.config.schema import Config
from rpi_daemon.corrector import _RollingMax
from rpi_daemon.devices import write_budgets
from rpi_daemon.errors import ConfigError, RpiError
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.pdu_task import Lease
from rpi_daemon.records import Severity
from rpi_daemon.reload import Reload, prepare
from rpi_daemon.retrain.decision import why_never
from rpi_daemon.retrain.standing import StandingModel, library_of
from rpi_daemon.retrain.task import Learning
from rpi_daemon.service import Service
from rpi_daemon.standing import STANDING_FILE, Standing
from rpi_daemon.trap_task import Traps

CONFIG = """\
[rack]
id = "reload"

[daemon]
state_dir = "state"
runtime_dir = "run"
log_level = "info"

[forecast]
primary = "persistence"

[traps]
heartbeat_s = 300.0

[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "127.0.0.1"
user = "u"
auth_key_file = "key"
priv_key_file = "key"
writes_per_day = 100

[[outlet]]
pdu = "pdu"
numbers = "1-4"
load = "load-{n}"
rating_w = 700.0
static_safe_w = 550.0

[[load]]
id = "load-1"
tier = 2

[[cap]]
load = "load-2"
host = "127.0.0.2"
user = "u"
password_file = "key"
allow_insecure = true

[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 16.0
outlets = ["pdu/*"]

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 5000.0
rating_va = 5000.0
outlets = ["pdu/1-3"]

[[schedule]]
load = "load-1"
at = "02:00"
delta_w = 50.0

[[trap_sink]]
id = "facility"
host = "127.0.0.3"
version = "2c"
community_file = "key"
allow_insecure = true
"""
MORE = """
[[board]]
id = "board"
port = "/dev/null"
channels = ["current:pdu/1"]

[[telemetry]]
load = "load-1"
url = "https://127.0.0.4/metrics"

[[cap]]
load = "load-3"
host = "127.0.0.5"
user = "u"
password_file = "key"
allow_insecure = true
"""
# what an option is given in place of what stands above, or of its default: (old text, new text)
OTHER = {
    "daemon.log_level": ('log_level = "info"', 'log_level = "warning"'),
    "pdu.writes_per_day": ("writes_per_day = 100", "writes_per_day = 300"),
    "outlet.static_safe_w": ("static_safe_w = 550.0", "static_safe_w = 500.0"),
    "outlet.closed_loop": ("static_safe_w = 550.0", "static_safe_w = 550.0\nclosed_loop = true"),
    "load.id": ('[[load]]\nid = "load-1"', '[[load]]\nid = "load-3"'),
    "load.tier": ("tier = 2", "tier = 3"),
    "load.floor_w": ("tier = 2", "tier = 2\nfloor_w = 20.0"),
    "load.demand_w": ("tier = 2", "tier = 2\ndemand_w = 600.0"),
    "load.sheddable": ("tier = 2", "tier = 2\nsheddable = true"),
    "load.critical": ("tier = 2", "tier = 2\ncritical = true"),
    "constraint.id": ('id = "breaker"', 'id = "breaker-7"'),
    "constraint.kind": ('kind = "breaker"', 'kind = "feed"'),
    "constraint.rating_w": ("rating_w = 5000.0", "rating_w = 4000.0"),
    "constraint.rating_va": ("rating_va = 5000.0", "rating_va = 4000.0"),
    "constraint.rating_a": ("rating_a = 16.0", "rating_a = 20.0"),
    "constraint.derate": ("rating_a = 16.0", "rating_a = 16.0\nderate = 0.9"),
    "constraint.outlets": ('["pdu/1-3"]', '["pdu/2-4"]'),
    "schedule.load": ('load = "load-1"\nat', 'load = "load-2"\nat'),
    "schedule.at": ('"02:00"', '"03:00"'),
    "schedule.days": ("delta_w = 50.0", 'delta_w = 50.0\ndays = ["mon"]'),
    "schedule.delta_w": ("delta_w = 50.0", "delta_w = 60.0"),
    "schedule.for_s": ("delta_w = 50.0", "delta_w = 50.0\nfor_s = 10.0"),
    "traps.heartbeat_s": ("heartbeat_s = 300.0", "heartbeat_s = 30.0"),
    "traps.per_minute": ("heartbeat_s = 300.0", "heartbeat_s = 300.0\nper_minute = 30"),
    "trap_sink.min_severity": ('id = "facility"', 'id = "facility"\nmin_severity = "critical"'),
    "retrain.enabled": "false",
    "retrain.hours": '"02:00-03:00"',
    "retrain.max_load": "0.5",
    "retrain.min_history_days": "3.0",
    "retrain.history_days": "14.0",
    "retrain.minutes": "20.0",
    "retrain.memory_mb": "600.0",
    "retrain.keep_models": "7",
    "retrain.watch_hours": "12.0",
    "corrector.target": "0.02",
    "corrector.meter_noise_w": "1.0",
    "corrector.start_s": "30.0",
    "corrector.hold_s": "7.0",
    "corrector.censor_band": "0.06",
    "corrector.growth_per_s": "1.6",
    "corrector.blind_hold_s": "6.0",
    "corrector.alarm_learn_s": "60.0",
    "corrector.alarm_hold_s": "3600.0",
    "corrector.alarm_headroom": "0.2",
    "corrector.alarm_step": "0.06",
    "corrector.alarm_episodes_per_day": "2.0",
    "allocator.slack_share": "0.4",
    "allocator.assumed_power_factor": "0.95",
    "allocator.lowest_power_factor": "0.6",
    "allocator.lowest_voltage": "0.7",
    "guard.recover_s": "6.0",
    "guard.trip_margin_share": "0.06",
    "guard.lowest_limit_w": "11.0",
    "actuator.deadband": "0.04",
    "actuator.lower_hold_s": "50.0",
    "actuator.raise_reserve": "0.3",
    "actuator.lease_s": "8.0",
    "actuator.retry_s": "0.5",
    "actuator.attempts": "4",
    "actuator.uncontrolled_s": "300.0",
    "actuator.foreign_changes": "4",
    "actuator.foreign_window_s": "30.0",
}
OPTIONS = [f"{section}.{option}" for section, options in LIVE.items() for option in sorted(options)]
# what a stage remembers from its first moment on: at a reload it stays, in a fresh start it begins anew
MEMORY = {"_request_w", "_needed_w", "_held_w", "_asleep_ns"}


def changed(option: str) -> str:
    """The configuration with another value of one option."""
    other = OTHER[option]
    if isinstance(other, tuple):
        assert CONFIG.count(other[0]) >= 1
        return CONFIG.replace(*other, 1)
    section, _, key = option.partition(".")
    return f"{CONFIG}\n[{section}]\n{key} = {other}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("a secret of 16 characters")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "state").mkdir()
    (tmp_path / "rack.toml").write_text(CONFIG)
    return tmp_path / "rack.toml"


class Running:
    """A service as it is while its loop runs, without boards, PDUs and time."""

    def __init__(self, config: Config) -> None:
        clock = ManualClock(NS_PER_S)
        self.service = Service(config, clock=clock)
        self.pipeline = build_pipeline(
            config, self.service.limits.rack, (), clock, writes_per_day=write_budgets(config)
        )
        self.service.pipeline = self.pipeline
        self.service.limits.lease = Lease(config.actuator.lease_s, clock.mono_ns())


def reloaded(running: Running) -> None:
    """What the loop does with a reload: prepared, then taken over between two ticks. Raises RpiError."""

    async def both() -> None:
        asked = asyncio.create_task(running.service.reload.run())
        while not asked.done():
            running.service.reload.take_over(running.pipeline)
            await asyncio.sleep(0.002)
        await asyncio.get_running_loop().shutdown_default_executor()
        await asked

    asyncio.run(both())


def facts(thing: Any, path: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every value that is reached from an object of ours, by where it stands."""
    if id(thing) in seen:
        return
    seen = seen | {id(thing)}
    if isinstance(thing, np.ndarray):
        yield path, thing.tolist() if thing.dtype != object else [str(item) for item in thing]
    elif isinstance(thing, bool | int | float | str | bytes | None | enum.Enum | Path):
        yield path, thing
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from facts(value, f"{path}[{key}]", seen)
    elif isinstance(thing, Config):
        return  # what counts is what is done with it
    elif isinstance(thing, list | tuple | set | frozenset) or type(thing).__name__ == "deque":
        yield f"{path}.maxlen", getattr(thing, "maxlen", None)
        yield f"{path}.size", len(thing)
        for k, value in enumerate(thing):
            yield from facts(value, f"{path}[{k}]", seen)
    elif type(thing).__module__.startswith("rpi_daemon") and not isinstance(thing, Reload):
        names = list(getattr(thing, "__dict__", ())) + [
            s for t in type(thing).__mro__ for s in getattr(t, "__slots__", ())
        ]
        for name in names:
            if name not in MEMORY:
                yield from facts(getattr(thing, name), f"{path}.{name}", seen)


def of(running: Running) -> dict[str, str]:
    told = facts(running.service)
    return {path: repr(value) for path, value in told if ".audit." not in path}  # which records the reload itself


def test_every_option_that_a_reload_takes_over_exists() -> None:
    for section, options in LIVE.items():
        schema = section_of(Config.model_fields[section].annotation)
        assert schema is not None
        assert options <= set(schema.model_fields), section
    assert set(OTHER) == set(OPTIONS)


# these are not in the service before its loop begins: see below
ELSEWHERE = ("daemon.", "retrain.", "traps.", "trap_sink.")


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith(ELSEWHERE)])
def test_a_live_option_takes_effect_as_at_a_start(option: str, place: Path) -> None:
    before = load_config(place)
    running, untouched = Running(before), Running(before)
    place.write_text(changed(option))
    fresh = Running(load_config(place))
    reloaded(running)
    assert of(running) == of(fresh)
    assert of(untouched) != of(fresh), "the comparison does not see this option"
    assert running.service.config == fresh.service.config != before


def options_of(config: Config, name: str) -> Config:
    """With another value of one option; what the checks would say of it does not matter here."""
    section, _, option = name.partition(".")
    value = getattr(config, section)
    first = value[0] if isinstance(value, list) else value
    old = getattr(first, option)
    new: Any = (
        "1-3" if option == "numbers"
        else not old if isinstance(old, bool)
        else old + 1 if isinstance(old, int | float)
        else [*old, *old] if isinstance(old, list)
        else "other"
    )  # fmt: skip
    other = first.model_copy(update={option: new})
    return config.model_copy(update={section: [other, *value[1:]] if isinstance(value, list) else other})


def test_every_option_is_taken_over_or_refused(place: Path) -> None:
    place.write_text(CONFIG + MORE)
    config = load_config(place)
    assert changes(config, config) == ()
    for section, field in Config.model_fields.items():
        if (schema := section_of(field.annotation)) is None:
            continue
        for option in schema.model_fields:
            found = changes(config, options_of(config, f"{section}.{option}"))
            assert found, f"{section}.{option}"
            assert {change.live for change in found} == {option in LIVE.get(section, ())}, f"{section}.{option}"


def test_the_page_of_configuration_tells_what_is_live() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/configuration.md").read_text(encoding="utf-8")
    table = page[page.index("| section | live |") :].partition("\n\n")[0]
    told = {
        cells[1].strip(" `[]"): set(re.findall(r"`(\w+)`", cells[2]))
        for cells in (line.split("|") for line in table.splitlines()[2:])
    }
    assert told == LIVE


def test_the_order_of_caps_is_a_change_and_that_of_other_tables_is_none(place: Path) -> None:
    place.write_text(CONFIG + MORE)
    config = load_config(place)
    turned = config.model_copy(update={"cap": config.cap[::-1], "constraint": config.constraint[::-1]})
    assert [change.key for change in changes(config, turned)] == ["order of cap"]


def test_grouping_outlets_otherwise_is_no_change_and_alike_ones_are_told_together(place: Path) -> None:
    before = load_config(place)
    head, table, tail = CONFIG.partition("[[outlet]]")
    first = (table + tail[: tail.index("[[load]]")]).replace('"1-4"', '"1-2"')
    rest = first.replace('"1-2"', '"3-4"').replace("550.0", "540.0")
    place.write_text(head + first + rest + tail[tail.index("[[load]]") :])
    found = changes(before, load_config(place))
    assert [change.words() for change in found] == ["outlet pdu/3-4.static_safe_w: 550.0 -> 540.0"]


def test_a_change_that_needs_a_restart_refuses_the_whole(place: Path) -> None:
    running = Running(load_config(place))
    before = of(running)
    text = changed("guard.recover_s").replace('id = "reload"', 'id = "other"').replace("writes_per_day", "poll_s")
    place.write_text(text.replace("poll_s = 100", "poll_s = 2.0"))
    with pytest.raises(ConfigError) as caught:
        reloaded(running)
    assert str(caught.value).splitlines() == [
        f'{place}: rack.id: "reload" -> "other": needs a restart',
        f"{place}: pdu pdu.poll_s: 1.0 -> 2.0: needs a restart",
    ]
    assert of(running) == before
    assert running.service.reload.refused == tuple(str(caught.value).splitlines())
    place.write_text(CONFIG)
    reloaded(running)
    assert running.service.reload.status()["refused"] is None


SINK = """[[trap_sink]]
id = "second"
host = "127.0.0.6"
version = "2c"
community_file = "key"
allow_insecure = true
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{CONFIG}{SINK}", "trap_sink second: not there -> {"),
        (CONFIG[: CONFIG.index("[[trap_sink]]")], "trap_sink facility: {"),
        (CONFIG.replace("127.0.0.3", "127.0.0.6"), 'trap_sink facility.host: "127.0.0.3" -> "127.0.0.6"'),
        (CONFIG.replace("writes_per_day = 100", "writes_per_day = 100\npoll_s = 5.0"), "pdu pdu.poll_s: 1.0 -> 5.0"),
        (CONFIG.replace("rating_w = 700.0", "rating_w = 710.0"), "outlet pdu/1-4.rating_w: 700.0 -> 710.0"),
        (CONFIG.replace("127.0.0.2", "127.0.0.6"), 'cap load-2.host: "127.0.0.2" -> "127.0.0.6"'),
        (CONFIG + MORE[MORE.index("[[cap]]") :], "cap load-3: not there -> {"),
        (CONFIG + MORE[MORE.index("[[telemetry]]") : MORE.index("[[cap]]")], "telemetry load-1: not there -> {"),
    ],
)
def test_whatever_a_person_may_expect_to_be_live_and_is_not_is_named_with_what_to_do(
    text: str, says: str, place: Path
) -> None:
    running = Running(load_config(place))
    place.write_text(text)
    with pytest.raises(ConfigError) as caught:
        reloaded(running)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{place}: {says}")
    assert line.endswith(": needs a restart")


def test_every_mistake_is_listed_and_nothing_changes(place: Path) -> None:
    running = Running(load_config(place))
    before, sha256 = of(running), running.service.config.sha256
    place.write_text(changed("corrector.target").replace("rating_a = 16.0", 'rating_a = "x"').replace("550.0", "-1.0"))
    with pytest.raises(ConfigError) as caught:
        reloaded(running)
    assert len(str(caught.value).splitlines()) == 2
    assert of(running) == before
    assert running.service.config.sha256 == running.service.reload.status()["sha256"] == sha256


def test_static_safe_must_fit_every_breaker_after_a_reload_too(place: Path) -> None:
    running = Running(load_config(place))
    place.write_text(
        changed("outlet.static_safe_w").replace("500.0", "700.0").replace("rating_a = 16.0", "rating_a = 12")
    )
    with pytest.raises(ConfigError, match="adds up to"):
        reloaded(running)


@pytest.mark.parametrize("gone", ["unlink", "folder", "long"])
def test_a_file_that_cannot_be_read_again_is_refused(gone: str, place: Path) -> None:
    config = load_config(place)
    place.unlink()
    if gone == "folder":
        place.mkdir()
    elif gone == "long":
        place.write_text("#" * 1_000_001)
    with pytest.raises(ConfigError, match=r"rack\.toml: is "):
        prepare(config)


@pytest.mark.parametrize("name", ["\\u0000", "x" * 5000, "/dev/zero", "./", "pipe.toml"])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("pdu", "profile"),
        ("pdu", "auth_key_file"),
        ("board", "calibration"),
        ("board", "trace"),
        ("cap", "password_file"),
        ("cap", "tls_ca_file"),
    ],
)
def test_whatever_stands_where_a_file_is_named_is_a_mistake_at_once(
    section: str, key: str, name: str, place: Path
) -> None:
    os.mkfifo(place.parent / "pipe.toml")
    config = load_config(place)
    lines = [line for line in (CONFIG + MORE).splitlines() if key == "profile" or not line.startswith(f"{key} =")]
    text = "\n".join(line for line in lines if not (section == "pdu" and line.startswith(f"{key} =")))
    text = text.replace('channels = ["c', 'driver = "replay"\nchannels = ["c')
    place.write_text(text.replace(f"[[{section}]]\n", f'[[{section}]]\n{key} = "{name}"\n', 1))
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    assert f".{key}: " in str(caught.value)
    assert "defect" not in str(caught.value)


def test_a_recorded_run_keeps_its_configuration(place: Path) -> None:
    running = Running(load_config(place))
    running.service = Service(running.service.config, clock=running.service.clock, record=place.parent / "recording")
    with pytest.raises(RpiError, match="this run is recorded"):
        reloaded(running)


def test_outlets_given_back_stay_so_until_they_are_opted_out(place: Path) -> None:
    place.write_text(changed("outlet.closed_loop"))
    running = Running(load_config(place))
    limits = running.service.limits
    limits.release(frozenset({"pdu/2", "pdu/3"}))
    place.write_text(changed("outlet.closed_loop").replace("tier = 2", "tier = 3"))
    reloaded(running)
    assert limits.released == {"pdu/2", "pdu/3"}
    assert limits.rack.opted_in.tolist() == running.pipeline.rack.opted_in.tolist() == [True, False, False, True]
    place.write_text(CONFIG)
    reloaded(running)
    assert limits.released == frozenset()
    assert not limits.rack.opted_in.any()


def test_what_failsafe_acts_on_is_renewed_and_a_disk_that_refuses_it_refuses_the_reload(place: Path) -> None:
    running = Running(load_config(place))
    place.write_text(changed("outlet.static_safe_w"))
    reloaded(running)
    standing = Standing.read(place.parent / "state")
    assert standing is not None
    assert changes(standing.config, running.service.config) == ()
    for path in (place.parent / "state").glob(f"{STANDING_FILE}*"):
        path.unlink()
    (place.parent / "state").rmdir()
    place.write_text(CONFIG)
    before = of(running)
    with pytest.raises(RpiError, match="standing"):
        reloaded(running)
    assert of(running) == before


def test_a_reload_opens_no_pdu_that_may_not_be_written(place: Path) -> None:
    running = Running(load_config(place))
    running.service.limits.opt_out("pdu", "its profile is not proven")
    assert running.service.limits.meters_only == {}
    place.write_text(changed("outlet.closed_loop"))
    reloaded(running)
    assert not running.service.limits.rack.opted_in.any()
    assert running.service.limits.meters_only == {"pdu": "its profile is not proven"}


def test_what_was_learned_stays(place: Path) -> None:
    """The largest request of the old span still holds an alarm threshold up after the span has changed."""
    rolling = _RollingMax(2, 10.0)
    rolling.push(5 * NS_PER_S, np.array([300.0, 100.0]))
    longer = rolling.over(100.0)
    assert longer.push(90 * NS_PER_S, np.array([50.0, 200.0])).tolist() == [300.0, 200.0]
    assert longer.push(130 * NS_PER_S, np.array([50.0, 50.0])).tolist() == [50.0, 200.0]
    assert longer.over(100.0) is longer


def test_the_lease_that_runs_gets_its_new_length() -> None:
    lease = Lease(10.0, 0)
    lease.configure(2.0)
    assert (lease.expired(2 * NS_PER_S), lease.expired(2 * NS_PER_S + 1)) == (False, True)


def test_receivers_hear_by_the_new_options(place: Path) -> None:
    before = load_config(place)
    more = changed("trap_sink.min_severity").replace("heartbeat_s = 300.0", "heartbeat_s = 30.0\nper_minute = 2")
    place.write_text(more)

    async def told() -> None:
        traps = Traps(before, ManualClock(NS_PER_S))
        await traps.open(deliver=False)
        (task,) = traps.tasks
        for _ in range(3):
            task.pace.went(NS_PER_S)
        assert (task.least, task.pace.full(NS_PER_S)) == (Severity.INFO, False)
        traps.configure(load_config(place))
        assert (task.least, task.pace.full(NS_PER_S)) == (Severity.CRITICAL, True)
        assert traps._config.traps.heartbeat_s == 30.0
        await traps.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    asyncio.run(told())


def test_the_log_goes_by_the_new_level(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    running = Running(load_config(place))
    place.write_text(changed("daemon.log_level"))
    with logging_to_stderr("info", "json"):
        log = structlog.get_logger("test")
        log.info("before")
        reloaded(running)
        log.info("after")
        log.warning("still")
    said = capfd.readouterr().err
    assert '"before"' in said
    assert '"after"' not in said
    assert '"still"' in said


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("retrain.")])
def test_learning_goes_by_the_new_options(option: str, place: Path) -> None:
    before = load_config(place)
    place.write_text(changed(option))
    after = load_config(place)
    clock = ManualClock(NS_PER_S)
    standing = StandingModel(library_of(before), clock, recorded=False)
    learning, fresh = (Learning(config, standing, clock, 4) for config in (before, after))
    learning.configure(after, why_never(after))
    assert dict(facts(learning)) == dict(facts(fresh))
    assert learning._config == after
    assert learning.status() == fresh.status()


def test_the_hours_of_training_go_by_a_wall_clock_that_was_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one look, 10 s: the daemon does not wait for the hours of the old time."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    config = load_config(place)
    clock = ManualClock(NS_PER_S, 12 * 3600 * NS_PER_S)
    learning = Learning(config, StandingModel(library_of(config), clock, recorded=False), clock, 4)
    learning.look(0.1, normal=True)
    assert "between 01:00 and 05:00" in learning.status()["waits_because"]
    clock.set_utc(2 * 3600 * NS_PER_S)
    learning.look(0.1, normal=True)
    assert "between 01:00 and 05:00" not in learning.status()["waits_because"]
    monkeypatch.undo()
    time.tzset()


def test_a_refused_reload_is_an_alarm_until_the_next_good_one(place: Path) -> None:
    table = AlarmTable({}, 0)
    seen = []
    for t_s, refused in ((1, ("a: x", "b: y")), (2, ()), (8, ())):
        facts_now = Facts(config_refused=refused)
        found = list(config_conditions(facts_now))
        seen += table.step(t_s * NS_PER_S, 0, found)
    assert [(n.alarm, n.state) for n in seen] == [("config_refused", "raised"), ("config_refused", "cleared")]
    assert seen[0].text == "the configuration was refused, the one before it is in force: a: x (and 1 more)"
