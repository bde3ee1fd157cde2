"""A historian with a writer of its own, and the rack that it writes of."""

from pathlib import Path

import numpy as np

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.historian import Historian
from rpi_daemon.history.weeks import Layout
from rpi_daemon.history.writer import Writer

END = 4 * 10**18
T0 = 1_763_700_000 * NS_PER_S
CONFIG = """
[[pdu]]
id = "a"
profile = "raritan_px"
host = "127.0.0.1"
user = "u"
auth_key_env = "KEY"
priv_key_env = "KEY"

[[outlet]]
pdu = "a"
numbers = "1-2"
load = "load-{n}"
rating_w = 700.0
static_safe_w = 300.0

[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 16.0
outlets = ["a/*"]
"""


class Alone(Historian):
    """Closing it waits until everything is on disk; closing it again does nothing."""

    def __init__(self, folder: Path, layout: Layout, *, keep_days: float) -> None:
        self.writer = Writer()
        self.closed = False
        super().__init__(self.writer, folder, layout, keep_days=keep_days)

    def tick(self, t_ns, t_mono_ns, power_w, others, fresh=None, marks=0):  # type: ignore[no-untyped-def]
        """As the real one; where nothing else is said every known reading is fresh."""
        fresh = np.isfinite(power_w) if fresh is None else fresh
        super().tick(t_ns, t_mono_ns, power_w, others, fresh, np.broadcast_to(marks, power_w.shape))

    def start(self) -> None:
        self.writer.start()

    def close(self) -> None:
        if not self.closed:
            super().close()
            assert self.writer.close(timeout_s=60.0)
        self.closed = True
