"""A recorded run: what reached each tick, and the scans of every board; it replays to the same decisions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from rpi_daemon._fastpath.core import Ring
from rpi_daemon.errors import TraceError
from rpi_daemon.pipeline import Pipeline, Snapshot, TickInputs

if TYPE_CHECKING:
    from rpi_daemon.sensing import BoardLink

TICKS_FILE = "ticks.jsonl"
_INPUTS = TypeAdapter(TickInputs)


class Recorder:
    """Appends each tick's inputs as a JSON line and each board's new scans as they lie in the ring."""

    def __init__(self, folder: Path, boards: Sequence["BoardLink"]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._boards = boards
        self._ticks: BinaryIO = (folder / TICKS_FILE).open("wb")
        self._scans = [(folder / f"{link.board.id}.scans").open("wb") for link in boards]
        self._next = [link.ring.head for link in boards]

    def add(self, inputs: TickInputs, ends: Sequence[int]) -> None:
        """Write down one tick: its inputs, and the scans up to the window that it used of each board."""
        counts = []
        for k, link in enumerate(self._boards):
            first = max(self._next[k], ends[k] - link.ring.capacity + 1000)
            spans = link.ring.spans(first, max(0, ends[k] - first))
            counts.append(sum(len(span) for span in spans))
            for span in spans:
                self._scans[k].write(span.tobytes())
            self._next[k] = max(self._next[k], ends[k])
        record = {"scans": counts, "inputs": _INPUTS.dump_python(inputs)}
        self._ticks.write(json.dumps(record, default=_plain, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """End the recording."""
        for file in (self._ticks, *self._scans):
            file.close()


def replay(folder: Path, boards: Sequence[str], rings: Sequence[Ring], pipeline: Pipeline) -> Iterator[Snapshot]:
    """Drive a fresh pipeline over a recording; yields each tick's snapshot. Raises TraceError where it is cut off."""
    files = [_open(folder / f"{board}.scans") for board in boards]
    ticks = _open(folder / TICKS_FILE)
    try:
        for number, line in enumerate(ticks, start=1):
            try:
                record = json.loads(line)
                inputs = _INPUTS.validate_python(record["inputs"])
            except (ValueError, KeyError) as error:
                raise TraceError(f"{folder / TICKS_FILE}:{number}: not a recorded tick: {error}") from None
            for file, ring, n in zip(files, rings, record["scans"], strict=True):
                _refill(ring, file, n)
            yield pipeline.step(inputs)
    finally:
        for file in (ticks, *files):
            file.close()


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else sorted(value) if isinstance(value, frozenset) else str(value)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


def _refill(ring: Ring, file: BinaryIO, n: int) -> None:
    """Put the next n recorded slots into the ring; a slot that holds an older scan was a lost one and stays lost."""
    scans: NDArray[np.void] = np.frombuffer(file.read(n * ring.scans.dtype.itemsize), dtype=ring.scans.dtype)
    for scan in scans:
        if int(scan["index"]) >= ring.head:
            ring.push(
                int(scan["index"]), int(scan["t_mono_ns"]), int(scan["ticks"]), int(scan["status"]), scan["counts"],
                flags=int(scan["flags"]),
            )  # fmt: skip
