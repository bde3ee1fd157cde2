"""Around the fit: what a reference meter may say, the file that is kept, the picture, and what `show` and `verify` print."""

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from calibration_rig import METER, NOW, TOML, calibration, record
from click.testing import CliRunner

from rpi_daemon.calibrate import _averaged, read_plan, save
from rpi_daemon.calibration import load_calibration
from rpi_daemon.calibration_fit import Reference
from rpi_daemon.calibration_plot import plot_residuals
from rpi_daemon.cli import main
from rpi_daemon.errors import ConfigError, DeviceError, RpiError
from rpi_daemon.records import PduReading

PLACE = ("pdu-a", 3)


def reading(t_s: float, amps: float | None, watts: float | None, volts: float | None = None) -> PduReading:
    return PduReading(
        round(t_s * 1e9), t_s, {3: watts}, {3: amps}, {3: True}, {}, voltage_v={} if volts is None else {3: volts}
    )


def test_a_meters_readings_are_averaged_quantity_by_quantity() -> None:
    shown = [reading(0.0, 4.0, 900.0), reading(0.5, 4.2, 940.0)]
    assert _averaged(PLACE, shown) == Reference(amps=pytest.approx(4.1), volts=None, watts=pytest.approx(920.0))
    slow = [reading(0.0, 4.0, 900.0, 229.0), *shown[1:], reading(1.0, 4.1, 920.0)]
    assert _averaged(PLACE, slow).volts is None  # told in one poll only: no mean
    assert _averaged(PLACE, [*slow, reading(1.5, 4.1, 920.0, 231.0)]).volts == pytest.approx(230.0)
    volt_amperes = [replace(item, apparent=frozenset({3})) for item in shown]
    assert _averaged(PLACE, volt_amperes).watts is None
    assert Reference(4.0, None, 920.0, resistive=True).complete().volts == pytest.approx(230.0)
    assert Reference(None, 230.0, 920.0, resistive=True).complete().amps == pytest.approx(4.0)
    assert Reference(4.0, 230.0, None, resistive=True).complete().watts == pytest.approx(920.0)
    assert Reference(4.0, 230.0, None).complete().watts is None


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ([], "0 readings within the step, 2 needed"),
        ([reading(0.0, 4.0, 900.0), reading(0.0, 4.0, 900.0)], "2 needed: average longer"),
        ([reading(0.0, 4.0, 900.0), reading(0.5, None, 900.0)], "1 of 2 readings of current failed"),
        ([reading(0.0, None, None), reading(0.5, None, None)], "tells no current, voltage or power"),
    ],
)
def test_a_meter_that_is_stale_or_silent_is_refused(shown: Sequence[PduReading], words: str) -> None:
    with pytest.raises(DeviceError, match=f"^reference pdu-a/3: .*{words}"):
        _averaged(PLACE, shown)


def test_a_new_file_keeps_the_old_one_and_its_other_channels(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    assert save(calibration(), path) == (calibration(), None)
    later = NOW + timedelta(days=30)
    fresh = calibration(record(2, date=later), record(3, "voltage", gain=2.0, date=later), date=later)
    file, kept = save(fresh, path)
    assert kept == tmp_path / "b.20260301T120000Z.json"
    assert load_calibration(kept) == calibration()
    assert load_calibration(path) == file
    assert [(item.channel, item.date) for item in file.channels] == [(1, NOW), (2, later), (3, later)]
    assert file.channels[2].gain == 2.0
    again, kept = save(calibration(date=later), path)
    assert kept is not None
    again, second = save(calibration(date=later), path)
    assert second == tmp_path / "b.20260331T120000Z.2.json"
    assert {item.channel for item in again.channels} == {1, 2, 3}


def test_nothing_is_carried_over_from_another_board_or_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    save(calibration(serial_number="SN-1"), path)
    file, _ = save(calibration(record(2)), path)
    assert [item.channel for item in file.channels] == [2]
    path.write_text("worn out")
    file, kept = save(calibration(record(2)), path)
    assert kept is not None
    assert kept.read_text() == "worn out"


def test_where_it_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(RpiError, match=r"none/b.json: No such file or directory; choose another place with --out"):
        save(calibration(), tmp_path / "none" / "b.json")


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    """In a child: matplotlib keeps its fonts open."""
    file, picture = tmp_path / "b.json", tmp_path / "b.png"
    save(calibration(record(1), record(2, good=False, verdict="dead", residuals=())), file)
    command = [sys.executable, "-P", "-m", "rpi_daemon", "calibrate", "show", str(file), "--plot"]
    assert subprocess.run([*command, str(picture)], capture_output=True, check=False).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    done = subprocess.run([*command, str(tmp_path / "none" / "b.png")], capture_output=True, text=True, check=False)
    assert (done.returncode, "choose another place with --plot" in done.stderr) == (1, True)


def test_without_matplotlib_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RpiError, match=r"pip install 'rpi-daemon\[plots\]'"):
        plot_residuals(calibration(), tmp_path / "b.png")


def test_show_tells_whose_it_is_and_until_when(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    today = datetime.now(UTC).replace(microsecond=0)
    save(calibration(record(1, date=today), record(2, good=False, verdict="dead", date=today), date=today), path)
    shown = CliRunner().invoke(main, ["calibrate", "show", str(path)])
    assert shown.exit_code == 0
    assert f"1 of 2 channels good, {today:%Y-%m-%d} by M. Keller with {METER}; expires" in shown.output
    assert "dead" in shown.output
    old = today - timedelta(days=400)
    save(calibration(record(1, date=old), date=old), path)
    assert "EXPIRED" in CliRunner().invoke(main, ["calibrate", "show", str(path)]).output
    document = json.loads(CliRunner().invoke(main, ["calibrate", "show", str(path), "--json"]).output)
    assert document["expired"] is True
    assert document["calibration"]["serial_number"] == "SN-42"
    path.write_text(path.read_text().replace("SN-42", "SN-43"))
    assert CliRunner().invoke(main, ["calibrate", "show", str(path)]).exit_code == ConfigError.exit_code


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--board", "c"], 3, "no board is called 'c'; known: b"),
        (["--from", "none.toml"], 3, "none.toml: No such file or directory; name a plan with --from"),
        (["--from", "none.toml", "--reference", "a/1"], 3, "none.toml"),
        (["verify", "--outlets", "a/1", "--amps", "1"], 3, "b.json: No such file or directory"),
        (["verify", "--outlets", "a/1"], 2, "give --amps, --volts or --watts, or --reference"),
        (["verify", "--outlets", "a/1", "--amps", "1", "--reference", "a/1"], 2, "not both"),
        ([], 4, "no serial port at /dev/none"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    config = tmp_path / "rack.toml"
    config.write_text(TOML.replace("/dev/ttyACM0", "/dev/none"))
    where = ["-c", str(config)]
    verb = arguments[:1] if arguments[:1] == ["verify"] else []
    done = CliRunner().invoke(main, ["calibrate", *verb, *where, *arguments[len(verb) :]])
    assert done.exit_code == code, done.output
    assert words in done.output
    assert isinstance(done.exception, SystemExit)
    del done
    gc.collect()  # the ring's file is closed with the traceback that names it


def test_a_plan_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        'operator = "M"\n[instrument]\nname = "meter"\n[[step]]\noutlets = ["a/1"]\nzero = true\n'
        '[[step]]\noutlets = ["a/1"]\namps = 4\nresistive = true\n'
    )
    plan = read_plan(path)
    assert [(step.zero, step.amps, step.seconds, step.wait) for step in plan.step] == [
        (True, None, 5.0, False),
        (False, 4.0, 5.0, False),
    ]
    path.write_text(path.read_text().replace("amps = 4", "amps = inf"))
    with pytest.raises(ConfigError, match=r":9: step\.2\.amps: .*finite number"):
        read_plan(path)
