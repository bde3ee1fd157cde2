"""The simulated PDU talks with net-snmp's tools, so that it is not only our own session that understands it."""

import asyncio
import shutil
import subprocess

import pytest

from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import Faults, PduSimulator, SimUser

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(shutil.which("snmpget") is None, reason="needs the Debian package snmp"),
]
THRESHOLDS = "1.3.6.1.4.1.13742.6.3.5.4.1.23"  # of outlets, sensor by sensor
USER = SimUser("rack", auth="SHA-256", auth_key="authentication", priv_key="privacy-of-it")
V3 = ["-v3", "-l", "authPriv", "-u", "rack", "-a", "SHA-256", "-A", USER.auth_key, "-x", "AES", "-X", USER.priv_key]
V2C = ["-v2c", "-c", "public"]
THRESHOLD, MASK = f"{THRESHOLDS}.1.1.5", "1.3.6.1.4.1.13742.6.3.5.4.1.25.1.1.5"


async def tool(name: str, simulator: PduSimulator, *arguments: str) -> tuple[int, str]:
    command = [name, "-t", "20", "-r", "1", "-On", "-OQ", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60.0, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("level", [V2C, V3], ids=["v2c", "v3"])
def test_get_set_and_walk(level: list[str]) -> None:
    async def scene() -> None:
        async with PduSimulator(load_profile("raritan_px"), 4, user=USER) as simulator:
            host = f"127.0.0.1:{simulator.port}"
            assert (await tool("snmpget", simulator, *level, host, THRESHOLD))[1].strip() == f".{THRESHOLD} = 0"
            code, text = await tool("snmpset", simulator, *level, host, THRESHOLD, "u", "250", MASK, "x", "10")
            assert (code, simulator.limit_w(1)) == (0, 250.0), text
            code, text = await tool("snmpset", simulator, *level, host, THRESHOLD, "u", "9", MASK, "i", "1")
            assert code != 0
            assert "wrongType" in text
            assert f"Failed object: .{MASK}" in text  # the error index is the second
            assert simulator.limit_w(1) == 250.0
            for walker in ("snmpwalk", "snmpbulkwalk"):
                _, text = await tool(walker, simulator, *level, host, THRESHOLDS)
                active_power = [line.split(" = ")[1] for line in text.splitlines() if ".5 = " in line]
                assert active_power == ["250", "0", "0", "0"]
            simulator.faults = Faults(too_big_above=1)
            code, text = await tool("snmpget", simulator, *level, host, THRESHOLD, MASK)
            assert "tooBig" in text

    asyncio.run(scene())


def test_keys_below_the_users_level_and_wrong_ones_are_refused() -> None:
    async def scene() -> None:
        async with PduSimulator(load_profile("raritan_px"), 1, user=USER, community=None) as simulator:
            host = f"127.0.0.1:{simulator.port}"
            weak = ["-v3", "-l", "noAuthNoPriv", "-u", "rack"]
            wrong = [word.replace(USER.auth_key, "something-else") for word in V3]
            for level in (weak, wrong, V2C):
                code, text = await tool("snmpget", simulator, *level, "-t", "0.3", "-r", "0", host, THRESHOLD)
                assert code != 0, text
            assert simulator.counters["gets"] == 0

    asyncio.run(scene())
