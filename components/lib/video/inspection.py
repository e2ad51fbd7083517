"""One look at one file: its digest, its properties, and (on request) what its pictures hold.

The pictures are judged on short runs of neighbouring frames at places spread over the video, at
thumbnail size: enough to tell a covered lens, a parked car and a stuck camera from a drive, for
the price of a few groups of pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.lib.contract import Frozen
from components.lib.manifest import file_sha256
from components.lib.video.container import VideoError
from components.lib.video.frames import iter_clips
from components.lib.video.index import build_index
from components.lib.video.probe import Check, VideoProbe, probe

INSPECTION_VERSION = 1
PLACES = 8
RUN = 4
THUMBNAIL = (36, 64)
_SAME_PICTURE = 0.4  # mean absolute difference in grey levels; coding noise stays below


class Look(Frozen):
    """What sampled pictures hold, in grey levels 0 to 255.

    ``brightest``: the highest mean brightness of a sampled frame. ``detail``: the highest standard
    deviation within one. ``change``: the greatest mean difference between places.
    ``near_duplicates``: the share of neighbouring frames that show the same picture.
    """

    brightest: float
    detail: float
    change: float
    near_duplicates: float


class Inspection(Frozen):
    """What is known of a file. Either ``probe`` is set or ``reason`` says why it is no use."""

    sha256: str
    bytes: int
    probe: VideoProbe | None = None
    reason: str = ""
    look: Look | None = None


def inspect_video(
    path: Path, *, check: Check = "ends", pictures: bool = False, threads: int = 0
) -> Inspection:
    """Inspect a local file. What is wrong with a video is an answer here, not an exception."""
    digest, size = file_sha256(path), path.stat().st_size
    try:
        properties = probe(path, check=check, threads=threads)
        look = look_at(path, threads) if pictures else None
    except VideoError as error:
        return Inspection(sha256=digest, bytes=size, reason=error.reason)
    return Inspection(sha256=digest, bytes=size, probe=properties, look=look)


def look_at(path: Path, threads: int = 0) -> Look:
    """Judge the pictures of a video. Raises VideoError when a sampled frame cannot be decoded."""
    index = build_index(path)
    run = min(RUN, index.frames)
    starts = np.linspace(0, index.frames - run, PLACES).round().astype(int)
    clips = iter_clips(
        path, sorted({int(start) for start in starts}), run, size=THUMBNAIL, resize="stretch",
        index=index, threads=threads,
    )  # fmt: skip
    grey = [clip.astype(np.float32).mean(axis=-1) for _, clip in clips]
    means = [frames.mean(axis=(1, 2)) for frames in grey]
    steps = np.concatenate([np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2)) for frames in grey])
    firsts = np.stack([frames[0] for frames in grey])
    change = max(float(np.abs(firsts - other).mean(axis=(1, 2)).max()) for other in firsts)
    return Look(
        brightest=round(float(np.concatenate(means).max()), 3),
        detail=round(max(float(frames.std(axis=(1, 2)).max()) for frames in grey), 3),
        change=round(max(change, float(steps.max()) if steps.size else 0.0), 3),
        near_duplicates=round(float((steps < _SAME_PICTURE).mean()) if steps.size else 0.0, 3),
    )
