"""What Redfish documents say, read with distrust: every value is checked, what is not there stays unknown."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

ENVIRONMENT_METRICS = "environment_metrics"  # EnvironmentMetrics.PowerLimitWatts (Redfish 2021.2 and later)
POWER_CONTROL = "power_control"  # Power.PowerControl[].PowerLimit (deprecated since 2020.4, still the commonest)

PLAUSIBLE_W = 100_000.0  # no server draws more; UINT32_MAX is how some firmware says "none"
STALE_READING = timedelta(seconds=60)
MAX_LINKS = 64
MAX_TEXT = 200

# Message registries (DSP2053 Base and License, vendors' own) in the operator's words, by the last part of MessageId.
_WORDS = {
    "PasswordChangeRequired": "the BMC wants the password changed first",
    "ActionNotSupported": "power capping is disabled on the BMC; enable it there first",
    "PropertyNotWritable": "the cap is read-only here",
    "PropertyUnknown": "the BMC does not know this property",
    "PropertyNotUpdated": "the BMC did not change it",
    "InsufficientPrivilege": "this user may not change it",
    "OperationNotAllowed": "not allowed now",
    "ResourceInUse": "somebody else is changing it",
    "ServiceTemporarilyUnavailable": "the BMC is busy",
    "ServiceShuttingDown": "the BMC is restarting",
    "SessionLimitExceeded": "all sessions of the BMC are in use",
}
_LICENCE = "the licence for power capping is missing on the BMC"
_FALSE_ALARMS = ("Success", "NoOperation", "Created", "PropertyValueModified")

Document = Mapping[str, Any]


class BadDocument(ValueError):
    """The text is no JSON object; the message says in which way."""


def parse(text: bytes) -> dict[str, Any]:
    """One JSON object; raises BadDocument. NaN and Infinity are no JSON."""

    def refuse(name: str) -> None:
        raise BadDocument(f"{name} is no JSON")

    try:
        document = json.loads(text, parse_constant=refuse)
    except BadDocument:
        raise
    except RecursionError:
        raise BadDocument("nested too deeply") from None
    except ValueError as error:
        raise BadDocument(f"no JSON: {str(error)[:MAX_TEXT]}") from error
    if not isinstance(document, dict):
        raise BadDocument("no JSON object")
    return document


def obj(value: object, *names: str) -> Document:
    """The object under `names`, one within the other; empty where there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def watts(value: object) -> float | None:
    """A power that a server can have, W, above 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and 0.0 < number <= PLAUSIBLE_W else None


def text(value: object) -> str:
    """A text for people: printable, of bounded length; empty for anything else."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value[:MAX_TEXT]).strip()


def link(value: object) -> str | None:
    """The path that an object's `@odata.id` names. A link that leaves /redfish/ or the host is none."""
    path = value.get("@odata.id") if isinstance(value, dict) else None
    return path if isinstance(path, str) and is_path(path) else None


def is_path(path: str) -> bool:
    return (
        path.startswith("/redfish/") and path.isascii() and path.isprintable() and " " not in path and len(path) < 512
    )


def links(value: object) -> list[str]:
    """The paths that an array of links names, at most 64."""
    found = [link(item) for item in value[:MAX_LINKS]] if isinstance(value, list) else []
    return [path for path in found if path is not None]


@dataclass(frozen=True, slots=True)
class CapPlace:
    """Where a server's cap lives: a document, and which of its members."""

    mechanism: str
    path: str
    chassis: str
    member: int = 0  # power_control: index in PowerControl ...
    members: int = 1  # ... and how many it has
    power_path: str | None = None  # where its power is read, when not in the same document

    @property
    def uri(self) -> str:
        return self.path if self.mechanism == ENVIRONMENT_METRICS else f"{self.path}#/PowerControl/{self.member}"


@dataclass(frozen=True, slots=True)
class CapState:
    """A cap as a document states it; None is "not known"."""

    cap_w: float | None
    active: bool | None
    lowest_w: float | None
    highest_w: float | None
    on_exceed: str | None
    raw: tuple[tuple[str, object], ...]  # the writable properties that hold the cap, as they stand
    has_mode: bool  # environment_metrics: whether a ControlMode switches the cap on and off


def caps_in(document: Document, mechanism: str) -> list[int]:
    """The members of the document that carry a cap; for environment_metrics [0] or nothing."""
    if mechanism == ENVIRONMENT_METRICS:
        return [0] if "SetPoint" in obj(document, "PowerLimitWatts") else []
    members = document.get("PowerControl")
    if not isinstance(members, list):
        return []
    return [i for i, member in enumerate(members[:MAX_LINKS]) if "LimitInWatts" in obj(member, "PowerLimit")]


def cap_state(document: Document, place: CapPlace) -> CapState | None:
    """The cap at `place`; None when the document has none there (any more)."""
    if place.member not in caps_in(document, place.mechanism):
        return None
    if place.mechanism == ENVIRONMENT_METRICS:
        return _set_point(obj(document, "PowerLimitWatts"))
    return _limit(obj(document["PowerControl"][place.member], "PowerLimit"))


def _set_point(control: Document) -> CapState:
    set_point = watts(control.get("SetPoint"))
    has_mode = "ControlMode" in control
    mode = text(control.get("ControlMode"))
    if has_mode:
        active = {"Disabled": False, "Automatic": True}.get(mode)
    else:
        active = _is_set(control.get("SetPoint"))
    if active and set_point is None:
        active = None  # says that it holds the power at nothing
    raw = [(name, _scalar(control[name])) for name in ("SetPoint", "ControlMode") if name in control]
    return CapState(
        cap_w=None if active is False else set_point,
        active=active,
        lowest_w=watts(control.get("AllowableMin")),
        highest_w=watts(control.get("AllowableMax")),
        on_exceed=None,
        raw=tuple(raw),
        has_mode=has_mode,
    )


def _limit(limit: Document) -> CapState:
    active = _is_set(limit["LimitInWatts"])
    return CapState(
        cap_w=watts(limit["LimitInWatts"]),
        active=active,
        lowest_w=watts(limit.get("LimitInWatts@Redfish.AllowableMin")),
        highest_w=watts(limit.get("LimitInWatts@Redfish.AllowableMax")),
        on_exceed=text(limit.get("LimitException")) or None,
        raw=(("LimitInWatts", _scalar(limit["LimitInWatts"])),),
        has_mode=False,
    )


def _is_set(value: object) -> bool | None:
    """Whether a limit without a mode of its own holds: null is off; 0 and the implausible are not known."""
    return False if value is None else (True if watts(value) is not None else None)


def _scalar(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float | bool) else None


def power_in(document: Document, place: CapPlace, date: str | None = None) -> float | None:
    """The power that the document reads, W; None when there is none, or the reading is older than 60 s of the BMC's own
    clock (`date`: the HTTP header of the same answer)."""
    if place.power_path is None and place.mechanism == ENVIRONMENT_METRICS:
        for name in ("PowerWatts", "PowerLimitWatts"):
            sensor = obj(document, name)
            reading = _power(sensor.get("Reading"))
            if reading is not None and _is_enabled(sensor) and not _is_stale(sensor.get("ReadingTime"), date):
                return reading
        return None
    members = document.get("PowerControl")
    member = members[place.member] if isinstance(members, list) and place.member < len(members) else None
    return _power(obj(member).get("PowerConsumedWatts")) if _is_enabled(obj(member)) else None


def _power(value: object) -> float | None:
    """As `watts`, but a server may well draw nothing."""
    return 0.0 if not isinstance(value, bool) and value == 0 else watts(value)


def _is_enabled(member: Document) -> bool:
    return obj(member, "Status").get("State", "Enabled") in ("Enabled", "StandbyOffline", None)


def _is_stale(reading_time: object, date: str | None) -> bool:
    if not isinstance(reading_time, str) or date is None:
        return False
    try:
        age = parsedate_to_datetime(date) - datetime.fromisoformat(reading_time)
    except (ValueError, TypeError):
        return False
    return age > STALE_READING


def set_cap_body(place: CapPlace, state: CapState, cap_w: int | None) -> dict[str, Any]:
    """The PATCH that sets the cap, or takes it off. The mode is written with the set point: one alone is no cap."""
    if place.mechanism == POWER_CONTROL:
        return body_of(place, {"LimitInWatts": cap_w})
    if not state.has_mode:
        return body_of(place, {"SetPoint": cap_w})
    if cap_w is None:
        return body_of(place, {"ControlMode": "Disabled"})
    return body_of(place, {"SetPoint": cap_w, "ControlMode": "Automatic"})


def body_of(place: CapPlace, properties: Mapping[str, object]) -> dict[str, Any]:
    """A PATCH of the cap's properties. The other members of an array are left alone by an empty object each (DSP0266)."""
    if place.mechanism == ENVIRONMENT_METRICS:
        return {"PowerLimitWatts": dict(properties)}
    members: list[dict[str, Any]] = [{} for _ in range(place.members)]
    members[place.member] = {"PowerLimit": dict(properties)}
    return {"PowerControl": members}


def complaint(document: Document) -> str | None:
    """What the messages of an answer complain of, in words; None when they complain of nothing."""
    said = []
    for message in _messages(document):
        key = text(message.get("MessageId")).rpartition(".")[2]
        own = text(message.get("Message"))
        severity = text(message.get("MessageSeverity")) or text(message.get("Severity"))
        if key in _FALSE_ALARMS or (severity == "OK" and key not in _WORDS):
            continue
        words = _LICENCE if "licens" in f"{key} {own}".lower() else _WORDS.get(key, "")
        told = ": ".join(part for part in (key, own) if part)
        if told or words:
            said.append(f"{words} ({told})" if words and told else words or told)
    if not said and text(obj(document, "error").get("message")):
        return text(obj(document, "error").get("message"))
    return "; ".join(dict.fromkeys(said[:3])) or None


def _messages(document: Document) -> Iterator[Document]:
    """Of the answer as a whole, of a Task, and of single properties (a PATCH that half succeeded)."""
    places: list[object] = [obj(document, "error").get("@Message.ExtendedInfo"), document.get("Messages")]
    for part in (document, obj(document, "PowerLimitWatts"), *_members(document)):
        places += [value for name, value in part.items() if name.endswith("@Message.ExtendedInfo")]
    for place in places:
        if isinstance(place, Sequence) and not isinstance(place, str):
            yield from (message for message in place[:MAX_LINKS] if isinstance(message, dict))


def _members(document: Document) -> Iterator[Document]:
    members = document.get("PowerControl")
    for member in members[:MAX_LINKS] if isinstance(members, list) else ():
        yield obj(member, "PowerLimit")
