"""Published training runs and evaluations with made-up weights and figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import pytest

from components.lib.manifest import (
    MANIFEST_NAME,
    FileEntry,
    InputRef,
    Kind,
    Manifest,
    load_manifest,
)
from components.lib.report.scores import ClipScore, Evaluation, ModelRef, ModelRole, weights_digest
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord, record_line


class World:
    """Writes what promotion reads. Weights are a few bytes; losses are given per video."""

    def __init__(self, store: ObjectStore, root: str) -> None:
        self.store, self.root = store, root
        record = VideoRecord(
            uri="s3://fleet/a/one.mp4", sha256="a" * 64, bytes=7, drive="a", split="train"
        )
        other = record.model_copy(
            update={"uri": "s3://fleet/b/two.mp4", "sha256": "b" * 64, "split": "validation"}
        )
        bad = record.model_copy(update={"uri": "s3://fleet/c/bad.mp4", "status": "quarantined"})
        lines = b"".join(map(record_line, (record, other, bad)))
        self.videos = self.publish("videos", "v", {"videos.jsonl": lines})
        self.data = self.publish("latent-dataset", "d", {"x.tar": b"x"}, {"videos": self.videos})
        self.base = self.publish("checkpoint", "base", {"model/model.safetensors": b"base"})

    def publish(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes],
        inputs: Mapping[str, str] | None = None,
        summary: Mapping[str, object] | None = None,
    ) -> str:
        """Write files and a manifest; returns the manifest's URI."""
        uri = f"{self.root}/{kind}/{name}/"
        entries = []
        for path, data in files.items():
            self.store.put_bytes(uri + path, data)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(FileEntry(path=path, bytes=len(data), sha256=digest))
        refs = {
            key: InputRef(uri=ref, content=load_manifest(ref, self.store).content)
            for key, ref in (inputs or {}).items()
        }
        manifest = Manifest(
            kind=kind, stage=kind, stage_version="1", address=name, uri=uri,
            files=tuple(entries), inputs=refs, summary=dict(summary or {}),
        )  # fmt: skip
        self.store.put_bytes(uri + MANIFEST_NAME, manifest.model_dump_json().encode())
        return uri + MANIFEST_NAME

    def train(self, name: str, start: str | None = None) -> str:
        """A training run whose weights are its name."""
        files = {"model/config.json": b"{}", "model/model.safetensors": name.encode()}
        inputs = {"checkpoint": start or self.base, "data": self.data}
        return self.publish("training-run", name, files, inputs, {"name": name})

    def evaluate(
        self,
        name: str,
        training: str,
        losses: Sequence[float],
        *,
        base: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        production: tuple[str, Sequence[float]] | None = None,
    ) -> str:
        """An evaluation with these losses per video. ``production``: (manifest URI, losses)."""
        refs: dict[ModelRole, str] = {"base": self.base, "candidate": training}
        columns: dict[ModelRole, Sequence[float]] = {"base": base, "candidate": losses}
        if production is not None:
            refs["production"], columns["production"] = production
        models: dict[ModelRole, ModelRef] = {}
        for role, ref in refs.items():
            manifest = load_manifest(ref, self.store)
            models[role] = ModelRef(
                name=role, digest=weights_digest(manifest), manifest=manifest.uri
            )
        evaluation = Evaluation(
            family="dit", metric="loss", better="lower", models=models,
            sets={"held-out": {role: scores(values) for role, values in columns.items()}},
        )  # fmt: skip
        files = {"evaluation.json": evaluation.model_dump_json().encode()}
        return self.publish("evaluation", name, files, {"training": training})


def scores(values: Sequence[float]) -> tuple[ClipScore, ...]:
    """One clip per video, two videos per drive."""
    return tuple(
        ClipScore(
            video=f"v{i}", sha256=f"v{i}", drive=f"d{i // 2}", clip=f"c{i}", values={"loss": value}
        )
        for i, value in enumerate(values)
    )


@pytest.fixture
def world(store: ObjectStore, storage_root: str) -> World:
    """A fresh world below the test's own prefix."""
    return World(store, storage_root)


@pytest.fixture
def make_scores() -> Callable[[Sequence[float]], tuple[ClipScore, ...]]:
    """Losses per video -> clip scores."""
    return scores
