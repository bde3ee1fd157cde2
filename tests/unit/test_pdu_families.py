"""Numbers in which PDU families differ from their siblings: taking one for the other switches or limits the wrong way.

From the vendors' MIBs: PowerNet-MIB, PDU-MIB, CPS-MIB, VERTIV-V5-MIB, ENLOGIC-PDU2-MIB, PANDUIT-MIB, DellrPDU-MIB.
"""

from fractions import Fraction

import pytest

from rpi_daemon.drivers.pdu.profile import Profile, load_profile, oid_of, profile_names

OUTLET = 7

# profile: values and columns (without the vendor's prefix, outlet 7) of on, off, reboot
SWITCHES: dict[str, tuple[tuple[int, str], tuple[int, str], tuple[int, str]]] = {
    "apc_rpdu1": ((1, "318.1.1.12.3.3.1.1.4.7"), (2, "318.1.1.12.3.3.1.1.4.7"), (3, "318.1.1.12.3.3.1.1.4.7")),
    "apc_spdu": ((1, "318.1.1.4.4.2.1.3.7"), (2, "318.1.1.4.4.2.1.3.7"), (3, "318.1.1.4.4.2.1.3.7")),
    "raritan_px1": ((1, "13742.4.1.2.2.1.3.7"), (0, "13742.4.1.2.2.1.3.7"), (2, "13742.4.1.2.2.1.3.7")),
    "cyberpower_epdu": (
        (1, "3808.1.1.3.3.3.1.1.4.7"),
        (2, "3808.1.1.3.3.3.1.1.4.7"),
        (3, "3808.1.1.3.3.3.1.1.4.7"),
    ),
    "vertiv_v5": ((2, "21239.5.2.3.5.1.6.7"), (4, "21239.5.2.3.5.1.6.7"), (6, "21239.5.2.3.5.1.6.7")),
    "enlogic": ((2, "38446.1.5.5.1.4.1.7"), (1, "38446.1.5.5.1.4.1.7"), (5, "38446.1.5.5.1.4.1.7")),
    "panduit_g5": (  # three columns that take a delay
        (0, "19536.10.1.5.2.1.3.1.7"),
        (0, "19536.10.1.5.2.1.2.1.7"),
        (0, "19536.10.1.5.2.1.4.1.7"),
    ),
    "dell_rpdu": (
        (1, "674.10903.200.2.200.130.1.4.1.4.7"),
        (2, "674.10903.200.2.200.130.1.4.1.4.7"),
        (3, "674.10903.200.2.200.130.1.4.1.4.7"),
    ),
}
# profile: (on, off)
STATES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "apc_rpdu1": ((1,), (2,)),
    "apc_rpdu2": ((2,), (1,)),
    "apc_spdu": ((1,), (2,)),
    "raritan_px1": ((1,), (0,)),
    "cyberpower_epdu": ((1,), (2,)),
    "vertiv_v5": ((1, 3, 5), (2, 4, 6)),
    "enlogic": ((1,), (0,)),
    "panduit_g5": ((2,), (1,)),
    "dell_rpdu": ((1,), (2,)),
}
# profile: (unit, one count, column)
LIMITS: dict[str, tuple[str, Fraction, str]] = {
    "apc_rpdu1": ("A", Fraction(1), "318.1.1.12.3.4.3.1.1.6.7"),
    "raritan_px1": ("A", Fraction(1, 1000), "13742.4.1.2.2.1.21.7"),
    "cyberpower_epdu": ("W", Fraction(1), "3808.1.1.3.3.4.3.1.6.7"),
    "enlogic": ("W", Fraction(1), "38446.1.5.7.1.5.1.7"),
    "panduit_g5": ("W", Fraction(1), "19536.10.1.5.1.1.10.1.7"),
    "dell_rpdu": ("A", Fraction(1), "674.10903.200.2.200.130.2.4.1.6.7"),
}
# profile: (quantity, one count, column)
METERS: list[tuple[str, str, Fraction, str]] = [
    ("apc_rpdu1", "current", Fraction(1, 10), "318.1.1.12.3.5.1.1.7.7"),
    ("apc_rpdu2_phases", "power", Fraction(10), "318.1.1.26.6.3.1.7.7"),
    ("raritan_px1", "current", Fraction(1, 1000), "13742.4.1.2.2.1.4.7"),
    ("raritan_px1", "power", Fraction(1), "13742.4.1.2.2.1.7.7"),
    ("raritan_px1", "rating", Fraction(1, 1000), "13742.4.1.2.2.1.30.7"),
    ("cyberpower_epdu", "power", Fraction(1), "3808.1.1.3.3.5.1.1.8.7"),
    ("cyberpower_epdu", "current", Fraction(1, 10), "3808.1.1.3.3.5.1.1.7.7"),
    ("vertiv_v5", "power", Fraction(1), "21239.5.2.3.6.1.12.7"),
    ("vertiv_v5", "current", Fraction(1, 100), "21239.5.2.3.6.1.8.7"),
    ("enlogic", "power", Fraction(1), "38446.1.5.9.1.6.1.7"),
    ("enlogic", "current", Fraction(1, 100), "38446.1.5.9.1.5.1.7"),
    ("panduit_g5", "power", Fraction(1), "19536.10.1.5.1.1.13.1.7"),
    ("panduit_g5", "current", Fraction(1, 100), "19536.10.1.5.1.1.5.1.7"),
    ("dell_rpdu", "current", Fraction(1), "674.10903.200.2.200.130.2.2.1.6.7"),
]
# profile: number -> word of the device's own verdict on an outlet
LOADS = {
    "enlogic": {1: "high_critical", 2: "high_warning", 3: "low_warning", 4: "low_critical", 5: "normal", 6: None},
    "panduit_g5": {1: "normal", 2: "low_warning", 3: "low_critical", 4: "high_warning", 5: "high_critical", 0: None},
    "dell_rpdu": {1: "low_warning", 2: "normal", 3: "high_warning", 4: "high_critical"},
}


def below(profile: Profile, template: str) -> str:
    """The column of outlet 7, from the vendor's own number on."""
    return oid_of(template, unit=profile.index.unit, outlet=OUTLET).removeprefix("1.3.6.1.4.1.")


@pytest.mark.parametrize("name", SWITCHES)
def test_commands(name: str) -> None:
    profile = load_profile(name)
    switching = profile.switching
    assert switching is not None
    assert switching.reboot is not None
    found = [(action.value, below(profile, action.oid)) for action in (switching.on, switching.off, switching.reboot)]
    assert found == list(SWITCHES[name])


@pytest.mark.parametrize("name", STATES)
def test_states(name: str) -> None:
    state = load_profile(name).metering.state
    assert state is not None
    assert (state.on, state.off) == STATES[name]


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    profile = load_profile(name)
    limit = profile.limit
    assert limit is not None
    assert (limit.unit, limit.step(), below(profile, limit.columns[0].oid)) == LIMITS[name]


@pytest.mark.parametrize(("name", "quantity", "step", "column"), METERS)
def test_meters(name: str, quantity: str, step: Fraction, column: str) -> None:
    profile = load_profile(name)
    measured = profile.metering.columns()[quantity]
    assert (measured.step(), below(profile, measured.oid)) == (step, column)


@pytest.mark.parametrize("name", LOADS)
def test_load_states(name: str) -> None:
    load = load_profile(name).metering.load
    assert load is not None
    assert {code: load.word(code) for code in LOADS[name]} == LOADS[name]


def test_phase_states_of_apc_differ_between_generations() -> None:
    first = next(rows for rows in load_profile("apc_rpdu1").rows if rows.kind == "phase").state
    second = load_profile("apc_rpdu2_phases").metering.load
    assert first is not None
    assert second is not None
    assert [first.word(code) for code in (1, 2, 3, 4)] == ["normal", "low_warning", "high_warning", "high_critical"]
    assert [second.word(code) for code in (1, 2, 3, 4)] == ["low_warning", "normal", "high_warning", "high_critical"]


def test_a_set_bit_of_panduit_switches_a_threshold_off() -> None:
    limit = load_profile("panduit_g5").limit
    assert limit is not None
    assert limit.enable is not None
    assert limit.lower is not None
    mask = limit.enable
    assert not mask.is_on(15)  # as a device was seen: all four disabled
    assert mask.switched(15, True) == 14
    assert mask.switched(14, True, limit.lower.bit) == 12
    assert mask.switched(12, False) == 13


def test_enlogic_counts_bits_from_the_left() -> None:
    limit = load_profile("enlogic").limit
    assert limit is not None
    assert limit.enable is not None
    assert limit.lower is not None
    assert limit.enable.encode(limit.enable.switched(0, True)) == b"\x10"
    assert limit.enable.encode(limit.enable.switched(0x10, True, limit.lower.bit)) == b"\x30"


@pytest.mark.parametrize("name", profile_names())
def test_what_is_not_an_outlet_has_no_limit_and_no_relay(name: str) -> None:
    profile = load_profile(name)
    if profile.index.counts != "outlets" or name in ("vertiv_v5", "apc_spdu"):
        assert profile.limit is None
    if profile.index.counts != "outlets":
        assert profile.switching is None
