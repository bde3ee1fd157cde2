"""Devices on which the hardware bench has passed: what lets a profile write that no recording proves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpi_daemon.durable import read_twice, write_twice
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import PduIdentity

PROOF_FILE = "proven-devices.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Proofs:
    """What `bench/hil/pdu_hil.py` wrote down, by device. A device is its serial number; without one, model and address.

    A proof holds for one firmware and one text of the profile: another of either must be proven anew.
    """

    devices: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Proofs":
        """The proofs in a state folder; none where there is no file. Raises ConfigError when it is damaged."""
        path = folder / PROOF_FILE
        try:
            kept = read_twice(path, _devices)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        if kept.value is None and kept.damaged:
            raise ConfigError(f"{kept.damaged}; delete it and run bench/hil/pdu_hil.py again")
        return cls(kept.value or {})

    def hold(self, identity: PduIdentity, address: str, profile_digest: str) -> bool:
        """Whether the bench has passed on this very device, with this firmware and this profile (`devices.profile_digest`)."""
        return self.devices.get(_device(identity, address)) == _facts(identity, profile_digest)

    def name(self, profile_digest: str) -> bool:
        """Whether it has passed on any device with this profile."""
        return any(facts.get("profile_sha256") == profile_digest for facts in self.devices.values())

    def add(self, folder: Path, identity: PduIdentity, address: str, profile_digest: str) -> None:
        """Write down, durably, that it has passed now. Raises OSError."""
        self.devices[_device(identity, address)] = _facts(identity, profile_digest)
        text = json.dumps({"schema": SCHEMA, "devices": self.devices}, indent=1, sort_keys=True)
        write_twice(folder / PROOF_FILE, text, _devices)


def _devices(text: str) -> dict[str, dict[str, Any]]:
    """Raises ValueError when the text is damaged."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA or not all(isinstance(item, dict) for item in data["devices"].values()):
            raise ValueError("another schema")
        return dict(data["devices"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error!r}") from None


def _device(identity: PduIdentity, address: str) -> str:
    return f"{identity.vendor}/{identity.serial or f'{identity.model} at {address}'}"


def _facts(identity: PduIdentity, profile_digest: str) -> dict[str, Any]:
    return {"model": identity.model, "firmware": identity.firmware, "profile_sha256": profile_digest}
