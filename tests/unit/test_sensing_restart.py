"""A daemon that starts again: the raw history stays, and no window reaches back over the gap. Over pseudo-terminals."""

import asyncio
import os
import pty
import select
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from rack_examples import ONE_RACK, ONE_ROW
from structlog.testing import capture_logs

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.core import (
    SCAN_FIRST,
    BoardDescription,
    ChannelDescription,
    encode_data_frame,
    encode_description,
)
from rpi_daemon.board_source import REOPEN_S, Reopening, SerialBoard
from rpi_daemon.clock import NS_PER_S, ManualClock, SystemClock
from rpi_daemon.config.schema import Board, Sampling
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource
from rpi_daemon.features import Features
from rpi_daemon.records import Quality
from rpi_daemon.sensing import BoardLink

N_SCANS = 10
PATIENCE_S = 20.0
RING_S = 10.0
CURRENT, VOLTAGE = (ChannelDescription(kind, 1, 0.5, 0, 30_000, "") for kind in ("current", "voltage"))
DESCRIPTION = BoardDescription(1000, 1_000_000, "SN1", "1.0", 0, (CURRENT, VOLTAGE))


class Wire:
    """The board's end of a pseudo-terminal: it sends constant counts."""

    def __init__(self, *, boot_id: int, index: int) -> None:
        self.board, self._host = pty.openpty()
        tty.setraw(self._host)
        self.port = os.ttyname(self._host)
        self.boot_id, self.index = boot_id, index

    def send(self, amps_counts: int) -> None:
        counts = np.tile(np.array([amps_counts, 460], np.int32), (N_SCANS, 1))
        ticks = self.index * 1000 % 2**32
        os.write(self.board, encode_data_frame(counts, width=16, boot_id=self.boot_id, index=self.index, ticks=ticks))
        self.index += N_SCANS

    def describe(self) -> None:
        os.write(self.board, encode_description(DESCRIPTION, width=16, boot_id=self.boot_id))

    def close(self) -> None:
        os.close(self.board)
        os.close(self._host)


class Run:
    """One run of the daemon's sensing."""

    def __init__(self, wire: Wire, folder: Path, ring_s: float) -> None:
        self.wire = wire
        board = Board(id="b", port=wire.port, channels=["current:pdu/1", "voltage:L1"])
        sampling = Sampling(fifo_priority=0, lock_memory=False, raw_ring_s=ring_s)
        source = SerialBoard("b", SerialOptions(wire.port), 0, SystemClock())
        self.link = BoardLink(board, source, sampling, [ONE_ROW], folder, Path("/"), -1, dc=False)
        self.found = self.link.ring.head  # what a former run left
        self.link.open()
        wire.describe()
        self.features = Features(ONE_RACK, [asyncio.run(self.link.describe())])

    def feed(self, amps_counts: int, n_scans: int) -> list[tuple[int, bool, float, int]]:
        """(ring's head, valid, A, quality) after each frame, at the time of the newest scan."""
        seen = []
        for _ in range(0, n_scans, N_SCANS):
            before = self.link.sampler.counters()["received"]
            self.wire.send(amps_counts)
            deadline = time.monotonic() + PATIENCE_S
            while self.link.sampler.counters()["received"] < before + N_SCANS:
                assert time.monotonic() < deadline, "the frame did not arrive"
                select.select([], [], [], 0.0002)
            head = self.link.ring.head
            scans, _ = self.link.ring.read(head - 1, 1)
            readings = self.features.step(int(scans["t_mono_ns"][0]), 0)
            seen.append((head, bool(readings.valid[0]), float(readings.rms_a[0]), int(readings.quality[0])))
        return seen


@contextmanager
def running(wire: Wire, folder: Path, ring_s: float = RING_S) -> Iterator[Run]:
    run = Run(wire, folder, ring_s)
    try:
        yield run
    finally:
        run.link.close()


def assert_only_fresh(seen: list[tuple[int, bool, float, int]], first: int, amps: float) -> None:
    """No reading before a window of 200 scans from `first` on is there, and every one shows what was fed since."""
    ready = -(-first // 100) * 100 + 200  # windows end at multiples of 100
    for head, valid, rms_a, quality in seen:
        assert valid == (head >= ready), head
        assert quality == (Quality.OK if valid else Quality.STALE)
        assert rms_a == pytest.approx(amps, rel=1e-12) if valid else np.isnan(rms_a)
    assert seen[-1][1]


@pytest.mark.parametrize(
    ("boot_id", "index", "first"),
    [
        (6, 0, 1100),  # the board started again, too: on at the next whole hundred
        (6, 30, 1130),
        (5, 1040, 1040),  # the board went on, and the daemon was back at once
        (5, 1070, 1070),  # ... a little later
        (5, 4030, 4030),  # ... 3 s later
        (5, 1_000_000, 1_000_000),  # ... after the ring's whole length and more
    ],
)
def test_history_stays_and_windows_begin_afresh(tmp_path: Path, boot_id: int, index: int, first: int) -> None:
    wire = Wire(boot_id=5, index=0)
    with running(wire, tmp_path) as run:
        assert run.found == 0
        assert_only_fresh(run.feed(20, 1040), 0, 10.0)
        before, present = run.link.ring.read(0, 1040)
        assert present.all()
    wire.close()
    wire = Wire(boot_id=boot_id, index=index)
    with running(wire, tmp_path) as run:
        assert run.found == 1040
        readings = run.features.step(int(before["t_mono_ns"][-1]), 0)  # as soon as can be: still nothing of before
        assert (readings.valid[0], readings.quality[0]) == (False, Quality.STALE)
        assert_only_fresh(run.feed(60, 500), first, 30.0)
        ring, counters = run.link.ring, run.link.sampler.counters()
        assert ring.head == first + 500
        assert (counters["received"], counters["lost"], counters["reboots"]) == (500, 0, 0)
        scans, present = ring.read(first, 500)
        assert present.all()
        assert np.flatnonzero(scans["flags"] & SCAN_FIRST).tolist() == [0]
        scans, present = ring.read(0, first) if first < ring.capacity else ring.read(0, 0)
        assert present[:1040].sum() == min(1040, len(present))
        np.testing.assert_array_equal(scans[:1040], before[: len(scans)])
        assert not present[1040:].any()
    wire.close()


def test_a_ring_of_another_length_starts_empty(tmp_path: Path) -> None:
    wire = Wire(boot_id=5, index=0)
    with running(wire, tmp_path) as run:
        run.feed(20, 300)
    with running(wire, tmp_path, ring_s=20.0) as run:
        assert run.found == 0
        assert_only_fresh(run.feed(60, 500), 300, 30.0)
        assert run.link.ring.missing(0, 300) == 300
    wire.close()


def test_no_window_reaches_over_a_reboot_of_the_board(tmp_path: Path) -> None:
    """How long the board was away is not known, so its scans on both sides do not make one window."""
    wire = Wire(boot_id=5, index=0)
    with running(wire, tmp_path) as run:
        run.feed(20, 540)
        wire.boot_id, wire.index = 6, 0
        seen = run.feed(60, 500)
        assert run.link.ring.head == 1100
        assert all(
            abs(rms_a - 10.0) < 1e-9 for head, valid, rms_a, _ in seen if valid and head < 800
        )  # until it is stale
        assert_only_fresh([row for row in seen if row[0] >= 800], 600, 30.0)
        assert run.link.sampler.counters()["reboots"] == 1
    wire.close()


class Unopenable(SerialSource):
    """A port that fails as no port should."""

    def __init__(self) -> None:
        super().__init__(SerialOptions("/dev/null"))
        self.tries = 0

    def open(self) -> None:
        self.tries += 1
        raise OSError(28, "No space left on device")


def test_a_defect_in_opening_again_is_told_once_and_tried_on() -> None:
    async def act() -> None:
        clock, source = ManualClock(NS_PER_S), Unopenable()
        ring = core.Ring(bytearray(core.Ring.bytes_needed(2, 1000)), n_channels=2, capacity=1000)
        sampler, reopening = core.Sampler(ring), Reopening("b", source, clock)
        with capture_logs() as said:
            for _ in range(3):
                clock.advance(REOPEN_S)
                reopening.maintain(sampler)
                assert reopening._task is not None
                await reopening._task
        assert source.tries == 3
        assert [(line["event"], line["error"]) for line in said] == [
            ("board.defect", "OSError(28, 'No space left on device')")
        ]
        reopening.close()

    asyncio.run(act())
