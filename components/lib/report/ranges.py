"""Dot plot: one row per thing measured, one dot per model, whiskers for the interval.

Rows compare models where it matters (per video, per drive, per noise level). It needs no script:
exact values are in each dot's ``<title>``, which browsers show on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from components.lib.contract import Frozen
from components.lib.report.chart import ticks
from components.lib.report.stats import Interval
from components.lib.report.templating import render

WIDTH, ROW, TOP, BOTTOM, LABEL = 920, 30, 10, 44, 230


class Row(Frozen):
    """A label and an interval (or a bare value: bounds NaN) per model."""

    label: str
    values: dict[str, Interval]


class _Dot(NamedTuple):
    x: float
    y: float
    colour: int
    text: str
    whisker: tuple[float, float] | None


class _Drawn(NamedTuple):
    """A row as the template draws it. ``span`` joins the outermost dots of several."""

    y: float
    label: str
    short: str
    span: tuple[float, float] | None
    dots: list[_Dot]


def bare(value: float) -> Interval:
    """A value without an interval."""
    return Interval(mean=value, low=math.nan, high=math.nan, units=1)


def dots(rows: Sequence[Row], colours: Mapping[str, int], x_label: str) -> Markup:
    """The plot with its legend. ``colours`` maps model -> colour number, in legend order."""
    points = [value for row in rows for value in row.values.values() if math.isfinite(value.mean)]
    if not points:
        return Markup("")
    ends = [v for p in points for v in (p.mean, p.low, p.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - LABEL - 20)

    marks = ticks(low, high, 6)
    used = {name for row in rows for name in row.values}
    return render(
        "dots.html.j2",
        width=WIDTH,
        height=height,
        left=LABEL,
        top=TOP,
        base=TOP + ROW * len(rows),
        x_label=x_label,
        keys=[("points", colour, name) for name, colour in colours.items() if name in used],
        marks=[(x(value), text) for value, text in zip(marks.at, marks.text, strict=True)],
        rows=[_row(row, TOP + ROW * (number + 0.5), colours, x) for number, row in enumerate(rows)],
    )


def _row(row: Row, y: float, colours: Mapping[str, int], x: Callable[[float], float]) -> _Drawn:
    names = [name for name in colours if name in row.values]
    means = [row.values[name].mean for name in names if math.isfinite(row.values[name].mean)]
    drawn = []
    for place, name in enumerate(names):
        value = row.values[name]
        if not math.isfinite(value.mean):
            continue
        text, whisker = f"{name}: {value.mean:.5g}", None
        if math.isfinite(value.low) and math.isfinite(value.high):
            text += f" (95 % interval {value.low:.5g} to {value.high:.5g})"
            whisker = (x(value.low), x(value.high))
        # Whiskers of several models are set apart, or they would hide each other.
        at = y + (place - (len(names) - 1) / 2) * 5
        drawn.append(_Dot(x(value.mean), at, colours[name], text, whisker))
    return _Drawn(
        y=y,
        label=row.label,
        short=row.label if len(row.label) <= 32 else "…" + row.label[-31:],
        span=(x(min(means)), x(max(means))) if len(means) > 1 else None,
        dots=drawn,
    )
