"""Another model takes over while the daemon runs, and goes again; a damaged one never does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario_rack import Daemon, Place, RackProcess, cli, running

from rpi_daemon.models.forecaster import SHIPPED


@pytest.fixture
def models(place: Place) -> Iterator[Path]:
    folder = place.folder / "state" / "models"
    for name in ("night-1", "night-2"):
        shutil.copytree(SHIPPED, folder / name)
    content = bytearray((folder / "night-2" / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "night-2" / "model.onnx").write_bytes(bytes(content))
    yield folder
    shutil.rmtree(folder)


def asked(config: Path, *words: str) -> dict[str, object]:
    done = cli(config, *words, "--json")
    document: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode == 0) is document["ok"], done.stderr
    return document


def test_promoted_and_rolled_back_while_it_runs(place: Place, rack: RackProcess, models: Path) -> None:
    config = place.write()
    with running(lambda: Daemon(config)) as daemon:
        daemon.normal()
        assert daemon.status()["forecast"]["model"] == "shipped"
        assert asked(config, "model", "promote", "night-1", "--reason", "a try")["previous"] == "shipped"
        promoted = daemon.logged("model.promoted")
        assert (promoted["model"], promoted["before"], promoted["reason"]) == ("night-1", "shipped", "a try")
        refused = asked(config, "model", "promote", "night-2")
        assert "sha256 differs" in str(refused["error"])
        assert daemon.status()["forecast"]["model"] == "night-1"
        before = daemon.status()["summary"]["ticks"]
        daemon.until(lambda s: s["summary"]["ticks"] > before + 50, "the swap")
        assert {o["source"] for o in daemon.status()["outlets"]} == {"mixture"}
        assert asked(config, "model", "rollback")["current"] == "shipped"
        assert daemon.logged("model.rolled_back")["before"] == "night-1"
        assert asked(config, "model", "promote", "night-1")["ok"]
        assert daemon.stop() == 0
    with running(lambda: Daemon(config, name="again")) as daemon:
        assert daemon.normal()["forecast"]["model"] == "night-1"
        assert daemon.stop() == 0


def test_without_a_daemon_it_holds_from_the_next_start_and_a_damaged_one_is_passed_over(
    place: Place, rack: RackProcess, models: Path
) -> None:
    config = place.write()
    assert asked(config, "model", "promote", "night-1")["daemon"] is False
    (models / "night-1" / "manifest.toml").write_text("")
    rows = {row["name"]: row for row in asked(config, "model", "list")["models"]}  # type: ignore[attr-defined]
    assert (rows["night-1"]["standing"], rows["night-1"]["accepted"]) == ("current", False)
    with running(lambda: Daemon(config, name="refusing")) as daemon:
        status = daemon.normal()
        assert status["forecast"]["model"] == "shipped"
        assert "model_fallback" not in status["causes"]
        assert daemon.logged("model.refused")["doing"] == "shipped forecasts"
        assert "model_refused" in {alarm["id"] for alarm in status["alarms"]}
        assert daemon.stop() == 0


def test_a_recorded_run_keeps_its_model_and_replays_with_it(place: Place, rack: RackProcess, models: Path) -> None:
    config = place.write()
    assert asked(config, "model", "promote", "night-1")["ok"]
    folder = place.folder / "recording"
    with running(lambda: Daemon(config, "--record", str(folder), name="recorded")) as daemon:
        status = daemon.normal()
        assert "recorded" in str(asked(config, "model", "promote", "shipped")["error"])
        daemon.until(lambda s: s["summary"]["ticks"] > status["summary"]["ticks"] + 20, "20 ticks")
        assert daemon.stop() == 0
    shutil.rmtree(models / "night-1")
    replayed = cli(config, "dry-run", "--recording", str(folder), "--json", timeout_s=60.0)
    assert json.loads(replayed.stdout.splitlines()[-1])["same"] is True
