"""What the daemon last stood for, on disk: mode, configuration, what is not ours. Whoever acts without the daemon acts on it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpi_daemon.config.changes import SET_BY_LOADER
from rpi_daemon.config.schema import Config
from rpi_daemon.durable import read_twice, write_twice
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import Mode

STANDING_FILE = "standing.json"  # in the state folder
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """The configuration in force, valid when it was read, and what operators and devices changed since. No secrets."""

    config: Config
    mode: Mode
    released: frozenset[str] = frozenset()  # outlets given back to their owner
    meters_only: Mapping[str, str] = field(default_factory=dict)  # PDUs that may not be written, and why
    ended: bool = False  # in good order: the next start goes by its configuration alone

    def save(self, folder: Path) -> None:
        """Durably, twice; what stands there already is not written again. Raises OSError."""
        write_twice(folder / STANDING_FILE, self.to_json(), self.from_json)

    @classmethod
    def read(cls, folder: Path) -> "Standing | None":
        """None where no daemon has run yet. Raises ConfigError when the file is damaged or cannot be read."""
        path = folder / STANDING_FILE
        try:
            kept = read_twice(path, cls.from_json)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if kept.value is None and kept.damaged:
            raise ConfigError(kept.damaged)
        return kept.value

    def to_json(self) -> str:
        content = {
            "mode": self.mode.value,
            "released": sorted(self.released),
            "meters_only": dict(self.meters_only),
            "ended": self.ended,
            "read": {name: getattr(self.config, name) for name in SET_BY_LOADER},
            "config": self.config.model_dump(mode="json"),
        }
        return json.dumps({"schema": SCHEMA, "sha256": _digest(content), "content": content}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Standing":
        """Raises ValueError when the text is damaged or of another schema."""
        try:
            data = json.loads(text)
            content = data["content"]
            if data["schema"] != SCHEMA or data["sha256"] != _digest(content):
                raise ValueError("its digest does not fit, or it is of another version")
            config = Config.model_validate_json(json.dumps(content["config"]))
            return cls(
                config.model_copy(update={name: content["read"][name] for name in SET_BY_LOADER}),
                Mode(content["mode"]),
                frozenset(content["released"]),
                content["meters_only"],
                content["ended"],
            )
        except KeyError as error:
            raise ValueError(f"{error} is missing: it is of another version") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
