"""The rack of the soak: boards, PDUs and loads on virtual time, which know what really happened to them."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from virtual_time import VirtualClock

from rpi_daemon._fastpath.core import (
    COUNT_FAULT,
    COUNT_HIGH,
    COUNT_LOW,
    FRAME_DATA,
    FRAME_DESCRIPTION,
    SCAN_FIRST,
    TIMELINE_REBOOT,
    TIMELINE_REPEAT,
    WINDOW_HOP,
    BoardClock,
    BoardDescription,
    Frame,
    FrameDecoder,
    Ring,
    Timeline,
    decode_v2c,
    parse_description,
)
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import Board, Config
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator
from rpi_daemon.drivers.sensors.board_sim import SimulatedBoard
from rpi_daemon.drivers.sensors.paced import board_plant, servers_for
from rpi_daemon.drivers.traps.mib import OBJECT_ROOT, OBJECTS, SHIPPED_ENTERPRISE
from rpi_daemon.errors import DeviceError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.library import FOLDER as MODELS
from rpi_daemon.sensing import BoardLink, wiring

PERIOD_NS = 1_000_000
BOARD_STEP_S = 0.02
COMMUNITY = "soak-community"
CANDIDATE, DAMAGED = "candidate", "damaged"  # models beside the shipped one
OPTED_OUT = 'load = "b-{n}"\nrating_w = 700.0\nstatic_safe_w = 380.0\nclosed_loop = false'
RESPONSE = 0xA2  # an SNMP message's type
NOTICE = f"1.3.6.1.4.1.{SHIPPED_ENTERPRISE}.{OBJECT_ROOT}"
BREAKER_PROFILE = "breaker-pdu.toml"  # APC's columns, each threshold of which switches its outlet off

CONFIG = """\
[rack]
id = "soak"
nominal_v = 230.0

[daemon]
mode = "{mode}"
state_dir = "{state}"
runtime_dir = "run"
log_level = "info"
log_format = "json"

[sampling]
raw_ring_s = 20.0
lock_memory = false
fifo_priority = 0

[forecast]
primary = "{primary}"

[retrain]
enabled = false

[actuator]
lower_hold_s = 5.0
uncontrolled_s = 15.0

[corrector]
hold_s = 5.0
alarm_learn_s = 5.0
alarm_hold_s = 5.0

[[board]]
id = "board-a"
board_id = 1
port = "board-a.tty"
channels = [{currents_a}, "voltage:L1"]

[[board]]
id = "board-b"
board_id = 1
port = "board-b.tty"
channels = [{currents_b}, "voltage:L1"]

# thresholds that alarm
[[pdu]]
id = "pdu-a"
profile = "raritan_px"
host = "127.0.0.1"
port = {pdu_a}
version = "2c"
community_file = "community"
allow_insecure = true
writes_per_day = {writes_per_day}

# thresholds that switch off
[[pdu]]
id = "pdu-b"
profile = "breaker-pdu.toml"
host = "127.0.0.1"
port = {pdu_b}
version = "2c"
community_file = "community"
allow_insecure = true
accept_unproven = true
writes_per_day = {writes_per_day}

# never proven: it meters
[[pdu]]
id = "pdu-c"
profile = "apc_rpdu2"
host = "127.0.0.1"
port = {pdu_c}
version = "2c"
community_file = "community"
allow_insecure = true

[[outlet]]
pdu = "pdu-a"
numbers = "1-4"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 380.0
closed_loop = true

# its owner's
[[outlet]]
pdu = "pdu-a"
numbers = "5"
load = "a-{{n}}"
rating_w = 700.0
static_safe_w = 380.0

[[outlet]]
pdu = "pdu-b"
numbers = "1-4"
load = "b-{{n}}"
rating_w = 700.0
static_safe_w = 380.0
closed_loop = true

[[outlet]]
pdu = "pdu-c"
numbers = "1-2"
load = "c-{{n}}"
rating_w = 700.0
static_safe_w = 380.0
closed_loop = true

[[constraint]]
id = "breaker-a"
kind = "breaker"
rating_w = 3200.0
outlets = ["pdu-a/*"]

[[constraint]]
id = "breaker-b"
kind = "breaker"
rating_w = 2600.0
outlets = ["pdu-b/*"]

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 6400.0
outlets = ["*"]

[[telemetry]]
load = "a-1"
driver = "feed"

[[trap_sink]]
id = "facility"
host = "127.0.0.1"
port = {sink}
version = "2c"
community_file = "community"
allow_insecure = true
"""


class VirtualSampler:
    """The sampler without its thread: the compiled decoder, timeline and clock on the board's bytes; see sampler.h."""

    def __init__(self, ring: Ring, board_id: int, event_fd: int, clock: VirtualClock) -> None:
        self._ring, self._board_id, self._event_fd, self._clock = ring, board_id, event_fd, clock
        self._decoder, self._timeline = FrameDecoder(), Timeline()
        self._board_clock: BoardClock | None = None
        self._first: tuple[int, int] | None = None  # ticks and index since which ticks per scan are measured
        self._base = 0
        self._placed = self._plugged = False
        self._begins = 0
        self._last_ns = 0
        self._notified = 0
        self._payload: bytes | None = None
        self._boot_id = 0
        self._counters = dict.fromkeys(
            ("received", "lost", "corrupt", "late", "overflow", "resync_bytes", "reboots", "saturated", "faults",
             "repeated", "foreign", "disconnects", "bytes_in", "starved"), 0)  # fmt: skip

    # what the daemon asks of a sampler

    def counters(self) -> dict[str, int]:
        decoder = self._decoder
        told = {"corrupt": decoder.crc_errors + decoder.format_errors, "resync_bytes": decoder.resync_bytes}
        return {**self._counters, **told, "overflow": self._timeline.dropped}

    def connected(self) -> bool:
        return self._plugged

    def boot_id(self) -> int:
        return self._boot_id

    def forwarded(self) -> int:
        return 0

    def turns(self) -> int:
        """A thread that never stands still."""
        return self._clock.mono_ns()

    def thread_id(self) -> int:
        return 0

    def description(self) -> bytes | None:
        return self._payload

    def lateness_us(self, q: float) -> float:
        return float("nan")

    def scheduling(self) -> str:
        return "virtual time"

    def stop(self) -> None:
        self._plugged = False

    # what the cable does

    def plug(self) -> None:
        self._plugged = True

    def unplug(self) -> None:
        self._plugged = False
        self._decoder.feed(b"\0")
        self._counters["disconnects"] += 1
        os.eventfd_write(self._event_fd, 1)

    def receive(self, data: bytes) -> int | None:
        """A Sink; None when nobody listens."""
        if not self._plugged:
            return None
        self._counters["bytes_in"] += len(data)
        for frame in self._decoder.feed(data):
            self._take(frame)
        return len(data)

    def _take(self, frame: Frame) -> None:
        if frame.type == FRAME_DESCRIPTION:
            self._payload = bytes(frame.payload)
            return
        if frame.type != FRAME_DATA or frame.board_id != self._board_id or frame.n_channels != self._ring.n_channels:
            self._counters["foreign"] += 1
            return
        kind, index, ticks, lost = self._timeline.extend(frame)
        if kind == TIMELINE_REPEAT:
            self._counters["repeated"] += frame.n_scans
            return
        if kind == TIMELINE_REBOOT:
            self._counters["reboots"] += 1
            self._first = self._board_clock = None
            self._begins = SCAN_FIRST
        if not self._placed:
            head = self._ring.head
            if head > index:
                self._base = -(-(head - index) // WINDOW_HOP) * WINDOW_HOP
            self._notified = (index + self._base) // WINDOW_HOP
            self._placed = True
        self._boot_id = frame.boot_id
        self._counters["lost"] += lost
        self._push(frame, index + self._base, ticks)
        reached = (index + self._base + frame.n_scans) // WINDOW_HOP
        if reached > self._notified:
            os.eventfd_write(self._event_fd, reached - self._notified)
        self._notified = reached

    def _push(self, frame: Frame, index: int, ticks: int) -> None:
        newest_ns = self._stamp(index, ticks, frame.n_scans)
        counts = frame.counts()
        codes = (counts == COUNT_HIGH) | (counts == COUNT_LOW)
        self._counters["saturated"] += int(np.count_nonzero(codes))
        self._counters["faults"] += int(np.count_nonzero(counts == COUNT_FAULT))
        for k in range(frame.n_scans):
            t_ns = max(newest_ns - (frame.n_scans - 1 - k) * PERIOD_NS, self._last_ns + 1)
            self._last_ns = t_ns
            self._ring.push(index + k, t_ns, ticks + 1000 * k, frame.status, counts[k], flags=self._begins)
            self._begins = 0
        self._counters["received"] += frame.n_scans

    def _stamp(self, index: int, ticks: int, n_scans: int) -> int:
        arrival_ns = self._clock.mono_ns()
        if self._first is None:
            self._first = ticks, index
        if index == self._first[1]:
            return arrival_ns
        per_scan = (ticks - self._first[0]) / (index - self._first[1])
        newest = ticks + round((n_scans - 1) * per_scan)
        if self._board_clock is None:
            self._board_clock = BoardClock(newest, arrival_ns, PERIOD_NS / per_scan)
        self._board_clock.add(newest, arrival_ns)
        return min(self._board_clock.predict(newest), arrival_ns)


class VirtualSource:
    """A board's cable: the daemon opens it again within 0.3 s, as a serial port."""

    sees_losses = True

    def __init__(self, board: "RackBoard", clock: VirtualClock) -> None:
        self._board, self._clock = board, clock
        self._payload: bytes | None = None
        self._retry_ns = 0
        self._absent_until_ns = 0

    def start(self, sampler: VirtualSampler, *, may_wait: bool = False) -> None:
        if self._board.present:
            self._board.plug(sampler)
        elif not may_wait:
            raise DeviceError(f"board {self._board.id!r}: its port is not there")

    async def describe(self, sampler: VirtualSampler) -> BoardDescription:
        deadline_ns = self._clock.mono_ns() + 3 * NS_PER_S
        while (payload := sampler.description()) is None:
            if self._clock.mono_ns() > deadline_ns:
                raise DeviceError(f"board {self._board.id!r}: no description frame in 3 s")
            await asyncio.sleep(0.02)
        self._payload = payload
        return parse_description(payload)

    def maintain(self, sampler: VirtualSampler) -> BoardDescription | None:
        now_ns = self._clock.mono_ns()
        if now_ns < self._absent_until_ns and sampler.connected():
            sampler.unplug()
        if not sampler.connected() and now_ns >= max(self._retry_ns, self._absent_until_ns):
            self._retry_ns = now_ns + 300_000_000
            if self._board.present:
                self._board.plug(sampler)
        payload = sampler.description()
        if payload is None or payload == self._payload:
            return None
        self._payload = payload
        return parse_description(payload)

    def unplug(self, seconds: float) -> None:
        """A drill."""
        self._absent_until_ns = self._clock.mono_ns() + round(seconds * NS_PER_S)

    def close(self) -> None:
        """The cable stays where it is."""


class VirtualLink(BoardLink):
    """A BoardLink whose sampler runs on virtual time."""

    def __init__(self, config: Config, board: "RackBoard", runtime_dir: Path, clock: VirtualClock, fd: int) -> None:
        source = VirtualSource(board, clock)
        super().__init__(
            board.config, source, config.sampling, config.outlets(), runtime_dir, Path(config.base_dir), fd, dc=False
        )  # type: ignore[arg-type]
        self.sampler = VirtualSampler(self.ring, board.config.board_id, fd, clock)  # type: ignore[assignment]
        board.listen(self.sampler)  # type: ignore[arg-type]


@dataclass
class RackBoard:
    """A sensor board with its physics; whoever listens to it now is `sampler`."""

    id: str
    config: Board
    device: SimulatedBoard
    outlets: tuple[int, ...]
    sampler: VirtualSampler | None = None
    present: bool = True
    _unheard: int | None = None  # lost before a daemon first listened; None while none did

    def write(self, data: bytes) -> int | None:
        return self.sampler.receive(data) if self.present and self.sampler is not None else None

    def listen(self, sampler: VirtualSampler) -> None:
        """Another daemon; it hears the board from `plug` on."""
        self.sampler, self._unheard = sampler, None

    def plug(self, sampler: VirtualSampler) -> None:
        if self._unheard is None:
            self._unheard = self._lost()
        sampler.plug()

    def lost(self) -> int:
        """Scans that this daemon should have heard and never came. What is gone before it first listens is no loss of its."""
        return 0 if self._unheard is None else self._lost() - self._unheard

    def _lost(self) -> int:
        """A frame whose beginning nobody heard counts from then on: it is no loss of a daemon that begins before its end."""
        counters = self.device.counters
        return counters.scans_overflowed + counters.scans_lost + counters.scans_damaged + self.device.unheard()

    def unplug(self) -> None:
        self.present = False
        if self.sampler is not None and self.sampler.connected():
            self.sampler.unplug()


@dataclass(frozen=True, slots=True)
class Written:
    """A limit that arrived at a device: what was asked, what stood there before and after. None: no limit."""

    outlet: str
    asked_w: float | None  # None where only something else of the outlet was set
    before_w: float | None
    after_w: float | None


class RackPdu(PduSimulator):
    """A PDU that tells of each SET and each look at a limit, and may be deaf altogether."""

    def __init__(self, name: str, rack: "SoakRack", *args: Any, **options: Any) -> None:
        self.name, self._rack = name, rack
        self.deaf = self.cut = False  # hears nobody; hears a daemon no more that is gone
        self.forged = 0  # answers that nobody asked for, before each that was
        super().__init__(*args, **options)
        self._limit_outlet = self._limit_oids()

    def _limit_oids(self) -> dict[Any, int]:
        limit = self.profile.limit
        assert limit is not None
        return {
            self._oid(column.oid, outlet): outlet for column in limit.columns for outlet in range(1, self.n_outlets + 1)
        }

    async def start(self) -> None:
        await super().start()
        transport = self._transport
        assert transport is not None
        hear = transport.datagram_received

        def datagram_received(data: bytes, address: Any) -> None:
            if not (self.deaf or self.cut):
                for _ in range(self.forged):
                    transport.send_message(forged(data), address)
                hear(data, address)

        transport.datagram_received = datagram_received  # type: ignore[method-assign]

    def sockets(self) -> int:
        """Descriptors that are the device's."""
        transport = self._transport
        return 0 if transport is None else 1 + (transport._stray is not None)

    def disturbed(self) -> bool:
        """Whether messages to or from it may be lost or late now."""
        faults = self.faults
        lossy = faults.drop or faults.delay_s or faults.wrong_address or faults.too_big_above
        return bool(self.deaf or self.cut or lossy)

    def get(self, oid: Any) -> Any:
        if oid in self._limit_outlet:
            self._rack.on_look(f"{self.name}/{self._limit_outlet[oid]}")
        return super().get(oid)

    def set(self, varbinds: Sequence[tuple[Any, Any]]) -> None:
        outlets = {s.outlet: None for oid, _ in varbinds for s in self._settings.get(oid, ()) if s.outlet}
        asked = {self._limit_outlet[oid]: int(value) for oid, value in varbinds if oid in self._limit_outlet}
        before = {outlet: self.limit_w(outlet) for outlet in outlets}
        try:
            super().set(varbinds)
        finally:
            self._rack.on_write(
                self.name, [self._written(outlet, asked.get(outlet), before[outlet]) for outlet in outlets]
            )

    def _written(self, outlet: int, count: int | None, before_w: float | None) -> Written:
        asked_w = None if count is None else count * float(self._limit_step(outlet))
        return Written(f"{self.name}/{outlet}", asked_w, before_w, self.limit_w(outlet))

    def change(self, outlet: int, limit_w: float) -> None:
        """Somebody else sets a limit at the device's own page."""
        limit = self.profile.limit
        assert limit is not None
        oid = next(oid for oid, number in self._limit_outlet.items() if number == outlet and oid in self._cells)
        tag, _ = self._cells[oid]
        self._cells[oid] = (tag, round(limit_w / float(self._limit_step(outlet))))


class RackSink(asyncio.DatagramProtocol):
    """A trap sink: acknowledges informs of SNMPv2c, tells their numbers, and may be away."""

    def __init__(self, heard: Callable[[int, int], None]) -> None:
        self.away = False
        self._heard = heard
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))

    @property
    def port(self) -> int:
        return 0 if self._transport is None else int(self._transport.get_extra_info("sockname")[1])

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, address: Any) -> None:
        if self.away or self._transport is None:
            return
        answer = bytearray(data)
        answer[data.index(COMMUNITY.encode()) + len(COMMUNITY)] = RESPONSE  # the same message, but for its type
        _, pdu = decode_v2c(bytes(answer))
        told = {varbind.oid: varbind.value for varbind in pdu.varbinds}
        sequence, dropped = (told[f"{NOTICE}.{OBJECTS[name]}.0"] for name in ("sequence", "dropped"))
        assert isinstance(sequence, int)
        assert isinstance(dropped, int)
        self._heard(sequence, dropped)
        self._transport.sendto(answer, address)


@dataclass
class SoakRack:
    """All that the daemon speaks to. `turn` keeps the boards going; what happens is told to `on_write` and `on_look`."""

    folder: Path
    clock: VirtualClock
    seed: int
    writes_per_day: int = 20_000
    primary: str = "mixture"
    on_write: Callable[[str, list[Written]], None] = lambda *_: None  # PDU, one message
    on_look: Callable[[str], None] = lambda _: None
    on_notice: Callable[[int, int], None] = lambda *_: None  # sequence number, how many were dropped so far
    pdus: dict[str, RackPdu] = field(default_factory=dict)
    boards: dict[str, RackBoard] = field(default_factory=dict)
    sink: RackSink = field(init=False)
    _place: dict[str, tuple[RackBoard, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sink = RackSink(lambda *told: self.on_notice(*told))

    def write_config(self, state: str = "state", mode: str = "closed_loop") -> Path:
        """The configuration, with the ports that the PDUs have by now."""
        ports = {name.replace("-", "_"): pdu.port for name, pdu in self.pdus.items()}
        ports = {"pdu_a": 10_161, "pdu_b": 10_162, "pdu_c": 10_163} | ports | {"sink": self.sink.port or 10_164}
        path = self.folder / "config.toml"
        text = CONFIG.format(
            mode=mode,
            state=state,
            primary=self.primary,
            writes_per_day=self.writes_per_day,
            currents_a=", ".join(f'"current:pdu-a/{n}"' for n in range(1, 6)),
            currents_b=", ".join(
                f'"current:{o}"' for o in [*(f"pdu-b/{n}" for n in range(1, 5)), "pdu-c/1", "pdu-c/2"]
            ),
            **ports,
        )
        path.write_text(text, encoding="utf-8")
        return path

    async def start(self, config: Config) -> None:
        """Boards have power, PDUs answer."""
        rows = config.outlets()
        servers = servers_for(rows, seed=self.seed)
        for i, board in enumerate(config.board):
            plant = board_plant(board, rows, config.rack, servers, self.seed + i)
            device = SimulatedBoard(plant, line_rate_baud=board.baud, board_id=board.board_id, seed=self.seed + i)
            device.start(self.clock.mono_ns())
            self.boards[board.id] = RackBoard(board.id, board, device, wiring(board, rows).outlets)
        self._place = {rows[i].id: (board, k) for board in self.boards.values() for k, i in enumerate(board.outlets)}
        for pdu in config.pdu:
            numbers = [row.number for row in rows if row.pdu == pdu.id]
            profile = load_profile(self.folder / pdu.profile if pdu.profile.endswith(".toml") else pdu.profile)
            self.pdus[pdu.id] = RackPdu(
                pdu.id,
                self,
                profile,
                max(numbers),
                power_w=partial(self._number_w, pdu.id),
                digits={"voltage": 1},
                community=COMMUNITY,
                serial=f"SOAK-{pdu.id}",
                clock=self.clock.seconds,
            )
            await self.pdus[pdu.id].start()
        await self.sink.start()

    async def stop(self) -> None:
        self.sink.stop()
        for pdu in self.pdus.values():
            await pdu.stop()

    async def turn(self) -> None:
        """Boards sample and send, for ever."""
        while True:
            self.step()
            await asyncio.sleep(BOARD_STEP_S)

    def step(self) -> None:
        """What the boards have to do by now."""
        for board in self.boards.values():
            board.device.step(self.clock.mono_ns(), board.write)

    def link(self, config: Config, board: Board, runtime_dir: Path, clock: Any, event_fd: int) -> VirtualLink:
        """In place of the daemon's own way to a board."""
        return VirtualLink(config, self.boards[board.id], runtime_dir, self.clock, event_fd)

    def sockets(self) -> int:
        return 1 + sum(pdu.sockets() for pdu in self.pdus.values())

    def draw_w(self, outlet: str) -> float:
        """What an outlet really draws, mean of the last 100 ms."""
        board, k = self._place[outlet]
        return float(board.device.plant.true_power_w[k])

    def outlets_of(self, board: str, channel: int) -> list[str]:
        """The outlets that a channel of a board measures: one, or all for a voltage."""
        item = self.boards[board]
        names = [name for name, (other, _) in self._place.items() if other is item]
        return [names[channel]] if channel < len(names) else names

    def lost(self) -> int:
        """Scans that the boards have sampled for this daemon and that never came, so far."""
        return sum(board.lost() for board in self.boards.values())

    def limits_w(self) -> dict[str, float | None]:
        """What the devices really hold."""
        return {f"{pdu.name}/{n}": pdu.limit_w(n) for pdu in self.pdus.values() for n in range(1, pdu.n_outlets + 1)}

    def _number_w(self, pdu: str, number: int) -> float:
        return self.draw_w(f"{pdu}/{number}")


def prepare(folder: Path) -> None:
    """The files that the configuration names, and two models: one that may forecast, one that is damaged."""
    for name in (CANDIDATE, DAMAGED):
        shutil.copytree(SHIPPED, folder / "state" / MODELS / name)
    weights = folder / "state" / MODELS / DAMAGED / "model.onnx"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name, text in (("community", COMMUNITY), (BREAKER_PROFILE, _breaker_profile())):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")


def _breaker_profile() -> str:
    text = (resources.files("rpi_daemon.drivers.pdu.profiles") / "apc_rpdu2.toml").read_text(encoding="utf-8")
    return text.replace('name = "apc_rpdu2"', 'name = "breaker_pdu"', 1).replace(
        'kind = "alarm"', 'kind = "trip_off"', 1
    )


def forged(request: bytes) -> bytes:
    """An answer to another question: the request itself turned around, with other ids."""
    answer = bytearray(request)
    answer[len(answer) // 2] ^= 0x55
    return bytes(answer)
