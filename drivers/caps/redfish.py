"""A server's power cap over Redfish: found, set, read back, put back."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from rpi_daemon.clock import Clock, SystemClock
from rpi_daemon.drivers.caps.documents import (
    ENVIRONMENT_METRICS,
    POWER_CONTROL,
    CapPlace,
    CapState,
    Document,
    body_of,
    cap_state,
    caps_in,
    complaint,
    link,
    links,
    obj,
    power_in,
    set_cap_body,
    text,
)
from rpi_daemon.drivers.caps.session import Answer, MayWrite, RedfishEndpoint, RedfishSession, WriteForbidden, told
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import CapIdentity, CapOutcome, CapReading

MAX_CHASSIS = 32
POLL_S, POLL_MOST_S = 0.05, 0.25  # between two looks at a change under way; each wait is half as long again
NOT_SENT = 0  # in place of the time of a write that did not go out
STANDS_S = 1.0  # a value that is neither the old one nor the asked one is the server's last word after this
REFUSALS = (400, 403, 404, 405, 409, 415, 422, 501)  # the server's no; other errors are faults

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RedfishOptions:
    """One server's cap."""

    endpoint: RedfishEndpoint
    resource: str | None = None  # path of the chassis, or of the property, where several have a cap
    settle_s: float = 15.0  # how long a server may take to show a cap that it accepted


@dataclass(frozen=True, slots=True)
class _Seen:
    """The document with the cap, as it was read at one time."""

    place: CapPlace
    answer: Answer
    state: CapState
    t_mono_ns: int


class RedfishCap:
    """The cap of one server, by the BMC's own Redfish service. One caller at a time. Raises DeviceError and AuthError."""

    def __init__(self, options: RedfishOptions, clock: Clock | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self.options = options
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._session = RedfishSession(options.endpoint)
        self._place: CapPlace | None = None

    async def open(self) -> None:
        """Connect and log in. On an open driver: see that the BMC is there again, and keep the session if it does."""
        was_open = self._session.is_open
        try:
            await self._session.open()
        except BaseException:
            if not was_open:
                await self._session.close()
            raise

    async def close(self) -> None:
        await self._session.close()

    # -- finding the cap

    async def identify(self) -> CapIdentity:
        place = self._place = await self._find()
        chassis = (await self._session.get(place.chassis)).document
        state = (await self._look()).state
        return CapIdentity(
            vendor=text(chassis.get("Manufacturer")),
            model=text(chassis.get("Model")),
            firmware=await self._firmware(chassis),
            serial=text(chassis.get("SerialNumber")),
            mechanism=place.mechanism,
            lowest_w=state.lowest_w,
            highest_w=state.highest_w,
            on_exceed=state.on_exceed,
        )

    async def _firmware(self, chassis: Document) -> str:
        """The BMC's own version: its firmware keeps the cap."""
        for path in links(obj(chassis, "Links").get("ManagedBy"))[:1]:
            return text((await self._session.get(path)).document.get("FirmwareVersion"))
        return ""

    async def _find(self) -> CapPlace:
        label, resource = self.options.endpoint.label, self.options.resource
        root = (await self._session.get("/redfish/v1/")).document
        collection = link(root.get("Chassis"))
        if collection is None:
            raise DeviceError(f"{label}: no cap here: the service has no Chassis")
        found: list[tuple[CapPlace, bool]] = []
        read_only: list[str] = []
        for path in links((await self._session.get(collection)).document.get("Members"))[:MAX_CHASSIS]:
            chassis = (await self._session.get(path)).document
            holds_system = bool(links(obj(chassis, "Links").get("ComputerSystems")))
            for place, writable in await self._places(path, chassis):
                if resource is not None and resource not in (place.chassis, place.path, place.uri):
                    continue
                if writable:
                    found.append((place, holds_system))
                else:
                    read_only.append(place.uri)
        if len(found) > 1 and any(holds for _, holds in found):
            found = [(place, holds) for place, holds in found if holds]
        places = _preferred([place for place, _ in found], resource)
        if len(places) == 1:
            return places[0]
        if places:
            raise DeviceError(f"{label} has several caps; name one as resource: {', '.join(p.uri for p in places)}")
        where = f" at {resource}" if resource else ""
        if read_only:
            raise DeviceError(f"{label}: the cap is read-only here: {', '.join(read_only)}")
        raise DeviceError(
            f"{label}: no cap{where}: no chassis has EnvironmentMetrics.PowerLimitWatts or Power.PowerControl[].PowerLimit"
        )

    async def _places(self, chassis_path: str, chassis: Document) -> list[tuple[CapPlace, bool]]:
        """The caps of one chassis, and whether each may be written. A part that cannot be read has none."""
        answers: dict[str, Answer] = {}
        paths: dict[str, str] = {}
        for mechanism, name in ((ENVIRONMENT_METRICS, "EnvironmentMetrics"), (POWER_CONTROL, "Power")):
            path = link(chassis.get(name))
            answer = await self._session.get_any(path) if path is not None else None
            if path is not None and answer is not None and answer.status == 200:
                answers[mechanism], paths[mechanism] = answer, path
        places = []
        for mechanism, answer in answers.items():
            writable = "PATCH" in answer.headers.get("Allow", "PATCH")
            for member in caps_in(answer.document, mechanism):
                count = len(answer.document["PowerControl"]) if mechanism == POWER_CONTROL else 1
                place = CapPlace(mechanism, paths[mechanism], chassis_path, member, count)
                if mechanism == ENVIRONMENT_METRICS and not _reads_power(answer.document):
                    place = replace(place, power_path=paths.get(POWER_CONTROL))
                places.append((place, writable))
        return places

    # -- reading

    async def read(self) -> CapReading:
        seen = await self._look()
        place = seen.place
        answer = seen.answer if place.power_path is None else await self._session.get(place.power_path)
        return CapReading(
            t_mono_ns=seen.t_mono_ns,
            power_w=power_in(answer.document, place, answer.headers.get("Date")),
            cap_w=seen.state.cap_w,
            active=seen.state.active,
            raw=seen.state.raw,
        )

    async def _look(self) -> _Seen:
        place = self._place = self._place or await self._find()
        answer = await self._session.get(place.path)
        state = cap_state(answer.document, place)
        if state is None:
            self._place = None
            raise DeviceError(f"{self.options.endpoint.label}: the cap at {place.uri} is gone")
        return _Seen(place, answer, state, self._clock.mono_ns())

    # -- writing

    async def apply(self, cap_w: float | None, may_write: MayWrite = lambda: True) -> CapOutcome:
        """Set the cap, whole watts rounded down; outside the server's own bounds is refused here. See CapDriver."""
        seen = await self._look()
        asked_w = None if cap_w is None else _whole(cap_w)
        forbidden = _out_of_bounds(seen.state, asked_w)
        if forbidden is not None:
            return CapOutcome(cap_w, seen.state.cap_w, False, forbidden, NOT_SENT, None)

        def is_done(state: CapState) -> bool:
            return state.active is False if asked_w is None else bool(state.active) and state.cap_w == asked_w

        body = set_cap_body(seen.place, seen.state, asked_w)
        return await self._change(seen, body, is_done, cap_w, may_write)

    async def restore(self, found: CapReading, may_write: MayWrite = lambda: True) -> CapOutcome:
        """Put a found cap back exactly as it was read: the mode and the set point, also of a cap that was off.

        Where the server refuses its own old set point, a cap that was off is off again and `refused` says why.
        """
        seen = await self._look()
        wanted = dict(found.raw)
        if "ControlMode" in wanted:  # a mode says that the cap is off; null is then no set point to write
            wanted = {name: value for name, value in wanted.items() if value is not None}
        now = dict(seen.state.raw)
        if not wanted or not wanted.keys() <= now.keys():
            raise DeviceError(
                f"{self.options.endpoint.label}: the found cap has {', '.join(wanted) or 'nothing'}, the server has"
                f" {', '.join(now)}; it is another server or firmware"
            )

        outcome = await self._put_back(seen, wanted, found.cap_w, may_write)
        if outcome.refused is not None and wanted.get("ControlMode") == "Disabled" and len(wanted) > 1:
            # A set point that the server itself would not take, such as 0, may stand beside a mode that is off.
            mode = {"ControlMode": "Disabled"}
            off = await self._put_back(await self._look(), mode, found.cap_w, may_write)
            return replace(off, refused=outcome.refused)
        return outcome

    async def _put_back(
        self, seen: _Seen, properties: Mapping[str, object], cap_w: float | None, may_write: MayWrite
    ) -> CapOutcome:
        def is_done(state: CapState) -> bool:
            return properties.items() <= dict(state.raw).items()

        return await self._change(seen, body_of(seen.place, properties), is_done, cap_w, may_write)

    async def _change(
        self,
        seen: _Seen,
        body: Mapping[str, object],
        is_done: Callable[[CapState], bool],
        asked_w: float | None,
        may_write: MayWrite,
    ) -> CapOutcome:
        """Write unless it stands so already, then look until it does, or stands otherwise, or time is up."""
        sent_ns = NOT_SENT

        def may_send() -> bool:
            nonlocal sent_ns
            allowed = may_write()
            if allowed and sent_ns == NOT_SENT:
                sent_ns = self._clock.mono_ns()
            return allowed

        def outcome(state: CapState, refused: str | None, t_verified_ns: int | None = None) -> CapOutcome:
            return CapOutcome(asked_w, state.cap_w, t_verified_ns is not None, refused, sent_ns, t_verified_ns)

        if is_done(seen.state):
            return outcome(seen.state, None, seen.t_mono_ns)
        deadline_ns = self._clock.mono_ns() + round(self.options.settle_s * 1e9)
        try:
            answer = await self._patch(seen, body, may_send)
        except WriteForbidden:
            return outcome(seen.state, "writing is not allowed now")
        if answer.status == 202:
            answer = await self._task(answer, deadline_ns)
        said = complaint(answer.document)
        if answer.status in REFUSALS:
            return outcome(seen.state, said or f"HTTP {answer.status}")
        if answer.status not in (200, 201, 202, 204):
            raise DeviceError(f"{self.options.endpoint.label}: setting the cap answers {told(answer)}")
        last = await self._settled(seen.state, is_done, deadline_ns)
        if is_done(last.state):
            return outcome(last.state, None, last.t_mono_ns)
        return outcome(last.state, said)

    async def _patch(self, seen: _Seen, body: Mapping[str, object], may_write: MayWrite) -> Answer:
        """PATCH on the version that was read; raises WriteForbidden.

        Services whose tag covers live readings refuse even a fresh one: then the last try takes any version.
        """
        path, patch = seen.place.path, self._session.patch
        answer = await patch(path, body, seen.answer.etag, may_write)
        if answer.status in (412, 428):
            answer = await patch(path, body, (await self._look()).answer.etag, may_write)
        if answer.status in (412, 428):
            answer = await patch(path, body, "*", may_write)
        return answer

    async def _task(self, answer: Answer, deadline_ns: int) -> Answer:
        """Follow a 202 to the answer that it stands for; that of a monitor that is gone is in the read-back."""
        monitor, wait_s = answer.location, POLL_S
        while monitor is not None and answer.status == 202:
            left_s = (deadline_ns - self._clock.mono_ns()) / 1e9
            if left_s <= 0.0:
                break
            await self._sleep(min(left_s, answer.retry_after_s or wait_s))
            wait_s = min(1.5 * wait_s, POLL_MOST_S)
            answer = await self._session.get_any(monitor)
        state = text(answer.document.get("TaskState"))
        if state in ("Exception", "Cancelled", "Killed"):
            words = complaint(answer.document) or f"the BMC's task ended as {state}"
            return Answer(400, answer.headers, {"error": {"message": words}})
        if answer.status in (404, 410):
            return Answer(204, {}, {})
        return answer

    async def _settled(self, before: CapState, is_done: Callable[[CapState], bool], deadline_ns: int) -> _Seen:
        """What the server shows in the end. Something third, neither the old nor the asked, is believed after 1 s."""
        wait_s, third_since_ns = POLL_S, None
        while True:
            seen = await self._look()
            if is_done(seen.state) or seen.t_mono_ns >= deadline_ns:
                return seen
            if seen.state.raw == before.raw:
                third_since_ns = None
            elif third_since_ns is None:
                third_since_ns = seen.t_mono_ns
            elif seen.t_mono_ns - third_since_ns >= STANDS_S * 1e9:
                return seen
            await self._sleep(min(wait_s, max(0.0, (deadline_ns - seen.t_mono_ns) / 1e9)))
            wait_s = min(1.5 * wait_s, POLL_MOST_S)


def _preferred(places: list[CapPlace], resource: str | None) -> list[CapPlace]:
    """Of one chassis with both kinds the newer one, unless the older one is named."""
    newer = {place.chassis for place in places if place.mechanism == ENVIRONMENT_METRICS}
    return [
        place
        for place in places
        if place.mechanism == ENVIRONMENT_METRICS or place.chassis not in newer or resource in (place.path, place.uri)
    ]


def _reads_power(document: Document) -> bool:
    return "Reading" in obj(document, "PowerWatts") or "Reading" in obj(document, "PowerLimitWatts")


def _whole(cap_w: float) -> int:
    """Whole watts, rounded down: a cap is never more than was asked. Raises ValueError for what is no power."""
    if not (math.isfinite(cap_w) and cap_w > 0.0):
        raise ValueError(f"cap_w is {cap_w!r}; allowed: above 0 W, or None for no cap")
    return math.floor(cap_w)


def _out_of_bounds(state: CapState, asked_w: int | None) -> str | None:
    if asked_w is None:
        return None
    if asked_w < 1 or (state.lowest_w is not None and asked_w < state.lowest_w):
        return f"{asked_w} W is below the lowest cap of this server, {state.lowest_w or 1.0:g} W"
    if state.highest_w is not None and asked_w > state.highest_w:
        return f"{asked_w} W is above the highest cap of this server, {state.highest_w:g} W"
    return None
