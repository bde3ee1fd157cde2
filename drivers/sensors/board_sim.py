"""The simulated sensor board: sends the plant's scans as docs/sensor-board-protocol.md says, with faults on request.

Written from that page alone; shares nothing with the host's decoder. Run `python -m rpi_daemon.drivers.sensors.board_sim
--help` for the stand-alone board on a pseudo-terminal.
"""

import argparse
import contextlib
import json
import os
import select
import struct
import sys
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpi_daemon.drivers.sensors.plant import CHANNEL_FAULT, SATURATED_HIGH, LoadBank, Plant, PlantOptions, demo_rack
from rpi_daemon.drivers.sensors.traces import read_traces
from rpi_daemon.errors import TraceError

VERSION = 1
DATA, DESCRIPTION = 1, 2
HEADER = struct.Struct("<BBBBIIIIIHH")
DESCRIPTION_HEAD = struct.Struct("<II16s16sII")
DESCRIPTION_CHANNEL = struct.Struct("<BBHfii8s")
CRC_BYTES = 4
MAX_BODY_BYTES = 4096  # header + payload + CRC
MAX_CHANNELS = 128
CRC32C_POLYNOMIAL = 0x82F63B78  # reflected
KIND_CODES = {"current": 1, "voltage": 2}

STATUS_DROPPED, STATUS_SATURATED, STATUS_FAULT = 1, 2, 4

LINE_RATES_BAUD = (115_200, 230_400, 460_800, 921_600, 1_500_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000)
LINE_FILL = 0.9
TICK_HZ = 1_000_000
PLANT_BLOCK_SCANS = 20
LONGEST_SLEEP_NS = 20_000_000
U32 = 0xFFFFFFFF

Sink = Callable[[bytes], int | None]  # takes some bytes and says how many; None: nobody listens, all are gone


# --- encoding -----------------------------------------------------------------------------------------------------


@cache
def _crc_tables() -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """A CRC is linear: table[d * 256 + b] is what byte b with d bytes behind it adds. Second: those offsets, last to 0."""
    table: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (table & np.uint32(1)) * np.uint32(CRC32C_POLYNOMIAL)
    rows = np.empty((MAX_BODY_BYTES, 256), dtype=np.uint32)
    rows[0] = table
    for d in range(1, MAX_BODY_BYTES):
        rows[d] = table[rows[d - 1] & 0xFF] ^ (rows[d - 1] >> 8)
    return rows.ravel(), np.arange(MAX_BODY_BYTES - 1, -1, -1, dtype=np.int64) * 256


def crc32c(body: bytes) -> int:
    """CRC-32C of 4 to 4096 bytes."""
    table, offsets = _crc_tables()
    data = np.frombuffer(body, dtype=np.uint8).astype(np.int64)
    data[:4] ^= 0xFF  # the start value 0xFFFFFFFF is the same as inverting the first four bytes
    data += offsets[-len(data) :]
    return int(np.bitwise_xor.reduce(table[data])) ^ U32


def cobs(body: bytes) -> bytes:
    """Consistent overhead byte stuffing, without the delimiter."""
    out = np.zeros(len(body) + 1, dtype=np.uint8)
    out[1:] = np.frombuffer(body, dtype=np.uint8)
    zeros = np.flatnonzero(out == 0)
    runs = np.diff(zeros, append=len(out))
    if runs.max() <= 254:
        out[zeros] = runs
        return out.tobytes()
    blocks = []
    for run in body.split(b"\0"):
        while len(run) >= 254:
            blocks += [b"\xff", run[:254]]
            run = run[254:]
        blocks += [bytes((len(run) + 1,)), run]
    return b"".join(blocks)


def wire_frame(header: bytes, payload: bytes) -> bytes:
    """One frame as it goes over the wire, delimiter included."""
    body = header + payload
    return cobs(body + struct.pack("<I", crc32c(body))) + b"\0"


def pack_samples(counts: NDArray[np.int32], width: int) -> bytes:
    """Counts (host codes allowed) as samples of `width` bits."""
    top = 2 ** (width - 1) - 1
    samples = np.clip(counts, -top, top)
    samples[counts == CHANNEL_FAULT] = -top - 1
    raw = samples.astype("<i4").reshape(-1, 1).view(np.uint8)
    return raw[:, : width // 8].tobytes()


def pack_data(
    counts: NDArray[np.int32],
    *,
    width: int,
    board_id: int,
    boot_id: int,
    index: int,
    ticks: int,
    status: int,
    overflow: int,
) -> bytes:
    """A data frame from counts [n_scans, n_channels]."""
    n_scans, n_channels = counts.shape
    header = HEADER.pack(
        VERSION, DATA, board_id, width, boot_id, index & U32, ticks & U32, status, overflow & U32, n_channels, n_scans
    )
    return wire_frame(header, pack_samples(counts, width))


# --- the board ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class BoardCounters:
    """Exact account of every scan: sampled = sent + overflowed + lost + damaged + unheard + forgotten + queued."""

    scans_sampled: int = 0
    scans_sent: int = 0  # went out whole, to somebody
    scans_overflowed: int = 0  # FIFO full
    scans_lost: int = 0  # fault `drop_frames`: never on the line
    scans_damaged: int = 0  # faults `corrupt` and `garbage`, or cut short by a reboot
    scans_unheard: int = 0  # nobody had the port open, or it was unplugged
    scans_forgotten: int = 0  # in the FIFO at a reboot
    scans_queued: int = 0  # in the FIFO now
    frames_sent: int = 0
    frames_repeated: int = 0
    descriptions_sent: int = 0
    bytes_out: int = 0
    reboots: int = 0


@dataclass(slots=True)
class _Item:
    """One entry of the FIFO."""

    wire: bytes
    n_scans: int
    damaged: bool = False
    copies: int = 1
    done: int = 0  # bytes gone out
    heard: bool = True


def line_rate_for(n_channels: int, width: int, scans_per_frame: int = 10, rate_hz: int = 1000) -> int:
    """The smallest usual UART rate that the board fills to 90 % at most, baud; the largest when none does."""
    wire = HEADER.size + CRC_BYTES + scans_per_frame * n_channels * width // 8
    described = HEADER.size + CRC_BYTES + DESCRIPTION_HEAD.size + n_channels * DESCRIPTION_CHANNEL.size
    rate = (wire + wire // 254 + 2) * rate_hz / scans_per_frame + described + described // 254 + 2
    return next((baud for baud in LINE_RATES_BAUD if baud / 10 * LINE_FILL >= rate), LINE_RATES_BAUD[-1])


def scans_per_frame_for(n_channels: int, width: int, rate_hz: int = 1000) -> int:
    """The most scans, dividing 100 and spanning 10 ms at most, that a frame holds."""
    room = (MAX_BODY_BYTES - HEADER.size - CRC_BYTES) // (n_channels * width // 8)
    return max(n for n in (1, 2, 4, 5, 10, 20, 25, 50, 100) if n <= min(room, rate_hz // 100) or n == 1)


class SimulatedBoard:
    """A board on a serial line: `step` does all that is due, faults change what it does from the next frame on.

    Time is passed in; the board's own clock runs `clock_ppm` fast. `line_rate_baud` 0 is USB: as fast as the host takes
    it. The methods may be called from several threads. `swapped`, `turned`, `dead`: channels (from 0) whose transformers
    are exchanged, the wrong way round, or not connected; the plant's options have the errors of the sensors themselves.
    """

    def __init__(
        self,
        plant: Plant,
        *,
        board_id: int = 1,
        line_rate_baud: int | None = None,
        scans_per_frame: int | None = None,
        fifo_ms: float = 20.0,
        clock_ppm: float = 0.0,
        serial_number: str = "SIM-0001",
        firmware: str = "sim 1",
        seed: int = 0,
        swapped: Sequence[tuple[int, int]] = (),
        turned: Sequence[int] = (),
        dead: Sequence[int] = (),
    ) -> None:
        self.plant = plant
        self.width = plant.options.width
        self.n_channels = len(plant.channels)
        if not 1 <= self.n_channels <= MAX_CHANNELS:
            raise ValueError(f"{self.n_channels} channels; allowed: 1 to {MAX_CHANNELS}")
        self.board_id = board_id
        best = scans_per_frame_for(self.n_channels, self.width, plant.rate_hz)
        self.scans_per_frame = best if scans_per_frame is None else scans_per_frame
        if not 1 <= self.scans_per_frame <= best or 100 % self.scans_per_frame:
            raise ValueError(f"scans_per_frame is {scans_per_frame}; allowed: divisors of 100 up to {best}")
        if line_rate_baud is None:
            line_rate_baud = line_rate_for(self.n_channels, self.width, self.scans_per_frame, plant.rate_hz)
        self.line_rate_baud = line_rate_baud
        self.fifo_scans = round(fifo_ms * plant.rate_hz / 1000.0)
        self.serial_number, self.firmware = serial_number, firmware
        self.counters = BoardCounters()
        self._byte_ns = 1e10 / line_rate_baud if line_rate_baud else 0.0
        self._scan_ns = 1e9 / plant.rate_hz / (1.0 + clock_ppm * 1e-6)
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._fifo: deque[_Item] = deque()
        self._block = np.empty((0, self.n_channels), dtype=np.int32)
        self._last_scan = np.zeros(self.n_channels, dtype=np.int32)
        self._line_ns = 0.0  # the line is busy until then
        self._stalled_until_ns = 0.0
        self._drop_frames = self._corrupt_frames = self._repeat_frames = 0
        self._garbage = b""
        self._forced: dict[int, tuple[int, int | None]] = {}  # channel -> scans left, count (None: stuck)
        self._order = np.arange(self.n_channels)
        self._sign = np.ones(self.n_channels, dtype=np.int32)
        self._noise_counts = np.zeros(self.n_channels)
        for channel, other in swapped:
            self.swap(channel, other)
        for channel in turned:
            self.turn(channel)
        for channel in dead:
            self.disconnect(channel)
        self.boot_id = 0
        self._boot(0)

    def start(self, now_ns: int) -> None:
        """Power on at `now_ns`."""
        with self._lock:
            self._boot(now_ns)

    def step(self, now_ns: int, write: Sink) -> int:
        """Sample, queue and send what is due; returns when to come again, ns."""
        with self._lock:
            due_ns = self._due_ns()
            while due_ns <= now_ns:
                self._drain(due_ns, write)
                self._sample(due_ns)
                due_ns = self._due_ns()
            self._drain(now_ns, write)
            if not self._fifo:
                return int(due_ns)
            left = len(self._fifo[0].wire) * self._fifo[0].copies - self._fifo[0].done
            sent_ns = max(self._line_ns, self._stalled_until_ns) + left * self._byte_ns
            return int(min(due_ns, max(sent_ns, now_ns + 1_000_000)))

    def unheard(self) -> int:
        """Scans that nobody has heard or will hear: also those of the frame that is half out."""
        with self._lock:
            half_out = self._fifo[0].n_scans if self._fifo and not self._fifo[0].heard else 0
            return self.counters.scans_unheard + half_out

    # faults

    def drop_frames(self, frames: int = 1) -> None:
        """The next frames never reach the line."""
        with self._lock:
            self._drop_frames += frames

    def corrupt(self, frames: int = 1) -> None:
        """One byte of each of the next frames is changed on the line."""
        with self._lock:
            self._corrupt_frames += frames

    def repeat(self, frames: int = 1) -> None:
        """The next frames are sent twice."""
        with self._lock:
            self._repeat_frames += frames

    def garbage(self, n_bytes: int = 100) -> None:
        """Random bytes run into the next frame, which they spoil."""
        with self._lock:
            noise = self._rng.integers(0, 256, max(1, n_bytes), dtype=np.uint8)
            noise[-1] |= 1  # not a delimiter: the frame behind is hit for certain
            self._garbage += noise.tobytes()

    def stall(self, ms: float) -> None:
        """Nothing leaves the FIFO for so long; sampling goes on."""
        with self._lock:
            self._stalled_until_ns = max(self._line_ns, self._now_ns) + ms * 1e6

    def reboot(self, ms: float = 50.0) -> None:
        """Power fails for so long; what was queued is gone, index and overflow start again with a new boot id."""
        with self._lock:
            self.counters.reboots += 1
            for item in self._fifo:
                if item.done:
                    self.counters.scans_damaged += item.n_scans
                else:
                    self.counters.scans_forgotten += item.n_scans
            self._boot(int(self._now_ns + ms * 1e6))

    def saturate(self, channel: int, scans: int = 100) -> None:
        """The channel shows full scale."""
        self._force(channel, scans, SATURATED_HIGH)

    def silence(self, channel: int, scans: int = 100) -> None:
        """The channel's converter says nothing: channel fault."""
        self._force(channel, scans, CHANNEL_FAULT)

    def stick(self, channel: int, scans: int = 100) -> None:
        """The channel repeats its last count."""
        self._force(channel, scans, None)

    def swap(self, channel: int, other: int) -> None:
        """The sensors of two channels are exchanged."""
        pair = [self._checked(channel), self._checked(other)]
        with self._lock:
            self._order[pair] = self._order[pair[::-1]]

    def turn(self, channel: int) -> None:
        """The channel's transformer sits the other way round."""
        with self._lock:
            self._sign[self._checked(channel)] *= -1

    def disconnect(self, channel: int) -> None:
        """Nothing is connected to the channel: it reads 0."""
        with self._lock:
            self._sign[self._checked(channel)] = 0

    def add_noise(self, channel: int, counts: float) -> None:
        """The channel has this much more white noise, RMS."""
        with self._lock:
            self._noise_counts[self._checked(channel)] = counts

    def _checked(self, channel: int) -> int:
        if not 0 <= channel < self.n_channels:
            raise ValueError(f"channel {channel}; allowed: 0 to {self.n_channels - 1}")
        return channel

    def _force(self, channel: int, scans: int, value: int | None) -> None:
        self._checked(channel)
        with self._lock:
            self._forced[channel] = (scans, value)

    # sampling

    def _boot(self, at_ns: int) -> None:
        old = self.boot_id
        while self.boot_id == old:
            self.boot_id = int(self._rng.integers(1, U32))
        self._epoch_ns = self._now_ns = self._line_ns = float(at_ns)
        self._ticks0 = int(self._rng.integers(0, U32))
        self._index = 0
        self._overflow = 0
        self._dropped = False
        self._fifo.clear()
        self.counters.scans_queued = 0
        self._put(_Item(b"\0" + self._describe(), 0))

    def _due_ns(self) -> float:
        """When the last scan of the next frame is taken."""
        return self._epoch_ns + (self._index + self.scans_per_frame - 1) * self._scan_ns

    def _sample(self, at_ns: float) -> None:
        """Take the next frame's scans and queue it, or drop it whole."""
        n = self.scans_per_frame
        counts = self._apply_forced(self._take(n))
        index = self._index
        self._index += n
        self._now_ns = at_ns
        self.counters.scans_sampled += n
        if self._drop_frames:
            self._drop_frames -= 1
            self.counters.scans_lost += n
        elif self.counters.scans_queued + n > self.fifo_scans:
            self.counters.scans_overflowed += n
            self._overflow += n
            self._dropped = True
        else:
            self._put(self._spoil(_Item(self._pack(index, counts), n)))
        if self._index % self.plant.rate_hz == 0:
            self._put(_Item(self._describe(), 0))

    def _take(self, n: int) -> NDArray[np.int32]:
        if len(self._block) < n:
            self._block = np.concatenate([self._block, self._wired(self.plant.advance(max(n, PLANT_BLOCK_SCANS)))])
        counts, self._block = self._block[:n], self._block[n:]
        return counts

    def _wired(self, counts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Counts as the board's own inputs see them, whatever is plugged where."""
        wired = counts[:, self._order] * self._sign  # the fault code is its own negative
        if self._noise_counts.any():
            noise = np.rint(self._rng.standard_normal(wired.shape) * self._noise_counts).astype(np.int32)
            wired = np.where(np.abs(wired) < SATURATED_HIGH - 1, wired + noise, wired)
        return np.asarray(wired, dtype=np.int32)

    def _apply_forced(self, counts: NDArray[np.int32]) -> NDArray[np.int32]:
        if self._forced:
            counts = counts.copy()
            for channel, (left, value) in list(self._forced.items()):
                k = min(left, len(counts))
                counts[:k, channel] = self._last_scan[channel] if value is None else value
                self._forced[channel] = (left - k, value)
                if left <= k:
                    del self._forced[channel]
        self._last_scan = counts[-1]
        return counts

    def _pack(self, index: int, counts: NDArray[np.int32]) -> bytes:
        status = 0
        if self._dropped:
            status |= STATUS_DROPPED
            self._dropped = False
        if (counts == CHANNEL_FAULT).any():
            status |= STATUS_FAULT
        if ((counts == SATURATED_HIGH) | (counts == -SATURATED_HIGH)).any():
            status |= STATUS_SATURATED
        return pack_data(
            counts,
            width=self.width,
            board_id=self.board_id,
            boot_id=self.boot_id,
            index=index,
            ticks=self._ticks0 + index * TICK_HZ // self.plant.rate_hz,
            status=status,
            overflow=self._overflow,
        )

    def _describe(self) -> bytes:
        ticks = self._ticks0 + self._index * TICK_HZ // self.plant.rate_hz
        header = HEADER.pack(
            VERSION, DESCRIPTION, self.board_id, self.width, self.boot_id, self._index & U32, ticks & U32, 0,
            self._overflow & U32, self.n_channels, 0,
        )  # fmt: skip
        head = DESCRIPTION_HEAD.pack(
            self.plant.rate_hz, TICK_HZ, self.serial_number.encode(), self.firmware.encode(), 0, 0
        )
        rows = [
            DESCRIPTION_CHANNEL.pack(
                KIND_CODES[c.kind], 0, c.number, c.scale, c.skew_ns, c.full_scale_counts, c.name.encode()
            )
            for c in self.plant.channels
        ]
        return wire_frame(header, head + b"".join(rows))

    def _spoil(self, item: _Item) -> _Item:
        if self._corrupt_frames:
            self._corrupt_frames -= 1
            wire = bytearray(item.wire)
            wire[int(self._rng.integers(0, len(wire) - 1))] ^= int(self._rng.integers(1, 256))
            item = replace(item, wire=bytes(wire), damaged=True)
        if self._garbage:
            item = replace(item, wire=self._garbage + item.wire, damaged=True)
            self._garbage = b""
        if self._repeat_frames:
            self._repeat_frames -= 1
            item = replace(item, copies=2)
        return item

    # sending

    def _put(self, item: _Item) -> None:
        self._fifo.append(item)
        self.counters.scans_queued += item.n_scans

    def _drain(self, until_ns: float, write: Sink) -> None:
        """Send what the line has had time for by `until_ns`; an idle or refused line does not save its time up."""
        if self._line_ns < self._stalled_until_ns:
            self._line_ns = min(self._stalled_until_ns, until_ns)
        while self._fifo:
            item = self._fifo[0]
            wire = item.wire * item.copies
            room = int((until_ns - self._line_ns) / self._byte_ns) if self._byte_ns else len(wire)
            if room <= 0 or self._line_ns < self._stalled_until_ns:
                return
            chunk = wire[item.done : item.done + room]
            taken = write(chunk)
            if taken is None:
                item.heard, taken = False, len(chunk)
            item.done += taken
            self.counters.bytes_out += taken
            self._line_ns += taken * self._byte_ns
            if item.done == len(wire):
                self._fifo.popleft()
                self._account(item)
            elif taken < len(chunk):
                break
            else:
                return
        self._line_ns = max(self._line_ns, until_ns)

    def _account(self, item: _Item) -> None:
        c = self.counters
        c.scans_queued -= item.n_scans
        if not item.heard:
            c.scans_unheard += item.n_scans
            return
        if item.n_scans == 0:
            c.descriptions_sent += 1
            return
        c.frames_repeated += item.copies - 1
        if item.damaged:
            c.scans_damaged += item.n_scans
        else:
            c.scans_sent += item.n_scans
            c.frames_sent += 1


# --- the cable ----------------------------------------------------------------------------------------------------


def open_pty() -> tuple[int, str]:
    """A raw pseudo-terminal: (non-blocking master descriptor, path of the port for the host)."""
    master, slave = os.openpty()
    path = os.ttyname(slave)
    tty.setraw(slave)
    os.close(slave)  # so that a poll of the master tells whether the host has the port open
    os.set_blocking(master, False)
    return master, path


class PtyPort:
    """The board's end of a serial cable. `link` is a path that always leads to the port of the moment, as
    /dev/serial/by-id does: a pseudo-terminal has another name after each re-plug."""

    def __init__(self, link: str | Path | None = None) -> None:
        self._link = Path(link) if link is not None else None
        self._lock = threading.Lock()
        self._master: int | None = None
        self._poll = select.poll()
        self.path = ""
        self.plug()

    @property
    def host_path(self) -> str:
        """What the host should open."""
        return str(self._link) if self._link is not None else self.path

    def plug(self) -> str:
        """Plug the cable in; returns the port's path. Nothing happens when it is in."""
        with self._lock:
            if self._master is None:
                self._master, self.path = open_pty()
                self._poll.register(self._master, select.POLLOUT)
                if self._link is not None:
                    beside = self._link.with_name(self._link.name + ".new")
                    beside.unlink(missing_ok=True)
                    beside.symlink_to(self.path)
                    beside.replace(self._link)
        return self.host_path

    def unplug(self) -> None:
        """Pull the cable: the host's port hangs up and its name goes. Safe to call twice."""
        with self._lock:
            if self._master is not None:
                self._poll.unregister(self._master)
                os.close(self._master)
                self._master = None
                if self._link is not None:
                    self._link.unlink(missing_ok=True)

    def write(self, data: bytes) -> int | None:
        """A Sink: bytes taken; None when unplugged or when nobody has the port open."""
        with self._lock:
            if self._master is None:
                return None
            events = self._poll.poll(0)
            if events and events[0][1] & select.POLLHUP:
                return None
            with contextlib.suppress(BlockingIOError):
                return os.write(self._master, data)
            return 0


def run_board(board: SimulatedBoard, write: Sink, stop: threading.Event) -> None:
    """Real time: step the board at its own deadlines until `stop` is set. For a thread of its own."""
    board.start(time.monotonic_ns())
    while not stop.is_set():
        now_ns = time.monotonic_ns()
        wait_ns = min(board.step(now_ns, write) - time.monotonic_ns(), LONGEST_SLEEP_NS)
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)


FAULTS: dict[str, tuple[str, ...]] = {  # name -> the options it takes
    "drop_frames": ("frames",),
    "corrupt": ("frames",),
    "repeat": ("frames",),
    "garbage": ("n_bytes",),
    "stall": ("ms",),
    "reboot": ("ms",),
    "saturate": ("channel", "scans"),
    "silence": ("channel", "scans"),
    "stick": ("channel", "scans"),
    "swap": ("channel", "other"),
    "turn": ("channel",),
    "disconnect": ("channel",),
    "add_noise": ("channel", "counts"),
    "unplug": (),
    "plug": (),
}


def obey(line: str, board: SimulatedBoard, port: PtyPort) -> Mapping[str, object]:
    """One command of the control line, a JSON object; the answer to print.

    {"fault": NAME, options}, {"outlet": N, "on": BOOL}, {"outlet": N, "phase": N},
    {"outlet": N, "load_bank": {"rms_a": A, "power_factor": 0..1} | null}, {"show": "counters" | "power" | "plan" | "truth"}.
    """
    try:
        command = json.loads(line)
        if not isinstance(command, dict):
            raise ValueError("a command is a JSON object")
        if "fault" in command:
            return _inflict(command, board, port)
        if "outlet" in command:
            return _at_outlet(command, board.plant)
        return _show(command, board)
    except (ValueError, TypeError, KeyError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _at_outlet(command: Mapping[str, object], plant: Plant) -> Mapping[str, object]:
    outlet = int(str(command["outlet"]))
    if not 1 <= outlet <= plant.n_outlets:
        raise ValueError(f"outlet {outlet}; allowed: 1 to {plant.n_outlets}")
    match command:
        case {"on": on}:
            plant.set_outlet(outlet - 1, bool(on))
        case {"phase": int(phase)}:
            plant.rephase(outlet - 1, phase - 1)
        case {"load_bank": None}:
            plant.set_load_bank(outlet - 1, None)
        case {"load_bank": dict(load)}:
            plant.set_load_bank(outlet - 1, LoadBank(**load))
        case _:
            raise ValueError(f"{dict(command)}; an outlet takes on, phase or load_bank")
    return dict(command)


def _inflict(command: Mapping[str, object], board: SimulatedBoard, port: PtyPort) -> Mapping[str, object]:
    name = str(command["fault"])
    options = {key: value for key, value in command.items() if key != "fault"}
    if name not in FAULTS or set(options) - set(FAULTS[name]):
        raise ValueError(f"fault {dict(command)}; allowed: {FAULTS}")
    getattr(port if name in ("plug", "unplug") else board, name)(**options)
    return {"fault": name, "port": port.host_path}


def _show(command: Mapping[str, object], board: SimulatedBoard) -> Mapping[str, object]:
    what = command.get("show")
    if what == "counters":
        return {"counters": asdict(board.counters)}
    if what == "power":
        return {"power_w": [round(w, 2) for w in board.plant.true_power_w.tolist()]}
    if what == "truth":
        return {"truth": [board.plant.truth(k)._asdict() for k in range(board.plant.n_outlets)]}
    if what == "plan":
        return {"time_s": board.plant.time_s, "plan": _plan(board.plant)}
    raise ValueError(f"unknown command {dict(command)}; allowed: fault, outlet, show (counters, power, plan, truth)")


def _plan(plant: Plant) -> list[dict[str, float]]:
    """Announcements of the next 30 s, times from now."""
    now_s = plant.time_s
    return [
        {"outlet": i + 1, "in_s": round(p.t_s - now_s, 3), "delta_w": round(p.delta_w, 1)}
        for i, p in plant.plan(now_s + 30.0)
    ]


def _plant_from(args: argparse.Namespace) -> Plant:
    rack = demo_rack(args.outlets, args.seed)
    if args.trace:
        traces = read_traces(args.trace)
        for trace in traces:
            print(trace.description, file=sys.stderr)
        rack = [
            replace(w, trace=traces[i % len(traces)], start_s=i * traces[0].duration_s / args.outlets)
            for i, w in enumerate(rack)
        ]
    voltage_v = args.voltage if args.voltage else (54.0 if args.supply == "dc" else 230.0)
    options = PlantOptions(supply=args.supply, frequency_hz=args.frequency, voltage_v=voltage_v, width=args.width)
    return Plant(rack, options, rate_hz=args.rate, seed=args.seed)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="board_sim",
        description="A simulated sensor board on a pseudo-terminal. Prints one JSON line with its port, then answers "
        "JSON commands on standard input, a line each; the end of the input stops it.",
    )
    parser.add_argument("--outlets", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--supply", choices=("ac", "dc"), default="ac")
    parser.add_argument("--frequency", type=float, default=50.0, help="Hz")
    parser.add_argument("--voltage", type=float, default=0.0, help="V; default 230 (ac), 54 (dc)")
    parser.add_argument("--width", type=int, choices=(16, 24, 32), default=24, help="bits of a sample")
    parser.add_argument("--rate", type=int, default=1000, help="scans per second")
    parser.add_argument("--baud", type=int, default=None, help="line rate; 0 is USB; default: the smallest that fits")
    parser.add_argument("--board-id", type=int, default=1)
    parser.add_argument("--clock-ppm", type=float, default=0.0, help="how fast the board's clock runs")
    parser.add_argument("--link", help="path of a symbolic link to the port, kept over re-plugging")
    parser.add_argument("--trace", help="recorded power (.csv or .npz) in place of the simulated work")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a board until standard input ends; the exit code."""
    args = _arguments().parse_args(argv)
    try:
        board = SimulatedBoard(
            _plant_from(args),
            board_id=args.board_id,
            line_rate_baud=args.baud,
            clock_ppm=args.clock_ppm,
            serial_number=f"SIM-{args.board_id:04d}",
            seed=args.seed,
        )
    except (TraceError, ValueError) as error:
        print(f"board_sim: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, TraceError) else 2
    port = PtyPort(args.link)
    hello = {
        "schema": 1,
        "port": port.host_path,
        "board_id": args.board_id,
        "channels": board.n_channels,
        "line_rate_baud": board.line_rate_baud,
        "scans_per_frame": board.scans_per_frame,
    }
    print(json.dumps(hello), flush=True)
    stop = threading.Event()
    thread = threading.Thread(target=run_board, args=(board, port.write, stop), name="board")
    thread.start()
    try:
        for line in sys.stdin:
            if line.strip():
                print(json.dumps(obey(line, board, port)), flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()
        thread.join()
        port.unplug()
    print(json.dumps({"counters": asdict(board.counters)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
