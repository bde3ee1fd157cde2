"""What keeping costs: bytes on disk and written per day, the tick, the writer's thread, a question, for 48 outlets.

Simulated servers of the demo (restless: something goes on in any 30 s) with a meter's noise, fed as fast as the disk takes
them and scaled to a day; 10 000 limit changes a day. `written` is what was handed to `write(2)`: every page of the log
and of the file, however the kernel joins them.
"""

import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import parse_arguments, report

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import History as Options
from rpi_daemon.drivers.sensors.plant import demo_rack, simulate_power
from rpi_daemon.history.query import read_series
from rpi_daemon.history.weeks import History
from rpi_daemon.keeping import Keeping
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import (
    TICK_NS,
    Desired,
    Forecast,
    LimitKind,
    LimitsInForce,
    Mode,
    RackModel,
    Readings,
    Request,
    Residual,
    SafeState,
    SafeStatus,
)

OUTLETS = 48
MINUTE = 600  # ticks
DAY_MINUTES = 1440
LIMITS_PER_DAY = 10_000
EXPERTS = 7  # of the mixture
AHEAD = 50  # ticks of the forecast
METER_NOISE_W = 0.3
WAITING = 5  # minutes that the feeder is ahead of the disk at most
T0 = 1_763_337_600 * NS_PER_S  # a Monday: all in one file
DAYS = 30


class Rack:
    """Everything of a run: what each tick's snapshot holds, [n, ticks]."""

    def __init__(self, minutes: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        ticks = minutes * MINUTE
        self.model: RackModel = rack_model(_config())
        servers = demo_rack(OUTLETS, seed)
        power_w = np.array([simulate_power(s, ticks / 10 + 10, rng).power_w[: ticks + AHEAD] for s in servers])
        power_w += rng.normal(0.0, METER_NOISE_W, power_w.shape)
        self.power_w = np.maximum(power_w[:, :ticks], 0.0)
        phase_v = 230.0 + np.cumsum(rng.normal(0.0, 0.02, (3, ticks)), axis=1) + rng.normal(0.0, 0.15, (3, ticks))
        self.voltage_v = phase_v[np.arange(OUTLETS) % 3]
        load = self.power_w / 700.0
        self.power_factor = np.clip(0.82 + 0.15 * load**0.3 + rng.normal(0.0, 0.002, load.shape), 0.0, 1.0)
        self.apparent_va = self.power_w / self.power_factor
        self.rms_a = self.apparent_va / self.voltage_v
        self.peak_a = self.rms_a * (1.55 + rng.normal(0.0, 0.015, load.shape))
        kernel = np.full(20, 1 / 20)
        smooth = np.array([np.convolve(row, kernel, "full")[:ticks] for row in self.power_w])
        self.forecast_w = 0.7 * self.power_w + 0.3 * smooth
        self.highest_w = self.forecast_w * 1.05 + 15.0
        self.request_w = self.highest_w + 10.0 + np.cumsum(rng.normal(0.0, 0.05, load.shape), axis=1)
        self.residual_w = self.power_w - np.roll(self.forecast_w, AHEAD, axis=1)
        self.limit_w = np.full(OUTLETS, 600.0)
        self.changes = rng.random(ticks) < LIMITS_PER_DAY / DAY_MINUTES / MINUTE
        self.changed = rng.integers(OUTLETS, size=ticks)

    def snapshots(self) -> Iterator[Snapshot]:
        n = OUTLETS
        nothing = np.full(n, np.nan)
        false = np.zeros(n, np.bool_)
        zero = np.zeros(n, np.int64)
        kind = (LimitKind.ALARM,) * n
        weights = {f"expert-{k}": np.full(n, 1 / EXPERTS) for k in range(EXPERTS)}
        telemetry = np.full((n, 4), np.nan)
        safe = SafeStatus(SafeState.NORMAL, (), (), 0)
        for k in range(self.power_w.shape[1]):
            t_ns = k * TICK_NS
            if self.changes[k]:
                self.limit_w[self.changed[k]] = np.round(self.request_w[self.changed[k], k])
            readings = Readings(
                t_ns, T0 + t_ns, self.power_w[:, k], self.rms_a[:, k], self.apparent_va[:, k], self.power_factor[:, k],
                self.peak_a[:, k], nothing, nothing, nothing, np.zeros(n), self.voltage_v[:, k],
                zero + 100, zero, zero, ~false, zero + 1,
            )  # fmt: skip
            value_w, highest_w = (
                np.broadcast_to(x[:, k, None, None], (n, 5, 3)) for x in (self.forecast_w, self.highest_w)
            )
            residual = Residual(
                t_ns, t_ns - AHEAD * TICK_NS, self.residual_w[:, k], nothing, self.power_w[:, k], self.request_w[:, k],
                false, ~false, self.residual_w[:, k],
            )  # fmt: skip
            in_force = LimitsInForce(
                self.limit_w.copy(), zero, kind, nothing, nothing, false, false, np.ones(n), nothing, false, nothing,
            )  # fmt: skip
            found: dict[str, Any] = {
                "t_mono_ns": t_ns, "t_utc_ns": T0 + t_ns, "mode": Mode.CLOSED_LOOP, "readings": readings, "residual": residual,
                "forecast": Forecast(t_ns, value_w, highest_w, ("mixture",) * n),
                "request": Request(t_ns, self.request_w[:, k], nothing, false, nothing), "safe": safe,
                "telemetry": telemetry, "weights": weights, "request_weights": weights, "in_force": in_force, "desired": tuple[Desired, ...](), "foreign": (),
            }  # fmt: skip
            yield Snapshot(**dict.fromkeys(Snapshot.__dataclass_fields__, None) | found)


def _config() -> Any:
    keys = "".join(f'{key}_key_file = "{key}.key"\n' for key in ("auth", "priv"))
    text = demo_toml(OUTLETS).replace(keys, 'auth_key_env = "KEY"\npriv_key_env = "KEY"\n')
    return parse_config(text, "demo", base_dir=Path(), env={"KEY": "a secret of 16 characters"})


def written_bytes() -> int:
    """Octets that this process has handed to write(2) so far (proc(5): io)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def writer_cpu_s() -> float:
    """CPU time of the thread that writes, s (proc(5): fields 14 and 15 of stat, in clock ticks)."""
    thread = next(thread for thread in threading.enumerate() if thread.name == "history")
    fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fill(folder: Path, rack: Rack, minutes: int) -> tuple[dict[str, float], list[float]]:
    """Keep the whole run; figures of the writer, and each tick's duration in ms."""
    keeping = Keeping(folder, folder, ManualClock(0, T0), Options(keep_days=3650.0))
    keeping.open()
    keeping.begin(rack.model, "bench", np.ones(OUTLETS, np.int64), {})
    tick_ms = []
    before = written_bytes()
    for k, snapshot in enumerate(rack.snapshots()):
        began = time.perf_counter()
        keeping.tick(snapshot)
        tick_ms.append((time.perf_counter() - began) * 1e3)
        while k % MINUTE == 0 and k // MINUTE - keeping.status()["blocks_written"] > WAITING:
            time.sleep(0.002)
    while keeping.status()["blocks_written"] < minutes - 1:
        time.sleep(0.002)
    cpu_s = writer_cpu_s()
    keeping.close()
    written = written_bytes() - before
    status = keeping.status()
    assert status["blocks_dropped"] == status["limits_dropped"] == 0
    on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("history"))
    day = DAY_MINUTES / minutes
    figures = {
        "disk_mb_per_day": on_disk / 1e6 * day,
        "disk_gb_30_days": on_disk / 1e9 * day * DAYS,
        "written_mb_per_day": written / 1e6 * day,
        "writer_ms_per_minute": cpu_s / minutes * 1e3,
        "limits_written": float(status["limits_written"]),
    }
    return figures, tick_ms


def ask_ms(folder: Path, minutes: int) -> float:
    """One outlet's power over all that was kept, scaled to a day, ms; the file's pages are in memory."""
    took = []
    for outlet in range(1, 4):
        began = time.perf_counter()
        answer = read_series(History(folder), "demo", [f"pdu-a/{outlet}"], "power_w", 0, T0 * 2)
        took.append((time.perf_counter() - began) * 1e3)
        assert len(answer.series[0].t_ns) == minutes * MINUTE
    return statistics.median(took) * DAY_MINUTES / minutes


def main() -> None:
    arguments = parse_arguments(__doc__)
    minutes = 30 if arguments.quick else 300
    rack = Rack(minutes)
    with tempfile.TemporaryDirectory(prefix="rpi-history-") as name:
        figures, tick_ms = fill(Path(name), rack, minutes)
        asked_ms = ask_ms(Path(name), minutes)
    row = {
        "outlets": OUTLETS,
        "minutes": minutes,
        **figures,
        "tick_ms_p50": float(np.quantile(tick_ms, 0.5)),
        "tick_ms_p99": float(np.quantile(tick_ms, 0.99)),
        "ask_outlet_day_ms": asked_ms,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    report("history", [row], {}, arguments.json)


if __name__ == "__main__":
    main()
