"""Files that users give us: power traces and SNMP recordings."""

import io
import itertools
import math
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
from fuzz.target import Choices, Target, must, scratch

from rpi_daemon.drivers.pdu.snmprec import parse_oid, read_snmprec
from rpi_daemon.drivers.sensors.traces import POWER_W_RANGE, read_traces
from rpi_daemon.errors import TraceError

DTYPES = ("<f8", "<f4", "<i8", "<u4", "|b1", "<c16", "|O", "<U4", "|V8", "[('a', '<f8')]", ">f8", "<M8[s]")
SHAPES = (
    "(3,)",
    "(3, 2)",
    "(0,)",
    "(1,)",
    "()",
    "(3, 0)",
    "(9999999999,)",
    "(-3,)",
    "(3, 99999999)",
    "3",
    "(3,",
    "('a',)",
)
NUMBERS = (0.0, 1.0, 2.0, 0.5, -1.0, 1e9, math.nan, math.inf, 100.0, -1e3, 1e6, 5e-324, 1e308, -1e308, 1e15, 1e-15)
CELLS = (
    "0",
    "1",
    "2",
    "0.1",
    "nan",
    "1e9",
    "-5",
    "",
    "a",
    "1_0",
    " 3",
    "0x1",
    "inf",
    "١",
    '"',
    "t_s",
    "power_w",
    "1e400",
    "1e308",
    "-1e308",
    "1e-15",
    "1e15",
)


# --- traces


def npy(choices: Choices) -> bytes:
    """An array file: the header's dictionary and the numbers as the choices say, the header's length right."""
    how = choices.byte()
    dtype, shape = choices.one(DTYPES[:3]), choices.one(SHAPES[:2])
    if how >= 128:
        dtype, shape = choices.one(DTYPES), choices.one(SHAPES)
    quoted = dtype if dtype.startswith("[") else f"'{dtype}'"
    header = f"{{'descr': {quoted}, 'fortran_order': {choices.byte() >= 250}, 'shape': {shape}, }}"
    if how >= 250:
        header = choices.take(choices.below(60)).decode("latin-1")
    version = b"\1\0" if choices.byte() < 240 else bytes([choices.below(5), 0])
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header) + 1)
    numbers = [choices.one(NUMBERS) if choices.byte() >= 128 else float(i) for i in range(6)]
    numbers = [n if dtype[1] == "f" or math.isfinite(n) else 0.0 for n in numbers]
    with np.errstate(over="ignore"):  # what a small float does not hold is infinite
        content = np.array(
            numbers, dtype if dtype in DTYPES[:2] and choices.byte() < 250 else "<f8", copy=True
        ).tobytes()
    return (
        b"\x93NUMPY" + version + length + header.encode("latin-1") + b"\n" + content[: 24 if "2" not in shape else 48]
    )


def npz(choices: Choices) -> bytes:
    """An archive with right checksums; one in four damaged afterwards."""
    out = io.BytesIO()
    method = choices.one((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in ("t_s.npy", "power_w.npy"):
            if choices.byte() < 245:
                archive.writestr(zipfile.ZipInfo(name), npy(choices), method)
    whole = bytearray(out.getvalue())
    for _ in range(max(0, choices.byte() - 250)):
        whole[choices.byte() * 7 % len(whole)] = choices.byte()
    return bytes(whole)


def check_traces(data: bytes) -> bool:
    choices = Choices(data)
    kind = choices.below(4)
    if kind <= 1:
        name, content = "t.npz", npz(choices) if kind else choices.rest()
    elif kind == 2:
        name, content = "t.csv", choices.rest()
    else:
        rows = [[choices.one(CELLS) for _ in range(2 + choices.byte() // 240)] for _ in range(choices.below(7))]
        lines = ["t_s,power_w" if choices.byte() < 230 else "x,y", *(",".join(row) for row in rows)]
        name, content = "t.csv", "\n".join(lines).encode()
    path = scratch() / name
    path.write_bytes(content)
    if choices.byte() >= 253:
        path = choices.one((scratch() / "none.csv", scratch(), path.rename(scratch() / "t.txt")))
    try:
        traces = read_traces(path)
    except TraceError as error:
        must(str(path) in str(error), error)
        return False
    must(len(traces) >= 1, "no trace")
    for trace in traces:
        t_s, power_w = trace.t_s.tolist(), trace.power_w.tolist()
        must(len(t_s) == len(power_w) >= 2 and t_s[0] == 0.0, t_s)
        must(all(a < b for a, b in itertools.pairwise(t_s)) and math.isfinite(t_s[-1]), t_s)
        must(all(POWER_W_RANGE[0] <= p <= POWER_W_RANGE[1] for p in power_w), power_w)
        must(trace.step_s > 0.0 and trace.duration_s > t_s[-1], trace.step_s)
    rows = csv_rows(content.decode()) if name == "t.csv" else npz_rows(path)
    kept = [
        row
        for row, after in itertools.zip_longest(rows, rows[1:])
        if after is None or after[0] - rows[0][0] != row[0] - rows[0][0]
    ]
    must(traces[0].t_s.tolist() == [row[0] - kept[0][0] for row in kept], "other times", rows)
    must(
        [[p, *more] for p, *more in zip(*(trace.power_w.tolist() for trace in traces), strict=True)]
        == [row[1:] for row in kept],
        "other values",
        rows,
    )
    return True


def csv_rows(text: str) -> list[list[float]]:
    """The file, read a second time; quotes only as they come around a whole cell."""
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[1:] if line]
    cells = [[cell[1:-1] if cell[:1] == '"' == cell[-1:] else cell for cell in line.split(",")] for line in lines]
    must(all(NUMBER.fullmatch(cell) for row in cells for cell in row), "no number", text)
    return [[float(cell) for cell in row] for row in cells]


def npz_rows(path: Path) -> list[list[float]]:
    with np.load(path, allow_pickle=False) as archive:
        t_s, power_w = archive["t_s"], archive["power_w"]
    must(t_s.dtype.kind in "fiu" and power_w.dtype.kind in "fiu" and t_s.ndim == 1, t_s.dtype)
    return [[float(t), *map(float, np.atleast_1d(row))] for t, row in zip(t_s, power_w, strict=True)]


NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.A)


def trace_seeds() -> list[bytes]:
    found = [
        b"\2t_s,power_w\n0.0,100\n0.1,101\n0.1,102\n0.2,103\n",
        b'\2t_s,a,b\n0,1,2\n1,"2",3\n',
        b"\1" + bytes(40),
        b"\3" + bytes(30),
    ]
    for outlets in ((), (2,)):
        out = io.BytesIO()
        np.savez(out, t_s=np.arange(3.0), power_w=np.full((3, *outlets), 90.0))
        found.append(b"\0" + out.getvalue())
    found += [bytes([1, i % 2, 0, 128, i, i % 12, 0, 0]) + bytes([0, 0, 200, i]) * 8 for i in range(12)]
    found.append(bytes([3, 0, 0, 0, 1, 0, 0, 1, 2, 0, 2, 1, 5, 3, 2, 200]))
    return found


# --- snmprec


TAGS = ("2", "4", "4x", "5", "6", "64", "65", "66", "67", "70", "64x", "2x", "68", "x", "")
TEXTS = ("0", "-1", "4294967295", "18446744073709551616", "1.3.6.1", ".1.3", "01ff", "0", "10.0.0.1", "10.0.0.1.2", "a", "30 2 3",
         "1_0", " 7", "٣", "1..2", "", "|")  # fmt: skip
RANGES = {2: (-(2**31), 2**31 - 1), 65: (0, 2**32 - 1), 66: (0, 2**32 - 1), 67: (0, 2**32 - 1), 70: (0, 2**64 - 1)}
BITS = {(1, 3, 6, 1, 9): 2}


def check_snmprec(data: bytes) -> bool:
    choices = Choices(data)
    if choices.below(3) == 0:
        content = choices.rest()
    else:
        lines = [
            b"|".join(
                (
                    choices.one(
                        (b"1.3.6.1.9.1", b"1.3.6.1.2", b".1.3", b"1", b"1.3.99999999999", b"1.-3", b"", b"2.999.1")
                    ),
                    choices.one(TAGS).encode(),
                    choices.one(TEXTS).encode() if choices.byte() < 200 else choices.take(choices.below(12)),
                )
            )
            for _ in range(1 + choices.below(4))
        ]
        content = b"\n".join(lines)
    path = scratch() / "t.snmprec"
    path.write_bytes(content)
    try:
        found = read_snmprec(path, BITS)
    except TraceError as error:
        must(str(path) in str(error), error)
        return False
    for oid, (tag, value) in found.items():
        must(oid == parse_oid(".".join(map(str, oid))) and 1 <= len(oid) <= 128 and max(oid) < 2**32, oid)
        if tag in RANGES:
            must(type(value) is int and RANGES[tag][0] <= value <= RANGES[tag][1], tag, value)
            written = {int(number) for number in re.findall(rb"-?\d+", content)}  # with zeros before it, too
            must(value in written, "a number that is not written there", value)
        elif tag == 64:
            must(type(value) is bytes and len(value) == 4, value)
        elif tag == 6:
            must(type(value) is tuple and 1 <= len(value) <= 128 and max(value) < 2**32, value)
        else:
            must((type(value) is bytes) if tag == 4 else (tag == 5 and value is None), tag, value)
    return True


def snmprec_seeds() -> list[bytes]:
    texts = [
        b"1.3.6.1.2.1.1.1.0|4|PDU\n1.3.6.1.2.1.1.3.0|67|5\n", b"1.3.6.1.9.1|4|30 2 3", b"1.3|4x|00ff\n1.4|64|10.0.0.1\n1.5|5|",
        b"1.3.6|6|1.3.6.1.4\n# a comment\n\n1.7|70|18446744073709551615", b"1.3|2|-5\n1.3.1|64x|0a000001",
    ]  # fmt: skip
    return [*(b"\0" + text for text in texts), *(bytes([1, 3, *(3 * [i, i, i])]) for i in range(18))]


TRACES = Target(
    "traces",
    "a trace is taken whose times do not start at 0 and rise strictly, whose power is not finite or outside the allowed range, or that "
    "holds other times or values than the file when it is read a second time (CSV by hand; the last of equal times)",
    ("drivers/sensors/traces.py", "rpi_daemon/arrays.py"),
    trace_seeds,
    check_traces,
)
SNMPREC = Target(
    "snmprec",
    "a value is taken that its tag cannot hold, an address not of 4 octets, an OID that SNMP does not have, or a number that is not "
    "written in the file",
    ("drivers/pdu/snmprec.py",),
    snmprec_seeds,
    check_snmprec,
)
