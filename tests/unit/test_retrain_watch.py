"""The live watch: a worse network is found out beyond chance, a better or an equal one is not."""

import numpy as np
import pytest

from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import LoadedModel, load_model
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import TICK_NS, Forecast, ForecastInput
from rpi_daemon.retrain import watch
from rpi_daemon.retrain.watch import SILENT_TICKS, Watch

N = 3


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(SHIPPED)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WARM_UP_TICKS", 100)
    monkeypatch.setattr(watch, "BLOCK_TICKS", 50)
    monkeypatch.setattr(watch, "FEWEST_BLOCKS", 6)


def tick(k: int, rng: np.random.Generator) -> ForecastInput:
    power_w = 200.0 + 40.0 * np.sign(np.sin(k / 20.0 + np.arange(N))) + rng.standard_normal(N)
    return ForecastInput(
        k * TICK_NS, 0.0, power_w, np.full(N, np.nan), np.zeros(N), np.ones(N, np.bool_), np.full(N, 600.0),
        np.zeros((N, 5)), np.zeros((N, 4)), np.zeros((N, 4)),
    )  # fmt: skip


def worse(made: Forecast) -> Forecast:
    return Forecast(made.t_mono_ns, made.value_w + 30.0, made.running_max_w + 30.0, made.source)


@pytest.mark.parametrize("spoiled", [False, True])
def test_only_a_worse_network_is_found_out(model: LoadedModel, spoiled: bool) -> None:
    rng = np.random.default_rng(1)
    live, trial = LstmForecaster(model, N), Watch(model, N)
    said = ""
    for k in range(600):
        x = tick(k, rng)
        made = live.step(x)
        trial.step(x, worse(made) if spoiled else made, usable=True)
        said = said or trial.why_roll_back()
    assert trial.minutes > 6
    assert trial.loss_vs_previous is not None
    if spoiled:
        assert trial.loss_vs_previous > 1.1
        assert "x that of the model before it" in said
    else:
        assert trial.loss_vs_previous == pytest.approx(1.0, abs=0.02)
        assert said == ""


def test_a_network_without_usable_answers_is_sent_back_after_ten_seconds(model: LoadedModel) -> None:
    rng = np.random.default_rng(1)
    trial = Watch(model, N)
    for k in range(SILENT_TICKS):
        assert trial.why_roll_back() == ""
        trial.step(tick(k, rng), None, usable=False)
    assert trial.why_roll_back() == "no usable answer for 10 s"
