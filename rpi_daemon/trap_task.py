"""Tells facilities: one task per receiver, fed from the queue on disk; nothing here is ever awaited by a tick."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from rpi_daemon.alarms import (
    AlarmTable,
    Facts,
    changes,
    conditions,
    standing_from_json,
    standing_to_json,
)
from rpi_daemon.clock import NS_PER_S, Clock, SystemClock
from rpi_daemon.config.schema import Config, TrapSink
from rpi_daemon.drivers.traps.engine import EngineIdentity, next_boot
from rpi_daemon.drivers.traps.mib import notification_oid, varbinds
from rpi_daemon.drivers.traps.sender import SinkOptions, TrapSender
from rpi_daemon.errors import AuthError, DeviceError, RpiError
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import Mode, Notice, RackModel, SafeState, Severity
from rpi_daemon.trap_queue import QUEUE_FILE, TrapQueue

SPACING_S = 0.05  # between two messages: one costs the loop 3 ms, and a tick comes every 100 ms
BACK_OFF_S = (1.0, 60.0)  # after the first failure, at most
FAREWELL_S = 1.0  # for the last notice to go out
SEVERITIES = {"info": Severity.INFO, "warning": Severity.WARNING, "critical": Severity.CRITICAL}

log = structlog.get_logger(__name__)


class Pace:
    """When the next message may go: so many in any minute, and never two within the spacing."""

    def __init__(self, per_minute: int, spacing_s: float = SPACING_S) -> None:
        self._sent_ns: deque[int] = deque(maxlen=per_minute)
        self._spacing_ns = round(spacing_s * NS_PER_S)

    def configure(self, per_minute: int) -> None:
        """Another number, of this minute too."""
        if per_minute != self._sent_ns.maxlen:
            self._sent_ns = deque(self._sent_ns, per_minute)

    def full(self, now_ns: int) -> bool:
        """Whether this minute has had all its messages."""
        return len(self._sent_ns) == self._sent_ns.maxlen and now_ns - self._sent_ns[0] < 60 * NS_PER_S

    def wait_s(self, now_ns: int) -> float:
        """How long to wait from now; 0 when it may go."""
        if not self._sent_ns:
            return 0.0
        next_ns = self._sent_ns[-1] + self._spacing_ns
        if len(self._sent_ns) == self._sent_ns.maxlen:
            next_ns = max(next_ns, self._sent_ns[0] + 60 * NS_PER_S)
        return max(0.0, (next_ns - now_ns) / NS_PER_S)

    def went(self, now_ns: int) -> None:
        self._sent_ns.append(now_ns)


def sink_options(config: Config, sink: TrapSink) -> SinkOptions:
    """What the sender needs of a `[[trap_sink]]`, secrets included."""
    secret = dict.fromkeys(("auth_key", "priv_key", "community"), "")
    for name in ("community",) if sink.version == "2c" else ("auth_key", "priv_key"):
        secret[name] = config.secret(sink, name)
    return SinkOptions(
        sink.host,
        sink.port,
        sink.kind == "inform",
        sink.version,
        sink.user or "",
        sink.auth,
        timeout_s=sink.timeout_s,
        **secret,
    )


class SinkTask:
    """Delivers one receiver's queue in order. An inform stays until it is acknowledged, a trap until it was sent once."""

    def __init__(
        self,
        sink: TrapSink,
        sender: TrapSender,
        queue: TrapQueue,
        pace: Pace,
        clock: Clock,
        *,
        rack: str,
        enterprise: int,
    ) -> None:
        self.sink = sink
        self.least = SEVERITIES[sink.min_severity]
        self.reachable: bool | None = None  # None: nothing was sent yet; a trap tells nothing of its receiver
        self.sent = self.acknowledged = 0
        self.error: str | None = None
        self.refused = False  # by that error: user, key or algorithm
        self._sender = sender
        self._queue = queue
        self.pace = pace
        self._clock = clock
        self._rack = rack
        self._enterprise = enterprise
        self._back_off_s = BACK_OFF_S[0]
        self._wake = asyncio.Event()
        self._progress = asyncio.Event()

    async def open(self) -> None:
        """Set pysnmp up; a name that cannot be resolved yet is no reason not to start."""
        try:
            await self._sender.open()
        except DeviceError as error:
            self._failed(error)

    async def close(self) -> None:
        await self._sender.close()

    def wake(self) -> None:
        """There is something new in the queue."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._wake.clear()
            message = await self._queue.head(self.sink.id)
            if message is None:
                await self._wake.wait()
            elif self.sink.kind == "trap" and self.pace.full(self._clock.mono_ns()):
                await self._queue.done(self.sink.id, message.sequence, dropped=True)
            else:
                await asyncio.sleep(self.pace.wait_s(self._clock.mono_ns()))
                if await self._deliver(message.notice, message.sequence):
                    await self._queue.done(self.sink.id, message.sequence)
                    self._progress.set()
                else:
                    await asyncio.sleep(self._back_off_s)
                    self._back_off_s = min(2.0 * self._back_off_s, BACK_OFF_S[1])

    def ended(self, running: "asyncio.Task[None]") -> None:
        """Say so if `run` ended by a defect: control goes on, and the notices wait on disk for the next start."""
        if not running.cancelled() and (error := running.exception()) is not None:
            self.error, self.reachable = f"the task of this receiver has failed: {error!r}", False
            log.error("traps.ended", sink=self.sink.id, error=self.error)

    async def drained(self) -> None:
        """Until everything is delivered; a receiver that does not answer is not waited for."""
        queue = self._queue.sinks[self.sink.id]
        while self.reachable is not False and queue.done < queue.sequence:
            self._progress.clear()
            await self._progress.wait()

    async def test(self) -> dict[str, Any]:
        """One test notification, past the queue; says what became of it."""
        text = "test, asked for by an operator"
        notice = Notice("test", "event", Severity.INFO, "", self.sink.id, text, self._clock.utc_ns())
        started = time.perf_counter()
        went = await self._deliver(notice, 0)
        return {
            "sink": self.sink.id,
            "kind": self.sink.kind,
            "sent": went or self.sink.kind == "inform",
            "acknowledged": went if self.sink.kind == "inform" else None,
            "ms": round((time.perf_counter() - started) * 1e3, 1),
            "error": None if went else self.error,
            "refused": not went and self.refused,
        }

    async def _deliver(self, notice: Notice, sequence: int) -> bool:
        oid = notification_oid(notice, self._enterprise)
        dropped = self._queue.sinks[self.sink.id].dropped
        objects = varbinds(notice, self._rack, self._enterprise, sequence=sequence, dropped=dropped, least=self.least)
        try:
            if self.reachable is False:
                await self._sender.connect()  # it may have another address by now
            self.pace.went(self._clock.mono_ns())
            self.sent += 1
            await self._sender.send(oid, objects)
        except DeviceError as error:
            self._failed(error)
            return False
        self._back_off_s = BACK_OFF_S[0]
        self.error = None
        if self.sink.kind == "inform":
            self.acknowledged += 1
            if self.reachable is not True:
                log.info("trap_sink.reachable", sink=self.sink.id, queued=self._queue.sinks[self.sink.id].waiting)
            self.reachable = True
        return True

    def _failed(self, error: DeviceError) -> None:
        self.error, self.refused = str(error), isinstance(error, AuthError)
        if self.reachable is not False:
            log.warning("trap_sink.unreachable", sink=self.sink.id, error=self.error)
        self.reachable = False
        self._progress.set()

    def status(self) -> dict[str, Any]:
        queue = self._queue.sinks[self.sink.id]
        return {
            "id": self.sink.id,
            "host": self.sink.host,
            "kind": self.sink.kind,
            "insecure": self.sink.version == "2c",
            "reachable": self.reachable,
            "error": self.error,
            "queued": queue.waiting,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "dropped": queue.dropped,
        }


class Traps:
    """The alarm table and all receivers. `watch` is called once a tick and waits for nothing."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        *,
        pace: Callable[[], Pace] | None = None,
    ) -> None:
        self.table = AlarmTable({}, clock.mono_ns())
        self.tasks: list[SinkTask] = []
        self._config = config
        self._clock = clock
        self._pace = pace or (lambda: Pace(config.traps.per_minute))
        self._queue: TrapQueue | None = None
        self._running: list[asyncio.Task[None]] = []
        self._before: Snapshot | None = None
        self._mode = Mode(config.daemon.mode)
        self._model: str | None = None  # the last that forecast
        self._heartbeat_ns = clock.mono_ns()

    async def open(self, *, deliver: bool = True) -> None:
        """Who we are, the queue, the senders. Without a receiver there is nothing on disk. Raises ConfigError.

        Not to `deliver` leaves the queues alone: for `test`.
        """
        if not self._config.trap_sink:
            return
        options = self._config.traps
        folder = self._config.path(self._config.daemon.state_dir)
        identity = await asyncio.to_thread(
            next_boot, folder, self._clock.utc_ns(), options.enterprise, self._config.rack.id
        )
        queue = TrapQueue(folder / QUEUE_FILE, [sink.id for sink in self._config.trap_sink], options.queue)
        facts = await queue.open()
        self._queue = queue
        self.table = AlarmTable(standing_from_json(facts.get("standing", {})), self._clock.mono_ns())
        self._model = facts.get("model")
        for sink in self._config.trap_sink:
            task = self._task(sink, identity, queue)
            self.tasks.append(task)
            await task.open()
        if not deliver:
            return
        self._running = [asyncio.create_task(task.run(), name=f"traps {task.sink.id}") for task in self.tasks]
        for running, task in zip(self._running, self.tasks, strict=True):
            running.add_done_callback(task.ended)
        started = Notice("started", "event", Severity.INFO, "", "", "started", self._clock.utc_ns())
        self._tell([self._with_standing(started, None)])

    def _task(self, sink: TrapSink, identity: EngineIdentity, queue: TrapQueue) -> SinkTask:
        sender = TrapSender(sink_options(self._config, sink), identity)
        rack, enterprise = self._config.rack.id, self._config.traps.enterprise
        return SinkTask(sink, sender, queue, self._pace(), self._clock, rack=rack, enterprise=enterprise)

    def configure(self, config: Config) -> None:
        """Another pace and another choice for the same receivers."""
        self._config = config
        least = {sink.id: SEVERITIES[sink.min_severity] for sink in config.trap_sink}
        for task in self.tasks:
            task.least = least[task.sink.id]
            task.pace.configure(config.traps.per_minute)

    def watch(self, rack: RackModel, snapshot: Snapshot, facts: Facts) -> None:
        """One tick: what has begun, ended or changed since the last goes into the queues."""
        now_ns, utc_ns = snapshot.t_mono_ns, snapshot.t_utc_ns
        before, self._before = self._before, snapshot
        mode_before, self._mode = self._mode, facts.mode
        changed = False
        notices = [
            notice if notice.kind == "foreign_change" else self._with_standing(notice, snapshot)
            for notice in changes(before, snapshot, mode_before, facts.mode)
        ]
        found = self.table.step(now_ns, utc_ns, conditions(rack, snapshot, facts, self.table.standing))
        for notice in found:
            log.warning(
                "alarm", alarm=notice.alarm, state=notice.state, severity=notice.severity.name, text=notice.text
            )
        notices += found
        if facts.model is not None and facts.model != self._model:
            if self._model is not None:
                text = f"model {facts.model} forecasts, in place of {self._model}"
                notices.append(Notice("model_promoted", "event", Severity.INFO, "", facts.model, text, utc_ns))
            self._model, changed = facts.model, True
        every_s = self._config.traps.heartbeat_s
        if every_s > 0.0 and now_ns - self._heartbeat_ns >= every_s * NS_PER_S:
            self._heartbeat_ns = now_ns
            text = "running" if facts.audit_head is None else f"running; audit head {facts.audit_head}"
            beat = Notice("heartbeat", "event", Severity.INFO, "", "", text, utc_ns)
            notices.append(self._with_standing(beat, snapshot))
        if notices or changed:
            self._tell(notices, changed=changed or bool(found))

    def _with_standing(self, notice: Notice, snapshot: Snapshot | None) -> Notice:
        state = SafeState.STATIC_SAFE if snapshot is None else snapshot.safe.state
        return replace(notice, mode=self._mode, safe_state=state, standing=self.table.severities())

    def _tell(self, notices: Sequence[Notice], *, changed: bool = False) -> None:
        """Into the queue of each receiver that wants to hear of it; the alarms that stand are saved with them."""
        if self._queue is None:
            return
        wanted = {
            task.sink.id: [notice for notice in notices if notice.severity >= task.least or notice.kind == "heartbeat"]
            for task in self.tasks
        }
        facts = {"standing": standing_to_json(self.table.standing), "model": self._model} if changed else {}
        saved = self._queue.put(wanted, facts)
        saved.add_done_callback(self._wake)

    def _wake(self, saved: "asyncio.Future[None]") -> None:
        if not saved.cancelled():
            saved.result()  # a defect, not a full disk: let it be seen
        for task in self.tasks:
            task.wake()

    async def test(self, sink: str | None) -> list[dict[str, Any]]:
        """A test notification to one receiver, or to all. Raises RpiError for an unknown one."""
        known = [task.sink.id for task in self.tasks]
        if sink is not None and sink not in known:
            raise RpiError(f"no trap sink is called {sink!r}; known: {', '.join(known) or 'none'}")
        return list(await asyncio.gather(*(task.test() for task in self.tasks if sink in (None, task.sink.id))))

    def status(self) -> list[dict[str, Any]]:
        return [task.status() for task in self.tasks]

    async def close(self) -> None:
        """Say goodbye and end; what was not acknowledged by then waits on disk for the next start."""
        if self._queue is None:
            return
        if self._before is not None:
            stopped = Notice("stopped", "event", Severity.WARNING, "", "", "stopped", self._clock.utc_ns())
            self._tell([self._with_standing(stopped, self._before)])
        if self._running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(task.drained() for task in self.tasks)), FAREWELL_S)
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for task in self.tasks:
            await task.close()
        await self._queue.close()


def test_once(config: Config, sink: str | None) -> list[dict[str, Any]]:
    """`Traps.test` where no daemon runs: counts as a start, so that receivers of SNMPv3 take the next one's messages.

    Raises RpiError where it would leave files that the daemon cannot write.
    """
    folder = config.path(config.daemon.state_dir)
    if config.trap_sink and not folder.is_dir():
        raise RpiError(f"{folder}: no such folder; start the daemon once, or create it for the daemon's user")
    if config.trap_sink and folder.stat().st_uid != os.geteuid():
        raise RpiError(f"{folder} belongs to {folder.owner()}; run this as that user (sudo -u {folder.owner()} ...)")

    async def ask() -> list[dict[str, Any]]:
        traps = Traps(config, SystemClock())
        try:
            await traps.open(deliver=False)
            return await traps.test(sink)
        finally:
            await traps.close()

    return asyncio.run(ask())
