"""One self-contained HTML file: text, tables, pictures and charts that need no network.

KFP shows a report through ``srcdoc`` in an iframe that may only run scripts: no storage, no
cookies, no links to ``#section`` (they would resolve against the page around it). Everything is
therefore inline, and everything but the charts' hover and zoom works with scripts switched off.

All text given to these functions is plain text and is escaped here; only `Fragment` values, which
the functions of this module return, are markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Literal, NewType

from components.lib.contract import Frozen
from components.lib.report.chart import Chart, chart_data, draw

Fragment = NewType("Fragment", str)
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


def text(value: str) -> Fragment:
    """A paragraph."""
    return Fragment(f"<p>{escape(value)}</p>")


def heading(value: str) -> Fragment:
    """A heading inside a section."""
    return Fragment(f"<h3>{escape(value)}</h3>")


def badge(value: str, mood: Mood = "") -> Fragment:
    """A word on coloured ground."""
    return Fragment(f'<span class="badge {mood}">{escape(value)}</span>')


def verdict_line(word: str, sentence: str, mood: Mood) -> Fragment:
    """A badge and the sentence behind it."""
    return Fragment(f"<p>{badge(word, mood)} {escape(sentence)}</p>")


def section(title: str, *parts: Fragment) -> Fragment:
    """A titled card; empty parts leave no trace, and a section of nothing else vanishes."""
    body = "".join(parts)
    if not body:
        return Fragment("")
    return Fragment(f"<section><h2>{escape(title)}</h2>{body}</section>")


def folded(summary: str, *parts: Fragment) -> Fragment:
    """Content that is closed until clicked; works without scripts."""
    return Fragment(f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | float | int | Cell | None]]
) -> Fragment:
    """A table that sorts when a heading is clicked. Numbers are right-aligned."""
    drawn = [[_cell(value) for value in row] for row in rows]
    if not drawn:
        return Fragment("")
    numeric = [
        all(row[i].sort is not None or row[i].text in ("", "–") for row in drawn)
        for i in range(len(columns))
    ]
    head = "".join(
        f"<th{' class=n' if numeric[i] else ''}>{escape(name)}</th>"
        for i, name in enumerate(columns)
    )
    body = "".join(
        "<tr>" + "".join(_data(cell, numeric=numeric[i]) for i, cell in enumerate(row)) + "</tr>"
        for row in drawn
    )
    return Fragment(
        '<div class="table"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


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


def _data(cell: Cell, *, numeric: bool) -> str:
    sort = f' data-value="{cell.sort!r}"' if cell.sort is not None else ""
    shown = escape(cell.text)
    if cell.mood:
        shown = f'<span class="{cell.mood}">{shown}</span>'
    return f'<td class="{"n" if numeric else "wide"}"{sort}>{shown}</td>'


def gallery(pictures: Iterable[Picture], *, cell: int = 480) -> Fragment:
    """Pictures and videos in columns of at least ``cell`` pixels."""
    drawn = []
    for picture in pictures:
        source = f"data:{picture.media};base64,{base64.b64encode(picture.data).decode()}"
        caption = escape(picture.caption)
        if picture.media == "video/mp4":
            shown = (
                f'<video controls loop muted playsinline preload="metadata" src="{source}" '
                f'aria-label="{caption}"></video>'
            )
        else:
            shown = f'<img src="{source}" alt="{caption}">'
        drawn.append(f"<figure>{shown}<figcaption>{caption}</figcaption></figure>")
    if not drawn:
        return Fragment("")
    return Fragment(f'<div class="gallery" style="--cell:{cell}px">{"".join(drawn)}</div>')


def figure(chart: Chart) -> Fragment:
    """A chart with its legend. Give the same chart to `page` to make it live."""
    keys = "".join(
        f'<span class="key {line.style}"><i class="s{line.colour % 8}"></i>'
        f"{escape(line.name)}</span>"
        for line in chart.lines
    )
    # One line that is named as the axis needs no key.
    needless = len(chart.lines) == 1 and chart.lines[0].name == chart.y_label
    legend = "" if needless else f'<div class="legend">{keys}</div>'
    return Fragment(
        f'<figure class="chart" data-chart="{escape(chart.key)}">{legend}{draw(chart)}</figure>'
    )


def pair(charts: Sequence[Chart]) -> Fragment:
    """Charts in two columns where there is room, each under its own heading."""
    drawn = "".join(f"<div>{heading(chart.y_label)}{figure(chart)}</div>" for chart in charts)
    return Fragment(f'<div class="pair">{drawn}</div>') if drawn else Fragment("")


def chain(items: Iterable[tuple[str, str]]) -> Fragment:
    """A vertical chain of steps: a bold name and what is to be said about it."""
    drawn = "".join(
        f"<li><b>{escape(name)}</b><br><span class=note>{escape(about)}</span></li>"
        for name, about in items
    )
    return Fragment(f'<ul class="chain">{drawn}</ul>') if drawn else Fragment("")


def page(
    *,
    title: str,
    about: str,
    headline: Sequence[Fragment],
    tiles: Sequence[Tile],
    sections: Sequence[Fragment],
    charts: Sequence[Chart],
    footer: str = "",
) -> bytes:
    """The finished file, UTF-8."""
    assets = files("components.lib.report")
    style = assets.joinpath("page.css").read_text(encoding="utf-8")
    script = assets.joinpath("page.js").read_text(encoding="utf-8")
    # "</script>" inside a JSON string would end the element; "\/" means the same to JSON.
    data = json.dumps({chart.key: chart_data(chart) for chart in charts}, allow_nan=False)
    data = data.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    drawn = "".join(
        f'<div class="tile"><div class="name">{escape(tile.name)}</div>'
        f'<div class="value {tile.mood}">{escape(tile.value)}</div>'
        f'<div class="note">{escape(tile.note)}</div></div>'
        for tile in tiles
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An empty icon: without one a browser asks the server for /favicon.ico.
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>"
        f'<body><header class="top"><h1>{escape(title)}</h1>'
        f'<div class="about">{escape(about)}</div></header><nav></nav>'
        f'<main><div class="headline">{"".join(headline)}</div>'
        f'<div class="tiles">{drawn}</div>{"".join(sections)}</main>'
        f"<footer>{escape(footer)}</footer>"
        f'<script type="application/json" id="charts">{data}</script>'
        f"<script>{script}</script></body></html>\n"
    ).encode()
