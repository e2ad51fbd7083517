"""Charts as drawings: axes, thinning, and what happens at the edges."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.lib.report.chart import Chart, Line, chart_data, draw, thin, ticks
from components.lib.report.curves import Series

values = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: round(v, 6))


def chart(numbers: Sequence[float], log: bool = False) -> Chart:
    series = Series(name="loss", steps=tuple(range(len(numbers))), values=tuple(numbers))
    line = Line(name="loss", series=series, trend=True)
    return Chart(key="k", lines=(line,), y_label="loss", log=log)


@given(low=values, span=st.floats(1e-3, 1e9), count=st.integers(2, 10))
def test_ticks_are_inside_even_and_few(low: float, span: float, count: int) -> None:
    found = ticks(low, low + span, count).at
    tolerance = 1e-6 * max(abs(low), span)
    assert all(low - tolerance <= value <= low + span + tolerance for value in found)
    assert 1 <= len(found) <= 2 * count + 2
    if len(found) > 2:
        steps = [b - a for a, b in itertools.pairwise(found)]
        assert max(steps) - min(steps) <= tolerance


def test_log_ticks_are_one_two_five() -> None:
    assert ticks(0.9, 60, 5, log=True).at == pytest.approx([1, 2, 5, 10, 20, 50])


@given(st.lists(values, min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_order_and_extremes(numbers: list[float], limit: int) -> None:
    kept = thin(numbers, limit)
    assert kept == sorted(set(kept)) and len(kept) <= max(
        limit, len(numbers) if limit < 4 else limit
    )
    assert max(numbers[i] for i in kept) == max(numbers)
    assert min(numbers[i] for i in kept) == min(numbers)


@given(
    st.lists(st.one_of(values, st.just(math.nan), st.just(math.inf)), max_size=50), st.booleans()
)
def test_every_curve_is_well_formed_svg_with_finite_coordinates(
    numbers: list[float], log: bool
) -> None:
    drawing = draw(chart(numbers, log=log))
    ET.fromstring(drawing)
    assert "nan" not in drawing and "inf" not in drawing


def test_nothing_to_draw_says_so() -> None:
    assert "no values" in draw(chart([]))


def test_data_for_the_script_is_json_without_nan() -> None:
    import json

    text = json.dumps(chart_data(chart([1.0, math.nan, 3.0, 2.0])), allow_nan=False)
    assert json.loads(text)["lines"][0]["at"] == [0, 2, 3]
