"""What status says of constraints."""

from dataclasses import replace

import numpy as np
import pytest
from rack_examples import constraint, load, make_limits, make_rack, make_snapshot

from rpi_daemon.allocator import AllocatorConfig, allocate
from rpi_daemon.status import _memory_mb, constraint_rows


def test_limits_are_told_in_the_unit_of_each_rating_and_a_load_with_two_feeds_counts_once() -> None:
    """Outlets 1 and 2 are one load; outlet 4 is on no constraint, and has no limit that is known."""
    rack = make_rack(4, [constraint("feed", [0, 1, 2], 4, w=2000.0, a=10.0)], loads=[load(0, 1), load(2), load(3)])
    snapshot = make_snapshot(rack, [100.0, 120.0, 300.0, 50.0])
    nothing = np.full(4, np.nan)
    low = allocate(0, snapshot.request.request_w, rack, (), np.full(4, 0.8), np.full(4, 200.0), AllocatorConfig())
    snapshot = replace(snapshot, allocation=low, in_force=make_limits(np.array([500.0, 400.0, 700.0, np.nan])))
    (feed,) = constraint_rows(rack, snapshot)
    assert feed["draw_w"] == 520.0
    assert feed["limits_w"] == 1200.0
    assert [(r["unit"], r["limits"]) for r in feed["ratings"]] == [
        ("W", pytest.approx(1200.0)),
        ("A", pytest.approx(1200.0 / (0.8 * 200.0))),
    ]
    (unknown,) = constraint_rows(rack, replace(snapshot, in_force=make_limits(nothing)))
    assert (unknown["limits_w"], unknown["ratings"][0]["limits"]) == (None, None)


def test_resident_memory_leaves_the_raw_ring_out_wherever_its_file_lies() -> None:
    """As the demo's own, without and with `--keep` on a disk: 17.3 MB of ring are shared memory, or a file's."""
    ring_bytes = 16_879 * 1024
    in_run = "Name:\tpython\nRssAnon:\t   72936 kB\nRssFile:\t   53081 kB\nRssShmem:\t   16879 kB\n"
    on_disk = "Name:\tpython\nRssAnon:\t   72936 kB\nRssFile:\t   69960 kB\nRssShmem:\t       0 kB\n"
    assert _memory_mb(in_run, ring_bytes) == _memory_mb(on_disk, ring_bytes) == pytest.approx(129.04, abs=0.01)
