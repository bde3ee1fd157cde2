"""Damaged replies on the wire of a metering driver: every reading is the device's, or there is none.

RPI_FUZZ=100000 sets how many damaged replies are tried.
"""

import asyncio
import os
import random

import pytest
from damage import mutated

from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator, SimUser
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession
from rpi_daemon.records import LimitWrite

DAMAGED = int(os.environ.get("RPI_FUZZ", "10000"))
PER_REPLY = 50
USER = SimUser("rack", auth_key="authentication", priv_key="privacy-of-it")
OUTLETS = tuple(range(1, 9))


class _NoisyLine(SnmpSession):
    """Each reply comes behind damaged copies of itself."""

    rng: random.Random | None = None
    damaged = 0

    def _on_datagram(self, data: bytes) -> None:
        for _ in range(PER_REPLY if self.rng is not None else 0):
            octets = mutated(data, self.rng)
            if octets != data:
                self.damaged += 1
                super()._on_datagram(octets)
        super()._on_datagram(data)


@pytest.mark.parametrize("profile", ["raritan_px", "eaton_epdu", "sentry4"])
def test_no_damaged_reply_is_ever_believed(profile: str) -> None:
    """SNMPv3: the digest covers every octet, and it is asked before anything else is."""

    async def scene() -> None:
        simulator = PduSimulator(
            load_profile(profile), len(OUTLETS), power_w=lambda outlet: 23.0 * outlet, user=USER, clock=lambda: 50.0
        )
        async with simulator:
            endpoint = SnmpEndpoint(
                "127.0.0.1", simulator.port, user="rack", auth_key=USER.auth_key, priv_key=USER.priv_key, timeout_s=2.0
            )
            pdu = SnmpPdu(SnmpPduOptions(endpoint, simulator.profile, OUTLETS, nominal_v=230.0, slow_every=1))
            pdu.session = line = _NoisyLine(pdu.session.endpoint)
            await pdu.open()
            try:
                first = await pdu.read()
                line.rng = random.Random(profile)
                limit_w = 0.0
                while line.damaged < DAMAGED / 3:
                    reading = await pdu.read()
                    assert reading.power_w == {outlet: 23.0 * outlet for outlet in OUTLETS}
                    assert reading.rows == first.rows
                    assert (reading.voltage_v, reading.on) == (first.voltage_v, first.on)
                    limit_w += 230.0
                    (outcome,) = (await pdu.apply([LimitWrite(3, limit_w % 2000.0)])).outcomes
                    assert outcome.verified
                    assert outcome.read_back_w == pytest.approx(simulator.limit_w(3))
                assert line.counters.resyncs == 0
            finally:
                await pdu.close()

    asyncio.run(asyncio.wait_for(scene(), 300.0))
