"""Sensor boards inside the daemon: a plant whose scans are made ahead of time and go out at the host's clock."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription, Ring
from rpi_daemon.config.schema import Board, OutletRow, Rack
from rpi_daemon.drivers.sensors.plant import Plant, PlantOptions, Workload, demo_rack
from rpi_daemon.drivers.sensors.traces import Trace

RATE_HZ = 1000
AHEAD_SCANS = 1000  # made this far ahead: the daemon's loop may stand still for a second
BLOCK_SCANS = 50
TRACE_SHIFT_S = 7.0  # outlets that share a recording are at different places of it


def servers_for(rows: Sequence[OutletRow], traces: Sequence[Trace] = (), seed: int = 1) -> list[Workload]:
    """A server per outlet, none larger than its outlet; recordings take the place of the made-up work."""
    servers = []
    for i, (server, row) in enumerate(zip(demo_rack(len(rows), seed), rows, strict=True)):
        scale = min(1.0, row.rating_w / server.rating_w)
        server = replace(
            server,
            name=row.load,
            rating_w=scale * server.rating_w,
            idle_w=scale * server.idle_w,
            busy_w=scale * server.busy_w,
        )
        if traces:
            start_s = (i // len(traces)) * TRACE_SHIFT_S
            server = replace(server, rating_w=row.rating_w, trace=traces[i % len(traces)], start_s=start_s)
        servers.append(server)
    return servers


def board_plant(
    board: Board, rows: Sequence[OutletRow], rack: Rack, servers: Sequence[Workload], seed: int, **errors: float
) -> Plant:
    """The plant behind one configured board, its channels in the order of the configuration. `servers` as `rows`.

    `errors`: those of its sensors, by their names in PlantOptions.
    """
    names = [channel.partition(":")[2] for channel in board.channels]
    currents = board.currents()
    mine = [i for i, row in enumerate(rows) if row.id in currents]
    phases = sorted(name for channel, name in zip(board.channels, names, strict=True) if channel.startswith("voltage:"))
    options = PlantOptions(
        supply=rack.supply,
        voltage_v=rack.nominal_v,
        n_phases=max(1, len(phases)),
        phase_of=tuple(phases.index(rows[i].phases[0]) if rows[i].phases[0] in phases else 0 for i in mine),
        **errors,  # type: ignore[arg-type]
    )
    plant = Plant([servers[i] for i in mine], options, rate_hz=RATE_HZ, seed=seed)
    place = {f"voltage:{phase}": len(mine) + k for k, phase in enumerate(phases)}
    order = [place.get(channel, -1) for channel in board.channels]
    for k, i in enumerate(mine):
        order[currents[rows[i].id][0]] = k
    plant.wire(order, turned=[channel for channel, turned in currents.values() if turned])
    return plant


class PlantSource:
    """A paced source: describes itself like a board, and keeps a feed ring filled for the sampler."""

    label = "simulated in the daemon"

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self._made = 0

    @property
    def description(self) -> BoardDescription:
        """What a board would say of itself."""
        channels = tuple(
            ChannelDescription(c.kind, c.number, c.scale, c.skew_ns, c.full_scale_counts, c.name)  # type: ignore[arg-type]
            for c in self.plant.channels
        )
        return BoardDescription(RATE_HZ, 1_000_000_000, "in-process", self.label, 0, channels)

    def fill(self, feed: Ring, forwarded: int) -> None:
        """Make scans until the feed is 1 s ahead of what was forwarded; cheap enough for the control loop's idle time."""
        while self._made < forwarded + AHEAD_SCANS:
            counts = self.plant.advance(BLOCK_SCANS)
            for row in counts:
                feed.push(self._made, 0, self._made, 0, np.ascontiguousarray(row))
                self._made += 1
