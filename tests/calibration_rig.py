"""Calibration files by hand, and a simulated board with sensor errors beside an ideal meter."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from config_examples import TWO_OUTLETS

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription
from rpi_daemon.calibration import Calibration, ChannelRecord, Instrument, Residual
from rpi_daemon.calibration_fit import Fit, Reference, Sensor, Step, measure
from rpi_daemon.drivers.sensors.board_sim import SimulatedBoard
from rpi_daemon.drivers.sensors.plant import LoadBank, Plant, PlantOptions, demo_rack

N_OUTLETS = 3
ERRORS = {"gain_error_sd": 0.03, "phase_error_sd_deg": 2.0, "offset_sd_counts": 2000.0}
FULL_SCALE_A = 10.0  # peak
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
METER = Instrument(name="WT310", serial_number="C2QG1", uncertainty_percent=0.1)
TOML = TWO_OUTLETS.replace("channels", 'calibration = "b.json"\nchannels')


def record(channel: int, kind: str = "current", **changes: object) -> ChannelRecord:
    values: dict[str, object] = {
        "channel": channel,
        "kind": kind,
        "name": f"pdu-a/{channel}",
        "gain": 1.03e-3,
        "offset_counts": 12.5,
        "delay_ns": 110_000.0,
        "phase_known": True,
        "range": 35.0,
        "noise_percent": 0.01,
        "repeatability_percent": 0.05,
        "residuals": (Residual(quantity="A", reference=5.0, measured=5.001, error_percent=0.02),),
        "good": True,
        "verdict": "good",
        "date": NOW,
        "instrument": METER,
    }
    return ChannelRecord.model_validate({**values, **changes})


def calibration(*records: ChannelRecord, **changes: object) -> Calibration:
    values: dict[str, object] = {
        "board": "b",
        "serial_number": "SN-42",
        "n_channels": 3,
        "supply": "ac",
        "date": NOW,
        "operator": "M. Keller",
        "ambient_c": 23.0,
        "channels": records or (record(1), record(3, "voltage", gain=0.98e-2, delay_ns=-2000.0)),
    }
    return Calibration.model_validate({**values, **changes})


class Rig:
    """Three outlets on three phases (or a DC bus); what is plugged in is given per step."""

    def __init__(self, seed: int = 1, n_outlets: int = N_OUTLETS, **options: object) -> None:
        supply = str(options.get("supply", "ac"))
        chosen = PlantOptions(full_scale_a=FULL_SCALE_A, **{**ERRORS, **options})  # type: ignore[arg-type]
        self.plant = Plant(demo_rack(n_outlets, seed), chosen, seed=seed)
        self.board = SimulatedBoard(self.plant, seed=seed)
        self.dc = supply == "dc"
        n = n_outlets
        self.n = n
        self.sensors = tuple(
            Sensor(
                number=i + 1,
                kind="current" if i < n else "voltage",
                name=f"pdu-a/{i + 1}" if i < n else channel.name,
                scale=channel.scale,
                delay_ns=-float(channel.skew_ns),
                full_scale_counts=channel.full_scale_counts,
                voltage=((n + i % self.plant.n_phases,) if i < n else ()),
            )
            for i, channel in enumerate(self.plant.channels)
        )
        self.fit = Fit(self.sensors, dc=self.dc)
        for i in range(n):
            self.plant.set_load_bank(i, LoadBank(0.0))

    @property
    def description(self) -> BoardDescription:
        channels = tuple(
            ChannelDescription(c.kind, c.number, c.scale, c.skew_ns, c.full_scale_counts, c.name)  # type: ignore[arg-type]
            for c in self.plant.channels
        )
        return BoardDescription(1000, 1_000_000, self.board.serial_number, "sim", 0, channels)

    def counts(self, scans: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
        """What the board would send."""
        return np.concatenate([self.board._take(20) for _ in range(scans // 20)])

    def step(
        self,
        loads: Mapping[int, tuple[float, float]],
        channels: Sequence[int] | None = None,
        scans: int = 3000,
        resistive: bool | None = None,
    ) -> Step:
        """Test loads (A, power factor) on some outlets for some time, and what an ideal meter averages meanwhile."""
        for i in range(self.n):
            self.plant.set_load_bank(i, LoadBank(*loads.get(i, (0.0, 1.0))))
        self.board._block = self.board._block[:0]
        parts, truths = [], []
        for _ in range(scans // 100):
            parts.append(self.counts(100))
            truths.append([self.plant.truth(i) for i in range(self.n)])
        truth = np.array(truths).mean(axis=0)
        counts = np.concatenate(parts)
        measured = measure(counts, np.ones(len(counts), np.bool_), self.sensors, dc=self.dc)
        references = {
            i: Reference(
                amps=float(truth[i, 0]),
                volts=float(truth[i, 1]),
                watts=float(truth[i, 2]),
                resistive=(loads[i][1] == 1.0) if resistive is None else resistive,
            )
            for i in loads
        }
        return Step(tuple(channels if channels is not None else loads or range(self.n)), measured, references)
