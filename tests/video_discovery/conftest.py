"""Discovery with its defaults for tests, and its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.lib.contract import Progress
from components.lib.stage import StageResult
from components.lib.store import ObjectStore
from components.lib.video.encode import write_mp4
from components.lib.video.records import VideoRecord, read_records
from components.video_discovery.config import VideoDiscoveryConfig
from components.video_discovery.stage import run

Discover = Callable[..., StageResult]
Records = Callable[..., list[VideoRecord]]
MakeVideo = Callable[..., Path]


@pytest.fixture
def discover(store: ObjectStore, storage_root: str, progress: Progress) -> Discover:
    """discover(source, **settings) -> StageResult, with one worker."""

    def call(source: Path | str, **settings: Any) -> StageResult:
        config = VideoDiscoveryConfig(
            storage_root=storage_root, source=str(source), workers=1, **settings
        )
        return run(config, store, progress)

    return call


@pytest.fixture
def records(store: ObjectStore) -> Records:
    """records(result, name) -> the records of one of its files."""

    def read(result: StageResult, name: str = "videos.jsonl") -> list[VideoRecord]:
        return list(read_records(result.manifest, store, name))

    return read


@pytest.fixture
def make_video() -> MakeVideo:
    """make_video(path, seed, frames, ...) writes a small video of moving noise."""
    import numpy as np

    def make(
        path: Path,
        seed: int = 0,
        frames: int = 8,
        size: tuple[int, int] = (32, 48),
        still: bool = False,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        dice = np.random.default_rng(seed)
        picture = dice.integers(0, 255, (*size, 3), dtype=np.uint8)
        step = 0 if still else 5
        write_mp4(path, (np.roll(picture, step * n, axis=1) for n in range(frames)), 25)
        return path

    return make
