"""What must hold in every soak, judged from what the devices really hold and really draw.

| | invariant |
|---|---|
| a | no message of ours takes what our limits allow on a breaker, phase or rack above its derated rating |
| b | no write with the kill switch engaged, in advisory, to an outlet that is not ours or was given back, with the lease expired, where somebody else writes; no raise where limits are held |
| c | every write is on disk in the audit before it, but protective ones while the disk is full, and read back before the next to the same outlet; the audit's chain is whole |
| d | a limit that cuts off is never written below draw + margin |
| e | as many descriptors after a life of the daemon as before it |
| f | scans that are counted as lost are the ones that were lost |
| g | once faults end, NORMAL within `RECOVERED_S`, every limit on the devices as the daemon knows it, and within every rating |
| h | no exception that nobody takes, no task that ends, no tick left out |
| i | writes per outlet and day within the budget, beyond protective ones and the first where no limit stands |
| j | a trap sink gets what a daemon tells once and in order, and none is left out that is not told as dropped |

Of (a): an outlet of ours counts with what its device holds, by whatever message it came there. A limit that others put there
(a reboot's default, a foreign writer, a limit that stood before we came) counts while it is lower than our last one,
for we did not set it. Outlets that are not ours, and those whose alarm threshold the daemon has given up or left to somebody
else, count with the least that they drew in the last second: what they may draw is not ours to say. A message that
lowers a sum is always right, whatever the sum.
"""

import contextlib
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from soak_audit import asked_w, broken
from soak_rack import SoakRack, Written

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.schema import Config
from rpi_daemon.guard import held
from rpi_daemon.pipeline import Snapshot
from rpi_daemon.records import Mode, RackModel, SafeState

RECOVERED_S = 40.0  # 5 s of health, 15 s until an outlet that did not obey is tried again, polls and writes in between
STEP_W = 1.5  # devices hold whole watts
GRACE_S = 1.5  # what was on its way when limits began to be held: a batch with its repetitions
DISTURBED_S = 3.0  # so long after a fault of its wire nobody knows which message a device heard
TICK_GAP_S = 0.35
READ_BACK_S = 0.8  # a write is read back at once; the next poll may come a second later
SEEN_S = 0.6  # a decision rests on windows this old at most ...
SEEN_LATE_S = 2.0  # ... and a repeated message on older ones
MARGIN_SHARE = 0.05  # guard.trip_margin_share
NOISE_W = 12.0  # of a reading that a decision rests on, against the truth
LEASE_S = 10.0
AUDIT_AGAIN_S = 1.5  # the disk is tried again once a second
CHECKS = (  # what is counted: each must have been applied in a long soak, else it proves nothing
    "a sums", "b advisory", "b foreign writer", "b given back", "b held", "b kill switch", "b lease", "b not ours",
    "c audited", "c chain", "c read back", "c read back first", "d draw", "e descriptors", "f losses", "g recovered",
    "h ticks", "i budget", "j notices",
)  # fmt: skip
HISTORY = 120  # draws that are kept: 2 s at the least


@dataclass(frozen=True, slots=True)
class Violation:
    letter: str
    t_s: float
    text: str


@dataclass
class Standing:
    """What the soak has told the daemon to be, which is what it must be."""

    killed: bool = False
    mode: Mode = Mode.CLOSED_LOOP
    released: set[str] = field(default_factory=set)
    opted_out: set[str] = field(default_factory=set)  # by a reload
    asking: bool = False  # a command that writes is under way
    reloading: bool = False  # a reload is under way that takes outlets out of closed loop, or back
    loop_runs: bool = False  # before and after it STATIC_SAFE is written, and nothing else
    lying: dict[str, int] = field(default_factory=dict)  # outlet -> until when its sensor tells what is not so, ns

    @property
    def commanding(self) -> bool:
        """Found limits may be put back just now."""
        return self.asking or self.reloading

    @property
    def given_back(self) -> set[str]:
        return self.released | self.opted_out


class Checks:
    """Takes what happens (`wrote`, `looked`, `ticked`, ...) and keeps what must not have happened in `violations`."""

    def __init__(self, rack: SoakRack, config: Config, model: RackModel) -> None:
        self.rack, self.config, self.model = rack, config, model
        self.standing = Standing()
        self.violations: list[Violation] = []
        self.counts: dict[str, int] = dict.fromkeys(("messages", "writes", "ticks", "calms"), 0)
        self.applied: Counter[str] = Counter()  # by check of `CHECKS`; of a forbidden state: looks while it stood
        self.skipped: Counter[str] = (
            Counter()
        )  # where it could have been applied, and a fault made what it needs unknown
        self.snapshot: Snapshot | None = None
        self.ours = {name for name, row in self._rows() if row.closed_loop and row.pdu != "pdu-c"}
        self.cuts = {name for name, row in self._rows() if row.pdu == "pdu-b"}
        self.disturbed_ns: dict[str, int] = {}  # PDU -> when its wire was last at fault
        self._found_w = rack.limits_w()  # what stood before we came, and is put back when outlets are given back
        self._last_w: dict[str, float] = {}  # outlet -> our last limit that its device took
        self._alien: set[str] = set()  # outlets whose device holds somebody else's
        self._unread: dict[str, tuple[int, float | None]] = {}  # outlet -> when written and what, not read back yet
        self._drawn: dict[str, deque[tuple[int, float]]] = {o: deque(maxlen=HISTORY) for o in model.outlet_ids}
        self._held_since: dict[str, int] = {}
        self._foreign_since: dict[str, int] = {}
        self._counted: dict[str, int] = {}
        self._tick_ns: int | None = None
        self._noticed: tuple[int, int] | None = None  # sequence number and drops of the newest notice of this life
        self.disk_full = False
        self.disk_free_ns = -(1 << 62)  # since when
        self.state: Callable[[], Path] = Path  # the daemon's state folder
        self.newest: Callable[[], tuple[Snapshot, RackModel] | None] = lambda: None  # of the daemon's ticks

    def _rows(self) -> list[tuple[str, object]]:
        return [(row.id, row) for row in self.config.outlets()]

    def now_ns(self) -> int:
        return self.rack.clock.mono_ns()

    def violate(self, letter: str, text: str) -> None:
        self.violations.append(Violation(letter, self.now_ns() / NS_PER_S, text))

    def _judge(self, check: str, *, unless: bool = False) -> bool:
        """Count a check as applied, or as skipped `unless`."""
        (self.skipped if unless else self.applied)[check] += 1
        return not unless

    # -- what happens

    def begin_life(self) -> None:
        """Another daemon."""
        self.snapshot = self._tick_ns = None
        self.standing.opted_out, self.standing.reloading = set(), False
        self._held_since.clear()
        self._foreign_since.clear()
        self._unread.clear()
        self._counted.clear()
        self._noticed = None

    def disturb(self, pdu: str) -> None:
        """Messages to or from it may be lost now."""
        self.disturbed_ns[pdu] = self.now_ns()

    def changed(self, outlet: str) -> None:
        """Somebody else set this limit, or the device forgot ours."""
        self._alien.add(outlet)

    def sampled(self) -> None:
        """Keep what is drawn now."""
        now_ns = self.now_ns()
        for outlet, drawn in self._drawn.items():
            drawn.append((now_ns, self.rack.draw_w(outlet)))

    def looked(self, outlet: str) -> None:
        """The daemon has asked for the limit of an outlet."""
        if self._unread.pop(outlet, None) is not None:
            self._judge("c read back")

    def noticed(self, sequence: int, dropped: int) -> None:
        """(j) A notice has reached the trap sink; an acknowledgement may be lost, so the newest may come twice."""
        self._judge("j notices")
        if self._noticed is not None:
            newest, before = self._noticed
            if not newest <= sequence <= newest + 1 + dropped - before:
                self.violate("j", f"notice {sequence} follows {newest}, {dropped - before} dropped in between")
        self._noticed = sequence, dropped

    def wrote(self, pdu: str, writes: Sequence[Written]) -> None:
        """One SET message, as its device took it."""
        if (newest := self.newest()) is not None:
            self.ticked(*newest)
        self.counts["messages"] += 1
        self.counts["writes"] += len(writes)
        if self.standing.commanding:  # what a device then makes of a found limit, clamping it say, is its owner's, too
            self._alien |= {w.outlet for w in writes if self._found_w[w.outlet] in (w.after_w, w.asked_w or math.inf)}
        self._in_forbidden_state(pdu, writes)
        self._over_budgets(writes)
        for write in writes:
            if write.asked_w is not None:
                self._raised_while_held(pdu, write)
                self._below_draw(pdu, write)
                self._not_read_back(pdu, write)
                self._not_audited(write)
                self._count(write)
            given_back = write.outlet in self._alien and self.standing.commanding
            if write.asked_w is not None and _same(write.after_w, write.asked_w) and not given_back:
                self._last_w[write.outlet] = write.after_w
                self._alien.discard(write.outlet)

    def ticked(self, snapshot: Snapshot, rack: RackModel) -> None:
        """A tick of the daemon."""
        if self.snapshot is not None and snapshot.t_mono_ns == self.snapshot.t_mono_ns:
            return
        self.counts["ticks"] += 1
        now_ns = snapshot.t_mono_ns
        frozen = held(rack, snapshot.safe) if snapshot.safe.state is SafeState.HOLD else np.zeros(rack.n, np.bool_)
        names = {rack.outlet_ids[i] for i in np.flatnonzero(frozen)}
        self._held_since = {name: self._held_since.get(name, now_ns) for name in names}
        foreign = {c.partition(":")[2] for c in snapshot.safe.causes if c.startswith("foreign_writer:")}
        self._foreign_since = {pdu: self._foreign_since.get(pdu, now_ns) for pdu in foreign}
        self.snapshot = snapshot
        self._tick_ns = now_ns

    def hung(self) -> None:
        """The soak itself has kept the daemon from its next tick."""
        if self._tick_ns is not None and self.now_ns() - self._tick_ns > LEASE_S * NS_PER_S:
            self._judge("b lease")
        if (newest := self.newest()) is not None:
            self.ticked(*newest)
        self._tick_ns = self.now_ns()

    def look_at_ticks(self) -> None:
        """(h) The loop runs, so a tick must have come."""
        self._judge("h ticks")
        gap_s = 0.0 if self._tick_ns is None else (self.now_ns() - self._tick_ns) / NS_PER_S
        if self.standing.loop_runs and gap_s > TICK_GAP_S:
            self.violate("h", f"no tick for {gap_s:.2f} s")
            self._tick_ns = self.now_ns()

    # -- (a)

    def sums_w(self, changed: Mapping[str, float | None] = {}) -> dict[str, float]:
        """What our limits allow on each row in watts; `changed`: limits in place of what the devices hold now."""
        limits = {**self.rack.limits_w(), **changed}
        counted = {name: self._counts_w(name, limits[name]) for name in self.model.outlet_ids}
        return {
            c.name: float(
                sum(share * counted[name] for share, name in zip(c.share, self.model.outlet_ids, strict=True))
            )
            for c in self.model.constraints
        }

    def _counts_w(self, name: str, limit_w: float | None) -> float:
        rating_w = self._rating_w(name)
        if name not in self.ours or self._given_up(name):
            return self.least_drawn_w(name, 1.0)
        stands_w = rating_w if limit_w is None else limit_w
        if name in self._alien or name not in self._last_w:
            return min(stands_w, self._last_w.get(name, 0.0))
        return stands_w

    def _given_up(self, name: str) -> bool:
        if name in self.standing.given_back or self.standing.mode is Mode.ADVISORY:
            return True
        if self.snapshot is None or name in self.cuts:
            return False
        i = self.model.outlet_ids.index(name)
        return bool(self.snapshot.in_force.uncontrolled[i]) or self.model.pdu_of[i] in self._foreign_since

    def caps_w(self) -> dict[str, float]:
        return {c.name: c.derate * c.rating_w for c in self.model.constraints if c.rating_w is not None}

    def _over_budgets(self, writes: Sequence[Written]) -> None:
        self._judge("a sums")
        before = self.sums_w({write.outlet: write.before_w for write in writes})
        after = self.sums_w()
        for row, cap_w in self.caps_w().items():
            if after[row] > cap_w + STEP_W * len(self.ours) and after[row] > before[row] + STEP_W:
                told = ", ".join(f"{w.outlet} {w.before_w} -> {w.after_w}" for w in writes)
                self.violate("a", f"{row}: {before[row]:.0f} -> {after[row]:.0f} W of {cap_w:.0f} W by {told}")

    # -- (b)

    def look_at_state(self) -> None:
        """Count for how long each forbidden state stands: what is written then is a violation."""
        standing = self.standing
        stands = {
            "b kill switch": standing.killed,
            "b advisory": standing.mode is Mode.ADVISORY,
            "b given back": bool(standing.given_back),
            "b foreign writer": bool(self._foreign_since),
        }
        for check in (name for name, here in stands.items() if here):
            self._judge(check, unless=standing.commanding and check != "b kill switch")

    def _in_forbidden_state(self, pdu: str, writes: Sequence[Written]) -> None:
        standing, now_ns = self.standing, self.now_ns()
        names = {write.outlet for write in writes}
        if standing.killed:
            self.violate("b", f"{sorted(names)} written with the kill switch engaged")
        self._judge("b not ours")
        if not names <= self.ours:
            self.violate("b", f"{sorted(names - self.ours)} written, and not ours to write")
        if standing.commanding:
            return
        if standing.mode is Mode.ADVISORY:
            self.violate("b", f"{sorted(names)} written in advisory")
        if names & standing.given_back:
            self.violate("b", f"{sorted(names & standing.given_back)} written after they were given back")
        if not standing.loop_runs:
            return
        if self._tick_ns is not None and now_ns - self._tick_ns > (LEASE_S + TICK_GAP_S) * NS_PER_S:
            self.violate("b", f"{sorted(names)} written with the lease expired")
        if now_ns - self._foreign_since.get(pdu, now_ns) > GRACE_S * NS_PER_S:
            self.violate("b", f"{sorted(names)} written where somebody else writes")

    def _raised_while_held(self, pdu: str, write: Written) -> None:
        now_ns, name = self.now_ns(), write.outlet
        since_ns = self._held_since.get(name, now_ns)
        if not self.standing.loop_runs or self.standing.commanding or now_ns - since_ns < GRACE_S * NS_PER_S:
            return
        if write.before_w is None or write.asked_w is None:
            return
        if not self._judge("b held", unless=name in self._alien or self._disturbed(pdu)):
            return
        if write.asked_w > write.before_w + STEP_W:
            self.violate("b", f"{name} raised from {write.before_w:.0f} to {write.asked_w:.0f} W while held")

    # -- (c)

    def _not_read_back(self, pdu: str, write: Written) -> None:
        before = self._unread.get(write.outlet)
        first = before is None or before[1] == write.asked_w
        if self._judge("c read back first", unless=not first and self._disturbed(pdu)) and not first:
            assert before is not None
            self.violate("c", f"{write.outlet}: {before[1]} W was not read back before {write.asked_w} W")
        self._unread[write.outlet] = self.now_ns(), write.asked_w

    def _not_audited(self, write: Written) -> None:
        if write.asked_w is None or (write.outlet in self._alien and self.standing.commanding):
            return
        failing = self.disk_full or self.now_ns() - self.disk_free_ns < AUDIT_AGAIN_S * NS_PER_S
        if not self._judge("c audited", unless=failing and self._protective(write)):
            return
        known, to_w = asked_w(self.state(), write.outlet)
        if not known or (to_w is not None and not -STEP_W <= to_w - write.asked_w <= STEP_W):
            self.violate("c", f"{write.outlet}: {write.asked_w} W written, the audit on disk says {to_w}")

    def _protective(self, write: Written) -> bool:
        """STATIC_SAFE, or the lowering of a limit that is enforced: it waits for no disk."""
        if not self.standing.loop_runs or write.before_w is None or write.asked_w is None:
            return not self.standing.loop_runs
        static = self.snapshot is not None and self.snapshot.safe.state >= SafeState.STATIC_SAFE
        return static or (write.outlet in self.cuts and write.asked_w < write.before_w + STEP_W)

    def look_at_audit(self) -> None:
        """(c) The chain is whole."""
        self._judge("c chain")
        if wrong := broken(self.state()):
            self.violate("c", f"the audit is broken: {wrong[:3]}")

    def look_at_reads(self) -> None:
        """(c) What was written must have been read back by now, where the wire was well all the time."""
        for name, (t_ns, limit_w) in list(self._unread.items()):
            pdu = name.partition("/")[0]
            if self.now_ns() - t_ns > READ_BACK_S * NS_PER_S:
                del self._unread[name]
                if self._judge("c read back", unless=self._disturbed(pdu)):
                    self.violate("c", f"{name}: {limit_w} W was not read back within {READ_BACK_S} s")

    # -- (d)

    def _below_draw(self, pdu: str, write: Written) -> None:
        name = write.outlet
        if name not in self.cuts or self.standing.commanding or write.asked_w is None:
            return
        if not self._judge("d draw", unless=self.standing.lying.get(name, 0) > self.now_ns()):
            return
        drawn_w = self.least_drawn_w(name, SEEN_LATE_S if self._disturbed(pdu) else SEEN_S)
        least_w = drawn_w + MARGIN_SHARE * self._rating_w(name) - STEP_W - NOISE_W
        if write.asked_w < least_w:
            self.violate("d", f"{name} set to {write.asked_w:.0f} W, it draws {drawn_w:.0f} W or more")

    def least_drawn_w(self, name: str, seconds: float) -> float:
        """The least that an outlet drew in this time."""
        since_ns = self.now_ns() - round(seconds * NS_PER_S)
        return min((w for t_ns, w in self._drawn[name] if t_ns >= since_ns), default=0.0)

    # -- (e), (f), (g), (i)

    def look_at_descriptors(self, before: "Counter[str]", now: "Counter[str]") -> None:
        """(e) `before`: after the life before, for the first opens what stays."""
        self._judge("e descriptors")
        if more := now - before:
            self.violate("e", f"descriptors that a life of the daemon has left open: {dict(more)}")

    def look_at_losses(self, counted: int, injected: int, rebooted: bool) -> None:
        """A board that reboots takes along what it had not sent yet: then there is only an upper bound."""
        self._judge("f losses", unless=rebooted)
        if counted > injected or (counted != injected and not rebooted):
            self.violate("f", f"{counted} scans counted as lost, {injected} were")

    def recovered(self, snapshot: Snapshot) -> str | None:
        """(g) What is still not as it should be; None when all is well."""
        self._judge("g recovered")
        if snapshot.safe.state is not SafeState.NORMAL:
            overloads = [c for c in snapshot.safe.causes if c.startswith("overload:")]
            if list(snapshot.safe.causes) != overloads or not any(map(self._loaded, overloads)):
                return f"{snapshot.safe.state.name} by {list(snapshot.safe.causes)}"
        if self.standing.opted_out:
            return f"{sorted(self.standing.opted_out)} are opted out"
        for i, name in enumerate(self.model.outlet_ids):
            if name not in self.ours:
                continue
            stands_w, known_w = self.rack.limits_w()[name], float(snapshot.in_force.limit_w[i])
            if snapshot.in_force.uncontrolled[i]:
                return f"{name} is uncontrolled"
            if stands_w is None or not abs(stands_w - known_w) <= STEP_W:
                return f"{name} holds {stands_w} W, the daemon knows {known_w} W"
        sums, caps = self.sums_w(), self.caps_w()
        over = [f"{row}: {sums[row]:.0f} of {cap_w:.0f} W" for row, cap_w in caps.items()
                if sums[row] > cap_w + STEP_W * len(self.ours)]  # fmt: skip
        return "; ".join(over) or None

    def _loaded(self, cause: str) -> bool:
        name = cause.partition(":")[2]
        rating_w = next(c.rating_w for c in self.model.constraints if c.name == name)
        rows = next(c.share for c in self.model.constraints if c.name == name)
        drawn_w = sum(
            share * max(w for _, w in self._drawn[o]) for share, o in zip(rows, self.model.outlet_ids, strict=True)
        )
        return rating_w is not None and drawn_w > 0.95 * rating_w

    def _count(self, write: Written) -> None:
        static_w = self.model.static_safe_w[self.model.outlet_ids.index(write.outlet)]
        lowers = write.before_w is not None and write.asked_w is not None and write.asked_w < write.before_w
        if write.asked_w is None or _near(write.asked_w, static_w) or (lowers and write.outlet in self.cuts):
            return
        if write.before_w is None:
            return  # no limit stood there at all
        disturbed = self.standing.commanding or self._disturbed(write.outlet.partition("/")[0])
        if not self._judge("i budget", unless=disturbed):
            return
        self._counted[write.outlet] = self._counted.get(write.outlet, 0) + 1
        if self._counted[write.outlet] == self.rack.writes_per_day + 1:
            self.violate("i", f"{write.outlet}: more than {self.rack.writes_per_day} writes in a day")

    # --

    def _disturbed(self, pdu: str, seconds: float = DISTURBED_S) -> bool:
        return self.now_ns() - self.disturbed_ns.get(pdu, -(1 << 62)) < seconds * NS_PER_S

    def _rating_w(self, name: str) -> float:
        return float(self.model.rating_w[self.model.outlet_ids.index(name)])


def _same(a_w: float | None, b_w: float | None) -> bool:
    return a_w is b_w if a_w is None or b_w is None else _near(a_w, b_w)


def _near(a_w: float, b_w: float) -> bool:
    return math.isclose(a_w, b_w, abs_tol=STEP_W)


def descriptors() -> "Counter[str]":
    """What this process has open, by kind or name."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found[os.readlink(f"/proc/self/fd/{name}").partition(":[")[0]] += 1
    return found
