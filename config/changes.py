"""What differs between two configurations, and which of it a running daemon may take over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from rpi_daemon.config.schema import Config, OutletRow, Section, shorten_numbers
from rpi_daemon.config.schema import Load as LoadOptions

# Section -> options that take effect by a reload. Whatever is not named here needs a restart: sampling, rings, sessions,
# locks, files and what has been learned hang on it.
LIVE: Final[dict[str, frozenset[str]]] = {
    "daemon": frozenset({"log_level"}),
    "pdu": frozenset({"writes_per_day"}),
    "outlet": frozenset({"static_safe_w", "closed_loop"}),
    "load": frozenset({"id", "tier", "floor_w", "demand_w", "sheddable", "critical"}),
    "constraint": frozenset({"id", "kind", "rating_w", "rating_va", "rating_a", "derate", "outlets"}),
    "retrain": frozenset(
        {"enabled", "hours", "max_load", "min_history_days", "history_days", "minutes", "memory_mb", "keep_models"}
        | {"watch_hours"}
    ),
    "corrector": frozenset(
        {"target", "meter_noise_w", "start_s", "hold_s", "censor_band", "growth_per_s", "blind_hold_s"}
        | {"alarm_learn_s", "alarm_hold_s", "alarm_headroom", "alarm_step", "alarm_episodes_per_day"}
    ),
    "allocator": frozenset({"slack_share", "assumed_power_factor", "lowest_power_factor", "lowest_voltage"}),
    "guard": frozenset({"recover_s", "trip_margin_share", "lowest_limit_w"}),
    "actuator": frozenset(
        {"deadband", "lower_hold_s", "raise_reserve", "lease_s", "retry_s", "attempts", "uncontrolled_s"}
        | {"foreign_changes", "foreign_window_s"}
    ),
    "schedule": frozenset({"load", "at", "days", "delta_w", "for_s"}),
    "traps": frozenset({"heartbeat_s", "per_minute"}),
    "trap_sink": frozenset({"min_severity"}),
}
NAMES: Final = {"board": "id", "pdu": "id", "constraint": "id", "load": "id", "trap_sink": "id", "cap": "load"} | {
    "telemetry": "load"
}  # lists of tables -> the option that says which one it is
SET_BY_LOADER: Final = frozenset({"base_dir", "file", "sha256"})


@dataclass(frozen=True, slots=True)
class Change:
    """One option that differs; `before` or `after` is None where a table or value is not there."""

    key: str
    before: Any
    after: Any
    live: bool

    def words(self) -> str:
        """For people, in TOML's words."""
        return f"{self.key}: {_told(self.before)} -> {_told(self.after)}"


def changes(before: Config, after: Config) -> tuple[Change, ...]:
    """Everything that differs, in the order of the schema. Both configurations have been checked."""
    found: list[Change] = []
    for name in Config.model_fields:
        if name in SET_BY_LOADER:
            continue
        old, new = getattr(before, name), getattr(after, name)
        if name == "outlet":
            found += _outlets(before.outlets(), after.outlets())
        elif name == "schedule":
            if old != new:
                found.append(Change(name, _plain(old), _plain(new), live=True))
        elif name in NAMES:
            found += _tables(name, old, new)
        else:
            found += _options(name, name, old, new)
    return tuple(found)


def _options(section: str, key: str, old: Section, new: Section) -> Iterator[Change]:
    for option in type(old).model_fields:
        was, now = getattr(old, option), getattr(new, option)
        if was != now:
            yield Change(f"{key}.{option}", was, now, live=option in LIVE.get(section, ()))


def _tables(section: str, old: list[Any], new: list[Any]) -> Iterator[Change]:
    """Tables are known by name. Their order tells nothing, but for caps: the stages know them by number."""
    name = NAMES[section]
    was, now = ({getattr(item, name): item for item in items} for items in (old, new))
    may_come_and_go = name in LIVE.get(section, ())
    for key in dict.fromkeys((*was, *now)):
        label = f"{section} {key}"
        before, after = was.get(key), now.get(key)
        if section == "load":
            before, after = (item or LoadOptions(id=key) for item in (before, after))
        if before is not None and after is not None:
            yield from _options(section, label, before, after)
        else:
            yield Change(label, _plain(before), _plain(after), live=may_come_and_go)
    if section == "cap" and was.keys() == now.keys() and list(was) != list(now):
        yield Change(f"order of {section}", list(was), list(now), live=False)


def _outlets(old: list[OutletRow], new: list[OutletRow]) -> Iterator[Change]:
    """By outlet, however they are grouped into tables; those with the same change are told together."""
    before, after = [row.id for row in old], [row.id for row in new]
    if before != after:
        yield Change("outlets", _numbers(old), _numbers(new), live=False)
        return
    for option in ("load", "phases", "meter", "rating_w", "static_safe_w", "closed_loop"):
        same: dict[tuple[str, Any, Any], list[int]] = {}
        for was, now in zip(old, new, strict=True):
            if (values := (getattr(was, option), getattr(now, option)))[0] != values[1]:
                same.setdefault((was.pdu, *values), []).append(was.number)
        for (pdu, was_value, now_value), numbers in same.items():
            key = f"outlet {pdu}/{shorten_numbers(numbers)}.{option}"
            yield Change(key, was_value, now_value, live=option in LIVE["outlet"])


def _numbers(rows: list[OutletRow]) -> list[str]:
    pdus = dict.fromkeys(row.pdu for row in rows)
    return [f"{pdu}/{shorten_numbers(row.number for row in rows if row.pdu == pdu)}" for pdu in pdus]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value


def _told(value: Any) -> str:
    return "not there" if value is None else json.dumps(value, ensure_ascii=False)
