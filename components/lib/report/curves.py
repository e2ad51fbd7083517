"""Training curves: what a run wrote to metrics.jsonl, as numbers and CSV (PNG: `curve_picture`).

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
