"""What hosts said of themselves, as columns per outlet: old words and unknown numbers are masked."""

from collections.abc import Iterable, Mapping

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import TELEMETRY, FloatArray, HostReading, RackModel

MAX_POLLS = 3  # a reading older than this many polls is no reading


class HostTelemetry:
    """The newest reading of each load's host. All outlets of a load show its host."""

    def __init__(self, rack: RackModel, poll_s: Mapping[str, float]) -> None:
        """`poll_s`: how often each load's host says something; loads that are not in it never do."""
        names = [load.name for load in rack.loads]
        self._load = {name: i for i, name in enumerate(names) if name in poll_s}
        self._load_of = rack.load_of
        self._longest_ns = np.array([MAX_POLLS * NS_PER_S * poll_s.get(name, 0.0) for name in names])
        self._shares = np.full((len(names), len(TELEMETRY)), np.nan)
        self._t_mono_ns = np.zeros(len(names))

    def take(self, readings: Iterable[HostReading]) -> None:
        """Newer readings; one of a load that nobody configured is not ours."""
        for reading in readings:
            if (load := self._load.get(reading.load)) is not None:
                self._t_mono_ns[load] = reading.t_mono_ns
                self._shares[load] = [
                    np.nan if share is None else share for share in (getattr(reading, name) for name in TELEMETRY)
                ]

    def columns(self, now_ns: int) -> FloatArray:
        """Shares per outlet, [n, 4] in the order of TELEMETRY; NaN where not known now."""
        old = now_ns - self._t_mono_ns > self._longest_ns
        shares: FloatArray = np.where(old[:, None], np.nan, self._shares)[self._load_of]
        return shares
