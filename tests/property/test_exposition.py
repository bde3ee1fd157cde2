"""The Prometheus text format: what is written is read back, whatever stands around it; any bytes are a page or BadPage."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.hosts.exposition import BadPage, Samples, parse
from rpi_daemon.drivers.hosts.shares import CPU, RECEIVED, WANTED

label_values = st.text(st.characters(codec="utf-8", exclude_characters="\r", exclude_categories=("Cs",)), max_size=20)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
labels = st.dictionaries(names, label_values, max_size=3).map(lambda pairs: tuple(sorted(pairs.items())))
series = st.dictionaries(labels, st.floats(), min_size=1, max_size=4)
noise = st.sampled_from(
    [
        "", "# HELP node_cpu_seconds_total Seconds, by { and \"", "# TYPE node_cpu_seconds_total counter", "go_goroutines 8",
        'node_cpu_seconds_total_more{a="b"} 1', 'other{a="', "   ", "\t# a comment",
    ]
)  # fmt: skip


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if math.isnan(value) else repr(value))


@given(st.dictionaries(st.sampled_from([CPU, RECEIVED]), series, max_size=2), st.lists(noise, max_size=4), st.data())
def test_what_is_written_is_read(samples: Samples, around: list[str], data: st.DataObject) -> None:
    lines = list(around)
    for name, of_name in samples.items():
        for pairs, value in of_name.items():
            comma = data.draw(st.sampled_from(["", ","])) if pairs else ""
            inside = ", ".join(f'{key}="{escaped(text)}"' for key, text in pairs) + comma
            braces = f"{{{inside}}}" if pairs else data.draw(st.sampled_from(["", "{}"]))
            stamp = data.draw(st.sampled_from(["", " 1395066363000", " -3982045"]))
            lines.append(f"{data.draw(st.sampled_from(['', ' ']))}{name}{braces} {number(value)}{stamp}")
    page = "".join(f"{line}\n" for line in lines or [""])
    read = parse(page.encode(), WANTED)
    assert repr({name: dict(sorted(read[name].items())) for name in sorted(read)}) == repr(
        {name: dict(sorted(samples[name].items())) for name in sorted(samples)}
    )  # by its text: NaN is equal to nothing


@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(lambda text: f"{CPU}{text}\n".encode())))
def test_any_bytes_are_a_page_or_a_bad_one(page: bytes) -> None:
    try:
        samples = parse(page, WANTED)
    except BadPage:
        return
    assert set(samples) <= WANTED


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b'node_cpu_seconds_total{cpu="0",mode="idle"} 1', "cut off: its last line has no end"),
        (b"", "cut off"),
        (b"\xff\n", "not UTF-8"),
        (b'node_cpu_seconds_total{cpu="0",mode="idle"} 1\nnode_cpu_seconds_total{mode="idle",cpu="0"} 1\n', "a series twice"),
        (b'node_cpu_seconds_total{cpu="0",cpu="1"} 1\n', "damaged in the labels"),
        (b'node_cpu_seconds_total{cpu="0} 1\n', "damaged in the labels"),
        (b'node_cpu_seconds_total{cpu="0",mode="idle"}\n', "damaged at"),
        (b"node_cpu_seconds_total 1_000\n", "damaged at"),
        (b"node_cpu_seconds_total 1 2 3\n", "damaged at"),
        (b"node_cpu_seconds_total" + b" " * 5000 + b"1\n", "damaged at"),
    ],
)  # fmt: skip
def test_a_bad_page_says_why(page: bytes, why: str) -> None:
    with pytest.raises(BadPage, match=why):
        parse(page, WANTED)


@pytest.mark.parametrize(
    "tail", [" " + "1" * 4000, " " * 4000, "{" + "} " * 2000, " 1" + " " * 4000, " 1." + "1" * 4000]
)
def test_a_hostile_line_costs_no_time_that_ticks_need(tail: str) -> None:
    began_s = time.thread_time()
    with pytest.raises(BadPage, match="damaged"):
        parse(f"{CPU}{tail}x\n".encode(), WANTED)
    assert time.thread_time() - began_s < 0.05
