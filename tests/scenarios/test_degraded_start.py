"""A daemon that knows its rack starts without what is away, controls the rest, and takes in what comes back."""

from scenario_rack import Daemon, Place, RackProcess, cli, running


def test_a_board_that_is_away_is_waited_for(place: Place, rack: RackProcess) -> None:
    config = place.write()
    rack.ask(board="board-a", fault="unplug")
    with running(lambda: Daemon(config, name="stranger")) as stranger:
        assert stranger.wait() == 4  # met for the first time: a mistake is likelier than a fault
        assert "board-a" in stranger.words()
    rack.ask(board="board-a", fault="plug")
    with running(lambda: Daemon(config, name="first")) as daemon:
        daemon.normal()
        assert daemon.stop() == 0
    rack.ask(board="board-a", fault="unplug")
    with running(lambda: Daemon(config, name="second")) as daemon:
        status = daemon.until(lambda s: any(o["power_w"] for o in s["outlets"]), "the other board's readings")
        assert {o["id"].partition("/")[0] for o in status["outlets"] if o["power_w"] is None} == {"pdu-a"}
        assert status["state"] in ("HOLD", "STATIC_SAFE")
        assert daemon.logged("board.away_at_start")["board"] == "board-a"
        rack.ask(board="board-a", fault="plug")
        daemon.normal()
        assert daemon.stop() == 0


def test_a_pdu_that_is_away_is_waited_for(place: Place, rack: RackProcess) -> None:
    config = place.write()
    rack.ask(pdu="pdu-b", faults={"drop": -1})
    with running(lambda: Daemon(config, name="third")) as daemon:
        status = daemon.until(lambda s: len(s["outlets"]) > 0 and s["state"] == "HOLD", "a start without it")
        assert "pdu_unreachable:pdu-b" in status["causes"]
        assert [(pdu["id"], pdu["reachable"], pdu["model"]) for pdu in status["pdus"]] == [
            ("pdu-a", True, "PX-SIM6"),
            ("pdu-b", False, None),
        ]
        assert status["static_safe_verified_s"] is None
        assert status["static_safe_differs"] == {"pdu-b": [1, 2, 3, 4, 5, 6]}
        assert "did not answer 2 tries" in daemon.logged("pdu.unreachable")["error"]
        assert cli(config, "status").returncode == 0
        daemon.until(lambda s: s["summary"]["writes_verified"] > 0, "limits on the other PDU")
        rack.ask(pdu="pdu-b", faults={})
        assert daemon.logged("static_safe.verified")["after_s"] > 1.0  # before anything else was written to it
        status = daemon.normal()
        assert status["pdus"][1]["model"] == "PX-SIM6"
        assert (status["static_safe_differs"], status["static_safe_verified_s"] > 1.0) == ({}, True)
        written = rack.sets()["pdu-b"]
        rack.until(lambda s: s["pdus"]["pdu-b"]["sets"] > written, "limits on it, too")
        assert daemon.stop() == 0
    assert all(abs((w or 0.0) - 550.0) <= 1.0 for name, w in rack.limits_w().items() if name != "pdu-a/6")


def test_at_stop_a_pdu_that_never_answered_is_named(place: Place, rack: RackProcess) -> None:
    rack.ask(pdu="pdu-b", faults={"drop": -1})
    with running(lambda: Daemon(place.write(), name="fourth")) as daemon:
        daemon.until(lambda s: len(s["outlets"]) > 0 and s["state"] == "HOLD", "a start without it")
        assert daemon.stop() == 10
        assert "PDU 'pdu-b' has not answered since the start" in daemon.logged("static_safe.not_left")["error"]
    rack.ask(pdu="pdu-b", faults={})
