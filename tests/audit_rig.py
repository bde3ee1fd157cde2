"""An audit that is kept nowhere, for tests of one device's task; what it was told is in `records`."""

from collections.abc import Sequence
from typing import Any

from rpi_daemon.audit import DAEMON, Asked, By, Intent


class ListAudit:
    """As `rpi_daemon.audit.Audit`, in a list. `durable` False: the disk takes nothing."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any]] = []
        self.durable = True

    async def asked(self, device: str, intents: Sequence[Intent], by: By = DAEMON, *, on_word: bool = False) -> Asked:
        self.records.append(("asked", tuple(intents)))
        return Asked(len(self.records), self.durable, 0, by.who)

    def ended(self, asked: Asked, device: str, outcomes: Sequence[Any]) -> None:
        self.records.append(("ended", tuple(outcomes)))

    def failed(self, asked: Asked, device: str, error: str) -> None:
        self.records.append(("failed", error))

    def refused(self, device: str, intents: Sequence[Intent], why: str, by: By = DAEMON) -> None:
        self.records.append(("refused", why))
