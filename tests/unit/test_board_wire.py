"""The simulated board over a real pseudo-terminal into the compiled sampler: both accounts of the scans agree."""

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath.core import Ring, Sampler, parse_description
from rpi_daemon.drivers.sensors.board_sim import PtyPort, SimulatedBoard, run_board
from rpi_daemon.drivers.sensors.plant import Plant, PlantOptions, demo_rack
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource

OUTLETS = 12
CHANNELS = OUTLETS + 3
DEADLINE_S = 20.0


class Wire:
    """A board on its thread, the serial source and the sampler at the other end."""

    def __init__(self, link: Path) -> None:
        self.board = SimulatedBoard(Plant(demo_rack(OUTLETS, seed=1), PlantOptions(), seed=1), line_rate_baud=0)
        self.port = PtyPort(link)
        self.source = SerialSource(SerialOptions(str(link)))
        self.source.open()
        self.ring = Ring(bytearray(Ring.bytes_needed(CHANNELS, 8192)), n_channels=CHANNELS, capacity=8192)
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.sampler = Sampler(self.ring, board_id=1, event_fd=self.event_fd, notify_every=10)
        self.sampler.start_streamed(self.source.fileno())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run_board, args=(self.board, self.port.write, self._stop))
        self._thread.start()

    def wait(self, done: Callable[[], bool]) -> None:
        """Until `done`, looked at whenever the sampler has news."""
        end_s = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < end_s, (self.board.counters, self.sampler.counters())
            if select.select([self.event_fd], [], [], 0.1)[0]:
                os.eventfd_read(self.event_fd)

    def wait_scans(self, more: int) -> None:
        target = self.ring.head + more
        self.wait(lambda: self.ring.head >= target)

    def stop_board(self) -> None:
        self._stop.set()
        self._thread.join()

    def settle(self) -> dict[str, int]:
        """Stop the board, then the sampler; the sampler's counters."""
        self.stop_board()
        sent = self.board.counters.scans_sent
        self.wait(lambda: self.sampler.counters()["received"] >= sent)
        self.sampler.stop()
        return self.sampler.counters()

    def close(self) -> None:
        self.stop_board()
        self.sampler.stop()
        self.source.close()
        self.port.unplug()
        os.close(self.event_fd)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with contextlib.closing(Wire(tmp_path / "board")) as made:
        yield made


def test_description_and_counts_arrive_unchanged(wire: Wire) -> None:
    wire.wait_scans(500)
    seen = wire.settle()
    assert seen["received"] == wire.board.counters.scans_sent
    assert (seen["lost"], seen["corrupt"]) == (0, 0)
    description = wire.sampler.description()
    assert description is not None
    channels = parse_description(description).channels
    assert [(c.kind, c.number, c.name) for c in channels] == [
        (c.kind, c.number, c.name) for c in wire.board.plant.channels
    ]
    scans, present = wire.ring.read(0, 500)
    assert present.all()
    twin = Plant(demo_rack(OUTLETS, seed=1), PlantOptions(), seed=1).advance(500)
    assert np.abs(scans["counts"].astype(np.int64) - twin).max() <= 1  # rounding: other block size


def test_injected_losses_are_counted_exactly_at_both_ends(wire: Wire) -> None:
    wire.wait_scans(200)
    wire.board.drop_frames(3)
    wire.wait_scans(100)
    wire.board.corrupt(2)
    wire.wait_scans(100)
    wire.board.repeat(2)
    wire.wait_scans(100)
    wire.board.stall(80.0)
    wire.wait_scans(200)
    wire.board.saturate(0, scans=20)
    wire.wait_scans(100)
    seen, board = wire.settle(), wire.board.counters
    assert (board.scans_lost, board.scans_damaged, board.frames_repeated) == (30, 20, 2)
    assert 50 <= board.scans_overflowed <= 70
    assert seen["received"] == board.scans_sent
    assert seen["lost"] == board.scans_lost + board.scans_damaged + board.scans_overflowed
    assert seen["overflow"] == board.scans_overflowed
    assert 2 <= seen["corrupt"] <= 4  # a byte that became 0x00 makes two bad pieces of one frame
    assert seen["saturated"] == 20
    assert seen["reboots"] == 0


def test_a_reboot_is_not_a_loss(wire: Wire) -> None:
    wire.wait_scans(200)
    wire.board.reboot(ms=20.0)
    wire.wait_scans(300)
    seen, board = wire.settle(), wire.board.counters
    assert seen["reboots"] == 1
    assert seen["received"] == board.scans_sent
    assert seen["lost"] == 0


def test_unplugged_and_plugged_in_again(wire: Wire) -> None:
    wire.wait_scans(200)
    wire.port.unplug()
    wire.wait(lambda: not wire.sampler.connected())
    before = wire.ring.head
    wire.source.close()
    wire.port.plug()
    wire.source.open()
    wire.sampler.attach(wire.source.fileno())
    wire.wait(lambda: wire.ring.head > before + 200)
    wire.stop_board()
    head = wire.board.counters.scans_sampled - wire.board.counters.scans_queued
    wire.wait(lambda: wire.ring.head >= head)
    seen = wire.sampler.counters()
    assert seen["disconnects"] == 1
    assert seen["received"] + seen["lost"] == wire.ring.head == head
    assert seen["lost"] >= wire.board.counters.scans_unheard - 10
