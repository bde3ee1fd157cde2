"""Runs a training process to its end: its order, its progress, its result read as data, and its end when told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rpi_daemon.errors import RpiError
from rpi_daemon.retrain.child import order_of
from rpi_daemon.retrain.gate import Scores, scores_of

LINE_BYTES: Final = 1 << 20  # more than any result has
LOOK_S: Final = 0.5  # between two looks at memory and time
PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20
ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

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

    def __init__(self, order: Mapping[str, Any], *, memory_mb: float, minutes: float) -> None:
        """`order`: what `training.carry_out` reads, but for what is added here."""
        self._order = {**order, "memory_mb": memory_mb, "minutes": minutes}
        self._memory_mb = memory_mb
        self._limit_s = 60.0 * minutes
        self._process: subprocess.Popen[bytes] | None = None
        self._why: str | None = None  # it was ended
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._peak_mb = 0.0

    def run(self, progress: Progress = lambda *_: None) -> Result:
        """Raises TrainingError where it failed, was cancelled, or passed a limit."""
        began_s = time.monotonic()
        with self._lock:
            if self._why is not None:
                raise TrainingError(f"the training was ended: {self._why}")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rpi_daemon.retrain.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT}, start_new_session=True, cwd="/",
            )  # fmt: skip
        watcher = threading.Thread(target=self._watch, args=(began_s,), name="training watch")
        watcher.start()
        last_words = _Tail(self._process)
        try:
            said = self._talk(self._process, progress)
        finally:
            self._ended.set()
            self._kill()
            self._process.wait()
            watcher.join()
            words = last_words.close()
        if self._why is None and self._process.returncode == -signal.SIGXCPU:
            self._why = self._too_long  # its own lock on the door was first
        if self._why is not None:
            raise TrainingError(f"the training was ended: {self._why}")
        if "error" in said:
            raise TrainingError(f"the training failed: {said['error']}")
        if "result" not in said:
            raise TrainingError(f"the training ended without a result (exit code {self._process.returncode}){words}")
        return self._result(said["result"], time.monotonic() - began_s)

    def cancel(self, why: str) -> None:
        """End it, now or as soon as it begins; `run` then raises with this reason."""
        with self._lock:
            if self._why is None and not self._ended.is_set():
                self._why = why
        self._kill()

    def _talk(self, process: subprocess.Popen[bytes], progress: Progress) -> dict[str, Any]:
        """Give the order, hear progress; the last document that was no progress."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(order_of(parent=os.getpid(), **self._order))
            process.stdin.close()
        except BrokenPipeError:
            return {}
        said: dict[str, Any] = {}
        while line := process.stdout.readline(LINE_BYTES):
            try:
                document = json.loads(line)
                if "stage" in document:
                    progress(str(document["stage"]), min(1.0, max(0.0, float(document["done"]))))
                else:
                    said = dict(document)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                return {"error": "it said something that is no JSON line"}
        return said

    def _watch(self, began_s: float) -> None:
        """Memory as the kernel counts it, and time: the process limits itself, this is the second lock on the door."""
        assert self._process is not None
        while not self._ended.wait(LOOK_S):
            rss_mb = _rss_mb(self._process.pid)
            self._peak_mb = max(self._peak_mb, rss_mb)
            if rss_mb > self._memory_mb:
                self.cancel(f"it took more than {self._memory_mb:g} MB of memory")
            if time.monotonic() - began_s > self._limit_s:
                self.cancel(self._too_long)

    @property
    def _too_long(self) -> str:
        return f"it took longer than {self._limit_s / 60.0:g} minutes"

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it has a session of its own, and nothing to clean up

    def _result(self, said: Any, took_s: float) -> Result:
        """Check what the process said, as anybody's words."""
        try:
            scores = scores_of(said["scores"]) if "scores" in said else None
            why_not = str(said.get("why_not", ""))
            if scores is None and not why_not:
                raise ValueError("neither scores nor a reason")
            return Result(
                dict(said["material"]), why_not, str(said.get("name", "")), str(said.get("sha256", "")), scores,
                tuple(map(str, said["not_confined"])), round(self._peak_mb, 1), round(took_s, 1), dict(said),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TrainingError(f"the training's result is not understood ({error})") from None


class _Tail:
    """Reads standard error to its end, and keeps the last line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._last = b""
        self._thread = threading.Thread(target=self._run, name="training errors")
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last = line.strip() or self._last

    def close(self) -> str:
        """After the process has ended."""
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        return f": {self._last.decode(errors='replace')}" if self._last else ""


def _rss_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError, ValueError):
        return 0.0  # it has ended
