"""`rpi-daemon calibrate` against a simulated rack whose sensors have errors: by a plan, by hand, verified, in the daemon."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenario_rack import RPI, Daemon, Place, RackProcess, cli, outlet_of, running

from rpi_daemon.calibration import load_calibration

PLAN = """\
operator = "M. Keller"
ambient_c = 23.0

[instrument]
name = "the simulated PDU"
serial_number = "SIM0000001"
uncertainty_percent = 0.1

[[step]]
outlets = ["pdu-a/1-3"]
zero = true
seconds = 2
wait = true

[[step]]
outlets = ["pdu-a/1-3"]
reference = "pdu-a/{n}"
resistive = true
seconds = 3
wait = true

[[step]]
outlets = ["pdu-a/1-3"]
reference = "pdu-a/{n}"
resistive = true
seconds = 3
wait = true
"""
LOADS_A = ((3.0, 4.0, 5.0), (12.0, 13.0, 14.0))
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def rack(place: Place) -> Iterator[RackProcess]:
    with running(lambda: RackProcess(place.write(), "--sensor-errors")) as process:
        yield process


class Terminal:
    """A command on a terminal of its own: what it shows, and what is typed."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [*RPI, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # a shell's background job has Ctrl-C ignored, and so has whatever it starts
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)

    def until(self, words: str) -> None:
        """Read on until these words have been shown since the last call."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.shown:
            assert time.monotonic() < deadline, f"no {words!r} in {self.shown!r}"
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode()
                except OSError:
                    raise AssertionError(f"ended without {words!r}: {self.shown}") from None
        self.shown = self.shown.partition(words)[2]

    def answer(self, words: str, text: str = "") -> None:
        self.until(words)
        os.write(self.master, text.encode() + b"\n")

    def end(self) -> int:
        """Its exit code, all that it still shows read."""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            if not data:
                break
            self.shown += data.decode()
        code = self.process.wait(PATIENCE_S)
        os.close(self.master)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            os.close(self.master)


def load(rack: RackProcess, outlet: int, amps: float | None, power_factor: float = 1.0) -> None:
    bank = None if amps is None else {"rms_a": amps, "power_factor": power_factor}
    rack.ask(board="board-a", outlet=outlet, load_bank=bank)


def config_with(place: Place, file: str) -> Path:
    """The scenario's configuration with a calibration for board-a."""
    text = place.write().read_text()
    path = place.folder / "calibrated.toml"
    path.write_text(text.replace('port = "board-a.tty"', f'port = "board-a.tty"\ncalibration = "{file}"', 1))
    return path


def by_plan(place: Place, rack: RackProcess, *arguments: str) -> dict[str, Any]:
    """Calibrate outlets 1 to 3 by the plan; the loads change while it waits."""
    plan = place.folder / "plan.toml"
    plan.write_text(PLAN)
    config = str(place.write())
    command = [*RPI, "calibrate", "-c", config, "--board", "board-a", "--from", str(plan), "--json", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        shown = ""
        for amps in (None, *LOADS_A):
            while not shown.endswith("Press Enter: ") and (letter := process.stderr.read(1)):
                shown += letter
            for k in range(3):
                load(rack, k + 1, 0.0 if amps is None else amps[k])
            time.sleep(0.3)  # what was on its way when the load changed
            assert process.poll() is None, shown
            shown = ""
            process.stdin.write("\n")
            process.stdin.flush()
        said = process.stderr.read()
        last = process.stdout.read().splitlines()[-1]
    document: dict[str, Any] = json.loads(last)
    document["exit_code"], document["said"] = process.returncode, said
    return document


@pytest.fixture(scope="module")
def calibrated(place: Place, rack: RackProcess) -> dict[str, Any]:
    """What the plan gives on sensors that are wired well: `a.json`, and a picture."""
    return by_plan(place, rack, "--out", str(place.folder / "a.json"), "--plot", str(place.folder / "residuals.png"))


def test_by_a_plan_verified_and_used_by_the_daemon(place: Place, rack: RackProcess, calibrated: dict[str, Any]) -> None:
    document = calibrated
    assert document["ok"], document["said"]
    assert document["exit_code"] == 0
    assert document["kept"] is None
    assert (place.folder / "residuals.png").read_bytes().startswith(b"\x89PNG")
    file = load_calibration(place.folder / "a.json")
    assert [(record.name, record.good) for record in file.channels] == [
        ("pdu-a/1", True),
        ("pdu-a/2", True),
        ("pdu-a/3", True),
        ("L1", True),
    ]
    assert max(abs(item.error_percent) for record in file.channels for item in record.residuals) < 0.5

    config = config_with(place, "a.json")
    for amps, power_factor in ((2.0, 1.0), (7.0, 0.5)):
        load(rack, 2, amps, power_factor)
        time.sleep(0.3)
        reference = ["--outlets", "pdu-a/2", "--reference", "pdu-a/{n}", "--seconds", "3"]
        done = cli(config, "calibrate", "verify", "--board", "board-a", *reference, "--json")
        points = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == 0, done.stdout
        assert {row["quantity"] for row in points["points"]} >= {"A", "W"}
    done = cli(config, "calibrate", "verify", "--board", "board-a", "--outlets", "pdu-a/2", "--amps", "7.2")
    assert done.returncode == 1
    assert "FAILED: within 0.5 % of reading" in done.stdout
    assert re.search(r"pdu-a/2: [67]\.\d+ A beside 7\.2000, -[0-9.]+ %  FAILED", done.stdout)

    for outlet, bank_a in ((1, None), (2, 2.0), (3, None)):  # what the breaker carries
        load(rack, outlet, bank_a)
    recording = place.folder / "recording"
    with running(lambda: Daemon(config, "--record", str(recording))) as daemon:
        status = daemon.normal()
        board = next(item for item in status["boards"] if item["id"] == "board-a")
        assert board["calibration"]["file"] == str(place.folder / "a.json")
        assert (board["calibration"]["good"], board["calibration"]["refused"]) == (4, 0)
        assert board["calibration"]["instruments"] == ["the simulated PDU SIM0000001, within 0.1 %"]
        assert "uncalibrated" not in outlet_of(status, "pdu-a/2")["quality"]
        assert "uncalibrated" in outlet_of(status, "pdu-a/4")["quality"]
        truth = rack.ask(board="board-a", show="truth")["truth"][1]
        assert outlet_of(daemon.status(), "pdu-a/2")["power_w"] == pytest.approx(truth["power_w"], rel=0.01)
        busy = cli(config, "calibrate", "--board", "board-a", "--from", str(place.folder / "plan.toml"))
        assert busy.returncode == 8
        assert "is held by another process" in busy.stderr
        assert daemon.stop() == 0
    replayed = subprocess.run(
        [*RPI, "dry-run", "--recording", str(recording)], capture_output=True, text=True, check=False
    )
    assert "the same decisions" in replayed.stdout, replayed.stderr


def test_by_hand_on_a_terminal_the_old_file_kept(place: Place, rack: RackProcess, calibrated: dict[str, Any]) -> None:
    assert calibrated["ok"]
    old = (place.folder / "a.json").read_bytes()
    out = place.folder / "hand.json"
    out.write_bytes(old)
    for outlet in (1, 2, 3):
        load(rack, outlet, 0.0)
    arguments = ("--board", "board-a", "--outlets", "pdu-a/2", "--seconds", "2", "--out", str(out))
    terminal = Terminal("calibrate", "-c", str(place.write()), *arguments)
    try:
        terminal.answer("Your name", "A. Nobody")
        terminal.answer("Ambient temperature", "about 20")
        terminal.answer("'about 20' is not a number")
        terminal.answer("name and model", "clamp meter")
        terminal.answer("serial number")
        terminal.answer("uncertainty", "1,5")
        terminal.answer("Zero: take every load off 1 outlets (pdu-a/2)")
        for amps in (4.0, 11.0):
            terminal.answer("known load?", "y")
            load(rack, 2, amps)
            time.sleep(0.3)
            terminal.answer("connect a load of 1.77 A or more")
            terminal.answer("resistive", "y")
            terminal.until("A (Enter")
            truth = rack.ask(board="board-a", show="truth")["truth"][1]
            os.write(terminal.master, f"{truth['rms_a']:.3f}\n".encode())
            terminal.answer("V (Enter", f"{truth['voltage_v']:.1f}")
            terminal.answer("W (Enter")
        terminal.answer("another known load?", "n")
        terminal.until("the file before it is kept as")
        assert terminal.end() == 0
    finally:
        terminal.close()
    (kept,) = place.folder.glob("hand.2*.json")
    assert kept.read_bytes() == old
    file = load_calibration(out)
    assert file.operator == "A. Nobody"
    instruments = {record.name: record.instrument.name for record in file.channels}
    simulated = "the simulated PDU"
    assert instruments == {"pdu-a/1": simulated, "pdu-a/2": "clamp meter", "pdu-a/3": simulated, "L1": "clamp meter"}
    assert {record.instrument.uncertainty_percent for record in file.channels} == {0.1, 1.5}


def test_wrong_wiring_is_named_and_not_applied(place: Place, rack: RackProcess) -> None:
    for fault in ({"fault": "turn", "channel": 0}, {"fault": "swap", "channel": 1, "other": 2}):
        rack.ask(board="board-a", **fault)
    try:
        document = by_plan(place, rack, "--out", str(place.folder / "wrong.json"))
    finally:
        for fault in ({"fault": "turn", "channel": 0}, {"fault": "swap", "channel": 1, "other": 2}):
            rack.ask(board="board-a", **fault)
    assert document["exit_code"] == 1
    assert document["refused"] == [1, 2, 3]
    verdicts = [record["verdict"] for record in document["calibration"]["channels"]]
    assert "write ':reversed' behind its channel" in verdicts[0]
    assert "these two transformers are swapped" in verdicts[1]


def test_ctrl_c_leaves_nothing(place: Place, rack: RackProcess) -> None:
    out = place.folder / "never.json"
    plan = place.folder / "plan.toml"
    plan.write_text(PLAN.replace("wait = true\n", "").replace("seconds = 2", "seconds = 20"))
    load(rack, 1, 0.0)
    terminal = Terminal(
        "calibrate", "-c", str(place.write()), "--board", "board-a", "--from", str(plan), "--out", str(out)
    )
    try:
        terminal.until("step 1 of 3")
        terminal.process.send_signal(2)
        assert terminal.end() == 1
    finally:
        terminal.close()
    assert "Traceback" not in terminal.shown
    assert not list(place.folder.glob("never*"))


def test_a_board_that_goes_silent_ends_it(place: Place, rack: RackProcess) -> None:
    out = place.folder / "silent.json"
    plan = place.folder / "plan.toml"
    plan.write_text(PLAN.replace("wait = true\n", "").replace("seconds = 2", "seconds = 20"))
    arguments = ("--board", "board-a", "--from", str(plan), "--out", str(out))
    terminal = Terminal("calibrate", "-c", str(place.write()), *arguments)
    try:
        terminal.until("step 1 of 3")
        rack.ask(board="board-a", fault="unplug")
        terminal.until("board 'board-a' stopped sending")
        assert terminal.end() == 4
    finally:
        terminal.close()
        rack.ask(board="board-a", fault="plug")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("zero = true", "zero = true\namps = 3.0"), "plan.toml:9: step.1: a zero step has no load"),
        (("seconds = 2", "second = 2"), "unknown key; allowed here: outlets, zero, amps"),
        (("pdu-a/{n}", "pdu-a"), "step.2.reference: 'pdu-a' is not 'PDU/NUMBER' or 'PDU/{n}'"),
        (('reference = "pdu-a/{n}"\n', ""), "step.2: say zero = true, or what the load is"),
        (("pdu-a/1-3", "pdu-b/1-3"), "pdu-b/1, pdu-b/2, pdu-b/3: not measured by board 'board-a'"),
    ],
)
def test_a_mistaken_plan_is_one_clear_sentence(
    place: Place, rack: RackProcess, change: tuple[str, str], words: str
) -> None:
    plan = place.folder / "mistaken.toml"
    plan.write_text(PLAN.replace(*change).replace("wait = true\n", ""))
    done = cli(place.write(), "calibrate", "--board", "board-a", "--from", str(plan))
    assert done.returncode == 3
    assert words.replace("plan.toml", str(plan)) in done.stderr
    assert "Traceback" not in done.stderr
