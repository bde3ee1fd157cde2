"""The training process: a candidate from a real history, and every way in which it ends without one."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from retrain_rig import MINUTE_NS, T0, keep_loads, ratings_of

from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import load_model
from rpi_daemon.retrain.confine import network_of
from rpi_daemon.retrain.process import Training, TrainingError

PATIENCE_MIN = 3.0  # a busy machine


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history")
    keep_loads(folder, 6, 40)
    return folder


def order(history: Path, out: Path, **changes: object) -> dict[str, object]:
    return {
        "history": str(history), "rack": "rack", "ratings_w": ratings_of(6), "from_ns": T0 - MINUTE_NS,
        "to_ns": T0 + 10**4 * MINUTE_NS, "seed": 1, "updates": 12, "incumbent": str(SHIPPED), "out": str(out),
        "name": out.name, **changes,
    }  # fmt: skip


def test_a_candidate_with_scores_that_passes_every_check(history: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []
    training = Training(order(history, tmp_path / "night"), memory_mb=500.0, minutes=PATIENCE_MIN)
    result = training.run(lambda stage, done: heard.append((stage, done)))
    assert result.scores is not None
    assert result.scores.spans == 24
    assert load_model(tmp_path / "night").sha256 == result.sha256
    assert 50.0 < result.peak_mb < 500.0
    stages = [stage for stage, _ in heard]
    assert sorted(set(stages), key=stages.index) == ["reading", "training", "judging"]
    assert [done for _, done in heard] == sorted(done for _, done in heard)
    assert result.material["stored_h"] == pytest.approx(40 / 60, abs=1e-3)


def test_the_same_order_makes_the_same_candidate(history: Path, tmp_path: Path) -> None:
    made = [
        Training(order(history, tmp_path / name, name="night"), memory_mb=500.0, minutes=PATIENCE_MIN).run().sha256
        for name in ("a", "b")
    ]
    assert made[0] == made[1]


def fails(order: Mapping[str, Any], says: str, *, memory_mb: float = 500.0, minutes: float = PATIENCE_MIN) -> None:
    with pytest.raises(TrainingError, match=says):
        Training(order, memory_mb=memory_mb, minutes=minutes).run()


def test_a_killed_training_leaves_no_model_that_would_be_taken(history: Path, tmp_path: Path) -> None:
    training = Training(order(history, tmp_path / "night", updates=100_000), memory_mb=500.0, minutes=PATIENCE_MIN)

    def kill(stage: str, done: float) -> None:
        if stage == "training":
            training.cancel("the hours are over")

    with pytest.raises(TrainingError, match="was ended: the hours are over"):
        training.run(kill)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(tmp_path / "night")


def test_cancelled_before_it_began(history: Path, tmp_path: Path) -> None:
    training = Training(order(history, tmp_path / "night"), memory_mb=500.0, minutes=PATIENCE_MIN)
    training.cancel("the daemon stops")
    with pytest.raises(TrainingError, match="the daemon stops"):
        training.run()


def test_a_passed_time_limit_ends_it(history: Path, tmp_path: Path) -> None:
    fails(order(history, tmp_path / "night", updates=10**6), "longer than 0.02 minutes", minutes=0.02)


def test_a_passed_memory_limit_ends_it(history: Path, tmp_path: Path) -> None:
    fails(order(history, tmp_path / "night"), "memory|Memory|failed|ended", memory_mb=90.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"incumbent": "/nowhere"}, "ModelError: /nowhere"),
        ({"out": "/proc/nobody/may/write"}, "the training failed"),
        ({"ratings_w": 3}, "the training failed"),
    ],
)
def test_what_goes_wrong_inside_is_one_sentence(
    history: Path, tmp_path: Path, changes: Mapping[str, object], says: str
) -> None:
    fails({**order(history, tmp_path / "night"), **changes}, says)


def test_a_process_that_is_killed_by_others_is_told(history: Path, tmp_path: Path) -> None:
    training = Training(order(history, tmp_path / "night", updates=10**6), memory_mb=500.0, minutes=PATIENCE_MIN)

    def kill(stage: str, done: float) -> None:
        os.kill(training._process.pid, signal.SIGKILL)  # type: ignore[union-attr]

    with pytest.raises(TrainingError, match=r"without a result \(exit code -9\)"):
        training.run(kill)


@pytest.mark.parametrize(
    "said",
    [
        "not json", "[1]", '{"result": {"material": 3}}', '{"result": 7}', '{"stage": "x"}', "", "[" * 100_000,
        '{"stage": "x", "done": 1' + 400 * "0" + "}",
    ],
)  # fmt: skip
def test_nonsense_from_the_process_is_no_result(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = tmp_path / "python"
    talker.write_text(f"#!/bin/sh\nread order\ncat <<'END'\n{said}\nEND\n")
    talker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(talker))
    with pytest.raises(TrainingError):
        Training({}, memory_mb=500.0, minutes=PATIENCE_MIN).run()


CONFINED = """
import json, os, resource, socket, sys
from rpi_daemon.retrain.confine import confine
refused = confine(os.getppid(), int(sys.argv[2]), 300.0, 60.0)
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1.0)
    network = True
except OSError:
    network = False
print(json.dumps([refused, network, os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0),
                  resource.getrlimit(resource.RLIMIT_DATA)[0], open("/proc/self/oom_score_adj").read().strip()]))
"""


def test_it_puts_itself_last_and_off_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-P", "-c", CONFINED, str(port), str(network_of())],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    refused, network, scheduler, nice, data, oom = json.loads(done.stdout)
    assert (scheduler, nice, data, oom) == (os.SCHED_IDLE, 19, 300 * 2**20, "500")
    assert network is any("network" in sentence for sentence in refused)


def test_it_dies_with_its_parent(history: Path, tmp_path: Path) -> None:
    """The parent is killed; the kernel ends the training."""
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, json.dumps(order(history, tmp_path / "night", updates=10**6))],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        ended = os.pidfd_open(child)
        try:
            parent.kill()
            assert select.select([ended], [], [], 30.0)[0], "the training outlived its parent"
        finally:
            os.close(ended)


PARENT = """
import json, sys
from rpi_daemon.retrain.process import Training
training = Training(json.loads(sys.argv[1]), memory_mb=500.0, minutes=3.0)
told = []
def heard(stage, done):
    if not told:
        told.append(1)
        print(training._process.pid, flush=True)
training.run(heard)
"""
