"""Histories of made loads, clean or spoiled, as the daemon would have written them."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.blobs import pack
from rpi_daemon.history.weeks import FRESH_SHIFT, MARKS, Layout, insert, open_for_writing, path_of
from rpi_daemon.records import TICK_NS, FloatArray, IntArray

RATING_W = 600.0
T0 = 1_795_260_000 * NS_PER_S // (60 * NS_PER_S) * 60 * NS_PER_S
MINUTE_NS = 60 * NS_PER_S
FRESH_BOARD = ((1 << 10) - 1) << FRESH_SHIFT
FRESH_METER = 1 << FRESH_SHIFT

Spoil = Callable[[int, FloatArray, IntArray], None]  # minute, power_w [n, 600], marks [n, 60]: changed in place


def layout_of(n: int, *, rack: str = "rack", calibration: str = "cal", slow: int = 0) -> Layout:
    names = tuple(f"a/{k + 1}" for k in range(n))
    return Layout(rack, names, calibration, tuple(f"load-{k + 1}" for k in range(n)), (1,) * (n - slow) + (10,) * slow)


def keep_loads(
    folder: Path,
    n: int,
    minutes: int,
    *,
    spoil: Spoil = lambda *_: None,
    seed: int = 1,
    slow: int = 0,
    layout: Layout | None = None,
    t_ns: int = T0,
) -> None:
    """Square waves with noise, each outlet at its own period; the last `slow` outlets are read once a second."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    layout = layout or layout_of(n, slow=slow)
    weeks: dict[Path, list[tuple[str, int, int, int, bytes, int | None]]] = {}
    period = rng.uniform(150.0, 400.0, (n, 1))
    for minute in range(minutes):
        at_ns = t_ns + minute * MINUTE_NS
        tick = np.arange(600) + 600 * minute
        power_w = 200.0 + 60.0 * np.sign(np.sin(2.0 * np.pi * tick / period)) + 4.0 * rng.standard_normal((n, 600))
        marks = np.full((n, 60), FRESH_BOARD)
        if slow:
            power_w[-slow:] = np.repeat(power_w[-slow:, ::10], 10, axis=1)
            marks[-slow:] = FRESH_METER
        spoil(minute, power_w, marks)
        blocks = [
            ("power_w", at_ns, at_ns, TICK_NS, pack(power_w, 0.2), None),
            (MARKS, at_ns, at_ns, NS_PER_S, pack(marks, 1.0), None),
        ]
        weeks.setdefault(path_of(folder, at_ns), []).extend(blocks)
    for path, blocks in weeks.items():
        with contextlib.closing(open_for_writing(path)) as connection:
            insert(connection, layout, blocks, [])


def ratings_of(n: int) -> dict[str, float]:
    return {f"a/{k + 1}": RATING_W for k in range(n)}
