"""A log reader that stalls: control goes on, and so does the end."""

import fcntl
import os

from scenario_rack import Daemon, Place, RackProcess, running

F_SETPIPE_SZ = 1031  # Linux; not named by the module of this Python
PIPE_BYTES = 4096


def test_nobody_reads_the_log(place: Place, rack: RackProcess) -> None:
    fifo = place.folder / "unread.log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(reader, F_SETPIPE_SZ, PIPE_BYTES)
        with running(lambda: Daemon(place.write(), name="unread")) as daemon:
            status = daemon.normal()
            writes, polls = status["summary"]["writes"], status["pdus"][0]["polls"]
            assert writes >= 11  # each said in a line of more than 200 bytes, beside others: the pipe is full by now
            daemon.until(
                lambda s: s["pdus"][0]["polls"] > polls + 10 and s["summary"]["writes"] > writes, "PDU traffic"
            )
            assert daemon.stop() == 0
            unread = os.read(reader, 2 * PIPE_BYTES)
        assert len(unread) > PIPE_BYTES - 1024
        limits = rack.limits_w()
        assert {limits[f"pdu-a/{n}"] for n in range(1, 6)} == {550.0}
    finally:
        os.close(reader)
