"""`make fuzz`: a million inputs for each target; figures to bench/results/fuzz.json.

`PYTHONPATH=tests python -P -m fuzz.run [TARGET ...] [--inputs N] [--seed S] [--keep]`. Needs clang and the extra `fuzz` (atheris, coverage).
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fuzz.branches import measured
from fuzz.page import write_page
from fuzz.target import Target
from fuzz.targets import CORPUS, PLACES, kept
from fuzz.targets import target as target_of

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
RESULT = Path(os.environ.get("FUZZ_RESULT", ROOT / "bench" / "results" / "fuzz.json"))
KEPT_BYTES = 6000  # of a target
PATIENCE_S = 3 * 3600.0


def build_core(folder: Path) -> Path:
    """The compiled part with sanitizers and libFuzzer's eyes; made anew where a source is newer."""
    folder.mkdir(parents=True, exist_ok=True)
    c_file, library = folder / "core.c", folder / "core.so"
    sources = [path for kind in ("*.pyx", "*.pxi", "*.h") for path in (ROOT / "_fastpath").glob(kind)]
    if library.exists() and library.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return library
    subprocess.run([sys.executable, "-m", "cython", "-3", ROOT / "_fastpath" / "core.pyx", "-X", "boundscheck=False",
                    "-X", "wraparound=False", "-o", c_file], check=True)  # fmt: skip
    subprocess.run(["clang", "-O1", "-g", "-std=gnu11", "-fPIC", "-shared", "-w", "-fsanitize=address,undefined,fuzzer-no-link",
                    "-fno-sanitize=pointer-overflow",  # Cython's argument parsing adds 0 to a null pointer
                    "-fno-sanitize-recover=undefined", f"-I{sysconfig.get_path('include')}", f"-I{ROOT / '_fastpath'}",
                    c_file, "-o", library, "-lm", "-lpthread"], check=True)  # fmt: skip
    return library


def fuzz(target: Target, core: Path | None, inputs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Figures of one target."""
    import atheris

    corpus, result = (
        BUILD / "corpus" / target.name,
        folder / f"{target.name}.json",
    )  # what earlier runs found is begun with
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(kept(target.name)):
        (corpus / f"kept-{number}").write_bytes(data)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if target.compiled:
        environment |= {
            "LD_PRELOAD": f"{atheris.path()}/asan_with_fuzzer.so",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_abort=1",
        }
        if target.exact_memory:
            environment["PYTHONMALLOC"] = "malloc"
    command = [sys.executable, "-P", "-m", "fuzz.guided", target.name, str(core or ""), " ".join(target.modules),
               corpus, result, str(inputs), str(seed)]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if not result.exists():
        artefacts = [
            path for path in corpus.parent.glob("*-*") if path.name.split("-")[0] in ("crash", "timeout", "oom", "leak")
        ]
        inputs_then = [base64.b64encode(path.read_bytes()).decode() for path in artefacts]
        return {"died": done.returncode, "inputs_that_did_it": inputs_then, "said": done.stderr[-3000:]}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("targets", nargs="*", choices=[[], *PLACES], default=[])
    options.add_argument("--inputs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=5)
    options.add_argument(
        "--keep", action="store_true", help="add the smallest inputs that reached something new to tests/fuzz/corpus"
    )
    given = options.parse_args()
    figures = json.loads(RESULT.read_text())["targets"] if RESULT.exists() else {}
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in given.targets or PLACES:
            target = target_of(name)
            core = build_core(BUILD) if target.compiled else None
            seen = fuzz(target, core, given.inputs, given.seed, folder)
            bad += "died" in seen or any(seen[kind] for kind in ("crashes", "hangs", "wrong_accepts"))
            if given.keep:
                keep(name)
            seen["branches"] = measured(target, BUILD / "corpus" / name)
            figures[name] = {
                "wrong_accept_is": target.oracle,
                "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
                **seen,
            }
            print(name, json.dumps(seen, indent=1)[:6000], flush=True)
            if given.inputs >= 1_000_000:
                RESULT.write_text(json.dumps({"command": "make fuzz", "targets": figures}, indent=1) + "\n")
                write_page(figures)
    return 1 if bad else 0


def keep(name: str) -> None:
    """Fill the kept inputs of a target up with the smallest that libFuzzer found worth keeping."""
    path, known = CORPUS / f"{name}.txt", set(kept(name))
    text = path.read_text() if path.exists() else ""
    for data in sorted(
        (path.read_bytes() for path in (BUILD / "corpus" / name).iterdir()), key=lambda data: (len(data), data)
    ):
        line = base64.b64encode(data).decode() + "\n"
        if data and data not in known and len(text) + len(line) <= KEPT_BYTES:
            text += line
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
