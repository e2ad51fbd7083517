"""Training curves as a picture. A module of its own: only images that draw hold matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.lib.report.curves import VALIDATION, Run
from components.lib.report.trend import smooth


def to_png(runs: Sequence[Run], *, width: float = 9.6, height: float = 5.0) -> bytes:
    """Training and validation loss of the runs as a picture of 1440 x 750 pixels."""
    colours = ("#2563c9", "#d9660a", "#11875d", "#b83280", "#6b4fc8", "#8a6d1b")
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, run in enumerate(runs):
        colour = colours[index % len(colours)]
        train, validation = run.get("loss").finite(), run.get("loss", VALIDATION).finite()
        label = "training loss" if len(runs) == 1 else run.name
        axes.plot(train.steps, train.values, color=colour, alpha=0.28, linewidth=1)
        if len(train.steps) > 1:
            trend = smooth(train.values)
            axes.plot(train.steps, trend.mean, color=colour, linewidth=2.2, label=label)
            axes.fill_between(
                train.steps, trend.low, trend.high, color=colour, alpha=0.15, linewidth=0
            )
        if validation.steps:
            name = "validation loss" if len(runs) == 1 else f"{run.name}, validation"
            second = colours[1] if len(runs) == 1 else colour
            axes.plot(
                validation.steps, validation.values, "o--", color=second, markersize=4, label=name
            )
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
