"""Forecasters on signals whose future is known, and the mixture when the network's answer cannot be used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon._fastpath.core import EXPERTS
from rpi_daemon.clock import ManualClock
from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED, Forecaster
from rpi_daemon.models.inputs import InputStream
from rpi_daemon.models.manifest import LoadedModel, load_model
from rpi_daemon.models.mixture import REST_TICKS, Mixture, default_mixture
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import TICK_NS, BoolArray, FloatArray, Forecast, ForecastInput, Quality

RATING_W = 600.0


def tick(k: int, power_w: FloatArray, planned_w: FloatArray | None = None, *, quality: int = 0) -> ForecastInput:
    n = len(power_w)
    return ForecastInput(
        t_mono_ns=k * TICK_NS,
        t_utc_s=1.7e9 + 0.1 * k,
        power_w=power_w,
        peak_w=np.full(n, np.nan),
        step_w=np.zeros(n),
        valid=np.isfinite(power_w),
        rating_w=np.full(n, RATING_W),
        planned_w=np.zeros((n, 5)) if planned_w is None else planned_w,
        telemetry=np.zeros((n, 4)),
        telemetry_mask=np.zeros((n, 4)),
        quality=np.full(n, quality),
    )


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(SHIPPED)


def _members(model: LoadedModel, n: int) -> list[Forecaster]:
    alone = [Mixture(n, alone=name) for name in EXPERTS if name != "lstm"]
    return [LstmForecaster(model, n), default_mixture(n, model), Mixture(n), *alone]


def _check_ordered(made: Forecast) -> None:
    assert (np.diff(made.value_w, axis=2) >= 0.0).all()
    assert (np.diff(made.running_max_w, axis=2) >= 0.0).all()
    assert (np.diff(made.running_max_w, axis=1) >= 0.0).all()
    assert (made.running_max_w >= made.value_w).all()


def test_quantiles_and_running_maxima_are_ordered_on_a_wild_signal(model: LoadedModel) -> None:
    rng = np.random.default_rng(1)
    members = _members(model, 6)
    power_w = np.full(6, 200.0)
    for k in range(300):
        power_w = np.clip(power_w + rng.normal(0.0, 40.0, 6) * (rng.random(6) < 0.1), 0.0, RATING_W)
        planned_w = rng.normal(0.0, 100.0, (6, 5)) * (rng.random((6, 1)) < 0.05)
        for member in members:
            made = member.step(tick(k, power_w, planned_w))
            if k >= 5:
                _check_ordered(made)


def test_a_flat_load_is_forecast_flat(model: LoadedModel) -> None:
    rng = np.random.default_rng(2)
    members = _members(model, 2)
    for k in range(600):
        x = tick(k, 300.0 + rng.normal(0.0, 0.5, 2))
        made = [(f"{i} {m.name}", m.step(x)) for i, m in enumerate(members)]
    for name, answer in made:
        assert np.abs(answer.value_w[:, :, 0] - 300.0).max() < 3.0, name
        assert answer.running_max_w[:, -1, -1].max() < 360.0, name


@pytest.mark.parametrize("quality", [0, Quality.SLOW_METER])
def test_an_outlet_that_is_off_is_forecast_off_from_the_start(model: LoadedModel, quality: int) -> None:
    mixture = default_mixture(3, model)
    power_w = np.array([0.0, 0.5, 0.0])
    planned_w = np.zeros((3, 5))
    planned_w[2, 3:] = 200.0
    interval_ticks = np.array(10 if quality else 1)
    highest = []
    for k in range(300):
        held = Quality.HELD if quality and k % 10 else 0
        x = tick(k, power_w, planned_w, quality=quality | held)
        highest.append(mixture.step(replace(x, interval_ticks=interval_ticks)).running_max_w)
    late = np.array(highest[4:])  # the first answer, and all others
    assert late[:, :2].max() < 0.01 * RATING_W
    announced_w = late[:, 2, 3:, 1]
    assert announced_w.min() >= 200.0
    assert announced_w.max() < 210.0
    power_w[0] = 100.0
    assert mixture.step(tick(300, power_w, planned_w)).running_max_w[0, -1, 1] >= 100.0


def test_bands_hold_their_share() -> None:
    """The 0.9 quantile of a noisy level is passed in one tick of ten, whatever the expert."""
    rng = np.random.default_rng(3)
    level = 200.0 + rng.normal(0.0, 10.0, (4000, 8))
    for member in [Mixture(8, alone=name) for name in ("persistence", "ewma", "ridge")]:
        passed = []
        for k in range(3990):
            made = member.step(tick(k, level[k]))
            if k > 1500:
                passed.append(level[k + 10] > made.value_w[:, 0, 1])
        assert np.mean(passed) == pytest.approx(0.1, abs=0.02)


def test_ridge_learns_a_ramp_that_persistence_cannot() -> None:
    members = {name: Mixture(1, alone=name) for name in ("ridge", "persistence")}
    off = dict.fromkeys(members, 0.0)
    power_w = 300.0 + 200.0 * np.sin(2.0 * np.pi * np.arange(1650) / 200.0)
    for k in range(1600):
        x = tick(k, power_w[k : k + 1])
        for name, member in members.items():
            made = member.step(x)
            if k > 800:
                off[name] += abs(float(made.value_w[0, 4, 0]) - power_w[k + 50])
    assert off["ridge"] < 0.3 * off["persistence"]


def test_announced_work_raises_every_forecast(model: LoadedModel) -> None:
    rng = np.random.default_rng(4)
    members = _members(model, 1)
    begins = 220
    for k in range(begins - 25):
        planned_w = 250.0 * (begins <= k + np.arange(10, 60, 10))[None]
        x = tick(k, 150.0 + rng.normal(0.0, 1.0, 1), planned_w)
        made = [(f"{i} {m.name}", m.step(x)) for i, m in enumerate(members)]
    for name, answer in made:
        assert answer.running_max_w[0, 2, 2] >= 390.0, name
        assert answer.running_max_w[0, 0, 0] < 200.0, name
        assert answer.value_w[0, 4, 0] > 300.0, name
        assert answer.running_max_w.max() <= RATING_W, name


def test_work_announced_late_raises_the_limit_at_once(model: LoadedModel) -> None:
    rng = np.random.default_rng(9)
    mixture = default_mixture(1, model)
    planned_w = np.array([[0.0, 250.0, 250.0, 250.0, 250.0]])
    for k in range(100):
        made = mixture.step(tick(k, 150.0 + rng.normal(0.0, 1.0, 1), planned_w if k == 99 else None))
    assert 390.0 <= made.running_max_w[0, 1, 2] <= RATING_W


def test_lstm_sees_a_burst_coming_after_two_periods(model: LoadedModel) -> None:
    """Bursts every 15 s: from the third on, the limit is asked for at least 1 s before the rise, in 9 of 10 cases."""
    rng = np.random.default_rng(5)
    n, period = 10, 150
    forecaster = LstmForecaster(model, n)
    ready = []
    for k in range(900):
        phase = (k + 13 * np.arange(n)) % period
        made = forecaster.step(tick(k, 150.0 + 250.0 * (phase < 40) + rng.normal(0.0, 2.0, n)))
        asked = (phase == period - 15) & (k > 2 * period + 20)
        ready.extend(made.running_max_w[asked, -1, -1] > 370.0)
    assert len(ready) >= 30
    assert np.mean(ready) >= 0.9


def test_lstm_beats_persistence_on_bursts(model: LoadedModel) -> None:
    rng = np.random.default_rng(6)
    n, period = 4, 120
    power_w = 150.0 + 250.0 * ((np.arange(1650)[:, None] + 29 * np.arange(n)) % period < 40)
    power_w = power_w + rng.normal(0.0, 2.0, power_w.shape)
    forecaster = LstmForecaster(model, n)
    ours = theirs = 0.0
    for k in range(1600):
        made = forecaster.step(tick(k, power_w[k]))
        if k > 400:
            ours += np.abs(made.value_w[:, -1, 0] - power_w[k + 50]).sum()
            theirs += np.abs(power_w[k] - power_w[k + 50]).sum()
    assert ours < 0.5 * theirs


def test_short_gap_is_bridged_and_long_gap_begins_afresh(model: LoadedModel) -> None:
    forecaster = LstmForecaster(model, 2)
    power_w = np.array([200.0, 300.0])
    broken = np.array([200.0, np.nan])
    answered = [np.isfinite(forecaster.step(tick(k, power_w)).value_w[:, 0, 0]) for k in range(20)]
    assert [bool(a.all()) for a in answered] == [False] * 4 + [True] * 16
    answered = [np.isfinite(forecaster.step(tick(20 + k, broken)).value_w[:, 0, 0]) for k in range(8)]
    assert [bool(a[1]) for a in answered] == [True] * 5 + [False] * 3
    assert all(a[0] for a in answered)
    answered = [np.isfinite(forecaster.step(tick(28 + k, power_w)).value_w[:, 0, 0]) for k in range(6)]
    assert [bool(a[1]) for a in answered] == [False] * 4 + [True] * 2


def test_an_outlet_does_not_disturb_another(model: LoadedModel) -> None:
    rng = np.random.default_rng(7)
    alone, beside = LstmForecaster(model, 1), LstmForecaster(model, 3)
    for k in range(200):
        power_w = np.array([200.0 + 50.0 * (k % 40 < 10), rng.uniform(0.0, 600.0), np.nan if k % 17 < 8 else 10.0])
        one, three = alone.step(tick(k, power_w[:1])), beside.step(tick(k, power_w))
    np.testing.assert_allclose(three.value_w[0], one.value_w[0], atol=1e-2)


def test_missed_ticks_begin_everything_afresh(model: LoadedModel) -> None:
    mixture = default_mixture(2, model)
    power_w = np.full(2, 100.0)
    for k in range(50):
        mixture.step(tick(k, power_w))
    assert mixture.step(tick(50, power_w)).source == ("mixture", "mixture")
    made = mixture.step(tick(80, power_w))
    assert np.isnan(mixture.latest["lstm"].value_w).all()
    assert np.isfinite(made.value_w).all()


def test_new_model_is_primed_beside_the_old_one_and_takes_over(model: LoadedModel) -> None:
    rng = np.random.default_rng(8)
    swapped, straight = LstmForecaster(model, 2), LstmForecaster(model, 2)
    other = replace(model, name="other")
    signal = 200.0 + rng.normal(0.0, 30.0, (400, 2))
    stream = InputStream(2)
    h = c = np.zeros((1, 2, model.hidden), np.float32)
    took = 0
    for k in range(400):
        if k == 260:
            swapped.swap(other)
        one, two = swapped.step(tick(k, signal[k])), straight.step(tick(k, signal[k]))
        seen = stream.step(tick(k, signal[k]))
        if k >= 60:  # the 200 ticks that the new model is run over begin here
            y, h, c = model.run(seen.columns, h, c)
        if swapped.priming:
            took += 1
            np.testing.assert_array_equal(one.value_w, two.value_w)
    assert swapped.model.name == "other"
    assert took == 49  # 200 ticks of past, 5 a tick, the oldest dropped in each tick
    median_w = seen.base_w[:, None] + y.reshape(2, 2, 5, 3)[:, 0, :, 0] * seen.scale_w[:, None]
    np.testing.assert_allclose(one.value_w[:, :, 0], median_w, atol=1e-3)


class Broken:
    """Wraps a forecaster and does to its answer what the test says."""

    name = "broken"

    def __init__(self, n: int, clock: ManualClock) -> None:
        self._inner = Mixture(n, alone="persistence")
        self._clock = clock
        self.fault = ""
        self.resets = 0

    def reset(self, outlets: BoolArray | None = None) -> None:
        self.resets += 1

    def step(self, x: ForecastInput) -> Forecast:
        made = replace(self._inner.step(x), source=("broken",) * len(x.power_w))
        if self.fault == "nan":
            made.value_w[1, 2, 0] = np.nan
        elif self.fault == "high":
            made.running_max_w[1, 4, 2] = 1.6 * RATING_W
        elif self.fault == "negative":
            made.value_w[1, 0, 0] = -1.0
        elif self.fault == "old":
            made = replace(made, t_mono_ns=made.t_mono_ns - TICK_NS)
        elif self.fault == "slow":
            self._clock.advance(0.06)
        elif self.fault == "raises":
            raise ModelError("onnxruntime failed")
        return made


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        ("", (True, True)),
        ("nan", (True, False)),
        ("high", (True, False)),
        ("negative", (True, False)),
        ("old", (False, False)),
        ("slow", (False, False)),
        ("raises", (False, False)),
    ],
)
def test_a_network_that_cannot_be_used_sleeps_per_outlet(fault: str, heard: tuple[bool, bool]) -> None:
    clock = ManualClock()
    network = Broken(2, clock)
    mixture, alone = Mixture(2, network, clock), Mixture(2, network, clock, alone="lstm")
    power_w = np.array([100.0, 200.0])
    for k in range(3):
        assert mixture.step(tick(k, power_w)).source == ("mixture", "mixture")
        assert (mixture.weights["lstm"] > 0.0).all()
    network.fault = fault
    made = mixture.step(tick(3, power_w))
    assert made.source == ("mixture", "mixture")
    assert np.isfinite(made.value_w).all()
    assert tuple(np.isfinite(mixture.latest["lstm"].value_w[:, 0, 0])) == heard
    assert tuple(mixture.weights["lstm"] > 0.0) == heard
    assert sum(mixture.weights.values()) == pytest.approx(np.ones(2))
    assert (mixture.reason != "") == (fault in ("old", "slow", "raises"))
    assert mixture.counts == {"mixture": 8, "none": 0}
    answered = alone.step(tick(3, power_w))
    assert answered.source == tuple("lstm" if there else "persistence" for there in heard)
    assert np.isfinite(answered.value_w).all()


def test_a_network_that_is_late_again_and_again_is_rested() -> None:
    clock = ManualClock()
    network = Broken(1, clock)
    mixture = Mixture(1, network, clock)
    network.fault = "slow"
    for k in range(3):
        mixture.step(tick(k, np.array([100.0])))
    spent_ns = clock.mono_ns()
    network.fault = ""
    heard = []
    for k in range(REST_TICKS + 1):
        mixture.step(tick(3 + k, np.array([100.0])))
        heard.append(mixture.weights["lstm"][0] > 0.0)
    assert heard == [False] * REST_TICKS + [True]
    assert clock.mono_ns() == spent_ns
    assert network.resets == 1


def test_without_a_reading_nobody_answers(model: LoadedModel) -> None:
    mixture = default_mixture(2, model)
    for k in range(10):
        made = mixture.step(tick(k, np.array([100.0, np.nan])))
    assert made.source == ("mixture", "none")
    assert np.isnan(made.value_w[1]).all()
    assert np.isnan(made.running_max_w[1]).all()


def test_without_a_model_the_others_are_mixed() -> None:
    mixture = default_mixture(1, None)
    assert mixture.step(tick(0, np.array([100.0]))).source == ("mixture",)
    assert mixture.reason == "no model"
    assert mixture.model is None
    assert "lstm" not in mixture.latest


def test_a_refused_model_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        default_mixture(1, tmp_path)


def test_the_network_steps_at_fresh_readings_and_its_answer_stands_between(model: LoadedModel) -> None:
    """An outlet with a board beside two of slow meters: each is forecast as it would be alone, read by read."""
    interval_ticks, phase = np.array([1, 20, 50]), np.array([0, 7, 13])
    rng = np.random.default_rng(8)
    signal = 200.0 + 100.0 * (np.arange(1500)[:, None] % 230 < 90) + rng.normal(0.0, 5.0, (1500, 3))
    together = LstmForecaster(model, 3)
    alone = [LstmForecaster(model, 1) for _ in range(3)]
    said = [np.full((5, 3), np.nan)] * 3
    for k in range(1500):
        read_at = (k - phase) // interval_ticks * interval_ticks + phase
        power_w = np.where(read_at >= 0, signal[read_at, np.arange(3)], np.nan)
        held = np.where(read_at != k, Quality.HELD, 0)
        x = replace(tick(k, power_w), quality=held, interval_ticks=interval_ticks)
        made = together.step(x)
        for i in range(3):
            if read_at[i] == k:
                own = replace(tick(k, power_w[[i]]), interval_ticks=interval_ticks[[i]])
                said[i] = alone[i].step(own).running_max_w[0]
            np.testing.assert_allclose(made.running_max_w[i], said[i], rtol=1e-5, atol=1e-2)
    assert together.seen is not None
    np.testing.assert_array_equal(together.seen.period.lag_ticks % interval_ticks, 0)
