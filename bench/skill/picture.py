"""Draws one series of each group: draw, forecast band, request. Made for each moment from what was said 5 s before it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rpi_daemon.records import QUANTILES, TICK_S, FloatArray
from skill.deployed import DEPLOYED, Answers
from skill.series import Series

SHOWN_S = 240.0
COLUMNS = 2
INK, BAND, REQUEST = "#1b2a3a", "#7fb2e5", "#d1495b"


def draw(pictured: Sequence[tuple[Series, Answers]], path: Path) -> None:
    """One panel each, of the liveliest minutes of the series. The suffix says the format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "forecast_skill"  # the same picture, the same file
    from matplotlib import pyplot

    lines = -(-len(pictured) // COLUMNS)
    width = min(COLUMNS, len(pictured))
    figure, axes = pyplot.subplots(
        lines, width, figsize=(5.4 * width, 2.3 * lines), squeeze=False, layout="constrained"
    )
    for panel, (series, answers) in zip(axes.flat, pictured, strict=False):
        _panel(panel, series, answers)
    for panel in axes.flat[len(pictured) :]:
        panel.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(panel: object, series: Series, answers: Answers) -> None:
    moments = series.moments
    t_s = series.tick[moments.due] * TICK_S
    begin_s = lively(t_s, series.power_w[moments.due])
    shown = (t_s >= begin_s) & (t_s <= begin_s + SHOWN_S)
    at_s, made, due = t_s[shown] - begin_s, moments.made[shown], moments.due[shown]
    said_w = answers.value_w[made, answers.sources.index(DEPLOYED)]
    step = {"step": "post"} if series.slow else {}
    how = {"drawstyle": "steps-post"} if series.slow else {}
    low, high = QUANTILES.index(0.5), QUANTILES.index(0.99)
    panel.fill_between(
        at_s,
        said_w[:, low],
        said_w[:, high],
        color=BAND,
        alpha=0.5,
        lw=0,
        label="forecast 5 s before, 0.5 to 0.99",
        **step,
    )
    panel.plot(at_s, answers.request_w[made], color=REQUEST, lw=1.1, label="request made 5 s before", **how)
    panel.plot(at_s, series.power_w[due], color=INK, lw=0.9, label="draw", **how)
    panel.set_ylim(*_watts_shown(answers.request_w[made], series.power_w[due]))
    panel.set_xlim(0.0, SHOWN_S)
    panel.set_title(series.group, fontsize=9, loc="left", color=INK)
    panel.set_ylabel("W", fontsize=8)
    panel.set_xlabel(f"s, from {begin_s:.0f} s", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)


def _watts_shown(request_w: FloatArray, draw_w: FloatArray) -> tuple[float, float]:
    """From 0 W, or from below the lowest draw where 0 W would press the rest into a line."""
    low_w, high_w = float(draw_w.min()), float(max(request_w.max(), draw_w.max()))
    room_w = 0.25 * (high_w - low_w) + 1.0
    return (low_w - room_w if low_w > 0.6 * high_w else 0.0), high_w + 0.3 * room_w


def lively(t_s: FloatArray, power_w: FloatArray) -> float:
    """Where the span to show begins, s: of spans half a span apart one that moves more than three quarters of them.

    The liveliest of all would show each load at its oddest.
    """
    begins = np.arange(t_s[0], t_s[-1] - SHOWN_S, 0.5 * SHOWN_S)
    spans = [(begin, power_w[(t_s >= begin) & (t_s <= begin + SHOWN_S)]) for begin in begins]
    moved = sorted((float(np.std(shown_w)), float(begin)) for begin, shown_w in spans if len(shown_w) > 1)
    return moved[len(moved) * 3 // 4][1] if moved else float(t_s[0])
