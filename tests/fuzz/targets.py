"""Every fuzz target by name, and their kept inputs."""

import base64
from collections.abc import Iterator
from pathlib import Path

from fuzz import frames, modbus, snmp
from fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (frames.TARGET, snmp.V2C, snmp.V3, modbus.TARGET)}
CORPUS = Path(__file__).parent / "corpus"


def kept(name: str) -> list[bytes]:
    """The inputs of corpus/NAME.txt: one a line, base64; a line that begins with # tells what the next one once broke."""
    path = CORPUS / f"{name}.txt"
    lines: Iterator[str] = iter(path.read_text().splitlines() if path.exists() else ())
    return [base64.b64decode(line) for line in lines if line and not line.startswith("#")]
