"""The report of one run of a scheduled pipeline: what it found and decided, or where it failed.

It is made by the pipeline's exit task, whatever happened before, from the notes that the tasks
left (`components.harness.run_notes`) and the manifests they name. What a task's manifest says
is shown as it stands there; nothing is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

from markupsafe import Markup

from components.harness.run_notes import TaskNote, read_notes
from components.lib.contract import Frozen, Progress, StageConfig
from components.lib.manifest import Manifest, digest_json, load_manifest
from components.lib.report import page
from components.lib.report.page import Cell, Mood, Tile
from components.lib.run_files import REPORT, RESULT, SUMMARY
from components.lib.stage import Output, StageResult, StageSpec, execute
from components.lib.store import ObjectStore

SPEC = StageSpec(name="run_report", version="1", kind="run-report")
Outcome = Literal["promoted", "already promoted", "refused", "nothing to do", "failed", "finished"]
_MOODS: dict[str, Mood] = {"promoted": "good", "refused": "warn", "failed": "bad"}
_STATES: dict[str, Mood] = {"succeeded": "good", "failed": "bad", "running": "warn"}


class RunSummary(Frozen):
    """``run.json``: the run in a form for programs."""

    run: str
    outcome: Outcome
    sentence: str
    tasks: tuple[TaskNote, ...]
    counts: dict[str, int] = {}
    decision: dict[str, Any] = {}


def write_run_report(
    store: ObjectStore,
    storage_root: str,
    title: str,
    run: str,
    ended: str,
    error: str,
    progress: Progress,
) -> StageResult:
    """Write report.html, summary.md and run.json. ``ended`` is KFP's word: SUCCEEDED, FAILED, …

    ``error`` is what KFP knows of the failure; a stage's own sentence is preferred.
    """
    config = StageConfig(storage_root=storage_root)
    address = digest_json([SPEC.name, SPEC.version, run])

    def work(_inputs: dict[str, Manifest], output: Output) -> None:
        notes = read_notes(store, storage_root, run)
        found = summarise(run, notes, _manifests(notes, store), ended, error)
        output.put_bytes(RESULT, found.model_dump_json(indent=1).encode())
        output.put_bytes(SUMMARY, markdown(title, found).encode())
        output.put_bytes(REPORT, html(title, found))
        output.summary.update(run=run, outcome=found.outcome, sentence=found.sentence)
        progress.log(found.sentence)

    return execute(SPEC, config, store, progress, work, address=address)


def _manifests(notes: Sequence[TaskNote], store: ObjectStore) -> dict[str, Manifest]:
    """Manifest of the last output of each stage."""
    return {
        note.stage: load_manifest(note.manifest, store)
        for note in notes
        if note.manifest and store.stat(note.manifest) is not None
    }


def summarise(
    run: str, notes: Sequence[TaskNote], manifests: dict[str, Manifest], ended: str, error: str
) -> RunSummary:
    """What happened, in one word and one sentence."""
    videos = manifests.get("video_discovery")
    decision = manifests["promotion"].summary if "promotion" in manifests else {}
    outcome, sentence = _outcome(notes, videos, decision, ended, error)
    return RunSummary(
        run=run,
        outcome=outcome,
        sentence=sentence,
        tasks=tuple(notes),
        counts=videos.summary.get("counts", {}) if videos else {},
        decision={key: value for key, value in decision.items() if key != "metrics"},
    )


def _outcome(
    notes: Sequence[TaskNote],
    videos: Manifest | None,
    decision: dict[str, Any],
    ended: str,
    error: str,
) -> tuple[Outcome, str]:
    last = {note.name: note for note in notes}  # a repeated attempt replaces the one before
    failed = [note for note in last.values() if note.state == "failed"]
    if failed:
        return "failed", f"Stage {failed[-1].name} failed: {failed[-1].error}"
    if ended not in ("SUCCEEDED", "SKIPPED"):
        unfinished = [note.name for note in last.values() if note.state == "running"]
        where = f" in stage {unfinished[-1]}, which was killed" if unfinished else ""
        return "failed", f"The run ended as {ended or 'unknown'}{where}. {error}".strip()
    if decision:
        return _decided(decision)
    if videos is not None and videos.summary.get("next_step") == "wait":
        new = videos.summary["counts"]["new"]
        source = videos.summary["source"]
        return "nothing to do", (
            f"{new} new videos in {source} are not enough, so nothing was trained."
        )
    return "finished", "The run finished."


def _decided(decision: dict[str, Any]) -> tuple[Outcome, str]:
    name = decision["production"]
    if decision["decision"] == "refused":
        reasons = " ".join(rule["sentence"] for rule in decision["rules"] if not rule["passed"])
        stays = f"{name} stays in production" if name else "nothing is in production"
        return "refused", f"The model was refused and {stays}: {reasons} Its videos stay new."
    if decision["decision"] == "already promoted":
        return "already promoted", f"{name} was in production already."
    how = f" by force ({decision['reason']})" if decision.get("forced") else ""
    return "promoted", f"{name} was put in production{how}."


def markdown(title: str, found: RunSummary) -> str:
    """The short summary."""
    lines = [f"# {title}: {found.outcome}", "", found.sentence, ""]
    if found.counts:
        lines += [f"Videos: {_counted(found.counts)}.", ""]
    lines += [
        f"- {'passed' if rule['passed'] else '**not passed**'}, {rule['name']}: {rule['sentence']}"
        for rule in found.decision.get("rules", [])
    ]
    lines += ["", "| stage | state | seconds | output |", "|---|---|---:|---|"]
    lines += [
        f"| {note.name} | {_state(note)} | {note.seconds:.1f} | {note.manifest or note.error} |"
        for note in found.tasks
    ]
    return "\n".join(lines) + "\n"


def html(title: str, found: RunSummary) -> bytes:
    """The same as a page."""
    rules = [
        page.verdict_line(
            "passed" if rule["passed"] else "not passed",
            f"{rule['name']}: {rule['sentence']}",
            "good" if rule["passed"] else "bad",
        )
        for rule in found.decision.get("rules", [])
    ]
    rows: list[list[str | float | int | Cell | None]] = [
        [
            note.name,
            Cell(text=_state(note), mood=_STATES[note.state]),
            f"{datetime.fromtimestamp(note.started, UTC):%H:%M:%S}",
            note.seconds,
            note.manifest or note.error or "–",
        ]
        for note in found.tasks
    ]
    figures: list[list[str | float | int | Cell | None]] = [
        [note.name, name, value] for note in found.tasks for name, value in note.metrics.items()
    ]
    pointer = found.decision.get("pointer") or {}
    facts = [
        [name, json.dumps(value) if isinstance(value, dict) else str(value)]
        for name, value in {**pointer, "ledger": found.decision.get("ledger", "")}.items()
        if value not in ("", None)
    ]
    return page.page(
        title=f"{title}: {found.outcome}",
        about=found.run,
        headline=[page.verdict_line(found.outcome, found.sentence, _MOODS.get(found.outcome, ""))],
        tiles=_tiles(found),
        sections=[
            page.section("Gate", *rules),
            page.section("Stages", page.table(["stage", "state", "started (UTC)", "s", ""], rows)),
            page.section("Production", page.table(["", "value"], facts)) if facts else Markup(""),
            page.section("Figures", page.table(["stage", "figure", "value"], figures)),
        ],
        charts=[],
        footer=f"cosmos-pipelines {version('cosmos-pipelines')}, report of run {found.run}",
    )


def _tiles(found: RunSummary) -> list[Tile]:
    seconds = sum(note.seconds for note in found.tasks)
    tiles = [Tile(name="stages took", value=f"{seconds:.0f} s", note=f"{len(found.tasks)} tasks")]
    if found.counts:
        note = f"of {found.counts.get('listed', 0)} in the source"
        tiles.insert(0, Tile(name="new videos", value=str(found.counts["new"]), note=note))
    if found.decision.get("production"):
        tiles.append(Tile(name="in production", value=found.decision["production"]))
    return tiles


def _state(note: TaskNote) -> str:
    if note.state == "running":
        return "never ended"
    return "reused" if note.reused else {"succeeded": "done"}.get(note.state, note.state)


def _counted(counts: dict[str, int]) -> str:
    names = {
        "listed": "in the source",
        "new": "new",
        "old": "older ones mixed in",
        "unreadable": "unreadable",
        "filtered": "filtered out",
        "duplicate": "duplicates",
        "already_processed": "used by earlier runs",
    }
    return ", ".join(f"{counts.get(key, 0)} {name}" for key, name in names.items())
