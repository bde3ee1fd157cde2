"""Recorded traces: what is read is what was written, and a damaged file is refused with its name and place."""

from pathlib import Path

import numpy as np
import pytest

from rpi_daemon.drivers.sensors.plant import PowerStream, Workload
from rpi_daemon.drivers.sensors.traces import Trace, read_trace, read_traces
from rpi_daemon.errors import TraceError

T_S = np.array([0.0, 1.0, 2.0, 3.0])
POWER_W = np.array([100.0, 150.0, 120.0, 100.0])


def test_npz_with_one_outlet(tmp_path: Path) -> None:
    path = tmp_path / "server.npz"
    np.savez(path, t_s=T_S + 5.0, power_w=POWER_W.astype(np.float32))
    trace = read_trace(path)
    assert trace.name == "server"
    np.testing.assert_array_equal(trace.t_s, T_S)  # times start at 0
    np.testing.assert_array_equal(trace.power_w, POWER_W)
    assert (trace.step_s, trace.rate_hz, trace.bandwidth_hz, trace.duration_s) == (1.0, 1.0, 0.5, 4.0)
    assert "recorded at 1 Hz, nothing above 0.5 Hz" in trace.description


def test_npz_with_several_outlets(tmp_path: Path) -> None:
    path = tmp_path / "rack.npz"
    np.savez_compressed(path, t_s=T_S, power_w=np.column_stack([POWER_W, 2.0 * POWER_W]))
    first, second = read_traces(path)
    assert (first.name, second.name) == ("rack[0]", "rack[1]")
    np.testing.assert_array_equal(second.power_w, 2.0 * POWER_W)


def test_csv_with_one_and_with_several_outlets(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.CSV"
    one.write_text("t_s,power_w\n0,10\n\n0.5,20.5\n1.0,1e1\n")
    trace = read_trace(one)
    assert (trace.name, trace.step_s) == ("one", 0.5)
    np.testing.assert_array_equal(trace.power_w, [10.0, 20.5, 10.0])
    two.write_text("t_s, node1, node2\r\n0,10,1\r\n2,20,2\r\n")
    assert [t.name for t in read_traces(two)] == ["two:node1", "two:node2"]


def test_the_last_sample_of_a_repeated_stamp_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("t_s,power_w\n0,10\n1,20\n1,30\n2,40\n")
    trace = read_trace(path)
    assert trace.t_s.tolist() == [0.0, 1.0, 2.0]
    assert trace.power_w.tolist() == [10.0, 30.0, 40.0]


def test_interpolates_and_repeats() -> None:
    trace = Trace("x", T_S, POWER_W, 1.0)
    np.testing.assert_allclose(
        trace.at(np.array([0.5, 1.0, 3.5, 4.0, 4.5, 40.5])), [125.0, 150.0, 100.0, 100.0, 125.0, 125.0]
    )


def test_a_recording_drives_an_outlet_and_a_larger_machine_is_scaled_down() -> None:
    trace = Trace("x", T_S, 10.0 * POWER_W, 1.0)
    server = Workload("s", "idle", 600.0, 100.0, 200.0, trace=trace)
    power_w = PowerStream(server, np.random.default_rng(0)).take(80)
    assert power_w.max() == pytest.approx(0.95 * 600.0)
    np.testing.assert_allclose(power_w[:40], power_w[40:])
    np.testing.assert_allclose(power_w[[0, 10, 20]], 570.0 / 1500.0 * np.array([1000.0, 1500.0, 1200.0]))
    small = Workload("s", "idle", 2000.0, 100.0, 200.0, trace=trace)
    assert PowerStream(small, np.random.default_rng(0)).take(80).max() == pytest.approx(1500.0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty", "", ":1: header is ''; allowed"),
        ("headless", "0,1\n1,2\n", "allowed: t_s,power_w"),
        ("no_power", "t_s\n0\n", ":1: header"),
        ("short", "t_s,power_w\n0,1\n", "1 samples; allowed: 2 to"),
        ("cut", "t_s,power_w\n0,1\n1,2\n2", ":4: 1 values where the header has 2"),
        ("words", "t_s,power_w\n0,1\n1,high\n", ":3: could not convert"),
        ("backwards", "t_s,power_w\n0,1\n2,1\n1,1\n", "line 4: time goes back"),
        ("still", "t_s,power_w\n0,1\n\n0,1\n", "all samples have the same time"),
        ("gap", "t_s,power_w\n0,1\n1,nan\n", "line 3: power is missing or absurd"),
        ("endless", "t_s,power_w\n0,1\n1,inf\n", "line 3: power is missing or absurd"),
        ("absurd", "t_s,power_w\n0,1\n1,1e9\n", "allowed: -1000 to 1e"),
        ("timeless", "t_s,power_w\n0,1\nnan,1\n", "line 3: time is missing or absurd"),
        ("eternal", "t_s,power_w\n-1e308,1\n1e308,1\n", "line 2: time is missing or absurd"),
        ("instant", "t_s,power_w\n0,1\n1e-15,1\n", "1e-15 s from sample to sample; allowed: 1e-09 s or more"),
        ("quoted", 't_s,power_w\n0,1\n1,"2"1\n', "not a readable CSV file"),
        ("grouped", "t_s,power_w\n0,1_0\n1,2\n", ":2: not numbers: '0,1_0'"),
        ("foreign", "t_s,power_w\n0,1\n1,\u0661\n", ":3: not numbers: '1,\u0661'"),
    ],
)
def test_a_damaged_csv_is_refused_by_name_and_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / f"{name}.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as refused:
        read_traces(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"t_s": T_S}, "key 'power_w' is missing"),
        ({"power_w": POWER_W}, "key 't_s' is missing"),
        ({"t_s": T_S, "power_w": POWER_W[:3]}, "key 'power_w' has shape (3,); allowed: (4,)"),
        ({"t_s": T_S, "power_w": np.zeros((4, 0))}, "no power column"),
        ({"t_s": T_S.reshape(2, 2), "power_w": POWER_W}, "key 't_s' has shape (2, 2)"),
        ({"t_s": np.zeros(0), "power_w": np.zeros(0)}, "0 samples"),
        ({"t_s": T_S, "power_w": np.array(["a"] * 4)}, "allowed: numbers"),
        ({"t_s": T_S, "power_w": np.array([1, None, 2, 3], dtype=object)}, "not a readable .npz"),  # pickled
        ({"t_s": T_S, "power_w": np.array([1.0, 2.0, np.nan, 3.0])}, "element 2 of t_s and power_w: power is missing"),
        ({"t_s": T_S[::-1].copy(), "power_w": POWER_W}, "element 1 of t_s and power_w: time goes back"),
    ],
)
def test_a_damaged_npz_is_refused_by_name_and_key(tmp_path: Path, arrays: dict[str, object], words: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(TraceError) as refused:
        read_traces(path)
    assert str(path) in str(refused.value)
    assert words in str(refused.value)


def test_every_truncation_and_many_bit_flips_are_refused_or_harmless(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, t_s=np.arange(50.0), power_w=100.0 + np.arange(50.0))
    data = whole.read_bytes()
    path = tmp_path / "bad.npz"
    for n in range(0, len(data), 7):
        path.write_bytes(data[:n])
        with pytest.raises(TraceError, match=r"bad\.npz"):
            read_traces(path)
    refused = 0
    for i in range(0, 8 * len(data), 29):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        try:
            (trace,) = read_traces(path)
        except TraceError:
            refused += 1
        else:  # a bit that no reader looks at
            np.testing.assert_array_equal(trace.power_w, 100.0 + np.arange(50.0))
    assert refused > 50


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such trace file"):
        read_traces(tmp_path / "nothing.csv")
    with pytest.raises(TraceError, match="no such trace file"):
        read_traces(tmp_path)
    (tmp_path / "trace.txt").write_text("t_s,power_w\n0,1\n1,1\n")
    with pytest.raises(TraceError, match=r"'\.txt'; allowed: \.csv, \.npz"):
        read_traces(tmp_path / "trace.txt")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, POWER_W)
    with pytest.raises(TraceError, match=r"array\.npz: not a readable \.npz file"):
        read_traces(tmp_path / "array.npz")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(TraceError, match="not a readable CSV"):
        read_traces(tmp_path / "binary.csv")
