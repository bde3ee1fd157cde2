"""What local programs send us on the telemetry feed, and node_exporter's pages."""

import json
import math
import re
from pathlib import Path

from fuzz.target import Choices, Target, must

from rpi_daemon.clock import ManualClock
from rpi_daemon.drivers.hosts.exposition import BadPage
from rpi_daemon.drivers.hosts.exposition import parse as parse_page
from rpi_daemon.drivers.hosts.feed import MAX_BYTES, PER_LOAD_AND_SECOND, TelemetryFeed
from rpi_daemon.drivers.hosts.shares import WANTED
from rpi_daemon.records import TELEMETRY, HostReading

JSON_TEXTS = (
    "null", "true", "0", "-1", "1", "250.5", "1e6", "1e7", "1e400", "NaN", "-Infinity", '"a/1"', '"n1"', '"advisory"', '"closed_loop"',
    '""', '"\\ud800"', '"\\u0000"', "[]", '["a/1"]', '["a/1", 5]', "[[[]]]", "{}", '{"promoted": true}', '"../../etc"', "9" * 400, '"x"',
)  # fmt: skip


# --- telemetry feed


LOADS = ("n1", "n2")


def line_of(choices: Choices) -> bytes:
    keys = [choices.one((*TELEMETRY, "load", "cpu", "x")) for _ in range(choices.below(6))]
    values = [
        choices.one(('"n1"', '"n2"'))
        if key == "load" and choices.byte() < 200
        else choices.one((*JSON_TEXTS, "0.5", "1.0"))
        for key in keys
    ]
    return b"{" + ", ".join(f'"{key}": {value}' for key, value in zip(keys, values, strict=True)).encode() + b"}"


def datagram_of(choices: Choices) -> bytes:
    """One line, many, one around the longest datagram, or anything."""
    kind = choices.byte()
    if kind < 90:
        return choices.take(choices.byte())
    if kind < 180:
        return line_of(choices)
    if kind < 200:
        return b'{"load": "n1"}'.ljust(MAX_BYTES - 1 + choices.below(3))
    if kind < 210:
        return b"".join(b'{"load": "x%d"}\n' % i for i in range(choices.byte()))[:MAX_BYTES]
    lines = [
        choices.one((b'{"load": "n1"}', b'{"load": "n2", "cpu": 0.5}', b"", b" ")) for _ in range(choices.below(80))
    ]
    return choices.one((b"\n", b"\r\n", b"\r")).join([line_of(choices), *lines, line_of(choices)])


def said(line: bytes) -> tuple[str, dict[str, float | None]] | None:
    """A line read a second time; None for what is none."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(document) is not dict or not set(document) <= {"load", *TELEMETRY} or type(document.get("load")) is not str:
        return None
    shares = {key: value for key, value in document.items() if key != "load"}
    good = all(value is None or (type(value) in (int, float) and 0 <= value <= 1) for value in shares.values())
    return (document["load"], shares) if good and document["load"] else None


def check_feed(data: bytes) -> bool:
    choices = Choices(data)
    clock = ManualClock()
    feed = TelemetryFeed(Path("unused"), 0o600, LOADS, clock)
    newest: dict[str, HostReading] = {}
    received = refused = dropped = unknown = 0
    rate = allowance = PER_LOAD_AND_SECOND * len(LOADS) * 1.0
    while choices and received < 2000:
        datagram = datagram_of(choices)
        seconds = choices.byte() / 64.0
        clock.advance(seconds)
        allowance = min(rate, allowance + rate * seconds)
        feed.take(datagram)
        if len(datagram) > MAX_BYTES:
            refused += 1
            continue
        for line in filter(bytes.strip, re.split(rb"\r\n|\r|\n", datagram)):
            received += 1
            if allowance < 1.0:
                dropped += 1
                continue
            allowance -= 1.0
            if (found := said(line)) is None:
                refused += 1
            elif found[0] not in LOADS:
                unknown += 1
            else:
                newest[found[0]] = HostReading(found[0], clock.mono_ns(), **found[1])
    must(
        (feed.received, feed.refused, feed.dropped) == (received, refused, dropped),
        feed.status(),
        received,
        refused,
        dropped,
    )
    must(sum(feed.unknown.values()) == unknown and len(feed.unknown) <= 33, feed.unknown)
    must(all(name.isprintable() and len(name) <= 64 for name in feed.unknown), feed.unknown)
    json.dumps(feed.status(), allow_nan=False).encode()
    readings = feed.take_readings()
    must({reading.load: reading for reading in readings} == newest and len(readings) == len(newest), readings, newest)
    for reading in readings:
        for key in TELEMETRY:
            share = getattr(reading, key)
            must(share is None or (type(share) is float and 0.0 <= share <= 1.0), key, share)
    must(feed.take_readings() == [], "told twice")
    return bool(readings)


def feed_seeds() -> list[bytes]:
    texts = [
        b'{"load": "n1", "cpu": 0.5, "memory": null}',
        b'{"load": "other", "cpu": 1}\n{"load": "n1", "net": 0}\n\n',
        b"[1]",
    ]
    return [
        *(bytes([0, len(text)]) + text for text in texts), *(bytes([185, i, 0]) * 2 for i in range(3)), bytes([205, 60]),
        *(bytes([100, 2, 0, i % 9, 0, i]) + bytes([i]) * 4 for i in range(30)), *(bytes([220, 79, *range(90)]) + bytes([220, i, 79]) * 2 for i in range(3)),
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
    "what is kept, refused, dropped or unknown after some datagrams differs from a second reading of them: the newest of each load, no share "
    "outside 0..1, no unknown load by a name that cannot be printed, no more lines than the rate allows",
    (
        "drivers/hosts/feed.py:parse_line",
        "drivers/hosts/feed.py:TelemetryFeed.take",  # and take_readings
        "drivers/hosts/feed.py:TelemetryFeed._refuse",
        "drivers/hosts/feed.py:TelemetryFeed._within_rate",
        "drivers/hosts/feed.py:TelemetryFeed.status",
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
