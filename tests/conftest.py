"""Rules for every test: nothing may be left behind, and a skip must be one that CI knows of."""

import contextlib
import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_figures import figure as figure
from hypothesis import HealthCheck, settings
from unhurried import unhurry

# how long an example takes depends on who else uses the machine: no property
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
unhurry()

# Children of tests find the installed package: the bare folders of the checkout, their working directory, would shadow it.
os.environ["PYTHONSAFEPATH"] = "1"
# ... and start from bytecode, as it does: without, each of the hundreds of children compiles it anew, for a third of its start.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
PATIENCE_S = 20.0  # a thread that was told to end may take a moment, and the machine may stand still


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own descriptor
    return found


def _left(before: dict[int, str]) -> dict[int, str]:
    """What was opened since; matplotlib keeps its fonts open."""
    opened = {fd: name for fd, name in _descriptors().items() if before.get(fd) != name}
    return {fd: name for fd, name in opened.items() if not name.endswith(".ttf")}


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has ended meanwhile
            found |= set((task / "children").read_text().split())
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a thread, a descriptor or a child process."""
    threads, descriptors, children = set(threading.enumerate()), _descriptors(), _children()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"left the thread {thread.name}"
    deadline = time.monotonic() + PATIENCE_S
    while (left := _left(descriptors)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert not left, f"left descriptors open: {left}"
    while _children() - children and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _children() - children, "left a child process"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under CI a skip that is not on the list is a failure."""
    listed = os.environ.get("RPI_ALLOWED_SKIPS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not listed or reporter is None:
        return
    patterns = [line for line in Path(listed).read_text().splitlines() if line and not line.startswith("#")]
    reasons = {
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in reporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    unknown = sorted(reason for reason in reasons if not any(re.search(pattern, reason) for pattern in patterns))
    if unknown:
        reporter.write_line(f"skipped for a reason that is not in {listed}:", red=True)
        for reason in unknown:
            reporter.write_line(f"  {reason}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
