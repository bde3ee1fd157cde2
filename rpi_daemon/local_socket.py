"""Unix sockets that are made with their final mode: there is no moment in which others may connect."""

import os
import socket
from pathlib import Path

from rpi_daemon.errors import RpiError


def bound(path: Path, kind: socket.SocketKind, mode: int, group: int | None = None) -> socket.socket:
    """A socket at `path`, in place of what a crash left there: the caller holds the daemon's lock. Raises RpiError.

    `group`: whom it shall belong to; the process's own group if not given.
    """
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.setblocking(False)
    old_mask = os.umask(0o777 & ~mode)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        if group is not None:
            give_to_group(path, group)
    except OSError as error:
        listener.close()
        # Python has no `strerror` for a path that is too long
        raise RpiError(f"{path}: cannot listen: {error.strerror or error}; check daemon.runtime_dir") from None
    except RpiError:
        listener.close()
        raise
    finally:
        os.umask(old_mask)
    return listener


def give_to_group(path: Path, group: int) -> None:
    """Let a group have a socket or folder of ours. Raises RpiError where the daemon's user is no member of it."""
    try:
        if path.stat().st_gid != group:
            os.chown(path, -1, group)
    except OSError as error:
        raise RpiError(
            f"{path}: cannot be given to group {group} (daemon.read_group): {error.strerror}; the daemon's user must be a member"
        ) from None
