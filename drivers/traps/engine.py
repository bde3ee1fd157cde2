"""Who we are to SNMPv3 receivers: an engine id that stays, and a count of starts that never goes back."""

import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import structlog

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.durable import write_durably
from rpi_daemon.errors import ConfigError

ENGINE_FILE = "snmp-engine.json"  # in the state folder
BOOTS_EPOCH_S = 1_704_067_200  # 2024-01-01
BOOTS_STEP_S = 3600
BOOTS_MAX = 2**31 - 2  # RFC 3414 2.2.2: the next one latches
MACHINE_ID = Path("/etc/machine-id")
ENGINE_ID_BYTES = 8  # behind the enterprise number and the format octet

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What receivers of our traps tie their keys and their sense of time to (RFC 3414 2.2)."""

    engine_id: bytes
    boots: int
    age_s: int = 0  # since boots last changed


def next_boot(folder: Path, t_utc_ns: int, enterprise: int, rack: str) -> EngineIdentity:
    """The identity of this start, on disk before it is returned: boots is one more than at the last start.

    Where the file is lost the engine id comes out the same on the same host, and boots is the hours since 2024: ahead of
    what receivers have seen, unless the daemon started more often than once an hour for all that time. A disk that takes
    nothing leaves boots as it is, and the seconds since it changed go on counting: to receivers we never stopped. Raises
    ConfigError when boots has come to its end.
    """
    path = folder / ENGINE_FILE
    engine_id, boots, age_s = _read(path, t_utc_ns)
    if engine_id is None:
        # RFC 3411 SnmpEngineID: enterprise with the high bit set, 5 = octets of our own choice
        engine_id = (enterprise | 1 << 31).to_bytes(4, "big") + b"\x05" + _of_host(rack)
        boots, age_s = divmod(max(0, t_utc_ns // NS_PER_S - BOOTS_EPOCH_S), BOOTS_STEP_S)
    if boots >= BOOTS_MAX:
        raise ConfigError(f"{path}: engine boots is {boots}; remove the file to become a new engine")
    identity = EngineIdentity(engine_id, boots + 1)
    try:
        write_durably(path, json.dumps({"engine_id": engine_id.hex(), "boots": identity.boots}))
    except OSError as error:
        log.error("traps.start_not_counted", file=str(path), error=error.strerror, boots=boots, age_s=age_s)
        return EngineIdentity(engine_id, boots, age_s)
    return identity


def _of_host(rack: str) -> bytes:
    """Octets that two racks, or two hosts, do not share; a host without an id gets random ones."""
    try:
        host = MACHINE_ID.read_bytes().strip()
    except OSError:
        host = b""
    return hashlib.sha256((host or secrets.token_bytes(ENGINE_ID_BYTES)) + rack.encode()).digest()[:ENGINE_ID_BYTES]


def _read(path: Path, t_utc_ns: int) -> tuple[bytes | None, int, int]:
    """Engine id, boots, and the seconds since it was written; no id where there is no usable file.

    A damaged one is kept beside it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        age_ns = max(0, t_utc_ns - path.stat().st_mtime_ns)
        return bytes.fromhex(data["engine_id"]), int(data["boots"]), age_ns // NS_PER_S
    except FileNotFoundError:
        return None, 0, 0
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError):
        with contextlib.suppress(OSError):
            os.replace(path, path.with_name(path.name + ".corrupt"))
        return None, 0, 0
