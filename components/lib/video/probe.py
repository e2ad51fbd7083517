"""What a video is: size, rate, length, colour, and whether it can be decoded.

Every packet is read (so the number of frames and the frame rate are measured, not believed), and
frames are decoded as far as ``check`` says. Checking both ends finds files that were cut off and
codecs that are not there, at the cost of two groups of pictures; checking all finds damage in the
middle, at the cost of decoding everything.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from components.lib.contract import Frozen
from components.lib.video.container import (
    DECODER_ERRORS,
    Source,
    VideoError,
    open_video,
    reason_of,
    source_name,
)
from components.lib.video.frames import FrameReader, decoded, pixel_aspect
from components.lib.video.index import FrameIndex, index_stream
from components.lib.video.picture import is_full_range, matrix_of, orientation_of

Check = Literal["first", "ends", "all"]

_HDR_TRANSFERS = (16, 18)  # PQ and HLG in ITU-T H.273
_LONGEST_CHECK = 600  # frames


class VideoProbe(Frozen):
    """A video's properties.

    ``width`` and ``height`` are as shown, after rotation; ``rotation`` is in degrees clockwise.
    ``frames`` counts shown frames, ``fps`` is their mean rate, ``duration`` is in seconds.
    ``variable_rate``: frames are shown for unequal times. ``colour`` holds the stream's codes
    (ITU-T H.273) for matrix, transfer and primaries; 2 means unspecified.
    """

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    mirrored: bool
    pixel_aspect: float
    fps: float
    frames: int
    duration: float
    variable_rate: bool
    interlaced: bool
    keyframes: int
    seekable: bool
    full_range: bool
    colour: tuple[int, int, int]
    hdr: bool
    audio: bool

    def extra(self) -> dict[str, Any]:
        """The properties that have no field of their own in a record, without the usual values."""
        usual: dict[str, Any] = {
            "mirrored": False,
            "pixel_aspect": 1.0,
            "variable_rate": False,
            "interlaced": False,
            "full_range": False,
            "hdr": False,
            "seekable": True,
        }
        values = self.model_dump(mode="json")
        unusual = {name: values[name] for name in usual if values[name] != usual[name]}
        return {"container": self.container, **unusual}


def probe(source: Source, *, check: Check = "ends", threads: int = 0) -> VideoProbe:
    """Read and check one video with ``threads`` decoder threads (0: all cores).

    Raises VideoError with the reason when it cannot be used.
    """
    name = source_name(source)
    with open_video(source, threads=1) as (container, stream):
        audio = any(other.type == "audio" for other in container.streams)
        kind = container.format.name
        codec = stream.codec_context.name
        index = index_stream(container, stream, name)
    with open_video(source, threads) as (container, stream):
        aspect = pixel_aspect(stream)
        frame = _first_frame(container, stream, name)
    frames = index.frames
    if check == "all" or not index.seekable:
        frames = _count_frames(source, index, threads)
    elif check == "ends":
        _check_end(source, index, threads)
    orientation = orientation_of(frame)
    height, width = frame.height, frame.width
    if orientation.transpose:
        height, width = width, height
    transfer = int(frame.color_trc)
    return VideoProbe(
        container=kind,
        codec=codec,
        pixel_format=frame.format.name,
        width=width,
        height=height,
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        pixel_aspect=round(aspect, 6),
        fps=round(index.fps, 6),
        frames=frames,
        duration=round(index.duration, 6),
        variable_rate=index.variable_rate,
        interlaced=bool(frame.interlaced_frame),
        keyframes=len(index.key_pts),
        seekable=index.seekable,
        full_range=matrix_of(frame) is not None and is_full_range(frame),
        colour=(int(frame.colorspace), transfer, int(frame.color_primaries)),
        hdr=transfer in _HDR_TRANSFERS,
        audio=audio,
    )


def _first_frame(container: Any, stream: Any, name: str) -> Any:
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise VideoError(name, "frame 0 is damaged")
            return frame
    except DECODER_ERRORS as error:
        raise VideoError(name, f"its first frame cannot be decoded ({reason_of(error)})") from error
    raise VideoError(name, "its video stream holds no frames that can be decoded")


def _count_frames(source: Source, index: FrameIndex, threads: int) -> int:
    """Decode everything; the number of frames, which must be the index's where that is sure."""
    name = source_name(source)
    count = 0
    with open_video(source, threads) as (container, stream):
        for frame in decoded(container, stream, name):
            if frame.is_corrupt:
                raise VideoError(name, f"frame {count} is damaged")
            count += 1
    if index.seekable and count != index.frames:
        raise VideoError(name, f"only {count} of its {index.frames} frames can be decoded")
    return count


def _check_end(source: Source, index: FrameIndex, threads: int) -> None:
    """Decode from the last keyframe to the end, or a stretch of it where that is far."""
    last_key = int(np.searchsorted(index.pts, index.key_pts[-1]))
    stop = min(index.frames, last_key + _LONGEST_CHECK)
    with open_video(source, threads) as (container, stream):
        reader = FrameReader(container, stream, index, source_name(source))
        for number in range(last_key, stop):
            reader.frame(number)
