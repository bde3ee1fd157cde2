"""Signs of life of every loop; a thread of its own pings systemd's watchdog while all of them are fresh."""

import asyncio
import contextlib
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.host import notify

LOOK_S: Final = 0.5  # between two looks at the most; a quarter of the time that systemd waits where that is less
MACHINE_S: Final = 20.0  # of silence that the machine caused: beyond it a restart, slow as it will be, is worth it
SUSPENDED_S: Final = 1.0  # a shorter sleep of the machine is not worth a line
PINGER_PRIORITY: Final = 1  # SCHED_FIFO: before everything that is not real-time, after the samplers

Last = Callable[[], int | None]  # CLOCK_MONOTONIC ns of the newest sign of life; None: there is nothing to do

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """What the kernel says of a thread: its state (proc(5)), how long it ran and how long it waited for a processor."""

    state: str
    ran_ns: int
    waited_ns: int


def thread_times(thread_id: int) -> ThreadTimes | None:
    """None where the kernel does not tell: then nothing of a silence is the machine's."""
    folder = Path(f"/proc/self/task/{thread_id}")
    try:
        ran, waited, _ = (folder / "schedstat").read_text().split()
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return ThreadTimes(state, int(ran), int(waited))


def machine_ns(before: ThreadTimes | None, now: ThreadTimes | None, interval_ns: int) -> int:
    """How much of an interval the thread did not get from the machine: it waited for a processor, or for a disk.

    The kernel books a wait only when it ends, so all that a runnable thread did not run is taken for one. A thread
    that spins uses its time and one that is blocked waits for neither.
    """
    if before is None or now is None:
        return 0
    ran_ns = now.ran_ns - before.ran_ns
    if now.state in "RD":
        return max(0, interval_ns - ran_ns)
    return min(interval_ns, now.waited_ns - before.waited_ns)


@dataclass(slots=True)
class Heart:
    """One loop, and for how long it has been silent: by its own fault, and because of the machine."""

    name: str
    longest_s: float
    last: Last
    thread_id: int
    task: "asyncio.Task[Any] | None"
    machine_s: float
    seen_ns: int | None = None
    silent_ns: int = 0
    excused_ns: int = 0

    def look(self, now_ns: int, interval_ns: int, excused_ns: int) -> None:
        """Take in an interval of which the machine is to blame for a part."""
        last_ns = self.last()
        if last_ns is None or last_ns != self.seen_ns:
            self.silent_ns = 0 if last_ns is None else min(interval_ns, max(0, now_ns - last_ns))
            self.excused_ns = 0
        else:
            self.silent_ns += interval_ns - excused_ns
            self.excused_ns += excused_ns
        self.seen_ns = last_ns

    @property
    def silence_s(self) -> float:
        return (self.silent_ns + self.excused_ns) / NS_PER_S

    @property
    def hangs(self) -> bool:
        """Silent for longer than it may be: by itself, or because of a machine that does not get better."""
        return self.silent_ns > self.longest_s * NS_PER_S or self.silence_s > self.longest_s + self.machine_s

    @property
    def starves(self) -> bool:
        """Silent for longer than it may be, but not by its own fault."""
        return not self.hangs and self.silence_s > self.longest_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hearts that are silent for too long, by name, with their silence in seconds."""

    hangs: Mapping[str, float] = field(default_factory=dict)
    starves: Mapping[str, float] = field(default_factory=dict)


class Heartbeats:
    """Every loop that must go round. `watch` and `dismiss` by the control loop's thread, `look` by one other."""

    def __init__(self, times: Callable[[int], ThreadTimes | None] = thread_times) -> None:
        self.verdict = Verdict()
        self._hearts: dict[str, Heart] = {}
        self._times = times
        self._looked_ns: int | None = None
        self._before: dict[int, ThreadTimes | None] = {}

    def watch(
        self,
        name: str,
        longest_s: float,
        last: Last,
        *,
        thread_id: int | None = None,
        task: "asyncio.Task[Any] | None" = None,
        machine_s: float = MACHINE_S,
    ) -> None:
        """From here on it must not be silent for more than `longest_s`, nor `machine_s` more because of the machine.

        `last` is asked from another thread. `thread_id`: the kernel's, by default the caller's. `task`: shown when it hangs.
        """
        self._hearts[name] = Heart(name, longest_s, last, thread_id or threading.get_native_id(), task, machine_s)

    def dismiss(self, name: str) -> None:
        """It may be silent now."""
        self._hearts.pop(name, None)

    def dismiss_all(self) -> None:
        """All may be silent now."""
        self._hearts = {}

    def heart(self, name: str) -> Heart | None:
        """None: it was dismissed."""
        return self._hearts.get(name)

    def look(self, now_ns: int, period_ns: int) -> Verdict:
        """Once a period. What this look is late is nobody's silence: whoever kept it waiting kept all the others, too."""
        interval_ns = min(2 * period_ns, now_ns - self._looked_ns if self._looked_ns is not None else 0)
        hearts = tuple(self._hearts.values())
        times = {thread_id: self._times(thread_id) for thread_id in {heart.thread_id for heart in hearts}}
        for heart in hearts:
            lost_ns = machine_ns(self._before.get(heart.thread_id), times[heart.thread_id], interval_ns)
            heart.look(now_ns, interval_ns, lost_ns)
        self._looked_ns, self._before = now_ns, times
        self.verdict = Verdict(
            {heart.name: round(heart.silence_s, 3) for heart in hearts if heart.hangs},
            {heart.name: round(heart.silence_s, 3) for heart in hearts if heart.starves},
        )
        return self.verdict


def progress(count: Callable[[], int], clock: Clock) -> Last:
    """The sign of life of what counts its turns and knows no time: when it was last seen to have moved."""
    seen = [-1, 0]

    def last() -> int:
        now = count()
        if now != seen[0]:
            seen[:] = now, clock.mono_ns()
        return seen[1]

    return last


class Pinger:
    """Tells systemd that the daemon lives (sd_notify(3)). While a loop hangs it is told nothing but, once, to act at once.

    It has no other way to keep the daemon alive: without this thread systemd hears nothing, and acts by itself. A thread
    that holds the interpreter in C stops this one, too.
    """

    def __init__(self, heartbeats: Heartbeats, clock: Clock, tell: Callable[[str], None] = notify) -> None:
        self._heartbeats = heartbeats
        self._clock = clock
        self._tell = tell
        self.waits_s = watchdog_s()
        self._period_s = min(LOOK_S, self.waits_s / 4.0)
        self._asleep_ns = _asleep_ns()
        self._before = Verdict()
        self._end = threading.Event()
        # A daemon thread: it must not keep a process that ends.
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Safe to call when it was never started."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def be_patient(self, seconds: float) -> None:
        """Systemd waits for so long between two pings, until `be_strict`: where one step holds the interpreter."""
        if math.isfinite(self.waits_s):
            self._tell(f"WATCHDOG_USEC={round(seconds * 1e6)}")

    def be_strict(self) -> None:
        """Systemd waits for as long as its unit says."""
        self.be_patient(self.waits_s)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # no right to real time: as everybody else
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PINGER_PRIORITY))
        while not self._end.wait(self._period_s):
            self.look()

    def look(self) -> None:
        """One look at all hearts, and a word to systemd."""
        verdict = self._heartbeats.look(self._clock.mono_ns(), round(self._period_s * NS_PER_S))
        before, self._before = self._before, verdict
        if not verdict.hangs:
            self._tell("WATCHDOG=1")
        elif not before.hangs and math.isfinite(self.waits_s):  # systemd would act on it without a watchdog, too
            self._tell("WATCHDOG=trigger")
        self._say(before, verdict)

    def _say(self, before: Verdict, verdict: Verdict) -> None:
        for name in sorted(verdict.hangs.keys() - before.hangs.keys()):
            heart = self._heartbeats.heart(name)
            if heart is None:
                continue
            log.error(
                "watchdog.withheld",
                heartbeat=name,
                silent_s=verdict.hangs[name],
                machine_s=round(heart.excused_ns / NS_PER_S, 3),
                at=_stack(heart),
            )
        if before.hangs and not verdict.hangs:
            log.warning("watchdog.again", was=sorted(before.hangs))
        if verdict.starves and not before.starves:
            log.warning("watchdog.starved", silent_s=dict(verdict.starves))
        asleep_ns = _asleep_ns()
        if asleep_ns - self._asleep_ns > SUSPENDED_S * NS_PER_S:
            log.warning("watchdog.suspended", seconds=round((asleep_ns - self._asleep_ns) / NS_PER_S, 1))
            self._asleep_ns = asleep_ns


def watchdog_s() -> float:
    """How long systemd waits for a ping (sd_watchdog_enabled(3)); infinite where it waits for none of this process."""
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or pid not in ("", str(os.getpid())):
        return math.inf
    return int(text) / 1e6


def _asleep_ns() -> int:
    """For how long the machine was suspended since it was booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _stack(heart: Heart) -> list[str]:
    """Where it is, innermost last: what its task awaits, else where its thread stands; nothing of a compiled thread."""
    if heart.task is not None:
        return _awaited(heart.task)
    idents = {thread.native_id: thread.ident for thread in threading.enumerate()}
    frame = sys._current_frames().get(idents.get(heart.thread_id) or -1)
    return [] if frame is None else [_place(f) for f in traceback.extract_stack(frame)]


def _awaited(task: "asyncio.Task[Any]") -> list[str]:
    found: list[str] = []
    waiting: Any = task.get_coro()
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        found.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = waiting.cr_await
    return found


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} {frame.name}"
