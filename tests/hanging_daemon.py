"""The daemon, with loops that hang when they are told to, until the file `go` is beside its configuration.

`python hanging_daemon.py run --config FILE`; each line on standard input names what hangs. With RPI_QUICK=1 a hang is found
sooner, for tests of what is found.
"""

import asyncio
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rpi_daemon import service
from rpi_daemon.config.load import load_config
from rpi_daemon.host import take_precedence
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.retrain.process import Training, TrainingError
from rpi_daemon.service import Service

QUICK_S = 0.7  # in place of what the service allows
HELD_S = 2.0
LOOK_S = 0.05  # for the file

Going = Callable[[], bool]


def block(_: Service, going: Going) -> None:
    while not going():
        time.sleep(LOOK_S)


def spin(_: Service, going: Going) -> None:
    while not going():
        pass


def hold(_: Service, __: Going) -> None:
    """In C, with the interpreter held: no other thread runs either."""
    ctypes.PyDLL(None).usleep(int(HELD_S * 1e6))


def control(daemon: Service, going: Going) -> None:
    """The tick alone waits; PDU tasks and sockets go on."""
    wait = daemon._wait_for_windows

    async def late(*_: object) -> bool:
        daemon._wait_for_windows = wait  # type: ignore[method-assign]
        await until(going)
        return False

    daemon._wait_for_windows = late  # type: ignore[method-assign]


def pdu(daemon: Service, going: Going) -> None:
    """A driver whose answer never comes, and which has no time-out."""
    driver = daemon.limits.drivers["pdu-a"]
    read = driver.read

    async def late() -> object:
        driver.read = read  # type: ignore[method-assign]
        await until(going)
        return await read()

    driver.read = late  # type: ignore[assignment, method-assign]


def history(daemon: Service, going: Going) -> None:
    assert daemon.keeping is not None
    daemon.keeping.writer.put(lambda: block(daemon, going))


def audit(daemon: Service, going: Going) -> None:
    daemon.audit.writer.put(lambda: block(daemon, going))


def train(daemon: Service, _: Going) -> None:
    """A training with less memory than it needs, as a child of this daemon; what became of it is in the file `training`."""
    folder = daemon.state_dir.parent
    order = json.loads((folder / "order").read_text(encoding="utf-8"))

    def run() -> None:
        try:
            Training(order, memory_mb=90.0, minutes=3.0).run()
            said = "it ended well"
        except TrainingError as error:
            said = str(error)
        (folder / "training.new").write_text(said, encoding="utf-8")
        (folder / "training.new").rename(folder / "training")

    threading.Thread(target=run, name="training").start()


async def until(going: Going) -> None:
    while not going():  # noqa: ASYNC110  a file has no event
        await asyncio.sleep(LOOK_S)


HANGS: dict[str, Callable[[Service, Going], None]] = {
    item.__name__: item for item in (block, spin, hold, control, pdu, history, audit, train)
}


async def run(path: Path) -> int:
    config = load_config(path)
    daemon = Service(config)

    def told() -> None:
        for name in os.read(0, 4096).decode().split():
            HANGS[name](daemon, (path.parent / "go").exists)

    asyncio.get_running_loop().add_reader(0, told)
    with logging_to_stderr(config.daemon.log_level, config.daemon.log_format):
        return await daemon.run()


if __name__ == "__main__":
    take_precedence()  # as `rpi-daemon run` does
    if os.environ.get("RPI_QUICK") == "1":
        service.LOOP_S = service.WIRE_S = service.DISK_JOB_S = QUICK_S
    sys.exit(asyncio.run(run(Path(sys.argv[sys.argv.index("--config") + 1]))))
