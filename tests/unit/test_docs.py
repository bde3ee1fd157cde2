"""The documents tell of what is there: links, commands, exit codes, devices, files, log events, figures."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from benches import load_bench

from rpi_daemon import errors
from rpi_daemon._fastpath.core import Ring, Sampler
from rpi_daemon.alarms import CAUSES as ALARM_OF
from rpi_daemon.alarms import KINDS
from rpi_daemon.cli import main
from rpi_daemon.config.load import parse_config
from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.register_map import load_map, map_names
from rpi_daemon.guard import CAUSES
from rpi_daemon.records import TELEMETRY

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
# a path of ours in back quotes: a known folder, then a name; or a script that the README's figures name
PATH = re.compile(r"`((?:rpi_daemon|_fastpath|drivers|models|config|systemd|bench|tests|docs|\.ci)/[\w./-]+)`")
COMMAND = re.compile(r"(?:`|^ {4,}|bin/)rpi-daemon ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", re.MULTILINE)


def rows(text: str, first_cell: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first_cell`."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            if command.invoke_without_command:
                yield prefix + name
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_every_page_is_linked_from_the_index() -> None:
    indexes = [ROOT / "docs/README.md", ROOT / "docs/decisions/README.md"]
    linked = {
        (index.parent / target).resolve() for index in indexes for target, _ in LINK.findall(index.read_text("utf-8"))
    }
    assert not set(ROOT.glob("docs/**/*.md")) - linked - {indexes[0]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_file_that_is_not_there(page: Path) -> None:
    for name in PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_named_exists(page: Path) -> None:
    known = set(commands(main))
    for first, second in COMMAND.findall(page.read_text(encoding="utf-8")):
        assert first in known or f"{first} {second}" in known, f"{page.name} names rpi-daemon {first} {second}"


def test_the_readme_lists_every_command_and_no_other() -> None:
    listed = set()
    for names, _ in rows(README, "command"):
        for name in re.findall(r"`([^`]+)`", names):
            words = name.split()
            command = main.commands.get(words[0])
            listed.add(words[0] if command is not None and not isinstance(command, click.Group) else name)
    assert listed == set(commands(main))


def test_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RpiError)]
    listed = [int(code) for code, _ in rows(README, "exit code")]
    assert listed == sorted({0, click.UsageError.exit_code, *(kind.exit_code for kind in kinds)})


def test_devices_are_the_shipped_profiles_with_their_limit_kind() -> None:
    listed = {cells[0].strip("`"): cells for cells in rows(README, "profile")}
    assert set(listed) == {path.stem for path in (ROOT / "drivers/pdu/profiles").glob("*.toml")}
    for name, cells in listed.items():
        profile = load_profile(name)
        assert cells[4] == ("none" if profile.limit is None else f"`{profile.limit.kind.value}`")
        assert cells[5].startswith({"none": "nothing", "recording": "recording", "hardware": ""}[profile.proven])


def test_modbus_devices_are_the_shipped_register_maps_with_their_limit_kind() -> None:
    modbus = (ROOT / "docs/modbus.md").read_text(encoding="utf-8")
    for text in (README, modbus):
        listed = {cells[0].strip("`"): cells for cells in rows(text, "register map")}
        assert set(listed) == set(map_names())
        for name, cells in listed.items():
            limit = load_map(name).limit
            assert cells[4] == ("none" if limit is None else f"`{limit.kind.value}`")


def test_the_readmes_configuration_is_good(tmp_path: Path) -> None:
    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    text = block.group(1)
    for name in ("auth.key", "priv.key"):
        (tmp_path / name).write_text("a pass phrase")
        (tmp_path / name).chmod(0o600)
    config = parse_config(re.sub(r"^   ", "", text, flags=re.MULTILINE), "README.md", base_dir=tmp_path, env={})
    assert [outlet.id for outlet in config.outlets()] == ["pdu-a/1", "pdu-a/2", "pdu-a/3"]
    assert config.daemon.mode == "advisory"


def test_every_log_event_is_explained() -> None:
    explained = set(re.findall(r"`([a-z_.]+)`", "".join(cells[0] for cells in rows(reference(), "event"))))
    used = set()
    for path in (path for folder in ("rpi_daemon", "drivers", "models") for path in (ROOT / folder).rglob("*.py")):
        used |= set(
            re.findall(r"\blog\.(?:debug|info|warning|error)\(\s*\"([^\"]+)\"", path.read_text(encoding="utf-8"))
        )
    assert used == explained


def test_every_cause_is_explained() -> None:
    told = " ".join(cells[2] for cells in rows(operating(), "state"))
    assert {name for name in CAUSES if f"`{name}`" in told} == set(CAUSES)


def test_every_status_key_told_is_there() -> None:
    sources = "".join(
        (ROOT / "rpi_daemon" / name).read_text(encoding="utf-8")
        for name in (
            "status.py",
            "reload.py",
            "score.py",
            "trap_task.py",
            "telemetry_task.py",
            "keeping.py",
            "audit.py",
            "retrain/task.py",
            "reasons.py",
        )
    ) + (ROOT / "drivers/hosts/feed.py").read_text(encoding="utf-8")
    counters = Sampler(Ring(np.zeros(Ring.bytes_needed(1, 100), np.uint8), n_channels=1, capacity=100)).counters()
    told = [word for cells in rows(reference(), "key") for word in re.findall(r"`([a-z_0-9]+)", " ".join(cells))]
    assert len(told) > 30
    for word in told:
        assert f'"{word}"' in sources or word in {*counters, *TELEMETRY, "tick_ms", "write_ms", "limit"}, word


def test_the_table_of_alarms_is_that_of_the_code() -> None:
    told: dict[str, tuple[str, float, float]] = {}
    for names, severity, begins, ends, _ in rows((ROOT / "docs/traps.md").read_text(encoding="utf-8"), "alarm"):
        kinds = re.findall(r"`(\w+)`", names)
        for i, kind in enumerate(kinds):
            severity_of, begin, end = (cell.split(", ")[i if ", " in cell else 0] for cell in (severity, begins, ends))
            told[kind] = severity_of, seconds(begin), seconds(end)
    assert told == {kind: (k.severity.name.lower(), k.raise_s, k.clear_s) for kind, k in KINDS.items()}


def seconds(cell: str) -> float:
    return 0.0 if cell == "at once" else float(cell.removesuffix(" s"))


def test_operations_say_what_to_do_in_every_alarm() -> None:
    told = {}
    for kind, severity, _, does, do, ends in rows(operating(), "alarm"):
        assert does, kind
        assert do, kind
        told[kind.strip("`")] = severity, 0.0 if ends.startswith("at once") else float(ends.split()[1])
    assert told == {kind: (k.severity.name.lower(), k.clear_s) for kind, k in KINDS.items()}


def test_operations_tell_every_cause_of_an_alarm_of_sensors_and_daemon() -> None:
    alarms = {cells[0].strip("`"): cells for cells in rows(operating(), "alarm")}
    ids = " ".join(cells[0] for cells in rows(operating(), "id"))
    for cause, kind in ALARM_OF.items():
        if kind in ("sensor_fault", "daemon_fault"):
            assert f"`{cause}`" in (ids if kind == "daemon_fault" else alarms[kind][2]), cause


def test_nothing_in_the_daemon_switches_an_outlet() -> None:
    """Promise 3 of docs/safety.md."""
    callers = [path for path in (ROOT / "rpi_daemon").rglob("*.py") if ".switch(" in path.read_text(encoding="utf-8")]
    assert callers == []


def operating() -> str:
    return (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def reference() -> str:
    return (ROOT / "docs/reference.md").read_text(encoding="utf-8")


def test_figures_come_from_the_results() -> None:
    figures = load_bench("figures")
    assert figures.with_table(README) == README, "run: python bench/figures.py"
    faults = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    assert figures.with_faults(faults) == faults, "run: python bench/figures.py"


def test_every_bench_is_run_and_told() -> None:
    told = {cells[0].strip("`").removesuffix(".py") for cells in rows((ROOT / "bench/README.md").read_text(), "script")}
    assert told == set(load_bench("all").BENCHES)


def test_the_project_file_ships_what_the_documents_promise() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"rpi-daemon": "rpi_daemon.cli:main"}
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in README
