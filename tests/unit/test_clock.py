"""Clocks: what counts as a step of the wall clock."""

import pytest

from rpi_daemon.clock import NS_PER_S, ManualClock, StepWatch


@pytest.mark.parametrize(
    ("set_by_s", "seen_s"), [(0.0, 0.0), (0.4, 0.0), (1.0, 1.0), (-3600.0, -3600.0), (-1.7e9, -1.7e9)]
)
def test_a_step_is_told_once(set_by_s: float, seen_s: float) -> None:
    clock, watch = ManualClock(), StepWatch()
    assert watch.look(clock.mono_ns(), clock.utc_ns()) == 0.0
    clock.advance(0.1)
    clock.set_utc(clock.utc_ns() + round(set_by_s * NS_PER_S))
    assert watch.look(clock.mono_ns(), clock.utc_ns()) == seen_s
    clock.advance(0.1)
    assert watch.look(clock.mono_ns(), clock.utc_ns()) == 0.0
