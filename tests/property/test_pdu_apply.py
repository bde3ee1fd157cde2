"""Whatever a device does with our writes: verified means in force on it, and nothing else of its settings is touched."""

import asyncio
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import Faults, PduSimulator
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint
from rpi_daemon.records import LimitWrite

OUTLETS = (1, 2, 3, 4, 5)
COLUMN = "1.3.6.1.4.1.13742.6.3.5.4.1.{}.1.{}.5"
THRESHOLD, WARNING, MASK = 23, 24, 25
WARNING_BIT, LIMIT_BIT = 0x20, 0x10

faults = st.builds(
    Faults,
    duplicate=st.booleans(),
    ignore_set=st.booleans(),
    clamp_w=st.none() | st.floats(50.0, 400.0),
    refuse=st.lists(st.sampled_from(OUTLETS), max_size=3, unique=True).map(tuple),
    refuse_but_apply=st.booleans(),
    too_big_above=st.sampled_from([0, 3, 7]),
)
settings_of_others = st.dictionaries(st.sampled_from(OUTLETS), st.tuples(st.integers(0, 15), st.integers(0, 500)))
writes = st.dictionaries(st.sampled_from(OUTLETS), st.floats(0.0, 500.0), min_size=1)
steps = st.lists(st.tuples(faults, settings_of_others, writes), min_size=1, max_size=4)


def held(simulator: PduSimulator, outlet: int) -> tuple[int, int, int]:
    """Threshold, warning and mask as the device has them now."""
    threshold, warning = (simulator.peek(COLUMN.format(column, outlet)) for column in (THRESHOLD, WARNING))
    mask = simulator.peek(COLUMN.format(MASK, outlet))
    assert isinstance(threshold, int)
    assert isinstance(warning, int)
    assert isinstance(mask, bytes)
    return threshold, warning, mask[0]


async def play(
    simulator: PduSimulator, story: list[tuple[Faults, dict[int, tuple[int, int]], dict[int, float]]]
) -> None:
    simulator.reboot()
    endpoint = SnmpEndpoint("127.0.0.1", simulator.port, version="2c", community="public", timeout_s=2.0)
    pdu = SnmpPdu(SnmpPduOptions(endpoint, simulator.profile, OUTLETS))
    await pdu.open()
    try:
        for fault, others, limits in story:
            await act(simulator, pdu, fault, others, limits)
    finally:
        await pdu.close()


async def act(
    simulator: PduSimulator, pdu: SnmpPdu, fault: Faults, others: dict[int, tuple[int, int]], limits: dict[int, float]
) -> None:
    for outlet, (mask, warning) in others.items():
        simulator.poke(COLUMN.format(MASK, outlet), bytes([mask << 4]))
        simulator.poke(COLUMN.format(WARNING, outlet), warning)
    before = {outlet: held(simulator, outlet) for outlet in OUTLETS}
    simulator.faults = fault
    result = await pdu.apply([LimitWrite(outlet, limit_w) for outlet, limit_w in limits.items()])
    simulator.faults = Faults()
    assert [outcome.outlet for outcome in result.outcomes] == list(limits)
    for outcome in result.outcomes:
        threshold, warning, mask = held(simulator, outcome.outlet)
        asked = math.floor(outcome.asked_w + 0.001)
        assert outcome.read_back_w == threshold
        assert outcome.verified == (threshold == asked and bool(mask & LIMIT_BIT))
        _, warning_before, mask_before = before[outcome.outlet]
        assert warning == warning_before
        changed = mask ^ mask_before
        assert changed & ~(WARNING_BIT | LIMIT_BIT) == 0
        assert not changed & WARNING_BIT or not mask & WARNING_BIT  # a warning is never switched on by a limit
    for outlet in set(OUTLETS) - set(limits):
        assert held(simulator, outlet) == before[outlet]


def test_verified_means_in_force_and_settings_of_others_stay() -> None:
    with asyncio.Runner() as runner:
        simulator = PduSimulator(load_profile("raritan_px"), len(OUTLETS))
        runner.run(simulator.start())

        @settings(max_examples=60)
        @given(steps)
        def story(given_steps: list[tuple[Faults, dict[int, tuple[int, int]], dict[int, float]]]) -> None:
            runner.run(play(simulator, given_steps))

        try:
            story()
        finally:
            runner.run(simulator.stop())
