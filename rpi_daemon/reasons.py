"""Why the safe state is what it is, in plain words, and what to do about it: for status, logs and traps."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

FEW = 4  # subjects of a cause that are named one by one


@dataclass(frozen=True, slots=True)
class Reason:
    """Of one cause: a sentence with a place for what it is about, and what an operator does."""

    words: str
    do: str


REASONS: Mapping[str, Reason] = {
    "model_fallback": Reason(
        "the other experts forecast without the network",
        "nothing at once; `forecast.primary_unused_because` of `status --json` says why, see alarm model_refused",
    ),
    "model_poisoned": Reason(
        "the network answered with what is no number, and is heard no more",
        "`rpi-daemon resume` lets it try again; if it comes back, `rpi-daemon model rollback`, or train anew",
    ),
    "over_derating": Reason(
        "{} carries more than it may continuously", "move load away from it; continuous ratings are for cooling"
    ),
    "calibration_expired": Reason("the calibration of {} has expired", "`rpi-daemon calibrate`; until then it is used"),
    "cap_unreachable": Reason(
        "the management controller of {} does not answer, or refuses us", "check its network, user and key"
    ),
    "cap_uncontrolled": Reason(
        "the management controller of {} does not take its power cap", "check its power-limit setting and licence"
    ),
    "cap_not_held": Reason("{} draws more than its power cap", "look at that server; others make room meanwhile"),
    "sensor_stale": Reason("no reading of {}", "check the sensor board, its cable and its port"),
    "sensor_stuck": Reason(
        "the sensor of {} stands still: not believed", "check the transformer's lead and the board's channel"
    ),
    "breaker_blind": Reason(
        "more than a fifth of the readings on {} are missing", "check the sensor boards that measure it"
    ),
    "overload": Reason("{} carries more than its full rating", "take load off it now: its breaker will trip"),
    "voltage_lost": Reason("no voltage at {}: its power is nominal V x A", "check the voltage tap and its fuse"),
    "transformer_reversed": Reason(
        "power of {} is negative: its transformer is the wrong way round",
        "turn the transformer, or write `:reversed` behind its channel",
    ),
    "pdu_unreachable": Reason("{} does not answer", "check its power, network, user and keys"),
    "tick_overrun": Reason("the control loop is late", "find out what takes the processor time of this box"),
    "audit_not_durable": Reason("the audit record cannot be written to disk", "make room in the state folder"),
    "foreign_writer": Reason(
        "somebody else writes limits on {}; acknowledge with `rpi-daemon resume`",
        "find and stop the other writer, then `rpi-daemon resume` (it releases the kill switch, too)",
    ),
    "no_readings": Reason("no reading at all", "check the sensor boards"),
    "lease_expired": Reason(
        "the control loop has stood still", "if it comes again: what held this box up? See log and `status --json`"
    ),
    "starting": Reason("the daemon starts", "wait a few seconds"),
    "stopping": Reason("the daemon stops", "start it when the limits are to be managed again"),
    "all_pdus_unreachable": Reason("no PDU answers", "check the management network; the PDUs keep what they have"),
}


def by_name(causes: Collection[str]) -> dict[str, list[str]]:
    """Name of a cause -> what it is about, in the order of `causes`; empty for what is about nothing in particular."""
    found: dict[str, list[str]] = {}
    for cause in causes:
        name, _, subject = cause.partition(":")
        found.setdefault(name, [])
        if subject:
            found[name].append(subject)
    return found


def brief(causes: Collection[str]) -> list[str]:
    """Causes in one line: one that is about many is counted, not listed."""
    return [
        name if not about else f"{name} {', '.join(about)}" if len(about) <= FEW else f"{name} ({len(about)})"
        for name, about in by_name(causes).items()
    ]


def explained(causes: Collection[str]) -> list[dict[str, Any]]:
    """Each cause once: what it is about, why in words, what to do."""
    rows = []
    for name, about in by_name(causes).items():
        more = f" and {len(about) - FEW} more" if len(about) > FEW else ""
        reason = REASONS[name]
        text = reason.words.format(", ".join(about[:FEW]) + more)
        rows.append({"cause": name, "about": about, "text": text, "do": reason.do})
    return rows
