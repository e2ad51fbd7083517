"""Line charts as static SVG, and the same data as JSON for the script that makes them live.

The SVG is what a reader sees without JavaScript, in an e-mail or a print. Colours are CSS
variables (``--s0`` … ``--s7``), so one drawing serves light and dark. Long curves are thinned by
keeping the smallest and largest value of every bucket: spikes survive, the file stays small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from components.lib.contract import Frozen
from components.lib.report.curves import Series
from components.lib.report.templating import render
from components.lib.report.trend import Array, smooth

MAX_POINTS = 2400
WIDE, COMPACT = (920, 360), (520, 250)
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 14, 44


class Line(Frozen):
    """One drawn series. ``trend`` adds a smoothed line with its interval over the raw values."""

    name: str
    series: Series
    colour: int = 0
    trend: bool = False
    style: Literal["line", "points"] = "line"


class Chart(Frozen):
    """A chart: what it shows and its axes. ``key`` names it in the page."""

    key: str
    lines: tuple[Line, ...]
    y_label: str
    x_label: str = "optimizer step"
    log: bool = False
    compact: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the drawing's own units (pixels at full width)."""
        return COMPACT if self.compact else WIDE


class Ticks(NamedTuple):
    """Positions on an axis and what is written there."""

    at: list[float]
    text: list[str]


def thin(values: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """At most about ``limit`` positions, in order, with the extremes of every bucket kept."""
    count = len(values)
    if count <= limit:
        return list(range(count))
    buckets = limit // 2
    kept: list[int] = []
    for bucket in range(buckets):
        span = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        kept.extend(sorted({min(span, key=values.__getitem__), max(span, key=values.__getitem__)}))
    return kept


def chart_data(chart: Chart) -> dict[str, Any]:
    """What the page's script needs to draw the chart (JSON values, numbers rounded)."""
    return {
        "x": chart.x_label,
        "y": chart.y_label,
        "log": chart.log,
        "size": chart.size,
        "lines": [_line_data(line) for line in chart.lines],
    }


def _line_data(line: Line) -> dict[str, Any]:
    points = line.series.finite()
    kept = thin(points.values)

    def at(values: Sequence[float] | Array) -> list[float]:
        return [float(f"{values[i]:.6g}") for i in kept]

    data: dict[str, Any] = {
        "name": line.name,
        "colour": line.colour,
        "style": line.style,
        "trend": line.trend and len(kept) > 2,
        "at": [points.steps[i] for i in kept],
        "value": at(points.values),
    }
    if data["trend"]:
        trend = smooth(points.values)
        data |= {"mean": at(trend.mean), "low": at(trend.low), "high": at(trend.high)}
    return data


def ticks(low: float, high: float, count: int, *, log: bool = False) -> Ticks:
    """About ``count`` round positions between two values (low < high; positive when log)."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps: tuple[int, ...] = (1, 2, 5) if last - first <= 3 else (1,)
        at = [m * 10.0**e for e in range(first, last + 1) for m in steps]
        at = [value for value in at if low <= value <= high]
        if len(at) >= 2:
            return Ticks(at, [_number(value) for value in at])
    span = (high - low) or 1.0
    raw = span / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    at = [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]
    return Ticks(at, [_number(value) for value in at])


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}" if abs(value) < 1e3 else f"{value:,.0f}"


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)


class _Drawn(NamedTuple):
    """A line as the template draws it: (class, points of a polyline or ring), then dots."""

    colour: int
    shapes: list[tuple[str, str]]
    dots: list[tuple[float, float]]


def draw(chart: Chart) -> Markup:
    """The chart as an ``<svg>`` element; a word in it when there is nothing to draw."""
    lines = [line.model_copy(update={"series": line.series.finite()}) for line in chart.lines]
    lines = [line for line in lines if line.series.steps]
    width, height = chart.size
    rows, columns, drawn = [], [], []
    if lines:
        x, y = _scales(chart, [line.series for line in lines])
        rows = _marks(ticks(y.low, y.high, 5, log=y.log), y)
        columns = _marks(ticks(x.low, x.high, width // 115), x)
        drawn = [_line(line, x, y) for line in lines]
    return render(
        "chart.svg.j2",
        width=width,
        height=height,
        left=LEFT,
        right=width - RIGHT,
        top=TOP,
        base=height - BOTTOM,
        x_label=chart.x_label,
        y_label=chart.y_label,
        rows=rows,
        columns=columns,
        lines=drawn,
    )


def _marks(ticks: Ticks, scale: _Scale) -> list[tuple[float, str]]:
    return [(scale(value), text) for value, text in zip(ticks.at, ticks.text, strict=True)]


def _scales(chart: Chart, drawn: Sequence[Series]) -> tuple[_Scale, _Scale]:
    steps = [step for series in drawn for step in (series.steps[0], series.steps[-1])]
    values = [value for series in drawn for value in series.values]
    low, high = min(values), max(values)
    log = chart.log and low > 0
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    first, last = float(min(steps)), float(max(steps))
    if first == last:
        first, last = first - 1, last + 1
    side = (last - first) / 100
    width, height = chart.size
    if log:
        ratio = max((high / low) ** 0.06, 1.02)
        low, high = low / ratio, high * ratio
    else:
        low, high = low - margin, high + margin
    return (
        _Scale(first - side, last + side, LEFT, width - RIGHT, False),
        _Scale(low, high, height - BOTTOM, TOP, log),
    )


def _line(line: Line, x: _Scale, y: _Scale) -> _Drawn:
    colour = line.colour % 8
    series, kept = line.series, thin(line.series.values, 600)

    def points(
        values: Sequence[float] | Array, lowest: float = -math.inf
    ) -> list[tuple[float, float]]:
        return [(x(series.steps[i]), y(max(values[i], lowest))) for i in kept]

    raw = points(series.values)
    if line.style == "points" or len(raw) == 1:
        return _Drawn(colour, [("dash", _joined(raw))], raw)
    if not line.trend or len(raw) < 3:
        return _Drawn(colour, [("main", _joined(raw))], [])
    trend = smooth(series.values)
    lower = points(trend.low, y.low if y.log else -math.inf)
    ring = [*points(trend.high), *reversed(lower)]
    shapes = [("raw", raw), ("band", ring), ("main", points(trend.mean))]
    return _Drawn(colour, [(name, _joined(corners)) for name, corners in shapes], [])


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
