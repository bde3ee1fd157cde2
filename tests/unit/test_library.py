"""Which model stands: promoted, rolled back, refused, and what a crash or another word in the configuration leaves."""

import shutil
from pathlib import Path

import pytest

from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.library import Library

T0 = 10**18


@pytest.fixture
def library(tmp_path: Path) -> Library:
    made = Library(tmp_path)
    for name in ("a", "b", "c"):
        shutil.copytree(SHIPPED, made.folder / name)
    return made


def _damage(directory: Path) -> None:
    content = bytearray((directory / "model.onnx").read_bytes())
    content[100] ^= 4
    (directory / "model.onnx").write_bytes(bytes(content))


def test_the_shipped_model_stands_where_nothing_was_promoted(tmp_path: Path) -> None:
    library = Library(tmp_path)
    assert library.names() == ["shipped"]
    choice = library.choose()
    assert (choice.name, choice.model.path, choice.refused) == ("shipped", SHIPPED, ())
    with pytest.raises(ModelError, match="nothing to roll back: shipped stands"):
        library.roll_back(T0)


def test_promoted_rolled_back_and_back_again(library: Library) -> None:
    library.promote("a", T0, watch_ns=5)
    assert (library.choose().name, library.standing().watch_until_utc_ns) == ("a", T0 + 5)
    library.promote("b", T0 + 1)
    assert library.roll_back(T0 + 2).current == "a"
    assert (library.choose().name, library.standing().previous) == ("a", "b")
    assert library.roll_back(T0 + 3).current == "b"
    with pytest.raises(ModelError, match="b stands already"):
        library.promote("b", T0)


def test_a_damaged_model_is_never_promoted_and_falls_back_by_name(library: Library) -> None:
    _damage(library.folder / "c")
    with pytest.raises(ModelError, match="sha256 differs"):
        library.promote("c", T0)
    assert library.choose().name == "shipped"
    library.promote("a", T0)
    library.promote("b", T0)
    _damage(library.folder / "b")
    choice = library.choose()
    assert choice.name == "a"
    assert len(choice.refused) == 1
    assert str(library.folder / "b") in choice.refused[0]
    _damage(library.folder / "a")
    assert library.choose().name == "shipped"


@pytest.mark.parametrize("name", ["..", "a/b", "", "nobody", "standing.json", ".hidden"])
def test_a_name_that_nothing_has_is_refused(library: Library, name: str) -> None:
    with pytest.raises(ModelError, match=r"no model is called .*; known: shipped, a, b, c"):
        library.promote(name, T0)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"schema": 2}', '{"schema": 1, "current": 3, "previous": "a", "basis": "x"}',
        '{"schema": 1, "current": "a", "previous": "shipped", "basis": "shipped", "watch_until_utc_ns": "noon"}',
    ],
)  # fmt: skip
def test_a_damaged_word_on_which_model_stands_is_told_and_the_configured_one_stands(
    library: Library, text: str
) -> None:
    library.promote("a", T0)
    (library.folder / "standing.json").write_text(text)
    choice = library.choose()
    assert choice.name == "shipped"
    assert "damaged" in choice.refused[0]
    assert library.prune(0) == []  # it is not known which one stands
    library.promote("b", T0)
    assert library.choose().name == "b"


def test_another_word_in_the_configuration_ends_a_promotion(library: Library, tmp_path: Path) -> None:
    library.promote("a", T0)
    mine = Path(shutil.copytree(SHIPPED, tmp_path / "mine"))
    other = Library(tmp_path, "mine", mine)
    assert other.names() == ["shipped", "configured", "a", "b", "c"]
    assert (other.choose().name, other.choose().model.path) == ("configured", mine)
    other.promote("b", T0)
    assert (other.choose().name, other.standing().previous) == ("b", "configured")
    assert library.choose().name == "shipped"


def test_old_models_are_deleted_but_not_those_that_stand(library: Library) -> None:
    library.promote("a", T0)
    library.promote("c", T0)
    assert library.prune(2) == ["b"]
    assert library.prune(0) == []
    assert library.names() == ["shipped", "a", "c"]


def test_the_list_tells_which_stands_and_which_is_refused(library: Library) -> None:
    library.promote("a", T0)
    _damage(library.folder / "b")
    rows = {row["name"]: row for row in library.rows()}
    assert {name: row["standing"] for name, row in rows.items()} == {
        "shipped": "previous",
        "a": "current",
        "b": "",
        "c": "",
    }
    assert [name for name, row in rows.items() if not row["accepted"]] == ["b"]


def test_a_folder_that_takes_no_file_leaves_the_model_that_stood(library: Library) -> None:
    (library.folder / "standing.json.tmp").mkdir()
    with pytest.raises(ModelError, match="the model that stood goes on"):
        library.promote("a", T0)
    assert not (library.folder / "standing.json").exists()
    assert library.choose().name == "shipped"
