"""One simulated rack per module of scenarios; another one after a test that failed."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from scenario_rack import Child, Place, RackProcess, on_pdu, running

SHARED = pytest.StashKey[dict[str, tuple[pytest.FixtureDef[Any], pytest.FixtureRequest]]]()
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("rack"))


@pytest.fixture(scope="module")
def rack(place: Place) -> Iterator[RackProcess]:
    """One simulated rack per module. Its agents have answered once, which takes them longer than any time after."""
    config = place.write()
    with running(lambda: RackProcess(config)) as process:
        for pdu in ("pdu-a", "pdu-b"):
            on_pdu(config, pdu, range(1, 7), lambda driver: driver.read())
        yield process


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    if fixturedef.scope == "module" and fixturedef.argname in ("rack", "daemon"):
        request.node.stash.setdefault(SHARED, {})[fixturedef.argname] = (fixturedef, request)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = report.when == "call" and report.failed
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Function) -> Generator[None]:
    """What a failed test leaves is no start for the next one: it gets a rack of its own, and all that depends on it. One
    that ended the daemon, as some do on purpose, leaves none: the next one gets another."""
    yield
    module = item.getparent(pytest.Module)
    shared = module.stash.get(SHARED, {}) if module is not None else {}
    daemon = item.funcargs.get("daemon")
    if item.stash.get(FAILED, False) and "rack" in shared:
        fixture, request = shared["rack"]
        fixture.finish(request)  # type: ignore[arg-type]
    elif isinstance(daemon, Child) and not daemon.alive() and "daemon" in shared:
        fixture, request = shared["daemon"]
        fixture.finish(request)  # type: ignore[arg-type]
