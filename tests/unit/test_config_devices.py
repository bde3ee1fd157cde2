"""A configuration together with the files of its devices: their mistakes come with all others, each with its line."""

import os
from pathlib import Path

import pytest
from calibration_rig import calibration

from rpi_daemon.config.load import parse_config
from rpi_daemon.devices import load_checked, used_pdus
from rpi_daemon.errors import ConfigError

RACK = """\
[rack]
id = "r"
[[pdu]]
id = "a"
profile = "{profile}"
host = "192.0.2.1"
user = "u"
auth_key_file = "key"
priv_key_file = "key"
[[outlet]]
pdu = "a"
numbers = "{numbers}"
load = "n{{n}}"
rating_w = 500.0
static_safe_w = {static_safe_w}
[[constraint]]
id = "breaker"
kind = "breaker"
rating_a = 16.0
outlets = ["a/*"]
"""


def written(folder: Path, profile: str = "raritan_px", numbers: str = "1-2", static_safe_w: float = 300.0) -> Path:
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_text("a long pass phrase")
    path = folder / "rack.toml"
    path.write_text(RACK.format(profile=profile, numbers=numbers, static_safe_w=static_safe_w))
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_checked(path)
    return str(caught.value).splitlines()


def test_a_good_file_loads_and_knows_its_folder(tmp_path: Path) -> None:
    config = load_checked(written(tmp_path))
    assert config.path("key") == tmp_path / "key"


def test_an_outlet_that_nothing_measures_is_a_mistake(tmp_path: Path) -> None:
    """APC's MasterSwitch switches and meters nothing: without a board or a meter its outlets would stay blind."""
    path = written(tmp_path, profile="apc_spdu")
    (told,) = mistakes(path)
    assert told.endswith(
        "nothing measures outlet a/2: profile 'apc_spdu' of PDU 'a' has no power and no current; "
        "name a meter, or give it a channel of a board"
    )
    board = """[[board]]\nid = "b"\nport = "/dev/x"\nchannels = ["current:a/1", "current:a/2", "voltage:L1"]\n"""
    path.write_text(f"{path.read_text()}{board}")
    assert load_checked(path).outlets()[1].id == "a/2"


def test_units_of_a_chain_share_an_address_and_nothing_else_does(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text()
    second = text[text.index("[[pdu]]") : text.index("[[constraint]]")].replace('"a"', '"b"').replace("n{n}", "m{n}")
    path.write_text(f"{text}{second}")
    assert [line.split(": ", 1)[1] for line in mistakes(path)] == ["pdu[2]: stands at the same address as PDU 'a'"]
    path.write_text(f"{text}{second}".replace('id = "b"', 'id = "b"\nunit = 2'))
    assert [pdu.unit for pdu in load_checked(path).pdu] == [None, 2]


@pytest.mark.parametrize(
    ("profile", "keys", "says"),
    [
        ("raritan_px", "port = 161", "pdu[2]: stands at the same address as PDU 'a'"),
        ("raritan_px", "unit = 1", "profile 'raritan_px' reads unit 1 where none is said"),
        ("apc_rpdu1", "unit = 2", "profile 'apc_rpdu1' reads unit 1 where none is said, and knows no units"),
    ],
)
def test_one_device_is_not_two_pdus_however_it_is_said(tmp_path: Path, profile: str, keys: str, says: str) -> None:
    path = written(tmp_path, profile=profile)
    text = path.read_text()
    second = text[text.index("[[pdu]]") : text.index("[[constraint]]")].replace('"a"', '"b"').replace("n{n}", "m{n}")
    path.write_text(text + second.replace('id = "b"', f'id = "b"\n{keys}'))
    (line,) = mistakes(path)
    assert says in line


def test_a_meter_stands_for_one_outlet_and_has_the_number(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('load = "n{n}"', 'load = "n{n}"\nmeter = "a/1"'))
    (line,) = mistakes(path)
    assert "outlet[1]" in line
    assert "outlet a/2 would go by meter a/1, as a/1 does already" in line
    second = text[text.index("[[pdu]]") : text.index("[[outlet]]")].replace('"a"', '"b"').replace("2.1", "2.2")
    path.write_text(text.replace('load = "n{n}"', 'load = "n{n}"\nmeter = "b/10{n}"') + second)
    found = mistakes(path)
    assert len(found) == 2
    assert "b/101: number 101 is outside 1..54 of profile 'raritan_px'" in found[0]


def test_a_profile_that_is_not_there_is_told_beside_the_other_mistakes(tmp_path: Path) -> None:
    path = written(tmp_path, profile="raritan_xp", static_safe_w=600.0)
    os.chmod(tmp_path / "key", 0o644)
    found = mistakes(path)
    assert [line.split(": ")[0] for line in found] == [f"{path}:{n}" for n in (5, 8, 9, 15)]
    assert "pdu[1].profile: PDU profile 'raritan_xp' is not known" in found[0]
    assert "lets others read it" in found[1]
    assert "above rating_w" in found[3]


def test_every_mistake_of_an_own_profile_is_told_with_the_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "p.toml").write_text('name = "own"\nvendor = 3\n')
    found = mistakes(written(tmp_path, profile="own/p.toml"))
    assert len(found) > 3
    assert all(line.startswith(f"{tmp_path}/rack.toml:5: pdu[1].profile: {tmp_path}/own/p.toml:") for line in found)
    assert any("p.toml:2: vendor" in line and "got 3" in line for line in found)


def test_an_outlet_that_no_device_of_the_family_has_is_a_mistake(tmp_path: Path) -> None:
    (line,) = mistakes(written(tmp_path, numbers="1,2000"))
    assert line.endswith(
        "rack.toml:12: outlet[1].numbers: outlet 2000 is outside 1..54 of profile 'raritan_px' of PDU 'a'"
    )


@pytest.mark.parametrize(
    ("profile", "static_safe_w", "says"),
    [
        ("sentry3", 229.0, "229 W is no limit that profile 'sentry3' of PDU 'a' can hold: 230..58650 W at rack.nominal_v = 230 V"),
        ("sentry3", 230.0, ""),
        ("apc_rpdu2", 9.0, "9 W is below guard.lowest_limit_w = 10 W"),
        ("raritan_px", 10.0, ""),
    ],
)  # fmt: skip
def test_a_static_safe_that_its_device_cannot_hold_is_a_mistake(
    profile: str, static_safe_w: float, says: str, tmp_path: Path
) -> None:
    """A threshold in whole amperes would be rounded to 0 A, which is none."""
    path = written(tmp_path, profile=profile, static_safe_w=static_safe_w)
    assert load_checked(path).outlet[0].static_safe_w == static_safe_w  # nobody writes it
    path.write_text(path.read_text().replace("rating_w = 500.0", "rating_w = 500.0\nclosed_loop = true"))
    if says:
        assert any(line.endswith(f"outlet[1].static_safe_w: {says}") for line in mistakes(path))
    else:
        assert load_checked(path).outlet[0].closed_loop


def test_a_meter_that_no_outlet_refers_to_is_there_for_calibration_alone(tmp_path: Path) -> None:
    (tmp_path / "c.key").write_text("public")
    (tmp_path / "c.key").chmod(0o600)
    text = """
[[pdu]]
id = "pdu"
profile = "raritan_px"
host = "192.0.2.10"
version = "2c"
community_file = "c.key"
allow_insecure = true

[[pdu]]
id = "reference"
driver = "modbus_tcp"
profile = "eastron_sdm630"
host = "192.0.2.11"
allow_insecure = true

[[outlet]]
pdu = "pdu"
numbers = "1-2"
load = "l-{n}"
rating_w = 100.0
static_safe_w = 10.0

[[constraint]]
id = "rack"
kind = "rack"
rating_w = 1000.0
outlets = ["*"]
"""
    config = parse_config(text, "rack.toml", base_dir=tmp_path, env={})
    assert [pdu.id for pdu in used_pdus(config)] == ["pdu"]
    metered = parse_config(
        text.replace('load = "l-{n}"', 'load = "l-{n}"\nmeter = "reference/{n}"'),
        "rack.toml",
        base_dir=tmp_path,
        env={},
    )
    assert [pdu.id for pdu in used_pdus(metered)] == ["pdu", "reference"]


@pytest.mark.parametrize(
    ("driver", "changes", "says"),
    [
        ('driver = "iio"\niio_device = "adc"', {"board": "b"}, None),
        ('driver = "iio"\niio_device = "adc"', {"board": "c"}, "of board 'c', this is 'b'"),
        ('port = "/dev/null"', {"board": "c"}, None),  # the board's own serial number decides, once it is asked
        ('port = "/dev/null"', {"supply": "dc"}, "made on DC, rack.supply is 'ac'"),
    ],
)
def test_a_calibration_of_another_board_or_supply_is_a_mistake(
    tmp_path: Path, driver: str, changes: dict[str, str], says: str | None
) -> None:
    path = written(tmp_path)
    (tmp_path / "b.json").write_text(calibration(**changes).to_json())
    board = f'[[board]]\nid = "b"\n{driver}\nchannels = ["current:a/1"]\ncalibration = "b.json"\n'
    path.write_text(path.read_text() + board)
    if says is None:
        load_checked(path)
    else:
        (line,) = mistakes(path)
        assert says in line
