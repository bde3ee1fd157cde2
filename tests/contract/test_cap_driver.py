"""What every cap driver must do, over real loopback TLS: Redfish on the simulated BMC, both mechanisms, both dialects."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rpi_daemon.clock import ManualClock
from rpi_daemon.drivers.caps.bmc_sim import (
    DMTF,
    MAX_SESSIONS,
    OPENBMC,
    BmcFaults,
    BmcShape,
    BmcSimulator,
    _server_context,
    make_certificate,
)
from rpi_daemon.drivers.caps.documents import ENVIRONMENT_METRICS, POWER_CONTROL
from rpi_daemon.drivers.caps.redfish import RedfishCap, RedfishOptions
from rpi_daemon.drivers.caps.session import RedfishEndpoint
from rpi_daemon.errors import AuthError, ConfigError, DeviceError
from rpi_daemon.records import CapReading

CERTIFICATE = make_certificate("127.0.0.1")
START_NS = 10**9
EM, PC = (ENVIRONMENT_METRICS,), (POWER_CONTROL,)
SHAPES = {
    "dmtf-new": BmcShape(mechanisms=EM),
    "dmtf-old": BmcShape(mechanisms=PC),
    "dmtf-both": BmcShape(),
    "openbmc": BmcShape(dialect=OPENBMC),
    "nodes": BmcShape(mechanisms=PC, power_controls=3),
}
every = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_mechanism = pytest.mark.parametrize("shape", [SHAPES["dmtf-new"], SHAPES["dmtf-old"]], ids=["new", "old"])


class Bench:
    """One simulated BMC with the driver on it; time moves when the driver waits."""

    def __init__(self, simulator: BmcSimulator, cap: RedfishCap, clock: ManualClock) -> None:
        self.simulator = simulator
        self.cap = cap
        self.clock = clock
        self.kept: list[float | None] = []  # what the server was told to keep

    @property
    def passed_s(self) -> float:
        return (self.clock.mono_ns() - START_NS) / 1e9

    def fault(self, **faults: Any) -> None:
        self.simulator.faults = BmcFaults(**faults)


@asynccontextmanager
async def on_wire(shape: BmcShape | None = None, *, opened: bool = True, **options: Any) -> AsyncIterator[Bench]:
    clock = ManualClock(START_NS)

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    simulator = BmcSimulator(
        shape=shape or BmcShape(), certificate=CERTIFICATE, clock=lambda: clock.mono_ns() / 1e9, power_w=lambda: 412.34
    )
    async with simulator:
        keys = {"tls_fingerprint": CERTIFICATE.fingerprint, "user": "root", "password": "calvin", "timeout_s": 5.0}
        of_driver = {name: options.pop(name) for name in ("resource", "settle_s") if name in options}
        endpoint = RedfishEndpoint("127.0.0.1", simulator.port, **{**keys, **options})
        cap = RedfishCap(RedfishOptions(endpoint, **of_driver), clock, sleep)
        bench = Bench(simulator, cap, clock)
        simulator.set_cap = bench.kept.append
        try:
            if opened:
                await cap.open()
            yield bench
        finally:
            await cap.close()
            await cap.close()  # twice is allowed


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20.0))


# -- what it is, what it reads


@every
def test_identity_and_reading(shape: BmcShape) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            identity = await b.cap.identify()
            assert (identity.vendor, identity.model) == ("Contoso", "3500RX")
            assert (identity.serial, identity.firmware) == ("437XR1138R2", "1.45.455b66-rev4")
            newer = ENVIRONMENT_METRICS in shape.mechanisms
            assert identity.mechanism == (ENVIRONMENT_METRICS if newer else POWER_CONTROL)
            assert (identity.lowest_w, identity.highest_w) == ((200.0, 800.0) if newer else (None, None))
            assert identity.on_exceed == (None if newer else "LogEventOnly")
            reading = await b.cap.read()
            assert (reading.power_w, reading.cap_w, reading.active) == (412.3, None, False)
            b.fault(no_power=True)
            assert (await b.cap.read()).power_w is None

    run(scene)


@every
def test_a_cap_is_set_rounded_down_read_back_and_taken_off(shape: BmcShape) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.simulator.held.enabled = shape.dialect == OPENBMC and ENVIRONMENT_METRICS not in shape.mechanisms
            outcome = await b.cap.apply(300.99)
            assert (outcome.asked_w, outcome.read_back_w, outcome.verified, outcome.refused) == (
                300.99,
                300.0,
                True,
                None,
            )
            assert b.kept == [300.0]
            reading = await b.cap.read()
            assert (reading.cap_w, reading.active) == (300.0, True)
            changes = b.simulator.counters["changes"]
            again = await b.cap.apply(300.0)
            assert (again.verified, again.t_sent_ns) == (True, 0)
            assert b.simulator.counters["changes"] == changes  # it stood so already
            off = await b.cap.apply(None)
            assert (off.read_back_w, off.verified) == (None, True)
            assert b.kept == [300.0, None]
            assert (await b.cap.read()).active is False

    run(scene)


@every
@pytest.mark.parametrize("was_on", [True, False])
def test_the_found_cap_comes_back_exactly(shape: BmcShape, was_on: bool) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.simulator.held.set_point, b.simulator.held.enabled = 555.0, was_on
            found = await b.cap.read()
            assert found.cap_w == (555.0 if was_on else None)
            assert (await b.cap.apply(400.0)).verified
            again = replace(found, raw=tuple(map(tuple, [list(pair) for pair in found.raw])))  # as from a JSON file
            outcome = await b.cap.restore(again)
            assert (outcome.verified, outcome.read_back_w) == (True, found.cap_w)
            assert (await b.cap.read()).raw == found.raw

    run(scene)


def test_a_cap_that_was_off_without_set_point_comes_back_off() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["openbmc"]) as b:
            found = await b.cap.read()
            assert found.raw == (("SetPoint", None), ("ControlMode", "Disabled"))
            assert (await b.cap.apply(400.0)).verified
            assert (await b.cap.restore(found)).verified
            assert b.simulator.held.cap_w is None

    run(scene)


def test_a_set_point_that_the_server_itself_refuses_does_not_keep_the_cap_on() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["dmtf-new"]) as b:
            b.simulator.held.set_point = 150.0  # off, and below the lowest, as some firmware ships it
            found = await b.cap.read()
            assert (await b.cap.apply(400.0)).verified
            outcome = await b.cap.restore(found)
            assert (outcome.verified, outcome.read_back_w) == (True, None)
            assert outcome.refused is not None
            assert "PropertyValueOutOfRange: The value 150" in outcome.refused
            assert b.simulator.held.cap_w is None
            assert (await b.cap.apply(400.0)).verified
            forbidden = await b.cap.restore(found, lambda: False)
            assert (forbidden.verified, b.simulator.held.cap_w) == (False, 400.0)

    run(scene)


def test_what_was_found_on_another_mechanism_is_not_put_back() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["dmtf-old"]) as b:
            found = CapReading(0, None, 500.0, True, (("SetPoint", 500.0), ("ControlMode", "Automatic")))
            with pytest.raises(DeviceError, match="has SetPoint, ControlMode, the server has LimitInWatts"):
                await b.cap.restore(found)
            assert b.simulator.counters["PATCH"] == 0

    run(scene)


# -- bounds, slowness, refusals


@pytest.mark.parametrize(("asked_w", "word"), [(199.99, "below the lowest"), (801.0, "above the highest")])
def test_outside_the_servers_bounds_nothing_is_sent(asked_w: float, word: str) -> None:
    async def scene() -> None:
        async with on_wire() as b:
            assert (await b.cap.apply(500.0)).verified
            outcome = await b.cap.apply(asked_w)
            assert (outcome.verified, outcome.read_back_w, outcome.t_verified_ns) == (False, 500.0, None)
            assert outcome.t_sent_ns == 0
            assert outcome.refused is not None
            assert word in outcome.refused
            assert b.simulator.counters["PATCH"] == 1

    run(scene)


@pytest.mark.parametrize("cap_w", [0.0, -5.0, float("nan"), float("inf")])
def test_no_power_is_no_cap(cap_w: float) -> None:
    async def scene() -> None:
        async with on_wire() as b:
            with pytest.raises(ValueError, match="above 0 W"):
                await b.cap.apply(cap_w)

    run(scene)


@each_mechanism
def test_a_slow_server_is_waited_for(shape: BmcShape) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.fault(settle_s=4.0)
            outcome = await b.cap.apply(300.0)
            assert outcome.verified
            assert outcome.t_verified_ns is not None
            assert 4.0 <= (outcome.t_verified_ns - outcome.t_sent_ns) / 1e9 < 4.6

    run(scene)


@each_mechanism
def test_one_that_says_yes_and_does_nothing_is_not_verified(shape: BmcShape) -> None:
    async def scene() -> None:
        async with on_wire(shape, settle_s=6.0) as b:
            b.fault(ignores=True)
            outcome = await b.cap.apply(300.0)
            assert (outcome.verified, outcome.read_back_w, outcome.t_verified_ns) == (False, None, None)
            assert b.passed_s == pytest.approx(6.0, abs=0.6)

    run(scene)


def test_a_clamped_cap_is_told_as_what_it_is_and_soon() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["dmtf-old"]) as b:
            b.fault(clamp_w=350.0)
            outcome = await b.cap.apply(300.0)
            assert (outcome.asked_w, outcome.read_back_w, outcome.verified) == (300.0, 350.0, False)
            assert b.passed_s < 2.0

    run(scene)


@every
def test_a_task_is_followed(shape: BmcShape) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.fault(task_s=2.0)
            outcome = await b.cap.apply(300.0)
            assert (outcome.verified, outcome.read_back_w) == (True, 300.0)
            assert outcome.t_verified_ns is not None
            assert outcome.t_verified_ns - outcome.t_sent_ns >= 2e9

    run(scene)


def test_a_task_that_never_ends_is_given_up() -> None:
    async def scene() -> None:
        async with on_wire(settle_s=5.0) as b:
            b.fault(task_s=1000.0)
            outcome = await b.cap.apply(300.0)
            assert (outcome.verified, outcome.read_back_w) == (False, None)
            assert b.passed_s == pytest.approx(5.0, abs=0.6)

    run(scene)


def test_a_property_that_was_not_changed_is_told_in_its_words() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["dmtf-new"], settle_s=1.0) as b:
            b.fault(half_says=True)
            outcome = await b.cap.apply(300.0)
            assert (outcome.verified, outcome.refused) == (
                False,
                "the BMC did not change it (PropertyNotUpdated: Not now)",
            )

    run(scene)


def test_a_change_given_up_half_way_leaves_a_driver_that_works() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            assert (await b.cap.apply(500.0)).verified
            b.fault(delay_s=0.3)
            changing = asyncio.create_task(b.cap.apply(300.0))
            await asyncio.sleep(0.1)
            changing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await changing
            b.fault()
            assert (await b.cap.apply(250.0)).verified
            assert len(b.simulator.sessions) == 1

    run(scene)


def test_a_task_that_fails_is_an_error() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            b.fault(task_s=1.0, task_fails=True)
            with pytest.raises(DeviceError, match="HTTP 500: InternalError: The power manager did not answer"):
                await b.cap.apply(300.0)

    run(scene)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"cap_disabled": True}, "power capping is disabled on the BMC; enable it there first (ActionNotSupported: "),
        ({"unlicensed": True}, "the licence for power capping is missing on the BMC (OemLicenseNotPassed: "),
        ({"forbidden": True}, "this user may not change it (InsufficientPrivilege: "),
    ],
)
@each_mechanism
def test_a_refusal_is_told_in_words(shape: BmcShape, faults: dict[str, Any], words: str) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.fault(**faults)
            outcome = await b.cap.apply(300.0)
            assert outcome.refused is not None
            assert outcome.refused.startswith(words)
            assert (outcome.verified, outcome.read_back_w, b.kept) == (False, None, [])

    run(scene)


def test_openbmc_without_environment_metrics_needs_capping_enabled_first() -> None:
    async def scene() -> None:
        async with on_wire(BmcShape(dialect=OPENBMC, mechanisms=PC)) as b:
            refused = (await b.cap.apply(300.0)).refused
            assert refused is not None
            assert "enable it there first" in refused
            b.simulator.held.enabled, b.simulator.held.set_point = True, 800.0
            assert (await b.cap.apply(300.0)).verified

    run(scene)


def test_a_reserved_set_point_is_no_cap() -> None:
    async def scene() -> None:
        async with on_wire(SHAPES["dmtf-new"]) as b:
            b.simulator.held.set_point, b.simulator.held.enabled = 4294967295.0, True
            reading = await b.cap.read()
            assert (reading.cap_w, reading.active) == (None, None)
            b.simulator.shape = BmcShape(dialect=OPENBMC)
            reading = await b.cap.read()
            assert (reading.cap_w, reading.active) == (None, None)

    run(scene)


def test_the_kill_switch_is_asked_before_each_write() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            outcome = await b.cap.apply(300.0, lambda: False)
            assert (outcome.refused, outcome.verified) == ("writing is not allowed now", False)
            assert outcome.t_sent_ns == 0
            assert b.simulator.counters["PATCH"] == 0
            b.fault(wrong_etag=1)
            allowed = iter([True, False])
            outcome = await b.cap.apply(300.0, lambda: next(allowed))
            assert (outcome.refused, b.simulator.counters["PATCH"]) == ("writing is not allowed now", 1)
            asked: list[int] = []

            def once() -> bool:
                b.simulator.sessions.clear()  # the write gets 401 and would be repeated after a new login
                asked.append(1)
                return len(asked) == 1

            outcome = await b.cap.apply(300.0, once)
            assert (outcome.refused, b.simulator.counters["PATCH"]) == ("writing is not allowed now", 2)
            assert b.kept == []

    run(scene)


@pytest.mark.parametrize("faults", [{"wrong_etag": 1}, {"wrong_etag": 2}, {"needs_etag": True}])
@every
def test_versions_are_honoured(shape: BmcShape, faults: dict[str, Any]) -> None:
    async def scene() -> None:
        async with on_wire(shape) as b:
            b.fault(**faults)
            assert (await b.cap.apply(300.0)).verified
            assert b.simulator.counters["changes"] == 1
            assert b.simulator.counters["PATCH"] == 1 + faults.get("wrong_etag", 0)

    run(scene)


def test_a_tag_that_changes_with_every_reading_does_not_stop_us() -> None:
    async def scene() -> None:
        async with on_wire(BmcShape(etag_of_readings=True)) as b:
            assert (await b.cap.apply(300.0)).verified
            assert b.simulator.counters["PATCH"] == 3

    run(scene)


# -- which of several


def test_the_chassis_of_the_system_is_chosen() -> None:
    async def scene() -> None:
        async with on_wire(BmcShape(other_chassis=("Riser", "Backplane"))) as b:
            await b.cap.identify()
            await b.cap.apply(300.0)
            assert b.kept == [300.0]

    run(scene)


def test_several_caps_are_named_and_one_is_chosen_by_its_path() -> None:
    shape = BmcShape(mechanisms=PC, capped_chassis=("Node1", "Node2"))

    async def scene() -> None:
        async with on_wire(shape) as b:
            with pytest.raises(
                DeviceError, match="has several caps; name one as resource: /redfish/v1/Chassis/Node1/Po"
            ):
                await b.cap.identify()
        for resource in (
            "/redfish/v1/Chassis/Node2",
            "/redfish/v1/Chassis/Node2/Power",
            "/redfish/v1/Chassis/Node2/Power#/PowerControl/0",
        ):
            async with on_wire(shape, resource=resource) as b:
                assert (await b.cap.identify()).mechanism == POWER_CONTROL
                assert (await b.cap.apply(300.0)).verified
        async with on_wire(shape, resource="/redfish/v1/Chassis/Node3") as b:
            with pytest.raises(DeviceError, match="no cap at /redfish/v1/Chassis/Node3"):
                await b.cap.identify()

    run(scene)


def test_the_older_mechanism_is_taken_when_it_is_named() -> None:
    async def scene() -> None:
        async with on_wire(resource="/redfish/v1/Chassis/1U/Power") as b:
            identity = await b.cap.identify()
            assert (identity.mechanism, identity.on_exceed) == (POWER_CONTROL, "LogEventOnly")

    run(scene)


def test_no_cap_and_a_read_only_cap_are_named() -> None:
    async def scene() -> None:
        async with on_wire(BmcShape(mechanisms=())) as b:
            with pytest.raises(DeviceError, match=r"no cap: no chassis has EnvironmentMetrics\.PowerLimitWatts"):
                await b.cap.identify()
        async with on_wire(BmcShape(mechanisms=PC)) as b:
            b.fault(read_only=True)
            with pytest.raises(DeviceError, match="read-only here: /redfish/v1/Chassis/1U/Power#/PowerControl/0"):
                await b.cap.identify()
        async with on_wire(BmcShape(mechanisms=PC), resource="/redfish/v1/Chassis/2U") as b:
            b.fault(read_only=True)
            with pytest.raises(DeviceError, match="no cap at /redfish/v1/Chassis/2U: no chassis has"):
                await b.cap.identify()

    run(scene)


# -- who is there: TLS, passwords, sessions


def test_a_certificate_of_another_gets_no_request_at_all() -> None:
    other = make_certificate("127.0.0.1").fingerprint

    async def scene() -> None:
        async with on_wire(opened=False, tls_fingerprint=other) as b:
            with pytest.raises(AuthError, match="shows another certificate than tls_fingerprint: SHA-256 "):
                await b.cap.open()
            assert b.simulator.counters.total() == 0

    run(scene)


def test_a_self_signed_certificate_does_not_pass_by_default() -> None:
    async def scene() -> None:
        async with on_wire(opened=False, tls_fingerprint=None) as b:
            with pytest.raises(AuthError, match="does not pass the system's authorities: self-signed certificate"):
                await b.cap.open()
            assert b.simulator.counters.total() == 0

    run(scene)


def test_an_authority_file_is_enough_and_must_fit(tmp_path: Path) -> None:
    right, wrong, name = tmp_path / "right.pem", tmp_path / "wrong.pem", tmp_path / "name.pem"
    right.write_bytes(CERTIFICATE.pem)
    wrong.write_bytes(make_certificate("127.0.0.1").pem)
    name.write_bytes(b"no certificate")

    async def scene() -> None:
        async with on_wire(tls_fingerprint=None, tls_ca_file=str(right)) as b:
            assert (await b.cap.read()).power_w == 412.3
        async with on_wire(opened=False, tls_fingerprint=None, tls_ca_file=str(wrong)) as b:
            with pytest.raises(AuthError, match=r"does not pass tls_ca_file .*wrong\.pem"):
                await b.cap.open()
        async with on_wire(opened=False, tls_fingerprint=None, tls_ca_file=str(name)) as b:
            with pytest.raises(DeviceError, match=r"cannot use tls_ca_file .*name\.pem"):
                await b.cap.open()
        async with on_wire(tls_fingerprint=None, allow_insecure=True) as b:
            assert (await b.cap.read()).power_w == 412.3

    run(scene)


def test_a_certificate_for_another_name_does_not_pass(tmp_path: Path) -> None:
    certificate = make_certificate("bmc.example.net")
    (tmp_path / "ca.pem").write_bytes(certificate.pem)

    async def scene() -> None:
        async with BmcSimulator(certificate=certificate) as simulator:
            endpoint = RedfishEndpoint("127.0.0.1", simulator.port, "root", "calvin", str(tmp_path / "ca.pem"))
            cap = RedfishCap(RedfishOptions(endpoint))
            with pytest.raises(AuthError, match="IP address mismatch"):
                await cap.open()
            assert simulator.counters.total() == 0

    run(scene)


def test_a_wrong_password_is_named_without_being_told() -> None:
    async def scene() -> None:
        async with on_wire(opened=False, password="guess-me") as b:
            with pytest.raises(AuthError, match="refuses user 'root' or the password: HTTP 401") as raised:
                await b.cap.open()
            assert "guess-me" not in f"{raised.value}{b.cap.options!r}"
            assert b.simulator.counters["logins"] == 1

    run(scene)


def test_no_session_is_left_behind() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            assert len(b.simulator.sessions) == 1
            await b.cap.close()
            assert b.simulator.sessions == {}
            for _ in range(3 * MAX_SESSIONS):
                await b.cap.open()
                await b.cap.read()
                await b.cap.close()
            assert b.simulator.sessions == {}

    run(scene)


def test_a_driver_that_is_opened_again_keeps_its_session() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            for _ in range(3 * MAX_SESSIONS):
                b.fault(drop=2)
                with pytest.raises(DeviceError):
                    await b.cap.read()
                b.fault(drop=2)
                with pytest.raises(DeviceError):
                    await b.cap.open()
                await b.cap.open()
                await b.cap.identify()
            assert (b.simulator.counters["logins"], len(b.simulator.sessions)) == (1, 1)
            b.simulator.reboot()
            await b.cap.open()
            await b.cap.identify()
            assert (b.simulator.counters["logins"], len(b.simulator.sessions)) == (2, 1)
            await b.cap.close()
            assert b.simulator.sessions == {}

    run(scene)


def test_a_login_given_up_half_way_leaves_no_session() -> None:
    async def scene() -> None:
        seen = asyncio.Event()

        class Watched(Counter[str]):
            def __setitem__(self, name: str, count: int) -> None:
                super().__setitem__(name, count)
                if name == "POST":
                    seen.set()

        async with on_wire(opened=False) as b:
            b.simulator.counters = Watched()
            b.fault(delay_s=0.2)
            opening = asyncio.create_task(b.cap.open())
            await seen.wait()
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert b.simulator.counters["logins"] == 1
            assert b.simulator.sessions == {}

    run(scene)


def test_an_ended_session_is_made_anew_once() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            b.simulator.sessions.clear()
            assert (await b.cap.read()).power_w == 412.3
            assert b.simulator.counters["logins"] == 2
            b.fault(expire_after=3)
            for _ in range(8):
                assert (await b.cap.apply(300.0)).verified
                assert (await b.cap.apply(400.0)).verified
            assert len(b.simulator.sessions) <= 1
            b.fault(expire_after=0)
            with pytest.raises(AuthError, match="does not accept the session it has just made"):
                await b.cap.read()

    run(scene)


def test_all_sessions_in_use_is_named() -> None:
    async def scene() -> None:
        async with on_wire() as first:
            others = []
            for _ in range(MAX_SESSIONS):
                others.append(RedfishCap(first.cap.options))
            for other in others[:-1]:
                await other.open()
            with pytest.raises(DeviceError, match="makes no session: HTTP 503: all sessions of the BMC are in use"):
                await others[-1].open()
            for other in others:
                await other.close()

    run(scene)


# -- a BMC in trouble


@pytest.mark.parametrize(
    ("garbled", "words"),
    [
        ("html", "no JSON"),
        ("truncated", "no JSON"),
        ("array", "no JSON object"),
        ("nan", "NaN is no JSON"),
        ("deep", "nested too deeply"),
        ("huge", "longer than 1048576 bytes"),
        ("latin", "no JSON"),
    ],
)
def test_a_garbled_answer_is_named_and_survived(garbled: str, words: str) -> None:
    async def scene() -> None:
        async with on_wire() as b:
            await b.cap.identify()
            b.fault(garbled=garbled)
            with pytest.raises(DeviceError, match=f"the answer to GET /redfish/v1/Chassis/.* is .*{words}"):
                await b.cap.read()
            b.fault()
            assert (await b.cap.read()).power_w == 412.3

    run(scene)


def test_a_busy_a_silent_and_a_restarted_bmc() -> None:
    async def scene() -> None:
        async with on_wire(timeout_s=0.3) as b:
            await b.cap.identify()
            b.fault(busy=1)
            with pytest.raises(DeviceError, match="HTTP 503, try again after 5 s: the BMC is busy"):
                await b.cap.read()
            b.fault(drop=2)  # one repetition of a read is the library's own
            with pytest.raises(DeviceError, match="BMC 127"):
                await b.cap.read()
            b.fault(delay_s=1.0)
            with pytest.raises(DeviceError, match=r"did not answer within 0\.3 s"):
                await b.cap.read()
            b.fault()
            assert (await b.cap.apply(300.0)).verified
            b.simulator.reboot(down_s=30.0)
            with pytest.raises(DeviceError, match="BMC 127"):
                await b.cap.read()
            b.clock.advance(30.0)
            reading = await b.cap.read()
            assert (reading.cap_w, reading.active) == (300.0, True)
            assert len(b.simulator.sessions) == 1

    run(scene)


def test_a_redirect_stays_on_the_host() -> None:
    async def scene() -> None:
        async with on_wire() as b:
            await b.cap.identify()
            for elsewhere in (
                "https://192.0.2.1/redfish/v1/",
                "//192.0.2.1/redfish/v1/",
                "http://127.0.0.1/redfish/v1/",
            ):
                b.fault(redirect=elsewhere)
                with pytest.raises(DeviceError, match=r"redirects to .* not followed"):
                    await b.cap.read()
            b.fault(redirect="/redfish/v1/Chassis")
            with pytest.raises(DeviceError, match=r"the cap at .* is gone|answers HTTP 307"):
                await b.cap.read()

    run(scene)


def test_what_is_no_redfish_service_gets_no_password() -> None:
    async def scene() -> None:
        seen: list[str] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=_server_context(CERTIFICATE))
        port = server.sockets[0].getsockname()[1]
        endpoint = RedfishEndpoint("127.0.0.1", port, "root", "calvin", tls_fingerprint=CERTIFICATE.fingerprint)
        cap = RedfishCap(RedfishOptions(endpoint))
        with pytest.raises(DeviceError, match="is not a Redfish service: /redfish/v1/ answers HTTP 200"):
            await cap.open()
        assert seen == ["GET /redfish/v1/ HTTP/1.1"]
        server.close()
        await server.wait_closed()

    run(scene)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)

    async def scene() -> None:
        cap = RedfishCap(RedfishOptions(RedfishEndpoint("127.0.0.1")))
        with pytest.raises(DeviceError, match=r"needs aiohttp: install rpi-daemon\[redfish\]"):
            await cap.open()
        await cap.close()
        with pytest.raises(DeviceError, match=r"install rpi-daemon\[redfish\]"):
            await BmcSimulator(certificate=CERTIFICATE).start()

    run(scene)


BODY = b'{"RedfishVersion": "1.20.0", "Chassis": {"@odata.id": "/redfish/v1/x"}, "Members": [{"@odata.id": "/redfish/v1/x"}]}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nLocation: https://[::1]/redfish/v1/x\r\n"
    b'X-Auth-Token: abc\r\nETag: "1"\r\nSet-Cookie: a=b\r\nRetry-After: 1\r\n\r\n%s' % (len(BODY), BODY)
)


def test_no_damaged_answer_is_more_than_a_device_error() -> None:
    """Bytes overwritten, cut off and inserted in an answer, over real TLS."""
    random = Random(7)

    def damaged() -> bytes:
        answer = bytearray(ANSWER)
        for _ in range(random.randrange(1, 6)):
            place = random.randrange(len(answer))
            cut = random.choice((0, 1, 1, 9))
            answer[place : place + cut] = random.choice((b"", b"\xff", b"\r\n", b":", b"[", random.randbytes(3)))
        return bytes(answer)

    async def scene() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(damaged())
                    await writer.drain()
                    if random.random() < 0.5:
                        break
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=_server_context(CERTIFICATE))
        port = server.sockets[0].getsockname()[1]
        endpoint = RedfishEndpoint(
            "127.0.0.1", port, tls_fingerprint=CERTIFICATE.fingerprint, timeout_s=0.05, login_timeout_s=0.05
        )
        outcomes = Counter[str]()
        for _ in range(150):
            cap = RedfishCap(RedfishOptions(endpoint))
            try:
                await cap.open()
                await cap.identify()
            except DeviceError as error:
                outcomes[str(error).partition(": ")[2][:9]] += 1
            finally:
                await cap.close()
        assert outcomes.total() == 150
        assert len(outcomes) > 3
        server.close()
        await server.wait_closed()

    asyncio.run(asyncio.wait_for(scene(), 60.0))


def test_nobody_there_and_a_port_in_use() -> None:
    async def scene() -> None:
        async with BmcSimulator(certificate=CERTIFICATE) as simulator:
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {simulator.port}: "):
                await BmcSimulator(certificate=CERTIFICATE, port=simulator.port).start()
            port = simulator.port
        cap = RedfishCap(RedfishOptions(RedfishEndpoint("127.0.0.1", port, allow_insecure=True)))
        with pytest.raises(DeviceError, match=f"BMC 127.0.0.1:{port}: Cannot connect"):
            await cap.open()

    run(scene)


def test_dialects_are_what_they_say() -> None:
    with pytest.raises(ValueError, match="dialect 'ilo'"):
        BmcShape(dialect="ilo")
    assert {DMTF, OPENBMC} == {"dmtf", "openbmc"}
