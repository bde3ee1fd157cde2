"""Lateness of the sampling thread against cyclictest: same priority, same period, same load, runs taken in turns.

`python bench/jitter.py --json`, as root or with RLIMIT_RTPRIO; needs cyclictest (Debian rt-tests), and snmpd for the runs
with PDU writes. Paced at 1 kHz, SCHED_FIFO 80, 48 channels: what is timed includes copying a scan into the ring. The load
runs in this process: with the sampler's thread in it, next to cyclictest's. cyclictest is told not to tune the system
(--default-system), which the sampler does not do either. A ratio is the median of the pairs' p99, ours / theirs."""

import asyncio
import contextlib
import os
import select
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import snmpd
from common import parse_arguments, report

from rpi_daemon._fastpath import memory
from rpi_daemon._fastpath.core import Ring, Sampler
from rpi_daemon.drivers.pdu.snmp_session import INTEGER, SnmpEndpoint, SnmpSession, Varbind

PRIORITY, PERIOD_US, N_CHANNELS = 80, 1000, 48
PAIRS, RUN_S = 10, 10
PAIRS_QUICK, RUN_S_QUICK = 3, 2
LONGEST_US = 200_000  # of cyclictest's histogram
OUTLETS, WRITE_EVERY_S = 48, 0.1

Done = Callable[[], int]  # how much the load has done


def ours_us(seconds: int) -> dict[float, float]:
    """Quantiles of the sampler's lateness over one run, us."""
    n_scans = seconds * 1_000_000 // PERIOD_US
    held = [memory.anonymous(Ring.bytes_needed(N_CHANNELS, n_scans + 1000)) for _ in range(2)]
    ring, feed = (Ring(part, n_channels=N_CHANNELS, capacity=n_scans + 1000) for part in held)
    for index in range(n_scans + 1000):
        feed.push(index, 0, 0, 0, np.full(N_CHANNELS, index, np.int32))
    event_fd = os.eventfd(0)
    sampler = Sampler(ring, event_fd=event_fd, fifo_priority=PRIORITY, lock_memory=True)
    sampler.start_paced(feed, PERIOD_US * 1000)
    if not sampler.scheduling().startswith("SCHED_FIFO"):
        sampler.stop()
        raise SystemExit(f"no comparison without real-time scheduling: {sampler.scheduling()}")
    while ring.head < n_scans:
        select.select([event_fd], [], [])
        os.eventfd_read(event_fd)
    sampler.stop()
    os.close(event_fd)
    counters = sampler.counters()
    if counters["starved"] or ring.missing(0, n_scans):
        raise SystemExit(f"the sampler missed scans: {counters}")
    return {q: sampler.lateness_us(q) for q in (0.5, 0.99, 1.0)}


def cyclictest_us(seconds: int) -> dict[float, float]:
    """The same of cyclictest; its whole microseconds are taken at their middle, as ours are."""
    options = ["-t1", f"-p{PRIORITY}", f"-i{PERIOD_US}", "-m", "-q", f"-h{LONGEST_US}", "-D", str(seconds)]
    done = subprocess.run(["cyclictest", *options, "--default-system"], capture_output=True, text=True, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    counts = np.array([int(line[1]) for line in lines if len(line) == 2])
    if done.returncode or counts.sum() == 0:
        raise SystemExit(f"cyclictest failed: {done.stderr.strip() or done.stdout[-300:]}")
    below = np.cumsum(counts)
    return {q: float(np.searchsorted(below, np.ceil(q * below[-1]))) + 0.5 for q in (0.5, 0.99, 1.0)}


@contextlib.contextmanager
def idle() -> Iterator[Done]:
    yield lambda: 0


@contextlib.contextmanager
def busy() -> Iterator[Done]:
    """A Python thread that never gives up the interpreter of its own accord."""
    stop, rounds = threading.Event(), [0]

    def spin() -> None:
        while not stop.is_set():
            rounds[0] += sum(range(1000)) > 0

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield lambda: rounds[0]
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def writes() -> Iterator[Done]:
    """48 limits set and read back ten times a second over SNMPv3 authPriv, by our session from an asyncio loop."""
    done, stop = [0], threading.Event()

    async def keep_writing(agent: snmpd.Snmpd) -> None:
        session = SnmpSession(
            SnmpEndpoint(
                agent.host,
                agent.port,
                user=snmpd.USER,
                auth_key=snmpd.AUTH_KEY,
                priv_key=snmpd.PRIV_KEY,
                timeout_s=2.0,
            )
        )
        oids = [f"{snmpd.BASE_OID}.{i}" for i in range(1, OUTLETS + 1)]
        await session.open()
        while not stop.is_set():
            values = [done[0] + i for i in range(OUTLETS)]
            await session.set([Varbind(oid, INTEGER, value) for oid, value in zip(oids, values, strict=True)])
            if [varbind.value for varbind in await session.get(oids)] != values:
                raise SystemExit("the agent read back something else")
            done[0] += 1
            await asyncio.sleep(WRITE_EVERY_S)
        session.close()

    with tempfile.TemporaryDirectory() as folder, snmpd.Snmpd(Path(folder), OUTLETS) as agent:
        thread = threading.Thread(target=lambda: asyncio.run(keep_writing(agent)))
        thread.start()
        try:
            yield lambda: done[0]
        finally:
            stop.set()
            thread.join()


def main() -> None:
    arguments = parse_arguments(__doc__)
    missing = [name for name in ("cyclictest", "snmpd") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not found: apt install rt-tests snmpd")
    pairs, seconds = (PAIRS_QUICK, RUN_S_QUICK) if arguments.quick else (PAIRS, RUN_S)
    rows, ratios = [], {}
    for name, load in (("idle", idle), ("busy", busy), ("writes", writes)):
        ours, theirs, again = [], [], []
        with load() as done:
            for _ in range(pairs):
                ours.append(ours_us(seconds))
                theirs.append(cyclictest_us(seconds))
                if name == "idle":
                    again.append(cyclictest_us(seconds))
            load_done = done()
        for who, runs in (("sampler", ours), ("cyclictest", theirs + again)):
            middle = {f"p{100 * q:g}_us": statistics.median(run[q] for run in runs) for q in (0.5, 0.99, 1.0)}
            rows.append({"load": name, "load_done": load_done, "who": who, "runs": len(runs), **middle})
        ratios[f"p99_vs_cyclictest_{name}"] = statistics.median(
            our[0.99] / their[0.99] for our, their in zip(ours, theirs, strict=True)
        )
        if again:
            with_itself = [second[0.99] / first[0.99] for first, second in zip(theirs, again, strict=True)]
            ratios["cyclictest_vs_itself_p90"] = float(np.quantile(with_itself, 0.9))
    report("jitter", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
