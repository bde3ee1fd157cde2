"""The package as users get it: one top-level name, every sub-package and data file, a console script that runs elsewhere."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("_fastpath", "config", "drivers", "models")  # each is rpi_daemon/<folder> in the wheel
DATA_SUFFIXES = {".toml", ".txt", ".onnx", ".pyi"}


def tracked() -> list[str]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return list(filter(None, names.split("\0")))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist) of a copy of what git tracks; the build front end makes the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))


def test_the_wheel_has_one_top_level_name_and_everything_in_it(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"rpi_daemon"}
    ours = [f"rpi_daemon/{name}" for name in tracked() if name.split("/")[0] in FOLDERS]
    needed = {name for name in ours if Path(name).suffix in {".py", *DATA_SUFFIXES}} | {"rpi_daemon/py.typed"}
    assert {f"rpi_daemon/config/{name}" for name in ("RPI-DAEMON-MIB.txt", "default.toml")} < needed
    assert not needed - set(names)
    assert [name for name in names if name.startswith("rpi_daemon/_fastpath/core.") and name.endswith(".so")]
    assert not [name for name in names if name.endswith((".c", "core.pyx.bak"))]


def test_the_sdist_has_the_sources(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked() if name.split("/")[0] in (*FOLDERS, "rpi_daemon")} <= names
    assert {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "_fastpath/core.pyx",
        "_fastpath/spsc.h",
        "drivers/base.py",
    } <= names


def test_the_console_script_runs_outside_the_checkout(tmp_path: Path) -> None:
    assert [entry.value for entry in entry_points(group="console_scripts", name="rpi-daemon")] == [
        "rpi_daemon.cli:main"
    ]
    script = Path(sys.executable).with_name("rpi-daemon")
    done = subprocess.run([str(script), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("rpi-daemon, version ")


def test_links_of_the_installed_pages_lead_to_installed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "packaging" / "documents.py", tmp_path], check=True)
    pages = list(tmp_path.glob("**/*.md"))
    assert {f"docs/{page.name}" for page in tmp_path.glob("*.md")} >= set(tracked_below("docs/")) - {"docs/README.md"}
    assert [page.name for page in pages if "README.md#" in page.read_text("utf-8")]  # links that had to change
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links {target}"


def test_every_example_is_installed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "packaging" / "documents.py", tmp_path], check=True)
    ours = {Path(name).name for name in tracked() if "/examples/" in name and name.endswith((".toml", ".conf"))}
    assert {file.name for file in (tmp_path / "examples").iterdir()} == ours | {"default.toml", "rpi-daemon.toml"}


def tracked_below(folder: str) -> list[str]:
    """Pages of a folder itself."""
    return [name for name in tracked() if name.startswith(folder) and name.count("/") == 1 and name.endswith(".md")]
