"""Sharding: what the shards hold, who can read them, and that they always come out the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.contract import Progress
from components.lib.manifest import Manifest
from components.lib.shards.tar import iter_samples
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.tar_sharding.stage import TarShardingConfig, run
from components.video_discovery.stage import VideoDiscoveryConfig
from components.video_discovery.stage import run as discover

Shard = Callable[..., StageResult]


@pytest.fixture
def shard(store: ObjectStore, storage_root: str, progress: Progress) -> Shard:
    def call(source: Path, *, root: str = "", **settings: Any) -> StageResult:
        where = storage_root + root
        found = discover(
            VideoDiscoveryConfig(storage_root=where, source=str(source), workers=1),
            store,
            progress,
        )
        config = TarShardingConfig(
            storage_root=where, videos=found.manifest_uri, workers=1, **settings
        )
        return run(config, store, progress)

    return call


def samples(manifest: Manifest, store: ObjectStore) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for entry in manifest.files:
        if entry.path.endswith(".tar"):
            with store.open_read(manifest.file_uri(entry.path)) as stream:
                found.update(iter_samples(stream))
    return found


def test_videos_are_packed_byte_for_byte(
    shard: Shard, store: ObjectStore, clips: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("bikes", "carphone"):
        (tmp_path / f"{name}.mp4").write_bytes(clips[name].read_bytes())
    manifest = shard(tmp_path).manifest
    found = samples(manifest, store)
    contents = {parts["mp4"] for parts in found.values()}
    assert contents == {clips["bikes"].read_bytes(), clips["carphone"].read_bytes()}
    infos = {
        json.loads(parts["json"])["name"]: json.loads(parts["json"]) for parts in found.values()
    }
    assert infos["bikes.mp4"]["frames"] == 250
    assert infos["bikes.mp4"]["method"] == "copy"
    splits = {e.path: e.meta["split"] for e in manifest.files if e.path.endswith(".tar")}
    assert splits == {"000000.tar": "train", "000001.tar": "validation"}
