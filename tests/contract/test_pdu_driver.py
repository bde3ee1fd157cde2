"""What every PDU driver must do, over real loopback UDP: each shipped profile on the simulated PDU, v2c and v3."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rack_examples import make_rack

from rpi_daemon.clock import Clock, ManualClock
from rpi_daemon.drivers.pdu.profile import Profile, load_profile, profile_names
from rpi_daemon.drivers.pdu.sim import Faults, PduSimulator, SimUser
from rpi_daemon.drivers.pdu.snmp import SLOW_EVERY, SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpTimeout
from rpi_daemon.errors import AuthError, ConfigError, DeviceError
from rpi_daemon.guard import GuardConfig, static_safe_writes
from rpi_daemon.records import ApplyResult, LimitKind, LimitState, LimitWrite

N = 24
USER = SimUser("rack", auth_key="authentication", priv_key="privacy-of-it")
PX = "1.3.6.1.4.1.13742.6.3.5.4.1.{}.1.{}.5"  # threshold columns of activePower: column, outlet
UPPER_CRITICAL, UPPER_WARNING, ENABLED, DIGITS = 23, 24, 25, 7


def endpoint(port: int, version: str, **other: Any) -> SnmpEndpoint:
    keys: dict[str, Any] = {"community": "public"}
    if version == "3":
        keys = {"user": USER.name, "auth": USER.auth, "auth_key": USER.auth_key, "priv_key": USER.priv_key}
    return SnmpEndpoint("127.0.0.1", port, version=version, **{**keys, "timeout_s": 0.3, "retries": 2, **other})


def draw_w(outlet: int) -> float:
    return 10.0 * outlet


class Bench:
    """One simulated PDU with the driver on it."""

    def __init__(self, simulator: PduSimulator, pdu: SnmpPdu) -> None:
        self.simulator = simulator
        self.pdu = pdu

    def fault(self, **faults: Any) -> None:
        self.simulator.faults = Faults(**faults)

    async def write(self, *limits: tuple[int, float]) -> ApplyResult:
        return await self.pdu.apply([LimitWrite(outlet, limit_w) for outlet, limit_w in limits])


@asynccontextmanager
async def on_wire(
    simulator: PduSimulator,
    version: str = "2c",
    *,
    profile: Profile | None = None,
    outlets: tuple[int, ...] = tuple(range(1, N + 1)),
    clock: Clock | None = None,
    nominal_v: float | None = None,
    quantities: tuple[str, ...] = ("power", "current", "state"),
    slow_every: int = SLOW_EVERY,
    **session: Any,
) -> AsyncIterator[Bench]:
    async with simulator:
        options = SnmpPduOptions(
            endpoint(simulator.port, version, **session),
            profile or simulator.profile,
            outlets,
            quantities=quantities,
            nominal_v=nominal_v,
            slow_every=slow_every,
        )
        pdu = SnmpPdu(options, clock)
        try:
            await pdu.open()
            yield Bench(simulator, pdu)
        finally:
            await pdu.close()
            await pdu.close()  # twice is allowed


def simulated(profile: str, **options: Any) -> PduSimulator:
    return PduSimulator(load_profile(profile), N, **{"power_w": draw_w, "user": USER, **options})


def recorded(path: Path, profile: str) -> PduSimulator:
    return PduSimulator(load_profile(profile), recording=path, user=USER)


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20.0))


IN_WATTS = [name for name in profile_names() if (limit := load_profile(name).limit) is not None and limit.unit == "W"]
every = pytest.mark.parametrize(
    ("profile", "version"), [(profile, version) for profile in IN_WATTS for version in ("2c", "3")]
)
each_profile = pytest.mark.parametrize("profile", IN_WATTS)


@every
def test_identity_metering_and_limits(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile, on=lambda outlet: outlet != 3), version) as b:
            identity = await b.pdu.identify()
            assert (identity.vendor, identity.n_outlets) == (b.pdu.profile.vendor, N)
            assert (identity.model, identity.serial, identity.firmware) == ("PX-SIM24", "SIM0000001", "1.0")
            assert identity.proven is (b.pdu.profile.proven != "none")
            reading = await b.pdu.read()
            assert reading.power_w == {o: 0.0 if o == 3 else draw_w(o) for o in range(1, N + 1)}
            assert reading.on == {o: o != 3 for o in range(1, N + 1)}
            step_a = 0.001 if profile == "raritan_px" else 0.1
            for outlet, amps in reading.current_a.items():
                assert amps == pytest.approx(0.0 if outlet == 3 else draw_w(outlet) / 230.0, abs=step_a / 2 + 1e-9)
            assert reading.uptime_s is not None
            assert 0.0 <= reading.uptime_s < 20.0
            limit = b.pdu.profile.limit
            assert limit is not None
            assert len(reading.limits) == N
            for state in reading.limits.values():
                assert state.kind is LimitKind.ALARM
                assert state.limit_w == limit.factory
                assert state.enabled is (limit.enable is None)
                assert len(state.raw) == 2  # threshold and mask, or threshold and follower

    run(scene)


@every
def test_a_batch_is_written_read_back_and_in_force_on_the_device(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            await b.pdu.read()
            writes = [(outlet, 150.0 + outlet) for outlet in range(N, 0, -1)]
            result = await b.write(*writes)
            assert [(o.outlet, o.asked_w) for o in result.outcomes] == writes  # order kept
            for outcome in result.outcomes:
                assert outcome.verified
                assert outcome.refused is None
                assert outcome.read_back_w == outcome.asked_w
                assert outcome.t_verified_ns is not None
                assert outcome.t_verified_ns >= outcome.t_sent_ns > 0
                assert b.simulator.limit_w(outcome.outlet) == outcome.asked_w
            limit = b.pdu.profile.limit
            assert limit is not None
            sets = -(-2 * N // b.pdu.profile.pace.batch_varbinds)
            assert result.round_trips == sets + 1 + (limit.enable is not None)  # masks, sets, read-back
            if limit.enable is not None:  # from now on the masks stand as they are: one set, one read-back
                again = await b.write(*writes)
                assert again.round_trips == 2
                assert all(outcome.verified for outcome in again.outcomes)
            reading = await b.pdu.read()
            assert {o: s.limit_w for o, s in reading.limits.items()} == dict(writes)
            assert all(state.enabled for state in reading.limits.values())

    run(scene)


@every
def test_found_values_are_put_back_exactly(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            if profile == "raritan_px":  # somebody else's settings, bits of other thresholds included
                b.simulator.poke(PX.format(ENABLED, 2), b"\xd0")
                b.simulator.poke(PX.format(UPPER_CRITICAL, 2), 777)
            found = (await b.pdu.read()).limits
            assert all(outcome.verified for outcome in (await b.write((1, 50.0), (2, 60.0))).outcomes)
            changed = (await b.pdu.read()).limits
            assert changed[1].raw != found[1].raw
            result = await b.pdu.apply([LimitWrite(o, 0.0, restore=found[o]) for o in (1, 2)])
            assert all(outcome.verified for outcome in result.outcomes)
            assert (await b.pdu.read()).limits == found
            unknown = LimitState(None, None, LimitKind.ALARM)
            (outcome,) = (await b.pdu.apply([LimitWrite(1, 0.0, restore=unknown)])).outcomes
            assert not outcome.verified
            assert outcome.refused == "nothing to restore: the value found at first contact is not known"

    run(scene)


def test_mask_bits_of_others_are_kept_and_an_unchanged_mask_is_not_written() -> None:
    async def scene() -> None:
        mask = PX.format(ENABLED, 1)
        async with on_wire(simulated("raritan_px")) as b:
            b.simulator.poke(mask, b"\xc0")  # lowerCritical, lowerWarning
            await b.write((1, 100.0))
            assert b.simulator.peek(mask) == b"\xd0"
            before = b.simulator.counters["varbinds_set"]
            await b.write((1, 101.0))
            assert b.simulator.counters["varbinds_set"] - before == 1
            b.simulator.poke(mask, b"\xc0")  # somebody takes our bit off: seen, named, and put on by the next write
            (outcome,) = (await b.write((1, 102.0))).outcomes
            assert (outcome.read_back_w, outcome.verified) == (102.0, False)
            assert outcome.refused == "the threshold was written, but the device keeps it disabled"
            assert (await b.write((1, 102.0))).outcomes[0].verified
            assert b.simulator.peek(mask) == b"\xd0"

    run(scene)


@pytest.mark.parametrize(
    ("faults", "session"),
    [({}, {"max_varbinds": 2}), ({"too_big_above": 2}, {}), ({"drop": -1}, {"timeout_s": 0.05, "retries": 3})],
    ids=["batches", "split by the session", "repetitions"],
)
@pytest.mark.parametrize("version", ["2c", "3"])
def test_no_set_reaches_the_device_once_writing_is_not_allowed_any_more(
    version: str, faults: dict[str, Any], session: dict[str, Any]
) -> None:
    async def scene() -> None:
        async with on_wire(simulated("apc_rpdu2"), version, outlets=tuple(range(1, 9)), **session) as b:
            await b.pdu.read()
            asked: list[int] = []

            def may_write(write: LimitWrite) -> bool:  # the kill switch is engaged while the first message is answered
                asked.append(write.outlet)
                return b.simulator.counters["sets"] == 0

            b.fault(**faults)
            writes = [LimitWrite(outlet, 300.0 + outlet) for outlet in range(1, 9)]
            if "drop" in faults:
                with pytest.raises(DeviceError):
                    await b.pdu.apply(writes, may_write)
                outcomes = ()
            else:
                outcomes = (await b.pdu.apply(writes, may_write)).outcomes
            assert b.simulator.counters["sets"] == 1
            assert set(asked) == set(range(1, 9))
            b.fault()
            states = (await b.pdu.read()).limits
            for outcome in outcomes:
                taken = states[outcome.outlet].limit_w == outcome.asked_w
                assert outcome.verified == taken
                assert outcome.verified or "allow" in (outcome.refused or "")

    run(scene)


def test_an_enabled_warning_above_the_new_limit_is_switched_off_and_restored() -> None:
    async def scene() -> None:
        mask = PX.format(ENABLED, 1)
        async with on_wire(simulated("raritan_px")) as b:
            b.simulator.poke(PX.format(UPPER_CRITICAL, 1), 500)
            b.simulator.poke(PX.format(UPPER_WARNING, 1), 400)
            b.simulator.poke(mask, b"\x30")
            found = (await b.pdu.read()).limits[1]
            assert (await b.write((1, 450.0))).outcomes[0].verified
            assert b.simulator.peek(mask) == b"\x30"  # 400 W goes with 450 W
            assert (await b.write((1, 300.0))).outcomes[0].verified
            assert b.simulator.peek(mask) == b"\x10"
            await b.pdu.apply([LimitWrite(1, 0.0, restore=found)])
            assert b.simulator.peek(mask) == b"\x30"
            # changed behind our back: the device refuses, and the next write knows
            assert (await b.write((1, 500.0))).outcomes[0].verified
            b.simulator.poke(PX.format(UPPER_WARNING, 1), 480)
            (outcome,) = (await b.write((1, 450.0))).outcomes
            assert (outcome.verified, outcome.read_back_w) == (False, 500.0)
            assert "inconsistentValue" in (outcome.refused or "")
            assert (await b.write((1, 450.0))).outcomes[0].verified

    run(scene)


def test_the_follower_of_a_family_without_mask_goes_along_both_ways() -> None:
    async def scene() -> None:
        async with on_wire(simulated("apc_rpdu2")) as b:
            for limit_w, near_w in ((300.0, 299), (800.0, 799), (1.0, 0)):
                assert (await b.write((1, limit_w))).outcomes[0].verified
                assert b.simulator.peek("1.3.6.1.4.1.318.1.1.26.9.4.1.1.6.1") == near_w

    run(scene)


@each_profile
def test_a_limit_is_rounded_down_to_the_step_of_the_device(profile: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile)) as b:
            (outcome,) = (await b.write((1, 149.97))).outcomes
            assert (outcome.read_back_w, outcome.verified) == (149.0, True)

    run(scene)


def test_decimal_digits_are_read_from_the_device() -> None:
    async def scene() -> None:
        simulator = simulated("raritan_px", digits={"power": 1, "current": 2}, power_w=lambda outlet: 12.34)
        async with on_wire(simulator) as b:
            reading = await b.pdu.read()
            assert (reading.power_w[1], reading.current_a[1]) == (12.3, 0.05)
            (outcome,) = (await b.write((1, 149.97))).outcomes
            assert (outcome.read_back_w, outcome.verified) == (149.9, True)
            assert b.simulator.limit_w(1) == pytest.approx(149.9)

    run(scene)


@each_profile
def test_values_the_device_cannot_take_are_refused_before_the_wire(profile: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), outlets=(1, 2)) as b:
            await b.pdu.read()
            result = await b.write((1, -5.0), (3, 100.0))
            first, second = result.outcomes
            assert not first.verified
            assert re.search(r"-5 W is outside what the device takes: [01]\.\.", first.refused or "")
            assert second.refused == "outlet 3 is not one of this PDU's configured outlets"
            assert (b.simulator.counters["sets"], result.round_trips) == (0, 0)
            with pytest.raises(ValueError, match="finite"):
                await b.write((1, float("nan")))
            with pytest.raises(ValueError, match="twice"):
                await b.write((1, 5.0), (1, 6.0))

    run(scene)


# -- faults


@every
def test_ignored_clamped_and_refused_writes_are_told_apart(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            b.fault(ignore_set=True)
            (never,) = (await b.write((1, 250.0))).outcomes  # a threshold that was never switched on
            found_w = b.pdu.profile.limit.factory if b.pdu.profile.limit else None
            assert (never.verified, never.read_back_w, never.refused) == (False, found_w, None)
            b.fault()
            assert (await b.write((1, 200.0))).outcomes[0].verified
            b.fault(ignore_set=True)
            (ignored,) = (await b.write((1, 250.0))).outcomes
            assert (ignored.verified, ignored.read_back_w, ignored.refused) == (False, 200.0, None)
            assert ignored.t_verified_ns is None
            b.fault(clamp_w=220.0)
            (clamped,) = (await b.write((1, 250.0))).outcomes
            assert (clamped.verified, clamped.read_back_w, clamped.refused) == (False, 220.0, None)
            b.fault(refuse_but_apply=True)
            (applied,) = (await b.write((1, 260.0))).outcomes
            assert (applied.verified, applied.read_back_w) == (True, 260.0)
            assert "genErr" in (applied.refused or "")
            b.fault(refuse=(0,))
            (refused,) = (await b.write((1, 270.0))).outcomes
            assert (refused.verified, refused.read_back_w) == (False, 260.0)
            assert "wrongValue" in (refused.refused or "")

    run(scene)


@every
def test_one_refused_outlet_does_not_keep_the_others(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            await b.pdu.read()
            b.fault(refuse=(5, 9))
            result = await b.write(*((outlet, 130.0) for outlet in range(1, 13)))
            assert {o.outlet for o in result.outcomes if o.verified} == set(range(1, 13)) - {5, 9}
            assert b.simulator.counters["sets"] == 3  # refused, refused, taken
            b.fault(refuse=(1, 2, 3, 4))  # more than the two extra round trips can isolate
            result = await b.write(*((outlet, 140.0) for outlet in range(1, 13)))
            assert b.simulator.counters["sets"] == 6
            assert not any(o.verified for o in result.outcomes)
            assert "another outlet of the batch was refused" in (result.outcomes[11].refused or "")

    run(scene)


@every
def test_too_big_halves_the_batch(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            b.fault(too_big_above=10)
            assert (await b.pdu.read()).power_w[N] == draw_w(N)
            result = await b.write(*((outlet, 130.0) for outlet in range(1, N + 1)))
            assert all(outcome.verified for outcome in result.outcomes)

    run(scene)


def test_one_passing_too_big_slows_a_pdu_for_a_few_slow_polls_alone() -> None:
    async def scene() -> None:
        async with on_wire(simulated("cyberpower_epdu"), slow_every=2) as b:

            async def requests() -> int:
                before = b.pdu.session.counters.requests
                await b.pdu.read()
                return b.pdu.session.counters.requests - before

            quick = [await requests() for _ in range(4)][2:]  # a slow poll, and one that is not
            b.fault(too_big_above=2)
            assert await requests() > quick[0]
            b.fault()
            polls = [await requests() for _ in range(15)]
            assert polls[0] > quick[1]
            assert polls[-2:] == quick

    run(scene)


@pytest.mark.parametrize("profile", ["apc_rpdu2", "raritan_px"])  # what is below follows; its mask switches it off
def test_a_device_that_takes_one_value_at_a_time_takes_limits_up_and_down(profile: str) -> None:
    """What must stay below the limit never stands above it in between, whatever the parts of a batch are."""

    async def scene() -> None:
        outlets = (1, 2, 3)
        for most in (1, 3):
            async with on_wire(simulated(profile), outlets=outlets) as b:
                found = (await b.pdu.read()).limits
                b.fault(too_big_above=most)
                for limit_w in (300.0, 120.0, 260.0):
                    result = await b.write(*((outlet, limit_w) for outlet in outlets))
                    assert [(o.verified, o.refused) for o in result.outcomes] == [(True, None)] * 3
                    assert b.simulator.limits_w()[2] == limit_w
                back = [LimitWrite(o, state.limit_w or 0.0, restore=state) for o, state in found.items()]
                assert all(outcome.verified for outcome in (await b.pdu.apply(back)).outcomes)
                assert {o: (await b.pdu.read()).limits[o].raw for o in outlets} == {o: found[o].raw for o in outlets}

    run(scene)


@every
def test_lost_late_and_doubled_answers_are_survived(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version) as b:
            await b.pdu.read()
            b.fault(drop=1)
            assert (await b.write((1, 111.0))).outcomes[0].verified
            b.fault(duplicate=True)
            for limit_w in (120.0, 121.0, 122.0):
                (outcome,) = (await b.write((1, limit_w))).outcomes
                assert (outcome.read_back_w, outcome.verified) == (limit_w, True)
            b.fault(delay_s=0.05)
            assert (await b.write((1, 130.0))).outcomes[0].verified
            assert b.simulator.limit_w(1) == 130.0

    run(scene)


def test_a_device_that_falls_silent_costs_the_write_one_request_with_its_repetitions_and_one_look() -> None:
    """Not once for each batch: silence is found within 3 time-outs, whatever is under way."""

    async def scene() -> None:
        outlets = tuple(range(1, 13))
        options = {"outlets": outlets, "timeout_s": 0.05, "retries": 1, "max_varbinds": 4}
        async with on_wire(simulated("apc_rpdu2"), "2c", **options) as b:
            await b.pdu.read()
            b.fault(drop=-1)
            with pytest.raises(SnmpTimeout, match=r"1 tries of 0\.05 s"):
                await b.write(*((outlet, 300.0) for outlet in outlets))
            assert b.simulator.counters["dropped"] == 3
            b.fault(drop=2)  # silent to SETs only: the look tells what was taken
            outcomes = (await b.write(*((outlet, 310.0) for outlet in outlets))).outcomes
            assert [o.verified for o in outcomes] == [o.outlet <= 2 for o in outcomes]  # two objects each
            assert all("did not answer" in (o.refused or "") for o in outcomes)

    run(scene)


@every
def test_silence_and_answers_from_elsewhere_are_a_clear_time_out(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version, timeout_s=0.2, retries=0) as b:
            await b.write((1, 111.0))
            for faults in ({"drop": -1}, {"wrong_address": True}):
                b.fault(**faults)
                with pytest.raises(SnmpTimeout, match="did not answer"):
                    await b.pdu.read()
                with pytest.raises(SnmpTimeout):
                    await b.write((1, 112.0))
            b.fault()
            assert (await b.write((1, 113.0))).outcomes[0].verified

    run(scene)


@every
def test_a_late_answer_is_never_taken_for_the_next_one(profile: str, version: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), version, timeout_s=0.2, retries=0) as b:
            await b.write((1, 111.0))
            b.fault(delay_s=0.3)
            with pytest.raises(SnmpTimeout):
                await b.write((1, 112.0))
            b.fault()
            for limit_w in (113.0, 114.0, 115.0):  # answers to 112 W arrive meanwhile
                (outcome,) = (await b.write((1, limit_w))).outcomes
                assert (outcome.verified, outcome.read_back_w) == (True, limit_w)
                await asyncio.sleep(0.08)
            assert b.pdu.session.counters.stale_replies == 2

    run(scene)


def test_a_lost_reply_to_a_taken_set_counts_by_its_read_back() -> None:
    async def scene() -> None:
        async with on_wire(simulated("raritan_px"), retries=0) as b:
            await b.write((1, 122.0))
            b.fault(drop=1)
            (outcome,) = (await b.write((1, 123.0))).outcomes
            assert (outcome.verified, outcome.read_back_w) == (True, 123.0)
            assert "did not answer" in (outcome.refused or "")

    run(scene)


@pytest.mark.parametrize(
    ("up_s", "silent_s", "back_s"), [(20.0, 100.0, 50.0), (2.0, 0.1, 4.0)]
)  # the second: twice in 10 s
@pytest.mark.parametrize("answer_s", [0.0, 0.01])  # what else is asked before the uptime takes time
def test_a_reboot_is_told_once_even_with_an_uptime_above_the_last_one(
    up_s: float, silent_s: float, back_s: float, answer_s: float
) -> None:
    pace_s = 0.0

    async def scene() -> None:
        nonlocal pace_s
        clock = ManualClock(mono_ns=10**12)

        def now_s() -> float:
            clock.advance(pace_s)
            return clock.mono_ns() / 1e9

        async with on_wire(simulated("raritan_px", clock=now_s), clock=clock) as b:
            clock.advance(up_s)
            first = await b.pdu.read()
            clock.advance(silent_s)
            b.simulator.reboot()
            clock.advance(back_s)
            await b.pdu.open()  # as after a silence
            pace_s = answer_s
            second, third = await b.pdu.read(), await b.pdu.read()
            assert first.uptime_s == up_s
            assert second.uptime_s is not None
            assert (second.uptime_s == back_s, second.uptime_s > back_s) == (not answer_s, bool(answer_s))
            assert [reading.rebooted for reading in (first, second, third)] == [False, True, False]

    run(scene)


@every
def test_after_a_reboot_limits_and_digits_are_read_anew(profile: str, version: str) -> None:
    async def scene() -> None:
        clock = ManualClock(mono_ns=10**12)
        simulator = simulated(profile, clock=lambda: clock.mono_ns() / 1e9)
        async with on_wire(simulator, version, clock=clock) as b:
            clock.advance(1000.0)
            await b.write(*((outlet, 140.0) for outlet in range(1, N + 1)))
            assert (await b.pdu.read()).uptime_s == 1000.0
            boots = b.pdu.session.engine_boots
            clock.advance(5.0)
            b.simulator.reboot(digits={"current": 2})
            clock.advance(1.0)
            reading = await b.pdu.read()
            limit = b.pdu.profile.limit
            assert limit is not None
            assert reading.uptime_s == 1.0
            assert {state.limit_w for state in reading.limits.values()} == {float(limit.factory)}
            if profile == "raritan_px":
                assert reading.current_a[24] == 1.04
            assert b.pdu.session.engine_boots == boots + (version == "3")
            assert (await b.write((1, 141.0))).outcomes[0].verified

    run(scene)


def test_missing_values_are_none_and_never_zero() -> None:
    async def scene() -> None:
        async with on_wire(simulated("raritan_px")) as b:
            b.simulator.remove("1.3.6.1.4.1.13742.6.5.4.3.1.4.1.1.5")  # no such power
            b.simulator.poke("1.3.6.1.4.1.13742.6.5.4.3.1.3.1.2.5", -1)  # unavailable
            b.simulator.remove(PX.format(DIGITS, 3))
            b.simulator.poke("1.3.6.1.4.1.13742.6.5.4.3.1.3.1.4.14", -1)
            b.simulator.remove(PX.format(ENABLED, 5))
            reading = await b.pdu.read()
            assert [reading.power_w[o] for o in (1, 2, 3, 4)] == [None, None, None, 40.0]
            assert (reading.on[4], reading.on[5]) == (None, True)
            assert (reading.limits[3].limit_w, reading.limits[3].enabled) == (None, False)
            assert (reading.limits[5].limit_w, reading.limits[5].enabled, reading.limits[5].raw) == (0.0, None, ())
            result = await b.write((3, 100.0), (5, 100.0), (6, 100.0))
            assert [outcome.verified for outcome in result.outcomes] == [False, False, True]
            assert result.outcomes[0].refused == "the device has no such threshold for this outlet"
            assert result.outcomes[1].refused == "the device does not tell which thresholds are enabled"

    run(scene)


def test_what_a_starting_device_lacks_is_asked_for_again() -> None:
    async def scene() -> None:
        clock = ManualClock(mono_ns=10**12)
        simulator = simulated("raritan_px", clock=lambda: clock.mono_ns() / 1e9)
        async with on_wire(simulator, clock=clock) as b:
            later = {}
            for column in (UPPER_CRITICAL, DIGITS):
                later[PX.format(column, 7)] = b.simulator.remove(PX.format(column, 7))
            assert (await b.pdu.read()).power_w[7] is None
            for oid, cell in later.items():
                b.simulator.add(oid, *cell)
            gets = b.simulator.counters["gets"]
            assert (await b.pdu.read()).power_w[7] is None
            assert b.simulator.counters["gets"] - gets == 4  # 169 values, nothing asked again yet
            clock.advance(31.0)
            reading = await b.pdu.read()
            assert (reading.power_w[7], reading.limits[7].limit_w) == (70.0, 0.0)
            assert (await b.write((7, 80.0))).outcomes[0].verified

    run(scene)


def test_energy_is_read_when_asked_for() -> None:
    async def scene() -> None:
        now = [0.0]
        simulator = simulated("raritan_px", digits={"energy": 1}, clock=lambda: now[0])
        async with on_wire(simulator, quantities=("energy",)) as b:
            assert (await b.pdu.read()).energy_wh[24] == 0.0
            now[0] = 900.0
            reading = await b.pdu.read()
            assert (reading.energy_wh[24], reading.power_w, reading.on) == (60.0, {}, {})

    run(scene)


# -- wrong device, wrong key, wrong options


def test_another_family_is_refused_in_one_line() -> None:
    async def scene() -> None:
        async with on_wire(simulated("apc_rpdu2"), profile=load_profile("raritan_px")) as b:
            with pytest.raises(DeviceError, match=r"not the Raritan family of profile 'raritan_px'") as caught:
                await b.pdu.identify()
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 4

    run(scene)


@each_profile
def test_outlets_that_are_not_there_are_named(profile: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(profile), outlets=(1, 24, 25, 26, 30)) as b:
            with pytest.raises(DeviceError, match=r"no power for outlets 25-26, 30"):
                await b.pdu.identify()

    run(scene)


def test_wrong_key_wrong_community_and_too_weak_a_level() -> None:
    async def scene() -> None:
        async with on_wire(simulated("raritan_px"), "3", auth_key="not-the-key") as b:
            with pytest.raises(AuthError, match="authentication key"):
                await b.pdu.identify()
        async with on_wire(simulated("raritan_px"), community="wrong", timeout_s=0.1, retries=0) as b:
            with pytest.raises(DeviceError, match="community may be wrong"):
                await b.pdu.identify()
        weaker: list[dict[str, Any]] = [{"priv": None, "priv_key": ""}]
        weaker.append({**weaker[0], "auth": None, "auth_key": ""})
        for keys in weaker:
            async with on_wire(simulated("raritan_px"), "3", **keys) as b:
                with pytest.raises(AuthError, match="security level"):
                    await b.pdu.identify()

    run(scene)


def test_options_are_checked_before_the_wire() -> None:
    profile = load_profile("raritan_px")
    with pytest.raises(ConfigError) as caught:
        SnmpPduOptions(endpoint(161, "2c"), profile, (0, 1, 1, 99), quantities=("volts",))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["PDU 127.0.0.1"] * 3
    assert "names one twice" in lines[0]
    assert "[0, 99] are outside 1..54" in lines[1]
    assert "choose from power, current, voltage, energy, state" in lines[2]
    assert profile.limit is not None
    amps = profile.model_copy(update={"limit": profile.limit.model_copy(update={"unit": "A"})})
    with pytest.raises(ConfigError, match="nominal_v must be given"):
        SnmpPduOptions(endpoint(161, "2c"), amps, (1,))


def test_thresholds_in_amperes_are_written_below_the_watts_asked() -> None:
    profile = load_profile("apc_rpdu2")
    assert profile.limit is not None
    amps = profile.model_copy(update={"limit": profile.limit.model_copy(update={"unit": "A", "scale": 0.1})})

    async def scene() -> None:
        async with on_wire(PduSimulator(amps, 2), outlets=(1, 2), nominal_v=230.0) as b:
            (outcome,) = (await b.write((1, 500.0))).outcomes
            assert outcome.verified
            assert outcome.read_back_w == 483.0  # 2.1 A
            assert b.simulator.peek("1.3.6.1.4.1.318.1.1.26.9.4.1.1.7.1") == 21
            rack = make_rack(2, static_safe_w=500.0)
            writes = static_safe_writes(rack, "pdu-0", await b.pdu.read(), GuardConfig())
            assert writes == (LimitWrite(2, 500.0),), "outlet 1 stands as near as the device can"
            await b.pdu.apply(writes)
            reading = await b.pdu.read()
            assert [state.step_w for state in reading.limits.values()] == [23.0, 23.0]
            assert static_safe_writes(rack, "pdu-0", reading, GuardConfig()) == ()

    run(scene)


def test_a_threshold_of_zero_that_no_mask_switches_on_is_no_limit() -> None:
    """Found so, it counts as none, is put back as it was, and 100 W is never rounded to it."""

    async def scene() -> None:
        async with on_wire(PduSimulator(load_profile("sentry3"), 2), outlets=(1, 2), nominal_v=230.0) as b:
            b.simulator.poke("1.3.6.1.4.1.1718.3.2.3.1.9.1.1.1", 0)
            found = (await b.pdu.read()).limits
            assert (found[1].limit_w, found[1].enabled) == (None, False)
            assert (found[2].limit_w, found[2].enabled) == (12 * 230.0, True)
            (low,) = (await b.write((2, 100.0))).outcomes
            assert (low.verified, low.refused) == (False, "100 W is outside what the device takes: 230..58650 W")
            (outcome,) = (await b.write((1, 500.0))).outcomes
            assert (outcome.verified, outcome.read_back_w) == (True, 460.0)
            (back,) = (await b.pdu.apply([LimitWrite(1, math.nan, restore=found[1])])).outcomes
            assert (back.verified, back.read_back_w, back.disabled) == (True, None, True)
            assert b.simulator.peek("1.3.6.1.4.1.1718.3.2.3.1.9.1.1.1") == 0

    run(scene)


# -- recordings of real devices


@pytest.mark.parametrize("version", ["2c", "3"])
def test_recorded_px3_is_read_and_takes_limits(snmprec_folder: Path, version: str) -> None:
    async def scene() -> None:
        simulator = recorded(snmprec_folder / "raritan-pdu_px3.snmprec", "raritan_px")
        async with on_wire(simulator, version) as b:
            identity = await b.pdu.identify()
            assert (identity.model, identity.firmware) == ("PX3-5493U-K2", "4.2.0.5-50274")
            reading = await b.pdu.read()
            watts = [w for w in reading.power_w.values() if w is not None]
            assert (len(watts), sum(watts)) == (24, 1671.0)
            assert (reading.power_w[1], reading.current_a[1]) == (143.0, 0.633)
            assert all(reading.on.values())
            assert reading.uptime_s == pytest.approx(30463781.68, abs=20.0)
            # power thresholds leave the factory at 0 W, disabled; a printed "00" is one octet, not two
            assert {(s.limit_w, s.enabled, s.raw[1][2]) for s in reading.limits.values()} == {(0.0, False, b"\x00")}
            result = await b.write(*((outlet, 200.0) for outlet in range(1, 25)))
            assert all(outcome.verified for outcome in result.outcomes)
            restores = [LimitWrite(o, 0.0, restore=state) for o, state in reading.limits.items()]
            assert all(outcome.verified for outcome in (await b.pdu.apply(restores)).outcomes)
            assert (await b.pdu.read()).limits == reading.limits

    run(scene)


def test_recorded_px2_meters_and_has_no_power_threshold(snmprec_folder: Path) -> None:
    async def scene() -> None:
        simulator = recorded(snmprec_folder / "raritan-pdu_px2.snmprec", "raritan_px")
        async with on_wire(simulator, outlets=tuple(range(1, 13))) as b:
            identity = await b.pdu.identify()
            assert (identity.model, identity.firmware, identity.n_outlets) == ("PX2", "030004", 12)
            reading = await b.pdu.read()
            assert sum(w for w in reading.power_w.values() if w is not None) == 138.0
            assert (reading.power_w[3], reading.current_a[3]) == (68.0, 0.311)
            assert set(reading.on.values()) == {None}  # this old firmware does not serve the state
            assert {(s.limit_w, s.enabled, s.raw) for s in reading.limits.values()} == {(None, None, ())}
            (outcome,) = (await b.write((1, 100.0))).outcomes
            assert outcome.refused == "the device has no such threshold for this outlet"

    run(scene)


def test_signed_threshold_columns_of_older_firmware_are_used(snmprec_folder: Path) -> None:
    """The PX2 recording has signed thresholds of the current only: a profile of that sensor takes its limits from them."""
    profile = load_profile("raritan_px")
    assert profile.limit is not None
    assert profile.limit.lower is not None

    def current(template: str) -> str:
        return template.removesuffix(".5") + ".1"

    columns = tuple(c.model_copy(update={"oid": current(c.oid)}) for c in profile.limit.columns)
    lower_columns = tuple(c.model_copy(update={"oid": current(c.oid)}) for c in profile.limit.lower.columns)
    lower = profile.limit.lower.model_copy(update={"columns": lower_columns, "rule": "follow", "bit": None})
    digits = current(profile.limit.digits_oid or "")
    amps = {"unit": "A", "columns": columns, "lower": lower, "enable": None, "digits_oid": digits}
    signed = profile.model_copy(update={"limit": profile.limit.model_copy(update=amps)})

    async def scene() -> None:
        simulator = PduSimulator(signed, recording=snmprec_folder / "raritan-pdu_px2.snmprec")
        async with on_wire(simulator, outlets=tuple(range(1, 13)), nominal_v=230.0) as b:
            found = (await b.pdu.read()).limits
            assert {state.limit_w for state in found.values()} == {8.0 * 230.0}
            (outcome,) = (await b.write((1, 460.0))).outcomes
            assert (outcome.verified, outcome.read_back_w) == (True, 460.0)
            assert b.simulator.peek("1.3.6.1.4.1.13742.6.3.5.4.1.30.1.1.1") == 2000
            assert (await b.pdu.apply([LimitWrite(1, 0.0, restore=found[1])])).outcomes[0].verified
            assert (await b.pdu.read()).limits == found

    run(scene)


@pytest.mark.parametrize("recording", ["apc_ap8853", "apc_apdu9959eu3"])
def test_recorded_models_without_outlet_metering_are_refused(snmprec_folder: Path, recording: str) -> None:
    async def scene() -> None:
        simulator = recorded(snmprec_folder / f"{recording}.snmprec", "apc_rpdu2")
        async with on_wire(simulator, outlets=tuple(range(1, 9))) as b:
            with pytest.raises(DeviceError, match=r"MN:AP.*gives no power for outlets 1-8"):
                await b.pdu.identify()

    run(scene)


@pytest.mark.parametrize("recording", ["eatonpdu_2", "sentry3_switched", "vertiv-pdu_mn03edr1"])
def test_recorded_devices_of_other_families_are_refused(snmprec_folder: Path, recording: str) -> None:
    async def scene() -> None:
        async with on_wire(recorded(snmprec_folder / f"{recording}.snmprec", "raritan_px")) as b:
            with pytest.raises(DeviceError, match="not the Raritan family"):
                await b.pdu.identify()

    run(scene)
