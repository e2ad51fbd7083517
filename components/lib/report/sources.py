"""Training runs from wherever they lie: a run's manifest, a folder, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.lib.contract import UserError
from components.lib.manifest import MANIFEST_NAME, load_manifest
from components.lib.report.curves import TRAIN, VALIDATION, Run, Series, read_run
from components.lib.run_files import METRICS, SETTINGS
from components.lib.store import ObjectStore

# What loggers call the training loss; the NeMo recipe logs reduced_train_loss.
LOSS_NAMES = ("loss", "reduced_train_loss", "train_loss")


def open_run(ref: str, store: ObjectStore | None) -> Run:
    """The run at ``ref``. Raises UserError naming it when there is none.

    ``ref`` is the manifest of a training run (``s3://`` URI, its prefix, or a local file), a
    metrics.jsonl, or a folder that holds one, or TensorBoard's event files.
    """
    if ref.startswith("s3://"):
        if store is None:
            raise UserError(f"{ref} needs an object store: set AWS_ENDPOINT_URL and the keys.")
        return _from_manifest(ref, store)
    path = Path(ref)
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise UserError(f"There is no run at {ref}.")
    if path.suffix == ".jsonl":
        return read_run(path.parent.name or path.stem, path.read_bytes(), str(path))
    if store is None:
        raise UserError(f"The run of {ref} lies in an object store: set AWS_ENDPOINT_URL.")
    return _from_manifest(ref, store)


def _from_manifest(ref: str, store: ObjectStore) -> Run:
    if ref.startswith("s3://") and not ref.endswith(".json"):
        ref = f"{ref.rstrip('/')}/{MANIFEST_NAME}"
    manifest = load_manifest(ref, store)
    if manifest.kind != "training-run":
        raise UserError(f"{ref} is a {manifest.kind} manifest; give that of a training run.")

    def read(path: str) -> bytes:
        return store.get_bytes(manifest.file_uri(path), sha256=manifest.entry(path).sha256)

    name = f"{manifest.summary.get('name') or 'run'} {manifest.address[:8]}"
    settings = json.loads(read(SETTINGS))
    return read_run(name, read(METRICS), manifest.file_uri(METRICS), settings)


def _from_folder(path: Path) -> Run:
    metrics = path / METRICS
    if metrics.is_file():
        settings = path / SETTINGS
        values = json.loads(settings.read_text()) if settings.is_file() else {}
        return read_run(path.name, metrics.read_bytes(), str(metrics), values)
    if any(path.rglob("events.out.tfevents*")):
        return _from_tensorboard(path)
    raise UserError(f"{path} holds neither metrics.jsonl nor TensorBoard event files.")


def _from_tensorboard(path: Path) -> Run:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = min(file.parent for file in path.rglob("events.out.tfevents*"))
    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    series: dict[str, dict[str, Series]] = {TRAIN: {}, VALIDATION: {}}
    for tag in events.Tags()["scalars"]:
        split, name = _split_of(tag)
        # A resumed run repeats steps; the last value wins, as in metrics.jsonl.
        values = {int(event.step): float(event.value) for event in events.Scalars(tag)}
        steps = tuple(sorted(values))
        series[split][name] = Series(
            name=name, steps=steps, values=tuple(values[step] for step in steps)
        )
    return Run(name=path.name, source=str(folder), series=series)


def _split_of(tag: str) -> tuple[str, str]:
    name = tag
    for prefix in ("val_", "val/", "validation_", "validation/"):
        if tag.startswith(prefix):
            return VALIDATION, tag[len(prefix) :]
    if name.startswith("train/"):
        name = name[len("train/") :]
    return TRAIN, "loss" if name in LOSS_NAMES else name
