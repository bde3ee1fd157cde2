"""The simulated board: its bytes are those of the protocol page, and its account of every scan is exact."""

import itertools
import json
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cobs.cobs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.sensors import board_sim
from rpi_daemon.drivers.sensors.board_sim import PtyPort, SimulatedBoard, crc32c, pack_data
from rpi_daemon.drivers.sensors.plant import Plant, PlantOptions, demo_rack

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "frames.json").read_text())
HOST_CODES = {"high": 2**31 - 1, "low": -(2**31) + 1, "fault": -(2**31)}
MS = 1_000_000


def host_counts(rows: list[list[int]], width: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    """The page's table of codes, the other way round."""
    top = 2 ** (width - 1) - 1
    table = {top: HOST_CODES["high"], -top: HOST_CODES["low"], -top - 1: HOST_CODES["fault"]}
    return np.array([[table.get(v, v) for v in row] for row in rows], dtype=np.int32)


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["fields"]["type"] == "data"], ids=lambda v: v["name"])
def test_golden_data_frames(vector: dict) -> None:
    f = vector["fields"]
    names = ("width", "board_id", "boot_id", "index", "ticks", "status", "overflow")
    wire = pack_data(host_counts(f["rows"], f["width"]), **{name: f[name] for name in names})
    assert wire.hex() == vector["wire"]


def test_golden_body_and_crc_of_every_vector() -> None:
    for vector in VECTORS:
        body = bytes.fromhex(vector["body"])
        assert f"{crc32c(body):08x}" == vector["crc"]
        assert board_sim.wire_frame(body[:28], body[28:]).hex() == vector["wire"]
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(min_size=4, max_size=600) | st.integers(250, 1024).map(lambda n: b"\1" * n))
def test_cobs_decodes_with_the_library(body: bytes) -> None:
    encoded = board_sim.cobs(body)
    assert 0 not in encoded
    assert cobs.cobs.decode(encoded) == body


class Host:
    """Collects what the board sends and takes it apart with the `cobs` package."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.room: int | None = None  # bytes it will still take
        self.listens = True

    def write(self, data: bytes) -> int | None:
        if not self.listens:
            return None
        taken = len(data) if self.room is None else min(len(data), self.room)
        if self.room is not None:
            self.room -= taken
        self.received += data[:taken]
        return taken

    def bodies(self) -> Iterator[bytes]:
        """Header + payload of each intact frame."""
        for chunk in bytes(self.received).split(b"\0")[:-1]:
            try:
                body = cobs.cobs.decode(chunk)
            except cobs.cobs.DecodeError:
                continue
            if len(body) >= 32 and crc32c(body[:-4]) == struct.unpack("<I", body[-4:])[0]:
                yield body[:-4]

    def headers(self, kind: int = 1) -> list[tuple[int, ...]]:
        return [h for h in (struct.unpack("<BBBBIIIIIHH", b[:28]) for b in self.bodies()) if h[1] == kind]

    def indices(self) -> list[int]:
        """Index of every scan received, in order."""
        return [h[5] + k for h in self.headers() for k in range(h[10])]


def make(outlets: int = 6, **options: object) -> SimulatedBoard:
    plant = Plant(demo_rack(outlets, seed=1), PlantOptions(), seed=1)
    board = SimulatedBoard(plant, **options)  # type: ignore[arg-type]
    board.start(0)
    return board


def run(board: SimulatedBoard, host: Host, until_ms: float, step_ms: float = 5.0, from_ms: float = 0.0) -> None:
    for now_ms in np.arange(from_ms + step_ms, until_ms + 0.5 * step_ms, step_ms):
        board.step(int(now_ms * MS), host.write)


def balance(board: SimulatedBoard) -> None:
    c = board.counters
    parts = c.scans_sent + c.scans_overflowed + c.scans_lost + c.scans_damaged + c.scans_unheard
    assert c.scans_sampled == parts + c.scans_forgotten + c.scans_queued


def test_a_frame_whose_beginning_nobody_heard_counts_as_unheard_at_once() -> None:
    board, host = make(line_rate_baud=230_400, scans_per_frame=10), Host()
    board.step(9 * MS, lambda _: None)
    assert board.unheard() == board.counters.scans_unheard == 0
    now_ms = 9.0
    while board.unheard() == 0:  # the first frame is on the line, and nobody listens
        now_ms += 0.5
        board.step(int(now_ms * MS), lambda _: None)
    assert (board.unheard(), board.counters.scans_unheard) == (10, 0)
    run(board, host, now_ms + 20.0, step_ms=1.0, from_ms=now_ms)  # somebody listens to the rest of it
    assert (board.unheard(), board.counters.scans_unheard) == (10, 10)
    balance(board)


def test_every_scan_arrives_in_order() -> None:
    board, host = make(), Host()
    run(board, host, 3000.0)
    indices = host.indices()
    assert indices == list(range(len(indices)))
    assert len(indices) == board.counters.scans_sent >= 2980
    assert board.counters.scans_overflowed == 0
    balance(board)
    ticks = [h[6] for h in host.headers()]
    assert {(b - a) % 2**32 for a, b in itertools.pairwise(ticks)} == {10_000}
    assert len(host.headers(kind=2)) == 3
    assert host.headers(kind=2)[0][5] == 0
    assert host.received[0] == 0  # the extra delimiter after power-on


def test_samples_are_those_of_the_plant() -> None:
    board, host = make(), Host()
    run(board, host, 300.0)
    twin = Plant(demo_rack(6, seed=1), PlantOptions(), seed=1).advance(320)
    bodies = [b for b in host.bodies() if b[1] == 1]
    raw = np.frombuffer(b"".join(b[28:] for b in bodies), dtype=np.uint8).reshape(-1, 9, 3).astype(np.int32)
    counts = raw[..., 0] | raw[..., 1] << 8 | raw[..., 2].astype(np.int8).astype(np.int32) << 16
    np.testing.assert_array_equal(counts, twin[: len(counts)])


def test_description_says_what_the_plant_has() -> None:
    board, host = make(board_id=7, serial_number="SN-7"), Host()
    run(board, host, 50.0)
    (body,) = [b for b in host.bodies() if b[1] == 2]
    assert len(body) == 28 + 48 + 24 * 9
    rate_hz, tick_hz, serial, _, delay_ns, reserved = struct.unpack("<II16s16sII", body[28:76])
    assert (rate_hz, tick_hz, serial.rstrip(b"\0"), delay_ns, reserved) == (1000, 1_000_000, b"SN-7", 0, 0)
    rows = [struct.unpack("<BBHfii8s", body[76 + 24 * i : 100 + 24 * i]) for i in range(9)]
    for row, channel in zip(rows, board.plant.channels, strict=True):
        assert row[0] == {"current": 1, "voltage": 2}[channel.kind]
        assert row[2:3] + row[4:6] == (channel.number, channel.skew_ns, channel.full_scale_counts)
        assert row[3] == pytest.approx(channel.scale, rel=1e-6)
        assert row[6].rstrip(b"\0").decode() == channel.name


def test_the_line_takes_its_time() -> None:
    board, host = make(line_rate_baud=115_200), Host()
    board.step(9 * MS, host.write)  # description and first frame are queued, 9 ms of line time used
    assert len(host.received) == int(9 * 11.52)
    board.step(10 * MS, host.write)
    assert len(host.received) == int(10 * 11.52)


def test_a_slow_line_overflows_and_says_so() -> None:
    board, host = make(line_rate_baud=230_400), Host()  # 9 channels of 24 bit want 28 to 30 kB/s, it carries 23
    run(board, host, 2000.0)
    run(board, host, 2100.0, from_ms=2000.0)
    c = board.counters
    assert c.scans_overflowed > 300
    assert c.bytes_out == pytest.approx(2100 * 23.04, rel=0.01)
    balance(board)
    indices = host.indices()
    missing = indices[-1] + 1 - len(indices)
    last = host.headers()[-1]
    assert last[8] == missing  # the board's own account, frame by frame
    assert sorted(set(indices)) == indices
    gaps = [h for h, before in zip(host.headers()[1:], host.headers(), strict=False) if h[5] != before[5] + 10]
    assert gaps
    assert all(h[7] & 1 for h in gaps)  # DROPPED on the first frame after each gap
    assert sum(h[7] & 1 for h in host.headers()) == len(gaps)


@given(st.integers(0, 12))
def test_a_stall_overflows_exactly_what_the_fifo_cannot_hold(tens: int) -> None:
    board, host = make(line_rate_baud=0), Host()
    run(board, host, 100.0, step_ms=1.0)
    board.stall(10.0 * tens)
    run(board, host, 400.0, step_ms=1.0, from_ms=100.0)
    # The stall starts and ends with a frame's last scan; the FIFO holds two frames.
    assert board.counters.scans_overflowed == 10 * max(0, tens - 2)
    indices = host.indices()
    assert indices[-1] + 1 - len(indices) == board.counters.scans_overflowed
    balance(board)


def test_a_host_that_does_not_read_makes_it_overflow() -> None:
    board, host = make(), Host()
    run(board, host, 100.0)
    host.room = 0
    run(board, host, 300.0, from_ms=100.0)
    host.room = None
    run(board, host, 600.0, from_ms=300.0)
    indices = host.indices()
    assert 150 <= board.counters.scans_overflowed <= 200
    assert indices[-1] + 1 - len(indices) == board.counters.scans_overflowed
    balance(board)


def test_late_steps_lose_nothing() -> None:
    board, host = make(), Host()
    for now_ms in (3, 90, 91, 700, 1500):
        board.step(now_ms * MS, host.write)
    assert host.indices() == list(range(board.counters.scans_sent))
    assert board.counters.scans_sent >= 1480
    assert board.counters.scans_overflowed == 0


def test_dropped_corrupt_and_garbled_frames_are_missing_and_no_others() -> None:
    board, host = make(), Host()
    run(board, host, 100.0)
    board.drop_frames(3)
    run(board, host, 200.0, from_ms=100.0)
    board.corrupt(4)
    run(board, host, 300.0, from_ms=200.0)
    board.garbage(400)
    run(board, host, 400.0, from_ms=300.0)
    run(board, host, 1400.0, from_ms=400.0)
    c = board.counters
    assert (c.scans_lost, c.scans_damaged, c.scans_overflowed) == (30, 50, 0)
    indices = host.indices()
    assert len(indices) == c.scans_sent
    assert indices[-1] + 1 - len(indices) == 80
    balance(board)


def test_a_repeated_frame_comes_twice() -> None:
    board, host = make(), Host()
    board.repeat(2)
    run(board, host, 200.0)
    assert host.indices()[:40] == [*range(10), *range(10), *range(10, 20), *range(10, 20)]
    assert board.counters.frames_repeated == 2
    balance(board)


def test_reboot_starts_again_with_another_identity() -> None:
    board, host = make(), Host()
    run(board, host, 1003.0, step_ms=1.0)
    before = board.boot_id
    board.reboot(ms=30.0)
    run(board, host, 1503.0, step_ms=1.0, from_ms=1003.0)
    assert board.boot_id != before
    headers = host.headers()
    assert [h[5] for h in headers if h[4] == board.boot_id] == list(
        range(0, 10 * sum(h[4] == board.boot_id for h in headers), 10)
    )
    assert 440 <= sum(10 for h in headers if h[4] == board.boot_id) <= 475
    assert board.counters.reboots == 1
    balance(board)


def test_channel_faults_are_in_band() -> None:
    board, host = make(), Host()
    board.saturate(0, scans=15)
    board.silence(1, scans=25)
    run(board, host, 50.0)
    board.stick(2, scans=20)
    run(board, host, 150.0, from_ms=50.0)
    bodies = [b for b in host.bodies() if b[1] == 1]
    raw = np.frombuffer(b"".join(b[28:] for b in bodies), dtype=np.uint8).reshape(-1, 9, 3)
    assert (raw[:, 0] == (0xFF, 0xFF, 0x7F)).all(axis=1).sum() == 15
    assert (raw[:, 1] == (0x00, 0x00, 0x80)).all(axis=1).sum() == 25
    runs = np.flatnonzero((np.diff(raw[:, 2].astype(int), axis=0) == 0).all(axis=1))
    assert len(runs) == 20
    assert np.all(np.diff(runs) == 1)
    assert [h[7] for h in host.headers()[:4]] == [6, 6, 4, 0]
    with pytest.raises(ValueError, match="allowed: 0 to 8"):
        board.stick(9)


def test_clock_error_shows_in_the_rhythm() -> None:
    fast, slow = make(clock_ppm=1000.0), make(clock_ppm=-1000.0)
    for board in (fast, slow):
        run(board, Host(), 10_000.0, step_ms=500.0)
    assert fast.counters.scans_sampled - slow.counters.scans_sampled == 20


def test_sizes_follow_the_page() -> None:
    assert board_sim.scans_per_frame_for(96, 32) == 10
    assert board_sim.scans_per_frame_for(128, 32) == 5
    table = {8: (230400, 460800, 460800), 48: (1500000, 2000000, 3000000), 96: (3000000, 4000000, 6000000)}
    for channels, rates in table.items():
        assert tuple(board_sim.line_rate_for(channels, w) for w in (16, 24, 32)) == rates
    with pytest.raises(ValueError, match="allowed: divisors of 100 up to 10"):
        make(scans_per_frame=20)


def test_the_cable_can_be_pulled_and_put_back(tmp_path: Path) -> None:
    link = tmp_path / "board"
    port = PtyPort(link)
    try:
        assert port.write(b"abc") is None  # nobody listens
        fd = os.open(link, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        assert port.write(b"\x03\x04\r\n\0") == 5
        assert select.select([fd], [], [], 2.0)[0]
        assert os.read(fd, 100) == b"\x03\x04\r\n\0"  # raw: nothing is swallowed or changed
        total = 0
        while taken := port.write(b"x" * 1000):
            total += taken
            assert total < 1_000_000
        assert taken == 0  # full, and it did not block
        port.unplug()
        port.unplug()
        assert not link.is_symlink()
        assert port.write(b"abc") is None
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(2000)[0][1] & select.POLLHUP
        os.close(fd)
        assert port.plug() == str(link) == port.plug()
        fd = os.open(link, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        assert port.write(b"new") == 3
        os.close(fd)
    finally:
        port.unplug()


def test_control_line() -> None:
    board, host = make(), Host()
    port = PtyPort()
    try:
        say = lambda **command: board_sim.obey(json.dumps(command), board, port)  # noqa: E731
        assert say(fault="drop_frames", frames=2) == {"fault": "drop_frames", "port": port.path}
        assert say(outlet=1, on=False) == {"outlet": 1, "on": False}
        run(board, host, 500.0)
        assert say(show="counters")["counters"]["scans_lost"] == 20
        power_w = say(show="power")["power_w"]
        assert power_w[0] == 0.0
        assert power_w[1] > 50.0
        assert {"outlet", "in_s", "delta_w"} == set(say(show="plan")["plan"][0])
        assert "allowed" in say(fault="explode")["error"]
        assert "allowed" in say(fault="stall", seconds=3)["error"]
        assert "allowed: 1 to 6" in say(outlet=7, on=True)["error"]
        assert "allowed" in say(open="door")["error"]
        assert "error" in board_sim.obey("not json", board, port)
    finally:
        port.unplug()


def test_as_a_process(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rpi_daemon.drivers.sensors.board_sim",
        "--outlets",
        "3",
        "--link",
        str(tmp_path / "b"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hello = json.loads(process.stdout.readline())
        assert hello["port"] == str(tmp_path / "b")
        assert hello["channels"] == 6
        host = Host()
        fd = os.open(hello["port"], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        while len(host.indices()) < 200:
            assert select.select([fd], [], [], 5.0)[0]
            host.received += os.read(fd, 4096)
        process.stdin.close()
        last = json.loads(process.stdout.readlines()[-1])
        os.close(fd)
        assert process.wait(timeout=10) == 0
    indices = host.indices()
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    assert last["counters"]["scans_overflowed"] == 0


def test_process_refuses_a_bad_trace_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,power_w\n0,1\n")
    command = [sys.executable, "-m", "rpi_daemon.drivers.sensors.board_sim", "--trace", str(tmp_path / "t.csv")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert "t.csv" in done.stderr


def test_transformers_wired_wrong_show_where_they_are_plugged() -> None:
    plain, wrong = make(), make(swapped=[(0, 1)], turned=[2], dead=[3])
    good, seen = plain._take(20).astype(np.int64), wrong._take(20).astype(np.int64)
    np.testing.assert_array_equal(seen[:, [1, 0]], good[:, [0, 1]])
    np.testing.assert_array_equal(seen[:, 2], -good[:, 2])
    assert not seen[:, 3].any()
    np.testing.assert_array_equal(seen[:, 4:], good[:, 4:])
    port = PtyPort()
    for line in ('{"fault": "swap", "channel": 0, "other": 1}', '{"fault": "turn", "channel": 2}'):
        assert "error" not in board_sim.obey(line, wrong, port)
    assert "allowed: 0 to" in str(board_sim.obey('{"fault": "turn", "channel": 99}', wrong, port)["error"])
    port.unplug()


def test_added_noise_is_as_large_as_asked() -> None:
    board = make()
    board.disconnect(0)
    board.add_noise(0, 500.0)
    assert np.std(board._take(2000)[:, 0]) == pytest.approx(500.0, rel=0.1)


@pytest.mark.parametrize("supply", ["ac", "dc"])
def test_a_load_bank_draws_what_it_says_and_the_truth_is_told(supply: str) -> None:
    plant = Plant(demo_rack(3, 1), PlantOptions(supply=supply, voltage_v=230.0), seed=1)
    board = SimulatedBoard(plant)
    port = PtyPort()
    assert "error" not in board_sim.obey('{"outlet": 1, "load_bank": {"rms_a": 5.0, "power_factor": 0.6}}', board, port)
    counts = plant.advance(2000) * np.array([channel.scale for channel in plant.channels])
    truth = board_sim.obey('{"show": "truth"}', board, port)["truth"][0]
    phase = 3
    assert truth["rms_a"] == pytest.approx(5.0, rel=0.02)
    assert np.sqrt(np.mean(counts[-200:, 0] ** 2)) == pytest.approx(truth["rms_a"], rel=2e-3)
    assert np.sqrt(np.mean(counts[-200:, phase] ** 2)) == pytest.approx(truth["voltage_v"], rel=2e-3)
    assert np.mean(counts[-200:, 0] * counts[-200:, phase]) == pytest.approx(truth["power_w"], rel=5e-3)
    assert truth["power_w"] / truth["rms_a"] / truth["voltage_v"] == pytest.approx(
        0.6 if supply == "ac" else 1.0, abs=0.02
    )
    assert plant.true_power_w[0] == pytest.approx(truth["power_w"], rel=2e-3)
    for line in ('{"outlet": 1, "load_bank": {"rms_a": -1.0}}', '{"outlet": 1, "load_bank": 5}', '{"outlet": 1}'):
        assert "error" in board_sim.obey(line, board, port)
    assert "error" not in board_sim.obey('{"outlet": 1, "load_bank": null}', board, port)
    plant.advance(100)
    assert plant.truth(0).rms_a < 4.0
    port.unplug()
