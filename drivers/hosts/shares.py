"""From node_exporter's counters to shares between 0 and 1: CPU, memory, network, disk."""

import math
from collections.abc import Iterable, Mapping

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.drivers.hosts.exposition import Labels, Samples

CPU = "node_cpu_seconds_total"
MEMORY_TOTAL = "node_memory_MemTotal_bytes"
MEMORY_AVAILABLE = "node_memory_MemAvailable_bytes"
RECEIVED = "node_network_receive_bytes_total"
SENT = "node_network_transmit_bytes_total"
SPEED = "node_network_speed_bytes"
DISK_BUSY = "node_disk_io_time_seconds_total"
WANTED = frozenset((CPU, MEMORY_TOTAL, MEMORY_AVAILABLE, RECEIVED, SENT, SPEED, DISK_BUSY))

WAITING = ("idle", "iowait")  # modes in which a CPU does nothing
LONGEST_SPAN = 3.0  # polls; counters farther apart say what happened long ago

Shares = tuple[float | None, float | None, float | None, float | None]


class CounterShares:
    """Remembers one page. A share is None where it cannot be known: at first, after a reset, without a speed."""

    def __init__(self, poll_s: float, interface_bytes_per_s: float | None) -> None:
        """`interface_bytes_per_s`: speed of interfaces whose speed the host does not tell."""
        self._longest_s = LONGEST_SPAN * poll_s
        self._speed = interface_bytes_per_s
        self._before: tuple[int, Samples] | None = None

    def forget(self) -> None:
        """Begin anew."""
        self._before = None

    def step(self, t_mono_ns: int, page: Samples) -> Shares:
        """CPU, memory, network and disk since the page before; memory as it is now."""
        before, self._before = self._before, (t_mono_ns, page)
        memory = _memory(page)
        span_s = (t_mono_ns - before[0]) / NS_PER_S if before is not None else math.inf
        if before is None or not 0.0 < span_s <= self._longest_s:
            return None, memory, None, None
        return _cpu(before[1], page), memory, self._network(before[1], page, span_s), _disk(before[1], page, span_s)

    def _network(self, before: Samples, page: Samples, span_s: float) -> float | None:
        """Of the busiest interface, its busier direction."""
        speeds = {device: value for (device,), value in _by(page, SPEED, "device").items() if value > 0.0}
        moved = [*_growth(before, page, RECEIVED, "device").items(), *_growth(before, page, SENT, "device").items()]
        used = [
            size / span_s / speed
            for (device,), size in moved
            if device != "lo" and (speed := speeds.get(device, self._speed)) is not None
        ]
        return _highest(used)


def _cpu(before: Samples, page: Samples) -> float | None:
    """Part of the CPU time that was not idle. A CPU of which a counter went back, or that came or went, is left out."""
    per_cpu: dict[str, dict[str, float]] = {}
    for (cpu, mode), seconds in _by(page, CPU, "cpu", "mode").items():
        per_cpu.setdefault(cpu, {})[mode] = seconds
    old = _by(before, CPU, "cpu", "mode")
    busy_s = whole_s = 0.0
    for cpu, modes in per_cpu.items():
        passed_s = {mode: seconds - old.get((cpu, mode), math.nan) for mode, seconds in modes.items()}
        if all(seconds >= 0.0 for seconds in passed_s.values()):  # a NaN is not
            whole_s += sum(passed_s.values())
            busy_s += sum(seconds for mode, seconds in passed_s.items() if mode not in WAITING)
    return busy_s / whole_s if 0.0 < whole_s < math.inf else None


def _memory(page: Samples) -> float | None:
    total, available = (page.get(name, {}).get(()) for name in (MEMORY_TOTAL, MEMORY_AVAILABLE))
    if total is None or available is None or not 0.0 <= available <= total or not 0.0 < total < math.inf:
        return None
    return 1.0 - available / total


def _disk(before: Samples, page: Samples, span_s: float) -> float | None:
    """Part of the time that the busiest disk was busy."""
    return _highest(busy_s / span_s for busy_s in _growth(before, page, DISK_BUSY, "device").values())


def _highest(shares: Iterable[float]) -> float | None:
    """At most 1: two clocks measured the time."""
    highest = max(shares, default=None)
    return None if highest is None else min(1.0, highest)


def _growth(before: Samples, page: Samples, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """What counters of both pages grew by; one that went back was reset, and says nothing."""
    old = _by(before, name, *labels)
    grown = {key: value - old[key] for key, value in _by(page, name, *labels).items() if key in old}
    return {key: size for key, size in grown.items() if size >= 0.0}


def _by(page: Mapping[str, Mapping[Labels, float]], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The finite samples of a metric by the values of these labels; those that have others are not ours."""
    found: dict[tuple[str, ...], float] = {}
    for pairs, value in page.get(name, {}).items():
        if len(pairs) == len(labels) and math.isfinite(value):
            names, texts = zip(*pairs, strict=True) if pairs else ((), ())
            if names == labels:
                found[texts] = value
    return found
