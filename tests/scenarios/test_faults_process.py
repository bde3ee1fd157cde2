"""Faults of the process itself: a network gone wrong, no memory, no processor time, a loop that hangs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fault_figures import Figures
from structlog.testing import capture_logs

from rpi_daemon._fastpath import core
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

RACK = """\
[guard]
recover_s = 1.0
[[board]]
id = "b"
port = "/dev/ttyACM0"
channels = ["current:a/1", "current:a/2", "voltage:L1"]
[[pdu]]
id = "a"
profile = "raritan_px"
host = "192.0.2.1"
user = "u"
auth_key_env = "KEY"
priv_key_env = "KEY"
[[outlet]]
pdu = "a"
numbers = "1-2"
load = "n{n}"
rating_w = 2000.0
static_safe_w = 500.0
closed_loop = true
[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 10.0
rating_w = 2000.0
outlets = ["a/*"]
"""
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
                self.ring.push(k, k * MS, k, 0, np.array([100, 100, 23_000], np.int32))
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
