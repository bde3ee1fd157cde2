"""The limits and server caps found at first contact, kept on disk: what `limit restore` puts back."""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rpi_daemon.errors import ConfigError
from rpi_daemon.records import CapReading, LimitKind, LimitState, LimitWrite, PduReading

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class FoundLimits:
    """The limits found at first contact, per PDU and outlet number; kept on disk before the first write."""

    pdus: Mapping[str, Mapping[int, LimitState]]

    def with_pdu(self, pdu: str, reading: PduReading) -> "FoundLimits":
        """Add a PDU's limits; an outlet whose limit could be read before stays as it was first found."""
        kept = {number: state for number, state in self.pdus.get(pdu, {}).items() if state.raw}
        return FoundLimits({**self.pdus, pdu: {**reading.limits, **kept}})

    def knows(self, pdu: str, outlet: int) -> bool:
        """Whether this outlet's limit can be put back: a device that just started may lack it. No write before that."""
        state = self.pdus.get(pdu, {}).get(outlet)
        return state is not None and bool(state.raw)

    def moved(self, pdu: str, reading: PduReading) -> list[int]:
        """Outlets whose limit stands in another place of the device than when it was found: behind the number is another outlet."""
        known = ((n, self.pdus.get(pdu, {}).get(n), state) for n, state in reading.limits.items())
        return [
            n for n, then, now in known if then is not None and then.raw and now.raw and then.raw[0][0] != now.raw[0][0]
        ]

    def writes(self, pdu: str, outlets: Collection[int]) -> tuple[LimitWrite, ...]:
        """What puts the found limits of these outlets of a PDU back exactly, by outlet number; not of unknown ones."""
        states = sorted(self.pdus.get(pdu, {}).items())
        return tuple(
            LimitWrite(n, math.nan if s.limit_w is None else s.limit_w, s)
            for n, s in states
            if n in outlets and self.knows(pdu, n)
        )

    def to_json(self) -> str:
        pdus = {
            pdu: {
                str(number): {
                    "limit_w": s.limit_w,
                    "enabled": s.enabled,
                    "kind": s.kind.value,
                    "raw": [[oid, tag, {"hex": v.hex()} if isinstance(v, bytes) else v] for oid, tag, v in s.raw],
                }
                for number, s in limits.items()
            }
            for pdu, limits in self.pdus.items()
        }
        return json.dumps({"schema": SCHEMA, "pdus": pdus}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "FoundLimits":
        """Raises ConfigError when the text is damaged or of another schema."""
        with _readable("limits", "PDUs"):
            pdus = _content(text)["pdus"]
            return cls({p: {int(k): _state(v) for k, v in limits.items()} for p, limits in pdus.items()})


@dataclass(frozen=True, slots=True)
class FoundCaps:
    """The cap found on each load's server at first contact; kept on disk before the first write."""

    caps: Mapping[str, CapReading]

    def with_cap(self, load: str, reading: CapReading) -> "FoundCaps":
        """Add a server's cap, once it could be read; what was found first stays."""
        return self if load in self.caps or reading.active is None else FoundCaps({**self.caps, load: reading})

    def to_json(self) -> str:
        caps = {
            load: {"cap_w": r.cap_w, "active": r.active, "raw": [[name, value] for name, value in r.raw]}
            for load, r in self.caps.items()
        }
        return json.dumps({"schema": SCHEMA, "caps": caps}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "FoundCaps":
        """Raises ConfigError when the text is damaged or of another schema."""
        with _readable("caps", "servers"):
            caps = _content(text)["caps"]
            return cls(
                {
                    load: CapReading(0, None, r["cap_w"], r["active"], tuple((name, value) for name, value in r["raw"]))
                    for load, r in caps.items()
                }
            )


@contextlib.contextmanager
def _readable(what: str, devices: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the file of found {what} is damaged ({error}); restore it from a backup, or delete it to take "
            f"the {what} that stand on the {devices} now as the found ones"
        ) from error


def _content(text: str) -> Any:
    data = json.loads(text)
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']}")
    return data


def _state(item: Any) -> LimitState:
    raw = tuple((oid, tag, bytes.fromhex(v["hex"]) if isinstance(v, dict) else v) for oid, tag, v in item["raw"])
    return LimitState(limit_w=item["limit_w"], enabled=item["enabled"], kind=LimitKind(item["kind"]), raw=raw)
