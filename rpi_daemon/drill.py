"""Drills: break something on purpose, on the box itself, and report whether the daemon did what it promises."""

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Config
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.demo import demo_config, demo_folder, simulated_rack, supervised_daemon
from rpi_daemon.devices import load_checked, pdu_driver, used_pdus
from rpi_daemon.errors import DeviceError, NotRunningError, RpiError
from rpi_daemon.guard import away_from_static_safe
from rpi_daemon.records import LimitKind, Mode, RackModel

LOOK_S = 0.05  # between two looks at the daemon
LOSS_S = 3.0  # that a device is taken for away
QUIET_S = 3.0  # that the kill switch is engaged
UNDER_WAY_S = 1.0  # by then what was being written when writing was forbidden is read back, or refused, and counted
LOWERED_S = 30.0  # for a threshold to be lowered, whatever holds lowerings back
LATE_S = 30.0  # what comes too late is still waited for: late is another finding than never
SHARE_BELOW = 0.8  # of STATIC_SAFE
NORMAL_S = 60.0  # for the rack to be NORMAL again, beyond `guard.recover_s`
DEMO_OUTLETS = 12
REASON = "drill"  # of the kill switch: one that somebody engages meanwhile in earnest stays

Status = Mapping[str, Any]


class Box(Protocol):
    """Where drills take place."""

    config: Config

    def restart(self, pid: int) -> None:
        """Stop the daemon in good order and have it started again; returns at once. Raises RpiError."""

    def supervised(self, pid: int) -> bool:
        """Whether somebody starts the daemon again when it dies."""


class SystemdBox:
    """This box, with the daemon as a service of systemd."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def restart(self, pid: int) -> None:
        subprocess.run(["systemctl", "--no-block", "restart", self._unit(pid)], check=True, capture_output=True)

    def supervised(self, pid: int) -> bool:
        return bool(self._unit(pid))

    @staticmethod
    def _unit(pid: int) -> str:
        """The system service that a process belongs to, by its control group (cgroups(7)); empty without one."""
        group = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").strip().rpartition(":")[2]
        parts = group.split("/")
        return (
            next((part for part in parts[2:] if part.endswith(".service")), "")
            if parts[1:2] == ["system.slice"]
            else ""
        )


class DemoBox:
    """The demo's rack: a simulated one, with a real daemon that is started again whenever it ends."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def restart(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)

    def supervised(self, pid: int) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that should happen, and whether it did."""

    what: str
    passed: bool
    after_s: float | None = None
    within_s: float | None = None
    seen: str = ""  # in place of it

    def line(self) -> str:
        """For people."""
        took = "" if self.after_s is None else f"{self.after_s:6.2f} s"
        allowed = "" if self.within_s is None else f" (within {self.within_s:g} s)"
        return f"  {'pass' if self.passed else 'FAIL'}  {took:>8}  {self.what}{allowed}" + (
            f": {self.seen}" if self.seen else ""
        )


class Drill:
    """One drill on a daemon that runs. `checks` grows as it goes on; `told` hears of each."""

    def __init__(self, box: Box, told: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self._box = box
        self._told = told
        self._client = self._connected()
        self._before: Status = self._client.ask("status")
        self._normal_s = box.config.guard.recover_s + NORMAL_S

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    @property
    def writes(self) -> bool:
        """Whether the daemon writes limits."""
        return bool(self._before["mode"] == Mode.CLOSED_LOOP.value)

    def run(self, name: str) -> None:
        """One drill by its name. Raises RpiError where it cannot begin."""
        self._begin()
        DRILLS[name](self)

    def _begin(self) -> None:
        if self._client.ask("status")["kill_switch"]:
            raise RpiError("the kill switch is engaged: no drill begins")
        status = self._until(lambda s: s["state"] == "NORMAL", self._normal_s)
        if status is None:
            now = self._client.ask("status")
            raise RpiError(f"a drill begins from NORMAL; the rack is in {now['state']}: {', '.join(now['why'])}")
        self._before = status

    # -- the drills

    def kill_switch(self) -> None:
        """The kill switch stops every write, and lets go again."""
        try:
            self._client.ask("kill", reason=REASON)
            self._expect("the kill switch is engaged, and the status says so", lambda s: s["kill_switch"], 1.0)
            self._expect("an alarm tells it", lambda s: self._alarms(s, "kill_switch"), 3.0)
            time.sleep(UNDER_WAY_S)
            begun = self._client.ask("status")["summary"]
            time.sleep(QUIET_S)
            ended = self._client.ask("status")["summary"]
            written = ended["writes"] - begun["writes"]
            self._check(
                f"nothing was written for {QUIET_S:g} s", written == 0, seen=f"{written} writes" if written else ""
            )
            ticks = ended["ticks"] - begun["ticks"]
            self._check("sampling and forecasts went on", ticks > 5 * QUIET_S, seen=f"{ticks} ticks")
        finally:
            self._client.ask("resume", only=REASON)
        self._expect("it is released again", lambda s: not s["kill_switch"], 1.0)
        self._back()

    def sensor_loss(self) -> None:
        """A sensor board is unplugged: each in turn."""
        for board in self._box.config.board:
            mine = board.currents()
            self._lose(board.id)
            self._expect(
                f"{board.id} is gone: its outlets have no reading", partial(_measured, outlets=mine, wanted=False), 1.0
            )
            self._held("sensor_stale", mine)
            self._back()
            self._expect(f"{board.id} measures again", partial(_measured, outlets=mine, wanted=True), 5.0)

    def pdu_loss(self) -> None:
        """A PDU does not answer: each in turn."""
        for pdu in used_pdus(self._box.config):
            self._lose(pdu.id)
            self._expect(f"{pdu.id} is seen as silent", partial(_reachable, pdu=pdu.id, wanted=False), pdu.poll_s + 1.0)
            outlets = {o["id"] for o in self._before["outlets"] if o["id"].startswith(f"{pdu.id}/")}
            if outlets:
                self._held("pdu_unreachable", outlets)
            self._expect(f"{pdu.id} answers again", partial(_reachable, pdu=pdu.id, wanted=True), LOSS_S + 2.0)
            self._back()

    def restart(self) -> None:
        """The daemon is stopped in good order and started again."""
        pid = self._supervised()
        self._away_from_static_safe()
        self._box.restart(pid)
        self._stands("STATIC_SAFE stands on every PDU", 30.0)
        self._new_daemon(pid)

    def failsafe(self) -> None:
        """The daemon is killed (SIGKILL): safe limits stand without it, and it comes back."""
        pid = self._supervised()
        self._away_from_static_safe()
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            raise RpiError(f"this user may not kill the daemon (pid {pid}); run the drill as root") from None
        self._stands("STATIC_SAFE stands on every PDU", 6.0)
        self._new_daemon(pid)

    # -- what they have in common

    def _lose(self, device: str) -> None:
        self._client.ask("drill", device=device, for_s=LOSS_S, closed_loop=True)

    def _held(self, cause: str, outlets: Collection[str]) -> None:
        """HOLD for this cause, with an alarm; and no limit of these outlets rises meanwhile."""
        self._expect(
            f"the rack is in HOLD, because of {cause}",
            lambda s: s["state"] != "NORMAL" and any(c.startswith(cause) for c in s["causes"]),
            1.0,
        )
        self._expect("an alarm tells it", lambda s: bool(self._alarms(s)), 3.0)
        time.sleep(UNDER_WAY_S)
        first = {o["id"]: o["limit_w"] for o in self._client.ask("status")["outlets"] if o["id"] in outlets}
        time.sleep(1.0)
        last = {o["id"]: o["limit_w"] for o in self._client.ask("status")["outlets"]}
        raised = [
            name for name, limit_w in first.items() if limit_w is not None and (last[name] or 0.0) > limit_w + 1.0
        ]
        self._check("no limit there rose meanwhile", not raised, seen=", ".join(raised))

    def _back(self) -> None:
        self._expect("the rack is NORMAL again", lambda s: s["state"] == "NORMAL", LOSS_S + self._normal_s)

    def _alarms(self, status: Status, kind: str = "") -> list[Any]:
        before = {alarm["id"] for alarm in self._before["alarms"]}
        return [alarm for alarm in status["alarms"] if alarm["id"] not in before and alarm["id"].startswith(kind)]

    def _supervised(self) -> int:
        pid = int(self._before["pid"])
        if not self._box.supervised(pid):
            raise RpiError(
                f"the daemon (pid {pid}) does not run as a service of systemd: nobody would start it again; it goes on as it was"
            )
        return pid

    def _away_from_static_safe(self) -> None:
        """Have one alarm threshold stand below STATIC_SAFE, so that its coming back is seen."""
        found = [o for o in self._before["outlets"] if o["opted_in"] and o["limit_kind"] == LimitKind.ALARM.value]
        if not self.writes or not found:
            return
        name, below_w = found[0]["id"], SHARE_BELOW * found[0]["static_safe_w"]
        self._client.ask("limit_set", outlet=name, limit_w=below_w, ttl_s=LOWERED_S, reason="drill")
        self._expect(
            f"the threshold of {name} is lowered below STATIC_SAFE",
            lambda s: any(o["id"] == name and (o["limit_w"] or math.inf) <= below_w + 1.0 for o in s["outlets"]),
            LOWERED_S,
        )

    def _stands(self, what: str, within_s: float) -> None:
        """Look at the PDUs ourselves until they hold STATIC_SAFE; in advisory mode nothing was to change."""
        rack = rack_model(self._box.config)
        opted_in = {o["id"]: o["opted_in"] for o in self._before["outlets"]}
        rack = replace(rack, opted_in=np.array([opted_in[name] for name in rack.outlet_ids]))
        begun_s = time.monotonic()
        if not self.writes:
            self._check("in advisory mode no limit was to change", True)
            return
        while True:
            try:
                away = asyncio.run(_away(self._box.config, rack))
                words = "; ".join(f"{pdu}: not outlets {numbers}" for pdu, numbers in away.items())
            except DeviceError as error:
                words = str(error)
            after_s = time.monotonic() - begun_s
            if not words or after_s >= max(within_s, LATE_S):
                break
            time.sleep(LOOK_S)
        self._check(what, not words and after_s <= within_s, after_s, within_s, seen=words)

    def _new_daemon(self, old: int) -> None:
        """Another process answers, and has verified STATIC_SAFE."""
        self.close()
        begun_s = time.monotonic()
        self._client = self._connected(NORMAL_S, other_than=old)
        status = self._until(lambda s: bool(s["outlets"]), NORMAL_S)
        self._check("a new daemon answers and ticks", status is not None, time.monotonic() - begun_s, NORMAL_S)
        if self.writes:
            status = self._until(lambda s: s["static_safe_verified_s"] is not None, LATE_S)
            verified_s = (status or {}).get("static_safe_verified_s")
            self._check(
                "it had verified STATIC_SAFE, from its start", verified_s is not None and verified_s <= 3.0, verified_s, 3.0,
                seen="" if verified_s is not None else "not verified",
            )  # fmt: skip
        self._back()

    def _connected(self, within_s: float = 0.0, other_than: int | None = None) -> ControlClient:
        path = self._box.config.path(self._box.config.daemon.runtime_dir) / SOCKET_NAME
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    client = stack.enter_context(ControlClient(path))
                    if other_than is None or client.ask("status")["pid"] != other_than:
                        stack.pop_all()
                        return client
            except NotRunningError:
                if time.monotonic() >= deadline_s:
                    raise
            time.sleep(LOOK_S)

    def _until(self, true: Callable[[Status], Any], within_s: float) -> Status | None:
        deadline_s = time.monotonic() + within_s
        while True:
            status = self._client.ask("status")
            if true(status):
                return status
            if time.monotonic() >= deadline_s:
                return None
            time.sleep(LOOK_S)

    def _expect(self, what: str, true: Callable[[Status], Any], within_s: float) -> None:
        begun_s = time.monotonic()
        status = self._until(true, within_s)
        after_s = time.monotonic() - begun_s
        seen = ""
        if status is None:
            now = self._client.ask("status")
            seen = f"{now['state']} {', '.join(now['why'])}"
        self._check(what, status is not None, after_s, within_s, seen)

    def _check(
        self, what: str, passed: bool, after_s: float | None = None, within_s: float | None = None, seen: str = ""
    ) -> None:
        check = Check(what, passed, after_s, within_s, seen)
        self.checks.append(check)
        self._told(check)


DRILLS: Mapping[str, Callable[[Drill], None]] = {
    "kill-switch": Drill.kill_switch,
    "sensor-loss": Drill.sensor_loss,
    "pdu-loss": Drill.pdu_loss,
    "restart": Drill.restart,
    "failsafe": Drill.failsafe,
}


def _measured(status: Status, outlets: Collection[str], wanted: bool) -> bool:
    """Whether all of these outlets have a reading, or none has one."""
    return all((o["power_w"] is not None) is wanted for o in status["outlets"] if o["id"] in outlets)


def _reachable(status: Status, pdu: str, wanted: bool) -> bool:
    return any(row["id"] == pdu and row["reachable"] is wanted for row in status["pdus"])


async def _away(config: Config, rack: RackModel) -> dict[str, list[int]]:
    """Outlets of each PDU that are away from STATIC_SAFE, as the PDUs themselves say now. Raises DeviceError."""
    found: dict[str, list[int]] = {}
    for options in used_pdus(config):
        if options.driver == "modbus_rtu":
            continue  # its bus is the daemon's, whose own verification must do
        driver = pdu_driver(config, options, SystemClock())
        try:
            await driver.open()
            await driver.identify()
            if away := away_from_static_safe(rack, options.id, await driver.read()):
                found[options.id] = away
        finally:
            await driver.close()
    return found


def run_drills(names: Sequence[str], box: Box, *, closed_loop: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """These drills one after the other; the report. Raises RpiError where one cannot begin."""
    begun = datetime.now(UTC)
    drill = Drill(box, lambda check: say(check.line()))
    report: dict[str, list[dict[str, Any]]] = {}
    try:
        if drill.writes and not closed_loop:
            raise RpiError(
                "the daemon is in closed loop, and a drill changes limits on the PDUs: say --closed-loop, or go to `mode advisory` first"
            )
        for name in names:
            say(f"{name}: {(DRILLS[name].__doc__ or '').strip()}")
            drill.checks = []
            try:
                drill.run(name)
            except BaseException:
                say("  ended early     what does not stand above was not tried")
                raise
            if not drill.checks:
                say("  none            this rack has nothing of that kind: nothing was tried")
            report[name] = [
                {"what": c.what, "passed": c.passed, "after_s": c.after_s, "within_s": c.within_s, "seen": c.seen}
                for c in drill.checks
            ]
    finally:
        drill.close()
    passed = [check["passed"] for checks in report.values() for check in checks]
    return {
        "schema": 1,
        "ok": all(passed),
        "rack": box.config.rack.id,
        "mode": Mode.CLOSED_LOOP.value if drill.writes else Mode.ADVISORY.value,
        "begun_utc": begun.isoformat(timespec="seconds"),
        "passed": sum(passed),
        "checks": len(passed),
        "drills": report,
    }


@contextlib.contextmanager
def demo_box() -> Iterator[DemoBox]:
    """The demo's rack with a daemon, up to the end of the block."""
    with demo_folder(None) as folder:
        config = demo_config(folder, DEMO_OUTLETS)
        with simulated_rack(config), supervised_daemon(config):
            yield DemoBox(load_checked(config))
