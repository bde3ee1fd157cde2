"""The audit: on disk before the write; on a disk that fails raises wait and what is protective goes; nothing is lost unsaid."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import fill, mounted
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rpi_daemon import audit as audit_module
from rpi_daemon.audit import (
    DURABLE_S,
    FOLDER,
    HEAD_FILE,
    LATE_S,
    NOT_DURABLE,
    WAITING,
    Audit,
    By,
    Intent,
    cap_intent,
    limit_intent,
    read_audit,
    verify_audit,
)
from rpi_daemon.clock import ManualClock, SystemClock
from rpi_daemon.history.chain import SHORTENED, ChainLog, Event, Head
from rpi_daemon.history.events import EventLog
from rpi_daemon.records import (
    CapDesired,
    CapReading,
    Decision,
    LimitKind,
    LimitState,
    LimitWrite,
    WriteOutcome,
)

END = 1 << 62
NOBODY = 65534
RAISE = Intent("pdu-a/1", "alarm", 500.0, 600.0, "raise", "granted", False, 580.0, 12.0, 568.0, 0.99, 640.0)
SAFE = Intent("pdu-a/2", "alarm", 500.0, 550.0, "static_safe", "static safe", True)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a record may take is no property of a test's machine."""
    monkeypatch.setattr(audit_module, "DURABLE_S", 20.0)


def run(state: Path, play: Callable[[Audit], Awaitable[None]], **options: Any) -> Audit:
    """An audit for the length of `play`."""

    async def act() -> Audit:
        audit = Audit(state, options.pop("clock", SystemClock()), keep_days=400.0, **options)
        audit.open()
        try:
            await play(audit)
        finally:
            audit.close()
        return audit

    return asyncio.run(act())


async def nothing(_: Audit) -> None:
    return


def records(state: Path, *names: str) -> list[Event]:
    told: list[str] = []
    found = list(read_audit(state / FOLDER, 0, END, names, told))
    assert told == []
    return found


def broken(state: Path, *heads: Head) -> tuple[str, ...]:
    return verify_audit(state, state / "history", heads).broken


def test_a_write_is_on_disk_before_it_is_asked_of_the_device_and_its_outcome_after(tmp_path: Path) -> None:
    async def play(audit: Audit) -> None:
        asked = await audit.asked("pdu-a", [RAISE, SAFE])
        assert asked.durable
        (stored,) = records(tmp_path, "asked")
        assert stored.data["who"] == "daemon"
        assert stored.data["n"] == asked.number
        assert stored.data["writes"][0] == {
            "what": "pdu-a/1", "kind": "alarm", "before_w": 500.0, "to_w": 600.0, "reason": "raise", "rule": "granted",
            "protective": False, "request_w": 580.0, "margin_w": 12.0, "forecast_w": 568.0, "quantile": 0.99,
            "grant_w": 640.0,
        }  # fmt: skip
        sent_ns, verified_ns = asked.t_mono_ns + 2_000_000, asked.t_mono_ns + 5_500_000
        audit.ended(asked, "pdu-a", [WriteOutcome(1, 600.0, 599.0, True, None, sent_ns, verified_ns)])
        other = await audit.asked("pdu-a", [RAISE], By("operator eve", "fan broken"))
        audit.failed(other, "pdu-a", "did not answer")
        audit.refused("pdu-a", [RAISE], "the kill switch is engaged")

    audit = run(tmp_path, play)
    names = [event.name for event in records(tmp_path)]
    assert names == ["begin", "asked", "ended", "asked", "ended", "refused", "end"]
    _, _, first, second, failed, refused, _ = records(tmp_path)
    assert first.data["outcomes"] == [
        {"outlet": 1, "asked_w": 600.0, "read_back_w": 599.0, "verified": True, "refused": None,
         "sent_after_ms": 2.0, "verified_after_ms": 5.5}
    ]  # fmt: skip
    assert (second.data["who"], second.data["words"]) == ("operator eve", "fan broken")
    assert failed.data == {"who": "operator eve", "n": second.data["n"], "device": "pdu-a", "error": "did not answer"}
    assert (refused.data["why"], refused.data["writes"][0]["to_w"]) == ("the kill switch is engaged", 600.0)
    assert broken(tmp_path) == ()
    assert Head.parse((tmp_path / HEAD_FILE).read_text()) == audit.head
    assert audit.status() == {
        "written": 7,
        "waiting": 0,
        "dropped": 0,
        "held": 0,
        "failing": None,
        "head": str(audit.head),
    }


def test_daemon_failsafe_and_commands_make_one_chain_one_after_the_other(tmp_path: Path) -> None:
    async def play(audit: Audit) -> None:
        await audit.asked("pdu-a", [SAFE])

    for who in ("daemon", "failsafe", "operator root"):
        run(tmp_path, play, who=who)
    assert [event.data["who"] for event in records(tmp_path, "begin")] == ["daemon", "failsafe", "operator root"]
    assert [event.seq for event in records(tmp_path)] == list(range(1, 10))
    assert broken(tmp_path) == ()


def test_what_root_records_the_daemon_can_write_on(tmp_path: Path) -> None:
    """`limit restore --offline` by root, before the daemon's first start with this folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    run(state, nothing, who="operator root")
    made = [state / FOLDER, state / HEAD_FILE, *(state / FOLDER).iterdir()]
    assert len(made) >= 3
    assert {path.stat().st_uid for path in made} == {NOBODY}


def stands_in_the_way(state: Path) -> Path:
    """A file where the folder should be: a disk that takes nothing, whoever asks."""
    path = state / FOLDER
    path.write_text("in the way")
    return path


async def until(true: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 5.0
    while not true():
        assert loop.time() < end, "it did not come about"
        await asyncio.sleep(0.005)


def test_on_a_disk_that_fails_nothing_waits_and_all_is_kept_until_it_works(tmp_path: Path) -> None:
    clock = ManualClock(10**12)
    way = stands_in_the_way(tmp_path)

    async def play(audit: Audit) -> None:
        await until(lambda: audit.failing is not None)
        assert audit.look()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert [(await audit.asked("pdu-a", [SAFE])).durable for _ in range(20)] == [False] * 20
        assert loop.time() - began < 5.0, "a disk that fails is not waited for"
        for _ in range(3):
            assert not (await audit.asked("pdu-a", [RAISE, RAISE])).durable
            audit.refused("pdu-a", [RAISE, RAISE], NOT_DURABLE)
        way.unlink()
        clock.advance(1.1)
        audit.look()
        await until(lambda: audit.failing is None)
        assert not audit.look()
        assert (await audit.asked("pdu-a", [RAISE])).durable

    with capture_logs() as said:
        run(tmp_path, play, clock=clock)
    assert [event.name for event in records(tmp_path)] == ["begin", *["asked"] * 20, "held", "asked", "end"]
    assert [event.data["writes"] for event in records(tmp_path, "held")] == [6]
    assert broken(tmp_path) == ()
    assert [line["event"] for line in said if line["event"] != "audit.head"] == ["audit.failing", "audit.works_again"]


def test_a_disk_that_hangs_delays_a_write_by_the_bound_then_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit_module, "DURABLE_S", DURABLE_S)
    clock, hangs = ManualClock(10**12), threading.Event()
    append = audit_module.ChainLog.append

    def slow(self: Any, events: Any) -> None:
        if events[0].name == "asked":
            hangs.wait(30.0)
        append(self, events)

    monkeypatch.setattr(audit_module.ChainLog, "append", slow)

    async def play(audit: Audit) -> None:
        await until(lambda: audit.written == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert not (await audit.asked("pdu-a", [RAISE])).durable
        assert DURABLE_S * 0.9 < loop.time() - began < 5.0
        assert not audit.look(), "late, but no reason yet to hold the rack"
        clock.advance(LATE_S + 0.1)
        assert audit.look()
        began = loop.time()
        assert not (await audit.asked("pdu-a", [SAFE])).durable
        assert loop.time() - began < DURABLE_S
        hangs.set()
        await until(lambda: audit.written == 3)
        assert not audit.look()

    run(tmp_path, play, clock=clock)
    assert [event.name for event in records(tmp_path)] == ["begin", "asked", "asked", "end"]


def test_what_somebody_asked_for_waits_for_a_disk_that_is_slow(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(audit_module, "DURABLE_S", 0.01)
    monkeypatch.setattr(audit_module, "ON_WORD_S", 20.0)
    clock, slow, goes_on = ManualClock(10**12), threading.Event(), threading.Event()
    append = audit_module.ChainLog.append

    def late(self: Any, events: Any) -> None:
        if slow.is_set():
            goes_on.wait(30.0)
        append(self, events)

    monkeypatch.setattr(audit_module.ChainLog, "append", late)

    async def play(audit: Audit) -> None:
        await until(lambda: audit.written == 1)
        slow.set()
        assert not (await audit.asked("pdu-a", [RAISE])).durable
        clock.advance(LATE_S + 0.1)
        assert audit.look()
        asked = asyncio.create_task(audit.asked("pdu-a", [RAISE], on_word=True))
        await asyncio.sleep(0)
        assert not asked.done()
        goes_on.set()
        assert (await asked).durable

    run(tmp_path, play, clock=clock)
    assert [event.name for event in records(tmp_path)] == ["begin", "asked", "asked", "end"]


def test_memory_is_bounded_and_what_was_dropped_is_counted_in_the_chain(tmp_path: Path) -> None:
    clock = ManualClock(10**12)
    way = stands_in_the_way(tmp_path)

    async def play(audit: Audit) -> None:
        await until(lambda: audit.failing is not None)
        for _ in range(WAITING + 6):
            await audit.asked("pdu-a", [SAFE])
        assert (audit.dropped, audit.status()["waiting"]) == (7, WAITING)
        way.unlink()
        clock.advance(2.0)
        audit.look()
        await until(lambda: audit.failing is None)

    run(tmp_path, play, clock=clock)
    (told,) = records(tmp_path, "dropped")
    assert told.data == {"who": "daemon", "records": 7}
    assert len(records(tmp_path, "asked")) == WAITING - 1
    assert broken(tmp_path) == ()


def test_a_disk_that_never_works_ends_the_process_all_the_same_and_says_so(tmp_path: Path) -> None:
    stands_in_the_way(tmp_path)

    async def play(audit: Audit) -> None:
        await audit.asked("pdu-a", [SAFE])

    with capture_logs() as said:
        run(tmp_path, play)
    (line,) = [line for line in said if line["event"] == "audit.not_finished"]
    assert line["waiting"] == 3


def test_a_cut_off_end_is_found_by_the_file_beside_it_and_stays_found_after_the_next_start(tmp_path: Path) -> None:
    for _ in range(3):
        run(tmp_path, nothing)
    (path,) = (tmp_path / FOLDER).glob("*.sqlite")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM event WHERE seq > 4")
    connection.close()
    assert broken(tmp_path) == ("the end is missing: number 6 had been written, the last one here is 4",)
    with capture_logs() as said:
        run(tmp_path, nothing)
    assert "audit.broken" in [line["event"] for line in said]
    assert [event.seq for event in read_audit(tmp_path / FOLDER, 0, END, ["broken"])] != []
    assert f"{path.name}: 2 records are missing before number 7" in broken(tmp_path)


def test_the_whole_folder_taken_away_is_found_and_the_head_too_only_from_outside(tmp_path: Path) -> None:
    head = run(tmp_path, nothing).head
    shutil.rmtree(tmp_path / FOLDER)
    assert broken(tmp_path) == ("the end is missing: number 2 had been written, the last one here is 0",)
    (tmp_path / HEAD_FILE).unlink()
    assert broken(tmp_path) == (), "nothing here tells any more that there was a chain"
    assert broken(tmp_path, head) == ("the end is missing: number 2 had been written, the last one here is 0",)


def test_heads_in_the_events_are_compared_too(tmp_path: Path) -> None:
    head = run(tmp_path, nothing).head
    events = EventLog(tmp_path / "history", keep_days=400.0)
    events.append([Event(1_799_020_790 * 10**9, 0, "audit.head", {"head": str(head)})])
    events.close()
    assert broken(tmp_path) == ()
    shutil.rmtree(tmp_path / FOLDER)
    (tmp_path / HEAD_FILE).unlink()
    assert broken(tmp_path) == ("the end is missing: number 2 had been written, the last one here is 0",)


def test_a_head_that_is_gone_or_damaged_is_said(tmp_path: Path) -> None:
    run(tmp_path, nothing)
    (tmp_path / HEAD_FILE).unlink()
    assert broken(tmp_path)[0].startswith("audit-head: it is missing")
    (tmp_path / HEAD_FILE).write_text("12:abc")
    assert "is not NUMBER:HASH" in broken(tmp_path)[0]
    with capture_logs() as said:
        run(tmp_path, nothing)
    assert said[0]["event"] == "audit.head_unread"
    assert broken(tmp_path) == ()


@pytest.mark.parametrize("damage", ["other bytes", "the disk cannot read it"])
def test_a_damaged_file_is_set_aside_and_the_numbers_go_on(tmp_path: Path, damage: str) -> None:
    run(tmp_path, nothing)
    (path,) = (tmp_path / FOLDER).glob("*.sqlite")
    if damage == "other bytes":
        octets = bytearray(path.read_bytes())
        octets[4096:] = b"\xa5" * (len(octets) - 4096)
        path.write_bytes(octets)
    else:
        path.unlink()
        path.symlink_to("/proc/self/mem")  # reading its beginning is EIO
    audit = run(tmp_path, nothing)
    assert audit.set_aside == 1
    assert [event.seq for event in records(tmp_path)] == [3, 4]
    told = broken(tmp_path)
    assert any("set aside as damaged" in sentence for sentence in told)
    assert any("it begins with number 3" in sentence for sentence in told)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "-o", "size=2m") as disk:
        yield disk


def test_a_full_disk_holds_raises_until_there_is_room(small_disk: Path) -> None:
    clock, ballast = ManualClock(10**12), small_disk / "ballast"

    async def play(audit: Audit) -> None:
        assert (await audit.asked("pdu-a", [RAISE])).durable
        fill(ballast)
        while "full" not in str(audit.failing):  # the last page of the log has room for a few
            await audit.asked("pdu-a", [SAFE])
            idle = threading.Event()
            audit.writer.put(idle.set)
            await asyncio.to_thread(idle.wait)
        assert audit.look()
        ballast.unlink()
        clock.advance(2.0)
        audit.look()
        await until(lambda: audit.failing is None)
        assert (await audit.asked("pdu-a", [RAISE])).durable

    run(small_disk, play, clock=clock)
    assert len(records(small_disk, "asked")) >= 3
    assert broken(small_disk) == ()


def test_a_read_only_disk_holds_raises_until_it_may_be_written(small_disk: Path) -> None:
    clock = ManualClock(10**12)
    remount = ["mount", str(small_disk), "-o"]
    run(small_disk, nothing)
    subprocess.run([*remount, "remount,ro"], check=True)

    async def play(audit: Audit) -> None:
        await until(lambda: audit.failing is not None)
        assert not (await audit.asked("pdu-a", [RAISE])).durable
        await asyncio.to_thread(subprocess.run, [*remount, "remount,rw"], check=True)
        clock.advance(2.0)
        audit.look()
        await until(lambda: audit.failing is None)
        assert (await audit.asked("pdu-a", [RAISE])).durable

    run(small_disk, play, clock=clock)
    assert [event.name for event in records(small_disk)] == ["begin", "end", "begin", "asked", "end"]
    assert broken(small_disk) == ()


# -- what a record says


def test_intents_say_why() -> None:
    state = LimitState(500.0, True, LimitKind.ALARM)
    why = Decision(0, 3, 480.0, 600.0, "raise", "granted", 580.0, 12.0, float("nan"), False, 640.0)
    assert limit_intent("pdu-a", LimitWrite(1, 600.0, why=why), state) == Intent(
        "pdu-a/1", "alarm", 500.0, 600.0, "raise", "granted", False, 580.0, 12.0, None, None, 640.0
    )
    assert limit_intent("pdu-a", LimitWrite(1, 550.0), state).protective
    found = LimitState(None, False, LimitKind.ALARM, (("1.3", 2, 0),))
    restored = limit_intent("pdu-a", LimitWrite(1, float("nan"), found), None)
    assert (restored.reason, restored.to_w, restored.before_w, restored.protective) == ("restore", None, None, False)
    stands = CapReading(0, None, 400.0, True)
    lower = CapDesired("server", 0, 300.0, 400.0, "lower", "breaker-a", 350.0, 300.0)
    assert cap_intent("server", 300.0, stands, lower).protective
    assert not cap_intent("server", 450.0, None, lower).protective
    assert not cap_intent("server", None, stands, lower).protective
    assert cap_intent("server", 450.0, stands, None).protective
    assert not cap_intent("server", None, stands, None, "restore").protective


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(numbers, numbers, st.text(max_size=40))
def test_any_number_and_any_words_are_json_that_means_what_it_says(
    before: float | None, to: float | None, words: str
) -> None:
    intent = limit_intent(
        "p", LimitWrite(1, float("nan") if to is None else to), LimitState(before, True, LimitKind.ALARM)
    )
    for value in (intent.before_w, intent.to_w):
        assert value is None or abs(value) < float("inf")
    assert By(words).who == words


def test_a_begin_that_was_taken_away_with_a_record_that_excuses_it_is_told_by_a_head_from_before(
    tmp_path: Path,
) -> None:
    week_ns = 7 * 86_400 * 10**9
    log = ChainLog(tmp_path / FOLDER, kind="audit", keep_days=36_500.0)
    heads = []
    for week in range(3):
        log.append([Event(1_799_020_790 * 10**9 + week * week_ns, 0, "asked", {})] * 2)
        heads.append(log.head)
    log.append([Event(1_799_020_790 * 10**9 + 2 * week_ns, 0, SHORTENED, {"begins": 5, "deleted": ["as too old"]})])
    log.close()
    (tmp_path / HEAD_FILE).write_text(f"{log.head}\n", encoding="ascii")
    for path in sorted((tmp_path / FOLDER).glob("*.sqlite"))[:2]:
        path.unlink()
    assert verify_audit(tmp_path, tmp_path / "history", heads[1:]).broken == (), "4 ended where it begins now"
    (told,) = verify_audit(tmp_path, tmp_path / "history", heads).broken
    assert told == "number 2, whose hash was kept elsewhere, cannot be compared: the chain begins with number 5"
