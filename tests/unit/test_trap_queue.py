"""The queue on disk: order, bound, a crash in the middle, a disk that takes nothing, a damaged file."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.errors import ConfigError
from rpi_daemon.records import Mode, Notice, SafeState, Severity
from rpi_daemon.trap_queue import TrapQueue, _from_json, _to_json


def notice(i: int) -> Notice:
    return Notice("overload", "raised", Severity.CRITICAL, f"overload:{i}", str(i), "text", i, value=1.5, unit="W")


def with_queue(path: Path, body: Callable[[TrapQueue], Awaitable[None]], bound: int = 1000) -> None:
    async def run() -> None:
        queue = TrapQueue(path, ["a", "b"], bound)
        await queue.open()
        try:
            await body(queue)
        finally:
            await queue.close()

    asyncio.run(run())


async def drain(queue: TrapQueue, sink: str) -> list[int]:
    """Subjects in the order of delivery; the sequence numbers must rise by one."""
    found, last = [], None
    while (message := await queue.head(sink)) is not None:
        assert last is None or message.sequence == last + 1
        last = message.sequence
        found.append(int(message.notice.subject))
        await queue.done(sink, message.sequence)
    return found


def test_each_receiver_has_its_own_in_order(tmp_path: Path) -> None:
    async def body(queue: TrapQueue) -> None:
        for i in range(20):
            await queue.put({"a": [notice(i)], "b": [notice(i)] if i % 2 else []}, {"standing": {"i": i}})
        assert await drain(queue, "b") == list(range(1, 20, 2))
        assert await drain(queue, "a") == list(range(20))
        assert (queue.sinks["a"].waiting, queue.sinks["a"].dropped, queue.sinks["a"].sequence) == (0, 0, 20)

    with_queue(tmp_path / "q", body)


def test_a_restart_goes_on_where_it_ended(tmp_path: Path) -> None:
    async def first(queue: TrapQueue) -> None:
        for i in range(5):
            queue.put({"a": [notice(i)]}, {"standing": {"i": i}})
        await queue.done("a", 1)

    async def second(queue: TrapQueue) -> None:
        assert (queue.sinks["a"].waiting, queue.sinks["a"].done, queue.sinks["a"].sequence) == (4, 1, 5)
        await queue.put({"a": [notice(5)]}, {})
        assert await drain(queue, "a") == [1, 2, 3, 4, 5]

    async def third(queue: TrapQueue) -> None:
        assert (queue.sinks["a"].waiting, queue.sinks["a"].done, queue.sinks["a"].sequence) == (0, 6, 6)

    for body in (first, second, third):
        with_queue(tmp_path / "q", body)


def test_beyond_the_bound_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    async def body(queue: TrapQueue) -> None:
        await queue.put({"a": [notice(i) for i in range(8)]}, {})
        in_flight = await queue.head("a")
        assert in_flight is not None
        await queue.put({"a": [notice(i) for i in range(8, 15)]}, {})
        await queue.done("a", in_flight.sequence)  # it was dropped meanwhile, and is not counted twice
        assert (queue.sinks["a"].waiting, queue.sinks["a"].dropped) == (10, 5)
        assert await drain(queue, "a") == list(range(5, 15))

    with_queue(tmp_path / "q", body, bound=10)

    async def again(queue: TrapQueue) -> None:
        assert queue.sinks["a"].dropped == 5

    with_queue(tmp_path / "q", again)


def test_while_the_disk_takes_nothing_memory_does(tmp_path: Path) -> None:
    async def body(queue: TrapQueue) -> None:
        await queue.put({"a": [notice(0), notice(1)]}, {})
        blocker = sqlite3.connect(tmp_path / "q")
        await queue._in_thread(lambda: queue._db and queue._db.execute("PRAGMA busy_timeout = 0"))
        blocker.execute("BEGIN IMMEDIATE")  # as good as a full disk: every write fails
        await queue.put({"a": [notice(2), notice(3)]}, {"standing": {"x": 1}})
        assert not queue.durable
        message = await queue.head("a")
        assert message is not None
        await queue.done("a", message.sequence)
        message = await queue.head("a")
        assert message is not None
        assert message.notice.subject == "1"  # not the first again, although it is still on disk
        blocker.execute("ROLLBACK")
        blocker.close()
        assert await drain(queue, "a") == [1, 2, 3]
        assert queue.durable

    with_queue(tmp_path / "q", body)


def test_memory_is_bounded_too(tmp_path: Path) -> None:
    async def body(queue: TrapQueue) -> None:
        blocker = sqlite3.connect(tmp_path / "q")
        await queue._in_thread(lambda: queue._db and queue._db.execute("PRAGMA busy_timeout = 0"))
        blocker.execute("BEGIN IMMEDIATE")
        await queue.put({"a": [notice(i) for i in range(12)]}, {})
        assert (queue.sinks["a"].waiting, queue.sinks["a"].dropped) == (10, 2)
        blocker.close()
        assert await drain(queue, "a") == list(range(2, 12))

    with_queue(tmp_path / "q", body, bound=10)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a database at all" * 300),
        lambda path: path.symlink_to("/proc/self/mem"),  # EIO
        lambda path: path.mkdir(),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(tmp_path / "q")

    async def body(queue: TrapQueue) -> None:
        await queue.put({"a": [notice(1)]}, {})
        assert await drain(queue, "a") == [1]

    with_queue(tmp_path / "q", body)
    assert len(list(tmp_path.glob("q.corrupt-*"))) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def body(queue: TrapQueue) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="nowhere/q: unable to open"):
        with_queue(tmp_path / "nowhere/q", body)


notices = st.builds(
    Notice,
    kind=st.sampled_from(["overload", "heartbeat"]),
    state=st.sampled_from(["raised", "cleared", "event"]),
    severity=st.sampled_from(Severity),
    alarm=st.text(),
    subject=st.text(),
    text=st.text(),
    t_utc_ns=st.integers(0, 2**63),
    value=st.none() | st.floats(allow_nan=False),
    threshold=st.none() | st.floats(allow_nan=False),
    unit=st.none() | st.sampled_from(["W", "VA", "A"]),
    seconds=st.none() | st.integers(1, 5),
    mode=st.none() | st.sampled_from(Mode),
    safe_state=st.none() | st.sampled_from(SafeState),
    standing=st.none() | st.lists(st.sampled_from(Severity)).map(tuple),
)


@given(notices)
@settings(max_examples=200)
def test_a_notice_comes_back_from_disk_as_it_was(item: Notice) -> None:
    assert _from_json(_to_json(item)) == item


WRITER = """
import asyncio, sys
from pathlib import Path
from rpi_daemon.records import Notice, Severity
from rpi_daemon.trap_queue import TrapQueue

async def main():
    queue = TrapQueue(Path(sys.argv[1]), ["a"], 100_000)
    await queue.open()
    for i in range(100_000):
        await queue.put({"a": [Notice("overload", "raised", Severity.INFO, "", str(i), "", 0)]}, {"standing": {"n": i}})
        print(i, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 7, 60])
def test_what_was_taken_survives_kill_9(tmp_path: Path, lines: int) -> None:
    with subprocess.Popen([sys.executable, "-P", "-c", WRITER, tmp_path / "q"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            last = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
        last = int(rest[-1]) if rest else last

    async def body() -> None:
        queue = TrapQueue(tmp_path / "q", ["a"], 100_000)
        facts = await queue.open()
        try:
            found = await drain(queue, "a")
            assert found == list(range(len(found)))
            assert len(found) >= last + 1  # the one under way may have made it too
            assert facts["standing"]["n"] == len(found) - 1
        finally:
            await queue.close()

    asyncio.run(body())
