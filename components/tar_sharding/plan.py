"""Which videos go into which shard, decided before anything is read.

Videos are ordered by a hash of seed and content, so neighbours in a shard come from different
drives and the order does not depend on names. Shards are filled in that order up to their limits,
training shards first; a shard never mixes splits. Sample numbers run through all shards. Since
the plan follows from the records alone, shards can be made in parallel, in any order, and again
after a kill, and always come out the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.lib.video.records import Split, VideoRecord

_OVERHEAD = 8 << 10  # headers, padding and the .json of one sample
_REWRITTEN = 1.05  # a remuxed video may grow a little


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
class Plan:
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
) -> Plan:
    """Plan the shards of usable videos. ``clip_frames`` cuts videos into clips of that length; the
    frames left at the end of each are dropped, videos shorter than one clip give nothing."""
    usable = [record for record in records if record.status == "ok"]
    usable.sort(key=lambda record: _order(record, seed))
    too_short = tuple(record for record in usable if 0 < record.frames < clip_frames)
    shards: list[Shard] = []
    number = 0
    for split in ("train", "validation"):
        chosen = [
            record
            for record in usable
            if (record.split or "train") == split and record.frames >= clip_frames
        ]
        for group in _fill(chosen, max_bytes, max_samples, clip_frames):
            items = []
            for record in group:
                items.append(Item(number, record, _clips(record, clip_frames)))
                number += items[-1].samples
            shards.append(Shard(len(shards), split, tuple(items)))
    return Plan(tuple(shards), too_short)


def _order(record: VideoRecord, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{record.sha256}".encode()).digest()


def _clips(record: VideoRecord, clip_frames: int) -> tuple[tuple[int, int], ...]:
    if not clip_frames:
        return ()
    starts = range(0, record.frames - clip_frames + 1, clip_frames)
    return tuple((start, clip_frames) for start in starts)


def _fill(
    records: Sequence[VideoRecord], max_bytes: int, max_samples: int, clip_frames: int
) -> list[list[VideoRecord]]:
    groups: list[list[VideoRecord]] = []
    space = samples = 0
    for record in records:
        count = max(1, len(_clips(record, clip_frames)))
        size = int(record.bytes * _growth(record, clip_frames)) + count * _OVERHEAD
        if not groups or size > space or count > samples:
            groups.append([])
            space, samples = max_bytes, max_samples
        groups[-1].append(record)
        space -= size
        samples -= count
    return groups


def _growth(record: VideoRecord, clip_frames: int) -> float:
    return _REWRITTEN if clip_frames or not is_mp4(record) else 1.0


def is_mp4(record: VideoRecord) -> bool:
    """Whether a video's bytes can go into a shard as they are."""
    return "mp4" in str(record.extra.get("container", "")).split(",")
