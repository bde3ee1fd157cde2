"""Ring of scans: push + in-place pop of 48-channel frames against memcpy of the same bytes and a deque of bytes."""

import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path

from common import median_ratio, parse_arguments, report

N_CHANNELS = 48
SLOT_BYTES = 32 + 4 * N_CHANNELS
CAPACITIES = {"in cache": 1_000, "10 min": 600_000}
SOURCE = Path(__file__).with_name("ring_loops.c")


def compiled_loops() -> ctypes.CDLL:
    """The C loops, built with the options of setup.py."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ring_loops.so"
        options = ["-O3", "-std=gnu11", "-Wall", "-fPIC", "-shared", "-pthread"]
        subprocess.run([os.environ.get("CC", "cc"), *options, "-o", library, SOURCE], check=True)
        loops = ctypes.CDLL(str(library))
    for name in ("ring_push_pop", "plain_memcpy", "ring_two_threads"):
        function = getattr(loops, name)
        function.restype = ctypes.c_double
        function.argtypes = [ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64]
    loops.ring_two_threads.argtypes = [*loops.ring_push_pop.argtypes, ctypes.POINTER(ctypes.c_double)]
    return loops


def deque_ns(frames: int) -> float:
    """Append and popleft of one bytes object that is there already: nothing is copied, so no queue of frames yet."""
    queue: deque[bytes] = deque(maxlen=CAPACITIES["in cache"])
    frame = bytes(SLOT_BYTES)
    append, popleft = queue.append, queue.popleft
    start = time.perf_counter_ns()
    for _ in range(frames):
        append(frame)
        popleft()
    return (time.perf_counter_ns() - start) / frames


def deque_copying_ns(frames: int) -> float:
    """The same with each frame copied out of the buffer that it came in, as the ring does: what `vs_deque` compares."""
    queue: deque[bytes] = deque(maxlen=CAPACITIES["in cache"])
    buffer = memoryview(bytearray(SLOT_BYTES))
    append, popleft = queue.append, queue.popleft
    start = time.perf_counter_ns()
    for _ in range(frames):
        append(bytes(buffer))
        popleft()
    return (time.perf_counter_ns() - start) / frames


def two_threads_ns(loops: ctypes.CDLL, frames: int) -> tuple[float, float]:
    """(ns per frame, share of frames that the reader lost to being lapped); a ring that holds all, so that none is."""
    lost = ctypes.c_double()
    spent = loops.ring_two_threads(N_CHANNELS, CAPACITIES["10 min"], frames, ctypes.byref(lost))
    return spent, lost.value


def main() -> None:
    arguments = parse_arguments(__doc__)
    loops = compiled_loops()
    rounds, frames = (5, 300_000) if arguments.quick else (31, 2_000_000)
    spent: dict[str, list[float]] = {}
    for _ in range(rounds):
        for size, capacity in CAPACITIES.items():
            spent.setdefault(f"ring, {size}", []).append(loops.ring_push_pop(N_CHANNELS, capacity, frames))
            spent.setdefault(f"memcpy, {size}", []).append(loops.plain_memcpy(N_CHANNELS, capacity, frames))
        spent.setdefault("deque, same object", []).append(deque_ns(frames // 10))
        spent.setdefault("deque of bytes", []).append(deque_copying_ns(frames // 10))
        two_threads, lost_share = two_threads_ns(loops, min(frames, CAPACITIES["10 min"]))
        spent.setdefault("ring, two threads", []).append(two_threads)
        spent.setdefault("two threads, share lost", []).append(lost_share)
    lost_share = statistics.median(spent.pop("two threads, share lost"))
    rows = [
        {"what": what, "ns_per_frame": statistics.median(values), "best_ns": min(values)}
        for what, values in spent.items()
    ]
    rows.append({"what": "two threads, share lost", "share": lost_share})
    ratios = {
        "vs_memcpy": min(median_ratio(spent[f"memcpy, {size}"], spent[f"ring, {size}"]) for size in CAPACITIES),
        "vs_deque": median_ratio(spent["deque of bytes"], spent["ring, in cache"]),
    }
    report("ring", rows, ratios, arguments.json)


if __name__ == "__main__":
    main()
