"""Recorded runs: a header, ticks and scans, damaged by themselves and together, read as a replay reads them."""

import copy
import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from config_examples import BASE, parse
from fuzz.target import Choices, Target, must, scratch

from rpi_daemon._fastpath.core import BoardDescription, ChannelDescription, Ring
from rpi_daemon.calibration import own_word
from rpi_daemon.clock import ManualClock
from rpi_daemon.dry_run import dry_run_recording
from rpi_daemon.errors import RpiError, TraceError
from rpi_daemon.guard import HealthFlags
from rpi_daemon.pipeline import TickInputs
from rpi_daemon.recording import HEADER_FILE, MODEL_FOLDER, SCHEMA, TICKS_FILE, Recorder, Recording, TapeClock
from rpi_daemon.records import Ceiling, Hint, HostReading, Mode

TICKS, SCANS = 3, 40  # of the small run; a scan is SCAN octets on disk


@functools.cache
def recorded() -> dict[str, bytes]:
    """The files of a small run, as the recorder writes them."""
    folder = scratch() / "recorded"
    channels = [ChannelDescription("current", n, 0.001, 0, 8_000_000, f"I{n}") for n in (1, 2)]
    channels.append(ChannelDescription("voltage", 1, 0.1, 50, 8_000_000, "U1"))
    board = BoardDescription(1000, 1_000_000, "A-17", "1.0", 750_000, tuple(channels))
    ring = Ring(bytearray(Ring.bytes_needed(3, 1000)), n_channels=3, capacity=1000)
    link = SimpleNamespace(ring=ring, board=SimpleNamespace(id="b"), description=board, correction=own_word(board))
    recorder = Recorder(folder, [link], ManualClock())  # type: ignore[list-item]
    recorder.begin(parse(BASE.replace("profile", "writes_per_day = 50\nprofile")), [False, False], without_model=True)
    for tick in range(1, TICKS + 1):
        for index in range((tick - 1) * SCANS, tick * SCANS):
            counts = np.array([700, 900, 2300], np.int32)
            ring.push(index, index * 1_000_000, index * 1000, 0, counts, flags=0)
        recorder.clock.mono_ns()
        now_ns = tick * 100_000_000
        inputs = TickInputs(
            now_ns, now_ns, Mode.ADVISORY, HealthFlags(), hints=(Hint("n1", 5.0, now_ns, 2.0),),
            ceilings=(Ceiling("a/1", 200.0, "operator", "x"),), host_readings=(HostReading("n1", 5, cpu=0.5),),
            released=frozenset(("a/2",)), acknowledged=("foreign_writer:a",),
        )  # fmt: skip
        recorder.add(inputs, [tick * SCANS], "00ff")
    recorder.close()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(content: bytes, choices: Choices) -> bytes:
    """Cut off, with other octets in it or behind it."""
    kind = choices.below(4)
    if kind == 0:
        return content[: (choices.byte() << 8 | choices.byte()) % (len(content) + 1)] + choices.take(choices.below(9))
    if kind == 1:
        return content + choices.take(1 + choices.byte())
    octets = bytearray(content)
    for _ in range(1 + choices.below(4)):
        if octets:
            octets[(choices.byte() << 8 | choices.byte()) % len(octets)] = choices.byte()
    return bytes(octets)


def header_of(choices: Choices) -> bytes:
    document = json.loads(recorded()[HEADER_FILE])
    kind = choices.byte()
    if kind >= 240:
        document["schema"] = choices.one((0, 1, SCHEMA + 1, True, 2.0, "2"))
    elif kind >= 200:  # as many of each as the racks and boards are not
        key = choices.one(("boards", "corrections", "opted_in"))
        document[key] = choices.one(([], document[key] * 2, document[key][:-1]))
    elif kind >= 160:
        part = choices.one((document["boards"][0], document["boards"][0]["channels"][0], document["corrections"][0]))
        part[choices.one(sorted(part))] = copy.deepcopy(choices.one(JSON_VALUES))
    elif kind >= 110:
        change(document, choices)
    content = json.dumps(document).encode()
    return damaged(content, choices) if 100 <= kind < 110 else content


def ticks_of(choices: Choices) -> bytes:
    lines = []
    for line in recorded()[TICKS_FILE].splitlines():
        document, kind = json.loads(line), choices.byte()
        if kind >= 250:
            continue
        if kind >= 200:
            document["scans"] = copy.deepcopy(choices.one(COUNTS))
        elif kind >= 180:
            document["clock"] = copy.deepcopy(choices.one(COUNTS))
        elif kind >= 100:
            part = document if kind >= 170 else document["inputs"]
            for _ in range(1 + choices.below(3)):
                change(part, choices)
        lines.append(json.dumps(document).encode())
    content = b"\n".join(lines) + b"\n"
    return damaged(content, choices) if choices.byte() >= 200 else content


def scans_of(choices: Choices) -> bytes:
    content = recorded()["b.scans"]
    size = len(content) // (TICKS * SCANS)
    kind = choices.byte()
    if kind >= 250:
        return content[: choices.byte() * size]
    if kind >= 220:
        return damaged(content, choices)
    if kind >= 180:  # scans in another order, or twice
        at, other = choices.byte() * size, choices.byte() * size
        return content[:at] + content[other : other + size] + content[at:]
    return content


class Stepped:
    """In the place of a pipeline: takes the inputs, and asks for the time as often as a tick does here."""

    def __init__(self, clock: TapeClock, asks: int) -> None:
        self.inputs: list[TickInputs] = []
        self._clock, self._asks = clock, asks

    def step(self, inputs: TickInputs) -> None:
        for _ in range(self._asks):
            must(type(self._clock.mono_ns()) is int)
        self.inputs.append(inputs)


def check(data: bytes) -> bool:
    choices = Choices(data)
    folder = scratch() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / MODEL_FOLDER).mkdir(parents=True) if choices.byte() >= 200 else folder.mkdir()
    which = choices.byte()  # what is damaged, and what is not there at all
    files = {
        HEADER_FILE: header_of(choices) if which & 1 else recorded()[HEADER_FILE],
        TICKS_FILE: ticks_of(choices) if which & 2 else recorded()[TICKS_FILE],
        "b.scans": scans_of(choices) if which & 4 else recorded()["b.scans"],
    }
    for number, (name, content) in enumerate(files.items()):
        if which >> 4 != 13 + number:
            (folder / name).write_bytes(content)
    if choices.byte() >= 252:  # all of it, with the pipeline behind it
        return whole(folder)
    try:
        recording = Recording(folder)
        rings = [ring_of(len(board.channels)) for board in recording.boards]
        steps = list(replayed(recording, rings, asks=choices.byte() % 3))
    except TraceError as error:
        must(str(folder) in str(error) or "another version" in str(error), error)
        return False
    check_read(files, recording, rings, steps)
    return True


def whole(folder: Path) -> bool:
    """As `dry-run --recording`."""
    try:
        document = dry_run_recording(folder)
    except RpiError as error:
        must(len(str(error)) < 5000, error)
        return False
    json.dumps(document, allow_nan=False)
    must(document["ticks"] <= TICKS + 1, document)
    return True


def ring_of(n_channels: int) -> Ring:
    return Ring(bytearray(Ring.bytes_needed(n_channels, 1000)), n_channels=n_channels, capacity=1000)


def replayed(recording: Recording, rings: list[Ring], asks: int) -> Iterator[tuple[TickInputs, str]]:
    stepped = Stepped(recording.clock, asks)
    for _, digest in recording.replay(rings, lambda: stepped):  # type: ignore[arg-type,return-value]
        yield stepped.inputs[-1], digest


def check_read(
    files: dict[str, bytes], recording: Recording, rings: list[Ring], steps: list[tuple[TickInputs, str]]
) -> None:
    """Held against the files, read a second time: as many ticks, the same numbers, the scans that they claim."""
    header = json.loads(files[HEADER_FILE])
    must(type(header["schema"]) is int and header["schema"] == SCHEMA, header["schema"])
    must([b["serial_number"] for b in header["boards"]] == [b.serial_number for b in recording.boards])
    for board, correction in zip(recording.boards, recording.corrections, strict=True):
        must(len(correction.gain) == len(board.channels), correction)
        must(
            all(
                math.isfinite(x)
                for row in (correction.gain, correction.offset_counts, correction.delay_ns)
                for x in row
            )
        )
    must(len(recording.header.opted_in) == len(recording.config.outlets()), recording.header.opted_in)
    lines = [json.loads(line) for line in files[TICKS_FILE].split(b"\n") if line]
    must(len(lines) == len(steps), len(steps))
    for line, (inputs, digest) in zip(lines, steps, strict=True):
        must(digest == line["digest"] and type(digest) is str, digest)
        must(inputs.now_ns == line["inputs"]["now_ns"] and type(inputs.now_ns) is int, inputs.now_ns)
        must(all(math.isfinite(x) for hint in inputs.hints for x in (hint.delta_w, hint.for_s)), inputs.hints)
    scans = np.frombuffer(
        files["b.scans"][: sum(line["scans"][0] for line in lines) * rings[0].scans.dtype.itemsize],
        rings[0].scans.dtype,
    )
    must(sum(line["scans"][0] for line in lines) == len(scans), "scans that are not there")
    must(rings[0].head == (int(scans["index"][-1]) + 1 if len(scans) else 0), rings[0].head)


JSON_VALUES = (None, True, 0, -1, 1.5, 1e308, 2**70, "", "x", [], [0], ["x"], {}, {"a": 1}, "0001", [1, 2, 3], "NaN")


def change(document: object, choices: Choices) -> None:
    """Replace, drop or add something somewhere in a JSON document."""
    place_in = document
    for _ in range(choices.below(5)):
        inner = place_in[choices.one(sorted(place_in))] if isinstance(place_in, dict) and place_in else None
        if isinstance(place_in, list) and place_in:
            inner = place_in[choices.byte() % len(place_in)]
        if not isinstance(inner, dict | list):
            break
        place_in = inner
    value = copy.deepcopy(choices.one(JSON_VALUES))
    if isinstance(place_in, dict):
        key = choices.one(sorted(place_in)) if place_in and choices.byte() < 200 else choices.take(3).decode("latin-1")
        if choices.byte() < 50:
            place_in.pop(key, None)
        else:
            place_in[key] = value
    elif isinstance(place_in, list):
        place_in.insert(choices.byte() % (len(place_in) + 1), value)


COUNTS = ([], [0], [40], [1], [41], [120], [121], [-1], [2**70], [True], ["1"], [1.0], [100, 0], None, 5, [0, 1, 2])


def seeds() -> list[bytes]:
    found = [b"\0\0", b"\0\0\xff", b"\xff\0\0", b"\xff\0\xff"]
    found += [bytes([0, number << 4, 0]) for number in (13, 14, 15)]
    found += [bytes([0, 1, kind, i, i, 255 * (i % 2)]) for kind in (105, 120, 170, 210, 250) for i in range(9)]
    found += [
        bytes([0, 2, kind, i, 1, i, 0, 0, 0, 255 * (i % 2)]) for kind in (120, 175, 190, 210, 250) for i in range(16)
    ]
    found += [bytes([0, 4, kind, i, 3 * i, 0, 255 * (i % 2)]) for kind in (100, 190, 230, 251) for i in range(9)]
    found += [bytes([0, 7, *range(i, i + 20)]) for i in range(0, 240, 12)]
    return found


TARGET = Target(
    "recording",
    "a run is replayed whose ticks, inputs or digests are not those that the files hold when they are read a second time, whose header has "
    "not one correction for each channel of each board and one choice for each outlet, whose numbers are not finite or not of their kind, "
    "or which claims scans that are not there",
    (
        "rpi_daemon/recording.py:Recording",
        "rpi_daemon/recording.py:TapeClock",
        "rpi_daemon/recording.py:_open",
        "rpi_daemon/recording.py:_refill",
        "rpi_daemon/recording.py:_fits",
        "rpi_daemon/dry_run.py:dry_run_recording",
        "rpi_daemon/dry_run.py:_replayed",
    ),
    seeds,
    check,
)
