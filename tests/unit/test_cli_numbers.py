"""Numbers on the command line: every option that takes one refuses what is none, and says what is allowed."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rpi_daemon.cli import main
from rpi_daemon.cli_options import Number


def parameters(command: click.Command, name: str = "") -> Iterator[tuple[str, click.Parameter]]:
    for parameter in command.params:
        yield f"{name} {parameter.name}", parameter
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        yield from parameters(inner, f"{name} {inner.name}")


FLOATS = {
    name: parameter.type
    for name, parameter in parameters(main)
    if isinstance(parameter.type, click.FloatRange | click.types.FloatParamType) or isinstance(parameter.default, float)
}


def test_every_option_with_a_fraction_is_looked_at() -> None:
    assert len(FLOATS) == 18
    assert all(isinstance(kind, Number) for kind in FLOATS.values()), FLOATS


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number_in_the_range_is_answered_with_the_range(name: str) -> None:
    kind = FLOATS[name]
    assert isinstance(kind, Number)
    assert kind.min is not None
    assert kind.max is not None
    for text in ("nan", "-nan", "inf", "-inf", "abc", "", "1e999", str(kind.min - 1e-3), str(2.0 * kind.max)):
        with pytest.raises(
            click.BadParameter, match=r"is not a number (from -?[0-9. ]+ to|above 0 and at most) [0-9. ]+$"
        ):
            kind.convert(text, None, None)
    assert kind.convert(str(kind.max), None, None) == kind.max


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("limit set pdu-a/1 nan --ttl 60 --reason x", "'LIMIT_W': 'nan' is not a number above 0 and at most 1 000 000"),
        ("limit set pdu-a/1 -5 --ttl 60 --reason x", "'LIMIT_W': -5 is not a number above 0 and at most 1 000 000"),
        ("limit set pdu-a/1 abc --ttl 60 --reason x", "'LIMIT_W': 'abc' is not a number above 0"),
        ("limit set pdu-a/1 5 --tll 60 --reason x", "No such option '--tll'"),
        ("hint server-1 inf --in 5 --for 60", "'DELTA_W': inf is not a number from -1 000 000 to 1 000 000"),
        ("hint server-1 -inf", "'DELTA_W': -inf is not a number"),
        ("hint server-1 100 --in nan", "'--in': 'nan' is not a number from 0 to 86 400"),
        ("capture --last --seconds nan --output f", "'--seconds': 'nan' is not a number from 0.05 to 600"),
        ("dry-run --seconds nan", "'--seconds': 'nan' is not a number from 1 to 864 000"),
        ("sim --seed -1", "'--seed': -1 is not in the range"),
    ],
)
def test_a_mistake_says_what_is_allowed(arguments: str, says: str) -> None:
    done = CliRunner().invoke(main, arguments.split())
    assert done.exit_code == 2
    assert says in done.output


def test_a_negative_number_is_taken_as_it_stands(tmp_path: Path) -> None:
    """It gets as far as the daemon, which does not run here."""
    for words in (["hint", "server-1", "-150.5"], ["hint", "--", "server-1", "-150.5"]):
        done = CliRunner().invoke(main, [*words[:1], "--config", str(tmp_path / "none.toml"), *words[1:]])
        assert (done.exit_code, "no such file" in done.output) == (3, True), done.output


def test_a_host_that_is_none_is_not_asked() -> None:
    done = CliRunner().invoke(main, ["discover", "10.0.0.300", "--user", "u"])
    assert done.exit_code == 3
    assert done.output.startswith("HOST: '10.0.0.300' is not a host name or address such as")


def test_a_folder_that_cannot_be_made_for_the_demo() -> None:
    done = CliRunner().invoke(main, ["demo", "--keep", "/proc/rpi-demo", "--seconds", "5"])
    assert done.exit_code == 1
    assert done.output.startswith("/proc/rpi-demo: ")
    assert "name a folder that this user can write in with --keep" in done.output
