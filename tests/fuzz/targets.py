"""Every fuzz target by name, and their kept inputs."""

import base64
from pathlib import Path

from fuzz import configuration, files, frames, modbus, model, snmp, sockets
from fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        frames.TARGET,
        snmp.V2C,
        snmp.V3,
        modbus.TARGET,
        configuration.TARGET,
        files.TRACES,
        files.RECORDING,
        files.SNMPREC,
        sockets.CONTROL,
        sockets.FEED,
        sockets.PAGE,
        model.TARGET,
    )
}


def kept(name: str) -> list[bytes]:
    """The inputs of corpus/NAME.txt: one a line, base64; a line that begins with # tells what the next one once broke."""
    path = CORPUS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [base64.b64decode(line) for line in lines if line and not line.startswith("#")]
