"""What local programs send us on the telemetry feed, and node_exporter's pages."""

import json
import math
from pathlib import Path

from fuzz.target import Choices, Target, must

from rpi_daemon.clock import ManualClock
from rpi_daemon.drivers.hosts.exposition import BadPage
from rpi_daemon.drivers.hosts.exposition import parse as parse_page
from rpi_daemon.drivers.hosts.feed import BadLine, TelemetryFeed, parse_line
from rpi_daemon.drivers.hosts.shares import WANTED
from rpi_daemon.records import TELEMETRY

JSON_TEXTS = (
    "null", "true", "0", "-1", "1", "250.5", "1e6", "1e7", "1e400", "NaN", "-Infinity", '"a/1"', '"n1"', '"advisory"', '"closed_loop"',
    '""', '"\\ud800"', '"\\u0000"', "[]", '["a/1"]', '["a/1", 5]', "[[[]]]", "{}", '{"promoted": true}', '"../../etc"', "9" * 400, '"x"',
)  # fmt: skip


# --- telemetry feed


def check_feed(data: bytes) -> bool:
    choices = Choices(data)
    if choices.below(3) == 0:
        line = choices.rest()
    else:
        keys = [choices.one((*TELEMETRY, "load", "cpu", "x")) for _ in range(choices.below(6))]
        values = [
            '"n1"' if key == "load" and choices.byte() < 200 else choices.one((*JSON_TEXTS, "0.5", "1.0"))
            for key in keys
        ]
        line = b"{" + ", ".join(f'"{key}": {value}' for key, value in zip(keys, values, strict=True)).encode() + b"}"
    feed = TelemetryFeed(Path("unused"), 0o600, ["n1"], ManualClock())
    feed.take(line)
    readings = feed.take_readings()
    must(feed.received + feed.refused <= len(line.splitlines()) * 2 + 1 and len(feed.unknown) <= 33, feed.status())
    json.dumps(feed.status(), allow_nan=False).encode()
    for reading in readings:
        must(reading.load == "n1", reading)
        for key in TELEMETRY:
            share = getattr(reading, key)
            must(share is None or (type(share) is float and 0.0 <= share <= 1.0), key, share)
    try:
        load, shares = parse_line(line)
    except BadLine:
        return bool(readings)
    must(parse_line(json.dumps({"load": load, **shares}).encode()) == (load, shares), line)
    return True


def feed_seeds() -> list[bytes]:
    return [
        b'\0{"load": "n1", "cpu": 0.5, "memory": null}', b'\0{"load": "other", "cpu": 1}\n{"load": "n1", "net": 0}\n\n', b"\0[1]",
        *(bytes([1, 2, 0, i % 9, 0, i]) + bytes([i]) * 4 for i in range(30)),
    ]  # fmt: skip


# --- node_exporter's page


METRICS = tuple(sorted(WANTED))
PARTS = ("{", "}", '{cpu="0",mode="idle"}', '{device="eth0"}', '{a="\\n\\"\\\\"}', '{a="', " 1", " 1.5e9", " NaN", " +Inf", " 1 2", " x",
         "\n", " ", "\t", "# HELP ", '{cpu="0",cpu="1"}', "{,}", " 0x1", " 1_0", "\r", " ١")  # fmt: skip


def check_page(data: bytes) -> bool:
    choices = Choices(data)
    if choices.below(3) == 0:
        page = choices.rest()
    else:
        page = b""
        while choices and len(page) < 5000:
            how = choices.byte()
            page += (
                (choices.one(METRICS) if how < 80 else choices.one(PARTS)).encode()
                if how < 240
                else choices.take(how - 238)
            )
        page += b"\n"
    try:
        samples = parse_page(page, WANTED)
    except BadPage:
        return False
    text = page.decode()
    must(set(samples) <= WANTED, samples)
    for series in samples.values():
        for labels, value in series.items():
            must(type(value) is float and list(labels) == sorted(set(labels)), labels)
    again = "".join(
        f"{name}{{{','.join(f'{key}={quoted(word)}' for key, word in labels)}}} {written(value)}\n"
        for name, series in samples.items()
        for labels, value in series.items()
    )
    must(repr(parse_page(again.encode() or b"\n", WANTED)) == repr(samples), again)
    lines = [line.lstrip(" \t").rstrip(" \t\r") for line in text.split("\n")]  # no name begins behind another character
    named = [
        line
        for line in lines
        if any(line == name or (line[len(name) :][:1] in " \t{" and line.startswith(name)) for name in METRICS)
    ]
    must(sum(map(len, samples.values())) == len([line for line in named if line]), "a line is lost", page)
    return bool(samples)


def quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written(value: float) -> str:
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if math.isnan(value) else repr(value))


def page_seeds() -> list[bytes]:
    return [
        b'\0node_cpu_seconds_total{cpu="0",mode="idle"} 1.5\nnode_memory_MemTotal_bytes 8e9\n# x\n', b"\0\n",
        b'\0node_network_receive_bytes_total{device="a\\"b"} NaN 1395066363000\n',
        *(bytes([1]) + bytes([0, i, 100, i, 100, 6, 100, 12]) * 2 for i in range(22)),
    ]  # fmt: skip


FEED = Target(
    "feed",
    "a share outside 0..1 or of an unknown load is kept; a line does not read the same when it is written again",
    (
        "drivers/hosts/feed.py:parse_line",
        "drivers/hosts/feed.py:TelemetryFeed.take",
        "drivers/hosts/feed.py:TelemetryFeed._refuse",
    ),
    feed_seeds,
    check_feed,
)
PAGE = Target(
    "exposition",
    "a page does not read the same when its samples are written again; a line of a wanted metric is passed over",
    ("drivers/hosts/exposition.py",),
    page_seeds,
    check_page,
)
