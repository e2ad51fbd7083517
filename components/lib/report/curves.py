"""Training curves: what a run wrote to metrics.jsonl, as numbers, CSV and PNG.

A run that was killed and resumed repeats some steps; the line written last wins, because that is
the step the surviving weights went through. A cut-off last line is what a killed process leaves
and is ignored; damage anywhere else is an error that names the line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.lib.contract import Frozen, UserError

TRAIN, VALIDATION = "train", "validation"


class Series(Frozen):
    """Values of one quantity over optimizer steps, in step order. Values may be NaN or inf."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def finite(self) -> Series:
        """The series without its NaN and infinite values."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Series(
            name=self.name, steps=tuple(s for s, _ in kept), values=tuple(v for _, v in kept)
        )


class Run(Frozen):
    """One training run: its series by split and name, and its settings."""

    name: str
    source: str
    series: dict[str, dict[str, Series]]
    settings: dict[str, Any] = {}

    def get(self, name: str, split: str = TRAIN) -> Series:
        """A series; empty when the run never logged it."""
        empty = Series(name=name, steps=(), values=())
        return self.series.get(split, {}).get(name, empty)


def read_run(name: str, data: bytes, source: str, settings: Mapping[str, Any] | None = None) -> Run:
    """Run from the bytes of its metrics.jsonl. ``source`` names the file in errors."""
    by_step: dict[tuple[str, int], dict[str, float]] = {}
    lines = data.decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step, split = int(record["step"]), str(record.get("split", TRAIN))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"Line {number} of {source} is not a metrics record ({error}). "
                "Each line must be a JSON object with a 'step'."
            ) from error
        values = {
            key: float(value)
            for key, value in record.items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        by_step.setdefault((split, step), {}).update(values)
    return Run(name=name, source=source, series=_columns(by_step), settings=dict(settings or {}))


def _columns(
    by_step: Mapping[tuple[str, int], Mapping[str, float]],
) -> dict[str, dict[str, Series]]:
    collected: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for split, step in sorted(by_step):
        for key, value in by_step[split, step].items():
            steps, values = collected.setdefault(split, {}).setdefault(key, ([], []))
            steps.append(step)
            values.append(value)
    return {
        split: {
            key: Series(name=key, steps=tuple(steps), values=tuple(values))
            for key, (steps, values) in columns.items()
        }
        for split, columns in collected.items()
    }


def to_csv(runs: Sequence[Run]) -> bytes:
    """The curves as a table: run, split, step and one column per quantity; empty = not logged."""
    names = sorted({key for run in runs for columns in run.series.values() for key in columns})
    names.sort(key=lambda key: key != "loss")
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "split", "step", *names])
    for run in runs:
        for split, columns in run.series.items():
            cells: dict[int, dict[str, float]] = {}
            for key, series in columns.items():
                for step, value in zip(series.steps, series.values, strict=True):
                    cells.setdefault(step, {})[key] = value
            for step in sorted(cells):
                row = [repr(cells[step][key]) if key in cells[step] else "" for key in names]
                writer.writerow([run.name, split, step, *row])
    return stream.getvalue().encode()


def to_png(runs: Sequence[Run], *, width: float = 9.6, height: float = 5.0) -> bytes:
    """Training and validation loss of the runs as a picture of 1440 x 750 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from components.lib.report.trend import smooth

    colours = ("#2563c9", "#d9660a", "#11875d", "#b83280", "#6b4fc8", "#8a6d1b")
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        colour = colours[index % len(colours)]
        train, held = run.get("loss").finite(), run.get("loss", VALIDATION).finite()
        label = "training loss" if len(runs) == 1 else run.name
        axes.plot(train.steps, train.values, color=colour, alpha=0.28, linewidth=1)
        if len(train.steps) > 1:
            trend = smooth(train.values)
            axes.plot(train.steps, trend.mean, color=colour, linewidth=2.2, label=label)
            axes.fill_between(
                train.steps, trend.low, trend.high, color=colour, alpha=0.15, linewidth=0
            )
        if held.steps:
            name = "validation loss" if len(runs) == 1 else f"{run.name}, validation"
            second = colours[1] if len(runs) == 1 else colour
            axes.plot(held.steps, held.values, "o--", color=second, markersize=4, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    figure.tight_layout()
    stream = io.BytesIO()
    # No software name or date in the file: equal curves give equal bytes.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
