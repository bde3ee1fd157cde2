"""An IIO device: sysfs trees of old and new kernels, and a FIFO that delivers its records through the real sampler."""

import asyncio
import gc
import math
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from rack_examples import ONE_RACK, ONE_ROW

from rpi_daemon._fastpath.core import COUNT_HIGH, BoardDescription
from rpi_daemon.board_source import IioBoard
from rpi_daemon.clock import SystemClock
from rpi_daemon.config.schema import Board, Sampling
from rpi_daemon.drivers.sensors.iio import Channel, IioOptions, IioSource, ScanType, parse_type, place
from rpi_daemon.errors import DeviceError
from rpi_daemon.features import Features
from rpi_daemon.records import Quality
from rpi_daemon.sensing import BoardLink

PATIENCE_S = 15.0
PERIOD_NS = 1_000_000
MV_PER_COUNT = 0.05
GAINS = (20.0, 400.0)  # A per V behind the transformer and its burden, V per V of the divider
CHANNELS = ("current:pdu/1", "voltage:L1")


@dataclass
class Tree:
    """A device below `root`: its files as a driver shows them, and a FIFO in place of its character device."""

    root: Path
    new_abi: bool = True
    types: dict[str, str] = field(
        default_factory=lambda: {"in_voltage0": "be:s24/32>>8", "in_voltage1": "be:s24/32>>8"}
    )
    timestamp: str | None = "le:s64/64>>0"
    name: str = "ads131e08"

    def __post_init__(self) -> None:
        self.devices, self.dev = self.root / "devices", self.root / "dev"
        self.folder = self.devices / "iio:device0"
        self.buffer = self.folder / ("buffer0" if self.new_abi else "buffer")
        self.elements = self.buffer if self.new_abi else self.folder / "scan_elements"
        for folder in (self.dev, self.folder, self.buffer, self.elements):
            folder.mkdir(parents=True, exist_ok=True)
        for file, text in {"enable": "0", "length": "2", "watermark": "1"}.items():
            self.write(self.buffer / file, text)
        types = {**self.types, **({"in_timestamp": self.timestamp} if self.timestamp else {})}
        for index, (name, text) in enumerate(types.items()):
            self.write(self.elements / f"{name}_en", "1")
            self.write(self.elements / f"{name}_index", str(index))
            self.write(self.elements / f"{name}_type", text)
        self.write(self.folder / "name", self.name)
        self.write(self.folder / "in_voltage_scale", f"{MV_PER_COUNT:.9f}")
        self.write(self.folder / "sampling_frequency", "1000")
        self.write(self.folder / "current_timestamp_clock", "realtime")
        os.mkfifo(self.dev / "iio:device0")

    def write(self, file: Path, text: str) -> None:
        file.write_text(text + "\n")

    def read(self, file: str) -> str:
        return (self.folder / file).read_text().strip()

    def options(self, channels: tuple[str, ...] = CHANNELS, gains: tuple[float, ...] | None = GAINS) -> IioOptions:
        return IioOptions(self.name, channels, gains, self.devices, self.dev)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """An attempt to open that failed leaves its traceback in a cycle, and with it the mapped ring."""
    yield
    gc.collect()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- the layout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("le:s16/16>>0", ScanType(False, True, 16, 2, 0)),
        ("be:u12/16>>4\n", ScanType(True, False, 12, 2, 4)),
        ("be:s24/32X1>>8", ScanType(True, True, 24, 4, 8)),
        ("le:s64/64", ScanType(False, True, 64, 8, 0)),
    ],
)
def test_types_are_read(text: str, expected: ScanType) -> None:
    assert parse_type(text, Path("f")) == expected


@pytest.mark.parametrize(
    "text", ["", "me:s16/16>>0", "le:f32/32>>0", "le:s16/16>>1", "le:s16/24>>0", "le:s16/16X4>>0", "le:s1/8", "le:s16"]
)
def test_an_unknown_type_names_its_file_and_what_is_allowed(text: str) -> None:
    with pytest.raises(DeviceError, match="in_voltage0_type") as error:
        parse_type(text, Path("/sys/in_voltage0_type"))
    assert "allowed" in str(error.value) or "known: [be|le]" in str(error.value)


def test_elements_are_aligned_to_their_size_and_records_to_the_largest() -> None:
    def of(*sizes: int) -> list[Channel]:
        return [Channel(f"in_voltage{i}", i, ScanType(False, True, 8, size, 0)) for i, size in enumerate(sizes)]

    assert place(of(2, 2, 2)) == ((0, 2, 4), 6)
    assert place(of(2, 8)) == ((0, 8), 16)
    assert place(of(1, 4, 2, 8)) == ((0, 4, 8, 16), 24)
    assert place(of(4, 2)) == ((0, 4), 8)
    assert place([]) == ((), 0)


# --- setting the device up


@pytest.mark.parametrize("new_abi", [True, False], ids=["5.11 and later", "scan_elements"])
def test_it_captures_what_is_configured_and_gives_the_buffer_back(tmp_path: Path, new_abi: bool) -> None:
    types = {
        "in_voltage1": "be:s24/32>>8",
        "in_voltage0": "be:s24/32>>8",
        "in_power3": "be:s16/16",
        "in_voltage7": "le:u16/16",
    }
    tree = Tree(tmp_path, new_abi, types)
    source = IioSource(tree.options((*CHANNELS, "unused"), (*GAINS, 1.0)))
    source.open()
    enabled = {file.name.removesuffix("_en"): file.read_text().strip() for file in tree.elements.glob("*_en")}
    assert enabled == {
        "in_voltage1": "1", "in_voltage0": "1", "in_power3": "0", "in_voltage7": "0", "in_timestamp": "1",
    }  # fmt: skip
    buffer = tree.buffer.relative_to(tree.folder)
    assert [tree.read(f"{buffer}/{file}") for file in ("enable", "length", "watermark")] == ["1", "2000", "10"]
    assert tree.read("current_timestamp_clock") == "monotonic"
    assert (source.layout.scan_bytes, source.layout.n_channels, source.stamped) == (16, 3, True)
    described = source.description
    assert (described.serial_number, described.rate_hz) == ("ads131e08", 1000)
    assert [(c.kind, c.name) for c in described.channels] == [
        ("current", "in_voltage1"), ("voltage", "in_voltage0"), ("current", "in_voltage7"),
    ]  # fmt: skip
    assert described.channels[0].scale == pytest.approx(20.0 * MV_PER_COUNT * 1e-3)
    assert described.channels[0].full_scale_counts == 2**23
    assert source.present()
    source.close()
    assert tree.read(f"{buffer}/enable") == "0"
    assert not source.present()
    source.close()
    with pytest.raises(DeviceError, match="not open"):
        source.fileno()


def test_a_channel_has_its_own_scale_and_offset_or_its_kinds(tree: Tree) -> None:
    for name, text in {"in_voltage0": "le:u16/16>>0", "in_voltage1": "le:u12/16>>0"}.items():
        tree.write(tree.elements / f"{name}_type", text)
    tree.write(tree.folder / "in_voltage0_scale", "0.25")
    tree.write(tree.folder / "in_voltage0_offset", "-32768")
    source = IioSource(tree.options(gains=(1.0, 1.0)))
    source.open()
    first, second = source.description.channels
    assert (first.scale, second.scale) == (pytest.approx(0.25e-3), pytest.approx(MV_PER_COUNT * 1e-3))
    assert (first.full_scale_counts, second.full_scale_counts) == (32_768, 4095)
    source.close()


def test_the_rate_is_set_and_looked_at(tree: Tree) -> None:
    tree.write(tree.folder / "sampling_frequency", "250")
    source = IioSource(tree.options())
    source.open()
    assert tree.read("sampling_frequency") == "1000"
    source.close()


def test_the_rate_may_be_the_triggers(tree: Tree) -> None:
    (tree.folder / "sampling_frequency").unlink()
    (tree.folder / "trigger").mkdir()
    tree.write(tree.folder / "trigger/current_trigger", "rate1k")
    trigger = tree.devices / "trigger3"
    trigger.mkdir()
    tree.write(trigger / "name", "rate1k")
    tree.write(trigger / "sampling_frequency", "100")
    source = IioSource(tree.options())
    source.open()
    assert (trigger / "sampling_frequency").read_text() == "1000\n"
    source.close()


def refused(tree: Tree, options: IioOptions | None = None) -> str:
    """Why it does not open; nothing is captured then, and no descriptor stays."""
    source = IioSource(options or tree.options())
    with pytest.raises(DeviceError) as error:
        source.open()
    with pytest.raises(DeviceError, match="not open"):
        source.fileno()
    return str(error.value)


def test_no_such_device_names_those_that_are_there(tree: Tree) -> None:
    assert "ads131e08" in refused(tree, IioOptions("ina226", CHANNELS, GAINS, tree.devices, tree.dev))
    missing = str(tree.devices / "iio:device7")
    assert "no such IIO device" in refused(tree, IioOptions(missing, CHANNELS, GAINS, tree.devices, tree.dev))
    (tree.devices / "iio:device1").mkdir()
    tree.write(tree.devices / "iio:device1/name", "ads131e08")
    assert "iio:device1" in refused(tree)
    by_folder = IioSource(IioOptions(str(tree.folder), CHANNELS, GAINS, tree.devices, tree.dev))
    by_folder.open()
    by_folder.close()


def test_a_driver_without_a_buffer_is_said_so(tree: Tree) -> None:
    for file in tree.buffer.iterdir():
        file.unlink()
    tree.buffer.rmdir()
    assert "its driver has no buffer" in refused(tree)


def test_a_device_that_cannot_do_1_khz_says_what_it_can(tree: Tree) -> None:
    file = tree.folder / "sampling_frequency"
    file.unlink()
    file.symlink_to("/dev/null")  # takes everything and keeps nothing
    tree.write(tree.folder / "sampling_frequency_available", "8000 16000")
    said = refused(tree)
    assert "needs 1000 Hz" in said
    assert "8000 16000" in said


def test_without_a_rate_or_a_trigger_it_says_where_to_write_one(tree: Tree) -> None:
    (tree.folder / "sampling_frequency").unlink()
    assert "trigger/current_trigger" in refused(tree)


def test_channels_must_be_all_that_it_has(tree: Tree) -> None:
    said = refused(tree, tree.options(CHANNELS[:1], GAINS[:1]))
    assert "2 voltages and currents (in_voltage0, in_voltage1), board.channels lists 1" in said


def test_a_current_behind_a_voltage_input_needs_its_gain(tree: Tree) -> None:
    said = refused(tree, tree.options(gains=None))
    assert "in_voltage0 measures voltage" in said
    assert "board.iio_gains must say how many A on the line make 1 V" in said


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("buffer0/in_voltage0_type", "le:s64/64", "do not fit 32 bits"),
        ("buffer0/in_voltage0_type", "le:x16/16", "in_voltage0_type"),
        ("buffer0/in_voltage0_index", "many", "in_voltage0_index"),
        ("buffer0/in_timestamp_type", "le:s32/32", "64 bits"),
        ("in_voltage_scale", "big", "in_voltage_scale"),
        ("in_voltage_scale", "0", "in_voltage_scale"),
        ("in_voltage0_offset", "nan", "in_voltage0_offset"),
    ],
)
def test_what_the_driver_says_wrongly_is_named(tree: Tree, file: str, text: str, word: str) -> None:
    tree.write(tree.folder / file, text)
    assert word in refused(tree)


def test_a_missing_scale_is_named(tree: Tree) -> None:
    (tree.folder / "in_voltage_scale").unlink()
    assert "in_voltage0 has no scale" in refused(tree)


def test_a_file_that_may_not_be_written_is_named(tree: Tree) -> None:
    file = tree.elements / "in_voltage0_en"
    file.unlink()
    file.symlink_to("/proc/sys/kernel/ngroups_max")  # read-only even for root
    assert f"not permitted to write {file}" in refused(tree)


def test_a_missing_character_device_is_named(tree: Tree) -> None:
    (tree.dev / "iio:device0").unlink()
    assert "iio:device0" in refused(tree)


# --- through the sampler


class Capture:
    """The driver's side: 50 Hz, 4 A and 230 V in phase, as records into the FIFO."""

    def __init__(self, tree: Tree, link: BoardLink) -> None:
        self.tree, self.link = tree, link
        self.k = 0
        self.start_ns = time.monotonic_ns()
        self.fd = os.open(tree.dev / "iio:device0", os.O_WRONLY)

    def record(self, k: int, amps: float = 4.0) -> bytes:
        wave = math.sqrt(2.0) * math.sin(2.0 * math.pi * 50.0 * k / 1000.0)
        volts = (amps * wave / GAINS[0], 230.0 * wave / GAINS[1])
        words = b"".join(struct.pack(">i", round(v / (MV_PER_COUNT * 1e-3)) << 8) for v in volts)
        return words + struct.pack("<q", self.start_ns + k * PERIOD_NS) if self.tree.timestamp else words

    def send(self, n: int, *, lost: range = range(0)) -> None:
        """The next n scans, ten at a time and cut anywhere; the sampler has them when this returns."""
        records = [self.record(k) for k in range(self.k, self.k + n) if k not in lost]
        self.k += n
        wanted = self.link.sampler.counters()["received"] + len(records)
        stream = b"".join(records)
        for at in range(0, len(stream), 157):
            os.write(self.fd, stream[at : at + 157])
        self.until(lambda: self.link.sampler.counters()["received"] >= wanted)

    def until(self, true: object) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():  # type: ignore[operator]
            assert time.monotonic() < deadline
            select.select([], [], [], 0.001)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def linked(tree: Tree) -> BoardLink:
    board = Board(id="b", driver="iio", iio_device="ads131e08", channels=list(CHANNELS), iio_gains=list(GAINS))
    source = IioBoard("b", tree.options(), SystemClock())
    sampling = Sampling(fifo_priority=0, lock_memory=False, raw_ring_s=10.0)
    return BoardLink(board, source, sampling, [ONE_ROW], tree.root, tree.root, -1, dc=False)


@contextmanager
def running(tree: Tree) -> Iterator[BoardLink]:
    """A board that samples; its ring's memory goes with it, so no fixture may keep it."""
    link = linked(tree)
    try:
        link.open()
        yield link
    finally:
        link.close()


def test_records_become_windows_with_the_right_watts(tree: Tree) -> None:
    with running(tree) as link:
        features = Features(ONE_RACK, [asyncio.run(link.describe())])
        capture = Capture(tree, link)
        capture.send(400)
        scans, present = link.ring.read(0, 400)
        assert present.all()
        assert (np.diff(scans["t_mono_ns"]) > 0).all()
        readings = features.step(int(scans["t_mono_ns"][-1]), 0)
        assert readings.power_w[0] == pytest.approx(920.0, rel=1e-4)
        assert readings.rms_a[0] == pytest.approx(4.0, rel=1e-4)
        assert readings.voltage_v[0] == pytest.approx(230.0, rel=1e-4)
        assert readings.quality[0] == Quality.OK
        assert link.source.sees_losses
        counters = link.sampler.counters()
        assert (counters["received"], counters["lost"], counters["reboots"], counters["saturated"]) == (400, 0, 0, 0)
        capture.close()


def test_lost_scans_are_counted_and_keep_their_place(tree: Tree) -> None:
    with running(tree) as link:
        capture = Capture(tree, link)
        capture.send(300, lost=range(120, 137))
        capture.send(700, lost=range(500, 900))
        assert link.sampler.counters()["lost"] == 417
        assert link.ring.head == 1000
        _, present = link.ring.read(0, 1000)
        assert np.flatnonzero(~present).tolist() == [*range(120, 137), *range(500, 900)]
        capture.close()


def test_a_value_at_the_end_of_its_range_is_saturated(tree: Tree) -> None:
    with running(tree) as link:
        capture = Capture(tree, link)
        os.write(capture.fd, struct.pack(">iiq", 0x7FFFFF00, 0, 0)[:8] + struct.pack("<q", capture.start_ns))
        capture.until(lambda: link.sampler.counters()["received"] == 1)
        assert link.ring.read(0, 1)[0]["counts"][0].tolist() == [COUNT_HIGH, 0]
        assert link.sampler.counters()["saturated"] == 1
        capture.close()


def test_without_timestamps_losses_are_not_seen_and_it_says_so(tmp_path: Path) -> None:
    tree = Tree(tmp_path, timestamp=None)
    link = linked(tree)
    link.open()
    capture = Capture(tree, link)
    capture.send(300, lost=range(120, 137))
    assert not link.source.sees_losses
    assert link.sampler.counters()["lost"] == 0
    assert link.ring.head == 283
    link.close()
    capture.close()


async def maintained(link: BoardLink, true: Callable[[], bool], *, ticks: bool = True) -> None:
    """Until it is so; `ticks`: as the control loop goes on, which opens again what has gone."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        if ticks:
            link.maintain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("silent", [False, True], ids=["hangs up", "says nothing"])
def test_a_device_that_vanishes_is_opened_again_and_the_gap_is_counted(tree: Tree, silent: bool) -> None:
    link = linked(tree)
    link.open()
    asyncio.run(link.describe())
    capture = Capture(tree, link)
    capture.send(200)

    async def vanish() -> None:
        if silent:
            (tree.buffer / "enable").unlink()
        else:
            capture.close()
        await maintained(link, lambda: not link.sampler.connected(), ticks=silent)
        if silent:
            tree.write(tree.buffer / "enable", "0")
        await maintained(link, link.sampler.connected)

    asyncio.run(vanish())
    assert tree.read("buffer0/enable") == "1"
    again = Capture(tree, link)  # while the other still is: the end of the last one would be a hang-up
    capture.close()
    again.start_ns, again.k = capture.start_ns, 750
    again.send(100)
    counters = link.sampler.counters()
    assert (counters["received"], counters["lost"], counters["disconnects"]) == (300, 550, 1)
    assert link.ring.head == 850
    link.close()
    again.close()


def test_a_device_that_comes_back_as_another_ends_the_run(tree: Tree) -> None:
    link = linked(tree)
    link.open()
    asyncio.run(link.describe())
    capture = Capture(tree, link)
    capture.send(100)
    capture.close()

    async def replace() -> str:
        tree.write(tree.folder / "in_voltage_scale", "0.1")
        try:
            await maintained(link, lambda: False)
        except DeviceError as error:
            return str(error)
        return ""

    assert "another scale is plugged in" in asyncio.run(replace())
    link.close()


def test_the_description_is_what_a_board_would_say(tree: Tree) -> None:
    with running(tree) as link:
        asyncio.run(link.describe())
        assert isinstance(link.description, BoardDescription)
        assert link.description.firmware == "Linux IIO"
