"""Charts as SVG. Colours, fonts and dashes are the style sheet's; the script finds the numbers in the table below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from rayprompt.comparison.curves import Point
from rayprompt.comparison.significance import Interval
from rayprompt.report.board import Chart, Series
from rayprompt.report.markup import Markup, join, tag

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 622, 14, 290  # of the plot, in the units of the viewBox
STYLES = 8  # colours and dashes in the style sheet; markers beside them
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down", "plus", "ring")


Place = Callable[[float, float], tuple[float, float]]  # from values to the drawing


def number(value: float, digits: int = 3) -> str:
    """A figure for people: as many digits as tell something."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) < 1000:
        return f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.2g}"
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A tick: 1500 is 1.5k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``most`` or fewer."""
    span = high - low
    if not span > 0:
        return [low]
    size = 10 ** math.floor(math.log10(span / most))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if span / (size * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def figure(chart: Chart, id_: str, *, share: bool, unit: str) -> Markup:
    """A chart with its caption, its legend, and its numbers as a table. ``unit`` is the x-axis in a word."""
    xs = sorted({point.x for series in chart.series for point in series.points})
    x_low, x_high = _x_range(xs)
    y_low, y_high = _y_range(chart, share)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    lines = [_line(series, at) for series in chart.series]
    levels = [_level(name, height, at(x_low, height)[1]) for name, height in chart.levels.items()]
    drawing = tag(
        "svg",
        tag("title", f"{chart.label} over {unit}"),
        tag("desc", "; ".join(_said(series) for series in chart.series)),
        _axes(at, (x_low, x_high), (y_low, y_high), unit),
        lines,
        tag("g", levels, class_="levels"),
        tag("g", class_="hover"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{id_}-caption",
        data_x0=f"{x_low:.6g}", data_x1=f"{x_high:.6g}", data_y0=f"{y_low:.6g}", data_y1=f"{y_high:.6g}",
        data_box=f"{LEFT} {TOP} {RIGHT} {BOTTOM}",
    )  # fmt: skip
    return tag(
        "figure",
        tag("figcaption", tag("strong", chart.label), id=f"{id_}-caption"),
        tag("ul", [_key(series) for series in chart.series], class_="legend"),
        tag("div", drawing, tag("div", class_="tip", hidden=True), class_="plot"),
        tag("details", tag("summary", "The same as a table"), _table(chart, xs, unit)),
        class_="chart",
        id=id_,
        data_unit=unit,
    )


def whisker(value: Interval, low: float, high: float, level: float | None) -> Markup:
    """A mean and its interval between ``low`` and ``high``, beside others in a column; ``level`` is a line."""

    def at(x: float) -> str:
        return f"{3 + 94 * (min(max(x, low), high) - low) / max(high - low, 1e-9):.1f}%"

    across = {"y1": "50%", "y2": "50%"}
    parts = [tag("line", x1="0%", x2="100%", **across, class_="rail")]
    if level is not None:
        parts.append(tag("line", x1=at(level), x2=at(level), y1="5%", y2="95%", class_="mark-level"))
    if value.low is not None and value.high is not None:
        parts.append(tag("line", x1=at(value.low), x2=at(value.high), **across, class_="span"))
    parts.append(tag("circle", cx=at(value.mean), cy="50%", r=4.5, class_="dot"))
    return tag("svg", parts, class_="whisker", aria_hidden="true", focusable="false")


def _x_range(xs: Sequence[float]) -> tuple[float, float]:
    low = 0.0 if xs[0] >= 0 else xs[0]
    return low, xs[-1] if xs[-1] > low else low + 1.0


def _y_range(chart: Chart, share: bool) -> tuple[float, float]:
    """All means, and intervals as far as they are not much wider than what the means span; levels too."""
    means = [p.value.mean for series in chart.series for p in series.points]
    edges = [e for s in chart.series for p in s.points for e in (p.value.low, p.value.high) if e is not None]
    values = [*means, *chart.levels.values()]
    low, high = min(values), max(values)
    if high - low < (least := 0.1 if share else 0.02 * max(1.0, abs(high))):
        low, high = (low + high - least) / 2, (low + high + least) / 2
    room = high - low
    low = min([low, *(e for e in edges if e >= low - room)])
    high = max([high, *(e for e in edges if e <= high + room)])
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    return (max(0.0, low), min(1.0, high)) if share else (low, high)


def _axes(at: Place, x_range: tuple[float, float], y_range: tuple[float, float], unit: str) -> Markup:
    parts = []
    for y in ticks(*y_range):
        height = f"{at(x_range[0], y)[1]:.1f}"
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=height, y2=height, class_="grid"))
        parts.append(tag("text", short(y), x=LEFT - 9, y=height, class_="tick y"))
    for x in ticks(*x_range):
        across = f"{at(x, y_range[0])[0]:.1f}"
        parts.append(tag("line", x1=across, x2=across, y1=BOTTOM, y2=BOTTOM + 5, class_="axis"))
        parts.append(tag("text", short(x), x=across, y=BOTTOM + 24, class_="tick x"))
    parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    parts.append(tag("text", unit, x=RIGHT, y=HEIGHT - 3, class_="name"))
    return tag("g", parts, aria_hidden="true")


def _line(series: Series, at: Place) -> Markup:
    """The best so far is a step: it stays until there is a better one."""
    index, points = series.index, series.points
    means = [at(p.x, p.value.mean) for p in points]
    parts = []
    if any(p.value.low is not None for p in points):
        upper = _steps([at(p.x, _edge(p, high=True)) for p in points])
        lower = _steps([at(p.x, _edge(p, high=False)) for p in points])
        outline = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in [*upper, *reversed(lower)]) + "Z"
        parts.append(tag("path", d=outline, class_="band"))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in _steps(means))
    parts.append(tag("path", d=path, class_="line"))
    every = max(1, len(means) // 6)
    shown = means[(index * every // 3) % every :: every] if len(means) > 3 else means
    parts += [_marker(index, x, y) for x, y in shown]
    return tag("g", tag("title", _said(series)), parts, class_=f"series s{index % STYLES}", data_name=series.name)


def _edge(point: Point, *, high: bool) -> float:
    edge = point.value.high if high else point.value.low
    return point.value.mean if edge is None else edge


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found = list(points[:1])
    for (_, y), (x, up) in pairwise(points):
        found += [(x, y), (x, up)] if y != up else [(x, y)]
    return found


def _marker(index: int, x: float, y: float, size: float = 4.2) -> Markup:
    kind = MARKERS[index % len(MARKERS)]
    r = size
    shapes = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        "triangle": f"M{x:.1f} {y - 1.2 * r:.1f}l{1.1 * r:.1f} {2 * r}h{-2.2 * r:.1f}Z",
        "down": f"M{x:.1f} {y + 1.2 * r:.1f}l{1.1 * r:.1f} {-2 * r}h{-2.2 * r:.1f}Z",
        "diamond": f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
        f"l{-1.3 * r:.1f} {-1.3 * r:.1f}Z",
        "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}",
        "plus": f"M{x - r:.1f} {y:.1f}h{2 * r}m{-r} {-r}v{2 * r}",
    }
    if kind in shapes:
        return tag("path", d=shapes[kind], class_="stroke" if kind in ("cross", "plus") else "mark")
    return tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=r, class_="ring" if kind == "ring" else "mark")


def _level(name: str, height: float, y: float) -> Markup:
    label = f"{name} prompt {number(height)}"
    return join([
        tag("line", x1=LEFT, x2=RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="level"),
        tag("text", label, x=RIGHT - 4, y=f"{y - 6:.1f}", class_="level-name"),
    ])  # fmt: skip


def _key(series: Series) -> Markup:
    """A line of the legend: the stroke as it is drawn, and the name."""
    stroke = tag("path", d="M1 8H35", class_="line")
    drawn = tag("g", stroke, _marker(series.index, 18, 8), class_=f"series s{series.index % STYLES}")
    sample = tag("svg", drawn, viewBox="0 0 36 16", aria_hidden="true", focusable="false")
    runs = "" if series.runs == 1 else f" ({series.runs} runs)"
    return tag("li", sample, tag("bdi", series.name), tag("span", runs, class_="quiet"))


def _said(series: Series) -> str:
    """A line in words."""
    first, last = series.points[0], series.points[-1]
    value = number(last.value.mean) + _interval(last.value)
    return f"{series.name}: {number(first.value.mean)} at {short(first.x)}, {value} at {short(last.x)}"


def _interval(value: Interval) -> str:
    if value.low is None or value.high is None or value.low == value.high:
        return ""
    return f" [{number(value.low)}, {number(value.high)}]"


def _table(chart: Chart, xs: Sequence[float], unit: str) -> Markup:
    """A row for each x, a column for each line; the script reads it, too."""
    names = [tag("th", tag("bdi", series.name), scope="col") for series in chart.series]
    head = tag("thead", tag("tr", tag("th", unit, scope="col"), names))
    known = [{p.x: p.value for p in series.points} for series in chart.series]
    rows = []
    for x in xs:
        cells = []
        for values in known:
            value = values.get(x)
            text = "" if value is None else number(value.mean) + _interval(value)
            cells.append(tag("td", text, data_v=None if value is None else f"{value.mean:.6g}"))
        rows.append(
            tag("tr", tag("th", f"{x:,.4g}" if x < 1000 else f"{x:,.0f}", scope="row", data_v=f"{x:.6g}"), cells)
        )
    caption = tag("caption", f"{chart.label}, mean and 95 % interval")
    table = tag("table", caption, head, tag("tbody", rows), class_="numbers")
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"{chart.label}, as a table")
