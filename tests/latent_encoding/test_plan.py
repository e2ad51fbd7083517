"""The plan: complete, independent of order, the same for every process that works it out."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.latent_encoding.plan import MAX_GAP, EncodingPlan, PlanSettings, make_plan
from components.lib.cosmos.tokenizer.config import TOKENIZER_PRESETS
from components.lib.video.records import VideoRecord


def record(name: str, frames: int = 300, **changes: Any) -> VideoRecord:
    values = {
        "uri": f"s3://b/{name}.mp4",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "width": 1280,
        "height": 720,
        "fps": 30.0,
        "frames": frames,
        "duration": frames / 30.0,
        "prompt": "p",
        "split": "train",
        **changes,
    }
    return VideoRecord(**values)


def settings_of(**changes: Any) -> PlanSettings:
    values = {
        "sizes": ((176, 320),),
        "lengths": (33,),
        "chunks_per_video": 5,
        "strategy": "random",
        "seed": 0,
        "fps": None,
        "resize": "crop",
        "shard_bytes": 3_000_000,
        "shard_samples": 1024,
        "previews": 4,
        "tokenizer": TOKENIZER_PRESETS["CV8x8x8"],
        **changes,
    }
    return PlanSettings(**values)


def keys(plan: EncodingPlan) -> list[tuple[str, str]]:
    return [(shard.name, clip.key) for shard in plan.shards for clip in shard.clips]


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 2500), min_size=1, max_size=25),
    strategy=st.sampled_from(["random", "spread", "all"]),
    seed=st.integers(0, 3),
)
def test_every_clip_is_planned_once_whatever_the_order_of_videos(
    frames: list[int], strategy: str, seed: int
) -> None:
    records = [
        record(f"v{k}", count, split="validation" if k % 4 == 1 else "train")
        for k, count in enumerate(frames)
    ]
    wanted = settings_of(strategy=strategy, seed=seed)
    plan = make_plan(records, wanted)
    shuffled = records[:]
    random.Random(seed).shuffle(shuffled)
    assert make_plan(shuffled, wanted) == plan
    all_keys = keys(plan)
    assert len({key for _, key in all_keys}) == len(all_keys)
    planned = {clip.info.video for shard in plan.shards for clip in shard.clips}
    assert planned | {video.uri for video in plan.skipped} == {r.uri for r in records}
    for shard in plan.shards:
        assert {clip.info.split for clip in shard.clips} == {shard.split}
        assert sum(1 for clip in shard.clips) * 2 * 16 * 5 * 22 * 40 <= 3_000_000
    for split in ("train", "validation"):
        indices = [c.index for s in plan.shards if s.split == split for c in s.clips]
        assert indices == list(range(len(indices)))


def test_adding_a_video_keeps_the_clips_of_the_others() -> None:
    records = [record(f"v{k}", split="validation" if k == 0 else "train") for k in range(6)]
    before = {key for _, key in keys(make_plan(records, settings_of()))}
    after = {key for _, key in keys(make_plan([*records, record("new")], settings_of()))}
    assert before < after


def test_shapes_do_not_mix_in_a_shard() -> None:
    records = [
        record("wide"),
        record("tall", width=720, height=1280),
        record("short", frames=40),
        record("held", split="validation"),
    ]
    wanted = settings_of(sizes=((176, 320), (320, 176)), lengths=(33, 121))
    plan = make_plan(records, wanted)
    for shard in plan.shards:
        infos = [clip.info for clip in shard.clips]
        assert {
            wanted.tokenizer.latent_shape(i.num_frames, i.clip_height, i.clip_width) for i in infos
        } == {shard.shape}
    shapes = {shard.shape for shard in plan.shards}
    assert shapes == {(16, 16, 22, 40), (16, 16, 40, 22), (16, 5, 22, 40)}


def test_clips_beyond_one_window_have_the_shape_that_the_tokenizer_gives_them() -> None:
    lengths = {121: 16, 129: 18, 137: 19, 249: 34, 1017: 135}
    records = [record(f"v{frames}", frames=frames) for frames in lengths]
    plan = make_plan(records, settings_of(lengths=tuple(lengths), chunks_per_video=1))
    planned = {shard.clips[0].info.num_frames: shard.shape for shard in plan.shards}
    assert planned == {n: (16, latents, 22, 40) for n, latents in lengths.items()}


def test_a_pass_over_a_video_neither_seeks_back_nor_crosses_wide_gaps() -> None:
    plan = make_plan([record("long", frames=216_000)], settings_of(chunks_per_video=200))
    for shard in plan.shards:
        for run in shard.runs:
            starts = [clip.info.start for clip in run.clips]
            assert starts == sorted(starts)
            gaps = [b - a - 33 for a, b in itertools.pairwise(starts)]
            assert all(gap <= MAX_GAP for gap in gaps)


@pytest.mark.parametrize(
    ("videos", "chunks", "expected"), [(1, 20, "same-video"), (3, 5, "same-video")]
)
def test_without_held_out_videos_some_clips_validate_and_the_plan_says_so(
    videos: int, chunks: int, expected: str
) -> None:
    records = [record(f"v{k}") for k in range(videos)]
    plan = make_plan(records, settings_of(chunks_per_video=chunks))
    counts = {
        split: sum(len(s.clips) for s in plan.shards if s.split == split)
        for split in ("train", "validation")
    }
    assert plan.validation == expected
    assert counts["train"] + counts["validation"] == videos * chunks
    assert counts["validation"] == max(1, videos * chunks // 10)


def test_a_single_clip_serves_both_splits() -> None:
    plan = make_plan([record("one", frames=33)], settings_of())
    assert plan.validation == "same-clip"
    assert [shard.split for shard in plan.shards] == ["train", "validation"]


def test_a_copy_of_a_video_is_left_out_with_its_reason() -> None:
    copy = record("a").model_copy(update={"uri": "s3://b/copy.mp4"})
    plan = make_plan([record("a"), copy], settings_of())
    assert [video.uri for video in plan.skipped] == ["s3://b/copy.mp4"]


def test_conversion_counts_frames_at_the_new_rate() -> None:
    plan = make_plan([record("v", frames=300, split="train")], settings_of(fps=15.0))
    infos = [clip.info for shard in plan.shards for clip in shard.clips]
    assert all(info.start + 33 <= 150 for info in infos)
    assert all((info.fps, info.source_fps) == (15.0, 30.0) for info in infos)
    assert all(info.start_frame == 2 * info.start for info in infos)


def test_previews_are_spread_over_the_whole_set() -> None:
    plan = make_plan([record(f"v{k}") for k in range(20)], settings_of(previews=10))
    marked = [clip.info.video for s in plan.shards for clip in s.clips if clip.preview]
    assert len(marked) == 10
    assert len(set(marked)) >= 8
