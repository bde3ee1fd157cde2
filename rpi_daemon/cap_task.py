"""One server's I/O task: newest desired cap, polls, back-off. A slow or silent management controller delays nobody else."""

from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from rpi_daemon.audit import DAEMON, NOT_DURABLE, Audit, By, Intent, cap_intent
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.device_task import PROBE_S, DeviceTask, jittered
from rpi_daemon.drivers.base import CapDriver
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import CapDesired, CapIdentity, CapOutcome, CapReading, CapReport

PROBE_MOST_S = 30.0  # between two probes of a silent controller: twice as long after each, up to this
LOCKED_OUT_S = 60.0  # after a refused log-in: many controllers lock an account that tries on

log = structlog.get_logger(__name__)


class CapTask(DeviceTask[CapReport]):
    """Owns one driver. `submit` hands it the newest desired cap and returns at once; reports wait in an inbox.

    It connects by itself, so that a silent controller keeps nothing from starting.
    """

    def __init__(
        self,
        load: str,
        host: str,
        driver: CapDriver,
        clock: Clock,
        *,
        poll_s: float,
        forbidden: Callable[[bool, int | None], str | None],
        audit: Audit,
    ) -> None:
        """`forbidden(restoring, decided_ns)`: why this server's cap, decided then, may not be written now; None where it may."""
        super().__init__(clock)
        self.load = load
        self.host = host
        self.reachable = True  # until it is asked
        self.identity: CapIdentity | None = None
        self.reading: CapReading | None = None  # the newest
        self.error = ""
        self.refused = ""  # why the newest write that was not made was not
        self.failures = 0
        self.polls = self.writes = self.verified = 0
        self.last_ok_ns = 0
        self._driver = driver
        self._poll_s = poll_s
        self._forbidden = forbidden
        self._audit = audit
        self._connected = False
        self._pending: CapDesired | None = None

    def submit(self, desired: CapDesired) -> None:
        """Replace what is still waiting; never blocks."""
        self._pending = desired
        self._wake.set()

    def withdraw(self) -> None:
        """Forget what waits: the mode has changed, or the controller does not answer."""
        if self._pending is not None:
            self._pending = None
            self._inbox.append(CapReport(self.load, lost=True))

    async def run(self) -> None:
        """Until `stop`: writes first, then the poll when it is due. An error other than DeviceError ends it."""
        next_poll_ns = self._clock.mono_ns()
        while not self._stop:
            self.beat_ns = now_ns = self._clock.mono_ns()
            try:
                if self._pending is not None and self._connected:
                    desired, self._pending = self._pending, None
                    await self.write_now(desired.cap_w, why=desired)
                elif now_ns >= next_poll_ns:
                    next_poll_ns = now_ns + round(self._poll_s * NS_PER_S)
                    await self.read()
                else:
                    await self._wait((next_poll_ns - now_ns) / NS_PER_S)
            except DeviceError as error:
                self._failed(error)
                pause_s = self._pause_s(error)
                next_poll_ns = self._clock.mono_ns() + round(pause_s * NS_PER_S)
                await self._wait(pause_s)

    async def write_now(self, cap_w: float | None, *, why: CapDesired | None = None) -> CapOutcome | None:
        """Set the cap and read it back; None where the kill switch, or whoever else is asked, forbids it."""
        async with self._wire:
            intent = cap_intent(self.load, cap_w, self.reading, why)
            forbidden = partial(self._forbidden, False, None if why is None else why.t_mono_ns)
            outcome = await self._audited(intent, DAEMON, forbidden, lambda may: self._driver.apply(cap_w, may))
        if outcome is None:
            self._inbox.append(CapReport(self.load, lost=True))
            return None
        return self._ended(outcome, None if why is None else why.t_mono_ns)

    async def restore(self, found: CapReading, by: By) -> CapOutcome | None:
        """Put the found cap back on somebody's word: what waits is dropped. None where the kill switch forbids it."""
        self.withdraw()
        async with self._wire:
            intent = cap_intent(self.load, found.cap_w if found.active else None, self.reading, None, "restore")
            forbidden = partial(self._forbidden, True, None)
            outcome = await self._audited(
                intent, by, forbidden, lambda may: self._driver.restore(found, may), on_word=True
            )
        return None if outcome is None else self._ended(outcome, None)

    async def _audited(
        self,
        intent: Intent,
        by: By,
        forbidden: Callable[[], str | None],
        write: Callable[[Callable[[], bool]], Awaitable[CapOutcome]],
        *,
        on_word: bool = False,
    ) -> CapOutcome | None:
        """Once its record is durable, `write`; without it only what is protective. None: `refused` says why not."""
        self.refused = forbidden() or ""
        if not self.refused:
            await self._connect()
            asked = await self._audit.asked(self.load, [intent], by, on_word=on_word)
            self.refused = "" if asked.durable or intent.protective else NOT_DURABLE
        if self.refused:
            self._audit.refused(self.load, [intent], self.refused, by)
            return None
        try:
            outcome = await write(lambda: forbidden() is None)
        except BaseException as error:
            self._audit.failed(asked, self.load, str(error) or type(error).__name__)
            raise
        self._audit.ended(asked, self.load, [outcome])
        return outcome

    async def read(self) -> CapReading:
        """One poll on the spot, connecting first where needed. Raises DeviceError."""
        async with self._wire:
            await self._connect()
            self.reading = await self._driver.read()
        self.polls += 1
        self._succeeded()
        self._inbox.append(CapReport(self.load, reading=self.reading))
        return self.reading

    async def _connect(self) -> None:
        if self._connected:
            return
        await self._driver.open()
        self.identity = await self._driver.identify()
        self._connected = True
        self._inbox.append(CapReport(self.load, identity=self.identity))
        identity = self.identity
        log.info(
            "cap.found", load=self.load, host=self.host, vendor=identity.vendor, model=identity.model,
            mechanism=identity.mechanism, lowest_w=identity.lowest_w, on_exceed=identity.on_exceed,
        )  # fmt: skip

    def _ended(self, outcome: CapOutcome, asked_ns: int | None) -> CapOutcome:
        self._succeeded()
        self.writes += outcome.t_sent_ns > 0
        self.verified += outcome.verified
        if outcome.verified:
            after_s = None
            if asked_ns is not None and outcome.t_verified_ns is not None:
                after_s = round((outcome.t_verified_ns - asked_ns) / NS_PER_S, 3)
            log.info("cap.verified", load=self.load, cap_w=outcome.read_back_w, after_s=after_s)
        else:
            log.warning(
                "cap.not_verified", load=self.load, asked_w=outcome.asked_w, read_back_w=outcome.read_back_w,
                refused=outcome.refused,
            )  # fmt: skip
        self._inbox.append(CapReport(self.load, outcome=outcome))
        return outcome

    def _pause_s(self, error: DeviceError) -> float:
        pause_s = min(PROBE_MOST_S, PROBE_S * 2.0 ** (self.failures - 1))
        pause_s = max(pause_s, LOCKED_OUT_S) if isinstance(error, AuthError) else pause_s
        return jittered(pause_s)

    def _succeeded(self) -> None:
        self.last_ok_ns = self._clock.mono_ns()
        self.failures = 0
        self.error = ""
        if not self.reachable:
            self.reachable = True
            log.info("cap.reachable", load=self.load, host=self.host)

    def _failed(self, error: DeviceError) -> None:
        self.failures += 1
        self.error = str(error)
        self._connected = False  # its address, session or even the server may be another by now
        self._pending = None  # what it asks for is old when the controller is back; the next tick asks again
        self._inbox.append(CapReport(self.load, lost=True))
        if self.reachable:
            self.reachable = False
            log.error("cap.unreachable", load=self.load, host=self.host, error=self.error)
