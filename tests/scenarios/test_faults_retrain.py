"""Fault 24: a training that is killed, hangs or takes too long, beside a daemon that controls a rack."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
from fault_figures import Figures
from retrain_rig import MINUTE_NS, T0, keep_loads, ratings_of
from scenario_rack import Daemon, Place, RackProcess, Status, running

from rpi_daemon.config.load import load_config
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.records import TICK_NS
from rpi_daemon.retrain.process import Training, TrainingError
from rpi_daemon.retrain.standing import library_of

FULL = os.environ.get("RPI_FIGURES") == "1"
KILLS = 20 if FULL else 2  # at random
LIMIT_MIN = 0.03
ENOUGH_MIN = 3.0  # a busy machine
IDLE_TICKS = 300 if FULL else 30  # to compare with


@pytest.fixture(scope="module")
def learned(place: Place) -> Path:
    """A history that a training takes seconds for."""
    folder = place.folder / "learned"
    keep_loads(folder, 6, 40)
    return folder


def _order(learned: Path, out: Path) -> Mapping[str, object]:
    return {
        "history": str(learned), "rack": "rack", "ratings_w": ratings_of(6), "from_ns": T0 - MINUTE_NS,
        "to_ns": T0 + 10**4 * MINUTE_NS, "seed": 1, "updates": 10**6, "incumbent": str(SHIPPED), "out": str(out),
        "name": out.name,
    }  # fmt: skip


def _signalled(training: Training, number: int, at: float) -> float:
    """Run it, and send its process a signal once this part of it is done, 0: as soon as it is there; how long it took, s."""
    sent = []

    def heard(_: str, done: float) -> None:
        if done >= at and not sent:
            sent.append(number)
            os.kill(training._process.pid, number)  # type: ignore[union-attr]

    def look() -> None:
        while training._process is None:
            time.sleep(0.005)
        heard("", 0.0)

    early = [threading.Thread(target=look)] if at == 0.0 else []
    began_s = time.monotonic()
    for thread in early:
        thread.start()
    with pytest.raises(TrainingError) as caught:
        training.run(heard)
    for thread in early:
        thread.join()
    assert sent, f"it ended before it was sent signal {number}: {caught.value}"
    return time.monotonic() - began_s


def _after(daemon: Daemon, ticks: int) -> Status:
    """Its status so many ticks from now."""
    before: int = daemon.status()["summary"]["ticks"]
    return daemon.until(lambda s: s["summary"]["ticks"] >= before + ticks, f"{ticks} ticks")


@pytest.mark.fault(24)
def test_fault_24_a_training_that_dies_hangs_or_takes_too_long_costs_control_nothing(
    place: Place, rack: RackProcess, learned: Path, figure: Figures
) -> None:
    config = place.write()
    library = library_of(load_config(config))
    rng = Random(24)
    taken = 0
    with running(lambda: Daemon(config)) as daemon:
        stands = daemon.normal()["forecast"]["model"]
        idle = _after(daemon, IDLE_TICKS)
        for k in range(KILLS):
            out = library.folder / f"killed-{k}"
            training = Training(_order(learned, out), memory_mb=500.0, minutes=ENOUGH_MIN)
            _signalled(training, signal.SIGKILL, rng.uniform(0.0, 0.45))
            taken += library.choose().name != stands
        over_s = []
        for number, name in ((signal.SIGSTOP, "hung"), (0, "long")):
            training = Training(_order(learned, library.folder / name), memory_mb=500.0, minutes=LIMIT_MIN)
            over_s.append(_signalled(training, number, 0.0) - 60.0 * LIMIT_MIN)
            taken += library.choose().name != stands
        after = daemon.normal()
        assert after["forecast"]["model"] == stands
        assert daemon.stop() == 0
    figure(24, f"candidates taken of {KILLS} trainings killed at random, one hung, one too long", taken, 0, "models")
    figure(24, "hung or too long: ended after its limit", max(over_s), 1.0, "s", busy=10.0)
    ticks, due = (
        after["summary"]["ticks"] - idle["summary"]["ticks"],
        (after["t_mono_ns"] - idle["t_mono_ns"]) / TICK_NS,
    )
    figure(24, "ticks beside trainings, of those due", 100.0 * ticks / due, 99.0, "%", at_least=True, busy=30.0)
    figure(
        24,
        "99 % of control ticks: longer beside trainings by",
        after["summary"]["tick_ms_p99"] - idle["summary"]["tick_ms_p99"],
        2.0,
        "ms",
        busy=1000.0,
    )
