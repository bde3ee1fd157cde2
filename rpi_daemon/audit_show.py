"""`rpi-daemon audit`: does the chain hold, and what does it say; from the files alone, whether or not a daemon runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rpi_daemon.audit import FOLDER, HEAD_FILE, read_audit, verify_audit
from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ConfigError, RpiError
from rpi_daemon.history.chain import Event, Head
from rpi_daemon.history.query import local_zone, parse_time
from rpi_daemon.history.show import one_line, stamp
from rpi_daemon.history.weeks import check_readable

FILES = "*.sqlite"


def verify(config_path: Path, heads: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The whole chain against every copy of its head. Raises RpiError, ConfigError."""
    known = [Head.parse(text) for text in heads]
    config = read_config(config_path)
    state_dir = config.path(config.daemon.state_dir)
    if not known:
        _folder(config)
    check_readable(state_dir / FOLDER, FILES)
    check_readable(state_dir, HEAD_FILE)
    check_readable(state_dir / config.history.folder, FILES)
    chain = verify_audit(state_dir, state_dir / config.history.folder, known)
    if chain.first is None and not chain.broken:
        raise RpiError(f"{state_dir / FOLDER}: no record is there, and no head that says whether one was")
    begins = chain.first and {"number": chain.first.seq, "t_utc_ns": chain.first.t_ns}
    document = {
        "schema": 1,
        "ok": not chain.broken,
        "checked": chain.events,
        "begins": begins,
        "head": str(chain.head),
        "broken": list(chain.broken),
    }
    if chain.broken or chain.first is None:
        places = "1 place" if len(chain.broken) == 1 else f"{len(chain.broken)} places"
        return document, f"the chain is BROKEN: {places}; {chain.events} records were looked at"
    since = stamp(chain.first.t_ns, local_zone())
    return document, (
        f"the chain of all {chain.events} records holds, from number {chain.first.seq} ({since}) on\n"
        f"its head, to be kept elsewhere: {chain.head}"
    )


def show(
    config_path: Path,
    from_text: str,
    to_text: str,
    patterns: Sequence[str],
    who: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Records of the span as a document; each goes to `say` as one line or more. Raises RpiError, ConfigError."""
    config = read_config(config_path)
    zone = local_zone()
    now = datetime.now(zone)
    from_ns, to_ns = parse_time(from_text, now), parse_time(to_text, now)
    if from_ns >= to_ns:
        raise RpiError(f"--from {from_text} is not before --to {to_text}")
    wanted = _wanted(config, patterns, config_path)
    notes: list[str] = []
    rows = []
    for record in read_audit(_folder(config), from_ns, to_ns, (), notes):
        if not _is_of(record, who, wanted):
            continue
        at = stamp(record.t_ns, zone, 3)
        for line in _lines(record, wanted):
            say(one_line(f"{at}  {line}"))
        rows.append({**asdict(record), "local_time": at})
    if not rows:
        notes.append("no record in this span")
    return {"schema": 1, "ok": True, "records": rows, "notes": notes}


def _folder(config: Config) -> Path:
    folder = config.path(config.daemon.state_dir) / FOLDER
    if not folder.is_dir():
        raise RpiError(f"{folder}: no audit is there; it begins when the daemon first runs")
    return folder


def _wanted(config: Config, patterns: Sequence[str], config_path: Path) -> frozenset[str]:
    """Outlets by name, and loads: a server's cap is its load's. Empty: all."""
    loads = {row.load for row in config.outlets()}
    found: set[str] = set()
    for pattern in patterns:
        if pattern in loads:
            found.add(pattern)
            continue
        try:
            found.update(config.match_outlets(pattern))
        except ValueError as error:
            raise ConfigError(f"{config_path}: {error}") from None
    return frozenset(found)


def _is_of(record: Event, who: str | None, wanted: Collection[str]) -> bool:
    said = str(record.data.get("who", ""))
    if who is not None and said != who and not said.startswith(f"{who} "):
        return False
    return not wanted or any(what in wanted for what, _ in _items(record.data))


def _items(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What a record is about, by outlet or load."""
    written = [(item["what"], item) for item in data.get("writes", ())]
    device = data.get("device", "")
    ended = [(f"{device}/{item['outlet']}" if "outlet" in item else device, item) for item in data.get("outcomes", ())]
    return written + ended


def _lines(record: Event, wanted: Collection[str]) -> list[str]:
    """One line for each outlet that was asked for, one for anything else."""
    data = record.data
    head = f"{record.seq}  {data.get('who', '')}  {record.name}"
    number = f" {data['n']}" if "n" in data else ""
    items = [(what, item) for what, item in _items(data) if not wanted or what in wanted]
    if not items:
        return [f"{head}{number}  {_rest(data)}"]
    words = {"asked": _asked, "refused": _asked, "ended": _ended}[record.name]
    why = "".join(f"; {data[key]}" for key in ("why", "words") if key in data)
    return [f"{head}{number}  {what}  {words(item)}{why}" for what, item in items]


def _rest(data: Mapping[str, Any]) -> str:
    """What neither a write nor its end says; of a command its name and what came with it, once."""
    rest = {key: value for key, value in data.items() if key not in ("who", "n")}
    words = []
    fields = rest.pop("fields", {})
    if "command" in rest:
        words.append(str(rest.pop("command")))
        rest = {**{key: value for key, value in fields.items() if key != "command"}, **rest}
        if rest.get("words") == rest.get("reason"):
            rest.pop("words", None)
    return " ".join([*words, *(f"{key}={_plain(value)}" for key, value in rest.items())])


def _plain(value: object) -> str:
    """For people; `--json` has every digit."""
    if isinstance(value, float):
        return f"{round(value, 1):.10g}"
    if isinstance(value, list | tuple):
        return "[" + "; ".join(map(_plain, value)) + "]"
    if isinstance(value, str) and " " in value:
        return f'"{value}"'
    return str(value)


def _asked(item: Mapping[str, Any]) -> str:
    told = [
        f"{name} {_watts(item[key])}"
        for name, key in (("request", "request_w"), ("margin", "margin_w"), ("grant", "grant_w"))
        if item[key] is not None
    ]
    if item["forecast_w"] is not None:
        told.insert(0, f"forecast {_watts(item['forecast_w'])} ({item['quantile']:g})")
    text = f"{item['kind'] or 'limit'} {_watts(item['before_w'])} -> {_watts(item['to_w'])}, {item['reason']} ({item['rule']})"
    return text + (f": {', '.join(told)}" if told else "")


def _ended(item: Mapping[str, Any]) -> str:
    if item["refused"] is not None:
        return f"{_watts(item['read_back_w'])}, NOT verified: {item['refused']}"
    if not item["verified"]:
        return f"{_watts(item['read_back_w'])}, NOT verified; {_watts(item['asked_w'])} was asked for"
    return f"{_watts(item['read_back_w'])} read back, {_plain(item['verified_after_ms'])} ms after it was asked for"


def _watts(value: float | None) -> str:
    return "none" if value is None else f"{_plain(float(value))} W"
