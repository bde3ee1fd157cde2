"""Sensors that stand still while what they measure moves: their outlets are not believed."""

from typing import Final

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import BoolArray, FloatArray, IntArray

FLAT_NS: Final = (
    1 * NS_PER_S
)  # of scans that are all the same count: 50 periods in which an alternating current turns round
ZERO_SHARE: Final = 0.02  # of the rated amps: a flat current nearer to zero may be an outlet without load
STILL_SHARE: Final = 0.01  # of the rating: a draw that stays within it stands still
MOVED_SHARE: Final = 0.05  # of the rating: a meter that goes this far has seen a load move
GAP_NS: Final = 1 * NS_PER_S  # without a window: what was seen before it says nothing of what comes after
MOVED_A: Final = 0.15  # and more than one step of a meter that tells tenths of an ampere
POLLS: Final = 3  # in a row that have to say so: one odd reply of a meter accuses nobody
LAG_NS: Final = 5 * NS_PER_S  # a PDU averages and tells late: what it still says of the time before is no movement
FLAT_LAG_NS: Final = (
    2 * NS_PER_S
)  # the same where all scans are equal, which a draw that fell to nothing hardly makes them


class StuckSensors:
    """Which outlets' sensors are not believed, [n]. `window` for each new window, `meter` for each poll; one caller.

    An alternating current whose scans are all the same count, away from zero, for 1 s is none; it ends with the first scans
    that differ. And a sensor whose draw has stood still for 5 s is not believed once the PDU's own meter of that outlet has
    moved since, by more than noise and steps make of it; nor one whose scans are all the same for 2 s where the meter says
    something else. That ends when the sensor moves as far, or both agree again. A meter that stands still accuses nobody:
    then it is the sensor that has moved.
    """

    def __init__(self, rating_w: FloatArray, nominal_v: FloatArray, *, alternating: bool) -> None:
        n = len(rating_w)
        self._alternating = alternating
        self._zero_a = ZERO_SHARE * rating_w / nominal_v
        self._still_w = STILL_SHARE * rating_w
        self._moved_w = np.maximum(MOVED_SHARE * rating_w, MOVED_A * nominal_v)
        self._window_ns = np.zeros(n, np.int64)  # when the newest window ended
        self._count_a = np.full(n, np.nan)  # of the newest scan, while all are the same
        self._flat_ns = np.zeros(n, np.int64)  # since when
        self._flat = np.zeros(n, np.bool_)
        self._power_w = np.full(n, np.nan)  # newest
        self._low_w, self._high_w = np.full(n, np.nan), np.full(n, np.nan)
        self._still_ns = np.zeros(n, np.int64)  # since when the draw stays between these two
        self._meter_w = np.full(n, np.nan)  # what the meter said then, once it had time to follow
        self._polls = np.zeros(n, np.int64)  # in a row that say otherwise than what is believed
        self._accused = np.zeros(n, np.bool_)
        self._accused_w = np.full(n, np.nan)  # what the sensor said when it was accused

    @property
    def stuck(self) -> BoolArray:
        return self._flat | self._accused

    def window(
        self,
        outlets: IntArray,
        t_ns: int,
        power_w: FloatArray,
        low_a: FloatArray,
        high_a: FloatArray,
        clipped: BoolArray,
    ) -> None:
        """One window of a board: of its `outlets`, by index. `low_a`, `high_a`: the extremes of its newest 100 scans;
        `clipped`: at full scale, which is told otherwise. NaN: no reading, which is another fault."""
        gap = t_ns - self._window_ns[outlets] > GAP_NS
        self._window_ns[outlets] = t_ns
        self._low_w[outlets[gap]] = self._high_w[outlets[gap]] = self._count_a[outlets[gap]] = np.nan
        self._accused[outlets[gap]] = False
        same = (low_a == high_a) & (low_a == self._count_a[outlets]) & ~clipped
        self._count_a[outlets] = np.where(low_a == high_a, low_a, np.nan)
        self._flat_ns[outlets] = np.where(same, self._flat_ns[outlets], t_ns)
        if self._alternating:
            away = np.abs(low_a) > self._zero_a[outlets]
            self._flat[outlets] = same & away & (t_ns - self._flat_ns[outlets] >= FLAT_NS)
        self._power_w[outlets] = power_w
        low_w, high_w = np.fmin(self._low_w[outlets], power_w), np.fmax(self._high_w[outlets], power_w)
        moved = gap | ~(high_w - low_w <= self._still_w[outlets])
        self._low_w[outlets] = np.where(moved, power_w, low_w)
        self._high_w[outlets] = np.where(moved, power_w, high_w)
        self._still_ns[outlets] = np.where(moved, t_ns, self._still_ns[outlets])
        self._meter_w[outlets] = np.where(moved, np.nan, self._meter_w[outlets])
        acquitted = self._accused[outlets] & (np.abs(power_w - self._accused_w[outlets]) > self._moved_w[outlets])
        self._accused[outlets] &= ~acquitted
        self._polls[outlets] = np.where(moved | acquitted, 0, self._polls[outlets])

    def meter(self, outlet: int, t_ns: int, power_w: float) -> None:
        """What the PDU's own meter says of an outlet that a board measures."""
        if t_ns - self._window_ns[outlet] > GAP_NS:
            return
        if self._accused[outlet]:
            agrees = abs(power_w - self._power_w[outlet]) <= self._moved_w[outlet]
            self._accused[outlet] = not self._said(outlet, agrees)
        elif self._said(outlet, self._contradicts(outlet, t_ns, power_w)):
            self._accused[outlet] = True
            self._accused_w[outlet] = self._power_w[outlet]

    def _contradicts(self, outlet: int, t_ns: int, power_w: float) -> bool:
        """Whether a poll says that the sensor should have moved. The first one after the lag is what later ones are held to."""
        flat = t_ns - self._flat_ns[outlet] >= FLAT_LAG_NS
        if flat and abs(power_w - self._power_w[outlet]) > self._moved_w[outlet]:
            return True
        if t_ns - self._still_ns[outlet] < LAG_NS or np.isnan(self._power_w[outlet]):
            return False
        if np.isnan(self._meter_w[outlet]):
            self._meter_w[outlet] = power_w
        return bool(abs(power_w - self._meter_w[outlet]) > self._moved_w[outlet])

    def _said(self, outlet: int, otherwise: bool) -> bool:
        """Whether this is the last of `POLLS` in a row that say otherwise."""
        self._polls[outlet] = self._polls[outlet] + 1 if otherwise else 0
        if self._polls[outlet] < POLLS:
            return False
        self._polls[outlet] = 0
        self._meter_w[outlet] = np.nan
        return True
