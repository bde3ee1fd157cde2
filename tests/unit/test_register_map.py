"""Register maps: what is refused, and in which words; how reads are put together."""

import pytest
from modbus_examples import GATED, WATTS, example_map

from rpi_daemon.drivers.pdu.register_map import Number, Span, blocks, load_map, map_names, parse_map
from rpi_daemon.errors import ConfigError


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_map(text.encode(), "my.toml")
    return str(error.value).splitlines()


def test_every_shipped_map_is_good_and_says_where_it_comes_from() -> None:
    assert map_names() == ["abb_cms700", "eastron_sdm630", "meanwell_cmu2c", "orv3_psu", "xerus"]
    for name in map_names():
        map_ = load_map(name)
        assert map_.name == name
        assert len(map_.source) > 10
        assert map_.proven == "none"
    assert [name for name in map_names() if load_map(name).limit is not None] == ["meanwell_cmu2c"]


@pytest.mark.parametrize(
    ("change", "line", "sentence"),
    [
        (('type = "u32"', 'type = "u33"'), 13, "metering.power.type: Input should be 'u16', "),
        (('unit = "W"\n\n[limit]', 'unit = "VA"\n\n[limit]'), 9, "metering: power.unit must be 'W', it is 'VA'"),
        (("stride = 2", "stride = 1"), 9, "metering.power: stride 1 is shorter than the 2 registers of one outlet"),
        (("address = 0x1000", "address = 0xFFF0"), 9, "metering.power: outlet 48 ends at 0x1004f, beyond 0xffff"),
        (("address = 0x1000", "address = 70000"), 10, "metering.power.address: Input should be less than or equal to 65535"),
        (("function = 4", "function = 5"), 11, "metering.power.function: Input should be 3 or 4, got 5"),
        (("address = 0x0100", "address = 0x0100\nfunction = 4"), 17, "limit: function must be 3: input registers cannot be written"),
        (("stride = 1", ""), 17, "limit: needs stride or addresses: 48 outlets cannot share one set-point"),
        (("maximum = 5000", "maximum = 70000"), 17, "limit: 70000 W cannot be written: 70000 does not fit u16"),
        (("maximum = 5000", "maximum = 10\nminimum = 20"), 17, "limit: minimum 20 is above maximum 10"),
        (("maximum = 5000", "maximum = 10\nstep = 0.4"), 17, "limit: step 0.4 is not a whole number of counts of 1 W"),
        (('stride = 1\ntype = "u16"', 'stride = 2\ntype = "f32"'), 17, "limit: type 'f32' needs step, the device's own"),
        (('type = "u16"', 'type = "u32"\nwrite = 6'), 17, "limit: stride 1 is shorter than the 2 registers"),
        (("function = 4", 'function = 3\nmissing = [{ first = "x", meaning = "y" }]'), 12, "metering.power.missing[1].first"),
        (("writes_per_outlet_day = 1000", ""), 25, "pace.writes_per_outlet_day: Field required"),
        (("outlets = 48", "outlets = 48\ncolour = 1"), 8, "colour: Extra inputs are not permitted, got 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_reason(change: tuple[str, str], line: int, sentence: str) -> None:
    text = WATTS.replace(*change, 1)
    assert text != WATTS
    assert any(found.startswith(f"my.toml:{line}: {sentence}") for found in mistakes(text)), mistakes(text)


def test_overlapping_registers_are_named_with_both_owners() -> None:
    text = WATTS.replace("function = 4\nstride = 2", "stride = 2").replace("0x1000", "0x00D0")
    assert mistakes(text) == ["my.toml:16: limit: overlaps metering.power at register 0x0100 (outlet 1, function 3)"]


def test_a_map_without_metering_or_with_torn_text_is_refused() -> None:
    head, _, tail = WATTS.partition("[metering.power]")
    assert "my.toml:9: metering: is empty: name at least one quantity" in mistakes(
        head + "[metering]\n[limit]" + tail.partition("[limit]")[2]
    )
    assert mistakes("a = [")[0].startswith("my.toml: not a TOML file: ")
    with pytest.raises(ConfigError, match="register map 'nothing' is not known: choose one of abb_cms700, "):
        load_map("nothing")
    with pytest.raises(ConfigError, match=r"/nowhere/x\.toml: cannot read the register map: No such file"):
        load_map("/nowhere/x.toml")


def test_an_enable_bit_may_be_shared_but_not_with_the_set_point() -> None:
    assert example_map(GATED).limit is not None
    wrong = mistakes(GATED.replace("0x00C4", "0x0101"))
    assert "limit.enable: overlaps limit at register 0x0101" in wrong[0]


def test_values_with_precision_shift_and_sentinels() -> None:
    iout = Number(address=0x50, type="u16", precision=6)  # OpenBMC rackmon: 1/64 A
    assert iout.value([64]) == 1.0
    assert iout.value([1]) == 0.015625
    shifted = Number(address=0, type="i16", scale=0.1, shift=-40.0)
    assert shifted.value([0xFFFF]) == -40.1
    swapped = Number(address=0, type="u32", word_order="little", byte_order="little")
    assert swapped.raw([0x3412, 0x7856]) == 0x56781234
    assert swapped.registers(0x56781234) == (0x3412, 0x7856)
    nan = Number(address=0, type="f32")
    assert nan.value([0x7FC0, 0]) is None
    assert nan.why_missing([0x7FC0, 0]) == "not a number"


def test_blocks_are_few_bounded_and_never_torn() -> None:
    spans = [Span(4, 10, 2), Span(4, 0, 2), Span(4, 4, 2), Span(3, 0, 2), Span(4, 0, 2)]
    assert blocks(spans) == [Span(3, 0, 2), Span(4, 0, 2), Span(4, 4, 2), Span(4, 10, 2)]
    assert blocks(spans, max_gap=2) == [Span(3, 0, 2), Span(4, 0, 6), Span(4, 10, 2)]
    assert blocks(spans, max_gap=4) == [Span(3, 0, 2), Span(4, 0, 12)]
    assert blocks(spans, most=6, max_gap=4) == [Span(3, 0, 2), Span(4, 0, 6), Span(4, 10, 2)]
    assert blocks([]) == []
