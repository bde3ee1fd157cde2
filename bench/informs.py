"""Informs to Debian's snmptrapd, v3 authPriv: none lost while it is down for 10 000 events, then a burst beside the tick.

Absolute figures. The queue, the receiver's task and the sender are the daemon's own; its rate is lifted for the first part,
because at the shipped 60 a minute 10 000 events take hours, and at the highest, 1200 a minute, 8.3 minutes. The second part
is the whole daemon (48 outlets, simulated rack, closed loop) at that highest rate.
"""

import asyncio
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import parse_arguments, report
from snmptrapd import AUTH_KEY, PRIV_KEY, USER, Snmptrapd

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import TrapSink
from rpi_daemon.demo import demo_config, demo_folder, pass_on_hints, running_daemon, simulated_rack
from rpi_daemon.drivers.traps.engine import next_boot
from rpi_daemon.drivers.traps.sender import SinkOptions, TrapSender
from rpi_daemon.records import Notice, Severity
from rpi_daemon.trap_queue import QUEUE_FILE, TrapQueue
from rpi_daemon.trap_task import Pace, SinkTask

EVENTS, QUICK_EVENTS = 10_000, 300
PER_BATCH = 10  # notices that one tick hands over
DOWN_S = 2.0  # how long the receiver's task knocks in vain once all events are there
RACK = "bench"
OUTLETS = 48
BURST = 1000
BURST_S, QUICK_BURST_S = 50.0, 8.0  # 20 a second: so long does the burst last


def event(i: int) -> Notice:
    state = "raised" if i % 2 else "cleared"
    return Notice("overload", state, Severity.CRITICAL, f"overload:{i // 2}", str(i), "an event of the bench", i)


async def outage(folder: Path, receiver: Snmptrapd, events: int) -> Mapping[str, Any]:
    """All events while the receiver is down; then it comes back: what arrives, in which order, how soon."""
    queue = TrapQueue(folder / "queue.sqlite", ["sink"], events)
    await queue.open()
    options = SinkOptions(receiver.host, receiver.port, user=USER, auth_key=AUTH_KEY, priv_key=PRIV_KEY, timeout_s=0.5)
    sink = TrapSink(id="sink", host=receiver.host, user=USER)
    identity = next_boot(folder, time.time_ns(), 32_473, RACK)
    task = SinkTask(
        sink, TrapSender(options, identity), queue, Pace(10**6, 0.0), SystemClock(), rack=RACK, enterprise=32_473
    )
    await task.open()
    running = asyncio.create_task(task.run())
    begin = time.perf_counter()
    saved = [queue.put({"sink": [event(i) for i in range(n, n + PER_BATCH)]}, {}) for n in range(0, events, PER_BATCH)]
    handed_s = time.perf_counter() - begin
    await asyncio.gather(*saved)
    saved_s = time.perf_counter() - begin
    task.wake()
    await asyncio.sleep(DOWN_S)
    while task.reachable is not False:  # noqa: ASYNC110  a machine that stood still
        await asyncio.sleep(0.01)
    waiting = queue.sinks["sink"].waiting
    receiver.start()
    while task.reachable is False:  # noqa: ASYNC110  another process works meanwhile
        await asyncio.sleep(0.01)
    begin = time.perf_counter()
    while queue.sinks["sink"].waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    drained_s = time.perf_counter() - begin
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await task.close()
    await queue.close()
    found = receiver.sequences()
    first_seen = list(dict.fromkeys(found))
    return {
        "part": "receiver down",
        "events": events,
        "queued": waiting,
        "lost": events - len(set(found)),
        "out_of_order": sum(b < a for a, b in pairwise(first_seen)),
        "repeated": len(found) - len(set(found)),
        "left": queue.sinks["sink"].waiting,
        "put_us": handed_s / (events / PER_BATCH) * 1e6,
        "saved_s": saved_s,
        "drain_s": drained_s,
        "informs_per_s": events / drained_s,
    }


SINK = """
[traps]
per_minute = 1200

[[trap_sink]]
id = "bench"
host = "{host}"
port = {port}
user = "{user}"
auth_key_file = "trap-auth.key"
priv_key_file = "trap-priv.key"
"""


def beside_the_tick(informs: int, seconds: float) -> Mapping[str, Any]:
    """The daemon in closed loop for so long, with so many informs that wait for its receiver from the start."""
    with demo_folder(None) as folder:
        config = demo_config(folder, OUTLETS)
        receiver_folder = folder / "receiver"
        receiver_folder.mkdir()
        with Snmptrapd(receiver_folder) as receiver:
            with config.open("a") as f:
                f.write(SINK.format(host=receiver.host, port=receiver.port, user=USER))
            for name, text in (("trap-auth.key", AUTH_KEY), ("trap-priv.key", PRIV_KEY)):
                (folder / name).write_text(text)
                (folder / name).chmod(0o600)
            settings = read_config(config)
            state = settings.path(settings.daemon.state_dir)
            state.mkdir(parents=True, exist_ok=True)
            asyncio.run(fill(state / QUEUE_FILE, informs))
            with simulated_rack(config) as rack, running_daemon(config) as (_, client):
                end = time.monotonic() + seconds
                while (left_s := end - time.monotonic()) > 0.0:
                    pass_on_hints(rack, client)
                    time.sleep(min(1.0, left_s))
                status = client.ask("status")
    keys = ("ticks", "tick_ms_p50", "tick_ms_p99", "write_ms_p50", "write_ms_p99", "cpu_percent", "rss_mb")
    return {
        "part": "beside the tick",
        "waiting": informs,
        "acknowledged": status["trap_sinks"][0]["acknowledged"],
        **{key: status["summary"][key] for key in keys},
    }


async def fill(path: Path, informs: int) -> None:
    queue = TrapQueue(path, ["bench"], informs + 1)
    await queue.open()
    await queue.put({"bench": [event(i) for i in range(informs)]}, {})
    await queue.close()


def main() -> None:
    arguments = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="rpi-informs-") as name:
        receiver = Snmptrapd(Path(name))
        try:
            row = asyncio.run(outage(Path(name), receiver, QUICK_EVENTS if arguments.quick else EVENTS))
        finally:
            receiver.stop()
    seconds = QUICK_BURST_S if arguments.quick else BURST_S
    idle, busy = (beside_the_tick(informs, seconds) for informs in (0, BURST))
    ratios = {key: float(row[key]) for key in ("lost", "out_of_order", "left", "drain_s", "informs_per_s")}
    ratios |= {"tick_ms_p99_idle": idle["tick_ms_p99"], "tick_ms_p99_busy": busy["tick_ms_p99"]}
    ratios |= {"write_ms_p50_idle": idle["write_ms_p50"], "write_ms_p50_busy": busy["write_ms_p50"]}
    report("informs", [row, idle, busy], ratios, arguments.json)


if __name__ == "__main__":
    main()
