"""The faults of the soak: each begins at random, lasts a random time beside others, and can be ended."""

import json
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from soak_rack import CANDIDATE, DAMAGED, OPTED_OUT

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.drivers.pdu.sim import Faults
from rpi_daemon.drivers.sensors.plant import LoadBank

if TYPE_CHECKING:
    from soak import Soak

End = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Begun:
    """A fault at work. `subject`: what it is about; the same kind does not begin there twice."""

    subject: str
    words: str
    lasts_s: float = 0.0
    end: End | None = None


Fault = Callable[["Soak", Random], Begun | None]  # None: not now

PDUS = ("pdu-a", "pdu-b", "pdu-c")
WRITTEN = ("pdu-a", "pdu-b")
SPOILED = (  # glob patterns below the state folder
    "history/history-*.sqlite", "history/events-*.sqlite", "found-limits.json", "standing.json.copy", "traps.sqlite",
    "settle-times.json", "boards.json", "models/standing.json",
)  # fmt: skip


def _nothing() -> None:
    return


def _pdu_fault(pdus: tuple[str, ...], lasts_s: tuple[float, float], **faults: Callable[[Random], object]) -> Fault:
    """A fault by the simulator's own switches; `faults`: what they are set to."""

    def begin(soak: "Soak", rng: Random) -> Begun:
        name = rng.choice(pdus)
        values = {key: make(rng) for key, make in faults.items()}
        pdu = soak.rack.pdus[name]
        pdu.faults = replace(pdu.faults, **values)  # type: ignore[arg-type]
        usual = Faults()

        def end() -> None:
            pdu.faults = replace(pdu.faults, **{key: getattr(usual, key) for key in values})  # type: ignore[arg-type]

        return Begun(name, f"{name}: {values}", rng.uniform(*lasts_s), end)

    return begin


def _deaf(soak: "Soak", rng: Random) -> Begun:
    name = rng.choice(PDUS)
    pdu = soak.rack.pdus[name]
    pdu.deaf = True

    def end() -> None:
        pdu.deaf = False

    return Begun(name, f"{name} is silent", rng.choice((0.2, 1.0, 4.0, 15.0)) * rng.uniform(0.5, 1.5), end)


def _forged(soak: "Soak", rng: Random) -> Begun:
    name = rng.choice(PDUS)
    pdu = soak.rack.pdus[name]
    pdu.forged = rng.randint(1, 4)

    def end() -> None:
        pdu.forged = 0

    return Begun(name, f"{name}: {pdu.forged} forged answers before each", rng.uniform(1.0, 20.0), end)


def _pdu_reboot(soak: "Soak", rng: Random) -> Begun:
    name = rng.choice(PDUS)
    soak.rack.pdus[name].reboot()
    soak.checks.disturb(name)
    for outlet in soak.checks.ours:
        if outlet.startswith(name):
            soak.checks.changed(outlet)
    return Begun(name, f"{name} restarts with its defaults")


def _foreign(soak: "Soak", rng: Random) -> Begun:
    """Once, or often enough that the daemon must stop writing there."""
    name, times = rng.choice(WRITTEN), rng.choice((1, 1, 4))
    going = True

    def change(left: int) -> None:
        if not going:
            return
        number, limit_w = rng.randint(1, 4), float(rng.randint(100, 700))
        soak.rack.pdus[name].change(number, limit_w)
        soak.checks.changed(f"{name}/{number}")
        soak.note(f"somebody sets {name}/{number} to {limit_w:.0f} W")
        if left > 1:
            soak.loop.call_later(rng.uniform(2.0, 6.0), change, left - 1)

    def end() -> None:
        nonlocal going
        going = False

    change(times)
    return Begun(f"{name} {soak.clock.mono_ns()}", f"somebody sets limits on {name}, {times} times", 30.0, end)


def _board(call: Callable[["Soak", Random, str], str]) -> Fault:
    def begin(soak: "Soak", rng: Random) -> Begun:
        name = rng.choice(list(soak.rack.boards))
        return Begun(name, f"{name}: {call(soak, rng, name)}")

    return begin


def _unplugged(soak: "Soak", rng: Random) -> Begun | None:
    name = rng.choice(list(soak.rack.boards))
    board = soak.rack.boards[name]
    if not board.present:
        return None
    board.unplug()

    def end() -> None:
        board.present = True

    return Begun(name, f"{name} unplugged", rng.choice((0.1, 1.0, 7.0)) * rng.uniform(0.5, 1.5), end)


def _frames(what: str, most: int) -> Fault:
    def call(soak: "Soak", rng: Random, name: str) -> str:
        n = rng.randint(1, most)
        getattr(soak.rack.boards[name].device, what)(n)
        return f"{what} {n}"

    return _board(call)


def _stall(soak: "Soak", rng: Random, name: str) -> str:
    ms = rng.uniform(5.0, 400.0)
    soak.rack.boards[name].device.stall(ms)
    return f"its line stands still for {ms:.0f} ms"


def _board_reboot(soak: "Soak", rng: Random, name: str) -> str:
    ms = rng.uniform(20.0, 3000.0)
    soak.rack.boards[name].device.reboot(ms)
    soak.board_rebooted = True
    return f"restarts in {ms:.0f} ms"


def _channel(what: str) -> Fault:
    def call(soak: "Soak", rng: Random, name: str) -> str:
        device = soak.rack.boards[name].device
        channel, scans = rng.randrange(device.n_channels), round(1000 * rng.uniform(0.02, 8.0))
        getattr(device, what)(channel, scans)
        until_ns = soak.rack.clock.mono_ns() + round((scans / 1000 + 1.0) * NS_PER_S)
        for outlet in soak.rack.outlets_of(name, channel):
            soak.checks.standing.lying[outlet] = max(until_ns, soak.checks.standing.lying.get(outlet, 0))
        return f"channel {channel}: {what} for {scans} scans"

    return _board(call)


def _load_step(soak: "Soak", rng: Random) -> Begun:
    name = rng.choice(list(soak.rack.boards))
    plant = soak.rack.boards[name].device.plant
    outlet = rng.randrange(plant.n_outlets)
    amps = rng.uniform(0.1, 2.8)
    plant.set_load_bank(outlet, LoadBank(amps, rng.uniform(0.7, 1.0)))
    return Begun(f"{name}/{outlet}", f"{name}: load {outlet} goes to {amps:.1f} A", rng.uniform(1.0, 40.0),
                 lambda: plant.set_load_bank(outlet, None))  # fmt: skip


def _feed_loss(soak: "Soak", rng: Random) -> Begun:
    """The servers on one board's outlets lose their feed; others take over what they did."""
    lost, other = rng.sample(list(soak.rack.boards), 2)
    off, on = soak.rack.boards[lost].device.plant, soak.rack.boards[other].device.plant
    moved = min(off.n_outlets, on.n_outlets, 3)
    for k in range(moved):
        off.set_outlet(k, False)
        on.set_load_bank(k, LoadBank(rng.uniform(1.5, 2.8), 0.95))

    def end() -> None:
        for k in range(moved):
            off.set_outlet(k, True)
            on.set_load_bank(k, None)

    return Begun("feed", f"{lost} loses {moved} feeds to {other}", rng.uniform(2.0, 20.0), end)


def _telemetry(soak: "Soak", rng: Random) -> Begun:
    """What an agent, or somebody in its place, sends."""
    lines = [
        json.dumps({"load": "a-1", "cpu": rng.random()}),
        json.dumps({"load": "a-1", "cpu": rng.choice((-1.0, 2.0, 1e308))}),
        '{"load": "a-1", "cpu": NaN}',
        '{"load": ["a-1"]}',
        "[" * rng.randint(1, 3000),
        rng.randbytes(rng.randint(0, 600)).decode("latin-1"),
        json.dumps({"load": f"nobody-{rng.randint(0, 99)}", "cpu": 0.5}),
    ]
    sent = rng.randint(1, 200)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for _ in range(sent):
            try:
                sender.sendto(rng.choice(lines).encode(), str(soak.folder / "run" / "telemetry.sock"))
            except OSError:
                break  # its queue is full, or no daemon runs: so it is for an agent
    return Begun("telemetry", f"{sent} lines of telemetry")


def _wall_clock(soak: "Soak", rng: Random) -> Begun:
    step_s = rng.choice((-3600, 3600, -86_400 * 365, 1, -1, 37))
    soak.rack.clock.utc_offset_ns += step_s * NS_PER_S
    return Begun("clock", f"the wall clock is set by {step_s} s")


def _disk_full(soak: "Soak", rng: Random) -> Begun:
    """No file may grow: every write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    soak.checks.disk_full = True

    def end() -> None:
        soak.checks.disk_full = False
        soak.checks.disk_free_ns = soak.clock.mono_ns()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return Begun("disk", "the disk is full", rng.uniform(1.0, 30.0), end)


def _kill_switch(soak: "Soak", rng: Random) -> Begun:
    """As an operator does it by hand; a pipe or a folder is as good as a file."""
    path = soak.kill_file()
    if not os.path.lexists(path):
        rng.choice((path.mkdir, path.touch, lambda: path.symlink_to("nowhere")))()
    return Begun("kill", "kill switch by hand", rng.uniform(0.3, 15.0), soak.release)


def _kill_command(soak: "Soak", rng: Random) -> Begun:
    soak.command({"command": "kill", "reason": "soak"})
    return Begun("kill", "operator: kill", rng.uniform(0.3, 15.0), soak.release)


def _kill_signal(soak: "Soak", rng: Random) -> Begun:
    soak.loop.deliver(signal.SIGUSR1)
    return Begun("kill", "SIGUSR1", rng.uniform(0.3, 15.0), soak.release)


RELOADS = {  # what somebody makes of the configuration, good and bad
    "lower_hold_s = 5.0": ("lower_hold_s = 3.0", "lower_hold_s = -1", "lower_hold_s = 'soon'", "lower_hold = 5.0"),
    "rating_w = 6400.0": ("rating_w = 6000.0", "rating_w = 0.0", "rating_w = 500.0"),
    "static_safe_w = 380.0": ("static_safe_w = 360.0", "static_safe_w = 9000.0"),
    "[rack]": ("[rack", "[rick]", ""),
    'primary = "mixture"': ('primary = "ewma"', 'primary = "oracle"'),
    OPTED_OUT.replace("false", "true"): (OPTED_OUT,),
    'id = "pdu-c"': ('id = "pdu-a"', 'id = "pdu-d"'),
}


def _reload(soak: "Soak", rng: Random) -> Begun | None:
    if soak.checks.disk_full or soak.checks.standing.reloading:
        return None  # nobody could write the file, or the one before is still being read
    before = rng.choice(list(RELOADS))
    after = rng.choice(RELOADS[before])
    path = soak.folder / "config.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    soak.hang_up()

    def end() -> None:
        soak.write_config()
        soak.hang_up()

    return Begun("config", f"SIGHUP with {after!r} in place of {before!r}", rng.uniform(1.0, 15.0), end)


def _hang(soak: "Soak", rng: Random) -> Begun:
    seconds = rng.choice((0.3, 1.0, 3.0, 12.0)) * rng.uniform(0.8, 1.2)
    soak.hang(seconds)
    return Begun("loop", f"the control loop stood still for {seconds:.1f} s")


def _sink_away(soak: "Soak", rng: Random) -> Begun:
    soak.rack.sink.away = True

    def end() -> None:
        soak.rack.sink.away = False

    return Begun("sink", "the trap sink is away", rng.uniform(1.0, 60.0), end)


def _second_daemon(soak: "Soak", rng: Random) -> Begun:
    """Somebody starts another one on the same PDUs: with our folders, or with folders of its own."""
    own = rng.random() < 0.5
    soak.start_second(own_folders=own)
    return Begun("second", f"another daemon begins, with {'folders of its own' if own else 'our folders'}")


def _drill(soak: "Soak", rng: Random) -> Begun:
    device, seconds = rng.choice([*PDUS, *soak.rack.boards]), rng.uniform(0.5, 12.0)
    closed_loop = rng.random() < 0.8  # else it is refused
    request = {"command": "drill", "device": device, "for_s": seconds, "closed_loop": closed_loop}
    soak.command(request)
    return Begun(f"drill {device}", f"operator: {request}", seconds, _nothing)


def _model(soak: "Soak", rng: Random) -> Begun:
    """A model takes over, goes back, or is damaged and must be refused."""
    request = rng.choice((
        {"command": "model_promote", "name": CANDIDATE, "reason": "soak"},
        {"command": "model_promote", "name": "shipped", "reason": "soak"},
        {"command": "model_promote", "name": DAMAGED, "reason": "soak"},
        {"command": "model_roll_back", "reason": "soak"},
    ))  # fmt: skip
    soak.command(request, refused=request.get("name") == DAMAGED)
    return Begun("model", f"operator: {request}")


def _damaged(soak: "Soak", rng: Random) -> Begun | None:
    """A power cut that leaves a file of the state folder damaged: of what has a copy, one of the two."""
    names = rng.sample(SPOILED, rng.randint(1, 3))
    if not soak.end_life("SIGKILL"):
        return None
    told = [word for name in names if (word := soak.spoil(name, rng)) is not None]
    return Begun("life", f"power cut, damaged: {told}")


def _command(make: Callable[[Random], dict[str, object]]) -> Fault:
    def begin(soak: "Soak", rng: Random) -> Begun:
        request = make(rng)
        soak.command(request)
        return Begun("operator", f"operator: {request}")

    return begin


def _outlet(rng: Random) -> str:
    return rng.choice([f"pdu-a/{n}" for n in range(1, 6)] + [f"pdu-b/{n}" for n in range(1, 5)])


def _mode(soak: "Soak", rng: Random) -> Begun:
    soak.command({"command": "mode", "mode": "advisory"})
    return Begun(
        "mode", "operator: advisory", rng.uniform(1.0, 15.0),
        lambda: soak.command({"command": "mode", "mode": "closed_loop"}),
    )  # fmt: skip


def _restore(soak: "Soak", rng: Random) -> Begun:
    outlets = sorted({_outlet(rng) for _ in range(rng.randint(1, 3))})
    soak.command({"command": "limit_restore", "outlets": outlets})
    return Begun(
        "mode", f"operator: restore {outlets}", rng.uniform(1.0, 15.0),
        lambda: soak.command({"command": "mode", "mode": "closed_loop"}),
    )  # fmt: skip


def _restart(soak: "Soak", rng: Random) -> Begun:
    soak.end_life("SIGTERM")
    return Begun("life", "SIGTERM")


def _kill(soak: "Soak", rng: Random) -> Begun:
    soak.end_life("SIGKILL")
    return Begun("life", "SIGKILL")


FAULTS: dict[str, tuple[float, Fault]] = {  # name -> how often, beside the others
    "pdu_silent": (2.0, _deaf),
    "pdu_answers_lost": (1.0, _pdu_fault(PDUS, (0.3, 6.0), drop=lambda _: -1)),
    "pdu_some_answers_lost": (1.0, _pdu_fault(PDUS, (0.1, 1.0), drop=lambda rng: rng.randint(1, 4))),
    "pdu_reboot": (1.0, _pdu_reboot),
    "pdu_ignores_sets": (1.0, _pdu_fault(WRITTEN, (0.5, 8.0), ignore_set=lambda _: True)),
    "pdu_clamps": (1.0, _pdu_fault(WRITTEN, (0.5, 8.0), clamp_w=lambda rng: float(rng.randint(150, 600)))),
    "pdu_refuses": (1.0, _pdu_fault(WRITTEN, (0.5, 8.0), refuse=lambda rng: (rng.randint(0, 4),))),
    "pdu_refuses_but_applies": (1.0, _pdu_fault(WRITTEN, (0.5, 8.0), refuse_but_apply=lambda _: True)),
    "pdu_read_only": (0.5, _pdu_fault(WRITTEN, (0.5, 4.0), read_only=lambda _: True)),
    "pdu_too_big": (1.0, _pdu_fault(PDUS, (1.0, 20.0), too_big_above=lambda rng: rng.randint(1, 8))),
    "pdu_slow": (1.0, _pdu_fault(PDUS, (1.0, 10.0), delay_s=lambda rng: rng.uniform(0.05, 0.6))),
    "pdu_duplicates": (1.0, _pdu_fault(PDUS, (1.0, 20.0), duplicate=lambda _: True)),
    "pdu_wrong_address": (0.5, _pdu_fault(PDUS, (0.5, 4.0), wrong_address=lambda _: True)),
    "pdu_forged": (1.0, _forged),
    "foreign_writer": (1.5, _foreign),
    "board_unplugged": (1.5, _unplugged),
    "board_reboot": (1.0, _board(_board_reboot)),
    "board_frames_lost": (2.0, _frames("drop_frames", 40)),
    "board_frames_corrupt": (2.0, _frames("corrupt", 20)),
    "board_frames_repeated": (1.0, _frames("repeat", 20)),
    "board_garbage": (1.0, _frames("garbage", 4000)),
    "board_stalls": (1.0, _board(_stall)),
    "sensor_saturated": (1.0, _channel("saturate")),
    "sensor_silent": (1.0, _channel("silence")),
    "sensor_stuck": (1.0, _channel("stick")),
    "load_step": (4.0, _load_step),
    "feed_loss": (0.7, _feed_loss),
    "telemetry": (1.0, _telemetry),
    "wall_clock": (0.5, _wall_clock),
    "disk_full": (0.5, _disk_full),
    "kill_switch": (0.7, _kill_switch),
    "hang": (0.7, _hang),
    "mode": (0.5, _mode),
    "restore": (0.5, _restore),
    "ceiling": (1.0, _command(lambda rng: {
        "command": "limit_set", "outlet": _outlet(rng), "limit_w": rng.uniform(50.0, 700.0),
        "ttl_s": rng.uniform(1.0, 30.0), "reason": "soak"})),
    "hint": (1.0, _command(lambda rng: {
        "command": "hint", "load": f"a-{rng.randint(1, 5)}", "delta_w": rng.uniform(-300.0, 400.0),
        "in_s": rng.uniform(0.0, 10.0), "for_s": rng.uniform(1.0, 60.0)})),
    "odd_command": (1.0, _command(lambda rng: rng.choice([
        {"command": "limit_set", "outlet": "nobody", "limit_w": -1, "ttl_s": "x"}, {"command": "status"},
        {"command": "acknowledge"}, {"command": "hint", "load": 7}, {"command": "mode", "mode": None},
        {"command": "model_promote", "name": "../../etc"}, {"command": "no such"}]))),
    "kill_command": (0.4, _kill_command),
    "kill_signal": (0.3, _kill_signal),
    "reload": (1.0, _reload),
    "trap_sink": (0.7, _sink_away),
    "second_daemon": (0.5, _second_daemon),
    "drill": (0.7, _drill),
    "model": (0.7, _model),
    "damaged_files": (0.3, _damaged),
    "restart": (0.5, _restart),
    "sigkill": (0.5, _kill),
}  # fmt: skip
