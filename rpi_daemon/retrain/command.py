"""`rpi-daemon retrain` and `model ...`: trains, and changes which model stands, whether or not a daemon runs."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Config
from rpi_daemon.control import SOCKET_NAME, ControlClient
from rpi_daemon.errors import ConfigError, NotRunningError, RpiError
from rpi_daemon.history.chain import Event
from rpi_daemon.history.events import EventLog
from rpi_daemon.host import folder_lock
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.library import SHIPPED_NAME, Library, Standing
from rpi_daemon.models.manifest import load_model
from rpi_daemon.retrain.decision import Decision, decide, new_name, prepare, tidy, training_lock, why_never
from rpi_daemon.retrain.gate import INCUMBENT, MEMBERS, PERSISTENCE, RIDGE, verdict
from rpi_daemon.retrain.process import Result, Training
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


def retrain(config_path: Path, dry_run: bool, console: Console) -> tuple[dict[str, Any], str]:
    """Train now, judge, and let a winner stand; `dry_run` changes nothing. Raises RpiError."""
    config = read_config(config_path)
    if reason := why_never(config):
        raise RpiError(reason)
    library = library_of(config)
    with training_lock(library):
        choice = library.choose()
        utc_ns = _now_ns()
        name = new_name(library, utc_ns)
        out = library.folder / name
        result = _with_a_bar(prepare(config, choice.model.path, library, utc_ns, name), console)
        decision = decide(config, choice, result)
        try:
            if not dry_run:
                _carry_out(config, library, decision)
        finally:
            tidy(
                library, replace(decision, outcome="rejected") if dry_run else decision, out, config.retrain.keep_models
            )
    document = {"schema": 1, "ok": True, "dry_run": dry_run, **decision.to_json()}
    return document, told(decision, dry_run)


def compare(config_path: Path, name: str, other: str | None, console: Console) -> tuple[dict[str, Any], str]:
    """Two models on the newest fifth of the stored history, as the gate would judge them; nothing is changed.

    Raises RpiError.
    """
    config = read_config(config_path)
    library = library_of(config)
    against = library.choose().name if other is None else other
    judged, measure = (directory_of(config_path, name) for name in (name, against))
    for path in (judged, measure):
        load_model(path)  # a damaged one is refused here, by name
    result = _with_a_bar(prepare(config, measure, library, _now_ns(), name, candidate=judged), console)
    if result.scores is None:
        raise RpiError(result.why_not)
    scores, reasons = result.scores.to_json(), verdict(result.scores)
    document = {
        "schema": 1,
        "ok": True,
        "model": name,
        "against": against,
        "better": not reasons,
        "reasons": reasons,
        "scores": scores,
        "material": dict(result.material),
    }
    rows = [{"name": "all", **scores}, *scores["classes"]]
    words = "; ".join(reasons) or "it would win at the gate"
    lines = [f"{name} (candidate) against {against} (incumbent), {scores['hours']:.3g} outlet hours"]
    return document, "\n".join([*lines, *map(_scores_told, rows), words])


def plan_told(status: dict[str, Any] | None) -> str:
    """What the daemon is up to, for a person."""
    if status is None:
        return "no network forecasts in this run, or it is recorded: nothing is trained"
    training, watch, last = status["training"], status["watch"], status["last"]
    lines = [
        f"training now: {training['stage']}, {training['done']:.0%}"
        if training is not None
        else f"no training now: {status['waits_because'] or 'one may begin'}"
    ]
    if last is not None:
        lines.append(f"the last one: {last['outcome']} {last.get('model', '')}  {'; '.join(last['reasons'])}".rstrip())
    if watch is not None:
        ratio = watch["loss_vs_previous"]
        lines.append(
            f"on trial: live loss {'not known yet' if ratio is None else f'{ratio:.3f} x'} that of the model before it,"
            f" {watch['minutes']} minutes"
        )
    return "\n".join([*lines, "`rpi-daemon retrain --now` trains at once"])


def _with_a_bar(training: Training, console: Console) -> Result:
    """In a thread, so that Ctrl-C ends the training and not only the wait for it."""
    found: list[Result | RpiError] = []
    columns = (TextColumn("{task.description:9}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def run() -> None:
            try:
                found.append(training.run(lambda stage, done: bar.update(task, description=stage, completed=done)))
            except RpiError as error:
                found.append(error)

        thread = threading.Thread(target=run, name="training")
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            training.cancel("Ctrl-C")
            thread.join()
    if isinstance(found[0], RpiError):
        raise found[0]
    return found[0]


def _carry_out(config: Config, library: Library, decision: Decision) -> None:
    """By the daemon if one runs: the event is its own, and it swaps at once. Else both in the files."""
    try:
        daemon = daemon_of(config)
    except NotRunningError:
        pass
    else:
        with daemon:
            daemon.ask("retrain_decided", decision=decision.to_json())
        return
    with _nobody_else(config):
        events = EventLog(
            config.path(config.daemon.state_dir) / config.history.folder, keep_days=config.history.keep_events_days
        )
        try:
            now_ns = _now_ns()
            events.append(
                [Event(now_ns, time.monotonic_ns(), "retrain.decided", json.loads(json.dumps(decision.to_json())))]
            )
        finally:
            events.close()
        if decision.outcome == "promoted":
            watch_ns = round(config.retrain.watch_hours * 3600 * NS_PER_S)
            library.promote(decision.model, now_ns, watch_ns=watch_ns, sha256=decision.sha256)


@contextlib.contextmanager
def _nobody_else(config: Config) -> Iterator[None]:
    """Events have one writer. Raises LockedError where a daemon has begun meanwhile."""
    with folder_lock(config.path(config.daemon.state_dir), "state_dir"):
        yield


def told(decision: Decision, dry_run: bool) -> str:
    """The decision for a person."""
    material = decision.material
    left_out = ", ".join(f"{name} {hours:.3g} h" for name, hours in material["left_out_outlet_h"].items()) or "nothing"
    lines = [
        f"history: {material['stored_h']:.3g} h, {material['used_outlet_h']:.3g} outlet hours nominal; left out: {left_out}",
        *material["notes"],
    ]
    if decision.scores is not None:
        lines.append(
            f"{material['learn_spans']} spans of {material['span_s']:g} s learned from, {decision.scores['spans']} newer ones"
            f" judged: {decision.took_s:.0f} s, {decision.peak_mb:.0f} MB"
        )
        rows = [{"name": "all", **decision.scores}, *decision.scores["classes"]]
        lines += [_scores_told(row) for row in rows]
    verb = {"promoted": "PROMOTED", "kept": "KEPT", "rejected": "REJECTED", "not_trained": "NOT TRAINED"}[
        decision.outcome
    ]
    reasons = "; ".join(decision.reasons) or f"it forecasts in place of {decision.incumbent}"
    lines.append(f"{verb}{f' {decision.model}' if decision.model else ''}: {reasons}")
    if dry_run:
        lines.append("dry run: nothing was changed, and the candidate is deleted")
    lines += [f"not confined: {sentence}" for sentence in decision.not_confined]
    return "\n".join(lines)


def _scores_told(row: dict[str, Any]) -> str:
    versus = ", ".join(f"{row['loss_vs'][name]:.3f} x {name}" for name in (INCUMBENT, PERSISTENCE, RIDGE))
    escapes = f"escapes {row['escape_rate'][MEMBERS[0]]:.2%} (incumbent {row['escape_rate'][INCUMBENT]:.2%})"
    return f"  {row['name']:12} {row['spans']:4} spans: loss {versus}; {escapes}"
