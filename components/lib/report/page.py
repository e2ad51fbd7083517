"""One self-contained HTML file: text, tables, pictures and charts that need no network.

KFP shows a report through ``srcdoc`` in an iframe that may only run scripts: no storage, no
cookies, no links to ``#section`` (they would resolve against the page around it). Everything is
therefore inline, and everything but the charts' hover and zoom works with scripts switched off.

All text given to these functions is plain text, which the templates escape; only `Markup` values,
which the functions of this module return, go into the page as they are.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Literal

from markupsafe import Markup

from components.lib.contract import Frozen
from components.lib.report.chart import Chart, chart_data, draw
from components.lib.report.templating import part, render

Mood = Literal["", "good", "bad", "warn"]


class Tile(Frozen):
    """One big number at the top of the page."""

    name: str
    value: str
    note: str = ""
    mood: Mood = ""


class Picture(Frozen):
    """A PNG, JPEG or MP4 that is embedded with a caption."""

    caption: str
    data: bytes
    media: Literal["image/png", "image/jpeg", "video/mp4"] = "image/png"


class Cell(Frozen):
    """A table cell with a sort key or a mood; plain strings and numbers need none."""

    text: str
    sort: float | None = None
    mood: Mood = ""


def text(value: str) -> Markup:
    """A paragraph."""
    return part("text", value=value)


def heading(value: str) -> Markup:
    """A heading inside a section."""
    return part("heading", value=value)


def badge(value: str, mood: Mood = "") -> Markup:
    """A word on coloured ground."""
    return part("badge", value=value, mood=mood)


def verdict_line(word: str, sentence: str, mood: Mood) -> Markup:
    """A badge and the sentence behind it."""
    return part("verdict_line", word=word, sentence=sentence, mood=mood)


def section(title: str, *parts: Markup) -> Markup:
    """A titled card; empty parts leave no trace, and a section of nothing else vanishes."""
    return part("section", title=title, parts=parts) if any(parts) else Markup("")


def folded(summary: str, *parts: Markup) -> Markup:
    """Content that is closed until clicked; works without scripts."""
    return part("folded", summary=summary, parts=parts)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | float | int | Cell | None]]
) -> Markup:
    """A table that sorts when a heading is clicked. Numbers are right-aligned."""
    drawn = [[_cell(value) for value in row] for row in rows]
    if not drawn:
        return Markup("")
    numeric = [
        all(row[i].sort is not None or row[i].text in ("", "–") for row in drawn)
        for i in range(len(columns))
    ]
    return part("table", columns=columns, numeric=numeric, rows=drawn)


def _cell(value: str | float | int | Cell | None) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None:
        return Cell(text="–")
    if isinstance(value, bool):
        return Cell(text="yes" if value else "no")
    if isinstance(value, int):
        return Cell(text=f"{value:,}" if abs(value) >= 10_000 else str(value), sort=float(value))
    if isinstance(value, float):
        return Cell(text=f"{value:.4g}", sort=value)
    return Cell(text=value)


def gallery(pictures: Iterable[Picture], *, cell: int = 480) -> Markup:
    """Pictures and videos in columns of at least ``cell`` pixels."""
    drawn = [
        {
            "media": picture.media,
            "caption": picture.caption,
            "source": f"data:{picture.media};base64,{base64.b64encode(picture.data).decode()}",
        }
        for picture in pictures
    ]
    return part("gallery", pictures=drawn, cell=cell) if drawn else Markup("")


def figure(chart: Chart) -> Markup:
    """A chart with its legend. Give the same chart to `page` to make it live."""
    # One line that is named as the axis needs no key.
    needless = len(chart.lines) == 1 and chart.lines[0].name == chart.y_label
    keys = [(line.style, line.colour % 8, line.name) for line in chart.lines]
    return part("figure", key=chart.key, keys=None if needless else keys, drawing=draw(chart))


def pair(charts: Sequence[Chart]) -> Markup:
    """Charts in two columns where there is room, each under its own heading."""
    figures = [(chart.y_label, figure(chart)) for chart in charts]
    return part("pair", figures=figures) if figures else Markup("")


def chain(items: Iterable[tuple[str, str]]) -> Markup:
    """A vertical chain of steps: a bold name and what is to be said about it."""
    steps = list(items)
    return part("chain", items=steps) if steps else Markup("")


def page(
    *,
    title: str,
    about: str,
    headline: Sequence[Markup],
    tiles: Sequence[Tile],
    sections: Sequence[Markup],
    charts: Sequence[Chart],
    footer: str = "",
) -> bytes:
    """The finished file, UTF-8."""
    assets = files("components.lib.report")
    content = render(
        "page.html.j2",
        title=title,
        about=about,
        headline=headline,
        tiles=tiles,
        sections=sections,
        charts={chart.key: chart_data(chart) for chart in charts},
        footer=footer,
        style=assets.joinpath("page.css").read_text(encoding="utf-8"),
        script=assets.joinpath("page.js").read_text(encoding="utf-8"),
    )
    return f"{content}\n".encode()
