"""The command line. Every command takes --json where it prints a result; a user's mistake is one line and an exit code."""

import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from rich.console import Console

from rpi_daemon import __version__
from rpi_daemon.cli_calibrate import calibrate
from rpi_daemon.cli_options import (
    DEFAULT_CONFIG,
    JSON_WANTED,
    F,
    Number,
    TakesNegative,
    config_option,
    json_option,
    show,
    without_daemon_options,
)
from rpi_daemon.errors import AuthError, ConfigError, DeviceError, ModelError, NotRunningError, RpiError
from rpi_daemon.history.choices import FORMATS, WHAT
from rpi_daemon.host import coming_up

if TYPE_CHECKING:
    from rpi_daemon.config.schema import Config

TOP_PERIOD_S = 0.5
ANSWER_S = 10.0  # the daemon answers within
RELOAD_S = 60.0  # ... and to a reload: found limits may have to be put back on every PDU


class Commands(click.Group):
    """Turns typed errors into one clear line on stderr and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except RpiError as error:
            click.echo(str(error), err=True)
            if ctx.meta.get(JSON_WANTED):
                show({"schema": 1, "ok": False, "error": str(error), "exit_code": error.exit_code}, True, "")
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            ctx.exit(0)  # the reader of a pipe has seen enough

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PermissionError as error:
            if error.filename is None:
                raise
            may = "do this as root, as the daemon's user or as a member of its group"
            raise RpiError(f"{error.filename}: {error.strerror}; {may}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rpi-daemon")
def main() -> None:
    """Rack Power Interface: forecast every outlet's draw 5 s ahead and set its limit before the power is drawn."""


@main.command()
@config_option
@click.option("--record", type=click.Path(path_type=Path), help="New folder for a recording of the run.")
def run(config_path: Path, record: Path | None) -> None:
    """Run the daemon in the foreground (as systemd does)."""
    # Before NumPy is there: its second thread only spins at our sizes, on a core that the sampler may need (the design of
    # the window filters takes 6 ms with one thread, up to 200 ms with two on a busy machine).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with coming_up():
        from rpi_daemon.devices import load_checked
        from rpi_daemon.service import run_service

    sys.exit(run_service(load_checked(config_path), record=record))


@main.command("check-config")
@config_option
@click.option("--no-model", is_flag=True, help="Leave the model alone: `run` goes on without one that it refuses.")
@json_option
def check_config(config_path: Path, no_model: bool, as_json: bool) -> None:
    """Find every mistake in a configuration that can be found without hardware."""
    with coming_up():  # each start of the service waits for it
        from rpi_daemon.devices import load_checked

    config = load_checked(config_path)
    if not no_model:
        _check_model(config)
    outlets = config.outlets()
    writable = sum(row.closed_loop for row in outlets)
    document = {
        "schema": 1,
        "ok": True,
        "rack": config.rack.id,
        "mode": config.daemon.mode,
        "outlets": len(outlets),
        "opted_in": writable,
        "pdus": [pdu.id for pdu in config.pdu],
        "boards": [board.id for board in config.board],
    }
    show(
        document,
        as_json,
        f"{config_path}: good. Rack {config.rack.id}: {len(outlets)} outlets ({writable} opted in to closed loop),"
        f" {len(config.pdu)} PDUs, {len(config.board)} boards, mode {config.daemon.mode}.",
    )


def _check_model(config: "Config") -> None:
    from rpi_daemon.assembly import needs_model

    if needs_model(config):
        from rpi_daemon.models.forecaster import SHIPPED
        from rpi_daemon.models.manifest import load_model

        load_model(SHIPPED if config.forecast.model == "shipped" else config.path(config.forecast.model))


@main.command()
@click.argument("host")
@click.option("--port", type=click.IntRange(1, 65535), help="UDP port; 161 if not given.")
@click.option("--id", "pdu_id", default="pdu-a", show_default=True, help="What the configuration shall call it.")
@click.option("--unit", type=click.IntRange(0, 255), help="Place in a chain of PDUs.")
@click.option("--version", type=click.Choice(["3", "2c"]), default="3", show_default=True, help="2c is plain text.")
@click.option("--user", help="v3: user name.")
@click.option("--auth", type=click.Choice(["SHA-1", "SHA-256", "SHA-512"]), default="SHA-256", show_default=True)
@click.option("--auth-key-file", help="v3: file with the authentication pass phrase, mode 0600; or credential:NAME.")
@click.option("--auth-key-env", help="v3: or the environment variable that holds it.")
@click.option("--priv-key-file", help="v3: file with the encryption pass phrase, mode 0600; or credential:NAME.")
@click.option("--priv-key-env", help="v3: or the environment variable that holds it.")
@click.option("--community-file", help="2c: file with the community, mode 0600.")
@click.option("--community-env", help="2c: or the environment variable that holds it.")
@click.option("--timeout", "timeout_s", default=1.0, show_default=True, type=Number(0.02, 10.0), help="s.")
@click.option("--retries", default=2, show_default=True, type=click.IntRange(0, 5))
@click.option(
    "--rate",
    "requests_per_s",
    default=10.0,
    show_default=True,
    type=Number(0.5, 200.0),
    help="Requests per second at most; management cards are slow.",
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="New file for the configuration; printed if not given."
)
@json_option
def discover(
    host: str,
    pdu_id: str,
    timeout_s: float,
    retries: int,
    requests_per_s: float,
    output: Path | None,
    as_json: bool,
    **way_in: Any,
) -> None:
    """Ask the PDU at HOST what it is, what it meters and what can be written; make a configuration for it. Writes nothing to it."""
    from rpi_daemon.draft import discover_pdu

    keys = {"id": pdu_id, "host": host, "timeout_s": timeout_s, "retries": retries, **way_in}
    document, text = discover_pdu(keys, output, requests_per_s)
    show(document, as_json, text)


@main.command()
@click.option("--seconds", default=60.0, show_default=True, type=Number(5.0, 86_400.0), help="How long it runs.")
@click.option(
    "--outlets", default=24, show_default=True, type=click.IntRange(24, 48), help="Outlets of the simulated rack."
)
@click.option("--trace", type=click.Path(path_type=Path), help="Recorded power trace that drives the loads.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for its files; kept afterwards.")
@click.option("--no-hints", is_flag=True, help="The simulated job scheduler announces no work to the daemon.")
@json_option
def demo(seconds: float, outlets: int, trace: Path | None, keep: Path | None, no_hints: bool, as_json: bool) -> None:
    """Start a simulated rack and the real daemon against it, watch them, print a summary."""
    from rpi_daemon.demo import run_demo

    sys.exit(run_demo(seconds=seconds, outlets=outlets, trace=trace, keep=keep, hints=not no_hints, as_json=as_json))


@main.command()
@config_option
@click.option("--trace", type=click.Path(path_type=Path), help="Recorded power trace that drives the loads.")
@click.option(
    "--seed", default=1, show_default=True, type=click.IntRange(0, 2**31 - 1), help="Seed of the simulated loads."
)
@click.option(
    "--sensor-errors", is_flag=True, help="Sensors as they leave the factory: 3 % of gain, 2 degrees, offsets."
)
def sim(config_path: Path, trace: Path | None, seed: int, sensor_errors: bool) -> None:
    """Simulate the rack that a configuration describes: boards on ptys, PDUs on UDP ports. JSON lines on both pipes."""
    from rpi_daemon.simulate import run_simulation

    sys.exit(run_simulation(config_path, trace=trace, seed=seed, sensor_errors=sensor_errors))


@main.command("dry-run")
@config_option
@click.option(
    "--replay", type=click.Path(path_type=Path), help="Recorded trace (CSV or NPZ) instead of the live sensors."
)
@click.option(
    "--recording", type=click.Path(path_type=Path), help="Folder that `run --record` wrote: is the same decided again?"
)
@click.option("--seconds", type=Number(1.0, 864_000.0), help="Stop after this long (live: 60 s if not given).")
@json_option
def dry_run(
    config_path: Path, replay: Path | None, recording: Path | None, seconds: float | None, as_json: bool
) -> None:
    """What the daemon would do: the whole pipeline, nothing written. On live sensors, a recorded trace or a recorded run."""
    from rpi_daemon.dry_run import dry_run_live, dry_run_recording, dry_run_replay, recording_text, report_text

    if recording is not None:
        if replay is not None:
            raise click.UsageError("give --replay or --recording, not both")
        document = dry_run_recording(recording)
        show(document, as_json, recording_text(document))
        sys.exit(0 if document["same"] else 1)
    if replay is not None:
        explicit = (
            click.get_current_context().get_parameter_source("config_path") is not click.core.ParameterSource.DEFAULT
        )
        document = dry_run_replay(replay, config_path if explicit else None, seconds)
    else:
        document = dry_run_live(config_path, seconds or 60.0)
    show(document, as_json, report_text(document))


def client(config_path: Path, timeout_s: float = ANSWER_S) -> Any:
    """A connection to the daemon that runs with this configuration."""
    from rpi_daemon.control import SOCKET_NAME, ControlClient

    return ControlClient(folders(config_path)[1] / SOCKET_NAME, timeout_s)


def kill_switch(config_path: Path) -> Any:
    """The kill switch of the daemon with this configuration, running or not."""
    from rpi_daemon.guard import KILL_FILE, KillSwitch

    return KillSwitch(folders(config_path)[0] / KILL_FILE)


def folders(config_path: Path) -> tuple[Path, Path]:
    """State and runtime folder. With mistakes in the file, or without the service's file, its daemon is found nevertheless."""
    from rpi_daemon.config.load import read_config, read_folders
    from rpi_daemon.config.schema import Daemon

    try:
        config = read_config(config_path)  # an operator may not read the secrets
    except ConfigError:
        if config_path == Path(DEFAULT_CONFIG) and _gone(config_path):
            state, runtime = Path(Daemon().state_dir), Path(Daemon().runtime_dir)
        else:
            state, runtime = read_folders(config_path)
        if not (state.is_dir() and runtime.is_dir()):
            raise
        return state, runtime
    return config.path(config.daemon.state_dir), config.path(config.daemon.runtime_dir)


def _gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


@main.command()
@config_option
@json_option
def status(config_path: Path, as_json: bool) -> None:
    """One look at the running daemon."""
    from rpi_daemon.top import print_once

    with client(config_path) as daemon:
        document = daemon.ask("status")
    if as_json:
        show(document, True, "")
    else:
        print_once(document, Console())


@main.command()
@config_option
@json_option
def top(config_path: Path, as_json: bool) -> None:
    """The live view; Ctrl-C ends it. With --json a status document per line and second."""
    from rich.live import Live

    from rpi_daemon.top import View, plain_line

    console = Console()
    view = View()
    with client(config_path) as daemon:
        try:
            if as_json or not console.is_terminal:
                while True:
                    document = daemon.ask("status")
                    show(document, as_json, plain_line(document))
                    time.sleep(1.0)
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while True:
                    live.update(view.table(daemon.ask("status")), refresh=True)
                    time.sleep(TOP_PERIOD_S)
        except KeyboardInterrupt:
            return


@main.command()
@click.argument("name", metavar="advisory|closed_loop", type=click.Choice(["advisory", "closed_loop"]))
@config_option
@json_option
def mode(name: str, config_path: Path, as_json: bool) -> None:
    """Change the mode. Leaving closed loop puts the found limits back."""
    with client(config_path) as daemon:
        answer = daemon.ask("mode", mode=name)
    show(answer, as_json, f"mode {answer['mode']}")


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say what would change, or what is wrong.")
@config_option
@json_option
def reload(dry_run: bool, config_path: Path, as_json: bool) -> None:
    """Let the running daemon read its configuration again: all of it is taken over between two ticks, or nothing is."""
    try:
        with client(config_path, RELOAD_S) as daemon:
            answer = daemon.ask("reload", dry_run=dry_run)
    except RpiError as error:
        if error.exit_code == ConfigError.exit_code and not as_json:
            click.echo("refused: nothing of it is taken over, the configuration before it stays in force")
        raise
    words = [f"{answer['config']}: {'would be' if dry_run else 'is'} in force", *answer["text"]]
    show(answer, as_json, "\n".join(words if answer["text"] else [f"{words[0]}; nothing has changed"]))


@main.command()
@click.option("--reason", default="operator", show_default=True)
@config_option
@json_option
def kill(reason: str, config_path: Path, as_json: bool) -> None:
    """Engage the kill switch: no more writes to any PDU, until `resume`. Works without a running daemon."""
    from rpi_daemon.guard import LONGEST_REASON

    switch = kill_switch(config_path)
    try:
        switch.engage(reason)
    except OSError as error:
        try:
            with client(config_path) as daemon:
                daemon.ask("kill", reason=reason[:LONGEST_REASON])
        except RpiError as unheard:
            raise RpiError(
                f"the kill switch is NOT engaged: {switch.path}: {error.strerror}, and {unheard};"
                " create that file as another user, or switch SNMP off on the PDUs"
            ) from None
    show(
        {"schema": 1, "ok": True, "kill_switch": True},
        as_json,
        f"kill switch engaged ({switch.path}); `resume` releases it",
    )


@main.command()
@config_option
@json_option
def resume(config_path: Path, as_json: bool) -> None:
    """Release the kill switch and acknowledge latched causes."""
    switch = kill_switch(config_path)
    try:
        switch.release()
    except OSError as error:
        try:
            with client(config_path) as daemon:
                daemon.ask("resume")
        except NotRunningError:
            raise RpiError(
                f"the kill switch is still engaged: {switch.path}: {error.strerror}; remove it as a user who may"
            ) from None
    else:
        # its own memory may hold it, too; and nothing is latched where none runs
        with contextlib.suppress(NotRunningError), client(config_path) as daemon:
            daemon.ask("resume")
    show({"schema": 1, "ok": True, "kill_switch": False}, as_json, "kill switch released")


def span_options(command: F, begin: str = "1h") -> F:
    """--from and --to, the same for everything that looks back."""
    until = click.option("--to", "to_text", default="now", show_default=True, help="End; as --from.")(command)
    return click.option(
        "--from",
        "from_text",
        default=begin,
        show_default=True,
        help="Begin: 03:12, '2026-11-20 03:12', 2026-11-20T03:12:00Z, or 2h (ago).",
    )(until)


@main.command("history")
@click.argument("outlets", nargs=-1, metavar="[PDU/NUMBERS]...")
@click.option("--what", default="power", show_default=True, type=click.Choice(WHAT), help="What to look at.")
@span_options
@click.option("--format", "form", default="table", show_default=True, type=click.Choice(FORMATS))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="File; npz and png need one.")
@config_option
@json_option
def history(
    outlets: tuple[str, ...],
    what: str,
    from_text: str,
    to_text: str,
    form: str,
    output: Path | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """What outlets drew, what was forecast, which limits stood, what passed them. Works without a running daemon."""
    from rpi_daemon import look_back

    document, text = look_back.history(look_back.question(config_path, outlets, what, from_text, to_text), form, output)
    for note in document["notes"]:
        click.echo(note, err=True)
    show(document, as_json, text)


@main.command("events")
@span_options
@click.option("--name", "names", multiple=True, help="Events of this name alone, such as overload; may be repeated.")
@click.option(
    "--verify", "check", is_flag=True, help="Check the whole chain of hashes; exit code 1 where it is broken."
)
@config_option
@json_option
@click.pass_context
def events(
    ctx: click.Context,
    from_text: str,
    to_text: str,
    names: tuple[str, ...],
    check: bool,
    config_path: Path,
    as_json: bool,
) -> None:
    """What the daemon said and did. Works without a running daemon."""
    from rpi_daemon import look_back

    asked = look_back.question(config_path, (), "power", from_text, to_text)
    document, notes = look_back.events(asked, names, check, click.echo if not as_json else lambda _: None)
    for note in notes:
        click.echo(note, err=True)
    if as_json:
        show(document, True, "")
    elif check and document["ok"]:
        begins = document["begins"]
        told = f" from number {begins['number']} ({look_back.local_time(begins['t_utc_ns'])}) on" if begins else ""
        click.echo(f"the chain of all {document['checked']} events holds{told}")
    ctx.exit(0 if document["ok"] else 1)


@main.group()
def audit() -> None:
    """Who had which limit written, why, and what came of it."""


@audit.command("verify")
@click.option("--head", "heads", multiple=True, help="NUMBER:HASH, as it was noted elsewhere; may be repeated.")
@config_option
@json_option
@click.pass_context
def audit_verify(ctx: click.Context, heads: tuple[str, ...], config_path: Path, as_json: bool) -> None:
    """Check the whole chain of hashes and its end; exit code 1 where it is broken. Works without a running daemon."""
    from rpi_daemon import audit_show

    document, text = audit_show.verify(config_path, heads)
    for sentence in document["broken"]:
        click.echo(sentence, err=True)
    show(document, as_json, text)
    ctx.exit(0 if document["ok"] else 1)


@audit.command("show")
@partial(span_options, begin="24h")
@click.option("--outlet", "outlets", multiple=True, help="PDU/NUMBERS, or the load of a server's cap; may be repeated.")
@click.option("--who", help="daemon, failsafe, operator (any), or 'operator NAME'.")
@config_option
@json_option
def audit_show_command(
    from_text: str, to_text: str, outlets: tuple[str, ...], who: str | None, config_path: Path, as_json: bool
) -> None:
    """What was written, by whom and why. Works without a running daemon."""
    from rpi_daemon import audit_show

    document = audit_show.show(
        config_path, from_text, to_text, outlets, who, click.echo if not as_json else lambda _: None
    )
    for note in document["notes"]:
        click.echo(note, err=True)
    if as_json:
        show(document, True, "")


@main.command("report")
@click.argument("outlets", nargs=-1, metavar="[PDU/NUMBERS]...")
@partial(span_options, begin="7d")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The page; report-RACK.html if not given.")
@config_option
@json_option
def report(
    outlets: tuple[str, ...], from_text: str, to_text: str, output: Path | None, config_path: Path, as_json: bool
) -> None:
    """What the daemon bought, or would have: one HTML page, or JSON. Works without a running daemon."""
    from rpi_daemon import look_back
    from rpi_daemon.report import command

    asked = look_back.question(config_path, outlets, "power", from_text, to_text)
    document, text = command.report(asked, output, page=output is not None or not as_json)
    for note in document["notes"]:
        click.echo(note, err=True)
    show(document, as_json, text)


@main.command("capture")
@click.option("--at", help="Middle of the capture; as --from of `history`.")
@click.option("--last", is_flag=True, help="The newest scans instead.")
@click.option("--seconds", default=2.0, show_default=True, type=Number(0.05, 600.0), help="Length of the capture.")
@click.option("--board", help="Board of the configuration; the only one if not given.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="NAME of NAME.cfg, .dat, .png.")
@click.option("--list", "list_kept", is_flag=True, help="The captures that the daemon took by itself.")
@config_option
@json_option
def capture(
    at: str | None,
    last: bool,
    seconds: float,
    board: str | None,
    output: Path | None,
    list_kept: bool,
    config_path: Path,
    as_json: bool,
) -> None:
    """Raw 1 kHz waveforms as COMTRADE (IEEE C37.111) and a picture. Works without a running daemon, until the box restarts."""
    from rpi_daemon import capture as flow

    if (at is not None) + last + list_kept != 1:
        raise click.UsageError("give --at TIME or --last; or --list")
    if list_kept:
        document, text = flow.listed(config_path)
        for note in document["notes"]:
            click.echo(note, err=True)
        show(document, as_json, text)
        return
    if output is None:
        raise click.UsageError("give --output NAME")
    document, text = flow.capture(config_path, board, at, seconds, output)
    for note in document["notes"]:
        click.echo(note, err=True)
    show(document, as_json, text)


@main.group()
def limit() -> None:
    """Limits by hand."""


@limit.command("set", cls=TakesNegative)
@click.argument("outlet")
@click.argument("limit_w", type=Number(0.0, 1e6, above=True))
@click.option("--ttl", "ttl_s", required=True, type=Number(1.0, 86_400.0), help="s after which it ends.")
@click.option("--reason", required=True)
@config_option
@json_option
def limit_set(outlet: str, limit_w: float, ttl_s: float, reason: str, config_path: Path, as_json: bool) -> None:
    """Cap one outlet (PDU/NUMBER) at LIMIT_W watts for a time; the daemon still guards every rating."""
    from rpi_daemon.history.show import one_line

    with client(config_path) as daemon:
        answer = daemon.ask("limit_set", outlet=outlet, limit_w=limit_w, ttl_s=ttl_s, reason=reason)
    words = one_line(f"{outlet}: at most {limit_w:g} W for {ttl_s:g} s ({reason})")
    show(answer, as_json, "\n".join([words, *answer["notes"]]))


@limit.command("restore")
@click.argument("outlets", nargs=-1)
@click.option("--reason", default="operator", show_default=True)
@click.option("--offline", is_flag=True, help="Without a daemon, as before uninstalling; refused while one runs.")
@without_daemon_options(for_s=10.0)
@config_option
@json_option
def limit_restore(
    outlets: tuple[str, ...],
    reason: str,
    offline: bool,
    for_s: float,
    state_dir: Path | None,
    config_path: Path,
    as_json: bool,
) -> None:
    """Put the limits found at first contact back (all outlets if none is named) and leave closed loop."""
    if offline:
        from rpi_daemon import failsafe

        document, text = failsafe.restore(config_path, state_dir, for_s, outlets)
        show(document, as_json, text)
        sys.exit(0 if document["ok"] else DeviceError.exit_code)
    from rpi_daemon.found import lost_text

    with client(config_path) as daemon:
        answer = daemon.ask("limit_restore", outlets=list(outlets), reason=reason)
    words = f"restored {answer['restored']} outlets, verified {answer['verified']}; mode {answer['mode']}"
    show(answer, as_json, "\n".join([words, *([lost_text(answer["lost"])] if answer["lost"] else ())]))


@main.command("failsafe")
@without_daemon_options(for_s=4.0)
@config_option
@json_option
def failsafe_command(for_s: float, state_dir: Path | None, config_path: Path, as_json: bool) -> None:
    """Write and verify STATIC_SAFE without the daemon, on what it last controlled; refused while one runs.

    Exit code 4 where an outlet that should stand there does not.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in `run`
    with coming_up():
        from rpi_daemon.failsafe import failsafe

    document, text = failsafe(config_path, state_dir, for_s)
    show(document, as_json, text)
    sys.exit(0 if document["ok"] else DeviceError.exit_code)


@main.command(cls=TakesNegative)
@click.argument("load")
@click.argument("delta_w", type=Number(-1e6, 1e6))
@click.option("--in", "in_s", default=5.0, show_default=True, type=Number(0.0, 86_400.0), help="s from now.")
@click.option("--for", "for_s", default=3600.0, show_default=True, type=Number(1.0, 604_800.0), help="s that it lasts.")
@config_option
@json_option
def hint(load: str, delta_w: float, in_s: float, for_s: float, config_path: Path, as_json: bool) -> None:
    """Tell the daemon of work to come: LOAD will change by DELTA_W watts, which may be negative."""
    with client(config_path) as daemon:
        answer = daemon.ask("hint", load=load, delta_w=delta_w, in_s=in_s, for_s=for_s)
    show(answer, as_json, f"{load}: {delta_w:+g} W in {in_s:g} s, for {for_s:g} s")


@main.command()
@click.option("--now", is_flag=True, help="Train at once, whatever hour, load and length of the history.")
@click.option("--dry-run", is_flag=True, help="Train at once and judge, but change nothing.")
@config_option
@json_option
def retrain(now: bool, dry_run: bool, config_path: Path, as_json: bool) -> None:
    """Learn from the stored history: what the running daemon is up to, or a training now. Works without a running daemon."""
    from rpi_daemon.retrain import command

    if not (now or dry_run):
        with client(config_path) as daemon:
            answer = daemon.ask("status")["retrain"]
        show({"schema": 1, "ok": True, "retrain": answer}, as_json, command.plan_told(answer))
        return
    document, text = command.retrain(config_path, dry_run, Console(stderr=True))
    show(document, as_json, text)


@main.group()
def model() -> None:
    """The forecast model."""


@model.command("list")
@config_option
@json_option
def model_list(config_path: Path, as_json: bool) -> None:
    """Every model that there is, and which one stands. Works without a running daemon."""
    from rpi_daemon.retrain.command import list_models

    document, text = list_models(config_path)
    show(document, as_json, text)


@model.command("show")
@click.argument("name", required=False)
@config_option
@json_option
def model_show(name: str | None, config_path: Path, as_json: bool) -> None:
    """What a model holds: data, licences, scores, checks. NAME is one of `model list`, or a directory; shipped if none is named."""
    from rpi_daemon.models.manifest import describe
    from rpi_daemon.retrain.command import directory_of

    document = describe(directory_of(config_path, name))
    show(document, as_json, json.dumps(document, indent=2))
    if not document["accepted"]:
        click.echo(document["refused_because"], err=True)
        sys.exit(ModelError.exit_code)


@model.command("compare")
@click.argument("name")
@click.argument("other", required=False)
@config_option
@json_option
def model_compare(name: str, other: str | None, config_path: Path, as_json: bool) -> None:
    """Judge the model NAME against OTHER (the one that stands) on the newest stored history. Changes nothing."""
    from rpi_daemon.retrain.command import compare

    document, text = compare(config_path, name, other, Console(stderr=True))
    show(document, as_json, text)


@model.command("promote")
@click.argument("name")
@click.option("--reason", default="operator", show_default=True)
@config_option
@json_option
def model_promote(name: str, reason: str, config_path: Path, as_json: bool) -> None:
    """Let the model NAME forecast, in a running daemon at once; `shipped` is always there."""
    from rpi_daemon.retrain.command import promote

    document, text = promote(config_path, name, reason)
    show(document, as_json, text)


@model.command("rollback")
@click.option("--reason", default="operator", show_default=True)
@config_option
@json_option
def model_rollback(reason: str, config_path: Path, as_json: bool) -> None:
    """Let the previous model forecast again, in a running daemon at once."""
    from rpi_daemon.retrain.command import roll_back

    document, text = roll_back(config_path, reason)
    show(document, as_json, text)


@main.command()
@click.option(
    "--enterprise",
    type=click.IntRange(1, 2**31 - 1),
    help="Enterprise number in place of 32473; the configuration's if --config is given.",
)
@config_option
@click.option("--path", "only_path", is_flag=True, help="Print where the shipped module is.")
def mib(enterprise: int | None, config_path: Path, only_path: bool) -> None:
    """Print RPI-DAEMON-MIB, for the facility's receiver."""
    from rpi_daemon.drivers.traps.mib import SHIPPED_ENTERPRISE, mib_path, mib_text

    if only_path:
        click.echo(mib_path())
        return
    if enterprise is None and not _defaulted("config_path"):
        from rpi_daemon.config.load import read_config

        enterprise = read_config(config_path).traps.enterprise
    click.echo(mib_text(enterprise or SHIPPED_ENTERPRISE), nl=False)


@main.command()
@click.argument("what", type=click.Choice(["kill-switch", "sensor-loss", "pdu-loss", "restart", "failsafe", "all"]))
@config_option
@click.option("--closed-loop", is_flag=True, help="Also where limits are written: they change during a drill.")
@click.option("--demo", is_flag=True, help="On the demo's simulated rack instead of this box.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report to a file, too.")
@json_option
def drill(what: str, config_path: Path, closed_loop: bool, demo: bool, out: Path | None, as_json: bool) -> None:
    """Lose something on purpose, and report whether the daemon did what it promises. Exit code 1 where it did not."""
    from rpi_daemon.demo import ended_by_signals
    from rpi_daemon.devices import load_checked
    from rpi_daemon.drill import DRILLS, SystemdBox, demo_box, run_drills

    written: contextlib.AbstractContextManager[IO[str] | None]
    try:  # before anything is broken; line by line, so that a drill that ends early leaves what it saw
        written = contextlib.nullcontext() if out is None else out.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise RpiError(f"{out}: {error.strerror}; the report cannot be written: no drill began") from None

    with written as file, ended_by_signals():

        def say(line: str) -> None:
            if file is not None:
                click.echo(line, file=file)
            click.echo(line, err=as_json)  # to a terminal that may be gone

        names = list(DRILLS) if what == "all" else [what]
        with demo_box() if demo else contextlib.nullcontext(SystemdBox(load_checked(config_path))) as box:
            report = run_drills(names, box, closed_loop=closed_loop or demo, say=say)
        verdict = f"{report['passed']} of {report['checks']} passed: rack {report['rack']}, {report['mode']}, {report['begun_utc']}"
        if file is not None:
            click.echo(verdict, file=file)
    show(report, as_json, verdict)
    sys.exit(0 if report["ok"] else 1)


@main.group()
def traps() -> None:
    """Traps and informs to facilities."""


@traps.command("test")
@click.option("--sink", help="One receiver of the configuration; all if not given.")
@config_option
@json_option
def traps_test(sink: str | None, config_path: Path, as_json: bool) -> None:
    """Send a test notification, and say what was acknowledged. Works without a running daemon."""
    try:
        with client(config_path) as daemon:
            answer = daemon.ask("traps_test", sink=sink)
    except NotRunningError:
        from rpi_daemon.config.load import load_config
        from rpi_daemon.trap_task import test_once

        answer = {"schema": 1, "ok": True, "sinks": test_once(load_config(config_path), sink)}
    if not answer["sinks"]:
        raise RpiError("no [[trap_sink]] is configured: nothing was sent, nothing is tested")
    failed = [item for item in answer["sinks"] if item["error"]]
    show({**answer, "ok": not failed}, as_json, "\n".join(map(_test_told, answer["sinks"])))
    if failed:
        sys.exit((AuthError if all(item["refused"] for item in failed) else DeviceError).exit_code)


def _test_told(item: dict[str, Any]) -> str:
    if item["error"]:
        return f"{item['sink']}: not acknowledged, given up after {item['ms']:.0f} ms: {item['error']}"
    if item["acknowledged"]:
        return f"{item['sink']}: acknowledged after {item['ms']:g} ms"
    return f"{item['sink']}: sent; nobody acknowledges a trap"


def _defaulted(parameter: str) -> bool:
    return click.get_current_context().get_parameter_source(parameter) is click.core.ParameterSource.DEFAULT


main.add_command(calibrate)
