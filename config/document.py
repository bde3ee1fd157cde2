"""Writes `default.toml` from the schema: every option with its sentence, range and default. `python -m rpi_daemon.config.document`."""

import json
import textwrap
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rpi_daemon.config.changes import LIVE
from rpi_daemon.config.load import allowed_range, section_of
from rpi_daemon.config.schema import Config

WIDTH = 118
HEAD = """\
# rpi-daemon: every option. Where an option has a default, it is the value shown; an option with a leading '#' has none.
# Tables in double brackets may be repeated. Relative paths are taken from this file's folder. Check your file with
#     rpi-daemon check-config --config FILE
# An option with [reload] may change while the daemon runs (rpi-daemon reload); the others need a restart.
# This text is written from the schema (python -m rpi_daemon.config.document > config/default.toml).
"""


def default_toml() -> str:
    """The documented defaults, as TOML."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            continue
        header = f"[[{name}]]" if str(field.annotation).startswith("list") else f"[{name}]"
        parts.append(f"\n# {(section.__doc__ or '').strip()}\n{header}\n")
        live = LIVE.get(name, frozenset())
        parts.extend(_option(section, key, option, key in live) for key, option in section.model_fields.items())
    return "".join(parts)


def _option(section: type[BaseModel], key: str, field: FieldInfo, live: bool) -> str:
    allowed = _allowed(section, key)
    sentence = f"{field.description}" + (f" ({allowed})" if allowed else "") + (" [reload]" if live else "")
    lines = textwrap.wrap(sentence, WIDTH - 2, initial_indent="# ", subsequent_indent="#   ")
    required = field.default is PydanticUndefined
    if required or field.default is None:
        value = f"{'' if required else '# '}{key} = {_toml((field.examples or [''])[0])}"
    else:
        value = f"{key} = {_toml(field.default)}"
    return "\n".join([*lines, value]) + "\n"


def _allowed(section: type[BaseModel], key: str) -> str:
    schema = section.model_json_schema()["properties"][key]
    choices = schema.get("enum") or schema.get("items", {}).get("enum")
    if choices:
        return " | ".join(choices)
    return "" if "pattern" in schema else allowed_range(section, key)


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    print(default_toml(), end="")
