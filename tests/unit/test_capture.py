"""Raw scans as COMTRADE, read back by the PyPI package of that name; rings of a daemon that is gone."""

import json
import time
from pathlib import Path

import comtrade as reader
import history_rig
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rpi_daemon._fastpath.core import COUNT_HIGH, Ring
from rpi_daemon._fastpath.memory import shared_file
from rpi_daemon.calibration import Correction
from rpi_daemon.cli import main
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.comtrade import comtrade
from rpi_daemon.raw import read_waveform, write_scale

T0 = 1_795_267_800 * NS_PER_S + 123_456_000  # 2026-11-21 13:30:00.123456 UTC
CONFIG = """
[daemon]
runtime_dir = "run"

[[board]]
id = "b"
port = "/dev/null"
channels = ["current:a/1", "current:a/2", "voltage:L1", "unused"]
"""
CONFIG += history_rig.CONFIG
NAMES = ["current:a/1", "current:a/2", "voltage:L1", "unused"]
SCALE = Correction((1e-6, 1e-6, 1e-4, 1.0), (100.0, 0.0, 0.0, 0.0), (-2000.0, 0.0, 0.0, 0.0), (True,) * 4)
SCANS = 3000


def counts(k: int) -> np.ndarray:
    angle = 2 * np.pi * 50.0 * k / 1000.0
    return np.array([5e6 * np.sin(angle) + 100, COUNT_HIGH, 3.25e6 * np.sin(angle), 7], dtype=np.int32)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """3 s of scans until now, one of 100 lost; whoever wrote them is gone."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run/b.ring"
    memory = shared_file(path, Ring.bytes_needed(4, 2500))
    ring = Ring(memory, n_channels=4, capacity=2500, rate_hz=1000)
    end_ns = time.monotonic_ns()
    for k in range(SCANS):
        if k % 100 != 50:
            ring.push(k, end_ns - (SCANS - k) * 1_000_000, k, 0, counts(k))
    write_scale(path, "b", "SN-1", NAMES, SCALE)
    file = tmp_path / "rack.toml"
    file.write_text(CONFIG)
    return file


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["capture", *words, "-c", str(config)])


def test_the_waveform_is_in_the_files(config: Path, tmp_path: Path) -> None:
    result = run(config, "--last", "--seconds", "2", "-o", str(tmp_path / "x"), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert (document["scans"], document["missing"]) == (2000, 20)
    assert "scans are missing" in result.stderr
    record = reader.load(str(tmp_path / "x.cfg"), str(tmp_path / "x.dat"))
    assert record.rev_year == "1999"
    assert (record.station_name, record.rec_dev_id) == ("rack", "b SN-1")
    assert record.analog_channel_ids == ["current:a/1", "current:a/2", "voltage:L1"]
    assert record.frequency == pytest.approx(50.0)
    place = np.arange(SCANS - 2000, SCANS)
    there = place % 100 != 50
    wanted = 5.0 * np.sin(2 * np.pi * 50.0 * place / 1000.0)
    np.testing.assert_allclose(np.array(record.analog[0])[there], wanted[there], atol=5.0 / 32_767)
    assert np.isnan(np.array(record.analog[0])[~there]).all()
    assert np.isnan(record.analog[1]).all()  # off its scale throughout
    assert record.cfg.analog_channels[0].skew == pytest.approx(-2.0)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_time_that_the_ring_no_longer_holds(config: Path, tmp_path: Path) -> None:
    assert "no scan of that time; the ring holds 2.5 s" in run(config, "--at", "1h", "-o", str(tmp_path / "x")).stderr
    assert run(config, "--at", "1s", "--seconds", "0.5", "-o", str(tmp_path / "x")).exit_code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give --at TIME or --last"),
        (("--at", "1s", "--last"), "give --at TIME or --last"),
        (("--last", "--board", "c"), "no board is called 'c': b"),
        (("--at", "noon"), "'noon' is not a time"),
    ],
)
def test_mistakes_are_one_sentence(config: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = run(config, *words, "-o", str(tmp_path / "x"))
    assert result.exit_code != 0
    assert told in result.stderr


def test_without_a_ring(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run/b.ring").unlink()
    result = run(config, "--last", "-o", str(tmp_path / "x"))
    assert "b.ring: No such file or directory; it is there from the daemon's first start on" in result.stderr
    (tmp_path / "run/b.ring.json").write_text("{")
    assert "start the daemon again" in run(config, "--last", "-o", str(tmp_path / "x")).stderr


def test_a_hole_in_the_ring_ends_nothing(config: Path, tmp_path: Path) -> None:
    wave = read_waveform(tmp_path / "run/b.ring", "b", 10**10, time.monotonic_ns())
    assert len(wave.t_mono_ns) == 2500
    np.testing.assert_allclose(np.diff(wave.t_mono_ns), 1_000_000, atol=2)
    assert np.isnan(wave.values[:, 1]).all()  # beyond its scale


@given(
    arrays(np.float64, (20, 3), elements=st.floats(-1e5, 1e5) | st.just(np.nan)),
    st.integers(0, 10**9),
    st.sampled_from([0.0, 49.9, 60.0]),
)
def test_every_waveform_reads_back(values: np.ndarray, late_ns: int, line_hz: float) -> None:
    t_ns = T0 + late_ns + np.arange(20, dtype=np.int64) * 1_000_000
    channels = [("current:a/1", "A", 0.0), ("current:a/2", "A", -2e-6), ("voltage:L1", "V", 0.0)]
    text, data = comtrade("rack, 7", "b", channels, values, t_ns, int(t_ns[10]), rate_hz=1000, line_hz=line_hz)
    record = reader.Comtrade(ignore_warnings=True)
    record.read(text, data)
    assert record.station_name == "rack  7"
    assert record.total_samples == 20
    assert record.frequency == line_hz
    assert round((record.trigger_timestamp - record.start_timestamp).total_seconds() * 1e6) == 10_000
    np.testing.assert_allclose(record.time, np.arange(20) * 1e-3, atol=1e-6)
    for k in range(3):
        known = ~np.isnan(values[:, k])
        size = np.abs(values[known, k]).max(initial=0.0)
        np.testing.assert_allclose(np.array(record.analog[k])[known], values[known, k], atol=max(size / 32_767, 1e-9))


def test_a_transformer_mounted_the_wrong_way_round_is_turned(config: Path, tmp_path: Path) -> None:
    ring = tmp_path / "run/b.ring"
    before = read_waveform(ring, "b", NS_PER_S, None)
    write_scale(ring, "b", "SN-1", ["current:a/1:reversed", *NAMES[1:]], SCALE)
    turned = read_waveform(ring, "b", NS_PER_S, None)
    assert [channel.name for channel in turned.channels] == NAMES
    np.testing.assert_array_equal(turned.values[:, 0], -before.values[:, 0])
    np.testing.assert_array_equal(turned.values[:, 2], before.values[:, 2])
