"""Discovery: list a source, inspect what is new, describe every video, hold some out.

Results of inspections are remembered by file version, so a run costs one listing plus the new
files. Files are listed, inspected and written as streams in one order: memory does not grow with
their number, and equal sources give byte-identical records. What was found decides the address of
the output (see `execute`); the stage itself is never skipped, since only looking tells whether
the source has changed.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from components.lib.contract import Progress, StageConfig, UserError, operational
from components.lib.manifest import Manifest, digest_json
from components.lib.stage import Output, StageResult, StageSpec, execute

if TYPE_CHECKING:
    from components.lib.store import ObjectStore
    from components.video_discovery.scan import Findings

SPEC = StageSpec(name="video_discovery", version="1", kind="videos")
DEFAULT_PATTERN = (
    r"(?:^|/)(?:drive|trip|session)[=_-](?P<drive>[^/.]+)"
    r"|(?:^|/)(?:vehicle|car|truck|robot)[=_-](?P<vehicle>[^/.]+)"
)


class VideoDiscoveryConfig(StageConfig):
    """Settings of the stage. A filter that is 0 is off."""

    source: str = Field(
        description="Folder, file, s3://bucket/prefix or hf://datasets/owner/name[@revision][/dir]."
    )
    prompt: str = Field(
        default="",
        description="Prompt of videos that have none of their own; {subject} is filled in.",
    )
    subject: str = Field(default="", description="What {subject} in the prompt stands for.")
    table: str = Field(
        default="",
        description="JSONL or CSV (path or s3://) with columns file, prompt, drive, vehicle.",
    )
    path_pattern: str = Field(
        default=DEFAULT_PATTERN,
        description="Regular expression whose groups 'drive' and 'vehicle' are found in paths.",
    )
    min_frames: int = Field(default=1, ge=1, description="Fewest frames of a usable video.")
    min_width: int = Field(default=0, ge=0, description="Least width in pixels, as shown.")
    min_height: int = Field(default=0, ge=0, description="Least height in pixels, as shown.")
    min_duration: float = Field(default=0, ge=0, description="Least length in seconds.")
    max_black: float = Field(
        default=0,
        ge=0,
        le=255,
        description="Drop videos whose frames all stay this dark (16 is usual).",
    )
    max_still: float = Field(
        default=0, ge=0, le=255, description="Drop videos whose pictures change less (2 is usual)."
    )
    max_near_duplicates: float = Field(
        default=0, ge=0, le=1, description="Drop videos with a greater share of repeated frames."
    )
    check: str = Field(
        default="ends",
        pattern="^(first|ends|all)$",
        description="How much of each video to decode: first frame, both ends, all.",
    )
    validation_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of drives (or videos) held out for validation."
    )
    seed: int = Field(default=0, description="Seed of the choice of held-out drives.")
    max_bad_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Fail when a greater share of the videos is unreadable.",
    )
    ledger: str = Field(
        default="default", description="Name of the ledger that says what is processed."
    )
    only_new: bool = Field(
        default=False, description="Give only videos that the ledger does not hold."
    )
    min_new_videos: int = Field(
        default=0,
        ge=0,
        description="With only_new: with fewer new videos than this, next_step is 'wait'.",
    )
    old_per_new: float = Field(
        default=0,
        ge=0,
        description="With only_new: add this many old training videos per new one, so that a "
        "model that learns the new ones does not forget.",
    )
    max_old_held_out: int = Field(
        default=16, ge=0, description="With old_per_new: at most this many old held-out videos."
    )
    workers: int = operational(0, "Decoding processes; 0 means one per core.", ge=0)
    timeout_s: float = operational(
        120.0, "Longest time to inspect a video, plus 1 s per 4 MB of it.", gt=0
    )


CONFIG = VideoDiscoveryConfig


def run(config: VideoDiscoveryConfig, store: ObjectStore, progress: Progress) -> StageResult:
    """Discover videos and write the records of those found.

    Raises UserError when the source does not exist, no usable video remains, or more than
    ``max_bad_fraction`` of the videos cannot be read.
    """
    from components.lib.video.ledger import processed
    from components.video_discovery.scan import scan

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cosmos-discovery-") as scratch:
        old = processed(store, config.storage_root, config.ledger) if config.only_new else None
        findings = scan(config, store, progress, Path(scratch), config.workers or _cores(), old)
        if not (old and old.videos and findings.listed == 0):  # an emptied inbox is no mistake
            _refuse_if_unusable(config, findings)
        address = digest_json(
            [
                SPEC.name,
                SPEC.version,
                findings.videos_sha256,
                findings.quarantine_sha256,
                next_step(config, findings),
            ]
        )

        def work(inputs: dict[str, Manifest], output: Output) -> None:
            output.put_file("videos.jsonl", findings.videos)
            output.put_file("quarantine.jsonl", findings.quarantine)
            output.summary.update(findings.summary())
            output.summary["next_step"] = next_step(config, findings)
            output.timing.update(findings.timing)
            output.timing["discovery_seconds"] = time.monotonic() - started
            output.metrics.update(findings.metrics())

        result = execute(SPEC, config, store, progress, work, address=address)
    progress.log(f"video_discovery: {findings.sentence()}")
    if next_step(config, findings) == "wait":
        progress.log(
            f"{findings.new} new videos are fewer than min_new_videos={config.min_new_videos}: "
            "nothing to do now."
        )
    return result


def next_step(config: VideoDiscoveryConfig, found: Findings) -> Literal["train", "wait"]:
    """Whether there is enough new video to go on with."""
    wait = config.only_new and found.new < max(config.min_new_videos, 1)
    return "wait" if wait else "train"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _refuse_if_unusable(config: VideoDiscoveryConfig, found: Findings) -> None:
    if found.listed == 0:
        other = f" ({found.ignored} other files are there)" if found.ignored else ""
        raise UserError(
            f"There is no video in {found.source}{other}. Put video files there (.mp4, .mov, "
            ".mkv, …) or give another source."
        )
    first = found.reasons[0] if found.reasons else ""
    if found.ok + found.already_processed == 0:
        if found.listed == 1:
            raise UserError(f"There is no usable video: {first}.")
        raise UserError(
            f"None of the {found.listed} videos in {found.source} is usable; the first: {first}."
        )
    bad = found.unreadable / found.listed
    if bad > config.max_bad_fraction:
        raise UserError(
            f"{found.unreadable} of the {found.listed} videos in {found.source} cannot be read, "
            f"more than max_bad_fraction={config.max_bad_fraction:g} allows; the first: {first}."
        )
