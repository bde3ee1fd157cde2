"""The simulated rack as a sensor inside the daemon: no hardware, no second process."""

from collections.abc import Sequence

from rpi_daemon.config.schema import Board, OutletRow, Rack
from rpi_daemon.drivers.sensors.paced import PlantSource, board_plant, servers_for


class SimulatedSource(PlantSource):
    """Made-up work on every outlet."""

    label = "simulated"

    def __init__(self, board: Board, rows: Sequence[OutletRow], rack: Rack, seed: int = 1) -> None:
        super().__init__(board_plant(board, rows, rack, servers_for(rows, seed=seed), seed))
