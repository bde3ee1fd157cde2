"""Unix sockets that are made with their final mode: there is no moment in which others may connect."""

import os
import socket
from pathlib import Path

from rpi_daemon.errors import RpiError


def bound(path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """A socket at `path`, in place of what a crash left there: the caller holds the daemon's lock. Raises RpiError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.setblocking(False)
    old_mask = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise RpiError(f"{path}: cannot listen: {error.strerror}; check daemon.runtime_dir") from None
    finally:
        os.umask(old_mask)
    return listener
