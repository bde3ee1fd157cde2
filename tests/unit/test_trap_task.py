"""One receiver's task: the rate, the order, back-off, what a test says; and the engine identity that receivers remember."""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon import trap_task
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.schema import TrapSink
from rpi_daemon.drivers.traps import engine
from rpi_daemon.drivers.traps.engine import BOOTS_EPOCH_S, BOOTS_MAX, ENGINE_FILE, next_boot
from rpi_daemon.drivers.traps.sender import TrapSender
from rpi_daemon.errors import ConfigError, DeviceError
from rpi_daemon.records import Notice, Severity
from rpi_daemon.trap_queue import TrapQueue
from rpi_daemon.trap_task import BACK_OFF_S, SPACING_S, Pace, SinkTask

UTC_NS = 1_800_000_000 * NS_PER_S


@given(st.integers(1, 20), st.lists(st.floats(0.0, 100.0), min_size=1, max_size=100))
def test_never_more_than_so_many_in_any_minute_nor_two_at_once(per_minute: int, arrivals: list[float]) -> None:
    pace, now_ns, sent = Pace(per_minute), 0, []
    for arrival_s in sorted(arrivals):
        now_ns = max(now_ns, round(arrival_s * NS_PER_S))
        full = pace.full(now_ns)
        wait_s = pace.wait_s(now_ns)
        assert full == (len([t for t in sent if now_ns - t < 60 * NS_PER_S]) >= per_minute)
        assert not full or wait_s > 0.0
        now_ns += round(wait_s * NS_PER_S)
        assert pace.wait_s(now_ns) == 0.0
        pace.went(now_ns)
        sent.append(now_ns)
    for i, t in enumerate(sent):
        assert len([u for u in sent if 0 <= u - t < 60 * NS_PER_S]) <= per_minute
        assert i == 0 or t - sent[i - 1] >= SPACING_S * NS_PER_S


class Receiver:
    """Stands for the sender and its receiver: answers, or is away for so many messages."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.subjects: list[str] = []
        self.resolved = 0

    async def connect(self) -> None:
        self.resolved += 1

    async def send(self, oid: str, varbinds: Sequence[tuple[str, tuple[str, bytes | int]]]) -> None:
        if self.away:
            self.away -= 1
            raise DeviceError("receiver: no acknowledgement in 2 s")
        values = dict(varbinds)
        self.subjects.append(cast(bytes, values["1.3.6.1.4.1.32473.1.1.8.0"][1]).decode())

    async def close(self) -> None:
        """Nothing is open."""


def notices(n: int) -> list[Notice]:
    return [Notice("overload", "raised", Severity.CRITICAL, f"overload:{i}", str(i), "", i) for i in range(n)]


def deliver(path: Path, n: int, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, *, kind: str = "inform",
            per_minute: int = 1000) -> tuple[SinkTask, TrapQueue, list[float]]:  # fmt: skip
    """`n` notices handed over at once, delivered on virtual time; the pauses that the task made."""
    clock, pauses = ManualClock(NS_PER_S), []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds > 0.0:
            pauses.append(round(seconds, 6))
            clock.advance(seconds)
        await real_sleep(0.0)

    async def run() -> tuple[SinkTask, TrapQueue]:
        monkeypatch.setattr(trap_task.asyncio, "sleep", sleep)
        queue = TrapQueue(path, ["sink"], 10_000)
        await queue.open()
        sink = TrapSink(id="sink", host="192.0.2.1", kind=cast("object", kind), version="2c")  # type: ignore[arg-type]
        task = SinkTask(
            sink, cast(TrapSender, receiver), queue, Pace(per_minute), clock, rack="rack", enterprise=32_473
        )
        await queue.put({"sink": notices(n)}, {})
        running = asyncio.create_task(task.run())
        while queue.sinks["sink"].waiting:
            await real_sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await queue.close()
        return task, queue

    task, queue = asyncio.run(run())
    return task, queue, pauses


def test_informs_wait_for_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    task, queue, pauses = deliver(tmp_path / "q", 25, receiver, monkeypatch, per_minute=10)
    assert receiver.subjects == [str(i) for i in range(25)]
    assert (task.sent, task.acknowledged, queue.sinks["sink"].dropped) == (25, 25, 0)
    assert sum(pauses) >= 120.0  # ten now, ten a minute later, five after another


def test_traps_beyond_the_rate_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    task, queue, pauses = deliver(tmp_path / "q", 25, receiver, monkeypatch, kind="trap", per_minute=10)
    assert receiver.subjects == [str(i) for i in range(10)]
    assert (task.sent, task.acknowledged, queue.sinks["sink"].dropped) == (10, 0, 15)
    assert task.reachable is None
    assert set(pauses) == {SPACING_S}


def test_a_receiver_that_is_away_is_asked_ever_more_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver(away=9)
    task, _, pauses = deliver(tmp_path / "q", 3, receiver, monkeypatch)
    assert [p for p in pauses if p >= BACK_OFF_S[0]] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert receiver.subjects == ["0", "1", "2"]
    assert receiver.resolved == 9  # it may have moved
    assert (task.reachable, task.error, task.sent, task.acknowledged) == (True, None, 12, 3)


def test_a_defect_ends_one_task_and_is_seen(tmp_path: Path) -> None:
    class Broken(Receiver):
        async def send(self, oid: str, varbinds: Sequence[tuple[str, tuple[str, bytes | int]]]) -> None:
            raise ValueError("a defect")

    async def run() -> SinkTask:
        queue = TrapQueue(tmp_path / "q", ["sink"], 10)
        await queue.open()
        sink = TrapSink(id="sink", host="192.0.2.1")
        task = SinkTask(
            sink, cast(TrapSender, Broken()), queue, Pace(10), ManualClock(NS_PER_S), rack="r", enterprise=1
        )
        await queue.put({"sink": notices(1)}, {})
        running = asyncio.create_task(task.run())
        running.add_done_callback(task.ended)
        await asyncio.wait([running])
        await asyncio.sleep(0.0)
        await queue.close()
        return task

    status = asyncio.run(run()).status()
    assert (status["reachable"], status["queued"]) == (False, 1)
    assert "ValueError('a defect')" in status["error"]


def test_boots_rise_with_every_start_and_the_id_stays(tmp_path: Path) -> None:
    first, second = (next_boot(tmp_path, UTC_NS, 32_473, "rack-7") for _ in range(2))
    assert second.engine_id == first.engine_id
    assert second.boots == first.boots + 1
    assert first.engine_id[:5] == bytes.fromhex("80007ed905")
    assert json.loads((tmp_path / ENGINE_FILE).read_text())["boots"] == second.boots


@pytest.mark.parametrize("damage", ["", "{}", '{"engine_id": "zz", "boots": 1}', None])
def test_lost_boots_never_go_back(tmp_path: Path, damage: str | None) -> None:
    before = next_boot(tmp_path, UTC_NS, 32_473, "rack-7")
    if damage is None:
        (tmp_path / ENGINE_FILE).unlink()
    else:
        (tmp_path / ENGINE_FILE).write_text(damage)
    after = next_boot(tmp_path, UTC_NS + 7200 * NS_PER_S, 32_473, "rack-7")
    assert after.engine_id == before.engine_id
    assert after.boots == before.boots + 2 == (UTC_NS // NS_PER_S + 7200 - BOOTS_EPOCH_S) // 3600 + 1


@pytest.mark.parametrize("file", ["whole", "none"])
def test_a_disk_that_takes_nothing_lets_the_time_of_the_start_before_go_on(tmp_path: Path, file: str) -> None:
    """What a receiver has seen is (boots, seconds): it may only rise (RFC 3414 3.2.7)."""
    before = next_boot(tmp_path, UTC_NS, 32_473, "rack-7")
    if file == "none":
        (tmp_path / ENGINE_FILE).unlink()
    else:
        os.utime(tmp_path / ENGINE_FILE, ns=(UTC_NS, UTC_NS))
    in_the_way = tmp_path / f"{ENGINE_FILE}.tmp"
    in_the_way.mkdir()
    later = [next_boot(tmp_path, UTC_NS + s * NS_PER_S, 32_473, "rack-7") for s in (7200, 7290)]
    assert {identity.engine_id for identity in later} == {before.engine_id}
    seen = [(identity.boots, identity.age_s) for identity in (before, *later)]
    if file == "whole":
        assert seen == [(before.boots, 0), (before.boots, 7200), (before.boots, 7290)]
    assert seen == sorted(set(seen))
    in_the_way.rmdir()
    again = next_boot(tmp_path, UTC_NS + 7300 * NS_PER_S, 32_473, "rack-7")
    assert (again.boots, again.age_s) == (later[-1].boots + 1, 0)


def test_a_host_without_an_id_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MACHINE_ID", tmp_path / "machine-id")
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        first = next_boot(tmp_path / name, UTC_NS, 32_473, "rack-7").engine_id
        assert next_boot(tmp_path / name, UTC_NS, 32_473, "rack-7").engine_id == first
        ids.add(first)
    assert len(ids) == 2


def test_boots_that_cannot_rise_are_named(tmp_path: Path) -> None:
    (tmp_path / ENGINE_FILE).write_text(json.dumps({"engine_id": "80007ed90501", "boots": BOOTS_MAX}))
    with pytest.raises(ConfigError, match=r"snmp-engine\.json: engine boots is 2147483646"):
        next_boot(tmp_path, UTC_NS, 32_473, "rack-7")
