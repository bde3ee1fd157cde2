"""The MIB file and the numbers in the code say the same; what a notice becomes on the wire."""

import re

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.cli import main
from rpi_daemon.drivers.traps.mib import ALARMS, EVENTS, OBJECTS, date_and_time, mib_text, notification_oid, varbinds
from rpi_daemon.records import Mode, Notice, SafeState, Severity

BASE = ["sequence", "dropped", "time", "rack", "severity", "alarm_state", "alarm_id", "subject", "text"]
MEASURED = ["value", "threshold", "unit"]
STANDING = ["standing_alarms", "mode", "safe_state"]
EXTRA = {
    "overload_predicted": [*MEASURED, "seconds_to_overload"],
    "overload": MEASURED,
    "over_derating": MEASURED,
    "limit_escaped": MEASURED,
    "budget_shortfall": MEASURED,
    **dict.fromkeys(("started", "stopped", "heartbeat", "state_change", "mode_change"), STANDING),
}


def camel(name: str) -> str:
    return "rpid" + "".join(word.capitalize() for word in name.split("_"))


def definitions(root: str) -> dict[str, int]:
    found = re.findall(rf"^(rpid\w+) [A-Z-]+\n(?:(?!rpid).*\n)*?    ::= {{ {root} (\d+) }}", mib_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def test_numbers_are_those_of_the_file() -> None:
    alarms = {camel(name): number for name, number in ALARMS.items()}
    clears = {f"{name}Cleared": number + 100 for name, number in alarms.items()}
    events = {camel(name): number for name, number in EVENTS.items()}
    assert definitions("rpidNotifications") == alarms | clears | events
    assert definitions("rpidObjects") == {camel(name): number for name, number in OBJECTS.items()}


def test_each_notification_carries_the_objects_that_the_file_lists() -> None:
    listed = dict(re.findall(r"^(rpid\w+) NOTIFICATION-TYPE\n    OBJECTS     \{([^}]*)\}", mib_text(), re.MULTILINE))
    for name in (*ALARMS, *EVENTS):
        assert re.split(r",\s*", listed[camel(name)].strip()) == [camel(o) for o in [*BASE, *EXTRA.get(name, [])]]
    for name in ALARMS:
        assert re.split(r",\s*", listed[camel(name) + "Cleared"].strip()) == [camel(o) for o in BASE]


def notice(**changes: object) -> Notice:
    fields: dict[str, object] = {
        "kind": "overload_predicted", "state": "raised", "severity": Severity.WARNING, "alarm": "overload_predicted:b",
        "subject": "b", "text": "text", "t_utc_ns": 1_798_761_599_987_654_321, "value": 3750.25, "threshold": 3680.0,
        "unit": "W", "seconds": 3,
    }  # fmt: skip
    return Notice(**(fields | changes))  # type: ignore[arg-type]


def test_a_notice_on_the_wire() -> None:
    root = "1.3.6.1.4.1.99.1.1"
    assert notification_oid(notice(), 99) == "1.3.6.1.4.1.99.1.0.1"
    assert notification_oid(notice(state="cleared"), 99) == "1.3.6.1.4.1.99.1.0.101"
    assert notification_oid(notice(kind="heartbeat", state="event"), 99) == "1.3.6.1.4.1.99.1.0.203"
    assert varbinds(notice(), "rack-7", 99, sequence=2**32 + 5, dropped=1) == [
        (f"{root}.1.0", ("Unsigned32", 5)),
        (f"{root}.2.0", ("Counter32", 1)),
        (f"{root}.3.0", ("OctetString", b"\x07\xea\x0c\x1f\x17\x3b\x3b\x09+\0\0")),
        (f"{root}.4.0", ("OctetString", b"rack-7")),
        (f"{root}.5.0", ("Integer32", 2)),
        (f"{root}.6.0", ("Integer32", 1)),
        (f"{root}.7.0", ("OctetString", b"overload_predicted:b")),
        (f"{root}.8.0", ("OctetString", b"b")),
        (f"{root}.9.0", ("OctetString", b"text")),
        (f"{root}.10.0", ("Integer32", 3_750_250)),
        (f"{root}.11.0", ("Integer32", 3_680_000)),
        (f"{root}.12.0", ("OctetString", b"W")),
        (f"{root}.13.0", ("Unsigned32", 3)),
    ]


def test_a_receiver_counts_the_alarms_that_it_hears_of() -> None:
    beat = notice(kind="heartbeat", state="event", value=None, threshold=None, unit=None, seconds=None,
                  standing=(Severity.INFO, Severity.WARNING, Severity.CRITICAL), mode=Mode.CLOSED_LOOP,
                  safe_state=SafeState.HOLD)  # fmt: skip
    for least, count in ((Severity.INFO, 3), (Severity.WARNING, 2), (Severity.CRITICAL, 1)):
        found = varbinds(beat, "r", 32_473, sequence=1, dropped=0, least=least)[9:]
        assert [value for _, value in found] == [("Gauge32", count), ("Integer32", 2), ("Integer32", 2)]


@given(st.text(max_size=400))
def test_text_is_cut_at_a_character(text: str) -> None:
    value = dict(varbinds(notice(text=text), "r", 1, sequence=1, dropped=0))["1.3.6.1.4.1.1.1.1.9.0"][1]
    assert isinstance(value, bytes)
    assert len(value) <= 255
    assert text.startswith(value.decode())
    assert len(value) > 251 or value.decode() == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_thousandths_stay_in_range(value: float) -> None:
    found = dict(varbinds(notice(value=value), "r", 1, sequence=1, dropped=0))["1.3.6.1.4.1.1.1.1.10.0"][1]
    assert isinstance(found, int)
    assert -(2**31) < found < 2**31
    assert abs(value) > 2e6 or abs(found - value * 1000.0) <= 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_left_out(value: float) -> None:
    assert "1.3.6.1.4.1.1.1.1.10.0" not in dict(varbinds(notice(value=value), "r", 1, sequence=1, dropped=0))


def test_time_is_utc_to_the_tenth() -> None:
    assert date_and_time(0) == b"\x07\xb2\x01\x01\0\0\0\0+\0\0"


@pytest.mark.parametrize(("options", "number"), [([], 32_473), (["--enterprise", "4711"], 4711)])
def test_the_command_prints_the_module(options: list[str], number: int) -> None:
    done = CliRunner().invoke(main, ["mib", *options])
    assert done.exit_code == 0
    assert done.output == mib_text(number)
    assert f"{{ enterprises {number} }}" in done.output


def test_the_command_says_where_the_file_is() -> None:
    done = CliRunner().invoke(main, ["mib", "--path"])
    assert done.output.endswith("RPI-DAEMON-MIB.txt\n")
