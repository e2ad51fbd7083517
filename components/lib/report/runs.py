"""Sections of a report that come from training runs: curves, verdicts, throughput, settings.

One run is shown with its training loss (raw, trend and interval) and its validation loss; several
runs share every chart, one colour each, so that they can be compared and switched off singly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from components.lib.contract import Frozen
from components.lib.report.chart import Chart, Line
from components.lib.report.curves import VALIDATION, Run, Series
from components.lib.report.page import (
    Mood,
    Tile,
    figure,
    folded,
    pair,
    section,
    table,
    text,
    verdict_line,
)
from components.lib.report.trend import Verdict, read_trend

MOODS: dict[str, Mood] = {
    "falling": "good",
    "flat": "warn",
    "diverging": "bad",
    "spiking": "warn",
    "too short to tell": "",
}

# Quantities a training run may log, in the order of the report: key, axis label, log scale.
RATES = (
    ("mfu", "model FLOP utilisation", False),
    ("step_seconds", "seconds per step", False),
    ("data_wait_seconds", "seconds waiting for data", False),
    ("grad_norm", "gradient norm", True),
    ("lr", "learning rate", False),
)
HELD_OUT = (("psnr", "PSNR in dB"), ("ssim", "SSIM"))


class Judged(Frozen):
    """A run with the verdict on its training loss."""

    run: Run
    verdict: Verdict


def judge_runs(runs: Sequence[Run]) -> list[Judged]:
    """Verdicts, in the order of ``runs``."""
    return [Judged(run=run, verdict=read_trend(run.get("loss"))) for run in runs]


def headline(judged: Sequence[Judged]) -> list[Markup]:
    """One line per run: the word and the sentence."""
    lines = []
    for item in judged:
        name = f"{item.run.name}: " if len(judged) > 1 else ""
        rest = item.verdict.sentence.split(":", 1)[-1].strip()
        sentence = name + rest[:1].upper() + rest[1:]
        lines.append(verdict_line(item.verdict.word, sentence, MOODS[item.verdict.word]))
    return lines


def scalars(item: Judged) -> dict[str, float]:
    """Numbers about one run for the UI's metrics table. Only finite values."""
    numbers = item.verdict.numbers
    figures = {
        "loss_first_tenth": numbers.get("first_tenth", math.nan),
        "loss_last_tenth": numbers.get("last_tenth", math.nan),
        "loss_ratio": numbers.get("ratio", math.nan),
        "steps": numbers["steps"],
        "loss_validation_last": _last(item.run.get("loss", VALIDATION)),
        "loss_validation_best": min(
            item.run.get("loss", VALIDATION).finite().values, default=math.nan
        ),
        "step_seconds_median": _median(item.run.get("step_seconds")),
        "mfu_median": _median(item.run.get("mfu")),
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _last(series: Series) -> float:
    return series.finite().values[-1] if series.finite().values else math.nan


def _median(series: Series) -> float:
    values = sorted(series.finite().values)
    return values[len(values) // 2] if values else math.nan


def tiles(item: Judged) -> list[Tile]:
    """The big numbers of one run."""
    numbers = scalars(item)
    tiles = [Tile(name="steps", value=f"{numbers['steps']:,.0f}")]
    if "loss_ratio" in numbers:
        ratio = numbers["loss_ratio"]
        tiles.append(
            Tile(
                name="training loss, last tenth",
                value=f"{numbers['loss_last_tenth']:.4g}",
                note=f"{100 * (ratio - 1):+.1f} % against the first tenth",
                mood="good" if ratio < 1 else "bad",
            )
        )
    if "loss_validation_last" in numbers:
        tiles.append(
            Tile(
                name="validation loss, last",
                value=f"{numbers['loss_validation_last']:.4g}",
                note=f"best {numbers['loss_validation_best']:.4g}",
            )
        )
    if "step_seconds_median" in numbers:
        tiles.append(
            Tile(
                name="time per step",
                value=f"{numbers['step_seconds_median']:.3g} s",
                note="median",
            )
        )
    if "mfu_median" in numbers:
        tiles.append(Tile(name="MFU", value=f"{100 * numbers['mfu_median']:.1f} %", note="median"))
    return tiles


def loss_chart(runs: Sequence[Run]) -> Chart:
    """Training loss with its trend, and validation loss as points."""
    lines: list[Line] = []
    for index, run in enumerate(runs):
        alone = len(runs) == 1
        name = "training loss" if alone else run.name
        lines.append(Line(name=name, series=run.get("loss"), colour=index, trend=True))
        validation = run.get("loss", VALIDATION)
        if validation.steps:
            name = "validation loss" if alone else f"{run.name}, validation"
            colour = 1 if alone else index
            lines.append(Line(name=name, series=validation, colour=colour, style="points"))
    return Chart(key="loss", lines=tuple(lines), y_label="loss")


def charts(runs: Sequence[Run]) -> tuple[Chart, list[Chart], list[Chart]]:
    """The loss chart, the charts of held-out quantities, and those of rates and the like."""
    validation = [
        chart
        for key, label in HELD_OUT
        for chart in [_shared(runs, key, label, VALIDATION, log=False)]
        if chart.lines
    ]
    rates = [
        chart
        for key, label, log in [*_throughputs(runs), *RATES]
        for chart in [_shared(runs, key, label, "train", log=log)]
        if chart.lines
    ]
    return loss_chart(runs), validation, rates


def _throughputs(runs: Sequence[Run]) -> list[tuple[str, str, bool]]:
    """Whatever the runs count per second (tokens, pixels, …): key, label, linear."""
    keys = {key for run in runs for key in run.series.get("train", {})}
    return [
        (key, key.replace("_", " "), False) for key in sorted(keys) if key.endswith("_per_second")
    ]


def _shared(runs: Sequence[Run], key: str, label: str, split: str, *, log: bool) -> Chart:
    lines = tuple(
        Line(
            name=label if len(runs) == 1 else run.name,
            series=run.get(key, split),
            colour=index,
            style="points" if split == VALIDATION else "line",
            trend=key != "lr",
        )
        for index, run in enumerate(runs)
        if run.get(key, split).steps
    )
    return Chart(key=f"{split}-{key}", lines=lines, y_label=label, log=log, compact=True)


def curve_sections(runs: Sequence[Run]) -> tuple[list[Markup], list[Chart]]:
    """Loss, held-out quantities and rates as sections, and their charts."""
    loss, held, rates = charts(runs)
    caption = (
        "Thin: the loss of each step. Thick: its trend; the shade is the trend's 95 % interval. "
        "Points: loss on held-out video."
    )
    parts = [section("Loss", text(caption), figure(loss))]
    parts.append(section("Validation while training", pair(held)))
    parts.append(section("Speed and optimizer", pair(rates)))
    return parts, [loss, *held, *rates]


def settings_section(runs: Sequence[Run]) -> Markup:
    """Settings of the runs; with several runs, first those that differ."""
    flat = [flatten(run.settings) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    if not keys:
        return Markup("")
    names = ["setting", *(run.name for run in runs)] if len(runs) > 1 else ["setting", "value"]

    def rows(wanted: Sequence[str]) -> list[list[str]]:
        return [[key, *(settings.get(key, "–") for settings in flat)] for key in wanted]

    if len(runs) == 1:
        return section("Settings", table(names, rows(keys)))
    differing = [key for key in keys if len({settings.get(key) for settings in flat}) > 1]
    same = [key for key in keys if key not in differing]
    first = table(names, rows(differing)) if differing else text("The runs have equal settings.")
    rest = folded(f"{len(same)} equal settings", table(names, rows(same)))
    return section("Settings", first, rest if same else Markup(""))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and readable values."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = _readable(value)
    return flat


def _readable(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value) or "none"
    return str(value) if value != {} else "none"


def compare_table(judged: Sequence[Judged]) -> Markup:
    """Several runs side by side in numbers."""
    if len(judged) < 2:
        return Markup("")
    columns = (
        "run", "verdict", "steps", "loss, first tenth", "loss, last tenth",
        "validation, last", "validation, best", "s per step", "MFU",
    )  # fmt: skip
    keys = (
        "steps", "loss_first_tenth", "loss_last_tenth", "loss_validation_last",
        "loss_validation_best", "step_seconds_median", "mfu_median",
    )  # fmt: skip
    rows: list[list[str | float | None]] = []
    for item in judged:
        numbers = scalars(item)
        rows.append([item.run.name, item.verdict.word, *(numbers.get(key) for key in keys)])
    return section("Runs", table(columns, rows))
