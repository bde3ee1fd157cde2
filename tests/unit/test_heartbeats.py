"""Who is silent by its own fault, who because of the machine, and what systemd hears of it."""

import asyncio
import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, Sampler
from rpi_daemon.clock import NS_PER_S, ManualClock, SystemClock
from rpi_daemon.heartbeats import (
    LOOK_S,
    MACHINE_S,
    Heartbeats,
    Pinger,
    ThreadTimes,
    Verdict,
    machine_ns,
    progress,
    thread_times,
    watchdog_s,
)
from rpi_daemon.history.writer import Writer

LONGEST_S = 2.0
LOOK_NS = round(LOOK_S * NS_PER_S)
PATIENCE_S = 20.0


class Machine:
    """A thread on virtual time: what it does between two looks, and what the kernel says of it."""

    def __init__(self) -> None:
        self.now_ns = 1000 * NS_PER_S
        self.beat_ns = self.now_ns
        self.times = ThreadTimes("S", 0, 0)
        self.heartbeats = Heartbeats(lambda _: self.times)
        self.heartbeats.watch("loop", LONGEST_S, lambda: self.beat_ns)
        self.look(0.0)

    def look(self, seconds: float = LOOK_S) -> Verdict:
        self.now_ns += round(seconds * NS_PER_S)
        return self.heartbeats.look(self.now_ns, LOOK_NS)

    def spend(self, state: str, ran_s: float = 0.0, waited_s: float = 0.0, seconds: float = LOOK_S) -> Verdict:
        """One interval without a beat."""
        self.times = ThreadTimes(
            state, self.times.ran_ns + round(ran_s * NS_PER_S), self.times.waited_ns + round(waited_s * NS_PER_S)
        )
        return self.look(seconds)


def _looks_until(hangs: Callable[[], Verdict], most: int) -> int | None:
    """The number of the first look that finds a hang."""
    return next((k for k in range(1, most + 1) if hangs().hangs), None)


@pytest.mark.parametrize(
    ("what", "state", "ran_s", "waited_s", "hangs_after_s"),
    [
        ("blocked", "S", 0.0, 0.0, LONGEST_S),
        ("spinning", "R", LOOK_S, 0.0, LONGEST_S),
        ("spinning on half a processor", "R", LOOK_S / 2, LOOK_S / 2, 2 * LONGEST_S),
        ("without a processor, the wait booked", "R", 0.0, LOOK_S, LONGEST_S + MACHINE_S),
        ("without a processor, nothing booked yet", "R", 0.0, 0.0, LONGEST_S + MACHINE_S),
        ("in uninterruptible sleep", "D", 0.0, 0.0, LONGEST_S + MACHINE_S),
    ],
)
def test_a_hang_is_told_from_starvation(
    what: str, state: str, ran_s: float, waited_s: float, hangs_after_s: float
) -> None:
    machine = Machine()
    looks = _looks_until(lambda: machine.spend(state, ran_s, waited_s), 200)
    assert looks is not None, what
    assert hangs_after_s < looks * LOOK_S <= hangs_after_s + LOOK_S, what


def test_starvation_is_named_and_a_beat_ends_it() -> None:
    machine = Machine()
    verdict = Verdict()
    for _ in range(8):
        verdict = machine.spend("R", 0.0, LOOK_S)
    assert verdict == Verdict({}, {"loop": 4.0})
    machine.beat_ns = machine.now_ns
    assert machine.spend("S", 0.01) == Verdict()


def test_a_wait_that_is_booked_when_it_ends_excuses_little_twice() -> None:
    """The kernel adds it in one sum; the looks before have taken it for what it is already."""
    machine = Machine()
    for _ in range(12):
        machine.spend("R")
    machine.spend("S", 0.001, 12 * LOOK_S)
    looks = _looks_until(lambda: machine.spend("S"), 20)
    assert looks is not None
    assert looks * LOOK_S <= LONGEST_S + LOOK_S


def test_a_look_that_comes_late_blames_nobody() -> None:
    """The process was stopped, or the whole machine: all beats are old at once, and nobody could have been heard."""
    machine = Machine()
    assert machine.look(100.0) == Verdict()


def test_a_process_that_was_stopped_and_hangs_afterwards_is_found() -> None:
    machine = Machine()
    assert not machine.look(10.0).hangs
    looks = _looks_until(lambda: machine.spend("S"), 20)
    assert looks is not None
    assert looks * LOOK_S <= LONGEST_S + LOOK_S


def test_idle_is_no_silence_and_what_is_dismissed_is_not_heard() -> None:
    heartbeats, busy_ns = Heartbeats(lambda _: None), [0]
    heartbeats.watch("writer", LONGEST_S, lambda: busy_ns[0] or None)
    now_ns = 0
    for _ in range(100):
        now_ns += LOOK_NS
        assert heartbeats.look(now_ns, LOOK_NS) == Verdict()
    busy_ns[0] = now_ns
    for _ in range(5):
        now_ns += LOOK_NS
        verdict = heartbeats.look(now_ns, LOOK_NS)
    assert verdict.hangs == {"writer": 2.5}
    heartbeats.dismiss("writer")
    heartbeats.dismiss("nobody")
    assert heartbeats.look(now_ns + LOOK_NS, LOOK_NS) == Verdict()


def test_a_disk_may_take_for_ever_where_that_is_said() -> None:
    times = ThreadTimes("D", 0, 0)
    heartbeats = Heartbeats(lambda _: times)
    heartbeats.watch("writer", LONGEST_S, lambda: 1, machine_s=math.inf)
    for k in range(2000):
        assert not heartbeats.look(k * LOOK_NS, LOOK_NS).hangs


def test_without_the_kernels_figures_every_silence_is_the_loops_own() -> None:
    assert machine_ns(None, ThreadTimes("R", 0, 0), LOOK_NS) == 0
    assert machine_ns(ThreadTimes("R", 0, 0), None, LOOK_NS) == 0
    assert thread_times(2**22 + 1) is None


def test_the_kernels_figures_of_this_thread() -> None:
    before = thread_times(threading.get_native_id())
    assert before is not None
    end_ns = before.ran_ns + 20_000_000
    while (now := thread_times(threading.get_native_id())) is not None and now.ran_ns < end_ns:
        pass
    assert now is not None
    assert now.state == "R"
    assert now.waited_ns >= before.waited_ns


def test_progress_is_the_time_of_the_last_turn_that_was_seen() -> None:
    clock, turns = ManualClock(5), [0]
    last = progress(lambda: turns[0], clock)
    assert last() == 5
    clock.advance(1.0)
    assert last() == 5
    turns[0] = 1
    assert last() == 5 + NS_PER_S


intervals = st.lists(
    st.tuples(st.sampled_from("RSD"), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.1, 3.0)), min_size=60
)


@settings(max_examples=60)
@given(intervals)
def test_whatever_the_machine_does_a_dead_loop_is_given_up_in_the_end(
    story: list[tuple[str, float, float, float]],
) -> None:
    """Looks that come at most every two periods see it after its own and the machine's share at the latest."""
    machine, watched_s = Machine(), 0.0
    for state, ran, waited, periods in story:
        seconds = periods * LOOK_S
        verdict = machine.spend(state, ran * seconds, waited * (1.0 - ran) * seconds, seconds)
        watched_s += min(seconds, 2.0 * LOOK_S)
        if watched_s > LONGEST_S + MACHINE_S + 1e-6:
            assert verdict.hangs
        if watched_s <= LONGEST_S:
            assert not verdict.hangs


@settings(max_examples=60)
@given(intervals)
def test_whatever_the_machine_does_a_loop_that_beats_does_not_hang(
    story: list[tuple[str, float, float, float]],
) -> None:
    machine = Machine()
    for state, ran, waited, periods in story:
        seconds = periods * LOOK_S
        machine.beat_ns = machine.now_ns + 1
        assert machine.spend(state, ran * seconds, waited * (1.0 - ran) * seconds, seconds) == Verdict()


# -- what systemd hears


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
    ],
)
def test_how_long_systemd_waits(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seconds: float) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert watchdog_s() == seconds


def test_one_order_to_act_and_pings_again_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    said: list[str] = []
    clock = ManualClock(NS_PER_S)
    heartbeats = Heartbeats(lambda _: None)
    pinger = Pinger(heartbeats, clock, said.append)
    beat_ns = clock.mono_ns()
    heartbeats.watch("loop", LONGEST_S, lambda: beat_ns)

    def look(times: int) -> list[str]:
        said.clear()
        for _ in range(times):
            clock.advance(LOOK_S)
            pinger.look()
        return said

    with capture_logs() as lines:
        assert look(4) == ["WATCHDOG=1"] * 4
        assert look(5) == ["WATCHDOG=1", "WATCHDOG=trigger"]
        beat_ns = clock.mono_ns()
        assert look(2) == ["WATCHDOG=1"] * 2
        said.clear()
        pinger.be_patient(60.0)
        pinger.be_strict()
        assert said == ["WATCHDOG_USEC=60000000", "WATCHDOG_USEC=3000000"]
    assert [line["event"] for line in lines] == ["watchdog.withheld", "watchdog.again"]
    assert lines[0]["heartbeat"] == "loop"
    assert lines[0]["silent_s"] == 2.5
    assert any("test_one_order_to_act" in place for place in lines[0]["at"])


def test_where_no_watchdog_is_wanted_nobody_is_told_to_act(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    said: list[str] = []
    heartbeats, clock = Heartbeats(lambda _: None), ManualClock(NS_PER_S)
    pinger = Pinger(heartbeats, clock, said.append)
    pinger.be_patient(60.0)
    pinger.be_strict()
    assert said == []
    heartbeats.watch("loop", LONGEST_S, lambda: 1)
    for _ in range(20):
        clock.advance(LOOK_S)
        pinger.look()
    assert heartbeats.verdict.hangs
    assert set(said) == {"WATCHDOG=1"}


# -- real threads


@contextmanager
def _watched(heartbeats: Heartbeats, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, str]]]:
    """A pinger that looks every 50 ms, and what it said, when."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    said: list[tuple[float, str]] = []
    pinger = Pinger(heartbeats, SystemClock(), lambda word: said.append((time.monotonic(), word)))
    pinger.start()
    try:
        yield said
    finally:
        pinger.stop()


def _until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def _words(said: list[tuple[float, str]], after: float) -> set[str]:
    return {word for at, word in said if at > after}


@pytest.mark.parametrize("paced", [True, False])
def test_a_sampler_beats_while_nothing_comes_and_is_missed_while_it_hangs(
    monkeypatch: pytest.MonkeyPatch, paced: bool
) -> None:
    """It hangs for real: an eventfd that blocks and is full keeps the thread where it wakes its reader."""
    ring = Ring(memory.anonymous(Ring.bytes_needed(1, 5000)), n_channels=1, capacity=5000)
    feed = Ring(memory.anonymous(Ring.bytes_needed(1, 5000)), n_channels=1, capacity=5000)
    for index in range(5000):
        feed.push(index, index + 1, index, 0, np.zeros(1, np.int32))
    bell, (reader, writer) = os.eventfd(0, os.EFD_CLOEXEC), os.pipe()
    sampler = Sampler(ring, event_fd=bell, notify_every=100)
    heartbeats = Heartbeats()
    try:
        sampler.start_paced(feed, 1_000_000) if paced else sampler.start_streamed(reader)
        assert sampler.thread_id() in {int(name) for name in os.listdir("/proc/self/task")}
        heartbeats.watch("sampler", 0.6, progress(sampler.turns, SystemClock()), thread_id=sampler.thread_id())
        with _watched(heartbeats, monkeypatch) as said, capture_logs() as lines:
            began = time.monotonic()
            time.sleep(0.9)
            assert _words(said, began) == {"WATCHDOG=1"}
            os.eventfd_write(bell, 2**64 - 2 - os.eventfd_read(bell) if paced else 2**64 - 2)
            if not paced:
                os.close(writer)  # a hang-up rings, too
                writer = -1
            _until(lambda: bool(heartbeats.verdict.hangs), "the sampler hangs and nobody says so")
            os.eventfd_read(bell)
            _until(lambda: not heartbeats.verdict.hangs, "it goes on and nobody says so")
        assert [line["heartbeat"] for line in lines if line["event"] == "watchdog.withheld"] == ["sampler"]
        assert [word for _, word in said].count("WATCHDOG=trigger") == 1
    finally:
        os.set_blocking(bell, False)
        sampler.stop()
        for fd in (bell, reader, *([writer] if writer >= 0 else [])):
            os.close(fd)


def test_a_writer_beats_while_it_has_nothing_to_do_and_is_missed_while_a_job_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, go_on, heartbeats = Writer(), threading.Event(), Heartbeats()
    writer.start()
    heartbeats.watch("history", 0.5, lambda: writer.busy_ns, thread_id=writer.thread_id())
    with capture_logs() as lines, _watched(heartbeats, monkeypatch) as said:
        time.sleep(0.7)
        assert {word for _, word in said} == {"WATCHDOG=1"}
        writer.put(lambda: bool(go_on.wait()))
        _until(lambda: "history" in heartbeats.verdict.hangs, "it is not missed")
        go_on.set()
        _until(lambda: not heartbeats.verdict.hangs, "it is missed for ever")
    assert writer.close()
    (line,) = [line for line in lines if line["event"] == "watchdog.withheld"]
    assert any("go_on.wait" in place or "wait" in place for place in line["at"])


def test_a_task_that_hangs_is_shown_where_it_awaits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        await never()

    async def look() -> None:
        task = asyncio.create_task(run())
        heartbeats = Heartbeats()
        heartbeats.watch("pdu a", 0.3, lambda: 1, task=task)
        with _watched(heartbeats, monkeypatch):
            deadline = time.monotonic() + PATIENCE_S
            while not heartbeats.verdict.hangs and time.monotonic() < deadline:  # noqa: ASYNC110  it is another thread's
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with capture_logs() as lines:
        asyncio.run(look())
    (line,) = [line for line in lines if line["event"] == "watchdog.withheld"]
    assert [place.rpartition(" ")[2] for place in line["at"]] == ["run", "never", "wait"]


@pytest.mark.parametrize("spins", [True, False])
def test_a_loop_that_spins_or_blocks_is_missed(monkeypatch: pytest.MonkeyPatch, spins: bool) -> None:
    beat_ns, heartbeats = time.monotonic_ns(), Heartbeats()
    heartbeats.watch("loop", 0.3, lambda: beat_ns)
    with capture_logs() as lines, _watched(heartbeats, monkeypatch) as said:
        deadline = time.monotonic() + PATIENCE_S
        while not heartbeats.verdict.hangs and time.monotonic() < deadline:
            if not spins:
                time.sleep(0.5)
        assert "WATCHDOG=trigger" in {word for _, word in said}
    (line,) = [line for line in lines if line["event"] == "watchdog.withheld"]
    assert any("test_a_loop_that_spins_or_blocks" in place for place in line["at"])


def test_who_holds_the_interpreter_in_c_stops_the_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeats, hold = Heartbeats(), ctypes.PyDLL(None).usleep
    with _watched(heartbeats, monkeypatch) as said:
        _until(lambda: len(said) > 2, "no pings")
        began = time.monotonic()
        hold(900_000)
        ended = time.monotonic()
        _until(lambda: bool(_words(said, ended)), "no pings any more")
    gaps = np.diff([at for at, _ in said])
    assert gaps.max() >= 0.8 * (ended - began)
