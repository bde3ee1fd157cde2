"""The Prometheus text format, version 0.0.4: the samples of some metrics of a page.

Source: Prometheus documentation, "Exposition formats", text-based format (prometheus.io/docs/instrumenting).
"""

import re
from functools import lru_cache

Labels = tuple[tuple[str, str], ...]  # in alphabetical order of their names
Samples = dict[str, dict[Labels, float]]

MAX_LINE = 4096  # characters of a line that is looked at

# Of two parts that follow each other none begins as the other goes on: a hostile line is refused in time linear in its length.
_NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[Ii]nf|NaN)"
_SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:[ \t]*\{{(.*)\}}[ \t]*|[ \t]+)({_NUMBER})(?:[ \t]+-?\d+)?[ \t\r]*")
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\[\\"n])*)"[ \t]*(,|$)')
_ESCAPE = re.compile(r"\\(.)")


class BadPage(Exception):
    """Not a page of the format; says why, for the end of a sentence."""


def parse(page: bytes, names: frozenset[str]) -> Samples:
    """Name -> labels -> value, of the metrics `names` alone; lines of others are not looked at. Raises BadPage.

    A value may be NaN or infinite, as the format has it.
    """
    if not page.endswith(b"\n"):
        raise BadPage("cut off: its last line has no end")
    try:
        text = page.decode("utf-8")
    except UnicodeDecodeError:
        raise BadPage("not UTF-8 text") from None
    samples: Samples = {}
    wanted = tuple(names)
    for line in text.split("\n"):
        line = line.lstrip(" \t")
        if not line.startswith(wanted):
            continue
        found = _SAMPLE.fullmatch(line) if len(line) <= MAX_LINE else None
        if found is None:
            raise BadPage(f"damaged at {line[:60]!r}")
        if found[1] not in names:  # only its beginning is that of a wanted one
            continue
        series = samples.setdefault(found[1], {})
        labels = _labels(found[2] or "")
        if labels in series:
            raise BadPage(f"not clear: {line[:60]!r} says a series twice")
        series[labels] = float(found[3])
    return samples


@lru_cache(maxsize=4096)  # a host says the same ones at each scrape
def _labels(text: str) -> Labels:
    labels: dict[str, str] = {}
    place = 0
    while place < len(text):
        found = _LABEL.match(text, place)
        if found is None or found[1] in labels:
            raise BadPage(f"damaged in the labels {text[:60]!r}")
        labels[found[1]] = _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], found[2])
        place = found.end()
    return tuple(sorted(labels.items()))
