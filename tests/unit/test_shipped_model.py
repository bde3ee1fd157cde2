"""The shipped model says what it was made of, and earns its place on the series held back from it."""

import pytest

from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import describe

TOLD = describe(SHIPPED)


def test_it_is_accepted_and_names_its_data_with_licences() -> None:
    assert TOLD["accepted"] is True, TOLD["refused_because"]
    licences = {row["name"]: row["licence"] for row in TOLD["training"]["data"]}
    assert licences["simulated workloads"] == "MIT"
    assert licences["mlperf_train_h100_nodes"] == "Apache-2.0"
    assert licences["tracebase_plugs_1hz"].startswith("ODbL-1.0")
    assert "g5k_server_ac_50hz" not in licences  # marked `evaluate`


@pytest.mark.parametrize("row", TOLD["scores"], ids=lambda row: str(row["set"]))
def test_it_beats_persistence_on_every_group_held_back(row: dict[str, float]) -> None:
    assert row["mae_5s_w_lstm"] < row["mae_5s_w_persistence"]
    assert row["running_max_pinball_99_w_lstm"] < row["running_max_pinball_99_w_persistence"]
    if row["set"] == "held back: simulated workloads":
        assert row["mae_5s_w_lstm"] <= 0.6 * row["mae_5s_w_persistence"]


def test_every_baseline_is_scored() -> None:
    assert len(TOLD["scores"]) == len(TOLD["training"]["data"])
    for row in TOLD["scores"]:
        for name in ("lstm", "ridge", "ewma", "persistence"):
            assert row[f"mae_5s_w_{name}"] > 0.0
