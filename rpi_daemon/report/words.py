"""The report's sentences: what the figures say, without a number that is not there."""

from collections.abc import Mapping
from typing import Any, Final

from rpi_daemon.report.charts import watts

MOSTLY: Final = 0.95  # of the time in one mode: it is told as that mode
# what was freed, on average and at every moment
BY_REQUESTS: Final = ("freed_w", "freed_always_w")
BY_LIMITS: Final = ("freed_in_force_w", "freed_in_force_always_w")
Document = Mapping[str, Any]


def percent(share: float | None, digits: int = 2) -> str:
    """A share in per cent, or "not known"."""
    return "not known" if share is None else f"{100.0 * share:.{digits}f}\u00a0%"


def would(document: Document) -> bool:
    """Whether the daemon wrote nothing, or hardly ever: then the figures are what it would have bought."""
    return (document["closed_loop_share"] or 0.0) < 1.0 - MOSTLY


def headline(document: Document) -> str:
    """One sentence: what its limits freed in closed loop, or what its requests would have freed."""
    rack = document["together"]
    asked = would(document)
    freed_w, always_w = (rack[x] for x in (BY_REQUESTS if asked else BY_LIMITS))
    static_w = rack["static_w"]
    if freed_w is None:
        what = "daemon's requests would have" if asked else "limits in force"
        return f"What the {what} reserved is not known for this time."
    risk = f"{_requests_passed(rack) if asked else _limits_passed(rack)}, and"
    risk += f" the static limits in {percent(rack['static_escape_share'])} of all seconds"
    if freed_w < 0.0:
        what = "requests reserve" if asked else "limits in force reserved"
        return (
            f"rpi-daemon's {what} {watts(-freed_w)} more than the configured static limits ({watts(static_w)}); {risk}."
        )
    verb = "would have freed" if asked else "freed"
    always = (
        f"on average, and {watts(always_w)} at every moment"
        if always_w >= 0.0
        else "on average, though not at every moment"
    )
    return (
        f"rpi-daemon {verb} {watts(freed_w)} of the {watts(static_w)} that static limits reserve here"
        f" ({percent(freed_w / static_w, 0)}), {always}{'' if asked else ', by the limits that were in force'}; {risk}."
    )


def _requests_passed(rack: Document) -> str:
    return f"the draw passed {percent(rack['request_escape_share'])} of the requests"


def _limits_passed(rack: Document) -> str:
    times, seconds = rack["limit_escape_episodes"], rack["limit_escape_s"]
    if times is None:
        return "whether the draw passed the limits in force is not known"
    if not times:
        return "the draw never passed a limit in force"
    return f"the draw passed limits in force {times} time{'s' * (times != 1)}, for {seconds:.1f}\u00a0s together"


def same_risk(document: Document) -> str:
    """The comparison at the same risk, in hindsight; empty where it is not known."""
    rack = document["together"]
    more_w, needed_w = rack["freed_same_risk_w"], rack["static_same_risk_w"]
    if more_w is None:
        return ""
    than = f"{watts(abs(more_w))} {'more' if more_w >= 0.0 else 'less'} than the requests' mean"
    return f"The lowest static limits that would have been passed just as rarely, chosen in hindsight, reserve {watts(needed_w)}: {than}."


def mode(document: Document) -> str:
    """In which mode it ran."""
    share = document["closed_loop_share"]
    if share is None:
        return "mode not known"
    if share > MOSTLY:
        return "closed loop"
    return (
        "advisory: nothing was written"
        if would(document)
        else f"closed loop {percent(share, 0)} of the time, else advisory"
    )


def length(seconds: float) -> str:
    """A duration for people."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.1f}\u00a0{unit}"
    return f"{seconds:.0f}\u00a0s"
