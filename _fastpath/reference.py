"""Pure-Python twin of the ring: what spsc.h means, said as simply as possible; tests compare the two."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan as a ring keeps it."""

    index: int
    t_mono_ns: int
    ticks: int
    status: int
    flags: int
    counts: tuple[int, ...]


class ReferenceRing:
    """The ring of `core.Ring`, for one thread. `keep` after `head` is what a later producer finds."""

    def __init__(self, n_channels: int, capacity: int) -> None:
        self.n_channels = n_channels
        self.capacity = capacity
        self.head = 0
        self._slots: list[Scan | None] = [None] * capacity

    def push(self, scan: Scan) -> None:
        """Raises ValueError where `core.Ring.push` does."""
        if scan.index < self.head:
            raise ValueError("goes back")
        if len(scan.counts) != self.n_channels:
            raise ValueError("wrong channel count")
        self._slots[scan.index % self.capacity] = scan
        self.head = scan.index + 1

    def scan(self, index: int) -> Scan | None:
        """The scan, or None: lost, not yet there, or (as far as a reader may rely on it) overwritten."""
        kept = self._slots[index % self.capacity]
        return kept if kept is not None and kept.index == index and self.intact(index) else None

    def missing(self, first: int, n: int) -> int:
        """How many of the scans first .. first + n - 1 are not there."""
        return sum(self.scan(index) is None for index in range(first, first + n))

    def intact(self, first: int) -> bool:
        """Whether no scan from `first` on can have been overwritten."""
        return self.head - self.capacity <= first


class ReferenceReader:
    """The scan-by-scan reader of spsc.h: what is popped and what is lost add up to the distance gone."""

    def __init__(self, ring: ReferenceRing, first: int = 0) -> None:
        self._ring = ring
        self.next = first
        self.lost = 0

    def pop(self) -> Scan | None:
        """The next scan that is there; None when the reader has caught up."""
        oldest = max(self.next, self._ring.head - self._ring.capacity)
        self.lost += oldest - self.next
        self.next = oldest
        while self.next < self._ring.head:
            scan = self._ring.scan(self.next)
            self.next += 1
            if scan is not None:
                return scan
            self.lost += 1
        return None
