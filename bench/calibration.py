"""Calibrated error of the simulated board over 5 to 100 % of range, beside the error of the same board uncalibrated.

The sensors' errors are drawn per channel with standard deviations of 3 % of gain, 2 degrees of phase and 2000 counts of offset (of
8.4 million). Calibrated at zero and two resistive loads; then read by the daemon's window kernel over loads that the fit never saw, at
power factors 1 and 0.5, against what an ideal meter reads.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import numpy as np
from common import parse_arguments, report
from numpy.typing import NDArray

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription
from rpi_daemon.calibration import Calibration, Correction, Instrument, correction, own_word
from rpi_daemon.calibration_fit import Fit, Reference, Sensor, Step, measure
from rpi_daemon.drivers.sensors.plant import LoadBank, Plant, PlantOptions, demo_rack

N_OUTLETS, FULL_SCALE_A = 24, 50.0
ERRORS = {"gain_error_sd": 0.03, "phase_error_sd_deg": 2.0, "offset_sd_counts": 2000.0}
CALIBRATED_AT = (0.1, 0.8)  # of range
SWEEP = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
WANDER = 1.015  # the simulated supply wanders by 1 %, and the loads with it
POWER_FACTORS = {"ac": (1.0, 0.5), "dc": (1.0,)}
SCANS = 3000
QUANTITIES = {"A": core.F_RMS_A, "V": core.F_VOLTAGE_V, "W": core.F_POWER_W}
Truth = NDArray[np.float64]


class Bench:
    """One board with its sensors' errors; every outlet has the same load."""

    def __init__(self, supply: str, seed: int) -> None:
        self.dc = supply == "dc"
        options = PlantOptions(
            supply=supply, voltage_v=54.0 if self.dc else 230.0, full_scale_v=100.0 if self.dc else 500.0,
            full_scale_a=FULL_SCALE_A, **ERRORS,
        )  # fmt: skip
        self.plant = Plant(demo_rack(N_OUTLETS, seed), options, seed=seed)
        channels = self.plant.channels
        volts = self.plant.advance(1000)[:, N_OUTLETS:].astype(np.float64)
        crest = np.max(np.abs(volts)) / np.sqrt(np.mean(volts**2))
        # the largest load that each sensor can count, peaks included
        self.range_a = [FULL_SCALE_A / (1.0 + c.gain_error) / crest / WANDER for c in channels[:N_OUTLETS]]
        self.wired = [(i, N_OUTLETS + i % self.plant.n_phases, 1.0) for i in range(N_OUTLETS)]
        self.description = BoardDescription(
            1000,
            1_000_000,
            "BENCH",
            "sim",
            0,
            tuple(
                ChannelDescription(c.kind, c.number, c.scale, c.skew_ns, c.full_scale_counts, c.name) for c in channels
            ),  # type: ignore[arg-type]
        )
        self.sensors = tuple(
            Sensor(i + 1, c.kind, c.name, c.scale, -float(c.skew_ns), c.full_scale_counts, (self.wired[i][1],) if i < N_OUTLETS else ())  # type: ignore[arg-type]
            for i, c in enumerate(channels)
        )  # fmt: skip

    def load(self, share: float, power_factor: float) -> tuple[NDArray[np.int32], Truth]:
        """Counts under one load on every outlet, and what ideal meters average meanwhile: [outlets, (A, V, W)]."""
        for i in range(N_OUTLETS):
            self.plant.set_load_bank(i, LoadBank(share * self.range_a[i], power_factor))
        counts, truths = [], []
        for _ in range(SCANS // 100):
            counts.append(self.plant.advance(100))
            truths.append([self.plant.truth(i) for i in range(N_OUTLETS)])
        return np.concatenate(counts), np.array(truths).mean(axis=0)

    def calibrate(self) -> Correction:
        fit = Fit(self.sensors, dc=self.dc)
        outlets = tuple(range(N_OUTLETS))
        for share in (0.0, *CALIBRATED_AT):
            counts, truth = self.load(share, 1.0)
            measured = measure(counts, np.ones(SCANS, np.bool_), self.sensors, dc=self.dc)
            references = {i: Reference(*truth[i].tolist(), resistive=True) for i in outlets} if share else {}
            fit.steps.append(Step(outlets, measured, references))
        records = fit.records(datetime.now(UTC), Instrument(name="ideal"))
        refused = [record.verdict for record in records if not record.good]
        if refused:
            raise SystemExit("\n".join(refused))
        file = Calibration(
            board="bench", serial_number="BENCH", n_channels=len(self.sensors), supply="dc" if self.dc else "ac",
            date=datetime.now(UTC), operator="bench", ambient_c=None, channels=tuple(records),
        )  # fmt: skip
        return correction(file, self.description, "bench")

    def reader(self, how: Correction) -> Callable[[NDArray[np.int32]], Truth]:
        """Counts to what the daemon would show: [outlets, (A, V, W)]."""
        n = len(self.sensors)
        kernel = core.WindowKernel(
            n, outlets=self.wired, gain=how.gain, offset_counts=how.offset_counts, delay_ns=how.delay_ns,
            full_scale_counts=[c.full_scale_counts for c in self.description.channels], dc=self.dc,
        )  # fmt: skip

        def read(counts: NDArray[np.int32]) -> Truth:
            ring = core.Ring(bytearray(core.Ring.bytes_needed(n, SCANS)), n_channels=n, capacity=SCANS)
            for k, row in enumerate(counts):
                ring.push(k, k * 1_000_000, k, 0, np.ascontiguousarray(row))
            rows = []
            for end in range(100 * (-(-kernel.span // 100)), SCANS + 1, 100):
                if kernel.compute(ring, end) != core.WINDOW_OK:
                    raise SystemExit("a window could not be computed")
                if kernel.out[:, core.F_QUALITY].any():
                    raise SystemExit("a sample is saturated or missing")
                rows.append(kernel.out[:, list(QUANTITIES.values())])
            return np.mean(rows, axis=0)

        return read


def sweep(bench: Bench, supply: str) -> list[dict[str, object]]:
    """The worst channel of both at every load, % of reading."""
    readers: Mapping[str, Callable[[NDArray[np.int32]], Truth]] = {
        "calibrated": bench.reader(bench.calibrate()),
        "uncalibrated": bench.reader(own_word(bench.description)),
    }
    rows: list[dict[str, object]] = []
    for power_factor in POWER_FACTORS[supply]:
        for share in SWEEP:
            counts, truth = bench.load(share, power_factor)
            row: dict[str, object] = {"supply": supply, "power_factor": power_factor, "load_percent": 100.0 * share}
            for name, read in readers.items():
                error = 100.0 * np.abs(read(counts) / truth - 1.0).max(axis=0)
                row |= {f"{name}_{unit}_percent": float(value) for unit, value in zip(QUANTITIES, error, strict=True)}
            rows.append(row)
    return rows


def main() -> None:
    args = parse_arguments(__doc__)
    rows: list[dict[str, object]] = []
    for supply in POWER_FACTORS:
        for seed in (1,) if args.quick else (1, 2, 3):
            rows += [{"board": seed, **row} for row in sweep(Bench(supply, seed), supply)]

    def worst(name: str) -> float:
        return max(float(str(row[f"{name}_{unit}_percent"])) for row in rows for unit in QUANTITIES)

    calibrated, uncalibrated = worst("calibrated"), worst("uncalibrated")
    ratios = {
        "calibrated_percent": calibrated,
        "uncalibrated_percent": uncalibrated,
        "uncalibrated_vs_calibrated": uncalibrated / calibrated,
    }
    report("calibration", rows, ratios, args.json)


if __name__ == "__main__":
    main()
