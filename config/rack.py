"""Config to `RackModel`: outlets in order, loads, constraints with their shares."""

import numpy as np

from rpi_daemon.config.schema import Config
from rpi_daemon.config.schema import Load as LoadOptions
from rpi_daemon.records import Constraint, Load, RackModel, ServerCap


def rack_model(config: Config) -> RackModel:
    """The rack as the stages see it; the configuration has been checked."""
    rows = config.outlets()
    index = {row.id: i for i, row in enumerate(rows)}
    names = list(dict.fromkeys(row.load for row in rows))
    said = {load.id: load for load in config.load}
    loads = []
    for name in names:
        word = said.get(name, LoadOptions(id=name))
        outlets = tuple(i for i, row in enumerate(rows) if row.load == name)
        loads.append(
            Load(
                name=name,
                outlets=outlets,
                tier=word.tier,
                floor_w=word.floor_w,
                demand_w=word.demand_w if word.demand_w is not None else min(rows[i].rating_w for i in outlets),
                sheddable=word.sheddable,
                critical=word.critical,
            )
        )
    constraints = []
    for item in config.constraint:
        share = np.zeros(len(rows))
        for pattern in item.outlets:
            share[[index[name] for name in config.match_outlets(pattern)]] = 1.0
        constraints.append(
            Constraint(item.id, item.kind, item.rating_w, item.rating_va, item.rating_a, item.derate, share)
        )
    return RackModel(
        rack=config.rack.id,
        outlet_ids=tuple(row.id for row in rows),
        pdu_of=tuple(row.pdu for row in rows),
        number_of=tuple(row.number for row in rows),
        load_of=np.array([names.index(row.load) for row in rows], dtype=np.int64),
        rating_w=np.array([row.rating_w for row in rows]),
        static_safe_w=np.array([row.static_safe_w for row in rows]),
        nominal_v=np.full(len(rows), config.rack.nominal_v),
        opted_in=np.array([row.closed_loop for row in rows]),
        loads=tuple(loads),
        constraints=tuple(constraints),
        caps=tuple(ServerCap(names.index(cap.load), cap.lowest_w, cap.closed_loop) for cap in config.cap),
    )
