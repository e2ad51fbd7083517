"""Which videos that were trained on before are mixed in with the new ones.

A model that only sees the new street forgets the old ones. So a sample of old training video is
added, drawn by a hash over the set of new videos: another one in every round, the same one when a
round is repeated. The old held-out videos are drawn by their own content alone, so that the rounds
are measured on the same ones for as long as these are there.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from components.lib.video.ledger import Processed
from components.lib.video.records import OLD_MARK, SplitRule, VideoRecord, is_old, parse_records
from components.video_discovery.config import VideoDiscoveryConfig


def as_old(record: VideoRecord, ledger: Processed) -> VideoRecord:
    """The record of a video that the ledger holds, marked, with the split it had."""
    split = ledger.videos[bytes.fromhex(record.sha256)]
    return record.model_copy(update={"split": split, "extra": {**record.extra, OLD_MARK: True}})


def choose_old(config: VideoDiscoveryConfig, unsplit: Path, rule: SplitRule) -> set[str]:
    """sha256 of the old videos to take, given the records of all old and new ones."""
    new_training, new, old = 0, hashlib.sha256(), []
    with unsplit.open("rb") as stream:
        for record in parse_records(stream, str(unsplit)):
            if is_old(record):
                old.append((record.sha256, record.split))
            else:
                new.update(record.sha256.encode())
                new_training += rule.split(record) == "train"
    training = [sha256 for sha256, split in old if split == "train"]
    held_out = [sha256 for sha256, split in old if split == "validation"]
    wanted = math.ceil(config.old_per_new * new_training)
    return {
        *_smallest(training, f"{config.seed}:{new.hexdigest()}", wanted),
        *_smallest(held_out, f"{config.seed}", config.max_old_held_out),
    }


def _smallest(contents: list[str], salt: str, count: int) -> list[str]:
    key = {sha: hashlib.sha256(f"{salt}:{sha}".encode()).digest() for sha in contents}
    return sorted(contents, key=key.__getitem__)[:count]
