"""PDUs that are away at the start: what stays ours of them."""

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from rpi_daemon.audit import Audit
from rpi_daemon.clock import SystemClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.devices import profile_digest
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.errors import DeviceError
from rpi_daemon.found import FoundLimits
from rpi_daemon.guard import GuardConfig
from rpi_daemon.proof import PROOF_FILE
from rpi_daemon.records import LimitKind, LimitState, PduIdentity, PduReading
from rpi_daemon.safe_limits import UNPROVEN, SafeLimits

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
