"""Making an MP4 of a whole video, or of a run of its frames.

Packets are copied where that is exact: the run starts at a keyframe and no packet outside it is
needed. Otherwise the run is decoded and encoded again. The copy is checked (frames, orientation)
and given up for encoding when it does not hold exactly the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from components.lib.video.container import DECODER_ERRORS, VideoError, open_video
from components.lib.video.encode import write_mp4
from components.lib.video.frames import iter_frames
from components.lib.video.index import FrameIndex, build_index
from components.lib.video.probe import probe

Method = Literal["remux", "encode"]
_COPY_ERRORS: tuple[type[Exception], ...] = (*DECODER_ERRORS, VideoError)
_COPYABLE = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "libdav1d", "libaom-av1"})


def cut_mp4(
    source: Path,
    target: Path,
    *,
    start: int = 0,
    count: int | None = None,
    crf: int = 18,
    index: FrameIndex | None = None,
) -> Method:
    """Write frames ``start`` to ``start + count`` of ``source`` (None: to its end) as an MP4.

    Sound is left out. Encoded frames are upright, at the video's mean rate. Returns how it was
    done. Raises VideoError when the frames cannot be had.
    """
    index = index or build_index(source)
    stop = index.frames if count is None else start + count
    if index.seekable and _copy(source, target, start, stop, index):
        return "remux"
    frames = iter_frames(source, start=start, count=stop - start, index=index)
    write_mp4(target, frames, index.fps or 25.0, crf=crf)
    return "encode"


def _copy(source: Path, target: Path, start: int, stop: int, index: FrameIndex) -> bool:
    """Copy packets; False when the run cannot be had that way."""
    if not _between_keyframes(index, start, stop):
        return False
    partial = target.with_name(f".{target.name}.partial")
    try:
        with open_video(source, threads=1) as (container, stream):
            key = int(np.searchsorted(index.key_pts, index.pts[start]))
            copied = stream.codec_context.name in _COPYABLE
            if copied:
                container.seek(int(index.key_dts[key]), stream=stream, backward=True)
                copied = _copy_packets(container, stream, partial, index, start, stop)
        if copied and _same(source, partial, stop - start):
            partial.replace(target)
            return True
    except _COPY_ERRORS:
        return False  # encoding says what is wrong, if anything is
    finally:
        partial.unlink(missing_ok=True)
    return False


def _between_keyframes(index: FrameIndex, start: int, stop: int) -> bool:
    """Whether the run starts at a keyframe and another (or the end) follows it."""
    keys = set(index.key_pts.tolist())
    return int(index.pts[start]) in keys and (stop >= index.frames or int(index.pts[stop]) in keys)


def _copy_packets(
    container: Any, stream: Any, target: Path, index: FrameIndex, start: int, stop: int
) -> bool:
    wanted = {int(pts) for pts in index.pts[start:stop]}
    first = int(index.pts[start])
    beyond = int(index.pts[stop]) if stop < index.frames else None
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(target), "w", format="mp4", container_options=options) as output:
        copy = output.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.pts == beyond:
                break
            if packet.is_discard or packet.pts not in wanted:
                if packet.pts is not None and packet.pts < first:
                    continue  # before the run, as far as the seek went back
                return False
            wanted.discard(packet.pts)
            packet.pts -= first
            packet.dts = None if packet.dts is None else packet.dts - first
            packet.stream = copy
            output.mux(packet)
    return not wanted


def _same(source: Path, made: Path, frames: int) -> bool:
    """Whether the copy shows ``frames`` frames the way the source shows them."""
    ours, theirs = probe(made, check="ends"), probe(source, check="first")
    return ours.frames == frames and (ours.width, ours.height, ours.rotation, ours.mirrored) == (
        theirs.width,
        theirs.height,
        theirs.rotation,
        theirs.mirrored,
    )
