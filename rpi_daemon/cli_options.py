"""What the commands share: their common options, and how one result is shown."""

import json
import math
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
            type=Number(0.1, 600.0),
            help="s that it may take; devices that fail are tried again until then.",
        )(command)
        return click.option(
            "--state-dir",
            type=click.Path(path_type=Path),
            help="Where the daemon keeps its state, if neither the configuration nor $STATE_DIRECTORY says so.",
        )(command)

    return add


class Number(click.FloatRange):
    """A number from `least` (`above`: greater than it) to `most`: NaN is none. What is no such number is answered with the range."""

    name = "number"

    def __init__(self, least: float, most: float, *, above: bool = False) -> None:
        super().__init__(least, most, min_open=above)
        words = f"above {least:,.7g} and at most" if above else f"from {least:,.7g} to"
        self._allowed = f"a number {words} {most:,.7g}".replace(",", " ")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):  # which passes the comparisons of the range
            self.fail(f"{str(value).strip()!r} is not {self._allowed}", param, ctx)
        try:
            return float(super().convert(number, param, ctx))
        except click.BadParameter:
            self.fail(f"{number:.10g} is not {self._allowed}", param, ctx)


class TakesNegative(click.Command):
    """A command with numbers for arguments: `-5` is one of them, and not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {arg}" if _negative(arg) else arg for arg in args])  # no prefix of an option


def _negative(arg: str) -> bool:
    try:
        float(arg)
    except ValueError:
        return False
    return arg.startswith("-")


def show(document: dict[str, Any], as_json: bool, text: str) -> None:
    """One result, for a program or for a person."""
    click.echo(json.dumps(document, separators=(",", ":")) if as_json else text)
