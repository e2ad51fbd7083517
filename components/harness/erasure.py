"""Erasing a fleet video: where its content lies, who used it, and the deletion itself.

A video is its content (sha256); the same content may lie under several names, and it is copied into
data sets (tar shards hold the clip, latent shards what was made of it). Those can be made again
from the videos that remain, so they are deleted whole, manifest first, and nothing half-deleted is
ever read. Model versions are not: a person decides whether to retrain and promote, or to roll back.
Discovery's records, lineage and ledger keep the name and the hash, which is how the question "who
used it" can still be answered afterwards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from components.lib.contract import Frozen
from components.lib.lineage import models_that_used
from components.lib.manifest import MANIFEST_NAME, Manifest, file_sha256, load_manifest
from components.lib.registry import models_root
from components.lib.store import ObjectStore
from components.lib.video.records import (
    QUARANTINE_NAME,
    RECORDS_NAME,
    VideoRecord,
    local_path,
    read_records,
)

DATA_STAGES = ("tar_sharding", "latent_encoding")
REPORT_STAGES = ("training", "evaluation")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Traces(Frozen):
    """Where a content is. ``names`` still hold it; the others are manifests and versions."""

    sha256: str
    names: tuple[str, ...]
    data_sets: tuple[str, ...]
    versions: tuple[str, ...]
    reports: tuple[str, ...]


def content_of(store: ObjectStore, video: str) -> str:
    """sha256 of what lies at an ``s3://`` or ``file://`` URI or a path; "" when nothing does."""
    if video.startswith("s3://"):
        if store.stat(video) is None:
            return ""
        digest = hashlib.sha256()
        with store.open_read(video) as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()
    path = local_path(video) or Path(video)
    return file_sha256(path) if path.is_file() else ""


def find_traces(store: ObjectStore, storage_root: str, video: str) -> Traces | None:
    """All that is known of a video, by URI, path or sha256; None when nothing is.

    ``reports`` are training runs and evaluations on data sets that held it: their pictures may
    show it.
    """
    root = storage_root.rstrip("/")
    sha256 = video if _SHA256.match(video) else content_of(store, video)
    sha256 = sha256 or _recorded(store, root, video)
    if not sha256:
        return None
    holders = [
        (uri, record.uri) for uri, record in _records(store, root) if record.sha256 == sha256
    ]
    names = {name for _, name in holders}
    if not _SHA256.match(video):
        names.add(video)
    found_in = {uri for uri, _ in holders}
    data_sets = [
        manifest
        for manifest in _manifests(store, root, DATA_STAGES)
        if "videos" in manifest.inputs and manifest.inputs["videos"].uri in found_in
    ]
    uris = {manifest.uri + MANIFEST_NAME for manifest in data_sets}
    reports = [
        manifest.uri
        for manifest in _manifests(store, root, REPORT_STAGES)
        if "data" in manifest.inputs and manifest.inputs["data"].uri in uris
    ]
    versions = {name for name, _ in models_that_used(store, models_root(root), sha256)}
    return Traces(
        sha256=sha256,
        names=tuple(sorted(name for name in names if content_of(store, name) == sha256)),
        data_sets=tuple(sorted(manifest.uri for manifest in data_sets)),
        versions=tuple(sorted(versions)),
        reports=tuple(sorted(reports)),
    )


def erase(store: ObjectStore, traces: Traces) -> int:
    """Delete the video under all its names and the data sets that hold it; returns the files."""
    deleted = 0
    for prefix in traces.data_sets:
        store.delete(prefix + MANIFEST_NAME)
        for info in list(store.list(prefix)):
            store.delete(info.uri)
            deleted += 1
    for name in traces.names:
        if name.startswith("s3://"):
            store.delete(name)
        else:
            (local_path(name) or Path(name)).unlink()
        deleted += 1
    return deleted + len(traces.data_sets)


def _recorded(store: ObjectStore, root: str, video: str) -> str:
    """sha256 that discovery once saw under a name; "" when it never did."""
    digests = (record.sha256 for _, record in _records(store, root) if record.uri == video)
    return next(filter(None, digests), "")


def _records(store: ObjectStore, root: str) -> Iterator[tuple[str, VideoRecord]]:
    """(manifest, record) of everything that discovery has written."""
    for manifest in _manifests(store, root, ("video_discovery",)):
        present = {entry.path for entry in manifest.files}
        for part in (RECORDS_NAME, QUARANTINE_NAME):
            if part in present:
                for record in read_records(manifest, store, part):
                    yield manifest.uri + MANIFEST_NAME, record


def _manifests(store: ObjectStore, root: str, stages: tuple[str, ...]) -> Iterator[Manifest]:
    for stage in stages:
        prefix = f"{root}/{stage}/"
        for info in store.list(prefix):
            parts = info.uri[len(prefix) :].split("/")
            if len(parts) == 2 and parts[1] == MANIFEST_NAME:
                yield load_manifest(info.uri, store)
