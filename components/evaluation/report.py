"""Writes the evaluation's files for people: report.html, summary.md, curves and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from components.evaluation import content
from components.lib.cosmos.families import family_named
from components.lib.lineage import Lineage
from components.lib.manifest import Manifest
from components.lib.report import curves, page, runs
from components.lib.report.curve_picture import to_png
from components.lib.report.curves import Run
from components.lib.report.page import Picture
from components.lib.report.scores import Evaluation
from components.lib.report.stats import interval
from components.lib.run_files import REPORT, SUMMARY
from components.lib.stage import Output
from components.lib.store import ObjectStore

if TYPE_CHECKING:
    from components.evaluation.family import Family

CONTACT_SHEET = "contact_sheet.png"


def write_report(
    output: Output,
    evaluation: Evaluation,
    run: Run,
    family: Family,
    lineage: Lineage,
    inputs: Mapping[str, Manifest],
) -> None:
    """Upload every file and fill summary, metrics and timing of the output."""
    judged = runs.judge_runs([run])[0]
    title = family_named(evaluation.family).title
    strips, videos = family.strips(), family.videos()
    for path, picture in [*strips, *videos]:
        output.put_bytes(path, picture.data)
    output.put_bytes("loss_curve.csv", curves.to_csv([run]))
    output.put_bytes("loss_curve.png", to_png([run]))
    output.put_bytes(SUMMARY, content.markdown(title, evaluation, judged.verdict.sentence))
    curve_parts, charts = runs.curve_sections([run])
    sections = [
        page.section("Before and after", *content.metric_table(evaluation)),
        curve_parts[0],
        content.pictures_section([p for _, p in strips], [p for _, p in videos]),
        *family.sections(evaluation),
        page.section("By source", *content.per_group(evaluation)),
        *curve_parts[1:],
        content.data_section(
            lineage,
            {**_facts(inputs["data"].summary), **family.facts()},
            _selected(inputs["data"], output.store),
        ),
        runs.settings_section([run]),
        content.lineage_section(lineage),
    ]
    about = " · ".join(filter(None, [evaluation.models["candidate"].name, _sources(lineage)]))
    html = page.page(
        title=title,
        about=about,
        headline=[*content.headline(evaluation), *runs.headline([judged])],
        tiles=[*content.tiles(evaluation), *runs.tiles(judged)],
        sections=sections,
        charts=charts,
        footer=f"cosmos-pipelines {version('cosmos-pipelines')}, evaluation of "
        f"{evaluation.models['candidate'].manifest} at {output.uri}",
    )
    output.put_bytes(REPORT, html)
    output.metrics.update(_metrics(evaluation, runs.scalars(judged), family))
    output.timing.update(family.rates())
    output.summary.update(
        {
            "family": evaluation.family,
            "metric": evaluation.metric,
            "verdict": judged.verdict.word,
            "same_video": evaluation.same_video,
            "candidate": evaluation.models["candidate"].digest,
            "notes": list(evaluation.notes),
        }
    )


def _sources(lineage: Lineage) -> str:
    names = [video.uri.rsplit("/", 1)[-1] for video in lineage.videos]
    if not names:
        return ""
    return names[0] if len(names) == 1 else f"{len(names)} videos, {names[0]} and others"


def _selected(data: Manifest, store: ObjectStore) -> list[Picture]:
    """The contact sheet of the data set, where its stage made one."""
    return [
        Picture(
            caption="clips that were selected: first, middle and last frame",
            data=store.get_bytes(data.file_uri(entry.path), sha256=entry.sha256),
        )
        for entry in data.files
        if entry.path == CONTACT_SHEET
    ]


def _facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    flat = runs.flatten({key: value for key, value in summary.items() if key != "metrics"})
    return dict(list(flat.items())[:40])


def _metrics(
    evaluation: Evaluation, curve: Mapping[str, float], family: Family
) -> dict[str, float]:
    found = dict(curve)
    for role in evaluation.models:
        for metric in content.LABELS:
            mean = interval(evaluation.clips(role), metric)
            if mean.units:
                found[f"{role}_{metric}"] = mean.mean
    for item in content.comparisons(evaluation):
        key = f"improvement_over_{item.role}" + ("" if item.set_name == "held-out" else "_old")
        found[key] = item.comparison.improvement
    return {**found, **family.scalars(), **family.rates()}
