"""Whatever the readings, an answer of the mixture is finite, ordered and within bounds, or it is no answer."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.models.forecaster import NO_FORECAST, SHIPPED
from rpi_daemon.models.manifest import load_model
from rpi_daemon.models.mixture import default_mixture
from rpi_daemon.records import TICK_NS, ForecastInput

MODEL = load_model(SHIPPED)
UPPER_BOUND = 1.5  # of the rating, or of the present draw where that is larger
WATTS = st.one_of(
    st.floats(0.0, 1000.0),
    st.sampled_from([0.0, np.nan, np.inf, -np.inf, -5.0, 1e-9, 5e4]),
)
PLANS = st.one_of(st.just(0.0), st.floats(-500.0, 500.0), st.sampled_from([np.nan, np.inf]))


def _empty(n: int) -> ForecastInput:
    return ForecastInput(
        t_mono_ns=0,
        t_utc_s=0.0,
        power_w=np.zeros(n),
        peak_w=np.full(n, np.nan),
        step_w=np.zeros(n),
        valid=np.ones(n, np.bool_),
        rating_w=np.array([600.0, 0.0])[:n],
        planned_w=np.zeros((n, 5)),
        telemetry=np.zeros((n, 4)),
        telemetry_mask=np.zeros((n, 4)),
    )


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.tuples(WATTS, WATTS), st.tuples(st.booleans(), st.booleans()), PLANS, st.integers(1, 9)),
        min_size=1,
        max_size=12,
    )
)
def test_every_answer_is_finite_ordered_and_bounded(
    story: list[tuple[tuple[float, float], tuple[bool, bool], float, int]],
) -> None:
    mixture = default_mixture(2, MODEL)
    t_mono_ns, present_w = 0, np.zeros(2)
    for watts, valid, plan_w, repeat in story:
        for _ in range(repeat):
            t_mono_ns += TICK_NS
            planned_w = np.zeros((2, 5))
            planned_w[0, 2:] = plan_w
            x = replace(
                _empty(2), t_mono_ns=t_mono_ns, power_w=np.array(watts), valid=np.array(valid), planned_w=planned_w
            )
            made = mixture.step(x)
            assert mixture.poisoned == ""  # that is said of weights, never of what is measured
            answered = np.array([s != NO_FORECAST for s in made.source])
            assert np.isnan(made.value_w[~answered]).all()
            assert np.isnan(made.running_max_w[~answered]).all()
            value_w, running_max_w = made.value_w[answered], made.running_max_w[answered]
            assert np.isfinite(value_w).all()
            assert np.isfinite(running_max_w).all()
            assert (value_w >= 0.0).all()
            assert (np.diff(value_w, axis=2) >= 0.0).all()
            assert (np.diff(running_max_w, axis=1) >= 0.0).all()
            assert (np.diff(running_max_w, axis=2) >= 0.0).all()
            assert (running_max_w >= value_w).all()
            present_w = np.where(x.valid & np.isfinite(x.power_w), x.power_w, present_w)  # else the last reading stands
            announced_w = max(plan_w, 0.0) if np.isfinite(plan_w) else 0.0
            highest_w = UPPER_BOUND * np.maximum(np.maximum(x.rating_w, 1.0), present_w) + announced_w + 1e-6
            assert (running_max_w[:, -1, -1] <= highest_w[answered]).all()
    assert sum(mixture.counts.values()) == 2 * sum(repeat for *_, repeat in story)
