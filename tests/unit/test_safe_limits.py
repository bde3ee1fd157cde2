"""PDUs that are away at the start: what stays ours of them."""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from audited import records
from rack_examples import make_readings

from rpi_daemon.audit import Audit, By
from rpi_daemon.clock import Clock, ManualClock, SystemClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.devices import profile_digest
from rpi_daemon.drivers.base import CapDriver, MayWrite, PduDriver
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator
from rpi_daemon.errors import DeviceError
from rpi_daemon.found import FoundCaps, FoundLimits
from rpi_daemon.guard import GuardConfig
from rpi_daemon.pdu_task import Lease
from rpi_daemon.proof import PROOF_FILE
from rpi_daemon.records import (
    ApplyResult,
    CapIdentity,
    CapOutcome,
    CapReading,
    LimitKind,
    LimitState,
    LimitWrite,
    Mode,
    PduIdentity,
    PduReading,
    WriteOutcome,
)
from rpi_daemon.safe_limits import FIRST_ATTEMPTS, UNPROVEN, SafeLimits

CONFIG = """\
[daemon]
mode = "closed_loop"
state_dir = "state"
[[pdu]]
id = "a"
profile = "apc_rpdu2"
host = "127.0.0.1"
port = 9
version = "2c"
community_file = "word"
allow_insecure = true
accept_unproven = {accept}
timeout_s = 0.05
[[outlet]]
pdu = "a"
numbers = "1-2"
load = "n{{n}}"
rating_w = 600.0
static_safe_w = 300.0
closed_loop = true
[[constraint]]
id = "breaker"
kind = "breaker"
rating_w = 2000.0
outlets = ["a/*"]
"""
CAP = """
[[cap]]
load = "n1"
host = "127.0.0.1"
user = "u"
password_file = "word"
closed_loop = true
"""


CAP_300 = CapReading(0, None, 300.0, True, (("LimitInWatts", 300.0),))


def _found_late(folder: Path, clock: Clock | None = None) -> SafeLimits:
    """In closed loop, with a server behind outlet 1; nothing was found yet."""
    (folder / "state").mkdir(exist_ok=True)
    (folder / "word").touch(mode=0o600)
    (folder / "word").write_text("word", encoding="utf-8")
    config, clock = parse_config(CONFIG.format(accept="true") + CAP, "t", base_dir=folder), clock or SystemClock()
    return SafeLimits(config, GuardConfig(), clock, Audit(folder, clock, keep_days=1.0))


def _away(folder: Path, accept: str = "false") -> SafeLimits:
    """What is known once its PDU, met in an earlier run, did not answer at the start."""
    (folder / "state").mkdir(exist_ok=True)
    (folder / "word").touch(mode=0o600)
    (folder / "word").write_text("word", encoding="utf-8")
    config = parse_config(CONFIG.format(accept=accept), "t", base_dir=folder)

    async def start() -> SafeLimits:
        limits = SafeLimits(config, GuardConfig(), SystemClock(), Audit(folder, SystemClock(), keep_days=1.0))
        limits.found = FoundLimits({"a": {}})
        async with contextlib.AsyncExitStack() as stack:
            await limits.open_pdus(stack)
            await limits.static_safe("start")
        return limits

    return asyncio.run(start())


def test_a_pdu_that_was_never_proven_meters_only_when_it_comes_back_too(tmp_path: Path) -> None:
    limits = _away(tmp_path)
    assert limits.meters_only == {"a": UNPROVEN}
    assert not limits.rack.opted_in.any()
    assert limits.differs == {}
    asyncio.run(limits.static_safe("stop"))


@pytest.mark.parametrize("accept", ["true", "false"])
def test_one_that_may_be_written_stays_ours_while_it_is_away(tmp_path: Path, accept: str) -> None:
    if accept == "false":
        (tmp_path / "word").touch(mode=0o600)
        (tmp_path / "word").write_text("word", encoding="utf-8")
        config = parse_config(CONFIG.format(accept=accept), "t", base_dir=tmp_path)
        facts = {"model": "m", "firmware": "f", "profile_sha256": profile_digest(config, config.pdu[0])}
        (tmp_path / "state").mkdir()
        text = json.dumps({"schema": 1, "devices": {"APC/1": facts}})
        (tmp_path / "state" / PROOF_FILE).write_text(text, encoding="utf-8")
    limits = _away(tmp_path, accept)
    assert limits.meters_only == {}
    assert limits.rack.opted_in.all()
    assert limits.differs == {"a": [1, 2]}


class Tripping:
    """A PDU whose limits switch off; outlet 2 tells no draw."""

    def __init__(self, found_w: float | None, enabled: bool = True) -> None:
        self.found = LimitState(found_w, enabled, LimitKind.TRIP_OFF, raw=(("1.2", 2, 5),), step_w=1.0)
        self.limits = dict.fromkeys(
            (1, 2), LimitState(500.0, True, LimitKind.TRIP_OFF, raw=(("1.2", 2, 500),), step_w=1.0)
        )
        self.put_back: list[int] = []

    async def close(self) -> None: ...

    async def read(self) -> PduReading:
        return PduReading(1, None, {1: 200.0, 2: None}, {}, {}, self.limits)

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite) -> ApplyResult:
        self.put_back += [write.outlet for write in writes]
        assert all(may_write(write) and write.restore == self.found for write in writes)
        return ApplyResult(tuple(WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, 1, 1) for w in writes), 1)


@pytest.mark.parametrize(
    ("found_w", "enabled", "measured_w", "put_back", "words"),
    [
        (230.0, True, [None, 150.0], [1, 2], []),  # 200 and 150 W, and a margin of 5 % of 600 W
        (
            229.0,
            True,
            [None, 150.0],
            [2],
            ["a/1: a trip_off limit, found at 229 W", "draw is 200 W (and 30 W of margin)"],
        ),
        (229.0, True, [None, None], [], ["a/1: ", "a/2: ", "draw is not known"]),
        (499.0, True, [300.0, None], [1], ["a/2: a trip_off limit, found at 499 W", "draw is not known"]),
        (500.0, True, [None, None], [1, 2], []),  # what stands is not lowered
        (320.0, True, [300.0, 150.0], [2], ["a/1: ", "draw is 300 W"]),  # the higher of the two words
        (None, True, [300.0, 150.0], [], ["found at not known in watts"]),
        (50.0, False, [None, None], [1, 2], []),  # it limits nothing
    ],
)
def test_a_found_limit_that_would_cut_a_load_off_is_not_put_back(
    tmp_path: Path,
    found_w: float | None,
    enabled: bool,
    measured_w: list[float | None],
    put_back: list[int],
    words: list[str],
) -> None:
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("word", encoding="utf-8")
    config, device = parse_config(CONFIG.format(accept="true"), "t", base_dir=tmp_path), Tripping(found_w, enabled)
    measured = make_readings(1, np.array(measured_w, dtype=np.float64))

    async def restore() -> SafeLimits:
        audit = Audit(tmp_path, SystemClock(), keep_days=1.0)
        limits = SafeLimits(config, GuardConfig(), SystemClock(), audit)
        audit.open()
        limits.found = FoundLimits({"a": dict.fromkeys((1, 2), device.found)})
        limits.drivers["a"] = cast(PduDriver, device)
        limits.tasks["a"] = limits._task(config.pdu[0])
        try:
            if words:
                with pytest.raises(DeviceError) as told:
                    await limits.restore(limits.rack.outlet_ids, By("operator eve"), measured)
                assert all(word in str(told.value) for word in words)
                assert told.value.exit_code == 4
            else:
                assert await limits.restore(limits.rack.outlet_ids, By("operator eve"), measured) == (2, [])
        finally:
            audit.close()
        return limits

    limits = asyncio.run(restore())
    assert device.put_back == put_back
    assert limits.released == {f"a/{number}" for number in put_back}
    assert limits.mode is (Mode.CLOSED_LOOP if words else Mode.ADVISORY)
    refused = records(tmp_path, "refused")
    assert all("could cut its load off" in record.data["why"] for record in refused)
    assert len(refused) == 2 - len(put_back)


class Server:
    """A server behind outlet 1 that keeps the cap it is given."""

    def __init__(self, cap_w: float, refuses: bool) -> None:
        self.cap_w, self.refuses = cap_w, refuses

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def identify(self) -> CapIdentity:
        return CapIdentity("v", "m", "f", "1", "power_limit", 50.0, None, "LogEventOnly")

    async def read(self) -> CapReading:
        return CapReading(1, 200.0, self.cap_w, True, (("LimitInWatts", self.cap_w),))

    async def restore(self, found: CapReading, may_write: Callable[[], bool] = lambda: True) -> CapOutcome:
        assert may_write()
        assert found.cap_w is not None
        if not self.refuses:
            self.cap_w = found.cap_w
        return CapOutcome(found.cap_w, self.cap_w, not self.refuses, None, 1, 1)


@pytest.mark.parametrize(
    ("found_cap_w", "refuses", "found_w", "cap_w", "put_back"),
    [
        (500.0, False, 229.0, 300.0, [2]),  # outlet 1 keeps its limit, that would cut 200 W off: no cap above it
        (500.0, False, 230.0, 500.0, [1, 2]),
        (250.0, True, 260.0, 300.0, [2]),  # the cap does not fall: the limit stays above it
        (250.0, False, 260.0, 250.0, [1, 2]),
    ],
)
def test_a_cap_and_its_outlets_limit_come_back_in_order_or_stay(
    tmp_path: Path, found_cap_w: float, refuses: bool, found_w: float, cap_w: float, put_back: list[int]
) -> None:
    """A higher cap not before its outlet's found limit stands, a lower limit not before the found cap does."""
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("word", encoding="utf-8")
    config = parse_config(CONFIG.format(accept="true") + CAP, "t", base_dir=tmp_path)
    device, server = Tripping(found_w), Server(300.0, refuses)
    found = CapReading(0, None, found_cap_w, True, (("LimitInWatts", found_cap_w),))

    async def restore() -> SafeLimits:
        audit = Audit(tmp_path, SystemClock(), keep_days=1.0)
        limits = SafeLimits(config, GuardConfig(), SystemClock(), audit)
        audit.open()
        limits.found, limits.found_caps = (
            FoundLimits({"a": dict.fromkeys((1, 2), device.found)}),
            FoundCaps({"n1": found}),
        )
        limits.drivers["a"] = cast(PduDriver, device)
        limits.tasks["a"] = limits._task(config.pdu[0])
        async with contextlib.AsyncExitStack() as stack:
            limits.open_cap(config.cap[0], stack)._driver = cast(CapDriver, server)
            measured = make_readings(1, np.array([200.0, 150.0]))
            if put_back == [1, 2]:
                assert await limits.restore(limits.rack.outlet_ids, By("operator eve"), measured) == (2, [])
            else:
                with pytest.raises(
                    DeviceError, match="1 of 2 found limits are back; these are not and stay ours: a/1: "
                ):
                    await limits.restore(limits.rack.outlet_ids, By("operator eve"), measured)
        audit.close()
        return limits

    limits = asyncio.run(restore())
    assert server.cap_w == cap_w
    assert device.put_back == put_back
    assert limits.released == {f"a/{number}" for number in put_back}


def test_what_is_found_late_is_in_force_once_it_is_on_disk_and_a_disk_that_hangs_keeps_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, state, cap = _found_late(tmp_path), LimitState(500.0, True, LimitKind.ALARM, raw=(("1.2", 2, 5),)), CAP_300
    syncing, works, sync = threading.Event(), threading.Event(), os.fsync

    def hangs(descriptor: int) -> None:
        syncing.set()
        assert works.wait(10.0), "the loop waits for the disk"
        sync(descriptor)

    async def ticks() -> None:
        limits.find_more("a", PduReading(1, None, {}, {}, {}, {1: state}))
        assert limits.find_cap("n1", cap)
        limits.save_waiting()
        await asyncio.to_thread(syncing.wait)
        limits.find_more("a", PduReading(2, None, {}, {}, {}, {1: replace(state, limit_w=1.0), 2: state}))
        assert not limits.find_cap("n1", replace(cap, cap_w=1.0))
        limits.save_waiting()
        assert limits._forbidden("a", LimitWrite(1, 300.0)) == "no found limit is saved"
        assert limits._cap_forbidden("n1", False) == "no found cap is saved"
        works.set()
        await limits.end_saving()

    monkeypatch.setattr("rpi_daemon.durable.os.fsync", hangs)
    asyncio.run(ticks())
    assert [limits._forbidden("a", LimitWrite(n, 300.0)) for n in (1, 2)] == [None, None]
    assert limits._cap_forbidden("n1", False) is None
    kept = _found_late(tmp_path)
    kept.read_found()
    assert kept.found == limits.found == FoundLimits({"a": {1: state, 2: state}})
    assert kept.found_caps.caps == {"n1": cap}


def test_a_disk_that_fails_is_tried_again_and_nothing_is_in_force_before(tmp_path: Path) -> None:
    clock = ManualClock()
    limits, way = _found_late(tmp_path, clock), tmp_path / "state" / "found-limits.json.tmp"
    way.mkdir()
    state = LimitState(500.0, True, LimitKind.ALARM, raw=(("1.2", 2, 5),))

    async def ticks(seconds: float) -> None:
        clock.advance(seconds)
        limits.save_waiting()
        if limits._saver is not None:
            await limits._saver

    limits.find_more("a", PduReading(1, None, {}, {}, {}, {1: state}))
    asyncio.run(ticks(0.1))
    way.rmdir()
    asyncio.run(ticks(0.9))
    assert not limits.found.knows("a", 1)
    asyncio.run(ticks(0.2))
    assert limits.found.knows("a", 1)


def test_what_was_given_back_is_known_without_the_standing_too(tmp_path: Path) -> None:
    """Both files are written at each change; either is enough to leave an outlet to its owner."""
    limits = _found_late(tmp_path)
    limits.found = FoundLimits({"a": {1: LimitState(500.0, True, LimitKind.ALARM, raw=(("1.2", 2, 5),))}})
    limits.release(frozenset({"a/2"}))
    asyncio.run(limits.keep_standing())
    for lost in (False, True):
        if lost:
            (tmp_path / "state" / "standing.json").unlink()
        after = _found_late(tmp_path)
        after.read_found()
        after.go_on_after_crash()
        assert (after.released, after.mode) == ({"a/2"}, Mode.CLOSED_LOOP)
    after.release(frozenset({"a/1", "a/2"}))
    asyncio.run(after.keep_standing())
    (tmp_path / "state" / "standing.json").write_text("rotten")
    (tmp_path / "state" / "standing.json.copy").write_text("rotten")
    again = _found_late(tmp_path)
    again.read_found()
    again.go_on_after_crash()
    assert again.mode is Mode.ADVISORY
    asyncio.run(again.close_loop())
    assert again.found.given_back == frozenset()


class Booting:
    """A PDU whose agent answers before its thresholds are there."""

    def __init__(self) -> None:
        self.limits: dict[int, LimitState] = {}
        self.serial = "1"

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def identify(self) -> PduIdentity:
        return PduIdentity("APC", "m", "f", self.serial, 2, True)

    async def read(self) -> PduReading:
        return PduReading(1, None, {1: 10.0, 2: 10.0}, {}, {}, self.limits)


@pytest.mark.parametrize("lost", [0, 5])
def test_a_pdu_that_was_never_met_is_asked_several_times(tmp_path: Path, lost: int) -> None:
    """Its first answers are lost: of each attempt that has no answer, the request and its repetition."""

    async def start() -> None:
        async with PduSimulator(load_profile("apc_rpdu2"), 2) as simulator:
            simulator.faults = replace(simulator.faults, drop=lost)
            limits = _never_met(tmp_path, simulator.port)
            async with contextlib.AsyncExitStack() as stack:
                assert await limits.open_pdus(stack)
            assert (simulator.faults.drop, limits.found.met("a"), limits.rack.opted_in.all()) == (0, True, True)

    asyncio.run(start())


def test_a_pdu_that_was_never_met_and_never_answers_is_no_start(tmp_path: Path) -> None:
    async def start() -> None:
        async with PduSimulator(load_profile("apc_rpdu2"), 2) as simulator:
            simulator.faults = replace(simulator.faults, drop=100)
            async with contextlib.AsyncExitStack() as stack:
                with pytest.raises(DeviceError, match="did not answer 2 tries"):
                    await _never_met(tmp_path, simulator.port).open_pdus(stack)
            assert 100 - 2 * FIRST_ATTEMPTS <= simulator.faults.drop < 98, (
                "more than one attempt; fewer where 3 s have passed"
            )

    asyncio.run(start())


def _never_met(folder: Path, port: int) -> SafeLimits:
    (folder / "word").touch(mode=0o600)
    (folder / "word").write_text("public", encoding="utf-8")
    config = parse_config(CONFIG.format(accept="true").replace("port = 9", f"port = {port}"), "t", base_dir=folder)
    return SafeLimits(config, GuardConfig(), SystemClock(), Audit(folder, SystemClock(), keep_days=1.0))


def test_a_pdu_that_boots_beside_us_is_no_meter_for_the_rest_of_the_run(tmp_path: Path) -> None:
    """After a power cut both start; its limits come later, and are ours then."""
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("word", encoding="utf-8")
    config, device = parse_config(CONFIG.format(accept="true"), "t", base_dir=tmp_path), Booting()
    state = LimitState(500.0, True, LimitKind.ALARM, raw=(("1.2", 2, 5),))

    async def start() -> None:
        limits = SafeLimits(config, GuardConfig(), SystemClock(), Audit(tmp_path, SystemClock(), keep_days=1.0))
        limits.found = FoundLimits({"a": {1: state, 2: state}})
        limits.drivers["a"] = cast(PduDriver, device)
        async with contextlib.AsyncExitStack() as stack:
            assert not await limits.open_pdus(stack)
            assert (limits.tasks["a"].met, limits.tasks["a"].reachable, limits.meters_only) == (False, False, {})
            device.limits = dict.fromkeys((1, 2), replace(state, limit_w=300.0))  # STATIC_SAFE already
            await limits.tasks["a"]._poll()
        assert (limits.tasks["a"].met, limits.tasks["a"].reachable) == (True, True)
        assert limits.rack.opted_in.all()

    asyncio.run(start())


def test_another_device_after_a_silence_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("word", encoding="utf-8")
    config, device = parse_config(CONFIG.format(accept="true"), "t", base_dir=tmp_path), Booting()
    state = LimitState(500.0, True, LimitKind.ALARM, raw=(("1.2", 2, 5),))
    device.limits = {1: state, 2: state}

    async def act() -> None:
        limits = SafeLimits(config, GuardConfig(), SystemClock(), Audit(tmp_path, SystemClock(), keep_days=1.0))
        limits.drivers["a"] = cast(PduDriver, device)
        async with contextlib.AsyncExitStack() as stack:
            assert await limits.open_pdus(stack)
            task = limits.tasks["a"]
            task.away("silent")
            device.serial = "2"
            with pytest.raises(DeviceError, match="serial number is 2, that of the PDU first met there is 1"):
                await task._poll()
            assert not task.reachable
            device.serial = "1"
            await task._poll()
            assert task.reachable

    asyncio.run(act())


class Slow(Tripping):
    """A PDU that takes its time over a write, and tells when it has begun."""

    def __init__(self, found_w: float) -> None:
        super().__init__(found_w)
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def read(self) -> PduReading:
        return PduReading(1, None, {1: 100.0, 2: 100.0}, {}, {}, self.limits)

    async def apply(self, writes: Sequence[LimitWrite], may_write: MayWrite) -> ApplyResult:
        self.begun.set()
        await self.go_on.wait()
        self.put_back += [write.outlet for write in writes if may_write(write)]
        return ApplyResult(tuple(WriteOutcome(w.outlet, w.limit_w, w.limit_w, True, None, 1, 1) for w in writes), 1)


def _with(folder: Path, device: Slow) -> SafeLimits:
    (folder / "word").touch(mode=0o600)
    (folder / "word").write_text("word", encoding="utf-8")
    config = parse_config(CONFIG.format(accept="true"), "t", base_dir=folder)
    limits = SafeLimits(config, GuardConfig(), SystemClock(), Audit(folder, SystemClock(), keep_days=1.0))
    limits.found = FoundLimits({"a": dict.fromkeys((1, 2), device.found)})
    limits.drivers["a"] = cast(PduDriver, device)
    limits.tasks["a"] = limits._task(config.pdu[0])
    return limits


def test_what_a_restore_that_was_cut_short_has_not_put_back_stays_ours(tmp_path: Path) -> None:
    """SIGTERM while it is under way: STATIC_SAFE is written to what is ours, and to nothing else."""

    async def restore() -> SafeLimits:
        device = Slow(500.0)
        limits = _with(tmp_path, device)
        limits.audit.open()
        restoring = asyncio.create_task(limits.restore(limits.rack.outlet_ids, By("operator eve")))
        await device.begun.wait()
        restoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restoring
        limits.audit.close()
        return limits

    limits = asyncio.run(restore())
    assert (limits.released, limits.mode) == (frozenset(), Mode.CLOSED_LOOP)
    assert limits.rack.opted_in.all()


def test_static_safe_that_waits_for_the_wire_is_not_written_over_a_limit_that_was_given_back(tmp_path: Path) -> None:
    """A PDU that is back gets STATIC_SAFE; meanwhile an operator restores what was found there."""

    async def both() -> list[int]:
        device = Slow(500.0)
        limits = _with(tmp_path, device)
        limits.audit.open()
        restoring = asyncio.create_task(limits.restore(limits.rack.outlet_ids, By("operator eve")))
        await device.begun.wait()
        safe = asyncio.create_task(limits.tasks["a"].write_now([LimitWrite(1, 300.0), LimitWrite(2, 300.0)]))
        await asyncio.sleep(0.0)
        device.go_on.set()
        await asyncio.gather(restoring, safe)
        limits.audit.close()
        return device.put_back

    assert asyncio.run(both()) == [1, 2]
    (refused,) = records(tmp_path, "refused")
    assert refused.data["why"] == "it is not ours"


def test_another_device_in_its_place_between_two_polls_is_not_written(tmp_path: Path) -> None:
    """Two cables changed places while nobody asked, of PDUs that were switched on together."""
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("public", encoding="utf-8")

    async def act() -> None:
        first = PduSimulator(load_profile("apc_rpdu2"), 2, serial="A")
        await first.start()
        text = CONFIG.format(accept="true").replace("port = 9", f"port = {first.port}").replace("0.05", "1.0")
        config = parse_config(text, "t", base_dir=tmp_path)
        audit = Audit(tmp_path, SystemClock(), keep_days=1.0)
        audit.open()
        limits = SafeLimits(config, GuardConfig(), SystemClock(), audit)
        second = PduSimulator(load_profile("apc_rpdu2"), 2, serial="B", port=first.port)
        async with contextlib.AsyncExitStack() as stack:
            assert await limits.open_pdus(stack)
            await limits.tasks["a"]._poll()
            await first.stop()
            await second.start()
            stack.push_async_callback(second.stop)
            task = limits.tasks["a"]
            with pytest.raises(DeviceError, match="has the serial number B, and had A before"):
                await task._poll()
            task._failed("as its loop does with it")
            with pytest.raises(DeviceError, match="serial number is B, that of the PDU first met there is A"):
                await task._poll()
            assert not task.reachable
            before = second.limits_w()
            with pytest.raises(DeviceError, match="serial number is B"):
                await limits.static_safe("stop")
            with pytest.raises(DeviceError, match="serial number is B"):
                await limits.restore(limits.rack.outlet_ids, By("operator eve"))
            assert second.limits_w() == before, "written to another device"
        audit.close()

    asyncio.run(act())


@pytest.mark.parametrize(
    ("to_w", "kind", "drawn_w", "goes"),
    [
        (330.0, LimitKind.TRIP_OFF, 300.0, True),  # as it was decided: the draw and 5 % of 600 W
        (330.0, LimitKind.TRIP_OFF, 310.0, True),
        (330.0, LimitKind.TRIP_OFF, 320.0, False),
        (330.0, LimitKind.CURRENT_LIMIT, 500.0, False),
        (330.0, LimitKind.ALARM, 500.0, True),  # it cuts nothing off
        (510.0, LimitKind.TRIP_OFF, 505.0, True),  # a raise
        (330.0, LimitKind.TRIP_OFF, None, True),  # nobody knows: it was decided when somebody did
    ],
)
def test_a_limit_that_cuts_off_is_not_lowered_below_a_draw_that_has_grown_since(
    tmp_path: Path, to_w: float, kind: LimitKind, drawn_w: float | None, goes: bool
) -> None:
    """The batch before it took a slow device seconds."""
    limits = _with(tmp_path, Slow(500.0))
    limits.tasks["a"].limits = {1: LimitState(500.0, True, kind, raw=(("1.2", 2, 5),))}
    limits.lease = Lease(10.0, SystemClock().mono_ns())
    limits.measured = make_readings(1, np.array([drawn_w, 0.0], dtype=np.float64))
    refused = limits._forbidden("a", LimitWrite(1, to_w))
    assert refused == (None if goes else "its draw has grown since: it would be cut off")
    assert limits._forbidden("a", LimitWrite(1, to_w, limits.found.pdus["a"][1])) is None, "its owner's own limit"
