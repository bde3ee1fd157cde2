"""On what `failsafe` acts: the state folder's word, wherever it is; the configuration's where there is none."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rpi_daemon import failsafe
from rpi_daemon.audit import FAILSAFE
from rpi_daemon.config.load import read_config
from rpi_daemon.durable import copy_of
from rpi_daemon.errors import ConfigError
from rpi_daemon.failsafe import _alone, in_force
from rpi_daemon.found import FoundLimits
from rpi_daemon.records import Mode
from rpi_daemon.safe_limits import FOUND_FILE
from rpi_daemon.standing import STANDING_FILE, Standing

EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / "demo.toml"  # closed loop, state_dir = "state"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a box without a service: what one on this machine has in its folder is not looked at."""
    monkeypatch.setattr(failsafe, "Daemon", lambda: SimpleNamespace(state_dir=str(tmp_path / "none")))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    path = tmp_path / "etc" / "rack.toml"
    path.parent.mkdir()
    path.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def stood_for(config: Path, folder: Path) -> Standing:
    """A daemon ran with this configuration, and an outlet was given back."""
    standing = replace(Standing(read_config(config), Mode.CLOSED_LOOP), released=frozenset({"pdu-a/1"}))
    folder.mkdir(parents=True, exist_ok=True)
    standing.save(folder)
    return standing


def test_what_was_in_force_counts_and_not_what_the_file_says_now(config: Path) -> None:
    standing = stood_for(config, config.parent / "state")
    assert in_force(config, None).standing == standing
    assert in_force(config, None).notes == ()
    config.write_text(config.read_text().replace('mode = "closed_loop"', 'mode = "advisory"'), encoding="utf-8")
    found = in_force(config, None)
    assert found.standing == standing
    assert "has changed since" in found.notes[0]


@pytest.mark.parametrize("text", [None, "", "[rack", "[rack]\nid = 1\n"])
def test_a_configuration_that_is_gone_or_broken_since(
    config: Path, text: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """systemd says where the state is."""
    standing = stood_for(config, tmp_path / "lib")
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path / 'lib'}:{tmp_path / 'other'}")
    if text is None:
        config.unlink()
    else:
        config.write_text(text, encoding="utf-8")
    found = in_force(config, None)
    assert (found.standing, found.folder) == (standing, tmp_path / "lib")
    assert found.notes[-1] == "acting on the configuration that was last in force"


def test_a_mistyped_folder_of_state_is_no_rack_without_outlets(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="typo: no folder that can be looked into"):
        in_force(config, tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_another_rack_is_not_acted_on(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a file that is not there nothing is known; what a daemon with a file elsewhere stood for is not meant."""
    stood_for(config, tmp_path / "lib")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "lib"))
    with pytest.raises(ConfigError, match="nothing tells what to make safe"):
        in_force(tmp_path / "typo.toml", None)
    assert in_force(tmp_path / "typo.toml", tmp_path / "lib").folder == tmp_path / "lib", "unless it is named"


def test_a_rack_whose_daemon_never_ran_is_not_taken_for_that_of_the_box(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A trial configuration beside the box's own: what the service stood for is another rack."""
    stood_for(config, tmp_path / "lib")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "lib"))
    trial = tmp_path / "home" / "trial.toml"
    trial.parent.mkdir()
    trial.write_bytes(config.read_bytes())
    assert in_force(trial, None).folder == trial.parent / "state"


def test_a_standing_that_is_damaged_or_was_never_there(config: Path) -> None:
    folder = config.parent / "state"
    found = in_force(config, None)
    assert (found.standing.mode, found.standing.released, found.folder) == (Mode.CLOSED_LOOP, frozenset(), folder)
    assert found.notes == (f"no {STANDING_FILE} in {folder}: acting on {config}",)
    standing = replace(stood_for(config, folder), released=frozenset())
    for path in (folder / STANDING_FILE, copy_of(folder / STANDING_FILE)):
        path.write_bytes(b"")
    found = in_force(config, None)
    assert "damaged" in found.notes[0]
    assert found.standing.released == frozenset()
    (folder / FOUND_FILE).write_text(FoundLimits({}, given_back=frozenset({"pdu-a/1"})).to_json(), encoding="utf-8")
    with _alone(found, "failsafe", FAILSAFE) as limits:
        assert (limits.released, limits.mode) == ({"pdu-a/1"}, Mode.CLOSED_LOOP)
    standing.save(folder)
    with _alone(in_force(config, None), "failsafe", FAILSAFE) as limits:
        assert limits.released == frozenset(), "what it stood for goes before"
