"""Has every change of a limit that a simulated PDU saw its record in the audit from before?"""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from scenario_rack import RackProcess

from rpi_daemon.audit import FOLDER, read_audit
from rpi_daemon.history.chain import Event

END_NS = 1 << 62
PDUS = ("pdu-a", "pdu-b")
STEP_W = 25.0  # of the coarser PDU: 0.1 A at 230 V, rounded down
Change = tuple[int, str, float | None]  # UTC ns, outlet, W


def records(state: Path, *names: str) -> list[Event]:
    """Of these names; all of them if none is named. What cannot be read fails the test."""
    told: list[str] = []
    found = list(read_audit(state / FOLDER, 0, END_NS, names, told))
    assert told == []
    return found


def changes(rack: RackProcess) -> list[Change]:
    """Every change of a limit by a SET since this was first asked for; by PDU, each in order."""
    return [(t_ns, f"{pdu}/{n}", w) for pdu in PDUS for t_ns, n, w in rack.ask(pdu=pdu, log=True)["log"]]


def unaudited(seen: Sequence[Change], asked: Sequence[Event]) -> list[Change]:
    """Changes that are not what the newest record of their outlet from before asks for; a device rounds down to its step."""
    times: dict[str, list[int]] = {}
    wanted: dict[str, list[float | None]] = {}
    for record in asked:
        for item in record.data["writes"]:
            times.setdefault(item["what"], []).append(record.t_ns)
            wanted.setdefault(item["what"], []).append(item["to_w"])
    found = []
    for t_ns, outlet, now_w in seen:
        before = bisect_right(times.get(outlet, []), t_ns)
        to_w = wanted[outlet][before - 1] if before else None
        if now_w is not None and (to_w is None or not -1.0 <= to_w - now_w <= STEP_W):
            found.append((t_ns, outlet, now_w))
    return found
