"""Whatever a BMC sends: no crash, and no number that a server cannot have."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.caps.documents import (
    ENVIRONMENT_METRICS,
    PLAUSIBLE_W,
    POWER_CONTROL,
    BadDocument,
    CapPlace,
    body_of,
    cap_state,
    caps_in,
    complaint,
    link,
    links,
    obj,
    parse,
    power_in,
    set_cap_body,
    text,
    watts,
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        [0, -0.0, 2**32 - 1, 1e308, 10**400, "350", "NaN", "Automatic", "Disabled", "/redfish/v1/Chassis/1"]
    ),
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
NAMES = (
    "SetPoint", "ControlMode", "AllowableMin", "AllowableMax", "Reading", "ReadingTime", "LimitInWatts", "LimitException",
    "PowerLimit", "PowerConsumedWatts", "Status", "State", "@odata.id", "MessageId", "Message", "@Message.ExtendedInfo",
)  # fmt: skip
parts = st.dictionaries(
    st.sampled_from(NAMES), anything | st.dictionaries(st.sampled_from(NAMES), anything), max_size=8
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "PowerLimitWatts": parts | anything,
        "PowerWatts": parts | anything,
        "PowerControl": st.lists(parts | anything, max_size=4) | anything,
        "error": parts | anything,
        "@Message.ExtendedInfo": st.lists(parts | anything, max_size=3) | anything,
        "Messages": anything,
    },
)
places = [
    CapPlace(ENVIRONMENT_METRICS, "/redfish/v1/em", "/redfish/v1/c"),
    CapPlace(ENVIRONMENT_METRICS, "/redfish/v1/em", "/redfish/v1/c", power_path="/redfish/v1/p"),
    CapPlace(POWER_CONTROL, "/redfish/v1/p", "/redfish/v1/c", 0),
    CapPlace(POWER_CONTROL, "/redfish/v1/p", "/redfish/v1/c", 2, 3),
]


def is_power(value: float | None) -> bool:
    return value is None or (type(value) is float and math.isfinite(value) and 0.0 <= value <= PLAUSIBLE_W)


def numbers_in(document: Any) -> set[float]:
    """Every number of a document, as a float where it has one."""
    if isinstance(document, dict | list):
        items = document.values() if isinstance(document, dict) else document
        return {number for item in items for number in numbers_in(item)}
    if isinstance(document, bool) or not isinstance(document, int | float) or abs(document) > 1e300:
        return set()
    return {float(document)}


@given(documents, st.sampled_from(places))
def test_any_document_gives_only_numbers_that_it_has_and_a_server_can_have(
    document: dict[str, Any], place: CapPlace
) -> None:
    power_w = power_in(document, place, "Sat, 21 Nov 2026 14:00:00 GMT")
    state = cap_state(document, place)
    given_w = [power_w] if state is None else [power_w, state.cap_w, state.lowest_w, state.highest_w]
    there = numbers_in(document)
    for value in given_w:
        assert is_power(value)
        assert value is None or value in there
    if state is not None:
        assert state.active in (True, False, None)
        assert (state.cap_w is not None) >= (state.active is True)
        json.dumps(set_cap_body(place, state, 300))
        assert all(value is None or isinstance(value, str | int | float) for _, value in state.raw)


@given(documents)
def test_any_document_is_walked_and_complained_of_in_bounded_words(document: dict[str, Any]) -> None:
    for mechanism in (ENVIRONMENT_METRICS, POWER_CONTROL):
        for member in caps_in(document, mechanism):
            assert cap_state(document, CapPlace(mechanism, "", "", member)) is not None
    words = complaint(document)
    assert words is None or (words.isprintable() and 0 < len(words) < 2000)


@given(anything)
def test_any_value_is_looked_at(value: Any) -> None:
    assert is_power(watts(value))
    assert text(value).isprintable()
    for path in [link(value), *links(value)]:
        assert path is None or path.startswith("/redfish/")
    assert isinstance(obj(value, "a", "b"), dict)


@given(st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        document = parse(data)
    except BadDocument:
        return
    assert isinstance(document, dict)


@pytest.mark.parametrize(
    "data", [b'{"a": NaN}', b'{"a": -Infinity}', b"[" * 200_000, b'{"a": ' + b"9" * 5000 + b"}", b"1"]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        parse(data)


@given(st.floats(1.0, PLAUSIBLE_W), st.sampled_from(["Automatic", "Disabled", "Manual", None]))
def test_a_set_point_is_a_cap_only_when_its_mode_says_so(set_point: float, mode: str | None) -> None:
    document = {"PowerLimitWatts": {"SetPoint": set_point, "ControlMode": mode}}
    state = cap_state(document, places[0])
    assert state is not None
    assert state.active is {"Automatic": True, "Disabled": False}.get(mode or "")
    assert state.cap_w == (None if mode == "Disabled" else set_point)
    assert state.raw == (("SetPoint", set_point), ("ControlMode", mode))


def test_without_a_mode_the_set_point_alone_is_the_cap() -> None:
    on, off = (cap_state({"PowerLimitWatts": {"SetPoint": value}}, places[0]) for value in (350, None))
    assert on is not None
    assert off is not None
    assert (on.cap_w, on.active, off.cap_w, off.active) == (350.0, True, None, False)
    assert set_cap_body(places[0], on, 300) == {"PowerLimitWatts": {"SetPoint": 300}}
    assert set_cap_body(places[0], on, None) == {"PowerLimitWatts": {"SetPoint": None}}


def test_other_members_of_an_array_are_left_alone() -> None:
    assert body_of(places[3], {"LimitInWatts": 300}) == {
        "PowerControl": [{}, {}, {"PowerLimit": {"LimitInWatts": 300}}]
    }
    middle = CapPlace(POWER_CONTROL, "/redfish/v1/p", "/redfish/v1/c", 1, 3)
    assert body_of(middle, {"LimitInWatts": None}) == {"PowerControl": [{}, {"PowerLimit": {"LimitInWatts": None}}, {}]}


@pytest.mark.parametrize(
    ("reading_time", "power_w"),
    [
        ("2026-11-21T13:59:30Z", 350.0),
        ("2026-11-21T13:58:30+00:00", None),
        ("2026-11-21T14:58:30+01:00", None),
        ("2026-11-21T13:58:30", 350.0),  # without a zone nothing can be said
        ("yesterday", 350.0),
    ],
)
def test_a_stale_reading_is_no_reading(reading_time: str, power_w: float | None) -> None:
    document = {"PowerWatts": {"Reading": 350, "ReadingTime": reading_time}}
    assert power_in(document, places[0], "Sat, 21 Nov 2026 14:00:00 GMT") == power_w


def test_a_sensor_that_is_not_enabled_reads_nothing() -> None:
    member = {"PowerConsumedWatts": 350, "Status": {"State": "UnavailableOffline"}}
    assert power_in({"PowerControl": [member]}, places[2]) is None
    member["Status"] = {"State": "Enabled"}
    assert power_in({"PowerControl": [member]}, places[2]) == 350.0


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            {"MessageId": "iLO.2.14.LicenseKeyRequired", "Message": "A license key is required"},
            "the licence for power capping is missing on the BMC (LicenseKeyRequired: A license key is required)",
        ),
        ({"MessageId": "Base.1.8.PropertyNotWritable"}, "the cap is read-only here (PropertyNotWritable)"),
        ({"Message": "Power limit below minimum\r\n\x1b[31m"}, "Power limit below minimum   [31m"),
        ({"MessageId": "Base.1.8.Success", "Message": "Successfully Completed Request"}, None),
        ({}, None),
    ],
)
def test_messages_in_words(message: dict[str, str], words: str | None) -> None:
    assert complaint({"error": {"@Message.ExtendedInfo": [message]}}) == words
    assert complaint({"PowerLimitWatts": {"SetPoint@Message.ExtendedInfo": [message]}}) == words
    assert complaint({"Messages": [message], "TaskState": "Exception"}) == words
