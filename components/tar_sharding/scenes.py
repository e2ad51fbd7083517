"""The scenes of all videos, looked for in parallel and kept in the output, so that a killed run
does not look twice."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from components.lib.contract import Progress
from components.lib.manifest import canonical_json
from components.lib.stage import Output
from components.lib.video.container import VideoError
from components.lib.video.isolated import DecodingPool
from components.lib.video.records import VideoRecord, fetch_video
from components.tar_sharding.config import TarShardingConfig


@dataclass
class SceneSearch:
    """Scenes by sha256, and {"uri", "reason"} of the videos that could not be looked through."""

    scenes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)


def look_for_scenes(
    config: TarShardingConfig,
    records: Sequence[VideoRecord],
    output: Output,
    pool: DecodingPool,
    workers: int,
    progress: Progress,
) -> SceneSearch:
    """Look through every video once."""
    search = SceneSearch()

    def look(record: VideoRecord) -> dict[str, object]:
        name = f"scenes/{record.sha256}.json"
        if output.finished(name) is None:
            output.put_bytes(name, canonical_json(_look(config, record, output, pool)))
        answer: dict[str, object] = json.loads(output.store.get_bytes(output.uri + name))
        return answer

    with (
        ThreadPoolExecutor(workers, thread_name_prefix="scenes") as threads,
        progress.task("looking for scenes", total=len(records), unit="videos") as task,
    ):
        for record, answer in zip(records, threads.map(look, records), strict=True):
            task.advance()
            if "reason" in answer:
                search.failures.append({"uri": record.uri, "reason": str(answer["reason"])})
                continue
            pairs = answer["scenes"]
            assert isinstance(pairs, list)
            search.scenes[record.sha256] = [(start, count) for start, count in pairs]
    return search


def _look(
    config: TarShardingConfig, record: VideoRecord, output: Output, pool: DecodingPool
) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="scenes-", dir=output.scratch) as folder:
        path = fetch_video(record, output.store, Path(folder))
        try:
            scenes = pool.scenes(
                path,
                threshold=config.scene_threshold,
                min_frames=config.min_scene_frames,
                timeout_s=config.timeout_for(record.frames),
            )
        except VideoError as error:
            return {"reason": error.reason}
    return {"scenes": scenes}
