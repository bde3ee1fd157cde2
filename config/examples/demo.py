"""Writes the demo's configuration for any number of outlets, 48 to a PDU and a board; `demo.toml` is the one for 24."""

HEAD = """\
# The simulated rack of `rpi-daemon demo`: {outlets} outlets on three phases, {units} PDU and {units} sensor board.
# By hand, in two terminals:   rpi-daemon sim --config demo.toml     rpi-daemon run --config demo.toml
# Holds are short and the write budget is large, so that a minute shows what a day does; default.toml has those of a real rack.

[rack]
id = "demo"
nominal_v = 230.0

[daemon]
mode = "closed_loop"
state_dir = "state"
runtime_dir = "run"
log_format = "text"
log_level = "warning"

[sampling]
raw_ring_s = 120.0

[corrector]
hold_s = 1.0
alarm_learn_s = 20.0
alarm_hold_s = 4.0
alarm_headroom = 0.05

[guard]
recover_s = 2.0

[actuator]
lower_hold_s = 1.0
"""
UNIT = """
[[board]]
id = "board-{board}"
board_id = {board}
port = "board-{board}.tty"
baud = {baud}
channels = [
{channels}
    "voltage:L1", "voltage:L2", "voltage:L3",
]

[[pdu]]
id = "{pdu}"
profile = "raritan_px"
host = "127.0.0.1"
port = {port}
user = "rpi-daemon"
auth_key_file = "auth.key"
priv_key_file = "priv.key"
writes_per_day = 2000
"""
OUTLETS = """
[[outlet]]
pdu = "{pdu}"
numbers = "{numbers}"
load = "{load}-{{n}}"
phases = ["{phase}"]
rating_w = 700.0
static_safe_w = 600.0
closed_loop = true
"""
CONSTRAINT = """
[[constraint]]
id = "{phase}"
kind = "phase"
rating_a = {rating_a}
outlets = [{outlets}]
"""
RACK = """
[[constraint]]
id = "rack"
kind = "rack"
rating_w = {rating_w}
outlets = ["*"]
"""
STATIC_SAFE_W, NOMINAL_V, POWER_FACTOR, DERATE = 600.0, 230.0, 0.9, 0.8
STANDARD_A = 5.0  # breakers come in steps
DEMO_OUTLETS, DEMO_PORT = 24, 10161
BAUD = 3_000_000
UNIT_OUTLETS = 48  # of one PDU and its board


def demo_toml(outlets: int = DEMO_OUTLETS, port: int = DEMO_PORT, *, per_pdu: int = UNIT_OUTLETS) -> str:
    """The configuration text; PDU k listens on `port` + k, and the breakers are sized so that the static limits just fit."""
    sizes = [min(per_pdu, outlets - first) for first in range(0, outlets, per_pdu)]
    pdus = [f"pdu-{chr(ord('a') + k)}" for k in range(len(sizes))]
    text = HEAD.format(outlets=outlets, units=len(sizes))
    for k, (pdu, size) in enumerate(zip(pdus, sizes, strict=True)):
        text += UNIT.format(board=k + 1, pdu=pdu, channels=_channels(pdu, size), port=port + k, baud=BAUD)
    for k, (pdu, size) in enumerate(zip(pdus, sizes, strict=True)):
        load = "server" if k == 0 else f"server-{pdu[-1]}"
        for phase, numbers in _phases(size).items():
            text += OUTLETS.format(pdu=pdu, numbers=_joined(numbers), phase=phase, load=load)
    for phase in ("L1", "L2", "L3"):
        on = {pdu: _phases(size) for pdu, size in zip(pdus, sizes, strict=True)}
        members = {pdu: phases[phase] for pdu, phases in on.items() if phase in phases}
        needed_a = sum(map(len, members.values())) * STATIC_SAFE_W / NOMINAL_V / POWER_FACTOR / DERATE
        named = ", ".join(f'"{pdu}/{_joined(numbers)}"' for pdu, numbers in members.items())
        text += CONSTRAINT.format(outlets=named, phase=phase, rating_a=STANDARD_A * -(-needed_a // STANDARD_A))
    return text + RACK.format(rating_w=float(round(outlets * STATIC_SAFE_W / DERATE * 1.02)))


def _channels(pdu: str, size: int) -> str:
    """The current channels of a board, six to a line."""
    lines = (range(first, min(first + 6, size + 1)) for first in range(1, size + 1, 6))
    return "\n".join("    " + " ".join(f'"current:{pdu}/{n}",' for n in line) for line in lines)


def _phases(size: int) -> dict[str, range]:
    """Outlet numbers on each phase, in turn."""
    return {f"L{k + 1}": range(k + 1, size + 1, 3) for k in range(min(3, size))}


def _joined(numbers: range) -> str:
    return ",".join(map(str, numbers))
