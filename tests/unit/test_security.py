"""What SECURITY.md promises of the code as a whole: nothing is executed that is read, who may read and write our files, pins."""

import ast
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpi_daemon.durable import write_durably
from rpi_daemon.errors import RpiError
from rpi_daemon.guard import KillSwitch
from rpi_daemon.host import folder_lock

ROOT = Path(__file__).parents[2]
FOLDERS = ("rpi_daemon", "drivers", "models", "config", "_fastpath", "bench")
EXECUTING_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "joblib",
    "jsonpickle",
}
EXECUTING_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "pandas.read_pickle"}
# what a fault in it would let somebody do to us: the lowest version without it
PINS = {"pyasn1": (0, 6, 5), "pymodbus": (3, 16), "onnx": (1, 21)}


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def name_of(node: ast.expr) -> str:
    """`np.load` of a call's function, as written."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    return next(
        (ast.literal_eval(k.value) for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None
    )


def complaints(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.split(".")[0] in EXECUTING_MODULES)
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in EXECUTING_CALLS:
                yield name
            if keyword(node, "shell") is True:
                yield f"{name} with a shell"
            if name in ("np.load", "numpy.load") and keyword(node, "allow_pickle") is not False:
                yield f"{name} that may unpickle"
            if name.endswith("InferenceSession") and node.args and isinstance(node.args[0], ast.Constant):
                yield f"{name} of a path"


def test_nothing_that_is_read_is_executed() -> None:
    found = [f"{path.relative_to(ROOT)}: {what}" for path, tree in trees() for what in complaints(tree)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from yaml import load",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
    ],
)
def test_the_check_sees_what_it_looks_for(text: str) -> None:
    assert list(complaints(ast.parse(text)))


def test_pins_of_libraries_with_known_faults() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for name, least in PINS.items():
        asked = [text for entries in lists for text in entries if re.match(rf"{name}\b", text)]
        assert asked, name
        for text in asked:
            lowest = re.search(r">=([0-9.]+)", text)
            assert lowest is not None, text
            assert tuple(map(int, lowest.group(1).split("."))) >= least, text


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Root runs commands in the daemon's folders: whoever may write there must not choose what root writes over."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "state"
    folder.mkdir()
    for name in ("daemon.lock", "kill", "found.json.tmp"):
        (folder / name).symlink_to(victim)
    with pytest.raises(RpiError, match=r"daemon\.lock"), folder_lock(folder, "state_dir"):
        pass
    switch = KillSwitch(folder / "kill")
    switch.engage("smoke")
    assert switch.engaged()
    with pytest.raises(OSError, match="symbolic link"):
        write_durably(folder / "found.json", "{}")
    assert victim.read_text() == "precious"
    switch.release()
    assert not switch.engaged()


@pytest.mark.parametrize("reason", ["smoke", "\ud800", "\0", "x" * 65_000, ""])
def test_the_kill_switch_takes_any_reason(reason: str, tmp_path: Path) -> None:
    switch = KillSwitch(tmp_path / "kill")
    switch.engage(reason)
    assert switch.engaged()


def test_what_we_write_is_not_for_everybody(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_durably(tmp_path / "a", "x")
        KillSwitch(tmp_path / "kill").engage("x")
        with folder_lock(tmp_path, "state_dir"):
            pass
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) & 0o027 for path in tmp_path.iterdir()} == {0}
