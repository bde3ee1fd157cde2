"""The daemon: start in the order that is safe, tick every 100 ms, leave STATIC_SAFE behind."""

import asyncio
import contextlib
import gc
import math
import os
import signal
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from rpi_daemon import event_loop
from rpi_daemon._fastpath import core
from rpi_daemon.alarms import Facts
from rpi_daemon.assembly import build_pipeline, needs_model, settings
from rpi_daemon.audit import Audit, By
from rpi_daemon.cap_task import LOCKED_OUT_S
from rpi_daemon.capping import NO_PLAN
from rpi_daemon.clock import NS_PER_S, Clock, StepWatch, SystemClock
from rpi_daemon.config.schema import Config
from rpi_daemon.control import SOCKET_NAME, ControlServer
from rpi_daemon.devices import address_of, host_driver, used_pdus, write_budgets
from rpi_daemon.errors import DeviceError, ModelError, NotLeftError, RpiError
from rpi_daemon.features import BoardSetup
from rpi_daemon.guard import GuardConfig, HealthFlags, ladder, loadings
from rpi_daemon.heartbeats import Heartbeats, Pinger, progress
from rpi_daemon.host import folder_lock, notify, pdu_lock
from rpi_daemon.keeping import Keeping, calibration_digest
from rpi_daemon.known_boards import KnownBoards
from rpi_daemon.local_socket import give_to_group
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.operator import Operator
from rpi_daemon.pdu_task import Lease
from rpi_daemon.pipeline import DecisionDigest, Pipeline, Snapshot, TickInputs
from rpi_daemon.reasons import brief
from rpi_daemon.records import (
    TICK_NS,
    CapPlan,
    CapReport,
    Mode,
    PduReading,
    PduReport,
    RackModel,
    Readings,
    SafeState,
    SafeStatus,
)
from rpi_daemon.reload import Reload
from rpi_daemon.roles import group_id
from rpi_daemon.safe_limits import SafeLimits
from rpi_daemon.score import MeanWeights, RunScore
from rpi_daemon.settle import SettleTimes
from rpi_daemon.telemetry_task import TelemetryTasks
from rpi_daemon.trap_task import Traps

if TYPE_CHECKING:
    from rpi_daemon.recording import Recorder
    from rpi_daemon.retrain.standing import StandingModel
    from rpi_daemon.retrain.task import Learning
    from rpi_daemon.sensing import BoardLink

SETTLE_FILE = "settle-times.json"
WINDOW_GRACE_NS = 30_000_000  # how long a tick waits for a window that is late
COLLECT_TICKS = 100
LATE_TICK_NS = 150_000_000  # from one tick to the next; more means that a window went by
OVERRUN_TICKS = 3  # late ticks in a row that hold the limits
BREATH_S = 0.005  # after each tick for PDU tasks, signals, requests, however late: the next window is 95 ms away
STOP_TIMEOUT_S = 5.0
DEVICE_DEFAULT_S = 5.0  # all PDUs silent for this long; until then the limits hold, as for one of them
BEAT_S = 0.25  # of the event loop itself
LOOP_S = 2.0  # without a turn: 20 ticks, or 8 of a sampler on a silent line; what the loop may wait for takes a tenth
DISK_JOB_S = 60.0  # of a thread that writes, apart from the disk: a minute of 48 outlets is written in milliseconds
START_S = 60.0  # for boards to describe themselves and a model to be loaded; the limits are STATIC_SAFE meanwhile
STOP_S = 20.0  # closing files may block the loop; systemd's own patience with a stop is as long
WIRE_S = 30.0  # the longest batch or poll: a device that answers each message, but only just in time
TICK_HISTORY = 36_000  # tick durations kept for the percentiles: an hour


log = structlog.get_logger("rpi_daemon")


def run_service(config: Config, *, record: Path | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises RpiError when it cannot start."""
    os.umask(0o027 | os.umask(0o077))  # what we write is for our group at most, whoever started us
    with logging_to_stderr(config.daemon.log_level, config.daemon.log_format):
        return event_loop.run(Service(config, record=record).run())


class Service:
    """One daemon. `run` is its whole life; everything else is called from its loop."""

    def __init__(self, config: Config, *, clock: Clock | None = None, record: Path | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.state_dir = config.path(config.daemon.state_dir)
        self.runtime_dir = config.path(config.daemon.runtime_dir)
        guard = settings(GuardConfig, config.guard)
        self.audit = Audit(self.state_dir, self.clock, keep_days=config.audit.keep_days)
        self.limits = SafeLimits(config, guard, self.clock, self.audit, heard=self._count)
        self.boards: list[BoardLink] = []
        self.lowest_caps_w: dict[str, float] = {}  # that were wanted
        self.score = RunScore(self.limits.rack)
        self.digest = DecisionDigest()
        self.snapshot: Snapshot | None = None
        self.started_ns = self.clock.mono_ns()
        self.loop_started_ns = 0
        self.loop_started_cpu_s = 0.0
        self.model_refused: str | None = None  # the reason
        self.tick_ms: deque[float] = deque(maxlen=TICK_HISTORY)
        self.write_ms: deque[float] = deque(maxlen=TICK_HISTORY)
        self.weights = MeanWeights()
        self.writes = self.writes_verified = self.writes_refused = 0
        self.standing: StandingModel | None = None  # None: no network is wanted
        self.learning: Learning | None = None
        self._record_dir = record
        self._recorder: Recorder | None = None
        self._saving: asyncio.Task[None] | None = None
        self.operator = Operator(self)
        self.reload = Reload(self)
        self.traps = Traps(config, self.clock)
        self.telemetry = TelemetryTasks(config, self.clock, host_driver)
        self.keeping = self._keeping()
        self._board_of = {outlet: board.id for board in config.board for outlet in board.currents()}
        self.heartbeats = Heartbeats()
        self.pinger = Pinger(self.heartbeats, self.clock)
        self._turned_ns = self._ticked_ns = self.started_ns
        self._late_ticks = 0
        self._was_killed = False
        self._wall = StepWatch()
        self._stopping = asyncio.Event()
        self._event_fd = -1
        self._stack = contextlib.AsyncExitStack()

    # -- life

    async def run(self, *, seconds: float | None = None) -> int:
        """Start, tick (for `seconds`, or until told to stop), stop; returns the exit code.

        STATIC_SAFE is verified before the model is loaded. A PDU that was controlled before gets it at once; one that is
        met for the first time only after every board has answered, so that a mistaken configuration writes nothing.
        """
        limits = self.limits
        async with self._stack:
            self._stack.callback(self.pinger.stop)  # the very last: a disk may take its time to close files
            self._prepare()
            self._begin_pinging()
            limits.go_on_after_crash()
            boards = None
            if await limits.open_pdus(self._stack):
                boards = self._begin_boards()
                await boards
            limits.save_found(replace(limits.found, given_back=limits.released))
            limits.save_standing()
            await limits.static_safe("start")
            limits.save_standing()  # a PDU may have denied every write
            limits.say_static_safe()
            boards = boards or self._begin_boards()
            control = ControlServer(
                self.runtime_dir / SOCKET_NAME,
                int(self.config.daemon.socket_mode, 8),
                self.operator.answer,
                self.operator.groups,
                group=self._readers(),
            )
            await control.open()
            self._stack.push_async_callback(control.close)
            self._stack.push_async_callback(self.traps.close)
            await self.traps.open()
            self._stack.push_async_callback(self.telemetry.close)
            await self.telemetry.open()
            notify("READY=1")
            pipeline = self.pipeline = await self._built(boards)
            limits.open_caps(self._stack, self.settle.caps)
            self._begin_learning()
            running = [asyncio.create_task(task.run(), name=f"pdu {pdu}") for pdu, task in limits.tasks.items()]
            running += [asyncio.create_task(task.run(), name=f"cap {load}") for load, task in limits.cap_tasks.items()]
            if seconds is not None:
                asyncio.get_running_loop().call_later(seconds, self._stopping.set)
            try:
                self._watch_loops({task.get_name(): task for task in running})
                await self._loop(pipeline, running)
            finally:
                notify("STOPPING=1")
                with _come_what_may("say stopping"):
                    self._say_stopping()
                await self.operator.close()
                self.heartbeats.dismiss_all()
                self.heartbeats.watch("loop", STOP_S, lambda: self._turned_ns)
                limits.lease = None
                if self.learning is not None:
                    self.learning.stop()
                for task in limits.tasks.values():
                    task.stop()
                for cap_task in limits.cap_tasks.values():
                    cap_task.stop()
                await asyncio.wait(running, timeout=STOP_TIMEOUT_S)
                await _end(running)
                left = False
                with _come_what_may("caps"):
                    left = await limits.leave_caps(pipeline.capping.static_safe())
                left = await self._leave() and left
                self._note_settle_times()
                self.settle.save()
                await limits.end_saving()
                if self._stopping.is_set():  # else a defect has ended the loop: a crash, whatever stands now
                    limits.save_ended()
        return 0 if left else NotLeftError.exit_code

    def _prepare(self) -> None:
        """Folders, locks, signals: before anything is touched."""
        for folder in (self.state_dir, self.runtime_dir):
            try:
                folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            except OSError as error:
                raise RpiError(
                    f"{folder}: {error.strerror}; create it, or change daemon.state_dir / runtime_dir"
                ) from None
            if folder.stat().st_mode & stat.S_IWOTH:
                raise RpiError(
                    f"{folder}: everybody may write there, also the kill switch and found limits; chmod o-w it"
                )
        self._stack.enter_context(folder_lock(self.runtime_dir, "runtime_dir"))
        if self.state_dir != self.runtime_dir:
            self._stack.enter_context(folder_lock(self.state_dir, "state_dir"))
        if self.keeping is not None:
            self.keeping.open()
            self._stack.callback(self.keeping.close)
        begun = {"rack": self.config.rack.id, "mode": self.config.daemon.mode, "sha256": self.config.sha256}
        self.audit.open(**begun)
        self._stack.callback(self.audit.close)
        for address, pdu_id in {
            address_of(pdu): pdu.id for pdu in used_pdus(self.config)
        }.items():  # a chain has one address
            self._stack.enter_context(pdu_lock(pdu_id, address))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload.hang_up)
        self._stack.push_async_callback(self.reload.close)
        loop.add_signal_handler(signal.SIGUSR1, self.limits.engage_kill_switch, "SIGUSR1")
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stack.callback(os.close, self._event_fd)
        self.limits.read_found()
        self.limits.repair_found()
        self.settle = SettleTimes(self.state_dir / SETTLE_FILE)

    def _begin_pinging(self) -> None:
        """From here on systemd hears of us while the event loop goes round."""
        self.heartbeats.watch("loop", LOOP_S, lambda: self._turned_ns)
        self.pinger.start()
        turning = asyncio.create_task(self._turn(), name="turns")
        self._stack.push_async_callback(_end, [turning])

    async def _turn(self) -> None:
        while True:
            self._turned_ns = self.clock.mono_ns()
            await asyncio.sleep(BEAT_S)

    def _watch_loops(self, running: "Mapping[str, asyncio.Task[None]]") -> None:
        """All that must go round while the control loop runs; `running`: the tasks of devices by heartbeat.

        Not watched, for a restart would cost more than they do: traps and telemetry (their receivers and the forecast go
        on without), the control socket, the log's thread (it drops lines), the training (a child with its own limits).
        """
        watch, limits = self.heartbeats.watch, self.limits
        self._ticked_ns = self.clock.mono_ns()
        watch("control", LOOP_S, lambda: self._ticked_ns)
        for link in self.boards:
            turns = progress(link.sampler.turns, self.clock)
            watch(f"sampler {link.board.id}", LOOP_S, turns, thread_id=link.sampler.thread_id())
        longest_s = {f"pdu {pdu.id}": pdu.poll_s + WIRE_S for pdu in self.config.pdu}
        longest_s |= {f"cap {cap.load}": max(cap.poll_s, 2.0 * LOCKED_OUT_S) + WIRE_S for cap in self.config.cap}
        beats = {f"pdu {pdu}": partial(getattr, task, "beat_ns") for pdu, task in limits.tasks.items()}
        beats |= {f"cap {load}": partial(getattr, task, "beat_ns") for load, task in limits.cap_tasks.items()}
        for name, beat in beats.items():
            watch(name, longest_s[name], beat, task=running[name])
        writers = {"audit": self.audit.writer}
        if self.keeping is not None:
            writers["history"] = self.keeping.writer
        for name, writer in writers.items():
            # a disk that hangs costs records and raises; killed, the daemon would wait for it with the rack unattended
            busy = partial(getattr, writer, "busy_ns")
            watch(name, DISK_JOB_S, busy, thread_id=writer.thread_id(), machine_s=math.inf)

    def _keeping(self) -> Keeping | None:
        options = self.config.history
        folder = self.state_dir / options.folder
        return Keeping(folder, self.runtime_dir, self.clock, options) if options.enabled else None

    @property
    def recorded(self) -> bool:
        """Whether every input of this run is kept, to repeat it."""
        return self._record_dir is not None

    @property
    def readings(self) -> Readings | None:
        """What the outlets draw, as of the newest tick; None before the first."""
        return None if self.snapshot is None else self.snapshot.readings

    def _readers(self) -> int | None:
        """The group that may connect; our folder is made passable for it."""
        name = self.config.daemon.read_group
        group = None if name is None else group_id(name)
        if group is not None:
            give_to_group(self.runtime_dir, group)
        return group

    async def _built(self, boards: "asyncio.Task[list[BoardSetup]]") -> Pipeline:
        """Wait for the boards and load the model, whose library may hold the interpreter, and no ping goes, for seconds."""
        begun_ns = self.clock.mono_ns()
        self.heartbeats.watch("start", START_S, lambda: begun_ns)
        self.pinger.be_patient(START_S)
        pipeline = await asyncio.to_thread(self._pipeline, await boards)
        self.pinger.be_strict()
        self.heartbeats.dismiss("start")
        if self.keeping is not None:
            calibration = calibration_digest(self.boards)
            self.keeping.begin(self.limits.rack, calibration, pipeline.features.interval_ticks, self._board_of)
        return pipeline

    def _begin_boards(self) -> "asyncio.Task[list[BoardSetup]]":
        """Open them beside what follows; the start waits for them where a PDU is met for the first time, else the loop alone."""
        boards = asyncio.create_task(self._open_boards(), name="boards")
        self._stack.push_async_callback(_end, [boards])
        return boards

    async def _open_boards(self) -> list[BoardSetup]:
        """Open every port, then wait for the boards' descriptions."""
        from rpi_daemon.sensing import board_link  # not before STATIC_SAFE

        known = KnownBoards.read(self.state_dir)
        for board in self.config.board:
            link = board_link(self.config, board, self.runtime_dir, self.clock, self._event_fd)
            self._stack.callback(link.close)
            link.open(known.boards.get(board.id))
            self.boards.append(link)
            log.info("board.sampling", board=board.id, scheduling=link.sampler.scheduling())
        setups = await asyncio.gather(*(link.describe() for link in self.boards))  # one that is away takes 3 s
        now = {link.board.id: link.description for link in self.boards if link.description is not None}
        if now != known.boards:
            await asyncio.to_thread(KnownBoards(now).save, self.state_dir)
        return setups

    def _pipeline(self, setups: Sequence[BoardSetup]) -> Pipeline:
        clock: Clock = self.clock
        if self._record_dir is not None:
            from rpi_daemon.recording import Recorder

            self._recorder = Recorder(self._record_dir, self.boards, clock)
            self._stack.callback(self._recorder.close)
            clock = self._recorder.clock
        config, refused = self._with_standing_model()
        # with what was given back before a crash: each tick says what still is, and closed loop takes it up again
        rack = replace(self.limits.rack, opted_in=self.limits.opted_in)
        pipeline = build_pipeline(
            config, rack, setups, clock, writes_per_day=write_budgets(self.config), without_model=refused
        )
        if self.standing is not None:
            self.standing.attach(pipeline.forecaster)
        if self._recorder is not None:
            trained = None if refused or config.forecast.model == "shipped" else config.path(config.forecast.model)
            self._recorder.begin(config, rack.opted_in.tolist(), without_model=refused, trained=trained)
        return pipeline

    def _with_standing_model(self) -> tuple[Config, bool]:
        """The configuration with the model that stands, and whether the other experts must do without one."""
        if not needs_model(self.config):
            return self.config, False
        # onnxruntime takes 0.3 s to import: only once STATIC_SAFE is verified
        from rpi_daemon.retrain.standing import StandingModel, library_of, with_model

        self.standing = StandingModel(library_of(self.config), self.clock, recorded=self._recorder is not None)
        try:
            choice = self.standing.choose()
        except ModelError as error:
            self.model_refused = str(error)
            log.error(
                "model.refused", error=str(error), doing="the other experts forecast; replace the model and restart"
            )
            return self.config, True
        self.model_refused = "; ".join(choice.refused) or None
        return with_model(self.config, choice), False

    def _begin_learning(self) -> None:
        if self.standing is None or self.standing.name is None or self._recorder is not None:
            return
        from rpi_daemon.retrain.task import Learning

        self.learning = Learning(self.config, self.standing, self.clock, self.limits.rack.n)
        self._stack.push_async_callback(self.learning.close)
        self.learning.begin()

    # -- the loop

    async def _loop(self, pipeline: Pipeline, running: Sequence["asyncio.Task[None]"]) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()  # a full collection takes longer than a tick may; it comes after a tick instead, see `_after_tick`
        self.loop_started_ns = self.clock.mono_ns()
        self.limits.lease = lease = Lease(self.config.actuator.lease_s, self.loop_started_ns)
        self.loop_started_cpu_s = time.process_time()
        before_ns = self.loop_started_ns
        deadline_ns = before_ns + TICK_NS
        windows = self._windows()
        while not self._stopping.is_set():
            await asyncio.sleep(BREATH_S)
            newer = await self._wait_for_windows(windows, deadline_ns)
            woken = time.perf_counter()
            now_ns = self.clock.mono_ns()
            self._late_ticks = late_ticks(self._late_ticks, now_ns - before_ns)
            before_ns = self._ticked_ns = now_ns
            # A window sets the pace; without one the tick comes a period after the last deadline.
            deadline_ns = now_ns + TICK_NS + WINDOW_GRACE_NS if newer else max(deadline_ns + TICK_NS, now_ns)
            windows = self._windows()
            self.reload.take_over(pipeline)
            self._tick(pipeline, now_ns)
            lease.renew(now_ns)
            self.tick_ms.append((time.perf_counter() - woken) * 1e3)
            self._after_tick()
            for task in running:
                if task.done():
                    task.result()  # its exception ends the daemon: nobody else serves that PDU

    def _windows(self) -> list[int]:
        """The number of the newest complete window of each board."""
        return [link.ring.head // core.WINDOW_HOP for link in self.boards]

    async def _wait_for_windows(self, old: list[int], deadline_ns: int) -> bool:
        """Until every connected board has a newer window, or the deadline; True if windows ended the wait."""
        loop = asyncio.get_running_loop()
        while True:
            live = [i for i, link in enumerate(self.boards) if link.sampler.connected()]
            new = self._windows()
            if live and all(new[i] > old[i] for i in live):
                return True
            left_s = (deadline_ns - self.clock.mono_ns()) / NS_PER_S
            if left_s <= 0.0 or self._stopping.is_set():
                return False
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._event_fd, _resolve, ready)
            try:
                await asyncio.wait_for(ready, left_s)
                os.eventfd_read(self._event_fd)
            except TimeoutError:
                return False
            finally:
                loop.remove_reader(self._event_fd)

    def _tick(self, pipeline: Pipeline, now_ns: int) -> None:
        reports = tuple(report for task in self.limits.tasks.values() for report in task.take_reports())
        for report in reports:
            self._count(report)
        killed = self.limits.killed()
        if killed is not self._was_killed:
            self._was_killed = killed
            self.audit.note("kill_switch", By("kill switch"), {"engaged": killed})
        utc_ns = self.clock.utc_ns()
        if by_s := self._wall.look(self.clock.mono_ns(), utc_ns):
            log.warning("clock.stepped", by_s=round(by_s, 3))
        inputs = TickInputs(
            now_ns=now_ns,
            utc_ns=utc_ns,
            mode=Mode.ADVISORY if killed else self.limits.mode,
            flags=self._flags(),
            reports=reports,
            hints=tuple(self.operator.hints),
            ceilings=self.operator.ceilings_at(now_ns),
            acknowledged=tuple(self.operator.acknowledged),
            released=self.limits.released,
            cap_reports=self._cap_reports(),
            host_readings=self.telemetry.take_readings(),
        )
        self.operator.hints.clear()
        self.operator.acknowledged.clear()
        snapshot = pipeline.step(inputs)
        for desired in snapshot.desired:
            self.limits.tasks[desired.pdu].submit(desired, snapshot.readings.t_mono_ns)
        note_lowest_caps(self.lowest_caps_w, pipeline.capping.names, snapshot.cap_plan)
        for cap in snapshot.cap_plan.desired:
            self.limits.cap_tasks[cap.load].submit(cap)
        self.digest.add(snapshot)
        if self._recorder is not None:
            self._recorder.add(inputs, pipeline.features.ends, self.digest.hexdigest())
        self._log_changes(snapshot)
        self.snapshot = snapshot
        self.limits.measured = snapshot.readings

    def _after_tick(self) -> None:
        """What may wait until the limits are on their way."""
        assert self.snapshot is not None
        snapshot = self.snapshot
        self.score.update(snapshot.readings, snapshot.residual)
        self.weights.update(snapshot.weights, snapshot.readings.valid)
        for link in self.boards:
            link.maintain()
        self.traps.watch(self.limits.rack, snapshot, self._facts())
        if owners := self.pipeline.capping.owners:
            self.limits.owners_caps(owners)
            owners.clear()
        self.limits.save_waiting()
        if self.keeping is not None:
            self.keeping.tick(snapshot)
        if self.learning is not None:
            self.learning.tick(self.pipeline.forecast_input, self.pipeline.forecaster)
        if self.score.ticks % COLLECT_TICKS == 0:
            gc.collect()
            if self.learning is not None:
                self.learning.look(_load(self.limits.rack, snapshot), snapshot.safe.state is SafeState.NORMAL)
            self.limits.keep_kill_switch()
            self._note_settle_times()
            if self.settle.worth_saving() and (self._saving is None or self._saving.done()):
                self._saving = asyncio.create_task(asyncio.to_thread(self.settle.save), name="settle times")

    def _facts(self) -> Facts:
        """What alarms need beyond the snapshot."""
        model = self.pipeline.forecaster.model
        return Facts(
            mode=self.limits.mode,
            killed=self.limits.killed(),
            history_failing=self.keeping.failing if self.keeping is not None else None,
            set_aside=self.audit.set_aside + (self.keeping.set_aside if self.keeping is not None else 0),
            audit_head=str(self.audit.head) if self.audit.head.seq else None,
            model=None if model is None else f"{model.name} {model.sha256[:12]}",
            model_refused=self.model_refused,
            boards_absent=frozenset(link.board.id for link in self.boards if not link.sampler.connected()),
            board_of=self._board_of,
            config_refused=self.reload.refused,
        )

    def _flags(self) -> HealthFlags:
        away = frozenset(pdu for pdu, task in self.limits.tasks.items() if not task.reachable)
        utc_ns = self.clock.utc_ns()
        return HealthFlags(
            pdu_unreachable=away,
            calibration_expired=frozenset(link.board.id for link in self.boards if link.calibration_expired(utc_ns)),
            cap_unreachable=frozenset(load for load, task in self.limits.cap_tasks.items() if not task.reachable),
            all_pdus_unreachable=all(
                task.away_s() > DEVICE_DEFAULT_S
                for pdu, task in self.limits.tasks.items()
                if pdu in self.limits.rack.pdu_of
            ),
            tick_overrun=self._late_ticks > OVERRUN_TICKS,
            lease_expired=self.limits.lease is not None and self.limits.lease.expired(self.clock.mono_ns()),
            audit_not_durable=self.audit.look(),
        )

    def _count(self, report: PduReport) -> None:
        if report.reading is not None:
            self._note_limits(report.pdu, report.reading)
            self.limits.find_more(report.pdu, report.reading)
        self.write_ms.extend(_write_ms(report))
        for settle_s in _settle_s(report):
            self.settle.note_pdu(report.pdu, settle_s)
        for outcome in report.result.outcomes if report.result is not None else ():
            self.writes += 1
            self.writes_verified += outcome.verified
            self.writes_refused += outcome.refused is not None
            if outcome.verified:
                self.limits.note_static_safe(report.pdu, outcome)
            if outcome.read_back_w is not None and not outcome.disabled:
                self.score.limit_verified(
                    self.limits.index(report.pdu, outcome.outlet),
                    outcome.read_back_w,
                    outcome.t_verified_ns or self.clock.mono_ns(),
                )

    def _cap_reports(self) -> tuple[CapReport, ...]:
        """What the servers' tasks reported; a cap that is met for the first time is the found one, and is to be saved."""
        reports: list[CapReport] = []
        for load, task in self.limits.cap_tasks.items():
            for report in task.take_reports():
                if report.reading is not None and self.limits.find_cap(load, report.reading):
                    reports.append(CapReport(load, found=report.reading))
                reports.append(report)
        return tuple(reports)

    def _note_settle_times(self) -> None:
        if self.snapshot is not None:
            measured = zip(self.pipeline.capping.names, self.snapshot.caps.settle_s, strict=True)
            self.settle.caps |= {load: float(s) for load, s in measured if not math.isnan(s)}

    def _note_limits(self, pdu: str, reading: PduReading) -> None:
        for number, state in reading.limits.items():
            if f"{pdu}/{number}" not in self.limits.rack.outlet_ids:
                continue  # it meters for other outlets
            known = state.limit_w is not None and state.enabled is not False
            self.score.limit_seen(self.limits.index(pdu, number), state.limit_w if known else None)

    def _log_changes(self, snapshot: Snapshot) -> None:
        before = self.snapshot
        if before is None or _standing(before.safe) != _standing(snapshot.safe):
            log.warning("state", state=snapshot.safe.state.name, causes=brief(snapshot.safe.causes))
        log_overloads(self.limits.rack, before, snapshot)
        for name in snapshot.foreign:
            log.warning("limit.foreign_change", outlet=name)
        for name in snapshot.foreign_caps:
            log.warning("cap.foreign_change", load=name)
        for cap in snapshot.cap_plan.desired:
            log.info(
                "cap",
                load=cap.load,
                from_w=_round(cap.from_w),
                to_w=_round(cap.cap_w),
                reason=cap.reason,
                rule=cap.rule,
                request_w=_round(cap.request_w),
                grant_w=_round(cap.grant_w),
            )
        for desired in snapshot.desired:
            for d in desired.decisions:
                log.info(
                    "limit",
                    outlet=self.limits.rack.outlet_ids[d.outlet],
                    kind=snapshot.in_force.kind[d.outlet].value,
                    from_w=_round(d.from_w),
                    to_w=_round(d.to_w),
                    reason=d.reason,
                    rule=d.rule,
                    request_w=_round(d.request_w),
                    margin_w=_round(d.margin_w),
                    forecast_w=_round(d.forecast_w),
                    protective=d.protective,
                )

    def _say_stopping(self) -> None:
        """From here on the safe state is STATIC_SAFE, in status, log and traps, until the process is gone."""
        if self.snapshot is None:
            return
        flags = replace(self._flags(), stopping=True)
        snapshot = replace(self.snapshot, desired=(), foreign=(), foreign_caps=(), cap_plan=NO_PLAN)
        snapshot = replace(snapshot, safe=ladder(snapshot.safe, self.clock.mono_ns(), flags))
        self._log_changes(snapshot)
        self.traps.watch(self.limits.rack, snapshot, self._facts())
        self.snapshot = snapshot

    async def _leave(self) -> bool:
        """STATIC_SAFE in every opted-in outlet, verified; False where it should be and is not.

        A limit that cuts off needs the draw of now: many a device does not meter what it limits.
        """
        with _come_what_may("draws"):
            await self._read_meters()
            self.limits.known = self.pipeline.features.step(self.clock.mono_ns(), self.clock.utc_ns())
        try:
            await self.limits.static_safe("stop")
        except RpiError as error:
            log.error("static_safe.not_left", error=str(error))
            return False
        finally:
            self._keep_what_stands()
        if not self.limits.differs:
            log.info("static_safe.left", outlets=int(self.limits.rack.opted_in.sum()))
        return True

    def _keep_what_stands(self) -> None:
        if self.keeping is not None:
            for pdu, reading in self.limits.stands.items():
                self.keeping.left(pdu, reading.limits)

    async def _read_meters(self) -> None:
        """One more poll of the PDUs and meters that tell what outlets elsewhere draw; a silent one tells nothing."""
        meters = {o.meter.partition("/")[0] for o in self.config.outlets() if o.meter.partition("/")[0] != o.pdu}
        asked = [pdu for pdu in self.limits.tasks if pdu in meters]
        found = await asyncio.gather(*(self.limits.drivers[pdu].read() for pdu in asked), return_exceptions=True)
        for pdu, reading in zip(asked, found, strict=True):
            if isinstance(reading, PduReading):
                self.pipeline.features.observe(pdu, reading)
            elif not isinstance(reading, DeviceError):
                raise reading


def late_ticks(before: int, gap_ns: int) -> int:
    """Late ticks in a row, one more tick taken in. One that comes at once behind a late one makes up for it and proves nothing."""
    if gap_ns > LATE_TICK_NS:
        return before + 1
    return before if gap_ns < TICK_NS // 2 else 0


@contextlib.contextmanager
def _come_what_may(step: str) -> Iterator[None]:
    """What fails here, perhaps the very defect that ends the daemon, must not keep STATIC_SAFE from the rack."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.error("stop.defect", step=step, error=repr(error))


async def _end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Cancel what still runs and wait for it; whoever needed a result has it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _settle_s(report: PduReport) -> set[float]:
    """From a batch's first message to its read-back, s."""
    outcomes = report.result.outcomes if report.result is not None else ()
    spans = [(o.t_verified_ns - o.t_sent_ns) / NS_PER_S for o in outcomes if o.t_verified_ns is not None]
    return {max(spans)} if spans else set()


def _write_ms(report: PduReport) -> set[float]:
    """From the newest scan behind a decision to its verified write: one duration per batch that a tick asked for."""
    if report.result is None or report.measured_ns is None:
        return set()
    verified = {outcome.t_verified_ns for outcome in report.result.outcomes} - {None}
    return {(t_ns - report.measured_ns) / 1e6 for t_ns in verified if t_ns is not None}


def note_lowest_caps(lowest_w: dict[str, float], loads: Sequence[str], plan: CapPlan) -> None:
    """Keep the lowest cap that was wanted of each load, written or not."""
    for load, wanted_w in zip(loads, plan.wanted_w.tolist(), strict=False):
        if math.isfinite(wanted_w):
            lowest_w[load] = min(lowest_w.get(load, math.inf), wanted_w)


def log_overloads(rack: RackModel, before: Snapshot | None, snapshot: Snapshot) -> None:
    """One line when it begins and one when it is over: the ladder keeps a cause until it was away for a while."""
    was, now = _overloads(before), _overloads(snapshot)
    if was == now:
        return
    for item in loadings(rack, snapshot.readings):
        if item.overload and item.constraint in now - was:
            log.error(
                "overload",
                constraint=item.constraint,
                draw=_round(item.draw),
                rating=item.rating,
                unit=item.unit,
            )
    for name in sorted(was - now):
        log.warning("overload.over", constraint=name)


def _load(rack: RackModel, snapshot: Snapshot) -> float | None:
    """The highest part of a constraint's derated rating that is drawn; None where a reading is missing."""
    if not snapshot.readings.valid.all():
        return None
    return max((item.draw / (item.rating * item.derate) for item in loadings(rack, snapshot.readings)), default=None)


def _overloads(snapshot: Snapshot | None) -> frozenset[str]:
    causes = snapshot.safe.causes if snapshot is not None else ()
    return frozenset(cause.removeprefix("overload:") for cause in causes if cause.startswith("overload:"))


def _standing(safe: SafeStatus) -> tuple[SafeState, frozenset[str]]:
    """The state and the kinds of its causes: a change of either is worth a line, one more outlet of the same kind is not."""
    return safe.state, frozenset(cause.partition(":")[0] for cause in safe.causes)


def _round(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 1)
