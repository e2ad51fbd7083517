"""The plan of a latent data set: which clips go into which shard, decided before any decoding.

The plan is a pure function of the video records and the settings. Videos are taken in the order of
their digests, which is the same whatever order the manifest lists them in and mixes drives; clips
of one shape fill shards of at most ``shard_bytes`` and ``shard_samples``. Everything a resumed or
distributed run must agree on (shard contents, what is decoded in one go, what is encoded in one
forward pass) is fixed here, so that any process can make any shard and get the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from components.lib.contract import Frozen
from components.lib.cosmos.tokenizer.config import TokenizerConfig
from components.lib.shards.latents import ClipInfo, prompt_digest
from components.lib.video.selection import (
    Size,
    Strategy,
    choose_length,
    choose_size,
    choose_starts,
    timeline_length,
)

if TYPE_CHECKING:
    from components.lib.video.records import VideoRecord

# Clips of one video further apart than this are reached by seeking instead of decoding on.
MAX_GAP = 96
# One decoding job covers at most about this many frames, so that a long video spreads over cores.
MAX_RUN = 1_536
# Without held-out videos one clip in ten validates instead.
FALLBACK_VALIDATION = 10

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class PlanSettings(Frozen):
    """What decides the plan."""

    sizes: tuple[Size, ...]
    lengths: tuple[int, ...]
    chunks_per_video: int
    strategy: Strategy
    seed: int
    fps: float | None
    resize: Literal["crop", "pad", "stretch"]
    shard_bytes: int
    shard_samples: int
    previews: int
    tokenizer: TokenizerConfig


@dataclass(frozen=True)
class Clip:
    """One sample to be. ``index`` counts the clips of a split; ``key`` names it in its shard."""

    key: str
    index: int
    info: ClipInfo
    preview: bool = False


@dataclass(frozen=True)
class DecodeRun:
    """Clips of one video that are decoded in one pass, in the order of their starts."""

    video: str
    video_sha256: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its name without extension, what it holds, and how it is made."""

    name: str
    split: Split
    shape: tuple[int, int, int, int]
    runs: tuple[DecodeRun, ...]

    @property
    def clips(self) -> list[Clip]:
        """Its samples in the order in which they are stored."""
        return [clip for run in self.runs for clip in run.clips]


@dataclass(frozen=True)
class SkippedVideo:
    """A readable video that gives no clip, because it is short or a copy of another."""

    uri: str
    reason: str


@dataclass(frozen=True)
class EncodingPlan:
    """All shards, the videos that give no clip, and what validation rests on."""

    shards: tuple[ShardPlan, ...]
    skipped: tuple[SkippedVideo, ...]
    videos: int
    validation: Literal["held-out", "same-video", "same-clip", "none"]


def make_plan(records: Iterable[VideoRecord], settings: PlanSettings) -> EncodingPlan:
    """Choose clips for every usable record and lay them out in shards."""
    usable = sorted(
        (record for record in records if record.status == "ok"), key=lambda r: (r.sha256, r.uri)
    )
    skipped: list[SkippedVideo] = []
    infos: list[ClipInfo] = []
    seen = ""
    for record in usable:
        if record.sha256 == seen:
            skipped.append(SkippedVideo(uri=record.uri, reason="the same bytes as another video"))
            continue
        seen = record.sha256
        clips = clips_of(record, settings)
        if not clips:
            reason = f"shorter than a clip of {min(settings.lengths)} frames ({record.frames})"
            skipped.append(SkippedVideo(uri=record.uri, reason=reason))
        infos += clips
    infos, validation = ensure_validation(infos)
    shards: list[ShardPlan] = []
    for split in SPLITS:
        members = [info for info in infos if info.split == split]
        shared = validation == "same-clip" and split == "validation"
        shards += plan_split(members, split, settings, mark="_held" if shared else "")
    return EncodingPlan(
        shards=mark_previews(shards, settings.previews),
        skipped=tuple(skipped),
        videos=len(usable),
        validation=validation,
    )


def clips_of(record: VideoRecord, settings: PlanSettings) -> list[ClipInfo]:
    """The clips of one video, ascending by start; empty when it is too short."""
    source_fps = float(record.fps)
    converted = settings.fps if settings.fps != source_fps else None
    fps = converted or source_fps
    available = timeline_length(record.frames, record.duration, converted)
    length = choose_length(available, settings.lengths)
    if length is None:
        return []
    size = choose_size(record.height, record.width, settings.sizes)
    starts = choose_starts(
        available,
        length,
        settings.chunks_per_video,
        settings.strategy,
        settings.seed,
        record.sha256,
    )
    return [
        ClipInfo(
            video=record.uri,
            video_sha256=record.sha256,
            prompt=record.prompt,
            prompt_sha256=prompt_digest(record.prompt) if record.prompt else None,
            start=start,
            start_frame=int(start * source_fps / fps + 1e-6) if converted else start,
            num_frames=length,
            fps=fps,
            source_fps=source_fps,
            height=record.height,
            width=record.width,
            clip_height=size[0],
            clip_width=size[1],
            resize=settings.resize,
            split=record.split or "train",
            drive=record.drive,
        )
        for start in starts
    ]


def ensure_validation(
    infos: Sequence[ClipInfo],
) -> tuple[list[ClipInfo], Literal["held-out", "same-video", "same-clip", "none"]]:
    """Give the validation split something to hold when no usable video was held out for it.

    The last tenth of the clips moves over, at least one: the end of the last video, which shares
    fewer frames with the training clips than clips in between would, and is decoded only once.
    A single clip serves both splits. The second value says which it was, for the report.
    """
    if not infos:
        return [], "none"
    if any(info.split == "validation" for info in infos):
        return list(infos), "held-out"
    if len(infos) == 1:
        return [infos[0], infos[0].model_copy(update={"split": "validation"})], "same-clip"
    kept = len(infos) - max(1, len(infos) // FALLBACK_VALIDATION)
    moved = [info.model_copy(update={"split": "validation"}) for info in infos[kept:]]
    return [*infos[:kept], *moved], "same-video"


def plan_split(
    infos: Sequence[ClipInfo], split: Split, settings: PlanSettings, mark: str = ""
) -> list[ShardPlan]:
    """Shards of one split: one shape after the other, evenly filled, numbered through.

    ``mark`` ends the samples' names, for clips that stand in the other split under their own.
    """
    by_shape: dict[tuple[int, int, int, int], list[ClipInfo]] = {}
    for info in infos:
        shape = settings.tokenizer.latent_shape(info.num_frames, info.clip_height, info.clip_width)
        by_shape.setdefault(shape, []).append(info)
    shards: list[ShardPlan] = []
    index = 0
    for shape in sorted(by_shape):
        members = by_shape[shape]
        capacity = max(
            1, min(settings.shard_samples, settings.shard_bytes // (2 * math.prod(shape)))
        )
        count = math.ceil(len(members) / capacity)
        bounds = [len(members) * k // count for k in range(count + 1)]
        for begin, end in itertools.pairwise(bounds):
            clips = [
                Clip(key=clip_key(info) + mark, index=index + k, info=info)
                for k, info in enumerate(members[begin:end])
            ]
            index += len(clips)
            name = f"{split}-{len(shards):06d}"
            shards.append(ShardPlan(name, split, shape, tuple(decode_runs(clips))))
    return shards


def clip_key(info: ClipInfo) -> str:
    """Name of a sample: the video's digest, length and start. No dots."""
    return f"{info.video_sha256[:16]}_{info.num_frames}_{info.start:07d}"


def decode_runs(clips: Sequence[Clip]) -> list[DecodeRun]:
    """Cut the clips of a shard into passes: a new one for a new video, a wide gap, a long run."""
    runs: list[list[Clip]] = []
    for clip in clips:
        if runs:
            first, previous = runs[-1][0].info, runs[-1][-1].info
            gap = clip.info.start - (previous.start + previous.num_frames)
            span = clip.info.start + clip.info.num_frames - first.start
            if clip.info.video_sha256 == first.video_sha256 and gap <= MAX_GAP and span <= MAX_RUN:
                runs[-1].append(clip)
                continue
        runs.append([clip])
    return [DecodeRun(run[0].info.video, run[0].info.video_sha256, tuple(run)) for run in runs]


def batches(run: DecodeRun, size: int) -> list[tuple[Clip, ...]]:
    """The forward passes of a run: ``size`` clips each, the last may hold fewer."""
    return [run.clips[k : k + size] for k in range(0, len(run.clips), size)]


def mark_previews(shards: Sequence[ShardPlan], count: int) -> tuple[ShardPlan, ...]:
    """Mark ``count`` clips, spread evenly over all, for the contact sheet."""
    total = sum(len(shard.clips) for shard in shards)
    chosen = {total * k // count for k in range(min(count, total))} if count < total else None
    position = 0
    marked: list[ShardPlan] = []
    for shard in shards:
        runs = []
        for run in shard.runs:
            clips = []
            for clip in run.clips:
                wanted = chosen is None or position in chosen
                clips.append(replace(clip, preview=wanted))
                position += 1
            runs.append(replace(run, clips=tuple(clips)))
        marked.append(replace(shard, runs=tuple(runs)))
    return tuple(marked)
