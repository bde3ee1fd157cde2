"""What a running daemon listens on: Unix sockets of its own folder, and nothing that a network reaches."""

import os
from pathlib import Path

from scenario_rack import Daemon, Place, RackProcess, running

LISTENS = "0A"  # of TCP, proc_net_tcp
SINK = """
[[trap_sink]]
id = "facility"
host = "127.0.0.1"
port = 9
version = "2c"
community_file = "community"
allow_insecure = true

[[telemetry]]
load = "a-1"
driver = "feed"
"""


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(entry)
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def net(pid: int, name: str) -> list[list[str]]:
    """The rows of a table of /proc/PID/net that are the process's own."""
    ours, column = sockets_of(pid), 6 if name == "unix" else 9
    rows = [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
    return [row for row in rows if row[column] in ours]


def test_nothing_listens_on_a_network(place: Place, rack: RackProcess) -> None:
    with running(lambda: Daemon(place.write(mode="advisory", forecast=SINK))) as daemon:
        daemon.normal()
        pid = daemon.process.pid
        assert not [row for name in ("tcp", "tcp6") for row in net(pid, name) if row[3] == LISTENS]
        # a UDP socket with a peer takes datagrams of that peer alone
        udp = [row for name in ("udp", "udp6") for row in net(pid, name)]
        assert len(udp) >= 3, "two PDUs and a receiver of traps"
        assert not [row for row in udp if row[2].endswith(":0000")]
        named = {Path(row[7]).name for row in net(pid, "unix") if len(row) > 7 and not row[7].startswith("@")}
        assert named == {"control.sock", "telemetry.sock"}
        assert daemon.stop() == 0
