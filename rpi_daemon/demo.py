"""The demo: a simulated rack in one process, the real daemon in another, real wires between them, and a look at both."""

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rpi_daemon.config.examples.demo import UNIT_OUTLETS, demo_toml
from rpi_daemon.config.schema import Corrector
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.errors import NotRunningError, RpiError
from rpi_daemon.top import View, by_weight, plain_line

START_S = 20.0  # both processes must be up by then
VIEW_PERIOD_S = 0.25
PLAIN_PERIOD_S = 5.0
STOP_S = 10.0
STATIC_TOLERANCE_W = 1.0
FIRST_PORT = 10_000
FIRST_GIVEN_PORT = 32_768  # Linux, net.ipv4.ip_local_port_range unless it was changed
HINT_S = 86_400.0  # announced work lasts until the scheduler announces its end


@dataclass(slots=True)
class Rack:
    """The simulated rack's process: what it said, and a way to ask it."""

    process: subprocess.Popen[str]
    log: Path
    announcements: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    said: threading.Condition = field(default_factory=threading.Condition)

    def listen(self) -> None:
        """Collect its lines until it ends; runs in a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            document = json.loads(line)
            with self.said:
                (self.announcements if "announce" in document else self.answers).append(
                    document.get("announce", document)
                )
                self.said.notify_all()
        with self.said:
            self.said.notify_all()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Its next answer; raises RpiError if it does not come."""
        with self.said:
            if (
                not self.said.wait_for(lambda: self.answers or self.process.poll() is not None, timeout_s)
                or not self.answers
            ):
                raise RpiError("the simulated rack did not answer: " + _last_words(self.log))
            return self.answers.pop(0)

    def news(self) -> list[dict[str, Any]]:
        """Announcements since the last call."""
        with self.said:
            news, self.announcements = self.announcements, []
        return news

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One command of its control line: `{"state": True}`, or a fault of a board."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer(STOP_S)


def run_demo(*, seconds: float, outlets: int, trace: Path | None, keep: Path | None, hints: bool, as_json: bool) -> int:
    """The whole demo; returns the exit code. With `hints` the daemon is told what the simulated job scheduler announces."""
    with demo_folder(keep) as folder:
        config = demo_config(folder, outlets)
        with simulated_rack(config, trace) as rack:
            with running_daemon(config) as (daemon, client):
                status, announced = _watch(client, rack, seconds, hints, as_json)
                daemon.terminate()
                daemon_exit = daemon.wait(STOP_S)
            summary = {
                **status["summary"], **_left_behind(rack, status), "announced": announced, "daemon_exit": daemon_exit,
            }  # fmt: skip
    if as_json:
        click.echo(json.dumps(summary, separators=(",", ":")))
    else:
        _print_summary(summary, keep)
    return 0 if daemon_exit == 0 and summary["static_safe_left"] else 1


def demo_config(folder: Path, outlets: int) -> Path:
    """The demo's configuration in `folder`, on free ports."""
    config = folder / "demo.toml"
    config.write_text(demo_toml(outlets, free_ports(-(-outlets // UNIT_OUTLETS))), encoding="utf-8")
    return config


@contextlib.contextmanager
def simulated_rack(config: Path, trace: Path | None = None) -> Iterator[Rack]:
    """`rpi-daemon sim` in a process of its own, ready; logs to rack.log beside `config`. Raises RpiError."""
    arguments = ["sim", "--config", str(config)] + (["--trace", str(trace.resolve())] if trace else [])
    log = config.with_name("rack.log")
    with _process(arguments, log) as process:
        rack = Rack(process, log)
        threading.Thread(target=rack.listen, daemon=True).start()
        rack.answer(START_S)
        yield rack


@contextlib.contextmanager
def running_daemon(config: Path) -> Iterator[tuple[subprocess.Popen[str], ControlClient]]:
    """`rpi-daemon run` in a process of its own, ticking, and a connection to it. Raises RpiError with its last words."""
    log = config.with_name("daemon.log")
    with (
        _process(["run", "--config", str(config)], log) as daemon,
        _connect(config.parent / "run" / SOCKET_NAME, daemon, log) as client,
    ):
        yield daemon, client


@contextlib.contextmanager
def supervised_daemon(config: Path) -> Iterator[None]:
    """`rpi-daemon run`, ticking; begun again whenever it ends, after `rpi-daemon failsafe`, as systemd does it."""
    supervisor = _Supervisor(config)
    supervisor.start()
    try:
        with _connect(config.parent / "run" / SOCKET_NAME, supervisor.daemon_process(), supervisor.log):
            pass
        yield
    finally:
        supervisor.end()


class _Supervisor(threading.Thread):
    """Keeps a daemon running until `end`."""

    def __init__(self, config: Path) -> None:
        super().__init__(name="supervisor")
        self.log = config.with_name("daemon.log")
        self._config = config
        self._daemons: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self._daemon: subprocess.Popen[str] | None = None
        self._ending = threading.Event()

    def daemon_process(self) -> subprocess.Popen[str]:
        """The first one, once it was begun."""
        return self._daemons.get(timeout=START_S)

    def run(self) -> None:
        while not self._ending.is_set():
            with _process(["run", "--config", str(self._config)], self.log) as self._daemon:
                self._daemons.put(self._daemon)
                if self._ending.is_set():
                    return
                self._daemon.wait()
            with _process(
                ["failsafe", "--config", str(self._config)], self._config.with_name("failsafe.log")
            ) as failsafe:
                failsafe.wait()

    def end(self) -> None:
        """Stop it in good order."""
        self._ending.set()
        if self._daemon is not None:
            self._daemon.terminate()
        self.join()


def pass_on_hints(rack: Rack, client: ControlClient) -> int:
    """What the simulated job scheduler has announced since the last call goes to the daemon; returns how much."""
    announced = rack.news()
    for news in announced:
        client.ask("hint", for_s=HINT_S, **news)
    return len(announced)


def _watch(
    client: ControlClient, rack: Rack, seconds: float, hints: bool, as_json: bool
) -> tuple[Mapping[str, Any], int]:
    """Show the daemon's status until the time is over; hand it what the job scheduler announces, with `hints`.

    Returns the last status and how many times work was announced to the daemon.
    """
    console = Console(stderr=as_json)
    view = View()
    end = time.monotonic() + seconds
    next_line = time.monotonic()
    status: Mapping[str, Any] = client.ask("status")
    announced = 0
    with (
        Live(console=console, auto_refresh=False, transient=False)
        if console.is_terminal
        else contextlib.nullcontext() as live
    ):
        while time.monotonic() < end:
            if hints:
                announced += pass_on_hints(rack, client)
            status = client.ask("status")
            if live is not None:
                live.update(view.table(status), refresh=True)
            elif time.monotonic() >= next_line:
                next_line += PLAIN_PERIOD_S
                console.print(plain_line(status), soft_wrap=True)
            time.sleep(VIEW_PERIOD_S)
    return client.ask("status"), announced


def _left_behind(rack: Rack, status: Mapping[str, Any]) -> dict[str, Any]:
    """After the daemon has gone: do the PDUs hold STATIC_SAFE, and what did the boards really send?"""
    state = rack.ask({"state": True})
    left = True
    for outlet in status["outlets"]:
        pdu, _, number = outlet["id"].partition("/")
        limit_w = state["limits_w"][pdu][number]
        left = left and limit_w is not None and abs(limit_w - outlet["static_safe_w"]) <= STATIC_TOLERANCE_W
    return {"static_safe_left": left, "boards": state["boards"]}


def _in_advance(summary: Mapping[str, Any]) -> str:
    if summary["prealloc_share"] is None:
        return "no draw rose past an old limit"
    return f"{summary['prealloc_share']:.0%} of {summary['rises']} rises had their limit verified 1 s before"


def _passed(summary: Mapping[str, Any]) -> str:
    if summary["request_escape_rate"] is None:
        return "none could be judged yet: it takes 5 s"
    return (
        f"{summary['request_escape_rate']:.2%} of the highest draws in their 5 s passed them;"
        f" the margin begins untaught and aims at {Corrector().target:.0%} in the long run"
    )


def _sampled(summary: Mapping[str, Any]) -> str:
    text = f"{summary['samples_total']} scans, {summary['samples_lost']} lost"
    if not summary["samples_late"]:
        return text
    share = summary["samples_late"] / summary["samples_total"]
    return (
        f"{text}; {share:.1%} came over 1 ms late, which is no loss: they are timed by the board's clock,"
        " and the simulated board waits for this machine's processors, too"
    )


def _announced(summary: Mapping[str, Any]) -> str:
    if not summary["announced"]:
        return "no work was announced to it"
    return f"{summary['announced']} changes of load were announced to it (hint); --no-hints withholds them"


def _print_summary(summary: Mapping[str, Any], keep: Path | None) -> None:
    def number(key: str, digits: int = 1, unit: str = "") -> str:
        value = summary[key]
        return "no data" if value is None else f"{value:.{digits}f}{unit}"

    table = Table(title="Summary", box=None, title_justify="left", show_header=False)
    for name, text in (
        ("sampled at 1 kHz", _sampled(summary)),
        ("control ticks", f"{summary['ticks']}; p99 {number('tick_ms_p99', 2, ' ms')}"),
        ("forecast 5 s ahead", f"mean error {number('forecast_mae_w', 1, ' W')}; persistence {number('persistence_mae_w', 1, ' W')}; {_announced(summary)}"),
        ("experts' mean weights", by_weight(summary["expert_weights"]) or "no data"),
        ("requests", _passed(summary)),
        ("limits written", f"{summary['writes']}, {summary['writes_verified']} read back as written, {summary['writes_refused']} refused"),
        ("given in advance", _in_advance(summary)),
        ("mean limit", f"{number('mean_limit_w', 0, ' W')}; static limits {number('mean_static_safe_w', 0, ' W')}"),
        ("limit passed", f"in {summary['limit_escapes']} windows of {summary['windows']} (alarm thresholds: they do not hold current back)"),
        ("the daemon", f"{number('cpu_percent', 1, ' %')} of a core, {number('rss_mb', 0, ' MB')} resident beside the raw ring of {number('raw_ring_mb', 0, ' MB')}; the simulated rack is another process"),
        ("left behind", "STATIC_SAFE in every outlet" if summary["static_safe_left"] else "NOT the STATIC_SAFE limits"),
    ):  # fmt: skip
        table.add_row(name, text)
    console = Console()
    console.print(table)
    if keep is not None:
        console.print(f"files: {keep}; what it bought: rpi-daemon report -c {keep}/demo.toml", soft_wrap=True)
        console.print(f"to learn from it: rpi-daemon retrain --now -c {keep}/demo.toml", soft_wrap=True)


@contextlib.contextmanager
def demo_folder(keep: Path | None) -> Iterator[Path]:
    """Where the demo lives: the named folder, or one in memory that goes away. What began in it ends in order, by a signal too."""
    with ended_by_signals():
        if keep is not None:
            try:
                keep.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=keep).close()
            except OSError as error:
                raise RpiError(
                    f"{keep}: {error.strerror}; name a folder that this user can write in with --keep"
                ) from None
            yield keep.resolve()
            return
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        folder = Path(tempfile.mkdtemp(prefix="rpi-demo-", dir=base))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a terminal that is closed) leave the block as Ctrl-C does.

    Else a daemon would go on without its rack, or a kill switch stay that a drill engaged.
    """

    def leave(number: int, _: object) -> None:
        for ending in before:
            signal.signal(ending, signal.SIG_IGN)  # a second one must not cut the end short
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _process(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A child of ours, ended with us whatever happens."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "rpi_daemon",
                *arguments,
            ],  # -P: in a checkout the bare folders would shadow us
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        with process:
            try:
                yield process
            finally:
                if process.stdin is not None:
                    process.stdin.close()
                process.terminate()
    finally:
        process.kill()


def _connect(path: Path, daemon: subprocess.Popen[str], log: Path) -> ControlClient:
    """A connection once the daemon ticks; raises RpiError with its own last words if it ends before."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and daemon.poll() is None:
        try:
            client = ControlClient(path)
        except NotRunningError:
            time.sleep(0.05)
            continue
        while time.monotonic() < deadline:
            if client.ask("status")["summary"]["ticks"] > 0:
                return client
            time.sleep(0.05)
        client.close()
    raise RpiError("the daemon did not start: " + _last_words(log))


def _last_words(log: Path) -> str:
    words = log.read_text(encoding="utf-8").strip().splitlines()
    return words[-1] if words else "no word from it in time"


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that are free for UDP and TCP, below those of which the kernel gives one to
    whoever asks for any: nobody is given one of these between this look and its use."""
    while True:
        first = random.SystemRandom().randrange(FIRST_PORT, FIRST_GIVEN_PORT - count)
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                        probes.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue  # taken
            return first
