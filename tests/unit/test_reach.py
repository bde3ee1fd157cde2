"""How far a forecast reaches for outlets that are read every tick, and for those of slow meters."""

import numpy as np
import pytest

from rpi_daemon.records import reach_ticks


@pytest.mark.parametrize(
    ("interval", "horizon_s", "reach"),
    [(1, 5.0, 50), (10, 5.0, 50), (20, 5.0, 60), (30, 5.0, 60), (40, 5.0, 80), (50, 5.0, 50), (1, 1.0, 10), (20, 1.0, 20)],
)  # fmt: skip
def test_reach_is_the_first_reading_at_or_after_the_horizon(interval: int, horizon_s: float, reach: int) -> None:
    assert reach_ticks(np.array([interval]), horizon_s).tolist() == [reach]
