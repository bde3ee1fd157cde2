"""The shipped PDU profiles hold what the vendors' MIBs say, and a mistake in a user's own profile is named."""

import tomllib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.drivers.pdu import profiles
from rpi_daemon.drivers.pdu.profile import EnableMask, load_profile, oid_of, profile_names, to_wire
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import LimitKind

SHIPPED = Path(profiles.__file__).parent


def written(tmp_path: Path, edit: Callable[[str], str], name: str = "raritan_px") -> Path:
    path = tmp_path / "own.toml"
    path.write_text(edit((SHIPPED / f"{name}.toml").read_text()))
    return path


def test_the_shipped_profiles() -> None:
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.limit is None or profile.limit.kind is LimitKind.ALARM  # none of these holds current back
        assert profile.proven != "hardware"  # until the hardware bench passed


def test_raritan_columns_scale_and_mask() -> None:
    """PDU2-MIB: outletSensorConfigurationTable and outletSensorMeasurementsTable, sensor type 5 is activePower."""
    profile = load_profile("raritan_px")
    limit, config = profile.limit, "1.3.6.1.4.1.13742.6.3.5.4.1"
    assert limit is not None
    assert limit.enable is not None
    assert limit.lower is not None
    assert oid_of(profile.metering.power.oid, unit=1, outlet=7) == "1.3.6.1.4.1.13742.6.5.4.3.1.4.1.7.5"
    assert [oid_of(c.oid, unit=1, outlet=7) for c in limit.columns] == [f"{config}.23.1.7.5", f"{config}.30.1.7.5"]
    assert [c.type for c in limit.columns] == ["gauge32", "integer"]
    assert oid_of(limit.digits_oid or "", unit=1, outlet=7) == f"{config}.7.1.7.5"
    assert limit.step(0) == 1
    assert limit.step(3) == Fraction(1, 1000)
    assert limit.enable.encode(limit.enable.switched(0, True)) == b"\x10"  # upperCritical(3), MSB first
    assert limit.enable.encode(limit.enable.switched(0x10, True, limit.lower.bit)) == b"\x30"


def test_apc_thresholds_are_watts_and_metering_has_its_own_scales() -> None:
    profile = load_profile("apc_rpdu2")
    meter, limit = profile.metering, profile.limit
    assert limit is not None
    assert meter.current is not None
    assert meter.energy is not None
    assert meter.state is not None
    assert (limit.unit, limit.step(), limit.enable) == ("W", 1, None)
    assert [c.oid for c in limit.columns] == ["1.3.6.1.4.1.318.1.1.26.9.4.1.1.7.{outlet}"]
    assert (meter.power.step(), meter.current.step(), meter.energy.step()) == (1, Fraction(1, 10), 100)
    assert (meter.state.off, meter.state.on) == ((1,), (2,))


def test_masks_of_other_families() -> None:
    inverted = EnableMask(oid="1.3.{outlet}", type="integer", bit=2, inverted=True)  # a set bit disables
    assert not inverted.is_on(15)
    assert inverted.switched(15, True) == 11
    assert inverted.switched(11, False) == 15
    assert inverted.decode(15) == inverted.encode(15) == 15
    assert inverted.decode(b"\x0f") is None
    two = EnableMask(oid="1.3.{outlet}", type="bits", bit=9, octets=2)
    assert two.encode(two.switched(0, True)) == b"\x00\x40"
    assert two.decode(b"\x80") == 0x8000  # trailing zero octets may be left out
    assert two.decode(b"") is None
    assert two.decode(b"\0\0\0") is None


def test_zero_is_no_limit_where_no_mask_could_say_so() -> None:
    for name in profile_names():
        limit = load_profile(name).limit
        if limit is not None:
            assert (limit.none, limit.minimum) == (((), 0) if limit.enable is not None else ((0,), 1)), name


def test_what_means_none_may_not_be_written(tmp_path: Path) -> None:
    path = written(tmp_path, lambda text: text.replace("minimum = 1\n", "", 1), "apc_rpdu2")
    with pytest.raises(
        ConfigError, match=r"limit: .*none: 0 lies within minimum\.\.maximum \(0\.\.2147483647\): not both"
    ):
        load_profile(path)


def test_a_profile_of_ones_own_is_loaded_by_path(tmp_path: Path) -> None:
    path = written(tmp_path, lambda text: text.replace('"raritan_px"', '"mine"'))
    assert load_profile(path).name == load_profile(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("octets = 1", "octets = 1\nbits = 8", r"own\.toml:94: limit\.enable\.bits: Extra inputs are not permitted, got 8"),
        ('kind = "alarm"', 'kind = "breaker"', r"limit\.kind: .*'alarm'.*'trip_off'.*, got 'breaker'"),
        ("bit = 3", "bit = 9", r"limit\.enable: .*bit 9 is outside 1 octet\(s\): allowed 0\.\.7"),
        ('type = "gauge32"\nunit = "W"', 'type = "float"\nunit = "W"', r"metering\.power\.type: .*'gauge32'.*'float'"),
        ('unit = "A"', 'unit = "mA"', r"metering\.current\.unit: .*, got 'mA'"),
        ('unit = "A"', 'unit = "W"', r"metering: .*current\.unit must be 'A'"),
        ("batch_varbinds = 48", 'batch_varbinds = "48"', r"pace\.batch_varbinds: Input should be a valid integer, got '48'"),
        ("settle_s = 1.0", "", r"pace\.settle_s: Field required"),
        ('rule = "disable"\nbit = 2', 'rule = "follow"\nbit = 2', r"limit\.lower: .*rule 'disable' needs bit"),
        ('model_pattern = ', 'serial_pattern = "("\nmodel_pattern = ', r"serial_pattern is not a regular expression"),
        ('model_pattern = ', 'serial_pattern = "SN"\nmodel_pattern = ', r"serial_pattern must have exactly one group"),
        ('columns = [\n', 'scale = 1.0\ncolumns = [\n', r"limit: .*either scale .* or digits_oid"),
        ("[index]\n", "[index]\nfirst = 1\n", r"index\.first: Extra inputs"),
        ("{outlet}.14", "{socket}.14", r"metering\.state\.oid: is not an OID.*\{unit\}, \{outlet\}"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_key_and_what_is_allowed(tmp_path: Path, old: str, new: str, message: str) -> None:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    with pytest.raises(ConfigError, match=message):
        load_profile(written(tmp_path, edit))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.{outlet}.5", r"metering\.voltage\.oid: .* is the column of metering\.power\.oid already"),
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.{outlet}.5.1", r"metering\.voltage\.oid: .* overlaps .* of metering\.power\.oid"),
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.{outlet}..4", r"metering\.voltage\.oid: is not an OID"),
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.{outlet}.4294967296", r"metering\.voltage\.oid: .*above 4294967295"),
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.4", r"metering\.voltage\.oid: .*must name \{outlet\}"),
        ("5.2.3.1.4.{unit}.{row}.1", "5.2.3.1.4.{unit}.{outlet}.1", r"rows\[1\]\.current\.oid: .*must name \{row\} in \[\[rows\]\]"),
        ("6.5.4.3.1.4.{unit}.{outlet}.4", "6.5.4.3.1.4.{unit}.{row}.4", r"metering\.voltage\.oid: .*must name \{row\} in \[\[rows\]\], and only there"),
        ("bit = 0 }", "bit = 3 }", r"thresholds\[1\]\.enable: bit 3 of .* is that of limit already"),
        ('level = "lower_critical"', 'level = "lowest"', r"thresholds\[1\]\.level: .*'lower_critical'.*, got 'lowest'"),
        ("codes = { low_critical = [2]", "codes = { fine = [2]", r"metering\.load\.codes\.fine.*'normal'"),
        ("codes = { low_critical = [2]", "codes = { low_critical = [4]", r"metering\.load: .*two words to one number"),
        ('index = ["1-2"]', 'index = ["1-b"]', r"rows\[1\]\.index\[1\]: .*pattern.*got '1-b'"),
        ("settle_s = 1.0", "settle_s = 1.0\nbulk_repetitions = 0", r"pace\.bulk_repetitions: .*greater than or equal to 1, got 0"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_right_are_named_with_their_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, lambda text: text.replace(old, new, 1))
    shipped = (SHIPPED / "raritan_px.toml").read_text()
    changed = shipped[: shipped.index(old)].count("\n") + 1
    with pytest.raises(ConfigError, match=message) as caught:
        load_profile(path)
    places = [int(line.removeprefix(f"{path}:").split(":")[0]) for line in str(caught.value).splitlines()]
    assert any(abs(place - changed) <= 7 for place in places)  # the line itself, or the head of its table


def test_switching_needs_a_state_that_confirms_it(tmp_path: Path) -> None:
    text = (SHIPPED / "apc_rpdu2.toml").read_text()
    start, end = text.index("[metering.state]"), text.index("[metering.load]")
    path = tmp_path / "own.toml"
    path.write_text(text[:start] + text[end:])
    with pytest.raises(ConfigError, match=r"switching needs metering\.state"):
        load_profile(path)


def test_rows_name_every_place_they_may_have() -> None:
    (inlet, breaker) = load_profile("raritan_px").rows
    assert inlet.suffixes() == ["1", "2"]
    assert breaker.suffixes() == [str(n) for n in range(1, 13)]
    lines = next(rows for rows in load_profile("sentry4").rows if rows.kind == "line")
    assert lines.suffixes() == ["1.1", "1.2", "1.3", "1.4", "2.1", "2.2", "2.3", "2.4"]


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path, lambda text: text.replace("octets = 1", "octets = 9").replace("settle_s = 1.0", "rest = 1")
    )
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert len(str(caught.value).splitlines()) == 3
    places = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    lines = path.read_text().splitlines()
    octets, pace, rest = (
        next(number for number, line in enumerate(lines, 1) if line.startswith(start))
        for start in ("octets = 9", "[pace]", "rest = 1")
    )
    assert places == [
        [f"{path}:{octets}", "limit.enable.octets"],
        [f"{path}:{pace}", "pace.settle_s"],
        [f"{path}:{rest}", "pace.rest"],
    ]


def test_absent_and_unreadable_profiles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose one of apc_rpdu1, .*raritan_px.*, or give a path"):
        load_profile("raritan")
    with pytest.raises(ConfigError, match="cannot read the PDU profile"):
        load_profile(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file"):
        load_profile(broken)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_limit_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        to_wire(value, Fraction(1))


def test_every_shipped_key_is_in_the_schema() -> None:
    for name in profile_names():
        table: dict[str, Any] = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
        assert set(table) <= set(type(load_profile(name)).model_fields)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (b"16A", 16),
        (b"10 A", 10),
        (b" 32", 32),
        (b"12.5A", None),
        (b"", None),
        (b"A", None),
        (b"16A 3P", None),
        (16, None),
    ],
)
def test_a_number_in_a_text_is_taken_only_where_it_is_one(value: object, count: int | None) -> None:
    rating = load_profile("raritan_px").metering.rating
    assert rating is not None
    assert rating.count(value) == count
