"""Measure a trained model, its base and the model in production on the same held-out video.

Training loss cannot tell whether a model got better (see `diffusion`), so the models are compared
pairwise on the same clips, and everything that promotion needs to decide is written per clip to
``evaluation.json``. Models are loaded one after another: memory holds one at a time.

The version in production is a fact of the world, not an input, so its digest is part of the
content address. Where the candidate itself is in production, the version it replaced takes that
place: running again gives the same address and finds the finished output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluation.config import SPEC, EvaluationConfig
from components.evaluation.held_out import HeldOut, held_out, old_contents
from components.lib.contract import Progress, UserError
from components.lib.lineage import trace
from components.lib.manifest import Manifest, digest_json, load_manifest
from components.lib.registry import Registry, models_root
from components.lib.report.curves import Run, read_run
from components.lib.report.scores import (
    FILE_NAME,
    HELD_OUT,
    OLD,
    ClipScore,
    Evaluation,
    ModelRef,
    ModelRole,
    weights_digest,
)
from components.lib.run_files import METRICS, SETTINGS
from components.lib.stage import Output, StageResult, execute
from components.lib.store import ObjectStore

if TYPE_CHECKING:
    from components.evaluation.family import Family


def run(config: EvaluationConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Measure and report. Output: report.html, summary.md, evaluation.json, loss_curve.csv/png,
    pictures/."""
    training = load_manifest(config.training, store)
    production = _production(config, training, store)
    inputs = {name: load_manifest(ref, store) for name, ref in config.manifest_refs().items()}
    old = set() if "old_data" in inputs else old_contents(inputs["data"], store)
    decided_by = {
        "stage": SPEC.name,
        "version": SPEC.version,
        "inputs": {name: manifest.content for name, manifest in inputs.items()},
        "config": config.deciding_fields(),
        "production": weights_digest(production) if production else None,
    }
    address = digest_json(decided_by | ({"old": sorted(old)} if old else {}))

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        _work(config, inputs, production, old, store, progress, output)

    return execute(SPEC, config, store, progress, work, address=address)


def _production(
    config: EvaluationConfig, training: Manifest, store: ObjectStore
) -> Manifest | None:
    """The version in production, or the one it replaced when it is the candidate itself."""
    if not config.model_name:
        return None
    root = config.models_root or models_root(config.storage_root)
    registry = Registry(store, root, config.model_name)
    pointer = registry.production()
    if pointer is None:
        return None
    version = pointer.version
    if pointer.digest == weights_digest(training, f"{config.weights}/"):
        version = pointer.replaced
    return registry.load(version) if version else None


def _work(
    config: EvaluationConfig,
    inputs: dict[str, Manifest],
    production: Manifest | None,
    old: set[str],
    store: ObjectStore,
    progress: Progress,
    output: Output,
) -> None:
    from components.evaluation.families import open_family
    from components.evaluation.report import write_report

    curves = _curves(inputs["training"], store)
    family = open_family(config, inputs, store, progress, output.scratch)
    sets = {HELD_OUT: held_out(inputs["data"], HELD_OUT)}
    if "old_data" in inputs:
        sets[OLD] = held_out(inputs["old_data"], OLD)
    manifests: dict[ModelRole, tuple[Manifest, str]] = {
        "base": (inputs["checkpoint"], "model/"),
        "candidate": (inputs["training"], f"{config.weights}/"),
    }
    if production is not None:
        manifests["production"] = (production, "model/")
    models = {role: _model_ref(role, *held) for role, held in manifests.items()}
    scores = _measure(family, manifests, models, sets, store, output.scratch)
    _part_old(scores, old)
    evaluation = Evaluation(
        family=family.name,
        metric=family.metric,
        better=family.better,
        models=models,
        sets=scores,
        same_video=sets[HELD_OUT].same_video,
        notes=(
            *_notes(sets, scores, only_old=bool(old) and OLD not in scores),
            *_chosen(inputs["training"].summary),
        ),
        scalars=family.scalars(),
    )
    _check_finite(evaluation)
    output.put_bytes(FILE_NAME, evaluation.model_dump_json(indent=1).encode())
    lineage = trace([inputs["training"], inputs["data"]], store)
    write_report(output, evaluation, curves, family, lineage, inputs)


def _curves(training: Manifest, store: ObjectStore) -> Run:
    def read(path: str) -> bytes:
        entry = training.entry(path)
        return store.get_bytes(training.file_uri(path), sha256=entry.sha256)

    settings = json.loads(read(SETTINGS))
    name = str(training.summary.get("name") or "this run")
    return read_run(name, read(METRICS), training.file_uri(METRICS), settings=settings)


def _model_ref(role: ModelRole, manifest: Manifest, prefix: str) -> ModelRef:
    name = str(manifest.summary.get("version_name") or manifest.summary.get("name") or role)
    return ModelRef(
        name=name,
        digest=weights_digest(manifest, prefix),
        manifest=manifest.uri,
        prefix=prefix,
        version=int(manifest.summary.get("version", 0)),
    )


def _measure(
    family: Family,
    manifests: dict[ModelRole, tuple[Manifest, str]],
    models: dict[ModelRole, ModelRef],
    sets: dict[str, HeldOut],
    store: ObjectStore,
    scratch: Path,
) -> dict[str, dict[ModelRole, tuple[ClipScore, ...]]]:
    """Scores by set and role. Equal weights (a run that starts from production) count once."""
    from components.lib.cosmos.model_folder import download_model

    scores: dict[str, dict[ModelRole, tuple[ClipScore, ...]]] = {name: {} for name in sets}
    done: dict[str, ModelRole] = {}
    for role, (manifest, prefix) in manifests.items():
        twin = done.setdefault(models[role].digest, role)
        if twin != role:
            for name in sets:
                scores[name][role] = scores[name][twin]
            continue
        folder = download_model(manifest, store, scratch / "weights" / role, prefix=prefix)
        for name, found in family.measure(role, folder, sets).items():
            scores[name][role] = tuple(found)
    return scores


def _part_old(scores: dict[str, dict[ModelRole, tuple[ClipScore, ...]]], old: set[str]) -> None:
    """Make the held-out clips of older video a set of its own, when both kinds are there."""
    held = scores[HELD_OUT]
    parts = {
        name: {
            role: tuple(clip for clip in clips if (clip.sha256 in old) == (name == OLD))
            for role, clips in held.items()
        }
        for name in (HELD_OUT, OLD)
    }
    if all(parts[name]["candidate"] for name in parts):
        scores.update(parts)


def _notes(
    sets: dict[str, HeldOut],
    scores: dict[str, dict[ModelRole, tuple[ClipScore, ...]]],
    *,
    only_old: bool,
) -> tuple[str, ...]:
    notes = []
    if only_old:
        notes.append(
            "New and older video could not be told apart: the held-out clips are all of one kind."
        )
    if sets[HELD_OUT].same_video:
        notes.append(
            "Nothing was held out: all videos are of one drive, so the model is measured on video "
            "it was trained on. The figures show that it learns, not that it generalises."
        )
    videos = len({clip.sha256 for clip in scores[HELD_OUT]["candidate"]})
    if videos < 3:
        plural = "video" if videos == 1 else "videos"
        notes.append(
            f"Only {videos} source {plural}: intervals are over clips of the same video and say "
            "nothing about other videos."
        )
    return tuple(notes)


def _chosen(training: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the weights are not the last ones."""
    steps = training.get("steps", 0)
    step = training.get("exported_step", steps)
    if step == steps:
        return ()
    return (
        f"The model is that of step {step} of {steps}, chosen for its loss on held-out clips "
        "(log.ckpt.export=best), so its figures on them are a little too good.",
    )


def _check_finite(evaluation: Evaluation) -> None:
    for name, by_role in evaluation.sets.items():
        for role, clips in by_role.items():
            if not clips:
                raise UserError(f"No clip of the {name} set could be measured.")
            for clip in clips:
                for metric, value in clip.values.items():
                    if not math.isfinite(value):
                        raise UserError(
                            f"{metric} of the {role} model on {clip.clip} is {value}: its weights "
                            "are damaged or training diverged. See the training run's loss curve."
                        )
