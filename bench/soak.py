"""All faults at random, for hours: invariants checked at every tick from what the devices really hold and really draw.

`--seconds` of virtual time run the daemon's real Service against simulated devices on an event loop of its own time
(`virtual_time.py`); the same seed is the same run. A violation ends the run, prints the seed and the last minute.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from random import seed as seed_all
from typing import Any
from unittest.mock import patch

import structlog
from common import ROOT, as_kept, new_parser, report
from soak_checks import CHECKS, RECOVERED_S, Checks, Violation, descriptors
from soak_defects import DEFECTS
from soak_faults import FAULTS, Begun
from soak_rack import OPTED_OUT, SoakRack, prepare
from soak_real import soak_real
from virtual_time import START_MONO_NS, VirtualClock, VirtualLoop, run_virtually

from rpi_daemon import sensing
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.rack import rack_model
from rpi_daemon.control import SOCKET_NAME
from rpi_daemon.devices import load_checked
from rpi_daemon.errors import RpiError
from rpi_daemon.guard import KILL_FILE
from rpi_daemon.log import Tee, listening
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import Mode, RackModel
from rpi_daemon.service import Service
from rpi_daemon.standing import Standing

RESULT = ROOT / "bench" / "results" / "soak.json"
STORM_S = (40.0, 150.0)  # faults begin at random ...
FAULT_EVERY_S = 2.5  # ... one in this time on average; then all end, and the rack must recover
SHOWN_S = 1.0  # what the last fault did has shown: a line stands still for 0.4 s, a cable is opened again within 0.3 s
LOOK_S = 0.05
LAST_S = 60.0  # of events that a violation is told with
RESTART_S = 1.0  # systemd's RestartSec
HANG_SEEN_S = 2.0  # a loop that stood still is seen to go on
DEFECTIVE = {  # events that tell of a defect
    "audit.broken", "board.defect", "history.defect", "stop.defect", "telemetry.ended", "traps.ended", "watchdog.withheld",
}  # fmt: skip
FULL_S = 3600.0  # from here on a check that was never applied, or a fault that never came, is a defect of the soak
START_S = 30.0  # a start may take this long where a device does not answer


class Violated(Exception):
    """An invariant did not hold."""


class Soak:
    """One run of one seed."""

    def __init__(
        self, folder: Path, seed: int, *, writes_per_day: int = 20_000, faults: Collection[str] = tuple(FAULTS)
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.clock = VirtualClock()
        self.rack = SoakRack(folder, self.clock, seed, writes_per_day)
        self.injected: Counter[str] = Counter()
        self.lives = self.failed_starts = 0
        self.board_rebooted = False
        self.recovered_s: list[float] = []
        self.limits_w: dict[str, float | None] = {}  # at the end
        self.events: deque[tuple[float, str]] = deque()
        self.service: Service | None = None
        self._rng = Random(seed)
        self._names = [name for name in FAULTS if name in faults]
        self._active: dict[tuple[str, str], Begun] = {}
        self._commands: set[asyncio.Task[None]] = set()
        self._life: asyncio.Task[int] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._state = "state"
        self._cut = False
        self._hung_ns = -(1 << 62)
        self._descriptors: Counter[str] | None = None

    # -- what faults ask for

    def kill_file(self) -> Path:
        return self.folder / self._state / KILL_FILE

    @contextlib.contextmanager
    def disk_free(self) -> Iterator[None]:
        """For what the soak itself writes while it keeps the disk full."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def release(self) -> None:
        """The kill switch is let go, as `resume` does it."""
        path = self.kill_file()
        with contextlib.suppress(FileNotFoundError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        self.command({"command": "resume"})  # one that the disk did not take stands in memory, and is kept later

    def hang(self, seconds: float) -> None:
        """Nothing of the daemon runs for so long; boards and their sampling go on."""
        end_ns = self.clock.mono_ns() + round(seconds * NS_PER_S)
        while self.clock.mono_ns() < end_ns:
            self.clock.advance_to(self.clock.mono_ns() + 20_000_000)
            self.rack.step()
            self.checks.sampled()
        for pdu in self.rack.pdus:
            self.checks.disturb(pdu)
        self._hung_ns = self.clock.mono_ns()
        self.checks.hung()

    def command(self, request: Mapping[str, object], *, refused: bool = False) -> None:
        """Ask the daemon something over its socket, as an operator would. `refused`: what must not be done."""
        self._beside(self._ask(request, refused))

    def hang_up(self) -> None:
        """SIGHUP. Outlets that leave closed loop by it are given back first."""
        self.checks.standing.reloading = self._opted_out_in_file() != bool(self.checks.standing.opted_out)
        self.loop.deliver(signal.SIGHUP)

    def _opted_out_in_file(self) -> bool:
        return OPTED_OUT in (self.folder / "config.toml").read_text(encoding="utf-8")

    def _reloaded(self, *, done: bool) -> None:
        standing, service = self.checks.standing, self.service
        if done and service is not None:
            standing.opted_out = self.checks.ours - {row.id for row in service.config.outlets() if row.closed_loop}
            standing.released -= standing.opted_out
        standing.reloading = done and self._opted_out_in_file() != bool(standing.opted_out)

    def start_second(self, *, own_folders: bool) -> None:
        """(h) Another daemon, which must find that it may not run."""
        self._beside(self._second(own_folders))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)

    async def _second(self, own_folders: bool) -> None:
        try:
            config = load_checked(self.folder / "config.toml")
            if own_folders:
                own = {"state_dir": "second/state", "runtime_dir": "second/run"}
                config = config.model_copy(update={"daemon": config.daemon.model_copy(update=own)})
            await Service(config, clock=self.clock).run()
        except RpiError as error:
            self.note(f"the second daemon: {error}")
        else:
            self.checks.violate("h", "a second daemon ran beside the first")

    def spoil(self, pattern: str, rng: Random) -> str | None:
        """Damage a file that the next daemon will find; None where there is none."""
        found = sorted((self.folder / self._state).glob(pattern))
        if not found:
            return None
        path = rng.choice(found)
        content = bytearray(path.read_bytes())
        if not content or rng.random() < 0.3:
            content = content[: rng.randint(0, len(content))]
        else:
            for _ in range(rng.randint(1, 30)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return f"{path.name} ({len(content)} bytes)"

    def write_config(self) -> None:
        """As it was at first, for the daemon that runs."""
        with self.disk_free():
            self.rack.write_config(self._state)

    def end_life(self, how: str) -> bool:
        """SIGTERM, or SIGKILL: then what it does from here on reaches neither disk nor wire. False where none runs."""
        if self._life is None or self._life.done() or not self._loop_runs():
            return False
        if how == "SIGTERM":
            self.loop.deliver(signal.SIGTERM)
            return True
        before, self._state = self._state, f"state-{self.lives}"
        shutil.copytree(self.folder / before, self.folder / self._state, symlinks=True)
        self._cut = True
        for pdu in self.rack.pdus.values():
            pdu.cut = True
        self.loop.forget_signals()
        self._life.cancel()
        return True

    # -- the run

    async def run(self, loop: VirtualLoop, seconds: float) -> None:
        """Storms and calms until the time is over; raises Violated."""
        self.loop = loop
        prepare(self.folder)
        config = load_checked(self.rack.write_config())
        await self.rack.start(config)
        self.checks = Checks(self.rack, config, rack_model(config))
        self.checks.newest, self.checks.state = self._newest, lambda: self.folder / self._state
        self.rack.on_write, self.rack.on_look = self.checks.wrote, self.checks.looked
        self.rack.on_notice = self.checks.noticed
        background = self._background = [loop.create_task(self.rack.turn()), loop.create_task(self._watch())]
        self._supervisor = loop.create_task(self._supervise())
        end_ns = self.clock.mono_ns() + round(seconds * NS_PER_S)
        try:
            await self._calm()
            while self.clock.mono_ns() < end_ns:
                left_s = (end_ns - self.clock.mono_ns()) / NS_PER_S
                await self._storm(min(self._rng.uniform(*STORM_S), left_s))
                await self._calm()
        finally:
            self.limits_w = self.rack.limits_w()
            self._end_all()
            self._supervisor.cancel()
            if self._life is not None and not self._life.done():
                with contextlib.suppress(KeyError):
                    loop.deliver(signal.SIGTERM)
                await asyncio.wait([self._life], timeout=20.0)
                self._life.cancel()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, self._supervisor, return_exceptions=True)
            await self.rack.stop()
            self._forget_daemon()

    async def _storm(self, seconds: float) -> None:
        end_ns = self.clock.mono_ns() + round(seconds * NS_PER_S)
        names, often = self._names, [FAULTS[name][0] for name in self._names]
        while self.clock.mono_ns() < end_ns:
            await asyncio.sleep(self._rng.expovariate(1.0 / FAULT_EVERY_S))
            self._check()
            self._begin(self._rng.choices(names, often)[0])

    def _begin(self, name: str) -> None:
        if self.service is None or not self.checks.standing.loop_runs:
            return
        if name in ("restart", "sigkill", "damaged_files", "second_daemon") and any(
            key[0] == "disk_full" for key in self._active
        ):
            return
        if name in ("mode", "restore") and any(begun.subject == "mode" for begun in self._active.values()):
            return
        if name == "disk_full" and any(key[0] == name for key in self._active):
            return
        begun = FAULTS[name][1](self, self._rng)
        if begun is None:
            return
        self.injected[name] += 1
        self.note(f"fault {name}: {begun.words}")
        if begun.end is not None:
            key = (name, begun.subject)
            self._active[key] = begun
            self.loop.call_later(begun.lasts_s, self._end, key, begun)

    def _end(self, key: tuple[str, str], begun: Begun) -> None:
        if self._active.get(key) is begun and begun.end is not None:
            del self._active[key]
            begun.end()
            self.note(f"over: {key[0]} {key[1]}")

    def _end_all(self) -> None:
        for key, begun in list(self._active.items()):
            self._end(key, begun)

    async def _calm(self) -> None:
        """(g) Faults end; the rack must recover."""
        self._end_all()
        self.note("calm")
        begun_ns = self.clock.mono_ns()
        why: str | None = "no tick yet"
        asked_ns = 0
        await asyncio.sleep(SHOWN_S)  # a loss is told by the frame after it
        while why is not None:
            await asyncio.sleep(0.2)
            self._check()
            now_ns = self.clock.mono_ns()
            if not self.checks.standing.loop_runs:
                if now_ns - begun_ns > START_S * NS_PER_S:
                    self.checks.violate("g", f"no daemon runs {START_S} s after all faults ended")
                    self._check()
                continue
            if now_ns - asked_ns > 5 * NS_PER_S:
                asked_ns = now_ns
                self.command({"command": "acknowledge"})
                if self.checks.standing.released or self.checks.standing.mode is Mode.ADVISORY:
                    self.command({"command": "mode", "mode": "closed_loop"})
            snapshot = self.checks.snapshot
            why = "no tick yet" if snapshot is None else self.checks.recovered(snapshot)
            if why is not None and now_ns - begun_ns > RECOVERED_S * NS_PER_S:
                self.checks.violate("g", f"{RECOVERED_S} s after all faults ended: {why}")
                self._check()
        self.checks.counts["calms"] += 1
        self.recovered_s.append((self.clock.mono_ns() - begun_ns) / NS_PER_S)
        self._look_at_losses()
        self.checks.look_at_audit()

    def _look_at_losses(self) -> None:
        """(f) Since this life first heard each board."""
        assert self.service is not None
        counted = sum(link.sampler.counters()["lost"] for link in self.service.boards)
        self.checks.look_at_losses(counted, self.rack.lost(), self.board_rebooted)

    # -- the daemon

    async def _supervise(self) -> None:
        """As systemd: another daemon when one ends."""
        while True:
            self.write_config()
            self._cut = False
            for pdu in self.rack.pdus.values():
                pdu.cut = False
            self._life = life = self.loop.create_task(self._live())
            await asyncio.wait([life])
            self.loop.forget_signals()  # nobody is there to take one before the next begins
            self._judge_end(life)
            self.checks.look_at_audit()
            del life
            self.service = None
            await asyncio.sleep(RESTART_S)
            self._look_at_descriptors()

    def _forget_daemon(self) -> None:
        """A daemon that has ended goes with its process; it lets no collection of garbage run but its own."""
        self._life = self.service = None
        for board in self.rack.boards.values():
            board.sampler = None
        self.loop.forget_signals()
        gc.unfreeze()
        gc.enable()
        gc.collect()

    def _look_at_descriptors(self) -> None:
        """(e) With all that was the daemon's gone."""
        self._forget_daemon()
        now = descriptors() - Counter(socket=self.rack.sockets())
        if self._descriptors is not None:
            self.checks.look_at_descriptors(self._descriptors, now)
        self._descriptors = now

    async def _live(self) -> int:
        config = load_checked(self.folder / "config.toml")
        self.lives += 1
        self.checks.begin_life()
        standing = self.checks.standing
        before = Standing.read(self.folder / config.daemon.state_dir)
        if before is None or before.ended:  # else what operators gave back stays so
            standing.mode, standing.released = Mode.CLOSED_LOOP, set()
        self.board_rebooted = False
        service = Service(config, clock=self.clock)
        self.service = service
        return await service.run()

    def _judge_end(self, life: "asyncio.Task[int]") -> None:
        error = None if life.cancelled() else life.exception()
        if life.cancelled() or self._cut:
            self.note("the daemon is gone")
            if error is not None and not isinstance(error, RpiError):
                self.checks.violate("h", f"while it was killed: {error!r}")
        elif error is None:
            self.note(f"the daemon has ended: {life.result()}")
        elif isinstance(error, RpiError) and (self._active or self.clock.mono_ns() - self._fault_ns() < 5 * NS_PER_S):
            self.failed_starts += 1
            self.note(f"the daemon did not start: {error}")
        else:
            self.checks.violate("h", f"the daemon ended by itself: {error!r}")

    def _fault_ns(self) -> int:
        return max(self.checks.disturbed_ns.values(), default=0)

    async def _ask(self, request: Mapping[str, object], refused: bool) -> None:
        standing = self.checks.standing
        writes = request["command"] in ("mode", "limit_restore")
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.folder / "run" / SOCKET_NAME))
        except OSError:
            return
        standing.asking = standing.asking or writes
        answer: dict[str, Any] = {}
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            with contextlib.suppress(ConnectionError, ValueError):
                answer = json.loads(await asyncio.wait_for(reader.readline(), 60.0))
        except TimeoutError:
            self.checks.violate("h", f"no answer to {request}")
        finally:
            writer.close()
            if writes:
                standing.asking = False
                self._stands(request, answer)
        if refused and answer.get("ok"):
            self.checks.violate("h", f"not refused: {request}")
        self.note(f"answer to {request['command']}: {str(answer)[:160] if not answer.get('ok') else 'ok'}")

    def _stands(self, request: Mapping[str, object], answer: Mapping[str, object]) -> None:
        """What a command that writes has made of the daemon; a restore that failed leaves what it names ours."""
        standing, service = self.checks.standing, self.service
        if service is None or not answer:
            return
        if request["command"] == "mode" and answer.get("ok"):
            standing.mode = Mode(str(answer["mode"]))
            standing.released = set(self.checks.ours) if standing.mode is Mode.ADVISORY else set()
        elif request["command"] == "limit_restore" and answer.get("ok"):
            standing.mode = Mode(str(answer["mode"]))
            standing.released |= {str(name) for name in request["outlets"]}  # type: ignore[attr-defined]
        else:
            standing.released = set(service.limits.released)

    # -- watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        checks, service = self.checks, self.service
        checks.sampled()
        self._look_at_standing()
        for name, pdu in self.rack.pdus.items():
            if pdu.disturbed():
                checks.disturb(name)
        checks.look_at_reads()
        checks.look_at_state()
        if service is not None and service.snapshot is not None and checks.standing.loop_runs:
            checks.ticked(service.snapshot, service.limits.rack)
            checks.look_at_ticks()

    def _loop_runs(self) -> bool:
        """Whether a daemon is ticking: before and after it STATIC_SAFE is written, and nothing else."""
        return self.service is not None and not self._cut and self.service.limits.lease is not None

    def _look_at_standing(self) -> None:
        self.checks.standing.loop_runs = self._loop_runs()
        self.checks.standing.killed = os.path.lexists(self.kill_file())

    def _newest(self) -> tuple[Snapshot, RackModel] | None:
        service = self.service
        self._look_at_standing()
        return None if service is None or service.snapshot is None else (service.snapshot, service.limits.rack)

    def _check(self) -> None:
        for task in (*self._background, self._supervisor):
            if task is not None and task.done():
                task.result()
        for defect in self.loop.defects:
            self.checks.violate("h", defect)
        if self.checks.violations:
            raise Violated

    def note(self, text: str) -> None:
        """For the last minute of events."""
        now_s = self.clock.seconds()
        self.events.append((now_s, text))
        while self.events and now_s - self.events[0][0] > LAST_S:
            self.events.popleft()

    def log_line(self, event: str, fields: Mapping[str, object]) -> None:
        """A line of the daemon's log; (h) no loop may be found to hang but one that was made to."""
        if event in ("reload.done", "reload.refused"):
            self._reloaded(done=event == "reload.done")
        hung = event == "watchdog.withheld" and self.clock.mono_ns() - self._hung_ns <= HANG_SEEN_S * NS_PER_S
        if event in DEFECTIVE and not hung and not self._cut:
            self.checks.violate("h", f"{event}: {fields}")
        told = " ".join(f"{key}={value}" for key, value in fields.items() if key != "level")
        self.note(f"  {event} {told[:240]}")


def soak(seed: int, seconds: float, **options: Any) -> tuple[Soak, list[Violation]]:
    """`options` as of `Soak`. One seed on virtual time; what did not hold is returned, and told with its last minute."""
    seed_all(seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    run = Soak(folder, seed, **options)
    structlog.configure(
        processors=[structlog.processors.add_log_level, Tee(logging.INFO), _drop],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    try:
        with listening(run.log_line), _link_of(run.rack), contextlib.suppress(Violated):
            run_virtually(lambda loop: run.run(loop, seconds), run.clock)
    finally:
        structlog.reset_defaults()
        shutil.rmtree(folder, ignore_errors=True)
    return run, run.checks.violations


def _link_of(rack: SoakRack) -> Any:
    """The daemon's way to its boards leads to the rack's."""
    return patch.object(sensing, "board_link", rack.link)


def _drop(*_: object) -> Any:
    raise structlog.DropEvent


def tell(run: Soak, violations: list[Violation]) -> None:
    """What was violated, and the minute before."""
    if not violations:
        return
    for t_s, text in run.events:
        print(f"  {t_s:10.2f} {text}", file=sys.stderr)
    for violation in violations:
        print(f"seed {run.seed}: ({violation.letter}) at {violation.t_s:.2f} s: {violation.text}", file=sys.stderr)


def self_test(name: str, seed: int = 1, seconds: float = 300.0) -> str | None:
    """Run with one defect of `DEFECTS`; None when its invariant has seen it, else what was seen."""
    defect = DEFECTS[name]
    with defect.broken():
        _, violations = soak(seed, seconds, writes_per_day=defect.writes_per_day, faults=defect.faults)
    seen = {violation.letter for violation in violations}
    return (
        None
        if defect.letter in seen
        else f"({defect.letter}) did not see that the daemon {defect.words}: {seen or 'nothing'}"
    )


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--self-test", action="store_true", help="break the daemon on purpose: each invariant must see it"
    )
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="of virtual time, all seeds together; 3600 if not given"
    )
    parser.add_argument("--each", type=float, default=600.0, help="of virtual time for each seed; 600 if not given")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; 1 if not given")
    parser.add_argument(
        "--real",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="then so long on real time, in processes of their own",
    )
    parser.add_argument("--keep", action="store_true", help=f"write the result to {RESULT.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.self_test:
        unseen = [why for name in DEFECTS if (why := self_test(name, options.seed)) is not None]
        print("\n".join(unseen) or f"{len(DEFECTS)} defects, each seen by its invariant")
        return 1 if unseen else 0
    seconds = 60.0 if options.quick else options.seconds
    rows: list[Mapping[str, Any]] = []
    more: dict[str, Any] = {}
    idle: list[str] = []
    if seconds > 0.0:
        each_s = min(options.each, seconds)
        rows, more = soak_seeds(range(options.seed, options.seed + max(1, round(seconds / each_s))), each_s)
        idle = _idle(more) if seconds >= FULL_S else []
    if options.real > 0.0:
        real = soak_real(options.seed, options.real)
        rows.append(real.row())
        more["injected_real"] = dict(sorted(real.injected.items()))
    found = sum(row["violations"] for row in rows)
    result = report("soak", rows, {"violations": float(found)}, options.json, more)
    for words in idle:
        print(words)
    if options.keep:
        RESULT.write_text(as_kept(result) + "\n", encoding="utf-8")
    return 1 if found or idle else 0


def soak_seeds(seeds: Sequence[int], each_s: float) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """A row for each seed; and of all together the faults, and how often each check was applied and skipped."""
    rows: list[Mapping[str, Any]] = []
    injected: Counter[str] = Counter()
    applied, skipped = Counter(dict.fromkeys(CHECKS, 0)), Counter(dict.fromkeys(CHECKS, 0))
    for seed in seeds:
        # every second seed has a budget of writes that a storm uses up
        run, violations = soak(seed, each_s, writes_per_day=20_000 if seed % 2 else 150)
        tell(run, violations)
        injected += run.injected
        applied.update(run.checks.applied)
        skipped.update(run.checks.skipped)
        rows.append(_row(run, violations))
        print(rows[-1], flush=True)
    for name, n in applied.items():
        print(f"({name}) applied {n} times, skipped {skipped[name]} times")
    return rows, {"injected": dict(sorted(injected.items())), "applied": dict(applied), "skipped": dict(skipped)}


def _idle(more: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What proves nothing in this run."""
    unapplied = [f"({name}) was never applied" for name, n in more["applied"].items() if not n]
    return unapplied + [f"{name} was never injected" for name in FAULTS if name not in more["injected"]]


def _row(run: Soak, violations: list[Violation]) -> dict[str, Any]:
    counts = run.checks.counts
    return {
        "seed": run.seed,
        "virtual_s": round((run.clock.mono_ns() - START_MONO_NS) / NS_PER_S),
        "faults": sum(run.injected.values()),
        "lives": run.lives,
        "failed_starts": run.failed_starts,
        "ticks": counts["ticks"],
        "writes": counts["writes"],
        "recoveries": counts["calms"],
        "recovered_s_max": round(max(run.recovered_s, default=0.0), 1),
        "violations": len(violations),
    }


if __name__ == "__main__":
    sys.exit(main())
