"""A PDU: identity, read and write latency, read-back, steps, refusals, reboot, everything put back. Simulated, or --config.

On a real PDU it asks before it writes, names the outlets and how often it will write to each, keeps what it found in a
file before the first write, and puts exactly that back at the end, whatever happened. Limits written are those found,
moved by a few steps; a limit that cuts off or holds current never goes below the draw and a quarter more.
A device on which everything passed is written down in the state folder: its profile may then write there.
"""

import argparse
import asyncio
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from page import Line, Measured, Plot, arguments, named, publish

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.load import load_config
from rpi_daemon.config.schema import Config, Pdu, expand_numbers
from rpi_daemon.devices import address_of, pdu_driver, profile_digest
from rpi_daemon.drivers.base import PduDriver
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import DeviceError, RpiError
from rpi_daemon.found import FoundLimits
from rpi_daemon.proof import Proofs
from rpi_daemon.records import ApplyResult, LimitKind, LimitState, LimitWrite, PduIdentity, PduReading

READS, QUICK_READS = 200, 30
ROUNDS, QUICK_ROUNDS = 20, 4
SIM_OUTLETS, SIM_DRAW_W = 24, 120.0
ABSURD_W = 1e8
HIGHER = 1.25  # of the larger of found limit and draw: what is written in turn with the found limit
REBOOT_WAIT_S, SIM_REBOOT_WAIT_S = 300.0, 30.0
FOUND_FILE = "pdu-hil-found.json"
CONFIG = """
[rack]
id = "bench"

[daemon]
state_dir = "state"
runtime_dir = "run"

[[pdu]]
id = "pdu"
profile = "{profile}"
host = "127.0.0.1"
port = {port}
version = "2c"
community_file = "community"
allow_insecure = true
accept_unproven = true
timeout_s = 1.0

[[outlet]]
pdu = "pdu"
numbers = "1-{outlets}"
load = "load-{{n}}"
rating_w = 2300.0
static_safe_w = 100.0

[[constraint]]
id = "breaker"
kind = "breaker"
rating_w = 1000000.0
outlets = ["pdu/*"]
"""


@dataclass
class Bench:
    """One PDU with its driver, and whom to ask for a reboot."""

    config: Config
    pdu: Pdu
    driver: PduDriver
    reboot: Callable[[], None]
    simulated: bool
    measured: Measured
    allowed: Callable[[LimitWrite], bool] = lambda write: True
    written: dict[int, int] = field(default_factory=dict)

    async def write(self, limits: Sequence[tuple[int, float]]) -> tuple[ApplyResult, float]:
        """One batch to its verified end, and how long that took, ms."""
        for outlet, _ in limits:
            self.written[outlet] = self.written.get(outlet, 0) + 1
        started = time.perf_counter()
        result = await self.driver.apply([LimitWrite(o, w) for o, w in limits], self.allowed)
        return result, 1e3 * (time.perf_counter() - started)


@contextlib.contextmanager
def simulated_pdu(profile: str) -> Iterator[tuple[Path, Callable[[dict[str, object]], None]]]:
    """A simulated PDU of the family; yields a configuration file and a way to give it commands."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpi-hil-")))
        command = [
            *(sys.executable, "-P", "-m", "rpi_daemon.drivers.pdu.sim", "--profile", profile),
            *("--outlets", str(SIM_OUTLETS), "--power-w", str(SIM_DRAW_W), "--community", "bench"),
        ]
        process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(process.terminate)
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said:
            raise SystemExit(f"the simulator of profile {profile!r} did not start")
        (folder / "community").touch(mode=0o600)
        (folder / "community").write_text("bench")
        path = folder / "bench.toml"
        path.write_text(CONFIG.format(profile=profile, port=json.loads(said)["port"], outlets=SIM_OUTLETS))

        def tell(line: dict[str, object]) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            process.stdout.readline()

        yield path, tell


# -- parts


async def identify(b: Bench) -> PduIdentity:
    identity = await b.driver.identify()
    b.measured.target += (
        f"{identity.vendor} {identity.model}, firmware {identity.firmware}, serial {identity.serial or 'not told'}"
    )
    b.measured.add("outlets", identity.n_outlets)
    return identity


async def reads(b: Bench, n: int) -> PduReading:
    """Latency of the whole poll, and what it tells."""
    took_ms, reading = [], None
    failed = 0
    for _ in range(n):
        started = time.perf_counter()
        try:
            reading = await b.driver.read()
        except DeviceError:
            failed += 1
            continue
        took_ms.append(1e3 * (time.perf_counter() - started))
    if reading is None:
        raise DeviceError(f"PDU {b.pdu.id!r}: none of {n} reads was answered")
    b.measured.add("reads answered", 100.0 * (n - failed) / n, "%", least=99.0)
    _latency(b, "read", took_ms)
    metered = sum(value is not None for value in reading.power_w.values())
    b.measured.add("outlets with a power reading", metered)
    b.measured.add("sum of outlet power", sum(value or 0.0 for value in reading.power_w.values()), "W")
    b.measured.add("outlets with a limit", sum(s.limit_w is not None for s in reading.limits.values()))
    return reading


def _latency(b: Bench, what: str, took_ms: Sequence[float]) -> None:
    for q in (50, 99):
        b.measured.add(f"{what} p{q}", float(np.percentile(took_ms, q)) if took_ms else None, "ms")
    b.measured.plots.append(
        Plot(f"Latency: {what}", "ms", "share", (Line(what, [float(value) for value in took_ms]),), "cdf")
    )


def targets(reading: PduReading, outlets: Sequence[int]) -> dict[int, tuple[float, float]]:
    """For each outlet that may be written: the limit found (or a safe one), and a higher one, W."""
    chosen = {}
    for outlet in outlets:
        state = reading.limits.get(outlet)
        if state is None or not state.raw:
            continue
        draw_w = reading.power_w.get(outlet)
        if state.kind in (LimitKind.TRIP_OFF, LimitKind.CURRENT_LIMIT) and draw_w is None:
            continue  # it could be cut off
        low_w = max(state.limit_w or 0.0, HIGHER * (draw_w or 0.0), 10.0 * (state.step_w or 1.0))
        chosen[outlet] = (low_w, HIGHER * low_w)
    return chosen


async def writes(b: Bench, chosen: dict[int, tuple[float, float]], rounds: int) -> None:
    """Two limits in turn on every outlet: verified share, latency, what the device makes of the value."""
    took_ms, verified, asked, trips, off_steps = [], 0, 0, [], []
    for turn in range(rounds):
        result, ms = await b.write([(outlet, pair[(turn + 1) % 2]) for outlet, pair in chosen.items()])
        took_ms.append(ms)
        trips.append(result.round_trips)
        asked += len(result.outcomes)
        verified += sum(outcome.verified for outcome in result.outcomes)
        for outcome in result.outcomes:
            if outcome.read_back_w is not None:
                off_steps.append(outcome.asked_w - outcome.read_back_w)
            if outcome.refused and turn == 0:
                b.measured.notes.append(f"outlet {outcome.outlet}: {outcome.refused}")
    b.measured.add("limits written", asked)
    b.measured.add("verified", 100.0 * verified / asked if asked else None, "%", least=100.0)
    b.measured.add("messages a batch, most", max(trips))
    _latency(b, f"write and read back of {len(chosen)} limits", took_ms)
    b.measured.add("read-back above what was asked, most", float(max([0.0, *(-w for w in off_steps)])), "W", most=1e-6)
    b.measured.add("read-back below what was asked, most", float(max([0.0, *off_steps])), "W")


async def steps(b: Bench, outlet: int, pair: tuple[float, float]) -> None:
    """The device's own step: values a tenth of the claimed step apart, and how many different ones come back."""
    step_w = (await b.driver.read()).limits[outlet].step_w
    b.measured.add("step of a limit, claimed", step_w, "W")
    if step_w is None:
        return
    base_w = math.ceil(pair[0] / step_w) * step_w
    seen = []
    for k in range(11):
        result, _ = await b.write([(outlet, base_w + 0.1 * k * step_w)])
        if result.outcomes[0].read_back_w is not None:
            seen.append(result.outcomes[0].read_back_w)
    rises = sorted(set(seen))
    found = min((b_ - a for a, b_ in pairwise(rises)), default=None)
    b.measured.add("step of a limit, seen", found, "W", least=0.999 * step_w, most=1.001 * step_w)


async def refusals(b: Bench, outlet: int, pair: tuple[float, float]) -> None:
    """What must not happen: an absurd value taken, a write past the kill switch, another outlet touched."""
    before = (await b.driver.read()).limits
    result, _ = await b.write([(outlet, ABSURD_W)])
    after = (await b.driver.read()).limits
    outcome, stands_w = result.outcomes[0], after[outlet].limit_w
    lied = outcome.verified and (stands_w is None or abs(stands_w - ABSURD_W) > (before[outlet].step_w or 1.0))
    b.measured.add("absurd limit called verified while another stands", int(lied), most=0)
    b.measured.notes.append(
        f"a limit of {ABSURD_W:g} W was "
        + (
            f"refused: {outcome.refused}"
            if outcome.refused
            else f"taken: the device holds {stands_w:g} W"
            if stands_w
            else "not taken"
        )
    )
    touched = sum(_differs(before[o], after[o]) for o in before if o != outlet)
    b.measured.add("other outlets changed by it", touched, most=0)
    b.allowed = lambda write: False
    result, _ = await b.write([(outlet, pair[0] + 10.0 * (before[outlet].step_w or 1.0))])
    b.written[outlet] -= 1
    b.allowed = lambda write: True
    now = (await b.driver.read()).limits
    b.measured.add(
        "writes past the kill switch",
        int(result.outcomes[0].t_sent_ns != 0 or _differs(after[outlet], now[outlet])),
        most=0,
    )


def _differs(a: LimitState, b: LimitState) -> bool:
    return (a.limit_w, a.enabled) != (b.limit_w, b.enabled)


async def reboot(b: Bench, chosen: dict[int, tuple[float, float]]) -> None:
    """From the reboot to the first answer, and what became of the limits."""
    await b.write([(outlet, pair[1]) for outlet, pair in chosen.items()])
    before = (await b.driver.read()).limits
    b.reboot()
    deadline = time.monotonic() + (SIM_REBOOT_WAIT_S if b.simulated else REBOOT_WAIT_S)
    silent_since: float | None = None
    told, reading = False, None
    while time.monotonic() < deadline and not told:
        try:
            reading = await b.driver.read()
            told = reading.rebooted
            if not told:
                await asyncio.sleep(0.2)
        except DeviceError:
            silent_since = silent_since or time.monotonic()
            await asyncio.sleep(0.2)
            with contextlib.suppress(DeviceError):
                await b.driver.open()
    b.measured.add("reboot noticed", int(told), least=1)
    if reading is None or not told:
        return
    b.measured.add("silent during the reboot", time.monotonic() - silent_since if silent_since else 0.0, "s")
    kept = sum(not _differs(before[o], reading.limits[o]) for o in chosen)
    b.measured.add("limits kept over the reboot", kept)
    b.measured.notes.append(
        f"{kept} of {len(chosen)} limits survived the reboot"
        + ("" if kept == len(chosen) else ": the daemon writes them again")
    )


async def put_back(b: Bench, found: FoundLimits, outlets: Sequence[int]) -> None:
    """Exactly what was found, verified."""
    back = [w for w in found.writes(b.pdu.id, outlets) if w.outlet in b.written]
    if not back:
        return
    result = await b.driver.apply(back)
    wrong = [outcome.outlet for outcome in result.outcomes if not outcome.verified]
    b.measured.add("found limits put back and verified", len(back) - len(wrong), least=len(back))
    if wrong:
        b.measured.notes.append(f"NOT put back: outlets {wrong}; what was found is in {FOUND_FILE}")


def confirmed(pdu: Pdu, chosen: dict[int, tuple[float, float]], rounds: int) -> bool:
    """The operator's word before the first write to a real device."""
    low = ", ".join(f"{outlet}: {a:.0f} and {b:.0f} W" for outlet, (a, b) in chosen.items())
    print(
        f"About to write limits to {pdu.id} ({address_of(pdu)}), {rounds + 2} times each (11 more on one of them) and put the found ones back."
    )
    print(f"  {low}")
    return input("Type yes to go on: ").strip().lower() == "yes"


async def run(b: Bench, options: argparse.Namespace) -> None:
    """All parts, and everything put back."""
    quick, folder = options.quick, options.output
    await b.driver.open()
    try:
        identity = await identify(b)
        reading = await reads(b, QUICK_READS if quick else READS)
        rounds = QUICK_ROUNDS if quick else ROUNDS
        chosen = targets(reading, options.outlets or sorted(reading.limits))
        if not chosen:
            b.measured.notes.append("no outlet has a limit that could be written and put back: nothing was written")
            return
        if not (b.simulated or options.yes or confirmed(b.pdu, chosen, rounds)):
            b.measured.left_out = "but nothing was written: not confirmed"
            return
        found = FoundLimits({}).with_pdu(b.pdu.id, reading)
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / FOUND_FILE, found.to_json())
        try:
            first = next(iter(chosen))
            await writes(b, chosen, rounds)
            await steps(b, first, chosen[first])
            if not reading.limits[first].kind.enforced:  # nobody's protection is taken away for a test
                await refusals(b, first, chosen[first])
            if b.simulated or options.reboot:
                await reboot(b, chosen)
        finally:
            await put_back(b, found, sorted(chosen))
        if b.measured.passed and not b.simulated:
            state_dir = b.config.path(b.config.daemon.state_dir)
            state_dir.mkdir(parents=True, exist_ok=True)
            Proofs.read(state_dir).add(state_dir, identity, address_of(b.pdu), profile_digest(b.config, b.pdu))
            b.measured.notes.append(
                f"written down in {state_dir}: the daemon may write to this device with this profile"
            )
    finally:
        await b.driver.close()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--config", type=Path, help="configuration that has the real PDU; a simulated one if not given")
    parser.add_argument("--pdu", help="which [[pdu]] of it; needed when there are several")
    parser.add_argument("--outlets", type=_numbers, help="outlets to write to, such as 1-3; all if not given")
    parser.add_argument("--profile", default="raritan_px", help="family of the simulated PDU")
    parser.add_argument("--reboot", action="store_true", help="also ask you to reboot the PDU's controller")
    parser.add_argument("--yes", action="store_true", help="write without asking")
    options = parser.parse_args()
    clock = SystemClock()
    try:
        with contextlib.ExitStack() as stack:
            tell: Callable[[dict[str, object]], None] | None = None
            path = options.config
            if path is None:
                path, tell = stack.enter_context(simulated_pdu(options.profile))
            config = load_config(path)
            pdu = named(config.pdu, options.pdu, "--pdu")
            measured = Measured("pdu_hil", "simulator: " if tell else "", tell is not None)
            reboot_it = (lambda: tell({"reboot": True})) if tell else _ask_reboot
            b = Bench(config, pdu, pdu_driver(config, pdu, clock), reboot_it, tell is not None, measured)
            asyncio.run(run(b, options))
    except RpiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return publish(measured, options)


def _numbers(text: str) -> list[int]:
    return expand_numbers(text)


def _ask_reboot() -> None:
    print(f"Reboot the PDU's controller now (its web page, or its reset key); I wait {REBOOT_WAIT_S:g} s.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
