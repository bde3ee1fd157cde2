"""What comes of a training: the order for it, the lock on it, and the decision on its candidate."""

import contextlib
import fcntl
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import Config
from rpi_daemon.durable import create, create_folder
from rpi_daemon.errors import LockedError, ModelError, RpiError
from rpi_daemon.models.library import Choice, Library
from rpi_daemon.retrain.gate import verdict
from rpi_daemon.retrain.launch import listener_of
from rpi_daemon.retrain.process import Result, Training

LOCK: Final = "training.lock"
UPDATES: Final = 400  # of the network per round
DAY_NS: Final = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Decision:
    """promoted: it forecasts. kept: it won, on too short a history to stand by itself. rejected, not_trained: see `reasons`."""

    outcome: Literal["promoted", "kept", "rejected", "not_trained"]
    model: str
    sha256: str
    incumbent: str
    reasons: tuple[str, ...]
    scores: dict[str, Any] | None
    material: dict[str, Any]
    peak_mb: float
    took_s: float
    not_confined: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For the event and the command line."""
        return asdict(self)


@contextlib.contextmanager
def training_lock(library: Library) -> Iterator[None]:
    """One training per state folder, whoever began it. Raises LockedError, ModelError."""
    try:
        create_folder(library.folder)
        file = open(create(library.folder / LOCK, 0), "w")  # noqa: SIM115  closed below
    except OSError as error:
        raise ModelError(f"{library.folder}: {error.strerror}; the daemon's user must own daemon.state_dir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockedError(f"{library.folder}: a training runs already; wait for its end") from None
        yield


def why_never(config: Config) -> str:
    """Why this daemon cannot learn at all; empty when it can."""
    if not config.history.enabled:
        return "history.enabled is false: there is nothing to learn from"
    if importlib.util.find_spec("onnx") is None:
        return "the package onnx is not installed: pip install 'rpi-daemon[train]'"
    return ""


def prepare(
    config: Config, incumbent: Path, library: Library, utc_ns: int, name: str, *, candidate: Path | None = None
) -> Training:
    """A training on the last `retrain.history_days`; with `candidate`, a model's directory, it is only judged.

    Raises RpiError where nothing is stored.
    """
    folder = config.path(config.daemon.state_dir) / config.history.folder
    if not folder.is_dir():
        raise RpiError(f"{folder}: no history is there; it begins when the daemon runs with history.enabled = true")
    order = {
        "history": str(folder.resolve()),
        "rack": config.rack.id,
        "ratings_w": {outlet.id: outlet.rating_w for outlet in config.outlets()},
        "from_ns": utc_ns - round(config.retrain.history_days * DAY_NS),
        "to_ns": utc_ns,
        "seed": 1,
        "updates": UPDATES,
        "incumbent": str(incumbent.resolve()),
        "candidate": None if candidate is None else str(candidate.resolve()),
        "out": str((library.folder / name).resolve()),
        "name": name,
    }
    # models to compare may lie anywhere: the unit reads its own state folder
    listener = None if candidate is not None else listener_of(config.path(config.daemon.runtime_dir))
    return Training(order, memory_mb=config.retrain.memory_mb, minutes=config.retrain.minutes, listener=listener)


def new_name(library: Library, utc_ns: int) -> str:
    """A name by the time, so that names sort by age."""
    name = datetime.fromtimestamp(utc_ns / NS_PER_S, UTC).strftime("learned-%Y%m%d-%H%M%S")
    while name in library.names():
        name += "x"
    return name


def decide(config: Config, choice: Choice, result: Result) -> Decision:
    """Who may stand after a training."""
    outcome: Literal["promoted", "kept", "rejected", "not_trained"] = "promoted"
    reasons: tuple[str, ...] = ()
    stored_days = float(result.material["stored_h"]) / 24.0
    if result.scores is None:
        outcome, reasons = "not_trained", (result.why_not,)
    elif reasons := verdict(result.scores):
        outcome = "rejected"
    elif stored_days < config.retrain.min_history_days:
        outcome = "kept"
        reasons = (
            f"it won, but {stored_days:.3g} days of history are less than retrain.min_history_days ="
            f" {config.retrain.min_history_days:g}: `rpi-daemon model promote {result.name}` if it shall forecast",
        )
    return Decision(
        outcome, result.name, result.sha256, choice.name, reasons,
        None if result.scores is None else result.scores.to_json(), dict(result.material), result.peak_mb,
        result.took_s, result.not_confined,
    )  # fmt: skip


def tidy(library: Library, decision: Decision, out: Path, keep: int) -> None:
    """Delete what was rejected, and the oldest models."""
    if decision.outcome in ("rejected", "not_trained"):
        shutil.rmtree(out, ignore_errors=True)
    library.prune(keep)
