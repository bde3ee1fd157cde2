"""Writes the demo's configuration for any number of outlets; `demo.toml` is the one for 24."""

HEAD = """\
# The simulated rack of `rpi-daemon demo`: {outlets} outlets on a three-phase PDU, one sensor board.
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
worst_half_life_s = 10.0
hold_s = 2.0
fall_per_s = 0.3
alarm_hold_s = 4.0
alarm_headroom = 0.05

[actuator]
lower_hold_s = 2.0

[[board]]
id = "board-1"
port = "board-1.tty"
baud = {baud}
channels = [
{channels}
    "voltage:L1", "voltage:L2", "voltage:L3",
]

[[pdu]]
id = "pdu-a"
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
pdu = "pdu-a"
numbers = "{numbers}"
load = "server-{{n}}"
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
outlets = ["pdu-a/{numbers}"]
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


def demo_toml(outlets: int = DEMO_OUTLETS, port: int = DEMO_PORT) -> str:
    """The configuration text; the breakers are sized so that the static limits just fit."""
    groups = {f"L{k + 1}": range(k + 1, outlets + 1, 3) for k in range(3)}
    lines = []
    for first in range(1, outlets + 1, 6):
        lines.append("    " + " ".join(f'"current:pdu-a/{n}",' for n in range(first, min(first + 6, outlets + 1))))
    text = HEAD.format(outlets=outlets, channels="\n".join(lines), port=port, baud=BAUD * max(1, -(-outlets // 48)))
    numbers = {phase: ",".join(str(n) for n in members) for phase, members in groups.items()}
    for phase in groups:
        text += OUTLETS.format(numbers=numbers[phase], phase=phase)
    for phase, members in groups.items():
        needed_a = len(members) * STATIC_SAFE_W / NOMINAL_V / POWER_FACTOR / DERATE
        text += CONSTRAINT.format(numbers=numbers[phase], phase=phase, rating_a=STANDARD_A * -(-needed_a // STANDARD_A))
    return text + RACK.format(rating_w=float(round(outlets * STATIC_SAFE_W / DERATE * 1.02)))
