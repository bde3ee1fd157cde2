"""A Linux IIO device with a buffer as a sensor board: its scan layout from sysfs, its rate, its character device.

Source: Documentation/ABI/testing/sysfs-bus-iio and Documentation/driver-api/iio/buffers.rst of the kernel. `scan_elements/`
and `buffer/` up to 5.10, `bufferN/` with both from 5.11 on.
"""

import contextlib
import errno
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription, ScanElement, ScanLayout
from rpi_daemon.errors import DeviceError, LockedError

DEVICES = Path("/sys/bus/iio/devices")
DEV = Path("/dev")
RATE_HZ = 1000
RATE_TOLERANCE_HZ = 1.0
LENGTH_SCANS = 2000  # of the kernel's buffer: the sampler may stand still for 2 s
WATERMARK_SCANS = 10
UNITS: Final = {"voltage": 1e-3, "current": 1e-3}  # IIO's scale makes mV and mA
NAME: Final = re.compile(r"in_(?P<kind>[a-z]+)(?P<number>\d*)(?:-[a-z]+(?P<minus>\d+))?(?P<label>_\w+)?")
TYPE: Final = re.compile(
    r"(?P<order>be|le):(?P<sign>[su])(?P<bits>\d+)/(?P<storage>\d+)(?:X(?P<repeat>\d+))?(?:>>(?P<shift>\d+))?"
)
TIMESTAMP: Final = "in_timestamp"


@dataclass(frozen=True, slots=True)
class ScanType:
    """How a value is stored: the file `*_type`."""

    big_endian: bool
    signed: bool
    bits: int
    storage_bytes: int
    shift: int


@dataclass(frozen=True, slots=True)
class Channel:
    """One scan element of the device."""

    name: str  # "in_voltage0"
    index: int
    type: ScanType

    @property
    def kind(self) -> str:
        """What it measures: "voltage", "current", "timestamp" ..."""
        found = NAME.fullmatch(self.name)
        return found["kind"] if found is not None else ""


@dataclass(frozen=True, slots=True)
class IioOptions:
    """`device`: its name, or its folder below /sys/bus/iio/devices. `channels`: as in the configuration of the board.

    `gains`: A or V on the line per V or A at each input; None: the inputs are on the line themselves.
    """

    device: str
    channels: tuple[str, ...]
    gains: tuple[float, ...] | None = None
    devices: Path = DEVICES
    dev: Path = DEV


def parse_type(text: str, file: Path) -> ScanType:
    """`[be|le]:[s|u]bits/storagebits[Xrepeat][>>shift]`; raises DeviceError for anything else."""
    found = TYPE.fullmatch(text.strip())
    if found is None:
        raise DeviceError(
            f"{file}: {text.strip()!r} is not a known type; known: [be|le]:[s|u]bits/storagebits[>>shift]"
        )
    bits, storage, shift = int(found["bits"]), int(found["storage"]), int(found["shift"] or 0)
    if storage not in (8, 16, 32, 64) or not 2 <= bits <= storage - shift:
        raise DeviceError(
            f"{file}: {text.strip()!r}: 2 bits and more, shift included within 8, 16, 32 or 64, are allowed"
        )
    if int(found["repeat"] or 1) != 1:
        raise DeviceError(f"{file}: {text.strip()!r} holds several values; one a channel is allowed")
    return ScanType(found["order"] == "be", found["sign"] == "s", bits, storage // 8, shift)


def place(channels: Sequence[Channel]) -> tuple[tuple[int, ...], int]:
    """Offset of each channel in a record, and the record's bytes: each aligned to its own size, the whole to the largest."""
    offsets, at, largest = [], 0, 1
    for channel in channels:
        size = channel.type.storage_bytes
        at = -(-at // size) * size
        offsets.append(at)
        at += size
        largest = max(largest, size)
    return tuple(offsets), -(-at // largest) * largest


class IioSource:
    """Streamed source: `fileno()` delivers the records that `layout` describes, with what `description` says of them.

    The channels of the configuration are the device's voltages and currents in the order of their scan index; "unused"
    ones are not captured. `close` gives the buffer back: nothing is captured then. One thread.
    """

    codec: Final = "iio-records"

    def __init__(self, options: IioOptions) -> None:
        self._options = options
        self._folder: Path | None = None
        self._buffer: Path | None = None
        self._fd = -1
        self._layout: ScanLayout | None = None
        self.records: tuple[object, ...] = ()  # what `layout` was made of, to be compared
        self._description: BoardDescription | None = None
        self.stamped = False  # the device tells when a scan was taken: so lost ones are seen

    @property
    def layout(self) -> ScanLayout:
        """Of the records; from `open` on."""
        assert self._layout is not None
        return self._layout

    @property
    def description(self) -> BoardDescription:
        """What a sensor board would say of itself; from `open` on."""
        assert self._description is not None
        return self._description

    def open(self) -> None:
        """Find the device, set it up and start capturing; raises DeviceError, and LockedError where another program captures."""
        self.close()
        folder = self._folder = self._find()
        buffer, elements = _buffer_of(folder)
        self._fd = self._open_device(folder)
        try:
            _write(buffer / "enable", 0)  # what a killed run left
            self._set_rate(folder)
            self._capture(folder, buffer, elements)
            _write(buffer / "length", LENGTH_SCANS)
            if (buffer / "watermark").exists():
                _write(buffer / "watermark", WATERMARK_SCANS)
            self._buffer = buffer
            _write(buffer / "enable", 1)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The open descriptor, non-blocking; owned by this source. Raises DeviceError when closed."""
        if self._fd < 0:
            raise DeviceError(f"IIO device {self._options.device!r} is not open")
        return self._fd

    def present(self) -> bool:
        """Whether it still captures: poll() says nothing of a device that was unplugged."""
        try:
            return self._buffer is not None and (self._buffer / "enable").read_text().strip() == "1"
        except OSError:
            return False

    def close(self) -> None:
        """Stop capturing and close; safe to call twice."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            with contextlib.suppress(DeviceError):  # it may have been unplugged
                _write(buffer / "enable", 0)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # -- finding it

    def _find(self) -> Path:
        options = self._options
        if "/" in options.device:
            folder = Path(options.device)
            if not folder.is_dir():
                raise DeviceError(f"{folder}: no such IIO device; {self._present()}")
            return folder
        folders = [folder for folder, name in self._named() if options.device in (folder.name, name)]
        if not folders:
            raise DeviceError(f"no IIO device is called {options.device!r}; {self._present()}")
        if len(folders) > 1:
            found = ", ".join(str(folder) for folder in folders)
            raise DeviceError(
                f"several IIO devices are called {options.device!r}: give board.iio_device one of {found}"
            )
        return folders[0]

    def _named(self) -> list[tuple[Path, str]]:
        folders = sorted(self._options.devices.glob("iio:device*"))
        return [(folder, _text(folder / "name") or "") for folder in folders]

    def _present(self) -> str:
        found = ", ".join(f"{name or 'without a name'} ({folder})" for folder, name in self._named())
        return f"present: {found}" if found else f"none is present below {self._options.devices}"

    def _open_device(self, folder: Path) -> int:
        path = self._options.dev / folder.resolve().name
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise LockedError(
                    f"{path} is captured by another program: stop that (`fuser {path}` names it)"
                ) from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise DeviceError(f"not permitted to open {path}: see 'Permissions' in docs/sensors.md") from None
            raise DeviceError(f"{path}: {error.strerror}; is it the character device of {folder}?") from None

    # -- setting it up

    def _set_rate(self, folder: Path) -> None:
        files = _rate_files(folder)
        if not files:
            raise DeviceError(
                f"{folder}: has no sampling_frequency, nor a trigger that has one; for a triggered device write the name of"
                f" a trigger of {RATE_HZ} Hz (hrtimer, or the device's own) into {folder / 'trigger/current_trigger'}"
            )
        for file in files:
            if not _near(_text(file)):
                with contextlib.suppress(DeviceError):  # what it then says decides
                    _write(file, RATE_HZ)
        for file in files:
            if not _near(said := _text(file)):
                allowed = _text(file.with_name(f"{file.name}_available"))
                raise DeviceError(
                    f"{file}: {said} Hz; the daemon needs {RATE_HZ} Hz, and the device does not take that"
                    + (f"; it allows {allowed}" if allowed else "")
                )

    def _capture(self, folder: Path, buffer: Path, elements: Path) -> None:
        """Enable what the configuration uses and the timestamp, nothing else."""
        found = _channels(elements)
        inputs = [channel for channel in found if channel.kind in UNITS]
        said = self._options.channels
        if len(inputs) != len(said):
            names = ", ".join(channel.name for channel in inputs) or "none"
            raise DeviceError(
                f"{elements}: {len(inputs)} voltages and currents ({names}), board.channels lists {len(said)}; list them in"
                " this order, 'unused' where nothing is connected"
            )
        stamps = [channel for channel in found if channel.name == TIMESTAMP]
        used = [(k, channel) for k, (channel, text) in enumerate(zip(inputs, said, strict=True)) if text != "unused"]
        wanted = {channel.name for _, channel in used} | {channel.name for channel in stamps}
        for channel in found:
            _write(elements / f"{channel.name}_en", int(channel.name in wanted))
        clock = folder / "current_timestamp_clock"
        if stamps and clock.exists():
            with contextlib.suppress(DeviceError):  # any clock will do, this one is never set
                _write(clock, "monotonic")
        self._lay_out(folder, elements, inputs, used, stamps)

    def _lay_out(
        self,
        folder: Path,
        elements: Path,
        inputs: Sequence[Channel],
        used: Sequence[tuple[int, Channel]],
        stamps: Sequence[Channel],
    ) -> None:
        offsets, scan_bytes = place([*(channel for _, channel in used), *stamps])
        placed = []
        for (k, channel), offset in zip(used, offsets, strict=False):
            t = channel.type
            add = round(_shared(folder, channel, "offset", 0.0))
            placed.append(ScanElement(k, offset, t.storage_bytes, t.bits, t.shift, t.signed, t.big_endian, add))
        if stamps and stamps[0].type.storage_bytes != 8:
            raise DeviceError(f"{elements / TIMESTAMP}_type: the timestamp must have 64 bits")
        stamp = offsets[-1] if stamps else None
        try:
            self._layout = ScanLayout(
                placed,
                n_channels=len(inputs),
                scan_bytes=scan_bytes,
                timestamp=stamp,
                timestamp_big_endian=bool(stamps) and stamps[0].type.big_endian,
            )
        except ValueError as error:
            raise DeviceError(f"{elements}: {error}") from None
        self.records = (tuple(placed), scan_bytes, stamp)
        self.stamped = bool(stamps)
        by_channel = {element.channel: element for element in placed}
        channels = tuple(self._describe(folder, k, channel, by_channel.get(k)) for k, channel in enumerate(inputs))
        name = _text(folder / "label") or _text(folder / "name") or folder.name
        self._description = BoardDescription(RATE_HZ, 1_000_000_000, name, "Linux IIO", 0, channels)

    def _describe(self, folder: Path, k: int, channel: Channel, element: ScanElement | None) -> ChannelDescription:
        options = self._options
        kind = options.channels[k].partition(":")[0]
        if element is None:
            return ChannelDescription("current", k + 1, 1.0, 0, 1, channel.name)
        if kind != channel.kind and options.gains is None:
            raise DeviceError(
                f"{folder}: {channel.name} measures {channel.kind}, {options.channels[k]!r} is a {kind}: board.iio_gains must"
                f" say how many {'A' if kind == 'current' else 'V'} on the line make 1 {'V' if channel.kind == 'voltage' else 'A'} at the input"
            )
        scale = UNITS[channel.kind] * _shared(folder, channel, "scale", None)
        gain = options.gains[k] if options.gains is not None else 1.0
        full_scale = max(element.highest + element.add, -(element.lowest + element.add))
        return ChannelDescription(
            "current" if kind == "current" else "voltage",
            k + 1,
            scale * gain,
            0,
            min(full_scale, 2**31 - 1),
            channel.name,
        )


def _buffer_of(folder: Path) -> tuple[Path, Path]:
    """The folders of the buffer and of its scan elements; raises DeviceError for a driver without a buffer."""
    for buffer in sorted(folder.glob("buffer[0-9]*")):
        if any(buffer.glob("*_en")):
            return buffer, buffer
    if (folder / "buffer/enable").exists() and (folder / "scan_elements").is_dir():
        return folder / "buffer", folder / "scan_elements"
    raise DeviceError(
        f"{folder}: its driver has no buffer, so it reads one value at a time and no stream (mainline ti-ads131m02 is such a"
        " one); use a device whose driver has one, or a sensor board"
    )


def _channels(elements: Path) -> list[Channel]:
    """Every scan element in the order of a record: by index, the timestamp last. Raises DeviceError."""
    found = []
    for file in elements.glob("*_en"):
        name = file.name.removesuffix("_en")
        index, kind = _text(elements / f"{name}_index"), _text(elements / f"{name}_type")
        if index is None or kind is None or not index.isdecimal():
            raise DeviceError(
                f"{elements}: {name} has no readable {name}_index and {name}_type; is this an IIO device?"
            )
        # of what is never captured the type does not matter
        ours = name == TIMESTAMP or name.startswith(tuple(f"in_{unit}" for unit in UNITS))
        scan_type = parse_type(kind, elements / f"{name}_type") if ours else ScanType(False, False, 8, 1, 0)
        found.append(Channel(name, int(index), scan_type))
    return sorted(found, key=lambda channel: (channel.name == TIMESTAMP, channel.index))


def _shared(folder: Path, channel: Channel, what: str, default: float | None) -> float:
    """`scale` or `offset` of a channel, its own or that of its kind; raises DeviceError where it is needed and missing."""
    found = NAME.fullmatch(channel.name)
    kind = channel.kind
    differential = found is not None and found["minus"] is not None
    names = [channel.name, f"in_{kind}-{kind}" if differential else f"in_{kind}", f"in_{kind}"]
    for name in names:
        text = _text(folder / f"{name}_{what}")
        if text is None:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (what == "scale" and value == 0.0):
            raise DeviceError(f"{folder / f'{name}_{what}'}: {text!r} is not a {what}")
        return value
    if default is None:
        raise DeviceError(
            f"{folder}: {channel.name} has no {what}: neither {names[0]}_{what} nor {names[1]}_{what} is there"
        )
    return default


def _rate_files(folder: Path) -> list[Path]:
    """Where the device's rate stands: in its own files, else in those of its trigger."""
    own = sorted({*folder.glob("sampling_frequency"), *folder.glob("in_*sampling_frequency")})
    trigger = _text(folder / "trigger/current_trigger")
    if own or not trigger:
        return own
    folders = [item for item in sorted(folder.parent.glob("trigger[0-9]*")) if _text(item / "name") == trigger]
    return [item / "sampling_frequency" for item in folders if (item / "sampling_frequency").exists()]


def _near(text: str | None) -> bool:
    try:
        return text is not None and abs(float(text) - RATE_HZ) <= RATE_TOLERANCE_HZ
    except ValueError:
        return False


def _text(file: Path) -> str | None:
    """What a file of sysfs says; None where there is none, or the driver cannot say."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _write(file: Path, value: int | str) -> None:
    """Write a file of sysfs; raises DeviceError, LockedError where the buffer is in use."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DeviceError(f"not permitted to write {file}: see 'Permissions' in docs/sensors.md") from None
        if error.errno == errno.EBUSY:
            raise LockedError(f"{file}: the device is captured by another program; stop that") from None
        raise DeviceError(f"{file}: does not take {value} ({error.strerror})") from None
