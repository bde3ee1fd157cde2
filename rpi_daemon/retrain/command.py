"""`rpi-daemon model ...`: looks at the models of a daemon and changes which one stands, whether or not it runs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Config
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.errors import ConfigError, NotRunningError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.library import SHIPPED_NAME, Library, Standing
from rpi_daemon.retrain.standing import library_of


def list_models(config_path: Path) -> tuple[dict[str, Any], str]:
    """Every model as a document and as a table."""
    library = library_of(read_config(config_path))
    rows = list(library.rows())
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{width}}  {row['standing']:8}  {_told(row)}" for row in rows]
    return {"schema": 1, "ok": True, "folder": str(library.folder), "models": rows}, "\n".join(lines)


def _told(row: dict[str, Any]) -> str:
    if not row["accepted"]:
        return f"refused: {row['refused_because']}"
    hours = "" if row["outlet_hours"] is None else f", {row['outlet_hours']:g} outlet hours of training"
    start = row["started_from"].split()
    return f"{row['sha256'][:12]}{hours}" + (f", from {start[0]}" if start and start[0] != "random" else "")


def directory_of(config_path: Path, name: str | None) -> Path:
    """The directory of a model by its name, or the directory that is named. Raises ModelError, ConfigError."""
    if name is None or name == SHIPPED_NAME:
        return SHIPPED
    if Path(name).is_dir():
        return Path(name)
    if not config_path.exists():
        raise ConfigError(f"{name}: no such directory, and {config_path} is not there to tell which models there are")
    return library_of(read_config(config_path)).path(name)


def promote(config_path: Path, name: str, reason: str) -> tuple[dict[str, Any], str]:
    """Let a model stand. Raises ModelError."""
    return _change(config_path, "model_promote", {"name": name, "reason": reason}, lambda x: x.promote(name, _now_ns()))


def roll_back(config_path: Path, reason: str) -> tuple[dict[str, Any], str]:
    """Let the previous model stand again. Raises ModelError."""
    return _change(config_path, "model_roll_back", {"reason": reason}, lambda x: x.roll_back(_now_ns()))


def _change(
    config_path: Path, command: str, fields: dict[str, str], alone: Callable[[Library], Standing]
) -> tuple[dict[str, Any], str]:
    """By the daemon if one runs, which swaps at once; else in the files, for its next start."""
    config = read_config(config_path)
    try:
        daemon = daemon_of(config)
    except NotRunningError:
        found = alone(library_of(config))
        answer = {"schema": 1, "ok": True, "current": found.current, "previous": found.previous, "daemon": False}
        return answer, f"{found.current} stands from the next start on; before it {found.previous}"
    with daemon:
        answer = daemon.ask(command, **fields)
    return answer, f"{answer['current']} forecasts; before it {answer['previous']}"


def daemon_of(config: Config) -> ControlClient:
    """A connection to the daemon that runs with this configuration. Raises NotRunningError."""
    return ControlClient(config.path(config.daemon.runtime_dir) / SOCKET_NAME)


def _now_ns() -> int:
    return time.time_ns()
