"""The report's pictures: SVG by hand, so that the page needs nothing beside itself; colours are the page's."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from html import escape
from typing import Final

from rpi_daemon.clock import NS_PER_S

WIDTH: Final = 1000
X_STEPS_S: Final = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000)
X_TICKS: Final = 9
EXPERT_COLOURS: Final = 8  # classes e0..e7 of the page

Points = Sequence[float | None]
Place = Callable[[float], float]  # on the page


def watts(value: float | None, digits: int = 0) -> str:
    """A number of watts with its unit, or "not known"."""
    return "not known" if value is None else f"{value:,.{digits}f}\u00a0W".replace(",", "\u202f")


def bars(rows: Sequence[tuple[str, float | None, float | None, float | None]]) -> str:
    """Reserved watts, one bar a row: (name, reserved, drawn of it, highest moment); what is not known says so."""
    top = max([x for row in rows for x in row[1:] if x is not None], default=1.0) or 1.0
    left, right, height = 230.0, WIDTH - 230.0, 44
    scale = (right - left) / top
    parts = []
    for k, (name, reserved, drawn, highest) in enumerate(rows):
        y = k * height + 8
        parts.append(_text(left - 12, y + 19, name, "end"))
        if reserved is None:
            parts.append(_text(left, y + 19, "not known", "start", "soft"))
            continue
        parts.append(f'<rect class="stranded" x="{left}" y="{y}" width="{reserved * scale:.1f}" height="28"/>')
        end = reserved
        if drawn is not None:
            parts.append(
                f'<rect class="drawn" x="{left}" y="{y}" width="{min(drawn, reserved) * scale:.1f}" height="28"/>'
            )
            stranded = reserved - drawn
            if stranded * scale > 110.0:
                middle = left + (drawn + reserved) / 2.0 * scale
                parts.append(_text(middle, y + 19, f"{watts(stranded)} stranded", "middle", "small"))
        told = watts(reserved)
        if highest is not None:
            parts.append(f'<path class="mark" d="M{left + highest * scale:.1f} {y - 4}v36"/>')
            end = max(end, highest)
            told += f", at most {watts(highest)}"
        parts.append(_text(left + end * scale + 8, y + 19, told, "start", "strong"))
    return _svg(len(rows) * height + 8, "".join(parts), "watts reserved by each rule, and the drawn part of them")


def timeline(
    from_ns: int, to_ns: int, zone: tzinfo | None, draw: Mapping[str, Points], reserve: Points, static_w: float
) -> str:
    """Draw as a band from lowest to highest with its mean, what was requested, and the static limits; gaps are shaded."""
    height, left, right, top_y, bottom = 300, 76.0, WIDTH - 12.0, 12.0, 264.0
    known = [x for points in (draw["max"], reserve) for x in points if x is not None]
    step, top = _steps(max([*known, static_w]))

    def x_of(k: float) -> float:
        return left + (right - left) * k / len(reserve)

    def y_of(value: float) -> float:
        return bottom - (bottom - top_y) * value / top

    parts = []
    for i in range(round(top / step) + 1):
        y = y_of(i * step)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 8, y + 4, watts(i * step), "end", "small"))
    for t_ns, label in _moments(from_ns, to_ns, zone):
        x = left + (right - left) * (t_ns - from_ns) / (to_ns - from_ns)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v5"/>')
        parts.append(_text(x, bottom + 20, label, "middle", "small"))
    for first, end in _runs([x is None for x in draw["mean"]]):
        parts.append(
            f'<rect class="gap" x="{x_of(first):.1f}" y="{top_y}" width="{x_of(end) - x_of(first):.1f}" height="{bottom - top_y}"/>'
        )
    for first, end in _runs([x is not None for x in draw["mean"]]):
        upper = [f"{x_of(k + 0.5):.1f} {y_of(draw['max'][k] or 0.0):.1f}" for k in range(first, end)]
        lower = [f"{x_of(k + 0.5):.1f} {y_of(draw['min'][k] or 0.0):.1f}" for k in reversed(range(first, end))]
        parts.append(f'<path class="band" d="M{"L".join([*upper, *lower])}Z"/>')
    parts.append(_line(draw["mean"], x_of, y_of, "draw"))
    parts.append(_line(reserve, x_of, y_of, "reserve"))
    parts.append(f'<path class="static" d="M{left} {y_of(static_w):.1f}H{right}"/>')
    return _svg(height, "".join(parts), "power over time")


def spark(points: Points, top: float, width: int = 150, height: int = 22) -> str:
    """A small curve on a scale of 0 to `top` W."""

    def x_of(k: float) -> float:
        return width * k / max(1, len(points))

    def y_of(value: float) -> float:
        return height - 1.0 - (height - 2.0) * min(1.0, value / (top or 1.0))

    gaps = "".join(
        f'<rect class="gap" x="{x_of(a):.1f}" y="0" width="{x_of(b) - x_of(a):.1f}" height="{height}"/>'
        for a, b in _runs([x is None for x in points])
    )
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f"{gaps}{_line(points, x_of, y_of, 'draw')}</svg>"
    )


def shares(weights: Mapping[str, float], places: Mapping[str, int], width: int = 170, height: int = 12) -> str:
    """Expert weights as one bar; the colour of an expert is that of its place in the legend."""
    x, parts = 0.0, []
    for name, place in places.items():
        w = weights.get(name, 0.0) * width
        title = f"<title>{escape(name)} {100.0 * weights.get(name, 0.0):.0f} %</title>"
        parts.append(
            f'<rect class="e{place % EXPERT_COLOURS}" x="{x:.1f}" width="{w:.1f}" height="{height}">{title}</rect>'
        )
        x += w
    return f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}">{"".join(parts)}</svg>'


def _svg(height: float, body: str, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(points: Points, x_of: Place, y_of: Place, kind: str) -> str:
    drawn = []
    for first, end in _runs([x is not None for x in points]):
        run = [f"{x_of(k + 0.5):.1f} {y_of(points[k] or 0.0):.1f}" for k in range(first, end)]
        run += [f"{x_of(end):.1f} {y_of(points[end - 1] or 0.0):.1f}"] if len(run) == 1 else []
        drawn.append("M" + "L".join(run))
    return f'<path class="line {kind}" d="{"".join(drawn)}"/>' if drawn else ""


def _runs(there: Sequence[bool]) -> list[tuple[int, int]]:
    """[first, end) of each run of True."""
    runs, first = [], None
    for k, yes in enumerate([*there, False]):
        if yes and first is None:
            first = k
        elif not yes and first is not None:
            runs.append((first, k))
            first = None
    return runs


def _steps(highest: float) -> tuple[float, float]:
    """A round step, and the top of a scale of at most six of them."""
    size = 1.0
    while True:
        for factor in (1.0, 2.0, 5.0):
            if highest <= 6.0 * factor * size:
                count = max(1, -(-highest // (factor * size)))
                return factor * size, count * factor * size
        size *= 10.0


def _moments(from_ns: int, to_ns: int, zone: tzinfo | None) -> list[tuple[int, str]]:
    """Round local moments for the axis, with their labels."""
    span_s = (to_ns - from_ns) / NS_PER_S
    step_s = next((s for s in X_STEPS_S if span_s / s <= X_TICKS), X_STEPS_S[-1])
    form = (
        "%d %b" if step_s >= 86_400 else "%d %b %H:%M" if span_s > 86_400 else "%H:%M" if step_s >= 60 else "%H:%M:%S"
    )
    offset = datetime.fromtimestamp(from_ns // NS_PER_S, zone).utcoffset()
    offset_s = round(offset.total_seconds()) if offset is not None else 0
    first_s = -(-(from_ns // NS_PER_S + offset_s) // step_s) * step_s - offset_s
    moments = range(first_s, to_ns // NS_PER_S + 1, step_s)
    return [(t * NS_PER_S, f"{datetime.fromtimestamp(t, zone):{form}}") for t in moments if t * NS_PER_S >= from_ns]
