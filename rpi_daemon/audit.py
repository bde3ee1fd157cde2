"""The audit: who wants which limit written and why, on disk before it is written; what came of it, after."""

import asyncio
import contextlib
import math
import os
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from rpi_daemon import __version__
from rpi_daemon.clock import NS_PER_S, Clock
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import RpiError
from rpi_daemon.history.chain import Chain, ChainLog, Event, Head, read_chain, verify_chain
from rpi_daemon.history.events import read_events
from rpi_daemon.history.writer import Writer
from rpi_daemon.records import (
    QUANTILES,
    REQUEST_QUANTILE,
    CapDesired,
    CapOutcome,
    CapReading,
    LimitKind,
    LimitState,
    LimitWrite,
    WriteOutcome,
)

KIND: Final = "audit"
FOLDER: Final = "audit"  # below the state folder
HEAD_FILE: Final = "audit-head"  # beside it: who takes the folder away leaves the number and hash of its end
HEAD_EVENT: Final = "audit.head"
DURABLE_S: Final = 0.25  # a write waits so long for its record; a raise that has waited longer is decided anew
ON_WORD_S: Final = 3.0  # what somebody has asked for by name is not decided anew: it waits for a slow disk
LATE_S: Final = 1.0  # a record that waits longer: the disk does not keep up
RETRY_S: Final = 1.0  # between two attempts on a disk that does not take it
HEAD_S: Final = 1.0  # the file of the head is so far behind at most
HEAD_SAID_S: Final = 3600.0  # the log, and with it the journal and the events, get the head so often
WAITING: Final = 2000  # records in memory while the disk takes none: hours of protective writes
END_NS: Final = 1 << 62
NOT_DURABLE: Final = "the audit record could not be made durable"

log = structlog.get_logger(__name__)

read_audit = partial(read_chain, kind=KIND)


@dataclass(frozen=True, slots=True)
class By:
    """Who wants it: `daemon`, `failsafe` or `operator NAME`; and in an operator's own words, why."""

    who: str
    reason: str = ""


DAEMON: Final = By("daemon")
FAILSAFE: Final = By("failsafe")


class Intent(NamedTuple):
    """One limit, or one server's cap, that is about to be written, and why. None is "not known"."""

    what: str  # PDU/NUMBER, or the load whose server it is
    kind: str  # `LimitKind`; "" where the device has not told
    before_w: float | None
    to_w: float | None  # None: no cap, or a found limit that was none
    reason: str  # raise, lower, first, release, static_safe, restore
    rule: str
    protective: bool  # STATIC_SAFE, or lowering an enforced limit: it waits for no disk
    request_w: float | None = None
    margin_w: float | None = None
    forecast_w: float | None = None
    quantile: float | None = None  # that the forecast is of
    grant_w: float | None = None


def limit_intent(pdu: str, write: LimitWrite, state: LimitState | None) -> Intent:
    """Of one outlet's limit. `state`: its limit before, as last read; None: not read yet."""
    what, kind = f"{pdu}/{write.outlet}", "" if state is None else state.kind.value
    before_w = None if state is None or state.enabled is False else state.limit_w
    if write.restore is not None:
        return Intent(what, kind, _known(before_w), _known(write.restore.limit_w), "restore", "as found", False)
    why = write.why
    if why is None:
        return Intent(what, kind, _known(before_w), _known(write.limit_w), "static_safe", "static safe", True)
    forecast_w = _known(why.forecast_w)
    return Intent(
        what,
        kind,
        _known(before_w),
        _known(write.limit_w),
        why.reason,
        why.rule,
        why.protective,
        request_w=_known(why.request_w),
        margin_w=_known(why.margin_w),
        forecast_w=forecast_w,
        quantile=None if forecast_w is None else QUANTILES[REQUEST_QUANTILE],
        grant_w=_known(why.grant_w),
    )


def cap_intent(
    load: str, cap_w: float | None, stands: CapReading | None, why: CapDesired | None, reason: str = "static_safe"
) -> Intent:
    """Of one server's cap. `stands`: as last read; `why`: the loop's decision, None for what it did not decide."""
    if why is None:
        before_w = stands.cap_w if stands is not None and stands.active else None
        rule, protective = ("as found", False) if reason == "restore" else ("static safe", True)
        return Intent(load, LimitKind.SERVER_CAP.value, _known(before_w), _known(cap_w), reason, rule, protective)
    return Intent(
        load,
        LimitKind.SERVER_CAP.value,
        _known(why.from_w),
        _known(cap_w),
        why.reason,
        why.rule,
        cap_w is not None and (why.from_w is None or cap_w < why.from_w),
        request_w=_known(why.request_w),
        grant_w=_known(why.grant_w),
    )


class Asked(NamedTuple):
    """A batch that was asked for: what its end is told by."""

    number: int  # of this run of this process
    durable: bool  # its record is on disk; where not, only what is protective may be written
    t_mono_ns: int
    who: str


class Audit:
    """One per process: daemon, failsafe, or a command that writes. Called in its loop, which never waits for the disk.

    `asked` is awaited immediately before the driver is called; `ended`, `failed` and `refused` wait for nothing.
    """

    def __init__(self, state_dir: Path, clock: Clock, *, keep_days: float, who: str = DAEMON.who) -> None:
        self.written = 0  # records on disk, since the start
        self.dropped = 0  # the queue in memory was full
        self.held = 0  # writes that waited for a disk that fails
        self.failing: str | None = None  # the disk's last word, None while it works
        self.set_aside = 0  # damaged files, renamed
        self.head = Head()  # on disk
        self._folder = state_dir / FOLDER
        self._head_path = state_dir / HEAD_FILE
        self._clock = clock
        self._keep_days = keep_days
        self._who = who
        self._number = 0
        self.writer = Writer("audit")
        self._log: ChainLog | None = None
        self._waiting: deque[_Waiting] = deque()
        self._in_hand_ns: int | None = None  # when what the thread is storing came in
        self._dropped_told = self._held_told = 0
        self._lost_told = ""
        self._head_kept = Head()  # in its file
        self._head_fails = False
        self._head_kept_ns = self._tried_ns = clock.mono_ns()
        self._head_said_ns: int | None = None

    def open(self, **fields: str) -> None:
        """Begin, and record these facts of it; the files are opened by the thread."""
        self.writer.start()
        self.note("begin", By(self._who), {"pid": os.getpid(), "version": __version__, **fields})

    async def asked(self, device: str, intents: Sequence[Intent], by: By = DAEMON, *, on_word: bool = False) -> Asked:
        """Record what is about to be written; returns once that is durable, or cannot be in time.

        Where the disk fails already it waits for nothing, nor where it is late, unless somebody asked for this by name
        (`on_word`): the record of what is protective is kept in memory, and on disk once that works.
        """
        self._number += 1
        now_ns = self._clock.mono_ns()
        number = self._number
        record = {**_told(by), "n": number, "device": device, "writes": [intent._asdict() for intent in intents]}
        if self.failing is not None if on_word else self._stalled(now_ns):
            if any(intent.protective for intent in intents):
                self._take("asked", record)
            return Asked(number, False, now_ns, by.who)
        durable = asyncio.get_running_loop().create_future()
        self._take("asked", record, durable)
        try:
            return Asked(number, await asyncio.wait_for(durable, ON_WORD_S if on_word else DURABLE_S), now_ns, by.who)
        except TimeoutError:
            return Asked(number, False, now_ns, by.who)

    def ended(self, asked: Asked, device: str, outcomes: Sequence[WriteOutcome | CapOutcome]) -> None:
        """What the device has after it, and what it said."""
        self._take("ended", {**_end_of(asked, device), "outcomes": [_outcome(asked, o) for o in outcomes]})

    def failed(self, asked: Asked, device: str, error: str) -> None:
        """No answer: whether it was taken is not known."""
        self._take("ended", {**_end_of(asked, device), "error": error})

    def refused(self, device: str, intents: Sequence[Intent], why: str, by: By = DAEMON) -> None:
        """What was wanted and is not written, and why not.

        What waits for a disk that fails is asked for again and again: it is counted, and told in one record.
        """
        if why == NOT_DURABLE and self._stalled(self._clock.mono_ns()):
            self.held += len(intents)
            return
        self._take(
            "refused", {**_told(by), "device": device, "why": why, "writes": [intent._asdict() for intent in intents]}
        )

    def note(self, name: str, by: By, fields: Mapping[str, Any]) -> None:
        """Anything else worth an auditor's time: a run that begins or ends, an operator's command."""
        self._take(name, {**_told(by), **fields})

    def look(self) -> bool:
        """Once a tick: try again where the disk failed, keep the head elsewhere. True while records are not durable."""
        now_ns = self._clock.mono_ns()
        if self.failing is not None and now_ns - self._tried_ns >= RETRY_S * NS_PER_S:
            self._tried_ns = now_ns
            self.writer.put(self._store)
        if self.head != self._head_kept and now_ns - self._head_kept_ns >= HEAD_S * NS_PER_S:
            self._head_kept_ns = now_ns
            self.writer.put(self._keep_head)
        if self.head.seq and (self._head_said_ns is None or now_ns - self._head_said_ns >= HEAD_SAID_S * NS_PER_S):
            self._head_said_ns = now_ns
            log.info("audit.head", head=str(self.head))
        return self._stalled(now_ns)

    def status(self) -> dict[str, Any]:
        return {
            "written": self.written,
            "waiting": len(self._waiting),
            "dropped": self.dropped,
            "held": self.held,
            "failing": self.failing,
            "head": str(self.head),
        }

    def close(self) -> bool:
        """Store what waits, for a few seconds at most. False where the disk did not take it."""
        self.note("end", By(self._who), {})
        self.writer.put(self._store)
        self.writer.put(self._keep_head)
        self.writer.put(self._close_files)
        finished = self.writer.close()
        if not finished or self._waiting:
            log.error("audit.not_finished", **self.status())
        elif self.head.seq:
            log.info("audit.head", head=str(self.head))
        return finished and not self._waiting

    def _stalled(self, now_ns: int) -> bool:
        """Whether the disk takes no records, or too slowly."""
        if self.failing is not None:
            return True
        oldest_ns = self._in_hand_ns
        if oldest_ns is None:
            with contextlib.suppress(IndexError):
                oldest_ns = self._waiting[0].event.t_mono_ns
        return oldest_ns is not None and now_ns - oldest_ns > LATE_S * NS_PER_S

    def _take(self, name: str, record: Mapping[str, Any], durable: "asyncio.Future[bool] | None" = None) -> None:
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            if durable is not None:
                durable.set_result(False)
            return
        event = Event(self._clock.utc_ns(), self._clock.mono_ns(), name, record)
        self._waiting.append(_Waiting(event, durable))
        if self.failing is None:
            self.writer.put(self._store)

    # -- the audit's thread

    def _store(self) -> None:
        waiting: list[_Waiting] = []
        with contextlib.suppress(IndexError):
            while True:
                waiting.append(self._waiting.popleft())
        if not waiting:
            return
        self._in_hand_ns = waiting[0].event.t_mono_ns
        records = [item.event for item in waiting]
        dropped, held, last = self.dropped, self.held, records[-1]
        for name, told in (
            ("dropped", {"records": dropped - self._dropped_told}),
            ("held", {"writes": held - self._held_told}),
        ):
            if any(told.values()):
                records.append(Event(last.t_ns, last.t_mono_ns, name, {"who": self._who, **told}))
        try:
            chain = self._opened()
            chain.append(records)
        except (sqlite3.Error, OSError) as error:
            self._waiting.extendleft(reversed(waiting))
            self._close_files()
            self._say(str(error))
        else:
            self.head, self.set_aside = chain.head, chain.set_aside
            self.written += len(records)
            self._dropped_told, self._held_told = dropped, held
            self._say(None)
        self._in_hand_ns = None
        for item in waiting:
            item.tell(self.failing is None)
        if self._log is not None and self._log.lost != self._lost_told:
            self._lost_told = self._log.lost
            log.error("audit.broken", error=self._lost_told)
            self.note("broken", By(self._who), {"error": self._lost_told})
        if not self._head_kept.seq:
            self._keep_head()

    def _opened(self) -> ChainLog:
        if self._log is None:
            self._head_kept = _kept_head(self._head_path)
            head = max(self._head_kept, self.head, key=lambda head: head.seq)
            self._log = ChainLog(self._folder, kind=KIND, keep_days=self._keep_days, head=head)
        return self._log

    def _close_files(self) -> None:
        if self._log is not None:
            self._log.close()

    def _keep_head(self) -> None:
        head = self.head
        if head == self._head_kept:
            return
        try:
            write_durably(self._head_path, f"{head}\n")
        except OSError as error:
            if not self._head_fails:  # the records themselves are on disk: nothing waits for this
                log.error("audit.head_not_kept", path=str(self._head_path), error=str(error))
            self._head_fails = True
        else:
            self._head_kept, self._head_fails = head, False

    def _say(self, error: str | None) -> None:
        before, self.failing = self.failing, error
        if error is not None and before is None:
            log.error(
                "audit.failing", error=error, doing="limits may fall, none is raised, until the disk takes records"
            )
        elif error is None and before is not None:
            log.info("audit.works_again", dropped=self.dropped)


class _Waiting(NamedTuple):
    event: Event
    durable: "asyncio.Future[bool] | None"

    def tell(self, durable: bool) -> None:
        """To who waits for it, in the loop where that is."""
        future = self.durable
        if future is None:
            return
        with contextlib.suppress(RuntimeError):  # that loop has ended
            future.get_loop().call_soon_threadsafe(_resolve, future, durable)


def _resolve(future: "asyncio.Future[bool]", durable: bool) -> None:
    if not future.done():
        future.set_result(durable)


def _told(by: By) -> dict[str, Any]:
    return {"who": by.who} | ({"words": by.reason} if by.reason else {})


def _end_of(asked: Asked, device: str) -> dict[str, Any]:
    return {"who": asked.who, "n": asked.number, "device": device}


def _outcome(asked: Asked, outcome: WriteOutcome | CapOutcome) -> dict[str, Any]:
    return {
        **({"outlet": outcome.outlet} if isinstance(outcome, WriteOutcome) else {}),
        "asked_w": _known(outcome.asked_w),
        "read_back_w": _known(outcome.read_back_w),
        "verified": outcome.verified,
        "refused": outcome.refused,
        "sent_after_ms": _ms(outcome.t_sent_ns or None, asked),
        "verified_after_ms": _ms(outcome.t_verified_ns, asked),
    }


def _ms(t_ns: int | None, asked: Asked) -> float | None:
    """Since it was asked for; None: nothing was sent, or nothing stood."""
    return None if t_ns is None else round((t_ns - asked.t_mono_ns) / 1e6, 3)


def _known(watts: float | None) -> float | None:
    return None if watts is None or not math.isfinite(watts) else round(watts, 3)


def _kept_head(path: Path) -> Head:
    """The head beside the folder; none where the file was never there, or is damaged: that is said."""
    try:
        return Head.parse(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return Head()
    except (OSError, ValueError, RpiError) as error:
        log.error("audit.head_unread", path=str(path), error=str(error))
        return Head()


def verify_audit(state_dir: Path, events_folder: Path, outside: Sequence[Head] = ()) -> Chain:
    """The whole chain, against every copy of its head: the file beside it, the log lines in the events, and `outside` ones."""
    folder, path = state_dir / FOLDER, state_dir / HEAD_FILE
    broken: list[str] = []
    heads = [*outside]
    try:
        heads.append(Head.parse(path.read_text(encoding="ascii")))
    except FileNotFoundError:
        if any(folder.glob("*.sqlite")):
            broken.append(f"{path.name}: it is missing; whether the end of the chain was cut off is not known from it")
    except (OSError, ValueError, RpiError) as error:
        broken.append(f"{path.name}: {error}")
    with contextlib.suppress(RpiError):
        heads += [
            Head.parse(str(event.data.get("head"))) for event in read_events(events_folder, 0, END_NS, [HEAD_EVENT])
        ]
    chain = verify_chain(folder, kind=KIND, heads=heads)
    begins = chain.first.seq if chain.first is not None else 1
    broken += [
        f"number {head.seq}, whose hash was kept elsewhere, cannot be compared: the chain begins with number {begins}"
        for head in outside
        if head.seq < begins - 1
    ]
    return replace(chain, broken=(*broken, *chain.broken))
