"""What hosts said reaches the forecaster by outlet, for three polls; then it is masked."""

from collections.abc import Sequence

import numpy as np
import pytest
from rack_examples import make_rack

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import FloatArray, HostReading, Load
from rpi_daemon.telemetry import HostTelemetry

NAN = float("nan")
LOADS = (
    Load("web-1", (0, 2), 1, 0.0, 500.0, False, False),
    Load("web-2", (1,), 1, 0.0, 500.0, False, False),
)


def telemetry() -> HostTelemetry:
    return HostTelemetry(make_rack(3, (), loads=LOADS), {"web-1": 2.0})


def shown(host: HostTelemetry, seconds: float) -> FloatArray:
    return host.columns(round(seconds * NS_PER_S))


def test_nothing_is_known_before_anybody_spoke() -> None:
    assert np.isnan(shown(telemetry(), 0.0)).all()


@pytest.mark.parametrize(("age_s", "known"), [(0.0, True), (6.0, True), (6.1, False)])
def test_both_outlets_of_a_load_show_its_host_for_three_polls(age_s: float, known: bool) -> None:
    host = telemetry()
    host.take([HostReading("web-1", 10 * NS_PER_S, cpu=0.7, network=0.0)])
    row: Sequence[float] = [0.7, NAN, 0.0, NAN] if known else [NAN] * 4
    np.testing.assert_array_equal(shown(host, 10.0 + age_s), [row, [NAN] * 4, row])


def test_a_newer_reading_replaces_the_whole_one_before() -> None:
    host = telemetry()
    host.take([HostReading("web-1", NS_PER_S, cpu=0.7), HostReading("web-1", 2 * NS_PER_S, disk=0.5)])
    np.testing.assert_array_equal(shown(host, 2.0)[0], [NAN, NAN, NAN, 0.5])


def test_a_host_that_nobody_configured_is_not_ours() -> None:
    host = telemetry()
    host.take([HostReading("web-2", 0, cpu=0.5), HostReading("web-9", 0, cpu=0.5)])
    assert np.isnan(shown(host, 0.0)).all()
