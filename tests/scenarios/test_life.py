"""1 and 2: start, closed loop, stop: what stands on the PDUs before, meanwhile and afterwards."""

import signal
import subprocess
import time

import pytest
from scenario_rack import RPI, Daemon, Place, RackProcess, cli, limit_of, running, unaccounted

from rpi_daemon.errors import NotRunningError

OURS = [f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 7)]
THEIRS = "pdu-a/6"
STATIC_SAFE_W = 550.0


def test_from_start_to_stop(place: Place, rack: RackProcess) -> None:
    before = rack.limits_w()
    with running(lambda: Daemon(place.write())) as daemon:
        status = daemon.normal()
        events = [line["event"] for line in daemon.log()]
        assert status["static_safe_verified_s"] < 20.0  # the figure of a quiet machine is in bench/loop.py
        assert events.index("static_safe.verified") < events.index("state")  # and the model is loaded in between
        assert all(o["limit_kind"] == "alarm" for o in status["outlets"])

        lost_at_start = unaccounted(daemon, rack)
        end = time.monotonic() + 4.0
        polls = 0
        while time.monotonic() < end:
            status = daemon.status()
            polls += 1
            for c in status["constraints"]:
                if c["limits_w"] is not None:  # null where an outlet, not ours, has no limit
                    assert c["limits_w"] <= c["ceiling_w"] + 1.0
            assert sum(limit_of(status, name) or 0.0 for name in OURS if name < "pdu-b") <= 25.0 * 0.8 * 230.0
            assert sum(limit_of(status, name) or 0.0 for name in OURS) <= 9000.0 * 0.8
            daemon.pause()
        run = status["summary"]
        assert polls > 3
        assert run["writes"] == run["writes_verified"] > 11
        assert unaccounted(daemon, rack) == lost_at_start
        daemon.until(
            lambda s: any(abs((limit_of(s, name) or 0.0) - STATIC_SAFE_W) > 20.0 for name in OURS), "limits of its own"
        )
        assert daemon.stop() == 0
        assert daemon.log("static_safe.left")
    after = rack.limits_w()
    assert [after[name] for name in OURS] == pytest.approx([STATIC_SAFE_W] * 11, abs=1.0)
    assert after[THEIRS] == before[THEIRS]


def test_a_restart_writes_nothing_where_static_safe_stands(place: Place, rack: RackProcess) -> None:
    config = place.write()
    config.write_text(config.read_text().replace("recover_s = 1.0", "recover_s = 600.0"))  # it stays there
    with running(lambda: Daemon(config)) as daemon:
        daemon.until(lambda s: s["summary"]["ticks"] > 0, "STATIC_SAFE, whatever stood there before")
        assert daemon.stop() == 0
    sets = rack.sets()
    with running(lambda: Daemon(config)) as daemon:
        status = daemon.until(lambda s: s["summary"]["ticks"] > 0, "the first tick")
        assert status["state"] == "STATIC_SAFE"
        assert status["summary"]["writes"] == 0
        assert rack.sets() == sets
        assert daemon.stop() == 0


def test_a_pdu_that_is_silent_at_stop_does_not_keep_static_safe_from_the_other(place: Place, rack: RackProcess) -> None:
    with running(lambda: Daemon(place.write())) as daemon:
        daemon.normal()
        rack.until(lambda s: s["limits_w"]["pdu-b"]["1"] != STATIC_SAFE_W, "a limit of our own on pdu-b")
        rack.ask(pdu="pdu-a", faults={"drop": -1})
        assert daemon.stop() == 10
        (said,) = daemon.log("static_safe.not_left")
        assert str(place.ports[0]) in said["error"]
    rack.ask(pdu="pdu-a", faults={})
    limits = rack.limits_w()
    assert [limits[f"pdu-b/{n}"] for n in range(1, 7)] == pytest.approx([STATIC_SAFE_W] * 6, abs=1.0)


def test_what_operators_gave_back_stays_so_after_a_crash_and_not_after_a_stop(place: Place, rack: RackProcess) -> None:
    config = place.write()
    with running(lambda: Daemon(config, name="crash-1")) as daemon:
        daemon.normal()
        assert cli(config, "limit", "restore", "pdu-b/4").returncode == 0
        daemon.stop(signal.SIGKILL)
    with running(lambda: Daemon(config, name="crash-2")) as daemon:
        status = daemon.normal()
        assert [o["id"] for o in status["outlets"] if not o["opted_in"]] == [THEIRS, "pdu-b/4"]
        assert daemon.logged("standing.goes_on")["given_back"] == ["pdu-b/4"]
        assert cli(config, "mode", "advisory").returncode == 0
        daemon.stop(signal.SIGKILL)
    sets = rack.sets()
    with running(lambda: Daemon(config, name="crash-3")) as daemon:
        assert daemon.normal()["mode"] == "advisory"
        assert rack.sets() == sets
        found = rack.limits_w()
        assert cli(config, "mode", "closed_loop").returncode == 0
        rack.until(
            lambda s: s["limits_w"]["pdu-b"]["4"] != found["pdu-b/4"], "a limit of ours where all was given back"
        )
        assert daemon.stop() == 0
    with running(lambda: Daemon(config, name="stopped")) as daemon:
        assert daemon.normal()["mode"] == "closed_loop"
        assert daemon.stop() == 0


def test_sigterm_during_a_restore_leaves_static_safe_everywhere(place: Place, rack: RackProcess) -> None:
    """What was put back by then is ours to be left safe, too: nothing stays where the loop had it."""
    config = place.write()
    with running(lambda: Daemon(config, name="cut-short")) as daemon:
        daemon.normal()
        rack.until(lambda s: s["limits_w"]["pdu-b"]["1"] != STATIC_SAFE_W, "a limit of our own on pdu-b")
        rack.ask(pdu="pdu-a", faults={"delay_s": 0.2})
        with subprocess.Popen([*RPI, "mode", "advisory", "--config", str(config)], stderr=subprocess.PIPE) as asked:
            daemon.until(lambda s: not any(o["opted_in"] for o in s["outlets"]), "the restore has begun")
            assert daemon.stop() == 0
            assert asked.wait() == NotRunningError.exit_code
    rack.ask(pdu="pdu-a", faults={})
    limits = rack.limits_w()
    assert [limits[name] for name in OURS] == pytest.approx([STATIC_SAFE_W] * 11, abs=1.0)
