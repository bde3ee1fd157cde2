"""The shipped model says what it was made of, and earns its place on the series held back from it."""

import math

import pytest

from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import describe

TOLD = describe(SHIPPED)
RECORDED = [row for row in TOLD["scores"] if "mlperf" in row["set"] or "tracebase" in row["set"]]


def test_it_is_accepted_and_names_its_data_with_licences() -> None:
    assert TOLD["accepted"] is True, TOLD["refused_because"]
    licences = {row["name"]: row["licence"] for row in TOLD["training"]["data"]}
    assert licences["simulated workloads"] == "MIT"
    assert licences["mlperf_train_h100_nodes"] == "Apache-2.0"
    assert licences["tracebase_plugs_1hz"].startswith("ODbL-1.0")
    assert "g5k_server_ac_50hz" not in licences  # marked `evaluate`


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: str(row["set"]))
def test_it_is_nowhere_much_worse_than_persistence_and_the_best_margin(row: dict[str, float]) -> None:
    assert row["mae_network"] < 1.05 * row["mae_persistence"]
    assert row["pinball_99_network"] < 1.05 * row["pinball_99_margin"]


def test_over_the_groups_held_back_it_beats_both() -> None:
    for ours, theirs, most in (
        ("mae_network", "mae_persistence", 0.9),
        ("pinball_99_network", "pinball_99_margin", 0.7),
    ):
        assert math.prod(row[ours] / row[theirs] for row in RECORDED) ** (1 / len(RECORDED)) < most


def test_every_source_is_scored_at_each_rate_it_was_trained_at() -> None:
    scored = {row["set"] for row in TOLD["scores"]}
    for name in ("simulated workloads", "small loads", "random loads"):
        assert {f"held back: {name}, {rate}" for rate in ("at 100 ms", "at its own rate")} <= scored
    assert len(RECORDED) == 5


def test_it_foresees_simulated_workloads() -> None:
    for row in TOLD["scores"]:
        if "simulated" in row["set"]:
            assert row["mae_network"] <= 0.6 * row["mae_persistence"]
