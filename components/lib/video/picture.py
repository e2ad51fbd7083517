"""From a decoded frame to an upright RGB picture of the wanted size.

The colour matrix is the one the stream names. Where it names none, the broadcast convention
holds: BT.709 from 720 lines on, BT.601 below. (The scaler's own default is BT.601 for everything,
which shifts the greens of HD video by several levels.) Output is full-range RGB.

Resizing covers the target and cuts the middle (``crop``), fits inside and fills with black
(``pad``), or ignores the aspect ratio (``stretch``, as the guide does). Pixels that are not
square count with their shape. Rotation and mirroring are applied last, on the small picture.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

Resize = Literal["crop", "stretch", "pad"]
RGB = npt.NDArray[np.uint8]

_RGB_MATRIX, _UNSPECIFIED = 0, 2
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
_SCALED = int(Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP)
_LARGEST_KEPT = 30 << 20  # glibc adapts to blocks below 32 MiB
_SAME_SIZE = int(Interpolation.BICUBIC)


@dataclass(frozen=True)
class Orientation:
    """How to turn a stored picture upright: transpose first, then mirror."""

    transpose: bool = False
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @property
    def rotation(self) -> int:
        """Degrees clockwise, of the part that is a rotation."""
        if self.transpose:
            return 90 if self.flip_horizontal else 270
        return 180 if self.flip_vertical else 0

    @property
    def mirrored(self) -> bool:
        """Whether the stored picture is a mirror image."""
        turns = (self.transpose, self.flip_horizontal, self.flip_vertical)
        return sum(turns) % 2 == 1

    def apply(self, picture: RGB) -> RGB:
        """Upright copy (or the same array) of [H, W, 3]."""
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        if self.flip_horizontal:
            picture = picture[:, ::-1]
        if self.flip_vertical:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


def orientation_of(frame: Any) -> Orientation:
    """Orientation from the frame's display matrix; angles between go to the nearest quarter."""
    try:
        matrix = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    except ValueError:  # side data of a kind that PyAV does not know
        matrix = None
    if matrix is None or matrix.buffer_size < 36:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(matrix)[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def matrix_of(frame: Any) -> int | None:
    """The colour matrix to convert a frame with, None for pictures that are RGB or grey."""
    if frame.format.is_rgb or frame.colorspace == _RGB_MATRIX or len(frame.format.components) < 3:
        return None
    if frame.colorspace in _MATRICES:
        return int(_MATRICES[frame.colorspace])
    return int(Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601)


def is_full_range(frame: Any) -> bool:
    """Whether sample values use the whole range (JPEG) and not the broadcast one."""
    return frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")


@dataclass(frozen=True)
class Fit:
    """Scaled size and where it meets the target, in stored (not yet upright) orientation."""

    height: int
    width: int
    crop_top: int = 0
    crop_left: int = 0
    pad_top: int = 0
    pad_left: int = 0


def fit(height: int, width: int, pixel_aspect: float, target: tuple[int, int], how: Resize) -> Fit:
    """How a stored ``height`` x ``width`` picture meets ``target`` (H, W), both unturned."""
    goal_h, goal_w = target
    if how == "stretch":
        return Fit(goal_h, goal_w)
    shown_w = width * pixel_aspect
    ratios = (goal_h / height, goal_w / shown_w)
    scale = max(ratios) if how == "crop" else min(ratios)
    scaled_h, scaled_w = round(height * scale), round(shown_w * scale)
    if how == "crop":
        scaled_h, scaled_w = max(scaled_h, goal_h), max(scaled_w, goal_w)
        return Fit(scaled_h, scaled_w, (scaled_h - goal_h) // 2, (scaled_w - goal_w) // 2)
    scaled_h, scaled_w = min(max(scaled_h, 1), goal_h), min(max(scaled_w, 1), goal_w)
    return Fit(
        scaled_h, scaled_w, pad_top=(goal_h - scaled_h) // 2, pad_left=(goal_w - scaled_w) // 2
    )


class Painter:
    """Turns the frames of one video into RGB arrays. Keeps the scaler's tables between frames.

    ``size`` is the upright (H, W) wanted, None for the video's own. ``pixel_aspect`` is width over
    height of one stored pixel.
    """

    def __init__(
        self, size: tuple[int, int] | None, how: Resize, pixel_aspect: float, threads: int = 1
    ) -> None:
        self.size, self.how, self.pixel_aspect, self.threads = size, how, pixel_aspect, threads
        self.reformatter = VideoReformatter()
        self.orientation: Orientation | None = None

    def paint(self, frame: Any) -> RGB:
        """uint8 [H, W, 3]."""
        if self.orientation is None:
            self.orientation = orientation_of(frame)
            _keep_freed_memory()
        target = self.size
        if target is not None and self.orientation.transpose:
            target = (target[1], target[0])
        if target is None:
            where = Fit(frame.height, frame.width)
            target = (frame.height, frame.width)
        else:
            where = fit(frame.height, frame.width, self.pixel_aspect, target, self.how)
        picture = self._convert(frame, where)
        if (where.height, where.width) != target:
            picture = _place(picture, where, target)
        if self.orientation != Orientation():
            picture = self.orientation.apply(picture)
        return picture

    def _convert(self, frame: Any, where: Fit) -> RGB:
        same = (where.height, where.width) == (frame.height, frame.width)
        rgb: Any = self.reformatter.reformat(
            frame,
            width=where.width,
            height=where.height,
            format="rgb24",
            src_colorspace=matrix_of(frame),
            src_color_range=ColorRange.JPEG if is_full_range(frame) else None,
            dst_color_range=ColorRange.JPEG,
            interpolation=_SAME_SIZE if same else _SCALED,
            threads=self.threads,
        )
        # The array shares the converted frame's memory: a copy of each frame would cost as much
        # as the conversion. Rows that are padded (odd widths) are packed.
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8, plane.line_size * where.height)
        rows = rows.reshape(where.height, plane.line_size)[:, : where.width * 3]
        return np.ascontiguousarray(rows).reshape(where.height, where.width, 3)


def _keep_freed_memory() -> None:
    """Let the allocator keep memory of the size of frames.

    glibc asks the kernel for every large block anew until it has seen one being freed; for a
    720p picture the page faults cost a third of the conversion. The block here is never touched.
    """
    np.empty(_LARGEST_KEPT, dtype=np.uint8)


def _place(picture: RGB, where: Fit, target: tuple[int, int]) -> RGB:
    if (
        where.crop_top
        or where.crop_left
        or picture.shape[0] > target[0]
        or (picture.shape[1] > target[1])
    ):
        top, left = where.crop_top, where.crop_left
        return np.ascontiguousarray(picture[top : top + target[0], left : left + target[1]])
    canvas = np.zeros((*target, 3), dtype=np.uint8)
    top, left = where.pad_top, where.pad_left
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas
