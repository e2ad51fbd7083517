"""What a version holds, and how it gets to its place: weights, card, figures, lineage, manifest.

Files are copied one at a time through a local file, verified against the training run's digests
on the way, so a version is whole even after the run it came from was deleted. The manifest is
written last; a version without one does not exist for anybody.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import NamedTuple

from components.lib.contract import Progress
from components.lib.cosmos.families import family_named
from components.lib.lineage import LINEAGE_NAME, Lineage, trace
from components.lib.manifest import (
    MANIFEST_NAME,
    FileEntry,
    InputRef,
    Manifest,
    canonical_json,
)
from components.lib.registry import Registry
from components.lib.report.scores import FILE_NAME, Evaluation
from components.lib.report.stats import interval
from components.lib.store import ObjectStore
from components.promotion.gate import Verdict


class Candidate(NamedTuple):
    """The weights that want to become a version, and what was found about them."""

    training: Manifest
    evaluation_manifest: Manifest
    evaluation: Evaluation
    digest: str


def register(
    registry: Registry,
    candidate: Candidate,
    verdict: Verdict,
    store: ObjectStore,
    progress: Progress,
    scratch: Path,
) -> int:
    """Make the candidate a version and return its number; the same weights keep their number."""
    number = registry.claim(candidate.digest)
    uri = registry.version_uri(number)
    if store.stat(uri + MANIFEST_NAME) is not None:
        return number
    name = f"{registry.model}@{number}"
    lineage = trace([candidate.training, candidate.evaluation_manifest], store)
    entries = _copy_weights(candidate, uri, store, progress, scratch)
    evaluation = candidate.evaluation_manifest
    documents = {
        "model_card.md": model_card(name, candidate, verdict, lineage).encode(),
        "metrics.json": canonical_json(evaluation.summary.get("metrics", {})),
        FILE_NAME: store.get_bytes(evaluation.file_uri(FILE_NAME)),
        LINEAGE_NAME: lineage.model_dump_json(indent=1).encode(),
    }
    for path, data in documents.items():
        info = store.put_bytes(uri + path, data)
        assert info.sha256 is not None, "the store returns the digest of everything it writes"
        entries.append(FileEntry(path=path, bytes=info.bytes, sha256=info.sha256))
    manifest = Manifest(
        kind="checkpoint",
        stage="promotion",
        stage_version="1",
        address=candidate.digest,
        uri=uri,
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        inputs={
            "training": _ref(candidate.training),
            "evaluation": _ref(candidate.evaluation_manifest),
        },
        summary={
            "family": candidate.evaluation.family,
            "name": candidate.evaluation.models["candidate"].name,
            "source": candidate.training.uri,
            "revision": candidate.digest,
            "version": number,
            "version_name": name,
            "digest": candidate.digest,
            "metrics": evaluation.summary.get("metrics", {}),
        },
    )
    store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json(indent=1).encode())
    progress.log(f"registered {name} at {uri}")
    return number


def _ref(manifest: Manifest) -> InputRef:
    return InputRef(uri=manifest.uri + MANIFEST_NAME, content=manifest.content)


def _copy_weights(
    candidate: Candidate, uri: str, store: ObjectStore, progress: Progress, scratch: Path
) -> list[FileEntry]:
    prefix = candidate.evaluation.models["candidate"].prefix
    wanted = [entry for entry in candidate.training.files if entry.path.startswith(prefix)]
    copied = []
    total = sum(entry.bytes for entry in wanted) / 1e6
    with progress.task("copying weights", total, "MB") as task:
        for entry in wanted:
            path = "model/" + entry.path[len(prefix) :]
            there = store.stat(uri + path)
            if there is None or there.sha256 != entry.sha256:
                local = scratch / "weights"
                store.get_file(candidate.training.file_uri(entry.path), local, sha256=entry.sha256)
                store.put_file(local, uri + path)
                local.unlink()
            copied.append(FileEntry(path=path, bytes=entry.bytes, sha256=entry.sha256))
            task.advance(entry.bytes / 1e6)
    return copied


def model_card(name: str, candidate: Candidate, verdict: Verdict, lineage: Lineage) -> str:
    """The version in words: what it is, how good, from what, and why it was let through."""
    evaluation = candidate.evaluation
    trained = [video for video in lineage.videos if video.split == "train"]
    held = [video for video in lineage.videos if video.split == "validation"]
    lines = [
        f"# {name}",
        "",
        f"A Cosmos-1.0 {family_named(evaluation.family).noun}, "
        f"post-trained from {evaluation.models['base'].name} on {len(trained)} videos "
        f"({len(held)} held out). Registered {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by "
        f"cosmos-pipelines {package_version('cosmos-pipelines')}.",
        "",
        "## Figures",
        "",
        "| model | metric | mean | 95 % interval over videos |",
        "|---|---|---:|---|",
    ]
    for role, model in evaluation.models.items():
        mean = interval(evaluation.clips(role), evaluation.metric)
        if mean.units:
            reach = "–" if math.isnan(mean.low) else f"{mean.low:.4g} to {mean.high:.4g}"
            lines.append(
                f"| {role}: {model.name} | {evaluation.metric} | {mean.mean:.4g} | {reach} |"
            )
    lines += ["", *(f"> {note}" for note in evaluation.notes), "", "## Gate", ""]
    lines += [
        f"- {'passed' if rule.passed else 'NOT PASSED'}, {rule.name}: {rule.sentence}"
        for rule in verdict.rules
    ]
    lines += [
        "",
        "## Origin",
        "",
        f"- training run: {candidate.training.uri}",
        f"- evaluation: {candidate.evaluation_manifest.uri}",
        f"- digest of the weights: {candidate.digest}",
        f"- every source video and stage: {LINEAGE_NAME}",
    ]
    return "\n".join(lines) + "\n"
