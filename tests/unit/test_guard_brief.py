"""Causes for people."""

from rpi_daemon.guard import brief


def test_many_subjects_are_counted_and_few_are_named() -> None:
    stale = [f"sensor_stale:a/{n}" for n in range(1, 25)]
    assert brief(["tick_overrun", "pdu_unreachable:a", "pdu_unreachable:b", *stale]) == [
        "tick_overrun",
        "pdu_unreachable a, b",
        "sensor_stale (24)",
    ]
