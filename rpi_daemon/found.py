"""The limits and server caps found at first contact, kept on disk: what `limit restore` puts back."""

import contextlib
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rpi_daemon.records import CapReading, LimitKind, LimitState, LimitWrite, PduReading

SCHEMA = 1
GIVEN_BACK = "outlets given back"


@dataclass(frozen=True, slots=True)
class FoundLimits:
    """The limits found at first contact, per PDU and outlet number; kept on disk before the first write."""

    pdus: Mapping[str, Mapping[int, LimitState]]
    lost: frozenset[str] = (
        frozenset()
    )  # PDUs of which it was known and is not any more: docs/decisions/damaged-found-limits.md
    serials: Mapping[str, str] = field(default_factory=dict)  # by PDU, of those that tell one: whose limits they are
    given_back: frozenset[str] = frozenset()  # outlets that were their owner's last, should `standing.json` be lost

    def with_pdu(self, pdu: str, reading: PduReading, serial: str = "") -> "FoundLimits":
        """Add a PDU's limits; an outlet whose limit could be read before stays as it was first found."""
        if pdu in self.lost:
            return self  # what stands there now may be ours
        kept = {number: state for number, state in self.pdus.get(pdu, {}).items() if state.raw}
        serials = {pdu: serial, **self.serials} if serial else self.serials
        return replace(self, pdus={**self.pdus, pdu: {**reading.limits, **kept}}, serials=serials)

    def another(self, pdu: str, serial: str) -> str | None:
        """The serial number of the device whose limits were found, where that is not this one."""
        known = self.serials.get(pdu, "")
        return known if known and serial and serial != known else None

    def met(self, pdu: str) -> bool:
        """Whether a daemon has spoken to this PDU before."""
        return pdu in self.pdus or pdu in self.lost

    def may_write(self, pdu: str, outlet: int) -> bool:
        """Whether nothing that could be put back would be lost by a write."""
        return pdu in self.lost or self.knows(pdu, outlet)

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
        named: dict[str, Any] = {f"serial number of {pdu}": serial for pdu, serial in self.serials.items()}
        content = {"pdus": pdus, "lost": sorted(self.lost), "serials": dict(self.serials)}
        if self.given_back:
            content["given_back"] = named[GIVEN_BACK] = sorted(self.given_back)
        return _text(content, {**pdus, **named})

    @classmethod
    def from_json(cls, text: str) -> "FoundLimits":
        """Raises ValueError when the text is damaged or of another schema."""
        with _readable("limits"):
            data = _content(text, "pdus")
            pdus = {p: {int(k): _state(v) for k, v in limits.items()} for p, limits in data["pdus"].items()}
            # of a device that was taken out by hand it goes, too: the next one there is met for the first time
            serials = {p: serial for p, serial in data.get("serials", {}).items() if p in pdus}
            for pdu, serial in serials.items():
                name = f"serial number of {pdu}"
                if data["sha256"][name] != _digest(name, serial):
                    raise ValueError(f"the digest of the {name} does not fit")
            given_back = data.get("given_back", [])
            if given_back and data["sha256"][GIVEN_BACK] != _digest(GIVEN_BACK, given_back):
                raise ValueError(f"the digest of the {GIVEN_BACK} does not fit")
            return cls(pdus, frozenset(data.get("lost", ())), serials, frozenset(given_back))


@dataclass(frozen=True, slots=True)
class FoundCaps:
    """The cap found on each load's server at first contact; kept on disk before the first write."""

    caps: Mapping[str, CapReading]
    lost: frozenset[str] = frozenset()  # loads, as in FoundLimits

    def with_cap(self, load: str, reading: CapReading) -> "FoundCaps":
        """Add a server's cap, once it could be read; what was found first stays."""
        known = load in self.caps or load in self.lost
        return self if known or reading.active is None else self.with_caps({load: reading})

    def with_caps(self, caps: Mapping[str, CapReading]) -> "FoundCaps":
        """Take these as the found ones."""
        return replace(self, caps={**self.caps, **caps})

    def may_write(self, load: str) -> bool:
        """As of FoundLimits."""
        return load in self.lost or load in self.caps

    def to_json(self) -> str:
        caps = {
            load: {"cap_w": r.cap_w, "active": r.active, "raw": [[name, value] for name, value in r.raw]}
            for load, r in self.caps.items()
        }
        return _text({"caps": caps, "lost": sorted(self.lost)}, caps)

    @classmethod
    def from_json(cls, text: str) -> "FoundCaps":
        """Raises ValueError when the text is damaged or of another schema."""
        with _readable("caps"):
            data = _content(text, "caps")
            caps = {
                load: CapReading(0, None, r["cap_w"], r["active"], tuple((name, value) for name, value in r["raw"]))
                for load, r in data["caps"].items()
            }
            return cls(caps, frozenset(data.get("lost", ())))


def lost_text(outlets: Sequence[str]) -> str:
    """For outlets whose found limits no file tells any more."""
    return f"what was found on {', '.join(outlets)} is lost (a damaged file): what stands there stays; set it by hand"


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"found {what}: {error!r}") from None


def _text(content: dict[str, Any], devices: Mapping[str, Any]) -> str:
    """With a digest per device: one bit that rots is never put back as a limit, and a device may be taken out by hand."""
    digests = {name: _digest(name, item) for name, item in devices.items()}
    return json.dumps({"schema": SCHEMA, **content, "sha256": digests}, indent=1, sort_keys=True)


def _content(text: str, devices: str) -> Any:
    data = json.loads(text)
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']}")
    digests = data.get("sha256")
    for name, item in data[devices].items():
        if digests is not None and digests[name] != _digest(name, item):
            raise ValueError(f"the digest of {name} does not fit")
    return data


def _digest(name: str, item: Any) -> str:
    return hashlib.sha256(json.dumps([name, item], sort_keys=True).encode()).hexdigest()


def _state(item: Any) -> LimitState:
    raw = tuple((oid, tag, bytes.fromhex(v["hex"]) if isinstance(v, dict) else v) for oid, tag, v in item["raw"])
    return LimitState(limit_w=item["limit_w"], enabled=item["enabled"], kind=LimitKind(item["kind"]), raw=raw)
