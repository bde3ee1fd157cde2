"""What the commands share: their common options, and how one result is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_CONFIG = "/etc/rpi-daemon/rpi-daemon.toml"
JSON_WANTED = "rpi_daemon.json"
F = TypeVar("F", bound=Callable[..., Any])


def config_option(command: F) -> F:
    """--config, the same everywhere."""
    return click.option(
        "--config",
        "-c",
        "config_path",
        default=DEFAULT_CONFIG,
        show_default=True,
        type=click.Path(path_type=Path),
        help="Configuration file.",
    )(command)


def json_option(command: F) -> F:
    """--json, the same everywhere; a mistake then is an object too, with its exit code."""

    def wanted(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[JSON_WANTED] = value
        return value

    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=wanted,
        is_eager=True,
        help="Print one JSON object on the last line.",
    )(command)


def without_daemon_options(for_s: float) -> Callable[[F], F]:
    """--for and --state-dir, of the commands that write without the daemon."""

    def add(command: F) -> F:
        command = click.option(
            "--for",
            "for_s",
            default=for_s,
            show_default=True,
            type=click.FloatRange(0.1, 600.0),
            help="s that it may take; devices that fail are tried again until then.",
        )(command)
        return click.option(
            "--state-dir",
            type=click.Path(path_type=Path),
            help="Where the daemon keeps its state, if neither the configuration nor $STATE_DIRECTORY says so.",
        )(command)

    return add


def show(document: dict[str, Any], as_json: bool, text: str) -> None:
    """One result, for a program or for a person."""
    click.echo(json.dumps(document, separators=(",", ":")) if as_json else text)
