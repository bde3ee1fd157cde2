"""Window kernel against vectorised NumPy: time to turn the newest 200 scans into the features of all outlets."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from common import median_ratio, parse_arguments, report

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.reference_window import ReferenceKernel
from rpi_daemon.features import BoardSetup, Features
from rpi_daemon.records import RackModel

CHANNELS = (24, 48, 96)
PHASES = 3
ROUNDS = 15
HOPS = 40  # windows a round, each of another 200 scans as in service


def scans(n_current: int, rng: np.random.Generator, *, lossy: bool) -> core.Ring:
    """A ring of AC currents and three voltages; lossy: one scan in 200 is missing."""
    channels = n_current + PHASES
    n = 100 * HOPS + 400
    t_s = np.arange(n)[:, None] / 1000.0
    angle = 2 * np.pi * 50.0 * t_s + rng.uniform(0, 2 * np.pi, channels)
    counts = 2e6 * (np.sin(angle) + 0.1 * np.sin(3 * angle)) + rng.normal(0, 100, (n, channels))
    ring = core.Ring(np.zeros(core.Ring.bytes_needed(channels, n), np.uint8), n_channels=channels, capacity=n)
    rows = counts.astype(np.int32)
    for k in range(n):
        if not (lossy and k % 200 == 77):
            ring.push(k, k * 1_000_000, k, 0, rows[k])
    return ring


def kernels(n_current: int, rng: np.random.Generator, *, delays: bool) -> dict[str, Any]:
    """Ours, ours without wide vectors, and NumPy; delays: every current channel has its own skew and phase."""
    channels = n_current + PHASES
    delay_ns = np.zeros(channels)
    if delays:
        delay_ns[:n_current] = 2_000.0 * np.arange(n_current) + rng.uniform(0, 60_000, n_current)
    options: dict[str, Any] = {
        "outlets": [(c, n_current + c % PHASES, 1.0) for c in range(n_current)],
        "gain": np.full(channels, 1e-5),
        "full_scale_counts": np.full(channels, 2**23 - 2),
        "delay_ns": delay_ns,
    }
    return {
        "ours": core.WindowKernel(channels, **options),
        "ours_16_byte": core.WindowKernel(channels, **options, portable=True),
        "numpy": ReferenceKernel(channels, **options),
    }


def round_us(compute: Callable[[core.Ring, int], int], ring: core.Ring) -> float:
    """Median time of one window over HOPS successive ones, µs."""
    times = []
    for end in range(400, 400 + 100 * HOPS, 100):
        start = time.perf_counter_ns()
        compute(ring, end)
        times.append((time.perf_counter_ns() - start) / 1000)
    return median(times)


def measure(n_current: int, *, delays: bool, lossy: bool) -> tuple[dict[str, object], float]:
    rng = np.random.default_rng(7)
    ring = scans(n_current, rng, lossy=lossy)
    contestants = kernels(n_current, rng, delays=delays)
    for kernel in contestants.values():
        if kernel.compute(ring, 400) != core.WINDOW_OK:
            raise SystemExit("the window could not be computed")
    np.testing.assert_allclose(
        contestants["ours"].out[:, core.F_POWER_W], contestants["numpy"].out[:, core.F_POWER_W], atol=0.1
    )
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, kernel in contestants.items():
            times[name].append(round_us(kernel.compute, ring))
    ratio = median_ratio(times["numpy"], times["ours"])
    row: dict[str, object] = {"current_channels": n_current, "delays": delays, "one_scan_lost": lossy}
    row |= {f"{name}_us": median(values) for name, values in times.items()}
    return row | {"vs_numpy": ratio}, ratio


def step_us(n: int) -> float:
    """Median time of a whole Features.step for n outlets on one board, every current channel delayed, µs."""
    rng = np.random.default_rng(7)
    ring = scans(n, rng, lossy=False)
    growing = core.Ring(
        np.zeros(core.Ring.bytes_needed(n + PHASES, 4096), np.uint8), n_channels=n + PHASES, capacity=4096
    )
    rack = RackModel(
        rack="bench",
        outlet_ids=tuple(f"outlet{i}" for i in range(n)),
        pdu_of=("pdu",) * n,
        number_of=tuple(range(1, n + 1)),
        load_of=np.arange(n),
        rating_w=np.full(n, 3000.0),
        static_safe_w=np.full(n, 500.0),
        nominal_v=np.full(n, 230.0),
        opted_in=np.zeros(n, np.bool_),
        loads=(),
        constraints=(),
    )
    kernel = kernels(n, rng, delays=True)["ours"]
    features = Features(rack, [BoardSetup(growing, kernel, np.arange(n))])
    rows = np.ascontiguousarray(ring.scans["counts"])
    times = []
    for k in range(len(rows)):
        growing.push(k, k * 1_000_000, k, 0, rows[k])
        if k % 100 == 99 and k >= 399:
            start = time.perf_counter_ns()
            readings = features.step((k + 1) * 1_000_000, 0)
            times.append((time.perf_counter_ns() - start) / 1000)
            if not readings.valid.all():
                raise SystemExit("a window was not valid")
    return median(times)


def main() -> None:
    args = parse_arguments(__doc__)
    rows: list[dict[str, object]] = []
    ratios: dict[str, float] = {}
    for n_current in CHANNELS:
        for delays, lossy in ((False, False), (True, False), (True, True)):
            row, ratio = measure(n_current, delays=delays, lossy=lossy)
            rows.append(row)
            ratios[f"vs_numpy_{n_current}{'_delays' * delays}{'_lossy' * lossy}"] = ratio
    ratios["vs_numpy"] = min(ratio for name, ratio in ratios.items() if name.startswith("vs_numpy_48"))
    rows.append({"current_channels": 48, "delays": True, "one_scan_lost": False, "features_step_us": step_us(48)})
    report("window", rows, ratios, args.json)


if __name__ == "__main__":
    main()
