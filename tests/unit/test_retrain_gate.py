"""The gate's verdict on known scores, and scores of forecasters whose errors are known."""

from dataclasses import replace

import numpy as np
import pytest

from rpi_daemon.records import HORIZONS_S, QUANTILES, TICK_NS, FloatArray, Forecast, ForecastInput, Quality
from rpi_daemon.retrain.gate import MEMBERS, ClassScore, Scores, scores_of, summed, verdict
from rpi_daemon.retrain.losses import Losses

VS = {"incumbent": 0.9, "candidate_alone": 1.0, "incumbent_alone": 0.8, "persistence": 0.6, "ridge": 0.8}
RATES = dict.fromkeys(MEMBERS, 0.008)
BUSY = ClassScore("board, busy", 30, 2.0, VS, dict.fromkeys(MEMBERS, 5.0), RATES)
WON = Scores(40, 3.0, VS, 0.01, RATES, (BUSY,))


def test_a_clear_winner_may_stand() -> None:
    assert verdict(WON) == ()


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (replace(WON, spans=7), "only 7 spans"),
        (replace(WON, loss_vs={**VS, "incumbent": 0.997}), "0.997 x the incumbent's; 0.995 at most"),
        (replace(WON, loss_vs={**VS, "incumbent": 0.99504}), "loss 0.99504 x the incumbent's; 0.995 at most"),
        (replace(WON, gain_error=0.2), "may be chance"),
        (replace(WON, loss_vs={**VS, "ridge": 1.01}), "loss 1.010 x that of ridge"),
        (replace(WON, loss_vs={**VS, "persistence": float("nan")}), "x that of persistence"),
        (replace(WON, classes=(replace(BUSY, loss_vs={**VS, "incumbent": 1.03}),)), "board, busy: loss 1.030 x"),
        (replace(WON, classes=(replace(BUSY, escape_rate={**RATES, "candidate": 0.012}),)), "1.20% of running maxima"),
        (
            replace(WON, classes=(replace(BUSY, escape_rate={**RATES, "candidate": 0.0100004}),)),
            "1.00004% of running maxima",
        ),
    ],
)
def test_each_failing_alone_keeps_it_out(scores: Scores, says: str) -> None:
    (reason,) = verdict(scores)
    assert says in reason


def test_more_escapes_than_promised_are_allowed_where_the_incumbent_has_as_many() -> None:
    rates = {**RATES, "incumbent": 0.02, "candidate": 0.021}
    assert verdict(replace(WON, classes=(replace(BUSY, escape_rate=rates),))) == ()


def test_scores_come_back_from_json_and_nothing_else_does() -> None:
    assert scores_of(WON.to_json()) == WON
    for broken in ({}, {**WON.to_json(), "spans": "many"}, {**WON.to_json(), "classes": [{"name": "x"}]}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            scores_of(broken)


def tick(k: int, power_w: FloatArray, interval: int = 1) -> ForecastInput:
    n = len(power_w)
    held = 0 if k % interval == 0 else int(Quality.HELD)
    return ForecastInput(
        k * TICK_NS, 0.0, power_w, np.full(n, np.nan), np.zeros(n), np.ones(n, np.bool_), np.full(n, 600.0),
        np.zeros((n, 5)), np.zeros((n, 4)), np.zeros((n, 4)), np.full(n, held), np.full(n, interval),
    )  # fmt: skip


def always(n: int, value_w: float, t_mono_ns: int) -> Forecast:
    flat = np.full((n, len(HORIZONS_S), len(QUANTILES)), value_w)
    return Forecast(t_mono_ns, flat, flat, ("made",) * n)


@pytest.mark.parametrize("interval", [1, 10, 20])
def test_losses_are_the_pinball_of_value_and_running_maximum(interval: int) -> None:
    losses = Losses(("right", "ten above", "ten below"), 2)
    for k in range(200):
        x = tick(k, np.full(2, 100.0), interval)
        said = {
            name: always(2, w, x.t_mono_ns) for name, w in (("right", 100.0), ("ten above", 110.0), ("ten below", 90.0))
        }
        losses.step(x, said)
    reach = 60 if interval == 20 else 50
    np.testing.assert_array_equal(losses.judged, (200 - reach) // interval)
    mean = losses.loss_w / losses.judged
    np.testing.assert_allclose(mean[0], 0.0)
    np.testing.assert_allclose(mean[1], 10.0 * np.mean([0.5, 0.1, 0.01]))
    np.testing.assert_allclose(mean[2], 10.0 * np.mean([0.5, 0.9, 0.99]))
    np.testing.assert_array_equal(losses.escapes / losses.judged, [[0, 0], [0, 0], [1, 1]])


def test_classes_are_told_apart_and_each_span_has_one_vote() -> None:
    losses = Losses(MEMBERS, 4)
    losses.judged = np.array([100.0, 100.0, 10.0, 0.0])
    losses.loss_w = np.array([[1.0], [2.0], [4.0], [4.0], [4.0], [4.0]]) * losses.judged
    losses.absolute_w = np.ones((6, 4)) * losses.judged
    losses.absolute_w[MEMBERS.index("persistence")] *= [20.0, 1.0, 20.0, 0.0]
    found = summed(losses, [600.0] * 4, [1, 1, 10, 1])
    assert (found.spans, [row.name for row in found.classes]) == (3, ["board, busy", "board, flat", "meter, busy"])
    assert found.loss_vs == pytest.approx({**dict.fromkeys(MEMBERS[2:], 0.25), "incumbent": 0.5})
    assert [row.hours for row in found.classes] == pytest.approx([100 / 36_000] * 3, abs=1e-4)
    assert found.gain_error == pytest.approx(0.0, abs=1e-12)
