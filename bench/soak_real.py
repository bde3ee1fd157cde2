"""The soak on real time: `rpi-daemon run` on `rpi-daemon sim`, processes of their own, with faults at random.

First the daemon lives through everything but its own end, and its memory and descriptors must stay flat; then it is killed,
stopped and stopped for a while as well. Looks are `LOOK_S` apart: what lies between two is not seen, `soak.py` sees it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from rpi_daemon.config.load import load_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.demo import demo_folder, free_ports, simulated_rack
from rpi_daemon.errors import DeviceError, RpiError

LOOK_S = 0.5
STORM_S, FAULT_EVERY_S = (20.0, 60.0), 3.0
RECOVERED_S = 60.0  # as in soak_checks, on a machine that others use as well
WARM_UP_S = 60.0
TICK_S = 3.0  # without one, on a machine that others use too
STOP_S = 20.0  # it answers while it leaves STATIC_SAFE; systemd waits as long
KILLED_S = 0.6  # a batch that was on its way when the kill switch was engaged
FLAT_MB = 5.0
STEP_W = 1.5
KILLS_FROM = 0.7  # of the time: from then on the daemon's own end is a fault, too
DISK_MB = 64

CONFIG = """\
[rack]
id = "soak"
nominal_v = 230.0
[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_level = "info"
[sampling]
raw_ring_s = 20.0
[retrain]
enabled = false
[actuator]
lower_hold_s = 5.0
uncontrolled_s = 15.0
[corrector]
hold_s = 5.0
[[board]]
id = "board-a"
board_id = 1
port = "board-a.tty"
channels = ["current:pdu-a/1", "current:pdu-a/2", "current:pdu-a/3", "current:pdu-a/4", "voltage:L1"]
[[board]]
id = "board-b"
board_id = 1
port = "board-b.tty"
channels = ["current:pdu-b/1", "current:pdu-b/2", "current:pdu-b/3", "current:pdu-b/4", "voltage:L1"]
[[pdu]]
id = "pdu-a"
profile = "raritan_px"
host = "127.0.0.1"
port = {a}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
writes_per_day = 20000
[[pdu]]
id = "pdu-b"
profile = "apc_rpdu2"
host = "127.0.0.1"
port = {b}
version = "2c"
community_file = "community"
allow_insecure = true
accept_unproven = true
writes_per_day = 20000
[[outlet]]
pdu = "pdu-a"
numbers = "1-4"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 380.0
closed_loop = true
[[outlet]]
pdu = "pdu-b"
numbers = "1-4"
load = "b-{{n}}"
rating_w = 700.0
static_safe_w = 380.0
closed_loop = true
[[constraint]]
id = "breaker-a"
kind = "breaker"
rating_w = 2600.0
outlets = ["pdu-a/*"]
[[constraint]]
id = "breaker-b"
kind = "breaker"
rating_w = 2600.0
outlets = ["pdu-b/*"]
[[constraint]]
id = "rack"
kind = "rack"
rating_w = 4600.0
outlets = ["*"]
[[telemetry]]
load = "a-1"
driver = "feed"
[[trap_sink]]
id = "facility"
host = "127.0.0.1"
port = {sink}
version = "2c"
community_file = "community"
allow_insecure = true
"""

PDU_FAULTS: tuple[Callable[[Random], dict[str, object]], ...] = (
    lambda _: {"drop": -1},
    lambda rng: {"drop": rng.randint(1, 4)},
    lambda rng: {"delay_s": rng.uniform(0.05, 0.6)},
    lambda _: {"duplicate": True},
    lambda _: {"wrong_address": True},
    lambda _: {"ignore_set": True},
    lambda rng: {"clamp_w": float(rng.randint(150, 600))},
    lambda rng: {"refuse": [rng.randint(0, 4)]},
    lambda _: {"refuse_but_apply": True},
    lambda rng: {"too_big_above": rng.randint(1, 8)},
)
BOARD_FAULTS: tuple[Callable[[Random], dict[str, object]], ...] = (
    lambda rng: {"fault": "drop_frames", "frames": rng.randint(1, 30)},
    lambda rng: {"fault": "corrupt", "frames": rng.randint(1, 20)},
    lambda rng: {"fault": "garbage", "n_bytes": rng.randint(1, 2000)},
    lambda rng: {"fault": "repeat", "frames": rng.randint(1, 20)},
    lambda rng: {"fault": "saturate", "channel": rng.randint(0, 4), "scans": rng.randint(50, 3000)},
    lambda rng: {"fault": "silence", "channel": rng.randint(0, 4), "scans": rng.randint(50, 3000)},
    lambda rng: {"fault": "stick", "channel": rng.randint(0, 4), "scans": rng.randint(50, 6000)},
)
COMMANDS: tuple[Callable[[Random], dict[str, object]], ...] = (
    lambda rng: {"command": "limit_set", "outlet": f"pdu-a/{rng.randint(1, 4)}", "limit_w": 200.0, "ttl_s": 5.0},
    lambda rng: {"command": "hint", "load": f"b-{rng.randint(1, 4)}", "delta_w": 200.0, "in_s": 3.0, "for_s": 10.0},
    lambda _: {"command": "mode", "mode": "sideways"},
    lambda _: {"command": "limit_set", "outlet": None, "limit_w": "much", "ttl_s": []},
)


class RealSoak:
    """One run. `violations` are told as they are found; it goes on after one."""

    def __init__(self, folder: Path, seed: int, *, disk: Path | None) -> None:
        self.folder, self.disk = folder, disk
        self.injected: Counter[str] = Counter()
        self.violations: list[str] = []
        self.events: deque[str] = deque(maxlen=200)
        self.lives = self.looks = self.failed_starts = 0
        self.recovered_s: list[float] = []
        self.memory: list[tuple[float, float, int]] = []  # of the first life: s, RSS in MB, descriptors
        self._rng = Random(seed)
        self._began_s = time.monotonic()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._client: ControlClient | None = None
        self._expected_end = False
        self._born_s = 0.0
        self._ends: list[tuple[float, str, Callable[[], None]]] = []
        self._killed_s: float | None = None
        self._sets: dict[str, int] = {}
        self._sums: dict[str, float] = {}
        self._disturbed_s = self._began_s
        self._hogs: list[subprocess.Popen[bytes]] = []
        self._ticks: tuple[int, float] | None = None
        self._lossy = False  # a board was away in this life: what it took along is not counted exactly
        self._unaccounted: int | None = None

    # -- the daemon

    def start(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-P", "-m", "rpi_daemon", "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        self.lives += 1
        self._born_s = time.monotonic()
        self._expected_end = self._lossy = False
        self._ticks = self._unaccounted = None

    def _supervise(self) -> None:
        """Another daemon when one has ended, as systemd does it."""
        assert self._daemon is not None
        code = self._daemon.poll()
        if code is None:
            return
        self._hang_up()
        last = (self.folder / "daemon.log").read_text(errors="replace").rstrip().rpartition("\n")[2]
        self.note(f"the daemon has ended: {code}: {last[-300:]}")
        if self._ticks is None and code == DeviceError.exit_code:
            self.failed_starts += 1  # a device that gave no answer in time: systemd begins again, too
        elif not self._expected_end:
            self.violate("h", f"the daemon ended by itself with {code}")
        time.sleep(1.0)
        self.start()

    def _status(self) -> Mapping[str, Any] | None:
        try:
            if self._client is None:
                self._client = ControlClient(self.folder / "run" / SOCKET_NAME)
            status = self._client.ask("status")
        except RpiError:
            self._hang_up()
            return None
        return status if status.get("state") and status["outlets"] else None

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _ask(self, request: Mapping[str, Any]) -> None:
        if self._client is not None:
            with contextlib.suppress(RpiError):  # an answer all the same
                self._client.ask(**request)

    # -- faults

    def _begin(self, kills: bool) -> None:
        rng = self._rng
        kinds = ["pdu"] * 6 + ["board"] * 5 + ["command"] * 2
        kinds += ["pdu_reboot", "kill_switch", "hog", "disk_full", "telemetry", "stopped_briefly"]
        kinds += ["unplug", "board_reboot", "sigkill", "sigterm", "sigstop"] * kills
        kind = rng.choice(kinds)
        words = getattr(self, f"_do_{kind}")(rng)
        if words is not None:
            self.injected[kind if kind not in ("pdu", "board", "command") else words.split()[1]] += 1
            self.note(f"fault {words}")

    def _until(self, seconds: float, words: str, end: Callable[[], None]) -> None:
        self._ends.append((time.monotonic() + seconds, words, end))

    def _do_pdu(self, rng: Random) -> str:
        pdu = rng.choice(("pdu-a", "pdu-b"))
        faults = rng.choice(PDU_FAULTS)(rng)
        self.rack.ask({"pdu": pdu, "faults": faults})
        self._until(rng.uniform(0.3, 8.0), pdu, lambda: self.rack.ask({"pdu": pdu, "faults": {}}) and None)
        return f"{pdu} {next(iter(faults))} {faults}"

    def _do_pdu_reboot(self, rng: Random) -> str:
        pdu = rng.choice(("pdu-a", "pdu-b"))
        self.rack.ask({"pdu": pdu, "reboot": True})
        return f"{pdu} restarts"

    def _do_board(self, rng: Random) -> str:
        board, fault = rng.choice(("board-a", "board-b")), rng.choice(BOARD_FAULTS)(rng)
        self.rack.ask({"board": board, **fault})
        return f"{board} {fault['fault']} {fault}"

    def _do_board_reboot(self, rng: Random) -> str:
        self._lossy = True
        self.rack.ask({"board": "board-a", "fault": "reboot", "ms": rng.randint(20, 2000)})
        return "board-a restarts"

    def _do_unplug(self, rng: Random) -> str:
        self._lossy = True
        self.rack.ask({"board": "board-b", "fault": "unplug"})
        self._until(
            rng.uniform(0.2, 8.0), "plug", lambda: self.rack.ask({"board": "board-b", "fault": "plug"}) and None
        )
        return "board-b unplugged"

    def _do_command(self, rng: Random) -> str:
        request = rng.choice(COMMANDS)(rng)
        self._ask(request)
        return f"operator {request['command']} {request}"

    def _do_telemetry(self, rng: Random) -> str:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.setblocking(False)
            for _ in range(rng.randint(1, 300)):
                sender.sendto(rng.randbytes(rng.randint(0, 2000)), str(self.folder / "run" / "telemetry.sock"))
        return "telemetry nonsense"

    def _do_kill_switch(self, rng: Random) -> str | None:
        path = self.folder / "state" / "kill"
        if self._killed_s is not None or (self.disk is not None and self._full()):
            return None
        path.touch()
        self._killed_s = time.monotonic()
        self._sets = {}

        def release() -> None:
            path.unlink(missing_ok=True)
            self._killed_s = None

        self._until(rng.uniform(2.0, 10.0), "resume", release)
        return "kill_switch by hand"

    def _do_hog(self, rng: Random) -> str:
        n = rng.randint(1, 2 * (os.cpu_count() or 1))
        hogs = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(n)]
        self._hogs += hogs
        self._until(rng.uniform(1.0, 6.0), "hogs", lambda: self._end_hogs(hogs))
        return f"hog {n} processes take what time there is"

    def _end_hogs(self, hogs: list["subprocess.Popen[bytes]"]) -> None:
        for hog in hogs:
            hog.kill()
            hog.wait()
            self._hogs.remove(hog)

    def _full(self) -> bool:
        return self.disk is not None and (self.disk / "ballast").exists()

    def _do_disk_full(self, rng: Random) -> str | None:
        if self.disk is None or self._full() or self._killed_s is not None:
            return None
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
            while True:
                out.write(bytes(65536))
        self._until(rng.uniform(2.0, 15.0), "disk free", lambda: ballast.unlink(missing_ok=True))
        return "disk_full the tmpfs"

    def _signal(self, number: int) -> None:
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(number)

    def _do_stopped_briefly(self, rng: Random) -> str:
        self._signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 0.8))
        self._signal(signal.SIGCONT)
        return "stopped_briefly SIGSTOP for a moment"

    def _do_sigstop(self, rng: Random) -> str:
        self._signal(signal.SIGSTOP)
        time.sleep(rng.uniform(1.0, 4.0))
        self._signal(signal.SIGCONT)
        self._lossy = True  # the cable's own buffer runs over
        return "SIGSTOP for seconds"

    def _do_sigkill(self, _: Random) -> str:
        self._expected_end = True
        self._signal(signal.SIGKILL)
        return "SIGKILL"

    def _do_sigterm(self, _: Random) -> str:
        self._expected_end = True
        self._signal(signal.SIGTERM)
        return "SIGTERM"

    def _end_due(self, *, all_of_them: bool = False) -> None:
        now_s = time.monotonic()
        due = [item for item in self._ends if all_of_them or item[0] <= now_s]
        for item in due:
            self._ends.remove(item)
            item[2]()
            self.note(f"over: {item[1]}")
        if due or self._ends:
            self._disturbed_s = now_s

    def _disturbed(self, seconds: float) -> bool:
        return bool(self._ends) or time.monotonic() - self._disturbed_s < seconds

    # -- looking

    def look(self) -> str | None:
        """One look at everything; what is not yet as it should be once all faults are over."""
        self.looks += 1
        self._supervise()
        state = self.rack.ask({"state": True})
        self._written_while_killed(state)
        status = self._status()
        self._measure()
        if status is None or status["summary"]["ticks"] < 20:
            self._ticks = None
            return "no daemon ticks"
        now_s, ticks = time.monotonic(), int(status["summary"]["ticks"])
        patience_s = STOP_S if self._expected_end else TICK_S
        if (
            self._ticks is not None
            and ticks == self._ticks[0]
            and now_s - self._ticks[1] > patience_s
            and not self._hogs
        ):
            self.violate("h", f"no tick in {now_s - self._ticks[1]:.1f} s")
        if self._ticks is None or ticks != self._ticks[0]:
            self._ticks = ticks, now_s
        return self._not_recovered(state, status)

    def _written_while_killed(self, state: Mapping[str, Any]) -> None:
        """(b) Nothing reaches a PDU from `KILLED_S` after the kill switch was engaged."""
        if self._killed_s is None or time.monotonic() - self._killed_s < KILLED_S:
            return
        sets = {pdu: counters["sets"] for pdu, counters in state["pdus"].items()}
        if self._sets and sets != self._sets:
            self.violate("b", f"written with the kill switch engaged: {self._sets} -> {sets}")
        self._sets = sets

    def _measure(self) -> None:
        """(e) Of the first life, once it is warm."""
        age_s = time.monotonic() - self._born_s
        if self.lives > 1 or age_s < WARM_UP_S or self._daemon is None:
            return
        with contextlib.suppress(OSError, IndexError):
            pid = self._daemon.pid
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            rss_mb = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.memory.append((age_s, rss_mb, len(os.listdir(f"/proc/{pid}/fd"))))

    def _not_recovered(self, state: Mapping[str, Any], status: Mapping[str, Any]) -> str | None:
        """(a), (g) Once all faults are over."""
        if status["state"] != "NORMAL" and not all(c.startswith("overload") for c in status["causes"]):
            return f"{status['state']} by {status['causes']}"
        limits = {f"{pdu}/{n}": w for pdu, found in state["limits_w"].items() for n, w in found.items()}
        for outlet in status["outlets"]:
            stands_w, known_w = limits[outlet["id"]], outlet["limit_w"]
            if outlet["uncontrolled"] or stands_w is None or known_w is None or abs(stands_w - known_w) > 60.0:
                return f"{outlet['id']} holds {stands_w} W, the daemon knows {known_w} W"
        sums = {c.name: sum(limits[o] or 0.0 for o, s in zip(self.model.outlet_ids, c.share, strict=True) if s)
                for c in self.model.constraints}  # fmt: skip
        over = {c.name: sums[c.name] for c in self.model.constraints
                if c.rating_w is not None and sums[c.name] > c.derate * c.rating_w + STEP_W * len(limits)}  # fmt: skip
        return f"over its rating: {over}" if over else None

    def _look_at_losses(self) -> None:
        """(f) What the daemon counts and what the boards say they dropped differ by a constant of a life."""
        seen = None
        for _ in range(20):
            boards = self.rack.ask({"state": True})["boards"].values()
            gone = sum(b["scans_overflowed"] + b["scans_lost"] + b["scans_damaged"] for b in boards)
            status = self._status()
            now = None if status is None else (gone, int(status["summary"]["samples_lost"]))
            if now is not None and now == seen:
                break
            seen = now
            time.sleep(0.3)
        if seen is None or self._lossy:
            return
        unaccounted = seen[1] - seen[0]
        if self._unaccounted is not None and unaccounted != self._unaccounted:
            self.violate("f", f"{unaccounted - self._unaccounted} more scans counted as lost than the boards dropped")
        self._unaccounted = unaccounted

    # -- the run

    def run(self, seconds: float) -> None:
        first = free_ports(3)
        text = CONFIG.format(a=first, b=first + 1, sink=first + 2)
        (self.folder / "config.toml").write_text(text, encoding="utf-8")
        self.config = self.folder / "config.toml"
        with simulated_rack(self.config) as self.rack:
            loaded = load_config(self.config)
            self.model = rack_model(loaded)
            try:
                self.start()
                self._calm()
                end_s = self._began_s + seconds
                while (now_s := time.monotonic()) < end_s:
                    storm_s = min(self._rng.uniform(*STORM_S), end_s - now_s)
                    self._storm(storm_s, now_s - self._began_s > KILLS_FROM * seconds)
                    self._calm()
            finally:
                self._end_due(all_of_them=True)
                self._end()
        self._judge()

    def _storm(self, seconds: float, kills: bool) -> None:
        end_s = time.monotonic() + seconds
        next_s = time.monotonic()
        while time.monotonic() < end_s:
            if time.monotonic() >= next_s:
                self._begin(kills)
                self._disturbed_s = time.monotonic()
                next_s = time.monotonic() + self._rng.expovariate(1.0 / FAULT_EVERY_S)
            self._end_due()
            self.look()
            time.sleep(LOOK_S)

    def _calm(self) -> None:
        self._end_due(all_of_them=True)
        self.note("calm")
        began_s = asked_s = time.monotonic()
        while (why := self.look()) is not None:
            if time.monotonic() - asked_s > 5.0:
                asked_s = time.monotonic()
                self._ask({"command": "acknowledge"})
            if time.monotonic() - began_s > RECOVERED_S:
                self.violate("g", f"{RECOVERED_S:g} s after all faults ended: {why}")
                return
            time.sleep(LOOK_S)
        self.recovered_s.append(time.monotonic() - began_s)
        self._look_at_losses()

    def _end(self) -> None:
        self._hang_up()
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.terminate()
            try:
                code = self._daemon.wait(30.0)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                code = self._daemon.wait()
            if code != 0:
                self.violate("h", f"the last stop ended with {code}")

    def _judge(self) -> None:
        text = (self.folder / "daemon.log").read_text(errors="replace")
        if "Traceback" in text or "never awaited" in text or "never retrieved" in text:
            self.violate("h", "an exception that nobody took: " + text[max(0, text.find("Traceback") - 200) :][:3000])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "rpi_daemon", "audit", "verify", "--config", str(self.config)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            self.violate("c", f"audit verify: {done.stdout[-500:]} {done.stderr[-500:]}")
        if len(self.memory) > 2:
            rss = [mb for _, mb, _ in self.memory]
            least, most = min(fds for *_, fds in self.memory), max(fds for *_, fds in self.memory)
            if max(rss) - rss[0] > FLAT_MB:
                self.violate("e", f"resident memory went from {rss[0]:.1f} to {max(rss):.1f} MB")
            if self.memory[-1][2] > self.memory[0][2] + 2:
                self.violate(
                    "e", f"descriptors: {self.memory[0][2]} at first, {least} to {most}, {self.memory[-1][2]} at last"
                )

    def violate(self, letter: str, text: str) -> None:
        self.violations.append(f"({letter}) at {time.monotonic() - self._began_s:.1f} s: {text}")
        self.note(self.violations[-1])
        print("\n".join([*list(self.events)[-40:], self.violations[-1]]), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self.events.append(f"  {time.monotonic() - self._began_s:8.1f} {text}")

    def row(self) -> dict[str, object]:
        rss = [mb for _, mb, _ in self.memory] or [float("nan")]
        fds = [n for *_, n in self.memory] or [0]
        return {
            "real_s": round(time.monotonic() - self._began_s),
            "faults": sum(self.injected.values()),
            "lives": self.lives,
            "failed_starts": self.failed_starts,
            "looks": self.looks,
            "recoveries": len(self.recovered_s),
            "recovered_s_max": round(max(self.recovered_s, default=0.0), 1),
            "flat_s": round(self.memory[-1][0] - self.memory[0][0]) if self.memory else 0,
            "rss_start_mb": round(rss[0], 1),
            "rss_end_mb": round(rss[-1], 1),
            "rss_max_mb": round(max(rss), 1),
            "rss_every_2_min_mb": [round(mb, 1) for mb in self._every(120.0)],
            "fds_start": fds[0],
            "fds_end": fds[-1],
            "fds_max": max(fds),
            "violations": len(self.violations),
        }

    def _every(self, period_s: float) -> list[float]:
        """Resident memory at the first look of each period."""
        first = {int(age_s // period_s): mb for age_s, mb, _ in reversed(self.memory)}
        return [first[period] for period in sorted(first)]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of its own below the state folder, which can be filled; None where this user may mount nothing."""
    state = folder / "state"
    state.mkdir(mode=0o750)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=750", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield state
    finally:
        subprocess.run(["umount", "-l", str(state)], check=False)


def soak_real(seed: int, seconds: float) -> RealSoak:
    """One run on real time."""
    with demo_folder(None) as folder, small_disk(folder) as disk:
        run = RealSoak(folder, seed, disk=disk)
        run.run(seconds)
    return run
