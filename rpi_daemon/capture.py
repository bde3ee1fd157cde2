"""`rpi-daemon capture`: raw 1 kHz of a time as COMTRADE and as a picture, out of the rings of a daemon that runs or ran."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rpi_daemon.captures import as_comtrade, kept
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.config.load import read_config
from rpi_daemon.config.schema import Config
from rpi_daemon.errors import ConfigError, RpiError
from rpi_daemon.history.query import local_zone, parse_time
from rpi_daemon.history.show import stamp
from rpi_daemon.raw import Waveform, read_waveform
from rpi_daemon.records import IntArray


def capture(
    config_path: Path, board: str | None, at: str | None, seconds: float, output: Path
) -> tuple[dict[str, Any], str]:
    """Write OUTPUT.cfg and .dat, and .png with matplotlib, of `seconds` around `at`, or of the last ones. Raises RpiError."""
    config = read_config(config_path)
    chosen = _board(config, board)
    now = datetime.now(local_zone())
    length_ns = round(seconds * NS_PER_S)
    at_ns = None if at is None else parse_time(at, now)
    utc_ns = time.time_ns() - time.monotonic_ns()  # the ring goes by the clock that nobody sets
    ring = config.path(config.daemon.runtime_dir) / f"{chosen}.ring"
    wave = read_waveform(ring, chosen, length_ns, None if at_ns is None else at_ns - utc_ns + length_ns // 2)
    t_utc_ns = wave.t_mono_ns + utc_ns
    trigger_ns = int(t_utc_ns[-1]) if at_ns is None else at_ns
    used = [k for k, channel in enumerate(wave.channels) if channel.unit]
    text, data = as_comtrade(config.rack.id, wave, t_utc_ns, trigger_ns)
    written = [output.with_name(output.name + suffix) for suffix in (".cfg", ".dat", ".png")]
    try:
        written[0].write_text(text, encoding="ascii", errors="replace", newline="")
        written[1].write_bytes(data)
    except OSError as error:
        raise RpiError(f"{error.filename}: {error.strerror}") from None
    notes = [f"{wave.lost} of {len(t_utc_ns)} scans are missing"] if wave.lost else []
    try:
        draw(wave, used, t_utc_ns, now, written[2])
    except ImportError:
        written.pop()
        notes.append("no picture without matplotlib: pip install 'rpi-daemon[plots]'")
    document = {
        "schema": 1,
        "ok": True,
        "board": chosen,
        "from_utc_ns": int(t_utc_ns[0]),
        "to_utc_ns": int(t_utc_ns[-1]),
        "scans": len(t_utc_ns),
        "missing": wave.lost,
        "files": [str(path) for path in written],
        "notes": notes,
    }
    return document, f"{len(t_utc_ns)} scans of {len(used)} channels: {', '.join(str(path) for path in written)}"


def listed(config_path: Path) -> tuple[dict[str, Any], str]:
    """The captures that the daemon took by itself, oldest first, as a document and as a table. Raises ConfigError."""
    config = read_config(config_path)
    folder = config.path(config.daemon.state_dir) / config.history.folder
    captures, damaged = kept(folder)
    lines = [
        f"{stamp(item['from_utc_ns'], local_zone(), 3)}  {item['board']}  {item['scans'] / 1000:.1f} s"
        f"  {', '.join(dict.fromkeys(t['kind'] + ' ' + t['subject'] for t in item['triggers']))}  {item['file']}"
        for item in captures
    ]
    document = {"schema": 1, "ok": True, "captures": captures, "notes": damaged}
    return document, "\n".join(lines) or f"no capture was taken yet; they are kept in {folder / 'captures'}"


def _board(config: Config, board: str | None) -> str:
    ids = [item.id for item in config.board]
    if board is None and len(ids) == 1:
        return ids[0]
    if board not in ids:
        said = "say which --board" if board is None else f"no board is called {board!r}"
        raise ConfigError(f"{said}: {', '.join(ids) or 'this rack has none, so no raw scans either'}")
    return board


def draw(wave: Waveform, used: list[int], t_utc_ns: IntArray, now: datetime, path: Path) -> None:
    """A panel for voltages and one for currents. Raises ImportError without matplotlib, RpiError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units = [unit for unit in ("V", "A") if any(wave.channels[k].unit == unit for k in used)]
    figure = Figure(figsize=(11.0, 1.0 + 3.2 * len(units)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(units), 1, sharex=True, squeeze=False)[:, 0]
    t_s = (t_utc_ns - t_utc_ns[0]) / NS_PER_S
    for panel, unit in zip(panels, units, strict=True):
        mine = [k for k in used if wave.channels[k].unit == unit]
        for k in mine:
            panel.plot(t_s, wave.values[:, k], linewidth=0.6, label=wave.channels[k].name.partition(":")[2])
        panel.set_ylabel(unit)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=7, ncols=8, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    start = datetime.fromtimestamp(int(t_utc_ns[0]) / NS_PER_S, now.tzinfo)
    panels[-1].set_xlabel(f"s from {start:%Y-%m-%d %H:%M:%S.%f}")
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}") from None
