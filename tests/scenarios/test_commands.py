"""9: every command that prints a result ends in one JSON object with --json, and can be read without."""

import json
import socket
from collections.abc import Iterator

import pytest
from scenario_rack import Child, Daemon, Place, RackProcess, cli, running


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess) -> Iterator[Daemon]:
    with running(lambda: Daemon(place.write())) as process:
        process.normal()
        yield process


SINK = """
[[trap_sink]]
id = "facility"
host = "127.0.0.1"
port = {port}
version = "2c"
community_file = "community"
allow_insecure = true
"""

COMMANDS = {
    "check-config": ([], "good. Rack scenario: 12 outlets (11 opted in to closed loop)"),
    "status": ([], "  closed_loop  up "),
    "hint": (["a-1", "5"], "a-1: +5 W in 5 s"),
    "limit set": (["pdu-b/1", "300", "--ttl", "1", "--reason", "x"], "pdu-b/1: at most 300 W for 1 s (x)"),
    "limit restore": (["pdu-b/6"], "restored 1 outlets, verified 1; mode closed_loop"),
    "mode": (["closed_loop"], "mode closed_loop"),
    "kill": ([], "kill switch engaged"),
    "resume": ([], "kill switch released"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_on_the_last_line_and_words_without(command: str, daemon: Daemon) -> None:
    arguments, words = COMMANDS[command]
    daemon.ask("kill" if command == "resume" else "resume")
    daemon.normal()
    plain = cli(daemon.config, *command.split(), *arguments)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert words in plain.stdout
    structured = cli(daemon.config, *command.split(), *arguments, "--json")
    assert (structured.returncode, structured.stderr) == (0, "")
    document = json.loads(structured.stdout.splitlines()[-1])
    assert document["schema"] == 1
    assert document.get("ok", True) is True
    daemon.ask("resume")


def test_top_is_lines_where_there_is_no_terminal(daemon: Daemon) -> None:
    for extra, parse in (([], str), (["--json"], json.loads)):
        log = daemon.config.parent / "top.log"
        with running(lambda more=extra, to=log: Child(["top", "--config", str(daemon.config), *more], to)) as top:
            assert top.process.stdout is not None
            lines = [parse(top.process.stdout.readline()) for _ in range(2)]
        assert len(lines) == 2
        assert all("closed_loop" in str(line) for line in lines)


def test_model_show_and_dry_run(place: Place, daemon: Daemon) -> None:
    trace = place.folder / "trace.csv"
    trace.write_text("t_s,power_w\n" + "\n".join(f"{t / 10},{200 + 100 * (t // 50 % 2)}" for t in range(200)) + "\n")
    report = cli(place.write(), "dry-run", "--replay", str(trace), "--json", timeout_s=60.0)
    assert report.returncode == 0, report.stderr
    document = json.loads(report.stdout.splitlines()[-1])
    assert document["outlets"] == 12
    assert document["limit_escapes"] is not None
    live = cli(daemon.config, "dry-run", "--seconds", "1")
    assert live.returncode == 8  # it needs the boards and PDUs that the daemon has
    assert "another daemon of this host controls it" in live.stderr


def test_dry_run_on_live_sensors_writes_nothing(place: Place, rack: RackProcess, daemon: Daemon) -> None:
    assert daemon.stop() == 0
    before = rack.sets()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as facility:
        facility.bind(("127.0.0.1", 0))
        config = place.folder / "told.toml"
        config.write_text(f"{daemon.config.read_text()}{SINK.format(port=facility.getsockname()[1])}")
        live = cli(config, "dry-run", "--seconds", "3", "--json", timeout_s=60.0)
        facility.setblocking(False)
        with pytest.raises(BlockingIOError):
            facility.recv(2048)  # nobody is told of a trial
    assert live.returncode == 0, live.stderr
    document = json.loads(live.stdout.splitlines()[-1])
    assert (document["mode"], document["writes"], document["outlets"]) == ("advisory", 0, 12)
    assert document["ticks"] >= 5  # of 30
    assert rack.sets() == before
