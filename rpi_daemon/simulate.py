"""The simulated rack that a configuration describes: boards on ptys, PDUs on their ports, BMCs, hosts, loads, announced work."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Board, Cap, Config, Pdu, Telemetry, secret_path
from rpi_daemon.devices import MODBUS_PORT, SNMP_PORT, register_map, snmp_profile
from rpi_daemon.drivers.caps import bmc_sim
from rpi_daemon.drivers.caps.bmc_sim import BmcShape, BmcSimulator, Certificate, kept_certificate
from rpi_daemon.drivers.control_line import obey_lines, say
from rpi_daemon.drivers.hosts.sim import HostSimulator
from rpi_daemon.drivers.pdu.sim import PduSimulator, SimUser, command
from rpi_daemon.drivers.sensors.board_sim import PtyPort, SimulatedBoard, obey, run_board
from rpi_daemon.drivers.sensors.paced import board_plant, servers_for
from rpi_daemon.drivers.sensors.plant import Plant, PlantOptions, Truth, Workload, outlet_power
from rpi_daemon.drivers.sensors.traces import read_traces
from rpi_daemon.errors import RpiError
from rpi_daemon.sensing import wiring

if TYPE_CHECKING:
    from rpi_daemon.drivers.pdu.modbus_sim import ModbusSimulator, SimulatedDevice

PLAN_AHEAD_S = 10.0  # a scheduler says this long before what it will start
PLAN_PERIOD_S = 0.5
# of sensors that nobody calibrated, standard deviations over the channels
SENSOR_ERRORS = {"gain_error_sd": 0.03, "phase_error_sd_deg": 2.0, "offset_sd_counts": 2000.0}
RATE_HZ = 1000
BLOCK_SCANS = 100
HTTP_PORT = 80
BMC_CERTIFICATE = "bmc-sim.pem"  # beside the configuration, where it names no tls_ca_file
LOWEST_CAP = 1.2  # of a server's idle power: less it could not keep
CATCH_UP_SCANS = 5 * RATE_HZ  # after a longer stand-still the loads go on from where they were
SWITCH_INTERVAL_S = 0.0005  # the agents' Python must not keep a board's thread from its 20 ms FIFO


@dataclass(slots=True)
class SimBoard:
    """One board: its physics, its wire, and which outlets of the rack it has."""

    board: Board
    plant: Plant
    device: SimulatedBoard
    outlets: tuple[int, ...]
    port: PtyPort = field(init=False)  # from `start` on


class UnboardedLoads:
    """What no board measures draws power too: a plant that follows the wall clock when it is looked at."""

    def __init__(self, plant: Plant, outlets: tuple[int, ...]) -> None:
        self.plant = plant
        self.outlets = outlets
        self._next_s = time.monotonic()

    def follow(self) -> None:
        """Move the plant to the present."""
        due = int((time.monotonic() - self._next_s) * RATE_HZ) // BLOCK_SCANS * BLOCK_SCANS
        self._next_s += due / RATE_HZ
        for _ in range(0, min(due, CATCH_UP_SCANS), BLOCK_SCANS):
            self.plant.advance(BLOCK_SCANS)


def make_keys(config: Config) -> list[Path]:
    """Write the secrets that the configuration names and nobody has made yet: this rack is ours. Which files those are."""
    made = []
    for section in (*config.pdu, *config.cap):
        for name in ("password",) if isinstance(section, Cap) else ("auth_key", "priv_key", "community"):
            file = getattr(section, f"{name}_file")
            path = secret_path(file, config.path("")) if file is not None else None
            if path is not None and not path.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as out:
                    out.write(secrets.token_hex(16))
                made.append(path)
    return made


def bmc_certificate(config: Config, cap: Cap) -> Certificate:
    """The certificate that a simulated BMC shows: kept in the file that `tls_ca_file` names, so that the daemon knows it.

    Made the first time, for the hosts of all caps that share the file. Raises ConfigError.
    """
    file = cap.tls_ca_file or BMC_CERTIFICATE
    hosts = sorted({other.host for other in config.cap if (other.tls_ca_file or BMC_CERTIFICATE) == file})
    return kept_certificate(config.path(file), *hosts)


class SimulatedRack:
    """All boards, PDUs, BMCs and (plain HTTP) hosts of one configuration in this process. `start`, `announce` now and then, `stop`."""

    def __init__(
        self, config: Config, *, trace: Path | None = None, seed: int = 1, sensor_errors: bool = False
    ) -> None:
        self._errors = SENSOR_ERRORS if sensor_errors else {}
        self._rows = config.outlets()
        self._config = config
        servers = servers_for(self._rows, read_traces(trace) if trace is not None else (), seed)
        self.boards = [
            self._board(board, servers, seed + i) for i, board in enumerate(config.board) if board.driver == "serial"
        ]
        self.unboarded = self._unboarded(servers, seed)
        self._loads: list[SimBoard | UnboardedLoads] = [*self.boards, *self.unboarded]
        self._place = {outlet: (item.plant, k) for item in self._loads for k, outlet in enumerate(item.outlets)}
        self.pdus = {pdu.id: self._pdu(pdu) for pdu in config.pdu if pdu.driver == "snmp"}
        self.modbus, self._wires = self._modbus([pdu for pdu in config.pdu if pdu.driver != "snmp"])
        self.bmcs = {cap.load: self._bmc(cap, servers) for cap in config.cap}
        plain = [item for item in config.telemetry if (item.url or "").startswith("http://")]
        self.hosts = {item.load: self._host(item, servers) for item in plain}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._announced: set[tuple[int, float]] = set()

    def _board(self, board: Board, servers: Sequence[Workload], seed: int) -> SimBoard:
        plant = board_plant(board, self._rows, self._config.rack, servers, seed, **self._errors)
        device = SimulatedBoard(plant, line_rate_baud=board.baud, board_id=board.board_id)
        return SimBoard(board, plant, device, wiring(board, self._rows).outlets)

    def _unboarded(self, servers: Sequence[Workload], seed: int) -> list[UnboardedLoads]:
        boarded = {name for board in self._config.board for name in board.currents()}
        outlets = tuple(i for i, row in enumerate(self._rows) if row.id not in boarded)
        if not outlets:
            return []
        options = PlantOptions(supply=self._config.rack.supply, voltage_v=self._config.rack.nominal_v)
        return [UnboardedLoads(Plant([servers[i] for i in outlets], options, rate_hz=RATE_HZ, seed=seed), outlets)]

    def _follow(self) -> None:
        for loads in self.unboarded:
            loads.follow()

    def draw_w(self) -> dict[str, float]:
        """What every outlet draws now, by outlet id."""
        self._follow()
        return {self._rows[i].id: float(plant.true_power_w[k]) for i, (plant, k) in self._place.items()}

    def is_throttled(self, load: str) -> bool:
        """Whether a server wants more than its cap allows."""
        throttles = [plant.throttles[k] for i, (plant, k) in self._place.items() if self._rows[i].load == load]
        return any(throttle is not None and throttle.throttled for throttle in throttles)

    def _outlets_on(self, pdu: Pdu) -> dict[int, int]:
        """Number on a PDU or meter -> the rack's outlet that it feeds or measures."""
        numbers = {row.number: i for i, row in enumerate(self._rows) if row.pdu == pdu.id}
        metered = (row.meter.partition("/") for row in self._rows)
        return numbers | {int(number): i for i, (name, _, number) in enumerate(metered) if name == pdu.id}

    def _modbus(self, pdus: Sequence[Pdu]) -> "tuple[dict[str, SimulatedDevice], list[ModbusSimulator]]":
        """Modbus devices by PDU, and their wires: what shares an address or a serial port shares one."""
        if not pdus:
            return {}, []
        from rpi_daemon.drivers.pdu.modbus_sim import ModbusRtuSimulator, ModbusTcpSimulator, SimulatedDevice

        devices = {}
        shared: dict[tuple[str, int], list[SimulatedDevice]] = {}
        for pdu in pdus:
            numbers = self._outlets_on(pdu)
            devices[pdu.id] = SimulatedDevice(
                register_map(self._config, pdu),
                device_id=pdu.device_id,
                outlets=max(numbers, default=1),
                power_w=partial(self._drawn_w, numbers),
                volts=self._config.rack.nominal_v,
            )
            rtu = pdu.driver == "modbus_rtu"
            wire = (pdu.serial_port or "", 0) if rtu else (pdu.host or "", pdu.port or MODBUS_PORT)
            shared.setdefault(wire, []).append(devices[pdu.id])
        wires: list[ModbusSimulator] = [
            ModbusTcpSimulator(on_it, host, port) if port else ModbusRtuSimulator(on_it, self._config.path(host))
            for (host, port), on_it in shared.items()
        ]
        return devices, wires

    def _drawn_w(self, numbers: Mapping[int, int], number: int) -> float:
        """What is drawn now at a number of a PDU or meter."""
        if number not in numbers or numbers[number] not in self._place:
            return 0.0
        self._follow()
        plant, k = self._place[numbers[number]]
        return float(plant.true_power_w[k])

    def _pdu(self, pdu: Pdu) -> PduSimulator:
        numbers = self._outlets_on(pdu)

        def truth(number: int) -> Truth:
            if number not in numbers or numbers[number] not in self._place:
                return Truth(0.0, self._config.rack.nominal_v, 0.0)
            self._follow()
            plant, k = self._place[numbers[number]]
            return plant.truth(k)

        user = None
        if pdu.version == "3":
            secret = self._config.secret
            user = SimUser(
                pdu.user or "",
                auth=pdu.auth,
                auth_key=secret(pdu, "auth_key"),
                priv=pdu.priv,
                priv_key=secret(pdu, "priv_key"),
            )
        return PduSimulator(
            snmp_profile(self._config, pdu),
            max(numbers, default=1),
            power_w=partial(self._drawn_w, numbers),
            current_a=lambda number: truth(number).rms_a,
            supply_v=lambda number: truth(number).voltage_v,
            digits={"voltage": 1},
            voltage_v=self._config.rack.nominal_v,
            community=self._config.secret(pdu, "community") if pdu.version == "2c" else None,
            user=user,
            host=pdu.host or "",
            port=pdu.port or SNMP_PORT,
        )

    def _bmc(self, cap: Cap, servers: Sequence[Workload]) -> BmcSimulator:
        outlets = [i for i, row in enumerate(self._rows) if row.load == cap.load and i in self._place]
        places = [self._place[i] for i in outlets]

        def power_w() -> float | None:
            self._follow()
            return sum(float(plant.true_power_w[k]) for plant, k in places) if places else None

        def set_cap(cap_w: float | None) -> None:
            for plant, k in places:  # each supply takes its half
                plant.set_cap(k, None if cap_w is None else cap_w / len(places))

        idle_w = sum(float(outlet_power(np.array(servers[i].idle_w), servers[i].rating_w)) for i in outlets)
        rating_w = sum(servers[i].rating_w for i in outlets)
        return BmcSimulator(
            power_w=power_w,
            set_cap=set_cap,
            shape=BmcShape(lowest_w=float(round(LOWEST_CAP * idle_w)), highest_w=float(round(rating_w))),
            host=cap.host,
            port=cap.port,
            user=cap.user,
            password=self._config.secret(cap, "password"),
            certificate=bmc_certificate(self._config, cap),
        )

    def _host(self, item: Telemetry, servers: Sequence[Workload]) -> HostSimulator:
        """As busy as its server's power lies between idle and busy."""
        outlets = [i for i, row in enumerate(self._rows) if row.load == item.load and i in self._place]
        places = [self._place[i] for i in outlets]
        ends_w = [outlet_power(np.array([servers[i].idle_w, servers[i].busy_w]), servers[i].rating_w) for i in outlets]
        idle_w, busy_w = (float(end_w) for end_w in np.sum(ends_w, axis=0)) if outlets else (0.0, 1.0)

        def busy() -> float:
            self._follow()
            drawn_w = sum(float(plant.true_power_w[k]) for plant, k in places)
            return (drawn_w - idle_w) / max(busy_w - idle_w, 1.0)

        address = urlsplit(item.url or "")
        return HostSimulator(busy, host=address.hostname or "", port=address.port or HTTP_PORT)

    def _agents(self) -> "list[PduSimulator | BmcSimulator | ModbusSimulator | HostSimulator]":
        return [*self.pdus.values(), *self._wires, *self.bmcs.values(), *self.hosts.values()]

    async def start(self) -> None:
        """PDUs and BMCs answer and boards send; the port of each board is a link to its pty.

        Raises ConfigError when a port is in use: then another simulated rack keeps its links too.
        """
        for simulator in self._agents():
            await simulator.start()
        for board in self.boards:
            board.port = PtyPort(self._config.path(board.board.port or board.board.id))
            thread = threading.Thread(
                target=run_board, args=(board.device, board.port.write, self._stop), name=board.board.id, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def announce(self) -> list[dict[str, object]]:
        """What a job scheduler would announce now: work that starts within the next 10 s, each once."""
        news: list[dict[str, object]] = []
        self._follow()
        for item in self._loads:
            now_s = item.plant.time_s
            for k, planned in item.plant.plan(now_s + PLAN_AHEAD_S):
                outlet = item.outlets[k]
                if (outlet, planned.t_s) not in self._announced:
                    self._announced.add((outlet, planned.t_s))
                    news.append(
                        {
                            "load": self._rows[outlet].load,
                            "delta_w": planned.delta_w,
                            "in_s": max(0.0, planned.t_s - now_s),
                        }
                    )
        return news

    async def stop(self) -> None:
        """End every thread and agent, take the links away."""
        self._stop.set()
        for thread, board in zip(self._threads, self.boards, strict=False):
            thread.join(2.0)
            board.port.unplug()
        for simulator in self._agents():
            await simulator.stop()


def run_simulation(config_path: Path, *, trace: Path | None = None, seed: int = 1, sensor_errors: bool = False) -> int:
    """Serve until SIGTERM, Ctrl-C or the end of a pipe or terminal as standard input (of /dev/null it is not waited for).

    JSON lines out: `ready`, announcements, answers to JSON lines in. Secrets that are missing are made, and named on stderr.
    """
    for path in make_keys(read_config(config_path)):
        print(f"{path}: was not there; a random secret is in it now", file=sys.stderr)
    rack = SimulatedRack(read_config(config_path), trace=trace, seed=seed, sensor_errors=sensor_errors)
    return asyncio.run(_serve(rack))


async def _serve(rack: SimulatedRack) -> int:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        await rack.start()
    except RpiError:
        await rack.stop()
        raise
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reader = asyncio.create_task(_commands(rack, stop))
    say(
        {
            "ready": True,
            "boards": [b.port.host_path for b in rack.boards],
            "pdus": {p: s.port for p, s in rack.pdus.items()},
            "modbus": {p: d.device_id for p, d in rack.modbus.items()},
            "hosts": {load: host.port for load, host in rack.hosts.items()},
            "bmcs": {load: {"port": b.port, "tls_fingerprint": b.fingerprint} for load, b in rack.bmcs.items()},
        }
    )
    try:
        while not stop.is_set():
            for news in rack.announce():
                say({"announce": news})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PLAN_PERIOD_S)
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await rack.stop()
    return 0


async def _commands(rack: SimulatedRack, stop: asyncio.Event) -> None:
    """See `_answer`; the end of input ends the simulation, where there is any: see `obey_lines`."""
    await obey_lines(lambda request: _answer(rack, request))
    stop.set()


def _answer(rack: SimulatedRack, request: object) -> dict[str, object]:
    """`{"state": true}`: what every PDU holds and every board has sent; `{"board": ID, "fault": NAME, ...}`: see `obey`;
    `{"pdu": ID, "faults": {...}}`, `{"pdu": ID, "reboot": true}`: see `drivers.pdu.sim.command`;
    `{"bmc": LOAD, "faults": {...}}`, `{"bmc": LOAD, "reboot": SECONDS}`: see `drivers.caps.bmc_sim.command`."""
    boards = {board.board.id: board for board in rack.boards}
    if not isinstance(request, dict) or not all(isinstance(request.get(k, ""), str) for k in ("board", "pdu", "bmc")):
        request = {}
    if request.get("state"):
        return _state(rack)
    if request.get("board") in boards:
        board = boards[request.pop("board")]
        return dict(obey(json.dumps(request), board.device, board.port))
    if request.get("pdu") in rack.pdus:
        simulator = rack.pdus[request.pop("pdu")]
        return command(simulator, None, request)
    if request.get("pdu") in rack.modbus:
        from rpi_daemon.drivers.pdu import modbus_sim

        return modbus_sim.command(rack.modbus[request.pop("pdu")], request)
    if request.get("bmc") in rack.bmcs:
        return bmc_sim.command(rack.bmcs[request.pop("bmc")], request)
    return {
        "error": 'use {"state": true}, {"board": ID, "fault": NAME}, {"pdu": ID, "faults": {...}} or'
        f' {{"bmc": LOAD, "faults": {{...}}}}; boards: {", ".join(boards)}; PDUs: {", ".join((*rack.pdus, *rack.modbus))};'
        f" BMCs: {', '.join(rack.bmcs) or 'none'}"
    }


def _state(rack: SimulatedRack) -> dict[str, object]:
    pdus: dict[str, PduSimulator | SimulatedDevice] = {**rack.pdus, **rack.modbus}
    return {
        "draw_w": rack.draw_w(),
        "limits_w": {
            pdu: {number: simulator.limit_w(number) for number in range(1, simulator.n_outlets + 1)}
            for pdu, simulator in pdus.items()
        },
        "pdus": {pdu: dict(simulator.counters) for pdu, simulator in pdus.items()},
        "boards": {board.board.id: asdict(board.device.counters) for board in rack.boards},
        "caps_w": {load: simulator.held.cap_w for load, simulator in rack.bmcs.items()},
        "throttled": {load: rack.is_throttled(load) for load in rack.bmcs},
    }
