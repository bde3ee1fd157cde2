"""Sensors inside the daemon: scans made ahead, channels in the configured order, the right watts through the kernel."""

from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath.core import Ring
from rpi_daemon.calibration import own_word
from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.drivers.sensors.paced import AHEAD_SCANS, PlantSource
from rpi_daemon.drivers.sensors.replay import ReplaySource
from rpi_daemon.drivers.sensors.simulated import SimulatedSource
from rpi_daemon.sensing import board_setup, wiring


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for name in ("auth.key", "priv.key"):
        (tmp_path / name).write_text("a long pass phrase")
        (tmp_path / name).chmod(0o600)
    text = demo_toml().replace(
        '"voltage:L1", "voltage:L2", "voltage:L3",', '"unused", "voltage:L3", "voltage:L1", "voltage:L2",'
    )
    return parse_config(text, "t", base_dir=tmp_path, env={})


def measured(source: PlantSource, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(power_w by the kernel over the last window, the plant's own) for each outlet of the only board."""
    ring = Ring(bytearray(Ring.bytes_needed(28, 4000)), n_channels=28, capacity=4000)
    source.fill(ring, 0)
    assert ring.head == AHEAD_SCANS
    wired, described = wiring(config.board[0], config.outlets()), source.description
    setup = board_setup(ring, described, wired, own_word(described), dc=False)
    assert setup.kernel.compute(ring, AHEAD_SCANS) == 0
    return setup.kernel.out[:, 0], source.plant.true_power_w[:]


def test_simulated_watts_come_through_whatever_the_order_of_channels(config: Config) -> None:
    source = SimulatedSource(config.board[0], config.outlets(), config.rack)
    assert source.description.channels[24].name == "unused"
    assert source.description.channels[25].kind == "voltage"
    got_w, true_w = measured(source, config)
    np.testing.assert_allclose(got_w, true_w, rtol=0.05, atol=3.0)


def test_a_transformer_the_wrong_way_round_is_turned_back_by_its_channel(config: Config) -> None:
    channels = [
        f"{c}:reversed" if c.startswith("current:") and c.endswith("/1") else c for c in config.board[0].channels
    ]
    turned = config.model_copy(update={"board": [config.board[0].model_copy(update={"channels": channels})]})
    source = SimulatedSource(turned.board[0], turned.outlets(), turned.rack)
    right_w, true_w = measured(source, turned)
    np.testing.assert_allclose(right_w, true_w, rtol=0.05, atol=3.0)
    wrong_w, _ = measured(SimulatedSource(turned.board[0], turned.outlets(), turned.rack), config)
    np.testing.assert_allclose(wrong_w[0], -right_w[0])
    np.testing.assert_array_equal(wrong_w[1:], right_w[1:])


def test_a_recording_drives_every_outlet_and_says_how_fast_it_is(config: Config, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,power_w\n" + "".join(f"{t},{200.0}\n" for t in range(600)))
    source = ReplaySource(config.board[0], config.outlets(), config.rack, trace)
    assert source.label == "recorded at 1 Hz, up-sampled"
    got_w, _ = measured(source, config)
    np.testing.assert_allclose(got_w, 200.0, rtol=0.01)


def test_it_stays_a_second_ahead_and_no_more(config: Config) -> None:
    source = SimulatedSource(config.board[0], config.outlets(), config.rack)
    ring = Ring(bytearray(Ring.bytes_needed(28, 4000)), n_channels=28, capacity=4000)
    source.fill(ring, 0)
    source.fill(ring, 120)
    assert 120 + AHEAD_SCANS <= ring.head < 120 + AHEAD_SCANS + 50
