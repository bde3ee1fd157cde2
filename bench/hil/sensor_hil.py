"""A sensor board: rate, loss, lateness, noise floor, step response. Simulated, or a real one: --config, or --port.

The loads should stay steady during the first part. The step is made by the simulator, or by you: the bench says when.
Nothing is ever written to the board.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from page import Line, Measured, Plot, arguments, named, publish

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.core import BoardDescription, Ring, Sampler, WindowKernel
from rpi_daemon._fastpath.memory import anonymous
from rpi_daemon.clock import SystemClock
from rpi_daemon.config.load import read_config
from rpi_daemon.drivers.sensors.serial import SerialOptions, SerialSource
from rpi_daemon.errors import RpiError
from rpi_daemon.sensing import board_source

RATE_HZ = 1000
RING_S = 90
SECONDS, QUICK_SECONDS = 30.0, 5.0
DESCRIPTION_S = 3.0
PERIODS = 100  # scans: 5 periods of 50 Hz, 6 of 60 Hz; what repeats over them is the load, the rest is noise
BLOCK = 1000  # scans of one estimate of the noise; the quietest block counts
STEP_WAIT_S, QUICK_STEP_S = 60.0, 3.0  # for the operator; for the simulator
STEP_SIGMAS = 8.0
SETTLED = 0.9
QUANTILES = np.linspace(0.0, 1.0, 401)
OUTLETS = 24


@dataclass
class Bench:
    """A board that samples into our ring."""

    ring: Ring
    sampler: Sampler
    board: BoardDescription
    simulator: subprocess.Popen[str] | None

    def switch(self, outlet: int, on: bool) -> None:
        """Make the simulated load step."""
        assert self.simulator is not None
        assert self.simulator.stdin is not None
        self.simulator.stdin.write(json.dumps({"outlet": outlet, "on": on}) + "\n")
        self.simulator.stdin.flush()

    def scans(self, seconds: float) -> NDArray[np.void]:
        """The newest scans, whole; those that were lost are left out."""
        n = min(round(seconds * RATE_HZ), self.ring.head)
        scans, there = self.ring.read(self.ring.head - n, n)
        return scans[there]

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0.0:
            time.sleep(min(0.5, left))


@contextlib.contextmanager
def on_port(port: str, baud: int, board_id: int, simulator: subprocess.Popen[str] | None = None) -> Iterator[Bench]:
    """A board of which only the port is known: it says itself what it is."""
    source = SerialSource(SerialOptions(port, baud))
    source.open()
    with contextlib.closing(source):
        board = _described(source, board_id)
        with sampling(len(board.channels), board_id) as (ring, sampler):
            sampler.start_streamed(source.fileno())
            yield Bench(ring, sampler, board, simulator)


@contextlib.contextmanager
def simulated(board_id: int) -> Iterator[Bench]:
    """The simulated board, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="rpi-hil-") as folder:
        port = f"{folder}/board.tty"
        command = [
            *(sys.executable, "-P", "-m", "rpi_daemon.drivers.sensors.board_sim"),
            *("--outlets", str(OUTLETS), "--board-id", str(board_id), "--link", port),
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as simulator:
            try:
                assert simulator.stdout is not None
                baud = json.loads(simulator.stdout.readline())["line_rate_baud"]
                with on_port(port, baud, board_id, simulator) as b:
                    yield b
            finally:
                simulator.terminate()


@contextlib.contextmanager
def configured(path: Path, name: str | None) -> Iterator[Bench]:
    """A board of a configuration: serial or IIO."""
    config = read_config(path)
    real = [board for board in config.board if board.driver in ("serial", "iio")]
    chosen = named(real, name, "--board")
    source = board_source(config, chosen, SystemClock())
    with contextlib.closing(source), sampling(len(chosen.channels), chosen.board_id) as (ring, sampler):
        source.start(sampler)
        board = asyncio.run(source.describe(sampler))
        yield Bench(ring, sampler, board, None)


@contextlib.contextmanager
def sampling(n_channels: int, board_id: int) -> Iterator[tuple[Ring, Sampler]]:
    """A ring in memory and its sampler, as the daemon has them."""
    memory = anonymous(Ring.bytes_needed(n_channels, RING_S * RATE_HZ))
    ring = Ring(memory, n_channels=n_channels, capacity=RING_S * RATE_HZ)
    sampler = Sampler(ring, board_id=board_id, fifo_priority=80)
    try:
        yield ring, sampler
    finally:
        sampler.stop()


def _described(source: SerialSource, board_id: int) -> BoardDescription:
    """What the board says of itself: the channels' number decides the ring, so it is asked first."""
    decoder = core.FrameDecoder()
    deadline = time.monotonic() + DESCRIPTION_S
    with open(source.fileno(), "rb", buffering=0, closefd=False) as wire:
        while time.monotonic() < deadline:
            for frame in decoder.feed(wire.read(65_536) or b""):
                if frame.type == core.FRAME_DESCRIPTION and frame.board_id == board_id:
                    return core.parse_description(frame.payload)
            time.sleep(0.005)
    raise SystemExit(
        f"no description frame of board {board_id} in {DESCRIPTION_S:g} s ({decoder.frames} good frames,"
        f" {decoder.crc_errors} damaged): is it a sensor board, is --board-id right, is --baud its line rate?"
    )


def steady(measured: Measured, b: Bench, seconds: float) -> None:
    """Rate, loss, lateness, noise."""
    b.wait(1.0)  # the clock fit settles
    before = b.sampler.counters()
    b.wait(seconds)
    after = b.sampler.counters()
    scans = b.scans(seconds)
    t_s = (scans["t_mono_ns"] - scans["t_mono_ns"][0]) / 1e9
    rate_hz = float(np.polyfit(t_s, scans["index"].astype(np.float64), 1)[0])
    counted = {name: after[name] - before[name] for name in after}
    measured.add("rate", rate_hz, "scans/s", least=0.999 * b.board.rate_hz, most=1.001 * b.board.rate_hz)
    measured.add("board clock against host", 1e6 * (rate_hz / b.board.rate_hz - 1.0), "ppm")
    measured.add("scans received", counted["received"], least=0.99 * seconds * b.board.rate_hz)
    measured.add("scans lost", counted["lost"], most=0)
    for name in ("late", "corrupt", "overflow"):
        measured.add(f"scans or frames {name}", counted[name])
    for q in (0.5, 0.99, 0.999):
        measured.add(f"lateness p{100 * q:g}", b.sampler.lateness_us(q), "us")
    measured.notes.append(f"sampler: {b.sampler.scheduling()}")
    lateness = [b.sampler.lateness_us(float(q)) for q in QUANTILES]
    measured.plots.append(
        Plot("Lateness", "us after the predicted arrival", "share of frames", (Line("frames", lateness),), "cdf")
    )
    noise(measured, b, scans)


def noise(measured: Measured, b: Bench, scans: NDArray[np.void]) -> None:
    """RMS of what does not repeat after 100 scans, of the quietest second; in counts and in the board's own scale."""
    counts = scans["counts"].astype(np.float64)
    change = (counts[PERIODS:] - counts[:-PERIODS]) / np.sqrt(2.0)
    consecutive = np.diff(scans["index"].astype(np.int64))
    if len(change) < BLOCK or not np.all(consecutive == 1):
        measured.add("noise floor", None, "A")
        measured.notes.append("no noise figure: scans are missing in the steady part, or it was shorter than a second")
        return
    blocks = change[: len(change) // BLOCK * BLOCK].reshape(-1, BLOCK, change.shape[1])
    floor = np.sqrt((blocks**2).mean(axis=1)).min(axis=0)
    for kind, unit in (("current", "A"), ("voltage", "V")):
        mine = [i for i, channel in enumerate(b.board.channels) if channel.kind == kind]
        if not mine:
            continue
        scaled = [floor[i] * abs(b.board.channels[i].scale) for i in mine]
        range_ = [b.board.channels[i].full_scale_counts * abs(b.board.channels[i].scale) for i in mine]
        measured.add(f"noise floor, {kind} channels, median", float(np.median(scaled)), unit)
        measured.add(f"noise floor, {kind} channels, worst", float(np.max(scaled)), unit)
        measured.add(f"worst noise / range, {kind}", 100.0 * float(np.max(np.divide(scaled, range_))), "%", most=1.0)
        measured.plots.append(
            Plot(
                f"Noise floor, {kind} channels",
                "channel",
                f"{unit} RMS",
                (Line(kind, [i + 1.0 for i in mine], scaled),),
                "bars",
            )
        )


def step(measured: Measured, b: Bench, outlet: int, quick: bool) -> None:
    """From the first scan of a load step to the window that shows 90 % of it."""
    current, voltage = _channels(b.board, outlet)
    kernel = WindowKernel(
        len(b.board.channels),
        outlets=[(current, voltage, 1.0)],
        gain=[channel.scale for channel in b.board.channels],
        delay_ns=[-float(channel.skew_ns) for channel in b.board.channels],
        full_scale_counts=[channel.full_scale_counts for channel in b.board.channels],
        rate_hz=RATE_HZ,
        dc=b.board.channels[voltage].name == "DC" if voltage >= 0 else False,
    )
    if b.simulator is not None:
        b.switch(outlet, False)
        b.wait(QUICK_STEP_S)
    else:
        print(
            f"Switch the load on outlet {outlet} ON within the next {STEP_WAIT_S:g} s (it must be off now).", flush=True
        )
    first = b.ring.head
    if b.simulator is not None:
        b.switch(outlet, True)
        b.wait(QUICK_STEP_S)
        found = _step_at(b, current, first)
    else:
        deadline, found = time.monotonic() + STEP_WAIT_S, None
        while found is None and time.monotonic() < deadline:
            b.wait(0.5)
            found = _step_at(b, current, first)
        b.wait(1.5)
    if found is None:
        measured.add("step response to 90 %", None, "ms", most=250.0)
        measured.notes.append(f"no step was seen on channel {current + 1}")
        return
    _respond(measured, b, kernel, current, found)
    if not quick:
        measured.notes.append(
            "step response: a 200-sample window shows 90 % of a step 130 to 230 ms after it, by design"
        )


def _channels(board: BoardDescription, outlet: int) -> tuple[int, int]:
    currents = {c.number: i for i, c in enumerate(board.channels) if c.kind == "current"}
    voltages = [i for i, c in enumerate(board.channels) if c.kind == "voltage"]
    if outlet not in currents:
        raise SystemExit(f"--step-outlet {outlet}: the board has current channels for {sorted(currents)}")
    return currents[outlet], voltages[(outlet - 1) % len(voltages)] if voltages else -1


def _step_at(b: Bench, channel: int, first: int) -> int | None:
    """Index of the first scan in which the current leaves what it was before."""
    head = b.ring.head
    scans, there = b.ring.read(first - RATE_HZ, head - first + RATE_HZ)
    counts = np.where(there, scans["counts"][:, channel].astype(np.float64), 0.0)
    quiet = counts[: RATE_HZ // 2]
    level = max(STEP_SIGMAS * float(np.std(quiet)), float(np.abs(quiet - quiet.mean()).max()) * 1.5, 4.0)
    beyond = np.flatnonzero(np.abs(counts - quiet.mean()) > level)
    beyond = beyond[beyond >= RATE_HZ // 2]
    return int(first - RATE_HZ + beyond[0]) if len(beyond) else None


def _respond(measured: Measured, b: Bench, kernel: WindowKernel, current: int, found: int) -> None:
    ends, values = [], []
    for end in range(found - found % core.WINDOW_HOP - 2 * core.WINDOW_HOP, b.ring.head - 100, core.WINDOW_HOP):
        if kernel.compute(b.ring, end) == core.WINDOW_OK:
            ends.append(end)
            values.append(float(kernel.out[0, core.F_RMS_A]))
    settled = float(np.median(values[-5:]))
    base = values[0]
    over = [e for e, v in zip(ends, values, strict=True) if v - base >= SETTLED * (settled - base)]
    measured.add("step", settled - base, "A RMS")
    measured.add("step response to 90 %", float(over[0] - found) if over else None, "ms", most=250.0)
    shown = range(found - 150, min(found + 600, b.ring.head))
    scans, _ = b.ring.read(shown.start, len(shown))
    raw = scans["counts"][:, current] * b.board.channels[current].scale
    measured.plots.append(
        Plot(
            "Step response",
            "ms after the step",
            "A",
            (
                Line("1 kHz samples", [float(i - found) for i in shown], [float(v) for v in raw]),
                Line(
                    "RMS of the window that ends here",
                    [float(e - found) for e in ends if e <= shown.stop],
                    values[: sum(e <= shown.stop for e in ends)],
                ),
            ),
        )
    )


def opened(options: argparse.Namespace) -> contextlib.AbstractContextManager[Bench]:
    if options.config is not None:
        return configured(options.config, options.board)
    return on_port(options.port, options.baud, options.board_id) if options.port else simulated(options.board_id)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, help="configuration that has the real board, serial or IIO")
    parser.add_argument("--board", help="which [[board]] of it; needed when there are several")
    parser.add_argument("--port", help="or the serial port of a real board; without either the simulated one")
    parser.add_argument("--baud", type=int, default=3_000_000, help="line rate, bit/s; USB CDC ignores it")
    parser.add_argument("--board-id", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, help=f"of the steady part; {SECONDS:g}, with --quick {QUICK_SECONDS:g}"
    )
    parser.add_argument("--step-outlet", type=int, default=1, help="whose load steps; 0 leaves the step out")
    options = parser.parse_args()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    try:
        with opened(options) as b:
            about = f"board {b.board.serial_number}, firmware {b.board.firmware}, {len(b.board.channels)} channels"
            where = "simulator" if b.simulator else str(options.config or options.port)
            measured = Measured("sensor_hil", f"{where}: {about}", b.simulator is not None)
            steady(measured, b, min(seconds, RING_S - 10.0))
            if options.step_outlet:
                step(measured, b, options.step_outlet, options.quick)
    except RpiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return publish(measured, options)


if __name__ == "__main__":
    sys.exit(main())
