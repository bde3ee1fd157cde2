"""From counters to shares: rates over the poll, resets, CPUs that come and go, interfaces without a speed."""

from typing import Any

import pytest

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.drivers.hosts.exposition import Samples
from rpi_daemon.drivers.hosts.shares import (
    CPU,
    DISK_BUSY,
    MEMORY_AVAILABLE,
    MEMORY_TOTAL,
    RECEIVED,
    SENT,
    SPEED,
    CounterShares,
)

NAN = float("nan")


def cpu(*idle_user: tuple[float, float]) -> Samples:
    return {
        CPU: {
            (("cpu", str(k)), ("mode", mode)): value
            for k, (idle, user) in enumerate(idle_user)
            for mode, value in (("idle", idle), ("user", user))
        }
    }


def devices(metric: str, **values: float) -> Samples:
    return {metric: {(("device", name),): value for name, value in values.items()}}


def shares(first: Samples, second: Samples, *, after_s: float = 1.0, **options: Any) -> tuple[float | None, ...]:
    options = {"poll_s": 1.0, "interface_bytes_per_s": None} | options
    counters = CounterShares(**options)
    assert counters.step(0, first)[0] is None  # nothing is known of a rate at first
    return counters.step(round(after_s * NS_PER_S), second)


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (cpu((0.0, 0.0), (5.0, 5.0)), cpu((0.25, 0.75), (5.75, 5.25)), 0.5),
        (cpu((10.0, 10.0)), cpu((10.0, 11.0)), 1.0),
        (cpu((10.0, 10.0)), cpu((10.0, 10.0)), None),  # a page that stood still
        (cpu((10.0, 10.0)), cpu((0.3, 0.1)), None),  # the host was started anew
        (cpu((10.0, 10.0), (1.0, 9.0)), cpu((10.5, 10.5), (1.2, 0.1)), 0.5),  # one CPU was reset: the other counts
        (cpu((1.0, 1.0)), cpu((1.5, 1.5), (100.0, 900.0)), 0.5),  # one came
        (cpu((1.0, 1.0), (4.0, 4.0)), cpu((1.5, 1.5)), 0.5),  # one went
        (cpu((1.0, 1.0)), {}, None),
        (cpu((1.0, NAN)), cpu((1.5, 2.0)), None),
        (cpu((0.0, 0.0)), cpu((1e308, 1e308)), None),  # no sum of such numbers is one
    ],
)
def test_the_cpu_share_is_what_was_not_idle(before: Samples, after: Samples, share: float | None) -> None:
    assert shares(before, after)[0] == (None if share is None else pytest.approx(share))


def test_waiting_for_a_disk_is_idle() -> None:
    page = {CPU: {(("cpu", "0"), ("mode", mode)): s for mode, s in (("idle", 0.0), ("iowait", 0.0), ("system", 0.0))}}
    later = {CPU: {(("cpu", "0"), ("mode", mode)): s for mode, s in (("idle", 0.2), ("iowait", 0.5), ("system", 0.3))}}
    assert shares(page, later)[0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("total", "available", "share"),
    [
        (100.0, 25.0, 0.75),
        (100.0, 0.0, 1.0),
        (100.0, 101.0, None),
        (0.0, 0.0, None),
        (NAN, 1.0, None),
        (100.0, NAN, None),
    ],
)
def test_memory_is_what_is_not_available(total: float, available: float, share: float | None) -> None:
    page: Samples = {MEMORY_TOTAL: {(): total}, MEMORY_AVAILABLE: {(): available}}
    assert CounterShares(1.0, None).step(0, page)[1] == share
    assert CounterShares(1.0, None).step(0, {MEMORY_TOTAL: {(): total}})[1] is None


def network(received: float, sent: float, speed: float | None) -> Samples:
    page = devices(RECEIVED, eth0=received, lo=9e9 * received) | devices(SENT, eth0=sent, lo=9e9 * sent)
    return page if speed is None else page | devices(SPEED, eth0=speed, lo=1.0)


def test_network_is_the_busier_direction_of_what_the_interface_can_carry() -> None:
    assert shares(network(0.0, 0.0, 1000.0), network(500.0, 1200.0, 1000.0), after_s=2.0)[2] == pytest.approx(0.6)


@pytest.mark.parametrize("told", [None, -125_000.0, NAN])  # -125000 is node_exporter's word for a speed of -1
def test_an_interface_without_a_speed_has_no_share_unless_the_configuration_gives_one(told: float | None) -> None:
    before, after = network(0.0, 0.0, told), network(100.0, 0.0, told)
    assert shares(before, after)[2] is None
    assert shares(before, after, interface_bytes_per_s=400.0)[2] == pytest.approx(0.25)


def test_the_busiest_disk_counts_and_never_passes_one() -> None:
    before, after = devices(DISK_BUSY, sda=10.0, sdb=3.0, sdc=8.0), devices(DISK_BUSY, sda=10.5, sdb=3.1, sdc=0.2)
    assert shares(before, after)[3] == pytest.approx(0.5)
    assert shares(before, after, after_s=0.4)[3] == 1.0


@pytest.mark.parametrize("after_s", [0.0, -1.0, 3.1])
def test_pages_too_far_apart_or_out_of_order_give_no_rate(after_s: float) -> None:
    assert shares(cpu((1.0, 1.0)), cpu((1.5, 1.5)), after_s=after_s)[0] is None


def test_after_forgetting_it_begins_anew() -> None:
    counters = CounterShares(1.0, None)
    counters.step(0, cpu((0.0, 0.0)))
    counters.forget()
    assert counters.step(NS_PER_S, cpu((0.5, 0.5)))[0] is None
    assert counters.step(2 * NS_PER_S, cpu((1.5, 0.5)))[0] == 0.0
