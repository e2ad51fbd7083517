"""Writing H.264 in MP4 from RGB frames.

Pictures are BT.709, limited range, tagged as such; files have their index in front. One encoder
thread, arithmetic that no processor changes, and no time stamps or tool versions: equal frames give
equal bytes, here and on other machines.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from components.lib.video.picture import RGB

_BT709 = 1


def write_mp4(
    target: Path | BinaryIO,
    frames: Iterable[RGB],
    fps: float | Fraction,
    *,
    crf: int = 18,
    preset: str = "veryfast",
    threads: int = 1,
    gop: int | None = None,
) -> int:
    """Write frames (uint8 RGB [H, W, 3], all of one size) and return how many there were.

    Sizes that are odd are stored as 4:4:4, since 4:2:0 has no odd sizes. ``crf`` is x264's quality
    (0 is lossless, 18 visually so); ``gop`` is the greatest distance of keyframes. A local file
    appears under its name only when it is complete. Raises ValueError when there is no frame.
    """
    if isinstance(target, Path):
        partial = target.with_name(f".{target.name}.partial")
        try:
            count = _encode(str(partial), frames, fps, crf, preset, threads, gop)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return count
    return _encode(target, frames, fps, crf, preset, threads, gop)


def mp4_bytes(frames: Iterable[RGB], fps: float | Fraction, **settings: Any) -> bytes:
    """The same in memory, with the index at the end."""
    buffer = io.BytesIO()
    write_mp4(buffer, frames, fps, **settings)
    return buffer.getvalue()


def _encode(
    target: str | BinaryIO,
    frames: Iterable[RGB],
    fps: float | Fraction,
    crf: int,
    preset: str,
    threads: int,
    gop: int | None,
) -> int:
    rate = fps if isinstance(fps, Fraction) else Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise ValueError(f"the frame rate must be positive, not {fps}")
    reformatter = VideoReformatter()
    count = 0
    options = {"fflags": "+bitexact"}
    if isinstance(target, str):
        options["movflags"] = "+faststart"  # needs a second pass over a named file
    with av.open(target, "w", format="mp4", container_options=options) as container:
        stream: Any = None
        for array in frames:
            if stream is None:
                stream = _add_stream(container, array, rate, crf, preset, threads, gop)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.color_range = ColorRange.JPEG
            picture = reformatter.reformat(
                frame,
                format=stream.pix_fmt,
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                threads=1,
            )
            picture.pts, picture.time_base = count, 1 / rate
            for packet in stream.encode(picture):
                container.mux(packet)
            count += 1
        if stream is None:
            raise ValueError("there are no frames to write")
        for packet in stream.encode(None):
            container.mux(packet)
    return count


def _add_stream(
    container: Any,
    first: RGB,
    rate: Fraction,
    crf: int,
    preset: str,
    threads: int,
    gop: int | None,
) -> Any:
    height, width = first.shape[:2]
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    context = stream.codec_context
    # without cpu-independent, x264's macroblock-tree code gives other bytes in one run of fifty
    context.options = {"crf": str(crf), "preset": preset, "x264-params": "cpu-independent=1"}
    context.thread_count = threads
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = int(ColorRange.MPEG)
    context.time_base = 1 / rate
    if gop is not None:
        context.gop_size = gop
    return stream
