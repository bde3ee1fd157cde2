"""A file that is kept twice: what the disk cannot read, or what is no file, is damaged; what may not be read is an error."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from rpi_daemon.durable import copy_of, keep_damaged, read_twice, write_twice
from rpi_daemon.small_file import read_small


def parse(text: str) -> int:
    return int(text)


def cannot_be_read(path: Path) -> None:
    """The kernel answers EIO: nothing is mapped where this reads first."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError) as told:
        read_small(path)
    assert told.value.errno == errno.EIO


def is_a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "something").touch()


def is_a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def is_rotten(path: Path) -> None:
    path.write_bytes(b"\xff1")


DAMAGES = (cannot_be_read, is_a_folder, is_a_pipe, is_rotten)
Damage = Callable[[Path], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "kept.json"
    write_twice(path, "7", parse)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_copy_is_used_and_the_next_content_is_kept(path: Path, damage: Damage) -> None:
    damage(path)
    kept = read_twice(path, parse)
    assert kept.value == 7
    assert kept.damaged.startswith(f"{path}: damaged (")
    keep_damaged(path)
    with capture_logs() as said:
        write_twice(path, "8", parse)
    after = read_twice(path, parse)
    assert (after.value, bool(after.damaged)) == (8, path.is_dir()), "a folder stays: without it the file is taken away"
    assert [(line["event"], line["error"]) for line in said] == (
        [("state.one_copy", f"{path}: Is a directory")] if path.is_dir() else []
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_written_anew(path: Path, damage: Damage) -> None:
    damage(copy_of(path))
    assert read_twice(path, parse).value == 7
    write_twice(path, "8", parse)
    path.write_text("rotten")
    assert read_twice(path, parse).value == 8


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_are_damaged_and_the_next_content_is_kept(path: Path, damage: Damage) -> None:
    for one in (path, copy_of(path)):
        damage(one)
    kept = read_twice(path, parse)
    assert kept.value is None
    assert kept.damaged.startswith(f"{path}: damaged (")
    keep_damaged(path)
    write_twice(path, "8", parse)
    assert read_twice(path, parse).value == 8


def test_what_may_not_be_read_is_an_error_that_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("rpi_daemon.small_file.os.open", refused)  # root may read everything
    with pytest.raises(PermissionError) as told:
        read_twice(path, parse)
    assert (told.value.filename, told.value.strerror) == (str(path), "Permission denied")


def test_a_folder_that_is_none_says_nothing_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(NotADirectoryError):
        read_twice(tmp_path / "state" / "kept.json", parse)


@pytest.mark.parametrize("damage", [cannot_be_read, is_a_pipe, is_rotten])
def test_a_disk_that_takes_nothing_beside_a_damaged_file(path: Path, damage: Damage) -> None:
    """As long as the copy says it already; what it does not say yet is not taken for kept."""
    damage(path)
    path.with_name(path.name + ".tmp").mkdir()
    write_twice(path, "7", parse)
    copy_of(path).with_name(copy_of(path).name + ".tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        write_twice(path, "8", parse)
    assert read_twice(path, parse).value == 7


def test_an_old_content_that_can_be_read_is_never_left_behind_a_newer_copy(path: Path) -> None:
    path.with_name(path.name + ".tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        write_twice(path, "8", parse)
    assert (path.read_text(), copy_of(path).read_text()) == ("7", "7")
