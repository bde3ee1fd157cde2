"""Causes for people."""

from rpi_daemon.guard import CAUSES
from rpi_daemon.reasons import REASONS, brief, explained


def test_many_subjects_are_counted_and_few_are_named() -> None:
    stale = [f"sensor_stale:a/{n}" for n in range(1, 25)]
    assert brief(["tick_overrun", "pdu_unreachable:a", "pdu_unreachable:b", *stale]) == [
        "tick_overrun",
        "pdu_unreachable a, b",
        "sensor_stale (24)",
    ]


def test_every_cause_has_its_words_and_what_to_do() -> None:
    assert set(REASONS) == set(CAUSES)
    for name, (row,) in ((name, explained([name])) for name in CAUSES):
        assert row["cause"] == name
        assert row["text"]
        assert row["do"]


def test_a_cause_is_explained_once_with_what_it_is_about() -> None:
    stale = [f"sensor_stale:a/{n}" for n in range(1, 25)]
    rows = explained(["tick_overrun", *stale])
    assert [row["text"] for row in rows] == [
        "the control loop is late",
        "no reading of a/1, a/2, a/3, a/4 and 20 more",
    ]
    assert rows[0]["about"] == []
    assert len(rows[1]["about"]) == 24
