"""A sensor board on a serial port (UART bridge, USB CDC or a pty): opens the port, hands over the descriptor."""

import contextlib
import errno
import os
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rpi_daemon.errors import ConfigError, DeviceError, LockedError

if TYPE_CHECKING:
    import serial

BY_ID = Path("/dev/serial/by-id")
MIN_BAUD, MAX_BAUD = 9_600, 20_000_000


@dataclass(frozen=True, slots=True)
class SerialOptions:
    """`port`: a device path, best one below /dev/serial/by-id, which stays the same over a re-plug. `baud`: bit/s."""

    port: str
    baud: int = 3_000_000

    def __post_init__(self) -> None:
        if not self.port.startswith("/"):
            raise ConfigError(f"serial port {self.port!r} is not a path; give one such as {BY_ID}/usb-...")
        if not MIN_BAUD <= self.baud <= MAX_BAUD:
            raise ConfigError(f"line rate {self.baud} bit/s is not within {MIN_BAUD} to {MAX_BAUD}")


class SerialSource:
    """Streamed source: `fileno()` delivers frames of docs/sensor-board-protocol.md.

    The descriptor is non-blocking and raw: no data is EAGAIN, an empty read or EIO is a hang-up. After a hang-up: `close()`,
    then `open()` until it works again, 0.5 s apart at most. One thread; never writes to the board.
    """

    codec: Final = "rpi-frames"

    def __init__(self, options: SerialOptions) -> None:
        self._options = options
        self._port: serial.Serial | None = None

    def open(self) -> None:
        """Open and lock the port; raises LockedError if another process holds it, DeviceError for all else."""
        import serial

        self.close()
        path = self._options.port
        try:
            port = serial.Serial(
                path,
                self._options.baud,
                exclusive=True,
                inter_byte_timeout=0.0,  # VMIN 1, VTIME 0: else "no data" would read as an empty hang-up
            )
        except serial.SerialException as exc:
            raise _error_for(path, exc) from exc
        except (ValueError, termios.error, OSError) as exc:
            raise DeviceError(f"{path} does not take {self._options.baud} bit/s ({exc}); choose another baud") from exc
        try:
            _ignore_breaks(port.fileno())
            with contextlib.suppress(ValueError):  # only some UART bridges have it: 1 ms latency in place of 16
                port.set_low_latency_mode(True)
        except (termios.error, OSError) as exc:
            port.close()
            raise DeviceError(f"{path} went away while it was opened ({exc}); plug the board in again") from exc
        self._port = port

    def fileno(self) -> int:
        """The open descriptor; owned by this source. Raises DeviceError when closed."""
        if self._port is None:
            raise DeviceError(f"{self._options.port} is not open")
        return int(self._port.fileno())

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.close()


def _ignore_breaks(fd: int) -> None:
    """A loose cable sends breaks; by default one would flush what has already arrived."""
    attributes = termios.tcgetattr(fd)
    attributes[0] = (attributes[0] | termios.IGNBRK) & ~termios.BRKINT
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _error_for(path: str, exc: OSError) -> DeviceError | LockedError:
    match exc.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return DeviceError(f"no serial port at {path}: plug the board in, or set `port` to {_ports_present()}")
        case errno.EACCES | errno.EPERM:
            return DeviceError(f"not permitted to open {path}: add the user to the group that owns it (often dialout)")
        case errno.EAGAIN | errno.EBUSY:
            return LockedError(
                f"{path} is held by another process: stop that (`fuser {path}` names it), or use another port"
            )
    return DeviceError(f"{path} is not a working serial port ({exc}); set `port` to {_ports_present()}")


def _ports_present(folder: Path = BY_ID) -> str:
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        found = []
    if not found:
        return f"its path below {folder} (none is there now)"
    return "one of " + ", ".join(f"{folder}/{name}" for name in found)
