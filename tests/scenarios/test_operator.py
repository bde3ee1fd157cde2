"""4 and 5: kill switch, found values back, limits by hand, announcements; all through the command line."""

import json
import math
import signal
from collections.abc import Iterator

import pytest
from audited import changes
from scenario_rack import Daemon, Place, RackProcess, Status, cli, limit_of, on_pdu, outlet_of, running

from rpi_daemon.records import LimitState, LimitWrite

STATIC_SAFE_W = 550.0
FOUND_W = 613.0


def _found(place: Place, pdu: str) -> dict[int, LimitState]:
    numbers = range(1, 7)

    async def read(driver):  # type: ignore[no-untyped-def]
        return (await driver.read()).limits

    return dict(on_pdu(place.write(), pdu, numbers, read))


@pytest.fixture(scope="module")
def found(place: Place, rack: RackProcess) -> dict[str, dict[int, LimitState]]:
    """What the owner had set before the daemon came: one threshold by hand, the rest as from the factory."""

    async def set_one(driver):  # type: ignore[no-untyped-def]
        await driver.read()
        return await driver.apply([LimitWrite(1, FOUND_W)])

    assert on_pdu(place.write(), "pdu-a", [1], set_one).outcomes[0].verified
    return {pdu: _found(place, pdu) for pdu in ("pdu-a", "pdu-b")}


@pytest.fixture(scope="module")
def daemon(place: Place, rack: RackProcess, found: dict[str, dict[int, LimitState]]) -> Iterator[Daemon]:
    with running(lambda: Daemon(place.write())) as process:
        process.normal()
        yield process


def _no_set_for(daemon: Daemon, rack: RackProcess, ticks: int = 12) -> None:
    """Over this many ticks no PDU gets a SET."""
    before, tick = rack.sets(), daemon.status()["summary"]["ticks"]
    daemon.until(lambda s: s["summary"]["ticks"] >= tick + ticks, f"{ticks} ticks")
    assert rack.sets() == before


def _writes_again(daemon: Daemon) -> None:
    writes = daemon.status()["summary"]["writes"]
    daemon.until(lambda s: s["state"] == "NORMAL" and s["summary"]["writes"] > writes, "writes go on")


@pytest.mark.parametrize("way", ["command", "file", "signal"])
def test_kill_switch(way: str, place: Place, rack: RackProcess, daemon: Daemon) -> None:
    _writes_again(daemon)
    if way == "command":
        done = cli(daemon.config, "kill", "--reason", "smoke in aisle 3", "--json")
        assert (done.returncode, json.loads(done.stdout)["kill_switch"]) == (0, True)
    elif way == "file":
        (place.folder / "state" / "kill").touch()
    else:
        daemon.process.send_signal(signal.SIGUSR1)
    status = daemon.until(lambda s: bool(s["kill_switch"]), "the kill switch")
    # a write that was on the wire may still end
    daemon.until(lambda s: s["summary"]["ticks"] > status["summary"]["ticks"] + 5, "half a second")
    _no_set_for(daemon, rack)
    refused = cli(daemon.config, "limit", "restore")
    assert refused.returncode == 1
    assert "rpi-daemon resume" in refused.stderr
    assert cli(daemon.config, "resume").returncode == 0
    assert not daemon.status()["kill_switch"]
    _writes_again(daemon)


def test_limit_set_caps_an_outlet_and_ends_by_itself(rack: RackProcess, daemon: Daemon) -> None:
    cap_w = 60.0
    changes(rack)
    done = cli(daemon.config, "limit", "set", "pdu-b/2", str(cap_w), "--ttl", "3", "--reason", "test", "--json")
    assert done.returncode == 0, done.stderr
    status = daemon.until(lambda s: (limit_of(s, "pdu-b/2") or 1e9) <= cap_w, "the cap")
    assert [(c["outlet"], c["limit_w"], c["reason"]) for c in status["ceilings"]] == [("pdu-b/2", cap_w, "test")]
    assert any(name == "pdu-b/2" and w == pytest.approx(cap_w, abs=1.0) for _, name, w in changes(rack))
    status = daemon.until(lambda s: (limit_of(s, "pdu-b/2") or 0.0) > cap_w + 20.0, "the end of the cap")
    assert status["ceilings"] == []
    unknown = cli(daemon.config, "limit", "set", "pdu-b/77", "60", "--ttl", "3", "--reason", "test")
    assert unknown.returncode == 1
    assert "no outlet is called 'pdu-b/77'" in unknown.stderr


def test_what_is_taken_of_a_limit_is_said(daemon: Daemon) -> None:
    def asked(limit_w: str, reason: str) -> tuple[int, list[str]]:
        done = cli(daemon.config, "limit", "set", "pdu-b/2", limit_w, "--ttl", "1", "--reason", reason)
        return done.returncode, (done.stdout + done.stderr).splitlines()

    (row,) = (row for row in daemon.status()["outlets"] if row["id"] == "pdu-b/2")
    assert asked("99999", "two\nlines") == (
        0,
        [
            "pdu-b/2: at most 99999 W for 1 s (two\\nlines)",
            f"it changes nothing: pdu-b/2 is rated {row['rating_w']:g} W",
        ],
    )
    assert asked("99999", "x" * 501) == (1, ["reason has 501 characters; 500 at most"])


def _room_above_w(status: Status) -> float:
    row = outlet_of(status, "pdu-b/3")
    return math.nan if None in (row["limit_w"], row["power_w"]) else float(row["limit_w"] - row["power_w"])


def test_hint_raises_the_limit_before_the_rise(daemon: Daemon) -> None:
    daemon.until(lambda s: _room_above_w(s) < 200.0, "a limit near the draw")
    done = cli(daemon.config, "hint", "b-3", "250", "--in", "4.5", "--for", "60")
    assert done.returncode == 0, done.stderr
    status = daemon.until(lambda s: _room_above_w(s) >= 240.0, "the raise", 4.5)
    assert outlet_of(status, "pdu-b/3")["request_w"] > outlet_of(status, "pdu-b/3")["power_w"]
    unknown = cli(daemon.config, "hint", "b-33", "250")
    assert unknown.returncode == 1
    assert "known: a-1" in unknown.stderr


def test_restore_of_named_outlets_lets_go_of_them(
    place: Place, rack: RackProcess, daemon: Daemon, found: dict[str, dict[int, LimitState]]
) -> None:
    done = cli(daemon.config, "limit", "restore", "pdu-a/1", "pdu-b/4", "--json")
    answer = json.loads(done.stdout)
    assert (answer["restored"], answer["verified"], answer["mode"]) == (2, 2, "closed_loop")
    _writes_again(daemon)
    assert rack.limits_w()["pdu-a/1"] == FOUND_W
    assert _found(place, "pdu-a")[1] == found["pdu-a"][1]
    assert _found(place, "pdu-b")[4] == found["pdu-b"][4]
    status = daemon.status()
    assert not outlet_of(status, "pdu-a/1")["opted_in"]
    assert not daemon.log("limit.foreign_change")


def test_leaving_closed_loop_restores_all_and_coming_back_writes_again(
    place: Place, rack: RackProcess, daemon: Daemon, found: dict[str, dict[int, LimitState]]
) -> None:
    assert cli(daemon.config, "mode", "advisory").returncode == 0
    assert {pdu: _found(place, pdu) for pdu in found} == found
    assert daemon.status()["mode"] == "advisory"
    _no_set_for(daemon, rack)
    assert cli(daemon.config, "mode", "closed_loop").returncode == 0
    daemon.until(
        lambda s: outlet_of(s, "pdu-a/1")["opted_in"] and (limit_of(s, "pdu-a/1") or FOUND_W) != FOUND_W, "ours"
    )
    done = cli(daemon.config, "limit", "restore", "--json")
    answer = json.loads(done.stdout)
    assert (answer["restored"], answer["verified"], answer["mode"]) == (11, 11, "advisory")
    assert {pdu: _found(place, pdu) for pdu in found} == found
    assert not daemon.log("limit.foreign_change")
    assert cli(daemon.config, "mode", "closed_loop").returncode == 0


def test_killed_at_stop_nothing_is_written(place: Place, rack: RackProcess, daemon: Daemon) -> None:
    _writes_again(daemon)
    assert cli(daemon.config, "kill").returncode == 0
    tick = daemon.status()["summary"]["ticks"]
    daemon.until(lambda s: s["summary"]["ticks"] > tick + 5, "half a second")
    before, limits = rack.sets(), rack.limits_w()
    assert daemon.stop() == 0
    assert rack.sets() == before
    assert rack.limits_w() == limits
    assert not daemon.log("static_safe.left")
    assert cli(daemon.config, "resume", "--json").returncode == 0
    assert not (place.folder / "state" / "kill").exists()
