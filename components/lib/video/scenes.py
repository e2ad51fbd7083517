"""Where a video cuts from one scene to another.

A cut is a frame that differs from the one before far more than its neighbours do from theirs: the
adaptive content detector of PySceneDetect, on the mean absolute difference of RGB thumbnails. The
comparison with the neighbourhood is what tells a cut from a fast pan or rain, which change every
frame. The trade-off: fades and dissolves, which spread over many frames, are not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from components.lib.video.frames import iter_frames
from components.lib.video.index import build_index
from components.lib.video.picture import RGB

THUMBNAIL = (36, 64)
WINDOW = 2  # frames on each side that a change is compared with
RATIO = 3.0  # how many times its neighbours' mean a change must be


def find_scenes(
    path: Path, *, threshold: float, min_frames: int, threads: int = 0
) -> list[tuple[int, int]]:
    """(first frame, number of frames) of each scene; together they are the whole video.

    Args:
        threshold: least mean change at a cut, in levels of 0 to 255.
        min_frames: a cut that would leave a shorter scene is passed over.

    Raises:
        VideoError: the video cannot be decoded to its end.
    """
    frames = iter_frames(
        path, size=THUMBNAIL, resize="stretch", index=build_index(path), threads=threads
    )
    return scenes_between(changes(frames), threshold, min_frames)


def changes(frames: Iterable[RGB]) -> list[float]:
    """Mean absolute difference of each frame to the one before; 0 for the first."""
    differences: list[float] = []
    before = None
    for frame in frames:
        picture = frame.astype(np.int16)
        differences.append(0.0 if before is None else float(np.abs(picture - before).mean()))
        before = picture
    return differences


def scenes_between(
    change: Sequence[float], threshold: float, min_frames: int
) -> list[tuple[int, int]]:
    """The scenes of a video whose frames change by ``change`` (see `changes`)."""
    starts = [0]
    for number in range(1, len(change)):
        around = [*change[max(1, number - WINDOW) : number], *change[number + 1 :][:WINDOW]]
        usual = sum(around) / len(around) if around else 0.0
        is_cut = change[number] >= max(threshold, RATIO * usual)
        if is_cut and number - starts[-1] >= min_frames:
            starts.append(number)
    if len(starts) > 1 and len(change) - starts[-1] < min_frames:
        starts.pop()  # too short a rest stays with the scene before
    ends = [*starts[1:], len(change)]
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]
