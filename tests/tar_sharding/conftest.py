"""Records of real and made videos, and the stage run on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.lib.contract import Progress
from components.lib.manifest import Manifest
from components.lib.shards.tar import iter_samples
from components.lib.stage import Output, StageConfig, StageResult, StageSpec, execute
from components.lib.store import ObjectStore
from components.lib.video.encode import write_mp4
from components.lib.video.inspection import inspect_video
from components.lib.video.records import VideoRecord, record_line, write_records
from components.tar_sharding.config import TarShardingConfig
from components.tar_sharding.stage import run


@pytest.fixture
def describe() -> Callable[..., VideoRecord]:
    """describe(path, **fields) -> the record that discovery would write."""

    def call(path: Path, **fields: Any) -> VideoRecord:
        found = inspect_video(path)
        assert found.probe is not None, found.reason
        probe = found.probe
        values = {
            "uri": path.as_uri(), "sha256": found.sha256, "bytes": found.bytes,
            "width": probe.width, "height": probe.height, "fps": probe.fps,
            "frames": probe.frames, "codec": probe.codec, "pixel_format": probe.pixel_format,
            "rotation": probe.rotation, "duration": probe.duration, "split": "train",
            "extra": probe.extra(),
        }  # fmt: skip
        return VideoRecord.model_validate({**values, **fields})

    return call


@pytest.fixture
def make_records(
    describe: Callable[..., VideoRecord], tmp_path: Path
) -> Callable[..., list[VideoRecord]]:
    """make_records(count, frames) -> records of small made videos, every fourth held out."""

    def call(count: int, frames: int = 8) -> list[VideoRecord]:
        dice = np.random.default_rng(0)
        found = []
        for number in range(count):
            path = tmp_path / "made" / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            picture = dice.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            write_mp4(path, (np.roll(picture, 5 * n, axis=1) for n in range(frames)), 25, gop=4)
            split = "validation" if number % 4 == 3 else "train"
            found.append(describe(path, split=split, prompt=f"Video {number}."))
        return found

    return call


@pytest.fixture
def put_videos(
    store: ObjectStore, storage_root: str, progress: Progress
) -> Callable[[Iterable[VideoRecord]], str]:
    """put_videos(records) -> URI of a manifest that lists them."""

    def call(records: Iterable[VideoRecord]) -> str:
        held = list(records)
        address = hashlib.sha256(b"".join(map(record_line, held))).hexdigest()

        def work(inputs: dict[str, Manifest], output: Output) -> None:
            path = output.scratch / "videos.jsonl"
            write_records(path, held)
            output.put_file("videos.jsonl", path)

        spec = StageSpec(name="video_discovery", version="test", kind="videos")
        config = StageConfig(storage_root=storage_root)
        return execute(spec, config, store, progress, work, address=address).manifest_uri

    return call


@pytest.fixture
def shard(
    store: ObjectStore,
    storage_root: str,
    progress: Progress,
    put_videos: Callable[[Iterable[VideoRecord]], str],
) -> Callable[..., StageResult]:
    """shard(records, **settings) -> the stage's result."""

    def call(
        records: Iterable[VideoRecord], *, root: str = "/shards", **settings: Any
    ) -> StageResult:
        settings = {"workers": 1, **settings}
        config = TarShardingConfig(
            storage_root=storage_root + root, videos=put_videos(records), **settings
        )
        return run(config, store, progress)

    return call


@pytest.fixture
def samples(store: ObjectStore) -> Callable[[Manifest], dict[str, dict[str, bytes]]]:
    """samples(manifest) -> key -> parts, over all shards."""

    def call(manifest: Manifest) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for entry in manifest.files:
            if entry.path.endswith(".tar"):
                with store.open_read(manifest.file_uri(entry.path)) as stream:
                    for key, parts in iter_samples(stream):
                        assert key not in found
                        found[key] = parts
        return found

    return call


@pytest.fixture
def download(store: ObjectStore, tmp_path: Path) -> Callable[[Manifest], Path]:
    """download(manifest) -> a folder that holds all its files."""

    def call(manifest: Manifest) -> Path:
        folder = tmp_path / "downloaded"
        for entry in manifest.files:
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(manifest.file_uri(entry.path), target, sha256=entry.sha256)
        return folder

    return call
