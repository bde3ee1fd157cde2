"""What the demo's summary says of figures that look like failures: late samples, announced work, a margin that still learns."""

import pytest

from rpi_daemon.demo import _announced, _passed, _sampled


@pytest.mark.parametrize(
    ("late", "told"),
    [(0, "60770 scans, 0 lost"), (4790, "60770 scans, 0 lost; 7.9% came over 1 ms late, which is no loss: ")],
)
def test_late_samples_are_told_from_lost_ones(late: int, told: str) -> None:
    text = _sampled({"samples_total": 60_770, "samples_lost": 0, "samples_late": late})
    assert text.startswith(told)
    assert late or text == told


def test_how_much_the_forecast_was_told_is_told() -> None:
    assert _announced({"announced": 42}) == "42 changes of load were announced to it (hint); --no-hints withholds them"
    assert _announced({"announced": 0}) == "no work was announced to it"


def test_requests_that_were_passed_stand_beside_their_aim() -> None:
    said = (
        "2.45% of the highest draws in their 5 s passed them; the margin begins untaught and aims at 1% in the long run"
    )
    assert _passed({"request_escape_rate": 0.0245}) == said
    assert "5 s" in _passed({"request_escape_rate": None})
