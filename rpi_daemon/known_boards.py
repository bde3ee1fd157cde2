"""What each sensor board said of itself when it was last there: a daemon that starts without one can wait for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription
from rpi_daemon.durable import write_durably

BOARDS_FILE: Final = "boards.json"
SCHEMA: Final = 1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownBoards:
    """Descriptions by board, kept in the state folder."""

    boards: Mapping[str, BoardDescription]

    @classmethod
    def read(cls, folder: Path) -> "KnownBoards":
        """None is known where the file is missing or damaged: boards then have to be there at start."""
        path = folder / BOARDS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}")
            return cls({board: _description(item) for board, item in content["boards"].items()})
        except FileNotFoundError:
            return cls({})
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            log.warning("boards.unread", path=str(path), error=str(error))
            return cls({})

    def save(self, folder: Path) -> None:
        """A disk that takes nothing costs only this: the next start waits for every board."""
        boards = {board: asdict(description) for board, description in self.boards.items()}
        try:
            write_durably(folder / BOARDS_FILE, json.dumps({"schema": SCHEMA, "boards": boards}, indent=1))
        except OSError as error:
            log.warning("boards.not_saved", path=str(folder / BOARDS_FILE), error=error.strerror)


def _description(item: Mapping[str, Any]) -> BoardDescription:
    return BoardDescription(
        **{**item, "channels": tuple(ChannelDescription(**channel) for channel in item["channels"])}
    )
