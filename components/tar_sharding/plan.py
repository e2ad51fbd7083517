"""Which videos go into which shard, decided before anything is read.

Videos are ordered by a hash of seed and content, so neighbours in a shard come from different
drives and the order does not depend on names. Shards are filled in that order up to their limits,
training shards first; a shard never mixes splits. Sample numbers run through all shards. Since
the plan follows from the records alone, shards can be made in parallel, in any order, and again
after a kill, and always come out the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from components.lib.video.records import Split, VideoRecord

_OVERHEAD = 8 << 10  # headers, padding and the .json of one sample
_REWRITTEN = 1.05  # a remuxed video may grow a little
Scenes = Mapping[str, Sequence[tuple[int, int]]]  # (start, count) in frames, by sha256


@dataclass(frozen=True)
class Item:
    """One video: its samples are numbered from ``first``; ``clips`` are (start, count) frames.

    Without clips the video is one sample, whole.
    """

    first: int
    record: VideoRecord
    clips: tuple[tuple[int, int], ...] = ()

    @property
    def samples(self) -> int:
        """How many samples it gives."""
        return max(1, len(self.clips))


@dataclass(frozen=True)
class Shard:
    """One shard to be made."""

    number: int
    split: Split
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.number:06d}.tar"

    @property
    def samples(self) -> int:
        """How many samples it will hold when no video fails."""
        return sum(item.samples for item in self.items)


@dataclass(frozen=True)
class ShardingPlan:
    """All shards, and the videos that give no sample with the reason."""

    shards: tuple[Shard, ...]
    too_short: tuple[VideoRecord, ...]


def make_plan(
    records: Iterable[VideoRecord],
    *,
    max_bytes: int,
    max_samples: int,
    clip_frames: int = 0,
    seed: int = 0,
    scenes: Scenes | None = None,
) -> ShardingPlan:
    """Plan the shards of usable videos.

    ``scenes`` cuts videos into their scenes. ``clip_frames`` cuts videos, or their scenes, into
    clips of that length; the frames left at the end of each are dropped, and what is shorter than
    one clip gives nothing.
    """
    usable = [record for record in records if record.status == "ok"]
    usable.sort(key=lambda record: _order(record, seed))
    clips = {record.sha256: _clips(record, clip_frames, scenes) for record in usable}
    too_short = tuple(record for record in usable if record.frames and clips[record.sha256] is None)
    shards: list[Shard] = []
    number = 0
    for split in ("train", "validation"):
        chosen = [
            (record, cut)
            for record in usable
            if (record.split or "train") == split and (cut := clips[record.sha256]) is not None
        ]
        for group in _fill(chosen, max_bytes, max_samples):
            items = []
            for record, cut in group:
                items.append(Item(number, record, cut))
                number += items[-1].samples
            shards.append(Shard(len(shards), split, tuple(items)))
    return ShardingPlan(tuple(shards), too_short)


def _order(record: VideoRecord, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{record.sha256}".encode()).digest()


def _clips(
    record: VideoRecord, clip_frames: int, scenes: Scenes | None
) -> tuple[tuple[int, int], ...] | None:
    """The clips of a video; none of them: it stays whole; None: it is too short."""
    whole = (0, record.frames)
    parts = [whole] if scenes is None else scenes[record.sha256]
    if not clip_frames:
        return () if list(parts) == [whole] or scenes is None else tuple(parts)
    clips = tuple(
        (first + offset, clip_frames)
        for first, count in parts
        for offset in range(0, count - clip_frames + 1, clip_frames)
    )
    return clips or None


Chosen = tuple[VideoRecord, tuple[tuple[int, int], ...]]


def _fill(records: Sequence[Chosen], max_bytes: int, max_samples: int) -> list[list[Chosen]]:
    groups: list[list[Chosen]] = []
    space = samples = 0
    for record, clips in records:
        count = max(1, len(clips))
        growth = _REWRITTEN if clips or not is_mp4(record) else 1.0
        size = int(record.bytes * growth) + count * _OVERHEAD
        if not groups or size > space or count > samples:
            groups.append([])
            space, samples = max_bytes, max_samples
        groups[-1].append((record, clips))
        space -= size
        samples -= count
    return groups


def is_mp4(record: VideoRecord) -> bool:
    """Whether a video's bytes can go into a shard as they are."""
    return "mp4" in str(record.extra.get("container", "")).split(",")
