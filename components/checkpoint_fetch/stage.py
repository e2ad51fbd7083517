"""Fetch a checkpoint, convert it to the canonical model folder, put it in the store.

The content address covers what the source holds (commit, or digests of the needed files) and the
choices of the config, so a second run moves nothing: with a pinned revision it does not even ask
the hub. With ``production_of`` the answer is the version that is in production, as promotion
wrote it: nothing is copied, and its lineage comes with it. Conversion needs local disk for the
source file (in the Hugging Face cache, or a scratch copy from S3) and for the converted model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from components.checkpoint_fetch.config import SPEC, CheckpointFetchConfig
from components.checkpoint_fetch.needed import needed_files
from components.checkpoint_fetch.sources import (
    Location,
    SourceFile,
    list_folder,
    list_prefix,
    parse_source,
)
from components.lib.contract import Progress
from components.lib.manifest import MANIFEST_NAME, Manifest, file_sha256
from components.lib.registry import Registry, models_root
from components.lib.stage import Output, StageResult, address_by, execute
from components.lib.store import ObjectStore


def run(config: CheckpointFetchConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Run the stage; see the module docstring."""
    if config.production_of:
        production = _in_production(config, store, progress)
        if production is not None:
            return production
    location = parse_source(config.source)
    files: list[SourceFile] = []
    if not (location.kind == "hf" and location.pinned):
        location, files = _list(location, config, store)
    identity = (
        location.text if location.kind == "hf" else [file.model_dump(mode="json") for file in files]
    )
    choices = config.model_dump(mode="json", include={"role", "model", "variant", "text_dtype"})
    address = address_by(SPEC, source=identity, config=choices)

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        _fetch(config, location, files, store, progress, output)

    return execute(SPEC, config, store, progress, work, address=address)


def _in_production(
    config: CheckpointFetchConfig, store: ObjectStore, progress: Progress
) -> StageResult | None:
    root = config.models_root or models_root(config.storage_root)
    registry = Registry(store, root, config.production_of)
    pointer = registry.production()
    if pointer is None:
        progress.log(f"Nothing of {config.production_of} is in production yet: {config.source}.")
        return None
    manifest = registry.load(pointer.version)
    progress.log(f"checkpoint_fetch: {config.production_of}@{pointer.version} is in production.")
    return StageResult(manifest=manifest, manifest_uri=manifest.uri + MANIFEST_NAME, reused=True)


def _list(
    location: Location, config: CheckpointFetchConfig, store: ObjectStore
) -> tuple[Location, list[SourceFile]]:
    """The location with its revision resolved, and the needed files with their digests."""
    if location.kind == "file":
        local = list_folder(Path(location.place))
        wanted = needed_files(local, config.role, location.place, config.variant)
        return location, [
            SourceFile(
                path=path,
                bytes=local[path].stat().st_size,
                digest=f"sha256:{file_sha256(local[path])}",
            )
            for path in wanted
        ]
    if location.kind == "s3":
        stored = {file.path: file for file in list_prefix(location.place, store)}
        wanted = needed_files(stored, config.role, location.place, config.variant)
        return location, [stored[path] for path in wanted]
    from components.checkpoint_fetch.hub import Hub

    commit, listed = Hub().listing(location.place, location.revision)
    published = {file.path: file for file in listed}
    wanted = needed_files(published, config.role, f"{location.place}@{commit}", config.variant)
    if not location.pinned:
        Hub().remember(location.place, location.revision, commit)
    pinned = location.model_copy(update={"revision": commit})
    return pinned, [published[path] for path in wanted]


def _fetch(
    config: CheckpointFetchConfig,
    location: Location,
    files: Sequence[SourceFile],
    store: ObjectStore,
    progress: Progress,
    output: Output,
) -> None:
    from components.lib.cosmos.formats.importing import import_model

    started = time.monotonic()
    if not files:
        location, files = _list(location, config, store)
    source, moved = _gather(config, location, files, store, progress, output.scratch)
    output.timing["fetch_seconds"] = time.monotonic() - started
    output.timing["fetched_bytes_per_second"] = moved / max(output.timing["fetch_seconds"], 1e-9)
    converting = time.monotonic()
    report = import_model(
        source,
        output.scratch / "model",
        role=config.role,
        name=config.model,
        text_dtype=config.text_dtype,
        say=progress.log,
    )
    output.timing["convert_seconds"] = time.monotonic() - converting
    for note in report.notes:
        progress.log(f"{location.text}: {note}")
    uploading = time.monotonic()
    stored = _store(output, output.scratch / "model", progress)
    output.timing["store_seconds"] = time.monotonic() - uploading
    output.summary.update(
        family=report.family,
        name=report.name,
        source=location.text,
        revision=location.revision,
        format=report.source_format,
        tensors=report.tensors,
        notes=list(report.notes),
        files=[file.model_dump(mode="json") for file in files],
    )
    output.metrics.update(bytes_fetched=float(moved), bytes_stored=float(stored))


def _gather(
    config: CheckpointFetchConfig,
    location: Location,
    files: Sequence[SourceFile],
    store: ObjectStore,
    progress: Progress,
    scratch: Path,
) -> tuple[Path, int]:
    """A local folder with just the needed files, and the bytes that moved to get them."""
    folder = scratch / "source"
    total = sum(file.bytes for file in files)
    if location.kind == "file":
        local = {file.path: Path(location.place) / file.path for file in files}
        moved = 0
    elif location.kind == "s3":
        with progress.task(f"fetch {location.text}", total=len(files), unit="files") as task:
            store.get_files(
                [
                    (location.place + file.path, _made(folder / file.path), _sha256(file))
                    for file in files
                ],
                done=lambda path: task.advance(1),
            )
        return folder, total
    else:
        from components.checkpoint_fetch.hub import Hub

        with progress.task(f"fetch {location.text}", total=total, unit="B") as task:
            local, moved = Hub().fetch(
                location.place, location.revision, files, task.advance, workers=config.workers
            )
    for path, target in local.items():
        _made(folder / path).symlink_to(target.resolve())
    return folder, moved


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sha256(file: SourceFile) -> str | None:
    kind, _, digest = file.digest.partition(":")
    return digest if kind == "sha256" else None


def _store(output: Output, folder: Path, progress: Progress) -> int:
    """Upload the converted model, leaving out what an interrupted run has stored already."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with progress.task("store the model", total=len(paths), unit="files") as task:
        for path in paths:
            name = f"model/{path.relative_to(folder).as_posix()}"
            done = output.finished(name)
            if done is None or done.sha256 != file_sha256(path):
                output.put_file(name, path)
            task.advance(1)
    return sum(path.stat().st_size for path in paths)
