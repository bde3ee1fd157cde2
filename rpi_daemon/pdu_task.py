"""One PDU's I/O task: newest desired limits, polls, back-off and circuit breaker. It never makes another PDU wait."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from rpi_daemon.audit import DAEMON, NOT_DURABLE, Asked, Audit, By, limit_intent
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.device_task import PROBE_S, DeviceTask, jittered
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import ApplyResult, Desired, LimitState, LimitWrite, PduReading, PduReport

UNSAFE_PROBE_S = 30.0  # for one that is back and does not take STATIC_SAFE: each look writes to it
STILL_NS = NS_PER_S  # ten ticks
FAILURES_TO_OPEN = 1  # the session has retried already; 2 x 250 ms of silence is enough

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Meet:
    """What comes before everything else with a device that was away at start. Both raise DeviceError."""

    identify: Callable[[], Awaitable[None]]  # open it, and see whether it is what it was
    make_safe: Callable[[], Awaitable[None]]  # STATIC_SAFE, verified


class PduTask(DeviceTask[PduReport]):
    """Owns one driver. `submit` hands it the newest desired state and returns at once; reports wait in an inbox."""

    def __init__(
        self,
        pdu: str,
        driver: PduDriver,
        clock: Clock,
        *,
        poll_s: float,
        forbidden: Callable[[LimitWrite], str | None],
        audit: Audit,
        meet: Meet | None = None,
        again: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`forbidden`: why a write may not go out now, None where it may.

        `meet`: the device was away at start; what is done once it answers. `again`: opens it after a silence, in place
        of the driver's `open`.
        """
        super().__init__(clock)
        self.pdu = pdu
        self.reachable = True
        self.last_ok_ns = clock.mono_ns()
        self.failures = 0
        self.polls = 0
        self.verified = 0  # writes whose read-back was what was asked for
        self.limits: Mapping[int, LimitState] = {}  # as last read, by outlet number
        self.refused = ""  # why the newest write that was not made was not
        self._away_ns = 0
        self._silent_until_ns = 0
        self._driver = driver
        self._poll_s = poll_s
        self._forbidden = forbidden
        self._audit = audit
        self._meet = meet
        self._meeting = False
        self._probe_s = PROBE_S  # between two looks while it is away
        self._again = again or driver.open
        self._pending: tuple[LimitWrite, ...] = ()
        self._measured_ns = self._asked_ns = 0

    def submit(self, desired: Desired, measured_ns: int) -> None:
        """Replace what is still waiting, whole; never blocks. `measured_ns`: the newest scan that the decision has seen."""
        self._pending = desired.limits
        self._measured_ns, self._asked_ns = measured_ns, desired.t_mono_ns
        self._wake.set()

    def withdraw(self) -> None:
        """Forget what waits: the mode or the safe state has changed."""
        self._pending = ()

    def away_s(self) -> float:
        """For how long it has been unreachable; 0 while it answers."""
        return 0.0 if self.reachable else (self._clock.mono_ns() - self._away_ns) / NS_PER_S

    @property
    def met(self) -> bool:
        """False until a device that was away at start has answered."""
        return self._meet is None

    def away(self, sentence: str) -> None:
        """It did not answer at start."""
        self._failed(sentence)

    def fall_silent(self, seconds: float) -> None:
        """Have `run` take the device for silent: a drill. What is written beside it, at stop or on request, goes on."""
        self._silent_until_ns = self._clock.mono_ns() + round(seconds * NS_PER_S)
        self._wake.set()

    def silent_s(self) -> float:
        """How much longer a drill takes the device for silent; 0 without one."""
        return max(0.0, (self._silent_until_ns - self._clock.mono_ns()) / NS_PER_S)

    async def write_exclusive(self, writes: Sequence[LimitWrite], by: By) -> ApplyResult | None:
        """Write on somebody's word (restore): what waits is dropped, and the wire is used once `run` lets go of it."""
        self.withdraw()
        return await self.write_now(writes, by=by, on_word=True)

    async def run(self) -> None:
        """Until `stop`: writes first, then the poll when it is due. An error other than DeviceError ends it."""
        next_poll_ns = self._clock.mono_ns()
        while not self._stop:
            self.beat_ns = now_ns = self._clock.mono_ns()
            try:
                if left_s := self.silent_s():
                    raise DeviceError(f"a drill takes it for silent for {left_s:.1f} s more")
                if self._pending and self.reachable:
                    writes, self._pending = self._pending, ()
                    await self.write_now(writes, self._measured_ns, asked_ns=self._asked_ns)
                elif now_ns >= next_poll_ns:
                    next_poll_ns = now_ns + round(self._pause_s() * NS_PER_S)
                    await self._poll()
                else:
                    await self._wait((next_poll_ns - now_ns) / NS_PER_S)
            except DeviceError as error:
                self._failed(str(error))
                next_poll_ns = self._clock.mono_ns() + round(self._pause_s() * NS_PER_S)
                await self._wait(self._pause_s())

    async def write_now(
        self,
        writes: Sequence[LimitWrite],
        measured_ns: int | None = None,
        by: By = DAEMON,
        *,
        asked_ns: int | None = None,
        on_word: bool = False,
    ) -> ApplyResult | None:
        """Write one batch and read it back; also used at start and stop, when `run` is not running.

        Nothing is written before its audit record is durable, but what is protective where the disk fails. None: nothing
        was written at all; `refused` says why. Raises DeviceError, also for a device that was not met yet: it may be
        another one.
        """
        if not self.met:
            raise DeviceError(f"PDU {self.pdu!r} has not answered since the start")
        async with self._wire:
            # the kill switch: asked once the wire is ours, and by the driver again before each message
            allowed = self._without(writes, self._forbidden, by)
            result = None
            if allowed:
                intents = [limit_intent(self.pdu, write, self.limits.get(write.outlet)) for write in allowed]
                asked = await self._audit.asked(self.pdu, intents, by, on_word=on_word)
                if not asked.durable:
                    waits = {w.outlet for w, intent in zip(allowed, intents, strict=True) if not intent.protective}
                    allowed = self._without(allowed, lambda w: NOT_DURABLE if w.outlet in waits else None, by)
                if allowed:
                    result = await self._apply(allowed, asked)
        if result is None:
            self._inbox.append(PduReport(self.pdu, lost=True))
            return None
        self._succeeded()
        wrong = [outcome.outlet for outcome in result.outcomes if not outcome.verified]
        self.verified += len(result.outcomes) - len(wrong)
        if wrong:
            log.warning("pdu.not_verified", pdu=self.pdu, outlets=wrong)
        self._inbox.append(PduReport(self.pdu, result=result, measured_ns=measured_ns, asked_ns=asked_ns))
        if len(allowed) < len(writes):
            self._inbox.append(PduReport(self.pdu, lost=True))  # the others are to be asked for again
        return result

    def _without(
        self, writes: Sequence[LimitWrite], forbidden: Callable[[LimitWrite], str | None], by: By
    ) -> list[LimitWrite]:
        """Those that may be written; the others are recorded with the reason."""
        reasons = [(write, forbidden(write)) for write in writes]
        for why in dict.fromkeys(why for _, why in reasons if why is not None):
            refused = [limit_intent(self.pdu, w, self.limits.get(w.outlet)) for w, reason in reasons if reason == why]
            self._audit.refused(self.pdu, refused, why, by)
            self.refused = why
        return [write for write, why in reasons if why is None]

    async def _apply(self, writes: Sequence[LimitWrite], asked: Asked) -> ApplyResult:
        try:
            result = await self._driver.apply(writes, lambda write: self._forbidden(write) is None)
        except BaseException as error:
            self._audit.failed(asked, self.pdu, str(error) or type(error).__name__)
            raise
        self._audit.ended(asked, self.pdu, result.outcomes)
        told = {o.outlet: o.read_back_w for o in result.outcomes if o.read_back_w is not None}
        self.limits = {
            number: replace(state, limit_w=told[number], enabled=True) if number in told else state
            for number, state in self.limits.items()
        }
        return result

    async def _first_met(self, meet: Meet) -> None:
        """Nothing is written to it before it is known for what it was, and nothing else before STATIC_SAFE."""
        await meet.identify()
        self._meet, self._meeting = None, True
        try:
            await meet.make_safe()
            self._probe_s = PROBE_S
        except BaseException:
            self._meet, self._probe_s = meet, UNSAFE_PROBE_S
            raise
        finally:
            self._meeting = False

    async def read_now(self) -> PduReading:
        """Poll beside `run`: what stands, and what is drawn, at this moment. Raises DeviceError, as `write_now`."""
        if not self.met:
            raise DeviceError(f"PDU {self.pdu!r} has not answered since the start")
        return await self._poll()

    async def _poll(self) -> PduReading:
        if self._meet is not None:
            await self._first_met(self._meet)
        async with self._wire:
            if not self.reachable:
                await self._again()  # its address, engine or session may be another by now, or the device itself
            reading = await self._driver.read()
        self.limits = reading.limits
        self.polls += 1
        self._succeeded()
        if reading.rebooted:
            log.warning("pdu.rebooted", pdu=self.pdu, uptime_s=reading.uptime_s)
        self._inbox.append(PduReport(self.pdu, reading=reading))
        return reading

    def _pause_s(self) -> float:
        if self.reachable:
            return self._poll_s
        return jittered(self._probe_s)

    def _succeeded(self) -> None:
        self.last_ok_ns = self._clock.mono_ns()
        self.failures = 0
        if not self.reachable and not self._meeting:
            self.reachable = True
            log.info("pdu.reachable", pdu=self.pdu)

    def _failed(self, sentence: str) -> None:
        self.failures += 1
        self.withdraw()  # what it asks for is old when the PDU is back; the next tick asks again
        self._inbox.append(PduReport(self.pdu, lost=True))
        if self.reachable and self.failures >= FAILURES_TO_OPEN:
            self.reachable = False
            self._away_ns = self._clock.mono_ns()
            log.error("pdu.unreachable", pdu=self.pdu, error=sentence)


class Lease:
    """Renewed by each tick; a PDU task writes nothing but STATIC_SAFE and found limits once it has expired."""

    def __init__(self, lease_s: float, now_ns: int) -> None:
        self.configure(lease_s)
        self._renewed_ns = now_ns
        self._went_on_ns = now_ns  # the first tick after it last stood still

    def configure(self, lease_s: float) -> None:
        """Another length, of the lease that runs too."""
        self._lease_ns = round(lease_s * NS_PER_S)

    def renew(self, now_ns: int) -> None:
        """A tick that began then has decided."""
        if self.stood_still(now_ns):
            self._went_on_ns = now_ns
        self._renewed_ns = now_ns

    def expired(self, now_ns: int) -> bool:
        return now_ns - self._renewed_ns > self._lease_ns

    def stood_still(self, now_ns: int, decided_ns: int | None = None) -> bool:
        """Whether the loop misses ticks just now, or has done so since `decided_ns`: what it decided then may be wrong by now."""
        since = decided_ns is not None and decided_ns < self._went_on_ns
        return since or now_ns - self._renewed_ns > STILL_NS
