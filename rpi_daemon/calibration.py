"""The file that `calibrate` writes for a board, and what it makes of the board's counts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rpi_daemon._fastpath.core import BoardDescription
from rpi_daemon.errors import ConfigError, DeviceError
from rpi_daemon.small_file import read_small

SCHEMA = 1
VALID_DAYS = 365


@dataclass(frozen=True, slots=True)
class Correction:
    """How counts become amps and volts, per channel: gain x (count - offset), `delay_ns` late."""

    gain: tuple[float, ...]
    offset_counts: tuple[float, ...]
    delay_ns: tuple[float, ...]
    calibrated: tuple[bool, ...]  # False: the board's own word


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Residual(_Record):
    """What a calibrated channel shows beside its reference."""

    quantity: Literal["A", "V", "W"]
    reference: float
    measured: float
    error_percent: float  # of reading


class Instrument(_Record):
    """The reference, as its own certificate names it."""

    name: str
    serial_number: str = ""
    uncertainty_percent: float | None = None

    def __str__(self) -> str:
        word = "" if self.uncertainty_percent is None else f", within {self.uncertainty_percent:g} %"
        return f"{self.name} {self.serial_number}".strip() + word


class ChannelRecord(_Record):
    """One channel of the file."""

    channel: int  # on the board, from 1
    kind: Literal["current", "voltage"]
    name: str
    gain: float  # A or V per count
    offset_counts: float
    delay_ns: float
    phase_known: bool  # False: the delay is the board's own word
    range: float  # A or V, RMS on AC
    noise_percent: float | None  # of range, RMS
    repeatability_percent: float | None  # of reading, the worst step
    residuals: tuple[Residual, ...]
    good: bool
    verdict: str
    date: datetime
    instrument: Instrument


class Calibration(_Record):
    """One board's file. Channels that were refused are in it with their reason, and are not applied."""

    board: str
    serial_number: str
    n_channels: int
    supply: Literal["ac", "dc"]
    date: datetime
    operator: str
    ambient_c: float | None
    channels: tuple[ChannelRecord, ...]

    @property
    def expires(self) -> datetime:
        """12 months after the oldest of its channels that is in use."""
        dates = [record.date for record in self.channels if record.good]
        return min(dates, default=self.date) + timedelta(days=VALID_DAYS)

    def to_json(self) -> str:
        """The file's text, its SHA-256 over everything else included."""
        content = {"schema": SCHEMA, **self.model_dump(mode="json")}
        return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"


def parse_calibration(text: str, name: str) -> Calibration:
    """A file's text; raises ConfigError where it is damaged, changed since it was written, or of another schema."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not an object")
        digest = content.pop("sha256", None)
        if digest is None or content.get("schema") is None:
            raise ValueError("no schema or sha256")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not a calibration file ({error}); name one that `calibrate` wrote") from None
    if digest != _digest(content):
        raise ConfigError(
            f"{name}: changed since `calibrate` wrote it (its SHA-256 differs): calibrate again, or restore it"
        )
    if content.pop("schema") != SCHEMA:
        raise ConfigError(f"{name}: a calibration of another version; calibrate again")
    try:
        return Calibration.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{name}: not a calibration file: {error.errors()[0]['msg']}") from None


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_calibration(path: Path) -> Calibration:
    """Raises ConfigError for a file that is missing, damaged or changed."""
    try:
        return parse_calibration(read_small(path).decode("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; `rpi-daemon calibrate` writes it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a calibration file; name one that `calibrate` wrote") from None


def own_word(description: BoardDescription) -> Correction:
    """The board's own scale and skews."""
    channels = description.channels
    return Correction(
        gain=tuple(channel.scale for channel in channels),
        offset_counts=(0.0,) * len(channels),
        delay_ns=tuple(-float(channel.skew_ns) for channel in channels),
        calibrated=(False,) * len(channels),
    )


def correction(calibration: Calibration, description: BoardDescription, name: str) -> Correction:
    """The file over the board's own word; channels that it does not have keep that. Raises DeviceError for another board's file."""
    n = len(description.channels)
    if calibration.serial_number != description.serial_number or calibration.n_channels != n:
        raise DeviceError(
            f"{name}: of board {calibration.serial_number} with {calibration.n_channels} channels; this one is"
            f" {description.serial_number} with {n}: calibrate it, or name its own file"
        )
    own = own_word(description)
    gain, offset, delay = list(own.gain), list(own.offset_counts), list(own.delay_ns)
    known = list(own.calibrated)
    for record in calibration.channels:
        i = record.channel - 1
        if not 0 <= i < n or description.channels[i].kind != record.kind:
            raise DeviceError(f"{name}: its channel {record.channel} is a {record.kind}, the board has another there")
        if record.good:
            gain[i], offset[i], delay[i], known[i] = record.gain, record.offset_counts, record.delay_ns, True
    return Correction(tuple(gain), tuple(offset), tuple(delay), tuple(known))
