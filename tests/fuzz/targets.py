"""Every fuzz target by name, and their kept inputs."""

import base64
import importlib
from pathlib import Path

from fuzz.target import Target

CORPUS = Path(__file__).parent / "corpus"
# where each is: a target's imports are its own, so that a run under sanitizers loads no more than it needs
PLACES = {
    "snmp_v2c": ("snmp", "V2C"),
    "snmp_v3": ("snmp", "V3"),
    "modbus": ("modbus", "TARGET"),
    "feed": ("sockets", "FEED"),
    "exposition": ("sockets", "PAGE"),
    "snmprec": ("files", "SNMPREC"),
    "frames": ("frames", "TARGET"),
    "control": ("control", "TARGET"),
    "traces": ("files", "TRACES"),
    "recording": ("recording", "TARGET"),
    "model": ("model", "TARGET"),
    "config": ("configuration", "TARGET"),
}


def target(name: str) -> Target:
    """The target of that name."""
    module, attribute = PLACES[name]
    found: Target = getattr(importlib.import_module(f"fuzz.{module}"), attribute)
    assert found.name == name
    return found


def kept(name: str) -> list[bytes]:
    """The inputs of corpus/NAME.txt: one a line, base64; a line that begins with # tells what the next one once broke."""
    path = CORPUS / f"{name}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [base64.b64decode(line) for line in lines if line and not line.startswith("#")]
