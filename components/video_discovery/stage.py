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

from components.lib.contract import Progress, UserError
from components.lib.manifest import Manifest, digest_json
from components.lib.stage import Output, StageResult, execute
from components.video_discovery.config import SPEC, VideoDiscoveryConfig

if TYPE_CHECKING:
    from components.lib.store import ObjectStore
    from components.video_discovery.scan import Findings


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
