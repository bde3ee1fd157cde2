"""Runs a training process to its end: its order, its progress, its result read as data, and its end when told."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rpi_daemon.errors import RpiError
from rpi_daemon.retrain.child import order_of
from rpi_daemon.retrain.confine import network_of
from rpi_daemon.retrain.gate import Scores, scores_of
from rpi_daemon.retrain.launch import TrainingProcess, begin

LINE_BYTES: Final = 1 << 20  # more than any result has
LOOK_S: Final = 0.5  # between two looks at memory and time
PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20

Progress = Callable[[str, float], None]  # stage, part that is done


class TrainingError(RpiError):
    """A training ended without a result; the model that stands goes on."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a training process said at its end."""

    material: Mapping[str, Any]
    why_not: str = ""  # nothing was trained, because
    name: str = ""
    sha256: str = ""
    scores: Scores | None = None
    not_confined: tuple[str, ...] = ()
    peak_mb: float = 0.0
    took_s: float = 0.0
    document: Mapping[str, Any] = field(default_factory=dict)


class Training:
    """One training process. `run` blocks until it has ended; `cancel` may be called from any thread, and ends it."""

    def __init__(
        self, order: Mapping[str, Any], *, memory_mb: float, minutes: float, listener: Path | None = None
    ) -> None:
        """`order`: what `training.carry_out` reads, but for what is added here. `listener`: see `launch.listener_of`."""
        self._order = {**order, "memory_mb": memory_mb, "minutes": minutes}
        self._memory_mb = memory_mb
        self._limit_s = 60.0 * minutes
        self._listener = listener
        self._process: TrainingProcess | None = None
        self._why: str | None = None  # it was ended
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._peak_mb = 0.0

    def run(self, progress: Progress = lambda *_: None) -> Result:
        """Raises TrainingError where it failed, was cancelled, or passed a limit."""
        began_s = time.monotonic()
        self._raise_if_told()
        self._process, no_unit = begin(self._listener)
        if self._why is not None:  # told meanwhile
            self._process.kill()
        watcher = threading.Thread(target=self._watch, args=(self._process, began_s), name="training watch")
        watcher.start()
        try:
            said = self._talk(self._process, progress)
        finally:
            self._ended.set()
            self._process.kill()
            how = self._process.wait()
            watcher.join()
        self._raise_if_told()
        if "error" in said:
            raise TrainingError(f"the training failed: {said['error']}")
        if "result" not in said:
            raise TrainingError(f"the training ended without a result ({how})")
        return self._result(said["result"], no_unit, time.monotonic() - began_s)

    def cancel(self, why: str) -> None:
        """End it, now or as soon as it begins; `run` then raises with this reason."""
        with self._lock:
            if self._why is not None or self._ended.is_set():
                return
            self._why = why
        if self._process is not None:
            self._process.kill()

    def _raise_if_told(self) -> None:
        if self._why is not None:
            raise TrainingError(f"the training was ended: {self._why}")

    def _talk(self, process: TrainingProcess, progress: Progress) -> dict[str, Any]:
        """Give the order, hear progress; the last document that was no progress."""
        said: dict[str, Any] = {}
        with contextlib.suppress(ConnectionError), process.connection.makefile("rb") as words:
            process.connection.sendall(order_of(parent=process.parent, network=network_of(), **self._order))
            process.meet()
            while line := words.readline(LINE_BYTES):
                try:
                    document = json.loads(line)
                    if "stage" in document:
                        progress(str(document["stage"]), min(1.0, max(0.0, float(document["done"]))))
                    else:
                        said = dict(document)
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    return {"error": "it said something that is no JSON line"}
        return said

    def _watch(self, process: TrainingProcess, began_s: float) -> None:
        """Memory as the kernel counts it, and time: the process limits itself, this is the second lock on the door."""
        while not self._ended.wait(LOOK_S):
            rss_mb = 0.0 if process.pid is None else _rss_mb(process.pid)
            self._peak_mb = max(self._peak_mb, rss_mb)
            if rss_mb > self._memory_mb:
                self.cancel(f"it took more than {self._memory_mb:g} MB of memory")
            if time.monotonic() - began_s > self._limit_s:
                self.cancel(f"it took longer than {self._limit_s / 60.0:g} minutes")

    def _result(self, said: Any, no_unit: str, took_s: float) -> Result:
        """Check what the process said, as anybody's words."""
        try:
            scores = scores_of(said["scores"]) if "scores" in said else None
            why_not = str(said.get("why_not", ""))
            if scores is None and not why_not:
                raise ValueError("neither scores nor a reason")
            return Result(
                dict(said["material"]), why_not, str(said.get("name", "")), str(said.get("sha256", "")), scores,
                (*filter(None, [no_unit]), *map(str, said["not_confined"])), round(self._peak_mb, 1), round(took_s, 1), dict(said),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TrainingError(f"the training's result is not understood ({error})") from None


def _rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError, ValueError):
        return 0.0  # it has ended
