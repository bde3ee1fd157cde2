"""The drafted configuration is accepted whatever the device tells, and careful where it tells nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.config.load import parse_config
from rpi_daemon.config.schema import Config, Pdu, expand_numbers, shorten_numbers
from rpi_daemon.devices import device_mistakes
from rpi_daemon.discover import Finding, Outlets, document, report, warnings_of
from rpi_daemon.draft import config_text
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint
from rpi_daemon.records import PduIdentity, PduReading, RowReading

ENV = {"KEY": "a long pass phrase"}
PDU = Pdu(id="pdu-a", profile="raritan_px", host="192.0.2.7", user="u", auth_key_env="KEY", priv_key_env="KEY")


def finding(
    power_w: dict[int, float | None],
    *,
    profile: str = "raritan_px",
    feeds: tuple[tuple[int, ...], ...] | None = None,
    rating_a: dict[int, float] | None = None,
    rows: dict[str, RowReading] | None = None,
    measured_v: float | None = 230.0,
    model: str = "PX3",
    **reading: Any,
) -> Finding:
    numbers = tuple(sorted(power_w))
    return Finding(
        endpoint=SnmpEndpoint("192.0.2.7", version="2c", community="c"),
        descr="a PDU",
        object_id="1.3.6.1.4.1.13742.6",
        unit=None,
        outlets=Outlets(load_profile(profile), feeds or (numbers,), numbers, {}),
        others=(),
        identity=PduIdentity("Raritan", model, "4.2", "", len(numbers), True),
        reading=PduReading(0, 1.0, power_w, {}, {}, {}, rows=rows or {}, **reading),
        rating_a=rating_a or {},
        nominal_v=230.0,
        measured_v=measured_v,
        requests=20,
    )


def drafted(found: Finding) -> Config:
    return parse_config(config_text(found, PDU), "draft", base_dir=Path("/nowhere"), env=ENV, more=device_mistakes)


rating = st.sampled_from([10.0, 13.0, 16.0, 20.0, 32.0])
watts = st.none() | st.floats(0.0, 6000.0)


@given(
    power_w=st.dictionaries(st.integers(1, 54), watts, min_size=1, max_size=54),
    rated=st.dictionaries(st.integers(1, 54), rating),
    rows=st.dictionaries(
        st.text(), st.builds(RowReading, kind=st.sampled_from(["inlet", "phase", "breaker"]), rating_a=rating)
    ),
    model=st.text(),
)
def test_whatever_a_device_tells_the_draft_is_a_good_configuration(
    power_w: dict[int, float | None], rated: dict[int, float], rows: dict[str, RowReading], model: str
) -> None:
    config = drafted(finding(power_w, rating_a=rated, rows=rows, model=model))
    outlets = config.outlets()
    assert sorted(row.number for row in outlets) == sorted(power_w)
    assert not any(row.closed_loop for row in outlets)
    assert len({row.load for row in outlets}) == len(outlets)
    told = [row.rating_a for row in rows.values() if row.kind != "phase" and row.rating_a]
    if told:  # with unity power factor and no derating, all static limits fit through the weakest part
        assert sum(row.static_safe_w for row in outlets) <= max(min(told) * 230.0, float(len(outlets)))


def test_a_rating_that_the_device_tells_is_taken_and_an_assumed_one_carries_what_flows() -> None:
    config = drafted(finding({1: 100.0, 2: 3000.0, 3: None}, rating_a={1: 13.0}))
    assert {row.number: row.rating_w for row in config.outlets()} == {1: 2990.0, 2: 3450.0, 3: 2300.0}
    (feed,) = config.constraint
    assert feed.rating_a == 20.0  # 13.5 A flow, of which 0.8 may
    told = drafted(finding({1: 3000.0}, rows={"inlet 1": RowReading("inlet", rating_a=16.0)}))
    assert told.constraint[0].rating_a == 16.0


def test_the_weakest_breaker_bounds_the_static_limits_and_is_named() -> None:
    rows = {
        "inlet 1": RowReading("inlet", rating_a=32.0),
        "breaker 1": RowReading("breaker", rating_a=16.0),
        "breaker 2": RowReading("breaker", rating_a=20.0),
    }
    found = finding(dict.fromkeys(range(1, 11), 10.0), rows=rows)
    config = drafted(found)
    assert config.constraint[0].rating_a == 32.0
    assert {row.static_safe_w for row in config.outlets()} == {264.0}  # 16 A x 0.8 x 230 V x 0.9 / 10
    assert "it has 2 breakers of 16, 20 A" in config_text(found, PDU)


def test_each_feed_has_its_own_constraint_and_rating() -> None:
    rows = {f"inlet {k}": RowReading("inlet", rating_a=a) for k, a in ((1, 16.0), (2, 32.0))}
    config = drafted(finding(dict.fromkeys(range(1, 7), 0.0), feeds=((1, 2, 3), (4, 5, 6)), rows=rows))
    assert [(c.id, c.rating_a, c.outlets) for c in config.constraint] == [
        ("pdu-a-feed-1", 16.0, ["pdu-a/1-3"]),
        ("pdu-a-feed-2", 32.0, ["pdu-a/4-6"]),
    ]


def test_phases_stand_alone_and_take_no_limit() -> None:
    found = finding({1: 1464.0, 2: 1477.0}, profile="vertiv_v5_phases")
    config = drafted(found)
    assert [(c.outlets, c.rating_a) for c in config.constraint] == [(["pdu-a/1"], 10.0), (["pdu-a/2"], 10.0)]
    assert [row.load for row in config.outlets()] == ["pdu-a-phase-1", "pdu-a-phase-2"]
    assert document(found)["limit"] is None
    assert "none that can be written" in report(found)


def test_what_only_the_owner_knows_is_marked() -> None:
    text = config_text(finding({1: 1.0}, measured_v=None), PDU)
    for key in ('id = "rack"', "nominal_v", "load", "phases", "rating_w", "static_safe_w", "rating_a"):
        assert re.search(rf"^{key}.*# .*EDIT", text, re.MULTILINE), key


def test_secrets_are_named_by_their_place_alone() -> None:
    text = config_text(finding({1: 1.0}), PDU)
    assert 'auth_key_env = "KEY"' in text
    assert "a long pass phrase" not in text


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (finding({1: 0.0, 2: 0.0}), "all 2 outlets read zero"),
        (finding({1: 100.0}, apparent=frozenset({1})), "it meters no true power per outlet"),
        (
            finding({1: 100.0}, rows={"inlet 1": RowReading("inlet", power_w=500.0)}),
            "its outlets add up to 100 W, its inlet shows 500 W",
        ),
        (finding({1: 100.0}, feeds=((1, 2, 3),)), "outlets 2-3 are not metered, and left out"),
    ],
)
def test_what_the_owner_should_know_is_said(found: Finding, says: str) -> None:
    (warning,) = warnings_of(found)
    assert warning.startswith(says)


def test_a_device_that_adds_up_gets_no_warning() -> None:
    assert warnings_of(finding({1: 99.0}, rows={"inlet 1": RowReading("inlet", power_w=110.0)})) == []


@given(st.sets(st.integers(0, 300), min_size=1))
def test_shortened_numbers_expand_to_what_they_were(numbers: set[int]) -> None:
    assert expand_numbers(shorten_numbers(numbers)) == sorted(numbers)
