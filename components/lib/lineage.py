"""Where a model comes from: every stage with its config and version, every source video with hash.

Manifests name the manifests they were made from, so the lineage is a walk over those links. It is
copied whole into a model version (``lineage.json``), which keeps it readable after the runs
themselves were deleted. A run that started from a promoted version inherits that version's
lineage: its videos shaped the new model too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from components.lib.contract import Frozen, UserError
from components.lib.manifest import MANIFEST_NAME, Manifest, load_manifest
from components.lib.store import ObjectStore
from components.lib.video.records import QUARANTINE_NAME, read_records

LINEAGE_NAME = "lineage.json"


class Step(Frozen):
    """One stage's output on the way to the model. ``via`` names the model version it came with."""

    stage: str
    stage_version: str
    kind: str
    uri: str
    content: str
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    via: str = ""


class SourceVideo(Frozen):
    """A video the model has seen (split "train") or was judged on (split "validation").

    ``also`` holds the other names under which the same content lay in the source.
    """

    uri: str
    sha256: str
    bytes: int
    split: str
    drive: str = ""
    vehicle: str = ""
    also: tuple[str, ...] = ()
    via: str = ""


class Lineage(Frozen):
    """Steps in the order in which they ran, and the videos, by uri."""

    steps: tuple[Step, ...]
    videos: tuple[SourceVideo, ...]
    missing: tuple[str, ...] = ()


def trace(manifests: Iterable[Manifest], store: ObjectStore) -> Lineage:
    """Walk from these outputs back to the videos.

    A manifest that no longer exists is listed in ``missing`` and not followed.
    """
    walk = _Walk(store)
    for manifest in manifests:
        walk.visit(manifest)
    videos = sorted(walk.videos.values(), key=lambda video: (video.uri, video.sha256))
    return Lineage(
        steps=tuple(walk.steps), videos=tuple(videos), missing=tuple(sorted(walk.missing))
    )


class _Walk:
    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.seen: set[str] = set()
        self.steps: list[Step] = []
        self.videos: dict[tuple[str, str], SourceVideo] = {}
        self.missing: set[str] = set()

    def visit(self, manifest: Manifest) -> None:
        if manifest.uri in self.seen:
            return
        self.seen.add(manifest.uri)
        if any(entry.path == LINEAGE_NAME for entry in manifest.files):
            self._inherit(manifest)
        else:
            for ref in manifest.inputs.values():
                self._follow(ref.uri)
            if manifest.kind == "videos":
                self._take_videos(manifest)
        self.steps.append(
            Step(
                stage=manifest.stage,
                stage_version=manifest.stage_version,
                kind=manifest.kind,
                uri=manifest.uri + MANIFEST_NAME,
                content=manifest.content,
                config=manifest.config,
                summary=manifest.summary,
                inputs={name: ref.uri for name, ref in manifest.inputs.items()},
            )
        )

    def _follow(self, uri: str) -> None:
        if self.store.stat(uri) is None:
            self.missing.add(uri)
        else:
            self.visit(load_manifest(uri, self.store))

    def _inherit(self, manifest: Manifest) -> None:
        entry = manifest.entry(LINEAGE_NAME)
        uri = manifest.file_uri(LINEAGE_NAME)
        inherited = parse_lineage(self.store.get_bytes(uri, sha256=entry.sha256), uri)
        via = str(manifest.summary.get("version_name", manifest.uri))
        for step in inherited.steps:
            if step.uri not in {known.uri for known in self.steps}:
                self.steps.append(step.model_copy(update={"via": step.via or via}))
        for video in inherited.videos:
            key = (video.uri, video.sha256)
            self.videos.setdefault(key, video.model_copy(update={"via": video.via or via}))
        self.missing |= set(inherited.missing)

    def _take_videos(self, manifest: Manifest) -> None:
        names: dict[str, list[str]] = {}
        if any(entry.path == QUARANTINE_NAME for entry in manifest.files):
            for record in read_records(manifest, self.store, QUARANTINE_NAME):
                if record.status == "duplicate":
                    names.setdefault(record.sha256, []).append(record.uri)
        for record in read_records(manifest, self.store):
            if record.status != "ok":
                continue
            self.videos[record.uri, record.sha256] = SourceVideo(
                uri=record.uri,
                sha256=record.sha256,
                bytes=record.bytes,
                split=record.split or "train",
                drive=record.drive,
                vehicle=record.vehicle,
                also=tuple(names.get(record.sha256, ())),
            )


def parse_lineage(data: bytes, name: str) -> Lineage:
    """Lineage from lineage.json. Raises UserError naming the file."""
    try:
        return Lineage.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{name} is no lineage file: {error.errors()[0]['msg']}.") from error


def models_that_used(store: ObjectStore, root: str, wanted: str) -> list[tuple[str, SourceVideo]]:
    """Every ``model@version`` under ``root`` whose lineage holds a video with this uri or sha256.

    A name under which the same content was uploaded once more finds it too. Videos of the
    validation split count: a model was chosen by them.
    """
    prefix = root.rstrip("/") + "/"
    uses: list[tuple[str, SourceVideo]] = []
    for info in store.list(prefix):
        parts = info.uri[len(prefix) :].split("/")
        if len(parts) != 4 or parts[1] != "versions" or parts[3] != LINEAGE_NAME:
            continue
        lineage = parse_lineage(store.get_bytes(info.uri), info.uri)
        uses.extend(
            (f"{parts[0]}@{parts[2]}", video)
            for video in lineage.videos
            if wanted in (video.uri, video.sha256, *video.also)
        )
    return uses
