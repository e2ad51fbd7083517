"""Pack videos into the tokenizer's data set: ``N.mp4`` and ``N.json`` in numbered tar shards.

MP4s are copied byte for byte; other containers, fixed-length clips and scenes are made by copying
packets where that is exact and by encoding again where it is not, and the sample's JSON says which.
With ``scenes`` every video is decoded once beforehand, to find its cuts. Each shard is built on
local disk, uploaded and forgotten, so the disk needed is ``workers`` shards. Finished shards are
found again after a kill.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from components.lib.contract import Progress, UserError
from components.lib.manifest import Manifest
from components.lib.stage import Output, StageResult, execute
from components.tar_sharding.config import SPEC, TarShardingConfig

if TYPE_CHECKING:
    from components.lib.store import ObjectStore
    from components.lib.video.isolated import DecodingPool
    from components.tar_sharding.plan import ShardingPlan
    from components.tar_sharding.shard import Made


def run(config: TarShardingConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Pack the videos of a ``videos`` manifest.

    Raises UserError when no sample remains or more than ``max_bad_fraction`` of the videos cannot
    be packed.
    """

    def work(inputs: dict[str, Manifest], output: Output) -> None:
        _work(config, inputs["videos"], output, progress)

    return execute(SPEC, config, store, progress, work)


def _work(config: TarShardingConfig, videos: Manifest, output: Output, progress: Progress) -> None:
    from components.lib.video.isolated import DecodingPool
    from components.lib.video.records import read_records
    from components.tar_sharding.plan import make_plan
    from components.tar_sharding.scenes import SceneSearch, look_for_scenes

    started = time.monotonic()
    workers = config.workers or len(os.sched_getaffinity(0))
    with DecodingPool(workers, file_bytes=1 << 40) as pool:
        records = [r for r in read_records(videos, output.store) if r.status == "ok"]
        search = SceneSearch()
        if config.scenes:
            search = look_for_scenes(config, records, output, pool, workers, progress)
            output.timing["scene_seconds"] = time.monotonic() - started
            records = [record for record in records if record.sha256 in search.scenes]
        plan = make_plan(
            records,
            max_bytes=config.max_shard_bytes,
            max_samples=config.max_shard_samples,
            clip_frames=config.clip_frames,
            seed=config.seed,
            scenes=search.scenes if config.scenes else None,
        )
        if not plan.shards:
            raise UserError(_nothing_to_pack(config, videos, plan, search.failures))
        made = _make(config, plan, output, pool, workers, progress)
    _check(config, videos, plan, made, search.failures)
    _write_index(output, made)
    _summarise(output, plan, made, search.failures, time.monotonic() - started)


def _make(
    config: TarShardingConfig,
    plan: ShardingPlan,
    output: Output,
    pool: DecodingPool,
    workers: int,
    progress: Progress,
) -> list[Made]:
    from components.tar_sharding.shard import ShardMaker

    total = sum(shard.samples for shard in plan.shards)
    made: list[Made] = []
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="shard") as threads,
        progress.task("packing shards", total=total, unit="samples") as task,
    ):
        maker = ShardMaker(config, output, pool)
        pending = [threads.submit(maker.make, shard) for shard in plan.shards]
        try:
            for future in pending:
                made.append(future.result())
                task.advance(made[-1].shard.samples)
        finally:
            for future in pending:
                future.cancel()
    return made


def _nothing_to_pack(
    config: TarShardingConfig, videos: Manifest, plan: ShardingPlan, lost: list[dict[str, str]]
) -> str:
    if lost:
        return f"No video of {videos.uri} is usable; first {lost[0]['uri']}: {lost[0]['reason']}."
    if plan.too_short:
        longest = max(plan.too_short, key=lambda record: record.frames)
        return (
            f"No video has clip_frames={config.clip_frames} frames; the longest, {longest.uri}, "
            f"has {longest.frames}. Lower clip_frames or give longer videos."
        )
    return f"{videos.uri} lists no usable video. Give discovery a source that has some."


def _check(
    config: TarShardingConfig,
    videos: Manifest,
    plan: ShardingPlan,
    made: list[Made],
    lost: list[dict[str, str]],
) -> None:
    bad = [*lost, *(failure for one in made for failure in one.failures)]
    total = len(lost) + sum(len(shard.items) for shard in plan.shards)
    first = f"{bad[0]['uri']}: {bad[0]['reason']}" if bad else ""
    if not any(one.samples for one in made if one.shard.split == "train"):
        raise UserError(f"No video of {videos.uri} could be packed for training; first {first}.")
    if len(bad) / total > config.max_bad_fraction:
        raise UserError(
            f"{len(bad)} of {total} videos of {videos.uri} could not be packed, more than "
            f"max_bad_fraction={config.max_bad_fraction:g} allows; first {first}."
        )


def _write_index(output: Output, made: list[Made]) -> None:
    from components.lib.shards.energon import IndexedShard, write_energon_index

    shards = [
        IndexedShard(one.shard.name, one.shard.split, one.places) for one in made if one.samples
    ]
    held_out = any(shard.split == "validation" for shard in shards)
    output.summary["validation"] = "held-out" if held_out else "same-video"
    files = write_energon_index(
        output.scratch, shards, fields={"image": "mp4"}, validate_on_training=not held_out
    )
    for path in files:
        output.put_file(str(path.relative_to(output.scratch)), path)


def _summarise(
    output: Output, plan: ShardingPlan, made: list[Made], lost: list[dict[str, str]], seconds: float
) -> None:
    samples = sum(one.samples for one in made)
    size = sum(one.bytes for one in made)
    quarantined = [*lost, *(failure for one in made for failure in one.failures)]
    quarantined += [
        {"uri": record.uri, "reason": f"it has only {record.frames} frames"}
        for record in plan.too_short
    ]
    splits = {
        split: sum(one.samples for one in made if one.shard.split == split)
        for split in ("train", "validation")
    }
    output.summary.update(
        {
            "shards": sum(1 for one in made if one.samples),
            "samples": samples,
            "bytes": size,
            "splits": splits,
            "quarantined": quarantined,
        }
    )
    fresh = sum(one.bytes for one in made if not one.resumed)
    frames = sum(
        sum(count for _, count in item.clips) if item.clips else item.record.frames
        for one in made
        if not one.resumed
        for item in one.shard.items
    )
    output.timing.update(
        {
            "pack_seconds": seconds,
            "fetch_wait_seconds": sum(one.fetch_seconds for one in made),
            "write_seconds": sum(one.write_seconds for one in made),
            "upload_wait_seconds": sum(one.upload_seconds for one in made),
            "megabytes_per_second": fresh / 1e6 / seconds,
            "frames_per_second": frames / seconds,
        }
    )
    output.metrics.update(
        {
            "shards": output.summary["shards"],
            "samples": samples,
            "gigabytes": round(size / 1e9, 6),
            "quarantined": len(quarantined),
        }
    )
