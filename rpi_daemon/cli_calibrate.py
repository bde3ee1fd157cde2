"""`rpi-daemon calibrate`: a sensor board against known loads; `verify` a calibration, `show` its file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from rpi_daemon.cli_options import Number, config_option, json_option, show

if TYPE_CHECKING:
    from rpi_daemon.calibrate import Verified


def _order(config_path: Path, board: str | None) -> tuple[Any, Any]:
    """The configuration and one of its boards; its calibration need not be there yet."""
    from rpi_daemon.calibrate import chosen_board
    from rpi_daemon.config.load import read_config

    config = read_config(config_path)
    return config, chosen_board(config, board)


@click.group(invoke_without_command=True)
@config_option
@click.option("--board", help="Board of the configuration; the only one if not given.")
@click.option("--from", "plan_path", type=click.Path(path_type=Path), help="Plan (TOML) in place of the dialogue.")
@click.option("--outlets", multiple=True, help="These outlets alone, such as pdu-a/1-12; may be repeated.")
@click.option("--reference", help="Reference meter: any configured PDU, as PDU/NUMBER; PDU/{n} is each outlet's own.")
@click.option("--seconds", default=5.0, show_default=True, type=Number(2.0, 600.0), help="Averaging time.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; board.calibration if not given.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG with what is left at every point.")
@json_option
@click.pass_context
def calibrate(
    ctx: click.Context,
    config_path: Path,
    board: str | None,
    plan_path: Path | None,
    outlets: tuple[str, ...],
    reference: str | None,
    seconds: float,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Calibrate a sensor board: zero, then known loads. Asks step by step, or follows a plan. The daemon must not run."""
    if ctx.invoked_subcommand is not None:
        return
    from datetime import UTC, datetime

    from rpi_daemon import calibrate as flow
    from rpi_daemon.calibration_plot import plot_residuals

    config, chosen = _order(config_path, board)
    target = out or config.path(chosen.calibration or f"{chosen.id}.calibration.json")
    plan = flow.read_plan(plan_path) if plan_path is not None else None
    if plan is not None and (outlets or reference):
        raise click.UsageError("--outlets and --reference belong to the dialogue; with --from they are in the plan")
    order = flow.Order(config, chosen, target, plan, outlets, reference, seconds)
    file, kept = flow.calibrate(order, Console(stderr=True))
    if plot is not None:
        plot_residuals(file, plot)
    refused = [record.channel for record in file.channels if not record.good]
    text = flow.summary_text(file, target, datetime.now(UTC))
    text += f"\nthe file before it is kept as {kept}" if kept is not None else ""
    if chosen.calibration is None:
        text += f'\nto use it: calibration = "{target}" in [[board]] {chosen.id!r}, then start the daemon again'
    document = {
        "schema": 1,
        "ok": not refused,
        "file": str(target),
        "kept": None if kept is None else str(kept),
        "refused": refused,
        "calibration": file.model_dump(mode="json"),
    }
    show(document, as_json, text)
    ctx.exit(1 if refused else 0)


@calibrate.command("verify")
@config_option
@click.option("--board", help="Board of the configuration; the only one if not given.")
@click.option(
    "--outlets", multiple=True, required=True, help="Outlets with the known load, such as pdu-a/3; may be repeated."
)
@click.option("--amps", type=Number(0.0, 1e6, above=True), help="What the instrument shows, A RMS.")
@click.option("--volts", type=Number(0.0, 1e6, above=True), help="V RMS.")
@click.option("--watts", type=Number(0.0, 1e6, above=True), help="W.")
@click.option("--resistive", is_flag=True, help="The load is resistive: of A, V and W two tell the third.")
@click.option("--reference", help="Reference meter in place of typed values: PDU/NUMBER or PDU/{n}.")
@click.option("--bound", default=0.5, show_default=True, type=Number(0.001, 100.0), help="Largest error, % of reading.")
@click.option("--seconds", default=5.0, show_default=True, type=Number(2.0, 600.0), help="Averaging time.")
@click.option(
    "--file", "file_path", type=click.Path(path_type=Path), help="Calibration file; board.calibration if not given."
)
@json_option
@click.pass_context
def calibrate_verify(
    ctx: click.Context,
    config_path: Path,
    board: str | None,
    outlets: tuple[str, ...],
    amps: float | None,
    volts: float | None,
    watts: float | None,
    resistive: bool,
    reference: str | None,
    bound: float,
    seconds: float,
    file_path: Path | None,
    as_json: bool,
) -> None:
    """Compare a calibrated board with a known load, read as the daemon reads it. Exit code 1 beyond the bound."""
    from dataclasses import asdict

    from rpi_daemon import calibrate as flow

    config, chosen = _order(config_path, board)
    if file_path is not None:
        chosen = chosen.model_copy(update={"calibration": str(file_path.resolve())})
    try:
        planned = flow.PlannedStep(
            outlets=list(outlets),
            amps=amps,
            volts=volts,
            watts=watts,
            resistive=resistive,
            reference=reference,
            seconds=seconds,
        )
    except ValueError:
        raise click.UsageError("give --amps, --volts or --watts, or --reference PDU/NUMBER, not both") from None
    rows = flow.verify(config, chosen, planned, bound, Console(stderr=True))
    passed = all(row.passed for row in rows)
    lines = [_point_told(row) for row in rows]
    lines.append(f"{'passed' if passed else 'FAILED'}: within {bound:g} % of reading")
    document = {"schema": 1, "ok": passed, "bound_percent": bound, "points": [asdict(row) for row in rows]}
    show(document, as_json, "\n".join(lines))
    ctx.exit(0 if passed else 1)


def _point_told(row: "Verified") -> str:
    if row.measured is None:
        told = f"no reading beside {row.reference:.4g} {row.quantity}"
    else:
        told = f"{row.measured:.4f} {row.quantity} beside {row.reference:.4f}, {row.error_percent:+.3f} %"
    return f"{row.outlet}: {told}{'' if row.passed else '  FAILED'}"


@calibrate.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--plot", type=click.Path(path_type=Path), help="PNG with what is left at every point.")
@json_option
def calibrate_show(file: Path, plot: Path | None, as_json: bool) -> None:
    """What a calibration file holds."""
    from datetime import UTC, datetime

    from rpi_daemon.calibrate import summary_text, table_of
    from rpi_daemon.calibration import load_calibration
    from rpi_daemon.calibration_plot import plot_residuals

    calibration, now = load_calibration(file), datetime.now(UTC)
    if plot is not None:
        plot_residuals(calibration, plot)
    document = {
        "schema": 1,
        "ok": True,
        "expired": now > calibration.expires,
        "expires": calibration.expires.isoformat(),
    }
    if as_json:
        show({**document, "calibration": calibration.model_dump(mode="json")}, True, "")
        return
    Console().print(table_of(calibration))
    click.echo(summary_text(calibration, file, now))
