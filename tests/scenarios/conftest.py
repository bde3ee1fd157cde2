"""One simulated rack per module of scenarios."""

from collections.abc import Iterator

import pytest
from scenario_rack import Place, RackProcess, running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("rack"))


@pytest.fixture(scope="module")
def rack(place: Place) -> Iterator[RackProcess]:
    """One simulated rack per module."""
    with running(lambda: RackProcess(place.write())) as process:
        yield process
