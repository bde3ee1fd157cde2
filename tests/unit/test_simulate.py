"""The simulated rack that a configuration describes: the demo's configuration of any size, faults by the control line."""

from pathlib import Path

import pytest

from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import load_config, read_config
from rpi_daemon.drivers.sensors.board_sim import PtyPort
from rpi_daemon.simulate import SimulatedRack, _answer, make_keys


def written(folder: Path, outlets: int) -> Path:
    path = folder / "demo.toml"
    path.write_text(demo_toml(outlets, 20_000), encoding="utf-8")
    make_keys(read_config(path))
    return path


@pytest.mark.parametrize(("outlets", "units"), [(24, 1), (48, 1), (49, 2), (96, 2)])
def test_the_demo_of_any_size_is_a_good_configuration(tmp_path: Path, outlets: int, units: int) -> None:
    config = load_config(written(tmp_path, outlets), env={})
    rows = config.outlets()
    assert len(rows) == outlets
    assert len({row.load for row in rows}) == outlets
    assert [pdu.port for pdu in config.pdu] == [20_000 + k for k in range(units)]
    assert [board.board_id for board in config.board] == list(range(1, units + 1))
    assert {constraint.id for constraint in config.constraint} == {"L1", "L2", "L3", "rack"}


def test_a_fault_named_on_the_control_line_reaches_its_board(tmp_path: Path) -> None:
    rack = SimulatedRack(read_config(written(tmp_path, 49)))
    rack.boards[1].port = port = PtyPort()
    device = rack.boards[1].device
    device.start(0)
    assert _answer(rack, {"board": "board-2", "fault": "drop_frames", "frames": 3})["fault"] == "drop_frames"
    for ms in range(100):
        device.step(ms * 1_000_000, len)
    assert device.counters.scans_lost == 30
    assert rack.boards[0].device.counters.scans_lost == 0
    port.unplug()


def test_what_the_control_line_does_not_know_is_an_answer(tmp_path: Path) -> None:
    rack = SimulatedRack(read_config(written(tmp_path, 24)))
    assert "board-1" in str(_answer(rack, {"board": "board-9", "fault": "drop_frames"})["error"])
    assert "pdu-a" in str(_answer(rack, None)["error"])
