"""What a durable audit record adds to a write: from `asked` to its return on this disk, beside a bare fsync of as much."""

import asyncio
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from common import new_parser, report

from rpi_daemon.audit import Asked, Audit, Intent
from rpi_daemon.clock import SystemClock
from rpi_daemon.records import WriteOutcome

WRITES, QUICK_WRITES = 2000, 100
PAUSE_S = 0.01  # between two batches: the thread has time for the outcome and for the head
OUTLETS = (1, 24, 48)  # of a batch


def intents(outlets: int) -> list[Intent]:
    return [
        Intent(f"pdu-a/{k}", "alarm", 500.0, 612.5, "raise", "granted", False, 600.0, 12.0, 588.0, 0.99, 640.0)
        for k in range(1, outlets + 1)
    ]


async def audited(folder: Path, outlets: int, writes: int) -> tuple[list[float], float]:
    """ms of each write, and octets on disk of each."""
    audit = Audit(folder, SystemClock(), keep_days=400.0)
    audit.open()
    wanted, found = intents(outlets), []
    for _ in range(writes):
        began = time.perf_counter()
        asked: Asked = await audit.asked("pdu-a", wanted)
        found.append((time.perf_counter() - began) * 1e3)
        now_ns = time.monotonic_ns()
        audit.ended(
            asked, "pdu-a", [WriteOutcome(k + 1, 612.5, 612.0, True, None, now_ns, now_ns) for k in range(outlets)]
        )
        audit.look()
        await asyncio.sleep(PAUSE_S)
    audit.close()
    size = sum(path.stat().st_size for path in (folder / "audit").iterdir())
    return found, size / writes


def bare(folder: Path, writes: int) -> list[float]:
    """ms of appending one page and syncing it."""
    found = []
    with (folder / "bare").open("wb", buffering=0) as file:
        for _ in range(writes):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            found.append((time.perf_counter() - began) * 1e3)
            time.sleep(PAUSE_S)
    return found


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the temporary folder's if not given")
    arguments = parser.parse_args()
    writes = QUICK_WRITES if arguments.quick else WRITES
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        found = {0: (bare(Path(name), writes), 4096.0)}
        for outlets in OUTLETS:
            folder = Path(name) / str(outlets)
            folder.mkdir()
            found[outlets] = asyncio.run(audited(folder, outlets, writes))
    for outlets, (taken_ms, octets) in found.items():
        what = f"a batch of {outlets}" if outlets else "a page, fdatasync"
        p50, p99, most = (float(np.percentile(taken_ms, q)) for q in (50, 99, 100))
        rows.append(
            {
                "write": what,
                "outlets": outlets,
                "writes": writes,
                "p50_ms": p50,
                "p99_ms": p99,
                "max_ms": most,
                "octets": octets,
            }
        )
    page, batch = found[0][0], found[48][0]
    ratios = {f"p{q}_batch_of_48_vs_page": float(np.percentile(batch, q) / np.percentile(page, q)) for q in (50, 99)}
    report("audit", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
