"""The compiled face, typed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Buffer

# --- ring
class Ring:
    def __init__(
        self,
        memory: Any,
        *,
        n_channels: int | None = None,
        capacity: int | None = None,
        rate_hz: int = 1000,
        keep: bool = False,
    ) -> None: ...
    @staticmethod
    def bytes_needed(n_channels: int, capacity: int) -> int: ...
    @property
    def n_channels(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def rate_hz(self) -> int: ...
    @property
    def head(self) -> int: ...
    @property
    def scans(self) -> NDArray[np.void]: ...
    def spans(self, first: int, n: int) -> tuple[NDArray[np.void], ...]: ...
    def intact(self, first: int) -> bool: ...
    def missing(self, first: int, n: int) -> int: ...
    def read(self, first: int, n: int) -> tuple[NDArray[np.void], NDArray[np.bool_]]: ...
    def push(
        self, index: int, t_mono_ns: int, ticks: int, status: int, counts: NDArray[np.int32], *, flags: int = 0
    ) -> None: ...

class RingReader:
    def __init__(self, ring: Ring, first: int = 0) -> None: ...
    @property
    def next(self) -> int: ...
    @property
    def lost(self) -> int: ...
    def take(self, most: int) -> NDArray[np.void]: ...

# --- frame codec: docs/sensor-board-protocol.md; counts carry the codes COUNT_HIGH, COUNT_LOW, COUNT_FAULT
FRAME_DATA: int
FRAME_DESCRIPTION: int
COUNT_HIGH: int
COUNT_LOW: int
COUNT_FAULT: int
TIMELINE_CONTINUES: int
TIMELINE_GAP: int
TIMELINE_REBOOT: int
TIMELINE_REPEAT: int

def crc32c(data: Buffer) -> int: ...

class Frame:
    """One frame whose CRC, version, width and lengths are right."""

    @property
    def type(self) -> int: ...
    @property
    def board_id(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def boot_id(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def ticks(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def overflow(self) -> int: ...
    @property
    def n_channels(self) -> int: ...
    @property
    def n_scans(self) -> int: ...
    @property
    def payload(self) -> bytes: ...
    def counts(self) -> NDArray[np.int32]:
        """[n_scans, n_channels], sign-extended, codes widened to 32 bits; of a data frame."""

class FrameDecoder:
    """Bytes in any pieces -> complete, undamaged frames, in order; the rest is thrown away and counted. One thread."""

    def feed(self, data: Buffer) -> list[Frame]: ...
    @property
    def frames(self) -> int: ...
    @property
    def crc_errors(self) -> int: ...
    @property
    def format_errors(self) -> int: ...
    @property
    def resync_bytes(self) -> int: ...

class Timeline:
    """A board's u32 index and ticks, extended to 64 bits over wrap-around and reboot."""

    def extend(self, frame: Frame) -> tuple[int, int, int, int]:
        """Place a data frame: (TIMELINE_*, 64-bit index and ticks of its first scan, scans lost before it).

        TIMELINE_REPEAT: a frame from the past, to be thrown away. TIMELINE_REBOOT: the ticks start anew.
        """
    @property
    def next_index(self) -> int: ...
    @property
    def dropped(self) -> int:
        """Scans that the board says it dropped since the first frame; they are part of what `extend` calls lost."""

@dataclass(frozen=True, slots=True)
class ChannelDescription:
    kind: Literal["current", "voltage"]
    number: int  # outlet, or phase, from 1
    scale: float  # A or V per count
    skew_ns: int  # sampled so much later than the scan's ticks
    full_scale_counts: int
    name: str

@dataclass(frozen=True, slots=True)
class BoardDescription:
    rate_hz: int
    tick_hz: int
    serial_number: str
    firmware: str
    group_delay_ns: int
    channels: tuple[ChannelDescription, ...]

def parse_description(payload: Buffer) -> BoardDescription:
    """Payload of a description frame; raises ValueError where it makes no sense."""

def encode_data_frame(
    counts: ArrayLike,
    *,
    width: int = 24,
    board_id: int = 0,
    boot_id: int = 0,
    index: int = 0,
    ticks: int = 0,
    status: int = 0,
    overflow: int = 0,
) -> bytes:
    """Wire bytes, delimiter included, of `counts` [scans, channels]; raises ValueError for what a frame cannot hold."""

def encode_description(
    description: BoardDescription,
    *,
    width: int = 24,
    board_id: int = 0,
    boot_id: int = 0,
    index: int = 0,
    ticks: int = 0,
    status: int = 0,
    overflow: int = 0,
) -> bytes:
    """Wire bytes, delimiter included; raises ValueError for what a description cannot hold."""

# --- SNMP codec
SnmpValue = int | bytes | str | None

class BerError(ValueError): ...

@final
class Varbind:
    def __init__(self, oid: str, tag: int, value: SnmpValue = None) -> None: ...
    @property
    def oid(self) -> str: ...
    @property
    def tag(self) -> int: ...
    @property
    def value(self) -> SnmpValue: ...
    def __hash__(self) -> int: ...

@final
class Pdu:
    @property
    def tag(self) -> int: ...
    @property
    def request_id(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def varbinds(self) -> list[Varbind]: ...
    @property
    def names_match(self) -> bool: ...
    @property
    def context_engine_id(self) -> bytes: ...
    @property
    def context_name(self) -> bytes: ...

@final
class V3Message:
    @property
    def msg_id(self) -> int: ...
    @property
    def max_size(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def engine_id(self) -> bytes: ...
    @property
    def boots(self) -> int: ...
    @property
    def time_s(self) -> int: ...
    @property
    def user(self) -> bytes: ...
    @property
    def auth_params(self) -> bytes: ...
    @property
    def auth_offset(self) -> int: ...
    @property
    def priv_params(self) -> bytes: ...
    @property
    def scoped(self) -> bytes: ...

def encode_oid(oid: str) -> bytes: ...
def decode_oid(octets: bytes) -> str: ...
def encode_v2c(
    community: bytes, pdu_tag: int, request_id: int, varbinds: Sequence[str | Varbind], status: int = 0, index: int = 0
) -> bytes: ...
def decode_v2c(data: bytes, names: Sequence[str | Varbind] | None = None) -> tuple[bytes, Pdu]: ...
def encode_scoped(
    engine_id: bytes,
    context: bytes,
    pdu_tag: int,
    request_id: int,
    varbinds: Sequence[str | Varbind],
    status: int = 0,
    index: int = 0,
) -> bytes: ...
def decode_scoped(data: bytes, names: Sequence[str | Varbind] | None = None) -> Pdu: ...
def encode_v3(
    msg_id: int,
    flags: int,
    engine_id: bytes,
    boots: int,
    time_s: int,
    user: bytes,
    auth_octets: int,
    priv_params: bytes,
    scoped: bytes,
    max_size: int = 65507,
) -> tuple[bytearray, int]: ...
def decode_v3(data: bytes) -> V3Message: ...
def xor_octets(octets: bytes, mask: bytes) -> bytes: ...

# --- codec of IIO records: counts carry the codes COUNT_HIGH and COUNT_LOW
@dataclass(frozen=True)
class ScanElement:
    """Where one channel lies in a record: `bits` above `shift`, in `bytes` from `offset` on; `add` makes its value a count."""

    channel: int
    offset: int
    bytes: int
    bits: int
    shift: int = 0
    signed: bool = True
    big_endian: bool = False
    add: int = 0
    @property
    def lowest(self) -> int: ...
    @property
    def highest(self) -> int: ...

class ScanLayout:
    def __init__(
        self,
        elements: Sequence[ScanElement],
        *,
        n_channels: int,
        scan_bytes: int,
        timestamp: int | None = None,
        timestamp_big_endian: bool = False,
    ) -> None: ...
    @property
    def n_channels(self) -> int: ...
    @property
    def scan_bytes(self) -> int: ...

class ScanDecoder:
    def __init__(self, layout: ScanLayout) -> None: ...
    def feed(self, data: Buffer) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...
    @property
    def held(self) -> int: ...

class StampLine:
    def __init__(self, nominal_ns: float) -> None: ...
    def extend(self, stamp_ns: int) -> tuple[int, int, int]: ...
    @property
    def period_ns(self) -> float: ...

# --- sampler
class BoardClock:
    def __init__(self, ticks: int, arrival_ns: int, ns_per_tick: float) -> None: ...
    def add(self, ticks: int, arrival_ns: int) -> None: ...
    def predict(self, ticks: int) -> int: ...
    @property
    def drift_ppm(self) -> float: ...

class Sampler:
    def __init__(
        self,
        ring: Ring,
        *,
        board_id: int = 0,
        event_fd: int = -1,
        notify_every: int = 100,
        fifo_priority: int = 0,
        lock_memory: bool = False,
    ) -> None: ...
    def start_streamed(self, fd: int, records: ScanLayout | None = None) -> None: ...
    def start_paced(self, feed: Ring, period_ns: int) -> None: ...
    def attach(self, fd: int) -> None: ...
    def stop(self) -> None: ...
    def counters(self) -> dict[str, int]: ...
    def connected(self) -> bool: ...
    def turns(self) -> int: ...
    def thread_id(self) -> int: ...
    def boot_id(self) -> int: ...
    def forwarded(self) -> int: ...
    def description(self) -> bytes | None: ...
    def lateness_us(self, q: float) -> float: ...
    def scheduling(self) -> str: ...

# --- window kernels

WINDOW_OK: int
WINDOW_NOT_READY: int
WINDOW_LAPPED: int
WINDOW_SCANS: int
WINDOW_HOP: int
SCAN_FIRST: int
F_POWER_W: int
F_RMS_A: int
F_APPARENT_VA: int
F_POWER_FACTOR: int
F_PEAK_A: int
F_CREST: int
F_MIN_A: int
F_MAX_A: int
F_STEP: int
F_VOLTAGE_V: int
F_COUNT: int
F_MISSING: int
F_SATURATED: int
F_QUALITY: int
N_FEATURES: int

class WindowKernel:
    out: NDArray[np.float64]
    n_outlets: int
    n_channels: int
    def __init__(
        self,
        n_channels: int,
        *,
        outlets: Sequence[tuple[int, int | tuple[int, int], float]],
        gain: ArrayLike,
        offset_counts: ArrayLike | None = None,
        delay_ns: ArrayLike | None = None,
        full_scale_counts: ArrayLike | None = None,
        rate_hz: int = 1000,
        dc: bool = False,
        portable: bool = False,
    ) -> None: ...
    @property
    def group_delay(self) -> int: ...
    @property
    def n_filters(self) -> int: ...
    @property
    def span(self) -> int: ...
    @property
    def t_end_ns(self) -> int: ...
    def compute(self, ring: Ring, end_index: int) -> int: ...

# --- experts and their mixture
EXPERTS: tuple[str, ...]

@final
class Experts:
    def __init__(self, n: int, alone: str | None = None) -> None: ...
    @property
    def n(self) -> int: ...
    def reset(self, outlets: NDArray[np.bool_] | None = None) -> None: ...
    def step(
        self,
        tick: int,
        power_w: NDArray[np.float64],
        valid: NDArray[np.bool_] | NDArray[np.uint8],
        fresh: NDArray[np.bool_] | NDArray[np.uint8],
        interval_ticks: NDArray[np.int64],
        rating_w: NDArray[np.float64],
        planned_w: NDArray[np.float64],
        value_w: NDArray[np.float64],
        running_max_w: NDArray[np.float64],
        out: NDArray[np.float64],
    ) -> None: ...
    def member(self, expert: int, out: NDArray[np.float64]) -> None: ...
    def weights(self, kind: int, quantile: int, out: NDArray[np.float64]) -> None: ...
    @property
    def awake(self) -> NDArray[np.bool_]: ...
    @property
    def period_ticks(self) -> NDArray[np.int64]: ...

def network_quantiles(
    change_w: NDArray[np.float64],
    base_w: NDArray[np.float64],
    ready: NDArray[np.bool_],
    off: NDArray[np.bool_],
    rating_w: NDArray[np.float64],
    planned_w: NDArray[np.float64],
    slightly_negative: float,
    out: NDArray[np.float64],
) -> None: ...
