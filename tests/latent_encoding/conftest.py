"""A tiny tokenizer checkpoint and video manifests, in a real store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.latent_encoding.config import LatentEncodingConfig
from components.lib.manifest import FileEntry, Manifest
from components.lib.store import ObjectStore
from components.lib.video.probe import probe
from components.lib.video.records import VideoRecord, record_line


def upload_manifest(
    store: ObjectStore, uri: str, kind: Any, files: dict[str, bytes], **summary: Any
) -> str:
    """Put files and a manifest of them under ``uri`` (ends with a slash); returns its URI."""
    entries = []
    for path, data in files.items():
        info = store.put_bytes(uri + path, data)
        entries.append(FileEntry(path=path, bytes=len(data), sha256=info.sha256 or ""))
    manifest = Manifest(
        kind=kind,
        stage="test",
        stage_version="1",
        address="test",
        uri=uri,
        files=tuple(entries),
        summary=summary,
    )
    store.put_bytes(f"{uri}manifest.json", manifest.model_dump_json().encode())
    return f"{uri}manifest.json"


def record_of(path: Path, uri: str | None = None, **changes: Any) -> VideoRecord:
    """The record that discovery would write for a good video."""
    found = probe(path)
    values = {
        "uri": uri or path.absolute().as_uri(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "width": found.width,
        "height": found.height,
        "fps": found.fps,
        "frames": found.frames,
        "duration": found.duration,
        "prompt": "A video of sks street.",
        "split": "train",
        **changes,
    }
    return VideoRecord(**values)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., VideoRecord]:
    """See `record_of`."""
    return record_of


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A continuous tokenizer with random weights and a published folder layout."""
    from components.lib.cosmos.formats.tiny import initial_tokenizer
    from components.lib.cosmos.model_folder import save_model_folder
    from components.lib.cosmos.tokenizer.config import TokenizerConfig

    folder = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(channels=8, multipliers=(2, 2, 2), res_blocks=1)
    weights, mean, std = initial_tokenizer(config, 0)
    extra = {"latents_mean": mean, "latents_std": std}
    save_model_folder(folder, "tokenizer", "test", config, {**weights, **extra})
    return folder


@pytest.fixture
def checkpoint(store: ObjectStore, storage_root: str, tokenizer_folder: Path) -> str:
    """URI of the tokenizer's checkpoint manifest."""
    files = {f"model/{path.name}": path.read_bytes() for path in tokenizer_folder.iterdir()}
    return upload_manifest(store, f"{storage_root}/ckpt/", "checkpoint", files, family="tokenizer")


@pytest.fixture
def put_videos(store: ObjectStore, storage_root: str) -> Callable[[list[VideoRecord]], str]:
    """Store a video manifest with these records and give its URI."""

    def put(records: list[VideoRecord]) -> str:
        data = b"".join(record_line(record) for record in records)
        digest = hashlib.sha256(data).hexdigest()[:12]
        files = {"videos.jsonl": data}
        return upload_manifest(store, f"{storage_root}/videos-{digest}/", "videos", files)

    return put


@pytest.fixture
def make_config(storage_root: str, checkpoint: str) -> Callable[..., LatentEncodingConfig]:
    """A config for small clips; keyword arguments replace its fields."""

    def make(videos: str, **changes: Any) -> LatentEncodingConfig:
        values: dict[str, Any] = {
            "storage_root": f"{storage_root}/runs",
            "videos": videos,
            "checkpoint": checkpoint,
            "frames": 9,
            "height": 64,
            "width": 96,
            "chunks_per_video": 4,
            "dtype": "float32",
            "device": "cpu",
            "decode_workers": 1,
        }
        return LatentEncodingConfig(**{**values, **changes})

    return make
