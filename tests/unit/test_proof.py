"""Which devices the hardware bench has passed on."""

from dataclasses import replace
from pathlib import Path

import pytest

from rpi_daemon.errors import ConfigError
from rpi_daemon.proof import PROOF_FILE, Proofs
from rpi_daemon.records import PduIdentity

PDU = PduIdentity(vendor="APC", model="AP8681", firmware="6.8.2", serial="5A1234E00001", n_outlets=24, proven=False)
ADDRESS, DIGEST = "192.0.2.10/161", "profile, as checked"


def test_a_proof_is_for_one_device_one_firmware_and_one_profile(tmp_path: Path) -> None:
    assert not Proofs.read(tmp_path).hold(PDU, ADDRESS, DIGEST)
    Proofs.read(tmp_path).add(tmp_path, PDU, ADDRESS, DIGEST)
    proofs = Proofs.read(tmp_path)
    assert proofs.hold(PDU, ADDRESS, DIGEST)
    assert proofs.hold(PDU, "192.0.2.99/161", DIGEST)  # the same device elsewhere
    assert not proofs.hold(replace(PDU, serial="5A1234E00002"), ADDRESS, DIGEST)
    assert not proofs.hold(replace(PDU, firmware="6.8.3"), ADDRESS, DIGEST)
    assert not proofs.hold(PDU, ADDRESS, "another profile")


def test_without_a_serial_number_the_address_tells_devices_apart(tmp_path: Path) -> None:
    nameless = replace(PDU, serial="")
    Proofs({}).add(tmp_path, nameless, ADDRESS, DIGEST)
    assert Proofs.read(tmp_path).hold(nameless, ADDRESS, DIGEST)
    assert not Proofs.read(tmp_path).hold(nameless, "192.0.2.99/161", DIGEST)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2, "devices": {}}', '{"schema": 1, "devices": {"a": 1}}', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PROOF_FILE).write_text(text)
    with pytest.raises(ConfigError, match=PROOF_FILE):
        Proofs.read(tmp_path)
