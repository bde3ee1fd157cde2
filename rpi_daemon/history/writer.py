"""The threads that write to disk, so that no disk ever keeps the control loop waiting."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

Job = Callable[[], None]

CLOSE_TIMEOUT_S: Final = 5.0  # for what still waits at the end, on a disk that hangs

log = structlog.get_logger(__name__)


class Writer:
    """Does jobs one after the other. Any thread may call `put`, which never waits; who calls it bounds what it has waiting.

    A job counts its own failures: it raises nothing. One that does all the same is a defect, and costs itself alone.
    """

    def __init__(self, name: str = "history") -> None:
        self.busy_ns: int | None = None  # CLOCK_MONOTONIC: when the job at hand began; None: it waits for one
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # A daemon thread: one that is stuck in `write` must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def thread_id(self) -> int:
        """The kernel's number of the thread, once it was started."""
        return self._thread.native_id or 0

    def put(self, job: Job) -> None:
        """Have a job done after those before it."""
        self._jobs.put(job)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Do what waits, and what that brings; end the thread. False where the disk did not let it end in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        closing = failed = False
        while not (closing and self._jobs.empty()):
            self.busy_ns = None
            job = self._jobs.get()
            self.busy_ns = time.monotonic_ns()
            if job is None:
                closing = True
                continue
            try:
                job()
                failed = False
            except Exception as error:  # noqa: BLE001  whatever it is, the jobs after it are done
                if not failed:  # what is told is a job, too: one that fails must not bring the next
                    log.error("history.defect", error=repr(error))
                failed = True
