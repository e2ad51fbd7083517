"""Names, notes and error sentences from outside stay text in every page, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

from components.harness.run_notes import TaskNote
from components.harness.run_report import html, summarise
from components.lib.report import page
from components.lib.report.chart import Chart, Line, draw
from components.lib.report.comparison import run_page, unique_names
from components.lib.report.curves import Run, Series, read_run
from components.lib.report.ranges import Row, bare, dots
from components.lib.report.stats import Interval
from components.lib.report.templating import render
from tests.lib.report.foreign_text import NASTY, Reader, check_inert


def training_run(foreign: str, number: int = 0) -> Run:
    """A run whose every free text is ``foreign``: name, source, settings, a logged rate."""
    rng = np.random.default_rng(number)
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": float(1 + rng.random()), f"{foreign}_per_second": 2.0}
        for step in range(1, 61)
    ]
    lines.append({"step": 60, "split": "validation", "loss": 1.0, "psnr": 30.0})
    data = "\n".join(map(json.dumps, lines)).encode()
    settings = {foreign: foreign, "nested": {foreign: [foreign, number]}}
    return read_run(foreign, data, foreign, settings)


def runs_page(foreign: str, count: int) -> bytes:
    return run_page(unique_names([training_run(foreign, number) for number in range(count)]))


def report_page(foreign: str) -> bytes:
    """The report of a scheduled run, with every text that a stage may have written."""
    notes = [
        TaskNote(stage=foreign, what=foreign, started=0, state="succeeded", manifest=foreign,
                 metrics={foreign: 1.0}),
        TaskNote(stage=foreign, what="other", started=1, state="failed", error=foreign),
    ]  # fmt: skip
    summary = summarise(foreign, notes, {}, foreign, foreign).model_copy(
        update={
            "counts": {"listed": 3, "new": 2},
            "decision": {
                "production": foreign,
                "rules": [{"name": foreign, "passed": False, "sentence": foreign}],
                "pointer": {foreign: foreign, "more": {foreign: foreign}},
                "ledger": foreign,
            },
        }
    )
    return html(foreign, summary)


def every_part(foreign: str) -> bytes:
    """Each function that makes a part of a page, with ``foreign`` wherever it takes text."""
    series = Series(name=foreign, steps=(1, 2, 3, 4), values=(1.0, 3.0, 2.0, 4.0))
    lines = (
        Line(name=foreign, series=series, trend=True),
        Line(name=foreign, series=series, style="points", colour=1),
    )
    chart = Chart(key=foreign, lines=lines, y_label=foreign, x_label=foreign)
    empty = Chart(key="empty", lines=(), y_label=foreign, x_label=foreign)
    rows = [
        Row(label=foreign, values={foreign: Interval(mean=1, low=0.5, high=2, units=3)}),
        Row(label=foreign * 3, values={foreign: bare(2), "other": bare(1)}),
    ]
    pictures = [
        page.Picture(caption=foreign, data=b"\xff<>", media="image/jpeg"),
        page.Picture(caption=foreign, data=b"<b>", media="video/mp4"),
    ]
    cells: list[str | float | page.Cell | None] = [
        foreign,
        page.Cell(text=foreign, mood="bad", sort=1.5),
        3,
        4.0,
        None,
    ]
    return page.page(
        title=foreign,
        about=foreign,
        headline=[page.verdict_line(foreign, foreign, "good"), page.badge(foreign)],
        tiles=[page.Tile(name=foreign, value=foreign, note=foreign, mood="warn")],
        sections=[
            page.section(foreign, page.text(foreign), page.heading(foreign)),
            page.section(foreign, page.folded(foreign, page.table([foreign] * 5, [cells] * 2))),
            page.section(foreign, page.gallery(pictures), page.chain([(foreign, foreign)])),
            page.section(foreign, page.pair([chart, empty]), page.figure(chart)),
            page.section(foreign, dots(rows, {foreign: 0, "other": 1}, foreign)),
        ],
        charts=[chart, empty],
        footer=foreign,
    )


@pytest.mark.parametrize("count", [1, 2])
def test_texts_of_training_runs_stay_text(count: int) -> None:
    reader = check_inert(runs_page(NASTY, count), runs_page("plain", count))
    text = "".join(reader.text)
    assert text.count(NASTY) >= 6 * count
    lines = reader.data()["loss"]["lines"]
    if count == 2:
        assert [line["name"] for line in lines if line["style"] == "line"] == [
            NASTY,
            f"{NASTY} (2)",
        ]
    # The rate's name is a key of the data and the attribute by which the script finds it.
    keys = [key for key in reader.data() if NASTY in key]
    assert len(keys) == 1 and keys[0] in reader.attributes


def test_texts_of_a_run_report_stay_text() -> None:
    reader = check_inert(report_page(NASTY), report_page("plain"))
    assert "".join(reader.text).count(NASTY) >= 15


def test_every_part_of_a_page_escapes_what_it_is_given() -> None:
    reader = check_inert(every_part(NASTY), every_part("plain"))
    assert "".join(reader.text).count(NASTY) >= 30
    assert any(value == NASTY for value in reader.attributes), "captions name their pictures"
    assert reader.data()[NASTY]["x"] == NASTY


def test_only_what_the_page_made_counts_as_markup() -> None:
    """A plain string among the parts is text, so nobody can forget to escape."""
    careless: Any = "<script>alert(1)</script>"
    section = page.section("title", careless, page.text("good"))
    assert "<script>" not in section and "<p>good</p>" in section
    assert Reader(page.folded("more", careless)).elements.keys().isdisjoint({("script", ())})


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("page.html.j2", about="no title")


def test_charts_alone_are_escaped_too() -> None:
    chart = Chart(key="k", lines=(), y_label=NASTY)
    plain = chart.model_copy(update={"y_label": "plain"})
    assert Reader(draw(chart)).elements == Reader(draw(plain)).elements


def test_the_reader_sees_what_was_not_escaped() -> None:
    """A check that finds nothing proves nothing."""
    shell = "<p>{}</p><script>{{}}</script><script>1</script>"
    with pytest.raises(AssertionError):
        check_inert(shell.format(NASTY).encode(), shell.format("plain").encode())
