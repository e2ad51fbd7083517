"""The report of one or several training runs, without an evaluation: page and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from components.lib.report import page, runs
from components.lib.report.curves import Run


def unique_names(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that differ: a number is added where two are called the same."""
    counts: dict[str, int] = {}
    named = []
    for run in runs:
        counts[run.name] = counts.get(run.name, 0) + 1
        again = counts[run.name] > 1
        name = f"{run.name} ({counts[run.name]})" if again else run.name
        named.append(run.model_copy(update={"name": name}))
    return named


def run_page(selected: Sequence[Run]) -> bytes:
    """One self-contained HTML file that compares the runs."""
    judged = runs.judge_runs(selected)
    parts, charts = runs.curve_sections(selected)
    title = selected[0].name if len(selected) == 1 else f"{len(selected)} training runs"
    return page.page(
        title=title,
        about=" · ".join(run.source for run in selected[:3]),
        headline=runs.headline(judged),
        tiles=runs.tiles(judged[0]) if len(selected) == 1 else [],
        sections=[runs.compare_table(judged), *parts, runs.settings_section(selected)],
        charts=charts,
        footer=f"cosmos-pipelines {version('cosmos-pipelines')}",
    )


def run_markdown(selected: Sequence[Run]) -> str:
    """Verdicts and figures as Markdown."""
    lines = ["| run | verdict | steps | loss, first tenth | loss, last tenth | validation, best |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    keys = ("steps", "loss_first_tenth", "loss_last_tenth", "loss_validation_best")
    judged = runs.judge_runs(selected)
    for item in judged:
        numbers = runs.scalars(item)
        cells = [f"{numbers[key]:.4g}" if key in numbers else "–" for key in keys]
        lines.append(f"| {item.run.name} | {item.verdict.word} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {item.run.name}: {item.verdict.sentence}" for item in judged]
    return "\n".join(lines) + "\n"
