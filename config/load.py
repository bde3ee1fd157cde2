"""TOML to `Config`: every mistake at once, each with file, line, key, value and what is allowed."""

import copy
import difflib
import functools
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rpi_daemon.config.changes import SET_BY_LOADER
from rpi_daemon.config.checks import cross_check
from rpi_daemon.config.schema import SECRETS, Config, Daemon
from rpi_daemon.errors import ConfigError

Loc = tuple[str | int, ...]
MAX_BYTES = 1_000_000  # hundreds of racks
MoreChecks = Callable[[Config], Iterable[tuple[Loc, str]]]  # what other layers have to say of a configuration


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong: where, and the sentence."""

    loc: Loc
    text: str


def read_config(path: Path | str) -> Config:
    """Only the shape of a configuration: no cross-checks, so that secrets need not be there yet. Raises ConfigError."""
    return _parse(_text(Path(path)), str(path), Path(path).parent, None)


def read_folders(path: Path | str) -> tuple[Path, Path]:
    """`daemon.state_dir` and `runtime_dir` of a file that may have mistakes anywhere: what must work in any case asks here.

    The kill switch, and a daemon's own word on the file, are not to wait for a correct configuration. Raises ConfigError
    where there is no such file.
    """
    text, folder = _text(Path(path)), Path(path).parent
    found = []
    for key in ("state_dir", "runtime_dir"):
        match = re.search(rf"^\s*{key}\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", text, re.MULTILINE)
        named = (match.group(1) or match.group(2)) if match is not None else None
        found.append(folder / (named or Daemon.model_fields[key].default))
    return found[0], found[1]


def load_config(path: Path | str, env: Mapping[str, str] = os.environ, *, more: MoreChecks | None = None) -> Config:
    """Read and check a configuration file; raises ConfigError with a line per mistake, those that `more` finds too."""
    text = _text(Path(path))
    config = parse_config(text, str(path), base_dir=Path(path).parent, env=env, more=more)
    return config.model_copy(update={"file": str(Path(path).absolute())})


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: is longer than {MAX_BYTES} bytes: no configuration")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name yours with --config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a configuration file") from None
    except PermissionError:
        raise ConfigError(f"{path}: not readable by this user") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def parse_config(
    text: str,
    name: str,
    *,
    base_dir: Path,
    env: Mapping[str, str] = os.environ,
    more: MoreChecks | None = None,
) -> Config:
    """As `load_config`, from text; relative paths in it are taken from `base_dir`."""
    return _parse(text, name, base_dir, env, more)


def _parse(
    text: str, name: str, base_dir: Path, env: Mapping[str, str] | None, more: MoreChecks | None = None
) -> Config:
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # TOML's own kind is one; so is an integer of thousands of digits
        raise ConfigError(f"{name}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid TOML: nested too deeply") from None
    mistakes = [Mistake((key,), _unknown(str(key), ())) for key in sorted(SET_BY_LOADER & data.keys())]
    for key in SET_BY_LOADER:
        data.pop(key, None)
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        mistakes.extend(_mistakes(error))
        config = _mended(data, error)
    wrong = {mistake.loc for mistake in mistakes}
    if config is not None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        config = config.model_copy(update={"base_dir": str(base_dir.resolve()), "sha256": digest})
        found = [*cross_check(config, base_dir, env)] if env is not None else []
        found += more(config) if more is not None else ()
        mistakes.extend(Mistake(loc, sentence) for loc, sentence in found if not _of_wrong(loc, wrong))
    if mistakes:
        lines = line_numbers(text)
        placed = sorted({(line_of(lines, m.loc), f"{key_of(m.loc)}: {m.text}") for m in mistakes})
        raise ConfigError("\n".join(f"{name}:{line}: {sentence}" for line, sentence in placed))
    assert config is not None
    return config


def _mistakes(error: ValidationError) -> Iterator[Mistake]:
    for item in error.errors(include_url=False):
        loc = tuple(part for part in item["loc"] if not (isinstance(part, str) and "[" in part))
        yield Mistake(loc, _sentence(item["type"], item["msg"], item.get("ctx") or {}, item["input"], loc))


def _of_wrong(loc: Loc, wrong: set[Loc]) -> bool:
    """Whether a cross-check speaks of a value that is there, but wrong, or of a table that misses it."""
    variable = (*loc[:-1], str(loc[-1]).removesuffix("_file") + "_env")  # the other way to give a secret
    return loc in wrong or variable in wrong or any(loc == key[:-1] for key in wrong if len(key) > 1)


def _sentence(kind: str, message: str, ctx: Mapping[str, Any], value: Any, loc: Loc) -> str:
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), loc[:-1])
    if kind == "missing":
        return "is missing and has no default"
    if kind == "literal_error" and isinstance(value, str):
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']+)'", str(ctx.get("expected"))), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{_shown(value, loc)} is not allowed; allowed: {ctx.get('expected')}{hint}"
    if kind == "value_error":
        return str(ctx.get("error", message))
    if kind == "string_pattern_mismatch" and (example := _example(loc)):
        return f"{_shown(value, loc)} is not written like {example!r} (allowed: {_allowed(loc)})"
    if kind == "model_type":
        return f"is no table; write {f'[[{loc[-2]}]]' if isinstance(loc[-1], int) else f'[{loc[-1]}]'} above its keys"
    if kind == "bool_type":
        return f"{_shown(value, loc)} is not true or false"
    if kind == "list_type" and section_of(_annotation(loc)) is not None:
        return f"{_shown(value, loc)}: write [[{loc[-1]}]] above each"
    if kind == "list_type" and (example := _example(loc)):
        return f"{_shown(value, loc)} is not a list such as {json.dumps(example)}"
    allowed = _allowed(loc)
    return f"{_shown(value, loc)}: {message[0].lower()}{message[1:]}" + (f" (allowed: {allowed})" if allowed else "")


def _shown(value: Any, loc: Loc) -> str:
    """A value in a message; of a table only the keys, of what may be a secret nothing."""
    keys = [str(part) for part in loc]
    if any(key == name or key.startswith(f"{name}_") for key in keys for name in SECRETS):
        return "what is given"
    if isinstance(value, dict):
        return f"a table (keys: {', '.join(map(str, value)) or 'none'})"
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return "a list of tables or lists"
    return repr(value)


def _unknown(key: str, table: Loc) -> str:
    known = sorted(_fields_at(table))
    close = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {close[0]!r}?" if close else f"unknown key allowed here: {', '.join(known)}"


def _model_at(loc: Loc) -> type[BaseModel] | None:
    """The section that a location lies in."""
    model: type[BaseModel] | None = Config
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part) if model is not None else None
        model = section_of(field.annotation) if field is not None else None
    return model


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an option's type holds, also in a list or a union; None for a plain option."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = section_of(inner)
        if found is not None:
            return found
    return None


def _fields_at(loc: Loc) -> list[str]:
    model = _model_at(loc)
    return [name for name in model.model_fields if name not in SET_BY_LOADER] if model is not None else []


def _allowed(loc: Loc) -> str:
    keys = [part for part in loc if isinstance(part, str)]
    model = _model_at(tuple(keys[:-1]))
    if not keys or model is None or keys[-1] not in model.model_fields:
        return ""
    return allowed_range(model, keys[-1])


def _example(loc: Loc) -> Any:
    """A value that the option may have: of its documentation, or its default; None if there is none."""
    field = _field_at(loc)
    return None if field is None else (field.examples or [field.get_default()])[0]


def _annotation(loc: Loc) -> Any:
    field = _field_at(loc)
    return None if field is None else field.annotation


def _field_at(loc: Loc) -> FieldInfo | None:
    model = _model_at(loc[:-1])
    return model.model_fields.get(str(loc[-1])) if model is not None else None


def allowed_range(model: type[BaseModel], field: str) -> str:
    """The range of a numeric option in words, from the schema itself."""
    schema = _properties(model)[field]
    options = [schema, *schema.get("anyOf", ())]
    words = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "pattern": "pattern {}"}
    found = [form.format(option[key]) for option in options for key, form in words.items() if key in option]
    return ", ".join(found)


@functools.cache
def _properties(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a section's options; made once, for it takes milliseconds."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return properties


def _mended(data: dict[str, Any], error: ValidationError) -> Config | None:
    """The configuration without its wrong values, so that the cross-checks can speak too; None if that is not one."""
    mended = copy.deepcopy(data)
    for item in error.errors(include_url=False):
        place: Any = mended
        try:
            for part in item["loc"][:-1]:
                place = place[part]
            place.pop(item["loc"][-1], None)
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        allowed = re.findall(r"'([^']+)'", str((item.get("ctx") or {}).get("expected", "")))
        if allowed and item["type"] == "literal_error":
            place[item["loc"][-1]] = allowed[0]
    try:
        return Config.model_validate(mended)
    except ValidationError:
        return None


_HEADER = re.compile(r"^\s*(\[\[?)\s*([A-Za-z0-9_.\-\"' ]+?)\s*\]\]?\s*(#.*)?$")
_ASSIGN = re.compile(r"^\s*([A-Za-z0-9_\-]+|\"[^\"]+\")\s*=")


def line_numbers(text: str) -> dict[Loc, int]:
    """Where each table and key of a TOML text stands: location -> line, counted from 1."""
    lines: dict[Loc, int] = {(): 1}
    table: Loc = ()
    counts: dict[Loc, int] = {}
    depth = 0
    quote = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if quote:
            quote = "" if quote in line else quote
            continue
        header = _HEADER.match(line) if depth == 0 else None
        if header:
            table = ()
            names = header.group(2).strip().split(".")
            for name in names[:-1]:  # within the newest entry of a list of tables
                table = (*table, name, counts[*table, name]) if (*table, name) in counts else (*table, name)
            table = (*table, names[-1])
            if header.group(1) == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            lines.setdefault(table[:1], number)
            lines[table] = number
            continue
        assign = _ASSIGN.match(line) if depth == 0 else None
        if assign:
            lines[(*table, assign.group(1).strip('"'))] = number
        bare = re.sub(
            r"\"(\\.|[^\"\\])*\"|'[^']*'", "", line.split("#")[0] if '"' not in line and "'" not in line else line
        )
        for mark in ('"""', "'''"):
            if line.count(mark) % 2:
                quote = mark
        depth = max(0, depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}"))
    return lines


def line_of(lines: Mapping[Loc, int], loc: Loc) -> int:
    """The line of a location, or of the innermost table around it that has one."""
    for length in range(len(loc), -1, -1):
        if loc[:length] in lines:
            return lines[loc[:length]]
    return 1


def key_of(loc: Loc, top: str = "configuration") -> str:
    """A location in words, entries of lists counted from 1: `pdu[2].host`; `top` for the whole file."""
    text = ""
    for part in loc:
        text += f"[{part + 1}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text or top
