"""Limits without a control loop: open the PDUs, write and verify STATIC_SAFE, put back what was found, let nothing else through."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from rpi_daemon.audit import DAEMON, Audit, By, limit_intent
from rpi_daemon.cap_task import CapTask
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Cap, Config, Pdu
from rpi_daemon.devices import address_of, cap_driver, pdu_driver, profile_digest, profile_of, used_pdus
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.durable import keep_damaged, read_twice, write_twice
from rpi_daemon.errors import AuthError, ConfigError, DeviceError, RpiError
from rpi_daemon.found import FoundCaps, FoundLimits
from rpi_daemon.guard import (
    KILL_FILE,
    GuardConfig,
    KillSwitch,
    away_from_static_safe,
    cuts_off,
    cuts_off_by_now,
    static_safe_writes,
    would_cut_off,
)
from rpi_daemon.host import process_age_s
from rpi_daemon.pdu_task import Lease, Meet, PduTask
from rpi_daemon.proof import Proofs
from rpi_daemon.records import (
    ApplyResult,
    BoolArray,
    CapReading,
    CapReport,
    LimitWrite,
    Mode,
    PduIdentity,
    PduReading,
    PduReport,
    RackModel,
    Readings,
    WriteOutcome,
)
from rpi_daemon.standing import STANDING_FILE, Standing

FOUND_FILE = "found-limits.json"
FOUND_CAPS_FILE = "found-caps.json"
STATIC_SAFE_ATTEMPTS = 3  # per PDU
# to reach a PDU that was never met: without it there is no start, and its network may still come up
FIRST_ATTEMPTS = 5
FIRST_PAUSE_S = 0.2  # between two of them
FIRST_REACH_NS = 3 * NS_PER_S  # none begins later: systemd waits for the start
SAVE_AGAIN_NS = NS_PER_S  # after an error of the disk
LAST_SAVE_S = 2.0  # at stop
CAPS_LEFT_S = 5.0  # at stop, for all servers together, before the PDUs' turn
UNPROVEN = (
    "profile is not proven on this device; meters only (bench/hil/pdu_hil.py proves it; accept_unproven = true writes)"
)

log = structlog.get_logger("rpi_daemon")


class SafeLimits:
    """The rack's PDUs and server caps, and what may be written to them.

    The daemon uses it at start, at stop and for what operators give back; its loop writes through the same tasks, and may
    for as long as `lease` is there and renewed. Before and after the loop nothing but STATIC_SAFE and found limits passes.
    """

    def __init__(
        self,
        config: Config,
        guard: GuardConfig,
        clock: Clock,
        audit: Audit,
        *,
        by: By = DAEMON,
        state_dir: Path | None = None,
        heard: Callable[[PduReport], None] = lambda _: None,
    ) -> None:
        """`by`: who writes STATIC_SAFE. `heard` is told what every write came to, and every reading beside it.

        `state_dir`: if not the configured one.
        """
        self.rack: RackModel = rack_model(config)
        self.mode = Mode(config.daemon.mode)
        self.released: frozenset[str] = frozenset()  # outlets given back to their owner
        self.drivers: dict[str, PduDriver] = {}
        self.identities: dict[str, PduIdentity] = {}
        self.tasks: dict[str, PduTask] = {}
        self.cap_tasks: dict[str, CapTask] = {}  # by load
        self.found = FoundLimits({})
        self.found_caps = FoundCaps({})
        self.lease: Lease | None = None  # none: no loop runs
        self.known: Readings | None = None  # the draws, at stop; at start only the PDUs themselves tell any
        self.measured: Readings | None = None  # the draws, as of the newest tick
        self.stands: dict[str, PduReading] = {}  # as `static_safe` left it
        self.static_safe_s: float | None = None  # when it was verified, in seconds of this process
        self.damaged: list[str] = []  # files of found limits and caps
        self.differs: dict[str, list[int]] = {}  # outlets away from STATIC_SAFE that may not be written
        self.meters_only: dict[str, str] = {}  # PDUs whose outlets would be written but for this reason
        self._strangers: dict[str, str] = {}  # PDUs in whose place another device answers, and what tells that
        self.killed_in_memory = False  # the kill switch could not be written to disk
        self._found_waits: FoundLimits | None = None  # for the disk; not in force before
        self._caps_wait: FoundCaps | None = None
        self._saving = asyncio.Lock()
        self._saver: asyncio.Task[None] | None = None
        self._save_failed_ns: int | None = None
        self._killed_for = ""
        self._config = config
        self._guard = guard
        self._clock = clock
        self._heard = heard
        self.audit = audit
        self._by = by
        self._state_dir = state_dir or config.path(config.daemon.state_dir)
        self._kill_switch = KillSwitch(self._state_dir / KILL_FILE)
        self._opted_in = self.rack.opted_in.copy()  # before anything was given back
        self._why_not: dict[str, str] = {}  # PDUs that may not be written, and why
        self._outlets_of = {x.name: [self.rack.outlet_ids[i] for i in x.outlets] for x in self.rack.loads}

    # -- the kill switch

    def engage_kill_switch(self, reason: str) -> None:
        """On a signal or on request; on a full or read-only disk it holds in memory, until `resume` or a restart."""
        self._killed_for = reason
        try:
            self._kill_switch.engage(reason)
        except OSError as error:
            self.killed_in_memory = True
            log.error("kill_switch.not_on_disk", error=str(error))
        log.warning("kill_switch.engaged", reason=reason)

    def keep_kill_switch(self) -> None:
        """One that the disk did not take holds over a restart, too, once it takes files again."""
        if self.killed_in_memory:
            with contextlib.suppress(OSError):
                self._kill_switch.engage(self._killed_for)
                self.killed_in_memory = False

    def release_kill_switch(self) -> None:
        """Let writes through again. Raises RpiError where the file stays."""
        try:
            self._kill_switch.release()
        except OSError as error:
            raise RpiError(f"the kill switch is still engaged: {self._kill_switch.path}: {error.strerror}") from None
        self.killed_in_memory = False

    def killed_for(self) -> str:
        """What the kill switch was engaged for last, as far as that is known."""
        return self._kill_switch.reason() or self._killed_for

    def killed(self) -> bool:
        """Whether nothing may be written to any PDU."""
        return self.killed_in_memory or self._kill_switch.engaged()

    # -- what was found

    def read_found(self) -> None:
        """What earlier runs found; where it is damaged twice over, that it is lost. Raises RpiError where it cannot be read."""
        try:
            limits = read_twice(self._state_dir / FOUND_FILE, FoundLimits.from_json)
            caps = read_twice(self._state_dir / FOUND_CAPS_FILE, FoundCaps.from_json)
        except OSError as error:
            raise RpiError(f"{error.filename}: {error.strerror}; the daemon's user must own daemon.state_dir") from None
        pdus, loads = {pdu.id for pdu in used_pdus(self._config)}, {cap.load for cap in self._config.cap}
        self.found = limits.value or FoundLimits({}, frozenset(pdus if limits.damaged else ()))
        self.found_caps = caps.value or FoundCaps({}, frozenset(loads if caps.damaged else ()))
        for name, kept in ((FOUND_FILE, limits), (FOUND_CAPS_FILE, caps)):
            if kept.damaged:
                log.error("found_limits.damaged", path=name, error=kept.damaged, lost=kept.value is None)
        self.damaged = [name for name, kept in ((FOUND_FILE, limits), (FOUND_CAPS_FILE, caps)) if kept.damaged]
        if limits.value is None and not limits.damaged:
            log.info("found_limits.none", path=str(self._state_dir / FOUND_FILE))

    def repair_found(self) -> None:
        """Keep damaged files of found limits and caps for people, and write what is known again. Raises RpiError."""
        for name in self.damaged:
            keep_damaged(self._state_dir / name)
        if FOUND_FILE in self.damaged:
            self.save_found(self.found)
        if FOUND_CAPS_FILE in self.damaged:
            try:
                write_twice(self._state_dir / FOUND_CAPS_FILE, self.found_caps.to_json(), FoundCaps.from_json)
            except OSError:
                raise RpiError(f"{self._state_dir / FOUND_CAPS_FILE}: damaged, and the disk takes no new one") from None
        self.damaged = []

    def save_found(self, limits: FoundLimits) -> None:
        """Before the first write: what is put back at `limit restore`."""
        path = self._state_dir / FOUND_FILE
        try:
            write_twice(path, limits.to_json(), FoundLimits.from_json)
        except OSError as error:
            raise RpiError(
                f"{path}: {error.strerror}; nothing is written to a PDU before the limits found on it are saved"
            ) from None
        self.found = limits

    def find_more(self, pdu: str, reading: PduReading) -> None:
        """Limits that a device lacked when we met it, and has by now: `save_waiting` saves them, then they may be written."""
        before = self._found_waits or self.found
        found = before.with_pdu(pdu, reading)
        if any(found.knows(pdu, n) and not before.knows(pdu, n) for n in reading.limits):
            self._found_waits = found

    def find_cap(self, load: str, reading: CapReading) -> bool:
        """As `find_more`, for a server's cap. True where it was met for the first time."""
        before = self._caps_wait or self.found_caps
        found = before.with_cap(load, reading)
        if found is not before:
            self._caps_wait = found
        return found is not before

    def owners_caps(self, caps: Mapping[str, CapReading]) -> None:
        """Caps that their owner set meanwhile: these are the found ones from now on, once they are saved."""
        self._caps_wait = (self._caps_wait or self.found_caps).with_caps(caps)

    def save_waiting(self) -> None:
        """Once a tick: what was found, and waits for the disk, goes there beside the loop; again a while after an error."""
        if self._found_waits is None and self._caps_wait is None:
            return
        if self._saver is not None and not self._saver.done():
            return
        now_ns = self._clock.mono_ns()
        if self._save_failed_ns is None or now_ns - self._save_failed_ns >= SAVE_AGAIN_NS:
            self._saver = asyncio.create_task(self._save_beside(), name="found limits")

    async def _save_beside(self) -> None:
        """In force is what stands on disk, no sooner: nothing is written to a device before that."""
        async with self._saving:
            limits, caps = self._found_waits, self._caps_wait
            try:
                if limits is not None:
                    path = self._state_dir / FOUND_FILE
                    await asyncio.to_thread(write_twice, path, limits.to_json(), FoundLimits.from_json)
                    self.found = limits
                    self._found_waits = None if self._found_waits is limits else self._found_waits
                if caps is not None:
                    path = self._state_dir / FOUND_CAPS_FILE
                    await asyncio.to_thread(write_twice, path, caps.to_json(), FoundCaps.from_json)
                    self.found_caps = caps
                    self._caps_wait = None if self._caps_wait is caps else self._caps_wait
            except OSError as error:
                self._save_failed_ns = self._clock.mono_ns()
                log.error("found_limits.not_saved", error=str(error))
            else:
                self._save_failed_ns = None

    async def end_saving(self) -> None:
        """What waits for the disk, before the end; a disk that hangs gets a moment."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._save_beside(), LAST_SAVE_S)

    def take_up(self, standing: Standing) -> None:
        """What the daemon stood for last, and what it had found; before any device is opened."""
        self.read_found()
        self.mode = standing.mode
        self.release(standing.released)
        for pdu, reason in standing.meters_only.items():
            self.opt_out(pdu, reason)

    def go_on_after_crash(self) -> None:
        """What operators took out of closed loop, or gave back, stays so where the last run did not end in good order.

        Never the other way round: where the configuration says advisory, nothing else does.
        """
        try:
            before = Standing.read(self._state_dir)
        except ConfigError as error:
            log.error("standing.damaged", error=str(error))
            before = None
        if before is None:
            self.go_by_found()
        elif not before.ended:
            if before.mode is Mode.ADVISORY and before.config.daemon.mode == Mode.CLOSED_LOOP.value:
                self.mode = Mode.ADVISORY
            self.release(before.released & frozenset(self.rack.outlet_ids))
        if self.released:
            log.warning("standing.goes_on", mode=self.mode.value, given_back=sorted(self.released))

    def go_by_found(self) -> None:
        """What the daemon stood for is lost: outlets that were given back are known from the found limits as well."""
        self.release(self.found.given_back & frozenset(self.rack.outlet_ids))
        if len(self.released) == self.rack.n:
            self.mode = Mode.ADVISORY

    def keep_to_found(self) -> None:
        """Without a loop nothing is met for the first time: what was never found was never written, and stays alone."""
        outlets = zip(self.rack.pdu_of, self.rack.number_of, strict=True)
        self._opted_in &= np.array([self.found.may_write(pdu, number) for pdu, number in outlets])
        self.release(self.released)

    # -- what it stands for

    def standing(self) -> Standing:
        """As it is kept on disk."""
        return Standing(self._config, self.mode, self.released, self.meters_only)

    def save_standing(self, standing: Standing | None = None) -> None:
        """Before the first write and at each change: what `rpi-daemon failsafe` acts on. Raises RpiError.

        A disk that takes nothing may leave there that the last run ended in good order, where all else is the same: nobody
        who acts without the daemon asks for that.
        """
        standing = standing or self.standing()
        try:
            standing.save(self._state_dir)
        except OSError as error:
            if self._stood_for(standing):
                log.error("standing.not_saved", error=str(error))
                return
            raise RpiError(
                f"{self._state_dir / STANDING_FILE}: {error.strerror}; closed loop needs it on disk, so that `rpi-daemon"
                " failsafe` knows what to make safe"
            ) from None

    def _stood_for(self, standing: Standing) -> bool:
        """Whether the disk holds this, but for how the last run ended."""
        try:
            before = Standing.read(self._state_dir)
        except ConfigError:
            return False
        return before is not None and replace(before, ended=standing.ended).to_json() == standing.to_json()

    async def keep_standing(self, standing: Standing | None = None) -> None:
        """As `save_standing`, beside the loop; and which outlets were given back beside the found limits too."""
        await asyncio.to_thread(self.save_standing, standing)
        await self._keep_given_back(self.released if standing is None else standing.released)

    async def _keep_given_back(self, outlets: frozenset[str]) -> None:
        found = self._found_waits or self.found
        if found.given_back != outlets:
            self._found_waits = replace(found, given_back=outlets)
            await self._save_beside()

    def save_ended(self) -> None:
        """At the end of a stop in good order; a disk that takes nothing makes it look like a crash."""
        try:
            replace(self.standing(), ended=True).save(self._state_dir)
        except OSError as error:
            log.error("standing.not_saved", error=str(error))

    async def close_loop(self) -> None:
        """Closed loop, on everything that opted in. Raises RpiError where that cannot be kept on disk: nothing changes then."""
        standing = replace(self.standing(), mode=Mode.CLOSED_LOOP, released=frozenset())
        await self.keep_standing(standing)
        self.release(standing.released)
        self.mode = standing.mode

    # -- devices

    async def open_pdus(self, stack: contextlib.AsyncExitStack) -> bool:
        """Connect, identify, and note what was found; True if a PDU is met for the first time. `stack` closes them.

        All at once: one whose name or address leads nowhere keeps the others from STATIC_SAFE no longer than itself.
        """
        proofs, pdus = self.proofs(), used_pdus(self._config)
        results = await asyncio.gather(*(self._reach(pdu, proofs, stack) for pdu in pdus), return_exceptions=True)
        first_met = False
        for options, result in zip(pdus, results, strict=True):
            known = self.found.met(options.id)
            if isinstance(result, PduReading):
                self.found = self.found.with_pdu(options.id, result, self.identities[options.id].serial)
                first_met = first_met or not known
            elif known and isinstance(result, DeviceError):
                self._go_without(options, proofs, result)
            else:
                raise result
        self.tasks = {pdu.id: self.tasks[pdu.id] for pdu in pdus}  # in the configuration's order
        return first_met

    async def _reach(self, options: Pdu, proofs: Proofs, stack: contextlib.AsyncExitStack) -> PduReading:
        """As `open_pdu`; one that was never met is asked several times."""
        began_ns = self._clock.mono_ns()
        for _ in range(0 if self.found.met(options.id) else FIRST_ATTEMPTS - 1):
            try:
                return await self.open_pdu(options, proofs, stack)
            except DeviceError as error:
                if isinstance(error, AuthError) or self._clock.mono_ns() - began_ns > FIRST_REACH_NS:
                    raise
                await asyncio.sleep(FIRST_PAUSE_S)
        return await self.open_pdu(options, proofs, stack)

    def _go_without(self, options: Pdu, proofs: Proofs, error: DeviceError) -> None:
        """A PDU that was met in an earlier run is away: its task asks on, and the rest of the rack is not kept waiting."""
        pdu = options.id
        digest = profile_digest(self._config, options)
        proven = profile_of(self._config, options).proven != "none" or proofs.name(digest)
        if not (proven or options.accept_unproven):
            self.opt_out(pdu, UNPROVEN)  # as in the run that met it: its return is no reason to start again
        self.tasks[pdu] = task = self._task(
            options, meet=Meet(partial(self._identify, options, proofs), partial(self._make_safe, pdu))
        )
        task.away(str(error))
        if outlets := [self.rack.number_of[self.rack.outlet_ids.index(name)] for name in self.outlets_of_ours(pdu)]:
            self.differs[pdu] = outlets

    async def _identify(self, options: Pdu, proofs: Proofs) -> None:
        """It is back. Raises DeviceError where it is another device than it was, or may not be written any more."""
        _, why_not = await self._identified(options, proofs)
        if why_not is not None and self.outlets_of_ours(options.id):
            raise DeviceError(f"{why_not}; start the daemon again to go on with it as it is")
        if why_not is not None:
            self._why_not[options.id] = why_not  # for outlets that a reload opts in

    async def _make_safe(self, pdu: str) -> None:
        """As at start; from then on the loop goes by what it would hold."""
        await self.static_safe_on(pdu, "back")
        if not self.differs:
            self.say_static_safe()

    def proofs(self) -> Proofs:
        """The devices on which the bench has passed; none where the file that says so is damaged."""
        try:
            return Proofs.read(self._state_dir)
        except ConfigError as error:
            log.error("proofs.damaged", error=str(error))
            return Proofs({})

    async def open_pdu(self, options: Pdu, proofs: Proofs, stack: contextlib.AsyncExitStack) -> PduReading:
        """Connect, identify, opt out what may not be written; also used again after a failure. Raises DeviceError."""
        pdu = options.id
        if pdu not in self.drivers:
            self.drivers[pdu] = pdu_driver(self._config, options, self._clock)
            stack.push_async_callback(self.drivers[pdu].close)
        reading, why_not = await self._identified(options, proofs)
        if why_not is not None:
            self.opt_out(pdu, why_not)
        self.tasks[pdu] = self._task(options)
        self.tasks[pdu].limits = reading.limits
        return reading

    async def _identified(self, options: Pdu, proofs: Proofs) -> tuple[PduReading, str | None]:
        """Connect; the first reading, and why no limit may be written there. Raises DeviceError."""
        pdu, driver = options.id, self.drivers[options.id]
        await driver.open()
        identity = await driver.identify()
        if proofs.hold(identity, address_of(options), profile_digest(self._config, options)):
            identity = replace(identity, proven=True)
        self.identities[pdu] = identity
        reading = await driver.read()
        log.info("pdu.found", pdu=pdu, vendor=identity.vendor, model=identity.model, outlets=identity.n_outlets)
        if not identity.proven and not options.accept_unproven:
            return reading, UNPROVEN
        if why_not := _no_limits(reading):
            if any(self.found.knows(pdu, number) for number in self.found.pdus.get(pdu, {})):
                # a device that boots beside us: taken for a meter, it would stand at its own limits for the whole run
                raise DeviceError(
                    f"PDU {pdu!r} had limits and tells none now: {why_not.partition(';')[0]}, or it still starts"
                )
            return reading, why_not
        if another := self._another(pdu, identity):
            return reading, (
                f"{another}; meters only. If that is right, take {pdu!r} out of {FOUND_FILE} and start again"
            )
        if moved := self.found.moved(pdu, reading):
            return reading, (
                f"outlets {moved} stand at other places of the device than when it was first met: a feed or tower is away, or"
                f" it, or its profile, is another one; meters only. If that is right, take {pdu!r} out of {FOUND_FILE} and start again"
            )
        return reading, None

    def _task(self, options: Pdu, meet: Meet | None = None) -> PduTask:
        pdu = options.id
        return PduTask(
            pdu,
            self.drivers[pdu],
            self._clock,
            poll_s=options.poll_s,
            forbidden=partial(self._forbidden, pdu),
            audit=self.audit,
            meet=meet,
            again=partial(self._open_again, options),
        )

    async def _open_again(self, options: Pdu) -> None:
        """It was silent for a while. Raises DeviceError also where it is another device by now."""
        driver = self.drivers[options.id]
        await driver.open()
        if another := self._another(options.id, await driver.identify()):
            self._strangers[options.id] = f"PDU {options.id!r}: {another}"
            raise DeviceError(self._strangers[options.id])
        self._strangers.pop(options.id, None)

    def _another(self, pdu: str, identity: PduIdentity) -> str | None:
        """What tells that this is not the device whose limits were found."""
        if known := self.found.another(pdu, identity.serial):
            return (
                f"its serial number is {identity.serial}, that of the PDU first met there is {known}: another device, or two"
                " addresses that changed places"
            )
        return None

    def open_caps(self, stack: contextlib.AsyncExitStack, settle_s: Mapping[str, float]) -> None:
        """One task per server; each connects by itself, and first hears what earlier runs knew. `stack` closes them."""
        for cap in self._config.cap:
            self.open_cap(cap, stack, settle_s.get(cap.load))

    def open_cap(self, cap: Cap, stack: contextlib.AsyncExitStack, settle_s: float | None = None) -> CapTask:
        """As `open_caps`, for one server. Raises OSError where its password cannot be read."""
        driver = cap_driver(self._config, cap, self._clock)
        stack.push_async_callback(driver.close)
        task = CapTask(
            cap.load,
            cap.host,
            driver,
            self._clock,
            poll_s=cap.poll_s,
            forbidden=partial(self._cap_forbidden, cap.load),
            audit=self.audit,
        )
        task.inbox(CapReport(cap.load, found=self.found_caps.caps.get(cap.load), settle_s=settle_s))
        self.cap_tasks[cap.load] = task
        return task

    def outlets_of_ours(self, pdu: str) -> list[str]:
        """The outlets of a PDU that may be written."""
        names = zip(self.rack.outlet_ids, self.rack.pdu_of, self.rack.opted_in, strict=True)
        return [name for name, of, ours in names if of == pdu and ours]

    def opt_out(self, pdu: str, reason: str) -> None:
        """Write nothing to this PDU."""
        self._why_not[pdu] = reason
        mine = np.array([p == pdu for p in self.rack.pdu_of])
        if (self._opted_in & mine).any():
            self.meters_only[pdu] = reason
            log.warning("pdu.meters_only", pdu=pdu, reason=reason)
        self._opted_in &= ~mine
        self.release(self.released)

    @property
    def opted_in(self) -> BoolArray:
        """Outlets [n] that are ours by the configuration and the devices, those included that were given back."""
        return self._opted_in

    def configure(self, config: Config, rack: RackModel, guard: GuardConfig) -> None:
        """Another word on the same PDUs and outlets. Outlets that are opted out by it are no longer `released`."""
        released = self.standing_with(config, rack).released
        self._config, self._guard = config, guard
        self.rack, self._opted_in = rack, rack.opted_in.copy()
        self.meters_only.clear()
        for pdu, reason in self._why_not.items():
            self.opt_out(pdu, reason)
        self.release(released)

    def standing_with(self, config: Config, rack: RackModel) -> Standing:
        """What the daemon will stand for after `configure`."""
        wanted = {name for name, ours in zip(rack.outlet_ids, rack.opted_in, strict=True) if ours}
        written = {pdu for pdu, ours in zip(rack.pdu_of, rack.opted_in, strict=True) if ours}
        meters_only = {pdu: reason for pdu, reason in self._why_not.items() if pdu in written}
        return Standing(config, self.mode, self.released & wanted, meters_only)

    # -- asked at the driver's door, immediately before each write

    def _forbidden(self, pdu: str, write: LimitWrite) -> str | None:
        """Why a limit may not be written now; None where it may."""
        if self.killed():
            return "the kill switch is engaged"
        if not self.found.may_write(pdu, write.outlet):
            return "no found limit is saved"
        if stranger := self._strangers.get(pdu):
            return stranger
        if write.restore is not None:
            return None
        if not self.rack.opted_in[self.index(pdu, write.outlet)]:
            return "it is not ours"  # any more: it was decided before that
        if self.lease is None:
            return None
        if self._cuts_off_by_now(pdu, write):
            return "its draw has grown since: it would be cut off"
        return self._loop_forbidden(self.lease, None if write.why is None else write.why.t_mono_ns)

    def _cuts_off_by_now(self, pdu: str, write: LimitWrite) -> bool:
        """A batch may take a slow device many seconds."""
        if self.measured is None or (state := self.tasks[pdu].limits.get(write.outlet)) is None:
            return False
        i = self.index(pdu, write.outlet)
        return cuts_off_by_now(write.limit_w, state, self.rack, self._guard, self.measured, i)

    def _cap_forbidden(self, load: str, restoring: bool, decided_ns: int | None = None) -> str | None:
        """As `_forbidden`, for a server's cap; one that was given back is not ours, whatever still waits for its BMC."""
        if self.killed():
            return "the kill switch is engaged"
        if not self.found_caps.may_write(load):
            return "no found cap is saved"
        if restoring:
            return None
        if self.given_back(load):
            return "it was given back"
        return self._loop_forbidden(self.lease, decided_ns)

    def _loop_forbidden(self, lease: Lease | None, decided_ns: int | None = None) -> str | None:
        if self.mode is not Mode.CLOSED_LOOP:
            return f"mode {self.mode.value}"
        if lease is not None and lease.expired(self._clock.mono_ns()):
            return "the control loop's lease has expired"
        if lease is not None and lease.stood_still(self._clock.mono_ns(), decided_ns):
            return "the control loop stood still: its next tick decides anew"
        return None

    # -- STATIC_SAFE

    async def static_safe(self, when: str) -> None:
        """Write STATIC_SAFE and verify it, on all PDUs at once: one that is silent does not keep it from the others.

        Compares only in advisory mode, or with the kill switch engaged. Raises DeviceError, naming every PDU that failed.
        """
        self.stands.clear()
        # one that only meters, and has been away since the start, is nobody's to be left safe
        pdus = [p for p, task in self.tasks.items() if task.met or (when != "start" and self.outlets_of_ours(p))]
        results = await asyncio.gather(*(self.static_safe_on(pdu, when) for pdu in pdus), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed and all(isinstance(error, DeviceError) for error in failed):
            raise type(failed[0])("; ".join(str(error) for error in failed))
        if failed:
            raise failed[0]

    async def static_safe_on(self, pdu: str, when: str) -> None:
        """As `static_safe`, for one PDU."""
        for left in reversed(range(STATIC_SAFE_ATTEMPTS)):
            try:
                differing = await self._static_safe_once(pdu, when)
            except DeviceError:
                if left == 0:
                    raise
                continue
            if not differing:
                return
        raise DeviceError(
            f"PDU {pdu!r} does not take STATIC_SAFE on outlets {differing}: check the user's write permission on it"
        )

    async def _static_safe_once(self, pdu: str, when: str) -> list[int]:
        """Outlets that stand elsewhere after one attempt although they may be written."""
        task, driver = self.tasks[pdu], self.drivers[pdu]
        if not task.met:
            raise DeviceError(f"PDU {pdu!r} has not answered since the start")
        if stranger := self._strangers.get(pdu):
            raise DeviceError(stranger)
        reading = await driver.read()
        task.limits = reading.limits
        writes = static_safe_writes(self.rack, pdu, reading, self._guard, self.known)
        if writes and (self.mode is Mode.ADVISORY or self.killed()):
            why = "the kill switch is engaged" if self.killed() else f"mode {self.mode.value}"
            wanted = [limit_intent(pdu, write, reading.limits.get(write.outlet)) for write in writes]
            self.audit.refused(pdu, wanted, why, self._by)
            writes = ()
        elif writes:
            result = await task.write_now(writes, by=self._by)
            if result is not None:
                self._heard(PduReport(pdu, result=result))
                if when == "start" and (refusal := _write_denied(result)):
                    self.opt_out(pdu, f"the device lets us write nothing ({refusal}); meters only")
            reading = await driver.read()
            writes = static_safe_writes(self.rack, pdu, reading, self._guard, self.known)
        if not writes:
            self._compare(pdu, reading, when)
        task.take_reports()
        report = PduReport(pdu, reading=reading)
        task.inbox(report)
        self._heard(report)
        self.stands[pdu] = reading
        return [write.outlet for write in writes]

    def _compare(self, pdu: str, reading: PduReading, when: str) -> None:
        """Note the outlets that stand elsewhere and are left so: nothing may be written, or a limit would cut off."""
        self.differs.pop(pdu, None)
        if differs := away_from_static_safe(self.rack, pdu, reading):
            self.differs[pdu] = differs
            log.warning("static_safe.differs", pdu=pdu, when=when, outlets=differs)

    def note_static_safe(self, pdu: str, outcome: WriteOutcome) -> None:
        """A limit that could not be lowered before its draw was known stands at STATIC_SAFE, or below, by now."""
        waiting = self.differs.get(pdu, [])
        if outcome.outlet not in waiting or outcome.read_back_w is None:
            return
        if outcome.read_back_w <= self.rack.static_safe_w[self.index(pdu, outcome.outlet)] + 1.0:
            waiting.remove(outcome.outlet)
            if not waiting:
                del self.differs[pdu]
            if self.lease is not None and not self.differs:
                self.say_static_safe()

    def say_static_safe(self) -> None:
        """One line: verified, and after how long, or only compared."""
        after_s, mode = process_age_s(), self.mode.value
        if self.differs:
            log.warning("static_safe.compared", after_s=round(after_s, 3), mode=mode, differs=self.differs)
            return
        self.static_safe_s = after_s
        outlets = int(self.rack.opted_in.sum())
        log.info("static_safe.verified", after_s=round(after_s, 3), mode=mode, outlets=outlets)

    def index(self, pdu: str, number: int) -> int:
        """The rack's index of an outlet."""
        return self.rack.outlet_ids.index(f"{pdu}/{number}")

    async def leave_caps(self, wanted_w: Mapping[str, float]) -> bool:
        """These caps, by load, on the servers; False where one does not stand. See docs/decisions/caps-at-stop.md."""
        if self.mode is Mode.ADVISORY or self.killed():
            return True
        results = await asyncio.gather(
            *(asyncio.wait_for(self.cap_tasks[load].write_now(cap_w), CAPS_LEFT_S) for load, cap_w in wanted_w.items()),
            return_exceptions=True,
        )
        left = True
        for (load, cap_w), result in zip(wanted_w.items(), results, strict=True):
            if isinstance(result, BaseException) or result is None or not result.verified:
                left = False
                log.error("cap.not_left", load=load, cap_w=cap_w, error=str(result))
            else:
                log.info("cap.left", load=load, cap_w=result.read_back_w)
        return left

    # -- given back to their owners

    def given_back(self, load: str) -> bool:
        """Whether all outlets of a load are its owner's again: its server's cap is then too."""
        return self.released.issuperset(self._outlets_of[load])

    def release(self, outlets: frozenset[str]) -> None:
        """Outlets that are their owner's again: not written, not watched for changes by others."""
        self.released = outlets
        ours = np.array([name not in outlets for name in self.rack.outlet_ids])
        self.rack = replace(self.rack, opted_in=self._opted_in & ours)

    async def restore(self, outlets: Sequence[str], by: By, readings: Readings | None = None) -> tuple[int, list[str]]:
        """Put found limits and caps back where we may write, and let go of them until `mode closed_loop`.

        A found limit that would cut off what its outlet draws now, by the PDU's word and `readings`, is not put back.
        Returns how many are back, all of them verified, and the outlets whose found limit is lost: what stands there stays.
        Every PDU has its turn; what could not be put back stays ours,
        so that no limit is left there without a loop behind it, and DeviceError names it. Without any outlet of ours left
        the mode is advisory.
        """
        if self.killed():
            raise RpiError("the kill switch is engaged: nothing is written; `rpi-daemon resume` releases it")
        names = self.rack.outlet_ids
        chosen = {name for name, ours in zip(names, self._opted_in, strict=True) if ours and name in outlets}
        lost = sorted(name for name in chosen if name.partition("/")[0] in self.found.lost)
        before = self.released
        self.release(before | frozenset(outlets))
        try:
            failed = await self._restore_caps(by, lowering=True)
            waits = {name for name in failed if self._found_cuts_off(name)}  # its server may draw more than that allows
            for pdu in self.tasks:
                failed |= await self._restore_pdu(pdu, chosen - waits, by, readings)
            self.release(self.released.difference(failed))  # no cap rises behind a limit that is not back
            failed |= await self._restore_caps(by, lowering=False)
        except BaseException:  # a stop cuts it short: all of them are ours to be left safe
            self.release(before)
            raise
        self.release(self.released.difference(failed))
        if len(self.released) == self.rack.n:
            self.mode = Mode.ADVISORY
        try:
            await self.keep_standing()
        except RpiError as error:
            log.error("standing.not_saved", error=str(error))
        if failed:
            words = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise DeviceError(
                f"{len(chosen - failed.keys())} of {len(chosen)} found limits are back; these are not and stay ours: {words}"
            )
        return len(chosen) - len(lost), lost

    async def _restore_caps(self, by: By, *, lowering: bool) -> dict[str, str]:
        """The found caps of the servers whose outlets are all given back: lower ones before the outlets' limits, others after.

        Outlets of those that are not back, with the reason.
        """
        failed: dict[str, str] = {}
        for cap in self.rack.caps:
            load = self.rack.loads[cap.load].name
            outlets = self._outlets_of[load]
            found, task = self.found_caps.caps.get(load), self.cap_tasks.get(load)
            if not cap.opted_in or found is None or task is None or not self.given_back(load):
                continue
            try:
                stands = await task.read()
                if (_cap_w(found) < _cap_w(stands)) is not lowering or stands.raw == found.raw:
                    continue
                outcome = await task.restore(found, by)
            except DeviceError as error:
                failed |= dict.fromkeys(outlets, f"cap of {load}: {error}")
                continue
            if outcome is None or not outcome.verified:
                reason = task.refused if outcome is None else outcome.refused or "another cap stands"
                failed |= dict.fromkeys(outlets, f"cap of {load}: {reason}")
        return failed

    def _found_cuts_off(self, name: str) -> bool:
        i = self.rack.outlet_ids.index(name)
        found = self.found.pdus.get(self.rack.pdu_of[i], {}).get(self.rack.number_of[i])
        return found is not None and cuts_off(found)

    async def _restore_pdu(self, pdu: str, names: Collection[str], by: By, readings: Readings | None) -> dict[str, str]:
        """The found limits of these outlets, as far as they are on this PDU; those that are not back, with the reason."""
        mine = {
            self.rack.number_of[i]: name
            for i, name in enumerate(self.rack.outlet_ids)
            if name in names and self.rack.pdu_of[i] == pdu
        }
        writes = self.found.writes(pdu, mine)
        try:
            why_not = await self._would_cut_off(pdu, writes, by, readings)
            failed = {mine[number]: why for number, why in why_not.items()}
            if writes := tuple(write for write in writes if write.outlet not in why_not):
                result = await self.tasks[pdu].write_exclusive(writes, by)
                if result is None:
                    return dict.fromkeys(mine.values(), self.tasks[pdu].refused) | failed
                failed |= {
                    mine[o.outlet]: o.refused or "holds another value" for o in result.outcomes if not o.verified
                }
        except DeviceError as error:
            return dict.fromkeys(mine.values(), str(error))
        return failed

    async def _would_cut_off(
        self, pdu: str, writes: Sequence[LimitWrite], by: By, readings: Readings | None
    ) -> dict[int, str]:
        """The outlets whose found limit is not put back beside what they draw now, with the reason. Raises DeviceError."""
        cutting = [(write, found) for write in writes if (found := write.restore) is not None and cuts_off(found)]
        if not cutting:
            return {}
        reading = await self.tasks[pdu].read_now()
        why_not = {}
        for write, found in cutting:
            i = self.index(pdu, write.outlet)
            why = would_cut_off(found, self.rack, reading, self._guard, readings, i)
            if why is not None:
                why_not[write.outlet] = why
                self.audit.refused(pdu, [limit_intent(pdu, write, reading.limits.get(write.outlet))], why, by)
        return why_not


def _cap_w(reading: CapReading) -> float:
    """The cap that a reading shows; infinite where none is active."""
    return math.inf if not reading.active or reading.cap_w is None else reading.cap_w


def _no_limits(reading: PduReading) -> str | None:
    """Why no limit can be written on a PDU, from its first reading; None where there is one."""
    if not reading.limits:
        return "its profile has no limit to write; meters only"
    if all(state.limit_w is None and not state.raw for state in reading.limits.values()):
        return "the device has none of the thresholds of its profile: another model, or the feature is not licensed; meters only"
    return None


def _write_denied(result: ApplyResult) -> str | None:
    """The device's word, when it denied writing as such and took no write at all."""
    denied = [outcome.refused for outcome in result.outcomes if outcome.denied]
    return denied[0] if denied and not any(outcome.verified for outcome in result.outcomes) else None
