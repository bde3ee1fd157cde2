"""A trap receiver: acknowledgement latency, our restart, an outage, order, wrong keys. Simulated, or --config with a sink.

Only notifications of kind `test` are sent, each with a number in its text; it asks before it sends to a real receiver, and
you may stop that receiver for the outage when the bench says so. What a real receiver made of them, its own log tells:
they must be there once each, in order, with our MIB's names.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from page import Line, Measured, Plot, arguments, named, publish

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.load import load_config
from rpi_daemon.config.schema import Config, TrapSink
from rpi_daemon.demo import free_ports
from rpi_daemon.drivers.traps.engine import EngineIdentity, next_boot
from rpi_daemon.drivers.traps.mib import OBJECT_ROOT, OBJECTS, notification_oid, varbinds
from rpi_daemon.drivers.traps.sender import SinkOptions, TrapSender
from rpi_daemon.errors import DeviceError, RpiError
from rpi_daemon.records import Notice, Severity
from rpi_daemon.trap_queue import QUEUE_FILE, TrapQueue
from rpi_daemon.trap_task import Pace, SinkTask, sink_options

INFORMS, QUICK_INFORMS = 200, 40
WAITING, QUICK_WAITING = 500, 60
SPACING_S = 0.05  # as the daemon: never two within it
OUTAGE_S, QUICK_OUTAGE_S = 10.0, 1.5
BACK_S = 120.0
USER, AUTH_KEY, PRIV_KEY = "bench", "authentication of the bench", "privacy of the bench"
CONFIG = """
[rack]
id = "bench"

[daemon]
state_dir = "state"

[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "192.0.2.1"
version = "2c"
community_file = "auth.key"
allow_insecure = true

[[outlet]]
pdu = "pdu"
numbers = "1"
load = "load"
rating_w = 100.0
static_safe_w = 10.0

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 1000.0
outlets = ["*"]

[[trap_sink]]
id = "facility"
host = "127.0.0.1"
port = {port}
user = "{user}"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
timeout_s = 1.0
"""


class Receiver:
    """The simulated receiver's process, and what it has printed."""

    def __init__(self) -> None:
        self.port = free_ports(1)
        self.taken: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        script = Path(__file__).with_name("receiver.py")
        command = [
            *(sys.executable, str(script), "--port", str(self.port), "--user", USER),
            *("--auth-key", AUTH_KEY, "--priv-key", PRIV_KEY),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit("the simulated receiver did not start")
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, lines: Any) -> None:
        for line in lines:
            self.taken.append(json.loads(line)["varbinds"])

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._reader is not None
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@dataclass
class Bench:
    """One receiver, real or simulated, and our side of it."""

    config: Config
    sink: TrapSink
    folder: Path
    measured: Measured
    receiver: Receiver | None
    sent: list[int] = field(default_factory=list)

    def notice(self) -> Notice:
        number = len(self.sent) + 1
        self.sent.append(number)
        return Notice("test", "event", Severity.INFO, "", self.sink.id, f"trap_hil {number}", time.time_ns())

    def identity(self) -> EngineIdentity:
        """One more start, as an engine of its own: receivers must not take the daemon's boots for a step back."""
        return next_boot(self.folder, time.time_ns(), self.config.traps.enterprise, f"{self.config.rack.id} trap_hil")

    def options(self) -> SinkOptions:
        return sink_options(self.config, self.sink)

    async def send(self, sender: TrapSender, notice: Notice) -> float:
        """One notification to its end; ms. Raises DeviceError."""
        enterprise = self.config.traps.enterprise
        objects = varbinds(notice, self.config.rack.id, enterprise, sequence=len(self.sent), dropped=0)
        started = time.perf_counter()
        await sender.send(notification_oid(notice, enterprise), objects)
        return 1e3 * (time.perf_counter() - started)

    def numbers(self) -> list[int]:
        """Of what the simulated receiver has, in its order."""
        assert self.receiver is not None
        oid = f"1.3.6.1.4.1.{self.config.traps.enterprise}.{OBJECT_ROOT}.{OBJECTS['text']}.0"
        return [int(str(item[oid]).removeprefix("trap_hil ")) for item in self.receiver.taken]


@contextlib.contextmanager
def simulated_receiver() -> Iterator[tuple[Path, Receiver]]:
    with tempfile.TemporaryDirectory(prefix="rpi-hil-") as name:
        folder = Path(name)
        receiver = Receiver()
        for key, text in (("auth.key", AUTH_KEY), ("priv.key", PRIV_KEY)):
            (folder / key).touch(mode=0o600)
            (folder / key).write_text(text)
        path = folder / "bench.toml"
        path.write_text(CONFIG.format(port=receiver.port, user=USER))
        receiver.start()
        try:
            yield path, receiver
        finally:
            receiver.stop()


async def steady(b: Bench, count: int) -> None:
    """The first message, with discovery; then the latency of acknowledgements."""
    identity = b.identity()
    if b.sink.kind == "trap" and b.sink.version == "3":
        b.measured.notes.append(f"the receiver must know this engine id for v3 traps: 0x{identity.engine_id.hex()}")
    sender = TrapSender(b.options(), identity)
    try:
        await sender.open()
        b.measured.add("first message, discovery included", await b.send(sender, b.notice()), "ms")
        took_ms, failed = [], 0
        for _ in range(count):
            await asyncio.sleep(SPACING_S)
            try:
                took_ms.append(await b.send(sender, b.notice()))
            except DeviceError:
                failed += 1
    finally:
        await sender.close()
    what = "acknowledged" if b.sink.kind == "inform" else "sent"
    b.measured.add(what, 100.0 * (count - failed) / count, "%", least=99.0)
    if took_ms and b.sink.kind == "inform":
        for q in (50, 99):
            b.measured.add(f"acknowledgement p{q}", float(np.percentile(took_ms, q)), "ms")
        b.measured.plots.append(Plot("Acknowledgement", "ms", "share", (Line("informs", took_ms),), "cdf"))


async def restart(b: Bench) -> None:
    """Our own restart: the receiver must go on taking our messages, with a higher count of boots."""
    sender = TrapSender(b.options(), b.identity())
    taken = 1
    try:
        await sender.open()
        await b.send(sender, b.notice())
    except DeviceError as error:
        taken = 0
        b.measured.notes.append(f"after our restart: {error}")
    finally:
        await sender.close()
    b.measured.add("taken after our restart", taken, least=1)


async def wrong_keys(b: Bench) -> None:
    """A sender with another key must not be acknowledged: else the receiver does not check."""
    if b.sink.version != "3" or b.sink.kind != "inform":
        b.measured.notes.append("no test of wrong keys: only an acknowledged v3 inform tells")
        return
    options = replace(b.options(), auth_key="not the right pass phrase", timeout_s=1.0)
    sender = TrapSender(options, b.identity())
    taken = 0
    try:
        await sender.open()
        notice = replace(b.notice(), text="trap_hil 0")
        b.sent.pop()
        await b.send(sender, notice)
        taken = 1
    except DeviceError as error:
        b.measured.notes.append(f"wrong key: {error}")
    finally:
        await sender.close()
    b.measured.add("taken with a wrong key", taken, most=0)


async def outage(b: Bench, count: int, seconds: float) -> None:
    """Notices that come while the receiver is down wait on disk and arrive once it is back, in order."""
    queue = TrapQueue(b.folder / QUEUE_FILE, [b.sink.id], 10 * count)
    await queue.open()
    sender = TrapSender(b.options(), b.identity())
    task = SinkTask(
        b.sink, sender, queue, Pace(10**6, SPACING_S / 10 if b.receiver else SPACING_S), SystemClock(),
        rack=b.config.rack.id, enterprise=b.config.traps.enterprise,
    )  # fmt: skip
    await task.open()
    running = asyncio.create_task(task.run())
    try:
        await _pause(b, "Stop the receiver now, then press Enter.", b.receiver.stop if b.receiver else None)
        await queue.put({b.sink.id: [b.notice() for _ in range(count)]}, {})
        task.wake()
        await asyncio.sleep(seconds)
        b.measured.add("waiting on disk while it is down", queue.sinks[b.sink.id].waiting, least=count)
        await _pause(b, "Start the receiver again, then press Enter.", b.receiver.start if b.receiver else None)
        started = time.monotonic()
        while queue.sinks[b.sink.id].waiting and time.monotonic() - started < BACK_S:  # noqa: ASYNC110  another process works
            await asyncio.sleep(0.05)
        b.measured.add("all delivered after it is back", time.monotonic() - started, "s")
        b.measured.add("left undelivered", queue.sinks[b.sink.id].waiting, most=0)
        b.measured.add("dropped", queue.sinks[b.sink.id].dropped, most=0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await task.close()
        await queue.close()


async def _pause(b: Bench, sentence: str, act: Callable[[], None] | None) -> None:
    await asyncio.to_thread(act if act is not None else lambda: input(sentence + " "))


def account(b: Bench) -> None:
    """Each number once, in order: the simulated receiver's own word."""
    found = b.numbers()
    first = list(dict.fromkeys(found))
    b.measured.add("sent in all", len(b.sent))
    b.measured.add("lost", len(set(b.sent) - set(found)), most=0)
    b.measured.add("out of order", sum(later < earlier for earlier, later in pairwise(first)), most=0)
    b.measured.add("came twice", len(found) - len(first))


async def run(b: Bench, options: argparse.Namespace) -> None:
    quick = options.quick
    await steady(b, QUICK_INFORMS if quick else INFORMS)
    await restart(b)
    await wrong_keys(b)
    if b.sink.kind == "inform" and (b.receiver or not options.no_outage):
        await outage(b, QUICK_WAITING if quick else WAITING, QUICK_OUTAGE_S if quick else OUTAGE_S)
    if b.receiver:
        b.receiver.stop()
        account(b)
    else:
        b.measured.notes.append(f"look into the receiver's log: trap_hil 1 to {len(b.sent)}, once each and in order")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--config", type=Path, help="configuration that has the real receiver; a simulated one if not given"
    )
    parser.add_argument("--sink", help="which [[trap_sink]] of it; needed when there are several")
    parser.add_argument("--no-outage", action="store_true", help="leave out the part in which you stop the receiver")
    parser.add_argument("--yes", action="store_true", help="send without asking")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            path, receiver = options.config, None
            if path is None:
                path, receiver = stack.enter_context(simulated_receiver())
            config = load_config(path)
            sink = named(config.trap_sink, options.sink, "--sink")
            where = f"{sink.host} port {sink.port}, version {sink.version}, {sink.kind}s"
            measured = Measured("trap_hil", f"{'simulator: ' if receiver else ''}{where}", receiver is not None)
            if (
                receiver is None
                and not options.yes
                and input(f"Send test notifications to {where}? Type yes: ") != "yes"
            ):
                return 1
            # its own identity and queue: a daemon that runs meanwhile keeps its own
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpi-hil-traps-")))
            asyncio.run(run(Bench(config, sink, folder, measured, receiver), options))
    except RpiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return publish(measured, options)


if __name__ == "__main__":
    sys.exit(main())
