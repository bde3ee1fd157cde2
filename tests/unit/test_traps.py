"""From ticks to the queues of all receivers: who hears what, what a restart remembers."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rack_examples import constraint, make_rack, make_snapshot

from rpi_daemon import trap_task
from rpi_daemon.alarms import RESTORED_S, Facts
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import RpiError
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import Mode
from rpi_daemon.trap_queue import QUEUE_FILE
from rpi_daemon.trap_task import Traps

CONFIG = """
[rack]
id = "rack-7"

[daemon]
mode = "closed_loop"
state_dir = "state"

[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "127.0.0.1"
version = "2c"
community_file = "community"
allow_insecure = true

[[outlet]]
pdu = "pdu"
numbers = "1"
load = "load"
rating_w = 700.0
static_safe_w = 550.0

[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 10.0
outlets = ["pdu/*"]

[traps]
heartbeat_s = 10.0

[[trap_sink]]
id = "all"
host = "127.0.0.1"
port = 9
version = "2c"
community_file = "community"
allow_insecure = true

[[trap_sink]]
id = "grave"
host = "127.0.0.1"
port = 9
version = "2c"
community_file = "community"
allow_insecure = true
min_severity = "critical"
"""
RACK = make_rack(4, [constraint("breaker-1", [0, 1], 4, w=1000.0)], rating_w=800.0, per_pdu=2)
QUIET, OVERLOAD = [200.0] * 4, [550.0, 500.0, 100.0, 100.0]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(trap_task, "FAREWELL_S", 0.05)
    (tmp_path / "state").mkdir()
    (tmp_path / "community").write_text("public")
    (tmp_path / "community").chmod(0o600)
    return parse_config(CONFIG, "test", base_dir=tmp_path, env={})


def at(clock: ManualClock, power_w: Sequence[float]) -> Snapshot:
    return make_snapshot(RACK, power_w, t_mono_ns=clock.mono_ns(), t_utc_ns=clock.utc_ns())


def live(config: Config, clock: ManualClock, seconds: float, power_w: Sequence[float], facts: Facts) -> Traps:
    """One life of the daemon's traps, nobody answering: ticks for so long, then the end."""

    async def body() -> Traps:
        traps = Traps(config, clock)
        await traps.open()
        for _ in range(round(seconds * 10)):
            clock.advance(0.1)
            traps.watch(RACK, at(clock, power_w), facts)
        with pytest.raises(RpiError, match="no trap sink is called 'x'; known: all, grave"):
            await traps.test("x")
        await traps.close()
        return traps

    return asyncio.run(body())


def queued(config: Config, sink: str) -> list[tuple[int, str, str]]:
    """(sequence, kind, state) of what waits for a receiver."""
    db = sqlite3.connect(config.path(config.daemon.state_dir) / QUEUE_FILE)
    rows = db.execute("SELECT sequence, body FROM notice WHERE sink = ? ORDER BY sequence", (sink,)).fetchall()
    db.close()
    return [(n, (body := json.loads(text))["kind"], body["state"]) for n, text in rows]


CLOSED = Facts(mode=Mode.CLOSED_LOOP, model="a 01")


def test_a_restart_clears_what_is_gone_once_and_numbers_go_on(config: Config) -> None:
    clock = ManualClock(NS_PER_S)
    first = live(config, clock, 6.0, OVERLOAD, CLOSED)
    assert "overload:breaker-1" in first.table.standing
    before = queued(config, "all")
    assert before[0][1:] == ("started", "event")
    assert before[-1][1:] == ("stopped", "event")
    assert ("overload", "raised") in [row[1:] for row in before]
    clock.advance(100.0)
    second = live(config, clock, RESTORED_S + 11.0, QUIET, CLOSED)
    assert second.table.standing == {}
    after = queued(config, "all")
    assert after[: len(before)] == before
    assert [n for n, _, _ in after] == list(range(1, len(after) + 1))
    told = [(kind, state) for _, kind, state in after if state != "event"]
    for kind in ("overload", "over_derating", "overload_predicted", "budget_shortfall"):
        assert told.count((kind, "raised")) == told.count((kind, "cleared")) == 1, kind


def test_a_receiver_hears_what_is_grave_enough_and_every_heartbeat(config: Config) -> None:
    live(config, ManualClock(NS_PER_S), 21.0, OVERLOAD, CLOSED)
    assert [row[1:] for row in queued(config, "grave")] == [
        ("overload", "raised"), ("heartbeat", "event"), ("heartbeat", "event"),
    ]  # fmt: skip
    db = sqlite3.connect(config.path("state") / QUEUE_FILE)
    beat = json.loads(db.execute("SELECT body FROM notice WHERE sink = 'grave' AND sequence = 3").fetchone()[0])
    db.close()
    assert (beat["mode"], beat["safe_state"], sorted(beat["standing"])) == ("closed_loop", 0, [2, 2, 2, 3])


def test_another_model_than_before_is_told_once(config: Config) -> None:
    clock = ManualClock(NS_PER_S)
    for model in ("a 01", "a 01", "b 02", "b 02"):
        live(config, clock, 0.5, QUIET, replace(CLOSED, model=model))
    assert [kind for _, kind, _ in queued(config, "all")].count("model_promoted") == 1


def test_without_receivers_alarms_stand_and_nothing_is_on_disk(config: Config) -> None:
    alone = config.model_copy(update={"trap_sink": []})
    clock = ManualClock(NS_PER_S)

    async def body() -> Traps:
        traps = Traps(alone, clock)
        await traps.open()
        traps.watch(RACK, at(clock, OVERLOAD), CLOSED)
        await traps.close()
        return traps

    traps = asyncio.run(body())
    assert list(traps.table.standing) == ["overload:breaker-1"]
    assert traps.status() == []
    assert list(config.path("state").iterdir()) == []
