"""Runs a target over the inputs in a folder and some fresh ones, once each: for coverage. `python -m fuzz.replay TARGET FOLDER [CORE]`."""

import contextlib
import importlib.util
import logging
import random
import sys
from pathlib import Path

import structlog

FRESH = 5000


def load_core(path: str) -> None:
    """Another build of the compiled part, in the place of the installed one."""
    import rpi_daemon._fastpath

    spec = importlib.util.spec_from_file_location("rpi_daemon._fastpath.core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = rpi_daemon._fastpath.core = module
    spec.loader.exec_module(module)


def main() -> None:
    name, folder, *core = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if core:
        load_core(core[0])
    from fuzz.short import fresh
    from fuzz.targets import kept, target

    found, rng = target(name), random.Random(1)
    known = [*found.seeds(), *kept(name), *(path.read_bytes() for path in sorted(Path(folder).iterdir()))]
    for data in [*known, *(fresh(known, rng) for _ in range(FRESH))]:
        with contextlib.suppress(Exception):  # what goes wrong is found elsewhere
            found.check(data)


if __name__ == "__main__":
    main()
