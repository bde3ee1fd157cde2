"""A simulated rack and the real daemon, each a process of its own, with real wires between them."""

import asyncio
import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rpi_daemon import demo
from rpi_daemon.config.load import load_config
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.devices import snmp_endpoint
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.errors import NotRunningError

PATIENCE_S = 60.0  # one core that others use; a condition that is met ends the wait at once
LOOK_S = 0.05  # between two looks
T = TypeVar("T")
Status = Mapping[str, Any]
RPI = [sys.executable, "-P", "-m", "rpi_daemon"]

# holds are short, so that seconds show what takes minutes in a real rack
QUICK = """
[guard]
recover_s = 1.0

[corrector]
hold_s = 1.0
alarm_learn_s = 0.0
alarm_hold_s = 1.0

[actuator]
lower_hold_s = 0.5
"""
CONFIG = """\
[rack]
id = "scenario"
nominal_v = 230.0

[daemon]
mode = "{mode}"
state_dir = "state"
runtime_dir = "run"
log_format = "json"
log_level = "debug"

[sampling]
raw_ring_s = 20.0
{quick}{actuator}
{forecast}

[[board]]
id = "board-a"
board_id = 1
port = "{port_a}"
channels = [{currents_a}, "voltage:L1"]

[[board]]
id = "board-b"
board_id = 1
port = "board-b.tty"
channels = [{currents_b}, "voltage:L1"]

[[pdu]]
id = "pdu-a"
profile = "{profile_a}"
host = "127.0.0.1"
port = {pdu_a}
user = "{user}"
auth_key_file = "{auth_key}"
priv_key_file = "priv.key"
poll_s = 0.3
writes_per_day = 20000

[[pdu]]
id = "pdu-b"
profile = "apc_rpdu2"
host = "127.0.0.1"
port = {pdu_b}
version = "2c"
community_file = "{community}"
allow_insecure = true
accept_unproven = true
poll_s = 0.3
writes_per_day = 20000

[[outlet]]
pdu = "pdu-a"
numbers = "1-5"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

# this one stays with its owner
[[outlet]]
pdu = "pdu-a"
numbers = "6"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 550.0

[[outlet]]
pdu = "pdu-b"
numbers = "1-6"
load = "b-{{n}}"
rating_w = 700.0
static_safe_w = 550.0
closed_loop = true

[[constraint]]
id = "breaker-a"
kind = "breaker"
rating_a = 25.0
outlets = ["pdu-a/*"]

[[constraint]]
id = "breaker-b"
kind = "breaker"
rating_a = 25.0
outlets = ["pdu-b/*"]

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 9000.0
outlets = ["*"]
"""


def free_ports(n: int) -> list[int]:
    """Ports that are free for UDP and TCP."""
    first = demo.free_ports(n)
    return list(range(first, first + n))


def pause(fd: int, seconds: float) -> None:
    """Wait until `fd` becomes readable, `seconds` at most."""
    select.select([fd], [], [], seconds)


@dataclass
class Place:
    """A folder with a configuration; `write` changes single values of it, the ports stay."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(2))

    def write(self, **changes: object) -> Path:
        values: dict[str, object] = {
            "mode": "closed_loop",
            "port_a": "board-a.tty",
            "profile_a": "raritan_px",
            "pdu_a": self.ports[0],
            "pdu_b": self.ports[1],
            "user": "rpi-daemon",
            "auth_key": "auth.key",
            "community": "community",
            "actuator": "",
            "forecast": "",
            "currents_a": ", ".join(f'"current:pdu-a/{n}"' for n in range(1, 7)),
            "currents_b": ", ".join(f'"current:pdu-b/{n}"' for n in range(1, 7)),
        }
        unknown = set(changes) - set(values)
        assert not unknown, unknown
        path = self.folder / f"config-{abs(hash(tuple(sorted(changes.items()))))}.toml"
        path.write_text(CONFIG.format(quick=QUICK, **{**values, **changes}), encoding="utf-8")
        return path


class Child:
    """A process of ours with its pipes; ended with the test whatever happens."""

    command: Sequence[str] = RPI

    def __init__(
        self, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        """`within`: the command that starts it elsewhere, nsenter(1) for one."""
        self.log_path = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*within, *self.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(env or {})},
            )
        self._pid_fd = os.pidfd_open(self.process.pid)

    def alive(self) -> bool:
        return self.process.poll() is None

    def pause(self, seconds: float = LOOK_S) -> None:
        """Let time pass; the end of the process ends it early."""
        pause(self._pid_fd, seconds)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def words(self) -> str:
        """What it said on stderr."""
        return self.log_path.read_text(encoding="utf-8")

    def close(self) -> None:
        if self.alive():
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._pid_fd)


class RackProcess(Child):
    """`rpi-daemon sim`: its boards and PDUs, and the faults that they are told to have."""

    def __init__(self, config: Path, *arguments: str, within: Sequence[str] = ()) -> None:
        super().__init__(["sim", "--config", str(config), *arguments], config.parent / "rack.log", within=within)
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, name="rack listener")
        self._listener.start()
        self.hello = self._next()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            document = json.loads(line)
            if "announce" not in document:
                self._answers.put(document)
        self._answers.put(None)

    def _next(self) -> dict[str, Any]:
        answer = self._answers.get(timeout=PATIENCE_S)
        assert answer is not None, self.words()
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._next()
        assert "error" not in answer, answer
        return answer

    def state(self) -> dict[str, Any]:
        return self.ask(state=True)

    def sets(self) -> dict[str, int]:
        """SET requests that each PDU has received."""
        return {pdu: counters["sets"] for pdu, counters in self.state()["pdus"].items()}

    def limits_w(self) -> dict[str, float | None]:
        """The limit that each outlet really has, by outlet id; None where it is disabled."""
        return {f"{pdu}/{n}": w for pdu, limits in self.state()["limits_w"].items() for n, w in limits.items()}

    def until(self, true: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Ask until its state is as wanted."""
        deadline = time.monotonic() + timeout_s
        while not true(state := self.state()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {state}"
            self.pause()
        return state

    def close(self) -> None:
        super().close()
        self._listener.join()


class Daemon(Child):
    """`rpi-daemon run`, its control socket and its log."""

    def __init__(
        self, config: Path, *arguments: str, env: Mapping[str, str] | None = None, name: str = "daemon"
    ) -> None:
        self.config = config
        self.started_s = time.monotonic()
        super().__init__(["run", "--config", str(config), *arguments], config.parent / f"{name}.log", env)
        self._client: ControlClient | None = None

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        if self._client is None:
            self._client = ControlClient(self.config.parent / "run" / SOCKET_NAME)
        return self._client.ask(command, **fields)

    def status(self) -> Status:
        return self.ask("status")

    def until(self, true: Callable[[Status], bool], what: str, timeout_s: float = PATIENCE_S) -> Status:
        """Ask for the status until it is as wanted."""
        deadline = time.monotonic() + timeout_s
        status: Status = {}
        while True:
            assert self.alive(), self.words()
            with contextlib.suppress(NotRunningError):
                status = self.status()
                if true(status):
                    return status
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {json.dumps(status)[:3000]}"
            self.pause()

    def normal(self) -> Status:
        """Until it is in NORMAL with every outlet read."""
        return self.until(
            lambda s: (
                s["state"] == "NORMAL" and bool(s["outlets"]) and all(o["power_w"] is not None for o in s["outlets"])
            ),
            "NORMAL",
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self._hang_up()
        self.process.send_signal(number)
        return self.wait()

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its structured log lines, of one event if named."""
        lines = [json.loads(line) for line in self.words().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if event in (None, line["event"])]

    def logged(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first log line of this event with these fields, as soon as it is there: the log is written beside the loop."""
        deadline = time.monotonic() + PATIENCE_S
        while not (lines := [line for line in self.log(event) if fields.items() <= line.items()]):
            assert time.monotonic() < deadline, f"{event} was not logged: {self.words()}"
            self.pause()
        return lines[0]

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        self._hang_up()
        super().close()


@contextlib.contextmanager
def running(child: Callable[[], T]) -> Iterator[T]:
    """A child process for the length of a block."""
    with contextlib.closing(child()) as process:  # type: ignore[type-var]
        yield process


def cli(
    config: Path, *arguments: str, timeout_s: float = PATIENCE_S, **options: Any
) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    command = [*RPI, *arguments, "--config", str(config)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False, **options
    )


def on_pdu(config: Path, pdu_id: str, outlets: Sequence[int], use: Callable[[SnmpPdu], Awaitable[T]]) -> T:
    """Do something on a PDU as another manager would."""
    loaded = load_config(config)
    pdu = next(item for item in loaded.pdu if item.id == pdu_id)
    endpoint = replace(snmp_endpoint(loaded, pdu), timeout_s=5.0)

    async def act() -> T:
        driver = SnmpPdu(SnmpPduOptions(endpoint, load_profile(pdu.profile), tuple(outlets), nominal_v=230.0))
        await driver.open()
        try:
            return await use(driver)
        finally:
            await driver.close()

    return asyncio.run(act())


def dropped(rack: RackProcess, *kinds: str) -> int:
    """Scans that its boards say they dropped: by order, or because this machine was too busy for their 20 ms FIFO."""
    kinds = kinds or ("scans_overflowed", "scans_lost", "scans_damaged")
    return sum(counters[kind] for counters in rack.state()["boards"].values() for kind in kinds)


def unaccounted(daemon: Daemon, rack: RackProcess, *kinds: str) -> int:
    """Scans that the daemon counts as lost beyond those that the boards dropped; a constant of the run."""
    deadline = time.monotonic() + PATIENCE_S
    seen: tuple[int, int] | None = None
    while time.monotonic() < deadline:
        now = (dropped(rack, *kinds), int(daemon.status()["summary"]["samples_lost"]))
        if now == seen:
            return now[1] - now[0]
        seen = now
        daemon.pause(0.3)  # what was dropped shows with the next frame
    raise AssertionError(f"losses do not come to rest: {seen}")


def limit_of(status: Status, outlet: str) -> float | None:
    value: float | None = outlet_of(status, outlet)["limit_w"]
    return value


def outlet_of(status: Status, outlet: str) -> dict[str, Any]:
    row: dict[str, Any] = next(item for item in status["outlets"] if item["id"] == outlet)
    return row
