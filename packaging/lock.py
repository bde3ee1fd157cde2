"""Writes requirements.txt: the dependencies of the package, as exact wheels of Debian bookworm's Python on every machine that is built for.

python packaging/lock.py > packaging/requirements.txt
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

PYTHON: Final = "3.11"
GLIBC: Final = 36  # 2.36: bookworm's
MACHINES: Final = ("x86_64", "aarch64")
EXTRAS: Final = ("train", "redfish", "hosts")


def resolved(requirements: list[str], machine: str) -> dict[str, tuple[str, str]]:
    """Name -> version and sha256 of the wheel that pip chooses for a machine."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(17, GLIBC + 1)] + [f"manylinux2014_{machine}"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
                *("--only-binary", ":all:", "--python-version", PYTHON, "--target", folder, "--report", str(report)),
                *(f"--platform={platform}" for platform in platforms),
                *requirements,
            ],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    return {
        item["metadata"]["name"].lower(): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in found
    }


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
    locks = [resolved(wanted, machine) for machine in MACHINES]
    print(f"# Written by lock.py for CPython {PYTHON} on {', '.join(MACHINES)}.")
    for name in sorted(set().union(*locks)):
        found = [lock[name] for lock in locks if name in lock]
        if len(found) != len(locks) or len({version for version, _ in found}) != 1:
            sys.exit(f"{name}: not the same version on every machine: {found}")
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in dict.fromkeys(digest for _, digest in found))
        print(f"{name}=={found[0][0]} {hashes}")


if __name__ == "__main__":
    main()
