"""Faults of the process itself: a network gone wrong, no memory, no processor time, a loop that hangs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_examples import TWO_OUTLETS
from fault_figures import Figures
from retrain_rig import MINUTE_NS, T0, keep_loads, ratings_of
from scenario_rack import PATIENCE_S, Daemon, Place, RackProcess, cli, running, unaccounted
from structlog.testing import capture_logs

from rpi_daemon._fastpath import core, memory
from rpi_daemon.assembly import build_pipeline
from rpi_daemon.clock import ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.features import BoardSetup
from rpi_daemon.guard import HealthFlags
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.lstm import Params, from_onnx, to_onnx
from rpi_daemon.models.manifest import LoadedModel, load_model, open_session
from rpi_daemon.pipeline import Snapshot, TickInputs
from rpi_daemon.records import Mode, SafeState
from rpi_daemon.sensing import wiring

RACK = "[guard]\nrecover_s = 1.0\n" + TWO_OUTLETS
MS = 1_000_000
RATING_W = 2000.0


class Tick:
    """The whole pipeline over a ring that is fed by hand, with the shipped network: two outlets, 230 W each."""

    def __init__(self) -> None:
        config = parse_config(RACK, "t", base_dir=Path(), env={"KEY": "a long pass phrase"})
        self.ring = core.Ring(np.zeros(core.Ring.bytes_needed(3, 1000), np.uint8), n_channels=3, capacity=1000)
        wired = wiring(config.board[0], config.outlets())
        kernel = core.WindowKernel(3, outlets=wired.channels, gain=np.full(3, 0.01))
        board = BoardSetup(self.ring, kernel, np.array(wired.outlets))
        self.pipeline = build_pipeline(config, rack_model(config), [board], ManualClock())

    def run(self, ticks: int, acknowledged: tuple[str, ...] = ()) -> Snapshot:
        for _ in range(ticks):
            head = self.ring.head
            for k in range(head, head + 100):
                self.ring.push(k, k * MS, k, 0, np.array([100 + k % 2, 101 - k % 2, 23_000 + k % 3], np.int32))
            now_ns = (head + 100) * MS
            snapshot = self.pipeline.step(
                TickInputs(now_ns, now_ns, Mode.CLOSED_LOOP, HealthFlags(), acknowledged=acknowledged)
            )
            acknowledged = ()
        return snapshot

    def spoil(self, params: Params) -> None:
        """The network's memory goes wrong while it runs; no check of a file can see that."""
        forecaster = self.pipeline.forecaster
        network = forecaster._network
        network._state.model = spoiled(params)  # type: ignore[union-attr]


def spoiled(params: Params) -> LoadedModel:
    good = load_model(SHIPPED)
    return replace(good, session=open_session(to_onnx(params)))


def _shipped() -> Params:
    return from_onnx((SHIPPED / "model.onnx").read_bytes())


def _bounded(snapshot: Snapshot) -> bool:
    answers = np.concatenate([snapshot.forecast.value_w.ravel(), snapshot.forecast.running_max_w.ravel()])
    return bool(np.isfinite(answers).all() and (answers >= 0.0).all() and (answers <= 1.5 * RATING_W).all())


@pytest.mark.fault(16)
def test_fault_16_a_network_that_answers_no_number_is_not_heard_from_that_tick_on(figure: Figures) -> None:
    tick = Tick()
    before = tick.run(30)
    assert before.weights["lstm"].max() > 0.0
    assert before.safe.state is SafeState.NORMAL
    params = _shipped()
    params["V"][3] = np.nan  # onnxruntime's own LSTM turns one in its gates into a number again
    tick.spoil(params)
    with capture_logs():
        ticks = next((k for k in range(1, 20) if tick.run(1).weights["lstm"].max() == 0.0), 20)
        after = tick.run(1)
    figure(16, "not a number: from there to the other experts' forecast", ticks - 1, 0, "ticks")
    assert _bounded(after)
    assert np.abs(after.forecast.value_w[:, :, 0] - 230.0).max() < 40.0
    assert np.isfinite(after.request.request_w).all()
    assert after.safe.state is SafeState.NORMAL
    assert after.safe.latched == ("model_poisoned",)

    tick.pipeline.forecaster._network._state.model = load_model(SHIPPED)  # type: ignore[union-attr]
    assert tick.run(50).weights["lstm"].max() == 0.0  # nobody has said that it may be heard again
    healed = tick.run(40, ("model_poisoned",))
    assert healed.weights["lstm"].max() > 0.0
    assert healed.safe.latched == ()


@pytest.mark.fault(16)
def test_fault_16_an_absurd_network_is_not_heard_in_that_tick(figure: Figures) -> None:
    tick = Tick()
    tick.run(30)
    params = _shipped()
    params["a"] = params["a"] + np.float32(1e6)
    tick.spoil(params)
    ticks = next((k for k in range(1, 20) if tick.run(1).weights["lstm"].max() == 0.0), 20)
    figure(16, "absurd: from there to the other experts' forecast", ticks - 1, 0, "ticks")
    after = tick.run(1)
    assert _bounded(after)
    assert np.abs(after.forecast.value_w[:, :, 0] - 230.0).max() < 40.0
    assert after.safe.latched == ()


# -- of the whole daemon


class Hanging(Daemon):
    """The daemon with loops that hang when told to."""

    command = (sys.executable, "-P", str(Path(__file__).parents[1] / "hanging_daemon.py"))

    def hang(self, name: str) -> float:
        """When it was told."""
        self.go.unlink(missing_ok=True)
        assert self.process.stdin is not None
        told_s = time.monotonic()
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return told_s

    @property
    def go(self) -> Path:
        """What ends a hang."""
        return self.config.parent / "go"


class Systemd:
    """The far end of NOTIFY_SOCKET: what was said, and when."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.said: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.address))
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._listen, name="systemd")
        self._thread.start()

    def env(self, wait_s: float) -> dict[str, str]:
        return {
            "NOTIFY_SOCKET": str(self.address), "WATCHDOG_USEC": str(round(wait_s * 1e6)), "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip

    def until(self, word: str, after_s: float) -> float:
        """When it was first said after that time."""
        deadline = time.monotonic() + PATIENCE_S
        with self._heard:
            while True:
                found = [at for at, said in self.said if said == word and at > after_s]
                if found:
                    return found[0]
                assert self._heard.wait(deadline - time.monotonic()), f"{word} was not said: {self.said[-5:]}"

    def longest_silence_s(self, after_s: float) -> float:
        at = [after_s, *(at for at, said in self.said if said == "WATCHDOG=1" and at > after_s)]
        return float(np.diff(at).max())

    def _listen(self) -> None:
        while word := self._socket.recv(1000):
            if word == b"end":
                return
            with self._heard:
                self.said.append((time.monotonic(), word.decode()))
                self._heard.notify_all()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(self.address))
        self._thread.join()
        self._socket.close()
        self.address.unlink()


OURS = [f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 7)]
STATIC_SAFE_W = 550.0
WATCHDOG_S = 3.0  # of the unit
BUSY_S = 20.0  # for what other people's work may do to it


@pytest.fixture(scope="module")
def systemd(place: Place) -> Iterator[Systemd]:
    with contextlib.closing(Systemd(place.folder / "notify")) as far_end:
        yield far_end


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess, systemd: Systemd) -> Iterator[Hanging]:
    """One for all of these, up to the test that ends it."""
    with running(lambda: Hanging(place.write(), env=systemd.env(WATCHDOG_S))) as process:
        process.normal()
        yield process


# -- 18: no memory


@pytest.mark.fault(18)
def test_fault_18_a_training_that_takes_too_much_ends_and_control_goes_on(
    place: Place, daemon: Hanging, figure: Figures
) -> None:
    keep_loads(place.folder / "learned", 6, 40)
    order = {
        "history": str(place.folder / "learned"), "rack": "rack", "ratings_w": ratings_of(6), "from_ns": T0 - MINUTE_NS,
        "to_ns": T0 + 10**4 * MINUTE_NS, "seed": 1, "updates": 12, "incumbent": str(SHIPPED),
        "out": str(place.folder / "night"), "name": "night",
    }  # fmt: skip
    (place.folder / "order").write_text(json.dumps(order), encoding="utf-8")
    before = daemon.normal()
    daemon.hang("train")
    ended = place.folder / "training"
    status = daemon.until(lambda s: ended.exists(), "the end of the training")
    ticks = status["summary"]["ticks"]
    status = daemon.until(lambda s: s["summary"]["ticks"] > ticks + 10, "ticks after it")
    assert "memory" in ended.read_text(encoding="utf-8").lower()
    assert not (place.folder / "night" / "manifest.toml").exists()
    scheduling = status["boards"][0]["scheduling"]
    locked_kb = _kb(daemon.process.pid, "VmLck")
    assert ("memory locked" in scheduling) == (locked_kb > 0)
    assert status["watchdog"]["hangs"] == {}
    assert status["summary"]["ticks"] > before["summary"]["ticks"]
    figure(18, "resident memory of the daemon", status["summary"]["rss_mb"], 150.0, "MB")


def _kb(pid: int, name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])


# -- 19: no processor time


@pytest.mark.fault(19)
def test_fault_19_a_daemon_that_gets_no_time_holds_counts_its_losses_and_comes_back(
    rack: RackProcess, daemon: Hanging, systemd: Systemd, figure: Figures
) -> None:
    """It is stopped and let run for a moment, again and again: what a machine does that is full of others' work."""
    daemon.normal()
    lost = unaccounted(daemon, rack)
    before, began_s = len(daemon.log("state")), time.monotonic()
    while not (held := _overruns(daemon, before)) and time.monotonic() < began_s + PATIENCE_S:
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(0.25)
        daemon.process.send_signal(signal.SIGCONT)
        time.sleep(0.03)
    assert held[0]["state"] == "HOLD"
    daemon.normal()
    figure(19, "lost scans that are not counted", abs(unaccounted(daemon, rack) - lost), 0, "scans")
    assert "WATCHDOG=trigger" not in {word for at, word in systemd.said if at > began_s}


def _overruns(daemon: Daemon, before: int) -> list[dict[str, Any]]:
    """States for that cause, later than the first so many."""
    return [line for line in daemon.log("state")[before:] if "tick_overrun" in line["causes"]]


@pytest.mark.fault(19)
def test_fault_19_the_sampler_serves_every_deadline_beside_busy_processes(figure: Figures) -> None:
    cores, scans = len(os.sched_getaffinity(0)), 2000
    held = [memory.anonymous(core.Ring.bytes_needed(48, scans + 1000)) for _ in range(2)]
    ring, feed = (core.Ring(part, n_channels=48, capacity=scans + 1000) for part in held)
    for index in range(scans + 1000):
        feed.push(index, index + 1, index, 0, np.full(48, index, np.int32))
    sampler = core.Sampler(ring, fifo_priority=80, lock_memory=False)
    busy = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        sampler.start_paced(feed, MS)
        deadline = time.monotonic() + PATIENCE_S
        while sampler.forwarded() < scans and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        sampler.stop()
        for process in busy:
            process.kill()
            process.wait()
    counters, served = sampler.counters(), sampler.forwarded()
    assert served >= scans
    figure(
        19,
        "deadlines without a scan and without a count",
        served - counters["received"] - counters["starved"],
        0,
        "scans",
    )
    late = 100.0 * counters["late"] / served
    figure(19, "late > 1 ms, two busy processes a core", late, 0.1, "%", busy=100.0)


# -- 20: a loop hangs


@pytest.mark.fault(20)
def test_fault_20_a_hang_ends_in_safe_limits_and_a_new_daemon(
    place: Place, rack: RackProcess, daemon: Hanging, systemd: Systemd, figure: Figures
) -> None:
    """What systemd does by the unit is done here by hand: abort, ExecStopPost, start."""
    path = daemon.config
    heard = [word for _, word in systemd.said if word != "WATCHDOG=1"]
    heard = heard[len(heard) - heard[::-1].index("READY=1") - 1 :]
    assert heard == ["READY=1", "WATCHDOG_USEC=60000000", "WATCHDOG_USEC=3000000"]  # patience while the model is loaded
    rack.until(lambda s: s["limits_w"]["pdu-b"]["1"] not in (STATIC_SAFE_W, None), "a limit of its own")
    daemon.until(lambda s: s["summary"]["writes"] > 11, "writes of its own")
    before = len(daemon.log("watchdog.withheld"))
    hung_s = daemon.hang("block")
    ordered_s = systemd.until("WATCHDOG=trigger", hung_s)
    daemon.logged("watchdog.withheld", heartbeat="control")
    said = daemon.log("watchdog.withheld")[before]
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.wait() == -signal.SIGABRT
    words = daemon.words()
    assert said["heartbeat"] in ("control", "loop")
    assert said["at"][-1].endswith(" block")
    assert "Fatal Python error: Aborted" in words  # all threads, for the journal
    assert cli(path, "failsafe").returncode == 0
    safe_s = time.monotonic()
    limits = rack.limits_w()
    assert [limits[name] for name in OURS] == pytest.approx([STATIC_SAFE_W] * 11, abs=1.0)
    with running(lambda: Daemon(path, env=systemd.env(WATCHDOG_S), name="next")) as following:
        ready_s = systemd.until("READY=1", safe_s)
        assert following.stop() == 0
    figure(20, "from a hang to the order to end it", ordered_s - hung_s, WATCHDOG_S, "s", busy=BUSY_S)
    figure(20, "from a hang to STATIC_SAFE on the PDUs", safe_s - hung_s, 6.0, "s", busy=BUSY_S)
    figure(20, "from a hang to a new daemon that has verified it", ready_s - hung_s, 6.0, "s", busy=BUSY_S)


@pytest.mark.fault(20)
def test_fault_20_each_loop_that_hangs_stops_the_pings_and_is_named(
    place: Place, rack: RackProcess, figure: Figures
) -> None:
    """A sampler that hangs is in tests/unit/test_heartbeats.py."""
    cases = {
        "block": {"control", "loop"}, "spin": {"control", "loop"}, "control": {"control"}, "pdu": {"pdu pdu-a"},
        "history": {"history"}, "audit": {"audit"},
    }  # fmt: skip
    found = []
    with contextlib.ExitStack() as stack:
        systemd = stack.enter_context(contextlib.closing(Systemd(place.folder / "quick")))
        env = {**systemd.env(0.8), "RPI_QUICK": "1"}
        daemon = stack.enter_context(running(lambda: Hanging(place.write(), env=env, name="quick")))
        daemon.until(lambda s: s["summary"]["ticks"] > 5, "ticks")
        for name, hearts in cases.items():
            before = len(daemon.log("watchdog.withheld"))
            ordered_s = systemd.until("WATCHDOG=trigger", daemon.hang(name))
            deadline = time.monotonic() + PATIENCE_S
            while name not in found and time.monotonic() < deadline:
                named = {line["heartbeat"] for line in daemon.log("watchdog.withheld")[before:]}
                found += [name] if named & hearts else []
                daemon.pause()
            daemon.go.touch()
            systemd.until("WATCHDOG=1", ordered_s)
        held_s = daemon.hang("hold")
        systemd.until("WATCHDOG=1", held_s + 2.0)
        found += ["hold"] if systemd.longest_silence_s(held_s) > 1.5 else []
        daemon.go.touch()
        assert daemon.stop() == 0
    figure(20, "kinds of hangs that stop the pings, and go on", len(found), 7, "of 7", at_least=True)
