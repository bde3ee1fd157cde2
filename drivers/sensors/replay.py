"""A recorded power trace as a sensor: slower than 1 kHz it is up-sampled, and the label says so."""

from collections.abc import Sequence
from pathlib import Path

from rpi_daemon.config.schema import Board, OutletRow, Rack
from rpi_daemon.drivers.sensors.paced import RATE_HZ, PlantSource, board_plant, servers_for
from rpi_daemon.drivers.sensors.traces import Trace, read_traces


class ReplaySource(PlantSource):
    """Every outlet draws what a recording says; several outlets share one, shifted. Raises TraceError."""

    def __init__(self, board: Board, rows: Sequence[OutletRow], rack: Rack, traces: Sequence[Trace] | Path) -> None:
        if isinstance(traces, Path):
            traces = read_traces(traces)
        super().__init__(board_plant(board, rows, rack, servers_for(rows, traces), seed=1))
        slowest_hz = min(trace.rate_hz for trace in traces)
        self.label = "recorded" if slowest_hz >= RATE_HZ else f"recorded at {slowest_hz:.3g} Hz, up-sampled"
