"""What the evaluation report says: headline, tiles, comparison tables, pictures, data, lineage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from components.lib.lineage import Lineage
from components.lib.report import page
from components.lib.report.page import Cell, Mood, Picture, Tile
from components.lib.report.ranges import Row, bare, dots
from components.lib.report.scores import HELD_OUT, Evaluation, ModelRole, by_drive, by_video
from components.lib.report.stats import Comparison, compare, interval

ROLE_NAMES: dict[ModelRole, str] = {
    "base": "before (base)",
    "production": "in production",
    "candidate": "after (this run)",
}
COLOURS = {ROLE_NAMES["base"]: 7, ROLE_NAMES["production"]: 1, ROLE_NAMES["candidate"]: 0}
SET_NAMES = {HELD_OUT: "held-out video", "old": "older held-out video"}
LABELS = {
    "loss": "held-out loss",
    "loss_band_low": "loss, low noise",
    "loss_band_middle": "loss, middle noise",
    "loss_band_high": "loss, high noise",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "vgg_distance": "VGG16 feature distance",
    "temporal_error": "flicker (grey levels)",
}
HIGHER = {"psnr", "ssim", "ms_ssim"}
SHOWN_ROWS = 24


class ModelComparison(NamedTuple):
    """A comparison of the candidate with another model on one set."""

    role: ModelRole
    set_name: str
    comparison: Comparison


def comparisons(evaluation: Evaluation) -> list[ModelComparison]:
    """Candidate against base and production, on every set, by the deciding metric."""
    compared = []
    for name in evaluation.sets:
        new = evaluation.clips("candidate", name)
        others: tuple[ModelRole, ...] = ("base", "production")
        for role in others:
            old = evaluation.clips(role, name)
            result = compare(old, new, evaluation.metric, evaluation.better)
            if result is not None:
                compared.append(ModelComparison(role, name, result))
    return compared


def sentence(compared: ModelComparison, evaluation: Evaluation) -> tuple[str, Mood, str]:
    """(word, mood, sentence) for one comparison."""
    result = compared.comparison
    certain = math.isfinite(result.low)
    if certain and result.low > 0:
        word, mood = "better", "good"
    elif certain and result.high < 0:
        word, mood = "worse", "bad"
    elif certain:
        word, mood = "no clear change", "warn"
    else:
        word = "better, one clip" if result.improvement > 0 else "not better, one clip"
        mood = "warn"
    label = LABELS[evaluation.metric]
    against = "its base" if compared.role == "base" else "the model in production"
    where = "" if compared.set_name == HELD_OUT else f" on {SET_NAMES[compared.set_name]}"
    text = (
        f"{label[:1].upper()}{label[1:]}{where} went from {result.old:.4g} to {result.new:.4g} "
        f"against {against}: improvement {result.text}."
    )
    return word, mood, text  # type: ignore[return-value]


def headline(evaluation: Evaluation) -> list[Markup]:
    """One line per comparison, and a warning where nothing was held out."""
    lines = [
        page.verdict_line(word, text, mood)
        for found in comparisons(evaluation)
        for word, mood, text in [sentence(found, evaluation)]
    ]
    lines += [page.verdict_line("note", note, "warn") for note in evaluation.notes]
    return lines


def tiles(evaluation: Evaluation) -> list[Tile]:
    """The deciding metric of every model and the improvement over the base."""
    tiles = []
    for role, name in ROLE_NAMES.items():
        mean = interval(evaluation.clips(role), evaluation.metric)
        if mean.units:
            reach = "" if math.isnan(mean.low) else f", 95 % {mean.low:.4g} to {mean.high:.4g}"
            plural = "" if mean.units == 1 else "s"
            tiles.append(
                Tile(
                    name=f"{LABELS[evaluation.metric]}, {name}",
                    value=f"{mean.mean:.4g}",
                    note=f"{mean.units} source video{plural}{reach}",
                )
            )
    return tiles


def metric_table(evaluation: Evaluation) -> list[Markup]:
    """Every metric: a row per set and metric, a column per model, and the change."""
    roles = [role for role in ROLE_NAMES if role in evaluation.models]
    rows: list[list[str | float | Cell | None]] = []
    for name, by_role in evaluation.sets.items():
        for metric in _metrics(by_role.values()):
            before = interval(by_role.get("base", ()), metric)
            after = interval(by_role.get("candidate", ()), metric)
            rows.append(
                [
                    SET_NAMES[name],
                    LABELS.get(metric, metric),
                    *(_shown(interval(by_role.get(role, ()), metric).mean) for role in roles),
                    _change(before.mean, after.mean, metric),
                ]
            )
    columns = ["measured on", "metric", *(ROLE_NAMES[role] for role in roles), "change"]
    return [page.table(columns, rows)]


def _metrics(groups: Iterable[Sequence[Any]]) -> list[str]:
    names = {name for clips in groups for clip in clips for name in clip.values}
    return [name for name in LABELS if name in names]


def _shown(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _change(before: float, after: float, metric: str) -> Cell:
    if not (math.isfinite(before) and math.isfinite(after)):
        return Cell(text="–")
    change = after - before
    good = (change > 0) == (metric in HIGHER)
    text = f"{change:+.3g}" if metric in HIGHER or not before else f"{100 * change / before:+.2f} %"
    return Cell(text=text.replace("-", "−"), sort=change, mood="good" if good else "bad")


def sigma_plot(evaluation: Evaluation) -> Markup:
    """Loss per noise level with intervals over source videos."""
    prefix = "loss_sigma_"
    names = {
        key
        for clip in evaluation.clips("candidate")
        for key in clip.values
        if key.startswith(prefix)
    }
    rows = [
        Row(
            label=f"σ = {name[len(prefix) :]}",
            values={
                ROLE_NAMES[role]: interval(evaluation.clips(role), name)
                for role in ROLE_NAMES
                if evaluation.clips(role)
            },
        )
        for name in sorted(names, key=lambda key: float(key[len(prefix) :]))
    ]
    return dots(rows, COLOURS, "loss (lower is better)")


def per_group(evaluation: Evaluation) -> list[Markup]:
    """The deciding metric per drive (or video): plot of the most changed, table of all."""
    metric, parts = evaluation.metric, []
    for name, by_role in evaluation.sets.items():
        clips = by_role.get("candidate", ())
        by_drives = any(clip.drive for clip in clips)
        group = by_drive if by_drives else by_video
        labels = {clip.sha256: _short(clip.video) for clip in clips}
        values = {role: group(by_role.get(role, ()), metric) for role in ROLE_NAMES}
        keys = sorted(
            values["candidate"],
            key=lambda key: (
                -abs(values["candidate"][key] - values["base"].get(key, values["candidate"][key]))
            ),
        )
        rows = [
            Row(
                label=labels.get(key, _short(key)),
                values={
                    ROLE_NAMES[role]: bare(values[role][key])
                    for role in ROLE_NAMES
                    if key in values[role]
                },
            )
            for key in keys
        ]
        what = "drive" if by_drives else "source video"
        parts.append(page.heading(f"Per {what}, {SET_NAMES[name]}"))
        better = "lower" if evaluation.better == "lower" else "higher"
        parts.append(dots(rows[:SHOWN_ROWS], COLOURS, f"{LABELS[metric]} ({better} is better)"))
        if len(rows) > SHOWN_ROWS:
            columns = [what, *COLOURS]
            cells = [
                [row.label, *(row.values[n].mean if n in row.values else None for n in COLOURS)]
                for row in rows
            ]
            parts.append(page.folded(f"all {len(rows)}", page.table(columns, cells)))
    return parts


def _short(uri: str) -> str:
    return "/".join(uri.rstrip("/").split("/")[-2:]) if "/" in uri else uri


def pictures_section(strips: Sequence[Picture], videos: Sequence[Picture]) -> Markup:
    """Strips one below the other, videos in columns."""
    return page.section("Pictures", page.gallery(strips, cell=900), page.gallery(videos, cell=440))


def data_section(
    lineage: Lineage, facts: Mapping[str, Any], selected: Sequence[Picture] = ()
) -> Markup:
    """How much video of which split, what the data set's manifest says, and what was selected."""
    rows: list[list[str | int | float]] = []
    for split in ("train", "validation"):
        videos = [video for video in lineage.videos if video.split == split]
        if videos:
            drives = len({video.drive for video in videos if video.drive})
            size = sum(video.bytes for video in videos) / 1e6
            rows.append([split, len(videos), drives, size])
    table = page.table(["split", "videos", "drives", "MB"], rows)
    plain = [[key, value] for key, value in facts.items()]
    pictures = page.gallery(selected, cell=900)
    return page.section("Data", table, pictures, page.table(["data set", ""], plain))


def lineage_section(lineage: Lineage) -> Markup:
    """From fleet video to checkpoint: the stages in order, then the videos with their hashes."""
    items = [
        (
            f"{step.stage} (version {step.stage_version})"
            + (f", via {step.via}" if step.via else ""),
            f"{step.uri}  ·  content {step.content[:16]}",
        )
        for step in lineage.steps
    ]
    videos = page.table(
        ["video", "split", "drive", "bytes", "sha256"],
        [[v.uri, v.split, v.drive or "–", v.bytes, v.sha256] for v in lineage.videos],
    )
    missing = page.table(["no longer in the store"], [[uri] for uri in lineage.missing])
    listed = (
        page.folded(f"{len(lineage.videos)} source videos with hash", videos)
        if lineage.videos
        else Markup("")
    )
    return page.section("Lineage", page.chain(items), listed, missing)


def markdown(title: str, evaluation: Evaluation, curve: str) -> bytes:
    """The short summary: verdicts and the metric table, as Markdown."""
    lines = [f"# {title}", ""]
    for found in comparisons(evaluation):
        word, _, text = sentence(found, evaluation)
        lines.append(f"- **{word}**: {text}")
    lines += [f"- **curve**: {curve}", *(f"- note: {note}" for note in evaluation.notes), ""]
    roles = [role for role in ROLE_NAMES if role in evaluation.models]
    lines.append(f"| measured on | metric | {' | '.join(ROLE_NAMES[role] for role in roles)} |")
    lines.append(f"|---|---|{'---:|' * len(roles)}")
    for name, by_role in evaluation.sets.items():
        for metric in _metrics(by_role.values()):
            values = [interval(by_role.get(role, ()), metric).mean for role in roles]
            cells = " | ".join(f"{v:.4g}" if math.isfinite(v) else "–" for v in values)
            lines.append(f"| {SET_NAMES[name]} | {LABELS.get(metric, metric)} | {cells} |")
    return ("\n".join(lines) + "\n").encode()
