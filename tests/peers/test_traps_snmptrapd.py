"""Traps and informs against Debian's snmptrapd, decoded with our MIB; the MIB against smilint and net-snmp."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from benches import load_bench
from scenario_rack import Daemon, Place, RackProcess, cli, running

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.schema import TrapSink
from rpi_daemon.drivers.traps.engine import EngineIdentity, next_boot
from rpi_daemon.drivers.traps.mib import mib_path, mib_text, notification_oid, varbinds
from rpi_daemon.drivers.traps.sender import SinkOptions, TrapSender
from rpi_daemon.errors import AuthError, DeviceError
from rpi_daemon.records import Notice, Severity
from rpi_daemon.trap_queue import TrapQueue
from rpi_daemon.trap_task import Pace, SinkTask

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0  # for an acknowledgement that is to come
ENGINE_ID = bytes.fromhex("80007ed9050102030405060708")


snmptrapd = load_bench("snmptrapd")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not snmptrapd.available(), reason="snmptrapd is not installed"),
]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Any]:
    folder = tmp_path / "receiver"
    folder.mkdir()
    with snmptrapd.Snmptrapd(folder, engines=[ENGINE_ID]) as running_receiver:
        yield running_receiver


def options(receiver: Any, **changes: Any) -> SinkOptions:
    fields: dict[str, Any] = {
        "host": receiver.host, "port": receiver.port, "user": snmptrapd.USER, "auth_key": snmptrapd.AUTH_KEY,
        "priv_key": snmptrapd.PRIV_KEY, "community": snmptrapd.COMMUNITY, "timeout_s": PATIENCE_S,
    }  # fmt: skip
    return SinkOptions(**(fields | changes))


def overload(i: int = 1) -> Notice:
    return Notice(
        "overload_predicted", "raised", Severity.WARNING, "overload_predicted:breaker-1", "breaker-1",
        f"breaker-1 will carry 3750 W in 3 s ({i})", time.time_ns(), value=3750.25, threshold=3680.0, unit="W", seconds=3,
    )  # fmt: skip


def send(options: SinkOptions, boots: int, *notices: Notice, age_s: int = 0) -> None:
    async def body() -> None:
        sender = TrapSender(options, EngineIdentity(ENGINE_ID, boots, age_s))
        try:
            await sender.open()
            for i, notice in enumerate(notices, start=1):
                await sender.send(
                    notification_oid(notice, 32_473), varbinds(notice, "rack-7", 32_473, sequence=i, dropped=0)
                )
        finally:
            await sender.close()

    asyncio.run(body())


@pytest.mark.parametrize("inform", [True, False], ids=["inform", "trap"])
@pytest.mark.parametrize(
    "changes",
    [{"version": "2c"}, {}, {"user": "rpi-sha1", "auth": "SHA-1"}, {"user": "rpi-sha512", "auth": "SHA-512"}],
    ids=["v2c", "SHA-256", "SHA-1", "SHA-512"],
)
def test_every_version_arrives_with_names_and_values(receiver: Any, changes: dict[str, Any], inform: bool) -> None:
    sent = overload(1)
    send(options(receiver, inform=inform, **changes), 7, sent, overload(2))
    first, second = receiver.until(2)
    time_of = first.pop("rpidTime")
    assert time_of.startswith(time.strftime("%Y-%-m-%-d,%-H:%-M:", time.gmtime(sent.t_utc_ns / 1e9)))
    assert time_of.endswith(",+0:0")
    assert first == {
        "trap": "rpidOverloadPredicted",
        **{k: v for k, v in first.items() if k.startswith("internet")},  # sysUpTime: SNMPv2-MIB is a stand-in here
        "rpidSequence": "1",
        "rpidDropped": "0",
        "rpidRack": "rack-7",
        "rpidSeverity": "warning(2)",
        "rpidAlarmState": "raised(1)",
        "rpidAlarmId": "overload_predicted:breaker-1",
        "rpidSubject": "breaker-1",
        "rpidText": "breaker-1 will carry 3750 W in 3 s (1)",
        "rpidValue": "3750.250",
        "rpidThreshold": "3680.000",
        "rpidUnit": "W",
        "rpidSecondsToOverload": "3 seconds",
    }
    assert second["rpidSequence"] == "2"


def test_v3_traps_are_taken_from_a_later_start_and_not_from_an_earlier_one(receiver: Any) -> None:
    for boots in (7, 8, 6, 9):
        send(options(receiver, inform=False), boots, overload(boots))
        send(options(receiver), boots, overload(100))  # acknowledged: the trap before it was looked at
    taken = [item["rpidText"][-3:] for item in receiver.notifications()]
    assert [text for text in taken if text != "00)"] == ["(7)", "(8)", "(9)"]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"auth_key": "not the key"}, AuthError, "another auth_key for 'rpi', or other than SHA-256"),
        ({"auth": "SHA-512"}, AuthError, "another auth_key for 'rpi', or other than SHA-512"),
        ({"user": "nobody"}, AuthError, "knows no user 'nobody'"),
        (
            {"priv_key": "not the key", "timeout_s": 1.0},
            DeviceError,
            "no acknowledgement in 1 s; .* or has another priv_key",
        ),
        (
            {"version": "2c", "community": "no", "timeout_s": 1.0},
            DeviceError,
            "no acknowledgement in 1 s; .* or has another community",
        ),
    ],
    ids=["auth key", "auth", "user", "priv key", "community"],
)
def test_wrong_credentials_are_named_and_nothing_goes_in_plain_text(
    receiver: Any, changes: dict[str, Any], kind: type[DeviceError], words: str
) -> None:
    with pytest.raises(kind, match=rf"127\.0\.0\.1: .*{words}"):
        send(options(receiver, **changes), 7, overload())
    assert receiver.notifications() == []


def test_a_receiver_that_is_not_there_or_has_no_name(receiver: Any) -> None:
    receiver.stop()
    with pytest.raises(DeviceError, match=r"no acknowledgement in 1 s; it is down or does not listen on port \d+"):
        send(options(receiver, timeout_s=1.0), 7, overload())
    with pytest.raises(DeviceError, match=r"nowhere\.invalid"):
        send(options(receiver, host="nowhere.invalid"), 7, overload())


def test_a_start_that_no_disk_counted_is_heard_because_its_time_goes_on(receiver: Any) -> None:
    """Traps, whose time the receiver judges; 150 s back is too old (RFC 3414 3.2.7)."""
    for i, age_s in ((1, 500), (2, 510), (3, 0), (4, 520)):
        send(options(receiver, inform=False), 7, overload(i), age_s=age_s)
    assert [item["rpidText"][-3:] for item in receiver.until(3)] == ["(1)", "(2)", "(4)"]


class Delivery:
    """A queue and one receiver's task, as the daemon has them, at a rate for tests."""

    def __init__(self, folder: Path, receiver: Any, identity: EngineIdentity) -> None:
        sink = TrapSink(id="sink", host=receiver.host, port=receiver.port, user=snmptrapd.USER, timeout_s=0.3)
        self.queue = TrapQueue(folder / "queue.sqlite", ["sink"], 20_000)
        sender = TrapSender(options(receiver, timeout_s=0.3), identity)
        self.task = SinkTask(
            sink, sender, self.queue, Pace(100_000, 0.0), SystemClock(), rack="rack-7", enterprise=32_473
        )

    async def __aenter__(self) -> "Delivery":
        await self.queue.open()
        await self.task.open()
        self.running = asyncio.create_task(self.task.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.task.close()
        await self.queue.close()

    async def tell(self, first: int, last: int) -> None:
        await self.queue.put({"sink": [overload(i) for i in range(first, last + 1)]}, {})
        self.task.wake()

    async def until(self, done: int) -> None:
        async with asyncio.timeout(120.0):  # each is saved as done: a slow disk
            while self.queue.sinks["sink"].done < done:  # noqa: ASYNC110  another process works meanwhile
                await asyncio.sleep(0.02)


def test_a_receiver_that_is_killed_and_comes_back_has_everything_in_order(receiver: Any, tmp_path: Path) -> None:
    async def body() -> int:
        async with Delivery(tmp_path, receiver, next_boot(tmp_path, time.time_ns(), 32_473, "rack-7")) as delivery:
            await delivery.tell(1, 150)
            await delivery.until(40)
            receiver.stop(kill=True)
            await delivery.tell(151, 300)
            while delivery.task.reachable is not False:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert delivery.queue.sinks["sink"].waiting > 150
            receiver.start()
            await delivery.until(300)
            assert delivery.task.status()["reachable"] is True
            unacknowledged = delivery.task.sent - delivery.task.acknowledged
        # a start of our own: another boots, the same engine; informs go on
        async with Delivery(tmp_path, receiver, next_boot(tmp_path, time.time_ns(), 32_473, "rack-7")) as delivery:
            await delivery.tell(301, 320)
            await delivery.until(320)
            return unacknowledged + delivery.task.sent - delivery.task.acknowledged

    unacknowledged = asyncio.run(body())
    found = receiver.sequences()
    assert sorted(set(found)) == list(range(1, 321))  # nothing lost
    assert found == sorted(found)  # in order
    assert len(found) <= 320 + unacknowledged  # a repetition where an acknowledgement was lost
    texts = [item["rpidText"] for item in receiver.notifications()]
    assert texts[-1].endswith("(320)")


ALARMS = {
    "kill_switch": "rpidKillSwitch",
    "overload_predicted:breaker-a": "rpidOverloadPredicted",
    "pdu_unreachable:pdu-a": "rpidPduUnreachable",
}


def test_the_daemon_tells_of_its_life(receiver: Any, tmp_path: Path) -> None:
    """Start, an alarm raised and cleared, a test past the queue, stop; all on real wires, v3 informs."""
    place = Place(tmp_path)
    config = place.write()
    for name, text in (("trap-auth.key", snmptrapd.AUTH_KEY), ("trap-priv.key", snmptrapd.PRIV_KEY)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    with config.open("a") as f:
        f.write(
            "\n[traps]\nper_minute = 1200\nheartbeat_s = 1.0\n"
            f'\n[[trap_sink]]\nid = "facility"\nhost = "{receiver.host}"\nport = {receiver.port}\n'
            f'timeout_s = {PATIENCE_S}\nuser = "{snmptrapd.USER}"\n'
            'auth_key_file = "trap-auth.key"\npriv_key_file = "trap-priv.key"\n'
        )
    (tmp_path / "state").mkdir(mode=0o750)
    with running(lambda: RackProcess(config)) as rack:
        alone = cli(config, "traps", "test", "--json")
        assert alone.returncode == 0, alone.stderr
        (tmp_path / "trap-auth.key").write_text("not the key of that user")
        refused = cli(config, "traps", "test")
        assert (refused.returncode, "facility: not acknowledged, given up after" in refused.stdout) == (5, True)
        assert "another auth_key" in refused.stdout
        (tmp_path / "trap-auth.key").write_text(snmptrapd.AUTH_KEY)
        with running(lambda: Daemon(config)) as daemon:
            daemon.normal()
            answer = daemon.ask("traps_test", sink="facility")["sinks"]
            assert [(item["acknowledged"], item["error"]) for item in answer] == [(True, None)]
            daemon.ask("kill", reason="test")
            daemon.until(lambda s: any(a["id"] == "kill_switch" for a in s["alarms"]), "the alarm")
            assert cli(config, "resume").returncode == 0
            for n in range(1, 7):  # announced work: the forecast passes 25 A before anything is drawn
                daemon.ask("hint", load=f"a-{n}", delta_w=900.0, in_s=4.0, for_s=1.0)
            daemon.until(lambda s: any(a["id"] == "overload_predicted:breaker-a" for a in s["alarms"]), "the alarm")
            rack.ask(pdu="pdu-a", faults={"drop": -1})
            daemon.until(lambda s: any(a["id"] == "pdu_unreachable:pdu-a" for a in s["alarms"]), "the alarm")
            rack.ask(pdu="pdu-a", faults={})
            # alarms of a machine that stands still may come and go
            status = daemon.until(lambda s: ALARMS.keys().isdisjoint(a["id"] for a in s["alarms"]), "they are cleared")
            (sink,) = status["trap_sinks"]
            assert (sink["reachable"], sink["insecure"], sink["dropped"]) == (True, False, 0)
            assert daemon.stop() == 0
        if receiver.notifications()[-1]["trap"] != "rpidStopped":  # a busy machine: it waits on disk for the next start
            with running(lambda: Daemon(config, name="later")) as later:
                later.until(lambda s: s["trap_sinks"][0]["queued"] == 0, "what waited is told")
    found = first_life(receiver.notifications())
    told = [(item["trap"], item["rpidAlarmId"]) for item in found]
    assert told[:2] == [("rpidTest", ""), ("rpidStarted", "")]
    assert told[-1] == ("rpidStopped", "")
    predicted = next(
        item for item in found if (item["trap"], item["rpidSubject"]) == ("rpidOverloadPredicted", "breaker-a")
    )
    assert predicted["rpidSecondsToOverload"] in [f"{n} seconds" for n in range(1, 6)]
    assert (predicted["rpidUnit"], predicted["rpidThreshold"]) == ("A", "25.000")
    assert float(predicted["rpidValue"]) > 25.0
    for alarm, kind in ALARMS.items():
        raised = [trap for trap, name in told if name == alarm]
        in_turn = [kind, f"{kind}Cleared"] * len(raised)  # more than once where the machine is busy
        assert raised == in_turn[: len(raised)]
        assert len(raised) >= 2
    assert ("rpidHeartbeat", "") in told
    assert ("rpidStateChange", "") in told
    sequences = [n for n in (int(item["rpidSequence"]) for item in found) if n > 0]
    assert sequences == list(range(1, len(sequences) + 1))
    assert {item["rpidRack"] for item in found} == {"scenario"}


def first_life(found: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Up to the first farewell, each once: a later start may have had to tell the end, some of it again."""
    once = {(item["rpidSequence"], item["rpidTime"]): item for item in reversed(found)}
    told = [item for item in found if once[item["rpidSequence"], item["rpidTime"]] is item]
    stops = [place for place, item in enumerate(told, start=1) if item["trap"] == "rpidStopped"]
    return told[: stops[0]] if stops else told


def mibs(folder: Path | None = None) -> str:
    return f"{snmptrapd.STAND_IN_MIBS}:{folder or mib_path().parent}"


@pytest.mark.parametrize("enterprise", [32_473, 4711])
def test_the_mib_is_clean(tmp_path: Path, enterprise: int) -> None:
    if shutil.which("smilint") is None:
        pytest.skip("smilint is not installed")
    path = tmp_path / "RPI-DAEMON-MIB.txt"
    path.write_text(mib_text(enterprise))
    (tmp_path / "smi.conf").write_text(f"path {snmptrapd.STAND_IN_MIBS}\n")
    done = subprocess.run(
        ["smilint", "-c", str(tmp_path / "smi.conf"), "-s", "-l", "9", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_net_snmp_translates_every_notification(tmp_path: Path) -> None:
    from rpi_daemon.drivers.traps.mib import ALARMS, CLEARED, EVENTS

    (tmp_path / "RPI-DAEMON-MIB.txt").write_text(mib_text(4711))
    oids = [
        f"1.3.6.1.4.1.4711.1.0.{n}"
        for n in (*ALARMS.values(), *(n + CLEARED for n in ALARMS.values()), *EVENTS.values())
    ]
    done = subprocess.run(
        ["snmptranslate", "-m", "ALL", "-M", mibs(tmp_path), *oids], capture_output=True, text=True,
        env={"SNMP_PERSISTENT_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stderr in ("", f"Created directory: {tmp_path}/cert_indexes\n")
    names = done.stdout.split()
    assert len(names) == len(set(names)) == len(oids)
    assert all(name.startswith("RPI-DAEMON-MIB::rpid") for name in names)
    assert names[0] == "RPI-DAEMON-MIB::rpidOverloadPredicted"


def test_bench_short_form() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "informs.py", "--quick", "--json"], capture_output=True, text=True, timeout=240,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ratios = json.loads(done.stdout.splitlines()[-1])["ratios"]
    assert (ratios["lost"], ratios["out_of_order"], ratios["left"]) == (0.0, 0.0, 0.0)
