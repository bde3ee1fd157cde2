"""Limits without the daemon: STATIC_SAFE when it is gone, found limits when it goes for good. Acts on what was last in force."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rpi_daemon import event_loop
from rpi_daemon.audit import FAILSAFE, Audit, By
from rpi_daemon.capping import Capping
from rpi_daemon.clock import SystemClock
from rpi_daemon.config.changes import changes
from rpi_daemon.config.load import read_config, read_folders
from rpi_daemon.config.schema import Cap, Config, Daemon, Pdu
from rpi_daemon.devices import address_of, used_pdus
from rpi_daemon.errors import ConfigError, DeviceError, LockedError, RpiError
from rpi_daemon.found import lost_text
from rpi_daemon.guard import GuardConfig, away_from_static_safe
from rpi_daemon.host import pdu_lock, process_age_s
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.records import Mode
from rpi_daemon.roles import user_name
from rpi_daemon.safe_limits import SafeLimits
from rpi_daemon.standing import STANDING_FILE, Standing

PAUSE_S = 0.2  # before a device that failed is tried again
CLOSE_S = 0.5  # for all connections, at the end


@dataclass(frozen=True, slots=True)
class InForce:
    """What the daemon last stood for, where that was found, and what is to be said about it."""

    standing: Standing
    folder: Path  # of state
    notes: tuple[str, ...]
    lost: bool = False  # the standing is the configuration's: outlets that were given back are told by the found limits


def in_force(config_path: Path, state_dir: Path | None) -> InForce:
    """The state folder's word; the configuration file's where there is none. Raises ConfigError where there is neither."""
    if state_dir is not None and not os.path.isdir(state_dir):  # nor raises where it may not look
        raise ConfigError(f"--state-dir {state_dir}: no folder that can be looked into")
    config, broken = _configuration(config_path)
    notes = [] if broken is None else [str(broken).partition("\n")[0]]
    folders = [state_dir] if state_dir is not None else _folders(config_path)
    for folder in folders:
        try:
            standing = Standing.read(folder)
        except ConfigError as error:
            notes.append(str(error))
            continue
        own = state_dir is not None or (config is not None and folder == folders[0])
        if standing is None or not (own or _is_of(standing, config_path)):
            continue
        if broken is not None:
            notes.append("acting on the configuration that was last in force")
        elif config is not None and changes(standing.config, config):
            notes.append(f"{config_path} has changed since the daemon read it: acting on what was last in force")
        return InForce(standing, folder, tuple(notes))
    if config is None:
        places = " or ".join(map(str, folders))
        raise ConfigError("\n".join([*notes, f"no {STANDING_FILE} in {places}: nothing tells what to make safe"]))
    notes.append(f"no {STANDING_FILE} in {folders[0]}: acting on {config_path}")
    return InForce(Standing(config, Mode(config.daemon.mode)), folders[0], tuple(notes), lost=True)


def _configuration(path: Path) -> tuple[Config | None, ConfigError | None]:
    try:
        return read_config(path), None
    except ConfigError as error:
        return None, error


def _folders(config_path: Path) -> list[Path]:
    """Where the state may be, the likeliest first: an edited configuration may name another folder than the one in force."""
    places = []
    with contextlib.suppress(ConfigError):
        places.append(read_folders(config_path)[0])
    of_unit = os.environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd.exec(5)
    return [*places, *([Path(of_unit)] if of_unit else []), Path(Daemon().state_dir)]


def _is_of(standing: Standing, config_path: Path) -> bool:
    """Whether it stands for the configuration that was asked for, and not for another one's daemon."""
    return Path(standing.config.base_dir) == config_path.parent.resolve()


@dataclass(slots=True)
class PduEnd:
    """How one PDU was left."""

    pdu: str
    outlets: int  # that are ours to make safe
    written: int = 0
    away: list[int] | None = (
        None  # numbers of ours that stand elsewhere, None: not read; without an error they may not move
    )
    error: str = ""
    limits_w: dict[int, float | None] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.outlets == 0 or not self.error

    def document(self) -> dict[str, Any]:
        return {
            "id": self.pdu,
            "ok": self.ok,
            "outlets": self.outlets,
            "written": self.written,
            "away": self.away,
            "limits_w": self.limits_w,
            "error": self.error or None,
        }

    def text(self) -> str:
        if self.outlets == 0:
            return f"PDU {self.pdu}: no outlet of ours"
        if self.away is None:
            return f"PDU {self.pdu}: {self.error}"
        stand = f"PDU {self.pdu}: {self.outlets - len(self.away)} of {self.outlets} outlets stand at STATIC_SAFE"
        stand += f" ({self.written} written)" if self.written else ""
        why = self.error or "nothing may be written there, or it would cut off what they draw"
        return stand + (f"; elsewhere {', '.join(map(str, self.away))}: {why}" if self.away else "")


def failsafe(config_path: Path, state_dir: Path | None, for_s: float) -> tuple[dict[str, Any], str]:
    """STATIC_SAFE on every outlet that the daemon last controlled, verified, within `for_s`; caps of its servers as at stop.

    Compares only in advisory mode; with the kill switch engaged not even that. The document's `ok` says whether all is as
    it should be. Raises LockedError while a daemon runs.
    """
    until_s = time.monotonic() + for_s
    found = in_force(config_path, state_dir)
    with _alone(found, "failsafe", FAILSAFE) as limits:
        if limits.killed():
            limits.audit.refused("", (), "the kill switch is engaged", FAILSAFE)
            return _told(found, "kill_switch", True, [], {}, "the kill switch is engaged: nothing is written")
        limits.keep_to_found()
        ends, caps = event_loop.run(_make_safe(limits, found.standing.config, until_s))
    advisory = limits.mode is Mode.ADVISORY
    done = all(end.ok for end in ends) and all(not error for error in caps.values())
    stand = sum(end.outlets - len(end.away) for end in ends if end.away is not None)
    words = f"{stand} of {sum(end.outlets for end in ends)} outlets stand at STATIC_SAFE after {process_age_s():.2f} s"
    words += "; advisory: compared, nothing is written" if advisory else ""
    return _told(found, limits.mode.value, done or advisory, ends, caps, words)


def restore(
    config_path: Path, state_dir: Path | None, for_s: float, outlets: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Found limits and caps of these outlets (of all, if none is named) back, verified, within `for_s`; they are not ours then.

    The document's `ok` says whether all are back. Raises LockedError while a daemon runs, RpiError with the kill switch
    engaged.
    """
    until_s = time.monotonic() + for_s
    found = in_force(config_path, state_dir)
    by = By(f"operator {user_name(os.getuid())}", "limit restore --offline")
    with _alone(found, "limit restore --offline", by) as limits:
        if unknown := set(outlets) - set(limits.rack.outlet_ids):
            raise RpiError(f"no outlet is called {sorted(unknown)[0]!r}; known: {', '.join(limits.rack.outlet_ids)}")
        names = outlets or limits.rack.outlet_ids
        limits.keep_to_found()
        restored, lost, errors = event_loop.run(_put_back(limits, found.standing.config, names, until_s, by))
    document = {
        "schema": 1,
        "ok": not errors,
        "mode": limits.mode.value,
        "restored": restored,
        "lost": lost,
        "notes": found.notes,
        "errors": errors,
    }
    if not errors:
        words = [
            f"restored {restored} outlets, verified; mode {limits.mode.value}",
            *([lost_text(lost)] if lost else ()),
        ]
    return document, "\n".join([*found.notes, *(errors or words)])


def _told(
    found: InForce, mode: str, ok: bool, ends: Sequence[PduEnd], caps: dict[str, str], words: str
) -> tuple[dict[str, Any], str]:
    document = {
        "schema": 1,
        "ok": ok,
        "mode": mode,
        "after_s": round(process_age_s(), 3),
        "notes": found.notes,
        "pdus": [end.document() for end in ends],
        "caps": [{"load": load, "ok": not error, "error": error or None} for load, error in caps.items()],
    }
    lines = [*found.notes, *(end.text() for end in ends)]
    lines += [f"server {load}: {error or 'its cap is left safe'}" for load, error in caps.items()]
    return document, "\n".join([*lines, words])


@contextlib.contextmanager
def _alone(found: InForce, command: str, by: By) -> Iterator[SafeLimits]:
    """The limits as they were last in force, and no daemon that writes them. Raises LockedError."""
    config, clock = found.standing.config, SystemClock()
    audit = Audit(found.folder, clock, keep_days=config.audit.keep_days, who=by.who)
    guard = GuardConfig(**config.guard.model_dump())
    limits = SafeLimits(config, guard, clock, audit, by=by, state_dir=found.folder)
    # the log ends after all that speaks: whatever it says belongs on stderr, beside a --json document on stdout
    with logging_to_stderr("warning", config.daemon.log_format), contextlib.ExitStack() as locks:
        for address, pdu in {address_of(pdu): pdu.id for pdu in used_pdus(config)}.items():
            try:
                locks.enter_context(pdu_lock(pdu, address))
            except LockedError as error:
                raise LockedError(f"{error}; {command} is for when none runs") from None
        audit.open()
        locks.callback(audit.close)
        limits.take_up(found.standing)
        if found.lost:
            limits.go_by_found()
        yield limits


async def _make_safe(limits: SafeLimits, config: Config, until_s: float) -> tuple[list[PduEnd], dict[str, str]]:
    """All devices at once; one that is silent keeps STATIC_SAFE from no other. PDUs; servers that failed, with why."""
    ends = {pdu.id: PduEnd(pdu.id, len(limits.outlets_of_ours(pdu.id))) for pdu in used_pdus(config)}
    pdus = [pdu for pdu in used_pdus(config) if ends[pdu.id].outlets]
    caps = _caps_of_ours(limits, config)
    async with _connections() as stack:
        errors = await asyncio.gather(
            *(_until(until_s, partial(_make_pdu_safe, limits, pdu, stack)) for pdu in pdus),
            *(_until(until_s, partial(_leave_cap, limits, cap, stack)) for cap in caps),
        )
    for pdu, error in zip(pdus, errors, strict=False):
        _note_end(limits, ends[pdu.id], error)
    return list(ends.values()), dict(zip((cap.load for cap in caps), errors[len(pdus) :], strict=True))


async def _put_back(
    limits: SafeLimits, config: Config, names: Sequence[str], until_s: float, by: By
) -> tuple[int, list[str], list[str]]:
    """How many limits are back, of which outlets they are lost, and what went wrong."""
    pdus, caps = used_pdus(config), _caps_of_ours(limits, config)
    reach_until_s = (time.monotonic() + until_s) / 2.0  # the rest is for those that answer
    async with _connections() as stack:
        opened = await asyncio.gather(
            *(_until(reach_until_s, partial(_open_pdu, limits, pdu, stack)) for pdu in pdus),
            *(_until(reach_until_s, partial(_open_cap, limits, cap, stack)) for cap in caps),
        )
        errors = [error for error in opened if error]
        silent = {pdu.id for pdu, error in zip(pdus, opened, strict=False) if error}
        reached = [name for name in names if name.partition("/")[0] not in silent]
        if not reached:
            return 0, [], errors
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                return *await limits.restore(reached, by), errors
        except TimeoutError:
            return 0, [], [*errors, "not all limits could be put back in time; try again with a longer --for"]
        except DeviceError as error:
            return 0, [], [*errors, str(error)]


@contextlib.asynccontextmanager
async def _connections() -> AsyncIterator[contextlib.AsyncExitStack]:
    """Closed at the end, as far as that goes in time: a controller that fell silent takes no goodbye."""
    stack = contextlib.AsyncExitStack()
    try:
        yield stack
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stack.aclose(), CLOSE_S)


async def _open_pdu(limits: SafeLimits, options: Pdu, stack: contextlib.AsyncExitStack) -> None:
    if options.id not in limits.tasks:
        await limits.open_pdu(options, limits.proofs(), stack)


async def _open_cap(limits: SafeLimits, options: Cap, stack: contextlib.AsyncExitStack) -> None:
    if options.load not in limits.cap_tasks:
        limits.open_cap(options, stack)


async def _make_pdu_safe(limits: SafeLimits, options: Pdu, stack: contextlib.AsyncExitStack) -> None:
    await _open_pdu(limits, options, stack)
    await limits.static_safe_on(options.id, "failsafe")


async def _leave_cap(limits: SafeLimits, options: Cap, stack: contextlib.AsyncExitStack) -> None:
    """As at stop: STATIC_SAFE where what stands is higher. Raises DeviceError."""
    await _open_cap(limits, options, stack)
    task, capping = limits.cap_tasks[options.load], Capping(limits.rack)
    await task.read()
    for report in task.take_reports():
        capping.take(0, report)
    if not await limits.leave_caps(capping.static_safe()):
        raise DeviceError(f"server {options.load!r} does not take its cap")


async def _until(until_s: float, attempt: Callable[[], Awaitable[None]]) -> str:
    """Try until it succeeds or the time is over; why it did not, empty where it did."""
    error = "no answer in time"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(until_s - time.monotonic()):
            while True:
                try:
                    await attempt()
                except (DeviceError, ConfigError) as failed:
                    error = str(failed)
                except OSError as failed:  # a secret that cannot be read
                    error = f"{failed.filename}: {failed.strerror}"
                else:
                    return ""
                await asyncio.sleep(PAUSE_S)
    return error


def _note_end(limits: SafeLimits, end: PduEnd, error: str) -> None:
    end.error = error
    end.written = limits.tasks[end.pdu].verified if end.pdu in limits.tasks else 0
    if (reading := limits.stands.get(end.pdu)) is not None:
        end.away = away_from_static_safe(limits.rack, end.pdu, reading)
        end.limits_w = {n: s.limit_w if s.enabled is not False else None for n, s in reading.limits.items()}
    if reason := limits.meters_only.get(end.pdu):  # but it was ours a moment ago, and stands where the daemon left it
        end.away, end.error = None, reason


def _caps_of_ours(limits: SafeLimits, config: Config) -> list[Cap]:
    """Of the servers whose cap the daemon has met, and which were not given back."""
    opted_in = {limits.rack.loads[cap.load].name for cap in limits.rack.caps if cap.opted_in}
    return [
        cap
        for cap in config.cap
        if limits.mode is Mode.CLOSED_LOOP
        and cap.load in opted_in
        and limits.found_caps.may_write(cap.load)
        and not limits.given_back(cap.load)
    ]
