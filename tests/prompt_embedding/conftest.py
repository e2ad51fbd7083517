"""A tiny T5 checkpoint and video manifests, in a real store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.manifest import FileEntry, Manifest
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord, record_line
from components.prompt_embedding.config import PromptEmbeddingConfig


def upload_manifest(store: ObjectStore, uri: str, kind: Any, files: dict[str, bytes]) -> str:
    """Put files and a manifest of them under ``uri`` (ends with a slash); returns its URI."""
    entries = []
    for path, data in files.items():
        info = store.put_bytes(uri + path, data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=info.sha256 or ""))
    manifest = Manifest(
        kind=kind, stage="test", stage_version="1", address="test", uri=uri, files=tuple(entries)
    )
    store.put_bytes(f"{uri}manifest.json", manifest.model_dump_json().encode())
    return f"{uri}manifest.json"


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real T5 encoder of tiny size with a real vocabulary."""
    from components.lib.cosmos.formats.tiny_text import write_tiny_t5

    folder = tmp_path_factory.mktemp("t5") / "t5"
    write_tiny_t5(folder, 0)
    return folder


@pytest.fixture
def checkpoint(store: ObjectStore, storage_root: str, t5_folder: Path) -> str:
    """URI of the T5 checkpoint's manifest."""
    files = {f"model/{path.name}": path.read_bytes() for path in sorted(t5_folder.iterdir())}
    return upload_manifest(store, f"{storage_root}/t5/", "checkpoint", files)


@pytest.fixture
def put_prompts(store: ObjectStore, storage_root: str) -> Callable[..., str]:
    """Store a manifest of videos with these prompts and give its URI."""

    def put(*prompts: str, **changes: Any) -> str:
        records = [
            VideoRecord(uri=f"s3://b/{k}.mp4", sha256=f"{k:064x}", prompt=prompt, **changes)
            for k, prompt in enumerate(prompts)
        ]
        data = b"".join(record_line(record) for record in records)
        name = hashlib.sha256(data).hexdigest()[:12]
        uri = f"{storage_root}/videos-{name}/"
        return upload_manifest(store, uri, "videos", {"videos.jsonl": data})

    return put


@pytest.fixture
def make_config(storage_root: str, checkpoint: str) -> Callable[..., PromptEmbeddingConfig]:
    """A config; keyword arguments replace its fields."""

    def make(videos: str, **changes: Any) -> PromptEmbeddingConfig:
        values = {
            "storage_root": f"{storage_root}/runs",
            "videos": videos,
            "checkpoint": checkpoint,
            "device": "cpu",
        }
        return PromptEmbeddingConfig(**{**values, **changes})

    return make
