"""Copies the pages and examples of the source to where they are installed, so that every link leads somewhere: documents.py FOLDER

A link to what is not installed (tests, benches, results) becomes the name of that file in the source. Python's own library alone.
"""

import re
import shutil
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# text, which may hold brackets in brackets, then the target and its anchor
LINK = re.compile(r"\[((?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
# what is in the source: where it goes, below the folder of documents
PLACES = {
    "README.md": "README.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "docs/README.md": "index.md",
    "docs/*.md": "*",
    "docs/*.png": "*",
    "docs/*.svg": "*",
    "docs/decisions/*.md": "decisions/*",
    "config/RPI-DAEMON-MIB.txt": "*",
    "config/default.toml": "examples/*",
    "config/examples/*.toml": "examples/*",
    "packaging/rpi-daemon.toml": "examples/*",
    "systemd/examples/*.conf": "examples/*",
}


def installed() -> dict[str, str]:
    """By the path in the source, the path below the folder of documents; folders that are linked themselves, too."""
    found = {"docs/decisions": "decisions", "config/examples": "examples", "systemd/examples": "examples"}
    for pattern, place in PLACES.items():
        for file in sorted(ROOT.glob(pattern)):
            found.setdefault(file.relative_to(ROOT).as_posix(), place.replace("*", file.name))
    return found


def page(source: str, places: dict[str, str]) -> str:
    """A page with its links as they are where it is installed."""
    depth = len(PurePosixPath(places[source]).parts) - 1

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target:
            return found[0]
        path = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        if path in places:
            return f"[{text}]({'../' * depth}{places[path]}{anchor})"
        return f"`{path}` (in the source)" if text == f"`{path}`" else f"{text} (`{path}` in the source)"

    return LINK.sub(link, (ROOT / source).read_text(encoding="utf-8"))


def main(folder: Path) -> None:
    """Everything, below a folder that is made where it is missing."""
    places = installed()
    for source, place in places.items():
        target = folder / place
        if (ROOT / source).is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(page(source, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
