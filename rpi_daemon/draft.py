"""The configuration that a device as found begins with: complete, careful, and marked where only the owner knows."""

import asyncio
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from rpi_daemon.config.checks import snmp_mistakes
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import CREDENTIAL, Allocator, Constraint, Pdu, shorten_numbers
from rpi_daemon.devices import device_mistakes, endpoint_of
from rpi_daemon.discover import Finding, Told, document, look, report
from rpi_daemon.errors import ConfigError

# Ratings of outlets and feeds, A: IEC 60320, IEC 60309, NEMA. The weakest that carries what flows now is assumed
RATINGS_A = (10.0, 15.0, 16.0, 20.0, 30.0, 32.0, 50.0, 60.0, 63.0, 100.0, 125.0)
DERATE: float = Constraint.model_fields["derate"].default
POWER_FACTOR: float = Allocator.model_fields["assumed_power_factor"].default
FEEDS = ("inlet", "cord", "line", "phase")  # rows whose rating bounds the whole unit, the outermost first
BREAKERS = ("breaker", "branch", "bank")
EDIT = "EDIT"


@dataclass(frozen=True, slots=True)
class Feed:
    """Outlets that hang on one rating. `tightest_a`: the weakest breaker that may lie between."""

    name: str
    numbers: tuple[int, ...]
    rating_a: float
    told: bool  # by the device, not assumed
    tightest_a: float


def config_text(finding: Finding, pdu: Pdu) -> str:
    """A whole configuration for one PDU. `pdu` has its id, address and where its secrets are; its profile is replaced."""
    feeds = [_feed(finding, pdu.id, feed) for feed in _feeds(finding)]
    return "\n".join([_head(finding), _rack(finding), _pdu(finding, pdu), *feeds])


def _head(finding: Finding) -> str:
    return (
        f"# Drafted by `rpi-daemon discover {finding.endpoint.host}` from what the device tells of itself.\n"
        f"# What it cannot know stands behind {EDIT}, with a careful value in its place. Nothing is written to the PDU:\n"
        "# the mode is advisory and no outlet opts in (closed_loop = false) until you change that.\n"
    )


def _line(key: str, value: object, why: str = "") -> str:
    """One line of the file, what stands behind it in a column of its own."""
    text = f"{key} = {value if isinstance(value, float) else json.dumps(value)}"
    return f"{text:<31} # {why}\n" if why else f"{text}\n"


def _rack(finding: Finding) -> str:
    volts = finding.measured_v
    why = f"measured: {volts:.0f} V" if volts is not None else f"{EDIT}: assumed, the device shows no voltage"
    return "[rack]\n" + _line("id", "rack", f"{EDIT}: its name") + _line("nominal_v", finding.nominal_v, why)


def _pdu(finding: Finding, pdu: Pdu) -> str:
    who = finding.identity
    title = f"{who.vendor} {who.model}, firmware {who.firmware or 'unknown'}, serial {who.serial or 'unknown'}"
    lines: dict[str, object] = {"id": pdu.id, "profile": finding.profile.name, "host": pdu.host}
    if pdu.version == "2c":
        lines |= {"version": "2c", "allow_insecure": True}
    else:
        lines |= {"user": pdu.user, "auth": pdu.auth, "priv": pdu.priv}
    secrets = [f"{name}_{form}" for name in ("auth_key", "priv_key", "community") for form in ("file", "env")]
    for key in ("port", "unit", *secrets):
        if (value := getattr(pdu, key)) is not None:
            lines[key] = value
    return f"# {comment(title)}\n[[pdu]]\n" + "".join(_line(key, value) for key, value in lines.items())


def _feed(finding: Finding, pdu: str, feed: Feed) -> str:
    """The outlets of one feed, those of one rating together, and the constraint that holds them all."""
    shared_w = math.floor(feed.tightest_a * DERATE * finding.nominal_v * POWER_FACTOR / len(feed.numbers))
    outlets = [
        _outlets(finding, pdu, rating_a, told, numbers, shared_w)
        for (rating_a, told), numbers in _by_rating(finding, feed.numbers)
    ]
    why = "as the device says" if feed.told else f"{EDIT}: assumed, the device does not tell; take the breaker's"
    breakers = _breakers(finding)
    constraint = (
        "[[constraint]]\n"
        + _line("id", f"{pdu}-{feed.name}")
        + _line("kind", "feed")
        + _line("rating_a", feed.rating_a, why)
        + _line("outlets", [f"{pdu}/{shorten_numbers(feed.numbers)}"])
        + (f"# {EDIT}: it has {breakers}: give each a constraint with its outlets\n" if breakers else "")
    )
    return "\n".join([*outlets, constraint])


def _outlets(finding: Finding, pdu: str, rating_a: float, told: bool, numbers: Sequence[int], shared_w: int) -> str:
    rating_w = float(math.floor(rating_a * finding.nominal_v))
    static_w = float(max(1, min(shared_w, math.floor(rating_w))))
    above = [n for n in numbers if (finding.reading.power_w.get(n) or 0.0) > static_w]
    now = f"; {shorten_numbers(above)} draw more now" if above else ""
    kind = finding.profile.index.counts.removesuffix("s")
    load = "load" if kind == "outlet" else kind
    return (
        "[[outlet]]\n"
        + _line("pdu", pdu)
        + _line("numbers", shorten_numbers(numbers))
        + _line("load", f"{pdu}-{load}-{{n}}", f"{EDIT}: what it feeds; two outlets of one server get one name")
        + _line("phases", ["L1"], f"{EDIT}: the phase, or the two, that it is on")
        + _line(
            "rating_w", rating_w, f"{rating_a:g} A x {finding.nominal_v:g} V" + ("" if told else f"; {EDIT}: assumed")
        )
        + _line("static_safe_w", static_w, f"{EDIT}: an even share of what the weakest part before it carries{now}")
    )


def _by_rating(finding: Finding, numbers: Sequence[int]) -> Iterator[tuple[tuple[float, bool], list[int]]]:
    """Outlets of one rating together: (A, whether the device told it) and their numbers."""
    groups: dict[tuple[float, bool], list[int]] = {}
    for number in numbers:
        told_a = finding.rating_a.get(number)
        rating = (told_a, True) if told_a else (_carries(_amps(finding, number), 1.0), False)
        groups.setdefault(rating, []).append(number)
    yield from groups.items()


def _feeds(finding: Finding) -> Iterator[Feed]:
    """What the outlets hang on, as far as the device tells."""
    metered = set(finding.outlets.metered)
    if finding.profile.index.counts == "outlets":
        groups = [tuple(n for n in feed if n in metered) for feed in finding.outlets.feeds]
    else:
        groups = [(number,) for number in finding.outlets.metered]
    groups = [group for group in groups if group]
    ratings = _ratings(finding, FEEDS)
    weakest = _ratings(finding, BREAKERS)
    for place, numbers in enumerate(groups, 1):
        # a rating of each feed where there are as many, the weakest of all where it is not known which is whose
        told_a = (ratings[place - 1] if len(ratings) == len(groups) else min(ratings)) if ratings else None
        drawn_a = sum(_amps(finding, number) for number in numbers)
        rating_a = told_a or _carries(drawn_a, DERATE)
        name = "feed" if len(groups) == 1 else f"feed-{place}"
        yield Feed(name, numbers, rating_a, told_a is not None, min([rating_a, *weakest]))


def _ratings(finding: Finding, kinds: Sequence[str]) -> list[float]:
    """Ratings of the rows of the first kind that has any, in the device's order, A."""
    for kind in kinds:
        found = [row.rating_a for row in finding.reading.rows.values() if row.kind == kind and row.rating_a]
        if found:
            return found
    return []


def _breakers(finding: Finding) -> str:
    """Breakers that lie between feed and outlets, in words; empty where none is known."""
    ratings = _ratings(finding, BREAKERS)
    return (
        f"{len(ratings)} breakers of {', '.join(f'{a:g}' for a in sorted(set(ratings)))} A" if len(ratings) > 1 else ""
    )


def _carries(drawn_a: float, share: float) -> float:
    """The weakest usual rating that carries what flows now, of which `share` may be used."""
    return next((rating for rating in RATINGS_A if drawn_a <= rating * share), RATINGS_A[-1])


def _amps(finding: Finding, number: int) -> float:
    reading = finding.reading
    current_a, power_w = reading.current_a.get(number), reading.power_w.get(number)
    return current_a if current_a is not None else (power_w or 0.0) / finding.nominal_v


def comment(text: str) -> str:
    """A device's own words as a comment can hold them: one line, printable."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


# -- the command


def discover_pdu(keys: Mapping[str, Any], output: Path | None, requests_per_s: float) -> tuple[dict[str, Any], str]:
    """Look at one PDU and draft its configuration: the result for programs and for people. `keys`: its [[pdu]] table.

    Raises ConfigError for options that do not fit together and for an `output` that is there already, DeviceError or
    AuthError where the device is silent, strange or closed to us.
    """
    if output is not None and output.exists():
        raise ConfigError(f"--output: {output} is there already; name a new file")
    where = output or Path(f"{keys['id']}.toml")
    pdu = _way_in(keys, where.parent)
    with _bar() as told:
        endpoint = replace(endpoint_of(pdu, where.parent), requests_per_s=requests_per_s)
        finding = asyncio.run(look(endpoint, unit=pdu.unit, told=told))
    text = config_text(finding, pdu)
    parse_config(text, str(where), base_dir=where.parent, more=device_mistakes)
    document_ = {**document(finding), "config": text, "output": None if output is None else str(output)}
    if output is None:
        return document_, f"{report(finding)}\n\n{text}"
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--output: {output}: {error.strerror}") from None
    edits = text.count(EDIT) - 1
    return document_, (
        f"{report(finding)}\n\n{output} holds a configuration; {edits} places in it are marked {EDIT}.\n"
        f"Next: rpi-daemon check-config -c {output}, then rpi-daemon dry-run -c {output}"
    )


def _way_in(keys: Mapping[str, Any], base_dir: Path) -> Pdu:
    """The [[pdu]] table that the options amount to, with every mistake in them told at once.

    Files of secrets are given from where we stand; `credential:NAME` stays what it is, for the service.
    """
    paths = {
        name: str(Path(value).resolve())
        for name, value in keys.items()
        if name.endswith("_file") and value and not value.startswith(CREDENTIAL)
    }
    given = {name: value for name, value in {**keys, **paths}.items() if value is not None}
    try:  # the profile is not known yet
        pdu = Pdu.model_validate({"profile": "unknown", **given, "allow_insecure": keys["version"] == "2c"})
    except ValidationError as error:
        told = ((_option(item["loc"]), item["msg"].removeprefix("Value error, ")) for item in error.errors())
        raise ConfigError("\n".join(f"{option}: {sentence}" for option, sentence in told)) from None
    if mistakes := [f"{_option(loc)}: {text}" for loc, text in snmp_mistakes(pdu, base_dir, os.environ)]:
        raise ConfigError("\n".join(mistakes))
    return pdu


def _option(loc: tuple[str | int, ...]) -> str:
    return "HOST" if loc[0] == "host" else f"--{str(loc[0]).replace('_', '-')}"


@contextmanager
def _bar() -> Iterator[Told]:
    """A progress bar where somebody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _what, _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, done: bar.update(task, description=what, completed=done)
