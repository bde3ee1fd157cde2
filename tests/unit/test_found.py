"""Found limits: as first found, on disk and back."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.durable import write_durably
from rpi_daemon.found import FoundLimits
from rpi_daemon.records import LimitKind, LimitState, LimitWrite, PduReading

raw_values = st.one_of(st.integers(-(2**31), 2**64 - 1), st.binary(max_size=40), st.text(max_size=20), st.none())
states = st.builds(
    LimitState,
    limit_w=st.one_of(st.none(), st.floats(0.0, 1e6)),
    enabled=st.one_of(st.none(), st.booleans()),
    kind=st.sampled_from(list(LimitKind)),
    raw=st.lists(st.tuples(st.text(max_size=30), st.integers(0, 255), raw_values), max_size=4).map(tuple),
)
found_limits = st.builds(
    FoundLimits,
    st.dictionaries(st.text(max_size=10), st.dictionaries(st.integers(1, 48), states, max_size=4), max_size=3),
)


@settings(max_examples=50)
@given(found_limits)
def test_found_limits_survive_the_disk(found: FoundLimits) -> None:
    assert FoundLimits.from_json(found.to_json()) == found


@settings(max_examples=50)
@given(st.one_of(st.text(max_size=60), found_limits.map(lambda x: x.to_json()[:-3])))
def test_a_damaged_file_is_a_clear_mistake(text: str) -> None:
    with pytest.raises(ValueError, match="found limits"):
        FoundLimits.from_json(text)


@given(st.data())
def test_a_changed_octet_is_never_put_back(data: st.DataObject) -> None:
    """Refused, or nothing that would be written has changed."""
    found = FoundLimits({"pdu-0": {1: _state(800.0, 8), 2: _state(700.0, 7)}, "pdu-1": {1: _state(600.0, 6)}})
    octets = bytearray(found.to_json().encode())
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= data.draw(st.integers(1, 127))
    try:
        read = FoundLimits.from_json(octets.decode())
    except ValueError:
        return
    for pdu in found.pdus:
        assert read.writes(pdu, [1, 2]) in (found.writes(pdu, [1, 2]), ())


def test_what_was_given_back_survives_the_disk_and_a_changed_name_does_not() -> None:
    found = replace(FoundLimits({"pdu-0": {1: _state(800.0, 8)}}), given_back=frozenset({"pdu-0/1"}))
    assert FoundLimits.from_json(found.to_json()) == found
    assert found.with_pdu("pdu-1", _reading({})).given_back == {"pdu-0/1"}
    with pytest.raises(ValueError, match="digest of the outlets given back"):
        FoundLimits.from_json(found.to_json().replace('"pdu-0/1"', '"pdu-0/2"'))


def test_a_device_may_be_taken_out_by_hand() -> None:
    found = FoundLimits({"pdu-0": {1: _state(800.0, 8)}, "pdu-1": {1: _state(600.0, 6)}})
    data = json.loads(found.to_json())
    del data["pdus"]["pdu-0"]
    assert FoundLimits.from_json(json.dumps(data)) == FoundLimits({"pdu-1": {1: _state(600.0, 6)}})


def test_of_what_is_lost_nothing_is_found_anew() -> None:
    """What stands there may be ours: it may be written, and is never taken for the owner's."""
    found = FoundLimits({}, frozenset({"pdu-0"})).with_pdu("pdu-0", _reading({1: _state(550.0, 5)}))
    assert found == FoundLimits.from_json(found.to_json()) == FoundLimits({}, frozenset({"pdu-0"}))
    assert found.met("pdu-0")
    assert found.may_write("pdu-0", 1)
    assert not found.may_write("pdu-1", 1)
    assert found.writes("pdu-0", [1]) == ()


def _reading(limits: dict[int, LimitState]) -> PduReading:
    return PduReading(0, None, {}, {}, {}, limits)


def _state(limit_w: float, value: int) -> LimitState:
    return LimitState(limit_w, True, LimitKind.ALARM, (("1.3.6", 66, value),))


def test_found_limits_stay_as_first_found_and_go_back_exactly() -> None:
    first, later, missing = _state(800.0, 8), _state(1.0, 1), replace(_state(0.0, 0), limit_w=None)
    found = FoundLimits({}).with_pdu("pdu-0", _reading({2: first, 1: missing}))
    found = found.with_pdu("pdu-0", _reading({2: later}))
    back = found.writes("pdu-0", [1, 2])
    assert [w.outlet for w in back] == [1, 2]
    assert back[1] == LimitWrite(2, 800.0, first)
    assert math.isnan(back[0].limit_w)
    assert found.writes("pdu-0", [2]) == back[1:]
    assert found.writes("pdu-9", [1]) == ()


def test_an_outlet_that_joins_later_is_found_later() -> None:
    old, new = _state(800.0, 8), _state(1.0, 1)
    found = FoundLimits({}).with_pdu("pdu-0", _reading({1: old})).with_pdu("pdu-0", _reading({1: new, 2: new}))
    assert found.pdus["pdu-0"] == {1: old, 2: new}


def test_a_limit_that_could_not_be_read_is_not_found_yet() -> None:
    unread, later = LimitState(None, None, LimitKind.ALARM), _state(700.0, 7)
    found = FoundLimits({}).with_pdu("pdu-0", _reading({1: unread}))
    assert not found.knows("pdu-0", 1)
    assert not found.knows("pdu-0", 2)
    assert found.writes("pdu-0", [1]) == ()
    found = FoundLimits.from_json(found.to_json()).with_pdu("pdu-0", _reading({1: later}))
    assert found.knows("pdu-0", 1)
    assert found.pdus["pdu-0"] == {1: later}


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_durably(path, "one")
    write_durably(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]


def test_an_outlet_whose_limit_stands_elsewhere_now_is_another_outlet() -> None:
    found = FoundLimits({}).with_pdu("pdu-0", _reading({1: _state(800.0, 8), 2: _state(800.0, 8)}))
    elsewhere = replace(_state(800.0, 8), raw=(("1.3.7", 66, 8),))
    now = _reading({1: _state(1.0, 1), 2: elsewhere, 3: elsewhere})
    assert found.moved("pdu-0", now) == [2]
    assert found.moved("pdu-0", _reading({2: replace(elsewhere, raw=())})) == []
    assert found.moved("pdu-1", now) == []


def test_a_device_is_known_by_its_serial_number() -> None:
    found = FoundLimits({}).with_pdu("pdu-0", _reading({1: _state(800.0, 8)}), "SN-A")
    found = found.with_pdu("pdu-0", _reading({1: _state(700.0, 7)}), "SN-B").with_pdu("pdu-1", _reading({}))
    assert found.serials == {"pdu-0": "SN-A"}, "the one that was met first"
    assert FoundLimits.from_json(found.to_json()) == found
    assert [found.another("pdu-0", serial) for serial in ("SN-A", "SN-B", "")] == [None, "SN-A", None]
    assert found.another("pdu-1", "SN-B") is None, "it told none"


def test_a_changed_serial_number_is_no_other_device() -> None:
    found = FoundLimits({}).with_pdu("pdu-0", _reading({1: _state(800.0, 8)}), "SN-A")
    with pytest.raises(ValueError, match="serial number of pdu-0"):
        FoundLimits.from_json(found.to_json().replace("SN-A", "SN-B"))
    data = json.loads(found.to_json())
    del data["pdus"]["pdu-0"], data["sha256"]["pdu-0"]
    assert FoundLimits.from_json(json.dumps(data)) == FoundLimits({}), "taken out by hand"
    old = {key: value for key, value in json.loads(found.to_json()).items() if key != "serials"}
    assert FoundLimits.from_json(json.dumps(old)).serials == {}, "as an older version wrote it"
