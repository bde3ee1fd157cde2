"""A night on virtual time with a real training: it begins when it may, ends when it must, promotes, and goes back."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from history_rig import CONFIG
from retrain_rig import keep_loads, layout_of

from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.mixture import Mixture
from rpi_daemon.models.network import LstmForecaster
from rpi_daemon.records import TICK_NS, ForecastInput
from rpi_daemon.retrain import decision, gate, task, watch
from rpi_daemon.retrain.standing import StandingModel, library_of
from rpi_daemon.retrain.task import LOOK_S, Learning

MINUTES = 40
NIGHT = datetime(2026, 11, 22, 2, 0)
N = 2


class NightClock(ManualClock):
    """Wall time moves with the virtual time, from two at night."""

    def utc_ns(self) -> int:
        return round(NIGHT.astimezone().timestamp()) * NS_PER_S + self.mono_ns()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(decision, "UPDATES", 60)
    text = f'[daemon]\nstate_dir = "state"\n[retrain]\nmin_history_days = 0.02\nhistory_days = 1.0\n{CONFIG}'
    made = parse_config(text, "c.toml", base_dir=tmp_path, env={"KEY": "a pass phrase"})
    begun_ns = round(NIGHT.astimezone().timestamp() - 60.0 * MINUTES) * NS_PER_S
    keep_loads(tmp_path / "state/history", N, MINUTES, layout=layout_of(N), t_ns=begun_ns)
    return made


class Night:
    """The daemon's side of learning, with its log."""

    def __init__(self, config: Config) -> None:
        self.clock = NightClock()
        self.standing = StandingModel(library_of(config), self.clock, recorded=False)
        self.forecaster = Mixture(N, LstmForecaster(self.standing.choose().model, N), self.clock)
        self.standing.attach(self.forecaster)
        self.learning = Learning(config, self.standing, self.clock, N)

    async def calm(self, seconds: float = 1000.0, load: float = 0.3) -> None:
        """Time goes by in NORMAL."""
        for _ in range(round(seconds / LOOK_S)):
            self.clock.advance(LOOK_S)
            self.learning.look(load, True)
            await asyncio.sleep(0)

    async def decided(self) -> None:
        """The training and what comes of it are over."""
        await self.until(lambda: self.learning.status()["last"] and self.learning.status()["training"] is None)
        await asyncio.sleep(0.05)

    async def until(self, true: Callable[[], Any]) -> None:
        """The training takes real time; virtual time stands still."""
        async with asyncio.timeout(240.0):
            while not true():  # noqa: ASYNC110  it is asked what a user may ask
                await asyncio.sleep(0.02)


def night(config: Config, act: Callable[[Night], Awaitable[None]]) -> list[dict[str, Any]]:
    """Run it to its end; what was logged."""

    async def run() -> None:
        made = Night(config)
        made.learning.begin()
        try:
            await act(made)
        finally:
            await made.learning.close()

    with structlog.testing.capture_logs() as logged:
        asyncio.run(run())
    return [dict(line) for line in logged]


def only(logged: list[dict[str, Any]], event: str) -> dict[str, Any]:
    (found,) = [line for line in logged if line["event"] == event]
    return found


def test_a_night_ends_with_one_decision_and_there_is_no_second_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "FEWEST", 1)

    async def act(made: Night) -> None:
        await made.calm(LOOK_S * 80)
        assert "less than 15 min" in str(made.learning.status()["waits_because"])
        await made.calm()
        await made.decided()
        await made.calm()
        assert "one training a night" in str(made.learning.status()["waits_because"])

    logged = night(config, act)
    decided = only(logged, "retrain.decided")
    assert (decided["outcome"], decided["reasons"]) == ("promoted", ())
    assert decided["scores"]["loss_vs"]["incumbent"] < 0.995
    promoted = only(logged, "model.promoted")
    assert (promoted["before"], promoted["model"]) == ("shipped", decided["model"])
    library = library_of(config)
    assert library.choose().name == decided["model"]
    assert library.choose().model.sha256 == decided["sha256"]
    again = night(config, lambda made: made.calm())
    assert [line["event"] for line in again if line["event"] == "retrain.began"] == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("load", "carries 90% of its derated rating"),
        ("state", "the state is not NORMAL"),
        ("stop", "the daemon stops"),
    ],
)
def test_a_training_ends_with_the_calm_and_leaves_nothing(
    config: Config, spoil: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "UPDATES", 10**6)

    async def act(made: Night) -> None:
        await made.calm()
        await made.until(lambda: made.learning.status()["training"])
        if spoil == "load":
            for _ in range(400):
                made.learning.look(0.9, True)
        elif spoil == "state":
            made.learning.look(0.3, False)
        else:
            made.learning.stop()
        await made.decided()

    logged = night(config, act)
    failed = only(logged, "retrain.failed")["error"]
    assert "the training was ended" in failed
    assert ("derated rating" if spoil == "load" else says) in failed
    assert library_of(config).names() == ["shipped"]


def test_a_poisoned_history_is_not_learned_from(config: Config) -> None:
    def stuck(minute: int, power_w: np.ndarray, marks: np.ndarray) -> None:
        if minute >= 10:
            power_w[:] = 240.0
        if 10 <= minute < 36:
            power_w *= 1.0 + 5.0 * (minute % 5 == 0)

    folder = config.path("state") / "history"
    shutil.rmtree(folder)
    begun_ns = round(NIGHT.astimezone().timestamp() - 60.0 * MINUTES) * NS_PER_S
    keep_loads(folder, N, MINUTES, layout=layout_of(N), t_ns=begun_ns, spoil=stuck)

    async def act(made: Night) -> None:
        await made.calm()
        await made.decided()

    decided = only(night(config, act), "retrain.decided")
    assert decided["outcome"] == "not_trained"
    assert library_of(config).choose().name == "shipped"


def test_a_promotion_that_does_worse_is_rolled_back_by_itself(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WARM_UP_TICKS", 100)
    monkeypatch.setattr(watch, "BLOCK_TICKS", 50)
    monkeypatch.setattr(watch, "FEWEST_BLOCKS", 6)
    library = library_of(config)
    shutil.copytree(SHIPPED, library.folder / "bad")

    async def act(made: Night) -> None:
        await made.learning.decided({"outcome": "promoted", "model": "bad"})
        assert made.learning.status()["watch"] is not None
        rng = np.random.default_rng(1)
        for k in range(800):
            power_w = 200.0 + 40.0 * np.sign(np.sin(k / 20.0 + np.arange(N))) + rng.standard_normal(N)
            x = ForecastInput(
                (k + 1) * TICK_NS, 0.0, power_w, np.full(N, np.nan), np.zeros(N), np.ones(N, np.bool_),
                np.full(N, 700.0), np.zeros((N, 5)), np.zeros((N, 4)), np.zeros((N, 4)),
            )  # fmt: skip
            made.forecaster.step(x)
            made.learning.tick(x, Spoiled(made.forecaster))
        await made.until(lambda: made.standing.name == "shipped")

    logged = night(config, act)
    back = only(logged, "model.rolled_back")
    assert (back["model"], back["before"]) == ("shipped", "bad")
    assert "x that of the model before it" in back["reason"]
    assert library.choose().name == "shipped"


class Spoiled:
    """A forecaster whose network errs by 40 W."""

    reason = ""

    def __init__(self, forecaster: Mixture) -> None:
        said = forecaster.latest["lstm"]
        self.latest = {"lstm": type(said)(said.t_mono_ns, said.value_w + 40.0, said.running_max_w + 40.0, said.source)}


def test_a_candidate_that_is_damaged_after_the_gate_is_never_swapped_in(config: Config) -> None:
    library = library_of(config)
    bad = Path(shutil.copytree(SHIPPED, library.folder / "bad"))
    content = bytearray((bad / "model.onnx").read_bytes())
    content[-3] ^= 1
    (bad / "model.onnx").write_bytes(bytes(content))

    async def act(made: Night) -> None:
        with pytest.raises(task.RpiError, match="sha256 differs"):
            await made.learning.decided({"outcome": "promoted", "model": "bad"})
        assert made.standing.name == "shipped"
        assert made.forecaster.model is not None
        assert made.forecaster.model.path == SHIPPED

    night(config, act)
    assert library.choose().name == "shipped"


def test_another_model_in_the_place_of_the_one_that_was_judged_does_not_stand(config: Config) -> None:
    library = library_of(config)
    shutil.copytree(SHIPPED, library.folder / "good")

    async def act(made: Night) -> None:
        with pytest.raises(ModelError, match="not the model that was judged"):
            await made.learning.decided({"outcome": "promoted", "model": "good", "sha256": 64 * "0"})
        assert made.standing.name == "shipped"

    night(config, act)
    assert library.choose().name == "shipped"


def test_a_watch_goes_on_after_a_restart_and_ends_in_its_time(config: Config) -> None:
    library = library_of(config)
    shutil.copytree(SHIPPED, library.folder / "good")
    night(config, lambda made: made.learning.decided({"outcome": "promoted", "model": "good"}))

    async def act(made: Night) -> None:
        await made.until(lambda: made.learning.status()["watch"])
        made.clock.advance(25 * 3600.0)
        x = ForecastInput(
            TICK_NS, 0.0, np.full(N, 100.0), np.full(N, np.nan), np.zeros(N), np.ones(N, np.bool_), np.full(N, 700.0),
            np.zeros((N, 5)), np.zeros((N, 4)), np.zeros((N, 4)),
        )  # fmt: skip
        made.forecaster.step(x)
        made.learning.tick(x, made.forecaster)
        await made.until(lambda: library.standing().watch_until_utc_ns == 0)

    assert only(night(config, act), "model.stays")["model"] == "good"
    assert json.loads((library.folder / "standing.json").read_text())["current"] == "good"


def test_a_previous_model_that_fails_ends_the_watch_and_not_the_loop(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHIPPED, library_of(config).folder / "good")

    async def act(made: Night) -> None:
        await made.learning.decided({"outcome": "promoted", "model": "good"})
        await made.until(lambda: made.learning.status()["watch"])
        x = ForecastInput(
            TICK_NS, 0.0, np.full(N, 100.0), np.full(N, np.nan), np.zeros(N), np.ones(N, np.bool_), np.full(N, 700.0),
            np.zeros((N, 5)), np.zeros((N, 4)), np.zeros((N, 4)),
        )  # fmt: skip
        made.forecaster.step(x)

        def fails(*_: object) -> None:
            raise ModelError("onnxruntime failed")

        monkeypatch.setattr(LstmForecaster, "step", fails)
        made.learning.tick(x, made.forecaster)
        assert made.learning.status()["watch"] is None
        assert made.standing.name == "good"

    assert only(night(config, act), "model.not_watched")["error"] == "onnxruntime failed"
