"""What the daemon last stood for comes back from the state folder exactly, or not at all."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.config.load import read_config
from rpi_daemon.durable import copy_of
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import Mode
from rpi_daemon.standing import STANDING_FILE, Standing

EXAMPLES = sorted((Path(__file__).parents[2] / "config" / "examples").glob("*.toml"))


def standing() -> Standing:
    return Standing(read_config(EXAMPLES[0]), Mode.CLOSED_LOOP, frozenset({"pdu-a/1", "pdu-a/2"}), {"pdu-b": "licence"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_configuration_comes_back_as_it_was(path: Path, tmp_path: Path) -> None:
    one = replace(standing(), config=read_config(path))
    one.save(tmp_path)
    assert Standing.read(tmp_path) == one


def test_none_was_saved_yet(tmp_path: Path) -> None:
    assert Standing.read(tmp_path) is None


def test_what_is_on_disk_already_is_not_written_again(tmp_path: Path) -> None:
    standing().save(tmp_path)
    before = (tmp_path / STANDING_FILE).stat().st_ino
    standing().save(tmp_path)
    assert (tmp_path / STANDING_FILE).stat().st_ino == before
    replace(standing(), mode=Mode.ADVISORY).save(tmp_path)
    assert (tmp_path / STANDING_FILE).stat().st_ino != before


@given(st.data())
def test_a_damaged_file_is_never_acted_on(data: st.DataObject) -> None:
    """One octet changed, anywhere: the same as before (white space), or refused."""
    octets = bytearray(standing().to_json().encode())
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= data.draw(st.integers(1, 127))
    try:
        read = Standing.from_json(octets.decode())
    except ValueError:
        return
    assert read == standing()


@pytest.mark.parametrize("octets", [b"", b"{", bytes(100), b"\xff\xfe", b"[" * 100_000])
def test_the_second_copy_stands_in_for_a_damaged_file(tmp_path: Path, octets: bytes) -> None:
    standing().save(tmp_path)
    (tmp_path / STANDING_FILE).write_bytes(octets)
    assert Standing.read(tmp_path) == standing()
    standing().save(tmp_path)
    assert (tmp_path / STANDING_FILE).read_bytes() == copy_of(tmp_path / STANDING_FILE).read_bytes()


def test_a_file_that_was_taken_away_is_gone(tmp_path: Path) -> None:
    standing().save(tmp_path)
    (tmp_path / STANDING_FILE).unlink()
    assert Standing.read(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_cut_off_file_is_named(tmp_path: Path, keep: int) -> None:
    standing().save(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(standing().to_json()[:keep])
    with pytest.raises(ConfigError, match=r"standing\.json: damaged"):
        Standing.read(tmp_path)
