"""Who asks on a Unix socket, and what they may: the kernel tells the user and the groups, the configuration the role."""

import contextlib
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13; the module socket has no name for it
UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
MOST_GROUPS = 256  # as many as one socket option may carry in Python


class Role(IntEnum):
    """What a caller may do; each includes those before it."""

    READ = 0
    OPERATE = 1
    ADMIN = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """One end of a connection, as the kernel saw it when the connection was made."""

    uid: int
    pid: int
    name: str  # of the user; the number where nobody knows a name
    role: Role


@dataclass(frozen=True, slots=True)
class RoleGroups:
    """The groups whose members have a role beyond their right to connect; None: nobody by group."""

    operate: str | None = None
    admin: str | None = None

    def needed(self, role: Role) -> str:
        """Who may, in words, for somebody who may not."""
        names = [name for name in (self.operate if role <= Role.OPERATE else None, self.admin) if name is not None]
        if not names:
            return f"only root and the daemon's user may, for no daemon.{role.name.lower()}_group is configured"
        return f"be a member of group {' or '.join(names)}"


NO_GROUPS = RoleGroups()


def group_id(name: str) -> int | None:
    """The number of a group of this host; None if there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # ValueError: a name with a zero byte
        return None


def caller_of(connection: socket.socket, groups: RoleGroups) -> Caller:
    """Who made this connection. It may take the time of a look-up of names: not for the loop."""
    pid, uid, gid = UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    member_of = {gid}
    with contextlib.suppress(OSError):  # more groups than fit: then only the first one counts
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
        member_of.update(struct.unpack(f"{len(packed) // 4}I", packed))
    return Caller(uid, pid, user_name(uid), _role(uid, member_of, groups))


def _role(uid: int, member_of: set[int], groups: RoleGroups) -> Role:
    if uid in (0, os.geteuid()) or _among(groups.admin, member_of):
        return Role.ADMIN
    return Role.OPERATE if _among(groups.operate, member_of) else Role.READ


def _among(name: str | None, member_of: set[int]) -> bool:
    return name is not None and group_id(name) in member_of


def user_name(uid: int) -> str:
    """The number where nobody knows a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
