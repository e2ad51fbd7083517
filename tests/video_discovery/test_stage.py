"""Discovery: what a user finds in the records, and what stops a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.contract import Progress
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.lib.video.records import VideoRecord, local_path, read_records
from components.video_discovery.stage import VideoDiscoveryConfig, run


Discover = Callable[..., StageResult]
Records = Callable[..., list[VideoRecord]]


@pytest.fixture
def discover(store: ObjectStore, storage_root: str, progress: Progress) -> Discover:
    def call(source: Path | str, **settings: Any) -> StageResult:
        config = VideoDiscoveryConfig(
            storage_root=storage_root, source=str(source), workers=1, **settings
        )
        return run(config, store, progress)

    return call


@pytest.fixture
def records(store: ObjectStore) -> Records:
    def read(result: StageResult, name: str = "videos.jsonl") -> list[VideoRecord]:
        return list(read_records(result.manifest, store, name))

    return read


def test_real_clips_are_described(
    discover: Discover, records: Records, clips: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("bigbuckbunny", "bikes"):
        shutil.copy(clips[name], tmp_path / f"{name}.mp4")
    result = discover(tmp_path, prompt="A video of sks {subject}.", subject="rabbit")
    bunny, bikes = records(result)
    assert (bunny.width, bunny.height, bunny.frames, bunny.fps) == (1280, 720, 132, 25)
    assert (bikes.width, bikes.height, bikes.frames, bikes.codec) == (640, 272, 250, "h264")
    assert bunny.prompt == "A video of sks rabbit."
    assert local_path(bunny.uri) == tmp_path / "bigbuckbunny.mp4"
    assert {bunny.split, bikes.split} == {"train", "validation"}
    assert result.manifest.summary["counts"]["ok"] == 2
    assert result.metrics["frames"] == 382
