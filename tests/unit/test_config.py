"""The configuration: every mistake at once with its line, documented defaults equal to the schema, examples that hold."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from config_examples import BASE, ENV, SECRET, mistakes, parse

from rpi_daemon.config.document import default_toml
from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import line_numbers, load_config, parse_config, section_of
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import SECRETS, Config, expand_numbers
from rpi_daemon.errors import ConfigError
from rpi_daemon.sensing import wiring

EXAMPLES = files("rpi_daemon.config.examples")
TWO_FEEDS = (
    BASE.replace('"1-2"\nload = "n{n}"', '"1"\nload = "n"')
    + '[[outlet]]\npdu = "a"\nnumbers = "2"\nload = "n"\nrating_w = 400.0\nstatic_safe_w = 200.0\n[[load]]\nid = "n"\n'
)


def with_line(after: str, line: str) -> str:
    assert after in BASE
    return BASE.replace(after, f"{after}\n{line}", 1)


def test_the_base_is_good() -> None:
    rack = rack_model(parse(BASE))
    assert rack.outlet_ids == ("a/1", "a/2")
    assert [load.name for load in rack.loads] == ["n1", "n2"]
    np.testing.assert_array_equal(rack.constraints[0].share, [1.0, 1.0])
    np.testing.assert_array_equal(rack.static_safe_w, [300.0, 300.0])
    assert not rack.opted_in.any()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (with_line('id = "r"', "nominal_w = 230.0"), 3, "rack.nominal_w: unknown key; did you mean 'nominal_v'?"),
        (with_line('id = "r"', "nominal_v = 5.0"), 3, "rack.nominal_v: 5.0: .*(allowed: >= 10, <= 1000)"),
        (with_line('id = "r"', 'nominal_v = "230"'), 3, "rack.nominal_v: '230': .*number"),
        (with_line('id = "r"', 'supply = "cd"'), 3, "'cd' is not allowed; allowed: 'ac' or 'dc'"),
        (BASE.replace('"current:a/1"', '"current:a1"'), 6, "'current:a1' is not 'voltage:L1"),
        (BASE.replace('"current:a/2"', '"current:a/3"'), 6, "no outlet is called 'a/3'; did you mean 'a/2'"),
        (BASE.replace('"current:a/2"', '"current:a/1"'), 6, "outlet a/1 is measured by board 'b' already"),
        (BASE.replace('"current:a/2"', '"current:a/1:reversed"'), 6, "outlet a/1 is measured by board 'b' already"),
        (BASE.replace('"current:a/2"', '"current:a/2:reverse"'), 6, "'current:a/2:reverse' is not .*[:reversed]'"),
        (BASE.replace('"voltage:L1"', r'"voltage:L1\n"'), 6, r"'voltage:L1.*' is not 'voltage:L1"),
        (BASE.replace('numbers = "1-2"', 'numbers = "2-1"'), 16, "range '2-1' goes back"),
        (BASE.replace('numbers = "1-2"', r'numbers = "1-2\n"'), 16, r"'1-2.*' is not a list of outlet numbers"),
        (BASE.replace('numbers = "1-2"', 'numbers = "1-600,601-1200"'), 16, "range '601-1200' is longer than any PDU"),
        (BASE.replace('load = "n{n}"', 'load = ""'), 17, "should have at least 1 character"),
        (with_line('load = "n{n}"', 'meter = "a/x"'), 18, "'a/x' is not written like 'meter-1/{n}'"),
        (with_line('load = "n{n}"', 'meter = "q/{n}"'), 18, "no PDU is called 'q'"),
        (BASE.replace('user = "u"', 'user = ""'), 11, "is needed for version 3"),
        (BASE.replace('pdu = "a"', 'pdu = "aa"'), 15, "no PDU is called 'aa'; did you mean 'a'"),
        (BASE.replace("static_safe_w = 300.0", "static_safe_w = 600.0"), 19, "600 W is above rating_w = 500 W"),
        (BASE.replace("rating_a = 16.0", "rating_a = 3.0"), 23, "adds up to 2.89855 A, above 3 A x derate 0.8 = 2.4 A"),
        (BASE.replace('kind = "breaker"', ""), 20, "constraint[1].kind: is missing and has no default"),
        (BASE.replace('"a/*"', '"a/5"'), 24, "no outlet a/5"),
        (BASE.replace('user = "u"', 'version = "2c"'), 11, "plain text; set allow_insecure = true"),
        (BASE + '[[load]]\nid = "n1"\ncritical = true\nsheddable = true\n', 28, "is critical; it cannot be sheddable"),
        (BASE + '[[load]]\nid = "n9"\n', 26, "no outlet feeds a load called 'n9'; known: n1, n2"),
        (
            TWO_FEEDS + "floor_w = 250.0\n",
            33,
            "250 W is above static_safe_w = 200 W of outlet a/2, which must carry it alone",
        ),
        (
            TWO_FEEDS + "demand_w = 450.0\n",
            33,
            "450 W is above rating_w = 400 W of outlet a/2, which must carry it alone",
        ),
        (
            BASE + '[[cap]]\nload = "n1"\nhost = "h"\nuser = "u"\npassword_env = "RPI_PDU_AUTH"\nlowest_w = 350.0\n',
            30,
            "350 W is above static_safe_w = 300 W of outlet a/1, at which the cap is left at stop",
        ),
        (
            BASE + '[retrain]\nhours = "25-26"\n',
            26,
            "retrain.hours: '25-26' is not written like '01:00-05:00' (allowed: ",
        ),
        (BASE.replace("[rack]", "[rack"), 1, "not valid TOML"),
        (with_line("static_safe_w = 300.0", "closed_loop = 1"), 20, "outlet[1].closed_loop: 1 is not true or false"),
        (BASE.replace('["a/*"]', '"*"'), 24, """constraint[1].outlets: '*' is not a list such as ["pdu-a/*"]"""),
        (BASE.replace("[rack]", "[[rack]]"), 1, "rack: is no table; write [rack] above its keys"),
        (
            BASE + '[[board]]\nid = "c"\nport = "/dev/ttyACM0"\nchannels = ["unused"]\n',
            27,
            "board[2].port: '/dev/ttyACM0' is also the port of board 'b'",
        ),
    ],
)
def test_a_mistake_names_its_line_and_what_is_allowed(text: str, line: int, says: str) -> None:
    found = mistakes(text)
    pattern = re.escape(says).replace(r"\.\*", ".*")
    assert any(re.search(pattern, item) and (f":{line}:" in item or "TOML" in item) for item in found), found


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ("rating_a = 16.0", "rating_a = -30.0"),
        ("rating_a = 16.0", "rating_a = nan"),
        ("rating_a = 16.0", "rating_a = inf"),
        ("rating_a = 16.0", "ratin_a = 16.0"),
        ('host = "192.0.2.1"', 'host = ""'),
        ('user = "u"', "user = 1"),
        ('port = "/dev/ttyACM0"', "port = 1"),
        ('auth_key_env = "RPI_PDU_AUTH"', "auth_key_env = 1"),
    ],
)
def test_what_is_there_but_wrong_is_not_called_missing(there: str, wrong: str) -> None:
    (found,) = mistakes(BASE.replace(there, wrong))
    assert found.split(": ")[1].endswith(f".{wrong.partition(' ')[0]}")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:161", "http://10.0.0.3/", "10.0.0.3/24", "10.0.0.300", "10.0.0", "[::1]", "a b", "a..b", "-\u00a0"],
)
def test_what_is_no_host_is_seen_without_asking_the_network(host: str) -> None:
    (found,) = mistakes(BASE.replace("192.0.2.1", host))
    assert f"{host!r} is not a host name or address such as 'pdu-a.example'" in found


@pytest.mark.parametrize(
    "host", ["pdu-a", "pdu_a.rack.example.", "192.0.2.1", "2001:db8::10", "fe80::1%eth0", "3com", "b\u00fcro.example"]
)
def test_names_and_addresses_are_hosts(host: str) -> None:
    assert parse(BASE.replace("192.0.2.1", host)).pdu[0].host == host


HUSH = "SuperSecret123"
SECRET_KEYS = [
    (name, key)
    for name, field in Config.model_fields.items()
    if (section := section_of(field.annotation)) is not None
    for key in SECRETS
    if f"{key}_file" in section.model_fields
]
SHAPES = [
    f'{{key}} = "{HUSH}"', f'{{key}}_file = ["{HUSH}"]', f'{{key}}_env = {{{{ value = "{HUSH}" }}}}', f'{{key}}_file = [["{HUSH}"]]',
    f'[{{table}}.{{key}}]\nvalue = "{HUSH}"', f'[{{table}}.{{key}}_file]\nvalue = "{HUSH}"',
]  # fmt: skip


def test_every_kind_of_secret_is_tried() -> None:
    assert {key for _, key in SECRET_KEYS} == set(SECRETS)
    assert len(SECRET_KEYS) == 9


@pytest.mark.parametrize(("table", "key"), SECRET_KEYS)
def test_no_mistake_shows_what_stands_beside_it(table: str, key: str) -> None:
    """A secret that somebody wrote into the file itself: right brackets or wrong ones, under a key of ours or near it."""
    for shape in SHAPES:
        line = shape.format(table=table, key=key)
        for head in (f"[[{table}]]\n", f"[{table}]\n"):
            found = mistakes(head + line if head == "[pdu]\n" else BASE + head + line)
            assert found
            assert not any(HUSH in item for item in found), found
    wrong = BASE.replace("[[pdu]]", "[pdu]").replace('auth_key_env = "RPI_PDU_AUTH"', f'{key} = "{HUSH}"')
    assert mistakes(wrong) == [
        f"t.toml:7: pdu: a table (keys: id, profile, host, user, {key}, priv_key_env): write [[pdu]] above each"
    ]


@pytest.mark.parametrize("host", [f"https://u:{HUSH}@pdu-a/", f"u:{HUSH}@pdu-a"])
def test_an_address_with_a_password_is_not_repeated(host: str) -> None:
    asked = f'[[telemetry]]\nload = "n1"\nurl = "ftp{host.removeprefix("https")}"\n'
    for text in (BASE.replace("192.0.2.1", host), BASE + asked):
        assert not any(HUSH in item for item in mistakes(text))


def test_either_feed_carries_the_whole_load() -> None:
    rack = rack_model(parse(TWO_FEEDS + "floor_w = 200.0\n"))
    assert [(load.outlets, load.floor_w, load.demand_w) for load in rack.loads] == [((0, 1), 200.0, 400.0)]
    parse(TWO_FEEDS + "demand_w = 400.0\n")


def test_a_reversed_transformer_is_said_at_its_channel() -> None:
    board = parse(BASE.replace('"current:a/2"', '"current:a/2:reversed"')).board[0]
    assert board.currents() == {"a/1": (0, False), "a/2": (1, True)}
    wired = wiring(board, parse(BASE).outlets())
    assert wired.channels == ((0, 2, 1.0), (1, 2, -1.0))


def test_all_mistakes_at_once() -> None:
    text = BASE.replace('id = "r"', 'id = "r"\nnominal_w = 1').replace("static_safe_w = 300.0", "static_safe_w = 600.0")
    found = mistakes(text.replace('kind = "breaker"', 'kind = "braker"'), env={})
    assert [item.split(": ")[1] for item in found] == [
        "rack.nominal_w", "pdu[1].auth_key_env", "pdu[1].priv_key_env", "outlet[1].static_safe_w", "constraint[1].kind",
    ]  # fmt: skip


def test_a_secret_never_shows_and_its_file_is_checked(tmp_path: Path) -> None:
    text = BASE.replace('auth_key_env = "RPI_PDU_AUTH"', 'auth_key_file = "k"')
    assert any("No such file" in item for item in mistakes(text, base_dir=tmp_path))
    (tmp_path / "k").write_text("hush hush hush")
    (tmp_path / "k").chmod(0o644)
    loose = mistakes(text, base_dir=tmp_path)
    assert any("mode 0644 lets others read it" in item for item in loose)
    assert not any("hush" in item for item in loose)
    (tmp_path / "k").chmod(0o600)
    parse(text, base_dir=tmp_path)


def test_a_credential_is_handed_over_or_lies_beside_the_configuration(tmp_path: Path) -> None:
    text = BASE.replace('auth_key_env = "RPI_PDU_AUTH"', 'auth_key_file = "credential:auth.key"')
    service, terminal = {**ENV, "CREDENTIALS_DIRECTORY": str(tmp_path / "run")}, ENV
    for folder in ("run", "credentials"):
        (tmp_path / folder).mkdir()
    for env, place in (
        (terminal, "credentials/auth.key"),
        (service, "run/rpi-daemon_auth.key"),
        (service, "run/auth.key"),
    ):
        found = mistakes(text, base_dir=tmp_path, env=env)
        assert ["No such file" in item and "auth.key" in item for item in found] == [True], found
        (tmp_path / place).write_text(SECRET)
        (tmp_path / place).chmod(0o644)
        assert ["mode 0644" in item and place in item for item in mistakes(text, base_dir=tmp_path, env=env)] == [True]
        (tmp_path / place).chmod(0o400)
        parse(text, base_dir=tmp_path, env=env)
        if place == "run/rpi-daemon_auth.key":
            (tmp_path / place).unlink()
    astray = mistakes(text.replace("credential:auth.key", "credential:../auth.key"), base_dir=tmp_path, env=terminal)
    assert ["is not written like 'credential:auth.key'" in item for item in astray] == [True]


def test_a_simulated_board_measures_something() -> None:
    text = BASE + '[[board]]\nid = "volts"\ndriver = "simulated"\nchannels = ["voltage:L1"]\n'
    found = mistakes(text)
    assert ["board[2].channels" in item and "needs an outlet to measure" in item for item in found] == [True], found


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")


def test_default_toml_is_the_schema() -> None:
    text = files("rpi_daemon.config").joinpath("default.toml").read_text()
    assert text == default_toml(), "run: python -m rpi_daemon.config.document > config/default.toml"


@pytest.mark.parametrize("name", ["raritan-ac-two-feeds.toml", "apc-208v.toml", "dc-48v.toml"])
def test_examples_are_good(name: str) -> None:
    config = parse_config(EXAMPLES.joinpath(name).read_text(), name, base_dir=Path("/nowhere"), env=ENV)
    assert config.daemon.mode == "advisory"
    assert not any(row.closed_loop for row in config.outlets())


def test_the_demo_example_is_good(tmp_path: Path) -> None:
    assert EXAMPLES.joinpath("demo.toml").read_text() == demo_toml()
    for name in ("auth.key", "priv.key"):
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o600)
    config = parse_config(EXAMPLES.joinpath("demo.toml").read_text(), "demo.toml", base_dir=tmp_path, env={})
    assert len(config.outlets()) == 24
    assert all(row.closed_loop for row in config.outlets())


def test_numbers_and_lines() -> None:
    assert expand_numbers("1,3,5-8") == [1, 3, 5, 6, 7, 8]
    lines = line_numbers('a = 1\n[s]\nb = [\n  "x = 1",\n]\nc = """\n[no]\n"""\n[[t]]\nd = 1\n[[t]]\nd = 2\n')
    assert lines[("s", "c")] == 6
    assert lines[("t", 1, "d")] == 12
    assert ("no",) not in lines


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_no_number_of_a_configuration_is_infinite_or_none(number: str) -> None:
    (found,) = mistakes(BASE + f'[[schedule]]\nload = "n1"\nat = "02:00"\ndelta_w = {number}\n')
    assert f"schedule[1].delta_w: {number}: input should be a finite number (allowed: >= -1000000, <= 1000000)" in found


def test_a_path_too_long_for_a_socket_is_told_before_the_start() -> None:
    assert parse(BASE + f'[daemon]\nruntime_dir = "/run/{"x" * 87}"\n').daemon.runtime_dir.endswith("x" * 87)
    (found,) = mistakes(BASE + f'[daemon]\nruntime_dir = "/run/{"x" * 88}"\n')
    assert found.endswith(f"daemon.runtime_dir: /run/{'x' * 88} has 93 octets; for the sockets in it 92 are allowed")


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    (found,) = mistakes(BASE + '[daemon]\nstate_dir = "state"\n', base_dir=tmp_path)
    assert found.endswith(f"daemon.state_dir: {tmp_path}/state is a file; a folder is needed")
