"""Which frames of a video become clips: starts, sizes and lengths, without looking at a pixel.

A frame-rate conversion comes before the choice: the video is seen as a timeline at the clip's
rate, so that clips stay runs of consecutive frames and may share decoded ones. Starts depend on
the seed and the video's own digest and on nothing else: not on the order of videos, nor on which
others are present.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import Literal

from components.lib.contract import UserError

Strategy = Literal["random", "spread", "all"]
Size = tuple[int, int]

# Heights and widths of the aspect ratios 1:1, 4:3, 3:4, 16:9 and 9:16 that the models know.
SUPPORTED_SIZES: tuple[Size, ...] = (
    (960, 960),
    (704, 960),
    (960, 704),
    (704, 1280),
    (1280, 704),
)


def timeline_length(frames: int, duration: float, fps: float | None) -> int:
    """How many frames a video has at ``fps``; None leaves it as it is.

    ``frames`` and ``duration`` (seconds) are those of the whole video. Agrees with what
    `components.lib.video.frames.iter_frames` can deliver at that rate.
    """
    if fps is None:
        return frames
    return max(1, int(duration * fps + 1e-6)) if frames else 0


def choose_starts(
    available: int, length: int, count: int, strategy: Strategy, seed: int, video_sha256: str
) -> list[int]:
    """First frames of the clips of one video, ascending and distinct.

    ``available`` frames, clips of ``length``. ``random`` draws ``count`` distinct starts, every
    start equally likely; ``spread`` spaces them evenly over the video, the first at its start and
    the last at its end (one clip: the middle); ``all`` puts clips end to end and ignores
    ``count``. A video with fewer than ``count`` different starts gives each once; a video
    shorter than a clip gives none.
    """
    last = available - length
    if last < 0:
        return []
    if strategy == "all":
        return list(range(0, last + 1, length))
    count = min(count, last + 1)
    if strategy == "spread":
        if count == 1:
            return [last // 2]
        gaps = count - 1
        return [(2 * k * last + gaps) // (2 * gaps) for k in range(count)]
    digest = hashlib.sha256(f"{seed}:{video_sha256}:{length}".encode()).digest()
    generator = random.Random(int.from_bytes(digest))  # noqa: S311 - reproducible, not secret
    return sorted(generator.sample(range(last + 1), count))


def choose_size(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The (height, width) of ``sizes`` whose aspect ratio is nearest the video's.

    Ratios are compared by quotient, so that twice as wide and half as wide are equally far.
    Ties go to the earlier entry.
    """
    ratio = math.log(width / height)
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0]) - ratio))


def choose_length(available: int, lengths: Sequence[int]) -> int | None:
    """The longest clip length that fits into ``available`` frames, None when none does."""
    return max((length for length in lengths if length <= available), default=None)


def parse_size(text: str) -> Size:
    """``"704x1280"`` (height x width) as (704, 1280). Raises UserError for anything else."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"'{text}' is not a size. Write HEIGHTxWIDTH, for example 704x1280.")
    return int(height), int(width)
