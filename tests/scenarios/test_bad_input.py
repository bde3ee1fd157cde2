"""8: mistakes and damage: one clear line that says what to do, the documented exit code, nothing written to a PDU."""

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from scenario_rack import RPI, Daemon, Place, RackProcess, cli, free_ports, running

from rpi_daemon.cli import main
from rpi_daemon.known_boards import BOARDS_FILE
from rpi_daemon.models.forecaster import SHIPPED

NOBODY = 65534


@pytest.fixture(autouse=True)
def nothing_written(rack: RackProcess, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever is wrong, no PDU gets a SET, except where a test says that STATIC_SAFE is right."""
    before = rack.sets()
    yield
    if "may_write" not in request.fixturenames:
        assert rack.sets() == before


@pytest.fixture
def may_write() -> None:
    """The test is about a rack that must be protected all the same."""


@pytest.fixture
def fresh(place: Place, rack: RackProcess) -> Place:
    """Another daemon's folder: it meets the same rack for the first time."""
    folder = place.folder / f"other-{os.urandom(4).hex()}"
    folder.mkdir()
    for name in ("auth.key", "priv.key", "community"):
        shutil.copy(place.folder / name, folder / name)
    for name in ("board-a.tty", "board-b.tty"):
        (folder / name).symlink_to(place.folder / name)
    return Place(folder, place.ports)


def one_clear_line(words: str) -> str:
    """What a person reads on stderr: the log apart, one line and no traceback."""
    lines = [line for line in words.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, words
    return lines[0]


def refused(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of a daemon that cannot start."""
    with running(lambda: Daemon(config, *arguments, name="refused")) as daemon:
        code = daemon.wait()
        return code, one_clear_line(daemon.words())


@dataclass
class Case:
    name: str
    changes: dict[str, object]
    code: int
    says: list[str]
    prepare: Callable[[Place], None] = lambda place: None


def _file(name: str, text: str) -> Callable[[Place], None]:
    def write(place: Place) -> None:
        path = place.folder / name
        path.write_text(text)
        path.chmod(0o600)

    return write


CURRENTS = ", ".join(f'"current:pdu-a/{n}"' for n in range(1, 7))
CASES = [
    Case("missing board", {"port_a": "nobody.tty"}, 4, ["no serial port at", "nobody.tty", "plug the board in"]),
    Case("file as board", {"port_a": "auth.key"}, 4, ["auth.key is not a working serial port"]),
    Case("wrong v3 user", {"user": "somebody"}, 5, ["user 'somebody' is unknown", "create it on the device"]),
    Case("wrong v3 key", {"auth_key": "wrong.key"}, 5, ["authentication key or algorithm (SHA-256) is wrong"],
         _file("wrong.key", "not the right pass phrase")),
    Case("wrong v2c community", {"community": "wrong"}, 4, ["did not answer", "community may be wrong"], _file("wrong", "private")),
    Case("another family", {"profile_a": "apc_rpdu2"}, 4, ["not the APC family of profile 'apc_rpdu2'", "correct the profile"]),
    Case("wrong channels", {"currents_a": CURRENTS + ', "unused"'}, 4, ["has 7 channels, its configuration lists 8"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_daemon_that_cannot_start(case: Case, fresh: Place) -> None:
    case.prepare(fresh)
    code, line = refused(fresh.write(**case.changes))
    assert code == case.code
    for part in case.says:
        assert part in line


def test_a_silent_pdu(fresh: Place, rack: RackProcess) -> None:
    rack.ask(pdu="pdu-b", faults={"drop": -1})
    code, line = refused(fresh.write())
    rack.ask(pdu="pdu-b", faults={})
    assert code == 4
    assert f"127.0.0.1 port {fresh.ports[1]} did not answer 2 tries of 0.25 s; check host and port" in line


def test_nothing_listens_at_the_pdu(fresh: Place) -> None:
    (closed,) = free_ports(1)
    code, line = refused(fresh.write(pdu_b=closed))
    assert code == 4
    assert "check host, port and that SNMP is enabled" in line


def test_a_serial_device_that_is_not_a_board(fresh: Place) -> None:
    master, slave = os.openpty()
    try:
        code, line = refused(fresh.write(port_a=os.ttyname(slave)))
    finally:
        os.close(master)
        os.close(slave)
    assert code == 4
    assert "no description frame in 3 s (0 bytes came in); is it a sensor board with board_id = 1" in line


def test_a_pdu_that_was_controlled_before_is_protected_though_a_board_is_missing(
    fresh: Place, rack: RackProcess, may_write: None
) -> None:
    with running(lambda: Daemon(fresh.write())) as daemon:
        daemon.normal()
        rack.until(lambda s: s["limits_w"]["pdu-b"]["1"] != 550.0, "a limit of our own")
        daemon.process.kill()
        daemon.wait()
    (fresh.folder / "state" / BOARDS_FILE).unlink()  # else the board is known, and waited for
    code, line = refused(fresh.write(port_a="nobody.tty"))
    assert (code, "no serial port" in line) == (4, True)
    limits = rack.limits_w()
    assert [limits[f"pdu-b/{n}"] for n in range(1, 7)] == pytest.approx([550.0] * 6, abs=1.0)


def test_a_damaged_model_is_refused_by_checks_and_replaced_by_baselines_in_a_run(
    fresh: Place, rack: RackProcess, may_write: None
) -> None:
    model = shutil.copytree(SHIPPED, fresh.folder / "model")
    content = bytearray((model / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (model / "model.onnx").write_bytes(bytes(content))
    config = fresh.write(forecast='[forecast]\nmodel = "model"')
    checked = cli(config, "check-config")
    assert checked.returncode == 6
    assert "sha256 differs" in one_clear_line(checked.stderr)
    assert cli(config, "check-config", "--no-model").returncode == 0
    shown = subprocess.run([*RPI, "model", "show", str(model)], capture_output=True, text=True, timeout=30, check=False)
    assert shown.returncode == 6
    assert "copy the" in one_clear_line(shown.stderr)

    with running(lambda: Daemon(config)) as daemon:
        status = daemon.normal()
        assert "model_fallback" in status["causes"]
        assert "sha256 differs" in status["forecast"]["primary_unused_because"]
        assert {o["source"] for o in status["outlets"]} == {"mixture"}
        events = [line["event"] for line in daemon.log()]
        assert events.index("static_safe.verified") < events.index("model.refused")
        status = daemon.until(lambda s: s["summary"]["writes"] > 15, "writes")
        assert status["summary"]["writes"] == status["summary"]["writes_verified"]
        assert daemon.stop() == 0


def test_a_wrong_configuration_names_every_mistake(fresh: Place) -> None:
    config = fresh.write()
    text = config.read_text().replace('profile = "raritan_px"', 'profil = "raritan_px"').replace("700.0", "-700.0", 1)
    config.write_text(text)
    for command in ("run", "check-config"):
        done = cli(config, command)
        assert done.returncode == 3
        lines = done.stderr.splitlines()
        assert any("did you mean 'profile'" in line for line in lines)
        assert any("rating_w" in line and "-700.0" in line for line in lines)
        assert all(line.startswith(f"{config}:") for line in lines)


def test_a_second_daemon_on_the_same_pdu_or_folder(fresh: Place, rack: RackProcess, may_write: None) -> None:
    with running(lambda: Daemon(fresh.write())) as daemon:
        daemon.normal()
        code, line = refused(fresh.write())
        assert (code, f"run: another daemon (pid {daemon.process.pid}) uses this folder" in line) == (8, True)
        apart = fresh.write(mode="advisory")
        apart.write_text(apart.read_text().replace('runtime_dir = "run"', 'runtime_dir = "other-run"'))
        code, line = refused(apart)
        assert code == 8
        assert f"state: another daemon (pid {daemon.process.pid}) uses this folder" in line
        assert "its own daemon.state_dir" in line
        other = fresh.folder / "elsewhere"
        other.mkdir()
        for name in ("auth.key", "priv.key", "community", "board-a.tty", "board-b.tty"):
            (other / name).symlink_to(fresh.folder / name)
        code, line = refused(Place(other, fresh.ports).write())
        assert code == 8
        assert "another daemon of this host controls it" in line
        assert daemon.stop() == 0


def test_a_pdu_that_denies_every_write_is_metered_only(fresh: Place, rack: RackProcess, may_write: None) -> None:
    rack.ask(pdu="pdu-a", reboot=True)  # else STATIC_SAFE may stand there already, and nothing need be written
    rack.ask(pdu="pdu-a", faults={"read_only": True})
    try:
        with running(lambda: Daemon(fresh.write())) as daemon:
            status = daemon.normal()
            line = daemon.logged("pdu.meters_only")
            assert line["pdu"] == "pdu-a"
            assert "lets us write nothing" in line["reason"]
            assert "noAccess" in line["reason"]
            opted_in = {o["id"]: o["opted_in"] for o in status["outlets"]}
            assert not any(is_in for name, is_in in opted_in.items() if name.startswith("pdu-a"))
            assert any(is_in for name, is_in in opted_in.items() if name.startswith("pdu-b"))
            assert all(o["power_w"] is not None for o in status["outlets"])
            assert daemon.stop() == 0
    finally:
        rack.ask(pdu="pdu-a", faults={})


def test_no_room_for_the_raw_ring(fresh: Place) -> None:
    """A limit on the size of files stands for a full tmpfs, and needs no root."""
    config = fresh.write()
    few_bytes = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = cli(config, "run", preexec_fn=few_bytes)
    assert done.returncode == 4
    assert "MB for the raw ring" in one_clear_line(done.stderr)
    assert "lower sampling.raw_ring_s" in done.stderr


def test_a_state_folder_that_cannot_be_made(fresh: Place) -> None:
    (fresh.folder / "state").write_text("a file is in the way")
    code, line = refused(fresh.write())
    assert code == 3
    assert f"daemon.state_dir: {fresh.folder}/state is a file; a folder is needed" in line


def test_found_limits_that_are_damaged(fresh: Place, may_write: None) -> None:
    (fresh.folder / "state").mkdir()
    (fresh.folder / "state" / "found-limits.json").write_text('{"schema": 1, "pdus"')
    with running(lambda: Daemon(fresh.write())) as daemon:
        daemon.normal()
        (said,) = daemon.log("found_limits.damaged")
        assert (said["path"], said["lost"]) == ("found-limits.json", True)
        assert daemon.status()["static_safe_verified_s"] is not None
        answer = daemon.ask("limit_restore", outlets=[])
        assert (answer["restored"], len(answer["lost"]), answer["mode"]) == (0, 11, "advisory")
        assert daemon.stop() == 0
    assert (fresh.folder / "state" / "found-limits.json.damaged").exists()


def test_a_test_of_no_receiver_is_no_success(fresh: Place) -> None:
    config = fresh.write()
    for more in ((), ("--json",)):
        done = CliRunner().invoke(main, ["traps", "test", "--config", str(config), *more])
        assert done.exit_code == 1
        assert "no [[trap_sink]] is configured: nothing was sent" in done.output
    assert json.loads(done.output.splitlines()[-1])["ok"] is False


def test_commands_without_a_daemon(fresh: Place) -> None:
    config = fresh.write()
    for arguments in (("status",), ("top",), ("mode", "advisory"), ("limit", "restore"), ("hint", "a-1", "5")):
        done = cli(config, *arguments, "--json")
        assert done.returncode == 9, arguments
        assert "no daemon answers here; is it running" in one_clear_line(done.stderr)
        assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == 9


def test_a_socket_that_this_user_may_not_use(fresh: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with running(lambda: Daemon(fresh.write(mode="advisory"))) as daemon:
        daemon.normal()
        with tempfile.TemporaryDirectory(dir="/tmp") as shared:
            Path(shared).chmod(0o755)
            Path(shared, "run").symlink_to(fresh.folder / "run")
            config = Path(shared, "config.toml")
            config.write_text(daemon.config.read_text())
            os.seteuid(NOBODY)
            try:
                done = CliRunner().invoke(main, ["status", "--config", str(config)])
            finally:
                os.seteuid(0)
        assert done.exit_code == 9, done.stderr
        assert "this user may not talk to the daemon" in one_clear_line(done.stderr)
        assert daemon.stop() == 0


@pytest.mark.parametrize("text", ["", "t_s,power_w\n0.0,100\n0.1", "t_s,power_w\n0.0,abc\n", "\0\1\2"])
def test_a_truncated_trace(text: str, fresh: Place) -> None:
    trace = fresh.folder / "trace.csv"
    trace.write_text(text)
    done = subprocess.run(
        [*RPI, "dry-run", "--replay", str(trace)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert str(trace) in one_clear_line(done.stderr)


def test_a_second_simulated_rack_leaves_the_first_alone(place: Place, rack: RackProcess) -> None:
    before = (place.folder / "board-a.tty").readlink()
    done = cli(place.write(), "sim")
    assert done.returncode == 3
    assert "cannot listen on 127.0.0.1 port" in one_clear_line(done.stderr)
    assert (place.folder / "board-a.tty").readlink() == before


def test_a_hang_up_does_not_end_the_daemon(fresh: Place, rack: RackProcess, may_write: None) -> None:
    with running(lambda: Daemon(fresh.write())) as daemon:
        ticks = daemon.normal()["summary"]["ticks"]
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda s: s["summary"]["ticks"] > ticks + 5 and bool(daemon.log("reload.done")), "ticks after it")
        assert daemon.stop(signal.SIGINT) == 0
    limits = rack.limits_w()
    assert [limits[f"pdu-b/{n}"] for n in range(1, 7)] == pytest.approx([550.0] * 6, abs=1.0)


def test_a_stop_during_start_is_obeyed(fresh: Place, rack: RackProcess, may_write: None) -> None:
    with running(lambda: Daemon(fresh.write())) as daemon:
        daemon.until(lambda s: True, "the control socket")
        assert daemon.stop() == 0
