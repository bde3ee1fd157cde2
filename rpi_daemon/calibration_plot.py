"""A picture of a calibration: what is left at every point, a panel per channel."""

import math
from pathlib import Path
from typing import Any

from rpi_daemon.calibration import Calibration, ChannelRecord
from rpi_daemon.calibration_fit import LARGEST_ERROR
from rpi_daemon.errors import RpiError

COLUMNS = 6
PANEL_IN = (2.5, 1.9)
COLOURS = {"A": "#1f5fa8", "V": "#2e7d32", "W": "#c2410c"}


def plot_residuals(file: Calibration, path: Path) -> None:
    """Write a PNG; raises RpiError without matplotlib, or where it cannot be written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RpiError("--plot needs matplotlib: pip install 'rpi-daemon[plots]'") from None
    records = file.channels
    columns = min(COLUMNS, max(1, len(records)))
    rows = max(1, math.ceil(len(records) / columns))
    figure = Figure(figsize=(PANEL_IN[0] * columns, PANEL_IN[1] * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    for k, record in enumerate(records):
        _draw(figure.add_subplot(rows, columns, k + 1), record)
    handles = [
        figure.axes[0].plot([], [], "o", color=colour, markersize=4, label=unit)[0] for unit, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(
        f"{file.board} ({file.serial_number}), {file.date:%Y-%m-%d}: error that is left, % of reading", fontsize=10
    )
    figure.supxlabel("load, % of range (W: of the largest load)", fontsize=8)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise RpiError(f"{path}: {error.strerror}; choose another place with --plot") from None


def _draw(panel: Any, record: ChannelRecord) -> None:
    """One channel's points, by quantity, within the band that is promised."""
    bound = 100.0 * LARGEST_ERROR
    worst = max((abs(item.error_percent) for item in record.residuals), default=0.0)
    panel.axhspan(-bound, bound, color="#e8eef5", zorder=0)
    panel.axhline(0.0, color="#888888", linewidth=0.6)
    for unit, colour in COLOURS.items():
        points = [(item.reference, item.error_percent) for item in record.residuals if item.quantity == unit]
        full = record.range if unit != "W" else max((reference for reference, _ in points), default=1.0)
        if points:
            panel.plot(
                [100.0 * reference / full for reference, _ in points],
                [error for _, error in points],
                "o",
                color=colour,
                markersize=4,
                label=unit,
            )
    panel.set_xlim(0.0, 105.0)
    panel.set_ylim(-1.15 * max(bound, worst), 1.15 * max(bound, worst))
    panel.set_title(
        f"{record.channel}  {record.name}" + ("" if record.good else "  refused"),
        fontsize=8,
        color="black" if record.good else "#b91c1c",
    )
    panel.tick_params(labelsize=7)
