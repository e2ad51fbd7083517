"""Dot plot: one row per thing measured, one dot per model, whiskers for the interval.

Rows compare models where it matters (per video, per drive, per noise level). It needs no script:
exact values are in each dot's ``<title>``, which browsers show on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from components.lib.contract import Frozen
from components.lib.report.chart import ticks
from components.lib.report.page import Fragment
from components.lib.report.stats import Interval

WIDTH, ROW, TOP, BOTTOM, LABEL = 920, 30, 10, 44, 230


class Row(Frozen):
    """A label and an interval (or a bare value: bounds NaN) per model."""

    label: str
    values: dict[str, Interval]


def bare(value: float) -> Interval:
    """A value without an interval."""
    return Interval(mean=value, low=math.nan, high=math.nan, units=1)


def dots(rows: Sequence[Row], colours: Mapping[str, int], x_label: str) -> Fragment:
    """The plot with its legend. ``colours`` maps model -> colour number, in legend order."""
    points = [value for row in rows for value in row.values.values() if math.isfinite(value.mean)]
    if not points:
        return Fragment("")
    ends = [v for p in points for v in (p.mean, p.low, p.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    height = TOP + ROW * len(rows) + BOTTOM

    def x(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - LABEL - 20)

    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(x_label)} by model">'
    ]
    base = TOP + ROW * len(rows)
    marks = ticks(low, high, 6)
    for value, text in zip(marks.at, marks.text, strict=True):
        parts.append(
            f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{base}"/>'
            f'<text class="tick" x="{x(value):.1f}" y="{base + 18}" text-anchor="middle">'
            f"{text}</text>"
        )
    for number, row in enumerate(rows):
        parts.append(_row(row, TOP + ROW * (number + 0.5), colours, x))
    parts.append(
        f'<text class="label" x="{(LABEL + WIDTH) / 2}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text></svg>"
    )
    used = {name for row in rows for name in row.values}
    keys = "".join(
        f'<span class="key points"><i class="s{colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
        if name in used
    )
    return Fragment(f'<figure><div class="legend">{keys}</div>{"".join(parts)}</figure>')


def _row(row: Row, y: float, colours: Mapping[str, int], x: Callable[[float], float]) -> str:
    label = row.label if len(row.label) <= 32 else "…" + row.label[-31:]
    parts = [
        f'<text x="{LABEL - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}'
        f"<title>{escape(row.label)}</title></text>"
    ]
    names = [name for name in colours if name in row.values]
    means = [row.values[name].mean for name in names if math.isfinite(row.values[name].mean)]
    if len(means) > 1:
        parts.append(
            f'<line class="axis" opacity=".35" x1="{x(min(means)):.1f}" x2="{x(max(means)):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    for place, name in enumerate(names):
        value = row.values[name]
        if not math.isfinite(value.mean):
            continue
        # Whiskers of several models are set apart, or they would hide each other.
        at = y + (place - (len(names) - 1) / 2) * 5
        text, whisker = f"{name}: {value.mean:.5g}", ""
        if math.isfinite(value.low) and math.isfinite(value.high):
            text += f" (95 % interval {value.low:.5g} to {value.high:.5g})"
            whisker = (
                f'<line stroke="currentColor" stroke-width="2" opacity=".55" '
                f'x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            )
        parts.append(
            f'<g class="s{colours[name]}"><title>{escape(text)}</title>{whisker}'
            f'<circle cx="{x(value.mean):.1f}" cy="{at:.1f}" r="5"/></g>'
        )
    return "".join(parts)
