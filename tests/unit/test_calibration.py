"""The calibration file: what it changes, whose it is, until when it holds, and that nobody changed it."""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from calibration_rig import NOW, TOML, calibration, record
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon._fastpath import core
from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription
from rpi_daemon.calibration import (
    Calibration,
    correction,
    load_calibration,
    own_word,
    parse_calibration,
)
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.devices import load_checked
from rpi_daemon.errors import ConfigError, DeviceError
from rpi_daemon.features import Features
from rpi_daemon.guard import HealthFlags, at_start, ladder
from rpi_daemon.records import Quality, SafeState
from rpi_daemon.sensing import BoardLink, board_link, board_setup, sensors, wiring

BOARD = BoardDescription(
    1000,
    1_000_000,
    "SN-42",
    "1.0",
    0,
    (
        ChannelDescription("current", 1, 1e-3, 0, 100_000, "I1"),
        ChannelDescription("current", 2, 1e-3, 1000, 100_000, "I2"),
        ChannelDescription("voltage", 1, 1e-2, 2000, 100_000, "L1"),
    ),
)


def test_a_file_comes_back_as_it_was_written() -> None:
    file = calibration()
    assert parse_calibration(file.to_json(), "f") == file


@given(place=st.integers(0, 10_000), letter=st.characters(codec="ascii"))
def test_whatever_is_changed_in_it_is_found(place: int, letter: str) -> None:
    text = calibration().to_json()
    place %= len(text)
    changed = text[:place] + letter + text[place + 1 :]
    try:
        same = json.loads(changed) == json.loads(text)
    except ValueError:
        same = False
    if same:
        assert parse_calibration(changed, "f") == calibration()
    else:
        with pytest.raises(ConfigError, match=r"^f: "):
            parse_calibration(changed, "f")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a calibration file"),
        ("[]", "not a calibration file"),
        ('{"a": 1}', "no schema or sha256"),
        (calibration().to_json().replace("0.00103", "0.00104"), "changed since `calibrate` wrote it"),
    ],
)
def test_what_is_no_calibration_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_calibration(text, "f")


def test_the_file_goes_over_the_boards_own_word() -> None:
    found = correction(calibration(), BOARD, "f")
    assert found.gain == (1.03e-3, 1e-3, 0.98e-2)
    assert found.offset_counts == (12.5, 0.0, 12.5)
    assert found.delay_ns == (110_000.0, -1000.0, -2000.0)
    assert found.calibrated == (True, False, True)
    assert own_word(BOARD).delay_ns == (0.0, -1000.0, -2000.0)


def test_a_refused_channel_is_not_applied() -> None:
    found = correction(calibration(record(1, good=False, verdict="dead")), BOARD, "f")
    assert found == own_word(BOARD)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (calibration(serial_number="SN-43"), "of board SN-43 with 3 channels; this one is SN-42"),
        (calibration(n_channels=4), "with 4 channels; this one is SN-42 with 3"),
        (calibration(record(3)), "channel 3 is a current, the board has another"),
        (calibration(record(4)), "channel 4 is a current"),
    ],
)
def test_another_boards_file_is_refused(file: Calibration, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        correction(file, BOARD, "f")


def test_it_expires_twelve_months_after_its_oldest_good_channel() -> None:
    old, older = NOW - timedelta(days=100), NOW - timedelta(days=200)
    file = calibration(record(1), record(2, date=old), record(3, "voltage", date=older, good=False))
    assert file.expires == old + timedelta(days=365)
    assert calibration(record(1, good=False)).expires == NOW + timedelta(days=365)


def written(folder: Path, file: Calibration) -> Config:
    (folder / "b.json").write_text(file.to_json())
    return parse_config(TOML, "t", base_dir=folder, env={"KEY": "a long pass phrase"})


def link_for(folder: Path, file: Calibration) -> BoardLink:
    config = written(folder, file)
    return board_link(config, config.board[0], folder, ManualClock(), -1)


def test_expiry_is_a_cause_that_is_shown_and_holds_nothing(tmp_path: Path) -> None:
    link = link_for(tmp_path, calibration())
    expires_ns = round((NOW + timedelta(days=365)).timestamp()) * NS_PER_S
    assert not link.calibration_expired(expires_ns)
    assert link.calibration_expired(expires_ns + 1)
    flags = HealthFlags(calibration_expired=frozenset({"b"}))
    assert flags.causes() == ("calibration_expired:b",)
    status = at_start(0)
    for second in range(1, 11):
        status = ladder(status, second * NS_PER_S, flags)
    assert (status.state, status.causes) == (SafeState.NORMAL, ("calibration_expired:b",))


def test_outlets_whose_channels_the_file_lacks_say_so(tmp_path: Path) -> None:
    """Calibrated watts on outlet 1; outlet 2 keeps the board's scale and is marked."""
    config = written(tmp_path, calibration())
    wired = wiring(config.board[0], config.outlets())
    ring = core.Ring(bytearray(core.Ring.bytes_needed(3, 2000)), n_channels=3, capacity=2000)
    for k in range(1000):
        wave = np.sin(2 * np.pi * 50 * k / 1000.0)
        ring.push(k, k * 1_000_000, k, 0, np.array([round(5000 * wave) + 12, round(5000 * wave), 23_000], np.int32))
    from rpi_daemon.config.rack import rack_model

    setup = board_setup(ring, BOARD, wired, correction(calibration(), BOARD, "f"), dc=False)
    readings = Features(rack_model(config), [setup]).step(1_000_000_000, 0)
    np.testing.assert_allclose(readings.rms_a, [1.03e-3 * 5000 / np.sqrt(2), 1e-3 * 5000 / np.sqrt(2)], rtol=1e-3)
    assert [bool(q & Quality.UNCALIBRATED) for q in readings.quality] == [False, True]
    plain = board_setup(ring, BOARD, wired, own_word(BOARD), dc=False)
    readings = Features(rack_model(config), [plain]).step(1_000_000_000, 0)
    assert not (readings.quality & Quality.UNCALIBRATED).any()  # without a file nothing is promised, and status says so


def test_a_board_is_seen_as_the_configuration_wires_it(tmp_path: Path) -> None:
    config = written(tmp_path, calibration())
    first, second, voltage = sensors(config.board[0], config.outlets(), BOARD)
    assert (str(first), first.voltage, first.sign) == ("channel 1 (a/1)", (2,), 1.0)
    assert (second.number, second.delay_ns) == (2, -1000.0)
    assert (voltage.name, voltage.kind, voltage.voltage) == ("L1", "voltage", ())


def test_a_changed_file_is_a_mistake_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "a long pass phrase")
    written(tmp_path, calibration())
    toml = tmp_path / "rack.toml"
    toml.write_text(TOML)
    load_checked(toml)
    (tmp_path / "b.json").write_text(calibration().to_json().replace("12.5", "12.6"))
    with pytest.raises(ConfigError, match=r"rack.toml:4: board\[1\].calibration: .*b.json: changed since"):
        load_checked(toml)
    with pytest.raises(ConfigError, match="changed since"):
        load_calibration(tmp_path / "b.json")
    with pytest.raises(ConfigError, match="No such file or directory; `rpi-daemon calibrate` writes it"):
        load_calibration(tmp_path / "none.json")
