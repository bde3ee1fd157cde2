"""Profiles and register maps on disk: TOML files, shipped or the user's own, checked by a schema of ours."""

import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rpi_daemon.config.load import Loc, key_of, line_numbers, line_of
from rpi_daemon.errors import ConfigError
from rpi_daemon.small_file import read_small


class Table(BaseModel):
    """A table of such a file: no key that we do not know, no value that has to be converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Table)
Mistake = tuple[Loc, str]


def shipped_names(package: str) -> list[str]:
    """The names of the TOML files in a package."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(package).iterdir() if entry.name.endswith(".toml")
    )


def read_file(name_or_path: str | Path, package: str, kind: str) -> tuple[bytes, str]:
    """A shipped file by its name, or any by its path (with a slash or ending in .toml): its octets, its name in messages.

    `kind` is what messages call it. Raises ConfigError.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith(".toml"):
        try:
            return read_small(text), text
        except OSError as error:
            raise ConfigError(f"{text}: cannot read the {kind}: {error.strerror}") from error
    names = shipped_names(package)
    if text not in names:
        raise ConfigError(
            f"{kind} {text!r} is not known: choose one of {', '.join(names)}, or give a path to a TOML file"
        )
    return files(package).joinpath(f"{text}.toml").read_bytes(), f"{text}.toml"


def parse_file(
    model: type[Model],
    data: bytes,
    shown: str,
    more: Callable[[Model], Iterable[Mistake]],
    *,
    unions: Collection[str] = (),
) -> Model:
    """A file's octets as `model`, checked by it and then by `more`, which sees how the tables fit together.

    `unions`: tables of the schema that stand for one key, and are no part of a mistake's place. Raises ConfigError with
    a line per mistake: file, line, key, what is wrong, what was given.
    """
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOML's own kind is a ValueError; so is a number of thousands of digits
        raise ConfigError(f"{shown}: not a TOML file: {error}") from error
    try:
        parsed = model.model_validate(table)
    except ValidationError as error:
        raise _told(shown, text, _mistakes(error, unions)) from error
    if mistakes := list(more(parsed)):
        raise _told(shown, text, mistakes)
    return parsed


def _mistakes(error: ValidationError, unions: Collection[str]) -> Iterator[Mistake]:
    for mistake in error.errors(include_url=False):
        given = mistake["input"]
        got = "" if isinstance(given, dict) or mistake["type"] == "missing" else f", got {given!r}"
        loc = tuple(part for part in mistake["loc"] if part not in unions)
        yield loc, mistake["msg"].removeprefix("Value error, ") + got


def _told(shown: str, text: str, mistakes: Iterable[Mistake]) -> ConfigError:
    lines = line_numbers(text)
    found = sorted({(line_of(lines, loc), key_of(loc, "(top)"), sentence) for loc, sentence in mistakes})
    return ConfigError("\n".join(f"{shown}:{line}: {key}: {sentence}" for line, key, sentence in found))
