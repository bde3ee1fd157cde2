"""A simulated receiver of facilities: takes informs and traps (v2c, v3 authPriv) with pysnmp, prints each as a JSON line."""

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from pysnmp.carrier.asyncio.dgram import udp
from pysnmp.entity import config, engine
from pysnmp.entity.rfc3413 import ntfrcv


def serve(port: int, user: str, auth_key: str, priv_key: str, community: str) -> None:
    """Until it is killed. The first line says where it listens."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    snmp = engine.SnmpEngine()
    transport = udp.UdpAsyncioTransport(loop=loop)
    config.add_transport(snmp, udp.DOMAIN_NAME, transport.open_server_mode(("127.0.0.1", port)))
    config.add_v1_system(snmp, "area", community)
    config.add_v3_user(snmp, user, config.USM_AUTH_HMAC192_SHA256, auth_key, config.USM_PRIV_CFB128_AES, priv_key)
    ntfrcv.NotificationReceiver(snmp, _received)
    loop.call_soon(_say, {"port": port})
    loop.run_forever()


def _received(snmp: Any, reference: Any, context_engine: Any, context: Any, varbinds: Any, _: Any) -> None:
    _say(
        {
            "t_ns": time.monotonic_ns(),
            "varbinds": {str(oid): _plain(value) for oid, value in varbinds},
        }
    )


def _plain(value: Any) -> int | str:
    try:
        return int(value)
    except (TypeError, ValueError):
        text = bytes(value) if hasattr(value, "asOctets") else str(value).encode()
        return text.decode("utf-8", errors="replace")


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--auth-key", required=True)
    parser.add_argument("--priv-key", required=True)
    parser.add_argument("--community", default="bench")
    options = parser.parse_args()
    serve(options.port, options.user, options.auth_key, options.priv_key, options.community)
