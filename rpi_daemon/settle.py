"""How long devices take to do what they are told, measured in the run and kept on disk for the next one."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import structlog

from rpi_daemon.durable import write_durably
from rpi_daemon.records import HORIZONS_S

SCHEMA = 1
FADE = 0.2  # a longer time counts at once, shorter ones by this much
CHANGED = 0.2  # a figure that moved by this part is worth a write to disk
HORIZON_S = HORIZONS_S[-1]

log = structlog.get_logger(__name__)


class SettleTimes:
    """Seconds per device. `caps`: from a decision to a draw that has followed; `pdus`: from a write to its read-back."""

    def __init__(self, path: Path) -> None:
        """What earlier runs measured; a file that is damaged or not there is no reason not to start."""
        self.caps: dict[str, float] = {}
        self.pdus: dict[str, float] = {}
        self._path = path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] == SCHEMA:
                self.caps, self.pdus = _seconds(data["caps"]), _seconds(data["pdus"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            log.warning("settle_times.unread", path=str(path), error=str(error), doing="they are measured anew")
        self._saved = self._figures()

    def note_pdu(self, pdu: str, seconds: float) -> None:
        """One batch of a PDU, from its first message to its read-back."""
        before_s = self.pdus.get(pdu, seconds)
        self.pdus[pdu] = max(seconds, before_s + FADE * (seconds - before_s))

    def worth_saving(self) -> bool:
        """Whether a figure is new, or has moved by a fifth since it was saved."""
        now = self._figures()
        return now.keys() != self._saved.keys() or any(
            abs(now[key] - self._saved[key]) > CHANGED * self._saved[key] for key in now
        )

    def save(self) -> None:
        """Durably; a disk that does not take it costs the figures, nothing else."""
        self._saved = self._figures()
        text = json.dumps({"schema": SCHEMA, "caps": self.caps, "pdus": self.pdus}, indent=1, sort_keys=True)
        try:
            write_durably(self._path, text)
        except OSError as error:
            log.warning("settle_times.not_saved", path=str(self._path), error=str(error))

    def _figures(self) -> dict[tuple[str, str], float]:
        return {("cap", name): s for name, s in self.caps.items()} | {("pdu", name): s for name, s in self.pdus.items()}


def too_slow(settle_s: float | None) -> str | None:
    """The sentence for a device that takes longer than we look ahead."""
    if settle_s is None or not settle_s > HORIZON_S:
        return None
    return (
        f"{HORIZON_S:g} s is not enough: it takes {settle_s:.1f} s, so a predicted overload may come before its limit"
    )


def _seconds(item: Mapping[str, object]) -> dict[str, float]:
    return {str(name): s for name, s in item.items() if isinstance(s, float) and math.isfinite(s) and s >= 0.0}
