"""Each shipped profile on an agent shaped by it, and on recordings of real devices where there are any."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon._fastpath.core import Varbind, decode_v2c, encode_v2c
from rpi_daemon.drivers.pdu.profile import Profile, load_profile, profile_names
from rpi_daemon.drivers.pdu.sim import REBOOT_S, Faults, PduSimulator
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession
from rpi_daemon.errors import DeviceError
from rpi_daemon.records import LimitWrite, PduReading, RowReading, SwitchAction

N = 6
NOMINAL_V = 230.0

each_profile = pytest.mark.parametrize("name", profile_names())


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20.0))


@asynccontextmanager
async def on_wire(
    simulator: PduSimulator, n: int = N, *, profile: Profile | None = None, nominal_v: float = NOMINAL_V, **options: Any
) -> AsyncIterator[SnmpPdu]:
    async with simulator:
        endpoint = SnmpEndpoint("127.0.0.1", simulator.port, version="2c", community="public", timeout_s=1.0)
        pdu = SnmpPdu(
            SnmpPduOptions(
                endpoint, profile or simulator.profile, tuple(range(1, n + 1)), nominal_v=nominal_v, **options
            )
        )
        try:
            await pdu.open()
            yield pdu
        finally:
            await pdu.close()


def draw_w(outlet: int) -> float:
    return 40.0 * outlet


def simulated(name: str, **options: Any) -> PduSimulator:
    return PduSimulator(load_profile(name), N, power_w=draw_w, **options)


def recorded(folder: Path, recording: str, profile: str) -> PduSimulator:
    return PduSimulator(load_profile(profile), recording=folder / f"{recording}.snmprec")


def total_w(reading: PduReading) -> float:
    return sum(watts for watts in reading.power_w.values() if watts is not None)


def step_of(pdu: SnmpPdu, quantity: str) -> float:
    column = getattr(pdu.profile.metering, quantity)
    return float(column.step({"current": 3, "power_factor": 2}.get(quantity, 0)))


# -- every profile


@each_profile
def test_an_agent_of_the_family_is_known_and_read(name: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(name, on=lambda outlet: outlet != 3)) as pdu:
            identity = await pdu.identify()
            assert (identity.vendor, identity.n_outlets) == (pdu.profile.vendor, N)
            assert identity.proven is (pdu.profile.proven != "none")
            reading = await pdu.read()
            meter = pdu.profile.metering
            expected = {outlet: 0.0 if outlet == 3 else draw_w(outlet) for outlet in range(1, N + 1)}
            if meter.power is not None:
                assert reading.power_w == pytest.approx(expected, abs=step_of(pdu, "power") / 2 + 1e-9)
                assert reading.apparent == frozenset()
            elif meter.current is not None:  # amperes x nominal voltage, and said so
                near = NOMINAL_V * step_of(pdu, "current") / 2 + 1e-9
                assert reading.power_w == pytest.approx(expected, abs=near)
                assert reading.apparent == frozenset(expected)
            else:
                assert set(reading.power_w.values()) == {None}
            if meter.current is not None:
                amps = {outlet: watts / 230.0 for outlet, watts in expected.items()}
                assert reading.current_a == pytest.approx(amps, abs=step_of(pdu, "current") / 2 + 1e-9)
            if meter.voltage is not None:
                assert set(reading.voltage_v.values()) == {230.0}
            if meter.state is not None:
                assert reading.on == {outlet: outlet != 3 for outlet in expected}

    run(scene)


@each_profile
def test_everything_the_profile_names_is_read(name: str) -> None:
    async def scene() -> None:
        async with on_wire(simulated(name)) as pdu:
            profile = pdu.profile
            details = await pdu.read_details()
            wanted = {threshold.name for threshold in profile.thresholds}
            wanted |= set() if profile.limit is None else {profile.limit.name}
            for row in details.values():
                assert wanted <= set(row.thresholds)
                assert len(set(row.thresholds)) == len(wanted | set(row.thresholds))
                assert all(getattr(row, key) is not None for key in fields_of(profile.metering.columns()))
                assert row.state == (None if profile.metering.load is None else "normal")
            rows = (await pdu.read()).rows
            assert set(rows) == {f"{table.kind} {place}" for table in profile.rows for place in table.suffixes()}
            for table in profile.rows:
                row = rows[f"{table.kind} {table.suffixes()[0]}"]
                assert row.kind == table.kind
                assert set(row.thresholds) == {threshold.name for threshold in table.thresholds}
                assert all(getattr(row, key) is not None for key in fields_of(table.columns()))
                assert (row.restriction == "always_allow") is (table.restriction is not None)

    run(scene)


def fields_of(columns: dict[str, Any]) -> list[str]:
    unit = {"power": "w", "current": "a", "voltage": "v", "apparent": "va", "energy": "wh", "rating": "a"}
    return [f"{name}_{unit[name]}" if name in unit else name for name in columns]


@each_profile
def test_a_limit_is_at_most_what_was_asked_and_within_one_step(name: str) -> None:
    async def scene() -> None:
        simulator = simulated(name)
        async with on_wire(simulator) as pdu:
            limit = pdu.profile.limit
            found = (await pdu.read()).limits
            writes = [LimitWrite(outlet, 300.0 + 10.3 * outlet) for outlet in range(1, N + 1)]
            result = await pdu.apply(writes)
            if limit is None:
                assert {outcome.refused for outcome in result.outcomes} == {f"profile {name!r} has no limit to write"}
                assert simulator.counters["sets"] == 0
                return
            for outcome in result.outcomes:
                step_w = found[outcome.outlet].step_w
                assert step_w is not None
                assert outcome.verified, outcome
                assert outcome.read_back_w is not None
                assert outcome.asked_w - step_w < outcome.read_back_w <= outcome.asked_w
                on_device_w = simulator.limit_w(outcome.outlet)
                assert on_device_w == pytest.approx(outcome.read_back_w)
            restores = [LimitWrite(outlet, 0.0, restore=state) for outlet, state in found.items()]
            assert all(outcome.verified for outcome in (await pdu.apply(restores)).outcomes)
            assert (await pdu.read()).limits == found

    run(scene)


@each_profile
def test_outlets_are_switched_and_the_state_decides(name: str) -> None:
    async def scene() -> None:
        now = [1000.0]
        simulator = simulated(name, clock=lambda: now[0])
        async with on_wire(simulator) as pdu:
            switching = pdu.profile.switching
            if switching is None:
                refused = await pdu.switch(2, SwitchAction.OFF)
                assert (refused.verified, refused.on) == (False, None)
                assert "cannot switch outlets" in (refused.refused or "")
                return
            off = await pdu.switch(2, SwitchAction.OFF)
            assert (off.verified, off.on, off.refused) == (True, False, None)
            assert off.t_verified_ns is not None
            assert not simulator.is_on(2)
            assert simulator.is_on(1)
            on = await pdu.switch(2, SwitchAction.ON)
            assert (on.verified, on.on) == (True, True)
            if switching.reboot is not None:
                reboot = await pdu.switch(2, SwitchAction.REBOOT)
                assert (reboot.verified, reboot.on) == (True, False)
                now[0] += REBOOT_S + 0.1
                assert (await pdu.read()).on[2] is True

    run(scene)


@each_profile
def test_a_user_who_may_only_read_is_told_apart(name: str) -> None:
    async def scene() -> None:
        simulator = simulated(name)
        async with on_wire(simulator) as pdu:
            simulator.faults = Faults(read_only=True)
            if pdu.profile.limit is not None:
                (outcome,) = (await pdu.apply([LimitWrite(1, 400.0)])).outcomes
                assert (outcome.verified, outcome.denied) == (False, True)
                assert "noAccess" in (outcome.refused or "")
            if pdu.profile.switching is not None:
                switched = await pdu.switch(1, SwitchAction.OFF)
                assert (switched.verified, switched.on) == (False, True)
                assert "noAccess" in (switched.refused or "")

    run(scene)


@each_profile
def test_a_device_of_another_vendor_is_refused(name: str) -> None:
    async def scene() -> None:
        other = next(other for other in profile_names() if load_profile(other).vendor != load_profile(name).vendor)
        async with on_wire(simulated(other), profile=load_profile(name)) as pdu:
            with pytest.raises(DeviceError, match=f"family of profile '{name}'"):
                await pdu.identify()

    run(scene)


# -- switching


def test_a_switching_command_is_not_sent_once_it_is_not_allowed() -> None:
    async def scene() -> None:
        simulator = simulated("apc_rpdu2")
        async with on_wire(simulator) as pdu:
            outcome = await pdu.switch(1, SwitchAction.OFF, may_write=lambda: False)
            assert (outcome.verified, simulator.counters["sets"]) == (False, 0)
            assert "does not allow" in (outcome.refused or "")
            outside = await pdu.switch(N + 1, SwitchAction.OFF)
            assert "not one of this PDU's configured outlets" in (outside.refused or "")

    run(scene)


def test_an_outlet_without_a_relay_is_not_switched() -> None:
    async def scene() -> None:
        simulator = simulated("eaton_epdu")
        async with on_wire(simulator) as pdu:
            simulator.poke("1.3.6.1.4.1.534.6.6.7.6.6.1.9.0.4", 2)
            outcome = await pdu.switch(4, SwitchAction.OFF)
            assert outcome.refused == "the device says that outlet 4 cannot be switched"
            assert simulator.counters["sets"] == 0

    run(scene)


def test_an_ignored_command_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        profile = load_profile("apc_rpdu2")
        assert profile.switching is not None
        quick = profile.model_copy(update={"switching": profile.switching.model_copy(update={"settle_s": 0.2})})
        simulator = PduSimulator(quick, N)
        async with on_wire(simulator) as pdu:
            simulator.faults = Faults(ignore_set=True)
            outcome = await pdu.switch(1, SwitchAction.OFF)
            assert (outcome.verified, outcome.on, outcome.refused) == (False, True, None)

    run(scene)


# -- quirks


def test_outlets_that_are_not_metered_have_no_reading_although_their_table_has_zeros() -> None:
    async def scene() -> None:
        simulator = PduSimulator(load_profile("cyberpower_epdu2"), N, power_w=lambda outlet: 0.0)
        async with on_wire(simulator) as pdu:
            simulator.poke("1.3.6.1.4.1.3808.1.1.6.3.3.1.7.1", 4)
            reading = await pdu.read()
            assert reading.power_w == {outlet: 0.0 if outlet <= 4 else None for outlet in range(1, N + 1)}
            assert reading.current_a[5] is None
            assert (await pdu.read_details())[5].power_w is None
            with pytest.raises(DeviceError, match="gives no power for outlets 5-6"):
                await pdu.identify()

    run(scene)


def test_outlets_of_several_feeds_are_numbered_feed_by_feed() -> None:
    async def scene() -> None:
        simulator = PduSimulator(load_profile("sentry4"), 5, power_w=draw_w)
        async with on_wire(simulator, 5) as pdu:
            assert (await pdu.read()).power_w == {outlet: draw_w(outlet) for outlet in range(1, 6)}
            assert (await pdu.apply([LimitWrite(4, 500.0)])).outcomes[0].verified
            assert simulator.peek("1.3.6.1.4.1.1718.4.1.8.4.1.9.1.2.1") == 500  # cord 2, its first outlet
            with pytest.raises(DeviceError, match="gives no power for outlets 6"):
                async with on_wire(PduSimulator(load_profile("sentry4"), 5), 6) as other:
                    await other.identify()

    run(scene)


def test_a_feed_that_stays_away_after_a_restart_moves_no_outlet() -> None:
    """Its rows are gone, and those of the next feed come first now: outlet 4 is what it was, outlets 1 to 3 are nowhere."""

    async def scene() -> None:
        simulator = PduSimulator(load_profile("sentry4"), 5, power_w=draw_w)
        async with on_wire(simulator, 5) as pdu:
            await pdu.identify()
            for outlet in ("1.1", "1.2", "1.3"):
                for column in ("8.3.1.1", "8.3.1.7"):
                    simulator.remove(f"1.3.6.1.4.1.1718.4.1.{column}.1.{outlet}")
            simulator.reboot()
            await pdu.open()
            reading = await pdu.read()
            assert reading.power_w == {1: None, 2: None, 3: None, 4: draw_w(4), 5: draw_w(5)}
            assert (await pdu.apply([LimitWrite(4, 500.0)])).outcomes[0].verified
            assert simulator.peek("1.3.6.1.4.1.1718.4.1.8.4.1.9.1.2.1") == 500

    run(scene)


def test_a_current_is_metered_finer_than_its_threshold_is_set() -> None:
    async def scene() -> None:
        simulator = PduSimulator(load_profile("sentry4"), 2, power_w=lambda outlet: 100.0)
        async with on_wire(simulator, 2) as pdu:
            assert (await pdu.read()).current_a[1] == 0.43
            simulator.poke("1.3.6.1.4.1.1718.4.1.8.4.1.5.1.1.1", 43)
            assert (await pdu.read_details())[1].thresholds["upper_critical_a"] == 4.3

    run(scene)


@pytest.mark.parametrize(("count", "amps"), [(-1, None), (-842, None), (0, 0.0), (842, 0.842)])
def test_a_negative_current_is_no_reading(count: int, amps: float | None) -> None:
    async def scene() -> None:
        simulator = PduSimulator(load_profile("eaton_epdu"), 1)
        async with on_wire(simulator, 1) as pdu:
            simulator.poke("1.3.6.1.4.1.534.6.6.7.6.4.1.3.0.1", count)
            simulator.poke("1.3.6.1.4.1.534.6.6.7.6.4.1.8.0.1", count)
            simulator.poke("1.3.6.1.4.1.534.6.6.7.6.5.1.6.0.1", count)
            reading = await pdu.read()
            assert reading.current_a[1] == amps
            assert reading.limits[1].limit_w == (pytest.approx(amps * NOMINAL_V) if amps else None)
            assert (await pdu.read_details())[1].power_factor == abs(count) / 1000.0  # its sign says leading or lagging

    run(scene)


class _ZeroLength(SnmpSession):
    """An agent that answers some objects with an INTEGER of length 0, as Sentry3 firmware does."""

    blank: frozenset[str] = frozenset()

    def _on_datagram(self, data: bytes) -> None:
        _, pdu = decode_v2c(data)
        varbinds = b"".join(
            ber(0x30, oid_octets(v.oid) + b"\x02\x00")
            if v.oid in self.blank
            else bytes(encode_v2c(b"", 0xA2, 0, [v]))[BEFORE_VARBIND:]
            for v in pdu.varbinds
        )
        body = ber(0x02, pdu.request_id.to_bytes(4, "big")) + b"\x02\x01\x00\x02\x01\x00" + ber(0x30, varbinds)
        super()._on_datagram(ber(0x30, b"\x02\x01\x01" + ber(0x04, b"public") + ber(0xA2, body)))


def ber(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82, *len(content).to_bytes(2, "big")]) + content


BEFORE_VARBIND = len(encode_v2c(b"", 0xA2, 0, []))  # the lengths of what goes around it take one octet each


def oid_octets(oid: str) -> bytes:
    whole = bytes(encode_v2c(b"", 0xA2, 0, [Varbind(oid, 0x05, None)]))
    return whole[BEFORE_VARBIND + 2 : -2]


def test_an_integer_of_length_0_is_missing_and_never_zero() -> None:
    async def scene() -> None:
        async with on_wire(simulated("sentry3"), 4) as pdu:
            column = "1.3.6.1.4.1.1718.3.2.3.1.{}.1.{}"
            pdu.session.close()
            pdu.session = line = _ZeroLength(pdu.session.endpoint)
            await pdu.open()
            assert (await pdu.read()).power_w == {outlet: draw_w(outlet) for outlet in range(1, 5)}
            line.blank = frozenset(column.format(n, "1.2") for n in (5, 7, 9, 14))
            reading = await pdu.read()
            assert (reading.power_w[2], reading.current_a[2], reading.on[2]) == (None, None, None)
            assert (reading.limits[2].limit_w, reading.limits[2].raw) == (None, ())
            assert (reading.power_w[3], reading.current_a[3], reading.on[3]) == (120.0, 0.52, True)

    run(scene)


def test_rows_voltage_and_energy_come_with_every_tenth_poll() -> None:
    async def scene() -> None:
        simulator = simulated("raritan_px")
        async with on_wire(simulator, slow_every=3) as pdu:
            readings = [await pdu.read() for _ in range(4)]
            assert [bool(r.rows) and bool(r.voltage_v) and bool(r.energy_wh) for r in readings] == [
                True, False, False, True,
            ]  # fmt: skip
            assert all(len(reading.power_w) == N for reading in readings)

    run(scene)


# -- recordings of real devices


def test_recorded_px3_rows(snmprec_folder: Path) -> None:
    async def scene() -> None:
        async with on_wire(recorded(snmprec_folder, "raritan-pdu_px3", "raritan_px"), 24) as pdu:
            reading = await pdu.read()
            inlet = reading.rows["inlet 1"]
            assert (inlet.power_w, inlet.current_a, inlet.voltage_v, inlet.power_factor) == (1665.0, 7.467, 229.0, 0.98)
            assert inlet.thresholds["upper_critical_a"] == 25.6
            assert total_w(reading) == pytest.approx(inlet.power_w, rel=0.005)
            assert {name: row.current_a for name, row in reading.rows.items() if row.kind == "breaker"} == {
                "breaker 1": 0.485,
                "breaker 2": 0.333,
            }
            details = await pdu.read_details()
            assert details[1].thresholds["upper_warning_a"] == 6.5
            assert details[24].thresholds["upper_critical_a"] == 12.8
            assert (details[1].apparent_va, details[1].power_factor, details[1].state) == (151.0, 0.99, "normal")
            assert reading.voltage_v[1] == 228.0

    run(scene)


def test_recorded_eaton_outlets_add_up_to_the_inlet(snmprec_folder: Path) -> None:
    async def scene() -> None:
        simulator = recorded(snmprec_folder, "eatonpdu_2", "eaton_epdu")
        async with on_wire(simulator, 24, nominal_v=120.0) as pdu:
            identity = await pdu.identify()
            assert (identity.model, identity.firmware) == ("EMA114-10", "05.01.0002")
            reading = await pdu.read()
            inlet = reading.rows["inlet 1.1"]
            assert total_w(reading) == 1568.0
            assert total_w(reading) == pytest.approx(inlet.power_w, rel=0.015)
            assert (inlet.power_w, inlet.current_a, inlet.voltage_v) == (1589.0, 14.108, 118.45)
            assert inlet.state == "high_warning"
            assert inlet.thresholds == {"lower_warning_a": 0.0, "upper_warning_a": 12.8, "upper_critical_a": 16.0}
            assert reading.limits[1].limit_w == 16.0 * 120.0
            assert all(reading.on.values())
            details = await pdu.read_details()
            assert (details[1].power_factor, details[1].apparent_va, details[1].current_a) == (0.842, 93.0, 0.79)
            assert "lower_critical_a" not in details[1].thresholds  # -1: the device has none
            result = await pdu.apply([LimitWrite(outlet, 333.0) for outlet in range(1, 25)])
            assert {outcome.read_back_w for outcome in result.outcomes} == {333.0}  # 2.775 A, exactly
            assert all(outcome.verified for outcome in result.outcomes)
            assert simulator.peek("1.3.6.1.4.1.534.6.6.7.6.4.1.8.0.9") == 2775
            assert simulator.peek("1.3.6.1.4.1.534.6.6.7.6.4.1.7.0.9") == 2774

    run(scene)


def test_recorded_sentry3_meters_amperes_and_takes_whole_ones(snmprec_folder: Path) -> None:
    async def scene() -> None:
        simulator = recorded(snmprec_folder, "sentry3_switched", "sentry3")
        async with on_wire(simulator, 30, nominal_v=208.0) as pdu:
            assert (await pdu.identify()).model == "CWG-30VDE455/CB"
            reading = await pdu.read()
            amps = {outlet: a for outlet, a in reading.current_a.items() if a}
            assert amps == {
                8: 0.64, 10: 0.65, 11: 0.81, 13: 0.82, 15: 0.81, 18: 0.47, 20: 0.28, 21: 0.73, 23: 0.66, 24: 0.32, 30: 0.56,
            }  # fmt: skip
            assert reading.apparent == frozenset(range(1, 31))
            assert total_w(reading) == pytest.approx(208.0 * 6.75)
            infeeds = [reading.rows[f"inlet {n}"] for n in (1, 2, 3)]
            assert [(row.current_a, row.voltage_v, row.rating_a) for row in infeeds] == [
                (3.09, 207.0, 30.0),
                (3.92, 207.8, 30.0),
                (4.34, 208.7, 30.0),
            ]
            # outlets lie between two lines: the line currents' volt-amperes are sqrt(3) times a third of their sum
            lines_va = 3**0.5 * sum((row.current_a or 0.0) * (row.voltage_v or 0.0) for row in infeeds) / 3
            assert total_w(reading) == pytest.approx(lines_va, rel=0.05)
            assert {state.limit_w for state in reading.limits.values()} == {12.0 * 208.0}
            (outcome,) = (await pdu.apply([LimitWrite(11, 1000.0)])).outcomes
            assert (outcome.verified, outcome.read_back_w) == (True, 4.0 * 208.0)
            assert simulator.peek("1.3.6.1.4.1.1718.3.2.3.1.9.1.2.1") == 4  # outlet 11: the first of infeed 2

    run(scene)


def test_recorded_cyberpower_outlets(snmprec_folder: Path) -> None:
    async def scene() -> None:
        async with on_wire(recorded(snmprec_folder, "cyberpower_pdu81005", "cyberpower_epdu2"), 8) as pdu:
            identity = await pdu.identify()
            assert (identity.model, identity.firmware, identity.proven) == ("PDU81005", "1.3.4", False)
            reading = await pdu.read()
            assert [reading.power_w[outlet] for outlet in range(1, 9)] == [0.0, 0.0, 0.0, 0.0, 82.0, 37.0, 73.0, 28.0]
            assert (reading.current_a[5], reading.energy_wh[5], reading.on[5]) == (0.4, 3100.0, True)
            assert reading.uptime_s is None
            (outcome,) = (await pdu.apply([LimitWrite(5, 200.0)])).outcomes
            assert outcome.refused == "the device has no such threshold for this outlet"

    run(scene)


@pytest.mark.parametrize(
    ("recording", "unit_w", "phase"),
    [
        ("apc_ap8853", 1140.0, RowReading("phase", 1140.0, 4.9, 242.0, 1190.0, None, 0.96, None, "normal")),
        ("apc_apdu9959eu3", 1170.0, RowReading("phase", 1160.0, 5.4, 228.0, 1250.0, None, 0.93, None, "normal")),
    ],
)
def test_recorded_apc_units_and_phases(snmprec_folder: Path, recording: str, unit_w: float, phase: RowReading) -> None:
    async def scene() -> None:
        async with on_wire(recorded(snmprec_folder, recording, "apc_rpdu2"), 1) as pdu:
            rows = (await pdu.read()).rows
            assert rows["phase 1"] == phase
            assert rows["pdu 1"].power_w == unit_w
            assert phase.power_w == pytest.approx(unit_w, rel=0.01)
            va = (phase.current_a or 0.0) * (phase.voltage_v or 0.0)
            assert va == pytest.approx(phase.apparent_va, rel=0.02)

    run(scene)


@pytest.mark.parametrize(
    ("unit", "cord_w", "lines_a"), [(1, 1701.0, [5.6, 3.69, 5.6]), (2, 1265.0, [3.84, 3.63, 3.46])]
)
def test_recorded_sentry4_cords_lines_and_phases(
    snmprec_folder: Path, unit: int, cord_w: float, lines_a: list[float]
) -> None:
    async def scene() -> None:
        async with on_wire(recorded(snmprec_folder, "sentry4", "sentry4"), 1, unit=unit) as pdu:
            rows = (await pdu.read()).rows
            cord = rows["cord 1"]
            assert (cord.power_w, cord.state, cord.rating_a) == (cord_w, "normal", 30.0)
            assert cord.thresholds["upper_warning_w"] == 7565.0
            assert [rows[f"line 1.{n}"].current_a for n in (1, 2, 3)] == lines_a
            phases = [row for row in rows.values() if row.kind == "phase"]
            assert sum(row.power_w or 0.0 for row in phases) == pytest.approx(cord_w, rel=0.01)
            for row in phases:  # true power is at most volts x amperes
                assert (row.power_w or 0.0) <= (row.voltage_v or 0.0) * (row.current_a or 0.0) * 1.01
            with pytest.raises(DeviceError, match="gives no power for outlets 1"):
                await pdu.identify()

    run(scene)
