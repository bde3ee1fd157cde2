"""The models of one daemon: the shipped one, the configured one, those that it trained, and which of them stands."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rpi_daemon.durable import write_durably
from rpi_daemon.errors import ModelError
from rpi_daemon.models.forecaster import SHIPPED
from rpi_daemon.models.manifest import LoadedModel, describe, load_model

FOLDER: Final = "models"  # below the state folder
STANDING: Final = "standing.json"
SHIPPED_NAME: Final = "shipped"
CONFIGURED: Final = "configured"  # a directory that `forecast.model` names
SCHEMA: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Standing:
    """Which model forecasts. `basis` is what `forecast.model` said when it was promoted: another word there ends it."""

    current: str
    previous: str
    basis: str
    promoted_utc_ns: int = 0
    watch_until_utc_ns: int = 0  # until then it is compared with the one before it, live


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that passed every check, and what was refused before it."""

    name: str
    model: LoadedModel
    refused: tuple[str, ...]  # one sentence each


class Library:
    """Model directories below the state folder. One writer: the daemon, or a command while none runs.

    `configured` is the configuration's `forecast.model`, `configured_path` the directory where that names one.
    """

    def __init__(self, state_dir: Path, configured: str = SHIPPED_NAME, configured_path: Path | None = None) -> None:
        self.folder = state_dir / FOLDER
        self._configured = configured
        self._configured_path = None if configured == SHIPPED_NAME else configured_path

    @property
    def basis(self) -> str:
        """The name of the model that stands where none was promoted."""
        return SHIPPED_NAME if self._configured_path is None else CONFIGURED

    def names(self) -> list[str]:
        """Every model that can be asked for; trained ones by age."""
        own = sorted(p.name for p in self.folder.glob("*") if p.is_dir() and _NAME.fullmatch(p.name)) \
            if self.folder.is_dir() else []  # fmt: skip
        return [SHIPPED_NAME, *([CONFIGURED] if self._configured_path is not None else []), *own]

    def path(self, name: str) -> Path:
        """The directory of a model. Raises ModelError for a name that nothing has."""
        if name == SHIPPED_NAME:
            return SHIPPED
        if name == CONFIGURED and self._configured_path is not None:
            return self._configured_path
        try:
            known = _NAME.fullmatch(name) and (self.folder / name).is_dir()
        except OSError as error:
            raise ModelError(f"{self.folder / name}: {error.strerror}") from None
        if not known:
            raise ModelError(f"no model is called {name!r}; known: {', '.join(self.names())}")
        return self.folder / name

    def standing(self) -> Standing:
        """What was promoted last; the configured model where nothing was, or where the configuration names another by now.

        Raises ModelError for a file that is damaged.
        """
        path = self.folder / STANDING
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.pop("schema") != SCHEMA:
                raise ValueError("made by another version")
            found = Standing(**document)
            if not all(isinstance(text, str) for text in (found.current, found.previous, found.basis)):
                raise ValueError("a name is no text")
            if not all(isinstance(ns, int) for ns in (found.promoted_utc_ns, found.watch_until_utc_ns)):
                raise ValueError("a time is no number")
        except FileNotFoundError:
            return self._nothing_promoted()
        except PermissionError as error:
            raise ModelError(f"{path}: {error.strerror}; the daemon's user must own daemon.state_dir") from None
        except OSError as error:
            raise ModelError(f"{path}: damaged ({error.strerror}); {self.basis} stands in its place") from None
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{path}: damaged ({error}); `rpi-daemon model promote NAME` writes it anew") from None
        return found if found.basis == self._configured else self._nothing_promoted()

    def _nothing_promoted(self) -> Standing:
        return Standing(self.basis, self.basis, self._configured)

    def choose(self) -> Choice:
        """The promoted model, else the one before it, else the configured one, each with every check.

        Raises ModelError, naming all, where none is good.
        """
        refused: list[str] = []
        wanted = [self.basis]
        try:
            found = self.standing()
            wanted = [found.current, found.previous, *wanted]
        except ModelError as error:
            refused.append(str(error))
        for name in dict.fromkeys(wanted):
            try:
                return Choice(name, load_model(self.path(name)), tuple(refused))
            except ModelError as error:
                refused.append(str(error))
        raise ModelError("; ".join(refused))

    def promote(self, name: str, utc_ns: int, *, watch_ns: int = 0, sha256: str = "") -> Standing:
        """Let `name` stand; the model that stood becomes the previous one. Raises ModelError: nothing has changed then.

        `sha256`: of the model that won; another one in its place does not stand.
        """
        found = load_model(self.path(name))
        if sha256 and found.sha256 != sha256:
            raise ModelError(f"{found.path}: not the model that was judged (its sha256 differs); train again")
        try:
            before = self.standing().current
        except ModelError:
            before = self.basis
        if before == name:
            raise ModelError(f"{name} stands already")
        return self._write(Standing(name, before, self._configured, utc_ns, utc_ns + watch_ns if watch_ns else 0))

    def roll_back(self, utc_ns: int) -> Standing:
        """Let the previous model stand again; rolled back twice, things are as before. Raises ModelError."""
        found = self.standing()
        if found.previous == found.current:
            raise ModelError(f"nothing to roll back: {found.current} stands and no other stood before it")
        return self.promote(found.previous, utc_ns)

    def end_watch(self) -> None:
        """The promoted model stays. Raises ModelError."""
        self._write(replace(self.standing(), watch_until_utc_ns=0))

    def prune(self, keep: int) -> list[str]:
        """Delete the oldest trained models until `keep` are left, never the current or the previous one; their names."""
        try:
            found = self.standing()
        except ModelError:
            return []  # which one stands is not known
        kept = {SHIPPED_NAME, CONFIGURED, found.current, found.previous}
        own = [name for name in self.names() if name not in (SHIPPED_NAME, CONFIGURED)]
        gone = [name for name in own if name not in kept][: max(0, len(own) - keep)]
        for name in gone:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return gone

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each model for a list: name, what it is, whether it passes its checks, its own word on its training."""
        try:
            found = self.standing()
        except ModelError:
            found = self._nothing_promoted()
        for name in self.names():
            row: dict[str, Any] = {"name": name, "standing": _place(name, found), "path": str(self.path(name))}
            try:
                manifest = describe(self.path(name))
            except ModelError as error:
                yield row | {"accepted": False, "refused_because": str(error)}
                continue
            yield row | {
                "accepted": manifest["accepted"],
                "refused_because": manifest["refused_because"],
                "sha256": manifest["model"]["sha256"],
                "hidden": manifest["model"]["hidden"],
                "started_from": manifest["training"].get("started_from", ""),
                "outlet_hours": manifest["training"].get("outlet_hours"),
            }

    def _write(self, found: Standing) -> Standing:
        try:
            self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            write_durably(self.folder / STANDING, json.dumps({"schema": SCHEMA, **asdict(found)}) + "\n")
        except OSError as error:
            raise ModelError(
                f"{self.folder}: {error.strerror}; the model that stood goes on (the daemon's user must own daemon.state_dir)"
            ) from None
        return found


def _place(name: str, found: Standing) -> str:
    if name == found.current:
        return "current"
    return "previous" if name == found.previous else ""
